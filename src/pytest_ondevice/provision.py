"""Cells to artifacts: what is at hand, and what has to be quantized first."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from .bpw import BpwAccount, account
from .catalog import hub_source
from .devices import is_environment, runtime_knows
from .errors import BadFileError, MissingError, OnDeviceError, OptionError
from .formats.gguf import read_model
from .matrix import REFERENCE, file_type_name
from .model.measurement import digest_of
from .model.method import PURE
from .model.report import ArtifactFacts, TypeShare
from .price import Load, guessed_size, n_weights, planned_size
from .storage.artifacts import ArtifactStore, Recipe
from .storage.candidates import Candidates
from .storage.files import sha256_of
from .storage.sources import locate
from .texts import calibration_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .model.artifact import Header
    from .model.catalog import Cell, Model
    from .model.device import Runtime
    from .options import Settings
    from .storage.shelf import Weights


@dataclass(frozen=True)
class GgufFile:
    """A model file that passed the header check, with its digest.

    Attributes:
        parts: Its files, more than one if it is split.
        sha256: Digest of the file; of a split model, of its parts' digests one after the other.
        header: The header, joined over the parts.
    """

    parts: tuple[Path, ...]
    sha256: str
    header: Header

    @property
    def path(self) -> Path:
        """What a runtime is given: the file, or the first part; it finds the others beside it."""
        return self.parts[0]

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
        ancestor: What all artifacts of the model descend from: its source, else the reference among
            the candidates; None without either.
    """

    cell: Cell
    file: GgufFile
    origin: str
    source: GgufFile | None
    source_name: str
    recipe: Recipe | None
    ancestor: GgufFile | None

    @property
    def lineage(self) -> str:
        """Digest of what the artifacts of the model descend from: baselines compare by it."""
        return (self.ancestor or self.file).sha256

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


def _now(cell: Cell) -> Cell:
    return msgspec.structs.replace(cell, before=False)


def is_quantized(file: GgufFile) -> bool:
    """Whether a file's matrices are already quantized, by its bytes, not by its claim."""
    share = file.account.float_matrix_share
    return share is not None and share < 1


