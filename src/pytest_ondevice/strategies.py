"""Hypothesis strategies for code that quantizes: tensors, models and GGUF files that could exist.

For tests of writers, readers, planners and accountants of quantized models, in any project. All
that is drawn is valid: rows are whole blocks, offsets are contiguous, a file can be read. All of it
shrinks towards one F32 tensor of one weight, so that a falsifying example shows the fault and
little else. Needs hypothesis (``pip install pytest-ondevice[strategies]``); no other module of the
package imports this one.

What is drawn is small, thus a test can afford to write it to disk; arguments make it large.
"""

from __future__ import annotations

import operator
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from hypothesis import strategies as st

from .model.artifact import MAX_DIMS, MAX_INT64, Scalar, TensorInfo
from .model.catalog import Dimensions
from .model.quant_types import QUANT_TYPES, QuantType

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from hypothesis.strategies import SearchStrategy

ALIGNMENT = 32
"""What a GGUF file pads each tensor to if it does not say otherwise."""

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
"""Architectures of which the tensors follow from ``Dimensions``."""

EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"
NORM = "output_norm.weight"
ROPE_TABLE = "rope_freqs.weight"

Plain = Scalar | tuple[Scalar, ...]
"""A value of a file's metadata: a scalar or an array."""

Metadata = dict[str, tuple[str, Plain]]
"""Keys to a GGUF type (``u32``, ``str``, ...; of an array, that of its elements) and a value."""


# -- types and single tensors


def quant_types(*, integers: bool = True) -> SearchStrategy[QuantType]:
    """Yield the tensor types of GGUF files.

    Shrinks towards the type with the lowest id: F32, then F16, then Q4_0.

    Args:
        integers: Yield the types of indices too (I8 to I64), which are no weights.
    """
    return st.sampled_from(_chosen(None, integers=integers))


def tensor_names(*, arbitrary: bool = True) -> SearchStrategy[str]:
    """Yield names of tensors: those of a transformer in llama.cpp's spelling, or anything.

    Shrinks towards ``token_embd.weight``.

    Args:
        arbitrary: Yield any text too that fits into a file: up to 63 bytes of UTF-8, no NUL.
    """
    around = st.sampled_from([EMBEDDING, OUTPUT, NORM, ROPE_TABLE])
    in_layers = st.builds(
        "blk.{}.{}".format, st.integers(0, 99), st.sampled_from([part.name for part in _LAYER])
    )
    if not arbitrary:
        return around | in_layers
    characters = st.characters(codec="utf-8", exclude_characters="\0")
    return around | in_layers | st.text(characters, min_size=1, max_size=15)


def tensors(
    *,
    names: SearchStrategy[str] | None = None,
    types: Collection[str] | None = None,
    max_blocks: int = 8,
    max_rows: int = 8,
) -> SearchStrategy[TensorInfo]:
    """Yield single tensors, each the first of its file: of any name and type, with any shape.

    Rows are whole blocks of the type; there are one to four dimensions. Shrinks towards a vector
    of one block of the first type: by default one weight of F32.

    Args:
        names: What they are called, ``tensor_names()`` by default.
        types: Names of the types to draw from; all by default.
        max_blocks: Most blocks in a row.
        max_rows: Longest dimension behind the first. However long, a tensor never has more bytes
            than ggml can count.
    """

    def tensor(name: str, quant: QuantType, blocks: int, rows: list[int]) -> TensorInfo:
        shape = [quant.block_size * blocks]
        room = MAX_INT64 // (8 * shape[0])  # no type takes more than 8 bytes for a weight
        for length in rows:
            shape.append(max(1, min(length, room)))
            room //= shape[-1]
        return TensorInfo(name=name, shape=tuple(shape), type=quant.name, offset=0)

    drawn = st.tuples(
        tensor_names() if names is None else names,
        st.sampled_from(_chosen(types)),
        st.integers(1, max_blocks),
        st.lists(st.integers(1, max_rows), max_size=MAX_DIMS - 1),
    )
    # Not st.builds, whose examples are shown as calls of the function inside.
    return drawn.map(lambda parts: tensor(*parts))


# -- whole models


