"""Bits per weight of checkpoints: every scheme counted by hand, and sets that contradict theirs."""

from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ondevice import bpw
from pytest_ondevice.bpw import BpwAccount, Kind, Tally
from pytest_ondevice.checkpoints import account, account_tensors, kind_of, layer_of
from pytest_ondevice.formats.safetensors import DTYPE_BITS, Checkpoint, StoredTensor, read_folder
from pytest_ondevice.model.artifact import TensorInfo

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

M = "model.layers.0.mlp.up_proj"
W = f"{M}.weight"
EMBEDDING = ("model.embed_tokens.weight", "BF16", (100, 64))
NORM = ("model.norm.weight", "BF16", (64,))
Row = tuple[str, str, tuple[int, ...]]


def tensor(name: str, dtype: str, shape: tuple[int, ...]) -> StoredTensor:
    n_bytes = math.prod(shape) * DTYPE_BITS[dtype] // 8
    return StoredTensor(name=name, dtype=dtype, shape=shape, start=0, end=n_bytes)


def count(
    rows: Sequence[Row],
    settings: dict[str, Any] | None = None,
    metadata: dict[str, str] | None = None,
    **config: Any,
) -> BpwAccount:
    if settings is not None:
        config["quantization_config"] = settings
    return account_tensors([tensor(*row) for row in rows], config, metadata)


def refusal(rows: Sequence[Row], settings: dict[str, Any] | None = None, **more: Any) -> str:
    with pytest.raises(ValueError, match=r"^.+$") as caught:
        count(rows, settings, **more)
    text = str(caught.value)
    assert text.isprintable()
    return text


# Plain floats

PLAIN: list[Row] = [
    EMBEDDING,
    ("model.layers.0.input_layernorm.weight", "F32", (64,)),
    ("model.layers.0.self_attn.q_proj.weight", "BF16", (64, 64)),
    ("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", (8,)),
    ("model.layers.1.mlp.up_proj.weight", "F16", (256, 64)),
    ("model.layers.1.mlp.up_proj.bias", "F16", (256,)),
    NORM,
    ("lm_head.weight", "F32", (100, 64)),
    ("score.bias", "F16", ()),
    ("position_ids", "I64", (1, 512)),
]


def test_plain_floats_by_hand() -> None:
    result = count(PLAIN)
    layer_0 = Tally(2, 64 + 64 * 64, 64 * 4 + 64 * 64 * 2)
    layer_1 = Tally(2, 256 * 64 + 256, (256 * 64 + 256) * 2)
    body = Tally(4, 64 + 4096 + 16384 + 256, 256 + 8192 + 33280)
    assert result.kinds == {
        Kind.BODY: body,
        Kind.EMBEDDING: Tally(1, 6400, 12800),
        Kind.OUTPUT: Tally(1, 6400, 25600),
        Kind.NORM: Tally(1, 64, 128),
        Kind.OTHER: Tally(1, 1, 2),
    }
    assert result.by_layer == {0: layer_0, 1: layer_1}
    assert result.by_tensor["lm_head.weight"] == Tally(1, 6400, 25600)
    assert list(result.by_tensor) == sorted(result.by_tensor)
    assert result.histogram == {
        "BF16": Tally(3, 6400 + 4096 + 64, 2 * (6400 + 4096 + 64)),
        "F16": Tally(3, 16384 + 256 + 1, 2 * (16384 + 256 + 1)),
        "F32": Tally(2, 64 + 6400, 4 * (64 + 6400)),
    }
    # 8 x 4 of the rotary table, 512 x 8 of the indices
    assert result.not_counted == Tally(2, 8 + 512, 32 + 4096)
    assert result.total == Tally(8, 20800 + 12801 + 64, 41728 + 38402 + 128)
    assert result.body == Fraction(8 * 41728, 20800)
    assert result.float_matrix_share == 1


@pytest.mark.parametrize(
    ("name", "kind", "layer"),
    [
        ("model.layers.17.mlp.experts.3.up_proj.weight", Kind.BODY, 17),
        ("model.language_model.layers.2.mlp.up_proj.weight", Kind.BODY, 2),
        ("transformer.h.5.attn.c_attn.weight", Kind.BODY, 5),
        ("h.5.ln_1.weight", Kind.BODY, 5),
        ("gpt_neox.layers.1.mlp.dense_h_to_4h.weight", Kind.BODY, 1),
        ("decoder.block.3.layer.1.EncDecAttention.q.weight", Kind.BODY, 3),
        ("bert.encoder.layer.4.output.dense.weight", Kind.BODY, 4),
        ("transformer.blocks.6.ffn.up_proj.weight", Kind.BODY, 6),
        ("model.layers.weight", Kind.OTHER, None),
        ("model.norm.weight", Kind.NORM, None),
        ("transformer.ln_f.weight", Kind.NORM, None),
        ("gpt_neox.final_layer_norm.bias", Kind.NORM, None),
        ("bert.embeddings.LayerNorm.weight", Kind.NORM, None),
        ("backbone.norm_f.weight", Kind.NORM, None),
        ("model.embed_tokens.weight", Kind.EMBEDDING, None),
        ("transformer.wte.weight", Kind.EMBEDDING, None),
        ("gpt_neox.embed_in.weight", Kind.EMBEDDING, None),
        ("transformer.word_embeddings.weight", Kind.EMBEDDING, None),
        ("shared.weight", Kind.EMBEDDING, None),
        ("lm_head.weight", Kind.OUTPUT, None),
        ("language_model.lm_head.bias", Kind.OUTPUT, None),
        ("gpt_neox.embed_out.weight", Kind.OUTPUT, None),
        ("embed_out.weight", Kind.OUTPUT, None),
        ("score.weight", Kind.OTHER, None),
    ],
)
def test_kind_and_layer(name: str, kind: Kind, layer: int | None) -> None:
    assert (kind_of(name), layer_of(name)) == (kind, layer)


