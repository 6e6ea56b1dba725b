"""What host and worker say to each other: a request on stdin, events in a JSON-lines file."""

from __future__ import annotations

import msgspec

N_CTX = 512
"""Tokens of an evaluation window, and of the memory protocol's context."""


class Execution(msgspec.Struct, frozen=True, kw_only=True):
    """How the runtime executes; part of every protocol, since each field can move logits.

    Attributes:
        flash_attention: Flash attention on.
        repack: Extra buffer types on: weights are copied into the layout of this CPU's kernels.
        mapped: Weights are mapped from the file, not read into anonymous memory.
        n_ctx: Tokens of the context.
        n_ubatch: Tokens of a micro-batch.
        threads: Threads; logits do not depend on them, time and memory do.
        gpu_layers: Layers on the GPU; the runtime has to confirm them. 0 uses the CPU alone.
    """

    flash_attention: bool = True
    repack: bool = True
    mapped: bool = True
    n_ctx: int = N_CTX
    n_ubatch: int = N_CTX
    threads: int = 2
    gpu_layers: int = 0


MEMORY_EXECUTION = Execution(repack=False, mapped=False)
"""The exact protocol: anonymous weights, no second copy, two threads everywhere."""


class Text(msgspec.Struct, frozen=True):
    """One part of the evaluation text: its kind and the file that holds it."""

    kind: str
    path: str


class FidelityPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The fidelity stage, over the windows from ``first`` on and before ``last``.

    Attributes:
        texts: The evaluation text by kind.
        reference: The file of the reference's distributions; empty for none.
        write: This run makes the reference file; others read it.
        beside: The reference's own model file, loaded beside this one; empty for none.
        about: What the reference file says of its making: model, source, tokenizer, text,
            runtime, runtime_digest, cpu, created.
        first: The first window, in the seeded order.
        last: The window to stop before, None for all.
        digests: The logits of so many of the first windows are digested.
        seed: Seed of the windows' order and of the tail samples.
        top: Number of likeliest tokens kept exactly per position.
        tail: Number of samples of the rest per position.
        execution: How the runtime executes.
    """

    texts: tuple[Text, ...]
    reference: str = ""
    write: bool = False
    beside: str = ""
    about: dict[str, str] = {}
    first: int = 0
    last: int | None = None
    digests: int = 4
    seed: int = 20505
    top: int = 512
    tail: int = 256
    execution: Execution = Execution()


class DecodePlan(msgspec.Struct, frozen=True, kw_only=True):
    """The decode stage: one window's first tokens fed one by one, and once more all together."""

    texts: tuple[Text, ...]
    tokens: int = 128
    seed: int = 20505
    execution: Execution = Execution()


class SpeedPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The speed stage: token counts and repetitions of a fixed synthetic trace."""

    prefill: int = 128
    decode: int = 24
    repetitions: int = 2
    most_warm_ups: int = 4
    execution: Execution = Execution()


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The memory stage."""

    decode: int = 8
    execution: Execution = MEMORY_EXECUTION


class MeasureJob(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Measure an artifact: the stages whose plan is given, in the order of the fields."""

    artifact: str
    validate: bool = False
    memory: MemoryPlan | None = None
    speed: SpeedPlan | None = None
    fidelity: FidelityPlan | None = None
    decode: DecodePlan | None = None


class QuantizeJob(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Make ``target`` from ``source`` with ``llama_model_quantize``."""

    source: str
    target: str
    file_type: int
    threads: int


class DescribeJob(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Only start the runtime and say what it can do."""


class ModelJob(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A call from a user's test: tokenize, generate or logits.

    Attributes:
        artifact: The model file.
        call: ``tokenize``, ``generate`` or ``logits``.
        text: The prompt, if it is text.
        tokens: The prompt, if it is token ids.
        max_tokens: How many tokens to generate at most.
        output: Where ``logits`` writes its array (.npy).
        execution: How the runtime executes.
    """

    artifact: str
    call: str
    text: str | None = None
    tokens: tuple[int, ...] = ()
    max_tokens: int = 0
    output: str = ""
    execution: Execution = Execution()


Job = MeasureJob | QuantizeJob | ModelJob | DescribeJob


class Request(msgspec.Struct, frozen=True):
    """What the runner writes to a worker's stdin."""

    events: str
    parent: int
    job: Job


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the events file.

    Attributes:
        event: ``start`` or ``done`` or ``failed`` of a stage, ``progress`` in it, ``end`` of all.
        stage: The stage.
        done: Units of work done (windows, repetitions, tensors).
        total: Units of work in all; 0 if unknown.
        payload: The stage's results.
        error: What went wrong, in one sentence.
    """

    event: str
    stage: str = ""
    done: float = 0
    total: float = 0
    payload: dict[str, object] = {}
    error: str = ""
