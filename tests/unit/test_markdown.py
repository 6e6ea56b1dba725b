"""Comparisons and reports in Markdown: what is shown, what is cut, and that nothing breaks out."""

from __future__ import annotations

import html
import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice.model.change import Change, Finding
from pytest_ondevice.model.comparison import (
    CellComparison,
    Comparison,
    Difference,
    Kind,
    Presence,
    Side,
)
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
from pytest_ondevice.render import markdown

MIB = 2**20
WORSE = Change(
    quantity="mean_kld",
    unit="nats",
    before=0.2479,
    after=0.2603,
    change=0.05,
    error=0.004,
    n=16,
    finding=Finding.WORSE,
    evidence="paired over 16 windows: beyond the tolerance of 5 %",
)
SAME = Change(
    quantity="file_size",
    unit="B",
    before=85 * MIB,
    after=85 * MIB,
    change=0.0,
    finding=Finding.IDENTICAL,
    evidence="identical",
)
HOSTILE = (
    "a|b `code` <script>alert(1)</script> <!-- @octocat #1 GH-2 [x](http://evil.example) "
    "![i](https://evil.example/i.png) www.evil.example **b** _i_ ~~s~~ \\| $x$ </details>\n\n# h\n"
    "| x | y |\u202eright\x1b[31m &lt;b&gt; &#64;octocat user@example.org ftp://evil.example"
)


def row(name="m-Q4_0", finding=Finding.WORSE, changes=(WORSE, SAME), **fields):
    decided_by = changes[0].quantity if finding is changes[0].finding is not SAME.finding else ""
    return CellComparison(
        **{
            "id": name,
            "presence": Presence.BOTH,
            "old_verdict": Verdict.PASS,
            "new_verdict": Verdict.PASS,
            "finding": finding,
            "decided_by": decided_by,
            "evidence": changes[0].evidence if changes else "",
            "changes": tuple(changes),
        }
        | fields
    )


def found(*cells, differences=(), notes=(), **fields):
    side = Side(path="old.json", generator="pytest-ondevice 0", created="2026", device="A")
    return Comparison(
        **{
            "schema_version": 1,
            "kind": Kind.REPORT,
            "old": side,
            "new": msgspec.structs.replace(side, path="new.json"),
            "finding": None,
            "differences": tuple(differences),
            "cells": cells,
            "notes": tuple(notes),
        }
        | fields
    )


def gone(name="m-Q8_0"):
    return CellComparison(id=name, presence=Presence.OLD, old_verdict=Verdict.PASS)


# In words


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([], "There are no cells to compare"),
        ([Finding.WORSE], "The only cell is worse"),
        ([Finding.IDENTICAL] * 2, "Both cells are identical"),
        ([Finding.IDENTICAL] * 3, "All 3 cells are identical"),
        (
            [Finding.IDENTICAL] * 5 + [Finding.BETTER, Finding.WORSE, None],
            "1 of 8 cells is worse, 1 not compared, 1 better, 5 identical",
        ),
        ([Finding.UNDECIDED] * 2 + [Finding.NO_WORSE], "2 of 3 cells are undecided, 1 no worse"),
    ],
)
def test_the_headline_says_the_worst_first(cells, said):
    assert markdown.headline(found(*(row(finding=finding) for finding in cells))) == said


def test_missing_and_new_cells_are_counted():
    new = CellComparison(id="n", presence=Presence.NEW)
    text = markdown.headline(found(row(), gone(), new))
    assert text == "1 of 3 cells is worse, 1 missing, 1 new"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (WORSE, "mean_kld 0.2479 -> 0.2603 nats (+5 % ± 0.4 %, n=16)"),
        (SAME, "file_size 85.00 MiB -> 85.00 MiB (identical)"),
        (
            msgspec.structs.replace(WORSE, relative=False, change=-0.0124),
            "mean_kld 0.2479 -> 0.2603 nats (-0.0124 ± 0.004, n=16)",
        ),
        (
            msgspec.structs.replace(WORSE, change=None, after=None),
            "mean_kld 0.2479 -> not finite",
        ),
        (msgspec.structs.replace(WORSE, error=None, n=1, change=31.4), "(+3.14e+03 %)"),
    ],
)
def test_a_change_is_written_with_error_and_n(change, said):
    assert markdown.moved(change).endswith(said)


