"""A user's own bounds: tolerances of checks, and budgets that quantities have to keep."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING

from .errors import BadFileError, OnDeviceError, did_you_mean
from .model.quantity import QUANTITIES
from .storage.files import read_toml

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from .model.catalog import Cell

SIGNED = frozenset({"ln_ppl_ratio"})
"""Quantities of which less than nothing means something, so that a budget may be negative."""

_BYTES = {
    "B": Fraction(1),
    "KB": Fraction(10**3),
    "MB": Fraction(10**6),
    "GB": Fraction(10**9),
    "KiB": Fraction(2**10),
    "MiB": Fraction(2**20),
    "GiB": Fraction(2**30),
}
_SECONDS = {"s": Fraction(1), "ms": Fraction(1, 1000)}
_PERCENT = MappingProxyType({"%": Fraction(1, 100)})

_PATTERNS = ("model", "method", "device")
_TOLERANCES = ("relative", "absolute", "noise")
_LIMITS = ("at_most", "at_least")

_AMOUNT = re.compile(
    r"\s*(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"\s*(?P<unit>[^\s0-9.,_+-]*)\s*"
)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """A row that replaces a check's tolerance as a whole; of its three parts the largest counts.

    Attributes:
        relative: A share of the baseline; None if the row has none.
        absolute: In the quantity's unit, or in ``unit`` where the row names one; None likewise.
        noise: How many times the calibrated noise of this machine; None likewise.
        reason: Why it deviates: a reader of the report sees it.
        place: The row in its file, e.g. ``bounds.toml $.tolerance[0]``.
        unit: The unit of ``absolute``, ``B`` or ``s`` also for their multiples; empty where the
            row has a plain number.
        check: The check's id; ``*`` and ``?`` stand for any characters, here and below.
        model: The model.
        method: The method.
        device: The name of the device's tier.
    """

    relative: float | None
    absolute: float | None
    noise: float | None
    reason: str
    place: str
    unit: str = ""
    check: str = "*"
    model: str = "*"
    method: str = "*"
    device: str = "*"

    def covers(self, one: Judged) -> bool:
        """Whether it is about this check of this cell on this device."""
        return _matches(one.check, self.check) and _is_about(self, one)


@dataclass(frozen=True, slots=True)
class Budget:
    """A row that limits a quantity, whatever the baseline says.

    Attributes:
        quantity: Its name.
        at_most: The largest value allowed, in the quantity's unit; None is no limit.
        at_least: The smallest, likewise.
        reason: Why, if the user says so.
        place: The row in its file, e.g. ``bounds.toml $.budget[0]``.
        model: The model; ``*`` and ``?`` stand for any characters, here and below.
        method: The method.
        device: The name of the device's tier.
    """

    quantity: str
    at_most: float | None
    at_least: float | None
    reason: str
    place: str
    model: str = "*"
    method: str = "*"
    device: str = "*"

    def covers(self, one: Judged) -> bool:
        """Whether it is about this quantity of this cell on this device."""
        return one.quantity == self.quantity and _is_about(self, one)


@dataclass(frozen=True, slots=True)
class Judged:
    """What rows are looked up for: a check or a quantity (or both) of a cell, on a device."""

    check: str
    quantity: str
    model: str
    method: str
    device: str


class Rules:
    """The rows of a file of bounds, in its order."""

    def __init__(
        self, tolerances: Sequence[Tolerance] = (), budgets: Sequence[Budget] = ()
    ) -> None:
        self._tolerances = tuple(tolerances)
        self._budgets = tuple(budgets)

    @classmethod
    def read(cls, path: Path) -> Rules:
        """Read a file of bounds.

        Raises:
            BadFileError: It is none; the message names the first place inside it that is wrong.
        """
        try:
            content = read_toml(path, dict[str, object], "file of bounds")
        except FileNotFoundError as error:
            raise BadFileError(path, f"cannot read it: {error.strerror}") from error
        except ValueError as error:  # Python's limit on the digits of an integer
            problem = "it is no file of bounds: a number has too many digits"
            raise BadFileError(path, problem) from error
        try:
            top = _Table(content, "$", path.name, ("tolerance", "budget"))
            return cls(
                [_tolerance(row) for row in top.rows("tolerance", _ROW)],
                [_budget(row) for row in top.rows("budget", _BUDGET_ROW)],
            )
        except _Mistake as mistake:
            raise BadFileError(path, f"it is no file of bounds: {mistake}") from None

    def tolerance(self, check: str, model: str, method: str, device: str) -> Tolerance | None:
        """Return the last row for a check of a cell on a device; None if the check's own stands."""
        return self._last(Judged(check, "", model, method, device))

    def budgets(self, model: str, method: str, device: str) -> tuple[Budget, ...]:
        """Return all limits that a cell has to keep on a device, in the file's order."""
        return tuple(
            row
            for row in self._budgets
            if row.covers(Judged("", row.quantity, model, method, device))
        )

    def require_units(self, check: str, units: Collection[str]) -> None:
        """Make sure that no row gives a check an absolute tolerance in a unit foreign to it.

        Args:
            check: The check's id.
            units: The units of the quantities that it asks for.

        Raises:
            OnDeviceError: A row does; the message names it.
        """
        for row in self._tolerances:
            if row.unit and row.unit not in units and _matches(check, row.check):
                raise OnDeviceError(
                    f"{row.place}.absolute: the unit comes down to {row.unit}, but {check}"
                    f" measures in {', '.join(sorted(units)) or 'no unit'}"
                )

    def unused(self, seen: Iterable[Judged]) -> list[str]:
        """Say of each row that had no effect in a complete run that it had none.

        A row for other devices is none of them: one run never sees two.
        """
        seen = tuple(seen)
        rows: tuple[Tolerance | Budget, ...] = (*self._tolerances, *self._budgets)
        last = {self._last(one) for one in seen}
        said = []
        for row in rows:
            if not any(_matches(one.device, row.device) for one in seen):
                continue
            if not any(row.covers(one) for one in seen):
                said.append(f"bound matches nothing in this run: {row.place}")
            elif isinstance(row, Tolerance) and row not in last:
                said.append(f"bound has no effect, later ones replace it: {row.place}")
        return said

    def _last(self, one: Judged) -> Tolerance | None:
        return next((row for row in reversed(self._tolerances) if row.covers(one)), None)


