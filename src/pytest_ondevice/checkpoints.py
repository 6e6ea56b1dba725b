"""Bits per weight of a Hugging Face checkpoint, from its tensors and never from a method's name.

A weight is what it is in ``bpw.py``: an element that was trained. Quantizing packs several into one
element of a tensor and adds tensors of its own: scales, zero points, group indices, code books, the
shape, the settings. None of those was trained; they are made from the weights by quantizing, and
say nothing without them. So they count as *bytes of the weights that they belong to* and as no
weights. GGUF is the same case: the scales of a Q4_K block lie inside the block, are counted in its
bytes, and nobody would call them weights; here they only happen to lie in tensors beside it. Were
they counted as weights, a method would look the better the more scales it adds. For the same reason
a weight with all its parts is one tensor of a tally, under the name that it has unquantized.

What counts neither as weights nor as their bytes:

- tables of the rotary embedding, causal masks: constants that the architecture determines;
- tensors of integers that belong to no quantized weight: indices;
- scales of the key-value cache, which belong to no weight;
- a copy of the embedding as ``lm_head``, where the configuration says that the two are tied: a
  device holds them once. A head of another dtype or shape is no copy, whatever is said.

Which weights are quantized is seen from the tensors alone. What a configuration says it leaves
out (``modules_to_not_convert``, ``llm_int8_skip_modules``, ``ignore``, ``skip_modules``) is not
read. Of its settings only those are used without which a packed size has no meaning, and each is
checked against the sizes of the parts.

Only headers are known here, so where the real shape is in the data, padding cannot be told from
weights. Such tensors are refused where padding is usual (compressed-tensors' padded blocks), and
read as unpadded where it takes an odd shape to have any: an odd number of weights in 4 bits of
bitsandbytes, a row that is no multiple of 32 bits in pack-quantized without groups.

Sources of the names and sizes: ``QuantState.as_dict`` in bitsandbytes; ``QuantLinear.pack`` in
AutoGPTQ; ``WQLinear_GEMM`` in AutoAWQ; ``pack_quantized.py`` and ``naive_quantized.py`` in
compressed-tensors; ``hqq/core/bitpack.py`` and ``HQQLinear.state_dict_keys`` in hqq;
``torchao/prototype/safetensors`` in torchao; ``finegrained_fp8.py`` in transformers.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .bpw import BpwAccount, Entry, Kind, Tally, sum_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from .formats.safetensors import Checkpoint, StoredTensor

    Table = Mapping[str, StoredTensor]

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_FP8 = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
_INTEGERS = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})

# Names of modules in the models of transformers. Stacks of layers are called so in Llama and most
# others, GPT-2, MPT and T5, and BERT; the first such number is the layer's, what follows is inside.
_BODY = re.compile(r"(?:\w+\.)*?(?:layers|h|blocks?|layer)\.(\d+)\.")
_NORM = re.compile(r"(?:norm(?:_f)?|(?:^|\.)ln_\w+)(?:\.|$)", re.IGNORECASE)
_OUTPUT = re.compile(r"(?:^output|(?:^|\.)(?:lm_head|embed_out))(?:\.|$)")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_\w+|\w*embeddings?|wte|wpe|shared)(?:\.|$)")

_CONSTANT = re.compile(
    r"(?:^|\.)(?:rotary\w*\.[\w.]+|rope\.[\w.]+|(?:original_)?inv_freq|freqs_cis|masked_bias)$"
)
_MASK = re.compile(r"(?:^|\.)attn(?:ention)?\.bias$")  # with four dimensions; else it is a bias
_CACHE_SCALE = re.compile(r"(?:^|\.)(?:[qkv]|kv)_(?:scale|zero_point|global_scale)$")
_PART = re.compile(
    r"(?:\.(?:SCB|weight_format|absmax|quant_map|nested_absmax|nested_quant_map|qweight|qzeros"
    r"|g_idx|W_q|weight_packed|weight_shape|weight_shape_original|weight_zero_point|weight_g_idx"
    r"|weight_global_scale|input_global_scale|quant_state\.\w+)"
    r"|\.weight_scale(?:_2)?|_scale_inv|\._\w+_(?:qdata|scale_and_zero))$"
)
"""Names that only parts of quantized weights have."""
_PART_BY_METHOD = {"gptq": (".scales",), "awq": (".scales",), "hqq": (".zero", ".nbits")}
"""Ends of names that could be anything elsewhere."""


@dataclass(frozen=True, slots=True)
class _Packed:
    """One quantized weight.

    Attributes:
        name: Its name as it was before.
        scheme: How it is stored.
        n_weights: How many weights it holds.
        parts: The tensors that it is made of.
    """

    name: str
    scheme: str
    n_weights: int
    parts: tuple[StoredTensor, ...]


def kind_of(name: str) -> Kind:
    """Tell from a weight's name which part of the model it belongs to."""
    if _BODY.match(name):
        return Kind.BODY
    if _NORM.search(name):
        return Kind.NORM
    # First, because GPT-NeoX calls its output embed_out.
    if _OUTPUT.search(name):
        return Kind.OUTPUT
    return Kind.EMBEDDING if _EMBEDDING.search(name) else Kind.OTHER


