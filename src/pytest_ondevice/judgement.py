"""From a measurement and a bound to a verdict in words. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .model.bound import Bound, Source
from .model.change import Change, Finding
from .model.quantity import QUANTITIES, Stage
from .model.verdict import Verdict
from .proportions import clopper_pearson, paired, unconditional
from .stats import interval, median_interval, paired_excess, relative_change
from .stats import judge as judge_interval

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


def judge(measured: Measurement, bound: Bound, alpha: float = ALPHA) -> Judgement:
    """Hold a measurement against a bound.

    A bound with samples is judged by the paired differences. Without, a figure that has samples of
    its own is judged by their interval, and an exact one by its value. Improvements never fail.

    Args:
        measured: The measurement.
        bound: The bound.
        alpha: Error of either end of the interval; one look's share where there are several.
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
    if len(pairs) > 1 or (bound.samples and is_answered(measured.quantity)):
        return _against(measured.quantity, pairs, bound, alpha)
    # The exact interval of a share holds for one item, too; other samples need two.
    least = 1 if is_answered(measured.quantity) else 2
    if measured.sample_ids and len(measured.samples) >= least:
        return _spread(measured, bound, alpha)
    return _plain(measured.value, measured.unit, bound)


def _against(
    quantity: str, pairs: list[tuple[float, float]], bound: Bound, alpha: float
) -> Judgement:
    if is_answered(quantity):
        return _marked(pairs, bound, alpha)
    if _is_timed(quantity):
        return _raced(quantity, pairs, bound, alpha)
    return _paired(pairs, bound, alpha)


def _plain(value: float, unit: str, bound: Bound) -> Judgement:
    lower, upper = limits(bound)
    # Written so that an end that is no number passes nothing.
    if upper is not None and not value <= upper:
        return Judgement(Verdict.FAIL, f"{show(value, unit)} is above the bound")
    if lower is not None and not value >= lower:
        return Judgement(Verdict.FAIL, f"{show(value, unit)} is below the bound")
    return Judgement(Verdict.PASS, "within the bound")


def limits(bound: Bound) -> tuple[float | None, float | None]:
    """Return a bound's lower and upper end; None is no end."""
    if bound.center is None:
        return bound.lower, bound.upper
    if bound.higher_is_better:
        return bound.center - _slack(bound), bound.upper
    return bound.lower, bound.center + _slack(bound)


def _slack(bound: Bound) -> float:
    return max(abs(bound.center or 0.0) * bound.relative, bound.absolute, bound.noise)


def _pairs(measured: Measurement, bound: Bound) -> list[tuple[float, float]]:
    """Pair the samples that measurement and bound have in common, by their ids."""
    then = dict(zip(bound.sample_ids, bound.samples, strict=True))
    return [
        (value, then[name])
        for name, value in zip(measured.sample_ids, measured.samples, strict=False)
        if name in then
    ]


def _is_timed(quantity: str) -> bool:
    known = QUANTITIES.get(quantity)
    return known is not None and known.stage is Stage.SPEED


def is_answered(quantity: str) -> bool:
    """Whether a quantity is of answers to questions: a share of items, or a count of them."""
    known = QUANTITIES.get(quantity)
    return known is not None and known.stage is Stage.TASKS


def _marked(pairs: list[tuple[float, float]], bound: Bound, alpha: float) -> Judgement:
    """Judge shares of the same items, item by item; the exact McNemar test is told with it."""
    if len(pairs) < 2:
        # One item, even one that is answered as before, says nothing of all others.
        asked = "only one" if pairs else "none"
        return Judgement(Verdict.INCONCLUSIVE, f"{asked} of the items on record was asked")
    found = paired([now > 0.5 for now, _ in pairs], [then > 0.5 for _, then in pairs], alpha)
    moves = f"{found.lost} lost and {found.gained} gained"
    if not bound.higher_is_better:
        moves = f"{found.gained} more and {found.lost} fewer"
    told = f"{moves} of {found.n} items against {_other(bound)}, exact McNemar p {found.p:.2g}"
    if not found.flips:
        return Judgement(Verdict.PASS, f"the same {found.n} items as {_other(bound)} has")
    low, high = unconditional(found.lost, found.gained, found.n, alpha)
    slack = max((bound.center or 0.0) * bound.relative, bound.absolute, bound.noise)
    told += f", change {low:+.3f} to {high:+.3f}"
    if not bound.higher_is_better:
        low, high = -high, -low
    if high < -slack:
        return Judgement(Verdict.FAIL, f"{told}: beyond the tolerance")
    if low >= -slack:
        return Judgement(Verdict.PASS, f"{told}: within the tolerance")
    return Judgement(Verdict.INCONCLUSIVE, f"{told}: too uncertain to tell it from the tolerance")


def _other(bound: Bound) -> str:
    return "its predecessor" if bound.source is Source.PREDECESSOR else "the baseline"


