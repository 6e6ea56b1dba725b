"""Laws: the field's published figures get their known verdicts, and a planted fault turns red."""

from __future__ import annotations

import json
import math
import random
from dataclasses import fields
from pathlib import Path

import msgspec
import pytest

from pytest_ondevice import laws
from pytest_ondevice.laws import LAWS, envelope
from pytest_ondevice.laws.fits import fit, theil_sen
from pytest_ondevice.model.law import Figure, LawReport, Row
from pytest_ondevice.model.quantity import CONTEXTS
from pytest_ondevice.model.verdict import Verdict

DATA = Path(__file__).with_name("data")
MIB = 2**20
WEIGHTS = 134_515_008

PASS, FAIL = Verdict.PASS, Verdict.FAIL
INCONCLUSIVE, UNSUPPORTED = Verdict.INCONCLUSIVE, Verdict.UNSUPPORTED


def read(name):
    return json.loads((DATA / name).read_text("utf-8"))


def row(method, model="m", *, reference=False, weights=0, **figures):
    """A row; a figure is a value, or a pair of a value and its error."""
    return Row(
        cell=f"{model}-{method}",
        model=model,
        method=method,
        reference=reference,
        weights=weights,
        figures={
            name: Figure(*value) if isinstance(value, tuple) else Figure(value)
            for name, value in figures.items()
        },
    )


def edit(rows, method, *, error=None, weights=None, **figures):
    """The rows with some figures of one of them set, or taken away where None is given."""
    assert any(one.method == method for one in rows)
    made = []
    for one in rows:
        if one.method == method:
            held = dict(one.figures)
            for name, value in figures.items():
                held.pop(name, None)
                if value is not None:
                    held[name] = Figure(value, error)
            one = msgspec.structs.replace(one, figures=held)  # noqa: PLW2901
            if weights is not None:
                one = msgspec.structs.replace(one, weights=weights)  # noqa: PLW2901
        made.append(one)
    return made


def value(rows, method, name):
    return next(one.figures[name].value for one in rows if one.method == method)


def names(report):
    """The cell that each anomaly is about: its first word."""
    return [one.split()[0].rstrip(":").removeprefix("m-") for one in report.anomalies]


# Published figures


def fidelity():
    """llama.cpp's table of Llama-3-8B."""
    table = read("llama3-8b-fidelity.json")
    found = []
    for cells in table["rows"]:
        one = dict(zip(table["columns"], cells, strict=True))
        held = one["gib"] * 2**30
        found.append(
            row(
                one["type"].upper() + ("+imatrix" if one["imatrix"] else ""),
                reference=one["type"] == "f16",
                weight_bytes=held,
                effective_bpw=8 * held / 8.03e9,
                mean_kld=(one["mean_kld"], one["mean_kld_error"]),
                ln_ppl=math.log(6.231636),
                ln_ppl_ratio=(
                    math.log(one["ppl"] / 6.231636),
                    one["delta_ppl_error"] / one["ppl"],
                ),
            )
        )
    return found


def evaluation(task="mean"):
    """The table of Llama-3.1-8B-Instruct on a Xeon, with the accuracy of one task."""
    table = read("llama31-8b-unified-evaluation.json")
    errors = table["standard_errors"]
    error = errors.get(task, math.hypot(*errors.values()) / len(errors))
    return [
        row(
            one["type"],
            reference=one["type"] == "F16",
            weight_bytes=one["mib"] * MIB,
            active_bytes=one["mib"] * MIB,
            effective_bpw=one["bpw"],
            decode_speed=tuple(one["tg128_tps"]),
            ln_ppl=math.log(one["ppl"]),
            ln_ppl_ratio=math.log(one["ppl"] / table["rows"][0]["ppl"]),
            accuracy=(one[task], error),
        )
        for one in table["rows"]
    ]


STUDY_BPW = {"q2_k": 3.2, "q3_k": 4.0, "q4_k": 4.9, "q5_k": 5.8, "q8_0": 8.5, "fp16": 16.0}
"""About what these types have in models of this size; the study's readers quote no BPW."""

STUDY_WEIGHTS = {"qwen2.5-0.5b": 0.49e9, "qwen2.5-1.5b": 1.54e9, "qwen2.5-14b": 14.8e9}


def study():
    """GSM8K of three sizes of Qwen2.5."""
    return [
        row(
            method.upper().replace("FP16", "F16"),
            model,
            weights=int(STUDY_WEIGHTS[model]),
            effective_bpw=STUDY_BPW[method],
            weight_bytes=STUDY_WEIGHTS[model] * STUDY_BPW[method] / 8,
            accuracy=(right, 100 * math.sqrt(right / 100 * (1 - right / 100) / 1319)),
        )
        for model, methods in read("study-2505.15030.json")["gsm8k_percent"].items()
        for method, right in methods.items()
    ]


def test_the_envelope_lies_on_the_published_table():
    """A and B are the table's: no row above exp(A - B x BPW), and one that touches it."""
    rows = [one for one in fidelity() if not one.reference]
    places = [(one.figures["effective_bpw"].value, one.figures["mean_kld"].value) for one in rows]
    ends = [(value(rows, name, "effective_bpw"), value(rows, name, "mean_kld"))
            for name in ("IQ1_S+imatrix", "Q8_0")]  # fmt: skip
    (x0, y0), (x1, y1) = ends
    assert math.log(y0 / y1) / (x1 - x0) == pytest.approx(laws.ENVELOPE_B, abs=0.005)
    above = [math.log(y) + laws.ENVELOPE_B * x - laws.ENVELOPE_A for x, y in places]
    assert -0.01 < max(above) <= 0
    assert rows[above.index(max(above))].method == "Q4_1"


def test_the_room_is_twice_what_the_study_shows_beyond_an_8b_model():
    """Q3_K costs the 1.5 B model 4 times the share of GSM8K that it costs the 8 B model."""
    big = evaluation("gsm8k")
    small = {one.cell: one.figures["accuracy"].value for one in study()}
    lost = 1 - small["qwen2.5-1.5b-Q3_K"] / small["qwen2.5-1.5b-F16"]
    less = 1 - value(big, "Q3_K_M", "accuracy") / value(big, "F16", "accuracy")
    assert 2 * lost / less == pytest.approx(laws.ENVELOPE_ROOM, rel=0.05)


def test_published_loss_is_within_the_envelope():
    report = laws.loss_envelope("m", [msgspec.structs.replace(one, reference=False)
                                      for one in fidelity()])  # fmt: skip
    assert (report.verdict, report.anomalies) == (PASS, ())
    assert len(report.points) == 34
    assert not any(one.left_out for one in report.points)
    assert report.slope == pytest.approx(-1.13, abs=0.01)
    assert report.r2 == pytest.approx(0.944, abs=0.001)
    # The median row lies at 0.406 of the line.
    assert report.figures["room"] == pytest.approx(5 * 0.406, abs=0.005)
    assert report.figures["largest_share"] == pytest.approx(0.55, abs=0.005)