def layer_of(name: str) -> int | None:
    """Tell from a weight's name the number of its repeating layer, None outside them."""
    match = _BODY.match(name)
    return int(match[1]) if match else None


def account(checkpoint: Checkpoint) -> BpwAccount:
    """Count the weights and bytes of a checkpoint, as `account_tensors` does."""
    return account_tensors(checkpoint.tensors, checkpoint.config, checkpoint.metadata)


def account_tensors(
    tensors: Iterable[StoredTensor],
    config: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> BpwAccount:
    """Count the weights and bytes of a checkpoint's tensors.

    Args:
        tensors: Those of all its files, in any order.
        config: Its ``config.json``.
        metadata: ``__metadata__`` of its files, in which torchao says what its tensors are.

    Returns:
        The account, with the kinds of ``bpw.py``: body is the repeating layers. Its histogram is
        divided by the dtype of plain floats (``BF16``) and by the scheme of quantized weights
        (``int8``, ``nf4``, ``fp4``, ``gptq-4``, ``awq-4``, ``ct-int4``, ``ct-fp8``, ``hqq-4``,
        ``torchao-int4``, ``fp8``).

    Raises:
        ValueError: The tensors contradict each other or the configuration, or are quantized in a
            way that is not known here; one clause that names the tensor.
    """
    table: dict[str, StoredTensor] = {}
    for tensor in tensors:
        if tensor.name in table:
            raise ValueError(f"tensor {tensor.name!r} is there twice")
        table[tensor.name] = tensor
    method, settings = _quantization(config)
    packed = _METHODS[method](table, settings, metadata or {}) if method else []
    used = _used(packed, table)
    left = [tensor for name, tensor in table.items() if name not in used]
    copies = _tied_copies(left, config)
    entries = [_packed_entry(weight) for weight in packed]
    not_counted = Tally()
    for tensor in left:
        if tensor.name in copies or _is_no_weight(tensor, method):
            not_counted = Tally(
                not_counted.n_tensors + 1,
                not_counted.n_weights + tensor.n_elements,
                not_counted.n_bytes + tensor.n_bytes,
            )
        else:
            entries.append(_plain_entry(tensor, method))
    if method and not packed:
        raise ValueError(_nothing_packed(method, left))
    return sum_up(entries, not_counted)


def _used(packed: Iterable[_Packed], table: Table) -> set[str]:
    """Names of the tensors that belong to quantized weights.

    Raises:
        ValueError: One belongs to two weights, or a weight is there a second time, unquantized.
    """
    used: set[str] = set()
    for weight in packed:
        names = {part.name for part in weight.parts}
        if twice := sorted(names & used):
            raise ValueError(f"tensor {twice[0]!r} belongs to two quantized weights")
        if weight.name in table and weight.name not in names:
            raise ValueError(f"tensor {weight.name!r} is there both quantized and unquantized")
        used |= names
    return used


def _packed_entry(weight: _Packed) -> Entry:
    return Entry(
        name=weight.name,
        kind=kind_of(weight.name),
        layer=layer_of(weight.name),
        scheme=weight.scheme,
        n_weights=weight.n_weights,
        n_bytes=sum(part.n_bytes for part in weight.parts),
        is_matrix=True,  # methods quantize matrices only
        is_float=False,
    )


def _plain_entry(tensor: StoredTensor, method: str) -> Entry:
    """Count a tensor that belongs to no quantized weight.

    Raises:
        ValueError: Its elements are no weights as they are.
    """
    name, dtype = tensor.name, tensor.dtype
    if dtype in _INTEGERS:
        raise ValueError(
            f"tensor {name!r} holds weights in {dtype}, and no scales that say what they mean"
        )
    if dtype in _FP8 and method:
        raise ValueError(f"tensor {name!r} is {dtype} without a scale that its method has for it")
    if dtype not in _FLOATS | _FP8:
        raise ValueError(f"tensor {name!r} is {dtype}, which alone holds no weights")
    return Entry(
        name=name,
        kind=kind_of(name),
        layer=layer_of(name),
        scheme=dtype,
        n_weights=tensor.n_elements,
        n_bytes=tensor.n_bytes,
        is_matrix=tensor.n_elements > (tensor.shape or (1,))[-1],
        is_float=dtype in _FLOATS,
    )


def _is_no_weight(tensor: StoredTensor, method: str) -> bool:
    """Whether a tensor that belongs to no quantized weight holds none itself.

    Raises:
        ValueError: It is a part of a quantized weight that is not there.
    """
    name = tensor.name
    if method and _CACHE_SCALE.search(name):
        return True
    if _PART.search(name) or name.endswith(_PART_BY_METHOD.get(method, ())):
        how = f"of a weight quantized by {method}" if method else "of a quantized weight"
        why = "is not there or not whole" if method else "its configuration does not mention"
        raise ValueError(f"tensor {name!r} looks like a part {how}, which {why}")
    if _CONSTANT.search(name) or (_MASK.search(name) and len(tensor.shape) == 4):
        return True
    # Indices are called anything but this.
    return tensor.dtype in _INTEGERS and not name.endswith("weight")


def _tied_copies(tensors: Iterable[StoredTensor], config: Mapping[str, Any]) -> set[str]:
    """Names of outputs that are the embedding a second time."""
    inner = config.get("text_config")
    tied = config.get("tie_word_embeddings") is True or (
        isinstance(inner, dict) and inner.get("tie_word_embeddings") is True
    )
    if not tied:
        return set()
    weights = [one for one in tensors if one.name.endswith("weight")]
    embeddings = {(one.dtype, one.shape) for one in weights if kind_of(one.name) is Kind.EMBEDDING}
    return {
        one.name
        for one in weights
        if kind_of(one.name) is Kind.OUTPUT and (one.dtype, one.shape) in embeddings
    }


def _nothing_packed(method: str, tensors: Iterable[StoredTensor]) -> str:
    """Say that a configuration promises what is not there, with a weight that should be."""
    matrices = (one for one in tensors if kind_of(one.name) is Kind.BODY and len(one.shape) > 1)
    first = min(matrices, key=lambda one: one.name, default=None)
    example = f"; tensor {first.name!r} is {first.dtype}" if first else ""
    return f"its configuration says {method}, and no weight is quantized so{example}"


def _quantization(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Find the method of quantization, empty without one, and its settings."""
    inner = config.get("text_config")
    for place in (config, inner if isinstance(inner, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            if (found := place.get(key)) is not None:
                return _method(found), found
    return "", {}


def _method(settings: object) -> str:
    if not isinstance(settings, dict):
        raise ValueError(  # noqa: TRY004  (a file's type, not the caller's)
            "its quantization_config is no object"
        )
    said = settings.get("quant_method")
    if said is None:
        # As configurations were written before there was a quant_method.
        if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
            said = "bitsandbytes"
        elif "config_groups" in settings:
            said = "compressed-tensors"
        else:
            raise ValueError("its quantization_config has no quant_method")
    method = str(said).lower().replace("_", "-")
    if method not in _METHODS:
        raise ValueError(
            f"it is quantized by {str(said)[:40]!r}, which cannot be counted (what can: "
            f"{', '.join(_METHODS)})"
        )
    return method


# Looking at parts


def _part(table: Table, name: str, owner: str) -> StoredTensor:
    """Look up what a packed tensor cannot do without."""
    try:
        return table[name]
    except KeyError:
        raise ValueError(f"tensor {owner!r} has no {name!r} to go with it") from None


def _optional(table: Table, *names: str) -> tuple[StoredTensor, ...]:
    return tuple(table[name] for name in names if name in table)


def _expect_shape(tensor: StoredTensor, *shapes: tuple[int, ...]) -> None:
    if tensor.shape not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(
            f"tensor {tensor.name!r} has shape {list(tensor.shape)} (expected {expected})"
        )


def _expect_dtype(tensor: StoredTensor, *dtypes: str) -> None:
    if tensor.dtype not in dtypes:
        raise ValueError(
            f"tensor {tensor.name!r} is {tensor.dtype} (expected {' or '.join(dtypes)})"
        )


def _expect_matrix(tensor: StoredTensor) -> tuple[int, int]:
    if len(tensor.shape) != 2 or not tensor.n_elements:
        raise ValueError(
            f"tensor {tensor.name!r} has shape {list(tensor.shape)} (expected a matrix)"
        )
    return tensor.shape[0], tensor.shape[1]


def _expect_elements(tensor: StoredTensor, count: int) -> None:
    if tensor.n_elements != count:
        raise ValueError(
            f"tensor {tensor.name!r} has {tensor.n_elements} elements (expected {count})"
        )


def _integer(settings: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Read a setting that has to be a whole number.

    Raises:
        ValueError: It is missing or is something else.
    """
    value = settings.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(  # noqa: TRY004  (a file's type, not the caller's)
            f"its quantization_config has no whole number as {key}"
        )
    return value


def _one_of(settings: Mapping[str, Any], key: str, known: tuple[int, ...]) -> int:
    value = _integer(settings, key)
    if value not in known:
        raise ValueError(
            f"its quantization_config has {key} {value} (expected {', '.join(map(str, known))})"
        )
    return value


def _ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


# bitsandbytes

_BNB_STATE = ".quant_state.bitsandbytes__"
_BNB_BLOCKS = tuple(2**power for power in range(5, 13))  # 32 to 4096, by version and hardware


def _bitsandbytes(table: Table, settings: Mapping[str, Any], _: Mapping[str, str]) -> list[_Packed]:
    """LLM.int8() and the 4-bit types."""
    packed: list[_Packed] = []
    for name in table:
        weight, mark, scheme = name.rpartition(_BNB_STATE)
        if mark:
            packed.append(_bnb_4bit(table, weight, scheme))
        elif name.endswith(".SCB"):
            packed.append(_bnb_8bit(table, name.removesuffix(".SCB")))
    said = {
        key: bool(settings.get(key) or settings.get(f"_{key}"))
        for key in ("load_in_4bit", "load_in_8bit")
    }
    for one in packed:
        eight = one.scheme == "int8"
        if said["load_in_8bit"] != said["load_in_4bit"] and said["load_in_8bit"] != eight:
            bits = 8 if said["load_in_8bit"] else 4
            raise ValueError(
                f"tensor {one.name!r} is {one.scheme}, its configuration says {bits} bits"
            )
        kind = settings.get("bnb_4bit_quant_type")
        if not eight and said["load_in_4bit"] and kind is not None and kind != one.scheme:
            raise ValueError(
                f"tensor {one.name!r} is {one.scheme}, its configuration says {str(kind)[:40]!r}"
            )
    return packed


def _bnb_8bit(table: Table, module: str) -> _Packed:
    """A row per output in I8, with one F32 scale per row."""
    scales = table[f"{module}.SCB"]
    weight = _part(table, f"{module}.weight", scales.name)
    _expect_dtype(weight, "I8")
    rows, _ = _expect_matrix(weight)
    _expect_elements(scales, rows)
    parts = (weight, scales, *_optional(table, f"{module}.weight_format"))
    return _Packed(weight.name, "int8", weight.n_elements, parts)


def _bnb_4bit(table: Table, name: str, scheme: str) -> _Packed:
    """Two weights in a byte, in blocks with one scale; the scales may be quantized once more.

    The bytes may be stored as another dtype (``bnb_4bit_quant_storage``).
    """
    state = table[f"{name}{_BNB_STATE}{scheme}"]
    if scheme not in {"nf4", "fp4"}:
        raise ValueError(f"tensor {state.name!r} is of a type that is neither nf4 nor fp4")
    weight = _part(table, name, state.name)
    absmax = _part(table, f"{name}.absmax", name)
    code = _part(table, f"{name}.quant_map", name)
    n_weights = 2 * weight.n_bytes
    if not n_weights or not any(
        absmax.n_elements == _ceil(n_weights, block) for block in _BNB_BLOCKS
    ):
        raise ValueError(
            f"tensor {absmax.name!r} has {absmax.n_elements} scales for {n_weights} weights, "
            "which is no block size of bitsandbytes"
        )
    _expect_elements(code, 16)
    parts = (weight, absmax, code, state)
    if absmax.dtype in _FLOATS:
        return _Packed(name, scheme, n_weights, parts)
    _expect_dtype(absmax, "U8")
    nested = _part(table, f"{name}.nested_absmax", absmax.name)
    nested_code = _part(table, f"{name}.nested_quant_map", absmax.name)
    _expect_elements(nested, _ceil(absmax.n_elements, 256))
    _expect_elements(nested_code, 256)
    return _Packed(name, scheme, n_weights, (*parts, nested, nested_code))


# GPTQ and AWQ


def _gptq(table: Table, settings: Mapping[str, Any], _: Mapping[str, str]) -> list[_Packed]:
    """Integers of ``bits`` along the input, without gaps, in columns of I32.

    The zero points are packed along the output and so tell the bits, which ``dynamic`` may set
    module by module.
    """
    known = (2, 3, 4, 8)
    bits = _one_of(settings, "bits", known)
    group_size = _integer(settings, "group_size", -1)
    is_dynamic = bool(settings.get("dynamic"))
    packed: list[_Packed] = []
    for name, weight in table.items():
        if not name.endswith(".qweight"):
            continue
        module = name.removesuffix(".qweight")
        zeros, scales = (_part(table, f"{module}.{one}", name) for one in ("qzeros", "scales"))
        for tensor in (weight, zeros):
            _expect_dtype(tensor, "I32")
        _expect_dtype(scales, *sorted(_FLOATS))
        rows, n_out = _expect_matrix(weight)
        n_groups, zero_columns = _expect_matrix(zeros)
        own, rest = divmod(zero_columns * 32, n_out)
        if rest or own not in known or (own != bits and not is_dynamic):
            raise ValueError(
                f"tensor {zeros.name!r} has {zero_columns} columns for {n_out} outputs of {bits} "
                f"bits (expected {_ceil(n_out * bits, 32)})"
            )
        n_in, rest = divmod(rows * 32, own)
        if rest:
            raise ValueError(f"tensor {name!r} has {rows} rows, no whole number of {own} bits")
        _expect_shape(scales, (n_groups, n_out))
        if not is_dynamic and n_groups != (1 if group_size <= 0 else _ceil(n_in, group_size)):
            raise ValueError(
                f"tensor {scales.name!r} has {n_groups} groups for {n_in} inputs, its "
                f"configuration says group_size {group_size}"
            )
        index = _optional(table, f"{module}.g_idx")
        if settings.get("desc_act") is True and not index:
            _part(table, f"{module}.g_idx", name)
        for one in index:
            _expect_shape(one, (n_in,))
        parts = (weight, zeros, scales, *index)
        packed.append(_Packed(f"{module}.weight", f"gptq-{own}", n_in * n_out, parts))
    return packed


def _awq(table: Table, settings: Mapping[str, Any], _: Mapping[str, str]) -> list[_Packed]:
    """Integers along the output in rows of I32: the layout called GEMM."""
    version = str(settings.get("version", "gemm")).lower()
    if version.startswith("gemv"):
        raise ValueError(f"its AWQ layout is {version[:40]!r}, which cannot be counted")
    bits = _one_of(settings, "bits" if "bits" in settings else "w_bit", (4, 8))
    key = "group_size" if "group_size" in settings else "q_group_size"
    group_size = _integer(settings, key, -1)
    packed: list[_Packed] = []
    for name, weight in table.items():
        if not name.endswith(".qweight"):
            continue
        module = name.removesuffix(".qweight")
        zeros, scales = (_part(table, f"{module}.{one}", name) for one in ("qzeros", "scales"))
        for tensor in (weight, zeros):
            _expect_dtype(tensor, "I32")
        _expect_dtype(scales, *sorted(_FLOATS))
        n_in, columns = _expect_matrix(weight)
        n_out = columns * (32 // bits)
        n_groups = 1 if group_size <= 0 else _ceil(n_in, group_size)
        _expect_shape(zeros, (n_groups, columns))
        _expect_shape(scales, (n_groups, n_out))
        parts = (weight, zeros, scales)
        packed.append(_Packed(f"{module}.weight", f"awq-{bits}", n_in * n_out, parts))
    return packed


# compressed-tensors

_CT_EXTRAS = (
    "weight_zero_point",
    "weight_g_idx",
    "weight_global_scale",
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "output_scale",
    "output_zero_point",
)
_CT_NAIVE = ("int-quantized", "float-quantized", "naive-quantized")


@dataclass(frozen=True, slots=True)
class _Group:
    """How compressed-tensors quantizes some of the weights."""

    format: str
    bits: int
    group_size: int  # 0: one scale for a row, or for all


def _compressed_tensors(
    table: Table, settings: Mapping[str, Any], _: Mapping[str, str]
) -> list[_Packed]:
    """Weights packed to I32, or one in each element of I8 or F8."""
    sparsity = settings.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
        raise ValueError(
            f"its sparsity format is {str(sparsity['format'])[:40]!r}, which cannot be counted"
        )
    groups = _ct_groups(settings)
    packed: list[_Packed] = []
    for name, tensor in table.items():
        module, part = name.rpartition(".")[::2]
        if part == "weight_packed":
            packed.append(_ct_packed(table, module, groups))
        elif part == "weight_scale" and f"{module}.weight" in table:
            weight = table[f"{module}.weight"]
            if not any(group.format in _CT_NAIVE for group in groups):
                raise ValueError(f"tensor {weight.name!r} is not packed as its configuration says")
            packed.append(_ct_naive(table, module, weight, tensor))
    return packed


def _ct_groups(settings: Mapping[str, Any]) -> tuple[_Group, ...]:
    """Read the groups of a configuration that quantize weights.

    Raises:
        ValueError: There is none, or one is of a format that is not known here.
    """
    configured = settings.get("config_groups")
    if not isinstance(configured, dict):
        raise ValueError(  # noqa: TRY004  (a file's type, not the caller's)
            "its quantization_config has no config_groups"
        )
    groups: set[_Group] = set()
    for said in configured.values():
        weights = said.get("weights") if isinstance(said, dict) else None
        if not isinstance(weights, dict):
            continue
        form = str(said.get("format") or settings.get("format"))
        if form not in {"pack-quantized", *_CT_NAIVE}:
            raise ValueError(f"its format is {form[:40]!r}, which cannot be counted")
        bits = _integer(weights, "num_bits")
        if form == "pack-quantized" and bits not in {4, 8}:
            raise ValueError(f"its format is pack-quantized of {bits} bits (expected 4 or 8)")
        by_group = weights.get("strategy", "group" if weights.get("group_size") else "") == "group"
        group_size = _integer(weights, "group_size") if by_group else 0
        if group_size < 0 or (by_group and not group_size):
            raise ValueError(f"its quantization_config has a group_size of {group_size}")
        groups.add(_Group(form, bits, group_size))
    if not groups:
        raise ValueError("its quantization_config has no group that quantizes weights")
    return tuple(groups)


def _ct_packed(table: Table, module: str, groups: tuple[_Group, ...]) -> _Packed:
    """Rows of I32, each with as many integers as fit, a row's last one padded."""
    weight = table[f"{module}.weight_packed"]
    scale = _part(table, f"{module}.weight_scale", weight.name)
    shape = _part(table, f"{module}.weight_shape", weight.name)
    _expect_dtype(weight, "I32")
    if len(weight.shape) < 2 or not weight.n_elements:
        raise ValueError(f"tensor {weight.name!r} has shape {list(weight.shape)}")
    _expect_elements(shape, len(weight.shape))
    index = table.get(f"{module}.weight_g_idx")
    lead, columns = weight.shape[:-1], weight.shape[-1]
    found = {
        (group.bits, n_in)
        for group in groups
        if group.format == "pack-quantized"
        and (n_in := _ct_row(scale.shape, lead, columns, group))
        and (index is None or index.n_elements == n_in)
    }
    if len(found) != 1:
        how = "several ways" if found else "no way"
        raise ValueError(
            f"tensor {weight.name!r} of shape {list(weight.shape)} with {scale.name!r} of shape "
            f"{list(scale.shape)} fits its configuration in {how}"
        )
    ((bits, n_in),) = found
    zeros = table.get(f"{module}.weight_zero_point")
    if zeros is not None and zeros.shape != scale.shape:
        tail = scale.shape[len(lead) :] or (1,)
        _expect_shape(zeros, scale.shape, (*lead[:-1], _ceil(lead[-1], 32 // bits), *tail))
    extras = _optional(table, *(f"{module}.{one}" for one in _CT_EXTRAS))
    n_weights = math.prod(lead) * n_in
    parts = (weight, scale, shape, *extras)
    return _Packed(f"{module}.weight", f"ct-int{bits}", n_weights, parts)


def _ct_row(scale: tuple[int, ...], lead: tuple[int, ...], columns: int, group: _Group) -> int:
    """Length of a row by one group's settings, 0 where the sizes do not fit them."""
    per_word = 32 // group.bits
    full = columns * per_word
    if not group.group_size:
        return full if scale in {(*lead, 1), lead, (1,), ()} else 0
    if scale[:-1] != lead or not scale[-1]:
        return 0
    whole = scale[-1] * group.group_size
    if _ceil(whole, per_word) == columns:
        return whole
    return full if _ceil(full, group.group_size) == scale[-1] else 0  # the last group is shorter


def _ct_naive(table: Table, module: str, weight: StoredTensor, scale: StoredTensor) -> _Packed:
    """One weight in each element, however few bits of it are used."""
    _expect_dtype(weight, "I8", *sorted(_FP8))
    padded = f"{module}.weight_shape_original"
    if padded in table:
        raise ValueError(
            f"tensor {weight.name!r} is padded to whole blocks, and its real shape is in the data "
            f"of {padded!r}"
        )
    _expect_scale(weight, scale)
    extras = _optional(table, *(f"{module}.{one}" for one in _CT_EXTRAS))
    scheme = "ct-int8" if weight.dtype == "I8" else "ct-fp8"
    return _Packed(weight.name, scheme, weight.n_elements, (weight, scale, *extras))


def _expect_scale(weight: StoredTensor, scale: StoredTensor) -> None:
    """A scale is for all weights, for a row each, or for equal blocks of them."""
    fits = scale.n_elements == 1 or scale.shape == weight.shape[:-1]
    if len(scale.shape) == len(weight.shape):
        pairs = zip(scale.shape, weight.shape, strict=True)
        # n blocks of one size cover m elements for some size.
        fits = fits or all(0 < n <= m and _ceil(m, _ceil(m, n)) == n for n, m in pairs)
    if not fits or not weight.n_elements:
        raise ValueError(
            f"tensor {scale.name!r} of shape {list(scale.shape)} does not fit {weight.name!r} of "
            f"shape {list(weight.shape)}"
        )


# HQQ

_HQQ_EXTRAS = (
    "axis",
    "channel_wise",
    "compute_dtype",
    "encoded_state_dict",
    "group_size",
    "nbits",
    "offload_meta",
    "optimize",
    "packing",
    "quant_scale",
    "quant_zero",
    "round_zero",
    "shape",
    "stores_quant_config",
    "unpack_view_dtype",
    "view_as_float",
)


def _hqq(table: Table, settings: Mapping[str, Any], _: Mapping[str, str]) -> list[_Packed]:
    """Integers packed along the first dimension of the weights reshaped to groups.

    8, 4, 2 and 1 bits fill bytes, which may be stored as floats; of 3 bits ten are in an I32, and
    rows are added until their number is a multiple of ten.
    """
    packed: list[_Packed] = []
    for name, weight in table.items():
        if not name.endswith(".W_q"):
            continue
        module = name.removesuffix(".W_q")
        scale, zero = (_part(table, f"{module}.{one}", name) for one in ("scale", "zero"))
        _expect_elements(zero, scale.n_elements)
        params = _hqq_params(settings, module)
        bits = _one_of(params, "nbits", (1, 2, 3, 4, 8))
        group_size = _integer(params, "group_size", 0)
        axis = params.get("axis")
        n_weights = _hqq_weights(weight, scale.n_elements, bits, group_size, axis)
        extras = _optional(table, *(f"{module}.{one}" for one in _HQQ_EXTRAS))
        parts = (weight, scale, zero, *extras)
        packed.append(_Packed(f"{module}.weight", f"hqq-{bits}", n_weights, parts))
    return packed


def _hqq_weights(
    weight: StoredTensor, n_groups: int, bits: int, group_size: int, axis: object
) -> int:
    """Count the weights of groups, or of rows or columns where ``group_size`` is 0.

    Groups are columns where ``axis`` is 0 and rows where it is 1; its default has changed.

    Raises:
        ValueError: The bytes are not those of so many.
    """
    if group_size <= 0:
        if bits == 3:
            raise ValueError(f"tensor {weight.name!r} is padded, and no groups tell by how much")
        n_weights = weight.n_bytes * 8 // bits
        n_packed, _ = _expect_matrix(weight)
        by_row = n_packed * 8 == n_groups * bits
        by_column = weight.n_bytes == n_packed * n_groups
        fits = by_column if axis == 0 else by_row if axis == 1 else by_row or by_column
    else:
        n_weights = n_groups * group_size
        if bits == 3:
            columns = 4 * _ceil(group_size, 10) * n_groups
            rows = 4 * _ceil(n_groups, 10) * group_size
            sizes = {columns} if axis == 0 else {rows} if axis == 1 else {columns, rows}
        else:
            sizes = {_ceil(n_weights * bits, 8)}
        fits = n_weights > 0 and weight.n_bytes in sizes
    if not fits:
        raise ValueError(
            f"tensor {weight.name!r} has {weight.n_bytes} bytes for {n_groups} groups of "
            f"{group_size} weights of {bits} bits"
        )
    return n_weights


def _hqq_params(settings: Mapping[str, Any], module: str) -> Mapping[str, Any]:
    """Find the settings of one module: those for all, or those for the last two of its names."""
    config = settings.get("quant_config")
    if isinstance(config, dict):
        tag = ".".join(module.split(".")[-2:])
        for place in (config, config.get(tag)):
            params = place.get("weight_quant_params") if isinstance(place, dict) else None
            if isinstance(params, dict):
                return params
    raise ValueError(f"tensor '{module}.W_q' has no settings in its quantization_config")


# torchao

_AO_FACTOR: Mapping[str, tuple[str, tuple[str, ...], int]] = {
    # type: (scheme, dtypes of qdata, weights in one element)
    "Float8Tensor": ("torchao-float8", tuple(sorted(_FP8)), 1),
    "Int8Tensor": ("torchao-int8", ("I8",), 1),
    "IntxUnpackedToInt8Tensor": ("torchao-intx", ("I8",), 1),
    "Int4Tensor": ("torchao-int4", ("I8", "U8"), 2),
    "Int4PlainInt32Tensor": ("torchao-int4", ("I32",), 8),
    "Int4TilePackedTo4dTensor": ("torchao-int4", ("I32",), 8),
}
_AO_PADDED = "Int4TilePackedTo4dTensor"


def _torchao(
    table: Table, settings: Mapping[str, Any], metadata: Mapping[str, str]
) -> list[_Packed]:
    """What ``flatten_tensor_state_dict`` made of tensor subclasses; the metadata says which."""
    del settings  # the metadata say it tensor by tensor
    packed: list[_Packed] = []
    for name, text in metadata.items():
        said = _ao_object(text)
        names, kind = said.get("_tensor_data_names"), said.get("_type")
        if not isinstance(names, list) or not isinstance(kind, str):
            continue
        if kind not in _AO_FACTOR:
            raise ValueError(f"tensor {name!r} is a {kind[:40]!r} of torchao, which is not known")
        module, _, own = name.rpartition(".")
        prefix = f"{module}._{own}_"
        parts = tuple(_part(table, f"{prefix}{part}", name) for part in dict.fromkeys(names))
        data = _part(table, f"{prefix}qdata", name)
        if data not in parts or len(parts) < 2:
            raise ValueError(f"tensor {name!r} is quantized and lists no data or no scales")
        attributes = said.get("_data")
        shape = attributes.get("shape") if isinstance(attributes, dict) else None
        scheme, dtypes, factor = _AO_FACTOR[kind]
        _expect_dtype(data, *dtypes)
        room = data.n_elements * factor
        n_weights = _ao_product(name, shape) if shape is not None else room
        # Tiles are whole, so there may be room for more weights than there are.
        if not 0 < n_weights <= room or (n_weights < room and kind != _AO_PADDED):
            raise ValueError(
                f"tensor {data.name!r} has room for {room} weights, its metadata say {n_weights}"
            )
        if shape is None and kind == _AO_PADDED:
            raise ValueError(f"tensor {name!r} is padded, and its metadata do not say its shape")
        packed.append(_Packed(name, scheme, n_weights, parts))
    return packed


def _ao_object(text: str) -> dict[str, Any]:
    """Read a value of the metadata, as an empty object if it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _ao_product(name: str, shape: object) -> int:
    if not isinstance(shape, list) or not all(type(one) is int and one > 0 for one in shape):
        raise ValueError(f"tensor {name!r} has no shape in its metadata")
    return math.prod(shape)


# FP8


def _fp8(table: Table, settings: Mapping[str, Any], _: Mapping[str, str]) -> list[_Packed]:
    """F8 with a scale for each block of ``weight_block_size``, or one for all."""
    block = settings.get("weight_block_size")
    if block is not None and not (
        isinstance(block, list)
        and len(block) == 2
        and all(type(one) is int and one > 0 for one in block)
    ):
        raise ValueError("its quantization_config has no two sizes as weight_block_size")
    packed: list[_Packed] = []
    for name, weight in table.items():
        if weight.dtype not in _FP8:
            continue
        scales = _optional(table, f"{name}_scale_inv", f"{name}_scale")
        if not scales:
            raise ValueError(f"tensor {name!r} is {weight.dtype} and has no '{name}_scale_inv'")
        scale = scales[0]
        if block and len(weight.shape) > 1 and scale.n_elements != 1:
            *lead, rows, columns = weight.shape
            _expect_shape(scale, (*lead, _ceil(rows, block[0]), _ceil(columns, block[1])))
        _expect_scale(weight, scale)
        stem = name.removesuffix("weight").removesuffix(".")
        extras = _optional(
            table,
            *(
                f"{stem}{joint}{part}"
                for joint in "._"
                for part in ("activation_scale", "input_scale")
            ),
        )
        packed.append(_Packed(name, "fp8", weight.n_elements, (weight, *scales, *extras)))
    return packed


_METHODS: Mapping[str, Callable[[Table, Mapping[str, Any], Mapping[str, str]], list[_Packed]]] = {
    "bitsandbytes": _bitsandbytes,
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed_tensors,
    "hqq": _hqq,
    "torchao": _torchao,
    "fp8": _fp8,
}
