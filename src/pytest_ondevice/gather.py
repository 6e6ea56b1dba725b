"""Items' reports to the run's report: merged by cell and check, the same way distributed or not."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from .baselines import record
from .devices import device, runtime
from .errors import OnDeviceError
from .judgement import show_bound
from .model.change import overall
from .model.report import SCHEMA_VERSION, CellReport, CheckResult, ItemReport, Report
from .model.verdict import Verdict
from .options import ALL_LAYERS, BESIDE, LOCK
from .rules import Judged
from .state import PREFIX, PROPERTY
from .storage import pins
from .storage.baselines import writable
from .storage.files import why_unwritable, write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from .model.law import LawReport
    from .model.measurement import Measurement, ProtocolFields
    from .model.report import ArtifactFacts, TaskReport
    from .options import Settings
    from .state import State

_WORST_FIRST = (
    Verdict.FAIL,
    Verdict.INVALID,
    Verdict.INCONCLUSIVE,
    Verdict.BLOCKED,
    Verdict.PASS,
    Verdict.NO_BASELINE,
    Verdict.UNSUPPORTED,
)


class Gatherer:
    """Gathers what items sent and makes the report of it."""

    def __init__(self, state: State, config: pytest.Config) -> None:
        self._state = state
        self._invocation = config.invocation_params.dir
        self._items: dict[tuple[str, str, str], CheckResult] = {}
        self._measured: dict[str, dict[str, Measurement]] = {}
        self._artifacts: dict[str, ArtifactFacts] = {}
        self._predecessors: dict[str, ArtifactFacts] = {}
        self._logits: dict[str, dict[str, tuple[str, ...]]] = {}
        self._protocols: dict[str, ProtocolFields] = {}
        self._tasks: dict[str, tuple[TaskReport, ...]] = {}
        self._laws: dict[tuple[str, str], LawReport] = {}
        self._system_info = ""
        self.seen = False
        self.final: Report | None = None
        self.lines: list[str] = []
        self.problems: list[str] = []

    def any(self) -> bool:
        """Whether any item sent anything."""
        return bool(self._items)

    def take(self, report: pytest.TestReport) -> None:
        """Take in what one phase of an item sent; leave properties that a person can read.

        They go into JUnit XML, where the whole of it would bury the file.
        """
        kept: list[tuple[str, object]] = []
        for name, value in report.user_properties:
            if name != PROPERTY or not isinstance(value, str):
                kept.append((name, value))
                continue
            self.seen = True
            item = msgspec.json.decode(value, type=ItemReport)
            for result in item.results:
                kept.extend(_properties(result))
                self._items[result.check, result.cell, result.quantity] = result
            if item.artifact is not None:
                self._artifacts[item.cell] = item.artifact
            if item.predecessor is not None:
                self._predecessors[item.cell] = item.predecessor
            if item.tasks:
                self._tasks[item.cell] = item.tasks
            if item.logits:
                self._logits[item.cell] = item.logits
            measured = self._measured.setdefault(item.cell, {})
            for one in item.measurements:
                # A law measures over the whole budget, a check as far as its verdict needs.
                known = measured.get(one.quantity)
                if known is not None and (known.n, not item.results) > (one.n, False):
                    continue
                measured[one.quantity] = one
            self._laws.update({(law.law, law.subject): law for law in item.laws})
            self._protocols.update(item.protocols)
            self._system_info = item.system_info or self._system_info
        report.user_properties[:] = kept

    def report(self, *, complete: bool, notes: list[str]) -> Report:
        """Make the report of everything gathered so far."""
        settings = self._state.settings
        results = tuple(self._items.values())
        cells = tuple(
            CellReport(
                id=cell.id,
                model=cell.model.name,
                method=cell.method,
                reference=cell.reference,
                verdict=worst(
                    [
                        one.verdict
                        for one in results
                        if one.cell == cell.id and not one.advisory and not one.waived
                    ]
                ),
                artifact=self._artifacts.get(cell.id),
                measurements=self._measured.get(cell.id, {}),
                predecessor=self._predecessors.get(cell.id),
                finding=overall(
                    one.change.finding
                    for one in results
                    if one.cell == cell.id and one.change is not None and not one.advisory
                ),
                logits=self._logits.get(cell.id, {}),
                tasks=self._tasks.get(cell.id, ()),
            )
            for cell in self._state.cells
        )
        return Report(
            schema_version=SCHEMA_VERSION,
            generator=f"pytest-ondevice {importlib.metadata.version('pytest-ondevice')}",
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            complete=complete,
            device=device(),
            tier=self._state.tier.name,
            board=self._state.board,
            runtime=msgspec.structs.replace(runtime(), system_info=self._system_info),
            settings={
                "models": ",".join(dict.fromkeys(cell.model for cell in cells)),
                "methods": ",".join(dict.fromkeys(cell.method for cell in cells)),
                "context": str(settings.context),
                "text": settings.text.name if settings.text else "shipped",
                "windows": "all" if settings.windows is None else str(settings.windows),
                "tasks": ",".join(Path(name).name for name in settings.tasks) or "shipped",
                "items": "all" if settings.items is None else str(settings.items),
                "threads": str(settings.threads),
                "gpu_layers": _layers(settings.gpu_layers),
                "rounds": str(settings.rounds),
                "candidates": "yes" if settings.artifacts else "no",
                "against": "yes" if settings.against else "no",
                "reference": _reference(settings),
            },
            cells=cells,
            checks=results,
            laws=tuple(self._laws.values()),
            protocols=self._protocols,
            notes=(
                *notes,
                *_remarks(cells),
                *self._state.waivers.remarks(results, complete=complete),
                *(self._unused_rules(results) if complete else ()),
            ),
        )

    def _unused_rules(self, results: tuple[CheckResult, ...]) -> list[str]:
        """Name the user's bounds that had no effect in a whole run."""
        cells = {cell.id: cell for cell in self._state.cells}
        return self._state.rules.unused(
            Judged(
                check=one.check,
                quantity=one.quantity,
                model=cells[one.cell].model.name,
                method=cells[one.cell].method,
                device=self._state.tier.name,
            )
            for one in results
            if one.cell in cells
        )

    def finish(self, report: Report, tell: Callable[[str], None]) -> None:
        """Write the report and, where asked for, the baselines; problems are kept for later.

        ``tell`` hears what becomes of each baseline before it is written.
        """
        self.final = report
        settings = self._state.settings
        target = report_path(settings, self._invocation)
        try:
            if target is not None:
                write_atomic(target, encode(report))
                shown = os.path.relpath(target, self._invocation)
                self.lines.append(f"report: {shown}")
            if settings.update and report.complete:
                kinds = sorted(settings.update - {LOCK})
                if kinds:
                    record(
                        report,
                        kinds,
                        self._state.baselines,
                        tell,
                        tier=self._state.tier.fields,
                        anyway=settings.anyway,
                    )
                if LOCK in settings.update:
                    self.lines.extend(_pin(report, settings.rootdir / pins.NAME))
            elif settings.update:
                self.lines.append("baselines not recorded: the run was interrupted")
        except OnDeviceError as error:
            self.problems.append(str(error))

    @staticmethod
    def check_target(settings: Settings, invocation: Path) -> None:
        """Find out before measuring whether the report and the baselines can be written.

        Raises:
            OnDeviceError: They cannot, or the file there is not a report of ours.
        """
        target = report_path(settings, invocation)
        value = settings.given["report"]
        if target is not None:
            problem = _unwritable(target)
            if problem:
                raise value.error(problem) if value.text else OnDeviceError(f"{target}: {problem}")
        if settings.update:
            writable(settings.baselines)
            problem = why_unwritable(settings.baselines)
            if problem and settings.given["baselines"].text is not None:
                raise settings.given["baselines"].error(problem)
            if problem:
                raise OnDeviceError(
                    f"{settings.baselines}: {problem}; choose another folder with"
                    " --ondevice-baselines=DIR"
                )


