"""Waivers in whole runs, and what of a run goes into JUnit XML."""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest
from projects import sentence, sentence_or_all

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from projects import Project

OWN = (
    "def test_own(ondevice_check):\n    ondevice_check(5.0, at_most=1, name='latency', unit='ms')\n"
)
FINE = "def test_fine(ondevice_check):\n    ondevice_check(0.5, at_most=1)\n"
CELL = "tiny-F16"
CHECK = "test_own.py::test_own"
REASON = "the vendor knows: issue 7"

DISTRIBUTED = pytest.mark.parametrize("n", [[], ["-n2"]], ids=["alone", "distributed"])


def days(number: int) -> datetime.date:
    """A day from today, as the plugin counts them."""
    return datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=number)


class Gate:
    """A project with a check that fails, and runs of it under waivers."""

    def __init__(self, project: Project, tiny: list[str]) -> None:
        self.project = project
        self.tiny = tiny
        project.write("test_own.py", OWN + FINE)

    def waive(self, *, cell: str = "tiny-*", check: str = CHECK, expires: int = 7) -> None:
        path = self.project.path / "waivers.toml"
        before = path.read_text() if path.exists() else ""
        self.project.write(
            "waivers.toml",
            f"{before}[[waiver]]\ncell = '{cell}'\ncheck = '{check}'\nreason = '{REASON}'\n"
            f"expires = {days(expires)}\n",
        )

    def run(self, *args: str) -> pytest.RunResult:
        options = ["--ondevice-report=gate.json"]
        if (self.project.path / "waivers.toml").exists():
            options.append("--ondevice-waivers=waivers.toml")
        result = self.project.run(*self.tiny, "test_own.py", *options, *args)
        text = sentence_or_all(result)
        assert "INTERNALERROR" not in text, text
        assert "Traceback" not in text, text
        return result

    @property
    def report(self) -> dict:
        return json.loads((self.project.path / "gate.json").read_text())

    @property
    def check(self) -> dict:
        (found,) = [one for one in self.report["checks"] if one["check"] == CHECK]
        return found

    def row(self, result: pytest.RunResult) -> str:
        """The cell's row in the table at the end."""
        lines = result.outlines
        start = next(index for index, line in enumerate(lines) if "on-device gate" in line)
        (found,) = [line for line in lines[start:] if line.startswith(f"{CELL} ")]
        return found


@pytest.fixture
def gate(project: Project, tiny: list[str]) -> Gate:
    return Gate(project, tiny)


# -- what a waiver does


@DISTRIBUTED
def test_without_a_waiver_it_fails(gate: Gate, n: list[str]) -> None:
    result = gate.run(*n)
    result.assert_outcomes(failed=1, passed=1)
    assert result.ret == 1
    assert (gate.check["verdict"], gate.check["outcome"]) == ("fail", "failed")
    assert "waived" not in gate.check
    assert gate.row(result).endswith("  fail")
    assert gate.report["cells"][0]["verdict"] == "fail"
    assert gate.report["notes"] == []


@DISTRIBUTED
def test_a_waived_failure_is_xfailed(gate: Gate, n: list[str]) -> None:
    gate.waive()
    result = gate.run("-rx", *n)
    result.assert_outcomes(xfailed=1, passed=1)
    assert result.ret == 0, sentence_or_all(result)
    until = f"{REASON} (waived until {days(7)})"
    result.stdout.fnmatch_lines([f"XFAIL {CHECK}*{CELL}* - {until}; 5 ms is above the bound"])
    assert gate.check["verdict"] == "fail"
    assert gate.check["outcome"] == "xfailed"
    assert gate.check["waived"] == until
    assert gate.check["value"] == 5.0
    # The cell is not red, and it says why.
    assert gate.report["cells"][0]["verdict"] == "pass"
    assert gate.row(result).endswith("  pass, 1 waived")
    assert gate.report["notes"] == []


def test_a_cell_with_nothing_but_a_waived_failure_is_not_red(gate: Gate) -> None:
    gate.waive()
    result = gate.run("-k", "test_own and not fine", "--color=yes")
    assert result.ret == 0
    assert gate.report["cells"][0]["verdict"] is None
    result.assert_outcomes(xfailed=1, deselected=1)
    (row,) = [line for line in result.outlines if line.startswith(f"{CELL} ")]
    assert "\x1b[31m" not in row
    assert "not run, 1 waived" in row


def test_the_last_day_counts(gate: Gate) -> None:
    gate.waive(expires=0)
    today = days(0)
    result = gate.run()
    if days(0) == today:
        result.assert_outcomes(xfailed=1, passed=1)


