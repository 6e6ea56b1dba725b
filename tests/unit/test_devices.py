"""The lock around a probe, between real processes, and what is said of a machine."""

from __future__ import annotations

import getpass
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from pytest_ondevice import devices
from pytest_ondevice.devices import (
    available_memory,
    device,
    lock_path,
    locked,
    runtime,
)
from pytest_ondevice.errors import StorageError

HOLDER = """
import sys, time
from pathlib import Path
from pytest_ondevice.devices import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
print("released", flush=True)
"""

COUNTER = """
import sys, time
from pathlib import Path
from pytest_ondevice import devices

devices.WAIT_SECONDS = 0.001
lock, counter, inside = (Path(name) for name in sys.argv[1:4])
for _ in range(25):
    with devices.locked(lock):
        assert not inside.exists(), "two at once"
        inside.touch()
        seen = int(counter.read_text())
        time.sleep(0.001)
        counter.write_text(str(seen + 1))
        inside.unlink()
"""


@pytest.fixture
def holder(tmp_path):
    """Start processes that hold the lock; each is running when it is returned."""
    started = []

    def start(path, seconds=60.0):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path), str(seconds)],
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(devices, "WAIT_SECONDS", 0.01)


class Waiting:
    """Counts how often it is asked; gives up after ``patience`` times."""

    def __init__(self, patience=3):
        self.asked = 0
        self.patience = patience

    def __call__(self):
        self.asked += 1
        assert self.asked <= self.patience, "asked again after giving up"
        return self.asked >= self.patience


# The lock


def test_a_free_lock_is_taken_at_once(tmp_path):
    waiting = Waiting()
    with locked(tmp_path / "deep" / "lock", waiting) as descriptor:
        assert isinstance(descriptor, int)
        os.fstat(descriptor)
    assert waiting.asked == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_lock_is_free_again_afterwards(tmp_path):
    for _ in range(3):
        with locked(tmp_path / "lock", Waiting()) as descriptor:
            assert descriptor is not None
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock"):
        raise ZeroDivisionError
    with locked(tmp_path / "lock", Waiting()) as descriptor:
        assert descriptor is not None


def test_processes_exclude_each_other(tmp_path):
    lock, counter, inside = (tmp_path / name for name in ("lock", "counter", "inside"))
    counter.write_text("0")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COUNTER, str(lock), str(counter), str(inside)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    try:
        told = [process.communicate(timeout=40)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stderr.close()
    assert told == ["", "", ""]
    assert counter.read_text() == "75"


def test_two_in_one_process_exclude_each_other(tmp_path, quick):
    # The lock belongs to the open file, not to the process.
    with (
        locked(tmp_path / "lock") as first,
        locked(tmp_path / "lock", Waiting()) as second,
    ):
        assert first is not None
        assert second is None


def test_who_waits_may_give_up(tmp_path, holder, quick):
    process = holder(tmp_path / "lock")
    waiting = Waiting(patience=4)
    with locked(tmp_path / "lock", waiting) as descriptor:
        assert descriptor is None
    assert waiting.asked == 4
    assert process.poll() is None
    # Giving up has not disturbed the holder's lock.
    with locked(tmp_path / "lock", Waiting()) as descriptor:
        assert descriptor is None


def test_a_waiter_that_raises_is_out(tmp_path, holder, quick):
    holder(tmp_path / "lock")

    def interrupt():
        raise KeyboardInterrupt

    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "lock", interrupt):
        pytest.fail("the lock is another's")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_who_waits_gets_the_lock_when_it_is_released(tmp_path, holder, quick):
    process = holder(tmp_path / "lock", 0.5)
    with locked(tmp_path / "lock", Waiting(patience=10_000)) as descriptor:
        assert descriptor is not None
        # "released" follows the lock's end; the holder need not have said it yet.
        assert process.stdout.readline() == "released\n"


