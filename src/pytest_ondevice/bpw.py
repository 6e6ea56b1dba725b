"""Bits per weight, from the tensors that are in the file and never from a method's name.

A weight is an element of any tensor of the file that was trained: matrices, biases and norms alike,
and the numbers that scale quantized matrices, because a device has to hold them all. What does not
count:

- tables of the rotary embedding (``rope_freqs``, ``rope_factors_long``, ``rope_factors_short``,
  ``attn_rot_embd``): constants that the architecture's settings determine;
- tensors of integers: indices.

llama.cpp's ``llama_model_n_params``, and the BPW that it prints, count every element of every
tensor in the file. The two agree exactly where a file has no such tensor and differ by a few dozen
elements among billions where it has, as in Llama 3. Like there, an embedding that also serves as
the output is one tensor and counts once, and padding between tensors does not count.

Which tensors there are is told by the format: GGUF files here, checkpoints of Hugging Face in
``checkpoints.py``. Both sum up in `sum_up`, so that one figure means the same in both.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from .model.quant_types import by_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .model.artifact import TensorInfo


class Kind(StrEnum):
    """Which part of a model a tensor belongs to. Each tensor belongs to one."""

    BODY = "body"  # the repeating layers, with their norms and biases
    EMBEDDING = "embedding"
    OUTPUT = "output"
    NORM = "norm"  # outside the repeating layers
    OTHER = "other"


class Tally(NamedTuple):
    """Number of tensors, weights and bytes."""

    n_tensors: int = 0
    n_weights: int = 0
    n_bytes: int = 0

    @property
    def bpw(self) -> Fraction | None:
        """Bits per weight, None without weights."""
        return Fraction(8 * self.n_bytes, self.n_weights) if self.n_weights else None

    def plus(self, tensor: TensorInfo | Entry) -> Tally:
        """Count one more tensor."""
        return Tally(
            self.n_tensors + 1, self.n_weights + tensor.n_weights, self.n_bytes + tensor.n_bytes
        )


class Entry(NamedTuple):
    """One tensor that holds weights, whatever format it is from.

    Attributes:
        name: Its name.
        kind: The part of the model that it belongs to.
        layer: Number of its repeating layer; None outside them.
        scheme: How it is stored; what the histogram divides by.
        n_weights: Number of its weights.
        n_bytes: What they take, with what belongs to them.
        is_matrix: Whether it has more than one row.
        is_float: Whether each weight is a plain float: not quantized.
    """

    name: str
    kind: Kind
    layer: int | None
    scheme: str
    n_weights: int
    n_bytes: int
    is_matrix: bool
    is_float: bool


@dataclass(frozen=True, slots=True)
class BpwAccount:
    """What the weights of an artifact take. Exact; only the properties ``*_bpw`` are rounded.

    Attributes:
        total: All weights.
        kinds: The same, divided by the part of the model. Every kind is there.
        histogram: The same, divided by the name of the tensor type; those that occur, by name.
        float_matrix_share: Of the weights in matrices of the repeating layers, the part that is
            stored as plain floats; None without such matrices. A matrix is a tensor of more than
            one row; stacks of experts are matrices too.
        not_counted: Tensors that hold no weights.
        by_layer: Weights of the repeating layers, divided by the number of the layer; in order.
            Where a model has several stacks of layers, as an encoder and a decoder, those of one
            number count together.
        by_tensor: All weights, divided by the name of the tensor; by name.
    """

    total: Tally
    kinds: Mapping[Kind, Tally]
    histogram: Mapping[str, Tally]
    float_matrix_share: Fraction | None
    not_counted: Tally
    by_layer: Mapping[int, Tally]
    by_tensor: Mapping[str, Tally]

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return self.total.n_weights

    @property
    def n_bytes(self) -> int:
        """Bytes of the weights, without the padding between tensors."""
        return self.total.n_bytes

    @property
    def effective(self) -> Fraction:
        """Bits per weight of the whole artifact."""
        return Fraction(8 * self.n_bytes, self.n_weights)

    @property
    def body(self) -> Fraction | None:
        """Bits per weight of the repeating layers, None if there are none."""
        return self.kinds[Kind.BODY].bpw

    @property
    def effective_bpw(self) -> float:
        """Effective BPW as a float."""
        return float(self.effective)

    @property
    def body_bpw(self) -> float | None:
        """Body BPW as a float."""
        return None if self.body is None else float(self.body)


# T5's encoder and decoder, and encoders of images and sounds, have their layers behind a prefix.
_BODY = re.compile(r"(?:\w+\.)?blk\.(\d+)\.")
_NORM = re.compile(r"norm(?:\.|$)")
_ROPE = re.compile(r"(?:.+\.)?(?:rope_freqs|rope_factors_\w+|attn_rot_embd)(?:\.|$)")
_EMBEDDINGS = ("token_embd.", "per_layer_token_embd.", "position_embd.", "token_types.")


def kind_of(name: str) -> Kind:
    """Tell from a tensor's name which part of the model it belongs to."""
    if _BODY.match(name):
        return Kind.BODY
    if _NORM.search(name):
        return Kind.NORM
    if name.startswith(_EMBEDDINGS):
        return Kind.EMBEDDING
    return Kind.OUTPUT if name.startswith("output.") else Kind.OTHER


