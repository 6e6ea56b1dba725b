"""Pictures of a report: what is in them, that the same report gives the same bytes, and no crash.

What a picture shows is read from its SVG, whose texts are texts.
"""

from __future__ import annotations

import hashlib
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("matplotlib")

from pytest_ondevice.errors import MissingError
from pytest_ondevice.model.device import Device, Runtime
from pytest_ondevice.model.law import LawPoint, LawReport
from pytest_ondevice.model.measurement import Measurement
from pytest_ondevice.model.report import ArtifactFacts, CellReport, Report, TypeShare
from pytest_ondevice.model.verdict import Verdict
from pytest_ondevice.render import plots

MIB = 2**20
RED = plots._WRONG.casefold()
BLUE = plots._MODELS[0][0].casefold()


def cell(method, bpw, kld=None, peak=None, model="m", **fields):
    """A cell of a million weights; figures are values, with an error, or measurements."""
    artifact = ArtifactFacts(
        file="m.gguf",
        sha256="a" * 64,
        size=10**6,
        origin="quantized",
        architecture="llama",
        weights=10**6,
        types={"Q": TypeShare(tensors=1, weights=10**6, bytes=round(bpw * 10**6 / 8))},
    )
    measurements = {}
    for name, value, unit in (("mean_kld", kld, "nats"), ("peak_memory", peak, "B")):
        if isinstance(value, Measurement):
            measurements[name] = value
        elif value is not None:
            told, error = value if isinstance(value, tuple) else (value, None)
            measurements[name] = Measurement(quantity=name, value=told, unit=unit, error=error)
    return CellReport(
        **{
            "id": f"{model}-{method}",
            "model": model,
            "method": method,
            "reference": False,
            "verdict": None,
            "artifact": artifact,
            "measurements": measurements,
        }
        | fields
    )


CELLS = (
    cell("F16", 16.0, peak=300 * MIB),
    cell("Q4_K", 4.5, (0.08, 0.01), 100 * MIB),
    cell("Q4_K_M", 4.9, (0.05, 0.005), 110 * MIB),
    cell("Q8_0", 8.5, (0.004, 0.0005), 180 * MIB),
)

BARE = tuple(msgspec.structs.replace(one, artifact=None) for one in CELLS)
"""Cells of which there is no picture, only of their laws."""


def report(*cells, laws=()):
    device = Device(
        system="Linux",
        machine="aarch64",
        cpu="Cortex-A76",
        cores=4,
        memory=2**33,
        python="3.11.7",
        libc="glibc 2.36",
    )
    return Report(
        schema_version=1,
        generator="pytest-ondevice 0.1.0",
        created="2026-09-01T12:00:00+00:00",
        complete=True,
        device=device,
        tier="t",
        board="kitchen",
        runtime=Runtime(name="llama.cpp", version="llama-cpp-python 0.3.36", digest="d" * 16),
        settings={},
        cells=cells or CELLS,
        checks=(),
        protocols={},
        notes=(),
        laws=tuple(laws),
    )


def point(method, x, y, **fields):
    return LawPoint(cell=f"m-{method}", x=x, y=y, **fields)


LINE = LawReport(
    law="memory",
    subject="m",
    verdict=Verdict.PASS,
    message="peak_memory = 50 MiB + 1 x weight_bytes over 3 cells",
    x="weight_bytes",
    x_unit="B",
    y="peak_memory",
    y_unit="B",
    points=(
        point("Q4_K", 50 * MIB, 100 * MIB, fitted=100 * MIB),
        point("Q8_0", 130 * MIB, 181 * MIB, fitted=180 * MIB),
        point("F16", 250 * MIB, 300 * MIB, fitted=300 * MIB),
    ),
    slope=1.0,
    slope_error=0.003,
    intercept=50.0 * MIB,
    r2=0.9998,
)
LOSS = LawReport(
    law="loss_envelope",
    subject="m",
    verdict=Verdict.PASS,
    message="every cell is under the envelope",
    x="effective_bpw",
    x_unit="bits/weight",
    y="mean_kld",
    y_unit="nats",
    y_log=True,
    points=(
        point("Q4_K", 4.5, 0.08, error=0.01),
        point("Q4_K_M", 4.9, 0.05, error=0.005),
        point("Q8_0", 8.5, 0.004),
    ),
)