def scales_of(unit: str) -> Mapping[str, Fraction]:
    """Return what an amount of a unit may be written in, and how much of the unit each is."""
    if unit in {"", "1"}:
        return MappingProxyType({})
    return MappingProxyType({"B": _BYTES, "s": _SECONDS}.get(unit, {unit: Fraction(1)}))


def read_amount(text: str, scales: Mapping[str, Fraction]) -> tuple[float, str]:
    """Read a number with its unit, as in ``1.5 GiB``.

    Args:
        text: What the user wrote.
        scales: The units it may have, at least one, and what to multiply with.

    Returns:
        The scaled number, which may be infinite, and the unit as written.

    Raises:
        ValueError: It is none; the message says why.
    """
    found = _AMOUNT.fullmatch(text)
    known = ", ".join(scales)
    if found is None:
        example = next(iter(scales))
        raise ValueError(f"{_quoted(text)} is no number with a unit, as in '5 {example}'")
    unit = found["unit"]
    if not unit:
        raise ValueError(f"{_quoted(text)} has no unit; add one ({known})")
    if unit not in scales:
        raise ValueError(f"wrong unit in {_quoted(text)}{did_you_mean(unit, scales)}")
    scale = scales[unit]
    # One rounding where a single one is possible: 57 % is 0.57, but 57 * 0.01 is not.
    return float(found["number"]) * scale.numerator / scale.denominator, unit


# A boolean is an integer too, so it comes first.
_KINDS: Mapping[type, str] = MappingProxyType(
    {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "an array",
        dict: "a table",
    }
)
_ROW = ("check", *_PATTERNS, *_TOLERANCES, "reason")
_BUDGET_ROW = ("quantity", *_PATTERNS, *_LIMITS, "reason")
_ANY_UNIT = MappingProxyType(
    {
        written: (unit, scale)
        for unit in dict.fromkeys(("B", "s", *(one.unit for one in QUANTITIES.values())))
        for written, scale in scales_of(unit).items()
    }
)


class _Mistake(Exception):  # noqa: N818  (the user's, told as a BadFileError)
    """Something in the file cannot be what it means; the message names the place."""

    def __init__(self, problem: str, place: str) -> None:
        super().__init__(f"{problem} - at `{place}`")


