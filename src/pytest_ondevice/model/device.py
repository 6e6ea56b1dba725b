"""Descriptions of a machine and of a runtime. No host or user names, no paths."""

from __future__ import annotations

import msgspec


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that measures: the fields that decide what may be compared.

    ``memory`` is in bytes; ``cores`` are those the process may use.
    """

    system: str
    machine: str
    cpu: str
    cores: int
    memory: int
    python: str
    libc: str


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """An inference runtime: its version and the digest of its native libraries.

    ``system_info`` is what the runtime says of the instruction sets it uses; empty until asked.
    """

    name: str
    version: str
    digest: str
    system_info: str = ""
