"""Plain text for the command line: tables of plans and of what a file holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..inspection import Inspection, Part
    from ..model.report import Report
    from ..model.verdict import Verdict
    from ..plan import Plan

BAR = 24
_MIB = 2**20


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Lay rows out in columns; those of the numbers in ``right`` are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{text:>{width}}" if index in right else f"{text:<{width}}"
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def plans(found: Sequence[Plan], available: int | None) -> list[str]:
    """Draw a row per method; ``available`` is the memory that decides whether it fits."""
    rows = [("method", "says", "is", "more", "body", "MiB", "KV MiB", "peak MiB", "fits", "types")]
    refused = []
    for plan in found:
        if plan.refused:
            refused.append(f"{plan.method}: {plan.refused}")
            continue
        fits = "-" if available is None else "yes" if plan.peak_memory <= available else "no"
        types = sorted(plan.types.items(), key=lambda pair: -pair[1])
        rows.append(
            (
                plan.method,
                f"{plan.nominal_bpw:.4g}",
                f"{plan.effective_bpw:.4f}",
                f"{plan.misled:+.0%}",
                f"{plan.body_bpw:.4f}",
                f"{plan.file_size / _MIB:.1f}",
                f"{plan.kv_cache / _MIB:.1f}",
                f"{plan.peak_memory / _MIB:.0f}",
                fits,
                " ".join(f"{name}:{count}" for name, count in types),
            )
        )
    lines = columns(rows, right=range(1, 8)) if len(rows) > 1 else []
    return [*lines, *(f"not made: {line}" for line in refused)]


def inspection(found: Inspection, *, layers: bool = False) -> list[str]:
    """Draw the facts of a file: what it is, where the bytes are, what is wrong with it."""
    by_layer = ["", *_shares("layer", found.layers, sort=False)] if layers else []
    claim = found.file_type or "no known file type"
    parts = f" in {found.parts} files" if found.parts > 1 else ""
    named = f", {found.name}" if found.name else ""
    lines = [
        f"{found.file}: {found.architecture}{named}; claims {claim}",
        f"{found.size} bytes{parts}, {found.weights} weights, {_density(found)}",
        "",
        *_shares("part of the model", found.kinds),
        "",
        *_shares("tensor type", found.types),
        *by_layer,
        "",
        f"tokenizer      {_digest(found.tokenizer)}, {found.tokens} tokens",
        f"chat template  {_digest(found.chat_template)}",
    ]
    if not found.anomalies:
        return [*lines, "nothing odd was found"]
    return [*lines, *(f"ODD: {anomaly}" for anomaly in found.anomalies)]


def _density(found: Inspection) -> str:
    text = f"{found.effective_bpw:.4f} bits per weight"
    if found.body_bpw is not None:
        text += f", {found.body_bpw:.4f} in the layers"
    if found.nominal_bpw is not None:
        more = found.effective_bpw / found.nominal_bpw - 1
        text += f"; the name says {found.nominal_bpw:.4g} ({more:+.0%})"
    return text


def _shares(title: str, parts: Sequence[Part], *, sort: bool = True) -> list[str]:
    total = sum(part.bytes for part in parts)
    rows = [(title, "tensors", "weights", "MiB", "BPW", "bytes")]
    rows += [
        (
            part.name,
            str(part.tensors),
            str(part.weights),
            f"{part.bytes / _MIB:.1f}",
            f"{part.bpw:.4f}",
            f"{'#' * round(BAR * part.bytes / total)} {part.bytes / total:.1%}".strip(),
        )
        for part in (sorted(parts, key=lambda part: -part.bytes) if sort else parts)
    ]
    return columns(rows, right=range(1, 5))


def _digest(digest: str | None) -> str:
    return digest[:16] if digest else "none"


def judged_laws(report: Report) -> dict[tuple[str, str], Verdict]:
    """Say what each law came to, by law and subject: disturbed figures make it invalid."""
    verdicts = {(law.law, law.subject): law.verdict for law in report.laws}
    judged = {
        (one.check.partition(".")[2], one.cell): one.verdict
        for one in report.checks
        if one.check.startswith("laws.")
    }
    return {key: judged.get(key, verdict) for key, verdict in verdicts.items()}