def dimensions(
    *,
    architectures: Collection[str] = ARCHITECTURES,
    max_layers: int = 4,
    max_blocks: int = 4,
) -> SearchStrategy[Dimensions]:
    """Yield the dimensions of small transformers, from which their tensor tables follow.

    Rows are multiples of one block size or another, thus not every type fits every matrix; query
    heads are a multiple of key heads. Shrinks towards one layer of llama with a hidden state of
    one, one head of two and one token, embedding and output tied.

    Args:
        architectures: llama.cpp's names of those to draw from.
        max_layers: Most layers.
        max_blocks: Most blocks in a row.
    """
    sizes = sorted({quant.block_size for quant in QUANT_TYPES.values()})
    rows = st.builds(operator.mul, st.sampled_from(sizes), st.integers(1, max_blocks))
    group = st.tuples(st.integers(1, 4), st.integers(1, 4))
    return group.flatmap(
        lambda heads: st.builds(
            Dimensions,
            architecture=st.sampled_from(list(architectures)),
            layers=st.integers(1, max_layers),
            hidden=rows,
            heads=st.just(heads[0] * heads[1]),
            kv_heads=st.just(heads[0]),
            head_size=st.integers(1, 64).map(lambda half: 2 * half),
            feed_forward=rows,
            vocabulary=st.integers(1, 99),
            tied=st.booleans().map(operator.not_),
            rope_factors=st.booleans(),
        )
    )


class _Part(NamedTuple):
    """A tensor of a layer: its dimensions by name, and a type where there is no choice."""

    name: str
    shape: tuple[str, ...]
    type: str = ""


_LAYER = (
    _Part("ffn_up.weight", ("hidden", "inner")),
    _Part("ffn_down.weight", ("inner", "hidden")),
    _Part("ffn_gate.weight", ("hidden", "inner")),
    _Part("ffn_norm.weight", ("hidden",), "F32"),
    _Part("attn_q.weight", ("hidden", "queries")),
    _Part("attn_k.weight", ("hidden", "queries")),
    _Part("attn_v.weight", ("hidden", "queries")),
    _Part("attn_output.weight", ("queries", "hidden")),
    _Part("attn_norm.weight", ("hidden",), "F32"),
    _Part("attn_q.bias", ("queries",), "F32"),
    _Part("ffn_up_exps.weight", ("hidden", "inner", "experts")),
    _Part("ffn_gate_tid2eid.weight", ("experts", "vocabulary"), "I32"),  # indices
)


class _Mix(NamedTuple):
    """Numbers of types: the one in the first layers, how many these are, the one behind them."""

    usual: int
    first: int
    n_first: int


class _Choices(NamedTuple):
    """All that is drawn for a table.

    Types are drawn as numbers and lengths as they come, and made to fit when the table is built.
    So all tables take the same draws, without which hypothesis shrinks poorly.
    """

    hidden: tuple[int, int]  # block size and number of blocks
    inner: tuple[int, int]
    queries: tuple[int, int]
    vocabulary: int
    experts: int
    embedding: int
    output: int | None
    norm: bool
    rope: bool
    layers: int
    parts: tuple[_Mix | None, ...]  # for each of _LAYER, None where layers have none


def tensor_tables(
    *,
    types: Collection[str] | None = None,
    max_layers: int = 12,
    max_blocks: int = 2,
    max_weights: int = 2**16,
    alignment: int = ALIGNMENT,
) -> SearchStrategy[tuple[TensorInfo, ...]]:
    """Yield the tensors of whole models, in a file's order and with a file's offsets.

    A model has an embedding; it may have an output matrix of its own (else the two are tied), a
    norm before it, a table of rotary frequencies and repeating layers. All layers have the same
    tensors, any of those that transformers have: matrices, norms, biases, stacks of experts,
    indices of experts. A matrix may have one type in the first layers and another in those behind,
    like llama.cpp's mixes; vectors have F32.

    Shrinks towards a tied embedding of one row and nothing else: by default one weight of F32.

    Args:
        types: Names of the matrices' types; all but integers by default.
        max_layers: Most layers.
        max_blocks: Most blocks in a row.
        max_weights: About how many weights a layer's matrix has at most; one block squared is
            always possible.
        alignment: What each tensor is padded to.
    """
    chosen = _chosen(types, integers=False)
    sizes = sorted({quant.block_size for quant in chosen})
    length = st.tuples(st.sampled_from(sizes), st.integers(1, max_blocks))
    number = st.integers(0, len(chosen) - 1)
    mix = st.builds(_Mix, number, number, st.integers(0, max_layers))
    choices = st.builds(
        _Choices,
        hidden=length,
        inner=length,
        queries=length,
        vocabulary=st.integers(1, 9),
        experts=st.integers(1, 3),
        embedding=number,
        output=st.none() | number,
        norm=st.booleans(),
        rope=st.booleans(),
        layers=st.integers(0, max_layers),
        parts=st.tuples(*[st.none() | mix] * len(_LAYER)),
    )
    return choices.map(lambda drawn: laid_out(_table(drawn, chosen, max_weights), alignment))


