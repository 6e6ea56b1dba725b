"""Laws of loss and of speed on real weights: planted faults turn them red, by name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import mutants
import pytest
import short

from pytest_ondevice.probe.speed import SLOWER

LOSSES = ("loss_envelope", "loss_monotone", "pareto", "marginal")

# A process whose speed is that of its artifact's bytes, or against them.
SPEEDS = """
import random
def measure(path):
    best = 1e10 * (os.path.getsize(path) / 1e8) ** {power} / 1e8 * (1 + random.gauss(0, 0.004))
    return {{"load": [0.1], "load_cold": [], "warmth": "planted", "ttft": [0.2],
            "prefill": [4 * best], "prefill_long": [4 * best], "decode": [best],
            "decode_mean": [best], "decode_deep": [best], "bandwidth": [1.2e10],
            "warm_ups": 2, "slowed": 0.0, "disturbed": []}}
timed(measure)
"""

# The real loop, over fewer tokens.
BRIEF = """
import msgspec
import pytest_ondevice.probe.speed as speed
original = speed.measure
speed.bandwidth.read_bandwidth = lambda threads: 1e10
def measure(engine, path, plan, tick):
    plan = msgspec.structs.replace(plan, prefill=32, prefill_long=32, most_warm_ups=1, cold=False)
    return original(engine, path, plan, tick)
speed.measure = measure
"""


@pytest.fixture(scope="module")
def family(shortened, tmp_path_factory):
    """A catalog of two models of one family, never quantized, one of them with fewer layers."""
    folder = tmp_path_factory.mktemp("family")
    small = short.shorten(short.weights(), folder / "small-Q4_1.gguf", 1)
    rows = ["schema = 1"]
    for name, source, layers in (("big", shortened, short.LAYERS), ("small", small, 1)):
        path = short.smooth(source, folder / f"{name}-F16.gguf", layers)
        rows += [f"[models.{name}]", 'family = "short"', f'sources = [{{ path = "{path}" }}]']
    catalog = folder / "catalog.toml"
    catalog.write_text("\n".join(rows))
    return catalog


@pytest.fixture(scope="module")
def lossless(seed, family, tmp_path_factory):
    """The clean case: what both models lose, and the laws that it keeps."""
    folder = tmp_path_factory.mktemp("lossless")
    gate = type(seed)(folder, folder / "cache", seed.text, family)
    return gate, losses(gate)


def losses(gate, *args: str):
    chosen = ("-q", "-k", "laws and (loss or pareto or marginal or threshold)")
    return gate.run(*chosen, *args, models="big,small", methods="Q4_0,Q5_0")


def anomalies(outcome, law: str, subject: str) -> list[str]:
    return next(
        one.get("anomalies", [])
        for one in outcome.report["laws"]
        if (one["law"], one["subject"]) == (law, subject)
    )


def test_what_was_never_quantized_keeps_the_laws_of_loss(lossless):
    _, outcome = lossless
    assert outcome.code == 0, outcome.out
    assert outcome.verdicts() == {
        **{f"laws.{law} {model}": "pass" for law in LOSSES for model in ("big", "small")},
        "laws.threshold short": "pass",
    }
    assert not [law for law in outcome.report["laws"] if law.get("anomalies")]


def test_a_method_that_loses_more_than_its_bits_allow(lossless, tmp_path):
    gate, _ = lossless
    release = tmp_path / "release"
    release.mkdir()
    damaged = release / "big-Q5_0.gguf"
    shutil.copyfile(gate.artifact("Q5_0", "big"), damaged)
    mutants.scale(damaged, "output_norm.weight", 4.0)
    outcome = losses(gate, f"--ondevice-artifacts={release}")
    verdicts = outcome.verdicts()
    for law in LOSSES:
        # That a bigger one is worse is warned of.
        assert verdicts[f"laws.{law} big"] == ("pass" if law == "pareto" else "fail"), outcome.out
        assert verdicts[f"laws.{law} small"] == "pass"
        said = anomalies(outcome, law, "big")
        assert said
        assert all("big-Q5_0" in one for one in said), said
    assert "OnDeviceWarning: laws.pareto big: big-Q5_0" in outcome.out
    # At its memory the smaller model, which loses less, is the one to ship.
    assert verdicts["laws.threshold short"] == "fail"
    assert all("big-Q5_0" in one for one in anomalies(outcome, "threshold", "short"))


@pytest.mark.parametrize(("power", "verdict"), [(-1, "pass"), (1, "fail")])
def test_decoding_that_gets_faster_with_more_bytes(warm, power, verdict):
    warm.plant(SPEEDS.format(power=power))
    outcome = warm.run(
        "-q", "-k", "laws and decode_time", "--ondevice-budget=release", methods="Q4_0,Q8_0"
    )
    assert outcome.verdicts() == {"laws.decode_time smollm2-135m": verdict}, outcome.out
    assert outcome.code == (verdict == "fail")


def test_a_slowed_decode_loop_is_seen_and_said(gate, tmp_path):
    """The hook that campaigns of the gate's own error rates use: of twins, one is slowed."""
    release = tmp_path / "release"
    release.mkdir()
    for name in ("Q4_0", "Q4_1"):
        shutil.copyfile(gate.artifact("Q4_0"), release / f"smollm2-135m-{name}.gguf")
    gate.plant(BRIEF)
    environment = gate.environment()
    gate.environment = lambda: environment | {SLOWER: f"1.0@{release}/smollm2-135m-Q4_1"}
    outcome = gate.run(
        *("-q", "-k", "resources and test_speed and Q4", f"--ondevice-artifacts={release}"),
        methods="Q4_0,Q4_1",
    )
    plain, slowed = (
        outcome.cell(f"smollm2-135m-{name}")["measurements"]["decode_speed"]
        for name in ("Q4_0", "Q4_1")
    )
    assert "slowed on purpose by 100%" in slowed["detail"]
    assert "slowed" not in plain.get("detail", "")
    assert slowed["value"] < 0.75 * plain["value"]


def test_under_foreign_load_speed_is_invalid_and_not_worse(gate):
    """With busy processes on every core: what was timed says so, and judges nothing."""
    gate.plant(BRIEF)
    cores = os.cpu_count() or 1
    # Sessions of their own: a scheduler may share cores between sessions, not processes.
    busy = [sys.executable, "-c", "while True: pass"]
    hogs = [subprocess.Popen(busy, start_new_session=True) for _ in range(2 * cores)]
    try:
        outcome = gate.run(
            *("-q", "-rs", "-k", "resources and test_speed and Q4_0", "--ondevice-threads=1"),
            models="pocket-s",  # a larger one takes minutes beside so many
        )
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    assert outcome.verdicts() == {"resources.speed pocket-s-Q4_0": "invalid"}, outcome.out
    assert f"of {cores} cores busy" in outcome.out
    assert outcome.code == 0  # three rounds are advisory; a verdict that binds would be red
