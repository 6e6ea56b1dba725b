"""Settings to cells: which models and methods are meant, without touching a single weight."""

from __future__ import annotations

import importlib.util
import itertools
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from .catalog import models
from .errors import MissingError, OnDeviceError, did_you_mean
from .model.catalog import Cell, Subject
from .model.method import KV_TYPES, PLAIN_KV, VARIANTS, Method, method_of
from .model.quant_types import FILE_TYPES
from .options import choose
from .storage.candidates import Candidates

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from .options import Settings, Value

ALL_BLOCK = "all-block"

METHOD_GROUPS: Mapping[str, tuple[str, ...]] = {
    # The seven methods of arXiv 2505.15030.
    "study": ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_0", "Q5_K_M", "Q8_0"),
    # Each way in which llama-quantize stores the weights of any dense model in blocks, from most
    # to fewest bits (effective BPW of Llama-3.1-8B), down to base types of 2 bits: legacy types, K
    # mixes and IQ types. With an importance matrix what is refused without one. Each base type of
    # blocks of 256 and under 5 bits stands there once more as pure: its own bits, no mix's.
    # Ternary types are for models that were trained to be ternary, MXFP4 is for experts.
    ALL_BLOCK: (
        *("Q8_0", "Q6_K", "Q5_1", "Q5_K_M", "Q5_K_S", "Q5_0"),
        *("Q4_1", "Q4_K_M", "IQ4_NL", "Q4_K_S", "Q4_0", "Q4_K_S+pure", "IQ4_XS", "Q3_K_L"),
        *("IQ4_XS+pure", "Q3_K_M", "IQ3_M", "IQ3_S", "Q3_K_S", "IQ3_XS+imatrix"),
        *("Q3_K_S+pure", "IQ3_S+pure", "IQ3_XXS+imatrix", "Q2_K", "IQ3_XXS+pure+imatrix"),
        *("Q2_K_S+imatrix", "IQ2_M+imatrix", "IQ2_S+imatrix", "Q2_K+pure", "IQ2_XS+imatrix"),
        *("IQ2_M+pure+imatrix", "IQ2_XXS+imatrix", "IQ2_XS+pure+imatrix"),
        "IQ2_XXS+pure+imatrix",
    ),
}
"""What several methods are called together. Of ``all-block`` those count that the installed
llama.cpp knows."""

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


def every_method() -> tuple[str, ...]:
    """Name every method with every variant: what a cell, or a baseline, can be called."""
    return tuple(
        str(msgspec.structs.replace(way, kv=kv)) for way in _every_making() for kv in KV_TYPES
    )


def _every_making() -> tuple[Method, ...]:
    """List every file type with every variant that makes other weights of it."""
    return tuple(
        Method(file_type=name, pure=pure, imatrix=imatrix)
        for name in runtime_methods()
        for imatrix, pure in itertools.product(
            (False,) if name in FLOAT_METHODS else (False, True), repeat=2
        )
    )


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
    plain = expand(named, settings.given["methods"])
    kinds = settings.kv_types
    if not kinds:
        return plain
    several = [
        msgspec.structs.replace(method_of(name), kv=kind)
        for name in plain
        for kind in (kinds if method_of(name).kv == PLAIN_KV else (method_of(name).kv,))
    ]
    return tuple(dict.fromkeys(map(str, several)))


def expand(named: Iterable[str], value: Value) -> tuple[str, ...]:
    """Expand groups and spellings to methods, duplicates merged; variants follow a plus.

    Raises:
        OptionError: A name is no file type of the installed llama.cpp and no group, or has a
            variant that there is not.
    """
    known = [*runtime_methods(), *METHOD_GROUPS]
    chosen: list[str] = []
    for name in named:
        base, *variants = name.split("+")
        method = choose(value, "method", base, known)
        for one in variants:
            if one.casefold() not in VARIANTS:
                near = did_you_mean(one, VARIANTS)
                raise value.error(f"unknown variant '{one}' of {method}{near}")
        given = [variant.casefold() for variant in variants]
        for one in _members(method):
            # A member of a group may have the variant that is given to all of them.
            own = one.split("+")[1:]
            try:
                way = method_of("+".join([one, *(each for each in given if each not in own)]))
            except ValueError as error:
                raise value.error(str(error)) from error
            if way.imatrix and one in FLOAT_METHODS:
                raise value.error(f"{one} does not quantize, so it needs no importance matrix")
            if way.pure and one in FLOAT_METHODS:
                raise value.error(f"{one} has no pure variant: it does not quantize")
            chosen.append(str(way))
    return tuple(dict.fromkeys(chosen))


def _members(name: str) -> tuple[str, ...]:
    """Name the methods of a group; of a single method, itself."""
    members = METHOD_GROUPS.get(name, (name,))
    if name != ALL_BLOCK:
        return members
    known = runtime_methods()
    return tuple(one for one in members if method_of(one).file_type in known)


def _offered(settings: Settings) -> tuple[str, ...]:
    """Name the methods that a folder of candidates has files of, for the models that are meant."""
    if not isinstance(settings.artifacts, Path):
        return ()
    try:
        found = Candidates.in_folder(settings.artifacts)
        return found.methods(models(settings), [way.weights for way in _every_making()])
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


def subjects(cells: Iterable[Cell], per: str, *, caches_apart: bool = True) -> tuple[Subject, ...]:
    """Group cells into what a law is held for, in matrix order.

    Args:
        cells: The matrix.
        per: ``model`` or ``family``; a model of no known family is its own.
        caches_apart: Cells of different types of the KV cache are different subjects.
    """
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        name = (cell.model.family if per == "family" else "") or cell.model.name
        if caches_apart and cell.way.kv != PLAIN_KV:
            name += f"+kv-{cell.way.kv}"
        found.setdefault(name, []).append(cell)
    return tuple(Subject(name=name, cells=tuple(group)) for name, group in found.items())
