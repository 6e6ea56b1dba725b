"""Checks of memory and of speed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ondevice.checks import Stage, check
from pytest_ondevice.model.bound import Bound, Source

if TYPE_CHECKING:
    from pytest_ondevice.api import Checker
    from pytest_ondevice.baselines import BaselineBound

MEMORY = ("peak_memory", "weights_memory", "kv_memory", "compute_memory")
SPEED = ("decode_speed", "prefill_speed", "ttft", "load_time")


@check("resources.peak_memory", measures=MEMORY, owns=(Stage.MEMORY,))
def test_peak_memory(ondevice_baseline: BaselineBound, ondevice_check: Checker) -> None:
    """Loading, prefilling and decoding take no more memory than the baseline.

    Quantity: peak resident memory above the process's own, weights read and not repacked. Bound:
    2 % or 3 MiB more, whichever is more. Source: the baseline.
    """
    bound = ondevice_baseline("peak_memory", relative=0.02, absolute=3 * 2**20)
    ondevice_check("peak_memory", bound)


@check("resources.speed", measures=SPEED, owns=(Stage.SPEED,))
def test_speed(ondevice_check: Checker) -> None:
    """Prefill, decode, time to first token and load time can be measured.

    Quantity: decode speed, median over rounds. Bound: at least 0.01 tokens/s. Source: the method,
    a device that is slower cannot be used. The stage's crash or hang is this check's failure.
    """
    bound = Bound(source=Source.METHOD, detail="slower cannot be used", lower=0.01)
    ondevice_check("decode_speed", bound)


@check("resources.decode_speed", measures=("decode_ratio",), cells="quantized")
def test_decode_speed(ondevice_baseline: BaselineBound, ondevice_check: Checker) -> None:
    """Decoding is as fast beside the reference as on record for machines of this tier.

    Quantity: ln(decode speed / the reference's of the same round), median over rounds. Bound: 0.05
    less (5 %), and the spread between boards. Source: the baseline of the tier. Advisory below 8
    rounds.
    """
    bound = ondevice_baseline("decode_ratio", absolute=0.05, higher_is_better=True)
    ondevice_check("decode_ratio", bound)


@check("resources.prefill_speed", measures=("prefill_ratio",), cells="quantized")
def test_prefill_speed(ondevice_baseline: BaselineBound, ondevice_check: Checker) -> None:
    """Prefilling is as fast beside the reference as on record for machines of this tier.

    Quantity: ln(prefill speed / the reference's of the same round), median over rounds. Bound: 0.05
    less (5 %), and the spread between boards. Source: the baseline of the tier. Advisory below 8
    rounds.
    """
    bound = ondevice_baseline("prefill_ratio", absolute=0.05, higher_is_better=True)
    ondevice_check("prefill_ratio", bound)
