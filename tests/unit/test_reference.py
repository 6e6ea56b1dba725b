"""The reference file: what it keeps against full distributions, and what damaged ones do."""

from __future__ import annotations

import math
import os
import struct
import tracemalloc
import zipfile

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice.probe import reference
from pytest_ondevice.probe.protocol import Execution
from pytest_ondevice.probe.reference import (
    Head,
    Reader,
    TextError,
    Writer,
    check,
    describe,
    divergence,
    exact,
    llama_cpp_size,
    moving,
    sample,
)

SCORED = 6
VOCAB = 300
IDS = ("narrative:2", "code:0", "table:1")
DIGESTS = ("d0", "d1", "d2")
EXPECTED_SAMPLE = [9, 20, 28, 33, 43, 55, 68, 83, 94, 113, 127, 143, 170, 203, 233, 259]
lawful = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def head(**fields):
    known = {
        "model": "tiny",
        "source": "0" * 64,
        "tokenizer": "t",
        "text": "x",
        "n_vocab": VOCAB,
        "n_ctx": 2 * SCORED + 2,
        "top": 32,
        "tail": 16,
        "seed": 20505,
        "execution": moving(Execution()),
        "runtime": "llama.cpp b1",
        "runtime_digest": "r",
        "cpu": "some cpu",
        "created": "2025-01-01T00:00:00Z",
    }
    return Head(**{**known, **fields})


def log_softmax(logits):
    wide = np.asarray(logits, dtype=np.float64)
    wide = wide - wide.max(axis=1, keepdims=True)
    return (wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))).astype(np.float32)


def logits_of(rows, n_vocab, seed=1):
    """Logits with the heavy tail of a model's, in about the order of frequency."""
    rng = np.random.default_rng(seed)
    return np.log1p(np.arange(n_vocab)) * -1.3 + rng.standard_normal((rows, n_vocab)) * 1.2


def damaged(logits, noise, seed=9):
    made = logits + np.random.default_rng(seed).standard_normal(logits.shape) * noise
    made[:, logits.shape[1] // 3 :: 3] += noise
    return made


def kld_of(p_logits, q_logits):
    """KLD from its definition, in float64."""

    def log_of(logits):
        wide = np.asarray(logits, dtype=np.float64)
        wide = wide - wide.max(axis=1, keepdims=True)
        return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))

    log_p, log_q = log_of(p_logits), log_of(q_logits)
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


def targets_of(rows, n_vocab, seed=4):
    return np.random.default_rng(seed).integers(0, n_vocab, rows).astype(np.int32)


def windows_of(n_vocab=VOCAB, scored=SCORED, count=3):
    return [
        (log_softmax(logits_of(scored, n_vocab, seed)), targets_of(scored, n_vocab, seed))
        for seed in range(count)
    ]


def written(path, windows=None, ids=IDS, digests=DIGESTS, **fields):
    windows = windows or windows_of()
    scored, n_vocab = windows[0][0].shape
    writer = Writer(head(n_vocab=n_vocab, **fields), ids, digests, scored)
    for index, (log_p, targets) in enumerate(windows):
        writer.keep(index, log_p, targets)
    writer.save(path)
    return path


@pytest.fixture
def file(tmp_path):
    return written(tmp_path / "reference.npz")


# What is kept


def test_what_is_written_is_read(tmp_path):
    windows = windows_of()
    asked = head(model="SmolLM2-135M")
    writer = Writer(asked, IDS, DIGESTS, SCORED)
    for index, (log_p, targets) in enumerate(windows):
        writer.keep(index, log_p, targets, logits="l0" if index == 0 else "")
    path = tmp_path / "new folder" / "reference.npz"
    writer.save(path)
    assert [one.name for one in path.parent.iterdir()] == ["reference.npz"]
    assert describe(path) == asked
    assert check(path) == []
    with Reader(path) as reader:
        assert reader.head == asked
        assert reader.ids == IDS
        assert reader.scored == SCORED
        assert [one.tokens for one in reader.windows] == list(DIGESTS)
        assert [one.logits for one in reader.windows] == ["l0", "", ""]
        for place, (log_p, targets) in enumerate(windows):
            records = reader.records(place)
            ids = records["ids"].astype(int)
            at = np.arange(SCORED)
            assert (records["log_p"] == np.take_along_axis(log_p, ids, axis=1)).all()
            assert (records["target_log_p"] == log_p[at, targets]).all()
            assert (records["best"] == log_p.argmax(axis=1)).all()
            for row in range(SCORED):
                likeliest = set(np.argsort(log_p[row])[-32:])
                assert set(ids[row, :32]) == likeliest
                assert not set(ids[row, 32:]) & likeliest
                rest = np.delete(np.exp(log_p[row].astype(float)), list(likeliest)).sum()
                assert records["tail_mass"][row] == pytest.approx(rest, rel=1e-12)


