"""Loss against the reference: the order of windows, their logits, and whole passes of an engine."""

from __future__ import annotations

import array
import base64
import contextlib
import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice.probe import decode
from pytest_ondevice.probe.fidelity import COLUMNS, cut, log_softmax, measure, order, scored_logits
from pytest_ondevice.probe.protocol import DecodePlan, Execution, FidelityPlan, Text
from pytest_ondevice.probe.reference import Reader, TextError

lawful = settings(max_examples=60, deadline=None, derandomize=True, database=None)
EXPECTED_ORDER = [
    ("code", 1),
    ("narrative", 1),
    ("table", 0),
    ("narrative", 0),
    ("code", 0),
    ("narrative", 2),
]
kinds = st.dictionaries(st.sampled_from("abcdefg"), st.integers(1, 6), min_size=1)

# The order of windows


@lawful
@given(kinds, st.integers(0, 2**32))
def test_every_look_holds_every_kind(counts, seed):
    chosen = order(counts, None, seed)
    everything = {(kind, i) for kind, count in counts.items() for i in range(count)}
    assert len(chosen) == len(everything)
    assert set(chosen) == everything
    assert {kind for kind, _ in chosen[: len(counts)]} == set(counts)
    # In rounds: no kind is ever more than one window ahead of another that has one left.
    taken = dict.fromkeys(counts, 0)
    for kind, _ in chosen:
        taken[kind] += 1
        left = [taken[other] for other in counts if taken[other] < counts[other]]
        assert not left or taken[kind] <= min(left) + 1


@lawful
@given(kinds, st.integers(0, 2**32), st.integers(0, 50))
def test_a_budget_is_the_beginning_of_the_longer_order(counts, seed, most):
    assert order(counts, most, seed) == order(counts, None, seed)[:most]


@lawful
@given(kinds, st.integers(0, 2**32))
def test_the_order_does_not_depend_on_that_of_the_kinds(counts, seed):
    assert order(counts, None, seed) == order(dict(reversed(counts.items())), None, seed)


def test_the_order_is_the_same_on_every_machine():
    # A changed order makes every stored baseline look at other windows.
    counts = {"narrative": 3, "code": 2, "table": 1, "empty": 0}
    assert order(counts, None, 20505) == EXPECTED_ORDER
    assert order(counts, 4, 20505) == EXPECTED_ORDER[:4]


def test_seeds_permute_kinds_and_windows():
    counts = {"a": 6, "b": 6, "c": 6}
    orders = [order(counts, None, seed) for seed in range(30)]
    assert len({tuple(one) for one in orders}) == 30
    assert {one[0][0] for one in orders} == {"a", "b", "c"}
    first_of_a = {next(i for kind, i in one if kind == "a") for one in orders}
    assert first_of_a == set(range(6))
    # The first round's kinds are permuted anew in the second.
    assert any([k for k, _ in one[:3]] != [k for k, _ in one[3:6]] for one in orders)


def test_nothing_to_order():
    assert order({}, None, 1) == []
    assert order({"a": 0}, None, 1) == []
    assert order({"a": 3}, 0, 1) == []


# Log-probabilities


def exact_log_softmax(logits):
    logits = np.asarray(logits, dtype=np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0, 100.0])
@pytest.mark.parametrize("shift", [0.0, -30.0, 1e4])
def test_log_softmax_agrees_with_float64(scale, shift):
    rng = np.random.default_rng(3)
    logits = (rng.standard_normal((19, 20_000)) * scale + shift).astype(np.float32)
    given_logits = logits.copy()
    found = log_softmax(logits)
    assert found.dtype == np.float32
    exact = exact_log_softmax(given_logits)
    assert np.abs(found - exact).max() <= 4e-7 * max(1.0, np.abs(exact).max())
    assert np.exp(found, dtype=np.float64).sum(axis=1) == pytest.approx(1.0, abs=2e-6)
    # The engine's logits are a view of the runtime's memory: not ours to change.
    assert (logits == given_logits).all()


def test_log_softmax_of_extremes():
    logits = np.array([[0.0, -1e30, 3e38], [5.0, 5.0, 5.0]], dtype=np.float32)
    found = log_softmax(logits)
    assert found[0, 2] == 0
    assert found[1] == pytest.approx([-math.log(3)] * 3)


# Cutting the text


