"""Loss against the reference, on identical token ids, in one pass per window.

Conventions are llama-perplexity's: windows of n_ctx tokens, BOS in the first place of each where
the model wants it, only the second half of each window scored. The reference's distributions are
kept as the exact top K plus a weighted sample of the rest (about 6 KB a position).

The divergence is summed as p (d + exp(-d) - 1) with d = ln(p/q): over the whole vocabulary that is
KLD(P||Q), since both distributions sum to one, and each term is non-negative, so that sampling
the tail in proportion to p estimates it without bias and with little noise.
"""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from .protocol import FidelityPlan

    Floats = NDArray[np.float64]
    Floats32 = NDArray[np.float32]


BLOCK_ROWS = 8
"""Positions that are worked on together: few enough to stay in the processor's cache."""


class TextError(Exception):
    """The evaluation text does not fit the model or the reference."""


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


def cut(model: Any, plan: FidelityPlan) -> tuple[list[str], NDArray[np.int32]]:
    """Tokenize the text and cut it into windows, in the seeded order.

    Returns:
        Window ids such as ``narrative:2`` and their token ids, shape (windows, n_ctx).

    Raises:
        TextError: The text holds no whole window.
    """
    n_ctx = plan.execution.n_ctx
    tokens = {text.kind: model.tokenize(Path(text.path).read_text("utf-8")) for text in plan.texts}
    counts = {kind: len(ids) // n_ctx for kind, ids in tokens.items()}
    chosen = order(counts, plan.windows, plan.seed)
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
    """Measure one artifact over the windows; per-window means are what baselines hold.

    Returns:
        ``ids``, ``tokens`` (digest), ``scored`` (positions per window), ``nonfinite`` (count) and
        per-window lists ``nll``, ``kld``, ``ln_ratio``, ``same_top``.

    Raises:
        TextError: No whole window, or other tokens than the reference's.
    """
    with (
        engine.load(path, plan.execution, alive=lambda _: tick(0, 1)) as model,
        engine.context(model, plan.execution) as ctx,
    ):
        ids, windows = cut(model, plan)
        digest = hashlib.sha256(windows.tobytes()).hexdigest()[:16]
        store: _Writer | _Reader
        if plan.write:
            store = _Writer(plan, windows.shape, model.n_vocab)
        else:
            store = _Reader(plan.reference, digest, model.n_vocab)
        first = plan.execution.n_ctx // 2
        rows: dict[str, list[float]] = {"nll": [], "kld": [], "ln_ratio": [], "same_top": []}
        nonfinite = 0
        for index, window in enumerate(windows):
            ctx.clear()
            for start in range(0, len(window), plan.execution.n_ubatch):
                piece = window[start : start + plan.execution.n_ubatch]
                ctx.feed(piece.tolist(), start, logits_from=max(0, first - start))
            # The last position predicts a token outside the window, as in llama-perplexity.
            logits = ctx.logits(len(window) - first)[:-1]
            targets = window[first + 1 :]
            bad = 0 if np.isfinite(logits.sum()) else int((~np.isfinite(logits)).sum())
            if bad:
                nonfinite += bad
                for values in rows.values():
                    values.append(float("nan"))
            else:
                log_p = log_softmax(logits)
                for name, value in store.compare(index, log_p, targets).items():
                    rows[name].append(value)
            tick(index + 1, len(windows))
        if plan.write and not nonfinite:
            store.save(digest)
    finite = {
        name: [value if value == value else None for value in values]  # noqa: PLR0124  (NaN)
        for name, values in rows.items()
    }
    return {
        "ids": ids,
        "tokens": digest,
        "scored": plan.execution.n_ctx - first - 1,
        "nonfinite": nonfinite,
        "reference": plan.write,
        **finite,
    }


class _Writer:
    """The reference's own pass: keeps its distributions, compares with nothing."""

    def __init__(self, plan: FidelityPlan, shape: tuple[int, ...], n_vocab: int) -> None:
        windows, n_ctx = shape
        scored = n_ctx - n_ctx // 2 - 1
        self.path = Path(plan.reference)
        self.top = min(plan.top, n_vocab)
        self.tail = plan.tail if n_vocab > self.top else 0
        self.n_vocab = n_vocab
        self.rng = np.random.default_rng(plan.seed)
        self.kept_ids = np.zeros((windows, scored, self.top + self.tail), dtype=np.uint32)
        self.kept_log_p = np.zeros(self.kept_ids.shape, dtype=np.float32)
        self.tail_mass = np.zeros((windows, scored), dtype=np.float64)
        self.target_log_p = np.zeros((windows, scored), dtype=np.float64)
        self.best = np.zeros((windows, scored), dtype=np.uint32)

    def compare(self, index: int, log_p: Floats32, targets: NDArray[np.int32]) -> dict[str, float]:
        """Keep one window's distributions; the reference differs from itself by nothing."""
        at = np.arange(len(targets))
        self.target_log_p[index] = log_p[at, targets]
        self.best[index] = log_p.argmax(axis=1)
        for row, values in enumerate(log_p):
            top = np.argpartition(values, -self.top)[-self.top :]
            kept = [top]
            if self.tail:
                p = np.exp(values, dtype=np.float64)
                p[top] = 0.0
                kept.append(self._sample(p))
                self.tail_mass[index, row] = p.sum()
            ids = np.concatenate(kept)
            self.kept_ids[index, row] = ids
            self.kept_log_p[index, row] = values[ids]
        nll = float(-self.target_log_p[index].mean())
        return {"nll": nll, "kld": 0.0, "ln_ratio": 0.0, "same_top": 1.0}

    def _sample(self, p: Floats) -> NDArray[np.int64]:
        # Systematic sampling: equidistant places on the cumulative mass. Vocabularies are roughly
        # in order of frequency, so neighbours are alike and the sample is stratified.
        mass = p.cumsum()
        places = (np.arange(self.tail) + self.rng.random()) * (mass[-1] / self.tail)
        found: NDArray[np.int64] = np.minimum(np.searchsorted(mass, places), len(p) - 1)
        return found

    def save(self, digest: str) -> None:
        """Write the reference file; it appears whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                np.savez(
                    file,
                    tokens=np.array(digest),
                    n_vocab=np.array(self.n_vocab),
                    top=np.array(self.top),
                    kept_ids=self.kept_ids,
                    kept_log_p=self.kept_log_p,
                    tail_mass=self.tail_mass,
                    target_log_p=self.target_log_p,
                    best=self.best,
                )
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.path)
        finally:
            part.unlink(missing_ok=True)


class _Reader:
    """A candidate's pass: compares each window with the reference's."""

    def __init__(self, path: str, digest: str, n_vocab: int) -> None:
        with np.load(path, allow_pickle=False) as file:
            tokens = str(file["tokens"])
            if int(file["n_vocab"]) != n_vocab:
                raise TextError(
                    f"its vocabulary has {n_vocab} tokens, the reference's"
                    f" {int(file['n_vocab'])}; it is not a quantization of this model"
                )
            if tokens != digest:
                raise TextError(
                    "its tokenizer turns the evaluation text into other tokens than the"
                    " reference's; losses on different tokens cannot be compared"
                )
            self.top = int(file["top"])
            self.kept_ids = file["kept_ids"]
            self.kept_log_p = file["kept_log_p"]
            self.tail_mass = file["tail_mass"]
            self.target_log_p = file["target_log_p"]
            self.best = file["best"]

    def compare(self, index: int, log_p: Floats32, targets: NDArray[np.int32]) -> dict[str, float]:
        """Compare one window's log-probabilities (scored, n_vocab) with the reference's."""
        at = np.arange(len(targets))
        target = log_p[at, targets].astype(np.float64)
        log_q = np.take_along_axis(log_p, self.kept_ids[index].astype(np.int64), axis=1)
        kld = divergence(
            self.kept_log_p[index].astype(np.float64),
            log_q.astype(np.float64),
            self.top,
            self.tail_mass[index],
        )
        same = log_p.argmax(axis=1) == self.best[index]
        return {
            "nll": float(-target.mean()),
            "kld": float(kld.mean()),
            "ln_ratio": float((self.target_log_p[index] - target).mean()),
            "same_top": float(same.mean()),
        }

    def save(self, digest: str) -> None:
        """Nothing to keep: only the reference's pass writes."""


def divergence(log_p: Floats, log_q: Floats, top: int, tail_mass: Floats) -> Floats:
    """Estimate KLD(P||Q) per position, in nats.

    Args:
        log_p: ln p of the kept tokens, shape (positions, top + samples).
        log_q: ln q of the same tokens.
        top: How many of them are exact; the rest were drawn from the others in proportion to p.
        tail_mass: The probability that P gives to all tokens outside the top, per position.
    """
    d = log_p - log_q
    terms = d + np.expm1(-d)
    kld: Floats = (np.exp(log_p[:, :top]) * terms[:, :top]).sum(axis=1)
    if terms.shape[1] > top:
        kld += tail_mass * terms[:, top:].mean(axis=1)
    return kld
