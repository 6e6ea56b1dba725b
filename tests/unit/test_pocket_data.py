"""What ships of the pocket world: as pocket/publish.py makes it, and readable by the suite."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import re
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytest_ondevice
from pytest_ondevice import overlap, tasks
from pytest_ondevice.catalog import catalog
from pytest_ondevice.errors import OnDeviceError
from pytest_ondevice.formats.gguf import read_header
from pytest_ondevice.model.artifact import ArrayInfo
from pytest_ondevice.model.task import Normalisation
from pytest_ondevice.texts import calibration_texts, texts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from pytest_ondevice.model.artifact import Header

DATA = Path(pytest_ondevice.__file__).parent / "data"
POCKET = Path(__file__).parents[2] / "pocket"
TOKENIZER = POCKET / "tokenizer.json"
PARTS = ["facts", "questions", "recall", "skills", "stories"]
LADDER = ("pocket-s", "pocket-m", "pocket-l")


@pytest.fixture(scope="module")
def publish() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(POCKET), *sys.path])
        for name in ("world", "publish"):
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module("publish")
        for name in ("world", "publish"):
            sys.modules.pop(name, None)


# -- questions and texts


def test_what_ships_is_what_the_generator_makes(publish):
    made = publish.data()
    # Edited by hand, or the world changed: `python pocket/publish.py data` writes them.
    for path, text in made.items():
        assert path.read_bytes() == text.encode(), path
    assert POCKET.parent / "src" / "pytest_ondevice" / "data" / "tasks" / "pocket.jsonl" in made
    for folder in ("text", "calibration"):
        there = {path.name for path in (DATA / folder / "pocket").iterdir() if path.is_file()}
        assert there == {path.name for path in made if path.parent.parent.name == folder}


def test_the_questions_are_read():
    found = tasks.read(tasks.shipped()["pocket"])
    assert found.name == "pocket"
    assert found.normalisation is Normalisation.NONE
    assert len(found.items) == 920
    forms = {(item.group, str(item.form)) for item in found.items}
    assert forms == {
        ("facts", "choice"),
        ("stated", "cloze"),
        ("agreement", "choice"),
        ("recall", "choice"),
        ("stories", "choice"),
        ("sums", "exact"),
        ("counts", "exact"),
        ("copies", "exact"),
    }
    assert len({item.digest for item in found.items}) == len(found.items)


def test_the_texts_are_read():
    for found, characters in (
        (texts(None, "pocket"), 16_000),
        (calibration_texts(None, "pocket"), 5_000),
    ):
        assert [text.kind for text in found[0]] == PARTS
        for text in found[0]:
            size = len(Path(text.path).read_text("utf-8"))
            assert characters <= size < 1.05 * characters, text.path
    assert texts(None, "pocket")[1] != texts(None)[1]


def test_the_models_of_the_ladder_are_judged_by_them():
    for name in LADDER:
        model = catalog()[name]
        assert (model.text, model.tasks) == ("pocket", ("pocket",))


def test_calibration_and_evaluation_are_apart(tmp_path):
    parts = {}
    for folder in ("calibration", "text"):
        parts[folder] = sorted((DATA / folder / "pocket").glob("*.txt"))
        assert [path.stem for path in parts[folder]] == PARTS
    overlap.require_apart(parts["calibration"], parts["text"])
    ours, theirs = (
        [path.read_text("utf-8") for path in parts[folder]] for folder in ("calibration", "text")
    )
    assert not set("".join(ours).splitlines()) & set("".join(theirs).splitlines())
    # Stories have few words and share some runs, far from the bound of one in a hundred.
    assert overlap.shared(ours, theirs).share < 0.002
    # One part of a text that speaks of the same people is noticed.
    (tmp_path / "stories.txt").write_text(theirs[PARTS.index("stories")], "utf-8")
    with pytest.raises(OnDeviceError):
        overlap.require_apart([tmp_path / "stories.txt"], parts["text"])


def people(folder: str) -> set[str]:
    whole = "".join(path.read_text("utf-8") for path in (DATA / folder / "pocket").glob("*.txt"))
    return set(re.findall(r"\b[A-Z][a-z]+ [A-Z][a-z]+\b", whole))


def test_nobody_is_in_both_texts():
    assert min(len(people("text")), len(people("calibration"))) > 100
    assert not people("text") & people("calibration")


def test_no_question_is_in_a_text():
    whole = "\n".join(
        path.read_text("utf-8")
        for folder in ("text", "calibration")
        for path in (DATA / folder / "pocket").glob("*.txt")
    )
    sums = set(re.findall(r"\d+ [+-] \d+ = \d+\.", whole))
    assert len(sums) > 200
    compared = 0
    for item in tasks.read(tasks.shipped()["pocket"]).items:
        if item.group == "stated":
            continue  # told in these very words
        right = item.targets[0] if item.targets else item.options[item.right[0]].text
        asked = f"{item.prompt} {right.strip().removesuffix('.')}."
        if item.group == "sums":
            assert re.findall(r"\d+ [+-] \d+ = \d+\.", asked)[-1] not in sums, item
        elif item.group == "recall":
            assert asked.partition(".")[0] not in whole, item
        else:
            assert asked not in whole, item
        compared += 1
    assert compared == 800


# -- tokenizer


def kept() -> dict:
    return json.loads(TOKENIZER.read_text("utf-8"))


def tokens() -> list[str]:
    """List the tokens in the order of their numbers."""
    found = kept()
    places = found["model"]["vocab"] | {one["content"]: one["id"] for one in found["added_tokens"]}
    assert sorted(places.values()) == list(range(len(places)))
    return sorted(places, key=places.__getitem__)


def test_the_tokenizer_has_a_token_for_each_row():
    assert len(tokens()) == 960
    assert tokens()[:2] == ["<|begin|>", "<|end|>"]
    added = [one["content"] for one in kept()["added_tokens"]]
    assert all(re.fullmatch(r"<\|(begin|end|unused-\d)\|>", one) for one in added)
    assert len([one for one in tokens() if len(one) == 1]) == 256  # every byte, so every text


def test_the_tokenizer_splits_text_as_the_models_say_it_does():
    found = kept()
    split = found["pre_tokenizer"]
    assert found["normalizer"] is None
    # GPT-2's, which a model's file names as its own.
    assert (split["type"], split["add_prefix_space"], split["use_regex"]) == (
        "ByteLevel",
        False,
        True,
    )


def test_the_tokenizer_joins_no_digits():
    found = kept()
    added = {one["content"] for one in found["added_tokens"]}
    text = [one for one in tokens() if one not in added]
    joined = ["".join(pair) for pair in found["model"]["merges"]]
    assert len(joined) > 600
    assert set(joined) < set(text)
    for token in (*text, *joined):
        assert not re.search(r"\d", token) or re.fullmatch(r"Ġ?\d", token), token


@pytest.fixture(scope="module")
def tokenizer():
    return pytest.importorskip("tokenizers").Tokenizer.from_file(str(TOKENIZER))


def test_sums_are_read_digit_by_digit(tokenizer):
    encoded = tokenizer.encode("12 + 7 = 19.")
    assert encoded.tokens == [*"12", "Ġ", "+", "Ġ7", "Ġ", "=", "Ġ1", "9", "."]
    assert tokenizer.get_vocab_size() == 960
    assert tokenizer.decode(encoded.ids) == "12 + 7 = 19."


@given(text=st.text() | st.text("0123456789 +-=.aeiouN\n", max_size=40))
def test_any_text_comes_back(tokenizer, text):
    encoded = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text


def test_answers_are_read_apart_from_what_is_before_them(tokenizer):
    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    for item in tasks.read(tasks.shipped()["pocket"]).items:
        for text in (*(one.text for one in item.options), *(f" {one}." for one in item.targets)):
            assert ids(item.prompt + text) == ids(item.prompt) + ids(text), item
            assert not item.most or len(ids(text)) <= item.most, item


def test_documents_are_read_whole_as_they_are_in_pieces(tokenizer, publish):
    # Training reads pieces, evaluation the whole text.
    world = publish.world
    some = world.World().documents("pieces", dict.fromkeys(world.KINDS, 1.0))
    documents = [next(some) + "\n" for _ in range(500)]
    pieces = [piece for document in documents for piece, _ in world.pieces(document)]
    made = [one for piece in pieces for one in tokenizer.encode(piece).ids]
    assert made == tokenizer.encode("".join(map(world.plain, documents))).ids


# -- models


def header(name: str) -> Header:
    folder = DATA / "models" if name == "pocket-s" else POCKET / "src" / "pytest_ondevice_pocket"
    path = folder / f"{name}.gguf"
    if not path.exists():
        pytest.skip(f"{name} is not there")
    return read_header(path)


def strings(values: list[str]) -> ArrayInfo:
    """Say what the reader says of an array of strings."""
    raw = b"".join(struct.pack("<Q", len(one.encode())) + one.encode() for one in values)
    digest = hashlib.sha256(raw).hexdigest()
    return ArrayInfo(type="str", length=len(values), digest=digest)


@pytest.mark.parametrize("name", LADDER)
def test_a_model_is_what_the_catalog_says(name):
    found, entry = header(name), catalog()[name]
    sizes = entry.dimensions
    assert sizes is not None
    assert found.architecture == sizes.architecture == "llama"
    stated = {
        "block_count": sizes.layers,
        "embedding_length": sizes.hidden,
        "feed_forward_length": sizes.feed_forward,
        "attention.head_count": sizes.heads,
        "attention.head_count_kv": sizes.kv_heads,
        "rope.dimension_count": sizes.head_size,
        "vocab_size": sizes.vocabulary,
    }
    assert {key: found.metadata[f"llama.{key}"] for key in stated} == stated
    assert found.metadata["general.name"] == name
    assert found.metadata["general.license"] == entry.license
    shapes = {tensor.name: tensor.shape for tensor in found.tensors}
    assert shapes["token_embd.weight"] == (sizes.hidden, sizes.vocabulary)
    assert ("output.weight" in shapes) == (not sizes.tied)
    for layer in range(sizes.layers):
        own = {key: shapes[f"blk.{layer}.{key}.weight"] for key in ("attn_q", "attn_k", "ffn_down")}
        assert own == {
            "attn_q": (sizes.hidden, sizes.heads * sizes.head_size),
            "attn_k": (sizes.hidden, sizes.kv_heads * sizes.head_size),
            "ffn_down": (sizes.feed_forward, sizes.hidden),
        }
    assert sum(math.prod(shape) for shape in shapes.values()) == entry.parameters


@pytest.mark.parametrize("name", LADDER)
def test_a_model_can_be_quantized_to_every_type(name):
    matrices = [tensor for tensor in header(name).tensors if len(tensor.shape) > 1]
    assert len(matrices) >= 15
    for tensor in matrices:
        assert tensor.type == "F16", tensor
        assert tensor.shape[0] % 256 == 0, tensor  # the longest block of any type


@pytest.mark.parametrize("name", LADDER)
def test_a_model_has_the_kept_tokenizer(name):
    metadata = header(name).metadata
    merges = [" ".join(pair) for pair in kept()["model"]["merges"]]
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.tokens"] == strings(tokens())
    assert metadata["tokenizer.ggml.merges"] == strings(merges)
    special = {one["content"] for one in kept()["added_tokens"]}
    types = struct.pack("<960i", *(3 if one in special else 1 for one in tokens()))
    info = metadata["tokenizer.ggml.token_type"]
    assert isinstance(info, ArrayInfo)
    assert info.digest == hashlib.sha256(types).hexdigest()
    begins = {"bos_token_id": 0, "eos_token_id": 1, "add_bos_token": True, "add_eos_token": False}
    assert {key: metadata[f"tokenizer.ggml.{key}"] for key in begins} == begins