class FakeModel:
    """Tokens are characters; ``<`` begins a text."""

    bos = ord("<")

    def __init__(self, *, adds_bos=False, n_vocab=128):
        self.adds_bos = adds_bos
        self.n_vocab = n_vocab

    def tokenize(self, text):
        return list(text.encode())

    def n_bytes(self, tokens):
        """Let tokens stand for pieces of different lengths."""
        return sum(token % 5 for token in tokens)


def texts_in(folder, texts):
    made = []
    for kind, text in texts.items():
        path = folder / f"{kind}.txt"
        path.write_text(text, "utf-8")
        made.append(Text(kind, str(path)))
    return tuple(made)


def cut_of(folder, texts, model=None, seed=20505):
    return cut(model or FakeModel(), texts_in(folder, texts), seed=seed, n_ctx=8)


def test_text_is_cut_into_whole_windows(tmp_path):
    # Three whole windows and a rest; one whole window; none.
    texts = {"a": "0123456789abcdefghijklmnop", "b": "ABCDEFGHIJKLMN", "c": "short"}
    ids, windows = cut_of(tmp_path, texts)
    assert sorted(ids) == ["a:0", "a:1", "a:2", "b:0"]
    assert windows.dtype == np.int32
    found = {name: bytes(map(int, row)).decode() for name, row in zip(ids, windows, strict=True)}
    assert found == {"a:0": "01234567", "a:1": "89abcdef", "a:2": "ghijklmn", "b:0": "ABCDEFGH"}
    order_of_plan = [f"{kind}:{i}" for kind, i in order({"a": 3, "b": 1}, None, 20505)]
    assert ids == order_of_plan


def test_another_seed_is_another_order(tmp_path):
    texts = {"a": "0123456789abcdefghijklmnop", "b": "ABCDEFGHIJKLMN"}
    orders = {tuple(cut_of(tmp_path, texts, seed=seed)[0]) for seed in range(9)}
    assert len(orders) > 1
    assert {tuple(sorted(one)) for one in orders} == {("a:0", "a:1", "a:2", "b:0")}


def test_every_window_begins_as_the_model_wants(tmp_path):
    texts = {"a": "0123456789abcdef"}
    ids, windows = cut_of(tmp_path, texts, FakeModel(adds_bos=True))
    found = {name: bytes(map(int, row)).decode() for name, row in zip(ids, windows, strict=True)}
    # In the place of the first token, as llama-perplexity does it: the rest stays where it is.
    assert found == {"a:0": "<1234567", "a:1": "<9abcdef"}


def test_too_short_a_text_is_one_sentence(tmp_path):
    with pytest.raises(TextError) as caught:
        cut_of(tmp_path, {"a": "0123456", "b": "xyz"})
    assert str(caught.value) == "the evaluation text has 10 tokens; one window needs 8"


def test_a_text_of_exactly_one_window_is_enough(tmp_path):
    ids, _ = cut_of(tmp_path, {"a": "01234567"})
    assert ids == ["a:0"]


# The logits of a window


class FakeContext:
    """Logits are a function of a token and its place; each feed overwrites those before it.

    As the runtime does it: what ``logits`` hands out is a view of the buffer.
    """

    def __init__(self, table, seen=None, broken=None):
        self.table = table
        self.broken = broken
        self.buffer = np.zeros((64, table.shape[1]), dtype=np.float32)
        self.fed = [] if seen is None else seen
        self.windows = 0
        self.position = 0
        self.rows = 0

    def clear(self):
        self.windows += 1
        self.position = 0

    def feed(self, tokens, start, logits_from=None):
        assert start == self.position, "a piece was fed out of its place"
        self.position += len(tokens)
        first = len(tokens) - 1 if logits_from is None else logits_from
        self.fed.append((start, len(tokens), first))
        self.rows = max(0, len(tokens) - first)
        self.buffer[:] = math.nan
        for row, place in enumerate(range(first, len(tokens))):
            self.buffer[row] = self.table[tokens[place]] + 0.01 * (start + place)
        if self.broken is not None and self.windows == 2 and self.rows > 1:
            self.buffer[1, 3] = self.broken

    def logits(self, count):
        assert count == self.rows, f"{count} rows of {self.rows}"
        return self.buffer[:count]


def table_of(seed=2, scale=3, n_vocab=128):
    return np.random.default_rng(seed).standard_normal((128, n_vocab)).astype(np.float32) * scale


