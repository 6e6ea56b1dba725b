"""Time: loading, time to first token, prefill and decode, by our own clock.

The process is the unit of replication; what one process yields is advisory. The best repetition
stands for the process, since disturbance only ever slows down.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from . import bandwidth, pages
from .memory import synthetic_trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from .protocol import SpeedPlan

SETTLED = 0.02
"""Warming up ends when two repetitions in a row agree within this share."""

STILL_RESIDENT = 0.01
"""A load is cold when no more than this share of the file's pages was left in the page cache."""

SLOWER = "PYTEST_ONDEVICE_TEST_SLOWER"
"""For tests of the gate: SHARE@PART makes each decoded token of artifacts with PART in their path
take so much longer. The result says that it was slowed on purpose."""

PROMPT = (
    "The harbour master wrote the weather into a grey book every morning, before the boats went"
    " out, and nobody but him ever read it. "
) * 8


def measure(
    engine: Any, path: str, plan: SpeedPlan, tick: Callable[[float, float], None]
) -> dict[str, object]:
    """Time an artifact as shipped. Seconds and tokens/s, every repetition kept.

    Raises:
        EngineError: The runtime failed.
    """
    execution = plan.execution
    total = 5.0 + plan.repetitions * 3
    slower = _slower(path)
    read = bandwidth.read_bandwidth(execution.threads)
    cold, warmth = _cold_load(engine, path, plan, lambda: tick(1, total)) if plan.cold else ([], "")
    before = witness()
    _warm_page_cache(path)
    start = perf_counter()
    with engine.load(path, execution, alive=lambda _: tick(2, total)) as model:
        load = perf_counter() - start
        with engine.context(model, execution) as ctx:
            longest = plan.prefill_long + plan.decode
            trace = synthetic_trace(max(longest, plan.prefill), model.n_vocab)

            def prefill(length: int) -> float:
                ctx.clear()
                begin = perf_counter()
                for first in range(0, length, ctx.n_ubatch):
                    ctx.feed(trace[first : min(first + ctx.n_ubatch, length)], first)
                return perf_counter() - begin

            def decode(depth: int) -> list[float]:
                times = []
                for i in range(depth, depth + plan.decode):
                    begin = perf_counter()
                    ctx.feed(trace[i : i + 1], i)
                    if slower:
                        _wait_until(begin + (perf_counter() - begin) * (1 + slower))
                    times.append(perf_counter() - begin)
                return times

            warm_ups = [prefill(plan.prefill)]
            while len(warm_ups) < plan.most_warm_ups:
                warm_ups.append(prefill(plan.prefill))
                if abs(warm_ups[-1] / warm_ups[-2] - 1) <= SETTLED:
                    break
            tick(3, total)
            prefills = []
            for i in range(plan.repetitions):
                prefills.append(prefill(plan.prefill))
                tick(4 + i, total)
            decodes = []
            for i in range(plan.repetitions):
                ctx.clear()
                decodes.append(decode(0))
                tick(4 + plan.repetitions + i, total)
            # The long prompt is also what the deeper decoding starts from.
            long_prefill = prefill(plan.prefill_long)
            deep = decode(plan.prefill_long)
            ctx.clear()
            begin = perf_counter()
            prompt = model.tokenize(PROMPT)[: plan.prefill]
            ctx.feed(prompt, 0)
            int(ctx.logits(1)[0].argmax())
            ttft = perf_counter() - begin
    return {
        "load": [load],
        "load_cold": cold,
        "warmth": warmth,
        "ttft": [ttft],
        "prefill": [plan.prefill / seconds for seconds in prefills],
        "prefill_long": [plan.prefill_long / long_prefill],
        "decode": [1 / min(times) for times in decodes],
        "decode_mean": [len(times) / sum(times) for times in decodes],
        "decode_deep": [1 / min(deep)],
        "bandwidth": [read],
        "warm_ups": len(warm_ups),
        "slowed": slower,
        "disturbed": disturbances(before, witness(), plan.execution.threads),
    }


def _cold_load(
    engine: Any, path: str, plan: SpeedPlan, alive: Callable[[], None]
) -> tuple[list[float], str]:
    """Load with the file's pages dropped: the seconds, or why there are none."""
    try:
        left = max(pages.drop(part) for part in pages.parts(path))
    except pages.PagesError as error:
        return [], str(error)
    if left > STILL_RESIDENT:
        return [], f"{left:.0%} of the file stayed in the page cache, which others hold"
    start = perf_counter()
    with engine.load(path, plan.execution, alive=lambda _: alive()):
        return [perf_counter() - start], ""


def _slower(path: str) -> float:
    share, _, part = os.environ.get(SLOWER, "").partition("@")
    return float(share) if part and part in path else 0.0


def _wait_until(end: float) -> None:
    while perf_counter() < end:
        pass


def _warm_page_cache(path: str) -> None:
    """Read the file once: loading is timed with the file in memory, not from the disk."""
    with Path(path).open("rb", buffering=0) as file:
        buffer = bytearray(2**20)
        while file.readinto(buffer):
            pass


def witness() -> dict[str, float]:
    """Read what could disturb a timing: stolen time, major faults, preemptions, the clock."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seen = {
        "wall": perf_counter(),
        "cpu": usage.ru_utime + usage.ru_stime,
        "major_faults": float(usage.ru_majflt),
        "swaps": float(usage.ru_nswap),
    }
    try:
        fields = Path("/proc/stat").read_text("ascii").splitlines()[0].split()[1:]
        ticks = os.sysconf("SC_CLK_TCK")
        seen["steal"] = int(fields[7]) / ticks
        seen["busy"] = sum(int(fields[i]) for i in (0, 1, 2, 5, 6)) / ticks
    except (OSError, IndexError, ValueError):
        pass
    return seen


def disturbances(before: dict[str, float], after: dict[str, float], threads: int) -> list[str]:
    """Say in words what disturbed the time between two witnesses; empty if nothing did.

    Load by other processes matters only where it takes cores that the runtime wanted.
    """
    wall = max(after["wall"] - before["wall"], 1e-9)
    found = []
    faults = after["major_faults"] - before["major_faults"]
    if faults > 50:
        found.append(f"{faults:.0f} major page faults")
    if "steal" in after and "steal" in before:
        cores = os.cpu_count() or 1
        steal = (after["steal"] - before["steal"]) / (wall * cores)
        if steal > 0.02:
            found.append(f"{steal:.0%} of the machine's time stolen by its host")
        own = after["cpu"] - before["cpu"]
        foreign = (after["busy"] - before["busy"] - own) / wall
        free = cores - min(threads, cores)
        if foreign - free > 0.15:
            found.append(f"other processes kept {foreign:.1f} of {cores} cores busy")
    return found
