"""Tiers and boards: what makes one, what it is called, and that it names nobody's machine."""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ondevice import tier as module
from pytest_ondevice.model.device import Device, Runtime
from pytest_ondevice.storage.baselines import PORTABLE, differences
from pytest_ondevice.tier import board, isa, tier

XEON = Device(
    system="Linux",
    machine="x86_64",
    cpu="Intel(R) Xeon(R) Processor @ 2.50GHz",
    cores=4,
    memory=16 << 30,
    python="3.12.1",
    libc="glibc 2.36",
)
RUNTIME = Runtime(name="llama.cpp", version="llama-cpp-python 0.3.36", digest="0123456789abcdef")

X86 = """\
processor\t: 0
model name\t: A CPU
cpu MHz\t\t: {mhz}
flags\t\t: fpu sse avx ssse3 avx2 fma f16c avx512f{more}

processor\t: 1
model name\t: A CPU
cpu MHz\t\t: 800.1
flags\t\t: fpu sse avx ssse3 avx2 fma f16c avx512f{more}
"""
ARM = """\
processor\t: 0
Features\t: fp asimd asimdhp asimddp i8mm
CPU part\t: 0xd05

processor\t: 1
Features\t: fp asimd asimdhp asimddp
CPU part\t: 0xd0b

processor\t: 2
Features\t: fp asimd asimdhp asimddp
CPU part\t: 0xd0b
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine's files, in a folder; as made, it has one CPU, an id and no governor."""
    (tmp_path / "cpuinfo").write_text(X86.format(mhz="2500.0", more=""))
    (tmp_path / "id").write_text("0123456789abcdef0123456789abcdef\n")
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(module, "GOVERNORS", tmp_path / "cpus")
    monkeypatch.setattr(module, "IDS", (tmp_path / "id", tmp_path / "dbus"))
    monkeypatch.setattr(module, "NETWORKS", tmp_path / "net")
    return tmp_path


def made(device=XEON, runtime=RUNTIME, threads=2, gpu_layers=0, name=None):
    return tier(device, runtime, threads, gpu_layers, name)


def set_governors(machine, *names):
    for number, name in enumerate(names):
        folder = machine / "cpus" / f"cpu{number}" / "cpufreq"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scaling_governor").write_text(f"{name}\n")


# The fields


def test_the_fields_are_named(machine):
    set_governors(machine, "performance", "performance")
    assert made().fields == {
        "cpu": "Intel(R) Xeon(R) Processor @ 2.50GHz",
        "cores": "",
        "machine": "x86_64",
        "isa": "ssse3+avx+avx2+f16c+fma+avx512f",
        "threads": 2,
        "gpu_layers": 0,
        "memory": "16 GiB",
        "os": "Linux",
        "governor": "performance",
        "runtime": "0123456789abcdef",
    }


def other(**fields):
    return {"device": msgspec.structs.replace(XEON, **fields)}


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("cpu", other(cpu="AMD EPYC 7B12")),
        ("machine", other(machine="aarch64")),
        ("memory", other(memory=8 << 30)),
        ("os", other(system="Darwin")),
        ("threads", {"threads": 3}),
        ("gpu_layers", {"gpu_layers": 12}),
        ("runtime", {"runtime": msgspec.structs.replace(RUNTIME, digest="f" * 16)}),
    ],
)
def test_each_field_makes_another_tier(machine, field, change):
    here, there = made(), made(**change)
    assert here.name != there.name
    (said,) = differences(there.fields, here.fields)
    assert said.startswith(f"{field} ")


def test_the_isa_the_cores_and_the_governor_make_other_tiers(machine):
    names = {made().name}
    (machine / "cpuinfo").write_text(X86.format(mhz="2500.0", more=" avx512_vnni"))
    names.add(made().name)
    set_governors(machine, "powersave")
    names.add(made().name)
    (machine / "cpuinfo").write_text(ARM)
    assert made().fields["cores"] == "0xd05+0xd0b"
    names.add(made().name)
    assert len(names) == 4


