"""Bounds: what a measurement must lie within, and where that comes from."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Source(StrEnum):
    """Where a bound comes from."""

    REFERENCE = "reference"
    PREDECESSOR = "predecessor"
    BASELINE = "baseline"
    LAW = "law"
    BUDGET = "budget"
    METHOD = "method"


class Bound(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An interval a measurement must lie in. One-sided bounds leave the other end None.

    A bound with samples is paired: the measurement is compared with it sample by sample, allowing
    the largest of ``relative`` of the center, ``absolute`` and ``noise``.

    Attributes:
        source: Where it comes from.
        detail: The source in words, e.g. the baseline file and its date.
        upper: Largest allowed value.
        lower: Smallest allowed value.
        center: The value the tolerance is added to, where there is one.
        relative: Tolerance as a share of ``center``.
        absolute: Tolerance in the quantity's unit.
        noise: Tolerance that calibration of this machine asks for, in the quantity's unit. The
            largest of the three counts.
        sample_ids: What the baseline's samples are, e.g. ``narrative:2``.
        samples: The baseline's samples; those in common with the measurement's are paired.
        higher_is_better: The tolerated direction is down, not up.
    """

    source: Source
    detail: str = ""
    upper: float | None = None
    lower: float | None = None
    center: float | None = None
    relative: float = 0.0
    absolute: float = 0.0
    noise: float = 0.0
    sample_ids: tuple[str, ...] = ()
    samples: tuple[float, ...] = ()
    higher_is_better: bool = False