@pytest.mark.parametrize("only", range(3, 9))
def test_the_room_of_a_model_allows_any_choice_of_published_types(only):
    """Also the worst: the types that lose least, and the one that loses most."""
    rows = [one for one in fidelity() if not one.reference]
    rows.sort(key=lambda one: one.figures["mean_kld"].value
              / envelope(one.figures["effective_bpw"].value))  # fmt: skip
    chosen = [*rows[: only - 1], *(one for one in rows if one.method == "Q4_1")]
    report = laws.loss_envelope("m", chosen)
    assert report.verdict is PASS
    assert report.figures["largest_share"] > 0.6


def test_published_loss_falls_with_bpw():
    report = laws.loss_monotone("m", fidelity())
    assert (report.verdict, report.anomalies) == (PASS, ())
    assert report.figures["pairs"] == 132


def test_published_types_that_another_beats():
    report = laws.pareto("m", fidelity())
    assert report.verdict is PASS
    assert report.warns
    beaten = {one.split()[0]: one.split("worse than ")[1].split()[0] for one in report.anomalies}
    assert beaten == {
        "m-Q2_K": "m-IQ2_M+imatrix",
        "m-Q2_K_S+imatrix": "m-IQ2_M+imatrix",
        "m-Q3_K_S": "m-IQ3_XS+imatrix",
        "m-Q3_K_S+imatrix": "m-IQ3_XS+imatrix",
        "m-Q4_0": "m-IQ4_XS+imatrix",
        "m-Q4_1": "m-Q4_K_M+imatrix",
        "m-Q4_K_S": "m-IQ4_NL+imatrix",
        "m-Q5_1": "m-Q5_K_M",
    }


def test_published_types_that_another_beats_without_importance_matrix():
    report = laws.pareto("m", [one for one in fidelity() if "+" not in one.method])
    assert names(report) == ["Q4_1", "Q5_1"]


def test_published_loss_is_marginal_by_perplexity():
    report = laws.marginal("m", fidelity())
    assert (report.verdict, report.anomalies) == (PASS, ())
    assert report.figures["largest_share"] == pytest.approx(0.823, abs=0.001)
    worst = max(report.points, key=lambda one: 0 if one.left_out else one.y / one.fitted)
    assert worst.cell == "m-Q3_K_S"
    out = [one for one in report.points if one.left_out]
    assert len(out) == report.figures["not_judged"] == 10
    # What the threshold is for: most of those below 3.5 BPW would fail.
    assert sum(one.residual > 0 for one in out) == 9


@pytest.mark.parametrize("task", ["mean", "gsm8k", "hellaswag", "ifeval", "mmlu", "truthfulqa_mc2"])
def test_published_loss_is_marginal_by_tasks(task):
    report = laws.marginal("m", evaluation(task))
    assert (report.verdict, report.anomalies) == (PASS, ())
    assert len(report.points) == 26
    assert not any(one.left_out for one in report.points)


def test_published_loss_of_a_small_model_is_marginal():
    rows = [one for one in study() if one.model == "qwen2.5-1.5b"]
    rows = [msgspec.structs.replace(one, reference=one.method == "F16") for one in rows]
    report = laws.marginal("qwen2.5-1.5b", rows)
    assert (report.verdict, report.anomalies) == (PASS, ())
    out = [one for one in report.points if one.left_out]
    assert [one.cell for one in out] == ["qwen2.5-1.5b-Q2_K"]
    assert out[0].y > 2 * out[0].fitted


def test_published_decode_times_of_the_xeon_have_no_relation_but_for_f16():
    report = laws.decode_time("m", evaluation())
    assert report.verdict is PASS
    assert report.warns
    (said,) = report.anomalies
    assert said.startswith("without plain floats decode time does not follow the bytes here")
    assert report.figures["without_float_r2"] == pytest.approx(0.086, abs=0.001)
    assert report.figures["all_r2"] == pytest.approx(0.679, abs=0.001)


def test_decode_times_of_the_xeon_without_f16_are_inconclusive():
    rows = [one for one in evaluation() if one.method != "F16"]
    report = laws.decode_time("m", rows)
    assert report.verdict is INCONCLUSIVE
    assert report.warns
    assert "bytes do not explain decode time here" in report.message


def test_prefill_has_no_law():
    """Prefill computes: on the Xeon its time has nothing to do with the bytes."""
    table = read("llama31-8b-unified-evaluation.json")["rows"]
    line = fit([one["mib"] for one in table], [1 / one["pp512_tps"][0] for one in table])
    assert line.r2 < 0.04
    assert abs(line.slope) < line.slope_error
    faster = [one["type"] for one in table if one["pp512_tps"][0] < table[0]["pp512_tps"][0]]
    assert len(faster) == 10  # F16, the largest, beats ten of thirteen
    for law in LAWS.values():
        assert not {"prefill_speed", "prefill_ratio"} & {*law.measures, *law.optional}


def test_published_threshold():
    report = laws.threshold("qwen2.5", study())
    assert (report.verdict, report.anomalies) == (PASS, ())
    assert report.y == "accuracy"
    assert report.crossover == 4.0
    assert report.figures == {
        "crossover qwen2.5-1.5b over qwen2.5-0.5b": 4.0,
        "crossover qwen2.5-14b over qwen2.5-0.5b": 3.2,
        "crossover qwen2.5-14b over qwen2.5-1.5b": 3.2,
    }
    assert "qwen2.5-1.5b is as good as qwen2.5-0.5b from 4.00 BPW on and not at 3.20" in (
        report.message
    )
    assert "qwen2.5-14b is as good as qwen2.5-1.5b at all BPW measured" in report.message


# A model as the laws have it


BPW = {"F16": 16.0, "Q2_K": 3.1, "Q3_K_M": 3.9, "Q4_0": 4.6, "Q4_K_M": 4.9, "Q5_0": 5.6,
       "Q5_K_M": 5.7, "Q6_K": 6.6, "Q8_0": 8.5}  # fmt: skip


def clean():
    """Nine cells that keep every law, with residuals of the size that was measured."""
    noise = dict(zip(BPW, (0.1, -0.4, 0.3, 0.5, -0.2, -0.5, 0.2, 0.4, -0.3), strict=True))
    found = []
    for method, bpw in BPW.items():
        held = round(WEIGHTS * bpw / 8 / 32) * 32
        loss = 0.0 if method == "F16" else 6 * math.exp(-1.14 * bpw)
        contexts = {f"kv_reserve_{n}": 23_040 * n for n in CONTEXTS}
        found.append(
            row(
                method,
                reference=method == "F16",
                weights=WEIGHTS,
                weight_bytes=held,
                effective_bpw=8 * held / WEIGHTS,
                active_bytes=held,
                file_size=held + 1_785_664 + 64 * len(method),
                peak_memory=(1.003 * held + (44.6 + noise[method]) * MIB, 0.05 * MIB),
                decode_speed=(1 / (0.001 + held / 20e9), 0.5),
                mean_kld=(loss, 0.02 * loss),
                ln_ppl=2.7,
                ln_ppl_ratio=(loss, 0.05 * loss + 1e-4),
                prefill_power=(9.5 + noise[method], 0.1),
                decode_power=(7.9 + noise[method], 0.1),
                **contexts,
            )
        )
    return found


