"""Bytes of weights that decoding one token reads: what tokens/s cost in memory bandwidth.

Every weight tensor is read whole, but for

- tables of which a token looks up a row: embeddings of tokens, of positions, and of tokens by
  layer. Where the embedding of tokens is also the output matrix, it is read whole;
- stacks of experts (``ffn_up_exps``), of which a token's router chooses some.

What is a weight is told by ``bpw``: tables of the rotary embedding and indices are none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .bpw import is_weight
from .model.quant_types import by_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .model.artifact import TensorInfo, Value

_EXPERTS = re.compile(r"_exps(?:\.|$)")
_EMBEDDING = "token_embd.weight"
_OUTPUT = "output.weight"
_TABLES = frozenset({"per_layer_token_embd.weight", "position_embd.weight", "token_types.weight"})


def active_bytes(tensors: Iterable[TensorInfo], metadata: Mapping[str, Value]) -> int:
    """Count the bytes of weights that decoding one token reads.

    Args:
        tensors: Those of the artifact, of all its files if it is split.
        metadata: Of its (first) header; asked only for the numbers of experts.

    Raises:
        ValueError: There are stacks of experts, and the metadata do not say how many are used.
    """
    weights = [tensor for tensor in tensors if is_weight(tensor)]
    tables = _TABLES
    if any(tensor.name == _OUTPUT for tensor in weights):
        tables |= {_EMBEDDING}
    total = experts = 0
    for tensor in weights:
        if tensor.name in tables:
            total += _row_bytes(tensor)
        elif _EXPERTS.search(tensor.name):
            experts += tensor.n_bytes
        else:
            total += tensor.n_bytes
    if experts:
        used, count = _numbers(metadata)
        total += experts * used // count
    return total


def _row_bytes(tensor: TensorInfo) -> int:
    quant = by_name(tensor.type)
    return tensor.shape[0] // quant.block_size * quant.type_size


def _numbers(metadata: Mapping[str, Value]) -> tuple[int, int]:
    """Return how many experts a token uses, and of how many."""
    name = metadata.get("general.architecture")
    used, count = (metadata.get(f"{name}.{key}") for key in ("expert_used_count", "expert_count"))
    if (
        not isinstance(used, int)
        or not isinstance(count, int)
        or isinstance(used, bool)
        or isinstance(count, bool)
        or not 1 <= used <= count
    ):
        raise ValueError(
            f"there are stacks of experts, and of {name}.expert_used_count ({used!r}) and"
            f" {name}.expert_count ({count!r}) one is no number of experts (expected at least 1"
            " used, and no more than there are)"
        )
    return used, count
