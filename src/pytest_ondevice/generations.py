"""Greedy continuations as text snapshots: one file per cell and device tier, kept by syrupy.

syrupy is an extra, so whoever imports this module makes sure first that its plugin is loaded. It
compares, writes and counts; where the files are and which are its concern is decided here.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syrupy.assertion import SnapshotAssertion
from syrupy.data import SnapshotCollection, SnapshotCollections
from syrupy.extensions.base import AbstractSyrupyExtension
from syrupy.location import PyTestLocation

from .api import Face
from .errors import BadFileError
from .model.report import CheckResult
from .model.verdict import Verdict
from .state import check_id
from .storage.files import why_unwritable, write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pytest

    from .api import Generation
    from .model.catalog import Cell
    from .state import State

FOLDER = "generations"
"""The folder within a tier's baselines."""

EXTENSION = "txt"
UPDATE = "--snapshot-update"
TOKENS_PER_LINE = 12

_HINT = f"restore it, or remove it and record again with {UPDATE}"
_NAME = re.compile(r"[\w-]+")
_NUMBER = re.compile(r"\d{1,9}")
# Lines of a text are indented, so that none looks like a heading.
_SECTION = re.compile(
    r"^# (?P<name>.+), at most (?P<most>\d{1,9}) tokens\n"
    r"prompt\n(?P<prompt>(?:  .*\n)+)"
    r"continuation\n(?P<text>(?:  .*\n)+)"
    r"tokens\n(?P<tokens>(?:  .*\n)*)",
    re.MULTILINE,
)
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
# What JSON leaves as it is though an editor, a terminal or UTF-8 would not.
_UNSEEN = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Continuation:
    """How a model went on greedily.

    Attributes:
        name: A word for the prompt.
        prompt: The text that was continued.
        max_tokens: How many tokens were asked for at most.
        text: The continuation.
        tokens: Its token ids.
    """

    name: str
    prompt: str
    max_tokens: int
    text: str = ""
    tokens: tuple[int, ...] = ()

    @property
    def asked(self) -> tuple[str, str, int]:
        """What was asked; only answers to the same can be compared."""
        return self.name, self.prompt, self.max_tokens

    def difference(self, other: Continuation) -> str:
        """Name it, and say from which token on another continuation differs; empty if nowhere."""
        if (self.text, self.tokens) == (other.text, other.tokens):
            return ""
        if self.tokens == other.tokens:
            return f"{self.name} in its text alone"
        return f"{self.name} from token {_common(self.tokens, other.tokens) + 1} on"


def render(cell: str, continuations: Sequence[Continuation]) -> str:
    """Write a cell's continuations as a text that is read in a diff."""
    lines = [f"Greedy continuations of {cell}"]
    for one in continuations:
        rows = [
            one.tokens[start : start + TOKENS_PER_LINE]
            for start in range(0, len(one.tokens), TOKENS_PER_LINE)
        ]
        lines += ["", f"# {one.name}, at most {one.max_tokens} tokens"]
        lines += ["prompt", *_quoted(one.prompt), "continuation", *_quoted(one.text)]
        lines += ["tokens", *("  " + " ".join(map(str, row)) for row in rows)]
    return "\n".join(lines) + "\n"


def parse(text: str, cell: str) -> tuple[Continuation, ...]:
    """Read what ``render`` wrote of a cell.

    Raises:
        ValueError: It is something else; the message names the line.
    """
    found = tuple(
        Continuation(
            name=match["name"],
            prompt=_unquoted(match["prompt"]),
            max_tokens=int(match["most"]),
            text=_unquoted(match["text"]),
            tokens=tuple(map(int, _NUMBER.findall(match["tokens"]))),
        )
        for match in _SECTION.finditer(text)
    )
    # What was not understood is not there again, so that the place where it stands differs.
    again = render(cell, found)
    if again != text:
        same = _common(text.split("\n"), again.split("\n"))
        raise ValueError(f"line {same + 1} is not as it was recorded for {cell}")
    return found


