"""Nothing native takes the session down, and every end has its own words."""

from __future__ import annotations

import pytest

CELL = "smollm2-135m-Q4_0"

# Only of the quantized artifact.
DIE = """
import pytest_ondevice.probe.speed as speed
# Where it is not to die, it times nothing: a campaign has many processes.
speed.measure = lambda *_: {{"load": [0.1], "ttft": [0.2], "prefill": [400.0], "decode": [100.0],
                             "disturbed": []}}
import pytest_ondevice.probe.{stage} as stage
original = stage.measure
def measure(engine, path, plan, tick):
    if small(path):
        journal("{stage}")
        {fault}
    return original(engine, path, plan, tick)
stage.measure = measure
"""

SEGV = "import ctypes; ctypes.string_at(0)"
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
ABORT = "os.abort()"
BLOCKED = {f"fidelity.{name}" for name in ("identity", "kld", "ppl_ratio", "same_top", "rms_dp")}
TIMED = {"resources.decode_speed", "resources.prefill_speed"}
HANG = "time.sleep(600)"


@pytest.mark.parametrize(
    ("stage", "fault", "words", "owner", "blocked"),
    [
        ("speed", SEGV, "SIGSEGV in stage speed", "resources.speed", TIMED),
        (
            "memory",
            ABORT,
            "SIGABRT in stage memory",
            "resources.peak_memory",
            {"resources.deployed_memory"},
        ),
        (
            "fidelity",
            KILL,
            "killed by SIGKILL in stage fidelity",
            "fidelity.finite",
            BLOCKED,
        ),
        (
            "fidelity",
            "raise ValueError('planted')",
            "ValueError: planted",
            "fidelity.finite",
            BLOCKED,
        ),
    ],
    ids=["segv", "abort", "kill", "error"],
)
def test_a_stage_dies(warm, stage, fault, words, owner, blocked):
    # The artifact's fidelity must not be reused where its stage is to die.
    if stage == "fidelity":
        warm.text.with_name("other.txt").write_text(warm.text.read_text()[::-1])
        warm.text = warm.text.with_name("other.txt")
    warm.plant(DIE.format(stage=stage, fault=fault))
    outcome = warm.run("-q", "-rs", "-k", "Q4_0")
    verdicts = outcome.verdicts(CELL)
    assert outcome.code == 1, outcome.out
    assert words in outcome.out
    assert verdicts[owner] == "fail"
    assert {name for name, verdict in verdicts.items() if verdict == "blocked"} == blocked
    assert [name for name, verdict in verdicts.items() if verdict == "fail"] == [owner]
    assert f"blocked by {owner} of {CELL}" in outcome.out or not blocked
    assert "During handling" not in outcome.out
    # Everything else was measured all the same.
    assert "peak_memory" in outcome.cell(CELL)["measurements"] or stage == "memory"
    assert "decode_speed" in outcome.cell(CELL)["measurements"] or stage == "speed"
    # The stage died once: its death is known to every item that asks.
    assert warm.planted() == [stage]


def test_a_hang_costs_one_timeout_per_cell(warm):
    warm.plant(DIE.format(stage="speed", fault=HANG))
    outcome = warm.run("-q", "--ondevice-timeout=3", "-k", "Q4_0 and not memory")
    assert outcome.verdicts(CELL)["resources.speed"] == "fail"
    assert "no sign of life for 3 s in stage speed" in outcome.out
    assert warm.planted() == ["speed"]


def test_a_file_that_hangs_while_loading_blocks_the_rest(gate):
    # The worker runs as __main__, so the fault is planted in what it calls: the engine's load.
    gate.plant(
        """
        import pytest_ondevice.probe.engines.llama_cpp as engine
        original = engine.load
        def load(path, *args, **kwargs):
            if small(path):
                journal("load")
                time.sleep(600)
            return original(path, *args, **kwargs)
        engine.load = load
        """
    )
    outcome = gate.run("-q", "--ondevice-timeout=3", "-k", "Q4_0")
    verdicts = outcome.verdicts(CELL)
    assert verdicts["artifact.loads"] == "fail"
    assert {verdicts[name] for name in verdicts if name.startswith(("fid", "res"))} == {"blocked"}
    assert gate.planted() == ["load"]
    assert outcome.code == 1


def test_a_crash_while_quantizing_fails_its_owner_and_blocks_the_rest(gate):
    gate.plant(
        """
        import pytest_ondevice.probe.engines.llama_cpp as engine
        def quantize(*args, **more):
            journal("quantize")
            os.kill(os.getpid(), signal.SIGSEGV)
        engine.quantize = quantize
        """
    )
    outcome = gate.run("-q", "-k", "Q4_K_S", methods="Q4_K_S")
    verdicts = outcome.verdicts("smollm2-135m-Q4_K_S")
    assert verdicts.pop("efficiency.quantize") == "fail"
    assert set(verdicts.values()) == {"blocked"}
    assert gate.planted() == ["quantize"]
    assert "SIGSEGV in stage quantize" in outcome.out
    assert not list((gate.cache / "tmp").iterdir())


def test_the_asking_item_fails_where_no_owner_is_collected(warm):
    warm.plant(DIE.format(stage="speed", fault=KILL))
    (warm.folder / "test_own.py").write_text(
        "def test_speed(ondevice_measure):\n    ondevice_measure('decode_speed')\n"
    )
    outcome = warm.run("-q", "test_own.py", "-k", "Q4_0", "--ondevice-report=report.json")
    assert outcome.code == 1
    assert outcome.verdicts(CELL) == {"test_own.py::test_speed": "fail"}


def test_what_failed_is_measured_again_by_last_failed(warm):
    warm.plant(DIE.format(stage="speed", fault=SEGV))
    assert warm.run("-q", "-k", "Q4_0 and not memory").code == 1
    warm.plant(DIE.format(stage="speed", fault="pass"))
    outcome = warm.run("-q", "--lf")
    assert outcome.code == 0, outcome.out
    assert outcome.verdicts(CELL) == {"resources.speed": "pass"}
    # The one that died, then three rounds.
    assert warm.planted() == 4 * ["speed"]


def test_a_verdict_that_did_not_pass_is_measured_again(warm):
    test = warm.folder / "test_own.py"
    test.write_text(
        "def test_kld(ondevice_measure, ondevice_check):\n"
        "    ondevice_check(ondevice_measure('same_top'), at_least=LEAST)\n".replace("LEAST", "2")
    )
    warm.plant(DIE.format(stage="fidelity", fault="pass"))
    args = ("-q", "test_own.py", "-k", "Q4_0", "--ondevice-report=report.json")
    assert warm.run(*args).code == 1
    assert warm.planted() == []
    test.write_text(test.read_text().replace("2", "0.1"))
    assert warm.run(*args).code == 0
    assert warm.planted() == ["fidelity"]
    assert warm.run(*args).code == 0
    assert warm.planted() == ["fidelity"]
