"""What the name of a method tells laws: the family of its types, its variants, its KV cache."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..model.law import Row

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
LEGACY = frozenset({"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"})
IQ = "IQ types"
F16_KV = "f16"
_K = re.compile(r"Q\d_K(_[A-Z]+)?\Z")


def family_of_types(method: str) -> str:
    """Name the family of a method's types; empty for plain floats."""
    base = method.partition("+")[0].upper()
    if base in FLOATS:
        return ""
    if base in LEGACY:
        return "legacy types"
    if _K.match(base):
        return "K types"
    return IQ if base.startswith("IQ") else base


def kind(row: Row) -> tuple[str, ...]:
    """What cells have in common that are compared: model, family of types, and variants."""
    return (row.model, family_of_types(row.method), *sorted(row.method.split("+")[1:]))


def kv_type(method: str) -> str:
    """Name the type of KV cache in a method's variants: ``f16`` where none is named."""
    kinds = [part[3:].lower() for part in method.split("+")[1:] if part.startswith("kv-")]
    return kinds[0] if kinds else F16_KV
