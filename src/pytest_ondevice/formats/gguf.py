"""Read the header of a GGUF file that nobody vouches for.

Bounded: what a file claims is compared with the bytes it has before anything is allocated for it,
no loop is longer than a constant, and only the header is read. Strict: what llama.cpp's loader
refuses is refused here, in pure Python and with a sentence, and so is what it would only trip over
later. What a header cannot show, such as damaged weights, is for a digest to find.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import msgspec

from pytest_ondevice.errors import BadFileError
from pytest_ondevice.model.artifact import (
    MAX_DIMS,
    ArrayInfo,
    Header,
    Scalar,
    TensorInfo,
    Value,
)
from pytest_ondevice.model.quant_types import QUANT_TYPES, REMOVED_TYPES

from .opening import opened

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

MAX_HEADER_BYTES = 128 * 1024**2
"""Longest header that is read: what hashes in well under a second without SHA instructions.

A vocabulary of 262,144 tokens with its merges takes about 16 MiB.
"""

# Each bounds a loop at a small multiple of what the largest published models have.
MAX_KEYS = 2**12
MAX_TENSORS = 2**14
MAX_STRINGS = 2**21  # in all arrays together: tokens and merges
MAX_KEY_BYTES = 2**16 - 1  # by the format's definition
MAX_NAME_BYTES = 63  # ggml's own limit

KEPT_ELEMENTS = 64
"""Longest array that is kept as it is; a longer one becomes an ArrayInfo."""
KEPT_BYTES = 1024**2
"""The same for the raw bytes of one value."""
MAX_KEPT_BYTES = 4 * 1024**2
"""Most bytes of kept values in one header."""

_CHUNK = 1024**2
_LFS_START = b"version https://git-lfs.github.com/spec/"

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_PREAMBLE_BYTES = 24
_SMALLEST_KEY = 14  # a key of one byte with a value of one byte
_SMALLEST_TENSOR = 33  # a name of one byte with one dimension

_ARRAY = 9
_STRING = 8
_TYPES: dict[int, tuple[str, str, int]] = {  # id: (name, struct format, bytes)
    0: ("u8", "B", 1),
    1: ("i8", "b", 1),
    2: ("u16", "H", 2),
    3: ("i16", "h", 2),
    4: ("u32", "I", 4),
    5: ("i32", "i", 4),
    6: ("f32", "f", 4),
    7: ("bool", "?", 1),
    _STRING: ("str", "", 8),  # the length that every string starts with
    10: ("u64", "Q", 8),
    11: ("i64", "q", 8),
    12: ("f64", "d", 8),
}

# Keys that a loader reads without asking for their type, and the types it can mean.
_EXPECTED = {
    "general.architecture": ("str",),
    "general.alignment": ("u32",),
    "general.file_type": ("u32",),
    "split.no": ("u16",),
    "split.count": ("u16",),
    "tokenizer.chat_template": ("str",),
    "tokenizer.ggml.model": ("str",),
    "tokenizer.ggml.tokens": ("array of str",),
    "tokenizer.ggml.merges": ("array of str",),
    "tokenizer.ggml.scores": ("array of f32", "array of i32"),
    "tokenizer.ggml.token_type": ("array of i32",),
}
_PER_TOKEN = ("tokenizer.ggml.scores", "tokenizer.ggml.token_type")


def read_header(
    path: str | os.PathLike[str], *, max_header_bytes: int = MAX_HEADER_BYTES
) -> Header:
    """Read and check everything in a GGUF file that comes before its weights.

    Args:
        path: The file; a link to a file is one.
        max_header_bytes: Refuse a longer header.

    Raises:
        BadFileError: It cannot be read, or is not a GGUF file that a runtime should see.
    """
    with opened(path) as (file, size):
        cursor = _Cursor(path, file, size, max_header_bytes)
        version, n_tensors, n_keys = _read_preamble(cursor)
        metadata, tokenizer_digest = _read_metadata(cursor, n_keys)
        cursor.subject = ("metadata", None)
        _check_tokenizer(cursor, metadata)
        split = _split(cursor, metadata)
        architecture = _architecture(cursor, metadata, split)
        alignment = _alignment(cursor, metadata)
        tensors = _read_tensors(cursor, n_tensors)

    data_offset = cursor.pos + (-cursor.pos % alignment if tensors else 0)
    _check_layout(cursor, tensors, alignment, data_offset)
    file_type = metadata.get("general.file_type")
    return Header(
        version=version,
        architecture=architecture,
        metadata=metadata,
        tensors=tensors,
        alignment=alignment,
        meta_size=cursor.pos,
        data_offset=data_offset,
        data_size=tensors[-1].offset + tensors[-1].n_bytes if tensors else 0,
        file_size=size,
        file_type=file_type if isinstance(file_type, int) else None,
        tokenizer_digest=tokenizer_digest,
        split=split,
    )


def read_model(parts: Sequence[Path]) -> Header:
    """Read the headers of a model's files and join them: all tensors, all bytes.

    Args:
        parts: Its files; of a split model all parts, in the order of their numbers.

    Returns:
        Of one file its header. Of several the first one's, with the tensors of all (offsets are
        those in each tensor's own file), the sums of their sizes, and as ``meta_size`` what it
        would be in one file, split keys included.

    Raises:
        BadFileError: A part is damaged, missing or of another model, or two hold one tensor.
    """
    headers = [read_header(path) for path in parts]
    first, count = headers[0], len(headers)
    if first.split is None and count == 1:
        return first
    tensors: dict[str, TensorInfo] = {}
    for number, (path, header) in enumerate(zip(parts, headers, strict=True)):
        stated = header.split
        if stated is None:
            raise BadFileError(path, "is named like a part of a split model and is a whole one")
        if stated[1] != count:
            raise BadFileError(
                path, f"is a part of a model split in {stated[1]}, of which {_there(parts)}"
            )
        if stated[0] != number:
            raise BadFileError(
                path, f"says that it is part {stated[0] + 1}, its name says {number + 1}"
            )
        if header.architecture not in {"", first.architecture}:
            raise BadFileError(
                path, f"is of the architecture {header.architecture}, not the first's"
            )
        for tensor in header.tensors:
            if tensor.name in tensors:
                raise BadFileError(
                    path, f"tensor {_shorten(tensor.name)} is in an earlier part too"
                )
            tensors[tensor.name] = tensor
    stated_tensors = first.metadata.get("split.tensors.count")
    if stated_tensors is not None and stated_tensors != len(tensors):
        raise BadFileError(
            parts[0], f"the model has {stated_tensors} tensors, its parts hold {len(tensors)}"
        )
    return msgspec.structs.replace(
        first,
        tensors=tuple(tensors.values()),
        meta_size=first.meta_size
        + sum(_info_bytes(tensor) for header in headers[1:] for tensor in header.tensors),
        data_size=sum(header.data_size for header in headers),
        file_size=sum(header.file_size for header in headers),
    )


class Place(NamedTuple):
    """Where a tensor's bytes are: a file, the first byte in it, and how many."""

    path: Path
    start: int
    n_bytes: int


