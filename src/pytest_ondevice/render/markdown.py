"""Comparisons and reports for people: Markdown for a pull request, and plain lines beside it.

Whatever comes from a file is foreign: it must not break a table, add HTML or links, or call people
by their name.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from ..judgement import show
from ..model.change import Change, Finding
from ..model.comparison import CellComparison, Comparison, Kind, Presence, Side
from ..model.verdict import Verdict
from .text import columns, judged_laws

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..model.report import CellReport, CheckResult, Report

LIMIT = 65_536
"""The longest comment that GitHub takes, in characters; here bytes are counted, which are more."""

ABSENT = "-"
_MIB = 2**20
_NAME = 120
_SENTENCE = 400
_SAID = 160
"""Room kept for each sentence that says what was left out."""

_PLAIN = re.compile(r"[\w.,:;=+() -]*")
_BREAK = "\u200b"
"""A space of no width, where the characters about it would be a link, a name or an issue."""

# Entities mark nothing up. They are no help against what GitHub links in the finished text.
_ENTITIES = {ord(character): f"&#{ord(character)};" for character in "&<>|`*[]~\\$!{}"}
_ENTITIES[ord(_BREAK)] = "&#8203;"

_LABELS = (
    "worse",
    "undecided",
    "missing",
    "not compared",
    "changed",
    "better",
    "no worse",
    "identical",
    "new",
)


def comparison(found: Comparison) -> str:
    """Write a comparison as Markdown for a comment: the worst cells first, details folded away."""
    page = _Page()
    page.add([f"### {escape(headline(found))}", ""])
    rows = [
        f"| {code(cell.id)} | {_strong(_label(cell))} | {escape(_told(cell))} |"
        f" {escape(_verdicts(cell))} |"
        for cell in _ranked(found)
    ]
    page.table("| cell | finding | what changed most | verdict |", "|---|---|---|---|", rows)
    sides = [f"- **{name}**: {escape(_side(side, found.kind))}" for name, side in _sides(found)]
    listed = [f"- {line}" for line in _differing(found, escape)]
    notes = [f"- {escape(note)}" for note in found.notes]
    after = _Page(page.room - 2 * _SAID)
    after.add(["", *sides])
    after.items("", listed, "differences")
    after.items("", notes, "notes")
    details = _Page(after.room)
    compared = [cell for cell in _ranked(found) if cell.presence is Presence.BOTH]
    title = f"<summary>All quantities of {_count(len(compared), 'cell')}</summary>"
    details.add(["", "<details>", title])
    kept = details.blocks(_quantities(cell) for cell in compared)
    if kept < len(compared):
        left = _count(len(compared) - kept, "cell")
        details.add(["", f"Left out, for the comment would be too long: quantities of {left}."])
    details.add(["", "</details>"])
    return "\n".join([*page.lines, *(details.lines if compared else []), *after.lines, ""])


def summary(report: Report) -> str:
    """Write one report as Markdown for a comment: the gate's table, then what needs a reader."""
    page = _Page()
    runtime = f"{report.runtime.name} {report.runtime.version}"
    place = f"{report.device.cpu}, {runtime}, {report.generator}, {report.created}"
    page.add([f"### {escape(_outcome(report))}", "", f"Measured on {escape(place)}", ""])
    page.table(
        "| cell | BPW | MiB | KLD (nats) | PPL ratio | peak MiB | t/s | verdict |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
        [_figures(cell) for cell in report.cells],
    )
    red = [one for one in report.checks if one.outcome == "failed"]
    blocked = [
        one for one in report.checks if one.verdict is Verdict.BLOCKED and one.outcome != "failed"
    ]
    waived = [one for one in report.checks if one.waived]
    changed = [
        f"{_of(one)}: {escape(f'{moved(one.change)}: {one.change.finding}')}"
        + (f"; {escape(one.change.evidence)}" if one.change.evidence else "")
        for one in report.checks
        if one.change is not None and one.change.finding is not Finding.IDENTICAL
    ]
    judged = judged_laws(report)
    laws = [
        f"- {code(law.law)} of {escape(law.subject)}:"
        f" {escape(f'{judged[law.law, law.subject]}: {law.message}')}"
        for law in report.laws
        if law.verdict is not Verdict.UNSUPPORTED
    ]
    page.items("**Questions**", _answered(report), "sets of questions")
    page.items("**Laws**", laws, "laws")
    page.items("**Failed**", [f"- {_judged(one)}" for one in red], "failures")
    page.items("**Blocked**", [f"- {_judged(one)}" for one in blocked], "blocked checks")
    page.items("**Against the predecessor**", [f"- {line}" for line in changed], "changes")
    said = [f"- {_of(one)}: {escape(one.waived)}" for one in waived]
    page.items("**Waived**", said, "waived failures")
    page.items("**Notes**", [f"- {escape(note)}" for note in report.notes], "notes")
    return "\n".join([*page.lines, ""])


