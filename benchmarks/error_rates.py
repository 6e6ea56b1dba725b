"""How often verdicts are wrong, and how soon they are given.

    python benchmarks/error_rates.py WINDOWS.json [--speed FILE] [--budget N] [--resamples 20000]

WINDOWS.json holds figures per window, as a worker's fidelity stage returns them, in the order in
which windows are taken: {"METHOD/VARIANT": {"ids": [...], "kld": [...], "ln_ratio": [...],
"same_top": [...], "nll": [...]}}. The variant "base" is what stands for the baseline; the others
are the same file under harmless changes of execution. FILE holds real speeds, one per process:
{"label": [tokens/s, ...]}.

The first table puts a loss exactly at the bound and counts verdicts over all looks; target: neither
wrong share above 1.5 alpha. Windows are drawn with replacement, once within their kind of text and
in an order as stratified as the real one, once from all kinds alike. The second counts windows
until a verdict, in the real order and in others drawn as it was; target: a quarter of the text, and
the verdict that all of the text gives. The third does the same for speed campaigns.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_ondevice.model.verdict import Verdict
from pytest_ondevice.stats import (
    Look,
    judge,
    looks,
    median_interval,
    paired_excess,
    t_quantile,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ALPHA = 0.05
SLOWDOWN = 0.10
SPEED_TOLERANCE = -math.log(1 - 0.05)
ORDERS = 400
CAMPAIGNS = 2000


@dataclass(frozen=True)
class Check:
    """A check of the suite `fidelity`: its quantity and its tolerance."""

    name: str
    field: str
    relative: float
    absolute: float
    sign: float = 1.0

    def applies(self, method: str) -> bool:
        return (method == "F16") == (self.field == "nll")

    def margins(self, mean: Any) -> tuple[Any, Any]:
        """The larger tolerance for a baseline's mean, as the judgement takes it."""
        by_share = np.abs(mean) * self.relative >= self.absolute
        return np.where(by_share, self.relative, 0.0), np.where(by_share, 0.0, self.absolute)


CHECKS = (
    Check("kld", "kld", 0.05, 0.0003),
    Check("ppl_ratio", "ln_ratio", 0.1, 0.02),
    Check("same_top", "same_top", 0.0, 0.02, -1.0),
    Check("reference", "nll", 0.0, 0.005),
)


@dataclass(frozen=True)
class Text:
    """The windows' kinds, and ways to draw windows."""

    kinds: Any
    rng: Any

    def orders(self, times: int, *, again: bool) -> Any:
        """Stratified orders: rounds of one window of each kind; with replacement or without."""
        names, place = np.unique(self.kinds, return_inverse=True)
        rounds = np.empty(len(self.kinds))
        for kind in range(len(names)):
            rounds[place == kind] = np.arange((place == kind).sum())
        slots = np.argsort(rounds + self.rng.random((times, len(rounds))), axis=1)
        kind_of = place[slots]
        drawn = np.empty_like(slots)
        for kind in range(len(names)):
            pool = np.flatnonzero(place == kind)
            shape = (times, len(pool))
            if again:
                picked = pool[self.rng.integers(0, len(pool), shape)]
            else:
                picked = self.rng.permuted(np.broadcast_to(pool, shape), axis=1)
            drawn[kind_of == kind] = picked.ravel()
        return drawn

    def freely(self, times: int) -> Any:
        """Windows of any kind, with replacement."""
        return self.rng.integers(0, len(self.kinds), (times, len(self.kinds)))


def at_the_bound(current: Any, baseline: Any, check: Check) -> Any:
    """The current windows, scaled or shifted so that the mean is exactly at the bound."""
    relative, absolute = check.margins(baseline.mean())
    if relative:
        return current * ((1 + relative) * baseline.mean() / current.mean())
    return current + (baseline.mean() + check.sign * absolute - current.mean())


def ends(excess: Any, alpha: float) -> tuple[Any, Any]:
    """``stats.interval`` of every row at once; ``verdicts`` holds it against the original."""
    n = excess.shape[1]
    mean = excess.mean(axis=1)
    off = excess - mean[:, None]
    square = (off**2).sum(axis=1)
    square = np.where(square > (1e-12 * np.abs(excess).max()) ** 2, square, 0.0)
    error = np.sqrt(square / (n * (n - 1)))
    t = t_quantile(1 - alpha, n - 1)
    cube = (off**3).sum(axis=1) / np.where(square > 0, square, 1.0) ** 1.5
    skewness = n * math.sqrt(n - 1) / (n - 2) * cube
    caution = math.sqrt(6 * n * (n - 1) / ((n - 2) * (n + 1) * (n + 3)))
    below, above = (
        t + b * (1 + 2 * t**2) + 4 * b**2 * (t + 2 * t**3)
        for b in (np.maximum(s + caution, 0) / (6 * math.sqrt(n)) for s in (-skewness, skewness))
    )
    return mean - below * error, mean + above * error


