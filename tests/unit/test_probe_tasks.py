"""Batched scores against scores from scratch, on a small model of which every digit is known.

The model's logits are a function of all the tokens before, drawn anew for each: whatever is missing
in the cache, or too much in it, gives other logits. The cache keeps llama.cpp's rules.
"""

from __future__ import annotations

import hashlib
import math
from contextlib import contextmanager
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice.model.task import Answer, Form, Item, Option
from pytest_ondevice.probe import tasks
from pytest_ondevice.probe.protocol import Execution, MeasureJob, TasksPlan
from pytest_ondevice.probe.reference import TextError

lawful = settings(max_examples=120, deadline=None, derandomize=True, database=None)

PIECES = ["<s>", "</s>", *"abcdefgh .\n", "ab", "cd", " a", " b", "abc", "\n\n", "d."]
BOS, END = 0, 1
TRAIN = 600


def split(text: str) -> list[int]:
    """Cut text into tokens, the longest piece first: what follows can change the last token."""
    tokens = []
    while text:
        piece = max((one for one in PIECES[2:] if text.startswith(one)), key=len)
        tokens.append(PIECES.index(piece))
        text = text[len(piece) :]
    return tokens


def after(tokens) -> np.ndarray:
    """The logits after some tokens, float32 (n_vocab,)."""
    drawn = hashlib.shake_128(np.array(tokens, dtype=np.int32).tobytes()).digest(2 * len(PIECES))
    return (np.frombuffer(drawn, np.uint16) / 4096 - 8).astype(np.float32)


class Model:
    def __init__(self, *, bos=BOS, adds_bos=True, forks=True, n_ctx_train=TRAIN, after=after):
        self.bos, self.adds_bos, self.forks, self.n_ctx_train = bos, adds_bos, forks, n_ctx_train
        self.after = after
        self.cut = []

    def tokenize(self, text, *, special=True):
        assert not special, "BOS is the caller's, and EOS is nobody's"
        self.cut.append(text)
        return split(text)

    def text(self, tokens):
        return "".join(PIECES[token] for token in tokens)

    def ends(self, token):
        return token == END


class Context:
    """A cache of cells, each of one token; a sequence is those that it has, in order."""

    def __init__(self, model, execution, sequences):
        self.model, self.execution, self.sequences = model, execution, sequences
        self.cells: dict[int, list[SimpleNamespace]] = {}
        self.fed: list[SimpleNamespace] = []

    def clear(self):
        self.cells = {}

    def copy(self, source, target, length):
        assert 0 <= target < self.sequences
        assert not self.cells.get(target)
        assert 0 < length <= len(self.cells[source])
        self.cells[target] = self.cells[source][:length]

    def forget(self, sequence):
        self.cells.pop(sequence, None)

    def feed_many(self, tokens, positions, sequences, wants):
        assert len(tokens) == len(positions) == len(sequences) == len(wants)
        assert 0 < len(tokens) <= self.execution.n_ubatch
        self.fed.append(SimpleNamespace(tokens=tuple(tokens), sequences=tuple(sequences)))
        rows = []
        narrowed: dict[int, set[int]] = {}
        for token, position, owners, wanted in zip(
            tokens, positions, sequences, wants, strict=True
        ):
            assert len(set(owners)) == len(owners) > 0
            assert all(0 <= owner < self.sequences for owner in owners)
            for owner in owners:
                # A batch may part sequences, never join them.
                assert set(owners) <= narrowed.setdefault(owner, set(owners))
                narrowed[owner] = set(owners)
            past = list(self.cells.get(owners[0], []))
            assert len(past) == position
            cell = SimpleNamespace(token=token)
            for owner in owners:
                own = self.cells.setdefault(owner, [])
                assert len(own) == len(past)
                assert all(a is b for a, b in zip(own, past, strict=True)), "they have parted"
                own.append(cell)
            if wanted:
                rows.append(self.model.after([*(one.token for one in past), token]))
        taken = {id(cell) for own in self.cells.values() for cell in own}
        assert len(taken) <= self.execution.n_ctx
        return np.array(rows, dtype=np.float32).reshape(len(rows), len(PIECES))


class Engine:
    def __init__(self, **chosen):
        self.model = Model(**chosen)
        self.contexts: list[Context] = []

    @contextmanager
    def load(self, path, execution, *, alive):
        alive(0.5)
        yield self.model

    @contextmanager
    def context(self, model, execution, *, sequences):
        self.contexts.append(Context(model, execution, sequences))
        yield self.contexts[-1]


