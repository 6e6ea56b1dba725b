"""The memo: a quantity of a cell is looked up, or measured once for all that need it.

Tests pull. What is missing is measured in a fresh process on the device, together with all other
stages of that cell that the collected items declared, and journalled the moment it is there.

Three stages come in parts, each with a record of its own: fidelity in stretches of windows, taken
until a verdict is certain, speed in rounds over all cells that are timed, and tasks in pieces of
so many questions.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from . import capability, facts, figures
from .devices import available_memory, device, lock_path, locked
from .errors import MissingError, OnDeviceError, StorageError
from .matrix import FLOAT_METHODS, runtime_methods
from .model.ending import Ending, Kind
from .model.measurement import Measurement, ProtocolFields, digest_of
from .model.method import PLAIN_KV
from .model.quantity import DETERMINISTIC, QUANTITIES, Stage
from .options import BESIDE, LOCK
from .plan import weighed_evenly
from .price import MEMORY_FACTOR
from .probe import runner
from .probe.protocol import (
    MEMORY_EXECUTION,
    SPEED_EXECUTION,
    DecodePlan,
    DeployedPlan,
    EnergyPlan,
    Execution,
    FidelityPlan,
    ImportanceJob,
    MeasureJob,
    MemoryPlan,
    ModelJob,
    QuantizeJob,
    ReservePlan,
    SpeedPlan,
    TasksPlan,
)
from .storage.artifacts import Recipe
from .storage.files import megabytes, require_space, sha256_of
from .tasks import sets_of
from .texts import calibration_texts, texts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from .capability import Asked, Pieces
    from .devices import Build
    from .model.catalog import Cell
    from .model.report import TaskReport
    from .model.task import Item, TaskSet
    from .options import Settings
    from .probe.protocol import Event, Job, Text
    from .provision import Artifact, GgufFile, Provision
    from .references import GivenReference
    from .stats import Look
    from .storage.costs import Costs
    from .storage.journal import Journal, Record
    from .storage.pins import Pins

MOST_WINDOWS = 2**15
"""More windows than any reference file has."""

GROUPS: tuple[tuple[Stage, ...], ...] = (
    (Stage.VALIDATE, Stage.RESERVE, Stage.FIDELITY, Stage.DECODE, Stage.TASKS),
    (Stage.MEMORY,),
    (Stage.DEPLOYED,),
    (Stage.ENERGY,),
    (Stage.SPEED,),
)
"""Stages that share a worker process. Those of memory have their own: a peak must be nobody else's;
speed has one for each round, the process being the unit of replication."""

_APART = frozenset({Stage.SPEED, Stage.MEMORY, Stage.DEPLOYED, Stage.ENERGY})
"""Stages that are measured of each cell on its own, also where two have the same weights."""

BINDING_ROUNDS = 8
"""So many rounds of a campaign make a verdict on speed; fewer are advisory."""


class StageFailedError(Exception):
    """A stage has no result. The check that owns the stage fails, others are blocked by it."""

    def __init__(self, cell: Cell, stage: Stage, ending: Ending) -> None:
        super().__init__(f"{stage} of {cell.id}: {ending.message}")
        self.cell = cell
        self.stage = stage
        self.ending = ending

    def text(self) -> str:
        """Say what happened, with the runtime's last words."""
        lines = [f"{self.stage} of {self.cell.id}: {self.ending.kind}: {self.ending.message}"]
        if self.ending.hint:
            lines.append(f"  hint      {self.ending.hint}")
        lines.extend(f"  log       {line}" for line in self.ending.log)
        return "\n".join(lines)


class UnsupportedError(Exception):
    """The quantity does not exist for this cell; the message says what it would need."""


class NoMeterError(UnsupportedError):
    """The machine has no meter of energy; the message says what was looked for, and what helps."""


class Progress(Protocol):
    """Shows that long native work is going on."""

    def update(self, cell: str, stage: str, done: float, total: float) -> None:
        """Show how far a stage of a cell is; total 0 is unknown."""

    def finish(self) -> None:
        """Take the display away."""


