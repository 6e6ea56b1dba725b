"""Mixes of tensor types: the rules on small tables, and sizes that llama.cpp itself computed."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ondevice import layout, mixes
from pytest_ondevice.layout import Slot
from pytest_ondevice.mixes import ALIGNMENT, choose
from pytest_ondevice.model.catalog import Dimensions
from pytest_ondevice.model.quant_types import FILE_TYPES, by_name

if TYPE_CHECKING:
    from pytest_ondevice.model.artifact import TensorInfo

# Bytes of all tensors, from the types that ``llama_model_quantize`` printed in a dry run
# (llama-cpp-python 0.3.36): without / with an importance matrix where the two differ; "-" where
# it is needed; "no" where llama.cpp refuses.
DRY_RUN = """
           SmolLM2-135M         Qwen2.5-7B             Llama-3.1-8B           Gemma-3-1B
F32        538060032            30462466048            32121045248            3999543808
F16        269100288            15231899648            16061055232            2000040448
Q4_0       89941248/90107136    4425437184/4438167552  4653375744/4668055808  713892352/715385344
Q4_1       96576768             4867330048             5122416896             757502464
Q8_0       143025408            8092571648             8532934912             1062773248
Q5_0       103212288/103378176  5309222912/5321953280  5591458048/5606138112  801112576/802605568
Q5_1       109847808            5751115776             6060499200             844722688
Q2_K       86416128             3009986560             3171295488             683281408
Q3_K_S     86416128             3486414848             3656663296             682322944
Q3_K_M     91724544             3802437632             4011081984             715883008
Q3_K_L     95747328             4082505728             4314120448             745042432
Q4_K_S     100253952            4451815424             4684833024             774459904
Q4_K_M     103668480            4677120000             4912898304             799525120
Q5_K_S     108188928            5309222912             5591458048             829866496
Q5_K_M     110317824            5438877696             5725151488             844812544
Q6_K       136597248            6248245248             6588170496             1005205504
IQ2_XXS    -/82040832           -/2267123712           -/2391376128           -/644106496
IQ2_XS     -/82787328           -/2463068160           -/2597945600           -/650788096
Q2_K_S     -/84342528           -/2828120064           -/2980978944           -/664738816
IQ3_XS     86416128             -/3340302336           -/3510911232           683281408
IQ3_XXS    86768640/85171968    -/3108560896           -/3267076352           686454016/673576960
IQ1_S      -/80547840           -/1897713664           -/2011791616           -/632660224
IQ4_NL     90273024/89941248    4457320448/4431859712  4699513088/4670152960  718316032/715330048
IQ3_S      86416128             3493238784             3674489088             683281408
IQ3_M      88427520             3568058368             3776987392             690527488
IQ2_S      -/83056896           -/2589683712           -/2750652672           -/657527296
IQ2_M      -/83803392           -/2774388736           -/2940444928           -/663250432
IQ4_XS     89526528/89111808    4244344832/4212518912  4476526848/4439826688  711634432/707901952
IQ1_M      -/81107712           -/2036242432           -/2154135808           -/636952576
BF16       269100288            15231899648            16061055232            2000040448
TQ1_0      80610048             2131390464             2199707904             630326272
TQ2_0      81854208             2437263360             2526863616             641468416
MXFP4_MOE  143025408            8092571648             8532934912             1062773248
Q1_0       no                   1442660352             1487347968             419524096
Q2_0       60081408             2590199808             2690441472             517646848
"""

MODELS = {
    name: Dimensions(
        architecture=architecture,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        feed_forward=feed_forward,
        vocabulary=vocabulary,
        tied=tied,
        rope_factors=name.startswith("Llama-3"),
    )
    for (
        name,
        architecture,
        layers,
        hidden,
        heads,
        kv_heads,
        head_size,
        feed_forward,
        vocabulary,
        tied,
    ) in (
        ("SmolLM2-135M", "llama", 30, 576, 9, 3, 64, 1536, 49152, True),
        ("Qwen2.5-7B", "qwen2", 28, 3584, 28, 4, 128, 18944, 152064, False),
        ("Llama-3.1-8B", "llama", 32, 4096, 32, 8, 128, 14336, 128256, False),
        ("Gemma-3-1B", "gemma3", 26, 1152, 4, 1, 256, 6912, 262144, True),
    )
}


def recorded() -> list[tuple[str, str, str]]:
    names, *rows = (line.split() for line in DRY_RUN.strip().split("\n"))
    return [(name, row[0], cell) for row in rows for name, cell in zip(names, row[1:], strict=True)]


def plan(dimensions: Dimensions, method: str, **options: Any) -> tuple[TensorInfo, ...]:
    return choose(
        layout.tensors(dimensions),
        method,
        architecture=dimensions.architecture,
        heads=dimensions.heads,
        kv_heads=dimensions.kv_heads,
        layers=dimensions.layers,
        **options,
    )


def test_every_method_is_recorded() -> None:
    assert {method for _, method, _ in recorded()} == set(FILE_TYPES) - {"NVFP4"}


@pytest.mark.parametrize(("name", "method", "cell"), recorded())
def test_bytes_as_in_a_dry_run(name: str, method: str, cell: str) -> None:
    dimensions = MODELS[name]
    without, _, with_matrix = cell.partition("/")
    if cell == "no":
        with pytest.raises(ValueError, match="no type to use instead"):
            plan(dimensions, method)
        return
    if without == "-":
        with pytest.raises(ValueError, match=f"{method} needs an importance matrix"):
            plan(dimensions, method)
    else:
        assert sum(one.n_bytes for one in plan(dimensions, method)) == int(without)
    planned = plan(dimensions, method, imatrix=True)
    assert sum(one.n_bytes for one in planned) == int(with_matrix or without)


# -- rules, one by one

LAYER = {
    "attn_q": (256, 512),
    "attn_k": (256, 256),
    "attn_v": (256, 256),
    "attn_output": (512, 256),
    "ffn_gate": (256, 768),
    "ffn_up": (256, 768),
    "ffn_down": (768, 256),
}


def table(layers: int, *more: Slot, tied: bool = False, experts: int = 0) -> list[Slot]:
    """Make the tensors of a small llama; more of one name replaces it."""
    made = [Slot("token_embd.weight", (256, 100)), Slot("output_norm.weight", (256,))]
    made += [] if tied else [Slot("output.weight", (256, 100))]
    for number in range(layers):
        for name, shape in LAYER.items():
            if experts and name.startswith("ffn"):
                made.append(Slot(f"blk.{number}.{name}_exps.weight", (*shape, experts)))
            else:
                made.append(Slot(f"blk.{number}.{name}.weight", shape))
        made.append(Slot(f"blk.{number}.ffn_norm.weight", (256,)))
    return list({slot.name: slot for slot in [*made, *more]}.values())


def types(slots: list[Slot], method: str, **changes: Any) -> dict[str, str]:
    """Map names without ``.weight`` to the chosen types."""
    layers = 1 + max((int(n) for n in re.findall(r"blk\.(\d+)", str(slots))), default=0)
    options: dict[str, Any] = {
        "architecture": "llama",
        "heads": 2,
        "kv_heads": 1,
        "layers": layers,
        "imatrix": True,
    }
    planned = choose(slots, method, **options | changes)
    return {one.name.removesuffix(".weight"): one.type for one in planned}


def column(found: dict[str, str], name: str) -> list[str]:
    """List the types of a tensor over the layers."""
    return [kind for key, kind in found.items() if key.endswith(f".{name}")]


@pytest.mark.parametrize("method", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("pure", [False, True])
def test_floats_take_all_matrices_and_no_vector(method: str, pure: bool) -> None:
    odd = Slot("blk.0.ffn_up.weight", (13, 5))
    found = types(table(2, odd), method, pure=pure)
    for name, kind in found.items():
        assert kind == ("F32" if "norm" in name else method)


def test_more_bits_in_the_first_and_last_eighth_and_every_third_between() -> None:
    found = types(table(24), "Q4_K_M")
    raised = {0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23}
    expected = ["Q6_K" if number in raised else "Q4_K" for number in range(24)]
    assert column(found, "attn_v") == column(found, "ffn_down") == expected
    assert column(found, "attn_q") == ["Q4_K"] * 24
    assert found["output"] == "Q6_K"
    assert found["token_embd"] == "Q4_K"


def test_few_layers() -> None:
    # An eighth of fewer than eight layers is none; the last eighth still is one.
    assert column(types(table(3), "Q5_K_M"), "ffn_down") == ["Q5_K", "Q5_K", "Q6_K"]
    assert column(types(table(1), "Q4_K_S"), "ffn_down") == ["Q4_K"]


def test_layers_go_by_number_not_by_text() -> None:
    found = types(list(reversed(table(16))), "Q3_K_M")
    assert column(found, "attn_v") == ["Q5_K"] * 2 + ["Q4_K"] * 14
    assert column(found, "ffn_down") == ["Q5_K"] + ["Q4_K"] * 15


def test_values_are_counted_so_a_gap_moves_them() -> None:
    # A layer without values, as in hybrids, is passed over: the first four that exist are raised.
    slots = [slot for slot in table(8) if slot.name != "blk.1.attn_v.weight"]
    assert column(types(slots, "Q4_K_S"), "attn_v") == ["Q5_K"] * 4 + ["Q4_K"] * 3


@pytest.mark.parametrize(
    ("method", "tied", "untied"),
    [
        ("Q4_K_S", ("Q6_K",), ("Q4_K", "Q6_K")),
        ("Q8_0", ("Q8_0",), ("Q8_0", "Q8_0")),
        ("IQ2_XXS", ("Q5_K",), ("Q2_K", "Q5_K")),
        ("IQ2_M", ("Q5_K",), ("IQ3_S", "Q5_K")),
        ("IQ3_XXS", ("Q5_K",), ("IQ3_S", "Q5_K")),
        ("TQ1_0", ("Q6_K",), ("Q4_K", "Q6_K")),
        ("MXFP4_MOE", ("Q8_0",), ("Q8_0", "Q8_0")),
    ],
)
def test_a_tied_embedding_is_an_output(
    method: str, tied: tuple[str], untied: tuple[str, str]
) -> None:
    assert types(table(1, tied=True), method)["token_embd"] == tied[0]
    found = types(table(1), method)
    assert (found["token_embd"], found["output"]) == untied


@pytest.mark.parametrize(
    ("method", "alone", "shared"),
    [
        ("Q2_K", "Q3_K", "Q4_K"),
        ("Q2_K_S", "Q2_K", "Q4_K"),
        ("IQ2_S", "IQ3_S", "Q4_K"),
        ("IQ1_S", "Q2_K", "Q4_K"),
        ("IQ3_S", "IQ3_S", "Q4_K"),
        ("IQ4_XS", "IQ4_XS", "Q5_K"),
        ("Q4_0", "Q4_0", "Q4_0"),
    ],
)
def test_values_that_many_queries_share(method: str, alone: str, shared: str) -> None:
    for heads, expected in ((3, alone), (4, shared), (7, shared)):
        assert types(table(1), method, heads=heads)["blk.0.attn_v"] == expected
    assert types(table(1), method, heads=4, kv_heads=0)["blk.0.attn_v"] == alone


@pytest.mark.parametrize(
    ("architecture", "layers", "kv_heads", "is_large"),
    [
        ("llama", 80, 8, True),
        ("llama", 80, 64, False),  # 65B
        ("llama", 79, 8, False),
        ("qwen2", 80, 64, True),
        ("qwen3", 80, 8, False),
        ("jais2", 68, 64, True),
    ],
)
def test_values_of_a_70b(architecture: str, layers: int, kv_heads: int, is_large: bool) -> None:
    found = types(table(layers), "Q3_K_S", architecture=architecture, heads=64, kv_heads=kv_heads)
    assert set(column(found, "attn_v")) == {"Q5_K" if is_large else "Q3_K"}
    assert set(column(found, "attn_q")) == {"Q3_K"}


def test_eight_experts() -> None:
    found = types(table(2, experts=8), "Q4_K_M", experts=8)
    assert found["blk.0.attn_v"] == found["blk.0.attn_k"] == "Q8_0"
    assert found["blk.0.attn_output"] == "Q5_K"
    assert found["blk.0.ffn_up_exps"] == "Q4_K"


def test_layers_of_experts_are_read_from_the_name() -> None:
    # Two tensors with "ffn_down" in a layer, which a count would take for two layers.
    extra = [Slot(f"blk.{n}.ffn_down_shexp.weight", (256, 256)) for n in range(16)]
    slots = table(16, *extra, experts=4)
    found = types(slots, "Q4_K_S", experts=4)
    assert column(found, "ffn_down_exps") == ["Q5_K"] * 2 + ["Q4_K"] * 14
    assert column(types(slots, "IQ2_S", experts=4), "ffn_down_exps")[:2] == ["IQ3_S", "IQ2_XS"]
    with pytest.raises(ValueError, match=r"blk\.4\.ffn_down_exps\.weight is in none of the 4"):
        types(slots, "Q4_K_S", experts=4, layers=4)


def test_mxfp4_is_for_stacks_of_experts() -> None:
    found = types(table(1, experts=4), "MXFP4_MOE", experts=4)
    assert {name for name, kind in found.items() if kind == "MXFP4"} == {
        "blk.0.ffn_down_exps",
        "blk.0.ffn_gate_exps",
        "blk.0.ffn_up_exps",
    }
    assert set(found.values()) == {"MXFP4", "Q8_0", "F32"}


@pytest.mark.parametrize(
    ("method", "without", "with_matrix"),
    [
        ("Q4_0", "Q4_0", "Q4_1"),
        ("Q5_0", "Q5_0", "Q5_1"),
        ("Q4_1", "Q4_1", "Q4_1"),
        ("IQ4_XS", "Q5_K", "IQ4_XS"),
        ("Q4_K_S", "Q5_K", "Q5_K"),
    ],
)
def test_importance_in_the_first_eighth(method: str, without: str, with_matrix: str) -> None:
    for imatrix, expected in ((False, without), (True, with_matrix)):
        found = column(types(table(8), method, imatrix=imatrix), "ffn_down")
        assert found[0] == expected
        assert set(found[1:]) == {FILE_TYPES[method].base}


@pytest.mark.parametrize(
    "method",
    ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"],
)
def test_what_needs_an_importance_matrix(method: str) -> None:
    with pytest.raises(ValueError, match=f"^{method} needs an importance matrix: blk"):
        types(table(8), method, imatrix=False)
    # The rule is about types, so where no row takes such a type nothing is needed.
    odd = Slot("blk.0.ffn_up.weight", (96, 96))
    types([odd], method, imatrix=False)


def test_what_needs_none() -> None:
    for method in ("Q2_K", "IQ3_S", "IQ3_M", "IQ4_XS", "TQ1_0", "Q1_0"):
        types(table(8), method, imatrix=False)


@pytest.mark.parametrize(
    ("method", "row", "expected"),
    [
        ("Q2_K", 288, "Q4_0"),
        ("Q3_K_S", 288, "Q4_0"),
        ("Q4_K_S", 288, "Q5_0"),
        ("Q5_K_S", 288, "Q5_1"),
        ("Q6_K", 288, "Q8_0"),
        ("TQ2_0", 288, "Q4_0"),
        ("Q2_0", 288, "Q4_0"),
        ("IQ4_XS", 288, "IQ4_NL"),
        ("IQ1_S", 288, "IQ4_NL"),
        ("Q4_K_S", 264, "F16"),
        ("Q8_0", 264, "F16"),
        ("Q4_0", 264, "F16"),
        ("Q1_0", 384, "Q1_0"),
    ],
)
def test_rows_that_are_no_whole_blocks(method: str, row: int, expected: str) -> None:
    odd = Slot("blk.0.ffn_up.weight", (row, 256))
    for pure in (False, True):
        assert types(table(1, odd), method, pure=pure)["blk.0.ffn_up"] == expected


@pytest.mark.parametrize(("method", "expected"), [("Q4_0", "Q8_0"), ("IQ2_S", "Q8_0")])
def test_output_of_odd_rows(method: str, expected: str) -> None:
    odd = Slot("output.weight", (288, 100))
    assert types(table(1, odd), method)["output"] == expected


def test_one_bit_has_no_smaller_block() -> None:
    odd = Slot("blk.0.ffn_up.weight", (320, 256))
    with pytest.raises(ValueError, match=r"ffn_up\.weight has rows of 320 .* 128 in a block"):
        types(table(1, odd), "Q1_0")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blk.0.attn_q.bias", (256,)),
        ("blk.0.attn_q.bias", (256, 2)),
        ("blk.0.ffn_down.weight", (256,)),
        ("blk.0.ffn_down.weight", (256, 1, 1)),
        ("blk.0.attn_q_norm.weight", (256, 2)),
        ("blk.0.ffn_gate_inp.weight", (256, 8)),
        ("blk.0.ssm_conv1d.weight", (256, 8)),
        ("blk.0.time_mix_w2.weight", (256, 8)),
        ("blk.0.attn_rel_b.weight", (256, 8)),
        ("position_embd.weight", (256, 8)),
        ("v.patch_embd.weight", (256, 8)),
    ],
)
@pytest.mark.parametrize("method", ["Q4_K_M", "F16"])
def test_what_is_never_quantized_keeps_its_type(
    name: str, shape: tuple[int, ...], method: str
) -> None:
    for kind in ("F32", "BF16"):
        found = types([Slot("token_embd.weight", (256, 8)), Slot(name, shape, kind)], method)
        assert found[name.removesuffix(".weight")] == kind
    assert found["token_embd"] != "BF16"


def test_what_is_not_quantized_does_not_count() -> None:
    routers = [Slot(f"blk.{n}.ffn_gate_inp.weight", (256, 4)) for n in range(8)]
    plain, routed = (types(table(8, *more), "IQ3_XS") for more in ([], routers))
    assert column(plain, "ffn_gate") == column(routed, "ffn_gate")
    assert column(plain, "ffn_gate") == ["IQ3_S", *["IQ3_XXS"] * 6, "IQ3_S"]


def test_a_stack_of_one_is_a_matrix() -> None:
    slots = [
        Slot("blk.0.ffn_up.weight", (256, 64, 1)),
        Slot("blk.0.ffn_up_exps.weight", (256, 1, 4)),
    ]
    assert list(types(slots, "MXFP4_MOE").values()) == ["Q8_0", "MXFP4"]


def test_fused_attention_has_the_values_type() -> None:
    fused = [Slot(f"blk.{n}.attn_qkv.weight", (256, 768)) for n in range(4)]
    assert column(types(fused, "Q3_K_M"), "attn_qkv") == ["Q5_K", "Q5_K", "Q4_K", "Q4_K"]


def test_falcon() -> None:
    found = types(table(16), "Q4_K_M", architecture="falcon")
    assert column(found, "ffn_down")[:5] == ["Q6_K", "Q5_K", "Q4_K", "Q4_K", "Q5_K"]
    assert found["output"] == "Q8_0"
    assert column(types(table(1), "Q3_K_L", architecture="falcon"), "attn_output") == ["Q4_K"]


def test_pure() -> None:
    found = types(table(8), "Q4_K_M", pure=True)
    assert {kind for name, kind in found.items() if "norm" not in name} == {"Q4_K"}
    with pytest.raises(ValueError, match="importance matrix"):
        types(table(8), "IQ3_XXS", pure=True, imatrix=False)


# Of files that ``llama_model_quantize`` made with ``pure`` (llama-cpp-python 0.3.36): the type of
# rows that are whole blocks of 256, tied or not, and the type of SmolLM2-135M's rows of 576. With
# an importance matrix where it says so.
PURE = """
Q8_0     Q8_0     Q8_0
Q6_K     Q6_K     Q8_0
Q5_K_S   Q5_K     Q5_1
Q4_K_S   Q4_K     Q5_0
Q4_0     Q4_0     Q4_0
IQ4_NL   IQ4_NL   IQ4_NL
IQ4_XS   IQ4_XS   IQ4_NL
Q3_K_S   Q3_K     Q4_0
IQ3_S    IQ3_S    IQ4_NL
IQ3_XXS  IQ3_XXS  IQ4_NL   imatrix
Q2_K     Q2_K     Q4_0
Q2_K_S   Q2_K     Q4_0     imatrix
IQ2_M    IQ2_S    IQ4_NL   imatrix
IQ2_S    IQ2_XS   IQ4_NL   imatrix
IQ2_XS   IQ2_XS   IQ4_NL   imatrix
IQ2_XXS  IQ2_XXS  IQ4_NL   imatrix
"""


@pytest.mark.parametrize("row", [line.split() for line in PURE.strip().split("\n")])
def test_pure_types_as_in_files_of_llama_cpp(row: list[str]) -> None:
    method, whole, odd, *weighed = row
    for tied in (False, True):
        found = types(table(24, tied=tied), method, pure=True, imatrix=bool(weighed), heads=8)
        assert {kind for name, kind in found.items() if "norm" not in name} == {whole}
    # The feed-forward's inner state of SmolLM2 is 1536, six blocks of 256.
    planned = plan(MODELS["SmolLM2-135M"], method, pure=True, imatrix=bool(weighed))
    for one in planned:
        if "norm" not in one.name:
            assert one.type == (whole if "ffn_down" in one.name else odd)
    if weighed:
        with pytest.raises(ValueError, match=f"^{method} needs an importance matrix: blk"):
            plan(MODELS["SmolLM2-135M"], method, pure=True)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", [name for name in FILE_TYPES if name != "NVFP4"])
def test_what_no_importance_matrix_covers(method: str, tied: bool) -> None:
    def unweighed(pure: bool, *more: Slot) -> list[str]:
        slots = table(8, *more, tied=tied)
        options = {"architecture": "llama", "heads": 4, "kv_heads": 1, "layers": 8}
        planned = choose(slots, method, pure=pure, imatrix=True, **options)
        return [one.name for one in mixes.unweighed(planned)]

    # A mix never gives the ends of a model what is made with importances only.
    assert unweighed(pure=False) == []
    ends = ["token_embd.weight"] if tied else ["output.weight", "token_embd.weight"]
    needed = FILE_TYPES[method].base in {"IQ1_S", "IQ2_XXS", "IQ2_XS"}
    assert sorted(unweighed(pure=True)) == (ends if needed else [])
    # Rows that are no whole blocks get another type.
    odd = [Slot(name, (288, 100)) for name in ends]
    if method != "Q1_0":
        assert unweighed(True, *odd) == []


@pytest.mark.parametrize(
    ("method", "architecture", "problem"),
    [
        ("Q4_K", "llama", "unknown file type 'Q4_K'.*Q4_K_S, Q4_K_M"),
        ("q4_0", "llama", "unknown file type"),
        ("NVFP4", "llama", "only a converter writes it"),
        ("Q4_0", "glm5-next", "glm5-next has rules of its own"),
    ],
)
def test_what_cannot_be_planned(method: str, architecture: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        types(table(1), method, architecture=architecture)


def test_no_rule_is_dead() -> None:
    # For every rule there is a tensor that it is the first to apply to.
    used = set()
    for imatrix, falcon, large, heads, experts in itertools.product(
        (False, True), (False, True), (False, True), (1, 4), (0, 4, 8)
    ):
        for method, role in itertools.product(FILE_TYPES, mixes._RULES):
            job = mixes._Job(method, 32, 32, heads, experts, imatrix, falcon, large, tied=False)
            for index, row in itertools.product((0, 3, 5, 6, 31), (256, 288)):
                place = mixes._Place(job, role, index, (row, 256))
                for number, rule in enumerate(mixes._RULES[role]):
                    if method in rule.methods and rule.applies(place):
                        used.add((role, number))
                        break
    assert used == {
        (role, number) for role, rules in mixes._RULES.items() for number in range(len(rules))
    }


def test_rules_name_what_exists() -> None:
    for rule in itertools.chain(*mixes._RULES.values()):
        by_name(rule.type)
        assert rule.methods <= set(FILE_TYPES)
    for kind, smaller in mixes._SMALLER.items():
        assert by_name(smaller).block_size < by_name(kind).block_size


# -- properties

ROWS = st.sampled_from([32, 64, 96, 100, 256, 512, 576, 768])
NAMES = [*(f"{name}.weight" for name in LAYER), "ffn_norm.weight", "attn_q.bias", "ssm_in.weight"]
SLOTS = st.lists(
    st.builds(
        Slot,
        st.one_of(
            st.sampled_from(["token_embd.weight", "output.weight", "output_norm.weight"]),
            st.builds("blk.{}.{}".format, st.integers(0, 11), st.sampled_from(NAMES)),
        ),
        st.tuples(ROWS, st.integers(1, 9)) | st.tuples(ROWS),
    ),
    min_size=1,
    max_size=30,
    unique_by=lambda slot: slot.name,
)
METHODS = st.sampled_from([name for name in FILE_TYPES if name not in {"NVFP4", "Q1_0"}])
OPTIONS = st.fixed_dictionaries(
    {
        "architecture": st.sampled_from(["llama", "qwen2", "falcon"]),
        "heads": st.sampled_from([4, 8]),
        "kv_heads": st.sampled_from([1, 2, 4]),
        "layers": st.integers(12, 90),
        "pure": st.booleans(),
        "imatrix": st.just(True),
    }
)


@given(SLOTS, METHODS, OPTIONS)
def test_tensors_are_all_there_and_contiguous(
    slots: list[Slot], method: str, options: dict[str, Any]
) -> None:
    planned = choose(slots, method, **options)
    assert {(one.name, one.shape) for one in planned} == {(one.name, one.shape) for one in slots}
    assert [one.name for one in planned] == sorted((s.name for s in slots), key=layout.order)
    assert planned[0].offset == 0
    for one, following in itertools.pairwise(planned):
        assert following.offset % ALIGNMENT == 0
        assert 0 <= following.offset - one.offset - one.n_bytes < ALIGNMENT


@given(SLOTS, METHODS, OPTIONS, st.randoms(use_true_random=False))
def test_the_source_s_order_does_not_matter(
    slots: list[Slot], method: str, options: dict[str, Any], random: Any
) -> None:
    shuffled = random.sample(slots, len(slots))
    assert choose(shuffled, method, **options) == choose(slots, method, **options)


@given(SLOTS, METHODS, OPTIONS)
def test_a_plan_is_its_own_plan(slots: list[Slot], method: str, options: dict[str, Any]) -> None:
    planned = choose(slots, method, **options)
    assert choose(planned, method, **options) == planned


@given(SLOTS, METHODS, OPTIONS)
def test_between_the_base_type_and_f16(
    slots: list[Slot], method: str, options: dict[str, Any]
) -> None:
    # No mix has a tensor with fewer bits than the smallest of its kind, or more than a float.
    floor = min(by_name(FILE_TYPES[method].base).bits_per_weight, by_name("IQ2_S").bits_per_weight)
    ceiling = max(by_name(FILE_TYPES[method].base).bits_per_weight, 16)
    for one in choose(slots, method, **options):
        if one.type != "F32":
            assert floor <= by_name(one.type).bits_per_weight <= ceiling


@pytest.mark.parametrize(
    "methods", ["Q4_0 Q8_0 F16 F32", "Q3_K_S Q4_K_M Q6_K BF16", "Q4_1 Q5_1 Q8_0", "Q4_K_M Q5_K_M"]
)
@given(slots=SLOTS, options=OPTIONS)
def test_each_tensor_grows_with_the_method(
    methods: str, slots: list[Slot], options: dict[str, Any]
) -> None:
    plans = [choose(slots, method, **options) for method in methods.split()]
    for smaller, larger in itertools.pairwise(plans):
        assert all(one.n_bytes <= two.n_bytes for one, two in zip(smaller, larger, strict=True))
