"""Whether the GGUF reader holds its bounds against files that were damaged on purpose.

    python benchmarks/fuzz_gguf.py --count 100000 --seed 1
    python benchmarks/fuzz_gguf.py --seed-corpus

Mutates valid files of ``pytest_ondevice.strategies`` (bits, lengths, counts, types, dimensions,
offsets, whole sections, ends, parts of split models) and reads each from memory. Every one has to
end as a Header or a BadFileError, within a second of CPU time, and without allocating more than
4 x its size + 64 MiB. What does not is saved under tests/corpus/gguf/, which the tests replay, and
the exit status is 1. The same seed gives the same files. Needs the extra ``strategies``.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import struct
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import hypothesis

from pytest_ondevice import strategies
from pytest_ondevice.errors import BadFileError
from pytest_ondevice.formats.gguf import read_header, read_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CORPUS = Path(__file__).parents[1] / "tests" / "corpus" / "gguf"
SECONDS = 1.0
"""CPU time that one file may take."""
SPARE_BYTES = 64 * 2**20
SAMPLED = 50
"""One file in so many is read under tracemalloc, which takes several times as long."""

Parts = list[bytes]


# -- what a valid file consists of


class Field(NamedTuple):
    """A number in a header: what it says, where it is and how many bytes it has."""

    what: str
    start: int
    size: int


class Anatomy(NamedTuple):
    """Where in a valid file its numbers are, and its keys and tensors as a whole."""

    fields: list[Field]
    sections: list[tuple[int, int]]
    end: int


_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class _Walker:
    """Steps over the numbers of a valid header and notes them."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.pos = 4
        self.fields: list[Field] = []

    def number(self, what: str, size: int) -> int:
        self.fields.append(Field(what, self.pos, size))
        self.pos += size
        return int.from_bytes(self.content[self.pos - size : self.pos], "little")

    def string(self) -> None:
        length = self.number("length", 8)
        self.pos += length

    def value(self) -> None:
        type_id, count = self.number("value type", 4), 1
        if type_id == 9:
            type_id, count = self.number("value type", 4), self.number("elements", 8)
        for _ in range(count):
            if type_id == 8:
                self.string()
            else:
                self.number("value", _SIZES[type_id])

    def tensor(self) -> None:
        self.string()
        for _ in range(self.number("dimensions", 4)):
            self.number("dimension", 8)
        self.number("tensor type", 4)
        self.number("offset", 8)


def dissect(content: bytes) -> Anatomy:
    """Find the numbers and sections of a valid file."""
    walker = _Walker(content)
    walker.number("version", 4)
    n_tensors, n_keys = walker.number("tensors", 8), walker.number("keys", 8)
    sections = []
    for index in range(n_keys + n_tensors):
        start = walker.pos
        if index < n_keys:
            walker.string()
            walker.value()
        else:
            walker.tensor()
        sections.append((start, walker.pos))
    return Anatomy(walker.fields, sections, walker.pos)


# -- mutations

EXTREMES = (0, 1, 2, 4, 5, 8, 31, 32, 33, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32)
HUGE = (2**40, 2**58, 2**60, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 2, 2**64 - 1)


def put(content: bytearray, field: Field, value: int) -> None:
    raw = (value % 2 ** (8 * field.size)).to_bytes(field.size, "little")
    content[field.start : field.start + field.size] = raw


def get(content: bytearray, field: Field) -> int:
    return int.from_bytes(content[field.start : field.start + field.size], "little")


