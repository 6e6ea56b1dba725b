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

    Quantity: share of the repeating layers' matrix weights stored as plain floats. Bound: 0.
    Source: the method, which quantizes every such matrix.
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

    Quantity: 1 if ``general.file_type`` names the method, else 0. Bound: 1. Source: the method.
    """
    bound = Bound(source=Source.METHOD, detail=f"named {ondevice_cell.method}", lower=1.0)
    ondevice_check(ondevice_measure("file_type_matches"), bound)


@check("artifact.types", measures=("planned_type_share",))
def test_types(ondevice_cell: Cell, ondevice_check: Checker, ondevice_measure: Measurer) -> None:
    """Most weights have the tensor type that the method gives them, so it is what its name says.

    Quantity: share of the weights whose type is the one that llama.cpp's rules for the method give
    a tensor of that name and shape. Bound: 0.5. Source: the method; a mix of another version or
    with overrides for single tensors stays above it, a file of another method does not.
    """
    bound = Bound(source=Source.METHOD, detail=f"the mix of {ondevice_cell.method}", lower=0.5)
    ondevice_check(ondevice_measure("planned_type_share"), bound)


@check("artifact.planned_bpw", measures=("effective_bpw", "planned_bpw"))
def test_planned_bpw(
    ondevice_cell: Cell, ondevice_check: Checker, ondevice_measure: Measurer
) -> None:
    """The artifact has the bits per weight that the method gives tensors of these shapes.

    Quantity: effective BPW. Bound: what llama.cpp's rules for the method come to, within 2 %.
    Source: the method.
    """
    planned = ondevice_measure("planned_bpw").value or 0.0
    bound = Bound(
        source=Source.METHOD,
        detail=f"the mix of {ondevice_cell.method} comes to {planned:.4f}",
        lower=0.98 * planned,
        upper=1.02 * planned,
    )
    ondevice_check(ondevice_measure("effective_bpw"), bound)


@check("artifact.quantization_version", measures=("quantization_version",), cells="quantized")
def test_quantization_version(ondevice_check: Checker, ondevice_measure: Measurer) -> None:
    """The block layouts are those of the version that runtimes read.

    Quantity: ``general.quantization_version``. Bound: 2 (GGML_QNT_VERSION). Source: the method.
    """
    bound = Bound(source=Source.METHOD, detail="GGML_QNT_VERSION", lower=2.0, upper=2.0)
    ondevice_check(ondevice_measure("quantization_version"), bound)


@check("artifact.tokenizer", measures=("tokenizer_matches",))
def test_tokenizer(ondevice_check: Checker, ondevice_measure: Measurer) -> None:
    """The tokenizer is the source's: quantizing does not touch it.

    Quantity: 1 if the digests over all ``tokenizer.*`` keys but chat templates are equal. Bound: 1.
    Source: the reference.
    """
    bound = Bound(source=Source.REFERENCE, detail="the source's tokenizer", lower=1.0)
    ondevice_check(ondevice_measure("tokenizer_matches"), bound)


@check("artifact.chat_template", measures=("chat_template_matches",))
def test_chat_template(ondevice_check: Checker, ondevice_measure: Measurer) -> None:
    """The chat template is the source's.

    Quantity: 1 if the digests of ``tokenizer.chat_template`` are equal. Bound: 1. Source: the
    reference.
    """
    bound = Bound(source=Source.REFERENCE, detail="the source's chat template", lower=1.0)
    ondevice_check(ondevice_measure("chat_template_matches"), bound)


@check("artifact.blocks", measures=("block_anomalies",))
def test_blocks(ondevice_check: Checker, ondevice_measure: Measurer) -> None:
    """No block of any tensor has a scale that is NaN, infinite, absurd or lost.

    Quantity: number of tensors with such blocks, by reading the whole file. Bound: 0. Source: the
    method; a quantizer writes finite scales of the order of the weights.
    """
    bound = Bound(source=Source.METHOD, detail="scales of trained weights", upper=0.0)
    ondevice_check(ondevice_measure("block_anomalies"), bound)


@check("artifact.pin", measures=("pin_matches",))
def test_pin(ondevice_check: Checker, ondevice_measure: Measurer) -> None:
    """The artifact is the one that was accepted, to the bit, where one is pinned.

    Quantity: 1 if its SHA-256 is the one in ``ondevice.lock``. Bound: 1. Source: the baseline.
    """
    bound = Bound(source=Source.BASELINE, detail="ondevice.lock", lower=1.0)
    ondevice_check(ondevice_measure("pin_matches"), bound)


@check("artifact.rederived", measures=("rederived_share",), cells="quantized")
def test_rederived(ondevice_check: Checker, ondevice_measure: Measurer) -> None:
    """A candidate is what this llama.cpp makes of the source, bit for bit, where that is asked for.

    Quantity: share of the bytes in tensors that are equal. Bound: 1. Source: the reference.
    """
    bound = Bound(source=Source.REFERENCE, detail="quantized again from the source", lower=1.0)
    ondevice_check(ondevice_measure("rederived_share"), bound)


@check("artifact.loads", measures=("tensors_valid",), owns=(Stage.VALIDATE,))
def test_loads(ondevice_check: Checker, ondevice_measure: Measurer) -> None:
    """The runtime loads the artifact and finds every block of every tensor valid.

    Quantity: 1 if llama.cpp loads it with ``check_tensors``. Bound: 1. Source: the method.
    """
    bound = Bound(source=Source.METHOD, detail="an artifact is loadable", lower=1.0)
    ondevice_check(ondevice_measure("tensors_valid"), bound)


@check("artifact.accounting", measures=("tensor_bytes", "runtime_tensor_bytes"))
def test_accounting(ondevice_check: Checker, ondevice_measure: Measurer) -> None:
    """The runtime counts the bytes that the accounting of bits per weight rests on.

    Quantity: bytes of all tensors by ``llama_model_size``. Bound: exactly those of the
    header. Source: the method.
    """
    counted = ondevice_measure("tensor_bytes").value
    bound = Bound(
        source=Source.METHOD, detail="tensors in the header", lower=counted, upper=counted
    )
    ondevice_check(ondevice_measure("runtime_tensor_bytes"), bound)


@check("artifact.stray_bytes", measures=("stray_bytes",))
def test_stray_bytes(ondevice_check: Checker, ondevice_measure: Measurer) -> None:
    """The file holds its header, its tensors, the padding between them, and nothing else.

    Quantity: bytes that belong to none of these. Bound: 0. Source: the method; a file that was
    written over a longer one, or has something attached, is not what was quantized.
    """
    bound = Bound(source=Source.METHOD, detail="header, tensors and padding", upper=0.0)
    ondevice_check(ondevice_measure("stray_bytes"), bound)


@check("artifact.effective_bpw", measures=("effective_bpw", "body_bpw", "nominal_bpw"))
def test_effective_bpw(
    ondevice_baseline: BaselineBound, ondevice_check: Checker, ondevice_measure: Measurer
) -> None:
    """The artifact takes no more bits per weight than its baseline.

    Quantity: effective BPW of the whole artifact. Bound: 0.5 % more. Source: the baseline.
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

    Quantity: length of the file. Bound: 0.5 % more. Source: the baseline.
    """
    ondevice_measure("weight_bytes")
    ondevice_check(ondevice_measure("file_size"), ondevice_baseline("file_size", relative=0.005))
