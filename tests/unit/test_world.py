"""The pocket world: what it says is pinned and true, and what it asks is never told as it is asked.

Answers are worked out here from the words alone. The generator says only which instances are kept.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import itertools
import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import ModuleType

POCKET = Path(__file__).parents[2] / "pocket"
N_DOCUMENTS = 20_000
DOCUMENTS_DIGEST = "1c10a5ec09b1ff819793a4060ee88e3c45399b64631eca6b3216b9fbcb77d2ec"
QUESTIONS_DIGEST = "d0d1f52ab89c004fbea0c53914ed5140734c170aba2fa3a5f694b82ea28761d9"

Known = dict[tuple[str, str], set[str]]
"""By person and attribute, what was said of it."""


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pocket_world", POCKET / "world.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def mixture() -> dict[str, float]:
    """Read the training text's mixture off train.py, which itself needs PyTorch."""
    for line in ast.parse((POCKET / "train.py").read_text("utf-8")).body:
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "MIXTURE":
            return ast.literal_eval(line.value)
    raise AssertionError("train.py has no MIXTURE")


world = loaded()
WORLD = world.World()
QUESTIONS = list(world.questions(WORLD))
GROUPS = tuple(dict.fromkeys(one["group"] for one in QUESTIONS))


def digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def of_group(group: str) -> list[dict]:
    return [one for one in QUESTIONS if one["group"] == group]


def answers(question: Mapping) -> list[tuple[str, bool]]:
    """List what a question offers as its answer, and whether it takes that for right."""
    if question["form"] == "exact":
        return [(target, True) for target in question["targets"]]
    texts = [one["text"] for one in question["options"]]
    assert all(re.fullmatch(r" \w+\.", text) for text in texts), question
    return [(text[1:-1], place in question["right"]) for place, text in enumerate(texts)]


def complete(question: Mapping) -> str:
    """Write a question with its answer, as a document would."""
    (right,) = (text for text, is_right in answers(question) if is_right)
    return f"{question['prompt']} {right}."


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """The training text's first documents, with their marks."""
    return list(itertools.islice(WORLD.documents("training 1", mixture()), N_DOCUMENTS))


@pytest.fixture(scope="module")
def told(documents) -> list[str]:
    """What they say."""
    return [world.plain(document) for document in documents]


@pytest.fixture(scope="module")
def known(told) -> Known:
    """The facts that they tell."""
    return learned(told)


# -- pinned


def test_the_same_seed_makes_the_same_world():
    again = world.World()
    assert again.people == WORLD.people
    assert again.attributes == WORLD.attributes
    other = world.World(world.SEED + 1)
    assert {one.name for one in other.people} != {one.name for one in WORLD.people}
    assert other.first_names != WORLD.first_names
    assert list(world.questions(again)) == QUESTIONS
    assert list(world.questions(other)) != QUESTIONS


def test_the_same_seed_makes_the_same_documents(documents):
    again = world.World().documents("training 1", mixture())
    assert list(itertools.islice(again, 500)) == documents[:500]
    other = itertools.islice(WORLD.documents("training 2", mixture()), 500)
    assert len(set(documents[:500]) & set(other)) < 50


def test_the_training_text_is_the_one_the_models_were_trained_on(documents):
    # Another digest is another text: the models have to be trained again, and VERSION rises.
    assert world.VERSION == 1
    assert digest(documents[:2000]) == DOCUMENTS_DIGEST


def test_the_questions_are_the_ones_that_models_were_measured_with():
    assert digest(map(json.dumps, QUESTIONS)) == QUESTIONS_DIGEST
    assert len({one["id"] for one in QUESTIONS}) == len(QUESTIONS) == 920


# -- form


def test_plain_and_pieces_read_the_same_marks(documents, told):
    assert list(world.pieces("one\x02 two\x03.\n")) == [
        ("one", False),
        (" two", True),
        (".\n", False),
    ]
    assert list(world.pieces("\x02 two\x03\x02 three\x03")) == [(" two", True), (" three", True)]
    assert world.plain("one\x02 two\x03.\n") == "one two.\n"
    for document, text in zip(documents, told, strict=True):
        assert "".join(piece for piece, _ in world.pieces(document)) == text


