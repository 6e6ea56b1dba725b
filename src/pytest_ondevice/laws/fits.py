"""Lines through points, which points are off them, and what chance explains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist, median
from typing import TYPE_CHECKING

from ..stats import t_quantile

if TYPE_CHECKING:
    from collections.abc import Sequence

ALPHA = 0.05
"""Error of calling chance a violation, over all comparisons of one law together."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points.

    Attributes:
        slope: In units of y per unit of x.
        intercept: In units of y.
        n: Number of points.
        slope_error: Standard error of the slope; None where it is not known, as the next ones.
        intercept_error: Standard error of the intercept.
        r2: Share of the variance that the line explains.
    """

    slope: float
    intercept: float
    n: int
    slope_error: float | None = None
    intercept_error: float | None = None
    r2: float | None = None

    def at(self, x: float) -> float:
        """Return where the line is at x."""
        return self.intercept + self.slope * x

    def figures(self) -> dict[str, float]:
        """Return what is known of the line by name."""
        told = {
            "slope": self.slope,
            "slope_error": self.slope_error,
            "intercept": self.intercept,
            "intercept_error": self.intercept_error,
            "r2": self.r2,
            "n": float(self.n),
        }
        return {name: figure for name, figure in told.items() if figure is not None}


def fit(xs: Sequence[float], ys: Sequence[float]) -> Line | None:
    """Fit by least squares; None where there are not two different x."""
    n = len(xs)
    if len(set(xs)) < 2:
        return None
    mean_x, mean_y = math.fsum(xs) / n, math.fsum(ys) / n
    spread = math.fsum((x - mean_x) ** 2 for x in xs)
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    intercept = mean_y - slope * mean_x
    left = math.fsum((y - intercept - slope * x) ** 2 for x, y in zip(xs, ys, strict=True))
    total = math.fsum((y - mean_y) ** 2 for y in ys)
    r2 = max(0.0, 1 - left / total) if total > 0 else None
    if n < 3:
        return Line(slope, intercept, n, r2=r2)
    variance = left / (n - 2)
    slope_error = math.sqrt(variance / spread)
    intercept_error = math.sqrt(variance * (1 / n + mean_x**2 / spread))
    return Line(slope, intercept, n, slope_error, intercept_error, r2)


def theil_sen(xs: Sequence[float], ys: Sequence[float]) -> Line:
    """Fit by medians (Theil 1950, Sen 1968): up to 29 % of the points may lie anywhere."""
    slopes = [
        (ys[j] - ys[i]) / (xs[j] - xs[i])
        for i, j in combinations(range(len(xs)), 2)
        if xs[i] != xs[j]
    ]
    slope = median(slopes)
    intercept = median(y - slope * x for x, y in zip(xs, ys, strict=True))
    return Line(slope, intercept, len(xs))


def is_beyond(line: Line, low: float, high: float) -> bool:
    """Whether a slope lies outside by more than its error explains, at 95 % on both sides."""
    reach = 0.0
    if line.slope_error is not None:
        reach = t_quantile(1 - ALPHA / 2, line.n - 2) * line.slope_error
    return line.slope - reach > high or line.slope + reach < low


def z_of(comparisons: int) -> float:
    """Quantile of the normal for one side of each of so many comparisons (Bonferroni)."""
    return NormalDist().inv_cdf(1 - ALPHA / max(comparisons, 1))


def off_the_line(
    xs: Sequence[float], ys: Sequence[float], tolerance: float, slopes: tuple[float, float]
) -> tuple[list[int], bool]:
    """Find points off the line of the others, and whether they could be told.

    One at a time, the point with the largest residual / sqrt(1 - leverage) is set aside while that
    is above the tolerance. Of one point that is off, this is the largest of all (by Cauchy and
    Schwarz, for the residuals it causes elsewhere are its own times the projection's entries), also
    where the point is alone at its end and the line follows it. At most a third is set aside.

    Args:
        xs: Where the points are, two of them different at least.
        ys: The points.
        tolerance: Largest residual, in units of y.
        slopes: The lowest and the highest slope that a line may have.

    Returns:
        Their places, in order, and True; or those beyond the tolerance around the line of medians,
        at least the farthest, and False.
    """
    kept = list(range(len(xs)))
    most = (len(xs) - 1) // 3
    for _ in range(most + 1):
        sizes = _standardized([xs[i] for i in kept], [ys[i] for i in kept])
        largest = max(sizes)
        if largest <= tolerance:
            return sorted(set(range(len(xs))) - set(kept)), True
        if len(xs) - len(kept) < most:
            kept.pop(sizes.index(largest))
        else:
            break
    if len(xs) == 3:
        # Three are all equally far off; what slope the other two have tells them apart.
        others = [[j for j in range(3) if j != i] for i in range(3)]
        fits = [fit([xs[j] for j in two], [ys[j] for j in two]) for two in others]
        fine = [i for i, line in enumerate(fits) if line and slopes[0] <= line.slope <= slopes[1]]
        return (fine, True) if len(fine) == 1 else ([0, 1, 2], False)
    line = theil_sen(xs, ys)
    away = [abs(y - line.at(x)) for x, y in zip(xs, ys, strict=True)]
    return [i for i, one in enumerate(away) if one > min(tolerance, max(away) * 0.999)], False


def _standardized(xs: Sequence[float], ys: Sequence[float]) -> list[float]:
    """Sizes of the residuals, each over sqrt(1 - leverage) so that all have the same error."""
    line = fit(xs, ys)
    assert line is not None  # a point alone at its x is never set aside
    mean = math.fsum(xs) / len(xs)
    spread = math.fsum((x - mean) ** 2 for x in xs)
    found = []
    for x, y in zip(xs, ys, strict=True):
        free = 1 - 1 / len(xs) - (x - mean) ** 2 / spread
        found.append(abs(y - line.at(x)) / math.sqrt(free) if free > 1e-9 else 0.0)
    return found
