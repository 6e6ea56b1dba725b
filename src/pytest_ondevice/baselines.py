"""Bounds from stored baselines, and recording new ones."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from .api import Face
from .model.bound import Bound, Source
from .model.quantity import QUANTITIES
from .model.verdict import Verdict
from .storage.baselines import Section, differences, entry_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from .model.measurement import Measurement, ProtocolFields
    from .model.report import CellReport, Report
    from .storage.baselines import Baselines, Entry


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
        protocol = self._guard(lambda: self._bench.protocol(self._cell, known.stage))
        entry, path, reason = self._guard(lambda: self._find(kind, quantity, protocol))
        if entry is None:
            if kind in self._state.settings.update:
                return Bound(source=Source.BASELINE, detail="recorded by this run, none before")
            self._missing(kind, reason)
        return Bound(
            source=Source.BASELINE,
            detail=f"{self._shown(path)}, recorded {entry[1]}",
            center=entry[0].value,
            relative=relative,
            absolute=absolute,
            higher_is_better=higher_is_better,
            sample_ids=tuple(entry[0].windows),
            samples=tuple(entry[0].windows.values()),
        )

    def _find(
        self, kind: str, quantity: str, protocol: ProtocolFields
    ) -> tuple[tuple[Entry, str] | None, Path, str]:
        baselines = self._state.baselines
        model, method = self._cell.model.name, self._cell.method
        own = baselines.path(model, method)
        found = baselines.find(model, method, kind)
        if found is None:
            return None, own, f"no baseline of {kind}: neither {self._shown(own)} nor a shipped one"
        section, path = found
        other = differences(section.protocol, protocol)
        if other:
            return None, path, f"not comparable with {self._shown(path)}: {'; '.join(other)}"
        if quantity not in section.quantities:
            return None, path, f"{self._shown(path)} holds no {quantity}"
        return (section.quantities[quantity], section.recorded), path, ""

    def _missing(self, kind: str, reason: str) -> None:
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


def record(report: Report, kinds: Sequence[str], baselines: Baselines) -> list[str]:
    """Write a run's measurements as baselines; one line per cell and kind about what changed.

    Only what stands is recorded: a cell in which anything failed but the comparison with its
    baseline, or whose measurement was disturbed, keeps the baseline it has.

    Raises:
        OnDeviceError: A file cannot be written; those before it are written whole.
    """
    lines = []
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    for cell in report.cells:
        blemish = _blemish(report, cell)
        for kind in sorted(kinds):
            measured = _of_kind(cell, kind)
            if not measured or cell.artifact is None:
                continue
            if blemish:
                lines.append(f"not recorded: {kind} of {cell.id}: {blemish}")
                continue
            disturbed = [name for name, one in measured.items() if one.disturbed]
            if disturbed:
                lines.append(f"not recorded: {kind} of {cell.id}: disturbed {disturbed[0]}")
                continue
            before = baselines.find(cell.model, cell.method, kind)
            section = Section(
                recorded=today,
                runtime=report.runtime.version,
                runtime_digest=report.runtime.digest,
                cpu=report.device.cpu,
                artifact=cell.artifact.sha256,
                protocol=report.protocols[next(iter(measured.values())).protocol],
                quantities={name: entry_of(one) for name, one in sorted(measured.items())},
            )
            baselines.record(cell.model, cell.method, kind, section)
            old = before[0].quantities if before else {}
            lines.append(f"recorded {kind} of {cell.id}: {_changes(old, section)}")
    if lines:
        lines.append(f"baselines are in {baselines.own}")
    return lines


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
