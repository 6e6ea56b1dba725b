"""What stages yielded, as measurements; and the bench that has them measured, part by part.

The bench runs with a worker that answers at once: what is tested is which probe it starts when.
"""

from __future__ import annotations

import base64
import itertools
import json
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
from pytest_ondevice.measure import Bench, NoMeterError, StageFailedError, UnsupportedError
from pytest_ondevice.model.artifact import TensorInfo
from pytest_ondevice.model.catalog import Cell, Model, ModelSource
from pytest_ondevice.model.device import Runtime
from pytest_ondevice.model.ending import Ending, Kind
from pytest_ondevice.model.measurement import digest_of
from pytest_ondevice.model.quantity import QUANTITIES, Stage
from pytest_ondevice.probe.fidelity import COLUMNS
from pytest_ondevice.probe.protocol import Event
from pytest_ondevice.probe.runner import Result
from pytest_ondevice.references import GivenReference
from pytest_ondevice.stats import Look
from pytest_ondevice.storage.journal import Journal
from pytest_ondevice.texts import texts

MIB = 2**20
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
    """What a pass yields; columns that are not given hold 0 in every window, of 1000 bytes."""
    whole = {name: [0.0] * len(ids) for name in COLUMNS} | {"bytes": [1000] * len(ids)} | columns
    return {
        "ids": list(ids),
        "reference": reference,
        "nonfinite": nonfinite,
        "scored": 255,
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


OF_THE_TEXT = {"ln_ppl", "bits_per_byte", "nonfinite"}
"""Figures that a reference has too: they are of the text alone."""


@pytest.mark.parametrize("name", [name for name in FIDELITY if name not in OF_THE_TEXT])
def test_the_reference_has_no_loss_against_itself(name):
    with pytest.raises(NoFigureError, match="a cell other than the reference"):
        figures.of_fidelity(name, [pass_of(["a:0"], reference=True, token_kld=[0], token_dp=[0])])


def test_the_reference_has_a_perplexity_of_its_own():
    found = figures.of_fidelity("ln_ppl", [pass_of(["a:0"], reference=True, nll=[2.5])])
    assert found.value == 2.5


# Bits per byte

LN2 = math.log(2)


def test_bits_per_byte_are_all_bits_over_all_bytes():
    # 255 scored positions; 2 and 4 bits per token make 510 and 1020 bits, of 500 and 1200 bytes.
    first = pass_of(["a:0"], nll=[2 * LN2], bytes=[500])
    second = pass_of(["a:1"], nll=[4 * LN2], bytes=[1200])
    found = figures.of_fidelity("bits_per_byte", [first, second])
    assert found.unit == "bits/B"
    assert found.value == pytest.approx((510 + 1020) / (500 + 1200))
    assert found.samples == pytest.approx((510 / 500, 1020 / 1200))
    assert found.sample_ids == ("a:0", "a:1")
    # The ratio is 0.9: the windows hold 60 bits more and 60 bits less than 0.9 of their bytes.
    assert found.error == pytest.approx(math.sqrt((60**2 + 60**2) * 2 / 1) / 1700)
    assert found.n == 2


def test_bits_per_byte_of_the_same_ratio_everywhere_have_no_spread():
    # Windows of other lengths in bytes, and as many bits as that takes.
    sizes = [400, 800, 1600]
    nll = [size * 0.7 * LN2 / 255 for size in sizes]
    found = figures.of_fidelity(
        "bits_per_byte", [pass_of(["a:0", "a:1", "a:2"], nll=nll, bytes=sizes)]
    )
    assert found.value == pytest.approx(0.7)
    assert found.error == pytest.approx(0.0, abs=1e-12)


def test_one_window_has_bits_per_byte_and_no_error():
    found = figures.of_fidelity("bits_per_byte", [pass_of(["a:0"], nll=[LN2], bytes=[510])])
    assert (found.value, found.error, found.n) == (pytest.approx(0.5), None, 1)


@pytest.mark.parametrize("broken", [{"nll": [LN2, None]}, {"bytes": [500, 0]}])
def test_a_broken_window_leaves_no_bits_per_byte_of_the_rest(broken):
    payload = pass_of(["a:0", "a:1"], **({"nll": [LN2, LN2]} | broken))
    found = figures.of_fidelity("bits_per_byte", [payload, pass_of(["a:2"], nll=[LN2])])
    assert (found.value, found.n, found.samples) == (None, 3, ())


def test_the_reference_has_bits_per_byte_of_its_own():
    payload = pass_of(["a:0"], reference=True, nll=[LN2], bytes=[255])
    assert figures.of_fidelity("bits_per_byte", [payload]).value == pytest.approx(1.0)


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


@pytest.mark.parametrize(
    "name", [name for name, quantity in QUANTITIES.items() if quantity.stage is Stage.MEMORY]
)
def test_memory(name):
    payload = {"peak": 1, "weights": 2, "kv": 3, "compute": 4, "unattributed": 5}
    found = figures.of_memory(name, payload)
    assert (found.value, found.unit) == (payload[name.removesuffix("_memory")], "B")
    assert found.disturbed == ()
    assert figures.of_memory(name, payload | {"swapped": 0}).disturbed == ()
    swapped = figures.of_memory(name, payload | {"swapped": 12 * 2**20})
    assert swapped.disturbed == ("12 MiB were swapped out",)


RESERVED = {
    "weights": 8 * MIB,
    "contexts": {
        "512": {"kv": 2 * MIB, "compute": 3 * MIB, "output": MIB // 2},
        "1024": {"kv": 4 * MIB, "compute": 5 * MIB, "output": MIB // 2},
        "777": {"kv": 7 * MIB, "compute": 9 * MIB, "output": MIB},
    },
}


def test_what_is_reserved_is_the_sum_of_its_parts_at_the_context_that_was_asked_for():
    found = figures.of_reserve("reserved_memory", RESERVED, 512)
    assert (found.value, found.unit) == (13.5 * MIB, "B")
    assert found.detail == ("weights 8.00 MiB, kv 2.00 MiB, compute 3.00 MiB, output 0.50 MiB")
    assert figures.of_reserve("reserved_memory", RESERVED, 777).value == 25 * MIB


@pytest.mark.parametrize(
    ("name", "n_ctx", "value"),
    [
        ("kv_reserve", 512, 2 * MIB),
        ("kv_reserve", 777, 7 * MIB),
        ("compute_reserve", 512, 3 * MIB),
        ("compute_reserve", 777, 9 * MIB),
        # These say their length themselves, whatever was asked for.
        ("kv_reserve_512", 777, 2 * MIB),
        ("kv_reserve_1024", 512, 4 * MIB),
    ],
)
def test_a_part_of_what_is_reserved(name, n_ctx, value):
    found = figures.of_reserve(name, RESERVED, n_ctx)
    assert (found.quantity, found.value, found.unit) == (name, value, "B")


def test_a_context_that_the_model_has_not_got_has_no_cache():
    with pytest.raises(NoFigureError) as refusal:
        figures.of_reserve("kv_reserve_4096", RESERVED, 512)
    assert str(refusal.value) == "a model whose context reaches 4096 tokens"


DEPLOYED = {"peak": 200 * MIB, "mapped": 85 * MIB, "repacked": 60 * MIB, "swapped": 0}
EXACT = {"peak": 145 * MIB}


def test_memory_as_shipped_is_explained_against_the_exact_protocol():
    found = figures.of_deployment("deployed_memory", DEPLOYED, EXACT, 85 * MIB)
    assert (found.value, found.unit, found.disturbed) == (200 * MIB, "B", ())
    assert found.detail == (
        "as shipped it takes 200.0 MiB, 55.0 MiB more than the 145.0 MiB with weights read and not"
        " repacked: repacked copies: +60.0 MiB (the mapped file stays in memory beside them),"
        " other: -5.0 MiB"
    )
    # Pages that are not in memory are told by the bytes of the weights.
    absent = figures.of_deployment("deployed_memory", DEPLOYED, EXACT, 95 * MIB)
    assert "weights not in memory: -10.0 MiB" in absent.detail


@pytest.mark.parametrize(("name", "value"), [("repacked_bytes", 60), ("mapped_bytes", 85)])
def test_a_part_of_memory_as_shipped(name, value):
    found = figures.of_deployment(name, DEPLOYED, EXACT, 85 * MIB)
    assert (found.quantity, found.value, found.detail) == (name, value * MIB, "")


def test_memory_as_shipped_that_was_swapped_is_disturbed():
    swapped = DEPLOYED | {"swapped": 3 * MIB}
    found = figures.of_deployment("deployed_memory", swapped, EXACT, 85 * MIB)
    assert found.disturbed == ("3 MiB were swapped out",)


JOULES = {
    "meter": "rapl",
    "scope": "package and memory",
    "idle_watts": 4.0,
    "prefill": {"joules": 60.0, "seconds": 5.0, "tokens": 1200},
    "decode": {"joules": 24.0, "seconds": 3.0, "tokens": 96},
    "disturbed": [],
}


@pytest.mark.parametrize(
    ("name", "value", "unit"),
    [
        ("prefill_energy", 0.05, "J/token"),
        ("decode_energy", 0.25, "J/token"),
        ("prefill_power", 12.0, "W"),
        ("decode_power", 8.0, "W"),
        ("idle_power", 4.0, "W"),
    ],
)
def test_energy_is_joules_per_token_and_power_joules_per_second(name, value, unit):
    found = figures.of_energy(name, JOULES)
    assert (found.quantity, found.value, found.unit) == (name, pytest.approx(value), unit)
    # Whoever compares figures has to know what they are of.
    assert (found.detail, found.disturbed) == ("rapl: package and memory", ())
    doubtful = figures.of_energy(name, JOULES | {"disturbed": ["idle: 5% stolen"]})
    assert doubtful.disturbed == ("idle: 5% stolen",)


@pytest.mark.parametrize(
    "name", [name for name, quantity in QUANTITIES.items() if quantity.stage is Stage.ENERGY]
)
def test_without_a_meter_there_is_no_energy_and_the_words_say_why(name):
    with pytest.raises(NoFigureError) as refusal:
        figures.of_energy(name, {"unsupported": "no meter in /sys. Run as root"})
    assert str(refusal.value) == "no meter in /sys. Run as root"


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
        "load_cold": [0.9, 0.8],
        "warmth": "",
        "ttft": [0.3, 0.2],
        "prefill": [prefill, prefill / 2],
        "prefill_long": [prefill / 4, prefill / 5],
        "decode": [decode / 3, decode, decode / 2],
        "decode_deep": [decode / 6, decode / 5],
        "bandwidth": [1e9, 2e9],
        "slowed": 0.0,
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
    [
        ("decode_speed", 30.0),
        ("decode_speed_d512", 6.0),
        ("prefill_speed", 100.0),
        ("prefill_speed_512", 25.0),
        ("load_time", 0.4),
        ("load_time_cold", 0.8),
        ("ttft", 0.2),
        ("read_bandwidth", 2e9),
    ],
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


def test_the_roofline_is_what_memory_could_deliver():
    # 30 tokens/s of 20 MB each, where memory delivers 2 GB/s; the best of each process.
    found = figures.of_speed(
        "roofline_fraction", rounds([30.0, 60.0]), {}, binding=2, active=20_000_000
    )
    assert found.samples == pytest.approx((0.3, 0.6))
    assert (found.quantity, found.unit, found.n) == ("roofline_fraction", "1", 2)
    assert found.sample_ids == ("round:1", "round:2")


@pytest.mark.parametrize(
    ("tokens", "by"),
    [
        (90.0, "memory bandwidth"),
        (50.0, "memory bandwidth and unpacking"),
        (10.0, "computing: unpacking and arithmetic"),
    ],
)
def test_the_roofline_says_what_bounds_decoding(tokens, by):
    found = figures.of_speed(
        "roofline_fraction", rounds([tokens]), {}, binding=1, active=20_000_000
    )
    assert found.detail == f"bound by {by}"
    # Of other figures nothing is said.
    assert speed("decode_speed", rounds([tokens])).detail == ""


def test_a_load_that_could_not_be_cold_has_no_time_and_says_why():
    made = rounds([30.0, 31.0])
    why = "12% of the file stayed in the page cache, which others hold"
    for payload in made.values():
        payload |= {"load_cold": [], "warmth": why}
    with pytest.raises(NoFigureError) as refusal:
        speed("load_time_cold", made)
    assert str(refusal.value) == f"a process that tells it: {why}"
    # The rounds that were cold stand; warm loads are another figure.
    made["round:2"]["load_cold"] = [0.7]
    found = speed("load_time_cold", made, binding=2)
    assert (found.samples, found.sample_ids, found.advisory) == ((0.7,), ("round:2",), True)
    assert speed("load_time", made).n == 2


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("decode_speed_d512", "decode_deep"),
        ("read_bandwidth", "bandwidth"),
        ("roofline_fraction", "bandwidth"),
        ("load_time_cold", "load_cold"),
    ],
)
def test_what_no_process_tells_is_no_figure(name, column):
    # A journal of an earlier version, resumed: its processes told less.
    made = rounds([30.0, 31.0])
    for payload in made.values():
        del payload[column], payload["warmth"]
    with pytest.raises(NoFigureError) as refusal:
        speed(name, made)
    assert str(refusal.value) == "a process that tells it"


def test_what_was_slowed_on_purpose_says_so():
    made = rounds([30.0, 31.0, 32.0])
    for name in ("decode_speed", "roofline_fraction", "decode_ratio"):
        theirs = {place: [payload] for place, payload in made.items()}
        assert "slowed" not in speed(name, made, theirs).detail
    made["round:2"]["slowed"] = 0.1
    told = "decoding was slowed on purpose by 10%, by the hook for tests"
    assert speed("decode_speed", made).detail == told
    assert speed("decode_ratio", made, theirs).detail == told
    assert speed("roofline_fraction", made).detail.endswith(f"; {told}")
    # What is left out has no say.
    made["round:2"]["disturbed"] = ["x"]
    assert speed("decode_speed", made).detail == ""


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

WEIGHTS = TensorInfo(name="output.weight", shape=(1000, 1000), type="F16", offset=0)
TABLE = TensorInfo(name="token_embd.weight", shape=(500, 7), type="F16", offset=0)
"""Of the one a token reads everything, of the other a row: 2 MB and 1000 bytes."""


class Worker:
    """Answers every job at once; ``probes`` is what was asked of it, in order.

    Attributes:
        probes: Per process the artifact's name and the stages, fidelity with its windows.
        deaths: Stages that end badly, by artifact.
        disturbed: Numbers of the speed processes that are disturbed, counted from 0.
        swaps: MiB that the next runs of the deployed stage lose to swapping.
        meter: What the energy stage yields.
        knows: Whether an artifact, by its name, answers the question of an id right.
        jobs: The jobs themselves.
    """

    def __init__(self, folder):
        self.folder = folder
        self.probes = []
        self.deaths = {}
        self.disturbed = set()
        self.swaps = []
        self.meter = JOULES
        self.knows = lambda name, item: True
        self.jobs = []
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
            answers["memory"] = dict.fromkeys(("peak", "weights", "kv", "compute"), 1)
        if job.reserve is not None:
            # Two bytes of cache a token, and eight of each to compute.
            lengths = {job.reserve.execution.n_ctx, *job.reserve.contexts}
            sizes = {str(n): {"kv": 2 * n, "compute": 8 * n} for n in lengths}
            answers["reserve"] = {"weights": 100, "contexts": sizes}
        if job.deployed is not None:
            swapped = self.swaps.pop(0) if self.swaps else 0
            parts = {"peak": 3, "mapped": 1, "repacked": 2}
            answers["deployed"] = {**parts, "swapped": swapped * MIB}
        if job.energy is not None:
            answers["energy"] = self.meter
        if job.tasks is not None:
            said = [self.knows(name, item.id) for item in job.tasks.items]
            logliks = [(-1.0 if right else -3.0, -2.0) for right in said]
            answers["tasks"] = {
                "answers": [{"logliks": one, "tokens": (1, 1)} for one in logliks],
                "ids": [item.id for item in job.tasks.items],
            }
        self.jobs.append(job)
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
        header=SimpleNamespace(
            file_size=1, tokenizer_digest="t", tensors=(WEIGHTS, TABLE), metadata={}
        ),
        account=SimpleNamespace(n_bytes=WEIGHTS.n_bytes + TABLE.n_bytes),
    )
    return SimpleNamespace(file=file, lineage="0" * 64, origin="candidate")


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


