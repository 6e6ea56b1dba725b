"""Marks of answers: each form, what is extracted from text, and what a set comes to."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice.model.task import (
    Answer,
    Extract,
    Form,
    Item,
    Normalisation,
    Option,
    TaskSet,
)
from pytest_ondevice.proportions import wilson
from pytest_ondevice.scoring import GroupScore, equal, extract, is_finite, is_right, mass, score

lawful = settings(max_examples=100, deadline=None, derandomize=True, database=None)
NONE, BYTES, TOKENS = Normalisation.NONE, Normalisation.BYTES, Normalisation.TOKENS
LINE, LAST, MARKED = Extract.LINE, Extract.LAST_NUMBER, Extract.MARKED_NUMBER


def choice(*texts, right=(0,), form=Form.CHOICE, name="a", group=""):
    options = tuple(Option(text) for text in texts)
    return Item(id=name, form=form, prompt="Q", options=options, right=right, group=group)


def exact(*targets, how=LINE, stop=(), name="e"):
    return Item(
        id=name, form=Form.EXACT, prompt="Q", targets=targets, extract=how, stop=stop, most=9
    )


def cloze(name="c", group=""):
    return choice(" dog", form=Form.CLOZE, name=name, group=group)


def answer(*logliks, tokens=()):
    return Answer(logliks=logliks, tokens=tokens)


# Choices


def test_the_likeliest_choice_is_the_answer():
    item = choice(" a", " b", " c", right=(1,))
    assert is_right(item, answer(-3.0, -2.0, -4.0), NONE)
    assert not is_right(item, answer(-2.0, -3.0, -4.0), NONE)
    assert not is_right(item, answer(-4.0, -3.0, -2.0), NONE)


@pytest.mark.parametrize(
    ("normalisation", "best"), [(NONE, " no"), (BYTES, " certainly"), (TOKENS, " maybe so")]
)
def test_each_normalisation_has_its_own_likeliest(normalisation, best):
    # Per byte -1, -0.6 and -0.7; per token -3, -6 and -1.575.
    texts = (" no", " certainly", " maybe so")
    reply = answer(-3.0, -6.0, -6.3, tokens=(1, 1, 4))
    for place, text in enumerate(texts):
        assert is_right(choice(*texts, right=(place,)), reply, normalisation) == (text == best)


def test_bytes_are_those_of_utf_8_and_of_the_blank_before():
    # Per byte -0.6 against -1.6; per character -1.8 against -1.6.
    assert is_right(choice("\u65e5\u672c", "ab"), answer(-3.6, -3.2), BYTES)
    # Per byte -0.8 against -1; without the blank -1.2 against -1.
    assert is_right(choice(" ab", "ab"), answer(-2.4, -2.0), BYTES)


def test_the_lead_is_not_scored():
    item = Item(
        id="a",
        form=Form.CHOICE,
        prompt="",
        options=(Option("ab", lead="a very long lead"), Option("abc")),
        right=(0,),
    )
    assert not is_right(item, answer(-2.0, -2.0), BYTES)


def test_one_of_several_right_choices_will_do():
    item = choice(" a", " b", " c", right=(0, 2))
    assert is_right(item, answer(-9.0, -3.0, -2.0), NONE)
    assert is_right(item, answer(-2.0, -3.0, -9.0), NONE)
    assert is_right(item, answer(-2.0, -3.0, -2.0), NONE)
    assert not is_right(item, answer(-4.0, -3.0, -9.0), NONE)


@pytest.mark.parametrize("right", [(0,), (1,), (2,)])
def test_a_tie_with_a_wrong_choice_is_not_right_wherever_it_stands(right):
    assert not is_right(choice(" a", " b", " c", right=right), answer(-2.0, -2.0, -2.0), NONE)


@pytest.mark.parametrize("form", [Form.CHOICE, Form.MASS])
@pytest.mark.parametrize("bad", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_an_answer_that_is_not_finite_is_wrong_whichever_choice_it_is(form, bad, place):
    logliks = [-1.0, -9.0]
    item = choice(" a", " b", form=form)
    assert is_right(item, answer(*logliks), NONE)
    assert is_finite(answer(*logliks))
    logliks[place] = bad
    assert not is_right(item, answer(*logliks), NONE)
    assert not is_finite(answer(*logliks))


def test_a_generated_answer_that_is_not_finite_is_wrong_and_counted():
    item = exact("7")
    good, bad = Answer(text="7"), Answer(text="7", finite=False)
    assert is_right(item, good, NONE)
    assert not is_right(item, bad, NONE)
    found = score(TaskSet(name="s", normalisation=NONE, items=(item,)), {item.id: bad})
    assert (found.right, found.nonfinite) == (0, 1)


@pytest.mark.parametrize(
    ("reply", "normalisation", "sentence"),
    [
        (answer(-1.0), NONE, "item 'a' has 2 options, its answer 1 log-likelihoods"),
        (answer(-1.0, -2.0, -3.0), NONE, "its answer 3 log-likelihoods"),
        (answer(-1.0, -2.0, tokens=(1,)), TOKENS, r"numbers of tokens are \[1\]: nothing"),
        (answer(-1.0, -2.0, tokens=(1, 0)), TOKENS, r"numbers of tokens are \[1, 0\]"),
        (answer(-1.0, -2.0), BYTES, r"numbers of bytes are \[1, 0\]"),
    ],
)
def test_an_answer_to_another_item_is_refused(reply, normalisation, sentence):
    with pytest.raises(ValueError, match=sentence):
        is_right(choice("x", ""), reply, normalisation)


# Mass


def test_mass_is_the_share_of_likelihood_on_right_choices():
    item = choice(" a", " b", " c", right=(0, 2), form=Form.MASS)
    reply = answer(math.log(0.1), math.log(0.3), math.log(0.2))
    assert mass(item, reply) == pytest.approx(0.5)
    one = choice(" a", " b", " c", right=(1,), form=Form.MASS)
    assert mass(one, reply) == pytest.approx(0.5)


def test_mass_of_very_unlikely_texts_does_not_vanish():
    item = choice(" a", " b", form=Form.MASS)
    assert mass(item, answer(-5000.0, -5001.0)) == pytest.approx(1 / (1 + math.exp(-1)))
    assert mass(item, answer(-9000.0, -10.0)) == 0
    assert mass(item, answer(-10.0, -9000.0)) == 1


def test_mass_is_not_normalised():
    item = choice(" a", " a much longer one", form=Form.MASS)
    reply = answer(-2.0, -3.0, tokens=(1, 9))
    for normalisation in Normalisation:
        assert is_right(item, reply, normalisation)


def test_more_than_half_of_the_mass_is_right():
    assert not is_right(choice(" a", " b", form=Form.MASS), answer(-1.0, -1.0), NONE)
    assert is_right(choice(" a", " b", form=Form.MASS), answer(-1.0, -1.01), NONE)
    # The likeliest choice is wrong, most of the mass is right.
    item = choice(" a", " b", " c", right=(0, 2), form=Form.MASS)
    assert is_right(item, answer(-1.2, -1.0, -1.2), NONE)
    # The likeliest choice is right, most of the mass is wrong.
    item = choice(" a", " b", " c", right=(1,), form=Form.MASS)
    assert not is_right(item, answer(-1.2, -1.0, -1.2), NONE)


@given(st.lists(st.floats(-1e4, 0), min_size=2, max_size=6), st.data())
@lawful
def test_masses_of_complements_add_up(logliks, data):
    places = range(len(logliks))
    right = tuple(data.draw(st.sets(st.sampled_from(places), min_size=1)))
    left = tuple(set(places) - set(right))
    texts = [" a"] * len(logliks)
    one, other = (
        mass(choice(*texts, right=some, form=Form.MASS), answer(*logliks)) for some in (right, left)
    )
    assert 0 <= one <= 1
    assert one + other == pytest.approx(1)


# Cloze


def test_cloze_is_right_where_greedy_decoding_would_say_it():
    assert is_right(cloze(), Answer(logliks=(-1.0,), greedy=True), NONE)
    assert not is_right(cloze(), Answer(logliks=(-0.01,), greedy=False), NONE)
    assert not is_right(cloze(), Answer(logliks=(None,), greedy=True), NONE)


# Exact


@pytest.mark.parametrize(
    ("text", "how", "found"),
    [
        (" Paris", LINE, "Paris"),
        ("Paris.\nIt lies on", LINE, "Paris"),
        ("\n\n  Paris . \r\nLyon", LINE, "Paris"),
        ("Paris...", LINE, "Paris.."),
        ("", LINE, ""),
        (" \n ", LINE, ""),
        ("so it is 42.", LAST, "42"),
        ("first 3, then 12 and 7 apples", LAST, "7"),
        ("in all 1,234,567.", LAST, "1234567"),
        ("1,2,3", LAST, "3"),
        ("1,2345", LAST, "2345"),
        ("it costs $1,234.50 today", LAST, "1234.50"),
        ("\u20ac 5", LAST, "5"),
        ("so it is -7", LAST, "-7"),
        ("so it is \u22127", LAST, "-7"),
        ("so it is +7", LAST, "7"),
        ("he owes -$5", LAST, "-5"),
        ("he owes $-5", LAST, "-5"),
        ("10-3", LAST, "3"),
        ("(4)-3", LAST, "3"),
        ("10 -3", LAST, "-3"),
        ("half is .5", LAST, "0.5"),
        ("1e-3", LAST, "1e-3"),
        ("2.5E4 m", LAST, "2.5E4"),
        ("\\boxed{18}", LAST, "18"),
        ("**18**", LAST, "18"),
        ("\u7b54\u6848\u662f12\u3002", LAST, "12"),
        ("12 of CO2 and H2O", LAST, "12"),
        ("1.2.3", LAST, "1.2"),
        ("50%", LAST, "50"),
        ("none at all", LAST, ""),
        ("$ - , .", LAST, ""),
        ("2 + 3 = 5\n#### 5\nthat is 9", MARKED, "5"),
        ("#### $1,000 for 3", MARKED, "1000"),
        ("#### 5\nQ: next\n#### 6", MARKED, "5"),
        ("#### none\n6", MARKED, ""),
        ("it is 5", MARKED, ""),
    ],
)
def test_what_is_extracted(text, how, found):
    assert extract(text, how) == found


def test_text_ends_at_the_first_of_any_stop():
    assert extract("4 apples;5|6", LAST, ("|", ";")) == "4"
    assert extract("4 apples|5;6", LAST, ("|", ";")) == "4"
    assert extract("4 apples", LAST, ("", "nowhere")) == "4"
    assert extract("\nParis", LINE, ("\n",)) == ""


@given(
    st.decimals(-(10**9), 10**9, places=2) | st.integers(-(10**12), 10**12),
    st.sampled_from(["{:,}", "{}"]),
    st.sampled_from(["so {}.", "{}", "({})", "= {} km", "1 2 3 {}", "**{}**", "x: {}\n"]),
)
@lawful
def test_a_number_is_found_however_it_is_written(number, written, around):
    text = around.format(written.format(number))
    assert equal(extract(text, LAST), str(number))
    assert not equal(extract(text, LAST), str(number + 1))


@pytest.mark.parametrize(
    ("found", "target", "same"),
    [
        ("42", "42.0", True),
        ("42.", "42", True),
        ("42", "$42", True),
        ("1234", "1,234", True),
        ("-5", "-$5", True),
        ("0.5", ".5", True),
        ("1e3", "1000", True),
        ("007", "7", True),
        ("42", "43", False),
        ("42", "-42", False),
        ("42", "42 km", False),
        ("0.33", "1/3", False),
        ("0.1", "0.1000000000000000055", False),
        ("12345678901234567890", "12345678901234567891", False),
        ("Paris", "Paris", True),
        (" Paris ", "Paris.", True),
        ("U.S", "U.S.", True),
        ("paris", "Paris", False),
        ("Paris", "Paris France", False),
        ("", "", False),
        (".", ".", False),
    ],
)
def test_numbers_are_compared_as_numbers_and_words_as_they_are(found, target, same):
    assert equal(found, target) == same
    assert equal(target, found) == same


def test_any_target_will_do_and_stops_are_the_items():
    item = exact("4", "four", stop=("\n",))
    assert is_right(item, Answer(text=" four.\nfive"), NONE)
    assert is_right(item, Answer(text="4.0"), NONE)
    assert not is_right(item, Answer(text="five\nfour"), NONE)
    assert not is_right(item, Answer(text="\nfour"), NONE)
    assert not is_right(item, Answer(), NONE)
    assert is_right(exact("7", how=LAST), Answer(text="3 and 7"), NONE)
    assert not is_right(exact("3", how=LAST), Answer(text="3 and 7"), NONE)


def test_hostile_text_is_read_in_time():
    for text in ("1," * 50_000, "1,111" + ",111" * 20_000 + "1", "$" * 50_000, "9" * 50_000):
        extract(text, LAST)
        assert not equal(text, "42")
    assert not equal("1e999", "42")
    assert equal("1" + "0" * 5000, "1" + "0" * 5000 + ".0")


# Sets


def whole(*items, normalisation=NONE):
    return TaskSet(name="set", normalisation=normalisation, items=items)


MIXED = whole(
    choice(" a", " b", name="one", group="facts"),
    cloze(name="two", group="words"),
    choice(" a", " b", name="three", group="facts", right=(1,)),
    choice(" a", " b", name="four", form=Form.MASS),
    choice(" a", " b", name="five", form=Form.MASS),
    exact("4", name="six"),
)
ANSWERS = {
    "six": Answer(text="4"),
    "one": answer(-1.0, -2.0),
    "two": Answer(logliks=(-1.0,), greedy=True),
    "three": answer(-1.0, None),
    "four": answer(math.log(0.8), math.log(0.2)),
    "five": answer(math.log(0.3), math.log(0.7)),
}


def test_a_set_is_marked_in_its_order():
    found = score(MIXED, ANSWERS)
    assert found.marks == (
        ("one", True),
        ("two", True),
        ("three", False),
        ("four", True),
        ("five", False),
        ("six", True),
    )
    assert (found.n, found.right, found.nonfinite) == (6, 4, 1)
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.mass == pytest.approx((0.8 + 0.3) / 2)


def test_a_set_has_wilsons_interval():
    found = score(MIXED, ANSWERS)
    assert (found.lower, found.upper) == wilson(4, 6, 0.05)
    assert found.alpha == 0.05
    wider = score(MIXED, ANSWERS, 0.01)
    assert (wider.lower, wider.upper, wider.alpha) == (*wilson(4, 6, 0.01), 0.01)


def test_groups_have_accuracies_of_their_own():
    found = score(MIXED, ANSWERS).groups
    assert found == (GroupScore("facts", 2, 1), GroupScore("words", 1, 1), GroupScore("", 3, 2))
    assert [group.accuracy for group in found] == pytest.approx([0.5, 1, 2 / 3])


def test_a_mass_that_is_not_finite_counts_0():
    found = score(MIXED, {**ANSWERS, "five": answer(None, -1.0)})
    assert found.mass == pytest.approx(0.4)
    assert found.nonfinite == 2


def test_a_set_without_items_of_mass_has_none():
    assert score(whole(cloze()), {"c": Answer(greedy=True)}).mass is None


def test_the_sets_normalisation_holds():
    item = choice(" a", " a longer one")
    reply = {"a": answer(-4.0, -5.0, tokens=(1, 3))}
    assert score(whole(item), reply).right == 1
    assert score(whole(item, normalisation=BYTES), reply).right == 0
    assert score(whole(item, normalisation=TOKENS), reply).right == 0


def test_an_item_without_an_answer_is_refused_and_one_answer_too_many_is_not():
    some = {name: one for name, one in ANSWERS.items() if name not in {"two", "five"}}
    with pytest.raises(ValueError, match="2 of 6 items of 'set' have no answer, 'two' first"):
        score(MIXED, some)
    assert score(MIXED, {**ANSWERS, "seven": Answer()}) == score(MIXED, ANSWERS)
    with pytest.raises(ValueError, match="one item or more"):
        score(whole(), {})
