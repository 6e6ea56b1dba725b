"""Read the weights of GGUF files for damage that a header cannot show, without a runtime.

Every floating number that a block is scaled by, and every element of a float tensor, is looked at.
The numbers in between, a block's quants and its integer scales, can be anything: a digest alone
tells whether they are the ones that were written.

Kinds of findings:

* ``nan``, ``infinite``: no number. llama.cpp refuses such a tensor where it is told to check.
* ``huge``: a weight that no model has, see the limits below.
* ``lost``: all zeros, or zeros in more than half of the blocks.
* ``repeated``: the same block over and over, as a hole in a file or a stuck writer leaves it.
* ``unreadable``: a type that files do not hold; llama.cpp refuses it.

The first three and the last are faults. ``lost`` and ``repeated`` are what real damage looks like,
but somebody may have wanted it: a pruned head, a layer that passes through.

Fast, because it is meant for each file that is measured: scales are compared as integers, whose
order is that of the magnitudes they stand for, and only their maximum is taken. A tensor is read a
second time, exactly, where the first reading leaves a doubt. Files are read in pieces that stay in
a core's cache instead of being mapped: a mapped file that shrinks kills the process (SIGBUS), one
that is read only ends early.

Layouts of blocks: llama.cpp as vendored in llama-cpp-python 0.3.36, ``ggml/src/ggml-common.h``;
factors and codings: the ``dequantize_row_*`` of ``ggml-quants.c`` and ``ggml-impl.h``; what is
refused: ``ggml_validate_row_data`` there.
"""

from __future__ import annotations

import math
import struct
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np

from pytest_ondevice.errors import BadFileError
from pytest_ondevice.model.quant_types import by_name

from .gguf import read_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from pytest_ondevice.model.artifact import Header, TensorInfo

    Array: TypeAlias = npt.NDArray[Any]

Kind = Literal["nan", "infinite", "huge", "lost", "repeated", "unreadable"]

MOST_WEIGHT = 2.0**15
"""Largest weight of a matrix.

Products with two inputs of 1 leave the range of half precision. Of matrices of published language
models the largest weights known are some tens; in SmolLM2-135M the largest is 11.5.
"""
MOST_IN_VECTOR = 2.0**100
"""Largest element of a tensor of one row.

There 1e30 is in use, for a rotation that takes forever (``conversion/gemma.py`` of llama.cpp).
An upset highest bit of an exponent still goes beyond it, from any element of 2^-28 to 2.
"""
MOST_TIMES_MEDIAN = 2.0**12
"""Largest weight of a matrix, as a multiple of the median of its blocks (elements).

Single weights that a model cannot do without reach some hundred times the median; in SmolLM2-135M
the largest is 80 times it in F16 and 27 times it in blocks.
"""
ALWAYS_SMALL = 2.0**8
"""A weight that is no more than this is not huge, whatever the median."""

LEAST_RUN = 1024
"""Fewest equal blocks in a row that are a finding ..."""
LEAST_RUN_BYTES = 16 * 1024
"""... and the fewest bytes in them."""

