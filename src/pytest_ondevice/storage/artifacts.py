"""The artifact store: quantized files by content, and recipes that name them.

``objects/<sha256>.gguf`` are the files; ``recipes/<key>.json`` say which object a source becomes
under a method and a runtime, and what making it cost. An object is moved into its place when it
is complete and checked, the recipe is written after it, so whatever is read is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from typing import TYPE_CHECKING

import msgspec

from ..errors import BadFileError, StorageError
from ..formats.gguf import read_header
from .files import decode, sha256_of, write_atomic

if TYPE_CHECKING:
    from pathlib import Path

STALE_SECONDS = 24 * 3600


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """Where an object came from and what it cost.

    Attributes:
        sha256: Digest of the object.
        size: Its length in bytes.
        source_sha256: Digest of the file it was made from.
        source_type: The source's own file type: "Q4_1" means that it was quantized already.
        model: Name of the model, for people who look into the cache.
        method: The llama.cpp file type, with the variants that make other weights of it.
        runtime: Version of the runtime that quantized.
        runtime_digest: Digest of its libraries.
        wall_time: Seconds of ``llama_model_quantize``.
        cpu_time: CPU seconds of the same.
        peak_memory: Peak resident bytes above the process's own.
        calibration: Digest of the text of its importance matrix; empty without one.
        calibration_time: Seconds of making that matrix; 0 where it was at hand.
    """

    sha256: str
    size: int
    source_sha256: str
    source_type: str
    method: str
    runtime: str
    runtime_digest: str
    wall_time: float
    cpu_time: float
    peak_memory: int
    model: str = ""
    calibration: str = ""
    calibration_time: float = 0.0


class ArtifactStore:
    """Artifacts made on this machine, under the cache folder."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    def find(self, key: str) -> tuple[Path, Recipe] | None:
        """Find the object of a recipe; a missing, short or altered one is as good as none."""
        try:
            recipe = decode(self._recipe(key).read_bytes(), Recipe)
            path = self._object(recipe.sha256)
            if path.stat().st_size != recipe.size:
                return None
            if sha256_of(path, self.cache) != recipe.sha256:
                return None
        except (OSError, msgspec.DecodeError):
            return None
        # When it was last used, for those who clean up; a cache that is only read stays as it is.
        with contextlib.suppress(OSError):
            os.utime(self._recipe(key))
        return path, recipe

    def new_file(self) -> Path:
        """Name a file that a worker may write; ``add`` moves it to its place.

        Raises:
            StorageError: The cache folder cannot be written.
        """
        folder = self.cache / "tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._sweep(folder)
        except OSError as error:
            raise StorageError(f"{folder}: cannot write it: {error.strerror}") from error
        return folder / f"{uuid.uuid4().hex}.gguf"

    def add(self, key: str, part: Path, recipe: Recipe) -> tuple[Path, Recipe]:
        """Check a finished file, move it to its place and write its recipe.

        Raises:
            BadFileError: The file is not a whole GGUF file: the disk may have filled up.
            StorageError: It cannot be moved or written.
        """
        try:
            read_header(part)
        except BadFileError as error:
            raise BadFileError(
                part.name, f"the quantized file is damaged: {error.problem}"
            ) from error
        try:
            with part.open("rb") as file:
                os.fsync(file.fileno())
                # Not remembered: the file will not be found under this name again.
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = os.fstat(file.fileno()).st_size
            path = self._object(digest)
            path.parent.mkdir(parents=True, exist_ok=True)
            part.replace(path)
        except OSError as error:
            raise StorageError(f"{part}: cannot keep it: {error.strerror}") from error
        recipe = msgspec.structs.replace(recipe, sha256=digest, size=size)
        write_atomic(self._recipe(key), msgspec.json.encode(recipe))
        return path, recipe

    def lock_file(self, key: str) -> Path:
        """Name the file to lock while the object of a recipe is made."""
        return self.cache / "locks" / f"{key}.lock"

    def _object(self, sha256: str) -> Path:
        return self.cache / "objects" / sha256[:2] / f"{sha256}.gguf"

    def _recipe(self, key: str) -> Path:
        return self.cache / "recipes" / f"{key}.json"

    @staticmethod
    def _sweep(folder: Path) -> None:
        """Remove what killed processes left behind long ago."""
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()
