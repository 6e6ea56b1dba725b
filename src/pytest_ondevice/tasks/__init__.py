"""Sets of questions: those that ship, and the user's own files in our form or in public ones."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..errors import BadFileError, did_you_mean
from ..model.task import Normalisation, TaskSet
from . import own
from .forms import FORMS, form_of, own_id
from .records import Mistake, read_records, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ..model.catalog import Model
    from ..model.task import Item
    from ..options import Settings, Value
    from .forms import PublicForm
    from .records import Record

COMMON = ("general",)
"""The sets of models that have none of their own."""

MOST_ITEMS = 10**6
"""Items of a file; more are taken for a mistake."""

SEED = "pytest-ondevice tasks 1"
"""What draws the items of a budget, the same everywhere."""

_SUFFIX = ".jsonl"


def read(
    path: Path,
    name: str = "",
    normalisation: Normalisation | None = None,
    most: int | None = None,
) -> TaskSet:
    """Read a set from a file of JSON lines: UTF-8, one object per line, blank lines allowed.

    The first record tells the form, and all others must be of it:

    ==========  ============================================  ==============
    form        keys of a record                              normalisation
    ==========  ============================================  ==============
    our own     a header, then items as in ``model.task``     the header's
    HellaSwag   ctx (or ctx_a, ctx_b), endings, label         bytes
    ARC         question, choices (or inside), answerKey      bytes
    MMLU        question, choices, answer                     none
    WinoGrande  sentence, option1, option2, answer            none
    TruthfulQA  question, mc1_targets, mc2_targets            none
    GSM8K       question, answer                              none
    ==========  ============================================  ==============

    An item's id is the record's own, else the number of its line. Where public records share an
    id, the line is added to it; in our own form that is an error.

    Args:
        path: The file.
        name: The set's name; by default the header's, else the file's without its ending.
        normalisation: Instead of the form's own.
        most: Keep at most that many items, as :func:`select` chooses them.

    Raises:
        BadFileError: It is no such file; the message names the line and the key.
    """
    found = read_records(path)
    first = next(found, None)
    if first is None:
        raise BadFileError(path, "it is empty; one record per line is needed")
    try:
        if own.begins(first):
            header = own.header(first)
            items = _collect(path, found, None)
            name, default = name or header.name, header.normalisation
        else:
            form = _form(first)
            items = _collect(path, _chained(first, found), form)
            default = form.normalisation
    except Mistake as mistake:
        raise _bad(path, first, mistake) from None
    if not items:
        raise BadFileError(path, "it has a header, but no items; one item per line is needed")
    return TaskSet(
        name=name or _named_after(path),
        normalisation=default if normalisation is None else normalisation,
        items=select(items, most),
    )


def select(items: Sequence[Item], most: int | None) -> tuple[Item, ...]:
    """Choose at most so many items, of groups and forms in proportion, in their order.

    The choice depends on nothing but what the items ask: it is the same everywhere, and a larger
    one holds every smaller one.

    Args:
        items: The items.
        most: How many, 1 or more; None is all.
    """
    if most is None or most >= len(items):
        return tuple(items)
    strata: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for place, item in enumerate(items):
        drawn = (_drawn(item.digest), place)
        strata.setdefault((item.group, item.form), []).append(drawn)
    # Sampled systematically: each stratum's items lie evenly on the same stretch, from a start of
    # its own, and are taken in the order in which they come.
    order = []
    for stratum, members in strata.items():
        start = int(_drawn("\0".join(stratum)), 16) / 16**64
        for rank, (drawn_as, place) in enumerate(sorted(members)):
            order.append(((rank + start) / len(members), drawn_as, place))
    return tuple(items[place] for place in sorted(place for _, _, place in sorted(order)[:most]))


def _drawn(what: str) -> str:
    return hashlib.sha256(f"{SEED}\0{what}".encode()).hexdigest()


@cache
def shipped() -> Mapping[str, Path]:
    """Return the files of the sets that ship, by name."""
    folder = Path(str(resources.files("pytest_ondevice") / "data" / "tasks"))
    return MappingProxyType({path.stem: path for path in sorted(folder.glob(f"*{_SUFFIX}"))})


def sets_of(model: Model, settings: Settings) -> tuple[TaskSet, ...]:
    """Return the sets that a model is asked: the user's, those of its catalog entry, or general.

    Raises:
        OptionError: The user named what is no set, or two of one name.
        BadFileError: A file is no set; the message names the line and the key.
    """
    most = settings.items
    if not settings.tasks:
        return tuple(read(shipped()[name], name, None, most) for name in model.tasks or COMMON)
    value = settings.given["tasks"]
    base = settings.rootdir if value.origin.startswith("file ") else Path.cwd()
    found = tuple(find(name, value, base, most) for name in settings.tasks)
    names = [one.name for one in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise value.error(f"two sets are named {twice[0]}; rename a file, or ask them apart")
    return found


def find(name: str, value: Value, base: Path, most: int | None = None) -> TaskSet:
    """Read the set that the user named.

    Args:
        name: A set that ships or a file, and perhaps ``+`` and a normalisation.
        value: The setting it stands in, for messages.
        base: The folder that a relative path starts from.
        most: Keep at most that many items.

    Raises:
        OptionError: It means none.
        BadFileError: The file is no set; the message names the line and the key.
    """
    meant, normalisation = _normalised(name, value)
    known = {one.casefold(): one for one in shipped()}
    if meant.casefold() in known:
        ships = known[meant.casefold()]
        return read(shipped()[ships], ships, normalisation, most)
    if not meant.endswith(_SUFFIX):
        ways = did_you_mean(meant, known.values()) if known else "; none ship"
        file = f" (a file of your own ends in {_SUFFIX})"
        raise value.error(f"unknown set of tasks {shown(meant)}{ways}{file}")
    try:
        path = base / Path(meant).expanduser()
        there, folder = path.exists(), path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise value.error(f"there is no file {shown(meant)}") from error
    if not there:
        raise value.error(f"there is no file {shown(meant)}")
    if folder:
        raise value.error(f"{shown(meant)} is a folder; give a file of JSON lines")
    return read(path, "", normalisation, most)


def _normalised(name: str, value: Value) -> tuple[str, Normalisation | None]:
    """Split off what stands after the last plus, unless that is part of a file's name."""
    before, plus, after = name.rpartition("+")
    if not plus or after.endswith(_SUFFIX):
        return name, None
    ways = [str(one) for one in Normalisation]
    if after.casefold() not in ways:
        known = did_you_mean(after, ways)
        raise value.error(f"unknown normalisation {shown(after)} of {shown(before)}{known}")
    return before, Normalisation(after.casefold())


