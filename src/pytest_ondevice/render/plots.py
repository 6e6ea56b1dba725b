"""Pictures of a report: one per law, and loss and memory against bits per weight.

Drawn with matplotlib, which is an extra. The same report gives the same bytes.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import textwrap
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..errors import MissingError
from ..model.law import LawPoint, LawReport
from ..model.verdict import Verdict
from .markdown import clean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..model.measurement import Measurement
    from ..model.report import CellReport, Report

Suffix = Literal["svg", "png"]

MARGINAL_BPW = 3.5
"""From here on the loss is small for the memory that is saved; below it, it rises steeply."""

# Colours that also differ in greyscale, for models; orange-red is for what is wrong.
_MODELS = (
    ("#0072B2", "o"),
    ("#E69F00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#56B4E9", "v"),
    ("#000000", "P"),
)
_WRONG = "#C8321E"
_GREY = "#555555"

_STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.framealpha": 0.9,
    "lines.linewidth": 1.3,
    "svg.fonttype": "none",
    "svg.hashsalt": "pytest-ondevice",
    # What comes from a report is no mathematics: a dollar sign is one.
    "text.parse_math": False,
}
_INCHES = (8.0, 5.6)
_MANY = 14
"""With more cells the picture is bigger, and its labels are smaller and shorter."""
_WIDER = (11.0, 8.0)
_DPI = 150
_WIDE = 105
"""Characters of a line of small print."""

_LONG, _SHORT = "+imatrix", "+im"

# Where a label may be from its point, the best first.
_DIRECTIONS = (
    *((1, 0), (1, 1), (0, 1), (-1, 1), (1, -1), (0, -1), (-1, -1), (-1, 0)),
    *((2, 1), (2, -1), (-2, 1), (-2, -1), (1, 2), (1, -2), (-1, 2), (-1, -2)),
)
_FAR = 22
"""A label farther off than so many pixels has a line to its point."""

_FURTHEST = 1e18
"""Beyond this a figure is damage, and no picture can show it beside others."""

_NAMES = 120
"""The longest label, in characters; file names are shorter still."""

_LAWS = {
    "memory": "peak memory against the bytes of the weights",
    "file_size": "file size against the bytes of the weights",
    "decode_time": "time of a decoded token against the bytes it reads",
    "loss_envelope": "loss within what the bits per weight allow",
    "loss_monotone": "loss falling with bits per weight",
    "pareto": "no cell both bigger and worse than another",
    "marginal": "small loss for the memory saved from 3.5 BPW on",
    "threshold": "the bigger model at few bits against the smaller at many",
    "kv_cache": "KV cache in proportion to the context",
    "power": "prefill drawing more power than decoding",
}
_VERDICTS = {
    Verdict.PASS: "holds",
    Verdict.FAIL: "broken",
    Verdict.INCONCLUSIVE: "not decided",
    Verdict.INVALID: "disturbed",
    Verdict.BLOCKED: "blocked",
    Verdict.UNSUPPORTED: "not judged",
    Verdict.NO_BASELINE: "nothing to compare with",
}
_AXES = {
    "effective_bpw": "effective bits per weight",
    "mean_kld": "mean KLD from the reference",
    "n_ctx": "context",
    "weight_bytes": "bytes of the weights",
    "active_bytes": "bytes read per token",
    "peak_memory": "peak memory",
    "decode_time": "time per decoded token",
}
_UNITS = {"bits/weight": "bit/weight", "1": ""}


@dataclass(frozen=True, slots=True)
class _Scale:
    """How to show figures of a unit: divided by ``by``, and called ``unit``."""

    by: float
    unit: str

    def label(self, quantity: str) -> str:
        words = _AXES.get(quantity, clean(quantity, _NAMES).replace("_", " "))
        return f"{words} ({self.unit})" if self.unit else words


@dataclass(frozen=True, slots=True)
class _Mark:
    """A point in a picture, in the units that the picture shows."""

    cell: str
    label: str
    model: str
    x: float
    y: float
    error: float | None
    fitted: float | None
    hollow: bool
    wrong: bool

    @property
    def low(self) -> float:
        return self.y - (self.error or 0.0)

    @property
    def high(self) -> float:
        return self.y + (self.error or 0.0)


@dataclass(slots=True)
class _Chart:
    """What is to be drawn."""

    title: str
    law: LawReport
    marks: list[_Mark]
    x: _Scale
    y: _Scale
    notes: list[str] = field(default_factory=list)

    @property
    def log(self) -> bool:
        return self.law.y_log

    @property
    def crowded(self) -> bool:
        return len({mark.cell for mark in self.marks}) > _MANY

    @property
    def by_bpw(self) -> bool:
        return self.law.x_unit == "bits/weight" or self.law.x.endswith("_bpw")


def pictures(report: Report, suffix: Suffix) -> dict[str, bytes]:
    """Draw a report.

    Args:
        report: The report.
        suffix: Which kind of picture.

    Returns:
        File names and what they hold: ``loss-vs-bpw``, ``memory-vs-bpw``, and one for each law and
        subject. What has no point that could be drawn is left out.

    Raises:
        MissingError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415  (an extra, and slow to import)
    except ImportError as error:
        raise MissingError(
            "pictures need matplotlib: pip install 'pytest-ondevice[plots]'"
        ) from error
    drawn: dict[str, bytes] = {}
    taken: set[str] = set()
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        # A letter that the font lacks is a box, and no reason to stop.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        for name, chart in _charts(report):
            if not chart.marks:
                continue
            numbered = (f"{name}-{count}" if count > 1 else name for count in itertools.count(1))
            stem = next(one for one in numbered if one.casefold() not in taken)
            taken.add(stem.casefold())
            drawn[f"{stem}.{suffix}"] = _drawn(chart, _origin(report), suffix)
    return drawn


