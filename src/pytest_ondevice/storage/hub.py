"""The Hugging Face hub as a shelf, through huggingface_hub: its cache, offline mode and tokens.

What is in the cache serves without a question to the hub. A file that was fetched has to have the
digest that the hub states for it. A download that was interrupted goes on where it ended, also in
another process, which huggingface_hub's own do not.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import re
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from ..errors import MissingError, NotCachedError, OnDeviceError, did_you_mean
from .files import require_space
from .shelf import LESS_PRECISE, PRECISE, Weights, claimed, grouped, matches, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ..model.catalog import ModelSource

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SECONDS = 10.0
_TRIES = 5
"""How often a connection may break without a byte in between."""

PAUSE_SECONDS = 1.0

_PLAIN = 50e9
"""What is larger the hub does not serve over plain HTTP, but to huggingface_hub's own protocol."""

_SIDE_FILES = re.compile(r"(?:^|/)(?:mmproj|imatrix)|\.imatrix\b", re.IGNORECASE)
"""GGUF files that are no language models: projectors of images, importance matrices."""


class _File(NamedTuple):
    size: int
    sha256: str | None


class HubShelf:
    """A repository at a revision, listed from the hub or, offline, from its cache."""

    def __init__(self, source: ModelSource, *, offline: bool) -> None:
        # Slow to import, and needed for hub models only.
        from huggingface_hub import constants  # noqa: PLC0415
        from huggingface_hub.utils import logging  # noqa: PLC0415

        logging.set_verbosity_error()  # type: ignore[no-untyped-call,unused-ignore]
        self.repo = source.repo or ""
        self.revision = source.revision
        self.offline = offline or bool(constants.HF_HUB_OFFLINE)
        self._cached = self._snapshot()
        self._listed: dict[str, _File] | None = None

    # -- what is there

    def sizes(self) -> Mapping[str, int]:
        """Name the GGUF files: those of the cache, and those of the hub once it was asked."""
        return {name: file.size for name, file in (self._cached | (self._listed or {})).items()}

    def digest(self, name: str) -> str | None:
        """Return the digest that the hub states, or under which its cache keeps the file."""
        listed = (self._listed or {}).get(name)
        cached = self._cached.get(name)
        return (listed and listed.sha256) or (cached and cached.sha256) or None

    def cached(self) -> tuple[str, ...]:
        """Name the files of the cache, without split models of which parts are not there."""
        return tuple(name for parts in grouped(self._cached) if whole(parts) for name in parts)

    def ask(self) -> None:
        """Ask the hub what the repository has.

        Raises:
            MissingError: It cannot be asked, or the repository is not there, or gated.
        """
        if self._listed is not None:
            return
        if self.offline:
            raise MissingError(f"offline, {self.repo} cannot be asked what it has")
        import huggingface_hub  # noqa: PLC0415

        with _told(self.repo, self.repo):
            info = huggingface_hub.HfApi().model_info(
                self.repo, revision=self.revision, files_metadata=True, timeout=_SECONDS
            )
        self._listed = {
            file.rfilename: _File(file.size or 0, file.lfs.sha256 if file.lfs else None)
            for file in info.siblings or ()
            if file.rfilename.endswith(".gguf") and not _SIDE_FILES.search(file.rfilename)
        }

    # -- files

    def here(self, name: str) -> Path | None:
        """Return the path of a file in the cache; not of one that the hub has changed since."""
        import huggingface_hub  # noqa: PLC0415

        found = huggingface_hub.try_to_load_from_cache(self.repo, name, revision=self.revision)
        if not isinstance(found, str):
            return None
        listed = self._listed.get(name) if self._listed else None
        kept = Path(found).resolve().name
        changed = listed and listed.sha256 and _SHA256.fullmatch(kept) and kept != listed.sha256
        return None if changed else Path(found)

    def fetch(self, name: str, tick: Callable[[float, float], None]) -> Path:
        """Download a file, going on where an interrupted download ended.

        Raises:
            MissingError: It cannot be had; the sentence says why and how to get it.
            StorageError: The disk cannot hold it.
        """
        cached = self.here(name)
        if cached is not None:
            return cached
        import huggingface_hub  # noqa: PLC0415
        from huggingface_hub import constants  # noqa: PLC0415

        how = f"download it with `hf download {self.repo} {name}`"
        if self.offline:
            raise NotCachedError(self.repo, name)
        file = (self._listed or {}).get(name, _File(0, None))
        cache = Path(constants.HF_HUB_CACHE)
        blobs = cache / f"models--{self.repo.replace('/', '--')}" / "blobs"
        what = f"{name} of {self.repo}"
        require_space(cache, file.size, f"downloading {name}", "HF_HUB_CACHE")
        with _told(self.repo, what, how):
            if file.sha256 and _SHA256.fullmatch(file.sha256) and file.size <= _PLAIN:
                url = huggingface_hub.hf_hub_url(self.repo, name, revision=self.revision)
                _download(url, blobs / file.sha256, file.size, what, tick)
            # Finds what was downloaded, and enters it for the revision.
            path = Path(
                huggingface_hub.hf_hub_download(
                    self.repo, name, revision=self.revision, tqdm_class=_bar(tick, file.size)
                )
            )
        if path.resolve().name != file.sha256:
            # Changed since it was listed, or kept under another name than its digest.
            self._check(name, path)
        return path

    def commit(self, name: str) -> str:
        """Return the commit under which the cache keeps a file."""
        path = self.here(name)
        parents = path.parts if path else ()
        return parents[parents.index("snapshots") + 1] if "snapshots" in parents else ""

    def _check(self, name: str, path: Path) -> None:
        """Compare what was fetched with the hub's digest; what differs is taken away again."""
        stated = self.digest(name)
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if stated and actual != stated:
            with contextlib.suppress(OSError):
                path.resolve().unlink()
                path.unlink()
            raise _damaged(f"{name} of {self.repo}", _short(actual), _short(stated))

    def _snapshot(self) -> dict[str, _File]:
        """List what the cache holds of this revision."""
        import huggingface_hub  # noqa: PLC0415

        try:
            folder = Path(
                huggingface_hub.snapshot_download(
                    self.repo,
                    revision=self.revision,
                    local_files_only=True,
                    # Else every file has to be there of a repository that `hf download` listed.
                    allow_patterns=[],
                )
            )
        except (OSError, ValueError):
            return {}
        found = {}
        for path in sorted(folder.rglob("*.gguf")):
            with contextlib.suppress(OSError):  # a link to a file that was deleted
                blob = path.resolve()
                kept = blob.name if _SHA256.fullmatch(blob.name) else None
                found[path.relative_to(folder).as_posix()] = _File(blob.stat().st_size, kept)
        return {name: file for name, file in found.items() if not _SIDE_FILES.search(name)}


