"""Bytes that decoding one token reads, of models made by hand and of drawn ones."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice.active import active_bytes
from pytest_ondevice.bpw import account
from pytest_ondevice.model.artifact import TensorInfo
from pytest_ondevice.model.quant_types import QUANT_TYPES

WEIGHT_TYPES = sorted(quant.name for quant in QUANT_TYPES.values() if not quant.is_integer)
TOKENS = 100


def tensor(name, shape, type_name="F16"):
    return TensorInfo(name=name, shape=shape, type=type_name, offset=0)


EMBEDDING = tensor("token_embd.weight", (256, TOKENS), "Q6_K")
OUTPUT = tensor("output.weight", (256, TOKENS), "Q8_0")
BODY = [
    tensor("blk.0.attn_norm.weight", (256,), "F32"),
    tensor("blk.0.ffn_up.weight", (256, 512), "Q4_K"),
    tensor("blk.0.attn_q.bias", (256,), "F32"),
    tensor("output_norm.weight", (256,), "F32"),
]
BODY_BYTES = 1024 + 512 * 144 + 1024 + 1024
EXPERTS = [
    tensor("blk.0.ffn_up_exps.weight", (256, 64, 8), "Q4_K"),
    tensor("blk.0.ffn_down_exps.bias", (256, 8), "F32"),
]
EXPERT_BYTES = 64 * 144 + 1024  # of one
ALWAYS = [
    tensor("blk.0.ffn_gate_inp.weight", (256, 8), "F32"),
    tensor("blk.0.ffn_up_shexp.weight", (256, 64), "Q4_K"),
]
ALWAYS_BYTES = 8 * 1024 + 64 * 144


def of(used=2, count=8, architecture="qwen3moe"):
    return {
        "general.architecture": architecture,
        f"{architecture}.expert_used_count": used,
        f"{architecture}.expert_count": count,
    }


def test_the_body_is_read_whole():
    assert active_bytes(BODY, {}) == BODY_BYTES


def test_a_tied_embedding_is_read_as_the_output():
    assert active_bytes([EMBEDDING, *BODY], {}) == BODY_BYTES + TOKENS * 210


def test_of_an_untied_embedding_a_row_is_looked_up():
    for tensors in ([EMBEDDING, *BODY, OUTPUT], [OUTPUT, *BODY, EMBEDDING]):
        assert active_bytes(tensors, {}) == BODY_BYTES + 210 + TOKENS * 8 * 34


def test_a_bias_of_the_output_unties_nothing():
    bias = tensor("output.bias", (TOKENS,), "F32")
    assert active_bytes([EMBEDDING, bias], {}) == TOKENS * 210 + 4 * TOKENS


@pytest.mark.parametrize(
    "name", ["per_layer_token_embd.weight", "position_embd.weight", "token_types.weight"]
)
def test_of_other_tables_a_row_is_looked_up_too(name):
    table = tensor(name, (512, TOKENS), "Q4_K")
    assert active_bytes([EMBEDDING, table], {}) == TOKENS * 210 + 2 * 144


def test_names_that_only_look_like_tables_are_read_whole():
    norm = tensor("token_embd_norm.weight", (256,), "F32")
    layer = tensor("blk.0.token_embd.weight", (256, 2), "F32")
    assert active_bytes([norm, layer, OUTPUT], {}) == 3 * 1024 + TOKENS * 8 * 34


def test_of_experts_those_are_read_that_are_used():
    found = active_bytes([*EXPERTS, *ALWAYS, EMBEDDING], of(2, 8))
    assert found == 2 * EXPERT_BYTES + ALWAYS_BYTES + TOKENS * 210


@pytest.mark.parametrize(("used", "expected"), [(1, 1), (7, 7), (8, 8)])
def test_each_number_of_experts(used, expected):
    assert active_bytes(EXPERTS, of(used)) == expected * EXPERT_BYTES


def test_the_numbers_of_experts_are_the_architecture_s_own():
    metadata = of(2, 8, "mixtral") | of(4, 8, "qwen3moe")
    assert active_bytes(EXPERTS, metadata) == 4 * EXPERT_BYTES
    assert active_bytes(EXPERTS, metadata | {"general.architecture": "mixtral"}) == 2 * EXPERT_BYTES


@pytest.mark.parametrize(
    ("metadata", "given"),
    [
        ({}, "None.expert_used_count (None)"),
        ({"general.architecture": "qwen3moe"}, "qwen3moe.expert_used_count (None)"),
        (of(0), "qwen3moe.expert_used_count (0)"),
        (of(9), "qwen3moe.expert_used_count (9)"),
        (of(-1, -1), "qwen3moe.expert_count (-1)"),
        (of(0, 0), "qwen3moe.expert_count (0)"),
        (of("2"), "qwen3moe.expert_used_count ('2')"),
        (of(2, 8.0), "qwen3moe.expert_count (8.0)"),
        (of(True), "qwen3moe.expert_used_count (True)"),
        (of(1, True), "qwen3moe.expert_count (True)"),
        (of(2, (8, 8)), "qwen3moe.expert_count ((8, 8))"),
    ],
)
def test_without_numbers_of_experts_nothing_is_guessed(metadata, given):
    with pytest.raises(ValueError, match="expected at least 1 used") as caught:
        active_bytes([*BODY, *EXPERTS], metadata)
    assert given in str(caught.value)


def test_the_numbers_matter_to_stacks_of_experts_only():
    assert active_bytes(BODY, of(2, 8)) == BODY_BYTES
    assert active_bytes(BODY, of("none", 0)) == BODY_BYTES


def test_what_is_no_weight_does_not_count():
    others = [
        tensor("rope_freqs.weight", (32,), "F32"),
        tensor("rope_factors_long.weight", (32,), "F32"),
        tensor("blk.0.attn_rot_embd.weight", (32,), "F32"),
        tensor("blk.0.ffn_gate_tid2eid.weight", (8, TOKENS), "I32"),
        tensor("blk.0.ids_exps.weight", (8, 8), "I32"),
    ]
    assert active_bytes([*BODY, *others], {}) == BODY_BYTES


def test_beyond_floats():
    huge = tensor("blk.0.ffn_up_exps.weight", (256, 2**48 + 1, 7), "Q4_K")
    assert active_bytes([huge], of(5, 7)) == 5 * (2**48 + 1) * 144


def test_nothing_is_read_of_nothing():
    assert active_bytes([], {}) == 0


NAMES = st.sampled_from(
    [
        "token_embd.weight",
        "blk.0.ffn_up.weight",
        "blk.1.ffn_down.weight",
        "output_norm.weight",
        "rope_freqs.weight",
        "blk.0.ffn_up_exps.weight",
        "blk.1.ffn_gate_exps.weight",
    ]
)
TENSORS = st.lists(
    st.builds(
        tensor,
        NAMES,
        st.tuples(st.sampled_from([256, 512]), st.integers(1, 8), st.just(8)),
        st.sampled_from(WEIGHT_TYPES),
    ),
    max_size=8,
    unique_by=lambda one: one.name,
)


@settings(deadline=None)
@given(TENSORS, st.integers(1, 8), st.booleans())
def test_within_the_account_and_equal_to_it_where_all_is_used(tensors, used, untied):
    tensors = (
        [*tensors, tensor("output.weight", (256, 1), "F16")] if untied else [*tensors, BODY[0]]
    )
    found = active_bytes(tensors, of(used))
    whole = account(tensors).n_bytes
    assert 0 < found <= whole
    looked_up = untied and any(one.name == "token_embd.weight" for one in tensors)
    idle = used < 8 and any("_exps" in one.name for one in tensors)
    assert (found == whole) == (not looked_up and not idle)


@settings(deadline=None)
@given(TENSORS.flatmap(lambda one: st.tuples(st.just(one), st.permutations(one))))
def test_order_does_not_matter(orders):
    assert active_bytes(orders[0], of()) == active_bytes(orders[1], of())


@settings(deadline=None)
@given(TENSORS)
def test_grows_evenly_with_the_experts_used(tensors):
    found = [active_bytes(tensors, of(used)) for used in range(1, 9)]
    assert len({more - less for less, more in pairwise(found)}) == 1
