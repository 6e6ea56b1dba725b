"""Two reports, or two sets of baselines, compared cell by cell: what is worse, what is better."""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from .conclusion import Status
from .conclusion import read as read_report
from .errors import BadFileError, OptionError, did_you_mean
from .judgement import ALPHA, ROUNDING, is_answered, show
from .model.change import Change, Finding, overall
from .model.comparison import (
    SCHEMA_VERSION,
    CellComparison,
    Comparison,
    Difference,
    Kind,
    Presence,
    Side,
)
from .model.measurement import ProtocolFields, digest_of
from .model.verdict import Verdict
from .proportions import unconditional
from .stats import paired_excess, relative_change
from .storage.baselines import PORTABLE, BaselineFile, Section
from .storage.baselines import SCHEMA_VERSION as BASELINE_VERSION
from .storage.files import decode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from .model.report import Report

_DIFFERENT_RUNS = "advisory: measured in different runs"
_DECIDED = frozenset(Finding) - {Finding.IDENTICAL, Finding.UNDECIDED}
_ABSURD = 1e100
"""What is larger is not compared: squares of it would overflow."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How a quantity may change before it is worse.

    Attributes:
        relative: Largest tolerated change for the worse, as a share of what it was.
        absolute: The same in the quantity's unit; the larger of the two counts.
        higher_is_better: Less is worse.
        windows: Its figures per window decide, paired; without them nothing does.
        noisy: A change for the better within the tolerance is none.
        advisory: Why it decides nothing; empty if it does.
    """

    relative: float = 0.0
    absolute: float = 0.0
    higher_is_better: bool = False
    windows: bool = False
    noisy: bool = False
    advisory: str = ""


_SIZE = Tolerance(relative=0.005)
_PART = Tolerance(noisy=True, advisory="advisory: a part of peak_memory")
_SLOWER = Tolerance(noisy=True, advisory=_DIFFERENT_RUNS)
_FASTER = Tolerance(noisy=True, advisory=_DIFFERENT_RUNS, higher_is_better=True)
_NONE = Tolerance()
_ALL = Tolerance(higher_is_better=True)

TOLERANCES: Mapping[str, Tolerance] = MappingProxyType(
    {
        "mean_kld": Tolerance(relative=0.05, absolute=0.0003, windows=True),
        "ln_ppl_ratio": Tolerance(relative=0.1, absolute=0.02, windows=True),
        "ln_ppl": Tolerance(absolute=0.005, windows=True),
        "same_top": Tolerance(absolute=0.02, windows=True, higher_is_better=True),
        "mean_square_dp": Tolerance(relative=0.2, windows=True),
        "accuracy": Tolerance(absolute=0.03, windows=True, higher_is_better=True),
        "choice_accuracy": Tolerance(absolute=0.03, windows=True, higher_is_better=True),
        "cloze_accuracy": Tolerance(absolute=0.05, windows=True, higher_is_better=True),
        "exact_accuracy": Tolerance(absolute=0.05, windows=True, higher_is_better=True),
        "answer_flips": Tolerance(absolute=0.03, windows=True),
        "unscored_answers": _NONE,
        "effective_bpw": _SIZE,
        "body_bpw": _SIZE,
        "file_size": _SIZE,
        "weight_bytes": _SIZE,
        "tensor_bytes": _SIZE,
        "runtime_tensor_bytes": _SIZE,
        "peak_memory": Tolerance(relative=0.02, absolute=3 * 2**20, noisy=True),
        "weights_memory": _PART,
        "kv_memory": _PART,
        "compute_memory": _PART,
        "unattributed_memory": _PART,
        "reserved_memory": _NONE,
        "kv_reserve": _NONE,
        "compute_reserve": _NONE,
        "nonfinite": _NONE,
        "block_anomalies": _NONE,
        "tensors_valid": _ALL,
        "pin_matches": _ALL,
        "file_type_matches": _ALL,
        "tokenizer_matches": _ALL,
        "chat_template_matches": _ALL,
        "decode_speed": _FASTER,
        "prefill_speed": _FASTER,
        "load_time": _SLOWER,
        "ttft": _SLOWER,
        "quantize_time": _SLOWER,
        "quantize_cpu_time": _SLOWER,
        "quantize_peak_memory": _SLOWER,
    }
)
"""The tolerances of the checks, by quantity. What is not named here has no direction."""


