"""Answers to marks: which items of a task set a model got right, and what that comes to."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from .model.task import Extract, Form, Normalisation
from .proportions import wilson

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .model.task import Answer, Item, TaskSet

MARK = "####"
"""What stands before the answer of ``marked-number``."""

# A number does not begin within a word or another number: not H2, not the 3 of 1.2.3. A minus is a
# sign only where it does not stand between two operands: 10-3 and 3-5 hold no negative number.
_NUMBER = re.compile(
    r"""
    (?<![A-Za-z0-9]) (?<![0-9][.])
    (?P<sign> (?<! [A-Za-z0-9)\]] ) [-\u2212+] )?
    (?: [$\u20ac\u00a3\u00a5\u20b9] [ ]? (?P<after> [-\u2212+] )? )?
    (?P<digits> [0-9]{1,3} (?: ,[0-9]{3} )+ (?! [0-9] ) | [0-9]+ )?
    (?P<decimals> [.] [0-9]+ )?
    (?P<power> [eE] [-+]? [0-9]{1,3} (?! [0-9] ) )?
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class GroupScore:
    """How many items of one kind are right.

    Attributes:
        name: The group of the items.
        n: Number of items.
        right: Items that are right.
    """

    name: str
    n: int
    right: int

    @property
    def accuracy(self) -> float:
        """The share of items that are right."""
        return self.right / self.n


@dataclass(frozen=True, slots=True)
class Score:
    """What the answers to a task set come to.

    Attributes:
        marks: For each item, in the set's order, its id and whether it is right.
        lower: Lower end of Wilson's interval of the accuracy.
        upper: Upper end; both together err alpha.
        alpha: Error of the interval.
        groups: The same by group, in the order in which groups first occur.
        mass: Of items of the form ``mass``: the mean share of probability on right choices, where
            an answer that is not finite counts 0; None if there are no such items.
        nonfinite: Items with a log-likelihood that is not finite, all of which are wrong.
    """

    marks: tuple[tuple[str, bool], ...]
    lower: float
    upper: float
    alpha: float
    groups: tuple[GroupScore, ...]
    mass: float | None
    nonfinite: int

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.marks)

    @property
    def right(self) -> int:
        """Number of items that are right."""
        return sum(right for _, right in self.marks)

    @property
    def accuracy(self) -> float:
        """The share of items that are right."""
        return self.right / self.n


def is_finite(answer: Answer) -> bool:
    """Whether every figure that an answer rests on is a finite number."""
    return answer.finite and all(one is not None and math.isfinite(one) for one in answer.logliks)


def is_right(item: Item, answer: Answer, normalisation: Normalisation) -> bool:
    """Mark one answer.

    - ``choice``: right when a right choice is likelier than every wrong one, after normalisation. A
      tie with a wrong one is not right: else a model that finds all choices equally likely, as a
      broken one does, would be marked by the order of the choices.
    - ``mass``: right when more than half of the probability is on right choices (see ``mass``).
      This mark is for counting flips; what is reported of such items is their mean mass.
    - ``cloze``: right when greedy decoding would have said just the words.
    - ``exact``: right when something can be extracted from the text and equals a target (see
      ``equal``).

    An answer with a log-likelihood that is not finite is wrong, whichever choice it belongs to;
    ``is_finite`` tells such answers from others.

    Args:
        item: What was asked.
        answer: What was answered.
        normalisation: What the log-likelihood of a choice is divided by: the UTF-8 bytes of the
            option's text as it was scored, a blank before it included, or its tokens. Only of
            ``choice``.

    Raises:
        ValueError: The answer is none to this item: another number of log-likelihoods than of
            options, or none or no tokens where they are to be divided by.
    """
    if item.form is Form.EXACT:
        found = extract(answer.text, item.extract, item.stop)
        return answer.finite and any(equal(found, target) for target in item.targets)
    if item.form is Form.CLOZE:
        return answer.greedy and is_finite(answer)
    if item.form is Form.MASS:
        return mass(item, answer) > 0.5
    logliks = _logliks(item, answer)
    if logliks is None:
        return False
    lengths = _lengths(item, answer, normalisation)
    figures = [loglik / length for loglik, length in zip(logliks, lengths, strict=True)]
    right = max((figures[place] for place in item.right), default=-math.inf)
    wrong = (figure for place, figure in enumerate(figures) if place not in item.right)
    return right > max(wrong, default=-math.inf)


def mass(item: Item, answer: Answer) -> float:
    """Find the share of probability that is on right choices, among the item's choices (MC2).

    It is the sum of likelihoods of the right ones over that of all, never normalised by length (Lin
    et al. 2022, TruthfulQA). Likelihoods are taken relative to the largest, so that none of a long
    text vanishes altogether.

    Returns:
        The share, 0 to 1; 0 if a log-likelihood is not finite.

    Raises:
        ValueError: Another number of log-likelihoods than of options.
    """
    logliks = _logliks(item, answer)
    if logliks is None:
        return 0.0
    largest = max(logliks)
    shares = [math.exp(loglik - largest) for loglik in logliks]
    return math.fsum(shares[place] for place in set(item.right)) / math.fsum(shares)