def drawn(name, *cells, laws=()):
    """One picture, by its name, as SVG."""
    cells = cells or (BARE if laws else CELLS)
    return plots.pictures(report(*cells, laws=laws), "svg")[f"{name}.svg"].decode()


def texts(svg):
    """Every text in a picture, in order."""
    return [one.text for one in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def law(**fields):
    return drawn("loss_envelope-m", laws=[msgspec.structs.replace(LOSS, **fields)])


def uses(svg, color):
    """How often a colour is the one something is filled or drawn with, the legend's left out."""
    before, _, _ = svg.partition('<g id="legend_1">')
    return len(re.findall(rf"(?:fill|stroke): {color}", before.casefold()))


# Which pictures


def test_there_is_a_picture_per_law_and_two_of_the_cells():
    found = plots.pictures(report(laws=[LINE, LOSS]), "svg")
    assert list(found) == [
        "loss-vs-bpw.svg",
        "memory-vs-bpw.svg",
        "memory-m.svg",
        "loss_envelope-m.svg",
    ]
    for content in found.values():
        assert ET.fromstring(content).tag.endswith("svg")


def test_a_png_is_one():
    found = plots.pictures(report(), "png")
    assert list(found) == ["loss-vs-bpw.png", "memory-vs-bpw.png"]
    assert all(content.startswith(b"\x89PNG\r\n") for content in found.values())


def test_what_has_no_point_has_no_picture():
    nothing = LawReport(law="power", subject="m", verdict=Verdict.UNSUPPORTED, message="no meter")
    bare = cell("Q4_0", 4.5, artifact=None)
    assert plots.pictures(report(bare, laws=[nothing]), "svg") == {}
    assert list(plots.pictures(report(cell("Q4_0", 4.5, 0.1)), "svg")) == ["loss-vs-bpw.svg"]
    assert list(plots.pictures(report(cell("F16", 16.0, peak=1.0)), "svg")) == ["memory-vs-bpw.svg"]


def test_file_names_stay_in_their_folder_and_apart():
    laws = [
        msgspec.structs.replace(LOSS, law="x", subject=subject)
        for subject in ("../../etc/passwd", "hf:a/b", "hf:a_b", "HF:A_B", "", "模型", "\0\n")
    ]
    found = list(plots.pictures(report(*BARE, laws=laws), "svg"))
    assert found == [
        "x-._._etc_passwd.svg",
        "x-hf_a_b.svg",
        "x-hf_a_b-2.svg",
        "x-HF_A_B-3.svg",
        "x.svg",
        "x-2.svg",
        "x-3.svg",
    ]


# The same again


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_same_report_gives_the_same_bytes(suffix):
    made = report(laws=[LINE, LOSS])
    assert plots.pictures(made, suffix) == plots.pictures(made, suffix)


def test_another_process_and_a_users_own_style_change_nothing(tmp_path):
    made = report(laws=[msgspec.structs.replace(LOSS, anomalies=("m-Q4_K is odd",))])
    (tmp_path / "matplotlibrc").write_text(
        "font.size: 20\naxes.facecolor: yellow\nxtick.direction: in\n"
    )
    script = (
        "import hashlib, sys, msgspec, test_plots as t\n"
        "laws = [msgspec.structs.replace(t.LOSS, anomalies=('m-Q4_K is odd',))]\n"
        "found = t.plots.pictures(t.report(laws=laws), 'svg')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "print(hashlib.sha256(b''.join(found.values())).hexdigest())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    here = hashlib.sha256(b"".join(plots.pictures(made, "svg").values())).hexdigest()
    assert ended.stdout.strip() == here, ended.stderr


def test_the_order_of_points_changes_nothing():
    reversed_ = msgspec.structs.replace(LOSS, points=LOSS.points[::-1])
    assert law() == drawn("loss_envelope-m", laws=[reversed_])


def test_drawing_leaves_no_trace():
    import matplotlib as mpl

    # A copy, for reading them one by one makes matplotlib choose a backend.
    before = mpl.rcParams.copy()
    plots.pictures(report(*BARE, laws=[LOSS]), "svg")
    assert mpl.rcParams.copy() == before


# What is in them


def test_points_have_the_names_of_their_methods():
    told = texts(drawn("loss-vs-bpw"))
    assert {"Q4_K", "Q4_K_M", "Q8_0"} <= set(told)
    # It has no loss against itself.
    assert "F16" not in told
    assert "F16" in texts(drawn("memory-vs-bpw"))


@pytest.mark.parametrize(
    ("verdict", "anomalies", "said"),
    [
        (Verdict.PASS, (), "holds"),
        (Verdict.PASS, ("m-Q4_K is odd",), "holds, with 1 warning"),
        (Verdict.FAIL, ("m-Q4_K is odd",), "broken"),
        (Verdict.INCONCLUSIVE, (), "not decided"),
        (Verdict.UNSUPPORTED, (), "not judged"),
    ],
)
def test_the_title_says_law_subject_and_verdict(verdict, anomalies, said):
    title = f"m: loss within what the bits per weight allow: {said}"
    told = texts(law(verdict=verdict, anomalies=anomalies))
    assert title in told
    assert "every cell is under the envelope" in told
    assert set(anomalies) <= set(told)


def test_every_verdict_has_words():
    assert set(plots._VERDICTS) == set(Verdict)


def test_a_law_of_a_later_version_is_drawn():
    (title,) = [
        one
        for one in texts(drawn("new_law-m", laws=[msgspec.structs.replace(LOSS, law="new_law")]))
        if "new law" in one
    ]
    assert title == "m: law new law: holds"


@pytest.mark.parametrize(
    ("unit", "by", "said"),
    [
        ("B", MIB, "peak memory (MiB)"),
        ("B", 2**31, "peak memory (GiB)"),
        ("B", 1, "peak memory (B)"),
        ("B", 100, "peak memory (KiB)"),
    ],
)
def test_bytes_are_in_units_a_reader_can_take_in(unit, by, said):
    assert said in texts(
        drawn("memory-vs-bpw", cell("a", 4, peak=30 * by), cell("b", 5, peak=40 * by))
    )


@pytest.mark.parametrize(
    ("unit", "y", "said"),
    [
        ("s", 0.02, "time per decoded token (ms)"),
        ("s", 2.0, "time per decoded token (s)"),
        ("1", 0.5, "time per decoded token"),
        ("W", 0.5, "time per decoded token (W)"),
    ],
)
def test_axes_say_what_and_in_which_unit(unit, y, said):
    points = (point("Q4_K", MIB, y), point("Q8_0", 2 * MIB, y / 2))
    timed = msgspec.structs.replace(LINE, y="decode_time", y_unit=unit, points=points, slope=None)
    told = texts(drawn("memory-m", laws=[timed]))
    assert said in told
    assert "bytes of the weights (MiB)" in told


def test_the_fitted_line_is_drawn_with_its_slope():
    svg = drawn("memory-m", laws=[LINE])
    assert "the law's line: slope 1 ± 0.003, R² 0.99980" in texts(svg)
    without = drawn("memory-m", laws=[msgspec.structs.replace(LINE, slope=None)])
    assert not [one for one in texts(without) if "slope" in one]
    assert "what the law says" in texts(without)


def test_a_line_in_other_units_has_its_slope_in_them():
    points = tuple(
        msgspec.structs.replace(one, y=one.y / MIB / 1e4, fitted=None) for one in LINE.points
    )
    timed = msgspec.structs.replace(
        LINE, y_unit="s", points=points, slope=1e-4 / MIB, slope_error=None
    )
    assert "the law's line: slope 0.1 ms per MiB, R² 0.99980" in texts(
        drawn("memory-m", laws=[timed])
    )


@pytest.mark.parametrize(
    ("r2", "said"), [(0.99999996, "0.99999"), (0.999996, "0.99999"), (1.0, "1.00000")]
)
def test_what_a_line_explains_is_never_rounded_up(r2, said):
    svg = drawn("memory-m", laws=[msgspec.structs.replace(LINE, r2=r2)])
    assert f"the law's line: slope 1 ± 0.003, R² {said}" in texts(svg)


def test_residuals_have_a_picture_to_their_own_scale():
    assert "residual" in " ".join(texts(drawn("memory-m", laws=[LINE])))
    assert not [one for one in texts(law(slope=-1.0, intercept=3.0)) if "residual" in one]


def test_what_is_allowed_off_the_line_is_marked():
    points = tuple(msgspec.structs.replace(one, fitted=2 * one.y) for one in LOSS.points)
    assert "what the law allows" in texts(law(points=points))
    on = tuple(msgspec.structs.replace(one, fitted=math.exp(1 - one.x)) for one in LOSS.points)
    assert "what the law allows" not in texts(law(points=on, slope=-1.0, intercept=1.0))
    told = texts(law(points=points, slope=-1.0, intercept=1.0))
    assert {"what the law allows", "the law's line: ln y slope -1 per bit/weight"} <= set(told)


def test_the_marginal_line_is_there_where_x_is_bits_per_weight():
    assert "3.5 BPW" in texts(law())
    assert "3.5 BPW" in texts(drawn("loss-vs-bpw"))
    assert "3.5 BPW" not in texts(drawn("memory-m", laws=[LINE]))
    assert "crossover at 4.2 BPW" in texts(law(crossover=4.2))


def test_the_marginal_line_is_at_three_and_a_half():
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    plots._lines(axes, plots._chart(report(), LOSS, ""))
    (line,) = axes.get_lines()
    assert set(line.get_xdata()) == {3.5}


def test_errors_are_bars():
    assert "± 1 standard error" in texts(law())
    bare = tuple(msgspec.structs.replace(one, error=None) for one in LOSS.points)
    assert "± 1 standard error" not in texts(law(points=bare))
    # Bars are of their points' colour: a line and two caps each.
    assert uses(law(), BLUE) > uses(law(points=bare), BLUE)


def test_what_an_anomaly_names_has_another_colour_and_shape():
    calm, odd = law(), law(anomalies=("m-Q4_K is worse than m-Q8_0.",))
    assert uses(calm, RED) == 0
    assert "named by the law" in texts(odd)
    assert "named by the law" not in texts(calm)
    # Two points and their labels; the third keeps its own colour.
    assert uses(odd, RED) >= 4
    assert 0 < uses(odd, BLUE) < uses(calm, BLUE)


@pytest.mark.parametrize(
    ("sentence", "named"),
    [
        ("m-Q4_K_M is odd", {"m-Q4_K_M"}),
        ("m-Q4_K is odd", {"m-Q4_K"}),
        ("odd: m-Q4_K, m-Q4_K_M.", {"m-Q4_K", "m-Q4_K_M"}),
        ("m-Q4_K's loss (m-Q8_0: 3)", {"m-Q4_K", "m-Q8_0"}),
        ("m-Q4_K+imatrix is odd", set()),
        ("m-Q4_K_S is odd", set()),
        ("m-Q4_K-2 and xm-Q4_K and a-m-Q4_K are odd", set()),
        ("nothing", set()),
    ],
)
def test_anomalies_name_whole_cells(sentence, named):
    assert plots._named([sentence], {"m-Q4_K", "m-Q4_K_M", "m-Q8_0"}) == named
    assert plots._named([sentence], set()) == set()


def test_what_is_left_out_is_hollow_and_says_why():
    points = (msgspec.structs.replace(LOSS.points[0], left_out="below 3.5 BPW"), *LOSS.points[1:])
    svg = law(points=points)
    assert "left out: m-Q4_K (below 3.5 BPW)" in texts(svg)
    assert "cell, left out" in texts(svg)
    assert "cell, left out" not in texts(law())
    hollow = re.compile(rf"fill: #ffffff; stroke: {BLUE}", re.IGNORECASE)
    assert hollow.search(svg)
    assert not hollow.search(law())


def test_a_disturbed_figure_is_hollow():
    disturbed = Measurement(quantity="mean_kld", value=0.1, unit="nats", disturbed=("it rained",))
    told = texts(drawn("loss-vs-bpw", CELLS[1], cell("Q2_K", 3.0, disturbed)))
    assert "left out: m-Q2_K (disturbed: it rained)" in told


def test_models_have_shapes_of_their_own():
    others = tuple(
        cell(f"Q{k}", 3.0 + k + index / 10, 0.1 / (k + 1), model=f"model{index}")
        for index in range(8)
        for k in range(2)
    )
    told = texts(drawn("loss-vs-bpw", *others))
    assert {f"model{index}" for index in range(8)} <= set(told)
    looks = {plots._look(mark, [f"{n}" for n in range(24)])[:2] for mark in marks("01234567")}
    assert len(looks) == 8
    assert plots._WRONG not in {color for color, _ in looks}


def marks(models):
    return [
        plots._Mark(
            cell=model,
            label=model,
            model=model,
            x=1.0,
            y=1.0,
            error=None,
            fitted=None,
            hollow=False,
            wrong=False,
        )
        for model in models
    ]


def test_points_on_one_another_share_a_label():
    same = tuple(cell(f"Q{n}", 4.5, 0.1) for n in range(5))
    told = texts(drawn("loss-vs-bpw", *same))
    assert "Q0, Q1, Q2 and 2 more" in told


def test_a_cell_with_many_points_has_one_label():
    points = tuple(point(method, n, n * 1024.0) for method in ("Q4_K", "Q8_0") for n in (512, 1024))
    series = msgspec.structs.replace(
        LINE, law="kv_cache", x="n_ctx", x_unit="tokens", points=points
    )
    told = texts(drawn("kv_cache-m", laws=[series]))
    assert told.count("Q4_K, Q8_0") == 1
    assert "Q4_K" not in told


def test_with_many_cells_labels_are_shortened_and_none_is_lost():
    many = tuple(cell(f"Q{n}+imatrix", 3 + n / 5, math.exp(-n / 3)) for n in range(30))
    told = texts(drawn("loss-vs-bpw", *many))
    assert {f"Q{n}+im" for n in range(30)} <= set(told)
    assert "+im: with an importance matrix" in told


def test_labels_do_not_lie_on_one_another():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    crowd = [(f"Q{n}_K_M", 4 + (n % 4) / 20, 0.1 + (n // 4) / 200) for n in range(12)]
    chart = plots._chart(
        report(),
        msgspec.structs.replace(LOSS, y_log=False, points=tuple(point(*one) for one in crowd)),
        "",
    )
    plots._limits(axes, chart)
    figure.canvas.draw()
    plots._labels(figure, axes, chart, plots._Box(0, 0, 1, 1))
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 12
    for index, one in enumerate(boxes):
        for other in boxes[:index]:
            assert not one.overlaps(other)


def test_a_picture_says_where_its_figures_are_from():
    told = " ".join(texts(drawn("loss-vs-bpw")))
    for part in ("pytest-ondevice 0.1.0", "2026-09-01T12:00:00+00:00", "Cortex-A76", "0.3.36"):
        assert part in told
    assert "kitchen" not in told


# What is odd

HOSTILE = "$\\frac{1}{0$ <script>&amp;</script> \x00\x1b[31m \u202e 模型 _^ % \ud7ff" + "x" * 500


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_foreign_text_is_text(suffix):
    method, model = HOSTILE, f"m{HOSTILE}"
    cells = (cell(method, 4.5, 0.1, model=model), cell("$", 5.0, 0.1, model="$a$"))
    odd = msgspec.structs.replace(
        LOSS,
        law=HOSTILE,
        subject=HOSTILE,
        message=HOSTILE,
        anomalies=tuple(f"{HOSTILE} {n}" for n in range(9)),
        x=HOSTILE,
        x_unit=HOSTILE,
        y=HOSTILE,
        y_unit=HOSTILE,
        points=(point("$", 1.0, 1.0, left_out=HOSTILE), point(HOSTILE, 2.0, 1.0)),
    )
    found = plots.pictures(report(*cells, laws=[odd]), suffix)
    assert len(found) == 2
    if suffix == "svg":
        for content in found.values():
            assert "$\\frac{1}{0$ <script>" in " ".join(texts(content))
            assert b"<script>" not in content


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize(
    "points",
    [
        (LawPoint(cell="m-Q4_K", x=4.0, y=0.1),),
        (LawPoint(cell="m-Q4_K", x=0.0, y=0.0), LawPoint(cell="m-Q8_0", x=0.0, y=1e-9)),
        (LawPoint(cell="m-Q4_K", x=4.0, y=0.1), LawPoint(cell="m-Q8_0", x=4.0, y=0.1)),
        (LawPoint(cell="m-Q4_K", x=-4.0, y=1e-12), LawPoint(cell="m-Q8_0", x=1e17, y=1e17)),
        (LawPoint(cell="m-Q4_K", x=4.0, y=0.1, error=1e9, fitted=1e-9, residual=0.1),),
        (LawPoint(cell="m-Q4_K", x=4.0, y=0.1, error=0.0, fitted=0.0),),
        (LawPoint(cell="m-Q4_K", x=4.0, y=0.1, error=math.nan, fitted=math.inf),),
        (LawPoint(cell="m-Q4_K", x=4.0, y=0.1, fitted=-1.0),),
    ],
)
@pytest.mark.parametrize(
    "line",
    [
        {},
        {"slope": 0.0, "intercept": 0.1},
        {"slope": 1e17},
        {"slope": math.nan, "intercept": math.inf},
    ],
)
def test_odd_figures_are_drawn_all_the_same(points, line, log):
    odd = msgspec.structs.replace(LOSS, points=points, y_log=log, crossover=math.nan, **line)
    svg = drawn("loss_envelope-m", laws=[odd])
    assert "nan" not in re.sub(r"<text.*?</text>", "", svg, flags=re.DOTALL).casefold()


@pytest.mark.parametrize(("x", "y"), [(math.nan, 0.1), (4.0, math.inf), (4.0, 0.0), (1e30, 0.1)])
def test_what_cannot_be_drawn_is_said(x, y):
    told = texts(law(points=(point("Q4_K", x, y), *LOSS.points[1:])))
    assert "left out: m-Q4_K (cannot be drawn here)" in told
    assert "Q4_K" not in told


def test_a_figure_that_is_not_finite_is_no_point():
    lost = Measurement(quantity="mean_kld", value=None, unit="nats")
    assert "Q2_K" not in texts(drawn("loss-vs-bpw", CELLS[1], cell("Q2_K", 3.0, lost)))


# Without matplotlib


def test_without_matplotlib_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingError, match=r"pip install 'pytest-ondevice\[plots\]'"):
        plots.pictures(report(), "svg")


def test_the_module_alone_does_not_import_it():
    code = "import sys, pytest_ondevice.render.plots; assert 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