@pytest.mark.parametrize(
    "row",
    [
        ("model.rotary_emb.inv_freq", "F32", (32,)),
        ("transformer.rotary_pos_emb.inv_freq", "F16", (32,)),
        ("model.layers.0.self_attn.rotary_emb.cos_cached", "F32", (1, 1, 64, 32)),
        ("rope.freqs", "BF16", (32,)),
        ("freqs_cis", "C64", (32,)),
        ("h.0.attn.bias", "F32", (1, 1, 16, 16)),  # GPT-2's causal mask
        ("h.0.attn.bias", "BOOL", (1, 1, 16, 16)),
        ("h.0.attn.masked_bias", "F32", ()),
        ("embeddings.position_ids", "I64", (1, 16)),
        ("bn.num_batches_tracked", "I64", ()),
    ],
)
def test_constants_and_indices_are_no_weights(row: Row) -> None:
    result = count([EMBEDDING, row])
    stored = tensor(*row)
    assert result.total == count([EMBEDDING]).total
    assert result.not_counted == Tally(1, stored.n_elements, stored.n_bytes)


def test_a_bias_of_attention_is_a_weight() -> None:
    assert count([("model.layers.0.attn.bias", "F16", (64,))]).n_weights == 64


def test_tied_embeddings_count_once() -> None:
    head = ("lm_head.weight", *EMBEDDING[1:])
    once = count([EMBEDDING])
    said: dict[str, Any] = {"tie_word_embeddings": True}
    for config in (said, {"text_config": said}):
        result = count([EMBEDDING, head], **config)
        assert result.total == once.total
        assert result.not_counted == Tally(1, 6400, 12800)
    for config in ({}, {"tie_word_embeddings": False}, {"tie_word_embeddings": "yes"}):
        assert count([EMBEDDING, head], **config).n_weights == 12800
    # Of another dtype or shape it cannot be the same.
    other = ("lm_head.weight", "F16", (100, 64))
    assert count([EMBEDDING, other], tie_word_embeddings=True).n_weights == 12800


def test_floats_of_8_bits_that_are_only_cast() -> None:
    result = count([(W, "F8_E4M3", (8, 4)), ("model.layers.0.a.weight", "BF16", (8, 4))])
    assert result.histogram["F8_E4M3"] == Tally(1, 32, 32)
    assert result.float_matrix_share == Fraction(1, 2)


# One quantized weight for each scheme. 64 outputs and 128 inputs, unless said otherwise: 8192.

BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
BNB8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
NF4: list[Row] = [
    (W, "U8", (4096, 1)),  # 8192 / 2
    (f"{W}.absmax", "F32", (128,)),  # 8192 / 64
    (f"{W}.quant_map", "F32", (16,)),
    (f"{W}.quant_state.bitsandbytes__nf4", "U8", (82,)),
]
NF4_DOUBLE: list[Row] = [
    NF4[0],
    (f"{W}.absmax", "U8", (128,)),
    (f"{W}.nested_absmax", "F32", (1,)),  # 128 / 256, rounded up
    (f"{W}.nested_quant_map", "F32", (256,)),
    *NF4[2:],
]
INT8: list[Row] = [
    (W, "I8", (64, 128)),
    (f"{M}.SCB", "F32", (64,)),
    (f"{M}.weight_format", "U8", ()),
]
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True}
GPTQ4: list[Row] = [
    (f"{M}.qweight", "I32", (16, 64)),  # 128 x 4 / 32 rows
    (f"{M}.qzeros", "I32", (4, 8)),  # 128 / 32 groups, 64 x 4 / 32
    (f"{M}.scales", "F16", (4, 64)),
    (f"{M}.g_idx", "I32", (128,)),
]
GPTQ3: list[Row] = [
    (f"{M}.qweight", "I32", (12, 64)),  # 128 x 3 / 32
    (f"{M}.qzeros", "I32", (1, 6)),  # 64 x 3 / 32
    (f"{M}.scales", "F16", (1, 64)),
]
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
AWQ4: list[Row] = [
    (f"{M}.qweight", "I32", (128, 8)),  # 64 x 4 / 32
    (f"{M}.qzeros", "I32", (4, 8)),
    (f"{M}.scales", "F16", (4, 64)),
]


