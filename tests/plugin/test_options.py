"""Every option: where its value comes from, what it may be, and what is said when it cannot be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from projects import CHECKS, MORE

from pytest_ondevice import options
from pytest_ondevice.matrix import cells
from pytest_ondevice.options import OPTIONS
from pytest_ondevice.probe.protocol import N_CTX, Execution
from pytest_ondevice.probe.reference import Head, Writer, moving
from pytest_ondevice.texts import calibration_texts, texts

if TYPE_CHECKING:
    from collections.abc import Callable

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
    (
        "kv-types",
        "kv_types",
        ["q8_0", "F16,Q4_0", "q4_0"],
        [("q8_0",), ("f16", "q4_0"), ("q4_0",)],
        (),
    ),
    ("context", "context", ["64", "2048", "1048576"], [64, 2048, 2**20], 512),
    ("inconclusive", "inconclusive", ["skip", "FAIL", "Skip"], ["skip", "fail", "skip"], "fail"),
    ("tier", "tier", ["a", "b", "c"], ["a", "b", "c"], None),
    ("board", "board", ["a", "b", "c"], ["a", "b", "c"], None),
    (
        "reference",
        "reference",
        ["beside", "beside", "beside"],
        [options.BESIDE, options.BESIDE, options.BESIDE],
        None,
    ),
    (
        "against",
        "against",
        ["hf:a/b", "hf:a/c", "hf:a/d@main"],
        ["hf:a/b", "hf:a/c", "hf:a/d@main"],
        None,
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


SWITCHES = ("offline", "yes", "rederive", "identical", "require-energy")


def test_every_switch_is_one_of_these() -> None:
    assert {option.name for option in OPTIONS if option.metavar is None} == {*SWITCHES}


@pytest.mark.parametrize("name", SWITCHES)
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
def test_a_switch_has_the_same_precedence(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    typed: bool,
    env: str,
    ini: str,
    expected: bool,
) -> None:
    monkeypatch.setenv(BY_NAME[name].env, env)
    write_ini(project, **{BY_NAME[name].dest: ini})
    settings = project.parse(*[BY_NAME[name].flag] * typed)
    assert getattr(settings, name.replace("-", "_")) is expected


def test_paths_are_relative_to_where_they_were_written(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (
        *("artifacts", "against", "reference", "text", "calibration", "sysfs", "report"),
        *("baselines", "bounds", "cache"),
    )
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
    assert (settings.against, settings.reference, settings.bounds) == (None, None, None)
    assert (settings.calibration, settings.sysfs) == (None, Path("/sys"))


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


METHODS_OF = {
    # However it is spelled, a method has one name.
    "q4_0+IMATRIX": ["Q4_0+imatrix"],
    "Q4_0+kv-Q8_0+imatrix,q4_0+imatrix+kv-q8_0": ["Q4_0+imatrix+kv-q8_0"],
    "Q4_0,Q4_0+imatrix,Q4_0": ["Q4_0", "Q4_0+imatrix"],
    "F16+kv-q8_0": ["F16+kv-q8_0"],
    # A group takes the variants for each of its methods.
    "study+imatrix": [
        f"{name}+imatrix" for name in ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_0", "Q5_K_M", "Q8_0")
    ],
}


@pytest.mark.parametrize(("given", "meant"), METHODS_OF.items())
def test_a_method_may_have_variants(project: Project, given: str, meant: list[str]) -> None:
    chosen = cells(project.parse("--ondevice-models=smollm2-135m", f"--ondevice-methods={given}"))
    assert [cell.method for cell in chosen] == ["F16", *meant]
    assert [cell.method for cell in chosen if cell.reference] == ["F16"]


KV_MATRIX = [
    ("q8_0", "Q4_0", ["Q4_0+kv-q8_0"]),
    ("f16,q8_0", "Q4_0,Q8_0", ["Q4_0", "Q4_0+kv-q8_0", "Q8_0", "Q8_0+kv-q8_0"]),
    ("Q4_0,q4_0", "Q4_0+imatrix", ["Q4_0+imatrix+kv-q4_0"]),
    # What says its own type keeps it.
    ("f16,q8_0", "Q4_0+kv-q4_0,Q8_0", ["Q4_0+kv-q4_0", "Q8_0", "Q8_0+kv-q8_0"]),
    ("f16", "Q4_0", ["Q4_0"]),
    # The reference is the plain one, also where F16 is a method like others.
    ("q8_0", "F16,Q4_0", ["F16+kv-q8_0", "Q4_0+kv-q8_0"]),
]


@pytest.mark.parametrize(("kinds", "methods", "meant"), KV_MATRIX)
def test_types_of_the_cache_multiply_methods_and_never_the_reference(
    project: Project, kinds: str, methods: str, meant: list[str]
) -> None:
    chosen = cells(
        project.parse(
            "--ondevice-models=smollm2-135m",
            f"--ondevice-methods={methods}",
            f"--ondevice-kv-types={kinds}",
        )
    )
    assert [(cell.method, cell.reference) for cell in chosen] == [
        ("F16", True),
        *((method, False) for method in meant),
    ]


def test_types_of_the_cache_multiply_the_methods_of_the_default_too(project: Project) -> None:
    chosen = cells(project.parse("--ondevice-models=smollm2-135m", "--ondevice-kv-types=f16,q4_0"))
    assert len(chosen) == 1 + 2 * 7
    assert [cell.method for cell in chosen][:3] == ["F16", "Q2_K", "Q2_K+kv-q4_0"]


def test_candidates_with_an_importance_matrix_are_found_by_their_names(
    project: Project, write_gguf: Callable[[str, str], Path]
) -> None:
    for name in ("F16", "Q4_0", "Q4_0+imatrix", "Q8_0+imatrix"):
        write_gguf(f"made/tiny-{name}.gguf", name.partition("+")[0])
    project.write("tiny.gguf", (project.path / "made/tiny-F16.gguf").read_bytes())
    args = ("--ondevice-models=tiny.gguf", "--ondevice-artifacts=made")
    assert [cell.method for cell in cells(project.parse(*args))] == [
        *("F16", "Q4_0", "Q4_0+imatrix", "Q8_0+imatrix")
    ]
    # The same weights serve however the cache is kept.
    result = project.run(*args, "--ondevice-kv-types=f16,q8_0", "-k", "no_such_check")
    assert "files that match no cell" not in result.stdout.str()
    assert "left out" not in result.stdout.str()


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
    assert project.parse("--ondevice-update=speed").update == {"speed"}
    assert project.parse("--ondevice-update=lock,speed").update == {"lock", "speed"}
    assert not project.parse("--ondevice-update").anyway


def test_update_anyway_is_no_kind_of_baseline(project: Project) -> None:
    settings = project.parse("--ondevice-update=size,anyway")
    assert (settings.update, settings.anyway) == ({"size"}, True)
    settings = project.parse("--ondevice-update=anyway,all")
    assert (settings.update, settings.anyway) == (frozenset(options.KINDS), True)
    # What is recorded anyway may be only the digests of artifacts.
    settings = project.parse("--ondevice-update=ANYWAY,lock")
    assert (settings.update, settings.anyway) == ({"lock"}, True)


def test_a_budget_has_names(project: Project) -> None:
    given = {"smoke": 16, "SMOKE": 16, "release": None, "8": 8}
    assert {text: project.parse(f"--ondevice-budget={text}").windows for text in given} == given
    rounds = {"smoke": 3, "release": 8, "RELEASE": 8, "8": 3, "500": 3}
    assert {text: project.parse(f"--ondevice-budget={text}").rounds for text in rounds} == rounds
    assert project.parse().rounds == 3


def test_beside_is_a_word_and_a_file_of_that_name_has_a_folder(project: Project) -> None:
    assert project.parse("--ondevice-reference=beside").reference == options.BESIDE
    given = project.parse("--ondevice-reference=./beside").reference
    assert given == project.path / "beside"


def test_defaults_of_a_command_are_those_of_a_session(project: Project) -> None:
    ours, theirs = options.defaults(project.path), project.parse()
    assert ours == theirs
    chosen = options.defaults(project.path, models=("m",), windows=None)
    assert (chosen.models, chosen.windows, chosen.rounds) == (("m",), None, 3)


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
    ("models", "zzz", "unknown model 'zzz'; there are pocket-s, pocket-m, pocket-l, smollm2-135m,"),
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
    ("methods", "Q4_KM+imatrix", "unknown method 'Q4_KM'; did you mean 'Q4_K_M'?"),
    ("methods", "Q4_0+imatrx", "unknown variant 'imatrx' of Q4_0; did you mean 'imatrix'?"),
    (
        "methods",
        "Q4_0+zzz",
        "unknown variant 'zzz' of Q4_0; there are pure, imatrix, kv-q8_0, kv-q4_0",
    ),
    ("methods", "study+kv-q8", "unknown variant 'kv-q8' of study; did you mean 'kv-q8_0'?"),
    ("methods", "Q4_0+", "unknown variant '' of Q4_0; there are pure, imatrix, kv-q8_0, kv-q4_0"),
    ("methods", "Q4_0+kv-q8_0+kv-q4_0", "'Q4_0+kv-q8_0+kv-q4_0' has two types of the KV cache"),
    ("methods", "Q4_0+imatrix+IMATRIX", "'Q4_0+imatrix+imatrix' has a variant twice"),
    ("methods", "F16+imatrix", "F16 does not quantize, so it needs no importance matrix"),
    ("methods", "F32+imatrix+kv-q8_0", "F32 does not quantize, so it needs no importance matrix"),
    ("kv-types", "", EMPTY),
    ("kv-types", "f16,", EMPTY),
    ("kv-types", "q8", "unknown type 'q8'; did you mean 'q8_0'?"),
    ("kv-types", "zzz", "unknown type 'zzz'; there are f16, q8_0, q4_0"),
    ("kv-types", "f16,Q4_K_M", "unknown type 'Q4_K_M'; "),
    *[
        ("context", text, "not a number of tokens from 64 to 1048576")
        for text in ("", "0", "63", "1048577", "-512", "512.5", "abc", "inf", "nan", "9" * 5000)
    ],
    ("calibration", "", "an empty path"),
    ("calibration", "gone.txt", "cannot read it: No such file or directory"),
    ("calibration", ".", "cannot read it: Is a directory"),
    ("sysfs", "", "an empty path"),
    ("suites", "", EMPTY),
    ("suites", "fidelty", "unknown suite 'fidelty'; did you mean 'fidelity'?"),
    (
        "suites",
        "zzz",
        "unknown suite 'zzz'; there are artifact, capability, efficiency, fidelity, laws",
    ),
    ("suites", "law", "unknown suite 'law'; did you mean 'laws'?"),
    ("update", "", EMPTY),
    ("update", "memry", "unknown kind 'memry'; did you mean 'memory'?"),
    (
        "update",
        "zzz",
        "unknown kind 'zzz'; there are fidelity, capability, size, memory, reserve, speed, lock,",
    ),
    ("update", "reserv", "unknown kind 'reserv'; did you mean 'reserve'?"),
    ("update", "sped", "unknown kind 'sped'; did you mean 'speed'?"),
    ("update", "anywy", "unknown kind 'anywy'; did you mean 'anyway'?"),
    ("update", "anyway", "anyway alone records nothing; add kinds, or all"),
    ("require-baseline", "", EMPTY),
    ("require-baseline", "sizes", "did you mean 'size'?"),
    ("require-baseline", "lock", "unknown kind 'lock'"),
    ("require-baseline", "anyway", "unknown kind 'anyway'"),
    ("suites", "againts", "unknown suite 'againts'; did you mean 'against'?"),
    ("suites", "budget", "unknown suite 'budget'; did you mean 'budgets'?"),
    ("inconclusive", "pass", "unknown outcome 'pass'; "),
    ("inconclusive", "skipp", "unknown outcome 'skipp'; did you mean 'skip'?"),
    ("tier", "", "a tier's name is not empty"),
    ("tier", "portable", "'portable' is the folder of the baselines that travel, so no tier's"),
    ("tier", "Portable", "'Portable' is the folder of the baselines that travel, so no tier's"),
    ("tier", "a/b", "a tier's name is letters, digits, '.', '_' and '-', not '/'"),
    ("tier", "..", "a tier's name does not start with '.'"),
    ("tier", "my board", "a tier's name is letters, digits, '.', '_' and '-', not ' '"),
    ("tier", "t" * 65, "a tier's name has at most 64 characters, this has 65"),
    ("board", "", "a board's name is not empty"),
    ("board", "kitchen/1", "a board's name is letters, digits, '.', '_' and '-', not '/'"),
    ("board", "b" * 65, "a board's name has at most 64 characters, this has 65"),
    ("bounds", "", "an empty path"),
    ("bounds", "gone.toml", "cannot read it: No such file or directory"),
    ("bounds", ".", "cannot read it: "),
    ("reference", "", "an empty path"),
    ("reference", "gone.npz", "No such file or directory"),
    ("reference", "besides", "No such file or directory"),
    ("reference", ".", "no reference of smollm2-135m: there is no .npz file"),
    ("against", "", "an empty path"),
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
    # What there is is told once, if at all.
    assert found.count("there are") + found.count("did you mean") <= 1
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


# A reference file

SMALL = "--ondevice-methods=F16,Q4_0"


def write_reference(project: Project, name: str = "tiny.npz", **about: object) -> Path:
    """Write a reference file of one window and 64 tokens, by default one that fits the run."""
    known: dict[str, object] = {
        "model": "tiny",
        "source": "0" * 64,
        "tokenizer": "t",
        "text": texts(None)[1],
        "n_vocab": 64,
        "n_ctx": N_CTX,
        "top": 8,
        "tail": 4,
        "seed": 20505,
        "execution": moving(Execution()),
        "runtime": "llama.cpp b1",
        "runtime_digest": "r",
        "cpu": "some cpu",
        "created": "2026-01-01T00:00:00+00:00",
    }
    head = Head(**(known | about))
    scored = head.n_ctx - head.n_ctx // 2 - 1
    writer = Writer(head, ["narrative:0"], ["d0"], scored)
    even = np.full((scored, 64), -np.log(64), dtype=np.float32)
    writer.keep(0, even, np.zeros(scored, np.int32))
    writer.save(project.path / name)
    return project.path / name


def test_a_reference_file_takes_the_place_of_the_float_model(
    project: Project, tiny: list[str]
) -> None:
    write_reference(project)
    model, method = tiny[0], "--ondevice-methods=Q4_0"
    assert [node for node in project.collect(model, method) if "kld" in node] == [
        "fidelity::test_kld[tiny-Q4_0]"
    ]
    with_file = project.collect(model, method, "--ondevice-reference=tiny.npz")
    assert [node for node in with_file if "F16" in node] == []
    assert "fidelity::test_kld[tiny-Q4_0]" in with_file
    # One cell is left, and it is no reference.
    assert not [node for node in with_file if "test_reference" in node and "tiny" in node]


def test_a_folder_of_reference_files_is_looked_through(project: Project, tiny: list[str]) -> None:
    write_reference(project, "refs/one.npz", model="another")
    write_reference(project, "refs/two.npz")
    nodes = project.collect(tiny[0], "--ondevice-methods=Q4_0", "--ondevice-reference=refs")
    assert [node for node in nodes if "F16" in node] == []


def test_beside_needs_no_file(project: Project, tiny: list[str]) -> None:
    nodes = project.collect(tiny[0], "--ondevice-methods=Q4_0", "--ondevice-reference=beside")
    assert "fidelity::test_reference[tiny-F16]" in nodes


ANOTHER_TEXT = "it was made on another evaluation text; give that text with --ondevice-text=FILE"
UNFIT = [
    ({"model": "other"}, "no reference of tiny: of other"),
    ({"text": "another"}, f"tiny.npz: {ANOTHER_TEXT}"),
    ({"n_ctx": 256}, "tiny.npz: it was made under another execution: n_ctx 256; make it anew"),
    (
        {"execution": moving(Execution(flash_attention=False, repack=False))},
        "tiny.npz: it was made under another execution: flash_attention False, repack False; make",
    ),
    ({"execution": {}}, "tiny.npz: it was made under another execution: "),
]


@pytest.mark.parametrize(("about", "said"), UNFIT, ids=[next(iter(row[0])) for row in UNFIT])
@pytest.mark.parametrize("only", [["--collect-only"], []])
def test_a_reference_that_does_not_fit_is_refused(
    project: Project, tiny: list[str], about: dict[str, object], said: str, only: list[str]
) -> None:
    write_reference(project, **about)
    found = project.refused(*tiny, "--ondevice-reference=tiny.npz", *only)
    assert found.startswith("--ondevice-reference=tiny.npz (from the command line): ")
    assert said in found
    assert not project.cache.exists()


def test_where_the_references_layers_were_makes_no_difference(
    project: Project, tiny: list[str]
) -> None:
    write_reference(project, execution=moving(Execution(gpu_layers=99)))
    assert project.collect(tiny[0], SMALL, "--ondevice-reference=tiny.npz")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "tiny.npz: "),
        (b"GGUF" + bytes(64), "tiny.npz: "),
        (b"PK\x05\x06" + bytes(18), "tiny.npz: "),
    ],
    ids=["empty", "gguf", "empty zip"],
)
def test_what_is_no_reference_file_is_refused(
    project: Project, tiny: list[str], content: bytes, said: str
) -> None:
    project.write("tiny.npz", content)
    found = project.refused(*tiny, "--ondevice-reference=tiny.npz")
    assert found.startswith("--ondevice-reference=tiny.npz (from the command line): ")
    assert said in found


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read it: No such file or directory"),
        (b"\xff\xff", "it is not UTF-8 text (byte 0)"),
        (b"", "it is empty"),
    ],
    ids=["missing", "binary", "empty"],
)
def test_a_text_is_looked_at_before_the_reference_of_it(
    project: Project, tiny: list[str], content: bytes | None, said: str
) -> None:
    write_reference(project)
    if content is not None:
        project.write("own.txt", content)
    found = project.refused(*tiny, "--ondevice-reference=tiny.npz", "--ondevice-text=own.txt")
    assert found == f"--ondevice-text=own.txt (from the command line): {said}"


def test_a_reference_cut_short_is_refused(project: Project, tiny: list[str]) -> None:
    path = write_reference(project)
    path.write_bytes(path.read_bytes()[:-100])
    found = project.refused(*tiny, "--ondevice-reference=tiny.npz")
    assert found.startswith("--ondevice-reference=tiny.npz (from the command line): ")
    assert str(path) in found


def test_two_references_of_one_model_are_refused(project: Project, tiny: list[str]) -> None:
    for name in ("refs/a.npz", "refs/b.npz"):
        write_reference(project, name)
    found = project.refused(*tiny, "--ondevice-reference=refs")
    assert "refs/a.npz and " in found
    assert found.endswith("refs/b.npz are both of tiny")


# Calibration text

SHIPPED = texts(None)[0]
OURS = "".join(f"our own words number {count}, which nobody else has\n" for count in range(40))


def test_a_calibration_text_of_ones_own_is_taken(project: Project, tiny: list[str]) -> None:
    project.write("own.txt", OURS)
    project.accepted(*tiny, "--ondevice-calibration=own.txt")
    imatrix = (tiny[0], "--ondevice-methods=Q4_0+imatrix")
    project.accepted(*imatrix, "--ondevice-calibration=own.txt", checks=CHECKS + MORE)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xff", "it is not UTF-8 text (byte 0)"),
        (b"", "it is empty"),
        (b" \n", "it is empty"),
    ],
)
def test_a_calibration_text_that_is_none(
    project: Project, tiny: list[str], content: bytes, said: str
) -> None:
    project.write("own.txt", content)
    found = project.refused(*tiny, "--ondevice-calibration=own.txt")
    assert found == f"--ondevice-calibration=own.txt (from the command line): {said}"


@pytest.mark.usefixtures("no_process")
def test_a_calibration_text_that_is_the_evaluation_text_is_refused(
    project: Project, tiny: list[str]
) -> None:
    judged = Path(SHIPPED[0].path)
    project.write("own.txt", judged.read_bytes())
    start = "--ondevice-calibration=own.txt (from the command line): "
    found = project.refused(*tiny, "--ondevice-calibration=own.txt")
    assert found.startswith(start)
    assert f"{project.path / 'own.txt'}: the calibration text is the evaluation text" in found
    assert str(judged) in found
    # A good part of it is as bad.
    part = judged.read_text("utf-8")
    project.write("own.txt", OURS + part[: len(part) // 2])
    found = project.refused(*tiny, "--ondevice-calibration=own.txt")
    assert found.startswith(start)
    assert "of the evaluation text's runs of 12 words, such as '" in found


@pytest.mark.usefixtures("no_process")
def test_an_evaluation_text_that_is_the_calibration_text_is_refused_where_one_is_used(
    project: Project, tiny: list[str]
) -> None:
    calibrated = Path(calibration_texts(None)[0][0].path)
    project.write("own.txt", calibrated.read_bytes())
    text = "--ondevice-text=own.txt"
    # No method wants an importance matrix: nothing is calibrated.
    project.accepted(*tiny, text)
    imatrix = (tiny[0], "--ondevice-methods=Q4_0+imatrix", text)
    found = project.refused(*imatrix)
    assert f"{calibrated}: the calibration text is the evaluation text" in found
    assert found.endswith("so give a calibration text that has nothing from there")
    # With another one there is no such trouble.
    project.write("other.txt", OURS)
    other = "--ondevice-calibration=other.txt"
    project.accepted(*imatrix, other, checks=CHECKS + MORE)
    # The option alone is a use of it: the next run may want it.
    found = project.refused(*tiny, text, f"--ondevice-calibration={calibrated}")
    assert found.startswith(f"--ondevice-calibration={calibrated} (from the command line): ")


def test_the_texts_that_ship_are_apart(project: Project, tiny: list[str]) -> None:
    project.accepted(tiny[0], "--ondevice-methods=Q4_0+imatrix", checks=CHECKS + MORE)


# What to compare with


@pytest.fixture
def against(project: Project, tiny: list[str]) -> Callable[[str], str]:
    """Refuse a run that compares with something; returns what it was told after the option."""

    def refused(place: str) -> str:
        said = project.refused(*tiny, f"--ondevice-against={place}", "--ondevice-offline")
        start = f"--ondevice-against={place} (from the command line): "
        assert said.startswith(start)
        return said.removeprefix(start)

    return refused


def test_a_release_before_that_is_not_there(
    project: Project, against: Callable[[str], str]
) -> None:
    assert against("gone") == f"{project.path / 'gone'}: there is no such folder"


def test_a_release_before_of_other_models(
    project: Project, against: Callable[[str], str], gguf_bytes: bytes
) -> None:
    project.write("old/other-F16.gguf", gguf_bytes)
    assert against("old") == (
        "nothing there is a predecessor of a cell of this run; its files are named"
        " MODEL...METHOD.gguf, or it is a Python environment with another llama.cpp"
    )


def test_an_empty_release_before(project: Project, against: Callable[[str], str]) -> None:
    (project.path / "old").mkdir()
    assert against("old").startswith("nothing there is a predecessor of a cell of this run; ")


@pytest.mark.parametrize("name", ["hf:nope", "hf:", "hf:a/b/c/d"])
def test_a_repository_before_that_cannot_be_one(against: Callable[[str], str], name: str) -> None:
    assert against(name).startswith(f"'{name}' is not of the form hf:OWNER/REPO")


def test_a_release_before_is_compared_with(
    project: Project, tiny: list[str], gguf_bytes: bytes
) -> None:
    project.write("old/tiny-F16.gguf", gguf_bytes)
    nodes = project.collect(*tiny, "--ondevice-against=old")
    assert "against::test_size[tiny-F16]" in nodes
    project.run(*tiny, "--ondevice-against=old", "-k", "no_such_check").assert_outcomes(
        deselected=len(nodes)
    )


def test_files_of_the_release_before_that_nothing_succeeds_are_named(
    project: Project, tiny: list[str], gguf_bytes: bytes
) -> None:
    project.write("old/tiny-F16.gguf", gguf_bytes)
    project.write("old/tiny-Q8_0.gguf", gguf_bytes)
    result = project.run(*tiny, "--ondevice-against=old", "-k", "no_such_check")
    result.stdout.fnmatch_lines(
        ["ondevice: in the release before, and not in this run: *tiny-Q8_0.gguf*"]
    )


def test_an_environment_without_a_runtime(project: Project, against: Callable[[str], str]) -> None:
    project.write("env/bin/python", "")
    project.write("env/lib/python3.11/site-packages/msgspec/__init__.py", "")
    said = against("env")
    assert "env: this Python environment has no llama-cpp-python; install the build to" in said
    assert said.endswith("env/bin/python -m pip install llama-cpp-python msgspec")


AGAINST = ("--ondevice-against=old", "--ondevice-suites=against", "-k", "size")


def compared(project: Project, *args: str) -> tuple[pytest.RunResult, dict[str, Any]]:
    """Compare sizes, which headers tell without a probe; returns the one check of the report."""
    result = project.run(*args, *AGAINST)
    (check,) = json.loads((project.path / "report.json").read_text())["checks"]
    return result, check


def test_a_release_that_is_the_same_is_told_so(
    project: Project, tiny: list[str], gguf_bytes: bytes
) -> None:
    project.write("old/tiny-F16.gguf", gguf_bytes)
    result, check = compared(project, *tiny)
    assert result.ret == 0
    assert (check["check"], check["verdict"], check["finding"]) == (
        *("against.size", "pass"),
        "identical",
    )
    assert (check["change"]["change"], check["change"]["finding"]) == (0.0, "identical")
    assert check["bound"]["source"] == "predecessor"
    assert check["bound"]["detail"] == "old"
    result.stdout.fnmatch_lines(["against its predecessor*size", "tiny-F16*identical*identical"])


@pytest.mark.parametrize(
    ("more", "verdict", "finding"), [(5000, "pass", "better"), (-64, "fail", "worse")]
)
def test_a_release_of_another_size_is_told_by_how_much(
    project: Project,
    tiny: list[str],
    gguf_bytes: bytes,
    more: int,
    verdict: str,
    finding: str,
) -> None:
    old = gguf_bytes + bytes(more) if more > 0 else gguf_bytes
    project.write("old/tiny-F16.gguf", old)
    if more < 0:
        project.write("tiny.gguf", gguf_bytes + bytes(-more))
    result, check = compared(project, *tiny)
    assert (check["verdict"], check["finding"]) == (verdict, finding)
    before, after = len(old), (project.path / "tiny.gguf").stat().st_size
    assert (check["change"]["before"], check["change"]["after"]) == (before, after)
    assert check["change"]["change"] == pytest.approx(after / before - 1)
    if finding == "worse":
        lines = result.outlines
        start = next(i for i, line in enumerate(lines) if line.startswith("against.size tiny-F16"))
        assert lines[start].startswith("against.size tiny-F16: fail: worse: ")
        heads = ("  measured  ", "  bound     ", "  why       ", "  again     ")
        assert tuple(line[:12] for line in lines[start + 1 : start + 5]) == heads
        assert "predecessor: old" in lines[start + 2]


def test_a_cell_without_a_predecessor_is_skipped_with_the_reason(
    project: Project, tiny: list[str], gguf_bytes: bytes
) -> None:
    project.write("other.gguf", gguf_bytes)
    project.write("old/other-F16.gguf", gguf_bytes)
    models = "--ondevice-models=tiny.gguf,other.gguf"
    result = project.run(models, tiny[1], *AGAINST, "-rs")
    result.assert_outcomes(passed=1, skipped=1, deselected=13)
    result.stdout.fnmatch_lines(
        ["tiny-F16*no predecessor", "*requires a predecessor: old has no file for tiny-F16"]
    )


def test_without_a_release_before_there_is_nothing_to_compare_with(
    project: Project, tiny: list[str]
) -> None:
    project.write(
        "test_own.py", "def test_own(ondevice_compare):\n    ondevice_compare('file_size')\n"
    )
    result = project.run(*tiny, "test_own.py", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*requires --ondevice-against=OLD, the release before"])


# What an undecided measurement does to its item

UNDECIDED = """
from pytest_ondevice.model.measurement import Measurement