_GROUP = 32  # elements of a float tensor that stand for a block, where zeros and repeats count
_PIECE = 768 * 1024  # about what fits a core's second-level cache, with what comes of it
_MOST_PIECE = 8 * 1024**2  # of whole rows
_STRIDE = 500  # two neighbours each so many blocks: a run of LEAST_RUN, also one split, has a pair
_SAMPLED = 61  # one group of so many is looked at for zeros, at least so many of a piece; a prime,
# to be out of step with rows
_MEDIAN_PIECES = 64
_MEDIAN_PER_PIECE = 4096


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of damage in one tensor.

    Attributes:
        tensor: Name of the tensor.
        type: Its type.
        kind: What is wrong.
        field: Name of the number in a block, as llama.cpp's structs have it; empty where the
            block or the tensor as a whole is meant, or the block is one number.
        n_blocks: In how many blocks. An element of a float tensor is a block of one.
        block: The first one's index in the tensor.
        part: Index of the file in the list of parts.
        offset: The first one's offset in that file; where it starts, not where the field is.
        example: The first one's value and bits.
    """

    tensor: str
    type: str
    kind: Kind
    field: str
    n_blocks: int
    block: int
    part: int
    offset: int
    example: str

    @property
    def sentence(self) -> str:
        """The finding in words."""
        what = self.kind if not self.field else f"{self.kind} {self.field}"
        blocks = "1 block, which" if self.n_blocks == 1 else f"{self.n_blocks} blocks, the first"
        return (
            f"tensor {self.tensor} ({self.type}): {what} in {blocks} is "
            f"number {self.block} at byte {self.offset}: {self.example}"
        )

    @property
    def is_fault(self) -> bool:
        """Whether nobody can have wanted it."""
        return self.kind not in {"lost", "repeated"}

    @property
    def is_refused(self) -> bool:
        """Whether ggml_validate_row_data refuses the row (it takes every byte of NVFP4)."""
        if self.kind == "unreadable":
            return True
        return self.kind in {"nan", "infinite"} and self.type not in {"NVFP4", "Q8_1"}


class BlockReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the weights of a model look like.

    Attributes:
        findings: In the order of the tensors.
        n_tensors: Tensors in all parts.
        n_blocks: Blocks that were looked at; a float's elements are blocks.
        n_bytes: Bytes of these; what was read twice counts once.
        unchecked: Names of tensors in which every bit pattern is a value: integers.
    """

    findings: tuple[Finding, ...]
    n_tensors: int
    n_blocks: int
    n_bytes: int
    unchecked: tuple[str, ...] = ()

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that nobody can have wanted."""
        return tuple(finding for finding in self.findings if finding.is_fault)

    @property
    def is_valid(self) -> bool:
        """Whether ggml_validate_row_data accepts every tensor."""
        return not any(finding.is_refused for finding in self.findings)


def scan(parts: Sequence[Path], headers: Sequence[Header] | None = None) -> BlockReport:
    """Look at all blocks of a model.

    Args:
        parts: Its files, of a split model all.
        headers: Their headers, one each and not joined, where they have been read already.

    Raises:
        BadFileError: A file cannot be read, is no GGUF file, or ends early.
    """
    if headers is None:
        headers = [read_header(path) for path in parts]
    findings: list[Finding] = []
    unchecked: list[str] = []
    n_blocks = n_bytes = 0
    for part, (path, header) in enumerate(zip(parts, headers, strict=True)):
        with _opened(path) as file:
            source = _Source(path, file)
            for tensor in header.tensors:
                if by_name(tensor.type).is_integer:
                    unchecked.append(tensor.name)
                    continue
                scanned = _Tensor(source, tensor, part, header.data_offset + tensor.offset)
                findings += scanned.findings()
                n_blocks += scanned.n_blocks
                n_bytes += tensor.n_bytes
    return BlockReport(
        findings=tuple(findings),
        n_tensors=sum(len(header.tensors) for header in headers),
        n_blocks=n_blocks,
        n_bytes=n_bytes,
        unchecked=tuple(unchecked),
    )


# How numbers are coded. Of each coding the patterns without the sign rise with the value.


class _Coding(NamedTuple):
    """A format of numbers.

    Attributes:
        dtype: Unsigned integers of its size.
        mask: Everything but the sign.
        infinite: Least pattern without sign that is no finite number.
        nan: Least one that is not even infinite.
        value: What a pattern without sign stands for.
    """

    dtype: str
    mask: int
    infinite: int
    nan: int
    value: Callable[[int], float]


def _unpacked(code: str, shift: int = 0) -> Callable[[int], float]:
    size = struct.calcsize(code)

    def value(pattern: int) -> float:
        number: float = struct.unpack(code, (pattern << shift).to_bytes(size, "little"))[0]
        return number

    return value


def _e8m0(pattern: int) -> float:
    # Halved as in llama.cpp, whose table of the elements is doubled.
    return math.nan if pattern == 0xFF else 2.0 ** (pattern - 128)


def _ue4m3(pattern: int) -> float:
    exponent, mantissa = pattern >> 3, pattern & 7
    if pattern == 0x7F:
        return math.nan
    return (mantissa / 8 + (exponent > 0)) * 2.0 ** (max(exponent, 1) - 8)


# llama.cpp checks doubles as floats: from here on, halfway to 2^128, they round to infinity.
_F64_INFINITE = struct.unpack("<Q", struct.pack("<d", 2.0**128 - 2.0**103))[0]

_F16 = _Coding("<u2", 0x7FFF, 0x7C00, 0x7C01, _unpacked("<e"))
_BF16 = _Coding("<u2", 0x7FFF, 0x7F80, 0x7F81, _unpacked("<f", 16))
_F32 = _Coding("<u4", 2**31 - 1, 0x7F80_0000, 0x7F80_0001, _unpacked("<f"))
_F64 = _Coding("<u8", 2**63 - 1, _F64_INFINITE, (0x7FF << 52) + 1, _unpacked("<d"))
_E8M0 = _Coding("|u1", 0xFF, 0xFF, 0xFF, _e8m0)
_UE4M3 = _Coding("|u1", 0x7F, 0x7F, 0x7F, _ue4m3)


class _Field(NamedTuple):
    """A number in each block.

    Attributes:
        name: As in llama.cpp's struct.
        coding: How it is coded.
        offset: Where it starts in the block.
        factor: Largest magnitude of what it is multiplied by; 0 if the product is no weight.
    """

    name: str
    coding: _Coding
    offset: int
    factor: float


def _d(factor: float, offset: int = 0) -> tuple[_Field, ...]:
    return (_Field("d", _F16, offset, factor),)


_GRID2 = 15.5 / 4 * 43  # IQ2's scale of 4 bits and a half, by the largest number in its grids

_FIELDS: dict[str, tuple[_Field, ...]] = {
    "F32": (_Field("", _F32, 0, 1),),
    "F16": (_Field("", _F16, 0, 1),),
    "BF16": (_Field("", _BF16, 0, 1),),
    "F64": (_Field("", _F64, 0, 1),),
    "Q1_0": _d(1),
    "Q2_0": _d(2),
    "Q4_0": _d(8),
    "Q4_1": (*_d(15), _Field("m", _F16, 2, 1)),
    "Q5_0": _d(16),
    "Q5_1": (*_d(31), _Field("m", _F16, 2, 1)),
    "Q8_0": _d(128),
    "Q8_1": (*_d(128), _Field("s", _F16, 2, 0)),
    "Q2_K": (*_d(15 * 3, 80), _Field("dmin", _F16, 82, 15)),
    "Q3_K": _d(32 * 4, 108),
    "Q4_K": (*_d(63 * 15), _Field("dmin", _F16, 2, 63)),
    "Q5_K": (*_d(63 * 31), _Field("dmin", _F16, 2, 63)),
    "Q6_K": _d(128 * 32, 208),
    "Q8_K": (_Field("d", _F32, 0, 128),),
    "IQ1_S": _d(15 * 1.125),
    "IQ1_M": (_Field("scales", _F16, 48, 15 * 1.125),),  # a quarter of it in each of four words
    "IQ2_XXS": _d(_GRID2),
    "IQ2_XS": _d(_GRID2),
    "IQ2_S": _d(_GRID2),
    "IQ3_XXS": _d(15.5 / 2 * 62),
    "IQ3_S": _d(31 * 15),
    "IQ4_NL": _d(127),
    "IQ4_XS": _d(32 * 127),
    "TQ1_0": _d(1, 52),
    "TQ2_0": _d(2, 64),
    "MXFP4": (_Field("e", _E8M0, 0, 12),),
    # No weight by itself: all of a tensor is scaled once more, by a tensor of its own.
    "NVFP4": tuple(_Field(f"d[{index}]", _UE4M3, index, 0) for index in range(4)),
}


@lru_cache(maxsize=1024)
def _last_within(coding: _Coding, factor: float, most: float) -> int:
    """Find the last pattern whose value, multiplied, is finite and at most ``most``."""
    low, high = 0, coding.infinite - 1
    if not factor:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if coding.value(middle) * factor <= most:
            low = middle
        else:
            high = middle - 1
    return low


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file without a buffer; what the system objects to, also later, is a BadFileError."""
    try:
        with path.open("rb", buffering=0) as file:
            yield file
    except FileNotFoundError:
        raise BadFileError(path, "does not exist") from None
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror}") from error