class Provision:
    """Finds artifacts; making the missing ones is left to the caller, since it is measured too.

    Args:
        settings: The options.
        runtime: The installed runtime.
        resolved: Another process of this session has found and fetched everything already.
    """

    def __init__(self, settings: Settings, runtime: Runtime, *, resolved: bool = False) -> None:
        self.settings = settings
        self.runtime = runtime
        self.store = ArtifactStore(settings.cache)
        self._offline = settings.offline or resolved
        self._places: dict[str, Weights | OnDeviceError] = {}
        self._files: dict[tuple[Path, ...], GgufFile] = {}
        self._candidates = self._find_candidates("artifacts")
        self._before = None if self.compares_builds else self._find_candidates("against")

    @property
    def compares_builds(self) -> bool:
        """Whether predecessors are the same artifacts on another build of the runtime."""
        against = self.settings.against
        return isinstance(against, Path) and is_environment(against)

    def predecessors(self, cells: Sequence[Cell]) -> tuple[Cell, ...]:
        """Return the predecessors of some cells, as far as there are any.

        Raises:
            OnDeviceError: Two files claim the same cell.
        """
        if self.settings.against is None:
            return ()
        before = [cell.predecessor for cell in cells]
        return tuple(
            cell for cell in before if self.compares_builds or self._candidate(cell) is not None
        )

    def dropped(self) -> tuple[str, ...]:
        """Name the files of the release before that no cell of this run succeeds."""
        return self._before.unmatched() if self._before is not None else ()

    def find(self, cells: Sequence[Cell], needs_source: Sequence[str]) -> tuple[Cell, ...]:
        """Find out which cells have, or can be given, an artifact; downloads nothing.

        Args:
            cells: The matrix.
            needs_source: Methods the user named: a missing one is an error. Of the default
                methods, those for which neither a candidate nor a source exists are left out.

        Returns:
            The cells that can be measured.

        Raises:
            OnDeviceError: A source or candidate is missing or broken.
        """
        able = []
        for cell in cells:
            weights = self._candidate(cell)
            if weights is None:
                try:
                    weights = self._place(cell.model)
                except MissingError:
                    if self._any_candidate(cell.model, cells) and cell.method not in needs_source:
                        continue
                    raise
            if weights.here() is not None:
                self._file(weights)
            able.append(cell)
        self._require_candidates()
        return tuple(able)

    def unmatched(self) -> tuple[str, ...]:
        """Name the candidates that no cell has taken."""
        return self._candidates.unmatched() if self._candidates is not None else ()

    def absent(self, cells: Sequence[Cell]) -> dict[str, Weights]:
        """Return what has to be downloaded for some cells, by what it is for."""
        found: dict[str, Weights] = {}
        for cell in cells:
            candidate = self._candidate(cell)
            if candidate is not None and candidate.here() is None:
                found[cell.id] = candidate
            if cell.before or (candidate is not None and not self.settings.rederive):
                continue
            try:
                source = self._place(cell.model)
            except MissingError:
                if candidate is None:
                    raise
                continue  # what is to be made once more cannot be, and its check will say so
            if source.here() is None:
                found[cell.model.name] = source
        return found

    def fetch(self, cells: Sequence[Cell], tick: Callable[[str, float, float], None]) -> None:
        """Download what is not on this machine, and check every header.

        Raises:
            OnDeviceError: It cannot be had, or is damaged.
        """
        for name, weights in self.absent(cells).items():
            try:
                weights.fetch(partial(tick, name))
            except MissingError as error:
                raise MissingError(f"{name}: {error}") from error
            self._file(weights)

    def loads(self, cells: Sequence[Cell]) -> tuple[Load, ...]:
        """Say what each cell will take, as far as it is known before anything is fetched."""
        return tuple(self._load(cell) for cell in cells)

    def source(self, model: Model) -> tuple[GgufFile, str]:
        """Find a model's source, with its place in words, downloading it if it is absent.

        Raises:
            OnDeviceError: It is missing or broken.
        """
        weights = self._place(model)
        file = self._file(weights)
        commit = weights.shelf.commit(weights.parts[0])
        place = weights.place.partition("@")[0] + f"@{commit}" if commit else weights.place
        return file, place

    def ready(self, cell: Cell) -> Artifact | None:
        """Return a cell's artifact if it is at hand: a candidate, the source, or in the store.

        Raises:
            OnDeviceError: What it is made from is missing or broken.
        """
        if cell.before and self.compares_builds:
            return self.ready(_now(cell))
        candidate = self._candidate(cell)
        if candidate is not None:
            return self._artifact(cell, self._file(candidate), "candidate", None)
        if cell.before:
            raise MissingError(
                f"no predecessor: {self.settings.given['against'].text} has no file for"
                f" {_now(cell).id}"
            )
        return self.made(cell)

    def made(self, cell: Cell) -> Artifact | None:
        """Return what this machine has made of the source, or the source itself; no candidate.

        Raises:
            OnDeviceError: What it is made from is missing or broken.
        """
        source, _ = self.source(cell.model)
        if source.type_name == cell.weights:
            return self._artifact(cell, source, "source", None)
        stored = self.store.find(self.recipe_key(cell))
        if stored is None:
            return None
        path, recipe = stored
        return self._artifact(cell, self._stored(path), "quantized", recipe)

    def recipe_key(self, cell: Cell) -> str:
        """Name what a cell's artifact is made of and with."""
        source, _ = self.source(cell.model)
        fields = {
            "source": source.sha256,
            "method": cell.file_type,
            "runtime": self.runtime.digest,
        }
        if cell.way.pure:
            fields["variant"] = PURE
        if cell.way.imatrix:
            fields["calibration"] = self.calibration(cell)
        return digest_of(fields)

    def calibration(self, cell: Cell) -> str:
        """Digest of the text that a cell's importance matrix is made from."""
        return calibration_texts(self.settings.calibration, cell.model.text)[1]

    def expected_size(self, cell: Cell) -> int:
        """Say how long an artifact will be that is made from the source at hand."""
        source, _ = self.source(cell.model)
        planned = planned_size(cell.model, source.header, cell.weights)
        return planned or guessed_size(source.account.n_weights, cell.file_type)

    def _load(self, cell: Cell) -> Load:
        if cell.before and self.compares_builds:
            return replace(self._load(_now(cell)), cell=cell, make=False)
        weights = self._candidate(cell)
        if weights is not None:
            size = weights.size
            again = self.settings.rederive and not cell.reference and not cell.before
            return Load(cell, n_weights(cell.model, None) or size, size, make=again)
        place = self._place(cell.model)
        header = self._file(place).header if place.here() is not None else None
        count = n_weights(cell.model, header) or place.size // 2
        as_it_is = cell.weights in {place.file_type, header and file_type_name(header.file_type)}
        if as_it_is:
            return Load(cell, count, place.size, make=False)
        planned = planned_size(cell.model, header, cell.weights)
        size = planned or guessed_size(count, cell.file_type)
        make = header is None or self.store.find(self.recipe_key(cell)) is None
        return Load(cell, count, size, make=make)

    def _find_candidates(self, option: str) -> Candidates | None:
        place = getattr(self.settings, option)
        if place is None:
            return None
        value = self.settings.given[option]
        try:
            if isinstance(place, Path):
                return Candidates.in_folder(place)
            return Candidates.of_hub(hub_source(place, value), offline=self._offline)
        except OptionError:
            raise
        except OnDeviceError as error:
            raise value.error(str(error)) from error

    def _require_candidates(self) -> None:
        """Refuse a folder of which nothing is used: the run would gate something else."""
        if self._candidates is None or self._candidates.used():
            return
        names = self._candidates.names()
        there = f"it has {', '.join(names[:4])}" if names else "it has no GGUF file"
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        raise self.settings.given["artifacts"].error(
            f"nothing there is for a cell of this run; {there}{more}, a file for one is named"
            " MODEL...METHOD.gguf"
        )

    def _candidate(self, cell: Cell) -> Weights | None:
        where = self._before if cell.before and not self.compares_builds else self._candidates
        return where.find(cell.model, cell.weights) if where is not None else None

    def _place(self, model: Model) -> Weights:
        """Locate a model's source once; that it is nowhere is remembered too."""
        if model.name not in self._places:
            try:
                self._places[model.name] = locate(model, offline=self._offline)
            except OnDeviceError as error:
                self._places[model.name] = error
        found = self._places[model.name]
        if isinstance(found, OnDeviceError):
            raise found
        return found

    def _any_candidate(self, model: Model, cells: Sequence[Cell]) -> bool:
        return any(
            self._candidate(cell) is not None for cell in cells if cell.model.name == model.name
        )

    def _artifact(self, cell: Cell, file: GgufFile, origin: str, recipe: Recipe | None) -> Artifact:
        if origin != "candidate":
            source, name = self.source(cell.model)
            return Artifact(cell, file, origin, source, name, recipe, source)
        return Artifact(cell, file, origin, None, "", recipe, self._ancestor(cell.model))

    def _ancestor(self, model: Model) -> GgufFile | None:
        """Return what a candidate descends from, as far as it is here: nothing is fetched for it.

        That is the source, else the reference among the candidates.
        """
        place = self._places.get(model.name)
        if place is None:
            try:
                place = locate(model, offline=True)
            except MissingError as error:
                place = error
        if not isinstance(place, OnDeviceError) and place.here() is not None:
            return self._file(place)
        reference = self._candidates and self._candidates.find(model, REFERENCE)
        return self._file(reference) if reference else None

    def _file(self, weights: Weights) -> GgufFile:
        """Check headers and digests of a model file, downloading what is absent."""
        paths = weights.here() or self._fetched(weights)
        if paths not in self._files:
            file = self._checked(paths)
            for part, path in zip(weights.parts, paths, strict=True):
                stated = weights.digest(part)
                actual = sha256_of(path, self.settings.cache)
                if stated is not None and stated != actual:
                    raise BadFileError(
                        path,
                        f"its SHA-256 is {actual[:12]}..., it should be {stated[:12]}...; replace"
                        " it, or correct what states the digest",
                    )
            self._files[paths] = file
        return self._files[paths]

    def _fetched(self, weights: Weights) -> tuple[Path, ...]:
        return weights.fetch(lambda _done, _total: None)

    def _stored(self, path: Path) -> GgufFile:
        if (path,) not in self._files:
            self._files[path,] = self._checked((path,))
        return self._files[path,]

    def _checked(self, paths: tuple[Path, ...]) -> GgufFile:
        header = read_model(paths)
        if not runtime_knows(header.architecture):
            raise BadFileError(
                paths[0],
                f"architecture '{header.architecture}' is unknown to {self.runtime.version}",
            )
        digests = [sha256_of(path, self.settings.cache) for path in paths]
        joined = hashlib.sha256("".join(digests).encode()).hexdigest()
        return GgufFile(paths, digests[0] if len(digests) == 1 else joined, header)
