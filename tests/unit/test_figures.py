"""What stages yielded, as measurements; and the bench that has them measured, part by part.

The bench runs with a worker that answers at once: what is tested is which probe it starts when.
"""

from __future__ import annotations

import base64
import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice import figures, measure, options
from pytest_ondevice.api import rounds_to_take
from pytest_ondevice.figures import NoFigureError
from pytest_ondevice.measure import Bench, StageFailedError, UnsupportedError
from pytest_ondevice.model.catalog import Cell, Model, ModelSource
from pytest_ondevice.model.device import Runtime
from pytest_ondevice.model.ending import Ending, Kind
from pytest_ondevice.model.quantity import QUANTITIES, Stage
from pytest_ondevice.probe.fidelity import COLUMNS
from pytest_ondevice.probe.protocol import Event
from pytest_ondevice.probe.runner import Result
from pytest_ondevice.references import GivenReference
from pytest_ondevice.storage.journal import Journal

lawful = settings(max_examples=60, deadline=None, derandomize=True, database=None)

FIDELITY = [
    name
    for name, quantity in QUANTITIES.items()
    if quantity.stage is Stage.FIDELITY and name != "changed_windows"
]
"""Every figure of a pass; windows that changed come from digests on record."""


def packed(values):
    return base64.b64encode(np.asarray(values, dtype="<f4").tobytes()).decode()


def pass_of(ids, *, reference=False, nonfinite=0, token_kld=(), token_dp=(), **columns):
    """What a pass yields; columns that are not given hold 0 in every window."""
    whole = {name: [0.0] * len(ids) for name in COLUMNS} | columns
    return {
        "ids": list(ids),
        "reference": reference,
        "nonfinite": nonfinite,
        "token_kld": packed(token_kld),
        "token_dp": packed(token_dp),
        **whole,
    }


# Fidelity

ONE_COLUMN = {
    "mean_kld": "kld",
    "ln_ppl_ratio": "ln_ratio",
    "ln_ppl": "nll",
    "same_top": "same_top",
    "mean_dp": "dp",
    "mean_square_dp": "square_dp",
}


@pytest.mark.parametrize(("name", "column"), ONE_COLUMN.items())
def test_a_figure_is_the_mean_over_the_windows_of_all_parts(name, column):
    first = pass_of(["a:0", "b:0"], **{column: [0.1, 0.4]})
    second = pass_of(["a:1"], **{column: [0.7]})
    found = figures.of_fidelity(name, [first, second])
    assert (found.quantity, found.unit) == (name, QUANTITIES[name].unit)
    assert found.value == pytest.approx(0.4)
    assert found.samples == (0.1, 0.4, 0.7)
    assert found.sample_ids == ("a:0", "b:0", "a:1")
    assert found.n == 3
    # The standard error of a mean of three windows.
    assert found.error == pytest.approx(0.3 / math.sqrt(3))
    assert not found.advisory
    assert found.disturbed == ()


def test_one_window_has_a_value_and_no_error():
    found = figures.of_fidelity("mean_kld", [pass_of(["a:0"], kld=[0.25])])
    assert (found.value, found.error, found.n) == (0.25, None, 1)


def test_rms_dp_is_the_root_of_the_mean_square():
    squares = [0.01, 0.04, 0.16, 0.07]
    payload = pass_of(["a:0", "a:1", "a:2", "a:3"], square_dp=squares)
    found = figures.of_fidelity("rms_dp", [payload])
    assert found.value == pytest.approx(math.sqrt(0.07))
    # By the delta method; the root is no mean, so that it has no samples to pair by.
    spread = np.std(squares, ddof=1) / 2
    assert found.error == pytest.approx(spread / (2 * math.sqrt(0.07)))
    assert (found.n, found.samples, found.sample_ids) == (4, (), ())


def test_rms_dp_of_no_change_and_of_one_window_has_no_error():
    nothing = figures.of_fidelity("rms_dp", [pass_of(["a:0", "a:1"])])
    assert (nothing.value, nothing.error) == (0.0, None)
    one = figures.of_fidelity("rms_dp", [pass_of(["a:0"], square_dp=[0.09])])
    assert (one.value, one.error) == (pytest.approx(0.3), None)


