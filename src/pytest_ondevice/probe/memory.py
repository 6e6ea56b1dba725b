"""Memory of the worker's own process, and the protocol that makes peaks comparable.

``ru_maxrss`` is never used: it survives exec, so a worker would inherit its parent's peak.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from .protocol import DeployedPlan, Execution, MemoryPlan, ReservePlan

_STATUS = Path("/proc/self/status")
_FIELDS = ("VmHWM", "VmRSS", "RssAnon", "RssFile", "VmSwap")
_MEBIBYTE = 2**20


def status() -> dict[str, int]:
    """Read this process's memory figures in bytes: VmHWM, VmRSS, RssAnon, RssFile, VmSwap."""
    figures: dict[str, int] = {}
    for line in _STATUS.read_text("ascii").splitlines():
        name, _, rest = line.partition(":")
        if name in _FIELDS:
            figures[name] = int(rest.split()[0]) * 1024
    return figures


def reset_peak() -> None:
    """Set VmHWM to the current resident size (proc_pid_clear_refs(5), Linux 4.0 and later).

    Where a container forbids it, a fresh process's peak is that of its imports, which is close.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:
        return


def measure(
    engine: Any, path: str, plan: MemoryPlan, tick: Callable[[float, float], None]
) -> dict[str, object]:
    """Measure the peak, and what weights, context and computing took of it, in bytes.

    The whole context is prefilled in full micro-batches, because a compute buffer is resident
    only as far as it was used.
    """
    execution = plan.execution
    log_start = engine.log_position()
    reset_peak()
    base = status()
    with engine.load(path, execution, alive=lambda share: tick(share, 3)) as model:
        loaded = status()
        with engine.context(model, execution) as ctx:
            made = status()
            _fill(ctx, model, execution, plan.decode, tick)
            end = status()

    def took(after: dict[str, int], before: dict[str, int]) -> int:
        return sum(after[key] - before[key] for key in ("RssAnon", "VmSwap"))

    peak = end["VmHWM"] - base["VmRSS"]
    parts = {"weights": took(loaded, base), "kv": took(made, loaded), "compute": took(end, made)}
    return {
        "peak": peak,
        **parts,
        "unattributed": peak - sum(parts.values()),
        "swapped": end["VmSwap"] - base["VmSwap"],
        "buffers_mib": engine.buffers(log_start),
    }


def deployed(
    engine: Any, path: str, plan: DeployedPlan, tick: Callable[[float, float], None]
) -> dict[str, object]:
    """Measure the peak as the artifact is used: weights mapped, repacked where the runtime does.

    The file's pages count, whoever else holds them: what a process has resident is what it needs.
    """
    execution = plan.execution
    log_start = engine.log_position()
    reset_peak()
    base = status()
    with (
        engine.load(path, execution, alive=lambda share: tick(share, 3)) as model,
        engine.context(model, execution) as ctx,
    ):
        _fill(ctx, model, execution, plan.decode, tick)
        end = status()
    held = engine.buffers_by_place(log_start)
    repacked = sum(
        size for (place, what), size in held.items() if what == "model" and "REPACK" in place
    )
    return {
        "peak": end["VmHWM"] - base["VmRSS"],
        "mapped": end["RssFile"] - base["RssFile"],
        "repacked": round(repacked * _MEBIBYTE),
        "swapped": end["VmSwap"] - base["VmSwap"],
        "buffers_mib": {f"{place} {what}": size for (place, what), size in held.items()},
    }


def reserve(engine: Any, path: str, plan: ReservePlan) -> dict[str, object]:
    """Ask the runtime what it would allocate, in bytes; nothing is, and no weight is read.

    The runtime tells buffers in MiB with two decimals, so that a figure is exact to 10 KiB.
    """
    sizes: dict[str, dict[str, int]] = {}
    with engine.load(path, plan.execution, dry=True) as model:
        for n_ctx in sorted({plan.execution.n_ctx, *plan.contexts}):
            if n_ctx > model.n_ctx_train and n_ctx != plan.execution.n_ctx:
                continue
            start = engine.log_position()
            with engine.context(model, msgspec.structs.replace(plan.execution, n_ctx=n_ctx)):
                told = engine.reserved(start)
            sizes[str(n_ctx)] = {
                what: round(size * _MEBIBYTE) for what, size in sorted(told.items())
            }
        return {"weights": model.tensor_bytes, "contexts": sizes}


def _fill(
    ctx: Any,
    model: Any,
    execution: Execution,
    decode: int,
    tick: Callable[[float, float], None],
) -> None:
    """Prefill the whole context in full micro-batches, but for the last tokens, decoded singly."""
    trace = synthetic_trace(execution.n_ctx, model.n_vocab)
    prompt = execution.n_ctx - decode
    for start in range(0, prompt, execution.n_ubatch):
        stop = min(start + execution.n_ubatch, prompt)
        ctx.feed(trace[start:stop], start)
        tick(1 + stop / execution.n_ctx, 3)
    for i in range(prompt, execution.n_ctx):
        ctx.feed(trace[i : i + 1], i)


def synthetic_trace(length: int, n_vocab: int) -> list[int]:
    """Make the fixed token trace that every cell is timed and sized with."""
    return [(i * 7919 + 13) % n_vocab for i in range(length)]
