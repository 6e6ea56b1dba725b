"""Atomic writes and remembered digests, shared by everything that stores."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import tomllib
from pathlib import Path
from typing import TypeVar

import msgspec

from ..errors import BadFileError, StorageError


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all, also after a crash.

    Raises:
        StorageError: No space, no permission, a folder in the way; the old content stands.
    """
    part: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        part = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        part.replace(path)
        part = None
    except OSError as error:
        raise StorageError(f"{path}: cannot write it: {error.strerror}") from error
    finally:
        if part is not None:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


_T = TypeVar("_T")


def decode(data: bytes, kind: type[_T]) -> _T:
    """Decode JSON to a type.

    Raises:
        msgspec.DecodeError: It is not that; the message may end in the place inside.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"it is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise msgspec.DecodeError("it is nested too deeply") from error


def read_toml(path: Path, kind: type[_T], what: str, builtin_types: tuple[type, ...] = ()) -> _T:
    """Read a TOML file as a type; ``what`` it is to be, in words.

    Args:
        path: The file.
        kind: The type; its own complaints name the place inside.
        what: What it is to be, as in "it is no WHAT".
        builtin_types: Of TOML's own values, those that must not be given as a text.

    Raises:
        FileNotFoundError: There is no such file.
        BadFileError: It is not that; the message names the place inside it.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
        return msgspec.convert(content, kind, builtin_types=builtin_types or None)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BadFileError(path, f"cannot read it: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadFileError(path, f"it is not UTF-8 (byte {error.start})") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise BadFileError(path, f"it is no {what}: {error}") from error
    except RecursionError as error:
        raise BadFileError(path, f"it is no {what}: it is nested too deeply") from error


def why_unwritable(folder: Path) -> str:
    """Say why nothing can be written in a folder that may not exist yet; empty if it can.

    It is tried, not looked up: permissions say little to root, and nothing of read-only mounts.
    """
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return f"{there} is not a folder"
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        return f"cannot write there: {error.strerror}"
    return ""


def require_space(
    folder: Path, needed: int, what: str, moved_by: str = "--ondevice-cache=DIR"
) -> None:
    """Make sure that ``folder`` can take ``needed`` more bytes; ``moved_by`` chooses another.

    Raises:
        StorageError: It cannot; the message has both figures and the option that moves it.
    """
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed:
        raise StorageError(
            f"{folder}: {what} needs {megabytes(needed)}, the disk has {megabytes(free)} free;"
            f" free some or choose another folder with {moved_by}"
        )


def megabytes(size: float) -> str:
    """Format bytes for a sentence: MB below one GB, else GB with one decimal."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


class _Seen(msgspec.Struct, frozen=True):
    size: int
    mtime_ns: int
    inode: int
    sha256: str


def sha256_of(path: Path, cache: Path) -> str:
    """Digest a file, remembering the result as long as its size, time and inode stay the same."""
    stat = path.stat()
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    memo = cache / "digests" / f"{name}.json"
    with contextlib.suppress(OSError, msgspec.DecodeError):
        seen = decode(memo.read_bytes(), _Seen)
        if (seen.size, seen.mtime_ns, seen.inode) == (stat.st_size, stat.st_mtime_ns, stat.st_ino):
            return seen.sha256
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    seen = _Seen(stat.st_size, stat.st_mtime_ns, stat.st_ino, digest)
    # What is not remembered is only computed again.
    with contextlib.suppress(StorageError):
        write_atomic(memo, msgspec.json.encode(seen))
    return digest
