"""The GGUF reader on files that gguf writes, and on files that nobody should have written."""

from __future__ import annotations

import hashlib
import os
import struct
import time
import tracemalloc
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gguf
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_ondevice.errors import BadFileError, OnDeviceError
from pytest_ondevice.formats import gguf as reader
from pytest_ondevice.formats import opening
from pytest_ondevice.formats.gguf import read_header
from pytest_ondevice.model.artifact import ArrayInfo, Header, TensorInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARRAY, U64, I64, F64 = range(13)
CODES = dict(zip((U8, I8, U16, I16, U32, I32, F32, U64, I64, F64), "BbHhIifQqd", strict=True))
Q4_K = 12


# A writer of our own, because gguf's refuses to write most of what is needed here.


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return u64(len(raw)) + raw


def key(name: str | bytes, type_id: int, payload: bytes) -> bytes:
    return string(name) + u32(type_id) + payload


def array(name: str, type_id: int, values: Sequence[Any]) -> bytes:
    pack = string if type_id == STR else lambda value: struct.pack(f"<{CODES[type_id]}", value)
    return key(name, ARRAY, u32(type_id) + u64(len(values)) + b"".join(map(pack, values)))


def tensor(
    name: str | bytes, shape: Sequence[int] = (8,), type_id: int = 0, offset: int = 0
) -> bytes:
    dims = b"".join(map(u64, shape))
    return string(name) + u32(len(shape)) + dims + u32(type_id) + u64(offset)


ARCH = key("general.architecture", STR, string("llama"))


def head(
    *keys: bytes, tensors: Sequence[bytes] = (), n_keys: int | None = None, version: int = 3
) -> bytes:
    counts = u64(len(tensors)) + u64(len(keys) if n_keys is None else n_keys)
    return b"GGUF" + u32(version) + counts + b"".join(keys) + b"".join(tensors)


def whole(*keys: bytes, tensors: Sequence[bytes] = (), data: int = 0, alignment: int = 32) -> bytes:
    header = head(ARCH, *keys, tensors=tensors)
    return header + bytes(-len(header) % alignment) + bytes(data)


TOKENIZER = (
    key("tokenizer.ggml.model", STR, string("gpt2")),
    array("tokenizer.ggml.tokens", STR, ["a", "b", "ab"]),
    array("tokenizer.ggml.scores", F32, [0.0, -1.0, -2.0]),
    array("tokenizer.ggml.token_type", I32, [1, 1, 1]),
    array("tokenizer.ggml.merges", STR, ["a b"]),
    key("tokenizer.ggml.add_bos_token", BOOL, b"\1"),
)
SMALL = whole(
    key("general.file_type", U32, u32(15)),
    *TOKENIZER,
    tensors=[
        tensor("token_embd.weight", (256, 3), Q4_K, 0),
        tensor("blk.0.attn_norm.weight", (256,), 0, 448),
        tensor("output.weight", (64, 2), 1, 1472),
    ],
    data=1472 + 256,
)
HEADER_BYTES = len(SMALL) - 1728


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Header]:
    def read(content: bytes, **options: int) -> Header:
        path = tmp_path / "m.gguf"
        path.write_bytes(content)
        return read_header(path, **options)

    return read


def problem(path: Path, **options: int) -> str:
    with pytest.raises(BadFileError) as caught:
        read_header(path, **options)
    assert isinstance(caught.value, OnDeviceError)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.fixture
def problem_of(tmp_path: Path) -> Callable[..., str]:
    def problem_of(content: bytes, **options: int) -> str:
        path = tmp_path / "m.gguf"
        path.write_bytes(content)
        return problem(path, **options)

    return problem_of


# What good files say


def test_small_file_by_hand(read: Callable[..., Header]) -> None:
    header = read(SMALL)
    assert header.version == 3
    assert header.architecture == "llama"
    assert header.alignment == 32
    assert header.file_type == 15
    assert header.file_size == len(SMALL)
    assert header.data_offset == HEADER_BYTES
    assert header.data_size == 1728
    assert header.split is None
    assert header.tensors == (
        TensorInfo(name="token_embd.weight", shape=(256, 3), type="Q4_K", offset=0),
        TensorInfo(name="blk.0.attn_norm.weight", shape=(256,), type="F32", offset=448),
        TensorInfo(name="output.weight", shape=(64, 2), type="F16", offset=1472),
    )
    assert [(t.n_weights, t.n_bytes) for t in header.tensors] == [
        (768, 432),
        (256, 1024),
        (128, 256),
    ]
    assert header.metadata == {
        "general.architecture": "llama",
        "general.file_type": 15,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ("a", "b", "ab"),
        "tokenizer.ggml.scores": (0.0, -1.0, -2.0),
        "tokenizer.ggml.token_type": (1, 1, 1),
        "tokenizer.ggml.merges": ("a b",),
        "tokenizer.ggml.add_bos_token": True,
    }


