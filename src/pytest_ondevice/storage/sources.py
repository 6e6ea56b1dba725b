"""Where a model's weights are on this machine: a file, a package's resource, the hub's cache."""

from __future__ import annotations

import importlib.util
import re
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadFileError, MissingError, OnDeviceError
from .files import require_space

if TYPE_CHECKING:
    from ..model.catalog import Model, ModelSource


def locate(model: Model, *, offline: bool) -> tuple[Path, ModelSource]:
    """Find a model's source, downloading from the hub where that is allowed.

    Raises:
        MissingError: It is nowhere; one sentence says what is missing and how to provide it.
    """
    problems = []
    for source in model.sources:
        try:
            return _locate(source, offline=offline), source
        except MissingError as error:
            problems.append(str(error))
    raise MissingError(
        f"model {model.name}: {'; '.join(problems)}; or give ready-made files with"
        " --ondevice-artifacts=DIR, or a file with --ondevice-models=PATH.gguf"
    )


def _locate(source: ModelSource, *, offline: bool) -> Path:
    if source.path is not None:
        return Path(source.path)
    if source.package is not None:
        return _resource(source)
    return _from_hub(source, offline=offline)


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


def _from_hub(source: ModelSource, *, offline: bool) -> Path:
    import huggingface_hub  # noqa: PLC0415  (slow to import, needed for hub models only)
    from huggingface_hub import constants, errors  # noqa: PLC0415

    repo, file = source.repo or "", source.file or ""
    cached = huggingface_hub.try_to_load_from_cache(repo, file)
    if isinstance(cached, str):
        return Path(cached)
    how = f"download it with `hf download {repo} {file}`"
    if offline or constants.HF_HUB_OFFLINE:
        raise MissingError(
            f"{file} of {repo} is not in the Hugging Face cache, and offline it cannot be fetched"
            f" ({how} where there is a network)"
        )
    huggingface_hub.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call,unused-ignore]
    try:
        # One question without retries: a hub that is out of reach is known at once.
        found = huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repo, file))
        cache = Path(constants.HF_HUB_CACHE)
        require_space(cache, found.size or 0, f"downloading {file}", "HF_HUB_CACHE")
        return Path(huggingface_hub.hf_hub_download(repo, file))
    except OnDeviceError:
        raise
    except errors.GatedRepoError as error:
        raise MissingError(
            f"{repo} is gated: accept its licence on its page, then `hf auth login`"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RemoteEntryNotFoundError) as error:
        raise MissingError(f"the hub has no file {file} in {repo}") from error
    except Exception as error:
        # Whatever its HTTP library raises: no network, a refused or a broken connection.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MissingError(
            f"{file} of {repo} is not in the Hugging Face cache and could not be fetched: {reason}"
            f" ({how} where there is a network)"
        ) from error


class Candidates:
    """Ready-made artifacts in a folder, matched to cells by their names.

    A plain folder matches ``MODEL...METHOD.gguf``: the name begins with the model's name or one
    of its aliases and ends with the method, both in any case, parts joined by ``-``, ``_`` or
    ``.``. A path with ``{method}`` (and ``{model}``) in it is a pattern of its own.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._pattern = place.name if "{" in place.name else None
        folder = place.parent if self._pattern else place
        if not folder.is_dir():
            raise BadFileError(folder, "there is no such folder")
        self.files = tuple(sorted(path for path in folder.iterdir() if path.suffix == ".gguf"))
        if self._pattern is not None and "{method}" not in self._pattern:
            raise BadFileError(place, "the pattern has no {method}, so one file would be them all")
        self._taken: dict[Path, tuple[str, str]] = {}

    def find(self, model: Model, method: str) -> Path | None:
        """Return the file for a cell, None if the folder has none.

        Raises:
            OnDeviceError: Two files claim the same cell.
        """
        found = [path for path in self.files if self._matches(path, model, method)]
        if len(found) > 1:
            raise OnDeviceError(
                f"{self.place}: {found[0].name} and {found[1].name} both claim to be"
                f" {model.name} {method}; keep one, or give a pattern such as DIR/NAME-{{method}}"
                ".gguf"
            )
        for path in found:
            owner = self._taken.setdefault(path, (model.name, method))
            if owner != (model.name, method):
                raise OnDeviceError(
                    f"{self.place}: {path.name} would be {' '.join(owner)} and {model.name}"
                    f" {method}; give a pattern with {{model}} and {{method}} in it"
                )
        return found[0] if found else None

    def unmatched(self) -> tuple[str, ...]:
        """Name the files that no cell has taken."""
        return tuple(path.name for path in self.files if path not in self._taken)

    def _matches(self, path: Path, model: Model, method: str) -> bool:
        if self._pattern is not None:
            wanted = self._pattern.replace("{model}", model.name).replace("{method}", method)
            return path.name.casefold() == wanted.casefold()
        stem = path.stem.casefold()
        # fp16 is how many publishers write F16.
        spellings = {method.casefold(), method.casefold().replace("f16", "fp16")}
        ends = any(re.search(rf"[-_.]{re.escape(name)}$", stem) for name in spellings)
        return ends and any(_begins(stem, name) for name in (model.name, *model.aliases))


def _begins(stem: str, name: str) -> bool:
    name = name.casefold()
    return stem.startswith(name) and not stem[len(name) : len(name) + 1].isalnum()
