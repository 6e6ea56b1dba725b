"""Release candidates: ready-made files of a shelf, matched to cells by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import BadFileError, MissingError, NotCachedError, OnDeviceError
from .hub import HubShelf
from .shelf import Folder, Weights, begins, claims, grouped, matches

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ..model.catalog import Model, ModelSource
    from .shelf import Shelf


class Candidates:
    """The model files of a folder or of a repository of the hub.

    A plain folder matches ``MODEL...METHOD.gguf``: the name begins with the model's name or one
    of its aliases and ends with the method, both in any case, parts joined by ``-``, ``_`` or
    ``.``; the files of a split model are one candidate. A method's variants are part of its name,
    in the order that methods are written in: ``tiny-Q2_K+pure+imatrix.gguf``. A path with
    ``{method}`` (and ``{model}``) in it is a pattern of its own. In a repository, which is of one
    model, the method at the end is enough.
    """

    def __init__(self, shelf: Shelf, place: str, pattern: str | None = None) -> None:
        self.place = place
        self._shelf = shelf
        self._pattern = pattern
        self._of_hub = isinstance(shelf, HubShelf)
        self._groups = tuple(grouped(shelf.sizes()))
        self._taken: dict[tuple[str, ...], tuple[str, str]] = {}

    @classmethod
    def in_folder(cls, place: Path) -> Candidates:
        """Look into a folder, or into that of a pattern.

        Raises:
            BadFileError: There is no such folder, the pattern has no method, a bad manifest.
        """
        pattern = place.name if "{" in place.name else None
        folder = place.parent if pattern else place
        if not folder.is_dir():
            raise BadFileError(folder, "there is no such folder")
        if pattern is not None and "{method}" not in pattern:
            raise BadFileError(place, "the pattern has no {method}, so one file would be them all")
        return cls(Folder(folder), str(place), pattern)

    @classmethod
    def of_hub(cls, source: ModelSource, *, offline: bool) -> Candidates:
        """List a repository, from its cache where it cannot be asked.

        Raises:
            MissingError: It cannot be asked, and nothing of it is in the cache.
        """
        shelf = HubShelf(source, offline=offline)
        try:
            shelf.ask()
        except MissingError:
            if not shelf.cached():
                if shelf.offline:
                    raise NotCachedError(shelf.repo, None) from None
                raise
        return cls(shelf, str(source), source.files)

    def find(self, model: Model, method: str) -> Weights | None:
        """Return the candidate for a cell, None if there is none.

        Raises:
            OnDeviceError: Two files claim the same cell, or one file two.
        """
        found = [parts for parts in self._groups if self._matches(parts, model, method)]
        if self._of_hub:
            found = found and [min(found, key=lambda parts: (len(parts[0]), parts))]
        if len(found) > 1:
            raise OnDeviceError(
                f"{self.place}: {found[0][0]} and {found[1][0]} both claim to be"
                f" {model.name} {method}; keep one, or give a pattern such as DIR/NAME-{{method}}"
                ".gguf"
            )
        for parts in found:
            owner = self._taken.setdefault(parts, (model.name, method))
            if owner != (model.name, method):
                raise OnDeviceError(
                    f"{self.place}: {parts[0]} would be {' '.join(owner)} and {model.name}"
                    f" {method}; give a pattern with {{model}} and {{method}} in it"
                )
            return Weights(self._shelf, parts, f"{self.place}", method)
        return None

    def methods(self, models: Iterable[Model], known: Iterable[str]) -> tuple[str, ...]:
        """Name the methods of which there are files of these models, in the order of ``known``."""
        models = tuple(models)
        return tuple(
            method
            for method in known
            if any(
                self._matches(parts, model, method) for parts in self._groups for model in models
            )
        )

    def unmatched(self) -> tuple[str, ...]:
        """Name the files that no cell has taken; of a split model the first."""
        return tuple(parts[0] for parts in self._groups if parts not in self._taken)

    def used(self) -> bool:
        """Whether any cell has taken any file."""
        return bool(self._taken)

    def names(self) -> tuple[str, ...]:
        """Name the candidates; a split model by its first part."""
        return tuple(parts[0] for parts in self._groups)

    def _matches(self, parts: tuple[str, ...], model: Model, method: str) -> bool:
        if self._pattern is not None:
            return matches(parts, self._pattern, model.name, method)
        if not claims(parts, method):
            return False
        return self._of_hub or any(begins(parts, name) for name in (model.name, *model.aliases))
