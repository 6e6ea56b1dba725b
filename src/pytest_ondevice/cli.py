"""The command ``pytest-ondevice``: what is asked of a catalog, a cache or a report, without a run.

Thin: each command parses its arguments, asks the module that knows, and prints. It exits with 2
after one sentence when what it was given cannot be what it means. Commands import what they need
themselves: reading a report must work where nothing can be measured.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import msgspec

from . import conclusion
from .errors import OnDeviceError, OptionError, StorageError
from .options import default_cache
from .render import text
from .storage.files import megabytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .storage.cache import Entry

MISUSE = 2

_SIZES = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_AGES = {"m": 60, "h": 3600, "d": 86400, "w": 604800}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Where a character cannot be shown, an escape stands for it.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            given = _parser().parse_args(arguments)
            command: Callable[[argparse.Namespace], int] = given.command
            return command(given)
        finally:
            with _output() as output:
                output.flush()
    except OnDeviceError as error:
        sys.stderr.write(f"ERROR: {error}\n")
        return MISUSE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pytest-ondevice",
        description="Ask about models, the cache and reports of pytest-ondevice. The gate itself is"
        " pytest: pytest --ondevice-models=NAME",
    )
    version = importlib.metadata.version("pytest-ondevice")
    parser.add_argument("--version", action="version", version=f"pytest-ondevice {version}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    models = commands.add_parser("models", help="list the catalog", description=_models.__doc__)
    models.add_argument("--catalog", metavar="FILE", type=Path, help="your own catalog, beside it")
    models.add_argument("--json", action="store_true", help="print JSON")
    models.set_defaults(command=_models)

    plan = commands.add_parser(
        "plan",
        help="say what a model will be under each method, before it is made",
        description="Say what a model will be under each method: types, effective bits per weight,"
        " file size, KV cache, peak memory. Needs no weights and no network.",
    )
    plan.add_argument(
        "model",
        metavar="MODEL",
        help="a name of the catalog, a GGUF file, a config.json or a folder with one, hf:... in"
        " the cache, pkg:...",
    )
    plan.add_argument(
        "--methods",
        metavar="NAMES",
        default="F16,study",
        help="file types or groups, comma separated, or all; default: %(default)s",
    )
    plan.add_argument(
        "--context",
        metavar="TOKENS",
        type=_tokens,
        default=512,
        help="context that KV cache and memory are for; default: %(default)s",
    )
    plan.add_argument(
        "--imatrix", action="store_true", help="with an importance matrix, which some types need"
    )
    plan.add_argument("--catalog", metavar="FILE", type=Path, help="your own catalog")
    plan.add_argument(
        "--from",
        dest="basis",
        choices=("header", "catalog"),
        default="header",
        help="start from a source's header where one is at hand, or from dimensions alone;"
        " default: %(default)s",
    )
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.set_defaults(command=_plan)

    inspect = commands.add_parser(
        "inspect",
        help="say what a model file is",
        description="Say what a GGUF file, or a folder with a checkpoint of Hugging Face, is: bits"
        " per weight, where the bytes are, what is odd.",
    )
    inspect.add_argument(
        "file", metavar="FILE", type=Path, help="of a split model any part; or a folder"
    )
    inspect.add_argument(
        "--header-only", action="store_true", help="do not read every block for odd scales"
    )
    inspect.add_argument("--layers", action="store_true", help="show each layer too")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(command=_inspect)

    check = commands.add_parser(
        "check",
        help="tell by exit status how a run ended",
        description="Tell by exit status what a report says: "
        + ", ".join(f"{status.value} {status.meaning}" for status in conclusion.Status)
        + f"; {MISUSE} it is no report, or the command is wrong.",
    )
    check.add_argument("report", metavar="REPORT", type=Path, help="a report.json")
    check.add_argument("--quiet", action="store_true", help="print nothing")
    check.set_defaults(command=_check)

    cached = commands.add_parser(
        "cache",
        help="list or prune what runs keep",
        description="List or prune the artifacts and references that runs keep. Downloads are in"
        " the Hugging Face cache (hf cache ls).",
    )
    actions = cached.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="list what is there, the newest last")
    prune = actions.add_parser("prune", help="delete what fits every filter given")
    for action in (listing, prune):
        action.add_argument(
            "--cache",
            metavar="DIR",
            help="the folder; default: PYTEST_ONDEVICE_CACHE, or the user's cache",
        )
        action.add_argument("--model", metavar="NAME", help="only of this model")
        action.add_argument(
            "--older-than", metavar="AGE", type=_age, help="not used for so long: 12h, 30d, 8w"
        )
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(command=_cache_list)
    prune.add_argument(
        "--max-size",
        metavar="SIZE",
        type=_size,
        help="only down to so much in all, the longest unused first: 500M, 10G",
    )
    prune.add_argument("--all", action="store_true", help="everything, without a filter")
    prune.add_argument("--dry-run", action="store_true", help="only say what would go")
    prune.set_defaults(command=_cache_prune)
    return parser


def _models(given: argparse.Namespace) -> int:
    """List the models of the catalog: weights, licence, and where they come from."""
    from .catalog import catalog  # noqa: PLC0415
    from .storage.sources import at_hand  # noqa: PLC0415

    known = catalog(given.catalog)
    if given.json:
        _print(msgspec.json.format(msgspec.json.encode(known), indent=1).decode())
        return 0
    rows = [("name", "weights", "licence", "here", "source")]
    for name, model in known.items():
        count = f"{model.parameters / 1e9:.2f} B" if model.parameters else "-"
        licence = model.license + (" (gated)" if model.gated else "")
        here = "yes" if at_hand(model) else "no"
        rows.append((name, count, licence or "-", here, str(model.sources[0])))
    for line in text.columns(rows, right=(1,)):
        _print(line)
    _print("also: PATH.gguf, hf:OWNER/REPO[:FILE][@REVISION], pkg:MODULE/FILE")
    return 0


def _plan(given: argparse.Namespace) -> int:
    from . import planner  # noqa: PLC0415
    from .devices import available_memory  # noqa: PLC0415

    found = planner.subject(given.model, catalog=given.catalog, use_header=given.basis == "header")
    methods = [name.strip() for name in given.methods.split(",") if name.strip()]
    made = planner.plans(found, methods, given.context, imatrix=given.imatrix)
    if given.json:
        shown = {
            "model": found.name,
            "basis": planner.basis(found),
            "context": given.context,
            "plans": made,
        }
        _print(msgspec.json.format(msgspec.json.encode(shown), indent=1).decode())
        return 0
    _print(planner.basis(found))
    for line in text.plans(made, available_memory()):
        _print(line)
    _print(
        f"bits per weight: the name says, is, in the layers; peak at {given.context} tokens of"
        " context, weights read and not repacked"
    )
    return 0


def _inspect(given: argparse.Namespace) -> int:
    from .inspection import inspect  # noqa: PLC0415

    found = inspect(given.file, blocks=not given.header_only)
    if given.json:
        _print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
        return 0
    for line in text.inspection(found, layers=given.layers):
        _print(line)
    return 0


def _check(given: argparse.Namespace) -> int:
    report = conclusion.read(given.report)
    status, lines = conclusion.conclude(report)
    if not given.quiet:
        for line in lines:
            _print(line)
    return status.value


def _cache_list(given: argparse.Namespace) -> int:
    from .storage import cache as store  # noqa: PLC0415

    folder = _folder(given)
    found = store.choose(store.entries(folder), model=given.model, older_than=given.older_than)
    found.sort(key=lambda entry: entry.used)
    if given.json:
        _print(msgspec.json.format(msgspec.json.encode(found, enc_hook=str), indent=1).decode())
        return 0
    rows: list[tuple[str, ...]] = [("kind", "model", "method", "size", "last used")]
    rows += [_row(entry) for entry in found]
    for line in text.columns(rows, right=(3, 4)):
        _print(line)
    total = sum(entry.size for entry in found)
    rest = megabytes(store.rest(folder))
    _print(f"{folder}: {len(found)} entries, {megabytes(total)}; measurements and locks {rest}")
    return 0


def _cache_prune(given: argparse.Namespace) -> int:
    from .storage import cache as store  # noqa: PLC0415

    folder = _folder(given)
    filters = (given.model, given.older_than, given.max_size)
    if given.all == any(value is not None for value in filters):
        raise OptionError("give --model, --older-than or --max-size, or --all alone")
    if not folder.is_dir():
        raise OptionError(f"{folder}: there is no cache there")
    with contextlib.nullcontext() if given.dry_run else store.pruning(folder):
        found = store.entries(folder)
        chosen = store.choose(
            found, model=given.model, older_than=given.older_than, max_size=given.max_size
        )
        for entry in chosen:
            _print("  ".join(part for part in _row(entry) if part != "-"))
        freed = sum(entry.size for entry in chosen)
        if not given.dry_run:
            store.delete(chosen)
    word = "would be freed" if given.dry_run else "freed"
    _print(f"{len(chosen)} of {len(found)} entries, {megabytes(freed)} {word}")
    return 0


def _folder(given: argparse.Namespace) -> Path:
    name = given.cache
    if name is None:
        name = os.environ.get("PYTEST_ONDEVICE_CACHE") or str(default_cache())
    try:
        folder = Path(name).expanduser()
        there = folder.is_dir()
    except (OSError, RuntimeError) as error:
        raise OptionError(f"{name}: not a path: {getattr(error, 'strerror', error)}") from error
    if given.cache is not None and not (name.strip() and there):
        raise OptionError(f"{name or 'an empty path'}: there is no cache there")
    return folder


def _row(entry: Entry) -> tuple[str, ...]:
    age = time.time() - entry.used
    for letter, seconds in reversed(_AGES.items()):
        if age >= 2 * seconds:
            shown = f"{age / seconds:.0f} {letter} ago"
            break
    else:
        shown = "now"
    return (entry.kind, entry.model or "-", entry.method or "-", megabytes(entry.size), shown)


def _age(given: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", given.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"'{given}' is no age; give 90m, 12h, 30d or 8w")
    return float(match[1]) * _AGES[match[2]]


def _tokens(given: str) -> int:
    if not given.isdecimal() or not 0 < int(given[:12]) <= 2**24:
        raise argparse.ArgumentTypeError(f"'{given}' is no number of tokens from 1 to {2**24}")
    return int(given)


def _size(given: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)b?", given.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"'{given}' is no size; give 500M or 10G")
    size = float(match[1]) * _SIZES[match[2]]
    return int(min(size, sys.maxsize))  # what is more than that may be infinite


def _print(line: str) -> None:
    with _output() as output:
        output.write(f"{line}\n")


@contextlib.contextmanager
def _output() -> Iterator[TextIO]:
    """Write to stdout; a reader that has seen enough, such as head, changes nothing that is done.

    Raises:
        StorageError: It cannot take more: the disk behind it is full.
    """
    try:
        yield sys.stdout
    except OSError as error:
        # What is still buffered goes nowhere, or Python's own last flush would fail as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise StorageError(f"cannot print: {error.strerror}") from error
