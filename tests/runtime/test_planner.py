"""Planned types against llama.cpp's own, from dry runs on files that have no weights."""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import re
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pytest_ondevice import layout
from pytest_ondevice import plan as plans
from pytest_ondevice.formats.gguf import read_header
from pytest_ondevice.layout import Slot
from pytest_ondevice.mixes import ALIGNMENT, choose
from pytest_ondevice.model.catalog import Dimensions
from pytest_ondevice.model.quant_types import FILE_TYPES, by_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Named fields would make this four times as long: layers, hidden, heads, kv_heads, head_size,
# feed_forward, vocabulary, tied.
SHAPES = {
    "smollm2-135m": ("llama", 30, 576, 9, 3, 64, 1536, 49152, True),
    "qwen2.5-7b": ("qwen2", 28, 3584, 28, 4, 128, 18944, 152064, False),
    "qwen3-0.6b": ("qwen3", 28, 1024, 16, 8, 128, 3072, 151936, True),
    "gemma-3-1b": ("gemma3", 26, 1152, 4, 1, 256, 6912, 262144, True),
    "llama-2-70b": ("llama", 80, 8192, 64, 8, 128, 28672, 32000, False),
}
LINE = re.compile(r"\[ *\d+/ *\d+\] (\S+) .*?, type = *(\w+), .*?(?:\((\w+)\))?$", re.MULTILINE)


def dimensions(name: str) -> Dimensions:
    fields = Dimensions.__struct_fields__
    return Dimensions(**dict(zip(fields, SHAPES[name], strict=False)))


def with_experts(slots: tuple[Slot, ...], count: int) -> tuple[Slot, ...]:
    return tuple(
        Slot(slot.name.replace(".weight", "_exps.weight"), (*slot.shape, count))
        if re.search(r"ffn_(up|gate|down)", slot.name)
        else slot
        for slot in slots
    )


def write_without_weights(path: Path, shape: Dimensions, slots: tuple[Slot, ...], experts: int):
    """Write a header whose matrices are F16, and a hole of the right length for the data."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    numbers = {
        "block_count": shape.layers,
        "context_length": 2048,
        "embedding_length": shape.hidden,
        "feed_forward_length": shape.feed_forward,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_size,
        "attention.value_length": shape.head_size,
        "vocab_size": shape.vocabulary,
    }
    if experts:
        numbers |= {"expert_count": experts, "expert_used_count": 2}
    keys = [text("general.architecture") + struct.pack("<I", 8) + text(shape.architecture)]
    keys += [
        text(f"{shape.architecture}.{key}") + struct.pack("<II", 4, n) for key, n in numbers.items()
    ]
    epsilon = text(f"{shape.architecture}.attention.layer_norm_rms_epsilon")
    keys.append(epsilon + struct.pack("<If", 6, 1e-5))
    tensors, length = [], 0
    for slot in slots:
        kind = by_name("F16" if len(slot.shape) > 1 else slot.type)
        place = struct.pack("<IQ", kind.id, length)
        dims = struct.pack(f"<I{len(slot.shape)}Q", len(slot.shape), *slot.shape)
        tensors.append(text(slot.name) + dims + place)
        length += math.ceil(slot.n_weights * kind.type_size / ALIGNMENT) * ALIGNMENT
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys + tensors)
    path.write_bytes(head)
    os.truncate(path, math.ceil(len(head) / ALIGNMENT) * ALIGNMENT + length)


def plan(
    slots: tuple[Slot, ...],
    method: str,
    shape: Dimensions,
    experts: int,
    *,
    imatrix: bool,
    pure: bool,
) -> tuple[list[tuple[str, str]], str]:
    """Plan names and types, or say why not."""
    try:
        planned = choose(
            slots,
            method,
            architecture=shape.architecture,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            layers=shape.layers,
            experts=experts,
            imatrix=imatrix,
            pure=pure,
        )
    except ValueError as error:
        return [], str(error)
    return [(one.name, one.type) for one in planned], ""


@pytest.fixture(scope="module")
def dry_run() -> Iterator[Callable[[Path, str, bool, bool], tuple[bool, str]]]:
    """Quantize nothing; return whether llama.cpp refused, and its log."""
    api = pytest.importorskip("llama_cpp.llama_cpp")
    from llama_cpp import _logger

    said: list[bytes] = []
    listen = api.llama_log_callback(lambda _level, line, _data: said.append(line))
    api.llama_log_set(listen, ctypes.c_void_p(0))
    api.llama_backend_init()

    def run(path: Path, method: str, imatrix: bool, pure: bool) -> tuple[bool, str]:
        params = api.llama_model_quantize_default_params()
        params.ftype, params.nthread, params.dry_run = FILE_TYPES[method].id, 1, True
        params.pure = pure
        number = (ctypes.c_float * 1)(1.0)
        matrix = (api.llama_model_imatrix_data * 2)()  # the second one, all zeros, ends the list
        if imatrix:
            matrix[0].name, matrix[0].size = b"any", 1
            matrix[0].data = ctypes.cast(number, type(matrix[0].data))
            params.imatrix = ctypes.cast(matrix, type(params.imatrix))
        said.clear()
        status = api.llama_model_quantize(os.fsencode(path), b"/dev/null", ctypes.byref(params))
        return status != 0, b"".join(said).decode()

    yield run
    api.llama_log_set(_logger.llama_log_callback, ctypes.c_void_p(0))


@pytest.mark.parametrize(
    ("name", "experts"), [*((name, 0) for name in SHAPES), ("qwen3-0.6b", 4), ("smollm2-135m", 8)]
)
def test_types_as_in_a_dry_run(
    tmp_path: Path,
    dry_run: Callable[[Path, str, bool, bool], tuple[bool, str]],
    name: str,
    experts: int,
) -> None:
    shape = dimensions(name)
    slots = layout.tensors(shape)
    if experts:
        slots = with_experts(slots, experts)
    path = tmp_path / "hollow.gguf"
    write_without_weights(path, shape, slots, experts)
    compared = 0
    for method in FILE_TYPES:
        for imatrix, pure in itertools.product((False, True), repeat=2):
            refused, log = dry_run(path, method, imatrix, pure)
            lacking = "will require an imatrix" in log
            planned, problem = plan(slots, method, shape, experts, imatrix=imatrix, pure=pure)
            assert bool(problem) == (refused or (lacking and not imatrix)), f"{method}: {log}"
            if problem:
                assert lacking == ("importance matrix" in problem)
                continue
            theirs = [(one, (new or old).upper()) for one, old, new in LINE.findall(log)]
            assert planned == theirs, (method, imatrix, pure)
            compared += 1
    assert compared > 2 * len(FILE_TYPES)


QUANTIZE = """
import ctypes, os, sys
from llama_cpp import llama_cpp as api

