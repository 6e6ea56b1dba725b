"""The summary at the end of a terminal session: one row per cell, within 100 columns."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

from ..model.bound import Source
from ..model.change import Finding
from ..model.verdict import Verdict
from .text import columns, judged_laws

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pytest

    from ..model.measurement import Measurement
    from ..model.report import CellReport, CheckResult, Report, TaskReport

ABSENT = "-"
DISTURBED = "~"
_COLORS = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.BLOCKED: "red"}
_MIB = 2**20
_WIDTH = 100
_FEW = 6
_NAME = 36
_EXPLAINED = 1.05
"""Memory as shipped is explained from so many times the exact protocol's on."""


def summarise(reporter: pytest.TerminalReporter, report: Report, lines: Sequence[str]) -> None:
    """Write the table, its footnotes and the closing lines."""
    reporter.currentfspath = None  # pytest has ended its last line; no other is open
    reporter.section("on-device gate")
    header, *rows = table(report)
    reporter.write_line(header, bold=True)
    for row, cell in zip(rows, report.cells, strict=True):
        color = _COLORS.get(cell.verdict, "yellow") if cell.verdict else "yellow"
        head, verdict = row[: row.rindex("  ") + 2], row[row.rindex("  ") + 2 :]
        reporter.write(head)
        reporter.write_line(verdict, **{color: True})
    drawn = (succession, answers, resources, relations)
    for line in [line for draw in drawn for line in draw(report)]:
        reporter.write_line(line)
    for note in [*footnotes(report), *report.notes, *lines]:
        reporter.write_line(note)


def table(report: Report) -> list[str]:
    """Draw the table as lines of equal layout: a header, then a row per cell."""
    columns: list[tuple[str, Callable[[CellReport], str]]] = [
        ("BPW", _bpw),
        ("MiB", lambda cell: f"{cell.artifact.size / _MIB:.1f}" if cell.artifact else ABSENT),
        ("KLD (nats)", _kld),
        ("PPL ratio", _ppl_ratio),
        ("peak MiB", lambda cell: _figure(cell, "peak_memory", ".1f", _MIB)),
        ("pp t/s", lambda cell: _figure(cell, "prefill_speed", ".0f")),
        ("tg t/s", lambda cell: _figure(cell, "decode_speed", ".0f")),
    ]
    texts = [[title, *(show(cell) for cell in report.cells)] for title, show in columns]
    widths = [max(map(len, column)) for column in texts]
    names = ["cell", *(cell.id for cell in report.cells)]
    verdicts = ["verdict", *(_verdict(report, cell) for cell in report.cells)]
    # Whatever figures and verdicts leave of 100 columns is for the cell's name.
    room = 98 - sum(width + 2 for width in widths) - max(map(len, verdicts))
    width = min(max(map(len, names)), max(room, 12))
    lines = []
    for index, name in enumerate(names):
        figures = "".join(
            f"  {column[index]:>{size}}" for column, size in zip(texts, widths, strict=True)
        )
        lines.append(f"{_cut(name, width):<{width}}{figures}  {verdicts[index]}")
    return lines


def succession(report: Report) -> list[str]:
    """Draw what became of each cell's predecessor; nothing where none was compared with."""
    changes = [one for one in report.checks if one.change is not None]
    checks = list(dict.fromkeys(one.check for one in changes))
    if not checks:
        return []
    shown = {(one.cell, one.check): _change(one) for one in changes}
    rows = [("against its predecessor", *(check.partition(".")[2] for check in checks), "")]
    for cell in report.cells:
        if any((cell.id, check) in shown for check in checks):
            figures = (shown.get((cell.id, check), ABSENT) for check in checks)
            rows.append((cell.id, *figures, str(cell.finding or Finding.UNDECIDED)))
        elif any(one.cell == cell.id and one.check in checks for one in report.checks):
            rows.append((cell.id, *(ABSENT for _ in checks), "no predecessor"))
    return columns(rows, right=tuple(range(1, len(checks) + 1)))


_MEMORY: tuple[tuple[str, str, str, float], ...] = (
    ("reserve", "reserved_memory", ".1f", _MIB),
    ("weights", "weights_memory", ".1f", _MIB),
    ("KV", "kv_memory", ".1f", _MIB),
    ("compute", "compute_memory", ".1f", _MIB),
    ("other", "unattributed_memory", ".1f", _MIB),
    ("as shipped", "deployed_memory", ".1f", _MIB),
)
_TIME: tuple[tuple[str, str, str, float], ...] = (
    ("cold load ms", "load_time_cold", ".0f", 1e-3),
    ("warm ms", "load_time", ".0f", 1e-3),
    ("TTFT ms", "ttft", ".0f", 1e-3),
    ("pp512", "prefill_speed_512", ".0f", 1),
    ("tg@512", "decode_speed_d512", ".0f", 1),
    ("roofline", "roofline_fraction", ".2f", 1),
    ("J/token", "decode_energy", ".3g", 1),
)
"""Titles, quantities, formats and units of what is drawn below the table."""


