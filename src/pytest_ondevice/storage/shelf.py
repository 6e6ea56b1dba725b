"""Shelves: places that hold model files, each of one part or of several, and what their names say.

A folder and a repository of the hub are shelves alike: they list names with sizes and digests, and
fetching a part gives a path on this machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..errors import BadFileError, MissingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

MANIFEST = "SHA256SUMS"
"""The manifest of a folder of candidates, as ``sha256sum *.gguf > SHA256SUMS`` writes it."""

PRECISE = ("F16", "BF16", "F32")
"""File types that keep full precision, the one of the reference first."""

LESS_PRECISE = (
    *("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1"),
    *("IQ4_NL", "IQ4_XS", "Q4_0"),
)
"""What stands in as a source where full precision is nowhere, the best first."""

_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_MANIFEST_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


class Shelf(Protocol):
    """A place with model files."""

    def sizes(self) -> Mapping[str, int]:
        """Name everything there, with its size in bytes."""

    def digest(self, name: str) -> str | None:
        """Return the SHA-256 that the place states for a file, None if it states none."""

    def here(self, name: str) -> Path | None:
        """Return a file's path if it is on this machine already."""

    def fetch(self, name: str, tick: Callable[[float, float], None]) -> Path:
        """Bring a file to this machine; ``tick`` is told bytes done and in all."""

    def commit(self, name: str) -> str:
        """Return the commit that a file at hand is of; empty where there are none."""


@dataclass(frozen=True)
class Weights:
    """One model file of a shelf: its parts in order, one if it is not split.

    Attributes:
        shelf: Where it is.
        parts: Names of its parts on the shelf.
        place: The same in words, as the report says it.
        file_type: The llama.cpp file type that its name claims, None if none.
        sha256: The digest that it must have, whatever the shelf states; of one part only.
    """

    shelf: Shelf
    parts: tuple[str, ...]
    place: str
    file_type: str | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The name of the first part, without folders."""
        return self.parts[0].rpartition("/")[2]

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        sizes = self.shelf.sizes()
        return sum(sizes[part] for part in self.parts)

    def here(self) -> tuple[Path, ...] | None:
        """Return the paths of the parts if all are on this machine."""
        found = tuple(self.shelf.here(part) for part in self.parts)
        return tuple(path for path in found if path) if all(found) else None

    @property
    def missing(self) -> int:
        """Bytes that are not on this machine."""
        sizes = self.shelf.sizes()
        return sum(sizes[part] for part in self.parts if self.shelf.here(part) is None)

    def fetch(self, tick: Callable[[float, float], None]) -> tuple[Path, ...]:
        """Bring every part to this machine."""
        sizes, paths, before = self.shelf.sizes(), [], 0

        for part in self.parts:

            def tell(done: float, _: float, before: int = before) -> None:
                tick(before + done, self.size)

            paths.append(self.shelf.fetch(part, tell))
            before += sizes[part]
        return tuple(paths)

    def digest(self, part: str) -> str | None:
        """Return the SHA-256 that a part must have, None if nobody states one."""
        return (self.sha256 if len(self.parts) == 1 else None) or self.shelf.digest(part)


class Folder:
    """A folder, or one file in it, as a shelf. A manifest in it pins every digest."""

    def __init__(self, folder: Path, only: str | None = None) -> None:
        self.folder = folder
        self._names = [only] if only else None
        self._stated = _manifest(folder / MANIFEST) if only is None else {}
        self._sizes: dict[str, int] | None = None

    def sizes(self) -> Mapping[str, int]:
        """Name the GGUF files, with their sizes."""
        if self._sizes is None:
            if self._names is None:
                paths = sorted(path for path in self.folder.iterdir() if path.suffix == ".gguf")
            else:
                # Of a split model's part, all its siblings.
                paths = sorted(
                    path
                    for path in (self.folder / self._names[0]).parent.iterdir()
                    if _stem(path.name) == _stem(self._names[0]) or path.name == self._names[0]
                )
            self._sizes = {path.name: path.stat().st_size for path in paths if path.exists()}
        return self._sizes

    def digest(self, name: str) -> str | None:
        """Return the manifest's digest.

        Raises:
            BadFileError: There is a manifest, and the file is not in it.
        """
        if self._stated and name not in self._stated:
            raise BadFileError(
                self.folder / MANIFEST,
                f"{name} is not in it; list it, or take it out of the folder",
            )
        return self._stated.get(name)

    def listed(self) -> Mapping[str, str]:
        """Return the manifest: digests by name; empty if there is none."""
        return self._stated

    def here(self, name: str) -> Path | None:
        """Return the file's path."""
        return self.folder / name

    def fetch(self, name: str, tick: Callable[[float, float], None]) -> Path:
        """Return the file's path: it is here."""
        return self.folder / name

    def commit(self, name: str) -> str:
        """Return nothing: a folder has no revisions."""
        return ""