PERCENTILES = {
    "kld_median": ("token_kld", 50),
    "kld_p90": ("token_kld", 90),
    "kld_p99": ("token_kld", 99),
    "kld_p999": ("token_kld", 99.9),
    "kld_max": ("token_kld", 100),
    "dp_p1": ("token_dp", 1),
    "dp_p10": ("token_dp", 10),
    "dp_p90": ("token_dp", 90),
    "dp_p99": ("token_dp", 99),
}


@pytest.mark.parametrize(("name", "column", "share"), [(n, *w) for n, w in PERCENTILES.items()])
@pytest.mark.parametrize("count", [1, 2, 10, 777])
def test_percentiles_are_over_all_positions_of_all_parts(name, column, share, count):
    rng = np.random.default_rng(count)
    values = rng.standard_normal(count).astype("<f4")
    split = count // 3
    parts = [
        pass_of(["a:0"], **{column: values[:split]}),
        pass_of(["a:1"], **{column: values[split:]}),
    ]
    found = figures.of_fidelity(name, parts)
    # numpy's default interpolates between neighbours too.
    assert found.value == pytest.approx(np.percentile(values.astype(float), share))
    assert found.n == count
    assert (found.error, found.samples) == (None, ())


def test_no_position_has_no_percentile():
    # Every window held a logit that was not finite.
    found = figures.of_fidelity("kld_p90", [pass_of(["a:0"], kld=[None], nonfinite=3)])
    assert found.value is None


@pytest.mark.parametrize("name", [*ONE_COLUMN, "rms_dp"])
def test_a_broken_window_leaves_no_mean_of_the_rest(name):
    column = {"rms_dp": "square_dp"} | ONE_COLUMN
    payload = pass_of(["a:0", "a:1"], nonfinite=1, **{column[name]: [0.5, None]})
    found = figures.of_fidelity(name, [payload, pass_of(["a:2"])])
    assert (found.value, found.n, found.samples) == (None, 3, ())


def test_logits_that_are_not_finite_are_added_up():
    parts = [pass_of(["a:0", "a:1"], nonfinite=2), pass_of(["a:2"], nonfinite=5)]
    found = figures.of_fidelity("nonfinite", parts)
    assert (found.value, found.n, found.error) == (7.0, 3, None)


@pytest.mark.parametrize("name", [name for name in FIDELITY if name not in {"ln_ppl", "nonfinite"}])
def test_the_reference_has_no_loss_against_itself(name):
    with pytest.raises(NoFigureError, match="a cell other than the reference"):
        figures.of_fidelity(name, [pass_of(["a:0"], reference=True, token_kld=[0], token_dp=[0])])


def test_the_reference_has_a_perplexity_of_its_own():
    found = figures.of_fidelity("ln_ppl", [pass_of(["a:0"], reference=True, nll=[2.5])])
    assert found.value == 2.5


@pytest.mark.parametrize("name", FIDELITY)
def test_every_quantity_of_a_pass_has_a_figure(name):
    found = figures.of_fidelity(name, [pass_of(["a:0"], token_kld=[0.5], token_dp=[0.5])])
    assert (found.quantity, found.unit) == (name, QUANTITIES[name].unit)
    assert found.value is not None


@lawful
@given(st.lists(st.floats(0, 10), min_size=2, max_size=30), st.integers(1, 29))
def test_it_makes_no_difference_where_the_parts_are_cut(values, at):
    ids = [f"a:{i}" for i in range(len(values))]
    whole = figures.of_fidelity("mean_kld", [pass_of(ids, kld=values)])
    pieces = [pass_of(ids[:at], kld=values[:at]), pass_of(ids[at:], kld=values[at:])]
    assert figures.of_fidelity("mean_kld", pieces) == whole


# Other stages


@pytest.mark.parametrize(("valid", "value"), [(True, 1.0), (False, 0.0)])
def test_validation(valid, value):
    payload = {"valid": valid, "tensor_bytes": 1234}
    assert figures.of_validation("tensors_valid", payload).value == value
    found = figures.of_validation("runtime_tensor_bytes", payload)
    assert (found.value, found.unit) == (1234.0, "B")


