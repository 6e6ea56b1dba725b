"""What an artifact will be before it is made: tensors, types and bytes, from a header or a catalog.

A plan needs no weights. It starts from the tensor table of a source's header where one is at hand,
else from the dimensions of the model, and lets ``mixes`` choose as llama.cpp would. From a header
the length of the file is exact to the byte; from dimensions the tensors are, and the length of
the metadata is estimated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from . import layout, mixes
from .bpw import account
from .model.artifact import ArrayInfo
from .model.catalog import Dimensions
from .model.quant_types import FILE_TYPES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .model.artifact import Header, TensorInfo

RULES = "rules of llama.cpp as vendored in llama-cpp-python 0.3.36"
"""Whose choice of types a plan repeats."""

TOKEN_BYTES = 36
"""Bytes of a header per token of the vocabulary (texts, types, merges), where only dimensions are
known: SmolLM2 has 36 (1.8 MB for 49,152 tokens)."""

FLOATS = frozenset({"F32", "F16", "BF16"})

_SPLIT_KEYS = {"split.no": 2, "split.count": 2, "split.tensors.count": 4}
_KEY_BYTES = 8 + 4  # of every key: the length of its name, and its type


class Plan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a model under a method will be. Sizes are in bytes, BPW in bits per weight.

    Attributes:
        method: The file type.
        refused: Why llama.cpp would not make it; the other fields are then 0.
        weights: Number of weights.
        nominal_bpw: BPW of the method's base type, which is what its name says.
        effective_bpw: BPW of the whole artifact.
        body_bpw: BPW of the repeating layers.
        misled: By how much effective exceeds nominal BPW, as a share.
        weight_bytes: All weight tensors.
        file_size: Length of the file.
        kv_cache: KV cache (F16) of the context.
        peak_memory: Peak of the memory protocol at that context, about.
        types: Number of tensors by type.
    """

    method: str
    refused: str = ""
    weights: int = 0
    nominal_bpw: float = 0.0
    effective_bpw: float = 0.0
    body_bpw: float = 0.0
    misled: float = 0.0
    weight_bytes: int = 0
    file_size: int = 0
    kv_cache: int = 0
    peak_memory: int = 0
    types: dict[str, int] = {}


def plan(
    method: str,
    *,
    header: Header | None = None,
    dimensions: Dimensions | None = None,
    n_ctx: int,
    pure: bool = False,
    imatrix: bool = False,
    kv: str = "f16",
) -> Plan:
    """Plan a model under a method.

    Args:
        method: The file type.
        header: A source's header; its metadata give the dimensions.
        dimensions: The model's shape, where there is no header.
        n_ctx: Tokens of the context that KV cache and memory are for.
        pure: Every matrix has the base type, where its rows allow it.
        imatrix: An importance matrix will be there.
        kv: Type of the KV cache.

    Raises:
        ValueError: Neither header nor dimensions were given, or the header does not hold them.
    """
    shape = dimensions_of(header) if header is not None else dimensions
    if shape is None:
        raise ValueError("nothing says how many layers, heads and tokens it has")
    nominal = FILE_TYPES[method].nominal_bpw
    try:
        if header is not None:
            tensors = from_header(header, method, pure=pure, imatrix=imatrix)
        else:
            tensors = from_dimensions(shape, method, pure=pure, imatrix=imatrix)
    except ValueError as error:
        return Plan(method=method, refused=str(error), nominal_bpw=float(nominal))
    counted = account(tensors)
    types: dict[str, int] = {}
    for tensor in tensors:
        types[tensor.type] = types.get(tensor.type, 0) + 1
    kv_cache = kv_bytes(shape, n_ctx, kv)
    return Plan(
        method=method,
        weights=counted.n_weights,
        nominal_bpw=float(nominal),
        effective_bpw=counted.effective_bpw,
        body_bpw=counted.body_bpw or 0.0,
        misled=float(counted.effective / nominal - 1),
        weight_bytes=counted.n_bytes,
        file_size=_file_size(tensors, header, shape, method),
        kv_cache=kv_cache,
        peak_memory=counted.n_bytes + kv_cache + working_bytes(shape, n_ctx),
        types=dict(sorted(types.items())),
    )


