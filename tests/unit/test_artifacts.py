"""The artifact store and the atomic files under it: what is read is whole, or is not there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import subprocess
import time
from collections import namedtuple

import gguf
import msgspec
import numpy as np
import pytest

from pytest_ondevice.errors import BadFileError, StorageError
from pytest_ondevice.storage import files
from pytest_ondevice.storage.artifacts import STALE_SECONDS, ArtifactStore, Recipe
from pytest_ondevice.storage.files import megabytes, require_space, sha256_of, write_atomic

RECIPE = Recipe(
    sha256="",
    size=0,
    source_sha256="5" * 64,
    source_type="F16",
    method="Q8_0",
    runtime="llama-cpp-python 0.3.36",
    runtime_digest="d" * 16,
    wall_time=1.5,
    cpu_time=2.5,
    peak_memory=1000,
)


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "cache")


@pytest.fixture
def counted(monkeypatch):
    """Count how often a file is really digested."""
    calls = []
    real = hashlib.file_digest

    def digest(file, name):
        calls.append(file.name)
        return real(file, name)

    monkeypatch.setattr(files.hashlib, "file_digest", digest)
    return calls


def write_model(path, fill=0):
    """Write a small model; ``fill`` makes others of the same size."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_tensor("blk.0.ffn_up.weight", np.full((4, 64), fill, np.float16))
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(store, key="key", fill=0):
    return store.add(key, write_model(store.new_file(), fill), RECIPE)


def everything(store):
    """What the store keeps, without its remembered digests."""
    kept = {path.relative_to(store.cache).parts[0] for path in store.cache.rglob("*.*")}
    return kept - {"digests"}


# Keeping and finding


def test_what_was_added_is_found(store):
    part = write_model(store.new_file())
    content = part.read_bytes()
    path, recipe = store.add("key", part, RECIPE)
    digest = hashlib.sha256(content).hexdigest()
    assert path.read_bytes() == content
    assert path.name == f"{digest}.gguf"
    assert recipe == msgspec.structs.replace(RECIPE, sha256=digest, size=len(content))
    assert store.find("key") == (path, recipe)
    assert not part.exists()
    # Another session, which remembers nothing of it.
    assert ArtifactStore(store.cache).find("key") == (path, recipe)


def test_recipes_are_apart_and_share_what_is_equal(store):
    first, _ = add(store, "one", fill=0)
    second, _ = add(store, "two", fill=1)
    third, _ = add(store, "three", fill=1)
    assert first != second == third
    assert store.find("one")[0] == first
    assert store.find("two")[0] == store.find("three")[0] == second
    assert store.find("four") is None


def test_a_recipe_made_again_replaces_the_old_one(store):
    first, _ = add(store, fill=0)
    second, _ = add(store, fill=1)
    assert store.find("key")[0] == second != first


@pytest.mark.parametrize("keep", [0, 3, 24, 100, -1])
def test_a_truncated_file_is_refused(store, keep):
    part = write_model(store.new_file())
    content = part.read_bytes()
    part.write_bytes(content[:keep])
    with pytest.raises(BadFileError, match=f"^{part.name}: the quantized file is damaged: "):
        store.add("key", part, RECIPE)
    assert store.find("key") is None
    # Only the file itself is left, which is for whoever made it to remove.
    assert everything(store) == {"tmp"}
    part.unlink()
    assert everything(store) == set()


def test_a_file_that_was_never_written_is_refused(store):
    with pytest.raises(BadFileError, match="the quantized file is damaged: "):
        store.add("key", store.new_file(), RECIPE)
    assert store.find("key") is None


def test_an_object_that_cannot_be_moved_leaves_no_recipe(store):
    part = write_model(store.new_file())
    (store.cache / "objects").write_text("in the way")
    with pytest.raises(StorageError, match="cannot keep it: "):
        store.add("key", part, RECIPE)
    assert part.exists()
    assert store.find("key") is None


def test_a_recipe_that_cannot_be_written_is_an_error(store):
    (store.cache / "recipes" / "key.json").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"recipes/key\.json: cannot write it: "):
        add(store)
    assert store.find("key") is None


# Damage done later


def test_a_missing_object_is_none(store):
    path, _ = add(store)
    path.unlink()
    assert store.find("key") is None


