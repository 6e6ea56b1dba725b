"""Meters of energy: which one this machine has, or why it has none. Nothing is ever estimated."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from .base import Kind, Meter, MeterError, NoMeter, Source, text
from .kernel import ENABLE_RAPL, battery, powercap, rails
from .vendors import apple, nvidia

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .base import Reader

__all__ = ["Kind", "Meter", "MeterError", "NoMeter", "Source", "find"]


def find(sysfs: Path, *, gpu: bool, read: Reader = text) -> Meter | NoMeter:
    """Find the meter that covers the computing best.

    For the CPU: RAPL, Apple's counters, a board's rails, a battery. With layers on a GPU: the
    boards' own counters, and then the same without RAPL, which does not hold a GPU on a card.

    Args:
        sysfs: Where the kernel's files are, usually ``/sys``.
        gpu: Layers are on a GPU.
        read: Reads one file's text; raises OSError.
    """
    ways: list[Callable[[], Meter | NoMeter]] = [
        nvidia if gpu else lambda: powercap(sysfs, read),
        *([apple] if sys.platform == "darwin" else []),
        lambda: rails(sysfs, read),
        lambda: battery(sysfs, read),
    ]
    missing: list[NoMeter] = []
    for way in ways:
        found = way()
        if isinstance(found, Meter):
            return found
        missing.append(found)
    how = next((one.how for one in missing if one.how), "" if gpu else ENABLE_RAPL)
    return NoMeter("no meter of energy: " + "; ".join(one.why for one in missing), how)
