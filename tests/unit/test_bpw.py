"""Properties of the accounting of bits per weight."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import gguf
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ondevice.bpw import BpwAccount, Kind, Tally, account, kind_of
from pytest_ondevice.model.artifact import TensorInfo
from pytest_ondevice.model.quant_types import QUANT_TYPES, QuantType, by_name

WEIGHT_TYPES = [quant for quant in QUANT_TYPES.values() if not quant.is_integer]
NAMES = st.one_of(
    st.builds(
        "blk.{}.{}.weight".format, st.integers(0, 3), st.sampled_from(["ffn_up", "attn_norm"])
    ),
    st.sampled_from(["token_embd.weight", "output.weight", "output_norm.weight", "cls.bias"]),
)
# Every type's blocks divide 256, so each tensor here can be of any type.
SHAPES = st.tuples(st.sampled_from([256, 512, 768]), st.integers(1, 64)) | st.tuples(st.just(256))
TENSORS = st.builds(
    TensorInfo,
    name=NAMES,
    shape=SHAPES,
    type=st.sampled_from([quant.name for quant in WEIGHT_TYPES]),
    offset=st.just(0),
)
FILES = st.lists(TENSORS, min_size=1, max_size=12)


def tensor(name: str, shape: tuple[int, ...], type_name: str) -> TensorInfo:
    return TensorInfo(name=name, shape=shape, type=type_name, offset=0)


SMALL_MODEL = [
    tensor("token_embd.weight", (256, 100), "Q6_K"),
    tensor("blk.0.attn_norm.weight", (256,), "F32"),
    tensor("blk.0.ffn_up.weight", (256, 512), "Q4_K"),
    tensor("blk.1.ffn_up.weight", (256, 512), "F16"),
    tensor("output_norm.weight", (256,), "F32"),
    tensor("output.weight", (256, 100), "Q8_0"),
    tensor("cls.bias", (2,), "F32"),
    tensor("rope_freqs.weight", (32,), "F32"),
    tensor("masked_embd_ordering.weight", (64,), "I32"),
]


def test_by_hand() -> None:
    result = account(SMALL_MODEL)
    embedding = Tally(1, 25600, 100 * 210)
    body = Tally(3, 256 + 2 * 131072, 4 * 256 + 512 * 144 + 2 * 131072)
    output = Tally(1, 25600, 100 * 8 * 34)
    norm = Tally(1, 256, 1024)
    other = Tally(1, 2, 8)
    assert result.kinds == {
        Kind.BODY: body,
        Kind.EMBEDDING: embedding,
        Kind.OUTPUT: output,
        Kind.NORM: norm,
        Kind.OTHER: other,
    }
    assert result.histogram == {
        "F16": Tally(1, 131072, 262144),
        "F32": Tally(3, 514, 2056),
        "Q4_K": Tally(1, 131072, 73728),
        "Q6_K": embedding,
        "Q8_0": output,
    }
    assert list(result.histogram) == sorted(result.histogram)
    assert result.not_counted == Tally(2, 96, 384)
    assert result.total == Tally(7, 313858, 386128)
    assert (result.n_weights, result.n_bytes) == (313858, 386128)
    assert result.effective == Fraction(8 * 386128, 313858)
    assert result.body == Fraction(8 * 336896, 262400)
    assert result.float_matrix_share == Fraction(1, 2)
    assert result.effective_bpw == pytest.approx(9.84211, abs=1e-5)
    assert result.body_bpw == pytest.approx(10.27122, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("blk.0.attn_q.weight", Kind.BODY),
        ("blk.31.attn_norm.weight", Kind.BODY),
        ("dec.blk.2.ffn_up.weight", Kind.BODY),
        ("v.blk.2.ffn_up.weight", Kind.BODY),
        ("blk.weight", Kind.OTHER),
        ("notblk.0.weight", Kind.OTHER),
        ("token_embd.weight", Kind.EMBEDDING),
        ("per_layer_token_embd.weight", Kind.EMBEDDING),
        ("position_embd.weight", Kind.EMBEDDING),
        ("token_types.weight", Kind.EMBEDDING),
        ("token_embd_norm.weight", Kind.NORM),
        ("output_norm.weight", Kind.NORM),
        ("enc.output_norm.weight", Kind.NORM),
        ("cls.norm.weight", Kind.NORM),
        ("output.weight", Kind.OUTPUT),
        ("output.bias", Kind.OUTPUT),
        ("output_hc_fn.weight", Kind.OTHER),
        ("cls.output.weight", Kind.OTHER),
    ],
)
def test_kind(name: str, kind: Kind) -> None:
    assert kind_of(name) is kind


@pytest.mark.parametrize(
    "name",
    [
        "rope_freqs.weight",
        "rope_factors_long.weight",
        "rope_factors_short.weight",
        "blk.3.attn_rot_embd.weight",
    ],
)
def test_rope_tables_are_no_weights(name: str) -> None:
    weight = tensor("blk.0.ffn_up.weight", (256, 4), "Q4_K")
    with_table = account([weight, tensor(name, (64,), "F32")])
    assert with_table.not_counted == Tally(1, 64, 256)
    assert with_table.total == account([weight]).total


@pytest.mark.parametrize("type_name", ["I8", "I16", "I32", "I64"])
def test_integers_are_no_weights(type_name: str) -> None:
    weight = tensor("blk.0.ffn_up.weight", (256, 4), "Q4_K")
    result = account([weight, tensor("blk.0.ids.weight", (256, 4), type_name)])
    assert result.total == account([weight]).total
    assert result.float_matrix_share == 0


@pytest.mark.parametrize(
    "tensors", [[], [tensor("rope_freqs.weight", (64,), "F32")], [tensor("ids", (4,), "I32")]]
)
def test_no_weights_is_no_account(tensors: list[TensorInfo]) -> None:
    with pytest.raises(ValueError, match="no weights"):
        account(tensors)


def test_without_repeating_layers() -> None:
    result = account([tensor("token_embd.weight", (256, 4), "Q4_K")])
    assert (result.body, result.body_bpw, result.float_matrix_share) == (None, None, None)


def test_share_of_float_matrices() -> None:
    def share(*tensors: TensorInfo) -> Fraction | None:
        return account(tensors).float_matrix_share

    quantized = tensor("blk.0.ffn_up.weight", (256, 3), "Q4_K")
    assert share(quantized) == 0
    assert share(quantized, tensor("blk.0.attn_q.weight", (256, 1), "F32")) == 0  # one row
    assert share(quantized, tensor("blk.0.attn_q.weight", (256, 1, 1, 9), "BF16")) == Fraction(3, 4)
    assert share(quantized, tensor("output.weight", (256, 9), "F32")) == 0  # not repeating
    assert share(quantized, tensor("blk.0.attn_q.weight", (256, 9), "MXFP4")) == 0
    assert share(tensor("blk.0.ffn_norm.weight", (256,), "F32")) is None


@given(FILES, FILES)
def test_additive(one: list[TensorInfo], other: list[TensorInfo]) -> None:
    both, first, second = account(one + other), account(one), account(other)

    def plus(left: Tally, right: Tally) -> Tally:
        return Tally(*(a + b for a, b in zip(left, right, strict=True)))

    assert both.total == plus(first.total, second.total)
    for kind in Kind:
        assert both.kinds[kind] == plus(first.kinds[kind], second.kinds[kind])
    for name in {*first.histogram, *second.histogram}:
        parts = (account.histogram.get(name, Tally()) for account in (first, second))
        assert both.histogram[name] == plus(*parts)


@given(FILES)
def test_parts_sum_to_the_whole(tensors: list[TensorInfo]) -> None:
    result = account(tensors)
    for parts in (result.kinds, result.histogram):
        assert tuple(map(sum, zip(*parts.values(), strict=True))) == result.total
    assert result.n_weights == sum(t.n_weights for t in tensors)
    assert set(result.histogram) == {t.type for t in tensors}


@given(FILES.flatmap(lambda tensors: st.tuples(st.just(tensors), st.permutations(tensors))))
def test_order_does_not_matter(orders: tuple[list[TensorInfo], list[TensorInfo]]) -> None:
    assert dataclasses.astuple(account(orders[0])) == dataclasses.astuple(account(orders[1]))


@given(FILES)
def test_between_the_smallest_and_the_largest_type(tensors: list[TensorInfo]) -> None:
    bits = [by_name(t.type).bits_per_weight for t in tensors]
    assert min(bits) <= account(tensors).effective <= max(bits)


@given(SHAPES, st.sampled_from(WEIGHT_TYPES), NAMES)
def test_one_type_is_its_nominal_bpw(shape: tuple[int, ...], quant: QuantType, name: str) -> None:
    assert account([tensor(name, shape, quant.name)]).effective == quant.bits_per_weight


@given(FILES, st.data())
def test_grows_with_the_type_of_each_tensor(tensors: list[TensorInfo], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(tensors) - 1))
    quant = data.draw(st.sampled_from(WEIGHT_TYPES))
    changed = list(tensors)
    changed[index] = msgspec.structs.replace(tensors[index], type=quant.name)

    def sign(difference: Fraction) -> int:
        return (difference > 0) - (difference < 0)

    of_type = quant.bits_per_weight - by_name(tensors[index].type).bits_per_weight
    of_file = account(changed).effective - account(tensors).effective
    assert sign(of_file) == sign(of_type)


@given(
    # gguf up to 0.19.0 has the wrong size for Q8_1, which never is in a file.
    st.sampled_from([kind for kind in gguf.GGMLQuantizationType if kind.name != "Q8_1"]),
    st.integers(1, 5),
    st.lists(st.integers(1, 5), max_size=3),
)
def test_bytes_agree_with_gguf(
    kind: gguf.GGMLQuantizationType, n_blocks: int, rows: list[int]
) -> None:
    block_size, _ = gguf.GGML_QUANT_SIZES[kind]
    shape = (n_blocks * block_size, *rows)
    byte_shape = gguf.quant_shape_to_byte_shape(shape[::-1], kind)
    n_bytes = 1
    for length in byte_shape:
        n_bytes *= length
    assert tensor("t", shape, kind.name).n_bytes == n_bytes


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"type": "Q4_K_M"}, "unknown tensor type 'Q4_K_M'"),
        ({"shape": ()}, "has 0 dimensions"),
        ({"shape": (256, 1, 1, 1, 1)}, "has 5 dimensions"),
        ({"shape": (256, 0)}, "expected each dimension to be at least 1"),
        ({"shape": (-256,)}, "expected each dimension to be at least 1"),
        ({"shape": (255,)}, "no multiple of the 256 in a block of Q4_K"),
        ({"shape": (2**62, 2)}, "more than 2\\^63-1"),
        ({"shape": (2**60,), "type": "F64"}, "more than 2\\^63-1"),
        ({"offset": -1}, "has offset -1"),
    ],
)
def test_impossible_tensors_cannot_be_made(change: dict[str, Any], problem: str) -> None:
    possible = {"name": "t", "shape": (256,), "type": "Q4_K", "offset": 0}
    assert TensorInfo(**possible).n_bytes == 144  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=problem):
        TensorInfo(**{**possible, **change})


def test_exact_beyond_floats() -> None:
    huge = account([tensor("blk.0.w", (256, 2**52 + 1), "Q4_K"), tensor("x", (1,), "F32")])
    assert huge.n_weights == 2**60 + 257
    assert huge.effective == Fraction(8 * ((2**52 + 1) * 144 + 4), 2**60 + 257)
    assert huge.effective != Fraction(9, 2)
    assert huge.effective_bpw == 4.5


def test_account_is_frozen() -> None:
    result: BpwAccount = account(SMALL_MODEL)
    with pytest.raises(AttributeError):
        result.total = Tally()  # type: ignore[misc]