@pytest.mark.parametrize("warm", [True, False], ids=["remembered", "not remembered"])
def test_a_shortened_object_is_none(store, warm):
    path, _ = add(store)
    if warm:
        assert store.find("key") is not None
    os.truncate(path, path.stat().st_size - 1)
    assert store.find("key") is None


def test_a_short_object_is_not_even_read(store, counted):
    path, _ = add(store)
    counted.clear()
    os.truncate(path, path.stat().st_size - 1)
    assert store.find("key") is None
    assert counted == []


@pytest.mark.parametrize("warm", [True, False], ids=["remembered", "not remembered"])
def test_an_altered_object_of_the_same_length_is_none(store, warm):
    path, _ = add(store)
    if warm:
        assert store.find("key") is not None
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))
    assert store.find("key") is None
    # What was altered can be made again.
    assert add(store) == store.find("key")


DAMAGE = {
    "empty": lambda text: b"",
    "cut": lambda text: text[: len(text) // 2],
    "zeros": lambda text: bytes(len(text)),
    "not UTF-8": lambda text: text.replace(b"Q8_0", b"\xff\xfe\xfd\xfc"),
    "wrong type": lambda text: text.replace(b'"wall_time":1.5', b'"wall_time":"1"'),
    "field missing": lambda text: text.replace(b'"method":"Q8_0",', b""),
    "another list": lambda text: b"[" + text + b"]",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_recipe_is_none(store, damage):
    add(store)
    (recipe,) = (store.cache / "recipes").iterdir()
    recipe.write_bytes(damage(recipe.read_bytes()))
    assert store.find("key") is None
    assert add(store) == store.find("key")


# Files under way


def test_new_files_have_names_of_their_own(store):
    names = {store.new_file() for _ in range(50)}
    assert len(names) == 50
    assert {path.suffix for path in names} == {".gguf"}
    assert not any(path.exists() for path in names)


def test_files_left_behind_are_swept_when_they_are_old(store):
    folder = store.new_file().parent
    old, fresh, sub = folder / "old.gguf", folder / "fresh.gguf", folder / "folder"
    for path, age in ((old, 60), (fresh, -60)):
        path.write_bytes(b"x")
        os.utime(path, (time.time(), time.time() - STALE_SECONDS - age))
    sub.mkdir()
    os.utime(sub, (0, 0))
    assert store.new_file().parent == folder
    assert not old.exists()
    assert fresh.exists()
    assert sub.exists()


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(StorageError, match=r"cache/tmp: cannot write it: Not a directory"):
        ArtifactStore(tmp_path / "cache").new_file()


def test_locks_lie_beside_and_are_one_per_recipe(store):
    assert store.lock_file("a") != store.lock_file("b")
    assert store.lock_file("a") == ArtifactStore(store.cache).lock_file("a")


# Remembered digests


def test_a_digest_is_computed_once(tmp_path, counted):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    expected = hashlib.sha256(b"abc").hexdigest()
    assert [sha256_of(path, tmp_path / "cache") for _ in range(3)] == [expected] * 3
    assert len(counted) == 1


def test_a_remembered_digest_is_taken_without_reading(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    before = path.stat()
    first = sha256_of(path, tmp_path / "cache")
    # Same length, time and inode: the memo cannot know, which is what makes it a memo.
    path.write_bytes(b"xyz")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sha256_of(path, tmp_path / "cache") == first


@pytest.mark.parametrize("change", ["size", "time", "inode"])
def test_a_changed_file_is_digested_again(tmp_path, change):
    path, cache = tmp_path / "file", tmp_path / "cache"
    path.write_bytes(b"abc")
    sha256_of(path, cache)
    before = path.stat()
    content = b"abcd" if change == "size" else b"xyz"
    if change == "inode":
        other = tmp_path / "other"
        other.write_bytes(content)
        other.replace(path)
    else:
        path.write_bytes(content)
    shift = 1 if change == "time" else 0
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + shift))
    assert sha256_of(path, cache) == hashlib.sha256(content).hexdigest()


def test_files_of_the_same_name_have_their_own_digests(tmp_path, counted):
    paths = {content: tmp_path / content.hex() / "file" for content in (b"1", b"2")}
    for content, path in paths.items():
        path.parent.mkdir()
        path.write_bytes(content)
    for _ in range(3):
        for content, path in paths.items():
            assert sha256_of(path, tmp_path / "cache") == hashlib.sha256(content).hexdigest()
    assert len(counted) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"size":3}', b'{"sha256":"\xff"}'])
