"""The ladder's tokenizer: byte-level BPE, trained once on the world's text and kept as a file."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path

import world
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

BOS, EOS = 0, 1
SPECIAL = ("<|begin|>", "<|end|>")
SIZE = 960
"""Rows of the embedding; the text fills all but a few, which stay unused."""
FILE = Path(__file__).parent / "tokenizer.json"


def train() -> Tokenizer:
    """Train the tokenizer on the world's text; digits stay single."""
    made = Tokenizer(models.BPE())
    # Digits are split apart only here: without merges of digits they stay so by themselves, and
    # the tokenizer as it is used is plain GPT-2's, which every runtime knows.
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    kinds = dict.fromkeys(world.KINDS, 1.0) | {"sums": 0.0}
    text = itertools.islice(world.World().documents("tokenizer", kinds), 20_000)
    made.train_from_iterator(map(world.plain, text), trainer)
    missing = SIZE - made.get_vocab_size()
    made.add_special_tokens([f"<|unused-{number}|>" for number in range(missing)])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = decoders.ByteLevel()
    return made


@cache
def load() -> Tokenizer:
    """Load the tokenizer from its file."""
    return Tokenizer.from_file(str(FILE))


if __name__ == "__main__":
    train().save(str(FILE))
