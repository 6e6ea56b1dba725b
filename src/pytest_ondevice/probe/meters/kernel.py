"""Meters that Linux shows as files: RAPL zones, current monitors on a board, batteries.

Units and names are those of the kernel's documentation: powercap in microjoules, hwmon in
millivolts, milliamperes and microwatts, power_supply in microvolts, microamperes, microwatts and
microwatt-hours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .base import Kind, Meter, MeterError, NoMeter, Source, number, reason, text_or_none

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from .base import Reader

RULE_FILE = "/etc/udev/rules.d/70-rapl.rules"

RULE = (
    'SUBSYSTEM=="powercap", KERNEL=="intel-rapl:*", ACTION=="add",'
    ' RUN+="/bin/chmod a+r /sys%p/energy_uj"'
)
"""Each zone, nested ones too, is a device of its own and has this rule run for it."""

AT_ONCE = "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"
"""The class folder lists nested zones beside their parents, so one pattern meets them all."""

ENABLE_RAPL = (
    "Where a machine has RAPL, it is for root alone unless a udev rule says otherwise: put the line"
    f" `{RULE}` into {RULE_FILE}, which holds from the next boot on, and until then run `{AT_ONCE}`"
)

TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "VIN")
"""Labels of rails that feed a whole module, in the order of preference."""

FED_BY = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}
"""Rails behind another one that is measured as well: adding both would count them twice."""

_ZONE = re.compile(r"intel-rapl(:\d+)+")
_CHIP = re.compile(r"ina\d{3,4}")
_CHANNELS = (1, 2, 3)
_MICROJOULES_PER_MICROWATT_HOUR = 3600


def _listed(folder: Path) -> list[Path]:
    """List a folder in the order of the numbers in its names; nothing where there is none."""
    try:
        entries = list(folder.iterdir())
    except OSError:
        return []
    return sorted(entries, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])


# RAPL


def powercap(sysfs: Path, read: Reader) -> Meter | NoMeter:
    """Find RAPL: packages, and the memory beside each, every one of them once.

    Cores and the uncore are inside their package, psys contains everything, and the zones of
    ``intel-rapl-mmio`` are the same packages over another bus: none of those is added.
    """
    folder = sysfs / "class" / "powercap"
    packages: dict[str, Path] = {}
    drams: dict[str, Path] = {}
    zones = [zone for zone in _listed(folder) if _ZONE.fullmatch(zone.name)]
    names = {zone.name: text_or_none(zone / "name", read) or "" for zone in zones}
    for zone in zones:
        if names[zone.name].startswith("package"):
            packages.setdefault(names[zone.name], zone)
    parents = {zone.name for zone in packages.values()}
    for zone in zones:
        parent = zone.name.rpartition(":")[0]
        if parent in parents and names[zone.name] == "dram":
            drams.setdefault(parent, zone)
    chosen = [*packages.values(), *drams.values()]
    if not packages:
        return NoMeter(f"no RAPL package in {folder}, as in most virtual machines")
    for zone in chosen:
        file = zone / "energy_uj"
        try:
            read(file)
        except PermissionError:
            return NoMeter(f"{file} may not be read by this user", ENABLE_RAPL)
        except OSError as error:
            return NoMeter(f"{file} cannot be read: {reason(error)}")
    return Meter(
        name="RAPL",
        scope=f"package{' + dram' if drams else ''} of all sockets",
        kind=Kind.COUNTER,
        sources=tuple(_zone(zone, read) for zone in chosen),
        period=0.001,
    )


def _zone(zone: Path, read: Reader) -> Source:
    try:
        modulus = number(zone / "max_energy_range_uj", read)
    except MeterError:
        modulus = 0  # then running backwards is an error, not a wrap
    file = zone / "energy_uj"
    return Source(str(file), lambda: number(file, read), modulus)


# Current monitors


@dataclass(frozen=True, slots=True)
class _Rail:
    label: str
    chip: str
    file: Path
    power: Callable[[], int]


def rails(sysfs: Path, read: Reader) -> Meter | NoMeter:
    """Find INA current monitors: the rail that feeds everything, else the sum of all rails."""
    folder = sysfs / "class" / "hwmon"
    found: list[_Rail] = []
    for device in _listed(folder):
        chip = text_or_none(device / "name", read) or ""
        if _CHIP.fullmatch(chip):
            found += [rail for n in _CHANNELS if (rail := _rail(device, chip, n, read))]
    # Numbers of hwmon devices change from boot to boot, labels do not.
    found.sort(key=lambda rail: (rail.label, str(rail.file)))
    if not found:
        return NoMeter(f"no INA current monitor in {folder}")
    for label in TOTAL_RAILS:
        total = [rail for rail in found if rail.label == label]
        if len(total) == 1:
            return _board(total, f"board rail {label}")
    labels = {rail.label for rail in found}
    apart = [rail for rail in found if FED_BY.get(rail.label) not in labels]
    return _board(apart, f"sum of the board rails {', '.join(rail.label for rail in apart)}")


def _board(chosen: list[_Rail], scope: str) -> Meter:
    return Meter(
        name=" and ".join(sorted({rail.chip.upper() for rail in chosen})),
        scope=scope,
        kind=Kind.POWER,
        sources=tuple(Source(str(rail.file), rail.power) for rail in chosen),
        period=0.1,
    )


def _rail(device: Path, chip: str, channel: int, read: Reader) -> _Rail | None:
    """Read one channel of a monitor; None if it is not connected, off, or not readable."""
    if text_or_none(device / f"in{channel}_enable", read) == "0":
        return None
    candidates = (f"in{channel}_label", f"curr{channel}_label", f"power{channel}_label", "label")
    given = (text_or_none(device / name, read) for name in candidates)
    label = next((label for label in given if label), f"{chip} channel {channel}")
    if label == "NC":
        return None
    direct = device / f"power{channel}_input"
    volts, amperes = device / f"in{channel}_input", device / f"curr{channel}_input"
    ways: tuple[tuple[Path, Callable[[], int]], ...] = (
        (direct, lambda: number(direct, read)),
        (amperes, lambda: number(volts, read) * number(amperes, read)),  # mV x mA = uW
    )
    for file, power in ways:
        if _readable(power):
            return _Rail(label, chip, file, power)
    return None


def _readable(power: Callable[[], int]) -> bool:
    try:
        power()
    except MeterError:
        return False
    return True


# Batteries


def battery(sysfs: Path, read: Reader) -> Meter | NoMeter:
    """Find batteries that the whole machine runs on at this moment."""
    folder = sysfs / "class" / "power_supply"
    batteries: list[Path] = []
    chargers: list[Path] = []
    for supply in _listed(folder):
        kind = text_or_none(supply / "type", read) or ""
        if kind == "Battery" and text_or_none(supply / "scope", read) != "Device":
            batteries.append(supply)
        elif kind == "Mains" or kind.startswith("USB"):
            chargers.append(supply)
    if not batteries:
        return NoMeter(f"no battery in {folder}")
    state = _state(batteries, chargers, read)
    empty_now = [supply for supply in batteries if state[supply.name] == "Discharging"]
    unplug = "A battery measures only while it alone feeds the machine: unplug the charger"
    if not empty_now:
        said = ", ".join(f"{supply.name} is {state[supply.name]}" for supply in batteries)
        return NoMeter(said, unplug)
    for charger in chargers:
        if state[charger.name] == "plugged in":
            return NoMeter(f"{charger.name} feeds the machine beside its battery", unplug)
    for kind, way, period in (
        (Kind.POWER, _battery_power, 1.0),  # firmware renews it about once a second
        (Kind.COUNTER, _battery_energy, 3.0),  # its steps are often 10 mWh, which is 36 J
    ):
        sources = [way(supply, read) for supply in empty_now]
        whole = tuple(source for source in sources if source is not None)
        if len(whole) == len(sources):
            return Meter(
                name="battery",
                scope="battery: the whole machine",
                kind=kind,
                sources=whole,
                period=period,
                check=lambda: _same(state, _state(batteries, chargers, read)),
            )
    names = ", ".join(supply.name for supply in empty_now)
    return NoMeter(f"{names} shows neither power, nor voltage and current, nor energy")


def _state(batteries: Iterable[Path], chargers: Iterable[Path], read: Reader) -> dict[str, str]:
    """Say what every battery and charger does now; a file that is gone is ``gone``."""
    states = {supply.name: text_or_none(supply / "status", read) or "gone" for supply in batteries}
    for supply in chargers:
        online = text_or_none(supply / "online", read)
        states[supply.name] = "unplugged" if online in {None, "0"} else "plugged in"
    return states


def _same(before: dict[str, str], now: dict[str, str]) -> None:
    for name, state in before.items():
        if now[name] != state:
            raise MeterError(
                f"{name} went from {state} to {now[name]} while it was read: what it shows is no"
                " longer what the machine takes"
            )


def _battery_power(supply: Path, read: Reader) -> Source | None:
    direct = supply / "power_now"
    volts, amperes = supply / "voltage_now", supply / "current_now"
    # Some drivers give what flows out of a battery a minus.
    ways: tuple[tuple[Path, Callable[[], int]], ...] = (
        (direct, lambda: abs(number(direct, read))),
        (amperes, lambda: abs(number(volts, read) * number(amperes, read)) // 10**6),
    )
    for file, power in ways:
        if _readable(power):
            return Source(str(file), power)
    return None


def _battery_energy(supply: Path, read: Reader) -> Source | None:
    file = supply / "energy_now"

    def taken() -> int:
        # What is left falls, so what was taken grows.
        return -number(file, read) * _MICROJOULES_PER_MICROWATT_HOUR

    return Source(str(file), taken) if _readable(taken) else None
