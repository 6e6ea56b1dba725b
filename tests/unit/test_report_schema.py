"""The report as data: what is written is read again, in any JSON reader, and is whole."""

from __future__ import annotations

import itertools
import json
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice.gather import encode, worst
from pytest_ondevice.model.bound import Bound, Source
from pytest_ondevice.model.change import Change, Finding
from pytest_ondevice.model.device import Device, Runtime
from pytest_ondevice.model.law import LawPoint, LawReport
from pytest_ondevice.model.measurement import Measurement, digest_of
from pytest_ondevice.model.report import (
    SCHEMA_VERSION,
    ArtifactFacts,
    CellReport,
    CheckResult,
    GroupReport,
    ItemReport,
    Report,
    TaskReport,
    TypeShare,
)
from pytest_ondevice.model.verdict import Verdict

lawful = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def decode(data, type_=Report):
    return msgspec.json.decode(data, type=type_)


def strictly(data):
    """Parse as a reader does that knows JSON only: NaN and Infinity are none."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(data, parse_constant=refuse)


MEASURED = Measurement(
    quantity="mean_kld",
    value=0.0871234567890123,
    unit="nats",
    n=2,
    error=1e-17,
    samples=(0.1, 5e-324),
    sample_ids=("narrative:0", "Grüße ☃ \u2028 \x00:1"),
    protocol="0" * 16,
    reused=True,
    disturbed=("60 major page faults",),
    advisory=True,
    detail="1 of 272 tensors differ",
)
BOUND = Bound(
    source=Source.BASELINE,
    detail="baselines/portable/m/Q4_K_M.json, recorded 2026-09-01",
    upper=1.0,
    lower=-0.0,
    center=0.5,
    relative=0.05,
    absolute=1e300,
    noise=0.25,
    sample_ids=("narrative:0",),
    samples=(0.1,),
    higher_is_better=True,
)
FACTS = ArtifactFacts(
    file="m-Q4_K_M.gguf",
    sha256="a" * 64,
    size=2**40 + 1,
    origin="quantized",
    architecture="llama",
    file_type="Q4_K_M",
    weights=10**12,
    types={"Q4_K": TypeShare(tensors=3, weights=10**12, bytes=2**40)},
    source="pkg:a/b.gguf",
    source_sha256="b" * 64,
    source_type="Q4_1",
    source_quantized=True,
    quantized_by="llama-cpp-python 0.3.36",
)
CHANGE = Change(
    quantity="mean_kld",
    unit="nats",
    before=0.1,
    after=0.114,
    change=0.014,
    relative=False,
    error=1e-300,
    n=16,
    finding=Finding.WORSE,
    evidence="+14.0% ± 0.5% against its predecessor",
)
CHECK = CheckResult(
    check="fidelity.kld",
    cell="m-Q4_K_M",
    verdict=Verdict.NO_BASELINE,
    quantity="mean_kld",
    value=0.1,
    unit="nats",
    bound=BOUND,
    message="+14.0% ± 0.5% against the baseline",
    advisory=True,
    outcome="xfailed",
    waived="known (waived until 2027-01-31)",
    finding=Finding.WORSE,
    change=CHANGE,
    node="suites/fidelity/test_loss.py::test_kld[m-Q4_K_M]",
)
LAW = LawReport(
    law="loss_envelope",
    subject="m",
    verdict=Verdict.FAIL,
    message="m-Q4_K_M loses 3 times what its bits per weight allow",
    anomalies=("m-Q4_K_M is off the line",),
    warns=True,
    x="effective_bpw",
    x_unit="bits/weight",
    y="mean_kld",
    y_unit="nats",
    y_log=True,
    points=(
        LawPoint(
            cell="m-Q4_K_M", x=4.89, y=0.09, error=1e-300, fitted=0.03, residual=0.06, left_out="x"
        ),
        LawPoint(cell="m-F16", x=16.0, y=0.0),
    ),
    slope=-1.14,
    slope_error=5e-324,
    intercept=3.2,
    intercept_error=0.5,
    r2=0.999,
    crossover=3.5,
    figures={"room": 8.0},
)
TASKS = TaskReport(
    name="general",
    digest="e" * 16,
    normalisation="bytes",
    n=4,
    right=3,
    accuracy=0.75,
    lower=0.3006,
    upper=0.9544,
    chance=0.25,
    mass=5e-324,
    groups={"knowledge ☃": GroupReport(n=4, right=3, lower=0.3006, upper=0.9544)},
    lost=1,
    gained=0,
    mcnemar_p=1.0,
    detectable=0.9,
)
UNPAIRED = msgspec.structs.replace(
    TASKS, mass=None, groups={}, lost=None, gained=None, mcnemar_p=None, detectable=None
)
FULL = Report(
    schema_version=SCHEMA_VERSION,
    generator="pytest-ondevice 0.1.0",
    created="2026-09-01T12:00:00+00:00",
    complete=False,
    device=Device(
        system="Linux",
        machine="aarch64",
        cpu="Cortex-A76",
        cores=4,
        memory=2**33,
        python="3.11.7",
        libc="glibc 2.36",
    ),
    tier="aarch64-cortex-a76-4t-0a1b2c",
    board="kitchen",
    runtime=Runtime(name="llama.cpp", version="0.3.36", digest="d" * 16, system_info="NEON = 1"),
    settings={"models": "m", "windows": "all"},
    cells=(
        CellReport(
            id="m-Q4_K_M",
            model="m",
            method="Q4_K_M",
            reference=False,
            verdict=Verdict.INCONCLUSIVE,
            artifact=FACTS,
            measurements={"mean_kld": MEASURED},
            predecessor=FACTS,
            finding=Finding.UNDECIDED,
            logits={"asimd+asimddp": ("0" * 16, "1" * 16), "unknown": ()},
            tasks=(TASKS, UNPAIRED),
        ),
        CellReport(
            id="m-F16",
            model="m",
            method="F16",
            reference=True,
            verdict=None,
            artifact=None,
            measurements={},
        ),
    ),
    checks=(CHECK, CheckResult(check="mine", cell="m-F16", verdict=Verdict.PASS)),
    laws=(LAW, LawReport(law="power", subject="m", verdict=Verdict.UNSUPPORTED, message="none")),
    protocols={"0" * 16: {"n_ctx": 512, "repack": True, "windows": None, "share": 0.5, "t": "x"}},
    notes=("the source of m is quantized already (Q4_1)",),
)


def types_in(value):
    """Every struct in a report, by its class."""
    if isinstance(value, msgspec.Struct):
        yield value
        value = [getattr(value, name) for name in value.__struct_fields__]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from types_in(one)


def default_of(struct, name):
    """A field's default, NODEFAULT if it must be given."""
    (field,) = [one for one in msgspec.structs.fields(struct) if one.name == name]
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