def from_header(
    header: Header, method: str, *, pure: bool = False, imatrix: bool = False
) -> tuple[TensorInfo, ...]:
    """Plan the tensors that quantizing a file gives; ``imatrix`` assumes an importance matrix.

    ``pure`` gives every matrix the base type, where its rows allow it.

    Raises:
        ValueError: llama.cpp would refuse.
    """
    return mixes.choose(
        header.tensors,
        method,
        architecture=header.architecture,
        heads=_number(header, "attention.head_count"),
        kv_heads=_number(header, "attention.head_count_kv"),
        layers=_number(header, "block_count"),
        experts=_number(header, "expert_count"),
        imatrix=imatrix,
        pure=pure,
    )


def from_dimensions(
    dimensions: Dimensions, method: str, *, pure: bool = False, imatrix: bool = False
) -> tuple[TensorInfo, ...]:
    """Plan the tensors that quantizing a model of these dimensions gives.

    Raises:
        ValueError: llama.cpp would refuse, or the architecture is not known here.
    """
    return mixes.choose(
        layout.tensors(dimensions),
        method,
        architecture=dimensions.architecture,
        heads=dimensions.heads,
        kv_heads=dimensions.kv_heads,
        layers=dimensions.layers,
        imatrix=imatrix,
        pure=pure,
    )


def weighed_evenly(header: Header, method: str, *, pure: bool) -> dict[str, int]:
    """Map what must be given equal importances to its row length, beside an importance matrix.

    See ``mixes.unweighed``; a file that cannot be planned has none.
    """
    try:
        planned = from_header(header, method, pure=pure, imatrix=True)
    except ValueError:
        return {}
    return {tensor.name: tensor.shape[0] for tensor in mixes.unweighed(planned)}


def matching_share(header: Header, method: str, *, pure: bool = False) -> float:
    """Return the share of a file's weights whose type is the one that the method gives them.

    With an importance matrix llama.cpp has rules of its own; the better match of both counts.

    Args:
        header: The file's.
        method: The file type.
        pure: It is to be pure: every matrix of the base type, where its rows allow it.

    Raises:
        ValueError: llama.cpp would not make such a file.
    """
    return max(_share(header, method, pure=pure, imatrix=imatrix) for imatrix in (False, True))


def _share(header: Header, method: str, *, pure: bool, imatrix: bool) -> float:
    try:
        tensors = from_header(header, method, pure=pure, imatrix=imatrix)
        planned = {tensor.name: tensor.type for tensor in tensors}
    except ValueError:
        if imatrix:
            raise
        return 0.0
    total = sum(tensor.n_weights for tensor in header.tensors)
    same = sum(tensor.n_weights for tensor in header.tensors if planned[tensor.name] == tensor.type)
    return same / total


def n_weights(dimensions: Dimensions | None, header: Header | None) -> int:
    """Count weights, from the header if there is one; 0 if neither says."""
    if header is not None:
        return account(header.tensors).n_weights
    try:
        return layout.n_parameters(dimensions) if dimensions else 0
    except ValueError:
        return 0


def file_size(
    dimensions: Dimensions | None,
    header: Header | None,
    method: str,
    *,
    pure: bool = False,
    imatrix: bool = False,
) -> int | None:
    """Say how long an artifact's file will be; None if it cannot be planned."""
    try:
        if header is not None:
            tensors = from_header(header, method, pure=pure, imatrix=imatrix)
            return _file_size(tensors, header, None, method)
        if dimensions is not None:
            tensors = from_dimensions(dimensions, method, pure=pure, imatrix=imatrix)
            return _file_size(tensors, None, dimensions, method)
    except ValueError:
        pass
    return None


_CACHE_BITS = {"f16": 16.0, "q8_0": 8.5, "q4_0": 4.5}


def kv_bytes(dimensions: Dimensions, n_ctx: int, kv: str = "f16") -> int:
    """Bytes of a KV cache for a context; sliding windows are not taken off."""
    row = dimensions.kv_heads * dimensions.head_size
    return int(2 * dimensions.layers * n_ctx * row * _CACHE_BITS[kv] / 8)