def test_it_is_an_npz_that_numpy_reads(file):
    with np.load(file, allow_pickle=False) as arrays:
        assert set(arrays) == {"head", "index", "window_0", "window_1", "window_2"}
        assert msgspec.json.decode(bytes(arrays["head"]))["model"] == "tiny"
        with Reader(file) as reader:
            for place in range(3):
                assert (arrays[f"window_{place}"] == reader.records(place)).all()
        again = file.with_name("again.npz")
        np.savez(again, **dict(arrays))
    assert check(again) == []


@pytest.mark.parametrize(("n_vocab", "high"), [(2**16, False), (2**16 + 1, True), (151_936, True)])
def test_ids_have_as_many_bytes_as_the_vocabulary_needs(tmp_path, n_vocab, high):
    logits = logits_of(2, n_vocab)
    logits[:, n_vocab - 1] = 9.0
    targets = np.array([n_vocab - 1, 5], np.int32)
    path = written(tmp_path / "r.npz", [(log_softmax(logits), targets)], ["a:0"], ["d"])
    with Reader(path) as reader:
        records = reader.records(0)
        assert ("ids_high" in records.dtype.names) == high
        assert (records["best"] == n_vocab - 1).all()
        q = log_softmax(damaged(logits, 0.3))
        found = reader.compare("a:0", q, targets)
        # Only true if the ids lead to where they came from.
        assert found.kld == pytest.approx(exact(log_softmax(logits), q, targets).kld, rel=0.3)
        assert found.same_top.all()


@pytest.mark.parametrize(("n_vocab", "times"), [(49_152, 20), (151_936, 50)])
def test_its_size_against_llama_cpps(tmp_path, n_vocab, times):
    scored = 255
    flat = np.zeros((1, n_vocab), np.float32)
    flat[0, : n_vocab // 2] += 1.0
    log_p = np.broadcast_to(log_softmax(flat), (scored, n_vocab))
    window = (log_p, np.zeros(scored, np.int32))
    path = written(tmp_path / "r.npz", [window], ["a:0"], ["d"], top=512, tail=256, n_ctx=512)
    size = path.stat().st_size
    assert size / scored <= 6000
    assert llama_cpp_size(1, scored, n_vocab) / size > times


def test_the_size_of_llama_cpps_file():
    # Header, 2 windows of 512 tokens, 2 x 255 positions of 49152 x 2 bytes and two floats.
    assert llama_cpp_size(2, 255, 49_152) == 20 + 2 * 512 * 4 + 510 * (49_152 * 2 + 8)
    assert llama_cpp_size(1, 1, 3) == llama_cpp_size(1, 1, 4)


def test_a_window_keeps_the_same_sample_in_any_company(tmp_path):
    windows = windows_of()
    whole = written(tmp_path / "whole.npz", windows)
    other = tmp_path / "other.npz"
    writer = Writer(head(), IDS[::-1], DIGESTS[::-1], SCORED)
    for index in (2, 1):
        writer.keep(index, *windows[::-1][index])
    writer.save(other)
    alone = written(tmp_path / "alone.npz", windows[1:2], IDS[1:2], DIGESTS[1:2])
    with Reader(whole) as a, Reader(other) as b, Reader(alone) as c:
        assert b.ids == IDS[1::-1]
        for name, one in ((IDS[0], b), (IDS[1], b), (IDS[1], c)):
            left, right = a.records(a.ids.index(name)), one.records(one.ids.index(name))
            assert left.tobytes() == right.tobytes()


def test_the_same_gives_the_same_bytes_and_another_seed_another_sample(tmp_path):
    first, again = written(tmp_path / "a.npz"), written(tmp_path / "b.npz")
    assert first.read_bytes() == again.read_bytes()
    with Reader(first) as a, Reader(written(tmp_path / "c.npz", seed=1)) as b:
        one, two = a.records(0)["ids"], b.records(0)["ids"]
        assert (one[:, :32] == two[:, :32]).all()
        assert (one[:, 32:] != two[:, 32:]).any()
    # Windows with equal distributions differ too, and so do positions of one.
    same = [(np.repeat(windows_of()[0][0][:1], SCORED, axis=0), windows_of()[0][1])] * 2
    with Reader(written(tmp_path / "d.npz", same, IDS[:2], DIGESTS[:2])) as reader:
        samples = np.concatenate([reader.records(i)["ids"][:, 32:] for i in (0, 1)])
        assert len({tuple(row) for row in samples}) > SCORED


def test_a_sample_is_the_same_on_every_machine(file):
    # Changed samples would change every number that was judged against a file's maker.
    with Reader(file) as reader:
        assert reader.records(0)["ids"][0, 32:].tolist() == EXPECTED_SAMPLE


def test_what_cannot_be_written_is_said_at_once(tmp_path):
    with pytest.raises(ValueError, match="twice"):
        Writer(head(), ["a:0", "a:0"], ["d", "d"], SCORED)
    with pytest.raises(ValueError, match="printable"):
        Writer(head(model="a\x1b[31m"), IDS, DIGESTS, SCORED)
    with pytest.raises(ValueError, match="samples of the rest"):
        Writer(head(tail=0), IDS, DIGESTS, SCORED)
    writer = Writer(head(), IDS, DIGESTS, SCORED)
    with pytest.raises(ValueError, match="no window"):
        writer.save(tmp_path / "r.npz")
    log_p, targets = windows_of()[0]
    with pytest.raises(ValueError, match="expected"):
        writer.keep(0, log_p[:3], targets[:3])
    writer.keep(0, log_p, targets)
    (tmp_path / "folder").mkdir()
    with pytest.raises(TextError, match=r"folder: cannot write it: "):
        writer.save(tmp_path / "folder")
    (tmp_path / "file").write_text("")
    with pytest.raises(TextError, match="cannot write it"):
        writer.save(tmp_path / "file" / "r.npz")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "folder"]