class _Table:
    """A table of the file, which knows its place and hands out its fields checked."""

    def __init__(self, content: object, place: str, file: str, known: Sequence[str]) -> None:
        if not isinstance(content, dict):
            raise _Mistake(f"expected a table, got {_kind(content)}", place)
        for name in content:
            if name not in known:
                problem = f"unknown key {_quoted(name)}{did_you_mean(name, known)}"
                raise _Mistake(problem, place)
        self.content: dict[str, object] = content
        self.place = place
        self.file = file

    def rows(self, name: str, known: Sequence[str]) -> Iterable[_Table]:
        rows = self.content.get(name, [])
        place = f"{self.place}.{name}"
        if not isinstance(rows, list):
            raise _Mistake(f"expected an array, [[{name}]], got {_kind(rows)}", place)
        for number, row in enumerate(rows):
            yield _Table(row, f"{place}[{number}]", self.file, known)

    def mistake(self, problem: str, name: str = "") -> _Mistake:
        return _Mistake(problem, f"{self.place}.{name}" if name else self.place)

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text that is not blank; without a default it is required."""
        given = self.content.get(name, default)
        if given is None:
            raise self.mistake(f"'{name}' is missing")
        if not isinstance(given, str):
            raise self.mistake(f"expected a text, got {_kind(given)}", name)
        if name in self.content and not given.strip():
            raise self.mistake("the text is empty", name)
        return given

    def patterns(self) -> dict[str, str]:
        return {name: self.text(name, "*") for name in _PATTERNS}

    def amount(
        self, name: str, scales: Mapping[str, Fraction], *, signed: bool = False
    ) -> tuple[float | None, str]:
        """Return a finite number and its unit as written; None is none, no unit a plain number."""
        given = self.content.get(name)
        if given is None:
            return None, ""
        value, unit = self._scaled(given, name, scales)
        if not math.isfinite(value):
            raise self.mistake(f"{_quoted(given)} is no finite number", name)
        if value < 0 and not signed:
            raise self.mistake(f"{_quoted(given)} is negative", name)
        return value, unit

    def _scaled(
        self, given: object, name: str, scales: Mapping[str, Fraction]
    ) -> tuple[float, str]:
        if isinstance(given, str) and scales:
            try:
                return read_amount(given, scales)
            except ValueError as error:
                raise self.mistake(str(error), name) from None
        if isinstance(given, bool) or not isinstance(given, int | float):
            more = f", or a text with a unit ({', '.join(scales)})" if scales else ""
            raise self.mistake(f"expected a number{more}, got {_kind(given)}", name)
        try:
            return float(given), ""
        except OverflowError:
            return math.inf, ""


def _tolerance(row: _Table) -> Tolerance:
    relative, unit = row.amount("relative", _PERCENT)
    if relative is not None and relative > 1 and not unit:
        # 5 for 5 % would switch the check off without a word.
        problem = f"{relative:g} is {100 * relative:g} %; write it as '{100 * relative:g} %' if so"
        raise row.mistake(problem, "relative")
    scales = {written: scale for written, (_, scale) in _ANY_UNIT.items()}
    absolute, written = row.amount("absolute", scales)
    noise, _ = row.amount("noise", {})
    if relative is None and absolute is None and noise is None:
        raise row.mistake(f"it has none of {', '.join(_TOLERANCES)}")
    return Tolerance(
        relative=relative,
        absolute=absolute,
        noise=noise,
        reason=row.text("reason"),
        place=f"{row.file} {row.place}",
        unit=_ANY_UNIT[written][0] if written else "",
        check=row.text("check"),
        **row.patterns(),
    )


def _budget(row: _Table) -> Budget:
    name = row.text("quantity")
    quantity = QUANTITIES.get(name)
    if quantity is None:
        problem = f"unknown quantity {_quoted(name)}{did_you_mean(name, QUANTITIES)}"
        raise row.mistake(problem, "quantity")
    most, least = (
        row.amount(limit, scales_of(quantity.unit), signed=name in SIGNED)[0] for limit in _LIMITS
    )
    if most is None and least is None:
        raise row.mistake(f"it has none of {', '.join(_LIMITS)}")
    if most is not None and least is not None and least > most:
        raise row.mistake(f"at_least ({least:g}) is above at_most ({most:g})")
    return Budget(
        quantity=name,
        at_most=most,
        at_least=least,
        reason=row.text("reason", ""),
        place=f"{row.file} {row.place}",
        **row.patterns(),
    )


def _is_about(row: Tolerance | Budget, one: Judged) -> bool:
    return (
        _matches(one.model, row.model)
        and _matches(one.method, row.method)
        and _matches(one.device, row.device)
    )


def tightest(rules: Rules, cell: Cell, device: str) -> tuple[Budget, ...]:
    """Return what limits a cell, one row per quantity: of several rows the tightest ends."""
    found: dict[str, Budget] = {}
    for row in rules.budgets(cell.model.name, cell.method, device):
        other = found.get(row.quantity)
        if other is not None:
            most = [end for end in (other.at_most, row.at_most) if end is not None]
            least = [end for end in (other.at_least, row.at_least) if end is not None]
            row = replace(  # noqa: PLW2901  (the row that stands for both)
                row,
                at_most=min(most, default=None),
                at_least=max(least, default=None),
                place=f"{other.place}, {row.place}",
                reason="; ".join(filter(None, dict.fromkeys((other.reason, row.reason)))),
            )
        found[row.quantity] = row
    return tuple(found.values())


def _matches(text: str, pattern: str) -> bool:
    # A bracket stands for itself: it is part of parameters' ids.
    return fnmatchcase(text, pattern.replace("[", "[[]"))


def _quoted(given: object) -> str:
    """Show what was given on one line, shortened."""
    if isinstance(given, int) and abs(given) >= 10**20:
        return "the integer"
    text = repr(given)
    return text if len(text) <= 60 else f"{text[:56]}...'"


def _kind(given: object) -> str:
    for kind, name in _KINDS.items():
        if isinstance(given, kind):
            return name
    return "a date or time"
