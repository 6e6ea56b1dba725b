"""What a report comes to, for a machine that has to decide: regressed, undecided, or fine."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import msgspec

from .errors import BadFileError
from .model.report import SCHEMA_VERSION, Report
from .model.verdict import Verdict
from .storage.files import decode

if TYPE_CHECKING:
    from pathlib import Path


class Status(Enum):
    """How a run ended, as an exit status. 2 is misuse, as of every command line."""

    PASSED = 0
    REGRESSED = 1
    UNDECIDED = 3
    INCOMPLETE = 4
    NOTHING = 5

    @property
    def meaning(self) -> str:
        """Say it in words."""
        return _MEANINGS[self]


_MEANINGS = {
    Status.PASSED: "nothing regressed, everything was decided",
    Status.REGRESSED: "regressed: a check failed that is not waived",
    Status.UNDECIDED: "undecided: inconclusive, disturbed, blocked, or without a required baseline",
    Status.INCOMPLETE: "the run was interrupted before its end, and nothing had failed",
    Status.NOTHING: "nothing was decided: no check has a verdict of its own",
}


class _Head(msgspec.Struct):
    schema_version: int
    generator: str


def read(path: Path) -> Report:
    """Read a report.

    Raises:
        BadFileError: It is none, or of another version; the message names the place inside.
    """
    try:
        content = path.read_bytes()
        head = decode(content, _Head)
        if head.schema_version != SCHEMA_VERSION:
            raise BadFileError(
                path,
                f"its schema_version is {head.schema_version} (written by {head.generator}), this"
                f" version reads {SCHEMA_VERSION}",
            )
        return decode(content, Report)
    except OSError as error:
        raise BadFileError(path, f"cannot read it: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise BadFileError(path, f"it is no report: {error}") from error
    except RecursionError as error:
        raise BadFileError(path, "it is no report: it is nested too deeply") from error


def conclude(report: Report) -> tuple[Status, list[str]]:
    """Decide what a report comes to, and say why: the status first, then what led to it."""
    red = [one for one in report.checks if one.outcome == "failed"]
    failed = [one for one in red if one.verdict is Verdict.FAIL]
    blocked = [one for one in report.checks if one.verdict is Verdict.BLOCKED]
    waived = [one for one in report.checks if one.waived]
    passed = [one for one in report.checks if one.verdict is Verdict.PASS and not one.advisory]
    if failed:
        status, reasons = Status.REGRESSED, failed
    elif not report.complete:
        status, reasons = Status.INCOMPLETE, red
    elif red or blocked:
        status, reasons = Status.UNDECIDED, red + blocked
    elif not passed and not waived:
        status, reasons = Status.NOTHING, []
    else:
        status, reasons = Status.PASSED, []
    lines = [f"{status.name.lower()}: {status.meaning.removeprefix(f'{status.name.lower()}: ')}"]
    for one in reasons:
        first = (one.message.splitlines() or [""])[0]
        lines.append(f"  {one.verdict}  {one.check}  {one.cell}: {first}")
    lines += [f"  waived  {one.check}  {one.cell}: {one.waived}" for one in waived]
    counts = ", ".join(
        f"{sum(one.verdict is verdict for one in report.checks)} {verdict}"
        for verdict in Verdict
        if any(one.verdict is verdict for one in report.checks)
    )
    lines.append(f"{len(report.checks)} verdicts: {counts or 'none'}")
    return status, lines