def test_the_roofline_is_of_the_bytes_that_a_token_reads(bench, worker):
    found = bench(F16, Q4_0).measure(Q4_0, "roofline_fraction")
    # 11, 15 and 17 tokens/s at 2 GB/s: the round turns, so that its own process is second.
    assert found.samples == pytest.approx(
        [tokens * (2_000_000 + 1000) / 2e9 for tokens in (11.0, 14.0, 17.0)]
    )


# Memory beside the exact protocol, and energy


def test_what_is_reserved_is_of_the_context_of_the_settings(bench, worker):
    made = bench(F16, Q4_0, declared=(), context=640)
    assert made.measure(Q4_0, "kv_reserve").value == 2 * 640
    assert made.measure(Q4_0, "reserved_memory").value == 100 + 10 * 640
    assert made.measure(Q4_0, "kv_reserve_4096").value == 2 * 4096
    assert worker.probes == ["m-Q4_0 validate", "m-Q4_0 reserve"]
    assert made.protocol(Q4_0, Stage.RESERVE)["n_ctx"] == 640
    assert made.protocol(Q4_0, Stage.MEMORY)["n_ctx"] == 640
    # Text is judged and speed is timed at lengths of their own.
    assert made.protocol(Q4_0, Stage.FIDELITY)["n_ctx"] == 512
    assert made.protocol(Q4_0, Stage.SPEED)["n_ctx"] == 1024


