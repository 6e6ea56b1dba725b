"""The pocket world: invented people, places and small skills, as text and as questions.

Everything here follows from a seed and a version: the same world, the same text, the same
questions, wherever it is made. Nothing is taken from anywhere: names are put together from
syllables, sentences from the grammar below.

A document is one line of text, of one kind. What a question asks is never shown in that form while
training: of facts, the statement is shown and the question about it is not; of skills, the very
sums, lists and stories that are asked are kept apart by a hash of what they consist of. Only
``stated`` asks for facts in the words in which they are told.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

T = TypeVar("T")

VERSION = 1
SEED = 20505

N_PEOPLE = 512
FIRST_NAMES, LAST_NAMES, TOWNS = 24, 24, 24

CRAFTS = (
    "baker", "potter", "weaver", "smith", "miller", "painter", "gardener", "fisher", "tailor",
    "carver", "singer", "teacher", "healer", "sailor", "mason", "cook",
)  # fmt: skip
ANIMALS = (
    "goat", "heron", "badger", "fox", "hen", "horse", "turtle", "swan", "rabbit", "crow", "pony",
    "duck", "lizard", "cat", "dog", "lamb",
)  # fmt: skip
FRUITS = (
    "plum", "fig", "pear", "lime", "cherry", "melon", "grape", "quince", "lemon", "peach", "date",
    "currant", "berry", "kiwi", "mango", "nut",
)  # fmt: skip
COLOURS = (
    "red", "blue", "green", "yellow", "white", "black", "brown", "purple", "grey", "pink", "gold",
    "silver",
)  # fmt: skip
THINGS = (
    "ball", "bell", "book", "coin", "cup", "drum", "key", "lamp", "map", "ring", "rope", "spoon",
)  # fmt: skip
PLACES = (
    "box", "bag", "basket", "barrel", "chest", "drawer", "bucket", "cart", "pocket", "jar",
)  # fmt: skip
VERBS = (
    "sing", "run", "sleep", "laugh", "work", "wait", "dance", "swim", "jump", "walk", "rest",
    "play", "shout", "dream",
)  # fmt: skip
SPOTS = (
    "near the old tower", "behind the long walls", "under the tall trees", "beside the river",
    "next to the small boats", "by the open gate", "among the stones", "in front of the houses",
)  # fmt: skip
KEYS = (
    "amber", "birch", "cedar", "delta", "ember", "flint", "grove", "hazel", "iris", "jade", "kelp",
    "lotus", "maple", "nectar", "opal", "pearl", "quartz", "reed", "sage", "topaz",
)  # fmt: skip

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "tr")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("", "l", "n", "r", "s", "m", "k")

EIGHTH = 32
"""Buckets of 256 that hold one eighth."""

_FROM, _TO = "\x02", "\x03"
_MARKED = re.compile(f"{_FROM}([^{_TO}]*){_TO}")


@dataclass(frozen=True, slots=True)
class Attribute:
    """What is known of people.

    Attributes:
        name: Its name.
        values: What it can be.
        statements: How it is told, of ``{p}`` a person and ``{v}`` the value; the second ends with
            the value.
        question: How it is asked, of ``{p}`` a person.
    """

    name: str
    values: tuple[str, ...]
    statements: tuple[str, ...]
    question: str


@dataclass(frozen=True, slots=True)
class Person:
    """An invented person and the values of each attribute, in the order of the attributes."""

    name: str
    values: tuple[str, ...]


def _bucket(*what: object) -> int:
    """Put something into one of 256 buckets, the same ones everywhere."""
    text = "\0".join(map(str, what))
    return hashlib.sha256(text.encode()).digest()[0]


def held_out(*what: object) -> bool:
    """Whether an instance of a skill is kept for questions: one in eight."""
    return _bucket("skill", *what) < EIGHTH


def _answer(text: object) -> str:
    """Mark what the words before it decide, the blank before it included."""
    return f"{_FROM} {text}{_TO}"


def plain(document: str) -> str:
    """Return a document without its marks."""
    return _MARKED.sub(r"\1", document)


def pieces(document: str) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a document, and whether what came before decides them."""
    for place, piece in enumerate(_MARKED.split(document)):
        if piece:
            yield piece, place % 2 == 1


def _names(rng: random.Random, number: int, syllables: int, taken: set[str]) -> tuple[str, ...]:
    """Make names that are not taken yet, and take them."""
    made: list[str] = []
    while len(made) < number:
        parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables)]
        name = ("".join(parts) + rng.choice(_CODAS)).capitalize()
        if name not in taken:
            taken.add(name)
            made.append(name)
    return tuple(made)