def test_header_survives_json(read: Callable[..., Header]) -> None:
    header = read(whole(*TOKENIZER, array("x", U8, bytes(65)), tensors=[tensor("t")], data=32))
    assert isinstance(header.metadata["x"], ArrayInfo)
    assert msgspec.json.decode(msgspec.json.encode(header), type=Header) == header


def test_version_2_and_a_link(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(head(ARCH, version=2))
    (tmp_path / "m.gguf").symlink_to(tmp_path / "blob")
    assert read_header(tmp_path / "m.gguf").version == 2
    assert read_header(str(tmp_path / "m.gguf")).version == 2


def test_only_a_vocabulary(read: Callable[..., Header]) -> None:
    content = head(ARCH, *TOKENIZER)
    header = read(content)
    assert (header.tensors, header.data_offset, header.data_size) == ((), len(content), 0)
    assert header.file_type is None


@pytest.mark.parametrize("alignment", [8, 64, 65536])
def test_alignment(read: Callable[..., Header], alignment: int) -> None:
    content = whole(
        key("general.alignment", U32, u32(alignment)),
        tensors=[tensor("a", (1,)), tensor("b", (1,), offset=alignment)],
        data=alignment + 4,
        alignment=alignment,
    )
    header = read(content)
    assert header.alignment == alignment
    assert header.data_offset == len(content) - alignment - 4
    assert header.data_offset % alignment == 0
    assert header.data_size == alignment + 4


def test_what_follows_the_last_tensor_does_not_matter(read: Callable[..., Header]) -> None:
    tensors = [tensor("a", (1,)), tensor("b", (1,), offset=32)]
    bare, padded, more = (read(whole(tensors=tensors, data=n)) for n in (36, 64, 999))
    assert bare.data_size == padded.data_size == more.data_size == 36


def test_longest_and_shortest_names(read: Callable[..., Header]) -> None:
    letters = [chr(code) for code in range(48, 122)]
    header = read(
        whole(
            *(key(letter, U8, b"\0") for letter in letters),
            key("k" * 65535, U8, b"\0"),
            tensors=[tensor("t" * 63)],
            data=32,
        )
    )
    assert {len(name) for name in header.metadata} == {20, 1, 65535}
    assert header.tensors[0].name == "t" * 63
    small = head(ARCH, *(key(letter, U8, b"\0") for letter in letters))
    assert len(small) == 24 + len(ARCH) + 14 * len(letters)
    assert list(read(small).metadata) == ["general.architecture", *letters]


def test_split_files(read: Callable[..., Header]) -> None:
    def split(number: int, count: int) -> tuple[bytes, bytes]:
        return (
            key("split.no", U16, struct.pack("<H", number)),
            key("split.count", U16, struct.pack("<H", count)),
        )

    assert read(whole(*split(0, 3))).split == (0, 3)
    later = read(head(*split(2, 3)))
    assert (later.split, later.architecture) == ((2, 3), "")
    assert read(whole(*split(0, 1))).split is None
    with pytest.raises(BadFileError, match="metadata says that it is file 3 of 3, counted from 0"):
        read(whole(*split(3, 3)))
    with pytest.raises(BadFileError, match=r"has no general\.architecture$"):
        read(head(*split(0, 3)))


def test_all_scalar_types(read: Callable[..., Header]) -> None:
    values = {
        U8: 255,
        I8: -128,
        U16: 65535,
        I16: -32768,
        U32: 2**32 - 1,
        I32: -(2**31),
        F32: 0.5,
        U64: 2**64 - 1,
        I64: -(2**63),
        F64: 0.1,
    }
    keys = [key(f"k{t}", t, struct.pack(f"<{CODES[t]}", v)) for t, v in values.items()]
    arrays = [array(f"a{t}", t, [v, v]) for t, v in values.items()]
    metadata = read(whole(*keys, *arrays, key("no", BOOL, b"\0"))).metadata
    for type_id, value in values.items():
        assert metadata[f"k{type_id}"] == value
        assert metadata[f"a{type_id}"] == (value, value)
    assert metadata["no"] is False


def test_text_that_is_not_utf8_is_kept_readable(read: Callable[..., Header]) -> None:
    metadata = read(
        whole(key("x", STR, string(b"caf\xe9")), key("y", STR, string("café")))
    ).metadata
    assert (metadata["x"], metadata["y"]) == ("caf\\xe9", "café")
    assert read(whole(array("x", STR, [b"\xff", b"a"]))).metadata["x"] == ("\\xff", "a")


def test_long_values_become_digests(
    read: Callable[..., Header], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers, words = list(range(65)), [f"t{n}" for n in range(65)]
    metadata = read(whole(array("n", U16, numbers), array("s", STR, words))).metadata
    assert metadata["n"] == ArrayInfo(
        type="u16", length=65, digest=hashlib.sha256(struct.pack("<65H", *numbers)).hexdigest()
    )
    assert metadata["s"] == ArrayInfo(
        type="str", length=65, digest=hashlib.sha256(b"".join(map(string, words))).hexdigest()
    )
    kept = read(whole(array("n", U16, numbers[:64]), array("s", STR, words[:64]))).metadata
    assert (kept["n"], kept["s"]) == (tuple(numbers[:64]), tuple(words[:64]))

    monkeypatch.setattr(reader, "KEPT_BYTES", 100)
    metadata = read(
        whole(
            key("long", STR, string("x" * 101)),
            key("short", STR, string("x" * 100)),
            array("few", STR, ["x" * 93]),
            array("fewer", STR, ["x" * 92]),
        )
    ).metadata
    assert metadata["long"] == ArrayInfo(
        type="text", length=101, digest=hashlib.sha256(b"x" * 101).hexdigest()
    )
    assert metadata["short"] == "x" * 100
    assert metadata["few"] == ArrayInfo(
        type="str", length=1, digest=hashlib.sha256(string("x" * 93)).hexdigest()
    )
    assert metadata["fewer"] == ("x" * 92,)


def test_tokenizer_digest(read: Callable[..., Header], monkeypatch: pytest.MonkeyPatch) -> None:
    long_array = array("tokenizer.x", STR, ["t"] * 65)
    keys = [*TOKENIZER, long_array]
    digest = read(whole(*keys)).tokenizer_digest
    assert digest is not None
    assert len(digest) == 64
    # Another quantization of the same model: other keys, other order, other weights.
    other = key("general.file_type", U32, u32(7))
    same = read(whole(*keys[::-1], other, tensors=[tensor("t")], data=32))
    assert same.tokenizer_digest == digest

    changes = [
        keys[1:],
        [*keys[1:], key("tokenizer.ggml.model", STR, string("gpt3"))],
        [*keys[:1], array("tokenizer.ggml.tokens", STR, ["a", "b", "aB"]), *keys[2:]],
        [*keys[:5], key("tokenizer.ggml.add_bos_token", BOOL, b"\0"), long_array],
        [*keys[:5], key("tokenizer.ggml.add_bos_token", U8, b"\1"), long_array],
        [*keys[:-1], array("tokenizer.x", STR, ["t"] * 64 + ["u"])],
        [*keys[:-1], array("tokenizer.x", STR, ["t"] * 66)],
        [*keys[:-1], array("tokenizer.y", STR, ["t"] * 65)],
    ]
    digests = {read(whole(*change)).tokenizer_digest for change in changes}
    assert len(digests) == len(changes)
    assert digest not in digests

    assert read(whole(other)).tokenizer_digest is None
    # A chat template says how a conversation is put into words: another matter than tokens.
    template = key("tokenizer.chat_template", STR, string("one"))
    assert read(whole(template, *keys)).tokenizer_digest == digest
    assert read(whole(template)).tokenizer_digest is None
    # Long text is hashed once, as its own digest.
    monkeypatch.setattr(reader, "KEPT_BYTES", 1)
    texts = [key("tokenizer.note", STR, string(text)) for text in ("one", "two")]
    assert len({read(whole(text)).tokenizer_digest for text in texts}) == 2


def test_a_file_beyond_4_gib_is_read_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    n_bytes = 5 * 2**30
    last = tensor("b", (8,), offset=n_bytes)
    content = whole(tensors=[tensor("a", (2**20, n_bytes // 2**22)), last])
    with path.open("wb") as file:
        file.write(content)
        file.truncate(len(content) + n_bytes + 32)  # sparse
    header = read_header(path)
    assert (header.file_size, header.data_size) == (len(content) + n_bytes + 32, n_bytes + 32)
    os.truncate(path, header.file_size - 1)
    assert problem(path) == (
        f"is truncated: tensor 'b' ends at byte {header.file_size}, the file has "
        f"{header.file_size - 1}"
    )


def test_header_does_not_depend_on_the_size_of_reads(
    read: Callable[..., Header], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = whole(
        *TOKENIZER,
        array("s", STR, ["x" * n for n in range(99)]),
        key("b", ARRAY, u32(BOOL) + u64(99) + b"\0\1\0" * 33),
        tensors=[tensor("t")],
        data=32,
    )
    expected = read(content)
    for chunk in range(99, 0, -1):
        monkeypatch.setattr(reader, "_CHUNK", chunk)
        assert read(content) == expected
    bad = content.replace(b"\0\1\0" * 33, b"\0\1\0" * 32 + b"\0\1\2")
    at = bad.index(b"\0\1\2") + 2
    with pytest.raises(BadFileError, match=rf"has a bool of 2 at byte {at} \(expected 0 or 1\)$"):
        read(bad)


# What gguf writes is read back

VALUE_TYPES = gguf.GGUFValueType
SCALARS: dict[gguf.GGUFValueType, st.SearchStrategy[Any]] = {
    VALUE_TYPES.UINT8: st.integers(0, 2**8 - 1),
    VALUE_TYPES.INT8: st.integers(-(2**7), 2**7 - 1),
    VALUE_TYPES.UINT16: st.integers(0, 2**16 - 1),
    VALUE_TYPES.INT16: st.integers(-(2**15), 2**15 - 1),
    VALUE_TYPES.UINT32: st.integers(0, 2**32 - 1),
    VALUE_TYPES.INT32: st.integers(-(2**31), 2**31 - 1),
    VALUE_TYPES.UINT64: st.integers(0, 2**64 - 1),
    VALUE_TYPES.INT64: st.integers(-(2**63), 2**63 - 1),
    VALUE_TYPES.FLOAT32: st.floats(width=32, allow_nan=False),
    VALUE_TYPES.FLOAT64: st.floats(allow_nan=False),
    VALUE_TYPES.BOOL: st.booleans(),
    VALUE_TYPES.STRING: st.text(max_size=40),
}
VALUES = st.sampled_from(list(SCALARS)).flatmap(
    lambda kind: st.tuples(
        st.just(kind), SCALARS[kind] | st.lists(SCALARS[kind], min_size=1, max_size=64).map(tuple)
    )
)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=15)


@st.composite
def tensor_infos(draw: st.DrawFn) -> tuple[str, tuple[int, ...]]:
    # gguf up to 0.19.0 has the wrong size for Q8_1, which never is in a file.
    kinds = [kind for kind in gguf.GGMLQuantizationType if kind.name != "Q8_1"]
    kind = draw(st.sampled_from(kinds))
    row = draw(st.integers(1, 3)) * gguf.GGML_QUANT_SIZES[kind][0]
    return kind.name, (row, *draw(st.lists(st.integers(1, 4), max_size=3)))


@settings(max_examples=60, deadline=None)
@given(
    # The prefix keeps hypothesis from finding keys that mean something.
    metadata=st.dictionaries(NAMES.map("x.{}".format), VALUES, max_size=6),
    tensors=st.dictionaries(NAMES, tensor_infos(), max_size=5),
    alignment=st.sampled_from([None, 8, 256]),
)
def test_what_gguf_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    metadata: dict[str, tuple[gguf.GGUFValueType, Any]],
    tensors: dict[str, tuple[str, tuple[int, ...]]],
    alignment: int | None,
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for name, (kind, value) in metadata.items():
        if isinstance(value, tuple):
            writer.add_key_value(name, value, VALUE_TYPES.ARRAY, sub_type=kind)
        else:
            writer.add_key_value(name, value, kind)
    for name, (type_name, shape) in tensors.items():
        quant = gguf.GGMLQuantizationType[type_name]
        raw_shape = gguf.quant_shape_to_byte_shape(shape[::-1], quant)
        writer.add_tensor(name, np.ones(raw_shape, np.uint8), raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    header = read_header(path)
    values = {name: value for name, (_, value) in metadata.items()}
    aligned = {} if alignment is None else {"general.alignment": alignment}
    assert header.metadata == {"general.architecture": "qwen2", **aligned, **values}
    assert {t.name: (t.type, t.shape) for t in header.tensors} == tensors
    theirs = gguf.GGUFReader(path).tensors
    assert [(t.name, t.n_weights, t.n_bytes) for t in header.tensors] == [
        (t.name, t.n_elements, t.n_bytes) for t in theirs
    ]
    assert [header.data_offset + t.offset for t in header.tensors] == [
        t.data_offset for t in theirs
    ]


# Paths that are no files of ours


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert problem(tmp_path) == "is a folder"
    assert problem(tmp_path / "empty") == "is empty"
    assert problem(tmp_path / "pipe") == "is not a regular file"
    assert problem(tmp_path / "missing") == "does not exist"
    assert problem(tmp_path / "broken") == "does not exist"
    assert problem(tmp_path / "empty" / "m.gguf") == "cannot be read: Not a directory"
    with pytest.raises(BadFileError, match="is no path: embedded null"):
        read_header("a\0b")


def test_a_file_that_shrinks_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(SMALL[:50])
    status = SimpleNamespace(st_mode=path.stat().st_mode, st_size=len(SMALL))
    monkeypatch.setattr(opening, "_status", lambda _: status)
    assert problem(path) == (
        f"changed while it was read: it had {len(SMALL)} bytes, now it ends at byte 50"
    )


# Content that is wrong

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
ALIGNED_BY = "its metadata has a general.alignment of {} (expected a power of two from 8 to 65536)"


def one_tensor(*args: Any, data: int = 32, **kwargs: Any) -> bytes:
    return whole(tensors=[tensor(*args, **kwargs)], data=data)


def alignment_of(value: int) -> bytes:
    return head(ARCH, key("general.alignment", U32, u32(value)))


MALFORMED = {
    # The file as a whole
    "zip": (b"PK\3\4" + bytes(99), "not a GGUF file: starts with b'PK\\x03\\x04'"),
    "html": (b"<!DOCTYPE html>", "not a GGUF file: starts with b'<!DO'"),
    "one_byte": (b"\0", "not a GGUF file: starts with b'\\x00'"),
    "lfs_pointer": (LFS, "is a Git LFS pointer, not the model ('git lfs pull' fetches it)"),
    "big_endian": (
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        "is a big-endian GGUF file (supported: little-endian)",
    ),
    "big_endian_magic": (
        b"FUGG" + struct.pack(">IQQ", 3, 0, 0),
        "is a big-endian GGUF file (supported: little-endian)",
    ),
    "version_0": (head(ARCH, version=0), "GGUF version 0 (supported: 2 and 3)"),
    "version_1": (head(ARCH, version=1), "GGUF version 1 (supported: 2 and 3)"),
    "version_4": (head(ARCH, version=4), "GGUF version 4 (supported: 2 and 3)"),
    "ends_in_magic": (b"GG", "is truncated: its header goes on to byte 4 at least, the file has 2"),
    "ends_in_counts": (
        head(ARCH)[:20],
        "is truncated: its header goes on to byte 24 at least, the file has 20",
    ),
    "n_keys_2e62": (
        head(ARCH, n_keys=2**62),
        (
            f"is truncated or damaged: it claims {2**62} metadata keys, its 69 bytes have room for "
            "3 at most"
        ),
    ),
    "n_tensors_2e63": (
        b"GGUF" + u32(3) + u64(2**63) + u64(1) + ARCH,
        f"is truncated or damaged: it claims {2**63} tensors, its 69 bytes have room for 1 at most",
    ),
    "one_key_too_many": (
        head(ARCH, n_keys=2),
        "is truncated: key number 1 goes on to byte 77 at least, the file has 69",
    ),
    # Keys and values
    "no_keys": (head(), "its metadata has no general.architecture"),
    "no_architecture": (
        head(key("general.name", STR, string("x"))),
        "its metadata has no general.architecture",
    ),
    "empty_architecture": (
        head(key("general.architecture", STR, string(""))),
        "its metadata has no general.architecture",
    ),
    "architecture_is_number": (
        head(key("general.architecture", U32, u32(1))),
        "key 'general.architecture' is u32 at byte 52 (expected str)",
    ),
    "array_2e63": (  # 49 bytes, on which gguf 0.19.0 hangs
        head(key("k", ARRAY, u32(U8) + u64(2**63))),
        (
            "key 'k' is truncated or damaged: it claims an array of 9223372036854775808 u8 at "
            "byte 33, where the file has 0 bytes left"
        ),
    ),
    "array_2e61_of_u64": (  # its size in bytes is 0 modulo 2^64
        head(ARCH, key("k", ARRAY, u32(U64) + u64(2**61))),
        (
            f"key 'k' is truncated or damaged: it claims an array of {2**61} u64 at byte 78, "
            "where the file has 0 bytes left"
        ),
    ),
    "array_of_str_2e62": (
        head(ARCH, key("k", ARRAY, u32(STR) + u64(2**62))),
        (
            f"key 'k' is truncated or damaged: it claims an array of {2**62} str at byte 78, "
            "where the file has 0 bytes left"
        ),
    ),
    "string_2e62": (
        head(ARCH, key("k", STR, u64(2**62))),
        (
            f"key 'k' is truncated or damaged: it claims a text of {2**62} bytes at byte 82, "
            "where the file has 0 left"
        ),
    ),
    "string_in_array_2e62": (
        head(ARCH, key("k", ARRAY, u32(STR) + u64(3) + string("a") + u64(2**62) + u64(0))),
        (
            "key 'k' is truncated or damaged: string 2 of 3 would end at byte "
            f"{111 + 2**62}, the file has 119"
        ),
    ),
    "last_string_in_array": (
        head(ARCH, key("k", ARRAY, u32(STR) + u64(2) + string("a") + u64(1))),
        ("key 'k' is truncated or damaged: string 2 of 2 would end at byte 112, the file has 111"),
    ),
    "nested_array": (
        head(ARCH, key("k", ARRAY, u32(ARRAY) + u64(1) + u32(U8) + u64(1) + b"\1")),
        "key 'k' is an array of arrays at byte 78, which GGUF loaders refuse",
    ),
    "unknown_value_type": (
        head(ARCH, key("k", 13, bytes(8))),
        "key 'k' has unknown type 13 at byte 78 (known: 0 to 12)",
    ),
    "unknown_element_type": (
        head(ARCH, key("k", ARRAY, u32(77) + u64(0))),
        "key 'k' has unknown type 77 at byte 78 (known: 0 to 12)",
    ),
    "bool_2": (
        head(ARCH, key("k", BOOL, b"\2")),
        "key 'k' has a bool of 2 at byte 82 (expected 0 or 1)",
    ),
    "bool_255_in_array": (
        head(ARCH, key("k", ARRAY, u32(BOOL) + u64(3) + b"\0\1\xff")),
        "key 'k' has a bool of 255 at byte 96 (expected 0 or 1)",
    ),
    "empty_key": (
        head(ARCH, key("", U8, b"\0\0")),
        "key number 1 has an empty name at byte 77",
    ),
    "key_not_utf8": (
        head(ARCH, key(b"k\xff", U8, b"\0")),
        "key number 1 has a name that is not UTF-8 at byte 77: b'k\\xff'",
    ),
    "key_too_long": (
        head(ARCH, key("k" * 65536, U8, b"\0")),
        "key number 1 has a name of 65536 bytes at byte 69 (at most 65535)",
    ),
    "key_2e62": (
        head(ARCH, u64(2**62) + bytes(9)),
        "key number 1 has a name of 4611686018427387904 bytes at byte 69 (at most 65535)",
    ),
    "key_past_the_end": (
        head(ARCH, u64(10) + bytes(9)),
        (
            "key number 1 is truncated or damaged: it claims a name of 10 bytes at byte 69, "
            "where the file has 9 left"
        ),
    ),
    "key_twice": (
        head(ARCH, key("k", U8, b"\0"), key("k", U8, b"\0")),
        "key 'k' is there twice, again before byte 92",
    ),
    "long_key_in_message": (
        head(ARCH, key("k" * 81, BOOL, b"\2")),
        f"key '{'k' * 77}...' has a bool of 2 at byte 162 (expected 0 or 1)",
    ),
    "alignment_2e31": (alignment_of(2**31), ALIGNED_BY.format(2**31)),
    "alignment_2e17": (alignment_of(2**17), ALIGNED_BY.format(2**17)),
    "alignment_4": (alignment_of(4), ALIGNED_BY.format(4)),
    "alignment_48": (alignment_of(48), ALIGNED_BY.format(48)),
    "alignment_0": (alignment_of(0), ALIGNED_BY.format(0)),
    "alignment_is_u64": (
        head(ARCH, key("general.alignment", U64, u64(32))),
        "key 'general.alignment' is u64 at byte 94 (expected u32)",
    ),
    # Tokenizers
    "scores_int8": (
        head(ARCH, array("tokenizer.ggml.scores", I8, [0])),
        (
            "key 'tokenizer.ggml.scores' is array of i8 at byte 98 (expected array of f32 or "
            "array of i32)"
        ),
    ),
    "tokens_are_numbers": (
        head(ARCH, array("tokenizer.ggml.tokens", I32, [0])),
        "key 'tokenizer.ggml.tokens' is array of i32 at byte 98 (expected array of str)",
    ),
    "tokens_are_one_text": (
        head(ARCH, key("tokenizer.ggml.tokens", STR, string("a"))),
        "key 'tokenizer.ggml.tokens' is str at byte 98 (expected array of str)",
    ),
    "token_types_are_unsigned": (
        head(ARCH, array("tokenizer.ggml.token_type", U32, [0])),
        ("key 'tokenizer.ggml.token_type' is array of u32 at byte 102 (expected array of i32)"),
    ),
    "fewer_scores_than_tokens": (
        head(
            ARCH,
            array("tokenizer.ggml.tokens", STR, ["a"] * 70),
            array("tokenizer.ggml.scores", F32, [0.0] * 69),
        ),
        "key 'tokenizer.ggml.scores' has 69 elements for 70 tokens (expected one each)",
    ),
    "more_token_types_than_tokens": (
        head(
            ARCH,
            array("tokenizer.ggml.token_type", I32, [1, 1, 1]),
            array("tokenizer.ggml.tokens", STR, ["a", "b"]),
        ),
        "key 'tokenizer.ggml.token_type' has 3 elements for 2 tokens (expected one each)",
    ),
    "no_scores_for_tokens": (
        head(
            ARCH,
            array("tokenizer.ggml.tokens", STR, ["a"]),
            array("tokenizer.ggml.scores", F32, []),
        ),
        "key 'tokenizer.ggml.scores' has 0 elements for 1 tokens (expected one each)",
    ),
    "scores_without_tokens": (
        head(ARCH, array("tokenizer.ggml.scores", F32, [0.0])),
        "key 'tokenizer.ggml.scores' has 1 elements for 0 tokens (expected one each)",
    ),
    # Tensors
    "no_dims": (one_tensor("t", ()), "tensor 't' has 0 dimensions at byte 78 (expected 1 to 4)"),
    "five_dims": (
        one_tensor("t", (1, 1, 1, 1, 1)),
        "tensor 't' has 5 dimensions at byte 78 (expected 1 to 4)",
    ),
    "dims_2e32": (
        whole(tensors=[string("t") + u32(2**32 - 1) + bytes(32)]),
        "tensor 't' has 4294967295 dimensions at byte 78 (expected 1 to 4)",
    ),
    "zero_dim": (
        one_tensor("t", (8, 0)),
        "tensor 't' has shape (8, 0) (expected each dimension to be at least 1), at byte 78",
    ),
    "partial_block": (
        one_tensor("t", (128, 2), Q4_K),
        (
            "tensor 't' has rows of 128 weights, which is no multiple of the 256 in a block of "
            "Q4_K, at byte 78"
        ),
    ),
    "weights_2e63": (
        one_tensor("t", (2**21, 2**21, 2**21)),
        (f"tensor 't' has shape {(2**21,) * 3}, more than 2^63-1 weights or bytes, at byte 78"),
    ),
    "weights_2e64": (  # 0 modulo 2^64
        one_tensor("t", (2**32, 2**32)),
        f"tensor 't' has shape ({2**32}, {2**32}), more than 2^63-1 weights or bytes, at byte 78",
    ),
    "bytes_2e63": (
        one_tensor("t", (2**61,)),
        f"tensor 't' has shape ({2**61},), more than 2^63-1 weights or bytes, at byte 78",
    ),
    "negative_dim": (
        one_tensor("t", (2**64 - 1,), 24),
        f"tensor 't' has shape ({2**64 - 1},), more than 2^63-1 weights or bytes, at byte 78",
    ),
    "newer_type": (
        one_tensor("t", (8,), 77),
        "tensor 't' is of tensor type 77 at byte 90, newer than this version knows (0 to 42)",
    ),
    "removed_type": (
        one_tensor("t", (8,), 31),
        (
            "tensor 't' has type 31 at byte 90, Q4_0_4_4, which llama.cpp removed (quantize the "
            "model again)"
        ),
    ),
    "tensor_without_name": (one_tensor(""), "tensor number 0 has an empty name at byte 77"),
    "tensor_name_too_long": (
        one_tensor("t" * 64),
        "tensor number 0 has a name of 64 bytes at byte 69 (at most 63)",
    ),
    "tensor_name_not_utf8": (
        one_tensor(b"\xc3"),
        "tensor number 0 has a name that is not UTF-8 at byte 77: b'\\xc3'",
    ),
    "tensor_twice": (
        whole(tensors=[tensor("t"), tensor("t", offset=32)], data=64),
        "tensor 't' is there twice, again before byte 111",
    ),
    "ends_in_tensors": (
        head(ARCH, tensors=[tensor("a"), tensor("b", offset=32)])[:-1],
        "is truncated: tensor 'b' goes on to byte 135 at least, the file has 134",
    ),
    # Where the data are
    "unaligned_offset": (
        one_tensor("t", offset=1),
        "tensor 't' has offset 1, no multiple of 32",
    ),
    "first_offset": (
        one_tensor("t", offset=32, data=64),
        "tensor 't' leaves a gap: its offset is 32 (expected 0)",
    ),
    "overlap": (
        whole(tensors=[tensor("a", (9,)), tensor("b", offset=32)], data=99),
        "tensor 'b' overlaps the ones before it: its offset is 32 (expected 64)",
    ),
    "same_offset": (
        whole(tensors=[tensor("a"), tensor("b")], data=99),
        "tensor 'b' overlaps the ones before it: its offset is 0 (expected 32)",
    ),
    "gap": (
        whole(tensors=[tensor("a"), tensor("b", offset=64)], data=99),
        "tensor 'b' leaves a gap: its offset is 64 (expected 32)",
    ),
    "offset_2e63": (
        one_tensor("t", offset=2**63),
        f"tensor 't' leaves a gap: its offset is {2**63} (expected 0)",
    ),
    "no_data": (
        head(ARCH, tensors=[tensor("t")]),
        "is truncated: tensor 't' ends at byte 160, the file has 102",
    ),
    "one_byte_short": (
        one_tensor("blk.3.ffn_up.weight", (8, 4), data=127),
        "is truncated: tensor 'blk.3.ffn_up.weight' ends at byte 256, the file has 255",
    ),
    "more_than_the_file": (
        one_tensor("t", (2**40, 2**10)),
        f"is truncated: tensor 't' ends at byte {2**52 + 128}, the file has 160",
    ),
}


@pytest.mark.parametrize(("content", "expected"), MALFORMED.values(), ids=MALFORMED)
def test_malformed(problem_of: Callable[..., str], content: bytes, expected: str) -> None:
    tracemalloc.start()
    start = time.perf_counter()
    try:
        assert problem_of(content) == expected
        assert tracemalloc.get_traced_memory()[1] < 2**20 + 8 * len(content)
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 1


def test_ending_at_any_byte_is_truncated(problem_of: Callable[..., str]) -> None:
    for length in [*range(1, HEADER_BYTES + 33), len(SMALL) - 1]:
        assert "is truncated" in problem_of(SMALL[:length])
    assert problem_of(SMALL[:-1]) == (
        f"is truncated: tensor 'output.weight' ends at byte {len(SMALL)}, the file has "
        f"{len(SMALL) - 1}"
    )


@pytest.mark.parametrize(
    ("limit", "value", "expected"),
    [
        ("MAX_KEYS", 9, "has 10 metadata keys (at most 9)"),
        ("MAX_TENSORS", 1, "has 2 tensors (at most 1)"),
        (
            "MAX_STRINGS",
            133,
            "key 's' has 65 strings, with those before it 134 (at most 133)",
        ),
        (
            "MAX_KEPT_BYTES",
            150,
            (
                "key 'tokenizer.ggml.tokens' brings the texts of the metadata to 153 "
                "bytes (at most 150)"
            ),
        ),
    ],
)
def test_limits(
    read: Callable[..., Header],
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    value: int,
    expected: str,
) -> None:
    content = whole(
        array("r", STR, ["r"] * 65),
        key("x", STR, string("x" * 116)),
        *TOKENIZER,
        array("s", STR, ["s"] * 65),
        tensors=[tensor("a"), tensor("b", offset=32)],
        data=64,
    )
    usage = {"MAX_KEYS": 10, "MAX_TENSORS": 2, "MAX_STRINGS": 134, "MAX_KEPT_BYTES": 164}
    monkeypatch.setattr(reader, limit, usage[limit])
    assert len(read(content).tensors) == 2
    monkeypatch.setattr(reader, limit, value)
    with pytest.raises(BadFileError) as caught:
        read(content)
    assert str(caught.value).endswith(f": {expected}")


def test_longest_header(
    read: Callable[..., Header],
    problem_of: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reader, "_CHUNK", 1)
    content = head(ARCH, key("k", STR, string("x" * 100)))
    assert read(content, max_header_bytes=len(content)).metadata["k"] == "x" * 100
    assert problem_of(content, max_header_bytes=len(content) - 1) == (
        f"has a header of more than {len(content) - 1} bytes: key 'k' goes on to byte "
        f"{len(content)} at least"
    )


# Whatever the bytes are


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    content = bytearray(SMALL)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, HEADER_BYTES))
        match draw(st.sampled_from(["flip", "set", "insert", "delete", "length"])):
            case "flip":
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                content[at] = draw(st.integers(0, 255))
            case "insert":
                content[at:at] = draw(st.binary(min_size=1, max_size=9))
            case "delete":
                del content[at : at + draw(st.integers(1, 9))]
            case "length":
                size = draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**61, 2**63, 2**64 - 1]))
                content[at : at + 8] = u64(size)
    return bytes(content)


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutations() | st.binary(max_size=200).map(b"GGUF\3\0\0\0".__add__) | st.binary(max_size=99))
def test_any_bytes_are_a_header_or_a_bad_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.write_bytes(content)
    start = time.perf_counter()
    try:
        header = read_header(path)
    except BadFileError as error:
        text = str(error)
        assert text.startswith(f"{path}: ")
        assert text.isprintable()
    else:
        assert header.file_size == len(content)
        assert header.data_offset + header.data_size <= len(content)
        ends = [t.offset + t.n_bytes for t in header.tensors]
        starts = [t.offset for t in header.tensors]
        assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    assert time.perf_counter() - start < 1


# How long it takes


def test_a_large_vocabulary_is_read_quickly(read: Callable[..., Header]) -> None:
    n_tokens = 150_000
    content = head(
        ARCH,
        array("tokenizer.ggml.tokens", STR, [f"token{n}" for n in range(n_tokens)]),
        array("tokenizer.ggml.scores", F32, [0.0] * n_tokens),
        array("tokenizer.ggml.token_type", I32, [1] * n_tokens),
    )
    start = time.perf_counter()
    header = read(content)
    # Usually a tenth of that; a quadratic loop or a copy for each token would take minutes.
    assert time.perf_counter() - start < 1
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, ArrayInfo)
    assert tokens.length == n_tokens
