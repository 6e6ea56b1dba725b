"""Baselines: measurements stored on purpose, one file per cell, made to be read in a diff.

``portable/<model>/<method>.json`` holds what travels between machines: fidelity, size and memory.
``<tier>/<model>/<method>.json`` holds what does not, speed and energy, board by board. The user's
folder is read first and is the only one written; those that ship come after it.
"""

from __future__ import annotations

import math
import stat
import statistics
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from ..errors import BadFileError, StorageError, did_you_mean
from ..model.measurement import ProtocolFields, digest_of
from .files import decode, write_atomic

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from ..model.measurement import Measurement

SCHEMA_VERSION = 1
PORTABLE = "portable"
"""The folder of what travels; no tier may have its name."""

TIER_KINDS = frozenset({"speed", "energy"})
"""The kinds of baseline that hold within one tier only."""

DIGITS = 8
MOST_BYTES = 64 * 1024 * 1024
"""The largest file that is read: a baseline has some kilobytes for each kind."""

MOST = 1e18
"""The largest figure of a baseline: beyond whatever is measured, far below any overflow."""

_SITES = frozenset({"site-packages", "dist-packages"})
_KEY_SHOWN = 60

_Figure = Annotated[float, msgspec.Meta(ge=-MOST, le=MOST)]
_Samples = Annotated[tuple[_Figure, ...], msgspec.Meta(min_length=1)]


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One quantity of a baseline.

    Attributes:
        value: The figure, in ``unit``; where there are boards, that of the board recorded last.
        unit: The unit of value, error and windows.
        n: Number of samples behind the value.
        error: Standard error of the value; None for exact figures.
        windows: Values by window id.
        boards: Samples by board: log ratios or the figures themselves.
    """

    value: _Figure
    unit: str
    n: Annotated[int, msgspec.Meta(ge=1, le=10**9)] = 1
    error: Annotated[float, msgspec.Meta(ge=0, le=MOST)] | None = None
    windows: Annotated[dict[str, _Figure], msgspec.Meta(min_length=1)] = {}
    boards: Annotated[dict[str, _Samples], msgspec.Meta(min_length=1)] = {}

    def __post_init__(self) -> None:
        if self.windows and len(self.windows) != self.n:
            raise ValueError(f"n is {self.n}, the number of windows is {len(self.windows)}")


class Section(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The quantities of one kind, recorded together under one protocol.

    Attributes:
        recorded: The day, ISO 8601.
        runtime: Version of the runtime.
        runtime_digest: Digest of its libraries.
        cpu: Name of the CPU.
        artifact: Digest of the file that was measured.
        protocol: What must be equal for a measurement to be compared with this; the digest of the
            source is a part of it.
        quantities: The figures by quantity.
        tier: The fields of the machine's tier; empty for what travels.
        digests: Digests of the logits of the first windows, by ISA class and execution.
    """

    recorded: str
    runtime: str
    runtime_digest: str
    cpu: str
    artifact: str
    protocol: ProtocolFields
    quantities: dict[str, Entry]
    tier: ProtocolFields = {}
    digests: dict[str, tuple[str, ...]] = {}


class BaselineFile(msgspec.Struct, frozen=True, kw_only=True):
    """A cell's baseline: what travels of it, or what holds in one tier."""

    schema: int
    model: str
    method: str
    sections: dict[str, Section] = {}


