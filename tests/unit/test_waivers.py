"""Waivers: what a file of them may say, which failures they cover, and for how long."""

from __future__ import annotations

import datetime

import pytest

from pytest_ondevice.errors import BadFileError
from pytest_ondevice.model.report import CheckResult
from pytest_ondevice.model.verdict import Verdict
from pytest_ondevice.waivers import Waiver, Waivers

TODAY = datetime.date(2026, 9, 1)
DAY = datetime.timedelta(days=1)

GOOD = {
    "cell": '"m-Q4_0"',
    "check": '"fidelity.kld"',
    "reason": '"known: issue 7"',
    "expires": "2026-12-31",
}


@pytest.fixture
def read(tmp_path):
    """Read a file of waivers with this content."""

    def make(content):
        path = tmp_path / "waivers.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return Waivers.read(path)

    return make


@pytest.fixture
def refused(read, tmp_path):
    """Read it; return the problem that its only sentence ends in."""

    def make(content):
        with pytest.raises(BadFileError) as caught:
            read(content)
        said = str(caught.value)
        assert "\n" not in said
        assert said.startswith(f"{tmp_path / 'waivers.toml'}: ")
        return said.removeprefix(f"{tmp_path / 'waivers.toml'}: ")

    return make


def toml(**fields):
    """Write one waiver; a field of None is left out."""
    given = {name: text for name, text in (GOOD | fields).items() if text is not None}
    return "[[waiver]]\n" + "".join(f"{name} = {text}\n" for name, text in given.items())


def waiver(cell="*", check="*", expires=TODAY, reason="known"):
    return Waiver(cell=cell, check=check, reason=reason, expires=expires)


# Reading


def test_a_file_of_waivers_is_read(read):
    found = read(f"# ours\n{toml()}{toml(cell=chr(39) + '*-Q2_K' + chr(39))}")
    first = found.find("fidelity.kld", "m-Q4_0")
    assert first == Waiver(
        cell="m-Q4_0",
        check="fidelity.kld",
        reason="known: issue 7",
        expires=datetime.date(2026, 12, 31),
    )
    assert str(first) == "fidelity.kld of m-Q4_0"
    assert found.find("fidelity.kld", "other-Q2_K") is not None


@pytest.mark.parametrize("content", ["", "\n# nothing yet\n", "waiver = []\n"])
def test_no_waivers_are_waivers_too(read, content):
    assert read(content).find("fidelity.kld", "m-Q4_0") is None
    assert read(content).remarks([], complete=True) == []


@pytest.mark.parametrize("name", GOOD)
def test_a_missing_field_is_named_with_its_place(refused, name):
    assert refused(toml() + toml(**{name: None})) == (
        f"it is no file of waivers: Object missing required field `{name}` - at `$.waiver[1]`"
    )


@pytest.mark.parametrize("text", ['""', '"  "', '"\\n\\t"'])
def test_an_empty_reason_is_refused(refused, text):
    assert refused(toml() + toml(reason=text)) == (
        "it is no file of waivers: the reason is empty; say why the failure is accepted"
        " - at `$.waiver[1]`"
    )


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("2026-12-31T00:00:00", "datetime"),
        ("2026-12-31 23:59:59Z", "datetime"),
        ("23:59:59", "time"),
        ('"2026-12-31"', "str"),
        ('"never"', "str"),
        ("20261231", "int"),
        ("true", "bool"),
    ],
)
def test_a_day_is_a_date_of_toml(refused, text, kind):
    assert refused(toml(expires=text)) == (
        f"it is no file of waivers: Expected `date`, got `{kind}` - at `$.waiver[0].expires`"
    )


@pytest.mark.parametrize("name", ["cell", "check", "reason"])
def test_a_text_is_a_text(refused, name):
    assert refused(toml(**{name: "7"})) == (
        f"it is no file of waivers: Expected `str`, got `int` - at `$.waiver[0].{name}`"
    )


def test_an_unknown_field_is_a_mistake(refused):
    assert refused(toml() + toml(expire="2026-12-31")) == (
        "it is no file of waivers: Object contains unknown field `expire` - at `$.waiver[1]`"
    )
    assert "unknown field `waivers`" in refused(toml().replace("waiver", "waivers"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("waiver = 1", "Expected `array`, got `int` - at `$.waiver`"),
        ("[waiver]\ncell = 'm'", "Expected `array`, got `object` - at `$.waiver`"),
        ("waiver = ['m']", "Expected `object`, got `str` - at `$.waiver[0]`"),
        ("expires 2026", "Expected '=' after a key"),
        ("[[waiver]]\nexpires = 2026-13-01", "(at line 2, column "),
        ("[[waiver]]\nexpires = 2026-02-30", "line 2"),
        ("cell = ", "Invalid value"),
        ("[" * 3000, "(at line 1, column "),
        ("a = " + "[" * 5000, "it is nested too deeply"),
        ('{"waiver": []}', "(at line 1, column 1)"),
    ],
)
def test_what_is_no_file_of_waivers_is_one_sentence(refused, content, said):
    problem = refused(content)
    assert problem.startswith("it is no file of waivers: ")
    assert said in problem