# A comparison


def test_a_comparison_is_a_headline_a_table_and_folded_details():
    text = markdown.comparison(
        found(
            row("m-Q8_0", Finding.IDENTICAL, [SAME]),
            row(
                new_verdict=Verdict.FAIL,
                added=("rms_dp",),
                differences=[Difference(field="artifact", old="a" * 64, new="b" * 64)],
            ),
            gone("m-F16"),
            differences=[Difference(field="cpu", old="A", new="B")],
            notes=["it rained"],
        )
    )
    assert (
        text
        == """\
### 1 of 3 cells is worse, 1 missing, 1 identical

| cell | finding | what changed most | verdict |
|---|---|---|---|
| `m-Q4_0` | **worse** | mean_kld 0.2479 -> 0.2603 nats (+5 % ± 0.4 %, n=16) | pass -> fail |
| `m-F16` | **missing** | - | pass -> - |
| `m-Q8_0` | identical | identical | pass |

<details>
<summary>All quantities of 2 cells</summary>

**`m-Q4_0`**

| quantity | before | after | change | finding | why |
|---|--:|--:|--:|---|---|
| `mean_kld` | 0.2479 nats | 0.2603 nats | +5 % ± 0.4 %, n=16 | **worse** |\
 paired over 16 windows: beyond the tolerance of 5 % |

Identical: `file_size` 85.00 MiB

Only in the new one: `rms_dp`

**`m-Q8_0`**

Identical: `file_size` 85.00 MiB

</details>

- **old**: report old.json: pytest-ondevice 0, 2026, A
- **new**: report new.json: pytest-ondevice 0, 2026, A
- cpu: A -> B
- artifact of m-Q4_0: aaaaaaaaaaaaaaaa -> bbbbbbbbbbbbbbbb
- it rained
"""
    )


def test_more_that_is_as_bad_is_counted():
    other = msgspec.structs.replace(WORSE, quantity="rms_dp")
    text = markdown.comparison(found(row(changes=[WORSE, other])))
    assert "n=16); 1 more worse |" in text


def test_advisory_changes_are_in_the_details():
    speed = Change(
        quantity="decode_speed",
        unit="tokens/s",
        before=80.0,
        after=40.0,
        change=-0.5,
        finding=Finding.UNDECIDED,
        evidence="advisory: measured in different runs",
    )
    text = markdown.comparison(found(row(advisory=[speed])))
    assert "| `decode_speed` | 80 tokens/s | 40 tokens/s | -50 % | undecided | advisory:" in text


def test_cells_that_differ_alike_share_a_line():
    same = [Difference(field="fidelity protocol, n_ctx", old="512", new="1024")]
    cells = [row(f"m-{number}", differences=same) for number in range(5)]
    text = markdown.comparison(found(*cells))
    assert "- fidelity protocol, n_ctx of m-0, m-1, m-2 and 2 more: 512 -> 1024\n" in text
    assert text.count("n_ctx") == 1


def test_a_terminal_shows_the_same_in_columns():
    lines = markdown.lines(found(row(), gone(), notes=["it \x1b[31mrained"]))
    assert lines[0] == "old  report old.json: pytest-ondevice 0, 2026, A"
    assert lines[3].split() == ["cell", "finding", "what", "changed", "most", "verdict"]
    assert lines[4].startswith("m-Q4_0  worse    mean_kld 0.2479 -> 0.2603 nats (+5 %")
    assert lines[5].split() == ["m-Q8_0", "missing", "-", "pass", "->", "-"]
    assert "m-Q4_0: paired over 16 windows: beyond the tolerance of 5 %" in lines
    assert lines[-2:] == ["it [31mrained", "1 of 2 cells is worse, 1 missing"]


# One report


def reported(*cells, checks=(), notes=(), complete=True, laws=()):
    return Report(
        schema_version=1,
        generator="pytest-ondevice 0",
        created="2026-09-01T00:00:00+00:00",
        complete=complete,
        device=Device(
            system="Linux", machine="x86_64", cpu="A", cores=2, memory=1, python="3", libc="g"
        ),
        tier="desk",
        board="one",
        runtime=Runtime(name="llama.cpp", version="1", digest="d"),
        settings={},
        cells=cells,
        checks=tuple(checks),
        laws=tuple(laws),
        protocols={},
        notes=tuple(notes),
    )