@pytest.mark.parametrize("name", ["peak_memory", "weights_memory", "kv_memory", "compute_memory"])
def test_memory(name):
    payload = {"peak": 1, "weights": 2, "kv": 3, "compute": 4}
    found = figures.of_memory(name, payload)
    assert (found.value, found.unit) == (payload[name.removesuffix("_memory")], "B")
    assert found.disturbed == ()
    assert figures.of_memory(name, payload | {"swapped": 0}).disturbed == ()
    swapped = figures.of_memory(name, payload | {"swapped": 12 * 2**20})
    assert swapped.disturbed == ("12 MiB were swapped out",)


def test_decoding():
    found = figures.of_decoding("decode_kld", {"kld": [0.1, 0.2, 0.6], "furthest": 0.12345})
    assert (found.quantity, found.unit) == ("decode_kld", "nats")
    assert (found.value, found.n) == (pytest.approx(0.3), 3)
    # Positions of one window are no independent samples.
    assert (found.error, found.samples) == (None, ())
    assert found.detail == "largest difference of a logit 0.123"
    assert figures.of_decoding("decode_kld", {"kld": None, "furthest": None}).value is None


# Speed


def timed(decode, prefill=100.0, disturbed=()):
    """What one process yields: repetitions, of which the best counts."""
    return {
        "load": [0.5, 0.4],
        "ttft": [0.3, 0.2],
        "prefill": [prefill, prefill / 2],
        "decode": [decode / 3, decode, decode / 2],
        "disturbed": list(disturbed),
    }


def rounds(speeds):
    """Clean rounds by name; a list is a disturbed one, with the reason."""
    return {
        f"round:{i + 1}": timed(speed[0], disturbed=[speed[1]])
        if isinstance(speed, list)
        else timed(speed)
        for i, speed in enumerate(speeds)
    }


def speed(name, mine, reference=None, binding=8):
    return figures.of_speed(name, mine, reference or {}, binding=binding)


@pytest.mark.parametrize(
    ("name", "best"),
    [("decode_speed", 30.0), ("prefill_speed", 100.0), ("load_time", 0.4), ("ttft", 0.2)],
)
def test_a_process_is_told_by_its_best_repetition(name, best):
    found = speed(name, rounds([30.0]))
    assert (found.value, found.samples, found.sample_ids) == (best, (best,), ("round:1",))
    assert (found.quantity, found.unit) == (name, QUANTITIES[name].unit)


def test_a_campaign_is_told_by_the_median_of_its_rounds():
    found = speed("decode_speed", rounds([30.0, 10.0, 32.0, 31.0, 90.0]))
    # Neither the slow round nor the fast one moves it far.
    assert found.value == 31.0
    assert found.n == 5
    assert found.samples == (30.0, 10.0, 32.0, 31.0, 90.0)
    assert found.sample_ids == tuple(f"round:{i}" for i in range(1, 6))


def test_one_round_has_no_error():
    assert speed("decode_speed", rounds([30.0])).error is None


@pytest.mark.parametrize(("count", "advisory"), [(3, True), (7, True), (8, False), (16, False)])
def test_few_rounds_are_advisory(count, advisory):
    assert speed("decode_speed", rounds([30.0] * count)).advisory is advisory
    assert speed("decode_speed", rounds([30.0] * count), binding=count).advisory is False
    assert speed("decode_speed", rounds([30.0] * count), binding=count + 1).advisory is True


def test_disturbed_rounds_are_left_out():
    found = speed("decode_speed", rounds([30.0, [1.0, "5% stolen"], 32.0, 31.0]))
    assert found.sample_ids == ("round:1", "round:3", "round:4")
    assert (found.value, found.n) == (31.0, 3)
    assert found.disturbed == ()


