"""Comparing two reports or two sets of baselines: what is worse, what may be compared at all."""

from __future__ import annotations

import math
import os

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice.comparison import TOLERANCES, compare, status
from pytest_ondevice.conclusion import Status
from pytest_ondevice.errors import BadFileError, OptionError
from pytest_ondevice.model.change import Finding
from pytest_ondevice.model.comparison import Comparison, Kind, Presence
from pytest_ondevice.model.device import Device, Runtime
from pytest_ondevice.model.measurement import Measurement, digest_of
from pytest_ondevice.model.report import ArtifactFacts, CellReport, CheckResult, Report
from pytest_ondevice.model.verdict import Verdict
from pytest_ondevice.storage.baselines import BaselineFile, Section, entry_of

MIB = 2**20
FIDELITY = {"stage": "fidelity", "n_ctx": 512, "text": "abc"}
IDS = tuple(f"narrative:{number}" for number in range(16))
# Windows of a real run are skewed like these.
KLD = tuple(0.02 + 0.005 * (number % 5) ** 1.5 for number in range(16))
WOBBLE = tuple(0.01 * ((7 * number) % 5 - 2) for number in range(16))


def one(name, value, unit="1", **fields):
    return Measurement(quantity=name, unit=unit, value=value, **fields)


def windows(name, samples, unit="1", ids=IDS, protocol=FIDELITY, **fields):
    samples = tuple(samples)
    return one(
        name,
        sum(samples) / len(samples),
        unit,
        n=len(samples),
        error=0.001,
        samples=samples,
        sample_ids=tuple(ids[: len(samples)]),
        protocol=digest_of(protocol),
        **fields,
    )


def cell(*measured, name="m-Q4_0", verdict=Verdict.PASS, sha="a" * 64):
    artifact = ArtifactFacts(
        file="m.gguf", sha256=sha, size=1, origin="quantized", architecture="llama"
    )
    return CellReport(
        id=name,
        model="m",
        method=name.removeprefix("m-"),
        reference=False,
        verdict=verdict,
        artifact=artifact,
        measurements={each.quantity: each for each in measured},
    )


def report(*cells, checks=(), protocols=(FIDELITY,), **fields):
    return Report(
        **{
            "schema_version": 1,
            "generator": "pytest-ondevice 0",
            "created": "2026-09-01T00:00:00+00:00",
            "complete": True,
            "device": Device(
                system="Linux", machine="x86_64", cpu="A", cores=2, memory=1, python="3", libc="g"
            ),
            "tier": "desk",
            "board": "one",
            "runtime": Runtime(name="llama.cpp", version="1", digest="d1"),
            "settings": {"windows": "16"},
            "cells": cells,
            "checks": tuple(checks),
            "protocols": {digest_of(fields): fields for fields in protocols},
            "notes": (),
        }
        | fields
    )


@pytest.fixture
def compared(tmp_path):
    """Compare two reports; measurements alone stand for a report of one cell."""

    def make(old, new, cells=None):
        paths = []
        for name, given_ in (("old", old), ("new", new)):
            made = given_ if isinstance(given_, Report) else report(cell(*given_))
            paths.append(tmp_path / f"{name}.json")
            paths[-1].write_bytes(msgspec.json.encode(made))
        return compare(*paths, cells)

    return make


@pytest.fixture
def change(compared):
    """Compare one quantity; return its only change."""

    def make(old, new):
        found = compared([old], [new])
        (change,) = (*found.cells[0].changes, *found.cells[0].advisory)
        return change

    return make


# Quantities per window


def kld(factor=1.0, wobble=WOBBLE, **fields):
    samples = [value * (factor + moved) for value, moved in zip(KLD, wobble, strict=True)]
    return windows("mean_kld", samples, "nats", **fields)