def test_a_damaged_memo_is_no_memo(tmp_path, content):
    path, cache = tmp_path / "file", tmp_path / "cache"
    path.write_bytes(b"abc")
    expected = sha256_of(path, cache)
    (memo,) = (cache / "digests").iterdir()
    memo.write_bytes(content)
    assert sha256_of(path, cache) == expected
    assert msgspec.json.decode(memo.read_bytes())["sha256"] == expected


# Space


def test_too_little_space_is_said_with_both_figures(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    asked = []

    def disk_usage(path):
        asked.append(path)
        return usage(10, 0, 999_000_000)

    monkeypatch.setattr(files.shutil, "disk_usage", disk_usage)
    folder = tmp_path / "not" / "yet" / "there"
    with pytest.raises(StorageError) as caught:
        require_space(folder, 1_540_000_000, "quantizing m to Q8_0")
    assert str(caught.value) == (
        f"{folder}: quantizing m to Q8_0 needs 1.5 GB, the disk has 999 MB free; free some or"
        " choose another folder with --ondevice-cache=DIR"
    )
    require_space(folder, 999_000_000, "exactly")
    assert asked == [tmp_path, tmp_path]
    assert not folder.exists()


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 MB"), (1_499_999, "1 MB"), (999_000_000, "999 MB"), (1e9, "1.0 GB"), (25e9, "25.0 GB")],
)
def test_megabytes(size, text):
    assert megabytes(size) == text


# Atomic writes


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file.json"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert leftovers(path.parent) == ["file.json"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_other_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "file", b"x")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def test_readers_never_see_half_a_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    seen = []
    real = os.fsync

    def fsync(descriptor):
        seen.append(path.read_bytes())
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", fsync)
    write_atomic(path, b"new")
    assert seen == [b"old"]
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("old", [b"old", None], ids=["over another", "new"])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["full disk", "interrupted"],
)
def test_a_failure_in_the_middle_keeps_the_old_content(
    tmp_path, monkeypatch, step, old, error, raised
):
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)

    def fail(*_):
        raise error

    target = files.os if step == "fsync" else files.Path
    monkeypatch.setattr(target, step, fail)
    with pytest.raises(raised) as caught:
        write_atomic(path, b"new")
    monkeypatch.undo()
    if raised is StorageError:
        assert str(caught.value) == f"{path}: cannot write it: No space left on device"
    assert leftovers(tmp_path) == ([] if old is None else ["file"])
    assert old is None or path.read_bytes() == old


def test_a_folder_in_the_way_is_one_sentence(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(StorageError, match=r"/file: cannot write it: Is a directory$"):
        write_atomic(tmp_path / "file", b"x")
    assert leftovers(tmp_path) == ["file"]


def test_a_file_for_a_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"/file/sub/x: cannot write it: Not a directory$"):
        write_atomic(tmp_path / "file" / "sub" / "x", b"x")


# A disk that is really full


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB; only root can make one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False, timeout=20)
    except OSError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip("cannot mount a small file system here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True, timeout=20)


def test_a_full_disk_keeps_the_old_content(small_disk):
    path = small_disk / "file"
    write_atomic(path, b"o" * 30_000)
    with pytest.raises(StorageError, match="cannot write it: No space left on device"):
        write_atomic(path, b"n" * 50_000)
    assert path.read_bytes() == b"o" * 30_000
    assert leftovers(small_disk) == ["file"]
    write_atomic(path, b"n" * 20_000)
    assert path.read_bytes() == b"n" * 20_000


def test_a_full_disk_keeps_no_recipe(small_disk):
    store = ArtifactStore(small_disk / "cache")
    kept = add(store, "first")
    part = write_model(store.new_file(), fill=1)
    filling = small_disk / "filling"
    with filling.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.raises(StorageError, match="No space left on device"):
        store.add("second", part, RECIPE)
    assert store.find("second") is None
    assert store.find("first") == kept
    filling.unlink()
    assert add(store, "second", fill=1) == store.find("second")
