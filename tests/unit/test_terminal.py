"""The table at the end of a session: what it shows, how it marks it, and that it fits."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice.model.bound import Bound, Source
from pytest_ondevice.model.change import Change, Finding
from pytest_ondevice.model.device import Device, Runtime
from pytest_ondevice.model.law import LawReport
from pytest_ondevice.model.measurement import Measurement
from pytest_ondevice.model.report import (
    ArtifactFacts,
    CellReport,
    CheckResult,
    Report,
    TaskReport,
    TypeShare,
)
from pytest_ondevice.model.verdict import Verdict
from pytest_ondevice.render.terminal import (
    answers,
    footnotes,
    relations,
    resources,
    succession,
    summarise,
    table,
)

MIB = 2**20


def measured(**values):
    """Measurements by quantity; a tuple is value and error, a list a disturbed value."""
    made = {}
    for name, value in values.items():
        fields = {"value": value}
        if isinstance(value, tuple):
            fields = dict(zip(("value", "error"), value, strict=True))
        elif isinstance(value, list):
            fields = {"value": value[0], "disturbed": ("60 major page faults",)}
        made[name] = Measurement(quantity=name, unit="", **fields)
    return made


FULL = {
    "bpw": 5.1438,
    "mib": 88.249,
    "mean_kld": (0.08712, 0.00456),
    "ln_ppl_ratio": 0.0512,
    "peak_memory": 145.06 * MIB,
    "prefill_speed": 812.4,
    "decode_speed": 95.7,
}


def artifact(bpw, mib):
    """An artifact of 80000 weights in two tensor types, and of a file that is more than them."""
    size = round(bpw * 10_000)
    types = {
        "Q4_K": TypeShare(tensors=7, weights=70_000, bytes=size - 1000),
        "F32": TypeShare(tensors=1, weights=10_000, bytes=1000),
    }
    return ArtifactFacts(
        file="m.gguf",
        sha256="a" * 64,
        size=round(mib * MIB),
        origin="quantized",
        architecture="llama",
        weights=80_000,
        types=types,
    )


def cell(name="m-Q4_K_M", verdict=Verdict.PASS, *, reference=False, bpw=None, mib=1.0, **values):
    return CellReport(
        id=name,
        model="m",
        method="Q4_K_M",
        reference=reference,
        verdict=verdict,
        artifact=None if bpw is None else artifact(bpw, mib),
        measurements=measured(**values),
    )


def check(cell_id="m-Q4_K_M", verdict=Verdict.PASS, number=0):
    return CheckResult(check=f"check.{number}", cell=cell_id, verdict=verdict)


def report(*cells, checks=(), complete=True, notes=(), laws=()):
    return Report(
        schema_version=1,
        generator="pytest-ondevice 0",
        created="2026-09-01T00:00:00+00:00",
        complete=complete,
        device=Device(
            system="Linux", machine="x86_64", cpu="A", cores=2, memory=1, python="3", libc="glibc"
        ),
        tier="x86_64-a-2t-000000",
        board="0" * 12,
        runtime=Runtime(name="llama.cpp", version="0", digest=""),
        settings={},
        cells=tuple(cells),
        checks=tuple(checks),
        laws=tuple(laws),
        protocols={},
        notes=tuple(notes),
    )


def columns(line):
    return [text.strip() for text in line.split("  ") if text.strip()]


# What it shows


def test_a_whole_table():
    reference = cell(
        "m-F16",
        reference=True,
        bpw=16.0,
        mib=256.6,
        peak_memory=310.0 * MIB,
        prefill_speed=700.0,
        decode_speed=40.2,
    )
    assert table(report(reference, cell(**FULL), cell("m-Q8_0", None))) == [
        "cell        BPW    MiB      KLD (nats)  PPL ratio  peak MiB  pp t/s  tg t/s  verdict",
        "m-F16     16.00  256.6       reference          -     310.0     700      40  pass",
        "m-Q4_K_M   5.14   88.2  0.0871 ±0.0046     1.0525     145.1     812      96  pass",
        "m-Q8_0        -      -               -          -         -       -       -  not run",
    ]


def test_an_empty_table_is_its_header():
    (header,) = table(report())
    assert columns(header) == [
        "cell",
        "BPW",
        "MiB",
        "KLD (nats)",
        "PPL ratio",
        "peak MiB",
        "pp t/s",
        "tg t/s",
        "verdict",
    ]


@pytest.mark.parametrize(
    ("name", "column", "value", "shown"),
    [
        ("mean_kld", 3, 0.5, "0.5000"),
        ("mean_kld", 3, (0.5, 0.25), "0.5000 ±0.2500"),
        ("mean_kld", 3, (1234.5, 0.25), "1.23e+03 ±0.2500"),
        ("mean_kld", 3, None, "nan"),
        ("mean_kld", 3, 0.00001, "0.0000"),
        ("ln_ppl_ratio", 4, math.log(2), "2.0000"),
        ("ln_ppl_ratio", 4, -0.01, "0.9900"),
        ("ln_ppl_ratio", 4, 20.0, "4.85e+08"),
        ("ln_ppl_ratio", 4, 5000.0, "> 1e21"),
        ("ln_ppl_ratio", 4, None, "nan"),
        ("peak_memory", 5, 1.25 * MIB, "1.2"),
        ("peak_memory", 5, None, "nan"),
        ("peak_memory", 5, [1.5 * MIB], "1.5~"),
        ("prefill_speed", 6, [99.6], "100~"),
        ("decode_speed", 7, [12.4], "12~"),
        ("decode_speed", 7, None, "nan"),
    ],
)
def test_figures_and_their_marks(name, column, value, shown):
    row = table(report(cell(**{name: value})))[1]
    expected = ["-"] * 7
    expected[column - 1] = shown
    assert columns(row) == ["m-Q4_K_M", *expected, "pass"]


@pytest.mark.parametrize(("bpw", "shown"), [(4.0, "4.00"), (5.1449, "5.14"), (16.0, "16.00")])
def test_size_is_the_artifacts_own(bpw, shown):
    # Whatever was measured, and whatever else is in the file.
    row = table(report(cell(bpw=bpw, mib=1.449, effective_bpw=9.0, file_size=9.0)))[1]
    assert columns(row) == ["m-Q4_K_M", shown, "1.4", "-", "-", "-", "-", "-", "pass"]


def test_an_artifact_without_weights_has_no_bpw():
    empty = msgspec.structs.replace(artifact(4.0, 2.0), weights=0, types={})
    row = table(report(msgspec.structs.replace(cell(), artifact=empty)))[1]
    assert columns(row)[1:3] == ["-", "2.0"]


def test_a_reference_is_called_so_only_where_something_was_measured():
    assert columns(table(report(cell(reference=True)))[1])[3] == "-"
    measured_one = cell(reference=True, peak_memory=16.0)
    assert columns(table(report(measured_one))[1])[3] == "reference"


@pytest.mark.parametrize("value", [20.0, 100.0, 709.0, 710.0, 5000.0, -5000.0])
def test_a_ruined_model_does_not_ruin_the_table(value):
    # A perplexity of e^710 is no float; the artifact that has it is what the table is for.
    ruined = FULL | {"ln_ppl_ratio": value, "mean_kld": (abs(value), 12.3456)}
    lines = table(report(cell(**ruined), cell("m-Q8_0", **FULL)))
    assert [columns(line)[0] for line in lines] == ["cell", "m-Q4_K_M", "m-Q8_0"]
    assert [line for line in lines if len(line) > 100] == []


@pytest.mark.parametrize(
    ("verdict", "same", "text"),
    [
        (Verdict.PASS, 3, "pass"),
        (Verdict.FAIL, 1, "fail"),
        (Verdict.FAIL, 2, "fail (2)"),
        (Verdict.NO_BASELINE, 3, "no baseline (3)"),
        (Verdict.INCONCLUSIVE, 12, "inconclusive (12)"),
        (None, 0, "not run"),
    ],
)
def test_verdicts_are_counted(verdict, same, text):
    checks = [check(verdict=verdict, number=i) for i in range(same)]
    # Of another cell, and of another verdict: neither counts.
    checks += [check("other", verdict or Verdict.FAIL, number=90)]
    checks += [check(verdict=Verdict.UNSUPPORTED, number=91)]
    row = table(report(cell(verdict=verdict), checks=checks))[1]
    assert columns(row)[-1] == text


# How it fits

WIDE = {
    "bpw": 16.0,
    "mib": 151_234.5,
    "mean_kld": (12.3456, 10.1234),
    "ln_ppl_ratio": 12.0,
    "peak_memory": [151_234.5 * MIB],
    "prefill_speed": [123_456.0],
    "decode_speed": [12_345.0],
}
LONG = "meta-llama-3.1-70b-instruct-abliterated-v2-IQ2_XXS"
ORDINARY = [
    (FULL, Verdict.PASS, 1),
    (FULL, Verdict.FAIL, 12),
    (FULL, Verdict.NO_BASELINE, 1),
    (FULL, Verdict.NO_BASELINE, 4),
    (FULL, Verdict.INCONCLUSIVE, 1),
    (FULL, Verdict.INCONCLUSIVE, 2),
    (FULL, Verdict.UNSUPPORTED, 12),
    (WIDE, Verdict.PASS, 1),
    (WIDE, Verdict.FAIL, 2),
]


@pytest.mark.parametrize(("values", "verdict", "same"), ORDINARY)
def test_no_line_is_longer_than_100_columns(values, verdict, same):
    checks = [check(LONG, verdict, i) for i in range(same)]
    lines = table(report(cell(LONG, verdict, **values), cell("m-Q8_0", **FULL), checks=checks))
    assert [line for line in lines if len(line) > 100] == []
    # The name is cut, marked as cut, and still tells the model.
    assert lines[1].split("  ")[0].endswith("…")
    assert lines[1].startswith("meta-llama")


def test_a_name_is_cut_only_where_it_must_be():
    name = "a" * 24
    lines = table(report(cell(name)))
    assert lines[1].startswith(f"{name}  ")
    assert len(lines[1]) <= 100


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.lists(
        st.tuples(
            st.text("ab-Q4_", min_size=1, max_size=70),
            st.floats(0, 1e5),
            st.floats(0, 30),
            st.sampled_from([*Verdict, None]),
            st.booleans(),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_lines_are_of_one_layout(cells):
    made = []
    for i, (name, size, kld, verdict, reference) in enumerate(cells):
        values = {"bpw": 4.0, "mib": size, "mean_kld": (kld, kld / 3)} if size > 10 else {}
        made.append(cell(f"{i}{name}", verdict, reference=reference, **values))
    header, *rows = table(report(*made))
    assert len(rows) == len(cells)
    # Figures are right-aligned under their titles; the verdict begins under its own.
    end_of_figures = header.index("  verdict")
    for row in rows:
        assert len(row) <= 100
        assert row[end_of_figures - 1] != " "
        assert row[end_of_figures : end_of_figures + 2] == "  "
        assert row[end_of_figures + 2] != " "
    for title in ("BPW", "MiB", "KLD (nats)", "PPL ratio", "tg t/s"):
        end = header.index(title) + len(title)
        assert {row[end - 1] == " " for row in rows} == {False}


# Footnotes


def test_footnotes_count_verdicts_and_figures():
    checks = [
        check(verdict=Verdict.PASS, number=1),
        check(verdict=Verdict.PASS, number=2),
        check("m-Q8_0", Verdict.FAIL, 1),
        check("m-Q8_0", Verdict.NO_BASELINE, 2),
    ]
    reused = {
        name: Measurement(quantity=name, value=1.0, unit="", reused=True)
        for name in ("mean_kld", "same_top")
    }
    second = CellReport(
        id="m-Q8_0",
        model="m",
        method="Q8_0",
        reference=False,
        verdict=Verdict.FAIL,
        artifact=None,
        measurements={**reused, **measured(file_size=1.0)},
    )
    assert footnotes(report(cell(**FULL), second, checks=checks)) == [
        "4 verdicts: 2 pass, 1 fail, 1 no baseline; 6 figures measured, 2 reused; speed is advisory"
    ]


def test_every_verdict_is_counted():
    checks = [
        check(verdict=verdict, number=10 * most + n)
        for most, verdict in enumerate(Verdict)
        for n in range(most + 1)
    ]
    (note,) = footnotes(report(cell(), checks=checks))
    assert note.startswith(
        "28 verdicts: 1 pass, 2 fail, 3 inconclusive, 4 invalid, 5 blocked, 6 unsupported,"
        " 7 no baseline; "
    )


def test_disturbances_are_explained_once():
    one = cell("a", decode_speed=[1.0], prefill_speed=[2.0])
    two = cell("b", decode_speed=[3.0])
    other = Measurement(quantity="peak_memory", value=1.0, unit="", disturbed=("12 MiB swapped",))
    two.measurements["peak_memory"] = other
    notes = footnotes(report(one, two))
    assert notes[0] == "~ disturbed: 12 MiB swapped; 60 major page faults"
    assert len(notes) == 2


def test_an_interrupted_run_says_how_it_goes_on():
    notes = footnotes(report(cell(), complete=False))
    assert notes[-1] == "stopped before the end; what was measured is kept"
    assert footnotes(report(cell(), complete=True)) == notes[:-1]


def test_a_run_without_a_verdict_is_a_sentence_too():
    (note,) = footnotes(report(cell()))
    assert note.startswith("0 verdicts")
    assert ": ;" not in note


# What became of the predecessor


def changed(
    cell_id, check_id, change, finding=Finding.NO_WORSE, *, relative=True, error=None, **fields
):
    """A comparison with the predecessor; ``change`` None is one that came to no figure."""
    made = Change(
        quantity="q",
        unit="",
        before=1.0,
        after=2.0,
        change=change,
        relative=relative,
        error=error,
        finding=finding,
    )
    fields = {"verdict": Verdict.PASS} | fields
    return CheckResult(check=check_id, cell=cell_id, finding=finding, change=made, **fields)


def succeeded(name, finding):
    return msgspec.structs.replace(cell(name), finding=finding)


def test_what_became_of_the_predecessor_is_a_table_of_its_own():
    checks = [
        changed("m-F16", "against.size", 0.0, Finding.IDENTICAL),
        changed("m-Q4_0", "against.size", -0.0123, Finding.BETTER),
        changed("m-Q4_0", "against.kld", 0.14, Finding.WORSE, error=0.005),
        changed("m-Q4_0", "against.ppl", 0.0042, relative=False, error=0.00123),
        changed("m-Q8_0", "against.kld", None, Finding.UNDECIDED),
        CheckResult(check="against.size", cell="m-Q2_K", verdict=Verdict.UNSUPPORTED),
        check("m-Q5_0", Verdict.FAIL),
    ]
    cells = [
        succeeded("m-F16", Finding.IDENTICAL),
        succeeded("m-Q4_0", Finding.WORSE),
        succeeded("m-Q8_0", None),
        cell("m-Q2_K"),
        cell("m-Q5_0"),
    ]
    lines = [line.rstrip() for line in succession(report(*cells, checks=checks))]
    assert [columns(line) for line in lines] == [
        ["against its predecessor", "size", "kld", "ppl"],
        ["m-F16", "identical", "-", "-", "identical"],
        ["m-Q4_0", "-1.2%", "+14.0% ±0.5%", "+0.0042 ±0.0012", "worse"],
        ["m-Q8_0", "-", "-", "-", "undecided"],
        ["m-Q2_K", "-", "-", "-", "no predecessor"],
    ]
    # Figures are right-aligned under their titles.
    end = lines[0].index("kld") + len("kld")
    assert lines[2][:end].endswith("±0.5%")
    assert lines[1][:end].endswith("-")


def test_without_a_predecessor_there_is_no_table_of_it():
    assert succession(report(cell(), checks=[check()])) == []
    assert succession(report()) == []


# What running takes

RUNNING = {
    "reserved_memory": 131.5 * MIB,
    "weights_memory": 84.9 * MIB,
    "kv_memory": 11.25 * MIB,
    "compute_memory": 35.6 * MIB,
    "unattributed_memory": 13.4 * MIB,
    "deployed_memory": 201.2 * MIB,
    "load_time_cold": 0.512,
    "load_time": 0.0834,
    "ttft": 0.1637,
    "prefill_speed_512": 745.6,
    "decode_speed_d512": 80.2,
    "roofline_fraction": 0.534,
    "decode_energy": 0.01234,
}


def squeezed(lines):
    """Lines as one text, whatever was broken and laid out how."""
    return " ".join(" ".join(lines).split())


def test_what_running_takes_is_a_table_of_its_own():
    one = cell("m-Q4_K_M", **RUNNING)
    shown = squeezed(resources(report(one)))
    for title, figure in (
        ("reserve", "131.5"),
        ("weights", "84.9"),
        ("KV", "11.2"),
        ("compute", "35.6"),
        ("other", "13.4"),
        ("as shipped", "201.2"),
        ("cold load ms", "512"),
        ("warm ms", "83"),
        ("TTFT ms", "164"),
        ("pp512", "746"),
        ("tg@512", "80"),
        ("roofline", "0.53"),
        ("J/token", "0.0123"),
    ):
        assert title in shown
        assert f" {figure}" in shown


def test_of_what_running_takes_only_the_figures_that_there_are_have_a_column():
    cells = [
        cell("m-F16"),
        cell("m-Q4_K_M", kv_memory=11.25 * MIB, ttft=[0.2]),
        cell("m-Q8_0", kv_memory=None),
    ]
    lines = resources(report(*cells))
    # A cell that has none of them has no row; the method is name enough of a single model's.
    assert [columns(line) if line else [] for line in lines] == [
        [],
        ["memory in MiB", "KV"],
        ["Q4_K_M", "11.2"],
        ["Q4_K_M", "nan"],
        [],
        ["speed", "TTFT ms"],
        ["Q4_K_M", "200~"],
    ]
    end = lines[1].index("KV") + len("KV")
    assert lines[2][:end].endswith("11.2")


def test_cells_of_several_models_are_told_by_their_ids():
    other = msgspec.structs.replace(cell("n-Q4_K_M", ttft=0.1), model="n")
    _, _, *rows = resources(report(cell("m-Q4_K_M", ttft=0.2), other))
    assert [columns(line)[0] for line in rows] == ["m-Q4_K_M", "n-Q4_K_M"]


def test_without_such_figures_there_is_no_table_of_them():
    assert resources(report()) == []
    assert resources(report(cell(**FULL))) == []


def shipped(name, deployed, peak, detail="as shipped it takes more"):
    """A cell with its memory as shipped, in MiB, and the words that explain it."""
    made = cell(name, peak_memory=peak * MIB)
    told = Measurement(quantity="deployed_memory", value=deployed * MIB, unit="B", detail=detail)
    made.measurements["deployed_memory"] = told
    return msgspec.structs.replace(made, method=name.removeprefix("m-"))


def test_the_cell_that_takes_most_more_as_shipped_is_explained():
    cells = [
        shipped("m-F16", 310, 300, "as it is"),
        shipped("m-Q4_0", 200, 145, "as shipped it takes 200.0 MiB: repacked copies"),
        shipped("m-Q8_0", 220, 190, "less so"),
    ]
    lines = resources(report(*cells))
    assert lines[-1] == "Q4_0 as shipped it takes 200.0 MiB: repacked copies"
    assert "less so" not in squeezed(lines)


@pytest.mark.parametrize(("deployed", "explained"), [(104, False), (106, True), (60, False)])
def test_little_more_as_shipped_needs_no_words(deployed, explained):
    lines = resources(report(shipped("m-Q4_0", deployed, 100)))
    assert (lines[-1] == "Q4_0 as shipped it takes more") is explained


def test_what_running_takes_fits_into_100_columns():
    # As a whole run on a machine with a meter has it.
    cells = [cell("m-F16", **RUNNING), cell("m-Q4_K_M", **RUNNING)]
    assert [line for line in resources(report(*cells)) if len(line) > 100] == []


# Questions


def task(name="general", right=119, n=438, **fields):
    return TaskReport(
        **{
            "name": name,
            "digest": "0" * 16,
            "normalisation": "bytes",
            "n": n,
            "right": right,
            "accuracy": right / n,
            "lower": 0.2321,
            "upper": 0.3153,
            "chance": 0.25,
            "mass": None,
            "groups": {},
            "lost": None,
            "gained": None,
            "mcnemar_p": None,
            "detectable": None,
        }
        | fields
    )


FLIPPED = {"lost": 31, "gained": 9, "mcnemar_p": 0.000682, "detectable": 0.0421}


def quizzed(name, *tasks, model="m", method="Q4_K_M"):
    return msgspec.structs.replace(cell(name), model=model, method=method, tasks=tasks)


def test_what_was_answered_is_a_table_of_its_own():
    cells = [
        quizzed("m-F16", task(), task("mine", 7, 8), method="F16"),
        quizzed("m-Q4_K_M", task(right=97, **FLIPPED), task("mine", 8, 8, **FLIPPED)),
        cell("m-Q8_0"),
    ]
    assert answers(report(*cells)) == [
        "",
        "questions  set      right   of  accuracy         95 %  lost  gained        p   sees",
        "F16        general    119  438     0.272  0.232-0.315     -       -        -      -",
        "F16        mine         7    8     0.875  0.232-0.315     -       -        -      -",
        "Q4_K_M     general     97  438     0.221  0.232-0.315    31       9  0.00068  0.042",
        "Q4_K_M     mine         8    8     1.000  0.232-0.315    31       9  0.00068  0.042",
    ]


def test_flips_that_would_show_nothing_are_told_all_the_same():
    found = task(**(FLIPPED | {"lost": 0, "gained": 0, "mcnemar_p": 1.0, "detectable": None}))
    row = answers(report(quizzed("m-Q4_K_M", found)))[-1]
    assert columns(row)[-4:] == ["0", "0", "1", "-"]


def test_where_nothing_was_asked_there_is_no_table_of_it():
    assert answers(report(cell(), cell("m-Q8_0"))) == []


def test_answers_of_several_models_are_told_by_their_cells():
    cells = [quizzed("a-Q4_0", task(), model="a"), quizzed("b-Q4_0", task(), model="b")]
    assert [columns(line)[0] for line in answers(report(*cells))[2:]] == ["a-Q4_0", "b-Q4_0"]


@pytest.mark.parametrize("length", [3, 40, 200])
def test_answers_fit_into_100_columns(length):
    wide = {"lost": 99_999, "gained": 99_999, "mcnemar_p": 1.2e-308, "detectable": 0.001}
    cells = [
        quizzed("qwen2.5-0.5b-Q4_K_M+imatrix+kv-q8_0", task("x" * length), model="a"),
        quizzed("b" * 60, task("general", 500_000, 1_000_000, **wide), model="b"),
    ]
    lines = answers(report(*cells))
    assert max(map(len, lines)) <= 100
    # A name that is cut is marked so, and still tells something.
    assert lines[2].startswith("qwen2.5-0.5b-")
    assert lines[3].split("  ")[0].endswith("…")
    assert columns(lines[2])[1].endswith("…" if length > 8 else "x")


def test_names_of_cells_and_sets_are_whole_where_there_is_room():
    name = "qwen2.5-0.5b-Q4_K_M+kv-q8"
    cells = [quizzed(name, task(**FLIPPED), model="a"), quizzed("b-Q4_0", task(), model="b")]
    lines = answers(report(*cells))
    assert columns(lines[2])[:2] == [name, "general"]
    assert max(map(len, lines)) <= 100


# Laws


def law(name="memory", subject="m", verdict=Verdict.PASS, message="peak = weights", **fields):
    return LawReport(law=name, subject=subject, verdict=verdict, message=message, **fields)


def test_laws_are_a_table_of_what_was_found():
    laws = [
        law("memory", message="peak = 1.0030 x weights + 44.6 MiB"),
        law("kv_cache", "m+kv-q8_0", Verdict.FAIL, "it grows twice", anomalies=("a", "b")),
        law("power", verdict=Verdict.UNSUPPORTED, message="needs 3 cells"),
        law("pareto", verdict=Verdict.UNSUPPORTED, message="needs 3 cells"),
        law("pareto", "n", verdict=Verdict.UNSUPPORTED, message="needs 3 cells"),
    ]
    blank, header, *lines = relations(report(cell(), laws=laws))
    assert blank == ""
    assert columns(header) == ["law", "of", "verdict", "found"]
    assert [columns(line) for line in lines] == [
        ["memory", "m", "pass", "peak = 1.0030 x weights + 44.6 MiB"],
        ["kv_cache", "m+kv-q8_0", "fail", "it grows twice"],
        ["a"],
        ["b"],
        # What several laws lack is said once.
        ["not held for m: power, pareto: requires 3 cells"],
        ["not held for n: pareto: requires 3 cells"],
    ]
    # What was found begins under its title.
    start = header.index("found")
    assert lines[0][start:].startswith("peak = ")
    assert lines[1][start:] == "it grows twice"


def test_a_law_shows_the_verdict_that_the_run_came_to():
    # What the law finds of disturbed figures decides nothing.
    checks = [
        CheckResult(check="laws.memory", cell="m", verdict=Verdict.INVALID),
        CheckResult(check="laws.kv_cache", cell="n", verdict=Verdict.PASS),
        CheckResult(check="other.kv_cache", cell="m", verdict=Verdict.PASS),
    ]
    laws = [law("memory", verdict=Verdict.FAIL), law("kv_cache", verdict=Verdict.FAIL)]
    _, _, first, second = relations(report(cell(), checks=checks, laws=laws))
    assert columns(first)[2] == "invalid"
    assert columns(second)[2] == "fail"


def test_many_anomalies_are_counted():
    many = law(anomalies=tuple(f"anomaly {i}" for i in range(9)))
    lines = relations(report(cell(), laws=[many]))
    shown = squeezed(lines)
    assert "anomaly 5" in shown
    assert "anomaly 6" not in shown
    assert lines[-1].strip() == "and 3 more, in the report"
    few = msgspec.structs.replace(many, anomalies=many.anomalies[:6])
    assert relations(report(cell(), laws=[few]))[-1].strip() == "anomaly 5"


def test_without_laws_there_is_no_table_of_them():
    assert relations(report(cell(**FULL), checks=[check()])) == []


SAID = (
    "smollm2-135m-Q4_K_M takes +12.3 MiB against the line of the other cells, 1.0 MiB are allowed;"
    " give another with --ondevice-methods=Q4_0,Q8_0"
)


@pytest.mark.parametrize("subject", ["m", "smollm2-135m", "meta-llama-3.1-70b-instruct+kv-q8_0"])
@pytest.mark.parametrize("verdict", Verdict)
def test_laws_fit_into_100_columns(subject, verdict):
    laws = [
        law("loss_monotone", subject, verdict, f"{SAID}. {SAID}", anomalies=(SAID, SAID)),
        law("memory", "n"),
    ]
    lines = relations(report(cell(), laws=laws))
    assert [line for line in lines if len(line) > 100] == []
    # Whatever is broken is all there.
    # A law that could not be held has found nothing that would be odd.
    told = 2 if verdict is Verdict.UNSUPPORTED else 4
    assert squeezed(lines).count("against the line of the other cells,") == told


def test_names_are_not_broken():
    # A name or an option in two parts is neither found nor copied.
    for before in range(60):
        found = law(message=f"{'x' * before} {SAID}", anomalies=(f"{'x' * before} {SAID}",))
        shown = squeezed(relations(report(cell(), laws=[found])))
        assert shown.count("smollm2-135m-Q4_K_M takes") == 2
        assert shown.count("--ondevice-methods=Q4_0,Q8_0") == 2


# Whose logits changed


def identity(cell_id, finding, verdict=Verdict.PASS):
    return CheckResult(check="fidelity.identity", cell=cell_id, verdict=verdict, finding=finding)


def loss(cell_id, verdict):
    bound = Bound(source=Source.BASELINE, upper=1.0)
    return CheckResult(check="fidelity.kld", cell=cell_id, verdict=verdict, bound=bound)


def identity_notes(*checks):
    notes = footnotes(report(cell(), checks=checks))
    return [note for note in notes if "identical" in note]


def test_logits_that_are_all_the_same_are_counted():
    checks = [identity("a", Finding.IDENTICAL), identity("b", Finding.IDENTICAL)]
    assert identity_notes(*checks) == ["logits identical to those on record: 2 of 2 cells"]
    # Where none are on record there is nothing to say.
    none = CheckResult(check="fidelity.identity", cell="a", verdict=Verdict.NO_BASELINE)
    assert identity_notes(none) == []


@pytest.mark.parametrize(
    ("verdicts", "word"),
    [
        ([Verdict.PASS], "no worse"),
        ([Verdict.FAIL], "worse"),
        ([Verdict.PASS, Verdict.FAIL], "worse"),
        ([Verdict.INCONCLUSIVE], "undecided"),
        ([Verdict.INCONCLUSIVE, Verdict.FAIL], "worse"),
    ],
)
def test_logits_that_changed_are_named_with_what_that_comes_to(verdicts, word):
    checks = [identity("a", Finding.IDENTICAL), identity("b", Finding.CHANGED)]
    # Of another cell: says nothing of this one.
    checks += [loss("a", Verdict.FAIL), *(loss("b", verdict) for verdict in verdicts)]
    assert identity_notes(*checks) == [
        f"logits identical to those on record: 1 of 2 cells; changed: b ({word})"
    ]


def test_a_change_that_was_asked_to_fail_is_not_worse_for_it():
    # With --ondevice-identical the check of identity fails, and the loss may stand all the same.
    bound = Bound(source=Source.BASELINE, upper=0.0)
    strict = msgspec.structs.replace(identity("b", Finding.CHANGED, Verdict.FAIL), bound=bound)
    assert identity_notes(strict, loss("b", Verdict.PASS)) == [
        "logits identical to those on record: 0 of 1 cells; changed: b (no worse)"
    ]


# On a terminal


class Reporter:
    """Records what a terminal reporter is told to write."""

    def __init__(self):
        self.lines = []
        self.colors = []
        self.begun = ""

    def section(self, title):
        self.lines.append(f"== {title}")

    def write(self, text):
        self.begun += text

    def write_line(self, text, **markup):
        self.lines.append(self.begun + text)
        self.begun = ""
        self.colors.append((text, *(name for name, on in markup.items() if on)))


def test_the_summary_is_table_footnotes_notes_and_lines_in_this_order():
    reporter = Reporter()
    cells = [cell(f"m-{i}", verdict, **FULL) for i, verdict in enumerate([*Verdict, None])]
    cells.append(cell("m-8", **RUNNING))
    cells.append(quizzed("m-9", task()))
    checks = [changed("m-0", "against.size", 0.01)]
    made = report(*cells, checks=checks, notes=["a note"], complete=False, laws=[law()])
    summarise(reporter, made, ["report: report.json"])
    assert reporter.lines == [
        "== on-device gate",
        *table(made),
        *succession(made),
        *answers(made),
        *resources(made),
        *relations(made),
        *footnotes(made),
        "a note",
        "report: report.json",
    ]
    colors = dict(pair for pair in reporter.colors if len(pair) == 2)
    header = table(made)[0]
    assert colors == {
        header: "bold",
        "pass": "green",
        "fail": "red",
        "blocked": "red",
        "inconclusive": "yellow",
        "invalid": "yellow",
        "unsupported": "yellow",
        "no baseline": "yellow",
        "not run": "yellow",
    }
