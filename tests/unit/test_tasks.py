"""Sets of questions from files: every form, every mistake, and which items a budget keeps."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice import tasks
from pytest_ondevice.errors import BadFileError, OptionError
from pytest_ondevice.model.task import Extract, Form, Item, Normalisation, Option, TaskSet
from pytest_ondevice.options import Value
from pytest_ondevice.tasks import forms, own, records

HEADER = {"tasks": 1, "name": "kitchen", "normalisation": "bytes"}
CHOICE = {
    "id": "tea",
    "form": "choice",
    "prompt": "Tea is made with",
    "options": [{"text": " hot water"}, {"text": " cold sand"}, {"text": " dry wool"}],
    "right": [0],
    "group": "drinks",
}
MASS = CHOICE | {"id": "mass", "form": "mass", "right": [0, 2]}
CLOZE = {
    "id": "snow",
    "form": "cloze",
    "prompt": "Snow is as white as",
    "options": [{"text": " snow"}],
}
EXACT = {
    "id": "sum",
    "form": "exact",
    "prompt": "2 + 3 =",
    "targets": ["5", "5.0"],
    "extract": "last-number",
    "stop": ["\n"],
    "most": 8,
}

HELLASWAG = {
    "ind": 31,
    "activity_label": "Baking bread",
    "ctx_a": "A woman kneads dough.",
    "ctx_b": "she",
    "ctx": "A woman kneads dough. she",
    "endings": ["puts it in a bowl.", "drives it to sea.", "reads it a law."],
    "label": "0",
    "split": "val",
}
ARC = {
    "id": "K_7",
    "question": "Which of these floats?",
    "choices": {"text": ["a cork", "a nail", "a brick"], "label": ["A", "B", "C"]},
    "answerKey": "A",
}
ARC_OLD = {
    "id": "K_7",
    "question": {
        "stem": "Which of these floats?",
        "choices": [
            {"text": "a cork", "label": "1"},
            {"text": "a nail", "label": "2"},
            {"text": "a brick", "label": "3"},
        ],
    },
    "answerKey": "1",
}
MMLU = {
    "question": "How many legs has a stool with three legs?",
    "subject": "plain_furniture",
    "choices": ["two", "three", "four", "five"],
    "answer": 1,
}
WINOGRANDE = {
    "qID": "Q-1",
    "sentence": "The jug did not fit under the tap, since the _ was too tall.",
    "option1": "jug",
    "option2": "tap",
    "answer": "1",
}
TRUTHFULQA = {
    "question": "Do spoons sing at night?",
    "mc1_targets": {"choices": ["No, they are silent", "Yes, softly"], "labels": [1, 0]},
    "mc2_targets": {
        "choices": ["No, they are silent", "Spoons make no sound", "Yes, softly"],
        "labels": [1, 1, 0],
    },
}
GSM8K = {
    "question": "Ada has 3 bags of 400 nuts. How many nuts is that?",
    "answer": "3 times 400 is <<3*400=1200>>1200.\n#### 1,200",
}
PUBLIC: dict[str, dict[str, Any]] = {
    "hellaswag": HELLASWAG,
    "arc": ARC,
    "arc-old": ARC_OLD,
    "mmlu": MMLU,
    "winogrande": WINOGRANDE,
    "truthfulqa": TRUTHFULQA,
    "gsm8k": GSM8K,
}


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mine.jsonl"


@pytest.fixture
def read(path):
    """Read a file of these records, or of these bytes."""

    def make(*rows, **more):
        given = rows[0] if isinstance(rows[0], bytes) else jsonl(*rows)
        path.write_bytes(given)
        return tasks.read(path, **more)

    return make


@pytest.fixture
def refused(read, path):
    """Read it; return the problem that its only sentence ends in."""

    def make(*rows):
        with pytest.raises(BadFileError) as caught:
            read(*rows)
        return sentence(caught.value, path)

    return make


def sentence(error: BadFileError, path: Path) -> str:
    """Return what an error says of a file, having made sure that it is a sentence."""
    said = str(error)
    assert said.startswith(f"{path}: ")
    said = said.removeprefix(f"{path}: ")
    assert said.isprintable()
    assert len(said) < 700
    return said


def only(found: TaskSet) -> Item:
    (item,) = found.items
    return item


# Our own form


def test_a_file_of_our_own_form_is_read(read):
    found = read(HEADER, CHOICE, MASS, CLOZE, EXACT)
    assert (found.name, found.normalisation) == ("kitchen", Normalisation.BYTES)
    choice, mass, cloze, exact = found.items
    assert choice == Item(
        id="tea",
        form=Form.CHOICE,
        prompt="Tea is made with",
        options=(Option(" hot water"), Option(" cold sand"), Option(" dry wool")),
        right=(0,),
        group="drinks",
    )
    assert (mass.form, mass.right) == (Form.MASS, (0, 2))
    assert (cloze.form, cloze.options, cloze.right) == (Form.CLOZE, (Option(" snow"),), (0,))
    assert (exact.targets, exact.extract) == (("5", "5.0"), Extract.LAST_NUMBER)
    assert (exact.stop, exact.most) == (("\n",), 8)


def test_what_is_written_is_read_again(read):
    items = read(HEADER, CHOICE, MASS, CLOZE, EXACT).items
    again = read(b"\n".join([json.dumps(HEADER).encode(), *map(msgspec.json.encode, items)]))
    assert again.items == items


def test_a_cloze_says_the_same_with_and_without_its_right_one(read):
    first = only(read(HEADER, CLOZE))
    assert first == only(read(HEADER, CLOZE | {"right": [0]}))


def test_a_header_needs_no_name_and_no_normalisation(read):
    found = read({"tasks": 1}, CHOICE)
    assert (found.name, found.normalisation) == ("mine", Normalisation.NONE)


def test_the_caller_names_and_normalises(read):
    found = read(HEADER, CHOICE, name="other", normalisation=Normalisation.TOKENS)
    assert (found.name, found.normalisation) == ("other", Normalisation.TOKENS)
    assert found.items == read(HEADER, CHOICE).items


def test_a_file_whose_name_is_no_name_still_has_one(tmp_path):
    for stem, name in {"my tasks (v2)": "my-tasks-v2", "質問": "tasks"}.items():
        file = tmp_path / f"{stem}.jsonl"
        file.write_bytes(jsonl(HELLASWAG))
        assert tasks.read(file).name == name


def test_marks_blank_lines_and_line_ends_do_not_matter(read):
    plain = read(HEADER, CHOICE, EXACT)
    rows = [json.dumps(row).encode() for row in (HEADER, CHOICE, EXACT)]
    assert read(b"\xef\xbb\xbf\r\n" + b"\r\n \t\r\n".join(rows)) == plain


OWN = {
    "no items": ([HEADER], "it has a header, but no items; one item per line is needed"),
    "version": (
        [{"tasks": 2}],
        "line 1 - $.tasks: its version is 2, this version reads 1",
    ),
    "version is no number": ([{"tasks": "1"}], "line 1 - $.tasks: expected `int`, got `str`"),
    "name": (
        [HEADER | {"name": "a b"}],
        "line 1 - $.name: 'a b' is no name; letters, digits, '.', '_' and '-' make one",
    ),
    "normalisation": (
        [HEADER | {"normalisation": "byte"}],
        "line 1 - $.normalisation: unknown normalisation 'byte'; did you mean 'bytes'?",
    ),
    "header's key": (
        [HEADER | {"nmae": "x"}],
        "line 1 - $: unknown key 'nmae'; did you mean 'name'?",
    ),
    "no header": ([CHOICE], "line 1: it is an item, and the first line has to be a header"),
    "two headers": ([HEADER, HEADER], "line 2: it is a second header; a file holds one set"),
    "public record": (
        [HEADER, CHOICE, ARC],
        "line 3: it is a record of arc, and the file began with a header of ours",
    ),
    "id twice": ([HEADER, CHOICE, CHOICE], "line 3 - $.id: the id 'tea' is that of line 2 already"),
    "missing": (
        [HEADER, {"id": "a", "form": "cloze"}],
        "line 2 - $: the object lacks the key `prompt`",
    ),
}

ITEMS = {
    "key": (CHOICE | {"promt": ""}, "$: unknown key 'promt'; did you mean 'prompt'?"),
    "option's key": (
        CHOICE | {"options": [{"text": " a"}, {"txt": " b"}]},
        "$.options[1]: unknown key 'txt'; did you mean 'text'?",
    ),
    "form": (CHOICE | {"form": "choise"}, "$.form: unknown form 'choise'; did you mean 'choice'?"),
    "extract": (
        EXACT | {"extract": "last-numer"},
        "$.extract: unknown extract 'last-numer'; did you mean 'last-number'?",
    ),
    "prompt's kind": (CHOICE | {"prompt": 4}, "$.prompt: expected `str`, got `int`"),
    "option's kind": (CHOICE | {"options": [" a", " b"]}, "$.options[0]: expected `object`"),
    "boolean": (CHOICE | {"right": [True]}, "$.right[0]: expected `int`, got `bool`"),
    "empty id": (CHOICE | {"id": " "}, "$.id: the name is empty"),
    "long id": (CHOICE | {"id": "x" * 201}, "$.id: the name has 201 characters; 200 is the most"),
    "odd id": (CHOICE | {"id": "a\nb"}, "$.id: the name 'a\\nb' has characters that cannot be"),
    "odd group": (CHOICE | {"group": "\x1b[2J"}, "$.group: the name '\\x1b[2J' has characters"),
    "NUL in prompt": (CHOICE | {"prompt": "a\0"}, "$.prompt: the text has a NUL character"),
    "NUL in option": (
        CHOICE | {"options": [{"text": " a"}, {"text": "\0b"}]},
        "$.options[1].text: the text has a NUL character",
    ),
    "NUL in lead": (
        CHOICE | {"options": [{"text": " a", "lead": "\0"}, {"text": " b"}]},
        "$.options[0].lead: the text has a NUL character",
    ),
    "no options": (CHOICE | {"options": []}, "$.right[0]: it is 0, and there are 0 options"),
    "one option": (
        CHOICE | {"options": [{"text": " a"}]},
        "$.options: there are 1; a choice needs 2 or more",
    ),
    "empty option": (
        CHOICE | {"options": [{"text": " a"}, {"text": ""}]},
        "$.options[1].text: the text is empty",
    ),
    "blank option": (
        CHOICE | {"options": [{"text": " \t"}, {"text": " a"}]},
        "$.options[0].text: the text is empty",
    ),
    "equal options": (
        CHOICE | {"options": [{"text": " a"}, {"text": " b"}, {"text": " a"}]},
        "$.options: number 2 is wrong, but equals number 0, which is right",
    ),
    "nothing before": (
        CHOICE | {"prompt": ""},
        "$.options[0]: the prompt is empty, and so is the lead",
    ),
    "nothing right": (CHOICE | {"right": []}, "$.right: it is empty; one option at least"),
    "all right": (MASS | {"right": [0, 1, 2]}, "$.options: all options are right"),
    "right too large": (
        CHOICE | {"right": [3]},
        "$.right[0]: it is 3, and there are 3 options, counted from 0",
    ),
    "right negative": (CHOICE | {"right": [-1]}, "$.right[0]: it is -1, and there are 3 options"),
    "right huge": (CHOICE | {"right": [10**18]}, "$.right[0]: it is 1000000000000000000, and"),
    "right twice": (CHOICE | {"right": [1, 1]}, "$.right: an option is named twice"),
    "choice with targets": (CHOICE | {"targets": ["a"]}, "$.targets: it is for items of the form"),
    "choice with stop": (CHOICE | {"stop": ["a"]}, "$.stop: it is for items of the form 'exact'"),
    "cloze with most": (CLOZE | {"most": 3}, "$.most: it is for items of the form 'exact', not"),
    "cloze with two": (
        CLOZE | {"options": [{"text": " a"}, {"text": " b"}]},
        "$.options: a cloze has one option, the text that is right",
    ),
    "cloze with another": (CLOZE | {"right": [1]}, "$.options: a cloze has one option"),
    "exact with options": (EXACT | {"options": [{"text": " a"}]}, "$.options: an item of the form"),
    "exact with right": (EXACT | {"right": [0]}, "$.right: an item of the form 'exact' has none"),
    "exact with no prompt": (EXACT | {"prompt": " "}, "$.prompt: the text is empty"),
    "no targets": (EXACT | {"targets": []}, "$.targets: it is empty; what the answer may be"),
    "empty target": (EXACT | {"targets": [""]}, "$.targets[0]: the text is empty"),
    "target is no number": (
        EXACT | {"targets": ["5", "five"]},
        "$.targets[1]: 'five' is no number, as 'last-number' needs it",
    ),
    "target with a full stop": (
        EXACT | {"extract": "line", "targets": ["five."]},
        "$.targets[0]: 'five.' can never be the answer",
    ),
    "target of two lines": (
        EXACT | {"extract": "line", "targets": ["a\nb"]},
        "$.targets[0]: 'a\\nb' can never be the answer",
    ),
    "empty stop": (EXACT | {"stop": [""]}, "$.stop[0]: a text is needed that can end the answer"),
    "no most": (EXACT | {"most": 0}, "$.most: it is 0; the most tokens to generate are 1 to 32768"),
    "huge most": (EXACT | {"most": 10**30}, "$.most: it is a huge integer; the most tokens"),
}


@pytest.mark.parametrize("case", OWN)
def test_a_mistake_in_our_own_form_is_told(refused, case):
    rows, said = OWN[case]
    assert refused(*rows).startswith(said)


@pytest.mark.parametrize("case", ITEMS)
def test_a_mistake_in_an_item_is_told(refused, case):
    item, said = ITEMS[case]
    assert refused(HEADER, CLOZE | {"id": "before"}, item).startswith(f"line 3 - {said}")


def test_options_that_differ_in_their_lead_differ(read):
    options = [{"lead": " Ann", "text": " ate"}, {"lead": " Bob", "text": " ate"}]
    assert len(only(read(HEADER, CHOICE | {"options": options, "prompt": ""})).options) == 2


# Public forms


def test_hellaswag(read):
    found = read(HELLASWAG)
    assert (found.name, found.normalisation) == ("mine", Normalisation.BYTES)
    assert only(found) == Item(
        id="31",
        form=Form.CHOICE,
        prompt="A woman kneads dough. she",
        options=(
            Option(" puts it in a bowl."),
            Option(" drives it to sea."),
            Option(" reads it a law."),
        ),
        right=(0,),
        group="Baking bread",
    )


def test_hellaswag_in_two_parts(read):
    whole = only(read(HELLASWAG))
    parts = {key: value for key, value in HELLASWAG.items() if key != "ctx"}
    assert only(read(parts)) == whole
    assert only(read(parts | {"ctx_b": ""})).prompt == "A woman kneads dough."
    assert only(read(HELLASWAG | {"label": 2})).right == (2,)
    assert only(read(HELLASWAG | {"activity_label": ""})).group == "hellaswag"


@pytest.mark.parametrize("record", [ARC, ARC_OLD])
def test_arc(read, record):
    found = read(record)
    assert found.normalisation is Normalisation.BYTES
    assert only(found) == Item(
        id="K_7",
        form=Form.CHOICE,
        prompt="Question: Which of these floats?\nAnswer:",
        options=(Option(" a cork"), Option(" a nail"), Option(" a brick")),
        right=(0,),
        group="arc",
    )


def test_labels_of_arc_are_looked_up_not_counted(read):
    choices = {"text": ["x", "y", "z"], "label": ["C", "A", "B"]}
    assert only(read(ARC | {"choices": choices, "answerKey": "A"})).right == (1,)


def test_both_kinds_of_arc_may_stand_in_one_file(read):
    assert len(read(ARC, ARC_OLD | {"id": "other"}).items) == 2


@pytest.mark.parametrize("answer", [1, "B"])
def test_mmlu(read, answer):
    found = read(MMLU | {"answer": answer})
    assert found.normalisation is Normalisation.NONE
    assert only(found) == Item(
        id="1",
        form=Form.CHOICE,
        prompt=(
            "The following are multiple choice questions (with answers) about plain furniture.\n\n"
            "How many legs has a stool with three legs?\n"
            "A. two\nB. three\nC. four\nD. five\nAnswer:"
        ),
        options=(Option(" A"), Option(" B"), Option(" C"), Option(" D")),
        right=(1,),
        group="plain_furniture",
    )


def test_mmlu_without_a_subject(read):
    item = only(read({key: value for key, value in MMLU.items() if key != "subject"}))
    assert item.group == "mmlu"
    assert item.prompt.startswith("The following are multiple choice questions (with answers).\n\n")


def test_winogrande(read):
    found = read(WINOGRANDE)
    assert found.normalisation is Normalisation.NONE
    assert only(found) == Item(
        id="Q-1",
        form=Form.CHOICE,
        prompt="The jug did not fit under the tap, since the",
        options=(
            Option(" was too tall.", lead=" jug"),
            Option(" was too tall.", lead=" tap"),
        ),
        right=(0,),
        group="winogrande",
    )
    assert only(read(WINOGRANDE | {"answer": "2"})).right == (1,)
    blank_after = WINOGRANDE | {"sentence": WINOGRANDE["sentence"] + " "}
    assert only(read(blank_after)) == only(found)


def test_winogrande_blank_at_the_start_and_in_brackets(read):
    start = only(read(WINOGRANDE | {"sentence": "_ slept."}))
    assert (start.prompt, start.options[1]) == ("", Option(" slept.", lead="tap"))
    inside = only(read(WINOGRANDE | {"sentence": "It (the '_') slept."}))
    assert (inside.prompt, inside.options[0]) == ("It (the '", Option("') slept.", lead="jug"))


def test_truthfulqa(read):
    found = read(TRUTHFULQA)
    assert found.normalisation is Normalisation.NONE
    one, two = found.items
    prompt = "Q: Do spoons sing at night?\nA:"
    assert one == Item(
        id="1.mc1",
        form=Form.CHOICE,
        prompt=prompt,
        options=(Option(" No, they are silent"), Option(" Yes, softly")),
        right=(0,),
        group="truthfulqa",
    )
    assert (two.id, two.form, two.prompt, two.right) == ("1.mc2", Form.MASS, prompt, (0, 1))
    assert [option.text for option in two.options][1:] == [" Spoons make no sound", " Yes, softly"]


@pytest.mark.parametrize(("key", "form"), [("mc1_targets", "choice"), ("mc2_targets", "mass")])
def test_truthfulqa_may_have_one_of_its_parts(read, key, form):
    record = {"question": TRUTHFULQA["question"], key: TRUTHFULQA[key]}
    found = read(TRUTHFULQA, record)
    assert [item.form for item in found.items] == ["choice", "mass", form]
    assert only(read(record)).form == form


def test_gsm8k(read):
    found = read(GSM8K)
    assert found.normalisation is Normalisation.NONE
    assert only(found) == Item(
        id="1",
        form=Form.EXACT,
        prompt="Question: Ada has 3 bags of 400 nuts. How many nuts is that?\nAnswer:",
        targets=("1200",),
        extract=Extract.LAST_NUMBER,
        stop=("\n\n", "Question:"),
        most=256,
        group="gsm8k",
    )


@pytest.mark.parametrize(
    ("end", "target"),
    [("#### 7", "7"), ("####-7.5", "-7.5"), ("#### $12,345,678. ", "12345678"), ("#### 5", "5")],
)
def test_numbers_of_gsm8k(read, end, target):
    assert only(read(GSM8K | {"answer": f"#### 9 was wrong. {end}"})).targets == (target,)


def test_ids_are_the_records_own_or_the_line(read):
    mine = {key: value for key, value in ARC.items() if key != "id"}
    found = read(b"\n" + jsonl(mine, mine | {"id": None}, ARC, mine | {"question_id": 0}))
    assert [item.id for item in found.items] == ["2", "3", "K_7", "0"]


def test_ids_of_public_records_are_made_unique(read):
    found = read(TRUTHFULQA | {"id": "a"}, TRUTHFULQA | {"id": "a"}, TRUTHFULQA | {"id": "a"})
    ids = [item.id for item in found.items]
    assert ids == ["a.mc1", "a.mc2", "a@2.mc1", "a@2.mc2", "a@3.mc1", "a@3.mc2"]


def test_ids_that_cannot_be_made_unique_are_told(refused):
    said = refused(ARC | {"id": "a@3"}, ARC | {"id": "a"}, ARC | {"id": "a"})
    assert said == "line 3 - $: the id 'a@3' is that of line 1 already"


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("normalisation", Normalisation)
def test_normalisation_can_be_chosen(read, name, normalisation):
    found = read(PUBLIC[name], normalisation=normalisation)
    assert found.normalisation is normalisation
    assert found.items == read(PUBLIC[name]).items


def without(record: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in keys}


def arc(*labels: Any, texts: Any = ("a", "b", "c"), key: Any = "A") -> dict[str, Any]:
    return ARC | {"choices": {"text": texts, "label": labels}, "answerKey": key}


def targets(*labels: Any, key: str = "mc1_targets") -> dict[str, Any]:
    return TRUTHFULQA | {key: {"choices": ["a", "b", "c"], "labels": labels}}


WRONG = {
    "hellaswag: no endings": (
        [HELLASWAG, without(HELLASWAG, "endings")],
        "line 2 - $: the key 'endings' is missing",
    ),
    "hellaswag: no ctx": (
        [without(HELLASWAG, "ctx", "ctx_a")],
        "line 1 - $: the key 'ctx' is missing",
    ),
    "hellaswag: no ctx_b": (
        [without(HELLASWAG, "ctx", "ctx_b")],
        "line 1 - $: the key 'ctx_b' is missing",
    ),
    "hellaswag: no label": (
        [without(HELLASWAG, "label")],
        "line 1 - $: the key 'label' is missing",
    ),
    "hellaswag: label too large": (
        [HELLASWAG, HELLASWAG | {"label": 3}],
        "line 2 - $.label: it is 3, and there are 3 endings; 0 to 2 is needed",
    ),
    "hellaswag: label negative": ([HELLASWAG | {"label": -1}], "line 1 - $.label: it is -1, and"),
    "hellaswag: label's text": ([HELLASWAG | {"label": "-1"}], "line 1 - $.label: it is '-1', and"),
    "hellaswag: label's digits": ([HELLASWAG | {"label": "²"}], "line 1 - $.label: it is '²', and"),
    "hellaswag: label is true": (
        [HELLASWAG | {"label": True}],
        "line 1 - $.label: it is true, and there are 3 endings",
    ),
    "hellaswag: label is a fraction": (
        [HELLASWAG | {"label": 1.0}],
        "line 1 - $.label: it is a number, and there are 3 endings",
    ),
    "hellaswag: unlabelled": (
        [HELLASWAG | {"label": ""}],
        "line 1 - $.label: it is '', and there are 3 endings; 0 to 2 is needed (published test",
    ),
    "hellaswag: an empty ending": (
        [HELLASWAG | {"endings": ["a", ""]}],
        "line 1 - $.endings[1]: the text is empty",
    ),
    "hellaswag: a number for an ending": (
        [HELLASWAG | {"endings": [3, "a"]}],
        "line 1 - $.endings[0]: expected a text, got a number",
    ),
    "hellaswag: a text for endings": (
        [HELLASWAG | {"endings": "ab"}],
        "line 1 - $.endings: expected a list of texts, got a text",
    ),
    "hellaswag: one ending": (
        [HELLASWAG | {"endings": ["a"]}],
        "line 1 - $.endings: there are 1; a choice needs 2 or more",
    ),
    "hellaswag: equal endings": (
        [HELLASWAG | {"endings": ["a", "b", "a "]}],
        "line 1 - $.endings: number 2 is wrong, but equals number 0, which is right",
    ),
    "hellaswag: NUL": (
        [HELLASWAG | {"ctx": "a\0b"}],
        "line 1 - $.ctx: the text has a NUL character",
    ),
    "hellaswag: group": (
        [HELLASWAG | {"activity_label": 3}],
        "line 1 - $.activity_label: expected a text, got a number",
    ),
    "hellaswag: group's name": (
        [HELLASWAG | {"activity_label": "x" * 300}],
        "line 1 - $.activity_label: the name has 300 characters; 200 is the most",
    ),
    "id: a list": (
        [HELLASWAG | {"ind": [1]}],
        "line 1 - $.ind: an id is a text or an integer, got a list",
    ),
    "id: true": ([ARC | {"id": True}], "line 1 - $.id: an id is a text or an integer, got true"),
    "id: empty": ([ARC | {"id": ""}], "line 1 - $.id: the name is empty"),
    "arc: key": (
        [arc("A", "B", "C", key="D")],
        "line 1 - $.answerKey: it is 'D', and the choices' labels are A, B, C",
    ),
    "arc: key's kind": (
        [arc("A", "B", "C", key=1)],
        "line 1 - $.answerKey: expected a text, got a number",
    ),
    "arc: too few labels": (
        [arc("A", "B")],
        "line 1 - $.choices: there are 3 texts and 2 labels; each needs one",
    ),
    "arc: label twice": ([arc("A", "A", "B")], "line 1 - $.choices: a label is there twice"),
    "arc: label": (
        [arc("A", "B", "F")],
        "line 1 - $.choices: a label is 'F'; A to E or 1 to 5 is needed",
    ),
    "arc: equal": (
        [arc("A", "B", texts=("x", "x"))],
        "line 1 - $.choices: number 1 is wrong, but equals number 0",
    ),
    "arc: one": ([arc("A", texts=("x",))], "line 1 - $.choices: there are 1; a choice needs 2"),
    "arc: no stem": (
        [ARC_OLD | {"question": {"choices": []}}],
        "line 1 - $.question: the key 'stem' is missing",
    ),
    "arc: choices": (
        [ARC_OLD | {"question": {"stem": "a", "choices": ["b"]}}],
        "line 1 - $.question.choices[0]: expected an object, got a text",
    ),
    "arc: a choice's text": (
        [ARC_OLD | {"question": {"stem": "a", "choices": [{"label": "A"}]}}],
        "line 1 - $.question.choices[0]: the key 'text' is missing",
    ),
    "mmlu: answer": (
        [MMLU | {"answer": 4}],
        "line 1 - $.answer: it is 4, and there are 4 choices; 0 to 3 or A to D is needed",
    ),
    "mmlu: letter": ([MMLU | {"answer": "E"}], "line 1 - $.answer: it is 'E', and there are 4"),
    "mmlu: two letters": ([MMLU | {"answer": "AB"}], "line 1 - $.answer: it is 'AB', and there"),
    "mmlu: digit": ([MMLU | {"answer": "1"}], "line 1 - $.answer: it is '1', and there are 4"),
    "mmlu: no choices": (
        [MMLU | {"choices": []}],
        "line 1 - $.choices: there are 0; a choice needs 2 or more",
    ),
    "mmlu: too many": (
        [MMLU | {"choices": [str(number) for number in range(27)]}],
        "line 1 - $.choices: there are 27 choices; letters go as far as 26",
    ),
    "mmlu: equal": (
        [MMLU | {"choices": ["x", "y", "y"]}],
        "line 1 - $.choices: number 2 is wrong, but equals number 1",
    ),
    "winogrande: no blank": (
        [WINOGRANDE | {"sentence": "None."}],
        "line 1 - $.sentence: it has 0 blanks (_), and needs one",
    ),
    "winogrande: two blanks": (
        [WINOGRANDE | {"sentence": "_ and _."}],
        "line 1 - $.sentence: it has 2 blanks (_), and needs one",
    ),
    "winogrande: nothing after": (
        [WINOGRANDE | {"sentence": "It was the _ "}],
        "line 1 - $.sentence: nothing follows the blank (_)",
    ),
    "winogrande: answer": (
        [WINOGRANDE | {"answer": "3"}],
        "line 1 - $.answer: it is '3'; '1' or '2' is needed",
    ),
    "winogrande: unlabelled": (
        [WINOGRANDE | {"answer": ""}],
        "line 1 - $.answer: it is ''; '1' or '2' is needed (published test splits",
    ),
    "winogrande: true": (
        [WINOGRANDE | {"answer": True}],
        "line 1 - $.answer: it is true; '1' or '2' is needed",
    ),
    "winogrande: equal": (
        [WINOGRANDE | {"option2": "jug"}],
        "line 1 - $.option2: number 1 is wrong, but equals number 0",
    ),
    "truthfulqa: two right": (
        [targets(1, 1, 0)],
        "line 1 - $.mc1_targets.labels: 2 are right, exactly one has to be",
    ),
    "truthfulqa: none right": (
        [targets(0, 0, 0, key="mc2_targets")],
        "line 1 - $.mc2_targets.labels: 0 are right, at least one has to be",
    ),
    "truthfulqa: all right": (
        [targets(1, 1, 1, key="mc2_targets")],
        "line 1 - $.mc2_targets.choices: all choices are right",
    ),
    "truthfulqa: too few labels": (
        [targets(1, 0)],
        "line 1 - $.mc1_targets: there are 3 choices and 2 labels; each needs one",
    ),
    "truthfulqa: label": (
        [targets(1, 0, 2)],
        "line 1 - $.mc1_targets.labels[2]: it is 2; a label here is 1 (right) or 0 (wrong)",
    ),
    "truthfulqa: a boolean": (
        [targets(True, 0, 0)],
        "line 1 - $.mc1_targets.labels[0]: it is true; a label here is",
    ),
    "truthfulqa: targets": (
        [TRUTHFULQA | {"mc1_targets": []}],
        "line 1 - $.mc1_targets: expected an object, got a list",
    ),
    "truthfulqa: neither": (
        [TRUTHFULQA, {"question": "Why?"}],
        "line 2 - $: the key 'mc1_targets' is missing, and so is 'mc2_targets'",
    ),
    "gsm8k: no mark": (
        [GSM8K | {"answer": "It is 42."}],
        "line 1 - $.answer: it does not end in '####' and a number, as in '#### 42'",
    ),
    "gsm8k: no number": ([GSM8K | {"answer": "#### many"}], "line 1 - $.answer: it does not end"),
    "gsm8k: more after": ([GSM8K | {"answer": "#### 4 or 5"}], "line 1 - $.answer: it does not"),
    "gsm8k: a number": ([GSM8K | {"answer": 42}], "line 1 - $.answer: expected a text, got a"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_in_a_public_record_is_told(refused, case):
    rows, said = WRONG[case]
    assert refused(*rows).startswith(said)


@pytest.mark.parametrize("first", ["hellaswag", "arc", "mmlu", "winogrande", "truthfulqa", "gsm8k"])
@pytest.mark.parametrize("then", ["hellaswag", "arc", "mmlu", "winogrande", "truthfulqa", "gsm8k"])
def test_records_of_two_forms_are_refused(read, refused, first, then):
    if first == then:
        assert read(PUBLIC[first], PUBLIC[then] | {"id": "x"}).items
        return
    said = refused(PUBLIC[first], PUBLIC[then])
    assert said.startswith(f"line 2: it is a record of {then}, and the file began with {first};")


# Files that are none

FILES = {
    "empty": (b"", "it is empty; one record per line is needed"),
    "blank": (b"\xef\xbb\xbf\n \n\r\n", "it is empty; one record per line is needed"),
    "array": (json.dumps([ARC]).encode(), "line 1: the file is one JSON array; one record per"),
    "array on lines": (b"[\n" + jsonl(ARC), "line 1: the file is one JSON array; one record"),
    "long array": (
        json.dumps([ARC] * 9000).encode(),
        "line 1: the file is one JSON array; one record per line is needed",
    ),
    "array on a line": (jsonl(ARC, [ARC]), "line 2: it is a JSON array; one record per line"),
    "object": (
        jsonl({"rows": [ARC, ARC]}),
        "line 1: it is one JSON object with the records under 'rows'; one record per line",
    ),
    "object on lines": (
        json.dumps(ARC, indent=1).encode(),
        "line 1: its JSON does not end on this line: the file was cut off, or a record is spread",
    ),
    "cut off": (
        jsonl(ARC, ARC)[:-20],
        "line 2: its JSON does not end on this line: the file was cut off",
    ),
    "no form": (
        jsonl({"query": "a", "reply": "b"}),
        "line 1: it is a record of no known form: its keys are 'query', 'reply'; known are hella",
    ),
    "no keys": (jsonl({}), "line 1: it is a record of no known form: its keys are none;"),
    "a number": (b"42\n", "line 1: expected a record, a JSON object, got a number"),
    "null": (jsonl(ARC) + b"null\n", "line 2: expected a record, a JSON object, got null"),
    "prose": (b"Which of these floats?\n", "line 1: it is no JSON: invalid character (byte 0)"),
    "two records on a line": (
        jsonl(ARC).strip() + jsonl(ARC),
        "line 1: it is no JSON: trailing characters",
    ),
    "python": (b"{'ctx': 1}", "line 1: it is no JSON: object keys must be strings (byte 1)"),
    "Latin-1": (
        jsonl(ARC) + '\n{"ctx": "é"}'.encode("latin-1"),
        "line 3: it is not UTF-8 (byte 9 of the line)",
    ),
    "UTF-16": ("\ufeff{}".encode("utf-16-le"), "line 1: it is not UTF-8 (byte 0 of the line)"),
    "NUL bytes": (b'{"a": "\0"}', "line 1: it has a NUL byte (byte 7 of the line); a text file"),
    "UTF-16 without a mark": ("{}".encode("utf-16-le"), "line 1: it has a NUL byte (byte 1 of"),
    "half a character": (b'{"endings": "\\ud800 alone"}', "line 1: it is no JSON: "),
    "deep": (b'{"a":' * 100_000, "line 1: it is no JSON: it is nested too deeply"),
    "a huge number": (b'{"a": 1e9999}', "line 1: it is no JSON: "),
    "a long line": (
        jsonl(ARC, ARC | {"x": "y" * 2**20}),
        "line 2: it is longer than 1048576 bytes; one record per line is needed",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_set_is_told(refused, case):
    content, said = FILES[case]
    assert refused(content).startswith(said)


def test_a_key_of_a_whole_page_stays_out_of_the_sentence(refused):
    page = "\n".join(["page"] * 10_000)
    refused({page: 1})
    refused(HEADER, CHOICE | {page: 1})
    refused(HEADER, CHOICE | {"form": page})
    refused(HEADER, CHOICE | {"id": page})
    refused(ARC | {"answerKey": page})
    refused(MMLU | {"answer": page})
    refused({"tasks": 1, "name": page})


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(BadFileError, match=r"cannot read it: No such file"):
        tasks.read(tmp_path / "none.jsonl")
    with pytest.raises(BadFileError, match=r"no regular file"):
        tasks.read(tmp_path)
    with pytest.raises(BadFileError, match=r"it is no path"):
        tasks.read(tmp_path / "a\0b.jsonl")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="requires named pipes")
def test_a_named_pipe_does_not_wait_for_its_writer(path):
    os.mkfifo(path)
    with pytest.raises(BadFileError, match=r"no regular file"):
        tasks.read(path)


def test_a_file_that_is_too_large_is_not_read(path):
    with path.open("wb") as file:
        file.truncate(records.MOST_BYTES + 1)  # no blocks, where the file system can
    with pytest.raises(BadFileError, match=r"it has 268435457 bytes; a set of tasks has 268435456"):
        tasks.read(path)


def test_lines_and_items_are_limited(read, refused, monkeypatch):
    monkeypatch.setattr(records, "MOST_LINES", 4)
    assert read(b"\n" + jsonl(ARC, ARC, ARC))
    assert refused(b"\n" + jsonl(ARC, ARC, ARC) + b"\n").startswith("it has more than 4 lines")
    monkeypatch.setattr(tasks, "MOST_ITEMS", 2)
    assert read(ARC, ARC)
    assert refused(ARC, ARC, ARC).startswith("it has more than 2 items")
    assert refused(TRUTHFULQA, TRUTHFULQA).startswith("it has more than 2 items")


# Whatever is given, it is a set or a sentence


def set_or_sentence(content: bytes) -> TaskSet | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "drawn.jsonl"
        path.write_bytes(content)
        try:
            found = tasks.read(path)
        except BadFileError as error:
            sentence(error, path)
            return None
    sound(found)
    return found


def sound(found: TaskSet) -> None:
    """Make sure that all of a set can be asked, scored and told apart."""
    assert found.items
    assert len({item.id for item in found.items}) == len(found.items)
    assert len(found.digest) == 16
    for item in found.items:
        assert 0 <= item.chance < 1
        assert all(option.text.strip() for option in item.options)
        assert all(item.prompt + option.lead for option in item.options)
        if item.form in {Form.CHOICE, Form.MASS}:
            assert 0 < len(set(item.right)) < len(item.options)
            right = {item.options[at] for at in item.right}
            wrong = set(item.options) - right
            assert len(item.options) == 2 or wrong
            assert all(0 <= at < len(item.options) for at in item.right)
        elif item.form is Form.CLOZE:
            assert (len(item.options), item.right) == (1, (0,))
        else:
            assert item.targets
            assert item.prompt
            assert item.most > 0


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_set_or_a_sentence(content):
    set_or_sentence(content)


GOOD = [
    *(jsonl(record) for record in PUBLIC.values()),
    jsonl(HEADER, CHOICE, MASS, CLOZE, EXACT),
]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_files_are_a_set_or_a_sentence(data):
    content = bytearray(data.draw(st.sampled_from(GOOD)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(content) - 1, 0)))
        piece = data.draw(st.binary(max_size=3) | st.sampled_from([b'"', b"\\", b"\0", b"\n{"]))
        content[at : at + data.draw(st.integers(0, 3))] = piece
    set_or_sentence(bytes(content))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 6)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(["", " ", "_", "A", "1", "#### 7", "choice", "exact", "\0", "a\nb"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["text", "label", "labels", "choices", "stem", "lead"]), inner
        )
    ),
    max_leaves=6,
)
KEYS = sorted({key for record in (*PUBLIC.values(), HEADER, CHOICE, EXACT) for key in record})


def mutate(data: st.DataObject, value: Any) -> Any:
    """Change one value somewhere inside."""
    inside = isinstance(value, dict | list) and value and data.draw(st.booleans())
    if not inside:
        return data.draw(JSON)
    if isinstance(value, list):
        at = data.draw(st.integers(0, len(value) - 1))
        changed = mutate(data, value[at])
        return value[:at] + data.draw(st.sampled_from([[], [changed]])) + value[at + 1 :]
    key = data.draw(st.sampled_from(sorted(value)))
    return value | {key: mutate(data, value[key])}


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_mutated_records_are_a_set_or_a_sentence(data):
    ours = data.draw(st.booleans())
    pool = [HEADER, CHOICE, MASS, CLOZE, EXACT] if ours else list(PUBLIC.values())
    record = dict(data.draw(st.sampled_from(pool)))
    key = data.draw(st.sampled_from(sorted(record) if data.draw(st.booleans()) else KEYS))
    if data.draw(st.booleans()) and key in record:
        record[key] = mutate(data, record[key])
    elif data.draw(st.booleans()):
        record.pop(key, None)
    else:
        record[key] = data.draw(JSON)
    before = [HEADER] if ours else []
    try:
        rows = jsonl(*before, record, *([CHOICE | {"id": "last"}] if ours else []))
    except UnicodeEncodeError:  # half of a surrogate pair
        return
    set_or_sentence(rows)


# Which items a budget keeps


def items(**groups: int) -> tuple[Item, ...]:
    """Make items of groups, mixed."""
    made = [
        Item(
            id=f"{group}{number}",
            form=Form.CHOICE,
            prompt=f"{group} {number}",
            options=(Option(" yes"), Option(" no")),
            right=(0,),
            group=group,
        )
        for group, count in groups.items()
        for number in range(count)
    ]
    return tuple(sorted(made, key=lambda item: item.digest[::-1]))


MIXED = items(large=120, middle=60, small=18, one=1, other=1)


def test_all_are_kept_where_there_is_room():
    for most in (None, len(MIXED), len(MIXED) + 1):
        assert tasks.select(MIXED, most) == MIXED


def test_as_many_as_asked_are_kept_in_order():
    for most in range(1, len(MIXED)):
        kept = tasks.select(MIXED, most)
        assert len(kept) == most
        places = [MIXED.index(item) for item in kept]
        assert places == sorted(set(places))


def test_a_larger_budget_keeps_what_a_smaller_one_did():
    before: set[str] = set()
    for most in range(1, len(MIXED)):
        kept = {item.id for item in tasks.select(MIXED, most)}
        assert before < kept
        before = kept


@pytest.mark.parametrize("most", [10, 20, 50, 100, 150])
def test_groups_keep_their_shares(most):
    counts = Counter(item.group for item in tasks.select(MIXED, most))
    for group, count in Counter(item.group for item in MIXED).items():
        assert abs(counts[group] - most * count / len(MIXED)) < 2, group


def test_forms_of_a_group_keep_their_shares(read):
    many = [TRUTHFULQA | {"question": f"Do {count} spoons sing?"} for count in range(50)]
    kept = read(*many, most=20)
    assert Counter(item.form for item in kept.items) == {"choice": 10, "mass": 10}


def test_small_groups_are_not_left_out():
    kept = tasks.select(items(**{f"g{number}": 1 for number in range(400)}, large=400), 200)
    counts = Counter(item.group == "large" for item in kept)
    assert 80 <= counts[True] <= 120


def test_the_selection_is_the_same_everywhere():
    kept = tasks.select(items(a=5, b=5), 4)
    assert sorted(item.id for item in kept) == ["a0", "a2", "b1", "b4"]


def test_the_selection_looks_at_neither_ids_nor_places():
    kept = {item.prompt for item in tasks.select(MIXED, 40)}
    renamed = [msgspec.structs.replace(item, id=f"x{at}") for at, item in enumerate(MIXED)]
    assert {item.prompt for item in tasks.select(renamed[::-1], 40)} == kept


def test_the_selection_is_no_run_of_neighbours():
    plain = [msgspec.structs.replace(item, group="") for item in items(large=200)]
    places = [plain.index(item) for item in tasks.select(plain, 50)]
    assert min(places) < 40
    assert max(places) > 160
    gaps = Counter(after - before for before, after in pairwise(places))
    assert len(gaps) > 4


def test_reading_keeps_as_many_as_asked(read):
    many = [ARC | {"id": str(number), "question": f"Which, {number}?"} for number in range(30)]
    whole = read(*many).items
    assert read(*many, most=7).items == tasks.select(whole, 7)
    assert read(*many, most=30).items == whole


# What a user names


def value(name: str) -> Value:
    return Value(name, "--ondevice-tasks", "command line")


@pytest.fixture
def named(tmp_path, monkeypatch):
    """Find a set from a folder where one ships and another is the user's own."""
    shipped = {}
    for name in ("general", "sums"):
        shipped[name] = tmp_path / "shipped" / f"{name}.jsonl"
        shipped[name].parent.mkdir(exist_ok=True)
        shipped[name].write_bytes(jsonl(HEADER, CHOICE, EXACT))
    monkeypatch.setattr(tasks, "shipped", lambda: shipped)
    for name in ("mine.jsonl", "a+b.jsonl"):
        (tmp_path / name).write_bytes(jsonl(HELLASWAG, ARC | HELLASWAG | {"ind": 5}))
    (tmp_path / "folder.jsonl").mkdir()

    def make(name, **more):
        return tasks.find(name, value(name), tmp_path, **more)

    return make


