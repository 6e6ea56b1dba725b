"""The safetensors reader on files written by hand, and on files that nobody should have written."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_ondevice.errors import BadFileError
from pytest_ondevice.formats import safetensors as reader
from pytest_ondevice.formats.safetensors import (
    DTYPE_BITS,
    Checkpoint,
    StoredTensor,
    read_folder,
    read_header,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


def framed(text: str | bytes, data: int = 0) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw + bytes(data)


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def one(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8), data: int = 8) -> bytes:
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    return framed(json.dumps({"t": tensor}), data)


def file_of(tensors: Mapping[str, tuple[str, list[int]]], **metadata: str) -> bytes:
    """A good file with these tensors, in this order, all zeros."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        count = DTYPE_BITS[dtype]
        for length in shape:
            count *= length
        header[name] = entry(dtype, shape, at, at + count // 8)
        at += count // 8
    return framed(json.dumps(header), at)


@pytest.fixture
def problem_of(tmp_path: Path) -> Callable[[bytes], str]:
    def problem_of(content: bytes) -> str:
        path = tmp_path / "m.safetensors"
        path.write_bytes(content)
        with pytest.raises(BadFileError) as caught:
            read_header(path)
        return str(caught.value).removeprefix(f"{path}: ")

    return problem_of


# What good files say


def test_small_file_by_hand(tmp_path: Path) -> None:
    header = {
        "b": entry("F32", [2, 3], 6, 30),  # 6 x 4 bytes
        "__metadata__": {"format": "pt"},
        "a": entry("BF16", [3], 0, 6),
        "scalar": entry("U8", [], 30, 31),
        "empty": entry("F16", [0, 5], 31, 31),
        "four": entry("F4", [2, 4], 31, 35),
    }
    text = json.dumps(header) + "   "  # as writers pad it
    path = tmp_path / "m.safetensors"
    path.write_bytes(framed(text, 35))
    read = read_header(path)
    assert [tensor.name for tensor in read.tensors] == ["a", "b", "scalar", "empty", "four"]
    assert read.tensors[1] == StoredTensor(name="b", dtype="F32", shape=(2, 3), start=6, end=30)
    assert [t.n_bytes for t in read.tensors] == [6, 24, 1, 0, 4]
    assert [t.n_elements for t in read.tensors] == [3, 6, 1, 0, 8]
    assert read.metadata == {"format": "pt"}
    assert read.header_bytes == len(text)
    assert read.file_size == 8 + len(text) + 35


def test_no_tensors(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(framed("{}"))
    assert read_header(path).tensors == ()


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_every_dtype(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_of({"t": (dtype, [4, 2])}))
    (tensor,) = read_header(path).tensors
    assert tensor.n_bytes * 8 == 8 * DTYPE_BITS[dtype]


def test_of_a_name_twice_the_last_counts(tmp_path: Path, problem_of: Callable[..., str]) -> None:
    first, second = (json.dumps(entry("U8", [4], *at)) for at in ((0, 4), (4, 8)))
    assert "'t' leaves a gap" in problem_of(framed(f'{{"t":{first},"t":{second}}}', 8))


# What bad files are told

MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "short": (b"\x02\0\0", "is truncated: it has 3 bytes, fewer than its length takes"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\n",
        "is a Git LFS pointer, not the model ('git lfs pull' fetches it)",
    ),
    "length_2e63": (
        struct.pack("<Q", 2**63) + b"{}",
        (f"is no safetensors file: its header would have {2**63} bytes (at most 100000000)"),
    ),
    "length_100m_and_1": (
        struct.pack("<Q", 100_000_001) + b"{}",
        "is no safetensors file: its header would have 100000001 bytes (at most 100000000)",
    ),
    "length_past_the_file": (
        struct.pack("<Q", 3) + b"{}",
        "is truncated: its header goes on to byte 11, the file has 10",
    ),
    "length_0": (framed(""), "is no safetensors file: its header starts with b''"),
    "space_first": (framed(" {}"), "is no safetensors file: its header starts with b' '"),
    "a_list": (framed("[]"), "is no safetensors file: its header starts with b'['"),
    # How a parser puts it may change with its version.
    "no_json": (framed("{x}"), "its header is no JSON of tensors: "),
    "two_values": (framed("{}{}"), "its header is no JSON of tensors: "),
    "metadata_number": (
        framed('{"__metadata__":{"a":1}}'),
        "its header is no JSON of tensors: ",
    ),
    "entry_number": (framed('{"t":1}'), "tensor 't': "),
    "entry_without_shape": (framed('{"t":{"dtype":"U8","data_offsets":[0,1]}}', 1), "tensor 't': "),
    "entry_with_more": (
        framed('{"t":{"dtype":"U8","shape":[],"data_offsets":[0,1],"x":1}}', 1),
        "tensor 't': ",
    ),
    "three_offsets": (one(offsets=[0, 8, 8]), "tensor 't': "),
    "shape_of_floats": (one(shape=[2.5]), "tensor 't': "),
    "nameless": (
        framed(json.dumps({"": entry("U8", [1], 0, 1)}), 1),
        "tensor '' has a name of 0 characters (expected 1 to 1024)",
    ),
    "newer_dtype": (
        one("F2"),
        "tensor 't' is of dtype 'F2', newer than this version knows",
    ),
    "dtype_in_small_letters": (
        one("f32"),
        "tensor 't' is of dtype 'f32', newer than this version knows",
    ),
    "nine_dims": (one(shape=[1] * 9), "tensor 't' has 9 dimensions (at most 8)"),
    "negative_dim": (one(shape=[-1, -2]), "tensor 't' has a negative dimension"),
    "huge_dims": (one(shape=[2**40, 2**40]), "tensor 't' has a shape of more than 2^63-1 bits"),
    "huge_and_zero": (one(shape=[2**70, 0]), "tensor 't' has a shape of more than 2^63-1 bits"),
    "dims_2e64": (  # 0 modulo 2^64
        one(shape=[2**32, 2**32], offsets=[0, 0], data=0),
        "tensor 't' has a shape of more than 2^63-1 bits",
    ),
    "half_a_byte": (one("F4", [3], (0, 1), 1), "tensor 't' has 12 bits, no whole number of bytes"),
    "other_bytes": (
        one(offsets=(0, 7)),
        "tensor 't' has 8 bytes by its shape [2] of F32 and 7 by its offsets",
    ),
    "reversed": (
        one(offsets=(8, 0)),
        "tensor 't' has 8 bytes by its shape [2] of F32 and -8 by its offsets",
    ),
    "negative_offset": (
        one(offsets=(-8, 0)),
        "tensor 't' has 8 bytes by its shape [2] of F32 and 8 by its offsets",
    ),
    "offset_2e80": (
        one(offsets=(0, 2**80)),
        "tensor 't' has 8 bytes by its shape [2] of F32 and more than 2^64 by its offsets",
    ),
    "gap_2e80": (
        one(offsets=(2**80, 2**80 + 8)),
        "tensor 't' leaves a gap: its data start at more than 2^64 (expected 0)",
    ),
    "gap": (
        one(offsets=(4, 12), data=12),
        "tensor 't' leaves a gap: its data start at 4 (expected 0)",
    ),
    "overlap": (
        framed(json.dumps({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 3, 7)}), 7),
        "tensor 'b' overlaps the one before it: its data start at 3 (expected 4)",
    ),
    "same_bytes": (
        framed(json.dumps({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 0, 4)}), 4),
        "tensor 'b' overlaps the one before it: its data start at 0 (expected 4)",
    ),
    "one_byte_short": (
        one(data=7),
        "is truncated: tensor 't' ends at byte 8 of the data, the file has 7 of them",
    ),
    "one_byte_more": (one(data=9), "has 1 bytes after its last tensor"),
    "deep": (framed('{"t":' + "[" * 100_000), "its header is no JSON of tensors: "),
    "deep_entry": (
        framed('{"t":' + "[" * 500 + "]" * 500 + "}"),
        "tensor 't': ",
    ),
    "not_utf8": (framed(b'{"\xff\xff":{}}'), "its header is no JSON of tensors: "),
    "many_commas": (
        framed("{" + "," * (2**19 + 1)),
        "has 524289 commas in its header (at most 524288)",
    ),
}


