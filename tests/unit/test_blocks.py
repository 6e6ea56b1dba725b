"""The scan for damaged weights: what is planted is found, what is sound is not, at its place."""

from __future__ import annotations

import math
import struct
import tracemalloc
from typing import TYPE_CHECKING

import gguf
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice.errors import BadFileError
from pytest_ondevice.formats import blocks as module
from pytest_ondevice.formats.blocks import BlockReport, Finding, scan
from pytest_ondevice.formats.gguf import read_header
from pytest_ondevice.model.quant_types import QUANT_TYPES, QuantType, by_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# Where numbers stand in a block, written down a second time: (struct code, byte). Of BF16 the
# code is "b", of MXFP4's exponents "e8", of NVFP4's scales "e4", of IQ1_M's spread scale "iq".
PLACES: dict[str, list[tuple[str, int]]] = {
    "F32": [("f", 0)],
    "F16": [("e", 0)],
    "BF16": [("b", 0)],
    "F64": [("d", 0)],
    "Q2_K": [("e", 80), ("e", 82)],
    "Q3_K": [("e", 108)],
    "Q6_K": [("e", 208)],
    "Q8_K": [("f", 0)],
    "IQ1_M": [("iq", 48)],
    "TQ1_0": [("e", 52)],
    "TQ2_0": [("e", 64)],
    "MXFP4": [("e8", 0)],
    "NVFP4": [("e4", index) for index in range(4)],
    **{name: [("e", 0), ("e", 2)] for name in ("Q4_1", "Q5_1", "Q8_1", "Q4_K", "Q5_K")},
}
NAN = {"e": 0x7E01, "iq": 0xFE01, "b": 0xFFC1, "f": 0x7FC00001, "d": 0xFFF8 << 48, "e8": 255}
INF = {"e": 0xFC00, "iq": 0x7C00, "b": 0x7F80, "f": 0xFF800000, "d": 0x7FF << 52}
BYTES = {"e": 2, "iq": 2, "b": 2, "f": 4, "d": 8, "e8": 1, "e4": 1}
NAN["e4"] = 0x7F

KINDS = [kind for kind in QUANT_TYPES.values() if not kind.is_integer]
BY_NAME = [pytest.param(kind, id=kind.name) for kind in KINDS]


def places(kind: QuantType) -> list[tuple[str, int]]:
    return PLACES.get(kind.name, [("e", 0)])


def put(block: np.ndarray, code: str, place: int, bits: int) -> None:
    """Write a number's bits into a block."""
    if code != "iq":
        block[place : place + BYTES[code]] = list(bits.to_bytes(BYTES[code], "little"))
        return
    words = block[place : place + 8].view("<u2")
    words &= 0x0FFF
    words |= np.array([(bits >> 4 * index & 15) << 12 for index in range(4)], np.uint16)


def taken(block: bytes, code: str, place: int) -> float:
    """Read a number out of a block, slowly."""
    if code == "iq":
        words = struct.unpack_from("<4H", block, place)
        bits = sum((word >> 12) << 4 * index for index, word in enumerate(words))
        return float(struct.unpack("<e", struct.pack("<H", bits))[0])
    if code == "b":
        return float(struct.unpack("<f", b"\0\0" + block[place : place + 2])[0])
    if code in {"e8", "e4"}:
        none = block[place] == 255 if code == "e8" else block[place] & 127 == 127
        return math.nan if none else 1.0
    return float(struct.unpack_from(f"<{code}", block, place)[0])


def sound(kind: QuantType, count: int, seed: int = 0) -> np.ndarray:
    """Random blocks of a model: weights of some hundredths."""
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, (count, kind.type_size), np.uint8)
    for block in data:
        for code, place in places(kind):
            value = float(random.uniform(0.5, 2)) * (0.02 if kind.is_float else 0.0005)
            if code in {"e8", "e4"}:
                bits = int(random.integers(0x70, 0x7C))
            elif code == "b":
                bits = struct.unpack("<I", struct.pack("<f", value))[0] >> 16
            else:
                packed = struct.pack("<e" if code == "iq" else f"<{code}", value)
                bits = int.from_bytes(packed, "little")
            put(block, code, place, bits)
    return data


