"""Read what a Hugging Face checkpoint says about itself: safetensors headers and ``config.json``.

For files that nobody vouches for. Bounded: a header is compared with the file before it is read,
and what can become a Python object in it is counted before it is parsed; no weight is ever read.
Strict: each tensor's bytes follow the last one's without overlap or gap and fill the file, and are
what its dtype and shape come to. A name that is there twice in a JSON object counts as its last, as
in safetensors itself; because of the rule before, no bytes can hide behind the first one. Only in
``config.json`` it is refused.

Layout: https://github.com/huggingface/safetensors#format; dtypes and limits are those of
``safetensors/src/tensor.rs`` (0.6), names of files those of ``transformers/utils/__init__.py``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from pytest_ondevice.errors import BadFileError

from .opening import opened

if TYPE_CHECKING:
    import os

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits of one element, by the dtype's name in a header."""

MAX_HEADER_BYTES = 100_000_000
"""Longest header, by the format's definition."""
MAX_CONFIG_BYTES = 4 * 1024**2
MAX_SEPARATORS = 2**19
"""Most commas in a header or an index.

Every element of a JSON object or array but the first costs one, so this bounds the Python objects
that are made of it: less than 100 MB of them, whatever the header holds (measured: 75 MB).
"""
MAX_TENSORS = 2**16  # in one file; the largest published models have as many in hundreds of files
MAX_SHARDS = 2**11
MAX_DIMS = 8
MAX_NAME_CHARS = 1024
MAX_INT64 = 2**63 - 1

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")

_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_LFS_START = b"version "  # https://git-lfs.github.com/spec/v1; as a length it is absurd


