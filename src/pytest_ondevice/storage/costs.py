"""What stages took on this machine: the memory behind the price of the next run."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from .files import decode

if TYPE_CHECKING:
    from pathlib import Path

KEPT = 4000
"""Newest lines that are read; a cell of a run writes five."""

BEST_OF = 9
"""Newest samples of a stage that a rate rests on: runtimes and machines change."""


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of one probe: seconds for ``units`` (weights, times windows where there are some).

    ``place`` is what time depends on beside the work: processor, threads, offloaded layers.
    """

    place: str
    stage: str
    method: str
    units: int
    seconds: float


class Costs:
    """Reads and appends costs of one place. What cannot be kept is only guessed again."""

    def __init__(self, cache: Path, place: str) -> None:
        self._path = cache / "costs.jsonl"
        self._place = place
        self._read: list[Cost] | None = None

    def add(self, stage: str, method: str, units: int, seconds: float) -> None:
        """Keep what a stage took."""
        cost = Cost(place=self._place, stage=stage, method=method, units=units, seconds=seconds)
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, b"\n" + msgspec.json.encode(cost) + b"\n")
            finally:
                os.close(descriptor)

    def rate(self, stage: str, method: str) -> float | None:
        """Return seconds per unit: of this method, else of any; None if nothing is known."""
        ours = [cost for cost in self._costs() if cost.stage == stage and cost.units > 0]
        same = [cost for cost in ours if cost.method == method]
        newest = (same or ours)[-BEST_OF:]
        return statistics.median(cost.seconds / cost.units for cost in newest) if newest else None

    def _costs(self) -> list[Cost]:
        if self._read is None:
            self._read = []
            with contextlib.suppress(OSError), self._path.open("rb") as lines:
                for line in deque(lines, maxlen=2 * KEPT):
                    # A line torn by a full disk or a lost power supply tells nothing.
                    with contextlib.suppress(msgspec.DecodeError):
                        cost = decode(line, Cost)
                        if cost.place == self._place:
                            self._read.append(cost)
        return self._read
