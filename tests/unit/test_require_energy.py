"""A machine without a meter: what asks for energy is skipped, or fails where it is required."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pytest_ondevice import options
from pytest_ondevice.api import Checker, Measurer
from pytest_ondevice.law_fixture import LawHolder
from pytest_ondevice.measure import NoMeterError, UnsupportedError
from pytest_ondevice.model.catalog import Cell, Model, Subject
from pytest_ondevice.model.verdict import Verdict
from pytest_ondevice.state import ITEM, STATE, ItemState
from pytest_ondevice.waivers import Waivers

CELL = Cell(model=Model(name="m"), method="Q4_0")
NO_METER = NoMeterError("a meter of energy: none in /sys. Run as root")


class Bench:
    """Has no figure at all, for a reason."""

    def __init__(self, reason):
        self.reason = reason
        self.references = {}
        self.given = {}

    def measure(self, cell, name, windows=None, rounds=None):
        raise self.reason

    def artifact(self, cell):
        return SimpleNamespace(file=SimpleNamespace(account=SimpleNamespace(n_weights=1)))


def function():
    """No check, so that nothing else is measured beside."""


@pytest.fixture
def request_of(tmp_path):
    """Make as much of a fixture request as is looked at."""

    def make(reason, *, require_energy):
        state = SimpleNamespace(
            bench=Bench(reason),
            cells=(CELL,),
            settings=options.defaults(tmp_path, require_energy=require_energy),
            owners={},
            waivers=Waivers(),
        )
        item = SimpleNamespace(nodeid="t.py::t", function=function, stash={ITEM: ItemState()})
        return SimpleNamespace(node=item, config=SimpleNamespace(stash={STATE: state}))

    return make


def ended(request, work, outcome):
    # A skip that escaped would only skip this test.
    with pytest.raises((pytest.fail.Exception, pytest.skip.Exception)) as end:
        work()
    assert end.type is outcome
    (result,) = request.node.stash[ITEM].results
    assert (result.verdict, result.cell) == (Verdict.UNSUPPORTED, "m-Q4_0")
    return str(end.value.msg), result.outcome


ASKING = {
    "measure": lambda request: Measurer(request, CELL)("decode_energy"),
    "check": lambda request: Checker(request, CELL)("decode_energy", at_least=0.0),
}


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING.keys())
def test_without_a_meter_energy_is_skipped_with_the_way_to_get_one(request_of, ask):
    request = request_of(NO_METER, require_energy=False)
    words, outcome = ended(request, lambda: ask(request), pytest.skip.Exception)
    assert words == "requires a meter of energy: none in /sys. Run as root"
    assert outcome == "skipped"


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING.keys())
def test_where_energy_is_required_a_missing_meter_fails(request_of, ask):
    request = request_of(NO_METER, require_energy=True)
    words, outcome = ended(request, lambda: ask(request), pytest.fail.Exception)
    assert "requires a meter of energy: none in /sys. Run as root" in words
    assert outcome == "failed"


def test_what_is_absent_for_another_reason_is_not_required(request_of):
    request = request_of(UnsupportedError("a reference"), require_energy=True)
    ask = ASKING["measure"]
    words, outcome = ended(request, lambda: ask(request), pytest.skip.Exception)
    assert (words, outcome) == ("requires a reference", "skipped")


def test_a_law_of_power_has_no_points_without_a_meter(request_of):
    # The check of energy says what is missing; the law needs not fail beside it.
    request = request_of(NO_METER, require_energy=True)
    hold = LawHolder(request, Subject(name="m", cells=(CELL,)))
    with pytest.raises(pytest.skip.Exception):
        hold("power")
