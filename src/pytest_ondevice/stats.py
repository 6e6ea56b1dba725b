"""Means of windows, how uncertain they are, and what may be concluded from them.

Tokens of a window are not independent, so a window is one sample (a cluster) and the number of
windows is the n of every formula here. Arguments called values, current or baseline are one
dimensional: one figure per window, its mean over the window's tokens, in any unit. Results are in
the same unit. Whether a figure that is not finite is a failure is for the caller to say first:
here it is a ``ValueError``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from .model.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray


FIRST_LOOK = 8
"""Windows of the first look."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimated figure.

    Attributes:
        value: The figure.
        error: Its standard error, in the figure's unit; infinite if n is 1.
        n: Number of windows that it comes from.
    """

    value: float
    error: float
    n: int


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its two ends, in the estimate's unit. lower <= estimate.value <= upper.

    Attributes:
        estimate: What lies between the ends.
        lower: The truth is below this with a probability of alpha.
        upper: The truth is above this with a probability of alpha.
        alpha: The error of either end taken alone; of both together it is twice that.
    """

    estimate: Estimate
    lower: float
    upper: float
    alpha: float


@dataclass(frozen=True, slots=True)
class Look:
    """One of the times at which a verdict may be given.

    Attributes:
        windows: How many windows have been taken by then; None is all that the text holds.
        alpha: Error of either end of this look's interval.
    """

    windows: int | None
    alpha: float


def looks(budget: int | None, alpha: float, held: int | None = None) -> tuple[Look, ...]:
    """Plan when to look: stop at the first look whose verdict is certain.

    Looks lie at 8, 16 and 24 windows, then at twice as many each, as far as they are below the
    budget, then at the budget. Fewer than 8 windows do not tell a skewed tail. Each look spends
    half of the alpha that is left, the last one all of it. The alphas add up to ``alpha``, so by
    Bonferroni's inequality a wrong PASS is no likelier than ``alpha`` over all looks together, nor
    is a wrong FAIL, however the looks depend on each other, if each interval keeps its own alpha.

    Why half: most reruns can be told at the first look, so most is spent there; and what a look
    gets does not depend on those after it, so the plan may be made before anybody knows how many
    windows a text holds. With alpha = 0.05, 35 real windows in their stratified order and a loss
    exactly at the bound, a wrong PASS or a wrong FAIL came in at most 0.064 of 20 000 resamples, in
    0.008 on average over 42 pairs of files and three quantities (``benchmarks/error_rates.py``);
    windows drawn without regard to kind err 0.11 at most. Tried and not chosen: equal parts err
    0.055 at most, but their first look bears an error of the mean a fifth smaller; Pocock's equal
    0.0193 for four looks, which counts on how looks depend on each other, errs 0.08. What is lost
    is at the end: 0.00625 is left for the last of four, so a close case may stay INCONCLUSIVE that
    one look at everything would tell.

    Args:
        budget: Largest number of windows, 8 or more; None for all that the text holds.
        alpha: Error of either end over all looks, above 0 and below 0.5.
        held: Number of windows that the text holds, once known. Looks that it does not reach fall
            together into the last, at None. Without it and without a budget the fourth look is the
            last; the first three are the same.

    Raises:
        ValueError: A budget below 8, a text without a window, or alpha out of range.
    """
    _check_alpha(alpha)
    if budget is not None and budget < FIRST_LOOK:
        raise ValueError(f"the budget must be at least {FIRST_LOOK} windows, not {budget}")
    if held is not None and held < 1:
        raise ValueError(f"the text must hold at least 1 window, not {held}")
    last = budget if held is None or (budget is not None and budget < held) else None
    end = held if last is None else last
    counts = [FIRST_LOOK, 2 * FIRST_LOOK, 3 * FIRST_LOOK]
    while end is not None and 2 * counts[-1] < end:
        counts.append(2 * counts[-1])
    counts = [count for count in counts if end is None or count < end]
    spent = [alpha / 2**place for place in range(1, len(counts) + 1)]
    return tuple(map(Look, [*counts, last], [*spent, spent[-1] if spent else alpha]))


