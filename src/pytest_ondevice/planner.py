"""The planner: from what a user names, a plan per method; nothing is downloaded or loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from .catalog import find_model
from .errors import BadFileError, MissingError, OnDeviceError
from .formats.gguf import read_model
from .matrix import expand
from .model.method import method_of
from .model.quant_types import FILE_TYPES
from .options import Value
from .plan import RULES, Plan, dimensions_of_config, plan
from .storage.sources import locate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .model.artifact import Header
    from .model.catalog import Dimensions

MOST_CONFIG_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Subject:
    """What is planned.

    Attributes:
        name: The model.
        basis: What the plan starts from, in words.
        header: A source's header, or None.
        dimensions: The model's shape, or None.
    """

    name: str
    basis: str
    header: Header | None
    dimensions: Dimensions | None


def subject(name: str, *, catalog: Path | None = None, use_header: bool = True) -> Subject:
    """Find what a name says of a model: a header at hand, a ``config.json``, or the catalog.

    Args:
        name: As in ``--ondevice-models``, or a ``config.json``, or a folder that has one.
        catalog: The user's catalog.
        use_header: Start from a header where one is at hand; otherwise from dimensions alone.

    Raises:
        OnDeviceError: The name means nothing, or nothing is known of the model.
    """
    path = Path(name)
    config = path / "config.json" if path.is_dir() else path
    if path.suffix == ".safetensors" and path.is_file():
        # Its header has the tensors and not the heads: those are in the file beside it.
        config = path.with_name("config.json")
        if not config.is_file():
            raise BadFileError(path, "there is no config.json beside it, which says its shape")
    if config.name.endswith(".json") and config.is_file():
        return _of_config(config)
    value = Value(name, "MODEL", "command line")
    model = find_model(name, value, catalog, Path.cwd())
    place = ""
    if use_header:
        try:
            weights = locate(model, offline=True)
            paths = weights.here()
            place = weights.place
        except MissingError:
            paths = None
        if paths is not None:
            return Subject(model.name, f"the header of {place}", read_model(paths), None)
    if model.dimensions is None:
        raise value.error(
            "its dimensions are not in the catalog, and no file of it is on this machine; give a"
            " GGUF file or a config.json"
        )
    return Subject(model.name, "dimensions in the catalog", None, model.dimensions)


def plans(
    found: Subject, methods: Sequence[str], n_ctx: int, *, imatrix: bool = False
) -> tuple[Plan, ...]:
    """Plan a model under methods, groups, or ``all`` that llama-quantize knows.

    Args:
        found: The model.
        methods: File types and groups.
        n_ctx: Tokens of the context.
        imatrix: An importance matrix will be there.

    Raises:
        OnDeviceError: A method is unknown, or the header says too little.
    """
    value = Value(",".join(methods), "--methods", "command line")
    every = [name for name in methods if name.casefold() == "all"]
    chosen = tuple(FILE_TYPES) if every else expand(methods, value)
    ways = {name: method_of(name) for name in chosen}
    try:
        made = [
            msgspec.structs.replace(
                plan(
                    way.file_type,
                    header=found.header,
                    dimensions=found.dimensions,
                    n_ctx=n_ctx,
                    pure=way.pure,
                    imatrix=imatrix or way.imatrix,
                    kv=way.kv,
                ),
                method=name,
            )
            for name, way in ways.items()
            if way.file_type in FILE_TYPES
        ]
    except ValueError as error:
        raise OnDeviceError(f"{found.name}: {error}") from error
    unknown = [
        Plan(method=name, refused="newer than the rules known here")
        for name, way in ways.items()
        if way.file_type not in FILE_TYPES
    ]
    return (*made, *unknown)


def basis(found: Subject) -> str:
    """Say what a plan rests on."""
    return f"{found.name}: from {found.basis}; types by the {RULES}"


def _of_config(path: Path) -> Subject:
    try:
        if path.stat().st_size > MOST_CONFIG_BYTES:
            raise BadFileError(path, f"is longer than {MOST_CONFIG_BYTES} bytes")
        config: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise BadFileError(path, f"cannot read it: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadFileError(path, f"it is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise BadFileError(path, "it is no configuration: expected an object - `$`")
    try:
        dimensions = dimensions_of_config(config)
    except ValueError as error:
        raise BadFileError(path, str(error)) from error
    name = config.get("_name_or_path") or path.resolve().parent.name
    return Subject(str(name), path.name, None, dimensions)
