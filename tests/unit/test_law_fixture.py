"""What a law is held for, what it is told of the cells, and what is said where it does not hold."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from pytest_ondevice import options
from pytest_ondevice.errors import OnDeviceError
from pytest_ondevice.law_fixture import LawHolder, OnDeviceWarning, explain
from pytest_ondevice.laws import LAWS
from pytest_ondevice.matrix import subjects
from pytest_ondevice.measure import StageFailedError, UnsupportedError
from pytest_ondevice.model.catalog import Cell, Model, Subject
from pytest_ondevice.model.ending import Ending, Kind
from pytest_ondevice.model.law import LawPoint, LawReport
from pytest_ondevice.model.measurement import Measurement
from pytest_ondevice.model.quantity import QUANTITIES, Stage
from pytest_ondevice.model.verdict import Verdict
from pytest_ondevice.state import ITEM, STATE, ItemState
from pytest_ondevice.waivers import Waivers

SMALL = Model(name="small", family="fam")
LARGE = Model(name="large", family="fam")
OTHER = Model(name="other")


def cell(model, method):
    return Cell(model=model, method=method, reference=method == "F16")


def named(found):
    return {one.name: [cell.id for cell in one.cells] for one in found}


# What a law is held for

MATRIX = tuple(
    cell(model, method)
    for model in (SMALL, LARGE, OTHER)
    for method in ("F16", "Q4_0", "Q4_0+kv-q8_0")
)


def test_a_model_is_held_with_all_its_cells_in_matrix_order():
    plain = [one for one in MATRIX if "+" not in one.method]
    assert named(subjects(plain, "model")) == {
        "small": ["small-F16", "small-Q4_0"],
        "large": ["large-F16", "large-Q4_0"],
        "other": ["other-F16", "other-Q4_0"],
    }


def test_models_of_a_family_are_held_together_and_one_of_none_alone():
    plain = [one for one in MATRIX if "+" not in one.method]
    assert named(subjects(plain, "family")) == {
        "fam": ["small-F16", "small-Q4_0", "large-F16", "large-Q4_0"],
        "other": ["other-F16", "other-Q4_0"],
    }


def test_cells_of_another_cache_are_a_subject_of_their_own():
    assert named(subjects(MATRIX, "model")) == {
        "small": ["small-F16", "small-Q4_0"],
        "small+kv-q8_0": ["small-Q4_0+kv-q8_0"],
        "large": ["large-F16", "large-Q4_0"],
        "large+kv-q8_0": ["large-Q4_0+kv-q8_0"],
        "other": ["other-F16", "other-Q4_0"],
        "other+kv-q8_0": ["other-Q4_0+kv-q8_0"],
    }
    family = named(subjects(MATRIX, "family"))
    assert [*family] == ["fam", "fam+kv-q8_0", "other", "other+kv-q8_0"]
    assert family["fam+kv-q8_0"] == ["small-Q4_0+kv-q8_0", "large-Q4_0+kv-q8_0"]


def test_where_caches_are_compared_they_are_together():
    found = named(subjects(MATRIX, "model", caches_apart=False))
    assert [*found] == ["small", "large", "other"]
    assert found["small"] == ["small-F16", "small-Q4_0", "small-Q4_0+kv-q8_0"]


def test_an_importance_matrix_is_compared_with_none():
    cells = [cell(SMALL, "F16"), cell(SMALL, "Q4_0"), cell(SMALL, "Q4_0+imatrix")]
    assert named(subjects(cells, "model")) == {"small": [one.id for one in cells]}


def test_no_cell_is_no_subject():
    assert subjects([], "model") == ()


# What it is told of them

METHODS = ("F16", "Q8_0", "Q5_0", "Q4_0")
BITS = {"F16": 16.0, "Q8_0": 8.5, "Q5_1": 6.0, "Q5_0": 5.5, "Q4_1": 5.0, "Q4_0": 4.5}
WEIGHTS = 80_000_000


class Bench:
    """Tells of each cell what its bits per weight come to; ``odd`` is what differs."""

    def __init__(self, odd=None, share=1.0):
        self.odd = odd or {}
        self.share = share
        self.ancestor_share = 1.0
        self.given = {}
        self.references = {"small": cell(SMALL, "F16")}
        self.asked = []

    def measure(self, cell, name, windows=None, rounds=None):
        self.asked.append((cell.id, name))
        odd = (cell.method, name) in self.odd
        made = self.odd[cell.method, name] if odd else self._usual(cell, name)
        if isinstance(made, Exception):
            raise made
        if isinstance(made, Measurement):
            return made
        return Measurement(quantity=name, value=made, unit=QUANTITIES[name].unit)

    def _usual(self, cell, name):
        size = BITS[cell.file_type] * WEIGHTS / 8
        return {
            "weight_bytes": size,
            "peak_memory": size + 44 * 2**20,
            "effective_bpw": BITS[cell.file_type],
            "mean_kld": math.exp(-BITS[cell.file_type]),
            "active_bytes": size,
            "decode_speed": 1e9 / size,
        }[name]

    def artifact(self, cell):
        file = SimpleNamespace(
            account=SimpleNamespace(n_weights=WEIGHTS, float_matrix_share=self.share)
        )
        ancestor = SimpleNamespace(
            account=SimpleNamespace(float_matrix_share=self.ancestor_share), type_name="Q4_1"
        )
        return SimpleNamespace(file=file, ancestor=ancestor)


class Item:
    """As much of a test item as is looked at."""

    nodeid = "suites/laws/test_laws.py::test_memory[small]"
    function = None

    def __init__(self):
        self.stash = {ITEM: ItemState()}
        self.warnings = []

    def warn(self, warning):
        self.warnings.append(warning)


@pytest.fixture
def holder(tmp_path):
    """Make a holder of a law over the four cells of a small model."""

    def make(bench=None, *, methods=METHODS, left_out=(), inconclusive="fail"):
        cells = tuple(cell(SMALL, method) for method in methods)
        item = Item()
        state = SimpleNamespace(
            bench=bench or Bench(),
            cells=tuple(one for one in cells if one.method not in left_out),
            settings=options.defaults(tmp_path, inconclusive=inconclusive),
            owners={},
            waivers=Waivers(),
        )
        config = SimpleNamespace(stash={STATE: state})
        request = SimpleNamespace(node=item, config=config)
        return LawHolder(request, Subject(name="small", cells=cells)), item

    return make


def found(item):
    return item.stash[ITEM]


def passes(hold, law):
    """Hold a law; a skip would pass for a test that was skipped itself."""
    try:
        return hold(law)
    except pytest.skip.Exception as end:
        raise AssertionError(f"skipped: {end.msg}") from end


def ends(holder, item, law, outcome):
    """Hold a law that does not end well; returns the words and the one result."""
    with pytest.raises((pytest.fail.Exception, pytest.skip.Exception)) as end:
        holder(law)
    assert end.type is outcome
    (result,) = found(item).results
    assert result.cell == "small"
    return str(end.value.msg), result


def test_a_law_that_holds_passes_and_is_kept_with_what_it_measured(holder):
    hold, item = holder()
    held = passes(hold, "memory")
    assert (held.law, held.subject, held.verdict) == ("memory", "small", Verdict.PASS)
    assert held.slope == pytest.approx(1.0)
    assert {point.cell for point in held.points} == {f"small-{method}" for method in METHODS}
    assert found(item).laws == [held]
    (result,) = found(item).results
    assert (result.cell, result.verdict, result.quantity) == ("small", Verdict.PASS, "peak_memory")
    assert result.message == held.message
    # A cell's figures go into the report of the cell.
    assert {*found(item).others} == {f"small-{method}" for method in METHODS}
    assert {*found(item).others["small-Q4_0"]} == {"weight_bytes", "peak_memory"}
    assert item.warnings == []


@pytest.mark.parametrize(
    ("guessing", "taken"),
    [(1e-9, True), (0.4, False), (None, False), (UnsupportedError("items with choices"), True)],
)
def test_accuracy_is_taken_where_the_reference_does_not_guess(holder, guessing, taken):
    figures = {(method, "ln_ppl_ratio"): 0.0 for method in METHODS}
    figures |= {(method, "ln_ppl"): 1.0 for method in METHODS}
    figures |= {(method, "accuracy"): 0.5 for method in METHODS}
    if not isinstance(guessing, Exception):
        guessing = Measurement(quantity="guess_probability", value=guessing, unit="1")
    bench = Bench({("F16", "guess_probability"): guessing} | figures)
    hold, _ = holder(bench)
    passes(hold, "marginal")
    assert (("small-Q4_0", "accuracy") in bench.asked) is taken


def test_an_unknown_law_is_named_with_those_that_there_are(holder):
    hold, _ = holder()
    with pytest.raises(ValueError, match=r"unknown law 'memry'; .*memory"):
        hold("memry")


def test_a_law_that_does_not_hold_fails_with_the_reason(holder):
    leak = {("Q5_0", "peak_memory"): 60 * 2**20}
    words, result = ends(*holder(Bench(leak)), "memory", pytest.fail.Exception)
    assert words.startswith("suites/laws/test_laws.py::test_memory small: fail: ")
    assert "small-Q5_0" in words
    assert f"  law       {LAWS['memory'].words}" in words.splitlines()
    assert (result.verdict, result.outcome) == (Verdict.FAIL, "failed")
    assert "small-Q5_0" in result.message


def test_a_cell_that_was_left_out_of_the_run_is_not_asked(holder):
    bench = Bench()
    hold, _ = holder(bench, left_out=("Q8_0",))
    assert len(passes(hold, "memory").points) == 3
    assert "small-Q8_0" not in {cell for cell, _ in bench.asked}


def test_too_few_cells_are_no_line(holder):
    words, result = ends(*holder(methods=("F16", "Q4_0")), "memory", pytest.skip.Exception)
    # What it takes is said once, as of everything that is skipped.
    assert words.startswith("requires 3 cells of different weight_bytes")
    assert (result.verdict, result.outcome) == (Verdict.UNSUPPORTED, "skipped")


def test_a_cell_without_a_figure_is_left_out_and_named(holder):
    absent = {("Q5_0", "peak_memory"): UnsupportedError("something")}
    hold, _ = holder(Bench(absent))
    held = passes(hold, "memory")
    assert len([point for point in held.points if not point.left_out]) == 3
    assert held.verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("law", "quantity"), [("memory", "peak_memory"), ("loss_envelope", "mean_kld")]
)
def test_a_figure_that_is_not_finite_is_no_figure_that_is_missing(holder, law, quantity):
    # A broken cell must not leave the law through the door of those that have no such figure.
    words, result = ends(*holder(Bench({("Q5_0", quantity): None})), law, pytest.fail.Exception)
    assert "small-Q5_0" in words
    assert result.verdict is Verdict.FAIL


def disturbed(value, name="peak_memory"):
    return Measurement(quantity=name, value=value, unit="B", disturbed=("3 MiB were swapped out",))


@pytest.mark.parametrize("inconclusive", ["fail", "skip"])
def test_what_is_off_the_line_and_was_disturbed_decides_nothing(holder, inconclusive):
    bench = Bench({("Q5_0", "peak_memory"): disturbed(60 * 2**20)})
    outcome = pytest.fail.Exception if inconclusive == "fail" else pytest.skip.Exception
    words, result = ends(*holder(bench, inconclusive=inconclusive), "memory", outcome)
    assert "disturbed: peak_memory of small-Q5_0: 3 MiB were swapped out" in words
    assert result.verdict is Verdict.INVALID


def test_what_was_disturbed_is_evidence_for_nothing_though_it_is_on_the_line(holder):
    usual = 5.5 * WEIGHTS / 8 + 44 * 2**20
    bench = Bench({("Q5_0", "peak_memory"): disturbed(usual)})
    words, result = ends(*holder(bench), "memory", pytest.fail.Exception)
    assert "disturbed: peak_memory of small-Q5_0" in words
    assert result.verdict is Verdict.INVALID


def test_advisory_figures_do_not_turn_a_law_red(holder):
    odd = {
        ("Q5_0", "peak_memory"): Measurement(
            quantity="peak_memory", value=60 * 2**20, unit="B", advisory=True
        )
    }
    words, result = ends(*holder(Bench(odd)), "memory", pytest.skip.Exception)
    assert words.startswith("fail (advisory): ")
    assert (result.verdict, result.advisory) == (Verdict.FAIL, True)


def test_a_law_that_warns_does_not_turn_red(holder):
    # More than twice the time that its bytes take; the others show that bytes are what counts.
    slow = {("Q4_0", "decode_speed"): 1e9 / (4.5 * WEIGHTS / 8) / 2.2}
    hold, item = holder(Bench(slow), methods=tuple(BITS))
    held = passes(hold, "decode_time")
    assert held.verdict is Verdict.PASS
    (result,) = found(item).results
    assert result.verdict is Verdict.PASS
    (warning,) = item.warnings
    assert isinstance(warning, OnDeviceWarning)
    assert "small-Q4_0" in str(warning)
    assert str(warning).startswith("suites/laws/test_laws.py::test_memory small: ")


def test_a_stage_that_died_ends_the_item_and_says_so(holder):
    ending = Ending(kind=Kind.CRASH, stage="memory", message="it died")
    bench = Bench()
    dead = StageFailedError(cell(SMALL, "Q5_0"), Stage.MEMORY, ending)
    bench.odd[("Q5_0", "peak_memory")] = dead
    # No collected check owns the stage: who asked turns red.
    words, result = ends(*holder(bench), "memory", pytest.fail.Exception)
    assert "memory of small-Q5_0: crash: it died" in words
    assert result.verdict is Verdict.FAIL
    hold, item = holder(bench)
    hold._state.owners[(Stage.MEMORY, "small-Q5_0")] = "resources.peak_memory"
    words, result = ends(hold, item, "memory", pytest.skip.Exception)
    assert words == "blocked by resources.peak_memory of small-Q5_0: crash"
    assert result.verdict is Verdict.BLOCKED


def test_what_cannot_be_had_fails_with_its_sentence(holder):
    bench = Bench({("Q5_0", "peak_memory"): OnDeviceError("no room on the disk")})
    words, _ = ends(*holder(bench), "memory", pytest.fail.Exception)
    assert words.endswith("no room on the disk")


# Loss is a law of full precision alone


LOSSY = ["loss_envelope", "loss_monotone", "pareto", "marginal", "threshold"]


def test_these_laws_need_full_precision():
    assert sorted(LOSSY) == sorted(name for name, law in LAWS.items() if law.loss)


@pytest.mark.parametrize("law", LOSSY)
def test_of_a_source_that_is_quantized_already_no_loss_is_judged(holder, law):
    bench = Bench()
    bench.ancestor_share = 0.1
    words, result = ends(*holder(bench), law, pytest.skip.Exception)
    assert "a source in full precision: that of small is quantized already (Q4_1)" in words
    assert result.verdict is Verdict.UNSUPPORTED
    # And nothing is measured for it.
    assert bench.asked == []


def test_a_law_of_bytes_does_not_mind_the_source(holder):
    bench = Bench()
    bench.ancestor_share = 0.1
    hold, _ = holder(bench)
    assert passes(hold, "memory").verdict is Verdict.PASS


def test_without_a_reference_no_loss_is_judged(holder):
    bench = Bench()
    bench.references = {}
    words, _ = ends(*holder(bench), "loss_envelope", pytest.skip.Exception)
    assert "a reference in full precision of small" in words
    assert bench.asked == []
    # A file that was given stands for it.
    bench.given = {"small": "file"}
    hold, _ = holder(bench)
    assert passes(hold, "loss_envelope").verdict is Verdict.PASS


def test_a_reference_that_is_not_all_floats_is_none(holder):
    bench = Bench(share=0.25)
    words, _ = ends(*holder(bench), "loss_envelope", pytest.skip.Exception)
    assert "a reference in full precision: 25% of that of small is floats" in words


# In words


def held(**fields):
    points = (
        LawPoint(cell="m-F16", x=1.0, y=2.0),
        LawPoint(cell="m-Q4_0", x=2.0, y=3.0, left_out="it has no such figure"),
        LawPoint(cell="m-Q8_0", x=3.0, y=4.0),
    )
    return LawReport(
        **{
            "law": "memory",
            "subject": "m",
            "verdict": Verdict.FAIL,
            "message": "it leaks",
            "y": "peak_memory",
            "y_unit": "B",
            "points": points,
            "slope": 1.25,
            "slope_error": 0.0312,
            "intercept": 44.5 * 2**20,
            "r2": 0.98765432,
            "anomalies": ("m-Q8_0 is off", "m-F16 too"),
        }
        | fields
    )


def test_what_does_not_hold_is_explained_line_by_line():
    assert explain(LAWS["memory"], held(), "laws.memory m: fail", "it leaks").splitlines() == [
        "laws.memory m: fail: it leaks",
        "  fit       slope 1.25 ± 0.031, intercept 44.50 MiB, R2 0.98765, over 2 cells",
        "  anomaly   m-Q8_0 is off",
        "  anomaly   m-F16 too",
        "  law       Peak memory is the bytes of the weights plus a constant.",
        "  update    a law has no baseline; docs/laws.md says what it cannot see",
    ]


def test_what_is_not_known_of_the_fit_is_left_out():
    bare = held(slope_error=None, r2=math.nan, anomalies=())
    assert explain(LAWS["memory"], bare, "t", "m").splitlines()[1] == (
        "  fit       slope 1.25, intercept 44.50 MiB, over 2 cells"
    )
    for absent in ({"slope": None}, {"intercept": None}):
        lines = explain(LAWS["memory"], held(**absent), "t", "m").splitlines()
        assert [line for line in lines if line.startswith("  fit")] == []


def test_a_share_of_the_variance_is_never_told_as_more_than_it_is():
    # The bound is 0.999: rounded to it, what is below would look as if it were not.
    (line,) = [
        line
        for line in explain(LAWS["memory"], held(r2=0.9989999), "t", "m").splitlines()
        if "R2" in line
    ]
    assert "R2 0.99899," in line