def family():
    """Two models, the bigger one better from 3.5 BPW on."""
    found = []
    for model, weights, base in (("small", 5e8, 1.1), ("big", 1.5e9, 0.9)):
        for method, bpw in BPW.items():
            loss = 30 * math.exp(-1.5 * bpw)
            found.append(
                row(
                    method,
                    model,
                    weights=int(weights),
                    effective_bpw=bpw,
                    weight_bytes=weights * bpw / 8,
                    bits_per_byte=(base + loss, 0.002),
                )
            )
    return found


def rows_for(name):
    return family() if LAWS[name].per == "family" else clean()


every_law = pytest.mark.parametrize("name", LAWS)


@every_law
def test_a_clean_model_passes(name):
    report = LAWS[name].judge("m", rows_for(name))
    assert report.verdict is PASS
    assert report.law == name
    assert report.subject == "m"
    assert report.points
    if name != "pareto":
        assert report.anomalies == ()


@every_law
def test_the_order_of_rows_changes_nothing(name):
    rows = rows_for(name)
    first = LAWS[name].judge("m", rows)
    for seed in range(8):
        random.Random(seed).shuffle(rows)
        assert LAWS[name].judge("m", rows) == first


def numbers(thing):
    """Every number in a report."""
    if isinstance(thing, float):
        yield thing
    elif isinstance(thing, dict):
        for one in thing.values():
            yield from numbers(one)
    elif isinstance(thing, list | tuple):
        for one in thing:
            yield from numbers(one)


def assert_sound(report):
    """It is complete, without NaN or infinity, and survives JSON."""
    assert all(math.isfinite(one) for one in numbers(msgspec.to_builtins(report)))
    assert "nan" not in report.message
    assert msgspec.json.decode(msgspec.json.encode(report), type=LawReport) == report
    assert report.message
    if report.verdict is FAIL:
        assert report.anomalies


@every_law
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_fails_and_is_named(name, bad):
    for quantity in LAWS[name].measures:
        rows = rows_for(name)
        report = LAWS[name].judge("m", edit(rows, "Q4_0", **{quantity: bad}))
        assert_sound(report)
        assert report.verdict is FAIL
        assert any(f"{quantity} is not finite" in one for one in report.anomalies)


@every_law
def test_errors_that_are_not_finite_yield_sound_reports(name):
    for bad in (math.nan, math.inf):
        rows = [
            msgspec.structs.replace(
                one, figures={key: Figure(held.value, bad) for key, held in one.figures.items()}
            )
            for one in rows_for(name)
        ]
        assert_sound(LAWS[name].judge("m", rows))


@every_law
def test_nothing_is_too_few(name):
    report = LAWS[name].judge("m", [])
    assert report.verdict is UNSUPPORTED
    assert "this run has none" in report.message
    assert all(quantity in report.message for quantity in LAWS[name].measures)


@every_law
def test_missing_quantities_are_named(name):
    quantity = LAWS[name].measures[-1]
    rows = [msgspec.structs.replace(
        one, figures={key: held for key, held in one.figures.items() if key != quantity}
    ) for one in rows_for(name)]  # fmt: skip
    report = LAWS[name].judge("m", rows)
    assert report.verdict is UNSUPPORTED
    assert f"missing: {quantity} of " in report.message


@every_law
def test_one_cell_without_a_quantity_is_named_and_the_others_are_judged(name):
    if LAWS[name].per == "family":
        rows = edit(family(), "Q5_0", bits_per_byte=None)
        told = "missing: bits_per_byte of big-Q5_0, small-Q5_0"
    else:
        quantity = LAWS[name].measures[0]
        rows, told = edit(clean(), "Q5_0", **{quantity: None}), f"missing: {quantity} of m-Q5_0"
    report = LAWS[name].judge("m", rows)
    assert report.verdict is PASS
    assert told in report.message


@pytest.mark.parametrize("name", [name for name, law in LAWS.items() if law.loss])
def test_loss_without_a_lossless_reference_is_unsupported(name):
    reason = "the source is quantized already (Q4_1)"
    report = LAWS[name].judge("m", rows_for(name), reason)
    assert report.verdict is UNSUPPORTED
    assert report.message == reason


@pytest.mark.parametrize("name", [name for name, law in LAWS.items() if not law.loss])
def test_laws_that_need_no_loss_are_held_for_any_source(name):
    assert LAWS[name].judge("m", clean(), "the source is quantized already").verdict is PASS


@every_law
def test_the_table_says_what_the_functions_do(name):
    law = LAWS[name]
    assert law.hold is getattr(laws, name)
    assert law.hold("m", rows_for(name)).warns == law.warns
    assert law.hold("m", []).warns == law.warns
    assert law.words.endswith(".")
    assert {one.name for one in fields(law)} >= {"name", "measures", "optional", "per", "hold"}


# Memory


def leak(method, much):
    rows = clean()
    return edit(rows, method, peak_memory=value(rows, method, "peak_memory") + much * MIB)


def test_memory_is_the_weights_and_a_constant():
    report = laws.memory("m", clean())
    assert report.slope == pytest.approx(1.003, abs=0.002)
    assert report.intercept / MIB == pytest.approx(44.6, abs=0.4)
    assert report.r2 > 0.9999
    assert report.slope_error > 0
    assert report.figures["tolerance"] == MIB
    assert "over 9 cells" in report.message


@pytest.mark.parametrize("method", BPW)
@pytest.mark.parametrize("much", [5, -5, 60])
def test_a_leaked_buffer_is_told_of_its_cell_alone(method, much):
    report = laws.memory("m", leak(method, much))
    assert report.verdict is FAIL
    assert names(report) == [method]
    (point,) = [one for one in report.points if one.cell == f"m-{method}"]
    assert point.residual / MIB == pytest.approx(much, abs=1.9)
    assert f"{point.residual / MIB:+.2f} MiB" in report.anomalies[0]
    if method != "F16":
        assert point.residual / MIB == pytest.approx(much, abs=0.9)


def test_two_leaked_buffers_are_told_of_their_cells():
    rows = leak("Q4_0", 5)
    rows = edit(rows, "F16", peak_memory=value(rows, "F16", "peak_memory") + 9 * MIB)
    assert names(laws.memory("m", rows)) == ["F16", "Q4_0"]


