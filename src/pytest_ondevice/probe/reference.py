"""The reference file: a model's next-token distributions over the evaluation windows.

Portable between machines, so that one that cannot hold the unquantized model judges against it.

The file is an ``.npz`` of stored, never compressed members: ``head`` and ``index`` (JSON as bytes)
and one array of records per window, one record per scored position. Of each distribution it keeps
the top K exactly and a sample of the rest, drawn in proportion to its probability. Windows are read
one by one, each with the zip's checksum, so that few windows of a large file cost little memory.

The divergence is summed as p (d + exp(-d) - 1) with d = ln(p/q): over the whole vocabulary that is
KLD(P||Q), since both distributions sum to one, and each term is non-negative. Summed over the top
it holds the exact difference of the tails' masses, and of the tail only what is of second order in
d is left to the sample.

Files are read as if nobody vouched for them: sizes are compared with the file before anything is
read, array headers are compared as text and never evaluated, and nothing is ever unpickled.
"""

from __future__ import annotations

import os
import random
import stat
import struct
import weakref
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import numpy as np

from .archives import whole

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import BinaryIO, Self

    from numpy.typing import NDArray

    from .protocol import Execution

    Floats = NDArray[np.float64]
    Floats32 = NDArray[np.float32]

_T = TypeVar("_T")

FORMAT = 1
"""Version of the format; a reader refuses every other."""

MAX_VOCAB = 2**24
MAX_HEAD_BYTES = 2**16
MAX_INDEX_BYTES = 2**23
MAX_WINDOWS = 2**15
MAX_WINDOW_BYTES = 2**30
MAX_DIRECTORY_BYTES = 2**22
MAX_TEXT_CHARS = 1000
MASS_TOLERANCE = 1e-3
"""How far from 1 the probabilities of a position may sum; what float32 leaves is below 1e-5."""

_BLOCK_ROWS = 8
_LEAST_LOG = -1e30  # instead of -inf: differences stay numbers, and exp of it is 0 all the same
_FAR = -30.0  # below this d, p (d + exp(-d) - 1) is computed from q, which cannot overflow
_MAGIC = b"\x93NUMPY\x01\x00"
_LONGEST_ARRAY_HEADER = 1024
_ZIP_START = b"PK\x03\x04"
# https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.14 to 4.3.16
_END = struct.Struct("<4s4H2LH")
_LOCATOR64 = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_HEAD, _INDEX = "head.npy", "index.npy"