@dataclass(frozen=True, slots=True)
class _Figure:
    """A quantity of one side; ``stored`` figures were rounded to the digits of a baseline."""

    value: float | None
    unit: str
    n: int
    error: float | None
    windows: Mapping[str, float]
    digest: str
    protocol: ProtocolFields | None
    disturbed: tuple[str, ...] = ()
    advisory: bool = False
    stored: bool = False


@dataclass(frozen=True, slots=True)
class _Cell:
    """A cell of one side: its figures, the checks that passed, and why others failed."""

    verdict: Verdict | None
    artifact: str
    figures: Mapping[str, _Figure]
    passed: frozenset[str] = frozenset()
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Read:
    kind: Kind
    side: Side
    cells: Mapping[str, _Cell]
    fields: Mapping[str, str]
    notes: tuple[str, ...] = ()


def compare(old: Path, new: Path, cells: str | None = None) -> Comparison:
    """Compare two reports, or two baseline files or folders of them.

    Args:
        old: What it was.
        new: What it is.
        cells: Only the cells whose id matches this pattern; ``*`` and ``?`` stand for characters.

    Raises:
        BadFileError: One of them cannot be read, or is neither report nor baseline.
        OptionError: They are of different kinds, or no cell matches.
    """
    before, after = _read(old), _read(new)
    if before.kind is not after.kind:
        raise OptionError(
            f"{old} is {_NAMES[before.kind]}, {new} is {_NAMES[after.kind]}; give two reports or"
            " two baselines"
        )
    ids = [*after.cells, *(name for name in before.cells if name not in after.cells)]
    chosen = [name for name in ids if cells is None or fnmatch.fnmatchcase(name, cells)]
    if cells is not None and not chosen:
        raise OptionError(f"--cells {cells}: no cell matches{did_you_mean(cells, ids)}")
    rows = tuple(_row(name, before.cells.get(name), after.cells.get(name)) for name in chosen)
    return Comparison(
        schema_version=SCHEMA_VERSION,
        kind=before.kind,
        old=before.side,
        new=after.side,
        finding=overall(row.finding for row in rows if row.finding is not None),
        differences=_differences(before.fields, after.fields),
        cells=rows,
        notes=(*before.notes, *(note for note in after.notes if note not in before.notes)),
    )


def status(found: Comparison) -> Status:
    """Say what a comparison comes to, as an exit status.

    A cell that is gone, or of which nothing could be compared, is not decided; neither is a
    comparison without any cell that both sides have.
    """
    both = [row for row in found.cells if row.presence is Presence.BOTH]
    if any(row.finding is Finding.WORSE for row in both):
        return Status.REGRESSED
    undecided = any(row.finding in {None, Finding.UNDECIDED} for row in both)
    gone = any(row.presence is Presence.OLD for row in found.cells)
    return Status.UNDECIDED if undecided or gone or not both else Status.PASSED


# -- reading

_NAMES = {Kind.REPORT: "a report", Kind.BASELINES: "a set of baselines"}


class _Head(msgspec.Struct):
    """What tells a report from a baseline."""

    schema_version: object = None
    schema: object = None
    sections: object = None


def _read(path: Path) -> _Read:
    if path.is_dir():
        return _read_folder(path)
    head = _head(path)
    if head is not None and head.schema_version is not None:
        return _of_report(path, read_report(path))
    if head is not None and head.schema is not None:
        return _of_baselines(path, [(_read_baseline(path), "")], ())
    raise BadFileError(path, "it is neither a report nor a baseline: no schema_version @ $")


def _read_folder(folder: Path) -> _Read:
    found: list[tuple[BaselineFile, str]] = []
    notes = []
    for path in sorted(folder.rglob("*.json")):
        inside = path.relative_to(folder)
        head = _head(path)
        if head is None or head.schema is None or head.sections is None:
            notes.append(f"left out, for it is no baseline: {inside}")
            continue
        tier = inside.parts[-3] if len(inside.parts) > 2 else ""
        found.append((_read_baseline(path), "" if tier == PORTABLE else tier))
    if not found:
        report = folder / "report.json"
        hint = f"; did you mean {report}?" if report.is_file() else ""
        raise BadFileError(folder, f"there is no baseline in this folder{hint}")
    return _of_baselines(folder, found, tuple(notes))


