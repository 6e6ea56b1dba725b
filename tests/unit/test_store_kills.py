"""The store under fire: killed at any moment, written by two at once, on a disk that is full."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress

import gguf
import msgspec
import numpy as np
import pytest

from pytest_ondevice.errors import BadFileError, StorageError
from pytest_ondevice.storage import artifacts, files
from pytest_ondevice.storage.artifacts import ArtifactStore, Recipe
from pytest_ondevice.storage.costs import Costs
from pytest_ondevice.storage.journal import Journal

KILLS = 200
LATEST = 0.020
"""Longest time from a worker's beginning to its end, in seconds."""

SHAPE = (512, 256)
TENSOR_BYTES = 2 * 512 * 256

KEYS = 5
JOURNAL = "ab12cd"

# What every child process shares; it imports the store and nothing of pytest or numpy.
COMMON = f"""
import hashlib, json, os, sys
from pathlib import Path
import msgspec
from pytest_ondevice.errors import OnDeviceError
from pytest_ondevice.storage.artifacts import ArtifactStore, Recipe
from pytest_ondevice.storage.costs import Costs
from pytest_ondevice.storage.files import write_atomic
from pytest_ondevice.storage.journal import Journal

folder = Path(sys.argv[1])
cache = folder / "cache"
template = (folder / "template.gguf").read_bytes()[:-{TENSOR_BYTES}]

def model(n):
    return template + n.to_bytes(8, "little") * ({TENSOR_BYTES} // 8)

def recipe(n):
    return Recipe(
        sha256="", size=0, source_sha256="5" * 64, source_type="F16", method="Q8_0",
        runtime="r", runtime_digest="d", wall_time=float(n), cpu_time=0.0, peak_memory=0,
    )

def say(line):
    os.write(1, line.encode() + b"\\n")
"""

# One process imports and forks a worker per kill: Python starts once and not two hundred times.
# A worker says what it begins and what it has ended, each with the number it does it with.
ZYGOTE = (
    COMMON
    + f"""
class RecipeFirst(ArtifactStore):
    '''The mutant: names an object before it is in its place.'''

    def add(self, key, part, recipe):
        content = part.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        made = msgspec.structs.replace(recipe, sha256=digest, size=len(content))
        write_atomic(self._recipe(key), msgspec.json.encode(made))
        return super().add(key, part, recipe)

class ReplacesNothing(ArtifactStore):
    '''The mutant: writes the object where it is to be, instead of moving it there.'''

    def add(self, key, part, recipe):
        content = part.read_bytes()
        path = self._object(hashlib.sha256(content).hexdigest())
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb", buffering=0) as file:
            for start in range(0, len(content), 4096):
                file.write(content[start : start + 4096])
        return super().add(key, part, recipe)

store = {{"": ArtifactStore, "first": RecipeFirst, "inplace": ReplacesNothing}}[sys.argv[2]](cache)
journal = Journal(cache / "journal", "run", "session")
costs = Costs(cache, "place")

def add(n):
    part = store.new_file()
    content = model(n)
    with part.open("wb", buffering=0) as file:
        for start in range(0, len(content), 65536):
            file.write(content[start : start + 65536])
    store.add(f"key{{n % {KEYS}}}", part, recipe(n))

def atomic(n):
    write_atomic(cache / "state" / "file", n.to_bytes(8, "little") * 16384)

def append(n):
    journal.append("{JOURNAL}", payload={{"n": n, "text": "x" * 2000}})

def cost(n):
    costs.add("stage", "Q8_0", n + 1, 1.0)

STEPS = (add, append, atomic, cost)

def work(first, rounds):
    for n in range(first, first + rounds):
        for index in range(len(STEPS)):
            step = STEPS[(n + index) % len(STEPS)]
            say(f"begin {{step.__name__}} {{n}}")
            step(n)
            say(f"ended {{step.__name__}} {{n}}")

say("ready")
for line in sys.stdin:
    first, rounds = map(int, line.split())
    pid = os.fork()
    if not pid:
        say(f"worker {{os.getpid()}} 0")
        work(first, rounds)
        os._exit(0)
    say(f"gone {{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}} 0")
"""
)