def tensor_places(parts: Sequence[Path]) -> dict[str, Place]:
    """Find the bytes of every tensor of a model in its files.

    Raises:
        BadFileError: A file is damaged.
    """
    return {
        tensor.name: Place(path, header.data_offset + tensor.offset, tensor.n_bytes)
        for path in parts
        for header in (read_header(path),)
        for tensor in header.tensors
    }


def same_bytes(one: Place, other: Place) -> bool:
    """Compare two tensors bit for bit, a piece at a time."""
    if one.n_bytes != other.n_bytes:
        return False
    with one.path.open("rb") as first, other.path.open("rb") as second:
        first.seek(one.start)
        second.seek(other.start)
        left = one.n_bytes
        while left:
            piece = first.read(min(left, _CHUNK))
            if not piece or piece != second.read(len(piece)):
                return False
            left -= len(piece)
    return True


def _info_bytes(tensor: TensorInfo) -> int:
    """Bytes that a tensor takes in a header: name, dimensions, type and offset."""
    return 8 + len(tensor.name.encode()) + 4 + 8 * len(tensor.shape) + 4 + 8


def _there(parts: Sequence[Path]) -> str:
    """Say which parts of a split model are there."""
    numbers = [path.stem.rpartition("-of-")[0].rpartition("-")[2] for path in parts]
    return f"only {', '.join(numbers)} {'is' if len(parts) == 1 else 'are'} there"


