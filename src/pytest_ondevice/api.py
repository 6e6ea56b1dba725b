"""What the fixtures hand to tests: measure, check, and a model to talk to."""

from __future__ import annotations

import importlib
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import msgspec
import pytest

from .bpw import account
from .errors import OnDeviceError, did_you_mean
from .judgement import Judgement, explain, judge
from .measure import StageFailedError, UnsupportedError
from .model.artifact import TensorInfo
from .model.bound import Bound, Source
from .model.measurement import Measurement
from .model.quantity import QUANTITIES
from .model.report import CheckResult
from .model.verdict import Verdict
from .state import ITEM, STATE, ItemState, check_id, declared

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .measure import Bench
    from .model.catalog import Cell
    from .state import State


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
            return work()
        except (StageFailedError, UnsupportedError, OnDeviceError) as error:
            problem = error
        # Outside the handler, so that the outcome is not shown as an error while handling one.
        if isinstance(problem, StageFailedError):
            self._died(problem)
        if isinstance(problem, UnsupportedError):
            self._end(Verdict.UNSUPPORTED, f"requires {problem}")
        return self._end(Verdict.FAIL, str(problem))

    def _died(self, error: StageFailedError) -> NoReturn:
        __tracebackhide__ = True
        owner = self._state.owners.get((error.stage, error.cell.id))
        mine = declared(self._item)
        owns = mine is not None and mine.id == owner and error.cell.id == self._cell.id
        if owner is None or owns:
            # Where no collected check owns the stage, nobody else would turn red.
            self._end(Verdict.FAIL, error.text())
        self._end(Verdict.BLOCKED, f"blocked by {owner} of {error.cell.id}: {error.ending.kind}")

    def _end(self, verdict: Verdict, message: str, *, fails: bool = False) -> NoReturn:
        """Record a verdict that needs no bound, and end the item with it."""
        __tracebackhide__ = True
        check = check_id(self._item)
        result = CheckResult(check=check, cell=self._cell.id, verdict=verdict, message=message)
        if fails or verdict is Verdict.FAIL:
            self._fail(result, f"{check} {self._cell.id}: {verdict}: {message}")
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


class Measurer(Face):
    """Measures quantities of one cell."""

    def __call__(self, quantity: str) -> Measurement:
        """Return a quantity of the cell, measuring it if it is not there yet.

        Raises:
            ValueError: There is no such quantity.
        """
        __tracebackhide__ = True
        if quantity not in QUANTITIES:
            raise ValueError(f"unknown quantity '{quantity}'{did_you_mean(quantity, QUANTITIES)}")
        made: Measurement = self._guard(lambda: self._bench.measure(self._cell, quantity))
        self._found.measured[quantity] = made
        return made


class Checker(Face):
    """Records and asserts."""

    def __call__(
        self,
        measured: Measurement | float,
        bound: Bound | None = None,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        name: str = "value",
        unit: str = "",
    ) -> None:
        """Hold a measurement against a bound; anything but a pass ends the test.

        Args:
            measured: A measurement of ``ondevice_measure``, or a number of your own.
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
        if not isinstance(measured, Measurement):
            number = float(measured)
            measured = Measurement(
                quantity=name, value=number if math.isfinite(number) else None, unit=unit
            )
            self._found.measured.setdefault(name, measured)
        self._conclude(measured, bound, judge(measured, bound))

    def _conclude(self, measured: Measurement, bound: Bound, judgement: Judgement) -> None:
        __tracebackhide__ = True
        check = check_id(self._item)
        quantity = QUANTITIES.get(measured.quantity)
        kind = quantity.kind if quantity else None
        updates = bound.source is Source.BASELINE and kind in self._state.settings.update
        moved = judgement.verdict in {Verdict.FAIL, Verdict.INCONCLUSIVE}
        if updates and moved and measured.value is not None:
            # The user accepts the new value on purpose; the message keeps what changed.
            judgement = Judgement(Verdict.PASS, f"recorded as baseline: {judgement.reason}")
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
        )
        if judgement.verdict is Verdict.PASS:
            self._found.results.append(result)
            return
        text = explain(measured, bound, judgement, f"{check} {self._cell.id}")
        if measured.advisory and judgement.verdict is Verdict.INVALID:
            self._skip(result, f"invalid (advisory): {judgement.reason}")
        self._bench.void(self._cell, measured.quantity)
        self._fail(result, text)


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
