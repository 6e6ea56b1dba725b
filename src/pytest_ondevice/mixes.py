"""Which type llama.cpp gives each tensor under a file type, before anything is quantized.

A file type such as Q4_K_M is a mix: most matrices get its base type, some get more bits for what
they do, where they stand or how the model is built, and a row that does not divide into blocks
gets another type. The rules are those of ``src/llama-quant.cpp`` in llama.cpp as vendored in
llama-cpp-python 0.3.36, stated as a table; dry runs of that library confirmed every rule in
it. Other versions of llama.cpp may have other rules.

What a plan cannot know:

- Options that override single tensors (``--tensor-type``, ``--output-tensor-type``,
  ``--token-embedding-type``, ``--leave-output-tensor``, ``--prune-layers``): not planned for.
- An importance matrix's contents. ``imatrix=True`` means that it covers every tensor that needs it;
  llama.cpp stops in the middle at the first that is missing. Of a mix, embedding and output never
  need it. Of a pure file they do where they become IQ2_XXS, IQ2_XS or IQ1_S, and there llama.cpp
  does not refuse: it aborts.
- What the source holds. A tensor that is not quantized keeps its type from there, which is taken
  from what is passed in. That a quantized source needs to be allowed is the caller's affair.
- Heads that differ from layer to layer: llama.cpp looks at the first layer's only.
- Split files: the plan is for one file.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .layout import order
from .model.artifact import TensorInfo
from .model.quant_types import FILE_TYPES, by_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

ALIGNMENT = 32
"""What llama-quantize pads each tensor to."""


class Tensor(Protocol):
    """A tensor as a plan starts from it: a ``layout.Slot``, or one of a source's header."""

    @property
    def name(self) -> str:
        """Its name in the file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions in GGUF order."""

    @property
    def type(self) -> str:
        """Its type in the source, which it keeps if it is never quantized."""


class _Role(StrEnum):
    """What a tensor does, as far as the rules care."""

    OUTPUT = "output"  # an embedding that serves as the output too has this role
    EMBEDDING = "embedding"
    VALUE = "value"  # also where values share a matrix with queries or keys
    KEY = "key"
    QUERY = "query"
    MERGE = "merge"  # attention's own output
    UP = "up"
    GATE = "gate"
    DOWN = "down"
    OTHER = "other"


_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
# The first that occurs anywhere in the name decides.
_ROLES = (
    ("attn_qkv.weight", _Role.VALUE),
    ("attn_kv_b.weight", _Role.VALUE),
    ("attn_v.weight", _Role.VALUE),
    ("attn_k.weight", _Role.KEY),
    ("attn_q.weight", _Role.QUERY),
    ("attn_output.weight", _Role.MERGE),
    ("ffn_up", _Role.UP),
    ("ffn_gate", _Role.GATE),
    ("ffn_down", _Role.DOWN),
)

# Matrices that stay as they are: small, or more sensitive than their size is worth.
_KEPT_NAMES = frozenset({"position_embd.weight", "token_types.weight"})
_KEPT = re.compile(
    "|".join(
        (
            r"_norm\.weight",
            r"ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight",  # routers of experts
            r"altup|laurel|per_layer_model_proj",
            r"ssm_conv1d|shortconv\.conv\.weight",
            r"indexer\.[kq]_proj\.weight",
            r"time_mix_(?:first|[wv][012]|[ag][12]|a0|decay_w[12]|lerp_fused)\.weight",
            r"attn_rel_b\.weight",
            r"\.position_embd|sam\.(?:pos_embd|neck\.|net_)|\.rel_pos|\.patch_(?:embd|merger)",
            r"a\.rvq\.codebook|mm\.a\.code_embd",
        )
    )
)

_UNPLANNED = frozenset({"bailingmoe3", "glm5-next"})
"""Architectures with rules of their own that are not in the table."""