def test_what_moves_logits():
    fields = moving(Execution(n_ubatch=32, threads=7))
    assert fields["n_ubatch"] == 32
    assert "threads" not in fields
    assert "n_ctx" not in fields


# The sample


@lawful
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=50).filter(any),
    st.integers(1, 40),
    st.floats(0, 1, exclude_max=True),
)
def test_each_token_is_drawn_as_often_as_its_probability_says(p, count, place):
    p = np.array(p)
    drawn = np.bincount(sample(p, count, place), minlength=len(p))
    assert drawn.sum() == count
    assert (np.abs(drawn - count * p / p.sum()) < 1 + 1e-6).all()
    # Subnormal masses cannot be told from none when they are added to others.
    assert (drawn[p == 0] == 0).all()


def test_the_ends_of_the_mass_draw_no_token_that_has_none():
    p = np.array([0.0, 0.0, 0.1, 0.0, 0.2, 0.0])
    assert set(sample(p, 3, 0.0)) == {2, 4}
    assert set(sample(p, 3, math.nextafter(1.0, 0.0))) == {4}
    assert set(sample(p[2:3], 7, math.nextafter(1.0, 0.0))) == {0}


@pytest.mark.parametrize("n_vocab", [49_152, 151_936])
@pytest.mark.parametrize("noise", [0.003, 0.05, 0.5, 2.0])
def test_the_divergence_has_no_bias(n_vocab, noise):
    # The mean over all places of the sample is the expectation, and that has to be the KLD.
    top, tail = 512, 256
    # Far candidates weigh rare tokens more: the places have to come as close as those lie.
    places = 400 if noise < 1 else 4000
    p_logits = logits_of(1, n_vocab)
    q_logits = damaged(p_logits, noise)
    log_p, log_q = log_softmax(p_logits)[0].astype(float), log_softmax(q_logits)[0].astype(float)
    kept = np.argsort(log_p)[-top:]
    p = np.exp(log_p)
    p[kept] = 0.0
    ids = np.array(
        [np.concatenate([kept, sample(p, tail, (place + 0.5) / places)]) for place in range(places)]
    )
    found = divergence(log_p[ids], log_q[ids], top, np.full(places, p.sum()))
    assert found.mean() == pytest.approx(kld_of(p_logits, q_logits)[0], rel=1e-3)
    # The test could tell: the tail is a good part of it.
    no_tail = divergence(log_p[ids], log_q[ids], top, np.full(places, 1e-300))
    assert no_tail.mean() < 0.95 * found.mean()


