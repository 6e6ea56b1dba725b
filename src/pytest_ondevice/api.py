"""What the fixtures hand to tests: measure, check, and a model to talk to."""

from __future__ import annotations

import contextlib
import importlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import msgspec
import pytest

from .bpw import account
from .errors import MissingError, OnDeviceError, did_you_mean
from .judgement import ALPHA, Judgement, explain, judge, succeed
from .measure import BINDING_ROUNDS, NoMeterError, StageFailedError, UnsupportedError
from .model.artifact import TensorInfo
from .model.bound import Bound, Source
from .model.change import Change, Finding
from .model.measurement import Measurement
from .model.quantity import QUANTITIES, Quantity, Stage
from .model.report import CheckResult
from .model.verdict import Verdict
from .state import ITEM, STATE, ItemState, check_id, declared

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .measure import Bench
    from .model.catalog import Cell
    from .state import State


_SETTLED = frozenset({Stage.FIDELITY, Stage.TASKS})
"""Stages of which as much is measured as a verdict needs, in looks."""

Accountant = Callable[[Sequence[tuple[str, tuple[int, ...], str]]], tuple[int, int]]
"""An accounting of bits per weight: from rows of (name, shape, type) to (weights, bytes)."""


def accountant(config: pytest.Config) -> Accountant:
    """Return the accountant that the user named, else ours.

    Raises:
        pytest.UsageError: There is no such function.
    """
    state = config.stash.get(STATE, None)
    named = state.settings.accountant if state is not None else None
    if named is None or state is None:
        return _account
    module, name = named
    value = state.settings.given["accountant"]
    try:
        function = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise pytest.UsageError(str(value.error(f"it cannot be imported: {error}"))) from error
    except AttributeError as error:
        raise pytest.UsageError(str(value.error(f"{module} has no '{name}'"))) from error
    if not callable(function):
        raise pytest.UsageError(str(value.error("it is no function")))
    made: Accountant = function
    return made


def _account(rows: Sequence[tuple[str, tuple[int, ...], str]]) -> tuple[int, int]:
    counted = account(
        TensorInfo(name=name, shape=shape, type=kind, offset=0) for name, shape, kind in rows
    )
    return counted.n_weights, counted.n_bytes


def cell_under_test(request: pytest.FixtureRequest) -> Cell:
    """Return the cell of a parametrized test; skip with the way to get one if there is none."""
    cell: Cell | None = getattr(request, "param", None)
    if cell is None:
        pytest.skip("requires a model: pytest --ondevice-models=smollm2-135m")
    return cell


