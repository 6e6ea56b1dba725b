"""Whether a calibration text and an evaluation text are apart.

A quantization that was tuned on the text that judges it looks better than it is.
"""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BadFileError, OnDeviceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

WORDS = 12
"""Words of a run. Two authors rarely share so many in a row by chance."""

MOST = 0.01
"""The share of the evaluation text's runs that may also be in the calibration text."""

_INSIDE = "'\u2019\u02bc\u00ad"
"""Apostrophes and the soft hyphen: what stands inside a word and is no part of it."""

_EACH = "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_ITEM = re.compile(f"[{_EACH}]|[^\\W_{_EACH}]+")
"""A word; in Chinese and Japanese, which put no spaces between words, a character."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """What two texts have in common.

    Attributes:
        share: The share of the evaluation text's runs of words that the calibration text has too,
            0 to 1.
        example: The first such run, in lower case and without punctuation; empty for none.
    """

    share: float
    example: str


def items(text: str) -> list[str]:
    """Split a text into its words, without case, accents, punctuation and layout."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    return _ITEM.findall(
        "".join(
            char
            for char in plain
            if char not in _INSIDE and not unicodedata.category(char).startswith("M")
        )
    )


def shared(calibration: Iterable[str], evaluation: Iterable[str], words: int = WORDS) -> Overlap:
    """Say what share of the evaluation text the calibration text has too, by runs of words.

    Runs do not go beyond a part. A part of fewer words than a run is one run; only a calibration
    text that has it as a whole shares it.

    Args:
        calibration: The parts of the calibration text.
        evaluation: The parts of the evaluation text.
        words: Words of a run.
    """
    found = _compare(
        {str(i): part for i, part in enumerate(calibration)},
        {str(i): part for i, part in enumerate(evaluation)},
        words,
    )
    return Overlap(found.share, found.example)


def require_apart(
    calibration: Iterable[str | os.PathLike[str]], evaluation: Iterable[str | os.PathLike[str]]
) -> None:
    """Make sure that a model is not calibrated on the text that judges it.

    Args:
        calibration: The files of the calibration text.
        evaluation: The files of the evaluation text.

    Raises:
        OnDeviceError: More than one percent of the evaluation text's runs of words are in the
            calibration text, a file is the same in both, or one cannot be read.
    """
    right = (
        "a quantization that is tuned on the text that judges it looks better than it is, so give a"
        " calibration text that has nothing from there"
    )
    ours, theirs = _read(calibration), _read(evaluation)
    for name, content in ours.items():
        for other, same in theirs.items():
            if content == same:
                raise OnDeviceError(
                    f"{name}: the calibration text is the evaluation text {other}; {right}"
                )
    found = _compare(ours, theirs, WORDS)
    if found.share > MOST:
        raise OnDeviceError(
            f"{found.source}: the calibration text has {_percent(found.share)} of the evaluation"
            f" text's runs of {WORDS} words, such as '{found.example}' of {found.place}; at most"
            f" {_percent(MOST)} may be common: {right}"
        )


def _read(paths: Iterable[str | os.PathLike[str]]) -> dict[str, str]:
    held: dict[str, str] = {}
    for path in paths:
        try:
            held[os.fspath(path)] = Path(path).read_text("utf-8")
        except OSError as error:
            raise BadFileError(path, f"cannot read it: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise BadFileError(path, f"it is not UTF-8 text (byte {error.start})") from error
    return held


@dataclass(frozen=True, slots=True)
class _Found:
    share: float
    example: str = ""
    source: str = ""
    place: str = ""


def _compare(calibration: Mapping[str, str], evaluation: Mapping[str, str], words: int) -> _Found:
    """Count the evaluation text's runs that are in the calibration text; remember the first."""
    total = 0
    places: dict[tuple[str, ...], list[str]] = {}
    lengths = {words}
    for name, text in evaluation.items():
        for run in _runs(items(text), words):
            places.setdefault(run, []).append(name)
            lengths.add(len(run))
            total += 1
    sources: dict[tuple[str, ...], str] = {}
    for name, text in calibration.items():
        held = items(text)
        for length in lengths:
            for start in range(len(held) - length + 1):
                run = tuple(held[start : start + length])
                if run in places:
                    sources.setdefault(run, name)
    common = sum(len(places[run]) for run in sources)
    if not common:
        return _Found(0.0)
    first = next(run for run in places if run in sources)
    example = re.sub(f"(?<=[{_EACH}]) (?=[{_EACH}])", "", " ".join(first))
    return _Found(common / total, example, sources[first], places[first][0])


def _runs(held: list[str], words: int) -> Iterator[tuple[str, ...]]:
    """Give every run of so many words; of fewer words in all, the one run that they are."""
    if 0 < len(held) < words:
        yield tuple(held)
    for start in range(len(held) - words + 1):
        yield tuple(held[start : start + words])


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