@pytest.mark.parametrize(
    ("factor", "finding", "words"),
    [
        (1.20, Finding.WORSE, "paired over 16 windows: beyond the tolerance of 5 %"),
        (1.05, Finding.UNDECIDED, "too uncertain to tell it from the tolerance of 5 %"),
        (1.02, Finding.NO_WORSE, "paired over 16 windows: within the tolerance of 5 %"),
        (1.00, Finding.NO_WORSE, "within the tolerance"),
        (0.90, Finding.BETTER, "better by more than chance explains"),
    ],
)
def test_a_divergence_is_weighed_pair_by_pair(change, factor, finding, words):
    found = change(kld(wobble=[0] * 16), kld(factor))
    assert found.finding is finding
    assert words in found.evidence
    assert found.relative
    assert found.n == 16
    assert found.change == pytest.approx(factor - 1, abs=0.01)
    assert 0 < found.error < 0.02


def test_windows_equal_to_seven_digits_are_identical(change):
    found = change(kld(), kld(1 + 1e-9))
    assert (found.finding, found.change) == (Finding.IDENTICAL, 0.0)
    assert change(kld(), kld(1 + 1e-5)).finding is Finding.NO_WORSE


def test_windows_are_paired_by_their_ids_not_by_their_order(change):
    old, new = kld(), kld()
    order = list(range(15, -1, -1))
    new = msgspec.structs.replace(
        new,
        samples=tuple(new.samples[index] for index in order),
        sample_ids=tuple(new.sample_ids[index] for index in order),
    )
    assert change(old, new).finding is Finding.IDENTICAL


def test_only_windows_in_common_are_compared(change):
    wide = windows("mean_kld", (*KLD, 9.0), "nats", ids=(*IDS, "extra:0"))
    found = change(windows("mean_kld", KLD, "nats"), wide)
    assert found.finding is Finding.IDENTICAL
    assert "the 16 windows in common" in found.evidence
    assert found.after == pytest.approx(sum(KLD) / 16)
    assert change(wide, windows("mean_kld", KLD, "nats")).before == pytest.approx(sum(KLD) / 16)
    apart = windows("mean_kld", KLD, "nats", ids=[f"other:{name}" for name in IDS])
    assert change(kld(), apart).evidence == "no window in common"


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_windows_decide_nothing(change, count):
    old, new = KLD[:count], [2 * value for value in KLD[:count]]
    found = change(windows("mean_kld", old, "nats"), windows("mean_kld", new, "nats"))
    assert found.finding is Finding.UNDECIDED
    assert found.error is None or math.isfinite(found.error)


@pytest.mark.parametrize(
    ("name", "start", "shift", "finding"),
    [
        ("same_top", 0.90, -0.05, Finding.WORSE),
        ("same_top", 0.90, -0.01, Finding.NO_WORSE),
        ("same_top", 0.90, +0.05, Finding.BETTER),
        ("ln_ppl", 3.0, +0.02, Finding.WORSE),
        ("ln_ppl", 3.0, +0.002, Finding.NO_WORSE),
        ("ln_ppl_ratio", 0.05, +0.03, Finding.WORSE),
        ("ln_ppl_ratio", 0.05, +0.015, Finding.NO_WORSE),
        ("ln_ppl_ratio", 0.05, -0.03, Finding.BETTER),
        # A tenth of it is more than 0.02 here.
        ("ln_ppl_ratio", 1.0, +0.05, Finding.NO_WORSE),
        ("ln_ppl_ratio", 1.0, +0.15, Finding.WORSE),
        ("mean_square_dp", 0.1, +0.03, Finding.WORSE),
        ("mean_square_dp", 0.1, +0.002, Finding.NO_WORSE),
    ],
)
def test_each_quantity_has_its_tolerance_and_direction(change, name, start, shift, finding):
    small = [0.02 * abs(shift) * wobble / 0.02 for wobble in WOBBLE]
    old = windows(name, [start + 0.3 * start * wobble for wobble in WOBBLE])
    new = windows(
        name, [value + shift + more for value, more in zip(old.samples, small, strict=True)]
    )
    found = change(old, new)
    assert found.finding is finding, found
    moved = found.change * start if found.relative else found.change
    assert math.copysign(1, moved) == math.copysign(1, shift)


