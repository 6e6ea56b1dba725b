"""Energy: meters found in fake trees of the kernel's files, and joules right to the microjoule."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice.probe import energy
from pytest_ondevice.probe.energy import Tally, advance, measure, watched
from pytest_ondevice.probe.meters import Kind, Meter, MeterError, NoMeter, Source, find
from pytest_ondevice.probe.meters.base import text
from pytest_ondevice.probe.meters.kernel import AT_ONCE, RULE, RULE_FILE
from pytest_ondevice.probe.protocol import EnergyPlan, Execution

lawful = settings(max_examples=100, deadline=None, derandomize=True, database=None)
INTEL_RANGE = 262_143_328_850
AMD_RANGE = 65_532_610_987
PAGE = Path(__file__).parents[2] / "docs" / "energy.md"


class Sys:
    """A fake /sys that never shows half a number: files are replaced, counters have one width."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ranges: dict[str, int] = {}

    def write(self, path: str, content: object) -> Path:
        file = self.root / "class" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f".{file.name}.{threading.get_ident()}")
        new.write_text(f"{content}\n")
        new.replace(file)
        return file

    def zone(self, name: str, label: str, uj: int = 0, span: int = INTEL_RANGE) -> None:
        self.ranges[name] = span
        self.write(f"powercap/{name}/name", label)
        self.write(f"powercap/{name}/max_energy_range_uj", span)
        self.write(f"powercap/{name}/energy_uj", f"{uj:020}")

    def count(self, name: str, uj: int) -> None:
        with (self.root / "class" / "powercap" / name / "energy_uj").open("r+b", 0) as file:
            counted = (int(file.read()) + uj) % self.ranges[name]
            os.pwrite(file.fileno(), b"%020d" % counted, 0)

    def supply(self, name: str, **files: object) -> None:
        for file, content in files.items():
            self.write(f"power_supply/{name}/{file}", content)


@pytest.fixture
def sysfs(tmp_path):
    return Sys(tmp_path / "sys")


@pytest.fixture
def server(sysfs):
    """Two sockets with memory, and everything that must not be added."""
    sysfs.write("powercap/intel-rapl/enabled", 1)
    sysfs.zone("intel-rapl:0", "package-0", 1_000)
    sysfs.zone("intel-rapl:0:0", "core", 10)
    sysfs.zone("intel-rapl:0:1", "uncore", 10)
    sysfs.zone("intel-rapl:0:2", "dram", 500, AMD_RANGE)
    sysfs.zone("intel-rapl:1", "package-1", 2_000)
    sysfs.zone("intel-rapl:1:0", "core", 10)
    sysfs.zone("intel-rapl:1:1", "dram", 600, AMD_RANGE)
    sysfs.zone("intel-rapl:2", "psys", 9_000)
    sysfs.zone("intel-rapl-mmio:0", "package-0", 1_000)
    sysfs.zone("intel-rapl-mmio:0:0", "dram", 1_000)
    return sysfs


def found(sysfs: Sys, **options) -> Meter:
    meter = find(sysfs.root, **{"gpu": False, **options})
    assert isinstance(meter, Meter), meter
    return meter


def missing(sysfs: Sys, **options) -> NoMeter:
    meter = find(sysfs.root, **{"gpu": False, **options})
    assert isinstance(meter, NoMeter), meter
    return meter


def zones(meter: Meter) -> list[str]:
    return [Path(source.name).parent.name for source in meter.sources]


# Counters and wraps


