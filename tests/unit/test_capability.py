"""Questions in pieces, answers put together again, and every figure that is made of them."""

from __future__ import annotations

import math
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice import capability
from pytest_ondevice.capability import (
    FIRST,
    PIECE,
    Asked,
    NoItemsError,
    figure,
    named,
    pieces,
    reports,
    sample_id,
)
from pytest_ondevice.model.task import Answer, Extract, Form, Item, Normalisation, Option, TaskSet
from pytest_ondevice.proportions import above_chance, detectable, mcnemar, wilson
from pytest_ondevice.tasks import select

lawful = settings(max_examples=40, deadline=None, derandomize=True, database=None)
NONE, BYTES, TOKENS = Normalisation.NONE, Normalisation.BYTES, Normalisation.TOKENS
ACCURACIES = ("accuracy", "choice_accuracy", "cloze_accuracy", "exact_accuracy")


def choice(number, *, options=4, form=Form.CHOICE, group="facts", name="c"):
    """A question of its own; the first option is right."""
    return Item(
        id=f"{name}-{number}",
        form=form,
        prompt=f"{name} {number}?",
        options=tuple(Option(f" {letter}") for letter in "abcdefgh"[:options]),
        right=(0,),
        group=group,
    )


def cloze(number):
    return choice(number, options=1, form=Form.CLOZE, group="words", name="w")


def exact(number):
    return Item(
        id=f"e-{number}",
        form=Form.EXACT,
        prompt=f"{number} + 0 =",
        targets=(str(number),),
        extract=Extract.LINE,
        most=4,
        group="sums",
    )


def made(*items, name="mine", normalisation=NONE):
    return TaskSet(name=name, normalisation=normalisation, items=items)


def answer(item, right, *, finite=True):
    """What marks an item as right or as wrong."""
    if item.form is Form.EXACT:
        return Answer(text=item.targets[0] if right else "no idea")
    first = -1.0 if right else -3.0
    logliks = (first if finite else None, *(-2.0 for _ in item.options[1:]))
    said = bool(right) and item.form is Form.CLOZE
    return Answer(logliks=logliks, tokens=tuple(1 for _ in logliks), greedy=said)


def asked(task_set, marks):
    """A cell's answers to the first items of a set, as many as there are marks: 1 is right."""
    items = task_set.items[: len(marks)]
    answers = {item.id: answer(item, int(mark)) for item, mark in zip(items, marks, strict=True)}
    return Asked(msgspec.structs.replace(task_set, items=items), answers)


def choices(count, **fields):
    return tuple(choice(number, **fields) for number in range(count))


# Pieces


def ids(piece):
    return [f"{name}/{item.id}" for name, item in piece]


def test_a_first_look_is_chosen_as_a_budget_chooses():
    items = (*choices(300), *choices(300, group="more", name="d"))
    found = pieces([made(*items)])
    assert found.first == 1
    first, *rest = found.pieces
    assert [item for _, item in first] == list(select(items, FIRST))
    assert len(first) == FIRST == 200
    # Of both kinds alike, not the first so many.
    assert Counter(item.group for _, item in first) == {"facts": 100, "more": 100}
    # And all others after it, once each, in their order.
    others = [item for piece in rest for _, item in piece]
    assert others == [item for item in items if item not in {one for _, one in first}]


def test_a_small_set_is_asked_at_once():
    found = pieces([made(*choices(FIRST))])
    assert (len(found.pieces), found.first) == (1, 1)
    assert pieces([made(*choices(FIRST + 1))]).first == 1
    assert [len(piece) for piece in pieces([made(*choices(FIRST + 1))]).pieces] == [FIRST, 1]