@pytest.mark.parametrize(("content", "expected"), MALFORMED.values(), ids=MALFORMED)
def test_malformed(problem_of: Callable[..., str], content: bytes, expected: str) -> None:
    tracemalloc.start()
    start = time.perf_counter()
    try:
        said = problem_of(content)
        assert tracemalloc.get_traced_memory()[1] < 2**20 + 4 * len(content)
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 1
    assert said.isprintable()
    if expected.endswith(": "):
        assert said.startswith(expected)
    else:
        assert said == expected


def test_many_small_objects_stay_small(problem_of: Callable[..., str]) -> None:
    text = "{" + ",".join(f'"{n:x}":0' for n in range(200_000)) + "}"
    tracemalloc.start()
    try:
        assert problem_of(framed(text)) == "has 200000 tensors (at most 65536)"
        assert tracemalloc.get_traced_memory()[1] < 60 * 2**20
    finally:
        tracemalloc.stop()


def test_ending_at_any_byte(problem_of: Callable[..., str]) -> None:
    content = file_of({"a": ("F16", [3]), "b": ("U8", [2])}, format="pt")
    for length in range(1, len(content)):
        assert "is truncated" in problem_of(content[:length])


def test_what_is_no_file(tmp_path: Path) -> None:
    for path, said in ((tmp_path, "is a folder"), (tmp_path / "no", "does not exist")):
        with pytest.raises(BadFileError, match=said):
            read_header(path)


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    content = bytearray(file_of({"a": ("F16", [3]), "b": ("F32", [2, 2])}, k="v"))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content) - 1))
        match draw(st.sampled_from(["flip", "set", "insert", "delete"])):
            case "flip":
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                content[at] = draw(st.sampled_from(b'0123456789{}[]",:-e\\\x00\xff'))
            case "insert":
                content[at:at] = draw(st.binary(min_size=1, max_size=5))
            case "delete":
                del content[at : at + draw(st.integers(1, 5))]
    return bytes(content)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutations() | st.binary(max_size=60).map(framed) | st.binary(max_size=40))
