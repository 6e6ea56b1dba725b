"""The worker: a fresh process that does one job and tells what happens as it happens.

Run as ``python -m pytest_ondevice.probe.worker`` with a request on stdin. Results go to the events
file, because native code and the fault handler write to stdout and stderr as they please.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from .protocol import (
    DescribeJob,
    Event,
    ImportanceJob,
    MeasureJob,
    ModelJob,
    QuantizeJob,
    Request,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_TICK_SECONDS = 0.2


class Events:
    """The events file, one JSON line per event, each line handed to the system at once."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._last_tick = 0.0
        self.stage = ""

    def write(self, event: Event) -> None:
        """Append one event."""
        os.write(self._file, msgspec.json.encode(event) + b"\n")

    def tick(self, done: float, total: float) -> None:
        """Tell how far the stage is; seldom enough to cost nothing."""
        now = time.monotonic()
        if now - self._last_tick >= _TICK_SECONDS or done == total:
            self._last_tick = now
            self.write(Event(event="progress", stage=self.stage, done=done, total=total))

    def run(self, stage: str, work: Callable[[], dict[str, object]]) -> bool:
        """Do one stage; its result or its error becomes an event. True if it has a result."""
        self.stage = stage
        self.write(Event(event="start", stage=stage))
        try:
            payload = work()
        except Exception as error:  # noqa: BLE001  (whatever it is, the host must hear of it)
            text = str(error) or type(error).__name__
            if type(error).__name__ not in {"EngineError", "MeterError", "TextError"}:
                text = f"{type(error).__name__}: {text}"
            self.write(Event(event="failed", stage=stage, error=text))
            return False
        self.write(Event(event="done", stage=stage, payload=payload))
        return True


def main() -> None:
    """Read the request, do the job, say that it ended."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    _settle(request.parent)
    events = Events(request.events)
    from .engines import llama_cpp as engine  # noqa: PLC0415  (native code, after settling)

    events.run("start", lambda: dict(engine.start()))
    job = request.job
    match job:
        case QuantizeJob():
            events.run("quantize", lambda: _quantize(engine, job, events.tick))
        case ImportanceJob():
            from . import importance  # noqa: PLC0415  (numpy, after settling)
            from .engines.activations import Collector  # noqa: PLC0415

            events.run(
                "importance", lambda: importance.measure(engine, job, events.tick, Collector)
            )
        case ModelJob():
            events.run(job.call, lambda: _call(engine, job))
        case MeasureJob():
            _measure(engine, job, events)
        case DescribeJob():
            pass  # starting it has described it
    events.write(Event(event="end"))


def _settle(parent: int) -> None:
    """Die with the host, leave no core file, and say where native code crashed."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            raise SystemExit("the host ended before the worker began")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()


def _measure(engine: Any, job: MeasureJob, events: Events) -> None:
    # numpy, after settling
    from . import decode, energy, fidelity, memory, speed, tasks  # noqa: PLC0415

    if (memory_plan := job.memory) is not None:
        events.run("memory", lambda: memory.measure(engine, job.artifact, memory_plan, events.tick))
    if (deployed_plan := job.deployed) is not None:
        events.run(
            "deployed", lambda: memory.deployed(engine, job.artifact, deployed_plan, events.tick)
        )
    if job.validate and not events.run(
        "validate", lambda: _validate(engine, job.artifact, events.tick)
    ):
        return
    if (reserve_plan := job.reserve) is not None:
        events.run("reserve", lambda: memory.reserve(engine, job.artifact, reserve_plan))
    if (energy_plan := job.energy) is not None:
        events.run("energy", lambda: energy.measure(engine, job.artifact, energy_plan, events.tick))
    if (speed_plan := job.speed) is not None:
        events.run("speed", lambda: speed.measure(engine, job.artifact, speed_plan, events.tick))
    if (fidelity_plan := job.fidelity) is not None:
        events.run(
            "fidelity",
            lambda: fidelity.measure(engine, job.artifact, fidelity_plan, events.tick),
        )
    if (decode_plan := job.decode) is not None:
        events.run("decode", lambda: decode.measure(engine, job.artifact, decode_plan, events.tick))
    if (tasks_plan := job.tasks) is not None:
        events.run("tasks", lambda: tasks.measure(engine, job.artifact, tasks_plan, events.tick))


def _validate(engine: Any, path: str, tick: Callable[[float, float], None]) -> dict[str, object]:
    from .protocol import MEMORY_EXECUTION  # noqa: PLC0415

    def alive(share: float) -> None:
        tick(share, 1)

    with engine.load(path, MEMORY_EXECUTION, check=True, alive=alive) as model:
        return {"valid": True, "tensor_bytes": model.tensor_bytes}


def _quantize(
    engine: Any, job: QuantizeJob, tick: Callable[[float, float], None]
) -> dict[str, object]:
    import numpy as np  # noqa: PLC0415

    from . import importance, memory  # noqa: PLC0415

    weighed = importance.read(job.importance) if job.importance else None
    if weighed is not None:
        weighed |= {name: np.ones(size, np.float32) for name, size in job.even.items()}
    memory.reset_peak()
    base = memory.status()["VmRSS"]
    cpu = time.process_time()
    begin = time.perf_counter()
    engine.quantize(
        job.source,
        job.target,
        job.file_type,
        job.threads,
        lambda line: tick(*_tensor_of(line)),
        importance=weighed,
        pure=job.pure,
    )
    return {
        "time": time.perf_counter() - begin,
        "cpu_time": time.process_time() - cpu,
        "peak": memory.status()["VmHWM"] - base,
        "size": Path(job.target).stat().st_size,
    }


def _tensor_of(line: str) -> tuple[float, float]:
    """Read '[  12/ 272]' at the start of a log line; any other line is a sign of life only."""
    head, _, rest = line.strip().lstrip("[").partition("/")
    total = rest.partition("]")[0]
    if line.strip().startswith("[") and head.strip().isdigit() and total.strip().isdigit():
        return float(head), float(total)
    return 0.0, 0.0


def _call(engine: Any, job: ModelJob) -> dict[str, object]:
    import numpy as np  # noqa: PLC0415

    with engine.load(job.artifact, job.execution) as model:
        tokens = model.tokenize(job.text) if job.text is not None else list(job.tokens)
        if job.call == "tokenize":
            return {"tokens": tokens}
        n_ctx = len(tokens) + job.max_tokens
        if not tokens:
            raise ValueError("the prompt is empty")
        execution = msgspec.structs.replace(job.execution, n_ctx=max(n_ctx, 32))
        with engine.context(model, execution) as ctx:
            rows = []
            step = ctx.n_ubatch
            for start in range(0, len(tokens), step):
                piece = tokens[start : start + step]
                whole = job.call == "logits"
                ctx.feed(piece, start, logits_from=0 if whole else None)
                if whole:
                    rows.append(ctx.logits(len(piece)).copy())
            if job.call == "logits":
                np.save(job.output, np.concatenate(rows), allow_pickle=False)
                return {"tokens": tokens}
            made: list[int] = []
            # Greedy decoding: the one continuation that a test can rely on.
            while len(made) < job.max_tokens:
                token = int(ctx.logits(1)[0].argmax())
                if model.ends(token):
                    break
                made.append(token)
                if len(made) < job.max_tokens:
                    ctx.feed([token], len(tokens) + len(made) - 1)
            return {"tokens": made, "text": model.text(made)}


if __name__ == "__main__":
    main()