def _head(path: Path) -> _Head | None:
    """Read what a JSON file is; None if it is no object.

    Raises:
        BadFileError: It cannot be read, or is no JSON.
    """
    if path.exists() and not path.is_file():
        raise BadFileError(path, "cannot read it: it is no regular file")
    try:
        return decode(path.read_bytes(), _Head)
    except OSError as error:
        raise BadFileError(path, f"cannot read it: {error.strerror}") from error
    except msgspec.ValidationError:
        return None
    except msgspec.DecodeError as error:
        raise BadFileError(path, f"it is neither a report nor a baseline: {error} @ $") from error


def _read_baseline(path: Path) -> BaselineFile:
    try:
        read = decode(path.read_bytes(), BaselineFile)
    except OSError as error:
        raise BadFileError(path, f"cannot read it: {error.strerror}") from error
    except msgspec.DecodeError as error:
        problem, _, place = str(error).partition(" - at `")
        raise BadFileError(path, f"not a baseline: {problem} @ {place.rstrip('`') or '$'}") from (
            error
        )
    if read.schema != BASELINE_VERSION:
        raise BadFileError(
            path,
            f"baseline schema {read.schema} @ $.schema; this version reads {BASELINE_VERSION}",
        )
    return read


def _of_report(path: Path, report: Report) -> _Read:
    device, runtime = report.device, report.runtime
    fields = {
        "runtime": f"{runtime.name} {runtime.version}",
        "runtime's libraries": runtime.digest,
        "tier": report.tier,
        "board": report.board,
        **{name: str(value) for name, value in msgspec.structs.asdict(device).items()},
        **{f"setting {name}": value for name, value in report.settings.items()},
    }
    cells = {}
    for cell in report.cells:
        checks = [
            one
            for one in report.checks
            if one.cell == cell.id and not one.advisory and not one.waived
        ]
        failed = {
            one.check: (one.message.splitlines() or [""])[0]
            for one in checks
            if one.verdict is Verdict.FAIL
        }
        passed = frozenset(one.check for one in checks if one.verdict is Verdict.PASS)
        figures = {
            name: _Figure(
                value=one.value,
                unit=one.unit,
                n=one.n,
                error=one.error,
                windows=dict(zip(one.sample_ids, one.samples, strict=False)),
                digest=one.protocol,
                protocol=report.protocols.get(one.protocol),
                disturbed=one.disturbed,
                advisory=one.advisory,
            )
            for name, one in cell.measurements.items()
        }
        artifact = cell.artifact.sha256 if cell.artifact is not None else ""
        cells[cell.id] = _Cell(cell.verdict, artifact, figures, passed - {*failed}, failed)
    side = Side(
        path=str(path),
        generator=report.generator,
        created=report.created,
        complete=report.complete,
        device=f"{device.cpu} ({device.system} {device.machine})",
        tier=report.tier,
        board=report.board,
        runtime=f"{runtime.name} {runtime.version}",
    )
    interrupted = () if report.complete else (f"{path}: the run was interrupted before its end",)
    return _Read(Kind.REPORT, side, cells, fields, interrupted)


def _of_baselines(
    path: Path, files: Sequence[tuple[BaselineFile, str]], notes: tuple[str, ...]
) -> _Read:
    cells: dict[str, _Cell] = {}
    sections: list[Section] = []
    for file, tier in files:
        name = f"{file.model}-{file.method}{f' ({tier})' if tier else ''}"
        if name in cells:
            raise BadFileError(path, f"two files in it are baselines of {name}")
        figures = {
            quantity: _Figure(
                value=entry.value,
                unit=entry.unit,
                n=entry.n,
                error=entry.error,
                windows=entry.windows,
                digest=digest_of(section.protocol),
                protocol=section.protocol,
                stored=True,
            )
            for section in file.sections.values()
            for quantity, entry in section.quantities.items()
        }
        artifacts = _joined(section.artifact for section in file.sections.values())
        cells[name] = _Cell(None, artifacts, figures)
        sections.extend(file.sections.values())
    days = sorted({section.recorded for section in sections})
    device = _joined(section.cpu for section in sections)
    runtime = _joined(section.runtime for section in sections)
    side = Side(
        path=str(path),
        created=" to ".join(dict.fromkeys([days[0], days[-1]])) if days else "",
        device=device,
        tier=_joined(tier for _, tier in files),
        runtime=runtime,
    )
    libraries = _joined(section.runtime_digest for section in sections)
    fields = {"cpu": device, "runtime": runtime, "runtime's libraries": libraries}
    return _Read(Kind.BASELINES, side, cells, fields, notes)


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(sorted({text for text in texts if text}))


