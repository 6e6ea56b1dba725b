"""Statistics of windows: formulas against constants, ends against simulation, rules as laws."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pytest_ondevice.model.verdict import Verdict
from pytest_ondevice.stats import (
    Estimate,
    Interval,
    clustered_mean,
    interval,
    judge,
    paired_excess,
    relative_change,
    t_quantile,
)

lawful = settings(max_examples=80, deadline=None, derandomize=True, database=None)
figures = st.floats(-1e3, 1e3).filter(lambda x: x == 0 or abs(x) > 1e-6)
pairs = st.lists(st.tuples(figures, figures), min_size=3, max_size=12)
margins = st.floats(0, 2)
alphas = st.sampled_from([0.01, 0.05, 0.2, 0.49])
LENIENCY = [Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS]


def between(lower, upper):
    return Interval(Estimate((lower + upper) / 2, 1.0, 8), lower, upper, 0.05)


def split(windows):
    return np.array(windows).T


# Quantiles


@pytest.mark.parametrize(
    ("p", "df", "quantile"),
    [
        (0.6, 9, 0.260955336473911),
        (0.95, 3, 2.3533634348018233),
        (0.95, 7, 1.8945786050900062),
        (0.99, 7, 2.9979515668685277),
        (0.95, 15, 1.753050355692572),
        (0.975, 15, 2.131449545559776),
        (0.99, 15, 2.6024802950111225),
        (0.995, 30, 2.7499956535672254),
        (0.95, 120, 1.6576508993552352),
        (0.99, 1000, 2.330082674755513),
        (0.9995, 5, 6.868826625881276),
    ],
)
def test_t_quantile_agrees_with_tables(p, df, quantile):
    assert t_quantile(p, df) == pytest.approx(quantile, rel=1e-9)


@pytest.mark.parametrize("p", [1e-12, 0.001, 0.3, 0.500001, 0.75, 0.95, 0.999, 1 - 1e-9])
def test_t_quantile_agrees_with_closed_forms(p):
    # Cotangents are tan(pi (p - 1/2)) without its loss near 0 and 1.
    cauchy = -1 / math.tan(math.pi * p) if p < 0.5 else 1 / math.tan(math.pi * (1 - p))
    assert t_quantile(p, 1) == pytest.approx(cauchy, rel=1e-9)
    assert t_quantile(p, 2) == pytest.approx((2 * p - 1) / math.sqrt(2 * p * (1 - p)), rel=1e-9)


def test_t_quantile_agrees_with_scipy():
    student = pytest.importorskip("scipy.stats").t
    for df in (1, 1.5, 4, 7, 15, 100, 1e5):
        for p in (1e-9, 0.01, 0.4999, 0.6, 0.9, 0.99999):
            assert t_quantile(p, df) == pytest.approx(float(student.ppf(p, df)), rel=1e-9)


def test_t_quantile_of_a_half_is_zero():
    assert t_quantile(0.5, 7) == 0


@pytest.mark.parametrize(
    ("p", "df"), [(0, 7), (1, 7), (-0.1, 7), (math.nan, 7), (0.9, 0.5), (0.9, 1e6)]
)
def test_t_quantile_refuses_what_it_cannot_hold(p, df):
    with pytest.raises(ValueError, match="must be"):
        t_quantile(p, df)


# Means


def test_equal_weights_give_the_textbook_mean_and_error():
    values = [0.31, 0.02, 0.17, 0.05, 0.44]
    textbook = pytest.approx(np.std(values, ddof=1) / math.sqrt(5), rel=1e-14)
    for weights in (None, [256] * 5):
        estimate = clustered_mean(values, weights)
        assert estimate.value == pytest.approx(np.mean(values), rel=1e-14)
        assert estimate.error == textbook
        assert estimate.n == 5


def test_weights_are_tokens():
    # Mean (2 + 2 x 5 + 3 x 4) / 6 = 4; sum of (w (x - 4))^2 = 4 + 4 + 0 = 8; 8 / 36 x 3 / 2.
    assert clustered_mean([2, 5, 4], [1, 2, 3]) == Estimate(4, pytest.approx(math.sqrt(1 / 3)), 3)
    assert clustered_mean([2, 5, 4], [256, 512, 768]).error == pytest.approx(math.sqrt(1 / 3))


def test_one_window_has_an_unknown_error():
    assert clustered_mean([0.3]) == Estimate(0.3, math.inf, 1)


@given(figures, st.integers(2, 50))
@lawful
def test_equal_values_have_no_error(value, n):
    assert clustered_mean([value] * n) == Estimate(value, 0, n)
    assert interval([value] * n, 0.05) == Interval(Estimate(value, 0, n), value, value, 0.05)


ONE = [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (partial(clustered_mean, []), r"values must be one figure per window, .* \(0,\)"),
        (partial(clustered_mean, [ONE]), r"values must be one figure per window, .* \(1, 3\)"),
        (partial(clustered_mean, [1, math.nan]), "values must be finite; 1 are not"),
        (partial(clustered_mean, [math.inf, -math.inf]), "values must be finite; 2 are not"),
        (partial(clustered_mean, ONE, [1, 1]), "2 weights do not fit 3 values"),
        (partial(clustered_mean, ONE, [1, 1, 0]), "weights must be positive"),
        (partial(clustered_mean, ONE, [1, 1, math.nan]), "weights must be finite"),
        (partial(interval, ONE, 0), "alpha must be above 0 and below 0.5, not 0"),
        (partial(interval, ONE, 0.5), "alpha must be"),
        (partial(interval, ONE, math.nan), "alpha must be"),
        (partial(interval, [math.nan], 0.05), "values must be finite"),
        (partial(interval, ONE, 0.05, transform=lambda x: -x), "transform must increase"),
        (partial(paired_excess, ONE, ONE[:2], alpha=0.05), "3 current windows do not pair with 2"),
        (partial(paired_excess, [], [], alpha=0.05), "current must be one figure per window"),
        (partial(paired_excess, ONE, [1, 2, math.inf], alpha=0.05), "baseline must be finite"),
        (partial(paired_excess, ONE, ONE, relative=-0.1, alpha=0.05), "relative must be"),
        (partial(paired_excess, ONE, ONE, absolute=math.nan, alpha=0.05), "absolute must be"),
        (partial(paired_excess, ONE, ONE, alpha=1), "alpha must be"),
        (partial(relative_change, ONE, ONE[:1]), "3 current windows do not pair with 1"),
        (partial(relative_change, ONE, [-1, 0, 1]), "mean of the baseline is 0"),
        (partial(judge, between(0, 1), math.nan), "limit is NaN"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


# Intervals


def test_ends_of_a_sample_worked_by_hand():
    # Mean 1, error 1, skewness 2 with a standard error of sqrt(72 / 70): the lower end is plain
    # t's, for the longest left tail that is plausible is still none.
    found = interval([0, 0, 0, 4], 0.05)
    t, b = 2.3533634348018233, (2 + math.sqrt(72 / 70)) / 12
    assert found.estimate == Estimate(1, 1, 4)
    assert found.lower == pytest.approx(1 - t)
    assert found.upper == pytest.approx(1 + t + b * (1 + 2 * t**2) + 4 * b**2 * (t + 2 * t**3))


def test_ends_of_mirrored_values_are_mirrored():
    found, mirrored = (interval(np.array([0, 0, 1, 4, 2]) * side, 0.05) for side in (1, -1))
    assert found.upper - 1.4 > 1.4 - found.lower
    assert mirrored.lower == pytest.approx(-found.upper)
    assert mirrored.upper == pytest.approx(-found.lower)


@pytest.mark.parametrize("values", [[7.0], [7.0, 8.0]])
def test_too_few_windows_say_nothing(values):
    found = interval(values, 0.05)
    assert (found.lower, found.upper) == (-math.inf, math.inf)
    assert judge(found, 1e9) is Verdict.INCONCLUSIVE


def test_a_window_is_weighed_in_the_ends_too():
    whole = interval([1.0, 2.0, 6.0, 3.0], 0.05, weights=[1, 1, 1, 1])
    uneven = interval([1.0, 2.0, 6.0, 3.0], 0.05, weights=[1, 1, 3, 1])
    assert whole == interval([1.0, 2.0, 6.0, 3.0], 0.05)
    assert uneven.estimate == clustered_mean([1.0, 2.0, 6.0, 3.0], [1, 1, 3, 1])
    assert uneven.upper > whole.upper


def test_transform_carries_value_ends_and_error():
    values = [0.021, 0.034, 0.012, 0.027, 0.030]
    ln, ratio = interval(values, 0.05), interval(values, 0.05, transform=math.exp)
    assert ratio.estimate.value == math.exp(ln.estimate.value)
    assert (ratio.lower, ratio.upper) == (math.exp(ln.lower), math.exp(ln.upper))
    assert ratio.estimate.error == pytest.approx(math.exp(0.0248) * ln.estimate.error, rel=1e-4)
    alone = interval([0.02], 0.05, transform=math.exp)
    assert (alone.lower, alone.upper, alone.estimate.error) == (0, math.inf, math.inf)


def gamma(rng, skewness, shape):
    """Mean 1."""
    k = 4 / skewness**2
    return rng.gamma(k, 1 / k, shape)


def lognormal(rng, skewness, shape):
    """Mean 1. With e = exp(sigma^2), the skewness is (e + 2) sqrt(e - 1)."""
    e = {1.3: 1.1685, 2.1: 1.385}[skewness]
    assert (e + 2) * math.sqrt(e - 1) == pytest.approx(skewness, abs=1e-3)
    return rng.lognormal(-math.log(e) / 2, math.sqrt(math.log(e)), shape)


SKEWED = pytest.mark.parametrize(
    ("draw", "skewness"), [(gamma, 1.3), (gamma, 2.1), (lognormal, 1.3), (lognormal, 2.1)]
)


@SKEWED
@pytest.mark.parametrize("n", [8, 16])
def test_ends_hold_their_coverage_on_skewed_windows(draw, skewness, n):
    found = [interval(x, 0.05) for x in draw(np.random.default_rng(n), skewness, (2500, n))]
    beyond_upper = np.mean([f.upper < 1 for f in found])
    beyond_lower = np.mean([f.lower > 1 for f in found])
    plain = [f.estimate.value + f.estimate.error * t_quantile(0.95, n - 1) < 1 for f in found]
    assert beyond_upper <= 1.5 * 0.05 < np.mean(plain)
    assert beyond_lower <= 0.05


def test_ends_are_not_needlessly_long_without_skewness():
    draws = np.random.default_rng(4).normal(size=(1000, 16))
    plain = t_quantile(0.95, 15)
    reach = [(f.upper - f.lower) / 2 / f.estimate.error for f in (interval(x, 0.05) for x in draws)]
    assert 1.05 * plain < np.median(reach) < 1.2 * plain


# Pairs


def shifted(rng, draw, skewness, n, shift, times):
    """Baseline windows, and the same ones shifted by noise in proportion to them.

    The noise is such that a shift of 14 % would be 4.5 errors of 16 windows.
    """
    baseline = draw(rng, skewness, (times, n))
    spread = 0.14 * math.sqrt(16) / 4.5 / math.sqrt(np.mean(baseline**2))
    return zip(baseline * (1 + shift + spread * rng.normal(size=(times, n))), baseline, strict=True)


def share_of(verdict, windows, alpha=0.05):
    verdicts = [judge(paired_excess(c, b, relative=0.05, alpha=alpha)) for c, b in windows]
    return verdicts.count(verdict) / len(verdicts)


@SKEWED
@pytest.mark.parametrize("n", [8, 16])
def test_paired_verdicts_hold_their_errors_at_the_bound(draw, skewness, n):
    windows = list(shifted(np.random.default_rng(n), draw, skewness, n, 0.05, times=1500))
    assert share_of(Verdict.FAIL, windows) <= 1.5 * 0.05
    assert share_of(Verdict.PASS, windows) <= 1.5 * 0.05
    assert share_of(Verdict.INCONCLUSIVE, windows) < 0.97


@SKEWED
def test_damage_fails_and_harmless_variation_does_not(draw, skewness):
    power = partial(shifted, np.random.default_rng(1), draw, skewness, 16, times=400)
    assert share_of(Verdict.FAIL, power(0.14)) > 0.75
    assert share_of(Verdict.FAIL, power(0.01)) <= 0.005
    assert share_of(Verdict.FAIL, power(0.01), alpha=0.01) == 0


def test_heavy_tails_do_not_fail_at_the_bound():
    # A correction that also shortened would fail twice as often as it says here.
    rng = np.random.default_rng(3)
    excess = gamma(rng, 2.1, (2000, 16)) * rng.normal(size=(2000, 16))
    assert np.mean([interval(x, 0.05).lower > 0 for x in excess]) <= 1.2 * 0.05


def test_pairing_takes_away_what_windows_share():
    baseline = gamma(np.random.default_rng(5), 1.3, 16)
    current = 1.01 * baseline
    assert np.corrcoef(current, baseline)[0, 1] > 0.99
    assert judge(paired_excess(current, baseline, relative=0.02, alpha=0.01)) is Verdict.PASS
    assert judge(paired_excess(current, baseline, relative=0.005, alpha=0.01)) is Verdict.FAIL
    assert clustered_mean(current).error > 0.05


@pytest.mark.parametrize("n", [2, 3, 16])
def test_identical_windows_are_exactly_no_excess(n):
    windows = np.linspace(0.1, 0.9, n) ** 3
    found = paired_excess(windows, windows, alpha=0.01)
    assert found == Interval(Estimate(0, 0, n), 0, 0, 0.01)
    assert judge(found) is Verdict.PASS


def test_a_constant_difference_is_exact():
    baseline = [0.1, 0.2, 0.3, 0.6, 0.7]
    current = [0.2, 0.30000000000000004, 0.4, 0.7, 0.7999999999999999]
    at_the_margin = paired_excess(current, baseline, absolute=0.1, alpha=0.05)
    assert (at_the_margin.lower, at_the_margin.upper) == (0, 0)
    within = paired_excess(current, baseline, absolute=0.2, alpha=0.05)
    assert within.lower == pytest.approx(-0.1)
    assert judge(within) is Verdict.PASS
    assert judge(paired_excess(current, baseline, absolute=0.09, alpha=0.05)) is Verdict.FAIL


def test_a_difference_above_rounding_counts():
    baseline = np.array([0.1, 0.2, 0.3, 0.6, 0.7])
    found = paired_excess(baseline * (1 + 1e-14), baseline, alpha=0.05)
    assert found.estimate.value == pytest.approx(0.38e-14, rel=0.05, abs=0)


def test_a_constant_ratio_is_exact():
    baseline = np.array([0.1, 0.2, 0.3, 0.6, 0.7])
    at_the_margin = paired_excess(1.05 * baseline, baseline, relative=0.05, alpha=0.05)
    assert (at_the_margin.lower, at_the_margin.upper) == (0, 0)


def test_one_window_is_not_judged():
    found = paired_excess([9.0], [1.0], alpha=0.05)
    assert (found.estimate.value, found.lower, found.upper) == (8, -math.inf, math.inf)
    assert judge(found) is Verdict.INCONCLUSIVE


def test_margins_add_up():
    found = paired_excess([3, 5, 8], [2, 4, 6], relative=0.25, absolute=0.5, alpha=0.05)
    assert found.estimate.value == pytest.approx(16 / 3 - 1.25 * 4 - 0.5)
    assert found.estimate.error == pytest.approx(np.std([0, -0.5, 0], ddof=1) / math.sqrt(3))


def test_more_is_better_when_both_are_negated():
    accuracy = np.array([0.90, 0.95, 0.97, 0.92, 0.94, 0.91])
    judged = {
        loss: judge(paired_excess(loss - accuracy, -accuracy, relative=0.02, alpha=0.05))
        for loss in (-0.01, 0.01, 0.03)
    }
    assert list(judged.values()) == [Verdict.PASS, Verdict.PASS, Verdict.FAIL]


def test_relative_change_and_its_error():
    # Residuals c - 1.25 b = 0.5, 0, -0.5: s = 0.5, over sqrt(3) and over the mean of 4.
    change = relative_change([3, 5, 7], [2, 4, 6])
    assert change == Estimate(0.25, pytest.approx(0.5 / math.sqrt(3) / 4), 3)
    assert relative_change([-3, -5, -7], [-2, -4, -6]) == change


# Verdicts


@pytest.mark.parametrize(
    ("lower", "upper", "verdict"),
    [
        (-2, -1, Verdict.PASS),
        (-1, 0, Verdict.PASS),
        (-1, 1, Verdict.INCONCLUSIVE),
        (0, 1, Verdict.INCONCLUSIVE),
        (0.1, 1, Verdict.FAIL),
        (-math.inf, math.inf, Verdict.INCONCLUSIVE),
    ],
)
def test_judge_tells_three_ways(lower, upper, verdict):
    assert judge(between(lower, upper)) is verdict
    for limit in (3, -3):
        assert judge(between(lower + limit, upper + limit), limit) is verdict


@given(figures, st.floats(0, 100), figures, st.floats(0, 100))
@lawful
def test_a_larger_limit_is_never_harder(lower, length, limit, more):
    found = between(lower, lower + length)
    assert LENIENCY.index(judge(found, limit)) <= LENIENCY.index(judge(found, limit + more))


@given(pairs, margins, margins, alphas)
@lawful
def test_an_improvement_never_fails(windows, relative, absolute, alpha):
    baseline, gain = split(windows)
    found = paired_excess(
        baseline - np.abs(gain), baseline, relative=relative, absolute=absolute, alpha=alpha
    )
    assert found.lower <= found.estimate.value <= found.upper
    assert judge(found) is not Verdict.FAIL


@given(pairs, margins, alphas, st.randoms(use_true_random=False))
@lawful
def test_the_order_of_windows_does_not_matter(windows, relative, alpha, random):
    order = random.sample(range(len(windows)), len(windows))
    here, there = (
        paired_excess(*split(w), relative=relative, alpha=alpha)
        for w in (windows, [windows[i] for i in order])
    )
    assert there.estimate.value == here.estimate.value
    assert there.lower == pytest.approx(here.lower, rel=1e-9)
    assert there.upper == pytest.approx(here.upper, rel=1e-9)


@given(pairs, margins, alphas, st.floats(1e-3, 1e3))
@lawful
def test_the_unit_does_not_matter(windows, relative, alpha, factor):
    current, baseline = split(windows)
    # The relative margin changes sides with the mean's sign, which rounding decides near 0.
    assume(abs(baseline.mean()) > 1e-6)
    here = paired_excess(current, baseline, relative=relative, alpha=alpha)
    there = paired_excess(factor * current, factor * baseline, relative=relative, alpha=alpha)
    rounding = 1e-9 * factor * np.abs(split(windows)).max()
    assert there.lower == pytest.approx(factor * here.lower, rel=1e-9, abs=rounding)
    assert there.upper == pytest.approx(factor * here.upper, rel=1e-9, abs=rounding)


@given(pairs, alphas)
@lawful
def test_a_smaller_alpha_is_never_shorter(windows, alpha):
    wide, narrow = (paired_excess(*split(windows), alpha=a) for a in (alpha / 2, alpha))
    assert wide.lower <= narrow.lower <= narrow.upper <= wide.upper


# Published measurements: llama.cpp, tools/perplexity/README.md at f364eb6f, Llama-3-8B on
# Wikitext-2 against FP16. The error of the FP16 perplexity is taken to be that of its F16 copy.

BASE, BASE_ERROR = 6.231636, 0.037828
PUBLISHED = {  # PPL, its error, change of PPL, its paired error
    "f16": (6.23316, 0.037828, 0.001524, 0.000755),
    "q8_0": (6.234284, 0.037878, 0.00265, 0.001006),
    "q6_K": (6.253382, 0.038078, 0.021748, 0.001852),
    "q5_K_M": (6.288607, 0.038338, 0.056974, 0.002598),
    "q4_K_M": (6.407115, 0.039119, 0.175482, 0.00462),
    "q3_K_M": (6.888498, 0.042669, 0.656864, 0.010071),
    "q2_K": (9.751568, 0.063312, 3.519934, 0.033863),
}


def published_windows(name):
    """Sixteen windows with the published means and errors, correlated as these imply."""
    ppl, error, _, paired = PUBLISHED[name]
    correlation = (error**2 + BASE_ERROR**2 - paired**2) / (2 * error * BASE_ERROR)
    phase = 2 * math.pi * np.arange(16) / 16
    # Orthogonal, and scaled to a standard error of the mean of 1.
    shared, own = (math.sqrt(2 * 15) * wave for wave in (np.sin(phase), np.cos(phase)))
    noise = correlation * shared + math.sqrt(1 - correlation**2) * own
    return ppl + error * noise, BASE + BASE_ERROR * shared


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_change_and_paired_error(name):
    _, _, change, paired = PUBLISHED[name]
    found = paired_excess(*published_windows(name), alpha=0.05).estimate
    # What is published as change is itself up to 3e-6 off PPL - base, beyond rounding at 5e-7.
    assert found.value == pytest.approx(change, abs=4e-6)
    assert found.error == pytest.approx(paired, rel=1e-9)


def test_pairing_is_worth_what_was_published():
    current, baseline = published_windows("q8_0")
    alone, change = clustered_mean(current), relative_change(current, baseline)
    # In percent and as quoted, to the last digit: 0.61 unpaired, 0.016 paired.
    assert 100 * alone.error / alone.value == pytest.approx(0.61, abs=0.005)
    assert 100 * change.error == pytest.approx(0.016, abs=0.0005)


def test_published_methods_get_the_verdicts_they_are_known_for():
    verdicts = {
        name: judge(paired_excess(*published_windows(name), relative=0.02, alpha=0.01))
        for name in PUBLISHED
    }
    assert [v.value for v in verdicts.values()] == ["pass"] * 4 + ["fail"] * 3
