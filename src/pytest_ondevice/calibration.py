"""Calibration: an artifact timed against itself on this machine, to learn what a verdict is worth.

Nothing differs between the two, so whatever a campaign finds is noise. From many pairs of processes
follow how far a campaign's figure strays, how often the gate's rule cries wolf, and how small a
slowdown it would still have caught.
"""

from __future__ import annotations

import datetime
import math
import random
import statistics
from bisect import bisect_left
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from .devices import device, lock_path, locked, runtime
from .errors import BadFileError, OnDeviceError
from .figures import RATIOS, log_speed
from .model.measurement import ProtocolFields
from .model.quantity import QUANTITIES, Stage
from .probe import runner
from .probe.protocol import (
    MEMORY_EXECUTION,
    SPEED_EXECUTION,
    MeasureJob,
    MemoryPlan,
    SpeedPlan,
)
from .render.text import columns
from .storage.files import decode, write_atomic
from .tier import board, tier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from .measure import Bench
    from .model.catalog import Cell
    from .options import Settings
    from .tier import Tier

SCHEMA = 1

TIMED = ("decode_speed", "prefill_speed", "ttft", "load_time")
"""What one process of the speed stage yields."""

MEMORY = "peak_memory"

TOLERANCE = 0.05
"""The tolerance of the checks of speed, in the logarithm."""

CAUGHT = 0.95
"""A slowdown counts as one that is caught if so many campaigns find it."""

CAMPAIGNS = 1000
"""Campaigns that are made of the rounds that were measured, drawn with replacement."""

FEWEST = 8
"""So many rounds of an interrupted calibration are worth keeping."""