class StoredTensor(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of a safetensors file, valid by construction.

    Attributes:
        name: Its name: ``model.layers.0.mlp.up_proj.weight``.
        dtype: A key of DTYPE_BITS.
        shape: Dimensions in PyTorch's order: the last is the row length. Empty for a scalar; a
            dimension may be 0.
        start: Where its bytes start in the data section of its file.
        end: Where they end there.

    Raises:
        ValueError: No tensor can have this name, dtype or shape, or not in these bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > MAX_NAME_CHARS:
            raise ValueError(
                f"has a name of {len(self.name)} characters (expected 1 to {MAX_NAME_CHARS})"
            )
        if self.dtype not in DTYPE_BITS:
            raise ValueError(f"is of dtype {_shorten(self.dtype)}, newer than this version knows")
        if len(self.shape) > MAX_DIMS:
            raise ValueError(f"has {len(self.shape)} dimensions (at most {MAX_DIMS})")
        if self.shape and min(self.shape) < 0:
            raise ValueError("has a negative dimension")
        bits = self.n_elements * DTYPE_BITS[self.dtype]
        # safetensors counts in 64 bits; Python's integers do not overflow before that.
        if bits > MAX_INT64 or max(self.shape, default=0) > MAX_INT64:
            raise ValueError("has a shape of more than 2^63-1 bits")
        if bits % 8:
            raise ValueError(f"has {bits} bits, no whole number of bytes")
        if self.start < 0 or self.end - self.start != bits // 8:
            raise ValueError(
                f"has {bits // 8} bytes by its shape {list(self.shape)} of {self.dtype} and "
                f"{_number(self.end - self.start)} by its offsets"
            )

    @property
    def n_elements(self) -> int:
        """Number of its elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Bytes of its data."""
        return self.end - self.start


class SafetensorsHeader(msgspec.Struct, frozen=True, kw_only=True):
    """All of a safetensors file but its weights.

    Attributes:
        tensors: In the order of their data.
        metadata: ``__metadata__``: free text to free text.
        header_bytes: Length of the JSON text; the data section starts 8 bytes after as many.
        file_size: Length of the file.
    """

    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, str]
    header_bytes: int
    file_size: int


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A model's folder without its weights.

    Attributes:
        config: ``config.json``.
        tensors: Those of all files, file by file; offsets are those in each tensor's own file.
        metadata: That of all files; where two disagree about a key, the first one's.
        files: Names of the files with weights, sorted.
        file_size: Their length together.
    """

    config: Mapping[str, Any]
    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, str]
    files: tuple[str, ...]
    file_size: int


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _Index(msgspec.Struct, frozen=True):
    """What is of use in ``model.safetensors.index.json``: which file has which tensor."""

    weight_map: dict[str, str]


_TOP = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENTRY = msgspec.json.Decoder(_Entry)
_TEXTS = msgspec.json.Decoder(dict[str, str])
_INDEX = msgspec.json.Decoder(_Index)
_BAD_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_header(path: str | os.PathLike[str]) -> SafetensorsHeader:
    """Read and check everything in a safetensors file that comes before its weights.

    Args:
        path: The file; a link to a file is one.

    Raises:
        BadFileError: It cannot be read, or is not a safetensors file that a loader should see.
    """
    with opened(path) as (file, size):
        raw = _read_json(path, file, size)
    _check_separators(path, raw, "header")
    try:
        top = _TOP.decode(raw)
        metadata = _TEXTS.decode(top.pop(_METADATA)) if _METADATA in top else {}
    except _BAD_JSON as error:
        raise BadFileError(path, f"its header is no JSON of tensors: {_clause(error)}") from None
    if len(top) > MAX_TENSORS:
        raise BadFileError(path, f"has {len(top)} tensors (at most {MAX_TENSORS})")
    tensors = sorted(
        (_tensor(path, name, entry) for name, entry in top.items()),
        # By the end too: an empty tensor comes before the one that starts where it does.
        key=lambda tensor: (tensor.start, tensor.end),
    )
    _check_layout(path, tensors, size - _LENGTH_BYTES - len(raw))
    return SafetensorsHeader(
        tensors=tuple(tensors), metadata=metadata, header_bytes=len(raw), file_size=size
    )


def read_folder(folder: str | os.PathLike[str]) -> Checkpoint:
    """Read the configuration of a model and the headers of all its weight files.

    Like transformers, ``model.safetensors`` goes before an index where both are there. Files of a
    hub's cache are links to elsewhere, so a link may lead anywhere; a name in the index may not.

    Args:
        folder: It has ``config.json``, and ``model.safetensors`` or
            ``model.safetensors.index.json`` with the files that it names.

    Raises:
        BadFileError: A file is missing or damaged, two contradict each other, or the weights are
            there only as pickles.
    """
    base = Path(folder)
    if not base.is_dir():
        raise BadFileError(folder, "is no folder")
    config = _read_config(base / CONFIG)
    if (base / SINGLE).exists():
        header = read_header(base / SINGLE)
        return _joined(config, {SINGLE: header})
    if (base / INDEX).exists():
        return _joined(config, _read_shards(base))
    raise BadFileError(folder, _no_weights(base))


def _joined(config: Mapping[str, Any], headers: Mapping[str, SafetensorsHeader]) -> Checkpoint:
    """Make one checkpoint of the headers of its files, by name."""
    metadata: dict[str, str] = {}
    for header in headers.values():
        metadata = {**header.metadata, **metadata}
    return Checkpoint(
        config=config,
        tensors=tuple(tensor for header in headers.values() for tensor in header.tensors),
        metadata=metadata,
        files=tuple(headers),
        file_size=sum(header.file_size for header in headers.values()),
    )


def _no_weights(base: Path) -> str:
    """Say what a folder without safetensors has instead."""
    pickles = sorted(path.name for path in base.iterdir() if path.suffix in PICKLES)
    if pickles:
        return (
            f"has its weights only as a pickle, {_shorten(pickles[0])}, which can run code when it "
            "is loaded (save the model again as safetensors)"
        )
    return f"has neither {SINGLE} nor {INDEX}"


def _read_shards(base: Path) -> dict[str, SafetensorsHeader]:
    """Read the headers of all files that an index names; both say the same."""
    index = base / INDEX
    with opened(index) as (file, size):
        if size > MAX_HEADER_BYTES:
            raise BadFileError(index, f"has {size} bytes (at most {MAX_HEADER_BYTES})")
        raw = _read(index, file, size)
    _check_separators(index, raw, "text")
    try:
        places = _INDEX.decode(raw).weight_map
    except _BAD_JSON as error:
        raise BadFileError(index, f"is no index of tensors: {_clause(error)}") from None
    listed: dict[str, set[str]] = {}
    for tensor, name in places.items():
        listed.setdefault(name, set()).add(tensor)
    if not 1 <= len(listed) <= MAX_SHARDS:
        raise BadFileError(index, f"names {len(listed)} files (expected 1 to {MAX_SHARDS})")
    for name in listed:
        _check_name(index, name)
    missing = sorted(name for name in listed if not (base / name).exists())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadFileError(index, f"names {_shorten(missing[0])}{more}, which is not there")
    headers: dict[str, SafetensorsHeader] = {}
    for name in sorted(listed):
        headers[name] = read_header(base / name)
        there = {tensor.name for tensor in headers[name].tensors}
        if lacking := sorted(listed[name] - there):
            raise BadFileError(base / name, f"lacks {_of(lacking)}, which {INDEX} says is in it")
        if unlisted := sorted(there - listed[name]):
            raise BadFileError(
                base / name, f"holds {_of(unlisted)}, which {INDEX} does not say is in it"
            )
    return headers


def _of(tensors: list[str]) -> str:
    more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
    return f"tensor {_shorten(tensors[0])}{more}"


def _check_name(index: Path, name: str) -> None:
    """A file of an index lies beside it."""
    # Both separators, and a drive: what is harmless here may not be where a report is read.
    if not name.endswith(".safetensors") or set(name) & set("/\\:\0") or not name.isprintable():
        raise BadFileError(
            index, f"names {_shorten(name)} (expected a safetensors file in the same folder)"
        )


def _read_config(path: Path) -> dict[str, Any]:
    """Read ``config.json``. Not with msgspec, because real ones have ``Infinity`` in them."""
    with opened(path) as (file, size):
        if size > MAX_CONFIG_BYTES:
            raise BadFileError(path, f"has {size} bytes (at most {MAX_CONFIG_BYTES})")
        raw = _read(path, file, size)
    try:
        config = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise BadFileError(path, f"is no JSON: {_clause(error)}") from None
    if not isinstance(config, dict):
        raise BadFileError(path, f"is no JSON object but {type(config).__name__}")
    return config


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object in which no key is there twice."""
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {_shorten(key)} is there twice")
            seen.add(key)
    return made


