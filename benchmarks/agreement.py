"""Agreement with llama.cpp's own perplexity tool, on the same windows of the same text.

    python benchmarks/agreement.py LLAMA_PERPLEXITY REFERENCE.gguf ARTIFACT.gguf TEXT.txt

LLAMA_PERPLEXITY is the tool's binary, built from the same llama.cpp. Prints both programs' figures
and their relative difference. The tool stores its reference in 16 bits, so mean KLD agrees to some
tenths of a percent, perplexity to its six digits.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from pytest_ondevice import figures
from pytest_ondevice.probe import runner
from pytest_ondevice.probe.protocol import Execution, FidelityPlan, MeasureJob, Text


def ours(reference: str, artifact: str, text: str) -> dict[str, float]:
    """Measure with the worker, as the gate does."""
    with tempfile.TemporaryDirectory() as folder:
        for path, write in ((reference, True), (artifact, False)):
            plan = FidelityPlan(
                texts=(Text("text", text),),
                reference=str(Path(folder, "reference.npz")),
                write=write,
                execution=Execution(threads=2),
            )
            result = runner.run(MeasureJob(artifact=path, fidelity=plan), timeout=600)
            payload = result.payloads["fidelity"]
    mean = {
        name: sum(payload[name]) / len(payload[name])  # type: ignore[arg-type,call-overload]
        for name in ("nll", "kld", "ln_ratio", "same_top", "dp", "square_dp")
    }
    tail = {
        name: figures.of_fidelity(quantity, [payload]).value or math.nan
        for name, quantity in {"median KLD": "kld_median", "99 % KLD": "kld_p99"}.items()
    }
    return {
        "mean dp": 100 * mean["dp"],
        "RMS dp": 100 * math.sqrt(mean["square_dp"]),
        **tail,
        "PPL": math.exp(mean["nll"]),
        "KLD": mean["kld"],
        "ln ratio": mean["ln_ratio"],
        "same top": 100 * mean["same_top"],
    }


def theirs(tool: str, reference: str, artifact: str, text: str) -> dict[str, float]:
    """Measure with llama-perplexity: its reference file, then the artifact against it."""
    with tempfile.TemporaryDirectory() as folder:
        base = [tool, "-f", text, "-c", "512", "-t", "2", "--kl-divergence-base", f"{folder}/base"]
        subprocess.run([*base, "-m", reference], capture_output=True, check=True)
        out = subprocess.run(
            [*base, "-m", artifact, "--kl-divergence"], capture_output=True, check=True, text=True
        )
    patterns = {
        "mean dp": r"Mean\s+Δp:\s*(-?[\d.]+)",
        "RMS dp": r"RMS Δp\s*:\s*([\d.]+)",
        "median KLD": r"Median\s+KLD:\s*([\d.]+)",
        "99 % KLD": r"99\.0%\s+KLD:\s*([\d.]+)",
        "PPL": r"Mean PPL\(Q\)\s*:\s*([\d.]+)",
        "KLD": r"Mean\s+KLD:\s*([\d.]+)",
        "ln ratio": r"Mean ln\(PPL\(Q\)/PPL\(base\)\)\s*:\s*([-\d.]+)",
        "same top": r"Same top p:\s*([\d.]+)",
    }
    log = out.stdout + out.stderr
    return {name: float(re.search(pattern, log)[1]) for name, pattern in patterns.items()}  # type: ignore[index]


def main() -> None:
    """Print both and the difference."""
    tool, reference, artifact, text = sys.argv[1:]
    mine, other = ours(reference, artifact, text), theirs(tool, reference, artifact, text)
    for name, value in mine.items():
        print(f"{name:<10} {value:.7g}  tool {other[name]:.7g}  {value / other[name] - 1:+.4%}")


if __name__ == "__main__":
    main()