class _Cursor:
    """A position in a file, and as much of its start as had to be read.

    Attributes:
        pos: Where the next field starts.
        subject: What is being read, for messages: a word and, once known, a name.
    """

    __slots__ = (
        "_buffer",
        "_file",
        "_limit",
        "_path",
        "n_kept",
        "n_strings",
        "pos",
        "size",
        "subject",
    )

    def __init__(self, path: str | os.PathLike[str], file: BinaryIO, size: int, limit: int) -> None:
        self._path = path
        self._file = file
        self._limit = limit
        self._buffer = bytearray()
        self.size = size
        self.pos = 0
        self.n_strings = 0
        self.n_kept = 0
        self.subject: tuple[str, str | int | None] = ("header", None)

    def error(self, problem: str) -> BadFileError:
        """Make the error for a problem of the subject."""
        return BadFileError(self._path, f"{self.subject_text} {problem}")

    def file_error(self, problem: str) -> BadFileError:
        """Make the error for a problem of the file as a whole."""
        return BadFileError(self._path, problem)

    @property
    def subject_text(self) -> str:
        word, name = self.subject
        if name is None:
            return f"its {word}"
        if isinstance(name, int):
            return f"{word} number {name}"
        return f"{word} {_shorten(name)}"

    def left(self) -> int:
        """Bytes of the file from here on."""
        return self.size - self.pos

    def take(self, count: int) -> int:
        """Step over the next ``count`` bytes, which are read by then; return where they start."""
        start = self.pos
        if start + count > len(self._buffer):
            self._load(start + count)
        self.pos = start + count
        return start

    def raw(self, start: int, end: int | None = None) -> bytes:
        """Copy the bytes from ``start`` to ``end``, else up to here."""
        # Released at once: a buffer with a view on it cannot grow.
        with memoryview(self._buffer) as view:
            return bytes(view[start : self.pos if end is None else end])

    def digest(self, start: int) -> bytes:
        """SHA-256 of the bytes from ``start`` up to here, without a copy of them."""
        with memoryview(self._buffer) as view, view[start : self.pos] as part:
            return hashlib.sha256(part).digest()

    def u32(self) -> int:
        value: int = _U32.unpack_from(self._buffer, self.take(4))[0]
        return value

    def u64(self) -> int:
        value: int = _U64.unpack_from(self._buffer, self.take(8))[0]
        return value

    def string(self, what: str, most: int | None = None) -> bytes:
        """Read one string; ``what`` and ``most`` say what it is and how long it may be."""
        start = self.pos
        length = self.u64()
        if most is not None and length > most:
            raise self.error(f"has a {what} of {length} bytes at byte {start} (at most {most})")
        if length > self.left():
            raise self.error(
                f"is truncated or damaged: it claims a {what} of {length} bytes at byte {start}, "
                f"where the file has {self.left()} left"
            )
        return self.raw(self.take(length))

    def skip_strings(self, count: int) -> None:
        """Step over ``count`` strings; their lengths only lead forward, and never past the file."""
        buffer, pos, unpack = self._buffer, self.pos, _U64.unpack_from
        last = len(buffer) - 8  # where a length still is in the buffer
        for index in range(count):
            if pos > last:
                self._check_string_end(index, count, pos)
                self._load(pos + 8)
                last = len(buffer) - 8
            pos += 8 + unpack(buffer, pos)[0]
        self._check_string_end(count, count, pos)
        self.take(pos - self.pos)

    def _check_string_end(self, index: int, count: int, pos: int) -> None:
        if pos > self.size:
            raise self.error(
                f"is truncated or damaged: string {index} of {count} would end at byte {pos}, "
                f"the file has {self.size}"
            )

    def _load(self, end: int) -> None:
        """Read on until the buffer reaches ``end``, at least doubling it."""
        if end > self.size:
            raise self.file_error(
                f"is truncated: {self.subject_text} goes on to byte {end} at least, the file has "
                f"{self.size}"
            )
        if end > self._limit:
            raise self.file_error(
                f"has a header of more than {self._limit} bytes: {self.subject_text} goes on to "
                f"byte {end} at least"
            )
        goal = min(max(end, 2 * len(self._buffer), _CHUNK), self.size, self._limit)
        while len(self._buffer) < goal:
            chunk = self._file.read(min(goal - len(self._buffer), _CHUNK))
            if not chunk:
                raise self.file_error(
                    f"changed while it was read: it had {self.size} bytes, now it ends at byte "
                    f"{len(self._buffer)}"
                )
            self._buffer += chunk