def _differences(
    old: Mapping[str, object], new: Mapping[str, object], prefix: str = ""
) -> tuple[Difference, ...]:
    return tuple(
        Difference(
            field=f"{prefix}{name}",
            old=str(old.get(name, "absent")),
            new=str(new.get(name, "absent")),
        )
        for name in dict.fromkeys([*old, *new])
        if (name in old, old.get(name)) != (name in new, new.get(name))
    )


# -- cells


def _row(name: str, old: _Cell | None, new: _Cell | None) -> CellComparison:
    if new is None or old is None:
        return CellComparison(
            id=name,
            presence=Presence.OLD if new is None else Presence.NEW,
            old_verdict=old.verdict if old is not None else None,
            new_verdict=new.verdict if new is not None else None,
        )
    changes: list[Change] = []
    advisory: list[Change] = []
    differences: dict[Difference, None] = {}
    if old.artifact != new.artifact:
        fields = {"artifact": old.artifact}, {"artifact": new.artifact}
        differences.update(dict.fromkeys(_differences(*fields)))
    for quantity, before in old.figures.items():
        after = new.figures.get(quantity)
        aside = _aside(quantity, before, old, new)
        if after is not None:
            differences.update(dict.fromkeys(_incomparable(before, after)))
        change = _change(quantity, before, after)
        if aside and change.finding in _DECIDED:
            change = msgspec.structs.replace(change, finding=Finding.UNDECIDED, evidence=aside)
        (advisory if aside else changes).append(change)
    finding, decided_by, evidence = _finding(old, new, changes)
    return CellComparison(
        id=name,
        presence=Presence.BOTH,
        old_verdict=old.verdict,
        new_verdict=new.verdict,
        finding=finding,
        decided_by=decided_by,
        evidence=evidence,
        changes=tuple(changes),
        advisory=tuple(advisory),
        added=tuple(quantity for quantity in new.figures if quantity not in old.figures),
        differences=tuple(differences),
    )


def _aside(quantity: str, before: _Figure, old: _Cell, new: _Cell) -> str:
    """Say why a quantity decides nothing; empty if it does."""
    tolerance = TOLERANCES.get(quantity)
    if tolerance is not None and tolerance.advisory:
        return tolerance.advisory
    after = new.figures.get(quantity)
    if before.advisory or (after is not None and after.advisory):
        return "advisory: no verdict depends on it"
    if quantity == "ln_ppl" and "ln_ppl_ratio" in old.figures and "ln_ppl_ratio" in new.figures:
        # As in the gate: the likelihood itself is held only where there is no reference's.
        return "advisory: ln_ppl_ratio decides"
    return ""


def _finding(old: _Cell, new: _Cell, changes: Sequence[Change]) -> tuple[Finding | None, str, str]:
    finding = overall(change.finding for change in changes)
    broken = [check for check in new.failed if check in old.passed]
    if finding is not Finding.WORSE and broken:
        told = f"{broken[0]} passed and now fails: {new.failed[broken[0]]}".rstrip(": ")
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        return Finding.WORSE, "", f"{told}{more}"
    if finding is None:
        return None, "", "nothing that decides was measured in both"
    chosen = max((one for one in changes if one.finding is finding), key=_extent)
    if finding is Finding.IDENTICAL:
        return finding, "", f"all {len(changes)} quantities that decide are the same"
    return finding, chosen.quantity, chosen.evidence