@pytest.mark.parametrize(
    ("n_vocab", "noise"), [(49_152, 0.02), (49_152, 0.3), (49_152, 1.0), (151_936, 0.1)]
)
def test_through_the_file_it_is_the_full_divergence(tmp_path, n_vocab, noise):
    rows = 64 if n_vocab < 1e5 else 32
    p_logits = logits_of(rows, n_vocab)
    q_logits = damaged(p_logits, noise)
    log_p, log_q, targets = log_softmax(p_logits), log_softmax(q_logits), targets_of(rows, n_vocab)
    path = written(
        tmp_path / "r.npz", [(log_p, targets)], ["a:0"], ["d"], top=512, tail=256, n_ctx=512
    )
    full = exact(log_p, log_q, targets)
    with Reader(path) as reader:
        kept = reader.compare("a:0", log_q, targets)
    assert full.kld == pytest.approx(kld_of(p_logits, q_logits), rel=1e-3)
    assert kept.kld.mean() == pytest.approx(full.kld.mean(), rel=0.005)
    assert kept.kld == pytest.approx(full.kld, rel=0.15)
    for name in ("ln_ratio", "dp", "nll", "same_top"):
        assert (getattr(kept, name) == getattr(full, name)).all(), name
        assert getattr(kept, name).shape == (rows,)


def test_all_terms_sum_to_the_divergence_though_each_is_another():
    p_logits = logits_of(8, 2000)
    q_logits = damaged(p_logits, 0.5)
    log_p, log_q = log_softmax(p_logits), log_softmax(q_logits)
    terms = reference._terms(log_p.astype(float), log_q.astype(float))
    assert (terms >= -1e-18).all()
    assert terms.sum(axis=1) == pytest.approx(kld_of(p_logits, q_logits), rel=1e-6)
    plain = np.exp(log_p.astype(float)) * (log_p.astype(float) - log_q)
    assert np.abs(terms - plain).max() > 1e-4


@pytest.mark.parametrize("broken", ["flat", "shuffled"])
def test_a_broken_candidate_is_seen_as_broken_as_it_is(tmp_path, broken):
    # Its mass is on tokens that the reference hardly ever lets be drawn.
    rows, n_vocab = 24, 20_000
    p_logits = logits_of(rows, n_vocab) * 1.3
    order = np.random.default_rng(5).permutation(n_vocab)
    q_logits = p_logits * 0 if broken == "flat" else p_logits[:, order]
    log_p, log_q, targets = log_softmax(p_logits), log_softmax(q_logits), targets_of(rows, n_vocab)
    path = written(
        tmp_path / "r.npz", [(log_p, targets)], ["a:0"], ["d"], top=512, tail=256, n_ctx=512
    )
    with Reader(path) as reader:
        found = reader.compare("a:0", log_q, targets).kld
    assert found == pytest.approx(kld_of(p_logits, q_logits), rel=0.002)


def test_a_whole_vocabulary_is_kept_exactly(tmp_path):
    log_p, targets = windows_of()[0]
    log_q = log_softmax(damaged(logits_of(SCORED, VOCAB, 0), 0.5))
    path = written(tmp_path / "r.npz", [(log_p, targets)], ["a:0"], ["d"], top=5000)
    with Reader(path) as reader:
        assert (reader.head.top, reader.head.tail) == (VOCAB, 0)
        assert (reader.records(0)["tail_mass"] == 0).all()
        assert reader.compare("a:0", log_q, targets).kld == pytest.approx(
            exact(log_p, log_q, targets).kld, rel=1e-12
        )


def test_the_quantities_from_their_definitions(file):
    log_p, targets = windows_of()[1]
    log_q = log_softmax(damaged(logits_of(SCORED, VOCAB, 1), 1.5))
    at = np.arange(SCORED)
    p, q = log_p[at, targets].astype(float), log_q[at, targets].astype(float)
    with Reader(file) as reader:
        for found in (reader.compare(IDS[1], log_q, targets), exact(log_p, log_q, targets)):
            assert found.nll == pytest.approx(-q, abs=0)
            assert found.ln_ratio == pytest.approx(p - q, abs=0)
            assert found.dp == pytest.approx(np.exp(q) - np.exp(p), abs=0)
            same = log_p.argmax(axis=1) == log_q.argmax(axis=1)
            assert found.same_top.tolist() == same.tolist()
            assert 0 < same.sum() < SCORED