def _answered(report: Report) -> list[str]:
    """Say of each cell how many answers are right, and which flipped against the reference."""
    said = []
    for cell in report.cells:
        for task in cell.tasks:
            told = f"{task.right} of {task.n} right ({task.lower:.3f} to {task.upper:.3f})"
            if task.lost is not None and task.mcnemar_p is not None:
                told += f", {task.lost} lost and {task.gained} gained, p {task.mcnemar_p:.2g}"
            said.append(f"- {code(cell.id)}, {escape(task.name)}: {told}")
    return said


def lines(found: Comparison) -> list[str]:
    """Draw a comparison for a terminal: the same in columns, without the details."""
    rows = [("cell", "finding", "what changed most", "verdict")]
    rows += [
        (clean(cell.id), _label(cell), clean(_told(cell)), clean(_verdicts(cell)))
        for cell in _ranked(found)
    ]
    told = [
        f"{clean(cell.id)}: {clean(cell.evidence)}"
        for cell in _ranked(found)
        if cell.evidence and cell.finding in {Finding.WORSE, Finding.UNDECIDED, None}
    ]
    sides = [f"{name}  {clean(_side(side, found.kind))}" for name, side in _sides(found)]
    return [
        *sides,
        "",
        *columns(rows),
        *told,
        *_differing(found, clean),
        *(clean(note) for note in found.notes),
        headline(found),
    ]


def headline(found: Comparison) -> str:
    """Say in one sentence what the comparison comes to: the worst first."""
    labels = [_label(cell) for cell in found.cells]
    counts = [(labels.count(label), label) for label in _LABELS if label in labels]
    if not counts:
        return "There are no cells to compare"
    (first, label), *others = counts
    if not others:
        every = {1: "The only cell is", 2: "Both cells are"}.get(first, f"All {first} cells are")
        return f"{every} {label}"
    verb = "is" if first == 1 else "are"
    rest = "".join(f", {count} {label}" for count, label in others)
    return f"{first} of {_count(len(labels), 'cell')} {verb} {label}{rest}"


def moved(change: Change) -> str:
    """Write what a quantity was, what it became, and by how much, with error and n."""
    figures = f"{show(change.before, '')} -> {show(change.after, change.unit)}"
    if change.unit == "B":
        figures = f"{show(change.before, 'B')} -> {show(change.after, 'B')}"
    return " ".join([change.quantity, figures, _by(change)]).rstrip()


def escape(text: str) -> str:
    """Make foreign text plain in Markdown, also in a table: no markup, HTML, link or mention."""
    text = re.sub(r"@(?=\S)", f"@{_BREAK}", clean(text)).replace("#", f"#{_BREAK}")
    text = re.sub(r"(?i)\b(gh)-(?=\d)", rf"\1{_BREAK}-", text)
    text = re.sub(r"(?i)\b(www)\.", rf"\1{_BREAK}.", text)
    text = text.replace("://", f":{_BREAK}//").translate(_ENTITIES)
    # Within a word an underscore marks up nothing; elsewhere it might. Arrows are our own.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", "&#95;", text).replace("-&#62;", "->")


def code(text: str) -> str:
    """Set a name in code, if nothing in it could end that; else escaped."""
    text = clean(text, _NAME)
    return f"`{text}`" if text and _PLAIN.fullmatch(text) else escape(text)


def clean(text: str, most: int = _SENTENCE) -> str:
    """Leave what can be printed on one line, of bounded length."""
    text = text[:9999]
    if not text.isprintable():
        text = "".join(character if character.isprintable() else " " for character in text)
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


