"""The evaluation text, and reference files that stand for a model: given, made, described."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pytest_ondevice import options, references
from pytest_ondevice.errors import BadFileError, MissingError, OnDeviceError, OptionError
from pytest_ondevice.model.catalog import Model, ModelSource
from pytest_ondevice.model.device import Runtime
from pytest_ondevice.model.ending import Ending, Kind
from pytest_ondevice.probe.protocol import N_CTX, Execution
from pytest_ondevice.probe.reference import Head, Writer, moving
from pytest_ondevice.probe.runner import Result
from pytest_ondevice.texts import calibration_texts, check, ships, texts

# The text


def test_the_text_that_ships_has_kinds():
    found, digest = texts(None)
    kinds = [text.kind for text in found]
    assert len(kinds) > 1
    assert kinds == sorted(kinds)
    assert all(Path(text.path).read_text("utf-8").strip() for text in found)
    # Known by its value: another text makes every shipped baseline of loss another protocol's.
    assert digest == "2e50fec4b0accbaa"
    assert len(digest) == 16
    assert int(digest, 16) >= 0


def test_a_text_of_ones_own_is_one_kind(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("Grüße", "utf-8")
    found, digest = texts(path)
    assert [(text.kind, text.path) for text in found] == [("text", str(path))]
    assert digest != texts(None)[1]


def test_the_digest_is_of_the_content_not_of_the_name(tmp_path):
    digests = {}
    for name, content in {"a": b"one", "b": b"one", "c": b"two", "d": b"one\n"}.items():
        path = tmp_path / name
        path.write_bytes(content)
        digests[name] = texts(path)[1]
    assert digests["a"] == digests["b"]
    assert len(set(digests.values())) == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read it: No such file or directory"),
        (b"", "it is empty"),
        (b" \n\t", "it is empty"),
        ("häuser".encode("latin-1"), "it is not UTF-8 text (byte 1)"),
    ],
)
def test_a_text_that_cannot_be_used_is_a_sentence(tmp_path, content, said):
    path = tmp_path / "own.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MissingError) as caught:
        check(path)
    assert str(caught.value) == said


def test_a_text_that_can_be_used_is_no_error(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("Häuser, 家", "utf-8")
    check(path)
    check(None)


def test_the_calibration_text_that_ships_is_another_one():
    found, digest = calibration_texts(None)
    kinds = [text.kind for text in found]
    assert len(kinds) > 1
    assert kinds == sorted(kinds)
    assert not {text.path for text in found} & {text.path for text in texts(None)[0]}
    assert digest != texts(None)[1]
    assert len(digest) == 16


def test_a_model_may_have_a_text_of_its_own(tmp_path):
    own, common = texts(None, "pocket"), texts(None)
    assert own[1] != common[1]
    assert texts(None, "v1") == common
    assert {text.kind for text in own[0]} == {
        text.kind for text in calibration_texts(None, "pocket")[0]
    }
    assert calibration_texts(None, "pocket")[1] != own[1]
    # What the user gives goes before it.
    path = tmp_path / "own.txt"
    path.write_text("mine", "utf-8")
    assert texts(path, "pocket") == texts(path)
    assert calibration_texts(path, "pocket") == calibration_texts(path)


def test_texts_ship_with_a_calibration_text_of_the_same_name():
    # Else a model of the catalog could be judged, and not be weighed.
    data = resources.files("pytest_ondevice") / "data"
    names = {
        what: {one.name for one in (data / what).iterdir()} for what in ("text", "calibration")
    }
    assert names["text"] == names["calibration"] == {"v1", "pocket"}
    for name in names["text"]:
        assert ships(name)
        for found, _ in (texts(None, name), calibration_texts(None, name)):
            assert found
            assert all(Path(text.path).read_text("utf-8").strip() for text in found)


@pytest.mark.parametrize("name", ["", ".", "..", "v2", "V1", "v1/", "../text/v1", "v1/german.txt"])
def test_what_is_no_name_of_a_text_does_not_ship(name):
    assert not ships(name)


def test_a_calibration_text_of_ones_own_is_one_kind(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("Grüße", "utf-8")
    found, digest = calibration_texts(path)
    assert [(text.kind, text.path) for text in found] == [("text", str(path))]
    assert digest != calibration_texts(None)[1]
    # The digest is of the content, whatever the text is for.
    assert digest == texts(path)[1]


# Reference files that were given

MODEL = Model(name="m", sources=(ModelSource(repo="org/m"),))


def head_of(**fields):
    known = {
        "model": "m",
        "source": "5" * 64,
        "tokenizer": "t",
        "text": texts(None)[1],
        "n_vocab": 64,
        "n_ctx": N_CTX,
        "top": 8,
        "tail": 4,
        "seed": 20505,
        "execution": moving(Execution()),
        "runtime": "llama.cpp b1",
        "runtime_digest": "r",
        "cpu": "some cpu",
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Head(**(known | fields))


def written(path, windows=1, **fields):
    ids = [f"narrative:{i}" for i in range(windows)]
    head = head_of(**fields)
    scored = head.n_ctx - head.n_ctx // 2 - 1
    writer = Writer(head, ids, ids, scored)
    even = np.full((scored, 64), -np.log(64), dtype=np.float32)
    for place in range(windows):
        writer.keep(place, even, np.zeros(scored, np.int32))
    writer.save(path)
    return path


def settings_of(place, **chosen):
    made = options.defaults(Path("/"), reference=place, **chosen)
    value = options.Value(str(place), "--ondevice-reference", "command line")
    return options.replace(made, given=made.given | {"reference": value})


def given(place, *models, **chosen):
    return references.given(settings_of(place, **chosen), models or [MODEL])


def refused(place, *models, **chosen):
    with pytest.raises(OptionError) as caught:
        given(place, *models, **chosen)
    start = f"--ondevice-reference={place} (from the command line): "
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(start)


def test_a_file_that_was_given_is_found(tmp_path):
    path = written(tmp_path / "m.npz", windows=2)
    (found,) = given(path).items()
    assert found == ("m", references.GivenReference(path, "5" * 64, 2))


@pytest.mark.parametrize("place", [None, options.BESIDE])
def test_where_no_file_was_given_there_is_none(place):
    assert references.given(options.defaults(Path("/"), reference=place), [MODEL]) == {}


def test_a_folder_is_looked_through_for_the_models_of_the_run(tmp_path):
    paths = {name: written(tmp_path / f"{name}.npz", model=name) for name in ("m", "n", "o")}
    (tmp_path / "readme.txt").write_text("no reference file")
    others = [Model(name=name, sources=MODEL.sources) for name in ("m", "o")]
    found = given(tmp_path, *others)
    assert {name: one.path for name, one in found.items()} == {
        name: paths[name] for name in ("m", "o")
    }


def test_what_is_of_no_model_of_the_run_is_named(tmp_path):
    written(tmp_path / "n.npz", model="n")
    written(tmp_path / "o.npz", model="o")
    assert refused(tmp_path) == "no reference of m: of n, o"
    assert refused(tmp_path / "n.npz") == "no reference of m: of n"
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty") == "no reference of m: there is no .npz file"


def test_one_damaged_file_of_a_folder_is_told(tmp_path):
    written(tmp_path / "m.npz")
    (tmp_path / "n.npz").write_bytes(b"PK")
    assert str(tmp_path / "n.npz") in refused(tmp_path)


def test_two_of_one_model_are_one_too_many(tmp_path):
    one, two = (written(tmp_path / name) for name in ("a.npz", "b.npz"))
    assert refused(tmp_path) == f"{one} and {two} are both of m"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"text": "0" * 16},
            "it was made on another evaluation text; give that text with --ondevice-text=FILE",
        ),
        ({"n_ctx": 256}, "it was made under another execution: n_ctx 256; make it anew"),
        (
            {"execution": moving(Execution(flash_attention=False))},
            "it was made under another execution: flash_attention False; make it anew",
        ),
        (
            {"execution": moving(Execution(n_ubatch=64, repack=False))},
            "it was made under another execution: repack False, n_ubatch 64; make it anew",
        ),
        (
            {"execution": {k: v for k, v in moving(Execution()).items() if k != "repack"}},
            "it was made under another execution: repack absent; make it anew",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_told_why(tmp_path, fields, said):
    path = written(tmp_path / "m.npz", **fields)
    assert refused(path) == f"{path}: {said}"


def test_where_the_layers_were_and_how_many_threads_makes_no_difference(tmp_path):
    path = written(tmp_path / "m.npz", execution=moving(Execution(gpu_layers=99, threads=9)))
    assert list(given(path)) == ["m"]
    assert list(given(path, gpu_layers=5, threads=1)) == ["m"]


def test_a_file_of_the_models_own_text_fits(tmp_path):
    own = Model(name="m", text="pocket", sources=MODEL.sources)
    theirs = written(tmp_path / "own.npz", text=texts(None, "pocket")[1])
    common = written(tmp_path / "common.npz")
    assert given(theirs, own)["m"].path == theirs
    assert given(common)["m"].path == common
    for path, model in ((theirs, MODEL), (common, own)):
        assert "it was made on another evaluation text" in refused(path, model)


def test_a_file_of_the_text_that_was_given_fits(tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("a text of my own", "utf-8")
    path = written(tmp_path / "m.npz", text=texts(own)[1])
    assert list(given(path, text=own)) == ["m"]
    assert "another evaluation text" in refused(path)


# What a file is


def test_a_file_is_described_in_words(tmp_path):
    path = written(tmp_path / "m.npz", windows=2)
    head, windows = references.describe(path)
    assert (head, windows) == (head_of(), 2)
    assert references.verify(path) == []
    first, second, third, fourth, last = references.lines(path)
    assert first == "reference of m, source 555555555555, made 2026-01-01T00:00:00+00:00"
    assert second == f"2 windows of 512 tokens, 255 scored in each; text {texts(None)[1]}"
    assert third == "64 tokens: 8 exact, 4 sampled of the rest"
    assert " of llama-perplexity's file of these windows" in fourth
    assert last.startswith("by llama.cpp b1 (r) on some cpu: flash_attention True, ")


def test_what_is_no_file_of_that_kind_is_told(tmp_path):
    path = tmp_path / "m.npz"
    path.write_bytes(b"GGUF")
    for what in (references.describe, references.lines):
        with pytest.raises(BadFileError) as caught:
            what(path)
        assert str(caught.value).count(str(path)) == 1
    assert references.verify(path)


# Making one


class Maker:
    """A worker that answers a job at once, and what it was asked."""

    def __init__(self, payload=None, ending=None):
        self.payload, self.ending, self.plan = payload, ending, None

    def run(self, job, **_):
        self.plan = job.fidelity
        if self.payload is None:
            return Result(payloads={}, endings={"fidelity": self.ending})
        if not self.payload["nonfinite"]:
            written(Path(self.plan.reference), windows=3, **self.plan.about)
        return Result(payloads={"fidelity": self.payload}, endings={})


def make(tmp_path, monkeypatch, maker, **chosen):
    monkeypatch.setattr(references.runner, "run", maker.run)
    monkeypatch.setenv("PYTEST_ONDEVICE_LOCK_DIR", str(tmp_path))
    file = SimpleNamespace(path="m.gguf", header=SimpleNamespace(tokenizer_digest=None))
    bench = SimpleNamespace(
        settings=options.defaults(tmp_path, **chosen),
        artifact=lambda cell: SimpleNamespace(file=file, lineage="5" * 64, cell=cell),
        provision=SimpleNamespace(runtime=Runtime(name="r", version="b2", digest="d")),
    )
    return references.make(bench, MODEL, tmp_path / "new.npz", lambda *_: None)


def test_a_reference_file_is_made_of_the_budgets_windows(tmp_path, monkeypatch):
    maker = Maker({"nonfinite": 0})
    head, windows = make(tmp_path, monkeypatch, maker, windows=24, threads=7, gpu_layers=3)
    plan = maker.plan
    assert (plan.write, plan.first, plan.last) == (True, 0, 24)
    assert plan.reference == str(tmp_path / "new.npz")
    assert (plan.execution.threads, plan.execution.gpu_layers) == (7, 3)
    assert windows == 3
    assert (head.model, head.source, head.text) == ("m", "5" * 64, texts(None)[1])
    assert (head.runtime, head.runtime_digest, head.tokenizer) == ("b2", "d", "")
    # What was made fits the run that it was made for.
    assert list(given(tmp_path / "new.npz")) == ["m"]


def test_a_model_with_broken_logits_is_no_reference(tmp_path, monkeypatch):
    with pytest.raises(OnDeviceError) as caught:
        make(tmp_path, monkeypatch, Maker({"nonfinite": 7}))
    assert str(caught.value) == "m-F16: 7 logits are not finite; it is no reference"


def test_a_probe_that_dies_says_why(tmp_path, monkeypatch):
    ending = Ending(kind=Kind.OUT_OF_MEMORY, stage="fidelity", message="it took too much")
    with pytest.raises(OnDeviceError) as caught:
        make(tmp_path, monkeypatch, Maker(ending=ending))
    assert str(caught.value) == "m-F16: out of memory: it took too much"
