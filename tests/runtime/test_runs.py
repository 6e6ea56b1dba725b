"""Runs that are interrupted, killed, repeated, distributed, selected."""

from __future__ import annotations

import itertools
import os
import re
import signal
import time
from pathlib import Path

import pytest

CELL = "smollm2-135m-Q4_0"

# Processes of a campaign are many, and here only who comes when matters: they time nothing.
TRACED = """
def trace(name, original):
    def measure(*args):
        start = time.time()
        made = original(*args)
        path = next(one for one in args if isinstance(one, str))
        size = "small" if small(path) else "large"
        journal(f"{name}-{size} {start} {time.time()}")
        return made
    return measure
timed(trace("speed", lambda path: {"load": [0.1], "ttft": [0.2], "prefill": [400.0],
                                   "decode": [100.0], "disturbed": []}))
import pytest_ondevice.probe.fidelity as fidelity
import pytest_ondevice.probe.memory as memory
for module, name in ((memory, "memory"), (fidelity, "fidelity")):
    module.measure = trace(name, module.measure)
"""


def stages(gate) -> list[str]:
    return sorted(line.split()[0] for line in gate.planted())


ONCE = [f"{stage}-{size}" for stage in ("fidelity", "memory") for size in ("small", "large")]
# What is traced, and all that needs no process. The short model guesses, and is told so.
WHOLE = ("-k", "not deployed and not energy and not power and not (capability and reference)")

# Three rounds, the reference first and last in each.
TIMED = 3 * ["speed-large", "speed-small", "speed-large"]
ALL = sorted([*ONCE, *TIMED])


def wait_for(gate, stage: str) -> None:
    deadline = time.time() + 120
    while stage not in stages(gate):
        assert time.time() < deadline, f"{stage} never came"
        time.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "sigkill"])
def test_an_interrupted_run_goes_on_where_it_stopped(gate, how):
    gate.plant(TRACED)
    process = gate.start("-q", *WHOLE)
    # The reference's fidelity is known; its decode path is being measured now.
    wait_for(gate, "fidelity-large")
    # A killed session can keep only what it has read; it reads twenty times a second.
    time.sleep(0.5)
    process.send_signal(how)
    first = gate.finish(process)
    assert first.code == (2 if how is signal.SIGINT else -signal.SIGKILL)
    if how is signal.SIGINT:
        assert first.report["complete"] is False
        assert "what was measured is kept" in first.out
    else:
        # The worker dies with its host, and the device's lock with the worker.
        time.sleep(1)
        assert not orphans(gate)
    outcome = gate.run(*WHOLE)
    assert outcome.code == 0, outcome.out
    assert "resuming the interrupted run" in outcome.out
    assert outcome.report["complete"] is True
    assert stages(gate) == ALL
    # A third run is a new one: memory is measured anew, as speed would be, fidelity is not.
    assert "resuming" not in gate.run("-k", f"{WHOLE[1]} and not speed and not decode_time").out
    assert stages(gate) == sorted([*ALL, "memory-large", "memory-small"])


def orphans(gate) -> list[str]:
    """Name the workers of this gate that are alive: those of other tests are not its own."""
    mine = f"PYTHONPATH={gate.path[0]}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes()
                environment = (folder / "environ").read_bytes()
            except OSError:
                continue
            if b"pytest_ondevice.probe.worker" in line and mine in environment:
                found.append(folder.name)
    return found


def test_two_test_workers_never_measure_at_once_and_agree(gate, seed):
    gate.plant(TRACED)
    one = gate.run("-q", "-n", "2", *WHOLE)
    assert one.code == 0, one.out
    assert stages(gate) == ALL
    spans = sorted(tuple(map(float, line.split()[1:])) for line in gate.planted())
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert start >= end
    alone = gate.run("-q", *WHOLE)
    assert one.verdicts() == alone.verdicts()
    assert [cell["id"] for cell in one.report["cells"]] == [
        cell["id"] for cell in alone.report["cells"]
    ]
    assert re.search(rf"ondevice: {CELL}: \w+", one.out), "no progress was shown"


def test_plain_load_distribution_is_exclusive_too(gate):
    gate.plant(TRACED)
    outcome = gate.run("-q", "-n", "2", "--dist", "worksteal", "-k", "resources")
    assert outcome.code == 0, outcome.out
    assert stages(gate) == [name for name in ALL if "fidelity" not in name]
    spans = sorted(tuple(map(float, line.split()[1:])) for line in gate.planted())
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert start >= end


def test_two_sessions_at_once_share_artifacts_and_exclude_each_other(gate):
    gate.plant(TRACED)
    (gate.folder / "a").mkdir()
    (gate.folder / "b").mkdir()
    chosen = ("-q", "-k", f"Q5_1 and not speed and {WHOLE[1]}")
    first = gate.start(*chosen, "--ondevice-report=a/report.json", methods="Q5_1")
    second = gate.start(*chosen, "--ondevice-report=b/report.json", methods="Q5_1")
    assert gate.finish(first).code == 0
    assert gate.finish(second).code == 0
    spans = sorted(tuple(map(float, line.split()[1:])) for line in gate.planted())
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert start >= end
    # Fidelity was measured once for both; speed and memory belong to each run.
    assert stages(gate).count("fidelity-small") == 1
    assert stages(gate).count("memory-small") == 2


