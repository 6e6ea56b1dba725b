"""Importance matrices: how strongly a text drives each column of each matrix of a model.

A quantizer rounds the columns with large activations more carefully. The measure is llama.cpp's:
the mean, over all tokens, of the squared value that meets the column.
"""

from __future__ import annotations

import io
import struct
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from . import memory
from .archives import whole
from .reference import TextError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from .protocol import ImportanceJob, Text

MOST_TENSORS = 1 << 16
"""Tensors that a file may hold; the largest models have a few thousand."""

MOST_BYTES = 1 << 30
"""Bytes of a file; the largest models need about a tenth."""

_LONGEST_NAME = 63
_ROWS = 64
"""Rows that are squared at once, in float64."""

_MAGIC = b"PK\x03\x04"
_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, OSError, struct.error)


def measure(
    engine: Any,
    job: ImportanceJob,
    tick: Callable[[float, float], None],
    collector: Callable[[], Any],
) -> dict[str, object]:
    """Run the calibration text through a model and write the importance of its columns.

    Args:
        engine: The runtime.
        job: Model, text, and the file to write.
        tick: Hears how many windows are done, of how many.
        collector: Makes what sums the squares, the runtime's own ``Collector``.

    Returns:
        ``tensors``, ``windows`` and ``tokens`` (counts), ``idle`` (experts that no token was sent
        to, over all tensors), ``time`` and ``cpu_time`` in seconds, ``peak`` in bytes.

    Raises:
        TextError: The text holds no whole window, the importance is not finite or all zero, or the
            file cannot be written.
    """
    memory.reset_peak()
    base = memory.status()["VmRSS"]
    cpu = time.process_time()
    begin = time.perf_counter()
    # The matrices must be those of the file, under their names there.
    execution = msgspec.structs.replace(job.execution, repack=False, mapped=True)
    collected = collector()
    with (
        engine.load(job.source, execution, alive=lambda _: tick(0, 1)) as model,
        engine.context(model, execution, on_node=collected.callback) as ctx,
    ):
        windows = cut(model, job.texts, execution.n_ctx)
        for done, window in enumerate(windows):
            ctx.clear()
            for start in range(0, len(window), execution.n_ubatch):
                piece = window[start : start + execution.n_ubatch]
                # All logits, because the last layer drops the tokens whose logits nobody wants.
                ctx.feed(piece.tolist(), start, logits_from=0)
                collected.check()
            tick(done + 1, len(windows))
    matrix, idle = weigh(collected.sums, collected.counts)
    write(Path(job.target), matrix)
    return {
        "tensors": len(matrix),
        "windows": len(windows),
        "tokens": windows.size,
        "idle": idle,
        "time": time.perf_counter() - begin,
        "cpu_time": time.process_time() - cpu,
        "peak": memory.status()["VmHWM"] - base,
    }