_SEED = 20505
_SLOWDOWNS = tuple(step / 1000 for step in range(1, 501))
_MOST = _SLOWDOWNS[-1]
_ENOUGH = 2 / 3  # of a campaign's rounds have to be undisturbed, as in the gate
_REAL = 5  # with fewer real campaigns their scatter says nothing
_MAD = 1.4826  # of a normal distribution, standard deviation over median absolute deviation
_START_SECONDS = 1.0
_GUESS = 2 * 1000 / 25e9  # seconds per weight: two operations per token on a plain core


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of one class of machines, by one machine of it.

    Attributes:
        schema: Version of this layout.
        created: When, ISO 8601.
        tier: The name of the class of machines.
        fields: What it consists of.
        board: This one machine of it.
        runtime: Digest of the runtime's libraries.
        model: The model that was timed.
        method: The method that it was quantized with.
        rounds: Rounds of a campaign; each is a pair of processes.
        runs: Whole campaigns that were measured.
        disturbed: The rounds that something disturbed, counted from 1.
        noise: By quantity, the standard deviation of one campaign's figure. Speeds and times alone
            as a share of themselves, their ratios in the logarithm, memory in bytes.
        false_alarms: By quantity, the share of campaigns that called the artifact slower than
            itself by more than the tolerance, paired round by round.
        detectable: By quantity, the smallest slowdown that such campaigns would have caught, as a
            share of the speed or the time; None where there is none up to a half.
        samples: By quantity, in its unit, the figure of every process: those of speed in pairs, as
            new one and old one; of memory in order.
    """

    schema: int
    created: str
    tier: str
    fields: ProtocolFields
    board: str
    runtime: str
    model: str
    method: str
    rounds: int
    runs: int
    disturbed: tuple[int, ...]
    noise: dict[str, float]
    false_alarms: dict[str, float]
    detectable: dict[str, float | None]
    samples: dict[str, tuple[float, ...]]


class _Version(msgspec.Struct):
    schema: int


@dataclass
class Samples:
    """What was measured so far.

    Attributes:
        rounds: Of every whole round, by quantity, the figures of the new one and the old one.
        memory: The peaks, in bytes.
        disturbed: The rounds that something disturbed, counted from 1, and why.
        interrupted: Somebody pressed Ctrl-C.
    """

    rounds: list[dict[str, tuple[float, float]]] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    disturbed: dict[int, tuple[str, ...]] = field(default_factory=dict)
    interrupted: bool = False


# -- the file


def path(cache: Path, name: str) -> Path:
    """Name the file that holds what calibration found of a tier."""
    return cache / "calibration" / f"{name}.json"


def read(file: Path) -> Calibration | None:
    """Read what calibration found; None where there is no file.

    Raises:
        BadFileError: It is no calibration, or of another version; the message names the place.
    """
    try:
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BadFileError(file, f"cannot read it: {error.strerror}") from error
    again = "remove it, or make it anew: pytest-ondevice calibrate"
    try:
        schema = decode(content, _Version).schema
        if schema != SCHEMA:
            raise BadFileError(
                file, f"calibration schema {schema} @ $.schema; this version reads {SCHEMA}"
            )
        found = decode(content, Calibration)
    except msgspec.DecodeError as error:
        problem, _, place = str(error).partition(" - at `")
        where = place.rstrip("`") or "$"
        raise BadFileError(file, f"it is no calibration: {problem} @ {where}; {again}") from error
    for name, value in found.noise.items():
        if not 0 <= value < math.inf:
            raise BadFileError(
                file, f"it is no calibration: noise cannot be {value} @ $.noise.{name}; {again}"
            )
    return found


def noise(cache: Path, name: str) -> Mapping[str, float]:
    """Return what calibration found of a tier, by quantity; empty where none was made.

    Raises:
        BadFileError: The file is damaged.
    """
    found = read(path(cache, name))
    return MappingProxyType({} if found is None else found.noise)


def write(found: Calibration, *files: Path) -> None:
    """Write a calibration, each file whole or not at all.

    Raises:
        StorageError: No space, no permission.
    """
    content = msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"
    for file in files:
        write_atomic(file, content)


# -- measuring


def place(settings: Settings) -> tuple[Tier, str]:
    """Find the tier that is measured for, and the name of this machine in it.

    Raises:
        ValueError: A given name cannot be one; the message is a clause.
    """
    found = tier(device(), runtime(), settings.threads, settings.gpu_layers, settings.tier)
    return found, board(settings.board)


def estimate(bench: Bench, cell: Cell, processes: int) -> str:
    """Say how long so many processes take: as such ones took here before, else a guess."""
    rate = bench.costs.rate(Stage.SPEED, cell.method) if bench.costs is not None else None
    basis = "from past runs here" if rate is not None else "a guess, no past runs here"
    if rate is None:
        rate = _GUESS / bench.settings.threads
    weights = bench.artifact(cell).file.account.n_weights
    seconds = processes * (rate * weights + _START_SECONDS)
    long = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
    return f"about {long} ({basis})"


def sample(bench: Bench, cell: Cell, runs: int, tell: Callable[[str], None]) -> Samples:
    """Time an artifact against itself: a fresh process per sample, who is first alternating.

    Args:
        bench: Finds the artifact; its settings say how many rounds a campaign has.
        cell: What is timed.
        runs: Campaigns.
        tell: Hears what comes, and how long it takes.

    Returns:
        What there is; after Ctrl-C the rounds that were whole by then.

    Raises:
        StageFailedError: The artifact cannot be made, or is not valid.
        OnDeviceError: It cannot be had, or a process died.
    """
    bench.stage(cell, Stage.VALIDATE)
    rounds, times = runs * bench.settings.rounds, max(runs // 4, 3)
    total = 2 * rounds + times
    tell(
        f"timing {cell.id} against itself: {runs} x {bench.settings.rounds} rounds, {total}"
        f" processes, {estimate(bench, cell, total)}"
    )
    taken = Samples()
    probe = _Probe(bench, cell, total)
    try:
        for _ in range(times):
            with locked(lock_path(), waiting=probe.waits) as descriptor:
                taken.memory.append(float(probe.memory(descriptor)["peak"]))
        for number in range(1, rounds + 1):
            with locked(lock_path(), waiting=probe.waits) as descriptor:
                first, second = (probe.speed(descriptor) for _ in range(2))
            add(taken, number, first, second)
    except KeyboardInterrupt:
        taken.interrupted = True
    finally:
        bench.progress.finish()
    return taken


def add(taken: Samples, number: int, first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Add a round: of every other round the second process stands for the new artifact."""
    new, old = (first, second) if number % 2 else (second, first)
    if why := [*first["disturbed"], *second["disturbed"]]:
        taken.disturbed[number] = tuple(why)
    taken.rounds.append({name: (_figure(name, new), _figure(name, old)) for name in TIMED})


def _figure(name: str, payload: Mapping[str, Any]) -> float:
    return math.exp(_sign(name) * log_speed(name, payload))


def _sign(name: str) -> float:
    return 1.0 if name.endswith("_speed") else -1.0


