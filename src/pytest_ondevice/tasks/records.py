"""Records of a JSON-lines file that nobody vouches for: one object per line, with its place."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from ..errors import BadFileError
from ..storage.files import decode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MOST_BYTES = 2**28
"""A larger file is taken for a mistake."""

MOST_LINE = 2**20
"""Bytes of a line; a longer one holds no question that a small model could be asked."""

MOST_LINES = 2 * 10**6
"""Lines, blank ones too."""

MOST_NAME = 200
"""Characters of a name: an item's, or that of its group."""

_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"


class Mistake(Exception):  # noqa: N818  (the user's, told as a BadFileError)
    """Something in a record cannot be what it means; ``place`` says where inside it."""

    def __init__(self, problem: str, place: str = "") -> None:
        super().__init__(problem)
        self.place = place


@dataclass(frozen=True, slots=True)
class Record:
    """A JSON object of the file, which knows its place and hands out its values checked.

    Attributes:
        content: Its keys and values.
        line: The line that it stands on, counted from 1.
        raw: That line's bytes.
        place: Where it is inside the line's object, e.g. ``$.question``.
    """

    content: Mapping[str, object]
    line: int
    raw: bytes = b""
    place: str = "$"

    def mistake(self, problem: str, key: str = "") -> Mistake:
        """Make the error about a key's value, or about the object itself."""
        return Mistake(problem, f"{self.place}.{key}" if key else self.place)

    def value(self, key: str) -> object:
        """Return a value that has to be there.

        Raises:
            Mistake: The key is missing.
        """
        if key not in self.content:
            raise self.mistake(f"the key '{key}' is missing")
        return self.content[key]

    def text(self, key: str) -> str:
        """Return a text that is not blank.

        Raises:
            Mistake: It is none.
        """
        return self._text(self.value(key), key)

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts, none of them blank.

        Raises:
            Mistake: It is none.
        """
        given = self._list(key, "texts")
        return tuple(self._text(one, f"{key}[{place}]") for place, one in enumerate(given))

    def flags(self, key: str) -> tuple[bool, ...]:
        """Return a list of zeros and ones.

        Raises:
            Mistake: It is none.
        """
        given = self._list(key, "zeros and ones")
        for place, one in enumerate(given):
            if isinstance(one, bool) or not isinstance(one, int) or one not in {0, 1}:
                problem = f"it is {shown(one)}; a label here is 1 (right) or 0 (wrong)"
                raise self.mistake(problem, f"{key}[{place}]")
        return tuple(bool(one) for one in given)

    def record(self, key: str) -> Record:
        """Return an object inside this one.

        Raises:
            Mistake: It is none.
        """
        return self._record(self.value(key), key)

    def records(self, key: str) -> tuple[Record, ...]:
        """Return a list of objects inside this one.

        Raises:
            Mistake: It is none.
        """
        given = self._list(key, "objects")
        return tuple(self._record(one, f"{key}[{place}]") for place, one in enumerate(given))

    def _list(self, key: str, what: str) -> list[object]:
        given = self.value(key)
        if not isinstance(given, list):
            raise self.mistake(f"expected a list of {what}, got {kind(given)}", key)
        return given

    def _text(self, given: object, key: str) -> str:
        if not isinstance(given, str):
            raise self.mistake(f"expected a text, got {kind(given)}", key)
        if problem := text_problem(given):
            raise self.mistake(problem, key)
        return given

    def _record(self, given: object, key: str) -> Record:
        if not isinstance(given, dict):
            raise self.mistake(f"expected an object, got {kind(given)}", key)
        return Record(given, self.line, place=f"{self.place}.{key}")


def read_records(path: Path) -> Iterator[Record]:
    """Read the objects of a file, one per line; blank lines count but hold none.

    Raises:
        BadFileError: It cannot be read, or a line is no JSON object; the message names the line.
    """
    first = True
    for number, line in _lines(path):
        try:
            yield _record(line, number, first=first)
        except Mistake as mistake:
            raise BadFileError(path, f"line {number}: {mistake}") from None
        first = False


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Read the lines that are not blank, bounded, without a byte order mark and outer blanks."""
    try:
        # Before opening, because opening a named pipe waits for its writer.
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadFileError(path, "it is no regular file; give a file of JSON lines")
        if status.st_size > MOST_BYTES:
            problem = f"it has {status.st_size} bytes; a set of tasks has {MOST_BYTES} at most"
            raise BadFileError(path, problem)
        with path.open("rb") as file:
            for number in range(1, MOST_LINES + 2):
                line = file.readline(MOST_LINE + 1)
                if not line:
                    return
                if number == 1:
                    line = line.removeprefix(_BOM)
                stripped = line.strip(_BLANK)
                if len(line) > MOST_LINE and not stripped.startswith(b"["):
                    problem = f"it is longer than {MOST_LINE} bytes; one record per line is needed"
                    raise BadFileError(path, f"line {number}: {problem}")
                if stripped:
                    yield number, stripped
    except OSError as error:
        raise BadFileError(path, f"cannot read it: {error.strerror}") from error
    except ValueError as error:  # a NUL in the path
        raise BadFileError(path, f"it is no path: {error}") from error
    raise BadFileError(path, f"it has more than {MOST_LINES} lines; that is no set of tasks")


def _record(line: bytes, number: int, *, first: bool) -> Record:
    if line.startswith(b"["):
        whole = "the file is one JSON array" if first else "it is a JSON array"
        raise Mistake(f"{whole}; one record per line is needed, without brackets around them")
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Mistake(f"it is not UTF-8 (byte {error.start} of the line)") from None
    if b"\0" in line:
        at = line.index(b"\0")
        raise Mistake(f"it has a NUL byte (byte {at} of the line); a text file is needed")
    try:
        content = decode(line, object)
    except msgspec.DecodeError as error:
        problem = str(error).partition(" - at ")[0]
        if "truncated" in problem:
            raise Mistake(
                "its JSON does not end on this line: the file was cut off, or a record is spread"
                " over several lines; one whole record per line is needed"
            ) from None
        problem = problem.removeprefix("JSON is malformed: ")
        raise Mistake(f"it is no JSON: {problem}") from None
    if not isinstance(content, dict):
        raise Mistake(f"expected a record, a JSON object, got {kind(content)}")
    return Record(content, number, line)


def text_problem(text: str) -> str:
    """Say what is wrong with a text that is to be asked or scored; empty if nothing is."""
    if not text.strip():
        return "the text is empty"
    return "the text has a NUL character" if "\0" in text else ""


def name_problem(name: str) -> str:
    """Say what is wrong with a name that reports will show; empty if nothing is."""
    if not name.strip():
        return "the name is empty"
    if len(name) > MOST_NAME:
        return f"the name has {len(name)} characters; {MOST_NAME} is the most"
    if not name.isprintable():
        return f"the name {shown(name)} has characters that cannot be printed"
    return ""


def shown(given: object) -> str:
    """Show what was given on one line, shortened."""
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given) if abs(given) < 10**20 else "a huge integer"
    if isinstance(given, str):
        return repr(given) if len(given) <= 60 else f"{given[:56]!r}..."
    return kind(given)


def kind(given: object) -> str:
    """Name the kind of a JSON value in words."""
    if given is None:
        return "null"
    if isinstance(given, bool):  # an integer too, so it comes first
        return "true" if given else "false"
    if isinstance(given, str):
        return "a text"
    if isinstance(given, int | float):
        return "a number"
    return "a list" if isinstance(given, list) else "an object"