class Baselines:
    """Reads baselines from several folders in order; writes to the first only.

    Args:
        own: The user's folder.
        shipped: The folders that come after it.
        tier: The name of this machine's tier.
    """

    def __init__(self, own: Path, shipped: Sequence[Path], tier: str) -> None:
        self.own = own
        self.folders = tuple(dict.fromkeys([own, *shipped]))
        self.tier = tier

    def path(self, model: str, method: str, kind: str) -> Path:
        """Name the file that an update writes."""
        return _file(self.own / self._place(kind), model, method)

    def find(self, model: str, method: str, kind: str) -> tuple[Section, Path] | None:
        """Find a cell's section of one kind, and the file it is in.

        Raises:
            BadFileError: A file is no baseline, or one of another cell; the message has the place
                inside it.
        """
        for folder in self.folders:
            path = _file(folder / self._place(kind), model, method)
            read = _read(path, model, method)
            if read is not None and kind in read.sections:
                return read.sections[kind], path
        return None

    def record(self, model: str, method: str, kind: str, section: Section) -> Path:
        """Write one kind of one cell; the other kinds stay as they are.

        What was recorded under the same protocol of the same artifact stays too, as far as it
        cannot be measured here: samples of other boards, digests of other ISA classes.

        Raises:
            BadFileError: What is there is no baseline, or one of another cell, and is left alone;
                or a figure of the section is such that it could not be read again.
            StorageError: It cannot be written.
        """
        writable(self.own)
        path = self.path(model, method, kind)
        file = _read(path, model, method) or BaselineFile(
            schema=SCHEMA_VERSION, model=model, method=method
        )
        if kind in file.sections:
            section = _merged(file.sections[kind], section, boards=kind in TIER_KINDS)
        sections = dict(sorted({**file.sections, kind: section}.items()))
        written = msgspec.to_builtins(msgspec.structs.replace(file, sections=sections))
        data = f"{_shown(written)}\n".encode()
        _parse(path, data)
        write_atomic(path, data)
        return path

    def foreign(self, model: str, method: str, kind: str) -> tuple[tuple[Section, Path], ...]:
        """Find a cell's sections of one kind in other tiers; damaged files are passed over.

        They judge nothing here: they are for saying why there is no baseline.
        """
        if kind not in TIER_KINDS:
            return ()
        found = []
        for folder in self.folders:
            for place in _folders(folder):
                if place.name in {PORTABLE, self.tier}:
                    continue
                path = _file(place, model, method)
                try:
                    read = _read(path, model, method)
                except BadFileError:
                    continue
                if read is not None and kind in read.sections:
                    found.append((read.sections[kind], path))
        return tuple(found)

    def twin(self, artifact_sha256: str, kind: str) -> Path | None:
        """Find a baseline of one kind of the same artifact, whatever the cell is called there.

        It is for a cell that has no baseline, perhaps since it was renamed; damaged files are
        passed over.
        """
        for folder in self.folders:
            for path in _everything(folder / self._place(kind)):
                try:
                    data = _content(path)
                    if data is None or artifact_sha256.encode() not in data:
                        continue
                    section = _parse(path, data).sections.get(kind)
                except BadFileError:
                    continue
                if section is not None and section.artifact == artifact_sha256:
                    return path
        return None

    def strays(self, models: Mapping[str, Collection[str]]) -> tuple[str, ...]:
        """Say which baselines of the user's folder no cell can have; nothing is changed.

        Args:
            models: The models that are known, with the methods that they can have.

        Returns:
            A sentence for each folder of an unknown model, each file that is not named after a
            method, is of another cell, is damaged, or holds a kind that is kept elsewhere.
        """
        said: list[str] = []
        for place in _folders(self.own):
            said.extend(
                f"{path}: it judges nothing, since baselines are kept in a folder for each model"
                for path in _files(place)
            )
            for folder in _folders(place):
                if folder.name in models:
                    for path in _files(folder):
                        said.extend(_stray(path, models[folder.name]))
                elif any(_files(one) for one in (folder, *_folders(folder))):
                    said.append(
                        f"{folder}: it judges nothing, since no model is named"
                        f" '{folder.name}'{did_you_mean(folder.name, models)}"
                    )
        return tuple(said)

    def _place(self, kind: str) -> str:
        return self.tier if kind in TIER_KINDS else PORTABLE


def writable(folder: Path) -> None:
    """Make sure that a folder is not one of installed packages, which the next install replaces.

    Raises:
        StorageError: It is.
    """
    there = folder.resolve()
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    if _SITES & {*folder.parts, *there.parts} or installed & {there, *there.parents}:
        raise StorageError(
            f"{folder}: no baselines are written among installed packages, since the next"
            " installation would replace them; choose another folder with --ondevice-baselines=DIR"
        )


