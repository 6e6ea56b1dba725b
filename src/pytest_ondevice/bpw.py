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

    def plus(self, tensor: TensorInfo) -> Tally:
        """Count one more tensor."""
        return Tally(
            self.n_tensors + 1, self.n_weights + tensor.n_weights, self.n_bytes + tensor.n_bytes
        )


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
    """

    total: Tally
    kinds: Mapping[Kind, Tally]
    histogram: Mapping[str, Tally]
    float_matrix_share: Fraction | None
    not_counted: Tally

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
_BODY = re.compile(r"(?:\w+\.)?blk\.\d+\.")
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


def is_weight(tensor: TensorInfo) -> bool:
    """Whether a tensor's elements count as weights."""
    return not (by_name(tensor.type).is_integer or _ROPE.match(tensor.name))


def account(tensors: Iterable[TensorInfo]) -> BpwAccount:
    """Count the weights and bytes of an artifact, of all its files if it is split.

    Raises:
        ValueError: No tensor holds weights, as in a file that has only a vocabulary.
    """
    total = not_counted = Tally()
    kinds = dict.fromkeys(Kind, Tally())
    histogram: dict[str, Tally] = {}
    matrices: Counter[bool] = Counter()  # weights by whether they are floats
    for tensor in tensors:
        if not is_weight(tensor):
            not_counted = not_counted.plus(tensor)
            continue
        kind = kind_of(tensor.name)
        total = total.plus(tensor)
        kinds[kind] = kinds[kind].plus(tensor)
        histogram[tensor.type] = histogram.get(tensor.type, Tally()).plus(tensor)
        if kind is Kind.BODY and tensor.n_weights > tensor.shape[0]:
            matrices[by_name(tensor.type).is_float] += tensor.n_weights
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
    )
