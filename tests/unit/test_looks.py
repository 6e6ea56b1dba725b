"""When to look, and the interval of a median: plans as laws, ends against exact probabilities."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice.model.verdict import Verdict
from pytest_ondevice.stats import Look, interval, judge, looks, median_interval

lawful = settings(max_examples=80, deadline=None, derandomize=True, database=None)
budgets = st.none() | st.integers(8, 2000)
texts = st.none() | st.integers(1, 2000)
alphas = st.sampled_from([0.01, 0.05, 0.2, 0.49])


# Plans


@pytest.mark.parametrize(
    ("budget", "held", "windows"),
    [
        (16, None, [8, 16]),
        (8, None, [8]),
        (20, None, [8, 16, 20]),
        (24, None, [8, 16, 24]),
        (200, None, [8, 16, 24, 48, 96, 192, 200]),
        (None, None, [8, 16, 24, None]),
        (None, 35, [8, 16, 24, None]),
        (None, 500, [8, 16, 24, 48, 96, 192, 384, None]),
        (None, 24, [8, 16, None]),
        (None, 5, [None]),
        (16, 500, [8, 16]),
        (16, 10, [8, None]),
        (200, 35, [8, 16, 24, None]),
    ],
)
def test_looks_by_budget_and_text(budget, held, windows):
    assert [look.windows for look in looks(budget, 0.05, held)] == windows


def test_each_look_spends_half_of_what_is_left():
    assert [look.alpha for look in looks(None, 0.08)] == [0.04, 0.02, 0.01, 0.01]
    assert looks(16, 0.05) == (Look(8, 0.025), Look(16, 0.025))
    assert looks(8, 0.05) == (Look(8, 0.05),)


@given(budgets, alphas, texts)
@lawful
def test_alphas_add_up_and_windows_grow(budget, alpha, held):
    plan = looks(budget, alpha, held)
    assert math.fsum(look.alpha for look in plan) == pytest.approx(alpha, rel=1e-12)
    counts = [math.inf if look.windows is None else look.windows for look in plan]
    assert all(one < two for one, two in itertools.pairwise(counts))
    assert counts[0] >= 8
    if held is not None:
        assert all(count < held for count in counts[:-1])
    if budget is not None:
        assert counts[-1] == budget or (held is not None and held <= budget)


@given(budgets, alphas, st.integers(1, 2000))
@lawful
def test_looks_that_the_text_reaches_are_planned_before_it_is_known(budget, alpha, held):
    before, after = looks(budget, alpha), looks(budget, alpha, held)
    reached = [look for look in before[:-1] if look.windows < held]
    assert list(after[: len(reached)]) == reached


@pytest.mark.parametrize(
    ("given_", "sentence"),
    [
        ((7, 0.05), "budget must be at least 8 windows, not 7"),
        ((None, 0.05, 0), "at least 1 window, not 0"),
        ((None, 0.5), "alpha must be"),
        ((None, 0.0), "alpha must be"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(given_, sentence):
    with pytest.raises(ValueError, match=sentence):
        looks(*given_)


def first_certain(values, plan):
    for look in plan:
        verdict = judge(interval(values[: look.windows], look.alpha))
        if verdict is not Verdict.INCONCLUSIVE:
            return verdict, look
    return Verdict.INCONCLUSIVE, plan[-1]


def test_errors_hold_over_all_looks_at_the_bound():
    # Gamma windows of skewness 1.3, less their mean: the loss is exactly at the bound.
    rng = np.random.default_rng(8)
    shape = 4 / 1.3**2
    plan = looks(None, 0.05, 35)
    found = [first_certain(x, plan)[0] for x in rng.gamma(shape, 1, (1500, 35)) - shape]
    assert found.count(Verdict.PASS) <= 1.5 * 0.05 * len(found)
    assert found.count(Verdict.FAIL) <= 0.05 * len(found)
    # Looking each time with all of alpha is what the split is for.
    greedy = [Look(look.windows, 0.05) for look in plan]
    rng = np.random.default_rng(8)
    found = [first_certain(x, greedy)[0] for x in rng.gamma(shape, 1, (1500, 35)) - shape]
    assert found.count(Verdict.PASS) > 1.5 * 0.05 * len(found)


def test_a_clear_case_ends_at_the_first_look():
    rng = np.random.default_rng(9)
    plan = looks(None, 0.05, 35)
    for side, verdict in ((-1, Verdict.PASS), (1, Verdict.FAIL)):
        found = [first_certain(5 * side + rng.normal(size=35), plan) for _ in range(100)]
        assert all(one == (verdict, plan[0]) for one in found)


# Medians


def rank_error(n, rank):
    """Probability that the true median lies below the value of that rank."""
    return sum(math.comb(n, u) for u in range(rank)) / 2**n


@pytest.mark.parametrize(("n", "rank"), [(3, 1), (5, 1), (8, 1), (8, 2), (8, 3), (16, 5)])
def test_ends_are_values_where_a_rank_has_just_that_error(n, rank):
    values = np.random.default_rng(n).normal(size=n)
    found = median_interval(values, rank_error(n, rank))
    ordered = np.sort(values)
    assert found.lower == pytest.approx(ordered[rank - 1], abs=1e-12)
    assert found.upper == pytest.approx(ordered[n - rank], abs=1e-12)


def test_ends_between_ranks_worked_by_hand():
    # n = 8, alpha = 0.05: e = 9/256, f = 37/256, i = (0.05 - e) / (f - e) = 0.1357142857;
    # w = 6 i / (2 + 4 i) = 0.3202247191 between the ranks 2 and 3.
    found = median_interval([0, 10, 20, 40, 50, 70, 80, 200], 0.05)
    assert found.lower == pytest.approx(13.202247191)
    assert found.upper == pytest.approx(76.797752809)
    assert found.estimate.value == 45
    assert found.estimate.n == 8


def test_error_is_the_deviation_of_every_resample():
    for values in ([3.0, -1.0, 4.0], [3.0, -1.0, 4.0, 1.5], [2.0, 7.0, 1.0, 8.0, 2.5]):
        every = [np.median(sample) for sample in itertools.product(values, repeat=len(values))]
        assert median_interval(values, 0.2).estimate.error == pytest.approx(np.std(every))


def test_too_few_rounds_say_nothing():
    for values in ([7.0], [7.0, 7.0], [7.0, 8.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]):
        found = median_interval(values, 0.05)
        assert (found.lower, found.upper) == (-math.inf, math.inf)
    assert median_interval([7.0, 8.0], 0.4).lower == -math.inf
    assert median_interval([7.0], 0.05).estimate.error == math.inf
    assert median_interval([1.0, 2.0, 3.0], 0.2).lower > 1


def test_equal_rounds_are_exact():
    found = median_interval([0.1] * 3, 0.05)
    assert (found.lower, found.estimate.value, found.upper) == (0.1, 0.1, 0.1)
    assert found.estimate.error == 0


@pytest.mark.parametrize("values", [[], [1.0, math.nan, 2.0]])
def test_a_median_of_nothing_is_refused(values):
    with pytest.raises(ValueError, match="values must be"):
        median_interval(values, 0.05)
    with pytest.raises(ValueError, match="alpha must be"):
        median_interval([1.0, 2.0, 3.0], 0.5)


rounds = st.lists(st.floats(-1, 1), min_size=3, max_size=16)


@given(rounds, alphas)
@lawful
def test_ends_enclose_the_median_and_mirror(values, alpha):
    found = median_interval(values, alpha)
    mirrored = median_interval([-value for value in values], alpha)
    assert found.lower <= found.estimate.value <= found.upper
    assert mirrored.lower == pytest.approx(-found.upper, abs=1e-12)
    assert mirrored.estimate.error == pytest.approx(found.estimate.error, abs=1e-9)


@given(rounds, alphas)
@lawful
def test_a_smaller_alpha_is_never_shorter(values, alpha):
    wide, narrow = (median_interval(values, a) for a in (alpha / 2, alpha))
    assert wide.lower <= narrow.lower + 1e-12
    assert narrow.upper <= wide.upper + 1e-12


def processes(rng, sd, times, n):
    """Logarithms of speeds: lognormal noise, one process in ten 10 to 30 % slow."""
    stalled = rng.random((times, n)) < 0.1
    return sd * rng.normal(size=(times, n)) + stalled * np.log(rng.uniform(0.7, 0.9, (times, n)))


def campaigns(rng, sd, n, loss, times=1500):
    return processes(rng, sd, times, n) - processes(rng, sd, times, n) + loss


TOLERANCE = -math.log(0.95)


@pytest.mark.parametrize("sd", [0.01, 0.04])
@pytest.mark.parametrize("n", [5, 8, 16])
def test_ends_of_campaigns_hold_their_error_at_the_bound(n, sd):
    found = [
        judge(median_interval(row, 0.05), TOLERANCE)
        for row in campaigns(np.random.default_rng(n), sd, n, TOLERANCE)
    ]
    for verdict in (Verdict.PASS, Verdict.FAIL):
        assert 0.6 * 0.05 <= found.count(verdict) / len(found) <= 1.4 * 0.05


def staged(row):
    for look in looks(16, 0.05):
        verdict = judge(median_interval(row[: look.windows], look.alpha), TOLERANCE)
        if verdict is not Verdict.INCONCLUSIVE:
            return verdict
    return Verdict.INCONCLUSIVE


def test_no_change_raises_no_alarm_and_a_slowdown_is_caught():
    rng = np.random.default_rng(2)
    for sd in (0.01, 0.04):
        eight = [judge(median_interval(row, 0.05), TOLERANCE) for row in campaigns(rng, sd, 8, 0)]
        assert eight.count(Verdict.FAIL) <= 0.01 * len(eight)
    slower = [staged(row) for row in campaigns(rng, 0.01, 16, -math.log(0.9))]
    assert slower.count(Verdict.FAIL) >= 0.95 * len(slower)
    assert slower.count(Verdict.PASS) <= 0.002 * len(slower)
