"""A model as the catalog or the user's own words name it, and a cell of the matrix."""

from __future__ import annotations

from pathlib import Path

import msgspec


class ModelSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One place where a model's full-precision (or best available) weights may be.

    Exactly one of ``path``, ``package`` and ``repo`` is set; ``file`` goes with the last two.
    """

    path: str | None = None
    package: str | None = None
    repo: str | None = None
    file: str | None = None
    install: str | None = None

    def __str__(self) -> str:
        """Say the place in words, as errors and the report do."""
        if self.package is not None:
            return f"pkg:{self.package}/{self.file}"
        if self.repo is not None:
            return f"hf:{self.repo}:{self.file}"
        return Path(self.path or "").name


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A language model under test.

    Attributes:
        name: The name that makes up cell ids and baseline folders.
        family: Models of one family share tokenizer and training; empty if unknown.
        parameters: Number of weights that the publisher states; None if unknown.
        license: The licence of the weights, as the publisher names it.
        aliases: Other beginnings of file names that mean this model.
        sources: Where its weights may be, tried in order.
    """

    name: str = ""
    family: str = ""
    parameters: int | None = None
    license: str = ""
    aliases: tuple[str, ...] = ()
    sources: tuple[ModelSource, ...] = ()


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """A model under a method on a device: one column of parametrized items.

    ``reference`` marks the cell that loss is measured against.
    """

    model: Model
    method: str
    reference: bool = False

    @property
    def id(self) -> str:
        """The cell's id in test ids, reports and baselines."""
        return f"{self.model.name}-{self.method}"