def run(items, *, batch=16, sequences=6, tick=lambda done, total: None, **chosen):
    """Ask the model; returns the payload and the engine."""
    engine = Engine(**chosen)
    plan = TasksPlan(items=tuple(items), batch=batch, sequences=sequences)
    payload = tasks.measure(engine, "model.gguf", plan, tick)
    # As the host hears of it.
    return msgspec.json.decode(msgspec.json.encode(payload)), engine


def read(payload) -> list[Answer]:
    return msgspec.convert(payload["answers"], list[Answer])


def from_scratch(option: Option, prompt: str, after=after, begin=(BOS,)) -> tuple[float, bool]:
    """Score an option by itself, in float64; nothing of the code under test is used."""
    context = prompt + option.lead
    before = split(context.rstrip())
    scored = split(context + option.text)[len(before) :]
    tokens = [*begin, *before]
    loglik, greedy = 0.0, True
    for token in scored:
        logits = after(tokens).astype(np.float64)
        logits -= logits.max()
        loglik += logits[token] - math.log(np.exp(logits).sum())
        greedy &= int(logits.argmax()) == token
        tokens.append(token)
    return loglik, greedy


def greedily(item: Item, after=after) -> str:
    """Generate an answer by itself."""
    tokens, made = [BOS, *split(item.prompt)], []
    while len(made) < item.most and (token := int(after(tokens).argmax())) != END:
        made.append(token)
        tokens.append(token)
        text = "".join(PIECES[one] for one in made)
        if places := [text.index(stop) for stop in item.stop if stop in text]:
            return text[: min(places)]
    return "".join(PIECES[one] for one in made)


def choice(name: str, prompt: str, *options: str, form: Form = Form.CHOICE) -> Item:
    return Item(id=name, form=form, prompt=prompt, options=tuple(map(Option, options)), right=(0,))


def exact(name: str, prompt: str, *stop: str, most: int = 8) -> Item:
    return Item(id=name, form=Form.EXACT, prompt=prompt, targets=("a",), stop=stop, most=most)


def checked(items, payload, after=after) -> None:
    """Every answer is what it is from scratch."""
    assert payload["ids"] == [item.id for item in items]
    for item, answer in zip(items, read(payload), strict=True):
        if item.form is Form.EXACT:
            assert answer == Answer(text=greedily(item, after)), item
            continue
        expected = [from_scratch(option, item.prompt, after) for option in item.options]
        assert answer.logliks == pytest.approx([loglik for loglik, _ in expected], abs=1e-5)
        assert answer.greedy == (item.form is Form.CLOZE and expected[0][1])


# -- what is asked, drawn

texts = st.text("abcdefgh .\n", max_size=12)
openings = st.sampled_from(["", "ab ", "abc abcd. ", "abc abcd. fgh\n\n" * 3])
endings = st.text("abcdefgh .", min_size=1, max_size=6).map(lambda text: " g" + text)


@st.composite
def asked(draw) -> list[Item]:
    items = []
    for i in range(draw(st.integers(1, 9))):
        prompt = draw(openings) + draw(texts)
        form = draw(st.sampled_from(list(Form)))
        if form is Form.EXACT:
            stop = draw(st.lists(st.sampled_from(["a", "\n", "d.", "gh"]), max_size=2))
            items.append(exact(str(i), prompt, *stop, most=draw(st.integers(0, 9))))
            continue
        count = 1 if form is Form.CLOZE else draw(st.integers(1, 6))
        same = draw(st.booleans())
        options = tuple(
            Option(" ge" if same else draw(endings), draw(texts) if same else "")
            for _ in range(count)
        )
        items.append(Item(id=str(i), form=form, prompt=prompt, options=options, right=(0,)))
    return items


@lawful
@given(asked(), st.integers(1, 40), st.integers(1, 9), st.booleans())
def test_it_is_what_it_is_from_scratch(items, batch, sequences, forks):
    payload, engine = run(items, batch=batch, sequences=sequences, forks=forks)
    checked(items, payload)
    [context] = engine.contexts
    assert payload["evaluated"] == sum(len(one.tokens) for one in context.fed)
    assert payload["evaluated"] <= payload["scratch"]
    assert payload["nonfinite"] == 0
    if not forks:
        assert payload["evaluated"] == payload["scratch"]


@lawful
@given(asked(), st.integers(1, 40), st.integers(1, 9))
def test_what_is_evaluated_together_depends_on_items_and_plan_only(items, batch, sequences):
    def other(tokens):
        return -after(tokens)

    options = [item for item in items if item.form is not Form.EXACT]
    first, second = (
        run(options, batch=batch, sequences=sequences, after=one)[1].contexts[0].fed
        for one in (after, other)
    )
    assert first == second