def _charts(report: Report) -> Iterator[tuple[str, _Chart]]:
    yield "loss-vs-bpw", _of_cells(report, "mean_kld", "nats", "Loss against bits per weight")
    yield "memory-vs-bpw", _of_cells(report, "peak_memory", "B", "Memory against bits per weight")
    for law in report.laws:
        name = clean(law.law, _NAMES).replace("_", " ")
        says = _LAWS.get(law.law, f"law {name}")
        verdict = _VERDICTS[law.verdict]
        if law.anomalies and law.verdict is Verdict.PASS:
            count = f"{len(law.anomalies)} warning{'s' if len(law.anomalies) > 1 else ''}"
            verdict = f"{verdict}, with {count}"
        title = f"{clean(law.subject, 60)}: {says}: {verdict}"
        yield _stem(f"{law.law}-{law.subject}"), _chart(report, law, title)


def _of_cells(report: Report, quantity: str, unit: str, title: str) -> _Chart:
    points = []
    for cell in report.cells:
        measured = cell.measurements.get(quantity)
        bpw = _effective_bpw(cell)
        if measured is not None and measured.value is not None and bpw is not None:
            points.append(
                LawPoint(
                    cell=cell.id,
                    x=bpw,
                    y=measured.value,
                    error=measured.error,
                    left_out=_disturbed(measured),
                )
            )
    law = LawReport(
        law=quantity,
        subject="",
        verdict=Verdict.PASS,
        message="",
        x="effective_bpw",
        x_unit="bits/weight",
        y=quantity,
        y_unit=unit,
        y_log=quantity == "mean_kld",
        points=tuple(points),
    )
    return _chart(report, law, title)


def _disturbed(measured: Measurement) -> str:
    return f"disturbed: {'; '.join(measured.disturbed)}" if measured.disturbed else ""


def _effective_bpw(cell: CellReport) -> float | None:
    """Return effective BPW from the artifact itself, which is there whichever suites ran."""
    if cell.artifact is not None and cell.artifact.weights > 0:
        return 8 * sum(one.bytes for one in cell.artifact.types.values()) / cell.artifact.weights
    measured = cell.measurements.get("effective_bpw")
    return measured.value if measured else None