# Whole


def test_the_example_has_a_value_in_every_field():
    seen = {type(one): set() for one in types_in(FULL)}
    assert {one.__name__ for one in seen} == {
        "Report",
        "Device",
        "Runtime",
        "CellReport",
        "ArtifactFacts",
        "TypeShare",
        "Measurement",
        "CheckResult",
        "Change",
        "Bound",
        "TaskReport",
        "GroupReport",
        "LawReport",
        "LawPoint",
    }
    for one in types_in(FULL):
        for name in one.__struct_fields__:
            if getattr(one, name) != default_of(one, name):
                seen[type(one)].add(name)
    for struct, fields in seen.items():
        assert fields == set(struct.__struct_fields__), struct


def test_a_report_is_read_as_it_was_written():
    assert decode(encode(FULL)) == FULL
    assert encode(decode(encode(FULL))) == encode(FULL)


def test_an_items_report_is_read_as_it_was_sent():
    item = ItemReport(
        cell="m-Q4_K_M",
        results=FULL.checks,
        measurements=(MEASURED,),
        artifact=FACTS,
        protocols=FULL.protocols,
        logits=FULL.cells[0].logits,
        predecessor=FACTS,
        tasks=FULL.cells[0].tasks,
        system_info="AVX2 = 1",
        laws=FULL.laws,
    )
    assert decode(msgspec.json.encode(item), ItemReport) == item
    assert decode(b'{"cell":"m"}', ItemReport) == ItemReport(cell="m")


@lawful
@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
def test_every_figure_and_text_survives(value, samples, text):
    measured = Measurement(quantity=text, value=value, unit=text, samples=tuple(samples))
    cell = msgspec.structs.replace(FULL.cells[0], measurements={text: measured})
    made = msgspec.structs.replace(FULL, cells=(cell,), notes=(text,))
    assert decode(encode(made)) == made
    assert strictly(encode(made))["cells"][0]["measurements"][text]["value"] == value


def test_the_report_is_for_people_too():
    text = encode(FULL).decode()
    assert text.startswith('{\n "schema_version": 1,\n "generator": "pytest-ondevice 0.1.0",\n')
    assert text.endswith("}\n")
    # What has its default is left out where there are many, never in a report's own fields.
    assert strictly(text)["checks"][1] == {"check": "mine", "cell": "m-F16", "verdict": "pass"}
    assert strictly(text)["cells"][1] == {
        "id": "m-F16",
        "model": "m",
        "method": "F16",
        "reference": True,
        "verdict": None,
        "artifact": None,
        "measurements": {},
        "predecessor": None,
        "finding": None,
        "logits": {},
        "tasks": [],
    }