def clustered_mean(values: ArrayLike, weights: ArrayLike | None = None) -> Estimate:
    """Estimate the mean over all tokens, with windows as clusters.

    The weighted mean is a ratio estimator, sum(w x) / sum(w). Its linearised variance
    sum(w^2 (x - mean)^2) / sum(w)^2 times n / (n - 1) is the cluster-robust variance CR1 of a
    regression on a constant (Cochran 1977, Sampling Techniques, section 6.3; MacKinnon and White
    1985). With equal weights it is the textbook s / sqrt(n).

    Args:
        values: One figure per window.
        weights: Tokens per window, all positive; None if all windows are equally long.

    Raises:
        ValueError: No value, a value that is not finite, or weights that do not fit the values.
    """
    return _linearised(_checked("values", values), weights)[0]


def interval(
    values: ArrayLike,
    alpha: float,
    weights: ArrayLike | None = None,
    transform: Callable[[float], float] | None = None,
) -> Interval:
    """Bound the mean of skewed per-window values from either side.

    The ends are mean -+ error x (t + b (1 + 2 t^2) + 4 b^2 (t + 2 t^3)) with t the quantile of
    Student's t and b = skewness / (6 sqrt(n)): the skewness-corrected t of Johnson (1978, JASA 73)
    carried to second order by Chen (1995, JASA 90), solved for the mean to the same order. Two
    cautions make it hold at few windows. The sample skewness, sqrt(n (n - 1)) / (n - 2) m3 /
    m2^1.5, hides a long tail more often than it shows one, so each end takes it one standard error
    longer to its own side, sqrt(6 n (n - 1) / ((n - 2) (n + 1) (n + 3))) (Joanes and Gill 1998).
    And b is never negative: a correction only widens, for one that also shortens cries wolf on
    heavy tails.

    Realised error of the upper end over alpha, at alpha = 0.05 and (0.01), 200 000 simulations:

    =========  ========  ===========  ===========  ===========  ===========
    values     skewness  n = 8        by plain t   n = 16       by plain t
    =========  ========  ===========  ===========  ===========  ===========
    normal     0         0.53 (0.35)  1.00 (0.99)  0.71 (0.50)  1.01 (1.01)
    gamma      1.3       0.97 (1.07)  2.09 (3.88)  0.96 (1.01)  1.79 (3.28)
    gamma      2.1       1.30 (1.69)  2.93 (7.19)  1.19 (1.50)  2.41 (5.61)
    lognormal  1.3       0.97 (1.04)  1.96 (3.24)  1.00 (1.13)  1.75 (3.04)
    lognormal  2.1       1.24 (1.53)  2.55 (5.14)  1.20 (1.48)  2.20 (4.45)
    =========  ========  ===========  ===========  ===========  ===========

    The lower end errs at most 0.7 alpha on them. Tried and not chosen: Johnson's own correction
    repairs less than a tenth of what plain t exceeds; Hall's (1992) cubic is as good, but its end
    leaps from 6 to 12 errors where its slope vanishes; the bootstrap-t still erred 2 (3) alpha at
    8 windows and needs a seed; a log scale (Cox) suits lognormal values, but grew 5 times as long
    on gamma values and takes no differences.

    With one window nothing is known of the spread and with two nothing of the skewness, so both
    ends are infinite; two or more windows without any spread have both ends at their value.

    Args:
        values: One figure per window.
        alpha: Error of each end, above 0 and below 0.5.
        weights: Tokens per window, all positive; None if all windows are equally long.
        transform: An increasing function to report through, such as ``math.exp`` for a ratio of
            perplexities from its logarithm. Ends keep their coverage; the error becomes half the
            image of mean -+ error.

    Raises:
        ValueError: As for ``clustered_mean``; alpha out of range; transform not increasing.
    """
    _check_alpha(alpha)
    estimate, influence = _linearised(_checked("values", values), weights)
    value, error, n = estimate.value, estimate.error, estimate.n
    below, above = _reaches(influence, alpha) if error > 0 else (0.0, 0.0)
    lower, upper = value - below * error, value + above * error
    if transform is None:
        return Interval(estimate, lower, upper, alpha)
    error = (transform(value + error) - transform(value - error)) / 2
    lower, value, upper = transform(lower), transform(value), transform(upper)
    if not lower <= value <= upper:
        raise ValueError(f"transform must increase, but gave {lower}, {value}, {upper}")
    return Interval(Estimate(value, error, n), lower, upper, alpha)