def layer_of(name: str) -> int | None:
    """Tell from a tensor's name the number of its repeating layer, None outside them."""
    match = _BODY.match(name)
    return int(match[1]) if match else None


def is_weight(tensor: TensorInfo) -> bool:
    """Whether a tensor's elements count as weights."""
    return not (by_name(tensor.type).is_integer or _ROPE.match(tensor.name))


def account(tensors: Iterable[TensorInfo]) -> BpwAccount:
    """Count the weights and bytes of an artifact, of all its files if it is split.

    Raises:
        ValueError: No tensor holds weights, as in a file that has only a vocabulary.
    """
    not_counted = Tally()
    entries: list[Entry] = []
    for tensor in tensors:
        if is_weight(tensor):
            entries.append(_entry(tensor))
        else:
            not_counted = not_counted.plus(tensor)
    return sum_up(entries, not_counted)


def _entry(tensor: TensorInfo) -> Entry:
    return Entry(
        name=tensor.name,
        kind=kind_of(tensor.name),
        layer=layer_of(tensor.name),
        scheme=tensor.type,
        n_weights=tensor.n_weights,
        n_bytes=tensor.n_bytes,
        is_matrix=tensor.n_weights > tensor.shape[0],
        is_float=by_name(tensor.type).is_float,
    )


def sum_up(entries: Iterable[Entry], not_counted: Tally) -> BpwAccount:
    """Make an account of tensors that hold weights, and of the sum of those that hold none.

    Raises:
        ValueError: There are no weights.
    """
    total = Tally()
    kinds = dict.fromkeys(Kind, Tally())
    histogram: dict[str, Tally] = {}
    by_layer: dict[int, Tally] = {}
    by_tensor: dict[str, Tally] = {}
    matrices: Counter[bool] = Counter()  # weights by whether they are floats
    for entry in entries:
        total = total.plus(entry)
        kinds[entry.kind] = kinds[entry.kind].plus(entry)
        histogram[entry.scheme] = histogram.get(entry.scheme, Tally()).plus(entry)
        by_tensor[entry.name] = by_tensor.get(entry.name, Tally()).plus(entry)
        if entry.layer is not None:
            by_layer[entry.layer] = by_layer.get(entry.layer, Tally()).plus(entry)
        if entry.kind is Kind.BODY and entry.is_matrix:
            matrices[entry.is_float] += entry.n_weights
    if not total.n_weights:
        raise ValueError("there are no weights to account for")
    return BpwAccount(
        total=total,
        kinds=kinds,
        histogram=dict(sorted(histogram.items())),
        float_matrix_share=(
            Fraction(matrices[True], matrices.total()) if matrices.total() else None
        ),
        not_counted=not_counted,
        by_layer=dict(sorted(by_layer.items())),
        by_tensor=dict(sorted(by_tensor.items())),
    )
