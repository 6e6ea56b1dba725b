"""What stages yielded, as measurements: which column is which quantity, and what its spread is."""

from __future__ import annotations

import base64
import math
from array import array
from typing import TYPE_CHECKING, Any

from . import remarks
from .model.measurement import Measurement
from .model.quantity import QUANTITIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_COLUMNS = {
    "mean_kld": "kld",
    "ln_ppl_ratio": "ln_ratio",
    "ln_ppl": "nll",
    "same_top": "same_top",
    "mean_dp": "dp",
    "mean_square_dp": "square_dp",
    "rms_dp": "square_dp",
}
_OF_A_LOSS = frozenset(_COLUMNS) - {"ln_ppl"}
_PERCENTILES = {
    "kld_median": ("token_kld", 50.0),
    "kld_p90": ("token_kld", 90.0),
    "kld_p99": ("token_kld", 99.0),
    "kld_p999": ("token_kld", 99.9),
    "kld_max": ("token_kld", 100.0),
    "dp_p1": ("token_dp", 1.0),
    "dp_p10": ("token_dp", 10.0),
    "dp_p90": ("token_dp", 90.0),
    "dp_p99": ("token_dp", 99.0),
}
_SPEED = {
    "load_time": ("load", min),
    "load_time_cold": ("load_cold", min),
    "ttft": ("ttft", min),
    "prefill_speed": ("prefill", max),
    "prefill_speed_512": ("prefill_long", max),
    "decode_speed": ("decode", max),
    "decode_speed_d512": ("decode_deep", max),
    "read_bandwidth": ("bandwidth", max),
}
RATIOS = {"prefill_ratio": "prefill_speed", "decode_ratio": "decode_speed"}
"""Log ratios to the reference of the same round, and the speeds that they are made of."""


class NoFigureError(Exception):
    """A stage has no such figure; the message says what it would need."""


def of_validation(name: str, payload: Mapping[str, Any]) -> Measurement:
    """Return a figure of the validate stage."""
    value = payload["tensor_bytes"] if name == "runtime_tensor_bytes" else bool(payload["valid"])
    return _made(name, float(value))


def of_memory(name: str, payload: Mapping[str, Any]) -> Measurement:
    """Return a figure of the memory stage, in bytes."""
    return _made(name, float(payload[name.removesuffix("_memory")]), disturbed=swapped(payload))


def swapped(payload: Mapping[str, Any]) -> tuple[str, ...]:
    """Say what a memory measurement lost to swapping; empty if nothing."""
    size = payload.get("swapped", 0)
    return (f"{size / 2**20:.0f} MiB were swapped out",) if size > 0 else ()


def of_reserve(name: str, payload: Mapping[str, Any], n_ctx: int) -> Measurement:
    """Return a figure of the reserve stage, in bytes; those without a length are at ``n_ctx``.

    Raises:
        NoFigureError: The model has no context so long.
    """
    contexts = payload["contexts"]
    length = name.removeprefix("kv_reserve_")
    if length.isdecimal():
        if length not in contexts:
            raise NoFigureError(f"a model whose context reaches {length} tokens")
        return _made(name, float(contexts[length]["kv"]))
    sizes = contexts[str(n_ctx)]
    parts = {"weights": payload["weights"], **sizes}
    if name == "reserved_memory":
        told = ", ".join(f"{what} {size / 2**20:.2f} MiB" for what, size in parts.items())
        return _made(name, float(sum(parts.values())), detail=told)
    return _made(name, float(parts[name.removesuffix("_reserve")]))


def of_deployment(
    name: str, payload: Mapping[str, Any], exact: Mapping[str, Any], weights: int
) -> Measurement:
    """Return a figure of the deployed stage, in bytes, explained against the exact protocol's."""
    if name != "deployed_memory":
        return _made(name, float(payload[name.removesuffix("_bytes")]))
    told = {
        "peak_memory": float(exact["peak"]),
        "deployed_memory": float(payload["peak"]),
        "repacked_bytes": float(payload["repacked"]),
        "mapped_bytes": float(payload["mapped"]),
        "weight_bytes": float(weights),
    }
    return _made(
        name, float(payload["peak"]), disturbed=swapped(payload), detail=remarks.of_memory(told)
    )


