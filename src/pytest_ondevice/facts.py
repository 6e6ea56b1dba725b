"""Figures of an artifact that need no runtime: header, planned form, pin and blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from . import plan
from .active import active_bytes
from .bpw import account
from .formats.gguf import read_header, same_bytes, tensor_places
from .inspection import block_anomalies, chat_template_digest
from .matrix import FLOAT_METHODS
from .model.quant_types import FILE_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .provision import Artifact
    from .storage.pins import Pins


class Fact(NamedTuple):
    """A figure, and for messages what it is made of."""

    value: float
    detail: str = ""


class AbsentError(Exception):
    """The artifact has no such figure; the message says what it would need."""


def of_header(name: str, artifact: Artifact, pins: Pins) -> Fact:
    """Return a figure of the header stage.

    Raises:
        AbsentError: The artifact has none.
    """
    if name == "pin_matches":
        return _pin(artifact, pins)
    return _FACTS[name](artifact)


def planned_bpw(artifact: Artifact) -> float:
    """Return the effective BPW that llama.cpp's rules give the artifact's tensors.

    Of the rules with and without an importance matrix, those that come closer.

    Raises:
        AbsentError: llama.cpp would not make it.
    """
    header = artifact.file.header
    way = artifact.cell.way
    actual = artifact.file.account.effective_bpw
    found, problems = [], []
    for imatrix in (False, True):
        try:
            tensors = plan.from_header(header, way.file_type, pure=way.pure, imatrix=imatrix)
        except (KeyError, ValueError) as error:
            problems.append(str(error))
        else:
            found.append(account(tensors).effective_bpw)
    if not found:
        raise AbsentError(f"a method whose rules are known here: {problems[-1]}")
    return min(found, key=lambda value: abs(value - actual))


def equal_share(artifact: Artifact, made: Artifact) -> Fact:
    """Return the share of the bytes in tensors that two files have in common, bit for bit."""
    ours, theirs = tensor_places(artifact.file.parts), tensor_places(made.file.parts)
    different = [
        name
        for name in sorted({*ours, *theirs})
        if name not in ours or name not in theirs or not same_bytes(ours[name], theirs[name])
    ]
    total = sum(place.n_bytes for place in ours.values())
    apart = sum(ours[name].n_bytes for name in different if name in ours)
    shown = ", ".join(different[:4])
    more = f" and {len(different) - 4} more" if len(different) > 4 else ""
    detail = f"{len(different)} of {len(ours)} tensors differ: {shown}{more}" if different else ""
    return Fact(1 - apart / total if total else 0.0, detail)


def _stray(artifact: Artifact) -> Fact:
    stray = 0
    for path in artifact.file.parts:
        header = read_header(path)
        end = header.data_offset + header.data_size
        stray += max(0, header.file_size - end - (-end % header.alignment))
    return Fact(float(stray))


def _header(value: Callable[[Artifact], float | None]) -> Callable[[Artifact], Fact]:
    def get(artifact: Artifact) -> Fact:
        found = value(artifact)
        if found is None:
            raise AbsentError("an artifact that has such a part")
        return Fact(found)

    return get


def _float_share(artifact: Artifact) -> float | None:
    share = artifact.file.account.float_matrix_share
    return None if share is None else float(share)


def _nominal(artifact: Artifact) -> float | None:
    known = FILE_TYPES.get(artifact.cell.file_type)
    return float(known.nominal_bpw) if known else None


def _claims(artifact: Artifact) -> float | None:
    if artifact.file.header.file_type is None:
        return None
    return float(artifact.file.type_name == artifact.cell.file_type)


def _type_share(artifact: Artifact) -> Fact:
    way = artifact.cell.way
    try:
        share = plan.matching_share(artifact.file.header, way.file_type, pure=way.pure)
    except (KeyError, ValueError) as error:
        raise AbsentError(f"a method whose rules are known here: {error}") from error
    held = artifact.file.account.histogram
    largest = sorted(held.items(), key=lambda pair: -pair[1].n_weights)[:4]
    total = artifact.file.account.n_weights
    shown = ", ".join(f"{tally.n_weights / total:.0%} {name}" for name, tally in largest)
    return Fact(share, f"of its weights {shown}")


def _version(artifact: Artifact) -> Fact:
    if artifact.cell.file_type in FLOAT_METHODS:
        raise AbsentError("a method that quantizes")
    version = artifact.file.header.metadata.get("general.quantization_version")
    if not isinstance(version, int):
        return Fact(0.0, "the header states none")
    return Fact(float(version))


def _tokenizer(artifact: Artifact) -> Fact:
    ours = artifact.file.header.tokenizer_digest
    return _same(artifact, "tokenizer", ours, lambda ancestor: ancestor.header.tokenizer_digest)


def _chat_template(artifact: Artifact) -> Fact:
    ours = chat_template_digest(artifact.file.header)
    return _same(
        artifact, "chat template", ours, lambda ancestor: chat_template_digest(ancestor.header)
    )


def _same(artifact: Artifact, what: str, ours: str | None, get: Callable[..., str | None]) -> Fact:
    if artifact.ancestor is None:
        raise AbsentError(f"a source or a reference whose {what} it must have")
    theirs = get(artifact.ancestor)
    if ours == theirs:
        return Fact(1.0)
    shown = [digest[:12] if digest else "none" for digest in (ours, theirs)]
    return Fact(0.0, f"{what} {shown[0]} here, {shown[1]} in {artifact.ancestor.path.name}")


def _active(artifact: Artifact) -> Fact:
    header = artifact.file.header
    try:
        return Fact(float(active_bytes(header.tensors, header.metadata)))
    except ValueError as error:
        raise AbsentError(f"a header that says it: {error}") from error


def _calibrated(artifact: Artifact) -> Fact:
    """Whether it was quantized with an importance matrix: the recipe says so, or the header."""
    if artifact.recipe is not None and artifact.recipe.calibration:
        return Fact(1.0, f"calibration text {artifact.recipe.calibration}")
    entries = artifact.file.header.metadata.get("quantize.imatrix.entries_count")
    if entries:
        text = artifact.file.header.metadata.get("quantize.imatrix.dataset")
        return Fact(1.0, f"the header names {entries} entries" + (f", from {text}" if text else ""))
    return Fact(0.0)


def _blocks(artifact: Artifact) -> Fact:
    found = block_anomalies(artifact.file.parts)
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return Fact(float(len(found)), "; ".join(found[:3]) + more)


def _pin(artifact: Artifact, pins: Pins) -> Fact:
    pin = pins.get(artifact.cell.id)
    if pin is None:
        raise AbsentError(f"a pin of {artifact.cell.id}: record one with --ondevice-update=lock")
    actual = artifact.file.sha256
    if pin.sha256 == actual:
        return Fact(1.0)
    return Fact(
        0.0,
        f"SHA-256 {actual[:16]}... here, {pin.sha256[:16]}... in ondevice.lock; the same command"
        " with --ondevice-update=lock accepts it",
    )


_FACTS: Mapping[str, Callable[[Artifact], Fact]] = {
    "effective_bpw": _header(lambda artifact: artifact.file.account.effective_bpw),
    "body_bpw": _header(lambda artifact: artifact.file.account.body_bpw),
    "nominal_bpw": _header(_nominal),
    "file_size": _header(lambda artifact: float(artifact.file.header.file_size)),
    "active_bytes": _active,
    "calibrated": _calibrated,
    "weight_bytes": _header(lambda artifact: float(artifact.file.account.n_bytes)),
    "float_body_share": _header(_float_share),
    "file_type_matches": _header(_claims),
    "tensor_bytes": _header(
        lambda artifact: float(sum(tensor.n_bytes for tensor in artifact.file.header.tensors))
    ),
    "stray_bytes": _stray,
    "planned_bpw": lambda artifact: Fact(planned_bpw(artifact)),
    "planned_type_share": _type_share,
    "quantization_version": _version,
    "tokenizer_matches": _tokenizer,
    "chat_template_matches": _chat_template,
    "block_anomalies": _blocks,
}
