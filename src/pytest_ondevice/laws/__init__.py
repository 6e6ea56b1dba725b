"""Laws: relations across cells that published measurements keep; pure, rows in, reports out.

What each law asserts, and why no more, is in ``docs/laws.md``.
"""

from __future__ import annotations

from .across_models import EQUAL_MEMORY, threshold
from .fits import ALPHA
from .kv import KV_LEAST, KV_RATIO, KV_SHARE, kv_cache
from .loss import (
    APART_BPW,
    ENVELOPE_A,
    ENVELOPE_B,
    ENVELOPE_CAP,
    ENVELOPE_FLOOR,
    ENVELOPE_FROM,
    ENVELOPE_OWN,
    ENVELOPE_ROOM,
    MARGINAL_ACCURACY,
    MARGINAL_BITS,
    MARGINAL_BPW,
    MONOTONE_SHARE,
    envelope,
    loss_envelope,
    loss_monotone,
    marginal,
    pareto,
)
from .resources import (
    MEMORY_LEAST,
    MEMORY_R2,
    MEMORY_SHARE,
    MEMORY_SLOPE,
    SIZE_LEAST,
    SIZE_SHARE,
    SIZE_SLOPE,
    SLOW,
    decode_time,
    file_size,
    memory,
    power,
)
from .table import LAWS, Law

__all__ = [
    "ALPHA",
    "APART_BPW",
    "ENVELOPE_A",
    "ENVELOPE_B",
    "ENVELOPE_CAP",
    "ENVELOPE_FLOOR",
    "ENVELOPE_FROM",
    "ENVELOPE_OWN",
    "ENVELOPE_ROOM",
    "EQUAL_MEMORY",
    "KV_LEAST",
    "KV_RATIO",
    "KV_SHARE",
    "LAWS",
    "MARGINAL_ACCURACY",
    "MARGINAL_BITS",
    "MARGINAL_BPW",
    "MEMORY_LEAST",
    "MEMORY_R2",
    "MEMORY_SHARE",
    "MEMORY_SLOPE",
    "MONOTONE_SHARE",
    "SIZE_LEAST",
    "SIZE_SHARE",
    "SIZE_SLOPE",
    "SLOW",
    "Law",
    "decode_time",
    "envelope",
    "file_size",
    "kv_cache",
    "loss_envelope",
    "loss_monotone",
    "marginal",
    "memory",
    "pareto",
    "power",
    "threshold",
]