def _table(drawn: _Choices, types: list[QuantType], max_weights: int) -> list[TensorInfo]:
    """Build a table without offsets."""
    smallest = min(quant.block_size for quant in types)
    hidden = drawn.hidden[0] * drawn.hidden[1]

    def fit(size: int, count: int) -> int:
        size = size if size * hidden <= max_weights else smallest
        return size * min(count, max(1, max_weights // (hidden * size)))

    lengths = {
        "hidden": hidden,
        "inner": fit(*drawn.inner),
        "queries": fit(*drawn.queries),
        "vocabulary": drawn.vocabulary,
        "experts": drawn.experts,
    }
    table: list[TensorInfo] = []

    def add(name: str, shape: tuple[str, ...], quant: str | int) -> None:
        dims = tuple(lengths[length] for length in shape)
        if isinstance(quant, int):
            fitting = [one.name for one in types if dims[0] % one.block_size == 0]
            quant = fitting[quant % len(fitting)]
        table.append(TensorInfo(name=name, shape=dims, type=quant, offset=0))

    add(EMBEDDING, ("hidden", "vocabulary"), drawn.embedding)
    if drawn.output is not None:
        add(OUTPUT, ("hidden", "vocabulary"), drawn.output)
    if drawn.norm:
        add(NORM, ("hidden",), "F32")
    if drawn.rope:
        add(ROPE_TABLE, ("queries",), "F32")
    for layer in range(drawn.layers):
        for (name, shape, fixed), mix in zip(_LAYER, drawn.parts, strict=True):
            if mix is not None:
                number = mix.first if layer < mix.n_first else mix.usual
                add(f"blk.{layer}.{name}", shape, fixed or number)
    return table


def laid_out(tensors: Iterable[TensorInfo], alignment: int = ALIGNMENT) -> tuple[TensorInfo, ...]:
    """Give tensors the offsets that they have in a file of their own, one behind the other."""
    placed: list[TensorInfo] = []
    offset = 0
    for one in tensors:
        placed.append(TensorInfo(name=one.name, shape=one.shape, type=one.type, offset=offset))
        offset += one.n_bytes + -one.n_bytes % alignment
    return tuple(placed)


# -- files


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a GGUF file says, and its bytes.

    Attributes:
        tensors: Its tensors, with their offsets.
        metadata: Keys to a type and a value, which is a tuple in an array.
        version: 3 or 2, which look the same.
    """

    tensors: tuple[TensorInfo, ...]
    metadata: Mapping[str, tuple[str, Plain]]
    version: int = 3

    @property
    def alignment(self) -> int:
        """What each offset is a multiple of."""
        _, value = self.metadata.get("general.alignment", ("u32", ALIGNMENT))
        return int(value) if isinstance(value, int) else ALIGNMENT

    @property
    def values(self) -> dict[str, Plain]:
        """The metadata without their types."""
        return {key: value for key, (_, value) in self.metadata.items()}

    @property
    def header(self) -> bytes:
        """All before the data, without the padding."""
        counts = struct.pack("<IQQ", self.version, len(self.tensors), len(self.metadata))
        keys = (
            _string(key) + _value(type_name, value)
            for key, (type_name, value) in self.metadata.items()
        )
        return b"".join((b"GGUF", counts, *keys, *map(_tensor, self.tensors)))

    @property
    def content(self) -> bytes:
        """The whole file, little-endian.

        Each byte of a tensor is the tensor's number, counted from 1 and modulo 256, thus reading
        from a wrong place shows; padding is 0, and there is none behind the last tensor.
        """
        content = bytearray(self.header)
        if self.tensors:
            content += bytes(-len(content) % self.alignment)
        start = len(content)
        for number, one in enumerate(self.tensors, 1):
            content += bytes(start + one.offset - len(content))
            content += bytes([number % 256]) * one.n_bytes
        return bytes(content)


def gguf_files(
    *,
    tables: SearchStrategy[tuple[TensorInfo, ...]] | None = None,
    alignments: Collection[int] = (ALIGNMENT, 8, 64, 4096),
) -> SearchStrategy[GgufFile]:
    """Yield valid GGUF files; ``content`` is what to write.

    Metadata hold an architecture, sometimes an alignment, a file type, a tokenizer (tokens, scores,
    token types and merges of matching lengths) and keys of any type, arrays among them. Shrinks
    towards a file of one weight with an architecture and no more.

    Args:
        tables: Their tensors, ``tensor_tables()`` with up to 2 layers of small matrices by default.
            Offsets are given anew. No table may name a tensor twice.
        alignments: What to pad tensors to, the first by preference.
    """
    if tables is None:
        tables = tensor_tables(max_layers=2, max_blocks=1, max_weights=1024)

    nothing: SearchStrategy[Metadata] = st.just({})
    file_type = st.integers(0, 41).map(lambda number: {"general.file_type": ("u32", number)})
    drawn = st.tuples(
        tables,
        st.sampled_from(list(alignments)),
        st.sampled_from(ARCHITECTURES),
        nothing | file_type | _tokenizers(),
        st.dictionaries(_KEYS, _VALUES, max_size=4),
        st.sampled_from([3, 2]),
    )
    return drawn.map(lambda parts: _file(*parts))


def _file(  # noqa: PLR0917  (what is drawn, in its order)
    table: tuple[TensorInfo, ...],
    alignment: int,
    architecture: str,
    known: Metadata,
    others: Metadata,
    version: int,
) -> GgufFile:
    metadata: Metadata = {"general.architecture": ("str", architecture)}
    if alignment != ALIGNMENT:
        metadata["general.alignment"] = ("u32", alignment)
    return GgufFile(laid_out(table, alignment), metadata | known | others, version)


def split_gguf_files(
    *, files: SearchStrategy[GgufFile] | None = None, max_parts: int = 4
) -> SearchStrategy[tuple[GgufFile, ...]]:
    """Yield models of several GGUF files, as llama-gguf-split writes them.

    The first has all metadata and may have no tensors; each says which part it is of how many.
    Shrinks towards two parts, of which the second has the one weight.

    Args:
        files: What is split, ``gguf_files()`` by default; each has a tensor.
        max_parts: Most parts, at least 2. There are never more than tensors and one.
    """
    cuts = st.sets(st.integers(0, 99), min_size=1, max_size=max_parts - 1)
    whole = gguf_files() if files is None else files
    return st.tuples(whole, cuts).map(lambda parts: _split(*parts))


def _split(whole: GgufFile, cuts: set[int]) -> tuple[GgufFile, ...]:
    """Cut a file before the tensors of these numbers, modulo how many there are."""
    count = len(whole.tensors)
    # A cut before tensor 0 leaves the first part without tensors.
    bounds = [*sorted({cut % count for cut in cuts}), count]
    return tuple(
        GgufFile(
            tensors=laid_out(whole.tensors[first:last], whole.alignment),
            metadata=_part_metadata(whole, number, len(bounds)),
            version=whole.version,
        )
        for number, (first, last) in enumerate([(0, bounds[0]), *pairwise(bounds)])
    )


def _part_metadata(whole: GgufFile, number: int, count: int) -> Metadata:
    kept = dict(whole.metadata) if number == 0 else {}
    if whole.alignment != ALIGNMENT:
        kept["general.alignment"] = ("u32", whole.alignment)
    return kept | {
        "split.no": ("u16", number),
        "split.count": ("u16", count),
        "split.tensors.count": ("i32", len(whole.tensors)),
    }


# -- the writer: nothing is checked, for what is drawn is valid

_CODES = {  # GGUF type: (id, struct format)
    "u8": (0, "B"),
    "i8": (1, "b"),
    "u16": (2, "H"),
    "i16": (3, "h"),
    "u32": (4, "I"),
    "i32": (5, "i"),
    "f32": (6, "f"),
    "bool": (7, "?"),
    "str": (8, ""),
    "u64": (10, "Q"),
    "i64": (11, "q"),
    "f64": (12, "d"),
}
_ARRAY = 9
_TYPE_IDS = {quant.name: quant.id for quant in QUANT_TYPES.values()}


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(type_name: str, value: Plain) -> bytes:
    type_id, code = _CODES[type_name]
    start = struct.pack("<I", type_id)
    elements: tuple[Plain, ...] = (value,)
    if isinstance(value, tuple):
        start = struct.pack("<IIQ", _ARRAY, type_id, len(value))
        elements = value
    return start + b"".join(
        struct.pack(f"<{code}", one) if code else _string(str(one)) for one in elements
    )


def _tensor(one: TensorInfo) -> bytes:
    n_dims = len(one.shape)
    rest = struct.pack(f"<I{n_dims}QIQ", n_dims, *one.shape, _TYPE_IDS[one.type], one.offset)
    return _string(one.name) + rest


# -- pieces


def _chosen(names: Collection[str] | None, *, integers: bool = True) -> list[QuantType]:
    """List types by id, which is the order in which examples shrink."""
    unknown = set(names or ()) - set(_TYPE_IDS)
    if unknown:
        raise ValueError(f"unknown tensor types: {', '.join(sorted(unknown))}")
    return [
        quant
        for quant in QUANT_TYPES.values()
        if (quant.name in names if names is not None else integers or not quant.is_integer)
    ]


_TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
# The prefix keeps keys from meaning something to a loader.
_KEYS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).map("x.{}".format)
_SCALARS: Mapping[str, SearchStrategy[Scalar]] = {
    "u8": st.integers(0, 2**8 - 1),
    "i8": st.integers(-(2**7), 2**7 - 1),
    "u16": st.integers(0, 2**16 - 1),
    "i16": st.integers(-(2**15), 2**15 - 1),
    "u32": st.integers(0, 2**32 - 1),
    "i32": st.integers(-(2**31), 2**31 - 1),
    "f32": st.floats(width=32, allow_nan=False),
    "bool": st.booleans(),
    "str": _TEXTS,
    "u64": st.integers(0, 2**64 - 1),
    "i64": st.integers(-(2**63), 2**63 - 1),
    "f64": st.floats(allow_nan=False),
}


def _values_of(type_name: str) -> SearchStrategy[tuple[str, Plain]]:
    scalars = _SCALARS[type_name]
    return st.tuples(st.just(type_name), scalars | st.lists(scalars, max_size=9).map(tuple))


_VALUES = st.sampled_from(list(_SCALARS)).flatmap(_values_of)


def _tokenizers() -> SearchStrategy[Metadata]:
    """Yield the metadata of tokenizers; what is there once for each token has as many elements."""

    def fields(
        model: str, tokens: list[tuple[str, float, int]], kept: set[str], merges: list[str]
    ) -> Metadata:
        texts, scores, kinds = zip(*tokens, strict=True)
        optional: Metadata = {
            "scores": ("f32", scores),
            "token_type": ("i32", kinds),
            "merges": ("str", tuple(merges)),
        }
        found: Metadata = {
            "tokenizer.ggml.model": ("str", model),
            "tokenizer.ggml.tokens": ("str", texts),
        }
        for key in sorted(kept):
            found[f"tokenizer.ggml.{key}"] = optional[key]
        return found

    token = st.tuples(_TEXTS, st.floats(width=32, allow_nan=False), st.integers(1, 6))
    return st.builds(
        fields,
        st.sampled_from(["gpt2", "llama"]),
        st.lists(token, min_size=1, max_size=9, unique_by=operator.itemgetter(0)),
        st.sets(st.sampled_from(["scores", "token_type", "merges"])),
        st.lists(_TEXTS, max_size=4),
    )