def answers(report: Report) -> list[str]:
    """Draw what each cell answered to the questions; nothing where none was asked."""
    title = ("questions", "set", "right", "of", "accuracy", "95 %", "lost", "gained", "p", "sees")
    rows: list[tuple[str, ...]] = [title]
    several = len({cell.model for cell in report.cells}) > 1
    for cell in report.cells:
        name = cell.id if several else cell.method
        rows += [(name, *_answered(one)) for one in cell.tasks]
    if len(rows) == 1:
        return []
    # Whatever the figures leave of the width is for both names.
    _, sets, *figures = (max(map(len, column)) for column in zip(*rows, strict=True))
    room = _WIDTH - sum(width + 2 for width in figures) - 2
    sets = min(sets, room // 3)
    fit = [(_cut(row[0], room - sets), _cut(row[1], sets), *row[2:]) for row in rows]
    return ["", *columns(fit, right=tuple(range(2, 10)))]


def _answered(task: TaskReport) -> tuple[str, ...]:
    """Say how many answers are right, which ones flipped, and what change would be seen."""
    within = f"{task.lower:.3f}-{task.upper:.3f}"
    figures = (str(task.right), str(task.n), f"{task.accuracy:.3f}", within)
    flips = [ABSENT if one is None else str(one) for one in (task.lost, task.gained)]
    p = ABSENT if task.mcnemar_p is None else f"{task.mcnemar_p:.2g}"
    seen = ABSENT if task.detectable is None else f"{task.detectable:.3f}"
    return (task.name, *figures, *flips, p, seen)


def resources(report: Report) -> list[str]:
    """Draw what running each cell takes beside the table's figures; nothing where none is there."""
    memory = _figures(report, "memory in MiB", _MEMORY)
    time = _figures(report, "speed", _TIME)
    return [*memory, *(_shipped(report) if memory else []), *time]


def _figures(report: Report, title: str, shown: Sequence[tuple[str, str, str, float]]) -> list[str]:
    """Draw some quantities of each cell, as far as any cell has them."""
    kept = [one for one in shown if any(_figure(cell, *one[1:]) != ABSENT for cell in report.cells)]
    if not kept:
        return []
    rows = [(title, *(one[0] for one in kept))]
    several = len({cell.model for cell in report.cells}) > 1
    for cell in report.cells:
        name = cell.id if several else cell.method
        figures = [_figure(cell, *one[1:]) for one in kept]
        if set(figures) != {ABSENT}:
            rows.append((_cut(name, _NAME), *figures))
    return ["", *columns(rows, right=tuple(range(1, len(kept) + 1)))]


def _shipped(report: Report) -> list[str]:
    """Explain the cell whose memory as shipped is furthest from that of the exact protocol."""
    found = []
    for cell in report.cells:
        shipped = cell.measurements.get("deployed_memory")
        exact = cell.measurements.get("peak_memory")
        if shipped and exact and shipped.value and exact.value and shipped.detail:
            found.append((shipped.value / exact.value, f"{cell.method} {shipped.detail}"))
    share, words = max(found, default=(1.0, ""))
    return _wrapped(words, "") if share > _EXPLAINED else []


def relations(report: Report) -> list[str]:
    """Draw the laws: for each model or family what was found; nothing where none was held."""
    if not report.laws:
        return []
    judged = judged_laws(report)
    held = [law for law in report.laws if law.verdict is not Verdict.UNSUPPORTED]
    rows = [("law", "of", "verdict")]
    rows += [(law.law, law.subject, str(judged[law.law, law.subject])) for law in held]
    header, *heads = columns(rows)
    width = max(map(len, (header, *heads)))
    lines = ["", f"{header:{width}}  found"] if held else [""]
    for head, law in zip(heads, held, strict=True):
        lines += _wrapped(law.message, f"{head:{width}}  ")
        for one in law.anomalies[:_FEW]:
            lines += _wrapped(one, "    ")
        if len(law.anomalies) > _FEW:
            lines.append(f"    and {len(law.anomalies) - _FEW} more, in the report")
    wanting: dict[str, list[str]] = {}
    for law in report.laws:
        if law.verdict is Verdict.UNSUPPORTED:
            why = law.message.removeprefix("needs ").removeprefix("requires ")
            said = f"{law.subject} {why}"
            wanting.setdefault(said, []).append(law.law)
    for said, names in wanting.items():
        subject, _, why = said.partition(" ")
        lines += _wrapped(f"not held for {subject}: {', '.join(names)}: requires {why}", "")
    return lines


def _cut(name: str, width: int) -> str:
    """Shorten a name to a width, marked as cut."""
    return name if len(name) <= width else f"{name[: width - 1]}…"


def _wrapped(text: str, lead: str) -> list[str]:
    """Break text to the width of the table, beside its lead, or below one that is long."""
    indent, lines = len(lead), []
    if indent > _WIDTH // 2:
        lines, indent = [lead.rstrip()], 4
    wrapped = textwrap.wrap(text, _WIDTH - indent, break_on_hyphens=False) or [""]
    lines += [" " * indent + line for line in wrapped]
    if indent == len(lead):
        lines[0] = lead + wrapped[0]
    return lines


def _change(result: CheckResult) -> str:
    change = result.change
    if change is None or change.change is None:
        return ABSENT
    if change.finding is Finding.IDENTICAL:
        return "identical"
    error = ""
    if change.error is not None:
        error = f" ±{change.error:.1%}" if change.relative else f" ±{change.error:.2g}"
    moved = f"{change.change:+.1%}" if change.relative else f"{change.change:+.4g}"
    return f"{moved}{error}"


def _identity(report: Report) -> list[str]:
    """Say whose logits are those on record, and what the others' change comes to."""
    found = [one for one in report.checks if one.check == "fidelity.identity" and one.finding]
    changed = [one.cell for one in found if one.finding is Finding.CHANGED]
    if not found:
        return []
    same = f"logits identical to those on record: {len(found) - len(changed)} of {len(found)} cells"
    words = []
    for cell in changed:
        others = {
            one.verdict
            for one in report.checks
            if one.cell == cell
            and one.check.startswith("fidelity.")
            and one.check != "fidelity.identity"
            and one.bound is not None
            and one.bound.source is Source.BASELINE
        }
        if Verdict.FAIL in others:
            words.append(f"{cell} (worse)")
        elif others <= {Verdict.PASS} and others:
            words.append(f"{cell} (no worse)")
        else:
            words.append(f"{cell} (undecided)")
    return [f"{same}; changed: {', '.join(words)}" if words else same]


def footnotes(report: Report) -> list[str]:
    """Explain the marks that the table uses, and count what it cannot show."""
    notes = []
    disturbed = {
        reason
        for cell in report.cells
        for measured in cell.measurements.values()
        for reason in measured.disturbed
    }
    if disturbed:
        notes.append(f"{DISTURBED} disturbed: {'; '.join(sorted(disturbed))}")
    notes.extend(_identity(report))
    counts = {
        verdict: sum(result.verdict is verdict for result in report.checks) for verdict in Verdict
    }
    waived = sum(bool(result.waived) for result in report.checks)
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    reused = sum(one.reused for cell in report.cells for one in cell.measurements.values())
    total = sum(len(cell.measurements) for cell in report.cells)
    notes.append(
        f"{len(report.checks)} verdicts: {told or 'none'}; {total - reused} figures measured,"
        f" {reused} reused; speed is advisory{f'; {waived} waived' if waived else ''}"
    )
    if not report.complete:
        notes.append("stopped before the end; what was measured is kept")
    return notes


def _figure(cell: CellReport, name: str, spec: str, unit: float = 1) -> str:
    measured = cell.measurements.get(name)
    if measured is None:
        return ABSENT
    if measured.value is None:
        return "nan"
    return f"{measured.value / unit:{spec}}{_mark(measured)}"


def _bpw(cell: CellReport) -> str:
    """Effective BPW from the artifact itself: it is there whichever suites ran."""
    if cell.artifact is None or not cell.artifact.weights:
        return ABSENT
    size = sum(share.bytes for share in cell.artifact.types.values())
    return f"{8 * size / cell.artifact.weights:.2f}"


def _kld(cell: CellReport) -> str:
    measured = cell.measurements.get("mean_kld")
    if measured is None:
        return "reference" if cell.reference and cell.measurements else ABSENT
    if measured.value is None:
        return "nan"
    error = f" ±{_short(measured.error)}" if measured.error is not None else ""
    return f"{_short(measured.value)}{error}"


def _ppl_ratio(cell: CellReport) -> str:
    measured = cell.measurements.get("ln_ppl_ratio")
    if measured is None or measured.value is None:
        return ABSENT if measured is None else "nan"
    # Beyond this, what is left of the model is not worth a figure.
    return _short(math.exp(measured.value)) if measured.value < 50 else "> 1e21"


def _short(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.2e}"


def _mark(measured: Measurement) -> str:
    return DISTURBED if measured.disturbed else ""


def _verdict(report: Report, cell: CellReport) -> str:
    waived = sum(bool(one.waived) for one in report.checks if one.cell == cell.id)
    text = _plain_verdict(report, cell)
    return f"{text}, {waived} waived" if waived else text


def _plain_verdict(report: Report, cell: CellReport) -> str:
    if cell.verdict is None:
        return "not run"
    same = [
        one
        for one in report.checks
        if one.cell == cell.id
        and one.verdict is cell.verdict
        and not one.advisory
        and not one.waived
    ]
    if cell.verdict is Verdict.PASS:
        return "pass"
    return f"{cell.verdict}" + (f" ({len(same)})" if len(same) > 1 else "")