def test_nothing_differs_from_itself_and_sixteen_bits_would(file):
    log_p, targets = windows_of()[0]
    with Reader(file) as reader:
        for found in (reader.compare(IDS[0], log_p, targets), exact(log_p, log_p, targets)):
            assert not found.kld.any()
            assert not found.ln_ratio.any()
            assert not found.dp.any()
            assert found.same_top.all()
        records = reader.records(0)
    kept = records["log_p"].astype(float)
    halves = records["log_p"].astype(np.float16).astype(float)
    floor = divergence(halves, kept, 32, records["tail_mass"].astype(float)).mean()
    assert floor > 1e-7


def test_extremes_stay_numbers(tmp_path):
    # Tokens that are ruled out, by either: masked entries and certainties.
    least = np.float32(-3e38)
    p_logits = np.zeros((4, VOCAB), np.float32)
    p_logits[0, 1:] = least
    p_logits[1, 20:] = least
    p_logits[2, 250:] = -800.0
    log_p = np.maximum(log_softmax(p_logits), least)
    log_p[0, 7] = -np.inf
    q_logits = np.zeros((4, VOCAB), np.float32)
    q_logits[3, 0] = least
    log_q = log_softmax(q_logits)
    targets = np.zeros(4, np.int32)
    path = written(tmp_path / "r.npz", [(log_p, targets)], ["a:0"], ["d"], n_ctx=10)
    assert check(path) == []
    with Reader(path) as reader:
        kept, full = reader.compare("a:0", log_q, targets), exact(log_p, log_q, targets)
    for found in (kept, full):
        assert np.isfinite(found.kld).all()
        assert found.kld[:2] == pytest.approx([math.log(300), math.log(300 / 20)], rel=1e-5)
        # The candidate rules out what the reference does not: as bad as can be.
        assert found.kld[3] > 1e20
    assert full.kld[2] == pytest.approx(math.log(300 / 250), rel=1e-5)


# Finding the windows


def test_every_window_is_found_by_id_and_digest(file):
    with Reader(file) as reader:
        reader.rows(IDS, DIGESTS, VOCAB)
        reader.rows(IDS[::-1][:2], DIGESTS[::-1][:2], VOCAB)
        with pytest.raises(TextError, match=r"vocabulary has 299 tokens, the reference's 300"):
            reader.rows(IDS, DIGESTS, VOCAB - 1)
        with pytest.raises(TextError, match=r"other tokens .*\(windows code:0\)"):
            reader.rows(IDS, ("d0", "else", "d2"), VOCAB)
        with pytest.raises(TextError, match=r"has 1 of the 5 windows, not a, b, c and 1 more;"):
            reader.rows(("a", "b", IDS[0], "c", "d"), ("d0",) * 5, VOCAB)
        log_p, targets = windows_of()[0]
        with pytest.raises(TextError, match="no window prose:1"):
            reader.compare("prose:1", log_p, targets)
        with pytest.raises(TextError, match="6 positions of 300 tokens, the candidate's 5 of 300"):
            reader.compare(IDS[0], log_p[:5], targets[:5])


def test_few_windows_of_a_file_cost_little_memory(tmp_path):
    windows = windows_of(2000, 100, 1) * 40
    names = [f"a:{i}" for i in range(40)]
    path = written(tmp_path / "r.npz", windows, names, names, top=500, n_ctx=512)
    assert path.stat().st_size > 12e6
    tracemalloc.start()
    try:
        with Reader(path) as reader:
            reader.records(17)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


# Files that nobody vouches for


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path, changed, kind=zipfile.ZIP_STORED):
    """Write the file anew with other members: a lie with right checksums."""
    content = {**members(path), **changed}
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in content.items():
            if data is not None:
                archive.writestr(zipfile.ZipInfo(name), data, kind)


def npy(array, **kwargs):
    import io

    out = io.BytesIO()
    np.save(out, array, **kwargs)
    return out.getvalue()


def with_json(path, member, **fields):
    with np.load(path) as arrays:
        content = msgspec.json.decode(bytes(arrays[member]))
    data = msgspec.json.encode({**content, **fields})
    rewrite(path, {f"{member}.npy": npy(np.frombuffer(data, np.uint8))})


