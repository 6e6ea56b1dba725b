"""The command ``pytest-ondevice``: what is asked of catalog, cache and reports without a run.

Thin: each command parses its arguments, asks the module that knows, and prints. It exits with 2
after one sentence when what it was given cannot be what it means, and with 130 after Ctrl-C.
Commands import what they need themselves: reading a report must work where nothing can be measured.
Two of them measure: they show on stderr how far they are.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import msgspec

from . import conclusion
from .errors import OnDeviceError, OptionError, StorageError
from .options import ALL_LAYERS, BUDGETS, MOST_THREADS, Value, default_cache, defaults, usable_cores
from .progress import PLAIN_SECONDS, REDRAW_SECONDS, eta
from .render import text
from .storage.files import megabytes, why_unwritable, write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .measure import Bench
    from .options import Settings
    from .storage.cache import Entry

MISUSE = 2
INTERRUPTED = 130
"""As a shell has it of what SIGINT ended."""

_MOST_WINDOWS = 2**15
_MOST_RUNS = 1000
_MOST_ROUNDS = 100

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
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pytest-ondevice",
        description="Ask about models, the cache and reports of pytest-ondevice. The gate itself is"
        " pytest: pytest --ondevice-models=NAME",
    )
    version = importlib.metadata.version("pytest-ondevice")
    parser.add_argument("-V", "--version", action="version", version=f"pytest-ondevice {version}")
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

    _add_reports(commands)
    _add_reference(commands)
    _add_calibrate(commands)

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


def _add_reports(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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

    compare = commands.add_parser(
        "compare",
        help="say what became of every cell, from one report to the next",
        description="Compare two reports, or two baselines or folders of them, cell by cell. Exit"
        " status: 0 nothing is worse, 1 something is, 3 something is not decided, is missing or"
        f" could not be compared; {MISUSE} they are neither, or the command is wrong.",
    )
    compare.add_argument("old", metavar="OLD", type=Path, help="what it was")
    compare.add_argument("new", metavar="NEW", type=Path, help="what it is")
    compare.add_argument(
        "--cells", metavar="PATTERN", help="only these cells; * and ? stand for any characters"
    )
    shown = compare.add_mutually_exclusive_group()
    shown.add_argument("--markdown", action="store_true", help="print a comment for GitHub")
    shown.add_argument("--json", action="store_true", help="print JSON")
    compare.set_defaults(command=_compare)

    summary = commands.add_parser(
        "summary",
        help="print a report as Markdown",
        description="Print a report as Markdown that fits into a comment of GitHub: a table of the"
        " cells, then what failed and why.",
    )
    summary.add_argument("report", metavar="REPORT", type=Path, help="a report.json")
    summary.set_defaults(command=_summary)

    export = commands.add_parser(
        "export",
        help="print a report's figures for other programs",
        description="Print a report's figures: a row for each cell and quantity, or speeds with the"
        " field names of llama-bench. One of its samples is the best of one process; those of"
        " llama-bench are repetitions in one process.",
    )
    export.add_argument("report", metavar="REPORT", type=Path, help="a report.json")
    export.add_argument(
        "--as",
        dest="kind",
        choices=("table", "llama-bench"),
        default="table",
        help="which rows; default: %(default)s",
    )
    export.add_argument(
        "--format", choices=("csv", "json", "jsonl"), default="csv", help="default: %(default)s"
    )
    export.set_defaults(command=_export)

    plot = commands.add_parser(
        "plot",
        help="draw a report: its laws, loss and memory against bits per weight",
        description="Draw a report, a picture for each law and for loss and memory against bits per"
        " weight. Needs matplotlib: pip install 'pytest-ondevice[plots]'.",
    )
    plot.add_argument("report", metavar="REPORT", type=Path, help="a report.json")
    plot.add_argument("--output", metavar="DIR", default="plots", help="default: %(default)s")
    plot.add_argument(
        "--format", choices=("svg", "png"), default="svg", help="default: %(default)s"
    )
    plot.set_defaults(command=_plot)

    convert = commands.add_parser(
        "convert",
        help="write the Hugging Face form of a full-precision GGUF file",
        description="Write the Hugging Face form (configuration, tokenizer, safetensors) of a"
        " full-precision GGUF file of the architecture llama, every weight as it is.",
    )
    convert.add_argument(
        "model", metavar="MODEL", help="a name of the catalog or a GGUF file, on this machine"
    )
    convert.add_argument("folder", metavar="FOLDER", type=Path, help="a folder that is not there")
    convert.add_argument("--catalog", metavar="FILE", type=Path, help="your own catalog")
    convert.set_defaults(command=_convert)


def _add_reference(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    reference = commands.add_parser(
        "reference",
        help="make or check a reference file",
        description="Make or check a reference file: what the unquantized model says of the"
        " evaluation text, for machines that cannot hold it (--ondevice-reference=FILE).",
    )
    actions = reference.add_subparsers(title="actions", metavar="ACTION", required=True)
    make = actions.add_parser(
        "make",
        help="make one, where the model fits",
        description="Run the model in F16 over the evaluation text, and keep its distributions.",
    )
    make.add_argument("model", metavar="MODEL", help="a name of the catalog, a GGUF file, hf:...")
    make.add_argument("file", metavar="FILE", type=Path, help="the .npz file to write")
    make.add_argument(
        "--windows",
        metavar="N",
        type=_windows,
        default="release",
        help="windows of 512 tokens: smoke (16), release (all the text holds) or a number;"
        " default: %(default)s",
    )
    make.add_argument("--text", metavar="FILE", type=Path, help="evaluation text (UTF-8)")
    _add_machine(make)
    make.set_defaults(command=_reference_make)
    check = actions.add_parser(
        "check",
        help="say what one is, and verify it",
        description="Say what a reference file is, and verify every window of it. Exit status: 0"
        f" it is whole, 1 it is damaged, {MISUSE} it cannot be read or is none.",
    )
    check.add_argument("file", metavar="FILE", type=Path, help="a reference file")
    check.set_defaults(command=_reference_check)


def _add_calibrate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    calibrate = commands.add_parser(
        "calibrate",
        help="find out how far figures of speed and memory stray on this machine",
        description="Time a model against itself, again and again: what differs is noise. Says how"
        " often the gate would cry wolf here and which slowdown it would find, and keeps the noise"
        " for bounds that refer to it. Takes a while, and wants the machine to itself.",
    )
    calibrate.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default="smollm2-135m",
        help="a name of the catalog, a GGUF file, hf:...; default: %(default)s",
    )
    calibrate.add_argument(
        "--method", metavar="NAME", default="Q4_0", help="its file type; default: %(default)s"
    )
    calibrate.add_argument(
        "--runs",
        metavar="N",
        type=_whole_number(1, _MOST_RUNS),
        default=20,
        help="campaigns; default: %(default)s",
    )
    calibrate.add_argument(
        "--rounds",
        metavar="N",
        type=_whole_number(2, _MOST_ROUNDS),
        default=8,
        help="rounds of a campaign, a pair of processes each; default: %(default)s",
    )
    calibrate.add_argument(
        "--tier", metavar="NAME", help="name of the class of machines, as for --ondevice-tier"
    )
    calibrate.add_argument(
        "--output", metavar="FILE", type=Path, help="write what was found here too (JSON)"
    )
    calibrate.add_argument("--json", action="store_true", help="print JSON")
    _add_machine(calibrate)
    calibrate.set_defaults(command=_calibrate)


def _add_machine(command: argparse.ArgumentParser) -> None:
    """Add what every command that measures has to be told."""
    command.add_argument(
        "--threads",
        metavar="N",
        type=_whole_number(1, MOST_THREADS),
        default=usable_cores(),
        help="threads of the runtime; default: the cores this process may use",
    )
    command.add_argument(
        "--gpu-layers",
        metavar="N",
        type=_layers,
        default=0,
        help="layers on the GPU, or all; default: %(default)s",
    )
    command.add_argument("--catalog", metavar="FILE", type=Path, help="your own catalog")
    command.add_argument("--offline", action="store_true", help="never ask a model hub")
    command.add_argument(
        "--cache",
        metavar="DIR",
        help="the folder; default: PYTEST_ONDEVICE_CACHE, or the user's cache",
    )


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


def _compare(given: argparse.Namespace) -> int:
    from . import comparison  # noqa: PLC0415
    from .render import markdown  # noqa: PLC0415

    found = comparison.compare(given.old, given.new, given.cells)
    if given.json:
        _print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    elif given.markdown:
        _write(markdown.comparison(found))
    else:
        for line in markdown.lines(found):
            _print(line)
    return comparison.status(found).value


def _summary(given: argparse.Namespace) -> int:
    from .render import markdown  # noqa: PLC0415

    _write(markdown.summary(conclusion.read(given.report)))
    return 0


def _export(given: argparse.Namespace) -> int:
    from .render import exports  # noqa: PLC0415

    report = conclusion.read(given.report)
    _write(exports.written(report, exports.Kind(given.kind), exports.Format(given.format)))
    return 0


def _picture_folder(output: str) -> Path:
    """Return the folder that pictures go to.

    Raises:
        OptionError: It is none, and none can be made there.
    """
    folder = Path(output)
    try:
        problem = "it is no folder" if folder.exists() and not folder.is_dir() else ""
        problem = problem or why_unwritable(folder)
    except OSError as error:
        problem = error.strerror or str(error)
    if not output.strip():
        problem = "an empty path"
    if problem:
        raise OptionError(f"--output={output}: {problem}")
    return folder


def _plot(given: argparse.Namespace) -> int:
    from .render import plots  # noqa: PLC0415  (matplotlib, an extra)

    report = conclusion.read(given.report)
    folder = _picture_folder(given.output)
    drawn = plots.pictures(report, given.format)
    if not drawn:
        raise OptionError(f"{given.report}: it holds no figure that could be drawn")
    for name, content in drawn.items():
        write_atomic(folder / name, content)
        _print(str(folder / name))
    return 0


def _convert(given: argparse.Namespace) -> int:
    from .catalog import find_model  # noqa: PLC0415
    from .conversion import hugging_face_form  # noqa: PLC0415
    from .storage.sources import locate  # noqa: PLC0415

    value = Value(given.model, "MODEL", "command line")
    model = find_model(given.model, value, given.catalog, Path.cwd())
    weights = locate(model, offline=True)
    parts = weights.here()
    if parts is None or len(parts) != 1:
        why = "is not on this machine" if parts is None else "is split into parts"
        raise value.error(f"{weights.place} {why}; give one whole GGUF file")
    for path in hugging_face_form(parts[0], given.folder):
        _print(str(path))
    return 0


def _reference_make(given: argparse.Namespace) -> int:
    from . import references  # noqa: PLC0415
    from .catalog import models  # noqa: PLC0415
    from .matrix import REFERENCE  # noqa: PLC0415
    from .texts import check  # noqa: PLC0415

    settings = _settings(
        given, REFERENCE, windows=given.windows, text=given.text and given.text.absolute()
    )
    try:
        check(given.text)
    except OnDeviceError as error:
        raise OptionError(f"--text={given.text}: {error}") from error
    _require_ours(given.file, references.describe, "a reference file")
    with _whole(given.file) as part, _measuring(settings) as (bench, progress):
        (model,) = models(settings)

        def tick(stage: str, done: float, total: float) -> None:
            if stage not in {"", "start"}:
                progress.update(model.name, stage, done, total)

        references.make(bench, model, part, tick)
    for line in references.lines(given.file):
        _print(line)
    return 0


def _reference_check(given: argparse.Namespace) -> int:
    from . import references  # noqa: PLC0415

    for line in references.lines(given.file):
        _print(line)
    wrong = references.verify(given.file)
    for line in wrong or ["every window is whole"]:
        _print(line)
    return 1 if wrong else 0


def _calibrate(given: argparse.Namespace) -> int:
    from . import calibration  # noqa: PLC0415
    from .matrix import expand  # noqa: PLC0415

    settings = _settings(given, given.method, rounds=given.rounds, tier=given.tier)
    try:
        where = calibration.place(settings)
    except ValueError as error:
        raise OptionError(f"--tier={given.tier}: {error}") from error
    kept = calibration.path(settings.cache, where[0].name)
    if problem := why_unwritable(kept.parent):
        raise StorageError(f"{kept.parent}: {problem}")
    files = [kept]
    if given.output is not None:
        _require_ours(given.output, calibration.read, "a calibration")
        files.append(given.output)
    method, *more = expand(settings.methods, settings.given["methods"])
    if more:
        raise settings.given["methods"].error("a group of file types; give one of them")
    with _measuring(settings) as (bench, progress):
        (cell,) = (one for one in bench.cells if one.method == method)
        taken = calibration.sample(bench, cell, given.runs, progress.tell)
        rounds = len(taken.rounds)
        if taken.interrupted and rounds < calibration.FEWEST:
            few = f"fewer than {calibration.FEWEST} are not kept"
            progress.tell(f"interrupted after {rounds} whole rounds; {few}")
            return INTERRUPTED
        if taken.interrupted:
            progress.tell(f"interrupted after {rounds} whole rounds, which are kept")
        found = calibration.calibrated(taken, given.rounds, where, cell.model.name, cell.method)
    calibration.write(found, *files)
    if given.json:
        _print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    else:
        for line in [*calibration.lines(found), f"kept in {kept}"]:
            _print(line)
    return INTERRUPTED if taken.interrupted else 0


def _settings(given: argparse.Namespace, method: str, **chosen: object) -> Settings:
    """Make the settings of a command that measures one model.

    Paths become absolute: what measures works in a folder of its own.
    """
    settings = defaults(
        Path.cwd(),
        models=(given.model,),
        methods=(method,),
        threads=given.threads,
        gpu_layers=given.gpu_layers,
        catalog=given.catalog and given.catalog.absolute(),
        offline=given.offline,
        cache=_cache(given).absolute(),
        **chosen,
    )
    settings.given["models"] = Value(given.model, "MODEL", "command line")
    settings.given["methods"] = Value(method, "--method", "command line")
    return settings


@contextlib.contextmanager
def _measuring(settings: Settings) -> Iterator[tuple[Bench, _Progress]]:
    """Yield a bench and what shows its work.

    Raises:
        OnDeviceError: No runtime or model, or a stage died.
    """
    from .measure import StageFailedError  # noqa: PLC0415
    from .workbench import workbench  # noqa: PLC0415

    progress = _Progress()
    try:
        with workbench(settings, progress, progress.tell) as bench:
            yield bench, progress
    except StageFailedError as error:
        raise OnDeviceError(str(error)) from error


class _Progress:
    """Shows long work on stderr: one rewritten line on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._stage = ("", "")
        self._began = 0.0
        self._drawn = 0.0
        self._open = False

    def update(self, cell: str, stage: str, done: float, total: float) -> None:
        """Redraw the line on a terminal; elsewhere write one when a stage starts, then seldom."""
        now = time.monotonic()
        if (cell, stage) != self._stage:
            self._stage, self._began = (cell, stage), now
        elif now - self._drawn < (REDRAW_SECONDS if self._tty else PLAIN_SECONDS):
            return
        self._drawn = now
        share = f" {done / total:.0%}" if total > 0 and done > 0 else ""
        left = eta(now - self._began, done, total)
        line = f"{cell}: {stage}{share}{', ' + left if left else ''}"
        if self._tty:
            width = max(20, shutil.get_terminal_size().columns - 1)
            self._write(f"\r\x1b[K{line[:width]}")
            self._open = True
        else:
            self._write(f"{line}\n")

    def finish(self) -> None:
        """Take the line off the terminal."""
        if self._open:
            self._write("\r\x1b[K")
        self._open = False

    def tell(self, line: str) -> None:
        """Write a line that stays."""
        self.finish()
        self._write(f"{line}\n")

    def _write(self, what: str) -> None:
        # Nobody may be there to see it; the work goes on.
        with contextlib.suppress(OSError):
            sys.stderr.write(what)
            sys.stderr.flush()


