"""Commands that measure, on real weights: a reference file that is used, and a calibration."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(sys.executable).with_name("pytest-ondevice")
CELL = "smollm2-135m-Q4_0"


@pytest.fixture
def command(gate):
    """Run a command beside the gate, with its cache."""

    def run(*args: str) -> tuple[int, list[str], str]:
        done = start(gate, *args)
        out, err = done.communicate(timeout=400)
        assert "Traceback" not in err
        return done.returncode, out.splitlines(), err

    return run


def start(gate, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [SCRIPT, *args],
        cwd=gate.folder,
        env=gate.environment() | {"PYTEST_ONDEVICE_CACHE": str(gate.cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell lets what it starts in the background ignore Ctrl-C, and all below it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def test_a_reference_is_made_checked_and_judged_against(gate, command):
    made = ("reference", "make", "smollm2-135m", "m.npz", "--windows=2", f"--text={gate.text}")
    made += (f"--catalog={gate.catalog}",)
    # Ctrl-C in the middle leaves nothing.
    gate.plant(
        "import pytest_ondevice.probe.fidelity as fidelity\n"
        "def measure(*_):\n"
        "    journal('begun')\n"
        "    time.sleep(60)\n"
        "fidelity.measure = measure\n"
    )
    process = start(gate, *made)
    deadline = time.monotonic() + 120
    while not gate.planted():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.splitlines()[-1]) == (130, "interrupted")
    assert sorted(path.name for path in gate.folder.iterdir()) == ["planted"]
    gate.clean()

    status, out, err = command(*made)
    assert status == 0, err
    assert out[0].startswith("reference of smollm2-135m, source ")
    assert out[1].startswith("2 windows of 512 tokens, ")
    assert "fidelity" in err
    status, checked, _ = command("reference", "check", "m.npz")
    assert (status, checked) == (0, [*out, "every window is whole"])

    outcome = gate.run("-k", "fidelity", "--ondevice-reference=m.npz")
    assert [cell["id"] for cell in outcome.report["cells"]] == [CELL], outcome.out
    measured = outcome.cell(CELL)["measurements"]["mean_kld"]
    assert measured["n"] == 2
    assert 0 < measured["value"] < 0.5
    assert outcome.verdicts(CELL)["fidelity.finite"] == "pass"


def test_a_calibration_ends_with_its_file(gate, command):
    chosen = ("--runs=2", "--rounds=2", f"--catalog={gate.catalog}")
    status, out, err = command("calibrate", *chosen, "--output=mine.json")
    assert status == 0, err
    assert f"timing {CELL} against itself: 2 x 2 rounds, 11 processes, about " in err
    assert out[0] == f"{CELL} against itself, 4 rounds, 2 campaigns of 2"
    (kept,) = (gate.cache / "calibration").iterdir()
    assert out[-1] == f"kept in {kept}"
    found = json.loads(kept.read_text())
    assert kept.read_bytes() == (gate.folder / "mine.json").read_bytes()
    assert found["tier"] == kept.stem
    assert {name: len(values) for name, values in found["samples"].items()} == {
        "decode_speed": 8,
        "prefill_speed": 8,
        "ttft": 8,
        "load_time": 8,
        "peak_memory": 3,
    }
    assert all(value > 0 for values in found["samples"].values() for value in values)
    assert len(set(found["samples"]["decode_speed"])) == 8
    weights = gate.artifact("Q4_0").stat().st_size
    assert 0.95 * weights < found["samples"]["peak_memory"][0] < weights + 80 * 2**20
    assert set(found["noise"]) == {*found["samples"], "decode_ratio", "prefill_ratio"}
