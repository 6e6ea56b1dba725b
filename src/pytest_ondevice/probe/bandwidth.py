"""How fast this machine reads memory: what decoding is held against, byte for byte.

Decoding a token reads weights and writes next to nothing, so this reads too: the maximum of an
array of int64, which numpy computes faster than memory delivers, without the interpreter's lock.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    Array = np.ndarray[tuple[int], np.dtype[np.int64]]

CPUS = Path("/sys/devices/system/cpu")
MEMINFO = Path("/proc/meminfo")

MIB = 2**20
LEAST, MOST = 256 * MIB, 1024 * MIB
CACHES = 4
"""The array is so many times what the last caches hold, within LEAST and MOST."""


def read_bandwidth(
    threads: int,
    n_bytes: int | None = None,
    repetitions: int = 3,
    *,
    clock: Callable[[], float] = perf_counter,
) -> float:
    """Measure the bandwidth of reading memory, in bytes/s, by the best repetition.

    Args:
        threads: Threads that read at once, each a stretch of its own.
        n_bytes: Bytes to read in a repetition, `array_bytes()` by default. What fits into a cache
            measures the cache.
        repetitions: How often to read.
        clock: Seconds, read before and after each repetition.

    Raises:
        ValueError: No thread, no repetition, or less than 8 bytes for each thread.
    """
    size = (array_bytes() if n_bytes is None else n_bytes) // 8
    if repetitions < 1:
        raise ValueError(f"{repetitions} repetitions measure nothing (expected at least 1)")
    stretches = slices(size, threads)
    array: Array = np.empty(size, np.int64)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        # Who writes a page first has it on a memory of its own node, and untouched pages are none.
        list(pool.map(lambda stretch: array[stretch].fill(1), stretches))
        for _ in range(repetitions):
            start = clock()
            list(pool.map(lambda stretch: array[stretch].max(), stretches))
            best = min(best, clock() - start)
    return array.nbytes / best


def slices(size: int, threads: int) -> list[slice]:
    """Divide ``size`` elements into one stretch per thread; they differ by one element at most.

    Raises:
        ValueError: There is no thread, or no element for each.
    """
    if threads < 1:
        raise ValueError(f"{threads} threads read nothing (expected at least 1)")
    if size < threads:
        raise ValueError(f"{8 * size} bytes are less than 8 for each of {threads} threads")
    ends = [size * number // threads for number in range(threads + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


def array_bytes() -> int:
    """Choose how many bytes to read: far more than the caches hold, never what others need.

    A quarter of the memory that is available has to do, even where the caches hold as much.
    """
    wanted = min(max(CACHES * cache_bytes(), LEAST), MOST)
    available = _available()
    return wanted if available is None else min(wanted, available // 4)


def cache_bytes() -> int:
    """Add up the last-level caches of all CPUs, each once; 0 where the system does not tell."""
    found: dict[tuple[int, str], int] = {}
    for folder in CPUS.glob("cpu[0-9]*/cache/index[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            level = int(_text(folder / "level"))
            found[level, _text(folder / "shared_cpu_list")] = _size(_text(folder / "size"))
    last = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == last)


def _size(text: str) -> int:
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return int(text.rstrip("KMG")) * units.get(text[-1:], 1)


def _available() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in MEMINFO.read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _text(path: Path) -> str:
    return path.read_text("ascii").strip()
