"""Settings to cells: which models and methods are meant, without touching a single weight."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from .catalog import models
from .errors import MissingError, OnDeviceError
from .model.catalog import Cell
from .model.quant_types import FILE_TYPES
from .options import choose
from .storage.candidates import Candidates

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from .options import Settings, Value

METHOD_GROUPS: Mapping[str, tuple[str, ...]] = {
    # The seven methods of arXiv 2505.15030.
    "study": ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_0", "Q5_K_M", "Q8_0"),
}

DEFAULT_METHODS = ("study",)

REFERENCE = "F16"
"""The method of the cell that loss is measured against."""

FLOAT_METHODS = frozenset({"F32", "F16", "BF16"})

_FTYPE = re.compile(r"^LLAMA_FTYPE_(?:ALL|MOSTLY)_(\w+) = (\d+)$", re.MULTILINE)


@cache
def runtime_methods() -> Mapping[str, int]:
    """Map the file types that the installed llama.cpp knows to their ids.

    They are read from the text of llama-cpp-python's bindings: importing it here would load
    native code into the session. Without it, the types known to this version are returned.
    """
    bindings = _bindings()
    if bindings is None:
        return {name: file_type.id for name, file_type in FILE_TYPES.items()}
    return {name: int(number) for name, number in _FTYPE.findall(bindings.read_text("utf-8"))}


def file_type_name(number: int | None) -> str | None:
    """Name a llama.cpp file type by its id."""
    for name, known in runtime_methods().items():
        if known == number:
            return name
    return None


def _bindings() -> Path | None:
    """Find the text of llama-cpp-python's bindings; a mere folder of its name has none."""
    spec = importlib.util.find_spec("llama_cpp")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        bindings = Path(folder, "llama_cpp.py")
        if bindings.is_file():
            return bindings
    return None


def require_runtime() -> None:
    """Make sure that llama-cpp-python is installed, without importing it.

    Raises:
        MissingError: It is not; the message names the extra.
    """
    if _bindings() is None:
        raise MissingError(
            "llama-cpp-python is not installed; install it with"
            " `pip install 'pytest-ondevice[llama-cpp]'` (it compiles C++ for some minutes)"
        )


def methods(settings: Settings) -> tuple[str, ...]:
    """Expand groups and spellings to file types, duplicates merged.

    Without a choice they are those of the candidates' folder, or those of the study.

    Raises:
        OptionError: A name is no file type of the installed llama.cpp and no group.
    """
    named = settings.methods or _offered(settings) or DEFAULT_METHODS
    return expand(named, settings.given["methods"])


def expand(named: Iterable[str], value: Value) -> tuple[str, ...]:
    """Expand groups and spellings to file types, duplicates merged.

    Raises:
        OptionError: A name is no file type of the installed llama.cpp and no group.
    """
    known = [*runtime_methods(), *METHOD_GROUPS]
    chosen: list[str] = []
    for name in named:
        method = choose(value, "method", name, known)
        chosen.extend(METHOD_GROUPS.get(method, (method,)))
    return tuple(dict.fromkeys(chosen))


def _offered(settings: Settings) -> tuple[str, ...]:
    """Name the methods that a folder of candidates has files of, for the models that are meant."""
    if not isinstance(settings.artifacts, Path):
        return ()
    try:
        found = Candidates.in_folder(settings.artifacts)
        return found.methods(models(settings), runtime_methods())
    except OnDeviceError as error:
        raise settings.given["artifacts"].error(str(error)) from error


def cells(settings: Settings, given: Collection[str] = ()) -> tuple[Cell, ...]:
    """Make the matrix: every model under every method, the reference of a model first.

    Args:
        settings: The options.
        given: The models whose reference is a file: of them no reference is loaded unless it is
            among the methods by name.
    """
    chosen = methods(settings)
    return tuple(
        Cell(model=model, method=method, reference=method == REFERENCE)
        for model in models(settings)
        for method in dict.fromkeys(chosen if model.name in given else (REFERENCE, *chosen))
    )