def _read_json(path: str | os.PathLike[str], file: BinaryIO, size: int) -> bytes:
    """Read the length in front of a header, and the header."""
    start = _read(path, file, min(size, _LENGTH_BYTES))
    if start == _LFS_START:
        raise BadFileError(path, "is a Git LFS pointer, not the model ('git lfs pull' fetches it)")
    if len(start) < _LENGTH_BYTES:
        raise BadFileError(path, f"is truncated: it has {size} bytes, fewer than its length takes")
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER_BYTES:
        raise BadFileError(
            path,
            f"is no safetensors file: its header would have {length} bytes (at most "
            f"{MAX_HEADER_BYTES})",
        )
    if length > size - _LENGTH_BYTES:
        raise BadFileError(
            path,
            f"is truncated: its header goes on to byte {length + _LENGTH_BYTES}, the file has "
            f"{size}",
        )
    raw = _read(path, file, length)
    if raw[:1] != b"{":
        raise BadFileError(path, f"is no safetensors file: its header starts with {raw[:1]!r}")
    return raw


def _check_separators(path: str | os.PathLike[str], raw: bytes, what: str) -> None:
    count = raw.count(b",")
    if count > MAX_SEPARATORS:
        raise BadFileError(path, f"has {count} commas in its {what} (at most {MAX_SEPARATORS})")


def _tensor(path: str | os.PathLike[str], name: str, raw: msgspec.Raw) -> StoredTensor:
    try:
        entry = _ENTRY.decode(raw)
        return StoredTensor(
            name=name,
            dtype=entry.dtype,
            shape=entry.shape,
            start=entry.data_offsets[0],
            end=entry.data_offsets[1],
        )
    except _BAD_JSON as error:
        raise BadFileError(path, f"tensor {_shorten(name)}: {_clause(error)}") from None
    except ValueError as error:
        raise BadFileError(path, f"tensor {_shorten(name)} {error}") from None


def _check_layout(path: str | os.PathLike[str], tensors: list[StoredTensor], n_bytes: int) -> None:
    """Each tensor starts where the one before it ends, and the last ends with the file."""
    expected = 0
    for tensor in tensors:
        if tensor.start != expected:
            how = "overlaps the one before it" if tensor.start < expected else "leaves a gap"
            raise BadFileError(
                path,
                f"tensor {_shorten(tensor.name)} {how}: its data start at {_number(tensor.start)} "
                f"(expected {expected})",
            )
        if tensor.end > n_bytes:
            raise BadFileError(
                path,
                f"is truncated: tensor {_shorten(tensor.name)} ends at byte {tensor.end} of the "
                f"data, the file has {n_bytes} of them",
            )
        expected = tensor.end
    if expected != n_bytes:
        raise BadFileError(path, f"has {n_bytes - expected} bytes after its last tensor")


def _read(path: str | os.PathLike[str], file: BinaryIO, count: int) -> bytes:
    """Read exactly ``count`` bytes."""
    pieces: list[bytes] = []
    while count:
        piece = file.read(count)
        if not piece:
            raise BadFileError(path, "changed while it was read: it became shorter")
        pieces.append(piece)
        count -= len(piece)
    # A regular file comes in one piece, which is then not copied.
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _clause(error: Exception) -> str:
    """What a parser objects to, on one printable line of bounded length."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = str(error).replace("\n", " ")
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _number(value: int) -> str:
    """Write a number of which only the sign and the order may be known to be sane."""
    return str(value) if abs(value) < 2**64 else f"{'-' if value < 0 else ''}more than 2^64"


def _shorten(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:77]}...")