def find_source(source: ModelSource, *, offline: bool) -> Weights:
    """Find the most precise file of a repository; nothing is downloaded.

    A full-precision file in the cache is taken without asking the hub; one of less precision only
    where the hub cannot be asked or has nothing better.

    Raises:
        MissingError: There is none, or the hub cannot be asked.
    """
    shelf = HubShelf(source, offline=offline)
    if source.file is not None:
        return _named(shelf, source, source.file)
    best = _best(shelf.cached(), source, PRECISE)
    if best is None:
        try:
            shelf.ask()
        except MissingError as error:
            best = _best(shelf.cached(), source, LESS_PRECISE)
            if best is None:
                if not shelf.offline:
                    raise
                raise NotCachedError(shelf.repo, None) from error
        else:
            best = _best(tuple(shelf.sizes()), source, PRECISE + LESS_PRECISE)
    if best is None:
        raise MissingError(
            f"{shelf.repo} has no GGUF file that can be a source"
            if not shelf.sizes()
            else f"{shelf.repo} has GGUF files, but none whose name ends in a file type from"
            f" {PRECISE[0]} to {LESS_PRECISE[-1]}; name one with hf:{shelf.repo}:FILE"
        )
    parts, file_type = best
    return Weights(shelf, parts, f"hf:{shelf.repo}:{parts[0]}", file_type, source.sha256)


def _named(shelf: HubShelf, source: ModelSource, file: str) -> Weights:
    """Find a file by its name; of a split model any part names it."""

    def group() -> tuple[str, ...] | None:
        return next((parts for parts in grouped(shelf.sizes()) if file in parts), None)

    place = f"hf:{shelf.repo}:{file}" + (f"@{source.revision}" if source.revision else "")
    parts = group()
    if parts is None or not whole(parts) or any(shelf.here(part) is None for part in parts):
        if shelf.offline and (parts is None or shelf.here(file) is None):
            raise NotCachedError(shelf.repo, file)
        if not shelf.offline:
            shelf.ask()
            parts = group()
    if parts is None:
        near = did_you_mean(file, shelf.sizes()) if shelf.sizes() else ""
        raise MissingError(f"the hub has no file {file} in {shelf.repo}{near}")
    return Weights(shelf, parts, place, claimed(parts, PRECISE + LESS_PRECISE), source.sha256)