def test_a_killed_holder_holds_nothing(tmp_path, holder, quick):
    process = holder(tmp_path / "lock")
    begin = time.monotonic()

    def kill():
        process.send_signal(signal.SIGKILL)
        return time.monotonic() - begin > 10

    with locked(tmp_path / "lock", kill) as descriptor:
        assert descriptor is not None
    assert process.wait() == -signal.SIGKILL


def test_a_lock_is_not_passed_on_unasked(tmp_path):
    with locked(tmp_path / "lock") as descriptor:
        assert not os.get_inheritable(descriptor)


def test_what_is_in_a_lock_file_is_left_alone(tmp_path):
    (tmp_path / "lock").write_text("somebody's file")
    with locked(tmp_path / "lock"):
        pass
    assert (tmp_path / "lock").read_text() == "somebody's file"


def test_every_user_can_lock(tmp_path):
    before = os.umask(0o077)
    try:
        with locked(tmp_path / "lock"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o666


@pytest.mark.parametrize("target", ["victim", "not there"])
def test_a_symlink_is_refused(tmp_path, target):
    # In a folder that everybody may write, a link would be somebody's trap.
    (tmp_path / "victim").write_text("precious")
    path = tmp_path / "lock"
    path.symlink_to(tmp_path / target)
    with pytest.raises(StorageError, match=rf"^{re.escape(str(path))}: cannot lock it: "):
        locked(path).__enter__()
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "not there").exists()


@pytest.mark.parametrize("what", ["a link", "a file"])
def test_what_appears_while_the_lock_is_made_is_left_alone(tmp_path, monkeypatch, what):
    victim, path = tmp_path / "victim", tmp_path / "lock"
    victim.write_text("precious")
    real = os.open

    def racing(name, flags, *mode):
        try:
            return real(name, flags, *mode)
        except FileNotFoundError:
            if what == "a link":
                path.symlink_to(victim)
            else:
                path.write_text("precious")
            raise

    monkeypatch.setattr(devices.os, "open", racing)
    if what == "a link":
        with pytest.raises(StorageError, match="cannot lock it: "):
            locked(path).__enter__()
    else:
        with locked(path, Waiting()) as descriptor:
            assert descriptor is not None
        assert path.read_text() == "precious"
    assert victim.read_text() == "precious"
    monkeypatch.undo()


@pytest.mark.parametrize("in_the_way", ["lock", "folder"])
def test_a_lock_that_cannot_be_opened_is_one_sentence(tmp_path, in_the_way):
    if in_the_way == "lock":
        (tmp_path / "folder" / "lock").mkdir(parents=True)
    else:
        (tmp_path / "folder").write_text("")
    path = tmp_path / "folder" / "lock"
    with pytest.raises(StorageError, match=rf"^{re.escape(str(path))}: cannot lock it: [A-Z]"):
        locked(path).__enter__()


