"""The suite of questions on the pocket ladder: what turns each check red, and what stays green."""

from __future__ import annotations

import shutil
from pathlib import Path

import mutants
import pytest

HERE = Path(__file__).parents[2]
MODEL = HERE / "src" / "pytest_ondevice" / "data" / "models" / "pocket-s.gguf"
CHECKS = {"choice", "cloze", "exact", "flips"}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A run with nothing planted, held against the baselines that ship."""
    from conftest import Gate

    folder = tmp_path_factory.mktemp("asked")
    gate = Gate(folder, folder / "cache", folder, None)
    outcome = ask(gate, "--ondevice-require-baseline=capability")
    assert outcome.code == 0, outcome.out
    return gate, outcome


def ask(gate, *args: str, suite: str = "capability"):
    """Run a suite on pocket-s with the text and the questions that ship for it."""
    command = [
        part
        for part in gate.command(
            "-q",
            f"--ondevice-suites={suite}",
            *args,
            models="pocket-s",
        )
        if not part.startswith(("--ondevice-text", "--ondevice-items"))
    ]
    gate.command = lambda *_, **__: command
    try:
        return gate.run()
    finally:
        del gate.command


def candidate(gate, folder: Path, method: str) -> Path:
    """Copy a well-made artifact into a folder of candidates."""
    folder.mkdir(exist_ok=True)
    made = MODEL if method == "F16" else gate.artifact(method, "pocket-s")
    return Path(shutil.copyfile(made, folder / f"pocket-s-{method}.gguf"))


def test_what_ships_passes(asked):
    _, outcome = asked
    verdicts = outcome.verdicts()
    assert set(verdicts.values()) == {"pass"}, outcome.out
    assert {f"capability.{name} pocket-s-Q4_0" for name in CHECKS} <= verdicts.keys()
    (task,) = outcome.cell("pocket-s-F16")["tasks"]
    assert task["n"] == 200
    assert task["lower"] > task["chance"]
    (task,) = outcome.cell("pocket-s-Q4_0")["tasks"]
    assert task["lost"] + task["gained"] > 0


def lose_a_layer(path: Path) -> None:
    """Let the first layer add nothing to the hidden state."""
    mutants.scale(path, "blk.0.attn_norm.weight", 0.0)
    mutants.scale(path, "blk.0.ffn_norm.weight", 0.0)


def test_a_lost_layer_is_seen_in_every_form(asked, tmp_path):
    gate, _ = asked
    path = candidate(gate, tmp_path / "new", "Q4_0")
    lose_a_layer(path)
    outcome = ask(gate, f"--ondevice-artifacts={path.parent}")
    verdicts = outcome.verdicts("pocket-s-Q4_0")
    failed = {name for name, verdict in verdicts.items() if verdict == "fail"}
    assert failed == {f"capability.{name}" for name in CHECKS}, outcome.out
    assert "exact McNemar p" in outcome.out


def test_flips_tell_what_accuracy_hides(asked, tmp_path):
    gate, _ = asked
    path = candidate(gate, tmp_path / "new", "Q4_0")
    mutants.scale(path, "blk.1.ffn_down.weight", 4.0)
    mutants.scale(path, "blk.0.attn_output.weight", 3.0)
    outcome = ask(gate, "-k", "choice or flips", f"--ondevice-artifacts={path.parent}")
    verdicts = outcome.verdicts("pocket-s-Q4_0")
    assert verdicts == {"capability.choice": "pass", "capability.flips": "fail"}, outcome.out


def test_worse_than_the_release_before(asked, tmp_path):
    gate, _ = asked
    old = candidate(gate, tmp_path / "old", "Q4_0")
    new = candidate(gate, tmp_path / "new", "Q4_0")
    for folder, verdict in ((old, "pass"), (new, "fail")):
        outcome = ask(
            gate,
            *("-k", "accuracy and Q4_0", f"--ondevice-artifacts={folder.parent}"),
            f"--ondevice-against={old.parent}",
            suite="against",
        )
        assert outcome.verdicts() == {"against.accuracy pocket-s-Q4_0": verdict}, outcome.out
        lose_a_layer(new)


def test_a_reference_that_guesses(asked, tmp_path):
    gate, _ = asked
    path = candidate(gate, tmp_path / "new", "F16")
    mutants.scale(path, "output_norm.weight", 0.0)
    outcome = ask(gate, "-k", "test_reference", f"--ondevice-artifacts={path.parent}")
    assert outcome.verdicts() == {"capability.reference pocket-s-F16": "fail"}, outcome.out


def test_answers_that_are_no_numbers(asked, tmp_path):
    gate, _ = asked
    path = candidate(gate, tmp_path / "new", "Q4_0")
    # Finite in the file, infinite in the arithmetic.
    mutants.scale(path, "output_norm.weight", 1e37)
    outcome = ask(gate, "-k", "test_finite and Q4_0", f"--ondevice-artifacts={path.parent}")
    assert outcome.verdicts() == {"capability.finite pocket-s-Q4_0": "fail"}, outcome.out


def test_generated_answers_that_are_no_numbers(asked, tmp_path):
    gate, _ = asked
    path = candidate(gate, tmp_path / "new", "Q4_0")
    mutants.scale(path, "output_norm.weight", 1e37)
    own = tmp_path / "own.jsonl"
    own.write_text(
        '{"tasks": 1, "name": "own"}\n'
        '{"id": "a", "form": "exact", "prompt": "2 + 3 =", "targets": ["5"], "most": 4}\n'
    )
    outcome = ask(
        gate,
        *("-k", "test_finite and Q4_0", f"--ondevice-artifacts={path.parent}"),
        f"--ondevice-tasks={own}",
    )
    assert outcome.verdicts() == {"capability.finite pocket-s-Q4_0": "fail"}, outcome.out


def test_questions_of_a_users_own(asked, tmp_path):
    gate, _ = asked
    own = tmp_path / "own.jsonl"
    own.write_text(
        '{"tasks": 1, "name": "own"}\n'
        '{"id": "a", "form": "choice", "prompt": "Say again: red map. Again:", "right": [1],'
        ' "options": [{"text": " blue map."}, {"text": " red map."}]}\n'
    )
    outcome = ask(gate, "-k", "finite", f"--ondevice-tasks={own}")
    (task,) = outcome.cell("pocket-s-F16")["tasks"]
    assert (task["name"], task["n"], task["normalisation"]) == ("own", 1, "none")
