"""Checks of accuracy.

The reference's own likelihood is checked too: a runtime that breaks the reference and its
quantizations alike would leave every divergence small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ondevice.checks import Stage, check
from pytest_ondevice.model.bound import Bound, Source

if TYPE_CHECKING:
    from pytest_ondevice.api import Checker, Measurer
    from pytest_ondevice.baselines import BaselineBound


@check("fidelity.finite", measures=("nonfinite",), owns=(Stage.FIDELITY,))
def test_finite(ondevice_check: Checker, ondevice_measure: Measurer) -> None:
    """Every logit is a finite number.

    Quantity: number of NaN or infinite logits over all scored positions. Bound: 0, from the
    method: none may make them.
    """
    bound = Bound(source=Source.METHOD, detail="logits are finite numbers", upper=0.0)
    ondevice_check(ondevice_measure("nonfinite"), bound)


@check("fidelity.kld", measures=("mean_kld",), cells="quantized")
def test_kld(
    ondevice_baseline: BaselineBound, ondevice_check: Checker, ondevice_measure: Measurer
) -> None:
    """The mean divergence from the reference is no larger than its baseline.

    Quantity: mean KLD in nats, windows as clusters. Bound: the baseline plus 5 %, paired by
    window.
    """
    measured = ondevice_measure("mean_kld")
    ondevice_check(measured, ondevice_baseline("mean_kld", relative=0.05))


@check("fidelity.ppl_ratio", measures=("ln_ppl_ratio", "ln_ppl"), cells="quantized")
def test_ppl_ratio(
    ondevice_baseline: BaselineBound, ondevice_check: Checker, ondevice_measure: Measurer
) -> None:
    """The perplexity relative to the reference's is no larger than its baseline.

    Quantity: ln(PPL/PPL(reference)) on the same tokens. Bound: the baseline plus 0.02 (2 % of
    perplexity) or 10 % of the baseline, whichever is more, paired by window.
    """
    ondevice_measure("ln_ppl")
    measured = ondevice_measure("ln_ppl_ratio")
    ondevice_check(measured, ondevice_baseline("ln_ppl_ratio", relative=0.1, absolute=0.02))


@check("fidelity.same_top", measures=("same_top",), cells="quantized")
def test_same_top(
    ondevice_baseline: BaselineBound, ondevice_check: Checker, ondevice_measure: Measurer
) -> None:
    """The artifact ranks the reference's first token first as often as its baseline does.

    Quantity: share of scored positions. Bound: the baseline less 0.02, paired by window.
    """
    measured = ondevice_measure("same_top")
    ondevice_check(measured, ondevice_baseline("same_top", absolute=0.02, higher_is_better=True))


@check("fidelity.reference", measures=("ln_ppl",), cells="reference")
def test_reference(
    ondevice_baseline: BaselineBound, ondevice_check: Checker, ondevice_measure: Measurer
) -> None:
    """The reference itself predicts the text as well as its baseline does.

    Quantity: mean negative log-likelihood per token. Bound: the baseline plus 0.005 (0.5 % of
    perplexity), paired by window.
    """
    measured = ondevice_measure("ln_ppl")
    ondevice_check(measured, ondevice_baseline("ln_ppl", absolute=0.005))