def entry_of(measured: Measurement, board: str | None = None) -> Entry:
    """Turn a measurement into what a baseline keeps of it.

    Args:
        measured: The measurement.
        board: The board whose samples they are, for kinds that do not travel.

    Raises:
        ValueError: The measurement is not finite.
    """
    figures = (measured.value, measured.error or 0.0, *measured.samples)
    if measured.value is None or not all(math.isfinite(figure or 0.0) for figure in figures):
        raise ValueError(f"{measured.quantity} is not finite")
    samples = tuple(_round(value) for value in measured.samples)
    windows = dict(sorted(zip(measured.sample_ids, samples, strict=False)))
    return Entry(
        value=_round(measured.value),
        unit=measured.unit,
        n=len(windows) or measured.n,
        error=None if measured.error is None else _round(measured.error, 3),
        windows=windows,
        boards={board: samples} if board is not None and samples else {},
    )


def pooled(entry: Entry) -> tuple[float, float, int]:
    """Pool the boards of a tier, each as one sample: how many runs it had does not weigh.

    Returns:
        The median over boards of each board's median; the standard deviation between boards, 0
        for one; their number. Without boards the value itself, 0 and 0.
    """
    medians = [statistics.median(samples) for samples in entry.boards.values()]
    if not medians:
        return entry.value, 0.0, 0
    spread = statistics.stdev(medians) if len(medians) > 1 else 0.0
    return statistics.median(medians), spread, len(medians)


def differences(recorded: ProtocolFields, ours: ProtocolFields) -> list[str]:
    """Say field by field where two protocols or tiers differ; empty if they may be compared."""
    if digest_of(recorded) == digest_of(ours):
        return []
    return [
        f"{name} {recorded.get(name, 'absent')} there, {ours.get(name, 'absent')} here"
        for name in sorted({*recorded, *ours})
        if (name in recorded, recorded.get(name)) != (name in ours, ours.get(name))
    ]


def _merged(before: Section, new: Section, *, boards: bool) -> Section:
    """Keep what a new section cannot replace, as long as it is of the same artifact."""
    if before.artifact != new.artifact or differences(before.protocol, new.protocol):
        return new
    return msgspec.structs.replace(
        new,
        quantities=_with_boards(before, new) if boards else new.quantities,
        digests=dict(sorted({**before.digests, **new.digests}.items())),
    )


def _with_boards(before: Section, new: Section) -> dict[str, Entry]:
    """Add to the quantities of a section what was recorded on boards that are not in it."""
    measured = {board for entry in new.quantities.values() for board in entry.boards}
    quantities = dict(new.quantities)
    for name, old in before.quantities.items():
        others = {board: one for board, one in old.boards.items() if board not in measured}
        ours = new.quantities.get(name)
        if not others or (ours is not None and ours.unit != old.unit):
            continue
        boards = {**others, **(ours.boards if ours is not None else {})}
        quantities[name] = msgspec.structs.replace(
            old if ours is None else ours, boards=dict(sorted(boards.items()))
        )
    return dict(sorted(quantities.items()))


def _stray(path: Path, methods: Collection[str]) -> Iterator[str]:
    """Say why a file in a known model's folder judges nothing."""
    if path.stem not in methods:
        yield (
            f"{path}: it judges nothing, since no method is named"
            f" '{path.stem}'{did_you_mean(path.stem, methods)}"
        )
        return
    try:
        read = _read(path, path.parent.name, path.stem)
    except BadFileError as error:
        yield str(error)
        return
    portable = path.parent.parent.name == PORTABLE
    for kind in read.sections if read is not None else ():
        if portable == (kind in TIER_KINDS):
            where = "the folder of a tier" if portable else f"{PORTABLE}/"
            yield f"{path}: its {kind} judges nothing, since that is kept in {where}"


def _file(place: Path, model: str, method: str) -> Path:
    return place / model / f"{method}.json"


