"""The memo: a quantity of a cell is looked up, or measured once for all that need it.

Tests pull. What is missing is measured in a fresh process on the device, together with all other
stages of that cell that the collected items declared, and journalled the moment it is there.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from . import facts
from .devices import available_memory, device, lock_path, locked
from .errors import MissingError, OnDeviceError, StorageError
from .matrix import FLOAT_METHODS, runtime_methods
from .model.ending import Ending, Kind
from .model.measurement import Measurement, ProtocolFields, digest_of
from .model.quantity import DETERMINISTIC, QUANTITIES, Stage
from .options import LOCK
from .price import MEMORY_FACTOR, work
from .probe import runner
from .probe.protocol import (
    MEMORY_EXECUTION,
    Execution,
    FidelityPlan,
    MeasureJob,
    MemoryPlan,
    ModelJob,
    QuantizeJob,
    SpeedPlan,
    Text,
)
from .storage.artifacts import Recipe
from .storage.files import megabytes, require_space

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .model.catalog import Cell
    from .options import Settings
    from .probe.protocol import Event, Job
    from .provision import Artifact, Provision
    from .storage.costs import Costs
    from .storage.journal import Journal, Record
    from .storage.pins import Pins

TEXT_VERSION = "v1"

GROUPS: tuple[tuple[Stage, ...], ...] = (
    (Stage.VALIDATE, Stage.SPEED, Stage.FIDELITY),
    (Stage.MEMORY,),
)
"""Stages that share a worker process. Memory has its own: its peak must be nobody else's."""


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
        declared: The stages that the collected items need, by cell id.
        busy: Other processes of this session run tests meanwhile: speed is disturbed.
        costs: Keeps what stages take, for the price of later runs.
        pins: The digests of accepted artifacts, by cell id.
    """

    settings: Settings
    provision: Provision
    journal: Journal
    references: Mapping[str, Cell]
    progress: Progress
    declared: dict[str, set[Stage]] = field(default_factory=dict)
    busy: bool = False
    system_info: str = ""
    costs: Costs | None = None
    pins: Pins = field(default_factory=dict)
    _artifacts: dict[str, Artifact] = field(default_factory=dict)
    _texts: tuple[tuple[Text, ...], str] | None = None

    # -- quantities

    def measure(self, cell: Cell, name: str) -> Measurement:
        """Return a quantity of a cell, measuring it if it is not there yet.

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
        record = self.stage(cell, quantity.stage)
        payload = record.payload or {}
        reused = record.session != self.journal.session
        build = {
            Stage.VALIDATE: _validated,
            Stage.FIDELITY: _fidelity,
            Stage.SPEED: _speed,
            Stage.MEMORY: _memory,
        }[quantity.stage]
        made = build(name, payload)
        protocol = digest_of(self.protocol(cell, quantity.stage))
        return msgspec.structs.replace(made, unit=quantity.unit, protocol=protocol, reused=reused)

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

    def stage(self, cell: Cell, stage: Stage) -> Record:
        """Return the record of a stage of a cell, running a probe if there is none.

        Raises:
            StageFailedError: The stage, or one that it needs, died or failed.
        """
        self.artifact(cell)
        if stage is not Stage.VALIDATE:
            self.stage(cell, Stage.VALIDATE)
        if stage is Stage.FIDELITY and not cell.reference:
            reference = self._reference(cell)
            self.stage(reference, Stage.FIDELITY)
        record = self._find(cell, stage)
        if record is None:
            self._probe(cell, stage)
            record = self._find(cell, stage)
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
        if stage not in {Stage.HEADER, Stage.QUANTIZE} and cell.id in self._artifacts:
            self.journal.void(self._key(cell, stage))

    def protocol(self, cell: Cell, stage: Stage) -> ProtocolFields:
        """Return everything that must be equal for two measurements of a stage to compare.

        The number of windows is not part of it: windows are paired by their ids.
        """
        fields: ProtocolFields = {"stage": str(stage)}
        if stage is Stage.VALIDATE:
            fields["counts"] = "tensor bytes"
        if stage in {Stage.HEADER, Stage.FIDELITY, Stage.MEMORY}:
            fields["lineage"] = self.artifact(cell).lineage[:16]
        if stage is Stage.FIDELITY:
            plan = self._fidelity_plan(cell)
            fields |= _fields(plan.execution, without=("threads",))
            fields |= {"text": self._text()[1], "seed": plan.seed}
            fields |= {"top": plan.top, "tail": plan.tail}
        elif stage is Stage.MEMORY:
            fields |= _fields(self._memory_plan())
            fields |= {"page_size": os.sysconf("SC_PAGE_SIZE"), "libc": device().libc}
            fields |= {"type_k": "f16", "type_v": "f16"}
        elif stage is Stage.SPEED:
            fields |= _fields(self._speed_plan())
        if not fields.get("gpu_layers", 1):
            # On the CPU alone a protocol is what it was before there was a choice.
            del fields["gpu_layers"]
        return fields

    def call(self, cell: Cell, call: str, **arguments: Any) -> dict[str, object]:
        """Run one call of a user's test in a probe of its own.

        Raises:
            StageFailedError: The worker died or failed.
        """
        artifact = self.artifact(cell)
        job = ModelJob(
            artifact=str(artifact.file.path), call=call, execution=self._execution(), **arguments
        )
        with locked(lock_path()) as descriptor:
            result = self._run(cell, job, descriptor)
        if call in result.payloads:
            return result.payloads[call]
        ending = next(iter(result.endings.values()))
        raise StageFailedError(cell, Stage.VALIDATE, ending)

    # -- probes

    def _probe(self, cell: Cell, wanted: Stage) -> None:
        """Measure what is missing of the group of a stage, as far as collected items need it."""
        group = next(group for group in GROUPS if wanted in group)

        def found() -> bool:
            self.progress.update(cell.id, "waiting for the device", 0, 0)
            return self._find(cell, wanted) is not None

        with locked(lock_path(), waiting=found) as descriptor:
            needed = self.declared.get(cell.id, set()) | {wanted}
            if wanted is not Stage.FIDELITY and not self._reference_measured(cell):
                # The reference comes first; a stage that needs it waits until it is asked for.
                needed.discard(Stage.FIDELITY)
            missing = [
                stage for stage in group if stage in needed and self._find(cell, stage) is None
            ]
            if descriptor is None or wanted not in missing:
                return
            self._require_memory(cell)
            died = self._attempt(cell, missing, descriptor)
            left = [stage for stage in missing if self._find(cell, stage) is None]
            if died is not None and died is not Stage.VALIDATE and left:
                # Once more without the stage that died; what is known already stands.
                self._attempt(cell, left, descriptor)
            self._retry_disturbed(cell, missing, descriptor)

    def _attempt(self, cell: Cell, stages: Sequence[Stage], descriptor: int) -> Stage | None:
        """Run one probe for some stages; returns the stage it died in, if it did."""
        artifact = self.artifact(cell)
        job = MeasureJob(
            artifact=str(artifact.file.path),
            validate=Stage.VALIDATE in stages,
            memory=self._memory_plan() if Stage.MEMORY in stages else None,
            speed=self._speed_plan() if Stage.SPEED in stages else None,
            fidelity=self._fidelity_plan(cell) if Stage.FIDELITY in stages else None,
        )

        def on_event(event: Event) -> None:
            # The moment a result is there it is kept: whatever comes next, it stands.
            if event.event == "done" and event.stage in list(stages):
                payload = event.payload
                if self.busy and event.stage == Stage.SPEED:
                    busy = "other test workers were running tests"
                    payload = payload | {"disturbed": [*_list(payload, "disturbed"), busy]}
                self.journal.append(self._key(cell, Stage(event.stage)), payload=payload)

        result = self._run(cell, job, descriptor, on_event)
        died = None
        for name, ending in result.endings.items():
            # What dies before any stage is the failure of the first one.
            stage = Stage(name) if name in list(stages) else stages[0]
            if self._find(cell, stage) is None:
                self.journal.append(self._key(cell, stage), ending=ending)
            if ending.kind is not Kind.ERROR:
                died = stage
        return died

    def _retry_disturbed(self, cell: Cell, stages: Sequence[Stage], descriptor: int) -> None:
        """Measure once more what the machine disturbed; the second result stands."""
        for stage in (Stage.SPEED, Stage.MEMORY):
            if stage in stages and not self.busy:
                record = self._find(cell, stage)
                if record and record.payload and _disturbed(stage, record.payload):
                    self._attempt(cell, [stage], descriptor)

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
                self._count_cost(cell, Stage(event.stage), time.monotonic() - began[event.stage])
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
            )
        finally:
            self.progress.finish()

    def _count_cost(self, cell: Cell, stage: Stage, seconds: float) -> None:
        if self.costs is None or self.busy:
            return
        made = self._artifacts.get(cell.id)
        file = made.file if made else self.provision.source(cell.model)[0]
        units = file.account.n_weights * work(stage, self.settings.windows)
        self.costs.add(stage, cell.method, units, seconds)

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
                f"quantizing {cell.model.name} to {cell.method}",
            )
            part = store.new_file()
            job = QuantizeJob(
                source=str(source.path),
                target=str(part),
                file_type=runtime_methods()[cell.method],
                threads=self.settings.threads,
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
                    method=cell.method,
                    runtime=runtime.version,
                    runtime_digest=runtime.digest,
                    wall_time=payload["time"],
                    cpu_time=payload["cpu_time"],
                    peak_memory=payload["peak"],
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

    def _require_memory(self, cell: Cell) -> None:
        """Refuse to start what cannot fit: swapping disturbs, and the kernel's killer is blunt."""
        size = self.artifact(cell).file.header.file_size * MEMORY_FACTOR
        free = available_memory()
        if free is not None and size > free:
            raise StorageError(
                f"{cell.id} needs about {megabytes(size)} of memory, this machine has"
                f" {megabytes(free)} available"
            )

    def _find(self, cell: Cell, stage: Stage) -> Record | None:
        if stage is Stage.FIDELITY and cell.reference and not self._reference_file(cell).exists():
            record = self.journal.find(self._key(cell, stage), any_run=False)
            return record if record and record.ending else None
        return self.journal.find(self._key(cell, stage), any_run=stage in DETERMINISTIC)

    def _key(self, cell: Cell, stage: Stage) -> str:
        artifact = self.artifact(cell)
        fields: dict[str, object] = {
            "artifact": artifact.file.sha256,
            "stage": str(stage),
            "runtime": self.provision.runtime.digest,
            "cpu": device().cpu,
            "protocol": self.protocol(cell, stage),
        }
        if stage is Stage.FIDELITY:
            fields["windows"] = self.settings.windows
            fields["reference"] = self._reference_file(cell).name
        elif stage in {Stage.SPEED, Stage.MEMORY}:
            # Twins measured in one run stay apart: each is a sample of its own.
            fields["cell"] = cell.id
        return digest_of(fields)

    # -- plans

    def _execution(self) -> Execution:
        return Execution(threads=self.settings.threads, gpu_layers=self.settings.gpu_layers)

    def _memory_plan(self) -> MemoryPlan:
        layers = self.settings.gpu_layers
        return MemoryPlan(execution=msgspec.structs.replace(MEMORY_EXECUTION, gpu_layers=layers))

    def _speed_plan(self) -> SpeedPlan:
        return SpeedPlan(execution=self._execution())

    def _fidelity_plan(self, cell: Cell) -> FidelityPlan:
        return FidelityPlan(
            texts=self._text()[0],
            reference=str(self._reference_file(cell)),
            write=cell.reference,
            windows=self.settings.windows,
            execution=self._execution(),
        )

    def _reference(self, cell: Cell) -> Cell:
        reference = self._reference_or_none(cell)
        if reference is None:
            raise UnsupportedError(
                f"a reference: no F16 of {cell.model.name} was given and no source is at hand"
            )
        return reference

    def _reference_or_none(self, cell: Cell) -> Cell | None:
        return self.references.get(cell.model.name)

    def _reference_measured(self, cell: Cell) -> bool:
        if cell.reference:
            return True
        reference = self._reference_or_none(cell)
        if reference is None or reference.id not in self._artifacts:
            return False
        record = self._find(reference, Stage.FIDELITY)
        return record is not None and record.payload is not None

    def _reference_file(self, cell: Cell) -> Path:
        """Name the file of the reference's distributions after all they depend on."""
        artifact = self.artifact(self._reference(cell))
        plan = FidelityPlan(
            texts=(),
            reference="",
            write=True,
            windows=self.settings.windows,
            execution=Execution(gpu_layers=self.settings.gpu_layers),  # whatever the threads
        )
        key = digest_of(
            {
                "artifact": artifact.file.sha256,
                "runtime": self.provision.runtime.digest,
                "cpu": device().cpu,
                "text": self._text()[1],
                "plan": msgspec.to_builtins(plan),
            }
        )
        return self.settings.cache / "references" / f"{cell.model.name}-{key}.npz"

    def _text(self) -> tuple[tuple[Text, ...], str]:
        """Return the evaluation text's files and the digest over their contents."""
        if self._texts is None:
            own = self.settings.text
            if own is not None:
                texts: tuple[Text, ...] = (Text("text", str(own)),)
            else:
                folder = resources.files("pytest_ondevice") / "data" / "text" / TEXT_VERSION
                texts = tuple(
                    Text(Path(path.name).stem, str(path))
                    for path in sorted(folder.iterdir(), key=lambda path: path.name)
                    if path.name.endswith(".txt")
                )
            digest = hashlib.sha256()
            for text in texts:
                content = Path(text.path).read_bytes()
                digest.update(f"{text.kind}\0{len(content)}\0".encode() + content)
            self._texts = (texts, digest.hexdigest()[:16])
        return self._texts

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
        }
        return Measurement(quantity=name, value=values[name], unit=QUANTITIES[name].unit)