def cell(name="m-Q4_0", verdict=Verdict.PASS, **values):
    made = {
        quantity: Measurement(quantity=quantity, unit="", value=value, error=error)
        for quantity, (value, error) in values.items()
    }
    artifact = ArtifactFacts(
        file="m.gguf",
        sha256="a" * 64,
        size=85 * MIB,
        origin="quantized",
        architecture="llama",
        weights=8000,
        types={"Q4_0": TypeShare(tensors=1, weights=8000, bytes=5353)},
    )
    return CellReport(
        id=name,
        model="m",
        method="Q4_0",
        reference=False,
        verdict=verdict,
        artifact=artifact if values else None,
        measurements=made,
    )


def test_a_report_is_the_gates_table_and_what_needs_a_reader():
    full = cell(
        mean_kld=(0.248, 0.021),
        ln_ppl_ratio=(0.1772, 0.01),
        peak_memory=(130.6 * MIB, None),
        decode_speed=(121.4, None),
        verdict=Verdict.FAIL,
    )
    checks = [
        CheckResult(
            check="fidelity.kld",
            cell="m-Q4_0",
            verdict=Verdict.FAIL,
            outcome="failed",
            message="mean_kld | is above\n  measured 1",
            change=WORSE,
        ),
        CheckResult(check="size", cell="m-Q4_0", verdict=Verdict.PASS, change=SAME),
        CheckResult(
            check="speed", cell="m-Q8_0", verdict=Verdict.FAIL, outcome="xfailed", waived="slow"
        ),
        CheckResult(
            check="peak", cell="m-Q8_0", verdict=Verdict.BLOCKED, outcome="skipped", message="died"
        ),
    ]
    text = markdown.summary(
        reported(full, cell("m-Q8_0", None), checks=checks, notes=["it rained"], complete=False)
    )
    assert (
        text
        == """\
### 2 cells: 1 fail, 1 not run; the run was interrupted before its end

Measured on A, llama.cpp 1, pytest-ondevice 0, 2026-09-01T00:00:00+00:00

| cell | BPW | MiB | KLD (nats) | PPL ratio | peak MiB | t/s | verdict |
|---|--:|--:|--:|--:|--:|--:|---|
| `m-Q4_0` | 5.35 | 85.0 | 0.2480 ± 0.0210 | 1.1939 | 130.6 | 121 | **fail** |
| `m-Q8_0` | - | - | - | - | - | - | not run |

**Failed**

- `fidelity.kld` of `m-Q4_0`: fail: mean_kld &#124; is above

**Blocked**

- `peak` of `m-Q8_0`: blocked: died

**Against the predecessor**

- `fidelity.kld` of `m-Q4_0`: mean_kld 0.2479 -> 0.2603 nats (+5 % ± 0.4 %, n=16): worse;\
 paired over 16 windows: beyond the tolerance of 5 %

**Waived**

- `speed` of `m-Q8_0`: slow

**Notes**

- it rained
"""
    )


