"""Answers through one cache for many against answers one by one, on real weights."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import short

from pytest_ondevice.model.task import Answer, Form, Item, Option
from pytest_ondevice.probe import runner
from pytest_ondevice.probe.protocol import Execution, MeasureJob, ModelJob, TasksPlan

TOLERANCE = 0.05
"""Nats per scored token. What else is in a batch changes how sums are rounded, and quantized
weights make more of it; a token too much or too few in the cache changes whole nats."""

SHOTS = """Question: What is the capital of Italy?
Answer: Rome

Question: How many legs does a spider have?
Answer: eight

Question: Which animal gives us wool?
Answer: the sheep

"""

ASKED = [
    ("", "The first letter of the alphabet is", [" A", " B", " the letter Q", " not known "]),
    (SHOTS, "Question: What is the capital of Spain?\nAnswer:", [" Madrid", " Rome", " a dog"]),
    (SHOTS, "Question: What do bees make?\nAnswer: ", ["honey", "milk", "bread and butter"]),
    (SHOTS, "Question: What do bees make?\nAnswer:", [" A", " B", " C", " D"]),
    ("", "", ["Once upon a time", "The"]),
]

LEAD = """
import json, sys
import msgspec
import numpy as np
from pytest_ondevice.model.task import Item
from pytest_ondevice.probe import tasks
from pytest_ondevice.probe.engines import llama_cpp as engine
from pytest_ondevice.probe.protocol import Execution, TasksPlan

