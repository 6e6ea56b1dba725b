"""How a worker process ended, classified."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Kind(StrEnum):
    """The ways a stage can end."""

    OK = "ok"
    ERROR = "error"
    CRASH = "crash"
    OUT_OF_MEMORY = "out of memory"
    KILLED = "killed"
    TIMEOUT = "timeout"
    NO_RESULT = "no result"


class Ending(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a stage has no result.

    Attributes:
        kind: The class of the end.
        stage: The stage that was running.
        message: What happened, in one sentence.
        hint: What to do about it, if anything is known.
        log: The last lines that the runtime wrote.
    """

    kind: Kind
    stage: str
    message: str
    hint: str = ""
    log: tuple[str, ...] = ()
