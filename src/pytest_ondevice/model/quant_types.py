"""How llama.cpp stores weights: tensor types (ggml_type) and file types (llama_ftype).

Ids, names and block sizes are those of llama.cpp as vendored in llama-cpp-python 0.3.36: the
enumeration in ``ggml/include/ggml.h``, the block layouts asserted in ``ggml/src/ggml-common.h`` and
the table ``type_traits`` in ``ggml/src/ggml.c``. The gguf package has the same table, but releases
of it are behind (0.19.0 lacks Q2_0), so this one is our own and the tests compare the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class QuantType:
    """How the blocks of one tensor are stored.

    Attributes:
        id: ggml_type, as written in a GGUF file.
        name: llama.cpp's name, in gguf's capitals: ``Q4_K``, ``IQ4_XS``.
        block_size: Weights in one block; a row is a whole number of blocks.
        type_size: Bytes of one block.
    """

    id: int
    name: str
    block_size: int
    type_size: int

    @property
    def bits_per_weight(self) -> Fraction:
        """Exact bits per weight of the block layout, scales included."""
        return Fraction(8 * self.type_size, self.block_size)

    @property
    def is_float(self) -> bool:
        """Whether each weight is a plain float: not quantized. MXFP4 and NVFP4 are quantized."""
        return self.name in {"F64", "F32", "F16", "BF16"}

    @property
    def is_integer(self) -> bool:
        """Whether it holds indices or other integers, which are no weights."""
        return self.name in {"I8", "I16", "I32", "I64"}


QUANT_TYPES: Mapping[int, QuantType] = MappingProxyType(
    {
        row[0]: QuantType(*row)
        for row in (
            # id, name, weights per block, bytes per block
            (0, "F32", 1, 4),
            (1, "F16", 1, 2),
            (2, "Q4_0", 32, 18),
            (3, "Q4_1", 32, 20),
            (6, "Q5_0", 32, 22),
            (7, "Q5_1", 32, 24),
            (8, "Q8_0", 32, 34),
            (9, "Q8_1", 32, 36),
            (10, "Q2_K", 256, 84),
            (11, "Q3_K", 256, 110),
            (12, "Q4_K", 256, 144),
            (13, "Q5_K", 256, 176),
            (14, "Q6_K", 256, 210),
            (15, "Q8_K", 256, 292),
            (16, "IQ2_XXS", 256, 66),
            (17, "IQ2_XS", 256, 74),
            (18, "IQ3_XXS", 256, 98),
            (19, "IQ1_S", 256, 50),
            (20, "IQ4_NL", 32, 18),
            (21, "IQ3_S", 256, 110),
            (22, "IQ2_S", 256, 82),
            (23, "IQ4_XS", 256, 136),
            (24, "I8", 1, 1),
            (25, "I16", 1, 2),
            (26, "I32", 1, 4),
            (27, "I64", 1, 8),
            (28, "F64", 1, 8),
            (29, "IQ1_M", 256, 56),
            (30, "BF16", 1, 2),
            (34, "TQ1_0", 256, 54),
            (35, "TQ2_0", 256, 66),
            (39, "MXFP4", 32, 17),
            (40, "NVFP4", 64, 36),
            (41, "Q1_0", 128, 18),
            (42, "Q2_0", 64, 18),
        )
    }
)
"""Every tensor type by id."""

REMOVED_TYPES: Mapping[int, str] = MappingProxyType(
    {
        4: "Q4_2",
        5: "Q4_3",
        31: "Q4_0_4_4",
        32: "Q4_0_4_8",
        33: "Q4_0_8_8",
        36: "IQ4_NL_4_4",
        37: "IQ4_NL_4_8",
        38: "IQ4_NL_8_8",
    }
)
"""Tensor types that llama.cpp once wrote and no longer reads, by id."""

_BY_NAME = {row.name: row for row in QUANT_TYPES.values()}


def by_name(name: str) -> QuantType:
    """Look a tensor type up by its name.

    Raises:
        ValueError: There is no tensor type of that name.
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        raise ValueError(f"unknown tensor type {name!r}") from None


@dataclass(frozen=True, slots=True)
class FileType:
    """What llama-quantize can be asked for: a recipe that gives each tensor its type.

    Attributes:
        name: llama_ftype without its prefix: ``Q4_K_M``.
        id: llama_ftype, as ``general.file_type`` has it.
        base: Name of the tensor type that most weights get, where the row length allows it.
    """

    name: str
    id: int
    base: str

    @property
    def nominal_bpw(self) -> Fraction:
        """Bits per weight of the base type; what a file really has is its effective BPW."""
        return by_name(self.base).bits_per_weight


FILE_TYPES: Mapping[str, FileType] = MappingProxyType(
    {
        row[0]: FileType(*row)
        for row in (
            ("F32", 0, "F32"),
            ("F16", 1, "F16"),
            ("Q4_0", 2, "Q4_0"),
            ("Q4_1", 3, "Q4_1"),
            ("Q8_0", 7, "Q8_0"),
            ("Q5_0", 8, "Q5_0"),
            ("Q5_1", 9, "Q5_1"),
            ("Q2_K", 10, "Q2_K"),
            ("Q3_K_S", 11, "Q3_K"),
            ("Q3_K_M", 12, "Q3_K"),
            ("Q3_K_L", 13, "Q3_K"),
            ("Q4_K_S", 14, "Q4_K"),
            ("Q4_K_M", 15, "Q4_K"),
            ("Q5_K_S", 16, "Q5_K"),
            ("Q5_K_M", 17, "Q5_K"),
            ("Q6_K", 18, "Q6_K"),
            ("IQ2_XXS", 19, "IQ2_XXS"),
            ("IQ2_XS", 20, "IQ2_XS"),
            ("Q2_K_S", 21, "Q2_K"),
            ("IQ3_XS", 22, "IQ3_S"),
            ("IQ3_XXS", 23, "IQ3_XXS"),
            ("IQ1_S", 24, "IQ1_S"),
            ("IQ4_NL", 25, "IQ4_NL"),
            ("IQ3_S", 26, "IQ3_S"),
            ("IQ3_M", 27, "IQ3_S"),
            ("IQ2_S", 28, "IQ2_XS"),
            ("IQ2_M", 29, "IQ2_S"),
            ("IQ4_XS", 30, "IQ4_XS"),
            ("IQ1_M", 31, "IQ1_M"),
            ("BF16", 32, "BF16"),
            ("TQ1_0", 36, "TQ1_0"),
            ("TQ2_0", 37, "TQ2_0"),
            ("MXFP4_MOE", 38, "MXFP4"),
            ("NVFP4", 39, "NVFP4"),
            ("Q1_0", 40, "Q1_0"),
            ("Q2_0", 41, "Q2_0"),
        )
    }
)
"""Every file type by name.

Ids are those of ``include/llama.h``. Bases are ``llama_ftype_get_default_type`` in
``src/llama-quant.cpp``, where IQ2_S starts from IQ2_XS and IQ3_XS from IQ3_S, whatever their names
say. NVFP4 has no default there because only a converter writes it; its base is the type it is named
after.
"""
