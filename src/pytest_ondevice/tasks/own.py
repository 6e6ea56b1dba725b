"""The project's own form: a header, then one item per line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from ..errors import did_you_mean
from ..model.task import Extract, Form, Item, Normalisation, Option
from ..storage.files import decode
from .forms import check_options
from .records import MOST_NAME, Mistake, name_problem, shown, text_problem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from enum import StrEnum

    from .records import Record

MOST_TOKENS = 2**15
"""Tokens to generate; more are taken for a mistake."""

NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MOST_NAME - 1}}}")

_VERSION = 1
_EXAMPLE = '{"tasks": 1, "name": "mine", "normalisation": "bytes"}'
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first line of a file in the project's own form.

    Attributes:
        tasks: The version of the form.
        name: The set's name; that of the file if there is none.
        normalisation: What log-likelihoods of choices are divided by.
    """

    tasks: int
    name: str = ""
    normalisation: Normalisation = Normalisation.NONE


def begins(record: Record) -> bool:
    """Whether a record is the header of this form.

    Raises:
        Mistake: It is an item, and the header is missing.
    """
    if "tasks" in record.content:
        return True
    if {"form", "prompt"} <= record.content.keys():
        raise Mistake(f"it is an item, and the first line has to be a header, as in {_EXAMPLE}")
    return False


def header(record: Record) -> Header:
    """Read the header.

    Raises:
        Mistake: It is none.
    """
    try:
        found = decode(record.raw, Header)
    except msgspec.DecodeError as error:
        raise _explained(error, record, Header, {"normalisation": Normalisation}) from None
    if found.tasks != _VERSION:
        problem = f"its version is {shown(found.tasks)}, this version reads {_VERSION}"
        raise record.mistake(problem, "tasks")
    if found.name and not NAME.fullmatch(found.name):
        problem = f"{shown(found.name)} is no name; letters, digits, '.', '_' and '-' make one"
        raise record.mistake(problem, "name")
    return found


def item(record: Record) -> Item:
    """Read an item, and make sure that it can be asked and scored.

    Raises:
        Mistake: It is none, or it cannot.
    """
    if "tasks" in record.content:
        raise Mistake("it is a second header; a file holds one set")
    try:
        found = decode(record.raw, Item)
    except msgspec.DecodeError as error:
        raise _explained(error, record, Item, {"form": Form, "extract": Extract}) from None
    for key, name in (("id", found.id), ("group", found.group)):
        if (problem := name_problem(name)) and (key == "id" or name):
            raise record.mistake(problem, key)
    if "\0" in found.prompt:
        raise record.mistake("the text has a NUL character", "prompt")
    if found.form is Form.EXACT:
        _check_exact(found, record)
        return found
    for key in ("targets", "stop", "most"):
        if getattr(found, key):
            raise record.mistake(f"it is for items of the form 'exact', not '{found.form}'", key)
    _check_texts(found, record)
    if found.form is Form.CLOZE:
        if len(found.options) != 1 or found.right not in {(), (0,)}:
            raise record.mistake("a cloze has one option, the text that is right", "options")
        return msgspec.structs.replace(found, right=(0,))
    _check_right(found, record)
    check_options(found.options, found.right, "$.options")
    return found


def _check_texts(found: Item, record: Record) -> None:
    for place, option in enumerate(found.options):
        at = f"options[{place}]"
        if problem := text_problem(option.text):
            raise record.mistake(problem, f"{at}.text")
        if "\0" in option.lead:
            raise record.mistake("the text has a NUL character", f"{at}.lead")
        if not found.prompt and not option.lead:
            problem = "the prompt is empty, and so is the lead; something has to come before"
            raise record.mistake(f"{problem} what is scored", at)


def _check_right(found: Item, record: Record) -> None:
    count = len(found.options)
    if not found.right:
        raise record.mistake("it is empty; one option at least has to be right", "right")
    for place, at in enumerate(found.right):
        if not 0 <= at < count:
            problem = f"it is {shown(at)}, and there are {count} options, counted from 0"
            raise record.mistake(problem, f"right[{place}]")
    if len(set(found.right)) < len(found.right):
        raise record.mistake("an option is named twice", "right")


def _check_exact(found: Item, record: Record) -> None:
    for key in ("options", "right"):
        if getattr(found, key):
            raise record.mistake("an item of the form 'exact' has none, but targets", key)
    if problem := text_problem(found.prompt):
        raise record.mistake(problem, "prompt")
    if not found.targets:
        raise record.mistake("it is empty; what the answer may be is needed", "targets")
    for place, target in enumerate(found.targets):
        problem = text_problem(target) or _unreachable(target, found.extract)
        if problem:
            raise record.mistake(problem, f"targets[{place}]")
    for place, end in enumerate(found.stop):
        if not end or "\0" in end:
            raise record.mistake("a text is needed that can end the answer", f"stop[{place}]")
    if not 1 <= found.most <= MOST_TOKENS:
        problem = f"it is {shown(found.most)}; the most tokens to generate are 1 to {MOST_TOKENS}"
        raise record.mistake(problem, "most")


def _unreachable(target: str, extract: Extract) -> str:
    """Say why no answer could ever equal a target; empty if one can."""
    if extract is not Extract.LINE:
        if not _NUMBER.fullmatch(target):
            return f"{shown(target)} is no number, as '{extract}' needs it, e.g. '1234' or '-0.5'"
    elif len(target.splitlines()) > 1 or target != target.strip().removesuffix(".").rstrip():
        return (
            f"{shown(target)} can never be the answer, which is one line without blanks around it"
            " and a full stop after it"
        )
    return ""


def _explained(
    error: msgspec.DecodeError,
    record: Record,
    struct: type[msgspec.Struct],
    words: dict[str, type[StrEnum]],
) -> Mistake:
    """Say what a decoder found wrong, with the key that was probably meant."""
    for key in record.content:
        if key not in struct.__struct_fields__:
            return record.mistake(_unknown("key", key, struct.__struct_fields__))
    for key, known in words.items():
        given = record.content.get(key)
        if isinstance(given, str) and given not in list(known):
            return record.mistake(_unknown(key, given, list(known)), key)
    options = record.content.get("options")
    for place, option in enumerate(options if isinstance(options, list) else ()):
        for key in option if isinstance(option, dict) else ():
            if key not in Option.__struct_fields__:
                problem = _unknown("key", key, Option.__struct_fields__)
                return record.mistake(problem, f"options[{place}]")
    problem, _, inside = str(error).partition(" - at `")
    problem = problem.replace("Object missing required field", "the object lacks the key")
    return Mistake(problem[:1].lower() + problem[1:], inside.rstrip("`") or record.place)


def _unknown(what: str, name: str, known: Sequence[str]) -> str:
    return f"unknown {what} {shown(name)}{did_you_mean(name[:MOST_NAME], known)}"
