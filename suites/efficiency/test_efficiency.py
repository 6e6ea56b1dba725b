"""Checks of making the artifact: the study's third dimension."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ondevice.checks import Stage, check
from pytest_ondevice.model.bound import Bound, Source

if TYPE_CHECKING:
    from pytest_ondevice.api import Checker, Measurer
    from pytest_ondevice.model.catalog import Cell

QUANTIZE = (
    "quantize_time",
    "quantize_cpu_time",
    "quantize_speed",
    "calibration_time",
    "quantize_peak_memory",
)


@check("efficiency.quantize", measures=QUANTIZE, owns=(Stage.QUANTIZE,))
def test_quantize(ondevice_cell: Cell, ondevice_check: Checker, ondevice_measure: Measurer) -> None:
    """The artifact can be made here, and making it takes no more memory than the weights in F32.

    Quantity: peak memory of quantizing. Bound: all weights in F32 at once (4 bytes each) plus 256
    MiB. Source: the method, which converts tensors one at a time and so cannot need as much.
    """
    for part in QUANTIZE[:-1]:
        ondevice_measure(part)
    ondevice_measure("calibrated")
    measured = ondevice_measure("quantize_peak_memory")
    size = ondevice_measure("weight_bytes").value or 0.0
    weights = 8 * size / (ondevice_measure("effective_bpw").value or 1.0)
    bound = Bound(
        source=Source.METHOD,
        detail=f"all weights of {ondevice_cell.model.name} in F32 at once",
        upper=4 * weights + 256 * 2**20,
    )
    ondevice_check(measured, bound)
