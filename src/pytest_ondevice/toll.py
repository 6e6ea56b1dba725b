"""What stands between a price and the run: room for it, and somebody who said yes."""

from __future__ import annotations

import functools
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import OnDeviceError, StorageError
from .formats.gguf import read_model
from .matrix import file_type_name
from .price import Load, guessed_size, n_weights, planned_size, price
from .storage.candidates import Candidates
from .storage.files import megabytes
from .storage.sources import locate
from .tasks import sets_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from .model.artifact import Header
    from .model.catalog import Cell, Model
    from .options import Settings
    from .price import Price
    from .storage.costs import Costs


def require_room(whole: Price, settings: Settings, free: int | None) -> None:
    """Make sure that disks and memory can hold a run.

    Args:
        whole: The price.
        settings: The options.
        free: Bytes of memory that may be used; None asks nothing of memory.

    Raises:
        StorageError: They cannot; the message has the figures and what to do.
    """
    wanted: dict[int, tuple[Path, int, list[str]]] = {}
    parts = [(settings.cache, whole.disk, "quantizing", "--ondevice-cache=DIR")]
    if whole.download:
        from huggingface_hub import constants  # noqa: PLC0415

        hub = Path(constants.HF_HUB_CACHE)
        parts.append((hub, whole.download, "downloading", "HF_HUB_CACHE"))
    for folder, size, what, moved_by in parts:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        _, sum_, uses = wanted.get(there.stat().st_dev, (there, 0, []))
        text = f"{what} {megabytes(size)} (elsewhere with {moved_by})"
        wanted[there.stat().st_dev] = (there, sum_ + size, [*uses, text] if size else uses)
    for there, size, uses in wanted.values():
        disk = shutil.disk_usage(there).free
        if size > disk:
            raise StorageError(
                f"the run needs {megabytes(size)} of disk, {there} has {megabytes(disk)} free:"
                f" {', '.join(uses)}; free some, or choose fewer methods"
            )
    if free is not None and whole.largest is not None and whole.memory > free:
        raise StorageError(
            f"{whole.largest.cell.id} needs about {megabytes(whole.memory)} of memory, this machine"
            f" has {megabytes(free)} available; choose a smaller model"
            + ("" if whole.largest.cell.reference else " or a method of fewer bits")
        )


def confirm(config: pytest.Config, whole: Price) -> None:
    """Ask on a terminal whether a costly run is meant.

    Raises:
        OnDeviceError: It is not, or there is nobody to ask.
    """
    said = f"this run takes {whole.sentence()}"
    capture = config.pluginmanager.get_plugin("capturemanager")
    if capture is not None:
        capture.suspend_global_capture(in_=True)
    try:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise OnDeviceError(f"{said}; add --ondevice-yes if that is meant")
        sys.stdout.write(f"{said}.\nGo on? [y/N] ")
        sys.stdout.flush()
        answer = sys.stdin.readline().strip().casefold()
    finally:
        if capture is not None:
            capture.resume_global_capture()
    if answer not in {"y", "yes"}:
        raise OnDeviceError("not begun, and nothing was downloaded")


def quote(settings: Settings, cells: Sequence[Cell], costs: Costs) -> Price | None:
    """Price a run without a network and without reading weights: by headers, else the catalog.

    Returns:
        The price; None if a model is neither at hand nor described by the catalog.
    """
    loads: list[Load] = []
    downloads: dict[str, int] = {}
    ready = None
    if isinstance(settings.artifacts, Path):
        ready = Candidates.in_folder(settings.artifacts)
    for cell in cells:
        candidate = ready.find(cell.model, cell.weights) if ready is not None else None
        header = header_at_hand(cell.model)
        count = n_weights(cell.model, header)
        if candidate is not None:
            loads.append(Load(cell, count or candidate.size, candidate.size, make=False))
            continue
        if not count:
            return None
        planned = planned_size(cell.model, header, cell.weights)
        size = planned or guessed_size(count, cell.file_type)
        # A source that is elsewhere is taken to be the reference's: downloaded, not made.
        absent = header is None and cell.reference
        as_it_is = header is not None and file_type_name(header.file_type) == cell.weights
        loads.append(Load(cell, count, size, make=not (absent or as_it_is)))
        if absent:
            downloads[str(cell.model.sources[0])] = size
    return price(
        loads,
        downloads,
        costs,
        windows=settings.windows,
        rounds=settings.rounds,
        threads=settings.threads,
        items=asked(settings, cells),
    )


def asked(settings: Settings, cells: Sequence[Cell]) -> dict[str, int]:
    """Count the questions that each model will be asked, by its name."""
    models = {cell.model.name: cell.model for cell in cells}
    return {
        name: sum(len(one.items) for one in sets_of(model, settings))
        for name, model in models.items()
    }


@functools.cache
def header_at_hand(model: Model) -> Header | None:
    """Read the header of a model's source where it is on this machine and whole."""
    try:
        paths = locate(model, offline=True).here()
        return read_model(paths) if paths else None
    except OnDeviceError:
        return None
