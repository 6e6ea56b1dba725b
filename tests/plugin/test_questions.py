"""Questions that a user names: what is taken, and what is refused before anything is measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from projects import CHECKS, Project

from pytest_ondevice import tasks
from pytest_ondevice.catalog import catalog

if TYPE_CHECKING:
    from collections.abc import Callable

HEADER = '{"tasks": 1, "name": "mine", "normalisation": "bytes"}\n'
ITEM = (
    '{"id": "one", "form": "choice", "prompt": "1 + 1 =", "right": [0],'
    ' "options": [{"text": " 2"}, {"text": " 3"}]}\n'
)
OTHER = ITEM.replace("one", "two")


@pytest.fixture
def refused(project: Project, tiny: list[str], no_process: None) -> Callable[[str], str]:
    """Name sets of questions in a run that would measure; say what is wrong with them."""

    def say(named: str) -> str:
        option = f"--ondevice-tasks={named}"
        said = project.refused(*tiny, option)
        start = f"{option} (from the command line): "
        assert said.startswith(start)
        return said.removeprefix(start)

    return say


# -- what is taken


@pytest.mark.parametrize(
    "named",
    [
        "general",
        "General",
        "general,general",
        "pocket,general",
        "mine.jsonl",
        "mine.jsonl+none,general+tokens",
    ],
)
def test_sets_that_are_taken(project: Project, tiny: list[str], named: str) -> None:
    project.write("mine.jsonl", HEADER + ITEM)
    project.accepted(*tiny, f"--ondevice-tasks={named}")


def test_a_file_is_found_from_where_it_was_named(project: Project, tiny: list[str]) -> None:
    project.write("sub/mine.jsonl", HEADER + ITEM)
    project.pytester.makeini("[pytest]\nondevice_tasks = sub/mine.jsonl\n")
    project.pytester.chdir()
    project.accepted(*tiny)
    said = project.refused(*tiny, "--ondevice-tasks=mine.jsonl")
    assert "there is no file 'mine.jsonl'" in said


def test_questions_of_ones_own_stand_in_no_way_of_other_tests(project: Project) -> None:
    # Where no model is gated nothing is asked, so nothing is read.
    project.pytester.makeini("[pytest]\nondevice_tasks = gone.jsonl\n")
    project.write("test_own.py", "def test_own():\n    pass\n")
    project.run().assert_outcomes(passed=1)


# -- what is refused


def test_an_unknown_set_is_told_what_was_meant(refused: Callable[[str], str]) -> None:
    assert refused("genral") == (
        "unknown set of tasks 'genral'; did you mean 'general'? (a file of your own ends in .jsonl)"
    )
    said = refused("general,zzz")
    assert said.startswith("unknown set of tasks 'zzz'")
    assert all(name in said for name in ("general", "pocket"))


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("gone.jsonl", "there is no file 'gone.jsonl'"),
        ("folder.jsonl", "'folder.jsonl' is a folder; give a file of JSON lines"),
        ("~no-such-user/x.jsonl", "there is no file '~no-such-user/x.jsonl'"),
        ("general+none,general", "two sets are named general; rename a file, or ask them apart"),
        ("mine.jsonl,copy.jsonl", "two sets are named mine; rename a file, or ask them apart"),
        ("mine.jsonl+byte", "unknown normalisation 'byte' of 'mine.jsonl'; did you mean 'bytes'?"),
    ],
)
def test_what_is_no_set(
    project: Project, refused: Callable[[str], str], named: str, said: str
) -> None:
    project.write("mine.jsonl", HEADER + ITEM)
    project.write("copy.jsonl", HEADER + OTHER)
    project.write("folder.jsonl/x", "")
    assert refused(named) == said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "it is empty; one record per line is needed"),
        (HEADER, "it has a header, but no items; one item per line is needed"),
        (HEADER + ITEM + ITEM, "line 3 - $.id: the id 'one' is that of line 2 already"),
        (
            HEADER + OTHER + ITEM.replace("[0]", "[2]"),
            "line 3 - $.right[0]: it is 2, and there are 2 ",
        ),
        (HEADER + "\n" + ITEM + "{\n", "line 4: "),
        (
            HEADER + ITEM.replace("choice", "choise"),
            "line 2 - $.form: unknown form 'choise'; did you mean",
        ),
        (ITEM, "line 1: it is an item, and the first line has to be a header"),
        ('{"question": "?"}\n', "line 1: it is a record of no known form: its keys are 'question'"),
    ],
)
def test_a_file_that_is_none_is_one_sentence_with_the_line(
    project: Project, refused: Callable[[str], str], content: str, said: str
) -> None:
    path = project.write("sub/mine.jsonl", content)
    found = refused("sub/mine.jsonl")
    assert found.startswith(f"{path}: {said}"), found
    assert "Traceback" not in found


@pytest.mark.parametrize("number", ["0", "-1", "x", "1000001", "1.5", ""])
def test_a_number_of_questions_that_is_none(project: Project, tiny: list[str], number: str) -> None:
    said = project.refused(*tiny, f"--ondevice-items={number}")
    assert said.startswith(
        f"--ondevice-items={number} (from the command line): ".replace("= ", "= ")
    )
    assert "a number of questions from 1 to 1000000" in said


def test_a_number_of_questions_is_taken(project: Project, tiny: list[str]) -> None:
    project.accepted(*tiny, "--ondevice-items=5")
    assert project.parse("--ondevice-items=5").items == 5
    assert project.parse().items is None


def test_the_environment_names_questions_too(
    project: Project, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_ONDEVICE_TASKS", "genral")
    said = project.refused(*tiny)
    assert said.startswith("PYTEST_ONDEVICE_TASKS=genral")
    assert "did you mean 'general'?" in said


# -- what a catalog names


CATALOG = """schema = 1
[models.mine]
{fields}
[[models.mine.sources]]
path = "tiny.gguf"
"""
RUN = ("--ondevice-models=mine", "--ondevice-methods=F16", "--ondevice-catalog=models.toml")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            'text = "pockt"',
            "no text 'pockt' ships; leave it away for the common one - `$.models['mine'].text`",
        ),
        (
            'tasks = ["general", "genral"]',
            "no set of questions 'genral' ships; did you mean 'general'? - `$.models['mine']",
        ),
        # Names, not paths: what is beside the texts is none.
        ('text = ".."', "no text '..' ships"),
        ('text = "../text/pocket"', "no text '../text/pocket' ships"),
        ('tasks = ["../tasks/general"]', "no set of questions '../tasks/general' ships"),
    ],
)
@pytest.mark.usefixtures("tiny", "no_process")
def test_a_catalog_with_what_does_not_ship(project: Project, fields: str, said: str) -> None:
    path = project.write("models.toml", CATALOG.format(fields=fields))
    found = project.refused(*RUN)
    assert f"{path.name}: {said}" in found


@pytest.mark.usefixtures("tiny")
def test_a_catalog_with_what_ships(project: Project) -> None:
    project.write("models.toml", CATALOG.format(fields='text = "pocket"\ntasks = ["pocket"]'))
    project.accepted(*RUN, checks=CHECKS)
    model = catalog(project.path / "models.toml")["mine"]
    settings = project.parse()
    assert [one.name for one in tasks.sets_of(model, settings)] == ["pocket"]
    # What the user names goes before what the catalog does.
    named = project.parse("--ondevice-tasks=general")
    assert [one.name for one in tasks.sets_of(model, named)] == ["general"]


def test_models_are_asked_the_common_questions_unless_they_have_their_own(
    project: Project,
) -> None:
    settings = project.parse()
    for model in catalog().values():
        own = ["pocket"] if model.family == "pocket" else list(tasks.COMMON)
        assert [one.name for one in tasks.sets_of(model, settings)] == own, model.name


def test_fewer_questions_of_each_set_are_asked(project: Project) -> None:
    few = project.parse("--ondevice-items=7", "--ondevice-tasks=general,pocket")
    sets = tasks.sets_of(catalog()["pocket-s"], few)
    assert [len(one.items) for one in sets] == [7, 7]
    assert (
        len(tasks.sets_of(catalog()["pocket-s"], project.parse("--ondevice-items=7"))[0].items) == 7
    )


def test_every_set_that_ships_is_read() -> None:
    for name, path in tasks.shipped().items():
        found = tasks.read(path)
        assert found.name == name == Path(path).stem
        assert len({item.id for item in found.items}) == len(found.items) > 200
