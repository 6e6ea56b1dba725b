"""Options: one table makes the command line, the ini settings, the environment and their docs.

Precedence: command line (addopts included), then environment, then ini, then default. Nothing
here imports more than the standard library: the module is read at every start of pytest.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import OptionError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pytest

KINDS = ("fidelity", "capability", "size", "memory", "reserve", "speed")
"""The kinds of baseline that can be recorded and required."""

LOCK = "lock"
"""What ``--ondevice-update`` records beside baselines: the digests of the artifacts."""

ANYWAY = "anyway"
"""With it ``--ondevice-update`` records also what failed or was disturbed."""

BESIDE = "beside"
"""For ``--ondevice-reference``: load the reference beside each artifact, keep no file."""

BUDGETS = {"smoke": 16, "release": None}
"""Named budgets: the number of evaluation windows, None for all that the text holds."""

ROUNDS = {"smoke": 3, "release": 8}
"""Rounds of a speed campaign by budget; a number of windows goes with the rounds of smoke."""

DEFAULT_TIMEOUT = 300.0

DEFAULT_CONTEXT = 512

KV_TYPES = ("f16", "q8_0", "q4_0")
"""Types of the KV cache; a test holds them equal to those of the methods' variants."""

MOST_CONTEXT = 2**20
"""A longer context of the memory protocol is taken for a mistake."""

MOST_ITEMS = 10**6
"""More questions than any set has."""

MOST_THREADS = 512
"""llama.cpp's own limit (GGML_MAX_N_THREADS)."""

ALL_LAYERS = 9999
"""More layers than any model has: all of them."""


@dataclass(frozen=True, slots=True)
class Value:
    """One setting as the user gave it, with where it came from.

    Attributes:
        text: The text as given; None when it is the default.
        name: The name under which the user gave it, e.g. ``--ondevice-models``.
        origin: Where, in words: ``command line``, ``environment``, or the ini file's name.
    """

    text: str | None
    name: str
    origin: str

    def error(self, problem: str) -> OptionError:
        """Make the error that says what was given, from where, and what is wrong with it."""
        given = " ".join((self.text or "").split())  # one line, also where an ini has several
        return OptionError(f"{self.name}={given} (from the {self.origin}): {problem}")


@dataclass(frozen=True, slots=True)
class Option:
    """One row of the option table.

    Attributes:
        name: The name without prefix, e.g. ``models``.
        metavar: The noun that stands for the value in help texts; None for a switch.
        help: One line, capital first letter, no period unless there are two sentences.
        const: The value meant by the bare option (``--ondevice-update``), None if it needs one.
    """

    name: str
    metavar: str | None
    help: str
    const: str | None = None

    @property
    def flag(self) -> str:
        """The command-line name."""
        return f"--ondevice-{self.name}"

    @property
    def dest(self) -> str:
        """The ini name, which is also the name in ``config.option``."""
        return f"ondevice_{self.name.replace('-', '_')}"

    @property
    def env(self) -> str:
        """The environment variable."""
        return f"PYTEST_{self.dest.upper()}"