def test_another_context_is_another_measurement(bench, worker):
    assert bench(Q4_0, declared=()).measure(Q4_0, "kv_reserve").value == 2 * 512
    longer = bench(Q4_0, declared=(), context=1024).measure(Q4_0, "kv_reserve")
    assert (longer.value, longer.reused) == (2 * 1024, False)


def test_what_is_reserved_is_exact_and_reused_by_later_runs(bench, worker):
    bench(Q4_0, declared=()).measure(Q4_0, "reserved_memory")
    before = list(worker.probes)
    assert bench(Q4_0, declared=(), run="another").measure(Q4_0, "reserved_memory").reused
    assert worker.probes == before


def test_memory_as_shipped_has_a_process_of_its_own_beside_the_exact_one(bench, worker):
    made = bench(F16, Q4_0, declared=(Stage.DEPLOYED, Stage.MEMORY, Stage.ENERGY))
    found = made.measure(Q4_0, "deployed_memory")
    assert (found.value, found.disturbed) == (3, ())
    assert found.detail.startswith("as shipped it takes 0.0 MiB, ")
    assert sorted(worker.probes) == ["m-Q4_0 deployed", "m-Q4_0 memory", "m-Q4_0 validate"]
    exact = next(job.memory for job in worker.jobs if job.memory)
    shipped = next(job.deployed for job in worker.jobs if job.deployed)
    assert (exact.execution.repack, exact.execution.mapped) == (False, False)
    assert (shipped.execution.repack, shipped.execution.mapped) == (True, True)


