"""Checks of memory, and the measurement of speed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ondevice.checks import Stage, check
from pytest_ondevice.model.bound import Bound, Source

if TYPE_CHECKING:
    from pytest_ondevice.api import Checker, Measurer
    from pytest_ondevice.baselines import BaselineBound

MEMORY = ("peak_memory", "weights_memory", "kv_memory", "compute_memory")
SPEED = ("prefill_speed", "decode_speed", "ttft", "load_time")


@check("resources.peak_memory", measures=MEMORY, owns=(Stage.MEMORY,))
def test_peak_memory(
    ondevice_baseline: BaselineBound, ondevice_check: Checker, ondevice_measure: Measurer
) -> None:
    """Loading, prefilling and decoding take no more memory than the baseline.

    Quantity: peak resident memory above the process's own, weights read and not repacked. Bound:
    the baseline plus 2 % or 3 MiB, whichever is more.
    """
    for part in MEMORY[1:]:
        ondevice_measure(part)
    measured = ondevice_measure("peak_memory")
    ondevice_check(measured, ondevice_baseline("peak_memory", relative=0.02, absolute=3 * 2**20))


@check("resources.speed", measures=SPEED, owns=(Stage.SPEED,))
def test_speed(ondevice_check: Checker, ondevice_measure: Measurer) -> None:
    """Prefill, decode, time to first token and load time can be measured; the values are advisory.

    Quantity: decode speed. Bound: above 0.01 tokens/s, from the method: a device that is slower
    cannot be used. The stage's crash or hang is this check's failure.
    """
    for part in SPEED:
        ondevice_measure(part)
    bound = Bound(source=Source.METHOD, detail="slower cannot be used", lower=0.01)
    ondevice_check(ondevice_measure("decode_speed"), bound)
