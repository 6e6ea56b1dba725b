"""The laws of what cells take: peak memory, bytes of a file, time to decode, power."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING

from ..model.law import LawPoint
from .fits import fit, is_beyond, off_the_line, theil_sen, z_of
from .methods import IQ, family_of_types
from .reporting import Findings, error_to_report, finish, points_of, too_few
from .rows import columns, count_distinct, error_of, take, value_of
from .wording import KIB, MIB, count, in_mib, per_gib, rounded_down, with_error, with_r2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..model.law import LawReport, Row
    from .rows import Taken

MEMORY_SLOPE = (0.98, 1.03)
"""Bytes of peak memory per byte of weights."""

MEMORY_SHARE, MEMORY_LEAST = 0.01, MIB
"""Largest residual of peak memory: a share of the smallest weights, but at least so much."""

MEMORY_R2 = 0.999

MEMORY_RANGE = 20
"""Weights that differ by fewer times the largest residual show no slope: it is taken to be 1."""

SIZE_SLOPE = 0.005
SIZE_SHARE, SIZE_LEAST = 0.001, 64 * KIB
"""Largest difference between overheads: a share of the smallest file, but at least so much."""

SLOW = 2.0
"""A cell is named that takes so many times the line's time to decode a token."""


def memory(subject: str, rows: Sequence[Row]) -> LawReport:
    """Hold peak memory against the bytes of the weights.

    Slope and residuals are those of the line without the cells that are off it, so that one leak
    is told of its cell and not smeared over all; slope, intercept and R2 of the report are those
    of all cells.

    Args:
        subject: The model.
        rows: Its cells, plain floats too.
    """
    taken = take("memory", subject, rows, ("weight_bytes", "peak_memory"), one_kv=True)
    if count_distinct(taken.rows, "weight_bytes") < 3:
        return too_few(taken, "3 cells of different weight_bytes")
    xs, ys = columns(taken.rows, "weight_bytes", "peak_memory")
    tolerance = max(MEMORY_SHARE * min(xs), MEMORY_LEAST)
    if max(xs) - min(xs) < MEMORY_RANGE * tolerance:
        return _memory_of_small(taken, tolerance)
    off, told = off_the_line(xs, ys, tolerance, MEMORY_SLOPE)
    kept = [i for i in range(len(xs)) if i not in off]
    # More than two on it, or all of them where the cells off it cannot be told.
    line = fit([xs[i] for i in kept], [ys[i] for i in kept]) if told else fit(xs, ys)
    whole = fit(xs, ys)
    assert line is not None  # the cells that are kept differ
    assert whole is not None
    away = [y - line.at(x) for x, y in zip(xs, ys, strict=True)]
    found = Findings()
    found.fails += [
        f"{taken.rows[i].cell} takes {in_mib(away[i], '+')} against the line of the other cells,"
        f" {in_mib(tolerance)} are allowed"
        for i in off
        if told
    ]
    if off and not told:
        names = ", ".join(taken.rows[i].cell for i in off)
        found.fails.append(
            f"no line fits within {in_mib(tolerance)}: {names} disagree, by up to"
            f" {in_mib(max(map(abs, away)))}, and which is off cannot be told"
        )
    else:
        low, high = MEMORY_SLOPE
        if not low <= line.slope <= high:
            found.add(
                f"the slope is {line.slope:.4f}, not {low} to {high} bytes per byte of weights",
                sure=is_beyond(line, low, high),
            )
        # Over a narrow range residuals within the tolerance spoil R2.
        if line.r2 is not None and line.r2 < MEMORY_R2 and max(xs) >= 2 * min(xs):
            found.fails.append(f"R2 is {rounded_down(line.r2)}, below {MEMORY_R2}")
    largest = max((abs(away[i]) for i in kept), default=0.0)
    words = (
        f"peak memory = {line.slope:.4f} x weight bytes + {in_mib(line.intercept)} over"
        f" {line.n} cells, residuals within {in_mib(largest)} of {in_mib(tolerance)}"
        f"{with_r2(line)}"
    )
    return finish(
        taken,
        found,
        words,
        axes=("weight_bytes", "B", "peak_memory", "B"),
        points=points_of(taken.rows, xs, "peak_memory", fitted=[line.at(x) for x in xs]),
        line=whole,
        figures={
            "tolerance": tolerance,
            "largest_residual": max(map(abs, away)),
            "kept_slope": line.slope,
            "kept_intercept": line.intercept,
        },
    )


