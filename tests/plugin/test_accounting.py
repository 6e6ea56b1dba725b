"""The suite of accounting properties: ours passes, planted faults do not, mistakes are told."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from pytest_ondevice import shipped

if TYPE_CHECKING:
    from projects import Project

SUITE = "--ondevice-suites=accounting"

GOOD = """
from pytest_ondevice.model.quant_types import by_name
def weights(shape):
    count = 1
    for length in shape:
        count *= length
    return count
def of(rows, bits=lambda quant: quant.bits_per_weight):
    known = [row for row in rows if not row[0].startswith("rope_") and row[2][0] != "I"]
    known += [row for row in rows if row[2].startswith("IQ")]
    total = sum(weights(shape) for _, shape, _ in known)
    return total, sum(int(weights(shape) * bits(by_name(kind)) / 8) for _, shape, kind in known)
"""

# What a planted fault is, and the properties that it must turn red.
FAULTS = {
    "scales left out": (
        "def account(rows): return of(rows, lambda quant: int(quant.bits_per_weight))",
        {"test_bytes_are_blocks"},
    ),
    "ten bits in a byte": (
        "def account(rows):\n    total, size = of(rows)\n    return total, size * 10 // 8",
        {"test_bytes_are_blocks", "test_within_its_types"},
    ),
    "padding counted": (
        "def account(rows):\n    total, size = of(rows)\n    return total, -(-size // 32) * 32",
        {"test_bytes_are_blocks", "test_additive"},
    ),
    "by the first type": (
        "def account(rows): return of([(n, s, rows[0][2]) for n, s, _ in rows])",
        {"test_order_does_not_matter", "test_additive"},
    ),
    "rotary tables counted": (
        "def account(rows): return of([(n.replace('rope_', 'x'), s, t) for n, s, t in rows])",
        {"test_what_is_not_trained_does_not_count"},
    ),
    "wide types capped": (
        "def account(rows): return of(rows, lambda q: q.bits_per_weight if q.name != 'F32' else 1)",
        {"test_bytes_are_blocks", "test_monotone"},
    ),
}


def test_every_property_has_a_fault_that_it_finds() -> None:
    suite = (shipped.folder("suites") / "accounting" / "test_accounting.py").read_text()
    asked = set(re.findall(r"^def (test_\w+)", suite, re.MULTILINE))
    assert asked == set().union(*(red for _, red in FAULTS.values()))


def test_ours_passes(project: Project) -> None:
    result = project.run_apart(SUITE)
    assert result.ret == 0, result.stdout.str()
    result.assert_outcomes(passed=6)


def test_it_runs_only_where_it_is_named(project: Project, runtime: None) -> None:
    nodes = project.collect("--ondevice-models=smollm2-135m", "--ondevice-methods=Q4_0")
    assert not [node for node in nodes if node.startswith("accounting")]
    both = project.collect(
        "--ondevice-models=smollm2-135m", "--ondevice-suites=accounting,efficiency"
    )
    assert {node.partition("::")[0] for node in both} == {"accounting", "efficiency"}


def test_a_good_one_of_the_users_passes(project: Project) -> None:
    project.write("mine.py", GOOD)
    result = project.run_apart(SUITE, "--ondevice-accountant=mine:of", "-p", "no:randomly")
    assert result.ret == 0, result.stdout.str()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(project: Project, fault: str) -> None:
    code, red = FAULTS[fault]
    project.write("mine.py", f"{GOOD}\n{code}\n")
    result = project.run_apart(SUITE, "--ondevice-accountant=mine:account", "-rf", "--tb=no")
    failed = {
        line.partition("::")[2].split()[0] for line in result.outlines if line.startswith("FAILED")
    }
    assert red <= failed, result.stdout.str()


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("mine", "not of the form MODULE:FUNCTION"),
        ("mine:", "not of the form MODULE:FUNCTION"),
        ("no.such.module:f", "it cannot be imported: No module named"),
        ("mine:gone", "mine has no 'gone'"),
        ("mine:number", "it is no function"),
    ],
)
def test_a_mistake_is_told(project: Project, named: str, said: str) -> None:
    project.write("mine.py", "number = 1\n")
    result = project.run_apart(SUITE, f"--ondevice-accountant={named}")
    assert result.ret != 0
    assert said in result.stdout.str() + result.stderr.str()
