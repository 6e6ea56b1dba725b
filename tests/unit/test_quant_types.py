"""Our table of storage types against gguf's, and against what llama.cpp prints."""

from __future__ import annotations

from fractions import Fraction

import gguf
import pytest

from pytest_ondevice.model.quant_types import FILE_TYPES, QUANT_TYPES, REMOVED_TYPES, by_name


@pytest.mark.parametrize("theirs", list(gguf.GGMLQuantizationType), ids=lambda kind: kind.name)
def test_type_agrees_with_gguf(theirs: gguf.GGMLQuantizationType) -> None:
    ours = QUANT_TYPES[theirs.value]
    assert ours.name == theirs.name
    if theirs.name == "Q8_1":  # never in a file; gguf up to 0.19.0 takes its two halves for floats
        assert (ours.block_size, ours.type_size) == (32, 2 + 2 + 32)
    else:
        assert (ours.block_size, ours.type_size) == gguf.GGML_QUANT_SIZES[theirs]


def test_types_that_the_installed_gguf_may_not_know() -> None:
    # ggml-common.h: a half for the scale of 128 or 64 weights of 1 or 2 bits.
    assert (by_name("Q1_0").id, by_name("Q1_0").type_size) == (41, 2 + 128 // 8)
    assert (by_name("Q2_0").id, by_name("Q2_0").type_size) == (42, 2 + 64 // 4)
    assert max(QUANT_TYPES) == 42


def test_ids_are_complete_and_unique() -> None:
    assert sorted([*QUANT_TYPES, *REMOVED_TYPES]) == list(range(43))
    assert [quant.id for quant in QUANT_TYPES.values()] == list(QUANT_TYPES)
    assert len({quant.name for quant in QUANT_TYPES.values()}) == len(QUANT_TYPES)


def test_floats_and_integers() -> None:
    quants = QUANT_TYPES.values()
    assert {q.name for q in quants if q.is_float} == {"F64", "F32", "F16", "BF16"}
    assert {q.name for q in quants if q.is_integer} == {"I8", "I16", "I32", "I64"}
    assert all(q.block_size == 1 for q in quants if q.is_float or q.is_integer)


def test_by_name() -> None:
    assert all(by_name(quant.name) is quant for quant in QUANT_TYPES.values())
    with pytest.raises(ValueError, match=r"^unknown tensor type 'Q4_K_M'$"):
        by_name("Q4_K_M")


@pytest.mark.parametrize(
    ("name", "bits"),
    [  # llama_ftype_name in llama-model-loader.cpp and the options of llama-quantize
        ("F32", 32),
        ("BF16", 16),
        ("Q1_0", 1.125),
        ("IQ1_S", 1.5625),
        ("IQ1_M", 1.75),
        ("IQ2_XXS", 2.0625),
        ("Q2_0", 2.25),
        ("IQ2_XS", 2.3125),
        ("IQ3_XXS", 3.0625),
        ("IQ3_S", 3.4375),
        ("IQ4_XS", 4.25),
        ("IQ4_NL", 4.5),
        ("Q4_K_S", 4.5),
        ("Q4_K_M", 4.5),
        ("Q6_K", 6.5625),
        ("Q8_0", 8.5),
    ],
)
def test_nominal_bpw_is_what_llama_cpp_prints(name: str, bits: float) -> None:
    assert FILE_TYPES[name].nominal_bpw == Fraction(bits)


def test_ternary_bpw_is_exact() -> None:
    assert FILE_TYPES["TQ1_0"].nominal_bpw == Fraction(27, 16)
    assert by_name("NVFP4").bits_per_weight == Fraction(9, 2)


def test_file_types_agree_with_gguf() -> None:
    theirs = {
        kind.name.removeprefix("MOSTLY_").removeprefix("ALL_"): kind.value
        for kind in gguf.LlamaFileType
        if kind.name != "GUESSED"
    }
    ours = {name: kind.id for name, kind in FILE_TYPES.items()}
    assert ours == {**theirs, "Q2_0": 41}
    assert all(kind.name == name for name, kind in FILE_TYPES.items())


def test_bases_follow_the_names_except_where_llama_cpp_does_not() -> None:
    odd = {
        name: kind.base
        for name, kind in FILE_TYPES.items()
        if name not in {kind.base, *(f"{kind.base}_{size}" for size in "SML")}
    }
    assert odd == {"IQ2_S": "IQ2_XS", "IQ2_M": "IQ2_S", "IQ3_XS": "IQ3_S", "IQ3_M": "IQ3_S"} | {
        "MXFP4_MOE": "MXFP4"
    }


def test_tables_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        QUANT_TYPES[0] = QUANT_TYPES[1]  # type: ignore[index]
    with pytest.raises(TypeError):
        FILE_TYPES["F32"] = FILE_TYPES["F16"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        QUANT_TYPES[0].type_size = 1  # type: ignore[misc]
