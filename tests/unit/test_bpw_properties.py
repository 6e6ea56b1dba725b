"""What holds of the accounting for every model, stated without its own tables and names.

Each property is a plain function over what a strategy yields; ``PROPERTIES`` names them all, so
that ``test_bpw_mutants`` can ask each of them about a broken accountant.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gguf
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_ondevice import bpw, strategies
from pytest_ondevice.bpw import Kind, Tally
from pytest_ondevice.formats.gguf import read_header, read_model
from pytest_ondevice.model.artifact import TensorInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pytest_ondevice.strategies import GgufFile

Table = tuple[TensorInfo, ...]

# What a block holds, as ggml's structs do: weights, then the bytes of each member. This is not the
# table of the package, which a mutant may have changed.
BLOCKS: dict[str, tuple[int, tuple[int, ...]]] = {
    "F64": (1, (8,)),
    "F32": (1, (4,)),
    "F16": (1, (2,)),
    "BF16": (1, (2,)),
    "I8": (1, (1,)),
    "I16": (1, (2,)),
    "I32": (1, (4,)),
    "I64": (1, (8,)),
    "Q4_0": (32, (2, 16)),  # d, qs
    "Q4_1": (32, (2, 2, 16)),  # d, m, qs
    "Q5_0": (32, (2, 4, 16)),  # d, qh, qs
    "Q5_1": (32, (2, 2, 4, 16)),
    "Q8_0": (32, (2, 32)),
    "Q8_1": (32, (2, 2, 32)),  # d, s, qs
    "Q2_K": (256, (16, 64, 2, 2)),  # scales, qs, d, dmin
    "Q3_K": (256, (32, 64, 12, 2)),  # hmask, qs, scales, d
    "Q4_K": (256, (2, 2, 12, 128)),
    "Q5_K": (256, (2, 2, 12, 32, 128)),
    "Q6_K": (256, (128, 64, 16, 2)),  # ql, qh, scales, d
    "Q8_K": (256, (4, 256, 32)),  # d, qs, bsums
    "IQ1_S": (256, (2, 32, 16)),
    "IQ1_M": (256, (32, 16, 8)),
    "IQ2_XXS": (256, (2, 64)),
    "IQ2_XS": (256, (2, 64, 8)),
    "IQ2_S": (256, (2, 64, 8, 8)),
    "IQ3_XXS": (256, (2, 96)),
    "IQ3_S": (256, (2, 64, 8, 32, 4)),
    "IQ4_NL": (32, (2, 16)),
    "IQ4_XS": (256, (2, 2, 4, 128)),
    "TQ1_0": (256, (48, 4, 2)),
    "TQ2_0": (256, (64, 2)),
    "MXFP4": (32, (1, 16)),
    "NVFP4": (64, (4, 32)),
    "Q1_0": (128, (2, 16)),
    "Q2_0": (64, (2, 16)),
}
FLOATS = {"F64", "F32", "F16", "BF16"}
INTEGERS = {"I8", "I16", "I32", "I64"}
NO_GGUF_PY = {"Q8_1", "Q1_0", "Q2_0"}
"""Types that gguf 0.19 does not know, or has the wrong size for."""


def bits(type_name: str) -> Fraction:
    weights, members = BLOCKS[type_name]
    return Fraction(8 * sum(members), weights)


def size(tensor: TensorInfo) -> int:
    """Bytes of a tensor, row by row."""
    row, *rows = tensor.shape
    weights, members = BLOCKS[tensor.type]
    return math.prod(rows) * (row // weights) * sum(members)


def counts(tensor: TensorInfo) -> bool:
    """Whether a tensor of one of our tables holds weights."""
    return tensor.type not in INTEGERS and "rope_" not in tensor.name


def tally(tensors: Iterable[TensorInfo]) -> Tally:
    """What tensors take, without the package's counting."""
    counted = [one for one in tensors if counts(one)]
    return Tally(
        len(counted), sum(math.prod(one.shape) for one in counted), sum(map(size, counted))
    )


def layer(tensor: TensorInfo) -> int | None:
    first, *rest = tensor.name.split(".")
    return int(rest[0]) if first == "blk" else None


def plus(*tallies: Tally) -> Tally:
    return Tally(*map(sum, zip(*tallies, strict=True)))


