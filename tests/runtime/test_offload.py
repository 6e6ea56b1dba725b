"""Layers on a GPU: asked for, confirmed, and never a slow pass on the CPU instead."""

from __future__ import annotations

# A runtime that says it could, and then does not.
BOASTS = """
import llama_cpp.llama_cpp as api
api.llama_supports_gpu_offload = lambda: True
"""

# The same, and its log says that it did; yet no weight is in a GPU's memory.
LIES = (
    BOASTS
    + """
from pytest_ondevice.probe.engines import llama_cpp as engine
original = engine.log_position
def log_position():
    engine._log_lines.append("load_tensors: offloaded 31/31 layers to GPU")
    return original() - 1
engine.log_position = log_position
"""
)


def test_a_build_without_gpu_support_is_refused(gate):
    outcome = gate.run("--ondevice-gpu-layers=all")
    assert outcome.code == 4, outcome.out
    assert "--ondevice-gpu-layers=all (from the command line): llama-cpp-python" in outcome.out
    assert "was built without GPU support, or sees no GPU" in outcome.out
    assert not (gate.folder / "report.json").exists()


def test_a_gpu_cell_on_the_cpu_fails(warm):
    for number, (fault, said) in enumerate(
        [
            (BOASTS, "llama.cpp put 0 there and no buffer of weights"),
            (LIES, "llama.cpp put 31 there and no buffer of weights"),
        ]
    ):
        warm.plant(fault)
        outcome = warm.run(
            "-q", "-k", "(kld or finite) and Q4_0", f"--ondevice-gpu-layers={5 + number}"
        )
        assert outcome.code == 1, outcome.out
        assert f"{5 + number} layers were to be on the GPU, {said}" in outcome.out
        assert outcome.verdicts("smollm2-135m-Q4_0")["fidelity.finite"] in {"fail", "blocked"}
        assert outcome.report["settings"]["gpu_layers"] == str(5 + number)


def test_the_cpu_alone_is_the_protocol_of_old(warm):
    """Baselines from before there was a choice are comparable with 0 layers, and only with 0."""
    outcome = warm.run("-q", "-k", "kld and Q4_0")
    assert outcome.report is not None
    assert all("gpu_layers" not in fields for fields in outcome.report["protocols"].values())
