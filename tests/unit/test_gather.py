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
from pytest_ondevice.model.report import CheckResult, ItemReport, TaskReport
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


def task(right):
    return TaskReport(
        name="general",
        digest="0" * 16,
        normalisation="bytes",
        n=20,
        right=right,
        accuracy=right / 20,
        lower=0.0,
        upper=1.0,
        chance=0.25,
        mass=None,
        groups={},
        lost=None,
        gained=None,
        mcnemar_p=None,
        detectable=None,
    )


def test_the_report_has_what_was_answered_last(state):
    # A later item may have asked further; one that asked nothing takes nothing away.
    sent = [
        ItemReport(cell="m-Q4_0", tasks=(task(5),)),
        ItemReport(cell="m-F16", tasks=(task(9),)),
        ItemReport(cell="m-Q4_0", tasks=(task(7),)),
        ItemReport(cell="m-Q4_0"),
    ]
    report, _ = gathered(state, *sent)
    assert [cell.tasks for cell in report.cells] == [(task(9),), (task(7),)]


@pytest.mark.parametrize(
    ("chosen", "names", "items"),
    [
        ({}, "shipped", "all"),
        (
            {"tasks": ("general", "/home/me/mine.jsonl+bytes"), "items": 50},
            "general,mine.jsonl+bytes",
            "50",
        ),
    ],
)
def test_the_report_says_what_was_asked_without_paths(state, tmp_path, chosen, names, items):
    state.settings = options.defaults(tmp_path, **chosen)
    report, _ = gathered(state, ItemReport(cell="m-F16"))
    assert (report.settings["tasks"], report.settings["items"]) == (names, items)


class Quizzed:
    """A bench that knows what one cell answered."""

    system_info = ""

    def made(self, cell):
        return None if cell.before else SimpleNamespace(facts=lambda: None)

    def protocols(self, cell, measured):
        return {}

    def tasks(self, cell):
        return (task(7),)


@pytest.mark.parametrize(
    ("quantity", "told"),
    [("accuracy", True), ("answer_flips", True), ("unscored_answers", True), ("file_size", False)],
)
def test_an_item_that_asked_sends_the_answers(state, quantity, told):
    state.bench = Quizzed()
    item = SimpleNamespace(
        nodeid="t.py::test[m-Q4_0]",
        function=None,
        callspec=SimpleNamespace(params={"ondevice_cell": CELLS[1]}),
        stash={
            ITEM: ItemState(
                measured={quantity: Measurement(quantity=quantity, value=0.5, unit="1")}
            )
        },
    )
    (sent,) = report_items(item, state, None)
    assert sent.tasks == ((task(7),) if told else ())


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
