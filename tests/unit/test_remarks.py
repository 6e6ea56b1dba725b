"""Words about memory and bandwidth: what they say, and that their numbers add up."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice.remarks import bound_by, of_memory

MIB = 2**20
NUMBER = re.compile(r"([+-]?)(\d+)\.(\d) MiB")


def mib(**figures):
    return {name: value * MIB for name, value in figures.items()}


REPACKED = mib(
    peak_memory=145.2, deployed_memory=201.3, repacked_bytes=57.0, mapped_bytes=85.0,
    weight_bytes=85.0,
)  # fmt: skip


def test_repacked_copies_beside_the_file():
    assert of_memory(REPACKED) == (
        "as shipped it takes 201.3 MiB, 56.1 MiB more than the 145.2 MiB with weights read and not"
        " repacked: repacked copies: +57.0 MiB (the mapped file stays in memory beside them),"
        " other: -0.9 MiB"
    )


def test_the_file_gave_way_to_the_copies():
    figures = REPACKED | mib(mapped_bytes=28.0, deployed_memory=144.0)
    assert of_memory(figures) == (
        "as shipped it takes 144.0 MiB, 1.2 MiB less than the 145.2 MiB with weights read and not"
        " repacked: repacked copies: +57.0 MiB, weights not in memory: -57.0 MiB, other: -1.2 MiB"
    )


def test_a_part_of_the_file_gave_way():
    said = of_memory(REPACKED | mib(mapped_bytes=28.2))
    assert "copies: +57.0 MiB (the mapped file stays in memory beside them), weights not" in said
    assert said.endswith("weights not in memory: -56.8 MiB, other: +55.9 MiB")


def test_no_repacked_copies():
    figures = REPACKED | mib(repacked_bytes=0, deployed_memory=145.2)
    assert of_memory(figures) == (
        "as shipped it takes 145.2 MiB, as much as the 145.2 MiB with weights read and not"
        " repacked: no repacked copies, other: 0.0 MiB"
    )


def test_more_of_the_file_than_its_weights():
    said = of_memory(REPACKED | mib(mapped_bytes=87.5))
    assert said.endswith("more of the file in memory: +2.5 MiB, other: -3.4 MiB")


@pytest.mark.parametrize("lacks", ["mapped_bytes", "weight_bytes"])
def test_nothing_is_said_of_the_file_where_nothing_is_known(lacks):
    said = of_memory({name: value for name, value in REPACKED.items() if name != lacks})
    assert said.endswith("not repacked: repacked copies: +57.0 MiB, other: -0.9 MiB")


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_copies_that_are_not_known_are_not_denied(value):
    figures = {name: one for name, one in REPACKED.items() if name != "repacked_bytes"}
    if value is not None:
        figures["repacked_bytes"] = value
    said = of_memory(figures)
    assert said.endswith("not repacked: repacked copies: not known, other: +56.1 MiB")


@pytest.mark.parametrize("lacks", ["peak_memory", "deployed_memory"])
def test_without_two_figures_there_is_nothing_to_compare(lacks):
    assert of_memory(REPACKED | {lacks: math.nan}) == ""
    assert of_memory({name: value for name, value in REPACKED.items() if name != lacks}) == ""


BYTES = st.integers(0, 2**42) | st.floats(0, 2**42)


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {"peak_memory": BYTES, "deployed_memory": BYTES},
        optional={"repacked_bytes": BYTES, "mapped_bytes": BYTES, "weight_bytes": BYTES},
    )
)
def test_the_numbers_add_up_as_printed(figures):
    said = of_memory(figures)
    head, _, parts = said.partition(" repacked: ")
    found = NUMBER.findall(head)
    # As it is in words: no number has a sign of its own, and the last is what it is compared with.
    deployed, *difference, peak = (int(whole + tenth) for _, whole, tenth in found)
    assert abs(deployed - 10 * figures["deployed_memory"] / MIB) <= 0.5
    assert abs(peak - 10 * figures["peak_memory"] / MIB) <= 0.5
    sign = 1 if " more than " in head else -1
    more = sign * difference[0] if difference else 0
    assert bool(difference) == (deployed != peak)
    assert deployed - peak == more
    added = NUMBER.findall(parts)
    assert sum(int(sign + whole + tenth) for sign, whole, tenth in added) == more
    assert all(bool(sign) == (int(whole + tenth) != 0) for sign, whole, tenth in added)
    assert not said.endswith(".")


@settings(deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys(REPACKED, st.integers(0, 2**36))))
def test_each_part_is_its_figure(figures):
    said = of_memory(figures)
    copies = re.search(r"repacked copies: \+(\d+\.\d) MiB", said)
    if copies:
        assert float(copies[1]) == pytest.approx(figures["repacked_bytes"] / MIB, abs=0.051)
    else:
        assert figures["repacked_bytes"] / MIB <= 0.051
        assert "no repacked copies" in said
    absent = re.search(r"weights not in memory: -(\d+\.\d) MiB", said)
    more = re.search(r"more of the file in memory: \+(\d+\.\d) MiB", said)
    shown = float(more[1]) if more else -float(absent[1]) if absent else 0.0
    expected = (figures["mapped_bytes"] - figures["weight_bytes"]) / MIB
    assert shown == pytest.approx(expected, abs=0.11)


BANDWIDTH, BOTH = "memory bandwidth", "memory bandwidth and unpacking"
COMPUTING = "computing: unpacking and arithmetic"
BEYOND = (
    "more than the measured bandwidth: the weights stay in a cache, or the bandwidth was disturbed"
)


@pytest.mark.parametrize(
    ("fraction", "words"),
    [
        (1e-9, COMPUTING),
        (0.3999, COMPUTING),
        (0.4, BOTH),
        (0.6999, BOTH),
        (0.7, BANDWIDTH),
        (1.0, BANDWIDTH),
        (1.05, BANDWIDTH),
        (1.0501, BEYOND),
        (40.0, BEYOND),
        (0.0, "not known"),
        (-0.5, "not known"),
        (math.nan, "not known"),
        (math.inf, "not known"),
    ],
)
def test_what_bounds_it(fraction, words):
    assert bound_by(fraction) == words
