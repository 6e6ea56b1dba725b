"""What the plugin costs pytest: unused, and with ten thousand cells.

    python benchmarks/collect.py

Prints the processor time that the unused plugin adds to ``pytest --collect-only`` (median of paired
runs), and that of collecting 10,000 cells. Needs no runtime and no weights.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PAIRS = 15
CELLS = 10_000


def seconds(*args: str, cwd: str) -> float:
    """Measure the processor time of one ``pytest --collect-only``: it waits for nothing."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*command, *args], cwd=cwd, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def unused() -> None:
    """Pair runs with and without the plugin."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_it.py").write_text("def test_it(): pass\n")
        seconds(cwd=folder)
        pairs = [
            (seconds(cwd=folder), seconds("-p", "no:ondevice", cwd=folder)) for _ in range(PAIRS)
        ]
    added = [1000 * (with_it - without) for with_it, without in pairs]
    quartiles = statistics.quantiles(added, n=4)
    print(
        f"unused plugin: {statistics.median(added):+.1f} ms"
        f" (quartiles {quartiles[0]:+.1f} to {quartiles[2]:+.1f}, {PAIRS} pairs;"
        f" pytest itself {1000 * statistics.median(t for _, t in pairs):.0f} ms)"
    )


def many() -> None:
    """Collect one test over 10,000 cells: empty files stand for models, nothing is opened."""
    methods = (
        "F32,F16,BF16,Q4_0,Q4_1,Q5_0,Q5_1,Q8_0,Q2_K,Q2_K_S,Q3_K_S,Q3_K_M,Q3_K_L,Q4_K_S,Q4_K_M,"
        "Q5_K_S,Q5_K_M,Q6_K,IQ1_S,IQ1_M,IQ2_XXS,IQ2_XS,IQ2_S,IQ2_M,IQ3_XXS,IQ3_XS,IQ3_S,IQ3_M,"
        "IQ4_NL,IQ4_XS,TQ1_0,TQ2_0"
    )
    per_model = len(methods.split(","))
    count = -(-CELLS // per_model)
    with tempfile.TemporaryDirectory() as folder:
        names = [f"model{number}.gguf" for number in range(count)]
        for name in names:
            Path(folder, name).touch()
        Path(folder, "test_it.py").write_text("def test_it(ondevice_cell): pass\n")
        args = [f"--ondevice-models={','.join(names)}", f"--ondevice-methods={methods}"]
        times = [seconds("test_it.py", *args, cwd=folder) for _ in range(3)]
    print(f"collecting {count * per_model} cells: {statistics.median(times):.2f} s (median of 3)")


if __name__ == "__main__":
    unused()
    many()
