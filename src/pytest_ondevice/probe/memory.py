"""Memory of the worker's own process, and the protocol that makes peaks comparable.

``ru_maxrss`` is never used: it survives exec, so a worker would inherit its parent's peak.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from .protocol import MemoryPlan

_STATUS = Path("/proc/self/status")
_FIELDS = ("VmHWM", "VmRSS", "RssAnon", "VmSwap")


def status() -> dict[str, int]:
    """Read this process's memory figures in bytes: VmHWM, VmRSS, RssAnon, VmSwap."""
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
            trace = synthetic_trace(execution.n_ctx, model.n_vocab)
            for start in range(0, execution.n_ctx - plan.decode, execution.n_ubatch):
                stop = min(start + execution.n_ubatch, execution.n_ctx - plan.decode)
                ctx.feed(trace[start:stop], start)
                tick(1 + stop / execution.n_ctx, 3)
            for i in range(execution.n_ctx - plan.decode, execution.n_ctx):
                ctx.feed(trace[i : i + 1], i)
            end = status()

    def took(after: dict[str, int], before: dict[str, int]) -> int:
        return sum(after[key] - before[key] for key in ("RssAnon", "VmSwap"))

    return {
        "peak": end["VmHWM"] - base["VmRSS"],
        "weights": took(loaded, base),
        "kv": took(made, loaded),
        "compute": took(end, made),
        "swapped": end["VmSwap"] - base["VmSwap"],
        "buffers_mib": engine.buffers(log_start),
    }


def synthetic_trace(length: int, n_vocab: int) -> list[int]:
    """Make the fixed token trace that every cell is timed and sized with."""
    return [(i * 7919 + 13) % n_vocab for i in range(length)]
