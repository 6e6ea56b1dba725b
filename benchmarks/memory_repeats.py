"""How much does a memory measurement differ from itself?

Usage: python benchmarks/memory_repeats.py ARTIFACT [--times 20]

Each time is a fresh process, as in the gate. Prints the spread of the exact protocol's peak, of its
parts, and of the peak as shipped; aims at a spread (largest - smallest, over the median) of the
exact peak below 0.5 %.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from pytest_ondevice.probe import runner
from pytest_ondevice.probe.protocol import DeployedPlan, MeasureJob, MemoryPlan


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--times", type=int, default=20)
    given = parser.parse_args()
    found: dict[str, list[float]] = {}
    for _ in range(given.times):
        for stage, plan in (("memory", MemoryPlan()), ("deployed", DeployedPlan())):
            job = MeasureJob(artifact=str(given.artifact), **{stage: plan})
            payload = runner.run(job, timeout=300).payloads[stage]
            for name in ("peak", "weights", "kv", "compute", "unattributed", "mapped", "repacked"):
                if name in payload:
                    found.setdefault(f"{stage} {name}", []).append(float(payload[name]))
    for name, values in found.items():
        middle = statistics.median(values)
        spread = (max(values) - min(values)) / middle if middle else 0.0
        print(
            f"{name:22} median {middle / 2**20:8.2f} MiB, spread {spread:7.3%}"
            f" ({(max(values) - min(values)) / 2**10:.0f} KiB), n {len(values)}"
        )


if __name__ == "__main__":
    main()