def test_the_likelihood_decides_only_where_no_ratio_does(compared):
    worse = windows("ln_ppl", [3.1] * 16)
    alone = compared([windows("ln_ppl", [3.0] * 16)], [worse])
    assert alone.cells[0].finding is Finding.WORSE
    ratio = windows("ln_ppl_ratio", [0.1 + wobble for wobble in WOBBLE])
    beside = compared([windows("ln_ppl", [3.0] * 16), ratio], [worse, ratio])
    assert beside.cells[0].finding is Finding.IDENTICAL
    (said,) = beside.cells[0].advisory
    assert (said.finding, said.evidence) == (
        Finding.UNDECIDED,
        "advisory: ln_ppl_ratio decides",
    )


def test_without_windows_a_divergence_may_be_chance(change):
    found = change(one("mean_kld", 0.1, "nats"), one("mean_kld", 0.2, "nats"))
    assert found.finding is Finding.UNDECIDED
    assert change(one("mean_kld", 0.1), one("mean_kld", 0.1)).finding is Finding.IDENTICAL


# Sizes, memory, counts, speed


@pytest.mark.parametrize(
    ("name", "old", "new", "finding"),
    [
        ("file_size", 1000, 1000, Finding.IDENTICAL),
        ("file_size", 10**9, 10**9 + 32, Finding.NO_WORSE),
        ("file_size", 1000, 1005, Finding.NO_WORSE),
        ("file_size", 1000, 1006, Finding.WORSE),
        ("file_size", 1000, 999, Finding.BETTER),
        ("effective_bpw", 5.0, 5.1, Finding.WORSE),
        ("peak_memory", 100 * MIB, 102.9 * MIB, Finding.NO_WORSE),
        ("peak_memory", 100 * MIB, 103.1 * MIB, Finding.WORSE),
        ("peak_memory", 1000 * MIB, 1019 * MIB, Finding.NO_WORSE),
        ("peak_memory", 1000 * MIB, 1021 * MIB, Finding.WORSE),
        ("peak_memory", 100 * MIB, 98 * MIB, Finding.NO_WORSE),
        ("peak_memory", 100 * MIB, 90 * MIB, Finding.BETTER),
        ("nonfinite", 0, 1, Finding.WORSE),
        ("nonfinite", 2, 0, Finding.BETTER),
        ("tensors_valid", 1, 0, Finding.WORSE),
        ("tokenizer_matches", 0, 1, Finding.BETTER),
        ("nominal_bpw", 4.5, 5.5, Finding.CHANGED),
        ("my_own", 1.0, 0.5, Finding.CHANGED),
    ],
)
def test_exact_figures_are_compared_as_they_are(change, name, old, new, finding):
    found = change(one(name, old), one(name, new))
    assert found.finding is finding
    assert found.change == pytest.approx((new - old) / old if old else new - old)
    assert found.relative == (old != 0)


@pytest.mark.parametrize("name", ["decode_speed", "prefill_speed", "load_time", "ttft"])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_speeds_of_different_runs_decide_nothing(compared, name, factor):
    size = one("file_size", 10.0, "B")
    found = compared([one(name, 80.0, "s"), size], [one(name, 80.0 * factor, "s"), size])
    (said,) = found.cells[0].advisory
    assert said.finding is Finding.UNDECIDED
    assert said.evidence == "advisory: measured in different runs"
    assert said.change == pytest.approx(factor - 1)
    assert found.cells[0].finding is Finding.IDENTICAL
    assert status(found) is Status.PASSED


def test_errors_of_unpaired_figures_are_combined(change):
    found = change(
        one("decode_speed", 100.0, "tokens/s", n=3, error=3.0),
        one("decode_speed", 50.0, "tokens/s", n=3, error=2.0),
    )
    assert found.error == pytest.approx(math.hypot(2 / 100, 3 * 50 / 100**2))
    assert found.n == 3


