"""The public forms of records: which form a record is of, and the items that it becomes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import ascii_uppercase
from typing import TYPE_CHECKING

from ..model.task import Extract, Form, Item, Normalisation, Option
from .records import Mistake, name_problem, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .records import Record

MOST_GENERATED = 256
"""Tokens that are generated for an answer with its reasoning (GSM8K)."""

STOP = ("\n\n", "Question:")
"""What ends a generated answer (GSM8K): a blank line, or a question of the model's own."""

_IDS = ("id", "ind", "idx", "question_id", "qID")
_ANSWER = re.compile(r"####\s*\$?(-?[0-9][0-9,]*(?:\.[0-9]+)?)\.?\s*")


@dataclass(frozen=True, slots=True)
class PublicForm:
    """A form of records that others publish.

    Attributes:
        name: What it is called here.
        keys: The keys that tell it from the other forms.
        normalisation: What choices' log-likelihoods are divided by unless the user says otherwise.
        items: Makes the items of a record, given the id that they are to have.
    """

    name: str
    keys: tuple[str, ...]
    normalisation: Normalisation
    items: Callable[[Record, str], tuple[Item, ...]]


def form_of(record: Record) -> PublicForm | None:
    """Return the first form whose telling keys a record has; None if there is none."""
    return next((form for form in FORMS if all(key in record.content for key in form.keys)), None)


def own_id(record: Record) -> str:
    """Return the record's own id, else the number of its line.

    Raises:
        Mistake: It has one that cannot be an id.
    """
    for key in _IDS:
        given = record.content.get(key)
        if given is None:
            continue
        if isinstance(given, bool) or not isinstance(given, int | str):
            raise record.mistake(f"an id is a text or an integer, got {shown(given)}", key)
        name = shown(given) if isinstance(given, int) else given
        if problem := name_problem(name):
            raise record.mistake(problem, key)
        return name
    return str(record.line)


def check_options(
    options: Sequence[Option], right: Sequence[int], place: str, what: str = "options"
) -> None:
    """Make sure that there is a choice, and that what is right can be told from what is wrong.

    Args:
        options: The choices.
        right: Places of the right ones, known to be among them.
        place: Where they stand in the record, for messages.
        what: What they are called there.

    Raises:
        Mistake: One of the two is not so.
    """
    if len(options) < 2:
        raise Mistake(f"there are {len(options)}; a choice needs 2 or more", place)
    if len(set(right)) == len(options):
        raise Mistake(f"all {what} are right; a choice needs a wrong one", place)
    first = {options[at]: at for at in right}
    for at, option in enumerate(options):
        if at not in right and option in first:
            problem = f"number {at} is wrong, but equals number {first[option]}, which is right"
            raise Mistake(f"{problem} (of the {what}, counted from 0)", place)


def _hellaswag(record: Record, name: str) -> tuple[Item, ...]:
    if "ctx" in record.content or "ctx_a" not in record.content:
        prompt = record.text("ctx").strip()
    else:
        # The second part begins an ending's sentence, and may be empty.
        second = "" if record.content.get("ctx_b") == "" else record.text("ctx_b")
        prompt = f"{record.text('ctx_a').strip()} {second.strip()}".strip()
    options = _spaced(record.texts("endings"))
    right = _place(record, "label", len(options), "endings")
    check_options(options, (right,), "$.endings", "endings")
    group = _group(record, "activity_label", "hellaswag")
    return (_choice(name, prompt, options, right, group),)


def _arc(record: Record, name: str) -> tuple[Item, ...]:
    if isinstance(record.value("question"), dict):
        inside = record.record("question")
        stem = inside.text("stem")
        choices = inside.records("choices")
        texts = tuple(choice.text("text") for choice in choices)
        labels = tuple(choice.text("label") for choice in choices)
        place = "$.question.choices"
    else:
        stem = record.text("question")
        both = record.record("choices")
        texts, labels = both.texts("text"), both.texts("label")
        place = "$.choices"
        if len(texts) != len(labels):
            problem = f"there are {len(texts)} texts and {len(labels)} labels; each needs one"
            raise Mistake(problem, place)
    for label in labels:
        if label not in {*"ABCDE", *"12345"}:
            raise Mistake(f"a label is {shown(label)}; A to E or 1 to 5 is needed", place)
    if len(set(labels)) < len(labels):
        raise Mistake("a label is there twice; each choice needs its own", place)
    key = record.text("answerKey")
    if key not in labels:
        problem = f"it is {shown(key)}, and the choices' labels are {', '.join(labels) or 'none'}"
        raise record.mistake(problem, "answerKey")
    options, right = _spaced(texts), labels.index(key)
    check_options(options, (right,), place, "choices")
    prompt = f"Question: {stem.strip()}\nAnswer:"
    return (_choice(name, prompt, options, right, "arc"),)


def _mmlu(record: Record, name: str) -> tuple[Item, ...]:
    question = record.text("question").strip()
    texts = tuple(text.strip() for text in record.texts("choices"))
    if len(texts) > len(ascii_uppercase):
        problem = f"there are {len(texts)} choices; letters go as far as {len(ascii_uppercase)}"
        raise record.mistake(problem, "choices")
    letters = ascii_uppercase[: len(texts)]
    given = record.value("answer")
    if isinstance(given, str) and len(given) == 1 and given in letters:
        right = letters.index(given)
    else:
        right = _place(record, "answer", len(texts), "choices", digits=False)
    # The choices themselves, not their letters, are what must be told apart.
    check_options([Option(text) for text in texts], (right,), "$.choices", "choices")
    group = _group(record, "subject", "mmlu")
    about = f" about {group.replace('_', ' ')}" if record.content.get("subject") else ""
    listed = "".join(f"\n{letter}. {text}" for letter, text in zip(letters, texts, strict=True))
    prompt = (
        f"The following are multiple choice questions (with answers){about}.\n\n"
        f"{question}{listed}\nAnswer:"
    )
    return (_choice(name, prompt, _spaced(letters), right, group),)