def _memory_of_small(taken: Taken, tolerance: float) -> LawReport:
    """Hold that peak memory is the bytes of the weights plus the same of every cell."""
    xs, ys = columns(taken.rows, "weight_bytes", "peak_memory")
    over = [y - x for x, y in zip(xs, ys, strict=True)]
    usual = median(over)
    found = Findings()
    found.fails += [
        f"{row.cell} takes {in_mib(one - usual, '+')} beside its weights against the other cells,"
        f" {in_mib(tolerance)} are allowed"
        for row, one in zip(taken.rows, over, strict=True)
        if abs(one - usual) > tolerance
    ]
    largest = max(abs(one - usual) for one in over)
    return finish(
        taken,
        found,
        f"peak memory = weight bytes + {in_mib(usual)} over {len(xs)} cells, equal within"
        f" {in_mib(largest)} of {in_mib(tolerance)}; weights that differ by"
        f" {in_mib(max(xs) - min(xs))} show no slope",
        axes=("weight_bytes", "B", "peak_memory", "B"),
        points=points_of(taken.rows, xs, "peak_memory", fitted=[x + usual for x in xs]),
        figures={"tolerance": tolerance, "largest_residual": largest},
    )


def file_size(subject: str, rows: Sequence[Row]) -> LawReport:
    """Hold the file's size against the bytes of its weights, and those against its BPW.

    Args:
        subject: The model.
        rows: Its cells; ``effective_bpw`` is held where it and the number of weights are known.
    """
    taken = take("file_size", subject, rows, ("weight_bytes", "file_size"))
    xs, ys = columns(taken.rows, "weight_bytes", "file_size")
    found = Findings(fails=_mislabelled(taken.rows))
    found.fails += [
        f"{row.cell} is {in_mib(x - y)} smaller than its own weights"
        for row, x, y in zip(taken.rows, xs, ys, strict=True)
        if y < x
    ]
    if count_distinct(taken.rows, "weight_bytes") < 3 and not found.fails:
        return too_few(taken, "3 cells of different weight_bytes")
    over = [y - x for x, y in zip(xs, ys, strict=True)]
    usual = median(over)
    tolerance = max(SIZE_SHARE * min(ys), SIZE_LEAST)
    found.fails += [
        f"{row.cell} holds {in_mib(one - usual, '+')} beside its weights against the other cells,"
        f" {in_mib(tolerance)} are allowed"
        for row, one in zip(taken.rows, over, strict=True)
        if abs(one - usual) > tolerance
    ]
    line = fit(xs, ys)
    if line is not None and line.n > 2 and abs(line.slope - 1) > SIZE_SLOPE:
        found.add(
            f"the slope is {line.slope:.5f}, not 1 within {SIZE_SLOPE:.1%}",
            sure=is_beyond(line, 1 - SIZE_SLOPE, 1 + SIZE_SLOPE),
        )
    spread = max(over) - min(over)
    words = (
        f"file size = weight bytes + {in_mib(usual)} over {len(xs)} cells, equal within"
        f" {spread / KIB:.1f} KiB"
    )
    return finish(
        taken,
        found,
        words,
        axes=("weight_bytes", "B", "file_size", "B"),
        points=points_of(taken.rows, xs, "file_size", fitted=[x + usual for x in xs]),
        line=line,
        figures={"overhead": usual, "overhead_spread": spread, "tolerance": tolerance},
    )