def median_interval(values: ArrayLike, alpha: float) -> Interval:
    """Bound the median of a few independent figures, such as the log ratios of paired rounds.

    The ends lie between two neighbouring values in order of size, where the interpolation of
    Hettmansperger and Sheather (1986, Statistics and Probability Letters 4) has an error of alpha:
    with u the number of values below the true median, binomial (n, 1/2), let k be the largest rank
    with e = P(u < k) <= alpha, f = P(u <= k) and i = (alpha - e) / (f - e). Then the lower end is
    (1 - w) x_(k) + w x_(k + 1), w = (n - k) i / (k + (n - 2 k) i); the upper end mirrors it. No
    shape is assumed, so slow outliers cost width and not validity.

    Realised error of an end at alpha = 0.05, where processes scatter by 1 to 4 % and none or a
    tenth of them is 10 to 30 % slow: 0.04 to 0.06 for 5 to 16 rounds. Tried and not chosen:
    percentiles of a bootstrap of the median, which err 0.12 with 3 rounds, 0.06 to 0.12 with 4 and
    0.07 with 8, at alpha = 0.1 up to 0.19 with 5; the nearest rank without interpolation, as valid
    but wider; signed ranks, where two slow rounds of 8 undo the end. No end that holds for any
    shape can bear two: with a tenth of processes slow, take more rounds where 8 say nothing.

    The estimate's error is the standard error of the bootstrap, in closed form: the deviation of
    the median of n values drawn from these with replacement (Efron 1979, Annals of Statistics 7).

    Args:
        values: One figure per round.
        alpha: Error of each end, above 0 and below 0.5.

    Returns:
        The interval. An end is infinite where no rank has an error of at most alpha: with fewer
        than 3 values, and with fewer than 5 at 0.05. Three or more equal values have both ends at
        their value.

    Raises:
        ValueError: No value, a value that is not finite, or alpha out of range.
    """
    _check_alpha(alpha)
    ordered = np.sort(_checked("values", values))
    n = ordered.size
    estimate = Estimate(float(np.median(ordered)), _median_error(ordered), n)
    if n >= 3 and ordered[0] == ordered[-1]:
        return Interval(estimate, estimate.value, estimate.value, alpha)
    reached, rank = 0.0, 0
    error = math.comb(n, 0) / 2**n
    while error <= alpha:
        rank += 1
        reached, error = error, error + math.comb(n, rank) / 2**n
    if n < 3 or rank == 0:
        return Interval(estimate, -math.inf, math.inf, alpha)
    weight = 0.0
    if rank < (n + 1) // 2:
        share = (alpha - reached) / (error - reached)
        weight = (n - rank) * share / (rank + (n - 2 * rank) * share)
    # Rounding must not take an end past the median.
    lower = min(_between(ordered[rank - 1], ordered[min(rank, n - 1)], weight), estimate.value)
    upper = max(_between(ordered[n - rank], ordered[max(n - rank - 1, 0)], weight), estimate.value)
    return Interval(estimate, lower, upper, alpha)