def test_a_change_of_next_to_nothing_is_no_infinity(change):
    found = change(one("file_size", 5e-324), one("file_size", 1.0))
    assert (found.finding, found.change) == (Finding.WORSE, None)


def test_what_the_run_called_advisory_decides_nothing(compared):
    found = compared([one("file_size", 10, "B", advisory=True)], [one("file_size", 20, "B")])
    assert not found.cells[0].changes
    assert found.cells[0].advisory[0].finding is Finding.UNDECIDED


def test_every_tolerance_has_a_way_to_be_exceeded():
    for name, tolerance in TOLERANCES.items():
        assert tolerance.relative >= 0 <= tolerance.absolute, name
        assert not tolerance.windows or tolerance.relative or tolerance.absolute, name


# What keeps figures from being compared


def test_another_protocol_is_not_comparable_and_says_where(compared):
    other = FIDELITY | {"n_ctx": 1024, "seed": 7}
    found = compared(
        report(cell(kld())),
        report(cell(kld(2.0, protocol=other)), protocols=(other,)),
    )
    (row,) = found.cells
    assert row.finding is Finding.UNDECIDED
    assert row.changes[0].change is None
    assert row.evidence == (
        "not comparable: fidelity protocol, n_ctx: 512 before, 1024 after;"
        " fidelity protocol, seed: absent before, 7 after"
    )
    assert [(each.field, each.old, each.new) for each in row.differences] == [
        ("fidelity protocol, n_ctx", "512", "1024"),
        ("fidelity protocol, seed", "absent", "7"),
    ]
    assert status(found) is Status.UNDECIDED


def test_a_protocol_that_no_table_spells_out_is_named_by_digest(compared):
    old, new = report(cell(kld()), protocols=()), report(cell(kld(protocol={})), protocols=())
    (row,) = compared(old, new).cells
    assert row.differences[0].field == "protocol, digest"
    assert digest_of(FIDELITY) in row.evidence


def test_other_units_are_not_comparable(change):
    found = change(one("my_own", 1.0, "s"), one("my_own", 1.0, "ms"))
    assert found.evidence == "not comparable: unit: s before, ms after"


def test_what_was_disturbed_is_not_decided(compared):
    bad = msgspec.structs.replace(kld(2.0), disturbed=("swap",))
    row = compared([kld()], [bad]).cells[0]
    assert (row.finding, row.evidence) == (Finding.UNDECIDED, "disturbed after: swap")
    assert compared([bad], [kld()]).cells[0].evidence == "disturbed before: swap"


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        (1.0, None, Finding.WORSE),
        (None, 1.0, Finding.BETTER),
        (None, None, Finding.UNDECIDED),
        (1.0, 1e200, Finding.WORSE),
    ],
)
def test_what_is_not_finite_is_said(change, old, new, finding):
    found = change(one("mean_kld", old), one("mean_kld", new))
    assert found.finding is finding
    assert "not finite" in found.evidence


def test_what_is_no_longer_measured_is_not_decided(compared):
    size = one("file_size", 10, "B")
    row = compared([size, kld()], [size, one("body_bpw", 5)]).cells[0]
    assert row.finding is Finding.UNDECIDED
    assert (row.decided_by, row.evidence) == ("mean_kld", "only the old one has it")
    assert row.added == ("body_bpw",)


# Cells and the whole


def test_the_worst_change_decides_and_the_furthest_is_named(compared):
    old = [one("file_size", 1000, "B"), one("peak_memory", 100 * MIB, "B"), kld()]
    new = [one("file_size", 1010, "B"), one("peak_memory", 300 * MIB, "B"), kld(0.5)]
    row = compared(old, new).cells[0]
    assert row.finding is Finding.WORSE
    assert row.decided_by == "peak_memory"
    row = compared(old, [one("file_size", 1500, "B"), one("peak_memory", 104 * MIB, "B")]).cells[0]
    assert row.decided_by == "file_size"