def read(path: Path) -> str | None:
    """Read a file; None where there is none.

    Raises:
        BadFileError: It cannot be read as text.
    """
    try:
        return path.read_text("utf-8")  # a checkout may have changed the line ends: they are undone
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BadFileError(path, f"cannot read it: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadFileError(path, f"it is not UTF-8 (byte {error.start}); {_HINT}") from error


def snapshot_path(state: State, cell: Cell) -> Path:
    """Name a cell's file; its tier's folder is the only one that a session ever looks into."""
    folder = state.settings.baselines / state.tier.name / FOLDER / cell.model.name
    return folder / f"{cell.method}.{EXTENSION}"


@dataclass(frozen=True)
class CellLocation(PyTestLocation):
    """Where a cell's snapshot is: among the baselines, wherever the test is."""

    path: Path

    def matches_snapshot_location(self, snapshot_location: str) -> bool:
        """Whether a file is this cell's; of any other syrupy would warn."""
        return snapshot_location == str(self.path)


class GenerationsExtension(AbstractSyrupyExtension):
    """Stores one text per cell in the place that its ``CellLocation`` names."""

    file_extension = EXTENSION

    def serialize(self, data: Any, **_: Any) -> str:
        """Return the text as it is."""
        return str(data)

    def discover_snapshots(self, **_: Any) -> SnapshotCollections:
        """Discover nothing, so that nothing counts as unused and nothing is ever deleted.

        A cell has one file. If this run compares it, it is in use; if not, it is another cell's,
        another tier's, or that of a cell that failed before.
        """
        return SnapshotCollections()

    @classmethod
    def get_location(cls, *, test_location: PyTestLocation, index: int | str) -> str:
        """Return the cell's file."""
        if isinstance(test_location, CellLocation):
            return str(test_location.path)
        return str(super().get_location(test_location=test_location, index=index))

    def read_snapshot_collection(self, *, snapshot_location: str) -> SnapshotCollection:
        """Return no snapshot: a file is asked for by its cell, never looked through."""
        return SnapshotCollection(location=snapshot_location)

    def read_snapshot_data_from_location(
        self, *, snapshot_location: str, snapshot_name: str, session_id: str
    ) -> str | None:
        """Return a file's text, None if it does not exist."""
        return read(Path(snapshot_location))

    @classmethod
    def write_snapshot_collection(
        cls, *, snapshot_collection: SnapshotCollection, **_: Any
    ) -> None:
        """Write a file, whole or not at all."""
        for snapshot in snapshot_collection:
            write_atomic(Path(snapshot_collection.location), str(snapshot.data).encode())

    def delete_snapshots(self, *, snapshot_location: str, snapshot_names: set[str]) -> None:
        """Delete nothing; what is no longer wanted, a person removes."""


class Continuations(Face):
    """Compares a cell's greedy continuations with those that were recorded on the same tier."""

    def __init__(self, request: pytest.FixtureRequest, cell: Cell) -> None:
        super().__init__(request, cell)
        given: Any = request.getfixturevalue("snapshot")
        if not isinstance(given, SnapshotAssertion):
            self._end(Verdict.FAIL, "the fixture 'snapshot' is not syrupy's; rename the other one")
        self._session = given.session
        option = request.config.getoption
        self._updates: bool = option("update_snapshots")
        self._adds: bool = option("update_new_snapshots_only", False)  # syrupy 5.1 and later

    def __call__(
        self,
        prompts: Mapping[str, str],
        generate: Callable[..., Generation],
        *,
        max_tokens: int = 24,
    ) -> None:
        """Continue prompts and hold texts and tokens against the snapshot; all must be equal.

        Without a snapshot of the same prompts the test is skipped as ``no baseline``, before
        anything is generated; ``--snapshot-update`` records one.

        Args:
            prompts: The prompts, by a word for each: letters, digits, ``_`` and ``-``.
            generate: Continues a prompt, as ``ondevice_model.generate`` does.
            max_tokens: How many tokens to generate at most.

        Raises:
            ValueError: A prompt's name is more than a word.
        """
        __tracebackhide__ = True
        for name in prompts:
            if not _NAME.fullmatch(name):
                raise ValueError(f"'{name}' cannot name a prompt; use letters, digits, _ and -")
        path = snapshot_path(self._state, self._cell)
        asked = [Continuation(name, prompt, max_tokens) for name, prompt in prompts.items()]
        known, then = self._guard(lambda: self._recorded(path))
        records = self._updates or (self._adds and known is None)
        comparable = [one.asked for one in then] == [one.asked for one in asked]
        if not comparable and not records:
            self._missing(path, known)
        if records and (problem := why_unwritable(path.parent)):
            hint = "choose another folder with --ondevice-baselines=DIR"
            self._end(Verdict.FAIL, f"{path.parent}: {problem}; {hint}")
        now = []
        for one in asked:
            made = generate(one.prompt, max_tokens=max_tokens)
            now.append(Continuation(*one.asked, text=made.text, tokens=tuple(made.tokens)))
        text = render(self._cell.id, now)
        snapshot = SnapshotAssertion(
            session=self._session,
            extension_class=GenerationsExtension,
            test_location=CellLocation(self._item, path),
            update_snapshots=records,
        )
        equal = snapshot == text
        if records:
            # At once: an interruption costs no cell that is done.
            self._guard(self._session.flush_snapshot_write_queue)
        changes = _changes(then, now) if comparable else "none of these prompts before"
        self._conclude(path, equal=equal, changes=changes, diff=_diff(known or "", text))

    def _recorded(self, path: Path) -> tuple[str | None, tuple[Continuation, ...]]:
        """Read the cell's file.

        Raises:
            BadFileError: It is something else.
        """
        text = read(path)
        try:
            return text, parse(text, self._cell.id) if text is not None else ()
        except ValueError as error:
            raise BadFileError(path, f"no recorded continuations: {error}; {_HINT}") from error

    def _missing(self, path: Path, known: str | None) -> None:
        __tracebackhide__ = True
        what = f"no snapshot {self._shown(path)}"
        if known is not None:
            what = f"not comparable with {self._shown(path)}: it holds other prompts"
        text = f"{what}; record one with the same command and {UPDATE}"
        self._end(Verdict.NO_BASELINE, text)

    def _conclude(self, path: Path, *, equal: bool, changes: str, diff: Sequence[str]) -> None:
        __tracebackhide__ = True
        check, shown = check_id(self._item), self._shown(path)
        message = f"the text of {shown}"
        if changes:
            message = f"recorded in {shown}: {changes}" if equal else changes
        verdict = Verdict.PASS if equal else Verdict.FAIL
        result = CheckResult(check=check, cell=self._cell.id, verdict=verdict, message=message)
        if equal:
            self._found.results.append(result)
            return
        lines = [
            f"{check} {self._cell.id}: {verdict}: {message}",
            f"  source    snapshot: {shown}",
            "  why       one artifact on one build and one class of CPUs has one greedy text",
            f"  update    the same command with {UPDATE}, if the new text is meant",
            *(f"  {line}" for line in diff),
        ]
        self._fail(result, "\n".join(lines))

    def _shown(self, path: Path) -> str:
        root = self._state.settings.rootdir
        return str(path.relative_to(root) if path.is_relative_to(root) else path)


class Reminder:
    """Says at the end of a session that updates snapshots what it did not update."""

    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter, config: pytest.Config
    ) -> None:
        """Name the other command."""
        if config.option.update_snapshots:
            terminalreporter.write_line(
                f"ondevice: {UPDATE} records texts only; measured baselines are recorded with"
                " --ondevice-update"
            )


