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

from .memory import synthetic_trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from .protocol import SpeedPlan

SETTLED = 0.02
"""Warming up ends when two repetitions in a row agree within this share."""

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
    before = witness()
    total = 3.0 + plan.repetitions * 2
    _warm_page_cache(path)
    start = perf_counter()
    with engine.load(path, execution, alive=lambda _: tick(1, total)) as model:
        load = perf_counter() - start
        with engine.context(model, execution) as ctx:
            trace = synthetic_trace(max(plan.prefill, plan.decode), model.n_vocab)

            def prefill() -> float:
                ctx.clear()
                begin = perf_counter()
                ctx.feed(trace[: plan.prefill], 0)
                return perf_counter() - begin

            def decode() -> list[float]:
                ctx.clear()
                times = []
                for i in range(plan.decode):
                    begin = perf_counter()
                    ctx.feed(trace[i : i + 1], i)
                    times.append(perf_counter() - begin)
                return times

            warm_ups = [prefill()]
            while len(warm_ups) < plan.most_warm_ups:
                warm_ups.append(prefill())
                if abs(warm_ups[-1] / warm_ups[-2] - 1) <= SETTLED:
                    break
            tick(2, total)
            prefills = []
            for i in range(plan.repetitions):
                prefills.append(prefill())
                tick(3 + i, total)
            decodes = []
            for i in range(plan.repetitions):
                decodes.append(decode())
                tick(3 + plan.repetitions + i, total)
            ctx.clear()
            begin = perf_counter()
            prompt = model.tokenize(PROMPT)[: plan.prefill]
            ctx.feed(prompt, 0)
            int(ctx.logits(1)[0].argmax())
            ttft = perf_counter() - begin
    return {
        "load": [load],
        "ttft": [ttft],
        "prefill": [plan.prefill / seconds for seconds in prefills],
        "decode": [1 / min(times) for times in decodes],
        "decode_mean": [len(times) / sum(times) for times in decodes],
        "warm_ups": len(warm_ups),
        "disturbed": disturbances(before, witness(), plan.execution.threads),
    }


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
