"""The suite generations on real weights: what is recorded passes again, damage does not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import mutants
import pytest
from test_mutants import make

if TYPE_CHECKING:
    from pathlib import Path

SUITE = "--ondevice-suites=generations"
CELL = "smollm2-135m-Q4_0"


def run(gate, *args: str):
    return gate.run(SUITE, "-q", "-rs", "-k", "Q4_0", *args)


@pytest.fixture(scope="module")
def recorded(full_seed, tmp_path_factory) -> Path:
    """A folder of baselines with the text of the clean artifact in it."""
    folder = tmp_path_factory.mktemp("baselines")
    outcome = run(full_seed, f"--ondevice-baselines={folder}")
    assert outcome.code == 0, outcome.out
    assert outcome.verdicts() == {f"generations.greedy {CELL}": "no baseline"}
    assert "record one with the same command and --snapshot-update" in outcome.out
    assert not list(folder.iterdir())
    outcome = run(full_seed, f"--ondevice-baselines={folder}", "--snapshot-update")
    assert outcome.code == 0, outcome.out
    assert outcome.verdicts() == {f"generations.greedy {CELL}": "pass"}
    assert "measured baselines are recorded with --ondevice-update" in outcome.out
    return folder


def test_the_file_holds_prompts_texts_and_tokens(recorded):
    [path] = recorded.glob("*/generations/smollm2-135m/Q4_0.txt")
    text = path.read_text()
    assert re.findall("^# (.*), at most 24 tokens$", text, re.MULTILINE) == [
        *("story", "numbers", "list", "code")
    ]
    assert '  "3, 6, 9, 12, 15, 18,"\ncontinuation\n  " 21' in text
    assert [path] == [one for one in recorded.rglob("*") if one.is_file()]


@pytest.mark.parametrize("fault", ["", "scales"], ids=["clean", "scales"])
def test_damaged_scales_change_the_text(full_gate, recorded, tmp_path, fault):
    folder = tmp_path / "release"
    folder.mkdir()
    path = make(full_gate, "Q4_0", folder / f"{CELL}.gguf")
    if fault:
        mutants.scale(path, "blk.10.ffn_down.weight", 1.1)
    before = {one: one.read_bytes() for one in recorded.rglob("*.txt")}
    outcome = run(full_gate, f"--ondevice-baselines={recorded}", f"--ondevice-artifacts={folder}")
    verdict = "fail" if fault else "pass"
    assert outcome.verdicts() == {f"generations.greedy {CELL}": verdict}, outcome.out
    assert outcome.code == (1 if fault else 0)
    if fault:
        assert re.search(r"[1-4] of 4 continuations differ: \w+ from token \d+ on", outcome.out)
        assert "--snapshot-update, if the new text is meant" in outcome.out
        assert re.search(r'^  -  "', outcome.out, re.MULTILINE)
        assert re.search(r'^  \+  "', outcome.out, re.MULTILINE)
    assert {one: one.read_bytes() for one in recorded.rglob("*.txt")} == before


def test_a_worker_that_dies_fails_the_check_and_keeps_the_text(full_gate, recorded):
    full_gate.plant(
        """
        import pytest_ondevice.probe.engines.llama_cpp as engine
        engine.load = lambda *_, **__: os.kill(os.getpid(), signal.SIGSEGV)
        """
    )
    before = {one: one.read_bytes() for one in recorded.rglob("*.txt")}
    outcome = run(full_gate, f"--ondevice-baselines={recorded}", "--snapshot-update")
    assert outcome.code == 1
    assert outcome.verdicts() == {f"generations.greedy {CELL}": "fail"}
    assert {one: one.read_bytes() for one in recorded.rglob("*.txt")} == before