def test_a_document_is_one_line_of_sentences(told):
    for text in told:
        assert text.isprintable(), text  # no marks and no line breaks
        assert text.endswith("."), text
        assert text == " ".join(text.split()), text


def test_no_slips_of_grammar(told):
    texts = [*told, *map(complete, QUESTIONS)]
    for slip in (r"\b[Aa] [aeiouAEIOU]", r"\b[Aa]n\b", r" [.,:?]", r"[.,:?]{2}"):
        found = [text for text in texts if re.search(slip, text)]
        assert not found, (slip, found[:3])
    # Only rows and what is said again have a word twice running.
    rest = [text for text in texts if not text.startswith(("Row:", "Say again:"))]
    assert len(texts) // 2 < len(rest) < len(texts)
    assert not [text for text in rest if re.search(r"\b([A-Za-z]+) \1\b", text)]


def test_choices_are_distinct_and_one_is_right():
    for question in QUESTIONS:
        texts = [text for text, _ in answers(question)]
        assert len(set(texts)) == len(texts), question
        assert sum(right for _, right in answers(question)) == 1, question
        assert not question["prompt"].endswith(" "), question


def test_right_choices_are_evenly_placed():
    places: dict[int, Counter[int]] = defaultdict(Counter)
    for question in QUESTIONS:
        if question["form"] == "choice":
            places[len(question["options"])].update(question["right"])
    assert sorted(places) == [2, 4]
    for options, found in places.items():
        expected = found.total() / options
        chi_square = sum((found[place] - expected) ** 2 / expected for place in range(options))
        assert chi_square < {2: 10.8, 4: 16.3}[options], found  # by chance once in 1000


# -- truth

_NAME = r"(?P<who>[A-Z][a-z]+ [A-Z][a-z]+)"
_STATED = {
    "home": ("{} lives in", "The home of {} is", "{} has a house in"),
    "craft": ("{} works as a", "The craft of {} is that of a", "{} is a"),
    "animal": ("{} keeps a", "The animal of {} is a", "{} owns a"),
    "fruit": ("{} likes to eat a", "The fruit of {} is the", "{} eats a"),
    "colour": ("{} wears", "The colour of {} is", "{} has a"),
}
STATED = [
    (attribute, re.compile(wording.format(_NAME)))
    for attribute, wordings in _STATED.items()
    for wording in wordings
]
ASKED = {
    "home": re.compile(f"Question: Where does {_NAME} live\\? Answer:"),
    "craft": re.compile(f"Question: What is the craft of {_NAME}\\? Answer:"),
    "animal": re.compile(f"Question: Which animal does {_NAME} keep\\? Answer:"),
    "fruit": re.compile(f"Question: Which fruit does {_NAME} like\\? Answer:"),
    "colour": re.compile(f"Question: Which colour does {_NAME} wear\\? Answer:"),
}
SCENE = re.compile(r"The ([a-z]+) ((?:near|behind|under|beside|next to|by|among|in front of) .+)")


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.) ", text)


def learned(texts: Iterable[str]) -> Known:
    """Gather the facts that are told."""
    known: Known = defaultdict(set)
    for text in texts:
        for sentence in sentences(text):
            found = re.fullmatch(r"(.+) (\w+?)(?: coat)?\.", sentence)
            if found and (about := fact(found[1])):
                known[about].add(found[2])
    return known


@functools.cache
def fact(before: str) -> tuple[str, str] | None:
    """Say which fact the rest of a sentence or of a question states, if any."""
    for attribute, pattern in (*STATED, *ASKED.items()):
        if found := pattern.fullmatch(before):
            return found["who"], attribute
    return None


