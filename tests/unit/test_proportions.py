"""Shares of right answers: figures of the literature, exact enumeration, and what must hold."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from functools import cache, partial
from statistics import NormalDist, fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice.proportions import (
    above_chance,
    clopper_pearson,
    detectable,
    detectable_alone,
    mcnemar,
    paired,
    unconditional,
    wilson,
)

lawful = settings(max_examples=80, deadline=None, derandomize=True, database=None)
counts = st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
marks = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)
SHARES = [i / 200 for i in range(1, 200)]


def chance_of(k, n, share):
    """The textbook's probability of k of n."""
    return math.comb(n, k) * share**k * (1 - share) ** (n - k)


def flipped(lost, gained, same=0):
    """Marks now and then with so many flips."""
    return [False] * lost + [True] * (gained + same), [True] * lost + [False] * gained + [
        True
    ] * same


@cache
def conditional(lost, gained, n, alpha=0.05):
    found = paired(*flipped(lost, gained, n - lost - gained), alpha=alpha)
    return found.lower, found.upper


cached_unconditional = cache(unconditional)


def realised(ends, n, losing, gaining):
    """How often the lower end is above the true change, and the upper end below it."""
    above = below = 0.0
    change, flips = gaining - losing, losing + gaining
    for m in range(n + 1):
        weight = chance_of(m, n, flips)
        if weight < 1e-7:
            continue
        for lost in range(m + 1):
            both = weight * chance_of(lost, m, losing / flips)
            if both > 1e-9:
                lower, upper = ends(lost, m - lost, n)
                above += both * (lower > change + 1e-12)
                below += both * (upper < change - 1e-12)
    return above, below


# Alone


@pytest.mark.parametrize(
    ("right", "n", "score", "exact"),
    [
        (81, 263, (0.2553, 0.3662), (0.2527, 0.3676)),
        (15, 148, (0.0624, 0.1605), (0.0578, 0.1617)),
        (0, 20, (0, 0.1611), (0, 0.1684)),
        (1, 29, (0.0061, 0.1718), (0.0009, 0.1776)),
    ],
)
def test_intervals_agree_with_newcombe_1998(right, n, score, exact):
    assert wilson(right, n) == pytest.approx(score, abs=5.1e-5)
    assert clopper_pearson(right, n) == pytest.approx(exact, abs=5.1e-5)


def test_intervals_agree_with_scipy():
    test = pytest.importorskip("scipy.stats").binomtest
    for right, n in ((0, 1), (1, 1), (3, 7), (250, 1000), (1000, 1000), (9_990, 10_000)):
        for alpha in (0.001, 0.05, 0.3):
            for method, found in (("wilson", wilson), ("exact", clopper_pearson)):
                theirs = test(right, n).proportion_ci(1 - alpha, method)
                assert found(right, n, alpha) == pytest.approx(tuple(theirs), abs=1e-11)


@given(counts, st.sampled_from([0.01, 0.05, 0.4]))
@lawful
def test_wilsons_ends_are_as_far_as_the_score_test_allows(count, alpha):
    right, n = count
    z = NormalDist().inv_cdf(1 - alpha / 2)
    lower, upper = wilson(right, n, alpha)
    assert 0 <= lower <= right / n <= upper <= 1
    for end, inside in ((lower, right > 0), (upper, right < n)):
        if inside:
            error = math.sqrt(end * (1 - end) / n)
            assert abs(right / n - end) == pytest.approx(z * error, rel=1e-9)
    assert wilson(n - right, n, alpha) == pytest.approx((1 - upper, 1 - lower), abs=1e-12)


def test_wilson_errs_as_it_says():
    missed = {}
    ends = [wilson(k, 20) for k in range(21)]
    for share in (i / 1000 for i in range(1, 1000)):
        missed[share] = math.fsum(
            chance_of(k, 20, share)
            for k, (lower, upper) in enumerate(ends)
            if not lower <= share <= upper
        )
    assert fmean(missed.values()) == pytest.approx(0.047, abs=5e-4)
    assert max(missed.values()) == pytest.approx(0.148, abs=5e-4)
    assert missed[0.992] == max(missed.values())