def test_leaks_in_most_cells_are_no_line():
    rows = clean()
    for place, method in enumerate(BPW):
        held = value(rows, method, "peak_memory")
        rows = edit(rows, method, peak_memory=held + (-1) ** place * 8 * place * MIB)
    report = laws.memory("m", rows)
    assert report.verdict is FAIL
    assert "which is off cannot be told" in report.message


@pytest.mark.parametrize("method", ["Q2_K", "Q4_K_M", "F16"])
def test_of_three_cells_the_slope_tells_which_is_off(method):
    rows = [one for one in leak(method, 20) if one.method in {"Q2_K", "Q4_K_M", "F16"}]
    report = laws.memory("m", rows)
    assert report.verdict is FAIL
    assert names(report) == [method]


def test_of_three_cells_that_all_disagree_none_is_named_alone():
    rows = [one for one in leak("F16", 500) if one.method in {"Q2_K", "Q4_K_M", "F16"}]
    rows = edit(rows, "Q2_K", peak_memory=value(rows, "Q2_K", "peak_memory") - 90 * MIB)
    report = laws.memory("m", rows)
    assert report.verdict is FAIL
    assert "m-F16, m-Q2_K, m-Q4_K_M disagree" in report.message


@pytest.mark.parametrize("factor", [0.9, 1.05, 2.0])
def test_weights_that_count_more_or_less_than_once_fail(factor):
    rows = clean()
    for method in BPW:
        held = value(rows, method, "weight_bytes")
        rows = edit(rows, method, peak_memory=factor * held + 44 * MIB)
    report = laws.memory("m", rows)
    assert report.verdict is FAIL
    assert "the slope is" in report.message
    assert report.slope == pytest.approx(factor)


def small(*overs: float) -> list[Row]:
    """Cells whose weights differ by too little for a slope."""
    return [
        row(f"Q4_{place}", weight_bytes=(85 + place) * MIB, peak_memory=(85 + place + over) * MIB)
        for place, over in enumerate(overs)
    ]


def test_weights_that_differ_by_little_show_no_slope():
    held = laws.memory("m", small(40, 40.5, 39.5, 40.6))
    assert (held.verdict, held.slope) == (PASS, None)
    assert "weights that differ by 3.00 MiB show no slope" in held.message


def test_a_leak_is_named_where_there_is_no_slope():
    held = laws.memory("m", small(40, 40.5, 46, 40.1))
    assert held.verdict is FAIL
    assert any(one.startswith("m-Q4_2 takes +5.70 MiB") for one in held.anomalies)


def test_r2_binds_where_residuals_do_not():
    sizes = {1.0: 0.0, 2.0: 0.0} | {1.48 + 0.005 * k: (-1) ** k * 9.2 for k in range(8)}
    for top, verdict in ((2.0, FAIL), (1.99, PASS)):
        rows = [
            row(f"Q{x}", weight_bytes=min(x, top) * 1e9, peak_memory=min(x, top) * 1e9 + away * 1e6)
            for x, away in sizes.items()
        ]
        report = laws.memory("m", rows)
        # Below twice the smallest weights, what the residuals allow would spoil it.
        assert report.r2 < 0.999
        assert report.verdict is verdict
        assert ("R2 is 0.998" in report.message) is (verdict is FAIL)


@pytest.mark.parametrize(("away", "said"), [(0.0, "1.00000"), (0.1, "0.99999")])
def test_r2_is_said_to_be_1_only_where_it_is(away, said):
    rows = [
        row(f"Q{x}", weight_bytes=x * 2**26, peak_memory=x * 2**26 + (-1) ** x * away * MIB)
        for x in range(1, 9)
    ]
    report = laws.memory("m", rows)
    assert report.verdict is PASS
    assert report.r2 > 0.999995
    assert f"R2 {said}" in report.message


def test_an_r2_below_its_bound_is_not_said_to_be_at_it():
    sizes = {1.0: 0.0, 2.0: 0.0} | {1.48 + 0.005 * k: (-1) ** k * 7.93 for k in range(8)}
    rows = [
        row(f"Q{x}", weight_bytes=x * 1e9, peak_memory=x * 1e9 + away * 1e6)
        for x, away in sizes.items()
    ]
    report = laws.memory("m", rows)
    assert 0.998995 < report.r2 < 0.999
    assert "R2 is 0.99899, below 0.999" in report.message


def test_residuals_of_big_models_are_judged_by_their_size():
    rows = [
        row(method, weight_bytes=bpw * 1e9, peak_memory=bpw * 1e9 + 300e6 + (-1) ** place * 20e6)
        for place, (method, bpw) in enumerate(BPW.items())
    ]
    assert laws.memory("m", rows).verdict is PASS


def test_memory_needs_three_sizes():
    rows = [one for one in clean() if one.method in {"Q4_0", "F16"}]
    rows.append(msgspec.structs.replace(rows[0], cell="m-again"))
    report = laws.memory("m", rows)
    assert report.verdict is UNSUPPORTED
    assert report.message == (
        "needs 3 cells of different weight_bytes, with weight_bytes, peak_memory;"
        " this run has 3: m-F16, m-Q4_0, m-again"
    )


@pytest.mark.parametrize("name", ["decode_time", "marginal", "threshold", "loss_envelope"])
def test_another_kv_cache_is_left_out(name):
    rows = rows_for(name)
    other = msgspec.structs.replace(rows[1], method="Q2_K+kv-q4_0", cell="other")
    report = LAWS[name].judge("m", [*rows, other])
    assert report.verdict is PASS
    assert "left out: other (another type of KV cache)" in report.message
    assert "other" not in {one.cell for one in report.points}


def test_another_kv_cache_is_left_out_of_memory():
    rows = clean()
    rows.append(row("Q4_0+kv-q8_0", weight_bytes=80e6, peak_memory=100e6))
    report = laws.memory("m", rows)
    assert report.verdict is PASS
    assert "left out: m-Q4_0+kv-q8_0 (another type of KV cache)" in report.message


# File size


def test_file_size_is_exact():
    report = laws.file_size("m", clean())
    assert report.slope == pytest.approx(1, abs=1e-5)
    assert report.figures["overhead"] == pytest.approx(1_785_664, abs=1000)


def test_an_artifact_that_is_not_what_its_bpw_says_is_named():
    # The Q4_K_M that is listed is in truth the Q4_0.
    report = laws.file_size("m", edit(clean(), "Q4_K_M", effective_bpw=BPW["Q4_0"]))
    assert report.verdict is FAIL
    assert names(report) == ["Q4_K_M"]
    assert "is said to have 4.6000 BPW" in report.anomalies[0]


