"""What a reference file costs and loses: its size, its bias, and what F16 differs from itself by.

    python benchmarks/reference_file.py REFERENCE.gguf ARTIFACT.gguf ... [--windows N] [--threads N]

Per artifact: mean KLD by the file (512 tokens exact, 256 sampled a position) against the exact sum
over the whole vocabulary, both models loaded side by side, on the same windows. Then the reference
under other executions against itself as it is: the floor that no file puts there. Aims: the file at
most 1/15 of llama-perplexity's at a vocabulary of 49k, bias within 0.1 %.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from pytest_ondevice.probe import runner
from pytest_ondevice.probe.protocol import Execution, FidelityPlan, MeasureJob
from pytest_ondevice.probe.reference import llama_cpp_size
from pytest_ondevice.references import describe
from pytest_ondevice.texts import texts


def measure(artifact: str, plan: FidelityPlan) -> dict[str, Any]:
    """Measure in a worker, as the gate does."""
    result = runner.run(MeasureJob(artifact=artifact, fidelity=plan), timeout=3600)
    if "fidelity" not in result.payloads:
        raise SystemExit(next(iter(result.endings.values())).message)
    return result.payloads["fidelity"]


def mean(values: list[float]) -> float:
    """Return the mean over windows."""
    return sum(values) / len(values)


def main() -> None:
    """Print size, bias and floor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference")
    parser.add_argument("artifacts", nargs="*")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "reference.npz")
        plan = FidelityPlan(
            texts=texts(None)[0],
            reference=str(file),
            last=given.windows,
            execution=Execution(threads=given.threads),
        )
        measure(given.reference, msgspec.structs.replace(plan, write=True))
        head, windows = describe(file)
        scored = head.n_ctx - head.n_ctx // 2 - 1
        ours, theirs = file.stat().st_size, llama_cpp_size(windows, scored, head.n_vocab)
        print(
            f"{windows} windows: {ours:,} bytes, {ours / windows / scored:.0f} a position;"
            f" llama-perplexity's {theirs:,}: 1/{theirs / ours:.1f}"
        )
        for artifact in given.artifacts:
            by_file = mean(measure(artifact, plan)["kld"])
            beside = msgspec.structs.replace(plan, reference="", beside=given.reference)
            whole = mean(measure(artifact, beside)["kld"])
            print(
                f"{Path(artifact).name[:24]:<24} by file {by_file:.6f}, whole vocabulary"
                f" {whole:.6f} nats: {by_file / whole - 1:+.3%}",
                flush=True,
            )
        for name, other in {
            "the same execution": {},
            "flash attention off": {"flash_attention": False},
            "repack off": {"repack": False},
            "micro-batches of 32": {"n_ubatch": 32},
        }.items():
            execution = msgspec.structs.replace(plan.execution, **other)
            found = measure(given.reference, msgspec.structs.replace(plan, execution=execution))
            print(f"reference, {name}: KLD {mean(found['kld']):.2e} nats", flush=True)


if __name__ == "__main__":
    main()