def ct(form: str, bits: int, group_size: int | None = None, **more: Any) -> dict[str, Any]:
    weights = {
        "num_bits": bits,
        "type": "int",
        "strategy": "group" if group_size else "channel",
        "group_size": group_size,
    }
    group = {"targets": ["Linear"], "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        **more,
    }


CT4: list[Row] = [
    (f"{M}.weight_packed", "I32", (64, 16)),  # 128 / 8
    (f"{M}.weight_scale", "BF16", (64, 4)),  # 128 / 32
    (f"{M}.weight_shape", "I64", (2,)),
    (f"{M}.weight_zero_point", "I32", (8, 4)),  # 64 / 8
    (f"{M}.weight_g_idx", "I32", (128,)),
]
CT8: list[Row] = [
    (f"{M}.weight_packed", "I32", (64, 32)),  # 128 / 4
    (f"{M}.weight_scale", "BF16", (64, 1)),
    (f"{M}.weight_shape", "I64", (2,)),
]
CT_INT8: list[Row] = [
    (W, "I8", (64, 128)),
    (f"{M}.weight_scale", "BF16", (64, 1)),
    (f"{M}.input_scale", "F32", (1,)),
]
CT_FP8: list[Row] = [(W, "F8_E4M3", (64, 128)), (f"{M}.weight_scale", "F32", (1,))]


def hqq(bits: int, group_size: int | None = 64, axis: int = 1) -> dict[str, Any]:
    params = {"nbits": bits, "group_size": group_size, "axis": axis, "view_as_float": False}
    return {"quant_method": "hqq", "quant_config": {"weight_quant_params": params}}


# 8192 weights are 128 groups of 64.
HQQ_META: list[Row] = [
    (f"{M}.scale", "F16", (128, 1)),
    (f"{M}.zero", "F16", (128, 1)),
    (f"{M}.shape", "I32", (2,)),
    (f"{M}.packing", "U8", (7,)),
    (f"{M}.nbits", "I32", ()),
]


def ao(kind: str, parts: Sequence[str], **data: Any) -> dict[str, str]:
    said = {"_type": kind, "_data": data, "_tensor_data_names": list(parts)}
    return {W: json.dumps(said), "tensor_names": json.dumps([W]), "format": "pt"}


AO = {"quant_method": "torchao", "quant_type": {"default": {"_type": "X", "_data": {}}}}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}