def test_better_beside_worse_is_worse(compared):
    old = [one("file_size", 1000, "B"), kld()]
    row = compared(old, [one("file_size", 1010, "B"), kld(0.5)]).cells[0]
    assert row.finding is Finding.WORSE
    findings = {change.quantity: change.finding for change in row.changes}
    assert findings["mean_kld"] is Finding.BETTER


def test_a_check_that_passed_and_now_fails_is_worse(compared):
    def checked(verdict, **fields):
        result = CheckResult(
            check="mine", cell="m-Q4_0", verdict=verdict, message="mine broke\nmore", **fields
        )
        return report(cell(one("file_size", 1, "B"), verdict=verdict), checks=[result])

    good, bad = checked(Verdict.PASS), checked(Verdict.FAIL)
    found = compared(good, bad)
    (row,) = found.cells
    assert (row.finding, row.decided_by) == (Finding.WORSE, "")
    assert row.evidence == "mine passed and now fails: mine broke"
    assert (row.old_verdict, row.new_verdict) == (Verdict.PASS, Verdict.FAIL)
    assert status(found) is Status.REGRESSED
    for fine in (checked(Verdict.FAIL, waived="known"), checked(Verdict.FAIL, advisory=True)):
        assert compared(good, fine).cells[0].finding is Finding.IDENTICAL
    assert compared(bad, bad).cells[0].finding is Finding.IDENTICAL
    assert compared(bad, good).cells[0].finding is Finding.IDENTICAL


def test_cells_of_one_side_only(compared):
    size = one("file_size", 1, "B")
    gone = compared(report(cell(size), cell(size, name="m-Q8_0")), report(cell(size)))
    assert [(row.id, row.presence) for row in gone.cells] == [
        ("m-Q4_0", Presence.BOTH),
        ("m-Q8_0", Presence.OLD),
    ]
    assert status(gone) is Status.UNDECIDED
    more = compared(report(cell(size)), report(cell(size), cell(size, name="m-Q8_0")))
    assert more.cells[1].presence is Presence.NEW
    assert status(more) is Status.PASSED
    nothing = compared(report(cell(size)), report(cell(size, name="m-Q8_0")))
    assert status(nothing) is Status.UNDECIDED
    assert nothing.finding is None
    assert status(compared(report(), report(cell(size)))) is Status.UNDECIDED


def test_a_cell_of_which_nothing_can_be_compared_is_undecided(compared):
    found = compared([one("load_time", 1.0, "s")], [one("load_time", 2.0, "s")])
    assert found.cells[0].finding is None
    assert found.cells[0].evidence == "nothing that decides was measured in both"
    assert status(found) is Status.UNDECIDED


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (1000, Status.PASSED),
        (999, Status.PASSED),
        (1004, Status.PASSED),
        (1100, Status.REGRESSED),
    ],
)
def test_the_exit_status(compared, new, expected):
    found = compared([one("file_size", 1000, "B")], [one("file_size", new, "B")])
    assert status(found) is expected


def test_worse_outweighs_undecided(compared):
    size = one("file_size", 1000, "B")
    old = report(cell(size), cell(size, name="m-Q8_0"))
    new = report(cell(one("file_size", 2000, "B")))
    assert status(compared(old, new)) is Status.REGRESSED


def test_cells_can_be_chosen(compared):
    size = one("file_size", 1, "B")
    both = report(cell(size), cell(size, name="m-Q8_0"))
    assert [row.id for row in compared(both, both, "*Q8*").cells] == ["m-Q8_0"]
    with pytest.raises(OptionError, match=r"--cells m-Q8: no cell matches; did you mean 'm-Q8_0'"):
        compared(both, both, "m-Q8")