def _shorten(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:77]}...")


def _read_preamble(cursor: _Cursor) -> tuple[int, int, int]:
    """Read magic, version, number of tensors and number of keys."""
    start = cursor.raw(cursor.take(min(cursor.size, len(_LFS_START))))
    cursor.pos = 0
    magic = start[:4]
    if start == _LFS_START:
        raise cursor.file_error("is a Git LFS pointer, not the model ('git lfs pull' fetches it)")
    if magic == MAGIC[::-1]:
        raise cursor.file_error("is a big-endian GGUF file (supported: little-endian)")
    # A file that ends within the magic is truncated, which the next line finds.
    if magic != MAGIC[: len(magic)]:
        raise cursor.file_error(f"not a GGUF file: starts with {magic!r}")
    cursor.take(4)
    version = cursor.u32()
    if version and not version & 0xFFFF:
        raise cursor.file_error("is a big-endian GGUF file (supported: little-endian)")
    if version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        raise cursor.file_error(f"GGUF version {version} (supported: {known})")
    n_tensors, n_keys = cursor.u64(), cursor.u64()
    for count, what, smallest, most in (
        (n_keys, "metadata keys", _SMALLEST_KEY, MAX_KEYS),
        (n_tensors, "tensors", _SMALLEST_TENSOR, MAX_TENSORS),
    ):
        if count > cursor.left() // smallest:
            raise cursor.file_error(
                f"is truncated or damaged: it claims {count} {what}, its {cursor.size} bytes have "
                f"room for {cursor.left() // smallest} at most"
            )
        if count > most:
            raise cursor.file_error(f"has {count} {what} (at most {most})")
    return version, n_tensors, n_keys


def _read_metadata(cursor: _Cursor, n_keys: int) -> tuple[dict[str, Value], str | None]:
    """Read all keys with their values, and digest those of the tokenizer."""
    metadata: dict[str, Value] = {}
    tokenizer: dict[bytes, bytes] = {}
    for number in range(n_keys):
        cursor.subject = ("key", number)
        raw_key = cursor.string("name", MAX_KEY_BYTES)
        key = _name(cursor, raw_key)
        cursor.subject = ("key", key)
        if key in metadata:
            raise cursor.error(f"is there twice, again before byte {cursor.pos}")
        start = cursor.pos
        value, payload = _read_value(cursor, key)
        metadata[key] = value
        # How a conversation is put into words may change without the tokens.
        if key.startswith("tokenizer.") and not key.startswith("tokenizer.chat_template"):
            # Hashed once: the digest of an ArrayInfo stands for its elements.
            if isinstance(value, ArrayInfo):
                digest = bytes.fromhex(value.digest)
            else:
                digest = cursor.digest(payload)
            head = cursor.raw(start, payload)
            tokenizer[raw_key] = _U64.pack(len(raw_key)) + raw_key + head + digest
    if not tokenizer:
        return metadata, None
    total = hashlib.sha256(b"".join(tokenizer[key] for key in sorted(tokenizer)))
    return metadata, total.hexdigest()