@dataclass
class _Probe:
    """Runs one process after the other, counting them."""

    bench: Bench
    cell: Cell
    total: int
    done: int = 0

    def waits(self) -> bool:
        """Show that another run has the device."""
        self.bench.progress.update(self.cell.id, "waiting for the device", 0, 0)
        return False

    def memory(self, descriptor: int | None) -> dict[str, Any]:
        """Run the memory stage; once more where it was swapped out."""
        layers = self.bench.settings.gpu_layers
        execution = msgspec.structs.replace(MEMORY_EXECUTION, gpu_layers=layers)
        job = MeasureJob(artifact=self._file, memory=MemoryPlan(execution=execution))
        found = self._run(job, Stage.MEMORY, descriptor)
        if found.get("swapped", 0) > 0:
            found = self._run(job, Stage.MEMORY, descriptor)
        self.done += 1
        return found

    def speed(self, descriptor: int | None) -> dict[str, Any]:
        """Run the speed stage; once more where it was disturbed, and the second result stands."""
        settings = self.bench.settings
        execution = msgspec.structs.replace(
            SPEED_EXECUTION, threads=settings.threads, gpu_layers=settings.gpu_layers
        )
        job = MeasureJob(artifact=self._file, speed=SpeedPlan(execution=execution))
        found = self._run(job, Stage.SPEED, descriptor)
        if found["disturbed"]:
            found = self._run(job, Stage.SPEED, descriptor)
        self.done += 1
        return found

    @property
    def _file(self) -> str:
        return str(self.bench.artifact(self.cell).file.path)

    def _run(self, job: MeasureJob, stage: Stage, descriptor: int | None) -> dict[str, Any]:
        show = self.bench.progress.update
        show(self.cell.id, "calibrating", self.done, self.total)
        result = runner.run(
            job,
            timeout=self.bench.settings.timeout,
            on_event=lambda _: show(self.cell.id, "calibrating", self.done, self.total),
            keep_open=[] if descriptor is None else [descriptor],
        )
        if stage not in result.payloads:
            ending = next(iter(result.endings.values()))
            raise OnDeviceError(f"{stage} of {self.cell.id}: {ending.kind}: {ending.message}")
        return result.payloads[stage]


# -- what follows from it


def calibrated(
    taken: Samples, rounds: int, where: tuple[Tier, str], model: str, method: str
) -> Calibration:
    """Work out what samples say.

    Args:
        taken: At least two rounds.
        rounds: Rounds of a campaign.
        where: The tier, and the name of this machine in it.
        model: What was timed.
        method: What it was quantized with.
    """
    ours, name = where
    numbers = _used(taken)
    found: dict[str, float] = {}
    alarms: dict[str, float] = {}
    detectable: dict[str, float | None] = {}
    for quantity in TIMED:
        pairs = {number: taken.rounds[number - 1][quantity] for number in numbers}
        paired = {n: _sign(quantity) * math.log(new / old) for n, (new, old) in pairs.items()}
        # One process of a round stands for it, as in a campaign; each has its turn to be first.
        alone = {n: math.log(new) for n, (new, _) in pairs.items()}
        found[quantity] = strays(alone, rounds)
        for ratio, of in RATIOS.items():
            if of == quantity:
                found[ratio] = strays(paired, rounds)
        ends = upper_ends(paired, rounds)
        alarms[quantity] = slower(ends) / len(ends)
        detectable[quantity] = least_caught(ends, speed=_sign(quantity) > 0)
    if len(taken.memory) > 1:
        found[MEMORY] = scatter(taken.memory)
    samples = {
        quantity: tuple(value for one in taken.rounds for value in one[quantity])
        for quantity in TIMED
    }
    return Calibration(
        schema=SCHEMA,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        tier=ours.name,
        fields=ours.fields,
        board=name,
        runtime=runtime().digest,
        model=model,
        method=method,
        rounds=rounds,
        runs=len(taken.rounds) // rounds,
        disturbed=tuple(number for number in taken.disturbed if number <= len(taken.rounds)),
        noise=found,
        false_alarms=alarms,
        detectable=detectable,
        samples=samples | {MEMORY: tuple(taken.memory)},
    )


def scatter(values: Sequence[float]) -> float:
    """Return the larger of two standard deviations: the plain one, and the robust one.

    The robust one is 1.4826 median absolute deviations; it is the larger where figures are in two
    clouds.
    """
    if len(values) < 2:
        return 0.0
    middle = statistics.median(values)
    away = statistics.median(abs(value - middle) for value in values)
    return max(statistics.stdev(values), _MAD * away)


def strays(values: Mapping[int, float], rounds: int) -> float:
    """Return the standard deviation of one campaign's median.

    That of campaigns drawn from all rounds, or of the real ones where it is larger: those also
    hold what changes slowly, such as a clock that heat brings down.

    Args:
        values: One figure per round, by the number of the round.
        rounds: Rounds of a campaign.
    """
    drawn = scatter([statistics.median(one) for one in _drawn(values, rounds)])
    real = [statistics.median(one) for one in _real(values, rounds)]
    return max(drawn, scatter(real)) if len(real) >= _REAL else drawn


