"""The GGUF reader against the files that were made, or found by fuzzing, to break it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "fuzz_gguf.py"


def load() -> Any:
    """Import the script, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("fuzz_gguf", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its NamedTuples look themselves up there
    spec.loader.exec_module(module)
    return module


fuzz = load()
# A file, or a folder with the parts of a model.
CORPUS = sorted(fuzz.CORPUS.iterdir())


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_replay(path: Path, tmp_path: Path) -> None:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    parts = [file.read_bytes() for file in files]
    expected = {"bad": "refused", "good": "read"}.get(path.name.partition("-")[0])
    for trace in (False, True):
        outcome, _ = fuzz.judge(parts, tmp_path, trace=trace)
        assert fuzz.is_fine(outcome), outcome
        assert expected in {None, outcome}


def test_the_corpus_is_what_the_script_makes() -> None:
    made = fuzz.hand_made()
    assert len(made) >= 20
    for name, content in made.items():
        assert len(content) < 2048
        assert (fuzz.CORPUS / f"{name}.bin").read_bytes() == content


def test_some_thousand_mutations(tmp_path: Path) -> None:
    result = fuzz.fuzz(3000, 7, tmp_path, models=40)
    assert not result.saved
    assert set(result.outcomes) == {"read", "refused"}
    # Mutations that all kill the file, or none, would test little.
    assert 0.02 < result.outcomes["read"] / result.outcomes.total() < 0.5


def test_the_same_seed_makes_the_same_files(tmp_path: Path) -> None:
    first, second = (fuzz.fuzz(100, 3, tmp_path, models=10).outcomes for _ in range(2))
    assert first == second


# -- the test of the fuzzer: readers that break its bounds


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("raise KeyError('k')", "raised KeyError"),
        ("while True: pass", "took more than"),
        ("bytearray(80 * 2**20)", "allocated"),
    ],
)
def test_a_broken_reader_is_seen(
    fault: str, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> None:
        exec(fault, {})

    monkeypatch.setattr(fuzz, "read_header", broken)
    monkeypatch.setattr(fuzz, "SECONDS", 0.05)
    found, _ = fuzz.judge([b"GGUF"], tmp_path, trace=outcome == "allocated")
    assert found.startswith(outcome)


def test_what_breaks_the_reader_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> None:
        raise RuntimeError

    monkeypatch.setattr(fuzz, "read_header", broken)
    result = fuzz.fuzz(5, 1, tmp_path / "corpus", models=4)
    assert result.saved
    assert all(path.is_file() for path in result.saved)
    assert "raised RuntimeError" in result.outcomes


def test_the_limit_on_time_is_taken_back() -> None:
    import signal

    with fuzz.cpu_limit(5.0):
        assert signal.getitimer(signal.ITIMER_PROF)[0] > 0
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
