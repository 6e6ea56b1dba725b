"""The journal: what each stage of each artifact yielded, kept as it happens.

One file per stage key (artifact, plan, runtime), one JSON line per record, appended with a single
write, so that a killed process loses at most its own last line and two processes never mix lines.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
import uuid
from typing import TYPE_CHECKING

import msgspec

from ..errors import StorageError
from ..model.ending import Ending
from .files import decode, write_atomic

if TYPE_CHECKING:
    from pathlib import Path

RESUME_SECONDS = 12 * 3600
"""How long after its start an interrupted run may still be resumed."""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the journal.

    Attributes:
        run: The run that measured; an interrupted run keeps its name when it is resumed.
        session: The pytest session that measured.
        payload: What the stage yielded; None if it did not.
        ending: Why it did not.
        void: A verdict of this session did not pass: later sessions measure again.
    """

    run: str
    session: str
    payload: dict[str, object] | None = None
    ending: Ending | None = None
    void: bool = False


class Journal:
    """Reads and appends records on behalf of one session."""

    def __init__(self, folder: Path, run: str, session: str) -> None:
        self.folder = folder
        self.run = run
        self.session = session

    def find(self, key: str, *, any_run: bool) -> Record | None:
        """Find what may stand for a measurement now.

        Args:
            key: The stage key.
            any_run: The stage is deterministic: a result of any earlier run serves, unless a
                verdict voided it. Otherwise only this run's results do.

        Returns:
            The newest record that serves: a payload, or an ending of this very session.
        """
        found: Record | None = None
        for record in self._read(key):
            ours = record.session == self.session
            if record.void:
                if not ours:
                    found = None
            elif record.ending is not None:
                if ours:
                    found = record
            elif ours or any_run or record.run == self.run:
                found = record
        return found

    def append(
        self, key: str, *, payload: dict[str, object] | None = None, ending: Ending | None = None
    ) -> Record:
        """Keep a result, or why there is none."""
        record = Record(run=self.run, session=self.session, payload=payload, ending=ending)
        self._append(key, record)
        return record

    def void(self, key: str) -> None:
        """Keep later sessions from reusing what this one judged as not passing."""
        self._append(key, Record(run=self.run, session=self.session, void=True))

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.jsonl"

    def _read(self, key: str) -> list[Record]:
        try:
            lines = self._path(key).read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"{self._path(key)}: cannot read it: {error.strerror}") from error
        records = []
        for line in lines:
            # A line torn by a full disk or a lost power supply is no record.
            with contextlib.suppress(msgspec.DecodeError):
                records.append(decode(line, Record))
        return records

    def _append(self, key: str, record: Record) -> None:
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                # The newline in front closes a line that someone else left torn.
                line = b"\n" + msgspec.json.encode(record) + b"\n"
                if os.write(descriptor, line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StorageError(f"{path}: cannot write it: {error.strerror}") from error


class _RunFile(msgspec.Struct, frozen=True):
    run: str
    started: float
    finished: bool = False


class Run:
    """A run: from the first session that starts it to the one that finishes it.

    A session that is interrupted, killed or cut off leaves its run unfinished; the same command
    resumes it, and what it measured stands. Two such sessions at once are two runs.
    """

    def __init__(self, folder: Path, signature: str) -> None:
        self._path = folder / f"{signature}.json"
        self._lock = self._take_lock(folder / f"{signature}.lock")
        self.resumed = False
        self.id = uuid.uuid4().hex[:12]
        if self._lock is None:
            return
        with contextlib.suppress(OSError, msgspec.DecodeError):
            earlier = decode(self._path.read_bytes(), _RunFile)
            if not earlier.finished and time.time() - earlier.started < RESUME_SECONDS:
                self.id, self.resumed = earlier.run, True
                return
        try:
            self._write(finished=False)
        except StorageError:
            os.close(self._lock)
            raise

    def close(self, *, finished: bool) -> None:
        """End the session's part in the run; an unfinished run can be resumed."""
        if self._lock is None:
            return
        if finished:
            self._write(finished=True)
        os.close(self._lock)
        self._lock = None

    def _write(self, *, finished: bool) -> None:
        content = _RunFile(self.id, time.time(), finished)
        write_atomic(self._path, msgspec.json.encode(content))

    @staticmethod
    def _take_lock(path: Path) -> int | None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(f"{path}: cannot write it: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor
