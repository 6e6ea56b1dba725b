"""Checks of what a model can do: questions with known answers.

Accuracy alone hides damage: as many answers can turn right as turn wrong. So every check is paired
item by item, and the flips against the reference are held, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ondevice.checks import Stage, check
from pytest_ondevice.model.bound import Bound, Source

if TYPE_CHECKING:
    from pytest_ondevice.api import Checker
    from pytest_ondevice.baselines import BaselineBound


@check("capability.finite", measures=("unscored_answers", "accuracy"), owns=(Stage.TASKS,))
def test_finite(ondevice_check: Checker) -> None:
    """Every answer is scored by finite numbers.

    Quantity: number of answers with a NaN or infinite logit. Bound: 0. Source: the method, none may
    make them.
    """
    bound = Bound(source=Source.METHOD, detail="logits are finite numbers", upper=0.0)
    ondevice_check("unscored_answers", bound)


@check("capability.choice", measures=("choice_accuracy",))
def test_choice(ondevice_baseline: BaselineBound, ondevice_check: Checker) -> None:
    """The artifact finds as many right choices as its baseline does.

    Quantity: share of right choices by log-likelihood. Bound: 0.03 less, paired by item. Source:
    the baseline.
    """
    bound = ondevice_baseline("choice_accuracy", absolute=0.03, higher_is_better=True)
    ondevice_check("choice_accuracy", bound)


@check("capability.cloze", measures=("cloze_accuracy",))
def test_cloze(ondevice_baseline: BaselineBound, ondevice_check: Checker) -> None:
    """The artifact completes as many texts as its baseline does.

    Quantity: share of texts whose last words greedy decoding would have said. Bound: 0.05 less,
    paired by item. Source: the baseline.
    """
    bound = ondevice_baseline("cloze_accuracy", absolute=0.05, higher_is_better=True)
    ondevice_check("cloze_accuracy", bound)


@check("capability.exact", measures=("exact_accuracy",))
def test_exact(ondevice_baseline: BaselineBound, ondevice_check: Checker) -> None:
    """The artifact generates as many right answers as its baseline does.

    Quantity: share of generated answers that equal a target. Bound: 0.05 less, paired by item.
    Source: the baseline.
    """
    bound = ondevice_baseline("exact_accuracy", absolute=0.05, higher_is_better=True)
    ondevice_check("exact_accuracy", bound)


@check("capability.flips", measures=("answer_flips",), cells="quantized")
def test_flips(ondevice_baseline: BaselineBound, ondevice_check: Checker) -> None:
    """No more answers flip against the reference than they do in its baseline.

    Quantity: share of items right under the reference and wrong here, or the other way round.
    Bound: 0.03 more, paired by item. Source: the baseline.
    """
    ondevice_check("answer_flips", ondevice_baseline("answer_flips", absolute=0.03))


@check("capability.reference", measures=("guess_probability",), cells="reference")
def test_reference(ondevice_check: Checker) -> None:
    """The reference does not guess: else no accuracy of its quantizations says anything.

    Quantity: probability that guessing would find as many right choices. Bound: 0.001. Source: the
    method, a capability that is not there cannot be lost.
    """
    bound = Bound(source=Source.METHOD, detail="the reference does not guess", upper=0.001)
    ondevice_check("guess_probability", bound)
