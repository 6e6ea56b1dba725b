"""Checks of memory and of speed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ondevice.checks import Stage, check
from pytest_ondevice.model.bound import Bound, Source

if TYPE_CHECKING:
    from pytest_ondevice.api import Checker, Measurer
    from pytest_ondevice.baselines import BaselineBound

MEMORY = (
    "peak_memory",
    "weights_memory",
    "kv_memory",
    "compute_memory",
    "unattributed_memory",
)
RESERVE = (
    "reserved_memory",
    "kv_reserve",
    "compute_reserve",
    "kv_reserve_512",
    "kv_reserve_1024",
    "kv_reserve_2048",
    "kv_reserve_4096",
)
DEPLOYED = ("deployed_memory", "repacked_bytes", "mapped_bytes")
SPEED = (
    "decode_speed",
    "decode_speed_d512",
    "prefill_speed",
    "prefill_speed_512",
    "ttft",
    "load_time",
    "load_time_cold",
    "read_bandwidth",
    "roofline_fraction",
)
ENERGY = ("decode_energy", "prefill_energy", "decode_power", "prefill_power", "idle_power")


@check("resources.peak_memory", measures=MEMORY, owns=(Stage.MEMORY,))
def test_peak_memory(ondevice_baseline: BaselineBound, ondevice_check: Checker) -> None:
    """Loading, prefilling and decoding take no more memory than the baseline.

    Quantity: peak resident memory above the process's own, weights read and not repacked. Bound:
    2 % or 3 MiB more, whichever is more. Source: the baseline.
    """
    bound = ondevice_baseline("peak_memory", relative=0.02, absolute=3 * 2**20)
    ondevice_check("peak_memory", bound)


@check("resources.reserved_memory", measures=RESERVE, owns=(Stage.RESERVE,))
def test_reserved_memory(ondevice_baseline: BaselineBound, ondevice_check: Checker) -> None:
    """The runtime reserves no more for weights, KV cache and computing than the baseline.

    Quantity: bytes that a run without allocation would reserve, exact to 10 KiB. Bound: no byte
    more. Source: the baseline.
    """
    ondevice_check("reserved_memory", ondevice_baseline("reserved_memory"))


@check("resources.deployed_memory", measures=(*DEPLOYED, "peak_memory"), owns=(Stage.DEPLOYED,))
def test_deployed_memory(ondevice_check: Checker, ondevice_measure: Measurer) -> None:
    """As shipped, an artifact takes what the exact protocol finds, and its repacked copies.

    Quantity: peak resident memory, weights mapped and repacked for this CPU. Bound: the exact peak
    and the runtime's own count of repacked weights, 2 % and 8 MiB more. Source: the method, which
    has no other reason to take memory.
    """
    exact = ondevice_measure("peak_memory").value or 0.0
    copies = ondevice_measure("repacked_bytes").value or 0.0
    bound = Bound(
        source=Source.METHOD,
        detail="the exact peak and repacked copies",
        upper=1.02 * (exact + copies) + 8 * 2**20,
    )
    ondevice_check("deployed_memory", bound)


@check("resources.energy", measures=ENERGY, owns=(Stage.ENERGY,))
def test_energy(ondevice_check: Checker) -> None:
    """Prefill and decode have an energy, where the machine has a meter.

    Quantity: joules per decoded token. Bound: above 0. Source: the method, since a token that costs
    nothing was not measured. Without a meter it is skipped, or fails with
    ``--ondevice-require-energy``.
    """
    bound = Bound(source=Source.METHOD, detail="a token costs energy", lower=1e-9)
    ondevice_check("decode_energy", bound)


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
