"""Where the suites and baselines that ship are: in the installed package, or in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

SUITES = ("artifact", "capability", "efficiency", "fidelity", "laws", "resources")
"""The suites that gate models."""

ON_REQUEST = ("against", "budgets", "generations")
"""Suites that gate models where an option asks for what they do, or where they are named."""

WITHOUT_MODELS = ("accounting",)
"""Suites that need no model, and run only where they are named."""

ALL = SUITES + ON_REQUEST + WITHOUT_MODELS


def folder(name: str) -> Path:
    """Find a shipped folder, ``suites`` or ``baselines``.

    In a wheel it lies inside the package, in a checkout (editable install) two levels above it.
    """
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parents[1] / name