@DISTRIBUTED
def test_an_expired_waiver_waives_nothing_and_says_so(gate: Gate, n: list[str]) -> None:
    gate.waive(expires=-2)
    result = gate.run(*n)
    result.assert_outcomes(failed=1, passed=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            f"{CHECK} {CELL}: fail: 5 ms is above the bound",
            f"  waiver    expired on {days(-2)}: {REASON}",
        ]
    )
    said = f"waiver expired on {days(-2)}: {CHECK} of tiny-*"
    assert gate.report["notes"] == [said]
    assert said in result.outlines
    assert gate.row(result).endswith("  fail")


def test_a_later_waiver_of_the_same_stands_for_the_expired(gate: Gate) -> None:
    gate.waive(expires=-2)
    gate.waive(expires=2)
    gate.run().assert_outcomes(xfailed=1, passed=1)
    assert gate.check["waived"].endswith(f"(waived until {days(2)})")


@DISTRIBUTED
def test_runxfail_waives_nothing(gate: Gate, n: list[str]) -> None:
    gate.waive()
    result = gate.run("--runxfail", *n)
    result.assert_outcomes(failed=1, passed=1)
    assert result.ret == 1
    assert gate.check["outcome"] == "failed"
    assert "waived" not in gate.check
    # It is needed: without the option it would have counted.
    assert "no longer needed" not in result.stdout.str()


@DISTRIBUTED
def test_an_unmatched_waiver_is_told(gate: Gate, n: list[str]) -> None:
    gate.waive()
    gate.waive(cell="other-*")
    result = gate.run(*n)
    assert result.ret == 0
    said = f"waiver matches nothing in this run: {CHECK} of other-*"
    assert said in result.outlines
    assert gate.report["notes"] == [said]


@DISTRIBUTED
def test_a_waiver_that_is_not_needed_is_told(gate: Gate, n: list[str]) -> None:
    gate.waive(check="*::test_fine")
    result = gate.run(*n)
    result.assert_outcomes(failed=1, passed=1)
    said = "waiver no longer needed, nothing failed: *::test_fine of tiny-*"
    assert said in result.outlines


def test_a_run_cut_short_says_nothing_of_what_did_not_run(gate: Gate) -> None:
    gate.waive(check="*::test_fine")
    result = gate.run("-x")
    assert not gate.report["complete"]
    assert gate.report["notes"] == []
    assert "no longer needed" not in result.stdout.str()


def test_a_waiver_is_of_what_is_checked_not_of_what_breaks(gate: Gate) -> None:
    gate.project.write(
        "test_own.py", "def test_own(ondevice_check):\n    raise ValueError('broken')\n"
    )
    gate.waive()
    result = gate.run()
    result.assert_outcomes(failed=1)
    assert gate.check["outcome"] == "failed"
    assert gate.report["notes"] == []


def test_waivers_come_from_an_ini_and_the_environment(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.waive()
    path = gate.project.path / "waivers.toml"
    path.rename(gate.project.path / "known.toml")
    gate.project.pytester.makeini("[pytest]\nondevice_waivers = known.toml\n")
    gate.run().assert_outcomes(xfailed=1, passed=1)
    gate.project.pytester.makeini("[pytest]\n")
    gate.run().assert_outcomes(failed=1, passed=1)
    monkeypatch.setenv("PYTEST_ONDEVICE_WAIVERS", "known.toml")
    gate.run().assert_outcomes(xfailed=1, passed=1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read it: No such file or directory"),
        ("waiver = 1", "it is no file of waivers: Expected `array`, got `int` - at `$.waiver`"),
        (
            "[[waiver]]\ncell = 'm'\ncheck = 'c'\nreason = ''\nexpires = 2026-01-01\n",
            (
                "it is no file of waivers: the reason is empty; say why the failure is accepted"
                " - at `$.waiver[0]`"
            ),
        ),
    ],
)
@pytest.mark.parametrize("when", [[], ["--collect-only"]])
def test_a_bad_file_is_refused_before_anything_runs(
    gate: Gate, content: str | None, said: str, when: list[str]
) -> None:
    if content is not None:
        gate.project.write("bad.toml", content)
    result = gate.project.run(*gate.tiny, "test_own.py", "--ondevice-waivers=bad.toml", *when)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    place = gate.project.path / "bad.toml"
    assert (
        sentence(result) == f"--ondevice-waivers=bad.toml (from the command line): {place}: {said}"
    )


# -- JUnit XML


def properties(gate: Gate, name: str) -> list[tuple[str, str]]:
    """The properties of a test case."""
    tree = ElementTree.parse(gate.project.path / "junit.xml")
    (case,) = [one for one in tree.iter("testcase") if one.get("name", "").startswith(name)]
    return [(one.get("name", ""), one.get("value", "")) for one in case.iter("property")]