def _chart(report: Report, law: LawReport, title: str) -> _Chart:
    cells = {cell.id: cell for cell in report.cells}
    fit = [point for point in law.points if _drawable(point, log=law.y_log)]
    x = _scale(law.x_unit, [point.x for point in fit])
    y = _scale(law.y_unit, [point.y for point in fit])
    models = {cells[point.cell].model for point in fit if point.cell in cells}
    wrong = _named(law.anomalies, {point.cell for point in fit})
    marks = []
    for point in fit:
        cell = cells.get(point.cell)
        label = clean((cell.method if cell else "") or point.cell, 40)
        if cell and len(models) > 1 and point.cell in wrong:
            label = clean(f"{cell.model} {label}", 60)
        marks.append(
            _Mark(
                cell=point.cell,
                label=label,
                model=clean(cell.model, 60) if cell and len(models) > 1 else "",
                x=point.x / x.by,
                y=point.y / y.by,
                error=_usable(point.error, y.by),
                fitted=_usable(point.fitted, y.by),
                hollow=bool(point.left_out),
                wrong=point.cell in wrong,
            )
        )
    # Sorted, so that labels lie alike however the points came.
    marks.sort(key=lambda mark: (mark.x, mark.y, mark.cell))
    if len({mark.cell for mark in marks}) > _MANY and any(_LONG in one.label for one in marks):
        marks = [replace(mark, label=mark.label.replace(_LONG, _SHORT)) for mark in marks]
        shortened = [f"{_SHORT}: with an importance matrix"]
    else:
        shortened = []
    notes = [clean(law.message)] if law.message else []
    notes += [clean(sentence) for sentence in law.anomalies[:3]]
    if len(law.anomalies) > 3:
        notes.append(f"and {len(law.anomalies) - 3} more")
    reasons: dict[str, list[str]] = {}
    for point in law.points:
        if point.left_out or not _drawable(point, log=law.y_log):
            why = clean(point.left_out, 160) or "cannot be drawn here"
            names = reasons.setdefault(why, [])
            if point.cell not in names:
                names.append(point.cell)
    notes += [f"left out: {_listed(names, 4)} ({why})" for why, names in reasons.items()]
    return _Chart(title=title, law=law, marks=marks, x=x, y=y, notes=notes + shortened)


def _drawable(point: LawPoint, *, log: bool) -> bool:
    inside = abs(point.x) < _FURTHEST and abs(point.y) < _FURTHEST
    return inside and (point.y > 1 / _FURTHEST or not log)


def _usable(value: float | None, by: float) -> float | None:
    return value / by if value is not None and abs(value) < _FURTHEST else None


def _scale(unit: str, values: Sequence[float]) -> _Scale:
    largest = max(map(abs, values), default=0.0)
    if unit == "B":
        for power, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
            if largest >= (4 if power == 30 else 1) * 2**power:
                return _Scale(2.0**power, name)
    if unit in {"s", "s/token"} and 0 < largest < 1:
        return _Scale(1e-3, f"m{unit}")
    return _Scale(1.0, clean(_UNITS.get(unit, unit), 40))


def _named(sentences: Iterable[str], cells: set[str]) -> set[str]:
    """Find the cells that sentences name: the longest name that fits, never a part of another."""
    if not cells:
        return set()
    names = "|".join(re.escape(name) for name in sorted(cells, key=lambda name: (-len(name), name)))
    pattern = re.compile(rf"(?<![\w+.-])(?:{names})(?![\w+]|[.-]\w)")
    return {name for sentence in sentences for name in pattern.findall(sentence)}


