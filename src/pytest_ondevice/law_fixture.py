"""What ``ondevice_law`` hands to tests: a law held over the cells of a model or a family."""

from __future__ import annotations

import contextlib
import math
from functools import partial
from typing import TYPE_CHECKING

from .api import Face
from .errors import did_you_mean
from .judgement import show
from .laws import LAWS
from .laws.wording import rounded_down
from .measure import UnsupportedError
from .model.law import Figure, Row
from .model.quantity import QUANTITIES
from .model.report import CheckResult
from .model.verdict import Verdict
from .provision import is_quantized
from .state import check_id

if TYPE_CHECKING:
    import pytest

    from .laws import Law
    from .model.catalog import Cell, Subject
    from .model.law import LawReport


GUESSING = 0.001
"""A reference guesses that is this likely to be only lucky, as ``capability.reference`` holds."""


class OnDeviceWarning(UserWarning):
    """Something that a release should look at, and that is no regression."""


class LawHolder(Face):
    """Measures what a law needs of each cell, and holds it."""

    def __init__(self, request: pytest.FixtureRequest, subject: Subject) -> None:
        super().__init__(request, subject.cells[0])
        self._subject = subject
        self._named = subject.name
        self._disturbed: list[str] = []
        self._advisory = False

    def __call__(self, name: str) -> LawReport:
        """Hold a law; anything but a pass ends the test.

        Raises:
            ValueError: There is no such law.
        """
        __tracebackhide__ = True
        if name not in LAWS:
            raise ValueError(f"unknown law '{name}'{did_you_mean(name, LAWS)}")
        law = LAWS[name]
        cells = [cell for cell in self._subject.cells if cell in self._state.cells]
        reason = self._not_lossless(cells) if law.loss else ""
        # Where the law cannot hold, nothing is measured for it.
        asked = () if reason else self._asked(law, cells)
        rows = [self._row(cell, asked) for cell in cells]
        held = law.judge(self._subject.name, rows, reason)
        self._found.laws.append(held)
        self._conclude(law, held)
        return held

    def _asked(self, law: Law, cells: list[Cell]) -> tuple[str, ...]:
        """Name the quantities that a law asks for.

        Accuracy is not among them where a reference guesses: what is lost of it is chance.
        """
        __tracebackhide__ = True
        names = [name for name in (*law.measures, *law.optional) if name in QUANTITIES]
        references = [cell for cell in cells if cell.reference]
        if "accuracy" in names and any(map(self._guesses, references)):
            names.remove("accuracy")
        return tuple(names)

    def _guesses(self, reference: Cell) -> bool:
        __tracebackhide__ = True
        with contextlib.suppress(UnsupportedError):  # where there is nothing to choose
            measure = partial(self._bench.measure, reference, "guess_probability")
            found = self._try(measure)
            return found.value is None or found.value > GUESSING
        return False

    def _row(self, cell: Cell, asked: tuple[str, ...]) -> Row:
        """Measure what a law needs of a cell; what the cell has not got is left out."""
        __tracebackhide__ = True
        figures: dict[str, Figure] = {}
        for quantity in asked:
            measured = None
            with contextlib.suppress(UnsupportedError):
                measured = self._try(partial(self._bench.measure, cell, quantity))
            if measured is None:
                continue
            self._found.others.setdefault(cell.id, {})[quantity] = measured
            self._advisory |= measured.advisory
            self._disturbed += [f"{quantity} of {cell.id}: {why}" for why in measured.disturbed]
            # What was measured and is not finite must not pass for what the cell has not got.
            value = math.nan if measured.value is None else measured.value
            figures[quantity] = Figure(value, measured.error)
        account = self._guard(lambda: self._bench.artifact(cell)).file.account
        return Row(
            cell=cell.id,
            model=cell.model.name,
            method=cell.method,
            reference=cell.reference,
            figures=figures,
            weights=account.n_weights,
        )

    def _not_lossless(self, cells: list[Cell]) -> str:
        """Say why loss against the reference is not loss against full precision; empty if it is."""
        __tracebackhide__ = True
        for cell in cells:
            artifact = self._guard(partial(self._bench.artifact, cell))
            if artifact.ancestor is not None and is_quantized(artifact.ancestor):
                kind = artifact.ancestor.type_name or "no known type"
                return (
                    f"a source in full precision: that of {cell.model.name} is quantized already"
                    f" ({kind}), so loss follows its grid and not the bits per weight"
                )
        return self._reference_problem(cells)

    def _reference_problem(self, cells: list[Cell]) -> str:
        __tracebackhide__ = True
        for model in dict.fromkeys(cell.model.name for cell in cells):
            if model in self._bench.given:
                continue
            reference = self._bench.references.get(model)
            if reference is None:
                return f"a reference in full precision of {model}"
            file = self._guard(partial(self._bench.artifact, reference)).file
            share = file.account.float_matrix_share
            if share is not None and share < 1:
                return f"a reference in full precision: {share:.0%} of that of {model} is floats"
        return ""

    def _conclude(self, law: Law, held: LawReport) -> None:
        __tracebackhide__ = True
        verdict, message = held.verdict, held.message
        if verdict is Verdict.UNSUPPORTED:
            self._end(verdict, f"requires {message.removeprefix('needs ')}")
        if self._disturbed:
            # As for any check: what was disturbed is evidence for nothing, also where it fits.
            verdict, message = Verdict.INVALID, f"disturbed: {'; '.join(self._disturbed[:3])}"
        check = check_id(self._item)
        result = CheckResult(
            check=check,
            cell=self._subject.name,
            verdict=verdict,
            quantity=held.y,
            message="; ".join([message, *held.anomalies]),
            advisory=self._advisory,
        )
        if verdict is Verdict.PASS:
            self._found.results.append(result)
            if held.anomalies:
                told = f"{check} {self._subject.name}: {'; '.join(held.anomalies)}"
                self._item.warn(OnDeviceWarning(told))
            return
        if self._advisory:
            self._skip(result, f"{verdict} (advisory): {result.message}")
        undecided = verdict in {Verdict.INCONCLUSIVE, Verdict.INVALID}
        if undecided and self._state.settings.inconclusive == "skip":
            self._skip(result, f"{verdict}: {message}")
        self._fail(result, explain(law, held, f"{check} {self._subject.name}: {verdict}", message))


def explain(law: Law, held: LawReport, title: str, message: str) -> str:
    """Say of a law that does not hold what was found, what it asks for, and why it matters."""
    lines = [f"{title}: {message}"]
    if held.slope is not None and held.intercept is not None:
        fit = f"slope {held.slope:.6g}"
        fit += f" ± {held.slope_error:.2g}" if held.slope_error is not None else ""
        fit += f", intercept {show(held.intercept, held.y_unit)}"
        if held.r2 is not None and math.isfinite(held.r2):
            fit += f", R2 {rounded_down(held.r2)}"
        lines.append(
            f"  fit       {fit}, over {sum(not one.left_out for one in held.points)} cells"
        )
    lines.extend(f"  anomaly   {one}" for one in held.anomalies)
    lines.append(f"  law       {law.words}")
    lines.append("  update    a law has no baseline; docs/laws.md says what it cannot see")
    return "\n".join(lines)