def test_a_set_that_ships_is_found_by_name(named):
    assert named("general").name == "general"
    assert named("General").normalisation is Normalisation.BYTES
    assert len(named("general", most=1).items) == 1


def test_a_file_is_found_by_path(named, tmp_path):
    assert named("mine.jsonl").name == "mine"
    assert named(str(tmp_path / "mine.jsonl")) == named("./mine.jsonl")
    assert named("a+b.jsonl").name == "a-b"
    assert len(named("mine.jsonl", most=1).items) == 1


@pytest.mark.parametrize("name", ["general", "mine.jsonl", "a+b.jsonl"])
@pytest.mark.parametrize("normalisation", Normalisation)
def test_a_normalisation_may_follow(named, name, normalisation):
    assert named(f"{name}+{normalisation}").normalisation is normalisation
    assert named(f"{name}+{normalisation.upper()}") == named(f"{name}+{normalisation}")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("genral", "unknown set of tasks 'genral'; did you mean 'general'? (a file of your own"),
        ("xyz", "unknown set of tasks 'xyz'; there are general, sums (a file of your own ends in"),
        ("", "unknown set of tasks ''; there are general, sums"),
        ("mine.json", "unknown set of tasks 'mine.json'; there are general, sums (a file of your"),
        ("general+byte", "unknown normalisation 'byte' of 'general'; did you mean 'bytes'?"),
        ("general+", "unknown normalisation '' of 'general'; there are none, bytes, tokens"),
        ("none.jsonl", "there is no file 'none.jsonl'"),
        ("a\0.jsonl", "there is no file 'a\\x00.jsonl'"),
        ("~nobody-has-this-name/a.jsonl", "there is no file '~nobody-has-this-name/a.jsonl'"),
        ("x" * 5000 + ".jsonl", "there is no file 'xxxx"),
        ("folder.jsonl", "'folder.jsonl' is a folder; give a file of JSON lines"),
    ],
)
def test_what_means_no_set_is_told(named, name, said):
    with pytest.raises(OptionError) as caught:
        named(name)
    assert str(caught.value).partition(" (from the command line): ")[2].startswith(said)


