"""Published measurements through our statistics: what rejects the best known figures is wrong.

``data/llama3-8b-fidelity.json`` names its source. The accuracies are from arXiv 2601.14277
(Llama-3.1-8B-Instruct) and, as quoted by its readers, from arXiv 2505.15030 (Qwen2.5).
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pytest_ondevice.model.verdict import Verdict
from pytest_ondevice.stats import clustered_mean, interval, judge, paired_excess, relative_change

BASE, BASE_ERROR = 6.231636, 0.037828
"""Perplexity of FP16; its error is taken to be that of the F16 copy."""

WINDOWS = 564
"""As many as Wikitext-2's test text holds of 512 tokens with this tokenizer, about."""


def rows():
    path = Path(__file__).with_name("data") / "llama3-8b-fidelity.json"
    table = json.loads(path.read_text("utf-8"))
    return [
        SimpleNamespace(**dict(zip(table["columns"], row, strict=True))) for row in table["rows"]
    ]


ROWS = rows()
NAMES = [f"{row.type}{'+imatrix' if row.imatrix else ''}" for row in ROWS]
BY_NAME = dict(zip(NAMES, ROWS, strict=True))
every_row = pytest.mark.parametrize("row", ROWS, ids=NAMES)


def waves(n=WINDOWS):
    """Two orthogonal sequences of mean 0 whose standard error of the mean is 1."""
    phase = 2 * math.pi * np.arange(n) / n
    return [math.sqrt(2 * (n - 1)) * wave for wave in (np.sin(phase), np.cos(phase))]


def nll_windows(row):
    """Windows of log-perplexity with the published means and errors, correlated as these imply.

    The change of perplexity q - b has the variance q^2 var(ln q) + b^2 var(ln b) - 2 q b cov, by
    the delta method.
    """
    error, base_error = row.ppl_error / row.ppl, BASE_ERROR / BASE
    covariance = (row.ppl_error**2 + BASE_ERROR**2 - row.delta_ppl_error**2) / (2 * row.ppl * BASE)
    correlation = covariance / (error * base_error)
    shared, own = waves()
    noise = correlation * shared + math.sqrt(1 - correlation**2) * own
    return math.log(row.ppl) + error * noise, math.log(BASE) + base_error * shared


# Ratios and differences of perplexities


@every_row
def test_the_ratio_of_perplexities_is_the_published_change(row):
    current, baseline = nll_windows(row)
    ratio = interval(current - baseline, 0.05, transform=math.exp).estimate
    # What is published as change is up to 3e-6 off PPL - base, beyond rounding at 5e-7.
    assert BASE * (ratio.value - 1) == pytest.approx(row.delta_ppl, abs=4e-6)
    assert ratio.n == WINDOWS


@every_row
def test_the_errors_of_ratio_and_difference_fit(row):
    """The error of q - b = b (r - 1) is that of b r to which b's own error adds b (r - 1)."""
    current, baseline = nll_windows(row)
    ratio = interval(current - baseline, 0.05, transform=math.exp).estimate
    gap = abs(BASE * ratio.error - row.delta_ppl_error)
    assert gap <= 1.02 * BASE_ERROR * (ratio.value - 1) + 1e-6
    if ratio.value < 1.01:
        assert BASE * ratio.error == pytest.approx(row.delta_ppl_error, rel=0.02)


@pytest.mark.parametrize(
    ("name", "gain"),
    [("f16", 71), ("q8_0", 53), ("q6_K", 29), ("q4_K_M", 12), ("iq1_S+imatrix", 1.05)],
)
def test_pairing_gains_what_the_published_errors_say(name, gain):
    current, baseline = nll_windows(BY_NAME[name])
    q, b = np.exp(clustered_mean(current).value), np.exp(clustered_mean(baseline).value)
    alone = math.hypot(q * clustered_mean(current).error, b * clustered_mean(baseline).error)
    paired = paired_excess(q * current, b * baseline, alpha=0.05).estimate.error
    assert paired == pytest.approx(BY_NAME[name].delta_ppl_error, rel=1e-6)
    assert alone / paired == pytest.approx(gain, rel=0.02)


