"""What the strategies yield: valid, varied, and simple once shrunk."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from pytest_ondevice import layout, plan, strategies
from pytest_ondevice.bpw import account
from pytest_ondevice.formats.gguf import read_header, read_model
from pytest_ondevice.model.artifact import MAX_INT64, TensorInfo
from pytest_ondevice.model.quant_types import QUANT_TYPES, by_name

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_ondevice.model.artifact import Header
    from pytest_ondevice.model.catalog import Dimensions
    from pytest_ondevice.strategies import GgufFile

ONE = TensorInfo(name="token_embd.weight", shape=(1,), type="F32", offset=0)
ONE_BY_ONE = TensorInfo(name="token_embd.weight", shape=(1, 1), type="F32", offset=0)
DERANDOMIZED = settings(database=None, derandomize=True, deadline=None, max_examples=2000)
# Each example overwrites the last one's files in the same folder.
WRITING = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def minimal(strategy: st.SearchStrategy[Any], condition: Any) -> Any:
    return find(strategy, condition, settings=DERANDOMIZED)


def occurs(strategy: st.SearchStrategy[Any], condition: Any) -> Any:
    """Find an example without shrinking it; raises where there is none."""
    return find(strategy, condition, settings=settings(DERANDOMIZED, phases=[Phase.generate]))


def simplest(strategy: st.SearchStrategy[Any]) -> Any:
    """The example of the simplest draws, which hypothesis tries first."""
    return occurs(strategy, lambda _: True)


# -- shrinking


def test_the_simplest_of_each() -> None:
    assert simplest(strategies.quant_types()).name == "F32"
    assert simplest(strategies.tensor_names()) == "token_embd.weight"
    assert simplest(strategies.tensors()) == ONE
    assert simplest(strategies.tensor_tables()) == (ONE_BY_ONE,)
    first = simplest(strategies.dimensions())
    assert (first.architecture, first.layers, first.hidden) == ("llama", 1, 1)
    assert first.tied


def test_the_simplest_files() -> None:
    file = simplest(strategies.gguf_files())
    assert file.tensors == (ONE_BY_ONE,)
    assert file.values == {"general.architecture": "llama"}
    first, second = simplest(strategies.split_gguf_files())
    assert (first.tensors, second.tensors) == ((), (ONE_BY_ONE,))


def test_a_fault_stands_alone() -> None:
    table = minimal(
        strategies.tensor_tables(max_layers=3),
        lambda table: any(one.type == "Q6_K" and one.name.startswith("blk.") for one in table),
    )
    assert len(table) == 2
    assert table[1].type == "Q6_K"
    assert table[1].n_weights == 256
    assert table[0].type == "F32"


def test_the_fewest_layers() -> None:
    table = minimal(
        strategies.tensor_tables(max_layers=3), lambda table: table[-1].name.startswith("blk.2.")
    )
    assert len(table) == 4
    assert all(one.n_weights == 1 for one in table)


# -- what there is


def test_all_types_occur() -> None:
    for quant in QUANT_TYPES.values():
        occurs(strategies.quant_types(), quant.__eq__)
    assert set(strategies._TYPE_IDS) == {quant.name for quant in QUANT_TYPES.values()}


@given(strategies.quant_types(integers=False))
def test_weights_are_no_integers(quant: Any) -> None:
    assert not quant.is_integer


@given(strategies.tensor_names())
def test_names_fit_into_a_file(name: str) -> None:
    assert 1 <= len(name.encode()) <= 63
    assert "\0" not in name


@given(strategies.tensors(max_rows=2**40, max_blocks=2**40))
def test_even_huge_tensors_can_be_counted(tensor: TensorInfo) -> None:
    # TensorInfo itself refuses what is not valid.
    assert tensor.n_bytes <= MAX_INT64


@given(strategies.tensors(types=["Q4_K", "Q8_0"], names=st.just("t"), max_rows=1))
def test_tensors_as_asked(tensor: TensorInfo) -> None:
    assert (tensor.name, tensor.offset) == ("t", 0)
    assert tensor.type in {"Q4_K", "Q8_0"}
    assert tensor.n_weights == tensor.shape[0]


@pytest.mark.parametrize("strategy", [strategies.tensors, strategies.tensor_tables])
def test_types_that_do_not_exist(strategy: Any) -> None:
    with pytest.raises(ValueError, match=r"^unknown tensor types: Q4_K_M, Q9$"):
        strategy(types=["Q9", "F32", "Q4_K_M"])


@given(strategies.tensor_tables(alignment=64))
def test_tables_are_laid_out(table: tuple[TensorInfo, ...]) -> None:
    assert table[0].offset == 0
    for one, following in pairwise(table):
        assert following.offset % 64 == 0
        assert 0 <= following.offset - one.offset - one.n_bytes < 64
    assert len({one.name for one in table}) == len(table)
    assert account(table).n_weights


@pytest.mark.parametrize(
    "condition",
    [
        lambda names, table: "output.weight" in names,
        lambda names, table: "output_norm.weight" in names,
        lambda names, table: "rope_freqs.weight" in names,
        lambda names, table: any(one.type == "I32" for one in table),
        lambda names, table: any(len(one.shape) == 3 and one.shape[2] > 1 for one in table),
        lambda names, table: len({one.type for one in table}) > 4,
        lambda names, table: (
            len({one.type for one in table if one.name.endswith("ffn_up.weight")}) == 2
        ),
    ],
)
def test_what_tables_have(condition: Any) -> None:
    occurs(strategies.tensor_tables(), lambda table: condition({one.name for one in table}, table))


@given(strategies.tensor_tables(types=["Q4_K"], max_weights=1))
def test_the_types_alone_decide_on_the_smallest_matrix(table: tuple[TensorInfo, ...]) -> None:
    for one in table:
        assert one.type in {"Q4_K", "F32", "I32"}


@given(strategies.dimensions())
def test_dimensions_make_models(dimensions: Dimensions) -> None:
    assert dimensions.heads % dimensions.kv_heads == 0
    table = plan.from_dimensions(dimensions, "Q4_K_M")
    assert account(table).n_weights == layout.n_parameters(dimensions)
    assert ("output.weight" in {one.name for one in table}) != dimensions.tied


def test_every_architecture_is_drawn() -> None:
    assert set(strategies.ARCHITECTURES) == set(layout._ARCHITECTURES)
    for name in strategies.ARCHITECTURES:
        occurs(strategies.dimensions(), lambda drawn, name=name: drawn.architecture == name)


# -- files


def write(parts: tuple[GgufFile, ...], folder: Path) -> list[Path]:
    paths = []
    for number, part in enumerate(parts, 1):
        paths.append(folder / f"m-{number:05}-of-{len(parts):05}.gguf")
        paths[-1].write_bytes(part.content)
    return paths


@WRITING
@given(strategies.gguf_files())
def test_files_are_read_back(tmp_path: Path, file: GgufFile) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(file.content)
    header = read_header(path)
    assert header.tensors == file.tensors
    assert header.metadata == file.values
    assert (header.version, header.alignment) == (file.version, file.alignment)
    assert header.data_offset % file.alignment == 0
    assert header.data_offset + header.data_size == header.file_size
    assert_data_are_numbered(file.content, header)


def assert_data_are_numbered(content: bytes, header: Header) -> None:
    for number, one in enumerate(header.tensors, 1):
        start = header.data_offset + one.offset
        assert set(content[start : start + one.n_bytes]) == {number % 256}
        following = header.tensors[number].offset if number < len(header.tensors) else None
        if following is not None:
            assert not any(content[start + one.n_bytes : header.data_offset + following])


@WRITING
@given(strategies.gguf_files(alignments=[32]))
def test_gguf_py_reads_them_too(tmp_path: Path, file: GgufFile) -> None:
    import gguf

    path = tmp_path / "m.gguf"
    path.write_bytes(file.content)
    known = {kind.name for kind in gguf.GGMLQuantizationType} - {"Q8_1"}
    # It knows fewer types, and trips over keys that are none to it.
    if {one.type for one in file.tensors} <= known and not any(
        len(key) > 2 and key.startswith("x.") for key in file.metadata
    ):
        theirs = gguf.GGUFReader(path).tensors
        assert [(t.name, t.n_bytes) for t in theirs] == [
            (one.name, one.n_bytes) for one in file.tensors
        ]
        assert all((t.data == number).all() for number, t in enumerate(theirs, 1) if t.n_bytes == 1)


@WRITING
@given(strategies.split_gguf_files())
def test_split_models_are_read_back(tmp_path: Path, parts: tuple[GgufFile, ...]) -> None:
    header = read_model(write(parts, tmp_path))
    assert 2 <= len(parts) <= 4
    assert header.split == (0, len(parts))
    assert header.tensors == tuple(one for part in parts for one in part.tensors)
    assert all(part.tensors for part in parts[1:])
    assert header.metadata["split.tensors.count"] == len(header.tensors)


def test_a_file_of_one_s_own(tmp_path: Path) -> None:
    table = strategies.laid_out(
        [
            TensorInfo(name="a", shape=(3,), type="F32", offset=99),
            TensorInfo(name="b", shape=(32,), type="Q4_0", offset=0),
        ],
        alignment=8,
    )
    assert [one.offset for one in table] == [0, 16]
    metadata = {"general.architecture": ("str", "x"), "general.alignment": ("u32", 8)}
    file = strategies.GgufFile(tensors=table, metadata=metadata)
    (path,) = write((file,), tmp_path)
    assert read_header(path).tensors == table
    assert file.content.endswith(b"\1" * 12 + b"\0" * 4 + b"\2" * 18)


def test_a_vocabulary_is_a_file_without_data(tmp_path: Path) -> None:
    file = strategies.GgufFile(tensors=(), metadata={"general.architecture": ("str", "x")})
    assert file.content == file.header
    (path,) = write((file,), tmp_path)
    assert read_header(path).tensors == ()


def test_every_type_of_value_is_written(tmp_path: Path) -> None:
    values: dict[str, tuple[str, Any]] = {"general.architecture": ("str", "x")}
    for name in strategies._CODES:
        value: Any = "é" if name == "str" else True if name == "bool" else 1
        values |= {f"one.{name}": (name, value), f"all.{name}": (name, (value, value))}
    file = strategies.GgufFile(tensors=(), metadata=values)
    (path,) = write((file,), tmp_path)
    assert read_header(path).metadata == file.values
    assert by_name("F32").id == strategies._TYPE_IDS["F32"]