def quantized_method(cell: Cell) -> bool:
    """Whether a cell's method quantizes at all."""
    return cell.method not in FLOAT_METHODS


def check_text(settings: Settings) -> None:
    """Check that the user's evaluation text can be read.

    Raises:
        MissingError: It cannot; the sentence says why.
    """
    if settings.text is None:
        return
    try:
        content = settings.text.read_bytes()
        content.decode("utf-8")
    except OSError as error:
        raise MissingError(f"cannot read it: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise MissingError(f"it is not UTF-8 text (byte {error.start})") from error
    if not content.strip():
        raise MissingError("it is empty")


def _fields(plan: msgspec.Struct, without: Sequence[str] = ()) -> ProtocolFields:
    flat: ProtocolFields = {}
    for name, value in msgspec.to_builtins(plan).items():
        flat |= value if isinstance(value, dict) else {name: value}
    return {name: value for name, value in flat.items() if name not in without}


def _list(payload: Mapping[str, object], name: str) -> list[Any]:
    value = payload.get(name)
    return list(value) if isinstance(value, list) else []


def _disturbed(stage: Stage, payload: Mapping[str, Any]) -> tuple[str, ...]:
    if stage is Stage.MEMORY:
        swapped = payload.get("swapped", 0)
        return (f"{swapped / 2**20:.0f} MiB were swapped out",) if swapped > 0 else ()
    return tuple(_list(payload, "disturbed"))


def _validated(name: str, payload: Mapping[str, Any]) -> Measurement:
    value = payload["tensor_bytes"] if name == "runtime_tensor_bytes" else bool(payload["valid"])
    return Measurement(quantity=name, value=float(value), unit="")


def _fidelity(name: str, payload: Mapping[str, Any]) -> Measurement:
    from .stats import clustered_mean  # noqa: PLC0415  (numpy: only where something is measured)

    ids = tuple(payload["ids"])
    if name == "nonfinite":
        return Measurement(quantity=name, value=float(payload["nonfinite"]), unit="", n=len(ids))
    columns = {"mean_kld": "kld", "ln_ppl_ratio": "ln_ratio", "ln_ppl": "nll"}
    values = payload[columns.get(name, name)]
    if any(value is None for value in values):
        return Measurement(quantity=name, value=None, unit="", n=len(ids))
    if payload["reference"] and name in {"mean_kld", "ln_ppl_ratio", "same_top"}:
        raise UnsupportedError("a cell other than the reference, which has no loss against itself")
    estimate = clustered_mean(values)
    return Measurement(
        quantity=name,
        value=estimate.value,
        unit="",
        n=estimate.n,
        error=estimate.error if estimate.n > 1 else None,
        samples=tuple(values),
        sample_ids=ids,
    )


def _speed(name: str, payload: Mapping[str, Any]) -> Measurement:
    column = {
        "load_time": "load",
        "ttft": "ttft",
        "prefill_speed": "prefill",
        "decode_speed": "decode",
    }
    samples = tuple(payload[column[name]])
    best = max(samples) if name.endswith("_speed") else min(samples)
    return Measurement(
        quantity=name,
        value=best,
        unit="",
        n=len(samples),
        samples=samples,
        disturbed=_disturbed(Stage.SPEED, payload),
        advisory=True,
    )


def _memory(name: str, payload: Mapping[str, Any]) -> Measurement:
    column = name.removesuffix("_memory")
    return Measurement(
        quantity=name,
        value=float(payload[column]),
        unit="",
        disturbed=_disturbed(Stage.MEMORY, payload),
    )
