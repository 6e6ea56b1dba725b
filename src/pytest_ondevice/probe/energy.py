"""Energy of prefilling and of decoding, by a meter of this machine; without one, nothing.

The payload of the stage, all of it gross, which is with what the machine takes when idle:

- ``meter``, ``scope``: the meter's name, and what is inside its figure, in words;
- ``idle_watts``: watts before loading, with nothing done;
- ``prefill``, ``decode``: ``joules`` of the phase, ``tokens`` that went through in it, and its
  ``seconds``. Joules per token are joules / tokens; above idle, (joules - idle_watts x seconds) /
  tokens;
- ``disturbed``: what makes the figures doubtful, in words; empty if nothing does;

or ``unsupported`` alone: why there is no meter, and how to come by one. A meter that was found and
then fails raises, because no part of its figure can be trusted.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock, Thread
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any

from .memory import synthetic_trace
from .meters import Kind, Meter, MeterError, NoMeter, find
from .speed import SETTLED, disturbances, witness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .protocol import EnergyPlan

SAMPLE_SECONDS = 0.05
"""A thread reads the meter so often, a slow one less: power is integrated, and counters wrap."""

PERIODS = 20
"""A phase takes as long as the meter needs for so many new values, if that is longer."""

FEWEST_STEPS = 10
"""A counter that moved less often in a phase may be off by more than a tenth."""

LONGEST_GAP = 0.5
"""Power between two samples is taken to be their mean; no longer than so many seconds."""

MOST_WARM_UPS = 4


def advance(before: int, after: int, modulus: int) -> int:
    """Return how far a counter went between two readings, over at most one wrap.

    Samples are far closer than a wrap takes, so a counter that seems to have gone more than half
    its range was set back.

    Raises:
        MeterError: It went backwards.
    """
    if after >= before:
        return after - before
    went = after - before + modulus
    if modulus and 0 <= went <= modulus // 2:
        return went
    raise MeterError(f"it went backwards, from {before} to {after} microjoules")


class Tally:
    """Energy of a meter from the moment of making, in microjoules. Safe to sample from threads.

    Attributes:
        microjoules: Energy up to the last sample.
        seconds: Time up to the last sample.
        steps: Samples that found another reading than the one before.
        gap: The longest time between two samples, in seconds.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._lock = Lock()
        self._readings = self._read()
        self._begin = self._last = perf_counter()
        self._finished = False
        self.microjoules: float = 0
        self.steps = 0
        self.gap = 0.0

    @property
    def seconds(self) -> float:
        """Seconds from the first reading to the last."""
        return self._last - self._begin

    @property
    def watts(self) -> float:
        """The mean power so far."""
        return self.microjoules / 1e6 / max(self.seconds, 1e-9)

    def sample(self, *, finish: bool = False) -> None:
        """Read the meter; after one that finishes, others change nothing.

        Raises:
            MeterError: The meter is gone, or does not mean any more what it did.
        """
        with self._lock:
            if self._finished:
                return
            readings = self._read()
            now = perf_counter()
            passed = now - self._last
            if self._meter.kind is Kind.POWER:
                self.microjoules += (sum(self._readings) + sum(readings)) / 2 * passed
            else:
                self.microjoules += self._advance(readings)
            self.steps += readings != self._readings
            self.gap = max(self.gap, passed)
            self._readings, self._last = readings, now
            self._finished = finish

    def _read(self) -> tuple[int, ...]:
        readings = tuple(source.read() for source in self._meter.sources)
        # Afterwards: a battery that is plugged in between would show its charging.
        self._meter.check()
        return readings

    def _advance(self, readings: tuple[int, ...]) -> int:
        went = 0
        for source, before, after in zip(
            self._meter.sources, self._readings, readings, strict=True
        ):
            try:
                went += advance(before, after, source.modulus)
            except MeterError as error:
                raise MeterError(f"{source.name} is no counter: {error}") from None
        return went


@contextmanager
def watched(meter: Meter) -> Iterator[Tally]:
    """Tally a meter during the block, sampled by a thread as well.

    Raises:
        MeterError: The meter failed, in the block or in the thread.
    """
    tally = Tally(meter)
    stop = Event()
    failures: list[MeterError] = []

    def watch() -> None:
        while not stop.wait(max(SAMPLE_SECONDS, meter.period / 4)):
            try:
                tally.sample()
            except MeterError as error:
                failures.append(error)
                return

    thread = Thread(target=watch, name="meter", daemon=True)
    thread.start()
    try:
        yield tally
        tally.sample(finish=True)
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