@pytest.mark.parametrize(
    ("counts", "sizes", "first"),
    [
        ((100,), [100], 1),
        ((200 + 512,), [200, 512], 1),
        ((200 + 513,), [200, 512, 1], 1),
        ((150, 50), [200], 1),
        # The first look at every set comes before the rest of any.
        ((300, 250), [400, 150], 1),
        ((200, 200, 112), [512], 1),
        ((200, 200, 113), [512, 1], 2),
        ((900, 900, 900), [512, 88, 512, 512, 512, 512, 52], 2),
    ],
)
def test_pieces_are_cut_where_a_process_has_enough(counts, sizes, first):
    sets = [made(*choices(count), name=f"set-{place}") for place, count in enumerate(counts)]
    found = pieces(sets)
    assert [len(piece) for piece in found.pieces] == sizes
    assert found.first == first
    everything = [one for piece in found.pieces for one in ids(piece)]
    assert sorted(everything) == sorted(
        f"{one.name}/{item.id}" for one in sets for item in one.items
    )
    firsts = Counter(name for piece in found.pieces[:first] for name, _ in piece)
    assert firsts == {one.name: min(len(one.items), FIRST) for one in sets}


def test_more_questions_leave_the_first_ones_as_they_are():
    # Else what one session asked would be of no use to the next, which asks more sets.
    one, other = made(*choices(150), name="one"), made(*choices(600), name="other")
    assert pieces([one, other]).pieces[0][:150] == pieces([one]).pieces[0]


def test_ids_are_told_apart_by_set():
    sets = [made(*choices(3), name="one"), made(*choices(3), name="other")]
    (piece,) = pieces(sets).pieces
    items = named(piece)
    assert [item.id for item in items] == [
        *("one/c-0", "one/c-1", "one/c-2"),
        *("other/c-0", "other/c-1", "other/c-2"),
    ]
    # Nothing but the name is another.
    assert [item.digest for item in items] == [item.digest for _, item in piece]


# Answers put together


def payload(piece, marks):
    """What the stage yields of a piece, as the journal has it."""
    found = [answer(item, mark) for (_, item), mark in zip(piece, marks, strict=True)]
    return {"answers": msgspec.to_builtins(found)}


def test_answers_of_all_pieces_are_put_together_by_set():
    one = made(*choices(250), name="one")
    other = made(*(cloze(i) for i in range(30)), *(exact(i) for i in range(3)), name="other")
    found = pieces([one, other])
    # Of each set every third is right, wherever it was asked.
    truth = {
        f"{part.name}/{item.id}": place % 3 == 0
        for part in (one, other)
        for place, item in enumerate(part.items)
    }
    known = [(piece, payload(piece, [truth[one] for one in ids(piece)])) for piece in found.pieces]
    both = capability.asked([one, other], known)
    assert [part.task_set for part in both] == [one, other]
    for part in both:
        marks = [truth[f"{part.task_set.name}/{item.id}"] for item in part.task_set.items]
        assert list(part.marks().values()) == marks


def test_of_some_pieces_a_set_holds_what_was_asked_in_its_own_order():
    one = made(*choices(250), name="one")
    found = pieces([one])
    first = found.pieces[0]
    (part,) = capability.asked([one], [(first, payload(first, [True] * len(first)))])
    assert part.task_set.items == select(one.items, FIRST)
    assert part.task_set.digest != one.digest
    assert part.score.n == part.score.right == FIRST


def test_a_set_of_which_nothing_was_asked_is_left_out():
    one, other = made(*choices(3), name="one"), made(*choices(3), name="other")
    (piece,) = pieces([one]).pieces
    found = capability.asked([one, other], [(piece, payload(piece, [1, 1, 0]))])
    assert [part.task_set.name for part in found] == ["one"]
    assert capability.asked([one, other], []) == ()


def test_another_number_of_answers_than_of_questions_is_an_error():
    one = made(*choices(3))
    (piece,) = pieces([one]).pieces
    with pytest.raises(ValueError, match="zip"):
        capability.asked([one], [(piece, payload(piece[:2], [1, 1]))])


# Sample ids: what may be paired


