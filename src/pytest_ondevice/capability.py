"""What answers come to: accuracy, flips against the reference, and a set's part in the report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from .model.measurement import Measurement
from .model.quantity import QUANTITIES
from .model.report import GroupReport, TaskReport
from .model.task import Answer, Form
from .proportions import above_chance, detectable, paired, wilson
from .scoring import Score, score
from .tasks import select

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .model.task import Item, TaskSet
    from .proportions import Paired

FIRST = 200
"""So many items of each set are asked before a first verdict."""

PIECE = 512
"""So many items are asked by one process at most: what an interruption loses."""

_FORMS = {
    "accuracy": frozenset(Form),
    "choice_accuracy": frozenset({Form.CHOICE, Form.MASS}),
    "cloze_accuracy": frozenset({Form.CLOZE}),
    "exact_accuracy": frozenset({Form.EXACT}),
}


class NoItemsError(Exception):
    """No item has the form that a quantity is of; the message says what it would need."""


@dataclass(frozen=True)
class Asked:
    """A set and what a cell answered to it.

    Attributes:
        task_set: The set.
        answers: The answers by item id; all items have one.
    """

    task_set: TaskSet
    answers: Mapping[str, Answer]

    @cached_property
    def score(self) -> Score:
        """What the answers come to."""
        return score(self.task_set, self.answers)

    def marks(self, forms: frozenset[Form] = frozenset(Form)) -> dict[str, bool]:
        """Say of each item of some forms whether it was answered right, by sample id."""
        pairs = zip(self.task_set.items, self.score.marks, strict=True)
        return {
            sample_id(self.task_set, item): right
            for item, (_, right) in pairs
            if item.form in forms
        }


def sample_id(task_set: TaskSet, item: Item) -> str:
    """Name an item's sample after all that a mark depends on: another item never pairs with it.

    The normalisation is part of it: under another one, other answers are right.
    """
    chosen = task_set.normalisation if item.form in _FORMS["choice_accuracy"] else ""
    return f"{task_set.name}/{item.id}#{item.digest[:8]}{'+' if chosen else ''}{chosen}"


class Pieces(NamedTuple):
    """The questions of all sets as processes ask them: so many at a time, some before others.

    Attributes:
        pieces: The items of each process, each with the name of its set.
        first: So many pieces are asked before a first verdict.
    """

    pieces: tuple[tuple[tuple[str, Item], ...], ...]
    first: int


def pieces(sets: Iterable[TaskSet]) -> Pieces:
    """Cut the items of all sets into pieces: the first look at each set, then what is left."""
    first: list[tuple[str, Item]] = []
    rest: list[tuple[str, Item]] = []
    for one in sets:
        chosen = {item.id for item in select(one.items, FIRST)}
        for item in one.items:
            (first if item.id in chosen else rest).append((one.name, item))
    cut = [
        tuple(part[start : start + PIECE])
        for part in (first, rest)
        for start in range(0, len(part), PIECE)
    ]
    return Pieces(tuple(cut), -(-len(first) // PIECE))


def named(piece: Iterable[tuple[str, Item]]) -> tuple[Item, ...]:
    """Return the items of a piece with ids that no two sets share."""
    return tuple(msgspec.structs.replace(item, id=f"{name}/{item.id}") for name, item in piece)


def asked(
    sets: Iterable[TaskSet],
    known: Iterable[tuple[Sequence[tuple[str, Item]], Mapping[str, Any]]],
) -> tuple[Asked, ...]:
    """Put the answers of some pieces together, by set; sets of which nothing was asked are left.

    Args:
        sets: The sets.
        known: Pieces and what the tasks stage yielded of each.
    """
    answers: dict[str, dict[str, Answer]] = {}
    for piece, payload in known:
        found = msgspec.convert(payload["answers"], tuple[Answer, ...])
        for (name, item), answer in zip(piece, found, strict=True):
            answers.setdefault(name, {})[item.id] = answer
    return tuple(
        Asked(
            msgspec.structs.replace(
                one, items=tuple(item for item in one.items if item.id in answers[one.name])
            ),
            answers[one.name],
        )
        for one in sets
        if one.name in answers
    )


def figure(name: str, asked: Sequence[Asked], theirs: Sequence[Asked] = ()) -> Measurement:
    """Return a figure of a cell's answers.

    Args:
        name: The quantity.
        asked: What the cell answered.
        theirs: What the reference answered, for ``answer_flips``.

    Raises:
        NoItemsError: No item of the sets has the form, or the reference was asked none of them.
    """
    if name == "unscored_answers":
        return _made(name, float(sum(one.score.nonfinite for one in asked)), {})
    if name == "guess_probability":
        return _guessed(asked)
    if name == "answer_flips":
        now, then = _marks(asked), _marks(theirs)
        flips = {key: now[key] != then[key] for key in now if key in then}
        if not flips:
            raise NoItemsError("items that the reference was asked, too")
        return _share(name, flips, _told(now, then))
    marks = _marks(asked, _FORMS[name])
    if not marks:
        form = name.removesuffix("_accuracy")
        raise NoItemsError(f"items of the form {form}: --ondevice-tasks names no set with any")
    return _share(name, marks, _interval(marks.values()))


def _marks(asked: Iterable[Asked], forms: frozenset[Form] = frozenset(Form)) -> dict[str, bool]:
    return dict(chain.from_iterable(one.marks(forms).items() for one in asked))


def _share(name: str, marks: Mapping[str, bool], detail: str) -> Measurement:
    share = sum(marks.values()) / len(marks)
    error = math.sqrt(share * (1 - share) / len(marks))
    return _made(name, share, marks, error=error, detail=detail)


def _made(
    name: str,
    value: float,
    marks: Mapping[str, bool],
    *,
    error: float | None = None,
    detail: str = "",
) -> Measurement:
    return Measurement(
        quantity=name,
        value=value,
        unit=QUANTITIES[name].unit,
        n=max(len(marks), 1),
        error=error,
        samples=tuple(map(float, marks.values())),
        sample_ids=tuple(marks),
        detail=detail,
    )


def _guessed(asked: Sequence[Asked]) -> Measurement:
    """How likely guessing would be right as often, over the items that can be guessed."""
    forms = frozenset({Form.CHOICE})
    marks = _marks(asked, forms)
    chances = [item.chance for one in asked for item in one.task_set.items if item.form in forms]
    if not marks:
        raise NoItemsError("items with choices: nothing else can be guessed")
    right = sum(marks.values())
    told = f"{right} of {len(marks)} right, guessing gives {math.fsum(chances):.0f}"
    return _made("guess_probability", above_chance(right, chances), {}, detail=told)


def _interval(marks: Iterable[bool]) -> str:
    known = list(marks)
    low, high = wilson(sum(known), len(known))
    return f"{sum(known)} of {len(known)} right, 95 % interval {low:.3f} to {high:.3f}"


def _told(now: Mapping[str, bool], then: Mapping[str, bool]) -> str:
    """Say how the marks of two cells differ."""
    found = _paired(now, then)
    assert found is not None  # they have items in common
    return (
        f"{found.lost} lost and {found.gained} gained of {found.n}, accuracy"
        f" {found.right_now / found.n:.3f} against {found.right_then / found.n:.3f} of the"
        f" reference, exact McNemar p {found.p:.2g}"
    )


def _paired(now: Mapping[str, bool], then: Mapping[str, bool]) -> Paired | None:
    """Compare the marks of the items that both were asked; None if there are none."""
    both = [key for key in now if key in then]
    return paired([now[key] for key in both], [then[key] for key in both]) if both else None


def reports(asked: Sequence[Asked], theirs: Sequence[Asked] = ()) -> tuple[TaskReport, ...]:
    """Say of each set what the report has of it, against the reference where it was asked too."""
    before = {one.task_set.name: one for one in theirs}
    return tuple(_report(one, before.get(one.task_set.name)) for one in asked)


def _report(asked: Asked, before: Asked | None) -> TaskReport:
    task_set, found = asked.task_set, asked.score
    # Either of the two may have been asked further than the other.
    flips = None if before is None else _paired(asked.marks(), before.marks())
    return TaskReport(
        name=task_set.name,
        digest=task_set.digest,
        normalisation=task_set.normalisation,
        n=found.n,
        right=found.right,
        accuracy=found.accuracy,
        lower=found.lower,
        upper=found.upper,
        chance=math.fsum(item.chance for item in task_set.items) / found.n,
        mass=found.mass,
        groups={one.name: _group(one.n, one.right) for one in found.groups},
        lost=flips.lost if flips else None,
        gained=flips.gained if flips else None,
        mcnemar_p=flips.p if flips else None,
        detectable=_detectable(flips.n, flips.flips) if flips else None,
    )


def _group(n: int, right: int) -> GroupReport:
    lower, upper = wilson(right, n)
    return GroupReport(n=n, right=right, lower=lower, upper=upper)


@cache
def _detectable(n: int, flips: int) -> float | None:
    return detectable(n, flips / n)