def with_field(path, field, row, column, value, window=1):
    with np.load(path) as arrays:
        records = arrays[f"window_{window}"].copy()
    if column is None:
        records[field][row] = value
    else:
        records[field][row, column] = value
    rewrite(path, {f"window_{window}.npy": npy(records)})


def read_all(path):
    with Reader(path) as reader:
        for place in range(len(reader.windows)):
            reader.records(place)


def complaint(path):
    """What opening, checking and reading say: the same one sentence, naming the file."""
    said = check(path)
    assert len(said) == 1
    assert said[0].startswith(f"{path}: ")
    assert "\n" not in said[0]
    with pytest.raises(TextError) as raised:
        read_all(path)
    assert str(raised.value) == said[0]
    return said[0].removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("field", "column", "value", "said"),
    [
        ("log_p", 3, np.nan, "window code:0, log_p: position 2 holds NaN or infinity"),
        ("log_p", 40, -np.inf, "window code:0, log_p: position 2 holds NaN or infinity"),
        ("tail_mass", None, np.nan, "window code:0, tail_mass: position 2 holds NaN or infinity"),
        ("target_log_p", None, np.nan, "target_log_p: position 2 holds NaN"),
        ("ids", 31, 300, "window code:0, ids: position 2 holds an id beyond the vocabulary's 300"),
        ("ids", 47, 300, "window code:0, ids: position 2 holds an id beyond the vocabulary's 300"),
        ("best", None, 300, "window code:0, best: position 2 is not among 300 tokens"),
        ("tail_mass", None, -1e-9, "window code:0, tail_mass: position 2 is negative"),
        ("tail_mass", None, 0.9, "window code:0, log_p: position 2 sums to 1."),
        ("log_p", 3, 0.1, "log_p: position 2 holds a probability above 1"),
        ("log_p", 47, -0.5, "holds a sample likelier than what is kept exactly"),
        ("target_log_p", None, 0.1, "target_log_p: position 2 is above 0"),
    ],
)
def test_what_cannot_be_true_is_named(file, field, column, value, said):
    with_field(file, field, 2, column, value)
    assert said in complaint(file)
    assert describe(file) == head()


def test_tokens_out_of_order_are_named(file):
    with Reader(file) as reader:
        ids = reader.records(1)["ids"].astype(int)
    with_field(file, "ids", 4, 5, ids[4, 4])
    assert "window code:0, ids: position 4 holds a token twice or out of order" in complaint(file)


def test_a_sample_of_what_is_exact_is_named(tmp_path):
    path = written(tmp_path / "r.npz")
    with Reader(path) as reader:
        ids = reader.records(1)["ids"].astype(int)
    with_field(path, "ids", 0, 32, ids[0, 0])
    assert "ids: position 0 holds a sample of what is kept exactly" in complaint(path)
    with_field(path, "ids", 0, 32, 299)
    assert "ids: position 0 holds samples out of order" in complaint(path)


def test_one_sentence_for_each_damaged_window(file):
    with_field(file, "tail_mass", 0, None, -1.0, window=0)
    with_field(file, "tail_mass", 0, None, -1.0, window=2)
    said = check(file)
    names = [one.removeprefix(f"{file}: ").partition(",")[0] for one in said]
    assert names == ["window narrative:2", "window table:1"]
    log_p, targets = windows_of()[1]
    with Reader(file) as reader:
        reader.compare(IDS[1], log_p, targets)
        with pytest.raises(TextError, match="window narrative:2, tail_mass"):
            reader.compare(IDS[0], log_p, targets)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"format": 2}, "it is of format 2, this version reads format 1; make it anew"),
        ({"format": 2, "n_vocab": "new"}, "it is of format 2"),
        ({"n_vocab": "many"}, "head: Expected `int`, got `str` - at `$.n_vocab`"),
        ({"n_vocab": 2**40}, "$.n_vocab"),
        ({"top": 0}, "$.top"),
        ({"top": 301, "tail": 0}, "its head keeps 301 tokens of a vocabulary of 300"),
        ({"tail": 0}, "its head keeps 32 of 300 tokens and 0 samples of the rest"),
        ({"model": "\x1b[2J"}, "its head has a model that is no printable text"),
        ({"execution": {"repack": "\n"}}, "its head has a execution.repack that is no printable"),
        ({"seed": None}, "$.seed"),
    ],
)
def test_a_wrong_head_is_told_where(file, fields, said):
    with_json(file, "head", **fields)
    assert said in complaint(file)
    with pytest.raises(TextError) as raised:
        describe(file)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"scored": 5}, "window narrative:2: its array is {'descr'"),
        ({"scored": 0}, "$.scored"),
        ({"scored": 15}, "its index scores 15 positions in windows of 14"),
        ({"windows": []}, "its index has 0 windows"),
        ({"windows": [{"id": "a", "tokens": "d"}]}, "its index names 1 windows, the file has 3"),
        ({"windows": [{"id": "a", "tokens": "d"}] * 3}, "its index names window a twice"),
        ({"windows": [{"id": "a\n", "tokens": "d"}]}, "at $.windows[0]"),
        ({"windows": [{"tokens": "d"}]}, "missing required field `id` - at `$.windows[0]`"),
    ],
)
def test_a_wrong_index_is_told_where(file, fields, said):
    with_json(file, "index", **fields)
    sentences = check(file)
    assert said in sentences[0]