# -- what is evaluated once


def test_options_share_their_prompt_and_what_they_begin_with():
    item = choice("one", "ab abc d.", " gh e", " gh f", " ge")
    payload, engine = run([item], batch=64)
    prompt = [BOS, *split("ab abc d.")]
    # The last token of each option is never fed: nothing after it is asked for.
    [batch] = engine.contexts[0].fed
    assert batch.tokens == (*prompt, *split(" gh "))
    assert payload["evaluated"] == len(prompt) + 4
    assert payload["scratch"] == 3 * len(prompt) + 4 + 4 + 2
    checked([item], payload)


def test_letters_after_one_prompt_need_one_sequence_and_one_row():
    item = choice("one", "ab abc d.", " e", " f", " g", " h")
    payload, engine = run([item], batch=64, sequences=1)
    [batch] = engine.contexts[0].fed
    assert len(batch.tokens) == 1 + len(split("ab abc d.")) + 1
    assert set(batch.sequences) == {(1,)}
    checked([item], payload)


def test_several_items_go_into_one_batch_as_far_as_they_fit():
    items = [choice(str(i), letter * 5, " g a", " h e") for i, letter in enumerate("efghefgh")]
    # 5 of the prompt and a blank, then one or two of each option; BOS once, then it is there.
    payload, engine = run(items, batch=36)
    assert [len(one.tokens) for one in engine.contexts[0].fed] == [28, 27, 18]
    checked(items, payload)
    payload, engine = run(items, batch=36, sequences=4)
    assert all(max(map(max, one.sequences)) <= 4 for one in engine.contexts[0].fed)
    checked(items, payload)


def test_a_long_beginning_is_not_evaluated_again():
    shots = "ab abc d. fgh\n\n" * 8
    items = [choice(str(i), f"{shots}{end}", " gh", " ha") for i, end in enumerate("efghefghe")]
    payload, engine = run(items, batch=32)
    long = len(split(shots)) + 1
    assert long > 64
    assert len(engine.contexts[0].fed) > 3
    assert payload["evaluated"] <= long + len(items) * 6
    assert payload["scratch"] >= 2 * len(items) * long
    # One prompt, and the rest of a batch.
    assert engine.contexts[0].execution.n_ctx == 256
    checked(items, payload)
    answers = [exact(str(i), f"{shots}{i % 4 * 'e'}f") for i in range(40)]
    payload, engine = run([*items, *answers], batch=32, sequences=64)
    checked([*items, *answers], payload)
    made = sum(len(split(answer.text)) for answer in read(payload))
    assert payload["evaluated"] <= long + len(items) * 6 + len(answers) * 6 + 2 * made


def test_the_same_prompt_again_is_scored_again():
    """Its logits are wanted, and they are not in the cache."""
    items = [choice(str(i), "ab abc d.", " gh", " ge") for i in range(4)]
    items += [exact(str(i), "ab abc d.") for i in range(4, 7)]
    payload, _ = run(items, batch=12, sequences=2)
    checked(items, payload)


def test_a_state_that_cannot_be_cut_is_never_shared():
    items = [choice("0", "ab abc", " gh", " ge"), choice("1", "ab abc", " gh"), exact("2", "ab")]
    payload, engine = run(items, batch=64, forks=False)
    checked(items, payload)
    assert engine.contexts[0].sequences == 2
    assert payload["evaluated"] == payload["scratch"]


# -- tokens


def test_blanks_at_the_end_of_the_prompt_are_scored():
    """'a' and a blank before it are one token, which the prompt's own blank must not prevent."""
    [blank] = tasks.encoded(Model(), choice("one", "cd ", "abc"))
    assert blank.tokens == (BOS, *split("cd"), *split(" abc")[:-1])
    assert blank.targets == tuple(split(" abc"))
    [plain] = tasks.encoded(Model(), choice("one", "cd", " abc"))
    assert plain == blank
    [none] = tasks.encoded(Model(), choice("one", "cd", "e"))
    assert none == tasks.Path((BOS, *split("cd")), tuple(split("e")))


def test_what_is_before_the_option_is_cut_by_itself():
    """The prompt ends with 'ab', which with the option's first letter would be one token."""
    [path] = tasks.encoded(Model(), choice("one", "e.ab", "cef"))
    assert split("e.abcef") != [*split("e.ab"), *split("cef")]
    assert path == tasks.Path((BOS, *split("e.ab"), *split("e")), tuple(split("ef")))