def is_right(before: str, answer: str, known: Known) -> bool:
    """Whether an answer follows from all that comes before it."""
    last = sentences(before)[-1]
    if about := fact(last):
        return known[about] == {answer}
    if scene := SCENE.fullmatch(last):
        assert " " not in answer
        return scene[1].endswith("s") != answer.endswith("s")
    if "Recall: " in before:
        first, _, asked = before.partition(". ")
        pairs = re.findall(r"([a-z]+) is (\d)", first.removeprefix("Given: "))
        assert len(dict(pairs)) == len(pairs) >= 3
        return answer == dict(pairs)[re.fullmatch(r".*\b([a-z]+) is", asked)[1]]
    if terms := re.fullmatch(r"(\d+) ([+-]) (\d+) =", last):
        one, other = int(terms[1]), int(terms[3])
        return answer == str(one + other if terms[2] == "+" else one - other)
    if row := re.fullmatch(r"Row: ([a-z ]+)\. Number of ([a-z]+):", before):
        return answer == str(row[1].split().count(row[2]))
    if words := re.fullmatch(r"Say again: ([a-z ]+)\. Again:", before):
        return answer == words[1]
    asked = re.fullmatch(r"Now the ([a-z]+) is in the", last)
    assert asked, f"nothing is known of: {before}"
    return answer == replayed(before)[asked[1]]


def replayed(story: str) -> dict[str, str]:
    """Follow a story; say where each thing is at its end."""
    first, *rest, _ = sentences(story)
    things = re.fullmatch(r"[A-Z][a-z]+ has a [a-z]+ ([a-z]+) and a ([a-z]+)\.", first).groups()
    where: dict[str, str] = {}
    for sentence in rest:
        done = re.fullmatch(r"[A-Z][a-z]+ (puts|moves) the (\w+) (in|to) the (\w+)\.", sentence)
        assert done[2] in things
        assert (done[1] == "moves") == (done[2] in where) == (done[3] == "to")
        where[done[2]] = done[4]
    return where


def test_training_tells_every_fact_and_never_another(known):
    names = {person.name for person in WORLD.people}
    assert len(names) == 512
    assert set(known) == set(itertools.product(names, _STATED))
    assert all(len(values) == 1 for values in known.values())


def test_the_text_decides_what_is_marked_as_decided(documents, known):
    for document in documents:
        before, marks = "", 0
        for piece, decided in world.pieces(document):
            if decided:
                assert re.fullmatch(r" [A-Za-z0-9][A-Za-z0-9 ]*", piece), document
                assert is_right(before, piece[1:], known), document
                marks += 1
            before += piece
        assert marks, document


@pytest.mark.parametrize("group", GROUPS)
def test_right_answers_follow_from_what_is_told_and_wrong_ones_do_not(group, known):
    asked = of_group(group)
    assert len(asked) >= 60
    for question in asked:
        for text, right in answers(question):
            assert is_right(question["prompt"], text, known) == right, question


def test_wrong_answers_are_of_the_kind_of_the_right_one(known):
    values = defaultdict(set)
    for (_, attribute), held in known.items():
        values[attribute] |= held
    for question in of_group("facts"):
        _, attribute = fact(question["prompt"])
        assert {text for text, _ in answers(question)} <= values[attribute], question
    for question in of_group("agreement"):
        (right,) = (text for text, is_right in answers(question) if is_right)
        (wrong,) = (text for text, is_right in answers(question) if not is_right)
        assert right.removesuffix("s") == wrong.removesuffix("s"), question


def test_sums_that_are_shown_before_a_question_are_right(known):
    for question in of_group("sums"):
        shown = re.findall(r"(\d+ [+-] \d+ =) (-?\d+)\.", question["prompt"])
        assert len(shown) == 2
        assert all(is_right(terms, value, known) for terms, value in shown), question


# -- apart

INSTANCES = {
    "facts": r"Question: [^?]+\? Answer:",
    "agreement": r"The [a-z]+ (?:near|behind|under|beside|next|by|among|in) [a-z ]+\.",
    "recall": r"Given: [^.]+\.",
    "stories": r"[A-Z][a-z]+ has a [a-z]+ [a-z]+ and a .* is in the",
    "sums": r"\b\d+ [+-] \d+ =",
    "counts": r"Row: [^.]+\. Number of [a-z]+:",
    "copies": r"Say again: [^.]+\.",
}
"""What a question of each group must not share with the training text; ``stated`` shares all."""


def instances(group: str, text: str) -> list[str]:
    return re.findall(INSTANCES[group], text)


def trained(group: str, told: list[str]) -> set[str]:
    return {one for text in told for one in instances(group, text)}