@pytest.mark.parametrize(("sides", "each"), [(1, 0.1), (2, 0.05)])
@pytest.mark.parametrize("n", [1, 2, 7, 20])
def test_an_exact_end_errs_its_share_of_alpha_and_no_more(n, sides, each):
    ends = [clopper_pearson(k, n, 0.1, sides=sides) for k in range(n + 1)]
    for share in SHARES:
        below = math.fsum(chance_of(k, n, share) for k in range(n + 1) if ends[k][0] > share)
        above = math.fsum(chance_of(k, n, share) for k in range(n + 1) if ends[k][1] < share)
        assert max(below, above) <= each + 1e-12
    # No end could be closer: at the end itself the error is reached.
    for k in range(1, n + 1):
        lower, upper = ends[k][0], ends[n - k][1]
        assert math.fsum(chance_of(i, n, lower) for i in range(k, n + 1)) == pytest.approx(each)
        assert math.fsum(chance_of(i, n, upper) for i in range(n - k + 1)) == pytest.approx(each)


def test_exact_ends_have_closed_forms_at_none_and_all():
    for n in (1, 5, 300, 10_000):
        assert clopper_pearson(0, n, sides=1) == (0, pytest.approx(1 - 0.05 ** (1 / n), abs=1e-12))
        assert clopper_pearson(n, n, sides=1) == (pytest.approx(0.05 ** (1 / n), abs=1e-12), 1)


@given(counts)
@lawful
def test_exact_ends_of_more_are_higher_and_of_less_alpha_wider(count):
    right, n = count
    lower, upper = clopper_pearson(right, n)
    assert lower <= right / n <= upper
    wide = clopper_pearson(right, n, 0.01)
    assert wide[0] <= lower
    assert wide[1] >= upper
    if right < n:
        more = clopper_pearson(right + 1, n)
        assert more[0] > lower
        assert more[1] >= upper


# McNemar


@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [
        (0, 0, 1),
        (1, 0, 1),
        (4, 4, 1),
        (3, 4, 1),
        (5, 0, 0.0625),
        (6, 0, 0.03125),
        (1, 7, 0.0703125),  # Bentur et al. 2009 as worked by Fagerland et al. 2013: 0.070
        (9, 3, Fraction(2 * (1 + 12 + 66 + 220), 2**12)),
        (1000, 0, 2.0**-999),
    ],
)
def test_mcnemar_of_worked_figures(lost, gained, p):
    assert mcnemar(lost, gained) == float(p)
    assert mcnemar(gained, lost) == float(p)


def test_mcnemar_is_the_sign_test_of_scipy_for_thousands_of_flips():
    test = pytest.importorskip("scipy.stats").binomtest
    for lost, gained in ((13, 2), (120, 80), (2600, 2500), (5200, 4800), (4000, 1)):
        theirs = test(lost, lost + gained).pvalue
        assert mcnemar(lost, gained) == pytest.approx(theirs, rel=1e-9, abs=1e-300)
    assert mcnemar(20_000, 0) == 0


@pytest.mark.parametrize("flips", [*range(12), 40, 101])
def test_mcnemar_errs_at_most_its_level(flips):
    p = [mcnemar(lost, flips - lost) for lost in range(flips + 1)]
    for level in {*p, 0.01, 0.05, 0.2}:
        error = sum(Fraction(math.comb(flips, k), 2**flips) for k in range(flips + 1)
                    if p[k] <= level)  # fmt: skip
        assert error <= level * (1 + 1e-12)
        # Every p that occurs is reached, so that none is larger than need be.
        assert level not in p or float(error) == pytest.approx(level)


# Paired


def test_flips_are_counted_by_item():
    now = [True, False, False, True, True, False, False]
    then = [True, True, True, False, True, False, True]
    found = paired(now, then)
    assert (found.n, found.right_now, found.right_then) == (7, 3, 5)
    assert (found.lost, found.gained, found.flips) == (3, 1, 4)
    assert found.change == pytest.approx(-2 / 7)
    assert found.p == mcnemar(3, 1) == 0.625
    assert found.alpha == 0.05


def test_ends_are_those_of_the_share_of_lost_among_flips():
    least, most = clopper_pearson(9, 12, 0.05, sides=1)
    found = paired(*flipped(9, 3, 88))
    assert (found.lower, found.upper) == pytest.approx(
        (0.12 * (1 - 2 * most), 0.12 * (1 - 2 * least))
    )
    # Each end alone errs alpha.
    share = (1 - found.upper / 0.12) / 2
    assert math.fsum(chance_of(k, 12, share) for k in range(9, 13)) == pytest.approx(0.05)


def test_without_flips_nothing_has_changed():
    found = paired([True, False, True], [True, False, True])
    assert (found.change, found.lower, found.upper, found.p) == (0, 0, 0, 1)


def test_where_all_flips_are_lost_no_end_is_beyond_them():
    found = paired(*flipped(7, 0, 13))
    assert found.lower == found.change == -7 / 20
    assert found.upper == pytest.approx(0.35 * (1 - 2 * 0.05 ** (1 / 7)))


