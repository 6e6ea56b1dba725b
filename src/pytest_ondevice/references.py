"""Reference files: those that were given, and making one for a machine that cannot hold the model.

A reference file stands for the reference cell: loss is measured against it, and the full-precision
model is neither loaded nor looked for.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .devices import device, lock_path, locked
from .errors import BadFileError, OnDeviceError
from .matrix import REFERENCE
from .model.catalog import Cell
from .model.quantity import Stage
from .probe import runner
from .probe.protocol import N_CTX, Execution, FidelityPlan, MeasureJob
from .storage.files import megabytes
from .texts import texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from .measure import Bench
    from .model.catalog import Model
    from .options import Settings
    from .probe.reference import Head


@dataclass(frozen=True, slots=True)
class GivenReference:
    """A reference file that was made elsewhere.

    Attributes:
        path: The file.
        source: Digest of what its model descends from.
        windows: Number of its windows.
    """

    path: Path
    source: str
    windows: int


def given(settings: Settings, models: Iterable[Model]) -> Mapping[str, GivenReference]:
    """Read the reference files that the user named: one file, or a folder of .npz files.

    Returns:
        By model name, those of this run's models; empty where none was given.

    Raises:
        OptionError: A file is damaged, of another text or execution, or of no model of the run.
    """
    place = settings.reference
    if not isinstance(place, Path):
        return {}
    from .probe.reference import Reader, TextError  # noqa: PLC0415  (numpy: only where it is used)

    value = settings.given["reference"]
    paths = sorted(place.glob("*.npz")) if place.is_dir() else [place]
    texts_of = {model.name: model.text for model in models}
    found: dict[str, GivenReference] = {}
    seen = []
    for path in paths:
        try:
            with Reader(path) as reader:
                head, windows = reader.head, len(reader.windows)
        except TextError as error:
            raise value.error(str(error)) from error
        seen.append(head.model)
        if head.model not in texts_of:
            continue
        if head.model in found:
            raise value.error(f"{found[head.model].path} and {path} are both of {head.model}")
        if wrong := _unfit(head, settings, texts_of[head.model]):
            raise value.error(f"{path}: {wrong}")
        found[head.model] = GivenReference(path, head.source, windows)
    if not found:
        there = f"of {', '.join(seen)}" if seen else "there is no .npz file"
        raise value.error(f"no reference of {', '.join(texts_of)}: {there}")
    return found


def _unfit(head: Head, settings: Settings, text: str) -> str:
    """Say why losses against a reference could not be compared with others; empty if they can."""
    from .probe.reference import moving  # noqa: PLC0415  (numpy: only where it is used)

    if head.text != texts(settings.text, text)[1]:
        return "it was made on another evaluation text; give that text with --ondevice-text=FILE"
    ours = {"n_ctx": N_CTX} | moving(Execution(gpu_layers=0))
    theirs = {"n_ctx": head.n_ctx} | head.execution
    # Where the layers are is the machine's affair: the reference may come from a GPU.
    theirs["gpu_layers"] = 0
    other = [name for name in ours if ours[name] != theirs.get(name)]
    if other:
        shown = ", ".join(f"{name} {theirs.get(name, 'absent')}" for name in other)
        return f"it was made under another execution: {shown}; make it anew"
    return ""


def make(
    bench: Bench, model: Model, target: Path, tick: Callable[[str, float, float], None]
) -> tuple[Head, int]:
    """Make a model's reference file.

    Args:
        bench: Finds and makes the artifact; its settings say how many windows.
        model: The model.
        target: Where the file goes; it appears whole or not at all.
        tick: Hears how far the work is: stage, done, total.

    Returns:
        What the file says about itself, and the number of its windows.

    Raises:
        OnDeviceError: The model cannot be had or loaded, or the file cannot be written.
    """
    cell = Cell(model=model, method=REFERENCE, reference=True)
    artifact = bench.artifact(cell)
    kinds, digest = texts(bench.settings.text, model.text)
    runtime = bench.provision.runtime
    plan = FidelityPlan(
        texts=kinds,
        reference=str(target.absolute()),
        write=True,
        last=bench.settings.windows,
        execution=Execution(threads=bench.settings.threads, gpu_layers=bench.settings.gpu_layers),
        about={
            "model": model.name,
            "source": artifact.lineage,
            "tokenizer": artifact.file.header.tokenizer_digest or "",
            "text": digest,
            "runtime": runtime.version,
            "runtime_digest": runtime.digest,
            "cpu": device().cpu,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
    )
    with locked(lock_path()) as descriptor:
        result = runner.run(
            MeasureJob(artifact=str(artifact.file.path), fidelity=plan),
            timeout=bench.settings.timeout,
            on_event=lambda event: tick(event.stage, event.done, event.total),
            keep_open=[] if descriptor is None else [descriptor],
        )
    payload = result.payloads.get(Stage.FIDELITY)
    if payload is None:
        ending = next(iter(result.endings.values()))
        raise OnDeviceError(f"{cell.id}: {ending.kind}: {ending.message}")
    if payload["nonfinite"]:
        raise OnDeviceError(
            f"{cell.id}: {payload['nonfinite']} logits are not finite; it is no reference"
        )
    return describe(target)


def describe(path: Path) -> tuple[Head, int]:
    """Read what a reference file says about itself, and the number of its windows.

    Raises:
        BadFileError: It is none, or damaged.
    """
    from .probe.reference import Reader, TextError  # noqa: PLC0415  (numpy: only where it is used)

    try:
        with Reader(path) as reader:
            return reader.head, len(reader.windows)
    except TextError as error:
        raise BadFileError(path, str(error).removeprefix(f"{path}: ")) from error


def verify(path: Path) -> list[str]:
    """Read and verify all of a reference file; a sentence for everything that is wrong with it."""
    from .probe.reference import check  # noqa: PLC0415  (numpy: only where it is used)

    return check(path)


def lines(path: Path) -> list[str]:
    """Say in words what a reference file is.

    Raises:
        BadFileError: It is none, or damaged.
    """
    from .probe.reference import llama_cpp_size  # noqa: PLC0415  (numpy: only where it is used)

    head, windows = describe(path)
    size = path.stat().st_size
    scored = head.n_ctx - head.n_ctx // 2 - 1
    theirs = llama_cpp_size(windows, scored, head.n_vocab)
    execution = ", ".join(f"{name} {value}" for name, value in sorted(head.execution.items()))
    return [
        f"reference of {head.model}, source {head.source[:12]}, made {head.created}",
        f"{windows} windows of {head.n_ctx} tokens, {scored} scored in each; text {head.text}",
        f"{head.n_vocab} tokens: {head.top} exact, {head.tail} sampled of the rest",
        f"{megabytes(size)}, 1/{theirs / size:.1f} of llama-perplexity's file of these windows",
        f"by {head.runtime} ({head.runtime_digest}) on {head.cpu}: {execution}",
    ]