def decode_time(subject: str, rows: Sequence[Row]) -> LawReport:
    """Hold the time of a decoded token against the bytes that it reads.

    It warns, since the relation is one of machines where memory is what decoding waits for: only
    that more bytes take less time, beyond two standard errors, fails.

    Args:
        subject: The model.
        rows: Its cells.
    """
    names = ("active_bytes", "decode_speed")
    taken = take("decode_time", subject, rows, names, warns=True, one_kv=True)
    stopped = [row for row in taken.rows if value_of(row, "decode_speed") <= 0]
    taken = taken.without(stopped, "decode_speed is not positive")
    plain = [row for row in taken.rows if family_of_types(row.method) != IQ]
    if count_distinct(plain, "active_bytes") < 3:
        return too_few(taken, "3 cells of plain (not IQ) types of different active_bytes")
    sets = {
        "all": taken.rows,
        "without_float": [row for row in taken.rows if family_of_types(row.method)],
        "without_iq": plain,
        "without_float_and_iq": [row for row in plain if family_of_types(row.method)],
    }
    lines = {name: fit(*_timed(some)) for name, some in sets.items()}
    line, bare = lines["without_iq"], lines["without_float_and_iq"]
    assert line is not None  # three cells differ
    naming = theil_sen(*_timed(plain))
    xs, ys = _timed(taken.rows)
    found = Findings()
    found.said += [
        f"{row.cell} takes {1000 * y:.4g} ms a token, {y / naming.at(x):.1f} times what its bytes"
        " take on the line of the plain types"
        for row, x, y in zip(taken.rows, xs, ys, strict=True)
        if naming.at(x) > 0 and y > SLOW * naming.at(x)
    ]
    if bare is not None and bare.slope_error is not None and bare.slope <= 2 * bare.slope_error:
        found.said.append(
            "without plain floats decode time does not follow the bytes here:"
            f" {per_gib(bare)} s/GiB{with_r2(bare)}"
        )
    error = line.slope_error or 0.0
    slope = f"{per_gib(line)} s/GiB"
    if line.slope < -2 * error:
        found.add(f"more bytes take less time: {slope} over the plain types", sure=True)
    elif line.slope <= 2 * error:
        found.add(f"bytes do not explain decode time here: {slope}{with_r2(line)}", sure=False)
    return finish(
        taken,
        found,
        f"{slope} over {len(plain)} cells of plain types{with_r2(line)}",
        axes=("active_bytes", "B", "decode_time", "s"),
        points=[
            LawPoint(
                cell=row.cell,
                x=x,
                y=y,
                error=error_to_report(row, "decode_speed", y * y),
                fitted=line.at(x),
                residual=y - line.at(x),
                left_out="" if row in plain else "IQ types are left out of the line",
            )
            for row, x, y in zip(taken.rows, xs, ys, strict=True)
        ],
        line=line,
        figures={
            f"{name}_{figure}": value
            for name, one in lines.items()
            if one is not None
            for figure, value in one.figures().items()
        },
    )


def power(subject: str, rows: Sequence[Row]) -> LawReport:
    """Hold that prefill draws more power than decoding, in every cell and beyond errors.

    Args:
        subject: The model.
        rows: Its cells.
    """
    taken = take("power", subject, rows, ("decode_power", "prefill_power"))
    if not taken.rows:
        return too_few(taken, "a cell with both")
    z = z_of(len(taken.rows))
    xs, ys = columns(taken.rows, "decode_power", "prefill_power")
    more = [y - x for x, y in zip(xs, ys, strict=True)]
    found = Findings()
    for row, gap in zip(taken.rows, more, strict=True):
        error = math.hypot(error_of(row, "prefill_power"), error_of(row, "decode_power"))
        if not gap > z * error:
            found.add(
                f"{row.cell} draws {with_error(row, 'prefill_power')} W in prefill and"
                f" {with_error(row, 'decode_power')} W decoding",
                sure=gap < -z * error,
            )
    return finish(
        taken,
        found,
        f"prefill draws {min(more):+.2f} to {max(more):+.2f} W against decoding in"
        f" {count(len(more), 'cell')}",
        axes=("decode_power", "W", "prefill_power", "W"),
        points=points_of(taken.rows, xs, "prefill_power", fitted=xs),
    )


def _timed(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Return active bytes, and seconds per decoded token."""
    xs, speeds = columns(rows, "active_bytes", "decode_speed")
    return xs, [1 / speed for speed in speeds]


def _mislabelled(rows: Sequence[Row]) -> list[str]:
    """Name the artifacts whose BPW is not that of their weights, to the byte."""
    said = []
    for row in rows:
        if "effective_bpw" not in row.figures or row.weights <= 0:
            continue
        bpw = value_of(row, "effective_bpw")
        if not math.isfinite(bpw):
            said.append(f"{row.cell}: effective_bpw is not finite")
            continue
        held = value_of(row, "weight_bytes")
        stated = bpw * row.weights / 8
        if abs(stated - held) > 0.5:
            said.append(
                f"{row.cell} is said to have {bpw:.4f} BPW, {stated:.0f} B of weights, but"
                f" holds {held:.0f} B, {8 * held / row.weights:.4f} BPW"
            )
    return said