@given(marks, st.sampled_from([0.01, 0.05, 0.3]))
@lawful
def test_ends_enclose_the_change_and_mirror(both, alpha):
    now, then = zip(*both, strict=True)
    found, mirrored = paired(now, then, alpha), paired(then, now, alpha)
    assert found.lower <= found.change <= found.upper
    assert max(-found.lower, found.upper) <= found.flips / found.n
    assert found.change == pytest.approx((found.right_now - found.right_then) / found.n)
    assert (mirrored.lower, mirrored.upper) == pytest.approx((-found.upper, -found.lower))
    assert (mirrored.p, mirrored.lost) == (found.p, found.gained)


@pytest.mark.parametrize("alpha", [0.025, 0.05, 0.2])
def test_the_upper_end_is_below_0_where_mcnemar_says_so_at_twice_alpha(alpha):
    seen = set()
    for lost, gained in itertools.product(range(16), repeat=2):
        if lost + gained:
            _, upper = conditional(lost, gained, 40, alpha)
            called = lost > gained and mcnemar(lost, gained) < 2 * alpha
            assert (upper < 0) == called
            seen.add(called)
    assert seen == {True, False}


@pytest.mark.parametrize("flips", [1, 6, 15])
def test_conditional_ends_err_at_most_alpha_given_the_flips(flips):
    n = 50
    for share in SHARES:
        change = flips / n * (1 - 2 * share)
        above = below = 0.0
        for lost in range(flips + 1):
            lower, upper = conditional(lost, flips - lost, n)
            above += chance_of(lost, flips, share) * (lower > change + 1e-12)
            below += chance_of(lost, flips, share) * (upper < change - 1e-12)
        assert max(above, below) <= 0.05 + 1e-12


def test_conditional_ends_fall_short_for_other_items_as_they_say():
    assert realised(conditional, 100, 0.05, 0.0)[0] == pytest.approx(0.44, abs=0.005)
    assert realised(conditional, 100, 0.05, 0.02)[0] == pytest.approx(0.083, abs=0.001)


# Unconditional


def test_unconditional_ends_of_worked_figures():
    # Bentur et al. 2009 as worked by Fagerland et al. 2014.
    assert unconditional(7, 1, 21, 0.025) == pytest.approx((-0.517, -0.026), abs=5e-4)
    z = NormalDist().inv_cdf(0.95)
    none = z**2 / (100 + z**2)
    assert unconditional(0, 0, 100) == pytest.approx((-none, none), abs=1e-11)


def likeliest_error(lost, gained, n, change):
    """Standard error of gained - lost under a change, at the likeliest shares under it."""

    def likelihood(losing):
        shares = (losing, losing + change, 1 - 2 * losing - change)
        some = zip((lost, gained, n - lost - gained), shares, strict=True)
        return math.fsum(count * math.log(share) for count, share in some if count)

    low, high = max(0.0, -change) + 1e-13, (1 - change) / 2 - 1e-13
    for _ in range(200):
        one, other = low + (high - low) * 0.382, low + (high - low) * 0.618
        low, high = (low, other) if likelihood(one) > likelihood(other) else (one, high)
    return math.sqrt(n * (2 * low + change - change**2))


@pytest.mark.parametrize(
    ("lost", "gained", "n"), [(7, 1, 21), (40, 20, 160), (3, 9, 12), (2, 5, 300), (6, 0, 40)]
)
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_unconditional_ends_are_as_far_as_the_score_test_allows(lost, gained, n, alpha):
    z = NormalDist().inv_cdf(1 - alpha)
    for end, side in zip(unconditional(lost, gained, n, alpha), (1, -1), strict=True):
        away = (gained - lost) - n * end
        assert away == pytest.approx(
            side * z * likeliest_error(lost, gained, n, end), rel=1e-5, abs=1e-9
        )


@given(counts, st.integers(0, 60), st.sampled_from([0.01, 0.05, 0.3]))
@lawful
def test_unconditional_ends_enclose_the_change_and_mirror(count, gained, alpha):
    lost, n = count
    gained = min(gained, n - lost)
    lower, upper = unconditional(lost, gained, n, alpha)
    assert -1 <= lower <= (gained - lost) / n + 1e-12
    assert (gained - lost) / n <= upper + 1e-12 <= 1 + 1e-12
    assert unconditional(gained, lost, n, alpha) == pytest.approx((-upper, -lower), abs=1e-12)