def _listed(names: Sequence[str], most: int) -> str:
    shown = ", ".join(clean(name, 60) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _stem(text: str) -> str:
    stem = re.sub(r"[^A-Za-z0-9_+.-]+", "_", text[:400])
    stem = re.sub(r"\.{2,}", ".", stem).strip("._-")
    return stem[:80].rstrip("._-") or "law"


def _origin(report: Report) -> str:
    parts = (report.generator, report.created, report.device.cpu, report.runtime.version)
    return clean("  ·  ".join(part for part in parts if part), 150)


# -- drawing


def _drawn(chart: _Chart, origin: str, suffix: Suffix) -> bytes:
    # Imported here for the reason above; figures of their own touch no state that others share.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    notes = [
        line
        for note in chart.notes[:7]
        for line in textwrap.wrap(note, _WIDE, max_lines=3, placeholder=" …")
    ]
    small = 0.155 * (len(notes) + 1) + 0.1
    width, height = _WIDER if chart.crowded else _INCHES
    height += small
    figure = Figure(figsize=(width, height), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    residuals = _residuals(chart)
    rows = 2 if residuals else 1
    grid = figure.add_gridspec(
        rows,
        1,
        height_ratios=[3.2, 1][:rows],
        left=0.92 / width,
        right=0.97,
        top=1 - 0.45 / height,
        bottom=(small + 0.55) / height,
        hspace=0.09,
    )
    axes = figure.add_subplot(grid[0])
    figure.text(0.02, 1 - 0.14 / height, chart.title, fontsize=11.5, fontweight="bold", va="top")
    lowest = axes
    if residuals:
        lowest = figure.add_subplot(grid[1], sharex=axes)
        axes.tick_params(labelbottom=False)
    _limits(axes, chart)
    _points(axes, chart)
    _lines(axes, chart)
    if residuals:
        _lower(lowest, chart, residuals)
    lowest.set_xlabel(chart.x.label(chart.law.x))
    axes.set_ylabel(chart.y.label(chart.law.y))
    legend = axes.legend(loc="best")
    for index, note in enumerate(notes):
        y = (small - 0.16 - 0.155 * index) / height
        figure.text(0.02, y, note, fontsize=7.8, color="#222222", va="center")
    figure.text(0.02, 0.09 / height, origin, fontsize=6.5, color=_GREY, va="center")
    canvas.draw()  # type: ignore[no-untyped-call]
    _labels(figure, axes, chart, _Box(*map(float, legend.get_window_extent().extents)))
    output = io.BytesIO()
    nothing: dict[str, Any] = {"Date": None, "Creator": None} if suffix == "svg" else {}
    nothing |= {"Software": None} if suffix == "png" else {}
    figure.savefig(output, format=suffix, dpi=_DPI, metadata=nothing)
    return output.getvalue()


def _residuals(chart: _Chart) -> list[tuple[_Mark, float]]:
    """What the law does not explain; only where a picture to the scale of it helps."""
    if chart.log or chart.law.slope is None:
        return []
    return [(mark, mark.y - mark.fitted) for mark in chart.marks if mark.fitted is not None]


def _limits(axes: Axes, chart: _Chart) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # noqa: PLC0415

    xs = [mark.x for mark in chart.marks]
    if chart.by_bpw:
        xs.append(MARGINAL_BPW)
    if chart.law.x == "n_ctx" or (chart.law.intercept is not None and not chart.by_bpw):
        xs.append(0.0)
    width = max(xs) - min(xs) or abs(max(xs)) or 1.0
    axes.set_xlim(min(xs) - 0.06 * width, max(xs) + 0.1 * width)
    if not chart.log:
        ys = [
            y for mark in chart.marks for y in (mark.low, mark.high, mark.fitted) if y is not None
        ]
        tall = max(ys) - min(ys) or abs(max(ys)) or 1.0
        floor = 0.0 if 0 <= min(ys) < 0.6 * max(ys) else min(ys) - 0.12 * tall
        axes.set_ylim(floor, max(ys) + 0.14 * tall)
        return
    axes.set_yscale("log", nonpositive="clip")
    ys = [mark.y for mark in chart.marks]
    ys += [mark.fitted for mark in chart.marks if mark.fitted is not None and mark.fitted > 0]
    ys += [mark.high for mark in chart.marks]
    ys += [max(mark.low, mark.y / 4) for mark in chart.marks]
    room = max((max(ys) / min(ys)) ** 0.1 * 1.3, 1.8)
    low, high = min(ys) / room, max(ys) * room
    axes.set_ylim(low, high)
    steps = (1.0, 2.0, 5.0) if high / low < 1e3 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _lines(axes: Axes, chart: _Chart) -> None:
    law = chart.law
    curve = _curve(axes, chart)
    if curve:
        axes.plot(*zip(*curve, strict=True), color=_GREY, linestyle="--", label=_fit(chart))
    _allowed(axes, chart)
    if chart.by_bpw:
        axes.axvline(MARGINAL_BPW, color=_GREY, linestyle=":", label=f"{MARGINAL_BPW} BPW")
        if law.crossover is not None and 0 < law.crossover < 64:
            told = f"crossover at {law.crossover:.3g} BPW"
            axes.axvline(law.crossover, color="#000000", linestyle="-.", label=told)


def _allowed(axes: Axes, chart: _Chart) -> None:
    """Draw what the law says of each point, where that is not on the fitted line."""
    of_cells: dict[str, list[tuple[float, float]]] = {}
    for mark in chart.marks:
        if mark.fitted is None:
            continue
        line = _on_line(chart, mark.x)
        if line is None or not math.isclose(line, mark.fitted, rel_tol=0.01):
            of_cells.setdefault(mark.cell, []).append((mark.x, mark.fitted))
    if not of_cells:
        return
    label = "what the law allows" if chart.log else "what the law says"
    if any(len(points) > 1 for points in of_cells.values()):
        runs = {tuple(points) for points in of_cells.values()}
    else:
        runs = {tuple(sorted({points[0] for points in of_cells.values()}))}
    for run in sorted(runs):
        xs, ys = zip(*run, strict=True)
        steps = [b - a for a, b in itertools.pairwise(ys)]
        # A line would say something of what lies between: only where there is one to be drawn.
        one_way = all(step <= 0 for step in steps) or all(step >= 0 for step in steps)
        connected = len(set(xs)) == len(xs) > 1 and one_way and chart.law.slope is None
        style = "--" if connected else "none"
        axes.plot(
            xs, ys, color=_GREY, linestyle=style, marker="_", markersize=9, zorder=2, label=label
        )
        label = "_"


def _curve(axes: Axes, chart: _Chart) -> list[tuple[float, float]]:
    """Points of the fitted line across the picture; none where there is none to be drawn."""
    if chart.law.slope is None:
        return []
    left, right = axes.get_xlim()
    if min(mark.x for mark in chart.marks) >= 0:
        left = max(left, 0.0)
    steps = (left + (right - left) * step / 100 for step in range(101))
    points = ((x, _on_line(chart, x)) for x in steps)
    return [(x, y) for x, y in points if y is not None]


def _on_line(chart: _Chart, x: float) -> float | None:
    """Where the fitted line is, in the units of the picture."""
    slope = _usable(chart.law.slope, 1.0)
    if slope is None:
        return None
    value = (_usable(chart.law.intercept, 1.0) or 0.0) + slope * x * chart.x.by
    if chart.log:
        value = math.exp(value) if abs(value) < 40 else math.inf
    return _usable(value, chart.y.by)


def _fit(chart: _Chart) -> str:
    law = chart.law
    by = chart.x.by if chart.log else chart.x.by / chart.y.by
    # Of a logarithm the unit of y is no part.
    units = ["" if chart.log else chart.y.unit, chart.x.unit]
    told = f"slope {(law.slope or 0.0) * by:.4g}"
    if law.slope_error is not None:
        told += f" ± {law.slope_error * by:.1g}"
    if units[0] != units[1]:
        told += f" {units[0]} per {units[1]}".replace("  ", " ").removesuffix(" per ")
    if (r2 := _usable(law.r2, 1.0)) is not None:
        # Never up: it says 1 only where it is 1.
        told += f", R² {math.floor(r2 * 1e5) / 1e5:.5f}"
    return f"the law's line: {'ln y ' if chart.log else ''}{told}"


def _points(axes: Axes, chart: _Chart) -> None:
    models = list(dict.fromkeys(mark.model for mark in sorted(chart.marks, key=_by_model)))
    told: set[str] = set()
    for mark in sorted(chart.marks, key=lambda mark: (mark.hollow, mark.wrong, mark.model)):
        color, shape, size, name = _look(mark, models)
        axes.plot(
            [mark.x],
            [mark.y],
            linestyle="none",
            marker=shape,
            markersize=size,
            markeredgecolor=color,
            markerfacecolor="white" if mark.hollow else color,
            zorder=5 if mark.wrong else 4,
            label="_" if name in told else name,
        )
        told.add(name)
        if mark.error:
            axes.errorbar(
                mark.x,
                mark.y,
                yerr=[[mark.y - _bottom(mark, chart)], [mark.error]],
                fmt="none",
                ecolor=color,
                elinewidth=1.1,
                capsize=2.5,
                zorder=3,
                label="_" if "" in told else "± 1 standard error",
            )
            told.add("")


def _bottom(mark: _Mark, chart: _Chart) -> float:
    """Where an error bar ends below: on a logarithmic axis never at zero."""
    return max(mark.low, mark.y / 1e6) if chart.log else mark.low


def _by_model(mark: _Mark) -> str:
    return mark.model


def _look(mark: _Mark, models: Sequence[str]) -> tuple[str, str, float, str]:
    """Colour, marker, its size, and what the legend says of it."""
    if mark.wrong:
        return _WRONG, "X", 9.5, "named by the law" + (", left out" if mark.hollow else "")
    place = models.index(mark.model)
    color, shape = _MODELS[place % len(_MODELS)][0], _MODELS[(place + place // 6) % len(_MODELS)][1]
    name = mark.model or "cell"
    return color, shape, 6.5, f"{name}, left out" if mark.hollow else name


def _lower(axes: Axes, chart: _Chart, residuals: Sequence[tuple[_Mark, float]]) -> None:
    models = list(dict.fromkeys(mark.model for mark in sorted(chart.marks, key=_by_model)))
    axes.axhline(0.0, color=_GREY, linewidth=0.9)
    for mark, residual in residuals:
        color, shape, size, _ = _look(mark, models)
        error = mark.error or 0.0
        axes.plot([mark.x] * 2, [0.0, residual], color=color, linewidth=0.9)
        if error:
            axes.plot([mark.x] * 2, [residual - error, residual + error], color=color)
        axes.plot(
            [mark.x],
            [residual],
            linestyle="none",
            marker=shape,
            markersize=0.75 * size,
            markeredgecolor=color,
            markerfacecolor="white" if mark.hollow else color,
        )
        if mark.wrong:
            axes.annotate(
                mark.label,
                (mark.x, residual),
                (7, 0),
                textcoords="offset points",
                fontsize=8,
                fontweight="bold",
                color=_WRONG,
                va="center",
            )
    largest = max(abs(one) + (mark.error or 0.0) for mark, one in residuals) or 1.0
    axes.set_ylim(-1.25 * largest, 1.25 * largest)
    axes.set_ylabel(f"residual\n({chart.y.unit})" if chart.y.unit else "residual")


# -- labels


class _Box(NamedTuple):
    """A rectangle in pixels."""

    x0: float
    y0: float
    x1: float
    y1: float

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        return min(max(x, self.x0), self.x1), min(max(y, self.y0), self.y1)

    def distance(self, x: float, y: float) -> float:
        return math.dist(self.nearest(x, y), (x, y))


def _labels(figure: Figure, axes: Axes, chart: _Chart, legend: _Box) -> None:
    """Write a name beside each point, each where it covers least of what is there already."""
    frame = _Box(*map(float, axes.get_window_extent().extents))
    places = [(mark, *_pixel(axes, mark.x, mark.y)) for mark in chart.marks]
    obstacles = [_around(x, y, 10 if mark.wrong else 8) for mark, x, y in places]
    for mark, x, _ in places:
        if mark.error:
            low = _pixel(axes, mark.x, _bottom(mark, chart))[1]
            obstacles.append(_Box(x - 4, low, x + 4, _pixel(axes, mark.x, mark.high)[1]))
    for line in axes.get_lines():
        if line.get_linestyle() in {"--", ":", "-."}:
            obstacles += _along(axes, line, frame)
    obstacles.append(legend)
    centres = [(x, y) for _, x, y in places]
    groups = _groups(places)
    # Where it is most crowded first: elsewhere there is room later too.
    groups.sort(key=lambda one: -sum(math.dist(one[2:], other) < 90 for other in centres))
    written: list[_Box] = []
    for names, mark, x, y in groups:
        text = axes.annotate(
            names,
            (mark.x, mark.y),
            (0, 0),
            textcoords="offset points",
            fontsize=7 if chart.crowded else 8,
            color=_WRONG if mark.wrong else "#111111",
            fontweight="bold" if mark.wrong else "normal",
            zorder=6,
        )
        size = text.get_window_extent()
        others = [other for other in centres if other != (x, y)]
        costs = (
            (_cost(box, obstacles, frame, x, y) + _crossed(box, written, others, x, y), box)
            for box in _spots(x, y, float(size.width), float(size.height))
        )
        best = min(costs, key=lambda pair: pair[0])[1]
        obstacles.append(best)
        written.append(best)
        text.set_position(((best.x0 - x) * 72 / figure.dpi, (best.y0 - y) * 72 / figure.dpi))
        if best.distance(x, y) > _FAR:
            start = best.nearest(x, y)
            ends = axes.transData.inverted().transform([start, (x, y)])
            axes.plot(*zip(*ends, strict=True), color=_GREY, linewidth=0.6, zorder=2)
            obstacles += _between(start, (x, y), 8)


def _pixel(axes: Axes, x: float, y: float) -> tuple[float, float]:
    across, upward = axes.transData.transform((x, y))
    return float(across), float(upward)


def _around(x: float, y: float, half: float) -> _Box:
    return _Box(x - half, y - half, x + half, y + half)


def _along(axes: Axes, line: Any, frame: _Box) -> list[_Box]:
    """Small boxes along a line, so that labels keep off it."""
    boxes: list[_Box] = []
    # Lines across the whole height are in other units than those of the data.
    upright = line.get_transform() != axes.transData
    for start, end in itertools.pairwise(line.get_xydata()):
        (x0, y0), (x1, y1) = _pixel(axes, *start), _pixel(axes, *end)
        if upright:
            y0, y1 = frame.y0, frame.y1
        boxes += [
            box
            for box in _between((x0, y0), (x1, y1), 6)
            if frame.x0 < box.x0 < frame.x1 and frame.y0 < box.y0 < frame.y1
        ]
    return boxes


def _between(start: tuple[float, float], end: tuple[float, float], apart: float) -> list[_Box]:
    """Small boxes on a straight line, so many pixels apart."""
    (x0, y0), (x1, y1) = start, end
    steps = min(int(math.dist(start, end) / apart) + 1, 300)
    shares = (step / steps for step in range(steps + 1))
    return [_around(x0 + (x1 - x0) * one, y0 + (y1 - y0) * one, 1) for one in shares]


def _groups(
    places: Sequence[tuple[_Mark, float, float]],
) -> list[tuple[str, _Mark, float, float]]:
    """Give points that lie on one another one label, and each cell one label only."""
    last = {mark.cell: index for index, (mark, _, _) in enumerate(places)}
    groups: list[tuple[list[_Mark], float, float]] = []
    for index, (mark, x, y) in enumerate(places):
        if last[mark.cell] != index:
            continue
        near = next((one for one in groups if math.dist(one[1:], (x, y)) < 4), None)
        if near is None:
            groups.append(([mark], x, y))
        else:
            near[0].append(mark)
    made = []
    for marks, x, y in groups:
        # What is named by the law comes first, and its colour stands for the label's.
        ordered = sorted(marks, key=lambda mark: not mark.wrong)
        names = list(dict.fromkeys(mark.label for mark in ordered))
        made.append((_listed(names, 3), ordered[0], x, y))
    return made


def _spots(x: float, y: float, width: float, height: float) -> Iterator[_Box]:
    """Where a label may be, the best first: about its point, then farther off."""
    for far in (10, 15, 24, 38, 56, 78, 104):
        for right, up in _DIRECTIONS:
            off = far / math.hypot(right, up)
            left = x + off * right
            left -= width if right < 0 else 0 if right else width / 2
            base = y + off * up
            base -= height if up < 0 else 0 if up else height / 2
            yield _Box(left, base, left + width, base + height)


def _cost(box: _Box, obstacles: Sequence[_Box], frame: _Box, x: float, y: float) -> float:
    """What a label covers, how far it is outside of the picture, and how far off its point."""
    covered = 0.0
    for one in obstacles:
        wide = min(box.x1, one.x1) - max(box.x0, one.x0)
        if wide > 0:
            tall = min(box.y1, one.y1) - max(box.y0, one.y0)
            if tall > 0:
                covered += wide * tall + 30
    outside = max(frame.x0 - box.x0, 0) + max(box.x1 - frame.x1, 0)
    outside += max(frame.y0 - box.y0, 0) + max(box.y1 - frame.y1, 0)
    return covered + 60 * outside + box.distance(x, y)


def _crossed(
    box: _Box,
    written: Sequence[_Box],
    others: Sequence[tuple[float, float]],
    x: float,
    y: float,
) -> float:
    """What a line from a label to its point would cross: other labels and other points."""
    if box.distance(x, y) <= _FAR:
        return 0.0
    crossed = 0
    for step in _between(box.nearest(x, y), (x, y), 4):
        crossed += any(one.distance(step.x0 + 1, step.y0 + 1) == 0 for one in written)
        crossed += any(math.dist(other, step[:2]) < 9 for other in others)
    return 40.0 * crossed
