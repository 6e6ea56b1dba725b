"""The fixtures. Their bodies import what they need, so that an unused plugin costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .api import Accountant, Checker, Comparer, Identifier, Measurer, Model
    from .baselines import BaselineBound
    from .law_fixture import LawHolder
    from .model.catalog import Cell, Subject
    from .rules import Budget


@pytest.fixture
def ondevice_cell(request: pytest.FixtureRequest) -> Cell:
    """The cell under test: a model under a method. Tests that use it run once per cell.

    ``ondevice_cell.id``, ``.model.name``, ``.method`` and ``.reference`` say which.
    """
    from .api import cell_under_test  # noqa: PLC0415

    return cell_under_test(request)


@pytest.fixture
def ondevice_measure(request: pytest.FixtureRequest, ondevice_cell: Cell) -> Measurer:
    """Measure a quantity of the cell: ``ondevice_measure("mean_kld").value``.

    What was measured before is not measured again. Names are those of the quantities table.
    """
    from .api import Measurer  # noqa: PLC0415

    return Measurer(request, ondevice_cell)


@pytest.fixture
def ondevice_baseline(request: pytest.FixtureRequest, ondevice_cell: Cell) -> BaselineBound:
    """Make a bound from the cell's baseline: ``ondevice_baseline("mean_kld", relative=0.05)``.

    Without a comparable baseline the test is skipped as ``no baseline``.
    """
    from .baselines import BaselineBound  # noqa: PLC0415

    return BaselineBound(request, ondevice_cell)


@pytest.fixture
def ondevice_compare(request: pytest.FixtureRequest, ondevice_cell: Cell) -> Comparer:
    """Compare the cell with its predecessor: ``ondevice_compare("peak_memory", relative=0.02)``.

    The predecessor is what ``--ondevice-against`` names; without it the test is skipped.
    """
    from .api import Comparer  # noqa: PLC0415

    return Comparer(request, ondevice_cell)


@pytest.fixture
def ondevice_identity(request: pytest.FixtureRequest, ondevice_cell: Cell) -> Identifier:
    """Tell by digests whether the cell's logits are those on record, to the bit."""
    from .api import Identifier  # noqa: PLC0415

    return Identifier(request, ondevice_cell)


@pytest.fixture
def ondevice_budget(request: pytest.FixtureRequest) -> Budget:
    """A limit that the user's file sets for the cell: quantity, ``at_most``, ``at_least``."""
    budget: Budget = request.param
    return budget


@pytest.fixture
def ondevice_subject(request: pytest.FixtureRequest) -> Subject:
    """What a law is held for: ``name``, and the ``cells`` of a model or of a family."""
    subject: Subject = request.param
    return subject


@pytest.fixture
def ondevice_law(request: pytest.FixtureRequest, ondevice_subject: Subject) -> LawHolder:
    """Hold a law over the cells of a model or a family: ``ondevice_law("memory")``.

    Its points, fit and verdict go into the report.
    """
    from .law_fixture import LawHolder  # noqa: PLC0415

    return LawHolder(request, ondevice_subject)


@pytest.fixture
def ondevice_check(request: pytest.FixtureRequest, ondevice_cell: Cell) -> Checker:
    """Record and assert: ``ondevice_check(ondevice_measure("peak_memory"), at_most=2**30)``.

    Takes a measurement or a plain number, and a bound or ``at_most`` / ``at_least``.
    """
    from .api import Checker  # noqa: PLC0415

    return Checker(request, ondevice_cell)


@pytest.fixture(scope="session")
def ondevice_accountant(request: pytest.FixtureRequest) -> Accountant:
    """Account for bits per weight: from rows of (name, shape, type) to (weights, bytes).

    The function that ``--ondevice-accountant`` names, else ours.
    """
    from .api import accountant  # noqa: PLC0415

    return accountant(request.config)


@pytest.fixture
def ondevice_model(request: pytest.FixtureRequest, ondevice_cell: Cell) -> Model:
    """The cell's model: ``generate``, ``tokenize`` and ``logits``, each in a process of its own."""
    from .api import Model  # noqa: PLC0415

    return Model(request, ondevice_cell)