OPTIONS = (
    Option(
        "models",
        "NAMES",
        "Models to gate, comma separated: catalog names (smollm2-135m), paths of GGUF files,"
        " hf:OWNER/REPO[:FILE][@REVISION], or pkg:MODULE/FILE. Typed on the command line without a"
        " path, it runs the shipped suites",
    ),
    Option("catalog", "FILE", "Your own catalog of models (TOML), beside the one that ships"),
    Option(
        "methods",
        "NAMES",
        "Quantization methods, comma separated: llama.cpp file types (Q4_K_M) or groups."
        " Default: study (Q2_K Q3_K_M Q4_0 Q4_K_M Q5_0 Q5_K_M Q8_0); F16 is added as reference."
        " all-block has every block type down to 2 bits. +pure gives every matrix the base type,"
        " +imatrix quantizes with an importance matrix, +kv-q8_0 and +kv-q4_0 keep the KV cache so",
    ),
    Option(
        "kv-types",
        "TYPES",
        "Types of the KV cache to run every method with, comma separated: f16, q8_0, q4_0."
        " Default: f16",
    ),
    Option(
        "context",
        "TOKENS",
        "Context length of the memory measurements, from 64; no baseline of another one is"
        " compared. Default: 512",
    ),
    Option(
        "calibration",
        "FILE",
        "Calibration text (UTF-8) of importance matrices; it must not be the evaluation text."
        " Default: the text that ships",
    ),
    Option("require-energy", None, "Fail, not skip, where no meter can tell joules"),
    Option(
        "sysfs",
        "DIR",
        "Where the kernel's energy meters are, for containers that see the host's elsewhere."
        " Default: /sys",
    ),
    Option(
        "suites",
        "NAMES",
        "Shipped suites to run, comma separated, also beside paths. Default: all that gate models;"
        " accounting, which needs none, is run where it is named",
    ),
    Option(
        "accountant",
        "MODULE:FUNCTION",
        "Your accounting of bits per weight, for the suite accounting: from rows of (name, shape,"
        " type) to (weights, bytes). Default: ours",
    ),
    Option(
        "artifacts",
        "DIR",
        "Release candidates, taken instead of quantizing here: a folder of GGUF files named"
        " MODEL...METHOD.gguf, a path with {model} and {method} in it, or hf:OWNER/REPO[@REVISION]."
        " Without --ondevice-methods, the methods are those found there",
    ),
    Option(
        "against",
        "OLD",
        "What to compare each cell with: the release before (a folder, pattern or repository as for"
        " artifacts), or another build of llama.cpp (the folder of a Python environment that has"
        " it). Adds the suite against",
    ),
    Option(
        "reference",
        "FILE",
        "Judge against a reference file (pytest-ondevice reference make) where the F16 model does"
        " not fit; or beside: load it beside each artifact, exact over the whole vocabulary",
    ),
    Option(
        "rederive",
        None,
        "Quantize each candidate once more from the source and compare every tensor, bit for bit",
    ),
    Option("text", "FILE", "Evaluation text (UTF-8). Default: the text that ships"),
    Option(
        "budget",
        "AMOUNT",
        "Evaluation windows of 512 tokens at most: smoke (16), release (all the text holds, and"
        " speed in 8 rounds, which binds) or a number from 8. Taken in looks until the verdict is"
        " certain. Default: smoke",
    ),
    Option(
        "tasks",
        "NAMES",
        "Questions with known answers, comma separated: sets that ship (general, pocket) or files"
        " of JSON lines, ours or as HellaSwag, ARC, MMLU, WinoGrande, TruthfulQA and GSM8K have"
        " them; +bytes, +tokens or +none says how choices are normalised. Default: general, or"
        " what the catalog says of the model",
    ),
    Option(
        "items",
        "N",
        "Questions of each set at most, the same ones everywhere. The first 200 are asked first,"
        " the others where the verdict is not certain. Default: all",
    ),
    Option(
        "gpu-layers",
        "N",
        "Layers to offload to the GPU, or all. A runtime without GPU support is an error."
        " Default: 0",
    ),
    Option("threads", "N", "Threads of the runtime. Default: the cores this process may use"),
    Option(
        "report",
        "FILE",
        "Write the JSON report to FILE. Default: report.json in the current folder when the"
        " shipped suites run, else none",
    ),
    Option(
        "baselines",
        "DIR",
        "Folder of your baselines, read before those that ship, and the only one ever written."
        " Default: baselines in the rootdir",
    ),
    Option(
        "update",
        "KINDS",
        "Record this run's measurements as baselines: fidelity, capability, size, memory,"
        " reserve, speed or all; with lock the digests of its artifacts in ondevice.lock; with"
        " anyway also what failed or was disturbed. Default when bare: all",
        const="all",
    ),
    Option(
        "require-baseline",
        "KINDS",
        "Fail, not skip, where a baseline of these kinds is missing: fidelity, capability, size,"
        " memory, reserve, speed, all",
    ),
    Option(
        "bounds",
        "FILE",
        "Your own bounds (TOML): tolerances by check, model, method and device, and budgets such as"
        " a peak memory of at most 1.5 GiB",
    ),
    Option(
        "tier",
        "NAME",
        "Name of the class of machines that this one belongs to; speed is compared within one."
        " Default: made from CPU, cores, memory, system, governor and runtime",
    ),
    Option(
        "board",
        "NAME",
        "Name of this one machine of the tier. Default: a salted digest of the machine's id",
    ),
    Option(
        "inconclusive",
        "fail|skip",
        "What an inconclusive or disturbed measurement does to its item. Default: fail",
    ),
    Option(
        "identical",
        None,
        "Fail where logits differ from the baseline's, or the predecessor's, even harmlessly",
    ),
    Option(
        "waivers",
        "FILE",
        "Known failures (TOML): cell, check, reason, expires. A waived failure is xfail",
    ),
    Option(
        "yes",
        None,
        "Do not ask before a run that downloads, stores or takes much; where nobody can be asked,"
        " such a run is refused without this",
    ),
    Option("offline", None, "Use only what is on this machine; never ask a model hub"),
    Option("cache", "DIR", "Folder for artifacts and measurements. Default: the user's cache"),
    Option(
        "timeout",
        "SECONDS",
        f"Stop a probe that shows no sign of life for so long. Default: {DEFAULT_TIMEOUT:.0f}",
    ),
)