def working_bytes(dimensions: Dimensions, n_ctx: int, n_ubatch: int = 512) -> int:
    """Estimate what is resident beside weights and KV cache: compute buffers and vocabulary.

    A micro-batch's activations in F32: hidden states, the feed-forward's, queries. The vocabulary
    takes 380 bytes a token in llama.cpp's tables; measured on SmolLM2-135M, where the whole is
    33.6 MiB at a context of 512, for which this gives 33.5.
    """
    rows = min(n_ctx, n_ubatch)
    width = (
        4 * dimensions.hidden
        + 3 * dimensions.feed_forward
        + 2 * dimensions.heads * dimensions.head_size
    )
    return 4 * rows * width + 380 * dimensions.vocabulary


def dimensions_of(header: Header) -> Dimensions | None:
    """Read a model's dimensions from a header; None where it does not state them."""
    tensors = {tensor.name: tensor.shape for tensor in header.tensors}
    embedding = tensors.get("token_embd.weight")
    heads, hidden = _number(header, "attention.head_count"), _number(header, "embedding_length")
    layers = _number(header, "block_count")
    if embedding is None or not (heads and hidden and layers):
        return None
    return Dimensions(
        architecture=header.architecture,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_number(header, "attention.head_count_kv") or heads,
        head_size=_number(header, "attention.key_length") or hidden // heads,
        feed_forward=_number(header, "feed_forward_length"),
        vocabulary=embedding[-1],
        tied="output.weight" not in tensors,
        rope_factors=layout.ROPE_TABLE in tensors,
    )


_HF_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma3ForCausalLM": "gemma3",
    "Gemma3ForConditionalGeneration": "gemma3",
}


def dimensions_of_config(config: Mapping[str, Any]) -> Dimensions:
    """Read a model's dimensions from a Hugging Face ``config.json``.

    Raises:
        ValueError: It is of an architecture that is not known here, or lacks a number.
    """
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if name not in _HF_ARCHITECTURES:
        known = ", ".join(_HF_ARCHITECTURES)
        raise ValueError(f"its architecture is {name!r}; known are {known} - `$.architectures`")
    text = config.get("text_config", config)

    def number(key: str, default: int | None = None) -> int:
        value = text.get(key, config.get(key, default))
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise ValueError(f"{value!r} is no such number - `$.{key}`")
        return value

    heads, hidden = number("num_attention_heads"), number("hidden_size")
    scaling = text.get("rope_scaling") or text.get("rope_parameters")
    kind = scaling.get("rope_type") if isinstance(scaling, dict) else None
    return Dimensions(
        architecture=_HF_ARCHITECTURES[name],
        layers=number("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=number("num_key_value_heads", heads),
        head_size=number("head_dim", hidden // heads),
        feed_forward=number("intermediate_size"),
        vocabulary=number("vocab_size"),
        # Gemma's configuration leaves it to the library's default, which is tied.
        tied=bool(config.get("tie_word_embeddings", "Gemma" in str(name))),
        rope_factors=kind == "llama3",
    )


def _file_size(
    tensors: tuple[TensorInfo, ...], header: Header | None, shape: Dimensions | None, method: str
) -> int:
    alignment = header.alignment if header is not None else mixes.ALIGNMENT
    data = sum(_padded(tensor.n_bytes, alignment) for tensor in tensors)
    if header is None:
        assert shape is not None  # one of the two is given
        slots = 8 + 4 + 8 + 4 + 8 * 2 + 24  # of a tensor: name, dimensions, type, offset
        return TOKEN_BYTES * shape.vocabulary + slots * len(tensors) + data
    # llama-quantize states its version and the file type, and drops what says that it was split.
    stated = {"general.file_type": 4}
    if method not in FLOATS or "general.quantization_version" in header.metadata:
        stated["general.quantization_version"] = 4
    before = header.meta_size
    for key, size in stated.items():
        before += 0 if key in header.metadata else len(key) + _KEY_BYTES + size
    for key, size in _SPLIT_KEYS.items():
        before -= len(key) + _KEY_BYTES + size if key in header.metadata else 0
    return _padded(before, alignment) + data


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _number(header: Header, name: str) -> int:
    """Read a hyperparameter; of one that differs from layer to layer the first."""
    value = header.metadata.get(f"{header.architecture}.{name}", 0)
    if isinstance(value, tuple):
        value = value[0] if value else 0
    return 0 if isinstance(value, ArrayInfo) or not isinstance(value, int) else value
