"""From a measurement and a bound to a verdict in words. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .model.bound import Bound, Source
from .model.quantity import QUANTITIES
from .model.verdict import Verdict
from .stats import judge as judge_interval
from .stats import paired_excess, relative_change

if TYPE_CHECKING:
    from .model.measurement import Measurement

ALPHA = 0.05
"""Error of either end of the interval: of calling a loss at the bound a pass, or a failure."""


ROUNDING = 1e-7
"""Baselines are kept to eight digits; what agrees to seven is the same figure."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict and the clause that explains it."""

    verdict: Verdict
    reason: str


def judge(measured: Measurement, bound: Bound) -> Judgement:
    """Hold a measurement against a bound.

    A bound with samples is judged by the paired difference, window by window; any other by
    comparing the value with its ends. Improvements never fail.
    """
    values = (measured.value, *measured.samples)
    if any(value is None or not math.isfinite(value) for value in values):
        return Judgement(Verdict.FAIL, "it is not finite")
    assert measured.value is not None  # narrowed above
    if measured.disturbed:
        return Judgement(
            Verdict.INVALID, f"the measurement was disturbed: {'; '.join(measured.disturbed)}"
        )
    pairs = _pairs(measured, bound)
    if len(pairs) > 1:
        return _paired(pairs, bound)
    lower, upper = limits(bound)
    # Written so that an end that is no number passes nothing.
    if upper is not None and not measured.value <= upper:
        return Judgement(Verdict.FAIL, f"{show(measured.value, measured.unit)} is above the bound")
    if lower is not None and not measured.value >= lower:
        return Judgement(Verdict.FAIL, f"{show(measured.value, measured.unit)} is below the bound")
    return Judgement(Verdict.PASS, "within the bound")


def limits(bound: Bound) -> tuple[float | None, float | None]:
    """Return a bound's lower and upper end; None is no end."""
    if bound.center is None:
        return bound.lower, bound.upper
    slack = max(abs(bound.center) * bound.relative, bound.absolute)
    if bound.higher_is_better:
        return bound.center - slack, bound.upper
    return bound.lower, bound.center + slack


def _pairs(measured: Measurement, bound: Bound) -> list[tuple[float, float]]:
    """Pair the samples that measurement and baseline have in common, by their ids."""
    then = dict(zip(bound.sample_ids, bound.samples, strict=True))
    return [
        (value, then[name])
        for name, value in zip(measured.sample_ids, measured.samples, strict=False)
        if name in then
    ]


def _paired(pairs: list[tuple[float, float]], bound: Bound) -> Judgement:
    if all(math.isclose(now, then, rel_tol=ROUNDING) for now, then in pairs):
        # However few the windows, nothing moved: there is no noise to tell it from.
        same = f"identical to the baseline, paired over {len(pairs)} windows"
        return Judgement(Verdict.PASS, same)
    sign = -1.0 if bound.higher_is_better else 1.0
    now = [sign * value for value, _ in pairs]
    then = [sign * value for _, value in pairs]
    center = sign * sum(then) / len(then)
    mean = abs(center)
    # The tolerance is the larger of the two, not their sum.
    by_share = mean * bound.relative >= bound.absolute
    excess = paired_excess(
        now,
        then,
        relative=bound.relative if by_share else 0.0,
        absolute=0.0 if by_share else bound.absolute,
        alpha=ALPHA,
    )
    verdict = judge_interval(excess)
    if mean > 0 and by_share:
        change = relative_change(now, then)
        moved = f"{math.copysign(1, center) * change.value:+.1%} ± {change.error:.1%}"
    else:
        change = paired_excess(now, then, alpha=ALPHA).estimate
        moved = f"{sign * change.value:+.4g} ± {change.error:.2g}"
    moved += f" against the baseline, paired over {len(now)} windows"
    words = {
        Verdict.PASS: f"{moved}: within the tolerance",
        Verdict.FAIL: f"{moved}: beyond the tolerance",
        Verdict.INCONCLUSIVE: f"{moved}: too uncertain to tell it from the tolerance",
    }
    return Judgement(verdict, words[verdict])


def show_bound(bound: Bound, unit: str) -> str:
    """Write a bound as an inequality with its tolerance."""
    lower, upper = limits(bound)
    parts = []
    if lower is not None:
        parts.append(f">= {show(lower, unit)}")
    if upper is not None:
        parts.append(f"<= {show(upper, unit)}")
    text = " and ".join(parts) or "none"
    if bound.center is not None:
        sign = "-" if bound.higher_is_better else "+"
        slack = f"{bound.relative * 100:.3g} %"
        if abs(bound.center) * bound.relative < bound.absolute:
            slack = show(bound.absolute, unit)
        text += f" ({show(bound.center, unit)} {sign} {slack})"
    return text


def show(value: float | None, unit: str) -> str:
    """Write a value with its unit as a person would: bytes in MiB."""
    if value is None:
        return "not finite"
    if unit == "B":
        return f"{value / 2**20:.2f} MiB"
    if unit in {"", "1"}:
        return f"{value:.4g}"
    return f"{value:.4g} {unit}"


def explain(measured: Measurement, bound: Bound, judgement: Judgement, title: str) -> str:
    """Write the text of an item that does not pass: what, by how much, bound, why, how on."""
    quantity = QUANTITIES.get(measured.quantity)
    error = f" ± {measured.error:.2g}" if measured.error is not None else ""
    count = f" (n={measured.n})" if measured.n > 1 else ""
    lines = [
        f"{title}: {judgement.verdict}: {judgement.reason}",
        f"  measured  {measured.quantity} {show(measured.value, measured.unit)}{error}{count}",
        *([f"  detail    {measured.detail}"] if measured.detail else []),
        f"  bound     {show_bound(bound, measured.unit)}",
        f"  source    {bound.source}{': ' + bound.detail if bound.detail else ''}",
    ]
    if quantity is not None:
        lines.append(f"  why       {quantity.why}")
    if bound.source is Source.BASELINE and quantity is not None and quantity.kind:
        lines.append(f"  update    the same command with --ondevice-update={quantity.kind}")
    return "\n".join(lines)
