"""From a measurement and a bound to a verdict, and from a predecessor to a finding."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice.judgement import judge, limits, show, show_bound, succeed
from pytest_ondevice.model.bound import Bound, Source
from pytest_ondevice.model.change import Finding, overall
from pytest_ondevice.model.measurement import Measurement
from pytest_ondevice.model.quantity import QUANTITIES, Stage
from pytest_ondevice.model.verdict import Verdict
from pytest_ondevice.proportions import clopper_pearson, mcnemar
from pytest_ondevice.stats import interval

PASS, FAIL = Verdict.PASS, Verdict.FAIL
INCONCLUSIVE, INVALID = Verdict.INCONCLUSIVE, Verdict.INVALID

lawful = settings(max_examples=80, deadline=None, derandomize=True, database=None)
figures = st.floats(1e-4, 1e3)
windows = st.lists(figures, min_size=2, max_size=12)


def plain(value, unit="", *, quantity="mine", **fields):
    return Measurement(quantity=quantity, value=value, unit=unit, **fields)


def over_windows(values, *, quantity="mean_kld", unit="nats", ids=None):
    """A measurement whose samples are ``values``, of windows w:0, w:1 and so on."""
    values = [float(value) for value in values]
    return Measurement(
        quantity=quantity,
        value=float(np.mean(values)),
        unit=unit,
        n=len(values),
        samples=tuple(values),
        sample_ids=tuple(ids or (f"w:{i}" for i in range(len(values)))),
    )


def baseline(values, *, ids=None, **tolerance):
    stored = over_windows(values, ids=ids)
    return Bound(
        source=Source.BASELINE,
        center=stored.value,
        sample_ids=stored.sample_ids,
        samples=stored.samples,
        **tolerance,
    )


def budget(**ends):
    return Bound(source=Source.BUDGET, **ends)


def noisy(n, mean, noise, seed=7):
    """Windows around a mean, and the same windows again with noise of mean 0."""
    rng = np.random.default_rng(seed)
    then = mean * rng.uniform(0.7, 1.3, n)
    wobble = rng.standard_normal(n)
    wobble -= (wobble * then).sum() / then.sum()
    return then, then * (1 + noise * wobble)


# Plain ends

BEYOND = 1e-9


@pytest.mark.parametrize(
    ("bound", "inside", "above", "below"),
    [
        (budget(upper=2.0), [2.0, -1e9, 0.0], [2 + BEYOND, 1e9], []),
        (budget(lower=2.0), [2.0, 1e9], [], [2 - BEYOND, -1e9]),
        (budget(upper=2.0, lower=-1.0), [2.0, -1.0, 0.0], [2 + BEYOND], [-1 - BEYOND]),
        (budget(upper=0.0), [0.0, -0.0], [5e-324], []),
        (budget(), [0.0, 1e300, -1e300], [], []),
        (budget(center=10.0), [10.0, -1e9], [10 + BEYOND], []),
        (budget(center=10.0, relative=0.1), [11.0, 0.0], [11 + BEYOND], []),
        (budget(center=10.0, absolute=2.0), [12.0, 0.0], [12 + BEYOND], []),
        # The larger of the two tolerances, not their sum.
        (budget(center=10.0, relative=0.1, absolute=2.0), [12.0], [12.5], []),
        (budget(center=10.0, relative=0.3, absolute=2.0), [13.0], [13.5], []),
        (budget(center=-10.0, relative=0.1), [-9.0, -20.0], [-9 + BEYOND], []),
        (budget(center=10.0, relative=0.1, lower=5.0), [5.0, 11.0], [11.5], [4.9]),
        (budget(center=10.0, relative=0.1, higher_is_better=True), [9.0, 1e9], [], [9 - BEYOND]),
        (budget(center=10.0, absolute=2.0, higher_is_better=True), [8.0, 1e9], [], [8 - BEYOND]),
        (
            budget(center=10.0, relative=0.1, upper=20.0, higher_is_better=True),
            [9.0, 20.0],
            [20 + BEYOND],
            [8.9],
        ),
    ],
)
def test_ends_are_inclusive(bound, inside, above, below):
    for value in inside:
        judgement = judge(plain(value), bound)
        assert (judgement.verdict, judgement.reason) == (PASS, "within the bound"), value
    for values, side in ((above, "above"), (below, "below")):
        for value in values:
            judgement = judge(plain(value), bound)
            assert judgement.verdict is FAIL, value
            assert judgement.reason == f"{show(value, '')} is {side} the bound"


def test_limits_of_a_center():
    assert limits(budget(upper=3.0, lower=1.0)) == (1.0, 3.0)
    assert limits(budget(center=8.0, relative=0.25)) == (None, 10.0)
    assert limits(budget(center=-8.0, relative=0.25, higher_is_better=True)) == (-10.0, None)


# What has no verdict by its value


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "bound",
    [
        budget(upper=1.0),
        budget(lower=1.0),
        budget(),
        budget(center=1.0, relative=0.5),
        baseline([1.0, 2.0, 3.0], relative=0.5),
    ],
)
def test_what_is_not_finite_fails(value, bound):
    judgement = judge(plain(value), bound)
    assert judgement.verdict is FAIL
    assert judgement.reason == "it is not finite"


@pytest.mark.parametrize("sample", [math.nan, math.inf])
def test_a_window_that_is_not_finite_fails(sample):
    measured = Measurement(
        quantity="mean_kld", value=0.1, unit="nats", samples=(0.1, sample), sample_ids=("a", "b")
    )
    for bound in (budget(upper=1.0), baseline([0.1, 0.1], ids=["a", "b"], relative=0.05)):
        judgement = judge(measured, bound)
        assert (judgement.verdict, judgement.reason) == (FAIL, "it is not finite")


@pytest.mark.parametrize("ends", [{"upper": math.nan}, {"lower": math.nan}, {"center": math.nan}])
def test_a_bound_that_is_no_number_passes_nothing(ends):
    # Whether it is refused or not passed is all the same; a gate that is always open is not.
    with contextlib.suppress(ValueError):
        assert judge(plain(1.0), budget(**ends)).verdict is not PASS


@pytest.mark.parametrize("value", [0.5, 1.5])
def test_a_disturbed_measurement_is_invalid_whatever_its_value(value):
    measured = plain(value, disturbed=("60 major page faults", "5% stolen"))
    judgement = judge(measured, budget(upper=1.0))
    assert judgement.verdict is INVALID
    assert judgement.reason == "the measurement was disturbed: 60 major page faults; 5% stolen"


# Paired by window


@pytest.mark.parametrize("n", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("higher", [False, True], ids=["lower is better", "higher is better"])
@pytest.mark.parametrize("tolerance", [{"relative": 0.05}, {"absolute": 0.01}, {}])
def test_identical_windows_pass(n, higher, tolerance):
    # However much the windows differ among themselves: nothing changed, so nothing is uncertain.
    values = [0.01 * 2**i for i in range(n)]
    bound = baseline(values, higher_is_better=higher, **tolerance)
    judgement = judge(over_windows(values), bound)
    assert judgement.verdict is PASS, judgement.reason


def test_what_differs_by_rounding_is_identical():
    # Baselines hold eight digits.
    then = [0.012345678, 0.98765432]
    measured = over_windows([0.0123456783, 0.987654318])
    judgement = judge(measured, baseline(then, relative=0.05))
    assert judgement.verdict is PASS
    assert judgement.reason == "identical to the baseline, paired over 2 windows"


def test_windows_are_identical_only_all_together():
    then = np.linspace(0.05, 0.06, 8)
    now = then * 1.14
    now[3] = then[3]
    assert judge(over_windows(now), baseline(then, relative=0.05)).verdict is not PASS


@lawful
@given(windows, st.randoms(use_true_random=False), st.booleans())
def test_identical_windows_pass_in_any_order(values, random, higher):
    ids = [f"w:{i}" for i in range(len(values))]
    mixed = list(range(len(values)))
    random.shuffle(mixed)
    measured = over_windows([values[i] for i in mixed], ids=[ids[i] for i in mixed])
    bound = baseline(values, ids=ids, relative=0.05, higher_is_better=higher)
    assert judge(measured, bound).verdict is PASS


def test_windows_are_paired_by_their_ids():
    # In the order of the file the change would be noise; by id it is 14 % in every window.
    then = np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08])
    ids = [f"text:{i}" for i in range(8)]
    bound = baseline(then, ids=ids, relative=0.05)
    backwards = over_windows((then * 1.14)[::-1], ids=ids[::-1])
    judgement = judge(backwards, bound)
    assert judgement.verdict is FAIL
    assert judgement.reason == (
        "+14.0% ± 0.0% against the baseline, paired over 8 windows: beyond the tolerance"
    )
    crossed = over_windows((then * 1.14)[::-1], ids=ids)
    assert judge(crossed, bound).verdict is INCONCLUSIVE


def test_only_common_windows_count():
    ids = [f"w:{i}" for i in range(8)]
    then = np.linspace(0.05, 0.06, 8)
    bound = baseline(then, ids=ids, relative=0.05)
    # Windows that the baseline lacks are ten times as bad, which says nothing.
    measured = over_windows(
        [*then[:4], 0.5, 0.5, 0.5, 0.5], ids=[*ids[:4], "x:0", "x:1", "x:2", "x:3"]
    )
    judgement = judge(measured, bound)
    assert judgement.verdict is PASS
    assert "paired over 4 windows" in judgement.reason


@pytest.mark.parametrize("common", [0, 1])
def test_without_pairs_the_samples_are_held_against_the_ends(common):
    ids = [f"w:{i}" for i in range(4)]
    bound = baseline([1.0, 1.1, 0.9, 1.0], ids=ids, relative=0.05)
    others = [*ids[:common], *(f"x:{i}" for i in range(4 - common))]
    passed = judge(over_windows([1.05] * 4, ids=others), bound)
    assert passed.verdict is PASS
    assert passed.reason == "1.05 nats to 1.05 nats, 4 windows: within the bound"
    failed = judge(over_windows([1.06] * 4, ids=others), bound)
    assert failed.verdict is FAIL
    assert failed.reason == "1.06 nats to 1.06 nats, 4 windows: above the bound"


def test_two_windows_are_pairs_but_prove_nothing():
    # Of the spread of two little is known: whatever their mean, it is no failure yet.
    judgement = judge(over_windows([1.5, 1.6]), baseline([1.0, 1.0], relative=0.05))
    assert judgement.verdict is INCONCLUSIVE
    assert "paired over 2 windows" in judgement.reason


@pytest.mark.parametrize("seed", range(10))
def test_a_clear_loss_fails_and_a_small_one_passes(seed):
    then, now = noisy(16, 0.05, 0.02, seed)
    bound = baseline(then, relative=0.05)
    assert judge(over_windows(now * 1.14), bound).verdict is FAIL
    assert judge(over_windows(now), bound).verdict is PASS
    assert judge(over_windows(now * 0.86), bound).verdict is PASS


def test_a_loss_is_told_with_its_error():
    then, now = noisy(16, 0.05, 0.02)
    judgement = judge(over_windows(now * 1.14), baseline(then, relative=0.05))
    assert judgement.reason == (
        "+14.0% ± 0.5% against the baseline, paired over 16 windows: beyond the tolerance"
    )


@pytest.mark.parametrize("change", [1.14, 1.0, 0.99])
def test_a_noisy_comparison_is_inconclusive(change):
    then, now = noisy(8, 0.05, 0.5)
    judgement = judge(over_windows(now * change), baseline(then, relative=0.05))
    assert judgement.verdict is INCONCLUSIVE
    assert judgement.reason.endswith(
        " against the baseline, paired over 8 windows: too uncertain to tell it from the tolerance"
    )


@lawful
@given(st.lists(st.tuples(figures, figures), min_size=2, max_size=12), st.booleans())
def test_an_improvement_never_fails(pairs, higher):
    now, then = (list(side) for side in zip(*pairs, strict=True))
    worse = math.fsum(now) > math.fsum(then)
    if higher:
        worse = math.fsum(now) < math.fsum(then)
    if worse:
        now, then = then, now
    bound = baseline(then, relative=0.05, higher_is_better=higher)
    assert judge(over_windows(now), bound).verdict is not FAIL


@lawful
@given(windows, st.floats(0.01, 0.99), st.booleans())
def test_better_in_every_window_by_the_same_share_never_fails(then, share, higher):
    factor = 1 + share if higher else 1 - share
    bound = baseline(then, absolute=0.001, higher_is_better=higher)
    assert judge(over_windows([x * factor for x in then]), bound).verdict is not FAIL


@pytest.mark.parametrize(
    ("shift", "verdict"), [(0.0, PASS), (0.15, PASS), (0.2, PASS), (0.22, FAIL), (-1.0, PASS)]
)
def test_the_larger_tolerance_rules_not_the_sum(shift, verdict):
    # 5 % of 1 is less than 0.2; both together would be 0.25.
    then = np.full(8, 1.0)
    bound = baseline(then, relative=0.05, absolute=0.2)
    assert judge(over_windows(then + shift), bound).verdict is verdict


@pytest.mark.parametrize(("factor", "verdict"), [(1.1, PASS), (1.3, PASS), (1.31, FAIL)])
def test_a_share_that_is_larger_than_the_absolute_tolerance_rules(factor, verdict):
    then = np.full(8, 1.0)
    bound = baseline(then, relative=0.3, absolute=0.2)
    assert judge(over_windows(then * factor), bound).verdict is verdict


@pytest.mark.parametrize(
    ("shift", "verdict", "start"),
    [
        (-0.03, FAIL, "-0.03 ± "),
        (-0.02, PASS, "-0.02 ± "),
        (-0.01, PASS, "-0.01 ± "),
        (0.03, PASS, "+0.03 ± "),
    ],
)
def test_where_more_is_better_less_fails(shift, verdict, start):
    then = np.array([0.875, 0.75, 0.9375, 0.8125])
    bound = baseline(then, absolute=0.02, higher_is_better=True)
    judgement = judge(over_windows(then + shift, quantity="same_top", unit="1"), bound)
    assert judgement.verdict is verdict
    assert judgement.reason.startswith(start)


def test_where_more_is_better_a_share_is_told_in_the_direction_it_went():
    then = np.array([0.9, 0.8, 0.7, 0.85])
    bound = baseline(then, relative=0.05, higher_is_better=True)
    less = judge(over_windows(then * 0.9), bound)
    assert (less.verdict, less.reason[:13]) == (FAIL, "-10.0% ± 0.0%")
    more = judge(over_windows(then * 1.1), bound)
    assert more.reason[:13] == "+10.0% ± 0.0%"


def test_a_negative_figure_that_falls_is_told_as_a_fall():
    # A ratio's logarithm below 0 that goes on falling is an improvement: no plus sign.
    then = np.array([-0.3, -0.31, -0.29, -0.3])
    bound = baseline(then, relative=0.1, absolute=0.02)
    judgement = judge(over_windows(then * 2), bound)
    assert judgement.verdict is PASS
    assert judgement.reason.startswith("-100.0% ")


def test_a_baseline_of_zero_is_compared_by_differences():
    bound = baseline([0.0, 0.0, 0.0], relative=0.05, absolute=0.02)
    judgement = judge(over_windows([0.01, 0.01, 0.01]), bound)
    assert judgement.verdict is PASS
    assert judgement.reason.startswith("+0.01 ± 0 ")
    assert judge(over_windows([0.03, 0.03, 0.03]), bound).verdict is FAIL
    # A share of nothing is nothing.
    bound = baseline([0.0, 0.0, 0.0], relative=0.05)
    judgement = judge(over_windows([0.01, 0.01, 0.01]), bound)
    assert judgement.verdict is FAIL
    assert judgement.reason.startswith("+0.01 ± 0 ")


# Words


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "B", "not finite"),
        (None, "", "not finite"),
        (2**20, "B", "1.00 MiB"),
        (152_043_520, "B", "145.00 MiB"),
        (1, "B", "0.00 MiB"),
        (0.95234567, "1", "0.9523"),
        (0.95234567, "", "0.9523"),
        (0.0, "1", "0"),
        (123456.0, "1", "1.235e+05"),
        (0.087123, "nats", "0.08712 nats"),
        (5.1438, "bits/weight", "5.144 bits/weight"),
        (41.27, "tokens/s", "41.27 tokens/s"),
        (-0.01, "s", "-0.01 s"),
    ],
)
def test_show(value, unit, text):
    assert show(value, unit) == text


@pytest.mark.parametrize(
    ("bound", "unit", "text"),
    [
        (budget(), "", "none"),
        (budget(upper=0.0), "1", "<= 0"),
        (budget(lower=5.0), "tokens/s", ">= 5 tokens/s"),
        (budget(lower=1.0, upper=2.5), "s", ">= 1 s and <= 2.5 s"),
        (budget(upper=1.5 * 2**20), "B", "<= 1.50 MiB"),
        (budget(center=0.1, relative=0.05), "nats", "<= 0.105 nats (0.1 nats + 5 %)"),
        (budget(center=0.1, relative=0.0125), "nats", "<= 0.1013 nats (0.1 nats + 1.25 %)"),
        (
            budget(center=0.01, relative=0.1, absolute=0.02),
            "1",
            "<= 0.03 (0.01 + 0.02)",
        ),
        (budget(center=1.0, relative=0.1, absolute=0.02), "1", "<= 1.1 (1 + 10 %)"),
        (
            budget(center=0.9, absolute=0.02, higher_is_better=True),
            "1",
            ">= 0.88 (0.9 - 0.02)",
        ),
        (
            budget(center=100 * 2**20, absolute=2**20),
            "B",
            "<= 101.00 MiB (100.00 MiB + 1.00 MiB)",
        ),
        (budget(center=7.0), "", "<= 7 (7 + 0 %)"),
    ],
)
def test_show_bound(bound, unit, text):
    assert show_bound(bound, unit) == text


@pytest.mark.parametrize(
    ("bound", "unit", "text"),
    [
        (budget(center=1.0, absolute=0.05, noise=0.07), "1", "<= 1.07 (1 + 0.07 of noise)"),
        (budget(center=1.0, absolute=0.05, noise=0.03), "1", "<= 1.05 (1 + 0.05)"),
        (budget(center=1.0, relative=0.1, noise=0.03), "1", "<= 1.1 (1 + 10 %)"),
        (
            budget(center=8.0, relative=0.05, noise=1.0, higher_is_better=True),
            "tokens/s",
            ">= 7 tokens/s (8 tokens/s - 1 tokens/s of noise)",
        ),
    ],
)
def test_noise_that_widens_a_bound_is_called_so(bound, unit, text):
    assert show_bound(bound, unit) == text


# By samples of its own


EIGHT = [0.10, 0.12, 0.08, 0.11, 0.09, 0.13, 0.07, 0.10]


@pytest.mark.parametrize("alpha", [0.05, 0.005])
def test_a_figure_with_samples_is_judged_by_their_interval(alpha):
    found = interval(EIGHT, alpha)
    low, high, room = found.lower, found.upper, 1e-6
    measured = over_windows(EIGHT)

    def verdict(**ends):
        return judge(measured, budget(**ends), alpha).verdict

    assert verdict(upper=high + room) is PASS
    assert verdict(upper=high - room) is INCONCLUSIVE
    assert verdict(upper=low + room) is INCONCLUSIVE
    assert verdict(upper=low - room) is FAIL
    assert verdict(lower=low - room) is PASS
    assert verdict(lower=low + room) is INCONCLUSIVE
    assert verdict(lower=high - room) is INCONCLUSIVE
    assert verdict(lower=high + room) is FAIL
    assert verdict(lower=low - room, upper=high + room) is PASS


def test_the_mean_alone_decides_nothing():
    # Within the bound on average, and so uncertain that it may as well be beyond.
    measured = over_windows([0.01, 0.30, 0.02, 0.25, 0.01, 0.02])
    judgement = judge(measured, budget(upper=0.15))
    assert measured.value < 0.15
    assert judgement.verdict is INCONCLUSIVE
    assert judgement.reason.endswith(" nats, 6 windows: on both sides of the bound")
    # The same mean without samples is an exact figure.
    assert judge(plain(measured.value), budget(upper=0.15)).verdict is PASS


def test_samples_that_say_nothing_of_what_they_are_are_no_windows():
    measured = plain(0.1, samples=(0.01, 0.3, 0.02, 0.07))
    assert judge(measured, budget(upper=0.15)).reason == "within the bound"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([1.0, 2.0], PASS), ([3.0, 4.0], FAIL), ([1.0, 4.0], INCONCLUSIVE)],
)
def test_rounds_too_few_for_an_interval_decide_where_they_agree(values, verdict):
    measured = timed(values, quantity="load_time", unit="s")
    judgement = judge(measured, budget(upper=2.5))
    assert judgement.verdict is verdict
    assert f"{values[0]:.4g} s to {values[1]:.4g} s, 2 rounds: " in judgement.reason


def timed(values, *, quantity="decode_ratio", unit="1", **fields):
    values = [float(value) for value in values]
    return Measurement(
        quantity=quantity,
        value=float(np.median(values)),
        unit=unit,
        n=len(values),
        samples=tuple(values),
        sample_ids=tuple(f"round:{i + 1}" for i in range(len(values))),
        **fields,
    )


def test_one_slow_round_does_not_move_a_speed():
    # The mean of these is far below the bound, the median is not.
    rounds = [30.0, 31.0, 30.5, 2.0, 30.2, 30.8, 30.4, 30.6, 30.1, 30.3, 30.7, 30.9]
    measured = timed(rounds, quantity="decode_speed", unit="tokens/s")
    judgement = judge(measured, budget(lower=29.0))
    assert judgement.verdict is PASS
    assert judgement.reason.endswith("12 rounds: within the bound")
    windows_of_it = over_windows(rounds)
    assert judge(windows_of_it, budget(lower=29.0)).verdict is not PASS


# Speeds of the same rounds


def race(now, then, **tolerance):
    """Judge a speed against its predecessor's of the same rounds."""
    stored = timed(then, quantity="decode_speed", unit="tokens/s")
    bound = Bound(
        source=Source.PREDECESSOR,
        center=stored.value,
        sample_ids=stored.sample_ids,
        samples=stored.samples,
        **({"absolute": 0.05, "higher_is_better": True} | tolerance),
    )
    return judge(timed(now, quantity="decode_speed", unit="tokens/s"), bound)