def test_one_byte_is_seen_and_unknown_weights_are_not_judged():
    rows = clean()
    off = value(rows, "Q6_K", "weight_bytes") + 1
    assert names(laws.file_size("m", edit(rows, "Q6_K", weight_bytes=off))) == ["Q6_K"]
    assert laws.file_size("m", edit(rows, "Q6_K", weight_bytes=off, weights=0)).verdict is PASS


def test_a_bloated_and_a_truncated_file_are_named():
    rows = clean()
    size = value(rows, "Q5_0", "file_size")
    report = laws.file_size("m", edit(rows, "Q5_0", file_size=size + 200_000))
    assert report.verdict is FAIL
    assert names(report) == ["Q5_0"]
    report = laws.file_size("m", edit(rows, "Q5_0", file_size=size - 2_000_000))
    assert "smaller than its own weights" in report.message


def test_overhead_that_grows_with_the_weights_fails_by_the_slope():
    # Each file's overhead is within 0.1 % of the smallest of them, and yet it is a share.
    rows = [
        row(f"Q{n}_K", weight_bytes=n * 1e6, file_size=n * 1e6 * 1.006 + 1e6) for n in range(2, 8)
    ]
    report = laws.file_size("m", rows)
    assert report.verdict is FAIL
    assert names(report) == ["the"]
    assert "the slope is 1.00600" in report.message


def test_two_files_are_too_few_but_their_labels_are_read():
    rows = [one for one in clean() if one.method in {"Q4_0", "Q8_0"}]
    assert laws.file_size("m", rows).verdict is UNSUPPORTED
    assert laws.file_size("m", edit(rows, "Q4_0", effective_bpw=3.0)).verdict is FAIL


# Decode time


def test_decode_time_grows_with_the_bytes():
    report = laws.decode_time("m", clean())
    assert report.slope == pytest.approx(1 / 20e9)
    assert report.intercept == pytest.approx(0.001)
    assert report.r2 == pytest.approx(1)
    assert report.figures["without_float_slope"] == pytest.approx(1 / 20e9)
    assert report.points[0].error > 0


def test_a_slow_cell_is_named_and_only_warned_of():
    rows = clean()
    speed = value(rows, "Q3_K_M", "decode_speed")
    report = laws.decode_time("m", edit(rows, "Q3_K_M", decode_speed=speed / 2.5))
    assert report.verdict is PASS
    assert report.warns
    assert "Q3_K_M" in names(report)
    assert "2.5 times" in report.anomalies[0]


def test_iq_types_are_named_but_do_not_bend_the_line():
    rows = [
        *clean(),
        *(
            row(f"IQ{n}_S", active_bytes=n * 16e6, decode_speed=1 / (0.001 + n * 16e6 / 5e9))
            for n in range(1, 20)
        ),
    ]
    report = laws.decode_time("m", rows)
    assert report.slope == pytest.approx(1 / 20e9)
    iq = {f"IQ{n}_S" for n in range(1, 20)}
    assert set(names(report)) == iq
    assert report.figures["all_r2"] < report.figures["without_iq_r2"]
    assert {one.cell for one in report.points if one.left_out} == {f"m-{one}" for one in iq}


def test_more_bytes_in_less_time_fail():
    rows = clean()
    for method, bpw in BPW.items():
        rows = edit(rows, method, decode_speed=50 + 10 * bpw)
    report = laws.decode_time("m", rows)
    assert report.verdict is FAIL
    assert "more bytes take less time" in report.message


def test_a_speed_of_nothing_is_left_out():
    report = laws.decode_time("m", edit(clean(), "Q4_0", decode_speed=0.0))
    assert report.verdict is PASS
    assert "left out: m-Q4_0 (decode_speed is not positive)" in report.message


# Loss


def test_a_method_that_loses_more_than_its_bpw_allows_fails():
    # A Q8_0 with the loss of a Q4_0.
    worse = value(fidelity(), "Q4_0", "mean_kld")
    report = laws.loss_envelope("m", edit(fidelity(), "Q8_0", mean_kld=worse, error=0.0005))
    assert report.verdict is FAIL
    assert names(report) == ["Q8_0"]
    assert "m-Q8_0 loses 0.07194 nats at 8.52 BPW, where 0.00403 are allowed" in report.message


@pytest.mark.parametrize(
    ("method", "like"), [("Q6_K", "Q4_0"), ("Q5_1", "Q4_0"), ("Q4_K_M", "Q2_K"), ("Q4_0", "Q2_K")]
)
def test_loss_is_held_against_the_model_s_other_cells(method, like):
    rows = [one for one in fidelity() if "+" not in one.method]
    worse = edit(rows, method, mean_kld=value(rows, like, "mean_kld"), error=0.002)
    report = laws.loss_envelope("m", worse)
    assert report.verdict is FAIL
    assert names(report) == [method]
    alone = [one for one in worse if one.method in {method, "Q3_K_M"}]
    report = laws.loss_envelope("m", alone)
    assert report.verdict is PASS
    assert report.figures["room"] == laws.ENVELOPE_ROOM


def test_a_model_that_loses_little_has_the_room_of_the_table():
    rows = [
        msgspec.structs.replace(one, figures={**one.figures, "mean_kld": Figure(1e-9)})
        for one in clean()
    ]
    assert laws.loss_envelope("m", rows).figures["room"] == 1
    # Two cells do not tell what is usual. The first is the reference.
    assert laws.loss_envelope("m", rows[:3]).figures["room"] == laws.ENVELOPE_ROOM


def test_loss_that_chance_explains_is_inconclusive():
    room = laws.loss_envelope("m", clean()).figures["room"]
    assert room == pytest.approx(5 * 6 / math.exp(3.2))
    most = envelope(value(clean(), "Q8_0", "effective_bpw"), room)
    for much, error, verdict in (
        (0.99, 0.5, PASS),
        (1.2, 0.5, INCONCLUSIVE),
        (1.2, math.inf, INCONCLUSIVE),
        (1.2, 0.01, FAIL),
        (1.01, None, FAIL),
    ):
        error = None if error is None else error * most  # noqa: PLW2901
        rows = edit(clean(), "Q8_0", mean_kld=much * most, error=error)
        assert laws.loss_envelope("m", rows).verdict is verdict


def test_the_ends_of_the_envelope():
    assert laws.loss_envelope("m", [row("F16", effective_bpw=16, mean_kld=5.51e-4)]).verdict is PASS
    assert laws.loss_envelope("m", [row("F16", effective_bpw=16, mean_kld=0.002)]).verdict is FAIL
    assert laws.loss_envelope("m", [row("IQ2_S", effective_bpw=2.2, mean_kld=8)]).verdict is FAIL
    low = laws.loss_envelope("m", [row("IQ1_S", effective_bpw=1.8, mean_kld=8)])
    assert low.verdict is UNSUPPORTED
    assert "left out: m-IQ1_S (below 2 BPW)" in low.message