SCHEMES: dict[str, tuple[list[Row], dict[str, Any], dict[str, str], str, int]] = {
    # name: (tensors, settings, metadata, scheme, bytes)
    "nf4": (NF4, BNB4, {}, "nf4", 4096 + 128 * 4 + 16 * 4 + 82),
    "fp4": (
        [(name.replace("nf4", "fp4"), dtype, shape) for name, dtype, shape in NF4],
        BNB4 | {"bnb_4bit_quant_type": "fp4"},
        {},
        "fp4",
        4096 + 512 + 64 + 82,
    ),
    "nf4_double": (NF4_DOUBLE, BNB4, {}, "nf4", 4096 + 128 + 4 + 256 * 4 + 64 + 82),
    "nf4_in_bf16": (
        [(W, "BF16", (2048, 1)), *NF4[1:]],
        BNB4 | {"bnb_4bit_quant_storage": "bfloat16"},
        {},
        "nf4",
        4096 + 512 + 64 + 82,
    ),
    "int8": (INT8, BNB8, {}, "int8", 8192 + 64 * 4 + 1),
    "int8_of_old": (INT8[:2], {"load_in_8bit": True}, {}, "int8", 8192 + 256),
    "gptq_4": (GPTQ4, GPTQ, {}, "gptq-4", 16 * 64 * 4 + 32 * 4 + 256 * 2 + 128 * 4),
    "gptq_3": (
        GPTQ3,
        {"quant_method": "gptq", "bits": 3, "group_size": -1},
        {},
        "gptq-3",
        12 * 64 * 4 + 6 * 4 + 64 * 2,
    ),
    "gptq_2": (
        [
            (f"{M}.qweight", "I32", (8, 64)),
            (f"{M}.qzeros", "I32", (4, 4)),
            (f"{M}.scales", "F16", (4, 64)),
        ],
        GPTQ | {"bits": 2, "desc_act": False},
        {},
        "gptq-2",
        8 * 64 * 4 + 16 * 4 + 256 * 2,
    ),
    "gptq_8_by_module": (
        [
            (f"{M}.qweight", "I32", (32, 64)),
            (f"{M}.qzeros", "I32", (1, 16)),
            (f"{M}.scales", "F16", (1, 64)),
        ],
        GPTQ | {"dynamic": {"+:.*up.*": {"bits": 8, "group_size": -1}}, "desc_act": False},
        {},
        "gptq-8",
        32 * 64 * 4 + 16 * 4 + 64 * 2,
    ),
    "awq_4": (AWQ4, AWQ, {}, "awq-4", 128 * 8 * 4 + 32 * 4 + 256 * 2),
    "ct_int4": (
        CT4,
        ct("pack-quantized", 4, 32),
        {},
        "ct-int4",
        64 * 16 * 4 + 256 * 2 + 2 * 8 + 32 * 4 + 128 * 4,
    ),
    "ct_int8_packed": (
        CT8,
        ct("pack-quantized", 8),
        {},
        "ct-int8",
        64 * 32 * 4 + 64 * 2 + 2 * 8,
    ),
    "ct_int8": (CT_INT8, ct("int-quantized", 8), {}, "ct-int8", 8192 + 128 + 4),
    "ct_fp8": (CT_FP8, ct("float-quantized", 8), {}, "ct-fp8", 8192 + 4),
    "hqq_8": (
        [(f"{M}.W_q", "U8", (128, 64)), *HQQ_META],
        hqq(8),
        {},
        "hqq-8",
        8192 + 2 * 256 + 8 + 7 + 4,
    ),
    "hqq_4": (
        [(f"{M}.W_q", "U8", (64, 64)), *HQQ_META],
        hqq(4),
        {},
        "hqq-4",
        4096 + 2 * 256 + 8 + 7 + 4,
    ),
    "hqq_4_as_float": (
        [(f"{M}.W_q", "BF16", (64, 32)), *HQQ_META],
        hqq(4),
        {},
        "hqq-4",
        4096 + 2 * 256 + 8 + 7 + 4,
    ),
    "hqq_3": (  # 128 rows are padded to 130, ten in an I32
        [(f"{M}.W_q", "I32", (13, 64)), *HQQ_META],
        hqq(3),
        {},
        "hqq-3",
        13 * 64 * 4 + 2 * 256 + 8 + 7 + 4,
    ),
    "hqq_3_axis_0": (  # 64 rows are padded to 70
        [(f"{M}.W_q", "I32", (7, 128)), *HQQ_META],
        hqq(3, axis=0),
        {},
        "hqq-3",
        7 * 128 * 4 + 2 * 256 + 8 + 7 + 4,
    ),
    "hqq_1": (
        [(f"{M}.W_q", "U8", (16, 64)), *HQQ_META],
        hqq(1),
        {},
        "hqq-1",
        1024 + 2 * 256 + 8 + 7 + 4,
    ),
    "hqq_by_module": (
        [(f"{M}.W_q", "U8", (32, 64)), *HQQ_META],
        {"quant_method": "hqq", "quant_config": {"mlp.up_proj": hqq(2)["quant_config"]}},
        {},
        "hqq-2",
        2048 + 2 * 256 + 8 + 7 + 4,
    ),
    "hqq_without_groups": (
        [
            (f"{M}.W_q", "U8", (32, 128)),
            (f"{M}.scale", "F16", (64, 1)),
            (f"{M}.zero", "F16", (64, 1)),
        ],
        hqq(4, None),
        {},
        "hqq-4",
        4096 + 2 * 128,
    ),
    "torchao_float8": (
        [(f"{M}._weight_qdata", "F8_E4M3", (64, 128)), (f"{M}._weight_scale", "F32", (64, 1))],
        AO,
        ao("Float8Tensor", ["qdata", "scale"], block_size=[1, 128]),
        "torchao-float8",
        8192 + 256,
    ),
    "torchao_int8": (
        [(f"{M}._weight_qdata", "I8", (64, 128)), (f"{M}._weight_scale", "BF16", (64, 1))],
        AO,
        ao("Int8Tensor", ["qdata", "scale"]),
        "torchao-int8",
        8192 + 128,
    ),
    "torchao_intx": (
        [
            (f"{M}._weight_qdata", "I8", (64, 128)),
            (f"{M}._weight_scale", "BF16", (64, 4)),
            (f"{M}._weight_zero_point", "I8", (64, 4)),
        ],
        AO,
        ao("IntxUnpackedToInt8Tensor", ["qdata", "scale", "zero_point"]),
        "torchao-intx",
        8192 + 512 + 256,
    ),
    "torchao_int4": (
        [
            (f"{M}._weight_qdata", "I8", (64, 64)),
            (f"{M}._weight_scale", "BF16", (4, 64)),
            (f"{M}._weight_zero_point", "BF16", (4, 64)),
        ],
        AO,
        ao("Int4Tensor", ["qdata", "scale", "zero_point"], shape=[64, 128], block_size=[1, 32]),
        "torchao-int4",
        4096 + 2 * 512,
    ),
    "torchao_int4_tiles": (  # rows are padded to 1024: [64 / 8, 1024 / 128, 32, 4]
        [
            (f"{M}._weight_qdata", "I32", (8, 8, 32, 4)),
            (f"{M}._weight_scale_and_zero", "BF16", (32, 64, 2)),
        ],
        AO,
        ao("Int4TilePackedTo4dTensor", ["qdata", "scale_and_zero"], shape=[64, 128]),
        "torchao-int4",
        8 * 8 * 32 * 4 * 4 + 32 * 64 * 2 * 2,
    ),
    "fp8": (
        [(W, "F8_E4M3", (64, 128)), (f"{M}.weight_scale_inv", "F32", (1, 1))],
        FP8,
        {},
        "fp8",
        8192 + 4,
    ),
    "fp8_of_one_scale": (
        [
            (W, "F8_E4M3", (64, 128)),
            (f"{M}.weight_scale_inv", "F32", ()),
            (f"{M}.activation_scale", "F32", ()),
        ],
        FP8 | {"weight_block_size": None, "activation_scheme": "static"},
        {},
        "fp8",
        8192 + 4 + 4,
    ),
}


