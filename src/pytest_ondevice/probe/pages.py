"""A file's pages in the page cache: how many there are, and how to be rid of them without root.

A load is cold only as far as the file really left memory, so what is left is asked of the kernel
and never assumed. Caches below the page cache (ZFS's, a disk's, a hypervisor's) are out of reach.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
import stat
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

_PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)")


class PagesError(Exception):
    """The page cache cannot be asked about a file, or what it says means nothing."""


def drop(path: str) -> float:
    """Drop a file's pages from the page cache and return what `resident` then says.

    Pages that a process has mapped stay, and so do those of a file system that lives in memory.
    Then the share is above 0, and a load that follows is not cold.

    Raises:
        PagesError: This cannot be done here, or not be verified.
    """
    _need_linux()
    with _opened(path) as (file, size):
        # Pages that are not on the disk yet would stay. Nothing can be dirty where this fails.
        with contextlib.suppress(OSError):
            os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        return _share(path, file, size)


def resident(path: str) -> float:
    """Return the share of a file's pages that is in the page cache, 0 to 1; 0 of an empty file.

    Raises:
        PagesError: This cannot be known here.
    """
    _need_linux()
    with _opened(path) as (file, size):
        return _share(path, file, size)


def parts(path: str) -> list[str]:
    """List all files of a model by the name of one: of a split model every part, in order.

    The names are llama-gguf-split's, ``NAME-00001-of-00003.gguf``; no file is looked at.
    """
    match = _PART.search(path)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        return [path]
    count = int(match[2])
    return [_PART.sub(f"-{number:05d}-of-{match[2]}", path) for number in range(1, count + 1)]


def _need_linux() -> None:
    if sys.platform != "linux" or not hasattr(os, "posix_fadvise"):
        raise PagesError(
            f"the page cache cannot be emptied and looked into on {sys.platform}, only on Linux"
        )


@contextmanager
def _opened(path: str) -> Iterator[tuple[int, int]]:
    try:
        # Opening a named pipe would wait for its writer.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise PagesError(f"{path}: cannot be opened: {_why(error)}") from error
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise PagesError(f"{path}: is not a regular file, so it has no pages to look for")
        yield file, status.st_size
    except (OSError, ValueError) as error:
        raise PagesError(f"{path}: its pages cannot be looked for: {_why(error)}") from error
    finally:
        os.close(file)


def _why(error: OSError | ValueError) -> str:
    return str(error.strerror if isinstance(error, OSError) else error)


def _share(path: str, file: int, size: int) -> float:
    if not size:
        return 0.0
    if not _is_told(path, file):
        raise PagesError(
            f"{path}: the kernel tells only its owner, and who may write to it, which of its pages"
            " are in memory; measure as one of them, or a copy of your own"
        )
    found = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
    with mmap.mmap(file, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as mapped:
        # Mapping reads nothing. The array is only there for the address, and must go before it.
        view = np.frombuffer(mapped, np.uint8)
        failed = _mincore(view.ctypes.data, size, found)
        del view
    if failed:
        raise OSError(failed, os.strerror(failed))
    return float(np.count_nonzero(found & 1) / found.size)


def _is_told(path: str, file: int) -> bool:
    """Whether mincore(2) tells the truth: since Linux 5.2 others hear that every page is there."""
    user = os.geteuid()
    return user in {0, os.fstat(file).st_uid} or os.access(path, os.W_OK, effective_ids=True)


def _mincore(address: int, size: int, found: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> int:
    """Set a byte for each page; returns the error number, 0 without an error."""
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    mincore.restype = ctypes.c_int
    return ctypes.get_errno() if mincore(address, size, found.ctypes.data) else 0