def test_other_shapes_and_types_are_named(file):
    right = members(file)["window_1.npy"]
    with np.load(file) as arrays:
        records = arrays["window_1"]
    wrong = {
        "its array is {'descr': [('ids',": npy(records[:5]),
        "its array is {'descr': '<f4'": npy(np.zeros(6, np.float32)),
        "a pickle, which is never read": npy(np.array([print] * 6), allow_pickle=True),
        "it is no array in the .npy format": b"PK",
        "the header of its array is too long": right[:8] + b"\xff\xff" + right[10:],
        "its array claims": right[:-1],
        "at most": right + b"\0" * 5000,
    }
    for said, data in wrong.items():
        rewrite(file, {"window_1.npy": data})
        assert complaint(file).startswith("window code:0: ")
        assert said in complaint(file)
    rewrite(file, {"window_1.npy": right})
    assert check(file) == []
    rewrite(file, {"head.npy": npy(np.array(head(), dtype=object), allow_pickle=True)})
    assert "head: its array is" in complaint(file)
    assert "a pickle, which is never read" in complaint(file)


def test_other_members_are_named(file):
    whole = file.read_bytes()
    for changed, said in (
        ({"window_1.npy": None}, "it has no window_1.npy, but window_2.npy; a reference file"),
        ({"head.npy": None}, "it has no head.npy"),
        ({"evil.pkl": b"x"}, "it has no window_3.npy, but evil.pkl"),
    ):
        file.write_bytes(whole)
        rewrite(file, changed)
        assert said in complaint(file)
    file.write_bytes(whole)
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(file, "a") as archive,
    ):
        archive.writestr("head.npy", b"")
    assert "names a member twice" in complaint(file)
    with zipfile.ZipFile(file, "w"):
        pass
    assert "it is no .npz file" in complaint(file)


def test_what_is_no_file_is_said(tmp_path):
    with pytest.raises(TextError, match=r"gone\.npz: cannot read it: No such file"):
        describe(tmp_path / "gone.npz")
    assert "it is no file" in complaint(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "it is no file" in complaint(pipe)
    for content in (b"", b"GGUF" + b"\0" * 100):
        (tmp_path / "model.gguf").write_bytes(content)
        assert "it is no .npz file" in complaint(tmp_path / "model.gguf")


def test_bombs_are_refused_before_they_go_off(file):
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("window_3.npy", b"\0" * 30_000_000, zipfile.ZIP_DEFLATED)
    bomb = file.stat().st_size
    assert bomb < 200_000
    tracemalloc.start()
    try:
        assert "its window_3.npy is compressed" in complaint(file)
        assert "that are to become 30000000" in complaint(file)
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


def end_of(data, **fields):
    """Change fields of the zip's end: ``size`` or ``offset`` of its directory."""
    sizes = list(struct.unpack("<4s4H2LH", data[-22:]))
    sizes[5] = fields.get("size", sizes[5])
    return data[:-22] + struct.pack("<4s4H2LH", *sizes)


def with_end64(data, place=None, size=None):
    """Put the end of a large zip before that of the small one."""
    _, _, _, n, _, directory, offset, _ = struct.unpack("<4s4H2LH", data[-22:])
    at = len(data) - 22
    end = struct.pack(
        "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, n, n, size or directory, offset
    )
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, at if place is None else place, 1)
    return data[:-22] + end + locator + data[-22:]