def paired_excess(
    current: ArrayLike,
    baseline: ArrayLike,
    *,
    relative: float = 0.0,
    absolute: float = 0.0,
    alpha: float,
) -> Interval:
    """Bound how far mean(current) lies above what mean(baseline) allows, paired by window.

    This is the ``interval`` of mean(current) - (1 + relative) mean(baseline) - absolute, from the
    differences of every window. Without ``absolute`` it is Fieller's (1954) test of the ratio of
    the means against 1 + relative, with these ends in place of plain t: the interval excludes 0
    where Fieller's set excludes that ratio. Above 0 is worse; where more is better, negate both.

    With skewed windows (1.3 to 2.1) and noise in proportion to them, the lower end errs 0.6 alpha
    at the margin with 8 windows and 0.8 with 16 (alpha = 0.05); there a shift of 14 % known to
    3.1 % is beyond a margin of 5 % in 83 to 87 % of cases, against 88 % by plain t. Noise that is
    itself skewed by 2 on top errs up to 2 alpha on its own side.

    Differences no larger than the rounding of their terms count as 0, so identical sequences, or
    ones that are exactly ``absolute`` apart, have both ends at 0.

    Args:
        current: One figure per window.
        baseline: The same windows in the same order.
        relative: Allowed excess as a share of the magnitude of mean(baseline), not negative.
        absolute: Allowed excess in the unit of the values, not negative.
        alpha: Error of each end, above 0 and below 0.5.

    Raises:
        ValueError: As for ``interval``; windows of different number; a margin that is negative.
    """
    now, then = _paired(current, baseline)
    for name, margin in (("relative", relative), ("absolute", absolute)):
        if not 0 <= margin < math.inf:
            raise ValueError(f"{name} must be finite and not negative, not {margin}")
    allowed = (1 + math.copysign(relative, clustered_mean(then).value)) * then
    excess = now - allowed - absolute
    rounding = np.finfo(np.float64).eps * (np.abs(now) + np.abs(allowed) + absolute)
    return interval(np.where(np.abs(excess) <= rounding, 0.0, excess), alpha)


def relative_change(current: ArrayLike, baseline: ArrayLike) -> Estimate:
    """Estimate mean(current) / mean(baseline) - 1 and its paired error, for messages.

    The error is the delta method's, error of mean(current - ratio baseline) / |mean(baseline)|
    (Cochran 1977, section 6.4). Decide with ``paired_excess``, which does not linearise the ratio.

    Args:
        current: One figure per window.
        baseline: The same windows in the same order.

    Raises:
        ValueError: As for ``paired_excess``, or mean(baseline) is 0.
    """
    now, then = _paired(current, baseline)
    scale = clustered_mean(then).value
    if scale == 0:
        raise ValueError("the mean of the baseline is 0, so that no change is relative to it")
    ratio = clustered_mean(now).value / scale
    residual = clustered_mean(now - ratio * then)
    return Estimate(ratio - 1, residual.error / abs(scale), residual.n)


def judge(found: Interval, limit: float = 0.0) -> Verdict:
    """Decide non-inferiority against a largest allowed value: an improvement never fails.

    PASS when the upper end is within the limit, FAIL when the lower end is beyond it, otherwise
    INCONCLUSIVE. A wrong PASS and a wrong FAIL each have the error of one end, which ``interval``
    states; split alpha over repeated looks.

    Args:
        found: The interval of what is limited.
        limit: Largest allowed value, in its unit.

    Raises:
        ValueError: The limit is NaN.
    """
    if math.isnan(limit):
        raise ValueError("the limit is NaN, which nothing can be compared with")
    if found.upper <= limit:
        return Verdict.PASS
    if found.lower > limit:
        return Verdict.FAIL
    return Verdict.INCONCLUSIVE


@lru_cache(maxsize=256)
def t_quantile(p: float, df: float) -> float:
    """Quantile of Student's t, to a relative 1e-9 for p at least 1e-6 from a half and 1e-12 from 1.

    Bisects the upper tail I_x(df / 2, 1 / 2) / 2 with x = df / (df + t^2) of the regularised
    incomplete beta function (Abramowitz and Stegun 1964, 26.5.27).

    Args:
        p: Probability below the quantile, 1e-100 or more and below 1.
        df: Degrees of freedom, 1 to 1e5.

    Raises:
        ValueError: p or df out of range.
    """
    if not 1e-100 <= p < 1:
        raise ValueError(f"p must be at least 1e-100 and below 1, not {p}")
    if not 1 <= df <= 1e5:
        raise ValueError(f"df must be between 1 and 1e5, not {df}")
    tail = min(p, 1 - p)
    if tail == 0.5:
        return 0.0
    low, high = 0.0, 1.0
    while _t_tail(high, df) > tail:
        low, high = high, 2 * high
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_tail(middle, df) > tail else (low, middle)
    return math.copysign(high, p - 0.5)


def _t_tail(t: float, df: float) -> float:
    """Probability that Student's t exceeds a t that is not negative."""
    x, y = df / (df + t * t), t * t / (df + t * t)
    # The fraction converges fast on this side of the beta distribution's mean only.
    if x * (df + 5) < df + 2:
        return _beta_fraction(df / 2, 0.5, x, y) / 2
    return (1 - _beta_fraction(0.5, df / 2, y, x)) / 2


