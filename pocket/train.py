"""Train a model of the ladder: `python pocket/train.py pocket-s`.

Needs what pocket/requirements.txt names. Text is made as it is read, so nothing has to be prepared.
Everything follows from the seed and from the number of threads; processors that round differently
give other weights of about the same accuracy.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import vocabulary
import world
from transformers import LlamaConfig, LlamaForCausalLM

if TYPE_CHECKING:
    from collections.abc import Iterator

MIXTURE = {
    "facts": 0.34,
    "asked_facts": 0.12,
    "sums": 0.10,
    "counts": 0.07,
    "agreement": 0.03,
    "recall": 0.10,
    "copies": 0.14,
    "stories": 0.10,
}
"""The share of each kind among the documents of the training text."""


@dataclass(frozen=True, slots=True)
class Rung:
    """A model of the ladder and how it is trained.

    Attributes:
        hidden: Length of the hidden state.
        feed_forward: Length of the feed-forward's inner state.
        layers: Number of layers.
        heads: Heads of queries, of 64 each.
        kv_heads: Heads of keys and values.
        tied: The embedding is the output matrix too.
        rate: The highest learning rate.
        stints: Tokens of text of each stint; in each the rates rise and fall once, from the second
            on to half as much.
    """

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    tied: bool
    rate: float
    stints: tuple[int, ...]


LADDER = {
    "pocket-s": Rung(256, 512, 2, 4, 2, tied=True, rate=3e-3, stints=(1_000_000,)),
    "pocket-m": Rung(256, 768, 6, 4, 2, tied=True, rate=3e-3, stints=(2_000_000,)),
    "pocket-l": Rung(512, 1024, 5, 8, 2, tied=False, rate=2e-3, stints=(1_800_000, 600_000)),
}

SHORT, LONG = 256, 512
LONG_SHARE = 0.12
"""The last steps see whole windows of evaluation; before, shorter ones cost less."""
BATCH = 2048
"""Tokens of a step."""
WARM_UP = 0.04
"""The share of the steps over which the rates rise."""
MUON_RATE = 0.02
"""The highest learning rate of the layers' matrices."""
UNDECIDED = 0.2
"""The weight of a token that nothing before it decides, such as the next name."""


def rows(seed: int, length: int) -> Iterator[list[tuple[int, float]]]:
    """Yield rows of ``length`` tokens and their weights in the loss.

    A row is the beginning token, then documents, one per line.
    """
    tokenizer = vocabulary.load()
    held: list[tuple[int, float]] = []
    for document in world.World().documents(f"training {seed}", MIXTURE):
        for piece, decided in world.pieces(document + "\n"):
            weight = 1.0 if decided else UNDECIDED
            made = tokenizer.encode(piece, add_special_tokens=False).ids
            held += [(token, weight) for token in made]
        while len(held) >= length - 1:
            yield [(vocabulary.BOS, 0.0), *held[: length - 1]]
            del held[: length - 1]


