"""The device that is measured: its description, its runtime, and the lock around a probe."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import MissingError, StorageError
from .model.device import Device, Runtime
from .options import usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

WAIT_SECONDS = 0.2


def lock_path() -> Path:
    """Name the lock file of this machine, the same for every user of its temporary folder."""
    folder = os.environ.get("PYTEST_ONDEVICE_LOCK_DIR") or tempfile.gettempdir()
    return Path(folder, "pytest-ondevice-local.lock")


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], bool] = lambda: False) -> Iterator[int | None]:
    """Hold an exclusive lock on ``path``; yields its descriptor.

    The lock belongs to the open file: a child that inherits the descriptor keeps the lock until
    it ends too, so that a killed host leaves no unguarded worker behind.

    Args:
        path: The lock file, made when missing.
        waiting: Called now and then while another holds the lock; True gives up the wait, since
            what was needed is there, and the block runs with None instead of a descriptor.

    Raises:
        StorageError: The lock file cannot be opened.
    """
    descriptor = _open_lock(path)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting():
                    yield None
                    return
                time.sleep(WAIT_SECONDS)
                continue
            if _is(descriptor, path):
                break
            # Someone cleaned the folder up: whoever comes next would lock another file.
            os.close(descriptor)
            descriptor = _open_lock(path)
        yield descriptor
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Existing first: a sticky folder forbids O_CREAT on another user's file.
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            with contextlib.suppress(OSError):
                os.fchmod(descriptor, 0o666)
            return descriptor
    except OSError as error:
        raise StorageError(f"{path}: cannot lock it: {error.strerror}") from error


def _is(descriptor: int, path: Path) -> bool:
    """Whether a path still names the file that a descriptor has open."""
    try:
        there = path.lstat()
    except OSError:
        return False
    ours = os.fstat(descriptor)
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


@functools.cache
def runtime() -> Runtime:
    """Describe the installed llama.cpp by the digest of its libraries, without loading them."""
    if importlib.util.find_spec("llama_cpp") is None:
        return Runtime(name="llama.cpp", version="none", digest="")
    try:
        version = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    return _described(version, _libraries())


def _described(version: str, libraries: Sequence[Path]) -> Runtime:
    digest = hashlib.sha256()
    for library in libraries:
        digest.update(library.name.encode())
        with library.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return Runtime(
        name="llama.cpp",
        version=f"llama-cpp-python {version}",
        digest=digest.hexdigest()[:16],
    )


@dataclass(frozen=True, slots=True)
class Build:
    """Another build of the runtime: the interpreter of its environment, and what it is."""

    python: str
    runtime: Runtime


def is_environment(folder: Path) -> bool:
    """Whether a folder is a Python environment."""
    return (folder / "bin" / "python").exists()


def build(folder: Path) -> Build:
    """Describe the llama.cpp of another Python environment, without loading it.

    Raises:
        MissingError: It has no llama-cpp-python.
    """
    packages = [path.parent for path in folder.glob("lib*/python3*/site-packages/llama_cpp")]
    if not packages:
        raise MissingError(
            f"{folder}: this Python environment has no llama-cpp-python; install the build to"
            f" compare with there: {folder}/bin/python -m pip install llama-cpp-python msgspec"
        )
    libraries = {path.resolve() for path in (packages[0] / "llama_cpp").glob("lib/*")}
    versions = [
        path.name.split("-")[1] for path in packages[0].glob("llama_cpp_python-*.dist-info")
    ]
    runtime = _described(
        (versions or ["unknown"])[0].removesuffix(".dist"),
        sorted(path for path in libraries if path.is_file()),
    )
    return Build(str(folder / "bin" / "python"), runtime)


def place(threads: int, gpu_layers: int) -> str:
    """Name what time depends on beside the work itself."""
    layers = f", {gpu_layers} layers on the GPU" if gpu_layers else ""
    return f"{device().cpu}, {threads} threads{layers}, {runtime().digest}"


@functools.cache
def runtime_knows(architecture: str) -> bool:
    """Whether the runtime's library can know a model architecture.

    Names are strings in the library's read-only data, perhaps as the end of a longer one; a name
    that is nowhere in it is unknown.
    Without a library to look into, the answer is left to the runtime.
    """
    libraries = [path for path in _libraries() if path.name.startswith("libllama.")]
    if not libraries:
        return True
    return any(architecture.encode() + b"\0" in path.read_bytes() for path in libraries)


@functools.cache
def device() -> Device:
    """Describe this machine: what speed depends on, and nothing that names it or its user."""
    return Device(
        system=platform.system(),
        machine=platform.machine(),
        cpu=_cpu_name(),
        cores=usable_cores(),
        memory=_total_memory(),
        python=platform.python_version(),
        libc=" ".join(platform.libc_ver()).strip(),
    )


def _libraries() -> list[Path]:
    """List the native libraries of the installed llama-cpp-python, each once."""
    spec = importlib.util.find_spec("llama_cpp")
    folders = spec.submodule_search_locations if spec else None
    found = {path.resolve() for folder in folders or () for path in Path(folder).glob("lib/*")}
    return sorted(path for path in found if path.is_file())


def available_memory() -> int | None:
    """Read how many bytes a new process may use without swapping; None if unknown."""
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cpu_name() -> str:
    for line in _lines("/proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() in {"model name", "Model", "Hardware"}:
            return value.strip()
    return platform.processor() or platform.machine()


def _total_memory() -> int:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