def _require_ours(file: Path, read: Callable[[Path], object], what: str) -> None:
    """Refuse to write over anything that is not ``what`` already, before any work is done.

    Raises:
        OptionError: It is something else, or cannot be written.
    """
    try:
        there = file.exists()
    except OSError as error:
        raise OptionError(f"{file}: cannot be written: {error.strerror}") from error
    if not file.parent.is_dir():
        raise OptionError(f"{file}: there is no folder {file.parent}")
    if problem := why_unwritable(file.parent):
        raise OptionError(f"{file}: {problem}")
    if there:
        try:
            read(file)
        except OnDeviceError as error:
            raise OptionError(
                f"{file} is there and is not {what}; remove it or choose another name"
            ) from error


@contextlib.contextmanager
def _whole(file: Path) -> Iterator[Path]:
    """Yield a place beside a file; what was written there becomes the file if nothing failed.

    Whatever a killed process has left of it goes too.

    Raises:
        StorageError: It cannot be put there.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix=".reference-", dir=file.parent)
    except OSError as error:
        raise StorageError(f"{file}: cannot write it: {error.strerror}") from error
    with folder as name:
        part = Path(name, "reference.npz")
        yield part
        try:
            part.replace(file)
        except OSError as error:
            raise StorageError(f"{file}: cannot write it: {error.strerror}") from error


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
    """Return the cache; one that was named has to be there."""
    folder = _cache(given, "there is no cache there")
    if given.cache is not None and not folder.is_dir():
        raise OptionError(f"{given.cache}: there is no cache there")
    return folder


def _cache(given: argparse.Namespace, empty: str = "a folder is expected") -> Path:
    name = given.cache
    if name is None:
        name = os.environ.get("PYTEST_ONDEVICE_CACHE") or str(default_cache())
    if not name.strip():
        raise OptionError(f"{name or 'an empty path'}: {empty}")
    try:
        folder = Path(name).expanduser()
        folder.exists()
    except (OSError, RuntimeError) as error:
        raise OptionError(f"{name}: not a path: {getattr(error, 'strerror', error)}") from error
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


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    def convert(given: str) -> int:
        if not given.isdecimal() or len(given) > 9 or not least <= int(given) <= most:
            raise argparse.ArgumentTypeError(f"'{given}' is no number from {least} to {most}")
        return int(given)

    return convert


def _layers(given: str) -> int:
    if given.casefold() == "all":
        return ALL_LAYERS
    try:
        return _whole_number(0, ALL_LAYERS)(given)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor all") from error


def _windows(given: str) -> int | None:
    if given.casefold() in BUDGETS:
        return BUDGETS[given.casefold()]
    try:
        return _whole_number(1, _MOST_WINDOWS)(given)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor {' or '.join(BUDGETS)}") from error


def _size(given: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)b?", given.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"'{given}' is no size; give 500M or 10G")
    size = float(match[1]) * _SIZES[match[2]]
    return int(min(size, sys.maxsize))  # what is more than that may be infinite


def _print(line: str) -> None:
    _write(f"{line}\n")


def _write(what: str) -> None:
    with _output() as output:
        output.write(what)


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