class Zygote:
    """A process that forks the writers, and what those have said."""

    def __init__(self, folder, kind=""):
        self.process = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE, str(folder), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.next = 0
        self.ended = {}
        self.hit = Counter()
        self.writes = 0
        assert self.process.stdout.readline() == "ready\n", self.process.stderr.read()

    def work(self, kill_after=None, rounds=10_000):
        """Let a worker write; returns the exit status with which it ended."""
        self.process.stdin.write(f"{self.next} {rounds}\n")
        under_way = None
        while True:
            word, what, number = self.process.stdout.readline().split()
            if word == "begin":
                under_way = what
                self.next = int(number) + 1
            elif word == "ended":
                self.ended.setdefault(what, []).append(int(number))
                self.writes += 1
                under_way = None
            elif word == "gone":
                self.hit[under_way] += 1
                return int(what)
            elif kill_after is not None:  # it has said who it is
                time.sleep(kill_after)
                os.kill(int(what), signal.SIGKILL)

    def close(self):
        self.process.stdin.close()
        said = self.process.stderr.read()
        self.process.stdout.close()
        self.process.stderr.close()
        assert self.process.wait(20) == 0, said
        assert not said


@contextmanager
def zygote(folder, kind=""):
    made = Zygote(folder, kind)
    try:
        yield made
    finally:
        made.close()


