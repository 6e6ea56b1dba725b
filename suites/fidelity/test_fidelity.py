"""Checks of accuracy.

Windows are taken in looks until each verdict is certain. The reference's own likelihood is checked
too: a runtime that breaks the reference and its quantizations alike would leave every divergence
small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ondevice.checks import Stage, check
from pytest_ondevice.model.bound import Bound, Source

if TYPE_CHECKING:
    from pytest_ondevice.api import Checker, Identifier, Measurer
    from pytest_ondevice.baselines import BaselineBound

TAIL = ("kld_median", "kld_p90", "kld_p99", "kld_p999", "kld_max")
CHANGES = ("rms_dp", "mean_dp", "dp_p1", "dp_p10", "dp_p90", "dp_p99")


@check("fidelity.finite", measures=("nonfinite",), owns=(Stage.FIDELITY,))
def test_finite(ondevice_check: Checker) -> None:
    """Every logit is a finite number.

    Quantity: number of NaN or infinite logits over the scored positions of the first look; later
    windows fail the checks that take them. Bound: 0. Source: the method, none may make them.
    """
    bound = Bound(source=Source.METHOD, detail="logits are finite numbers", upper=0.0)
    ondevice_check("nonfinite", bound)


@check("fidelity.identity", measures=("changed_windows",))
def test_identity(ondevice_baseline: BaselineBound, ondevice_identity: Identifier) -> None:
    """The logits are those on record, to the bit; or they changed, and that is said.

    Quantity: number of the first windows whose logits differ. Bound: 0 where
    ``--ondevice-identical`` asks for it, else a change passes and is called one. Source: the
    baseline's digests of the same ISA class.
    """
    ondevice_identity.identify(*ondevice_baseline.digests())


@check("fidelity.kld", measures=("mean_kld", *TAIL), cells="quantized")
def test_kld(ondevice_baseline: BaselineBound, ondevice_check: Checker) -> None:
    """The mean divergence from the reference is no larger than its baseline.

    Quantity: mean KLD in nats, windows as clusters. Bound: 5 % more, or 0.0003 nats where that is
    more (execution variants move Q8_0 by as much), paired by window. Source: the baseline.
    """
    bound = ondevice_baseline("mean_kld", relative=0.05, absolute=0.0003)
    ondevice_check("mean_kld", bound)


@check("fidelity.ppl_ratio", measures=("ln_ppl_ratio", "ln_ppl"), cells="quantized")
def test_ppl_ratio(ondevice_baseline: BaselineBound, ondevice_check: Checker) -> None:
    """The perplexity relative to the reference's is no larger than its baseline.

    Quantity: ln(PPL/PPL(reference)) on the same tokens. Bound: 0.02 more (2 % of perplexity) or
    10 %, whichever is more, paired by window. Source: the baseline.
    """
    bound = ondevice_baseline("ln_ppl_ratio", relative=0.1, absolute=0.02)
    ondevice_check("ln_ppl_ratio", bound)


@check("fidelity.same_top", measures=("same_top",), cells="quantized")
def test_same_top(ondevice_baseline: BaselineBound, ondevice_check: Checker) -> None:
    """The artifact ranks the reference's first token first as often as its baseline does.

    Quantity: share of scored positions. Bound: 0.02 less, paired by window. Source: the baseline.
    """
    bound = ondevice_baseline("same_top", absolute=0.02, higher_is_better=True)
    ondevice_check("same_top", bound)


@check("fidelity.rms_dp", measures=("mean_square_dp", *CHANGES), cells="quantized")
def test_rms_dp(ondevice_baseline: BaselineBound, ondevice_check: Checker) -> None:
    """The probability of the text's own next token changed no more than its baseline's did.

    Quantity: mean square change of token probability, the square of RMS dp. Bound: 20 % more,
    which is 10 % of RMS dp, paired by window. Source: the baseline.
    """
    bound = ondevice_baseline("mean_square_dp", relative=0.2)
    ondevice_check("mean_square_dp", bound)


@check("fidelity.decode", measures=("decode_kld",), owns=(Stage.DECODE,))
def test_decode(ondevice_check: Checker, ondevice_measure: Measurer) -> None:
    """Fed token by token, the artifact predicts what it predicts when the text is prefilled.

    Quantity: mean KLD between both ways over the second half of 128 tokens of the first window.
    Bound: 0.03 nats. Source: the method, both ways compute the same function; they differ by the
    rounding of other kernels, which came to 0.01 at most.
    """
    bound = Bound(source=Source.METHOD, detail="both ways compute the same", upper=0.03)
    ondevice_check(ondevice_measure("decode_kld"), bound)


@check("fidelity.reference", measures=("ln_ppl",), cells="reference")
def test_reference(ondevice_baseline: BaselineBound, ondevice_check: Checker) -> None:
    """The reference itself predicts the text as well as its baseline does.

    Quantity: mean negative log-likelihood per token. Bound: 0.005 more (0.5 % of perplexity),
    paired by window. Source: the baseline.
    """
    ondevice_check("ln_ppl", ondevice_baseline("ln_ppl", absolute=0.005))
