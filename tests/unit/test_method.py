"""Names of methods with their variants: read, written in one way, or refused in words."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice import options
from pytest_ondevice.laws import methods as laws_methods
from pytest_ondevice.model import quantity
from pytest_ondevice.model.catalog import Cell, Model
from pytest_ondevice.model.law import Row
from pytest_ondevice.model.method import (
    IMATRIX,
    KV_TYPES,
    PLAIN_KV,
    PURE,
    VARIANTS,
    Method,
    method_of,
)
from pytest_ondevice.probe.protocol import Execution, ReservePlan

lawful = settings(max_examples=60, deadline=None, derandomize=True, database=None)

METHODS = st.builds(
    Method,
    file_type=st.sampled_from(["Q4_K_M", "Q2_K", "IQ2_XXS", "F16", "Q4_0"]),
    pure=st.booleans(),
    imatrix=st.booleans(),
    kv=st.sampled_from(KV_TYPES),
)


# Reading


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Q4_K_M", Method(file_type="Q4_K_M")),
        ("Q4_K_M+imatrix", Method(file_type="Q4_K_M", imatrix=True)),
        ("Q4_K_M+kv-q8_0", Method(file_type="Q4_K_M", kv="q8_0")),
        ("Q4_K_M+kv-q4_0", Method(file_type="Q4_K_M", kv="q4_0")),
        ("IQ2_XXS+imatrix+kv-q4_0", Method(file_type="IQ2_XXS", imatrix=True, kv="q4_0")),
        ("F16+kv-q8_0", Method(file_type="F16", kv="q8_0")),
        ("Q2_K+pure", Method(file_type="Q2_K", pure=True)),
        ("IQ2_XS+pure+imatrix", Method(file_type="IQ2_XS", pure=True, imatrix=True)),
        (
            "Q2_K+pure+imatrix+kv-q8_0",
            Method(file_type="Q2_K", pure=True, imatrix=True, kv="q8_0"),
        ),
    ],
)
def test_a_name_says_file_type_and_variants(name, meant):
    assert method_of(name) == meant
    assert str(meant) == name


def test_the_order_that_is_written_is_one_whatever_was_given():
    for order in itertools.permutations([PURE, IMATRIX, "kv-q8_0"]):
        assert str(method_of("+".join(["Q4_0", *order]))) == "Q4_0+pure+imatrix+kv-q8_0"


@lawful
@given(METHODS)
def test_what_is_written_is_read_again(method):
    assert method_of(str(method)) == method
    assert str(method_of(str(method))) == str(method)


@lawful
@given(METHODS, METHODS)
def test_different_methods_have_different_names(one, other):
    assert (str(one) == str(other)) is (one == other)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Q4_0+imatrix+imatrix", "'Q4_0+imatrix+imatrix' has a variant twice"),
        ("Q4_0+kv-q8_0+kv-q8_0", "'Q4_0+kv-q8_0+kv-q8_0' has a variant twice"),
        ("Q4_0+nonsense+nonsense", "'Q4_0+nonsense+nonsense' has a variant twice"),
        ("Q4_0+pure+imatrix+pure", "'Q4_0+pure+imatrix+pure' has a variant twice"),
        ("Q4_0+Pure", "unknown variant 'Pure' of Q4_0"),
        ("Q4_0+imatrx", "unknown variant 'imatrx' of Q4_0"),
        ("Q4_0+imatrix+kv-q5_0", "unknown variant 'kv-q5_0' of Q4_0"),
        ("Q4_0+", "unknown variant '' of Q4_0"),
        ("Q4_0+IMATRIX", "unknown variant 'IMATRIX' of Q4_0"),
        # The plain cache has no name of its own: a method would have two.
        ("Q4_0+kv-f16", "unknown variant 'kv-f16' of Q4_0"),
        ("Q4_0+kv-q8_0+kv-q4_0", "'Q4_0+kv-q8_0+kv-q4_0' has two types of the KV cache"),
    ],
)
def test_a_name_that_means_no_method_is_refused_in_words(name, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        method_of(name)


# What follows from it


def test_the_weights_are_the_same_however_they_are_run():
    for kv in KV_TYPES:
        assert Method(file_type="Q4_0", kv=kv).weights == "Q4_0"
        assert Method(file_type="Q4_0", imatrix=True, kv=kv).weights == "Q4_0+imatrix"
        assert Method(file_type="Q4_0", pure=True, kv=kv).weights == "Q4_0+pure"
        both = Method(file_type="Q4_0", pure=True, imatrix=True, kv=kv)
        assert both.weights == "Q4_0+pure+imatrix"


def test_every_variant_can_be_given_and_the_plain_cache_needs_none():
    assert {str(method_of(f"Q4_0+{one}")) for one in VARIANTS} == {f"Q4_0+{x}" for x in VARIANTS}
    assert [one for one in VARIANTS if one.endswith(PLAIN_KV)] == []
    assert len(VARIANTS) == 1 + len(KV_TYPES)


def test_a_cell_is_named_after_its_method_and_says_what_it_is():
    cell = Cell(model=Model(name="m"), method="Q4_0+imatrix+kv-q8_0")
    assert cell.id == "m-Q4_0+imatrix+kv-q8_0"
    assert (cell.file_type, cell.weights, cell.way.kv) == ("Q4_0", "Q4_0+imatrix", "q8_0")


def test_laws_hold_pure_methods_against_pure_ones():
    def kind(method):
        return laws_methods.kind(Row(cell=f"m-{method}", model="m", method=method))

    assert kind("Q2_K+pure") == kind("Q4_K_S+pure")
    assert kind("Q2_K+pure") != kind("IQ3_S+pure")
    assert kind("Q2_K+pure") != kind("Q2_K")
    assert laws_methods.family_of_types("IQ2_XS+pure+imatrix") == laws_methods.IQ


# What is said in two places, since one of them may import nothing


def test_the_types_of_the_cache_that_an_option_takes_are_those_of_methods():
    assert options.KV_TYPES == KV_TYPES
    assert KV_TYPES[0] == PLAIN_KV
    assert (Execution().type_k, Execution().type_v) == (PLAIN_KV, PLAIN_KV)


def test_the_contexts_of_the_quantities_are_those_that_are_asked_for():
    assert ReservePlan().contexts == quantity.CONTEXTS
    names = {name for name in quantity.QUANTITIES if name.startswith("kv_reserve_")}
    assert names == {f"kv_reserve_{length}" for length in quantity.CONTEXTS}
