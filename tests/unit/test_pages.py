"""What is left of a file in the page cache, asked of the kernel about real files."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pytest_ondevice.probe import pages
from pytest_ondevice.probe.pages import PagesError, drop, parts, resident

if sys.platform != "linux":
    pytest.skip("the page cache is looked into on Linux only", allow_module_level=True)

SIZE = 256 * mmap.PAGESIZE
IN_MEMORY = {"tmpfs", "ramfs", "rootfs"}

HOLDER = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    held = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    sum(held[:: mmap.PAGESIZE])
    print("held", flush=True)
    sys.stdin.read()
"""

STRANGER = """
import os, sys
from pytest_ondevice.probe import pages
os.setgroups([]), os.setgid(65534), os.setuid(65534)
for ask in (pages.drop, pages.resident):
    try:
        print(ask("theirs"))
    except pages.PagesError as error:
        print(error)
"""


def file_system(folder: Path) -> str:
    """Name the file system that a folder is on, empty if the system does not tell."""
    device = folder.stat().st_dev
    for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == f"{os.major(device)}:{os.minor(device)}":
            return rest.split()[0]
    return ""


@pytest.fixture
def disk(tmp_path):
    """A folder whose files are on a disk."""
    if file_system(tmp_path) not in IN_MEMORY:
        yield tmp_path
        return
    for base in (Path("/var/tmp"), Path(__file__).parent):
        if file_system(base) not in IN_MEMORY and os.access(base, os.W_OK):
            with tempfile.TemporaryDirectory(dir=base) as folder:
                yield Path(folder)
            return
    pytest.skip("no folder on a disk")


@pytest.fixture
def file(disk):
    """A file on a disk that was just written: in the page cache, and not on the disk yet."""
    path = disk / "model.gguf"
    path.write_bytes(os.urandom(SIZE))
    return str(path)


def read(path, n_bytes):
    """Read the beginning of a file and nothing ahead of that."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    assert len(os.pread(descriptor, n_bytes, 0)) == n_bytes
    os.close(descriptor)


def test_what_was_just_written_is_dropped(file):
    data = Path(file).read_bytes()
    assert resident(file) == 1.0
    assert drop(file) == 0.0
    assert resident(file) == 0.0
    assert drop(file) == 0.0
    assert Path(file).read_bytes() == data
    assert resident(file) == 1.0


def test_asking_brings_nothing_into_memory(file):
    drop(file)
    assert [resident(file) for _ in range(3)] == [0.0] * 3


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_a_part_of_a_file(file, share):
    drop(file)
    read(file, int(share * SIZE))
    # Some file systems keep pages in larger pieces.
    assert share <= resident(file) <= share + 0.1
    assert drop(file) == 0.0


def test_the_last_page_counts_though_it_is_not_full(disk):
    path = disk / "short"
    path.write_bytes(b"x" * (2 * mmap.PAGESIZE + 1))
    assert resident(str(path)) == 1.0
    assert drop(str(path)) == 0.0
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    os.pread(descriptor, 1, 2 * mmap.PAGESIZE)
    os.close(descriptor)
    assert resident(str(path)) in {1 / 3, 1.0}


def test_what_another_process_has_mapped_stays(file):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        assert drop(file) == 1.0
        assert resident(file) == 1.0
    assert drop(file) == 0.0


def test_a_file_of_a_file_system_in_memory_stays():
    shared = Path("/dev/shm")
    if not shared.is_dir() or file_system(shared) != "tmpfs" or not os.access(shared, os.W_OK):
        pytest.skip("no tmpfs")
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        path = Path(folder, "model.gguf")
        path.write_bytes(os.urandom(SIZE))
        assert drop(str(path)) == 1.0
        assert resident(str(path)) == 1.0


def test_a_file_that_may_only_be_read(file):
    Path(file).chmod(0o400)
    assert drop(file) == 0.0


def test_an_empty_file_has_no_pages(tmp_path):
    path = tmp_path / "empty"
    path.touch()
    assert (drop(str(path)), resident(str(path))) == (0.0, 0.0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_stranger_is_told_that_nothing_is_known(disk):
    disk.chmod(0o755)
    path = disk / "theirs"
    path.write_bytes(os.urandom(SIZE))
    path.chmod(0o644)
    drop(str(path))
    assert resident(str(path)) == 0.0
    said = subprocess.run(
        [sys.executable, "-c", STRANGER], cwd=disk, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(said) == 2
    for line in said:
        assert line.startswith("theirs: the kernel tells only its owner, and who may write to it")
    # Who may write is told.
    path.chmod(0o666)
    said = subprocess.run(
        [sys.executable, "-c", STRANGER], cwd=disk, capture_output=True, text=True, check=True
    ).stdout
    assert said == "0.0\n0.0\n"


@pytest.mark.parametrize("ask", [drop, resident])
class TestRefusals:
    def test_no_file(self, ask, tmp_path):
        with pytest.raises(PagesError, match=r"none: cannot be opened: No such file"):
            ask(str(tmp_path / "none"))

    def test_no_path(self, ask):
        with pytest.raises(PagesError, match="cannot be opened: embedded null"):
            ask("a\0b")

    def test_a_folder(self, ask, tmp_path):
        with pytest.raises(PagesError, match="is not a regular file"):
            ask(str(tmp_path))

    def test_a_pipe_without_a_writer(self, ask, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(PagesError, match="is not a regular file"):
            ask(str(tmp_path / "pipe"))

    def test_another_system(self, ask, file, monkeypatch):
        monkeypatch.setattr(sys, "platform", "darwin")
        with pytest.raises(PagesError, match="on darwin, only on Linux"):
            ask(file)

    def test_a_system_without_the_call(self, ask, file, monkeypatch):
        monkeypatch.delattr(os, "posix_fadvise")
        with pytest.raises(PagesError, match="only on Linux"):
            ask(file)

    def test_no_descriptor_stays_open(self, ask, file, tmp_path):
        before = len(list(Path("/proc/self/fd").iterdir()))
        for path in (file, str(tmp_path)):
            with contextlib.suppress(PagesError):
                ask(path)
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_kernel_can_refuse(file, monkeypatch):
    """A failure of mincore(2) is no share: it is asked about an address that nothing is at."""
    real = pages._mincore
    monkeypatch.setattr(pages, "_mincore", lambda address, size, found: real(1, size, found))
    with pytest.raises(PagesError, match="its pages cannot be looked for: Invalid argument"):
        resident(file)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/m/a-00002-of-00003.gguf", [f"/m/a-0000{n}-of-00003.gguf" for n in (1, 2, 3)]),
        ("a-00001-of-00001.gguf", ["a-00001-of-00001.gguf"]),
        ("/m-00001-of-00002.gguf/a.gguf", ["/m-00001-of-00002.gguf/a.gguf"]),
        ("a.gguf", ["a.gguf"]),
        ("a-00001-of-00002", ["a-00001-of-00002"]),
        ("a-0001-of-0002.gguf", ["a-0001-of-0002.gguf"]),
        ("a-00000-of-00002.gguf", ["a-00000-of-00002.gguf"]),
        ("a-00003-of-00002.gguf", ["a-00003-of-00002.gguf"]),
        ("", [""]),
    ],
)
def test_parts(path, expected):
    assert parts(path) == expected


def test_parts_are_as_many_as_the_name_says():
    found = parts("m-00007-of-00012.gguf")
    assert (len(found), found[0], found[-1]) == (
        12,
        "m-00001-of-00012.gguf",
        "m-00012-of-00012.gguf",
    )
