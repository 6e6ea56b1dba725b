"""Methods with variants in a whole run: their baselines, weights, and odd headers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest

from pytest_ondevice.storage.baselines import Baselines, Entry, Section

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from projects import Project


def record(project: Project, method: str) -> Path:
    """Record a baseline of the size of a method of the model ``tiny``."""
    section = Section(
        artifact="a" * 64,
        recorded="2026-09-01",
        runtime="r",
        runtime_digest="d",
        cpu="c",
        protocol={},
        quantities={"file_size": Entry(value=1.0, unit="B", n=1)},
    )
    return Baselines(project.path / "baselines", [], "tier").record("tiny", method, "size", section)


@pytest.mark.parametrize("method", ["Q4_0+imatrix", "F16+kv-q8_0", "Q4_0+imatrix+kv-q4_0"])
def test_a_baseline_of_a_variant_is_no_stray(
    project: Project, tiny: list[str], method: str
) -> None:
    record(project, method)
    for methods in (tiny[1], f"--ondevice-methods={method}"):
        result = project.run(tiny[0], methods, "-k", "no_such_check")
        assert "it judges nothing" not in result.stdout.str()


@pytest.mark.parametrize("method", ["Q4_0+imatrx", "F16+imatrix", "Q4_9+imatrix", "Q4_0+kv-f16"])
def test_a_baseline_of_a_variant_that_there_is_not_is_one(
    project: Project, tiny: list[str], method: str
) -> None:
    path = record(project, method)
    result = project.run(*tiny, "-k", "no_such_check")
    result.stdout.fnmatch_lines(
        [f"ondevice: {path}: it judges nothing, since no method is named '{method}'*"]
    )


def test_a_variant_of_the_cache_is_the_same_file_and_a_cell_of_its_own(
    project: Project, tiny: list[str], write_gguf: Callable[[str, str], Path]
) -> None:
    made = write_gguf("made/tiny-Q4_0.gguf", "Q4_0")
    project.write(
        "test_own.py",
        """
def test_own(ondevice_check):
    ondevice_check("file_type_matches", at_least=1)
    ondevice_check("file_size", at_least=1)
""",
    )
    result = project.run(
        tiny[0],
        *("--ondevice-methods=Q4_0", "--ondevice-kv-types=f16,q8_0", "--ondevice-artifacts=made"),
        *("test_own.py", "--ondevice-report=r.json"),
    )
    result.assert_outcomes(passed=3)
    report = json.loads((project.path / "r.json").read_text())
    cells = {cell["id"]: cell for cell in report["cells"]}
    assert [*cells] == ["tiny-F16", "tiny-Q4_0", "tiny-Q4_0+kv-q8_0"]
    for name in ("tiny-Q4_0", "tiny-Q4_0+kv-q8_0"):
        assert cells[name]["artifact"]["file"] == "tiny-Q4_0.gguf"
        assert cells[name]["measurements"]["file_size"]["value"] == made.stat().st_size
    assert report["settings"]["context"] == "512"


def test_the_context_is_in_the_report(project: Project, tiny: list[str]) -> None:
    project.write(
        "test_own.py", "def test_own(ondevice_check):\n    ondevice_check(1, at_most=2)\n"
    )
    project.run(*tiny, "test_own.py", "--ondevice-context=2048", "--ondevice-report=r.json")
    report = json.loads((project.path / "r.json").read_text())
    assert report["settings"]["context"] == "2048"


def test_experts_without_their_numbers_are_told_in_a_sentence(
    project: Project, tiny: list[str]
) -> None:
    path = project.path / "experts.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(1)
    writer.add_tensor("blk.0.ffn_up_exps.weight", np.ones((2, 32, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    project.write(
        "test_own.py",
        "def test_own(ondevice_measure):\n    ondevice_measure('active_bytes')\n",
    )
    result = project.run("--ondevice-models=experts.gguf", tiny[1], "test_own.py", "-rs")
    text = result.stdout.str()
    assert "ValueError" not in text
    assert "expert_used_count" in text
