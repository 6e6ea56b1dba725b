"""The session's state, and the only stash keys there are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import pytest

from .checks import check_of
from .model.quantity import QUANTITIES, Stage
from .model.report import CheckResult, ItemReport, TaskReport
from .model.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .checks import Check
    from .measure import Bench
    from .model.catalog import Cell, Subject
    from .model.law import LawReport
    from .model.measurement import Measurement, ProtocolFields
    from .options import Settings
    from .references import GivenReference
    from .rules import Budget, Rules
    from .storage.baselines import Baselines
    from .storage.pins import Pins
    from .tier import Tier
    from .waivers import Waivers

PREFIX = "ondevice"
"""What the readable properties of an item begin with."""

BUDGET = "ondevice_budget"
"""The fixture that stands for a limit of the user's own."""

SUBJECT = "ondevice_subject"
"""The fixture that stands for what a law is held for."""

PROPERTY = "pytest_ondevice_item"
"""The name in ``user_properties`` under which an item's report travels, as JSON text."""


@dataclass
class State:
    """What hooks and fixtures of one session share.

    Attributes:
        settings: The options.
        cells: The matrix.
        session: Name of this pytest session, the same on every test worker.
        bench: What measures, once something is to be measured.
        baselines: The stored baselines.
        waivers: Known failures.
        pins: The digests of accepted artifacts, by cell id.
        rules: The user's own tolerances and budgets.
        references: The reference files that were given, by model name.
        tier: The class of machines that this one belongs to.
        board: This one machine of it.
        noise: What calibration found of this machine, by quantity; empty without.
        owners: The collected check that owns a stage of a cell, by stage and cell id.
    """

    settings: Settings
    cells: tuple[Cell, ...]
    session: str
    baselines: Baselines
    waivers: Waivers
    pins: Pins
    rules: Rules
    references: Mapping[str, GivenReference]
    tier: Tier
    board: str
    noise: Mapping[str, float] = field(default_factory=dict)
    bench: Bench | None = None
    owners: dict[tuple[Stage, str], str] = field(default_factory=dict)


@dataclass
class ItemState:
    """What one item measured and what was judged.

    Attributes:
        results: Verdicts.
        measured: What it measured of its cell, by quantity.
        others: What a law measured, by cell id and quantity.
        laws: What was found of laws.
    """

    results: list[CheckResult] = field(default_factory=list)
    measured: dict[str, Measurement] = field(default_factory=dict)
    others: dict[str, dict[str, Measurement]] = field(default_factory=dict)
    laws: list[LawReport] = field(default_factory=list)


STATE = pytest.StashKey[State]()
ITEM = pytest.StashKey[ItemState]()


def cell_of(item: pytest.Item) -> Cell | None:
    """Return the cell an item is parametrized with, None if it is none of ours."""
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("ondevice_cell") if callspec is not None else None


def subject_of(item: pytest.Item) -> Subject | None:
    """Return what an item's law is held for, None if it holds none."""
    callspec = getattr(item, "callspec", None)
    return callspec.params.get(SUBJECT) if callspec is not None else None


def cells_of(item: pytest.Item) -> tuple[Cell, ...]:
    """Return the cells that an item needs: its own, or those of its law; none if it is not ours."""
    cell, subject = cell_of(item), subject_of(item)
    if cell is not None:
        return (cell,)
    return subject.cells if subject is not None else ()


def budget_of(item: pytest.Item) -> Budget | None:
    """Return the budget an item is parametrized with, None if with none."""
    callspec = getattr(item, "callspec", None)
    return callspec.params.get(BUDGET) if callspec is not None else None


def declared(item: pytest.Item) -> Check | None:
    """Return the check an item is, None for a user's own test."""
    return check_of(getattr(item, "function", None))


def check_id(item: pytest.Item) -> str:
    """Return a check's id; for a user's own test its node id without the parameters."""
    found = declared(item)
    return found.id if found else item.nodeid.partition("[")[0]


def report_items(item: pytest.Item, state: State, failure: str | None) -> list[ItemReport]:
    """Gather what an item found; ``failure`` is why it failed if it is not in its results."""
    cell, subject = cell_of(item), subject_of(item)
    name = cell.id if cell is not None else subject.name if subject is not None else None
    if name is None:
        return []
    found = item.stash.get(ITEM, ItemState())
    results = list(found.results)
    bad = {Verdict.FAIL, Verdict.INVALID, Verdict.INCONCLUSIVE, Verdict.NO_BASELINE}
    if failure is not None and not any(result.verdict in bad for result in results):
        results.append(
            CheckResult(
                check=check_id(item),
                cell=name,
                verdict=Verdict.FAIL,
                message=failure,
                outcome="failed",
            )
        )
    results = [msgspec.structs.replace(result, node=item.nodeid) for result in results]
    if cell is not None:
        sent = _cell_report(cell, found.measured, state)
        return [msgspec.structs.replace(sent, results=tuple(results))]
    assert subject is not None  # one of the two is there
    by_id = {one.id: one for one in subject.cells}
    return [
        ItemReport(cell=name, results=tuple(results), laws=tuple(found.laws)),
        *(_cell_report(by_id[one], measured, state) for one, measured in found.others.items()),
    ]


def _cell_report(cell: Cell, measured: Mapping[str, Measurement], state: State) -> ItemReport:
    """Say what was measured of a cell, and of what."""
    artifact = None
    protocols: dict[str, ProtocolFields] = {}
    system_info = ""
    logits: dict[str, tuple[str, ...]] = {}
    before = None
    tasks: tuple[TaskReport, ...] = ()
    answers = {name for name, one in QUANTITIES.items() if one.stage is Stage.TASKS}
    fidelity = {name for name, one in QUANTITIES.items() if one.stage is Stage.FIDELITY}
    if state.bench is not None:
        system_info = state.bench.system_info
        made = state.bench.made(cell)
        if made is not None:
            artifact = made.facts()
            protocols = state.bench.protocols(cell, measured)
            tasks = state.bench.tasks(cell) if answers & measured.keys() else ()
            logits = state.bench.logits(cell) if fidelity & measured.keys() else {}
        before = state.bench.made(cell.predecessor)
    return ItemReport(
        cell=cell.id,
        measurements=tuple(measured.values()),
        artifact=artifact,
        protocols=protocols,
        logits=logits,
        tasks=tasks,
        predecessor=before.facts() if before is not None else None,
        system_info=system_info,
    )
