"""Open a file that nobody vouches for: a regular one with something in it."""

from __future__ import annotations

import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pytest_ondevice.errors import BadFileError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file that is not empty, unbuffered; yields it with its length in bytes.

    Raises:
        BadFileError: It is none, or the system objects to something, also while it is read.
    """
    try:
        # Before opening, because opening a named pipe waits for its writer.
        status = _status(path)
        if stat.S_ISDIR(status.st_mode):
            raise BadFileError(path, "is a folder")
        if not stat.S_ISREG(status.st_mode):
            raise BadFileError(path, "is not a regular file")
        if not status.st_size:
            raise BadFileError(path, "is empty")
        with Path(path).open("rb", buffering=0) as file:
            yield file, status.st_size
    except FileNotFoundError:
        raise BadFileError(path, "does not exist") from None
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror}") from error


def _status(path: str | os.PathLike[str]) -> os.stat_result:
    try:
        return Path(path).stat()
    except ValueError as error:
        raise BadFileError(path, f"is no path: {error}") from None