def write(
    path: Path, tensors: dict[str, tuple[QuantType, int, bytes]], split: tuple[int, int] = (0, 1)
) -> Path:
    """Write a file of matrices (name: type, rows, bytes), all padding being NaN to anybody."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 3)
    for key, code, value in (
        (b"general.architecture", 8, struct.pack("<Q", 5) + b"llama"),
        (b"split.no", 2, struct.pack("<H", split[0])),
        (b"split.count", 2, struct.pack("<H", split[1])),
    ):
        head += struct.pack("<Q", len(key)) + key + struct.pack("<I", code) + value
    body = b""
    for name, (kind, rows, data) in tensors.items():
        weights = len(data) // kind.type_size * kind.block_size
        head += struct.pack("<Q", len(name)) + name.encode()
        head += struct.pack("<IQQIQ", 2, weights // rows, rows, kind.id, len(body))
        body += data + b"\xff" * (-len(data) % 32)
    path.write_bytes(head + b"\xff" * (-len(head) % 32) + body)
    return path


def of(path: Path, *tensors: tuple[str, QuantType, np.ndarray], rows: int = 4) -> Path:
    return write(path, {name: (kind, rows, data.tobytes()) for name, kind, data in tensors})


def only(report: BlockReport) -> Finding:
    """Expect one finding, besides that of a type which is none of files."""
    found = [finding for finding in report.findings if finding.kind != "unreadable"]
    assert len(found) == 1, found
    return found[0]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many pieces in a small file."""
    monkeypatch.setattr(module, "_PIECE", 4096)


@pytest.mark.parametrize("kind", list(QUANT_TYPES.values()), ids=lambda kind: kind.name)
def test_sound_blocks_of_every_type(kind: QuantType, tmp_path: Path) -> None:
    data = sound(kind, 256) if not kind.is_integer else np.full((256, kind.type_size), 255, "u1")
    report = scan([of(tmp_path / "m.gguf", ("blk.0.ffn_up.weight", kind, data))])
    assert [finding.kind for finding in report.findings] == ["unreadable"] * (kind.name == "Q8_1")
    assert report.n_tensors == 1
    assert report.is_valid == (kind.name != "Q8_1")
    if kind.is_integer:
        assert report.unchecked == ("blk.0.ffn_up.weight",)
        assert report.n_bytes == report.n_blocks == 0
    else:
        assert (report.n_blocks, report.n_bytes) == (256, data.nbytes)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("what", ["nan", "infinite", "huge"])