def test_selection_measures_only_what_is_asked(gate):
    gate.plant(TRACED)
    outcome = gate.run("-q", "-k", "kld and Q4_0")
    assert outcome.code == 0, outcome.out
    assert set(outcome.verdicts()) == {f"fidelity.kld {CELL}"}
    assert stages(gate) == ["fidelity-large", "fidelity-small"]


def test_a_users_own_tests(warm):
    (warm.folder / "test_own.py").write_text(
        '''
def test_answers(ondevice_model):
    """Runs once per cell; each token is the likeliest after those before it."""
    prompt = ondevice_model.tokenize("2, 4, 6, 8,")
    made = ondevice_model.generate("2, 4, 6, 8,", max_tokens=4)
    logits = ondevice_model.logits([*prompt, *made.tokens])
    chosen = logits[range(len(prompt) - 1, len(logits) - 1), made.tokens]
    # Fed one by one, tokens have other kernels, whose rounding may decide between equals.
    assert (chosen > logits[len(prompt) - 1 : -1].max(axis=1) - 0.5).all()


def test_logits(ondevice_model, ondevice_cell):
    tokens = ondevice_model.tokenize("One two three")
    logits = ondevice_model.logits(tokens)
    assert logits.shape == (len(tokens), 49152)
    assert ondevice_cell.method in ondevice_cell.id


def test_numbers(ondevice_measure, ondevice_check):
    ondevice_check(ondevice_measure("effective_bpw"), at_most=17, at_least=4)
    ondevice_check(3.5, at_most=4, name="my figure", unit="s")


def test_fails(ondevice_measure, ondevice_check):
    ondevice_check(ondevice_measure("file_size"), at_most=1)
'''
    )
    outcome = warm.run("-v", "test_own.py", "--ondevice-report=report.json")
    assert outcome.code == 1
    assert f"test_own.py::test_answers[{CELL}] PASSED" in outcome.out
    assert "test_own.py::test_answers[smollm2-135m-F16] PASSED" in outcome.out
    assert "2 failed, 6 passed" in outcome.out
    size = warm.artifact("Q4_0").stat().st_size / 2**20
    assert f"test_fails {CELL}: fail: {size:.2f} MiB is above the bound" in outcome.out
    assert outcome.verdicts(CELL)["test_own.py::test_numbers"] == "pass"


def test_a_models_file_in_the_hub_cache_runs(seed, tmp_path, gate):
    """The hub's cache layout, as another program would have left it."""
    repo = tmp_path / "hub" / "models--Qwen--Qwen2.5-0.5B-Instruct-GGUF"
    snapshot = repo / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(snapshot.name)
    os.link(seed.artifact("F16"), snapshot / "qwen2.5-0.5b-instruct-fp16.gguf")
    os.environ["HF_HUB_CACHE"] = str(tmp_path / "hub")
    try:
        outcome = gate.run(
            "-q", "-k", "artifact", "--ondevice-offline", models="qwen2.5-0.5b", methods="Q8_0"
        )
    finally:
        del os.environ["HF_HUB_CACHE"]
    assert outcome.code == 0, outcome.out
    assert outcome.cell("qwen2.5-0.5b-F16")["artifact"]["origin"] == "source"
    assert outcome.cell("qwen2.5-0.5b-Q8_0")["artifact"]["origin"] == "quantized"


def test_candidates_without_a_source_run_as_far_as_they_go(seed, tmp_path, gate):
    folder = tmp_path / "release"
    folder.mkdir()
    os.link(seed.artifact("Q4_0"), folder / "qwen2.5-0.5b-instruct-q4_0.gguf")
    os.link(seed.artifact("Q4_0"), folder / "readme-q9_9.gguf")
    args = ("--ondevice-offline", f"--ondevice-artifacts={folder}")
    command = [
        part
        for part in gate.command(*args, models="qwen2.5-0.5b")
        if not part.startswith("--ondevice-methods")
    ]
    os.environ["HF_HUB_CACHE"] = str(tmp_path / "hub")
    gate.plant(TRACED)
    gate.command = lambda *_, **__: command
    try:
        outcome = gate.run()
    finally:
        del os.environ["HF_HUB_CACHE"]
    assert outcome.code == 0, outcome.out
    assert "files that match no cell: readme-q9_9.gguf" in outcome.out
    assert "left out, neither file nor source: qwen2.5-0.5b-F16\n" in outcome.out
    verdicts = outcome.verdicts("qwen2.5-0.5b-Q4_0")
    assert verdicts["artifact.loads"] == "pass"
    assert verdicts["fidelity.finite"] == "unsupported"
    assert verdicts["efficiency.quantize"] == "unsupported"
    told = [check["message"] for check in outcome.report["checks"]]
    assert any("requires a reference" in message for message in told)
