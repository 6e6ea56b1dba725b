"""Evaluation and calibration text: those that ship, or the user's own, and their digests."""

from __future__ import annotations

import functools
import hashlib
from importlib import resources
from pathlib import Path

from .errors import MissingError
from .probe.protocol import Text

COMMON = "v1"
"""The text of models that have none of their own."""


@functools.lru_cache(maxsize=8)
def texts(own: Path | None, name: str = "") -> tuple[tuple[Text, ...], str]:
    """Return the text's files by kind, and the digest over their contents.

    Args:
        own: The user's text, which goes before all others.
        name: The text that a model's catalog entry names; empty for the common one.
    """
    return _read(own, "text", name or COMMON)


@functools.lru_cache(maxsize=8)
def calibration_texts(own: Path | None, name: str = "") -> tuple[tuple[Text, ...], str]:
    """Return the calibration text's files by kind, and the digest over their contents."""
    return _read(own, "calibration", name or COMMON)


def ships(name: str) -> bool:
    """Whether there is a text of this name."""
    folder = resources.files("pytest_ondevice") / "data" / "text"
    # Among the names that there are: as a path, '..' would be one, too.
    return name in {path.name for path in folder.iterdir() if path.is_dir()}


def _read(own: Path | None, what: str, name: str) -> tuple[tuple[Text, ...], str]:
    if own is not None:
        found: tuple[Text, ...] = (Text("text", str(own)),)
    else:
        folder = resources.files("pytest_ondevice") / "data" / what / name
        found = tuple(
            Text(Path(path.name).stem, str(path))
            for path in sorted(folder.iterdir(), key=lambda path: path.name)
            if path.name.endswith(".txt")
        )
    digest = hashlib.sha256()
    for text in found:
        content = Path(text.path).read_bytes()
        digest.update(f"{text.kind}\0{len(content)}\0".encode() + content)
    return found, digest.hexdigest()[:16]


def check(own: Path | None) -> None:
    """Check that the user's text can be read.

    Raises:
        MissingError: It cannot; the sentence says why.
    """
    if own is None:
        return
    try:
        content = own.read_bytes()
        content.decode("utf-8")
    except OSError as error:
        raise MissingError(f"cannot read it: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise MissingError(f"it is not UTF-8 text (byte {error.start})") from error
    if not content.strip():
        raise MissingError("it is empty")