@pytest.mark.parametrize("kind", BY_NAME)
def test_a_bad_number_in_each_field(kind: QuantType, what: str, tmp_path: Path) -> None:
    group = 32 if kind.is_float else 1
    at_border = max(4096 // (kind.type_size * group), 1) * group
    count = 4 * at_border
    clean = sound(kind, count)
    before = sound(by_name("Q4_0"), 60)
    for field, (code, place) in enumerate(places(kind)):
        bits = {"nan": NAN, "infinite": INF, "huge": {}}[what].get(code)
        if what == "huge":
            # The largest finite number; NVFP4's are multiplied by another tensor, s is no scale.
            bits = (254 if code == "e8" else INF[code] - 1) if code != "e4" else None
            if kind.name == "Q8_1" and place == 2:
                bits = None
            if code == "d":
                bits = struct.unpack("<Q", struct.pack("<d", -3e38))[0]
        if bits is None:
            continue
        for block in {0, at_border - 1, at_border, count // 2 + 1, count - 1}:
            data = clean.copy()
            put(data[block], code, place, bits)
            path = of(
                tmp_path / "m.gguf",
                ("first.weight", by_name("Q4_0"), before),
                ("second.weight", kind, data),
                ("third.weight", kind, clean),
            )
            report = scan([path])
            finding = only(report)
            assert (finding.tensor, finding.kind, finding.n_blocks) == ("second.weight", what, 1)
            assert finding.block == block
            names = [one.name for one in module._FIELDS[kind.name]]
            assert finding.field == names[field]
            assert path.read_bytes()[finding.offset :].startswith(data[block].tobytes())
            assert finding.is_fault
            assert finding.is_refused == (what != "huge" and kind.name not in {"NVFP4", "Q8_1"})
            assert "second.weight" in finding.sentence
            assert msgspec.json.decode(msgspec.json.encode(report), type=BlockReport) == report


def test_several_fields_and_kinds_of_one_tensor(tmp_path: Path) -> None:
    kind = by_name("Q4_K")
    data = sound(kind, 64)
    for block in (3, 9, 11):
        put(data[block], "e", 0, 0x7FFF)
    put(data[5], "e", 2, 0xFC00)
    put(data[7], "e", 0, 0x7BFF)
    report = scan([of(tmp_path / "m.gguf", ("a.weight", kind, data))])
    found = {(one.field, one.kind): (one.n_blocks, one.block) for one in report.findings}
    assert found == {("d", "nan"): (3, 3), ("dmin", "infinite"): (1, 5), ("d", "huge"): (1, 7)}


@pytest.mark.parametrize("kind", BY_NAME)
def test_no_weight_is_beyond_what_the_factors_say(kind: QuantType) -> None:
    traits = getattr(gguf.GGMLQuantizationType, kind.name, None)
    random = np.random.default_rng(1)
    data = random.integers(0, 256, (512, kind.type_size), np.uint8)
    fields = module._FIELDS[kind.name]
    for field in fields:
        code, place = places(kind)[fields.index(field)]
        for one in data:
            put(
                one,
                code,
                place,
                {"f": 0x3F800000, "e8": 128, "e4": 0x40, "b": 0x3F80}.get(code, 0x3C00),
            )
    if traits is None or kind.is_float or not fields[0].factor:
        pytest.skip("not a matter of factors, or unknown to gguf")
    try:
        weights = np.abs(gguf.dequantize(data, traits))
    except NotImplementedError:
        pytest.skip("gguf does not dequantize it")
    assert weights.max() <= sum(field.factor for field in fields)
    assert weights.max() > sum(field.factor for field in fields) / 2.2


@pytest.mark.parametrize("kind", BY_NAME)
def test_a_factor_on_all_scales_is_huge(kind: QuantType, tmp_path: Path) -> None:
    """The median moves along: only the limit for all matrices tells."""
    code, place = places(kind)[0]
    if code in {"e8", "e4"}:
        pytest.skip("no factor on it")
    data = sound(kind, 256)
    bits = {"f": 0x7E000000, "d": 0x47 << 56, "b": 0x7E00}.get(code, 0x7BFF)
    for block in data:
        put(block, code, place, bits)
    report = scan([of(tmp_path / "m.gguf", ("a.weight", kind, data))])
    if code in {"e", "iq"} and 65504 * module._FIELDS[kind.name][0].factor <= module.MOST_WEIGHT:
        pytest.fail("half precision does not reach the limit")
    assert only(report).kind == "huge"
    assert only(report).n_blocks == 256


def test_a_weight_far_from_the_median(tmp_path: Path) -> None:
    kind = by_name("F16")
    weights = np.random.default_rng(0).normal(0, 0.02, 4096).astype("<f2")
    for value, is_found in ((50.0, False), (255.0, False), (257.0, True), (-3000.0, True)):
        weights[1234] = value
        data = weights.view(np.uint8).reshape(-1, 2)
        report = scan([of(tmp_path / "m.gguf", ("a.weight", kind, data))])
        assert [one.block for one in report.findings] == [1234] * is_found


def test_vectors_may_hold_what_matrices_may_not(tmp_path: Path) -> None:
    kind = by_name("F32")
    data = np.array([1, 1, 1e30, 1e30] * 64, "<f4")
    path = tmp_path / "m.gguf"
    tensor = ("rope_freqs.weight", kind, data.view(np.uint8).reshape(-1, 4))
    assert not scan([of(path, tensor, rows=1)]).findings
    assert [one.kind for one in scan([of(path, tensor)]).findings] == ["huge"]
    data[7] = 3e38
    tensor = ("rope_freqs.weight", kind, data.view(np.uint8).reshape(-1, 4))
    assert only(scan([of(path, tensor, rows=1)])).block == 7


# Zeros and repeats


@pytest.mark.parametrize("kind", BY_NAME)
def test_lost_blocks(kind: QuantType, tmp_path: Path) -> None:
    data = sound(kind, 256)
    path = tmp_path / "m.gguf"
    data[:120] = 0
    assert only_kinds(scan([of(path, ("a.weight", kind, data))])) == []
    data[60:240] = 0
    finding = only(scan([of(path, ("a.weight", kind, data))]))
    assert (finding.kind, finding.is_fault, finding.is_refused) == ("lost", False, False)
    assert (finding.block, finding.n_blocks) == (0, 240 if not kind.is_float else 224)
    data[:] = 0
    finding = only(scan([of(path, ("a.weight", kind, data))]))
    assert (finding.kind, finding.n_blocks, finding.example) == ("lost", 256, "all zeros")


def only_kinds(report: BlockReport) -> list[str]:
    return [one.kind for one in report.findings if one.kind != "unreadable"]


def test_negative_zeros_are_zeros(tmp_path: Path) -> None:
    kind = by_name("Q4_0")
    data = sound(kind, 64)
    for block in data[10:50]:
        put(block, "e", 0, 0x8000)
    finding = only(scan([of(tmp_path / "m.gguf", ("a.weight", kind, data))]))
    assert (finding.kind, finding.block, finding.n_blocks) == ("lost", 10, 40)


def test_tokens_that_never_occur(tmp_path: Path) -> None:
    """Rows of zeros are normal in a table, zeros within rows are not."""
    kind = by_name("Q8_0")
    data = sound(kind, 4096)
    data[1024:] = 0
    path = tmp_path / "m.gguf"
    for name, kinds in (("token_embd.weight", []), ("a.weight", ["lost", "repeated"])):
        assert only_kinds(scan([of(path, (name, kind, data), rows=1024)])) == kinds
    data[:1024].reshape(256, 4, 34)[:, 1:] = 0
    report = scan([of(path, ("token_embd.weight", kind, data), rows=1024)])
    finding = only(report)
    assert (finding.kind, finding.block, finding.n_blocks) == ("lost", 1, 768)
    data[:] = 0
    assert only_kinds(scan([of(path, ("token_embd.weight", kind, data), rows=1024)])) == ["lost"]


def test_vectors_of_zeros(tmp_path: Path) -> None:
    kind = by_name("F32")
    data = np.zeros((64, 4), np.uint8)
    path = of(
        tmp_path / "m.gguf",
        ("blk.0.attn_q.bias", kind, data),
        ("blk.0.attn_norm.bias", kind, data),
        ("blk.0.attn_norm.weight", kind, data),
        rows=1,
    )
    assert only(scan([path])).tensor == "blk.0.attn_norm.weight"


def test_a_pruned_matrix_has_lost_nothing(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weights = random.normal(0, 0.02, 2**20).astype("<f2")
    weights[random.random(len(weights)) < 0.8] = 0
    data = weights.view(np.uint8).reshape(-1, 2)
    assert not scan([of(tmp_path / "m.gguf", ("a.weight", by_name("F16"), data))]).findings


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", ["Q4_0", "Q6_K", "F16", "TQ2_0", "MXFP4"])
@pytest.mark.parametrize("first", [64, 1000, 3000])
def test_a_block_over_and_over(name: str, first: int, tmp_path: Path) -> None:
    kind = by_name(name)
    group = 32 if kind.is_float else 1
    data = np.tile(sound(kind, 64 * group), (80, 1))
    if name == "TQ2_0":  # of ternary models all scales are one
        data[:, 64:] = data[0, 64:]
    path = tmp_path / "m.gguf"
    assert not scan([of(path, ("a.weight", kind, data))]).findings
    least = max(module.LEAST_RUN, -(-module.LEAST_RUN_BYTES // (kind.type_size * group)))
    for length, is_found in ((least - 4, False), (least + 1, True)):
        bad = data.copy().reshape(-1, group * kind.type_size)
        bad[first : first + length] = bad[7]
        bad[first + length] = bad[8]
        bad = bad.reshape(-1, kind.type_size)
        report = scan([of(path, ("a.weight", kind, bad))])
        found = [(one.kind, one.block, one.n_blocks) for one in report.findings]
        assert found == [("repeated", first * group, length * group)] * is_found


@pytest.mark.parametrize("place", range(0, 60000, 7777))
def test_a_run_is_found_wherever_it_is(place: int, tmp_path: Path) -> None:
    kind = by_name("Q4_0")
    data = np.tile(sound(kind, 512), (240, 1))  # two pieces and a bit
    border = 2**20 // 18
    place += border - 30000
    data[place : place + 1026] = data[0]
    data[place + 1026] = data[1]
    data[place - 1] = data[2]
    finding = only(scan([of(tmp_path / "m.gguf", ("a.weight", kind, data))]))
    assert (finding.kind, finding.block, finding.n_blocks) == ("repeated", place, 1026)


def test_a_hole_at_the_end_of_a_file(tmp_path: Path) -> None:
    kind = by_name("Q4_K")
    data = sound(kind, 4096)
    data[3000:] = 0
    finding = only(scan([of(tmp_path / "m.gguf", ("a.weight", kind, data))]))
    assert (finding.kind, finding.block, finding.n_blocks) == ("repeated", 3000, 1096)


# Files


def test_parts_of_a_split_model(tmp_path: Path) -> None:
    kind = by_name("Q5_1")
    data, bad = sound(kind, 64), sound(kind, 64)
    put(bad[63], "e", 2, 0x7D00)
    paths = []
    for number, some in enumerate((data, data, bad)):
        path = tmp_path / f"m-{number + 1:05}-of-00003.gguf"
        paths.append(write(path, {f"{number}.weight": (kind, 4, some.tobytes())}, (number, 3)))
    report = scan(paths, [read_header(path) for path in paths])
    assert report == scan(paths)
    finding = only(report)
    assert (finding.tensor, finding.part, finding.block, finding.field) == ("2.weight", 2, 63, "m")
    assert paths[2].read_bytes()[finding.offset :][: len(bad[63])] == bad[63].tobytes()
    assert (report.n_tensors, report.n_blocks) == (3, 192)


def test_padding_is_not_looked_at(tmp_path: Path) -> None:
    # write() fills all padding with bits that are NaN in every format.
    tensors = [(f"{kind.name}.weight", kind, sound(kind, 256)) for kind in KINDS]
    report = scan([of(tmp_path / "m.gguf", *tensors)])
    assert only_kinds(report) == []
    assert report.n_blocks == 256 * len(KINDS)


def test_a_file_by_gguf(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    random = np.random.default_rng(0)
    for name in ("F16", "Q4_0", "Q5_1", "Q8_0", "TQ1_0", "MXFP4", "BF16"):
        kind = gguf.GGMLQuantizationType[name]
        weights = random.normal(0, 0.02, (8, 512)).astype(np.float32)
        writer.add_tensor(name, gguf.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    report = scan([tmp_path / "m.gguf"])
    assert report.findings == ()
    assert report.n_tensors == 7


def test_a_file_that_ends_early(tmp_path: Path) -> None:
    kind = by_name("Q8_0")
    path = of(tmp_path / "m.gguf", ("a.weight", kind, sound(kind, 256)))
    header, whole = read_header(path), path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(BadFileError, match="is truncated"):
        scan([path])
    with pytest.raises(BadFileError, match=f"it now ends at byte {len(whole) - 100}$"):
        scan([path], [header])
    path.unlink()
    with pytest.raises(BadFileError, match="does not exist"):
        scan([path], [header])
    path.mkdir()
    with pytest.raises(BadFileError, match="cannot be read: Is a directory"):
        scan([path], [header])


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    kind = by_name("Q4_0")
    data = np.tile(sound(kind, 2048), (1800, 1))  # 66 MB
    put(data[-1], "e", 0, 0x7E00)
    path = of(tmp_path / "m.gguf", ("token_embd.weight", kind, data))
    del data
    tracemalloc.start()
    try:
        assert only(scan([path])).block == 2048 * 1800 - 1
        assert tracemalloc.get_traced_memory()[1] < 48 * 1024**2
    finally:
        tracemalloc.stop()


# Against slower ways


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("blocks")


def reference(kind: QuantType, data: np.ndarray) -> tuple[list[int], list[int]]:
    """Blocks with a NaN and blocks with an infinite number."""
    nan, infinite = [], []
    for index, block in enumerate(data):
        values = [taken(block.tobytes(), *place) for place in places(kind)]
        if any(map(math.isnan, values)):
            nan.append(index)
        with np.errstate(over="ignore"):  # doubles are read as floats
            if any(np.isinf(np.float32(value)) for value in values):
                infinite.append(index)
    return nan, infinite


def firsts(report: BlockReport, kind: str) -> int | None:
    return min((one.block for one in report.findings if one.kind == kind), default=None)


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32 - 1), ones=st.floats(0, 0.9))
def test_random_bytes_as_a_slow_loop_sees_them(
    kind: QuantType, seed: int, ones: float, folder: Path
) -> None:
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, (128, kind.type_size), np.uint8)
    # Exponents of ones only are rare among random bytes.
    high = random.random(data.shape) < ones * random.random()
    data[high] |= np.uint8(random.choice([0x7C, 0x7F, 0xFF, 0xFC]))
    report = scan([of(folder / "m.gguf", ("a.weight", kind, data))])
    nan, infinite = reference(kind, data)
    assert firsts(report, "nan") == (nan[0] if nan else None)
    assert firsts(report, "infinite") == (infinite[0] if infinite else None)
    if len(places(kind)) == 1:
        counts = {one.kind: one.n_blocks for one in report.findings}
        assert (counts.get("nan", 0), counts.get("infinite", 0)) == (len(nan), len(infinite))


@pytest.mark.parametrize("kind", BY_NAME)
def test_finite_weights_are_those_without_a_finding(kind: QuantType, folder: Path) -> None:
    if kind.name in {"MXFP4", "NVFP4"}:
        pytest.skip("their codes for no number are dequantized to one")
    if not hasattr(gguf.GGMLQuantizationType, kind.name):
        pytest.skip("unknown to gguf")
    traits = gguf.GGMLQuantizationType[kind.name]
    random = np.random.default_rng(3)
    data = random.integers(0, 256, (64, kind.type_size), np.uint8)
    for index, (code, place) in enumerate(places(kind)):
        for block in data:
            put(block, code, place, {"f": 0x7F000000, "b": 0x7F00}.get(code, 0x7B00))
        put(data[5 + index], code, place, NAN[code])
        put(data[9 + index], code, place, INF[code])
    try:
        with np.errstate(all="ignore"):
            weights = gguf.dequantize(data, traits)
    except NotImplementedError:
        pytest.skip("gguf does not dequantize it")
    bad = np.flatnonzero(~np.isfinite(weights.reshape(64, -1)).all(axis=1))
    for block in range(64):
        one = np.repeat(data[block : block + 1], 4 * 32, axis=0)
        report = scan([of(folder / "m.gguf", ("a.weight", kind, one))])
        assert any(found.is_refused for found in report.findings) == (block in bad)


def test_codings_as_numpy_reads_them() -> None:
    for coding, code in ((module._F16, "e"), (module._F32, "f"), (module._F64, "d")):
        for value in (0.0, 2.0**-14, 1.0, 3.140625, 65504.0):
            bits = int.from_bytes(struct.pack(f"<{code}", value), "little")
            assert coding.value(bits) == value
    assert module._BF16.value(0x4049) == 3.140625
    nvfp4 = gguf.quants.NVFP4.ue4m3_to_fp32(np.arange(127, dtype=np.uint8))
    assert [module._UE4M3.value(bits) for bits in range(127)] == nvfp4.tolist()
    mxfp4 = gguf.quants.MXFP4.e8m0_to_fp32_half(np.arange(255, dtype=np.uint8))
    assert [module._E8M0.value(bits) for bits in range(255)] == mxfp4.tolist()


def test_every_type_is_known() -> None:
    assert set(module._FIELDS) == {kind.name for kind in KINDS}
    for kind in KINDS:
        stated: Sequence[tuple[str, int]] = places(kind)
        assert [field.offset for field in module._FIELDS[kind.name]] == [at for _, at in stated]
