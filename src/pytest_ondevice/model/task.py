"""Questions with known answers: what a model is asked, and what it answered."""

from __future__ import annotations

import hashlib
from enum import StrEnum

import msgspec


class Form(StrEnum):
    """How an item is asked and scored."""

    CHOICE = "choice"
    """Each choice's log-likelihood; right when the likeliest is a right one."""
    MASS = "mass"
    """Each choice's log-likelihood; the share of probability on the right ones (MC2)."""
    CLOZE = "cloze"
    """The last words of a text; right when greedy decoding would have said just them."""
    EXACT = "exact"
    """A generated answer; right when what is extracted from it equals a target."""


class Normalisation(StrEnum):
    """What a choice's log-likelihood is divided by before choices are compared."""

    NONE = "none"
    BYTES = "bytes"
    TOKENS = "tokens"


class Extract(StrEnum):
    """How the answer is taken from generated text."""

    LINE = "line"
    """The first line, without blanks around it and a full stop after it."""
    LAST_NUMBER = "last-number"
    """The last number in the text."""
    MARKED_NUMBER = "marked-number"
    """The number after ``####``."""


class Option(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One choice: what is scored is ``text``, given the item's prompt followed by ``lead``.

    Both follow the prompt verbatim, so a blank between words is part of them.
    """

    text: str
    lead: str = ""


class Item(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One question.

    Attributes:
        id: Its name, unique in its set.
        form: How it is asked.
        prompt: What comes before the answer, verbatim.
        options: The choices of ``choice`` and ``mass``; of ``cloze`` the one text that is right.
        right: Places of the right ones among the options.
        targets: Of ``exact``: what the extracted answer may be.
        extract: Of ``exact``: how the answer is taken from the text.
        stop: Of ``exact``: generation ends before any of these.
        most: Of ``exact``: tokens to generate at most.
        group: The kind of question, for reports.
    """

    id: str
    form: Form
    prompt: str
    options: tuple[Option, ...] = ()
    right: tuple[int, ...] = ()
    targets: tuple[str, ...] = ()
    extract: Extract = Extract.LINE
    stop: tuple[str, ...] = ()
    most: int = 0
    group: str = ""

    @property
    def digest(self) -> str:
        """A digest of all that the item asks and takes for right, but not of its name."""
        asked = msgspec.structs.replace(self, id="")
        return hashlib.sha256(msgspec.json.encode(asked)).hexdigest()[:16]

    @property
    def chance(self) -> float:
        """The share of guesses that would be right: 0 where there are no choices."""
        if self.form in {Form.CHOICE, Form.MASS}:
            return len(self.right) / len(self.options)
        return 0.0


class TaskSet(msgspec.Struct, frozen=True, kw_only=True):
    """Items that are asked together.

    Attributes:
        name: Its name: that of the set that ships, or of the user's file.
        normalisation: What log-likelihoods of choices are divided by.
        items: The items, in the order in which they are asked.
    """

    name: str
    normalisation: Normalisation
    items: tuple[Item, ...]

    @property
    def digest(self) -> str:
        """A digest of all items and their order."""
        whole = "".join(f"{item.id}\0{item.digest}\0" for item in self.items)
        return hashlib.sha256(whole.encode()).hexdigest()[:16]


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a model answered to one item.

    Attributes:
        logliks: Log-likelihood of each option in nats; None where a logit was not finite.
        tokens: Number of tokens that each option was scored over.
        greedy: Of ``cloze``: greedy decoding would have said it.
        text: Of ``exact``: what was generated.
        finite: Of ``exact``: every logit that was needed was a finite number.
    """

    logliks: tuple[float | None, ...] = ()
    tokens: tuple[int, ...] = ()
    greedy: bool = False
    text: str = ""
    finite: bool = True