def _beta_fraction(a: float, b: float, x: float, y: float) -> float:
    """I_x(a, b) with y = 1 - x, by the continued fraction of A&S 26.5.8 and Lentz's method."""
    tiny = 1e-300
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction, change, m = d, 0.0, 0
    while abs(change - 1) > 1e-15 and m < 10_000:
        m += 1
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + term * d or tiny)
            c = 1 + term / c or tiny
            change = c * d
            fraction *= change
    ln_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return math.exp(a * math.log(x) + b * math.log(y) - ln_beta) * fraction / a


def _reaches(influence: NDArray[np.float64], alpha: float) -> tuple[float, float]:
    """How many standard errors the ends lie below and above the mean."""
    n = influence.size
    if n < 3:
        return math.inf, math.inf
    t = t_quantile(1 - alpha, n - 1)
    unit = influence / math.hypot(*influence)
    skewness = n * math.sqrt(n - 1) / (n - 2) * math.fsum(unit**3)
    caution = math.sqrt(6 * n * (n - 1) / ((n - 2) * (n + 1) * (n + 3)))

    def reach(tail: float) -> float:
        b = max(tail + caution, 0.0) / (6 * math.sqrt(n))
        return t + b * (1 + 2 * t**2) + 4 * b**2 * (t + 2 * t**3)

    return reach(-skewness), reach(skewness)


def _median_error(ordered: NDArray[np.float64]) -> float:
    """Standard deviation of the median of n values drawn with replacement from n ordered ones."""
    n = ordered.size
    if n == 1:
        return math.inf
    half = (n + 1) // 2
    # Below and up to each value, in shares of the sample.
    below, up_to = np.arange(n) / n, np.arange(1, n + 1) / n
    at_most = np.array(
        [math.fsum(math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(half, n + 1))
         for p in up_to]
    )  # fmt: skip
    alone = np.diff(at_most, prepend=0.0)
    deviation = ordered - np.median(ordered)
    if n % 2:
        mean, square = alone @ deviation, alone @ deviation**2
        return math.sqrt(max(float(square - mean**2), 0.0))
    # The two middle ones: half of the draws up to value i, the others from value j > i.
    left = up_to**half - below**half
    right = (1 - below) ** half - (1 - up_to) ** half
    chance = np.triu(float(math.comb(n, half)) * np.outer(left, right), 1)
    chance[np.diag_indices(n)] = alone - chance.sum(axis=1)
    middle = (deviation[:, None] + deviation) / 2
    mean, square = (chance * middle).sum(), (chance * middle**2).sum()
    return math.sqrt(max(float(square - mean**2), 0.0))


def _between(near: float, far: float, weight: float) -> float:
    return float(near + weight * (far - near))


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must be above 0 and below 0.5, not {alpha}")


def _linearised(
    values: NDArray[np.float64], weights: ArrayLike | None
) -> tuple[Estimate, NDArray[np.float64]]:
    """The weighted mean, and each window's influence on it: its deviation in equal shares."""
    share = np.ones_like(values) if weights is None else _checked("weights", weights)
    n = values.size
    if share.size != n:
        raise ValueError(f"{share.size} weights do not fit {n} values")
    if not (share > 0).all():
        raise ValueError("weights must be positive")
    total = math.fsum(share)
    mean = math.fsum(share * values) / total
    # Rounding must not take the mean of equal values away from them.
    mean = min(max(mean, float(values.min())), float(values.max()))
    influence = share * (values - mean) * (n / total)
    error = math.hypot(*influence) / math.sqrt(n * (n - 1)) if n > 1 else math.inf
    return Estimate(mean, error, n), influence


def _paired(
    current: ArrayLike, baseline: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    now, then = _checked("current", current), _checked("baseline", baseline)
    if now.size != then.size:
        raise ValueError(f"{now.size} current windows do not pair with {then.size} of the baseline")
    return now, then


def _checked(name: str, figures: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(figures, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be one figure per window, not of shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite; {np.sum(~np.isfinite(array))} are not")
    return array