FIELDS = {{"quantity": "mine", "value": 1.0, "unit": "", "advisory": {advisory}}}
NOISY = {{"samples": (0.2, 1.9, 0.4, 1.5), "sample_ids": ("a", "b", "c", "d"), "n": 4}}

def test_noisy(ondevice_check):
    ondevice_check(Measurement(**FIELDS, **NOISY), at_most=1.1)

def test_disturbed(ondevice_check):
    ondevice_check(Measurement(**FIELDS, disturbed=("5% stolen",)), at_most=1.1)

def test_worse(ondevice_check):
    ondevice_check(Measurement(**FIELDS), at_most=0.5)
"""


@pytest.mark.parametrize(
    ("args", "advisory", "failed", "skipped"),
    [
        ([], False, 3, 0),
        (["--ondevice-inconclusive=fail"], False, 3, 0),
        # What is worse for certain fails all the same.
        (["--ondevice-inconclusive=skip"], False, 1, 2),
        ([], True, 0, 3),
    ],
)
def test_what_is_undecided_fails_or_is_skipped(
    project: Project,
    tiny: list[str],
    args: list[str],
    advisory: bool,
    failed: int,
    skipped: int,
) -> None:
    project.write("test_own.py", UNDECIDED.format(advisory=advisory))
    result = project.run(*tiny, "test_own.py", "--ondevice-report=r.json", "-rs", *args)
    result.assert_outcomes(failed=failed, skipped=skipped)
    found = json.loads((project.path / "r.json").read_text())["checks"]
    assert [one["verdict"] for one in found] == ["inconclusive", "invalid", "fail"]
    assert [one["outcome"] for one in found].count("skipped") == skipped
    assert {one.get("advisory", False) for one in found} == {advisory}
    if advisory:
        result.stdout.fnmatch_lines(["*fail (advisory): 1 is above the bound"])


def test_the_tier_and_the_board_are_in_the_report(project: Project, tiny: list[str]) -> None:
    project.write(
        "test_own.py", "def test_own(ondevice_check):\n    ondevice_check(1, at_most=2)\n"
    )
    run = (*tiny, "test_own.py", "--ondevice-report=r.json")

    def place(*args: str) -> tuple[str, str]:
        assert project.run(*run, *args).ret == 0
        report = json.loads((project.path / "r.json").read_text())
        return report["tier"], report["board"]

    assert place("--ondevice-tier=pi-5", "--ondevice-board=kitchen") == ("pi-5", "kitchen")
    derived = place()
    assert derived == place()
    assert re.fullmatch(r"[a-z0-9_.-]+-2t-[0-9a-f]{6}", place("--ondevice-threads=2")[0])
    assert re.fullmatch(r"[0-9a-f]{12}", derived[1])


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