def test_any_bytes_are_a_header_or_a_bad_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(content)
    try:
        header = read_header(path)
    except BadFileError as error:
        said = str(error)
    else:
        said = ""
        assert sum(t.n_bytes for t in header.tensors) + header.header_bytes + 8 == len(content)
    assert said.isprintable()


# Folders

SHARDS = {
    "model-00001-of-00002.safetensors": {"a": ("F16", [4]), "b": ("U8", [3])},
    "model-00002-of-00002.safetensors": {"c": ("F32", [2])},
}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    places: dict[str, str] = {}
    for name, tensors in SHARDS.items():
        (tmp_path / name).write_bytes(file_of(tensors, format="pt"))
        places |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": 19}, "weight_map": places}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


def folder_problem(folder: Path) -> str:
    with pytest.raises(BadFileError) as caught:
        read_folder(folder)
    text = str(caught.value)
    assert text.isprintable()
    return text.replace(f"{folder}", "F")


def reindex(folder: Path, **changes: Any) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= changes
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if v is not None}
    path.write_text(json.dumps(index))


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    content = file_of({"a": ("F16", [4])}, format="pt")
    (tmp_path / "model.safetensors").write_bytes(content)
    (tmp_path / "config.json").write_text('{"limit": [0.0, Infinity], "n": {"k": null}}')
    assert read_folder(tmp_path) == Checkpoint(
        config={"limit": [0.0, float("inf")], "n": {"k": None}},
        tensors=(StoredTensor(name="a", dtype="F16", shape=(4,), start=0, end=8),),
        metadata={"format": "pt"},
        files=("model.safetensors",),
        file_size=len(content),
    )


def test_a_folder_with_shards(sharded: Path) -> None:
    read = read_folder(sharded)
    assert [tensor.name for tensor in read.tensors] == ["a", "b", "c"]
    assert read.files == tuple(SHARDS)
    assert read.file_size == sum((sharded / name).stat().st_size for name in SHARDS)
    assert read.config == {"model_type": "llama"}