def upper_ends(logs: Mapping[int, float], rounds: int) -> list[float]:
    """Return the upper end of every campaign's interval, drawn and real ones, in order of size.

    Args:
        logs: Log ratios of new to old, more being better, by the number of the round.
        rounds: Rounds of a campaign.
    """
    from .judgement import ALPHA  # noqa: PLC0415  (numpy: only where something is measured)
    from .stats import median_interval  # noqa: PLC0415

    campaigns = [*_drawn(logs, rounds), *_real(logs, rounds)]
    return sorted(median_interval(one, ALPHA).upper for one in campaigns)


def slower(ends: Sequence[float], by: float = 0.0) -> int:
    """Count the campaigns that find the new one slower than the tolerance.

    Args:
        ends: The upper ends of their intervals, in order of size.
        by: So much more was lost in the logarithm. Every round's figure moves by it, and with them
            the interval as a whole.
    """
    return bisect_left(ends, by - TOLERANCE)


def least_caught(ends: Sequence[float], *, speed: bool) -> float | None:
    """Return the smallest slowdown that enough campaigns would have caught; None if there is none.

    Args:
        ends: The upper ends of their intervals without one, in order of size.
        speed: A slowdown is a share of a speed that is lost, else one by which a time is longer.
    """
    for share in _SLOWDOWNS:
        lost = -math.log1p(-share) if speed else math.log1p(share)
        if slower(ends, lost) >= CAUGHT * len(ends):
            return share
    return None


def _used(taken: Samples) -> list[int]:
    """Return the rounds that count: the undisturbed ones, or all where too many were disturbed."""
    every = range(1, len(taken.rounds) + 1)
    clean = [number for number in every if number not in taken.disturbed]
    return clean if len(clean) >= _ENOUGH * len(taken.rounds) else list(every)


def _drawn(values: Mapping[int, float], rounds: int) -> Iterable[list[float]]:
    chance = random.Random(_SEED)  # noqa: S311  (nothing secret)
    every = list(values.values())
    return (chance.choices(every, k=rounds) for _ in range(CAMPAIGNS))


def _real(values: Mapping[int, float], rounds: int) -> list[list[float]]:
    """Return the campaigns as they were measured, as far as enough of each counts."""
    found: dict[int, list[float]] = {}
    for number, value in values.items():
        found.setdefault((number - 1) // rounds, []).append(value)
    return [one for one in found.values() if len(one) >= _ENOUGH * rounds]


# -- in words


def lines(found: Calibration) -> list[str]:
    """Say in words what calibration found."""
    total = len(found.samples[TIMED[0]]) // 2
    rows: list[tuple[str, ...]] = [
        ("quantity", "typical", "noise", "paired", "false alarms", "caught from")
    ]
    paired = {speed: ratio for ratio, speed in RATIOS.items()}
    for quantity in TIMED:
        least = found.detectable[quantity]
        ratio = found.noise.get(paired.get(quantity, ""))
        rows.append(
            (
                quantity,
                f"{statistics.median(found.samples[quantity]):.4g} {QUANTITIES[quantity].unit}",
                _percent(found.noise[quantity]),
                "-" if ratio is None else _percent(ratio),
                _percent(found.false_alarms[quantity]),
                f"over {_MOST * 100:.0f} %" if least is None else _percent(least),
            )
        )
    if peaks := found.samples.get(MEMORY):
        typical = f"{statistics.median(peaks) / 2**20:.1f} MiB"
        stray = f"{found.noise[MEMORY] / 2**20:.2f} MiB" if MEMORY in found.noise else "-"
        rows.append((MEMORY, typical, stray, "-", "-", "-"))
    cell = f"{found.model}-{found.method}"
    alarms = f"campaigns that find it more than {TOLERANCE * 100:.0f} % slower than itself"
    told = [
        f"{cell} against itself, {total} rounds, {found.runs} campaigns of {found.rounds}",
        f"tier {found.tier}, board {found.board}",
        *columns(rows, right=(1, 2, 3, 4, 5)),
        "noise: standard deviation of one campaign's figure; paired: of its log ratio",
        f"false alarms: {alarms}",
        f"caught from: the slowdown that {CAUGHT * 100:.0f} % of campaigns find",
    ]
    if total - len(found.disturbed) < _ENOUGH * total:
        told.append(
            f"{len(found.disturbed)} of {total} rounds were disturbed: this is what a busy machine"
            " is worth; calibrate it again when nothing else runs"
        )
    if total < FEWEST:
        told.append(f"{total} rounds are too few to rely on; a whole calibration takes 20 x 8")
    return told


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"