def _folders(place: Path) -> list[Path]:
    """List the folders of a place that is perhaps none, but for hidden ones."""
    try:
        return sorted(
            path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
    except OSError:
        return []


def _files(folder: Path) -> list[Path]:
    """List whatever has the name of a baseline in a folder."""
    try:
        return sorted(
            path
            for path in folder.iterdir()
            if path.suffix == ".json" and not path.name.startswith(".") and not path.is_dir()
        )
    except OSError:
        return []


def _everything(place: Path) -> Iterator[Path]:
    for folder in _folders(place):
        yield from _files(folder)


def _content(path: Path) -> bytes | None:
    """Read a file of bounded size; None if there is none."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise BadFileError(path, "cannot read it: it is no regular file")
        with path.open("rb") as file:
            data = b"" if status.st_size > MOST_BYTES else file.read(MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BadFileError(path, f"cannot read it: {error.strerror}") from error
    size = max(status.st_size, len(data))
    if size > MOST_BYTES:
        raise BadFileError(
            path, f"not a baseline: {size} bytes, where {MOST_BYTES} are the most @ $"
        )
    return data


def _parse(path: Path, data: bytes) -> BaselineFile:
    """Make a baseline of a file's content."""
    try:
        read = decode(data, BaselineFile)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `")
        where = _with_names(place.rstrip("`") or "$", data)
        raise BadFileError(path, f"not a baseline: {problem} @ {where}") from error
    except msgspec.DecodeError as error:
        raise BadFileError(path, f"not a baseline: {error} @ $") from error
    if read.schema != SCHEMA_VERSION:
        raise BadFileError(
            path,
            f"baseline schema {read.schema} @ $.schema; this version reads {SCHEMA_VERSION}",
        )
    return read


def _read(path: Path, model: str, method: str) -> BaselineFile | None:
    """Read the baseline of a cell; one that was copied or moved there must not judge it."""
    data = _content(path)
    if data is None:
        return None
    read = _parse(path, data)
    for name, ours, theirs in (("model", model, read.model), ("method", method, read.method)):
        if ours != theirs:
            raise BadFileError(
                path,
                f"the baseline of another cell: {_quoted(theirs)} @ $.{name}, where its place says"
                f" '{ours}'; put it back to its place, or delete it and record a new one",
            )
    return read


_KEYED = {
    "sections": Section,
    "protocol": str | int | float | bool | None,
    "tier": str | int | float | bool | None,
    "digests": tuple[str, ...],
    "quantities": Entry,
    "windows": _Figure,
    "boards": _Samples,
}
"""The objects of a file that are keyed by names, and what they hold."""


def _with_names(where: str, data: bytes) -> str:
    """Put names into a place in which msgspec writes ``[...]`` for the key of any object."""
    *parts, last = where.split("[...]")
    named = ""
    try:
        node = msgspec.json.decode(data)
        for part in parts:
            *fields, field = part.lstrip("$.").split(".")
            for name in (*fields, field):
                node = node[name]
            kind = _KEYED[field]
            key = next(key for key, value in node.items() if not _is(value, kind))
            named += f"{part}[{_quoted(key)}]"
            node = node[key]
    except (msgspec.DecodeError, RecursionError, LookupError, AttributeError, StopIteration):
        return where
    return named + last


def _is(value: object, kind: object) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _quoted(text: str) -> str:
    """Quote a name out of a file, which may be anything, on one line of bounded length."""
    return repr(text if len(text) <= _KEY_SHOWN else f"{text[:_KEY_SHOWN]}...")


def _shown(value: object, indent: str = "") -> str:
    """Write JSON for people: a line for each member of an object, one for a whole array."""
    if isinstance(value, dict) and value:
        inner = f"{indent}  "
        rows = [f"{inner}{_json(key)}: {_shown(one, inner)}" for key, one in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_json(one) for one in value)}]"
    return _json(value)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _round(value: float, digits: int = DIGITS) -> float:
    # Whole numbers are counts of bytes, which are held to the last one.
    return value if float(value).is_integer() else float(f"{value:.{digits}g}")