@pytest.mark.parametrize("n_ctx", [8, 9])
@pytest.mark.parametrize("n_ubatch", [1, 2, 3, 4, 5, 7, 8, 9, 64])
def test_logits_are_of_the_second_half_whatever_the_micro_batches(n_ctx, n_ubatch):
    table = table_of()
    window = np.arange(40, 40 + n_ctx, dtype=np.int32)
    context = FakeContext(table)
    found = scored_logits(context, window, Execution(n_ctx=n_ctx, n_ubatch=n_ubatch))
    # The last position predicts a token outside the window.
    places = range(n_ctx // 2, n_ctx - 1)
    expected = np.array([table[window[place]] + np.float32(0.01 * place) for place in places])
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert found == pytest.approx(expected)
    assert sum(length for _, length, _ in context.fed) == n_ctx


def test_one_micro_batch_is_viewed_not_copied():
    context = FakeContext(table_of())
    found = scored_logits(context, np.arange(8, dtype=np.int32), Execution(n_ctx=8, n_ubatch=8))
    assert np.shares_memory(found, context.buffer)


# A whole pass, with a runtime that is a table


class FakeEngine:
    """Models by path; ``model.gguf`` and ``reference.gguf`` are all that there is."""

    def __init__(self, harm=0.0, broken=None, *, reference=None):
        self.table = table_of() + table_of(5, 1) * harm
        self.broken = broken
        self.models = {"model.gguf": FakeModel(), "reference.gguf": reference or FakeModel()}
        self.fed = []
        self.open = []
        self.caches = []

    def isa(self):
        return "avx2+fma"

    @contextlib.contextmanager
    def load(self, path, execution, *, alive=lambda _: None):
        alive(0.5)
        self.open.append(path)
        try:
            yield self.models[path]
        finally:
            self.open.remove(path)

    @contextlib.contextmanager
    def context(self, model, execution):
        self.caches.append((execution.type_k, execution.type_v))
        if model is self.models["reference.gguf"]:
            yield FakeContext(table_of(n_vocab=model.n_vocab))
        else:
            yield FakeContext(self.table, self.fed, self.broken)


TEXTS = {"a": "the quick brown fox jumps over it", "b": "lorem ipsum dolor sit amet, con"}


def plan_of(folder, texts=None, n_ubatch=3, kv="f16", **fields):
    fields = {"reference": str(folder / "r.npz"), "write": True} | fields
    return FidelityPlan(
        texts=texts_in(folder, texts or TEXTS),
        execution=Execution(n_ctx=8, n_ubatch=n_ubatch, type_k=kv, type_v=kv),
        **fields,
    )


def run(folder, engine, **fields):
    ticks = []
    plan = plan_of(folder, **fields)
    made = measure(engine, "model.gguf", plan, lambda *at: ticks.append(at))
    assert engine.open == []
    return made, ticks


def per_position(text):
    values = array.array("f")
    values.frombytes(base64.b64decode(text))
    return np.array(values)


def expected_columns(folder, harm, first=0, last=None):
    """Every column from its definition, in float64, of the whole vocabulary."""
    rows = {name: [] for name in (*COLUMNS, "token_kld", "token_dp")}
    for window in cut_of(folder, TEXTS)[1][first:last]:
        # Positions 4, 5 and 6 predict the tokens after them; the last one has none.
        places = np.arange(4, 7)
        moved = np.float32(0.01) * places[:, None]
        log_p = exact_log_softmax(table_of()[window[4:7]] + moved)
        log_q = exact_log_softmax((table_of() + table_of(5, 1) * harm)[window[4:7]] + moved)
        at, targets = np.arange(3), window[5:]
        dp = np.exp(log_q[at, targets]) - np.exp(log_p[at, targets])
        kld = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
        rows["nll"].append(-log_q[at, targets].mean())
        rows["kld"].append(kld.mean())
        rows["ln_ratio"].append((log_p - log_q)[at, targets].mean())
        rows["same_top"].append((log_p.argmax(axis=1) == log_q.argmax(axis=1)).mean())
        rows["dp"].append(dp.mean())
        rows["square_dp"].append((dp**2).mean())
        rows["token_kld"].extend(kld)
        rows["token_dp"].extend(dp)
    return rows


def test_a_pass_of_the_reference(tmp_path):
    engine = FakeEngine()
    kept, ticks = run(tmp_path, engine, top=16, tail=16)
    assert (kept["reference"], kept["nonfinite"], kept["scored"]) == (True, 0, 3)
    assert kept["available"] == len(kept["ids"]) == 7
    assert kept["isa"] == "avx2+fma"
    assert ticks == [(0, 1), *((i + 1, 7) for i in range(7))]
    # Windows of 8 in pieces of 3; logits from the fifth token on.
    assert engine.fed == [(0, 3, 4), (3, 3, 1), (6, 2, 0)] * 7
    assert kept["nll"] == pytest.approx(expected_columns(tmp_path, 0.0)["nll"], rel=1e-5)
    # It differs from itself by nothing.
    for name in ("kld", "ln_ratio", "dp", "square_dp"):
        assert kept[name] == [0.0] * 7
    assert kept["same_top"] == [1.0] * 7
    assert per_position(kept["token_kld"]).tolist() == [0.0] * 21
    with Reader(tmp_path / "r.npz") as reader:
        assert list(reader.ids) == kept["ids"]
        assert (reader.head.n_vocab, reader.head.n_ctx, reader.scored) == (128, 8, 3)
        assert (reader.head.top, reader.head.tail, reader.head.seed) == (16, 16, 20505)


def test_what_the_file_says_of_its_making(tmp_path):
    about = {
        "model": "tiny",
        "source": "0" * 64,
        "tokenizer": "t",
        "text": "x",
        "runtime": "r 1",
        "runtime_digest": "d",
        "cpu": "c",
        "created": "2026-01-01T00:00:00+00:00",
    }
    run(tmp_path, FakeEngine(), about=about)
    with Reader(tmp_path / "r.npz") as reader:
        assert {name: getattr(reader.head, name) for name in about} == about
        assert reader.head.execution["n_ubatch"] == 3
        assert "threads" not in reader.head.execution


@pytest.mark.parametrize("n_ubatch", [3, 8])
def test_a_pass_against_the_file(tmp_path, n_ubatch):
    kept, _ = run(tmp_path, FakeEngine(), top=128, tail=0, n_ubatch=n_ubatch)
    found, _ = run(tmp_path, FakeEngine(0.5), write=False, n_ubatch=n_ubatch)
    assert (found["ids"], found["reference"]) == (kept["ids"], False)
    expected = expected_columns(tmp_path, 0.5)
    assert 0 < np.mean(expected["same_top"]) < 1
    for name in COLUMNS:
        assert found[name] == pytest.approx(
            expected[name], rel=2e-3, abs=5e-6 if name == "ln_ratio" else 1e-8
        ), name
    for name in ("token_kld", "token_dp"):
        assert per_position(found[name]) == pytest.approx(expected[name], rel=2e-4, abs=2e-5), name


def test_a_pass_beside_the_reference_is_exact_and_keeps_no_file(tmp_path):
    found, _ = run(tmp_path, FakeEngine(0.5), reference="", write=False, beside="reference.gguf")
    expected = expected_columns(tmp_path, 0.5)
    for name in COLUMNS:
        assert found[name] == pytest.approx(
            expected[name], rel=2e-3, abs=5e-6 if name == "ln_ratio" else 1e-8
        ), name
    assert found["reference"] is False
    assert not list(tmp_path.glob("*.npz"))


def test_the_reference_beside_keeps_its_cache_as_it_is_however_the_candidate_keeps_its_own(
    tmp_path,
):
    engine = FakeEngine(0.5)
    run(tmp_path, engine, reference="", write=False, beside="reference.gguf", kv="q8_0")
    assert sorted(engine.caches) == [("f16", "f16"), ("q8_0", "q8_0")]


def test_bytes_are_those_of_the_tokens_that_are_scored(tmp_path):
    kept, _ = run(tmp_path, FakeEngine(), reference="")
    windows = cut_of(tmp_path, TEXTS)[1]
    # Of windows of 8 tokens, the last three.
    assert kept["bytes"] == [int((window[5:] % 5).sum()) for window in windows]
    assert len(set(kept["bytes"])) > 1
    piece, _ = run(tmp_path, FakeEngine(), reference="", first=2, last=5)
    assert piece["bytes"] == kept["bytes"][2:5]


def test_the_reference_without_a_file_keeps_none(tmp_path):
    kept, _ = run(tmp_path, FakeEngine(), reference="")
    assert (kept["reference"], kept["kld"]) == (True, [0.0] * 7)
    assert not list(tmp_path.glob("*.npz"))


def test_another_vocabulary_beside_is_refused(tmp_path):
    engine = FakeEngine(reference=FakeModel(n_vocab=127))
    with pytest.raises(TextError) as caught:
        run(tmp_path, engine, reference="", write=False, beside="reference.gguf")
    assert str(caught.value) == (
        "its vocabulary has 128 tokens, the reference's 127; it is not a quantization of this model"
    )


def test_other_tokens_beside_are_refused(tmp_path):
    engine = FakeEngine(reference=FakeModel(adds_bos=True))
    with pytest.raises(TextError, match="into other tokens than the reference's; losses on"):
        run(tmp_path, engine, reference="", write=False, beside="reference.gguf")


def test_other_tokens_than_the_files_are_refused(tmp_path):
    run(tmp_path, FakeEngine())
    engine = FakeEngine()
    engine.models["model.gguf"] = FakeModel(adds_bos=True)
    with pytest.raises(TextError, match="other tokens"):
        run(tmp_path, engine, write=False)


# Stretches of windows


def test_stretches_are_the_whole_in_pieces(tmp_path):
    whole, _ = run(tmp_path, FakeEngine(), top=16, tail=16)
    found, _ = run(tmp_path, FakeEngine(0.5), write=False)
    ids, parts = [], []
    for first, last in ((0, 3), (3, 5), (5, None)):
        kept, ticks = run(
            tmp_path,
            FakeEngine(),
            reference=str(tmp_path / f"{first}.npz"),
            first=first,
            last=last,
            top=16,
            tail=16,
        )
        assert kept["available"] == 7
        assert ticks[-1] == (len(kept["ids"]), len(kept["ids"]))
        one, _ = run(
            tmp_path,
            FakeEngine(0.5),
            reference=str(tmp_path / f"{first}.npz"),
            write=False,
            first=first,
            last=last,
        )
        ids += kept["ids"]
        parts.append(one)
    assert ids == whole["ids"]
    # To the bit: a window's samples do not depend on its company.
    for name in ("ids", *COLUMNS):
        assert [value for part in parts for value in part[name]] == found[name], name
    assert b"".join(base64.b64decode(part["token_kld"]) for part in parts) == base64.b64decode(
        found["token_kld"]
    )


def test_a_file_of_more_windows_serves_a_stretch(tmp_path):
    run(tmp_path, FakeEngine(), top=16, tail=16)
    whole, _ = run(tmp_path, FakeEngine(0.5), write=False)
    part, _ = run(tmp_path, FakeEngine(0.5), write=False, first=2, last=4)
    assert (part["ids"], part["kld"]) == (whole["ids"][2:4], whole["kld"][2:4])


def test_a_file_of_fewer_windows_is_refused(tmp_path):
    run(tmp_path, FakeEngine(), last=3)
    with pytest.raises(TextError, match="it has 3 of the 7 windows"):
        run(tmp_path, FakeEngine(), write=False)


def test_a_stretch_beyond_the_text_is_empty(tmp_path):
    run(tmp_path, FakeEngine())
    made, _ = run(tmp_path, FakeEngine(), write=False, first=7, last=9)
    assert (made["ids"], made["available"], made["nonfinite"]) == ([], 7, 0)
    assert (made["kld"], made["token_kld"], made["logits"]) == ([], "", [])


# Digests of logits


def test_the_first_windows_logits_are_digested(tmp_path):
    made, _ = run(tmp_path, FakeEngine(), digests=3)
    expected = []
    for window in cut_of(tmp_path, TEXTS)[1][:3]:
        context = FakeContext(table_of())
        logits = scored_logits(context, window, Execution(n_ctx=8, n_ubatch=3))
        expected.append(hashlib.blake2b(logits.tobytes(), digest_size=8).hexdigest())
    assert made["logits"] == expected
    assert len(set(expected)) == 3
    with Reader(tmp_path / "r.npz") as reader:
        assert [window.logits for window in reader.windows] == [*expected, "", "", "", ""]


@pytest.mark.parametrize(("first", "last", "count"), [(0, 2, 2), (2, 5, 1), (3, None, 0)])
def test_digests_are_of_windows_in_the_order_of_the_text(tmp_path, first, last, count):
    whole, _ = run(tmp_path, FakeEngine(), digests=3)
    part, _ = run(tmp_path, FakeEngine(), digests=3, first=first, last=last)
    assert part["logits"] == whole["logits"][first : first + count]
    assert len(part["logits"]) == count


def test_one_bit_of_one_logit_changes_a_digest(tmp_path):
    before, _ = run(tmp_path, FakeEngine(), digests=7)
    engine = FakeEngine()
    token = cut_of(tmp_path, TEXTS)[1][3][5]
    engine.table = table_of()
    engine.table[token, 77] = np.nextafter(engine.table[token, 77], np.float32(9))
    after, _ = run(tmp_path, engine, digests=7)
    changed = [one != other for one, other in zip(before["logits"], after["logits"], strict=True)]
    # Wherever the token is scored, and nowhere else.
    windows = cut_of(tmp_path, TEXTS)[1]
    assert changed == [token in window[4:7] for window in windows]
    assert changed[3]


# What is not finite


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("beside", [False, True])
def test_what_is_not_finite_is_counted_and_never_dropped(tmp_path, broken, beside):
    run(tmp_path, FakeEngine())
    fields = {"reference": "", "beside": "reference.gguf"} if beside else {}
    made, _ = run(tmp_path, FakeEngine(broken=broken), write=False, **fields)
    assert made["nonfinite"] == 1
    for name in COLUMNS:
        assert [value is None for value in made[name]] == [False, True, *[False] * 5]
    assert len(per_position(made["token_kld"])) == 18


def test_a_broken_reference_is_not_kept(tmp_path):
    made, _ = run(tmp_path, FakeEngine(broken=math.nan))
    assert made["nonfinite"] == 1
    assert not (tmp_path / "r.npz").exists()


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_huge_but_finite_logits_are_finite(tmp_path):
    engine = FakeEngine()
    engine.table = np.full((128, 128), 3e38, dtype=np.float32)
    made, _ = run(tmp_path, engine)
    assert made["nonfinite"] == 0
    assert made["nll"] == pytest.approx([math.log(128)] * 7)


# Token by token


class Stepwise(FakeContext):
    """A context whose single tokens go through other kernels: they are off by ``wrong``."""

    def __init__(self, table, wrong, broken=None):
        super().__init__(table)
        self.wrong = wrong
        self.bad = broken

    def feed(self, tokens, start, logits_from=None):
        super().feed(tokens, start, logits_from)
        if len(tokens) == 1:
            self.buffer[0] += self.wrong
            if self.bad is not None and start == 6:
                self.buffer[0, 9] = self.bad


class StepwiseEngine(FakeEngine):
    def __init__(self, wrong=0.0, broken=None):
        super().__init__()
        self.wrong, self.bad = wrong, broken

    @contextlib.contextmanager
    def context(self, model, execution):
        yield Stepwise(self.table, self.wrong, self.bad)


def decoded(folder, engine, n_ubatch=3, tokens=8):
    ticks = []
    plan = DecodePlan(
        texts=texts_in(folder, TEXTS),
        tokens=tokens,
        execution=Execution(n_ctx=8, n_ubatch=n_ubatch),
    )
    return decode.measure(engine, "model.gguf", plan, lambda *at: ticks.append(at)), ticks


@pytest.mark.parametrize("n_ubatch", [3, 8])
def test_both_ways_agree_where_kernels_do(tmp_path, n_ubatch):
    made, ticks = decoded(tmp_path, StepwiseEngine(), n_ubatch)
    assert made["id"] == cut_of(tmp_path, TEXTS)[0][0]
    assert made["kld"] == [0.0] * 4
    assert made["same_top"] == [True] * 4
    assert made["furthest"] == 0.0
    assert ticks == [(0, 1), *((i + 1, 8) for i in range(8))]


@pytest.mark.parametrize("n_ubatch", [3, 8])
def test_kernels_that_differ_are_told_from_each_other(tmp_path, n_ubatch):
    wrong = table_of(8, 0.5)[0]
    made, _ = decoded(tmp_path, StepwiseEngine(wrong), n_ubatch)
    window = cut_of(tmp_path, TEXTS)[1][0]
    moved = np.float32(0.01) * np.arange(4, 8)[:, None]
    log_p = exact_log_softmax(table_of()[window[4:]] + moved)
    log_q = exact_log_softmax(table_of()[window[4:]] + moved + wrong)
    assert made["kld"] == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(axis=1), rel=1e-3)
    assert made["same_top"] == (log_p.argmax(axis=1) == log_q.argmax(axis=1)).tolist()
    assert made["furthest"] == pytest.approx(np.abs(wrong).max(), rel=1e-4)


def test_fewer_tokens_than_a_window_may_be_fed(tmp_path):
    made, ticks = decoded(tmp_path, StepwiseEngine(), tokens=6)
    assert len(made["kld"]) == 3
    assert ticks[-1] == (6, 6)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_token_that_breaks_the_logits_leaves_no_figure(tmp_path, broken):
    made, _ = decoded(tmp_path, StepwiseEngine(broken=broken))
    assert made["id"]
    assert {made[name] for name in ("kld", "same_top", "furthest")} == {None}
