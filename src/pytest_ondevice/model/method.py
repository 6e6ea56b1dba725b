"""A method and its variants: ``Q4_K_M``, ``Q2_K+pure``, ``Q4_K_M+imatrix``, ``Q4_0+kv-q8_0``."""

from __future__ import annotations

import msgspec

PURE = "pure"
"""The variant that gives every matrix the file type's base type, where its rows allow it."""

IMATRIX = "imatrix"
"""The variant that weighs the columns of each matrix by calibration data."""

KV_TYPES = ("f16", "q8_0", "q4_0")
"""How keys and values may be kept in the cache."""

PLAIN_KV = "f16"

_KV = "kv-"

VARIANTS = (PURE, IMATRIX, *(f"{_KV}{name}" for name in KV_TYPES if name != PLAIN_KV))
"""All variants by name; more than one is joined in this order."""


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """What turns a source into an artifact, and how the artifact is run.

    A file type is a mix: some matrices get more bits than its base type has. A pure one is no mix,
    as of ``llama-quantize --pure``: embedding and output get the base type too. Where a mix is of
    one type already (Q8_0, and of most models Q6_K), pure and plain are two methods with equal
    tensors. The file types of one base type (Q4_K_S, Q4_K_M) are one when pure, but for the file
    type that the header claims.

    Attributes:
        file_type: The llama.cpp file type: ``Q4_K_M``.
        pure: Every matrix has the file type's base type, where its rows divide into blocks of it.
        imatrix: It is quantized with an importance matrix.
        kv: How keys and values are kept: ``f16``, ``q8_0``, ``q4_0``.
    """

    file_type: str
    pure: bool = False
    imatrix: bool = False
    kv: str = PLAIN_KV

    @property
    def weights(self) -> str:
        """The name of what makes the weights, however they are run: ``Q2_K+pure+imatrix``."""
        given = ((PURE, self.pure), (IMATRIX, self.imatrix))
        return "+".join([self.file_type, *(name for name, holds in given if holds)])

    def __str__(self) -> str:
        """Write it in the one way that ids, files and reports have it."""
        return self.weights if self.kv == PLAIN_KV else f"{self.weights}+{_KV}{self.kv}"


def method_of(name: str) -> Method:
    """Read a method's name.

    Raises:
        ValueError: A variant is unknown or stands there twice; the message names it.
    """
    file_type, *variants = name.split("+")
    if len(set(variants)) < len(variants):
        raise ValueError(f"'{name}' has a variant twice")
    kv = [one.removeprefix(_KV) for one in variants if one.startswith(_KV)]
    unknown = [one for one in variants if one not in VARIANTS]
    if unknown:
        raise ValueError(f"unknown variant '{unknown[0]}' of {file_type}")
    if len(kv) > 1:
        raise ValueError(f"'{name}' has two types of the KV cache")
    return Method(
        file_type=file_type,
        pure=PURE in variants,
        imatrix=IMATRIX in variants,
        kv=kv[0] if kv else PLAIN_KV,
    )
