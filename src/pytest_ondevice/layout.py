"""The tensors of a model that is not there, from its dimensions alone.

Names and shapes are those that llama.cpp's converter writes and its loader asks for
(``conversion/`` and ``src/models/`` of llama.cpp as vendored in llama-cpp-python 0.3.36). The order
is that of a file which llama-quantize wrote: it sorts what it reads by layer, then by name, with
what belongs to no layer first. A file straight from the converter holds the same tensors in the
checkpoint's order.

Two numbers are the file's and not the checkpoint's: the converter cuts Gemma 3's embedding to as
many rows as its tokenizer has tokens, and a multimodal model's language part is a file of its own.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .model.catalog import Dimensions

ROPE_TABLE = "rope_freqs.weight"


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor before a method gives it its type.

    Attributes:
        name: Its name in a GGUF file.
        shape: Dimensions in GGUF order, row length first.
        type: What it has in a full-precision source, and keeps if it is not quantized.
    """

    name: str
    shape: tuple[int, ...]
    type: str = "F32"

    @property
    def n_weights(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class _Extras:
    """What an architecture has on top of llama's layer: a norm, attention, a norm, a gated FFN."""

    biases: bool = False  # on queries, keys and values
    head_norms: bool = False  # on each head of queries and keys
    post_norms: bool = False  # behind attention and feed-forward


_ARCHITECTURES: Mapping[str, _Extras] = MappingProxyType(
    {
        "llama": _Extras(),
        "qwen2": _Extras(biases=True),
        "qwen3": _Extras(head_norms=True),
        "gemma3": _Extras(head_norms=True, post_norms=True),
    }
)

_LAYER = re.compile(r"blk\.(\d+)")


def order(name: str) -> tuple[int, str]:
    """Where a tensor stands in a file that llama-quantize wrote, as a key to sort by."""
    layer = _LAYER.match(name)
    return (int(layer[1]) if layer else -1, name)


def tensors(dimensions: Dimensions) -> tuple[Slot, ...]:
    """List the tensors of a model, in the order of a quantized file.

    Raises:
        ValueError: Nobody knows what tensors this architecture has.
    """
    try:
        extras = _ARCHITECTURES[dimensions.architecture]
    except KeyError:
        known = ", ".join(_ARCHITECTURES)
        raise ValueError(
            f"unknown architecture {dimensions.architecture!r} (known: {known})"
        ) from None
    slots = list(_around(dimensions))
    for number in range(dimensions.layers):
        slots += [Slot(f"blk.{number}.{name}", shape) for name, shape in _layer(dimensions, extras)]
    return tuple(sorted(slots, key=lambda slot: order(slot.name)))


def n_parameters(dimensions: Dimensions) -> int:
    """Count the weights as publishers and ``bpw`` do: no rotary table, a tied embedding once.

    Raises:
        ValueError: Nobody knows what tensors this architecture has.
    """
    return sum(slot.n_weights for slot in tensors(dimensions) if slot.name != ROPE_TABLE)


def _around(dimensions: Dimensions) -> Iterator[Slot]:
    embedding = (dimensions.hidden, dimensions.vocabulary)
    yield Slot("token_embd.weight", embedding)
    yield Slot("output_norm.weight", (dimensions.hidden,))
    if not dimensions.tied:
        yield Slot("output.weight", embedding)
    if dimensions.rope_factors:
        yield Slot(ROPE_TABLE, (dimensions.head_size // 2,))


def _layer(dimensions: Dimensions, extras: _Extras) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner, head = dimensions.hidden, dimensions.feed_forward, dimensions.head_size
    queries = dimensions.heads * head
    keys = dimensions.kv_heads * head
    for name, length in (("q", queries), ("k", keys), ("v", keys)):
        yield f"attn_{name}.weight", (hidden, length)
        if extras.biases:
            yield f"attn_{name}.bias", (length,)
    yield "attn_output.weight", (queries, hidden)
    yield "ffn_gate.weight", (hidden, inner)
    yield "ffn_up.weight", (hidden, inner)
    yield "ffn_down.weight", (inner, hidden)
    norms = ["attn_norm", "ffn_norm"]
    if extras.post_norms:
        norms += ["post_attention_norm", "post_ffw_norm"]
    for norm in norms:
        yield f"{norm}.weight", (hidden,)
    if extras.head_norms:
        yield "attn_q_norm.weight", (head,)
        yield "attn_k_norm.weight", (head,)
