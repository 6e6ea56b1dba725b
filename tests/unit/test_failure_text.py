"""What a person reads of an item that does not pass: five lines, whatever failed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pytest_ondevice.judgement import explain, judge, succeed
from pytest_ondevice.model.bound import Bound, Source
from pytest_ondevice.model.measurement import Measurement
from pytest_ondevice.model.quantity import QUANTITIES
from pytest_ondevice.model.verdict import Verdict

LONGEST = 200
PLACES = ("  measured  ", "  bound     ", "  why       ")


def windows(values, quantity="mean_kld", unit="nats", **fields):
    values = [float(value) for value in values]
    return Measurement(
        quantity=quantity,
        value=float(np.mean(values)),
        unit=unit,
        n=len(values),
        error=float(np.std(values, ddof=1) / math.sqrt(len(values))),
        samples=tuple(values),
        sample_ids=tuple(f"narrative:{i}" for i in range(len(values))),
        **fields,
    )


def bound_of(then, source, **fields):
    return Bound(
        source=source,
        center=then.value,
        sample_ids=then.sample_ids,
        samples=then.samples,
        **fields,
    )


THEN = [0.050, 0.040, 0.060, 0.045, 0.055, 0.052, 0.048, 0.050]
WOBBLE = np.array([1.002, 0.998, 1.001, 0.999, 1.003, 0.997, 1.0, 1.0])


def told(measured, bound, title, judgement=None):
    text = explain(measured, bound, judgement or judge(measured, bound), title)
    lines = text.split("\n")
    assert len(lines) == 5, text
    assert max(map(len, lines)) <= LONGEST, text
    assert [line[:12] for line in lines[1:4]] == [*PLACES]
    return text


def test_a_paired_loss_against_the_baseline():
    then = windows(THEN)
    measured = windows(np.array(THEN) * WOBBLE * 1.14)
    bound = bound_of(
        then,
        Source.BASELINE,
        detail="baselines/portable/m/Q4_K_M.json, recorded 2026-09-01",
        relative=0.05,
    )
    assert told(measured, bound, "fidelity.kld m-Q4_K_M") == (
        "fidelity.kld m-Q4_K_M: fail: +14.0% ± 0.1% against the baseline, paired over 8 windows:"
        " beyond the tolerance\n"
        "  measured  mean_kld 0.05701 nats ± 0.0025 (n=8)\n"
        "  bound     <= 0.0525 nats (0.05 nats + 5 %); baseline:"
        " baselines/portable/m/Q4_K_M.json, recorded 2026-09-01\n"
        "  why       mean Kullback-Leibler divergence of the next-token distribution from the"
        " reference's\n"
        "  update    the same command with --ondevice-update=fidelity accepts it"
    )


def test_a_budget_that_is_not_kept():
    measured = Measurement(quantity="peak_memory", value=1.75 * 2**30, unit="B")
    bound = Bound(
        source=Source.BUDGET,
        detail="bounds.toml $.budget[0], the board has 2 GiB",
        upper=1.5 * 2**30,
    )
    assert told(measured, bound, "budgets.kept m-Q8_0") == (
        "budgets.kept m-Q8_0: fail: 1792.00 MiB is above the bound\n"
        "  measured  peak_memory 1792.00 MiB\n"
        "  bound     <= 1536.00 MiB; budget: bounds.toml $.budget[0], the board has 2 GiB\n"
        "  why       peak resident memory above the process's own, weights read (not mapped), not"
        " repacked\n"
        "  again     the same command with -k 'kept and m-Q8_0'"
    )


def test_a_budget_that_the_windows_fail():
    measured = windows(THEN)
    bound = Bound(source=Source.BUDGET, detail="bounds.toml $.budget[1]", upper=0.04)
    assert told(measured, bound, "budgets.kept m-Q4_0") == (
        "budgets.kept m-Q4_0: fail: 0.04489 nats to 0.05511 nats, 8 windows: above the bound\n"
        "  measured  mean_kld 0.05 nats ± 0.0021 (n=8)\n"
        "  bound     <= 0.04 nats; budget: bounds.toml $.budget[1]\n"
        "  why       mean Kullback-Leibler divergence of the next-token distribution from the"
        " reference's\n"
        "  again     the same command with -k 'kept and m-Q4_0'"
    )


def test_what_is_inconclusive():
    noise = np.array([1.5, 0.6, 1.3, 0.7, 1.4, 0.8, 1.2, 0.9])
    place = "shipped:portable/m/Q4_0.json"
    bound = bound_of(windows(THEN), Source.BASELINE, detail=place, relative=0.05)
    assert told(windows(np.array(THEN) * noise), bound, "fidelity.kld m-Q4_0") == (
        "fidelity.kld m-Q4_0: inconclusive: +7.4% ± 11.7% against the baseline, paired over 8"
        " windows: too uncertain to tell it from the tolerance\n"
        "  measured  mean_kld 0.05371 nats ± 0.0076 (n=8)\n"
        "  bound     <= 0.0525 nats (0.05 nats + 5 %); baseline: shipped:portable/m/Q4_0.json\n"
        "  why       mean Kullback-Leibler divergence of the next-token distribution from the"
        " reference's\n"
        "  update    the same command with --ondevice-update=fidelity accepts it"
    )


def test_what_was_disturbed():
    measured = Measurement(
        quantity="peak_memory",
        value=100.0 * 2**20,
        unit="B",
        disturbed=("12 MiB were swapped out",),
    )
    bound = Bound(
        source=Source.BASELINE,
        detail="baselines/portable/m/Q4_0.json, recorded 2026-09-01",
        center=99.0 * 2**20,
        relative=0.02,
        absolute=3 * 2**20,
    )
    assert told(measured, bound, "resources.peak_memory m-Q4_0") == (
        "resources.peak_memory m-Q4_0: invalid: the measurement was disturbed: 12 MiB were swapped"
        " out\n"
        "  measured  peak_memory 100.00 MiB\n"
        "  bound     <= 102.00 MiB (99.00 MiB + 3.00 MiB); baseline:"
        " baselines/portable/m/Q4_0.json, recorded 2026-09-01\n"
        "  why       peak resident memory above the process's own, weights read (not mapped), not"
        " repacked\n"
        "  update    the same command with --ondevice-update=memory accepts it"
    )


def test_what_is_not_finite():
    measured = Measurement(quantity="mean_kld", value=None, unit="nats", n=16)
    bound = bound_of(windows(THEN), Source.BASELINE, detail="b.json", relative=0.05)
    assert told(measured, bound, "fidelity.kld m-Q2_K") == (
        "fidelity.kld m-Q2_K: fail: it is not finite\n"
        "  measured  mean_kld not finite (n=16)\n"
        "  bound     <= 0.0525 nats (0.05 nats + 5 %); baseline: b.json\n"
        "  why       mean Kullback-Leibler divergence of the next-token distribution from the"
        " reference's\n"
        "  update    the same command with --ondevice-update=fidelity accepts it"
    )


def test_a_loss_against_the_predecessor():
    then, now = windows(THEN), windows(np.array(THEN) * WOBBLE * 1.14)
    bound = bound_of(then, Source.PREDECESSOR, detail="release-1", relative=0.05)
    change = succeed(now, then, bound, 0.05)
    judgement = judge(now, bound)
    judgement = type(judgement)(judgement.verdict, f"{change.finding}: {change.evidence}")
    assert told(now, bound, "against.kld m-Q4_K_M", judgement) == (
        "against.kld m-Q4_K_M: fail: worse: +14.0% ± 0.1% against its predecessor, paired over 8"
        " windows: beyond the tolerance\n"
        "  measured  mean_kld 0.05701 nats ± 0.0025 (n=8)\n"
        "  bound     <= 0.0525 nats (0.05 nats + 5 %); predecessor: release-1\n"
        "  why       mean Kullback-Leibler divergence of the next-token distribution from the"
        " reference's\n"
        "  again     the same command with -k 'kld and m-Q4_K_M'"
    )


def test_a_figure_of_the_users_own():
    measured = Measurement(quantity="answer_time", value=2.5, unit="s")
    bound = Bound(source=Source.BUDGET, detail="this test", upper=2.0)
    title = "tests/test_own.py::TestChat::test_answer m-Q8_0"
    assert told(measured, bound, title) == (
        "tests/test_own.py::TestChat::test_answer m-Q8_0: fail: 2.5 s is above the bound\n"
        "  measured  answer_time 2.5 s\n"
        "  bound     <= 2 s; budget: this test\n"
        "  why       a figure of this test's own\n"
        "  again     the same command with -k 'test_answer and m-Q8_0'"
    )


def test_what_a_figure_is_made_of_is_told_with_it():
    measured = Measurement(
        quantity="planned_type_share", value=0.9, unit="1", detail="2 of 20 tensors differ"
    )
    bound = Bound(source=Source.LAW, detail="llama.cpp's rules", lower=1.0)
    text = told(measured, bound, "artifact.types m-Q4_0")
    assert "  measured  planned_type_share 0.9; 2 of 20 tensors differ\n" in text
    assert "  bound     >= 1; law: llama.cpp's rules\n" in text


def test_a_bound_without_a_detail_is_only_its_source():
    measured = Measurement(quantity="mine", value=2.0, unit="")
    text = told(measured, Bound(source=Source.BUDGET, upper=1.0), "t m-Q8_0")
    assert "  bound     <= 1; budget\n" in text


@pytest.mark.parametrize("name", QUANTITIES)
@pytest.mark.parametrize("source", Source)
def test_the_way_on_is_always_named(name, source):
    quantity = QUANTITIES[name]
    measured = Measurement(quantity=name, value=2.0, unit=quantity.unit)
    bound = Bound(source=source, upper=1.0, detail="d")
    judgement = judge(measured, bound)
    assert judgement.verdict is Verdict.FAIL
    *_, why, onward = told(measured, bound, "suite.check model-Q4_0").split("\n")
    assert why == f"  why       {quantity.why}"
    if source is Source.BASELINE and quantity.kind:
        accepts = f"--ondevice-update={quantity.kind} accepts it"
        assert onward == f"  update    the same command with {accepts}"
    else:
        # What no baseline stands behind cannot be accepted by recording one.
        assert onward == "  again     the same command with -k 'check and model-Q4_0'"
