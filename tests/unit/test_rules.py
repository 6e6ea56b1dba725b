"""A user's own bounds: what a file of them may say, and which rows apply."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pytest_ondevice.errors import BadFileError, OnDeviceError
from pytest_ondevice.model.quantity import QUANTITIES
from pytest_ondevice.rules import (
    SIGNED,
    Budget,
    Judged,
    Rules,
    Tolerance,
    read_amount,
    scales_of,
)

PAGE = Path(__file__).parents[2] / "docs" / "bounds.md"
TOLERANCE = {"check": '"fidelity.kld"', "absolute": "0.01", "reason": '"known: issue 7"'}
BUDGET = {"quantity": '"peak_memory"', "at_most": '"1.5 GiB"'}
UNITS = sorted({one.unit for one in QUANTITIES.values()})
AMOUNTS = [(unit, written) for unit in UNITS for written in scales_of(unit)]


@pytest.fixture
def read(tmp_path):
    """Read a file of bounds with this content."""

    def make(content):
        path = tmp_path / "bounds.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return Rules.read(path)

    return make


@pytest.fixture
def refused(read, tmp_path):
    """Read it; return the problem that its only sentence ends in."""

    def make(content):
        with pytest.raises(BadFileError) as caught:
            read(content)
        said = str(caught.value)
        start = f"{tmp_path / 'bounds.toml'}: it is no file of bounds: "
        assert "\n" not in said
        assert said.startswith(start)
        return said.removeprefix(start)

    return make


def row(kind, good, fields):
    given = {name: text for name, text in (good | fields).items() if text is not None}
    return f"[[{kind}]]\n" + "".join(f"{name} = {text}\n" for name, text in given.items())


def tolerance(**fields):
    """Write one tolerance; a field of None is left out."""
    return row("tolerance", TOLERANCE, fields)


def budget(**fields):
    """Write one budget; a field of None is left out."""
    return row("budget", BUDGET, fields)


# Reading


def test_a_file_of_bounds_is_read(read):
    rules = read(
        "[[tolerance]]\n"
        "check = 'fidelity.*'\nmodel = 'smol*'\nmethod = 'Q2_?'\ndevice = 'pi-*'\n"
        "relative = '10 %'\nabsolute = '3 MiB'\nnoise = 3\nreason = 'old board'\n"
        "[[budget]]\n"
        "quantity = 'decode_speed'\nmodel = 'smol*'\nmethod = 'Q2_?'\ndevice = 'pi-*'\n"
        "at_most = 900\nat_least = '8 tokens/s'\nreason = 'a reader reads 8'\n"
    )
    patterns = {"model": "smol*", "method": "Q2_?", "device": "pi-*"}
    assert rules.tolerance("fidelity.kld", "smollm2", "Q2_K", "pi-5") == Tolerance(
        relative=0.1,
        absolute=3 * 2.0**20,
        noise=3.0,
        reason="old board",
        place="bounds.toml $.tolerance[0]",
        unit="B",
        check="fidelity.*",
        **patterns,
    )
    assert rules.budgets("smollm2", "Q2_K", "pi-5") == (
        Budget(
            quantity="decode_speed",
            at_most=900.0,
            at_least=8.0,
            reason="a reader reads 8",
            place="bounds.toml $.budget[0]",
            **patterns,
        ),
    )


def test_what_may_be_left_out(read):
    rules = read(tolerance() + budget())
    assert rules.tolerance("fidelity.kld", "any", "any", "any") == Tolerance(
        relative=None,
        absolute=0.01,
        noise=None,
        reason="known: issue 7",
        place="bounds.toml $.tolerance[0]",
        check="fidelity.kld",
    )
    (found,) = rules.budgets("any", "any", "any")
    assert found == Budget(
        quantity="peak_memory",
        at_most=1.5 * 2**30,
        at_least=None,
        reason="",
        place="bounds.toml $.budget[0]",
    )


@pytest.mark.parametrize("content", ["", "# nothing yet\n", "tolerance = []\nbudget = []\n"])
def test_no_bounds_are_bounds_too(read, content):
    rules = read(content)
    assert rules.tolerance("fidelity.kld", "m", "Q4_0", "d") is None
    assert rules.budgets("m", "Q4_0", "d") == ()
    assert rules.unused([Judged("fidelity.kld", "mean_kld", "m", "Q4_0", "d")]) == []


@pytest.mark.parametrize("name", ["check", "reason"])
def test_a_tolerance_says_what_it_is_for_and_why(refused, name):
    said = f"'{name}' is missing - at `$.tolerance[1]`"
    assert refused(tolerance() + tolerance(**{name: None})) == said


def test_a_budget_says_of_what(refused):
    said = "'quantity' is missing - at `$.budget[1]`"
    assert refused(budget() + budget(quantity=None)) == said


@pytest.mark.parametrize("name", ["check", "model", "method", "device", "reason"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("7", "expected a text, got a number"),
        ("false", "expected a text, got a boolean"),
        ("2026-12-31", "expected a text, got a date or time"),
        ("['*']", "expected a text, got an array"),
        ('""', "the text is empty"),
        ('" \\n"', "the text is empty"),
    ],
)
def test_a_text_is_a_text(refused, name, text, said):
    assert refused(tolerance(**{name: text})) == f"{said} - at `$.tolerance[0].{name}`"
    if name != "check":
        assert refused(budget(**{name: text})) == f"{said} - at `$.budget[0].{name}`"


def test_a_row_has_a_bound(refused, read):
    said = "it has none of relative, absolute, noise - at `$.tolerance[0]`"
    assert refused(tolerance(absolute=None)) == said
    assert refused(budget(at_most=None)) == "it has none of at_most, at_least - at `$.budget[0]`"
    for name in "relative", "absolute", "noise":
        found = read(tolerance(absolute=None) + f"{name} = 0\n").tolerance(
            "fidelity.kld", "m", "Q4_0", "d"
        )
        assert getattr(found, name) == 0


def test_an_unknown_key_is_a_mistake(refused):
    assert refused(tolerance() + tolerance(relativ="0.1")) == (
        "unknown key 'relativ'; did you mean 'relative'? - at `$.tolerance[1]`"
    )
    # What is right in one kind of row is not in the other.
    assert "unknown key 'at_most'" in refused(tolerance(at_most="1"))
    assert "unknown key 'relative'" in refused(budget(relative="0.1"))
    assert "unknown key 'check'" in refused(budget(check="'fidelity.kld'"))
    assert refused(tolerance().replace("tolerance", "tolerances")) == (
        "unknown key 'tolerances'; did you mean 'tolerance'? - at `$`"
    )
    key = "a\\n" * 500
    long = refused(tolerance(**{f'"{key}"': "1"}))
    assert long.startswith("unknown key 'a\\na\\na")
    assert len(long) < 300


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("peak_memry", "unknown quantity 'peak_memry'; did you mean 'peak_memory'?"),
        ("Peak_Memory", "unknown quantity 'Peak_Memory'; did you mean 'peak_memory'?"),
        ("*", "unknown quantity '*'; there are effective_bpw, "),
    ],
)
def test_an_unknown_quantity(refused, given, said):
    problem = refused(budget() + budget(quantity=f"'{given}'"))
    assert problem.startswith(said)
    assert problem.endswith(" - at `$.budget[1].quantity`")


BYTES = "B, KB, MB, GB, KiB, MiB, GiB"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("relative", "-0.1", "-0.1 is negative"),
        ("relative", "'-10 %'", "'-10 %' is negative"),
        ("relative", "nan", "nan is no finite number"),
        ("relative", "'10 %%'", "wrong unit in '10 %%'; did you mean '%'?"),
        ("relative", "'10 MiB'", "wrong unit in '10 MiB'; there are %"),
        ("relative", "'0.1'", "'0.1' has no unit; add one (%)"),
        ("relative", "'ten %'", "'ten %' is no number with a unit, as in '5 %'"),
        ("relative", "true", "expected a number, or a text with a unit (%), got a boolean"),
        ("relative", "5", "5 is 500 %; write it as '500 %' if so"),
        ("relative", "1.5", "1.5 is 150 %; write it as '150 %' if so"),
        ("absolute", "-1", "-1 is negative"),
        ("absolute", "'-3 MiB'", "'-3 MiB' is negative"),
        ("absolute", "inf", "inf is no finite number"),
        ("absolute", "-inf", "-inf is no finite number"),
        ("absolute", "'1e308 GiB'", "'1e308 GiB' is no finite number"),
        ("absolute", "'1e999 s'", "'1e999 s' is no finite number"),
        ("absolute", "'10 %'", "wrong unit in '10 %'; there are B"),
        ("absolute", "'3 mib'", "wrong unit in '3 mib'; did you mean 'MiB'?"),
        ("absolute", "'nan MiB'", "'nan MiB' is no number with a unit"),
        ("absolute", "'1,5 MiB'", "'1,5 MiB' is no number with a unit"),
        ("absolute", "'1_0 MiB'", "'1_0 MiB' is no number with a unit"),
        ("absolute", "'1 000 MiB'", "'1 000 MiB' is no number with a unit"),
        ("absolute", "'٣ MiB'", "'٣ MiB' is no number with a unit"),
        ("absolute", "'0x10 B'", "'0x10 B' is no number with a unit"),
        ("absolute", "''", "'' is no number with a unit"),
        ("absolute", "'3 MiB and more'", "'3 MiB and more' is no number with a unit"),
        ("absolute", '"3\\nMiB\\u0000"', "wrong unit in '3\\nMiB\\x00'; did you mean 'MiB'?"),
        ("absolute", "2026-12-31", "expected a number, or a text with a unit (B, "),
        ("absolute", "[3]", "expected a number, or a text with a unit (B, "),
        ("noise", "'3'", "expected a number, got a text"),
        ("noise", "false", "expected a number, got a boolean"),
        ("noise", "{}", "expected a number, got a table"),
        ("noise", "-1", "-1 is negative"),
        ("noise", f"1{'0' * 400}", "the integer is no finite number"),
        ("noise", f"-1{'0' * 100}", "the integer is negative"),
    ],
)
def test_an_amount_of_a_tolerance_that_is_none(refused, name, text, said):
    problem = refused(tolerance() + tolerance(**{name: text}))
    assert problem.startswith(said)
    assert problem.endswith(f" - at `$.tolerance[1].{name}`")


@pytest.mark.parametrize(
    ("quantity", "text", "said"),
    [
        ("peak_memory", "'5 ms'", f"wrong unit in '5 ms'; there are {BYTES}"),
        ("peak_memory", "'5 G'", "wrong unit in '5 G'; did you mean GB or GiB?"),
        ("peak_memory", "'5'", f"'5' has no unit; add one ({BYTES})"),
        ("peak_memory", "true", f"expected a number, or a text with a unit ({BYTES}), got a bool"),
        ("peak_memory", "-1", "-1 is negative"),
        ("peak_memory", "nan", "nan is no finite number"),
        ("ttft", "'5 MiB'", "wrong unit in '5 MiB'; there are s, ms"),
        ("ttft", "'5 tokens/s'", "wrong unit in '5 tokens/s'; there are s, ms"),
        ("decode_speed", "'8 s'", "wrong unit in '8 s'; there are tokens/s"),
        ("decode_speed", "'8 tokens'", "wrong unit in '8 tokens'; did you mean 'tokens/s'?"),
        ("same_top", "'98 %'", "expected a number, got a text"),
        ("ln_ppl_ratio", "-inf", "-inf is no finite number"),
        ("ln_ppl", "-1.0", "-1.0 is negative"),
    ],
)
@pytest.mark.parametrize("name", ["at_most", "at_least"])
def test_a_limit_of_a_budget_that_is_none(refused, quantity, text, said, name):
    problem = refused(
        budget() + budget(**{"quantity": f"'{quantity}'", "at_most": None, name: text})
    )
    assert problem.startswith(said)
    assert problem.endswith(f" - at `$.budget[1].{name}`")


def test_less_than_nothing_where_it_means_something(read):
    assert set(QUANTITIES) >= SIGNED
    rules = read(budget(quantity="'ln_ppl_ratio'", at_most="-0.01", at_least="-0.5"))
    (found,) = rules.budgets("m", "Q4_0", "d")
    assert (found.at_least, found.at_most) == (-0.5, -0.01)


def test_the_limits_of_a_budget_leave_something(refused, read):
    assert refused(budget(at_least="'2 GiB'")) == (
        "at_least (2.14748e+09) is above at_most (1.61061e+09) - at `$.budget[0]`"
    )
    (found,) = read(budget(at_least="'1.5 GiB'")).budgets("m", "Q4_0", "d")
    assert found.at_least == found.at_most


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("tolerance = 1", "expected an array, [[tolerance]], got a number - at `$.tolerance`"),
        ("[budget]\nat_most = 1", "expected an array, [[budget]], got a table - at `$.budget`"),
        ("tolerance = ['m']", "expected a table, got a text - at `$.tolerance[0]`"),
        ("tolerance = [[]]", "expected a table, got an array - at `$.tolerance[0]`"),
        ("check fidelity", "Expected '=' after a key"),
        ("a = " + "[" * 5000, "it is nested too deeply"),
        (f"a = {'1' * 5000}", "a number has too many digits"),
        ('{"budget": []}', "(at line 1, column 1)"),
    ],
)
def test_what_is_no_file_of_bounds_is_one_sentence(refused, content, said):
    assert said in refused(content)


def test_a_file_that_cannot_be_read(tmp_path, read):
    for path, why in (tmp_path / "gone", "No such file or directory"), (tmp_path, "Is a directory"):
        with pytest.raises(BadFileError) as caught:
            Rules.read(path)
        assert str(caught.value) == f"{path}: cannot read it: {why}"
    with pytest.raises(BadFileError, match="it is not UTF-8"):
        read(b"# fr\xfcher")


# Units


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("1.5 GiB", "B", 1610612736.0),
        ("1.5 GB", "B", 1.5e9),
        ("3 MiB", "B", 3145728.0),
        ("3MB", "B", 3e6),
        ("2 KiB", "B", 2048.0),
        ("2 KB", "B", 2000.0),
        (" 7  B ", "B", 7.0),
        ("5 ms", "s", 0.005),
        ("1.2 s", "s", 1.2),
        (".5 s", "s", 0.5),
        ("5. s", "s", 5.0),
        ("+2e3 ms", "s", 2.0),
        ("8 tokens/s", "tokens/s", 8.0),
        ("4.5 bits/weight", "bits/weight", 4.5),
        ("0.1 nats", "nats", 0.1),
    ],
)
def test_amounts(read, text, unit, value):
    assert read_amount(text, scales_of(unit))[0] == value
    found = read(tolerance(absolute=f"'{text}'")).tolerance("fidelity.kld", "m", "Q4_0", "d")
    assert (found.absolute, found.unit) == (value, unit)


def test_a_plain_number_is_in_the_quantitys_unit(read):
    (found,) = read(budget(at_most="1500000")).budgets("m", "Q4_0", "d")
    assert found.at_most == 1.5e6
    assert read(tolerance()).tolerance("fidelity.kld", "m", "Q4_0", "d").unit == ""


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("1", 1), ("0.1", 0.1), ("'10 %'", 0.1), ("'57%'", 0.57), ("'500 %'", 5)],
)
def test_shares(read, text, value):
    found = read(tolerance(relative=text)).tolerance("fidelity.kld", "m", "Q4_0", "d")
    assert found.relative == value


def test_only_what_counts_nothing_has_no_unit():
    assert scales_of("1") == {}
    assert {unit for unit in UNITS if not scales_of(unit)} == {"1"}


@given(
    st.floats(0, allow_nan=False, allow_infinity=False, max_value=1e290),
    st.sampled_from(AMOUNTS),
    st.sampled_from(["", " ", "  ", "\t"]),
)
def test_a_number_and_its_unit_come_back(number, amount, space):
    unit, written = amount
    scale = scales_of(unit)[written]
    value, back = read_amount(f"{number!r}{space}{written}", scales_of(unit))
    assert back == written
    assert math.isclose(value, float(Fraction(number) * scale), rel_tol=1e-15, abs_tol=5e-324)
    # Written in the unit's own name it is the same to the last bit.
    assert read_amount(f"{value!r} {unit}", scales_of(unit)) == (value, unit)


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=0), st.sampled_from(AMOUNTS))
def test_no_unit_is_another_quantitys(number, amount):
    unit, written = amount
    for other in UNITS:
        if other not in {unit, "1"}:
            with pytest.raises(ValueError, match="wrong unit"):
                read_amount(f"{number!r} {written}", scales_of(other))


@given(st.text() | st.text(alphabet="0123456789.eE+-_ %KMGiBsm"))
@example("1" * 100_000)
@example("9" * 50_000 + "!" * 50_000)
@example("1e" + "9" * 5000)
def test_any_text_is_an_amount_or_one_sentence(text):
    for unit in "B", "s":
        try:
            value, written = read_amount(text, scales_of(unit))
        except ValueError as error:
            said = str(error)
            assert not {"\n", "\r", "\x1b"} & set(said)
            assert len(said) < 250
            continue
        assert written in scales_of(unit)
        assert not math.isnan(value)


# Anything

LEAVES = (
    st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["*", "5 %", "3 MiB", "5 ms", "-1 B", "fidelity.kld", "1e999 s"])
    | st.sampled_from(sorted(QUANTITIES))
    | st.dates()
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (
    *("check", "model", "method", "device", "relative", "absolute", "noise", "reason"),
    *("quantity", "at_most", "at_least"),
)


@st.composite
def rows(draw, good, more):
    """A row that is right but for some fields."""
    names = draw(st.lists(st.sampled_from(more) | st.sampled_from(FIELDS), max_size=2))
    left_out = draw(st.sets(st.sampled_from(sorted(good)), max_size=1))
    row = good | {name: draw(VALUES) for name in names}
    return {name: value for name, value in row.items() if name not in left_out}


TOLERANCES = rows({"check": "*", "noise": 3, "reason": "r"}, FIELDS[:8])
BUDGETS = rows({"quantity": "ttft", "at_most": 3}, (*FIELDS[8:], "model", "device"))


def written(value):
    """Write a value as TOML."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        pairs = [f"{written(name)} = {written(one)}" for name, one in value.items()]
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(written(one) for one in value)}]"
    return repr(value).lower() if isinstance(value, bool | int | float) else value.isoformat()


