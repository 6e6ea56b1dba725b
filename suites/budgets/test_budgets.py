"""Checks of the user's own limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ondevice.checks import check
from pytest_ondevice.model.bound import Bound, Source

if TYPE_CHECKING:
    from pytest_ondevice.api import Checker
    from pytest_ondevice.rules import Budget


@check("budgets.kept")
def test_kept(ondevice_budget: Budget, ondevice_check: Checker) -> None:
    """The cell keeps a limit that the user set for it.

    Quantity: the one that the row names. Bound: its ``at_most`` and ``at_least``. Source: the
    budget, a row in the file of ``--ondevice-bounds``.
    """
    why = f", {ondevice_budget.reason}" if ondevice_budget.reason else ""
    bound = Bound(
        source=Source.BUDGET,
        detail=f"{ondevice_budget.place}{why}",
        upper=ondevice_budget.at_most,
        lower=ondevice_budget.at_least,
    )
    ondevice_check(ondevice_budget.quantity, bound)