@lawful
@given(
    st.integers(2, 10**12),
    st.data(),
)
def test_what_a_wrapping_counter_went_is_what_was_put_in(modulus, data):
    steps = data.draw(st.lists(st.integers(0, modulus // 2), max_size=20))
    start = data.draw(st.integers(0, modulus - 1))
    shown = [start]
    for step in steps:
        shown.append((shown[-1] + step) % modulus)
    went = [advance(a, b, modulus) for a, b in pairwise(shown)]
    assert sum(went) == sum(steps)


@lawful
@given(st.lists(st.lists(st.integers(0, AMD_RANGE // 2), min_size=3, max_size=3), max_size=12))
def test_a_tally_adds_sources_that_wrap_each_in_its_own_range(rows):
    ranges = (AMD_RANGE, INTEL_RANGE, 0)
    shown = [AMD_RANGE - 1, INTEL_RANGE - 1, 7]

    def source(i):
        return Source(f"zone {i}", lambda: shown[i], ranges[i])

    tally = Tally(Meter("m", "s", Kind.COUNTER, tuple(map(source, range(3))), 0.001))
    for row in rows:
        for i, step in enumerate(row):
            shown[i] = (shown[i] + step) % ranges[i] if ranges[i] else shown[i] + step
        tally.sample()
    assert tally.microjoules == sum(map(sum, rows))
    assert tally.steps == sum(any(row) for row in rows)


@pytest.mark.parametrize(
    ("before", "after", "modulus"),
    [
        (600_000, 0, 1_000_000_000),  # set back at a resume, not wrapped
        (5, 4, 0),  # a counter without a range never wraps
        (900, 10, 800),  # more than its own range
    ],
)
def test_a_counter_that_goes_backwards_is_none(before, after, modulus):
    with pytest.raises(MeterError, match=f"went backwards, from {before} to {after}"):
        advance(before, after, modulus)


def test_power_is_integrated_between_samples(monkeypatch):
    now, power = [10.0], [4_000_000]
    monkeypatch.setattr(energy, "perf_counter", lambda: now[0])
    sources = tuple(Source(name, lambda: power[0]) for name in "ab")
    tally = Tally(Meter("m", "s", Kind.POWER, sources, 0.1))
    for passed, then in ((0.5, 6_000_000), (0.25, 5_000_000)):
        now[0] += passed
        power[0] = then
        tally.sample()
    # Two rails: (4+6)/2 W x 0.5 s + (6+5)/2 W x 0.25 s each.
    assert tally.microjoules == 2 * (2_500_000 + 1_375_000)
    assert (tally.seconds, tally.gap, tally.steps) == (0.75, 0.5, 2)
    assert tally.watts == pytest.approx(7.75 / 0.75)


def test_a_finished_tally_hears_no_more():
    shown = [0]
    tally = Tally(Meter("m", "s", Kind.COUNTER, (Source("z", lambda: shown[0]),), 0.001))
    shown[0] = 5
    tally.sample(finish=True)
    seconds = tally.seconds
    shown[0] = 9
    tally.sample()
    assert (tally.microjoules, tally.seconds) == (5, seconds)


def test_what_comes_last_in_the_block_is_in_its_tally():
    shown = [0]
    with watched(Meter("m", "s", Kind.COUNTER, (Source("z", lambda: shown[0]),), 100.0)) as tally:
        shown[0] = 5
    assert tally.microjoules == 5


def test_the_thread_sees_wraps_that_the_block_does_not():
    shown, modulus = [0], 1_000
    tallied = Meter("m", "s", Kind.COUNTER, (Source("z", lambda: shown[0], modulus),), 0.001)
    with watched(tallied) as tally:
        for _ in range(6):
            shown[0] = (shown[0] + 400) % modulus
            steps, until = tally.steps, time.monotonic() + 10
            while tally.steps == steps and time.monotonic() < until:
                time.sleep(0.005)
    assert tally.microjoules == 2_400


def test_a_failure_that_only_the_thread_saw_counts():
    looks = []

    def read():
        looks.append(threading.current_thread())
        if looks[-1] is not threading.main_thread():
            raise MeterError("gone for a moment")
        return 1

    def block():
        with watched(Meter("m", "s", Kind.COUNTER, (Source("z", read),), 0.001)):
            until = time.monotonic() + 10
            while len(looks) < 2 and time.monotonic() < until:
                time.sleep(0.005)

    with pytest.raises(MeterError, match="gone for a moment"):
        block()


# RAPL


def test_packages_and_memory_are_added_once(server):
    meter = found(server)
    assert zones(meter) == ["intel-rapl:0", "intel-rapl:1", "intel-rapl:0:2", "intel-rapl:1:1"]
    assert [source.read() for source in meter.sources] == [1_000, 2_000, 500, 600]
    assert [source.modulus for source in meter.sources] == [INTEL_RANGE] * 2 + [AMD_RANGE] * 2
    assert (meter.name, meter.scope, meter.kind) == (
        "RAPL",
        "package + dram of all sockets",
        Kind.COUNTER,
    )


def test_sockets_without_memory_and_with_dies(sysfs):
    for i in range(11):
        sysfs.zone(f"intel-rapl:{i}", f"package-{i // 2}-die-{i % 2}", i)
    meter = found(sysfs)
    assert meter.scope == "package of all sockets"
    assert [source.read() for source in meter.sources] == list(range(11))


def test_a_package_that_is_listed_twice_is_read_once(sysfs):
    sysfs.zone("intel-rapl:0", "package-0")
    sysfs.zone("intel-rapl:0:0", "dram")
    sysfs.zone("intel-rapl:1", "package-0")
    sysfs.zone("intel-rapl:1:0", "dram")
    assert zones(found(sysfs)) == ["intel-rapl:0", "intel-rapl:0:0"]


@pytest.mark.parametrize("denied", ["intel-rapl:1", "intel-rapl:0:2"])
def test_without_permission_the_message_holds_the_rule(server, denied):
    def read(path):
        if path.name == "energy_uj" and path.parent.name == denied:
            raise PermissionError(13, "Permission denied")
        return text(path)

    why = missing(server, read=read)
    assert f"{denied}/energy_uj may not be read by this user" in why.why
    for part in (RULE, RULE_FILE, AT_ONCE):
        assert part in why.how


@pytest.mark.skipif(os.geteuid() == 0, reason="requires a user whom permissions bind")
def test_real_permissions_deny(server):
    (server.root / "class/powercap/intel-rapl:0/energy_uj").chmod(0)
    assert RULE in missing(server).how


@pytest.mark.parametrize("shape", ["folder", "dangling"])
def test_a_counter_that_cannot_be_read_is_no_smaller_scope(server, shape):
    file = server.root / "class/powercap/intel-rapl:1:1/energy_uj"
    file.unlink()
    if shape == "folder":
        file.mkdir()
    else:
        file.symlink_to("nowhere")
    assert f"{file} cannot be read: " in missing(server).why


def test_what_a_virtual_machine_is_told(sysfs):
    why = missing(sysfs)
    assert why.why.startswith("no meter of energy: ")
    for part in ("RAPL", "virtual machines", "INA", "battery", str(sysfs.root)):
        assert part in why.why
    assert RULE in why.how
    assert AT_ONCE in why.how


def test_the_rule_means_every_counted_zone_and_no_other(server):
    # udev matches KERNEL with a shell pattern, and the shell lists the class folder.
    pattern = RULE.partition('KERNEL=="')[2].partition('"')[0]
    assert AT_ONCE.endswith(f"/sys/class/powercap/{pattern}/energy_uj")
    met = {
        path.parent.name for path in (server.root / "class/powercap").glob(f"{pattern}/energy_uj")
    }
    assert met >= set(zones(found(server)))
    assert not [name for name in met if "mmio" in name]


# Boards


def ina3221(sysfs: Sys, number: int, *rails: tuple[str, int, int], chip: str = "ina3221") -> None:
    sysfs.write(f"hwmon/hwmon{number}/name", chip)
    for i, (label, millivolts, milliamperes) in enumerate(rails, 1):
        sysfs.write(f"hwmon/hwmon{number}/in{i}_label", label)
        sysfs.write(f"hwmon/hwmon{number}/in{i}_input", millivolts)
        sysfs.write(f"hwmon/hwmon{number}/curr{i}_input", milliamperes)
    # What else the chip shows: voltages over its shunts, and the sum of the three currents.
    for i in (4, 5, 6, 7):
        sysfs.write(f"hwmon/hwmon{number}/in{i}_input", 1_000)
    sysfs.write(f"hwmon/hwmon{number}/in7_label", "sum of shunt voltages")
    sysfs.write(f"hwmon/hwmon{number}/curr4_input", 99_999)


def watts(meter: Meter) -> float:
    return sum(source.read() for source in meter.sources) / 1e6


@pytest.mark.parametrize("total", ["VDD_IN", "POM_5V_IN"])
def test_the_rail_that_feeds_the_module_stands_for_it(sysfs, total):
    ina3221(
        sysfs, 1, ("VDD_CPU_GPU_CV", 5_000, 400), (total, 5_000, 1_500), ("VDD_SOC", 5_000, 200)
    )
    meter = found(sysfs)
    assert (meter.name, meter.scope, meter.kind) == ("INA3221", f"board rail {total}", Kind.POWER)
    assert watts(meter) == 7.5


def test_without_such_a_rail_all_are_added_and_named(sysfs):
    ina3221(sysfs, 3, ("VDD_GPU_SOC", 12_000, 500), ("VDD_CPU_CV", 12_000, 250), ("NC", 1, 1))
    ina3221(
        sysfs, 2, ("VIN_SYS_5V0", 5_000, 1_000), ("VDDQ_VDD2_1V8AO", 5_000, 300), ("X", 5_000, 20)
    )
    sysfs.write("hwmon/hwmon0/name", "amdgpu")
    sysfs.write("hwmon/hwmon0/power1_input", 30_000_000)
    meter = found(sysfs)
    assert meter.scope == "sum of the board rails VDD_CPU_CV, VDD_GPU_SOC, VIN_SYS_5V0, X"
    assert watts(meter) == 6 + 3 + 5 + 0.1


def test_a_rail_behind_another_counts_where_that_one_is_not_measured(sysfs):
    ina3221(sysfs, 2, ("VDD_CPU_CV", 5_000, 1_000), ("VDDQ_VDD2_1V8AO", 5_000, 300))
    assert watts(found(sysfs)) == 6.5


def test_a_monitor_that_computes_power_is_believed(sysfs):
    sysfs.write("hwmon/hwmon0/name", "ina226")
    sysfs.write("hwmon/hwmon0/in1_input", 5_000)
    sysfs.write("hwmon/hwmon0/curr1_input", 1_000)
    sysfs.write("hwmon/hwmon0/power1_input", 4_987_500)
    meter = found(sysfs)
    assert (meter.name, meter.scope) == ("INA226", "sum of the board rails ina226 channel 1")
    assert watts(meter) == 4.9875


def test_channels_that_are_off_or_dead_are_left_out(sysfs):
    ina3221(sysfs, 1, ("A", 5_000, 100), ("B", 5_000, 200), ("C", 5_000, 300))
    sysfs.write("hwmon/hwmon1/in2_enable", 0)
    (sysfs.root / "class/hwmon/hwmon1/curr3_input").unlink()
    assert found(sysfs).scope == "sum of the board rails A"


# Batteries


def test_a_battery_that_feeds_the_machine(sysfs):
    sysfs.supply("AC", type="Mains", online=0)
    sysfs.supply("hidpp_battery_0", type="Battery", scope="Device", status="Discharging")
    sysfs.supply("BAT0", type="Battery", status="Discharging", power_now=8_500_000, energy_now=1)
    sysfs.supply("BAT1", type="Battery", status="Unknown", power_now=0)
    meter = found(sysfs)
    assert (meter.name, meter.scope) == ("battery", "battery: the whole machine")
    assert meter.kind is Kind.POWER
    assert watts(meter) == 8.5
    meter.check()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_battery_with_voltage_and_current(sysfs, sign):
    sysfs.supply(
        "BAT0",
        type="Battery",
        status="Discharging",
        voltage_now=11_400_000,
        current_now=sign * 1_000_000,
    )
    assert watts(found(sysfs)) == 11.4


def test_a_battery_that_only_says_what_is_left(sysfs):
    sysfs.supply("BAT0", type="Battery", status="Discharging", energy_now=40_000_000)
    meter = found(sysfs)
    assert meter.kind is Kind.COUNTER
    tally = Tally(meter)
    sysfs.supply("BAT0", energy_now=39_990_000)
    tally.sample()
    assert tally.microjoules == 10_000 * 3_600  # 10 mWh are 36 J


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"status": "Charging"}, "BAT0 is Charging"),
        ({"status": "Full"}, "BAT0 is Full"),
        ({}, "BAT0 is gone"),
    ],
)
def test_a_battery_that_does_not_discharge_measures_nothing(sysfs, files, why):
    sysfs.supply("BAT0", type="Battery", power_now=8_500_000, **files)
    none = missing(sysfs)
    assert why in none.why
    assert "unplug the charger" in none.how


def test_a_charger_beside_a_draining_battery_hides_a_part(sysfs):
    sysfs.supply("BAT0", type="Battery", status="Discharging", power_now=8_500_000)
    sysfs.supply("ucsi-source-psy-1", type="USB", online=1)
    assert "ucsi-source-psy-1 feeds the machine beside its battery" in missing(sysfs).why


def test_a_battery_that_shows_nothing(sysfs):
    sysfs.supply("BAT0", type="Battery", status="Discharging", capacity=50)
    assert "BAT0 shows neither power" in missing(sysfs).why


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("BAT0", {"status": "Charging"}), "BAT0 went from Discharging to Charging"),
        (("AC", {"online": 1}), "AC went from unplugged to plugged in"),
    ],
)
def test_plugging_in_ends_the_measuring(sysfs, change, said):
    sysfs.supply("AC", type="Mains", online=0)
    sysfs.supply("BAT0", type="Battery", status="Discharging", power_now=8_500_000)
    tally = Tally(found(sysfs))
    tally.sample()
    name, files = change
    sysfs.supply(name, **files)
    with pytest.raises(MeterError, match=said):
        tally.sample()


