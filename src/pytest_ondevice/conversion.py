"""Derive the Hugging Face form of a full-precision GGUF file, bit for bit and without a runtime.

For the architecture ``llama`` with byte-level BPE. Names and shapes follow from the dimensions, as
``layout`` has them; a key, tensor or token that has no exact counterpart is refused, because what
is left out would change the model. Sources of the rules, in llama.cpp as vendored in
llama-cpp-python 0.3.36:

* ``conversion/llama.py``, ``LlamaModel.permute`` (once in ``convert_hf_to_gguf.py``): llama.cpp
  rotates neighbouring elements of a head, transformers those half a head apart, so the converter
  reorders the rows of the matrices of queries and keys. Here that is undone.
* ``src/llama-vocab.cpp``: how a text is split by ``tokenizer.ggml.pre``, what the types of tokens
  mean, and what is put in front and behind.

Three things are not in the form, because nothing there can say them. llama.cpp reads the text of a
control token as text unless it is told to parse it; ``tokenizers`` always parses it. llama.cpp ends
a generation also at tokens whose texts it knows, such as ``<|im_end|>``; the form names those that
the file states. And where a byte has no token, both leave it out, but ``tokenizers`` before it
merges and llama.cpp after.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO

from . import layout
from .errors import BadFileError, StorageError
from .formats.gguf import read_header
from .formats.opening import opened
from .formats.safetensors import CONFIG, SINGLE
from .model.artifact import ArrayInfo
from .model.catalog import Dimensions
from .model.quant_types import by_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .model.artifact import Header, TensorInfo

ARCHITECTURE = "llama"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"

_DTYPES: Mapping[str, str] = MappingProxyType(
    {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
)
"""Types that are kept, and what a configuration calls them."""

_PIECE = 1024**2  # bytes in memory at a time; whole elements of any type

# Keys of the architecture that the form says, or says otherwise: by names, shapes and counts.
_SAID = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "vocab_size",
}
# Keys that say nothing as long as they have this value.
_NEUTRAL: Mapping[str, object] = MappingProxyType(
    {
        "attention.causal": True,
        "expert_count": 0,
        "expert_used_count": 0,
        "rope.scaling.type": "none",
    }
)

_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
)

# llama_token_type: all that a token of byte-level BPE can be.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5

_BYTE_LEVEL: Mapping[str, object] = MappingProxyType(
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
)
# LLAMA_VOCAB_PRE_TYPE_GPT2 splits by GPT-2's expression, which is that of ByteLevel;
# LLAMA_VOCAB_PRE_TYPE_SMOLLM first makes each character of the class N a piece of its own.
_PRE_TOKENIZERS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "gpt-2": _BYTE_LEVEL,
        "smollm": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, dict(_BYTE_LEVEL)],
        },
    }
)

_SPECIAL = {  # in a configuration of a tokenizer: in a GGUF file
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "pad_token": "padding_token_id",
    "unk_token": "unknown_token_id",
}

# Bytes of the values that a GGUF header has, by type; of a text and an array apart.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_PREAMBLE_BYTES = 24


def hugging_face_form(source: Path, folder: Path) -> tuple[Path, ...]:
    """Write the Hugging Face form of a GGUF file; the same file gives the same bytes.

    Every weight keeps its bits and its dtype, with one exception. llama.cpp's converter makes all
    vectors F32; where all matrices are of one other dtype, vectors are written in that if it holds
    every element of every one of them exactly. If not, they stay F32. The configuration's ``dtype``
    is that of all tensors, and float32 where they differ, which holds each of them exactly.

    Args:
        source: The file: whole, of the architecture ``llama``, F32, F16 or BF16, with byte-level
            BPE.
        folder: Where the form goes; made if missing. It appears whole or not at all.

    Returns:
        Paths of what was written, sorted by name.

    Raises:
        BadFileError: The file is damaged, or has no exact form.
        StorageError: The folder holds something, or it cannot be written.
    """
    header = read_header(source)
    model = _model(source, header)
    tokenizer = _tokenizer(source, header, model.dimensions.vocabulary)
    _check_folder(folder)
    with opened(source) as (file, _):
        reader = _Reader(source, file, header)
        weights = _weights(reader, header, model.dimensions)
        texts = {
            CONFIG: _config(model, tokenizer, weights),
            GENERATION_CONFIG: tokenizer.ids,
            TOKENIZER: tokenizer.whole,
            TOKENIZER_CONFIG: tokenizer.config | {"model_max_length": model.context},
        }
        with _made(folder) as form:
            for name, content in texts.items():
                with (form / name).open("xb") as out:
                    out.write(_json(content))
                    _flush(out)
            with (form / SINGLE).open("xb", buffering=0) as out:
                _write_weights(reader, weights, out)
                _flush(out)
    return tuple(folder / name for name in sorted({*texts, SINGLE}))


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, indent=2).encode() + b"\n"


# What the model is.


@dataclass(frozen=True, slots=True)
class _Model:
    """What a configuration says beyond the tensors.

    Attributes:
        dimensions: Its shape.
        context: Most tokens that it was made for.
        epsilon: Of its norms.
        theta: Base of its rotary frequencies.
    """

    dimensions: Dimensions
    context: int
    epsilon: float
    theta: float


def _model(source: Path, header: Header) -> _Model:
    """Read what a model is, and make sure that its form says all of it."""
    if header.split is not None:
        number, count = header.split
        raise BadFileError(
            source,
            f"is part {number + 1} of a model split in {count} (join them first with"
            " `llama-gguf-split --merge`)",
        )
    if header.architecture != ARCHITECTURE:
        raise BadFileError(
            source,
            f"is of the architecture {_shorten(header.architecture)} (only {ARCHITECTURE} has an"
            " exact Hugging Face form here)",
        )
    _check_types(source, header)
    _check_keys(source, header)
    numbers = _Numbers(source, header)
    hidden, heads = numbers.count("embedding_length"), numbers.count("attention.head_count")
    kv_heads = numbers.count("attention.head_count_kv", heads)
    # LlamaConfig refuses the first, LlamaAttention cannot do the second.
    if hidden % heads or heads % kv_heads:
        raise BadFileError(
            source,
            f"has {heads} heads for {hidden} elements and {kv_heads} heads of keys (expected whole"
            " multiples)",
        )
    head = numbers.count("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        numbers.same(key, head, "the length of a head")
    if head % 2:
        raise BadFileError(source, f"has heads of {head} elements, which make no pairs to rotate")
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    embedding = shapes.get("token_embd.weight", (0,))
    model = _Model(
        dimensions=Dimensions(
            architecture=ARCHITECTURE,
            layers=numbers.count("block_count"),
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_size=head,
            feed_forward=numbers.count("feed_forward_length"),
            vocabulary=embedding[-1],
            tied="output.weight" not in shapes,
        ),
        context=numbers.count("context_length"),
        epsilon=numbers.real("attention.layer_norm_rms_epsilon"),
        theta=numbers.real("rope.freq_base", 10000.0),
    )
    _check_tensors(source, shapes, model.dimensions)
    return model


def _check_types(source: Path, header: Header) -> None:
    for tensor in header.tensors:
        if tensor.type in _DTYPES:
            continue
        name, quant = _shorten(tensor.name), by_name(tensor.type)
        if quant.is_float or quant.is_integer:
            raise BadFileError(
                source, f"tensor {name} is of type {tensor.type} (expected {', '.join(_DTYPES)})"
            )
        raise BadFileError(
            source,
            f"tensor {name}: it is quantized ({tensor.type}): only full-precision files have an"
            " exact Hugging Face form",
        )


def _check_keys(source: Path, header: Header) -> None:
    """Every key of the architecture is one whose meaning the form keeps."""
    for key, value in header.metadata.items():
        name = key.removeprefix(f"{ARCHITECTURE}.")
        if name == key or name in _SAID:
            continue
        if name in _NEUTRAL and value == _NEUTRAL[name]:
            continue
        what = ""
        if name.startswith("rope.scal"):
            what = "scales rotary frequencies: "
        elif name.startswith("expert"):
            what = "has experts: "
        raise BadFileError(
            source,
            f"{what}key {_shorten(key)} is {_cut(repr(value))}, for which no exact Hugging Face"
            " form is known here",
        )


def _check_tensors(
    source: Path, shapes: Mapping[str, tuple[int, ...]], dimensions: Dimensions
) -> None:
    """The tensors are those that follow from the dimensions, no more and no less."""
    if dimensions.layers > len(shapes):  # before a loop over as many as it claims
        raise BadFileError(
            source, f"states {dimensions.layers} layers, it has {len(shapes)} tensors"
        )
    expected = {slot.name: slot.shape for slot in layout.tensors(dimensions)}
    for name in shapes:
        if name in expected:
            continue
        what = f"tensor {_shorten(name)}, which no layer of {ARCHITECTURE} has"
        if name.endswith(".bias"):
            what = f"a bias, tensor {_shorten(name)}"
        elif "_exps" in name or "_shexp" in name or "gate_inp" in name:
            what = f"experts, tensor {_shorten(name)}"
        elif name.startswith("rope_"):
            what = f"rotary factors, tensor {_shorten(name)}"
        raise BadFileError(source, f"has {what}: no exact Hugging Face form is known here")
    for name, shape in expected.items():
        if name not in shapes:
            raise BadFileError(source, f"lacks tensor {_shorten(name)}")
        if shapes[name] != shape:
            raise BadFileError(
                source,
                f"tensor {_shorten(name)} has shape {list(shapes[name])} (expected {list(shape)} by"
                " the metadata)",
            )


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Reads the numbers of an architecture from a header."""

    source: Path
    header: Header

    def count(self, name: str, default: int | None = None) -> int:
        value = self._value(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise self._error(name, value, "a number from 1 to 2^31-1, the same for all layers")
        return value

    def real(self, name: str, default: float | None = None) -> float:
        """Read a float as the shortest decimal that is the same float32, as it once was written."""
        value = self._value(name, default)
        # Doubles beyond float32 are refused by the bound, and NaN is not within it.
        if not isinstance(value, float) or not 0 < value < 3.4e38:
            raise self._error(name, value, "a positive float32")
        bits = struct.pack("<f", value)
        shorter = (float(f"{value:.{digits}g}") for digits in range(1, 9))
        return next((short for short in shorter if struct.pack("<f", short) == bits), value)

    def same(self, name: str, expected: int, what: str) -> None:
        """Make sure that a number, where it is stated, is ``expected``, which is ``what``."""
        value = self._value(name, expected)
        if value != expected:
            raise self._error(name, value, f"{expected}, {what}")

    def _value(self, name: str, default: object) -> object:
        return self.header.metadata.get(f"{ARCHITECTURE}.{name}", default)

    def _error(self, name: str, value: object, expected: str) -> BadFileError:
        key = f"{ARCHITECTURE}.{name}"
        if value is None:
            return BadFileError(self.source, f"lacks key '{key}'")
        return BadFileError(
            self.source, f"key '{key}' is {_cut(repr(value))} (expected {expected})"
        )


def _config(model: _Model, tokenizer: _Tokenizer, weights: Sequence[_Weight]) -> dict[str, Any]:
    """Make ``config.json``; what transformers 4 and 5 name differently is there twice."""
    shape = model.dimensions
    types = {weight.dtype for weight in weights}
    dtype = _DTYPES[types.pop() if len(types) == 1 else "F32"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": dtype,
        "head_dim": shape.head_size,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "max_position_embeddings": model.context,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": model.epsilon,
        "rope_parameters": {"rope_theta": model.theta, "rope_type": "default"},
        "rope_scaling": None,
        "rope_theta": model.theta,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": shape.vocabulary,
        **tokenizer.ids,
    }


# Weights.


@dataclass(frozen=True, slots=True)
class _Weight:
    """A tensor of the form.

    Attributes:
        name: As in a checkpoint of LlamaForCausalLM.
        dtype: What it is written in.
        info: Where it comes from.
        heads: Number of heads that its rows are to be reordered in; 0 if they are in order.
    """

    name: str
    dtype: str
    info: TensorInfo
    heads: int

    @property
    def n_bytes(self) -> int:
        return self.info.n_weights * by_name(self.dtype).type_size


class _Reader:
    """Reads tensors of a file whose header was checked, a piece at a time."""

    def __init__(self, source: Path, file: BinaryIO, header: Header) -> None:
        self.source = source
        self._file = file
        self._data_offset = header.data_offset
        self._buffer = memoryview(bytearray(_PIECE))

    def pieces(self, info: TensorInfo, start: int, n_bytes: int) -> Iterator[memoryview]:
        """Read bytes of a tensor, from ``start`` in it on; a piece is valid until the next."""
        place = self._data_offset + info.offset + start
        end = place + n_bytes
        self._file.seek(place)
        while place < end:
            piece = self._buffer[: min(end - place, _PIECE)]
            done = 0
            while done < len(piece):
                count = self._read(piece[done:])
                if not count:
                    raise BadFileError(
                        self.source,
                        f"changed while it was read: it now ends at byte {place + done}",
                    )
                done += count
            yield piece
            place += len(piece)

    def _read(self, into: memoryview) -> int:
        try:
            # Raw files have it; the type of an open file in general does not.
            count: int = self._file.readinto(into)  # type: ignore[attr-defined]
        except OSError as error:  # here, because further out it would be one of writing
            raise BadFileError(self.source, f"cannot be read: {error.strerror}") from error
        return count


def _weights(reader: _Reader, header: Header, dimensions: Dimensions) -> tuple[_Weight, ...]:
    """Say which tensors the form has, in the order in which safetensors writes them."""
    matrices = {tensor.type for tensor in header.tensors if len(tensor.shape) > 1}
    vectors = [tensor for tensor in header.tensors if len(tensor.shape) == 1]
    to = matrices.pop() if len(matrices) == 1 else "F32"
    narrow = to != "F32" and all(
        tensor.type == "F32" and _is_exact(reader, tensor, to) for tensor in vectors
    )
    heads = {"attn_q": dimensions.heads, "attn_k": dimensions.kv_heads}
    weights = []
    for tensor in header.tensors:
        *layer, name, _ = tensor.name.split(".")
        prefix = f"model.layers.{layer[1]}." if layer else ""
        weights.append(
            _Weight(
                name=f"{prefix}{_NAMES[name]}.weight",
                dtype=to if narrow else tensor.type,
                info=tensor,
                heads=heads.get(name, 0),
            )
        )
    # Wide elements first: each tensor then starts at a multiple of the size of its own.
    weights.sort(key=lambda weight: (-by_name(weight.dtype).type_size, weight.name))
    return tuple(weights)


def _is_exact(reader: _Reader, info: TensorInfo, dtype: str) -> bool:
    """Whether every element of an F32 tensor is one of ``dtype``, bit for bit."""
    pieces = reader.pieces(info, 0, info.n_bytes)
    return all(_narrowed(piece, dtype) is not None for piece in pieces)


def _narrowed(raw: memoryview, dtype: str) -> bytes | None:
    """Write float32 numbers as ``dtype``; None where that would not be the same numbers."""
    if dtype == "BF16":  # the upper half of a float32
        if any(raw[0::4]) or any(raw[1::4]):
            return None
        halves = bytearray(len(raw) // 2)
        halves[0::2], halves[1::2] = raw[2::4], raw[3::4]
        return bytes(halves)
    count = len(raw) // 4
    try:
        narrow = struct.pack(f"<{count}e", *struct.unpack(f"<{count}f", raw))
    except OverflowError:
        return None
    # Compared as bytes, because as numbers 0.0 is -0.0.
    wide = struct.pack(f"<{count}f", *struct.unpack(f"<{count}e", narrow))
    return narrow if wide == raw else None


def _write_weights(reader: _Reader, weights: Sequence[_Weight], out: BinaryIO) -> None:
    """Write a safetensors file, a piece at a time."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for weight in weights:
        start, end = end, end + weight.n_bytes
        table[weight.name] = {
            "dtype": weight.dtype,
            "shape": list(reversed(weight.info.shape)),
            "data_offsets": [start, end],
        }
    head = json.dumps(table, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    _put(out, _U64.pack(len(head)) + head)
    for weight in weights:
        narrow = weight.dtype != weight.info.type
        for start, n_bytes in _spans(weight):
            for piece in reader.pieces(weight.info, start, n_bytes):
                content = _narrowed(piece, weight.dtype) if narrow else piece
                if content is None:
                    raise BadFileError(reader.source, "changed while it was read")
                _put(out, content)


def _spans(weight: _Weight) -> Iterator[tuple[int, int]]:
    """Say which bytes of a tensor come one after the other in the form: start and length.

    Row ``2 j + i`` of a head in a GGUF file is row ``i * head / 2 + j`` of it in a checkpoint.
    """
    if not weight.heads:
        yield 0, weight.info.n_bytes
        return
    columns, rows = weight.info.shape
    row = columns * by_name(weight.info.type).type_size
    head = rows // weight.heads
    for first in range(0, rows, head):
        for parity in (0, 1):
            for number in range(first + parity, first + head, 2):
                yield number * row, row


def _put(out: BinaryIO, content: bytes | memoryview) -> None:
    """Write all of it: what an unbuffered file takes at once may be less."""
    done = 0
    while done < len(content):
        done += out.write(content[done:])


def _flush(out: BinaryIO) -> None:
    out.flush()
    os.fsync(out.fileno())


# The tokenizer.


@dataclass(frozen=True, slots=True)
class _Tokenizer:
    """What the form says of a tokenizer.

    Attributes:
        whole: ``tokenizer.json``.
        config: ``tokenizer_config.json`` but for the length of the context.
        ids: Numbers of tokens, as in ``generation_config.json``.
    """

    whole: Mapping[str, Any]
    config: dict[str, Any]
    ids: Mapping[str, Any]


def _tokenizer(source: Path, header: Header, rows: int) -> _Tokenizer:
    """Make the form of a tokenizer; ``rows`` is the number of tokens by the embedding."""
    metadata = header.metadata
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise BadFileError(
            source, f"its tokenizer is {_cut(repr(kind))} (only byte-level BPE, 'gpt2', has a form)"
        )
    pre = metadata.get("tokenizer.ggml.pre")
    if not isinstance(pre, str) or pre not in _PRE_TOKENIZERS:
        known = ", ".join(_PRE_TOKENIZERS)
        raise BadFileError(
            source, f"its text is split as {_cut(repr(pre))} ('tokenizer.ggml.pre'; known: {known})"
        )
    kept = _Kept(source, header)
    tokens = kept.texts("tokenizer.ggml.tokens")
    if len(tokens) != rows:
        raise BadFileError(source, f"has {len(tokens)} tokens and an embedding of {rows}")
    vocabulary = {text: number for number, text in enumerate(tokens)}
    if len(vocabulary) != len(tokens) or "" in vocabulary:
        number = next(n for n, text in enumerate(tokens) if not text or vocabulary[text] != n)
        what = "there again later" if tokens[number] else "empty"
        raise BadFileError(source, f"token {number}, {_shorten(tokens[number])}, is {what}")
    merges = kept.texts("tokenizer.ggml.merges")
    _check_merges(source, merges, vocabulary)

    ids = {name: _token_id(source, header, key, len(tokens)) for name, key in _SPECIAL.items()}
    texts = {name: tokens[number] for name, number in ids.items() if number is not None}
    ends = [ids["eos_token"]]
    ends += [_token_id(source, header, f"{key}_token_id", len(tokens)) for key in ("eot", "eom")]
    stops = list(dict.fromkeys(number for number in ends if number is not None))
    numbers = {
        "bos_token_id": ids["bos_token"],
        "eos_token_id": stops if len(stops) > 1 else next(iter(stops), None),
        "pad_token_id": ids["pad_token"],
    }
    around = {name: _flag(source, header, f"add_{name}") for name in ("bos_token", "eos_token")}
    for name, wanted in around.items():
        if wanted and name not in texts:
            raise BadFileError(source, f"wants its {name} around each text and does not state one")
    added = _added(source, tokens, kept.numbers("tokenizer.ggml.token_type"))
    config: dict[str, Any] = {
        **{f"add_{name}": wanted for name, wanted in around.items()},
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"}
            for token in added
        },
        **texts,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    template = kept.text("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    return _Tokenizer(
        whole={
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": dict(_PRE_TOKENIZERS[pre]),
            "post_processor": _template(
                [(texts[name], ids[name]) if around[name] else None for name in around]
            ),
            "decoder": dict(_BYTE_LEVEL) | {"add_prefix_space": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": vocabulary,
                "merges": merges,
            },
        },
        config=config,
        ids={name: number for name, number in numbers.items() if number is not None},
    )


def _check_merges(source: Path, merges: Sequence[str], vocabulary: Mapping[str, int]) -> None:
    """Each merge is one of two tokens to a third, and there once.

    llama.cpp takes others too; to ``tokenizers`` they are no BPE, or mean something else.
    """
    seen: set[str] = set()
    for number, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        if " " in right or any(text not in vocabulary for text in (left, right, left + right)):
            raise BadFileError(
                source, f"merge {number}, {_shorten(merge)}, is not of two tokens to a third"
            )
        if merge in seen:
            raise BadFileError(source, f"merge {number}, {_shorten(merge)}, is there twice")
        seen.add(merge)


def _added(source: Path, tokens: Sequence[str], types: Sequence[int]) -> list[dict[str, Any]]:
    """List the tokens that a text is searched for before it is split.

    llama.cpp always searches for those that a user defined, and for control and unknown tokens if
    told to, which is what "special" means.
    """
    added = []
    for number, kind in enumerate(types):
        if kind in {_NORMAL, _UNUSED}:
            continue
        if kind not in {_UNKNOWN, _CONTROL, _USER_DEFINED}:
            raise BadFileError(
                source,
                f"token {number}, {_shorten(tokens[number])}, is of type {kind} (expected"
                f" {_NORMAL} to {_UNUSED} in byte-level BPE)",
            )
        added.append(
            {
                "id": number,
                "content": tokens[number],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind != _USER_DEFINED,
            }
        )
    return added


def _template(around: Sequence[tuple[str, int | None] | None]) -> dict[str, Any] | None:
    """Make the post-processor that puts BOS in front and EOS behind; None if neither is wanted."""
    if not any(around):
        return None
    before, after = (
        [{"SpecialToken": {"id": token[0], "type_id": 0}}] if token else [] for token in around
    )
    first, second = ([{"Sequence": {"id": name, "type_id": 0}}] for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": before + first + after,
        "pair": before + first + after + before + second + after,
        "special_tokens": {
            token[0]: {"id": token[0], "ids": [token[1]], "tokens": [token[0]]}
            for token in around
            if token
        },
    }


def _token_id(source: Path, header: Header, name: str, n_tokens: int) -> int | None:
    key = f"tokenizer.ggml.{name}"
    value = header.metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < n_tokens:
        raise BadFileError(
            source, f"key '{key}' is {_cut(repr(value))} (expected a number below {n_tokens})"
        )
    return value


def _flag(source: Path, header: Header, name: str) -> bool:
    key = f"tokenizer.ggml.{name}"
    value = header.metadata.get(key, False)
    if not isinstance(value, bool):
        raise BadFileError(source, f"key '{key}' is {_cut(repr(value))} (expected true or false)")
    return value


class _Kept:
    """The values of a header that ``read_header`` only digests: long texts and arrays."""

    def __init__(self, source: Path, header: Header) -> None:
        self._source = source
        self._metadata = header.metadata
        with opened(source) as (file, _):
            raw = b""
            while len(raw) < header.meta_size:
                piece = file.read(header.meta_size - len(raw))
                if not piece:
                    raise self._changed()
                raw += piece
        self._raw = raw
        self._values: dict[str, tuple[int, int, int]] = {}
        try:
            self._walk()
        except (struct.error, KeyError, UnicodeDecodeError):
            raise self._changed() from None

    def texts(self, key: str) -> list[str]:
        """Read an array of texts; empty if it is not there."""
        count, start, end = self._found(key)
        found: list[str] = []
        for number in range(count):
            length = int.from_bytes(self._raw[start : start + 8], "little")
            start += 8
            found.append(self._decoded(key, self._raw[start : start + length], number))
            start += length
        if start != end:
            raise self._changed()
        return found

    def text(self, key: str) -> str | None:
        """Read a text; None if it is not there."""
        if key not in self._values:
            return None
        _, start, end = self._found(key)
        return self._decoded(key, self._raw[start + 8 : end], None)

    def numbers(self, key: str) -> tuple[int, ...]:
        """Read an array of i32; empty if it is not there."""
        count, start, end = self._found(key)
        if end - start != 4 * count:
            raise self._changed()
        return struct.unpack_from(f"<{count}i", self._raw, start)

    def _walk(self) -> None:
        """Find where the value of each key is; the header was checked, so it is well-formed."""
        raw, place = self._raw, _PREAMBLE_BYTES
        for _ in range(len(self._metadata)):
            (length,) = _U64.unpack_from(raw, place)
            place += 8 + length
            key = raw[place - length : place].decode()
            (kind,) = _U32.unpack_from(raw, place)
            place += 4
            count = 1
            if kind == _ARRAY:
                (kind,), (count,) = _U32.unpack_from(raw, place), _U64.unpack_from(raw, place + 4)
                place += 12
            start = place
            if kind == _STRING:
                for _ in range(count):
                    place += 8 + _U64.unpack_from(raw, place)[0]
            else:
                place += count * _SIZES[kind]
            self._values[key] = (count, start, place)

    def _found(self, key: str) -> tuple[int, int, int]:
        """Say how many elements a value has, where it starts and ends; none if it is not there."""
        count, start, end = self._values.get(key, (0, 0, 0))
        known = self._metadata.get(key)
        if isinstance(known, ArrayInfo):
            first = start + (8 if known.type == "text" else 0)
            if hashlib.sha256(self._raw[first:end]).hexdigest() != known.digest:
                raise self._changed()
        return count, start, end

    def _decoded(self, key: str, raw: bytes, number: int | None) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            at = "" if number is None else f"element {number} of "
            raise BadFileError(
                self._source, f"{at}key '{key}' is not UTF-8: {_cut(repr(raw))}"
            ) from None

    def _changed(self) -> BadFileError:
        return BadFileError(self._source, "changed while it was read")


# The folder.


def _check_folder(folder: Path) -> None:
    """It is not there yet, or is there and empty."""
    with _as_storage(folder):
        if not folder.exists():
            return
        if not folder.is_dir():
            raise StorageError(f"{folder}: is there and is no folder (expected a new or empty one)")
        if there := sorted(path.name for path in folder.iterdir()):
            more = f" and {len(there) - 1} more" if len(there) > 1 else ""
            raise StorageError(
                f"{folder}: holds {_shorten(there[0])}{more} (expected a new or empty folder)"
            )


@contextmanager
def _made(folder: Path) -> Iterator[Path]:
    """Make a folder that appears with all that was written in it, or not at all."""
    with _as_storage(folder):
        final = folder.resolve()
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{final.name}.", dir=final.parent, ignore_cleanup_errors=True
        ) as outer:
            # One of its own inside, because a temporary folder is its owner's alone.
            inner = Path(outer, "form")
            inner.mkdir()
            yield inner
            inner.rename(final)  # also over an empty folder


@contextmanager
def _as_storage(folder: Path) -> Iterator[None]:
    """What the system objects to is a StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{folder}: cannot write it: {error.strerror}") from error


def _shorten(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:77]}...")


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
