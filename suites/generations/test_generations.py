"""Checks of generated text.

Greedy text follows from the artifact, the runtime's build and the CPU's instructions, so it is
compared within a device tier only, and this suite runs where it is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_ondevice.checks import check

if TYPE_CHECKING:
    from pytest_ondevice.api import Model
    from pytest_ondevice.generations import Continuations
    from pytest_ondevice.model.catalog import Cell

PROMPTS = {
    "story": "The lighthouse keeper heard a knock at the door. When he opened it,",
    "numbers": "3, 6, 9, 12, 15, 18,",
    "list": "What to pack for a week by the sea:\n1. a towel\n2. a hat\n3.",
    "code": 'def is_even(number):\n    """Tell whether a number is even."""\n    return',
}


@pytest.fixture
def ondevice_continuations(request: pytest.FixtureRequest, ondevice_cell: Cell) -> Continuations:
    """Compare greedy continuations with the cell's snapshot, which syrupy keeps."""
    if not request.config.pluginmanager.hasplugin("syrupy"):
        pytest.skip("requires syrupy: pip install 'pytest-ondevice[generations]'")
    from pytest_ondevice.generations import Continuations  # noqa: PLC0415

    return Continuations(request, ondevice_cell)


@check("generations.greedy")
def test_greedy(ondevice_continuations: Continuations, ondevice_model: Model) -> None:
    """The artifact continues fixed prompts with the very tokens that were recorded.

    Quantity: text and token ids of the greedy continuations of four prompts (a story, numbers, a
    list, code), 24 tokens each. Bound: equal. Source: the baseline, the snapshot of this cell and
    device tier that ``--snapshot-update`` recorded.
    """
    ondevice_continuations(PROMPTS, ondevice_model.generate, max_tokens=24)