class World:
    """People with attributes, and everything that is said and asked of this world.

    Args:
        seed: Decides names and who has which value.
    """

    def __init__(self, seed: int = SEED) -> None:
        rng = random.Random(f"world {VERSION} {seed}")
        taken: set[str] = set()
        first = _names(rng, FIRST_NAMES, 2, taken)
        last = _names(rng, LAST_NAMES, 2, taken)
        self.first_names = first
        self.attributes = (
            Attribute(
                "home",
                _names(rng, TOWNS, 2, taken),
                ("{p} lives in {v}.", "The home of {p} is {v}.", "{p} has a house in {v}."),
                "Where does {p} live?",
            ),
            Attribute(
                "craft",
                CRAFTS,
                ("{p} works as a {v}.", "The craft of {p} is that of a {v}.", "{p} is a {v}."),
                "What is the craft of {p}?",
            ),
            Attribute(
                "animal",
                ANIMALS,
                ("{p} keeps a {v}.", "The animal of {p} is a {v}.", "{p} owns a {v}."),
                "Which animal does {p} keep?",
            ),
            Attribute(
                "fruit",
                FRUITS,
                ("{p} likes to eat a {v}.", "The fruit of {p} is the {v}.", "{p} eats a {v}."),
                "Which fruit does {p} like?",
            ),
            Attribute(
                "colour",
                COLOURS,
                ("{p} wears {v}.", "The colour of {p} is {v}.", "{p} has a {v} coat."),
                "Which colour does {p} wear?",
            ),
        )
        pairs = [f"{one} {other}" for one in first for other in last]
        rng.shuffle(pairs)
        self.people = tuple(
            Person(name, tuple(rng.choice(one.values) for one in self.attributes))
            for name in pairs[:N_PEOPLE]
        )

    # -- documents, by kind

    def documents(
        self, seed: object, kinds: Mapping[str, float], people: str = ""
    ) -> Iterator[str]:
        """Yield documents without end, kinds in proportion to their weights, with their marks.

        Args:
            seed: The same seed gives the same documents.
            kinds: Weight of each kind, a key of ``KINDS``.
            people: Of whom facts are told: ``evaluation`` and ``calibration`` share nobody; all
                without it.
        """
        rng = random.Random(f"documents {VERSION} {seed}")
        who = [person for person in self.people if not people or part_of(person) == people]
        names, weights = list(kinds), list(kinds.values())
        while True:
            (kind,) = rng.choices(names, weights)
            yield KINDS[kind](self, rng, who)

    def facts(self, rng: random.Random, who: Sequence[Person]) -> str:
        """Tell some facts of one person, each in one of its wordings."""
        person = rng.choice(who)
        chosen = rng.sample(range(len(self.attributes)), rng.randint(2, len(self.attributes)))
        return " ".join(self._statement(rng, person, one) for one in chosen)

    def _statement(self, rng: random.Random, person: Person, attribute: int) -> str:
        wording = rng.choice(self.attributes[attribute].statements)
        before, after = wording.format(p=person.name, v="|").split(" |")
        return before + _answer(person.values[attribute]) + after

    def asked_facts(self, rng: random.Random, who: Sequence[Person]) -> str:
        """Ask for one fact and answer; one in four facts is never asked while training."""
        while True:
            person = rng.choice(who)
            attribute = rng.randrange(len(self.attributes))
            if not self.fact_is_held_out(person, attribute):
                return f"{self.question(person, attribute)}{_answer(person.values[attribute])}."

    def question(self, person: Person, attribute: int) -> str:
        """Ask for a fact, up to where the answer begins."""
        return f"Question: {self.attributes[attribute].question.format(p=person.name)} Answer:"

    def fact_is_held_out(self, person: Person, attribute: int) -> bool:
        """Whether a fact is only stated while training, never asked."""
        return _bucket("fact", person.name, attribute) < 2 * EIGHTH

    def sums(self, rng: random.Random, who: Sequence[Person]) -> str:
        """Some sums and differences."""
        del who
        return " ".join(_sum(*_free(rng, _terms, "sum")) for _ in range(rng.randint(2, 4)))

    def counts(self, rng: random.Random, who: Sequence[Person]) -> str:
        """Count one sort of thing in a row of two sorts."""
        del who
        row, what = _free(rng, _row, "count")
        return f"{_count(row, what)}{_answer(row.count(what))}."

    def agreement(self, rng: random.Random, who: Sequence[Person]) -> str:
        """Sentences whose verb agrees with a subject that stands away from it."""
        del who
        made = []
        for _ in range(rng.randint(2, 4)):
            noun, spot, verb, plural = _free(rng, _scene, "agreement")
            form = _answer(verb if plural else verb + "s")
            made.append(f"{_subject(noun, spot, plural=plural)}{form}.")
        return " ".join(made)

    def recall(self, rng: random.Random, who: Sequence[Person]) -> str:
        """Give numbers to names, say something else, and recall one or two."""
        pairs = _free(rng, _pairs, "recall")
        asked = rng.sample(pairs, 2)
        between = self.between(rng, who)
        recalled = " ".join(f"{key} is{_answer(value)}." for key, value in asked)
        return f"{_given(pairs)}{between} Recall: {recalled}"

    def between(self, rng: random.Random, who: Sequence[Person]) -> str:
        """Say up to three facts, a blank before each."""
        people = [rng.choice(who) for _ in range(rng.randint(0, 3))]
        attributes = range(len(self.attributes))
        return "".join(" " + self._statement(rng, one, rng.choice(attributes)) for one in people)

    def copies(self, rng: random.Random, who: Sequence[Person]) -> str:
        """Say a row of words again."""
        del who
        words = " ".join(_free(rng, _words, "copy"))
        return f"Say again: {words}. Again:{_answer(words)}."

    def stories(self, rng: random.Random, who: Sequence[Person]) -> str:
        """A thing is put somewhere and moved; where it is at the end."""
        del who
        story = _free(rng, self.story, "story")
        return f"{story[0]}{_answer(story[1])}."

    def story(self, rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
        """Make a story up to its last word, that word, and the other places of the story."""
        thing, other = rng.sample(THINGS, 2)
        places = rng.sample(PLACES, 4)
        one, two = rng.sample(self.first_names, 2)
        colour = rng.choice(COLOURS)
        text = [f"{one} has a {colour} {thing} and a {other}."]
        first = [(thing, places[0]), (other, places[1])]
        rng.shuffle(first)
        text += [f"{one} puts the {what} in the {where}." for what, where in first]
        here = {thing: places[0], other: places[1]}
        for where in places[2 : 2 + rng.randint(0, 2)]:
            what = rng.choice((thing, thing, other))
            text.append(f"{rng.choice((one, two))} moves the {what} to the {where}.")
            here[what] = where
        asked = rng.choice((thing, thing, other))
        text.append(f"Now the {asked} is in the")
        used = {*here.values(), *places[:2]}
        others = [one for one in places if one != here[asked]]
        others.sort(key=lambda one: one not in used)
        return " ".join(text), here[asked], tuple(others)


def part_of(person: Person) -> str:
    """Tell which of two texts may speak of a person: nobody is in both."""
    return "evaluation" if _bucket("part", person.name) < 128 else "calibration"


KINDS: Mapping[str, Callable[[World, random.Random, Sequence[Person]], str]] = {
    "facts": World.facts,
    "asked_facts": World.asked_facts,
    "sums": World.sums,
    "counts": World.counts,
    "agreement": World.agreement,
    "recall": World.recall,
    "copies": World.copies,
    "stories": World.stories,
}
"""What a document can be about."""


def _free(rng: random.Random, make: Callable[[random.Random], T], skill: str) -> T:
    """Make an instance of a skill that is not kept for questions."""
    while True:
        made = make(rng)
        if not held_out(skill, made):
            return made


def _kept(rng: random.Random, make: Callable[[random.Random], T], skill: str) -> T:
    """Make an instance of a skill that is kept for questions."""
    while True:
        made = make(rng)
        if held_out(skill, made):
            return made


def _terms(rng: random.Random) -> tuple[int, str, int]:
    one, other = rng.randint(0, 60), rng.randint(0, 20)
    return (one, "+", other) if one < other or rng.random() < 0.5 else (one, "-", other)


def _value(one: int, sign: str, other: int) -> int:
    return one + other if sign == "+" else one - other


def _sum(one: int, sign: str, other: int) -> str:
    return f"{one} {sign} {other} ={_answer(_value(one, sign, other))}."


def _row(rng: random.Random) -> tuple[tuple[str, ...], str]:
    what, other = rng.sample(ANIMALS, 2)
    row = [what] * rng.randint(1, 6) + [other] * rng.randint(0, 4)
    rng.shuffle(row)
    return tuple(row), what


def _count(row: Sequence[str], what: str) -> str:
    return f"Row: {' '.join(row)}. Number of {what}:"


def _scene(rng: random.Random) -> tuple[str, str, str, bool]:
    return rng.choice(CRAFTS), rng.choice(SPOTS), rng.choice(VERBS), rng.random() < 0.5


def _subject(noun: str, spot: str, *, plural: bool) -> str:
    return f"The {noun}{'s' if plural else ''} {spot}"


def _pairs(rng: random.Random) -> tuple[tuple[str, int], ...]:
    keys = rng.sample(KEYS, rng.randint(3, 6))
    return tuple((key, rng.randint(0, 9)) for key in keys)


def _given(pairs: Sequence[tuple[str, int]]) -> str:
    return "Given: " + ", ".join(f"{key} is {value}" for key, value in pairs) + "."


def _words(rng: random.Random) -> tuple[str, ...]:
    return tuple(rng.choice(KEYS + COLOURS + THINGS) for _ in range(rng.randint(3, 7)))


# -- questions

_COUNTS = {
    "facts": 240,
    "stated": 120,
    "agreement": 80,
    "recall": 120,
    "stories": 100,
    "sums": 120,
    "counts": 80,
    "copies": 60,
}
"""How many questions there are of each group."""


def questions(world: World) -> Iterator[dict[str, object]]:
    """Yield the questions of the world, as records of an item's JSON form."""
    for group, number in _COUNTS.items():
        rng = random.Random(f"questions {VERSION} {group}")
        asked: set[str] = set()
        while len(asked) < number:
            record = _ASKED[group](world, rng)
            # Asked twice, with other choices or after other sums, it would be no other question.
            prompt = str(record["prompt"])
            key = prompt.rpartition(". ")[2] if group == "sums" else prompt
            if key not in asked:
                asked.add(key)
                yield {"id": f"{group}-{len(asked):03}", "group": group, **record}


def _choice(rng: random.Random, prompt: str, right: str, wrong: Sequence[str]) -> dict[str, object]:
    options = [right, *wrong]
    rng.shuffle(options)
    return {
        "form": "choice",
        "prompt": prompt,
        "options": [{"text": f" {one}."} for one in options],
        "right": [options.index(right)],
    }


def _cloze(prompt: str, text: str) -> dict[str, object]:
    return {"form": "cloze", "prompt": prompt, "options": [{"text": f" {text}."}], "right": [0]}


def _exact(prompt: str, target: object, most: int) -> dict[str, object]:
    return {
        "form": "exact",
        "prompt": prompt,
        "targets": [str(target)],
        "stop": [".", "\n"],
        "most": most,
    }


def _ask_fact(world: World, rng: random.Random) -> dict[str, object]:
    while True:
        person = rng.choice(world.people)
        attribute = rng.randrange(len(world.attributes))
        if world.fact_is_held_out(person, attribute):
            break
    right = person.values[attribute]
    others = [one for one in world.attributes[attribute].values if one != right]
    return _choice(rng, world.question(person, attribute), right, rng.sample(others, 3))


def _ask_stated(world: World, rng: random.Random) -> dict[str, object]:
    person, attribute = rng.choice(world.people), rng.randrange(len(world.attributes))
    wording = world.attributes[attribute].statements[1]  # the one that ends with the value
    return _cloze(wording.format(p=person.name, v="")[:-2], person.values[attribute])


def _ask_agreement(world: World, rng: random.Random) -> dict[str, object]:
    del world
    noun, spot, verb, plural = _kept(rng, _scene, "agreement")
    forms = (verb, f"{verb}s") if plural else (f"{verb}s", verb)
    return _choice(rng, _subject(noun, spot, plural=plural), forms[0], forms[1:])


def _ask_recall(world: World, rng: random.Random) -> dict[str, object]:
    while True:
        pairs = _kept(rng, _pairs, "recall")
        key, value = rng.choice(pairs)
        others = sorted({other for _, other in pairs} - {value})
        if len(others) >= 2:
            break
    rest = [one for one in range(10) if one != value and one not in others]
    wrong = [*rng.sample(others, 2), rng.choice(rest)]
    between = plain(world.between(rng, world.people))
    prompt = f"{_given(pairs)}{between} Recall: {key} is"
    return _choice(rng, prompt, str(value), [str(one) for one in wrong])


def _ask_story(world: World, rng: random.Random) -> dict[str, object]:
    text, right, others = _kept(rng, world.story, "story")
    return _choice(rng, text, right, others[:3])


def _ask_sum(world: World, rng: random.Random) -> dict[str, object]:
    del world
    shown = " ".join(plain(_sum(*_free(rng, _terms, "sum"))) for _ in range(2))
    one, sign, other = _kept(rng, _terms, "sum")
    return _exact(f"{shown} {one} {sign} {other} =", _value(one, sign, other), 6)


def _ask_count(world: World, rng: random.Random) -> dict[str, object]:
    del world
    row, what = _kept(rng, _row, "count")
    return _exact(_count(row, what), row.count(what), 6)


def _ask_copy(world: World, rng: random.Random) -> dict[str, object]:
    del world
    words = " ".join(_kept(rng, _words, "copy"))
    return _exact(f"Say again: {words}. Again:", words, 24)


_ASKED: Mapping[str, Callable[[World, random.Random], dict[str, object]]] = {
    "facts": _ask_fact,
    "stated": _ask_stated,
    "agreement": _ask_agreement,
    "recall": _ask_recall,
    "stories": _ask_story,
    "sums": _ask_sum,
    "counts": _ask_count,
    "copies": _ask_copy,
}
