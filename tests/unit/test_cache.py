"""The cache as a whole: what is listed, what is chosen, in which order it goes, who may prune."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import msgspec
import pytest

from pytest_ondevice.errors import StorageError
from pytest_ondevice.storage import cache as module
from pytest_ondevice.storage.artifacts import Recipe
from pytest_ondevice.storage.cache import Entry, choose, delete, entries, hold, pruning, rest

DAY = 86400.0
NOW = 1_900_000_000.0

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


@pytest.fixture
def put(tmp_path):
    """Put a file into the cache: its name, its size or content, and its age in days."""

    def make(name, content=0, age=0.0):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else bytes(content))
        os.utime(path, (NOW - age * DAY, NOW - age * DAY))
        return path

    return make


@pytest.fixture
def artifact(put):
    """Put an object and its recipe into the cache."""

    def make(key, digit="a", size=100, model="m", method="Q8_0", age=0.0, age_of_object=50.0):
        sha256 = digit * 64
        path = put(f"objects/{sha256[:2]}/{sha256}.gguf", size, age_of_object)
        recipe = msgspec.structs.replace(
            RECIPE, sha256=sha256, size=size, model=model, method=method
        )
        return put(f"recipes/{key}.json", msgspec.json.encode(recipe), age), path

    return make


@pytest.fixture(autouse=True)
def now(monkeypatch):
    """Let the time of the tests be the time."""
    monkeypatch.setattr(module.time, "time", lambda: NOW)


def told(found):
    return [(entry.kind, entry.model, entry.method, entry.size) for entry in found]


# What is there


def test_nothing_is_in_no_cache(tmp_path):
    assert entries(tmp_path) == entries(tmp_path / "gone") == []
    assert rest(tmp_path) == rest(tmp_path / "gone") == 0


def test_a_file_is_no_cache(tmp_path):
    (tmp_path / "file").write_text("x")
    assert entries(tmp_path / "file") == []
    assert rest(tmp_path / "file") == 0


def test_everything_is_listed_with_what_goes_for_it(tmp_path, artifact, put):
    recipe, path = artifact("one", "a", 100, "m", "Q8_0", age=1)
    unused = put(f"objects/bb/{'b' * 64}.gguf", 200, age=2)
    reference = put("references/some-model-0123456789abcdef.npz", 300, age=3)
    unfinished = put("tmp/0123.gguf", 400, age=4)
    assert entries(tmp_path) == [
        Entry("unfinished", "", "", 400, NOW - 4 * DAY, (unfinished,)),
        Entry("reference", "some-model", "F16", 300, NOW - 3 * DAY, (reference,)),
        Entry("unused", "", "", 200, NOW - 2 * DAY, (unused,)),
        Entry("artifact", "m", "Q8_0", 100, NOW - 1 * DAY, (recipe, path)),
    ]


def test_an_object_of_two_recipes_is_one_entry(tmp_path, artifact):
    first, path = artifact("one", method="Q8_0", age=9)
    second, _ = artifact("two", method="Q4_0", age=2)
    assert entries(tmp_path) == [
        Entry("artifact", "m", "Q4_0, Q8_0", 100, NOW - 2 * DAY, (first, second, path))
    ]


def test_a_damaged_recipe_names_nothing(tmp_path, artifact, put):
    artifact("one")
    for number, content in enumerate([b"", b"{", b"[]", b"\xff", b'{"sha256":1}']):
        put(f"recipes/bad{number}.json", content)
    assert [entry.kind for entry in entries(tmp_path)] == ["artifact"]
    put("recipes/one.json", b"{")
    assert [entry.kind for entry in entries(tmp_path)] == ["unused"]


def test_a_recipe_without_an_object_is_no_entry(tmp_path, artifact):
    _, path = artifact("one")
    path.unlink()
    assert entries(tmp_path) == []


def test_half_written_and_foreign_files_are_no_entries(tmp_path, put):
    put("recipes/.one.json.ab12", 10)
    put("objects/aa/notes.txt", 10)
    put(f"objects/{'a' * 64}.gguf", 10)
    put("references/.x.npz.ab12", 10)
    put("elsewhere/model.gguf", 10)
    assert entries(tmp_path) == []


def test_what_vanishes_meanwhile_is_left_out(tmp_path, artifact, put, monkeypatch):
    artifact("one")
    put("references/m-0.npz", 3)
    put("journal/ab/x.jsonl", 5)
    put("journal/ab/y.jsonl", 7)
    real = module._files

    def late(folder, pattern="**/*"):
        return [*real(folder, pattern), folder / "ab" / "gone.npz", folder / "ab" / "gone.gguf"]

    monkeypatch.setattr(module, "_files", late)
    assert sorted(entry.kind for entry in entries(tmp_path)) == ["artifact", "reference"]
    assert rest(tmp_path) == 12


def test_the_rest_is_everything_that_is_no_entry(tmp_path, artifact, put):
    artifact("one")
    put("references/m-0.npz", 1000)
    put("tmp/0.gguf", 1000)
    for power, name in enumerate(
        [
            "journal/ab/abcd.jsonl",
            "digests/0.json",
            "runs/1.json",
            "progress/2.jsonl",
            "locks/3.lock",
            "costs.jsonl",
        ]
    ):
        put(name, 2**power)
    assert rest(tmp_path) == 2**6 - 1


# What is chosen


def entry(name, size=100, age=1.0, model="m", kind="artifact"):
    return Entry(kind, model, name, size, NOW - age * DAY, ())


EVERYTHING = [
    entry("new", 100, 1, "m"),
    entry("old", 200, 30, "m"),
    entry("other", 400, 10, "Other"),
    entry("unused", 800, 5, "", kind="unused"),
    entry("unfinished", 1600, 0.5, "", kind="unfinished"),
    entry("reference", 3200, 20, "other", kind="reference"),
]


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({}, "unused unfinished old reference other new"),
        ({"model": "m"}, "old new"),
        ({"model": "OTHER"}, "reference other"),
        ({"model": "nobody"}, ""),
        ({"older_than": 5 * DAY}, "old reference other"),
        ({"older_than": 4.9 * DAY}, "unused old reference other"),
        ({"older_than": 0}, "unused unfinished old reference other new"),
        ({"model": "other", "older_than": 15 * DAY}, "reference"),
        # 6300 in all.
        ({"max_size": 6300}, ""),
        ({"max_size": 6299}, "unused"),
        ({"max_size": 5500}, "unused"),
        ({"max_size": 5499}, "unused unfinished"),
        ({"max_size": 3900}, "unused unfinished"),
        ({"max_size": 3899}, "unused unfinished old"),
        ({"max_size": 500}, "unused unfinished old reference"),
        ({"max_size": 499}, "unused unfinished old reference other"),
        ({"max_size": 0}, "unused unfinished old reference other new"),
        # The size is that of everything, what goes is of the model.
        ({"model": "m", "max_size": 6200}, "old"),
        ({"model": "m", "max_size": 0}, "old new"),
        ({"older_than": 15 * DAY, "max_size": 6200}, "old"),
        ({"model": "Other", "older_than": 15 * DAY, "max_size": 6299}, "reference"),
    ],
)
def test_what_is_chosen(filters, names):
    assert [one.method for one in choose(reversed(EVERYTHING), **filters)] == names.split()


def test_choosing_is_of_nothing_too():
    assert choose([], max_size=0) == choose([]) == []


# Deleting


def test_what_was_chosen_is_gone_and_nothing_else(tmp_path, artifact, put):
    recipe, path = artifact("one", "a", 100, age=5)
    kept = [*artifact("two", "b", 200, age=1), put("references/m-0.npz", 300)]
    assert delete(choose(entries(tmp_path), older_than=2 * DAY)) == 100
    assert not recipe.exists()
    assert not path.exists()
    assert all(one.exists() for one in kept)
    assert told(entries(tmp_path)) == [
        ("artifact", "m", "Q8_0", 200),
        ("reference", "m", "F16", 300),
    ]


def test_what_is_gone_already_is_no_error(tmp_path, artifact):
    recipe, path = artifact("one")
    found = entries(tmp_path)
    path.unlink()
    assert delete(found) == 100
    assert not recipe.exists()


@pytest.mark.parametrize("survived", range(6))
def test_killed_while_deleting_no_recipe_is_without_its_object(
    tmp_path, artifact, monkeypatch, survived
):
    artifact("one", "a", age=3)
    artifact("two", "b", age=2)
    artifact("three", "b", age=1)
    left = [survived]
    real = Path.unlink

    def unlink(path, missing_ok=False):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(path, missing_ok)

    found = entries(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", unlink)
        if survived < 5:
            with pytest.raises(KeyboardInterrupt):
                delete(found)
        else:
            assert delete(found) == 200
    recipes = list((tmp_path / "recipes").iterdir())
    assert len(recipes) + len(list((tmp_path / "objects").glob("*/*"))) == 5 - survived
    for recipe in recipes:
        named = msgspec.json.decode(recipe.read_bytes(), type=Recipe).sha256
        assert (tmp_path / "objects" / named[:2] / f"{named}.gguf").exists()
    # What is left is listed, so that the next pruning takes it.
    delete(entries(tmp_path))
    assert entries(tmp_path) == []
    assert not list((tmp_path / "objects").glob("*/*"))


def test_what_cannot_be_deleted_is_one_sentence(tmp_path, put):
    path = put("references/m-0.npz", 3)
    found = entries(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageError) as caught:
        delete(found)
    assert str(caught.value) == f"{path}: cannot delete it: Is a directory"


# Who may prune


def test_pruning_is_refused_while_a_run_holds_the_cache(tmp_path):
    held = hold(tmp_path)
    other = hold(tmp_path)  # runs do not keep each other out
    for last in held, other:
        with pytest.raises(StorageError) as caught, pruning(tmp_path):
            raise AssertionError("it was let in")
        assert str(caught.value) == f"{tmp_path}: a run is using it; prune when that has ended"
        os.close(last)
    with pruning(tmp_path):
        pass


def test_a_refused_pruning_leaves_no_descriptor(tmp_path):
    held = hold(tmp_path)
    try:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            with pytest.raises(StorageError), pruning(tmp_path):
                pass
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    finally:
        os.close(held)


def test_one_prunes_at_a_time(tmp_path):
    with (
        pruning(tmp_path),
        pytest.raises(StorageError, match="a run is using it"),
        pruning(tmp_path),
    ):
        pass
    with pruning(tmp_path):
        pass


def test_a_run_waits_until_pruning_has_ended(tmp_path):
    held, asking = [], threading.Event()

    def run():
        asking.set()
        held.append(hold(tmp_path))

    thread = threading.Thread(target=run)
    with pruning(tmp_path):
        thread.start()
        asking.wait(10)
        thread.join(0.2)
        assert thread.is_alive()
        assert not held
    thread.join(10)
    assert not thread.is_alive()
    with pytest.raises(StorageError, match="a run is using it"), pruning(tmp_path):
        pass
    os.close(held[0])


def test_an_error_while_pruning_ends_it(tmp_path):
    with pytest.raises(BlockingIOError), pruning(tmp_path):
        raise BlockingIOError
    with pytest.raises(KeyboardInterrupt), pruning(tmp_path):
        raise KeyboardInterrupt
    os.close(hold(tmp_path))


def test_a_cache_that_cannot_be_locked_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    place = tmp_path / "file"
    for use in hold, lambda cache: pruning(cache).__enter__():
        with pytest.raises(StorageError) as caught:
            use(place)
        assert str(caught.value) == f"{place}/locks/in-use.lock: cannot lock it: Not a directory"

    def no_locks(*_):
        raise OSError(37, os.strerror(37))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for use in hold, lambda cache: pruning(cache).__enter__():
        with pytest.raises(StorageError, match=r"in-use\.lock: cannot lock it: No locks available"):
            use(tmp_path)