class Face:
    """What every fixture object knows: its item, its cell and the session's state."""

    def __init__(self, request: pytest.FixtureRequest, cell: Cell) -> None:
        self._item: pytest.Item = request.node
        self._cell = cell
        self._named = cell.id
        self._state: State = request.config.stash[STATE]
        self._found = self._item.stash.setdefault(ITEM, ItemState())

    @property
    def _bench(self) -> Bench:
        if self._state.bench is None:
            raise RuntimeError("nothing was collected that measures")
        return self._state.bench

    def _guard(self, work: Callable[[], Any]) -> Any:
        """Do something that may run a probe; its failures become this item's outcome."""
        __tracebackhide__ = True
        try:
            return self._try(work)
        except UnsupportedError as error:
            problem = error
        # Outside the handler, so that the outcome is not shown as an error while handling one.
        required = isinstance(problem, NoMeterError) and self._state.settings.require_energy
        return self._end(Verdict.UNSUPPORTED, f"requires {problem}", fails=required)

    def _try(self, work: Callable[[], Any]) -> Any:
        """Do something that may run a probe; its failures become this item's outcome.

        Raises:
            UnsupportedError: The cell has no such figure, which is for the caller to weigh.
        """
        __tracebackhide__ = True
        try:
            return work()
        except (StageFailedError, OnDeviceError) as error:
            problem = error
        if isinstance(problem, StageFailedError):
            self._died(problem)
        return self._end(Verdict.FAIL, str(problem))

    def _measured(self, quantity: str, windows: int | None = None) -> Measurement:
        """Measure a quantity over the whole budget or so much of it; keep it for the report."""
        __tracebackhide__ = True
        made: Measurement = self._guard(lambda: self._bench.measure(self._cell, quantity, windows))
        self._found.measured[quantity] = made
        return made

    def _take_along(self, quantity: str, windows: int | None = None) -> None:
        """Measure what else the check declares of the same stage, for the report."""
        __tracebackhide__ = True
        check = declared(self._item)
        stage = QUANTITIES[quantity].stage
        for name in check.measures if check is not None else ():
            if name != quantity and QUANTITIES[name].stage is stage:
                with contextlib.suppress(UnsupportedError):  # the report goes without it
                    measure = partial(self._bench.measure, self._cell, name, windows)
                    self._found.measured[name] = self._try(measure)

    def _died(self, error: StageFailedError) -> NoReturn:
        __tracebackhide__ = True
        owner = self._state.owners.get((error.stage, error.cell.id))
        mine = declared(self._item)
        owns = mine is not None and mine.id == owner and error.cell.id == self._cell.id
        if owner is None or owns:
            # Where no collected check owns the stage, nobody else would turn red.
            self._end(Verdict.FAIL, error.text())
        self._end(Verdict.BLOCKED, f"blocked by {owner} of {error.cell.id}: {error.ending.kind}")

    def _end(self, verdict: Verdict, message: str, *, fails: bool = False, **more: Any) -> NoReturn:
        """Record a verdict that needs no bound, and end the item with it."""
        __tracebackhide__ = True
        check = check_id(self._item)
        result = CheckResult(
            check=check, cell=self._named, verdict=verdict, message=message, **more
        )
        if fails or verdict is Verdict.FAIL:
            self._fail(result, f"{check} {self._named}: {verdict}: {message}")
        self._skip(result, message)

    def _skip(self, result: CheckResult, message: str) -> NoReturn:
        __tracebackhide__ = True
        self._found.results.append(msgspec.structs.replace(result, outcome="skipped"))
        pytest.skip(message)

    def _fail(self, result: CheckResult, text: str) -> NoReturn:
        """End the item red, or xfailed where a waiver covers it."""
        __tracebackhide__ = True
        waivers = self._state.waivers
        waiver = waivers.find(result.check, result.cell)
        if waiver is not None and not self._item.config.option.runxfail:
            why = f"{waiver.reason} (waived until {waiver.expires})"
            waived = msgspec.structs.replace(result, outcome="xfailed", waived=why)
            self._found.results.append(waived)
            pytest.xfail(f"{why}; {result.message}")
        if (expired := waivers.expired(result.check, result.cell)) is not None:
            text += f"\n  waiver    expired on {expired.expires}: {expired.reason}"
        self._found.results.append(msgspec.structs.replace(result, outcome="failed"))
        pytest.fail(text, pytrace=False)

    def _before(self) -> Cell:
        """Return the cell that this one is compared with; without one the item is skipped."""
        __tracebackhide__ = True
        if self._state.settings.against is None:
            self._end(Verdict.UNSUPPORTED, "requires --ondevice-against=OLD, the release before")
        before = self._cell.predecessor
        try:
            self._bench.artifact(before)
        except MissingError as error:
            absent = str(error)
        except (StageFailedError, OnDeviceError):
            return before  # what asks for it next says so
        else:
            return before
        return self._end(
            Verdict.UNSUPPORTED, absent.replace("no predecessor", "requires a predecessor")
        )

    def _decide(
        self,
        measured: Measurement,
        bound: Bound,
        judgement: Judgement,
        **more: Any,
    ) -> None:
        """Record a judgement; anything but a pass ends the test, unless it is advisory."""
        __tracebackhide__ = True
        check = check_id(self._item)
        result = CheckResult(
            check=check,
            cell=self._cell.id,
            verdict=judgement.verdict,
            quantity=measured.quantity,
            value=measured.value,
            unit=measured.unit,
            bound=bound,
            message=judgement.reason,
            advisory=measured.advisory,
            **more,
        )
        if judgement.verdict is Verdict.PASS:
            self._found.results.append(result)
            return
        if measured.advisory:
            self._skip(result, f"{judgement.verdict} (advisory): {judgement.reason}")
        self._bench.void(self._cell, measured.quantity)
        undecided = judgement.verdict in {Verdict.INCONCLUSIVE, Verdict.INVALID}
        if undecided and self._state.settings.inconclusive == "skip":
            self._skip(result, f"{judgement.verdict}: {judgement.reason}")
        self._fail(result, explain(measured, bound, judgement, f"{check} {self._cell.id}"))


