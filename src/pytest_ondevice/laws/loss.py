"""The laws of what cells of one model lose, against their bits per weight and their bytes."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import median
from typing import TYPE_CHECKING

from ..model.law import LawPoint
from .fits import fit, z_of
from .methods import family_of_types, kind, kv_type
from .reporting import Findings, finish, point, too_few
from .rows import count_distinct, error_between, error_of, losers, not_finite, take, value_of
from .wording import count, in_bpw, in_mib, with_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..model.law import LawReport, Row

ENVELOPE_A, ENVELOPE_B = 3.2, 1.14
"""No type of llama.cpp's Llama-3-8B table has a mean KLD above exp(A - B x effective BPW) nats."""

ENVELOPE_ROOM = 8.0
"""How many times that a smaller model may lose."""

ENVELOPE_OWN = 5.0
"""How many times the usual loss of its model's cells at its BPW a cell may lose."""

ENVELOPE_FLOOR, ENVELOPE_CAP = 0.001, 5.0
"""Nats that are always allowed, and that never are."""

ENVELOPE_FROM = 2.0
"""Effective BPW below which the table holds nothing."""

APART_BPW = 0.05
"""Cells no more than this apart in effective BPW are not compared."""

MONOTONE_SHARE, MONOTONE_LEAST = 0.02, 0.0003
"""What a cell of more bits may lose more, relatively or in nats: harmless execution variants do."""

MARGINAL_BPW = 3.5
"""Effective BPW from which on loss is marginal and a bigger model is the better choice."""

MARGINAL_BITS, MARGINAL_ACCURACY = 0.2, 0.35
"""Largest relative loss per share of memory saved: in bits per token, and in accuracy."""


def loss_envelope(subject: str, rows: Sequence[Row]) -> LawReport:
    """Hold the loss of each cell against the most that its BPW allows.

    Args:
        subject: The model.
        rows: Its cells; those with another type of KV cache do not take part.
    """
    names = ("effective_bpw", "mean_kld")
    taken = take("loss_envelope", subject, losers(rows), names, no_kv=True)
    low = [row for row in taken.rows if value_of(row, "effective_bpw") < ENVELOPE_FROM]
    taken = taken.without(low, f"below {ENVELOPE_FROM:g} BPW")
    if not taken.rows:
        return too_few(taken, f"a cell of {ENVELOPE_FROM:g} BPW or more beside the reference")
    z, room = z_of(len(taken.rows)), _room(taken.rows)
    found = Findings()
    points, shares = [], []
    for row in taken.rows:
        bpw, loss = value_of(row, "effective_bpw"), value_of(row, "mean_kld")
        allowed = envelope(bpw, room)
        if loss > allowed:
            found.add(
                f"{row.cell} loses {loss:.4g} nats at {bpw:.2f} BPW, where {allowed:.3g} are"
                " allowed",
                sure=loss - z * error_of(row, "mean_kld") > allowed,
            )
        shares.append(loss / allowed)
        points.append(point(row, bpw, "mean_kld", fitted=allowed))
    losing = [
        one
        for row, one in zip(taken.rows, points, strict=True)
        if family_of_types(row.method) and one.y > 0
    ]
    words = (
        f"{count(len(points), 'cell')} lose {min(shares):.1%} to {max(shares):.1%} of what"
        f" their BPW allows with room of {room:.2g}"
    )
    return finish(
        taken,
        found,
        words,
        axes=("effective_bpw", "bits/weight", "mean_kld", "nats"),
        log=True,
        points=points,
        line=fit([one.x for one in losing], [math.log(one.y) for one in losing]),
        figures={"largest_share": max(shares), "room": room},
    )


def envelope(bpw: float, room: float = ENVELOPE_ROOM) -> float:
    """Return the largest mean KLD, in nats, that an effective BPW allows.

    Args:
        bpw: The effective BPW.
        room: How many times the loss that the published table allows.
    """
    return min(room * _published(bpw) + ENVELOPE_FLOOR, ENVELOPE_CAP)