@pytest.mark.parametrize(
    "change",
    [
        other(python="3.14.0"),
        other(libc="musl"),
        other(cores=64),
        other(memory=(16 << 30) - 500_000_000),
        {"runtime": msgspec.structs.replace(RUNTIME, system_info="AVX = 1")},
    ],
)
def test_what_speed_does_not_depend_on_makes_no_other_tier(machine, change):
    assert made(**change) == made()


def test_the_clock_of_the_moment_makes_no_other_tier(machine):
    before = made()
    (machine / "cpuinfo").write_text(X86.format(mhz="1234.5", more=""))
    assert made() == before


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "unknown"),
        (400 << 20, "512 MiB"),
        (970 << 20, "1 GiB"),
        (7_900_000_000, "8 GiB"),
        (16_500_000_000, "16 GiB"),
        (33_000_000_000, "32 GiB"),
        (1 << 41, "2048 GiB"),
    ],
)
def test_memory_is_rounded_to_a_power_of_two(machine, size, said):
    assert made(**other(memory=size)).fields["memory"] == said


def test_an_isa_class_is_what_all_cores_have(machine):
    (machine / "cpuinfo").write_text(ARM)
    assert isa() == "asimd+asimdhp+asimddp"
    (machine / "cpuinfo").write_text("flags : fpu sse\n")
    assert isa() == "baseline"
    (machine / "cpuinfo").unlink()
    assert isa() == "unknown"


def test_governors_that_differ_are_all_named(machine):
    assert made().fields["governor"] == "none"
    set_governors(machine, "schedutil", "performance", "schedutil")
    assert made().fields["governor"] == "performance+schedutil"


# The derived name


@pytest.mark.parametrize(
    ("device", "gpu_layers", "begins"),
    [
        ({}, 0, "x86_64-intel-xeon-2.50ghz-2t-"),
        ({}, 9999, "x86_64-intel-xeon-2.50ghz-2t-gpu-"),
        ({"cpu": "AMD Ryzen 7 5800X 8-Core Processor"}, 0, "x86_64-amd-ryzen-7-5800x-2t-"),
        ({"cpu": "aarch64", "machine": "aarch64"}, 0, "aarch64-2t-"),
        ({"cpu": "", "machine": ""}, 0, "machine-cpu-2t-"),
        ({"cpu": "処理装置", "machine": "x86_64"}, 0, "x86_64-cpu-2t-"),
        ({"cpu": "../../etc: a*b?"}, 0, "x86_64-etc-a-b-2t-"),
    ],
)
def test_the_name_can_be_read(machine, device, gpu_layers, begins):
    name = made(**other(**device), gpu_layers=gpu_layers).name
    assert re.fullmatch(re.escape(begins) + "[0-9a-f]{6}", name), name


@given(cpu=st.text(max_size=200), machine=st.text(max_size=80), threads=st.integers(1, 512))
def test_every_derived_name_is_a_folders(cpu, machine, threads):
    name = made(**other(cpu=cpu, machine=machine), threads=threads, gpu_layers=1).name
    assert re.fullmatch(r"[a-z0-9_][a-z0-9._-]*-[0-9a-f]{6}", name, re.ASCII)
    assert len(name) <= module.LONGEST
    # Whatever is derived could be given too.
    assert made(name=name).name == name


def test_the_longest_derived_name_is_short_enough(machine):
    change = other(cpu="long name of a cpu " * 9, machine="m" * 99)
    name = made(**change, threads=512, gpu_layers=1).name
    assert name.startswith("mmmmmmmmmmmm-long-name-of-a-long-name-of-a-lo-512t-gpu-")
    assert len(name) <= module.LONGEST


# A given name


def test_a_given_name_decides_and_the_fields_are_kept(machine):
    here = made(name="lab-pi5")
    there = made(name="lab-pi5", threads=4)
    assert here.name == there.name == "lab-pi5"
    assert here.fields == made().fields
    assert differences(there.fields, here.fields) == ["threads 4 there, 2 here"]


