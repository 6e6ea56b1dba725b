"""What a model file is, for a person or a script: facts of its header, and of every block."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

from . import plan
from .bpw import account
from .checkpoints import account as account_checkpoint
from .errors import BadFileError, MissingError
from .formats.gguf import read_model
from .formats.safetensors import read_folder
from .matrix import file_type_name
from .model.artifact import ArrayInfo
from .model.quant_types import FILE_TYPES
from .storage.shelf import of_file

if TYPE_CHECKING:
    from pathlib import Path

    from .bpw import BpwAccount, Tally
    from .model.artifact import Header

SUSPICIOUS_SHARE = 0.5
"""Below this share of weights in the types that a file type means, the name is wrong."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What one kind of tensor, or one tensor type, holds. Bytes, and bits per weight."""

    name: str
    tensors: int
    weights: int
    bytes: int
    bpw: float


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of a model file.

    Attributes:
        file: Name of the file, of a split model of its first part.
        parts: Number of files.
        size: Bytes of all of them.
        architecture: ``general.architecture``.
        name: ``general.name``, empty without.
        file_type: The file type that the header claims, None if none or unknown.
        quantization_version: ``general.quantization_version``, None without.
        weights: Number of weights.
        effective_bpw: BPW of all weights.
        body_bpw: BPW of the repeating layers, None without.
        nominal_bpw: BPW of the claimed file type's base type, None without.
        kinds: Where the weights and bytes are, by part of the model.
        types: The same by tensor type.
        layers: The same by repeating layer.
        tokens: Size of the vocabulary, 0 without.
        tokenizer: Digest of the tokenizer, None without.
        chat_template: Digest of the chat template, None without.
        anomalies: What is not as it should be, a sentence each.
    """

    file: str
    parts: int
    size: int
    architecture: str
    name: str
    file_type: str | None
    quantization_version: int | None
    weights: int
    effective_bpw: float
    body_bpw: float | None
    nominal_bpw: float | None
    kinds: tuple[Part, ...]
    types: tuple[Part, ...]
    layers: tuple[Part, ...]
    tokens: int
    tokenizer: str | None
    chat_template: str | None
    anomalies: tuple[str, ...]


def inspect(path: Path, *, blocks: bool = True) -> Inspection:
    """Inspect a GGUF file, or a folder with a checkpoint of Hugging Face.

    Args:
        path: The file, of a split model any part; or the folder.
        blocks: Look at the scales of every block too, which reads the whole file.

    Raises:
        BadFileError: It is none, or has no weights.
    """
    if path.is_dir():
        return _inspect_checkpoint(path)
    try:
        paths = of_file(path, path.name).here() or ()
    except MissingError as error:
        raise BadFileError(path, "does not exist") from error
    header = read_model(paths)
    try:
        counted = account(header.tensors)
    except ValueError as error:
        raise BadFileError(path, f"{error}") from error
    claimed = file_type_name(header.file_type)
    nominal = FILE_TYPES.get(claimed or "")
    version = header.metadata.get("general.quantization_version")
    name = header.metadata.get("general.name", "")
    embedding = next((t for t in header.tensors if t.name == "token_embd.weight"), None)
    return _counted(
        counted,
        file=paths[0].name,
        parts=len(paths),
        size=header.file_size,
        architecture=header.architecture,
        name=name if isinstance(name, str) else "",
        file_type=claimed,
        quantization_version=version if isinstance(version, int) else None,
        nominal_bpw=float(nominal.nominal_bpw) if nominal else None,
        tokens=embedding.shape[-1] if embedding else 0,
        tokenizer=header.tokenizer_digest,
        chat_template=chat_template_digest(header),
        anomalies=(
            *_contradictions(header, claimed),
            *(block_anomalies(paths) if blocks else ()),
        ),
    )


def _counted(counted: BpwAccount, **facts: Any) -> Inspection:
    """Put what an account says beside the facts that it does not know."""
    return Inspection(
        weights=counted.n_weights,
        effective_bpw=counted.effective_bpw,
        body_bpw=counted.body_bpw,
        kinds=tuple(_part(str(kind), tally) for kind, tally in counted.kinds.items() if tally[0]),
        types=tuple(_part(kind, tally) for kind, tally in counted.histogram.items()),
        layers=tuple(
            _part(f"layer {number}", tally) for number, tally in sorted(counted.by_layer.items())
        ),
        **facts,
    )


def _inspect_checkpoint(folder: Path) -> Inspection:
    checkpoint = read_folder(folder)
    try:
        counted = account_checkpoint(checkpoint)
    except ValueError as error:
        raise BadFileError(folder, str(error)) from error
    names = checkpoint.config.get("architectures")
    scheme = checkpoint.config.get("quantization_config")
    method = scheme.get("quant_method") if isinstance(scheme, dict) else None
    vocabulary = checkpoint.config.get("vocab_size")
    return _counted(
        counted,
        file=folder.resolve().name,
        parts=len(checkpoint.files),
        size=checkpoint.file_size,
        architecture=str(names[0]) if isinstance(names, list) and names else "unknown",
        name="",
        file_type=str(method) if method else "no quantization",
        quantization_version=None,
        nominal_bpw=None,
        tokens=vocabulary if isinstance(vocabulary, int) else 0,
        tokenizer=None,
        chat_template=None,
        anomalies=(),
    )


def chat_template_digest(header: Header) -> str | None:
    """Digest of the chat template's text; None without."""
    value = header.metadata.get("tokenizer.chat_template")
    if isinstance(value, ArrayInfo):
        return value.digest
    return hashlib.sha256(value.encode()).hexdigest() if isinstance(value, str) else None


def _contradictions(header: Header, claimed: str | None) -> list[str]:
    if claimed is None:
        return ["the header claims no file type that is known"]
    if claimed in plan.FLOATS:
        return []
    said = []
    share = account(header.tensors).float_matrix_share
    if share:
        said.append(f"{float(share):.0%} of the layers' matrix weights are plain floats")
    try:
        # A header does not say whether the file is meant to be pure: the better match counts.
        matching = max(plan.matching_share(header, claimed, pure=pure) for pure in (False, True))
    except ValueError:
        return said
    if matching < SUSPICIOUS_SHARE:
        said.append(
            f"it claims {claimed}, and {matching:.0%} of its weights have the types of that method"
        )
    return said


def block_anomalies(paths: tuple[Path, ...]) -> list[str]:
    """Read every block of a model; say what is odd about each tensor, a clause each.

    Raises:
        BadFileError: A file cannot be read, or ends early.
    """
    from .formats.blocks import scan  # noqa: PLC0415  (numpy, where it is asked for)

    return [finding.sentence for finding in scan(paths).findings]


def _part(name: str, tally: Tally) -> Part:
    return Part(
        name=name,
        tensors=tally.n_tensors,
        weights=tally.n_weights,
        bytes=tally.n_bytes,
        bpw=float(tally.bpw or 0),
    )