def test_unconditional_ends_err_as_they_say():
    found = realised(cached_unconditional, 50, 0.07, 0.01)
    assert found == (pytest.approx(0.0367, abs=5e-4), pytest.approx(0.0867, abs=5e-4))
    assert realised(cached_unconditional, 100, 0.05, 0.0)[0] < 0.059
    assert max(realised(cached_unconditional, 100, 0.02, 0.02)) < 0.051


# What could be detected


def power_of(n, discordant, change, alpha):
    """How often McNemar calls a loss, over every number of lost and gained items."""
    losing, gaining = (discordant + change) / 2, (discordant - change) / 2
    total = 0.0
    for lost in range(n + 1):
        for gained in range(n + 1 - lost):
            if lost > gained and mcnemar(lost, gained) <= alpha:
                ways = math.comb(n, lost) * math.comb(n - lost, gained)
                rest = max(1 - losing - gaining, 0) ** (n - lost - gained)
                total += ways * losing**lost * gaining**gained * rest
    return total


@pytest.mark.parametrize(("n", "discordant"), [(12, 0.9), (25, 0.5), (30, 1.0), (40, 0.4)])
@pytest.mark.parametrize(("alpha", "power"), [(0.05, 0.8), (0.1, 0.9), (0.03125, 0.5)])
def test_the_detectable_change_has_the_power_and_no_smaller_one(n, discordant, alpha, power):
    change = detectable(n, discordant, alpha, power)
    if change >= discordant:
        assert power_of(n, change, change, alpha) == pytest.approx(power, abs=1e-5)
    else:
        assert power_of(n, discordant, change, alpha) == pytest.approx(power, abs=1e-4)
        assert power_of(n, discordant, change * 0.98, alpha) < power


def test_a_change_larger_than_the_expected_flips_is_losses_alone():
    # Six lost are called at 0.05, five are not.
    change = detectable(20, 0.1)
    assert change > 0.1
    assert change == detectable(20, 0.0)
    lost = math.fsum(chance_of(k, 20, change) for k in range(6, 21))
    assert lost == pytest.approx(0.8)


def test_nothing_is_detectable_with_too_few_items():
    assert detectable(5, 0.5) is None
    assert detectable(6, 0.5) == pytest.approx(0.8 ** (1 / 6))
    assert detectable(5, 0.5, alpha=0.0625) == pytest.approx(0.8 ** (1 / 5))
    assert detectable(4, 0.5, alpha=0.0625) is None


def test_the_detectable_change_is_near_connors_for_many_items():
    def connor(n, discordant):
        a, b = NormalDist().inv_cdf(0.975), NormalDist().inv_cdf(0.8)
        low, high = 0.0, discordant
        for _ in range(60):
            middle = (low + high) / 2
            reach = a * math.sqrt(discordant) + b * math.sqrt(discordant - middle**2)
            low, high = (low, middle) if reach < middle * math.sqrt(n) else (middle, high)
        return high

    for n, discordant in ((500, 0.2), (1500, 0.1)):
        found = detectable(n, discordant)
        assert 1 < found / connor(n, discordant) < 1.04
    assert connor(50, 0.3) == pytest.approx(0.212, abs=5e-4)
    assert detectable(50, 0.3) == pytest.approx(0.219, abs=5e-4)


@pytest.mark.parametrize("discordant", [0.0, 0.02, 0.1, 0.3, 0.6])
def test_the_detectable_change_shrinks_with_items(discordant):
    found = [detectable(n, discordant) for n in (10, 20, 40, 80, 160, 320)]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == len(found)


def test_more_flips_more_power_and_less_alpha_need_a_larger_change():
    usual = detectable(200, 0.1)
    assert detectable(200, 0.2) > usual
    assert detectable(200, 0.1, power=0.9) > usual
    assert detectable(200, 0.1, alpha=0.01) > usual


@pytest.mark.parametrize(("n", "bound"), [(1, 0.99), (20, 0.5), (50, 0.9), (50, 1.0), (33, 0.1)])
@pytest.mark.parametrize(("alpha", "power"), [(0.05, 0.8), (0.2, 0.95)])
def test_alone_the_detectable_change_is_that_of_the_binomial_test(n, bound, alpha, power):
    fits = [
        k for k in range(n + 1) if math.fsum(chance_of(i, n, bound) for i in range(k + 1)) <= alpha
    ]
    share = bound - detectable_alone(n, bound, alpha, power)
    assert 0 <= share < bound
    called = math.fsum(chance_of(k, n, share) for k in fits)
    assert called == pytest.approx(power, abs=1e-9)