def _best(
    names: tuple[str, ...], source: ModelSource, file_types: tuple[str, ...]
) -> tuple[tuple[str, ...], str] | None:
    groups = grouped(names)
    for file_type in file_types:
        if source.files is not None:
            found = [parts for parts in groups if matches(parts, source.files, "", file_type)]
        else:
            found = [
                parts for parts in groups if claimed(parts, PRECISE + LESS_PRECISE) == file_type
            ]
        if found:
            # Of several, the plainest: variants of a method have longer names.
            return min(found, key=lambda parts: (len(parts[0]), parts)), file_type
    return None


def _download(
    url: str, blob: Path, size: int, what: str, tick: Callable[[float, float], None]
) -> None:
    """Download into the hub's cache, where a file is named after its digest.

    What came before an interruption stays beside it. The file gets its name when it is whole.

    Raises:
        MissingError: What came is not of the size or the digest that the hub states.
    """
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{blob.name}.incomplete")
    with part.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another process may be at it
        if blob.exists():
            part.unlink(missing_ok=True)
            return
        if file.tell() != size:
            try:
                _receive(url, file, size, tick)
            except Exception:
                if not file.tell():
                    part.unlink()
                raise
        file.flush()
        tick(size, size)
        came = file.tell()
        with part.open("rb") as whole_file:
            actual = hashlib.file_digest(whole_file, "sha256").hexdigest()
        if actual != blob.name:
            part.unlink()
            if came != size:
                more = f"more than {size}" if came > size else f"{came}"
                raise _damaged(what, f"{more} bytes", f"{size}")
            raise _damaged(what, _short(actual), _short(blob.name))
        part.replace(blob)


def _receive(url: str, file: IO[bytes], size: int, tick: Callable[[float, float], None]) -> None:
    """Receive what a file lacks; a connection that breaks is taken up where it broke."""
    from huggingface_hub import constants, get_session  # noqa: PLC0415
    from huggingface_hub.utils import (  # type: ignore[attr-defined,unused-ignore]  # noqa: PLC0415
        build_hf_headers,
        hf_raise_for_status,
    )

    tries = _TRIES
    while True:
        begun = file.tell() if file.tell() < size else 0
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}
        if begun:
            headers["Range"] = f"bytes={begun}-"
        try:
            with get_session().stream(
                "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            ) as response:
                hf_raise_for_status(response)
                if response.status_code != 206:  # from the beginning, whatever was asked
                    file.seek(0)
                    file.truncate()
                for piece in response.iter_bytes():
                    file.write(piece)
                    tick(file.tell(), size)
                    if file.tell() > size:
                        break
        except OSError:  # what the hub answers to that, or the disk is full
            raise
        except Exception:
            # Whatever the HTTP library raises where a connection breaks or is silent.
            tries = _TRIES if file.tell() > begun else tries - 1
            if not tries:
                raise
            time.sleep(PAUSE_SECONDS)
        else:
            return


def _damaged(what: str, came: str, stated: str) -> MissingError:
    return MissingError(
        f"{what} came with {came}, the hub states {stated}; it was removed, so the next run"
        " downloads it again"
    )


def _short(digest: str) -> str:
    return f"digest {digest[:12]}..."


@contextlib.contextmanager
def _told(repo: str, what: str, how: str = "") -> Iterator[None]:
    """Turn whatever the hub's library raises into one sentence."""
    from huggingface_hub import errors  # noqa: PLC0415

    try:
        yield
    except OnDeviceError:
        raise
    except errors.GatedRepoError as error:
        raise MissingError(
            f"{repo} is gated: accept its licence on its page, then `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise MissingError(f"the hub has no such revision of {repo}") from error
    except errors.RepositoryNotFoundError as error:
        raise MissingError(f"the hub has no repository {repo}, or none that you may see") from error
    except errors.RemoteEntryNotFoundError as error:
        raise MissingError(f"the hub has no {what}") from error
    except Exception as error:
        # Whatever its HTTP library raises: no network, a refused or a broken connection.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        way = f" ({how} where there is a network)" if how else ""
        raise MissingError(
            f"{what} is not in the Hugging Face cache and could not be fetched: {reason}{way}"
        ) from error


def _bar(tick: Callable[[float, float], None], size: int) -> Any:
    """Make what the hub's library takes for its progress bar, and tell ``tick`` instead."""
    from tqdm import tqdm  # noqa: PLC0415  (a dependency of huggingface_hub)

    class Bar(tqdm):  # type: ignore[type-arg,misc,unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **kwargs | {"disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            tick(self.n, self.total or size)
            return None

    return Bar
