"""Measurements, and the protocols that make two of them comparable."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

ProtocolFields = dict[str, str | int | float | bool | None]
"""What a protocol consists of, by name."""


class Measurement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One measured quantity of one cell.

    Attributes:
        quantity: A name from the table of quantities, or the user's own.
        value: The figure, in ``unit``; None where it is not finite.
        unit: The unit of value, error and samples.
        n: Number of samples: windows for fidelity, repetitions for speed, 1 for exact figures.
        error: Standard error of the value; windows are clusters. None for exact figures.
        samples: The raw samples: one per window, repetition or stage.
        sample_ids: What each sample is, e.g. ``narrative:2``; empty if they have no identity.
        protocol: Digest of everything that must be equal for two values to be compared.
        reused: Read from an earlier session's journal, not measured in this one.
        disturbed: What disturbed the measurement, in words; empty if nothing was seen.
        advisory: No verdict depends on it.
        detail: What the value is made of, for messages: which tensors, which digests.
    """

    quantity: str
    value: float | None
    unit: str
    n: int = 1
    error: float | None = None
    samples: tuple[float, ...] = ()
    sample_ids: tuple[str, ...] = ()
    protocol: str = ""
    reused: bool = False
    disturbed: tuple[str, ...] = ()
    advisory: bool = False
    detail: str = ""


def digest_of(fields: Mapping[str, object]) -> str:
    """Digest a protocol or recipe: 16 hex digits of SHA-256 over its canonical JSON."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
