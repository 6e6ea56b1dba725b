"""The law of the KV cache: its bytes by context and type."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING

from ..model.quant_types import QUANT_TYPES
from ..model.quantity import CONTEXTS
from .fits import Line
from .methods import F16_KV, kv_type
from .reporting import Findings, finish, point, too_few, unsupported
from .rows import take, value_of
from .wording import KIB, in_mib

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..model.law import LawReport, Row

KV_SHARE, KV_LEAST = 0.001, 16 * KIB
"""Largest difference from what the other contexts, or cells, say: a share of it, and so much."""

KV_RATIO = 0.005
"""Largest relative difference of a type's share of f16 from that of its bits."""

RESERVES = {n: f"kv_reserve_{n}" for n in CONTEXTS}
"""The quantity by the context, in tokens."""

_BITS = {row.name: float(row.bits_per_weight) for row in QUANT_TYPES.values()}


def kv_cache(subject: str, rows: Sequence[Row]) -> LawReport:
    """Hold that the KV cache grows with the context alone, by the block layout of its type.

    Where it grows slower than the context in every cell alike, that is the architecture (sliding
    windows, a recurrent state): unsupported.

    Args:
        subject: The model.
        rows: Its cells.
    """
    taken = take("kv_cache", subject, rows, tuple(RESERVES.values()))
    if not taken.rows:
        return too_few(taken, "a cell with the KV cache of every context")
    groups: dict[str, list[Row]] = {}
    for row in taken.rows:
        groups.setdefault(kv_type(row.method), []).append(row)
    unlike = _unlike(groups)
    if not unlike and all(_is_concave(_sizes(row)) for row in taken.rows):
        reason = (
            "the KV cache grows slower than the context in every cell alike, as with a sliding"
            " window or a recurrent state"
        )
        return unsupported(taken.law, subject, reason)
    found, points = Findings(), []
    rates = {row.cell: _rate(_sizes(row)) for row in taken.rows}
    for row in taken.rows:
        for n, name in RESERVES.items():
            should = rates[row.cell] * n
            points.append(point(row, float(n), name, fitted=should))
            if abs(value_of(row, name) - should) > _slack(should):
                found.fails.append(
                    f"{row.cell}: the KV cache of {n} tokens takes"
                    f" {in_mib(value_of(row, name))}, not {in_mib(should)} as"
                    " its other contexts say"
                )
    found.fails += unlike
    usual = {kind: median(rates[row.cell] for row in some) for kind, some in groups.items()}
    for kind, rate in sorted(usual.items()):
        bits = _BITS.get(kind.upper())
        if kind == F16_KV or F16_KV not in usual or bits is None:
            continue
        share = rate / usual[F16_KV] if usual[F16_KV] > 0 else math.inf
        if not abs(share / (bits / 16) - 1) <= KV_RATIO:
            cells = ", ".join(row.cell for row in groups[kind])
            found.fails.append(
                f"a KV cache of {kind} takes {share:.4f} of that of f16, not {bits / 16:.5g}"
                f" ({cells})"
            )
    rate = usual.get(F16_KV, next(iter(usual.values())))
    told = ", ".join(f"{kind} {one:.1f}" for kind, one in sorted(usual.items()))
    return finish(
        taken,
        found,
        f"KV cache in bytes per token: {told}, over {len(taken.rows)} cells",
        axes=("n_ctx", "tokens", "kv_reserve", "B"),
        points=points,
        line=Line(rate, 0.0, len(points)),
        figures={f"{kind}_per_token": one for kind, one in usual.items()},
    )


def _sizes(row: Row) -> list[float]:
    """Return the bytes of each context."""
    return [value_of(row, name) for name in RESERVES.values()]


def _slack(size: float) -> float:
    return KV_LEAST + KV_SHARE * abs(size)


def _rate(sizes: Sequence[float]) -> float:
    """Bytes per token that most contexts agree on; of rates as good that of the longest."""
    rates = [size / n for n, size in zip(CONTEXTS, sizes, strict=True)]
    agree = [
        sum(
            abs(size - rate * n) <= _slack(rate * n)
            for n, size in zip(CONTEXTS, sizes, strict=True)
        )
        for rate in rates
    ]
    return max(zip(agree, CONTEXTS, rates, strict=True))[2]


def _is_concave(sizes: Sequence[float]) -> bool:
    """Whether bytes per token fall with the context from each to the next, or stay, and fall."""
    low = [(size - _slack(size)) / n for n, size in zip(CONTEXTS, sizes, strict=True)]
    high = [(size + _slack(size)) / n for n, size in zip(CONTEXTS, sizes, strict=True)]
    never_rises = all(low[i + 1] <= high[i] for i in range(len(CONTEXTS) - 1))
    grows = all(sizes[i + 1] >= sizes[i] for i in range(len(CONTEXTS) - 1))
    return never_rises and grows and high[-1] < low[0]


def _unlike(groups: Mapping[str, Sequence[Row]]) -> list[str]:
    """Name the cells whose KV cache is not that of the others with the same type."""
    said = []
    for kind, some in sorted(groups.items()):
        for n, name in RESERVES.items():
            usual = median(value_of(row, name) for row in some)
            said += [
                f"{row.cell}: the KV cache of {n} tokens takes {in_mib(value_of(row, name))},"
                f" that of the other cells with {kind} {in_mib(usual)}"
                for row in some
                if abs(value_of(row, name) - usual) > _slack(usual)
            ]
    return said
