"""Loss against the reference: the order of windows, and the divergence against float64."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice.probe.fidelity import (
    TextError,
    _Reader,
    _Writer,
    cut,
    divergence,
    log_softmax,
    measure,
    order,
)
from pytest_ondevice.probe.protocol import Execution, FidelityPlan, Text

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


# The divergence


def distributions(positions, n_vocab, seed=1, noise=0.3):
    """Logits with heavy tails, as a model's, and a damaged copy: float32."""
    rng = np.random.default_rng(seed)
    rank = np.log1p(np.arange(n_vocab)) * -1.1
    p = rank + rng.standard_normal((positions, n_vocab)) * 1.5
    # Noise on every token, and a third of the unlikely ones lifted on top.
    q = p + rng.standard_normal((positions, n_vocab)) * noise
    q[:, n_vocab // 3 :: 3] += noise
    return p.astype(np.float32), q.astype(np.float32)


def exact_kld(p_logits, q_logits):
    log_p, log_q = exact_log_softmax(p_logits), exact_log_softmax(q_logits)
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


def plan_for(path, *, top, tail, n_ctx, write=True, **fields):
    return FidelityPlan(
        texts=(),
        reference=str(path),
        write=write,
        windows=None,
        top=top,
        tail=tail,
        execution=Execution(n_ctx=n_ctx),
        **fields,
    )


def passes(folder, p_logits, q_logits, *, top, tail, n_windows, digest="tokens", seed=20505):
    """Run the reference's pass and a candidate's over windows of equal length."""
    scored = len(p_logits) // n_windows
    # The second half of a window is scored but for its last position.
    n_ctx = 2 * scored + 2
    assert n_ctx - n_ctx // 2 - 1 == scored
    plan = plan_for(folder / "reference.npz", top=top, tail=tail, n_ctx=n_ctx, seed=seed)
    writer = _Writer(plan, (n_windows, n_ctx), p_logits.shape[1])
    rng = np.random.default_rng(0)
    targets = rng.integers(0, p_logits.shape[1], (n_windows, scored)).astype(np.int32)
    own = [
        writer.compare(i, log_softmax(p_logits[i * scored :][:scored]), targets[i])
        for i in range(n_windows)
    ]
    writer.save(digest)
    reader = _Reader(plan.reference, digest, p_logits.shape[1])
    theirs = [
        reader.compare(i, log_softmax(q_logits[i * scored :][:scored]), targets[i])
        for i in range(n_windows)
    ]
    return own, theirs, reader, targets


def column(rows, name):
    return np.array([row[name] for row in rows])


@pytest.mark.parametrize(("top", "tail"), [(500, 64), (5000, 0), (499, 1)])
def test_the_divergence_is_exact_where_everything_is_kept(tmp_path, top, tail):
    p, q = distributions(40, 500)
    _, rows, reader, _ = passes(tmp_path, p, q, top=top, tail=tail, n_windows=4)
    exact = exact_kld(p, q).reshape(4, 10).mean(axis=1)
    assert column(rows, "kld") == pytest.approx(exact, rel=2e-5)
    assert reader.kept_ids.shape[2] == 500


@pytest.mark.parametrize("noise", [0.02, 0.3, 1.0])
def test_the_sampled_divergence_is_unbiased(tmp_path, noise):
    # Of 4000 tokens 64 are kept and 64 sampled; half of the probability is outside the top.
    p, q = distributions(1500, 4000, noise=noise)
    _, rows, reader, _ = passes(tmp_path, p, q, top=64, tail=64, n_windows=10)
    exact = exact_kld(p, q)
    found = column(rows, "kld")
    assert found.mean() == pytest.approx(exact.mean(), rel=0.01)
    # Window by window too, which is what baselines are paired by.
    assert found == pytest.approx(exact.reshape(10, 150).mean(axis=1), rel=0.04)
    # That the tail matters here: without it a third or more would be missing.
    assert reader.tail_mass.mean() > 0.2
    top_only = [
        divergence(
            reader.kept_log_p[i][:, :64].astype(float),
            np.take_along_axis(
                exact_log_softmax(q[i * 150 :][:150]), reader.kept_ids[i][:, :64].astype(int), 1
            ),
            64,
            reader.tail_mass[i],
        ).mean()
        for i in range(10)
    ]
    assert np.mean(top_only) < 0.7 * exact.mean()


def test_the_samples_are_drawn_in_proportion_to_the_references_probability(tmp_path):
    # Whatever is averaged over the samples estimates its mean over the tail under P.
    p, _ = distributions(600, 1000)
    plan = plan_for(tmp_path / "r.npz", top=50, tail=40, n_ctx=1202)
    writer = _Writer(plan, (1, 1202), 1000)
    log_p = log_softmax(p)
    writer.compare(0, log_p, np.zeros(600, np.int32))
    ids = writer.kept_ids[0].astype(int)
    exact_p = np.exp(exact_log_softmax(p))
    top, sampled = ids[:, :50], ids[:, 50:]
    for row in range(600):
        likeliest = np.argsort(exact_p[row])[-50:]
        assert set(top[row]) == set(likeliest)
        assert not set(sampled[row]) & set(likeliest)
    tail_p = exact_p.copy()
    np.put_along_axis(tail_p, top, 0.0, axis=1)
    assert writer.tail_mass[0] == pytest.approx(tail_p.sum(axis=1), abs=1e-6)
    under_p = (tail_p * np.arange(1000)).sum(axis=1) / tail_p.sum(axis=1)
    assert sampled.mean() == pytest.approx(under_p.mean(), rel=0.005)
    # Stratified: the mean of one position's sample is far closer than chance would bring it.
    variance = (tail_p * (np.arange(1000) - under_p[:, None]) ** 2).sum(axis=1) / tail_p.sum(axis=1)
    by_chance = np.sqrt(variance / 40)
    assert np.std(sampled.mean(axis=1) - under_p) < 0.3 * by_chance.mean()


def test_seeds_draw_other_samples_of_the_same_thing(tmp_path):
    p, q = distributions(100, 2000)
    kept, means = [], []
    for seed in (1, 1, 2):
        _, rows, reader, _ = passes(tmp_path, p, q, top=64, tail=64, n_windows=1, seed=seed)
        kept.append(reader.kept_ids)
        means.append(rows[0]["kld"])
    assert (kept[0] == kept[1]).all()
    assert (kept[0] != kept[2]).any()
    assert means[0] == means[1] != means[2]
    assert means[0] == pytest.approx(means[2], rel=0.05)


def test_identical_distributions_do_not_diverge(tmp_path):
    p, _ = distributions(40, 1000)
    own, rows, _, _ = passes(tmp_path, p, p.copy(), top=64, tail=32, n_windows=4)
    assert (column(rows, "kld") == 0).all()
    assert (column(rows, "ln_ratio") == 0).all()
    assert (column(rows, "same_top") == 1).all()
    assert [row["nll"] for row in rows] == [row["nll"] for row in own]
    assert {(row["kld"], row["ln_ratio"], row["same_top"]) for row in own} == {(0.0, 0.0, 1.0)}


log_probabilities = st.floats(-60, 0)


@lawful
@given(
    st.lists(st.tuples(log_probabilities, log_probabilities), min_size=1, max_size=12),
    st.integers(1, 12),
    st.floats(0, 1),
)
def test_a_divergence_is_never_negative(pairs, top, tail_mass):
    log_p, log_q = (np.array([side], dtype=np.float64) for side in zip(*pairs, strict=True))
    assert divergence(log_p, log_q, top, np.array([tail_mass]))[0] >= 0
    assert divergence(log_p, log_p, top, np.array([tail_mass]))[0] == 0


@pytest.mark.parametrize("exponent", range(-7, 1))
def test_a_small_divergence_keeps_its_digits(exponent):
    # Two tokens: p = (1/2, 1/2), q = (1/2 + e, 1/2 - e): -ln(1 - 4 e^2) / 2.
    e = 0.3 * 10.0**exponent
    log_p = np.log(np.array([[0.5, 0.5]]))
    log_q = np.log(np.array([[0.5 + e, 0.5 - e]]))
    exact = -math.log1p(-4 * e * e) / 2
    assert divergence(log_p, log_q, 2, np.zeros(1))[0] == pytest.approx(exact, rel=0.02)


def test_other_figures_of_a_window(tmp_path):
    p, q = distributions(30, 300, noise=1.0)
    own, rows, _, targets = passes(tmp_path, p, q, top=16, tail=16, n_windows=3)
    at = np.arange(30)
    log_p, log_q = exact_log_softmax(p), exact_log_softmax(q)
    nll_p = -log_p[at, targets.ravel()].reshape(3, 10).mean(axis=1)
    nll_q = -log_q[at, targets.ravel()].reshape(3, 10).mean(axis=1)
    same = (p.argmax(axis=1) == q.argmax(axis=1)).reshape(3, 10).mean(axis=1)
    assert 0 < same.mean() < 1
    assert column(own, "nll") == pytest.approx(nll_p, rel=1e-6)
    assert column(rows, "nll") == pytest.approx(nll_q, rel=1e-6)
    assert column(rows, "ln_ratio") == pytest.approx(nll_q - nll_p, abs=1e-5)
    assert column(rows, "same_top") == pytest.approx(same)


# The reference file


def test_the_reference_file_holds_what_was_written(tmp_path):
    p, q = distributions(20, 300)
    _, _, reader, _ = passes(tmp_path, p, q, top=16, tail=8, n_windows=2)
    assert reader.top == 16
    assert reader.kept_ids.shape == reader.kept_log_p.shape == (2, 10, 24)
    assert reader.tail_mass.shape == reader.target_log_p.shape == reader.best.shape == (2, 10)
    kept = np.take_along_axis(
        log_softmax(p).reshape(2, 10, 300), reader.kept_ids.astype(int), axis=2
    )
    assert (reader.kept_log_p == kept).all()
    # Nothing else is left in the folder.
    assert [path.name for path in tmp_path.iterdir()] == ["reference.npz"]


def test_another_vocabulary_is_refused(tmp_path):
    p, q = distributions(20, 300)
    passes(tmp_path, p, q, top=16, tail=8, n_windows=2)
    with pytest.raises(TextError) as caught:
        _Reader(str(tmp_path / "reference.npz"), "tokens", 301)
    assert str(caught.value) == (
        "its vocabulary has 301 tokens, the reference's 300; it is not a quantization of this model"
    )


def test_other_tokens_are_refused(tmp_path):
    p, q = distributions(20, 300)
    passes(tmp_path, p, q, top=16, tail=8, n_windows=2)
    with pytest.raises(TextError, match="into other tokens than the reference's; losses on"):
        _Reader(str(tmp_path / "reference.npz"), "Tokens", 300)


def test_a_reference_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    plan = plan_for(tmp_path / "reference.npz", top=4, tail=2, n_ctx=8)
    writer = _Writer(plan, (1, 8), 10)
    (tmp_path / "reference.npz").write_bytes(b"the old one")

    def full(file, **_):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        writer.save("tokens")
    assert [path.name for path in tmp_path.iterdir()] == ["reference.npz"]
    assert (tmp_path / "reference.npz").read_bytes() == b"the old one"


# Cutting the text


class FakeModel:
    """Tokens are characters; ``<`` begins a text."""

    bos = ord("<")
    n_vocab = 128

    def __init__(self, *, adds_bos=False):
        self.adds_bos = adds_bos

    def tokenize(self, text):
        return list(text.encode())


def text_plan(folder, texts, **fields):
    made = []
    for kind, text in texts.items():
        path = folder / f"{kind}.txt"
        path.write_text(text, "utf-8")
        made.append(Text(kind, str(path)))
    fields = {"reference": str(folder / "r.npz"), "write": True, "windows": None} | fields
    return FidelityPlan(texts=tuple(made), execution=Execution(n_ctx=8, n_ubatch=3), **fields)


def test_text_is_cut_into_whole_windows(tmp_path):
    # Three whole windows and a rest; one whole window; none.
    texts = {"a": "0123456789abcdefghijklmnop", "b": "ABCDEFGHIJKLMN", "c": "short"}
    plan = text_plan(tmp_path, texts)
    ids, windows = cut(FakeModel(), plan)
    assert sorted(ids) == ["a:0", "a:1", "a:2", "b:0"]
    assert windows.dtype == np.int32
    found = {name: bytes(map(int, row)).decode() for name, row in zip(ids, windows, strict=True)}
    assert found == {"a:0": "01234567", "a:1": "89abcdef", "a:2": "ghijklmn", "b:0": "ABCDEFGH"}
    order_of_plan = [f"{kind}:{i}" for kind, i in order({"a": 3, "b": 1}, None, plan.seed)]
    assert ids == order_of_plan


def test_a_budget_takes_the_first_windows(tmp_path):
    texts = {"a": "0123456789abcdefghijklmnop", "b": "ABCDEFGHIJKLMN"}
    every, _ = cut(FakeModel(), text_plan(tmp_path, texts))
    for most in (1, 2, 3):
        ids, windows = cut(FakeModel(), text_plan(tmp_path, texts, windows=most))
        assert ids == every[:most]
        assert windows.shape == (most, 8)


def test_every_window_begins_as_the_model_wants(tmp_path):
    texts = {"a": "0123456789abcdef"}
    ids, windows = cut(FakeModel(adds_bos=True), text_plan(tmp_path, texts))
    found = {name: bytes(map(int, row)).decode() for name, row in zip(ids, windows, strict=True)}
    # In the place of the first token, as llama-perplexity does it: the rest stays where it is.
    assert found == {"a:0": "<1234567", "a:1": "<9abcdef"}


def test_too_short_a_text_is_one_sentence(tmp_path):
    plan = text_plan(tmp_path, {"a": "0123456", "b": "xyz"})
    with pytest.raises(TextError) as caught:
        cut(FakeModel(), plan)
    assert str(caught.value) == "the evaluation text has 10 tokens; one window needs 8"


def test_a_text_of_exactly_one_window_is_enough(tmp_path):
    ids, _ = cut(FakeModel(), text_plan(tmp_path, {"a": "01234567"}))
    assert ids == ["a:0"]


# A whole pass, with a runtime that is a table


class FakeEngine:
    """Logits are a function of the token and its place; ``harm`` is added to them."""

    def __init__(self, harm=0.0, broken=None):
        rng = np.random.default_rng(2)
        self.table = rng.standard_normal((128, 128)).astype(np.float32) * 3
        self.harm = rng.standard_normal((128, 128)).astype(np.float32) * harm
        self.broken = broken
        self.fed = []

    @contextlib.contextmanager
    def load(self, path, execution, *, alive):
        alive(0.5)
        yield FakeModel()

    @contextlib.contextmanager
    def context(self, model, execution):
        yield self

    def clear(self):
        self.fed.append([])
        self.kept = []

    def feed(self, tokens, start, logits_from=None):
        self.fed[-1].append((start, len(tokens), logits_from))
        for i, token in enumerate(tokens):
            if i >= logits_from:
                self.kept.append(self.table[token] + self.harm[token])

    def logits(self, count):
        made = np.array(self.kept[-count:], dtype=np.float32)
        assert len(made) == count
        if self.broken is not None and len(self.fed) == 2:
            made[1, 3] = self.broken
        return made


TEXTS = {"a": "the quick brown fox jumps over it", "b": "lorem ipsum dolor sit amet, con"}


def run(folder, engine, **fields):
    ticks = []
    plan = text_plan(folder, TEXTS, **fields)
    made = measure(engine, "model.gguf", plan, lambda *at: ticks.append(at))
    return made, ticks


def test_a_whole_pass(tmp_path):
    reference = FakeEngine()
    kept, ticks = run(tmp_path, reference, top=16, tail=16)
    assert (kept["reference"], kept["nonfinite"], kept["scored"]) == (True, 0, 3)
    assert len(kept["ids"]) == 7
    assert ticks == [(0, 1), *((i + 1, 7) for i in range(7))]
    # Windows of 8 in pieces of 3; logits from the fifth token on.
    assert reference.fed == [[(0, 3, 4), (3, 3, 1), (6, 2, 0)]] * 7
    candidate, _ = run(tmp_path, FakeEngine(harm=0.5), write=False, top=16, tail=16)
    assert candidate["ids"] == kept["ids"]
    assert candidate["tokens"] == kept["tokens"]
    assert candidate["reference"] is False
    ids, windows = cut(FakeModel(), text_plan(tmp_path, TEXTS))
    harmed = FakeEngine(harm=0.5)
    for name, window, nll, kld, ratio in zip(
        ids, windows, candidate["nll"], candidate["kld"], candidate["ln_ratio"], strict=True
    ):
        # Positions 4, 5 and 6 predict the tokens after them; the last one has none.
        p = exact_log_softmax(reference.table[window[4:7]])
        q = exact_log_softmax((harmed.table + harmed.harm)[window[4:7]])
        at = np.arange(3)
        assert nll == pytest.approx(-q[at, window[5:]].mean(), rel=1e-5), name
        assert ratio == pytest.approx((p - q)[at, window[5:]].mean(), abs=1e-5), name
        assert kld == pytest.approx((np.exp(p) * (p - q)).sum(axis=1).mean(), rel=0.1), name


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_counted_and_never_dropped(tmp_path, broken):
    run(tmp_path, FakeEngine(), top=16, tail=16)
    made, _ = run(tmp_path, FakeEngine(broken=broken), write=False)
    assert made["nonfinite"] == 1
    for name in ("nll", "kld", "ln_ratio", "same_top"):
        assert [value is None for value in made[name]] == [False, True, *[False] * 5]


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
