"""A report for other programs: rows as llama-bench writes them, and one row per figure.

Whatever text comes from a file is foreign: no spreadsheet may take it for a formula.
"""

from __future__ import annotations

import datetime
import json
import math
import statistics
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..model.measurement import Measurement, ProtocolFields
    from ..model.report import ArtifactFacts, CellReport, Report

Row = dict[str, object]
"""Values by the name of their column; None is not known, or not finite."""

LLAMA_BENCH = (
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
    "use_mmap",
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
)
"""Field names of llama-bench's JSON, in its order; ``use_mmap`` is what came before
``load_mode``."""

_IN_CSV = LLAMA_BENCH[:-2]
"""Without the samples, as llama-bench's own CSV is."""

TABLE = ("cell", "model", "method", "quantity", "value", "error", "unit", "n")
"""Columns of the table with one row per figure."""

# Quantity: which fields of its protocol are the tokens of prompt, generation and depth.
_TESTS = {
    "prefill_speed": ("prefill", None, None),
    "prefill_speed_512": ("prefill_long", None, None),
    "decode_speed": (None, "decode", None),
    "decode_speed_d512": (None, "decode", "prefill_long"),
}

_FORMULA = frozenset("=+-@\uff1d\uff0b\uff0d\uff20")
"""What a spreadsheet takes for the start of a formula, in both widths."""

_SLOWEST, _FASTEST = 1e-6, 1e12
"""Tokens/s; what lies outside, or is NaN, is no speed."""


class Kind(StrEnum):
    """Which rows to make of a report."""

    LLAMA_BENCH = "llama-bench"
    TABLE = "table"


class Format(StrEnum):
    """How to write rows."""

    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"


def written(report: Report, kind: Kind, layout: Format) -> str:
    """Write a report's rows as text that ends with a newline, or is empty."""
    rows = llama_bench(report) if kind is Kind.LLAMA_BENCH else table(report)
    if layout is Format.CSV:
        columns = _IN_CSV if kind is Kind.LLAMA_BENCH else TABLE
        return as_csv(rows, columns)
    return as_json(rows) if layout is Format.JSON else as_jsonl(rows)


def llama_bench(report: Report) -> list[Row]:
    """Return a row per cell and speed test, with the field names of ``llama-bench -o json``.

    The names are llama-bench's, the samples are not made as its are: each of ours is the best that
    one process reached, where llama-bench's are repetitions within one process. So the averages
    here are over processes, and lie above those of llama-bench for the same machine.

    What a report does not say is None. ``model_type`` is architecture, model and method;
    ``test_time`` is when the report was made. A quantity without samples has no row.
    """
    return [
        _test(report, cell, name)
        for cell in report.cells
        for name in _TESTS
        if name in cell.measurements and _speeds(cell.measurements[name])
    ]


def table(report: Report) -> list[Row]:
    """Return a row per cell and quantity; a figure that is not finite is None."""
    return [
        {
            "cell": cell.id,
            "model": cell.model,
            "method": cell.method,
            "quantity": name,
            "value": _finite(measured.value),
            "error": _finite(measured.error),
            "unit": measured.unit,
            "n": measured.n,
        }
        for cell in report.cells
        for name, measured in cell.measurements.items()
    ]


def table_csv(report: Report) -> str:
    """Write the table with one row per figure as CSV."""
    return written(report, Kind.TABLE, Format.CSV)


def as_json(rows: Sequence[Row]) -> str:
    """Write rows as one JSON array."""
    return json.dumps(rows, indent=1, allow_nan=False) + "\n"


def as_jsonl(rows: Iterable[Row]) -> str:
    """Write rows as JSON, one object per line."""
    return "".join(f"{json.dumps(row, allow_nan=False)}\n" for row in rows)


def as_csv(rows: Iterable[Row], columns: Sequence[str]) -> str:
    """Write rows as CSV below a line of column names.

    Text is always quoted, numbers never are. Nothing stands for None, 1 and 0 for true and false.
    An apostrophe goes before text that a spreadsheet would take for a formula, a space stands for
    each character that cannot be printed.
    """
    lines = [",".join(columns)]
    lines += [",".join(_field(row.get(name)) for name in columns) for row in rows]
    return "".join(f"{line}\n" for line in lines)


