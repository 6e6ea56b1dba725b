"""A model as the catalog or the user's own words name it, and a cell of the matrix."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from .method import Method, method_of

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ModelSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One place where a model's full-precision (or best available) weights may be.

    Exactly one of ``path``, ``package`` and ``repo`` is set.

    Attributes:
        path: A GGUF file; of a split model, any of its parts.
        package: An installed Python package, with ``file`` in it and ``install`` to get it.
        repo: A repository of the hub, ``owner/name``.
        file: The file in package or repository. A repository without one is asked what it has.
        files: How the repository names its files, with ``{method}`` for the file type; without
            it a file is known by the file type at the end of its name.
        revision: Branch, tag or commit of the repository; the default branch without it.
        install: How the package is installed.
        sha256: Digest that the file must have.
    """

    path: str | None = None
    package: str | None = None
    repo: str | None = None
    file: str | None = None
    files: str | None = None
    revision: str | None = None
    install: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("path", "package", "repo") if getattr(self, name) is not None]
        if len(given) != 1:
            had = f"it has {' and '.join(given)}" if given else "it has none of them"
            raise ValueError(f"a source has one of path, package and repo; {had}")
        if self.package is not None and not self.file:
            raise ValueError("a source in a package needs the name of the file in it")
        if self.repo is not None and not _REPO.fullmatch(self.repo):
            raise ValueError(f"'{self.repo}' is not of the form owner/name")
        if self.files is not None and "{method}" not in self.files:
            raise ValueError(f"files = '{self.files}' has no {{method}} in it")
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise ValueError("sha256 is not 64 hexadecimal digits in lower case")

    def __str__(self) -> str:
        """Say the place in words, as errors and the report do."""
        if self.package is not None:
            return f"pkg:{self.package}/{self.file}"
        if self.repo is not None:
            file = f":{self.file}" if self.file else ""
            return f"hf:{self.repo}{file}" + (f"@{self.revision}" if self.revision else "")
        return Path(self.path or "").name


class Dimensions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shape of a decoder-only transformer: what its tensor table follows from.

    Attributes:
        architecture: llama.cpp's name: ``llama``, ``qwen2``, ``qwen3``, ``gemma3``.
        layers: Number of repeating layers.
        hidden: Length of the hidden state, which is the row length of most matrices.
        heads: Attention heads.
        kv_heads: Heads of keys and values, fewer than ``heads`` in grouped-query attention.
        head_size: Length of one head.
        feed_forward: Length of the feed-forward's inner state.
        vocabulary: Tokens, as rows of the embedding.
        tied: The embedding is the output matrix too and is stored once.
        rope_factors: The file has a table of rotary frequencies, as Llama 3 has.
    """

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int
    vocabulary: int
    tied: bool
    rope_factors: bool = False


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A language model under test.

    Attributes:
        name: The name that makes up cell ids and baseline folders.
        family: Models of one family share tokenizer and training; empty if unknown.
        parameters: Number of weights that the publisher states; None if unknown.
        license: The licence of the weights, as the publisher names it.
        gated: The publisher gives the original to those who accept the licence on its page.
        dimensions: Its shape, None if unknown: what it will take is then guessed from its files.
        aliases: Other beginnings of file names that mean this model.
        text: The evaluation and calibration text that ships for it; the common one without.
        tasks: The sets of questions that ship for it; the common one without.
        sources: Where its weights may be, tried in order.
    """

    name: str = ""
    family: str = ""
    parameters: int | None = None
    license: str = ""
    gated: bool = False
    dimensions: Dimensions | None = None
    aliases: tuple[str, ...] = ()
    text: str = ""
    tasks: tuple[str, ...] = ()
    sources: tuple[ModelSource, ...] = ()


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """A model under a method on a device: one column of parametrized items.

    ``method`` is the method's name with its variants. ``reference`` marks the cell that loss is
    measured against; ``before`` the same cell of the release or build that this one is compared
    with.
    """

    model: Model
    method: str
    reference: bool = False
    before: bool = False

    @property
    def id(self) -> str:
        """The cell's id in test ids, reports and baselines."""
        return f"{self.model.name}-{self.method}{' (before)' if self.before else ''}"

    @property
    def way(self) -> Method:
        """The method, read: file type and variants."""
        return method_of(self.method)

    @property
    def file_type(self) -> str:
        """The llama.cpp file type that the method makes."""
        return self.way.file_type

    @property
    def weights(self) -> str:
        """The method without what only concerns how the weights are run."""
        return self.way.weights

    @property
    def predecessor(self) -> Cell:
        """The cell that this one is compared with."""
        return msgspec.structs.replace(self, before=True)


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What a law is held for: the cells of a model, or of the models of a family.

    ``name`` stands for the cells in test ids and reports; it has the type of the KV cache where
    that is not the plain one, since cells of different caches do not compare.
    """

    name: str
    cells: tuple[Cell, ...]