class Watch:
    """Looks at a cache as the next reader would; every problem is a line."""

    def __init__(self, folder):
        self.cache = folder / "cache"
        self.store = ArtifactStore(self.cache)
        self._seen = {}

    def problems(self, ended):
        return [
            *self._artifacts(ended.get("add", [])),
            *self._file(ended.get("atomic", [])),
            *self._journal(ended.get("append", [])),
            *self._costs(ended.get("cost", [])),
            *self._leftovers(),
        ]

    def _digest(self, path):
        """Digest a file, again if it is not the very file that was digested before."""
        status = path.stat()
        known = (status.st_ino, status.st_mtime_ns, status.st_size)
        if self._seen.get(path, ("", ""))[0] != known:
            self._seen[path] = (known, hashlib.sha256(path.read_bytes()).hexdigest())
        return self._seen[path][1]

    def _artifacts(self, added):
        for path in self.cache.glob("objects/*/*"):
            if self._digest(path) != path.stem:
                yield f"torn object {path.name}"
        for path in self.cache.glob("recipes/[!.]*"):
            recipe = msgspec.json.decode(path.read_bytes(), type=Recipe)
            named = self.cache / "objects" / recipe.sha256[:2] / f"{recipe.sha256}.gguf"
            if not named.exists() or named.stat().st_size != recipe.size:
                yield f"{path.name} names an object that is missing or short"
            found = self.store.find(path.stem)
            if found is None:
                yield f"{path.name} finds nothing"
            elif self._digest(found[0]) != found[1].sha256:
                yield f"{path.name} finds another file than it names"
        for key in range(KEYS):
            ours = [n for n in added if n % KEYS == key]
            found = self.store.find(f"key{key}")
            if ours and (found is None or found[1].wall_time < max(ours)):
                yield f"what was added under key{key} is lost"

    def _file(self, written):
        path = self.cache / "state" / "file"
        if not path.exists():
            if written:
                yield "the file is lost"
            return
        content = path.read_bytes()
        number = int.from_bytes(content[:8], "little")
        if content != number.to_bytes(8, "little") * 16384:
            yield "the file is torn"
        elif written and number < max(written):
            yield "the file is an old one"

    def _journal(self, appended):
        journal = Journal(self.cache / "journal", "run", "session")
        kept = [record.payload for record in journal._read(JOURNAL)]
        if any(len(payload["text"]) != 2000 for payload in kept):
            yield "a record is torn"
        numbers = [payload["n"] for payload in kept]
        if not set(appended) <= set(numbers) or numbers != sorted(numbers):
            yield "a record is lost, or they are out of order"
        found = journal.find(JOURNAL, any_run=False)
        if appended and (found is None or found.payload["n"] < max(appended)):
            yield "the newest record is not found"

    def _costs(self, added):
        kept = {cost.units - 1 for cost in Costs(self.cache, "place")._costs()}
        if not set(added) <= kept:
            yield "a cost is lost"

    def _leftovers(self):
        for path in self.cache.rglob("*"):
            place = path.relative_to(self.cache).as_posix()
            proper = (
                path.is_dir()
                or path.name.startswith(".")
                or place.startswith("tmp/")
                or place in {"state/file", "costs.jsonl", f"journal/ab/{JOURNAL}.jsonl"}
                or path.match("objects/??/*.gguf")
                or (path.match("recipes/key*.json") or path.match("digests/*.json"))
            )
            if not proper:
                yield f"left behind: {place}"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("template") / "template.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_tensor("output_norm.weight", np.ones(256, np.float32))
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros(SHAPE, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = path.read_bytes()
    assert content[-TENSOR_BYTES:] == bytes(TENSOR_BYTES), "the tensor is not at the end"
    return path


@pytest.fixture
def folder(tmp_path, template):
    """A folder with a model to vary, emptied afterwards: pytest would keep many megabytes."""
    shutil.copy(template, tmp_path)
    yield tmp_path
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def model(folder, number):
    """What a child process writes as a model."""
    content = (folder / "template.gguf").read_bytes()
    return content[:-TENSOR_BYTES] + number.to_bytes(8, "little") * (TENSOR_BYTES // 8)


# Killed


def test_two_hundred_kills_lose_nothing(folder):
    moments = random.Random(20260901)
    watch = Watch(folder)
    with zygote(folder) as writers:
        for kill in range(KILLS):
            status = writers.work(kill_after=moments.uniform(0, LATEST))
            assert status == -signal.SIGKILL, f"worker {kill} ended by itself"
            assert watch.problems(writers.ended) == [], f"after kill {kill}"
        # The next writer goes on, whatever those before it have left.
        before = writers.writes
        assert writers.work(rounds=KEYS) == 0
        assert writers.writes == before + 4 * KEYS
    # Looked at afresh: every file is read again.
    assert Watch(folder).problems(writers.ended) == []
    assert all(watch.store.find(f"key{key}") for key in range(KEYS))
    # The kills were where they hurt: in the middle of every kind of longer write.
    assert writers.hit["add"] >= 10, writers.hit
    assert writers.hit["atomic"] >= 3, writers.hit
    assert before >= KILLS, "the writers were killed before they wrote anything"


@pytest.mark.parametrize(
    ("mutant", "found"),
    [
        ("first", "names an object that is missing or short"),
        ("inplace", "torn object"),
    ],
)
def test_the_kills_find_a_store_that_is_not_safe(folder, mutant, found):
    moments = random.Random(20260902)
    watch = Watch(folder)
    with zygote(folder, mutant) as writers:
        for _ in range(KILLS):
            assert writers.work(kill_after=moments.uniform(0, LATEST)) == -signal.SIGKILL
            if problems := watch.problems(writers.ended):
                break
        else:
            pytest.fail(f"{KILLS} kills did not find it")
    assert any(found in problem for problem in problems), problems


# Two at once

ADDER = (
    COMMON
    + """
store = ArtifactStore(cache)
say("ready")
sys.stdin.readline()
for n in range(int(sys.argv[2]), int(sys.argv[3])):
    part = store.new_file()
    part.write_bytes(model(n // 2))
    path, made = store.add("key", part, recipe(n))
    # Another may have named another object meanwhile, but never one that is not whole.
    found, named = store.find("key")
    assert hashlib.sha256(found.read_bytes()).hexdigest() == named.sha256 == found.stem
    assert hashlib.sha256(path.read_bytes()).hexdigest() == made.sha256 == path.stem
say("done")
"""
)


@pytest.mark.parametrize("other", [0, 100], ids=["the same contents", "other contents"])
def test_two_processes_add_the_same_key_at_once(folder, other):
    spans = [(0, 30), (other, other + 30)]
    adders = [
        subprocess.Popen(
            [sys.executable, "-c", ADDER, str(folder), str(first), str(last)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for first, last in spans
    ]
    for adder in adders:
        assert adder.stdout.readline() == "ready\n", adder.stderr.read()
    for adder in adders:
        adder.stdin.write("\n")
        adder.stdin.flush()
    for adder in adders:
        out, err = adder.communicate(timeout=60)
        assert (adder.returncode, out, err) == (0, "done\n", "")
    path, recipe = ArtifactStore(folder / "cache").find("key")
    assert path.read_bytes() in {model(folder, (last - 1) // 2) for _, last in spans}
    assert recipe.size == path.stat().st_size
    numbers = {n // 2 for first, last in spans for n in range(first, last)}
    assert len(list((folder / "cache").glob("objects/*/*"))) == len(numbers)
    assert list((folder / "cache" / "tmp").iterdir()) == []
    assert [one.name for one in (folder / "cache" / "recipes").iterdir()] == ["key.json"]


# A disk that is full

# A limit on the length of files is a full disk that needs no root: writes are cut short at it,
# and fail beyond it.
FULL = (
    COMMON
    + """
import contextlib, resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = ArtifactStore(cache)
journal = Journal(cache / "journal", "run", "session")
said = {}

@contextlib.contextmanager
def full(what, limit):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    except OnDeviceError as error:
        said[what] = [type(error).__name__, str(error)]
    else:
        said[what] = None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

def part_of(n):
    part = store.new_file()
    part.write_bytes(model(n))
    return part

store.add("key", part_of(1), recipe(1))
write_atomic(cache / "file", b"old")
journal.append("ab12", payload={"n": 1})
Costs(cache, "place").add("stage", "Q8_0", 1, 1.0)

part = part_of(2)
with full("recipe", 100):
    store.add("key", part, recipe(2))
with full("atomic", 100):
    write_atomic(cache / "file", b"n" * 1000)
with full("new", 100):
    write_atomic(cache / "new" / "file", b"n" * 1000)
with full("journal", 100):
    journal.append("ab12", payload={"n": 2, "text": "x" * 1000})
with full("cost", 120):
    Costs(cache, "place").add("stage", "Q8_0", 2, 2.0)
part = store.new_file()
with full("model", 100_000), contextlib.suppress(OSError):
    part.write_bytes(model(3))
with full("add", 100_000):
    store.add("key", part, recipe(3))
said["part"] = part.stat().st_size
print(json.dumps(said))
"""
)


def test_a_full_disk_is_one_sentence_and_keeps_the_old_content(folder):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    cache = folder / "cache"
    too_large = os.strerror(errno.EFBIG)
    full = os.strerror(errno.ENOSPC)
    assert said.pop("recipe") == [
        "StorageError",
        f"{cache}/recipes/key.json: cannot write it: {too_large}",
    ]
    assert said.pop("atomic") == ["StorageError", f"{cache}/file: cannot write it: {too_large}"]
    assert said.pop("new") == ["StorageError", f"{cache}/new/file: cannot write it: {too_large}"]
    assert said.pop("journal") == [
        "StorageError",
        f"{cache}/journal/ab/ab12.jsonl: cannot write it: {full}",
    ]
    kind, sentence = said.pop("add")
    assert kind == "BadFileError"
    assert "the quantized file is damaged: " in sentence
    assert said == {"cost": None, "model": None, "part": 100_000}

    path, recipe = ArtifactStore(cache).find("key")
    assert path.read_bytes() == model(folder, 1)
    assert recipe.wall_time == 1
    assert (cache / "file").read_bytes() == b"old"
    assert not (cache / "new" / "file").exists()
    journal = Journal(cache / "journal", "run", "session")
    assert journal.find("ab12", any_run=False).payload == {"n": 1}
    assert Costs(cache, "place").rate("stage", "Q8_0") == 1.0
    assert not [one for one in cache.rglob(".*") if one.is_file()]
    # There is room again.
    journal.append("ab12", payload={"n": 3})
    assert journal.find("ab12", any_run=False).payload == {"n": 3}
    Costs(cache, "place").add("stage", "Q8_0", 1, 5.0)
    assert Costs(cache, "place").rate("stage", "Q8_0") == 3.0


RECIPE = Recipe(
    sha256="",
    size=0,
    source_sha256="5" * 64,
    source_type="F16",
    method="Q8_0",
    runtime="r",
    runtime_digest="d",
    wall_time=0.0,
    cpu_time=0.0,
    peak_memory=0,
)


class NoSpace:
    """Stands for a function; from its nth call on there is no space."""

    def __init__(self, real, calls_before):
        self.real = real
        self.left = calls_before

    def __call__(self, *args, **options):
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.real(*args, **options)


# Each with the number of calls that go well: in `add` the object comes first, then the recipe.
STEPS = {
    "object fsync": (artifacts.os, "fsync", 0, "keep"),
    "object move": (files.Path, "replace", 0, "keep"),
    "recipe made": (files.tempfile, "mkstemp", 0, "write"),
    "recipe opened": (files.os, "fdopen", 0, "write"),
    "recipe fsync": (files.os, "fsync", 1, "write"),
    "recipe mode": (files.Path, "chmod", 0, "write"),
    "recipe move": (files.Path, "replace", 1, "write"),
    "folder": (files.Path, "mkdir", 0, "keep"),
}


@pytest.mark.parametrize("step", STEPS)
def test_no_space_at_any_step_of_adding(folder, monkeypatch, step):
    where, name, before, verb = STEPS[step]
    store = ArtifactStore(folder / "cache")
    part = store.new_file()
    part.write_bytes(model(folder, 1))
    old = store.add("key", part, RECIPE)
    assert store.find("key") == old
    part = store.new_file()
    part.write_bytes(model(folder, 2))

    real = getattr(where, name)
    stub = NoSpace(real, before)

    def bound(*args, **options):  # a function, which becomes a method where it stands for one
        return stub(*args, **options)

    monkeypatch.setattr(where, name, bound)
    with pytest.raises(StorageError) as caught:
        store.add("key", part, RECIPE)
    monkeypatch.undo()
    path = part if verb == "keep" else folder / "cache" / "recipes" / "key.json"
    assert str(caught.value) == f"{path}: cannot {verb} it: No space left on device"
    assert store.find("key") == old
    assert old[0].read_bytes() == model(folder, 1)
    assert Watch(folder).problems({}) == []
    left = [one.name for one in (folder / "cache" / "recipes").iterdir()]
    assert left == ["key.json"] or step == "recipe opened"  # a name of its own, and no content
    # There is room again; who made the part makes it again.
    part.write_bytes(model(folder, 2))
    assert store.add("key", part, RECIPE) == store.find("key") != old
    assert store.find("key")[0].read_bytes() == model(folder, 2)


def test_the_model_itself_is_cut_short(folder):
    store = ArtifactStore(folder / "cache")
    part = store.new_file()
    part.write_bytes(model(folder, 1)[:-1])
    with pytest.raises(BadFileError) as caught:
        store.add("key", part, RECIPE)
    assert "\n" not in str(caught.value)
    assert store.find("key") is None


def test_no_space_for_a_digest_or_a_time_is_no_matter(folder, monkeypatch):
    store = ArtifactStore(folder / "cache")
    part = store.new_file()
    part.write_bytes(model(folder, 1))
    kept = store.add("key", part, RECIPE)
    shutil.rmtree(folder / "cache" / "digests", ignore_errors=True)

    def refuse(*_args, **_options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    # A cache that can only be read still serves.
    monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    monkeypatch.setattr(artifacts.os, "utime", refuse)
    assert store.find("key") == kept


def test_using_an_artifact_leaves_its_time(folder):
    store = ArtifactStore(folder / "cache")
    part = store.new_file()
    part.write_bytes(model(folder, 1))
    store.add("key", part, RECIPE)
    recipe = folder / "cache" / "recipes" / "key.json"
    os.utime(recipe, (0, 0))
    store.find("other")
    assert recipe.stat().st_mtime == 0
    store.find("key")
    assert time.time() - recipe.stat().st_mtime < 60


def test_what_is_added_leaves_no_remembered_digest_of_its_old_name(folder):
    store = ArtifactStore(folder / "cache")
    for number in range(3):
        part = store.new_file()
        part.write_bytes(model(folder, number))
        store.add("key", part, RECIPE)
    with suppress(FileNotFoundError):
        assert list((folder / "cache" / "digests").iterdir()) == []
