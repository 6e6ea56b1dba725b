"""The Hugging Face form of files that gguf writes: every weight, every token, or one sentence."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
import tracemalloc
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest

from pytest_ondevice import conversion
from pytest_ondevice.conversion import hugging_face_form
from pytest_ondevice.errors import BadFileError, OnDeviceError, StorageError
from pytest_ondevice.formats import safetensors
from pytest_ondevice.formats.gguf import read_header
from pytest_ondevice.plan import dimensions_of, dimensions_of_config

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

LAYERS, HIDDEN, HEADS, KV_HEADS, INNER, CONTEXT = 2, 24, 4, 2, 32, 128
HEAD = HIDDEN // HEADS
NAMES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]

# Byte-level BPE: a character for each byte, what is merged of them, and what stands apart.
PLAIN = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = [chr(byte) for byte in PLAIN] + [chr(256 + n) for n in range(256 - len(PLAIN))]
MERGES = ["t h", "th e", "\u0120 the"]
TOKENS = ["<|begin|>", "<|end|>", "<pad>", *BYTES, "th", "the", "\u0120the", "<user>", "[PAD]"]
CONTROL, USER, UNUSED = 3, 4, 5
TYPES = [CONTROL, CONTROL, CONTROL, *[1] * 259, USER, UNUSED]

# Where each tensor of a checkpoint is in a GGUF file, and its shape; written down apart.
SHAPES = {
    "model.embed_tokens.weight": ("token_embd", (len(TOKENS), HIDDEN)),
    "model.norm.weight": ("output_norm", (HIDDEN,)),
    "lm_head.weight": ("output", (len(TOKENS), HIDDEN)),
}
for number in range(LAYERS):
    for hf, there, shape in (
        ("input_layernorm", "attn_norm", (HIDDEN,)),
        ("self_attn.q_proj", "attn_q", (HEADS * HEAD, HIDDEN)),
        ("self_attn.k_proj", "attn_k", (KV_HEADS * HEAD, HIDDEN)),
        ("self_attn.v_proj", "attn_v", (KV_HEADS * HEAD, HIDDEN)),
        ("self_attn.o_proj", "attn_output", (HIDDEN, HEADS * HEAD)),
        ("post_attention_layernorm", "ffn_norm", (HIDDEN,)),
        ("mlp.gate_proj", "ffn_gate", (INNER, HIDDEN)),
        ("mlp.up_proj", "ffn_up", (INNER, HIDDEN)),
        ("mlp.down_proj", "ffn_down", (HIDDEN, INNER)),
    ):
        SHAPES[f"model.layers.{number}.{hf}.weight"] = (f"blk.{number}.{there}", shape)

DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def bf16(array: np.ndarray) -> np.ndarray:
    return (array.astype("<f4").view("<u4") >> 16).astype("<u2")


def checkpoint(kind: str = "F16", *, tied: bool = False) -> dict[str, np.ndarray]:
    """A model as Hugging Face has it: matrices of one type, vectors of float32 that fit it."""
    rng = np.random.default_rng(5)
    made = {}
    for name, (_, shape) in SHAPES.items():
        weights = rng.standard_normal(shape).astype("<f4")
        # Eight bits of mantissa, or fewer: exact in every type.
        weights = (weights.view("<u4") & 0xFFFF0000).view("<f4")
        made[name] = weights if weights.ndim == 1 or kind != "BF16" else bf16(weights)
        if weights.ndim > 1 and kind != "BF16":
            made[name] = weights.astype(DTYPES[kind])
    made["model.norm.weight"][:3] = -0.0, 0.0, 2.0**-24
    if tied:
        del made["lm_head.weight"]
    return made


def interleaved(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows as llama.cpp wants them: pairs that were half a head apart side by side."""
    half = len(matrix) // heads // 2
    rows = []
    for head in range(heads):
        for pair in range(half):
            rows += [2 * half * head + pair, 2 * half * head + half + pair]
    return matrix[rows]


KEYS: dict[str, Any] = {
    "llama.block_count": LAYERS,
    "llama.context_length": CONTEXT,
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": INNER,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 100000.0,
    "llama.rope.dimension_count": HEAD,
    "llama.vocab_size": len(TOKENS),
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": TYPES,
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.ggml.add_bos_token": True,
}


