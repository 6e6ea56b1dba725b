"""Evaluation and calibration text: those that ship, or the user's own, and their digests."""

from __future__ import annotations

import functools
import hashlib
from importlib import resources
from pathlib import Path

from .errors import MissingError
from .probe.protocol import Text

VERSION = "v1"


@functools.lru_cache(maxsize=8)
def texts(own: Path | None) -> tuple[tuple[Text, ...], str]:
    """Return the text's files by kind, and the digest over their contents."""
    return _read(own, "text")


@functools.lru_cache(maxsize=8)
def calibration_texts(own: Path | None) -> tuple[tuple[Text, ...], str]:
    """Return the calibration text's files by kind, and the digest over their contents."""
    return _read(own, "calibration")


def _read(own: Path | None, what: str) -> tuple[tuple[Text, ...], str]:
    if own is not None:
        found: tuple[Text, ...] = (Text("text", str(own)),)
    else:
        folder = resources.files("pytest_ondevice") / "data" / what / VERSION
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
