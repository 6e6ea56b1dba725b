"""Loss against the reference, on identical token ids, in one pass per window.

Conventions are llama-perplexity's: windows of n_ctx tokens, BOS in the first place of each where
the model wants it, only the second half of each window scored.
"""

from __future__ import annotations

import base64
import hashlib
import random
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np

from .protocol import N_CTX
from .reference import Compared, Head, Reader, TextError, Writer, exact, moving

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from .protocol import Execution, FidelityPlan, Text

    Floats32 = NDArray[np.float32]

BLOCK_ROWS = 8
"""Positions that are worked on together: few enough to stay in the processor's cache."""

COLUMNS = ("nll", "kld", "ln_ratio", "same_top", "dp", "square_dp")
"""What a window is told by: each the mean over its scored positions."""


class _Windows(Protocol):
    """Where a window's log-probabilities go; what comes back is how they compare."""

    def take(
        self, name: str, window: NDArray[np.int32], log_q: Floats32, digest: str
    ) -> Compared | None: ...

    def save(self) -> None: ...


def order(counts: Mapping[str, int], most: int | None, seed: int) -> list[tuple[str, int]]:
    """Put windows into the seeded order, stratified by kind of text.

    The order consists of rounds; a round takes one window of each kind that has one left, kinds
    and windows permuted. So every prefix of as many windows as there are kinds holds every kind.

    Args:
        counts: Number of whole windows per kind.
        most: How many windows to take, None for all.
        seed: The same seed gives the same order everywhere.
    """
    rng = random.Random(seed)  # noqa: S311  (nothing secret)
    left = {}
    for kind in sorted(counts):
        left[kind] = list(range(counts[kind]))
        rng.shuffle(left[kind])
    chosen: list[tuple[str, int]] = []
    while any(left.values()):
        kinds = [kind for kind, windows in left.items() if windows]
        rng.shuffle(kinds)
        chosen.extend((kind, left[kind].pop()) for kind in kinds)
    return chosen[:most]