@pytest.mark.parametrize("name", ["a", "Pi_5.rev-2", "-", "0", "x" * 64, "portable2", "a.."])
def test_good_names(machine, name):
    assert made(name=name).name == name
    assert board(name) == name


LETTERS = r"a {}'s name is letters, digits, '\.', '_' and '-', not "
BAD = {
    "": r"a {}'s name is not empty",
    "a/b": LETTERS + "'/'",
    "a\\b": LETTERS + r"'\\\\'",
    "a b": LETTERS + "' '",
    "a\n": LETTERS + r"'\\n'",
    "läb": LETTERS + "'ä'",
    "٣": LETTERS + "'٣'",
    "a:b": LETTERS + "':'",
    ".a": r"a {}'s name does not start with '\.'",
    "..": r"a {}'s name does not start with '\.'",
    "x" * 65: r"a {}'s name has at most 64 characters, this has 65",
}


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_bad_names_are_one_clause(machine, name):
    with pytest.raises(ValueError, match=f"^{BAD[name].format('tier')}$"):
        made(name=name)
    with pytest.raises(ValueError, match=f"^{BAD[name].format('board')}$"):
        board(name)


@pytest.mark.parametrize("name", ["portable", "Portable", "PORTABLE"])
def test_the_folder_of_what_travels_is_no_tier(machine, name):
    said = rf"^'{name}' is the folder of the baselines that travel, so no tier's$"
    with pytest.raises(ValueError, match=said):
        made(name=name)
    assert board(name) == name


def test_the_reserved_name_is_the_folders():
    assert module.RESERVED == PORTABLE


# Boards


def test_a_board_is_a_digest_and_not_the_id(machine):
    assert re.fullmatch("[0-9a-f]{12}", board(None))
    assert board(None) not in "0123456789abcdef0123456789abcdef"


def test_another_id_is_another_board(machine):
    first = board(None)
    (machine / "id").write_text("fedcba9876543210fedcba9876543210\n")
    assert board(None) != first
    # As some systems write it: with a zero at the end, or none.
    (machine / "id").write_text("0123456789abcdef0123456789abcdef\0")
    assert board(None) == first


@pytest.mark.parametrize("text", ["", "\n", "uninitialized\n", "0" * 32])
def test_an_id_that_is_none_is_passed_over(machine, text):
    (machine / "id").write_text("c0ffee\n")
    expected = board(None)
    (machine / "id").write_text(text)
    (machine / "dbus").write_text("c0ffee\n")
    assert board(None) == expected


def test_without_an_id_the_hardwares_addresses_tell_machines_apart(machine):
    (machine / "id").unlink()

    def interface(name, address, *, hardware):
        folder = machine / "net" / name
        (folder / "device" if hardware else folder).mkdir(parents=True, exist_ok=True)
        (folder / "address").write_text(f"{address}\n")

    interface("lo", "00:00:00:00:00:00", hardware=True)
    bare = board(None)
    interface("eth0", "02:00:00:00:00:01", hardware=True)
    first = board(None)
    interface("docker0", "02:42:00:00:00:99", hardware=False)
    assert board(None) == first != bare
    interface("eth0", "02:00:00:00:00:02", hardware=True)
    assert board(None) != first


def test_without_anything_a_board_still_outlives_a_boot(machine):
    (machine / "id").unlink()
    before = board(None)
    (machine / "cpuinfo").write_text(X86.format(mhz="1234.5", more=""))
    assert board(None) == before
    (machine / "cpuinfo").write_text(X86.format(mhz="1", more="").replace("A CPU", "Another"))
    assert board(None) != before


def test_this_machine_is_the_same_in_every_process_and_not_named():
    code = "from pytest_ondevice.tier import board; print(board(None))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert there.stdout.strip() == board(None)
    said = f"{board(None)} {made()}"
    for name in {socket.gethostname(), platform.node()} - {""}:
        assert re.search(rf"\b{re.escape(name)}\b", said) is None