def extract(text: str, how: Extract, stop: Sequence[str] = ()) -> str:
    """Take the answer from generated text.

    The text is read up to the first of any stop. Then:

    - ``line``: the first line that is not blank, without blanks around it and one full stop after
      it.
    - ``last-number``: the last number in the text.
    - ``marked-number``: the first number after the first ``####``, on the same line. A second mark
      belongs to a question that the model went on to ask itself.

    A number is digits, with commas between groups of three, decimals and an exponent if there are
    any, and is returned without commas, a plus and a currency sign before it; a minus before or
    after that sign stays. Not numbers: digits within a word (``H2O``); a full stop after digits; a
    minus between two operands (``10-3``). Percent signs, units and fractions are not understood:
    ``3/4`` is a 3 and a 4.

    Args:
        text: What was generated.
        how: How the answer is taken from it.
        stop: Where the text ends, wherever generation ended; an empty one is no stop.

    Returns:
        The answer; empty if there is none.
    """
    for end in filter(None, stop):
        text = text.partition(end)[0]
    if how is Extract.LINE:
        return _plain(next((line for line in text.split("\n") if line.strip()), ""))
    if how is Extract.MARKED_NUMBER:
        text = text.partition(MARK)[2].partition("\n")[0]
    numbers = _numbers(text)
    if not numbers:
        return ""
    return numbers[-1] if how is Extract.LAST_NUMBER else numbers[0]


def equal(found: str, target: str) -> bool:
    """Whether an extracted answer is a target.

    Where both are numbers from end to end, they are compared as numbers, exactly: ``42``, ``42.0``,
    ``42.`` and ``$42`` are the same, ``0.33`` and ``1/3`` are not. Otherwise they must be the same
    text, upper and lower case told apart, once blanks around it and one full stop after it are off
    on both sides. An empty answer equals nothing.
    """
    found, target = _plain(found), _plain(target)
    if not found:
        return False
    one, other = _value(found), _value(target)
    if one is not None and other is not None:
        return one == other
    return found == target


def score(task_set: TaskSet, answers: Mapping[str, Answer], alpha: float = 0.05) -> Score:
    """Mark all items of a set.

    Args:
        task_set: What was asked.
        answers: Item's id to what was answered; those to items of no such id are not looked at.
        alpha: Error of both ends of the interval together, above 0 and below 1.

    Raises:
        ValueError: A set without items, an item without an answer, or with one to another item;
            alpha out of range.
    """
    lacking = [item.id for item in task_set.items if item.id not in answers]
    if lacking:
        raise ValueError(
            f"{len(lacking)} of {len(task_set.items)} items of {task_set.name!r} have no answer,"
            f" {lacking[0]!r} first"
        )
    marks: list[tuple[str, bool]] = []
    masses: list[float] = []
    groups: dict[str, list[bool]] = {}
    for item in task_set.items:
        answer = answers[item.id]
        right = is_right(item, answer, task_set.normalisation)
        marks.append((item.id, right))
        groups.setdefault(item.group, []).append(right)
        if item.form is Form.MASS:
            masses.append(mass(item, answer))
    lower, upper = wilson(sum(right for _, right in marks), len(marks), alpha)
    return Score(
        marks=tuple(marks),
        lower=lower,
        upper=upper,
        alpha=alpha,
        groups=tuple(GroupScore(name, len(some), sum(some)) for name, some in groups.items()),
        mass=math.fsum(masses) / len(masses) if masses else None,
        nonfinite=sum(not is_finite(answers[item.id]) for item in task_set.items),
    )


def _logliks(item: Item, answer: Answer) -> list[float] | None:
    """Log-likelihoods of all options; None if one is not finite."""
    if len(answer.logliks) != len(item.options):
        raise ValueError(
            f"item {item.id!r} has {len(item.options)} options, its answer"
            f" {len(answer.logliks)} log-likelihoods"
        )
    logliks = [one for one in answer.logliks if one is not None and math.isfinite(one)]
    return logliks if len(logliks) == len(item.options) else None


def _lengths(item: Item, answer: Answer, normalisation: Normalisation) -> list[int]:
    """What each option's log-likelihood is divided by."""
    if normalisation is Normalisation.NONE:
        return [1] * len(item.options)
    if normalisation is Normalisation.BYTES:
        lengths = [len(option.text.encode()) for option in item.options]
    else:
        lengths = list(answer.tokens)
    if len(lengths) != len(item.options) or min(lengths, default=1) < 1:
        raise ValueError(
            f"item {item.id!r} has {len(item.options)} options, whose numbers of"
            f" {normalisation.value} are {lengths}: nothing to divide by"
        )
    return lengths


def _plain(text: str) -> str:
    """Text without blanks around it and one full stop after it."""
    return text.strip().removesuffix(".").rstrip()


def _numbers(text: str) -> list[str]:
    """All numbers in a text, in plain digits."""
    found = (_digits(one) for one in _NUMBER.finditer(text))
    return [number for number in found if number]


def _value(text: str) -> Decimal | None:
    """What a text is worth that is a number from end to end."""
    whole = _NUMBER.fullmatch(text)
    number = _digits(whole) if whole else ""
    return Decimal(number) if number else None


def _digits(found: re.Match[str]) -> str:
    """A number in plain digits; empty where a match has none."""
    whole, decimals = found["digits"] or "", found["decimals"] or ""
    if not whole and not decimals:
        return ""
    sign = "-" if {found["sign"], found["after"]} & {"-", "\u2212"} else ""
    return f"{sign}{whole.replace(',', '') or '0'}{decimals}{found['power'] or ''}"