@pytest.mark.parametrize("prompt", ["", " \n"])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_bos_stands_for_an_empty_prompt(prompt, adds_bos):
    [path] = tasks.encoded(Model(adds_bos=adds_bos), choice("one", prompt, "ef"))
    whole = split(prompt + "ef")
    assert path == tasks.Path((BOS, *whole[:-1]), tuple(whole))


def test_without_bos_the_first_token_is_not_scored():
    model = Model(adds_bos=False, bos=-1)
    [path] = tasks.encoded(model, choice("one", "", "efg"))
    assert path == tasks.Path(tuple(split("ef")), tuple(split("fg")))
    [path] = tasks.encoded(model, choice("one", "h", "efg"))
    assert path == tasks.Path(tuple(split("hef")), tuple(split("efg")))
    payload, _ = run([choice("one", "", "efg")], adds_bos=False, bos=-1)
    assert read(payload)[0].tokens == (2,)


def test_no_bos_where_the_model_wants_none():
    [path] = tasks.encoded(Model(adds_bos=False), choice("one", "h", "e"))
    assert path == tasks.Path(tuple(split("h")), tuple(split("e")))
    [path] = tasks.encoded(Model(adds_bos=False), exact("one", "h"))
    assert path == tasks.Path(tuple(split("h")))


def test_tokens_are_counted_for_each_option():
    payload, _ = run([choice("one", "h", " e", " abcd.", " ef gh", form=Form.MASS)])
    assert read(payload)[0].tokens == tuple(
        len(split(f" {text}")) for text in ("e", "abcd.", "ef gh")
    )


# -- what cannot be asked


@pytest.mark.parametrize(
    ("item", "chosen", "said"),
    [
        (choice("far", "e", "f", ""), {}, "item 'far': $.options[1] has no token after those"),
        (choice("far", "a", "b"), {}, "item 'far': $.options[0] has no token after those"),
        (choice("far", "", "e"), {"adds_bos": False, "bos": -1}, "'far': $.options[0] has no"),
        (exact("far", ""), {"adds_bos": False, "bos": -1}, "'far': its prompt is empty, and the"),
        (
            choice("far", "e" * TRAIN, "f"),
            {},
            f"'far': its prompt and $.options[0] are {TRAIN + 1} tokens; the model takes {TRAIN}",
        ),
        (
            exact("far", "e" * (TRAIN - 8)),
            {},
            f"item 'far': its prompt and its answer are {TRAIN + 1} tokens",
        ),
    ],
)  # fmt: skip
def test_an_item_that_cannot_be_asked_is_named(item, chosen, said):
    with pytest.raises(TextError) as raised:
        run([choice("near", "e", "f gh"), item], **chosen)
    assert said in str(raised.value)


def test_an_item_as_long_as_the_model_takes_is_asked():
    items = [choice("0", "e" * (TRAIN - 1), "f", "g"), exact("1", "e" * (TRAIN - 9))]
    payload, engine = run(items, batch=64)
    checked(items, payload)
    assert engine.contexts[0].execution.n_ctx == 768


# -- cloze, exact


@pytest.mark.parametrize(
    ("text", "greedy"), [("e", True), ("efgh", True), ("b", False), ("efgb", False), ("fgh", False)]
)
def test_cloze_is_greedy_only_if_every_token_is_likeliest(text, greedy):
    def steady(tokens):
        """After any token comes the next letter."""
        logits = after(tokens)
        logits[2 + (tokens[-1] - 1) % 8] = 20
        return logits

    item = choice("one", "hd", text, form=Form.CLOZE)
    payload, _ = run([item], after=steady)
    assert read(payload)[0].greedy == greedy
    checked([item], payload, steady)


def saying(text: str, prompt: str):
    """A model that says a text after a prompt, and then ends."""
    said = [*split(text), END]

    def logits(tokens):
        place = len(tokens) - len(split(prompt)) - 1
        made = np.zeros(len(PIECES), dtype=np.float32)
        made[said[min(max(place, 0), len(said) - 1)]] = 5
        return made

    return logits


