"""Unused, the plugin costs nothing: what it imports, starts and writes in a session without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

# Runs pytest and tells, as its last line, what was imported and what was done by then.
DRIVER = """
import json, sys
done = []
WATCHED = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system",
           "socket.connect", "socket.bind", "socket.getaddrinfo", "os.mkdir", "os.rename"}
sys.addaudithook(lambda event, args: done.append(event) if event in WATCHED else None)
import pytest
code = pytest.main(sys.argv[1:])
print()
print(json.dumps({"code": int(code), "modules": sorted(sys.modules), "done": done}))
"""

ALLOWED = {
    "pytest_ondevice",
    "pytest_ondevice.errors",
    "pytest_ondevice.fixtures",
    "pytest_ondevice.options",
    "pytest_ondevice.plugin",
}
HEAVY = {
    "gguf",
    "huggingface_hub",
    "hypothesis",
    "llama_cpp",
    "msgspec",
    "numpy",
    "platformdirs",
    "torch",
    "transformers",
}


@dataclass
class Session:
    """What a session of pytest did."""

    code: int
    modules: set[str]
    done: list[str]
    files: set[str]
    out: str


def session(folder: Path, *args: str, env: dict[str, str] | None = None) -> Session:
    """Run pytest in a process of its own, in a home of its own, with no plugin but those named."""
    project, home = folder / "project", folder / "home"
    project.mkdir()
    home.mkdir()
    (project / "test_mine.py").write_text("def test_mine(): pass\n")
    unset = ("PYTEST_", "HF_", "PYTHONPATH", "COV_CORE_", "COVERAGE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
    own = {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "TMPDIR": str(home),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", DRIVER, "-p", "no:cacheprovider", *args],
        cwd=project,
        env=kept | own | (env or {}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    files = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return Session(told["code"], set(told["modules"]), told["done"], files, result.stdout)


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return session(tmp_path_factory.mktemp("without"), "-p", "no:ondevice")


@pytest.fixture(scope="module", params=["collect", "run", "fixtures"])
def unused(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session with the plugin, as an installed plugin is loaded, and no option given."""
    args = {"collect": ["--collect-only"], "run": [], "fixtures": ["--fixtures"]}[request.param]
    return session(tmp_path_factory.mktemp("unused"), "-p", "ondevice", *args)


def brought(session: Session, without: Session) -> set[str]:
    return session.modules - without.modules


def test_the_plugin_was_there(unused: Session, without: Session) -> None:
    assert unused.code == without.code == 0
    assert "pytest_ondevice.plugin" in unused.modules
    assert "pytest_ondevice" not in without.modules


def test_unused_it_imports_next_to_nothing(unused: Session, without: Session) -> None:
    packages = {name.partition(".")[0] for name in brought(unused, without)}
    foreign = packages - set(sys.stdlib_module_names) - {"pytest_ondevice"}
    # What pytest itself loads for --fixtures is pytest's business.
    assert not foreign - {"_pytest", "pygments"}
    assert not packages & HEAVY
    ours = {name for name in unused.modules if name.partition(".")[0] == "pytest_ondevice"}
    assert ours == ALLOWED


def test_unused_it_starts_no_process_and_asks_no_network(unused: Session, without: Session) -> None:
    assert unused.done == without.done
    assert not {event for event in unused.done if not event.startswith("os.mkdir")}


def test_unused_it_writes_no_file(unused: Session, without: Session) -> None:
    assert unused.files == without.files == {"home", "project", "project/test_mine.py"}


def test_the_measure_sees_what_is_used(tmp_path: Path, without: Session) -> None:
    # Any option wakes the plugin up: what the tests above look for is then there.
    used = session(tmp_path, "-p", "ondevice", "--ondevice-threads=1", "--collect-only")
    assert used.code == 0
    assert {"pytest_ondevice.hooks", "msgspec"} <= brought(used, without)


def test_used_it_loads_no_runtime(tmp_path: Path) -> None:
    # Native code runs in worker processes only.
    used = session(
        tmp_path,
        *("-p", "ondevice", "--ondevice-models=smollm2-135m", "--collect-only", "-q"),
        env={"PYTHONPATH": str(fake_runtime(tmp_path))},
    )
    assert used.code == 0
    assert "test_kld[smollm2-135m-Q4_0]" in used.out
    loaded = {name.partition(".")[0] for name in used.modules}
    assert not loaded & {"llama_cpp", "torch", "transformers", "huggingface_hub"}
    assert "home/cache" not in used.files


def fake_runtime(folder: Path) -> Path:
    package = folder / "site" / "llama_cpp"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    methods = ("F16", "Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_0", "Q5_K_M", "Q8_0")
    lines = [f"LLAMA_FTYPE_MOSTLY_{name} = {number}\n" for number, name in enumerate(methods)]
    (package / "llama_cpp.py").write_text("".join(lines))
    return package.parent