def measure(
    engine: Any, path: str, plan: EnergyPlan, tick: Callable[[float, float], None]
) -> dict[str, object]:
    """Measure idle power, and the energy of prefilling and of decoding. See the module.

    Raises:
        MeterError: The meter was there and failed.
        EngineError: The runtime failed.
    """
    execution = plan.execution
    meter = find(Path(plan.sysfs), gpu=execution.gpu_layers > 0)
    if isinstance(meter, NoMeter):
        return {"unsupported": f"{meter.why}. {meter.how}".rstrip(". ")}
    shortest = PERIODS * meter.period
    idle_seconds, seconds = max(plan.idle_seconds, shortest), max(plan.seconds, shortest)
    total = idle_seconds + 1 + 2 * seconds
    # A figure of the CPU holds everybody's work, on whichever core.
    threads = (os.cpu_count() or 1) if meter.of_cpu else execution.threads
    disturbed: list[str] = []

    def phase(name: str, since: float, least: float, work: Callable[[], int]) -> tuple[Tally, int]:
        before = witness()
        tokens = 0
        with watched(meter) as tally:
            while True:
                tokens += work()
                tally.sample()
                tick(min(since + tally.seconds, since + least), total)
                if tally.seconds >= least:
                    break
        found = disturbances(before, witness(), threads)
        disturbed.extend(f"{name}: {what}" for what in [*found, *_doubts(meter, tally)])
        return tally, tokens

    def rest() -> int:
        sleep(min(idle_seconds, 0.2))
        return 0

    idle, _ = phase("idle", 0, idle_seconds, rest)
    if idle.microjoules <= 0:
        return {
            "unsupported": f"{meter.name} ({meter.scope}) is there and does not count: it showed"
            f" no energy in {idle.seconds:.1f} s, as in some virtual machines"
        }
    payload: dict[str, object] = {
        "meter": meter.name,
        "scope": meter.scope,
        "idle_watts": idle.watts,
    }
    with (
        engine.load(path, execution, alive=lambda _: tick(idle_seconds, total)) as model,
        engine.context(model, execution) as ctx,
    ):
        trace = synthetic_trace(max(plan.prefill, plan.decode), model.n_vocab)
        prompt = trace[: plan.prefill]

        def prefill() -> int:
            ctx.clear()
            for start in range(0, plan.prefill, execution.n_ubatch):
                ctx.feed(prompt[start : start + execution.n_ubatch], start)
            return plan.prefill

        def decode() -> int:
            ctx.clear()
            for i in range(plan.decode):
                ctx.feed(trace[i : i + 1], i)
            return plan.decode

        _warm_up(prefill, lambda: tick(idle_seconds, total))
        decode()
        since = idle_seconds + 1
        for name, work in (("prefill", prefill), ("decode", decode)):
            tally, tokens = phase(name, since, seconds, work)
            since += seconds
            if tally.microjoules <= 0:
                raise MeterError(
                    f"{meter.name} ({meter.scope}) showed no energy in the {tally.seconds:.1f} s of"
                    f" the phase {name}, in which {tokens} tokens were computed"
                )
            if tally.watts < idle.watts:
                disturbed.append(
                    f"{name}: {tally.watts:.3g} W, less than the {idle.watts:.3g} W when idle"
                )
            payload[name] = {
                "joules": tally.microjoules / 1e6,
                "tokens": tokens,
                "seconds": tally.seconds,
            }
    return {**payload, "disturbed": disturbed}


def _warm_up(work: Callable[[], int], alive: Callable[[], None]) -> None:
    """Repeat until two in a row take the same time."""
    last = 0.0
    for _ in range(MOST_WARM_UPS):
        begin = perf_counter()
        work()
        alive()
        took = perf_counter() - begin
        if last and abs(took / last - 1) <= SETTLED:
            return
        last = took


def _doubts(meter: Meter, tally: Tally) -> list[str]:
    """Say where the meter was too coarse, or was read too seldom, for the phase."""
    found = []
    if meter.kind is Kind.COUNTER and 0 < tally.steps < FEWEST_STEPS:
        found.append(f"{meter.name} showed a new value only {tally.steps} times")
    if meter.kind is Kind.POWER and tally.gap > LONGEST_GAP:
        found.append(f"{meter.name} was not read for {tally.gap:.1f} s")
    return found
