"""Importance matrices without a runtime: the sums, what is refused, and the file."""

from __future__ import annotations

import io
import random
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice.probe import archives, importance
from pytest_ondevice.probe.importance import add_dense, add_experts, cut, read, weigh, write
from pytest_ondevice.probe.protocol import Text
from pytest_ondevice.probe.reference import TextError

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(7)


def values(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def empty(matrices: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((matrices, columns)), np.zeros(matrices, dtype=np.int64)


def matrix(**tensors: list[float]) -> dict[str, np.ndarray]:
    return {name: np.array(row, dtype=np.float32) for name, row in tensors.items()}


SMALL = matrix(**{"blk.0.attn_q.weight": [1, 0, 2.5], "blk.1.ffn_up.weight": [0.25]})


class Letters:
    """A tokenizer with one token per letter, by its place in the alphabet."""

    def __init__(self, *, adds_bos: bool = True) -> None:
        self.adds_bos, self.bos = adds_bos, 99

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        start = [self.bos] if special and self.adds_bos else []
        return start + [ord(letter) - ord("a") for letter in text]


class TestSums:
    def test_one_matrix_takes_every_row(self):
        sums, counts = empty(1, 6)
        first, second = values(1, 1, 130, 6), values(1, 3, 5, 6)
        add_dense(sums, counts, first, 1)
        add_dense(sums, counts, second, 1)
        rows = np.concatenate([first.reshape(-1, 6), second.reshape(-1, 6)])
        assert counts.tolist() == [145]
        np.testing.assert_allclose(sums[0], (rows.astype(float) ** 2).sum(axis=0), rtol=1e-12)

    def test_a_stack_takes_the_rows_of_its_own_heads(self):
        sums, counts = empty(6, 4)
        rows = values(2, 6, 7, 4)  # twice as many heads as the stack: they take turns
        add_dense(sums, counts, rows, 3)
        expected = np.zeros((6, 4))
        for i in range(2):
            for j in range(6):
                expected[i * 3 + j % 3] += (rows[i, j].astype(float) ** 2).sum(axis=0)
        np.testing.assert_allclose(sums, expected, rtol=1e-12)
        assert counts.tolist() == [14] * 6

    @pytest.mark.parametrize("own", [1, 2], ids=["one row for all", "a row for each choice"])
    def test_experts_take_the_tokens_sent_to_them(self, own):
        sums, counts = empty(5, 4)
        rows = values(50, own, 4)
        chosen = np.array([RNG.permutation(4)[:2] for _ in range(50)], dtype=np.int32)
        add_experts(sums, counts, rows, chosen)
        expected = np.zeros((5, 4))
        for token in range(50):
            for choice in range(2):
                expected[chosen[token, choice]] += rows[token, choice % own].astype(float) ** 2
        np.testing.assert_allclose(sums, expected, rtol=1e-12)
        assert counts.tolist() == np.bincount(chosen.ravel(), minlength=5).tolist()
        assert counts[4] == 0

    def test_large_values_do_not_overflow(self):
        sums, counts = empty(1, 1)
        add_dense(sums, counts, np.full((1, 1, 3, 1), 1e30, dtype=np.float32), 1)
        assert sums[0, 0] == pytest.approx(3e60)

    def test_means_are_by_name_and_matrix(self):
        made, idle = weigh(
            {"b": np.array([[2.0, 6.0], [5.0, 0.0]]), "a": np.array([[3.0]])},
            {"b": np.array([2, 5]), "a": np.array([4])},
        )
        assert list(made) == ["a", "b"]
        assert made["b"].tolist() == [1, 3, 1, 0]
        assert made["a"].tolist() == [0.75]
        assert {array.dtype for array in made.values()} == {np.dtype(np.float32)}
        assert idle == 0

    def test_an_expert_without_tokens_is_weighed_evenly(self):
        made, idle = weigh({"x": np.array([[0.0, 0.0], [4.0, 8.0]])}, {"x": np.array([0, 2])})
        assert made["x"].tolist() == [1, 1, 2, 4]
        assert idle == 1

    @pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
    def test_what_is_not_finite_is_named(self, bad):
        with pytest.raises(TextError, match=r"of x is not finite \(matrix 1, column 0: .*damaged"):
            weigh({"x": np.array([[1.0, 1.0], [bad, 1.0]])}, {"x": np.array([1, 1])})

    def test_zero_throughout_is_refused(self):
        with pytest.raises(TextError, match=r"of x is zero in every column \(matrix 1\)"):
            weigh({"x": np.array([[1.0, 0.0], [0.0, 0.0]])}, {"x": np.array([1, 1])})
        with pytest.raises(TextError, match="of x is zero in every column"):
            weigh({"x": np.array([[0.0, 0.0]])}, {"x": np.array([0])})

    def test_nothing_seen_is_refused(self):
        with pytest.raises(TextError, match="no matrix of a repeating layer was seen"):
            weigh({}, {})


class TestWindows:
    def texts(self, folder: Path, *contents: str) -> tuple[Text, ...]:
        for i, content in enumerate(contents):
            (folder / f"{i}.txt").write_text(content)
        return tuple(Text(str(i), str(folder / f"{i}.txt")) for i in range(len(contents)))

    def test_texts_follow_each_other_and_the_rest_is_left_out(self, tmp_path):
        texts = self.texts(tmp_path, "abcde", "fgh", "ij")
        windows = cut(Letters(adds_bos=False), texts, 4)
        assert windows.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert windows.dtype == np.int32

    def test_bos_stands_first_where_the_model_wants_it(self, tmp_path):
        windows = cut(Letters(), self.texts(tmp_path, "abcde", "fgh"), 4)
        assert windows.tolist() == [[99, 1, 2, 3], [99, 5, 6, 7]]

    def test_less_than_a_window_is_refused(self, tmp_path):
        with pytest.raises(TextError, match="has 3 tokens; one window needs 4"):
            cut(Letters(), self.texts(tmp_path, "ab", "c"), 4)

    def test_a_text_that_cannot_be_read_is_named(self, tmp_path):
        with pytest.raises(TextError, match=r"gone\.txt: cannot read it: No such file"):
            cut(Letters(), (Text("x", str(tmp_path / "gone.txt")),), 4)
        (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
        with pytest.raises(TextError, match=r"latin\.txt: it is not UTF-8 text \(byte 3\)"):
            cut(Letters(), (Text("x", str(tmp_path / "latin.txt")),), 4)


class TestFile:
    @settings(deadline=None, max_examples=40)
    @given(
        st.dictionaries(
            st.text("abk.0_", min_size=1, max_size=63),
            st.lists(st.floats(0, 2.0**99, width=32), min_size=1, max_size=9).filter(any),
            min_size=1,
            max_size=5,
        )
    )
    def test_what_is_written_is_read(self, tmp_path_factory, tensors):
        path = tmp_path_factory.mktemp("round") / "i.npz"
        write(path, matrix(**tensors))
        found = read(path)
        assert {name: row.tolist() for name, row in found.items()} == tensors
        assert {row.dtype for row in found.values()} == {np.dtype("<f4")}

    def test_the_same_gives_the_same_bytes(self, tmp_path):
        write(tmp_path / "a.npz", SMALL)
        write(tmp_path / "b.npz", dict(reversed(SMALL.items())))
        assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]
        with zipfile.ZipFile(tmp_path / "a.npz") as made:
            assert {member.date_time for member in made.infolist()} == {(1980, 1, 1, 0, 0, 0)}

    def test_who_has_the_old_file_open_keeps_it(self, tmp_path):
        write(tmp_path / "a.npz", SMALL)
        (tmp_path / "link.npz").hardlink_to(tmp_path / "a.npz")
        write(tmp_path / "a.npz", matrix(other=[1]))
        assert list(read(tmp_path / "link.npz")) == sorted(SMALL)
        assert list(read(tmp_path / "a.npz")) == ["other"]

    def test_numpy_reads_it_too(self, tmp_path):
        write(tmp_path / "a.npz", SMALL)
        with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
            assert archive["blk.0.attn_q.weight"].tolist() == [1, 0, 2.5]

    def test_a_failure_leaves_the_old_file(self, tmp_path, monkeypatch):
        write(tmp_path / "a.npz", SMALL)
        before = (tmp_path / "a.npz").read_bytes()

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(archives.os, "fsync", full)
        with pytest.raises(TextError, match=r"a\.npz: cannot write it: No space left"):
            write(tmp_path / "a.npz", matrix(other=[1]))
        assert (tmp_path / "a.npz").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def member(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


GOOD = member(np.ones(3, dtype=np.float32), version=(1, 0))


def archive(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as made:
        for name, data in members:
            made.writestr(zipfile.ZipInfo(name), data, compression)
    return file.getvalue()


def floats(*row: float) -> bytes:
    return member(np.array(row, dtype=np.float32), version=(1, 0))


BAD = {
    "empty file": (b"", "is no .npz file"),
    "other file": (b"GGUF" * 20, "is no .npz file"),
    "lone array": (GOOD, "is no .npz file"),
    "no tensor": (archive(), "is no .npz file"),
    "compressed": (
        archive(("a.npy", GOOD), compression=zipfile.ZIP_DEFLATED),
        "a is compressed or encrypted",
    ),
    "not npy": (archive(("a.txt", GOOD)), "'a.txt' is no name of a tensor's array"),
    "path": (archive(("../a.npy", GOOD)), "'../a.npy' is no name"),
    "no name": (archive((".npy", GOOD)), "'.npy' is no name"),
    "long name": (archive(("a" * 64 + ".npy", GOOD)), "is no name"),
    "control": (archive(("a\x1bb.npy", GOOD)), r"'a\?b\.npy' is no name"),
    "not an array": (archive(("a.npy", b"hello, world")), "a is no array"),
    "version 2": (archive(("a.npy", member(np.ones(3, np.float32), version=(2, 0)))), "a is no"),
    "scalar": (
        archive(("a.npy", member(np.array(1, np.float32), version=(1, 0)))),
        r"a is float32 of shape \(\)",
    ),
    "a column": (
        archive(("a.npy", member(np.ones((3, 1), np.float32), version=(1, 0)))),
        r"a is float32 of shape \(3, 1\)",
    ),
    "objects": (
        archive(("a.npy", member(np.array([{}]), version=(1, 0), allow_pickle=True))),
        r"a is object of shape \(1,\)",
    ),
    "doubles": (archive(("a.npy", member(np.ones(3), version=(1, 0)))), "a is float64 of shape"),
    "big endian": (archive(("a.npy", member(np.ones(3, ">f4"), version=(1, 0)))), "a is >f4"),
    "two rows": (
        archive(("a.npy", member(np.ones((2, 2), np.float32), version=(1, 0)))),
        r"of shape \(2, 2\)",
    ),
    "nothing in it": (archive(("a.npy", floats())), r"of shape \(0,\)"),
    "cut short": (archive(("a.npy", GOOD[:-4])), "in 8 bytes; one row of float32"),
    "too long": (archive(("a.npy", GOOD + b"1234")), "in 16 bytes"),
    "NaN": (archive(("a.npy", floats(1, np.nan))), "a is not finite in some column"),
    "infinite": (archive(("a.npy", floats(np.inf, 1))), "a is not finite in some column"),
    "negative": (archive(("a.npy", floats(1, -1))), "a is negative in some column"),
    "zero": (archive(("ok.npy", GOOD), ("a.npy", floats(0, 0))), "a is zero in every column"),
}


@pytest.mark.parametrize(("content", "said"), BAD.values(), ids=BAD)
def test_what_is_no_importance_matrix_is_refused(tmp_path, content, said):
    path = tmp_path / "i.npz"
    path.write_bytes(content)
    with pytest.raises(TextError, match=said) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_name_twice_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        content = archive(("a.npy", GOOD), ("a.npy", GOOD))
    (tmp_path / "i.npz").write_bytes(content)
    with pytest.raises(TextError, match="a is there twice"):
        read(tmp_path / "i.npz")


def test_what_is_not_there_or_too_large_is_refused(tmp_path, monkeypatch):
    with pytest.raises(TextError, match="it is no file; an importance matrix is expected"):
        read(tmp_path / "gone.npz")
    with pytest.raises(TextError, match="it is no file"):
        read(tmp_path)
    write(tmp_path / "a.npz", SMALL)
    monkeypatch.setattr(importance, "MOST_TENSORS", 1)
    with pytest.raises(TextError, match="it has 2 tensors; 1 to 1 are expected"):
        read(tmp_path / "a.npz")
    monkeypatch.setattr(importance, "MOST_BYTES", 100)
    with pytest.raises(TextError, match=r"it has \d+ bytes, an importance matrix at most 100"):
        read(tmp_path / "a.npz")


def test_a_directory_that_claims_too_much_is_refused(tmp_path):
    content = archive(("a.npy", GOOD))
    size = len(GOOD).to_bytes(4, "little")
    (tmp_path / "i.npz").write_bytes(content.replace(size, (1 << 31).to_bytes(4, "little")))
    with pytest.raises(TextError, match=r"its tensors claim more than its \d+ bytes"):
        read(tmp_path / "i.npz")


def test_damage_is_refused_or_harmless(tmp_path):
    """Whatever was changed or cut off: one sentence, or still means of squares."""
    path = tmp_path / "i.npz"
    write(path, SMALL)
    good = path.read_bytes()
    rng = random.Random(1)
    for _ in range(400):
        damaged = bytearray(good)
        for _ in range(rng.choice([1, 1, 2, 8])):
            damaged[rng.randrange(len(good))] = rng.choice([0, 1, 255, rng.randrange(256)])
        if rng.random() < 0.3:
            del damaged[rng.randrange(len(good)) :]
        path.write_bytes(damaged)
        try:
            found = read(path)
        except TextError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017
        else:
            assert all(np.isfinite(row).all() and row.min() >= 0 for row in found.values())