@pytest.mark.parametrize(
    ("bad", "whole", "disturbed"),
    [(1, 3, False), (2, 6, False), (2, 8, False), (3, 8, True), (2, 3, True), (1, 2, True)],
)
def test_fewer_than_two_thirds_clean_rounds_are_a_disturbed_campaign(bad, whole, disturbed):
    made = rounds([[5.0, "5% stolen"]] * bad + [30.0] * (whole - bad))
    found = speed("decode_speed", made)
    assert bool(found.disturbed) is disturbed
    if disturbed:
        assert found.disturbed == (f"{bad} of {whole} rounds were disturbed: 5% stolen",)
    # What is left is still told, of clean rounds only.
    assert found.value == 30.0


def test_a_campaign_of_disturbed_rounds_only_tells_what_it_has():
    found = speed("decode_speed", rounds([[5.0, "b"], [7.0, "a"], [6.0, "b"]]))
    assert found.value == 6.0
    assert found.disturbed == ("3 of 3 rounds were disturbed: a; b",)


def test_left_out_rounds_do_not_count_towards_a_verdict():
    made = rounds([30.0] * 7 + [[1.0, "x"]])
    found = speed("decode_speed", made)
    assert (found.n, found.advisory, found.disturbed) == (7, True, ())


@pytest.mark.parametrize(
    ("name", "best"), [("decode_ratio", (40.0, 90.0)), ("prefill_ratio", (200.0, 800.0))]
)
def test_a_ratio_is_to_the_reference_first_and_last_in_the_round(name, best):
    mine = {"round:1": timed(30.0, 100.0)}
    theirs = {"round:1": [timed(40.0, 200.0), timed(90.0, 800.0)]}
    found = speed(name, mine, theirs)
    own = 30.0 if name == "decode_ratio" else 100.0
    # Their geometric mean: a drift over the round cancels.
    assert found.value == pytest.approx(math.log(own / math.sqrt(best[0] * best[1])))
    assert found.sample_ids == ("round:1",)


def test_a_ratio_is_of_the_same_round():
    # The machine gets slower by the round, the ratio stays.
    mine = rounds([30.0, 20.0, 10.0])
    theirs = {
        f"round:{i + 1}": [timed(one), timed(one)] for i, one in enumerate([60.0, 40.0, 20.0])
    }
    found = speed("decode_ratio", mine, theirs)
    assert found.samples == pytest.approx([math.log(0.5)] * 3)
    assert found.value == pytest.approx(math.log(0.5))


def test_a_round_without_the_reference_has_no_ratio():
    mine = rounds([30.0, 20.0, 10.0])
    theirs = {"round:1": [timed(60.0)], "round:2": []}
    found = speed("decode_ratio", mine, theirs, binding=1)
    assert found.sample_ids == ("round:1",)
    assert not found.advisory
    with pytest.raises(NoFigureError, match="a reference that was timed in the same rounds"):
        speed("decode_ratio", mine, {"round:9": [timed(1.0)]})


@pytest.mark.parametrize(
    ("name", "sign"), [("decode_speed", 1), ("prefill_speed", 1), ("load_time", -1), ("ttft", -1)]
)
def test_more_is_better_in_every_logarithm(name, sign):
    best = {"decode_speed": 30.0, "prefill_speed": 100.0, "load_time": 0.4, "ttft": 0.2}[name]
    assert figures.log_speed(name, timed(30.0)) == pytest.approx(sign * math.log(best))


# The bench

MODEL = Model(name="m", sources=(ModelSource(repo="org/m"),))
F16, Q4_0, Q8_0 = (
    Cell(model=MODEL, method=method, reference=method == "F16")
    for method in ("F16", "Q4_0", "Q8_0")
)
HELD = 30
"""Windows that the text holds."""