def test_a_sample_is_named_after_set_item_and_what_is_asked():
    item = choice(1)
    assert sample_id(made(item), item) == f"mine/c-1#{item.digest[:8]}+none"
    assert sample_id(made(exact(1)), exact(1)) == f"mine/e-1#{exact(1).digest[:8]}"
    assert sample_id(made(cloze(1)), cloze(1)) == f"mine/w-1#{cloze(1).digest[:8]}"


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "c 1? "},
        {"options": (Option(" a"), Option(" b"), Option(" c"), Option(" e"))},
        {"right": (1,)},
        {"right": (0, 1)},
        {"id": "c-2"},
    ],
)
def test_another_question_never_pairs(change):
    item = choice(1)
    other = msgspec.structs.replace(item, **change)
    assert sample_id(made(item), item) != sample_id(made(other), other)


def test_another_set_or_normalisation_never_pairs():
    item = choice(1)
    own = sample_id(made(item), item)
    assert own != sample_id(made(item, name="other"), item)
    ways = {sample_id(made(item, normalisation=way), item) for way in Normalisation}
    assert len(ways) == 3
    # What is not divided by anything is the same under all of them.
    for free in (exact(1), cloze(1)):
        assert len({sample_id(made(free, normalisation=way), free) for way in Normalisation}) == 1


def test_a_normalisation_decides_which_answers_are_right():
    item = msgspec.structs.replace(choice(0), options=(Option(" a long one"), Option(" b")))
    given_ = {item.id: Answer(logliks=(-4.0, -2.0), tokens=(3, 1))}
    marks = [
        next(iter(Asked(made(item, normalisation=way), given_).marks().values()))
        for way in (NONE, BYTES, TOKENS)
    ]
    assert marks == [False, True, True]


# Shares

MIXED = made(*choices(10), *(cloze(i) for i in range(6)), *(exact(i) for i in range(4)))
MARKS = "11011100101100001011"


@pytest.mark.parametrize(
    ("name", "right", "n"),
    [
        ("accuracy", 11, 20),
        ("choice_accuracy", 6, 10),
        ("cloze_accuracy", 2, 6),
        ("exact_accuracy", 3, 4),
    ],
)
def test_accuracy_is_the_share_of_each_form(name, right, n):
    found = figure(name, [asked(MIXED, MARKS)])
    low, high = wilson(right, n)
    assert (found.quantity, found.unit, found.n) == (name, "1", n)
    assert found.value == right / n
    assert found.error == pytest.approx(math.sqrt(right * (n - right) / n) / n)
    assert found.detail == f"{right} of {n} right, 95 % interval {low:.3f} to {high:.3f}"
    # A sample per item: what a baseline keeps, and what is paired.
    assert len(found.samples) == len(set(found.sample_ids)) == n
    assert sum(found.samples) == right
    assert set(found.samples) <= {0.0, 1.0}


def test_samples_are_those_of_their_items():
    found = figure("accuracy", [asked(MIXED, MARKS)])
    marks = dict(zip(found.sample_ids, found.samples, strict=True))
    for item, mark in zip(MIXED.items, MARKS, strict=True):
        assert marks[sample_id(MIXED, item)] == int(mark)


def test_items_of_shared_probability_count_as_choices():
    one = made(*choices(4, form=Form.MASS))
    found = figure("choice_accuracy", [asked(one, "1110")])
    # Not the likeliest: more than half of the probability is needed.
    assert (found.value, found.n) == (0.0, 4)
    sure = {item.id: Answer(logliks=(-0.1, -9.0, -9.0, -9.0)) for item in one.items}
    assert figure("choice_accuracy", [Asked(one, sure)]).value == 1.0


def test_all_sets_are_counted_together():
    other = made(*choices(5), name="other")
    both = [asked(MIXED, MARKS), asked(other, "10000")]
    found = figure("choice_accuracy", both)
    assert (found.value, found.n) == (7 / 15, 15)
    assert len(set(found.sample_ids)) == 15


@pytest.mark.parametrize("name", ACCURACIES[1:])
def test_without_items_of_a_form_there_is_no_figure(name):
    items = [choice(0), cloze(0), exact(0)]
    form = name.removesuffix("_accuracy")
    left = made(*(item for item in items if item.form != form))
    with pytest.raises(NoItemsError, match=f"items of the form {form}: --ondevice-tasks"):
        figure(name, [asked(left, "11")])
    assert figure("accuracy", [asked(left, "10")]).value == 0.5