def test_memory_as_shipped_that_was_swapped_is_measured_once_more(bench, worker):
    worker.swaps = [5]
    made = bench(Q4_0, declared=())
    assert made.measure(Q4_0, "deployed_memory").disturbed == ()
    assert worker.probes.count("m-Q4_0 deployed") == 2
    worker.swaps = [5, 6, 7]
    again = bench(Q4_0, declared=(), run="another").measure(Q4_0, "deployed_memory")
    assert again.disturbed == ("6 MiB were swapped out",)
    assert worker.probes.count("m-Q4_0 deployed") == 4


@pytest.mark.parametrize("name", ["deployed_memory", "decode_energy", "peak_memory"])
def test_what_a_machine_does_at_the_time_belongs_to_one_run(bench, worker, name):
    bench(Q4_0, declared=()).measure(Q4_0, name)
    assert bench(Q4_0, declared=()).measure(Q4_0, name).reused
    assert not bench(Q4_0, declared=(), run="another").measure(Q4_0, name).reused


def test_energy_is_asked_of_the_meters_that_the_settings_name(bench, worker, tmp_path):
    made = bench(Q4_0, declared=(), sysfs=tmp_path / "host-sys")
    assert made.measure(Q4_0, "decode_energy").value == pytest.approx(0.25)
    assert worker.jobs[-1].energy.sysfs == str(tmp_path / "host-sys")
    # Where the meters are seen does not change what they tell.
    assert "sysfs" not in made.protocol(Q4_0, Stage.ENERGY)