def retyped(tensor: TensorInfo, type_name: str) -> TensorInfo:
    return msgspec.structs.replace(tensor, type=type_name)


# -- the properties


def bytes_are_blocks(tensor: TensorInfo) -> None:
    """Bytes of a tensor are its blocks, each with all its members, scales included."""
    weights, members = BLOCKS[tensor.type]
    assert Fraction(tensor.n_bytes, sum(members)) == Fraction(math.prod(tensor.shape), weights)
    assert tensor.n_bytes == size(tensor)


def exact(tensors: Table) -> None:
    """Effective BPW is a fraction of whole bytes and weights, with no float in between."""
    result, expected = bpw.account(tensors), tally(tensors)
    assert result.total == expected
    assert result.effective == Fraction(8 * expected.n_bytes, expected.n_weights)
    assert result.total.bpw == result.effective
    assert (result.n_weights, result.n_bytes) == expected[1:]
    assert result.effective_bpw == float(result.effective)
    assert plus(Tally(), *result.by_tensor.values()) == result.total


def additive(pair: tuple[Table, Table]) -> None:
    """Two sets of tensors take what each takes."""
    both, first, second = (bpw.account(part) for part in (pair[0] + pair[1], *pair))
    assert both.total == plus(first.total, second.total)
    assert both.not_counted == plus(first.not_counted, second.not_counted)
    for kind in Kind:
        assert both.kinds[kind] == plus(first.kinds[kind], second.kinds[kind])
    for name in {*both.histogram, *first.histogram, *second.histogram}:
        parts = (one.histogram.get(name, Tally()) for one in (first, second))
        assert both.histogram[name] == plus(*parts)


def additive_over_layers(tensors: Table) -> None:
    """The body is the sum of its layers, however many there are."""
    layers: dict[int, list[TensorInfo]] = defaultdict(list)
    for one in tensors:
        number = layer(one)
        if number is not None:
            layers[number].append(one)
    whole = bpw.account(tensors)
    counted = {number: part for number, part in layers.items() if any(map(counts, part))}
    assert whole.by_layer == {number: tally(part) for number, part in counted.items()}
    parts = [bpw.account(part) for part in counted.values()]
    assert whole.kinds[Kind.BODY] == plus(Tally(), *(part.total for part in parts))
    assert all(part.kinds[Kind.BODY] == part.total for part in parts)
    expected = tally(one for part in layers.values() for one in part)
    assert whole.body == (expected.bpw if expected.n_weights else None)


def additive_over_shards(parts: tuple[GgufFile, ...]) -> None:
    """The parts of a split model take together what the joined model takes."""
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, part in enumerate(parts, 1):
            path = Path(folder, f"m-{number:05}-of-{len(parts):05}.gguf")
            path.write_bytes(part.content)
            paths.append(path)
        joined = read_model(paths)
        alone = [read_header(path).tensors for path in paths]
    shards = [bpw.account(part) for part in alone if any(map(counts, part))]
    assert bpw.account(joined.tensors).total == plus(*(shard.total for shard in shards))


def order_does_not_matter(orders: tuple[Table, list[TensorInfo]]) -> None:
    """A file's order of tensors changes nothing."""
    assert bpw.account(orders[0]) == bpw.account(orders[1])


def names_do_not_matter(renamed: tuple[Table, int]) -> None:
    """Layers may be renumbered, and what is in them called anything."""
    tensors, step = renamed
    new = [
        one
        if layer(one) is None
        else msgspec.structs.replace(one, name=f"blk.{(layer(one) or 0) + step}.t{number}.weight")
        for number, one in enumerate(tensors)
    ]
    before, after = bpw.account(tensors), bpw.account(new)
    assert (after.total, after.kinds, after.histogram) == (
        before.total,
        before.kinds,
        before.histogram,
    )
    assert after.not_counted == before.not_counted
    assert after.float_matrix_share == before.float_matrix_share
    assert after.by_layer == {key + step: part for key, part in before.by_layer.items()}


def within_bounds(tensors: Table) -> None:
    """Effective BPW is between that of the smallest and that of the largest type."""
    found = [bits(one.type) for one in tensors if counts(one)]
    assert min(found) <= bpw.account(tensors).effective <= max(found)