class Worker:
    """Answers every job at once; ``probes`` is what was asked of it, in order.

    Attributes:
        probes: Per process the artifact's name and the stages, fidelity with its windows.
        deaths: Stages that end badly, by artifact.
        disturbed: Numbers of the speed processes that are disturbed, counted from 0.
    """

    def __init__(self, folder):
        self.folder = folder
        self.probes = []
        self.deaths = {}
        self.disturbed = set()
        self.timed = itertools.count()

    def run(self, job, *, on_event, **_):
        name = job.artifact
        plan = job.fidelity
        answers = {}
        if job.validate:
            answers["validate"] = {"valid": True, "tensor_bytes": 1}
        if job.speed is not None:
            number = next(self.timed)
            bad = ["5% stolen"] if number in self.disturbed else []
            answers["speed"] = timed(10.0 + number, disturbed=bad)
        if plan is not None:
            ids = [f"w:{i}" for i in range(HELD)][plan.first : plan.last]
            answers["fidelity"] = pass_of(ids, reference=plan.write) | {
                "available": HELD,
                "isa": "avx2",
                "logits": ["0"] * max(0, min(4, len(ids)) - plan.first),
            }
            if plan.write and plan.reference:
                self.folder.joinpath("references").mkdir(exist_ok=True)
                Path(plan.reference).touch()
        if job.memory is not None:
            answers["memory"] = {"peak": 1, "weights": 1, "kv": 1, "compute": 1}
        shown = [
            f"fidelity[{plan.first}:{plan.last or ''}]" if stage == "fidelity" else stage
            for stage in answers
        ]
        self.probes.append(" ".join([name, *shown]))
        payloads = {}
        for stage, payload in answers.items():
            on_event(Event(event="start", stage=stage))
            if stage in self.deaths.get(name, ()):
                ending = Ending(kind=Kind.CRASH, stage=stage, message="it died")
                return Result(payloads=payloads, endings={stage: ending})
            # As it would arrive: through JSON.
            payloads[stage] = msgspec.json.decode(msgspec.json.encode(payload))
            on_event(Event(event="done", stage=stage, payload=payloads[stage]))
        return Result(payloads=payloads, endings={})


@pytest.fixture
def worker(tmp_path, monkeypatch):
    made = Worker(tmp_path)
    monkeypatch.setattr(measure.runner, "run", made.run)
    monkeypatch.setattr(measure, "available_memory", lambda: None)
    monkeypatch.setenv("PYTEST_ONDEVICE_LOCK_DIR", str(tmp_path))
    return made


def artifact_of(cell):
    file = SimpleNamespace(
        path=cell.id,
        sha256=f"{'old ' if cell.before else ''}{cell.method}",
        header=SimpleNamespace(file_size=1, tokenizer_digest="t"),
    )
    return SimpleNamespace(file=file, lineage="0" * 64)


@pytest.fixture
def bench(worker, tmp_path):
    """Make a bench of some cells in a session of its own."""
    sessions = itertools.count()

    def make(*cells, declared=(Stage.SPEED,), run="run", references=True, given=None, **chosen):
        chosen = {"cache": tmp_path, "rounds": 3, "windows": None, "threads": 2} | chosen
        before = chosen.pop("compares_before", False)
        fields = {"busy": chosen.pop("busy", False)}
        return Bench(
            settings=options.defaults(tmp_path, **chosen),
            provision=SimpleNamespace(
                ready=artifact_of, runtime=Runtime(name="r", version="1", digest="d")
            ),
            journal=Journal(tmp_path / "journal", run, f"session {next(sessions)}"),
            references={"m": F16} if references else {},
            progress=SimpleNamespace(update=lambda *_: None, finish=lambda: None),
            cells=cells,
            compares_before=before,
            declared={cell.id: set(declared) for cell in cells},
            given=given or {},
            **fields,
        )

    return make


def speeds(worker):
    """The timed processes, in order."""
    return [probe.removesuffix(" speed") for probe in worker.probes if probe.endswith(" speed")]


def test_a_round_has_the_reference_first_and_last_and_turns_round_each_time(bench, worker):
    made = bench(F16, Q4_0, Q8_0)
    found = made.measure(Q4_0, "decode_ratio")
    assert speeds(worker) == [
        *("m-F16", "m-Q4_0", "m-Q8_0", "m-F16"),
        *("m-F16", "m-Q8_0", "m-Q4_0", "m-F16"),
        *("m-F16", "m-Q4_0", "m-Q8_0", "m-F16"),
    ]
    # Speeds are 10, 11, 12 and so on: each is held against the reference of its own round.
    expected = [
        math.log(own / math.sqrt(first * last))
        for own, first, last in ((11, 10, 13), (16, 14, 17), (19, 18, 21))
    ]
    assert found.samples == pytest.approx(expected)
    assert found.sample_ids == ("round:1", "round:2", "round:3")
    assert found.advisory