@pytest.mark.parametrize(
    ("stop", "most", "text"),
    [
        ((), 99, "abcef gh.\n\nabc"),
        (("\n",), 99, "abcef gh."),
        (("zz", "f g"), 99, "abce"),
        # Within the first token; and two at once, the later named first.
        (("bc",), 99, "a"),
        (("c", "b"), 99, "a"),
        ((), 4, "abcef "),
        ((), 1, "abc"),
        ((), 0, ""),
    ],
)
def test_an_answer_ends_where_it_is_told_to(stop, most, text):
    items = [exact(str(i), "he", *stop, most=most) for i in range(3)]
    after = saying("abcef gh.\n\nabc", "he")
    payload, _ = run(items, after=after)
    assert [answer.text for answer in read(payload)] == [text] * 3


def test_the_last_token_of_an_answer_is_not_fed():
    payload, _ = run([exact("one", "he", most=4)], after=saying("abcef gh.", "he"))
    assert payload["evaluated"] == payload["scratch"] == len([BOS, *split("he")]) + 3


def test_answers_go_on_from_what_options_left():
    shots = "ab abc d. fgh\n\n" * 8
    items = [choice("0", f"{shots}e", " gh"), exact("1", f"{shots}f", most=0)]
    payload, _ = run(items, batch=32)
    checked(items, payload)
    assert payload["evaluated"] < len(split(shots)) + 8


def test_answers_are_generated_together():
    items = [exact(str(i), "abcdefgh"[i % 8] * 7, most=5) for i in range(20)]
    payload, engine = run(items, batch=64, sequences=64)
    checked(items, payload)
    widths = [len(one.tokens) for one in engine.contexts[0].fed]
    steps = [width for width in widths if width <= tasks.TOGETHER]
    assert max(steps) == tasks.TOGETHER
    assert len(widths) <= 2 * (2 + 5)
    # As many sequences as the plan has, then as many tokens as there may be.
    _, engine = run(items, batch=64, sequences=3)
    assert max(max(map(max, one.sequences)) for one in engine.contexts[0].fed) == 3
    long = [exact(str(i), letter * 100, most=150) for i, letter in enumerate("efghefgh")]
    payload, engine = run(long, batch=64, sequences=64)
    checked(long, payload)
    assert engine.contexts[0].execution.n_ctx <= 768


# -- logits that are not finite


def test_what_is_not_finite_is_told_and_harms_no_other():
    bad = [BOS, *split("ab f")]

    def broken(tokens):
        logits = after(tokens)
        if tokens == bad:
            logits[3] = math.nan
            logits[4] = math.inf
        return logits

    items = [
        choice("0", "ab", " fgh", " egh", " f"),
        choice("1", "ab f", "gh", form=Form.CLOZE),
        exact("2", "ab f"),
        choice("3", "ef", " fgh", " egh"),
    ]
    payload, _ = run(items, after=broken)
    first, second, third, fourth = read(payload)
    assert first.logliks[0] is None
    expected = [from_scratch(option, "ab") for option in items[0].options]
    assert first.logliks[1:] == pytest.approx([loglik for loglik, _ in expected[1:]])
    assert second.logliks == (None,)
    assert second.greedy is False
    assert (third.text, third.finite) == ("", False)
    assert None not in fourth.logliks
    # Two logits each time: of the first two items, whose tokens differ not, and of the third.
    assert payload["nonfinite"] in {4, 6}


def test_a_loglik_keeps_its_digits():
    """Against exact sums: a large vocabulary, and logits far from nought."""
    rng = np.random.default_rng(3)
    row = (rng.normal(0, 4, 200_000) + 300).astype(np.float32)
    wide = row.astype(np.float64)
    total = wide.max() + math.log(math.fsum(np.exp(wide - wide.max()).tolist()))
    assert tasks.log_p(row, [5, 7]) == pytest.approx([wide[5] - total, wide[7] - total], abs=1e-6)


# -- signs of life, and nothing to do


def test_every_item_is_told():
    ticks = []
    items = [choice(str(i), "ab" * i, " gh", " ge") for i in range(6)] + [exact("6", "ab")]
    run(items, batch=8, tick=lambda done, total: ticks.append((done, total)))
    assert {total for _, total in ticks} == {7}
    done = [done for done, _ in ticks]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 7)
    assert len(set(done)) > 4


def test_no_items():
    payload, _ = run([])
    assert payload == {"ids": [], "answers": [], "nonfinite": 0, "evaluated": 0, "scratch": 0}


def test_the_plan_travels():
    plan = TasksPlan(
        items=(choice("one", "ab", " e", " f"), exact("two", "ab", "\n")),
        execution=Execution(threads=1),
    )
    job = MeasureJob(artifact="model.gguf", tasks=plan)
    assert msgspec.json.decode(msgspec.json.encode(job), type=MeasureJob) == job
    assert (plan.sequences, plan.batch) == (64, 512)