def flip_bits(content: bytearray, anatomy: Anatomy, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        content[rng.randrange(anatomy.end)] ^= 1 << rng.randrange(8)


def set_numbers(content: bytearray, anatomy: Anatomy, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        put(content, rng.choice(anatomy.fields), rng.choice(EXTREMES + HUGE))


def set_one_kind(content: bytearray, anatomy: Anatomy, rng: random.Random) -> None:
    # By kind, because texts have most of the numbers and the rare ones are the dangerous ones.
    what = rng.choice(sorted({field.what for field in anatomy.fields}))
    field = rng.choice([one for one in anatomy.fields if one.what == what])
    put(content, field, rng.choice(EXTREMES + HUGE))


def shift_numbers(content: bytearray, anatomy: Anatomy, rng: random.Random) -> None:
    field = rng.choice(anatomy.fields)
    put(content, field, get(content, field) + rng.choice((-32, -8, -1, 1, 8, 32)))


def swap_numbers(content: bytearray, anatomy: Anatomy, rng: random.Random) -> None:
    what = rng.choice(("offset", "dimension", "tensor type", "length", "value type"))
    alike = [one for one in anatomy.fields if one.what == what]
    if len(alike) > 1:
        one, other = rng.sample(alike, 2)
        first, second = get(content, one), get(content, other)
        put(content, one, second)
        put(content, other, first)


def retype(content: bytearray, anatomy: Anatomy, rng: random.Random) -> None:
    what = rng.choice(("tensor type", "value type"))
    alike = [one for one in anatomy.fields if one.what == what]
    if alike:
        put(content, rng.choice(alike), rng.randrange(50))


def truncate(content: bytearray, anatomy: Anatomy, rng: random.Random) -> None:
    del content[rng.randrange(rng.choice((anatomy.end, len(content))) + 1) :]


def repeat_section(content: bytearray, anatomy: Anatomy, rng: random.Random) -> None:
    start, end = rng.choice(anatomy.sections)
    at, _ = rng.choice(anatomy.sections)
    content[at:at] = content[start:end] * rng.choice((1, 1, 2, 30))
    if rng.random() < 0.5:  # else the count stays and what follows is misread
        put(content, anatomy.fields[rng.choice((1, 2))], rng.randrange(40))


def drop_section(content: bytearray, anatomy: Anatomy, rng: random.Random) -> None:
    start, end = rng.choice(anatomy.sections)
    del content[start:end]


def insert_noise(content: bytearray, anatomy: Anatomy, rng: random.Random) -> None:
    at = rng.randrange(anatomy.end)
    content[at:at] = rng.randbytes(rng.choice((1, 4, 8, 32, 4096)))


def swap_halves(content: bytearray, anatomy: Anatomy, rng: random.Random) -> None:
    for field in anatomy.fields[: rng.choice((1, 3, len(anatomy.fields)))]:  # as big-endian
        content[field.start : field.start + field.size] = content[
            field.start : field.start + field.size
        ][::-1]


MUTATIONS: tuple[Callable[[bytearray, Anatomy, random.Random], None], ...] = (
    flip_bits,
    set_numbers,
    set_one_kind,
    shift_numbers,
    swap_numbers,
    retype,
    truncate,
    repeat_section,
    drop_section,
    insert_noise,
    swap_halves,
)


def seeds(count: int, seed: int) -> list[Parts]:
    """Make valid models, one in four of them split."""
    found: list[Parts] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(
        strategies.gguf_files().map(lambda file: (file,)), strategies.split_gguf_files()
    )
    def collect(whole: tuple[strategies.GgufFile], parts: tuple[strategies.GgufFile, ...]) -> None:
        files = parts if len(found) % 4 == 3 else whole
        found.append([file.content for file in files])

    collect()
    return found


def mutated(parts: Parts, anatomies: list[Anatomy], rng: random.Random) -> Parts:
    """Damage one part of a model in one way or two, or its parts as a whole."""
    parts = list(parts)
    if len(parts) > 1 and rng.random() < 0.2:
        at = rng.randrange(len(parts))
        how = rng.randrange(3)
        if how == 0:
            parts.insert(at, parts[rng.randrange(len(parts))])
        elif how == 1:
            rng.shuffle(parts)
        else:
            del parts[at]
        return parts
    which = rng.randrange(len(parts))
    content = bytearray(parts[which])
    mutation = rng.choice(MUTATIONS)
    mutation(content, anatomies[which], rng)
    if rng.random() < 0.2 and len(content) > anatomies[which].end:
        rng.choice(MUTATIONS[:6])(content, anatomies[which], rng)
    parts[which] = bytes(content)
    return parts


# -- reading


class TookTooLong(BaseException):
    """Not an Exception, for nothing in between is to catch it."""


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raise where a block takes more CPU time; a busy machine does not count."""

    def stop(number: int, frame: object) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def read(paths: list[Path]) -> str:
    """Read a model; return how it ended, in a word."""
    try:
        if len(paths) == 1:
            read_header(paths[0])
        else:
            read_model(paths)
    except BadFileError:
        return "refused"
    return "read"


def judge(parts: Parts, folder: Path, *, trace: bool) -> tuple[str, float]:
    """Read a model under the limits; return how it ended and the CPU seconds it took."""
    paths = []
    for number, content in enumerate(parts, 1):
        path = folder / f"m-{number:05}-of-{len(parts):05}.gguf"
        path.write_bytes(content)
        paths.append(path)
    if trace:
        tracemalloc.start()
    begin = time.process_time()
    try:
        # Tracing is not the reader's time.
        with cpu_limit(SECONDS * (10 if trace else 1)):
            outcome = read(paths)
    except TookTooLong:
        outcome = f"took more than {SECONDS} s"
    except Exception as error:  # noqa: BLE001  (this is what is looked for)
        outcome = f"raised {type(error).__name__}: {error}"
    seconds = time.process_time() - begin
    if trace:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        most = 4 * sum(map(len, parts)) + SPARE_BYTES
        if peak > most:
            outcome = f"allocated {peak} bytes (at most {most})"
        seconds = 0.0
    return outcome, seconds


def is_fine(outcome: str) -> bool:
    return outcome in {"read", "refused"}


# -- hand-made files


def _key(name: bytes, type_id: int, payload: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", type_id) + payload


def _text(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def _tensor(name: bytes, shape: tuple[int, ...], type_id: int = 0, offset: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return _text(name) + dims + struct.pack("<IQ", type_id, offset)


def _file(*keys: bytes, tensors: tuple[bytes, ...] = (), data: int = 32) -> bytes:
    arch = _key(b"general.architecture", 8, _text(b"llama"))
    counts = struct.pack("<IQQ", 3, len(tensors), len(keys) + 1)
    header = b"".join((b"GGUF", counts, arch, *keys, *tensors))
    return header + bytes(-len(header) % 32) + bytes(data)


def _array(name: bytes, type_id: int, count: int, payload: bytes = b"") -> bytes:
    return _key(name, 9, struct.pack("<IQ", type_id, count) + payload)


def hand_made() -> dict[str, bytes]:
    """Nasty files by name, each under 2 kB; the beginning of a name says how it has to end."""
    deep = struct.pack("<IQ", 9, 1) * 80
    one = _tensor(b"a", (8,))
    return {
        "bad-array-of-2-to-the-63": _file(_array(b"k", 0, 2**63)),
        "bad-array-size-wraps-to-0": _file(_array(b"k", 10, 2**61)),
        "bad-strings-wrap-to-0": _file(_array(b"k", 8, 2**61)),
        "bad-string-of-2-to-the-64-less-8": _file(_array(b"k", 8, 3, struct.pack("<Q", 2**64 - 8))),
        "bad-array-of-arrays-80-deep": _file(_key(b"k", 9, deep)),
        "bad-2-to-the-32-keys": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**32) + bytes(200),
        "bad-2-to-the-64-tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**64 - 1, 0) + bytes(200),
        "bad-as-many-tensors-as-fit": b"GGUF" + struct.pack("<IQQ", 3, 50, 0) + bytes(1700),
        "bad-key-of-2-to-the-64": _file(struct.pack("<Q", 2**64 - 1) + bytes(40)),
        "bad-alignment-of-0": _file(_key(b"general.alignment", 4, bytes(4)), tensors=(one,)),
        "bad-alignment-of-2-to-the-31": _file(
            _key(b"general.alignment", 4, struct.pack("<I", 2**31)), tensors=(one,)
        ),
        "bad-dimensions-wrap-to-0": _file(tensors=(_tensor(b"a", (2**32, 2**32)),)),
        "bad-dimensions-wrap-to-8": _file(tensors=(_tensor(b"a", (2**63 + 4, 2)),)),
        "bad-dimension-of-0": _file(tensors=(_tensor(b"a", (0, 8)),)),
        "bad-2-to-the-32-dimensions": _file(
            tensors=(_text(b"a") + struct.pack("<I", 2**32 - 1) + bytes(99),)
        ),
        "bad-offset-of-2-to-the-64": _file(tensors=(_tensor(b"a", (8,), offset=2**64 - 32),)),
        "bad-offsets-swapped": _file(
            tensors=(_tensor(b"a", (8,), offset=32), _tensor(b"b", (8,))), data=64
        ),
        "bad-offsets-overlap": _file(tensors=(one, _tensor(b"b", (8,))), data=64),
        "bad-tensor-type-removed": _file(tensors=(_tensor(b"a", (32,), type_id=4),)),
        "bad-tensor-type-of-2-to-the-32": _file(tensors=(_tensor(b"a", (32,), type_id=2**32 - 1),)),
        "bad-tensor-twice": _file(tensors=(one, _tensor(b"a", (8,), offset=32)), data=64),
        "bad-weights-missing": _file(tensors=(_tensor(b"a", (2**40, 2**20)),)),
        "bad-split-beyond-its-count": _file(
            _key(b"split.no", 2, b"\xff\xff"), _key(b"split.count", 2, b"\x02\x00")
        ),
        "bad-big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(99),
        "good-text-that-is-not-utf-8": _file(_key(b"k", 8, _text(b"\xff\xfe" * 99))),
        "good-empty-arrays": _file(*(_array(b"k%d" % n, n, 0) for n in (0, 6, 7, 8, 12))),
        "good-name-with-every-control": _file(_key(bytes(range(128)), 0, b"\0")),
    }


def write_corpus(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in hand_made().items():
        (folder / f"{name}.bin").write_bytes(content)


def save(parts: Parts, folder: Path) -> list[Path]:
    """Save a model that broke the reader: a file, or a folder with its parts in order."""
    digest = hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    if len(parts) == 1:
        paths = [folder / f"{digest}.bin"]
    else:
        (folder / digest).mkdir(exist_ok=True)
        paths = [folder / digest / f"{number:05}.bin" for number in range(len(parts))]
    for path, content in zip(paths, parts, strict=True):
        path.write_bytes(content)
    return paths


# -- the run


class Result(NamedTuple):
    """What came of a run: outcomes, the slowest file, and where failures were saved."""

    outcomes: Counter[str]
    slowest: tuple[float, Parts]
    saved: list[Path]


def fuzz(count: int, seed: int, corpus: Path, *, models: int = 200) -> Result:
    """Read ``count`` damaged models, and first the valid ones that they are made from."""
    rng = random.Random(seed)
    valid = [(parts, [dissect(content) for content in parts]) for parts in seeds(models, seed)]
    outcomes: Counter[str] = Counter()
    slowest: tuple[float, Parts] = (0.0, [])
    saved: list[Path] = []
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        folder = Path(name)
        for parts, _ in valid:
            outcome, _ = judge(parts, folder, trace=False)
            if outcome != "read":
                outcomes[f"valid, but {outcome}"] += 1
                saved += save(parts, corpus)
        for number in range(count):
            parts = mutated(*rng.choice(valid), rng)
            if not parts:
                continue
            outcome, seconds = judge(parts, folder, trace=number % SAMPLED == 0)
            outcomes[outcome if is_fine(outcome) else outcome.partition(":")[0]] += 1
            if seconds > slowest[0]:
                slowest = (seconds, parts)
            if not is_fine(outcome):
                print(outcome)
                saved += save(parts, corpus)
    return Result(outcomes, slowest, saved)


def main() -> int:
    """Fuzz and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seed-corpus", action="store_true", help="write the hand-made files")
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    options = parser.parse_args()
    if options.seed_corpus:
        write_corpus(options.corpus)
        return 0
    begin = time.perf_counter()
    result = fuzz(options.count, options.seed, options.corpus)
    for outcome, times in result.outcomes.most_common():
        print(f"{times:>9}  {outcome}")
    seconds, parts = result.slowest
    sizes = " + ".join(str(len(content)) for content in parts)
    print(f"slowest: {1000 * seconds:.2f} ms of CPU for {sizes} bytes")
    print(f"{time.perf_counter() - begin:.0f} s in all")
    for path in result.saved:
        print(f"saved {path}")
    return 1 if result.saved else 0


if __name__ == "__main__":
    sys.exit(main())