def test_the_paired_error_of_q8_0_is_a_fortieth_of_the_unpaired_one():
    current, baseline = nll_windows(BY_NAME["q8_0"])
    unpaired = clustered_mean(current).error
    ratio = interval(current - baseline, 0.05, transform=math.exp).estimate
    assert 100 * unpaired == pytest.approx(0.61, abs=0.005)
    assert 100 * ratio.error == pytest.approx(0.016, abs=0.0005)


@every_row
def test_ends_carry_over_from_the_logarithm(row):
    current, baseline = nll_windows(row)
    ln, ratio = (interval(current - baseline, 0.05, transform=t) for t in (None, math.exp))
    for one, other in ((ln.lower, ratio.lower), (ln.upper, ratio.upper)):
        assert math.exp(one) == pytest.approx(other, rel=1e-12)
    # Many even windows: the ends are about 1.645 errors away, and on the ratio's scale too.
    assert (ratio.upper - ratio.estimate.value) / ratio.estimate.error == pytest.approx(1.7, 0.05)


@every_row
def test_a_tolerance_of_two_percent_judges_as_the_published_errors_do(row):
    """Ten percent of a baseline of 0 is nothing, so the bound is 0.02 in ln(PPL/PPL(base))."""
    current, baseline = nll_windows(row)
    verdict = judge(paired_excess(current, baseline, absolute=0.02, alpha=0.01))
    away = (math.log(row.ppl / BASE) - 0.02) / (row.delta_ppl_error / row.ppl)
    if verdict is Verdict.INCONCLUSIVE:
        assert abs(away) < 4
    else:
        assert verdict is (Verdict.PASS if away < 0 else Verdict.FAIL)


def test_which_types_stay_within_two_percent():
    passed = [
        name
        for name, row in BY_NAME.items()
        if judge(paired_excess(*nll_windows(row), absolute=0.02, alpha=0.01)) is Verdict.PASS
    ]
    assert passed == ["f16", "q8_0", "q6_K", "q5_K_M", "q5_K_S", "q5_1"]


# Divergence


def kld_windows(row):
    return row.mean_kld + row.mean_kld_error * waves()[1]


PLAIN = ("f16", "q8_0", "q6_K", "q5_K_M", "q5_K_S", "q4_K_M", "q4_K_S", "q3_K_L", "q3_K_M",
         "q3_K_S", "q2_K")  # fmt: skip
IMATRIX = tuple(
    f"{name}+imatrix"
    for name in ("q4_K_M", "q4_K_S", "q3_K_L", "q3_K_M", "q3_K_S", "q2_K", "q2_K_S")
)


@pytest.mark.parametrize("family", [PLAIN, IMATRIX])
def test_divergence_rises_as_bits_are_taken_away(family):
    for more, less in pairwise(BY_NAME[name] for name in family):
        assert more.gib >= less.gib
        worse = paired_excess(kld_windows(less), kld_windows(more), alpha=0.01)
        better = paired_excess(kld_windows(more), kld_windows(less), alpha=0.01)
        assert (judge(worse), judge(better)) == (Verdict.FAIL, Verdict.PASS)


def test_divergence_orders_types_almost_as_perplexity_does():
    """Read as orders, the two agree in all but one pair of neighbours, q4_0 and an imatrix type."""
    ordered = sorted(BY_NAME, key=lambda name: BY_NAME[name].mean_kld)
    swapped = [
        (one, two)
        for one, two in pairwise(ordered)
        if interval(
            nll_windows(BY_NAME[two])[0] - nll_windows(BY_NAME[one])[0], 0.05
        ).estimate.value
        < 0
    ]
    assert swapped == [("q4_0", "q3_K_L+imatrix")]


