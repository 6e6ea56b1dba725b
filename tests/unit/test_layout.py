"""Tensor tables from dimensions: against published counts, and as llama.cpp lays them out."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ondevice import bpw
from pytest_ondevice.layout import ROPE_TABLE, Slot, n_parameters, order, tensors
from pytest_ondevice.model.artifact import TensorInfo
from pytest_ondevice.model.catalog import Dimensions

# Dimensions as in each model's config.json, parameters as the publisher's safetensors count them.
PUBLISHED = """
SmolLM2-135M  llama   30   576   9   3   64   1536   49152  tied      134515008
SmolLM2-360M  llama   32   960  15   5   64   2560   49152  tied      361821120
SmolLM2-1.7B  llama   24  2048  32  32   64   8192   49152  tied     1711376384
Qwen2.5-0.5B  qwen2   24   896  14   2   64   4864  151936  tied      494032768
Qwen2.5-1.5B  qwen2   28  1536  12   2  128   8960  151936  tied     1543714304
Qwen2.5-3B    qwen2   36  2048  16   2  128  11008  151936  tied     3085938688
Qwen2.5-7B    qwen2   28  3584  28   4  128  18944  152064  untied   7615616512
Qwen2.5-14B   qwen2   48  5120  40   8  128  13824  152064  untied  14770033664
Qwen3-0.6B    qwen3   28  1024  16   8  128   3072  151936  tied      596049920
Qwen3-1.7B    qwen3   28  2048  16   8  128   6144  151936  tied     1720574976
Qwen3-4B      qwen3   36  2560  32   8  128   9728  151936  tied     4022468096
Qwen3-8B      qwen3   36  4096  32   8  128  12288  151936  untied   8190735360
Qwen3-14B     qwen3   40  5120  40   8  128  17408  151936  untied  14768307200
Llama-3.2-1B  llama   16  2048  32   8   64   8192  128256  tied     1235814400
Llama-3.2-3B  llama   28  3072  24   8  128   8192  128256  tied     3212749824
Llama-3.1-8B  llama   32  4096  32   8  128  14336  128256  untied   8030261248
Gemma-3-270M  gemma3  18   640   4   1  256   2048  262144  tied      268098176
Gemma-3-1B    gemma3  26  1152   4   1  256   6912  262144  tied      999885952
Gemma-3-4B    gemma3  34  2560   8   4  256  10240  262208  tied     3880263168
Pocket-S      llama    2   256   4   2   64    512     960  tied        1426688
Pocket-M      llama    6   256   4   2   64    768     960  tied        4967680
Pocket-L      llama    5   512   8   2   64   1024     960  untied     12129792
"""


def parse(row: str) -> tuple[str, Dimensions, int]:
    name, architecture, *numbers, embedding, count = row.split()
    fields = ("layers", "hidden", "heads", "kv_heads", "head_size", "feed_forward", "vocabulary")
    dimensions = Dimensions(
        architecture=architecture,
        tied=embedding == "tied",
        rope_factors=name.startswith("Llama-3"),
        **dict(zip(fields, map(int, numbers), strict=True)),  # type: ignore[arg-type]
    )
    return name, dimensions, int(count)


MODELS = {name: (one, count) for name, one, count in map(parse, PUBLISHED.strip().split("\n"))}

TINY = Dimensions(
    architecture="llama",
    layers=2,
    hidden=64,
    heads=4,
    kv_heads=2,
    head_size=8,
    feed_forward=96,
    vocabulary=100,
    tied=False,
    rope_factors=True,
)
SOME = st.builds(
    Dimensions,
    architecture=st.sampled_from(["llama", "qwen2", "qwen3", "gemma3"]),
    layers=st.integers(1, 12),
    hidden=st.integers(1, 300),
    heads=st.integers(1, 9),
    kv_heads=st.integers(1, 9),
    head_size=st.integers(2, 64),
    feed_forward=st.integers(1, 500),
    vocabulary=st.integers(1, 1000),
    tied=st.booleans(),
    rope_factors=st.booleans(),
)


def replaced(dimensions: Dimensions, **changes: object) -> Dimensions:
    return msgspec.structs.replace(dimensions, **changes)


@pytest.mark.parametrize("name", MODELS)
def test_published_number_of_parameters(name: str) -> None:
    dimensions, count = MODELS[name]
    assert n_parameters(dimensions) == count


def test_by_hand() -> None:
    layer = {
        "attn_k.weight": (64, 16),
        "attn_norm.weight": (64,),
        "attn_output.weight": (32, 64),
        "attn_q.weight": (64, 32),
        "attn_v.weight": (64, 16),
        "ffn_down.weight": (96, 64),
        "ffn_gate.weight": (64, 96),
        "ffn_norm.weight": (64,),
        "ffn_up.weight": (64, 96),
    }
    assert tensors(TINY) == (
        Slot("output.weight", (64, 100)),
        Slot("output_norm.weight", (64,)),
        Slot("rope_freqs.weight", (4,)),
        Slot("token_embd.weight", (64, 100)),
        *(Slot(f"blk.{n}.{name}", shape) for n in (0, 1) for name, shape in layer.items()),
    )


@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        ("llama", {}),
        ("qwen2", {"attn_q.bias": (32,), "attn_k.bias": (16,), "attn_v.bias": (16,)}),
        ("qwen3", {"attn_q_norm.weight": (8,), "attn_k_norm.weight": (8,)}),
        (
            "gemma3",
            {
                "attn_q_norm.weight": (8,),
                "attn_k_norm.weight": (8,),
                "post_attention_norm.weight": (64,),
                "post_ffw_norm.weight": (64,),
            },
        ),
    ],
)
def test_what_an_architecture_adds(architecture: str, more: dict[str, tuple[int, ...]]) -> None:
    plain, other = tensors(TINY), tensors(replaced(TINY, architecture=architecture))
    added = {Slot(f"blk.{n}.{name}", shape) for n in (0, 1) for name, shape in more.items()}
    assert set(other) == {*plain, *added}


def test_unknown_architecture() -> None:
    stranger = replaced(TINY, architecture="mamba")
    for function in (tensors, n_parameters):
        with pytest.raises(ValueError, match=r"'mamba'.*llama, qwen2, qwen3, gemma3"):
            function(stranger)


def test_order_is_by_layer_then_name() -> None:
    names = ["output.weight", "output_norm.weight", "token_embd.weight"]
    names += ["blk.2.attn_q.weight", "blk.2.ffn_up.weight", "blk.10.attn_k.weight"]
    assert [*map(order, names)] == sorted(map(order, names))


@given(SOME)
def test_tables_are_sorted_and_unique(dimensions: Dimensions) -> None:
    names = [slot.name for slot in tensors(dimensions)]
    assert names == sorted(set(names), key=order)


@given(SOME)
def test_counts_as_bpw_does(dimensions: Dimensions) -> None:
    table = [
        TensorInfo(name=slot.name, shape=slot.shape, type=slot.type, offset=0)
        for slot in tensors(dimensions)
    ]
    assert bpw.account(table).n_weights == n_parameters(dimensions)


@given(SOME)
def test_layers_are_alike(dimensions: Dimensions) -> None:
    def of_layer(number: int) -> set[tuple[str, tuple[int, ...]]]:
        start = f"blk.{number}."
        return {
            (slot.name.removeprefix(start), slot.shape)
            for slot in tensors(dimensions)
            if slot.name.startswith(start)
        }

    assert of_layer(0)
    assert all(of_layer(number) == of_layer(0) for number in range(dimensions.layers))
    assert not of_layer(dimensions.layers)


@given(SOME)
def test_tied_and_rope_concern_one_tensor_each(dimensions: Dimensions) -> None:
    tied, untied = (set(tensors(replaced(dimensions, tied=tied))) for tied in (True, False))
    embedding = (dimensions.hidden, dimensions.vocabulary)
    assert untied - tied == {Slot("output.weight", embedding)}
    assert tied < untied
    bare, rope = (replaced(dimensions, rope_factors=factors) for factors in (False, True))
    assert set(tensors(rope)) - set(tensors(bare)) == {
        Slot(ROPE_TABLE, (dimensions.head_size // 2,))
    }
    assert n_parameters(bare) == n_parameters(rope)