DRIFT = np.array([30.0, 60.0, 20.0, 45.0, 33.0, 51.0, 27.0, 39.0])
"""Speeds of a machine that does something else too: what is the same moves by a factor of 3."""


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.0, PASS), (1.5, PASS), (0.97, PASS), (0.93, FAIL), (0.5, FAIL)],
)
def test_speeds_are_compared_round_by_round(factor, verdict):
    judgement = race(DRIFT * factor, DRIFT)
    assert judgement.verdict is verdict
    assert judgement.reason.startswith(f"{factor - 1:+.1%} ± 0.0% against its predecessor, median")


def test_the_tolerance_of_a_speed_is_in_the_logarithm():
    edge = math.exp(-0.05)
    assert race(DRIFT * (edge + 1e-6), DRIFT).verdict is PASS
    assert race(DRIFT * (edge - 1e-6), DRIFT).verdict is FAIL
    # The noise that calibration found widens it; the larger of the two counts.
    assert race(DRIFT * 0.9, DRIFT, noise=0.12).verdict is PASS
    assert race(DRIFT * 0.9, DRIFT, noise=0.02).verdict is FAIL


def test_of_a_time_less_is_better():
    assert race(DRIFT * 0.5, DRIFT, higher_is_better=False).verdict is PASS
    judgement = race(DRIFT * 1.2, DRIFT, higher_is_better=False)
    assert judgement.verdict is FAIL
    # Told in the direction that it went, whichever is better.
    assert judgement.reason.startswith("+20.0% ")