def test_the_reference_and_kv_variants_are_not_held_against_their_bpw():
    rows = [row("F16", reference=True, effective_bpw=16, mean_kld=1.0),
            row("Q8_0+kv-q4_0", effective_bpw=8.5, mean_kld=0.5),
            row("Q8_0", effective_bpw=8.5, mean_kld=0.002)]  # fmt: skip
    report = laws.loss_envelope("m", rows)
    assert report.verdict is PASS
    assert [one.cell for one in report.points] == ["m-Q8_0"]


def swapped():
    rows = clean()
    more, less = (value(rows, name, "mean_kld") for name in ("Q5_K_M", "Q4_K_M"))
    rows = edit(rows, "Q5_K_M", mean_kld=less, error=0.02 * less)
    return edit(rows, "Q4_K_M", mean_kld=more, error=0.02 * more)


def test_more_bits_that_lose_more_are_named_with_what_loses_less():
    report = laws.loss_monotone("m", swapped())
    assert report.verdict is FAIL
    (said,) = report.anomalies
    assert said.startswith("m-Q5_K_M (5.70 BPW) loses 0.0225 ± 0.00045 nats, m-Q4_K_M (4.90 BPW)")


def test_families_are_not_compared_with_each_other():
    rows = clean()
    # As published: Q4_0 loses more than a Q4_K_S of fewer bits. It is of another family.
    rows = edit(rows, "Q4_0", mean_kld=1.05 * value(rows, "Q3_K_M", "mean_kld"))
    assert laws.loss_monotone("m", rows).verdict is PASS
    for method in ("Q5_0+imatrix", "Q5_0+kv-q8_0", "IQ4_XS", "MXFP4_MOE"):
        loss = 2 * value(rows, "Q4_0", "mean_kld")
        other = row(method, effective_bpw=5.6, mean_kld=loss)
        assert laws.loss_monotone("m", [*rows, other]).verdict is PASS
    assert laws.loss_monotone("m", edit(rows, "Q5_0", mean_kld=loss)).verdict is FAIL


@pytest.mark.parametrize(
    ("more", "error", "verdict"),
    [(1.015, None, PASS), (1.03, None, FAIL), (1.1, 0.2, INCONCLUSIVE), (1.1, 0.01, FAIL)],
)
def test_what_counts_as_more_loss(more, error, verdict):
    error = None if error is None else 0.1 * error
    rows = [row("Q4_K_S", effective_bpw=4.6, mean_kld=(0.1, error)),
            row("Q4_K_M", effective_bpw=4.9, mean_kld=(0.1 * more, error))]  # fmt: skip
    assert laws.loss_monotone("m", rows).verdict is verdict


def test_cells_of_nearly_the_same_bpw_are_not_compared():
    rows = [row("Q2_K", effective_bpw=3.16, mean_kld=0.1),
            row("Q2_K_S", effective_bpw=3.2, mean_kld=0.4)]  # fmt: skip
    report = laws.loss_monotone("m", rows)
    assert report.verdict is UNSUPPORTED
    assert report.message.startswith("needs 2 cells of one family of types more than 0.05 BPW")


def test_many_comparisons_need_more_evidence():
    """Two sigma is a violation for one pair; among 132 pairs, chance has it."""
    two = [row("Q4_K_S", effective_bpw=4.6, mean_kld=(0.1, 0.01)),
           row("Q4_K_M", effective_bpw=4.9, mean_kld=(0.135, 0.01))]  # fmt: skip
    assert laws.loss_monotone("m", two).verdict is FAIL
    many = [one for one in fidelity() if one.method.startswith("IQ")]
    assert laws.loss_monotone("m", [*many, *two]).verdict is INCONCLUSIVE


def test_a_beaten_cell_is_named_and_only_warned_of():
    rows = edit(clean(), "Q4_0", mean_kld=0.5)
    report = laws.pareto("m", rows)
    assert report.verdict is PASS
    assert report.warns
    assert names(report) == ["Q4_0"]
    assert "than m-Q3_K_M" in report.anomalies[0]


def test_pareto_asks_for_both_and_beyond_errors():
    smaller = row("Q4_0", weight_bytes=100.0, mean_kld=(0.1, 0.01))
    for size, loss, error, said in (
        (101.0, 0.2, 0.01, 1),
        (100.0, 0.2, 0.01, 0),
        (99.0, 0.2, 0.01, 0),
        (101.0, 0.11, 0.01, 0),
        (101.0, 0.2, math.inf, 0),
    ):
        rows = [smaller, row("Q4_1", weight_bytes=size, mean_kld=(loss, error)),
                row("Q8_0", weight_bytes=200.0, mean_kld=0.001)]  # fmt: skip
        assert len(laws.pareto("m", rows).anomalies) == said
    rows = [smaller, row("Q4_1+kv-q4_0", weight_bytes=101.0, mean_kld=0.2)]
    assert laws.pareto("m", rows).anomalies == ()


def test_pareto_of_one_size_is_unsupported():
    rows = [row("Q4_0", weight_bytes=100.0, mean_kld=0.1)] * 2
    assert laws.pareto("m", rows).verdict is UNSUPPORTED


# Marginal loss


@pytest.mark.parametrize(
    ("figures", "error", "verdict"),
    [
        ({"ln_ppl_ratio": 0.3}, 0.001, PASS),
        ({"ln_ppl_ratio": 0.5}, 0.001, FAIL),
        ({"ln_ppl_ratio": 0.5}, 0.2, INCONCLUSIVE),
        ({"ln_ppl_ratio": -0.5}, 0.001, PASS),
    ],
)
def test_what_is_marginal_by_perplexity(figures, error, verdict):
    # Saved 69 % of the memory: 0.2 x 0.69 x 2.7 nats may be lost, 0.375.
    report = laws.marginal("m", edit(clean(), "Q4_K_M", error=error, **figures))
    assert report.verdict is verdict
    assert names(report) == ([] if verdict is PASS else ["Q4_K_M"])


@pytest.mark.parametrize(
    ("accuracy", "error", "verdict"),
    [(0.5, 0.01, PASS), (0.4, 0.01, FAIL), (0.4, 0.2, INCONCLUSIVE), (0.7, 0.01, PASS)],
)
def test_what_is_marginal_by_accuracy(accuracy, error, verdict):
    # Saved 69 % of the memory: 0.35 x 0.69 x 0.6 may be lost, 0.145.
    rows = edit(clean(), "F16", accuracy=0.6, error=0.01)
    report = laws.marginal("m", edit(rows, "Q4_K_M", accuracy=accuracy, error=error))
    assert report.verdict is verdict


