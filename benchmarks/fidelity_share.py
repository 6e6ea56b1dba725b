"""How much of a fidelity measurement is spent outside llama.cpp.

    python benchmarks/fidelity_share.py ARTIFACT.gguf [REFERENCE.gguf]

Runs the fidelity stage of the worker in this process over 8 windows of the shipped text, with every
call into llama.cpp timed. Target: at most 5 % for a candidate; the reference's own pass, which also
keeps its distributions, is printed beside it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pytest_ondevice.probe import fidelity
from pytest_ondevice.probe.engines import llama_cpp as engine
from pytest_ondevice.probe.protocol import Execution, FidelityPlan, Text

TEXTS = Path(fidelity.__file__).parents[1] / "data" / "text" / "v1"
NATIVE = ("llama_decode", "llama_synchronize", "llama_tokenize", "llama_model_load_from_file",
          "llama_init_from_model", "llama_model_free", "llama_free")  # fmt: skip


def main() -> None:
    """Time the reference's pass, then the candidate's."""
    artifact = sys.argv[1]
    reference = sys.argv[2] if len(sys.argv) > 2 else artifact
    engine.start()
    spent = [0.0]
    for name in NATIVE:
        setattr(engine.api, name, timed(getattr(engine.api, name), spent))
    with tempfile.TemporaryDirectory() as folder:
        for title, path, write in (("reference", reference, True), ("candidate", artifact, False)):
            plan = FidelityPlan(
                texts=tuple(Text(file.stem, str(file)) for file in sorted(TEXTS.glob("*.txt"))),
                reference=str(Path(folder, "reference.npz")),
                write=write,
                last=8,
                execution=Execution(threads=2),
            )
            spent[0] = 0.0
            begin = time.perf_counter()
            fidelity.measure(engine, path, plan, lambda done, total: None)
            total = time.perf_counter() - begin
            print(f"{title}: {total:.2f} s, outside llama.cpp {(total - spent[0]) / total:.1%}")


def timed(function: Any, spent: list[float]) -> Any:
    """Add a function's time to ``spent``."""

    def call(*args: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*args)
        finally:
            spent[0] += time.perf_counter() - begin

    return call


if __name__ == "__main__":
    main()
