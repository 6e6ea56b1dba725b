"""The pytest plugin: it only wires. Everything else is imported when an option asks for it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from . import options
from .fixtures import (
    ondevice_accountant,
    ondevice_baseline,
    ondevice_budget,
    ondevice_cell,
    ondevice_check,
    ondevice_compare,
    ondevice_identity,
    ondevice_law,
    ondevice_measure,
    ondevice_model,
    ondevice_subject,
)

if TYPE_CHECKING:
    from _pytest.config.argparsing import Parser

__all__ = [
    "ondevice_accountant",
    "ondevice_baseline",
    "ondevice_budget",
    "ondevice_cell",
    "ondevice_check",
    "ondevice_compare",
    "ondevice_identity",
    "ondevice_law",
    "ondevice_measure",
    "ondevice_model",
    "ondevice_subject",
    "pytest_addoption",
    "pytest_configure",
    "pytest_generate_tests",
]


def pytest_addoption(parser: Parser) -> None:
    """Add the options of the table."""
    options.add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Wake up if any option was given."""
    if options.active(config):
        if sys.platform != "linux":
            raise pytest.UsageError("pytest-ondevice measures on Linux only so far")
        from .hooks import wake  # noqa: PLC0415

        wake(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize every test that uses a cell over the cells."""
    if {"ondevice_cell", "ondevice_subject"} & set(metafunc.fixturenames):
        from .hooks import parametrize  # noqa: PLC0415

        parametrize(metafunc)
