"""Faults in files that the artifact suite sees without running anything."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import mutants
import pytest
from test_mutants import make

from pytest_ondevice.formats.gguf import read_header

if TYPE_CHECKING:
    from pathlib import Path

VERSION = b"general.quantization_version"
FILE_CHECKS = "artifact and not loads"

# Cell's method -> the checks that its planted fault must fail, and no other; empty is clean.
CAUGHT: dict[str, set[str]] = {
    "Q4_K_M": {"artifact.planned_bpw"},
    "Q4_0": {"artifact.quantization_version"},
    "Q6_K": {"artifact.tokenizer"},
    "Q8_0": {"artifact.chat_template"},
    "Q2_K": {"artifact.blocks"},
    "Q5_K_M": {"artifact.stray_bytes"},
    "Q5_0": set(),
}


@pytest.fixture(scope="module")
def release(seed, tmp_path_factory) -> Path:
    """A folder of candidates, all but one damaged in one way."""
    outcome = seed.run("-q", "-k", FILE_CHECKS, methods=",".join(CAUGHT))
    assert outcome.code == 0, outcome.out
    folder = tmp_path_factory.mktemp("release")
    made = {
        method: make(
            seed, "Q4_0" if method == "Q4_K_M" else method, folder / f"smollm2-135m-{method}.gguf"
        )
        for method in CAUGHT
    }
    mutants.declare(made["Q4_K_M"], 15)
    mutants.change(made["Q4_0"], VERSION, struct.pack("<II", 4, 2), struct.pack("<II", 4, 1))
    mutants.change(made["Q6_K"], b"tokenizer.ggml.tokens", b"hello", b"jello")
    mutants.change(made["Q8_0"], b"tokenizer.chat_template", b"im_start", b"im_stort")
    with made["Q5_K_M"].open("ab") as file:
        file.write(b"\0" * 4096)
    mutants.inflate(made["Q2_K"], "blk.3.attn_q.weight")
    return folder


def run(gate, release: Path, *args: str):
    return gate.run(
        *("-q", "-k", FILE_CHECKS, f"--ondevice-artifacts={release}", *args),
        methods=",".join(CAUGHT),
    )


@pytest.fixture(scope="module")
def judged(seed, release):
    return run(seed, release)


@pytest.mark.parametrize("method", CAUGHT)
def test_a_fault_of_the_file_is_caught(judged, method):
    verdicts = judged.verdicts(f"smollm2-135m-{method}")
    failed = {name for name, verdict in verdicts.items() if verdict == "fail"}
    # A file of another method is also shorter or longer than the baseline.
    assert failed - {"artifact.file_size"} == CAUGHT[method], judged.out


def test_the_failure_says_what_is_wrong(judged):
    assert "; tokenizer " in judged.out
    assert "blk.3.attn_q.weight" in judged.out


def test_a_pinned_artifact_that_changed_is_caught(gate, release, seed):
    folder = gate.folder / "release"
    folder.mkdir()
    path = make(seed, "Q5_0", folder / "smollm2-135m-Q5_0.gguf")
    only = ("-q", "-k", "(pin or rederived) and Q5_0", f"--ondevice-artifacts={folder}")
    pinned = gate.run(*only, "--ondevice-update=lock", methods="Q5_0")
    assert pinned.code == 0, pinned.out
    assert "pinned smollm2-135m-Q5_0: " in pinned.out
    lock = (gate.folder / "ondevice.lock").read_text()
    clean = gate.run(*only, "--ondevice-rederive", methods="Q5_0")
    assert clean.verdicts("smollm2-135m-Q5_0") == {
        "artifact.pin": "pass",
        "artifact.rederived": "pass",
    }
    mutants.scale(path, "blk.2.ffn_up.weight", 1.001)
    outcome = gate.run(*only, "--ondevice-rederive", methods="Q5_0")
    assert outcome.code == 1
    assert outcome.verdicts("smollm2-135m-Q5_0") == {
        "artifact.pin": "fail",
        "artifact.rederived": "fail",
    }
    assert "the same command with --ondevice-update=lock accepts it" in outcome.out
    count = len(read_header(path).tensors)
    assert f"1 of {count} tensors differ: blk.2.ffn_up.weight" in outcome.out
    assert (gate.folder / "ondevice.lock").read_text() == lock
