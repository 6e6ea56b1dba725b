"""Starts a worker, watches it, and classifies every way it can end.

The host sleeps while the worker measures: it wakes a few times a second to read the events file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..model.ending import Ending, Kind
from .protocol import Event, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .protocol import Job

POLL_SECONDS = 0.05
LOG_LINES = 12

# What a worker may see of the host's environment. No secrets: a model file is untrusted input.
_ENVIRONMENT = (
    "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "SYSTEMROOT", "TEMP", "TMP",
    "TMPDIR", "VIRTUAL_ENV", "PYTEST_ONDEVICE_TEST_SLOWER",
)  # fmt: skip
_PREFIXES = ("GGML_", "CUDA_", "HIP_", "HSA_", "ROCR_", "VK_")
"""Settings of runtimes and of their GPU drivers, such as which device is visible."""

TEARDOWN_SECONDS = 15.0
"""How long a worker may take to end once it said that it has nothing more to do."""

_SIGNALS = {
    signal.SIGSEGV: (Kind.CRASH, "segmentation fault in native code", ""),
    signal.SIGBUS: (Kind.CRASH, "bus error", "was the file cut short while it was mapped?"),
    signal.SIGILL: (
        Kind.CRASH,
        "illegal instruction",
        (
            "llama-cpp-python was compiled for another CPU; reinstall it here with"
            " `pip install --force-reinstall --no-cache-dir llama-cpp-python`"
        ),
    ),
    signal.SIGABRT: (Kind.CRASH, "abort", "an assertion of the runtime failed; see its last lines"),
    signal.SIGFPE: (Kind.CRASH, "arithmetic fault in native code", ""),
}


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker brought: the payload of each finished stage, and how the others ended."""

    payloads: dict[str, dict[str, object]]
    endings: dict[str, Ending]


def run(
    job: Job,
    *,
    timeout: float,
    on_event: Callable[[Event], None] = lambda _: None,
    keep_open: Sequence[int] = (),
    python: str | None = None,
) -> Result:
    """Run one job in a fresh process on this machine.

    Args:
        job: What to do.
        timeout: Seconds without an event or a log line after which the worker is killed.
        on_event: Called for every event as it arrives.
        keep_open: Descriptors the worker inherits: the device lock ends with its last holder.
        python: The interpreter of another environment, whose runtime is to be used; it runs this
            very worker, not one that may be installed there.

    Returns:
        The result. A worker that died is a result too; nothing here raises for it.
    """
    with tempfile.TemporaryDirectory(prefix="pytest-ondevice-") as folder:
        events_path = Path(folder, "events.jsonl")
        log_path = Path(folder, "log.txt")
        request_path = Path(folder, "request.json")
        events_path.touch()
        request = Request(str(events_path), os.getpid(), job)
        # A file, not a pipe: writing to a worker that never reads would wait for ever.
        request_path.write_bytes(msgspec.json.encode(request))
        with log_path.open("wb") as log, request_path.open("rb") as stdin:
            process = subprocess.Popen(
                [python or sys.executable, "-m", "pytest_ondevice.probe.worker"],
                stdin=stdin,
                stdout=log,
                stderr=log,
                env=_environment() if python is None else _elsewhere(Path(folder)),
                cwd=folder,
                pass_fds=tuple(keep_open),
                start_new_session=True,
            )
        oom_before = _oom_kills()
        watch = _Watch(events_path, log_path, on_event)
        try:
            timed_out = _wait(process, watch, timeout)
        finally:
            # Also when the session is interrupted: what the worker has said stands.
            _kill(process)
            watch.read()
        return watch.result(process.returncode, timed_out, timeout, _oom_kills() - oom_before)