def task(name="general", **fields):
    return TaskReport(
        **{
            "name": name,
            "digest": "0" * 16,
            "normalisation": "bytes",
            "n": 438,
            "right": 119,
            "accuracy": 119 / 438,
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


def test_a_summary_lists_what_was_answered():
    flipped = {"lost": 31, "gained": 9, "mcnemar_p": 0.000682, "detectable": None}
    reference = msgspec.structs.replace(cell("m-F16"), tasks=(task(), task("mine", right=0)))
    quantized = msgspec.structs.replace(cell("m-Q4_0"), tasks=(task(right=97, **flipped),))
    text = markdown.summary(reported(reference, quantized, cell("m-Q8_0")))
    assert (
        """
**Questions**

- `m-F16`, general: 119 of 438 right (0.232 to 0.315)
- `m-F16`, mine: 0 of 438 right (0.232 to 0.315)
- `m-Q4_0`, general: 97 of 438 right (0.232 to 0.315), 31 lost and 9 gained, p 0.00068
"""
        in text
    )


def test_a_summary_without_questions_has_no_list_of_them():
    assert "Questions" not in markdown.summary(reported(cell()))


def test_no_flips_are_told_too():
    same = task(lost=0, gained=0, mcnemar_p=1.0)
    made = reported(msgspec.structs.replace(cell(), tasks=(same,)))
    assert ", 0 lost and 0 gained, p 1\n" in markdown.summary(made)


def test_figures_beyond_all_measure_stay_short():
    wild = cell(mean_kld=(1e300, 1e300), ln_ppl_ratio=(800.0, None), peak_memory=(None, None))
    (line,) = (line for line in markdown.summary(reported(wild)).split("\n") if "Q4_0" in line)
    assert "1.00e+300 ± 1.00e+300 | > 1e8 | not finite" in line


def test_what_became_of_a_cell_stands_beside_its_verdict():
    better = msgspec.structs.replace(cell(), finding=Finding.BETTER)
    assert "| pass, better |" in markdown.summary(reported(better))


# What is foreign


def assert_tame(text, tags=()):
    """Nothing foreign is markup: no tag but ours, no link, no mention, tables of equal width."""
    for tag in tags:
        text = text.replace(tag, "")
    outside = re.sub(r"`[^`\n]*`", "", text)
    assert "<" not in outside
    # Names, issues and addresses are linked in the finished text, entities and all.
    seen = html.unescape(outside)
    assert not re.search(r"@[\w-]", seen)
    assert not re.search(r"#\d", seen)
    assert not re.search(r"(?i)\bgh-\d", seen)
    assert "://" not in seen
    assert not re.search(r"(?i)\bwww\.", seen)
    assert not set("[]$~\\!") & set(outside)
    assert "`" not in outside
    assert "\x1b" not in text
    assert "\u202e" not in text
    width = 0
    for line in text.split("\n"):
        if line.startswith("|"):
            width = width or line.count("|")
            assert line.count("|") == width, line
        else:
            width = 0
            assert "|" not in line


OURS = ("<details>", "</details>", "<summary>", "</summary>")


@pytest.mark.parametrize("text", [HOSTILE, "@octocat", "#1", "a_b_ _c_", "`", "", "\ud800", "-->"])
def test_a_hostile_comparison_is_tame(text):
    change = msgspec.structs.replace(WORSE, quantity=text, unit=text, evidence=text)
    differences = [Difference(field=text, old=text, new=text)]
    side = Side(path=text, generator=text, created=text, device=text, tier=text, runtime=text)
    hostile = row(
        text, changes=[change], advisory=[change, SAME], added=(text,), differences=differences
    )
    page = markdown.comparison(
        found(hostile, differences=differences, notes=[text], old=side, new=side)
    )
    assert_tame(page, OURS)
    for tag in OURS:
        assert page.count(tag) == 1
    for line in markdown.lines(found(hostile, notes=[text], old=side)):
        assert line.isprintable()


@pytest.mark.parametrize("text", [HOSTILE, "@octocat", "#1", "`", ""])
def test_a_hostile_report_is_tame(text):
    change = msgspec.structs.replace(WORSE, quantity=text, unit=text, evidence=text)
    checks = [
        CheckResult(
            check=text,
            cell=text,
            verdict=Verdict.FAIL,
            outcome="failed",
            message=text,
            change=change,
            waived=text or "x",
        )
    ]
    law = LawReport(
        law=text, subject=text, verdict=Verdict.FAIL, message=text, anomalies=(text, text)
    )
    quizzed = msgspec.structs.replace(cell(text), tasks=(task(text),))
    made = reported(quizzed, checks=checks, notes=[text], laws=[law])
    made = msgspec.structs.replace(
        made,
        generator=text,
        created=text,
        runtime=Runtime(name=text, version=text, digest=text),
        device=msgspec.structs.replace(made.device, cpu=text),
    )
    assert_tame(markdown.summary(made))


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text("@#|`<>_*[]()!\\&;:/.-wghGH19 \n", max_size=30))
def test_any_text_is_tame(text):
    assert_tame(markdown.escape(text))
    assert_tame(markdown.code(text))
    assert not re.search(r"(?<![^\W_])_|_(?![^\W_])", markdown.escape(text))


def test_plain_names_are_set_in_code():
    assert markdown.code("smollm2-135m-Q4_K_M") == "`smollm2-135m-Q4_K_M`"
    assert markdown.code("a|b") == "a&#124;b"
    assert markdown.escape("&lt;") == "&#38;lt;"
    assert markdown.escape("x" * 1000) == "x" * 399 + "…"
    assert markdown.escape("mean_kld 5 @ 6 -> 7") == "mean_kld 5 @ 6 -> 7"


# Laws


def law(name, verdict=Verdict.PASS, message="it holds", subject="m", **fields):
    return LawReport(law=name, subject=subject, verdict=verdict, message=message, **fields)


def test_a_summary_lists_what_was_found_of_each_law():
    laws = [
        law("memory", message="peak = 1.003 x weights + 44.6 MiB"),
        law("kv_cache", Verdict.FAIL, "it grows twice", "m+kv-q8_0"),
        # What could not be held says nothing of the model.
        law("power", Verdict.UNSUPPORTED, "no meter"),
    ]
    page = markdown.summary(reported(cell(), laws=laws))
    start = page.index("**Laws**")
    assert page[start:].split("\n\n")[1].splitlines() == [
        "- `memory` of m: pass: peak = 1.003 x weights + 44.6 MiB",
        "- `kv_cache` of m+kv-q8_0: fail: it grows twice",
    ]
    assert "no meter" not in page


def test_a_summary_without_laws_has_no_list_of_them():
    for laws in ([], [law("power", Verdict.UNSUPPORTED, "no meter")]):
        assert "Laws" not in markdown.summary(reported(cell(), laws=laws))


def test_a_law_has_the_verdict_that_the_run_came_to():
    # Held against disturbed figures it fails, and that decides nothing.
    checks = [CheckResult(check="laws.memory", cell="m", verdict=Verdict.INVALID, message="x")]
    page = markdown.summary(
        reported(cell(), checks=checks, laws=[law("memory", Verdict.FAIL, "a leak")])
    )
    assert "- `memory` of m: invalid: a leak" in page.splitlines()


@pytest.mark.parametrize("text", ["m", HOSTILE, "|" * 500])
def test_many_laws_are_cut_and_counted(text):
    laws = [law(f"{text}{count}", message=text * 3, subject=text) for count in range(2000)]
    page = markdown.summary(reported(cell(), laws=laws, notes=["it rained"]))
    assert len(page.encode()) <= markdown.LIMIT
    assert re.search(r"- left out, for the comment would be too long: \d+ laws", page)
    assert "- it rained\n" in page
    assert_tame(page)


# Length


@pytest.mark.parametrize("text", ["m", HOSTILE, "|" * 500, "\U0001f600" * 300])
@pytest.mark.parametrize("count", [1, 50, 400])
def test_a_comment_is_never_too_long(text, count):
    change = msgspec.structs.replace(WORSE, evidence=text)
    differences = tuple(
        Difference(field=f"{text}{number}", old=text, new=text) for number in range(count)
    )
    cells = [
        row(f"{number}{text}", changes=[change] * 30, differences=differences[:3])
        for number in range(count)
    ]
    notes = [text] * count
    page = markdown.comparison(found(*cells, differences=differences, notes=notes))
    assert len(page.encode()) <= markdown.LIMIT
    assert page.count("<details>") == page.count("</details>") == 1
    assert_tame(page, OURS)
    if count == 400 and len(text) > 1:
        assert "Left out, for the comment would be too long" in page
        assert "left out, for the comment would be too long" in page
    checks = [
        CheckResult(
            check=text,
            cell=text,
            verdict=Verdict.FAIL,
            outcome="failed",
            message=text,
            waived=text,
            change=change,
        )
    ] * count
    page = markdown.summary(
        reported(*(cell(f"{text}{number}") for number in range(count)), checks=checks, notes=notes)
    )
    assert len(page.encode()) <= markdown.LIMIT
    assert_tame(page)


def test_details_are_cut_before_the_table():
    cells = [row(f"m-{number}", changes=[WORSE] * 20) for number in range(60)]
    page = markdown.comparison(found(*cells, notes=["it rained"]))
    assert len(page.encode()) <= markdown.LIMIT
    table, _, details = page.partition("<details>")
    assert all(f"| `m-{number}` |" in table for number in range(60))
    shown = details.count("**`m-")
    assert 0 < shown < 60
    assert f"Left out, for the comment would be too long: quantities of {60 - shown} cells." in page
    assert "- it rained\n" in page