def test_one_campaign_serves_all_its_cells(bench, worker):
    made = bench(F16, Q4_0, Q8_0)
    made.measure(Q4_0, "decode_ratio")
    before = list(worker.probes)
    for cell, name in ((Q8_0, "decode_ratio"), (F16, "decode_speed"), (Q4_0, "ttft")):
        made.measure(cell, name)
    assert worker.probes == before
    # Times of the same rounds are paired, those of the reference's first process.
    assert made.measure(F16, "decode_speed").samples == (10.0, 14.0, 18.0)


def test_only_cells_whose_items_want_speed_are_timed(bench, worker):
    made = bench(F16, Q4_0, Q8_0)
    made.declared["m-Q8_0"] = {Stage.FIDELITY}
    made.measure(Q4_0, "decode_speed")
    assert speeds(worker) == ["m-F16", "m-Q4_0", "m-F16"] * 3


def test_predecessors_are_timed_beside_their_successors(bench, worker):
    made = bench(F16, Q4_0, compares_before=True)
    now = made.measure(Q4_0, "decode_speed")
    assert speeds(worker) == [
        *("m-F16", "m-F16 (before)", "m-Q4_0", "m-Q4_0 (before)", "m-F16"),
        *("m-F16", "m-Q4_0 (before)", "m-Q4_0", "m-F16 (before)", "m-F16"),
        *("m-F16", "m-F16 (before)", "m-Q4_0", "m-Q4_0 (before)", "m-F16"),
    ]
    then = made.measure(Q4_0.predecessor, "decode_speed")
    assert (now.sample_ids, now.samples) == (then.sample_ids, (12.0, 17.0, 22.0))
    assert then.samples == (13.0, 16.0, 23.0)


def test_the_references_own_predecessor_is_timed_too(bench, worker):
    made = bench(F16, Q4_0, compares_before=True)
    now, then = (made.measure(cell, "decode_speed") for cell in (F16, F16.predecessor))
    assert now.sample_ids == then.sample_ids == ("round:1", "round:2", "round:3")


def test_without_a_reference_there_are_speeds_and_no_ratios(bench, worker):
    made = bench(Q4_0, Q8_0, references=False)
    assert made.measure(Q4_0, "decode_speed").n == 3
    assert speeds(worker) == ["m-Q4_0", "m-Q8_0", "m-Q8_0", "m-Q4_0", "m-Q4_0", "m-Q8_0"]
    with pytest.raises(UnsupportedError, match="a reference that was timed"):
        made.measure(Q4_0, "decode_ratio")


def test_more_rounds_are_added_to_those_that_were_timed(bench, worker):
    made = bench(F16, Q4_0)
    first = made.measure(Q4_0, "decode_ratio")
    more = made.measure(Q4_0, "decode_ratio", rounds=6)
    # The turning goes on where it was.
    assert speeds(worker) == ["m-F16", "m-Q4_0", "m-F16"] * 6
    assert more.sample_ids == tuple(f"round:{i}" for i in range(1, 7))
    assert more.samples[:3] == first.samples
    assert made.measure(Q4_0, "decode_ratio") == first


def test_eight_rounds_make_a_verdict(bench, worker):
    made = bench(F16, Q4_0, rounds=8)
    assert not made.measure(Q4_0, "decode_ratio").advisory
    assert made.measure(Q4_0, "decode_ratio", rounds=7).advisory
    assert rounds_to_take(7) == ((7, 0.05),)
    # What is slower after 8 is timed 8 rounds more before it is told; both share the error.
    assert rounds_to_take(8) == ((8, 0.025), (16, 0.025))


