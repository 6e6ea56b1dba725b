"""A method and its variants: ``Q4_K_M``, ``Q4_K_M+imatrix``, ``Q4_K_M+kv-q8_0``."""

from __future__ import annotations

import msgspec

IMATRIX = "imatrix"
"""The variant that weighs the columns of each matrix by calibration data."""

KV_TYPES = ("f16", "q8_0", "q4_0")
"""How keys and values may be kept in the cache."""

PLAIN_KV = "f16"

_KV = "kv-"

VARIANTS = (IMATRIX, *(f"{_KV}{name}" for name in KV_TYPES if name != PLAIN_KV))
"""All variants by name; more than one is joined in this order."""


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """What turns a source into an artifact, and how the artifact is run.

    Attributes:
        file_type: The llama.cpp file type: ``Q4_K_M``.
        imatrix: It is quantized with an importance matrix.
        kv: How keys and values are kept: ``f16``, ``q8_0``, ``q4_0``.
    """

    file_type: str
    imatrix: bool = False
    kv: str = PLAIN_KV

    @property
    def weights(self) -> str:
        """The name of what makes the weights, however they are run: ``Q4_K_M+imatrix``."""
        return f"{self.file_type}+{IMATRIX}" if self.imatrix else self.file_type

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
    return Method(file_type=file_type, imatrix=IMATRIX in variants, kv=kv[0] if kv else PLAIN_KV)