def _known(quantity: str) -> Quantity:
    if quantity not in QUANTITIES:
        raise ValueError(f"unknown quantity '{quantity}'{did_you_mean(quantity, QUANTITIES)}")
    return QUANTITIES[quantity]


class Measurer(Face):
    """Measures quantities of one cell."""

    def __call__(self, quantity: str) -> Measurement:
        """Return a quantity of the cell, measuring it if it is not there yet.

        Raises:
            ValueError: There is no such quantity.
        """
        __tracebackhide__ = True
        _known(quantity)
        return self._measured(quantity)


class Checker(Face):
    """Records and asserts."""

    def __call__(
        self,
        measured: Measurement | float | str,
        bound: Bound | None = None,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        name: str = "value",
        unit: str = "",
    ) -> None:
        """Hold a measurement against a bound; anything but a pass ends the test.

        Args:
            measured: A measurement of ``ondevice_measure``, a number of your own, or the name of
                a quantity: it is measured as far as the verdict needs, fidelity in looks, and
                with it what else the check declares, over the same windows.
            bound: A bound, such as ``ondevice_baseline`` makes.
            at_most: Instead of a bound: the largest value allowed.
            at_least: Instead of a bound: the smallest value allowed.
            name: What a plain number is, for the report.
            unit: The unit of a plain number.

        Raises:
            ValueError: No bound was given, or two kinds of them.
        """
        __tracebackhide__ = True
        if (bound is None) == (at_most is None and at_least is None):
            raise ValueError("give either a bound or at_most and/or at_least")
        if bound is None:
            bound = Bound(source=Source.BUDGET, detail="this test", upper=at_most, lower=at_least)
        if isinstance(measured, str):
            stage = _known(measured).stage
            if stage in _SETTLED and not self._whole(measured):
                found, judgement = self._settle(measured, bound)
                self._conclude(found, bound, judgement)
                return
            self._take_along(measured)
            if stage is Stage.SPEED:
                found, judgement = self._timed(measured, bound)
                self._conclude(found, bound, judgement)
                return
            measured = self._measured(measured)
        if not isinstance(measured, Measurement):
            number = float(measured)
            measured = Measurement(
                quantity=name, value=number if math.isfinite(number) else None, unit=unit
            )
            self._found.measured.setdefault(name, measured)
        self._conclude(measured, bound, judge(measured, bound))

    def _timed(self, quantity: str, bound: Bound) -> tuple[Measurement, Judgement]:
        """Time as many rounds as the verdict needs; what looks slower is timed again first."""
        __tracebackhide__ = True
        found = None
        for rounds, alpha in rounds_to_take(self._state.settings.rounds):
            measure = partial(self._bench.measure, self._cell, quantity, rounds=rounds)
            measured = self._guard(measure)
            found = measured, judge(measured, bound, alpha)
            if found[1].verdict is Verdict.PASS:
                break
        assert found is not None  # there are always some rounds
        self._found.measured[quantity] = found[0]
        return found

    def _whole(self, quantity: str) -> bool:
        """Whether every window of the budget is wanted: they are to be recorded."""
        return _known(quantity).kind in self._state.settings.update

    def _settle(self, quantity: str, bound: Bound) -> tuple[Measurement, Judgement]:
        """Measure as many windows, or questions, as the verdict needs, in looks, and judge."""
        __tracebackhide__ = True
        held = set(bound.sample_ids)
        last, windows = 0, None
        measured, judgement = None, None
        stage = _known(quantity).stage
        for look in self._guard(lambda: self._bench.looks(self._cell, ALPHA, stage)):
            measure = partial(self._bench.measure, self._cell, quantity, look.windows)
            more = self._guard(measure)
            common = len(held.intersection(more.sample_ids)) if held else more.n
            if measured is not None and common == last:
                break  # the baseline holds no more windows to pair with
            last, windows = common, look.windows
            measured, judgement = more, judge(more, bound, look.alpha)
            if judgement.verdict is not Verdict.INCONCLUSIVE:
                break
        assert measured is not None  # there is always a look
        assert judgement is not None
        self._found.measured[quantity] = measured
        self._take_along(quantity, windows)
        return measured, judgement

    def _conclude(self, measured: Measurement, bound: Bound, judgement: Judgement) -> None:
        __tracebackhide__ = True
        quantity = QUANTITIES.get(measured.quantity)
        kind = quantity.kind if quantity else None
        updates = bound.source is Source.BASELINE and kind in self._state.settings.update
        moved = judgement.verdict in {Verdict.FAIL, Verdict.INCONCLUSIVE}
        if updates and moved and measured.value is not None:
            # The user accepts the new value on purpose; the message keeps what changed.
            judgement = Judgement(Verdict.PASS, f"recorded as baseline: {judgement.reason}")
        self._decide(measured, bound, judgement)