def problem_or_rules(path):
    try:
        return Rules.read(path)
    except BadFileError as error:
        return str(error)


CONTENTS = st.fixed_dictionaries(
    {},
    optional={
        "tolerance": st.lists(TOLERANCES, max_size=3) | VALUES,
        "budget": st.lists(BUDGETS, max_size=3) | VALUES,
    },
) | st.dictionaries(st.text(max_size=9), VALUES, max_size=2)


@given(CONTENTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_content_is_rules_or_one_sentence(tmp_path, content):
    path = tmp_path / "bounds.toml"
    lines = [f"{written(name)} = {written(value)}\n" for name, value in content.items()]
    path.write_text("".join(lines), "utf-8")
    found = problem_or_rules(path)
    if isinstance(found, str):
        assert found.startswith(f"{path}: it is no file of bounds: ")
        assert len(found.splitlines()) == 1
        # It is TOML: what is wrong with it is wrong at a place.
        assert " - at `$" in found
        return
    for row in found._tolerances:
        amounts = [row.relative, row.absolute, row.noise]
        assert any(one is not None for one in amounts)
        assert all(one is None or (math.isfinite(one) and one >= 0) for one in amounts)
        assert row.reason.strip()
    for row in found._budgets:
        amounts = [row.at_most, row.at_least]
        assert any(one is not None for one in amounts)
        assert all(one is None or math.isfinite(one) for one in amounts)
        assert row.quantity in SIGNED or all(one is None or one >= 0 for one in amounts)


@given(st.binary(max_size=80) | st.text(alphabet="[]tolerancbudg=\"'{}\n1,.# ").map(str.encode))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_are_rules_or_one_sentence(tmp_path, content):
    path = tmp_path / "bounds.toml"
    path.write_bytes(content)
    found = problem_or_rules(path)
    assert isinstance(found, Rules) or found.startswith(f"{path}: ")


# Which rows apply

HERE = ("fidelity.kld", "smollm2", "Q4_0", "pi-5")


@pytest.mark.parametrize("place", range(4), ids=["check", "model", "method", "device"])
@pytest.mark.parametrize("pattern", ["*", "exact", "first*", "?est"])
def test_every_pattern_has_to_match(place, pattern):
    name = ("check", "model", "method", "device")[place]
    text = HERE[place]
    pattern = {"exact": text, "first*": f"{text[0]}*", "?est": f"?{text[1:]}"}.get(pattern, pattern)
    made = Tolerance(0.1, None, None, "r", "p", **{name: pattern})
    assert Rules([made]).tolerance(*HERE) is made
    other = [*HERE]
    other[place] = "other"
    assert Rules([made]).tolerance(*other) is (made if pattern == "*" else None)
    if name != "check":
        limit = Budget("ttft", 1.0, None, "", "p", **{name: pattern})
        assert Rules([], [limit]).budgets(*HERE[1:]) == (limit,)
        assert Rules([], [limit]).budgets(*other[1:]) == ((limit,) if pattern == "*" else ())


def test_case_counts():
    rules = Rules([Tolerance(0.1, None, None, "r", "p", method="Q4_*")])
    assert rules.tolerance("c", "m", "Q4_0", "d") is not None
    assert rules.tolerance("c", "m", "q4_0", "d") is None


def test_a_bracket_stands_for_itself():
    rules = Rules([Tolerance(0.1, None, None, "r", "p", check="tests/test_[a].py::*")])
    assert rules.tolerance("tests/test_[a].py::test_x", *HERE[1:]) is not None
    assert rules.tolerance("tests/test_a.py::test_x", *HERE[1:]) is None


def test_the_last_tolerance_that_matches_counts(read):
    rules = read(
        tolerance(check="'fidelity.*'", relative="0.1")
        + tolerance(method="'Q2_K'", absolute=None, noise="3")
        + tolerance(check="'size.*'", relative="0.3")
    )
    assert rules.tolerance(*HERE).place == "bounds.toml $.tolerance[0]"
    last = rules.tolerance("fidelity.kld", "smollm2", "Q2_K", "pi-5")
    assert last.place == "bounds.toml $.tolerance[1]"
    # It replaces the other as a whole.
    assert (last.relative, last.absolute, last.noise) == (None, None, 3)
    assert rules.tolerance("size.x", "m", "Q2_K", "d").relative == 0.3
    assert rules.tolerance("artifact.x", "m", "Q2_K", "d") is None
    # A more special row that comes first does not count.
    rules = read(tolerance(noise="3") + tolerance(check="'*'"))
    assert rules.tolerance(*HERE).noise is None


def test_all_budgets_that_match_count(read):
    rules = read(
        budget() + budget(method="'Q2_K'", at_most="1000") + budget(quantity="'ttft'", at_most="3")
    )
    places = [one.place for one in rules.budgets("m", "Q2_K", "d")]
    assert places == [f"bounds.toml $.budget[{number}]" for number in (0, 1, 2)]
    assert [one.quantity for one in rules.budgets("m", "Q4_0", "d")] == ["peak_memory", "ttft"]


# Units of what a check measures


def test_a_tolerance_in_a_foreign_unit_is_told(read):
    rules = read(
        tolerance(check="'resources.*'", absolute="'3 MiB'")
        + tolerance(check="'resources.t*'", absolute="'5 ms'")
        + tolerance()
    )
    rules.require_units("resources.peak_memory", {"B"})
    rules.require_units("resources.peak_memory", {"B", "s"})
    rules.require_units("fidelity.kld", {"nats"})
    with pytest.raises(OnDeviceError) as caught:
        rules.require_units("resources.speed", {"tokens/s", "s"})
    assert str(caught.value) == (
        "bounds.toml $.tolerance[0].absolute: the unit comes down to B, but resources.speed"
        " measures in s, tokens/s"
    )
    with pytest.raises(OnDeviceError, match=r"\$\.tolerance\[1\].*measures in B$"):
        rules.require_units("resources.t", {"B"})
    with pytest.raises(OnDeviceError, match="measures in no unit"):
        rules.require_units("resources.own", set())


# Remarks


def judged(check="fidelity.kld", quantity="mean_kld", model="m", method="Q4_0", device="pi-5"):
    return Judged(check, quantity, model, method, device)


NOTHING = "bound matches nothing in this run: bounds.toml $."
REPLACED = "bound has no effect, later ones replace it: bounds.toml $."


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (tolerance(), []),
        (tolerance(check="'fidelity.kdl'"), [f"{NOTHING}tolerance[0]"]),
        (tolerance(model="'n'"), [f"{NOTHING}tolerance[0]"]),
        (tolerance(method="'q4_0'"), [f"{NOTHING}tolerance[0]"]),
        (tolerance(device="'pi-*'"), []),
        # Other devices have their own runs.
        (tolerance(device="'pi-4'", model="'n'") + budget(device="'pi-4'"), []),
        (budget(quantity="'mean_kld'", at_most="1"), []),
        (budget(), [f"{NOTHING}budget[0]"]),
        (budget(quantity="'mean_kld'", at_most="1", model="'n'"), [f"{NOTHING}budget[0]"]),
        (tolerance() + tolerance(), [f"{REPLACED}tolerance[0]"]),
        (tolerance() + tolerance(method="'Q2_K'"), []),
        (tolerance(method="'Q2_K'") + tolerance(), [f"{REPLACED}tolerance[0]"]),
        (
            tolerance(check="'a'") + tolerance(check="'*'") + budget(),
            [f"{NOTHING}tolerance[0]", f"{NOTHING}budget[0]"],
        ),
    ],
)
def test_remarks(read, content, said):
    seen = [judged(), judged(method="Q2_K"), judged(check="artifact.x", quantity="pin_matches")]
    assert read(content).unused(iter(seen)) == said


def test_a_run_that_judged_nothing_says_nothing(read):
    assert read(tolerance() + budget()).unused([]) == []


# The page


def test_the_example_of_the_page_is_a_file_of_bounds(read):
    text = PAGE.read_text("utf-8")
    _, found = text.split("```toml\n")
    example, _ = found.split("```")
    rules = read(example)
    assert rules.tolerance("fidelity.kld", "smollm2-135m", "Q2_K", "pi-5").relative == 0.1
    assert rules.tolerance("fidelity.kld", "smollm2-135m", "Q4_0", "pi-5") is None
    assert [one.quantity for one in rules.budgets("smollm2-135m", "Q2_K", "pi-5")] == [
        "peak_memory",
        "decode_speed",
    ]
    assert "\n$ " not in text
