"""The decode path: a window fed token by token against the same window prefilled.

Generating runs other kernels than prefilling, and the windows of the fidelity stage only prefill.
The first tokens of the first window are fed both ways; the second half of them is compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .fidelity import cut, log_softmax
from .reference import exact

if TYPE_CHECKING:
    from collections.abc import Callable

    from .protocol import DecodePlan


def measure(
    engine: Any, path: str, plan: DecodePlan, tick: Callable[[float, float], None]
) -> dict[str, object]:
    """Compare the two paths.

    Returns:
        ``id`` of the window, ``kld`` of the token-by-token distributions from the prefilled ones
        (nats, per position; None where a logit is not finite), ``same_top`` per position, and the
        largest difference of any logit, ``furthest``.

    Raises:
        TextError: The text holds no whole window.
    """
    execution, half = plan.execution, plan.tokens // 2
    with (
        engine.load(path, execution, alive=lambda _: tick(0, 1)) as model,
        engine.context(model, execution) as ctx,
    ):
        names, windows = cut(model, plan.texts, seed=plan.seed, n_ctx=execution.n_ctx)
        tokens = windows[0][: plan.tokens].tolist()
        prefilled = []
        for start in range(0, plan.tokens, execution.n_ubatch):
            piece = tokens[start : start + execution.n_ubatch]
            ctx.feed(piece, start, logits_from=0)
            prefilled.append(ctx.logits(len(piece)).copy())
        whole = np.concatenate(prefilled)[half:]
        ctx.clear()
        single = np.empty_like(whole)
        for i, token in enumerate(tokens):
            ctx.feed([token], i)
            if i >= half:
                single[i - half] = ctx.logits(1)[0]
            tick(i + 1, plan.tokens)
    finite = np.isfinite(whole).all(axis=1) & np.isfinite(single).all(axis=1)
    targets = np.array([*tokens[half + 1 :], tokens[-1]], dtype=np.int32)
    if not finite.all():
        return {"id": names[0], "kld": None, "same_top": None, "furthest": None}
    found = exact(log_softmax(whole), log_softmax(single), targets)
    return {
        "id": names[0],
        "kld": found.kld.tolist(),
        "same_top": [bool(same) for same in found.same_top],
        "furthest": float(np.abs(whole - single).max()),
    }