def write(
    path: Path,
    weights: Mapping[str, np.ndarray] | None = None,
    keys: Mapping[str, Any] | None = None,
    *,
    architecture: str = "llama",
    more: Mapping[str, np.ndarray] | None = None,
    quantized: Sequence[str] = (),
) -> Path:
    """Write a model as llama.cpp's converter does; a key that is None is left out."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**KEYS, **(keys or {})}.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_string(key, value)
    for name, array in (checkpoint() if weights is None else weights).items():
        stored = array
        if "q_proj" in name:
            stored = interleaved(array, HEADS)
        elif "k_proj" in name:
            stored = interleaved(array, KV_HEADS)
        there = SHAPES[name][0] + ".weight"
        if there in quantized:
            kind = gguf.GGMLQuantizationType.Q4_1
            stored = gguf.quants.quantize(stored.astype(np.float32), kind)
            writer.add_tensor(there, stored, raw_dtype=kind)
        elif array.dtype == np.dtype("<u2"):
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(there, np.ascontiguousarray(stored).view(np.uint8), raw_dtype=kind)
        else:
            writer.add_tensor(there, np.ascontiguousarray(stored))
    for name, array in (more or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read(form: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Read a form's weights with their dtypes; the strict reader checks the file."""
    raw = (form / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    found = {}
    for tensor in safetensors.read_folder(form).tensors:
        place = start + tensor.start
        data = np.frombuffer(raw[place : place + tensor.n_bytes], DTYPES[tensor.dtype])
        found[tensor.name] = tensor.dtype, data.reshape(tensor.shape)
    return found


def json_of(form: Path, name: str) -> Any:
    return json.loads((form / name).read_text("utf-8"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "model.gguf")


# -- weights


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["F16", "BF16", "F32"])
def test_every_weight_is_there_bit_for_bit(tmp_path: Path, kind: str, tied: bool) -> None:
    original = checkpoint(kind, tied=tied)
    form = tmp_path / "form"
    hugging_face_form(write(tmp_path / "model.gguf", original), form)

    found = read(form)
    assert found.keys() == original.keys()
    for name, weights in original.items():
        expected = bf16(weights) if kind == "BF16" and weights.ndim == 1 else weights
        expected = expected.astype(DTYPES[kind])
        assert found[name][0] == kind
        assert found[name][1].shape == expected.shape
        assert found[name][1].tobytes() == expected.tobytes(), name
    config = json_of(form, "config.json")
    assert config["tie_word_embeddings"] is tied
    dtype = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}[kind]
    assert config["dtype"] == config["torch_dtype"] == dtype


def rotated(vector: np.ndarray, position: int, first: Sequence[int], second: Sequence[int]):
    """Rotate the pairs of a head's elements by a position."""
    turned = vector.copy()
    for pair, (x, y) in enumerate(zip(first, second, strict=True)):
        angle = position * 100000.0 ** (-2 * pair / HEAD)
        turned[x] = vector[x] * np.cos(angle) - vector[y] * np.sin(angle)
        turned[y] = vector[x] * np.sin(angle) + vector[y] * np.cos(angle)
    return turned