_SEVENTY_B = MappingProxyType({"deci": 80, "jais2": 68, "llama": 80, "olmo": 80, "qwen2": 80})
"""Layers by which llama.cpp takes a model for one of 70 billion weights."""


@dataclass(frozen=True, slots=True)
class _Job:
    """What is the same for all tensors of a file."""

    method: str
    layers: int
    values: int  # tensors in the role of values
    sharing: int  # heads of queries for each head of keys
    experts: int
    imatrix: bool
    falcon: bool
    seventy_b: bool
    tied: bool

    @property
    def base(self) -> str:
        """The type that most matrices get."""
        return FILE_TYPES[self.method].base

    @property
    def shared(self) -> bool:
        """So many queries share keys and values that these are small and cheap to raise."""
        return self.sharing >= 4

    @property
    def eight(self) -> bool:
        """Whether it is a Mixtral, as eight experts are taken to mean."""
        return self.experts == 8


@dataclass(frozen=True, slots=True)
class _Place:
    """One tensor of a file: its role, and that it is number ``index`` of ``count`` in it."""

    job: _Job
    role: _Role
    index: int
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Values are counted; of all else llama.cpp expects one in each layer."""
        return self.job.values if self.role is _Role.VALUE else self.job.layers

    @property
    def whole_blocks(self) -> bool:
        """Whether a row divides into blocks of the base type."""
        return self.shape[0] % by_name(self.job.base).block_size == 0

    @property
    def stacked(self) -> bool:
        """Whether it is more than one matrix, as of experts."""
        return len(self.shape) > 2 and self.shape[2] > 1

    @property
    def early(self) -> bool:
        """In the first eighth."""
        return self.index < self.count // 8

    @property
    def very_early(self) -> bool:
        """In the first sixteenth."""
        return self.index < self.count // 16

    @property
    def late(self) -> bool:
        """In the last eighth."""
        return self.index >= 7 * self.count // 8

    @property
    def favoured(self) -> bool:
        """In the first or last eighth, or every third between them."""
        return self.early or self.late or (self.index - self.count // 8) % 3 == 2


class _Rule(NamedTuple):
    """A type that a tensor gets under some methods if a condition holds."""

    type: str
    methods: frozenset[str]
    applies: Callable[[_Place], bool]


def _rule(
    type_name: str, methods: str = "", applies: Callable[[_Place], bool] = lambda _: True
) -> _Rule:
    return _Rule(type_name, frozenset(methods.split() or FILE_TYPES), applies)


_TINY = "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M"
_COUNTING = frozenset([*_TINY.split(), "MXFP4_MOE"])
_IN_LAYERS = frozenset({_Role.UP, _Role.GATE, _Role.DOWN})

# By role; the first rule that applies counts, and without one the base type does.
_RULES: Mapping[_Role, tuple[_Rule, ...]] = MappingProxyType(
    {
        _Role.OUTPUT: (
            _rule("Q8_0", "MXFP4_MOE"),
            _rule("Q8_0", applies=lambda p: p.job.falcon or not p.whole_blocks),
            _rule("Q5_K", f"{_TINY} IQ3_XXS"),
            _rule("Q8_0", "Q8_0"),
            _rule("Q6_K"),
        ),
        _Role.EMBEDDING: (
            _rule("Q2_K", "IQ1_S IQ1_M IQ2_XXS IQ2_XS"),
            _rule("IQ3_S", "IQ2_S IQ2_M IQ3_XXS"),
            _rule("Q4_K", "TQ1_0 TQ2_0 Q2_0"),
        ),
        _Role.VALUE: (
            _rule("Q4_K", _TINY, lambda p: p.job.shared or p.job.experts >= 4),
            _rule("IQ3_S", "IQ2_S IQ2_M"),
            _rule("Q2_K", _TINY),
            _rule("Q8_0", applies=lambda p: p.job.eight),
            _rule("Q5_K", "Q3_K_L"),
            _rule("Q5_K", "Q3_K_M", lambda p: p.index < 2 or p.job.seventy_b),
            _rule("Q5_K", "Q4_K_S", lambda p: p.index < 4 or p.job.seventy_b),
            _rule("Q5_K", "IQ4_NL IQ4_XS", lambda p: p.job.shared),
            _rule("Q6_K", "Q4_K_M Q5_K_M", lambda p: p.favoured),
            _rule("Q5_K", "Q2_K Q3_K_S IQ3_M Q4_K_M", lambda p: p.job.seventy_b),
            _rule(
                "Q5_K", "Q2_K_S IQ3_XXS IQ3_XS IQ3_S", lambda p: p.job.seventy_b and p.job.shared
            ),
            _rule("Q4_K", "Q2_K Q2_K_S IQ3_XXS IQ3_XS IQ3_S", lambda p: p.job.shared),
            _rule("Q4_K", "IQ3_M Q3_K_M"),
            _rule("Q3_K", "Q2_K"),
            _rule("IQ3_S", "IQ3_XXS", lambda p: not p.job.imatrix),
        ),
        _Role.KEY: (
            _rule("Q4_K", _TINY, lambda p: p.job.eight),
            _rule("Q8_0", applies=lambda p: p.job.eight),
            _rule("IQ3_XXS", "IQ3_XS"),
            _rule("IQ2_S", "IQ3_XXS"),
        ),
        _Role.QUERY: (
            _rule("IQ3_XXS", "IQ3_XS"),
            _rule("IQ2_S", "IQ3_XXS"),
        ),
        _Role.MERGE: (
            _rule("Q5_K", _TINY, lambda p: p.job.eight),
            _rule("IQ2_XXS", "IQ1_S IQ1_M"),
            _rule("IQ3_S", "IQ2_S IQ2_M"),
            _rule("Q4_K", "Q3_K_L", lambda p: p.job.falcon),
            _rule(
                "Q5_K",
                "Q2_K Q3_K_S Q3_K_M Q4_K_S Q4_K_M IQ3_XXS IQ3_XS IQ3_S IQ3_M IQ4_NL IQ4_XS",
                lambda p: p.job.eight and not p.job.falcon,
            ),
            _rule("Q3_K", "Q2_K", lambda p: not p.job.falcon),
            _rule("Q4_K", "Q3_K_M IQ3_M", lambda p: not p.job.falcon),
            _rule("Q5_K", "Q3_K_L", lambda p: not (p.job.falcon or p.job.eight)),
            _rule("IQ3_S", "IQ3_XXS", lambda p: not p.job.falcon),
        ),
        _Role.GATE: (_rule("IQ3_XXS", "IQ3_XS", lambda p: not (p.early or p.late)),),
        _Role.UP: (_rule("IQ3_XXS", "IQ3_XS", lambda p: not (p.early or p.late)),),
        _Role.DOWN: (
            _rule("IQ3_S", "IQ2_S IQ2_M", lambda p: p.early),
            _rule("Q2_K", "IQ1_S IQ1_M IQ2_XXS IQ2_XS", lambda p: p.early),
            _rule("Q3_K", "Q2_K"),
            _rule("Q4_K", "Q2_K_S", lambda p: p.early),
            _rule("Q4_K", "IQ3_XXS", lambda p: p.early and not p.job.imatrix),
            _rule("Q3_K", "IQ3_XXS", lambda p: not p.job.imatrix),
            _rule("Q4_K", "IQ3_M", lambda p: p.early or (p.job.eight and p.favoured)),
            _rule("Q5_K", "Q3_K_M", lambda p: p.very_early),
            _rule("Q4_K", "Q3_K_M", lambda p: p.favoured or not p.job.falcon),
            _rule("Q4_K", "Q3_K_L", lambda p: p.job.falcon),
            _rule("Q5_K", "Q3_K_L"),
            _rule("Q5_K", "Q4_K_S", lambda p: p.early and not p.job.falcon),
            _rule("Q6_K", "Q4_K_M", lambda p: p.very_early or (p.favoured and not p.job.falcon)),
            _rule("Q5_K", "Q4_K_M", lambda p: p.favoured),
            _rule("Q6_K", "Q5_K_M", lambda p: p.favoured),
            _rule("Q5_K", "IQ4_NL IQ4_XS", lambda p: p.early and not p.job.imatrix),
            _rule("Q4_1", "Q4_0", lambda p: p.early and p.job.imatrix),
            _rule("Q5_1", "Q5_0", lambda p: p.early and p.job.imatrix),
        ),
        _Role.OTHER: (),
    }
)

# For rows that are no multiple of a block: smaller blocks at about the same precision.
_SMALLER = MappingProxyType(
    {
        "Q2_0": "Q4_0",
        "Q2_K": "Q4_0",
        "Q3_K": "Q4_0",
        "TQ1_0": "Q4_0",
        "TQ2_0": "Q4_0",
        "Q4_K": "Q5_0",
        "Q5_K": "Q5_1",
        "Q6_K": "Q8_0",
        "IQ1_S": "IQ4_NL",
        "IQ1_M": "IQ4_NL",
        "IQ2_XXS": "IQ4_NL",
        "IQ2_XS": "IQ4_NL",
        "IQ2_S": "IQ4_NL",
        "IQ3_XXS": "IQ4_NL",
        "IQ3_S": "IQ4_NL",
        "IQ4_XS": "IQ4_NL",
    }
)

_NEEDS_IMATRIX = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"})


# What ggml makes with importances only, wherever it stands: without, it aborts the process.
_ABORTING = frozenset({"IQ1_S", "IQ2_XXS", "IQ2_XS"})


def choose(
    tensors: Iterable[Tensor],
    method: str,
    *,
    architecture: str,
    heads: int,
    kv_heads: int,
    layers: int,
    experts: int = 0,
    imatrix: bool = False,
    pure: bool = False,
) -> tuple[TensorInfo, ...]:
    """Plan a quantized file: its tensors in the order of the file, with types and offsets.

    Args:
        tensors: Those of the full-precision file, in any order.
        method: Name of a file type.
        architecture: llama.cpp's name of it.
        heads: Heads of queries, in the first layer.
        kv_heads: Heads of keys and values, in the first layer.
        layers: As the file says: layers that only predict further tokens count.
        experts: Experts in a layer, 0 in a dense model.
        imatrix: An importance matrix will be there.
        pure: As ``--pure``: the base type wherever rows allow it, for embedding and output too.

    Raises:
        ValueError: llama.cpp would refuse, or nobody here knows what it would do.
    """
    _check(method, architecture)
    known = sorted(tensors, key=lambda tensor: order(tensor.name))
    roles = [_role(tensor.name) for tensor in known]
    job = _Job(
        method=method,
        layers=layers,
        values=roles.count(_Role.VALUE),
        sharing=heads // kv_heads if kv_heads else 0,
        experts=experts,
        imatrix=imatrix,
        falcon=architecture == "falcon",
        seventy_b=_is_seventy_b(architecture, layers, heads, kv_heads),
        tied=_Role.OUTPUT not in roles,
    )
    plain = pure or by_name(job.base).is_float
    seen: Counter[_Role] = Counter()
    planned: list[TensorInfo] = []
    offset = 0
    for tensor, role in zip(known, roles, strict=True):
        chosen = tensor.type
        if _is_quantized(tensor):
            wish = job.base if plain else _wish(_place(job, tensor, role, seen[role]))
            chosen = _fit(wish, tensor)
            _check_importance(job, tensor.name, role, chosen)
            seen[role] += 1
        info = TensorInfo(name=tensor.name, shape=tensor.shape, type=chosen, offset=offset)
        planned.append(info)
        offset += -(-info.n_bytes // ALIGNMENT) * ALIGNMENT
    return tuple(planned)


def unweighed(planned: Iterable[TensorInfo]) -> tuple[TensorInfo, ...]:
    """Return what needs importances that no importance matrix has: embedding and output.

    That is so in pure files of the smallest types only. llama.cpp does not ask for them, and its
    tool would abort; importances that are all equal are enough.
    """
    ends = {_Role.OUTPUT, _Role.EMBEDDING}
    return tuple(one for one in planned if one.type in _ABORTING and _role(one.name) in ends)


def _check(method: str, architecture: str) -> None:
    if method not in FILE_TYPES:
        raise ValueError(f"unknown file type {method!r} (known: {', '.join(FILE_TYPES)})")
    if method == "NVFP4":
        raise ValueError("llama.cpp quantizes no file to NVFP4: only a converter writes it")
    if architecture in _UNPLANNED:
        raise ValueError(f"{architecture} has rules of its own that are not known here")


def _role(name: str) -> _Role:
    if name == "output.weight":
        return _Role.OUTPUT
    if name in _EMBEDDINGS:
        return _Role.EMBEDDING
    return next((role for part, role in _ROLES if part in name), _Role.OTHER)


def _n_dims(shape: tuple[int, ...]) -> int:
    """Number of dimensions as ggml counts them: ones at the end do not."""
    return max((number for number, size in enumerate(shape, 1) if size > 1), default=1)


def _is_quantized(tensor: Tensor) -> bool:
    return (
        _n_dims(tensor.shape) > 1
        and tensor.name.endswith("weight")
        and tensor.name not in _KEPT_NAMES
        and not _KEPT.search(tensor.name)
    )


def _is_seventy_b(architecture: str, layers: int, heads: int, kv_heads: int) -> bool:
    if _SEVENTY_B.get(architecture) != layers:
        return False
    # Llama 1 has as many layers and a head of keys for each of queries: 65B.
    return architecture != "llama" or heads != kv_heads


def _place(job: _Job, tensor: Tensor, role: _Role, seen: int) -> _Place:
    if job.tied and role is _Role.EMBEDDING:
        role = _Role.OUTPUT
    index = seen
    # A layer may hold several tensors of experts, so there the name tells. The rules for the
    # smallest types count nevertheless.
    if job.experts > 1 and role in _IN_LAYERS and job.method not in _COUNTING:
        index, _ = order(tensor.name)
        if not 0 <= index < job.layers:
            raise ValueError(f"{tensor.name} is in none of the {job.layers} layers")
    return _Place(job=job, role=role, index=index, shape=tensor.shape)


def _wish(place: _Place) -> str:
    """Tell the type that a tensor is to get if its rows allow it."""
    job = place.job
    if job.method == "MXFP4_MOE" and place.role is not _Role.OUTPUT:
        return job.base if place.stacked else "Q8_0"
    return next(
        (
            rule.type
            for rule in _RULES[place.role]
            if job.method in rule.methods and rule.applies(place)
        ),
        job.base,
    )


def _fit(chosen: str, tensor: Tensor) -> str:
    """Tell the type that a tensor gets, given its row length."""
    row = tensor.shape[0]
    if row % by_name(chosen).block_size == 0:
        return chosen
    if chosen not in _SMALLER and by_name(chosen).block_size > 32:
        raise ValueError(
            f"{tensor.name} has rows of {row} weights, which is no multiple of the "
            f"{by_name(chosen).block_size} in a block of {chosen}, and llama.cpp has no type to "
            "use instead"
        )
    smaller = _SMALLER.get(chosen, chosen)
    return smaller if row % by_name(smaller).block_size == 0 else "F16"


def _check_importance(job: _Job, name: str, role: _Role, chosen: str) -> None:
    if job.imatrix or role in {_Role.OUTPUT, _Role.EMBEDDING}:
        return
    if chosen in _NEEDS_IMATRIX or (chosen == "Q2_K" and job.method == "Q2_K_S"):
        raise ValueError(f"{job.method} needs an importance matrix: {name} would be {chosen}")