def _name(cursor: _Cursor, raw: bytes) -> str:
    """Decode the name of a key or tensor, which is unlike a value never allowed to be odd."""
    at = f"at byte {cursor.pos - len(raw)}"
    if not raw:
        raise cursor.error(f"has an empty name {at}")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise cursor.error(f"has a name that is not UTF-8 {at}: {raw[:40]!r}") from None


def _read_value(cursor: _Cursor, key: str) -> tuple[Value, int]:
    """Read the value of a key; return it and where its type and length end."""
    at = cursor.pos
    type_id = cursor.u32()
    is_array = type_id == _ARRAY
    count = 1
    if is_array:
        type_id, count = cursor.u32(), cursor.u64()
        if type_id == _ARRAY:
            raise cursor.error(f"is an array of arrays at byte {at}, which GGUF loaders refuse")
    if type_id not in _TYPES:
        raise cursor.error(f"has unknown type {type_id} at byte {at} (known: 0 to {max(_TYPES)})")
    name, code, size = _TYPES[type_id]

    actual = f"array of {name}" if is_array else name
    expected = _EXPECTED.get(key, (actual,))
    if actual not in expected:
        raise cursor.error(f"is {actual} at byte {at} (expected {' or '.join(expected)})")
    if count * size > cursor.left():
        raise cursor.error(
            f"is truncated or damaged: it claims {f'an array of {count}' if is_array else 'a'} "
            f"{name} at byte {at}, where the file has {cursor.left()} bytes left"
        )

    start = cursor.pos
    if type_id == _STRING:
        return (_read_strings(cursor, count) if is_array else _read_text(cursor)), start
    cursor.take(count * size)
    if name == "bool":
        _check_bools(cursor, start)
    if count > KEPT_ELEMENTS:
        return _summary(cursor, name, count, start), start
    values: tuple[Scalar, ...] = struct.unpack(f"<{count}{code}", cursor.raw(start))
    return (values if is_array else values[0]), start


def _read_text(cursor: _Cursor) -> Value:
    start = cursor.pos
    raw = cursor.string("text")
    if len(raw) > KEPT_BYTES:
        return _summary(cursor, "text", len(raw), start + 8)
    _count_kept(cursor, len(raw))
    return _text(raw)


def _read_strings(cursor: _Cursor, count: int) -> Value:
    cursor.n_strings += count
    if cursor.n_strings > MAX_STRINGS:
        raise cursor.error(
            f"has {count} strings, with those before it {cursor.n_strings} (at most {MAX_STRINGS})"
        )
    start = cursor.pos
    cursor.skip_strings(count)
    if count > KEPT_ELEMENTS or cursor.pos - start > KEPT_BYTES:
        return _summary(cursor, "str", count, start)
    _count_kept(cursor, cursor.pos - start)
    cursor.pos = start
    return tuple(_text(cursor.string("text")) for _ in range(count))


def _check_bools(cursor: _Cursor, start: int) -> None:
    for piece in range(start, cursor.pos, _CHUNK):
        raw = cursor.raw(piece, min(piece + _CHUNK, cursor.pos))
        wrong = raw.translate(None, b"\0\1")
        if wrong:
            at = piece + raw.index(wrong[0])
            raise cursor.error(f"has a bool of {wrong[0]} at byte {at} (expected 0 or 1)")


def _summary(cursor: _Cursor, type_name: str, length: int, start: int) -> ArrayInfo:
    return ArrayInfo(type=type_name, length=length, digest=cursor.digest(start).hex())


def _count_kept(cursor: _Cursor, count: int) -> None:
    cursor.n_kept += count
    if cursor.n_kept > MAX_KEPT_BYTES:
        raise cursor.error(
            f"brings the texts of the metadata to {cursor.n_kept} bytes (at most {MAX_KEPT_BYTES})"
        )


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        # Like backslashreplace, which is twenty times slower on hostile text.
        return raw.decode("latin-1").encode("unicode_escape").decode("ascii")