class _Watch:
    """Reads the events file as it grows."""

    def __init__(self, events: Path, log: Path, on_event: Callable[[Event], None]) -> None:
        self._events = events
        self._log = log
        self._on_event = on_event
        self._position = 0
        self._sizes = (0, 0)
        self.stage = "start"
        self.open = True
        self.ended = False
        self.payloads: dict[str, dict[str, object]] = {}
        self.endings: dict[str, Ending] = {}

    def grew(self) -> bool:
        """Whether the worker wrote an event or a log line since the last call."""
        sizes = (self._events.stat().st_size, self._log.stat().st_size)
        grew, self._sizes = sizes != self._sizes, sizes
        return grew

    def read(self) -> None:
        """Take in every whole line that is new; a torn last line waits for its end."""
        with self._events.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.splitlines(keepends=True):
            # Line by line: what is heard when a reader is interrupted is not heard twice or lost.
            self._position += len(line)
            try:
                event = msgspec.json.decode(line, type=Event)
            except (msgspec.DecodeError, UnicodeDecodeError):
                # Native code that writes where it should not has damaged a line, not the rest.
                continue
            if event.event == "start":
                self.stage, self.open = event.stage, True
            elif event.event == "done":
                self.payloads[event.stage] = event.payload
                self.open = False
            elif event.event == "failed":
                self.endings[event.stage] = self._ending(Kind.ERROR, event.stage, event.error)
                self.open = False
            elif event.event == "end":
                self.ended = True
            self._on_event(event)

    def log_tail(self) -> tuple[str, ...]:
        """Read the last lines of the log."""
        size = self._log.stat().st_size
        with self._log.open("rb") as file:
            file.seek(max(0, size - 16_384))
            text = file.read().decode("utf-8", "replace")
        # Progress dots of the loader are no news.
        lines = [line.rstrip() for line in text.splitlines() if line.strip(" .")]
        return tuple(lines[-LOG_LINES:])

    def _ending(self, kind: Kind, stage: str, message: str, hint: str = "") -> Ending:
        return Ending(kind=kind, stage=stage, message=message, hint=hint, log=self.log_tail())

    def result(self, code: int, timed_out: bool, timeout: float, oom_kills: int) -> Result:
        """Classify the end and put it on the stage that was running."""
        # A crash while the process was being torn down, after every result, harms nobody.
        if not self.ended:
            stage = self.stage
            where = f"in stage {stage}" if self.open else f"after stage {stage}"
            if timed_out:
                ending = self._ending(
                    Kind.TIMEOUT,
                    stage,
                    f"no sign of life for {timeout:g} s {where}; stopped",
                    "raise --ondevice-timeout if the device is only slow",
                )
            elif code < 0:
                ending = self._signalled(-code, stage, where, oom_kills)
            elif code == 0:
                ending = self._ending(
                    Kind.NO_RESULT, stage, f"the worker ended without a result {where}"
                )
            else:
                lines = self.log_tail()
                why = f": {lines[-1]}" if lines else ""
                kind = Kind.OUT_OF_MEMORY if "MemoryError" in why else Kind.NO_RESULT
                ending = self._ending(kind, stage, f"the worker exited with {code} {where}{why}")
            self.endings[stage] = ending
        return Result(payloads=self.payloads, endings=self.endings)

    def _signalled(self, number: int, stage: str, where: str, oom_kills: int) -> Ending:
        if number == signal.SIGKILL:
            if oom_kills > 0:
                return self._ending(
                    Kind.OUT_OF_MEMORY,
                    stage,
                    f"killed by the kernel for want of memory {where}",
                    "use a smaller model or method, or free memory",
                )
            return self._ending(
                Kind.KILLED,
                stage,
                f"killed by SIGKILL {where}",
                "most often the kernel's out-of-memory killer or a limit of the container",
            )
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        kind, what, hint = _SIGNALS.get(
            signal.Signals(number) if name.startswith("SIG") else signal.SIGTERM,
            (Kind.KILLED, "killed", ""),
        )
        return self._ending(kind, stage, f"{name} {where}: {what}", hint)


def _wait(process: subprocess.Popen[bytes], watch: _Watch, timeout: float) -> bool:
    """Wait for the worker's end; True if it showed no sign of life for too long."""
    last = time.monotonic()
    while True:
        try:
            process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        else:
            return False
        if watch.grew():
            last = time.monotonic()
            watch.read()
        elif time.monotonic() - last > (min(timeout, TEARDOWN_SECONDS) if watch.ended else timeout):
            return True


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the worker and whatever it started, which may have outlived it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment() -> dict[str, str]:
    allowed = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    allowed.update(
        {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)}
    )
    # The worker's own arithmetic is small; threads of a BLAS would disturb what is measured.
    return allowed | {
        "HF_HUB_OFFLINE": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _elsewhere(folder: Path) -> dict[str, str]:
    """Return the environment of a worker in another Python environment: our code, its libraries."""
    package = Path(__file__).parents[1]
    modules = folder / "modules"
    modules.mkdir()
    (modules / package.name).symlink_to(package)
    environment = _environment()
    for name in ("VIRTUAL_ENV", "LD_LIBRARY_PATH"):
        environment.pop(name, None)
    return environment | {"PYTHONPATH": str(modules)}


def _oom_kills() -> int:
    """Read the number of processes this control group lost to the out-of-memory killer."""
    try:
        text = Path("/sys/fs/cgroup/memory.events").read_text("ascii")
    except OSError:
        return 0
    counts = dict(line.split() for line in text.splitlines() if line.count(" ") == 1)
    return int(counts.get("oom_kill", 0))
