"""``ondevice.lock``: the digests of the artifacts that were accepted, one per cell.

Written on request only, entries are added or replaced and never dropped, and the order is that of
the names, so that a change reads well in a diff.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from ..errors import BadFileError
from .files import read_toml, write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAME = "ondevice.lock"
SCHEMA = 1

_HEAD = f"""\
# The artifacts that were accepted: written by pytest --ondevice-update=lock.
schema = {SCHEMA}
"""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SIZE_MOST = 2**63 - 1


class Pin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One accepted artifact: its length in bytes and its digest."""

    size: int
    sha256: str

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError("sha256 is not 64 hexadecimal digits in lower case")
        if not 0 < self.size <= _SIZE_MOST:
            raise ValueError("size is no number of bytes")


Pins = dict[str, Pin]
"""Pins by cell id."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    artifacts: Pins = {}


def read(path: Path) -> Pins:
    """Read the pins; none where there is no such file.

    Raises:
        BadFileError: It is no lock file; the message has the place inside it.
    """
    try:
        found = read_toml(path, _File, "lock file")
    except FileNotFoundError:
        return {}
    if found.schema != SCHEMA:
        raise BadFileError(path, f"its schema is {found.schema}, this version reads {SCHEMA}")
    return found.artifacts


def record(path: Path, new: Mapping[str, Pin]) -> list[str]:
    """Add or replace pins; returns a line for each that changed.

    Raises:
        BadFileError: What is there is no lock file; it is left alone.
        StorageError: It cannot be written.
    """
    old = read(path)
    changed = []
    for name, pin in new.items():
        before = old.get(name)
        if before != pin:
            was = f"{before.sha256[:12]} -> " if before else ""
            changed.append(f"pinned {name}: {was}{pin.sha256[:12]}")
    if changed:
        rows = [
            f'\n[artifacts."{name}"]\nsize = {pin.size}\nsha256 = "{pin.sha256}"\n'
            for name, pin in sorted({**old, **new}.items())
        ]
        write_atomic(path, (_HEAD + "".join(rows)).encode())
    return changed