def test_a_file_is_utf_8(refused, read):
    assert read(toml(reason='"früher: 家"')).find("fidelity.kld", "m-Q4_0").reason == "früher: 家"
    assert refused(toml(reason='"früher"').encode("latin-1")).startswith("it is not UTF-8 (byte ")


def test_a_file_that_cannot_be_read(tmp_path):
    for path, why in (tmp_path / "gone", "No such file or directory"), (tmp_path, "Is a directory"):
        with pytest.raises(BadFileError) as caught:
            Waivers.read(path)
        assert str(caught.value) == f"{path}: cannot read it: {why}"


# Matching


@pytest.mark.parametrize(
    ("cell", "check", "covers"),
    [
        ("m-Q4_0", "fidelity.kld", True),
        ("*", "*", True),
        ("m-*", "*", True),
        ("*-Q4_0", "fidelity.*", True),
        ("m-Q?_0", "fidelity.k?d", True),
        ("m-Q4", "fidelity.kld", False),
        ("M-Q4_0", "fidelity.kld", False),
        ("m-q4_0", "*", False),
        ("m-Q4_0", "fidelity", False),
        ("m-Q4_0", "size.*", False),
        ("other-*", "*", False),
        ("", "", False),
        # Only the two wildcards are any.
        ("m-Q[4]_0", "*", False),
        ("m-Q[!5]_0", "*", False),
    ],
)
def test_wildcards(cell, check, covers):
    known = waiver(cell, check)
    assert known.covers("fidelity.kld", "m-Q4_0") is covers
    found = Waivers([known], TODAY).find("fidelity.kld", "m-Q4_0")
    assert found is (known if covers else None)


def test_a_bracket_stands_for_itself():
    assert waiver(check="tests/test_[a].py::*").covers("tests/test_[a].py::test_x", "m-Q4_0")
    assert not waiver(check="tests/test_[a].py::*").covers("tests/test_a.py::test_x", "m-Q4_0")


def test_the_first_that_counts_is_found():
    old = waiver(expires=TODAY - DAY, reason="old")
    first, second = waiver(reason="first"), waiver(reason="second")
    found = Waivers([old, first, second], TODAY)
    assert found.find("c", "m") is first
    assert found.expired("c", "m") is old
    assert Waivers([first], TODAY).expired("c", "m") is None


# Days


def test_the_last_day_counts_and_the_next_does_not():
    known = waiver()
    for day, counts in (TODAY - DAY, True), (TODAY, True), (TODAY + DAY, False):
        waivers = Waivers([known], day)
        assert (waivers.find("c", "m") is known) is counts
        assert (waivers.expired("c", "m") is None) is counts


def test_the_day_is_that_of_utc(monkeypatch):
    asked = []

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            asked.append(tz)
            return cls(2026, 9, 1, 23, 59, tzinfo=tz)

    monkeypatch.setattr(datetime, "datetime", Clock)
    assert Waivers([waiver()]).find("c", "m") is not None
    assert asked == [datetime.UTC]


# Remarks


def result(check="c", cell="m", outcome="passed", verdict=None, waived=""):
    verdicts = {"passed": Verdict.PASS, "skipped": Verdict.UNSUPPORTED}
    return CheckResult(
        check=check,
        cell=cell,
        verdict=verdict or verdicts.get(outcome, Verdict.FAIL),
        outcome=outcome,
        waived=waived,
    )


WAIVED = result(outcome="xfailed", waived="known (waived until 2026-09-01)")
NOT_NEEDED = ["waiver no longer needed, nothing failed: c of m*"]
NOTHING = ["waiver matches nothing in this run: c of m*"]
EXPIRED = ["waiver expired on 2026-08-31: c of m*"]


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([], NOTHING),
        ([result(cell="other")], NOTHING),
        ([result(check="d")], NOTHING),
        ([result()], NOT_NEEDED),
        ([result(), result(cell="m2")], NOT_NEEDED),
        ([WAIVED], []),
        ([result(cell="m2"), WAIVED], []),
        # It was not waived, but it did fail: pytest --runxfail, or a failure that none can cover.
        ([result(outcome="failed")], []),
        ([result(), result(cell="m2", outcome="failed")], []),
        # Nobody knows.
        ([result(outcome="skipped")], []),
        ([result(outcome="skipped", verdict=Verdict.BLOCKED)], []),
        ([result(), result(cell="m2", outcome="skipped", verdict=Verdict.BLOCKED)], []),
    ],
)
def test_remarks(results, said):
    waivers = Waivers([waiver("m*", "c")], TODAY)
    assert waivers.remarks(results, complete=True) == said
    # What it is for may not have run.
    assert waivers.remarks(results, complete=False) == []


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("results", [[], [result()], [result(outcome="failed")]])
def test_an_expired_waiver_is_always_told(results, complete):
    waivers = Waivers([waiver("m*", "c", TODAY - DAY)], TODAY)
    assert waivers.remarks(results, complete=complete) == EXPIRED


def test_each_waiver_has_its_own_remark():
    waivers = Waivers([waiver("m", "c", TODAY - DAY), waiver("x", "c"), waiver("m", "c")], TODAY)
    assert waivers.remarks([WAIVED], complete=True) == [
        "waiver expired on 2026-08-31: c of m",
        "waiver matches nothing in this run: c of x",
    ]
