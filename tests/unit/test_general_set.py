"""The general questions that ship: complete, well formed, and no answer given away."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from importlib.resources import files

import msgspec
import pytest

from pytest_ondevice.model.task import Extract, Form, Item, Normalisation, TaskSet

FILE = files("pytest_ondevice") / "data" / "tasks" / "general.jsonl"
LEAST = {
    "knowledge": 90,
    "sense": 70,
    "grammar": 60,
    "reference": 30,
    "words": 30,
    "last-word": 40,
    "numbers": 30,
    "german": 4,
    "french": 4,
    "spanish": 4,
}
FOREIGN = {"german", "french", "spanish"}
DUPLICATE = 0.75
"""Share of words in common from which two prompts are one question asked twice."""


def words(text):
    return frozenset(re.findall(r"\w+", text.lower()))


def likeness(one, other):
    return len(one & other) / len(one | other)


def ids(found):
    return [item.id for item in found]


@pytest.fixture(scope="module")
def lines():
    return FILE.read_text("utf-8").splitlines()


@pytest.fixture(scope="module")
def items(lines):
    return tuple(msgspec.json.decode(line, type=Item, strict=True) for line in lines[1:])


@pytest.fixture(scope="module")
def four(items):
    return [item for item in items if len(item.options) == 4]


def test_the_header_says_what_the_file_is(lines):
    head = msgspec.json.decode(lines[0])
    assert head == {"tasks": 1, "name": "general", "normalisation": Normalisation.BYTES}


def test_the_set_is_known_by_its_value(items):
    # Another set of questions is another protocol: what was recorded cannot be compared.
    assert hashlib.sha256(FILE.read_bytes()).hexdigest()[:16] == "658232e2c2341de1"
    found = TaskSet(name="general", normalisation=Normalisation.BYTES, items=items)
    assert found.digest == "e813a31ce745d18f"


def test_a_line_holds_what_its_item_needs_and_no_more(lines, items):
    for line, item in zip(lines[1:], items, strict=True):
        needed = {"id", "form", "prompt", "group"}
        needed |= (
            {"targets", "extract", "stop", "most"}
            if item.form is Form.EXACT
            else {"options", "right"}
        )
        assert set(msgspec.json.decode(line)) == needed, item.id


def test_every_group_is_large_enough(items):
    found = Counter(item.group for item in items)
    assert set(found) == set(LEAST)
    assert {group for group, least in LEAST.items() if found[group] < least} == set()
    assert sum(found[group] for group in FOREIGN) >= 12
    assert len(items) >= 330


def test_ids_name_the_group_and_count_from_one(items):
    found: Counter[str] = Counter()
    for item in items:
        found[item.group] += 1
        assert item.id == f"{item.group}-{found[item.group]:03}"
    assert len(set(ids(items))) == len(items)


def test_no_question_is_asked_twice(items):
    asked = [(item.id, words(item.prompt)) for item in items]
    alike = [
        (one, other)
        for (one, left), (other, right) in itertools.combinations(asked, 2)
        if likeness(left, right) >= DUPLICATE
    ]
    assert alike == []


def test_each_form_has_what_it_is_scored_by(items):
    for item in items:
        if item.form is Form.EXACT:
            assert not item.options, item.id
            assert not item.right, item.id
            continue
        assert len(item.right) == 1, item.id
        assert 0 <= item.right[0] < len(item.options), item.id
        assert len(item.options) == 1 if item.form is Form.CLOZE else len(item.options) > 1, item.id


def test_each_group_is_asked_in_its_form(items):
    forms = {"last-word": {Form.CLOZE}, "numbers": {Form.CHOICE, Form.EXACT}}
    counts = {"grammar": {2}, "reference": {2}, "last-word": {1}, "numbers": {0, 4}}
    for item in items:
        assert item.form in forms.get(item.group, {Form.CHOICE}), item.id
        few = {2, 3, 4} if item.group in FOREIGN else {4}
        assert len(item.options) in counts.get(item.group, few), item.id


def test_options_differ_and_follow_the_prompt(items):
    for item in items:
        assert item.prompt == item.prompt.strip(), item.id
        assert len(set(item.options)) == len(item.options), item.id
        for option in item.options:
            for part in (option.lead, option.text):
                assert not part or re.fullmatch(r" \S(.*\S)?", part), item.id
            assert option.text, item.id
            assert "  " not in item.prompt + option.lead + option.text, item.id


def test_only_foreign_questions_leave_ascii(lines, items):
    strange = [item for line, item in zip(lines[1:], items, strict=True) if not line.isascii()]
    assert {item.group for item in strange} <= FOREIGN
    assert strange


def test_pronouns_are_told_by_the_name_alone(items):
    for item in (item for item in items if item.group == "reference"):
        one, other = item.options
        assert one.text == other.text, item.id
        assert one.lead != other.lead, item.id
        # Both are in the text before, so that neither is odd in itself.
        assert words(one.lead) | words(other.lead) <= words(item.prompt), item.id


def test_the_right_place_tells_nothing(items, four):
    places = Counter(item.right[0] for item in four)
    assert all(0.15 <= places[place] / len(four) <= 0.35 for place in range(4))
    for group in ("knowledge", "sense", "words"):
        found = Counter(item.right[0] for item in four if item.group == group)
        assert all(0.15 <= found[place] / found.total() <= 0.35 for place in range(4)), group
    for group in ("grammar", "reference"):
        found = Counter(item.right[0] for item in items if item.group == group)
        assert 0.35 <= found[0] / found.total() <= 0.65, group


@pytest.mark.parametrize(("end", "shares"), [(max, (0.15, 0.40)), (min, (0.10, 0.40))])
def test_the_length_tells_nothing(four, end, shares):
    def alone(item):
        """The right one, and no other, has the greatest (or least) length."""
        lengths = [len(option.text) for option in item.options]
        return lengths.count(end(lengths)) == 1 and lengths[item.right[0]] == end(lengths)

    low, high = shares
    assert low <= sum(map(alone, four)) / len(four) <= high


def test_last_words_are_recalled(items):
    found = [item for item in items if item.form is Form.CLOZE]
    said = 0
    for item in found:
        (option,) = item.options
        assert re.fullmatch(r" [A-Za-z]+", option.text), item.id
        said += words(option.text) <= words(item.prompt)
    assert said >= len(found) / 2


def test_sums_are_asked_after_two_examples(items):
    found = [item for item in items if item.form is Form.EXACT]
    assert len(found) >= 15
    for item in found:
        shown = re.fullmatch(r"Q: .+\?\nA: (\d+)\n\nQ: .+\?\nA: (\d+)\n\nQ: .+\?\nA:", item.prompt)
        assert shown, item.id
        (target,) = item.targets
        assert re.fullmatch(r"\d+", target), item.id
        # Saying an example's answer again must not be right.
        assert target not in shown.groups(), item.id
        assert (item.extract, item.stop, item.most) == (Extract.LINE, ("\n",), 8), item.id
