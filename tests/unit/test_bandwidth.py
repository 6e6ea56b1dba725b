"""How memory is read for its bandwidth: how much, by whom, and what the figure is made of."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice.probe import bandwidth
from pytest_ondevice.probe.bandwidth import (
    LEAST,
    MIB,
    MOST,
    array_bytes,
    cache_bytes,
    read_bandwidth,
    slices,
)
from pytest_ondevice.probe.memory import status


@settings(deadline=None)
@given(st.integers(1, 64), st.integers(0, 10_000))
def test_slices_cover_every_element_once(threads, more):
    size = threads + more
    found = slices(size, threads)
    assert len(found) == threads
    assert [place for one in found for place in range(size)[one]] == list(range(size))
    lengths = {one.stop - one.start for one in found}
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_are_at_least_one(threads):
    with pytest.raises(ValueError, match=f"{threads} threads read nothing"):
        slices(100, threads)
    with pytest.raises(ValueError, match=f"{threads} threads read nothing"):
        read_bandwidth(threads, MIB)


def test_there_is_something_to_read():
    with pytest.raises(ValueError, match="24 bytes are less than 8 for each of 4 threads"):
        read_bandwidth(4, 31)
    with pytest.raises(ValueError, match="0 repetitions measure nothing"):
        read_bandwidth(1, MIB, 0)


class Clock:
    """Ticks as told, and sees how much memory the process holds at each reading."""

    def __init__(self, *seconds):
        self.left = list(seconds)
        self.held = []

    def __call__(self):
        if sys.platform == "linux":
            self.held.append(status()["RssAnon"])
        return self.left.pop(0)


@pytest.mark.parametrize(
    ("seconds", "best"), [([1.0, 1.5], 0.5), ([0.0, 2.0, 5.0, 5.25, 10.0, 11.0], 0.25)]
)
@pytest.mark.parametrize("threads", [1, 3])
def test_it_is_bytes_over_the_best_time(seconds, best, threads):
    clock = Clock(*seconds)
    found = read_bandwidth(threads, MIB, len(seconds) // 2, clock=clock)
    assert found == MIB / best
    assert not clock.left


def test_only_whole_elements_are_read():
    assert read_bandwidth(1, 8 * 1000 + 7, 1, clock=Clock(0.0, 1.0)) == 8000.0


def test_its_own_clock_gives_a_speed():
    # From an ancient disk to far more than any memory: that the unit is bytes/s.
    assert 1e7 < read_bandwidth(1, 16 * MIB, 2) < 1e14


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_array_is_in_memory_while_it_is_read_and_not_afterwards():
    before = status()["RssAnon"]
    clock = Clock(*range(4))
    read_bandwidth(2, 64 * MIB, 2, clock=clock)
    after = status()["RssAnon"]
    assert min(clock.held) - before > 60 * MIB
    assert after - before < 8 * MIB


def test_every_element_is_read_within_each_repetition_by_as_many_threads(monkeypatch):
    """Its threads meet in each repetition, so none reads two stretches, and all are read."""
    threads, size = 3, 1000
    meeting = threading.Barrier(threads, timeout=20)
    seen, now = [], []

    class Array(np.ndarray):
        def max(self, *args, **kwargs):
            meeting.wait()
            start = self.__array_interface__["data"][0] - base[0]
            now.append((start, start + self.nbytes))
            return super().max(*args, **kwargs)

    base = []

    def empty(size, dtype):
        made = np.zeros(size, dtype).view(Array)
        base.append(made.__array_interface__["data"][0])
        return made

    def clock():
        seen.append(sorted(now))
        now.clear()
        return float(len(seen))

    monkeypatch.setattr(bandwidth.np, "empty", empty)
    assert read_bandwidth(threads, 8 * size, 2, clock=clock) == 8.0 * size
    expected = [(8 * one.start, 8 * one.stop) for one in slices(size, threads)]
    # Before and after each of two repetitions: what was read since the clock was last looked at.
    assert seen == [[], expected, [], expected]


# How much is read


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine's files: no cache, and 64 GiB available."""
    monkeypatch.setattr(bandwidth, "CPUS", tmp_path)
    monkeypatch.setattr(bandwidth, "MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text(
        "MemTotal: 99999999 kB\nMemFree: 1 kB\nMemAvailable:   67108864 kB\n"
    )
    return tmp_path


def cache(machine, cpu, index, level, size, shared):
    folder = machine / f"cpu{cpu}" / "cache" / f"index{index}"
    folder.mkdir(parents=True)
    for name, value in (("level", level), ("size", size), ("shared_cpu_list", shared)):
        if value is not None:
            (folder / name).write_text(f"{value}\n")


def test_a_cache_that_is_shared_counts_once(machine):
    for cpu in range(4):
        cache(machine, cpu, 0, 1, "32K", cpu)
        cache(machine, cpu, 1, 2, "64M", cpu)
        cache(machine, cpu, 2, 3, "32768K", "0-3")
    assert cache_bytes() == 32 * MIB
    assert array_bytes() == LEAST


def test_every_cache_of_the_last_level_counts(machine):
    for cpu in range(6):
        cache(machine, cpu, 0, 2, "1024K", cpu)
        cache(machine, cpu, 3, 3, "49152K", "0-1" if cpu < 2 else "2-3" if cpu < 4 else "4-5")
    assert cache_bytes() == 144 * MIB
    assert array_bytes() == 576 * MIB


@pytest.mark.parametrize(
    ("size", "expected"),
    [("1024K", LEAST), ("65536K", LEAST), ("100M", 400 * MIB), ("1G", MOST), ("104857600", None)],
)
def test_the_array_is_four_times_the_cache_within_limits(machine, size, expected):
    cache(machine, 0, 0, 3, size, "0")
    assert array_bytes() == (expected or 400 * MIB)


@pytest.mark.parametrize("broken", ["level", "size"])
@pytest.mark.parametrize("value", [None, "", "large"])
def test_a_cache_that_tells_nothing_is_left_out(machine, broken, value):
    known = {"level": 3, "size": "512M"} | {broken: value}
    cache(machine, 0, 0, known["level"], known["size"], "0")
    assert cache_bytes() == 0
    assert array_bytes() == LEAST


@pytest.mark.parametrize(("available", "expected"), [(400, 100), (1024, 256), (2048, 256)])
def test_a_quarter_of_what_is_available_is_the_most(machine, available, expected):
    (machine / "meminfo").write_text(f"MemAvailable: {available * 1024} kB\n")
    assert array_bytes() == expected * MIB


@pytest.mark.parametrize(
    "text", [None, "", "MemTotal: 5 kB\n", "MemAvailable:\n", "MemAvailable: x"]
)
def test_where_the_system_does_not_tell_what_is_available(machine, text):
    (machine / "meminfo").unlink()
    if text is not None:
        (machine / "meminfo").write_text(text)
    assert array_bytes() == LEAST


def test_by_default_it_reads_what_this_machine_asks_for(machine):
    (machine / "meminfo").write_text("MemAvailable: 4096 kB\n")
    assert read_bandwidth(2, repetitions=1, clock=Clock(0.0, 1.0)) == float(MIB)
