"""The quantities that can be measured: names, units, and the stage of a probe that yields them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Stage(StrEnum):
    """What has to be done to obtain a quantity. Every stage but ``header`` runs native code."""

    HEADER = "header"
    QUANTIZE = "quantize"
    VALIDATE = "validate"
    FIDELITY = "fidelity"
    DECODE = "decode"
    TASKS = "tasks"
    SPEED = "speed"
    MEMORY = "memory"
    RESERVE = "reserve"
    DEPLOYED = "deployed"
    ENERGY = "energy"


DETERMINISTIC = frozenset(
    {
        Stage.HEADER,
        Stage.QUANTIZE,
        Stage.VALIDATE,
        Stage.RESERVE,
        Stage.FIDELITY,
        Stage.DECODE,
        Stage.TASKS,
    }
)
"""Stages whose results later sessions may reuse. Speed, memory and energy belong to one run."""

CONTEXTS = (512, 1024, 2048, 4096)
"""The context lengths whose KV cache is sized beside that of the memory protocol."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """Something that can be measured of a cell.

    Attributes:
        name: The name that checks and users ask for.
        unit: The unit of its value, in the report and in messages.
        stage: The stage that yields it.
        why: What the number means, in one clause for failure messages.
        kind: The kind of baseline it belongs to, None if none is kept.
    """

    name: str
    unit: str
    stage: Stage
    why: str
    kind: str | None = None


def _table(*rows: Quantity) -> Mapping[str, Quantity]:
    return MappingProxyType({row.name: row for row in rows})


QUANTITIES = _table(
    Quantity(
        "effective_bpw",
        "bits/weight",
        Stage.HEADER,
        "8 x bytes of all weight tensors / number of weights",
        "size",
    ),
    Quantity(
        "body_bpw",
        "bits/weight",
        Stage.HEADER,
        "8 x bytes of the repeating layers / their number of weights",
        "size",
    ),
    Quantity(
        "nominal_bpw",
        "bits/weight",
        Stage.HEADER,
        "bits per weight of the block layout that the method is named after",
    ),
    Quantity(
        "file_size", "B", Stage.HEADER, "length of the artifact, what a user downloads", "size"
    ),
    Quantity("weight_bytes", "B", Stage.HEADER, "bytes of all weight tensors", "size"),
    Quantity(
        "active_bytes",
        "B",
        Stage.HEADER,
        "bytes of weights that one decoded token reads: no idle experts, no lookup tables",
    ),
    Quantity(
        "calibrated",
        "1",
        Stage.HEADER,
        "1 when it was quantized with an importance matrix, which needs calibration data",
    ),
    Quantity(
        "float_body_share",
        "1",
        Stage.HEADER,
        "share of the repeating layers' matrix weights that are stored as plain floats",
    ),
    Quantity(
        "file_type_matches",
        "1",
        Stage.HEADER,
        "1 when the file type that the header declares is the cell's method, else 0",
    ),
    Quantity(
        "tensor_bytes", "B", Stage.HEADER, "bytes of all tensors, rotary tables and indices too"
    ),
    Quantity(
        "stray_bytes", "B", Stage.HEADER, "bytes of the file that belong to no tensor and no header"
    ),
    Quantity(
        "planned_bpw",
        "bits/weight",
        Stage.HEADER,
        "effective BPW that llama.cpp's rules for the method give tensors of these shapes",
    ),
    Quantity(
        "planned_type_share",
        "1",
        Stage.HEADER,
        "share of the weights whose tensor type is the one that the method gives them",
    ),
    Quantity(
        "quantization_version",
        "1",
        Stage.HEADER,
        "version of the block layouts that the header states, 0 if it states none",
    ),
    Quantity(
        "tokenizer_matches",
        "1",
        Stage.HEADER,
        "1 when the tokenizer is the source's: other token ids make every output another",
    ),
    Quantity(
        "chat_template_matches", "1", Stage.HEADER, "1 when the chat template is the source's"
    ),
    Quantity(
        "block_anomalies",
        "1",
        Stage.HEADER,
        "number of tensors with NaN, infinite, absurd or lost block scales",
    ),
    Quantity("pin_matches", "1", Stage.HEADER, "1 when the artifact is the one that was accepted"),
    Quantity(
        "rederived_share",
        "1",
        Stage.QUANTIZE,
        "share of a candidate's bytes that this llama.cpp makes of the source, bit for bit",
    ),
    Quantity("quantize_time", "s", Stage.QUANTIZE, "wall time of llama_model_quantize"),
    Quantity("quantize_cpu_time", "s", Stage.QUANTIZE, "CPU time of llama_model_quantize"),
    Quantity(
        "quantize_speed", "weights/s", Stage.QUANTIZE, "weights / wall time of quantizing them"
    ),
    Quantity(
        "calibration_time",
        "s",
        Stage.QUANTIZE,
        "wall time of making the importance matrix, 0 for a method that needs none",
    ),
    Quantity(
        "quantize_peak_memory",
        "B",
        Stage.QUANTIZE,
        "peak resident memory of the quantizing process above its start",
    ),
    Quantity(
        "tensors_valid", "1", Stage.VALIDATE, "1 when the runtime loads it and every block is valid"
    ),
    Quantity(
        "runtime_tensor_bytes",
        "B",
        Stage.VALIDATE,
        "bytes of all tensors as the runtime counts them when it loads the artifact",
    ),
    Quantity(
        "mean_kld",
        "nats",
        Stage.FIDELITY,
        "mean Kullback-Leibler divergence of the next-token distribution from the reference's",
        "fidelity",
    ),
    Quantity(
        "ln_ppl_ratio",
        "1",
        Stage.FIDELITY,
        "mean ln(PPL(artifact)/PPL(reference)) on the same tokens",
        "fidelity",
    ),
    Quantity("ln_ppl", "1", Stage.FIDELITY, "mean negative log-likelihood per token", "fidelity"),
    Quantity(
        "bits_per_byte",
        "bits/B",
        Stage.FIDELITY,
        "negative log-likelihood in bits per byte of text, whatever the tokenizer",
    ),
    Quantity(
        "same_top",
        "1",
        Stage.FIDELITY,
        "share of positions where artifact and reference rank the same token first",
        "fidelity",
    ),
    Quantity(
        "mean_dp",
        "1",
        Stage.FIDELITY,
        "mean change of the probability of the text's own next token; below 0 it got worse",
    ),
    Quantity(
        "rms_dp",
        "1",
        Stage.FIDELITY,
        "root mean square change of the probability of the text's own next token",
    ),
    Quantity(
        "mean_square_dp",
        "1",
        Stage.FIDELITY,
        "mean square change of the probability of the text's own next token, whose root is RMS dp",
        "fidelity",
    ),
    *(
        Quantity(name, "nats", Stage.FIDELITY, f"{words} of the KLD over all scored positions")
        for name, words in (
            ("kld_median", "median"),
            ("kld_p90", "90th percentile"),
            ("kld_p99", "99th percentile"),
            ("kld_p999", "99.9th percentile"),
            ("kld_max", "maximum"),
        )
    ),
    *(
        Quantity(name, "1", Stage.FIDELITY, f"{words} of the change of token probability")
        for name, words in (
            ("dp_p1", "1st percentile"),
            ("dp_p10", "10th percentile"),
            ("dp_p90", "90th percentile"),
            ("dp_p99", "99th percentile"),
        )
    ),
    Quantity("nonfinite", "1", Stage.FIDELITY, "number of NaN or infinite logits"),
    Quantity(
        "changed_windows",
        "1",
        Stage.FIDELITY,
        "number of windows whose logits differ in any bit from those on record",
    ),
    Quantity(
        "decode_kld",
        "nats",
        Stage.DECODE,
        "mean KLD of a window's distributions fed token by token from the same window prefilled",
    ),
    Quantity("accuracy", "1", Stage.TASKS, "share of all items that are answered right"),
    *(
        Quantity(name, "1", Stage.TASKS, f"share of {words} that are answered right", "capability")
        for name, words in (
            ("choice_accuracy", "items with choices"),
            ("cloze_accuracy", "texts to complete"),
            ("exact_accuracy", "items with a generated answer"),
        )
    ),
    Quantity(
        "answer_flips",
        "1",
        Stage.TASKS,
        "share of items right under the reference and wrong here, or the other way round",
        "capability",
    ),
    Quantity(
        "guess_probability",
        "1",
        Stage.TASKS,
        "probability that guessing would answer as many items right",
    ),
    Quantity(
        "unscored_answers", "1", Stage.TASKS, "number of answers with a NaN or infinite logit"
    ),
    Quantity("load_time", "s", Stage.SPEED, "loading the artifact as shipped, file in page cache"),
    Quantity(
        "load_time_cold", "s", Stage.SPEED, "loading with the file's pages dropped from the cache"
    ),
    Quantity("ttft", "s", Stage.SPEED, "time to first token: tokenize and prefill 128, choose one"),
    Quantity("prefill_speed", "tokens/s", Stage.SPEED, "prefill of 128 tokens, best repetition"),
    Quantity("prefill_speed_512", "tokens/s", Stage.SPEED, "prefill of 512 tokens"),
    Quantity("decode_speed", "tokens/s", Stage.SPEED, "decoding one token at a time, best token"),
    Quantity(
        "decode_speed_d512",
        "tokens/s",
        Stage.SPEED,
        "decoding one token at a time after 512 others, best token",
    ),
    Quantity(
        "read_bandwidth", "B/s", Stage.SPEED, "bandwidth of reading memory in the same process"
    ),
    Quantity(
        "roofline_fraction",
        "1",
        Stage.SPEED,
        "active bytes x decode speed / read bandwidth: the share of what memory could deliver",
    ),
    Quantity(
        "prefill_ratio",
        "1",
        Stage.SPEED,
        "ln(prefill speed / that of the reference in the same round)",
        "speed",
    ),
    Quantity(
        "decode_ratio",
        "1",
        Stage.SPEED,
        "ln(decode speed / that of the reference in the same round)",
        "speed",
    ),
    Quantity(
        "peak_memory",
        "B",
        Stage.MEMORY,
        "peak resident memory above the process's own, weights read (not mapped), not repacked",
        "memory",
    ),
    Quantity("weights_memory", "B", Stage.MEMORY, "anonymous memory that loading the weights took"),
    Quantity("kv_memory", "B", Stage.MEMORY, "anonymous memory that making the context took"),
    Quantity("compute_memory", "B", Stage.MEMORY, "anonymous memory that computing touched"),
    Quantity(
        "unattributed_memory",
        "B",
        Stage.MEMORY,
        "the part of the peak that is neither weights nor KV cache nor compute buffers",
    ),
    Quantity(
        "reserved_memory",
        "B",
        Stage.RESERVE,
        "weights, KV cache, compute and output buffers as the runtime reserves them; exact",
        "reserve",
    ),
    Quantity(
        "kv_reserve", "B", Stage.RESERVE, "KV cache at the protocol's context length", "reserve"
    ),
    Quantity(
        "compute_reserve", "B", Stage.RESERVE, "compute buffers of a full micro-batch", "reserve"
    ),
    *(
        Quantity(f"kv_reserve_{n}", "B", Stage.RESERVE, f"KV cache at a context of {n} tokens")
        for n in CONTEXTS
    ),
    Quantity(
        "deployed_memory",
        "B",
        Stage.DEPLOYED,
        "peak resident memory as shipped: weights mapped, and repacked for this CPU where they are",
    ),
    Quantity(
        "repacked_bytes", "B", Stage.DEPLOYED, "second copies of weights, in this CPU's layout"
    ),
    Quantity(
        "mapped_bytes", "B", Stage.DEPLOYED, "resident pages of files: mapped weights, libraries"
    ),
    Quantity("prefill_energy", "J/token", Stage.ENERGY, "energy of prefilling one token"),
    Quantity("decode_energy", "J/token", Stage.ENERGY, "energy of decoding one token"),
    Quantity("prefill_power", "W", Stage.ENERGY, "mean power while prefilling"),
    Quantity("decode_power", "W", Stage.ENERGY, "mean power while decoding"),
    Quantity("idle_power", "W", Stage.ENERGY, "mean power while nothing is done"),
)
"""All quantities by name. Speed words follow llama-bench, fidelity words llama-perplexity."""