def _extent(change: Change) -> float:
    """How far a change goes, in tolerances, so that those of several quantities can be ranked."""
    if change.change is None or change.before is None:
        return math.inf
    tolerance = TOLERANCES.get(change.quantity, _NONE)
    moved = abs(change.change) * (abs(change.before) if change.relative else 1.0)
    slack = max(tolerance.relative * abs(change.before), tolerance.absolute)
    return moved / (slack or 0.01 * abs(change.before) or 1.0)


# -- quantities


def _incomparable(old: _Figure, new: _Figure) -> tuple[Difference, ...]:
    """Name the fields that keep two figures from being compared; empty if they may be."""
    if old.unit != new.unit:
        return (Difference(field="unit", old=old.unit, new=new.unit),)
    if old.digest == new.digest:
        return ()
    stage = str((new.protocol or old.protocol or {}).get("stage", ""))
    prefix = f"{stage} protocol, " if stage else "protocol, "
    if old.protocol is not None and new.protocol is not None:
        found = _differences(old.protocol, new.protocol, prefix)
        if found:
            return found
    return (Difference(field=f"{prefix}digest", old=old.digest, new=new.digest),)


def _change(quantity: str, old: _Figure, new: _Figure | None) -> Change:
    if new is None:
        return _undecided(quantity, old, None, "only the old one has it")
    other = _incomparable(old, new)
    if other:
        told = "; ".join(f"{one.field}: {one.old} before, {one.new} after" for one in other)
        return _undecided(quantity, old, new, f"not comparable: {told}")
    before, after = _finite(old), _finite(new)
    if not before or not after:
        finding = Finding.WORSE if before else Finding.BETTER if after else Finding.UNDECIDED
        side = "after" if before else "before" if after else "before and after"
        return _undecided(quantity, old, new, f"not finite {side}", finding)
    tolerance = TOLERANCES.get(quantity)
    for name, one in (("before", old), ("after", new)):
        if one.disturbed:
            why = f"disturbed {name}: {'; '.join(one.disturbed)}"
            return _undecided(quantity, old, new, why)
    if old.windows and new.windows:
        return _paired(quantity, tolerance, old, new)
    return _plain(quantity, tolerance, old, new)


def _undecided(
    quantity: str,
    old: _Figure,
    new: _Figure | None,
    evidence: str,
    finding: Finding = Finding.UNDECIDED,
) -> Change:
    return Change(
        quantity=quantity,
        unit=old.unit,
        before=old.value,
        after=new.value if new is not None else None,
        finding=finding,
        evidence=evidence,
    )


def _finite(figure: _Figure) -> bool:
    """Whether a figure and its windows are numbers that can be reckoned with."""
    return figure.value is not None and all(
        abs(value) < _ABSURD for value in (figure.value, *figure.windows.values())
    )


def _paired(quantity: str, tolerance: Tolerance | None, old: _Figure, new: _Figure) -> Change:
    """Compare window by window; a change is worse or better beyond what chance explains.

    With the one-sided interval of error ``ALPHA`` at each end: worse if its lower end is above the
    tolerance, better if the upper end is below 0, no worse if that is within the tolerance.
    """
    names = [name for name in old.windows if name in new.windows]
    if not names:
        return _undecided(quantity, old, new, "no window in common")
    then = [old.windows[name] for name in names]
    now = [new.windows[name] for name in names]
    n, mean = len(names), math.fsum(then) / len(names)
    whole = n == len(old.windows) == len(new.windows)
    over = f"paired over {n} windows" if whole else f"paired over the {n} windows in common"
    same = all(math.isclose(a, b, rel_tol=ROUNDING) for a, b in zip(now, then, strict=True))
    allowed = tolerance or _NONE
    by_share = abs(mean) * allowed.relative >= allowed.absolute and mean != 0
    if by_share:
        ratio = relative_change(now, then)
        shift, error = math.copysign(1.0, mean) * ratio.value, ratio.error
    else:
        moved = paired_excess(now, then, alpha=ALPHA).estimate
        shift, error = moved.value, moved.error
    if same:
        finding, words = Finding.IDENTICAL, "identical"
    elif tolerance is None:
        finding, words = Finding.CHANGED, "which way is better is not known"
    else:
        weigh = _counted if is_answered(quantity) else partial(_weighed, by_share=by_share)
        finding = weigh(now, then, tolerance)
        words = _WORDS[finding].format(_slack(tolerance, old.unit, by_share=by_share))
    return Change(
        quantity=quantity,
        unit=old.unit,
        before=old.value if whole else mean,
        after=new.value if whole else math.fsum(now) / n,
        change=0.0 if same else _number(shift),
        relative=by_share,
        error=_number(error),
        n=n,
        finding=finding,
        evidence=f"{over}: {words}",
    )


