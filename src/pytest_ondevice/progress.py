"""Progress of long native work: one rewritten line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from .measure import Progress

PLAIN_SECONDS = 20.0
REDRAW_SECONDS = 0.25


def make_progress(config: pytest.Config, file: Path | None) -> Progress:
    """Choose how to show progress: on the terminal, or to the controller through a file."""
    if file is not None:
        return _FileProgress(file)
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return _NoProgress()
    return _TerminalProgress(config, reporter)


def tail_progress(config: pytest.Config, file: Path) -> Callable[[], None]:
    """Show, on the controller, what the test workers write; returns how to stop it."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return lambda: None
    shown = _TerminalProgress(config, reporter, plain=True)
    stop = threading.Event()

    def follow() -> None:
        position = 0
        while not stop.wait(REDRAW_SECONDS):
            with contextlib.suppress(OSError):
                with file.open("rb") as lines:
                    lines.seek(position)
                    data = lines.read()
                whole = data[: data.rfind(b"\n") + 1]
                position += len(whole)
                for line in whole.splitlines()[-1:]:
                    cell, stage, done, total = json.loads(line)
                    shown.update(cell, stage, done, total)

    thread = threading.Thread(target=follow, name="pytest-ondevice-progress", daemon=True)
    thread.start()

    def end() -> None:
        stop.set()
        thread.join()
        shown.finish()
        file.unlink(missing_ok=True)

    return end


def eta(elapsed: float, done: float, total: float) -> str:
    """Say how much longer a stage takes, from what it took so far; empty if unknown."""
    if total <= 0 or done <= 0 or elapsed < 1 or done >= total:
        return ""
    seconds = elapsed * (total - done) / done
    return f"{seconds:.0f} s left" if seconds < 90 else f"{seconds / 60:.0f} min left"


class _NoProgress:
    def update(self, cell: str, stage: str, done: float, total: float) -> None:
        """Show nothing."""

    def finish(self) -> None:
        """Show nothing."""


class _FileProgress:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._last: tuple[str, str, float] = ("", "", 0.0)

    def update(self, cell: str, stage: str, done: float, total: float) -> None:
        """Append a line for the controller, a few times a second at most."""
        now = time.monotonic()
        if (cell, stage) == self._last[:2] and now - self._last[2] < REDRAW_SECONDS:
            return
        self._last = (cell, stage, now)
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            os.write(descriptor, json.dumps([cell, stage, done, total]).encode() + b"\n")
            os.close(descriptor)

    def finish(self) -> None:
        """Nothing to take away."""


class _TerminalProgress:
    """Writes beside pytest's own output, which goes on with a newline and the file's name."""

    def __init__(
        self, config: pytest.Config, reporter: pytest.TerminalReporter, *, plain: bool = False
    ) -> None:
        self._config = config
        self._reporter = reporter
        self._tty = reporter.isatty and not plain
        self._end = "\n" if plain else ""
        self._stage = ("", "")
        self._began = 0.0
        self._drawn = 0.0
        self._open = False
        self._interrupted: object = None

    def update(self, cell: str, stage: str, done: float, total: float) -> None:
        """Redraw the line on a terminal; elsewhere write one when a stage starts, then seldom."""
        now = time.monotonic()
        if (cell, stage) != self._stage:
            self._stage, self._began = (cell, stage), now
        elif now - self._drawn < (REDRAW_SECONDS if self._tty else PLAIN_SECONDS):
            return
        self._drawn = now
        share = f" {done / total:.0%}" if total > 0 and done > 0 else ""
        left = eta(now - self._began, done, total)
        self._write(f"{cell}: {stage}{share}{', ' + left if left else ''}")

    def finish(self) -> None:
        """Take the line off the terminal and go back to the line that it interrupted."""
        if not self._open:
            return
        self._open = False
        if self._tty:
            self._raw("\r\x1b[K\x1b[1A")
        if isinstance(self._interrupted, Path):
            # A line of dots goes on below, behind its file's name; others begin by themselves.
            file = os.path.relpath(self._interrupted, self._config.rootpath)
            with self._uncaptured():
                self._reporter.write_fspath_result(file, "")

    def _write(self, text: str) -> None:
        if not self._open:
            self._interrupted = self._reporter.currentfspath
        # pytest now starts a new line before whatever it writes next.
        self._reporter.currentfspath = None
        if self._tty:
            width = max(20, shutil.get_terminal_size().columns - 1)
            lead = "" if self._open else "\n"
            self._raw(f"{lead}\r\x1b[K{text[:width]}")
        else:
            self._raw(f"\nondevice: {text}{self._end}")
        self._open = True

    def _raw(self, text: str) -> None:
        with self._uncaptured():
            self._reporter.write(text, flush=True)

    def _uncaptured(self) -> contextlib.AbstractContextManager[None]:
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        return capture.global_and_fixture_disabled() if capture else contextlib.nullcontext()
