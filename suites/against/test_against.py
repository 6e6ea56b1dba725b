"""Checks against the predecessor: the same cell of ``--ondevice-against``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ondevice.checks import check

if TYPE_CHECKING:
    from pytest_ondevice.api import Comparer, Identifier


@check("against.size", measures=("file_size",))
def test_size(ondevice_compare: Comparer) -> None:
    """The artifact is no larger than its predecessor.

    Quantity: length of the file. Bound: 0.5 % more. Source: the predecessor.
    """
    ondevice_compare("file_size", relative=0.005)


@check("against.identity", measures=("changed_windows",))
def test_identity(ondevice_identity: Identifier) -> None:
    """The artifact computes the very logits of its predecessor; or they changed, and that is said.

    Quantity: number of the first windows whose logits differ. Bound: 0 where
    ``--ondevice-identical`` asks for it, else a change passes and is called one. Source: the
    predecessor, on the same machine.
    """
    ondevice_identity.succeed()


@check("against.kld", measures=("mean_kld",), cells="quantized")
def test_kld(ondevice_compare: Comparer) -> None:
    """The artifact diverges no further from the reference than its predecessor.

    Quantity: mean KLD of both from the same reference on the same windows. Bound: 5 % more, or
    0.0003 nats where that is more, paired by window. Source: the predecessor.
    """
    ondevice_compare("mean_kld", relative=0.05, absolute=0.0003)


@check("against.ppl", measures=("ln_ppl",))
def test_ppl(ondevice_compare: Comparer) -> None:
    """The artifact predicts the text as well as its predecessor.

    Quantity: mean negative log-likelihood per token. Bound: 0.005 more (0.5 % of perplexity),
    paired by window. Source: the predecessor.
    """
    ondevice_compare("ln_ppl", absolute=0.005)


@check("against.accuracy", measures=("accuracy",))
def test_accuracy(ondevice_compare: Comparer) -> None:
    """The artifact answers as many questions right as its predecessor.

    Quantity: share of all items answered right. Bound: 0.03 less, paired by item. Source: the
    predecessor.
    """
    ondevice_compare("accuracy", absolute=0.03, higher_is_better=True)


@check("against.memory", measures=("peak_memory",))
def test_memory(ondevice_compare: Comparer) -> None:
    """The artifact takes no more memory than its predecessor.

    Quantity: peak resident memory above the process's own. Bound: 2 % or 3 MiB more, whichever is
    more. Source: the predecessor, measured in the same run.
    """
    ondevice_compare("peak_memory", relative=0.02, absolute=3 * 2**20)


@check("against.decode_speed", measures=("decode_speed",))
def test_decode_speed(ondevice_compare: Comparer) -> None:
    """The artifact decodes as fast as its predecessor.

    Quantity: ln(decode speed), paired by round, median. Bound: 0.05 less (5 %). Source: the
    predecessor, timed in the same rounds. Advisory below 8 rounds.
    """
    ondevice_compare("decode_speed", absolute=0.05, higher_is_better=True)


@check("against.prefill_speed", measures=("prefill_speed",))
def test_prefill_speed(ondevice_compare: Comparer) -> None:
    """The artifact prefills as fast as its predecessor.

    Quantity: ln(prefill speed), paired by round, median. Bound: 0.05 less (5 %). Source: the
    predecessor, timed in the same rounds. Advisory below 8 rounds.
    """
    ondevice_compare("prefill_speed", absolute=0.05, higher_is_better=True)