def test_machine_runtime_settings_and_artifact_that_differ_are_named(compared):
    size = one("file_size", 1, "B")
    new = report(
        cell(size, sha="b" * 64),
        device=Device(
            system="Linux", machine="x86_64", cpu="B", cores=2, memory=1, python="3", libc="g"
        ),
        tier="phone",
        runtime=Runtime(name="llama.cpp", version="2", digest="d1"),
        settings={"windows": "8"},
        complete=False,
    )
    found = compared(report(cell(size)), new)
    assert [(each.field, each.old, each.new) for each in found.differences] == [
        ("runtime", "llama.cpp 1", "llama.cpp 2"),
        ("tier", "desk", "phone"),
        ("cpu", "A", "B"),
        ("setting windows", "16", "8"),
    ]
    (artifact,) = found.cells[0].differences
    assert (artifact.field, artifact.old, artifact.new) == ("artifact", "a" * 64, "b" * 64)
    assert found.cells[0].finding is Finding.IDENTICAL
    assert found.new.tier == "phone"
    assert "interrupted" in found.notes[0]


def test_a_comparison_survives_json(compared):
    found = compared([kld(), one("ttft", 1.0, "s")], [kld(1.2), one("ttft", 2.0, "s")])
    assert msgspec.json.decode(msgspec.json.encode(found), type=Comparison) == found


# Baselines


def section(*measured, protocol=FIDELITY, **fields):
    return Section(
        **{
            "recorded": "2026-09-01",
            "runtime": "llama.cpp 1",
            "runtime_digest": "d",
            "cpu": "A",
            "artifact": "a" * 64,
            "protocol": protocol,
            "quantities": {each.quantity: entry_of(each) for each in measured},
        }
        | fields
    )


@pytest.fixture
def baseline(tmp_path):
    """Write a baseline file; returns its path."""

    def make(where, **sections):
        file = BaselineFile(schema=1, model="m", method="Q4_0", sections=sections)
        path = tmp_path / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(file))
        return path

    return make


def test_baseline_files_and_folders_are_compared(baseline, tmp_path):
    old = baseline("a/portable/m/Q4_0.json", fidelity=section(kld()))
    new = baseline(
        "b/portable/m/Q4_0.json",
        fidelity=section(kld(1.2), recorded="2026-09-09", runtime="llama.cpp 2"),
    )
    for sides in ((old, new), (tmp_path / "a", tmp_path / "b"), (old, tmp_path / "b/portable")):
        found = compare(*sides)
        assert found.kind is Kind.BASELINES
        (row,) = found.cells
        assert (row.id, row.finding, row.decided_by) == ("m-Q4_0", Finding.WORSE, "mean_kld")
        assert (found.old.created, found.new.created) == ("2026-09-01", "2026-09-09")
        assert [each.field for each in found.differences] == ["runtime"]


def test_rounded_sizes_of_baselines_are_the_same(baseline, tmp_path):
    old = baseline("a.json", size=section(one("file_size", 1234567849, "B")))
    new = baseline("b.json", size=section(one("file_size", 1234567851, "B")))
    assert compare(old, new).cells[0].finding is Finding.IDENTICAL


def test_baselines_of_another_protocol_are_not_comparable(baseline):
    old = baseline("a.json", fidelity=section(kld()))
    new = baseline("b.json", fidelity=section(kld(), protocol=FIDELITY | {"text": "x"}))
    assert "text: abc before, x after" in compare(old, new).cells[0].evidence


def test_a_tier_is_a_cell_of_its_own(baseline, tmp_path):
    baseline("a/portable/m/Q4_0.json", fidelity=section(kld()))
    baseline("a/phone/m/Q4_0.json", speed=section(one("decode_speed", 80.0, "tokens/s")))
    found = compare(tmp_path / "a", tmp_path / "a")
    assert {row.id for row in found.cells} == {"m-Q4_0", "m-Q4_0 (phone)"}
    assert found.old.tier == "phone"


