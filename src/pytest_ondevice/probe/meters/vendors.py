"""Meters behind optional libraries: NVIDIA's boards and Apple's chips.

Written after the documentation of ``nvidia-ml-py`` and ``zeus-apple-silicon``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .base import Kind, Meter, MeterError, NoMeter, Source

_APPLE_PARTS = ("cpu_total_mj", "gpu_mj", "gpu_sram_mj", "ane_mj", "dram_mj")


def nvidia() -> Meter | NoMeter:
    """Find the energy counters of all NVIDIA boards (Volta and later), in millijoules.

    All boards, because CUDA numbers and hides them in its own way: their sum holds the one that
    computes, whichever it is.
    """
    try:
        nvml = import_module("pynvml")
    except ImportError:
        return NoMeter(
            "the counter of an NVIDIA board needs nvidia-ml-py", "Run `pip install nvidia-ml-py`"
        )
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        for handle in handles:
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError as error:
        return NoMeter(f"no NVIDIA board with an energy counter: {error}")
    if not handles:
        return NoMeter("no NVIDIA board")
    return Meter(
        name="NVML",
        scope="GPU 0 board" if len(handles) == 1 else f"boards of GPUs 0 to {len(handles) - 1}",
        kind=Kind.COUNTER,
        sources=tuple(_board(nvml, handle, i) for i, handle in enumerate(handles)),
        period=0.1,
        of_cpu=False,
    )


def _board(nvml: Any, handle: Any, index: int) -> Source:
    name = f"GPU {index}"

    def counter() -> int:
        try:
            return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) * 1000
        except nvml.NVMLError as error:
            raise MeterError(f"the energy counter of {name} cannot be read: {error}") from None

    return Source(name, counter)


def apple() -> Meter | NoMeter:
    """Find the energy counters of Apple's chips, in millijoules: CPU, GPU, ANE and memory."""
    try:
        library = import_module("zeus_apple_silicon")
    except ImportError:
        return NoMeter(
            "the counters of Apple's chips need zeus-apple-silicon",
            "Run `pip install zeus-apple-silicon`",
        )
    try:
        monitor = library.AppleEnergyMonitor()
        first = monitor.get_cumulative_energy()
    except RuntimeError as error:
        return NoMeter(f"the counters of this chip cannot be read: {error}")
    parts = [part for part in _APPLE_PARTS if getattr(first, part, None) is not None]
    if "cpu_total_mj" not in parts:
        return NoMeter("this chip shows no energy of its CPU")

    def counter() -> int:
        try:
            now = monitor.get_cumulative_energy()
            return sum(int(getattr(now, part)) for part in parts) * 1000
        except (RuntimeError, TypeError) as error:
            raise MeterError(f"the chip's energy counters cannot be read: {error}") from None

    named = [part.removesuffix("_mj").removesuffix("_total").replace("_", " ") for part in parts]
    return Meter(
        name="IOReport",
        scope=f"chip: {' + '.join(named)}",
        kind=Kind.COUNTER,
        sources=(Source("IOReport", counter),),
        period=0.1,
    )
