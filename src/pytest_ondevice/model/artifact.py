"""What a weight file says about itself: its tensors, its metadata, where its data lie."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from .quant_types import by_name

MAX_DIMS = 4
MAX_INT64 = 2**63 - 1


class TensorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor, valid by construction.

    Attributes:
        name: Its name in the file: ``blk.0.ffn_up.weight``.
        shape: Dimensions in GGUF order: the first is the row length, the one that is in blocks.
        type: Name of a QuantType.
        offset: Where its bytes start in the data section.

    Raises:
        ValueError: No tensor can have this shape, type or offset.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int

    def __post_init__(self) -> None:
        quant = by_name(self.type)
        if not 1 <= len(self.shape) <= MAX_DIMS:
            raise ValueError(f"has {len(self.shape)} dimensions (expected 1 to {MAX_DIMS})")
        if min(self.shape) < 1:
            raise ValueError(f"has shape {self.shape} (expected each dimension to be at least 1)")
        if self.shape[0] % quant.block_size:
            raise ValueError(
                f"has rows of {self.shape[0]} weights, which is no multiple of the "
                f"{quant.block_size} in a block of {self.type}"
            )
        # ggml counts weights and bytes in int64; Python's integers do not overflow before that.
        if self.n_weights > MAX_INT64 or self.n_bytes > MAX_INT64:
            raise ValueError(f"has shape {self.shape}, more than 2^63-1 weights or bytes")
        if self.offset < 0:
            raise ValueError(f"has offset {self.offset} (expected at least 0)")

    @property
    def n_weights(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Exact bytes of its data: rows x blocks in a row x bytes of a block."""
        quant = by_name(self.type)
        return self.n_weights // quant.block_size * quant.type_size


class ArrayInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A metadata value too long to keep.

    Attributes:
        type: GGUF type of the elements (``str``, ``f32``, ...), or ``text`` for one long string.
        length: Number of elements; of a text, bytes.
        digest: SHA-256 of the raw bytes of its elements, as they are in the file.
    """

    type: str
    length: int
    digest: str


Scalar = bool | int | float | str
Value = Scalar | tuple[Scalar, ...] | ArrayInfo


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """All of a GGUF file but its weights.

    Attributes:
        version: GGUF version.
        architecture: ``general.architecture``; empty only in a later file of a split model.
        metadata: Key to value. Text that is not UTF-8 is escaped as in a Python literal.
        tensors: In the order of the file, which is the order of their data.
        alignment: What each offset is a multiple of.
        data_offset: Where the data section starts in the file.
        data_size: From there to the end of the last tensor. What follows is padding, or not ours.
        file_size: Length of the file.
        file_type: ``general.file_type``, the id of a FileType; a claim, not a fact.
        tokenizer_digest: SHA-256 over all ``tokenizer.*`` keys and raw values in the order of the
            keys, so that artifacts of one model agree. Chat templates are no part of it. None
            without a tokenizer.
        meta_size: Where the header ends, before the padding in front of the data section.
        split: (number from 0, count) in a model of several files, else None.
    """

    version: int
    architecture: str
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_offset: int
    data_size: int
    file_size: int
    file_type: int | None = None
    tokenizer_digest: str | None = None
    meta_size: int = 0
    split: tuple[int, int] | None = None