def test_the_lock_has_one_place_on_a_machine(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTEST_ONDEVICE_LOCK_DIR", raising=False)
    assert lock_path() == lock_path()
    assert lock_path().name == "pytest-ondevice-local.lock"
    assert lock_path().is_absolute()
    monkeypatch.setenv("PYTEST_ONDEVICE_LOCK_DIR", str(tmp_path))
    assert lock_path() == tmp_path / "pytest-ondevice-local.lock"


# What is said of the machine


@pytest.fixture
def fresh():
    """Describe anew, and forget it afterwards."""
    for cached in (device, runtime, devices.runtime_knows):
        cached.cache_clear()
    yield
    for cached in (device, runtime, devices.runtime_knows):
        cached.cache_clear()


def test_nothing_names_the_machine_or_its_user(fresh, monkeypatch):
    # Names that cannot be in a description by chance, from everywhere they could come from.
    host, user = "zq-host-7f3a", "zq-user-91bc"
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    monkeypatch.setattr(getpass, "getuser", lambda: user)
    monkeypatch.setattr(devices.platform, "node", lambda: host)
    real = os.uname()
    faked = os.uname_result((real.sysname, host, real.release, real.version, real.machine))
    monkeypatch.setattr(os, "uname", lambda: faked)
    # platform.processor() starts a uname of its own; what it says is remembered.
    monkeypatch.setattr(devices.platform, "_uname_cache", None, raising=False)
    for name in ("USER", "LOGNAME", "USERNAME", "HOSTNAME", "HOME"):
        monkeypatch.setenv(name, f"/home/{user}")
    said = msgspec.json.encode([device(), runtime()]).decode()
    assert host not in said
    assert user not in said
    for path in (str(Path.home()), sys.prefix, str(Path(devices.__file__).parent)):
        assert path not in said


def test_the_description_is_of_this_machine(fresh):
    found = device()
    assert found.system == sys.platform.capitalize()
    assert found.cores == len(os.sched_getaffinity(0))
    assert found.memory == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found.cpu
    assert found.cpu == found.cpu.strip()
    assert found.python == ".".join(map(str, sys.version_info[:3]))


def test_available_memory_is_less_than_all():
    assert 0 < available_memory() < device().memory


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\nmodel name\t: An x86 CPU @ 3 GHz\nflags: a\n", "An x86 CPU @ 3 GHz"),
        ("processor : 0\nBogoMIPS : 1\n\nHardware\t: BCM2835\nModel\t: A Pi 5\n", "BCM2835"),
        ("model\t\t: 85\nmodel name\t: A CPU\n", "A CPU"),
    ],
)
def test_the_name_of_the_processor(monkeypatch, text, name):
    monkeypatch.setattr(devices, "_lines", lambda _: text.splitlines())
    assert devices._cpu_name() == name


def test_a_machine_that_tells_nothing_is_described_all_the_same(fresh, monkeypatch):
    monkeypatch.setattr(devices, "_lines", lambda _: [])
    assert device().memory == 0
    assert device().cpu
    assert available_memory() is None


# The runtime


@pytest.fixture
def package(tmp_path, monkeypatch, fresh):
    """An installed llama_cpp that fails when it is imported."""
    folder = tmp_path / "site" / "llama_cpp"
    (folder / "lib").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "lib" / "libllama.so").write_bytes(b"code")
    (folder / "lib" / "libggml.so").write_bytes(b"more")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    return folder / "lib"


def digest():
    runtime.cache_clear()
    return runtime().digest


def test_the_runtime_is_known_by_its_libraries(package):
    first = digest()
    assert re.fullmatch(r"[0-9a-f]{16}", first)
    assert runtime().name == "llama.cpp"
    assert "llama_cpp" not in sys.modules
    assert digest() == first
    (package / "libllama.so").write_bytes(b"Code")
    changed = digest()
    assert changed != first
    (package / "libllama.so").write_bytes(b"code")
    assert digest() == first
    (package / "libggml.so").rename(package / "libggml2.so")
    assert digest() not in {first, changed}


def test_links_to_libraries_are_not_counted_twice(package):
    first = digest()
    (package / "libllama.so.1").symlink_to("libllama.so")
    (package / "folder").mkdir()
    assert digest() == first


def test_where_a_package_lies_does_not_matter(package, tmp_path, monkeypatch):
    first = digest()
    (tmp_path / "site").rename(tmp_path / "elsewhere")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    assert digest() == first


def test_the_runtime_knows_what_its_library_names(package):
    (package / "libllama.so").write_bytes(b"\0llama\0qwen2moe\0")
    assert devices.runtime_knows("llama")
    assert devices.runtime_knows("qwen2moe")
    assert not devices.runtime_knows("qwen2")
    assert not devices.runtime_knows("gemma9")


def test_a_runtime_without_a_library_is_asked_itself(package):
    (package / "libllama.so").unlink()
    assert devices.runtime_knows("anything")


def test_without_a_runtime(fresh, monkeypatch):
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda _: None)
    assert msgspec.to_builtins(runtime()) == {
        "name": "llama.cpp",
        "version": "none",
        "digest": "",
        "system_info": "",
    }