def monotone(change: tuple[Table, int, str]) -> None:
    """A tensor of a type with more bits never makes the model smaller, nor one with fewer."""
    tensors, number, type_name = change
    candidates = [one for one in tensors if counts(one)]
    old = candidates[number % len(candidates)]
    if old.shape[0] % BLOCKS[type_name][0]:
        return
    new = [retyped(one, type_name) if one is old else one for one in tensors]
    before, after = bpw.account(tensors).effective, bpw.account(new).effective
    grown = bits(type_name) - bits(old.type)
    assert (after > before) - (after < before) == (grown > 0) - (grown < 0)


def untied_adds_the_output(tensors: Table) -> None:
    """An output matrix of its own adds its weights and bytes; a tied one none."""
    rest = [one for one in tensors if one.name != strategies.OUTPUT]
    embedding = rest[0]
    output = msgspec.structs.replace(embedding, name=strategies.OUTPUT)
    tied, untied = bpw.account(rest), bpw.account([*rest, output])
    matrix = Tally(1, math.prod(embedding.shape), size(embedding))
    assert untied.total == plus(tied.total, matrix)
    assert tied.kinds[Kind.EMBEDDING] == untied.kinds[Kind.EMBEDDING] == matrix
    assert untied.kinds[Kind.OUTPUT] == matrix
    assert tied.kinds[Kind.OUTPUT] == Tally()


def each_tensor_in_its_part(tensors: Table) -> None:
    """Embedding, output, norm and layers are told apart; what is outside layers is no body."""
    around = {
        strategies.EMBEDDING: Kind.EMBEDDING,
        strategies.OUTPUT: Kind.OUTPUT,
        strategies.NORM: Kind.NORM,
    }
    parts: dict[Kind, list[TensorInfo]] = {kind: [] for kind in Kind}
    for one in filter(counts, tensors):
        parts[around.get(one.name, Kind.BODY)].append(one)
    assert bpw.account(tensors).kinds == {kind: tally(part) for kind, part in parts.items()}


def each_type_by_its_name(tensors: Table) -> None:
    """The histogram has the types that occur, each alone."""
    types: dict[str, list[TensorInfo]] = defaultdict(list)
    for one in filter(counts, tensors):
        types[one.type].append(one)
    assert bpw.account(tensors).histogram == {name: tally(part) for name, part in types.items()}


def share_of_floats_is_by_weights(tensors: Table) -> None:
    """The share of float matrices is of weights, in the layers, of tensors with several rows."""
    weights: Counter[bool] = Counter()
    for one in filter(counts, tensors):
        if layer(one) is not None and math.prod(one.shape[1:]) > 1:
            weights[one.type in FLOATS] += math.prod(one.shape)
    expected = Fraction(weights[True], weights.total()) if weights else None
    assert bpw.account(tensors).float_matrix_share == expected


def tables_and_indices_do_not_count(extended: tuple[Table, Table]) -> None:
    """Rotary tables and integers are beside the weights, in any number."""
    tensors, extra = extended
    before, after = bpw.account(tensors), bpw.account(tensors + extra)
    assert after.total == before.total
    assert after.effective == before.effective
    n_weights = sum(math.prod(one.shape) for one in extra)
    more = Tally(len(extra), n_weights, sum(map(size, extra)))
    assert after.not_counted == plus(before.not_counted, more)


def gguf_py_agrees(tensors: Table) -> None:
    """What the gguf package writes is read back to the same number, by its sizes too."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.gguf")
        writer = gguf.GGUFWriter(path, "llama")
        theirs = 0
        for one in tensors:
            quant = gguf.GGMLQuantizationType[one.type]
            shape = gguf.quant_shape_to_byte_shape(one.shape[::-1], quant)
            theirs += math.prod(shape) if counts(one) else 0
            writer.add_tensor(one.name, np.zeros(shape, np.uint8), raw_dtype=quant)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        header = read_header(path)
    assert bpw.account(header.tensors) == bpw.account(tensors)
    assert bpw.account(header.tensors).n_bytes == theirs


def files_hold_what_is_counted(file: GgufFile) -> None:
    """All bytes behind a header are weights, what does not count, or padding below alignment."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.gguf")
        path.write_bytes(file.content)
        header = read_header(path)
    assert header.tensors == file.tensors
    result = bpw.account(header.tensors)
    unpadded = result.n_bytes + result.not_counted.n_bytes
    padding = header.file_size - header.data_offset - unpadded
    assert padding == sum(-size(one) % file.alignment for one in file.tensors[:-1])