def test_a_disturbed_process_is_run_once_more(bench, worker):
    worker.disturbed = {1}
    made = bench(F16, Q4_0)
    found = made.measure(Q4_0, "decode_speed")
    assert speeds(worker)[:4] == ["m-F16", "m-Q4_0", "m-Q4_0", "m-F16"]
    assert found.samples[0] == 12.0
    assert found.disturbed == ()


def test_a_process_that_is_disturbed_twice_is_disturbed(bench, worker):
    worker.disturbed = set(range(99))
    found = bench(F16, Q4_0).measure(Q4_0, "decode_speed")
    assert found.disturbed == ("3 of 3 rounds were disturbed: 5% stolen",)
    # No third attempt.
    assert len(speeds(worker)) == 3 * 3 * 2


def test_other_processes_of_the_session_disturb_every_round(bench, worker):
    made = bench(F16, Q4_0, busy=True)
    found = made.measure(Q4_0, "decode_speed")
    (why,) = found.disturbed
    assert why.endswith("3 of 3 rounds were disturbed: other test workers were running tests")
    # Measuring once more would not help.
    assert len(speeds(worker)) == 9


def test_a_cell_that_dies_leaves_the_campaign_and_no_other(bench, worker):
    worker.deaths = {"m-Q8_0": {"speed"}}
    made = bench(F16, Q4_0, Q8_0)
    assert made.measure(Q4_0, "decode_ratio").n == 3
    assert speeds(worker).count("m-Q8_0") == 1
    with pytest.raises(StageFailedError, match="it died"):
        made.measure(Q8_0, "decode_speed")


def test_a_cell_that_is_not_valid_is_never_timed(bench, worker):
    worker.deaths = {"m-Q8_0": {"validate"}}
    made = bench(F16, Q4_0, Q8_0)
    assert made.measure(Q4_0, "decode_ratio").n == 3
    assert "m-Q8_0" not in speeds(worker)
    with pytest.raises(StageFailedError):
        made.measure(Q8_0, "decode_speed")


def test_speed_belongs_to_one_run(bench, worker):
    bench(F16, Q4_0).measure(Q4_0, "decode_speed")
    count = len(worker.probes)
    # The interrupted run that is being resumed.
    resumed = bench(F16, Q4_0).measure(Q4_0, "decode_speed")
    assert len(worker.probes) == count
    assert resumed.reused
    assert not bench(F16, Q4_0, run="another").measure(Q4_0, "decode_speed").reused
    assert len(speeds(worker)) == 18


# Windows, in stretches


def fidelity(worker):
    return [probe for probe in worker.probes if "fidelity" in probe]


def test_windows_are_measured_as_far_as_they_are_asked_for(bench, worker):
    made = bench(F16, Q4_0, declared=())
    assert made.measure(Q4_0, "mean_kld", 8).n == 8
    assert fidelity(worker) == ["m-F16 fidelity[0:8]", "m-Q4_0 fidelity[0:8]"]
    assert made.measure(Q4_0, "mean_kld", 16).n == 16
    assert made.measure(Q4_0, "mean_kld", 8).n == 8
    assert made.measure(Q4_0, "mean_kld").sample_ids == tuple(f"w:{i}" for i in range(HELD))
    asked = [probe.split()[0] + probe[probe.index("[") :] for probe in fidelity(worker)]
    assert asked == [
        f"{cell}[{start}:{end}]"
        for start, end in ((0, 8), (8, 16), (16, 24), (24, 48))
        for cell in ("m-F16", "m-Q4_0")
    ]


@pytest.mark.parametrize(
    ("budget", "ends"),
    [(8, [8]), (16, [8, 16]), (20, [8, 16, 20]), (24, [8, 16, 24]), (100, [8, 16, 24, HELD])],
)
def test_a_budget_ends_the_windows(bench, worker, budget, ends):
    made = bench(F16, Q4_0, declared=(), windows=budget)
    looks = made.looks(Q4_0, 0.05)
    assert [made.measure(Q4_0, "mean_kld", look.windows).n for look in looks] == ends
    assert math.fsum(look.alpha for look in looks) == pytest.approx(0.05)
    assert made.measure(Q4_0, "mean_kld").n == ends[-1]
    assert made.measure(F16, "ln_ppl").n == ends[-1]


