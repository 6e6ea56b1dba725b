"""Broken accountants: each is caught by a property, and the real one by none.

``pytest -k mutants -rP`` prints which properties caught which mutant.
"""

from __future__ import annotations

import dataclasses
import math
import re
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import test_bpw_properties as properties
from hypothesis import Phase

from pytest_ondevice import bpw
from pytest_ondevice.bpw import BpwAccount, Kind, Tally
from pytest_ondevice.model import quant_types
from pytest_ondevice.model.artifact import TensorInfo
from pytest_ondevice.model.quant_types import by_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

EXAMPLES = 12

MUTANTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {}
"""Name to the property that has to catch it, and what plants it."""

account, kind_of, is_weight = bpw.account, bpw.kind_of, bpw.is_weight


def mutant(caught_by: str) -> Callable[[Callable[[pytest.MonkeyPatch], None]], None]:
    """Register a function that plants a fault."""

    def register(plant: Callable[[pytest.MonkeyPatch], None]) -> None:
        MUTANTS[plant.__name__] = (caught_by, plant)

    return register


def resize(patch: pytest.MonkeyPatch, name: str, **changes: int) -> None:
    changed = dataclasses.replace(by_name(name), **changes)
    patch.setitem(quant_types._BY_NAME, name, changed)


def weigh(patch: pytest.MonkeyPatch, n_bytes: Callable[[TensorInfo], int]) -> None:
    patch.setattr(TensorInfo, "n_bytes", property(n_bytes))


def divide(patch: pytest.MonkeyPatch, effective: Callable[[BpwAccount], Any]) -> None:
    patch.setattr(BpwAccount, "effective", property(effective))


def change(patch: pytest.MonkeyPatch, then: Callable[[BpwAccount], BpwAccount]) -> None:
    patch.setattr(bpw, "account", lambda tensors: then(account(tensors)))


def count_if(patch: pytest.MonkeyPatch, weight: Callable[[TensorInfo], bool]) -> None:
    patch.setattr(bpw, "is_weight", weight)


# -- bytes


@mutant("bytes_are_blocks")
def drop_the_scales(patch: pytest.MonkeyPatch) -> None:
    resize(patch, "Q4_0", type_size=16)
    resize(patch, "Q4_K", type_size=128 + 12)


@mutant("bytes_are_blocks")
def k_quants_of_32_weights(patch: pytest.MonkeyPatch) -> None:
    for name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"):
        resize(patch, name, block_size=32)


@mutant("bytes_are_blocks")
def q6_k_of_6_bits(patch: pytest.MonkeyPatch) -> None:
    resize(patch, "Q6_K", type_size=192)


@mutant("bytes_are_blocks")
def count_padding(patch: pytest.MonkeyPatch) -> None:
    real = TensorInfo.n_bytes.fget  # type: ignore[attr-defined]
    weigh(patch, lambda tensor: real(tensor) + -real(tensor) % 32)