def _check_tokenizer(cursor: _Cursor, metadata: dict[str, Value]) -> None:
    """Compare the lengths of arrays that loaders index with a token's number."""
    n_tokens = _length(metadata.get("tokenizer.ggml.tokens"))
    for key in _PER_TOKEN:
        if key in metadata and _length(metadata[key]) != n_tokens:
            cursor.subject = ("key", key)
            raise cursor.error(
                f"has {_length(metadata[key])} elements for {n_tokens} tokens (expected one each)"
            )


def _length(array: Value | None) -> int:
    if isinstance(array, ArrayInfo):
        return array.length
    return len(array) if isinstance(array, tuple) else 0


def _split(cursor: _Cursor, metadata: dict[str, Value]) -> tuple[int, int] | None:
    number, count = metadata.get("split.no", 0), metadata.get("split.count", 0)
    if not (isinstance(number, int) and isinstance(count, int) and count > 1):
        return None
    if number >= count:
        raise cursor.error(f"says that it is file {number} of {count}, counted from 0")
    return number, count


def _architecture(
    cursor: _Cursor, metadata: dict[str, Value], split: tuple[int, int] | None
) -> str:
    architecture = metadata.get("general.architecture", "")
    # Only the first file of a split model has the metadata.
    if not architecture and not (split and split[0]):
        raise cursor.error("has no general.architecture")
    return str(architecture)


def _alignment(cursor: _Cursor, metadata: dict[str, Value]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment.bit_count() != 1 or not 8 <= alignment <= 65536:
        raise cursor.error(
            f"has a general.alignment of {alignment} (expected a power of two from 8 to 65536)"
        )
    return alignment


def _read_tensors(cursor: _Cursor, n_tensors: int) -> tuple[TensorInfo, ...]:
    tensors: dict[str, TensorInfo] = {}
    for number in range(n_tensors):
        cursor.subject = ("tensor", number)
        name = _name(cursor, cursor.string("name", MAX_NAME_BYTES))
        cursor.subject = ("tensor", name)
        if name in tensors:
            raise cursor.error(f"is there twice, again before byte {cursor.pos}")
        tensors[name] = _read_tensor(cursor, name)
    return tuple(tensors.values())


def _read_tensor(cursor: _Cursor, name: str) -> TensorInfo:
    at = cursor.pos
    n_dims = cursor.u32()
    if not 1 <= n_dims <= MAX_DIMS:
        raise cursor.error(f"has {n_dims} dimensions at byte {at} (expected 1 to {MAX_DIMS})")
    shape = tuple(cursor.u64() for _ in range(n_dims))
    type_at = cursor.pos
    type_id = cursor.u32()
    if type_id in REMOVED_TYPES:
        raise cursor.error(
            f"has type {type_id} at byte {type_at}, {REMOVED_TYPES[type_id]}, which llama.cpp "
            "removed (quantize the model again)"
        )
    if type_id not in QUANT_TYPES:
        raise cursor.error(
            f"is of tensor type {type_id} at byte {type_at}, newer than this version knows (0 to "
            f"{max(QUANT_TYPES)})"
        )
    try:
        return TensorInfo(
            name=name, shape=shape, type=QUANT_TYPES[type_id].name, offset=cursor.u64()
        )
    except ValueError as error:
        raise cursor.error(f"{error}, at byte {at}") from None


def _check_layout(
    cursor: _Cursor, tensors: tuple[TensorInfo, ...], alignment: int, data_offset: int
) -> None:
    """Each tensor starts where the one before it ends, padded; none goes past the file."""
    expected = 0
    for tensor in tensors:
        cursor.subject = ("tensor", tensor.name)
        if tensor.offset % alignment:
            raise cursor.error(f"has offset {tensor.offset}, no multiple of {alignment}")
        if tensor.offset != expected:
            how = "overlaps the ones before it" if tensor.offset < expected else "leaves a gap"
            raise cursor.error(f"{how}: its offset is {tensor.offset} (expected {expected})")
        end = data_offset + tensor.offset + tensor.n_bytes
        if end > cursor.size:
            raise cursor.file_error(
                f"is truncated: {cursor.subject_text} ends at byte {end}, the file has "
                f"{cursor.size}"
            )
        expected += tensor.n_bytes + -tensor.n_bytes % alignment