def of_energy(name: str, payload: Mapping[str, Any]) -> Measurement:
    """Return a figure of the energy stage: joules per token, or watts.

    Raises:
        NoFigureError: The machine has no meter; the words say how to get at one.
    """
    if "unsupported" in payload:
        raise NoFigureError(str(payload["unsupported"]))
    what, _, kind = name.partition("_")
    detail = f"{payload['meter']}: {payload['scope']}"
    disturbed = tuple(payload["disturbed"])
    if what == "idle":
        return _made(name, float(payload["idle_watts"]), detail=detail, disturbed=disturbed)
    phase = payload[what]
    per = phase["tokens"] if kind == "energy" else phase["seconds"]
    return _made(name, phase["joules"] / per, detail=detail, disturbed=disturbed)


def of_decoding(name: str, payload: Mapping[str, Any]) -> Measurement:
    """Return a figure of the decode stage. Its positions are of one window: no error is known."""
    kld = payload["kld"]
    if kld is None:
        return _made(name, None)
    furthest = f"largest difference of a logit {payload['furthest']:.3g}"
    return _made(name, math.fsum(kld) / len(kld), n=len(kld), detail=furthest)


def of_fidelity(name: str, payloads: Sequence[Mapping[str, Any]]) -> Measurement:
    """Return a figure of the fidelity stage, over the windows of one or more of its parts.

    Raises:
        NoFigureError: It is a loss, and the artifact is the reference.
    """
    from .stats import clustered_mean  # noqa: PLC0415  (numpy: only where something is measured)

    ids = tuple(name for payload in payloads for name in payload["ids"])
    if name == "nonfinite":
        return _made(name, float(sum(payload["nonfinite"] for payload in payloads)), n=len(ids))
    reference = any(payload["reference"] for payload in payloads)
    if reference and (name in _OF_A_LOSS or name in _PERCENTILES):
        raise NoFigureError("a cell other than the reference, which has no loss against itself")
    if name in _PERCENTILES:
        column, share = _PERCENTILES[name]
        values = [value for payload in payloads for value in _unpacked(payload[column])]
        return _made(name, _percentile(sorted(values), share) if values else None, n=len(values))
    if name == "bits_per_byte":
        return _bits_per_byte(name, payloads, ids)
    samples = [value for payload in payloads for value in payload[_COLUMNS[name]]]
    if not samples or any(value is None for value in samples):
        return _made(name, None, n=len(ids))
    estimate = clustered_mean(samples)
    if name == "rms_dp":
        root = math.sqrt(estimate.value)
        error = estimate.error / (2 * root) if root and estimate.n > 1 else None
        return _made(name, root, n=estimate.n, error=error)
    return _made(
        name,
        estimate.value,
        n=estimate.n,
        error=estimate.error if estimate.n > 1 else None,
        samples=tuple(samples),
        sample_ids=ids,
    )


def _bits_per_byte(
    name: str, payloads: Sequence[Mapping[str, Any]], ids: tuple[str, ...]
) -> Measurement:
    """All bits over all bytes; the error is that of a ratio of sums over windows (linearised)."""
    bits, sizes = [], []
    for payload in payloads:
        for nll, size in zip(payload["nll"], payload["bytes"], strict=True):
            if nll is None or not size:
                return _made(name, None, n=len(ids))
            bits.append(nll * payload["scored"] / math.log(2))
            sizes.append(size)
    ratio = math.fsum(bits) / sum(sizes)
    n = len(bits)
    error = None
    if n > 1:
        off = math.fsum((one - ratio * size) ** 2 for one, size in zip(bits, sizes, strict=True))
        error = math.sqrt(off * n / (n - 1)) / sum(sizes)
    samples = tuple(one / size for one, size in zip(bits, sizes, strict=True))
    return _made(name, ratio, n=n, error=error, samples=samples, sample_ids=ids)