@mutant("bytes_are_blocks")
def rows_rounded_up_to_256(patch: pytest.MonkeyPatch) -> None:
    def n_bytes(tensor: TensorInfo) -> int:
        row = -(-tensor.shape[0] // 256) * 256
        quant = by_name(tensor.type)
        return math.prod(tensor.shape[1:]) * row // quant.block_size * quant.type_size

    weigh(patch, n_bytes)


@mutant("bytes_are_blocks")
def one_block_too_many(patch: pytest.MonkeyPatch) -> None:
    real = TensorInfo.n_bytes.fget  # type: ignore[attr-defined]
    weigh(patch, lambda tensor: real(tensor) + by_name(tensor.type).type_size)


@mutant("exact")
def bytes_in_floats(patch: pytest.MonkeyPatch) -> None:
    weigh(patch, lambda t: int(t.n_weights * (float(by_name(t.type).bits_per_weight) + 1e-9) / 8))


@mutant("bytes_are_blocks")
def experts_count_once(patch: pytest.MonkeyPatch) -> None:
    def n_bytes(tensor: TensorInfo) -> int:
        quant = by_name(tensor.type)
        return math.prod(tensor.shape[:2]) // quant.block_size * quant.type_size

    weigh(patch, n_bytes)


# -- the quotient


@mutant("exact")
def nominal_for_effective(patch: pytest.MonkeyPatch) -> None:
    def nominal(result: BpwAccount) -> Fraction:
        most = max(result.histogram, key=lambda name: result.histogram[name].n_weights)
        return by_name(most).bits_per_weight

    divide(patch, nominal)


@mutant("within_bounds")
def ten_bits_per_byte(patch: pytest.MonkeyPatch) -> None:
    divide(patch, lambda result: Fraction(10 * result.n_bytes, result.n_weights))


@mutant("exact")
def effective_by_float(patch: pytest.MonkeyPatch) -> None:
    divide(patch, lambda result: Fraction(8 * result.n_bytes / result.n_weights))


@mutant("exact")
def mean_over_types(patch: pytest.MonkeyPatch) -> None:
    def mean(result: BpwAccount) -> Fraction:
        types = [by_name(name).bits_per_weight for name in result.histogram]
        return Fraction(sum(types), len(types))

    divide(patch, mean)


# -- what counts


@mutant("each_tensor_in_its_part")
def norms_do_not_count(patch: pytest.MonkeyPatch) -> None:
    count_if(patch, lambda tensor: is_weight(tensor) and "norm" not in tensor.name)


@mutant("additive_over_layers")
def biases_do_not_count(patch: pytest.MonkeyPatch) -> None:
    count_if(patch, lambda tensor: is_weight(tensor) and not tensor.name.endswith(".bias"))


@mutant("tables_and_indices_do_not_count")
def rope_tables_count(patch: pytest.MonkeyPatch) -> None:
    count_if(patch, lambda tensor: not by_name(tensor.type).is_integer)


@mutant("tables_and_indices_do_not_count")
def integers_count(patch: pytest.MonkeyPatch) -> None:
    count_if(patch, lambda tensor: not bpw._ROPE.match(tensor.name))


@mutant("untied_adds_the_output")
def embedding_left_out(patch: pytest.MonkeyPatch) -> None:
    count_if(patch, lambda tensor: is_weight(tensor) and not tensor.name.startswith("token_embd"))


@mutant("untied_adds_the_output")
def tied_embedding_counts_twice(patch: pytest.MonkeyPatch) -> None:
    def twice(tensors: Iterable[TensorInfo]) -> BpwAccount:
        known = list(tensors)
        if not any(one.name.startswith("output.") for one in known):
            known += [one for one in known if one.name.startswith("token_embd")]
        return account(known)

    patch.setattr(bpw, "account", twice)


@mutant("additive")
def last_tensor_left_out(patch: pytest.MonkeyPatch) -> None:
    def shorter(tensors: Iterable[TensorInfo]) -> BpwAccount:
        known = list(tensors)
        return account(known[:-1] or known)

    patch.setattr(bpw, "account", shorter)


@mutant("additive")
def equal_shapes_count_once(patch: pytest.MonkeyPatch) -> None:
    def distinct(tensors: Iterable[TensorInfo]) -> BpwAccount:
        return account({(one.shape, one.type, one.name[:5]): one for one in tensors}.values())

    patch.setattr(bpw, "account", distinct)


# -- which part it is


@mutant("each_tensor_in_its_part")
def body_with_the_embedding(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        bpw,
        "kind_of",
        lambda name: Kind.BODY if kind_of(name) is Kind.EMBEDDING else kind_of(name),
    )


@mutant("additive_over_layers")
def layers_up_to_9(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(bpw, "_BODY", re.compile(r"(?:\w+\.)?blk\.(\d)\."))


@mutant("additive_over_layers")
def layers_from_1(patch: pytest.MonkeyPatch) -> None:
    layer_of = bpw.layer_of

    def shifted(name: str) -> int | None:
        number = layer_of(name)
        return None if number is None else number + 1

    patch.setattr(bpw, "layer_of", shifted)


@mutant("additive_over_layers")
def norms_of_layers_outside(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(bpw, "kind_of", lambda name: Kind.NORM if "_norm" in name else kind_of(name))


@mutant("each_type_by_its_name")
def histogram_by_base_type(patch: pytest.MonkeyPatch) -> None:
    def merge(result: BpwAccount) -> BpwAccount:
        merged: dict[str, Tally] = {}
        for name, part in result.histogram.items():
            base = name.partition("_")[0]
            merged[base] = properties.plus(merged.get(base, Tally()), part)
        return dataclasses.replace(result, histogram=merged)

    change(patch, merge)


@mutant("share_of_floats_is_by_weights")
def share_of_floats_by_bytes(patch: pytest.MonkeyPatch) -> None:
    def by_bytes(tensors: Iterable[TensorInfo]) -> BpwAccount:
        known = list(tensors)
        matrices = [
            one
            for one in known
            if is_weight(one) and kind_of(one.name) is Kind.BODY and one.n_weights > one.shape[0]
        ]
        floats = sum(one.n_bytes for one in matrices if by_name(one.type).is_float)
        share = Fraction(floats, sum(one.n_bytes for one in matrices)) if matrices else None
        return dataclasses.replace(account(known), float_matrix_share=share)

    patch.setattr(bpw, "account", by_bytes)


@mutant("share_of_floats_is_by_weights")
def vectors_are_matrices(patch: pytest.MonkeyPatch) -> None:
    def flat(tensors: Iterable[TensorInfo]) -> BpwAccount:
        # A second row of nothing would make each vector a matrix; a wider one shows the same.
        known = list(tensors)
        wide = [
            msgspec.structs.replace(one, shape=(*one.shape, 2)) if len(one.shape) == 1 else one
            for one in known
        ]
        share = account(wide).float_matrix_share
        return dataclasses.replace(account(known), float_matrix_share=share)

    patch.setattr(bpw, "account", flat)


# -- the tests


def caught(name: str) -> str | None:
    """Ask one property; return what it objects to."""
    try:
        properties.ask(name, EXAMPLES, derandomize=True, phases=[Phase.generate])
    except Exception as error:  # noqa: BLE001  (whatever a mutant breaks is a catch)
        return type(error).__name__
    return None


def test_the_real_accountant_passes() -> None:
    assert not [name for name in properties.PROPERTIES if caught(name)]


@pytest.mark.parametrize("name", [f"{name}-by-{row[0]}" for name, row in MUTANTS.items()])
def test_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = name.partition("-by-")[0]
    expected, plant = MUTANTS[name]
    plant(monkeypatch)
    # The dearest properties write files; what others catch they need not see.
    cheap = [key for key, one in properties.PROPERTIES.items() if one.share == 1]
    found = {key: problem for key in cheap if (problem := caught(key))}
    print(f"{name}: {', '.join(found)}")  # noqa: T201  (the table, shown by -rP)
    # A ValueError is the accountant's own, without weights; anything else is a mutant that crashes.
    assert found.get(expected) in {"AssertionError", "ValueError"}, f"caught by {found or 'nobody'}"


def test_there_are_enough() -> None:
    assert len(MUTANTS) >= 14