@dataclass
class Bench:
    """Measures the cells of one session on one device.

    Attributes:
        settings: The options.
        provision: Finds artifacts.
        journal: Keeps what was measured.
        references: The reference cell of each model, by model name.
        progress: Shows long work.
        cells: The matrix.
        compares_before: Each cell is compared with its predecessor.
        declared: The stages that the collected items need, by cell id.
        busy: Other processes of this session run tests meanwhile: speed is disturbed.
        costs: Keeps what stages take, for the price of later runs.
        pins: The digests of accepted artifacts, by cell id.
        given: The reference files that were given, by model name.
        build: The other build of the runtime, where predecessors run on one; else None.
    """

    settings: Settings
    provision: Provision
    journal: Journal
    references: Mapping[str, Cell]
    progress: Progress
    cells: Sequence[Cell] = ()
    compares_before: bool = False
    declared: dict[str, set[Stage]] = field(default_factory=dict)
    busy: bool = False
    system_info: str = ""
    costs: Costs | None = None
    pins: Pins = field(default_factory=dict)
    given: Mapping[str, GivenReference] = field(default_factory=dict)
    build: Build | None = None
    _artifacts: dict[str, Artifact] = field(default_factory=dict)
    _questions: dict[str, tuple[TaskSet, ...]] = field(default_factory=dict)
    _cuts: dict[str, Pieces] = field(default_factory=dict)
    _digests: dict[tuple[str, int], list[str]] = field(default_factory=dict)

    # -- quantities

    def measure(
        self, cell: Cell, name: str, windows: int | None = None, rounds: int | None = None
    ) -> Measurement:
        """Return a quantity of a cell, measuring it if it is not there yet.

        Args:
            cell: The cell.
            name: The quantity.
            windows: For fidelity: the first so many windows, None for the whole budget; for tasks:
                the first so many pieces of the questions.
            rounds: For speed: so many rounds, None for those of the settings.

        Raises:
            StageFailedError: The stage that yields it died or failed.
            UnsupportedError: The cell has no such quantity.
            OnDeviceError: The artifact cannot be had.
        """
        quantity = QUANTITIES[name]
        if quantity.stage is Stage.HEADER:
            return self._from_header(cell, name)
        if quantity.stage is Stage.QUANTIZE:
            return self._from_recipe(cell, name)
        if name == "changed_windows":
            raise UnsupportedError("logits on record, which the check of identity compares with")
        try:
            if quantity.stage is Stage.SPEED:
                made, records = self._speed(cell, name, rounds or self.settings.rounds)
            else:
                made, records = self._staged(cell, name, windows)
        except capability.NoItemsError as error:
            raise UnsupportedError(str(error)) from error
        except figures.NoFigureError as error:
            kind = NoMeterError if quantity.stage is Stage.ENERGY else UnsupportedError
            raise kind(str(error)) from error
        reused = all(record.session != self.journal.session for record in records)
        protocol = digest_of(self.protocol(cell, quantity.stage))
        return msgspec.structs.replace(made, protocol=protocol, reused=reused)

    def _staged(
        self, cell: Cell, name: str, windows: int | None
    ) -> tuple[Measurement, list[Record]]:
        stage = QUANTITIES[name].stage
        if stage is Stage.TASKS:
            return self._answered(cell, name, windows)
        if stage is Stage.FIDELITY:
            records = self.windows(cell, windows)
            return figures.of_fidelity(name, [record.payload or {} for record in records]), records
        record = self.stage(cell, stage)
        payload = record.payload or {}
        if stage is Stage.VALIDATE:
            return figures.of_validation(name, payload), [record]
        match stage:
            case Stage.DECODE:
                made = figures.of_decoding(name, payload)
            case Stage.RESERVE:
                made = figures.of_reserve(name, payload, self.settings.context)
            case Stage.DEPLOYED:
                exact = self.stage(cell, Stage.MEMORY).payload or {}
                weights = self.artifact(cell).file.account.n_bytes
                made = figures.of_deployment(name, payload, exact, weights)
            case Stage.ENERGY:
                made = figures.of_energy(name, payload)
            case _:
                made = figures.of_memory(name, payload)
        return made, [record]

    def _answered(
        self, cell: Cell, name: str, pieces: int | None
    ) -> tuple[Measurement, list[Record]]:
        asked, records = self._asked(cell, pieces)
        theirs: tuple[Asked, ...] = ()
        if name == "answer_flips":
            reference = self.references.get(cell.model.name)
            if reference is None:
                raise UnsupportedError(f"answers of the reference: no F16 of {cell.model.name}")
            theirs, _ = self._asked(reference, pieces)
        return capability.figure(name, asked, theirs), records

    def _asked(self, cell: Cell, most: int | None) -> tuple[tuple[Asked, ...], list[Record]]:
        """Ask a cell the first so many pieces of its questions; the answers by set, and records.

        Raises:
            StageFailedError: A piece of the questions died or failed.
        """
        sets = self.questions(cell)
        pieces = self._pieces(cell).pieces[:most]
        records = [self.stage(cell, Stage.TASKS, part) for part in range(len(pieces))]
        payloads = (record.payload or {} for record in records)
        return capability.asked(sets, zip(pieces, payloads, strict=True)), records

    def questions(self, cell: Cell) -> tuple[TaskSet, ...]:
        """Return the sets of questions that a cell's model is asked."""
        if cell.model.name not in self._questions:
            self._questions[cell.model.name] = sets_of(cell.model, self.settings)
        return self._questions[cell.model.name]

    def _pieces(self, cell: Cell) -> Pieces:
        """Return what processes ask at a time; every look into the journal needs it."""
        if cell.model.name not in self._cuts:
            self._cuts[cell.model.name] = capability.pieces(self.questions(cell))
        return self._cuts[cell.model.name]

    def tasks(self, cell: Cell) -> tuple[TaskReport, ...]:
        """Return what the report has of a cell's answers; empty if it was not asked."""
        sets = self.questions(cell)
        reference = None if cell.reference else self.references.get(cell.model.name)
        return capability.reports(self._known(sets, cell), self._known(sets, reference))

    def _known(self, sets: Sequence[TaskSet], cell: Cell | None) -> tuple[Asked, ...]:
        """Return the answers that are there already."""
        if cell is None or cell.id not in self._artifacts:
            return ()
        pieces = self._pieces(cell).pieces
        records = [self._find(cell, Stage.TASKS, part) for part in range(len(pieces))]
        found = [
            (piece, record.payload)
            for piece, record in zip(pieces, records, strict=True)
            if record is not None and record.payload is not None
        ]
        return capability.asked(sets, found)

    def looks(self, cell: Cell, alpha: float, stage: Stage = Stage.FIDELITY) -> tuple[Look, ...]:
        """Return the looks of a sequential verdict on a cell, as far as text, or questions, go.

        Args:
            cell: The cell.
            stage: Fidelity, where a look is so many windows, or tasks: so many pieces.
            alpha: Error of either end over all looks.

        Raises:
            StageFailedError: The first stretch of windows, which tells how many there are, failed.
        """
        from .stats import Look, looks  # noqa: PLC0415  (numpy: only where something is measured)

        if stage is Stage.TASKS:
            found = self._pieces(cell)
            ends = dict.fromkeys((found.first, len(found.pieces)))
            return tuple(Look(end, alpha / len(ends)) for end in ends)
        first = self.stage(cell, Stage.FIDELITY).payload or {}
        return looks(self.settings.windows, alpha, self._held(cell, first))

    def windows(self, cell: Cell, most: int | None = None) -> list[Record]:
        """Return the records of a cell's windows, stretch by stretch, the first ``most`` of them.

        Raises:
            StageFailedError: One of them died or failed.
        """
        records = [self.stage(cell, Stage.FIDELITY)]
        held = self._held(cell, records[0].payload or {})
        end = held if self.settings.windows is None else min(held, self.settings.windows)
        for part, (start, _) in enumerate(self._stretches()[1:], 1):
            if start >= min(end, end if most is None else most):
                break
            records.append(self.stage(cell, Stage.FIDELITY, part))
        return records

    def logits(self, cell: Cell) -> dict[str, tuple[str, ...]]:
        """Return the digests of the first windows' logits by ISA class, if they were measured."""
        record = self._find(cell, Stage.FIDELITY) if cell.id in self._artifacts else None
        if record is None or record.payload is None:
            return {}
        return {str(record.payload["isa"]): tuple(_list(record.payload, "logits"))}

    def _held(self, cell: Cell, payload: Mapping[str, Any]) -> int:
        """Count the windows that there are: of the text, or of the reference that was given."""
        given = self.given.get(cell.model.name)
        available = int(payload["available"])
        return min(available, given.windows) if given is not None else available

    def _stretches(self) -> list[tuple[int, int | None]]:
        """Return the stretches of windows that are measured at a time, from one look to the next.

        But for the last, which ends at the budget, they do not depend on it: a longer budget reuses
        what a shorter one measured.
        """
        ends: list[int] = [8, 16, 24]
        while ends[-1] < MOST_WINDOWS:
            ends.append(2 * ends[-1])
        budget = self.settings.windows
        within = [end for end in ends if budget is None or end < budget]
        return list(zip([0, *within], [*within, budget], strict=True))

    def artifact(self, cell: Cell) -> Artifact:
        """Return a cell's artifact, quantizing it if it is not there yet.

        Raises:
            StageFailedError: Quantizing died or failed.
            OnDeviceError: The source is missing or broken.
        """
        if cell.id not in self._artifacts:
            made = self.provision.ready(cell)
            if made is None:
                key = self.provision.recipe_key(cell)
                failed = self.journal.find(key, any_run=False)
                if failed is not None and failed.ending is not None:
                    raise StageFailedError(cell, Stage.QUANTIZE, failed.ending)
                try:
                    made = self._quantize(cell)
                except StageFailedError as error:
                    self.journal.append(key, ending=error.ending)
                    raise
            self._artifacts[cell.id] = made
        return self._artifacts[cell.id]

    def made(self, cell: Cell) -> Artifact | None:
        """Return a cell's artifact if this session has had it in hand."""
        return self._artifacts.get(cell.id)

    def protocols(
        self, cell: Cell, measured: Mapping[str, Measurement]
    ) -> dict[str, ProtocolFields]:
        """Spell out the protocols of some measurements of a cell, by digest."""
        stages = {QUANTITIES[name].stage for name in measured if name in QUANTITIES}
        spelled = [self.protocol(cell, stage) for stage in sorted(stages - {Stage.QUANTIZE})]
        return {digest_of(fields): fields for fields in spelled}

    def stage(self, cell: Cell, stage: Stage, part: int = 0) -> Record:
        """Return the record of a stage of a cell, running a probe if there is none.

        Args:
            cell: The cell.
            stage: The stage.
            part: Which stretch of windows, for fidelity; which piece of the questions, for tasks.

        Raises:
            StageFailedError: The stage, or one that it needs, died or failed.
        """
        self.artifact(cell)
        if stage is not Stage.VALIDATE:
            self.stage(cell, Stage.VALIDATE)
        if stage is Stage.FIDELITY and self._compares(cell):
            reference = self._reference(cell)
            if reference is not None:
                # Side by side needs the reference's file, and that it can be loaded.
                needed = Stage.VALIDATE if self._beside else Stage.FIDELITY
                self.stage(reference, needed, part if needed is Stage.FIDELITY else 0)
        record = self._find(cell, stage, part)
        if record is None:
            self._probe(cell, stage, part)
            record = self._find(cell, stage, part)
        return self._result(cell, stage, record)

    def _result(self, cell: Cell, stage: Stage, record: Record | None) -> Record:
        if record is None or record.payload is None:
            ending = record.ending if record else None
            raise StageFailedError(
                cell,
                stage,
                ending or Ending(kind=Kind.NO_RESULT, stage=stage, message="it was not measured"),
            )
        return record

    def void(self, cell: Cell, name: str) -> None:
        """Keep later sessions from reusing a quantity that did not pass."""
        stage = QUANTITIES[name].stage if name in QUANTITIES else Stage.HEADER
        if stage in {Stage.HEADER, Stage.QUANTIZE, Stage.SPEED} or cell.id not in self._artifacts:
            return
        parts = 1
        if stage is Stage.FIDELITY:
            parts = len(self._stretches())
        elif stage is Stage.TASKS:
            parts = len(self._pieces(cell).pieces)
        for part in range(parts):
            if self._find(cell, stage, part) is not None:
                self.journal.void(self._key(cell, stage, part))

    def protocol(self, cell: Cell, stage: Stage) -> ProtocolFields:
        """Return everything that must be equal for two measurements of a stage to compare.

        The number of windows is not part of it: windows are paired by their ids.
        """
        fields: ProtocolFields = {"stage": str(stage)}
        if stage is Stage.VALIDATE:
            fields["counts"] = "tensor bytes"
        if stage in {Stage.HEADER, Stage.FIDELITY, Stage.MEMORY, Stage.RESERVE, Stage.TASKS}:
            given = self.given.get(cell.model.name) if stage is Stage.FIDELITY else None
            fields["lineage"] = (given.source if given else self.artifact(cell).lineage)[:16]
        if stage is Stage.FIDELITY:
            plan = FidelityPlan(texts=(), execution=self._execution(cell))
            fields |= _fields(plan.execution, without=("threads",))
            fields |= {"text": self._text(cell)[1], "seed": plan.seed}
            if self._beside:
                fields["kept"] = "the whole vocabulary"
            else:
                fields |= {"top": plan.top, "tail": plan.tail}
        else:
            fields |= self._run_fields(cell, stage)
        if not fields.get("gpu_layers", 1):
            # On the CPU alone a protocol is what it was before there was a choice.
            del fields["gpu_layers"]
        if stage in {Stage.FIDELITY, Stage.DECODE, Stage.TASKS} and cell.way.kv == PLAIN_KV:
            del fields["type_k"], fields["type_v"]
        return fields

    def _run_fields(self, cell: Cell, stage: Stage) -> ProtocolFields:
        """Return what a protocol says of the way that a stage runs the weights."""
        fields: ProtocolFields = {}
        match stage:
            case Stage.DECODE:
                decode = self._decode_plan(cell)
                fields = _fields(decode.execution, without=("threads",))
                fields |= {"text": self._text(cell)[1]}
                fields |= {"seed": decode.seed, "tokens": decode.tokens}
            case Stage.TASKS:
                tasks = TasksPlan(items=(), execution=self._execution(cell))
                fields = _fields(tasks, without=("items", "threads", "n_ctx", "n_ubatch"))
            case Stage.MEMORY:
                fields = _fields(self._memory_plan(cell)) | _platform()
            case Stage.DEPLOYED:
                fields = _fields(self._deployed_plan(cell)) | _platform()
            case Stage.RESERVE:
                fields = _fields(self._reserve_plan(cell).execution)
            case Stage.ENERGY:
                fields = _fields(self._energy_plan(cell), without=("sysfs",))
            case Stage.SPEED:
                fields = _fields(self._speed_plan(cell))
        return fields

    def call(self, cell: Cell, call: str, **arguments: Any) -> dict[str, object]:
        """Run one call of a user's test in a probe of its own.

        Raises:
            StageFailedError: The worker died or failed.
        """
        artifact = self.artifact(cell)
        job = ModelJob(
            artifact=str(artifact.file.path),
            call=call,
            execution=self._execution(cell),
            **arguments,
        )
        with locked(lock_path()) as descriptor:
            result = self._run(cell, job, descriptor)
        if call in result.payloads:
            return result.payloads[call]
        ending = next(iter(result.endings.values()))
        raise StageFailedError(cell, Stage.VALIDATE, ending)

    # -- probes

    def _probe(self, cell: Cell, wanted: Stage, part: int = 0) -> None:
        """Measure what is missing of the group of a stage, as far as collected items need it."""
        group = next(group for group in GROUPS if wanted in group)

        def found() -> bool:
            self.progress.update(cell.id, "waiting for the device", 0, 0)
            return self._find(cell, wanted, part) is not None

        with locked(lock_path(), waiting=found) as descriptor:
            needed = {wanted} if part else self.declared.get(cell.id, set()) | {wanted}
            if wanted is not Stage.FIDELITY and not self._reference_measured(cell):
                # The reference comes first; a stage that needs it waits until it is asked for.
                needed.discard(Stage.FIDELITY)
            missing = [
                stage
                for stage in group
                if stage in needed and self._find(cell, stage, part) is None
            ]
            if descriptor is None or wanted not in missing:
                return
            self._require_memory(cell)
            died = self._attempt(cell, missing, descriptor, part)
            left = [stage for stage in missing if self._find(cell, stage, part) is None]
            if died is not None and died is not Stage.VALIDATE and left:
                # Once more without the stage that died; what is known already stands.
                self._attempt(cell, left, descriptor, part)
            if not self.busy:
                for stage in {Stage.MEMORY, Stage.DEPLOYED}.intersection(missing):
                    self._retry_swapped(cell, stage, descriptor)

    def _attempt(
        self, cell: Cell, stages: Sequence[Stage], descriptor: int | None, part: int = 0
    ) -> Stage | None:
        """Run one probe for some stages; returns the stage it died in, if it did.

        ``part`` is the stretch of windows of fidelity, the piece of the questions of tasks, and the
        place in the campaign of speed.
        """
        artifact = self.artifact(cell)
        job = MeasureJob(
            artifact=str(artifact.file.path),
            validate=Stage.VALIDATE in stages,
            memory=self._memory_plan(cell) if Stage.MEMORY in stages else None,
            speed=self._speed_plan(cell) if Stage.SPEED in stages else None,
            fidelity=self._fidelity_plan(cell, part) if Stage.FIDELITY in stages else None,
            decode=self._decode_plan(cell) if Stage.DECODE in stages else None,
            reserve=self._reserve_plan(cell) if Stage.RESERVE in stages else None,
            deployed=self._deployed_plan(cell) if Stage.DEPLOYED in stages else None,
            energy=self._energy_plan(cell) if Stage.ENERGY in stages else None,
            tasks=self._tasks_plan(cell, part) if Stage.TASKS in stages else None,
        )

        def on_event(event: Event) -> None:
            # The moment a result is there it is kept: whatever comes next, it stands.
            if event.event == "done" and event.stage in list(stages):
                payload = event.payload
                if self.busy and event.stage in {Stage.SPEED, Stage.ENERGY}:
                    busy = "other test workers were running tests"
                    payload = payload | {"disturbed": [*_list(payload, "disturbed"), busy]}
                self.journal.append(self._key(cell, Stage(event.stage), part), payload=payload)

        result = self._run(cell, job, descriptor, on_event)
        died = None
        for name, ending in result.endings.items():
            # What dies before any stage is the failure of the first one.
            stage = Stage(name) if name in list(stages) else stages[0]
            if self._find(cell, stage, part) is None:
                self.journal.append(self._key(cell, stage, part), ending=ending)
            if ending.kind is not Kind.ERROR:
                died = stage
        return died

    def _retry_swapped(self, cell: Cell, stage: Stage, descriptor: int) -> None:
        """Measure memory once more where it was swapped out; the second result stands."""
        record = self._find(cell, stage)
        if record and record.payload and figures.swapped(record.payload):
            self._attempt(cell, [stage], descriptor)

    # -- speed, in rounds over all cells that are timed

    def _speed(self, cell: Cell, name: str, rounds: int) -> tuple[Measurement, list[Record]]:
        """Return a figure of the campaign that the cell takes part in, running what is missing."""
        self.stage(cell, Stage.VALIDATE)
        reference = self.references.get(cell.model.name)
        crew = self._crew(cell)
        places = range(rounds)
        self._campaign(cell, reference, crew, places)
        records = {
            place: self._result(cell, Stage.SPEED, self._find(cell, Stage.SPEED, place))
            for place in places
        }
        theirs: dict[str, list[Mapping[str, Any]]] = {}
        for place in records:
            for which in (place, -1 - place):
                found = reference and self._find(reference, Stage.SPEED, which)
                if found and found.payload is not None:
                    theirs.setdefault(_round(place), []).append(found.payload)
        made = figures.of_speed(
            name,
            {_round(place): record.payload or {} for place, record in records.items()},
            theirs,
            binding=BINDING_ROUNDS,
            active=self._active(cell) if name == "roofline_fraction" else 0.0,
        )
        return made, list(records.values())

    def _active(self, cell: Cell) -> float:
        return self._from_header(cell, "active_bytes").value or 0.0

    def _crew(self, cell: Cell) -> list[Cell]:
        """Return the cells that are timed together: of one model, those whose items want it."""
        wanted = {cell.id} | {
            name for name, stages in self.declared.items() if Stage.SPEED in stages
        }
        able = []
        for other in self.cells:
            if other.model.name != cell.model.name or other.id not in wanted:
                continue
            if not other.reference:  # it is first and last in every round as it is
                able.append(other)
            if self.compares_before:
                able.append(other.predecessor)
        return able

    def _campaign(
        self, cell: Cell, reference: Cell | None, crew: Sequence[Cell], places: Sequence[int]
    ) -> None:
        """Run the rounds that are missing: the reference first and last, the order reversed.

        A cell that is not valid, or dies in a round, leaves the campaign; its own check says so.
        """
        for place in places:
            if self._find(cell, Stage.SPEED, place) is None:
                order = list(reversed(crew)) if place % 2 else list(crew)
                sequence = [(one, place) for one in order if one is not reference]
                if reference is not None:
                    sequence = [(reference, place), *sequence, (reference, -1 - place)]
                self._time_round(cell, place, sequence)

    def _time_round(self, cell: Cell, place: int, sequence: Sequence[tuple[Cell, int]]) -> None:
        """Time cells one after the other, holding the device; each sample has a place."""
        for one, _ in sequence:
            with contextlib.suppress(StageFailedError, UnsupportedError, OnDeviceError):
                self.stage(one, Stage.VALIDATE)

        def found() -> bool:
            self.progress.update(cell.id, "waiting for the device", 0, 0)
            return self._find(cell, Stage.SPEED, place) is not None

        with locked(lock_path(), waiting=found) as descriptor:
            for one, which in sequence if descriptor is not None else ():
                if self._may_be_timed(one, which):
                    self._time(one, which, descriptor)

    def _may_be_timed(self, cell: Cell, place: int) -> bool:
        if cell.id not in self._artifacts or self._find(cell, Stage.SPEED, place) is not None:
            return False
        valid = self._find(cell, Stage.VALIDATE)
        if valid is None or valid.payload is None:
            return False
        # Whoever died in a round has left: a hang costs one timeout, not one per round.
        number = place if place >= 0 else -1 - place
        earlier = (
            self._find(cell, Stage.SPEED, which)
            for before in range(number + 1)
            for which in (before, -1 - before)
        )
        return not any(record is not None and record.payload is None for record in earlier)

    def _time(self, cell: Cell, place: int, descriptor: int | None) -> None:
        self._require_memory(cell)
        self._attempt(cell, [Stage.SPEED], descriptor, place)
        record = self._find(cell, Stage.SPEED, place)
        if not self.busy and record and record.payload and _list(record.payload, "disturbed"):
            # Once more; the second result stands, disturbed or not.
            self._attempt(cell, [Stage.SPEED], descriptor, place)

    def _run(
        self,
        cell: Cell,
        job: Job,
        descriptor: int | None,
        on_event: Callable[[Event], None] = lambda _: None,
    ) -> runner.Result:
        began: dict[str, float] = {}

        def show(event: Event) -> None:
            on_event(event)
            if event.event == "start":
                began[event.stage] = time.monotonic()
            elif event.event == "done" and event.stage in set(Stage):
                # Of fidelity so many windows at a time, of every other stage one thing.
                done = len(_list(event.payload, "ids")) or 1  # and so many questions
                seconds = time.monotonic() - began[event.stage]
                self._count_cost(cell, Stage(event.stage), done, seconds)
            if event.event == "done" and event.stage == "start":
                self.system_info = str(event.payload.get("system_info", ""))
            elif event.event in {"start", "progress"} and event.stage != "start":
                self.progress.update(cell.id, event.stage, event.done, event.total)

        try:
            return runner.run(
                job,
                timeout=self.settings.timeout,
                on_event=show,
                keep_open=[] if descriptor is None else [descriptor],
                python=self.build.python if cell.before and self.build is not None else None,
            )
        finally:
            self.progress.finish()

    def _count_cost(self, cell: Cell, stage: Stage, done: int, seconds: float) -> None:
        if self.costs is None or self.busy:
            return
        made = self._artifacts.get(cell.id)
        file = made.file if made else self.provision.source(cell.model)[0]
        self.costs.add(stage, cell.method, file.account.n_weights * done, seconds)

    def _quantize(self, cell: Cell) -> Artifact:
        store = self.provision.store
        source, _ = self.provision.source(cell.model)
        key = self.provision.recipe_key(cell)

        def found() -> bool:
            return self.provision.made(cell) is not None

        # Two locks, always in this order: one maker per recipe, one user of the device.
        with (
            locked(store.lock_file(key), waiting=found) as maker,
            locked(lock_path(), waiting=found) as descriptor,
        ):
            ready = self.provision.made(cell)
            if ready is not None or maker is None or descriptor is None:
                assert ready is not None
                return ready
            require_space(
                self.settings.cache,
                self.provision.expected_size(cell),
                f"quantizing {cell.model.name} to {cell.weights}",
            )
            importance, calibration_time = self._importance(cell, source, descriptor)
            part = store.new_file()
            job = QuantizeJob(
                source=str(source.path),
                target=str(part),
                file_type=runtime_methods()[cell.file_type],
                threads=self.settings.threads,
                importance=str(importance) if importance else "",
                pure=cell.way.pure,
                even=weighed_evenly(source.header, cell.file_type, pure=cell.way.pure)
                if importance
                else {},
            )
            try:
                result = self._run(cell, job, descriptor)
                payload: Any = result.payloads.get("quantize")
                if payload is None:
                    ending = next(iter(result.endings.values()))
                    raise StageFailedError(cell, Stage.QUANTIZE, ending)
                runtime = self.provision.runtime
                recipe = Recipe(
                    sha256="",
                    size=0,
                    source_sha256=source.sha256,
                    source_type=source.type_name or "unknown",
                    model=cell.model.name,
                    method=cell.weights,
                    runtime=runtime.version,
                    runtime_digest=runtime.digest,
                    wall_time=payload["time"],
                    cpu_time=payload["cpu_time"],
                    peak_memory=payload["peak"],
                    calibration=self.provision.calibration(cell) if importance else "",
                    calibration_time=calibration_time,
                )
                try:
                    store.add(key, part, recipe)
                except OnDeviceError as error:
                    ending = Ending(kind=Kind.ERROR, stage="quantize", message=str(error))
                    raise StageFailedError(cell, Stage.QUANTIZE, ending) from error
            finally:
                part.unlink(missing_ok=True)
            made = self.provision.made(cell)
            if made is None:
                raise StorageError(f"{self.settings.cache}: the store lost what it was given")
            return made

    def _importance(
        self, cell: Cell, source: GgufFile, descriptor: int
    ) -> tuple[Path | None, float]:
        """Return the importance matrix of a method that wants one, and how long making it took.

        Raises:
            StageFailedError: Making it died or failed.
        """
        if not cell.way.imatrix:
            return None, 0.0
        texts, digest = calibration_texts(self.settings.calibration, cell.model.text)
        execution = Execution(threads=self.settings.threads, repack=False)
        fields = {
            "source": source.sha256,
            "text": digest,
            "runtime": self.provision.runtime.digest,
            "execution": msgspec.to_builtins(execution),
        }
        folder = self.settings.cache / "importance"
        target = folder / f"{cell.model.name}-{digest_of(fields)}.npz"
        if target.exists():
            return target, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        job = ImportanceJob(
            source=str(source.path), target=str(target), texts=texts, execution=execution
        )
        began = time.monotonic()
        result = self._run(cell, job, descriptor)
        if "importance" not in result.payloads:
            ending = next(iter(result.endings.values()))
            raise StageFailedError(cell, Stage.QUANTIZE, ending)
        return target, time.monotonic() - began

    def _require_memory(self, cell: Cell) -> None:
        """Refuse to start what cannot fit: swapping disturbs, and the kernel's killer is blunt."""
        size = self.artifact(cell).file.header.file_size * MEMORY_FACTOR
        if self._beside and self._compares(cell) and (reference := self._reference(cell)):
            size += self.artifact(reference).file.header.file_size * MEMORY_FACTOR
        free = available_memory()
        if free is not None and size > free:
            raise StorageError(
                f"{cell.id} needs about {megabytes(size)} of memory, this machine has"
                f" {megabytes(free)} available"
            )

    def _find(self, cell: Cell, stage: Stage, part: int = 0) -> Record | None:
        keeps = stage is Stage.FIDELITY and self._makes_reference(cell)
        if keeps and not self._reference_file(cell, part).exists():
            record = self.journal.find(self._key(cell, stage, part), any_run=False)
            return record if record and record.ending else None
        return self.journal.find(self._key(cell, stage, part), any_run=stage in DETERMINISTIC)

    def _key(self, cell: Cell, stage: Stage, part: int = 0) -> str:
        artifact = self.artifact(cell)
        fields: dict[str, object] = {
            "artifact": artifact.file.sha256,
            "stage": str(stage),
            "runtime": self._runtime_digest(cell),
            "cpu": device().cpu,
            "protocol": self.protocol(cell, stage),
        }
        if stage is Stage.FIDELITY:
            start, end = self._stretches()[part]
            fields["windows"] = [start, end]
            fields["payload"] = "with bytes of text"
            fields["reference"] = self._reference_name(cell, part)
        elif stage is Stage.TASKS:
            place = (cell.model.name, part)
            if place not in self._digests:
                self._digests[place] = [item.digest for item in self._piece(cell, part)]
            fields["items"] = self._digests[place]
        elif stage in _APART:
            # Twins measured in one run stay apart: each is a sample of its own.
            fields["cell"] = cell.id
        if stage is Stage.SPEED:
            fields["place"] = part
        return digest_of(fields)

    def _runtime_digest(self, cell: Cell) -> str:
        if cell.before and self.build is not None:
            return self.build.runtime.digest
        return self.provision.runtime.digest

    # -- plans

    def _execution(self, cell: Cell) -> Execution:
        return self._run_as(cell, Execution(threads=self.settings.threads))

    def _run_as(self, cell: Cell, execution: Execution) -> Execution:
        """Run weights as the cell's method says, on the device of the settings."""
        kv, layers = cell.way.kv, self.settings.gpu_layers
        return msgspec.structs.replace(execution, type_k=kv, type_v=kv, gpu_layers=layers)

    def _timed(self, cell: Cell) -> Execution:
        """Return the execution that is timed, and whose energy is measured."""
        timed = msgspec.structs.replace(SPEED_EXECUTION, threads=self.settings.threads)
        return self._run_as(cell, timed)

    def _exact(self, cell: Cell) -> Execution:
        """Return the execution of the exact memory protocol, at the context of the settings."""
        sized = msgspec.structs.replace(MEMORY_EXECUTION, n_ctx=self.settings.context)
        return self._run_as(cell, sized)

    def _memory_plan(self, cell: Cell) -> MemoryPlan:
        return MemoryPlan(execution=self._exact(cell))

    def _reserve_plan(self, cell: Cell) -> ReservePlan:
        return ReservePlan(execution=self._exact(cell))

    def _deployed_plan(self, cell: Cell) -> DeployedPlan:
        exact = self._exact(cell)
        return DeployedPlan(execution=msgspec.structs.replace(exact, repack=True, mapped=True))

    def _energy_plan(self, cell: Cell) -> EnergyPlan:
        return EnergyPlan(
            sysfs=str(self.settings.sysfs),
            execution=self._timed(cell),
        )

    def _speed_plan(self, cell: Cell) -> SpeedPlan:
        return SpeedPlan(execution=self._timed(cell))

    def _decode_plan(self, cell: Cell) -> DecodePlan:
        return DecodePlan(texts=self._text(cell)[0], execution=self._execution(cell))

    def _tasks_plan(self, cell: Cell, part: int) -> TasksPlan:
        return TasksPlan(items=self._piece(cell, part), execution=self._execution(cell))

    def _piece(self, cell: Cell, part: int) -> tuple[Item, ...]:
        return capability.named(self._pieces(cell).pieces[part])

    def _fidelity_plan(self, cell: Cell, part: int) -> FidelityPlan:
        first, last = self._stretches()[part]
        plan = FidelityPlan(
            texts=self._text(cell)[0],
            first=first,
            last=last,
            execution=self._execution(cell),
        )
        if (given := self.given.get(cell.model.name)) is not None:
            return msgspec.structs.replace(
                plan, reference=str(given.path), last=min(last or given.windows, given.windows)
            )
        if self._makes_reference(cell):
            return msgspec.structs.replace(
                plan,
                reference=str(self._reference_file(cell, part)),
                write=True,
                about=self._about(cell),
            )
        if self._beside:
            if cell.reference and not cell.before:
                return msgspec.structs.replace(plan, write=True)
            reference = self._reference(cell)
            assert reference is not None  # none is given
            return msgspec.structs.replace(plan, beside=str(self.artifact(reference).file.path))
        return msgspec.structs.replace(plan, reference=str(self._reference_file(cell, part)))

    @property
    def _beside(self) -> bool:
        return self.settings.reference == BESIDE

    def _compares(self, cell: Cell) -> bool:
        """Whether a cell's fidelity is measured against another cell."""
        return cell.before or not cell.reference

    def _makes_reference(self, cell: Cell) -> bool:
        """Whether a cell's own pass keeps the distributions that others are compared with."""
        given = cell.model.name in self.given or self._beside
        return cell.reference and not cell.before and not given

    def _about(self, cell: Cell) -> dict[str, str]:
        """Say of a reference file what made it."""
        artifact = self.artifact(cell)
        runtime = self.provision.runtime
        return {
            "model": cell.model.name,
            "source": artifact.lineage,
            "tokenizer": artifact.file.header.tokenizer_digest or "",
            "text": self._text(cell)[1],
            "runtime": runtime.version,
            "runtime_digest": runtime.digest,
            "cpu": device().cpu,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def _reference(self, cell: Cell) -> Cell | None:
        """Return the cell that loss is measured against; None where a file stands for it.

        Raises:
            UnsupportedError: There is neither.
        """
        if cell.model.name in self.given:
            return None
        reference = self.references.get(cell.model.name)
        if reference is None:
            raise UnsupportedError(
                f"a reference: no F16 of {cell.model.name} was given and no source is at hand"
            )
        return reference

    def _reference_measured(self, cell: Cell) -> bool:
        if not self._compares(cell) or cell.model.name in self.given:
            return True
        reference = self.references.get(cell.model.name)
        if reference is None or reference.id not in self._artifacts:
            return False
        stage = Stage.VALIDATE if self._beside else Stage.FIDELITY
        record = self._find(reference, stage)
        return record is not None and record.payload is not None

    def _reference_name(self, cell: Cell, part: int) -> str:
        """Name what a cell is compared with, after all that it depends on."""
        if (given := self.given.get(cell.model.name)) is not None:
            return f"{sha256_of(given.path, self.settings.cache)}"
        if self._beside:
            reference = self._reference(cell)
            assert reference is not None  # none is given
            return f"beside {self.artifact(reference).file.sha256}"
        return self._reference_file(cell, part).name

    def _reference_file(self, cell: Cell, part: int) -> Path:
        """Name the file of the reference's distributions after all they depend on."""
        reference = self._reference(cell)
        assert reference is not None  # no file was given
        first, last = self._stretches()[part]
        plan = FidelityPlan(
            texts=(),
            first=first,
            last=last,
            execution=Execution(gpu_layers=self.settings.gpu_layers),  # whatever the threads
        )
        key = digest_of(
            {
                "artifact": self.artifact(reference).file.sha256,
                "runtime": self.provision.runtime.digest,
                "cpu": device().cpu,
                "text": self._text(cell)[1],
                "plan": msgspec.to_builtins(plan),
            }
        )
        return self.settings.cache / "references" / f"{cell.model.name}-{key}.npz"

    def _text(self, cell: Cell) -> tuple[tuple[Text, ...], str]:
        return texts(self.settings.text, cell.model.text)

    # -- figures that need no probe

    def _from_header(self, cell: Cell, name: str) -> Measurement:
        artifact = self.artifact(cell)
        if name == "pin_matches" and LOCK in self.settings.update:
            raise UnsupportedError("a pin; one is recorded by this run")
        try:
            fact = facts.of_header(name, artifact, self.pins)
        except facts.AbsentError as error:
            raise UnsupportedError(str(error)) from error
        return Measurement(
            quantity=name,
            value=fact.value,
            unit=QUANTITIES[name].unit,
            detail=fact.detail,
            protocol=digest_of(self.protocol(cell, Stage.HEADER)),
        )

    def _rederived(self, cell: Cell) -> Measurement:
        """Make a candidate once more from the source, and compare tensor by tensor."""
        artifact = self.artifact(cell)
        if not self.settings.rederive:
            raise UnsupportedError("--ondevice-rederive, which quantizes each candidate again")
        if artifact.origin != "candidate":
            raise UnsupportedError("a candidate: this artifact was made here")
        if cell.way.imatrix:
            raise UnsupportedError("a method without an importance matrix: its text is not known")
        try:
            made = self.provision.made(cell) or self._quantize(cell)
        except MissingError as error:
            raise UnsupportedError(f"a source to make it from: {error}") from error
        fact = facts.equal_share(artifact, made)
        return Measurement(
            quantity="rederived_share", value=fact.value, unit="1", detail=fact.detail
        )

    def _from_recipe(self, cell: Cell, name: str) -> Measurement:
        if name == "rederived_share":
            return self._rederived(cell)
        recipe = self.artifact(cell).recipe
        if recipe is None:
            raise UnsupportedError("an artifact that was quantized here, not given ready-made")
        values = {
            "quantize_time": recipe.wall_time,
            "quantize_cpu_time": recipe.cpu_time,
            "quantize_peak_memory": float(recipe.peak_memory),
            "quantize_speed": self.artifact(cell).file.account.n_weights / recipe.wall_time,
            "calibration_time": recipe.calibration_time,
        }
        return Measurement(quantity=name, value=values[name], unit=QUANTITIES[name].unit)


def _platform() -> ProtocolFields:
    """Return what peaks depend on beside the protocol: the granularity and the allocator."""
    return {"page_size": os.sysconf("SC_PAGE_SIZE"), "libc": device().libc}


def quantized_method(cell: Cell) -> bool:
    """Whether a cell's method quantizes at all."""
    return cell.file_type not in FLOAT_METHODS


def _fields(plan: msgspec.Struct, without: Sequence[str] = ()) -> ProtocolFields:
    flat: ProtocolFields = {}
    for name, value in msgspec.to_builtins(plan).items():
        flat |= value if isinstance(value, dict) else {name: value}
    return {name: value for name, value in flat.items() if name not in without}


def _list(payload: Mapping[str, object], name: str) -> list[Any]:
    value = payload.get(name)
    return list(value) if isinstance(value, list) else []


def _round(place: int) -> str:
    return f"round:{place + 1}"