# Which one


def test_what_covers_the_computing_best_comes_first(server):
    ina3221(server, 0, ("VDD_IN", 5_000, 1_000))
    server.supply("BAT0", type="Battery", status="Discharging", power_now=8_500_000)
    assert found(server).name == "RAPL"

    def no_rapl(path):
        if "powercap" in path.parts:
            raise PermissionError(13, "Permission denied")
        return text(path)

    assert found(server, read=no_rapl).name == "INA3221"
    assert found(server, gpu=True).name == "INA3221"

    def battery_alone(path):
        if not {"powercap", "hwmon"}.isdisjoint(path.parts):
            raise PermissionError(13, "Permission denied")
        return text(path)

    assert found(server, read=battery_alone).name == "battery"


NVML = """
class NVMLError(Exception):
    pass

boards = {boards}
begun = False

def nvmlInit():
    global begun
    begun = True

def nvmlDeviceGetCount():
    assert begun
    return len(boards)

def nvmlDeviceGetHandleByIndex(index):
    return ("handle", index)

def nvmlDeviceGetTotalEnergyConsumption(handle):
    if boards[handle[1]] is None:
        raise NVMLError("Not Supported")
    return boards[handle[1]]
"""


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Write a stand-in with the documented calls of an optional library, and import it."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def make(name, source):
        monkeypatch.delitem(sys.modules, name, raising=False)
        (folder / f"{name}.py").write_text(source)

    yield make
    for name in ("pynvml", "zeus_apple_silicon"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("boards", "scope", "joules"),
    [([123_456], "GPU 0 board", 123.456), ([1_000, 2_000], "boards of GPUs 0 to 1", 3)],
)
def test_nvidia_boards_count_in_millijoules(server, library, boards, scope, joules):
    library("pynvml", NVML.replace("{boards}", str(boards)))
    meter = found(server, gpu=True)
    assert (meter.name, meter.scope, meter.of_cpu) == ("NVML", scope, False)
    assert watts(meter) == joules
    assert found(server).name == "RAPL"
    sys.modules["pynvml"].boards[:] = [None] * len(boards)
    with pytest.raises(MeterError, match="GPU 0 cannot be read: Not Supported"):
        watts(meter)