def test_without_a_meter_energy_is_not_there_in_a_way_of_its_own(bench, worker):
    worker.meter = {"unsupported": "no meter in /sys"}
    with pytest.raises(NoMeterError, match="no meter in /sys"):
        bench(Q4_0, declared=()).measure(Q4_0, "decode_energy")
    # That a reference is missing is not for want of a meter.
    with pytest.raises(UnsupportedError) as refusal:
        bench(F16, declared=()).measure(F16, "mean_kld")
    assert not isinstance(refusal.value, NoMeterError)


def test_other_processes_of_the_session_disturb_energy(bench, worker):
    found = bench(Q4_0, declared=(), busy=True).measure(Q4_0, "decode_energy")
    assert found.disturbed == ("other test workers were running tests",)


# How the cache is kept

KV = Cell(model=MODEL, method="Q4_0+kv-q8_0")


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("peak_memory", "memory"),
        ("reserved_memory", "reserve"),
        ("deployed_memory", "deployed"),
        ("decode_energy", "energy"),
        ("decode_speed", "speed"),
        ("mean_kld", "fidelity"),
    ],
)
def test_a_method_says_how_the_cache_is_kept_in_every_stage(bench, worker, name, plan):
    made = bench(F16, Q4_0, KV, declared=())
    for cell, kind in ((Q4_0, "f16"), (KV, "q8_0")):
        made.measure(cell, name)
        asked = [
            getattr(job, plan).execution
            for job in worker.jobs
            if job.artifact == cell.id and getattr(job, plan) is not None
        ]
        assert {(one.type_k, one.type_v) for one in asked} == {(kind, kind)}


