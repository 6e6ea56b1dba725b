"""Every error that a user can cause. Each message is one sentence that says how to go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable


class OnDeviceError(Exception):
    """Base of every error that a user can cause; the message is one clear sentence."""


class OptionError(OnDeviceError):
    """An option, ini setting or environment variable cannot be what it means."""


class BadFileError(OnDeviceError):
    """A file is not what it has to be."""

    def __init__(self, path: str | os.PathLike[str], problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class MissingError(OnDeviceError):
    """Something needed is not on this machine; the message says how to provide it."""


class NotCachedError(MissingError):
    """A hub's file is not in its cache, and offline it cannot be fetched."""

    def __init__(self, repo: str, file: str | None) -> None:
        what = f"{file} of {repo}" if file else f"a GGUF file of {repo}"
        which = file or "--include '*[fF]*16*.gguf'"
        self.way = f"`hf download {repo} {which}`"
        super().__init__(
            f"{what} is not in the Hugging Face cache, and offline it cannot be fetched"
            f" ({self.way} where there is a network)"
        )
        self.repo = repo


class StorageError(OnDeviceError):
    """The store cannot hold what it has to: no disk, no permission, a damaged file."""


def did_you_mean(name: str, known: Iterable[str], most: int = 12) -> str:
    """End an 'unknown NAME' sentence: the nearest known name, else what there is."""
    import difflib  # noqa: PLC0415  (only on the way out with an error)

    known = list(known)
    folded = {candidate.casefold(): candidate for candidate in known}
    begun = [text for key, text in folded.items() if key.startswith(name.casefold())]
    if name and 1 < len(begun) <= most:
        return f"; did you mean {', '.join(begun[:-1])} or {begun[-1]}?"
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.55)
    if near:
        return f"; did you mean '{folded[near[0]]}'?"
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return f"; there are {', '.join(known[:most])}{more}"