# Flips


def test_flips_are_items_that_the_reference_answers_otherwise():
    one = made(*choices(10))
    now, then = asked(one, "1100110010"), asked(one, "1111000010")
    found = figure("answer_flips", [now], [then])
    assert (found.value, found.n, found.unit) == (0.4, 10, "1")
    assert found.samples == (0, 0, 1, 1, 1, 1, 0, 0, 0, 0)
    assert found.sample_ids == tuple(sample_id(one, item) for item in one.items)
    # Accuracy alone hides all of it.
    assert found.detail == (
        "2 lost and 2 gained of 10, accuracy 0.500 against 0.500 of the reference,"
        " exact McNemar p 1"
    )


def test_lost_is_what_the_reference_had_right():
    one = made(*choices(20))
    now, then = asked(one, "0" * 8 + "1" * 12), asked(one, "1" * 19 + "0")
    found = figure("answer_flips", [now], [then])
    assert found.value == 9 / 20
    assert found.detail == (
        "8 lost and 1 gained of 20, accuracy 0.600 against 0.950 of the reference,"
        f" exact McNemar p {mcnemar(8, 1):.2g}"
    )
    assert f"{mcnemar(8, 1):.2g}" == "0.039"


def test_only_items_that_both_were_asked_can_flip():
    one = made(*choices(10))
    found = figure("answer_flips", [asked(one, "1111")], [asked(one, "0011111111")])
    assert (found.value, found.n) == (0.5, 4)
    assert found.detail.startswith("0 lost and 2 gained of 4, accuracy 1.000 against 0.500")
    # Nor do questions pair that have but their name in common.
    other = made(*(msgspec.structs.replace(item, prompt="other") for item in one.items))
    for then in ([], [asked(other, "0000")]):
        with pytest.raises(NoItemsError, match="items that the reference was asked"):
            figure("answer_flips", [asked(one, "1111")], then)


@lawful
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_flips_are_at_least_the_change_of_accuracy(marks):
    one = made(*choices(len(marks)))
    now, then = (asked(one, [pair[side] for pair in marks]) for side in (0, 1))
    flips = figure("answer_flips", [now], [then])
    change = figure("accuracy", [now]).value - figure("accuracy", [then]).value
    assert flips.value >= abs(change) - 1e-12
    assert flips.value == sum(one != other for one, other in marks) / len(marks)


# Guessing


def test_guessing_is_weighed_by_the_number_of_choices():
    one = made(*choices(6, options=2), *choices(6, options=4, name="d"), cloze(0), exact(0))
    found = figure("guess_probability", [asked(one, "11111111110011")])
    # Only what can be guessed counts: 10 of 12, of which 3 + 1.5 come by chance.
    assert found.value == pytest.approx(above_chance(10, [0.5] * 6 + [0.25] * 6), rel=1e-12)
    assert found.value < 0.01
    assert found.detail == "10 of 12 right, guessing gives 4"
    assert (found.samples, found.n, found.unit) == ((), 1, "1")


def test_a_model_that_guesses_is_seen():
    one = made(*choices(40, options=4))
    found = figure("guess_probability", [asked(one, "1000" * 10)])
    assert found.value == pytest.approx(above_chance(10, [0.25] * 40), rel=1e-12)
    assert found.value > 0.5
    assert figure("guess_probability", [asked(one, "0" * 40)]).value == 1.0


@pytest.mark.parametrize("items", [(exact(0),), (cloze(0),), choices(1, form=Form.MASS)])
def test_what_cannot_be_guessed_has_no_such_figure(items):
    with pytest.raises(NoItemsError, match="items with choices"):
        figure("guess_probability", [asked(made(*items), "1")])


# Answers that are no numbers