@pytest.mark.parametrize("stage", [Stage.FIDELITY, Stage.DECODE])
def test_the_plain_cache_leaves_a_protocol_what_it_was(bench, worker, stage):
    made = bench(F16, Q4_0, KV)
    assert not {"type_k", "type_v"} & made.protocol(Q4_0, stage).keys()
    assert made.protocol(KV, stage)["type_k"] == "q8_0"
    assert made.protocol(KV, stage)["type_v"] == "q8_0"


def test_what_an_importance_matrix_was_made_from_is_not_known_of_a_candidate(bench, worker):
    weighed = Cell(model=MODEL, method="Q4_0+imatrix")
    made = bench(F16, weighed, declared=(), rederive=True)
    with pytest.raises(UnsupportedError, match="a method without an importance matrix"):
        made.measure(weighed, "rederived_share")


def test_the_reference_of_another_cache_is_the_plain_one(bench, worker):
    bench(F16, KV, declared=()).measure(KV, "mean_kld", 8)
    assert fidelity(worker) == ["m-F16 fidelity[0:8]", "m-Q4_0+kv-q8_0 fidelity[0:8]"]
    (plain,) = {
        job.fidelity.execution.type_k
        for job in worker.jobs
        if job.artifact == "m-F16" and job.fidelity
    }
    assert plain == "f16"


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


# Questions


def questions(path, count, name="mine"):
    """A set of one's own: the first of two choices is right."""
    lines = [f'{{"tasks": 1, "name": "{name}"}}']
    for number in range(count):
        item = {"id": str(number), "form": "choice", "prompt": f"{name} {number}?", "right": [0]}
        lines.append(json.dumps(item | {"options": [{"text": " a"}, {"text": " b"}]}))
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture
def quiz(bench, tmp_path):
    """Make a bench of some cells that are asked so many questions, of which the first are few."""

    def make(*cells, count=300, named=None, **chosen):
        named = named or (questions(tmp_path / f"q{count}.jsonl", count),)
        made = bench(*cells, declared=(Stage.TASKS,), tasks=named, **chosen)
        value = options.Value(",".join(named), "--ondevice-tasks", "command line")
        given_ = made.settings.given | {"tasks": value}
        made.settings = options.replace(made.settings, given=given_)
        return made

    return make


def test_only_as_many_questions_are_asked_as_a_look_needs(quiz, worker):
    made = quiz(F16, Q4_0)
    first, whole = made.looks(Q4_0, 0.05, Stage.TASKS)
    assert (first, whole) == (Look(1, 0.025), Look(2, 0.025))
    assert made.measure(Q4_0, "accuracy", first.windows).n == 200
    assert worker.probes == ["m-Q4_0 validate tasks"]
    found = made.measure(Q4_0, "accuracy", whole.windows)
    # What was asked is not asked again.
    assert worker.probes == ["m-Q4_0 validate tasks", "m-Q4_0 tasks"]
    assert [len(job.tasks.items) for job in worker.jobs] == [200, 100]
    assert (found.n, found.value) == (300, 1.0)
    assert made.measure(Q4_0, "accuracy").samples == found.samples
    # Few questions are one look, with all of the error.
    assert quiz(F16, count=200).looks(F16, 0.05, Stage.TASKS) == (Look(1, 0.05),)