_WORDS = {
    Finding.WORSE: "beyond the tolerance of {}",
    Finding.BETTER: "better by more than chance explains",
    Finding.NO_WORSE: "within the tolerance of {}",
    Finding.UNDECIDED: "too uncertain to tell it from the tolerance of {}",
}


def _weighed(
    now: Sequence[float], then: Sequence[float], tolerance: Tolerance, *, by_share: bool
) -> Finding:
    sign = -1.0 if tolerance.higher_is_better else 1.0
    signed = [sign * value for value in now], [sign * value for value in then]
    beyond = paired_excess(
        *signed,
        relative=tolerance.relative if by_share else 0.0,
        absolute=0.0 if by_share else tolerance.absolute,
        alpha=ALPHA,
    )
    if beyond.lower > 0:
        return Finding.WORSE
    if paired_excess(*signed, alpha=ALPHA).upper < 0:
        return Finding.BETTER
    return Finding.NO_WORSE if beyond.upper <= 0 else Finding.UNDECIDED


def _counted(now: Sequence[float], then: Sequence[float], tolerance: Tolerance) -> Finding:
    """Weigh shares of the same items, as the gate does: by how many went which way."""
    pairs = list(zip(now, then, strict=True))
    lost, gained = sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)
    low, high = unconditional(lost, gained, len(pairs), ALPHA)
    if not tolerance.higher_is_better:
        low, high = -high, -low
    if high < -tolerance.absolute:
        return Finding.WORSE
    if low > 0:
        return Finding.BETTER
    return Finding.NO_WORSE if low >= -tolerance.absolute else Finding.UNDECIDED


def _plain(quantity: str, tolerance: Tolerance | None, old: _Figure, new: _Figure) -> Change:
    """Compare single figures: sizes and counts exactly, memory beyond its repeatability."""
    before, after = old.value, new.value
    assert before is not None  # both were found finite
    assert after is not None
    digits = ROUNDING if old.stored or new.stored else 0.0
    if tolerance is None or tolerance.windows:
        digits = ROUNDING
    same = math.isclose(after, before, rel_tol=digits)
    shift = after - before
    finding, words = Finding.IDENTICAL, "identical"
    if not same and tolerance is None:
        finding, words = Finding.CHANGED, "which way is better is not known"
    elif not same and tolerance is not None and tolerance.windows:
        finding, words = Finding.UNDECIDED, "without figures per window it may be chance"
    elif not same and tolerance is not None:
        share = abs(before) * tolerance.relative
        slack = max(share, tolerance.absolute)
        worse = -shift if tolerance.higher_is_better else shift
        told = _slack(tolerance, old.unit, by_share=share >= tolerance.absolute)
        if worse > slack:
            finding, words = Finding.WORSE, f"beyond the tolerance of {told}"
        elif worse < (-slack if tolerance.noisy else 0.0):
            finding, words = Finding.BETTER, "better"
        else:
            finding, words = Finding.NO_WORSE, f"within the tolerance of {told}"
    relative = before != 0
    return Change(
        quantity=quantity,
        unit=old.unit,
        before=before,
        after=after,
        change=0.0 if same else _number(shift / abs(before) if relative else shift),
        relative=relative,
        error=_unpaired_error(old, new) if relative else None,
        n=min(old.n, new.n),
        finding=finding,
        evidence=words,
    )


def _unpaired_error(old: _Figure, new: _Figure) -> float | None:
    """Standard error of after / before - 1 of independent figures; None where one has none."""
    if not old.value or new.value is None or old.error is None or new.error is None:
        return None
    return _number(math.hypot(new.error, old.error * new.value / old.value) / abs(old.value))


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _slack(tolerance: Tolerance, unit: str, *, by_share: bool) -> str:
    if by_share and tolerance.relative:
        return f"{100 * tolerance.relative:.3g} %"
    return show(tolerance.absolute, unit)
