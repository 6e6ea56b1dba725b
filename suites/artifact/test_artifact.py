"""Checks of the file itself. All but loading need no runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_ondevice.checks import Stage, check
from pytest_ondevice.model.bound import Bound, Source

if TYPE_CHECKING:
    from pytest_ondevice.api import Checker, Measurer
    from pytest_ondevice.baselines import BaselineBound
    from pytest_ondevice.model.catalog import Cell


@check("artifact.quantized", measures=("float_body_share",), cells="quantized")
def test_quantized(
    ondevice_cell: Cell, ondevice_check: Checker, ondevice_measure: Measurer
) -> None:
    """No matrix of the repeating layers is left in a float format, so the file is quantized.

    Quantity: share of the repeating layers' matrix weights stored as plain floats. Bound: 0, from
    the method, which quantizes every such matrix.
    """
    if ondevice_cell.method in {"F32", "F16", "BF16"}:
        pytest.skip("requires a method that quantizes")
    bound = Bound(source=Source.METHOD, detail=f"{ondevice_cell.method} quantizes them", upper=0.0)
    ondevice_check(ondevice_measure("float_body_share"), bound)


@check("artifact.file_type", measures=("file_type_matches",))
def test_file_type(
    ondevice_cell: Cell, ondevice_check: Checker, ondevice_measure: Measurer
) -> None:
    """The file type that the header declares is the method that the cell is named after.

    Quantity: 1 if ``general.file_type`` names the method, else 0. Bound: 1, from the method.
    """
    bound = Bound(source=Source.METHOD, detail=f"named {ondevice_cell.method}", lower=1.0)
    ondevice_check(ondevice_measure("file_type_matches"), bound)


@check("artifact.loads", measures=("tensors_valid",), owns=(Stage.VALIDATE,))
def test_loads(ondevice_check: Checker, ondevice_measure: Measurer) -> None:
    """The runtime loads the artifact and finds every block of every tensor valid.

    Quantity: 1 if llama.cpp loads it with ``check_tensors``. Bound: 1, from the method.
    """
    bound = Bound(source=Source.METHOD, detail="an artifact is loadable", lower=1.0)
    ondevice_check(ondevice_measure("tensors_valid"), bound)


@check("artifact.effective_bpw", measures=("effective_bpw", "body_bpw", "nominal_bpw"))
def test_effective_bpw(
    ondevice_baseline: BaselineBound, ondevice_check: Checker, ondevice_measure: Measurer
) -> None:
    """The artifact takes no more bits per weight than its baseline.

    Quantity: effective BPW of the whole artifact. Bound: the baseline plus 0.5 %.
    """
    ondevice_measure("body_bpw")
    ondevice_measure("nominal_bpw")
    measured = ondevice_measure("effective_bpw")
    ondevice_check(measured, ondevice_baseline("effective_bpw", relative=0.005))


@check("artifact.file_size", measures=("file_size", "weight_bytes"))
def test_file_size(
    ondevice_baseline: BaselineBound, ondevice_check: Checker, ondevice_measure: Measurer
) -> None:
    """The file is no longer than its baseline.

    Quantity: length of the file. Bound: the baseline plus 0.5 %.
    """
    ondevice_measure("weight_bytes")
    ondevice_check(ondevice_measure("file_size"), ondevice_baseline("file_size", relative=0.005))
