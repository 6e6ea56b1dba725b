"""Changes: what a quantity became, from an earlier artifact, build or run to a later one."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable


class Finding(StrEnum):
    """What a change comes to.

    Attributes:
        IDENTICAL: The same, to the bit or to the digits that were kept.
        BETTER: Better, by more than chance explains.
        NO_WORSE: Within the tolerance, by more than chance explains.
        CHANGED: Not the same; whether it is worse is for others to say.
        UNDECIDED: Too uncertain, or disturbed.
        WORSE: Worse than the tolerance, by more than chance explains.
    """

    IDENTICAL = "identical"
    BETTER = "better"
    NO_WORSE = "no worse"
    CHANGED = "changed"
    UNDECIDED = "undecided"
    WORSE = "worse"


class Change(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One quantity of one cell, before and after.

    Attributes:
        quantity: Its name.
        unit: The unit of before and after.
        before: What it was; None where it was not measured or not finite.
        after: What it is.
        change: after / before - 1 where ``relative``, else after - before in ``unit``.
        relative: ``change`` is a share.
        error: Standard error of ``change``; None for exact figures.
        n: Number of pairs (windows, rounds) that it comes from.
        finding: What it comes to.
        evidence: That in words, with the tolerance.
    """

    quantity: str
    unit: str
    before: float | None
    after: float | None
    change: float | None = None
    relative: bool = True
    error: float | None = None
    n: int = 1
    finding: Finding
    evidence: str = ""


_WORST_FIRST = (
    Finding.WORSE,
    Finding.UNDECIDED,
    Finding.CHANGED,
    Finding.BETTER,
    Finding.NO_WORSE,
    Finding.IDENTICAL,
)


def overall(findings: Iterable[Finding]) -> Finding | None:
    """Say in one word what several changes of a cell come to; None without any.

    Something better beside nothing worse makes the whole better.
    """
    found = set(findings)
    return next((finding for finding in _WORST_FIRST if finding in found), None)