source, target, file_type, *weighed = sys.argv[1:]
entries = (api.llama_model_imatrix_data * (len(weighed) + 1))()
kept = []
for entry, (name, size) in zip(entries, (one.split("=") for one in weighed)):
    kept.append((name.encode(), (ctypes.c_float * int(size))(*[1.0] * int(size))))
    entry.name, entry.size = kept[-1][0], int(size)
    entry.data = ctypes.cast(kept[-1][1], type(entry.data))
params = api.llama_model_quantize_default_params()
params.ftype, params.nthread, params.pure = int(file_type), 1, True
if weighed:
    params.imatrix = ctypes.cast(entries, type(params.imatrix))
sys.exit(api.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)))
"""
"""What aborts must not abort the tests."""


@pytest.mark.parametrize(
    ("method", "tied"),
    [
        *(("Q2_K", True), ("Q2_K", False), ("Q4_0", False), ("Q6_K", True), ("IQ3_S", True)),
        *(("IQ3_XXS+imatrix", True), ("IQ2_M+imatrix", False), ("IQ2_XS+imatrix", True)),
        *(("IQ2_XXS+imatrix", True), ("IQ2_XXS+imatrix", False)),
    ],
)
def test_types_as_in_a_pure_file(tmp_path: Path, method: str, tied: bool) -> None:
    pytest.importorskip("llama_cpp.llama_cpp")
    file_type, _, imatrix = method.partition("+")
    shape = Dimensions(
        architecture="llama",
        layers=2,
        hidden=256,
        heads=4,
        kv_heads=2,
        head_size=64,
        feed_forward=512,
        vocabulary=64,
        tied=tied,
    )
    slots = layout.tensors(shape)
    source, target = tmp_path / "hollow.gguf", tmp_path / "pure.gguf"
    write_without_weights(source, shape, slots, 0)
    weighed = {}
    if imatrix:
        # As of an importance matrix: the layers, and beside it what llama.cpp would abort without.
        weighed = {one.name: one.shape[0] for one in slots if one.name.startswith("blk.")}
        weighed |= plans.weighed_evenly(read_header(source), file_type, pure=True)
    arguments = [str(source), str(target), str(FILE_TYPES[file_type].id)]
    arguments += [f"{name}={size}" for name, size in weighed.items()]
    done = subprocess.run(
        [sys.executable, "-c", QUANTIZE, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made = [(one.name, one.type) for one in read_header(target).tensors]
    planned, problem = plan(slots, file_type, shape, 0, imatrix=bool(imatrix), pure=True)
    assert not problem
    assert made == planned
    assert {kind for _, kind in made} == {"F32", FILE_TYPES[file_type].base}