def test_nothing_ships(named, monkeypatch):
    monkeypatch.setattr(tasks, "shipped", dict)
    with pytest.raises(OptionError, match=r"unknown set of tasks 'general'; none ship \(a file of"):
        named("general")


def test_a_file_that_is_no_set_names_itself(named, tmp_path):
    (tmp_path / "bad.jsonl").write_bytes(jsonl(HELLASWAG, {}))
    with pytest.raises(BadFileError, match=r"bad\.jsonl: line 2 - \$: the key 'ctx' is missing"):
        named("bad.jsonl")


def test_what_ships_is_what_lies_in_the_folder():
    folder = Path(tasks.__file__).parents[1] / "data" / "tasks"
    assert dict(tasks.shipped()) == {path.stem: path for path in folder.glob("*.jsonl")}
    for name, path in tasks.shipped().items():
        found = tasks.find(name, value(name), Path("/nowhere"))
        assert (found.name, found.items) == (name, tasks.read(path).items)
        sound(found)


# What the page for users says


def test_the_example_of_the_page_is_a_set(read):
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text("utf-8")
    example = page.partition("```json\n")[2].partition("```")[0]
    found = read(example.encode())
    assert {item.form for item in found.items} == set(Form)


def test_the_page_names_every_form_and_its_normalisation():
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text("utf-8")
    rows = [row.split("|") for row in page.splitlines() if row.startswith("| ")]
    told = {row[1].strip().lower(): row[-2].strip() for row in rows}
    for form in forms.FORMS:
        assert told[form.name] == form.normalisation, form.name
    assert f"{forms.MOST_GENERATED} tokens" in page
    assert f"{own.MOST_TOKENS}" in page