def test_alone_it_is_a_call_of_the_exact_upper_end():
    n, bound = 40, 0.8
    called = [k for k in range(n + 1) if clopper_pearson(k, n, 0.05, sides=1)[1] < bound]
    share = bound - detectable_alone(n, bound)
    assert math.fsum(chance_of(k, n, share) for k in called) == pytest.approx(0.8)


def test_alone_nothing_is_detectable_below_a_bound_that_chance_may_miss_wholly():
    assert detectable_alone(20, 0.01) is None
    assert detectable_alone(4, 0.5) is None
    assert detectable_alone(5, 0.5) == pytest.approx(0.5 - (1 - 0.8 ** (1 / 5)))


def test_pairs_detect_more_as_it_says():
    assert detectable_alone(100, 0.5) == pytest.approx(0.126, abs=5e-4)
    assert detectable(100, 0.1) == pytest.approx(0.088, abs=5e-4)


# Guessing


@given(st.lists(st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.9, 1.0]), min_size=1, max_size=7))
@lawful
def test_guessing_agrees_with_every_way_to_guess(chances):
    exact = [Fraction(0)] * (len(chances) + 1)
    for way in itertools.product((False, True), repeat=len(chances)):
        terms = (
            Fraction(c) if hit else 1 - Fraction(c) for c, hit in zip(chances, way, strict=True)
        )
        exact[sum(way)] += math.prod(terms, start=Fraction(1))
    for right in range(len(chances) + 1):
        p = float(sum(exact[right:]))
        assert above_chance(right, chances) == pytest.approx(p, rel=1e-12, abs=1e-15)


def test_guessing_with_equal_chances_is_binomial():
    tail = pytest.importorskip("scipy.stats").binom.sf
    for right, n in ((30, 100), (60, 100), (700, 2000), (1000, 2000)):
        assert above_chance(right, [0.25] * n) == pytest.approx(
            float(tail(right - 1, n, 0.25)), rel=1e-9
        )


def test_guessing_by_hand():
    assert above_chance(0, [0.25]) == 1
    assert above_chance(1, [0.25]) == 0.25
    assert above_chance(1, [0.5, 0.25]) == 0.625
    assert above_chance(2, [0.5, 0.25]) == 0.125
    assert above_chance(1, [0.0, 0.0]) == 0
    assert above_chance(2, [1.0, 1.0]) == 1


# What makes no sense


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (partial(wilson, 0, 0), "there must be one item or more"),
        (partial(wilson, 4, 3), "right must be between 0 and the 3 items, not 4"),
        (partial(wilson, -1, 3), "right must be between"),
        (partial(wilson, 1, 3, 0), "alpha must be above 0 and below 1, not 0"),
        (partial(clopper_pearson, 4, 3), "right must be between"),
        (partial(clopper_pearson, 1, 3, 0.5), "alpha must be above 0 and below 0.5, not 0.5"),
        (partial(clopper_pearson, 1, 3, math.nan), "alpha must be"),
        (partial(clopper_pearson, 1, 3, sides=3), "sides must be 1 or 2, not 3"),
        (partial(mcnemar, -1, 3), "must not be negative, but are -1 and 3"),
        (partial(paired, [True], [True, False]), "1 marks of now do not pair with 2 of then"),
        (partial(paired, [], []), "there must be one item or more"),
        (partial(paired, [True], [True], 0.5), "alpha must be"),
        (partial(unconditional, -1, 2, 3), "must not be negative"),
        (partial(unconditional, 2, 2, 3), "flips must be between 0 and the 3 items, not 4"),
        (partial(unconditional, 1, 2, 3, 0), "alpha must be"),
        (partial(detectable, 0, 0.1), "there must be one item or more"),
        (partial(detectable, 9, 1.1), "discordant must be a share from 0 to 1, not 1.1"),
        (partial(detectable, 9, math.nan), "discordant must be"),
        (partial(detectable, 9, 0.1, 0), "alpha must be"),
        (partial(detectable, 9, 0.1, 0.05, 1), "power must be above alpha, 0.05, and below 1"),
        (partial(detectable_alone, 9, 0), "bound must be a share above 0 and at most 1, not 0"),
        (partial(detectable_alone, 9, 0.5, 0.2, 0.1), "power must be above alpha, 0.2"),
        (partial(above_chance, 1, []), "there must be one item or more"),
        (partial(above_chance, 3, [0.5, 0.5]), "right must be between 0 and the 2 items, not 3"),
        (partial(above_chance, 1, [0.5, 1.5]), "a chance must be a share from 0 to 1, not 1.5"),
        (partial(above_chance, 1, [math.nan]), "a chance must be a share"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