def add_options(parser: pytest.Parser) -> None:
    """Register every option of the table with pytest."""
    group = parser.getgroup("ondevice", "on-device language models (pytest-ondevice)")
    for option in OPTIONS:
        if option.metavar is None:
            group.addoption(
                option.flag, dest=option.dest, action="store_const", const="yes", help=option.help
            )
        elif option.const is not None:
            group.addoption(
                option.flag,
                dest=option.dest,
                metavar=option.metavar,
                nargs="?",
                const=option.const,
                help=option.help,
            )
        else:
            group.addoption(option.flag, dest=option.dest, metavar=option.metavar, help=option.help)
        parser.addini(option.dest, f"Same as {option.flag}", type="string", default="")


def typed(config: pytest.Config, name: str) -> bool:
    """Whether ``--ondevice-NAME`` stands on this command line (not in addopts, ini or env)."""
    flag = f"--ondevice-{name}"
    return any(
        str(arg) == flag or str(arg).startswith(flag + "=") for arg in config.invocation_params.args
    )


def lookup(config: pytest.Config, option: Option) -> Value:
    """Find the value of one option by precedence, with its source."""
    given = config.getoption(option.dest)
    if given is not None:
        origin = "command line" if typed(config, option.name) else "addopts"
        return Value(str(given), option.flag, origin)
    if os.environ.get(option.env):
        return Value(os.environ[option.env], option.env, "environment")
    ini = config.getini(option.dest)
    if ini:
        overridden = config.getoption("override_ini") or ()
        if any(text.partition("=")[0] == option.dest for text in overridden):
            return Value(str(ini).strip(), option.dest, "command line's -o")
        file = config.inipath.name if config.inipath else "none"
        return Value(str(ini).strip(), option.dest, f"file {file}")
    return Value(None, option.flag, "default")


def active(config: pytest.Config) -> bool:
    """Whether any option was given anywhere; if not, the plugin stays out of the way."""
    return any(lookup(config, option).text is not None for option in OPTIONS)


@dataclass(frozen=True, slots=True)
class Settings:
    """All options, parsed. A field's user-facing source is in ``given``.

    Attributes:
        models: Model names or paths as typed, duplicates merged, in order.
        methods: Method or group names as typed, duplicates merged, in order; empty without.
        kv_types: Types of the KV cache to run every method with; empty for f16 alone.
        context: Context length of the memory measurements.
        calibration: Calibration text, None for the one that ships.
        require_energy: A missing meter fails.
        sysfs: Where the kernel's energy meters are.
        suites: Names of suites, or None for all.
        catalog: The user's catalog of models, None for only the one that ships.
        accountant: Module and function that account for bits per weight, None for ours.
        artifacts: Folder, pattern or hub repository (``hf:...``) of release candidates.
        against: Folder, pattern, hub repository or Python environment to compare with.
        reference: A reference file, ``BESIDE``, or None to make one here.
        rederive: Make each candidate once more and compare.
        text: Evaluation text, None for the one that ships.
        windows: Largest number of evaluation windows, None for all.
        rounds: Rounds of a speed campaign.
        tasks: Sets of questions as typed; empty for those of each model.
        items: Largest number of questions of each set, None for all.
        gpu_layers: Layers to offload; ``ALL_LAYERS`` for all.
        threads: Threads of the runtime.
        report: Where the report goes, None where none is asked for.
        baselines: The user's baseline folder.
        update: Kinds of baselines to record, perhaps ``LOCK``.
        anyway: Record also what failed or was disturbed.
        require_baseline: Kinds whose missing baseline is a failure.
        bounds: File of tolerances and budgets.
        tier: Given name of the tier, None to derive one.
        board: Given name of the board, None to derive one.
        inconclusive: ``fail`` or ``skip``.
        identical: Logits that differ at all fail.
        waivers: File of known failures.
        yes: Do not ask whether a costly run is meant.
        offline: Never ask a model hub.
        cache: Folder of the artifact store and the journal.
        timeout: Seconds without a sign of life after which a probe is stopped.
        runs_suites: The shipped suites were asked for on this command line.
        rootdir: pytest's root folder; file names in messages are relative to it.
    """

    models: tuple[str, ...]
    methods: tuple[str, ...]
    kv_types: tuple[str, ...]
    context: int
    calibration: Path | None
    require_energy: bool
    sysfs: Path
    suites: tuple[str, ...] | None
    catalog: Path | None
    accountant: tuple[str, str] | None
    artifacts: Path | str | None
    against: Path | str | None
    reference: Path | str | None
    rederive: bool
    text: Path | None
    windows: int | None
    rounds: int
    tasks: tuple[str, ...]
    items: int | None
    gpu_layers: int
    threads: int
    report: Path | None
    baselines: Path
    update: frozenset[str]
    anyway: bool
    require_baseline: frozenset[str]
    bounds: Path | None
    tier: str | None
    board: str | None
    inconclusive: str
    identical: bool
    waivers: Path | None
    yes: bool
    offline: bool
    cache: Path
    timeout: float
    runs_suites: bool
    rootdir: Path
    given: dict[str, Value]


