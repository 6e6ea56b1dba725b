"""Cells to artifacts: what is at hand, and what has to be quantized first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from .bpw import BpwAccount, account
from .devices import runtime_knows
from .errors import BadFileError, MissingError, OnDeviceError
from .formats.gguf import read_header
from .matrix import FLOAT_METHODS, REFERENCE, runtime_methods
from .model.measurement import digest_of
from .model.quant_types import FILE_TYPES
from .model.report import ArtifactFacts, TypeShare
from .storage.artifacts import ArtifactStore, Recipe
from .storage.files import require_space, sha256_of
from .storage.sources import Candidates, locate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .model.artifact import Header
    from .model.catalog import Cell, Model
    from .model.device import Runtime
    from .options import Settings


@dataclass(frozen=True)
class GgufFile:
    """A file that passed the header check, with its digest."""

    path: Path
    sha256: str
    header: Header

    @cached_property
    def account(self) -> BpwAccount:
        """Count its weights and bytes."""
        return account(self.header.tensors)

    @property
    def type_name(self) -> str | None:
        """The file type it declares."""
        return file_type_name(self.header.file_type)


@dataclass(frozen=True)
class Artifact:
    """The weights of a cell.

    Attributes:
        cell: The cell.
        file: The weights.
        origin: ``quantized``, ``candidate`` or ``source``.
        source: The file it was made from, None if unknown.
        source_name: Where that is, in words.
        recipe: What making it cost, if it was made here.
        lineage: Digest of what all artifacts of the model descend from: baselines compare by it.
    """

    cell: Cell
    file: GgufFile
    origin: str
    source: GgufFile | None
    source_name: str
    recipe: Recipe | None
    lineage: str

    def facts(self) -> ArtifactFacts:
        """Describe it for the report."""
        counted = self.file.account
        return ArtifactFacts(
            file=self.file.path.name if self.origin != "quantized" else f"{self.cell.id}.gguf",
            sha256=self.file.sha256,
            size=self.file.header.file_size,
            origin=self.origin,
            architecture=self.file.header.architecture,
            file_type=self.file.type_name,
            weights=counted.n_weights,
            types={
                name: TypeShare(
                    tensors=tally.n_tensors, weights=tally.n_weights, bytes=tally.n_bytes
                )
                for name, tally in counted.histogram.items()
            },
            source=self.source_name,
            source_sha256=self.source.sha256 if self.source else "",
            source_type=(self.source.type_name or "unknown") if self.source else "",
            source_quantized=bool(self.source and is_quantized(self.source)),
            quantized_by=self.recipe.runtime if self.recipe else "",
        )


def file_type_name(number: int | None) -> str | None:
    """Name a llama.cpp file type by its id."""
    for name, known in runtime_methods().items():
        if known == number:
            return name
    return None


def is_quantized(file: GgufFile) -> bool:
    """Whether a file's matrices are already quantized, by its bytes, not by its claim."""
    share = file.account.float_matrix_share
    return share is not None and share < 1


