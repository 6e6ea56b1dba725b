"""The decorator that makes a test function a check of the conformance suite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from .laws import LAWS
from .model.quantity import QUANTITIES, Stage

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Check", "Stage", "check", "check_of"]

Cells = Literal["all", "reference", "quantized"]
_Function = TypeVar("_Function", bound="Callable[..., object]")
_ATTRIBUTE = "_ondevice_check"


@dataclass(frozen=True, slots=True)
class Check:
    """What a check declares.

    Attributes:
        id: ``suite.requirement``; reports and messages use it, never the test's node id.
        measures: The quantities it asks for, so that one probe can yield all that a cell needs.
        cells: Which cells it applies to.
        owns: The stages whose death is this check's failure; others are blocked by it.
        law: The law that it holds over the cells of a model or a family; empty for none.
    """

    id: str
    measures: tuple[str, ...]
    cells: Cells
    owns: tuple[Stage, ...]
    law: str = ""

    @property
    def stages(self) -> set[Stage]:
        """The stages that its quantities come from."""
        return {QUANTITIES[name].stage for name in self.measures}


def check(
    name: str,
    *,
    measures: tuple[str, ...] = (),
    cells: Cells = "all",
    owns: tuple[Stage, ...] = (),
    law: str = "",
) -> Callable[[_Function], _Function]:
    """Declare a test function to be a check; its docstring states the requirement.

    Args:
        name: The check's id, ``suite.requirement``.
        measures: Names of the quantities it asks for.
        cells: Which cells it applies to: all, the reference, or all others.
        owns: The stages whose death is this check's failure.
        law: The law that it holds: its quantities are measured, it runs once for each model or
            family, and asks for ``ondevice_law``.

    Raises:
        ValueError: A quantity or the law is unknown.
    """
    if law and law not in LAWS:
        raise ValueError(f"check {name}: unknown law {law}")
    if law:
        measures = (*LAWS[law].measures, *LAWS[law].optional)
        measures = tuple(one for one in measures if one in QUANTITIES)
    unknown = [quantity for quantity in measures if quantity not in QUANTITIES]
    if unknown:
        raise ValueError(f"check {name}: unknown quantities {', '.join(unknown)}")

    def declare(function: _Function) -> _Function:
        setattr(function, _ATTRIBUTE, Check(name, measures, cells, owns, law))
        # Collected also where the user's python_functions would not match it.
        function.__test__ = True  # type: ignore[attr-defined]
        return function

    return declare


def check_of(function: object) -> Check | None:
    """Return what a test function declares, None if it is no check."""
    found = getattr(function, _ATTRIBUTE, None)
    return found if isinstance(found, Check) else None