class _Source:
    """A file, read in pieces into one buffer; each piece is gone when the next one is there.

    Attributes:
        scratch: Room for what is computed of a piece. Once for all tensors, because fresh memory
            costs more than what is done in it.
    """

    __slots__ = ("_buffer", "_file", "_path", "scratch")

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._buffer: npt.NDArray[np.uint8] = np.empty(_PIECE, np.uint8)
        self.scratch: npt.NDArray[np.uint8] = np.empty(_PIECE, np.uint8)

    def pieces(self, start: int, n_bytes: int, size: int, step: int = 1) -> Iterator[Array]:
        """Read ``n_bytes`` from ``start`` on, ``size`` at a time, each ``step``-th of these."""
        if size > len(self._buffer):
            self._buffer = np.empty(size, np.uint8)
        view = self._buffer.data
        for begin in range(0, n_bytes, size * step):
            length = min(size, n_bytes - begin)
            if step > 1 or not begin:
                self._file.seek(start + begin)
            self._fill(view[:length], start + begin)
            yield self._buffer[:length]

    def _fill(self, view: memoryview, place: int) -> None:
        done = 0
        while done < len(view):
            # Raw files have it; the type of an open file in general does not.
            count: int = self._file.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                raise BadFileError(
                    self._path, f"changed while it was read: it now ends at byte {place + done}"
                )
            done += count