class Identifier(Face):
    """Tells by digests of logits whether anything in file or kernels changed."""

    def succeed(self) -> None:
        """Compare the first windows' logits with the predecessor's, bit for bit."""
        __tracebackhide__ = True
        before = self._before()
        record = self._guard(lambda: self._bench.stage(before, Stage.FIDELITY))
        theirs = {record.payload["isa"]: tuple(record.payload["logits"])}
        place = str(self._state.settings.given["against"].text)
        self._compare(theirs, Bound(source=Source.PREDECESSOR, detail=place, upper=0.0))

    def identify(self, found: tuple[Mapping[str, tuple[str, ...]], str] | None, why: str) -> None:
        """Compare the first windows' logits with those on record, bit for bit.

        Args:
            found: Digests by ISA class, and where they are from; None if there are none.
            why: Why there are none.
        """
        __tracebackhide__ = True
        self._guard(lambda: self._bench.stage(self._cell, Stage.FIDELITY))
        if found is None:
            self._end(Verdict.NO_BASELINE, why)
        digests, place = found
        self._compare(digests, Bound(source=Source.BASELINE, detail=place, upper=0.0))

    def _compare(self, digests: Mapping[str, tuple[str, ...]], bound: Bound) -> None:
        __tracebackhide__ = True
        record = self._guard(lambda: self._bench.stage(self._cell, Stage.FIDELITY))
        isa, ours = record.payload["isa"], tuple(record.payload["logits"])
        pairs = list(zip(ours, digests.get(isa, ()), strict=False))
        if not pairs:
            there = ", ".join(sorted(digests)) or "none"
            self._end(
                Verdict.NO_BASELINE,
                f"{bound.detail} has no digests of the ISA class {isa}, but of {there}",
            )
        changed = sum(one != other for one, other in pairs)
        measured = Measurement(quantity="changed_windows", value=float(changed), unit="1")
        self._found.measured["changed_windows"] = measured
        of = f"of {len(pairs)} windows"
        if not changed:
            same = Judgement(Verdict.PASS, f"identical: the logits {of} are the same to the bit")
            self._decide(measured, bound, same, finding=Finding.IDENTICAL)
            return
        told = f"changed: the logits of {changed} {of} differ: another file or other kernels"
        accepted = bound.source is Source.BASELINE and "fidelity" in self._state.settings.update
        strict = self._state.settings.identical and not accepted
        verdict = Verdict.FAIL if strict else Verdict.PASS
        self._decide(measured, bound, Judgement(verdict, told), finding=Finding.CHANGED)


def rounds_to_take(rounds: int) -> tuple[tuple[int, float], ...]:
    """Say after how many rounds to judge speed, and at what alpha.

    A campaign that binds is doubled where it does not pass: a slow process now and then is seen in
    twice as many rounds for what it is, and a failure is told only once it was found twice.
    """
    if rounds < BINDING_ROUNDS:
        return ((rounds, ALPHA),)
    return ((rounds, ALPHA / 2), (2 * rounds, ALPHA / 2))


@dataclass(frozen=True, slots=True)
class _Step:
    """One time that two cells are measured: how, at what alpha, and what leads to the next."""

    arguments: Mapping[str, Any]
    alpha: float
    goes_on: frozenset[Finding] = frozenset()


