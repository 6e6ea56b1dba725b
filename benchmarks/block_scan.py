"""How long it takes to look at all blocks of a file, against only reading it.

    python benchmarks/block_scan.py [--rounds N] [--size MB] [FILE.gguf ...]

Times scan() and ``cat FILE > /dev/null`` in turns on a warm cache and prints the ratio of each
round and their median: at most 2 is aimed at. Without a file it makes one of random blocks with
sound scales for each of some types, in the temporary folder, and removes it.
"""

from __future__ import annotations

import argparse
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pytest_ondevice.formats.blocks import scan
from pytest_ondevice.formats.gguf import read_header
from pytest_ondevice.model.quant_types import QuantType, by_name

TYPES = ("Q4_0", "Q4_K", "Q6_K", "Q8_0", "F16", "IQ4_XS")
# Where the half-precision scales of a block stand, in halves from its start (ggml-common.h).
SCALES = {"Q4_0": (0,), "Q4_K": (0, 1), "Q6_K": (104,), "Q8_0": (0,), "IQ4_XS": (0,), "F16": (0,)}
BATCH = 16 * 1024**2


def header(kind: QuantType, n_weights: int) -> bytes:
    """Write the header of a file with one matrix."""
    string = b"general.architecture"
    key = struct.pack("<Q", len(string)) + string + struct.pack("<IQ", 8, 5) + b"llama"
    name = b"blk.0.ffn_up.weight"
    shape = struct.pack("<IQQ", 2, 256, n_weights // 256)
    tensor = struct.pack("<Q", len(name)) + name + shape + struct.pack("<IQ", kind.id, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + key + tensor
    return head + bytes(-len(head) % 32)


def blocks(kind: QuantType) -> bytes:
    """Some megabytes of random blocks."""
    random = np.random.default_rng(0)
    count = BATCH // (kind.type_size * 256) * 256
    halves = random.integers(0, 2**16, (count, kind.type_size // 2), np.uint16)
    for place in SCALES[kind.name]:
        scales = random.standard_normal(count) * 0.02 / (1 if kind.is_float else 256)
        halves[:, place] = scales.astype(np.float16).view(np.uint16)
    return halves.tobytes()


def make(path: Path, kind: QuantType, n_bytes: int) -> None:
    """Write a file of about so many bytes."""
    batch = blocks(kind)
    times = n_bytes // len(batch) or 1
    n_weights = times * len(batch) // kind.type_size * kind.block_size
    with path.open("wb") as file:
        file.write(header(kind, n_weights))
        for _ in range(times):
            file.write(batch)


def read_by_cat(path: Path) -> float:
    start = time.perf_counter()
    with path.open("rb") as file, Path("/dev/null").open("wb") as nowhere:
        subprocess.run(["cat"], stdin=file, stdout=nowhere, check=True)
    return time.perf_counter() - start


def scanned(path: Path) -> float:
    header = read_header(path)  # which whoever scans has read before
    start = time.perf_counter()
    report = scan([path], [header])
    seconds = time.perf_counter() - start
    for finding in report.findings:
        print(" ", finding, file=sys.stderr)
    return seconds


def compare(label: str, path: Path, rounds: int) -> None:
    read_by_cat(path)  # so that the first round finds the cache as warm as the others
    pairs = [(read_by_cat(path), scanned(path)) for _ in range(rounds)]
    ratios = [scan_s / cat_s for cat_s, scan_s in pairs]
    cat_s, scan_s = (statistics.median(times) for times in zip(*pairs, strict=True))
    every = " ".join(f"{ratio:.2f}" for ratio in ratios)
    print(
        f"{label:8s} {path.stat().st_size / 1e6:7.0f} MB  cat {cat_s * 1e3:5.0f} ms  "
        f"scan {scan_s * 1e3:5.0f} ms  ratio {statistics.median(ratios):.2f} ({every})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size", type=int, default=1000, help="megabytes of a made file")
    arguments = parser.parse_args()
    for path in arguments.files:
        compare(path.name[:8], path, arguments.rounds)
    for name in TYPES if not arguments.files else ():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "made.gguf")
            make(path, by_name(name), arguments.size * 10**6)
            compare(name, path, arguments.rounds)


if __name__ == "__main__":
    main()