def _test(report: Report, cell: CellReport, name: str) -> Row:
    measured = cell.measurements[name]
    protocol = report.protocols.get(measured.protocol)
    n_prompt, n_gen, n_depth = (
        0 if field is None else _whole(protocol, field) for field in _TESTS[name]
    )
    speeds = _speeds(measured)
    row: Row = dict.fromkeys(LLAMA_BENCH)
    row |= _model(cell) | _execution(protocol)
    row |= {
        "cpu_info": report.device.cpu or None,
        "n_prompt": n_prompt,
        "n_gen": n_gen,
        "n_depth": n_depth,
        "test_time": _utc(report.created),
        "avg_ts": statistics.fmean(speeds),
        "stddev_ts": _deviation(speeds),
        "samples_ts": speeds,
    }
    if n_prompt is not None and n_gen is not None:
        times = [round(1e9 * (n_prompt + n_gen) / speed) for speed in speeds]
        row |= {
            "avg_ns": round(statistics.fmean(times)),
            "stddev_ns": round(_deviation(times)),
            "samples_ns": times,
        }
    return row


def _model(cell: CellReport) -> Row:
    artifact = cell.artifact
    architecture = artifact.architecture if artifact else ""
    known = " ".join(part for part in (architecture, cell.model, cell.method) if part)
    row: Row = {"model_type": known, "model_size": _size(cell)}
    if artifact is not None:
        # The name alone: folders are nobody's business.
        file = artifact.file.replace("\\", "/").rpartition("/")[2]
        row |= {"model_filename": file or None, "model_n_params": artifact.weights or None}
    return row


def _size(cell: CellReport) -> int | None:
    """Return the bytes of all tensors: as the runtime counts them, else by the file's header."""
    for name in ("runtime_tensor_bytes", "tensor_bytes"):
        measured = cell.measurements.get(name)
        value = _finite(measured.value) if measured else None
        if value is not None:
            return round(value)
    return _held(cell.artifact) if cell.artifact else None


def _held(artifact: ArtifactFacts) -> int | None:
    return sum(share.bytes for share in artifact.types.values()) or None


def _execution(protocol: ProtocolFields | None) -> Row:
    if protocol is None:
        return {}
    mapped = _flag(protocol, "mapped")
    flash = _flag(protocol, "flash_attention")
    return {
        "n_ubatch": _whole(protocol, "n_ubatch"),
        "n_threads": _whole(protocol, "threads"),
        # A protocol leaves out what it was before there was a choice.
        "type_k": protocol.get("type_k", "f16"),
        "type_v": protocol.get("type_v", "f16"),
        "n_gpu_layers": _whole(protocol, "gpu_layers") if "gpu_layers" in protocol else 0,
        "flash_attn": None if flash is None else int(flash),
        "load_mode": None if mapped is None else "mmap" if mapped else "none",
        "use_mmap": mapped,
        "repack": _flag(protocol, "repack"),
    }


def _whole(protocol: Mapping[str, object] | None, name: str) -> int | None:
    value = protocol.get(name) if protocol else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _flag(protocol: Mapping[str, object], name: str) -> bool | None:
    value = protocol.get(name)
    return value if isinstance(value, bool) else None


def _speeds(measured: Measurement) -> list[float]:
    return [speed for speed in measured.samples if _SLOWEST <= speed <= _FASTEST]


def _deviation(values: Sequence[float]) -> float:
    # Of a single sample llama-bench says 0 as well.
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _utc(created: str) -> str | None:
    try:
        when = datetime.datetime.fromisoformat(created)
        if when.tzinfo is None:
            when = when.replace(tzinfo=datetime.UTC)
        return when.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError):
        return None


def _field(value: object) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool | int | float):
        return repr(int(value) if isinstance(value, bool) else value)
    text = "".join(one if one.isprintable() or one == "\n" else " " for one in str(value))
    if text.lstrip()[:1] in _FORMULA:
        text = f"'{text}"
    return f'"{text.replace(chr(34), chr(34) * 2)}"'
