"""Waivers: failures that are known and accepted for a while, by cell and check."""

from __future__ import annotations

import datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import msgspec

from .errors import BadFileError
from .storage.files import read_toml

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from .model.report import CheckResult


class Waiver(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A known failure.

    Attributes:
        cell: The cell's id; ``*`` and ``?`` stand for any characters.
        check: The check's id, likewise; of a user's own test its node id without parameters.
        reason: Why it is accepted: a reader of the report sees it.
        expires: The last day on which it counts.
    """

    cell: str
    check: str
    reason: str
    expires: datetime.date

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise ValueError("the reason is empty; say why the failure is accepted")

    def __str__(self) -> str:
        """Name it in messages."""
        return f"{self.check} of {self.cell}"

    def covers(self, check: str, cell: str) -> bool:
        """Whether it is about a check of a cell, expired or not."""
        return _matches(cell, self.cell) and _matches(check, self.check)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    waiver: tuple[Waiver, ...] = ()


class Waivers:
    """The waivers of a run, on a day."""

    def __init__(self, waivers: Sequence[Waiver] = (), today: datetime.date | None = None) -> None:
        self._waivers = tuple(waivers)
        self._today = today or datetime.datetime.now(datetime.UTC).date()

    @classmethod
    def read(cls, path: Path) -> Waivers:
        """Read a file of waivers.

        Raises:
            BadFileError: It is none; the message names the place inside it.
        """
        try:
            # TOML has dates: a string in the place of one is a mistake.
            read = read_toml(path, _File, "file of waivers", builtin_types=(datetime.date,))
        except FileNotFoundError as error:
            raise BadFileError(path, f"cannot read it: {error.strerror}") from error
        return cls(read.waiver)

    def find(self, check: str, cell: str) -> Waiver | None:
        """Return the waiver that covers a check of a cell today."""
        return next((one for one in self._of(check, cell) if not self._expired(one)), None)

    def expired(self, check: str, cell: str) -> Waiver | None:
        """Return a waiver that would cover a check of a cell, had it not expired."""
        return next((one for one in self._of(check, cell) if self._expired(one)), None)

    def remarks(self, results: Sequence[CheckResult], *, complete: bool) -> list[str]:
        """Say of each waiver what a reader of the report has to know."""
        said = []
        for waiver in self._waivers:
            matched = [one for one in results if waiver.covers(one.check, one.cell)]
            if self._expired(waiver):
                said.append(f"waiver expired on {waiver.expires}: {waiver}")
            elif not complete:
                continue  # what it is for may not have run
            elif not matched:
                said.append(f"waiver matches nothing in this run: {waiver}")
            elif all(one.outcome == "passed" for one in matched):
                said.append(f"waiver no longer needed, nothing failed: {waiver}")
        return said

    def _of(self, check: str, cell: str) -> Iterable[Waiver]:
        return (one for one in self._waivers if one.covers(check, cell))

    def _expired(self, waiver: Waiver) -> bool:
        return waiver.expires < self._today


def _matches(text: str, pattern: str) -> bool:
    # A bracket stands for itself: it is part of parameters' ids.
    return fnmatchcase(text, pattern.replace("[", "[[]"))