def of_speed(
    name: str,
    rounds: Mapping[str, Mapping[str, Any]],
    reference: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    binding: int,
    active: float = 0.0,
) -> Measurement:
    """Return a figure of a speed campaign: one process is one sample.

    Args:
        name: The quantity.
        rounds: What the cell's process yielded, by round.
        reference: What the reference's processes yielded, by round: the first and the last of it.
        binding: So many undisturbed rounds make a verdict; with fewer it is advisory.
        active: Bytes of weights that a decoded token reads, for the roofline.

    Raises:
        NoFigureError: It is a ratio, and there is no reference to make it to; or no cold load was
            possible.
    """
    from .stats import median_interval  # noqa: PLC0415

    clean = {name: payload for name, payload in rounds.items() if not payload["disturbed"]}
    used = clean or rounds
    disturbed: tuple[str, ...] = ()
    if len(clean) * 3 < len(rounds) * 2:
        why = sorted({reason for one in rounds.values() for reason in one["disturbed"]})
        count = f"{len(rounds) - len(clean)} of {len(rounds)} rounds were disturbed"
        disturbed = (f"{count}: {'; '.join(why)}",)
    if name in RATIOS:
        speed = RATIOS[name]
        pairs = {
            place: math.log(_best(speed, payload))
            - math.fsum(math.log(_best(speed, one)) for one in reference[place])
            / len(reference[place])
            for place, payload in used.items()
            if reference.get(place)
        }
        if not pairs:
            raise NoFigureError("a reference that was timed in the same rounds")
    else:
        parts = ("decode_speed", "read_bandwidth") if name == "roofline_fraction" else (name,)
        told = {
            place: payload
            for place, payload in used.items()
            if all(payload.get(_SPEED[part][0]) for part in parts)
        }
        if not told:
            said = {one["warmth"]: None for one in used.values() if one.get("warmth")}
            raise NoFigureError(": ".join(["a process that tells it", *said]))
        pairs = {place: _best(parts[0], payload) for place, payload in told.items()}
        if name == "roofline_fraction":
            pairs = {
                place: active * speed / _best("read_bandwidth", told[place])
                for place, speed in pairs.items()
            }
    found = median_interval(list(pairs.values()), 0.05).estimate
    return _made(
        name,
        found.value,
        n=found.n,
        error=found.error if math.isfinite(found.error) else None,
        samples=tuple(pairs.values()),
        sample_ids=tuple(pairs),
        disturbed=disturbed,
        advisory=len(pairs) < binding,
        detail=_detail(name, found.value, used.values()),
    )


def _detail(name: str, value: float, payloads: Iterable[Mapping[str, Any]]) -> str:
    told = [f"bound by {remarks.bound_by(value)}"] if name == "roofline_fraction" else []
    slowed = {payload.get("slowed", 0.0) for payload in payloads} - {0.0}
    if slowed:
        told.append(f"decoding was slowed on purpose by {max(slowed):.0%}, by the hook for tests")
    return "; ".join(told)


def log_speed(name: str, payload: Mapping[str, Any]) -> float:
    """Return the logarithm of a process's best speed (or of its time, negated: more is better)."""
    best = math.log(_best(name, payload))
    return best if name.endswith("_speed") else -best


def _percentile(ordered: Sequence[float], share: float) -> float:
    """Interpolate between neighbours in order of size, as llama-perplexity does."""
    place = share / 100 * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _best(name: str, payload: Mapping[str, Any]) -> float:
    column, best = _SPEED[name]
    return float(best(payload[column]))


def _unpacked(text: str) -> array[float]:
    values = array("f")
    values.frombytes(base64.b64decode(text))
    return values


def _made(name: str, value: float | None, **more: Any) -> Measurement:
    return Measurement(quantity=name, value=value, unit=QUANTITIES[name].unit, **more)