def _patterns(field: _Field, raw: Array, size: int) -> Array:
    """View one field of each block of ``size`` bytes as integers, with its sign."""
    count = len(raw) // size
    if field.name == "scales":
        return _iq1_m_scale(raw, count, size)
    return np.ndarray((count,), field.coding.dtype, raw, field.offset, (size,))


def _iq1_m_scale(raw: Array, count: int, size: int) -> Array:
    """Put the scale of each IQ1_M block together: the highest four bits of its four words."""
    words = (np.ndarray((count,), "<u2", raw, 48 + 2 * index, (size,)) for index in range(4))
    first, second, third, fourth = words
    scale = first >> 12
    scale |= (second >> 8) & 0x00F0
    scale |= (third >> 4) & 0x0F00
    scale |= fourth & 0xF000
    return scale


def _peak(patterns: Array, coding: _Coding, enough: int) -> int:
    """Largest pattern without its sign; where it is at most ``enough``, a number not below it."""
    # All bits of all numbers together are not below any of them, and one reading tells.
    bits = int(np.bitwise_or.reduce(patterns)) & coding.mask
    if bits <= enough:
        return bits
    # As signed integers negative numbers come first, as unsigned ones last, by magnitude.
    positive = int(patterns.view(f"i{patterns.itemsize}").max())
    return max(int(patterns.max()) & coding.mask, positive)


class _Tally:
    """Counts the blocks of one finding.

    Attributes:
        count: How many.
        first: Index of the first.
        example: Its pattern.
    """

    __slots__ = ("count", "example", "first")

    def __init__(self) -> None:
        self.count = 0
        self.first = 0
        self.example = 0

    def add(self, where: Array, base: int, patterns: Array | None = None) -> None:
        """Count the blocks that are true in ``where``, the first of which is block ``base``."""
        count = int(np.count_nonzero(where))
        if count and not self.count:
            index = int(where.argmax())
            self.first = base + index
            self.example = 0 if patterns is None else int(patterns[index])
        self.count += count


