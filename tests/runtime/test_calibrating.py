"""Importance matrices on real weights, against numpy; and what the quantizer makes of them."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import short

CALIBRATION = Path(__file__).parents[2] / "src/pytest_ondevice/data/calibration/v1"
N_CTX = 512

LEAD = """
import ctypes, json, sys
from pathlib import Path
from types import SimpleNamespace
import llama_cpp.llama_cpp as api
import numpy as np
from pytest_ondevice.probe import importance
from pytest_ondevice.probe.engines import activations, llama_cpp as engine
from pytest_ondevice.probe.protocol import Execution, ImportanceJob, Text

given = SimpleNamespace(**json.loads(sys.argv[1]))
said = {}
engine.start()

def job():
    return ImportanceJob(
        source=given.source,
        target=given.target,
        texts=(Text("text", given.text),),
        execution=Execution(threads=1),
    )

def measured(collector=activations.Collector):
    try:
        return importance.measure(engine, job(), lambda done, total: None, collector)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""


def native(body: str, **given: object) -> dict:
    """Run code in a process of its own, because native code may take it down."""
    code = LEAD + textwrap.dedent(body) + "\nprint(json.dumps(said))"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(given, default=str)],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def tensors(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors that a test computes with, as float32."""
    import gguf

    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        for tensor in gguf.GGUFReader(path).tensors
        if not tensor.name.startswith("blk.") or tensor.name.startswith("blk.0.")
    }


def normed(rows: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    """RMS norm, in float64."""
    rows = rows.astype(np.float64)
    return rows / np.sqrt((rows**2).mean(axis=-1, keepdims=True) + epsilon) * weight


def far(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, in shares of the expected value."""
    return float(np.abs(found / expected - 1).max())


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Two windows and a rest."""
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text((CALIBRATION / "prose.txt").read_text("utf-8")[:5600], "utf-8")
    return path


@pytest.fixture(scope="module")
def run(text, shortened, tmp_path_factory) -> dict:
    """Measure once, and quantize with and without the result."""
    folder = tmp_path_factory.mktemp("importance")
    said = native(
        """
        class Kept(activations.Collector):
            def __init__(self):
                super().__init__()
                Kept.last = self

        said["payload"] = measured(Kept)
        said["counts"] = sorted({int(n) for counts in Kept.last.counts.values() for n in counts})
        with engine.load(given.source, Execution(threads=1)) as model:
            windows = importance.cut(model, job().texts, 512)
        np.save(given.windows, windows)
        matrix = importance.read(Path(given.target))
        said["quantized"] = {}
        for name, kind, weighed in [
            ("plain.gguf", api.LLAMA_FTYPE_MOSTLY_Q2_K, None),
            ("weighed.gguf", api.LLAMA_FTYPE_MOSTLY_Q2_K, matrix),
            ("refused.gguf", api.LLAMA_FTYPE_MOSTLY_IQ2_XS, None),
            ("needed.gguf", api.LLAMA_FTYPE_MOSTLY_IQ2_XS, matrix),
        ]:
            try:
                target = f"{given.folder}/{name}"
                engine.quantize(
                    given.source, target, kind, 1, lambda line: None, importance=weighed
                )
                said["quantized"][name] = ""
            except engine.EngineError as error:
                said["quantized"][name] = str(error)
        """,
        source=shortened,
        text=text,
        target=folder / "importance.npz",
        windows=folder / "windows.npy",
        folder=folder,
    )
    return said | {"folder": folder}


def test_every_matrix_of_every_layer_sees_every_token(run):
    payload = run["payload"]
    assert isinstance(payload, dict), payload
    assert {key: payload[key] for key in ("tensors", "windows", "tokens", "idle")} == {
        "tensors": short.LAYERS * 7,
        "windows": 2,
        "tokens": 2 * N_CTX,
        "idle": 0,
    }
    # In the last layer too, although its output is wanted for few tokens.
    assert run["counts"] == [2 * N_CTX]
    assert payload["time"] > 0
    assert payload["peak"] > 0
    with np.load(run["folder"] / "importance.npz") as found:
        assert {name.split(".", 2)[2] for name in found} == {
            f"{part}.weight"
            for part in (
                *("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
            )
        }


def test_it_is_what_numpy_computes(run, shortened):
    """What enters the first layer are embeddings, normed: no need of a runtime to know them."""
    held = tensors(shortened)
    rows = held["token_embd.weight"][np.load(run["folder"] / "windows.npy").ravel()]
    expected = (normed(rows, held["blk.0.attn_norm.weight"], 1e-5) ** 2).mean(axis=0)
    with np.load(run["folder"] / "importance.npz") as found:
        for part in ("attn_q", "attn_k", "attn_v"):
            assert far(found[f"blk.0.{part}.weight"], expected) < 1e-4
        # The test can tell one tensor from another.
        assert far(found["blk.0.ffn_up.weight"], expected) > 1
        assert far(found["blk.1.attn_q.weight"], expected) > 1


def test_the_quantizer_uses_it(run):
    assert run["quantized"]["plain.gguf"] == ""
    assert run["quantized"]["weighed.gguf"] == ""
    plain = (run["folder"] / "plain.gguf").read_bytes()
    weighed = (run["folder"] / "weighed.gguf").read_bytes()
    assert len(plain) == len(weighed)
    assert plain != weighed
    # Neither says so in its header: llama.cpp's own tool adds those keys, not its library.
    assert b"quantize.imatrix" not in weighed


def test_types_that_need_it_are_made_with_it_only(run):
    assert "this quantization requires an imatrix" in run["quantized"]["refused.gguf"]
    assert run["quantized"]["needed.gguf"] == ""


def test_what_goes_wrong_in_the_callback_is_raised(text, shortened, tmp_path):
    said = native(
        """
        class Failing(activations.Collector):
            def _add(self, name, node):
                raise RuntimeError(f"no room for {name}")

        class Asking(activations.Collector):
            def _weight_of(self, node):
                raise RuntimeError("cannot tell")

        said["add"] = measured(Failing)
        said["ask"] = measured(Asking)
        said["there"] = Path(given.target).exists()
        """,
        source=shortened,
        text=text,
        target=tmp_path / "importance.npz",
    )
    assert said["add"] == "RuntimeError: no room for blk.0.attn_q.weight"
    assert said["ask"] == "RuntimeError: cannot tell"
    assert not said["there"]


def test_another_layout_is_refused_whatever_was_inserted(tmp_path):
    """Eight bytes more before any field, or a field less: never read, always refused."""
    said = native(
        """
        fields = activations.Tensor._fields_
        kinds = {}
        for place, (name, _) in enumerate(fields):
            kinds[f"before {name}"] = [
                *fields[:place], ("inserted", ctypes.c_int64), *fields[place:]
            ]
            # Without the flags everything stays in its place: padding comes instead.
            if name not in {"name", "flags"}:
                kinds[f"without {name}"] = [
                    *fields[:place], *fields[place + 1 :], fields[place]
                ]
        for label, changed in kinds.items():
            layout = type("Tensor", (ctypes.Structure,), {"_fields_": changed})
            try:
                activations.Ggml(layout)
                said[label] = ""
            except engine.EngineError as error:
                said[label] = str(error)
        activations.Ggml()
        """
    )
    assert len(said) > 15
    assert not [label for label, error in said.items() if "laid out otherwise" not in error]


@pytest.fixture
def experts(tmp_path) -> Path:
    """A model with four experts, of which two are used, and one is never chosen.

    Its attention adds nothing, so what enters the experts follows from the embeddings.
    """
    import gguf

    rng = np.random.default_rng(3)
    path = tmp_path / "experts.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    short.add_metadata(writer, {}, only="tokenizer.ggml.")
    n_vocab = next(len(one) for name, one, _ in short.metadata() if name.endswith("ggml.tokens"))
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_count(4)
    writer.add_expert_used_count(2)

    def random(*shape: int) -> np.ndarray:
        return rng.normal(scale=0.3, size=shape).astype(np.float32)

    embedding = random(n_vocab, 64)
    embedding[:, 0] = 1
    router = random(4, 64)
    router[3] = 0
    router[3, 0] = -100
    for name, values in {
        "token_embd": embedding,
        "output_norm": np.ones(64, np.float32),
        "blk.0.attn_norm": np.ones(64, np.float32),
        "blk.0.attn_q": random(64, 64),
        "blk.0.attn_k": random(64, 64),
        "blk.0.attn_v": random(64, 64),
        "blk.0.attn_output": np.zeros((64, 64), np.float32),
        "blk.0.ffn_norm": 1 + random(64),
        "blk.0.ffn_gate_inp": router,
        "blk.0.ffn_gate_exps": random(4, 96, 64),
        "blk.0.ffn_up_exps": random(4, 96, 64),
        "blk.0.ffn_down_exps": random(4, 64, 96),
    }.items():
        writer.add_tensor(f"{name}.weight", values)
    short.finish(writer)
    return path


def test_experts_are_weighed_one_by_one(experts, text, tmp_path):
    said = native(
        """
        said["payload"] = measured()
        with engine.load(given.source, Execution(threads=1)) as model:
            np.save(given.windows, importance.cut(model, job().texts, 512))
        matrix = importance.read(Path(given.target))
        target = str(Path(given.target).with_name("made.gguf"))
        engine.quantize(
            given.source, target, api.LLAMA_FTYPE_MOSTLY_Q4_0, 1, lambda line: None,
            importance=matrix,
        )
        """,
        source=experts,
        text=text,
        target=tmp_path / "importance.npz",
        windows=tmp_path / "windows.npy",
    )
    assert isinstance(said["payload"], dict), said["payload"]
    assert said["payload"]["tensors"] == 8
    assert said["payload"]["idle"] == 3
    held = tensors(experts)
    part = {name[6:-7]: value for name, value in held.items() if name.startswith("blk.0.")}
    rows = held["token_embd.weight"][np.load(tmp_path / "windows.npy").ravel()]
    entering = normed(rows, part["ffn_norm"], 1e-5)
    chosen = np.argsort(-(entering @ part["ffn_gate_inp"].T), axis=1)[:, :2]
    with np.load(tmp_path / "importance.npz") as found:
        matrix = {name[6:-7]: found[name].astype(np.float64) for name in found}
    for expert in range(3):
        own = entering[(chosen == expert).any(axis=1)]
        gate, up = own @ part["ffn_gate_exps"][expert].T, own @ part["ffn_up_exps"][expert].T
        inner = gate / (1 + np.exp(-gate)) * up
        assert 0 < len(own) < len(entering)
        for name, values in {
            "ffn_gate_exps": own,
            "ffn_up_exps": own,
            "ffn_down_exps": inner,
        }.items():
            assert far(matrix[name].reshape(4, -1)[expert], (values**2).mean(axis=0)) < 0.02
    for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
        assert (matrix[name].reshape(4, -1)[3] == 1).all()


def test_names_are_those_of_the_file():
    """A scheduler of several devices names its copy of a weight ``DEVICE#name#number``."""
    said = native(
        r"""
        for raw in (b"blk.0.attn_q.weight", b"CUDA0#blk.0.attn_q.weight#0", b"blk.\xff"):
            try:
                said[str(raw)] = activations.tensor_name(raw)
            except engine.EngineError as error:
                said[str(raw)] = str(error)
        """
    )
    *names, error = said.values()
    assert names == ["blk.0.attn_q.weight"] * 2
    assert "a tensor's name is no text" in error