@pytest.mark.parametrize(
    ("boards", "why"), [([], "no NVIDIA board"), ([None], "energy counter: Not Supported")]
)
def test_rapl_does_not_stand_for_a_gpu(server, library, boards, why):
    library("pynvml", NVML.replace("{boards}", str(boards)))
    none = missing(server, gpu=True)
    assert why in none.why
    assert RULE not in none.how


def test_without_its_library_a_gpu_has_no_counter(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "`pip install nvidia-ml-py`" in missing(server, gpu=True).how


APPLE = """
class Metrics:
    cpu_total_mj = 1000
    gpu_mj = 200
    gpu_sram_mj = None
    ane_mj = 0
    dram_mj = 30

class AppleEnergyMonitor:
    def get_cumulative_energy(self):
        return Metrics
"""


@pytest.mark.parametrize("gpu", [True, False])
def test_apple_chips_count_their_parts_in_millijoules(sysfs, library, monkeypatch, gpu):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    library("zeus_apple_silicon", APPLE)
    meter = found(sysfs, gpu=gpu)
    assert (meter.name, meter.scope) == ("IOReport", "chip: cpu + gpu + ane + dram")
    assert watts(meter) == 1.23
    sys.modules["zeus_apple_silicon"].Metrics.dram_mj = None
    with pytest.raises(MeterError, match="cannot be read"):
        watts(meter)


def test_an_apple_chip_that_shows_no_cpu_has_no_meter(sysfs, library, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    library("zeus_apple_silicon", APPLE.replace("cpu_total_mj = 1000", "cpu_total_mj = None"))
    assert "no energy of its CPU" in missing(sysfs).why


# The stage


class Engine:
    """A stand-in for the runtime, with which every token takes what the test says."""

    def __init__(self, on_feed, on_load=lambda: None) -> None:
        self.on_feed, self.on_load = on_feed, on_load
        self.fed: list[int] = []

    @contextmanager
    def load(self, path, execution, *, alive):
        self.on_load()
        alive(1.0)
        self.n_vocab = 100
        yield self

    @contextmanager
    def context(self, model, execution):
        assert model is self
        self.execution = execution
        yield self

    def clear(self):
        self.filled = 0

    def feed(self, tokens, start):
        assert 0 < len(tokens) <= self.execution.n_ubatch
        assert start == self.filled
        self.filled += len(tokens)
        assert self.filled <= self.execution.n_ctx
        assert all(0 <= token < self.n_vocab for token in tokens)
        self.fed.append(len(tokens))
        self.on_feed(len(tokens))


ZONE = "powercap/intel-rapl:1/energy_uj"
PREFILL_UJ, DECODE_UJ, IDLE_UJ, LOAD_UJ = 1_234_567, 7_654_321, 5_000_000, 999_999_999


class Machine:
    """Two sockets whose counters follow a clock that only sleeping and computing move."""

    def __init__(self, sysfs: Sys) -> None:
        self.sysfs, self.now = sysfs, 1_000.0
        self.on_feed = lambda _: None
        self.engine = Engine(self.feed, lambda: self.spend(LOAD_UJ))

    def spend(self, uj: int) -> None:
        """Four counters share what is spent; those beside them go faster."""
        for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:2"):
            self.sysfs.count(name, uj // 4)
        self.sysfs.count("intel-rapl:1:1", uj - 3 * (uj // 4))
        for name in ("intel-rapl:0:0", "intel-rapl:2", "intel-rapl-mmio:0"):
            self.sysfs.count(name, 11 * uj)

    def feed(self, tokens: int) -> None:
        self.spend(DECODE_UJ if tokens == 1 else PREFILL_UJ * tokens)
        self.now += 0.01 * tokens
        self.on_feed(tokens)

    def sleep(self, seconds: float) -> None:
        self.spend(round(IDLE_UJ * seconds))
        self.now += seconds


@pytest.fixture
def quiet(monkeypatch):
    """Whatever else this machine does is not seen; what is told is what the test appends."""
    seen = []
    monkeypatch.setattr(energy, "witness", lambda: {"wall": 0.0, "major_faults": 0.0})
    monkeypatch.setattr(
        energy, "disturbances", lambda _before, _after, threads: seen[threads - 1 :]
    )
    monkeypatch.setattr(energy.os, "cpu_count", lambda: 64)
    return seen


@pytest.fixture
def machine(server, quiet, monkeypatch):
    made = Machine(server)
    monkeypatch.setattr(energy, "perf_counter", lambda: made.now)
    monkeypatch.setattr(energy, "sleep", made.sleep)
    return made


def plan(sysfs: Sys, **fields) -> EnergyPlan:
    return EnergyPlan(
        **{
            "sysfs": str(sysfs.root),
            "idle_seconds": 2.0,
            "seconds": 3.0,
            "prefill": 20,
            "decode": 8,
            "execution": Execution(n_ctx=32, n_ubatch=16),
            **fields,
        }
    )


def run(machine: Machine, **fields):
    ticks = []
    made = measure(
        machine.engine,
        "model.gguf",
        plan(machine.sysfs, **fields),
        lambda *progress: ticks.append(progress),
    )
    return made, ticks


def test_joules_are_right_to_the_microjoule(machine):
    payload, ticks = run(machine)
    assert list(payload) == ["meter", "scope", "idle_watts", "prefill", "decode", "disturbed"]
    assert payload["meter"] == "RAPL"
    assert payload["scope"] == "package + dram of all sockets"
    assert payload["idle_watts"] == pytest.approx(5)
    for name, uj, each in (("prefill", PREFILL_UJ, 20), ("decode", DECODE_UJ, 8)):
        phase = payload[name]
        assert set(phase) == {"joules", "tokens", "seconds"}
        assert phase["joules"] == phase["tokens"] * uj / 1e6
        # Whole repetitions, until 3 s are over and not one more.
        assert phase["tokens"] % each == 0
        assert 3 <= phase["seconds"] < 3 + 0.01 * each + 1e-6
        assert phase["seconds"] == pytest.approx(0.01 * phase["tokens"])
    assert payload["disturbed"] == []
    done = [one for one, _ in ticks]
    assert done == sorted(done)
    assert ticks[-1] == (9.0, 9.0)
    # The prompt goes through in micro-batches, decoding token by token.
    assert set(machine.engine.fed) == {16, 4, 1}
    # Warming up, twice the prompt and decoding once, is in no phase.
    assert sum(n for n in machine.engine.fed if n > 1) == payload["prefill"]["tokens"] + 2 * 20
    assert machine.engine.fed.count(1) == payload["decode"]["tokens"] + 8


def test_counters_that_wrap_while_it_measures_change_nothing(machine):
    for name, span in machine.sysfs.ranges.items():
        machine.sysfs.zone(
            name, text(machine.sysfs.root / f"class/powercap/{name}/name"), span - 9, span
        )
    payload, _ = run(machine)
    assert payload["decode"]["joules"] == payload["decode"]["tokens"] * DECODE_UJ / 1e6


def test_warming_up_ends_when_two_take_the_same_time_or_after_four(machine):
    took = iter([9.0, 7.0, 5.0, 3.0])

    def slow(tokens):
        if tokens == 16:
            machine.now += next(took, 0.0)

    machine.on_feed = slow
    payload, _ = run(machine)
    assert sum(n for n in machine.engine.fed if n > 1) == payload["prefill"]["tokens"] + 4 * 20


def test_a_slow_meter_gets_longer_phases(machine, monkeypatch):
    monkeypatch.setattr(energy, "PERIODS", 10_000)
    payload, _ = run(machine)
    assert payload["decode"]["seconds"] == pytest.approx(10, abs=0.1)
    assert payload["prefill"]["seconds"] == pytest.approx(10, abs=0.3)


def test_one_repetition_is_the_least(machine):
    payload, _ = run(machine, seconds=0.0, idle_seconds=0.0)
    assert payload["prefill"]["tokens"] == 20
    assert payload["decode"]["tokens"] == 8
    assert [what.partition(" only ")[0] for what in payload["disturbed"]] == [
        f"{name}: RAPL showed a new value" for name in ("idle", "prefill", "decode")
    ]


def test_foreign_load_is_told_for_each_phase(machine, quiet):
    # Told from the 64th thread on: no core is free of the package's figure.
    quiet += ["-"] * 63 + ["other processes kept 0.5 of 64 cores busy"]
    payload, _ = run(machine)
    assert payload["disturbed"] == [
        f"{name}: other processes kept 0.5 of 64 cores busy"
        for name in ("idle", "prefill", "decode")
    ]


def test_foreign_load_on_other_cores_is_not_in_a_gpu(machine, quiet, library):
    library("pynvml", NVML.replace("{boards}", "[0]"))
    quiet += ["-"] * 62 + ["63 threads", "64 threads"]
    found(machine.sysfs, gpu=True)
    boards = sys.modules["pynvml"].boards

    def spend(uj):
        boards[0] += uj // 1000

    machine.spend = spend
    payload, _ = run(machine, execution=Execution(n_ctx=32, n_ubatch=16, gpu_layers=99, threads=63))
    assert payload["meter"] == "NVML"
    assert payload["disturbed"] == [
        f"{name}: {threads} threads"
        for name in ("idle", "prefill", "decode")
        for threads in (63, 64)
    ]


def test_less_than_idle_is_told(machine, monkeypatch):
    def busy(seconds):
        machine.spend(2_000_000_000)
        machine.now += seconds

    monkeypatch.setattr(energy, "sleep", busy)
    payload, _ = run(machine)
    assert len(payload["disturbed"]) == 2
    assert payload["disturbed"][0].startswith("prefill: 123 W, less than the 1e+04 W when idle")


def test_no_meter_is_unsupported_and_loads_nothing(sysfs):
    def refuse(*_args, **_more):
        raise AssertionError("loaded")

    engine = Engine(refuse, refuse)
    made = measure(engine, "model.gguf", plan(sysfs), refuse)
    assert set(made) == {"unsupported"}
    assert made["unsupported"].startswith("no meter of energy: ")
    assert RULE in made["unsupported"]


def test_a_counter_that_never_counts_is_unsupported(machine):
    machine.spend = lambda _: None
    made, _ = run(machine)
    assert set(made) == {"unsupported"}
    assert "RAPL (package + dram of all sockets) is there and does not count" in made["unsupported"]
    assert machine.engine.fed == []


@pytest.mark.parametrize(("phase", "tokens"), [("prefill", 16), ("decode", 1)])
def test_a_counter_that_stops_in_a_phase_fails(machine, phase, tokens):
    spend = machine.spend
    machine.engine.on_feed = lambda n: (
        setattr(machine, "now", machine.now + 0.01 * n),
        None if (n == 1) is (tokens == 1) else spend(1_000_000),
    )
    with pytest.raises(MeterError, match=f"no energy in the 3.* s of the phase {phase}"):
        run(machine)


@pytest.mark.parametrize(
    ("shows", "said"),
    [
        (None, "energy_uj cannot be read: no such file"),
        ("?", r"holds '\?', which is no whole number"),
        ("", "holds '', which is no whole number"),
        ("3", "energy_uj is no counter: it went backwards, from [0-9]+ to 3 microjoules"),
    ],
)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_counter_that_breaks_mid_way_gives_no_number(machine, phase, shows, said):
    spent = {"prefill": 0, "decode": 0}

    def break_it(tokens):
        now = "decode" if tokens == 1 else "prefill"
        spent[now] += tokens
        if now == phase and spent[now] > 100:
            machine.spend = lambda _: None
            if shows is None:
                (machine.sysfs.root / "class" / ZONE).unlink(missing_ok=True)
            else:
                machine.sysfs.write(ZONE, shows)

    machine.on_feed = break_it
    with pytest.raises(MeterError, match=said):
        run(machine)
    # It broke in the phase, not while warming up, and was noticed before the next one.
    assert spent[phase] < 200
    assert phase == "decode" or spent["decode"] == 8


def test_a_charger_plugged_in_mid_way_gives_no_number(sysfs, quiet):
    sysfs.supply("BAT0", type="Battery", status="Discharging", power_now=9_000_000)

    def feed(tokens):
        if tokens == 1:
            sysfs.supply("BAT0", status="Charging", power_now=30_000_000)

    with pytest.raises(MeterError, match="BAT0 went from Discharging to Charging"):
        measure_quickly(sysfs, feed)


def test_a_rail_of_steady_power_takes_power_times_time(sysfs, quiet):
    ina3221(sysfs, 0, ("VDD_IN", 5_000, 1_500))
    payload = measure_quickly(sysfs, lambda _: time.sleep(0.002))
    assert payload["scope"] == "board rail VDD_IN"
    assert payload["idle_watts"] == pytest.approx(7.5, rel=1e-9)
    for name in ("prefill", "decode"):
        assert payload[name]["joules"] == pytest.approx(7.5 * payload[name]["seconds"], rel=1e-9)
    assert [what for what in payload["disturbed"] if "not read" not in what] == []


def test_power_that_was_not_read_for_long_is_told(sysfs, quiet, monkeypatch):
    ina3221(sysfs, 0, ("VDD_IN", 5_000, 1_500))
    monkeypatch.setattr(energy, "LONGEST_GAP", 1e-6)
    payload = measure_quickly(sysfs, lambda _: time.sleep(0.002))
    assert [what.partition(":")[0] for what in payload["disturbed"]] == [
        "idle",
        "prefill",
        "decode",
    ]
    assert "INA3221 was not read for 0." in payload["disturbed"][0]


def measure_quickly(sysfs: Sys, on_feed):
    """Measure by the real clock, with phases of a blink."""
    periods, energy.PERIODS = energy.PERIODS, 0
    try:
        return measure(
            Engine(on_feed),
            "model.gguf",
            plan(sysfs, idle_seconds=0.15, seconds=0.15),
            lambda *_: None,
        )
    finally:
        energy.PERIODS = periods


def test_the_witnesses_are_those_of_speed():
    from pytest_ondevice.probe import speed

    assert (energy.witness, energy.disturbances) == (speed.witness, speed.disturbances)


def test_a_counter_in_real_time_with_nothing_replaced_but_the_engine(sysfs):
    # The kernel counts on its own; here a thread does.
    sysfs.zone("intel-rapl:0", "package-0", INTEL_RANGE - 1_000_000)
    stop = threading.Event()

    def kernel():
        while not stop.wait(0.002):
            sysfs.count("intel-rapl:0", 10_000)

    counting = threading.Thread(target=kernel)
    counting.start()
    try:
        payload = measure_quickly(sysfs, lambda _: time.sleep(0.002))
    finally:
        stop.set()
        counting.join()
    # At most 5 W, and not far below even on a busy machine.
    assert 0.2 < payload["idle_watts"] <= 5.5
    for name in ("prefill", "decode"):
        phase = payload[name]
        assert 0.2 < phase["joules"] / phase["seconds"] <= 5.5


# The page


def test_the_page_holds_the_rule_as_it_is_told():
    page = PAGE.read_text("utf-8")
    for part in (RULE, RULE_FILE, AT_ONCE):
        assert part in page
