"""llama.cpp through llama-cpp-python's low-level bindings.

The high-level ``Llama`` class is not used: it copies logits, keeps n_ctx x n_vocab scores and
switches flash attention off.
"""

from __future__ import annotations

import ctypes
import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import llama_cpp.llama_cpp as api
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ..protocol import Execution

BUFFER_LINE = re.compile(
    r"(\S+)\s+(model|KV|RS|compute|output) buffer size\s*(?:=|is)\s*([\d.]+) MiB"
)

CACHE_LINE = re.compile(r"size =\s*([\d.]+) MiB \(\s*\d+ cells.*\), K \(")

OFFLOAD_LINE = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")

_log_lines: list[str] = []
_on_line: Callable[[str], None] | None = None


@api.llama_log_callback  # type: ignore[untyped-decorator,unused-ignore]
def _log(_level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
    # Lines go to stderr at once, where they survive a crash of the code that printed them.
    os.write(2, text)
    line = text.decode("utf-8", "replace").rstrip()
    _log_lines.append(line)
    if _on_line is not None:
        _on_line(line)


_CACHE_TYPES = {"f16": api.GGML_TYPE_F16, "q8_0": api.GGML_TYPE_Q8_0, "q4_0": api.GGML_TYPE_Q4_0}


class EngineError(Exception):
    """llama.cpp said no."""


def start() -> dict[str, object]:
    """Initialise the runtime once per process and describe it: what it uses, what it could."""
    api.llama_log_set(_log, ctypes.c_void_p(0))
    api.llama_backend_init()
    return {
        "system_info": api.llama_print_system_info().decode().strip(),
        "gpu_offload": bool(api.llama_supports_gpu_offload()),
    }


def isa() -> str:
    """Name the instruction sets and kernels that this build computes with on the CPU.

    Logits are the same to the bit only within such a class.
    """
    text = api.llama_print_system_info().decode()
    flags = (flag.split("=") for flag in text.partition(":")[2].split("|") if "=" in flag)
    chosen = [(name.strip(), value.strip()) for name, value in flags]
    return " ".join(
        name if value == "1" else f"{name}={value}" for name, value in chosen if value != "0"
    )


def _set(struct: Any, **values: object) -> None:
    # ctypes accepts unknown fields silently, so a renamed parameter would change nothing.
    fields = {field[0] for field in struct._fields_}
    for name, value in values.items():
        if name not in fields:
            raise EngineError(f"this llama-cpp-python has no parameter {name}")
        setattr(struct, name, value)


def buffers(since: int = 0) -> dict[str, float]:
    """Sum llama.cpp's own buffer lines by purpose, in MiB, from log line ``since`` on."""
    sums: dict[str, float] = {}
    for line in _log_lines[since:]:
        if match := BUFFER_LINE.search(line):
            sums[match[2]] = sums.get(match[2], 0.0) + float(match[3])
    return sums


def buffers_by_place(since: int = 0) -> dict[tuple[str, str], float]:
    """Sum llama.cpp's own buffer lines by (place, purpose), in MiB: ("CPU_REPACK", "model")."""
    sums: dict[tuple[str, str], float] = {}
    for line in _log_lines[since:]:
        if match := BUFFER_LINE.search(line):
            sums[match[1], match[2]] = sums.get((match[1], match[2]), 0.0) + float(match[3])
    return sums


def reserved(since: int) -> dict[str, float]:
    """Sum what a context that allocates nothing would take, by purpose, in MiB.

    Raises:
        EngineError: The runtime did not say.
    """
    told = buffers(since)
    sizes = {name: told[name] for name in ("compute", "output") if name in told}
    caches = [float(match[1]) for line in _log_lines[since:] if (match := CACHE_LINE.search(line))]
    if "compute" not in sizes or not caches:
        raise EngineError("this build of llama.cpp does not tell what it reserves")
    return sizes | {"kv": sum(caches)}


def log_position() -> int:
    """Return the number of log lines so far, to read those that follow."""
    return len(_log_lines)


def last_error() -> str:
    """Return the last log line that reads like an error, for messages."""
    for line in reversed(_log_lines):
        if "error" in line.lower() or "failed" in line.lower():
            return line.strip()
    return "llama.cpp gave no reason"


class Model:
    """A loaded model and its vocabulary."""

    def __init__(self, pointer: Any) -> None:
        self.pointer = pointer
        self.vocab = api.llama_model_get_vocab(pointer)
        self.n_vocab = int(api.llama_vocab_n_tokens(self.vocab))
        self.adds_bos = bool(api.llama_vocab_get_add_bos(self.vocab))
        self.bos = int(api.llama_vocab_bos(self.vocab))
        self.tensor_bytes = int(api.llama_model_size(pointer))
        self.n_ctx_train = int(api.llama_model_n_ctx_train(pointer))

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Turn text into token ids; ``special`` adds BOS and EOS as the model wants."""
        data = text.encode()
        size = len(data) + 8
        ids = (api.llama_token * size)()
        count = api.llama_tokenize(self.vocab, data, len(data), ids, size, special, False)
        if count < 0:
            raise EngineError(f"the tokenizer needs {-count} places for {len(data)} bytes")
        return list(ids[:count])

    def text(self, tokens: Sequence[int]) -> str:
        """Turn token ids into text."""
        ids = (api.llama_token * len(tokens))(*tokens)
        size = 64 * (len(tokens) + 1)
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = api.llama_detokenize(self.vocab, ids, len(tokens), buffer, size, False, False)
            if count >= 0:
                return buffer.raw[:count].decode("utf-8", "replace")
            size = -count

    def n_bytes(self, tokens: Sequence[int]) -> int:
        """Count the bytes of text that token ids stand for; control tokens stand for none."""
        buffer = ctypes.create_string_buffer(1024)
        total = 0
        for token in tokens:
            count = api.llama_token_to_piece(self.vocab, int(token), buffer, 1024, 0, False)
            total += abs(count)  # negative: the length of a piece that did not fit
        return total

    @property
    def forks(self) -> bool:
        """Whether what was evaluated of a sequence can be shared, copied and cut anywhere.

        A recurrent state holds the whole past at once, so there is no cutting it.
        """
        return not (
            api.llama_model_is_recurrent(self.pointer) or api.llama_model_is_hybrid(self.pointer)
        )

    def ends(self, token: int) -> bool:
        """Whether the token ends a generation."""
        return bool(api.llama_vocab_is_eog(self.vocab, token))


@contextmanager
def load(
    path: str,
    execution: Execution,
    *,
    check: bool = False,
    dry: bool = False,
    alive: Callable[[float], None] | None = None,
) -> Iterator[Model]:
    """Load a model file. Freed at the end of the block.

    Args:
        path: The file.
        execution: How the runtime executes.
        check: Validate every block.
        dry: Allocate nothing and read no weights: contexts can be sized, not used.
        alive: Hears how far loading is.

    Raises:
        EngineError: llama.cpp refused the file, or did not offload what was asked for.
    """
    if execution.gpu_layers and not api.llama_supports_gpu_offload():
        raise EngineError("this build of llama.cpp has no GPU support, and layers are to be on one")
    log_start = log_position()
    params = api.llama_model_default_params()

    @api.llama_progress_callback  # type: ignore[untyped-decorator,unused-ignore]
    def progress(share: float, _user_data: ctypes.c_void_p) -> bool:
        if alive is not None:
            alive(share)
        return True

    _set(
        params,
        n_gpu_layers=execution.gpu_layers,
        load_mode=api.LLAMA_LOAD_MODE_MMAP if execution.mapped else api.LLAMA_LOAD_MODE_NONE,
        use_extra_bufts=execution.repack,
        check_tensors=check,
        no_alloc=dry,
        progress_callback=progress,
    )
    pointer = api.llama_model_load_from_file(os.fsencode(path), params)
    if not pointer:
        raise EngineError(f"llama.cpp cannot load it: {last_error()}")
    try:
        if execution.gpu_layers:
            _confirm_offload(execution.gpu_layers, _log_lines[log_start:])
        yield Model(pointer)
    finally:
        api.llama_model_free(pointer)


def _confirm_offload(wanted: int, lines: Sequence[str]) -> None:
    """Compare what llama.cpp says that it offloaded with what was asked for.

    Raises:
        EngineError: Less is on a GPU: what follows would be measured on the CPU.
    """
    offloaded = on_gpu = 0
    most = wanted
    for line in lines:
        if match := OFFLOAD_LINE.search(line):
            offloaded, most = int(match[1]), int(match[2])
        if (match := BUFFER_LINE.search(line)) and match[2] == "model":
            on_gpu += (
                float(match[3]) > 0
                and not match[1].startswith("CPU")
                and (not match[1].endswith("_Host"))
            )
    if offloaded < min(wanted, most) or not on_gpu:
        raise EngineError(
            f"{min(wanted, most)} layers were to be on the GPU, llama.cpp put {offloaded} there"
            f" and {on_gpu or 'no'} buffer of weights"
        )


class Context:
    """A context, and the only way tokens are fed to it: to its one sequence, or to one of many."""

    def __init__(self, model: Model, pointer: Any, n_ubatch: int, sequences: int = 1) -> None:
        self.model = model
        self.pointer = pointer
        self.n_ubatch = n_ubatch
        self._memory = api.llama_get_memory(pointer)
        self._batch = api.llama_batch_init(n_ubatch, 0, sequences)
        for i in range(n_ubatch):
            self._batch.n_seq_id[i] = 1
            self._batch.seq_id[i][0] = 0

    def clear(self) -> None:
        """Forget every token."""
        api.llama_memory_clear(self._memory, True)

    def copy(self, source: int, target: int, length: int) -> None:
        """Let the sequence ``target`` have the first ``length`` tokens of ``source`` as well."""
        api.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def forget(self, sequence: int) -> None:
        """Forget a sequence; what it shares with others stays theirs."""
        api.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def feed(self, tokens: Sequence[int], start: int, logits_from: int | None = None) -> None:
        """Decode ``tokens`` (at most a micro-batch) at positions from ``start`` on, and wait.

        Logits are kept for tokens whose index is at least ``logits_from``; None keeps none but
        the last, which llama.cpp wants.
        """
        first = len(tokens) - 1 if logits_from is None else logits_from
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = start + i
            batch.logits[i] = i >= first
        self._decode()

    def feed_many(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        sequences: Sequence[Sequence[int]],
        wants: Sequence[bool],
    ) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """Decode tokens (at most a micro-batch) of several sequences, and wait.

        Args:
            tokens: The tokens; those of one sequence in the order of their positions.
            positions: The position of each in all of its sequences.
            sequences: The sequences that each belongs to; they have the same tokens before it.
            wants: Whether the logits after it are wanted.

        Returns:
            A view, not a copy, of the logits that are wanted, in the order of the tokens.
        """
        batch, rows = self._batch, sum(wants)
        batch.n_tokens = len(tokens)
        for i, (token, position, owners) in enumerate(
            zip(tokens, positions, sequences, strict=True)
        ):
            batch.token[i] = token
            batch.pos[i] = position
            batch.logits[i] = wants[i]
            batch.n_seq_id[i] = len(owners)
            for k, owner in enumerate(owners):
                batch.seq_id[i][k] = owner
        # llama.cpp wants to compute the logits of at least one.
        batch.logits[len(tokens) - 1] = wants[-1] or not rows
        try:
            self._decode()
        finally:
            for i in range(len(tokens)):  # as ``feed`` expects it
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = 0
        return self.logits(rows or 1)[:rows]

    def _decode(self) -> None:
        status = api.llama_decode(self.pointer, self._batch)
        api.llama_synchronize(self.pointer)
        if status != 0:
            raise EngineError(f"llama_decode returned {status}: {last_error()}")

    def logits(self, rows: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """View the logits of the last ``feed``: (rows, n_vocab) float32, not a copy."""
        pointer = api.llama_get_logits(self.pointer)
        return np.ctypeslib.as_array(pointer, shape=(rows, self.model.n_vocab))

    def free(self) -> None:
        """Give the native memory back."""
        api.llama_batch_free(self._batch)
        api.llama_free(self.pointer)


@contextmanager
def context(
    model: Model, execution: Execution, on_node: Any = None, *, sequences: int = 1
) -> Iterator[Context]:
    """Make a context; freed at the end of the block.

    Args:
        model: The model.
        execution: How the runtime executes; several sequences share its ``n_ctx`` tokens.
        on_node: A ``ggml_backend_sched_eval_callback``, called for each node of the graph.
        sequences: How many sequences it holds, numbered from 0.

    Raises:
        EngineError: llama.cpp could not make it.
    """
    params = api.llama_context_default_params()
    # Without room for a token of each sequence, llama.cpp does not refuse but abort.
    n_ubatch = max(execution.n_ubatch, sequences)
    _set(
        params,
        n_ctx=execution.n_ctx,
        n_batch=n_ubatch,
        n_ubatch=n_ubatch,
        n_seq_max=sequences,
        n_threads=execution.threads,
        n_threads_batch=execution.threads,
        type_k=_CACHE_TYPES[execution.type_k],
        type_v=_CACHE_TYPES[execution.type_v],
        flash_attn_type=(
            api.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if execution.flash_attention
            else api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        ),
        # Without layers on it, a GPU must not help either: llama.cpp's defaults would let it.
        offload_kqv=execution.gpu_layers > 0,
        op_offload=execution.gpu_layers > 0,
    )
    if on_node is not None:
        _set(params, cb_eval=on_node)
    if sequences > 1:
        # One buffer for all: tokens can belong to several, and a long one can take what it needs.
        _set(params, kv_unified=True)
    pointer = api.llama_init_from_model(model.pointer, params)
    if not pointer:
        raise EngineError(f"llama.cpp cannot make a context: {last_error()}")
    made = Context(model, pointer, n_ubatch, sequences)
    try:
        yield made
    finally:
        made.free()


def quantize(
    source: str,
    target: str,
    file_type: int,
    threads: int,
    on_line: Callable[[str], None],
    *,
    importance: Mapping[str, np.ndarray[tuple[int], np.dtype[np.float32]]] | None = None,
    pure: bool = False,
) -> None:
    """Quantize a file; ``on_line`` sees every log line, one or more per tensor.

    A source that is quantized already is requantized: the caller says so in the provenance.
    ``importance`` weighs the columns of each matrix, float32 by tensor name. ``pure`` gives every
    matrix the file type's base type, where its rows allow it.

    Raises:
        EngineError: llama.cpp refused; the message holds its last error.
    """
    global _on_line  # noqa: PLW0603  (the C callback has no other way to reach the caller)
    params = api.llama_model_quantize_default_params()
    _set(params, ftype=file_type, nthread=threads, allow_requantize=True, pure=pure)
    if importance:
        # An array that ends with a nameless entry; it lives until the call has returned.
        entries = (api.llama_model_imatrix_data * (len(importance) + 1))()
        for entry, (name, values) in zip(entries, importance.items(), strict=False):
            data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            _set(entry, name=name.encode(), data=data, size=values.size)
        _set(params, imatrix=entries)
    _on_line = on_line
    try:
        status = api.llama_model_quantize(
            os.fsencode(source), os.fsencode(target), ctypes.byref(params)
        )
    finally:
        _on_line = None
    if status != 0:
        raise EngineError(f"llama_model_quantize returned {status}: {last_error()}")