def names(value: Value) -> tuple[str, ...]:
    """Split a comma or blank separated list; duplicates are merged, order is kept.

    Raises:
        OptionError: An element is empty, as in ``a,,b``.
    """
    if value.text is None:
        return ()
    # A line of an ini file may end in a comma.
    text = re.sub(r",?[ \t]*\n", ",", value.text)
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise value.error("an empty name; give names separated by single commas")
    return tuple(dict.fromkeys(parts))


def parse(config: pytest.Config) -> Settings:
    """Parse every option.

    Raises:
        OptionError: A value cannot be what its option means; the message names its source.
    """
    given = {option.name: lookup(config, option) for option in OPTIONS}
    invocation = Path(config.invocation_params.dir)

    def path(name: str) -> Path | None:
        text = given[name].text
        if text is None:
            return None
        base = config.rootpath if given[name].origin.startswith("file ") else invocation
        if not text.strip():
            raise given[name].error("an empty path")
        try:
            whole = base / Path(text).expanduser()
            whole.exists()
        except (OSError, RuntimeError, ValueError) as error:
            reason = getattr(error, "strerror", "") or error
            raise given[name].error(f"not a path: {reason}") from error
        return whole

    def one(
        name: str, convert: Callable[[str], float], what: str, least: float, most: float
    ) -> float | None:
        text = given[name].text
        if text is None:
            return None
        try:
            number = convert(text)
        except ValueError:
            number = float("nan")
        if not least <= number <= most:
            raise given[name].error(f"not {what}")
        return number

    runs_suites = bool(given["models"].text and typed(config, "models")) or typed(config, "suites")
    threads = one("threads", int, f"a number of threads from 1 to {MOST_THREADS}", 1, MOST_THREADS)
    timeout = one("timeout", float, "a number of seconds from 0.1 to a day", 0.1, 86_400)
    items = one("items", int, f"a number of questions from 1 to {MOST_ITEMS}", 1, MOST_ITEMS)
    every = (given["gpu-layers"].text or "").casefold() == "all"
    layers = None
    if not every:
        layers = one("gpu-layers", int, f"all or a number of layers to {ALL_LAYERS}", 0, ALL_LAYERS)
    update = _kinds(given["update"], LOCK, ANYWAY)
    if update == {ANYWAY}:
        raise given["update"].error("anyway alone records nothing; add kinds, or all")
    inconclusive = given["inconclusive"]
    chosen = "fail" if inconclusive.text is None else inconclusive.text
    outcome = choose(inconclusive, "outcome", chosen, ("fail", "skip"))

    def release(name: str) -> Path | str | None:
        text = given[name].text or ""
        return text if text.startswith("hf:") else path(name)

    return Settings(
        models=names(given["models"]),
        methods=names(given["methods"]),
        kv_types=tuple(
            choose(given["kv-types"], "type", name, KV_TYPES) for name in names(given["kv-types"])
        ),
        context=int(
            one("context", int, f"a number of tokens from 64 to {MOST_CONTEXT}", 64, MOST_CONTEXT)
            or DEFAULT_CONTEXT
        ),
        calibration=path("calibration"),
        require_energy=_switch(given["require-energy"]),
        sysfs=path("sysfs") or Path("/sys"),
        suites=names(given["suites"]) or None,
        catalog=path("catalog"),
        accountant=_function(given["accountant"]),
        artifacts=release("artifacts"),
        against=release("against"),
        reference=BESIDE if given["reference"].text == BESIDE else path("reference"),
        rederive=_switch(given["rederive"]),
        text=path("text"),
        windows=_windows(given["budget"]),
        rounds=ROUNDS.get((given["budget"].text or "").casefold(), ROUNDS["smoke"]),
        tasks=names(given["tasks"]),
        items=None if items is None else int(items),
        gpu_layers=ALL_LAYERS if every else int(layers or 0),
        threads=usable_cores() if threads is None else int(threads),
        report=path("report"),
        baselines=path("baselines") or config.rootpath / "baselines",
        update=update - {ANYWAY},
        anyway=ANYWAY in update,
        require_baseline=_kinds(given["require-baseline"]),
        bounds=path("bounds"),
        tier=given["tier"].text,
        board=given["board"].text,
        inconclusive=outcome,
        identical=_switch(given["identical"]),
        waivers=path("waivers"),
        yes=_switch(given["yes"]),
        offline=_switch(given["offline"]),
        cache=path("cache") or default_cache(),
        timeout=DEFAULT_TIMEOUT if timeout is None else timeout,
        runs_suites=runs_suites,
        rootdir=config.rootpath,
        given=given,
    )