def cut(model: Any, texts: Sequence[Text], n_ctx: int) -> NDArray[np.int32]:
    """Tokenize the texts, one after the other, and cut them into windows; the rest is left out.

    Args:
        model: Whose tokenizer.
        texts: The texts.
        n_ctx: Tokens of a window.

    Returns:
        Token ids, shape (windows, n_ctx), with BOS in the first place where the model wants it.

    Raises:
        TextError: There is no whole window, or a text cannot be read.
    """
    tokens: list[int] = []
    for text in texts:
        try:
            content = Path(text.path).read_text("utf-8")
        except OSError as error:
            raise TextError(f"{text.path}: cannot read it: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise TextError(f"{text.path}: it is not UTF-8 text (byte {error.start})") from error
        tokens += model.tokenize(content, special=False)
    count = len(tokens) // n_ctx
    if not count:
        raise TextError(
            f"the calibration text has {len(tokens)} tokens; one window needs {n_ctx},"
            " and a useful one has dozens of windows"
        )
    windows = np.array(tokens[: count * n_ctx], dtype=np.int32).reshape(count, n_ctx)
    if model.adds_bos:
        windows[:, 0] = model.bos
    return windows


def add_dense(
    sums: NDArray[np.float64],
    counts: NDArray[np.int64],
    values: NDArray[np.float32],
    heads: int,
) -> None:
    """Add the squares of rows that all of a matrix, or of a stack of them, is multiplied with.

    Args:
        sums: Added to, shape (matrices, columns).
        counts: Added to, shape (matrices,).
        values: Shape (outer, heads, rows, columns); with one matrix, all rows are its rows.
        heads: The stack's inner size; matrix ``i * heads + j`` meets ``values[i, j]``.
    """
    outer = len(sums) // heads
    for i, block in enumerate(values):
        for j, rows in enumerate(block):
            place = (i % outer) * heads + j % heads
            sums[place] += squares(rows)
            counts[place] += len(rows)


def add_experts(
    sums: NDArray[np.float64],
    counts: NDArray[np.int64],
    values: NDArray[np.float32],
    chosen: NDArray[np.int32],
) -> None:
    """Add the squares of each token's row to the experts that it was sent to.

    Args:
        sums: Added to, shape (experts, columns).
        counts: Added to, shape (experts,).
        values: Shape (tokens, choices or 1, columns): one row for each choice, or one for all.
        chosen: The experts of each token, shape (tokens, choices).
    """
    for choice in range(chosen.shape[1]):
        rows = values[:, choice % values.shape[1]]
        for expert in np.unique(chosen[:, choice]):
            own = rows[chosen[:, choice] == expert]
            sums[expert] += squares(own)
            counts[expert] += len(own)


def squares(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sum the squares of each column in float64."""
    total = np.zeros(rows.shape[1])
    for start in range(0, len(rows), _ROWS):
        total += np.square(rows[start : start + _ROWS], dtype=np.float64).sum(axis=0)
    return total


def weigh(
    sums: Mapping[str, NDArray[np.float64]], counts: Mapping[str, NDArray[np.int64]]
) -> tuple[dict[str, NDArray[np.float32]], int]:
    """Turn sums of squares into means, in the form that the quantizer wants.

    An expert that no token was sent to is weighed evenly, as llama.cpp's own tool does.

    Args:
        sums: By tensor, shape (matrices, columns).
        counts: By tensor, the rows that were summed, shape (matrices,).

    Returns:
        By tensor, in the order of names, float32 of shape (matrices * columns,); and how many
        matrices no row was summed for.

    Raises:
        TextError: Nothing was summed, a mean is not finite, or a tensor's are all zero.
    """
    made: dict[str, NDArray[np.float32]] = {}
    idle = 0
    for name in sorted(sums):
        seen = counts[name] > 0
        idle += int((~seen).sum())
        means = np.ones_like(sums[name])
        np.divide(sums[name], counts[name][:, None], out=means, where=seen[:, None])
        with np.errstate(over="ignore"):
            values = means.astype(np.float32)
        if not np.isfinite(values).all():
            matrix, column = np.argwhere(~np.isfinite(values))[0]
            raise TextError(
                f"the importance of {name} is not finite (matrix {matrix}, column {column}:"
                f" {means[matrix, column]}); the model computes NaN or infinite values on the"
                " calibration text, so its own weights are damaged"
            )
        if not seen.any() or not values.any(axis=1).all():
            matrix = int(values.any(axis=1).argmin())
            raise TextError(
                f"the importance of {name} is zero in every column (matrix {matrix}); nothing"
                " reaches it on the calibration text, so the model's own weights are damaged"
            )
        made[name] = values.ravel()
    if not made:
        raise TextError(
            "no matrix of a repeating layer was seen; llama.cpp computes this model otherwise, and"
            " its importance cannot be measured"
        )
    return made, idle


def write(path: Path, matrix: Mapping[str, NDArray[np.float32]]) -> None:
    """Write an importance matrix; the file appears whole or not at all.

    The same values give the same bytes: members bear no time.

    Raises:
        TextError: It cannot be written: no space, no permission.
    """
    try:
        with whole(path) as archive:
            for name in sorted(matrix):
                array = io.BytesIO()
                np.lib.format.write_array(array, matrix[name], (1, 0), allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), array.getvalue())
    except OSError as error:
        raise TextError(f"{path}: cannot write it: {error.strerror or error}") from error


def read(path: str | os.PathLike[str]) -> dict[str, NDArray[np.float32]]:
    """Read an importance matrix, and trust nothing in it.

    Args:
        path: The file.

    Returns:
        By tensor, float32 of shape (matrices * columns,).

    Raises:
        TextError: It is not there, not such a file, or damaged; the message names the tensor.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise TextError(f"{path}: it is no file; an importance matrix is expected")
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise TextError(
                f"{path}: it has {size} bytes, an importance matrix at most {MOST_BYTES}"
            )
        content = path.read_bytes()
    except OSError as error:
        raise TextError(f"{path}: cannot read it: {error.strerror or error}") from error
    if not content.startswith(_MAGIC):
        raise TextError(
            f"{path}: it is no .npz file (a zip of arrays); an importance matrix is expected"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            _check(path, members, size)
            return {
                member.filename.removesuffix(".npy"): _array(path, archive, member)
                for member in members
            }
    except _ZIP_ERRORS as error:
        raise TextError(f"{path}: its zip directory is damaged ({_safe(str(error))})") from error


def _check(path: Path, members: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Bound what the directory claims before anything is read by it."""
    if not 1 <= len(members) <= MOST_TENSORS:
        raise TextError(
            f"{path}: it has {len(members)} tensors; 1 to {MOST_TENSORS} are expected in an"
            " importance matrix"
        )
    names: set[str] = set()
    for member in members:
        name = member.filename.removesuffix(".npy")
        named = member.filename.endswith(".npy") and name.isascii() and name.isprintable()
        if not named or not name or len(name) > _LONGEST_NAME or "/" in name:
            raise TextError(
                f"{path}: {_safe(member.filename)!r} is no name of a tensor's array, such as"
                " 'blk.0.attn_q.weight.npy'"
            )
        if name in names:
            raise TextError(f"{path}: {name} is there twice")
        names.add(name)
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise TextError(f"{path}: {name} is compressed or encrypted; it has to be stored plain")
    if sum(member.file_size for member in members) > size:
        raise TextError(f"{path}: its tensors claim more than its {size} bytes")


def _array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[np.float32]:
    name = member.filename.removesuffix(".npy")
    data = io.BytesIO(archive.read(member))
    try:
        np.lib.format.read_magic(data)
        shape, _, kind = np.lib.format.read_array_header_1_0(data, max_header_size=1024)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise TextError(f"{path}: {name} is no array ({_safe(str(error))})") from error
    body = data.read()
    if kind != np.dtype("<f4") or len(shape) != 1 or 4 * shape[0] != len(body) or not body:
        raise TextError(
            f"{path}: {name} is {kind} of shape {shape} in {len(body)} bytes; one row of float32 is"
            " expected"
        )
    values = np.frombuffer(body, dtype=np.float32)
    wrong = (
        "not finite in some column"
        if not np.isfinite(values).all()
        else "negative in some column"
        if values.min() < 0
        else "zero in every column"
        if not values.any()
        else ""
    )
    if wrong:
        raise TextError(f"{path}: {name} is {wrong}; means of squares are expected")
    return values


def _safe(text: str, most: int = 80) -> str:
    """Keep what an untrusted file says on one line."""
    shown = "".join(char if char.isprintable() else "?" for char in text)
    return shown if len(shown) <= most else shown[:most] + "..."