model_file, items = json.loads(sys.argv[1])
items = msgspec.convert(items, tuple[Item, ...])
execution = Execution(threads=1)
engine.start()
said = {}
"""


def native(body: str, model, items) -> dict:
    """Run code in a process of its own, because native code may take it down."""
    code = LEAD + textwrap.dedent(body) + "\nprint(json.dumps(said))"
    given = [str(model), [json.loads(json.dumps(item)) for item in map(builtins, items)]]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(given)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def builtins(item: Item) -> object:
    import msgspec

    return msgspec.to_builtins(item)


@pytest.fixture(scope="module")
def items() -> list[Item]:
    options = [tuple(map(Option, texts)) for *_, texts in ASKED]
    return [
        Item(id=str(i), form=Form.CHOICE, prompt=shots + prompt, options=own, right=(0,))
        for i, ((shots, prompt, _), own) in enumerate(zip(ASKED, options, strict=True))
    ]


@pytest.fixture(scope="module")
def scored(shortened, items) -> dict:
    """Score all options in several ways."""
    return native(
        """
        for batch, sequences in ((512, 64), (512, 5), (24, 64), (16, 3), (7, 1)):
            plan = TasksPlan(items=items, execution=execution, batch=batch, sequences=sequences)
            payload = tasks.measure(engine, model_file, plan, lambda done, total: None)
            again = tasks.measure(engine, model_file, plan, lambda done, total: None)
            said[f"{batch}/{sequences}"] = payload | {"same": payload == again}

        def alone(model, ctx, prompt, text):
            whole = model.tokenize(prompt + text)
            given = model.tokenize(prompt.rstrip())
            if not given:
                given, whole = [model.bos], [model.bos, *whole]
            ctx.clear()
            ctx.feed(whole, 0, logits_from=0)
            rows = ctx.logits(len(whole)).astype(np.float64)
            rows -= rows.max(axis=1, keepdims=True)
            rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
            places = range(len(given), len(whole))
            return [float(sum(rows[i - 1, whole[i]] for i in places)), len(places)]

        with (
            engine.load(model_file, execution) as model,
            engine.context(model, execution) as ctx,
            engine.context(model, execution, sequences=3) as many,
        ):
            said["alone"] = [
                [alone(model, ctx, item.prompt, option.text) for option in item.options]
                for item in items
            ]
            tokens = model.tokenize(items[1].prompt)
            ctx.clear()
            ctx.feed(tokens, 0, logits_from=0)
            expected = ctx.logits(len(tokens)).copy()
            # A context of many sequences is one of one sequence as well, also after others.
            many.feed_many(tokens[:9], range(9), [(1, 2)] * 9, [False] * 9)
            said["rows"] = len(many.feed_many(tokens[9:11], [9, 9], [(1,), (2,)], [True, False]))
            many.clear()
            many.feed(tokens, 0, logits_from=0)
            said["as one"] = float(np.abs(many.logits(len(tokens)) - expected).max())
        """,
        shortened,
        items,
    )


@pytest.mark.parametrize("how", ["512/64", "512/5", "24/64", "16/3", "7/1"])
def test_options_score_as_they_do_alone(scored, items, how):
    payload = scored[how]
    assert payload["ids"] == [item.id for item in items]
    assert payload["nonfinite"] == 0
    found, expected, counts = [], [], []
    for answer, alone in zip(payload["answers"], scored["alone"], strict=True):
        assert answer["tokens"] == [count for _, count in alone]
        found += answer["logliks"]
        expected += [loglik for loglik, _ in alone]
        counts += answer["tokens"]
    far = np.abs(np.array(found) - expected) / counts
    assert far.max() < TOLERANCE, far
    # The test can tell one option from another.
    assert np.ptp(np.array(expected) / counts) > 20 * TOLERANCE
    assert payload["same"], "the same plan gave other digits"


def test_what_is_shared_is_evaluated_once(scored):
    whole, narrow = scored["512/64"], scored["7/1"]
    assert whole["scratch"] == narrow["scratch"]
    assert whole["evaluated"] < whole["scratch"] / 4
    assert narrow["evaluated"] < narrow["scratch"] / 2


def test_a_context_of_many_is_one_of_one(scored):
    assert scored["rows"] == 1
    assert scored["as one"] < TOLERANCE


def test_answers_are_those_of_the_one_sequence_that_users_have():
    """Whole weights, and prompts that leave no doubt: rounding must not decide."""
    prompts = ["1, 2, 3, 4,", "A, B, C, D, E,", "Monday, Tuesday, Wednesday,"]
    items = [
        Item(id=prompt, form=Form.EXACT, prompt=prompt, targets=("",), stop=stop, most=10)
        for prompt, stop in zip(prompts, [(), (" H",), ()], strict=True)
    ]
    cloze = Item(id="cloze", form=Form.CLOZE, prompt=prompts[0], options=(Option(" 5"),))
    plan = TasksPlan(items=(*items, cloze), execution=Execution(threads=1), batch=64)
    weights = str(short.weights())
    events = []
    result = runner.run(
        MeasureJob(artifact=weights, tasks=plan), timeout=300, on_event=events.append
    )
    assert not result.endings
    answers = [Answer(**answer) for answer in result.payloads["tasks"]["answers"]]
    assert answers[3].greedy
    assert any(event.event == "progress" and event.done == event.total == 4 for event in events)
    for item, answer in zip(items, answers, strict=False):
        job = ModelJob(
            artifact=weights,
            call="generate",
            text=item.prompt,
            max_tokens=item.most,
            execution=Execution(threads=1),
        )
        alone = str(runner.run(job, timeout=300).payloads["generate"]["text"])
        if item.stop:
            assert item.stop[0] in alone
            alone = alone.partition(item.stop[0])[0]
        assert answer.text == alone
        assert answer.text.strip()


def test_an_item_that_is_too_long_is_named():
    item = Item(id="far", form=Form.CHOICE, prompt="word " * 9000, options=(Option(" a"),))
    plan = TasksPlan(items=(item,), execution=Execution(threads=1))
    result = runner.run(MeasureJob(artifact=str(short.weights()), tasks=plan), timeout=300)
    assert "tasks" not in result.payloads
    said = result.endings["tasks"].message
    assert said.startswith("item 'far': its prompt and $.options[0] are ")
    assert said.endswith(" tokens; the model takes 8192 at most")