def defaults(rootdir: Path, **chosen: Any) -> Settings:
    """Return the settings of a command without a pytest session, but for those that were chosen.

    Args:
        rootdir: The folder that stands for the project.
        chosen: Fields of ``Settings``.
    """
    given = {option.name: Value(None, option.flag, "default") for option in OPTIONS}
    plain = Settings(
        models=(),
        methods=(),
        kv_types=(),
        context=DEFAULT_CONTEXT,
        calibration=None,
        require_energy=False,
        sysfs=Path("/sys"),
        suites=None,
        catalog=None,
        accountant=None,
        artifacts=None,
        against=None,
        reference=None,
        rederive=False,
        text=None,
        windows=BUDGETS["smoke"],
        rounds=ROUNDS["smoke"],
        tasks=(),
        items=None,
        gpu_layers=0,
        threads=usable_cores(),
        report=None,
        baselines=rootdir / "baselines",
        update=frozenset(),
        anyway=False,
        require_baseline=frozenset(),
        bounds=None,
        tier=None,
        board=None,
        inconclusive="fail",
        identical=False,
        waivers=None,
        yes=False,
        offline=False,
        cache=Path(os.environ.get("PYTEST_ONDEVICE_CACHE") or default_cache()),
        timeout=DEFAULT_TIMEOUT,
        runs_suites=False,
        rootdir=rootdir,
        given=given,
    )
    return replace(plain, **chosen)


def usable_cores() -> int:
    """Count the cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_cache() -> Path:
    """Where artifacts and measurements go when nobody says otherwise."""
    import platformdirs  # noqa: PLC0415  (read only when the plugin is used)

    return Path(platformdirs.user_cache_dir("pytest-ondevice", appauthor=False))


def choose(value: Value, what: str, name: str, known: Sequence[str]) -> str:
    """Return the one of ``known`` that ``name`` means, ignoring case.

    Raises:
        OptionError: Unknown, with a suggestion where one is near.
    """
    folded = {candidate.casefold(): candidate for candidate in known}
    if name.casefold() in folded:
        return folded[name.casefold()]
    raise value.error(f"unknown {what} '{name}'{did_you_mean(name, known)}")


def _windows(value: Value) -> int | None:
    if value.text is None:
        return BUDGETS["smoke"]
    if value.text.casefold() in BUDGETS:
        return BUDGETS[value.text.casefold()]
    if value.text.isdecimal() and len(value.text) < 10 and int(value.text) >= 8:
        return int(value.text)
    raise value.error("not a budget; give smoke, release or a number of windows from 8")


def _kinds(value: Value, *more: str) -> frozenset[str]:
    chosen = [choose(value, "kind", name, (*KINDS, *more, "all")) for name in names(value)]
    every = KINDS if "all" in chosen else ()
    return frozenset({*chosen, *every} - {"all"})


def _function(value: Value) -> tuple[str, str] | None:
    if value.text is None:
        return None
    module, colon, name = value.text.partition(":")
    if not (colon and name.isidentifier() and all(map(str.isidentifier, module.split(".")))):
        raise value.error("not of the form MODULE:FUNCTION")
    return module, name


def _switch(value: Value) -> bool:
    text = (value.text or "no").casefold()
    if text in {"yes", "true", "on", "1"}:
        return True
    if text in {"no", "false", "off", "0"}:
        return False
    raise value.error("neither yes nor no")