def _spread(measured: Measurement, bound: Bound, alpha: float) -> Judgement:
    """Judge by the interval of the figure's own samples.

    Where they are too few for one, all of them on one side of the end decide.
    """
    values = list(measured.samples)
    lower, upper = limits(bound)
    timed = _is_timed(measured.quantity)
    if is_answered(measured.quantity):
        low, high = clopper_pearson(round(sum(values)), len(values), alpha, sides=1)
    else:
        found = median_interval(values, alpha) if timed else interval(values, alpha)
        low, high = found.lower, found.upper
    if math.isinf(low) or math.isinf(high):
        low, high = min(values), max(values)
    ends = f"{show(low, measured.unit)} to {show(high, measured.unit)}"
    units = "round" if timed else "item" if is_answered(measured.quantity) else "window"
    told = f"{ends}, {measured.n} {units}{'s' if measured.n != 1 else ''}"
    if upper is not None and not low <= upper:
        return Judgement(Verdict.FAIL, f"{told}: above the bound")
    if lower is not None and not high >= lower:
        return Judgement(Verdict.FAIL, f"{told}: below the bound")
    if (upper is not None and not high <= upper) or (lower is not None and not low >= lower):
        return Judgement(Verdict.INCONCLUSIVE, f"{told}: on both sides of the bound")
    return Judgement(Verdict.PASS, f"{told}: within the bound")


def _logs(quantity: str, pairs: list[tuple[float, float]]) -> list[float]:
    """Return the log ratios of paired speeds or times; of ratios the differences, being logs."""
    if quantity.endswith("_ratio"):
        return [now - then for now, then in pairs]
    return [math.log(now / then) for now, then in pairs]


def _raced(
    quantity: str, pairs: list[tuple[float, float]], bound: Bound, alpha: float
) -> Judgement:
    """Judge speeds of the same rounds by the median of their log ratios.

    The tolerance is ``absolute`` in the logarithm, as a share near enough.
    """
    logs = _logs(quantity, pairs)
    found = median_interval(logs, alpha)
    sign = 1.0 if bound.higher_is_better else -1.0
    low, high = sorted((sign * found.lower, sign * found.upper))
    slack = max(bound.absolute, bound.noise)
    told = f"{math.expm1(found.estimate.value):+.1%} ± {found.estimate.error:.1%} against its"
    told += f" predecessor, median of {len(logs)} rounds"
    if high < -slack:
        return Judgement(Verdict.FAIL, f"{told}: beyond the tolerance")
    if low >= -slack:
        return Judgement(Verdict.PASS, f"{told}: within the tolerance")
    return Judgement(Verdict.INCONCLUSIVE, f"{told}: too uncertain to tell it from the tolerance")


def _paired(pairs: list[tuple[float, float]], bound: Bound, alpha: float) -> Judgement:
    against = _other(bound)
    if _same(pairs):
        # However few the windows, nothing moved: there is no noise to tell it from.
        same = f"identical to {against}, paired over {len(pairs)} windows"
        return Judgement(Verdict.PASS, same)
    sign = -1.0 if bound.higher_is_better else 1.0
    now = [sign * value for value, _ in pairs]
    then = [sign * value for _, value in pairs]
    mean = abs(sum(then) / len(then))
    # The tolerance is the largest of the three, not their sum.
    absolute = max(bound.absolute, bound.noise)
    by_share = mean * bound.relative >= absolute
    excess = paired_excess(
        now,
        then,
        relative=bound.relative if by_share else 0.0,
        absolute=0.0 if by_share else absolute,
        alpha=alpha,
    )
    verdict = judge_interval(excess)
    moved, error, _, shown = _moved(pairs, relative=mean > 0 and by_share)
    told = f"{moved:{shown}} ± {error:{'.1%' if shown.endswith('%') else '.2g'}}"
    told += f" against {against}, paired over {len(now)} windows"
    words = {
        Verdict.PASS: f"{told}: within the tolerance",
        Verdict.FAIL: f"{told}: beyond the tolerance",
        Verdict.INCONCLUSIVE: f"{told}: too uncertain to tell it from the tolerance",
    }
    return Judgement(verdict, words[verdict])


def _same(pairs: list[tuple[float, float]]) -> bool:
    return all(math.isclose(now, then, rel_tol=ROUNDING) for now, then in pairs)


def _moved(pairs: list[tuple[float, float]], *, relative: bool) -> tuple[float, float, bool, str]:
    """Return a paired change and its error, whether it is a share, and how to write it."""
    now, then = [one for one, _ in pairs], [one for _, one in pairs]
    if relative:
        change = relative_change(now, then)
        # As a share of the magnitude: more is plus also where what it was is negative.
        return math.copysign(1, sum(then)) * change.value, change.error, True, "+.1%"
    difference = paired_excess(now, then, alpha=ALPHA).estimate
    return difference.value, difference.error, False, "+.4g"


