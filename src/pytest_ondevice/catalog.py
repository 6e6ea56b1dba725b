"""Names to models: the catalog that ships, the user's own, and the other ways to say a model."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from .errors import BadFileError, did_you_mean
from .model.catalog import Model, ModelSource
from .storage.files import read_toml
from .tasks import shipped
from .texts import ships

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .options import Settings, Value

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class _Catalog(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    models: dict[str, Model]


@cache
def catalog(own: Path | None = None) -> Mapping[str, Model]:
    """Read the catalog that ships, with the entries of the user's own instead of or beside its.

    Raises:
        BadFileError: A file is not a catalog; the message names the place inside it.
    """
    models = _read(Path(str(resources.files("pytest_ondevice") / "data" / "catalog.toml")))
    if own is not None:
        models |= _read(own)
    return models


def _read(path: Path) -> dict[str, Model]:
    try:
        read = read_toml(path, _Catalog, "catalog")
    except FileNotFoundError as error:
        raise BadFileError(path, f"cannot read it: {error.strerror}") from error
    if read.schema != 1:
        raise BadFileError(path, f"its schema is {read.schema}, this version reads 1 - `$.schema`")
    for name, model in read.models.items():
        if not _NAME.fullmatch(name):
            problem = "a model's name is letters, digits, '.', '_' and '-'"
            raise BadFileError(path, f"{problem} - `$.models[{name!r}]`")
        if not model.sources:
            raise BadFileError(path, f"the model has no source - `$.models[{name!r}].sources`")
        _check_own(path, name, model)
    return {
        name: msgspec.structs.replace(
            model,
            name=name,
            sources=tuple(_placed(source, path.parent) for source in model.sources),
        )
        for name, model in read.models.items()
    }


def _check_own(path: Path, name: str, model: Model) -> None:
    """Refuse a text or questions that do not ship.

    Raises:
        BadFileError: There is none of that name.
    """
    if model.text and not ships(model.text):
        problem = f"no text '{model.text}' ships; leave it away for the common one"
        raise BadFileError(path, f"{problem} - `$.models[{name!r}].text`")
    for one in model.tasks:
        if one not in shipped():
            problem = f"no set of questions '{one}' ships{did_you_mean(one, shipped())}"
            raise BadFileError(path, f"{problem} - `$.models[{name!r}].tasks`")


def _placed(source: ModelSource, folder: Path) -> ModelSource:
    """Let a path in a catalog be relative to that catalog."""
    if source.path is None:
        return source
    try:
        path = folder / Path(source.path).expanduser()
    except RuntimeError as error:  # a user of whom nobody knows the home
        raise BadFileError(folder, f"a source's path is {source.path}: {error}") from error
    return msgspec.structs.replace(source, path=str(path))


def models(settings: Settings) -> tuple[Model, ...]:
    """Find every model that the user named.

    Raises:
        OptionError: A name is neither in the catalog nor a file; two models have one name.
        BadFileError: The user's catalog is none.
    """
    value = settings.given["models"]
    found: dict[str, Model] = {}
    base = settings.rootdir if value.origin.startswith("file ") else Path.cwd()
    for name in settings.models:
        model = find_model(name, value, settings.catalog, base)
        other = found.setdefault(model.name, model)
        if other.sources != model.sources:
            raise value.error(
                f"two models are named {model.name} ({_where(other)} and {_where(model)});"
                " rename one, since cells are named after them"
            )
    return tuple(found.values())


def _where(model: Model) -> str:
    source = model.sources[0]
    return source.path or str(source)


def find_model(name: str, value: Value, own: Path | None, base: Path) -> Model:
    """Find the model that a name means.

    Args:
        name: A name of the catalog, a file, ``hf:...`` or ``pkg:...``.
        value: The setting it stands in, for messages.
        own: The user's catalog.
        base: The folder that a relative path starts from.

    Raises:
        OptionError: It means none.
        BadFileError: The user's catalog is none.
    """
    known = catalog(own)
    folded = {key.casefold(): key for key in known}
    if name.casefold() in folded:
        return known[folded[name.casefold()]]
    if name.startswith("pkg:"):
        package, slash, file = name[4:].partition("/")
        if not slash or not package or not file:
            raise value.error(f"'{name}' is not of the form pkg:MODULE/FILE")
        source = ModelSource(package=package, file=file)
        return Model(name=slug(Path(file).stem), sources=(source,))
    if name.startswith("hf:"):
        source = hub_source(name, value)
        of_file = Path(source.file).stem if source.file else ""
        repo = (source.repo or "").partition("/")[2]
        return Model(name=slug(of_file or re.sub(r"(?i)-gguf$", "", repo)), sources=(source,))
    if name.endswith(".gguf") or "/" in name or "\\" in name:
        return _of_file(name, value, base)
    raise value.error(f"unknown model '{name}'{did_you_mean(name, known)}")


def hub_source(name: str, value: Value) -> ModelSource:
    """Read ``hf:OWNER/REPO[:FILE][@REVISION]``.

    Raises:
        OptionError: It is not of that form.
    """
    rest, at, revision = name.removeprefix("hf:").partition("@")
    repo, colon, file = rest.partition(":")
    if (at and not revision) or (colon and not file):
        raise value.error(f"'{name}' is not of the form hf:OWNER/REPO[:FILE][@REVISION]")
    try:
        return ModelSource(repo=repo, file=file or None, revision=revision or None)
    except ValueError as error:
        form = "hf:OWNER/REPO[:FILE][@REVISION]"
        raise value.error(f"'{name}' is not of the form {form}: {error}") from error


def _of_file(name: str, value: Value, base: Path) -> Model:
    try:
        path = base / Path(name).expanduser()
        there, folder = path.exists(), path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise value.error(f"there is no file '{name}'") from error
    if not there:
        missing = f"there is no file '{name}'"
        hint = f"; a repository of the hub is hf:{name}" if _is_repo(name) else ""
        raise value.error(missing + hint)
    if folder:
        raise value.error(f"'{name}' is a folder; give a GGUF file")
    return Model(name=slug(path.stem), sources=(ModelSource(path=str(path)),))


def _is_repo(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "~", "/")) and ".gguf" not in name


def slug(text: str) -> str:
    """Make a file's stem fit for cell ids, which ``-k`` and file names must be able to hold."""
    text = re.sub(r"-\d{5}-of-\d{5}$", "", text)
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.").lower() or "model"