def make(rung: Rung) -> LlamaForCausalLM:
    """Make the model with fresh weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary.SIZE,
            hidden_size=rung.hidden,
            intermediate_size=rung.feed_forward,
            num_hidden_layers=rung.layers,
            num_attention_heads=rung.heads,
            num_key_value_heads=rung.kv_heads,
            max_position_embeddings=LONG * 2,
            tie_word_embeddings=rung.tied,
            bos_token_id=vocabulary.BOS,
            eos_token_id=vocabulary.EOS,
            rms_norm_eps=1e-5,
            initializer_range=0.02,
        )
    )


def train(name: str, seed: int, done: int = 0, weights: Path | None = None) -> LlamaForCausalLM:
    """Train one rung; its progress is printed.

    Args:
        name: A model of the ladder.
        seed: Decides the fresh weights and the text.
        done: Stints that are done already.
        weights: What they left, if there are any.
    """
    rung = LADDER[name]
    torch.manual_seed(seed)
    model = make(rung)
    if weights is not None:
        model.load_state_dict(torch.load(weights, weights_only=True))
    for stint in range(done, len(rung.stints)):
        _train(model, name, rung, seed, stint)
    return model


def _train(model: LlamaForCausalLM, name: str, rung: Rung, seed: int, stint: int) -> None:
    steps = rung.stints[stint] // BATCH
    most = 1.0 if stint == 0 else 0.5
    first = seed + 100 * stint
    inner, outer = [], []
    for key, one in model.named_parameters():
        (inner if one.ndim > 1 and ".layers." in key else outer).append(one)
    muon = Muon(inner)
    adam = torch.optim.AdamW(outer, lr=rung.rate, betas=(0.9, 0.98), weight_decay=0.0)
    longer_from = int(steps * (1 - LONG_SHARE))
    source = rows(first, SHORT)
    some = list(world.questions(world.World()))[::8]
    began = time.monotonic()
    mean = 0.0
    for step in range(steps):
        if step == longer_from:
            source = rows(first + 1, LONG)
        length = LONG if step >= longer_from else SHORT
        drawn = np.array([next(source) for _ in range(BATCH // length)])
        batch = torch.tensor(drawn[..., 0].astype(int))
        weights = torch.tensor(drawn[..., 1]).float()
        share = min((step + 1) / (WARM_UP * steps), 1.0)
        left = (1 - step / steps) / (1 - WARM_UP)
        pace = most * min(share, left)
        for group in adam.param_groups:
            group["lr"] = rung.rate * pace
        logits = model(input_ids=batch, use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].reshape(-1, vocabulary.SIZE), batch[:, 1:].reshape(-1), reduction="none"
        )
        weight = weights[:, 1:].reshape(-1)
        loss = (losses * weight).sum() / weight.sum()
        told = float(losses.detach()[weight == 1.0].mean())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step(MUON_RATE * pace)
        adam.step()
        adam.zero_grad(set_to_none=True)
        mean = told if not step else 0.98 * mean + 0.02 * told
        if step % 50 == 49 or step == steps - 1:
            took = time.monotonic() - began
            print(f"{name} step {step + 1}/{steps} loss {mean:.4f} {took:.0f} s", flush=True)
        if step % 200 == 199:
            found = examine(model, some)
            print({group: round(share, 2) for group, share in found.items()}, flush=True)
            model.train()


class Muon:
    """Steps of equal size in every direction of a matrix (Jordan et al. 2024).

    torch.optim.Muon does the same in bfloat16, which processors without such instructions
    emulate, many times slower than float32.

    Args:
        matrices: The weights to step.
        momentum: Share of the old direction that is kept.
        decay: Weight decay, per step and rate.
    """

    COEFFICIENTS = (3.4445, -4.7750, 2.0315)
    """Of the Newton-Schulz iteration that brings all singular values near 1."""
    ITERATIONS = 5

    def __init__(
        self, matrices: list[torch.nn.Parameter], *, momentum: float = 0.95, decay: float = 0.1
    ) -> None:
        self._matrices = matrices
        self._momentum = momentum
        self._decay = decay
        self._held = [torch.zeros_like(one) for one in matrices]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Make a step from the gradients, and forget them."""
        for one, held in zip(self._matrices, self._held, strict=True):
            assert one.grad is not None  # after a backward pass
            held.lerp_(one.grad, 1 - self._momentum)
            direction = self._orthogonal(one.grad.lerp(held, self._momentum))
            one.mul_(1 - rate * self._decay)
            one.add_(direction, alpha=-rate * max(1.0, one.shape[0] / one.shape[1]) ** 0.5)
            one.grad = None

    def _orthogonal(self, gradient: torch.Tensor) -> torch.Tensor:
        """Bring all singular values of a matrix near 1."""
        first, second, third = self.COEFFICIENTS
        tall = gradient.shape[0] > gradient.shape[1]
        made = gradient.T if tall else gradient
        made = made / (made.norm() + 1e-7)
        for _ in range(self.ITERATIONS):
            square = made @ made.T
            mixed = torch.addmm(square, square, square, beta=second, alpha=third)
            made = torch.addmm(made, mixed, made, beta=first)
        return made.T if tall else made


@torch.no_grad()
def examine(model: LlamaForCausalLM, records: list[dict[str, object]]) -> dict[str, float]:
    """Ask questions of the world in PyTorch; return the share of right answers by group."""
    tokenizer = vocabulary.load()
    model.eval()

    def ids(text: str) -> list[int]:
        return [vocabulary.BOS, *tokenizer.encode(text, add_special_tokens=False).ids]

    marks: dict[str, list[bool]] = {}
    for record in records:
        prompt = ids(str(record["prompt"]))
        if record["form"] == "exact":
            made: list[int] = []
            while len(made) < int(record["most"]):
                logits = model(input_ids=torch.tensor([prompt + made])).logits[0, -1]
                made.append(int(logits.argmax()))
                if "." in tokenizer.decode(made):
                    break
            right = tokenizer.decode(made).split(".")[0].strip() in record["targets"]
        else:
            texts = [str(one["text"]) for one in record["options"]]
            scores, greedy = [], []
            for text in texts:
                whole = torch.tensor([prompt + ids(text)[1:]])
                log_p = model(input_ids=whole).logits[0].log_softmax(-1)
                before = log_p[len(prompt) - 1 : -1]
                pairs = list(zip(before, whole[0, len(prompt) :], strict=True))
                scores.append(sum(float(row[token]) for row, token in pairs))
                greedy.append(all(int(row.argmax()) == token for row, token in pairs))
            best = scores.index(max(scores))
            right = greedy[0] if record["form"] == "cloze" else best in record["right"]
        marks.setdefault(str(record["group"]), []).append(right)
    found = {group: float(np.mean(one)) for group, one in marks.items()}
    found["all"] = float(np.mean([one for each in marks.values() for one in each]))
    return found


def main() -> None:
    """Train what is asked for, save its weights and say how it does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=LADDER)
    parser.add_argument("--seed", type=int, default=1, help="of fresh weights and of the text")
    parser.add_argument("--after", type=int, default=0, help="stints that are done already")
    parser.add_argument("--from", dest="start", type=Path, help="the weights that they left")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--to", type=Path, required=True, help="the folder for the weights")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    began, cpu = time.monotonic(), time.process_time()
    model = train(given.name, given.seed, given.after, given.start)
    took = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu}
    given.to.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), given.to / f"{given.name}-{given.seed}.pt")
    found = examine(model, list(world.questions(world.World())))
    print(json.dumps({"model": given.name, "seed": given.seed, **took, "accuracy": found}))


if __name__ == "__main__":
    main()