class _Runs:
    """Counts the blocks in long runs of equal ones, also across the ends of pieces.

    Attributes:
        count: How many blocks are in them.
        first: Index of the first run's first block.
    """

    __slots__ = ("_last", "_least", "_start", "count", "first")

    def __init__(self, least: int) -> None:
        self._least = least
        self._start = 0  # of the run that the last block is in
        self._last: bytes | None = None
        self.count = 0
        self.first = 0

    def add(self, blocks: Array, base: int, spared: Array) -> None:
        """Go on with the blocks from number ``base`` on, a row each; those spared end a run."""
        breaks = np.empty(len(blocks), np.bool_)
        breaks[1:] = (blocks[1:] != blocks[:-1]).any(axis=1)
        breaks[0] = blocks[0].tobytes() != self._last
        breaks |= spared
        self._last = blocks[-1].tobytes()
        starts = np.flatnonzero(breaks) + base
        if len(starts):
            edges = np.concatenate(([self._start], starts))
            self._start = int(edges[-1])
            self._count(edges)

    def end(self, n_blocks: int) -> None:
        """Count the run that the tensor ends in."""
        self._count(np.array([self._start, n_blocks]))

    def _count(self, edges: Array) -> None:
        lengths = np.diff(edges)
        long = lengths >= self._least
        if long.any():
            if not self.count:
                self.first = int(edges[long.argmax()])
            self.count += int(lengths[long].sum())


