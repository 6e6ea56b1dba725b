"""The table of the laws: what each needs, says, and is held by."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from .across_models import threshold
from .kv import RESERVES, kv_cache
from .loss import loss_envelope, loss_monotone, marginal, pareto
from .reporting import unsupported
from .resources import decode_time, file_size, memory, power

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..model.law import LawReport, Row


@dataclass(frozen=True, slots=True)
class Law:
    """A law.

    Attributes:
        name: Its name, that of the function that holds it.
        measures: Quantities that it needs of every cell.
        optional: Quantities that it uses where they are there.
        per: Whether its rows are those of one model, or of all models of a family.
        hold: Holds it for a subject's rows.
        words: What it says, in one sentence.
        loss: It needs loss against a source in full precision.
        warns: It warns: its anomalies do not turn it red.
    """

    name: str
    measures: tuple[str, ...]
    optional: tuple[str, ...]
    per: Literal["model", "family"]
    hold: Callable[[str, Sequence[Row]], LawReport]
    words: str
    loss: bool = False
    warns: bool = False

    def judge(self, subject: str, rows: Sequence[Row], not_lossless: str = "") -> LawReport:
        """Hold it, unless it needs a lossless reference and there is none.

        Args:
            subject: The model or the family.
            rows: Its cells, in any order.
            not_lossless: Why loss is not measured against full precision; empty if it is.
        """
        if self.loss and not_lossless:
            return unsupported(self.name, subject, not_lossless, warns=self.warns)
        return self.hold(subject, rows)


LAWS: Mapping[str, Law] = MappingProxyType(
    {
        law.name: law
        for law in (
            Law(
                "memory",
                ("weight_bytes", "peak_memory"),
                (),
                "model",
                memory,
                "Peak memory is the bytes of the weights plus a constant.",
            ),
            Law(
                "file_size",
                ("weight_bytes", "file_size"),
                ("effective_bpw",),
                "model",
                file_size,
                "A file is its weights plus the same overhead, and its BPW is that of its weights.",
            ),
            Law(
                "decode_time",
                ("active_bytes", "decode_speed"),
                (),
                "model",
                decode_time,
                "Decoding a token takes longer the more bytes it reads.",
                warns=True,
            ),
            Law(
                "loss_envelope",
                ("effective_bpw", "mean_kld"),
                (),
                "model",
                loss_envelope,
                "No cell loses more than its bits per weight allow.",
                loss=True,
            ),
            Law(
                "loss_monotone",
                ("effective_bpw", "mean_kld"),
                (),
                "model",
                loss_monotone,
                "Within a family of types, more bits per weight lose less.",
                loss=True,
            ),
            Law(
                "pareto",
                ("weight_bytes", "mean_kld"),
                (),
                "model",
                pareto,
                "No cell is both bigger and worse than another.",
                loss=True,
                warns=True,
            ),
            Law(
                "marginal",
                ("effective_bpw", "weight_bytes"),
                ("ln_ppl_ratio", "ln_ppl", "accuracy"),
                "model",
                marginal,
                "From 3.5 bits per weight on, little is lost for the memory that is saved.",
                loss=True,
            ),
            Law(
                "threshold",
                ("effective_bpw", "weight_bytes"),
                ("peak_memory", "accuracy", "bits_per_byte"),
                "family",
                threshold,
                "At equal memory a bigger model at 3.5 bits per weight or more is at least as good"
                " as a smaller one at higher precision.",
                loss=True,
            ),
            Law(
                "kv_cache",
                tuple(RESERVES.values()),
                (),
                "model",
                kv_cache,
                "The KV cache is proportional to the context and to the bits of its type.",
            ),
            Law(
                "power",
                ("decode_power", "prefill_power"),
                (),
                "model",
                power,
                "Prefill draws more power than decoding.",
            ),
        )
    }
)
"""Every law by name."""
