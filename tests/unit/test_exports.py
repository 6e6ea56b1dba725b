"""Reports for other programs: llama-bench's field names, a row per figure, and safe CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice.model.device import Device, Runtime
from pytest_ondevice.model.measurement import Measurement
from pytest_ondevice.model.report import ArtifactFacts, CellReport, Report, TypeShare
from pytest_ondevice.render import exports
from pytest_ondevice.render.exports import Format, Kind

lawful = settings(max_examples=100, deadline=None, derandomize=True, database=None)

# As llama-bench's test::get_fields has them, and what its JSON printer adds.
FIELDS = [
    "build_commit",
    "build_number",
    "cpu_info",
    "gpu_info",
    "backends",
    "model_filename",
    "model_type",
    "model_size",
    "model_n_params",
    "n_batch",
    "n_ubatch",
    "n_threads",
    "cpu_mask",
    "cpu_strict",
    "poll",
    "type_k",
    "type_v",
    "n_gpu_layers",
    "n_cpu_moe",
    "split_mode",
    "main_gpu",
    "no_kv_offload",
    "flash_attn",
    "devices",
    "tensor_split",
    "tensor_buft_overrides",
    "load_mode",
    "lazy_mode",
    "embeddings",
    "no_op_offload",
    "no_host",
    "repack",
    "fit_target",
    "fit_min_ctx",
    "n_prompt",
    "n_gen",
    "n_depth",
    "test_time",
    "avg_ns",
    "stddev_ns",
    "avg_ts",
    "stddev_ts",
    "samples_ns",
    "samples_ts",
]
UNKNOWN = [
    "build_commit",
    "build_number",
    "gpu_info",
    "backends",
    "n_batch",
    "cpu_mask",
    "cpu_strict",
    "poll",
    "n_cpu_moe",
    "split_mode",
    "main_gpu",
    "no_kv_offload",
    "devices",
    "tensor_split",
    "tensor_buft_overrides",
    "lazy_mode",
    "embeddings",
    "no_op_offload",
    "no_host",
    "fit_target",
    "fit_min_ctx",
]

SPEED = {
    "stage": "speed",
    "prefill": 128,
    "prefill_long": 512,
    "decode": 24,
    "flash_attention": True,
    "repack": False,
    "mapped": True,
    "n_ctx": 1024,
    "n_ubatch": 256,
    "threads": 3,
}
SAMPLES = {
    "prefill_speed": (540.0, 560.0, 550.0),
    "prefill_speed_512": (500.0, 520.0),
    "decode_speed": (65.0, 66.0, 64.0),
    "decode_speed_d512": (60.0,),
}
FACTS = ArtifactFacts(
    file="m-Q4_0.gguf",
    sha256="a" * 64,
    size=91_000_000,
    origin="quantized",
    architecture="llama",
    weights=134_000_000,
    types={
        "Q4_0": TypeShare(tensors=3, weights=133_000_000, bytes=75_000_000),
        "F32": TypeShare(tensors=1, weights=1_000_000, bytes=4_000_000),
    },
    source="/home/somebody/secret/m.gguf",
)


def speeds(**samples):
    return {
        name: Measurement(
            quantity=name,
            value=statistics.median(values) if values else None,
            unit="tokens/s",
            n=len(values),
            samples=values,
            protocol="p",
        )
        for name, values in samples.items()
    }


def cell(method="Q4_0", artifact=FACTS, measurements=None, **fields):
    return CellReport(
        **{
            "id": f"m-{method}",
            "model": "m",
            "method": method,
            "reference": False,
            "verdict": None,
            "artifact": artifact,
            "measurements": speeds(**SAMPLES) if measurements is None else measurements,
        }
        | fields
    )


def report(*cells, protocol=SPEED, **fields):
    device = Device(
        system="Linux",
        machine="aarch64",
        cpu="Cortex-A76",
        cores=4,
        memory=2**33,
        python="3.11.7",
        libc="glibc 2.36",
    )
    return Report(
        **{
            "schema_version": 1,
            "generator": "pytest-ondevice 0.1.0",
            "created": "2026-09-01T14:00:00+02:00",
            "complete": True,
            "device": device,
            "tier": "t",
            "board": "kitchen",
            "runtime": Runtime(name="llama.cpp", version="0.3.36", digest="d" * 16),
            "settings": {},
            "cells": cells or (cell(),),
            "checks": (),
            "protocols": {"p": protocol},
            "notes": (),
        }
        | fields
    )


def strictly(text):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


# llama-bench


def test_the_field_names_are_those_of_llama_bench():
    for row in exports.llama_bench(report()):
        # What ``load_mode`` was before, for whoever reads the older name.
        assert [name for name in row if name != "use_mmap"] == FIELDS
        assert tuple(row) == exports.LLAMA_BENCH


def test_each_cell_has_a_row_per_test():
    rows = exports.llama_bench(report(cell(), cell("Q8_0")))
    tests = [(128, 0, 0), (512, 0, 0), (0, 24, 0), (0, 24, 512)]
    assert [(row["n_prompt"], row["n_gen"], row["n_depth"]) for row in rows] == tests * 2
    names = ["llama m Q4_0"] * 4 + ["llama m Q8_0"] * 4
    assert [row["model_type"] for row in rows] == names


def test_the_token_counts_are_those_of_the_protocol():
    protocol = SPEED | {"prefill": 64, "prefill_long": 256, "decode": 8}
    rows = exports.llama_bench(report(protocol=protocol))
    tests = [(64, 0, 0), (256, 0, 0), (0, 8, 0), (0, 8, 256)]
    assert [(row["n_prompt"], row["n_gen"], row["n_depth"]) for row in rows] == tests


def test_a_row_says_what_the_report_knows():
    row = exports.llama_bench(report())[0]
    told = {name: value for name, value in row.items() if value is not None}
    assert {
        name: told[name] for name in told if not name.startswith(("avg", "std", "samples"))
    } == {
        "cpu_info": "Cortex-A76",
        "model_filename": "m-Q4_0.gguf",
        "model_type": "llama m Q4_0",
        "model_size": 79_000_000,
        "model_n_params": 134_000_000,
        "n_ubatch": 256,
        "n_threads": 3,
        "type_k": "f16",
        "type_v": "f16",
        "n_gpu_layers": 0,
        "flash_attn": 1,
        "load_mode": "mmap",
        "use_mmap": True,
        "repack": False,
        "n_prompt": 128,
        "n_gen": 0,
        "n_depth": 0,
        "test_time": "2026-09-01T12:00:00Z",
    }
    assert [name for name, value in row.items() if value is None] == UNKNOWN


def test_what_the_protocol_states_is_taken():
    protocol = SPEED | {
        "type_k": "q8_0",
        "type_v": "q4_0",
        "gpu_layers": 99,
        "mapped": False,
        "flash_attention": False,
        "repack": True,
    }
    row = exports.llama_bench(report(protocol=protocol))[0]
    assert (row["type_k"], row["type_v"], row["n_gpu_layers"]) == ("q8_0", "q4_0", 99)
    assert (row["load_mode"], row["use_mmap"]) == ("none", False)
    assert (row["flash_attn"], row["repack"]) == (0, True)


@pytest.mark.parametrize("index", range(4))
def test_times_and_speeds_say_the_same(index):
    row = exports.llama_bench(report())[index]
    tokens = row["n_prompt"] + row["n_gen"]
    assert tuple(row["samples_ts"]) == list(SAMPLES.values())[index]
    assert len(row["samples_ns"]) == len(row["samples_ts"])
    for time, speed in zip(row["samples_ns"], row["samples_ts"], strict=True):
        assert isinstance(time, int)
        assert 1e9 * tokens / time == pytest.approx(speed, rel=1e-6)


def test_averages_are_means_and_deviations_those_of_samples():
    row = exports.llama_bench(report())[0]
    assert row["avg_ts"] == pytest.approx(550.0)
    assert row["stddev_ts"] == pytest.approx(10.0)
    assert row["samples_ns"] == [237_037_037, 228_571_429, 232_727_273]
    assert row["avg_ns"] == 232_778_580
    assert row["stddev_ns"] == 4_233_037
    # llama-bench too says 0 of a single one.
    assert exports.llama_bench(report())[3]["stddev_ts"] == 0
    assert exports.llama_bench(report())[3]["stddev_ns"] == 0


def test_the_mean_is_no_median():
    skewed = cell(measurements=speeds(decode_speed=(60.0, 61.0, 98.0)))
    (row,) = exports.llama_bench(report(skewed))
    assert row["avg_ts"] == pytest.approx(73.0)


@pytest.mark.parametrize(
    ("sizes", "size"),
    [
        ({"runtime_tensor_bytes": 81.0, "tensor_bytes": 80.0}, 81),
        ({"tensor_bytes": 80.0}, 80),
        ({"tensor_bytes": None}, 79_000_000),
    ],
)
def test_the_size_is_the_runtimes_own_count_where_it_is_known(sizes, size):
    more = {name: Measurement(quantity=name, value=sizes[name], unit="B") for name in sizes}
    (row, *_) = exports.llama_bench(report(cell(measurements=speeds(**SAMPLES) | more)))
    assert row["model_size"] == size


def test_no_folder_and_no_board_is_told():
    for file in ("/home/somebody/secret/m.gguf", "C:\\Users\\somebody\\secret\\m.gguf"):
        given = cell(artifact=msgspec.structs.replace(FACTS, file=file))
        for kind in Kind:
            text = exports.written(report(given), kind, Format.JSON)
            assert "secret" not in text
            assert "somebody" not in text
            assert "kitchen" not in text
        assert exports.llama_bench(report(given))[0]["model_filename"] == "m.gguf"


def test_what_was_not_measured_has_no_row():
    assert exports.llama_bench(report(cell(measurements={}))) == []
    assert exports.llama_bench(report(cell(measurements=speeds(prefill_speed=())))) == []
    some = cell(measurements=speeds(decode_speed=(60.0,)))
    assert [row["n_gen"] for row in exports.llama_bench(report(some))] == [24]


def test_what_is_no_speed_is_no_sample():
    odd = (math.nan, math.inf, 0.0, -1.0, 1e-300, 1e300, 50.0)
    (row,) = exports.llama_bench(report(cell(measurements=speeds(decode_speed=odd))))
    assert row["samples_ts"] == [50.0]
    assert row["samples_ns"] == [480_000_000]
    only_odd = cell(measurements=speeds(decode_speed=odd[:-1]))
    assert exports.llama_bench(report(only_odd)) == []


def test_without_artifact_or_protocol_nothing_is_made_up():
    bare = cell(artifact=None)
    row = exports.llama_bench(report(bare, protocols={}))[2]
    known = {name for name, value in row.items() if value is not None}
    assert known == {
        "cpu_info",
        "model_type",
        "n_prompt",
        "n_depth",
        "test_time",
        "avg_ts",
        "stddev_ts",
        "samples_ts",
    }
    assert row["model_type"] == "m Q4_0"


def test_a_protocol_of_other_types_is_not_known():
    odd = SPEED | {"decode": "24", "threads": True, "mapped": "yes", "flash_attention": 1}
    row = exports.llama_bench(report(protocol=odd))[2]
    names = ("n_gen", "n_threads", "load_mode", "use_mmap", "flash_attn", "samples_ns", "avg_ns")
    assert {row[name] for name in names} == {None}


@pytest.mark.parametrize(
    ("created", "told"),
    [
        ("2026-09-01T12:00:00", "2026-09-01T12:00:00Z"),
        ("2026-09-01T12:00:00.5Z", "2026-09-01T12:00:00Z"),
        ("yesterday", None),
        ("0001-01-01T00:00:00+10:00", None),
    ],
)
def test_the_time_is_in_utc(created, told):
    assert exports.llama_bench(report(created=created))[0]["test_time"] == told


# A row per figure


def test_the_table_has_a_row_per_cell_and_quantity():
    measurements = {
        "mean_kld": Measurement(quantity="mean_kld", value=0.1, unit="nats", n=16, error=0.01),
        "file_size": Measurement(quantity="file_size", value=1e6, unit="B"),
    }
    found = exports.table(report(cell(measurements=measurements), cell("F16", measurements={})))
    assert [tuple(row.values()) for row in found] == [
        ("m-Q4_0", "m", "Q4_0", "mean_kld", 0.1, 0.01, "nats", 16),
        ("m-Q4_0", "m", "Q4_0", "file_size", 1e6, None, "B", 1),
    ]
    assert tuple(found[0]) == exports.TABLE


def test_the_table_as_csv():
    measurements = {"mean_kld": Measurement(quantity="mean_kld", value=-0.5, unit="nats", n=2)}
    assert exports.table_csv(report(cell(measurements=measurements))) == (
        'cell,model,method,quantity,value,error,unit,n\n"m-Q4_0","m","Q4_0","mean_kld",-0.5,,"nats",2\n'
    )


# How it is written


@pytest.mark.parametrize("kind", Kind)
def test_every_format_says_the_same(kind):
    made = report()
    rows = exports.llama_bench(made) if kind is Kind.LLAMA_BENCH else exports.table(made)
    assert strictly(exports.written(made, kind, Format.JSON)) == rows
    lines = exports.written(made, kind, Format.JSONL).splitlines()
    assert [strictly(line) for line in lines] == rows
    read = rows_of(exports.written(made, kind, Format.CSV))
    assert len(read) == len(rows)
    for told, row in zip(read, rows, strict=True):
        assert set(told) == {name for name in row if not name.startswith("samples_")}
        for name, text in told.items():
            value = row[name]
            if isinstance(value, float):
                assert float(text) == value
            else:
                assert text == (
                    "" if value is None else str(int(value)) if value in (0, 1) else str(value)
                )


@pytest.mark.parametrize("kind", Kind)
def test_a_report_without_cells_is_written(kind):
    empty = report(cell(measurements={}))
    assert strictly(exports.written(empty, kind, Format.JSON)) == []
    assert exports.written(empty, kind, Format.JSONL) == ""
    (header,) = exports.written(empty, kind, Format.CSV).splitlines()
    assert header.split(",")[0] == ("build_commit" if kind is Kind.LLAMA_BENCH else "cell")


@pytest.mark.parametrize("layout", Format)
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_left_empty(layout, odd):
    measured = Measurement(quantity="q", value=odd, error=odd, unit="1")
    text = exports.written(report(cell(measurements={"q": measured})), Kind.TABLE, layout)
    assert "nan" not in text.casefold()
    assert "inf" not in text.casefold()
    if layout is Format.CSV:
        assert rows_of(text)[0]["value"] == rows_of(text)[0]["error"] == ""
    else:
        strictly(text)


def test_csv_of_any_rows_has_no_nan():
    assert exports.as_csv([{"a": math.nan, "b": -math.inf, "c": True}], "abcd") == "a,b,c,d\n,,1,\n"


@pytest.mark.parametrize(
    "begin", ["=", "+", "-", "@", " =", "\t=", "\r@", "\n+", "\uff1d", "\uff20"]
)
def test_no_text_is_a_formula(begin):
    text = f'{begin}cmd|"/c calc"!A1'
    (row,) = rows_of(exports.as_csv([{"a": text}], ["a"]))
    assert row["a"][0] == "'"
    assert row["a"].endswith('cmd|"/c calc"!A1')
    named = cell(measurements={text: Measurement(quantity=text, value=1.0, unit=text)})
    hostile = msgspec.structs.replace(named, id=text, model=text, method=text)
    for told in rows_of(exports.table_csv(report(hostile))):
        for name in ("cell", "model", "method", "quantity", "unit"):
            assert told[name][0] == "'", name


def test_a_negative_number_is_no_formula():
    assert exports.as_csv([{"a": -1.5, "b": -2}], "ab") == "a,b\n-1.5,-2\n"


@pytest.mark.parametrize("text", ["a,b", 'a"b', "a\nb", '","', "a;b", "'a", "Grüße"])
def test_text_is_read_as_it_was(text):
    (row,) = rows_of(exports.as_csv([{"a": text, "b": 1}], "ab"))
    assert row == {"a": text, "b": "1"}


def test_nothing_moves_a_terminals_cursor():
    line = exports.as_csv([{"a": "red\x1b[31m\x9b2J\u202eleft\x00"}], ["a"])
    assert line == 'a\n"red [31m 2J left "\n'
    assert exports.as_jsonl([{"a": "\x1b\x9b\u202e"}]).isascii()


@lawful
@given(st.lists(st.tuples(st.text(max_size=30), st.floats() | st.none()), max_size=5))
def test_any_rows_have_as_many_fields_as_columns(pairs):
    text = exports.as_csv([{"a": one, "b": two} for one, two in pairs], "ab")
    read = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert len(read) == len(pairs) + 1
    for (_, number), (told, figure) in zip(pairs, read[1:], strict=True):
        assert told.lstrip()[:1] not in {"=", "+", "-", "@"} or not told
        assert figure == "" or float(figure) == number
