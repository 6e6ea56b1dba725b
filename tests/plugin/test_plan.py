"""``pytest-ondevice plan`` and ``inspect``: figures before and after an artifact is made."""

from __future__ import annotations

import json
import struct
import time
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest

from pytest_ondevice.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def ask(*arguments: str | Path) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return status, out, err

    return ask


@pytest.fixture
def planned(ask: Callable[..., tuple[int, str, str]]) -> Callable[..., dict[str, dict]]:
    def planned(*arguments: str | Path) -> dict[str, dict]:
        status, out, err = ask("plan", *arguments, "--json")
        assert status == 0, err
        return {plan["method"]: plan for plan in json.loads(out)["plans"]}

    return planned


def write(
    path: Path,
    *,
    file_type: int = 15,
    scale: float = 1.0,
    rows: int = 256,
    vocabulary: int = 64,
    kind: str = "Q8_0",
) -> Path:
    """Write a whole small model, every matrix quantized to one type by gguf-py."""
    block = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, "llama")
    for key, number in {
        "block_count": 1,
        "embedding_length": rows,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "feed_forward_length": 512,
    }.items():
        writer.add_uint32(f"llama.{key}", number)
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    writer.add_string("tokenizer.chat_template", "{{ messages }}")
    random = np.random.default_rng(1)
    shapes = {
        "token_embd.weight": (vocabulary, rows),
        "blk.0.attn_q.weight": (rows, rows),
        "blk.0.attn_k.weight": (rows // 2, rows),
        "blk.0.attn_v.weight": (rows // 2, rows),
        "blk.0.attn_output.weight": (rows, rows),
        "blk.0.ffn_up.weight": (512, rows),
        "blk.0.ffn_gate.weight": (512, rows),
        "blk.0.ffn_down.weight": (rows, 512),
    }
    for name, shape in shapes.items():
        weights = random.standard_normal(shape).astype(np.float32) * scale
        writer.add_tensor(name, gguf.quants.quantize(weights, block), raw_dtype=block)
    writer.add_tensor("output_norm.weight", np.ones(rows, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# -- plan


def test_the_catalog_alone_is_enough(planned) -> None:
    begun = time.monotonic()
    found = planned("qwen2.5-0.5b", "--methods=all")
    # Two seconds a model is what is promised; this is no timing but a bound on going astray.
    assert time.monotonic() - begun < 20
    assert found["Q4_K_M"]["weights"] == 494_032_768
    assert found["Q2_K"]["nominal_bpw"] == 2.625
    assert found["Q2_K"]["effective_bpw"] > 2 * 2.625
    assert found["F16"]["weight_bytes"] < found["F32"]["weight_bytes"]
    assert "importance matrix" in found["IQ1_S"]["refused"]


def test_an_importance_matrix_makes_more_methods_possible(planned) -> None:
    without, given = (
        planned("llama-3.1-8b", "--methods=all", *more) for more in ((), ("--imatrix",))
    )
    assert without["IQ2_XXS"]["refused"]
    assert 2.0625 < given["IQ2_XXS"]["effective_bpw"] < 2.5
    assert given["Q4_0"]["effective_bpw"] != without["Q4_0"]["effective_bpw"]
    assert given["Q8_0"] == without["Q8_0"]


def test_a_configuration_gives_the_same_plan(planned, tmp_path: Path) -> None:
    by_catalog = planned("qwen2.5-0.5b")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(b"")
    for name in (tmp_path, tmp_path / "config.json", tmp_path / "model.safetensors"):
        assert planned(name) == by_catalog


def test_a_header_gives_the_length_of_the_file(planned, tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    found = planned(path, "--methods=Q8_0,Q4_K_M,F32")
    assert found["Q8_0"]["file_size"] == path.stat().st_size
    assert found["Q4_K_M"]["types"] == {"Q4_K": 5, "Q6_K": 3, "F32": 1}
    assert found["F32"]["effective_bpw"] == 32


def test_context_moves_the_cache_only(planned) -> None:
    short, long = (planned("smollm2-135m", f"--context={n}")["Q4_0"] for n in (512, 5120))
    assert long["kv_cache"] == 10 * short["kv_cache"] == 10 * 2 * 30 * 512 * 192 * 2
    assert long["peak_memory"] > short["peak_memory"]
    assert {k: v for k, v in long.items() if k not in {"kv_cache", "peak_memory"}} == {
        k: v for k, v in short.items() if k not in {"kv_cache", "peak_memory"}
    }


def test_a_variant_is_planned_as_what_it_changes(planned) -> None:
    names = ("Q4_0", "Q4_0+imatrix", "Q4_0+kv-q8_0", "Q4_0+imatrix+kv-q4_0")
    found = planned("llama-3.1-8b", f"--methods={','.join(names)}")
    assert {*found} == {*names}
    with_imatrix = planned("llama-3.1-8b", "--methods=Q4_0", "--imatrix")["Q4_0"]
    assert found["Q4_0+imatrix"] == with_imatrix | {"method": "Q4_0+imatrix"}
    plain = found["Q4_0"]["kv_cache"]
    assert found["Q4_0+imatrix"]["kv_cache"] == plain
    # A block of 32 is 34 bytes, or 18, where plain values take 64.
    assert found["Q4_0+kv-q8_0"]["kv_cache"] == plain * 34 // 64
    assert found["Q4_0+imatrix+kv-q4_0"]["kv_cache"] == plain * 18 // 64
    # The weights are the same, and what is saved is memory.
    moved = ("method", "kv_cache", "peak_memory")
    for name, same in (("Q4_0+kv-q8_0", "Q4_0"), ("Q4_0+imatrix+kv-q4_0", "Q4_0+imatrix")):
        assert {key: one for key, one in found[name].items() if key not in moved} == {
            key: one for key, one in found[same].items() if key not in moved
        }
        assert found[name]["peak_memory"] < found[same]["peak_memory"]


def test_a_pure_method_is_planned_at_the_bits_of_its_base_type(planned) -> None:
    names = ("Q2_K", "Q2_K+pure", "Q2_K+pure+imatrix", "IQ2_XXS+pure", "Q8_0", "Q8_0+pure")
    found = planned("llama-3.1-8b", f"--methods={','.join(names)}")
    assert [*found] == [*names]
    pure = found["Q2_K+pure"]
    assert pure["nominal_bpw"] == found["Q2_K"]["nominal_bpw"] == 2.625
    assert 2.625 < pure["effective_bpw"] < 2.627
    assert pure["types"] == {"F32": 66, "Q2_K": 226}
    assert 3.1 < found["Q2_K"]["effective_bpw"] < 3.2
    # Which type a tensor gets is no matter of an importance matrix any more, but for what needs it.
    assert found["Q2_K+pure+imatrix"] == pure | {"method": "Q2_K+pure+imatrix"}
    assert "importance matrix" in found["IQ2_XXS+pure"]["refused"]
    assert found["Q8_0+pure"] == found["Q8_0"] | {"method": "Q8_0+pure"}
    # Rows of 576 take no blocks of 256, however pure.
    assert planned("smollm2-135m", "--methods=Q2_K+pure")["Q2_K+pure"]["effective_bpw"] > 4.1


def test_a_pure_file_is_planned_to_the_byte(planned, tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", file_type=2, kind="Q4_0")
    found = planned(path, "--methods=Q4_0+pure,Q4_0")
    assert found["Q4_0+pure"]["file_size"] == path.stat().st_size < found["Q4_0"]["file_size"]
    assert found["Q4_0+pure"]["types"] == {"F32": 1, "Q4_0": 8}


def test_the_table_says_by_how_much_the_name_misleads(ask) -> None:
    status, out, _ = ask("plan", "qwen2.5-0.5b", "--from=catalog")
    assert status == 0
    assert "from dimensions in the catalog" in out
    (row,) = [line.split() for line in out.splitlines() if line.startswith("Q2_K ")]
    assert row[1:4] == ["2.625", "5.3868", "+105%"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "MODEL=nope (from the command line): unknown model 'nope'"),
        (["smollm2-135m", "--methods=Q4_KM"], "unknown method 'Q4_KM'; did you mean 'Q4_K_M'?"),
        (
            ["smollm2-135m", "--methods=Q4_0+imatrx"],
            "unknown variant 'imatrx' of Q4_0; did you mean 'imatrix'?",
        ),
        (["smollm2-135m", "--methods=F16+imatrix"], "F16 does not quantize, so it needs no"),
        (
            ["smollm2-135m", "--methods=BF16+pure"],
            "BF16 has no pure variant: it does not quantize",
        ),
        (["hf:org/none"], "its dimensions are not in the catalog, and no file of it is on this"),
        (["smollm2-135m", "--context=0"], "'0' is no number of tokens"),
        (["smollm2-135m", "--context=many"], "'many' is no number of tokens"),
        (["pyproject.gguf"], "there is no file 'pyproject.gguf'"),
    ],
)
def test_a_mistake_is_one_sentence(ask, arguments: list[str], said: str) -> None:
    status, out, err = ask("plan", *arguments)
    assert status == 2
    assert said in err
    assert not out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (b"", "it is no JSON"),
        (b"[]", "it is no configuration: expected an object - `$`"),
        (b"[" * 100_000, "it is no JSON"),
        (b"\xff", "it is no JSON"),
        ({"architectures": ["MambaForCausalLM"]}, "its architecture is 'MambaForCausalLM'; known"),
        ({"architectures": None}, "its architecture is None"),
        ({"hidden_size": "many"}, "'many' is no such number - `$.hidden_size`"),
        ({"num_hidden_layers": 2**40}, "is no such number - `$.num_hidden_layers`"),
        ({"vocab_size": True}, "True is no such number - `$.vocab_size`"),
    ],
)
def test_a_bad_configuration_is_one_sentence(ask, tmp_path: Path, change, said: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(change if isinstance(change, bytes) else json.dumps(CONFIG | change).encode())
    status, _, err = ask("plan", path)
    assert status == 2
    assert err.startswith(f"ERROR: {path}: ")
    assert said in err
    assert len(err.splitlines()) == 1


# -- inspect


def test_a_file_is_what_it_claims(ask, tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", file_type=7)
    status, out, _ = ask("inspect", path, "--layers")
    assert status == 0
    assert "claims Q8_0" in out
    assert "nothing odd was found" in out
    assert "layer 0" in out
    found = json.loads(ask("inspect", path, "--json")[1])
    assert found["effective_bpw"] == pytest.approx(8.5, abs=0.05)
    assert sum(part["bytes"] for part in found["kinds"]) == sum(
        part["bytes"] for part in found["types"]
    )
    assert found["chat_template"]
    assert found["anomalies"] == []


@pytest.mark.parametrize(
    ("made", "odd"),
    [
        ({"file_type": 15}, "it claims Q4_K_M, and 0% of its weights have the types"),
        ({"file_type": 4000}, "claims no file type that is known"),
        ({"file_type": 7, "scale": 1e6}, "huge"),
        ({"file_type": 7, "scale": 0.0}, "lost"),
    ],
)
def test_what_is_odd_is_told(ask, tmp_path: Path, made: dict, odd: str) -> None:
    path = write(tmp_path / "m.gguf", **made)
    status, out, _ = ask("inspect", path)
    assert status == 0
    assert odd in out
    assert "ODD: " in out


def test_a_pure_file_has_the_types_of_its_method_too(ask, tmp_path: Path) -> None:
    # In the mix the embedding, here most of the model, is the output and would be Q6_K.
    path = write(tmp_path / "m.gguf", file_type=2, kind="Q4_0", vocabulary=4096)
    assert "nothing odd was found" in ask("inspect", path)[1]
    path = write(tmp_path / "other.gguf", file_type=2, kind="Q4_1", vocabulary=4096)
    assert "it claims Q4_0, and 0% of its weights" in ask("inspect", path)[1]


def test_the_header_alone_does_not_see_the_blocks(ask, tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", file_type=7, scale=1e6)
    assert "nothing odd was found" in ask("inspect", path, "--header-only")[1]


def test_a_checkpoint_of_hugging_face_is_inspected_too(ask, tmp_path: Path) -> None:
    header = {
        "model.embed_tokens.weight": {"dtype": "F16", "shape": [8, 4], "data_offsets": [0, 64]},
        "model.layers.0.mlp.up_proj.weight": {
            "dtype": "F16",
            "shape": [4, 4],
            "data_offsets": [64, 96],
        },
    }
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(96))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    status, out, _ = ask("inspect", tmp_path)
    assert status == 0
    assert "Qwen2ForCausalLM" in out
    assert "48 weights, 16.0000 bits per weight" in out


HOSTILE = {
    "49 bytes, an array of 2**63": (
        struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 8, 2**63)
    ),
    "2**63 keys": struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**63),
    "empty": b"",
    "text": b"hello",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_sentence_at_once(ask, tmp_path: Path, name: str) -> None:
    path = tmp_path / "evil.gguf"
    path.write_bytes(HOSTILE[name])
    assert name != "49 bytes, an array of 2**63" or path.stat().st_size == 49
    begun = time.process_time()
    status, out, err = ask("inspect", path)
    assert time.process_time() - begun < 1
    assert status == 2
    assert err.startswith(f"ERROR: {path}: ")
    assert not out


def test_every_cut_of_a_file_is_one_sentence(ask, tmp_path: Path) -> None:
    data = write(tmp_path / "m.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for size in (1, 20, 200, 700, len(data) // 2, len(data) - 40):
        path.write_bytes(data[:size])
        status, _, err = ask("inspect", path)
        assert status == 2
        assert len(err.splitlines()) == 1
