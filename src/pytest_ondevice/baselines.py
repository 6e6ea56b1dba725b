"""Bounds from stored baselines, and recording new ones."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, NoReturn

from .api import Face
from .judgement import ALPHA
from .model.bound import Bound, Source
from .model.quantity import QUANTITIES, Stage
from .model.verdict import Verdict
from .state import check_id
from .storage.baselines import TIER_KINDS, Section, differences, entry_of, pooled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from .model.measurement import Measurement, ProtocolFields
    from .model.report import CellReport, Report
    from .storage.baselines import Baselines, Entry


_STAGES = {
    "size": Stage.HEADER,
    "fidelity": Stage.FIDELITY,
    "capability": Stage.TASKS,
    "memory": Stage.MEMORY,
    "reserve": Stage.RESERVE,
    "speed": Stage.SPEED,
}
"""The stage that a kind of baseline is measured in."""


class BaselineBound(Face):
    """Makes bounds from a cell's stored baseline."""

    def __call__(
        self,
        quantity: str,
        *,
        relative: float = 0.0,
        absolute: float = 0.0,
        higher_is_better: bool = False,
    ) -> Bound:
        """Bound a quantity by its baseline plus a tolerance, the larger of the two given.

        Args:
            quantity: Name of the quantity; it is measured if it was not yet.
            relative: Tolerance as a share of the baseline's value.
            absolute: Tolerance in the quantity's unit.
            higher_is_better: The tolerance goes down, not up.

        Raises:
            ValueError: No baseline is kept of this quantity.
        """
        __tracebackhide__ = True
        known = QUANTITIES.get(quantity)
        if known is None or known.kind is None:
            raise ValueError(f"no baseline is kept of '{quantity}'")
        kind = known.kind
        section, path, reason = self._guard(lambda: self._section(kind))
        if section is not None and quantity not in section.quantities:
            section, reason = None, f"{self._shown(path)} holds no {quantity}"
        if section is None:
            if kind in self._state.settings.update:
                return Bound(source=Source.BASELINE, detail="recorded by this run, none before")
            # What cannot be judged is measured all the same: a person reads it in the report.
            most = None
            if known.stage is Stage.TASKS:
                # Of questions, the first look will do.
                looks = self._guard(lambda: self._bench.looks(self._cell, ALPHA, Stage.TASKS))
                most = looks[0].windows
            self._measured(quantity, most)
            self._take_along(quantity, most)
            self._missing(kind, reason)
        entry = section.quantities[quantity]
        detail = f"{self._shown(path)}, recorded {section.recorded}"
        center = entry.value
        if entry.boards:
            center, spread, boards = pooled(entry)
            detail += f", {boards} board{'s' if boards > 1 else ''}"
            detail += f", {spread:.2g} between them" if spread else ""
        else:
            spread = 0.0
        relative, absolute, noise, why = self._tolerance(quantity, relative, absolute)
        # Boards of a tier differ, whatever tolerance anybody chose.
        absolute += spread
        return Bound(
            source=Source.BASELINE,
            detail=detail + why,
            center=center,
            relative=relative,
            absolute=absolute,
            noise=noise,
            higher_is_better=higher_is_better,
            sample_ids=tuple(entry.windows) if not entry.boards else (),
            samples=tuple(entry.windows.values()) if not entry.boards else (),
        )

    def digests(self) -> tuple[tuple[Mapping[str, tuple[str, ...]], str] | None, str]:
        """Return the digests of logits on record by ISA class and where they are, or why not."""
        __tracebackhide__ = True
        section, path, reason = self._guard(lambda: self._section("fidelity"))
        if section is None:
            return None, reason
        if not section.digests:
            return None, f"{self._shown(path)} holds no digests of logits"
        return (section.digests, self._shown(path)), ""

    def _tolerance(
        self, quantity: str, relative: float, absolute: float
    ) -> tuple[float, float, float, str]:
        """Return the tolerance that counts: the user's row instead of the check's own."""
        cell, tier = self._cell, self._state.tier.name
        row = self._state.rules.tolerance(check_id(self._item), cell.model.name, cell.method, tier)
        if row is None:
            return relative, absolute, 0.0, ""
        noise = 0.0
        if row.noise is not None:
            __tracebackhide__ = True
            if quantity not in self._state.noise:
                self._end(
                    Verdict.UNSUPPORTED,
                    f"requires a calibration of {quantity}, which {row.place} refers to:"
                    " pytest-ondevice calibrate",
                )
            noise = row.noise * self._state.noise[quantity]
        return row.relative or 0.0, row.absolute or 0.0, noise, f"; tolerance from {row.place}"

    def _section(self, kind: str) -> tuple[Section | None, Path, str]:
        """Find the cell's section of one kind that may be compared with, or say why none may."""
        baselines, stage = self._state.baselines, _STAGES[kind]
        model, method = self._cell.model.name, self._cell.method
        own = baselines.path(model, method, kind)
        found = baselines.find(model, method, kind)
        if found is None:
            return None, own, self._absent(kind, own)
        section, path = found
        other = differences(section.protocol, self._bench.protocol(self._cell, stage))
        if kind in TIER_KINDS and self._state.settings.tier is None:
            # Under a name of the user's own, the user vouches for what differs.
            other += differences(section.tier, self._state.tier.fields)
        if other:
            return None, path, f"not comparable with {self._shown(path)}: {'; '.join(other)}"
        return section, path, ""

    def _absent(self, kind: str, own: Path) -> str:
        baselines = self._state.baselines
        model, method = self._cell.model.name, self._cell.method
        for section, path in baselines.foreign(model, method, kind):
            other = differences(section.tier, self._state.tier.fields)
            return f"not comparable with {self._shown(path)}: {'; '.join(other)}"
        text = f"no baseline of {kind}: neither {self._shown(own)} nor a shipped one"
        twin = baselines.twin(self._bench.artifact(self._cell).file.sha256, kind)
        if twin is not None:
            text += f" ({self._shown(twin)} is of the same artifact: was the cell renamed?)"
        return text

    def _missing(self, kind: str, reason: str) -> NoReturn:
        __tracebackhide__ = True
        text = f"{reason}; record one with the same command and --ondevice-update={kind}"
        required = kind in self._state.settings.require_baseline
        self._end(Verdict.NO_BASELINE, text, fails=required)

    def _shown(self, path: Path) -> str:
        """Name a baseline file as its user knows it: from the rootdir, or as shipped."""
        root = self._state.settings.rootdir
        if path.is_relative_to(root):
            return str(path.relative_to(root))
        return f"shipped:{'/'.join(path.parts[-3:])}"


