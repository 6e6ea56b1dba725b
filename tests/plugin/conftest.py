"""Runs of pytest in a user's project, with nothing of this machine in reach and nothing measured.

Every run is in this process unless a test needs another. No test here may start a probe: a run
either stops before measuring, or collects only, or has only tests that ask for no measurement.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest

# Imported here so that the runs find it imported: numpy refuses to be imported a second time, and
# pytester forgets what a run imported.
import pytest_ondevice.hooks  # noqa: F401
from pytest_ondevice import catalog, devices, matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from projects import Project

pytest.register_assert_rewrite("projects")

# What llama-cpp-python's bindings say, as far as it is read.
BINDINGS = """\
# LLAMA_FTYPE_ALL_F32 = 0,
LLAMA_FTYPE_ALL_F32 = 0
LLAMA_FTYPE_MOSTLY_F16 = 1
LLAMA_FTYPE_MOSTLY_Q4_0 = 2
LLAMA_FTYPE_MOSTLY_Q8_0 = 7
LLAMA_FTYPE_MOSTLY_Q5_0 = 8
LLAMA_FTYPE_MOSTLY_Q2_K = 10
LLAMA_FTYPE_MOSTLY_Q3_K_M = 12
LLAMA_FTYPE_MOSTLY_Q4_K_M = 15
LLAMA_FTYPE_MOSTLY_Q5_K_M = 17
"""


def clear_caches() -> None:
    for cached in (catalog.catalog, matrix.runtime_methods, devices.runtime, devices.device):
        cached.cache_clear()


def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away every setting that would reach a run from outside."""
    for name in list(os.environ):
        if name.startswith(("PYTEST_ONDEVICE_", "HF_", "HUGGINGFACE_")) or "proxy" in name.lower():
            monkeypatch.delenv(name)
    for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that looks like llama-cpp-python from outside; importing it is an error."""
    folder = tmp_path_factory.mktemp("runtime")
    package = folder / "llama_cpp"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('the runtime was imported')\n")
    (package / "llama_cpp.py").write_text(BINDINGS)
    for name in [name for name in sys.modules if name.partition(".")[0] == "llama_cpp"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    clear_caches()
    return package


@pytest.fixture
def no_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide llama-cpp-python where it is installed."""
    find_spec = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> object:
        return None if name.partition(".")[0] == "llama_cpp" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    clear_caches()


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """An empty project, no option given anywhere, and a home of its own for the default cache."""
    clean_environment(monkeypatch)
    # Not PYTEST_ONDEVICE_CACHE: that is an option given, and would wake the plugin up.
    home = pytester.path.parent / f"{pytester.path.name}-home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    clear_caches()
    from projects import Project

    made = Project(pytester, home / "cache" / "pytest-ondevice")
    yield made
    clear_caches()


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make starting any process an error."""

    def refuse(*args: object, **_: object) -> None:
        raise AssertionError(f"a process was started: {args}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "posix_spawn", refuse)
    monkeypatch.setattr(os, "fork", refuse)


@pytest.fixture(scope="session")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole GGUF file of the type F16, with one tensor of 32 x 32."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(1)
    writer.add_tensor("blk.0.attn_q.weight", np.ones((32, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture
def write_gguf(project: Project) -> Callable[[str, str], Path]:
    """Write a whole GGUF file of a method, with one tensor of 256 x 256 zeros."""

    def write(name: str, method: str) -> Path:
        path = project.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = gguf.GGMLQuantizationType[method]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{method}"])
        zeros = np.zeros((256, 256 // block * size), np.uint8)
        writer.add_tensor("blk.0.attn_q.weight", zeros, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture
def tiny(project: Project, runtime: Path, gguf_bytes: bytes) -> list[str]:
    """Arguments with which a run gets as far as measuring: a model at hand, and a runtime."""
    project.write("tiny.gguf", gguf_bytes)
    return ["--ondevice-models=tiny.gguf", "--ondevice-methods=F16"]
