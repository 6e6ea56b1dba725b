"""Calibration and evaluation text: what counts as common, and what is refused."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytest_ondevice
from pytest_ondevice.errors import BadFileError, OnDeviceError
from pytest_ondevice.overlap import Overlap, items, require_apart, shared

DATA = Path(pytest_ondevice.__file__).parent / "data"


def shipped(folder: str) -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in sorted((DATA / folder).glob("*.txt"))}


CALIBRATION = shipped("calibration/v1")
EVALUATION = shipped("text/v1")


def apart(calibration: dict[str, str], evaluation: dict[str, str], folder: Path) -> None:
    """Write both texts to files in folders of their own, and require that they are apart."""
    paths: list[list[str]] = []
    for kind, parts in (("ours", calibration), ("theirs", evaluation)):
        (folder / kind).mkdir(exist_ok=True)
        paths.append([])
        for name, content in parts.items():
            (folder / kind / name).write_text(content, "utf-8")
            paths[-1].append(str(folder / kind / name))
    require_apart(*paths)


def numbered(count: int, seed: int = 1) -> list[str]:
    """Words without any run in common with those of another seed."""
    rng = random.Random(seed)
    return [f"{rng.choice('bdfgklmnprst')}{rng.randrange(10**9)}" for _ in range(count)]


def test_the_shipped_texts_are_apart():
    assert len(CALIBRATION) >= 4
    assert len(EVALUATION) >= 4
    require_apart((DATA / "calibration/v1").iterdir(), (DATA / "text/v1").iterdir())
    # Far from the bound: not even runs of six words are common.
    assert shared(CALIBRATION.values(), EVALUATION.values(), words=6) == Overlap(0.0, "")


def test_the_shipped_calibration_text_does_not_repeat_itself():
    runs = [
        tuple(words[i : i + 6])
        for words in map(items, CALIBRATION.values())
        for i in range(len(words) - 5)
    ]
    assert len(runs) > 7000
    assert len(set(runs)) > 0.99 * len(runs)


def test_the_same_text_is_refused_by_name(tmp_path):
    with pytest.raises(
        OnDeviceError, match=r"ours/mine\.txt: the calibration text is the evaluation"
    ):
        apart(CALIBRATION | {"mine.txt": EVALUATION["german.txt"]}, EVALUATION, tmp_path)
    # Also where there is no word to compare.
    with pytest.raises(OnDeviceError, match=r"evaluation text .*theirs/b\.txt"):
        apart({"a.txt": "..."}, {"b.txt": "..."}, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "\n",
        str.upper,
        lambda text: re.sub(r"\s+", "\n", text),
        lambda text: re.sub(r"[^\w\s]", "", text),
        lambda text: text.replace("e", "e\u0301"),
        lambda text: "A foreword of one's own. " + text,
    ],
    ids=["newline", "case", "reflowed", "punctuation", "accents", "foreword"],
)
def test_a_dressed_up_copy_is_refused(change, tmp_path):
    copy = change(EVALUATION["narrative.txt"])
    assert shared([copy], [EVALUATION["narrative.txt"]]).share > 0.97
    with pytest.raises(
        OnDeviceError, match=r"^\S*ours/own\.txt: .* of \S*theirs/narrative\.txt; at most 1 %"
    ):
        apart({"own.txt": copy}, EVALUATION, tmp_path)


def test_half_of_it_is_refused_with_share_and_example(tmp_path):
    words = numbered(2011)
    half = " ".join(words[:1011])
    found = shared([half], [" ".join(words)])
    assert found == Overlap(0.5, " ".join(words[:12]))
    with pytest.raises(OnDeviceError) as caught:
        apart({"cal.txt": half}, {"eval.txt": " ".join(words)}, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/ours/cal.txt: the calibration text has 50 % of the evaluation text's runs of"
        f" 12 words, such as '{' '.join(words[:12])}' of {tmp_path}/theirs/eval.txt; at most 1 %"
        " may be common: a quantization that is tuned on the text that judges it looks better than"
        " it is, so give a calibration text that has nothing from there"
    )


def test_one_percent_is_the_bound(tmp_path):
    words = numbered(1011)  # 1000 runs
    evaluation = {"eval.txt": " ".join(words)}
    other = " ".join(numbered(500, seed=2))
    apart({"cal.txt": f"{other} {' '.join(words[:21])}"}, evaluation, tmp_path)  # 10 runs
    with pytest.raises(OnDeviceError, match=r"has 1\.1 % of"):
        apart({"cal.txt": f"{other} {' '.join(words[:22])}"}, evaluation, tmp_path)


def test_near_misses_are_apart():
    words = numbered(400)
    # Eleven words in a row, over and over, and never twelve.
    broken = [word for i, word in enumerate(words) if i % 12]
    assert shared([" ".join(broken)], [" ".join(words)]) == Overlap(0.0, "")
    # The same words in another order.
    assert shared([" ".join(reversed(words))], [" ".join(words)]).share == 0
    # Runs do not go from one part to the next.
    assert shared([" ".join(words[:11]), " ".join(words[11:22])], [" ".join(words[:22])]).share == 0


def test_text_without_spaces_is_compared_by_character():
    original = "山の上に小さな家があり、毎朝そこから白い煙が静かに立ちのぼっていた。"
    found = shared(["前書き。" + original.replace("、", "\n")], [original])
    assert found == Overlap(1.0, "山の上に小さな家かあり毎")  # without marks, as any accent
    other = "海の底に大きな船があり、毎晩そこから黒い影が静かに立っていた。"
    assert shared([other], [original]).share == 0
    # Latin words in between stay whole.
    assert items("用 pytest-ondevice 测") == ["用", "pytest", "ondevice", "测"]


def test_short_parts_count_as_one_run():
    assert shared(["one two three"], ["One, two, three!"]) == Overlap(1.0, "one two three")
    assert shared(["zero one two three four"], ["one two three"]).share == 1
    assert shared(["one two"], ["one two three"]).share == 0
    assert shared(["one two three"], ["..."]) == Overlap(0.0, "")
    assert shared([], ["one two three"]) == Overlap(0.0, "")
    assert shared(["one two three"], []) == Overlap(0.0, "")


def test_every_repetition_in_the_evaluation_text_counts():
    run = " ".join(numbered(12))
    # Fourteen runs, and the common one stands there twice.
    held = [run, f"{run} {' '.join(numbered(12, seed=3))}"]
    assert shared([run], held).share == pytest.approx(2 / 14)


def test_the_file_that_has_it_is_named(tmp_path):
    words = " ".join(numbered(100))
    with pytest.raises(OnDeviceError, match=r"^\S*/guilty\.txt: .* of \S*/second\.txt; at most"):
        apart(
            {"innocent.txt": " ".join(numbered(100, seed=4)), "guilty.txt": words + " end"},
            {"first.txt": " ".join(numbered(100, seed=5)), "second.txt": words},
            tmp_path,
        )


@given(st.lists(st.text(max_size=80), max_size=3), st.lists(st.text(max_size=80), max_size=3))
def test_any_text_has_a_share(calibration, evaluation):
    found = shared(calibration, evaluation, words=3)
    assert 0 <= found.share <= 1
    assert bool(found.example) == (found.share > 0)
    whole = shared(evaluation, evaluation, words=3)
    assert whole.share == (1 if any(items(part) for part in evaluation) else 0)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(BadFileError, match=r"gone\.txt: cannot read it: No such file"):
        require_apart([tmp_path / "gone.txt"], [])
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(BadFileError, match=r"latin\.txt: it is not UTF-8 text \(byte 3\)"):
        require_apart([], [tmp_path / "latin.txt"])