def cut(
    model: Any, texts: Sequence[Text], *, seed: int, n_ctx: int = N_CTX
) -> tuple[list[str], NDArray[np.int32]]:
    """Tokenize the text and cut it into windows, in the seeded order.

    Returns:
        Window ids such as ``narrative:2`` and their token ids, shape (windows, n_ctx).

    Raises:
        TextError: The text holds no whole window.
    """
    tokens = {text.kind: model.tokenize(Path(text.path).read_text("utf-8")) for text in texts}
    chosen = order({kind: len(ids) // n_ctx for kind, ids in tokens.items()}, None, seed)
    if not chosen:
        raise TextError(
            f"the evaluation text has {sum(map(len, tokens.values()))} tokens; one window needs"
            f" {n_ctx}"
        )
    windows = np.array(
        [tokens[kind][i * n_ctx : (i + 1) * n_ctx] for kind, i in chosen], dtype=np.int32
    )
    if model.adds_bos:
        windows[:, 0] = model.bos
    return [f"{kind}:{i}" for kind, i in chosen], windows


def log_softmax(logits: Floats32) -> Floats32:
    """Turn logits (rows, n_vocab) into log-probabilities, in float32 with a float64 sum."""
    made: Floats32 = np.empty_like(logits)
    scratch = np.empty((BLOCK_ROWS, logits.shape[1]), dtype=np.float32)
    for start in range(0, len(logits), BLOCK_ROWS):
        rows, out = logits[start : start + BLOCK_ROWS], made[start : start + BLOCK_ROWS]
        np.subtract(rows, rows.max(axis=1, keepdims=True), out=out)
        total = np.exp(out, out=scratch[: len(rows)]).sum(axis=1, dtype=np.float64, keepdims=True)
        out -= np.log(total).astype(np.float32)
    return made


def measure(
    engine: Any, path: str, plan: FidelityPlan, tick: Callable[[float, float], None]
) -> dict[str, object]:
    """Measure one artifact over some windows; per-window means are what baselines hold.

    Returns:
        ``ids`` of the windows, ``available`` (windows that the text holds), ``scored`` (positions
        per window), ``bytes`` (of text, that each window's scored tokens stand for), ``nonfinite``
        (count), ``reference`` (whether this is the reference itself),
        ``isa`` and ``logits`` (digests of the first windows' logits), a list per name of
        ``COLUMNS``, and ``token_kld`` and ``token_dp``: base64 of float32, every scored position.

    Raises:
        TextError: No whole window, or other tokens than the reference's.
    """
    with ExitStack() as stack:
        model = stack.enter_context(engine.load(path, plan.execution, alive=lambda _: tick(0, 1)))
        ctx = stack.enter_context(engine.context(model, plan.execution))
        names, windows = cut(model, plan.texts, seed=plan.seed, n_ctx=plan.execution.n_ctx)
        available = len(names)
        names, windows = names[plan.first : plan.last], windows[plan.first : plan.last]
        tokens = [hashlib.sha256(window.tobytes()).hexdigest()[:16] for window in windows]
        sink: _Windows
        if plan.write:
            sink = _Keeping(plan, names, tokens, model.n_vocab)
        elif plan.beside:
            sink = _Beside(stack, engine, plan, windows, model.n_vocab)
        else:
            reader = stack.enter_context(Reader(Path(plan.reference)))
            reader.rows(names, tokens, model.n_vocab)
            sink = _Comparing(reader)
        rows: dict[str, list[float | None]] = {name: [] for name in COLUMNS}
        positions: tuple[list[NDArray[np.float64]], ...] = ([], [])
        digests: list[str] = []
        text_bytes: list[int] = []
        nonfinite = 0
        for index, (name, window) in enumerate(zip(names, windows, strict=True)):
            logits = scored_logits(ctx, window, plan.execution)
            digest = ""
            if plan.first + index < plan.digests:
                digest = hashlib.blake2b(logits.tobytes(), digest_size=8).hexdigest()
                digests.append(digest)
            bad = 0 if np.isfinite(logits.sum()) else int((~np.isfinite(logits)).sum())
            nonfinite += bad
            text_bytes.append(model.n_bytes(_targets(window).tolist()))
            found = None if bad else sink.take(name, window, log_softmax(logits), digest)
            means = _means(found) if found is not None else {}
            for column in COLUMNS:
                rows[column].append(means.get(column))
            if found is not None:
                positions[0].append(found.kld)
                positions[1].append(found.dp)
            tick(index + 1, len(windows))
        if not nonfinite and names:
            sink.save()
    return {
        "ids": names,
        "available": available,
        "scored": plan.execution.n_ctx - plan.execution.n_ctx // 2 - 1,
        "bytes": text_bytes,
        "nonfinite": nonfinite,
        "reference": plan.write,
        "isa": engine.isa(),
        "logits": digests,
        **rows,
        "token_kld": _packed(positions[0]),
        "token_dp": _packed(positions[1]),
    }


def scored_logits(ctx: Any, window: NDArray[np.int32], execution: Execution) -> Floats32:
    """Prefill a window and view the logits of its scored positions, (scored, n_vocab).

    The last position predicts a token outside the window, so it is left out, as in
    llama-perplexity.
    """
    first, step = len(window) // 2, execution.n_ubatch
    ctx.clear()
    parts = []
    for start in range(0, len(window), step):
        piece = window[start : start + step]
        ctx.feed(piece.tolist(), start, logits_from=max(0, first - start))
        rows = start + len(piece) - max(first, start)
        if rows > 0:
            # Of several micro-batches each overwrites the logits of the one before.
            view = ctx.logits(rows)
            parts.append(view if len(window) <= step else view.copy())
    logits: Floats32 = (parts[0] if len(parts) == 1 else np.concatenate(parts))[:-1]
    return logits


def _means(found: Compared) -> dict[str, float]:
    return {
        "nll": float(found.nll.mean()),
        "kld": float(found.kld.mean()),
        "ln_ratio": float(found.ln_ratio.mean()),
        "same_top": float(found.same_top.mean()),
        "dp": float(found.dp.mean()),
        "square_dp": float(np.square(found.dp).mean()),
    }


def _packed(positions: list[NDArray[np.float64]]) -> str:
    whole = np.concatenate(positions) if positions else np.empty(0)
    return base64.b64encode(whole.astype("<f4").tobytes()).decode("ascii")


def _targets(window: NDArray[np.int32]) -> NDArray[np.int32]:
    return window[len(window) // 2 + 1 :]


class _Keeping:
    """The reference's own pass: keeps its distributions; it differs from itself by nothing."""

    def __init__(
        self, plan: FidelityPlan, names: Sequence[str], tokens: Sequence[str], n_vocab: int
    ) -> None:
        n_ctx = plan.execution.n_ctx
        about = plan.about.get
        head = Head(
            model=about("model", ""),
            source=about("source", ""),
            tokenizer=about("tokenizer", ""),
            text=about("text", ""),
            n_vocab=n_vocab,
            n_ctx=n_ctx,
            top=plan.top,
            tail=plan.tail,
            seed=plan.seed,
            execution=moving(plan.execution),
            runtime=about("runtime", ""),
            runtime_digest=about("runtime_digest", ""),
            cpu=about("cpu", ""),
            created=about("created", ""),
        )
        self._path = Path(plan.reference) if plan.reference else None
        self._places = {name: place for place, name in enumerate(names)}
        self._writer = Writer(head, names, tokens, n_ctx - n_ctx // 2 - 1)

    def take(
        self, name: str, window: NDArray[np.int32], log_q: Floats32, digest: str
    ) -> Compared | None:
        targets = _targets(window)
        if self._path is not None:
            self._writer.keep(self._places[name], log_q, targets, digest)
        nothing = np.zeros(len(targets))
        nll = -log_q[np.arange(len(targets)), targets].astype(np.float64)
        return Compared(nothing, nothing, nothing, nll, np.ones(len(targets), dtype=np.bool_))

    def save(self) -> None:
        if self._path is not None:
            self._writer.save(self._path)


class _Comparing:
    """A candidate's pass: compares each window with the reference file's."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def take(
        self, name: str, window: NDArray[np.int32], log_q: Floats32, digest: str
    ) -> Compared | None:
        del digest
        return self._reader.compare(name, log_q, _targets(window))

    def save(self) -> None:
        """Nothing to keep: only the reference's pass writes."""


class _Beside:
    """A candidate's pass beside the reference: exact over the whole vocabulary, without a file."""

    def __init__(
        self,
        stack: ExitStack,
        engine: Any,
        plan: FidelityPlan,
        windows: NDArray[np.int32],
        n_vocab: int,
    ) -> None:
        # The reference keeps its cache in full precision, however the candidate keeps its own.
        plain = msgspec.structs.replace(plan.execution, type_k="f16", type_v="f16")
        model = stack.enter_context(engine.load(plan.beside, plain))
        if n_vocab != model.n_vocab:
            raise TextError(
                f"its vocabulary has {n_vocab} tokens, the reference's {model.n_vocab}; it is not"
                " a quantization of this model"
            )
        theirs = cut(model, plan.texts, seed=plan.seed, n_ctx=plan.execution.n_ctx)[1]
        if not np.array_equal(theirs[plan.first : plan.last], windows):
            raise TextError(
                "its tokenizer turns the evaluation text into other tokens than the reference's;"
                " losses on different tokens cannot be compared"
            )
        self._plan = plan
        self._ctx = stack.enter_context(engine.context(model, plain))

    def take(
        self, name: str, window: NDArray[np.int32], log_q: Floats32, digest: str
    ) -> Compared | None:
        del name, digest
        log_p = log_softmax(scored_logits(self._ctx, window, self._plan.execution))
        return exact(log_p, log_q, _targets(window))

    def save(self) -> None:
        """Nothing to keep: no file is involved."""