def report_path(settings: Settings, invocation: Path) -> Path | None:
    """Where the report goes: where the user said, else beside a run of the shipped suites."""
    if settings.report is not None:
        return settings.report
    return invocation / "report.json" if settings.runs_suites else None


def encode(report: Report) -> bytes:
    """Write a report as JSON, indented for people; it holds no NaN and no infinity."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def worst(verdicts: list[Verdict]) -> Verdict | None:
    """Return the verdict that a cell as a whole deserves; None without any."""
    for verdict in _WORST_FIRST:
        if verdict in verdicts:
            return verdict
    return None


def _pin(report: Report, path: Path) -> list[str]:
    """Pin the artifacts of a run, but for those of cells that failed."""
    good = {
        cell.id: pins.Pin(size=cell.artifact.size, sha256=cell.artifact.sha256)
        for cell in report.cells
        if cell.artifact is not None and cell.verdict is not Verdict.FAIL
    }
    left = [cell.id for cell in report.cells if cell.artifact is not None and cell.id not in good]
    refused = [f"not pinned, since they failed: {', '.join(left)}"] if left else []
    return [*(pins.record(path, good) or [f"{pins.NAME}: nothing changed"]), *refused]


def _properties(result: CheckResult) -> list[tuple[str, object]]:
    """Return a verdict as properties of its test case in JUnit XML."""
    bound = result.bound
    facts: dict[str, object] = {
        "cell": result.cell,
        "check": result.check,
        "verdict": str(result.verdict),
        "quantity": result.quantity,
        "value": "" if result.value is None else f"{result.value:.10g}",
        "unit": result.unit,
        "bound": "" if bound is None else show_bound(bound, result.unit),
        "message": result.message,
        "waived": result.waived,
    }
    return [(f"{PREFIX}_{name}", fact) for name, fact in facts.items() if fact]


def _reference(settings: Settings) -> str:
    if settings.reference is None:
        return "made here"
    return "beside" if settings.reference == BESIDE else "a file"


def _layers(number: int) -> str:
    return "all" if number == ALL_LAYERS else str(number)


def _remarks(cells: tuple[CellReport, ...]) -> list[str]:
    quantized = {
        cell.model: cell.artifact
        for cell in cells
        if cell.artifact is not None and cell.artifact.source_quantized
    }
    return [
        f"the source of {model} is quantized already ({facts.source_type}): loss against it is"
        " defined, laws in bits per weight are not"
        for model, facts in quantized.items()
    ]


def _unwritable(path: Path) -> str:
    """Say why a file cannot be written, or why it must not be replaced; empty if it can."""
    if path.is_dir():
        return "it is a folder"
    if problem := why_unwritable(path.parent):
        return problem
    if path.exists():
        try:
            content = path.read_bytes()
            if content.strip():
                msgspec.json.decode(content, type=_ReportMark)
        except (OSError, msgspec.DecodeError):
            return "a file that is no report of ours is there; move it or choose another name"
    return ""


class _ReportMark(msgspec.Struct):
    schema_version: int
    generator: str
