"""Settings to cells: which models and methods are meant, without touching a single weight."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from .errors import BadFileError, MissingError, did_you_mean
from .model.catalog import Cell, Model, ModelSource
from .model.quant_types import FILE_TYPES
from .options import choose

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .options import Settings, Value

METHOD_GROUPS: Mapping[str, tuple[str, ...]] = {
    # The seven methods of arXiv 2505.15030.
    "study": ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_0", "Q5_K_M", "Q8_0"),
}

REFERENCE = "F16"
"""The method of the cell that loss is measured against."""

FLOAT_METHODS = frozenset({"F32", "F16", "BF16"})

_FTYPE = re.compile(r"^LLAMA_FTYPE_(?:ALL|MOSTLY)_(\w+) = (\d+)$", re.MULTILINE)


class _Catalog(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    models: dict[str, Model]


@cache
def catalog() -> Mapping[str, Model]:
    """Read the catalog that ships.

    Raises:
        BadFileError: The file is not a catalog; the message names the place inside it.
    """
    file = resources.files("pytest_ondevice") / "data" / "catalog.toml"
    try:
        read = msgspec.convert(tomllib.loads(file.read_text("utf-8")), _Catalog)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise BadFileError(str(file), str(error)) from error
    return {name: msgspec.structs.replace(model, name=name) for name, model in read.models.items()}


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
    """Expand groups and spellings to file types, the reference first, duplicates merged.

    Raises:
        OptionError: A name is no file type of the installed llama.cpp and no group.
    """
    value = settings.given["methods"]
    known = [*runtime_methods(), *METHOD_GROUPS]
    chosen: list[str] = [REFERENCE]
    for name in settings.methods:
        method = choose(value, "method", name, known)
        chosen.extend(METHOD_GROUPS.get(method, (method,)))
    return tuple(dict.fromkeys(chosen))


def models(settings: Settings) -> tuple[Model, ...]:
    """Find every model that the user named.

    Raises:
        OptionError: A name is neither in the catalog nor a file; two models have one name.
    """
    value = settings.given["models"]
    found: dict[str, Model] = {}
    for name in settings.models:
        model = _model(name, value, settings)
        other = found.setdefault(model.name, model)
        if other.sources != model.sources:
            raise value.error(
                f"two files are named {model.name} ({other.sources[0].path} and"
                f" {model.sources[0].path}); rename one, since cells are named after them"
            )
    return tuple(found.values())


def cells(settings: Settings) -> tuple[Cell, ...]:
    """Make the matrix: every model under every method, the reference of a model first."""
    chosen = methods(settings)
    return tuple(
        Cell(model=model, method=method, reference=method == REFERENCE)
        for model in models(settings)
        for method in chosen
    )


def _model(name: str, value: Value, settings: Settings) -> Model:
    known = catalog()
    folded = {key.casefold(): key for key in known}
    if name.casefold() in folded:
        return known[folded[name.casefold()]]
    if name.startswith("pkg:"):
        package, slash, file = name[4:].partition("/")
        if not slash or not package or not file:
            raise value.error(f"'{name}' is not of the form pkg:MODULE/FILE")
        source = ModelSource(package=package, file=file)
        return Model(name=_slug(Path(file).stem), sources=(source,))
    if name.endswith(".gguf") or "/" in name or "\\" in name:
        base = settings.rootdir if value.origin.startswith("file ") else Path.cwd()
        try:
            path = base / Path(name).expanduser()
            there, folder = path.exists(), path.is_dir()
        except (OSError, RuntimeError, ValueError) as error:
            raise value.error(f"there is no file '{name}'") from error
        if not there:
            raise value.error(f"there is no file '{name}'")
        if folder:
            raise value.error(f"'{name}' is a folder; give a GGUF file")
        return Model(name=_slug(path.stem), sources=(ModelSource(path=str(path)),))
    raise value.error(f"unknown model '{name}'{did_you_mean(name, known)}")


def _slug(text: str) -> str:
    """Make a file's stem fit for cell ids, which ``-k`` and file names must be able to hold."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.").lower() or "model"