@pytest.mark.parametrize(
    ("rows", "settings", "metadata", "scheme", "n_bytes"), SCHEMES.values(), ids=SCHEMES
)
def test_scheme_by_hand(
    rows: list[Row], settings: dict[str, Any], metadata: dict[str, str], scheme: str, n_bytes: int
) -> None:
    bias = (f"{M}.bias", "F16", (64,))
    result = count([EMBEDDING, *rows, bias, NORM], settings, metadata)
    weight = Tally(1, 64 * 128, n_bytes)
    assert result.by_tensor[W] == weight
    assert result.histogram[scheme] == weight
    assert result.kinds[Kind.BODY] == Tally(2, 8192 + 64, n_bytes + 128)
    assert result.by_layer == {0: Tally(2, 8192 + 64, n_bytes + 128)}
    assert result.n_bytes == sum(tensor(*row).n_bytes for row in [EMBEDDING, *rows, bias, NORM])
    assert result.body == Fraction(8 * (n_bytes + 128), 8192 + 64)
    assert result.not_counted == Tally()
    assert result.float_matrix_share == 0


OPTIONAL = {
    *("weight_format", "weight_g_idx", "weight_zero_point", "input_scale", "activation_scale"),
    *("shape", "packing", "nbits"),  # of HQQ, which has them in its configuration too
}


def test_each_part_is_missed() -> None:
    """Without any one part that is not optional, no scheme is counted as something else."""
    for name, (rows, settings, metadata, _, _) in SCHEMES.items():
        for row in rows:
            if row[0].rpartition(".")[2] in OPTIONAL:
                continue
            less = [EMBEDDING, *(other for other in rows if other is not row)]
            said = refusal(less, settings, metadata=metadata)
            assert M in said or "no weight is quantized so" in said, (name, row[0])


def test_each_scheme_without_its_configuration() -> None:
    for name, (rows, _, metadata, _, _) in SCHEMES.items():
        assert M in refusal([EMBEDDING, *rows], metadata=metadata), name


def method(settings: dict[str, Any]) -> str:
    return str(settings.get("quant_method", "bitsandbytes"))


def test_each_scheme_under_the_configuration_of_another() -> None:
    for name, (rows, own, metadata, _, _) in SCHEMES.items():
        for settings in (GPTQ, AWQ, BNB4, BNB8, ct("int-quantized", 8), hqq(4), AO, FP8):
            # F8 with one scale is the same in both: there is nothing to tell them by.
            same = {method(own), method(settings)} == {"compressed-tensors", "fp8"}
            if method(own) != method(settings) and not same:
                assert refusal([EMBEDDING, *rows], settings, metadata=metadata), name


def test_each_size_that_does_not_fit() -> None:
    """One more row in any matrix that is packed, or of its scales, is seen."""
    for name, (rows, settings, metadata, _, _) in SCHEMES.items():
        # One element is one weight, and a scale is for all or for any block: nothing to compare.
        if name in {"torchao_float8", "torchao_int8", "torchao_intx"} or "fp8" in name:
            continue
        if name == "gptq_8_by_module":  # neither groups nor indices tell the number of rows
            continue
        for at, (part, dtype, shape) in enumerate(rows):
            is_ao_scale = name.startswith("torchao") and not part.endswith("qdata")
            if len(shape) < 2 or is_ao_scale or name == "torchao_int4_tiles":
                continue
            more = (part, dtype, (shape[0] + 1, *shape[1:]))
            said = refusal(
                [EMBEDDING, *rows[:at], more, *rows[at + 1 :]], settings, metadata=metadata
            )
            assert M in said, (name, part)


# Contradictions, in words