def test_a_longer_budget_reuses_what_a_shorter_one_measured(bench, worker):
    bench(F16, Q4_0, declared=(), windows=16).measure(Q4_0, "mean_kld")
    before = len(worker.probes)
    found = bench(F16, Q4_0, declared=(), windows=None).measure(Q4_0, "mean_kld")
    assert found.n == HELD
    later = [probe[probe.index("[") :] for probe in worker.probes[before:]]
    assert later == ["[16:24]", "[16:24]", "[24:48]", "[24:48]"]


def test_deterministic_stages_are_reused_until_they_are_voided(bench, worker):
    first = bench(F16, Q4_0, declared=())
    first.measure(Q4_0, "mean_kld")
    before = len(worker.probes)
    second = bench(F16, Q4_0, declared=(), run="another")
    assert second.measure(Q4_0, "mean_kld").reused
    assert len(worker.probes) == before
    second.void(Q4_0, "mean_kld")
    third = bench(F16, Q4_0, declared=(), run="third")
    assert not third.measure(Q4_0, "mean_kld").reused
    again = [probe for probe in worker.probes[before:] if "fidelity" in probe]
    assert [probe.split()[0] for probe in again] == ["m-Q4_0"] * 4


def test_a_reference_file_that_is_gone_is_made_again(bench, worker, tmp_path):
    bench(F16, Q4_0, declared=()).measure(Q4_0, "mean_kld", 8)
    (kept,) = (tmp_path / "references").iterdir()
    kept.unlink()
    before = len(worker.probes)
    bench(F16, Q4_0, declared=(), run="another").measure(Q4_0, "mean_kld", 8)
    assert [probe.split()[0] for probe in worker.probes[before:]] == ["m-F16"]
    assert kept.exists()


def test_a_given_reference_ends_the_windows_and_no_reference_is_loaded(bench, worker, tmp_path):
    path = tmp_path / "given.npz"
    path.write_bytes(b"given")
    given = {"m": GivenReference(path, "1" * 64, 20)}
    made = bench(Q4_0, declared=(), references=False, given=given)
    assert [look.windows for look in made.looks(Q4_0, 0.05)] == [8, 16, None]
    assert made.measure(Q4_0, "mean_kld").n == 20
    asked = [probe.split()[0] + probe[probe.index("[") :] for probe in fidelity(worker)]
    assert asked == ["m-Q4_0[0:8]", "m-Q4_0[8:16]", "m-Q4_0[16:20]"]
    assert made.protocol(Q4_0, Stage.FIDELITY)["lineage"] == "1" * 16


def test_beside_needs_the_reference_valid_and_no_file(bench, worker, tmp_path):
    made = bench(F16, Q4_0, declared=(), reference=options.BESIDE)
    assert made.measure(Q4_0, "mean_kld", 8).n == 8
    assert "m-F16 validate" in worker.probes
    assert not [probe for probe in fidelity(worker) if probe.startswith("m-F16")]
    assert not (tmp_path / "references").exists()
    assert made.protocol(Q4_0, Stage.FIDELITY)["kept"] == "the whole vocabulary"


def test_without_any_reference_there_is_no_loss(bench, worker):
    made = bench(Q4_0, declared=(), references=False)
    with pytest.raises(UnsupportedError, match="a reference: no F16 of m was given"):
        made.measure(Q4_0, "mean_kld")


def test_windows_that_changed_are_no_figure_of_a_pass(bench, worker):
    with pytest.raises(UnsupportedError, match="logits on record"):
        bench(F16, Q4_0).measure(Q4_0, "changed_windows")


def test_the_predecessors_windows_are_its_own(bench, worker):
    made = bench(F16, Q4_0, declared=(), compares_before=True)
    made.measure(Q4_0, "mean_kld", 8)
    made.measure(Q4_0.predecessor, "mean_kld", 8)
    assert [probe.split(" fidelity")[0] for probe in fidelity(worker)] == [
        "m-F16",
        "m-Q4_0",
        "m-Q4_0 (before)",
    ]
