"""What can be found out before measuring: the report's place, the text, the runtime, the cache."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from projects import Project

OURS = json.dumps({"schema_version": 1, "generator": "pytest-ondevice 0.1.0"})
FOREIGN = {
    "another-tool": json.dumps({"tests": 3, "generator": "another"}),
    "no-generator": json.dumps({"schema_version": 1}),
    "list": "[1, 2]",
    "no-json": "{oops",
    "binary": b"\xff\xfe\0",
}


@pytest.fixture
def refused(project: Project, tiny: list[str]) -> Callable[..., str]:
    """Run with a model at hand; return the one sentence, after which nothing was measured."""

    def run(*args: str) -> str:
        said = project.refused(*tiny, *args)
        assert not project.cache.exists()
        return said

    return run


@pytest.fixture
def accepted(project: Project, tiny: list[str]) -> Callable[..., None]:
    """Run with a model at hand as far as measuring."""
    return lambda *args: project.accepted(*tiny, *args)


# -- the report


def test_a_report_cannot_be_a_folder(project: Project, refused: Callable[..., str]) -> None:
    (project.path / "folder").mkdir()
    for name in "folder", ".":
        said = refused(f"--ondevice-report={name}")
        assert said == f"--ondevice-report={name} (from the command line): it is a folder"


def test_a_report_cannot_be_below_a_file(project: Project, refused: Callable[..., str]) -> None:
    project.write("file", "text")
    for name in "file/report.json", "file/sub/report.json":
        said = refused(f"--ondevice-report={name}")
        assert said.startswith(f"--ondevice-report={name} (from the command line): ")
        assert said.endswith("file is not a folder")


@pytest.mark.parametrize("content", FOREIGN)
def test_a_file_of_somebody_else_is_never_replaced(
    project: Project, refused: Callable[..., str], content: str
) -> None:
    for name, args in ("report.json", []), ("mine.json", ["--ondevice-report=mine.json"]):
        path = project.write(name, FOREIGN[content])
        said = refused(*args)
        assert "a file that is no report of ours is there; move it or choose another name" in said
        assert said.startswith(
            f"{args[0]} (from the command line): " if args else f"{project.path / name}: "
        )
        path.unlink()


def test_where_it_came_from_is_said_of_the_report_too(
    project: Project, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_ONDEVICE_REPORT", ".")
    assert refused() == "PYTEST_ONDEVICE_REPORT=. (from the environment): it is a folder"
    monkeypatch.delenv("PYTEST_ONDEVICE_REPORT")
    project.pytester.makeini("[pytest]\nondevice_report = .\n")
    assert refused() == "ondevice_report=. (from the file tox.ini): it is a folder"


@pytest.mark.parametrize("content", [OURS, "", "\n"])
def test_a_report_of_ours_may_be_replaced(
    project: Project, accepted: Callable[..., None], content: str
) -> None:
    project.write("report.json", content)
    accepted()


def test_a_report_may_go_into_a_folder_that_is_not_there_yet(
    accepted: Callable[..., None],
) -> None:
    accepted("--ondevice-report=new/folder/report.json")


def test_a_report_is_written_where_it_was_asked_for(project: Project, tiny: list[str]) -> None:
    project.write(
        "test_own.py", "def test_own(ondevice_check):\n    ondevice_check(1, at_most=2)\n"
    )
    project.write("report.json", "[]")
    name = "new/folder/gate.json"
    result = project.run(*tiny, "test_own.py", f"--ondevice-report={name}")
    assert result.ret == 0
    result.stdout.fnmatch_lines([f"report: {name}"])
    report = json.loads((project.path / name).read_text())
    (check,) = report["checks"]
    assert check["check"].endswith("test_own")
    assert (check["cell"], check["verdict"], check["value"]) == ("tiny-F16", "pass", 1)
    assert (project.path / "report.json").read_text() == "[]"
    # The next run may replace what this one wrote.
    assert project.run(*tiny, "test_own.py", f"--ondevice-report={name}").ret == 0


def test_collecting_only_does_not_care_where_the_report_goes(
    project: Project, runtime: Path
) -> None:
    project.write("report.json", "[]")
    assert project.collect("--ondevice-models=smollm2-135m")
    assert (project.path / "report.json").read_text() == "[]"


# -- the baselines


def test_baselines_cannot_be_recorded_below_a_file(
    project: Project, refused: Callable[..., str], accepted: Callable[..., None]
) -> None:
    project.write("file", "text")
    for name in "file", "file/sub":
        said = refused("--ondevice-update=all", f"--ondevice-baselines={name}")
        assert "file is not a folder" in said
        assert "--ondevice-baselines=" in said
    accepted("--ondevice-update=all")


# -- the text


TEXTS = {
    "missing": (None, "cannot read it: No such file or directory"),
    "empty": (b"", "it is empty"),
    "blank": (b" \n\t\n", "it is empty"),
    "latin-1": ("häuser".encode("latin-1"), "it is not UTF-8 text (byte 1)"),
    "binary": (bytes(range(256)), "it is not UTF-8 text (byte 128)"),
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_has_to_be_text(project: Project, refused: Callable[..., str], text: str) -> None:
    content, said = TEXTS[text]
    if content is not None:
        project.write("text.txt", content)
    assert refused("--ondevice-text=text.txt") == (
        f"--ondevice-text=text.txt (from the command line): {said}"
    )


def test_a_folder_is_no_text(project: Project, refused: Callable[..., str]) -> None:
    said = refused("--ondevice-text=.")
    assert said.startswith("--ondevice-text=. (from the command line): cannot read it: ")


def test_a_text_is_taken(project: Project, accepted: Callable[..., None]) -> None:
    project.write("text.txt", "Häuser, 家")
    accepted("--ondevice-text=text.txt")


# -- the cache


@pytest.mark.parametrize("name", ["file", "file/sub"])
def test_a_cache_cannot_be_below_a_file(
    project: Project, refused: Callable[..., str], name: str
) -> None:
    project.write("file", "text")
    said = refused(f"--ondevice-cache={name}")
    assert "file is not a folder" in said
    assert "--ondevice-cache=" in said


# -- the runtime


@pytest.mark.usefixtures("no_runtime", "no_process")
def test_without_a_runtime_the_run_says_how_to_get_one(project: Project, gguf_bytes: bytes) -> None:
    project.write("tiny.gguf", gguf_bytes)
    project.write("test_own.py", "def test_own(ondevice_cell): pass\n")
    expected = (
        "llama-cpp-python is not installed; install it with"
        " `pip install 'pytest-ondevice[llama-cpp]'` (it compiles C++ for some minutes)"
    )
    for args in [], ["test_own.py"], ["test_own.py", "--ondevice-suites=artifact"]:
        assert project.refused("--ondevice-models=tiny.gguf", *args) == expected
    assert not project.cache.exists()


@pytest.mark.usefixtures("no_runtime", "no_process")
def test_without_a_runtime_the_users_own_tests_say_how_to_get_one(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_ONDEVICE_MODELS", "smollm2-135m")
    project.write("test_own.py", "def test_own(ondevice_cell): pass\n")
    assert "pip install 'pytest-ondevice[llama-cpp]'" in project.refused()


@pytest.mark.usefixtures("no_runtime", "no_process")
def test_collecting_needs_no_runtime(project: Project) -> None:
    assert project.collect("--ondevice-models=smollm2-135m")


def test_the_extra_that_is_named_is_there() -> None:
    from importlib.metadata import metadata

    assert "llama-cpp" in metadata("pytest-ondevice").get_all("Provides-Extra")