@DISTRIBUTED
def test_junit_xml_has_what_a_person_can_read(gate: Gate, n: list[str]) -> None:
    gate.waive()
    assert gate.run("--junitxml=junit.xml", *n).ret == 0
    assert properties(gate, "test_own") == [
        ("ondevice_cell", CELL),
        ("ondevice_check", CHECK),
        ("ondevice_verdict", "fail"),
        ("ondevice_quantity", "latency"),
        ("ondevice_value", "5"),
        ("ondevice_unit", "ms"),
        ("ondevice_bound", "<= 1 ms"),
        ("ondevice_message", "5 ms is above the bound"),
        ("ondevice_waived", f"{REASON} (waived until {days(7)})"),
    ]
    assert properties(gate, "test_fine") == [
        ("ondevice_cell", CELL),
        ("ondevice_check", "test_own.py::test_fine"),
        ("ondevice_verdict", "pass"),
        ("ondevice_quantity", "value"),
        ("ondevice_value", "0.5"),
        ("ondevice_bound", "<= 1"),
        ("ondevice_message", "within the bound"),
    ]
    raw = (gate.project.path / "junit.xml").read_text()
    assert 'name="ondevice"' not in raw
    assert "&quot;" not in raw, "JSON went into the file"
    tree = ElementTree.parse(gate.project.path / "junit.xml")
    assert len(list(tree.iter("skipped"))) == 1  # an xfail
    assert not list(tree.iter("failure"))


@DISTRIBUTED
def test_junit_xml_of_failures(gate: Gate, n: list[str]) -> None:
    gate.run("--junitxml=junit.xml", *n)
    found = dict(properties(gate, "test_own"))
    assert found["ondevice_verdict"] == "fail"
    assert "ondevice_waived" not in found
    (failure,) = ElementTree.parse(gate.project.path / "junit.xml").iter("failure")
    assert "5 ms is above the bound" in (failure.text or "") + failure.get("message", "")


@DISTRIBUTED
def test_the_users_own_properties_stay(gate: Gate, n: list[str]) -> None:
    gate.project.write(
        "test_own.py",
        "def test_own(ondevice_check, record_property):\n"
        "    record_property('mine', 1)\n"
        "    ondevice_check(0.1, at_most=1, name='a')\n"
        "    ondevice_check(0.2, at_most=1, name='b')\n",
    )
    # pytest itself warns of properties in the default family.
    assert gate.run("--junitxml=junit.xml", "-o", "junit_family=xunit1", *n).ret == 0
    found = properties(gate, "test_own")
    assert found[0] == ("mine", "1")
    assert [value for name, value in found if name == "ondevice_quantity"] == ["a", "b"]
    assert [value for name, value in found if name == "ondevice_value"] == ["0.1", "0.2"]


@DISTRIBUTED
def test_a_law_is_waived_by_the_name_of_its_model(
    project: Project, tiny: list[str], write_gguf: Callable[[str, str], Path], n: list[str]
) -> None:
    if n:
        pytest.importorskip("xdist")
    for method in ("F16", "Q8_0", "Q4_0"):
        path = write_gguf(f"made/tiny-{method}.gguf", method)
    # One file holds more than its weights.
    path.write_bytes(path.read_bytes() + bytes(2**20))
    project.write("test_own.py", "def test_own(ondevice_law):\n    ondevice_law('file_size')\n")
    args = (
        *(tiny[0], "--ondevice-methods=F16,Q8_0,Q4_0", "--ondevice-artifacts=made"),
        *("test_own.py", "--ondevice-report=gate.json", *n),
    )
    project.run(*args).assert_outcomes(failed=1)
    waiver = f"check = '{CHECK}'\nreason = '{REASON}'\nexpires = {days(7)}\n"
    project.write("waivers.toml", f"[[waiver]]\ncell = 'tiny'\n{waiver}")
    result = project.run(*args, "--ondevice-waivers=waivers.toml")
    result.assert_outcomes(xfailed=1)
    assert result.ret == 0
    report = json.loads((project.path / "gate.json").read_text())
    (check,) = report["checks"]
    assert (check["cell"], check["verdict"], check["outcome"]) == ("tiny", "fail", "xfailed")
    assert REASON in check["waived"]
    # What was found stands, whatever became of the item.
    assert [(law["law"], law["verdict"]) for law in report["laws"]] == [("file_size", "fail")]
    # Of a cell of the model it says nothing.
    project.write("waivers.toml", f"[[waiver]]\ncell = 'tiny-*'\n{waiver}")
    result = project.run(*args, "--ondevice-waivers=waivers.toml")
    result.assert_outcomes(failed=1)