@pytest.mark.parametrize("name", ["q4_K_M", "q4_K_S", "q3_K_L", "q3_K_M", "q3_K_S", "q2_K"])
def test_an_importance_matrix_is_an_improvement_and_never_fails(name):
    plain, better = kld_windows(BY_NAME[name]), kld_windows(BY_NAME[f"{name}+imatrix"])
    assert judge(paired_excess(better, plain, alpha=0.01)) is Verdict.PASS
    assert judge(paired_excess(plain, better, relative=0.05, alpha=0.01)) is Verdict.FAIL
    assert relative_change(better, plain).value < -0.09


@every_row
def test_divergence_tells_what_perplexity_cannot(row):
    """Every type's mean KLD is known to 1 %, while its unpaired perplexity is within 0.7 %."""
    found = clustered_mean(kld_windows(row))
    assert found.error / found.value < 0.01
    alone = row.delta_ppl / math.hypot(row.ppl_error, BASE_ERROR)
    if row.type in {"f16", "q8_0", "q6_K"}:
        assert alone < 1.645 < found.value / found.error


# Accuracies of tasks

GSM8K = 1319
"""Questions of GSM8K's test set; every published share is a whole number of them."""

LLAMA_GSM8K = (77.63, 68.31, 73.16, 74.07, 75.66, 76.04, 77.33, 77.41, 79.08, 78.47, 75.66,
               78.54, 78.17, 77.48)  # fmt: skip
QWEN_GSM8K = (33.28, 21.99, 60.8, 59.14, 52.77, 46.47, 21.46, 89.08, 89.01, 84.5)


def right(percent):
    return round(percent * GSM8K / 100)


def answers(percent, start=0):
    """One figure per question, 1 where it was answered rightly: from the start on, in a circle."""
    given = np.zeros(GSM8K)
    given[(start + np.arange(right(percent))) % GSM8K] = 1
    return given


@pytest.mark.parametrize("percent", [*LLAMA_GSM8K, *QWEN_GSM8K])
def test_published_accuracies_are_whole_numbers_of_answers(percent):
    digits = len(str(percent).partition(".")[2])
    assert 100 * clustered_mean(answers(percent)).value == pytest.approx(
        percent, abs=0.5 * 10**-digits + 1e-9
    )


def test_published_errors_of_accuracies():
    # The table gives one error per task for all types: 1.2 for gsm8k, 0.45 for hellaswag.
    errors = [100 * clustered_mean(answers(percent)).error for percent in LLAMA_GSM8K]
    assert np.mean(errors) == pytest.approx(1.2, abs=0.05)
    hellaswag = np.arange(10_042) < 0.7251 * 10_042
    assert 100 * clustered_mean(hellaswag).error == pytest.approx(0.45, abs=0.005)


def loss(before, after, *, discordant):
    """How much lower accuracy is, with as many flipped answers as there can be or as few."""
    start = right(before) if discordant else 0
    return paired_excess(-answers(after, start), -answers(before), alpha=0.01)


def test_a_great_loss_needs_no_pairing_and_one_question_is_none():
    # Qwen2.5-0.5B from Q8_0 to Q2_K: 11 points. Qwen2.5-14B from Q5_K to Q3_K: 1 of 1319.
    for discordant in (False, True):
        assert judge(loss(33.28, 21.99, discordant=discordant)) is Verdict.FAIL
    assert loss(89.08, 89.01, discordant=False).estimate.value == pytest.approx(1 / GSM8K)
    assert judge(loss(89.08, 89.01, discordant=False)) is Verdict.INCONCLUSIVE


def test_what_pairing_decides_cannot_be_read_from_accuracies():
    # Qwen2.5-1.5B from FP16 to Q5_K: 1.7 points are beyond doubt or nothing, by who flipped.
    assert judge(loss(60.8, 59.14, discordant=False)) is Verdict.FAIL
    assert judge(loss(60.8, 59.14, discordant=True)) is Verdict.INCONCLUSIVE
