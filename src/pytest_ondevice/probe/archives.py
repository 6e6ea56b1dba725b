"""Archives of arrays that appear whole or not at all: reference files, importance matrices."""

from __future__ import annotations

import contextlib
import os
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def whole(path: Path) -> Iterator[zipfile.ZipFile]:
    """Write an uncompressed zip; the file is there, and on disk, when the block has ended well.

    Raises:
        OSError: It cannot be written: no space, no permission; what was there stands.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                yield archive
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
