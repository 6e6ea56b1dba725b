"""What measurements of a cell mean, in a plain sentence for the report. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_TENTH = 2**20 / 10

# Of the roofline: from which fraction on, and what then holds decoding up.
_BOUNDS = (
    (0.7, "memory bandwidth"),
    (0.4, "memory bandwidth and unpacking"),
    (0.0, "computing: unpacking and arithmetic"),
)
_BEYOND = 1.05


def of_memory(figures: Mapping[str, float]) -> str:
    """Explain why the memory as shipped is not that of the weights read and not repacked.

    As shipped the file is mapped, and its resident pages count beside the copies that llama.cpp
    repacks for the CPU. The numbers are rounded so that they add up as they are printed.

    Args:
        figures: In bytes: ``peak_memory`` (weights read, not repacked) and ``deployed_memory``
            (as shipped); where known ``repacked_bytes`` (buffers of repacked weights as shipped),
            ``mapped_bytes`` (weights mapped from the file that are resident) and
            ``weight_bytes``.

    Returns:
        A sentence without its period; empty without the two figures that it compares.
    """
    tenths = {
        name: round(value / _TENTH) for name, value in figures.items() if math.isfinite(value)
    }
    if "peak_memory" not in tenths or "deployed_memory" not in tenths:
        return ""
    peak, deployed = tenths["peak_memory"], tenths["deployed_memory"]
    more = deployed - peak
    than = f"the {_mib(peak)} with weights read and not repacked"
    if more:
        said = f"{_mib(abs(more))} {'more' if more > 0 else 'less'} than {than}"
    else:
        said = f"as much as {than}"
    return f"as shipped it takes {_mib(deployed)}, {said}: {', '.join(_parts(tenths, more))}"


def bound_by(fraction: float) -> str:
    """Say what bounds the speed of decoding.

    Args:
        fraction: Of the roofline: active bytes x tokens/s / measured read bandwidth.
    """
    if not (math.isfinite(fraction) and fraction > 0):
        return "not known"
    if fraction > _BEYOND:
        return (
            "more than the measured bandwidth: the weights stay in a cache, or the bandwidth was"
            " disturbed"
        )
    return next(words for least, words in _BOUNDS if fraction >= least)


def _parts(tenths: Mapping[str, int], more: int) -> list[str]:
    """Name what the difference consists of; what is signed adds up to it."""
    parts = []
    rest = more
    repacked = tenths.get("repacked_bytes")
    absent = None
    if "mapped_bytes" in tenths and "weight_bytes" in tenths:
        absent = tenths["mapped_bytes"] - tenths["weight_bytes"]
    if repacked is None:
        parts.append("repacked copies: not known")
    elif repacked == 0:
        parts.append("no repacked copies")
    else:
        rest -= repacked
        beside = absent is not None and repacked + absent > 0
        why = " (the mapped file stays in memory beside them)" if beside else ""
        parts.append(f"repacked copies: {_signed(repacked)}{why}")
    if absent:
        rest -= absent
        what = "weights not in memory" if absent < 0 else "more of the file in memory"
        parts.append(f"{what}: {_signed(absent)}")
    return [*parts, f"other: {_signed(rest)}"]


def _mib(tenths: int) -> str:
    return f"{tenths // 10}.{tenths % 10} MiB"


def _signed(tenths: int) -> str:
    sign = "-" if tenths < 0 else "+" if tenths else ""
    return sign + _mib(abs(tenths))
