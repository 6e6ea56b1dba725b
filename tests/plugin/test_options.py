"""Every option: where its value comes from, what it may be, and what is said when it cannot be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_ondevice import options
from pytest_ondevice.matrix import cells
from pytest_ondevice.options import OPTIONS

if TYPE_CHECKING:
    from projects import Project

pytestmark = pytest.mark.usefixtures("runtime")

BY_NAME = {option.name: option for option in OPTIONS}
DOCS = Path(__file__).parents[2] / "docs" / "options.md"


def write_ini(project: Project, **settings: str) -> None:
    project.pytester.makeini(
        "[pytest]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())
    )


# Each option with four different values, and what becomes of them.
PRECEDENCE = [
    ("threads", "threads", ["3", "4", "5"], [3, 4, 5], options.usable_cores()),
    ("timeout", "timeout", ["3", "4.5", "5"], [3.0, 4.5, 5.0], options.DEFAULT_TIMEOUT),
    ("budget", "windows", ["9", "release", "10"], [9, None, 10], 16),
    ("models", "models", ["a", "b,c", "d"], [("a",), ("b", "c"), ("d",)], ()),
    ("methods", "methods", ["Q4_0", "q8_0", "F16"], [("Q4_0",), ("q8_0",), ("F16",)], ()),
    ("suites", "suites", ["a", "b", "c"], [("a",), ("b",), ("c",)], None),
    (
        "update",
        "update",
        ["size", "memory", "fidelity"],
        [frozenset({"size"}), frozenset({"memory"}), frozenset({"fidelity"})],
        frozenset(),
    ),
    (
        "require-baseline",
        "require_baseline",
        ["size", "all", "fidelity"],
        [frozenset({"size"}), frozenset(options.KINDS), frozenset({"fidelity"})],
        frozenset(),
    ),
]


@pytest.mark.parametrize(
    ("name", "attribute", "given", "meant", "default"),
    PRECEDENCE,
    ids=[row[0] for row in PRECEDENCE],
)
def test_the_command_line_beats_the_environment_beats_the_ini_beats_the_default(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    attribute: str,
    given: list[str],
    meant: list[object],
    default: object,
) -> None:
    option = BY_NAME[name]

    def value(*args: str) -> tuple[object, str]:
        settings = project.parse(*args)
        return getattr(settings, attribute), settings.given[name].origin

    assert value() == (default, "default")
    write_ini(project, **{option.dest: given[2]})
    assert value() == (meant[2], "file tox.ini")
    monkeypatch.setenv(option.env, given[1])
    assert value() == (meant[1], "environment")
    assert value(f"{option.flag}={given[0]}") == (meant[0], "command line")
    assert value(option.flag, given[0]) == (meant[0], "command line")


def test_addopts_rank_with_the_command_line_and_are_told_apart(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_ONDEVICE_THREADS", "4")
    write_ini(project, addopts="--ondevice-threads=7", ondevice_threads="6")
    settings = project.parse()
    assert (settings.threads, settings.given["threads"].origin) == (7, "addopts")
    monkeypatch.setenv("PYTEST_ADDOPTS", "--ondevice-threads=8")
    settings = project.parse()
    assert (settings.threads, settings.given["threads"].origin) == (8, "addopts")
    settings = project.parse("--ondevice-threads=9")
    assert (settings.threads, settings.given["threads"].origin) == (9, "command line")


@pytest.mark.parametrize(
    ("typed", "env", "ini", "expected"),
    [
        (True, "no", "no", True),
        (False, "yes", "no", True),
        (False, "0", "yes", False),
        (False, "", "On", True),
        (False, "", "", False),
    ],
)
def test_offline_is_a_switch_with_the_same_precedence(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    typed: bool,
    env: str,
    ini: str,
    expected: bool,
) -> None:
    monkeypatch.setenv("PYTEST_ONDEVICE_OFFLINE", env)
    write_ini(project, ondevice_offline=ini)
    assert project.parse(*["--ondevice-offline"] * typed).offline is expected


def test_paths_are_relative_to_where_they_were_written(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("artifacts", "text", "report", "baselines", "cache")
    write_ini(project, **{BY_NAME[name].dest: "from-ini" for name in names})
    folder = project.path / "sub"
    folder.mkdir()
    monkeypatch.chdir(folder)
    settings = project.parse()
    assert {getattr(settings, name) for name in names} == {project.path / "from-ini"}
    for name in names:
        monkeypatch.setenv(BY_NAME[name].env, "from-env")
    settings = project.parse()
    assert {getattr(settings, name) for name in names} == {folder / "from-env"}
    settings = project.parse(*[f"{BY_NAME[name].flag}=typed" for name in names])
    assert {getattr(settings, name) for name in names} == {folder / "typed"}
    settings = project.parse(*[f"{BY_NAME[name].flag}=~/typed" for name in names])
    assert {getattr(settings, name) for name in names} == {Path.home() / "typed"}


def test_defaults_of_the_paths(project: Project) -> None:
    settings = project.parse()
    assert settings.baselines == project.path / "baselines"
    assert settings.cache == project.cache
    assert (settings.artifacts, settings.text, settings.report) == (None, None, None)


def test_a_model_file_is_found_from_where_it_was_written(
    project: Project, monkeypatch: pytest.MonkeyPatch, gguf_bytes: bytes
) -> None:
    at_root = project.write("m.gguf", gguf_bytes)
    in_folder = project.write("sub/m.gguf", gguf_bytes)
    write_ini(project, ondevice_models="m.gguf")
    monkeypatch.chdir(in_folder.parent)
    for args, path in ((), at_root), (("--ondevice-models=m.gguf",), in_folder):
        (source,) = cells(project.parse(*args))[0].model.sources
        assert Path(source.path) == path


def test_names_ignore_case_and_duplicates_are_merged(project: Project) -> None:
    chosen = cells(
        project.parse(
            "--ondevice-models=SmolLM2-135M, smollm2-135m,qwen2.5-0.5B,smollm2-135m",
            "--ondevice-methods=q4_k_m,Q4_K_M,f16,q8_0",
        )
    )
    assert [cell.id for cell in chosen] == [
        "smollm2-135m-F16",
        "smollm2-135m-Q4_K_M",
        "smollm2-135m-Q8_0",
        "qwen2.5-0.5b-F16",
        "qwen2.5-0.5b-Q4_K_M",
        "qwen2.5-0.5b-Q8_0",
    ]
    assert [cell.id for cell in chosen if cell.reference] == [
        "smollm2-135m-F16",
        "qwen2.5-0.5b-F16",
    ]


def test_a_group_stands_for_its_methods(project: Project) -> None:
    study = ["F16", "Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_0", "Q5_K_M", "Q8_0"]
    for args in (), ("--ondevice-methods=STUDY",), ("--ondevice-methods=study,Q4_0",):
        chosen = cells(project.parse("--ondevice-models=smollm2-135m", *args))
        assert [cell.method for cell in chosen] == study


def test_methods_are_those_of_the_installed_runtime(project: Project, runtime: Path) -> None:
    (runtime / "llama_cpp.py").write_text(
        "LLAMA_FTYPE_MOSTLY_F16 = 1\nLLAMA_FTYPE_MOSTLY_MADE_UP = 99\n"
    )
    args = ("--ondevice-models=smollm2-135m", "--ondevice-methods=made_up")
    assert cells(project.parse(*args))[1].method == "MADE_UP"
    found = project.refused("--collect-only", "--ondevice-methods=Q8_0")
    assert "unknown method 'Q8_0'; there are F16, MADE_UP, study" in found


@pytest.mark.usefixtures("no_runtime")
def test_without_a_runtime_methods_are_those_that_this_version_knows(project: Project) -> None:
    args = ("--ondevice-models=smollm2-135m", "--ondevice-methods=iq4_xs")
    assert cells(project.parse(*args))[1].method == "IQ4_XS"


def test_duplicates_of_any_list_are_merged(project: Project) -> None:
    settings = project.parse(
        *(f"--ondevice-{name}=b,a, b,a" for name in ("models", "methods", "suites"))
    )
    assert settings.models == settings.methods == settings.suites == ("b", "a")


def test_a_list_in_an_ini_file_may_have_lines(project: Project) -> None:
    write_ini(project, ondevice_methods="\n    Q4_0\n    Q8_0")
    assert project.parse().methods == ("Q4_0", "Q8_0")


def test_update_alone_means_all(project: Project) -> None:
    assert project.parse("--ondevice-update").update == frozenset(options.KINDS)
    assert project.parse("--ondevice-update=SIZE,size").update == {"size"}
    assert project.parse("--ondevice-update=size,all").update == frozenset(options.KINDS)


def test_a_budget_has_names(project: Project) -> None:
    given = {"smoke": 16, "SMOKE": 16, "release": None, "8": 8}
    assert {text: project.parse(f"--ondevice-budget={text}").windows for text in given} == given


# Option, value that cannot be, and what the sentence says of it.
EMPTY = "an empty name"
MISTAKES = [
    ("models", "", EMPTY),
    ("models", ",", EMPTY),
    ("models", "smollm2-135m,", EMPTY),
    ("models", "smollm2-135m,,qwen2.5-0.5b", EMPTY),
    (
        "models",
        "smollm2-135",
        "unknown model 'smollm2-135'; did you mean 'smollm2-135m'?",
    ),
    (
        "models",
        "SMOLLM2",
        "unknown model 'SMOLLM2'; did you mean smollm2-135m, smollm2-360m or smollm2-1.7b?",
    ),
    ("models", "zzz", "unknown model 'zzz'; there are smollm2-135m, smollm2-360m,"),
    ("models", "smollm2-135m,zzz", "unknown model 'zzz'; "),
    ("models", "gone.gguf", "there is no file 'gone.gguf'"),
    ("models", "gone/gone", "there is no file 'gone/gone'"),
    ("models", "pkg:", "not of the form pkg:MODULE/FILE"),
    ("models", "pkg:package", "not of the form pkg:MODULE/FILE"),
    ("models", "pkg:/file.gguf", "not of the form pkg:MODULE/FILE"),
    ("models", "pkg:package/", "not of the form pkg:MODULE/FILE"),
    ("methods", "", EMPTY),
    ("methods", "Q4_0,,Q8_0", EMPTY),
    ("methods", "Q4_KM", "unknown method 'Q4_KM'; did you mean 'Q4_K_M'?"),
    ("methods", "q4-k-m", "unknown method 'q4-k-m'; did you mean 'Q4_K_M'?"),
    ("methods", "studdy", "did you mean 'study'?"),
    ("methods", "zzz", "unknown method 'zzz'; there are F32, F16,"),
    ("suites", "", EMPTY),
    ("suites", "fidelty", "unknown suite 'fidelty'; did you mean 'fidelity'?"),
    ("suites", "zzz", "unknown suite 'zzz'; there are artifact, efficiency, fidelity, resources"),
    ("update", "", EMPTY),
    ("update", "memry", "unknown kind 'memry'; did you mean 'memory'?"),
    ("update", "zzz", "unknown kind 'zzz'; there are fidelity, size, memory, lock, all"),
    ("require-baseline", "", EMPTY),
    ("require-baseline", "sizes", "did you mean 'size'?"),
    *[
        ("threads", text, "not a number of threads")
        for text in ("", "0", "-1", "1.5", "1e1", "two", "inf", "nan", "9" * 20)
    ],
    *[
        ("timeout", text, "not a number of seconds")
        for text in ("", "0", "-1", "0.05", "soon", "inf", "nan", "1e400")
    ],
    *[
        ("budget", text, "not a budget; give smoke, release or a number of windows from 8")
        for text in ("", "0", "7", "-8", "8.5", "smok", "16w")
    ],
]
MODEL = "--ondevice-models=smollm2-135m"


@pytest.mark.parametrize(("name", "text", "said"), MISTAKES)
def test_a_typed_mistake_is_one_sentence(project: Project, name: str, text: str, said: str) -> None:
    option = BY_NAME[name]
    model = [MODEL] if name != "models" else []
    found = project.refused("--collect-only", *model, f"{option.flag}={text}")
    assert found.startswith(f"{option.flag}={text} (from the command line): ")
    assert said in found
    assert not project.cache.exists()


OFFLINE_MISTAKE = ("offline", "maybe", "neither yes nor no")
# One mistake of each option that has any; an empty value means not given, except when typed.
ONE_OF_EACH = [
    *{row[0]: row for row in MISTAKES if row[1].strip()}.values(),
    OFFLINE_MISTAKE,
]


@pytest.mark.parametrize(("name", "text", "said"), ONE_OF_EACH, ids=[row[0] for row in ONE_OF_EACH])
def test_a_mistake_names_the_source_it_comes_from(
    project: Project, monkeypatch: pytest.MonkeyPatch, name: str, text: str, said: str
) -> None:
    option = BY_NAME[name]
    model = [MODEL] if name != "models" else []
    write_ini(project, **{option.dest: text})
    found = project.refused("--collect-only", *model)
    assert found.startswith(f"{option.dest}={text} (from the file tox.ini): ")
    assert said in found
    monkeypatch.setenv(option.env, text)
    found = project.refused("--collect-only", *model)
    assert found.startswith(f"{option.env}={text} (from the environment): ")
    assert said in found
    if option.metavar is None:
        return
    monkeypatch.setenv("PYTEST_ADDOPTS", f"{option.flag}={text}")
    found = project.refused("--collect-only", *model)
    assert found.startswith(f"{option.flag}={text} (from the addopts): ")
    assert said in found
    assert not project.cache.exists()


def test_a_mistake_in_pyproject_names_it(project: Project) -> None:
    project.pytester.makepyprojecttoml("[tool.pytest.ini_options]\nondevice_threads = '0'\n")
    assert project.refused("--collect-only").startswith(
        "ondevice_threads=0 (from the file pyproject.toml): "
    )


def test_a_mistake_stops_a_run_of_the_users_own_tests_too(project: Project) -> None:
    project.write("test_mine.py", "def test_mine():\n    raise SystemError\n")
    for args in ("--ondevice-threads=0",), ("--ondevice-threads=0", "test_mine.py"):
        assert project.refused(*args).startswith("--ondevice-threads=0 (from the command line): ")


def test_the_first_mistake_is_told_before_a_model_is_looked_for(project: Project) -> None:
    found = project.refused("--ondevice-models=qwen2.5-0.5b", "--ondevice-methods=zzz")
    assert "unknown method" in found


def test_an_empty_variable_or_setting_is_one_that_was_not_given(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for option in OPTIONS:
        monkeypatch.setenv(option.env, "")
    write_ini(project, **{option.dest: "" for option in OPTIONS})
    config = project.pytester.parseconfig()
    assert not options.active(config)
    assert {value.origin for value in options.parse(config).given.values()} == {"default"}


def test_two_files_of_one_name_would_share_their_cells(project: Project, gguf_bytes: bytes) -> None:
    project.write("a/m.gguf", gguf_bytes)
    project.write("b/M.gguf", gguf_bytes)
    found = project.refused("--collect-only", "--ondevice-models=a/m.gguf,b/M.gguf")
    assert "two models are named m" in found
    assert "a/m.gguf and " in found
    assert "b/M.gguf" in found
    chosen = cells(project.parse("--ondevice-models=a/m.gguf,a/m.gguf"))
    assert len({cell.model.name for cell in chosen}) == 1


def test_suites_need_a_model_to_run_on(project: Project) -> None:
    found = project.refused("--ondevice-suites=fidelity")
    assert found.startswith("--ondevice-suites=fidelity (from the command line): no model")
    assert "--ondevice-models=" in found


def test_help_has_every_option(project: Project) -> None:
    text = project.run("--help").stdout.str()
    words = set(text.replace("=", " ").replace("[", " ").split())
    assert {option.flag for option in OPTIONS} <= words
    assert {option.dest for option in OPTIONS} <= words
    one_line = " ".join(text.split())
    # argparse may break a line behind a hyphen.
    squeezed = one_line.replace("- ", "-")
    for option in OPTIONS:
        assert " ".join(option.help.split()).replace("- ", "-") in squeezed


@pytest.mark.skipif(not DOCS.exists(), reason="requires docs/options.md")
def test_the_docs_have_every_option() -> None:
    text = DOCS.read_text("utf-8")
    for option in OPTIONS:
        (row,) = (line for line in text.splitlines() if f"`{option.env}`" in line)
        assert option.flag in row
        assert f"`{option.dest}`" in row
        assert option.help in row
    assert set(re.findall(r"--ondevice-[a-z-]*[a-z]", text)) == {option.flag for option in OPTIONS}