def test_a_report_of_a_later_version_is_read():
    later = strictly(encode(FULL)) | {"added_later": [1]}
    later["cells"][0]["added_later"] = {}
    assert decode(json.dumps(later)) == FULL


def test_a_report_of_before_there_were_laws_is_read():
    earlier = strictly(encode(FULL))
    del earlier["laws"]
    assert decode(json.dumps(earlier)) == msgspec.structs.replace(FULL, laws=())


def test_a_report_of_before_there_were_questions_is_read():
    earlier = strictly(encode(FULL))
    for cell in earlier["cells"]:
        del cell["tasks"]
    cells = (msgspec.structs.replace(FULL.cells[0], tasks=()), FULL.cells[1])
    assert decode(json.dumps(earlier)) == msgspec.structs.replace(FULL, cells=cells)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": {}}, "Expected `array`, got `object` - at `$.cells`"),
        ({"complete": None}, "Expected `bool`, got `null` - at `$.complete`"),
        ({"checks": [{"check": "c", "cell": "x", "verdict": "maybe"}]}, "Invalid enum value"),
    ],
)
def test_what_is_no_report_is_refused_with_its_place(change, message):
    with pytest.raises(msgspec.ValidationError) as caught:
        decode(json.dumps(strictly(encode(FULL)) | change))
    assert message in str(caught.value)


# Numbers that JSON has not

ODD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("odd", ODD)
def test_no_nan_and_no_infinity_is_ever_written(odd):
    measured = msgspec.structs.replace(MEASURED, value=odd, error=odd, samples=(odd, 1.0))
    bound = Bound(source=Source.LAW, upper=math.inf, lower=-math.inf)
    cell = msgspec.structs.replace(FULL.cells[0], measurements={"mean_kld": measured})
    change = msgspec.structs.replace(CHANGE, before=odd, change=odd, error=odd)
    check = msgspec.structs.replace(CHECK, value=odd, bound=bound, change=change)
    made = msgspec.structs.replace(
        FULL, cells=(cell,), checks=(check,), protocols={"p": {"share": odd}}
    )
    read = strictly(encode(made))
    assert read["cells"][0]["measurements"]["mean_kld"]["value"] is None
    assert read["cells"][0]["measurements"]["mean_kld"]["samples"] == [None, 1.0]
    assert read["checks"][0]["value"] is None
    told = read["checks"][0]["change"]
    assert (told["before"], told["change"], told["error"]) == (None, None, None)
    assert told["after"] == 0.114
    assert read["checks"][0]["bound"] == {"source": "law", "upper": None, "lower": None}
    assert read["protocols"] == {"p": {"share": None}}


@pytest.mark.parametrize("odd", ODD)
def test_what_is_not_finite_is_read_as_such(odd):
    measured = Measurement(quantity="q", value=odd, unit="", error=odd)
    read = decode(msgspec.json.encode(measured), Measurement)
    assert read == Measurement(quantity="q", value=None, unit="")


# A cell's verdict

ORDER = [
    Verdict.FAIL,
    Verdict.INVALID,
    Verdict.INCONCLUSIVE,
    Verdict.BLOCKED,
    Verdict.PASS,
    Verdict.NO_BASELINE,
    Verdict.UNSUPPORTED,
]


def test_every_verdict_has_its_place():
    assert set(ORDER) == set(Verdict)
    assert len(ORDER) == len(Verdict)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_worst_verdict_is_the_cells(count):
    for verdicts in itertools.product(ORDER, repeat=count):
        assert worst(list(verdicts)) is min(verdicts, key=ORDER.index)


def test_a_cell_without_a_verdict_has_none():
    assert worst([]) is None


# Digests of protocols


def test_a_digest_is_of_the_fields_not_of_their_order():
    fields = {"n_ctx": 512, "text": "ü", "repack": True, "windows": None}
    assert digest_of(fields) == digest_of(dict(reversed(fields.items())))
    # Known by its value: a changed digest would make every stored baseline another protocol's.
    assert digest_of(fields) == "bd1e3f551a6d596a"
    others = [
        fields | {"n_ctx": 513},
        fields | {"n_ctx": "512"},
        fields | {"repack": 1},
        fields | {"more": 0},
        {name: value for name, value in fields.items() if name != "windows"},
    ]
    assert len({digest_of(other) for other in [fields, *others]}) == 6