@pytest.mark.parametrize(
    ("rows", "settings", "said"),
    [
        (
            [(W, "BF16", (64, 128))],
            BNB4,
            (
                "its configuration says bitsandbytes, and no weight is quantized so; "
                f"tensor '{W}' is BF16"
            ),
        ),
        (INT8, BNB4, f"tensor '{W}' is int8, its configuration says 4 bits"),
        (NF4, BNB8, f"tensor '{W}' is nf4, its configuration says 8 bits"),
        (
            NF4,
            BNB4 | {"bnb_4bit_quant_type": "fp4"},
            f"tensor '{W}' is nf4, its configuration says 'fp4'",
        ),
        (NF4[:1] + NF4[2:], BNB4, f"tensor '{W}' has no '{W}.absmax' to go with it"),
        (
            NF4[:3],
            BNB4,
            f"tensor '{W}' holds weights in U8, and no scales that say what they mean",
        ),
        (
            [NF4[0], (f"{W}.absmax", "F32", (127,)), *NF4[2:]],
            BNB4,
            (
                f"tensor '{W}.absmax' has 127 scales for 8192 weights, which is no block size of "
                "bitsandbytes"
            ),
        ),
        (
            INT8[:1],
            BNB8,
            f"tensor '{W}' holds weights in I8, and no scales that say what they mean",
        ),
        (
            [*NF4, (f"{W}.quant_state.bitsandbytes__fp4", "U8", (82,))],
            BNB4 | {"bnb_4bit_quant_type": None},
            f"tensor '{W}' belongs to two quantized weights",
        ),
        (
            [*GPTQ4, (W, "BF16", (64, 128))],
            GPTQ,
            f"tensor '{W}' is there both quantized and unquantized",
        ),
        (
            GPTQ4,
            GPTQ | {"bits": 8},
            f"tensor '{M}.qzeros' has 8 columns for 64 outputs of 8 bits (expected 16)",
        ),
        (
            GPTQ4,
            GPTQ | {"group_size": 64},
            (
                f"tensor '{M}.scales' has 4 groups for 128 inputs, its configuration says "
                "group_size 64"
            ),
        ),
        (GPTQ4[:3], GPTQ, f"tensor '{M}.qweight' has no '{M}.g_idx' to go with it"),
        (
            [(f"{M}.scales", "F16", (4, 64)), (f"{M}.bias", "F16", (4,))],
            GPTQ,
            (
                f"tensor '{M}.scales' looks like a part of a weight quantized by gptq, which is "
                "not there or not whole"
            ),
        ),
        (
            AWQ4,
            None,
            (
                f"tensor '{M}.qweight' looks like a part of a quantized weight, which its "
                "configuration does not mention"
            ),
        ),
        (GPTQ4, {"bits": 4}, "its quantization_config has no quant_method"),
        (GPTQ4, {"quant_method": "gptq"}, "its quantization_config has no whole number as bits"),
        (
            GPTQ4,
            {"quant_method": "gptq", "bits": True},
            "its quantization_config has no whole number as bits",
        ),
        (
            GPTQ4,
            {"quant_method": "gptq", "bits": 5},
            "its quantization_config has bits 5 (expected 2, 3, 4, 8)",
        ),
        (AWQ4, AWQ | {"version": "gemv"}, "its AWQ layout is 'gemv', which cannot be counted"),
        (
            CT4,
            ct("pack-quantized", 3, 32),
            "its format is pack-quantized of 3 bits (expected 4 or 8)",
        ),
        (
            CT4,
            ct("nvfp4-pack-quantized", 4, 16),
            "its format is 'nvfp4-pack-quantized', which cannot be counted",
        ),
        (
            CT4,
            ct("pack-quantized", 4, 32, sparsity_config={"format": "sparse-bitmask"}),
            "its sparsity format is 'sparse-bitmask', which cannot be counted",
        ),
        (
            CT4,
            ct("pack-quantized", 4, 64),
            (
                f"tensor '{M}.weight_packed' of shape [64, 16] with '{M}.weight_scale' of shape "
                "[64, 4] fits its configuration in no way"
            ),
        ),
        (
            [*CT_FP8, (f"{M}.weight_shape_original", "I64", (2,))],
            ct("float-quantized", 8),
            (
                f"tensor '{W}' is padded to whole blocks, and its real shape is in the data of "
                f"'{M}.weight_shape_original'"
            ),
        ),
        (
            [(W, "F8_E4M3", (64, 128))],
            FP8,
            f"tensor '{W}' is F8_E4M3 and has no '{W}_scale_inv'",
        ),
        (
            [(W, "F8_E4M3", (256, 256)), (f"{W}_scale_inv", "F32", (1, 2))],
            FP8,
            f"tensor '{W}_scale_inv' has shape [1, 2] (expected [2, 2])",
        ),
        (
            [(f"{M}.W_q", "U8", (64, 64)), *HQQ_META],
            hqq(8),
            f"tensor '{M}.W_q' has 4096 bytes for 128 groups of 64 weights of 8 bits",
        ),
        (
            [(f"{M}.W_q", "U8", (64, 64)), *HQQ_META],
            {"quant_method": "hqq", "quant_config": {"mlp.down_proj": hqq(4)["quant_config"]}},
            f"tensor '{M}.W_q' has no settings in its quantization_config",
        ),
        (
            [EMBEDDING],
            {"quant_method": "aqlm"},
            (
                "it is quantized by 'aqlm', which cannot be counted (what can: bitsandbytes, gptq, "
                "awq, compressed-tensors, hqq, torchao, fp8)"
            ),
        ),
        ([(W, "F4", (64, 128))], None, f"tensor '{W}' is F4, which alone holds no weights"),
        ([(W, "C64", (64, 128))], None, f"tensor '{W}' is C64, which alone holds no weights"),
        ([EMBEDDING, EMBEDDING], None, f"tensor '{EMBEDDING[0]}' is there twice"),
        ([("position_ids", "I64", (4,))], None, "there are no weights to account for"),
        ([], None, "there are no weights to account for"),
    ],
)
def test_contradictions(rows: list[Row], settings: dict[str, Any] | None, said: str) -> None:
    assert refusal(rows, settings) == said


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({}, "tensor '{M}._weight_qdata' looks like a part of a weight quantized by torchao"),
        (ao("MXTensor", ["qdata", "scale"]), "tensor '{W}' is a 'MXTensor' of torchao"),
        (ao("Int8Tensor", ["qdata"]), "tensor '{W}' is quantized and lists no data or no scales"),
        (ao("Int8Tensor", ["qdata", "x"]), "tensor '{W}' has no '{M}._weight_x' to go with it"),
        (
            ao("Int8Tensor", ["qdata", "scale"], shape=[64, 64]),
            "tensor '{M}._weight_qdata' has room for 8192 weights, its metadata say 4096",
        ),
        (ao("Int8Tensor", ["qdata", "scale"], shape=[-1]), "tensor '{W}' has no shape in its"),
        ({W: "[" * 100_000}, "tensor '{M}._weight_qdata' looks like a part"),
    ],
)
def test_contradictions_of_torchao(metadata: dict[str, str], said: str) -> None:
    rows = SCHEMES["torchao_int8"][0]
    assert refusal(rows, AO, metadata=metadata).startswith(said.format(M=M, W=W))