def test_one_round_that_went_wrong_decides_nothing():
    now = DRIFT.copy()
    now[3] *= 0.01
    assert race(now, DRIFT).verdict is PASS
    slow = DRIFT * 0.8
    slow[3] *= 100
    assert race(slow, DRIFT).verdict is FAIL


def test_rounds_that_disagree_are_inconclusive():
    wobble = np.array([0.8, 1.1, 0.85, 1.0, 0.9, 1.05, 0.95, 0.97])
    judgement = race(DRIFT * wobble, DRIFT)
    assert judgement.verdict is INCONCLUSIVE
    assert judgement.reason.endswith(
        " against its predecessor, median of 8 rounds: too uncertain to tell it from the tolerance"
    )


@pytest.mark.parametrize("count", [2, 3])
def test_too_few_rounds_for_an_interval_are_inconclusive(count):
    wobble = np.array([0.5, 0.51, 0.52])[:count]
    assert race(DRIFT[:count] * wobble, DRIFT[:count]).verdict is INCONCLUSIVE


# Shares of items that are answered right


def marks(lost, gained, n=200):
    """What was right then and what is now, of n items."""
    kept = n - lost - gained
    both = [1] * (kept // 2) + [0] * (kept - kept // 2)
    then = [1] * lost + [0] * gained + both
    now = [0] * lost + [1] * gained + both
    return now, then


def answered(values, *, quantity="accuracy", **fields):
    return over_windows(values, quantity=quantity, unit="1", **fields)


def weigh(now, then, *, alpha=0.05, quantity="accuracy", source=Source.BASELINE, **tolerance):
    """Judge a share against what is on record of the same items."""
    stored = answered(then, quantity=quantity)
    bound = Bound(
        source=source,
        center=stored.value,
        sample_ids=stored.sample_ids,
        samples=stored.samples,
        **({"higher_is_better": True} | tolerance),
    )
    return judge(answered(now, quantity=quantity), bound, alpha)


@pytest.mark.parametrize("n", [2, 40, 200])
@pytest.mark.parametrize("tolerance", [{}, {"absolute": 0.03}, {"higher_is_better": False}])
def test_the_same_answers_pass_however_few(n, tolerance):
    now, then = marks(0, 0, n)
    judgement = weigh(now, then, **tolerance)
    assert judgement.verdict is PASS
    assert judgement.reason == f"the same {n} items as the baseline has"


@pytest.mark.parametrize(
    ("lost", "gained", "verdict", "change", "words"),
    [
        (1, 1, PASS, "-0.018 to +0.018", "within the tolerance"),
        (2, 0, PASS, "-0.030 to +0.003", "within the tolerance"),
        (0, 20, PASS, "+0.070 to +0.140", "within the tolerance"),
        (8, 6, INCONCLUSIVE, "-0.044 to +0.023", "too uncertain to tell it from the tolerance"),
        (12, 4, INCONCLUSIVE, "-0.077 to -0.008", "too uncertain to tell it from the tolerance"),
        (20, 2, FAIL, "-0.132 to -0.056", "beyond the tolerance"),
        (30, 5, FAIL, "-0.175 to -0.080", "beyond the tolerance"),
    ],
)
def test_answers_are_compared_item_by_item(lost, gained, verdict, change, words):
    judgement = weigh(*marks(lost, gained), absolute=0.03)
    assert judgement.verdict is verdict
    p = f"{mcnemar(lost, gained):.2g}"
    assert judgement.reason == (
        f"{lost} lost and {gained} gained of 200 items against the baseline,"
        f" exact McNemar p {p}, change {change}: {words}"
    )


def test_flips_decide_not_the_number_of_items_that_are_right():
    # Both have lost two of a hundred on balance; only one of them says so.
    assert weigh(*marks(4, 0), absolute=0.005).verdict is not PASS
    few, many = weigh(*marks(12, 0), absolute=0.01), weigh(*marks(36, 24), absolute=0.01)
    assert (few.verdict, many.verdict) == (FAIL, INCONCLUSIVE)


@given(st.integers(0, 30), st.integers(0, 30), st.sampled_from([61, 100, 400]), st.booleans())
@lawful
def test_more_right_answers_never_fail(lost, gained, n, higher):
    lost, gained = min(lost, gained), max(lost, gained)
    now, then = marks(lost, gained, n) if higher else marks(gained, lost, n)
    judgement = weigh(now, then, higher_is_better=higher)
    assert judgement.verdict is not FAIL
    assert weigh(now, then, higher_is_better=higher, absolute=1.0).verdict is PASS


@pytest.mark.parametrize(
    ("lost", "gained", "verdict"),
    [(0, 2, PASS), (30, 5, PASS), (8, 6, PASS), (6, 8, INCONCLUSIVE), (5, 30, FAIL)],
)
def test_of_flips_fewer_are_better(lost, gained, verdict):
    now, then = marks(lost, gained)
    judgement = weigh(now, then, quantity="answer_flips", higher_is_better=False, absolute=0.03)
    assert judgement.verdict is verdict
    assert judgement.reason.startswith(f"{gained} more and {lost} fewer of 200 items")


@pytest.mark.parametrize(
    ("tolerance", "verdict"),
    [
        # The change lies between -0.077 and -0.008.
        ({"absolute": 0.077}, PASS),
        ({"absolute": 0.076}, INCONCLUSIVE),
        ({"absolute": 0.008}, INCONCLUSIVE),
        ({"absolute": 0.007}, FAIL),
        ({}, FAIL),
        # The largest of the three counts, not their sum; a share is one of what it was, 0.52.
        ({"absolute": 0.04, "noise": 0.04}, INCONCLUSIVE),
        ({"absolute": 0.001, "noise": 0.077}, PASS),
        ({"absolute": 0.001, "relative": 0.149}, PASS),
        ({"absolute": 0.001, "relative": 0.146}, INCONCLUSIVE),
        ({"absolute": 0.04, "relative": 0.08}, INCONCLUSIVE),
    ],
)
def test_the_largest_tolerance_of_a_share_rules(tolerance, verdict):
    assert weigh(*marks(12, 4), **tolerance).verdict is verdict


def test_less_alpha_is_more_careful_with_answers_too():
    assert weigh(*marks(12, 4), absolute=0.007).verdict is FAIL
    assert weigh(*marks(12, 4), absolute=0.007, alpha=0.01).verdict is INCONCLUSIVE
    assert weigh(*marks(1, 1), absolute=0.02).verdict is PASS
    assert weigh(*marks(1, 1), absolute=0.02, alpha=0.01).verdict is INCONCLUSIVE


def test_answers_are_paired_by_their_items():
    now, then = marks(30, 5)
    order = np.random.default_rng(3).permutation(len(now))
    shuffled = answered([now[place] for place in order], ids=[f"w:{place}" for place in order])
    stored = answered(then)
    bound = Bound(
        source=Source.PREDECESSOR,
        center=stored.value,
        absolute=0.03,
        sample_ids=stored.sample_ids,
        samples=stored.samples,
        higher_is_better=True,
    )
    told = "30 lost and 5 gained of 200 items against its predecessor"
    assert judge(shuffled, bound).reason.startswith(told)


@pytest.mark.parametrize(("common", "asked"), [(0, "none"), (1, "only one")])
@pytest.mark.parametrize("value", [0, 1])
def test_without_common_items_nothing_is_said(common, asked, value):
    # Not even where all is right: other items are no proof of anything.
    ids = [f"w:{place}" if place < common else f"new:{place}" for place in range(40)]
    now = answered([value] * 40, ids=ids)
    stored = answered([1] * 40)
    bound = Bound(
        source=Source.BASELINE,
        center=1.0,
        absolute=0.03,
        sample_ids=stored.sample_ids,
        samples=stored.samples,
        higher_is_better=True,
    )
    judgement = judge(now, bound)
    assert judgement.verdict is INCONCLUSIVE
    assert judgement.reason == f"{asked} of the items on record was asked"


@pytest.mark.parametrize(
    ("right", "n", "verdict", "words"),
    [
        (150, 200, PASS, "0.6945 to 0.7998, 200 items: within the bound"),
        (110, 200, INCONCLUSIVE, "0.4894 to 0.6095, 200 items: on both sides of the bound"),
        (90, 200, INCONCLUSIVE, "0.3905 to 0.5106, 200 items: on both sides of the bound"),
        (80, 200, FAIL, "0.3419 to 0.4603, 200 items: below the bound"),
        # All of them right, and yet too few.
        (3, 3, INCONCLUSIVE, "0.3684 to 1, 3 items: on both sides of the bound"),
        (1, 1, INCONCLUSIVE, "0.05 to 1, 1 item: on both sides of the bound"),
        (5, 5, PASS, "0.5493 to 1, 5 items: within the bound"),
        (0, 5, FAIL, "0 to 0.4507, 5 items: below the bound"),
        (0, 1, INCONCLUSIVE, "0 to 0.95, 1 item: on both sides of the bound"),
    ],
)
def test_a_budget_of_a_share_is_held_by_its_exact_interval(right, n, verdict, words):
    measured = answered([1] * right + [0] * (n - right))
    judgement = judge(measured, budget(lower=0.5))
    assert (judgement.verdict, judgement.reason) == (verdict, words)
    # Mirrored, as flips are held by a largest number.
    flips = answered([0] * right + [1] * (n - right), quantity="answer_flips")
    assert judge(flips, budget(upper=0.5)).verdict is verdict


@pytest.mark.parametrize("alpha", [0.05, 0.005])
def test_the_interval_of_a_share_has_the_error_of_its_look(alpha):
    low, high = clopper_pearson(120, 200, alpha, sides=1)
    measured, room = answered([1] * 120 + [0] * 80), 1e-6

    def verdict(**ends):
        return judge(measured, budget(**ends), alpha).verdict

    assert verdict(lower=low - room, upper=high + room) is PASS
    assert verdict(lower=low + room) is verdict(upper=high - room) is INCONCLUSIVE
    assert verdict(lower=high - room) is verdict(upper=low + room) is INCONCLUSIVE
    assert verdict(lower=high + room) is verdict(upper=low - room) is FAIL


def test_a_count_of_answers_is_exact():
    # What has no samples is judged by its value, though it is of the same stage.
    assert judge(plain(0.0, quantity="unscored_answers"), budget(upper=0.0)).verdict is PASS
    assert judge(plain(1.0, quantity="unscored_answers"), budget(upper=0.0)).verdict is FAIL


# What became of the predecessor


def become(now, then, *, quantity="mean_kld", alpha=0.05, **tolerance):
    unit = QUANTITIES[quantity].unit
    made = timed if QUANTITIES[quantity].stage is Stage.SPEED else over_windows
    old, new = (
        made(side, quantity=quantity, unit=unit)
        if isinstance(side, (list, np.ndarray))
        else Measurement(quantity=quantity, value=side, unit=unit)
        for side in (then, now)
    )
    bound = Bound(
        source=Source.PREDECESSOR,
        center=old.value,
        sample_ids=old.sample_ids,
        samples=old.samples,
        **tolerance,
    )
    return succeed(new, old, bound, alpha)


THEN, NOW = noisy(16, 0.05, 0.005)


@pytest.mark.parametrize(
    ("now", "finding"),
    [
        (THEN, Finding.IDENTICAL),
        (THEN * (1 + 1e-9), Finding.IDENTICAL),
        (NOW, Finding.NO_WORSE),
        (NOW * 1.02, Finding.NO_WORSE),
        (NOW * 0.98, Finding.BETTER),
        (NOW * 1.08, Finding.WORSE),
        (noisy(16, 0.05, 0.9)[1], Finding.UNDECIDED),
    ],
)
def test_what_a_quantity_became(now, finding):
    change = become(now, THEN, relative=0.05)
    assert change.finding is finding
    assert (change.quantity, change.unit, change.n) == ("mean_kld", "nats", 16)
    assert change.before == pytest.approx(THEN.mean())
    assert change.after == pytest.approx(np.mean(now))
    assert change.relative
    assert change.change == pytest.approx(np.mean(now) / THEN.mean() - 1)
    against = "its predecessor, paired over 16 windows"
    assert against in change.evidence


def test_what_became_better_where_more_is_better():
    then = np.linspace(0.80, 0.95, 8)
    wobble = np.array([1, -1, 2, -2, 1, -1, 2, -2]) * 1e-3
    more = {"quantity": "same_top", "absolute": 0.02, "higher_is_better": True}
    assert become(then + wobble + 0.02, then, **more).finding is Finding.BETTER
    assert become(then + wobble - 0.01, then, **more).finding is Finding.NO_WORSE
    assert become(then + wobble - 0.05, then, **more).finding is Finding.WORSE


@pytest.mark.parametrize(
    ("factor", "finding"),
    [
        (1.0, Finding.IDENTICAL),
        (1.1, Finding.BETTER),
        (0.98, Finding.NO_WORSE),
        (0.8, Finding.WORSE),
    ],
)
def test_what_a_speed_became(factor, finding):
    more = {"quantity": "decode_speed", "absolute": 0.05, "higher_is_better": True}
    change = become(DRIFT * factor, DRIFT, **more)
    assert change.finding is finding
    assert change.relative
    assert change.change == pytest.approx(factor - 1)
    assert change.n == 8


def test_a_speed_that_is_no_worse_and_not_certainly_better_is_no_better():
    wobble = np.array([1.04, 0.98, 1.05, 0.99, 1.03, 0.98, 1.04, 1.02])
    more = {"quantity": "decode_speed", "absolute": 0.05, "higher_is_better": True}
    assert become(DRIFT * wobble, DRIFT, **more).finding is Finding.NO_WORSE


@pytest.mark.parametrize(
    ("now", "then", "finding", "change", "relative"),
    [
        (1000.0, 1000.0, Finding.IDENTICAL, 0.0, True),
        (990.0, 1000.0, Finding.BETTER, -0.01, True),
        (1005.0, 1000.0, Finding.NO_WORSE, 0.005, True),
        (1006.0, 1000.0, Finding.WORSE, 0.006, True),
        (0.0, 0.0, Finding.IDENTICAL, 0.0, False),
        (1.0, 0.0, Finding.WORSE, 1.0, False),
    ],
)
def test_what_an_exact_figure_became(now, then, finding, change, relative):
    made = become(now, then, quantity="file_size", relative=0.005)
    assert made.finding is finding
    assert made.change == pytest.approx(change)
    assert (made.relative, made.error, made.n) == (relative, None, 1)


@pytest.mark.parametrize(("now", "then"), [(None, 1.0), (1.0, None)])
def test_what_is_not_finite_never_became_better(now, then):
    made = become(now, then, quantity="file_size", relative=0.005)
    assert (made.before, made.after, made.change) == (then, now, None)
    if now is None:
        assert made.finding is Finding.WORSE
    else:
        assert made.finding not in {Finding.BETTER, Finding.IDENTICAL}


@pytest.mark.parametrize(
    ("lost", "gained", "finding"),
    [
        (0, 0, Finding.IDENTICAL),
        (1, 1, Finding.NO_WORSE),
        (2, 0, Finding.NO_WORSE),
        # More are right, but chance alone would do that in one of four cases.
        (0, 3, Finding.NO_WORSE),
        (0, 20, Finding.BETTER),
        (30, 5, Finding.WORSE),
        (8, 6, Finding.UNDECIDED),
    ],
)
def test_what_a_share_became(lost, gained, finding):
    now, then = marks(lost, gained)
    change = become(now, then, quantity="accuracy", absolute=0.03, higher_is_better=True)
    assert change.finding is finding
    assert (change.quantity, change.unit, change.n) == ("accuracy", "1", 200)
    assert (change.before, change.after) == (sum(then) / 200, sum(now) / 200)
    # A difference of shares, not a share of the share.
    assert not change.relative
    assert change.change == pytest.approx((gained - lost) / 200)
    moves = np.subtract(now, then)
    assert change.error == pytest.approx(moves.std() / math.sqrt(200))
    told = "the same 200 items as" if finding is Finding.IDENTICAL else f"{lost} lost and {gained}"
    assert change.evidence.startswith(told)
    assert "its predecessor" in change.evidence


@pytest.mark.parametrize(
    ("lost", "gained", "finding"),
    [(30, 5, Finding.BETTER), (5, 30, Finding.WORSE), (3, 0, Finding.NO_WORSE)],
)
def test_what_flips_became(lost, gained, finding):
    now, then = marks(lost, gained)
    assert become(now, then, quantity="answer_flips", absolute=0.03).finding is finding


def test_better_answers_are_called_so_at_both_ends_error_only():
    more = {"quantity": "accuracy", "absolute": 0.03, "higher_is_better": True}
    now, then = marks(0, 5)
    assert mcnemar(0, 5) == 0.0625
    assert become(now, then, **more).finding is Finding.BETTER
    assert become(now, then, alpha=0.03, **more).finding is Finding.NO_WORSE


def test_a_look_with_less_alpha_is_more_careful():
    then, now = noisy(8, 0.05, 0.03)
    assert become(now * 1.08, then, relative=0.05).finding is Finding.WORSE
    careful = become(now * 1.08, then, relative=0.05, alpha=0.0005)
    assert careful.finding is Finding.UNDECIDED


# What several changes come to


@pytest.mark.parametrize(
    ("findings", "whole"),
    [
        ([], None),
        ([Finding.IDENTICAL], Finding.IDENTICAL),
        ([Finding.IDENTICAL, Finding.NO_WORSE], Finding.NO_WORSE),
        ([Finding.NO_WORSE, Finding.BETTER, Finding.IDENTICAL], Finding.BETTER),
        ([Finding.BETTER, Finding.CHANGED], Finding.CHANGED),
        ([Finding.BETTER, Finding.UNDECIDED, Finding.CHANGED], Finding.UNDECIDED),
        ([*Finding], Finding.WORSE),
    ],
)
def test_what_changes_come_to(findings, whole):
    assert overall(findings) is whole
    assert overall(reversed(findings)) is whole
