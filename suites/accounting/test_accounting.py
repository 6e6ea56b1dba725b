"""What any accounting of bits per weight has to satisfy, asked with drawn models.

The accountant is ours, or the function that ``--ondevice-accountant=MODULE:FUNCTION`` names. It is
given rows of (name, shape, type) and returns the number of weights and their bytes.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("hypothesis", reason="requires pip install 'pytest-ondevice[strategies]'")

from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice.model.quant_types import by_name
from pytest_ondevice.strategies import laid_out, tensor_tables, tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_ondevice.model.artifact import TensorInfo

    Accountant = Callable[[list[tuple[str, tuple[int, ...], str]]], tuple[int, int]]

FLOATS_AND_BLOCKS = [
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"),
]
"""Types that any tool for GGUF files knows."""

TABLES = tensor_tables(types=FLOATS_AND_BLOCKS, max_layers=3)
EXAMPLES = settings(max_examples=40, deadline=None, derandomize=True)


def rows(table: Sequence[TensorInfo]) -> list[tuple[str, tuple[int, ...], str]]:
    """Put a table as an accountant is given it."""
    return [(tensor.name, tensor.shape, tensor.type) for tensor in table]


def trained(table: Sequence[TensorInfo]) -> list[TensorInfo]:
    """Leave out what is no weight: indices and tables of the rotary embedding."""
    return [
        tensor
        for tensor in table
        if not by_name(tensor.type).is_integer and not tensor.name.startswith("rope_")
    ]


@EXAMPLES
@given(tensors(names=st.just("blk.0.ffn_up.weight"), types=FLOATS_AND_BLOCKS))
def test_bytes_are_blocks(ondevice_accountant: Accountant, tensor: TensorInfo) -> None:
    """A tensor takes its blocks times the bytes of a block, scales included, for any shape."""
    quant = by_name(tensor.type)
    blocks = tensor.n_weights // quant.block_size
    assert ondevice_accountant(rows([tensor])) == (tensor.n_weights, blocks * quant.type_size)


@EXAMPLES
@given(TABLES, st.data())
def test_additive(
    ondevice_accountant: Accountant, table: Sequence[TensorInfo], data: st.DataObject
) -> None:
    """The parts of a model, however it is divided, add up to the whole."""
    known = trained(table)
    cut = data.draw(st.integers(0, len(known)))
    whole = ondevice_accountant(rows(known))
    parts = [ondevice_accountant(rows(part)) for part in (known[:cut], known[cut:]) if part]
    assert tuple(map(sum, zip(*parts, strict=True))) == tuple(whole)


@EXAMPLES
@given(TABLES, st.randoms(use_true_random=False))
def test_order_does_not_matter(
    ondevice_accountant: Accountant, table: Sequence[TensorInfo], random: object
) -> None:
    """Tensors may stand in any order."""
    known = rows(trained(table))
    mixed = list(known)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert ondevice_accountant(mixed) == ondevice_accountant(known)


@EXAMPLES
@given(TABLES)
def test_within_its_types(ondevice_accountant: Accountant, table: Sequence[TensorInfo]) -> None:
    """Effective BPW lies between the least and the most bits of the types that occur."""
    known = trained(table)
    weights, size = ondevice_accountant(rows(known))
    bits = [by_name(tensor.type).bits_per_weight for tensor in known]
    assert min(bits) <= Fraction(8 * size, weights) <= max(bits)


@EXAMPLES
@given(TABLES, st.data())
def test_monotone(
    ondevice_accountant: Accountant, table: Sequence[TensorInfo], data: st.DataObject
) -> None:
    """A tensor in a type of more bits never makes the model smaller."""
    known = trained(table)
    index = data.draw(st.integers(0, len(known) - 1))
    chosen = known[index]
    wider = [
        name
        for name in FLOATS_AND_BLOCKS
        if by_name(name).bits_per_weight >= by_name(chosen.type).bits_per_weight
        and chosen.shape[0] % by_name(name).block_size == 0
    ]
    other = rows(known)
    other[index] = (chosen.name, chosen.shape, data.draw(st.sampled_from(wider)))
    assert ondevice_accountant(other)[1] >= ondevice_accountant(rows(known))[1]


@EXAMPLES
@given(TABLES)
def test_what_is_not_trained_does_not_count(
    ondevice_accountant: Accountant, table: Sequence[TensorInfo]
) -> None:
    """Tables of the rotary embedding and indices are no weights, and padding is no bytes."""
    table = laid_out(table, 64)
    assert ondevice_accountant(rows(table)) == ondevice_accountant(rows(trained(table)))