def _winogrande(record: Record, name: str) -> tuple[Item, ...]:
    sentence = record.text("sentence")
    blanks = sentence.count("_")
    if blanks != 1:
        raise record.mistake(f"it has {blanks} blanks (_), and needs one", "sentence")
    before, _, after = sentence.partition("_")
    if not after.strip():
        raise record.mistake("nothing follows the blank (_), so nothing is scored", "sentence")
    key = record.value("answer")
    if isinstance(key, bool) or str(key) not in {"1", "2"}:
        raise record.mistake(
            f"it is {shown(key)}; '1' or '2' is needed{_unlabelled(key)}", "answer"
        )
    # The blank before the word goes with the word, as tokenizers have it.
    prompt = before.rstrip()
    space = before[len(prompt) :]
    words = (record.text("option1").strip(), record.text("option2").strip())
    options = tuple(Option(after.rstrip(), lead=space + word) for word in words)
    right = int(str(key)) - 1
    check_options(options, (right,), "$.option2")
    return (_choice(name, prompt, options, right, "winogrande"),)


def _truthfulqa(record: Record, name: str) -> tuple[Item, ...]:
    prompt = f"Q: {record.text('question').strip()}\nA:"
    items = []
    for key, form in (("mc1_targets", Form.CHOICE), ("mc2_targets", Form.MASS)):
        if key not in record.content:
            continue
        targets = record.record(key)
        options = _spaced(targets.texts("choices"))
        labels = targets.flags("labels")
        if len(labels) != len(options):
            problem = f"there are {len(options)} choices and {len(labels)} labels; each needs one"
            raise Mistake(problem, targets.place)
        right = tuple(place for place, label in enumerate(labels) if label)
        if not right or (form is Form.CHOICE and len(right) > 1):
            needed = "exactly one" if form is Form.CHOICE else "at least one"
            raise targets.mistake(f"{len(right)} are right, {needed} has to be", "labels")
        check_options(options, right, f"{targets.place}.choices", "choices")
        items.append(
            Item(
                id=f"{name}.{key.removesuffix('_targets')}",
                form=form,
                prompt=prompt,
                options=options,
                right=right,
                group="truthfulqa",
            )
        )
    if not items:
        raise record.mistake("the key 'mc1_targets' is missing, and so is 'mc2_targets'")
    return tuple(items)


def _gsm8k(record: Record, name: str) -> tuple[Item, ...]:
    question = record.text("question").strip()
    answer = record.text("answer").rstrip()
    _, mark, _ = answer.rpartition("####")
    # From the last mark on: a search over all of a long text could take its square in time.
    found = _ANSWER.fullmatch(answer[answer.rindex(mark) :]) if mark else None
    if found is None:
        raise record.mistake("it does not end in '####' and a number, as in '#### 42'", "answer")
    return (
        Item(
            id=name,
            form=Form.EXACT,
            prompt=f"Question: {question}\nAnswer:",
            targets=(found[1].replace(",", ""),),
            extract=Extract.LAST_NUMBER,
            stop=STOP,
            most=MOST_GENERATED,
            group="gsm8k",
        ),
    )


FORMS = (
    PublicForm("hellaswag", ("endings",), Normalisation.BYTES, _hellaswag),
    PublicForm("arc", ("question", "answerKey"), Normalisation.BYTES, _arc),
    PublicForm("winogrande", ("sentence", "option1", "option2"), Normalisation.NONE, _winogrande),
    PublicForm("truthfulqa", ("question", "mc1_targets"), Normalisation.NONE, _truthfulqa),
    PublicForm("truthfulqa", ("question", "mc2_targets"), Normalisation.NONE, _truthfulqa),
    PublicForm("mmlu", ("question", "choices", "answer"), Normalisation.NONE, _mmlu),
    PublicForm("gsm8k", ("question", "answer"), Normalisation.NONE, _gsm8k),
)
"""The forms, in the order in which they are tried: a later one may have the keys of an earlier."""


def _choice(name: str, prompt: str, options: tuple[Option, ...], right: int, group: str) -> Item:
    return Item(
        id=name, form=Form.CHOICE, prompt=prompt, options=options, right=(right,), group=group
    )


def _spaced(texts: Sequence[str]) -> tuple[Option, ...]:
    return tuple(Option(f" {text.strip()}") for text in texts)


def _place(record: Record, key: str, count: int, what: str, *, digits: bool = True) -> int:
    """Return which of the choices is right, counted from 0."""
    given = record.value(key)
    place = -1
    if isinstance(given, int) and not isinstance(given, bool):
        place = given
    elif digits and isinstance(given, str) and re.fullmatch(r"[0-9]{1,6}", given):
        place = int(given)
    if count < 2:
        raise record.mistake(f"there are {count}; a choice needs 2 or more", what)
    if not 0 <= place < count:
        letters = "" if digits else f" or A to {ascii_uppercase[count - 1]}"
        to = f"0 to {count - 1}{letters}"
        problem = f"it is {shown(given)}, and there are {count} {what}; {to} is needed"
        raise record.mistake(problem + _unlabelled(given), key)
    return place


def _unlabelled(given: object) -> str:
    return " (published test splits have no answers; take the validation split)" * (given == "")


def _group(record: Record, key: str, form: str) -> str:
    given = record.content.get(key)
    if given is None or given == "":
        return form
    group = record.text(key)
    if problem := name_problem(group):
        raise record.mistake(problem, key)
    return group
