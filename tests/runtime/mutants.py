"""Planted faults: what a broken quantizer, converter or upload would have done to a file."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from pytest_ondevice.formats.gguf import read_header
from pytest_ondevice.model.quant_types import by_name

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_ondevice.model.artifact import TensorInfo

# Where the half-precision scales of a block stand, in halves from its start (ggml-common.h).
SCALES = {"Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,), "Q4_K": (0,), "Q5_K": (0,), "Q6_K": (104,)}


def scale(path: Path, tensor: str, factor: float) -> None:
    """Multiply every block scale of one tensor, in place."""
    header, info = _find(path, tensor)
    kind = by_name(info.type)
    dtype = np.float32 if info.type == "F32" else np.float16
    place = header.data_offset + info.offset
    weights = np.memmap(path, dtype, "r+", place, (info.n_bytes // np.dtype(dtype).itemsize,))
    if kind.is_float:
        weights *= dtype(factor)
        return
    blocks = weights.reshape(-1, kind.type_size // 2)
    for place in SCALES[info.type]:
        blocks[:, place] = (blocks[:, place].astype(np.float32) * factor).astype(np.float16)
    weights.flush()


def poison(path: Path, tensor: str) -> None:
    """Make the first block scale of a tensor NaN."""
    header, info = _find(path, tensor)
    with path.open("r+b") as file:
        file.seek(header.data_offset + info.offset + 2 * SCALES[info.type][0])
        file.write(np.float16(np.nan).tobytes())


def declare(path: Path, file_type: int) -> None:
    """Change the file type that the header declares."""
    key = b"general.file_type"
    data = path.read_bytes()[: read_header(path).data_offset]
    place = data.index(struct.pack("<Q", len(key)) + key) + 8 + len(key) + 4
    with path.open("r+b") as file:
        file.seek(place)
        file.write(struct.pack("<I", file_type))


def _find(path: Path, tensor: str) -> tuple[object, TensorInfo]:
    header = read_header(path)
    return header, next(info for info in header.tensors if info.name == tensor)


def change(path: Path, key: bytes, old: bytes, new: bytes) -> None:
    """Replace bytes behind a key of the header, keeping the length."""
    assert len(old) == len(new)
    data = path.read_bytes()[: read_header(path).data_offset]
    place = data.index(old, data.index(struct.pack("<Q", len(key)) + key))
    with path.open("r+b") as file:
        file.seek(place)
        file.write(new)


def inflate(path: Path, tensor: str) -> None:
    """Make one block's scale absurd, yet finite: the upper byte of one half was hit."""
    header, info = _find(path, tensor)
    with path.open("r+b") as file:
        place = header.data_offset + info.offset + 7 * by_name(info.type).type_size
        file.seek(place + 2 * SCALES[info.type][0])
        file.write(np.float16(30_000.0).tobytes())
