"""pytest-xdist: hand the run to the test workers, and keep items that measure on one of them.

Registered only where pytest-xdist is loaded. Exclusion is the device lock's business; placement
only keeps the other workers free for tests that measure nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from collections.abc import Callable

from .state import STATE

SCOPE = "ondevice"


class Distribution:
    """The xdist hooks of the controller."""

    def __init__(self, config: pytest.Config, values: Callable[[], dict[str, str]]) -> None:
        # A law's items are named after models and families, those of cells begin with a model's.
        models = {cell.model.name: cell.model.family for cell in config.stash[STATE].cells}
        self._cells = tuple({*models, *filter(None, models.values())})
        self._values = values

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a new test worker the names of session and run."""
        if self._cells:
            node.workerinput["pytest_ondevice"] = self._values()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """Put all items of a device on one worker under the default distribution.

        ``xdist_group`` does not serve: with pytest 9.2 it silently does nothing.
        """
        if self._cells and config.getoption("dist") == "load":
            return _Scheduler(config, log, self._cells)
        return None


class _Scheduler(LoadScopeScheduling):  # type: ignore[misc,unused-ignore]
    """Load distribution test by test, but for the items of a device, which stay together."""

    def __init__(self, config: pytest.Config, log: Any, cells: tuple[str, ...]) -> None:
        super().__init__(config, log)
        self._cells = cells

    def _split_scope(self, nodeid: str) -> str:
        _, bracket, parameters = nodeid.partition("[")
        if bracket and any(cell in parameters for cell in self._cells):
            return SCOPE
        return nodeid
