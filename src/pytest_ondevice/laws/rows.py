"""Which rows take part in a law, what is said of the others, and the figures of a row."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .methods import F16_KV, kv_type

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..model.law import Row


@dataclass(frozen=True, slots=True)
class Taken:
    """The rows that take part in a law, and what is said of the others.

    Attributes:
        law: The law's name.
        subject: The model or the family.
        warns: The law only warns.
        asked: The quantities that each row must have.
        rows: The rows, in the order of their cells.
        missing: What cells lack.
        out: Which cells are left out, and why.
        broken: Which figures are not finite.
    """

    law: str
    subject: str
    warns: bool
    asked: tuple[str, ...]
    rows: tuple[Row, ...]
    missing: tuple[str, ...] = ()
    out: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()

    def without(self, gone: Sequence[Row], why: str) -> Taken:
        """Leave rows out; an empty reason is not told."""
        if not gone:
            return self
        rows = tuple(row for row in self.rows if row not in gone)
        out = (f"{', '.join(row.cell for row in gone)} ({why})",) if why else ()
        return replace(self, rows=rows, out=(*self.out, *out))

    def and_broken(self, more: tuple[str, ...]) -> Taken:
        """Add figures that are not finite."""
        return replace(self, broken=(*self.broken, *more))

    def told(self) -> str:
        """Say what does not take part, as the end of a sentence."""
        missing = f"; missing: {'; '.join(self.missing)}" if self.missing else ""
        return missing + (f"; left out: {', '.join(self.out)}" if self.out else "")


def take(
    law: str,
    subject: str,
    rows: Iterable[Row],
    names: tuple[str, ...],
    *,
    warns: bool = False,
    one_kv: bool = False,
    no_kv: bool = False,
) -> Taken:
    """Take the rows that have all these figures, in the order of their cells.

    A figure that is not finite is broken, which fails the law; one that is missing leaves its cell
    out, and the message says so.

    Args:
        law: The law's name.
        subject: The model or the family.
        rows: The rows.
        names: The quantities.
        warns: The law only warns.
        one_kv: Leave out all but the type of KV cache that most cells have.
        no_kv: Leave out those with another KV cache than f16.
    """
    good, broken = [], []
    lacking: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: (row.cell, row.model, row.method)):
        gone = [name for name in names if name not in row.figures]
        bad = not_finite(row, names)
        if bad:
            broken += bad
        elif gone:
            lacking.setdefault(" and ".join(gone), []).append(row.cell)
        else:
            good.append(row)
    missing = tuple(f"{name} of {', '.join(cells)}" for name, cells in sorted(lacking.items()))
    taken = Taken(law, subject, warns, names, tuple(good), missing, broken=tuple(broken))
    if not (one_kv or no_kv) or not good:
        return taken
    kinds = [kv_type(row.method) for row in good]
    most = max(sorted(set(kinds)), key=lambda one: (kinds.count(one), one == F16_KV))
    usual = F16_KV if no_kv else most
    others = [row for row in good if kv_type(row.method) != usual]
    return taken.without(others, "another type of KV cache")


def not_finite(row: Row, names: Iterable[str]) -> list[str]:
    """Say which of these figures a row has that are not finite."""
    return [
        f"{row.cell}: {name} is not finite"
        for name in names
        if name in row.figures and not math.isfinite(value_of(row, name))
    ]


def value_of(row: Row, quantity: str) -> float:
    """Return a figure that the row has."""
    return row.figures[quantity].value


def error_of(row: Row, quantity: str) -> float:
    """Return the standard error: 0 of what is exact, infinite where it is no number."""
    error = row.figures[quantity].error
    if error is None:
        return 0.0
    return abs(error) if math.isfinite(error) else math.inf


def error_between(one: Row, other: Row, quantity: str) -> float:
    """Return the standard error of the difference of two cells, as if they were independent."""
    return math.hypot(error_of(one, quantity), error_of(other, quantity))


def columns(rows: Sequence[Row], x: str, y: str) -> tuple[list[float], list[float]]:
    """Return two figures of each row."""
    return [value_of(row, x) for row in rows], [value_of(row, y) for row in rows]


def count_distinct(rows: Iterable[Row], quantity: str) -> int:
    """Count the different values of a figure."""
    return len({value_of(row, quantity) for row in rows})


def losers(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that loss is measured of: all but the reference."""
    return [row for row in rows if not row.reference]
