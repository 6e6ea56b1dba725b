"""Where a model's weights are: a file, a package's resource, a repository of the hub."""

from __future__ import annotations

import importlib.util
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MissingError, NotCachedError
from .hub import find_source
from .shelf import of_file

if TYPE_CHECKING:
    from ..model.catalog import Model, ModelSource
    from .shelf import Weights


def locate(model: Model, *, offline: bool) -> Weights:
    """Find a model's source, on this machine or on the hub; nothing is downloaded.

    Raises:
        MissingError: It is nowhere; one sentence says what is missing and how to provide it.
    """
    problems: list[MissingError] = []
    for source in model.sources:
        try:
            return _locate(source, offline=offline)
        except MissingError as error:
            problems.append(error)
    uncached = [error for error in problems if isinstance(error, NotCachedError)]
    if len(problems) == len(uncached) > 1:
        said = (
            f"no GGUF file of {' or '.join(error.repo for error in uncached)} is in the Hugging"
            f" Face cache, and offline none can be fetched ({uncached[0].way} where there is a"
            " network)"
        )
    else:
        said = "; ".join(map(str, problems))
    raise MissingError(
        f"model {model.name}: {said}; or give ready-made files with --ondevice-artifacts=DIR, or a"
        " file with --ondevice-models=PATH.gguf"
    )


def _locate(source: ModelSource, *, offline: bool) -> Weights:
    if source.path is not None:
        return of_file(Path(source.path), str(source), source.sha256)
    if source.package is not None:
        return of_file(_resource(source), str(source), source.sha256)
    return find_source(source, offline=offline)


def _resource(source: ModelSource) -> Path:
    """Find a package's file without importing the package, whose code may do anything."""
    package = source.package or ""
    folders = _folders(package)
    if not folders:
        how = source.install or f"pip install {package}"
        raise MissingError(f"the Python package {package} is not installed (`{how}`)")
    for folder in folders:
        path = Path(folder, source.file or "").resolve()
        if path.is_file() and path.is_relative_to(Path(folder).resolve()):
            return path
    raise MissingError(f"the Python package {package} has no file {source.file}")


def _folders(package: str) -> tuple[str, ...]:
    """Find a package's folders; find_spec of a dotted name would import its parents."""
    name, *rest = package.split(".")
    try:
        spec = importlib.util.find_spec(name)
        for part in rest:
            name = f"{name}.{part}"
            places = spec.submodule_search_locations if spec else None
            spec = PathFinder.find_spec(name, places) if places else None
    except (ImportError, ValueError):
        return ()
    return tuple(spec.submodule_search_locations or ()) if spec else ()


def at_hand(model: Model) -> bool:
    """Whether a source of a model is on this machine already."""
    try:
        return locate(model, offline=True).here() is not None
    except (MissingError, OSError):
        return False