def verdicts(
    current: Any, baseline: Any, check: Check, plan: tuple[Look, ...], draws: Any
) -> tuple[Any, Any]:
    """Verdict (1 pass, -1 fail, 0 inconclusive) and windows until it, for every row of draws."""
    now, then = (check.sign * figures[draws] for figures in (current, baseline))
    found = np.zeros(len(draws), int)
    windows = np.full(len(draws), plan[-1].windows or draws.shape[1])
    for look in plan:
        n = look.windows or draws.shape[1]
        mean = then[:, :n].mean(axis=1)
        relative, absolute = check.margins(mean)
        allowed = (1 + np.copysign(relative, mean))[:, None] * then[:, :n] + absolute[:, None]
        lower, upper = ends(now[:, :n] - allowed, look.alpha)
        new = (found == 0) & ((upper <= 0) | (lower > 0))
        found[new], windows[new] = np.where(upper <= 0, 1, -1)[new], n
        for row in range(0, len(draws), max(len(draws) // 20, 1)):
            margin = {"relative": float(relative[row]), "absolute": float(absolute[row])}
            real = paired_excess(now[row, :n], then[row, :n], **margin, alpha=look.alpha)
            size = 1e-9 * (abs(real.upper) + abs(real.lower) + np.abs(now[row]).max())
            assert abs(lower[row] - real.lower) <= size, (lower[row], real)
            assert abs(upper[row] - real.upper) <= size, (upper[row], real)
    return found, windows


def pairs(data: dict[str, Any], method: str) -> Iterator[tuple[str, str]]:
    """What is compared with the method's baseline at the bound: its variants, other methods."""
    for key in data:
        if key.startswith(f"{method}/") and key != f"{method}/base":
            yield key, "variant"
    if method != "F16":
        for key in data:
            if key.endswith("/base") and not key.startswith(("F16/", f"{method}/")):
                yield key, "other method"


def at_bound_table(
    data: dict[str, Any], text: Text, plan: tuple[Look, ...], resamples: int
) -> None:
    """Print how often verdicts are wrong where the loss is exactly at the bound."""
    total = len(text.kinds)
    shown = ", ".join(f"{look.windows or total} ({look.alpha:.4g})" for look in plan)
    print(f"Loss at the bound: shares of wrong verdicts over all looks, {resamples} resamples")
    print(f"looks (alpha): {shown}; nominal {ALPHA}, to be at most {1.5 * ALPHA:.3g}\n")
    kept, free = text.orders(resamples, again=True), text.freely(resamples)
    head = f"{'check':<10} {'current':<17} {'baseline':<12} {'noise':>8}"
    print(f"{head}  {'kinds kept: PASS  FAIL':>22}  {'drawn freely: PASS  FAIL':>24}")
    worst: dict[tuple[str, str], list[float]] = {}
    for check in CHECKS:
        for method in methods(data):
            if not check.applies(method):
                continue
            then = np.array(data[f"{method}/base"][check.field])
            for key, sort in pairs(data, method):
                now = at_the_bound(np.array(data[key][check.field]), then, check)
                noise = np.std(now - (1 + check.margins(then.mean())[0]) * then)
                if noise < 1e-12:
                    continue
                shares = []
                for draws in (kept, free):
                    found, _ = verdicts(now, then, check, plan, draws)
                    shares += [float((found == 1).mean()), float((found == -1).mean())]
                worst.setdefault((sort, "kinds kept"), []).extend(shares[:2])
                worst.setdefault((sort, "drawn freely"), []).extend(shares[2:])
                print(
                    f"{check.name:<10} {key:<17} {method + '/base':<12} {noise:8.2g}"
                    f"  {shares[0]:>16.4f} {shares[1]:.4f}  {shares[2]:>18.4f} {shares[3]:.4f}"
                )
    for (sort, way), found in worst.items():
        above = sum(share > 1.5 * ALPHA for share in found)
        print(
            f"{sort}, {way}: largest {max(found):.4f}, mean {np.mean(found):.4f};"
            f" {above} of {len(found)} above {1.5 * ALPHA:.3g}"
        )
    print()


def methods(data: dict[str, Any]) -> list[str]:
    return [key.removesuffix("/base") for key in data if key.endswith("/base")]


def windows_table(data: dict[str, Any], text: Text, plan: tuple[Look, ...]) -> None:
    """Print how many windows it takes until a verdict."""
    total = len(text.kinds)
    fixed = (Look(plan[-1].windows, ALPHA),)
    real = np.arange(total)[None]
    draws = np.concatenate([real, text.orders(ORDERS, again=False)])
    most = plan[-1].windows or total
    print(f"Windows to a verdict, against {most} at once; the real order and {ORDERS} others\n")
    print(
        f"{'check':<10} {'current':<17} {'baseline':<12} {'real order':<20} {'median':>6}"
        f" {'mean':>5}  {'same verdict':>12}  all at once"
    )
    words = {1: "pass", 0: "inconclusive", -1: "fail"}
    counted: dict[str, list[Any]] = {}
    agreed: Counter[str] = Counter()
    for check in CHECKS:
        for method in methods(data):
            if not check.applies(method):
                continue
            then = np.array(data[f"{method}/base"][check.field])
            for key in (f"{method}/base", *(key for key, _ in pairs(data, method))):
                now = np.array(data[key][check.field])
                found, windows = verdicts(now, then, check, plan, draws)
                once = int(verdicts(now, then, check, fixed, real)[0][0])
                sort = sort_of(key, method)
                counted.setdefault(sort, []).append(windows)
                agreed[sort] += int((found == once).sum())
                if sort != "other method":
                    print(
                        f"{check.name:<10} {key:<17} {method + '/base':<12}"
                        f" {words[int(found[0])] + ' at ' + str(windows[0]):<20}"
                        f" {np.median(windows):>6g} {windows.mean():>5.1f}"
                        f"  {(found == once).mean():>12.1%}  {words[once]}"
                    )
    print()
    for sort, found in counted.items():
        every = np.concatenate(found)
        first = np.array([windows[0] for windows in found])
        print(
            f"{sort:<16} median {np.median(every):g}, mean {every.mean():.1f} of {most} windows"
            f" (real order {np.median(first):g}, {first.mean():.1f});"
            f" same verdict in {agreed[sort] / every.size:.1%}"
        )
    print()


def sort_of(key: str, method: str) -> str:
    """What a comparison stands for."""
    if key == f"{method}/base":
        return "clean rerun"
    return "harmless variant" if key.startswith(f"{method}/") else "other method"


def speed_table(rng: Any, real: dict[str, list[float]]) -> None:
    """Print false alarms without a change and how often a slowdown is caught."""
    print(
        f"Speed campaigns: {CAMPAIGNS} each, tolerance 5 %, alpha {ALPHA:g}; same = no change,"
        f" slow = {SLOWDOWN:.0%} slower, bound = exactly 5 % slower\n"
    )
    print(
        f"{'noise of a process':<34} {'rounds':>6}  {'same: FAIL  PASS':>16}"
        f"  {'slow: FAIL  PASS':>16}  {'bound: FAIL  PASS':>17}"
    )
    sources: list[tuple[str, Any]] = [
        (f"lognormal {sd:.0%}, {slow:.0%} of them slow", (sd, slow))
        for slow in (0.0, 0.1)
        for sd in (0.01, 0.02, 0.03, 0.04)
    ]
    sources += [(f"real: {label}", np.log(values)) for label, values in real.items()]
    for name, source in sources:
        for plan in ((Look(8, ALPHA),), (Look(16, ALPHA),), looks(16, ALPHA)):
            rounds = [look.windows or 0 for look in plan]
            shares = []
            for loss in (0.0, -math.log(1 - SLOWDOWN), SPEED_TOLERANCE):
                ratios = processes(rng, source, rounds[-1]) - processes(rng, source, rounds[-1])
                given = Counter(campaign(row + loss, plan) for row in ratios)
                shares += [given[verdict] / CAMPAIGNS for verdict in (Verdict.FAIL, Verdict.PASS)]
            print(
                f"{name:<34} {', '.join(map(str, rounds)):>6}  {shares[0]:>10.4f} {shares[1]:.3f}"
                f"  {shares[2]:>10.3f} {shares[3]:.3f}  {shares[4]:>11.3f} {shares[5]:.3f}"
            )


def campaign(ratios: Any, plan: tuple[Look, ...]) -> Verdict:
    """The first certain verdict on a campaign's log ratios, round by round."""
    verdict = Verdict.INCONCLUSIVE
    for look in plan:
        verdict = judge(median_interval(ratios[: look.windows], look.alpha), SPEED_TOLERANCE)
        if verdict is not Verdict.INCONCLUSIVE:
            break
    return verdict


def processes(rng: Any, source: Any, rounds: int) -> Any:
    """Logarithms of the speed of one process in each round of every campaign."""
    shape = (CAMPAIGNS, rounds)
    if not isinstance(source, tuple):
        # Real speeds are few: without jitter, ratios would lie exactly at the bound.
        return rng.choice(source, shape) + 1e-4 * rng.normal(size=shape)
    sd, slow = source
    stalled = rng.random(shape) < slow
    return sd * rng.normal(size=shape) + stalled * np.log(rng.uniform(0.7, 0.9, shape))


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("windows", metavar="WINDOWS.json", type=Path)
    parser.add_argument("--speed", metavar="FILE", type=Path, help="real speeds, one per process")
    parser.add_argument("--budget", type=int, metavar="N", help="windows at most; default: all")
    parser.add_argument("--resamples", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    data = json.loads(given.windows.read_text("utf-8"))
    ids = next(iter(data.values()))["ids"]
    for key, figures in data.items():
        if figures["ids"] != ids:
            parser.error(f"{given.windows}: $.{key}.ids: every entry must have the same windows")
    rng = np.random.default_rng(given.seed)
    text = Text(np.array([name.partition(":")[0] for name in ids]), rng)
    plan = looks(given.budget, ALPHA, len(ids))
    at_bound_table(data, text, plan, given.resamples)
    windows_table(data, text, plan)
    real = json.loads(given.speed.read_text("utf-8")) if given.speed else {}
    speed_table(rng, real)


if __name__ == "__main__":
    main()