def loss_monotone(subject: str, rows: Sequence[Row]) -> LawReport:
    """Hold that loss falls with BPW within a family of types.

    Args:
        subject: The model.
        rows: Its cells; variants (importance matrix, KV cache) are compared with their like only.
    """
    taken = take("loss_monotone", subject, losers(rows), ("effective_bpw", "mean_kld"))
    floats = [row for row in taken.rows if not family_of_types(row.method)]
    taken = taken.without(floats, "plain floats")
    pairs = []
    for one, other in combinations(taken.rows, 2):
        apart = value_of(one, "effective_bpw") - value_of(other, "effective_bpw")
        if abs(apart) > APART_BPW and kind(one) == kind(other):
            pairs.append((one, other) if apart > 0 else (other, one))
    if not pairs:
        return too_few(taken, f"2 cells of one family of types more than {APART_BPW} BPW apart")
    z = z_of(len(pairs))
    found = Findings()
    for more, less in pairs:
        now, then = value_of(more, "mean_kld"), value_of(less, "mean_kld")
        excess = now - then - max(MONOTONE_SHARE * abs(then), MONOTONE_LEAST)
        if excess > 0:
            found.add(
                f"{more.cell} ({in_bpw(more)}) loses {with_error(more, 'mean_kld')} nats,"
                f" {less.cell} ({in_bpw(less)}) {with_error(less, 'mean_kld')}",
                sure=excess > z * error_between(more, less, "mean_kld"),
            )
    kinds = {kind(more) for more, _ in pairs}
    words = f"loss falls with BPW in {len(pairs)} pairs of cells of {count(len(kinds), 'family')}"
    if found.fails or found.unsure:
        against = len(found.fails) + len(found.unsure)
        words = f"{against} of {len(pairs)} pairs lose more at more BPW"
    judged = {row.cell for pair in pairs for row in pair}
    return finish(
        taken,
        found,
        words,
        axes=("effective_bpw", "bits/weight", "mean_kld", "nats"),
        log=True,
        points=[
            point(
                row,
                value_of(row, "effective_bpw"),
                "mean_kld",
                left_out="" if row.cell in judged else "nothing of its family to compare with",
            )
            for row in taken.rows
        ],
        figures={"pairs": float(len(pairs))},
    )


