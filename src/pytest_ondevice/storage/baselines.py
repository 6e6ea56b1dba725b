"""Baselines: measurements stored on purpose, one file per cell, made to be read in a diff.

``portable/<model>/<method>.json`` holds what travels between machines: fidelity, size and memory.
The user's folder is read first and is the only one written; those that ship come after it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from ..errors import BadFileError
from ..model.measurement import ProtocolFields, digest_of
from .files import decode, write_atomic

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..model.measurement import Measurement

SCHEMA_VERSION = 1
TIER = "portable"
DIGITS = 8


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One quantity of a baseline; ``windows`` maps window ids to their values."""

    value: float
    unit: str
    n: int = 1
    error: float | None = None
    windows: dict[str, float] = {}


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """The quantities of one kind, recorded together under one protocol."""

    recorded: str
    runtime: str
    runtime_digest: str
    cpu: str
    artifact: str
    protocol: ProtocolFields
    quantities: dict[str, Entry]


class BaselineFile(msgspec.Struct, frozen=True, kw_only=True):
    """A cell's baseline."""

    schema: int
    model: str
    method: str
    sections: dict[str, Section] = {}


class Baselines:
    """Reads baselines from several folders in order; writes to the first only."""

    def __init__(self, own: Path, shipped: Sequence[Path]) -> None:
        self.own = own
        self.folders = tuple(dict.fromkeys([own, *shipped]))

    def path(self, model: str, method: str) -> Path:
        """Name the file that an update writes."""
        return self._in(self.own, model, method)

    def find(self, model: str, method: str, kind: str) -> tuple[Section, Path] | None:
        """Find a cell's section of one kind, and the file it is in.

        Raises:
            BadFileError: A file is no baseline; the message has the place inside it.
        """
        for folder in self.folders:
            path = self._in(folder, model, method)
            read = self._read(path)
            if read is not None and kind in read.sections:
                return read.sections[kind], path
        return None

    def record(
        self,
        model: str,
        method: str,
        kind: str,
        section: Section,
    ) -> Path:
        """Write one kind of one cell; the other kinds stay as they are.

        Raises:
            BadFileError: What is there is no baseline; it is left alone.
            StorageError: It cannot be written.
        """
        path = self.path(model, method)
        file = self._read(path) or BaselineFile(schema=SCHEMA_VERSION, model=model, method=method)
        sections = dict(sorted({**file.sections, kind: section}.items()))
        data = msgspec.json.encode(msgspec.structs.replace(file, sections=sections))
        write_atomic(path, msgspec.json.format(data, indent=2) + b"\n")
        return path

    @staticmethod
    def _in(folder: Path, model: str, method: str) -> Path:
        return folder / TIER / model / f"{method}.json"

    @staticmethod
    def _read(path: Path) -> BaselineFile | None:
        try:
            read = decode(path.read_bytes(), BaselineFile)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise BadFileError(path, f"cannot read it: {error.strerror}") from error
        except msgspec.ValidationError as error:
            problem, _, place = str(error).partition(" - at `")
            where = place.rstrip("`") or "$"
            raise BadFileError(path, f"not a baseline: {problem} @ {where}") from error
        except msgspec.DecodeError as error:
            raise BadFileError(path, f"not a baseline: {error} @ $") from error
        if read.schema != SCHEMA_VERSION:
            raise BadFileError(
                path,
                f"baseline schema {read.schema} @ $.schema; this version reads {SCHEMA_VERSION}",
            )
        return read


def entry_of(measured: Measurement) -> Entry:
    """Turn a measurement into what a baseline keeps of it.

    Raises:
        ValueError: The measurement is not finite.
    """
    figures = (measured.value, measured.error or 0.0, *measured.samples)
    if measured.value is None or not all(math.isfinite(figure or 0.0) for figure in figures):
        raise ValueError(f"{measured.quantity} is not finite")
    return Entry(
        value=_round(measured.value),
        unit=measured.unit,
        n=measured.n,
        error=None if measured.error is None else _round(measured.error, 3),
        windows={
            name: _round(value)
            for name, value in sorted(zip(measured.sample_ids, measured.samples, strict=False))
        },
    )


def differences(recorded: ProtocolFields, ours: ProtocolFields) -> list[str]:
    """Say field by field where two protocols differ; empty if they may be compared."""
    if digest_of(recorded) == digest_of(ours):
        return []
    return [
        f"{name} {recorded.get(name, 'absent')} there, {ours.get(name, 'absent')} here"
        for name in sorted({*recorded, *ours})
        if (name in recorded, recorded.get(name)) != (name in ours, ours.get(name))
    ]


def _round(value: float, digits: int = DIGITS) -> float:
    return float(f"{value:.{digits}g}")
