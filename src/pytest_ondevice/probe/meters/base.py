"""What a meter of energy is: a few numbers of this machine that are read again and again."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Reader = Callable[[Path], str]


class MeterError(Exception):
    """A meter that was found cannot be trusted any more; the message is one sentence."""


class Kind(StrEnum):
    """What a source's number is."""

    COUNTER = "counter"
    """Energy since some moment, in microjoules."""

    POWER = "power"
    """Power at this moment, in microwatts."""


@dataclass(frozen=True, slots=True)
class Source:
    """One number of a meter.

    Attributes:
        name: Where it comes from, for messages.
        read: Reads it: microjoules of a counter, microwatts of a power. Raises MeterError.
        modulus: A counter begins again at 0 after so many microjoules; 0 if it never does.
    """

    name: str
    read: Callable[[], int]
    modulus: int = 0


def _stays() -> None:
    """Find nothing wrong: most meters depend on no state."""


@dataclass(frozen=True, slots=True)
class Meter:
    """A meter: the sum of its sources.

    Attributes:
        name: The kind of meter: ``RAPL``, ``INA3221``, ``battery``, ``NVML`` or ``IOReport``.
        scope: What is inside its figure, in words. Figures of other scopes do not compare.
        kind: Whether the sources count or show a power.
        sources: The numbers to add up.
        period: Seconds that may pass between two new values.
        of_cpu: Whatever the CPU does for others is in the figure as well.
        check: Called with every reading; raises MeterError when it no longer means what it did.
    """

    name: str
    scope: str
    kind: Kind
    sources: tuple[Source, ...]
    period: float
    of_cpu: bool = True
    check: Callable[[], None] = _stays


@dataclass(frozen=True, slots=True)
class NoMeter:
    """Why there is none, and how to come by one; empty where nothing can be done."""

    why: str
    how: str = ""


def text(path: Path) -> str:
    """Read a file of the kernel's, without the space around it."""
    return path.read_text("ascii", "replace").strip()


def text_or_none(path: Path, read: Reader) -> str | None:
    """Read a file that need not be there."""
    try:
        return read(path)
    except OSError:
        return None


def number(path: Path, read: Reader = text) -> int:
    """Read a whole number.

    Raises:
        MeterError: It is gone, may not be read, or is no whole number.
    """
    try:
        content = read(path)
    except OSError as error:
        raise MeterError(f"{path} cannot be read: {reason(error)}") from None
    try:
        return int(content)
    except ValueError:
        raise MeterError(f"{path} holds {content[:40]!r}, which is no whole number") from None


def reason(error: OSError) -> str:
    """Say what the system said, without the number and the path."""
    return (error.strerror or type(error).__name__).lower()