class _Tensor:
    """One tensor of a file, read once, and once more where that leaves a doubt.

    Attributes:
        n_blocks: How many blocks it has.
    """

    def __init__(self, source: _Source, info: TensorInfo, part: int, start: int) -> None:
        quant = by_name(info.type)
        self._source = source
        self._info = info
        self._part = part
        self._start = start
        self._fields = _FIELDS[info.type]
        self._size = quant.type_size
        self.n_blocks = info.n_bytes // quant.type_size
        # For zeros and repeats some elements of a float tensor, all of one row, are one unit.
        self._group = math.gcd(info.shape[0], _GROUP) if quant.is_float else 1
        self._unit = self._size * self._group
        self._is_float = quant.is_float
        self._is_matrix = info.n_weights > info.shape[0]
        self._row = info.shape[0] // quant.block_size * quant.type_size
        self._least_run = max(LEAST_RUN, -(-LEAST_RUN_BYTES // self._unit))
        dtypes = [np.dtype(field.coding.dtype) for field in self._fields]
        # A quarter each of at most four fields, none of which is a quarter of its block.
        self._scratch: list[Array] = [
            quarter.view(dtype)
            for quarter, dtype in zip(source.scratch.reshape(4, -1), dtypes, strict=False)
        ]
        self._masks = [
            dtype.type(field.coding.mask) for dtype, field in zip(dtypes, self._fields, strict=True)
        ]
        most = ALWAYS_SMALL if self._is_matrix else MOST_IN_VECTOR
        self._harmless = [_last_within(field.coding, field.factor, most) for field in self._fields]
        self._peaks = [0] * len(self._fields)  # not below the largest; if not harmless, it is it
        self._n_units = self._n_zero = 0  # of those looked at
        self._repeats = False

    def findings(self) -> list[Finding]:
        """Read the tensor; say what is wrong with it."""
        found: list[Finding] = []
        if self._info.type == "Q8_1":
            found.append(self._finding("unreadable", "", self.n_blocks, 0, "no type of files"))
        look = self._look_at_floats if self._is_float else self._look_at_blocks
        for raw in self._pieces():
            look(raw)
        limits = self._limits()
        if self._is_beyond(limits) or self._may_be_lost() or self._repeats:
            found += self._details(limits)
        return found

    def _pieces(self, step: int = 1, unit: int | None = None) -> Iterator[Array]:
        unit = unit or self._unit
        size = max(_PIECE // unit, 1) * unit
        return self._source.pieces(self._start, self._info.n_bytes, size, step)

    # First reading: few operations, each over a whole piece.

    def _look_at_floats(self, raw: Array) -> None:
        field = self._fields[0]
        peak = _peak(_patterns(field, raw, self._size), field.coding, self._harmless[0])
        self._peaks[0] = max(self._peaks[0], peak)
        if not self._is_matrix:
            return
        units = raw.reshape(-1, self._unit)
        # A sample: in half precision some zeros are normal, and to count them takes too long.
        sample = units[:: max(min(_SAMPLED, len(units) // _SAMPLED), 1)]
        self._n_units += len(sample)
        self._n_zero += len(sample) - int(np.count_nonzero(sample.any(axis=1)))
        self._look_for_repeats(units[:, 0], units)

    def _look_at_blocks(self, raw: Array) -> None:
        masked = []
        n_units = len(raw) // self._size
        for index, (field, scratch) in enumerate(zip(self._fields, self._scratch, strict=True)):
            # Made contiguous first: that is what the rest is fast on.
            patterns = scratch[:n_units]
            np.copyto(patterns, _patterns(field, raw, self._size))
            np.bitwise_and(patterns, self._masks[index], out=patterns)
            self._peaks[index] = max(self._peaks[index], int(patterns.max()))
            masked.append(patterns)
        self._n_units += n_units
        if np.count_nonzero(masked[0]) < n_units:
            self._n_zero += int(np.count_nonzero(_all_zero(masked)))
        self._look_for_repeats(masked[0], raw.reshape(-1, self._unit))

    def _look_for_repeats(self, keys: Array, units: Array) -> None:
        """Compare neighbours here and there: first a part of them, then the whole."""
        if self._repeats or len(units) < 2:
            return
        if (keys[:-1:_STRIDE] == keys[1::_STRIDE]).any():
            equal = (units[:-1:_STRIDE] == units[1::_STRIDE]).all(axis=1)
            self._repeats = bool(equal.any())

    # What the first reading comes to.

    def _limits(self) -> list[int]:
        """Last pattern of each field that is no finding."""
        limits = list(self._harmless)
        for index, field in enumerate(self._fields):
            if self._is_matrix and field.factor and self._peaks[index] > limits[index]:
                median = field.coding.value(self._median(field)) * field.factor
                most = min(MOST_WEIGHT, max(ALWAYS_SMALL, median * MOST_TIMES_MEDIAN))
                limits[index] = _last_within(field.coding, field.factor, most)
        return limits

    def _median(self, field: _Field) -> int:
        """Median pattern of a field, over a sample of what is neither zero nor infinite."""
        step = -(-self._info.n_bytes // _PIECE // _MEDIAN_PIECES) or 1
        samples = []
        for raw in self._pieces(step):
            patterns = _patterns(field, raw, self._size)
            sample = patterns[:: -(-len(patterns) // _MEDIAN_PER_PIECE)]
            sample = sample & sample.dtype.type(field.coding.mask)
            samples.append(sample[(sample > 0) & (sample < field.coding.infinite)])
        whole = np.sort(np.concatenate(samples))
        return int(whole[len(whole) // 2]) if len(whole) else 0

    def _is_beyond(self, limits: list[int]) -> bool:
        return any(peak > limit for peak, limit in zip(self._peaks, limits, strict=True))

    @property
    def _may_be_zero(self) -> bool:
        """Whether all zeros are normal: of one row they are not only where all is scaled by it."""
        return not self._is_matrix and not self._info.name.endswith("norm.weight")

    def _may_be_lost(self) -> bool:
        if not any(self._peaks):
            return not self._may_be_zero
        # Of a sample half as much, so that chance hides nothing.
        share = 4 if self._is_float else 2
        return share * self._n_zero > self._n_units

    @property
    def _is_table(self) -> bool:
        """Whether its rows are tokens or the like, some of which never occur in training."""
        name = self._info.name
        return name == "output.weight" or "_embd" in name or "token_types" in name

    # Second reading: exact.

    def _details(self, limits: list[int]) -> list[Finding]:
        tallies: dict[tuple[str, Kind], _Tally] = {}
        zeros, runs = _Tally(), _Runs(self._least_run)
        n_spared = base = 0
        # Whole rows at a time, unless one is too long to be a token's.
        by_rows = self._is_table and self._row <= _MOST_PIECE
        for raw in self._pieces(unit=self._row if by_rows else None):
            masked = [
                _patterns(field, raw, self._size) & mask
                for field, mask in zip(self._fields, self._masks, strict=True)
            ]
            for field, patterns, limit in zip(self._fields, masked, limits, strict=True):
                _tally(tallies, field, patterns, limit, base * self._group)
            zero: Array = np.asarray(_all_zero(masked).reshape(-1, self._group).all(axis=1))
            spared: Array = np.zeros(len(zero), np.bool_)
            if by_rows:
                per_row = self._row // self._unit
                spared = zero.reshape(-1, per_row).all(axis=1).repeat(per_row)
            zeros.add(zero & ~spared, base)
            if self._repeats:  # if not there is no long run, and this is slow
                runs.add(raw.reshape(-1, self._unit), base, spared)
            n_spared += int(np.count_nonzero(spared))
            base += len(zero)
        if self._repeats:
            runs.end(base)
        found = [self._field_finding(kind, name, tally) for (name, kind), tally in tallies.items()]
        return found + self._block_findings(zeros, runs, base, n_spared)

    def _field_finding(self, kind: Kind, name: str, tally: _Tally) -> Finding:
        field = next(field for field in self._fields if field.name == name)
        value = field.coding.value(tally.example)
        example = f"{value:.6g} (0x{tally.example:x} without its sign)"
        return self._finding(kind, name, tally.count, tally.first, example)

    def _block_findings(
        self, zeros: _Tally, runs: _Runs, n_units: int, n_spared: int
    ) -> list[Finding]:
        group = self._group
        if not any(self._peaks):
            if self._may_be_zero:
                return []
            return [self._finding("lost", "", self.n_blocks, 0, "all zeros")]
        if not self._is_matrix:
            return []  # of one row all elements may well be one number
        found = []
        if 2 * zeros.count > n_units - n_spared:
            share = f"{zeros.count / (n_units - n_spared):.1%} zeros"
            found.append(self._finding("lost", "", zeros.count * group, zeros.first * group, share))
        if runs.count:
            first = runs.first * group
            example = f"{runs.count * self._unit} bytes"
            found.append(self._finding("repeated", "", runs.count * group, first, example))
        return found

    def _finding(self, kind: Kind, field: str, count: int, block: int, example: str) -> Finding:
        return Finding(
            tensor=self._info.name,
            type=self._info.type,
            kind=kind,
            field=field,
            n_blocks=count,
            block=block,
            part=self._part,
            offset=self._start + block * self._size,
            example=example,
        )


def _all_zero(masked: Sequence[Array]) -> Array:
    """Whether all fields of a block are zero, by block."""
    total = masked[0]
    for patterns in masked[1:]:
        total = total | patterns
    zero: Array = total == 0
    return zero


def _tally(
    tallies: dict[tuple[str, Kind], _Tally],
    field: _Field,
    patterns: Array,
    limit: int,
    base: int,
) -> None:
    """Count the blocks in which a field is beyond its limit, by kind."""
    bad = patterns > limit
    if not bad.any():
        return
    coding = field.coding
    not_number = patterns >= coding.nan
    infinite = (patterns >= coding.infinite) & ~not_number
    kinds: tuple[tuple[Kind, Array], ...] = (
        ("nan", not_number),
        ("infinite", infinite),
        ("huge", bad & (patterns < coding.infinite)),
    )
    for kind, where in kinds:
        if where.any():
            tallies.setdefault((field.name, kind), _Tally()).add(where, base, patterns)