def pareto(subject: str, rows: Sequence[Row]) -> LawReport:
    """Name cells that another beats both in bytes and, beyond errors, in loss. It only warns.

    Args:
        subject: The model.
        rows: Its cells; only those with the same type of KV cache are compared.
    """
    taken = take("pareto", subject, losers(rows), ("weight_bytes", "mean_kld"), warns=True)
    if count_distinct(taken.rows, "weight_bytes") < 2:
        return too_few(taken, "2 cells of different weight_bytes beside the reference")
    z = z_of(len(taken.rows) * (len(taken.rows) - 1) // 2)
    found, points = Findings(), []
    for row in taken.rows:
        size, loss = value_of(row, "weight_bytes"), value_of(row, "mean_kld")
        smaller = [
            other
            for other in taken.rows
            if value_of(other, "weight_bytes") < size
            and kv_type(other.method) == kv_type(row.method)
        ]
        best = min(smaller, key=_loss_and_cell, default=None)
        fitted = value_of(best, "mean_kld") if best is not None else None
        points.append(point(row, size, "mean_kld", fitted=fitted))
        better = [
            other
            for other in smaller
            if loss - value_of(other, "mean_kld") > z * error_between(row, other, "mean_kld")
        ]
        if better:
            other = min(better, key=_loss_and_cell)
            found.said.append(
                f"{row.cell} ({in_mib(size)}, {with_error(row, 'mean_kld')} nats) is both bigger"
                f" and worse than {other.cell} ({in_mib(value_of(other, 'weight_bytes'))},"
                f" {with_error(other, 'mean_kld')} nats)"
            )
    beaten = len(found.said)
    return finish(
        taken,
        found,
        f"{beaten} of {len(taken.rows)} cells are both bigger and worse than another",
        axes=("weight_bytes", "B", "mean_kld", "nats"),
        log=True,
        points=points,
        figures={"dominated": float(beaten)},
    )


def marginal(subject: str, rows: Sequence[Row]) -> LawReport:
    """Hold that from 3.5 BPW on little is lost for the memory that is saved.

    What is lost is the relative rise of bits per token, ``ln_ppl_ratio`` / ``ln_ppl`` of the
    reference, and the relative fall of ``accuracy``: each where it is there.

    Args:
        subject: The model.
        rows: Its cells, the reference among them.
    """
    taken = take("marginal", subject, rows, ("effective_bpw", "weight_bytes"), no_kv=True)
    references = [row for row in taken.rows if row.reference]
    if not references:
        return too_few(taken, "the reference among the cells")
    base = max(references, key=lambda row: (value_of(row, "weight_bytes"), row.cell))
    taken = taken.without(references, "")
    optional = ("ln_ppl_ratio", "ln_ppl", "accuracy")
    taken = taken.and_broken(
        tuple(said for row in (base, *taken.rows) for said in not_finite(row, optional))
    )
    losses = {row.cell: _losses(row, base) for row in taken.rows}
    saved = {row.cell: _saved(row, base) for row in taken.rows}
    excuses = {row.cell: _excuse(row, saved[row.cell]) for row in taken.rows}
    judged = [row for row in taken.rows if losses[row.cell] and not excuses[row.cell]]
    if not judged:
        need = (
            f"a cell of {MARGINAL_BPW:g} BPW or more, smaller than the reference, with ln_ppl_ratio"
            " (and ln_ppl of the reference) or accuracy (and that of the reference)"
        )
        return too_few(taken, need)
    z = z_of(sum(len(losses[row.cell]) for row in judged))
    found = Findings()
    points, shares = [], []
    for row in taken.rows:
        for name, lost, error, most in losses[row.cell]:
            allowed = most * max(saved[row.cell], 0.0)
            points.append(
                LawPoint(
                    cell=row.cell,
                    x=saved[row.cell],
                    y=lost,
                    error=error if 0 < error < math.inf else None,
                    fitted=allowed,
                    residual=lost - allowed,
                    left_out=excuses[row.cell],
                )
            )
            if excuses[row.cell]:
                continue
            shares.append(lost / allowed)
            if lost > allowed:
                found.add(
                    f"{row.cell} ({in_bpw(row)}) loses {lost:.1%} of {name} for"
                    f" {saved[row.cell]:.1%} of the memory, {allowed:.1%} are allowed",
                    sure=lost - z * error > allowed,
                )
    mute = [row.cell for row in taken.rows if not losses[row.cell]]
    told = f"; without a loss: {', '.join(mute)}" if mute else ""
    words = (
        f"{count(len(judged), 'cell')} of {MARGINAL_BPW:g} BPW or more lose at most"
        f" {max(shares):.1%} of what is allowed for the memory saved{told}"
    )
    few = [row for row in taken.rows if value_of(row, "effective_bpw") < MARGINAL_BPW]
    return finish(
        taken,
        found,
        words,
        axes=("memory saved", "1", "relative loss", "1"),
        points=points,
        figures={"largest_share": max(shares), "not_judged": float(len(few))},
    )


def _published(bpw: float) -> float:
    """Return the largest mean KLD of the published table at an effective BPW."""
    return math.exp(ENVELOPE_A - ENVELOPE_B * bpw)


def _room(rows: Sequence[Row]) -> float:
    """How many times the published loss a model may lose, by the median of its quantized cells.

    Never less than once; where there are fewer than three cells, the most.
    """
    usual = [
        value_of(row, "mean_kld") / _published(value_of(row, "effective_bpw"))
        for row in rows
        if family_of_types(row.method)
    ]
    if len(usual) < 3:
        return ENVELOPE_ROOM
    return min(max(ENVELOPE_OWN * median(usual), 1.0), ENVELOPE_ROOM)


def _loss_and_cell(row: Row) -> tuple[float, str]:
    return value_of(row, "mean_kld"), row.cell


def _losses(row: Row, base: Row) -> list[tuple[str, float, float, float]]:
    """List what a cell lost: of what, relative loss, its error, most per share of memory saved."""
    found = []
    if "ln_ppl_ratio" in row.figures and _is_usable(base, "ln_ppl"):
        bits = value_of(base, "ln_ppl")
        lost, error = value_of(row, "ln_ppl_ratio") / bits, error_of(row, "ln_ppl_ratio") / bits
        found.append(("bits per token", lost, error, MARGINAL_BITS))
    if "accuracy" in row.figures and _is_usable(base, "accuracy"):
        then = value_of(base, "accuracy")
        share = value_of(row, "accuracy") / then
        error = math.hypot(error_of(row, "accuracy"), share * error_of(base, "accuracy")) / then
        found.append(("accuracy", 1 - share, error, MARGINAL_ACCURACY))
    return [one for one in found if math.isfinite(one[1])]


def _is_usable(base: Row, quantity: str) -> bool:
    """Whether the reference has a figure that losses may be relative to."""
    return quantity in base.figures and 0 < value_of(base, quantity) < math.inf


def _saved(row: Row, base: Row) -> float:
    """Return the share of the reference's weight bytes that a cell saves."""
    whole = value_of(base, "weight_bytes")
    return 1 - value_of(row, "weight_bytes") / whole if whole > 0 else 0.0


def _excuse(row: Row, saved: float) -> str:
    """Say why a cell is not judged by what it saves; empty if it is."""
    if value_of(row, "effective_bpw") < MARGINAL_BPW:
        return f"below {MARGINAL_BPW:g} BPW"
    return "" if saved > 0 else "it saves no memory"