def succeed(now: Measurement, then: Measurement, bound: Bound, alpha: float) -> Change:
    """Say what a quantity became of its predecessor's.

    Args:
        now: The measurement.
        then: The predecessor's, of the same protocol.
        bound: The predecessor's value with the tolerance, paired where there are samples.
        alpha: Error of either end of the interval.
    """
    judgement = judge(now, bound, alpha)
    pairs = _pairs(now, bound)
    found = {
        Verdict.FAIL: Finding.WORSE,
        Verdict.PASS: Finding.NO_WORSE,
    }.get(judgement.verdict, Finding.UNDECIDED)
    change, error, share = _difference(now, then, pairs)
    if found is Finding.NO_WORSE:
        if _same(pairs) if pairs else change == 0:
            found = Finding.IDENTICAL
        elif _better(now, bound, pairs, alpha):
            found = Finding.BETTER
    return Change(
        quantity=now.quantity,
        unit=now.unit,
        before=then.value,
        after=now.value,
        change=change,
        relative=share,
        error=error,
        n=max(len(pairs), 1),
        finding=found,
        evidence=judgement.reason,
    )


def _difference(
    now: Measurement, then: Measurement, pairs: list[tuple[float, float]]
) -> tuple[float | None, float | None, bool]:
    if now.value is None or then.value is None:
        return None, None, False
    if len(pairs) > 1 and is_answered(now.quantity):
        return *_moved_marks(pairs), False
    if len(pairs) > 1 and _is_timed(now.quantity):
        moved = median_interval(_logs(now.quantity, pairs), ALPHA).estimate
        return math.expm1(moved.value), moved.error, True
    if len(pairs) > 1:
        change, error, share, _ = _moved(pairs, relative=sum(one for _, one in pairs) != 0)
        return change, error, share
    if then.value:
        return now.value / then.value - 1, None, True
    return now.value - then.value, None, False


def _moved_marks(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the change of a share of the same items, and its standard error."""
    moves = [now - then for now, then in pairs]
    mean = math.fsum(moves) / len(moves)
    spread = math.fsum((move - mean) ** 2 for move in moves)
    return mean, math.sqrt(spread) / len(moves)


def _better(now: Measurement, bound: Bound, pairs: list[tuple[float, float]], alpha: float) -> bool:
    sign = -1.0 if bound.higher_is_better else 1.0
    if len(pairs) > 1 and is_answered(now.quantity):
        found = paired([one > 0.5 for one, _ in pairs], [one > 0.5 for _, one in pairs], alpha)
        return sign * found.change < 0 and found.p <= 2 * alpha
    if len(pairs) > 1 and _is_timed(now.quantity):
        moves = median_interval([sign * log for log in _logs(now.quantity, pairs)], alpha)
        return moves.upper < 0
    if len(pairs) > 1:
        moved = paired_excess(
            [sign * now for now, _ in pairs], [sign * then for _, then in pairs], alpha=alpha
        )
        return moved.upper < 0
    known = QUANTITIES.get(now.quantity)
    # What a header says is exact; of what was measured once, less than the tolerance is noise.
    exact = known is not None and known.stage is Stage.HEADER
    gain = sign * ((bound.center or 0.0) - (now.value or 0.0))
    return gain > (0.0 if exact else _slack(bound))


def show_bound(bound: Bound, unit: str) -> str:
    """Write a bound as an inequality with its tolerance."""
    if (
        bound.source is Source.PREDECESSOR
        and unit in {"tokens/s", "s"}
        and bound.center is not None
    ):
        sign = "-" if bound.higher_is_better else "+"
        return f"{show(bound.center, unit)} {sign} {100 * bound.absolute:.3g} %"
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
        if abs(bound.center) * bound.relative < max(bound.absolute, bound.noise):
            slack = show(max(bound.absolute, bound.noise), unit)
            slack += " of noise" if bound.noise > bound.absolute else ""
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
    """Write the text of an item that does not pass, in five lines.

    What and by how much; what was measured, with error and n; the bound and its source; why it
    matters; how to accept it or to see it again.
    """
    quantity = QUANTITIES.get(measured.quantity)
    error = f" ± {measured.error:.2g}" if measured.error is not None else ""
    count = f" (n={measured.n})" if measured.n > 1 else ""
    detail = f"; {measured.detail}" if measured.detail else ""
    source = f"{bound.source}{': ' + bound.detail if bound.detail else ''}"
    why = quantity.why if quantity is not None else "a figure of this test's own"
    check, _, cell = title.partition(" ")
    again = f"the same command with -k '{check.rpartition('::')[2].rpartition('.')[2]} and {cell}'"
    onward = f"  again     {again}"
    if bound.source is Source.BASELINE and quantity is not None and quantity.kind:
        onward = f"  update    the same command with --ondevice-update={quantity.kind} accepts it"
    measured_as = f"{measured.quantity} {show(measured.value, measured.unit)}{error}{count}"
    return "\n".join(
        (
            f"{title}: {judgement.verdict}: {judgement.reason}",
            f"  measured  {measured_as}{detail}",
            f"  bound     {show_bound(bound, measured.unit)}; {source}",
            f"  why       {why}",
            onward,
        )
    )
