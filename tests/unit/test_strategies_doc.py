"""The example in docs/strategies.md does what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "strategies.md"


def blocks(language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )


PLANTED, TEST, FIXED = blocks("python")
(FOUND,) = blocks("text")


def run(folder: Path, sizes: str, *args: str) -> subprocess.CompletedProcess[str]:
    assert sizes.startswith("# sizes.py")
    assert TEST.startswith("# test_sizes.py")
    (folder / "sizes.py").write_text(sizes)
    (folder / "test_sizes.py").write_text(TEST)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *args],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_the_planted_fault_is_found_and_shrunk(tmp_path: Path, seed: int) -> None:
    result = run(tmp_path, PLANTED, f"--hypothesis-seed={seed}")
    assert result.returncode == 1, result.stdout
    assert "1 failed" in result.stdout
    # Hypothesis breaks lines and adds comments as it sees fit.
    example = result.stdout.partition("test_tensor_bytes(\nE")[2]
    shown = re.sub(r"\s|,?\s+#.*|^E", "", example, flags=re.MULTILINE).replace(",)", ")")
    assert re.sub(r"\s", "", FOUND).replace(",)", ")") in shown, result.stdout
    assert "1469 == 1470" in result.stdout


def test_the_fixed_function_passes(tmp_path: Path) -> None:
    result = run(tmp_path, FIXED)
    assert result.returncode == 0, result.stdout
    assert "1 passed" in result.stdout


def test_one_block_by_hand_does_not_find_it() -> None:
    planted: dict[str, object] = {}
    exec(PLANTED, planted)
    sizes = [planted["tensor_bytes"]((256,), name) for name in ("Q4_K", "Q5_K", "Q6_K")]  # type: ignore[operator]
    assert sizes == [144, 176, 210]


def test_the_page_lists_every_strategy() -> None:
    from pytest_ondevice import strategies

    public = {
        name
        for name, value in vars(strategies).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == strategies.__name__
    }
    assert not [name for name in public if f"{name}(" not in PAGE.read_text("utf-8")]
