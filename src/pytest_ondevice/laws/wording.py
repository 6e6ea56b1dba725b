"""Figures in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .rows import value_of

if TYPE_CHECKING:
    from ..model.law import Row
    from .fits import Line

KIB = 2**10
MIB = 2**20
GIB = 2**30


def in_mib(size: float, sign: str = "") -> str:
    """Write bytes as MiB; with a sign of ``+`` always signed."""
    return f"{size / MIB:{sign}.2f} MiB"


def in_bpw(row: Row) -> str:
    """Write the effective BPW of a cell."""
    return f"{value_of(row, 'effective_bpw'):.2f} BPW"


def per_gib(line: Line) -> str:
    """Write a slope per byte as one per GiB, with its error."""
    error = "" if line.slope_error is None else f" ± {line.slope_error * GIB:.2g}"
    return f"{line.slope * GIB:.3g}{error}"


def with_r2(line: Line) -> str:
    """Write R2 as the end of a sentence; empty where it is not known."""
    return "" if line.r2 is None else f", R2 {rounded_down(line.r2)}"


def rounded_down(r2: float) -> str:
    """Write an R2 so that it is 1 only where it is 1, and at no bound that it is below."""
    return f"{math.floor(r2 * 1e5) / 1e5:.5f}"


def with_error(row: Row, quantity: str) -> str:
    """Write a figure with its error."""
    error = row.figures[quantity].error
    told = f" ± {error:.2g}" if error is not None and math.isfinite(error) else ""
    return f"{value_of(row, quantity):.4g}{told}"


def count(n: int, name: str) -> str:
    """Write a number of things: ``1 cell``, ``2 families``."""
    plural = f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"
    return f"{n} {name if n == 1 else plural}"