def test_links_as_in_a_cache_of_the_hub(sharded: Path, tmp_path_factory: Any) -> None:
    elsewhere = tmp_path_factory.mktemp("blobs")
    for number, name in enumerate(SHARDS):
        (sharded / name).rename(elsewhere / f"{number}")
        (sharded / name).symlink_to(elsewhere / f"{number}")
    assert len(read_folder(sharded).tensors) == 3


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "sub/x.safetensors",
        "..\\x.safetensors",
        "C:x.safetensors",
        "x\n.safetensors",
        "x\0.safetensors",
        "pytorch_model.bin",
        "",
    ],
)
def test_an_index_leads_nowhere_else(sharded: Path, name: str) -> None:
    reindex(sharded, c=name)
    assert folder_problem(sharded) == (
        f"F/model.safetensors.index.json: names {name!r} (expected a safetensors file in the same "
        "folder)"
    )


def test_a_missing_shard(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    assert folder_problem(sharded) == (
        "F/model.safetensors.index.json: names 'model-00002-of-00002.safetensors', which is not "
        "there"
    )


def test_a_damaged_shard(sharded: Path) -> None:
    path = sharded / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "F/model-00002-of-00002.safetensors: is truncated" in folder_problem(sharded)


def test_an_index_that_says_otherwise(sharded: Path) -> None:
    first, second = SHARDS
    reindex(sharded, b=second)
    assert folder_problem(sharded) == (
        f"F/{first}: holds tensor 'b', which model.safetensors.index.json does not say is in it"
    )
    reindex(sharded, b=first, d=first, e=first)
    assert folder_problem(sharded) == (
        f"F/{first}: lacks tensor 'd' and 1 more, which model.safetensors.index.json says is in it"
    )
    reindex(sharded, d=None, e=None, b=None)
    assert folder_problem(sharded) == (
        f"F/{first}: holds tensor 'b', which model.safetensors.index.json does not say is in it"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "is no index of tensors: "),
        ("{}", "is no index of tensors: "),
        ('{"weight_map": {}}', "names 0 files (expected 1 to 2048)"),
        ('{"weight_map": {"a": 1}}', "is no index of tensors: "),
        ('{"metadata":' + "[" * 100_000, "is no index of tensors: "),
    ],
)
def test_a_bad_index(sharded: Path, text: str, said: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    assert folder_problem(sharded).startswith(f"F/model.safetensors.index.json: {said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is empty"),
        (b"[1]", "is no JSON object but list"),
        (b"{", "is no JSON: "),
        (b'{"a": 1, "b": 2, "a": 3}', "is no JSON: key 'a' is there twice"),
        (b'{"q": {"a": 1, "a": 1}}', "is no JSON: key 'a' is there twice"),
        (b'{"a":' * 200_000, "is no JSON: it is nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is no JSON: Exceeds the limit"),
        (b"\xff{}", "is no JSON: 'utf-8' codec"),
        (b" " * (4 * 1024**2 + 1), "has 4194305 bytes (at most 4194304)"),
    ],
)
def test_a_bad_config(sharded: Path, text: bytes, said: str) -> None:
    (sharded / "config.json").write_bytes(text)
    assert folder_problem(sharded).startswith(f"F/config.json: {said}")


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    assert folder_problem(tmp_path / "no") == "F: is no folder"
    assert folder_problem(tmp_path) == "F/config.json: does not exist"
    (tmp_path / "config.json").write_text("{}")
    assert folder_problem(tmp_path) == (
        "F: has neither model.safetensors nor model.safetensors.index.json"
    )
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    assert folder_problem(tmp_path) == (
        "F: has its weights only as a pickle, 'pytorch_model.bin', which can run code when it is "
        "loaded (save the model again as safetensors)"
    )
    (tmp_path / "model.safetensors").write_bytes(file_of({"a": ("F16", [4])}))
    assert len(read_folder(tmp_path).tensors) == 1


def test_too_many_tensors(problem_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_TENSORS", 1)
    content = file_of({"a": ("F16", [4]), "b": ("F16", [4])})
    assert problem_of(content) == "has 2 tensors (at most 1)"