# What a configuration says about layers that are left out is not believed


def test_what_is_left_out_is_seen_from_the_tensors() -> None:
    left_out = ("model.layers.1.mlp.up_proj.weight", "BF16", (64, 128))
    head = ("lm_head.weight", "BF16", (100, 64))
    for skipped in (["lm_head"], ["mlp"], [], None):
        settings = BNB4 | {"llm_int8_skip_modules": skipped, "modules_to_not_convert": skipped}
        result = count([EMBEDDING, *NF4, left_out, head], settings)
        assert result.histogram["nf4"].n_weights == 8192
        assert result.histogram["BF16"].n_weights == 8192 + 2 * 6400
        assert result.float_matrix_share == Fraction(1, 2)


def test_scales_of_the_cache_belong_to_no_weight() -> None:
    scale = ("model.layers.0.self_attn.k_scale", "BF16", (1,))
    result = count([*CT4, scale], ct("pack-quantized", 4, 32))
    assert result.not_counted == Tally(1, 1, 2)


def test_groups_of_different_bits_are_told_apart() -> None:
    settings = ct("pack-quantized", 4, 32)
    eight = ct("pack-quantized", 8)["config_groups"]["group_0"]
    settings["config_groups"]["group_1"] = eight
    other = [(name.replace("up_proj", "down_proj"), dtype, shape) for name, dtype, shape in CT8]
    result = count([*CT4, *other], settings)
    assert {name: tally.n_weights for name, tally in result.histogram.items()} == {
        "ct-int4": 8192,
        "ct-int8": 8192,
    }


def test_experts_in_one_tensor() -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    rows: list[Row] = [
        (name, "F8_E4M3", (4, 256, 200)),
        (f"{name}_scale_inv", "F32", (4, 2, 2)),
    ]
    assert count(rows, FP8).by_tensor == {name: Tally(1, 4 * 256 * 200, 4 * 256 * 200 + 64)}


# Properties

