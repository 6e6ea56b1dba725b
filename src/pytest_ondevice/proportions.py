"""Shares of right answers: how uncertain they are, paired or alone, and what they could show.

An item (a question) is one sample. All figures are shares from 0 to 1. Tests and ends rest on exact
binomial probabilities, except the two that say so: ``wilson`` and ``unconditional``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True)
class Paired:
    """The same items answered twice, such as by a quantized model now and by its source then.

    Attributes:
        n: Number of items.
        right_now: Items that are right now.
        right_then: Items that were right then.
        lost: Items that were right then and are wrong now.
        gained: Items that were wrong then and are right now.
        p: The exact two-sided McNemar p of ``lost`` against ``gained``.
        lower: Lower end of ``change``, with an error of alpha of its own.
        upper: Upper end of ``change``, with an error of alpha of its own.
        alpha: Error of each end.
    """

    n: int
    right_now: int
    right_then: int
    lost: int
    gained: int
    p: float
    lower: float
    upper: float
    alpha: float

    @property
    def flips(self) -> int:
        """Items that were right once and wrong once: what a change of accuracy can hide."""
        return self.lost + self.gained

    @property
    def change(self) -> float:
        """Accuracy now less accuracy then: below 0 is worse."""
        return (self.gained - self.lost) / self.n


def wilson(right: int, n: int, alpha: float = 0.05) -> tuple[float, float]:
    """Bound a share of right answers by the two-sided score interval of Wilson.

    Its source is Wilson (1927, Journal of the American Statistical Association 22), without a
    correction for continuity. At 0.05 it errs 0.047 on average over all true shares with 20 items,
    but up to 0.148 close to 0 and 1 (at 0.992). So it is for showing; a verdict takes an end of
    ``clopper_pearson``, which holds everywhere.

    Args:
        right: Items that are right.
        n: Items in all, one or more.
        alpha: Error of both ends together, above 0 and below 1.

    Raises:
        ValueError: ``right`` is not between 0 and ``n``, no item, or alpha out of range.
    """
    _check_count("right", right, n)
    _check_alpha(alpha, 1)
    z = NormalDist().inv_cdf(1 - alpha / 2)
    share, spread = right / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    reach = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    # Rounding must not take an end past what it is at none and at all.
    lower = 0.0 if right == 0 else middle - reach
    upper = 1.0 if right == n else middle + reach
    return lower, upper


def clopper_pearson(
    right: int, n: int, alpha: float = 0.05, *, sides: Literal[1, 2] = 2
) -> tuple[float, float]:
    """Bound a share by the exact interval, which errs at most alpha at every true share.

    The lower end is the share at which ``right`` or more would come with the probability of the
    end's error, the upper end that at which ``right`` or fewer would (Clopper and Pearson 1934,
    Biometrika 26). Both are bisected on the binomial tail, to 1e-12.

    Args:
        right: Items that are right.
        n: Items in all, one or more.
        alpha: Error, above 0 and below 0.5.
        sides: 2 where alpha is the error of both ends together, so that each has half of it; 1
            where each end alone errs alpha and only one of them is used.

    Raises:
        ValueError: ``right`` is not between 0 and ``n``, no item, alpha or sides out of range.
    """
    _check_count("right", right, n)
    _check_alpha(alpha)
    if sides not in {1, 2}:
        raise ValueError(f"sides must be 1 or 2, not {sides}")
    error = alpha / sides
    lower = 0.0 if right == 0 else _share_where(right, n, error)
    upper = 1.0 if right == n else 1 - _share_where(n - right, n, error)
    return lower, upper


def mcnemar(lost: int, gained: int) -> float:
    """Test whether as many items were lost as gained: the exact two-sided p.

    Where nothing but chance decides which way an item flips, ``lost`` is binomial (m, 1/2) with m
    the flips; p is twice the smaller tail, at most 1 (McNemar 1947, Psychometrika 12; the exact
    form is the sign test). It is summed in whole numbers and rounded once, so that no number of
    flips is too large; a p below 1e-323 is 0.

    Args:
        lost: Items right then and wrong now.
        gained: Items wrong then and right now.

    Raises:
        ValueError: A number below 0.
    """
    if lost < 0 or gained < 0:
        raise ValueError(f"lost and gained must not be negative, but are {lost} and {gained}")
    flips, fewer = lost + gained, min(lost, gained)
    ways = total = 1
    for k in range(fewer):
        ways = ways * (flips - k) // (k + 1)
        total += ways
    return min(1.0, 2 * total / (1 << flips))


def paired(now: Sequence[bool], then: Sequence[bool], alpha: float = 0.05) -> Paired:
    """Compare two sets of marks of the same items, item by item.

    The change of accuracy is (m / n) (1 - 2 theta), with m the flips among n items and theta the
    share of them that are lost. Its ends put those of ``clopper_pearson`` for theta in place of
    theta, and are conditional: m is taken as found, and only which way each of the m items flips
    is left to chance. So the upper end is below 0 just where ``mcnemar`` gives p < 2 alpha with
    more lost than gained; no end lies beyond -+ m / n; without any flip both ends are 0.

    They hold for these items and, against 0, for others of the kind. Against another bound they do
    not, since other items would flip in another number: with 5 % lost and none gained of 100
    items, the lower end is above the true change in 44 % of cases (alpha = 0.05), and at 5 % lost
    and 2 % gained in 8 %. Take ``unconditional`` there.

    Args:
        now: For each item, whether it is right now.
        then: The same items in the same order, whether they were right then.
        alpha: Error of each end, above 0 and below 0.5.

    Raises:
        ValueError: No item, marks of different number, or alpha out of range.
    """
    if len(now) != len(then):
        raise ValueError(f"{len(now)} marks of now do not pair with {len(then)} of then")
    n = len(now)
    lost = sum(1 for new, old in zip(now, then, strict=True) if old and not new)
    gained = sum(1 for new, old in zip(now, then, strict=True) if new and not old)
    _check_count("flips", lost + gained, n)
    _check_alpha(alpha)
    flips, lower, upper = lost + gained, 0.0, 0.0
    if flips:
        least, most = clopper_pearson(lost, flips, alpha, sides=1)
        lower, upper = flips / n * (1 - 2 * most), flips / n * (1 - 2 * least)
    return Paired(
        n=n,
        right_now=sum(map(bool, now)),
        right_then=sum(map(bool, then)),
        lost=lost,
        gained=gained,
        p=mcnemar(lost, gained),
        lower=lower,
        upper=upper,
        alpha=alpha,
    )


def unconditional(lost: int, gained: int, n: int, alpha: float = 0.05) -> tuple[float, float]:
    """Bound the change of accuracy among all items of the kind, of which n were asked.

    These are the ends of the score interval of Tango (1998, Statistics in Medicine 17), for which
    the number of flips is chance too: the changes d at which the difference between gained - lost
    and n d, in standard errors at their likeliest under d, is the normal quantile z of alpha.
    Without any flip the ends are -+ z^2 / (n + z^2).

    It is not exact. Realised error at alpha = 0.05 with 50, 100 and 200 items, 1 to 15 % lost and
    no more than that gained: at most 0.059 for the lower end, which lets a loss pass, and 0.087 for
    the upper end, which calls one (7 % lost, 1 % gained of 50). What is gained mirrors this.

    Args:
        lost: Items right then and wrong now.
        gained: Items wrong then and right now.
        n: Items in all, one or more.
        alpha: Error of each end, above 0 and below 0.5.

    Returns:
        Lower and upper end of accuracy now less accuracy then, to 1e-12.

    Raises:
        ValueError: Numbers that do not fit one another, or alpha out of range.
    """
    if lost < 0 or gained < 0:
        raise ValueError(f"lost and gained must not be negative, but are {lost} and {gained}")
    _check_count("flips", lost + gained, n)
    _check_alpha(alpha)
    z = NormalDist().inv_cdf(1 - alpha)
    lower = -_largest_change(lost, gained, n, z)
    return lower, _largest_change(gained, lost, n, z)


def detectable(n: int, discordant: float, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """Find the smallest change of accuracy that ``mcnemar`` would call with this power.

    The power is the exact one of the exact test, over all numbers of flips that n items may have:
    flips are binomial (n, discordant), the lost among them binomial (flips, 1/2 + change / (2
    discordant)), and only a call in the direction of the change counts. A change larger than
    ``discordant`` needs more flips than are expected, and is taken for that share of losses alone.
    The usual normal approximation (Connor 1987, Biometrics 43) promises a little more than the
    test keeps: 0.212 for 50 items of which three in ten flip, where this says 0.219.

    Exact tests come in steps, so one item more can cost power; twice as many do not. It takes half
    a second for 2000 pairs, some seconds for 10000.

    Args:
        n: Number of pairs, one or more.
        discordant: The share of items that are expected to flip, 0 to 1, such as that of an
            earlier comparison.
        alpha: Two-sided level: p <= alpha is called. For a verdict by one end of ``paired`` with
            an error of alpha, give 2 alpha.
        power: The share of cases in which it shall be called, above alpha and below 1.

    Returns:
        The change, without sign, to a relative 1e-5; None if not even the loss of all items would
        be called.

    Raises:
        ValueError: A figure out of range.
    """
    _check_count("n", n, n)
    if not 0 <= discordant <= 1:
        raise ValueError(f"discordant must be a share from 0 to 1, not {discordant}")
    _check_power(alpha, power)
    least = 1
    while mcnemar(least, 0) > alpha:
        least += 1
    if n < least:
        return None
    if _at_least(least, n, discordant) < power:
        return _share_where(least, n, power)
    weighted = _calls(n, discordant, alpha)

    def called(change: float) -> float:
        lost = min((1 + change / discordant) / 2, 1.0)
        return math.fsum(weight * _at_least(k, m, lost) for weight, m, k in weighted)

    return _bisect(called, power, 0.0, discordant, 1e-5)[1]


def detectable_alone(n: int, bound: float, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """Find how far accuracy must lie below a fixed bound to be called below it with this power.

    The call is the exact one-sided binomial test: so few are right that at the bound itself the
    probability of as few is at most alpha. It is also where the upper end of ``clopper_pearson``
    with ``sides=1`` is below the bound. Without pairs the difficulty of items is noise too, so this
    is mostly far more than ``detectable``: 0.126 against 0.088 for 100 items, a bound of one half
    and a tenth that flip.

    Args:
        n: Number of items, one or more.
        bound: The accuracy to be held, above 0 and at most 1.
        alpha: One-sided level, above 0 and below 0.5.
        power: The share of cases in which it shall be called, above alpha and below 1.

    Returns:
        The difference between bound and accuracy, to 1e-12; None if not even n wrong answers
        would be called.

    Raises:
        ValueError: A figure out of range.
    """
    _check_count("n", n, n)
    if not 0 < bound <= 1:
        raise ValueError(f"bound must be a share above 0 and at most 1, not {bound}")
    _check_power(alpha, power)
    # Counted in wrong answers: the fewest that are too many.
    low, high = 0, n + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _at_least(middle, n, 1 - bound) <= alpha else (middle, high)
    if high > n:
        return None
    return _share_where(high, n, power) - (1 - bound)


def above_chance(right: int, chances: Sequence[float]) -> float:
    """Find the probability that guessing gets as many right, or more.

    The number of right guesses is a sum of items with chances of their own (Poisson binomial). Its
    probabilities are convolved item by item, without approximation, in a time that grows with the
    square of the number of items: under a second for 3000.

    Args:
        right: Items that are right.
        chances: For each item, the probability that a guess is right.

    Returns:
        The one-sided p.

    Raises:
        ValueError: ``right`` is not between 0 and the number of items, no item, or a chance that
            is no probability.
    """
    _check_count("right", right, len(chances))
    for chance in chances:
        if not 0 <= chance <= 1:
            raise ValueError(f"a chance must be a share from 0 to 1, not {chance}")
    found = [1.0]
    for chance in chances:
        other = 1 - chance
        more = zip([*found, 0.0], [0.0, *found], strict=True)
        found = [wrong * other + correct * chance for wrong, correct in more]
    return min(1.0, math.fsum(found[right:])) if right else 1.0


def _calls(n: int, discordant: float, alpha: float) -> list[tuple[float, int, int]]:
    """Of each likely number of flips m: its probability, m, and the fewest lost that are called.

    Left out are numbers that n items have with a probability below 1e-9 in all.
    """
    rows, fewest = [], 1
    for m in range(n + 1):
        weight = _exactly(m, n, discordant)
        if weight < 1e-9 / (n + 1):
            continue
        fewest = max(fewest, m // 2 + 1)
        while fewest <= m and mcnemar(fewest, m - fewest) > alpha:
            fewest += 1
        if fewest <= m:
            rows.append((weight, m, fewest))
    return rows


def _largest_change(gained: int, lost: int, n: int, z: float) -> float:
    """The largest change, gained being for it, that z standard errors leave possible."""

    def beyond(change: float) -> float:
        # The likeliest share of lost items under this change, from Tango's quadratic.
        b = (2 * n - gained + lost) * change - gained - lost
        c = lost * change * (1 - change)
        root = math.sqrt(max(b * b + 8 * n * c, 0.0))
        # Of two forms of its larger root, the one that subtracts nothing.
        share = (root - b) / (4 * n) if b <= 0 else 2 * c / (root + b)
        variance = n * max(2 * share + change * (1 - change), 0.0)
        return (n * change - (gained - lost)) - z * math.sqrt(variance)

    return _bisect(beyond, 0.0, (gained - lost) / n, 1.0, 1e-13)[1]


def _share_where(k: int, n: int, probability: float) -> float:
    """The share at which k or more of n come with this probability; k is 1 to n."""
    return _bisect(lambda share: _at_least(k, n, share), probability, 0.0, 1.0, 1e-15)[0]


def _bisect(
    rising: Callable[[float], float], goal: float, low: float, high: float, width: float
) -> tuple[float, float]:
    """Enclose where a rising function reaches its goal; ``high`` is taken to reach it."""
    while high - low > width * max(high, width):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (low, middle) if rising(middle) >= goal else (middle, high)
    return low, high


def _at_least(k: int, n: int, share: float) -> float:
    """Probability of k or more of n: to a relative 1e-10 where it is the smaller tail, n to 1e4."""
    if k <= 0:
        return 1.0
    if k > n:
        return 0.0
    if k <= n * share:
        return 1 - _at_least(n - k + 1, n, 1 - share)
    odds = share / (1 - share)
    term, total = 1.0, 1.0
    for j in range(k, n):
        term *= (n - j) / (j + 1) * odds
        total += term
        if term < total * 1e-17:
            break
    return min(1.0, _exactly(k, n, share) * total)


def _exactly(k: int, n: int, share: float) -> float:
    """Probability of k of n."""
    if share in {0.0, 1.0}:
        return float(k == n * share)
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * math.log(share) + (n - k) * math.log1p(-share))


def _check_count(name: str, count: int, n: int) -> None:
    if n < 1:
        raise ValueError("there must be one item or more")
    if not 0 <= count <= n:
        raise ValueError(f"{name} must be between 0 and the {n} items, not {count}")


def _check_alpha(alpha: float, below: float = 0.5) -> None:
    if not 0 < alpha < below:
        raise ValueError(f"alpha must be above 0 and below {below}, not {alpha}")


def _check_power(alpha: float, power: float) -> None:
    _check_alpha(alpha)
    if not alpha < power < 1:
        raise ValueError(f"power must be above alpha, {alpha}, and below 1, not {power}")
