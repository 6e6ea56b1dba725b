"""What items of laws send, and the report that is gathered of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from pytest_ondevice import options
from pytest_ondevice.gather import Gatherer
from pytest_ondevice.model.catalog import Cell, Model, Subject
from pytest_ondevice.model.law import LawReport
from pytest_ondevice.model.measurement import Measurement
from pytest_ondevice.model.report import CheckResult, ItemReport
from pytest_ondevice.model.verdict import Verdict
from pytest_ondevice.rules import Rules
from pytest_ondevice.state import ITEM, PROPERTY, SUBJECT, ItemState, cells_of, report_items
from pytest_ondevice.waivers import Waivers

MODEL = Model(name="m")
CELLS = tuple(
    Cell(model=MODEL, method=method, reference=method == "F16") for method in ("F16", "Q4_0")
)
LAW = LawReport(law="memory", subject="m", verdict=Verdict.PASS, message="a line")
PASSED = CheckResult(check="laws.memory", cell="m", verdict=Verdict.PASS, quantity="peak_memory")


def kld(value, n):
    return Measurement(quantity="mean_kld", value=value, unit="nats", n=n)


@pytest.fixture
def state(tmp_path):
    return SimpleNamespace(
        settings=options.defaults(tmp_path),
        cells=CELLS,
        bench=None,
        waivers=Waivers(),
        rules=Rules(),
        tier=SimpleNamespace(name="desk"),
        board="one",
    )


def item_of(**found):
    """An item that holds a law over both cells."""
    return SimpleNamespace(
        nodeid="t.py::test_law[m]",
        function=None,
        callspec=SimpleNamespace(params={SUBJECT: Subject(name="m", cells=CELLS)}),
        stash={ITEM: ItemState(**found)},
    )


def gathered(state, *sent):
    """Make the report of what items sent, each alone, in this order."""
    gatherer = Gatherer(state, SimpleNamespace(invocation_params=SimpleNamespace(dir=Path())))
    properties = []
    for one in sent:
        text = msgspec.json.encode(one).decode()
        report = SimpleNamespace(user_properties=[("mine", 1), (PROPERTY, text)])
        gatherer.take(report)
        properties.append(report.user_properties)
    return gatherer.report(complete=True, notes=[]), properties


def test_an_item_of_a_law_needs_all_its_cells():
    assert cells_of(item_of()) == CELLS
    assert cells_of(SimpleNamespace(nodeid="t.py::t")) == ()


def test_an_item_of_a_law_sends_its_verdict_and_each_cells_figures(state):
    others = {"m-Q4_0": {"mean_kld": kld(0.1, 16)}, "m-F16": {}}
    law, *cells = report_items(item_of(results=[PASSED], laws=[LAW], others=others), state, None)
    assert law == ItemReport(
        cell="m",
        results=(msgspec.structs.replace(PASSED, node="t.py::test_law[m]"),),
        laws=(LAW,),
    )
    assert {one.cell: one.measurements for one in cells} == {
        "m-Q4_0": (kld(0.1, 16),),
        "m-F16": (),
    }


def test_a_law_that_raised_is_a_failure_of_its_subject(state):
    (sent,) = report_items(item_of(), state, "ValueError: unknown law")
    (result,) = sent.results
    assert (result.check, result.cell, result.verdict) == ("t.py::test_law", "m", Verdict.FAIL)
    assert result.message == "ValueError: unknown law"


def test_the_report_has_laws_and_of_each_cell_what_was_measured_for_them(state):
    failed = msgspec.structs.replace(PASSED, verdict=Verdict.FAIL, outcome="failed")
    item = item_of(results=[failed], laws=[LAW], others={"m-Q4_0": {"mean_kld": kld(0.1, 16)}})
    report, properties = gathered(state, *report_items(item, state, None))
    assert report.laws == (LAW,)
    assert [one.check for one in report.checks] == ["laws.memory"]
    assert report.cells[1].measurements == {"mean_kld": kld(0.1, 16)}
    # A law is of no cell, and decides of none.
    assert [cell.verdict for cell in report.cells] == [None, None]
    # For people, JUnit XML has the subject where it has the cell.
    assert ("ondevice_cell", "m") in properties[0]
    assert all(name != PROPERTY for pairs in properties for name, _ in pairs)


def test_a_law_that_ran_again_is_there_once(state):
    # As with --reruns, or under pytest-xdist where a worker was replaced.
    again = msgspec.structs.replace(LAW, message="another line")
    other = msgspec.structs.replace(LAW, subject="n")
    sent = [ItemReport(cell="m", laws=(one,)) for one in (LAW, other, again)]
    report, _ = gathered(state, *sent)
    assert [(law.subject, law.message) for law in report.laws] == [
        ("m", "another line"),
        ("n", "a line"),
    ]


def test_figures_of_more_windows_stand_whichever_item_came_first(state):
    # A check stops looking where it is certain, a law takes the whole budget.
    check = CheckResult(check="fidelity.kld", cell="m-Q4_0", verdict=Verdict.PASS)
    looked = ItemReport(cell="m-Q4_0", results=(check,), measurements=(kld(0.1, 8),))
    whole = ItemReport(cell="m-Q4_0", measurements=(kld(0.2, 16),))
    for order in ([looked, whole], [whole, looked]):
        report, _ = gathered(state, *order)
        assert report.cells[1].measurements["mean_kld"] == kld(0.2, 16), order


def test_of_as_many_windows_the_checks_own_figure_stands(state):
    check = CheckResult(check="fidelity.kld", cell="m-Q4_0", verdict=Verdict.PASS)
    looked = ItemReport(cell="m-Q4_0", results=(check,), measurements=(kld(0.1, 16),))
    law = ItemReport(cell="m-Q4_0", measurements=(kld(0.2, 16),))
    report, _ = gathered(state, looked, law)
    assert report.cells[1].measurements["mean_kld"] == kld(0.1, 16)
