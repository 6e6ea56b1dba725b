"""What host and worker say to each other: a request on stdin, events in a JSON-lines file."""

from __future__ import annotations

import msgspec

from ..model.quantity import CONTEXTS
from ..model.task import Item

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
        type_k: How keys are kept in the cache: ``f16``, ``q8_0`` or ``q4_0``.
        type_v: How values are kept in it.
    """

    flash_attention: bool = True
    repack: bool = True
    mapped: bool = True
    n_ctx: int = N_CTX
    n_ubatch: int = N_CTX
    threads: int = 2
    gpu_layers: int = 0
    type_k: str = "f16"
    type_v: str = "f16"


MEMORY_EXECUTION = Execution(repack=False, mapped=False)
"""The exact protocol: anonymous weights, no second copy, two threads everywhere."""


SPEED_EXECUTION = Execution(n_ctx=1024)
"""As shipped, with room for the longest prompt that is timed and for what is decoded after it."""


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
    """The speed stage: token counts and repetitions of a fixed synthetic trace.

    Attributes:
        prefill: Tokens of the short prompt.
        prefill_long: Tokens of the long prompt, which is also the depth of the deeper decoding.
        decode: Tokens decoded one at a time, at depth 0 and at that of the long prompt.
        repetitions: Repetitions of the short prompt and of decoding.
        most_warm_ups: Warming up ends after so many at the latest.
        cold: Load also with the file's pages dropped from the page cache.
        execution: How the runtime executes.
    """

    prefill: int = 128
    prefill_long: int = 512
    decode: int = 24
    repetitions: int = 2
    most_warm_ups: int = 4
    cold: bool = True
    execution: Execution = SPEED_EXECUTION


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The memory stage."""

    decode: int = 8
    execution: Execution = MEMORY_EXECUTION


class ReservePlan(msgspec.Struct, frozen=True, kw_only=True):
    """The reserve stage: what the runtime would allocate, asked for without allocating it.

    Attributes:
        contexts: The context lengths to ask for, beside the execution's own.
        execution: How the runtime executes.
    """

    contexts: tuple[int, ...] = CONTEXTS
    execution: Execution = MEMORY_EXECUTION


class DeployedPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The deployed stage: peak memory as shipped, weights mapped and copied for this CPU."""

    decode: int = 8
    execution: Execution = Execution()


class EnergyPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The energy stage: joules of prefilling and of decoding, by a meter of this machine.

    Attributes:
        sysfs: Where the kernel's meters are looked for.
        idle_seconds: So long nothing is done, for the idle power.
        seconds: Each phase is repeated for at least so long.
        prefill: Tokens of the prompt.
        decode: Tokens decoded one at a time.
        execution: How the runtime executes.
    """

    sysfs: str = "/sys"
    idle_seconds: float = 2.0
    seconds: float = 3.0
    prefill: int = 512
    decode: int = 32
    execution: Execution = SPEED_EXECUTION


class TasksPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The tasks stage: questions, and how many of them are worked on at once.

    Attributes:
        items: The questions, in the order in which they are asked.
        execution: How the runtime executes; the context is as large as the items need, and a
            micro-batch as ``batch`` says.
        sequences: Parallel sequences in one cache, at most.
        batch: Tokens that are evaluated at once, at most.
    """

    items: tuple[Item, ...]
    execution: Execution = Execution()
    sequences: int = 64
    batch: int = 512


class MeasureJob(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Measure an artifact: the stages whose plan is given, in the order of the fields."""

    artifact: str
    validate: bool = False
    memory: MemoryPlan | None = None
    speed: SpeedPlan | None = None
    fidelity: FidelityPlan | None = None
    decode: DecodePlan | None = None
    reserve: ReservePlan | None = None
    deployed: DeployedPlan | None = None
    energy: EnergyPlan | None = None
    tasks: TasksPlan | None = None


class QuantizeJob(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Make ``target`` from ``source`` with ``llama_model_quantize``.

    Attributes:
        source: The model file to quantize.
        target: The file to make.
        file_type: llama.cpp's number of the file type.
        threads: Threads.
        importance: A file of the importance of each matrix's columns, as the importance job makes
            it; empty for none.
        pure: Every matrix gets the file type's base type, where its rows allow it.
        even: Row lengths of the matrices whose columns all weigh the same, by name: what the
            importance job leaves out and llama.cpp aborts without.
    """

    source: str
    target: str
    file_type: int
    threads: int
    importance: str = ""
    pure: bool = False
    even: dict[str, int] = {}


class ImportanceJob(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Weigh the columns of each matrix by the activations that a calibration text gives them.

    Attributes:
        source: The model file.
        target: The file to make (.npz).
        texts: The calibration text by kind.
        execution: How the runtime executes.
    """

    source: str
    target: str
    texts: tuple[Text, ...]
    execution: Execution = Execution()


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


Job = MeasureJob | QuantizeJob | ImportanceJob | ModelJob | DescribeJob


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