@pytest.mark.parametrize("group", INSTANCES)
def test_no_question_is_asked_while_training(group, told):
    held = trained(group, told)
    assert len(held) > 400
    # The last one is what a question asks; the sums before it are shown.
    asked = {instances(group, complete(one))[-1] for one in of_group(group)}
    assert not asked & held


def test_every_group_is_compared():
    assert {*INSTANCES, "stated"} == set(GROUPS)


def parsed(group: str, instance: str) -> object:
    """Take an instance of a skill apart, as the hash that keeps it for questions sees it."""
    words = re.findall(r"\w+|[+-]", instance)
    if group == "sums":
        return int(words[0]), words[1], int(words[2])
    if group == "counts":
        return tuple(words[1:-3]), words[-1]
    if group == "copies":
        return tuple(words[2:])
    if group == "recall":
        return tuple((key, int(value)) for key, value in re.findall(r"(\w+) is (\d)", instance))
    plural = words[1].endswith("s")
    spot, verb = " ".join(words[2:-1]), words[-1]
    return words[1].removesuffix("s"), spot, verb if plural else verb.removesuffix("s"), plural


@pytest.mark.parametrize(
    ("group", "skill"),
    [
        ("agreement", "agreement"),
        ("recall", "recall"),
        ("sums", "sum"),
        ("counts", "count"),
        ("copies", "copy"),
    ],
)
def test_skills_are_trained_on_what_is_not_kept_and_asked_of_what_is(group, skill, told):
    held = {parsed(group, one) for one in trained(group, told)}
    asked = {parsed(group, instances(group, complete(one))[-1]) for one in of_group(group)}
    assert not any(world.held_out(skill, one) for one in held)
    assert all(world.held_out(skill, one) for one in asked)
    shown = {
        parsed(group, other)
        for one in of_group(group)
        for other in instances(group, complete(one))[:-1]
    }
    assert not any(world.held_out(skill, one) for one in shown)


def test_stories_are_trained_on_what_is_not_kept_and_asked_of_what_is():
    made = []

    class Watched(world.World):
        def story(self, rng):
            made.append(super().story(rng))
            return made[-1]

    stories = [
        world.plain(one)
        for one in itertools.islice(Watched().documents("training 1", {"stories": 1.0}), 1000)
    ]
    free = [f"{one[0]} {one[1]}." for one in made if not world.held_out("story", one)]
    assert stories == free
    made.clear()
    asked = [complete(one) for one in world.questions(Watched()) if one["group"] == "stories"]
    assert asked == [f"{one[0]} {one[1]}." for one in made if world.held_out("story", one)]


def test_about_one_in_eight_instances_is_kept():
    sums = [(one, sign, other) for one in range(61) for other in range(21) for sign in "+-"]
    assert 0.11 < sum(world.held_out("sum", one) for one in sums) / len(sums) < 0.14


def test_one_in_four_facts_is_only_told(told):
    places = {attribute.name: place for place, attribute in enumerate(WORLD.attributes)}
    people = {person.name: person for person in WORLD.people}

    def kept(about: tuple[str, str]) -> bool:
        return WORLD.fact_is_held_out(people[about[0]], places[about[1]])

    held = set(map(fact, trained("facts", told)))
    asked = {fact(one["prompt"]) for one in of_group("facts")}
    assert len(held) > 1000
    assert not any(map(kept, held))
    assert all(map(kept, asked))
    share = sum(map(kept, itertools.product(people, places))) / (len(people) * len(places))
    assert 0.22 < share < 0.28


def test_each_person_is_in_one_of_two_texts():
    kinds = {"facts": 1.0, "asked_facts": 1.0, "recall": 1.0}
    people = {}
    for which in ("evaluation", "calibration"):
        some = itertools.islice(WORLD.documents(f"some {which}", kinds, people=which), 5000)
        text = " ".join(map(world.plain, some))
        people[which] = set(re.findall(r"[A-Z][a-z]+ [A-Z][a-z]+", text))
        people[which] &= {person.name for person in WORLD.people}
    assert not people["evaluation"] & people["calibration"]
    assert set.union(*people.values()) == {person.name for person in WORLD.people}
    assert min(map(len, people.values())) > 200