def test_directories_that_claim_too_much_are_refused(file, monkeypatch):
    whole = file.read_bytes()
    file.write_bytes(end_of(whole, size=2**31))
    assert f"its zip directory claims {2**31} bytes" in complaint(file)
    file.write_bytes(with_end64(whole))
    assert check(file) == []
    file.write_bytes(with_end64(whole, size=2**40))
    assert f"its zip directory claims {2**40} bytes" in complaint(file)
    file.write_bytes(with_end64(whole, place=0))
    assert "two ends that do not agree" in complaint(file)
    # Many members, each next to nothing, each an object to its reader.
    monkeypatch.setattr(reference, "MAX_DIRECTORY_BYTES", 10_000)
    with zipfile.ZipFile(file, "w") as archive:
        for i in range(1000):
            archive.writestr(zipfile.ZipInfo(f"window_{i}.npy"), b"")
    assert "its zip directory claims" in complaint(file)


def test_a_member_that_claims_more_than_the_file_is_named(file):
    whole = bytearray(file.read_bytes())
    place = whole.rindex(b"window_2.npy") - 46
    assert whole[place : place + 4] == b"PK\x01\x02"
    for claimed in ((2**31, 2**31), (2**31, 10)):
        # Stored and original size, in the directory.
        whole[place + 20 : place + 28] = struct.pack("<2L", *claimed)
        file.write_bytes(whole)
        assert f"its window_2.npy claims {claimed[1]} bytes at" in complaint(file)


def test_members_that_share_bytes_are_refused(file):
    whole = bytearray(file.read_bytes())
    place = whole.rindex(b"window_0.npy") - 46
    (offset,) = struct.unpack_from("<L", whole, place + 42)
    claimed = len(whole) - offset - 100
    whole[place + 20 : place + 28] = struct.pack("<2L", claimed, claimed)
    file.write_bytes(whole)
    assert f"its members claim more than its {len(whole)} bytes" in complaint(file)


def test_an_encrypted_member_is_refused(file):
    whole = bytearray(file.read_bytes())
    place = whole.rindex(b"window_2.npy") - 46
    whole[place + 8] |= 1
    file.write_bytes(whole)
    said = complaint(file)
    assert said.startswith("window table:1: it is damaged (")
    assert "is encrypted" in said


def test_a_file_cut_short_is_refused(file):
    whole = file.read_bytes()
    for length in (*range(4, 60), len(whole) // 2, *range(len(whole) - 60, len(whole))):
        file.write_bytes(whole[:length])
        assert "it is cut short" in complaint(file)


@lawful
@given(st.integers(0, 2**30), st.integers(0, 7))
def test_a_flipped_bit_is_seen_or_makes_no_difference(tmp_path_factory, place, bit):
    flips(tmp_path_factory, [(place, bit)])


def test_no_flipped_bit_of_directory_or_headers_goes_unseen(tmp_path_factory):
    # All of what is not an array's content, whose checksum needs no second test per byte.
    path = written(tmp_path_factory.mktemp("flips") / "r.npz")
    whole = path.read_bytes()
    structure = [i for i in range(len(whole)) if i < 300 or i > len(whole) - 400]
    flips(tmp_path_factory, [(i, i % 8) for i in structure])


def flips(factory, wanted):
    folder = factory.mktemp("flip")
    path = written(folder / "r.npz")
    whole = path.read_bytes()
    with Reader(path) as reader:
        right = (reader.head, reader.windows, [reader.records(i).tobytes() for i in range(3)])
    for place, bit in wanted:
        flipped = bytearray(whole)
        flipped[place % len(whole)] ^= 1 << bit
        path.write_bytes(flipped)
        if not check(path):
            with Reader(path) as reader:
                found = [reader.records(i).tobytes() for i in range(3)]
                assert (reader.head, reader.windows, found) == right


def test_files_beyond_the_small_zips_limits_are_written_and_read(tmp_path, monkeypatch):
    # The limit is 2 GiB; the format of what is beyond it is the same at any size.
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    path = written(tmp_path / "r.npz")
    assert b"PK\x06\x07" in path.read_bytes()
    monkeypatch.undo()
    assert check(path) == []
    with Reader(path) as reader:
        assert reader.ids == IDS