class Property(NamedTuple):
    """A property and what it is asked about."""

    check: Callable[[Any], None]
    examples: st.SearchStrategy[Any]
    share: float = 1.0
    """Of the examples that others get: less where one takes long."""


TABLES = strategies.tensor_tables()
SMALL = strategies.tensor_tables(max_layers=2, max_blocks=1, max_weights=1024)
HUGE = st.lists(
    strategies.tensors(
        names=st.sampled_from(["token_embd.weight", "blk.0.ffn_up.weight", "blk.10.ffn_up.weight"]),
        types=sorted(set(BLOCKS) - INTEGERS),
        max_blocks=2**10,
        max_rows=2**20,
    ),
    min_size=1,
    max_size=9,
).map(tuple)
NO_WEIGHTS = st.lists(
    strategies.tensors(types=sorted(INTEGERS))
    | strategies.tensors(
        types=["F32"],
        names=st.sampled_from(["rope_freqs.weight", "rope_factors_long.weight"]),
    ),
    max_size=4,
).map(tuple)
WRITABLE = strategies.tensor_tables(
    types=sorted(set(BLOCKS) - INTEGERS - NO_GGUF_PY),
    max_layers=2,
    max_blocks=1,
    max_weights=1024,
)

PROPERTIES: dict[str, Property] = {
    "bytes_are_blocks": Property(bytes_are_blocks, strategies.tensors()),
    "exact": Property(exact, TABLES | HUGE),
    "additive": Property(additive, st.tuples(TABLES, TABLES)),
    "additive_over_layers": Property(additive_over_layers, TABLES),
    "additive_over_shards": Property(additive_over_shards, strategies.split_gguf_files(), 0.3),
    "order_does_not_matter": Property(
        order_does_not_matter,
        SMALL.flatmap(lambda table: st.tuples(st.just(table), st.permutations(table))),
    ),
    "names_do_not_matter": Property(names_do_not_matter, st.tuples(TABLES, st.integers(0, 99))),
    "within_bounds": Property(within_bounds, TABLES),
    "monotone": Property(
        monotone,
        st.tuples(TABLES, st.integers(0, 99), st.sampled_from(sorted(set(BLOCKS) - INTEGERS))),
    ),
    "untied_adds_the_output": Property(untied_adds_the_output, TABLES),
    "each_tensor_in_its_part": Property(each_tensor_in_its_part, TABLES),
    "each_type_by_its_name": Property(each_type_by_its_name, TABLES),
    "share_of_floats_is_by_weights": Property(share_of_floats_is_by_weights, TABLES),
    "tables_and_indices_do_not_count": Property(
        tables_and_indices_do_not_count, st.tuples(TABLES, NO_WEIGHTS)
    ),
    "gguf_py_agrees": Property(gguf_py_agrees, WRITABLE, 0.2),
    "files_hold_what_is_counted": Property(
        files_hold_what_is_counted, strategies.gguf_files(), 0.5
    ),
}


def ask(name: str, max_examples: int, **more: Any) -> None:
    """Ask a property about examples; raises what the property raises."""
    check, examples, share = PROPERTIES[name]

    def asked(example: Any) -> None:
        check(example)

    limits = settings(
        max_examples=max(1, round(share * max_examples)),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        **more,
    )
    limits(given(examples)(asked))()


@pytest.mark.parametrize("name", PROPERTIES)
def test_property(name: str) -> None:
    ask(name, 150)


def test_every_type_has_its_block_here() -> None:
    assert set(BLOCKS) == {quant.name for quant in strategies.QUANT_TYPES.values()}


def test_models_of_2_to_the_40_weights_occur() -> None:
    from hypothesis import find

    large = find(
        HUGE,
        lambda table: sum(one.n_weights for one in table) >= 2**40,
        settings=settings(database=None, derandomize=True),
    )
    exact(large)