class _Page:
    """Lines of bounded length in bytes; what does not fit is counted and said."""

    def __init__(self, room: int = LIMIT) -> None:
        self.lines: list[str] = []
        self.room = room

    def add(self, lines: Iterable[str]) -> None:
        """Add lines for which there is room by construction."""
        for line in lines:
            self.lines.append(line)
            self.room -= _size(line)

    def table(self, header: str, rule: str, rows: Sequence[str]) -> None:
        """Add a table; it takes two thirds of the room at most."""
        self.add([header, rule])
        kept = self._fitting(rows, self.room * 2 // 3)
        self.add(rows[:kept])
        if kept < len(rows):
            self.add(["", f"Left out, for the comment would be too long: {len(rows) - kept} rows."])

    def items(self, title: str, items: Sequence[str], what: str) -> None:
        """Add a list under a title; it takes half of the room at most."""
        if not items:
            return
        self.add(["", title, ""] if title else [])
        kept = self._fitting(items, self.room // 2 - _SAID)
        self.add(items[:kept])
        if kept < len(items):
            self.add([f"- left out, for the comment would be too long: {len(items) - kept} {what}"])

    def blocks(self, blocks: Iterable[Sequence[str]]) -> int:
        """Add blocks of lines while they fit whole; returns how many did."""
        kept = 0
        for block in blocks:
            if sum(map(_size, block)) > self.room - 2 * _SAID:
                break
            self.add(block)
            kept += 1
        return kept

    @staticmethod
    def _fitting(texts: Sequence[str], room: int) -> int:
        for index, text in enumerate(texts):
            room -= _size(text)
            if room < 0:
                return index
        return len(texts)


def _size(line: str) -> int:
    return len(line.encode()) + 1


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _strong(label: str) -> str:
    return f"**{label}**" if label in {"worse", "missing"} else label


def _by(change: Change) -> str:
    """Write the change alone; empty where there is none to write."""
    if change.change is None or not math.isfinite(change.change):
        return ""
    if change.finding is Finding.IDENTICAL:
        return "(identical)"
    percent = change.relative
    text = f"{_signed(change.change * 100)} %" if percent else _signed(change.change)
    if change.error is not None:
        text += f" ± {_short(change.error * 100)} %" if percent else f" ± {_short(change.error)}"
    return f"({text}, n={change.n})" if change.n > 1 else f"({text})"


def _short(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}" if abs(value) < 1e6 else "1e6+"


def _signed(value: float) -> str:
    return f"{value:+.3g}" if abs(value) < 1000 else f"{value:+.2e}"


# -- comparisons


def _label(cell: CellComparison) -> str:
    if cell.presence is not Presence.BOTH:
        return "missing" if cell.presence is Presence.OLD else "new"
    return str(cell.finding) if cell.finding is not None else "not compared"


def _ranked(found: Comparison) -> list[CellComparison]:
    return sorted(found.cells, key=lambda cell: _LABELS.index(_label(cell)))


def _told(cell: CellComparison) -> str:
    """What changed most; where no quantity did, why the cell was found to be what it is."""
    more = sum(change.finding is cell.finding for change in cell.changes) - 1
    beside = f"; {more} more {cell.finding}" if more > 0 else ""
    for change in cell.changes:
        if change.quantity == cell.decided_by:
            told = moved(change) if _by(change) else f"{change.quantity}: {change.evidence}"
            return told + beside
    return cell.evidence or ABSENT


def _verdicts(cell: CellComparison) -> str:
    old, new = (
        str(verdict) if verdict is not None else ABSENT
        for verdict in (cell.old_verdict, cell.new_verdict)
    )
    return new if old == new else f"{old} -> {new}"


def _sides(found: Comparison) -> tuple[tuple[str, Side], ...]:
    return ("old", found.old), ("new", found.new)


def _side(side: Side, kind: Kind) -> str:
    parts = (side.generator, side.created, side.device, side.tier, side.runtime)
    told = ", ".join(clean(part) for part in parts if part)
    return f"{kind} {clean(side.path)}: {told}" if told else f"{kind} {clean(side.path)}"


def _differing(found: Comparison, written: Callable[[str], str]) -> list[str]:
    """Name what differs: of the whole, then of cells, those that differ alike together."""
    said = [
        written(f"{one.field}: {clean(one.old, _NAME)} -> {clean(one.new, _NAME)}")
        for one in found.differences
    ]
    alike: dict[tuple[str, str, str], list[str]] = {}
    for cell in found.cells:
        for one in cell.differences:
            old, new = clean(one.old, _NAME), clean(one.new, _NAME)
            if one.field == "artifact":
                old, new = old[:16] or ABSENT, new[:16] or ABSENT
            alike.setdefault((clean(one.field, _NAME), old, new), []).append(clean(cell.id, 60))
    for (field, old, new), cells in alike.items():
        more = f" and {len(cells) - 3} more" if len(cells) > 3 else ""
        said.append(written(f"{field} of {', '.join(cells[:3])}{more}: {old} -> {new}"))
    return said


def _quantities(cell: CellComparison) -> list[str]:
    """Draw the folded part of one cell: a table of what changed, a line of what did not."""
    lines = ["", f"**{code(cell.id)}**"]
    every = (*cell.changes, *cell.advisory)
    same = [one for one in every if one.finding is Finding.IDENTICAL]
    if len(same) < len(every):
        lines += ["", "| quantity | before | after | change | finding | why |"]
        lines.append("|---|--:|--:|--:|---|---|")
    lines += [
        f"| {code(one.quantity)} | {escape(show(one.before, one.unit))} |"
        f" {escape(show(one.after, one.unit))} | {escape(_by(one).strip('()'))} |"
        f" {_strong(str(one.finding))} | {escape(one.evidence)} |"
        for one in every
        if one.finding is not Finding.IDENTICAL
    ]
    told = [f"{code(one.quantity)} {escape(show(one.after, one.unit))}" for one in same]
    if told:
        lines += ["", f"Identical: {', '.join(told)}"]
    if cell.added:
        lines += ["", f"Only in the new one: {', '.join(code(name) for name in cell.added)}"]
    return lines


# -- one report


def _outcome(report: Report) -> str:
    verdicts = [
        str(cell.verdict) if cell.verdict is not None else "not run" for cell in report.cells
    ]
    order = ["fail", *(str(one) for one in Verdict if one not in _ENDS), "not run", "pass"]
    counts = [f"{verdicts.count(name)} {name}" for name in order if name in verdicts]
    text = f"{_count(len(verdicts), 'cell')}: {', '.join(counts) or 'nothing was measured'}"
    return text if report.complete else f"{text}; the run was interrupted before its end"


_ENDS = frozenset({Verdict.FAIL, Verdict.PASS})


def _figures(cell: CellReport) -> str:
    artifact = cell.artifact
    bpw = size = ABSENT
    if artifact is not None:
        size = f"{artifact.size / _MIB:.1f}"
        if artifact.weights > 0:
            held = sum(share.bytes for share in artifact.types.values())
            bpw = f"{8 * held / artifact.weights:.2f}"
    figures = (
        bpw,
        size,
        _figure(cell, "mean_kld", ".4f"),
        _ratio(cell),
        _figure(cell, "peak_memory", ".1f", _MIB),
        _figure(cell, "decode_speed", ".0f"),
    )
    verdict = str(cell.verdict) if cell.verdict is not None else "not run"
    if cell.finding is not None:
        verdict += f", {cell.finding}"
    told = f"**{verdict}**" if cell.verdict is Verdict.FAIL else verdict
    return f"| {code(cell.id)} | {' | '.join(figures)} | {told} |"


def _figure(cell: CellReport, name: str, spec: str, unit: float = 1.0) -> str:
    measured = cell.measurements.get(name)
    if measured is None:
        return ABSENT
    if measured.value is None:
        return "not finite"
    error = f" ± {_fixed(measured.error / unit, spec)}" if measured.error is not None else ""
    return f"{_fixed(measured.value / unit, spec)}{error}"


def _ratio(cell: CellReport) -> str:
    measured = cell.measurements.get("ln_ppl_ratio")
    if measured is None or measured.value is None:
        return ABSENT if measured is None else "not finite"
    # Beyond this, what is left of the model is not worth a figure.
    return f"{math.exp(measured.value):.4f}" if measured.value < 20 else "> 1e8"


def _fixed(value: float, spec: str) -> str:
    return f"{value:{spec}}" if abs(value) < 1e9 else f"{value:.2e}"


def _of(one: CheckResult) -> str:
    return f"{code(one.check)} of {code(one.cell)}"


def _judged(one: CheckResult) -> str:
    first = (one.message.splitlines() or [""])[0]
    return f"{_of(one)}: {one.verdict}{f': {escape(first)}' if first else ''}"