FLOATS = st.sampled_from(["F64", "F32", "F16", "BF16"])
NAMES = st.one_of(
    st.builds(
        "model.layers.{}.{}.weight".format, st.integers(0, 3), st.sampled_from(["a", "b", "norm"])
    ),
    st.sampled_from(["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "x.y"]),
)
ROWS = st.tuples(NAMES, FLOATS, st.lists(st.integers(1, 9), max_size=3).map(tuple))
PLAIN_FILES = st.lists(ROWS, min_size=1, max_size=8, unique_by=lambda row: row[0])
SETS = st.sampled_from(list(SCHEMES.values()))


@given(SETS, PLAIN_FILES)
def test_bytes_are_conserved(scheme: Any, plain: list[Row]) -> None:
    rows, settings, metadata, _, _ = scheme
    index = ("ids", "I64", (7,))
    result = count([*rows, *plain, index], settings, metadata)
    everything = sum(tensor(*row).n_bytes for row in [*rows, *plain, index])
    assert result.n_bytes + result.not_counted.n_bytes == everything
    assert result.not_counted.n_bytes == 56
    for parts in (result.kinds, result.histogram, result.by_tensor):
        assert tuple(map(sum, zip(*parts.values(), strict=True))) == result.total
    layers = [Tally(), *result.by_layer.values()]
    assert tuple(map(sum, zip(*layers, strict=True))) == result.kinds[Kind.BODY]


@given(SETS, ROWS)
def test_a_float_tensor_adds_its_weights_and_bytes(scheme: Any, row: Row) -> None:
    rows, settings, metadata, _, _ = scheme
    without, result = (count(some, settings, metadata) for some in (rows, [*rows, row]))
    stored = tensor(*row)
    assert result.n_weights - without.n_weights == stored.n_elements
    assert result.n_bytes - without.n_bytes == stored.n_bytes
    assert result.by_tensor[row[0]] == Tally(1, stored.n_elements, stored.n_bytes)


@given(SETS, PLAIN_FILES, st.randoms(use_true_random=False))
def test_order_does_not_matter(scheme: Any, plain: list[Row], random: Any) -> None:
    rows, settings, metadata, _, _ = scheme
    shuffled = [*rows, *plain]
    random.shuffle(shuffled)
    results = (count(some, settings, metadata) for some in ([*rows, *plain], shuffled))
    first, second = map(dataclasses.astuple, results)
    assert first == second


SETTINGS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(SETS, st.data())
def test_any_settings_are_an_account_or_a_clause(scheme: Any, data: st.DataObject) -> None:
    rows, settings, metadata, _, n_bytes = scheme
    key = data.draw(st.sampled_from(sorted(settings)))
    changed = settings | {key: data.draw(SETTINGS)}
    try:
        result = count(rows, changed, metadata)
    except ValueError as error:
        said = str(error)
    else:
        said = ""
        assert result.n_bytes == n_bytes
    assert said.isprintable()


# GGUF files have the same tallies


def test_gguf_by_layer_and_by_tensor() -> None:
    rows = [
        ("token_embd.weight", (256, 4), "Q6_K"),  # 4 blocks of 210 bytes
        ("blk.1.ffn_up.weight", (256, 8), "Q4_K"),  # 8 of 144
        ("blk.0.ffn_up.weight", (256, 8), "Q4_K"),
        ("blk.10.attn_norm.weight", (256,), "F32"),
        ("enc.blk.0.attn_norm.weight", (256,), "F32"),
        ("blk.0.attn_rot_embd.weight", (64,), "F32"),
    ]
    infos = [TensorInfo(name=name, shape=shape, type=kind, offset=0) for name, shape, kind in rows]
    result = bpw.account(infos)
    assert result.by_layer == {
        0: Tally(2, 2048 + 256, 1152 + 1024),  # of both stacks
        1: Tally(1, 2048, 1152),
        10: Tally(1, 256, 1024),
    }
    assert list(result.by_layer) == [0, 1, 10]
    assert result.by_tensor == {
        "blk.0.ffn_up.weight": Tally(1, 2048, 1152),
        "blk.1.ffn_up.weight": Tally(1, 2048, 1152),
        "blk.10.attn_norm.weight": Tally(1, 256, 1024),
        "enc.blk.0.attn_norm.weight": Tally(1, 256, 1024),
        "token_embd.weight": Tally(1, 1024, 840),
    }
    assert tuple(map(sum, zip(*result.by_tensor.values(), strict=True))) == result.total
    assert bpw.layer_of("output.weight") is None


# From files


def write(folder: Path, name: str, rows: Sequence[Row], metadata: dict[str, str]) -> None:
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for row in rows:
        size = tensor(*row).n_bytes
        header[row[0]] = {"dtype": row[1], "shape": row[2], "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    (folder / name).write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(at))


@pytest.mark.parametrize(
    ("rows", "settings", "metadata", "scheme", "n_bytes"), SCHEMES.values(), ids=SCHEMES
)
def test_shards_do_not_matter(
    tmp_path: Path,
    rows: list[Row],
    settings: dict[str, Any],
    metadata: dict[str, str],
    scheme: str,
    n_bytes: int,
) -> None:
    rows = [EMBEDDING, *rows]
    config = json.dumps({"quantization_config": settings})
    single, sharded = tmp_path / "single", tmp_path / "sharded"
    for folder in (single, sharded):
        folder.mkdir()
        (folder / "config.json").write_text(config)
    write(single, "model.safetensors", rows, metadata)
    places: dict[str, str] = {}
    for number in range(2):
        name = f"model-{number + 1:05}-of-00002.safetensors"
        write(sharded, name, rows[number::2], metadata)
        places |= {row[0]: name for row in rows[number::2]}
    index = json.dumps({"metadata": {}, "weight_map": places})
    (sharded / "model.safetensors.index.json").write_text(index)
    checkpoints: list[Checkpoint] = [read_folder(single), read_folder(sharded)]
    one, two = map(account, checkpoints)
    assert dataclasses.astuple(one) == dataclasses.astuple(two)
    assert one.histogram[scheme] == Tally(1, 8192, n_bytes)