def test_attention_is_the_same_in_both_ways_of_rotating(source: Path, tmp_path: Path) -> None:
    form = tmp_path / "form"
    hugging_face_form(source, form)
    theirs = read(form)
    ours = {tensor.name: tensor.data for tensor in gguf.GGUFReader(source).tensors}
    state = np.random.default_rng(3).standard_normal((2, HIDDEN))
    half = range(HEAD // 2)
    for layer in range(LAYERS):
        scores = []
        for queries, keys, first, second in (
            (
                ours[f"blk.{layer}.attn_q.weight"],
                ours[f"blk.{layer}.attn_k.weight"],
                [2 * pair for pair in half],
                [2 * pair + 1 for pair in half],
            ),
            (
                theirs[f"model.layers.{layer}.self_attn.q_proj.weight"][1],
                theirs[f"model.layers.{layer}.self_attn.k_proj.weight"][1],
                [*half],
                [HEAD // 2 + pair for pair in half],
            ),
        ):
            query = (queries.astype(float) @ state[0]).reshape(HEADS, HEAD)
            key = (keys.astype(float) @ state[1]).reshape(KV_HEADS, HEAD)
            scores.append(
                [
                    rotated(query[head], 7, first, second)
                    @ rotated(key[head * KV_HEADS // HEADS], 2, first, second)
                    for head in range(HEADS)
                ]
            )
        assert np.allclose(*scores, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "odd"),
    [
        ("F16", 1 + 2.0**-20),
        ("F16", 70000.0),
        ("F16", 2.0**-25),
        ("BF16", 1 + 2.0**-8),
        ("BF16", 1 + 2.0**-20),
    ],
)
def test_vectors_that_do_not_fit_stay_as_they_are(tmp_path: Path, kind: str, odd: float) -> None:
    original = checkpoint(kind)
    original["model.layers.1.input_layernorm.weight"][-1] = odd
    form = tmp_path / "form"
    hugging_face_form(write(tmp_path / "model.gguf", original), form)

    for name, (dtype, weights) in read(form).items():
        assert dtype == (kind if original[name].ndim > 1 else "F32")
        assert weights.tobytes() == original[name].tobytes(), name
    config = json_of(form, "config.json")
    assert config["dtype"] == config["torch_dtype"] == "float32"


def test_a_matrix_of_another_type_keeps_it(tmp_path: Path) -> None:
    original = checkpoint()
    original["lm_head.weight"] = original["lm_head.weight"].astype("<f4")
    form = tmp_path / "form"
    hugging_face_form(write(tmp_path / "model.gguf", original), form)
    found = read(form)
    assert found["lm_head.weight"][0] == "F32"
    assert found["model.embed_tokens.weight"][0] == "F16"
    assert found["model.norm.weight"][0] == "F32"
    assert json_of(form, "config.json")["dtype"] == "float32"


def test_wide_elements_come_first_and_the_file_says_for_whom_it_is(tmp_path: Path) -> None:
    original = checkpoint()
    original["model.norm.weight"][0] = 70000.0
    form = tmp_path / "form"
    hugging_face_form(write(tmp_path / "model.gguf", original), form)
    header = safetensors.read_header(form / "model.safetensors")
    assert header.metadata == {"format": "pt"}  # transformers 4 refuses a file without it
    assert header.header_bytes % 8 == 0
    # So no tensor ever starts within an element of its own size, however many there are.
    sizes = [np.dtype(DTYPES[tensor.dtype]).itemsize for tensor in header.tensors]
    assert sizes == sorted(sizes, reverse=True)
    assert set(sizes) == {4, 2}


@pytest.mark.parametrize("piece", [4, 12, 64])
def test_pieces_make_no_difference(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    hugging_face_form(source, tmp_path / "whole")
    monkeypatch.setattr(conversion, "_PIECE", piece)
    hugging_face_form(source, tmp_path / "pieces")
    for name in NAMES:
        assert (tmp_path / "pieces" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_memory_does_not_grow_with_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = 2**17
    original = checkpoint()
    for name, (_, shape) in SHAPES.items():
        if "mlp" in name:
            wide = tuple(inner if length == INNER else length for length in shape)
            original[name] = np.ones(wide, "<f2")
    path = write(tmp_path / "model.gguf", original, {"llama.feed_forward_length": inner})
    del original
    monkeypatch.setattr(conversion, "_PIECE", 2**16)
    tracemalloc.start()
    hugging_face_form(path, tmp_path / "form")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Less than the largest tensor, of 6.3 MB; the header's reader alone takes 2 MB.
    assert path.stat().st_size > 32e6
    assert peak < 4e6


# -- configuration


def test_the_configuration_says_what_the_header_says(source: Path, tmp_path: Path) -> None:
    form = tmp_path / "form"
    hugging_face_form(source, form)
    config = json_of(form, "config.json")
    assert config == {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dtype": "float16",
        "eos_token_id": 1,
        "head_dim": 6,
        "hidden_act": "silu",
        "hidden_size": 24,
        "intermediate_size": 32,
        "max_position_embeddings": 128,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-5,  # and not 9.999999747378752e-06, which is the same float32
        "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
        "rope_scaling": None,
        "rope_theta": 100000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": len(TOKENS),
    }
    assert dimensions_of_config(config) == dimensions_of(read_header(source))
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    assert json_of(form, "generation_config.json") == ids


def test_what_is_not_stated_has_llama_cpps_defaults(tmp_path: Path) -> None:
    left_out = dict.fromkeys(
        ("llama.rope.freq_base", "llama.rope.dimension_count", "llama.vocab_size")
    )
    left_out |= {"tokenizer.ggml.padding_token_id": None, "tokenizer.ggml.add_bos_token": None}
    left_out["tokenizer.ggml.token_type"] = None
    form = tmp_path / "form"
    hugging_face_form(write(tmp_path / "model.gguf", keys=left_out), form)
    config = json_of(form, "config.json")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert config["head_dim"] == HEAD
    assert "pad_token_id" not in config
    tokenizer = json_of(form, "tokenizer.json")
    assert tokenizer["post_processor"] is None
    assert tokenizer["added_tokens"] == []
    assert "pad_token" not in json_of(form, "tokenizer_config.json")


def test_heads_may_be_longer_than_their_share(tmp_path: Path) -> None:
    long = 2 * HEAD
    original = checkpoint()
    rng = np.random.default_rng(8)
    for name in original:
        for part, shape in (
            ("q_proj", (HEADS * long, HIDDEN)),
            ("k_proj", (KV_HEADS * long, HIDDEN)),
            ("v_proj", (KV_HEADS * long, HIDDEN)),
            ("o_proj", (HIDDEN, HEADS * long)),
        ):
            if part in name:
                original[name] = rng.standard_normal(shape).astype("<f2")
    keys = dict.fromkeys(
        ("attention.key_length", "attention.value_length", "rope.dimension_count"), long
    )
    form = tmp_path / "form"
    path = tmp_path / "model.gguf"
    hugging_face_form(write(path, original, {f"llama.{k}": n for k, n in keys.items()}), form)
    assert json_of(form, "config.json")["head_dim"] == long
    for name, (_, weights) in read(form).items():
        assert np.array_equal(weights, original[name]), name


def test_several_ends_of_a_text_are_a_list(tmp_path: Path) -> None:
    keys = {"tokenizer.ggml.eot_token_id": 2, "tokenizer.ggml.eom_token_id": 1}
    form = tmp_path / "form"
    hugging_face_form(write(tmp_path / "model.gguf", keys=keys), form)
    assert json_of(form, "generation_config.json")["eos_token_id"] == [1, 2]


# -- the tokenizer

LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


def added(number: int, *, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": TOKENS[number], **flags, "special": special}


def piece(name: str, *, special: bool = False) -> dict[str, Any]:
    return {"SpecialToken" if special else "Sequence": {"id": name, "type_id": 0}}


@pytest.mark.parametrize(
    ("pre", "splits"),
    [("gpt-2", LEVEL), ("smollm", {"type": "Sequence", "pretokenizers": [DIGITS, LEVEL]})],
)
def test_the_tokenizer_is_byte_level_bpe(tmp_path: Path, pre: str, splits: object) -> None:
    form = tmp_path / "form"
    hugging_face_form(write(tmp_path / "model.gguf", keys={"tokenizer.ggml.pre": pre}), form)
    tokenizer = json_of(form, "tokenizer.json")
    model = tokenizer.pop("model")
    user = TOKENS.index("<user>")
    assert tokenizer == {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            *(added(number, special=True) for number in range(3)),
            added(user, special=False),
        ],
        "normalizer": None,
        "pre_tokenizer": splits,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [piece("<|begin|>", special=True), piece("A")],
            "pair": [
                piece("<|begin|>", special=True),
                piece("A"),
                piece("<|begin|>", special=True),
                piece("B"),
            ],
            "special_tokens": {
                "<|begin|>": {"id": "<|begin|>", "ids": [0], "tokens": ["<|begin|>"]}
            },
        },
        "decoder": {**LEVEL, "add_prefix_space": True},
    }
    assert list(model.pop("vocab").items()) == [(text, n) for n, text in enumerate(TOKENS)]
    assert model == {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "merges": MERGES,
    }


def test_an_end_is_put_behind_where_it_is_wanted(tmp_path: Path) -> None:
    keys = {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": True}
    form = tmp_path / "form"
    hugging_face_form(write(tmp_path / "model.gguf", keys=keys), form)
    processor = json_of(form, "tokenizer.json")["post_processor"]
    assert processor["single"] == [piece("A"), piece("<|end|>", special=True)]
    assert list(processor["special_tokens"]) == ["<|end|>"]
    config = json_of(form, "tokenizer_config.json")
    assert (config["add_bos_token"], config["add_eos_token"]) == (False, True)


@pytest.mark.parametrize("length", [10, 2**20 + 1])  # kept by the header's reader, and not kept
def test_the_configuration_of_the_tokenizer(tmp_path: Path, length: int) -> None:
    template = ("{{ messages }} \u00e9\u2028\\n" * length)[:length]
    keys = {"tokenizer.chat_template": template, "tokenizer.ggml.unknown_token_id": 2}
    form = tmp_path / "form"
    hugging_face_form(write(tmp_path / "model.gguf", keys=keys), form)
    config = json_of(form, "tokenizer_config.json")
    decoder = config.pop("added_tokens_decoder")
    assert config == {
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,
        "bos_token": "<|begin|>",
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|end|>",
        "model_max_length": CONTEXT,
        "pad_token": "<pad>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<pad>",
    }
    assert list(decoder) == ["0", "1", "2", str(TOKENS.index("<user>"))]
    assert decoder["0"] == {k: v for k, v in added(0, special=True).items() if k != "id"}


# -- what is refused


def with_key(name: str, value: object) -> Callable[[Path], Path]:
    return lambda path: write(path, keys={name: value})


def with_tensor(name: str, length: int) -> Callable[[Path], Path]:
    return lambda path: write(path, more={name: np.zeros(length, "<f4")})


def without(name: str) -> Callable[[Path], Path]:
    return lambda path: write(path, {key: w for key, w in checkpoint().items() if key != name})


def quantized(path: Path) -> Path:
    return write(path, quantized=("blk.1.ffn_down.weight",))


def doubled(path: Path) -> Path:
    original = checkpoint()
    name = "model.layers.0.mlp.down_proj.weight"
    return write(path, {**original, name: original[name].astype("<f8")})


def changed(old: str, new: str) -> list[str]:
    return [new if token == old else token for token in TOKENS]


NO_FORM = "for which no exact Hugging Face form is known here"

REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "quantized": (
        quantized,
        (
            "tensor 'blk.1.ffn_down.weight': it is quantized (Q4_1): only full-precision files have"
            " an exact Hugging Face form"
        ),
    ),
    "doubles": (
        doubled,
        "tensor 'blk.0.ffn_down.weight' is of type F64 (expected F32, F16, BF16)",
    ),
    "architecture": (
        lambda path: write(path, architecture="qwen2"),
        "is of the architecture 'qwen2' (only llama has an exact Hugging Face form here)",
    ),
    "scaling": (
        with_key("llama.rope.scaling.type", "linear"),
        f"scales rotary frequencies: key 'llama.rope.scaling.type' is 'linear', {NO_FORM}",
    ),
    "factor": (
        with_key("llama.rope.scaling.factor", 8.0),
        f"scales rotary frequencies: key 'llama.rope.scaling.factor' is 8.0, {NO_FORM}",
    ),
    "experts": (
        with_key("llama.expert_count", 8),
        f"has experts: key 'llama.expert_count' is 8, {NO_FORM}",
    ),
    "unknown key": (
        with_key("llama.attention.scale", 0.5),
        f"key 'llama.attention.scale' is 0.5, {NO_FORM}",
    ),
    "factors": (
        with_tensor("rope_freqs.weight", HEAD // 2),
        "has rotary factors, tensor 'rope_freqs.weight': no exact Hugging Face form is known here",
    ),
    "bias": (
        with_tensor("blk.0.attn_q.bias", HIDDEN),
        "has a bias, tensor 'blk.0.attn_q.bias': no exact Hugging Face form is known here",
    ),
    "expert": (
        with_tensor("blk.0.ffn_gate_inp.weight", HIDDEN),
        "has experts, tensor 'blk.0.ffn_gate_inp.weight': no exact Hugging Face form is known here",
    ),
    "unknown tensor": (
        with_tensor("blk.2.attn_norm.weight", HIDDEN),
        (
            "has tensor 'blk.2.attn_norm.weight', which no layer of llama has: no exact Hugging"
            " Face form is known here"
        ),
    ),
    "missing tensor": (
        without("model.layers.1.mlp.up_proj.weight"),
        "lacks tensor 'blk.1.ffn_up.weight'",
    ),
    "shape": (
        with_key("llama.feed_forward_length", 2 * INNER),
        "tensor 'blk.0.ffn_down.weight' has shape [32, 24] (expected [64, 24] by the metadata)",
    ),
    "layers": (
        with_key("llama.block_count", 2**31 - 1),
        "states 2147483647 layers, it has 21 tensors",
    ),
    "no epsilon": (
        with_key("llama.attention.layer_norm_rms_epsilon", None),
        "lacks key 'llama.attention.layer_norm_rms_epsilon'",
    ),
    "epsilon": (
        with_key("llama.attention.layer_norm_rms_epsilon", float("nan")),
        "key 'llama.attention.layer_norm_rms_epsilon' is nan (expected a positive float32)",
    ),
    "heads by layer": (
        with_key("llama.attention.head_count", [4, 4]),
        (
            "key 'llama.attention.head_count' is (4, 4) (expected a number from 1 to 2^31-1, the"
            " same for all layers)"
        ),
    ),
    "heads": (
        with_key("llama.attention.head_count_kv", 3),
        "has 4 heads for 24 elements and 3 heads of keys (expected whole multiples)",
    ),
    "part of a head": (
        with_key("llama.rope.dimension_count", 4),
        "key 'llama.rope.dimension_count' is 4 (expected 6, the length of a head)",
    ),
    "values": (
        with_key("llama.attention.value_length", 8),
        "key 'llama.attention.value_length' is 8 (expected 6, the length of a head)",
    ),
    "odd head": (
        lambda path: write(
            path, keys={"llama.attention.key_length": 5, "llama.rope.dimension_count": 5}
        ),
        "has heads of 5 elements, which make no pairs to rotate",
    ),
    "sentencepiece": (
        with_key("tokenizer.ggml.model", "llama"),
        "its tokenizer is 'llama' (only byte-level BPE, 'gpt2', has a form)",
    ),
    "no tokenizer": (
        with_key("tokenizer.ggml.model", None),
        "its tokenizer is None (only byte-level BPE, 'gpt2', has a form)",
    ),
    "pre": (
        with_key("tokenizer.ggml.pre", "llama-bpe"),
        "its text is split as 'llama-bpe' ('tokenizer.ggml.pre'; known: gpt-2, smollm)",
    ),
    "no pre": (
        with_key("tokenizer.ggml.pre", None),
        "its text is split as None ('tokenizer.ggml.pre'; known: gpt-2, smollm)",
    ),
    "tokens": (
        lambda path: write(
            path,
            keys={
                "tokenizer.ggml.tokens": TOKENS[:-1],
                "tokenizer.ggml.token_type": TYPES[:-1],
            },
        ),
        f"has {len(TOKENS) - 1} tokens and an embedding of {len(TOKENS)}",
    ),
    "twice": (
        with_key("tokenizer.ggml.tokens", changed("[PAD]", "<pad>")),
        "token 2, '<pad>', is there again later",
    ),
    "empty": (
        with_key("tokenizer.ggml.tokens", changed("<pad>", "")),
        "token 2, '', is empty",
    ),
    "byte token": (
        with_key("tokenizer.ggml.token_type", [*TYPES[:-1], 6]),
        f"token {len(TOKENS) - 1}, '[PAD]', is of type 6 (expected 1 to 5 in byte-level BPE)",
    ),
    "merge of nothing": (
        with_key("tokenizer.ggml.merges", ["t h", "t e"]),
        "merge 1, 't e', is not of two tokens to a third",
    ),
    "merge of one": (
        with_key("tokenizer.ggml.merges", ["the"]),
        "merge 0, 'the', is not of two tokens to a third",
    ),
    "merge twice": (
        with_key("tokenizer.ggml.merges", ["t h", "th e", "t h"]),
        "merge 2, 't h', is there twice",
    ),
    "token of nowhere": (
        with_key("tokenizer.ggml.eos_token_id", len(TOKENS)),
        (
            f"key 'tokenizer.ggml.eos_token_id' is {len(TOKENS)} (expected a number below"
            f" {len(TOKENS)})"
        ),
    ),
    "no beginning": (
        with_key("tokenizer.ggml.bos_token_id", None),
        "wants its bos_token around each text and does not state one",
    ),
    "no flag": (
        with_key("tokenizer.ggml.add_bos_token", "yes"),
        "key 'tokenizer.ggml.add_bos_token' is 'yes' (expected true or false)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_exact_form_is_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    make, sentence = REFUSED[case]
    path = make(tmp_path / "model.gguf")
    with pytest.raises(BadFileError) as caught:
        hugging_face_form(path, tmp_path / "form")
    assert str(caught.value) == f"{path}: {sentence}"
    assert os.listdir(tmp_path) == ["model.gguf"]  # noqa: PTH208


@pytest.mark.parametrize(
    "keys",
    [
        {"llama.rope.scaling.type": "none"},
        {"llama.expert_count": 0, "llama.expert_used_count": 0},
        {"llama.attention.causal": True},
    ],
)
def test_what_says_nothing_is_taken(tmp_path: Path, keys: dict[str, Any]) -> None:
    assert hugging_face_form(write(tmp_path / "model.gguf", keys=keys), tmp_path / "form")


def test_a_token_that_is_no_text_is_refused(source: Path, tmp_path: Path) -> None:
    raw = source.read_bytes()
    assert raw.count(b"<user>") == 1
    source.write_bytes(raw.replace(b"<user>", b"<us\xffr>"))
    number = TOKENS.index("<user>")
    with pytest.raises(BadFileError, match=rf"element {number} of key 'tokenizer.ggml.tokens' is"):
        hugging_face_form(source, tmp_path / "form")


def test_a_part_of_a_split_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model-00001-of-00002.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.no", 0)
    writer.add_uint16("split.count", 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BadFileError, match="is part 1 of a model split in 2 "):
        hugging_face_form(path, tmp_path / "form")


def test_a_damaged_header_never_ends_in_anything_but_a_sentence(
    source: Path, tmp_path: Path
) -> None:
    raw = source.read_bytes()
    end = read_header(source).meta_size
    rng = random.Random(11)
    refused = 0
    for number in range(400):
        damaged = bytearray(raw)
        # Numbers and lengths are where a file is damaged to some effect; the vocabulary is long.
        place = rng.randrange(end) if number % 2 else rng.randrange(700)
        damaged[place] = rng.randrange(256)
        source.write_bytes(damaged)
        form = tmp_path / f"form{number}"
        said = ""
        try:
            hugging_face_form(source, form)
        except OnDeviceError as error:
            said = str(error)
            refused += 1
        assert "\n" not in said
        assert form.exists() is not bool(said)
    assert 50 < refused < 400


# -- a file that changes meanwhile


def test_weights_that_end_early_leave_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_and_cut(path: Path) -> Any:
        header = read_header(path)
        os.truncate(path, header.file_size - 100)
        return header

    monkeypatch.setattr(conversion, "read_header", read_and_cut)
    with pytest.raises(BadFileError, match="changed while it was read: it now ends at byte"):
        hugging_face_form(source, tmp_path / "form")
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize("new", [b"<abcd>", b"\0\0\0\0\0\0"])
def test_tokens_that_change_are_noticed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: bytes
) -> None:
    def read_and_change(path: Path) -> Any:
        header = read_header(path)
        path.write_bytes(path.read_bytes().replace(b"<user>", new))
        return header

    monkeypatch.setattr(conversion, "read_header", read_and_change)
    with pytest.raises(BadFileError, match=r"changed while it was read$"):
        hugging_face_form(source, tmp_path / "form")


# -- the folder


def test_it_returns_what_it_wrote_and_leaves_nothing_else(source: Path, tmp_path: Path) -> None:
    form = tmp_path / "deep" / "form"
    made = hugging_face_form(source, form)
    assert made == tuple(form / name for name in NAMES)
    assert sorted(path.name for path in form.iterdir()) == NAMES
    assert [path.name for path in form.parent.iterdir()] == ["form"]
    # A temporary folder is its owner's alone, this one is as any other.
    plain = tmp_path / "plain"
    plain.mkdir()
    assert stat.S_IMODE(form.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_an_empty_folder_is_taken_also_through_a_link(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    hugging_face_form(source, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == NAMES


def test_a_folder_with_something_in_it_is_refused(source: Path, tmp_path: Path) -> None:
    form = tmp_path / "form"
    form.mkdir()
    (form / "notes.txt").write_text("mine")
    with pytest.raises(StorageError) as caught:
        hugging_face_form(source, form)
    assert str(caught.value) == f"{form}: holds 'notes.txt' (expected a new or empty folder)"
    assert [path.name for path in form.iterdir()] == ["notes.txt"]
    made = tmp_path / "made"
    hugging_face_form(source, made)
    with pytest.raises(StorageError, match=r"holds 'config.json' and 4 more \(expected"):
        hugging_face_form(source, made)


def test_a_file_is_no_folder(source: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is there and is no folder"):
        hugging_face_form(source, source)
    with pytest.raises(StorageError, match="cannot write it: "):
        hugging_face_form(source, source / "form")


SCRIPT = """
import resource, signal, sys
from pathlib import Path
from pytest_ondevice.conversion import hugging_face_form
from pytest_ondevice.errors import OnDeviceError

limit, action = int(sys.argv[3]), sys.argv[4]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN if action == "fail" else signal.SIG_DFL)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    hugging_face_form(Path(sys.argv[1]), Path(sys.argv[2]))
except OnDeviceError as error:
    sys.exit(f"{type(error).__name__}: {error}")
assert "numpy" not in sys.modules
"""


def run(
    source: Path, form: Path, limit: int, action: str, seed: str = "0"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(source), str(form), str(limit), action],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONHASHSEED": seed},
    )


# In the middle of the first file, of the weights, and of the last row of them.
LIMITS = [100, 20_000, -1]


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("there", [False, True])
def test_a_disk_that_is_full_leaves_nothing(
    source: Path, tmp_path: Path, limit: int, there: bool
) -> None:
    whole, form = tmp_path / "whole", tmp_path / "new" / "form"
    hugging_face_form(source, whole)
    form.parent.mkdir()
    if there:
        form.mkdir()
    if limit < 0:
        limit += (whole / "model.safetensors").stat().st_size
    ended = run(source, form, limit, "fail")
    assert ended.stderr.strip() == f"StorageError: {form}: cannot write it: File too large"
    assert [path.name for path in form.parent.iterdir()] == ["form"] * there
    assert not there or not any(form.iterdir())


@pytest.mark.parametrize("limit", LIMITS[:2])
def test_a_process_that_is_killed_leaves_no_half_of_it(
    source: Path, tmp_path: Path, limit: int
) -> None:
    form = tmp_path / "form"
    ended = run(source, form, limit, "die")
    assert ended.returncode == -signal.SIGXFSZ
    assert not form.exists()
    assert run(source, form, 0, "fail").returncode == 0
    assert sorted(path.name for path in form.iterdir()) == NAMES


def test_the_same_file_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    forms = [tmp_path / name for name in ("first", "second", "third")]
    for seed, form in enumerate(forms[:2]):
        assert run(source, form, 0, "fail", str(seed + 1)).stderr == ""
    hugging_face_form(source, forms[2])
    for one, other in pairwise(forms):
        for name in NAMES:
            assert (one / name).read_bytes() == (other / name).read_bytes()