def test_cells_below_the_threshold_are_reported_but_not_judged():
    report = laws.marginal("m", edit(clean(), "Q2_K", ln_ppl_ratio=2.0))
    assert report.verdict is PASS
    (point,) = [one for one in report.points if one.left_out]
    assert (point.cell, point.left_out) == ("m-Q2_K", "below 3.5 BPW")
    assert point.residual > 0


def test_marginal_loss_needs_the_reference():
    report = laws.marginal("m", [one for one in clean() if not one.reference])
    assert report.verdict is UNSUPPORTED
    assert "needs the reference among the cells" in report.message
    report = laws.marginal("m", edit(clean(), "F16", ln_ppl=None))
    assert report.verdict is UNSUPPORTED
    assert "ln_ppl of the reference" in report.message


def test_a_cell_that_saves_nothing_is_not_judged():
    whole = value(clean(), "F16", "weight_bytes")
    rows = [one for one in clean() if one.method in {"F16", "Q8_0"}]
    report = laws.marginal("m", edit(rows, "Q8_0", weight_bytes=whole))
    assert report.verdict is UNSUPPORTED


def test_a_loss_that_is_not_finite_fails_marginal():
    report = laws.marginal("m", edit(clean(), "Q8_0", ln_ppl_ratio=math.nan))
    assert report.verdict is FAIL
    assert_sound(report)


# The threshold


def of_big(method, loss, error=0.002):
    return [
        msgspec.structs.replace(one, figures={**one.figures, "bits_per_byte": Figure(loss, error)})
        if one.cell == f"big-{method}"
        else one
        for one in family()
    ]


def test_the_crossover_of_a_family():
    report = laws.threshold("m", family())
    assert report.y == "bits_per_byte"
    assert report.crossover == 3.9
    assert "big is as good as small from 3.90 BPW on and not at 3.10" in report.message


def test_a_bigger_model_that_is_worse_at_equal_memory_fails():
    report = laws.threshold("m", of_big("Q4_K_M", 1.5))
    assert report.verdict is FAIL
    assert all(one.startswith("big-Q4_K_M (4.90 BPW") for one in report.anomalies)
    assert any("is worse than small-Q8_0" in one for one in report.anomalies)
    assert report.crossover == 5.6


def test_worse_within_errors_is_inconclusive_and_below_the_threshold_nothing():
    assert laws.threshold("m", of_big("Q4_K_M", 1.12, 0.2)).verdict is INCONCLUSIVE
    report = laws.threshold("m", of_big("Q2_K", 9.0))
    assert report.verdict is PASS


def test_a_bigger_model_that_never_gets_as_good_has_no_crossover():
    rows = of_big("F16", 2.0)
    report = laws.threshold("m", rows)
    assert report.crossover is None
    assert "big is as good as small at no BPW up to 16.00" in report.message


def test_accuracy_is_better_when_higher_and_used_where_all_have_it():
    rows = [
        msgspec.structs.replace(
            one,
            figures={**one.figures, "accuracy": Figure(2 - one.figures["bits_per_byte"].value)},
        )
        for one in family()
    ]
    report = laws.threshold("m", rows)
    assert (report.y, report.verdict, report.crossover) == ("accuracy", PASS, 3.9)
    without = edit(rows, "Q2_K", accuracy=None)
    assert laws.threshold("m", without).y == "bits_per_byte"


def test_only_cells_that_fit_in_the_memory_are_compared():
    # 1.5e9 x 3.9 / 8 bytes are less than those of the smaller model's F16, which is left alone.
    rows = [one for one in family() if one.cell in {"big-Q3_K_M", "small-F16"}]
    report = laws.threshold("m", rows)
    assert report.verdict is UNSUPPORTED
    assert "in whose weight_bytes a cell of a smaller model fits" in report.message
    near = [msgspec.structs.replace(
        one, figures={**one.figures, "peak_memory": Figure(1.04e9 if "small" in one.cell else 1e9)}
    ) for one in rows]  # fmt: skip
    assert laws.threshold("m", near).verdict is PASS


def test_one_model_has_no_threshold():
    report = laws.threshold("m", [one for one in family() if one.model == "big"])
    assert report.verdict is UNSUPPORTED
    assert report.message.startswith("needs cells of 2 models of different size")


def test_sizes_follow_from_bytes_and_bpw_where_weights_are_unknown():
    rows = [msgspec.structs.replace(one, weights=0) for one in family()]
    assert laws.threshold("m", rows) == laws.threshold("m", family())


# The KV cache


def cached(kind, share, method="Q4_0", per_token=23_040, **set_to):
    """A cell whose sizes were read from a log: MiB with two digits."""
    sizes = {f"kv_reserve_{n}": per_token * share * n for n in CONTEXTS} | set_to
    name = method if kind == "f16" else f"{method}+kv-{kind}"
    return row(name, **{key: round(size / MIB, 2) * MIB for key, size in sizes.items()})


KINDS = [("f16", 1.0), ("q8_0", 34 / 64), ("q4_0", 18 / 64)]


def test_the_kv_cache_is_linear_and_of_its_type():
    # 12 288 B a token: sizes are not whole hundredths of MiB.
    for per_token in (12_288, 23_040, 131_072):
        rows = [cached(kind, share, per_token=per_token) for kind, share in KINDS]
        report = laws.kv_cache("m", [*rows, cached("f16", 1.0, "Q8_0", per_token=per_token)])
        assert (report.verdict, report.anomalies) == (PASS, ())
        assert report.slope == pytest.approx(per_token, rel=1e-3)
        assert report.figures["q8_0_per_token"] == pytest.approx(per_token * 34 / 64, rel=2e-3)
        assert len(report.points) == 16


@pytest.mark.parametrize("n", CONTEXTS)
def test_one_context_off_is_named(n):
    rows = [cached("f16", 1.0, one) for one in ("Q4_0", "Q5_0", "Q8_0")]
    rows[1] = cached("f16", 1.0, "Q5_0", **{f"kv_reserve_{n}": 23_040 * n + 0.2 * MIB})
    report = laws.kv_cache("m", rows)
    assert report.verdict is FAIL
    assert set(names(report)) == {"Q5_0"}
    assert all(f"of {n} tokens" in one for one in report.anomalies)
    assert "as its other contexts say" in report.message


def test_a_cell_with_another_kv_cache_than_its_like_is_named():
    rows = [cached("f16", 1.0, one) for one in ("Q4_0", "Q5_0", "Q8_0")]
    report = laws.kv_cache("m", [*rows, cached("f16", 1.01, "Q6_K")])
    assert report.verdict is FAIL
    assert set(names(report)) == {"Q6_K"}
    assert "that of the other cells with f16" in report.message


@pytest.mark.parametrize(("kind", "share"), [("q8_0", 1.0), ("q4_0", 34 / 64), ("q8_0", 0.5)])
def test_a_kv_cache_that_is_not_of_its_type_fails(kind, share):
    report = laws.kv_cache("m", [cached("f16", 1.0), cached(kind, share)])
    assert report.verdict is FAIL
    assert f"a KV cache of {kind} takes {share:.4f}" in report.message
    assert f"(m-Q4_0+kv-{kind})" in report.message


