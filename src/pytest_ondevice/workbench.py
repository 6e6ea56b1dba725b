"""A bench without a pytest session, for commands that measure: one model, a run of its own."""

from __future__ import annotations

import contextlib
import os
import uuid
from typing import TYPE_CHECKING

from .devices import place, runtime
from .matrix import cells as make_cells
from .matrix import require_runtime
from .measure import Bench
from .provision import Provision
from .storage.cache import hold
from .storage.costs import Costs
from .storage.files import megabytes
from .storage.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .measure import Progress
    from .options import Settings


@contextlib.contextmanager
def workbench(
    settings: Settings, progress: Progress, tell: Callable[[str], None]
) -> Iterator[Bench]:
    """Find the models of some settings, download what is absent, and yield a bench for them.

    Args:
        settings: Which models and methods, and how to execute.
        progress: Shows long work.
        tell: Hears a line before a download, with its size.

    Raises:
        OnDeviceError: No runtime, or a model that cannot be had.
    """
    require_runtime()
    chosen = make_cells(settings)
    used = hold(settings.cache)
    try:
        provision = Provision(settings, runtime())
        provision.find(chosen, [cell.method for cell in chosen])
        if absent := provision.absent(chosen):
            size = sum(weights.missing for weights in absent.values())
            tell(f"downloading {megabytes(size)}: {', '.join(absent)}")
            provision.fetch(
                chosen, lambda name, done, total: progress.update(name, "download", done, total)
            )
        session = uuid.uuid4().hex[:12]
        yield Bench(
            settings=settings,
            provision=provision,
            journal=Journal(settings.cache / "journal", session, session),
            references={cell.model.name: cell for cell in chosen if cell.reference},
            progress=progress,
            costs=Costs(settings.cache, place(settings.threads, settings.gpu_layers)),
            cells=chosen,
        )
    finally:
        progress.finish()
        os.close(used)
