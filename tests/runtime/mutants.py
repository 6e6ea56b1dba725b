"""Planted faults: what a broken quantizer, converter or upload would have done to a file."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

import numpy as np

from pytest_ondevice.formats.gguf import read_header
from pytest_ondevice.model.quant_types import by_name

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_ondevice.model.artifact import TensorInfo

# Where the half-precision scales of a block stand, in halves from its start (ggml-common.h).
SCALES = {
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K"), (0,)),
    "Q6_K": (104,),
}
# Those of a block's minima, where it has some.
MINIMA = dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (1,))

FLOAT32 = 6  # the type of a value in a header (gguf.h)
PIECE = 1 << 20


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


def tensors(path: Path, pattern: str) -> list[str]:
    """Name the tensors that a pattern matches as a whole, in the order of the file."""
    found = [info.name for info in read_header(path).tensors if re.fullmatch(pattern, info.name)]
    if not found:
        raise LookupError(f"{path} has no tensor {pattern}")
    return found


def lose(path: Path, tensor: str, share: float) -> int:
    """Zero the scales of evenly spaced blocks of one tensor, one at least; returns how many."""
    header, info = _find(path, tensor)
    size = by_name(info.type).type_size
    count = info.n_bytes // size
    lost = max(round(share * count), 1)
    with path.open("r+b") as file:
        for block in (count * (2 * i + 1) // (2 * lost) for i in range(lost)):
            for half in (*SCALES[info.type], *MINIMA.get(info.type, ())):
                file.seek(header.data_offset + info.offset + block * size + 2 * half)
                file.write(b"\0\0")
    return lost


def swap(path: Path, one: str, other: str) -> None:
    """Exchange the weights of two tensors of the same type and shape."""
    header, first = _find(path, one)
    _, second = _find(path, other)
    assert (first.type, first.shape) == (second.type, second.shape)
    places = [header.data_offset + info.offset for info in (first, second)]
    with path.open("r+b") as file:
        held = []
        for place in places:
            file.seek(place)
            held.append(file.read(first.n_bytes))
        for place, data in zip(places, reversed(held), strict=True):
            file.seek(place)
            file.write(data)


def rotate(path: Path, factor: float) -> None:
    """Multiply the base of the rotary position embedding, a value of the header."""
    metadata = read_header(path).metadata
    key = f"{metadata['general.architecture']}.rope.freq_base"
    old = metadata[key]
    kind = struct.pack("<I", FLOAT32)
    new = struct.pack("<f", old * factor)
    change(path, key.encode(), kind + struct.pack("<f", old), kind + new)


def restore(path: Path, clean: Path) -> None:
    """Take a fault back: write what differs from a clean copy of the same length."""
    with path.open("r+b") as file, clean.open("rb") as good:
        while piece := good.read(PIECE):
            place = file.tell()
            if file.read(len(piece)) != piece:
                file.seek(place)
                file.write(piece)
        assert file.tell() == path.stat().st_size, "a fault changed the length"