def test_two_files_of_one_cell_are_refused(baseline, tmp_path):
    baseline("a/portable/m/Q4_0.json", fidelity=section(kld()))
    baseline("a/portable/m/copy.json", fidelity=section(kld()))
    with pytest.raises(BadFileError, match="two files in it are baselines of m-Q4_0"):
        compare(tmp_path / "a", tmp_path / "a")


def test_other_files_beside_baselines_are_named(baseline, tmp_path):
    baseline("a/portable/m/Q4_0.json", fidelity=section(kld()))
    (tmp_path / "a" / "other.json").write_text('{"board": 1}')
    (tmp_path / "a" / "list.json").write_text("[1]")
    assert compare(tmp_path / "a", tmp_path / "a").notes == (
        "left out, for it is no baseline: list.json",
        "left out, for it is no baseline: other.json",
    )


# What cannot be read


def test_a_report_and_a_baseline_are_not_compared(baseline, tmp_path):
    path = tmp_path / "report.json"
    path.write_bytes(msgspec.json.encode(report(cell(kld()))))
    stored = baseline("a.json", fidelity=section(kld()))
    with pytest.raises(OptionError) as caught:
        compare(path, stored)
    assert str(caught.value) == (
        f"{path} is a report, {stored} is a set of baselines; give two reports or two baselines"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is neither a report nor a baseline"),
        (b"{", "it is neither a report nor a baseline"),
        (b"\xff", "it is neither a report nor a baseline"),
        (b"[" * 100_000, "it is neither a report nor a baseline"),
        (b"[]", "it is neither a report nor a baseline: no schema_version @ $"),
        (b"{}", "it is neither a report nor a baseline: no schema_version @ $"),
        (b'{"schema_version": 9, "generator": "x"}', "its schema_version is 9"),
        (b'{"schema_version": 1, "generator": "x"}', "it is no report"),
        (b'{"schema": 1}', "not a baseline: Object missing required field `model` @ $"),
        (b'{"schema": 9, "model": "m", "method": "x"}', "baseline schema 9 @ $.schema"),
        (
            b'{"schema": 1, "model": "m", "method": "x", "sections": {"size": 1}}',
            "not a baseline: Expected `object`, got `int` @ $.sections[...]",
        ),
    ],
)
def test_what_is_neither_is_one_sentence(tmp_path, content, said):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(BadFileError) as caught:
        compare(path, path)
    assert str(caught.value).startswith(f"{path}: {said}")
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(BadFileError, match="cannot read it: No such file"):
        compare(tmp_path / "x.json", tmp_path / "x.json")
    with pytest.raises(BadFileError, match="no baseline in this folder"):
        compare(tmp_path, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadFileError, match="no regular file"):
        compare(tmp_path / "pipe", tmp_path / "pipe")
    (tmp_path / "report.json").write_bytes(msgspec.json.encode(report(cell(kld()))))
    with pytest.raises(BadFileError, match=r"did you mean .*report\.json\?"):
        compare(tmp_path, tmp_path)


# Anything

NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.floats(-1, 1)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_figures_can_be_compared(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    names = st.sampled_from([*TOLERANCES, "my_own"])

    def drawn():
        made = []
        for name in data.draw(st.lists(names, unique=True, max_size=4)):
            samples = tuple(data.draw(st.lists(NUMBERS, max_size=5)))
            value = data.draw(st.none() | NUMBERS)
            error = data.draw(st.none() | NUMBERS.map(abs))
            count = max(len(samples), 1)
            made.append(
                one(name, value, n=count, error=error, samples=samples, sample_ids=IDS[:count])
            )
        return report(cell(*made))

    for name in ("old", "new"):
        (folder / name).write_bytes(msgspec.json.encode(drawn()))
    found = compare(folder / "old", folder / "new")
    again = msgspec.json.decode(msgspec.json.encode(found), type=Comparison)
    assert again == found
    assert status(found) in {Status.PASSED, Status.REGRESSED, Status.UNDECIDED}
    same = compare(folder / "new", folder / "new")
    assert status(same) is not Status.REGRESSED