class Provision:
    """Finds artifacts; making the missing ones is left to the caller, since it is measured too."""

    def __init__(self, settings: Settings, runtime: Runtime) -> None:
        self.settings = settings
        self.runtime = runtime
        self.store = ArtifactStore(settings.cache)
        self._sources: dict[str, tuple[GgufFile, str] | OnDeviceError] = {}
        self._files: dict[Path, GgufFile] = {}
        self._candidates: Candidates | None = None
        if settings.artifacts is not None:
            try:
                self._candidates = Candidates(settings.artifacts)
            except OnDeviceError as error:
                raise settings.given["artifacts"].error(str(error)) from error

    def check(self, cells: Sequence[Cell], needs_source: Sequence[str]) -> tuple[Cell, ...]:
        """Check that every cell has, or can be given, an artifact; touches no weights.

        Args:
            cells: The matrix.
            needs_source: Methods the user named: a missing one is an error. Of the default
                methods, those for which neither a candidate nor a source exists are left out.

        Returns:
            The cells that can be measured.

        Raises:
            OnDeviceError: A source or candidate is missing or broken, or the disk is too small.
        """
        able = []
        needed = 0
        for cell in cells:
            candidate = self._candidate(cell)
            if candidate is not None:
                self._file(candidate)
                able.append(cell)
                continue
            try:
                source, _ = self.source(cell.model)
            except MissingError:
                if self._any_candidate(cell.model, cells) and cell.method not in needs_source:
                    continue
                raise
            able.append(cell)
            if source.type_name != cell.method and self.ready(cell) is None:
                needed += self.expected_size(cell)
        if needed:
            require_space(self.settings.cache, needed, "quantizing")
        return tuple(able)

    def unmatched(self) -> tuple[str, ...]:
        """Name the candidates that no cell has taken."""
        return self._candidates.unmatched() if self._candidates else ()

    def source(self, model: Model) -> tuple[GgufFile, str]:
        """Find a model's source, with its place in words.

        Raises:
            OnDeviceError: It is missing or broken.
        """
        if model.name not in self._sources:
            try:
                path, place = locate(model, offline=self.settings.offline)
                self._sources[model.name] = (self._file(path), str(place))
            except OnDeviceError as error:
                self._sources[model.name] = error
        found = self._sources[model.name]
        if isinstance(found, OnDeviceError):
            raise found
        return found

    def ready(self, cell: Cell) -> Artifact | None:
        """Return a cell's artifact if it is at hand: a candidate, the source, or in the store.

        Raises:
            OnDeviceError: What it is made from is missing or broken.
        """
        candidate = self._candidate(cell)
        if candidate is not None:
            return self._artifact(cell, self._file(candidate), "candidate", None)
        source, _ = self.source(cell.model)
        if source.type_name == cell.method:
            return self._artifact(cell, source, "source", None)
        stored = self.store.find(self.recipe_key(cell))
        if stored is None:
            return None
        path, recipe = stored
        return self._artifact(cell, self._file(path), "quantized", recipe)

    def recipe_key(self, cell: Cell) -> str:
        """Name what a cell's artifact is made of and with."""
        source, _ = self.source(cell.model)
        return digest_of(
            {"source": source.sha256, "method": cell.method, "runtime": self.runtime.digest}
        )

    def expected_size(self, cell: Cell) -> int:
        """Estimate the bytes of an artifact from above, for the disk's sake.

        Tensors whose rows do not fit the method's blocks fall back to wider types, and
        embeddings are kept wide; three bits more than nominal cover both.
        """
        source, _ = self.source(cell.model)
        nominal = float(FILE_TYPES[cell.method].nominal_bpw) if cell.method in FILE_TYPES else 16.0
        bits = nominal if cell.method in FLOAT_METHODS else min(nominal + 3, 16.0)
        return int(source.account.n_weights * bits / 8) + source.header.data_offset

    def _candidate(self, cell: Cell) -> Path | None:
        if self._candidates is None:
            return None
        return self._candidates.find(cell.model, cell.method)

    def _any_candidate(self, model: Model, cells: Sequence[Cell]) -> bool:
        return any(
            self._candidate(cell) is not None for cell in cells if cell.model.name == model.name
        )

    def _artifact(self, cell: Cell, file: GgufFile, origin: str, recipe: Recipe | None) -> Artifact:
        source: GgufFile | None = None
        name = ""
        try:
            source, name = self.source(cell.model)
            lineage = source.sha256
        except MissingError:
            # Without a source, the reference among the candidates is what the others descend from.
            reference = self._candidates and self._candidates.find(cell.model, REFERENCE)
            lineage = self._file(reference).sha256 if reference else file.sha256
        if origin == "candidate":
            source, name = None, ""
        return Artifact(cell, file, origin, source, name, recipe, lineage)

    def _file(self, path: Path) -> GgufFile:
        if path not in self._files:
            header = read_header(path)
            if header.split is not None:
                raise BadFileError(
                    path,
                    f"part {header.split[0] + 1} of {header.split[1]} of a split model; join the"
                    " parts with llama-gguf-split --merge",
                )
            if not runtime_knows(header.architecture):
                raise BadFileError(
                    path,
                    f"architecture '{header.architecture}' is unknown to {self.runtime.version}",
                )
            self._files[path] = GgufFile(path, sha256_of(path, self.settings.cache), header)
        return self._files[path]