class Comparer(Face):
    """Compares a cell with its predecessor, of the release or build before."""

    def __call__(
        self,
        quantity: str,
        *,
        relative: float = 0.0,
        absolute: float = 0.0,
        higher_is_better: bool = False,
    ) -> None:
        """Hold a quantity against the predecessor's plus a tolerance, paired where it has samples.

        Args:
            quantity: Name of the quantity; both are measured, as far as the verdict needs.
            relative: Tolerance as a share of the predecessor's value.
            absolute: Tolerance in the quantity's unit; the larger of the two counts.
            higher_is_better: The tolerance goes down, not up.
        """
        __tracebackhide__ = True
        before = self._before()

        def bound_of(then: Measurement) -> Bound:
            return Bound(
                source=Source.PREDECESSOR,
                detail=str(self._state.settings.given["against"].text),
                center=then.value,
                relative=relative,
                absolute=absolute,
                higher_is_better=higher_is_better,
                sample_ids=then.sample_ids,
                samples=then.samples,
            )

        def take(step: _Step) -> tuple[Measurement, Measurement, Change]:
            __tracebackhide__ = True
            now, then = (
                self._guard(partial(self._bench.measure, cell, quantity, **step.arguments))
                for cell in (self._cell, before)
            )
            return now, then, succeed(now, then, bound_of(then), step.alpha)

        found = None
        for step in self._steps(quantity):
            found = take(step)
            if found[2].finding not in step.goes_on:
                break
        assert found is not None  # there is always a step
        now, then, change = found
        self._found.measured[quantity] = now
        undecided = Verdict.INVALID if now.disturbed else Verdict.INCONCLUSIVE
        verdict = {Finding.WORSE: Verdict.FAIL, Finding.UNDECIDED: undecided}.get(
            change.finding, Verdict.PASS
        )
        told = Judgement(verdict, f"{change.finding}: {change.evidence}")
        if then.disturbed:
            why = f"its predecessor's measurement was disturbed: {'; '.join(then.disturbed)}"
            told = Judgement(Verdict.INVALID, why)
            change = msgspec.structs.replace(change, finding=Finding.UNDECIDED, evidence=why)
        self._decide(now, bound_of(then), told, finding=change.finding, change=change)

    def _steps(self, quantity: str) -> tuple[_Step, ...]:
        """Say how often to measure at most, and after which findings to go on."""
        __tracebackhide__ = True
        stage = _known(quantity).stage
        if stage in _SETTLED:
            looks = self._guard(lambda: self._bench.looks(self._cell, ALPHA, stage))
            return tuple(
                _Step({"windows": look.windows}, look.alpha, frozenset({Finding.UNDECIDED}))
                for look in looks
            )
        if stage is Stage.SPEED:
            return tuple(
                _Step({"rounds": rounds}, alpha, frozenset({Finding.WORSE, Finding.UNDECIDED}))
                for rounds, alpha in rounds_to_take(self._state.settings.rounds)
            )
        return (_Step({}, ALPHA),)


class Generation(NamedTuple):
    """A greedy continuation: its text and its token ids."""

    text: str
    tokens: tuple[int, ...]


class Model(Face):
    """The model of a cell. Every call loads it in a fresh process: a crash fails this test only."""

    def generate(self, prompt: str, *, max_tokens: int = 32) -> Generation:
        """Continue a prompt greedily, without a chat template, to the end or ``max_tokens``."""
        __tracebackhide__ = True
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
        payload = self._call("generate", text=prompt, max_tokens=max_tokens)
        return Generation(payload["text"], tuple(payload["tokens"]))

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Turn text into token ids, with the tokens that the model wants in front."""
        __tracebackhide__ = True
        return tuple(self._call("tokenize", text=text)["tokens"])

    def logits(self, prompt: str | Sequence[int]) -> NDArray[np.float32]:
        """Return the logits after every token of a prompt: float32, shape (tokens, n_vocab)."""
        __tracebackhide__ = True
        import numpy as np  # noqa: PLC0415

        arguments: dict[str, Any] = (
            {"text": prompt} if isinstance(prompt, str) else {"tokens": tuple(map(int, prompt))}
        )
        with tempfile.TemporaryDirectory(prefix="pytest-ondevice-") as folder:
            output = Path(folder, "logits.npy")
            self._call("logits", output=str(output), **arguments)
            made: NDArray[np.float32] = np.load(output, allow_pickle=False)
        return made

    def _call(self, call: str, **arguments: Any) -> dict[str, Any]:
        __tracebackhide__ = True
        made: dict[str, Any] = self._guard(lambda: self._bench.call(self._cell, call, **arguments))
        return made
