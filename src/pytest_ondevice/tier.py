"""Tiers and boards: where a figure of speed or energy holds, and which machine it came from.

A tier is the set of fields under which such figures may be compared, a board is one machine of it.
Neither holds a host name, a user's name or an id of the machine.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .model.measurement import ProtocolFields, digest_of

if TYPE_CHECKING:
    from .model.device import Device, Runtime

RESERVED = "portable"
"""The folder of the baselines that travel, so no tier's name."""

LONGEST = 64
"""The most characters of a name."""

ISA_FLAGS = (
    *("ssse3", "avx", "avx2", "f16c", "fma", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512vbmi", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)
"""The CPU flags, as Linux names them, that choose among llama.cpp's kernels."""

CPUINFO = Path("/proc/cpuinfo")
GOVERNORS = Path("/sys/devices/system/cpu")
IDS = (
    Path("/etc/machine-id"),
    Path("/var/lib/dbus/machine-id"),
    Path("/sys/firmware/devicetree/base/serial-number"),
)
"""What stays the same from boot to boot, the first that is there."""
NETWORKS = Path("/sys/class/net")

_SALT = b"pytest-ondevice board 1"
_GIB = 1 << 30
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_NOISE = re.compile(r"\((?:r|tm|c)\)|\b(?:processor|cpu|with|\d+-core)\b|@")


@dataclass(frozen=True, slots=True)
class Tier:
    """A class of machines that may be compared.

    Attributes:
        name: The folder of its baselines, given or derived from the fields.
        fields: What it consists of; under a given name they are recorded and decide nothing.
    """

    name: str
    fields: ProtocolFields


def tier(device: Device, runtime: Runtime, threads: int, gpu_layers: int, name: str | None) -> Tier:
    """Find the tier of this machine.

    Args:
        device: This machine.
        runtime: Its runtime.
        threads: Threads of the runtime.
        gpu_layers: Layers on the GPU.
        name: The name given for it; whoever gives one vouches for all that bear it. None derives
            one that ends in a digest of the fields.

    Raises:
        ValueError: The name cannot be a tier's; the message is a clause.
    """
    fields: ProtocolFields = {
        "cpu": device.cpu,
        "cores": _cores(),
        "machine": device.machine,
        "isa": isa(),
        "threads": threads,
        "gpu_layers": gpu_layers,
        "memory": _memory_class(device.memory),
        "os": device.system,
        "governor": _governor(),
        "runtime": runtime.digest,
    }
    if name is not None:
        checked = _checked(name, "tier")
        if checked.casefold() == RESERVED:
            raise ValueError(f"'{name}' is the folder of the baselines that travel, so no tier's")
        return Tier(checked, fields)
    parts = [
        _slug(device.machine, 12) or "machine",
        _slug(_NOISE.sub(" ", device.cpu.casefold()), 32) or "cpu",
        f"{threads}t",
        *(["gpu"] if gpu_layers else []),
        digest_of(fields)[:6],
    ]
    # Some machines have no better name for their CPU than for themselves.
    return Tier("-".join(dict.fromkeys(parts)), fields)


def board(name: str | None) -> str:
    """Name this machine among those of its tier: as given, else by a salted digest of its id.

    Machines cloned from one image may share an id, and then are one board until they are named.

    Raises:
        ValueError: The name cannot be a board's; the message is a clause.
    """
    if name is not None:
        return _checked(name, "board")
    return hmac.new(_SALT, _identity(), hashlib.sha256).hexdigest()[:12]


def isa() -> str:
    """Name this CPU's ISA class: the instruction sets that llama.cpp's kernels make use of."""
    found = _cpuinfo("flags", "Features")
    if not found:
        return "unknown"
    # Where cores differ, what all of them have: work may land on any.
    flags = set.intersection(*(set(value.split()) for value in found))
    return "+".join(flag for flag in ISA_FLAGS if flag in flags) or "baseline"


def _checked(name: str, what: str) -> str:
    if not name:
        raise ValueError(f"a {what}'s name is not empty")
    if len(name) > LONGEST:
        raise ValueError(f"a {what}'s name has at most {LONGEST} characters, this has {len(name)}")
    if name.startswith("."):
        raise ValueError(f"a {what}'s name does not start with '.'")
    if not _NAME.fullmatch(name):
        odd = next(letter for letter in name if not _NAME.fullmatch(f"_{letter}"))
        raise ValueError(f"a {what}'s name is letters, digits, '.', '_' and '-', not {odd!r}")
    return name


def _slug(text: str, most: int) -> str:
    slug = re.sub(r"[^a-z0-9._]+", "-", text.casefold()).strip("-.")
    return slug[:most].strip("-.")


def _memory_class(size: int) -> str:
    """Round bytes to the nearest power of two, as machines of 16 GiB show 15.5 of them."""
    if size <= 0:
        return "unknown"
    power = 2.0 ** round(math.log2(size / _GIB))
    return f"{power:.0f} GiB" if power >= 1 else f"{power * 1024:.0f} MiB"


def _cores() -> str:
    """Name the cores of an ARM CPU, which has no name of its own; empty where there are none."""
    return "+".join(sorted(_cpuinfo("CPU part")))


def _governor() -> str:
    """Read how the kernel chooses the clock, over all CPUs; ``none`` where it does not say."""
    found = {_text(path).strip() for path in GOVERNORS.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    return "+".join(sorted(found - {""})) or "none"


def _identity() -> bytes:
    """Read what tells this machine from others and outlives a boot; never to be shown."""
    for path in IDS:
        text = _text(path).strip("\0 \n")
        if text.strip("0-") and text != "uninitialized":
            return text.encode()
    # Interfaces of hardware only: containers make theirs anew at every start.
    found = {_text(path.parent / "address").strip() for path in NETWORKS.glob("*/device")}
    addresses = sorted(address for address in found if address.strip("0:"))
    # Without any, all machines of one CPU are one board, until they are named.
    return " ".join(addresses or _cpuinfo("model name", "Hardware", "Serial")).encode()


def _cpuinfo(*keys: str) -> list[str]:
    """List the values of some keys of all cores, each once."""
    rows = (line.partition(":") for line in _text(CPUINFO).splitlines())
    return list(dict.fromkeys(value.strip() for key, _, value in rows if key.strip() in keys))


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