def record(
    report: Report,
    kinds: Sequence[str],
    baselines: Baselines,
    tell: Callable[[str], None],
    *,
    tier: ProtocolFields,
    anyway: bool = False,
) -> None:
    """Write a run's measurements as baselines, telling what changes before it is written.

    Only what stands is recorded: a cell in which anything failed but the comparison with its
    baseline, or whose measurement was disturbed, keeps the baseline it has.

    Args:
        report: The run.
        kinds: What to record of it.
        baselines: Where.
        tell: Hears a line per cell and kind.
        tier: The fields of this machine's tier.
        anyway: Record also what failed or was disturbed.

    Raises:
        OnDeviceError: A file cannot be written; those before it are written whole.
    """
    told = False
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    for cell in report.cells:
        blemish = "" if anyway else _blemish(report, cell)
        for kind in sorted(kinds):
            measured = _of_kind(cell, kind)
            if not measured or cell.artifact is None:
                continue
            told = True
            if blemish:
                tell(f"not recorded: {kind} of {cell.id}: {blemish}")
                continue
            disturbed = [name for name, one in measured.items() if one.disturbed]
            if disturbed and not anyway:
                tell(f"not recorded: {kind} of {cell.id}: disturbed {disturbed[0]}")
                continue
            before = baselines.find(cell.model, cell.method, kind)
            board = report.board if kind in TIER_KINDS else None
            section = Section(
                recorded=today,
                runtime=report.runtime.version,
                runtime_digest=report.runtime.digest,
                cpu=report.device.cpu,
                artifact=cell.artifact.sha256,
                protocol=report.protocols[next(iter(measured.values())).protocol],
                quantities={name: entry_of(one, board) for name, one in sorted(measured.items())},
                tier=tier if kind in TIER_KINDS else {},
                digests=cell.logits if kind == "fidelity" else {},
            )
            old = before[0].quantities if before else {}
            tell(f"recording {kind} of {cell.id}: {_changes(old, section)}")
            baselines.record(cell.model, cell.method, kind, section)
    if told:
        tell(f"baselines are in {baselines.own}")


def _of_kind(cell: CellReport, kind: str) -> dict[str, Measurement]:
    return {
        name: measured
        for name, measured in cell.measurements.items()
        if name in QUANTITIES and QUANTITIES[name].kind == kind and measured.value is not None
    }


def _blemish(report: Report, cell: CellReport) -> str:
    for result in report.checks:
        if result.cell != cell.id or result.verdict is Verdict.PASS or result.advisory:
            continue
        against_baseline = result.bound is not None and result.bound.source is Source.BASELINE
        harmless = result.verdict in {Verdict.UNSUPPORTED, Verdict.NO_BASELINE}
        if not against_baseline and not harmless:
            return f"{result.check} is {result.verdict}"
    return ""


def _changes(old: Mapping[str, Entry], section: Section) -> str:
    parts = []
    for name, entry in section.quantities.items():
        if name not in old:
            parts.append(f"{name} new, {entry.value:.5g}")
        elif old[name].value != entry.value:
            change = entry.value / old[name].value - 1 if old[name].value else float("inf")
            parts.append(f"{name} {old[name].value:.5g} -> {entry.value:.5g} ({change:+.2%})")
    return ", ".join(parts) or "unchanged"