def _named_after(path: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._]+", "-", path.stem).strip("-._")
    return name if own.NAME.fullmatch(name) else "tasks"


def _form(record: Record) -> PublicForm:
    """Return the form of the first record.

    Raises:
        Mistake: It is of none.
    """
    form = form_of(record)
    if form is not None:
        return form
    for key, inside in record.content.items():
        if isinstance(inside, list) and inside and isinstance(inside[0], dict):
            problem = f"it is one JSON object with the records under {shown(key)}"
            raise Mistake(f"{problem}; one record per line is needed")
    keys = ", ".join(shown(key) for key in list(record.content)[:8]) or "none"
    known = dict.fromkeys(f"{one.name} ({', '.join(one.keys)})" for one in FORMS)
    raise Mistake(
        f"it is a record of no known form: its keys are {keys}; known are {', '.join(known)},"
        " or the header of our own form (tasks)"
    )


def _chained(first: Record, rest: Iterator[Record]) -> Iterator[Record]:
    yield first
    yield from rest


def _collect(path: Path, found: Iterator[Record], form: PublicForm | None) -> list[Item]:
    """Make items of records, of our own form if none is given."""
    items: list[Item] = []
    lines: dict[str, int] = {}
    for record in found:
        try:
            made = (_item(record),) if form is None else _items(record, form, lines)
            for item in made:
                line = lines.setdefault(item.id, record.line)
                if line != record.line:
                    problem = f"the id {shown(item.id)} is that of line {line} already"
                    raise record.mistake(problem, "id" if form is None else "")
        except Mistake as mistake:
            raise _bad(path, record, mistake) from None
        items += made
        if len(items) > MOST_ITEMS:
            raise BadFileError(
                path, f"it has more than {MOST_ITEMS} items; that is no set of tasks"
            )
    return items


def _item(record: Record) -> Item:
    if "form" not in record.content and (other := form_of(record)):
        raise Mistake(f"it is a record of {other.name}, and the file began with a header of ours")
    return own.item(record)


def _items(record: Record, form: PublicForm, taken: Mapping[str, int]) -> tuple[Item, ...]:
    other = form_of(record)
    if other is not None and other.name != form.name:
        raise Mistake(
            f"it is a record of {other.name}, and the file began with {form.name};"
            " all records of a file are of one form"
        )
    name = own_id(record)
    made = form.items(record, name)
    if any(item.id in taken for item in made):
        made = form.items(record, f"{name}@{record.line}")
    return made


def _bad(path: Path, record: Record, mistake: Mistake) -> BadFileError:
    at = f" - {mistake.place}" if mistake.place else ""
    return BadFileError(path, f"line {record.line}{at}: {mistake}")