class TextError(Exception):
    """The evaluation text or the reference file does not fit; the message is one sentence."""


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What a reference file says about itself.

    Attributes:
        format: Version of the format.
        model: The model's name.
        source: sha256 of the artifact whose distributions these are.
        tokenizer: Digest of its tokenizer.
        text: Digest of the evaluation text.
        n_vocab: Tokens of the vocabulary.
        n_ctx: Tokens of a window.
        top: Number of likeliest tokens kept exactly per position.
        tail: Number of samples of the rest per position; 0 if there is no rest.
        seed: Seed of the samples.
        execution: Fields of the execution that can move logits, by name.
        runtime: The runtime and its version.
        runtime_digest: Digest of its libraries.
        cpu: The processor.
        created: When, ISO 8601.
    """

    format: int = FORMAT
    model: str
    source: str
    tokenizer: str
    text: str
    n_vocab: Annotated[int, msgspec.Meta(ge=2, le=MAX_VOCAB)]
    n_ctx: Annotated[int, msgspec.Meta(ge=2, le=MAX_VOCAB)]
    top: Annotated[int, msgspec.Meta(ge=1, le=MAX_VOCAB)]
    tail: Annotated[int, msgspec.Meta(ge=0, le=MAX_VOCAB)]
    seed: int
    execution: dict[str, bool | int | str]
    runtime: str
    runtime_digest: str
    cpu: str
    created: str


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """One window of a reference file.

    Attributes:
        id: Kind and number, such as ``narrative:2``.
        tokens: Digest of its token ids.
        logits: Digest of its raw logits; empty where it was not taken.
    """

    id: str
    tokens: str
    logits: str = ""


class _Version(msgspec.Struct, frozen=True):
    format: int


class _Index(msgspec.Struct, frozen=True, kw_only=True):
    scored: Annotated[int, msgspec.Meta(ge=1, le=MAX_VOCAB)]
    windows: tuple[Window, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """A candidate against the reference, per scored position.

    Attributes:
        kld: KLD(reference||candidate), nats.
        ln_ratio: ln p_ref(target) - ln p(target); its mean is ln(PPL / PPL_ref).
        dp: p(target) - p_ref(target).
        nll: -ln p(target) of the candidate.
        same_top: Whether both hold the same token to be the likeliest.
    """

    kld: Floats
    ln_ratio: Floats
    dp: Floats
    nll: Floats
    same_top: NDArray[np.bool_]


def moving(execution: Execution) -> dict[str, bool | int | str]:
    """Take those fields of an execution that can move logits; ``n_ctx`` has its own in the head."""
    fields: dict[str, bool | int | str] = msgspec.structs.asdict(execution)
    # Distributions are kept of a plain cache only, so its types say nothing.
    left_out = {"threads", "n_ctx", "type_k", "type_v"}
    return {name: value for name, value in fields.items() if name not in left_out}


def llama_cpp_size(windows: int, scored: int, n_vocab: int) -> int:
    """Bytes of the file that llama-perplexity --kl-divergence-base makes of the same windows.

    Its layout (llama.cpp, tools/perplexity/perplexity.cpp): ``_logits_``, n_ctx, n_vocab and the
    number of windows as int32, all token ids as int32; then per scored position a scale and a
    minimum as float32 and a 16-bit log-probability for each token, their number rounded to even.
    """
    n_ctx = 2 * scored + 2
    position = 2 * 4 + 2 * (n_vocab + n_vocab % 2)
    return 8 + 3 * 4 + windows * (4 * n_ctx + scored * position)


def exact(log_p: Floats32, log_q: Floats32, targets: NDArray[np.int32]) -> Compared:
    """Compare two full distributions.

    Args:
        log_p: The reference's log-probabilities, shape (scored, n_vocab).
        log_q: The candidate's.
        targets: The tokens that follow, shape (scored,).
    """
    kld = np.empty(len(log_p), dtype=np.float64)
    for start in range(0, len(log_p), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        kld[rows] = _terms(_wide(log_p[rows]), _wide(log_q[rows])).sum(axis=1)
    at = np.arange(len(targets))
    return _compared(kld, log_p[at, targets], log_p.argmax(axis=1), log_q, targets)


def divergence(log_p: Floats, log_q: Floats, top: int, tail_mass: Floats) -> Floats:
    """Estimate KLD(P||Q) per position, in nats.

    To the sum of the terms comes what the sample misses of Q's tail, which is known exactly,
    multiplied by 1 - c. Any c that does not depend on the sample leaves the estimate unbiased; the
    best one for normal d of variance v is v exp(-v/2) / (exp(v) - 1), and v is taken from the top.
    A near candidate has c = 1, so no correction; for a broken one the rare tokens to which it gives
    much, and which P seldom lets be drawn, do not matter.

    A token to which P gives no probability at all in float64 is never drawn: Q's mass on it counts
    as in the missing part only.

    Args:
        log_p: ln p of the kept tokens, shape (positions, top + samples).
        log_q: ln q of the same tokens.
        top: How many of them are exact; the rest were drawn from the others in proportion to p.
        tail_mass: The probability that P gives to all tokens outside the top, per position.
    """
    kld: Floats = _terms(log_p[:, :top], log_q[:, :top]).sum(axis=1)
    if log_p.shape[1] == top:
        return kld
    p_top, q_top = np.exp(log_p[:, :top]).sum(axis=1), np.exp(log_q[:, :top]).sum(axis=1)
    v = np.clip(2.0 * kld / p_top, 1e-12, 500.0)
    c = np.where(tail_mass > 0.0, v * np.exp(-v / 2) / np.expm1(v), 0.0)
    d = log_p[:, top:] - log_q[:, top:]
    excess = np.expm1(np.minimum(-d, 700.0))
    # Q's tail is P's and what Q has less in the top: not 1 - q_top, since float32 rounds the sum.
    missing = p_top - q_top - tail_mass * excess.mean(axis=1)
    kld += tail_mass * (d + excess).mean(axis=1) + (1.0 - c) * missing
    return kld


def _terms(log_p: Floats, log_q: Floats) -> Floats:
    """Return p (d + exp(-d) - 1) = p d + q - p, none negative; they sum to KLD(P||Q)."""
    d, p = log_p - log_q, np.exp(log_p)
    terms: Floats = p * (d + np.expm1(-np.maximum(d, _FAR)))
    if (far := d < _FAR).any():
        terms[far] = np.exp(log_q[far]) + p[far] * (d[far] - 1.0)
    return terms


def _wide(log_p: Floats32) -> Floats:
    wide: Floats = np.maximum(log_p, _LEAST_LOG, dtype=np.float64)
    return wide


def _compared(
    kld: Floats,
    target_log_p: Floats32,
    best: NDArray[Any],
    log_q: Floats32,
    targets: NDArray[np.int32],
) -> Compared:
    theirs = _wide(target_log_p)
    ours = _wide(log_q[np.arange(len(targets)), targets])
    return Compared(
        kld=kld,
        ln_ratio=theirs - ours,
        dp=np.exp(ours) - np.exp(theirs),
        nll=-ours,
        same_top=log_q.argmax(axis=1) == best,
    )


def _fields(head: Head) -> tuple[tuple[str, str, int], ...]:
    """Name the fields of a record, with dtype and how many of it (0: a scalar).

    Log-probabilities are float32, as they are measured. In 16 bits they would differ from
    themselves: a floor under the divergence of the order of what Q8_0 loses.
    """
    kept = head.top + head.tail
    # A third byte of ids only where the vocabulary needs it: 32 bits would be a quarter more.
    high = (("ids_high", "|u1", kept),) if head.n_vocab > 2**16 else ()
    return (
        ("ids", "<u2", kept),
        *high,
        ("log_p", "<f4", kept),
        ("tail_mass", "<f8", 0),
        ("target_log_p", "<f4", 0),
        ("best", "<u4", 0),
    )


def _record(head: Head) -> np.dtype[np.void]:
    return np.dtype(
        [(n, kind, (count,)) if count else (n, kind) for n, kind, count in _fields(head)]
    )


class Writer:
    """Keeps the reference's distributions, then writes the file.

    Args:
        head: What the file says about itself; ``top`` and ``tail`` are cut to the vocabulary.
        ids: The windows, such as ``narrative:2``.
        token_digests: Digest of each window's token ids.
        scored: Positions kept per window.
    """

    def __init__(
        self, head: Head, ids: Sequence[str], token_digests: Sequence[str], scored: int
    ) -> None:
        top = min(head.top, head.n_vocab)
        tail = head.tail if top < head.n_vocab else 0
        self.head = msgspec.structs.replace(head, top=top, tail=tail)
        if wrong := _wrong_head(self.head):
            raise ValueError(wrong)
        windows = [
            Window(id=name, tokens=tokens) for name, tokens in zip(ids, token_digests, strict=True)
        ]
        if wrong := _wrong_index(_Index(scored=scored, windows=tuple(windows)), self.head):
            raise ValueError(wrong)
        self.scored = scored
        self._windows = windows
        self._records: dict[int, NDArray[np.void]] = {}

    def keep(
        self, index: int, log_p: Floats32, targets: NDArray[np.int32], logits: str = ""
    ) -> None:
        """Keep one window's distributions.

        Args:
            index: Which of the windows.
            log_p: Log-probabilities, shape (scored, n_vocab).
            targets: The tokens that follow, shape (scored,).
            logits: Digest of the raw logits, if it is to be in the file.
        """
        head, window = self.head, self._windows[index]
        if log_p.shape != (self.scored, head.n_vocab) or targets.shape != (self.scored,):
            raise ValueError(f"expected {(self.scored, head.n_vocab)}, not {log_p.shape}")
        records = np.zeros(self.scored, dtype=_record(head))
        records["target_log_p"] = np.maximum(log_p[np.arange(len(targets)), targets], _LEAST_LOG)
        records["best"] = log_p.argmax(axis=1)
        # One place per position, from the window's name alone: in whatever order or company a
        # window is measured, its sample is the same. This generator is the same in every Python.
        chance = random.Random(f"{head.seed}:{window.id}")  # noqa: S311  (nothing secret)
        ids = np.empty((self.scored, head.top + head.tail), dtype=np.uint32)
        for row, values in enumerate(log_p):
            top = np.argpartition(values, -head.top)[-head.top :]
            ids[row, : head.top] = np.sort(top)
            if head.tail:
                p = np.exp(values, dtype=np.float64)
                p[top] = 0.0
                records["tail_mass"][row] = p.sum()
                if not p.any():
                    p[:] = 1.0
                    p[top] = 0.0
                ids[row, head.top :] = sample(p, head.tail, chance.random())
        records["log_p"] = np.maximum(np.take_along_axis(log_p, ids, axis=1), _LEAST_LOG)
        records["ids"] = ids & 0xFFFF
        if "ids_high" in (records.dtype.names or ()):
            records["ids_high"] = ids >> 16
        self._records[index] = records
        self._windows[index] = msgspec.structs.replace(window, logits=logits)

    def save(self, path: Path) -> None:
        """Write the windows that were kept; the file appears whole or not at all.

        What is the same gives the same bytes: members bear no time.

        Raises:
            TextError: It cannot be written: no space, no permission.
        """
        kept = sorted(self._records)
        if not kept:
            raise ValueError("no window was kept")
        index = _Index(scored=self.scored, windows=tuple(self._windows[i] for i in kept))
        try:
            with whole(path) as archive:
                _put_json(archive, _HEAD, self.head)
                _put_json(archive, _INDEX, index)
                header = _array_header(_record_text(self.head, self.scored))
                for place, i in enumerate(kept):
                    _put(archive, _member(place), header + self._records[i].tobytes())
        except OSError as error:
            raise TextError(f"{path}: cannot write it: {error.strerror or error}") from error


def sample(p: Floats, count: int, place: float) -> NDArray[np.int64]:
    """Draw tokens in proportion to their probability, by systematic sampling.

    Equidistant places on the cumulative mass. Vocabularies are roughly in order of frequency, so
    neighbours are alike and the sample is stratified.

    Args:
        p: Probabilities, up to a factor; not all zero. What has none is never drawn.
        count: How many tokens to draw; one may be drawn more than once.
        place: Where in its stratum each place lies, uniform in [0, 1).
    """
    mass = p.cumsum()
    places = (np.arange(count) + place) * (mass[-1] / count)
    last = np.searchsorted(mass, mass[-1])  # the last that has any; rounding may point past it
    found: NDArray[np.int64] = np.minimum(np.searchsorted(mass, places, side="right"), last)
    return found


class Reader:
    """Reads a reference file, one window at a time; a candidate's windows are compared with it.

    Args:
        path: The file.

    Attributes:
        head: What it says about itself.
        windows: Its windows, in its order.
        scored: Positions per window.

    Raises:
        TextError: It is not there, not such a file, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive = _Archive(path)
        try:
            self.head = self._archive.head()
            index = self._archive.index(self.head)
        except TextError:
            self.close()
            raise
        self.windows = index.windows
        self.scored = index.scored
        self._places = {window.id: place for place, window in enumerate(index.windows)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._archive.close()

    @property
    def ids(self) -> tuple[str, ...]:
        """The windows' ids, in the file's order."""
        return tuple(window.id for window in self.windows)

    def rows(self, ids: Sequence[str], token_digests: Sequence[str], n_vocab: int) -> None:
        """Make sure that every window to be compared is in the file, on the same tokens.

        Args:
            ids: The candidate's windows.
            token_digests: Digest of each one's token ids.
            n_vocab: Size of the candidate's vocabulary.

        Raises:
            TextError: Another vocabulary, other tokens, or windows that are not there.
        """
        if n_vocab != self.head.n_vocab:
            raise TextError(
                f"its vocabulary has {n_vocab} tokens, the reference's {self.head.n_vocab}; it is"
                " not a quantization of this model"
            )
        missing = [name for name in ids if name not in self._places]
        if missing:
            raise TextError(
                f"{self.path}: it has {len(ids) - len(missing)} of the {len(ids)} windows, not"
                f" {_some(missing)}; make a reference of as many windows, or measure fewer"
            )
        other = [
            name
            for name, digest in zip(ids, token_digests, strict=True)
            if self.windows[self._places[name]].tokens != digest
        ]
        if other:
            raise TextError(
                "its tokenizer turns the evaluation text into other tokens than the reference's"
                f" (windows {_some(other)}); losses on different tokens cannot be compared"
            )

    def compare(self, window_id: str, log_p: Floats32, targets: NDArray[np.int32]) -> Compared:
        """Compare a candidate's window with the reference's.

        Args:
            window_id: Which one; ``rows`` has found it.
            log_p: The candidate's log-probabilities, shape (scored, n_vocab).
            targets: The tokens that follow, shape (scored,).

        Raises:
            TextError: The window is not there or damaged, or of another shape.
        """
        if window_id not in self._places:
            raise TextError(f"{self.path}: it has no window {window_id}")
        if log_p.shape != (self.scored, self.head.n_vocab):
            raise TextError(
                f"{self.path}: its windows have {self.scored} positions of {self.head.n_vocab}"
                f" tokens, the candidate's {' of '.join(map(str, log_p.shape))}"
            )
        records = self.records(self._places[window_id])
        log_q = _wide(np.take_along_axis(log_p, _ids(records), axis=1))
        kld = divergence(
            _wide(records["log_p"]), log_q, self.head.top, records["tail_mass"].astype(np.float64)
        )
        return _compared(kld, records["target_log_p"], records["best"], log_p, targets)

    def records(self, place: int) -> NDArray[np.void]:
        """Read one window, by its place in the file, and verify it.

        Returns:
            One record per position: ``ids`` (and ``ids_high``, their third byte), ``log_p``,
            ``tail_mass``, ``target_log_p``, ``best``.

        Raises:
            TextError: It is damaged; the message names window and array.
        """
        name = self.windows[place].id
        data = self._archive.array(
            _member(place),
            f"window {name}",
            _record_text(self.head, self.scored),
            self.scored * _record(self.head).itemsize,
        )
        records = np.frombuffer(data, dtype=_record(self.head))
        if wrong := _wrong_records(records, self.head):
            raise TextError(f"{self.path}: window {name}, {wrong}")
        return records


def describe(path: Path) -> Head:
    """Read only what a reference file says about itself.

    Raises:
        TextError: It is not there, not such a file, or damaged.
    """
    archive = _Archive(path)
    try:
        return archive.head()
    finally:
        archive.close()


def check(path: Path) -> list[str]:
    """Read and verify all of a reference file.

    Returns:
        A sentence for everything that is wrong with it, at most one per window; none if nothing is.
    """
    wrong: list[str] = []
    try:
        with Reader(path) as reader:
            for place in range(len(reader.windows)):
                try:
                    reader.records(place)
                except TextError as error:
                    wrong.append(str(error))
    except TextError as error:
        wrong.append(str(error))
    return wrong


def _ids(records: NDArray[np.void]) -> NDArray[np.int64]:
    ids: NDArray[np.int64] = records["ids"].astype(np.int64)
    if "ids_high" in (records.dtype.names or ()):
        ids |= records["ids_high"].astype(np.int64) << 16
    return ids


def _wrong_head(head: Head) -> str:
    """Say what is wrong with a head of the right types."""
    texts = {
        name: text for name, text in msgspec.structs.asdict(head).items() if isinstance(text, str)
    }
    texts |= {f"execution.{n}": f"{n}={v}" for n, v in head.execution.items()}
    for name, text in texts.items():
        if len(text) > MAX_TEXT_CHARS or not text.isprintable():
            return f"has a {_safe(name)} that is no printable text of {MAX_TEXT_CHARS} characters"
    if head.top > head.n_vocab:
        return f"keeps {head.top} tokens of a vocabulary of {head.n_vocab}"
    if (head.tail == 0) != (head.top == head.n_vocab):
        return (
            f"keeps {head.top} of {head.n_vocab} tokens and {head.tail} samples of the rest; there"
            " are samples exactly where there is a rest"
        )
    return ""


def _wrong_index(index: _Index, head: Head) -> str:
    """Say what is wrong with an index of the right types."""
    if not 0 < len(index.windows) <= MAX_WINDOWS:
        return f"has {len(index.windows)} windows (1 to {MAX_WINDOWS} are possible)"
    if index.scored > head.n_ctx:
        return f"scores {index.scored} positions in windows of {head.n_ctx}"
    if index.scored * _record(head).itemsize > MAX_WINDOW_BYTES:
        return f"has windows of more than {MAX_WINDOW_BYTES} bytes"
    seen: set[str] = set()
    for place, window in enumerate(index.windows):
        for text in (window.id, window.tokens, window.logits):
            if len(text) > MAX_TEXT_CHARS or not text.isprintable():
                return f"has a text that is not printable or too long, at $.windows[{place}]"
        if window.id in seen:
            return f"names window {window.id} twice"
        seen.add(window.id)
    return ""


def _wrong_records(records: NDArray[np.void], head: Head) -> str:
    """Say what cannot be true of one window's records: which array, and where."""
    ids, log_p, mass = _ids(records), records["log_p"], records["tail_mass"]
    top, tail = log_p[:, : head.top], log_p[:, head.top :]
    sampled = ids[:, head.top :]
    places = np.arange(len(ids))[:, None] * MAX_VOCAB

    def first(array: str, bad: NDArray[np.bool_], what: str) -> str:
        rows = bad.reshape(len(bad), -1).any(axis=1)
        return f"{array}: position {int(rows.argmax())} {what}" if rows.any() else ""

    for name in ("log_p", "tail_mass", "target_log_p"):
        if wrong := first(name, ~np.isfinite(records[name]), "holds NaN or infinity"):
            return wrong
    total = np.exp(top, dtype=np.float64).sum(axis=1) + mass
    off = np.abs(total - 1.0) > MASS_TOLERANCE
    return (
        first("ids", ids >= head.n_vocab, f"holds an id beyond the vocabulary's {head.n_vocab}")
        or first("best", records["best"] >= head.n_vocab, f"is not among {head.n_vocab} tokens")
        or first("ids", np.diff(ids[:, : head.top]) <= 0, "holds a token twice or out of order")
        or first("ids", np.diff(sampled) < 0, "holds samples out of order")
        or first(
            "ids",
            np.isin(sampled + places, ids[:, : head.top] + places),
            "holds a sample of what is kept exactly",
        )
        or first("log_p", log_p > MASS_TOLERANCE, "holds a probability above 1")
        or first("target_log_p", records["target_log_p"] > MASS_TOLERANCE, "is above 0")
        or first("tail_mass", mass < 0, "is negative")
        or first(
            "log_p",
            tail > top.min(axis=1, keepdims=True),
            "holds a sample likelier than what is kept exactly",
        )
        or first(
            "log_p",
            off,
            f"sums to {total[int(off.argmax())]:.6g} with its tail_mass, not to 1",
        )
    )


def _member(place: int) -> str:
    return f"window_{place}.npy"


def _record_text(head: Head, scored: int) -> str:
    descr = [(n, kind, (count,)) if count else (n, kind) for n, kind, count in _fields(head)]
    return _header_text(descr, scored)


def _header_text(descr: object, length: int) -> str:
    """Return an array's header as numpy writes it (https://numpy.org/neps/nep-0001-npy-format)."""
    return f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': ({length},), }}"


def _array_header(text: str) -> bytes:
    """Frame a header's text as version 1.0 of the format does, padded to 64 bytes."""
    start = len(_MAGIC) + 2
    padded = text + " " * (-(start + len(text) + 1) % 64) + "\n"
    return _MAGIC + struct.pack("<H", len(padded)) + padded.encode("ascii")


def _put(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o644 << 16
    archive.writestr(info, data)


def _put_json(archive: zipfile.ZipFile, name: str, content: msgspec.Struct) -> None:
    data = msgspec.json.encode(content)
    _put(archive, name, _array_header(_header_text("|u1", len(data))) + data)


class _Archive:
    """The zip of a reference file, its directory compared with the file before it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Not opened before that is known: a pipe would wait for its writer.
            if not stat.S_ISREG(path.stat().st_mode):
                raise TextError(f"{path}: it is no file; a reference file is expected")
            file = path.open("rb")
        except OSError as error:
            raise TextError(f"{path}: cannot read it: {error.strerror}") from error
        self.close = weakref.finalize(self, file.close)
        try:
            size = os.fstat(file.fileno()).st_size
            self._bound(file, size)
            self._zip = zipfile.ZipFile(file)
            self._members = self._checked(size)
        except TextError:
            self.close()
            raise
        # zipfile raises more than it documents on damaged directories.
        except Exception as error:
            self.close()
            raise self._error(f"its zip directory is damaged ({_safe(str(error))})") from error

    def head(self) -> Head:
        """Read and check the head; another version of the format is told before anything else."""
        version = self.json(_HEAD, _Version, MAX_HEAD_BYTES).format
        if version != FORMAT:
            raise self._error(
                f"it is of format {version}, this version reads format {FORMAT}; make it anew with"
                " `pytest-ondevice reference make`"
            )
        head = self.json(_HEAD, Head, MAX_HEAD_BYTES)
        if wrong := _wrong_head(head):
            raise self._error(f"its head {wrong}")
        return head

    def index(self, head: Head) -> _Index:
        """Read and check the index of the windows."""
        index = self.json(_INDEX, _Index, MAX_INDEX_BYTES)
        wrong, there = _wrong_index(index, head), len(self._members) - 2
        if not wrong and len(index.windows) != there:
            wrong = f"names {len(index.windows)} windows, the file has {there}"
        if wrong:
            raise self._error(f"its index {wrong}")
        return index

    def json(self, name: str, kind: type[_T], most: int) -> _T:
        """Read a member that holds JSON of at most so many bytes."""
        what = name.removesuffix(".npy")
        header, data = self._split(name, what, most)
        self._expect(what, header, _header_text("|u1", len(data)))
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._error(f"{what}: {_safe(str(error))}") from error

    def array(self, name: str, what: str, header: str, n_bytes: int) -> memoryview:
        """Read the data of a member's array, which has to have this header and size."""
        found, data = self._split(name, what, n_bytes)
        self._expect(what, found, header)
        if len(data) != n_bytes:
            raise self._error(
                f"{what}: its array claims {n_bytes} bytes where the file holds {len(data)}"
            )
        return data

    def _split(self, name: str, what: str, most: int) -> tuple[str, memoryview]:
        info = self._members[name]
        if info.file_size > most + _LONGEST_ARRAY_HEADER:
            raise self._error(f"{what}: it has {info.file_size} bytes, at most {most} are expected")
        try:
            data = self._zip.read(info)
        except Exception as error:  # as above: also of what a directory and its members disagree on
            raise self._error(f"{what}: it is damaged ({_safe(str(error))})") from error
        start = len(_MAGIC) + 2
        if len(data) < start or not data.startswith(_MAGIC):
            raise self._error(f"{what}: it is no array in the .npy format, version 1.0")
        end = start + int.from_bytes(data[start - 2 : start], "little")
        if end > min(len(data), _LONGEST_ARRAY_HEADER):
            raise self._error(f"{what}: the header of its array is too long")
        return data[start:end].decode("latin-1").strip(), memoryview(data)[end:]

    def _expect(self, what: str, found: str, expected: str) -> None:
        if found != expected:
            pickled = ": a pickle, which is never read" if "'|O'" in found else ""
            raise self._error(
                f"{what}: its array is {_safe(found)}{pickled}; expected is {expected}"
            )

    def _bound(self, file: BinaryIO, size: int) -> None:
        """Compare the sizes at the zip's end with limits: zipfile reads what they say."""
        if file.read(len(_ZIP_START)) != _ZIP_START:
            raise self._error("it is no .npz file (a zip of arrays); a reference file is expected")
        ends = b""
        if size >= _END.size:
            file.seek(size - _END.size)
            ends = file.read(_END.size)
        if not ends.startswith(b"PK\x05\x06") or not ends.endswith(b"\0\0"):
            raise self._error("it is cut short: the zip's directory is missing at its end")
        claimed = [_END.unpack(ends)[5]]
        place = size - _END.size - _LOCATOR64.size
        file.seek(max(place, 0))
        locator = file.read(_LOCATOR64.size)
        if locator.startswith(b"PK\x06\x07"):
            place -= _END64.size
            file.seek(max(place, 0))
            end64 = file.read(_END64.size)
            if _LOCATOR64.unpack(locator)[2] != place or not end64.startswith(b"PK\x06\x06"):
                raise self._error("its zip directory is damaged (two ends that do not agree)")
            claimed.append(_END64.unpack(end64)[8])
        if max(claimed) > MAX_DIRECTORY_BYTES:
            raise self._error(
                f"its zip directory claims {max(claimed)} bytes, at most {MAX_DIRECTORY_BYTES} are"
                " expected"
            )

    def _checked(self, size: int) -> dict[str, zipfile.ZipInfo]:
        """Return the members by name, once their names and sizes can be true."""
        infos = self._zip.infolist()
        members = {info.filename: info for info in infos}
        if len(members) != len(infos):
            raise self._error("its zip directory names a member twice")
        expected = {_HEAD, _INDEX, *map(_member, range(len(infos) - 2))}
        if missing := sorted(expected - set(members)):
            more = sorted(set(members) - expected)
            raise self._error(
                f"it has no {missing[0]}"
                + (f", but {_safe(more[0])}" if more else "")
                + "; a reference file is expected"
            )
        for name, info in members.items():
            if info.compress_type != zipfile.ZIP_STORED:
                raise self._error(
                    f"its {name} is compressed ({info.compress_size} bytes that are to become"
                    f" {info.file_size}); members have to be stored as they are"
                )
            end = info.header_offset + len(name) + info.file_size
            if info.file_size != info.compress_size or info.header_offset < 0 or end > size:
                raise self._error(
                    f"its {name} claims {info.file_size} bytes at {info.header_offset} of a file of"
                    f" {size}"
                )
        if sum(info.file_size for info in infos) > size:
            raise self._error(f"its members claim more than its {size} bytes")
        return members

    def _error(self, problem: str) -> TextError:
        return TextError(f"{self.path}: {problem}")


def _safe(text: str, most: int = 200) -> str:
    """Make a text from a file fit for a sentence: printable and not long."""
    shown = "".join(char if char.isprintable() else "?" for char in text[:most])
    return shown + "..." * (len(text) > most)


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
