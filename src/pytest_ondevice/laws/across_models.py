"""The law across the models of a family: which is better at equal memory, and from which BPW on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .fits import z_of
from .loss import MARGINAL_BPW
from .reporting import Findings, finish, point, too_few
from .rows import error_between, take, value_of
from .wording import in_bpw, in_mib, with_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..model.law import LawReport, Row

EQUAL_MEMORY = 1.05
"""A cell fits in the memory of another that takes this many times less at most."""


def threshold(subject: str, rows: Sequence[Row]) -> LawReport:
    """Hold that at equal memory the bigger model is as good, and find from which BPW on it is.

    A cell is compared with every cell of a smaller model that fits in its memory, 5 % more allowed.
    It is at least as good unless it is worse beyond errors. The crossover is the lowest measured
    BPW from which on each cell of a bigger model is at least as good as all it is compared with.

    Args:
        subject: The family.
        rows: The cells of all its models.
    """
    quality = "accuracy" if _all_have(rows, "accuracy") else "bits_per_byte"
    takes = "peak_memory" if _all_have(rows, "peak_memory") else "weight_bytes"
    names = tuple(dict.fromkeys(("effective_bpw", "weight_bytes", takes, quality)))
    taken = take("threshold", subject, rows, names, no_kv=True)
    sizes = _sizes(taken.rows)
    if len(set(sizes.values())) < 2:
        return too_few(taken, "cells of 2 models of different size")
    pairs = [
        (big, small)
        for big in taken.rows
        for small in taken.rows
        if sizes[small.model] < sizes[big.model]
        and value_of(small, takes) <= EQUAL_MEMORY * value_of(big, takes)
    ]
    if not any(value_of(big, "effective_bpw") >= MARGINAL_BPW for big, _ in pairs):
        need = (
            f"a cell of {MARGINAL_BPW:g} BPW or more in whose {takes} a cell of a smaller model"
            " fits"
        )
        return too_few(taken, need)
    z = z_of(len(pairs))
    sign = 1.0 if quality == "accuracy" else -1.0
    found = Findings()
    # BPW of the bigger cell by the names of both models: all that were compared, and the worse.
    compared: dict[tuple[str, str], set[float]] = {}
    worse: dict[tuple[str, str], set[float]] = {}
    for big, small in pairs:
        bpw = value_of(big, "effective_bpw")
        models = (big.model, small.model)
        compared.setdefault(models, set()).add(bpw)
        behind = sign * (value_of(small, quality) - value_of(big, quality))
        sure = behind > z * error_between(big, small, quality)
        if behind > 0 and sure:
            worse.setdefault(models, set()).add(bpw)
        if behind > 0 and bpw >= MARGINAL_BPW:
            found.add(
                f"{big.cell} ({in_bpw(big)}, {in_mib(value_of(big, takes))}, {quality}"
                f" {with_error(big, quality)}) is worse than {small.cell} ({in_bpw(small)},"
                f" {in_mib(value_of(small, takes))}, {with_error(small, quality)})",
                sure=sure,
            )
    crossovers = {
        models: _crossover(bpws, worse.get(models, set()))
        for models, bpws in sorted(compared.items())
    }
    known = [one for one in crossovers.values() if one is not None]
    return finish(
        taken,
        found,
        f"{len(pairs)} comparisons at equal {takes} by {quality}: {_turns(crossovers, worse)}",
        axes=("effective_bpw", "bits/weight", quality, "1" if sign > 0 else "bits/byte"),
        points=[point(row, value_of(row, "effective_bpw"), quality) for row in taken.rows],
        crossover=max(known) if len(known) == len(crossovers) else None,
        figures={
            f"crossover {big} over {small}": bpw
            for (big, small), bpw in crossovers.items()
            if bpw is not None
        },
    )


def _all_have(rows: Sequence[Row], quantity: str) -> bool:
    return bool(rows) and all(quantity in row.figures for row in rows)


def _sizes(rows: Sequence[Row]) -> dict[str, float]:
    """Return the weights of each model, by its rows or else by bytes and BPW of one."""
    sizes: dict[str, float] = {}
    for row in rows:
        bpw = value_of(row, "effective_bpw")
        held = row.weights or (8 * value_of(row, "weight_bytes") / bpw if bpw > 0 else 0.0)
        sizes[row.model] = max(sizes.get(row.model, 0.0), float(held))
    return sizes


def _crossover(measured: set[float], worse: set[float]) -> float | None:
    """Return the lowest measured BPW above every one that is worse; None where the highest is."""
    last = max(worse, default=-math.inf)
    return min((bpw for bpw in measured if bpw > last), default=None)


def _turns(
    crossovers: Mapping[tuple[str, str], float | None],
    worse: Mapping[tuple[str, str], set[float]],
) -> str:
    """Say from which BPW on each bigger model is as good as each smaller one."""
    said = []
    for models, found in crossovers.items():
        name = "{} is as good as {}".format(*models)
        below = worse.get(models, set())
        if found is None:
            said.append(f"{name} at no BPW up to {max(below):.2f}")
        elif below:
            said.append(f"{name} from {found:.2f} BPW on and not at {max(below):.2f}")
        else:
            said.append(f"{name} at all BPW measured, from {found:.2f} on")
    return ", ".join(said)
