"""Write what ships of the pocket world: `python pocket/publish.py data`, `... weights FOLDER`.

`data` writes the questions and the texts, which need no training. `weights` turns what train.py
left in FOLDER into F16 GGUF files: the smallest into the package, the others into the package that
is built from this folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import world

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "src" / "pytest_ondevice" / "data"
PLACES = {
    "pocket-s": DATA / "models",
    "pocket-m": ROOT / "pocket" / "src" / "pytest_ondevice_pocket",
    "pocket-l": ROOT / "pocket" / "src" / "pytest_ondevice_pocket",
}
"""The folder of each model."""

TEXT_KINDS = {
    "facts": ("facts",),
    "questions": ("asked_facts",),
    "stories": ("stories",),
    "recall": ("recall",),
    "skills": ("sums", "counts", "agreement", "copies"),
}
"""The parts of a text and the documents that each holds."""

SIZES = {"evaluation": 16_000, "calibration": 5_000}
"""Characters of each part, about."""


def tasks() -> str:
    """Return the questions as JSON lines, a header first."""
    header = {"tasks": 1, "name": "pocket", "normalisation": "none"}
    records = itertools.chain((header,), world.questions(world.World()))
    return "".join(json.dumps(one) + "\n" for one in records)


def texts(which: str) -> dict[str, str]:
    """Return the parts of a text by name.

    Args:
        which: ``evaluation`` or ``calibration``.
    """
    made: dict[str, str] = {}
    for part, kinds in TEXT_KINDS.items():
        weights = dict.fromkeys(kinds, 1.0)
        documents = world.World().documents(f"{which} {part}", weights, people=which)
        lines: list[str] = []
        while sum(map(len, lines)) < SIZES[which]:
            lines.append(world.plain(next(documents)) + "\n")
        made[part] = "".join(lines)
    return made


def data() -> dict[Path, str]:
    """Return every text file that ships of the world."""
    made = {DATA / "tasks" / "pocket.jsonl": tasks()}
    for which, folder in (("evaluation", "text"), ("calibration", "calibration")):
        for part, text in texts(which).items():
            made[DATA / folder / "pocket" / f"{part}.txt"] = text
    return made


def weights(name: str, source: Path) -> Path:
    """Write a trained model as GGUF.

    Args:
        name: A model of the ladder.
        source: Its weights as train.py saves them.

    Returns:
        The file, which lies in its place.
    """
    import gguf  # noqa: PLC0415  (the data needs none of them)
    import torch  # noqa: PLC0415
    import vocabulary  # noqa: PLC0415
    from train import LADDER, LONG  # noqa: PLC0415

    rung = LADDER[name]
    state = torch.load(source, weights_only=True)
    target = PLACES[name] / f"{name}.gguf"
    target.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_name(name)
    writer.add_license("Apache-2.0")
    writer.add_description("Trained on the pocket world of pytest-ondevice; a reference, no chat")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_vocab_size(vocabulary.SIZE)
    writer.add_context_length(2 * LONG)
    writer.add_embedding_length(rung.hidden)
    writer.add_block_count(rung.layers)
    writer.add_feed_forward_length(rung.feed_forward)
    writer.add_head_count(rung.heads)
    writer.add_head_count_kv(rung.kv_heads)
    writer.add_rope_dimension_count(rung.hidden // rung.heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    _add_tokenizer(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, rung.layers)
    for key, value in state.items():
        if key == "lm_head.weight" and rung.tied:
            continue
        half = _ordered(key, value, rung.heads, rung.kv_heads).half()
        # Norms are kept in F32, as llama.cpp wants them, with values that F16 holds exactly.
        array = (half if half.ndim > 1 else half.float()).contiguous().numpy()
        writer.add_tensor(names.get_name(key, try_suffixes=(".weight",)), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _ordered(key: str, value: Tensor, heads: int, kv_heads: int) -> Tensor:
    """Return a tensor's values in the order in which llama.cpp wants them."""
    if key.endswith("q_proj.weight"):
        return _permuted(value, heads)
    if key.endswith("k_proj.weight"):
        return _permuted(value, kv_heads)
    return value


def _permuted(value: Tensor, heads: int) -> Tensor:
    """Put a head's rotary halves side by side in pairs, as llama.cpp rotates them."""
    rows, columns = value.shape
    halves = value.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def _add_tokenizer(writer: GGUFWriter) -> None:
    """Write the kept tokenizer as GPT-2's, which every runtime knows."""
    import gguf  # noqa: PLC0415
    import vocabulary  # noqa: PLC0415

    kept = json.loads(vocabulary.FILE.read_text("utf-8"))
    special = {one["content"] for one in kept["added_tokens"]}
    places = kept["model"]["vocab"] | {one["content"]: one["id"] for one in kept["added_tokens"]}
    tokens = sorted(places.items(), key=lambda pair: pair[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_types(
        [
            gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL
            for token, _ in tokens
        ]
    )
    writer.add_token_merges([" ".join(pair) for pair in kept["model"]["merges"]])
    writer.add_bos_token_id(vocabulary.BOS)
    writer.add_eos_token_id(vocabulary.EOS)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)


def main() -> None:
    """Write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("data", "weights"))
    parser.add_argument("folder", type=Path, nargs="?", help="of weights: what train.py wrote to")
    parser.add_argument("--seed", type=int, default=1, help="of weights: the seed of the training")
    given = parser.parse_args()
    if given.what == "data":
        for path, text in data().items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8", newline="\n")
            print(path.relative_to(ROOT))
        return
    if given.folder is None:
        parser.error("weights needs the folder that train.py wrote to")
    for name in PLACES:
        source = given.folder / f"{name}-{given.seed}.pt"
        if source.exists():
            print(weights(name, source).relative_to(ROOT))


if __name__ == "__main__":
    main()
