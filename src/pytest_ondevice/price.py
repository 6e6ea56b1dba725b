"""The price of a run, said before it is paid: download, disk, memory and minutes.

Sizes are planned (``plan``). Time is what this machine took for the same stages in earlier runs,
per weight and unit of work; where nothing is known yet, a guess that says that it is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import plan
from .matrix import FLOAT_METHODS
from .model.method import method_of
from .model.quant_types import FILE_TYPES
from .model.quantity import Stage
from .storage.files import megabytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .model.artifact import Header
    from .model.catalog import Cell, Model
    from .storage.costs import Costs

ASK_DOWNLOAD = 2e9
ASK_DISK = 20e9
ASK_SECONDS = 45 * 60
"""A run that takes more than one of these (bytes, bytes, seconds) is not begun without a yes."""

MEMORY_FACTOR = 1.1
"""Memory of a loaded artifact against its file: KV cache and compute buffers of a small context."""

_WINDOW = 512
_ALL_WINDOWS = 40
_STAGES = (
    Stage.VALIDATE,
    Stage.SPEED,
    Stage.FIDELITY,
    Stage.DECODE,
    Stage.TASKS,
    Stage.MEMORY,
    Stage.DEPLOYED,
)


@dataclass(frozen=True, slots=True)
class Load:
    """What a cell is about to take.

    Attributes:
        cell: The cell.
        weights: Number of weights.
        size: Bytes of its artifact.
        make: It has to be quantized first.
    """

    cell: Cell
    weights: int
    size: int
    make: bool

    @property
    def memory(self) -> int:
        """Bytes of memory that measuring it takes, about."""
        return int(self.size * MEMORY_FACTOR)


@dataclass(frozen=True, slots=True)
class Price:
    """What a run takes.

    Attributes:
        downloads: What has to be downloaded: bytes by where from.
        disk: Bytes that quantizing adds to the cache.
        largest: The cell that takes most memory; None without cells.
        seconds: How long it takes at most: what was measured before is not taken off.
        known: Of the time, the part that rests on this machine's own past runs, from 0 to 1.
    """

    downloads: Mapping[str, int]
    disk: int
    largest: Load | None
    seconds: float
    known: float

    @property
    def download(self) -> int:
        """Bytes to download."""
        return sum(self.downloads.values())

    @property
    def memory(self) -> int:
        """Bytes of memory at the peak, about."""
        return self.largest.memory if self.largest else 0

    @property
    def asks(self) -> bool:
        """Whether so much is not begun without a yes."""
        return self.download > ASK_DOWNLOAD or self.disk > ASK_DISK or self.seconds > ASK_SECONDS

    def sentence(self) -> str:
        """Say it in one line."""
        sources = ", ".join(self.downloads)
        download = (
            f"{megabytes(self.download)} of download ({sources})" if sources else "no download"
        )
        basis = "from past runs here" if self.known > 0.5 else "a guess, no past runs here"
        return (
            f"{download}, {megabytes(self.disk)} more on disk, {megabytes(self.memory)} of memory,"
            f" at most {_duration(self.seconds)} ({basis})"
        )


def price(
    loads: Sequence[Load],
    downloads: Mapping[str, int],
    costs: Costs,
    *,
    windows: int | None,
    rounds: int,
    threads: int,
    items: Mapping[str, int] | None = None,
) -> Price:
    """Add up what some cells take; ``items`` is how many questions a model is asked, by name."""
    seconds = known = 0.0
    made = _to_make(loads)
    for load in loads:
        for stage in (Stage.QUANTIZE, *_STAGES) if load in made else _STAGES:
            asked = (items or {}).get(load.cell.model.name, 0)
            units = load.weights * _work(stage, windows, rounds, asked)
            if stage is Stage.SPEED and load.cell.reference:
                units *= 2  # it is the first and the last of every round
            rate = costs.rate(stage, load.cell.method)
            taken = units * rate if rate is not None else units * _guessed_rate(stage, threads)
            seconds += taken
            known += taken if rate is not None else 0
    return Price(
        downloads=downloads,
        disk=sum(load.size for load in made),
        largest=max(loads, key=lambda load: load.memory, default=None),
        seconds=seconds,
        known=known / seconds if seconds else 0.0,
    )


def _to_make(loads: Sequence[Load]) -> list[Load]:
    """Choose what has to be quantized, once where cells only differ in how they run it."""
    found: dict[tuple[str, str, bool], list[Load]] = {}
    for load in loads:
        cell = load.cell
        found.setdefault((cell.model.name, cell.weights, cell.before), []).append(load)
    return [group[0] for group in found.values() if all(load.make for load in group)]


def _work(stage: Stage, windows: int | None, rounds: int, items: int) -> int:
    """How much a stage does per weight: windows, rounds of speed, questions, else once."""
    if stage is Stage.TASKS:
        return items
    if stage is Stage.SPEED:
        return rounds
    return (windows or _ALL_WINDOWS) if stage is Stage.FIDELITY else 1


def n_weights(model: Model, header: Header | None) -> int:
    """Count a model's weights: from a header, the dimensions, or as stated; 0 if nobody says."""
    return plan.n_weights(model.dimensions, header) or model.parameters or 0


def planned_size(model: Model, header: Header | None, method: str) -> int | None:
    """Say how long an artifact's file will be; None if it cannot be planned.

    ``method`` may have variants: a pure one has other types, and some rules look at whether there
    is an importance matrix.
    """
    way = method_of(method)
    return plan.file_size(
        model.dimensions, header, way.file_type, pure=way.pure, imatrix=way.imatrix
    )


def guessed_size(weights: int, method: str) -> int:
    """Estimate an artifact from above where it cannot be planned.

    Tensors whose rows do not fit the method's blocks fall back to wider types, and embeddings are
    kept wide; three bits more than nominal cover both.
    """
    nominal = float(FILE_TYPES[method].nominal_bpw) if method in FILE_TYPES else 16.0
    bits = nominal if method in FLOAT_METHODS else min(nominal + 3, 16.0)
    return int(weights * bits / 8) + 8 * 2**20


def _guessed_rate(stage: Stage, threads: int) -> float:
    """Seconds per weight and unit on a plain core: two operations per weight and token."""
    per_second = 25e9 * threads
    tokens = {
        Stage.FIDELITY: _WINDOW,
        Stage.DECODE: 700,
        Stage.TASKS: 40,
        Stage.SPEED: 2000,
        Stage.MEMORY: 700,
        Stage.DEPLOYED: 700,
        Stage.VALIDATE: 30,
    }
    if stage is Stage.QUANTIZE:
        return 1 / (12e6 * threads)
    return 2 * tokens[stage] / per_second


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
