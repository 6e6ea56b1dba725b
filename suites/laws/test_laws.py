"""Laws: relations across the cells of a model, or of the models of a family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ondevice.checks import check

if TYPE_CHECKING:
    from pytest_ondevice.law_fixture import LawHolder


@check("laws.memory", law="memory")
def test_memory(ondevice_law: LawHolder) -> None:
    """Peak memory is the bytes of the weights plus a constant.

    Quantity: peak memory of all cells against their weight bytes. Bound: slope 0.98 to 1.03, R2 of
    0.999, no cell off the line by more than 1 % of the smallest artifact or 1 MiB. Source: the law.
    """
    ondevice_law("memory")


@check("laws.file_size", law="file_size")
def test_file_size(ondevice_law: LawHolder) -> None:
    """A file is its weights plus the same overhead, and its BPW is that of its weights.

    Quantity: length of each file against its weight bytes. Bound: slope within 0.5 % of 1, equal
    overhead, BPW exact to the byte. Source: the law.
    """
    ondevice_law("file_size")


@check("laws.decode_time", law="decode_time")
def test_decode_time(ondevice_law: LawHolder) -> None:
    """Decoding a token takes longer the more bytes it reads.

    Quantity: seconds per decoded token against active bytes, with and without F16 and the IQ types.
    Bound: a slope that is not negative beyond its error; cells far off the line are named in a
    warning. Source: the law. Advisory below 8 rounds.
    """
    ondevice_law("decode_time")


@check("laws.kv_cache", law="kv_cache")
def test_kv_cache(ondevice_law: LawHolder) -> None:
    """The KV cache grows with the context alone, by the block layout of its type.

    Quantity: KV bytes reserved at 512 to 4096 tokens. Bound: proportional to the context and equal
    for all methods within 16 KiB and 0.1 %; q8_0 is 34/64 and q4_0 18/64 of f16. Source: the law.
    """
    ondevice_law("kv_cache")


@check("laws.loss_envelope", law="loss_envelope")
def test_loss_envelope(ondevice_law: LawHolder) -> None:
    """No method loses more than its bits per weight allow.

    Quantity: mean KLD of each cell against effective BPW. Bound: the envelope about published
    measurements. Source: the law; it needs a source and a reference in full precision.
    """
    ondevice_law("loss_envelope")


@check("laws.loss_monotone", law="loss_monotone")
def test_loss_monotone(ondevice_law: LawHolder) -> None:
    """Within a family of types, more bits per weight lose less.

    Quantity: mean KLD of pairs of cells. Bound: that of the cell with more bits is not greater by
    more than 2 % beyond the error of both. Source: the law; it needs full precision to start from.
    """
    ondevice_law("loss_monotone")


@check("laws.pareto", law="pareto")
def test_pareto(ondevice_law: LawHolder) -> None:
    """No method is both bigger and worse than another: there is no reason to ship it.

    Quantity: weight bytes and mean KLD of pairs of cells. Bound: none dominated beyond errors; for
    those that are there is a warning, not a failure. Source: the law; it needs full precision.
    """
    ondevice_law("pareto")


@check("laws.marginal", law="marginal")
def test_marginal(ondevice_law: LawHolder) -> None:
    """From 3.5 effective bits per weight on, little is lost for the memory that is saved.

    Quantity: relative loss of each cell at 3.5 BPW or more. Bound: of the share of memory that it
    saves, 0.2 in bits per token or 0.35 in accuracy. Source: the law; it needs full precision.
    """
    ondevice_law("marginal")


@check("laws.threshold", law="threshold")
def test_threshold(ondevice_law: LawHolder) -> None:
    """At equal memory a bigger model from 3.5 BPW on is as good as a smaller one of more bits.

    Quantity: bits per byte (or accuracy) of cells of several models of a family. Bound: the bigger
    one is no worse, within errors. Source: the law; it needs full precision to start from.
    """
    ondevice_law("threshold")


@check("laws.power", law="power")
def test_power(ondevice_law: LawHolder) -> None:
    """Prefilling, which computes, draws more power than decoding, which waits for memory.

    Quantity: watts of both phases of each cell. Bound: prefill above decode. Source: the law, where
    there is a meter.
    """
    ondevice_law("power")