def test_answers_that_are_not_finite_are_counted():
    one, other = made(*choices(5)), made(*(cloze(i) for i in range(3)), name="other")
    broken = {item.id: answer(item, 1, finite=place > 1) for place, item in enumerate(one.items)}
    whole = asked(other, "110")
    found = figure("unscored_answers", [Asked(one, broken), whole])
    assert (found.value, found.samples, found.error) == (2.0, (), None)
    assert figure("unscored_answers", [asked(one, "00000"), whole]).value == 0.0
    # And they are wrong.
    assert figure("accuracy", [Asked(one, broken)]).value == 3 / 5


# The report


def test_a_report_says_what_a_set_came_to():
    (found,) = reports([asked(MIXED, MARKS)])
    low, high = wilson(11, 20)
    assert (found.name, found.digest, found.normalisation) == ("mine", MIXED.digest, "none")
    assert (found.n, found.right, found.accuracy) == (20, 11, 0.55)
    assert (found.lower, found.upper) == (low, high)
    # A quarter of ten, and nothing of what cannot be guessed.
    assert found.chance == pytest.approx(2.5 / 20)
    assert found.mass is None
    assert {name: (one.n, one.right) for name, one in found.groups.items()} == {
        "facts": (10, 6),
        "words": (6, 2),
        "sums": (4, 3),
    }
    sums = found.groups["sums"]
    assert (sums.lower, sums.upper) == wilson(3, 4)
    # Against nothing there is nothing to say.
    against = (found.lost, found.gained, found.mcnemar_p, found.detectable)
    assert against == (None, None, None, None)


def test_a_report_has_the_mass_of_items_that_are_scored_so():
    one = made(*choices(2, options=2, form=Form.MASS))
    answers = {"c-0": Answer(logliks=(0.0, 0.0)), "c-1": Answer(logliks=(0.0, -math.log(3)))}
    (found,) = reports([Asked(one, answers)])
    assert found.mass == pytest.approx((0.5 + 0.75) / 2)


def test_a_report_compares_with_the_reference():
    one = made(*choices(20))
    (found,) = reports([asked(one, "0" * 8 + "1" * 12)], [asked(one, "1" * 19 + "0")])
    assert (found.lost, found.gained) == (8, 1)
    assert found.mcnemar_p == mcnemar(8, 1)
    assert found.detectable == detectable(20, 9 / 20)


def test_a_cell_that_was_asked_less_is_compared_by_what_both_were_asked():
    one = made(*choices(20))
    then = asked(one, "1" * 10 + "0" * 10)
    (found,) = reports([asked(one, "0011")], [then])
    assert (found.n, found.right) == (4, 2)
    assert (found.lost, found.gained) == (2, 0)
    assert found.detectable == detectable(4, 2 / 4)
    # Not the first so many of either, but the same ones.
    late = Asked(made(*one.items[8:12]), {item.id: answer(item, 1) for item in one.items})
    (found,) = reports([late], [then])
    assert (found.lost, found.gained) == (0, 2)


def test_a_cell_that_was_asked_more_is_compared_by_what_both_were_asked():
    one = made(*choices(20))
    (found,) = reports([asked(one, "1" * 20)], [asked(one, "0111")])
    assert (found.n, found.right) == (20, 20)
    assert (found.lost, found.gained) == (0, 1)


def test_a_reference_that_was_asked_something_else_is_no_comparison():
    one, other = made(*choices(4)), made(*choices(4), name="other")
    moved = msgspec.structs.replace(one, normalisation=BYTES)
    for then in ([], [asked(other, "1111")], [asked(moved, "1111")]):
        (found,) = reports([asked(one, "1100")], then)
        assert (found.lost, found.mcnemar_p, found.detectable) == (None, None, None)


def test_sets_are_compared_by_name_whatever_their_order():
    one, other = made(*choices(4), name="one"), made(*choices(4), name="other")
    now = [asked(one, "1100"), asked(other, "0000")]
    then = [asked(other, "1000"), asked(one, "1101")]
    assert [(found.name, found.lost, found.gained) for found in reports(now, then)] == [
        ("one", 1, 0),
        ("other", 1, 0),
    ]


def test_a_piece_is_at_least_a_first_look():
    assert FIRST <= PIECE
