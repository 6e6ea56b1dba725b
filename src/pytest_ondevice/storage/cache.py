"""The cache folder as a whole: who is using it, what is in it, and what may go."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from ..errors import StorageError
from .artifacts import Recipe
from .files import decode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

OTHER = ("journal", "digests", "runs", "progress", "locks", "calibration")
"""Folders whose files belong to no entry. They are small; all but calibrations are made again."""

LEFT_OVER = ("unfinished", "unused")
"""Kinds of entries that no run will ever use again."""


@dataclass(frozen=True)
class Entry:
    """One thing in the cache that can go by itself.

    Attributes:
        kind: ``artifact``, ``reference``, ``importance`` (a matrix), ``unused``: an object that no
            recipe names, or ``unfinished``: a file that a run is making, or was when it was killed.
        model: The model, empty if unknown.
        method: The method of an artifact.
        size: Bytes.
        used: When it was last used, in seconds since the epoch.
        files: What is deleted for it, in this order: what names a file goes before the file.
    """

    kind: str
    model: str
    method: str
    size: int
    used: float
    files: tuple[Path, ...]


@contextlib.contextmanager
def pruning(cache: Path) -> Iterator[None]:
    """Keep runs from starting while something is deleted.

    Raises:
        StorageError: A run is using the cache, or it cannot be locked.
    """
    descriptor = _lock(cache, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield
    finally:
        os.close(descriptor)


def hold(cache: Path) -> int:
    """Take part in using the cache, after any pruning; returns a descriptor to close in the end.

    Raises:
        StorageError: It cannot be locked.
    """
    return _lock(cache, fcntl.LOCK_SH)


def entries(cache: Path) -> list[Entry]:
    """List artifacts, references, importance matrices and what is left over, the oldest first."""
    found: list[Entry] = []
    named: dict[str, list[tuple[Path, Recipe]]] = {}
    for path in _files(cache / "recipes", "*.json"):
        with contextlib.suppress(OSError, msgspec.DecodeError):
            recipe = decode(path.read_bytes(), Recipe)
            named.setdefault(recipe.sha256, []).append((path, recipe))
    for path in _files(cache / "objects", "*/*.gguf"):
        with contextlib.suppress(OSError):
            size = path.stat().st_size
            recipes = named.get(path.stem, [])
            used = max((file.stat().st_mtime for file, _ in recipes), default=path.stat().st_mtime)
            found.append(
                Entry(
                    kind="artifact" if recipes else "unused",
                    model=next((recipe.model for _, recipe in recipes if recipe.model), ""),
                    method=", ".join(sorted({recipe.method for _, recipe in recipes})),
                    size=size,
                    used=used,
                    files=(*(file for file, _ in recipes), path),
                )
            )
    for folder, kind, method in (
        ("references", "reference", "F16"),
        ("importance", "importance", ""),
    ):
        for path in _files(cache / folder, "*.npz"):
            with contextlib.suppress(OSError):
                status = path.stat()
                model = path.stem.rpartition("-")[0]
                found.append(Entry(kind, model, method, status.st_size, status.st_mtime, (path,)))
    for path in _files(cache / "tmp", "*.gguf"):
        with contextlib.suppress(OSError):
            status = path.stat()
            found.append(Entry("unfinished", "", "", status.st_size, status.st_mtime, (path,)))
    return sorted(found, key=lambda entry: entry.used)


def rest(cache: Path) -> int:
    """Sum the bytes of everything else: measurements, digests, locks."""
    total = 0
    for path in [cache / "costs.jsonl", *(one for name in OTHER for one in _files(cache / name))]:
        # A run may be moving files meanwhile.
        with contextlib.suppress(OSError):
            status = path.stat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def choose(
    found: Iterable[Entry],
    *,
    model: str | None = None,
    older_than: float | None = None,
    max_size: int | None = None,
) -> list[Entry]:
    """Choose what goes: what fits model and age, then what was used longest ago, down to a size.

    Args:
        found: What is there.
        model: Only of this model.
        older_than: Only what was not used for so many seconds.
        max_size: Only as much as it takes to come down to so many bytes in all; what is left over
            goes first.
    """
    everything = sorted(found, key=lambda entry: (entry.kind not in LEFT_OVER, entry.used))
    fit = [
        entry
        for entry in everything
        if (model is None or entry.model.casefold() == model.casefold())
        and (older_than is None or time.time() - entry.used > older_than)
    ]
    if max_size is None:
        return fit
    total = sum(entry.size for entry in everything)
    chosen = []
    for entry in fit:
        if total <= max_size:
            break
        chosen.append(entry)
        total -= entry.size
    return chosen


def delete(chosen: Iterable[Entry]) -> int:
    """Delete entries; returns the bytes that were freed.

    Raises:
        StorageError: A file cannot be deleted.
    """
    freed = 0
    for entry in chosen:
        for path in entry.files:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise StorageError(f"{path}: cannot delete it: {error.strerror}") from error
        freed += entry.size
    return freed


def _files(folder: Path, pattern: str = "**/*") -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _lock(cache: Path, how: int) -> int:
    path = cache / "locks" / "in-use.lock"
    descriptor = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, how)
    except BaseException as error:
        if descriptor is not None:
            os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise StorageError(f"{cache}: a run is using it; prune when that has ended") from error
        if isinstance(error, OSError):
            raise StorageError(f"{path}: cannot lock it: {error.strerror}") from error
        raise
    return descriptor