def of_file(path: Path, place: str, sha256: str | None = None) -> Weights:
    """Make the weights of a file on this machine; of a split model's part, with all beside it.

    Raises:
        MissingError: There is no such file.
    """
    if not path.is_file() and not path.is_fifo():
        raise MissingError(f"there is no file {path}")
    shelf = Folder(path.parent, only=path.name)
    parts = next(group for group in grouped(shelf.sizes()) if path.name in group)
    return Weights(shelf, parts, place, None, sha256)


def _manifest(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise BadFileError(path, f"cannot read it: {reason}") from error
    stated: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _MANIFEST_LINE.fullmatch(line.strip())
        if match is None:
            raise BadFileError(
                path, f"line {number} is not of the form DIGEST  NAME, as of sha256sum"
            )
        name = match[2].removeprefix("./")
        if stated.setdefault(name, match[1].lower()) != match[1].lower():
            raise BadFileError(path, f"line {number} states another digest of {name}")
    for name in stated:
        if name.endswith(".gguf") and not (path.parent / name).exists():
            raise BadFileError(path, f"{name} is listed, and there is no such file")
    return stated


def grouped(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Put the parts of split models together; each group is in the order of its parts.

    A group may be incomplete: reading its headers will say so.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        match = _PART.search(name.removesuffix(".gguf"))
        whole = f"{name.removesuffix('.gguf')[: match.start()]}|{match[2]}" if match else name
        groups.setdefault(whole, []).append(name)
    return [tuple(sorted(group)) for group in groups.values()]


def whole(parts: tuple[str, ...]) -> bool:
    """Whether a group has all the parts that its names count."""
    match = _PART.search(parts[0].removesuffix(".gguf"))
    return match is None or len(parts) == int(match[2])


def _stem(name: str) -> str:
    """Return a name without folders, extension and the number of a part."""
    return _PART.sub("", name.rpartition("/")[2].removesuffix(".gguf"))


def stem(parts: tuple[str, ...]) -> str:
    """Return what a model file's name says, in lower case."""
    return _stem(parts[0]).casefold()


def claims(parts: tuple[str, ...], file_type: str) -> bool:
    """Whether a name ends in a file type, after one of ``-_.``; fp16 is a spelling of F16."""
    spellings = {file_type.casefold(), file_type.casefold().replace("f16", "fp16")}
    text = stem(parts)
    return any(re.search(rf"(?:^|[-_.]){re.escape(name)}$", text) for name in spellings)


def claimed(parts: tuple[str, ...], file_types: Iterable[str]) -> str | None:
    """Return the file type that a name ends in; the longest, as Q4_K_S is not Q4_K."""
    found = [name for name in file_types if claims(parts, name)]
    return max(found, key=len, default=None)


def matches(parts: tuple[str, ...], pattern: str, model: str, method: str) -> bool:
    """Whether a name is what a pattern with ``{model}`` and ``{method}`` makes of a cell."""
    wanted = pattern.replace("{model}", model).replace("{method}", method)
    return stem(parts) == _stem(wanted).casefold()


def begins(parts: tuple[str, ...], name: str) -> bool:
    """Whether a file's name begins with a model's."""
    text, name = stem(parts), name.casefold()
    return text.startswith(name) and not text[len(name) : len(name) + 1].isalnum()
