"""From what a law found to its report: verdict, message, points."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..model.law import LawPoint, LawReport
from ..model.verdict import Verdict
from .rows import error_of, value_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..model.law import Row
    from .fits import Line
    from .rows import Taken


@dataclass(slots=True)
class Findings:
    """What a law found, a sentence each.

    Attributes:
        fails: Violations.
        unsure: What would be violations, did chance not explain them.
        said: What a reader should know, and no violation.
    """

    fails: list[str] = field(default_factory=list)
    unsure: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def add(self, sentence: str, *, sure: bool) -> None:
        """Add a violation, or what chance explains."""
        (self.fails if sure else self.unsure).append(sentence)


def finish(
    taken: Taken,
    found: Findings,
    words: str,
    *,
    axes: tuple[str, str, str, str],
    log: bool = False,
    points: Sequence[LawPoint],
    line: Line | None = None,
    crossover: float | None = None,
    figures: dict[str, float] | None = None,
) -> LawReport:
    """Make the report: violations fail, what chance may explain is inconclusive.

    Args:
        taken: What took part.
        found: What was found.
        words: The figures that it rests on.
        axes: The quantity on the x axis and its unit, that on the y axis and its unit.
        log: The y axis is meant to be logarithmic.
        points: The cells.
        line: The fitted line.
        crossover: The BPW from which on the bigger model is as good.
        figures: Further figures by name.
    """
    fails = [*taken.broken, *found.fails]
    verdict, head = Verdict.PASS, ""
    if fails:
        verdict, head = Verdict.FAIL, f"{_first(fails)}; "
    elif found.unsure:
        verdict, head = Verdict.INCONCLUSIVE, f"too uncertain to tell: {found.unsure[0]}; "
    elif found.said:
        head = f"{_first(found.said)}; "
    return LawReport(
        law=taken.law,
        subject=taken.subject,
        verdict=verdict,
        message=f"{head}{words}{taken.told()}",
        anomalies=(*fails, *found.unsure, *found.said),
        warns=taken.warns,
        x=axes[0],
        x_unit=axes[1],
        y=axes[2],
        y_unit=axes[3],
        y_log=log,
        points=tuple(points),
        slope=line.slope if line else None,
        slope_error=line.slope_error if line else None,
        intercept=line.intercept if line else None,
        intercept_error=line.intercept_error if line else None,
        r2=line.r2 if line else None,
        crossover=crossover,
        figures=figures or {},
    )


def unsupported(law: str, subject: str, message: str, *, warns: bool = False) -> LawReport:
    """Say why a law cannot be held."""
    return LawReport(
        law=law, subject=subject, verdict=Verdict.UNSUPPORTED, message=message, warns=warns
    )


def too_few(taken: Taken, need: str) -> LawReport:
    """Say what the law needs and what there is; what is not finite fails all the same."""
    have = ", ".join(row.cell for row in taken.rows)
    message = (
        f"needs {need}, with {', '.join(taken.asked)}; this run has"
        f" {f'{len(taken.rows)}: {have}' if taken.rows else 'none'}{taken.told()}"
    )
    if taken.broken:
        return LawReport(
            law=taken.law,
            subject=taken.subject,
            verdict=Verdict.FAIL,
            message=f"{'; '.join(taken.broken)}; {message}",
            anomalies=taken.broken,
            warns=taken.warns,
        )
    return unsupported(taken.law, taken.subject, message, warns=taken.warns)


def point(
    row: Row, x: float, quantity: str, *, fitted: float | None = None, left_out: str = ""
) -> LawPoint:
    """Make the point of a cell at x.

    Args:
        row: The cell.
        x: Where it lies on the x axis.
        quantity: The figure on the y axis.
        fitted: What the law says it should be, or allows.
        left_out: Why it does not take part; empty if it does.
    """
    y = value_of(row, quantity)
    return LawPoint(
        cell=row.cell,
        x=x,
        y=y,
        error=error_to_report(row, quantity),
        fitted=fitted,
        residual=None if fitted is None else y - fitted,
        left_out=left_out,
    )


def points_of(
    rows: Sequence[Row], xs: Sequence[float], quantity: str, *, fitted: Sequence[float]
) -> list[LawPoint]:
    """Make a point for each cell."""
    return [point(row, x, quantity, fitted=at) for row, x, at in zip(rows, xs, fitted, strict=True)]


def error_to_report(row: Row, quantity: str, scale: float = 1.0) -> float | None:
    """Return the error of a figure times a scale; None where none was given or it is not finite."""
    error = error_of(row, quantity) * scale
    known = row.figures[quantity].error is not None and math.isfinite(error)
    return error if known else None


def _first(sentences: Sequence[str]) -> str:
    more = f" (and {len(sentences) - 1} more)" if len(sentences) > 1 else ""
    return f"{sentences[0]}{more}"