def _quoted(text: str) -> list[str]:
    """Write a text as JSON strings, one per line of it: blanks at an end are seen and kept."""
    return [
        "  " + _UNSEEN.sub(_escape, json.dumps(line, ensure_ascii=False))
        for line in _LINE.findall(text) or [""]
    ]


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def _unquoted(lines: str) -> str:
    """Read what ``_quoted`` wrote; a line that is none of it is left out."""
    parts = []
    for line in lines.splitlines():
        if line.startswith('  "'):
            with contextlib.suppress(ValueError):
                parts.append(json.loads(line))
    return "".join(parts)


def _common(one: Sequence[object], other: Sequence[object]) -> int:
    """Count what two sequences have in common from their beginning on."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _changes(then: Sequence[Continuation], now: Sequence[Continuation]) -> str:
    """Say which continuations differ and where; empty if none does."""
    pairs = zip(then, now, strict=True)
    changed = [what for before, after in pairs if (what := before.difference(after))]
    if not changed:
        return ""
    return f"{len(changed)} of {len(now)} continuations differ: {', '.join(changed)}"


def _diff(then: str, now: str) -> list[str]:
    """Compare two files for people, a line of context around each change."""
    return list(
        difflib.unified_diff(
            then.split("\n"), now.split("\n"), "recorded", "this run", n=1, lineterm=""
        )
    )