def test_without_f16_no_share_is_held():
    assert laws.kv_cache("m", [cached("q8_0", 0.7)]).verdict is PASS


def test_a_sliding_window_in_every_cell_is_the_architecture():
    window = {"kv_reserve_2048": 30 * MIB, "kv_reserve_4096": 40 * MIB}
    rows = [cached("f16", 1.0, one, **window) for one in ("Q4_0", "Q8_0")]
    report = laws.kv_cache("m", rows)
    assert report.verdict is UNSUPPORTED
    assert "sliding window" in report.message
    rows.append(cached("f16", 1.0, "Q5_0"))
    assert laws.kv_cache("m", rows).verdict is FAIL


@pytest.mark.parametrize(
    "dent",
    [
        {"kv_reserve_1024": 12 * MIB, "kv_reserve_4096": 80 * MIB},
        {"kv_reserve_2048": 30 * MIB, "kv_reserve_4096": 20 * MIB},
    ],
)
def test_a_dent_in_every_cell_is_no_window(dent):
    rows = [cached("f16", 1.0, one, **dent) for one in ("Q4_0", "Q8_0")]
    assert laws.kv_cache("m", rows).verdict is FAIL


def test_growth_beyond_proportion_fails_in_every_cell_too():
    more = {"kv_reserve_4096": 120 * MIB}
    rows = [cached("f16", 1.0, one, **more) for one in ("Q4_0", "Q8_0")]
    report = laws.kv_cache("m", rows)
    assert report.verdict is FAIL
    assert names(report) == ["Q4_0", "Q8_0"]


# Power


@pytest.mark.parametrize(
    ("prefill", "error", "verdict"),
    [
        (9.5, 0.1, PASS),
        (7.0, 0.1, FAIL),
        (8.0, 0.5, INCONCLUSIVE),
        (8.6, 0.5, INCONCLUSIVE),
        (7.0, None, FAIL),
    ],
)
def test_prefill_draws_more_than_decoding(prefill, error, verdict):
    report = laws.power("m", edit(clean(), "Q4_0", prefill_power=prefill, error=error))
    assert report.verdict is verdict
    assert names(report) == ([] if verdict is PASS else ["Q4_0"])


# Lines that there is little of


@every_law
def test_cells_that_are_all_alike_yield_sound_reports(name):
    rows = rows_for(name)
    alike = [msgspec.structs.replace(one, figures=rows[1].figures) for one in rows]
    assert_sound(LAWS[name].judge("m", alike))


@every_law
def test_figures_of_nothing_yield_sound_reports(name):
    rows = [
        msgspec.structs.replace(one, figures={key: Figure(0.0, 0.0) for key in one.figures})
        for one in rows_for(name)
    ]
    assert_sound(LAWS[name].judge("m", rows))


@every_law
def test_each_single_cell_and_pair_yields_a_sound_report(name):
    rows = rows_for(name)
    for one in rows:
        assert_sound(LAWS[name].judge("m", [one]))
        for other in rows:
            assert_sound(LAWS[name].judge("m", [one, other]))


def test_lines_without_residuals_have_no_error():
    xs = [1.0, 2.0, 3.0, 4.0]
    line = fit(xs, [3.0, 5.0, 7.0, 9.0])
    assert (line.slope, line.intercept, line.slope_error, line.r2) == (2, 1, 0, 1)
    assert fit(xs, [5.0] * 4).r2 is None
    assert fit([1.0] * 4, xs) is None


def test_the_line_is_the_textbook_s():
    # Anscombe's first set (1973): slope 0.5001 ± 0.1179, intercept 3.0001 ± 1.1247, R2 0.6665.
    xs = [10.0, 8.0, 13.0, 9.0, 11.0, 14.0, 6.0, 4.0, 12.0, 7.0, 5.0]
    ys = [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68]
    line = fit(xs, ys)
    assert line.slope == pytest.approx(0.5001, abs=5e-5)
    assert line.slope_error == pytest.approx(0.1179, abs=5e-5)
    assert line.intercept == pytest.approx(3.0001, abs=5e-5)
    assert line.intercept_error == pytest.approx(1.1247, abs=5e-5)
    assert line.r2 == pytest.approx(0.6665, abs=5e-5)


def test_lines_of_medians_bear_a_quarter_of_wild_points():
    xs = [float(x) for x in range(12)]
    ys = [2 * x + 1 for x in xs]
    ys[0], ys[6], ys[11] = 500.0, -300.0, 900.0
    line = theil_sen(xs, ys)
    assert (line.slope, line.intercept) == (2, 1)


# The page


@pytest.mark.parametrize(
    "stated",
    [
        f"exp({laws.ENVELOPE_A:g} - {laws.ENVELOPE_B:g} x BPW) + {laws.ENVELOPE_FLOOR:g} nats",
        f"and at most {laws.ENVELOPE_CAP:g} nats",
        f"{laws.ENVELOPE_OWN:g} times the median of what its quantized cells lose",
        f"at least 1 and at most {laws.ENVELOPE_ROOM:g}; with fewer than three cells",
        f"Cells below {laws.ENVELOPE_FROM:g} BPW are left out",
        "b within {} and {}".format(*laws.MEMORY_SLOPE),
        f"within {laws.MEMORY_SHARE * 100:g} % of the smallest weights, but at least 1 MiB",
        f"R2 {laws.MEMORY_R2} or more",
        f"within 64 KiB, or {laws.SIZE_SHARE * 100:g} % of the smallest file",
        f"slope 1 within {laws.SIZE_SLOPE * 100:g} %",
        f"more than {laws.APART_BPW} BPW apart",
        f"loses more by over {laws.MONOTONE_SHARE * 100:g} %",
        f"loss <= {laws.MARGINAL_BITS} x memory saved",
        f"<= {laws.MARGINAL_ACCURACY} x memory saved",
        f"From {laws.MARGINAL_BPW} BPW on",
        f"fits in its memory, {(laws.EQUAL_MEMORY - 1) * 100:.0f} % more allowed",
        f"16 KiB + {laws.KV_SHARE * 100:g} %",
        f"{laws.KV_RATIO * 100:g} % for the shares",
        f"one-sided {laws.ALPHA * 100:g} %",
    ],
)
def test_the_page_states_what_is_asserted(stated):
    page = Path(__file__).parents[2] / "docs" / "laws.md"
    assert stated in " ".join(page.read_text("utf-8").split())


@every_law
def test_the_page_has_a_part_for_each_law(name):
    page = Path(__file__).parents[2] / "docs" / "laws.md"
    assert f"\n## {name}\n" in page.read_text("utf-8")