def test_flips_are_asked_of_the_reference_as_far(quiz, worker):
    worker.knows = lambda name, item: name == "m-F16" or item.endswith("0")
    made = quiz(F16, Q4_0)
    found = made.measure(Q4_0, "answer_flips", 1)
    assert [len(job.tasks.items) for job in worker.jobs] == [200, 200]
    assert {job.artifact for job in worker.jobs} == {"m-Q4_0", "m-F16"}
    kept = sum(name.split("#")[0].endswith("0") for name in found.sample_ids)
    assert (found.value, found.n) == (1 - kept / 200, 200)
    assert f"{200 - kept} lost and 0 gained of 200" in found.detail
    with pytest.raises(UnsupportedError, match="answers of the reference: no F16 of m"):
        quiz(Q4_0, references=False).measure(Q4_0, "answer_flips")


def test_the_report_pairs_what_both_were_asked(quiz, worker):
    worker.knows = lambda name, item: name == "m-F16" or item.endswith("0")
    made = quiz(F16, Q4_0)
    assert made.tasks(Q4_0) == ()
    made.measure(F16, "accuracy")
    made.measure(Q4_0, "accuracy", 1)
    (reference,), (quantized,) = made.tasks(F16), made.tasks(Q4_0)
    assert (reference.n, reference.right, reference.lost) == (300, 300, None)
    assert quantized.n == 200
    assert (quantized.lost, quantized.gained) == (200 - quantized.right, 0)


def test_a_form_that_is_not_there_is_unsupported(quiz):
    with pytest.raises(UnsupportedError, match="items of the form cloze"):
        quiz(F16).measure(F16, "cloze_accuracy")


def test_answers_are_reused_by_whoever_asks_the_same(quiz, worker, tmp_path):
    first = quiz(F16).measure(F16, "accuracy")
    assert not first.reused
    again = quiz(F16, run="another").measure(F16, "accuracy")
    assert (again.reused, again.samples) == (True, first.samples)
    asked_ = len(worker.jobs)
    # Other questions of the same number are other questions.
    other = questions(tmp_path / "other.jsonl", 300, "other")
    assert not quiz(F16, named=(other,)).measure(F16, "accuracy").reused
    assert len(worker.jobs) > asked_


def test_a_cell_that_did_not_pass_is_asked_again(quiz, worker):
    made = quiz(F16)
    made.measure(F16, "accuracy")
    made.void(F16, "accuracy")
    before = len(worker.jobs)
    quiz(F16, run="another").measure(F16, "accuracy")
    assert len(worker.jobs) == before + 2


def test_a_process_that_dies_of_the_questions_is_no_answer(quiz, worker):
    worker.deaths = {"m-Q4_0": {"tasks"}}
    made = quiz(F16, Q4_0)
    with pytest.raises(StageFailedError, match="it died"):
        made.measure(Q4_0, "accuracy")
    assert made.measure(F16, "accuracy").value == 1.0


def test_a_model_with_a_text_of_its_own_is_measured_on_it(bench, worker):
    own = Cell(
        model=Model(name="p", text="pocket", tasks=("pocket",), sources=MODEL.sources),
        method="F16",
        reference=True,
    )
    made = bench(F16, own)
    made.references["p"] = own
    for stage in (Stage.FIDELITY, Stage.DECODE):
        theirs, common = (made.protocol(cell, stage) for cell in (own, F16))
        assert theirs["text"] == texts(None, "pocket")[1]
        assert common["text"] == texts(None)[1]
        # And in nothing else: what is compared is compared by this.
        assert {name for name in common if common[name] != theirs[name]} == {"text"}
        assert digest_of(theirs) != digest_of(common)
    assert [one.name for one in made.questions(own)] == ["pocket"]
    assert [one.name for one in made.questions(F16)] == ["general"]
    made.measure(own, "ln_ppl")
    kinds = {text.kind for text in worker.jobs[-1].fidelity.texts}
    assert kinds == {text.kind for text in texts(None, "pocket")[0]}


def test_a_protocol_of_questions_is_the_same_for_every_set(quiz, tmp_path):
    # Items are paired by their digests, so that a set may grow.
    one = quiz(F16).protocol(F16, Stage.TASKS)
    other = questions(tmp_path / "other.jsonl", 5, "other")
    assert quiz(F16, named=(other,)).protocol(F16, Stage.TASKS) == one
    assert {"stage", "lineage"} <= one.keys()
    assert not {"items", "threads", "n_ctx"} & one.keys()
