"""The wheel as its users get it: what is in it, and both ways of running the suites from it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean | env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from it, as a release does."""
    folder = tmp_path_factory.mktemp("dist")
    made = run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    assert made.returncode == 0, made.stdout
    return folder


@pytest.fixture(scope="session")
def python(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel and its extras."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    run(sys.executable, "-m", "venv", folder, cwd=built)
    wheel = next(built.glob("*.whl"))
    python = folder / "bin" / "python"
    made = run(python, "-m", "pip", "install", "-q", f"{wheel}[llama-cpp,smollm2]", cwd=built)
    assert made.returncode == 0, made.stdout
    return python


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_the_wheel_holds_what_it_should_and_nothing_else(built):
    wheel = next(built.glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "pytest_ondevice/plugin.py",
        "pytest_ondevice/py.typed",
        "pytest_ondevice/data/catalog.toml",
        "pytest_ondevice/data/models/pocket-s.gguf",
        "pytest_ondevice/data/tasks/general.jsonl",
        "pytest_ondevice/data/tasks/pocket.jsonl",
        "pytest_ondevice/data/text/pocket/stories.txt",
        "pytest_ondevice/data/text/v1/german.txt",
        "pytest_ondevice/data/calibration/v1/german.txt",
        "pytest_ondevice/suites/fidelity/test_fidelity.py",
        "pytest_ondevice/suites/laws/test_laws.py",
        "pytest_ondevice/baselines/portable/smollm2-135m/Q4_K_M.json",
    ):
        assert needed in names
    junk = re.compile(r"\.(gguf|safetensors|pyc|log|npz)$|__pycache__|\.hypothesis|^tests/")
    odd = [name for name in names if junk.search(name)]
    assert odd == ["pytest_ondevice/data/models/pocket-s.gguf"]
    assert {name.split("/")[0].split("-")[0] for name in names} == {"pytest_ondevice"}
    assert wheel.stat().st_size < 4_000_000


def test_the_sdist_makes_the_wheel_that_the_checkout_makes(built, tmp_path):
    made = run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    assert made.returncode == 0, made.stdout

    def contents(folder: Path) -> dict[str, bytes]:
        wheel = zipfile.ZipFile(next(folder.glob("*.whl")))
        return {name: wheel.read(name) for name in wheel.namelist()}

    # The folder above is built from the sdist, as `python -m build` does.
    assert contents(built) == contents(tmp_path)


def test_the_sdist_can_be_tested(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = sdist.getnames()
    for needed in ("tox.ini", "tests/packaging/test_wheel.py", "suites/__init__.py", "LICENSE"):
        assert any(name.endswith(f"/{needed}") for name in names)


def test_typed_models_run_the_suites_in_any_folder(python, cache, tmp_path):
    done = run(
        *(python, "-m", "pytest", "-k", "file_type", "--ondevice-models=smollm2-135m"),
        *("--ondevice-methods=Q4_0", f"--ondevice-cache={cache}"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout
    assert "smollm2-135m-Q4_0" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} - {".pytest_cache"} == {"report.json"}


def test_the_suites_are_a_package_too(python, cache, tmp_path):
    done = run(
        *(python, "-m", "pytest", "-v", "-k", "file_type", "--pyargs"),
        *("pytest_ondevice.suites.artifact", "--ondevice-models=smollm2-135m"),
        *("--ondevice-methods=Q4_0", f"--ondevice-cache={cache}"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_every_command_of_the_docs_runs(python, cache, tmp_path):
    """In order, in one folder; ``-k`` keeps runs to the checks that need no probe."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    commands = [
        command
        for page in pages
        for command in re.findall(r"^\$ (pytest\b.*)$", page.read_text(), re.MULTILINE)
    ]
    assert len(commands) >= 8
    (tmp_path / "release").mkdir()
    for number, command in enumerate(commands):
        if "model.gguf" in command:
            shutil.copyfile(next(cache.glob("objects/*/*.gguf")), tmp_path / "model.gguf")
        if "release/" in command:
            (digest,) = {
                recipe["sha256"]
                for recipe in map(json.loads, map(Path.read_text, cache.glob("recipes/*.json")))
                if (recipe["model"], recipe["method"]) == ("smollm2-135m", "Q4_0")
            }
            made = cache / "objects" / digest[:2] / f"{digest}.gguf"
            shutil.copyfile(made, tmp_path / "release" / "smollm2-135m-Q4_0.gguf")
        program, *arguments = command.split()
        done = run(
            *(python.with_name(program), *arguments),
            cwd=tmp_path,
            PYTEST_ADDOPTS="-k 'file_type or file_size'",
            PYTEST_ONDEVICE_CACHE=str(cache),
        )
        assert done.returncode == 0, f"{number}: {command}\n{done.stdout}"
    assert (tmp_path / "baselines" / "portable" / "smollm2-135m" / "Q4_0.json").exists()


def test_an_editable_install_runs_them_as_well(python, cache, tmp_path):
    folder = tmp_path / "venv"
    # The fresh environment's packages serve, so that nothing is compiled again.
    run(sys.executable, "-m", "venv", folder, cwd=tmp_path)
    site = next((python.parents[1] / "lib").glob("python*/site-packages"))
    own = next((folder / "lib").glob("python*/site-packages"))
    editable = folder / "bin" / "python"
    run(editable, "-m", "pip", "install", "-q", "--no-deps", "-e", ROOT, cwd=tmp_path)
    (own / "zz_borrowed.pth").write_text(str(site))
    done = run(
        *(editable, "-m", "pytest", "-k", "file_type", "--ondevice-models=smollm2-135m"),
        *("--ondevice-methods=Q4_0", f"--ondevice-cache={cache}"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout
    assert (
        f"{ROOT}"
        in run(
            editable, "-c", "import pytest_ondevice as p; print(p.__file__)", cwd=tmp_path
        ).stdout
    )
