"""Methods with variants in a whole run: their baselines, weights, and odd headers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest

from pytest_ondevice import layout, mixes, price
from pytest_ondevice.catalog import models
from pytest_ondevice.matrix import METHOD_GROUPS, cells, every_method
from pytest_ondevice.model.catalog import Cell, Dimensions
from pytest_ondevice.model.device import Runtime
from pytest_ondevice.model.method import method_of
from pytest_ondevice.model.quant_types import FILE_TYPES, by_name
from pytest_ondevice.plan import plan
from pytest_ondevice.provision import Provision
from pytest_ondevice.storage.baselines import Baselines, Entry, Section

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from projects import Project


def record(project: Project, method: str) -> Path:
    """Record a baseline of the size of a method of the model ``tiny``."""
    section = Section(
        artifact="a" * 64,
        recorded="2026-09-01",
        runtime="r",
        runtime_digest="d",
        cpu="c",
        protocol={},
        quantities={"file_size": Entry(value=1.0, unit="B", n=1)},
    )
    return Baselines(project.path / "baselines", [], "tier").record("tiny", method, "size", section)


@pytest.mark.parametrize(
    "method",
    [
        *("Q4_0+imatrix", "F16+kv-q8_0", "Q4_0+imatrix+kv-q4_0"),
        *("Q2_K+pure", "Q2_K+pure+imatrix", "Q2_K+pure+imatrix+kv-q8_0"),
    ],
)
def test_a_baseline_of_a_variant_is_no_stray(
    project: Project, tiny: list[str], method: str
) -> None:
    record(project, method)
    for methods in (tiny[1], f"--ondevice-methods={method}"):
        result = project.run(tiny[0], methods, "-k", "no_such_check")
        assert "it judges nothing" not in result.stdout.str()


@pytest.mark.parametrize(
    "method",
    [
        *("Q4_0+imatrx", "F16+imatrix", "Q4_9+imatrix", "Q4_0+kv-f16"),
        *("F16+pure", "Q4_0+imatrix+pure"),
    ],
)
def test_a_baseline_of_a_variant_that_there_is_not_is_one(
    project: Project, tiny: list[str], method: str
) -> None:
    path = record(project, method)
    result = project.run(*tiny, "-k", "no_such_check")
    result.stdout.fnmatch_lines(
        [f"ondevice: {path}: it judges nothing, since no method is named '{method}'*"]
    )


def test_a_variant_of_the_cache_is_the_same_file_and_a_cell_of_its_own(
    project: Project, tiny: list[str], write_gguf: Callable[[str, str], Path]
) -> None:
    made = write_gguf("made/tiny-Q4_0.gguf", "Q4_0")
    project.write(
        "test_own.py",
        """
def test_own(ondevice_check):
    ondevice_check("file_type_matches", at_least=1)
    ondevice_check("file_size", at_least=1)
""",
    )
    result = project.run(
        tiny[0],
        *("--ondevice-methods=Q4_0", "--ondevice-kv-types=f16,q8_0", "--ondevice-artifacts=made"),
        *("test_own.py", "--ondevice-report=r.json"),
    )
    result.assert_outcomes(passed=3)
    report = json.loads((project.path / "r.json").read_text())
    cells = {cell["id"]: cell for cell in report["cells"]}
    assert [*cells] == ["tiny-F16", "tiny-Q4_0", "tiny-Q4_0+kv-q8_0"]
    for name in ("tiny-Q4_0", "tiny-Q4_0+kv-q8_0"):
        assert cells[name]["artifact"]["file"] == "tiny-Q4_0.gguf"
        assert cells[name]["measurements"]["file_size"]["value"] == made.stat().st_size
    assert report["settings"]["context"] == "512"


def test_the_context_is_in_the_report(project: Project, tiny: list[str]) -> None:
    project.write(
        "test_own.py", "def test_own(ondevice_check):\n    ondevice_check(1, at_most=2)\n"
    )
    project.run(*tiny, "test_own.py", "--ondevice-context=2048", "--ondevice-report=r.json")
    report = json.loads((project.path / "r.json").read_text())
    assert report["settings"]["context"] == "2048"


def test_experts_without_their_numbers_are_told_in_a_sentence(
    project: Project, tiny: list[str]
) -> None:
    path = project.path / "experts.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(1)
    writer.add_tensor("blk.0.ffn_up_exps.weight", np.ones((2, 32, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    project.write(
        "test_own.py",
        "def test_own(ondevice_measure):\n    ondevice_measure('active_bytes')\n",
    )
    result = project.run("--ondevice-models=experts.gguf", tiny[1], "test_own.py", "-rs")
    text = result.stdout.str()
    assert "ValueError" not in text
    assert "expert_used_count" in text


# -- pure


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("q2_k+PURE", ["Q2_K+pure"]),
        ("Q2_K+kv-q8_0+imatrix+pure", ["Q2_K+pure+imatrix+kv-q8_0"]),
        ("Q4_0,Q4_0+pure,Q4_0", ["Q4_0", "Q4_0+pure"]),
        ("study+pure", [f"{name}+pure" for name in METHOD_GROUPS["study"]]),
    ],
)
def test_a_method_may_be_pure(project: Project, given: str, meant: list[str]) -> None:
    chosen = cells(project.parse("--ondevice-models=smollm2-135m", f"--ondevice-methods={given}"))
    assert [cell.method for cell in chosen] == ["F16", *meant]


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ("F16+pure", "F16 has no pure variant: it does not quantize"),
        ("F32+pure+kv-q8_0", "F32 has no pure variant: it does not quantize"),
        ("Q4_0+pure+PURE", "'Q4_0+pure+pure' has a variant twice"),
        ("Q4_0+pur", "unknown variant 'pur' of Q4_0; did you mean 'pure'?"),
        ("all-block+imatrix+imatrix", "'Q8_0+imatrix+imatrix' has a variant twice"),
    ],
)
def test_what_cannot_be_pure_is_refused_in_a_sentence(
    project: Project, tiny: list[str], methods: str, said: str
) -> None:
    assert said in project.refused(tiny[0], f"--ondevice-methods={methods}")


def test_every_method_has_its_pure_variants_but_floats() -> None:
    every = every_method()
    assert len(set(every)) == len(every)
    quantizing = [name for name in every if method_of(name).file_type not in {"F32", "F16", "BF16"}]
    assert sum(method_of(name).pure for name in every) * 2 == len(quantizing)


def write_pure(path: Path) -> Path:
    """Write a model of which the mix of Q2_K would have the embedding in Q6_K."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q2_K)
    for name, rows in (("token_embd.weight", 64), ("blk.0.attn_q.weight", 256)):
        writer.add_tensor(
            name, np.zeros((rows, 84), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q2_K
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_pure_candidate_is_a_cell_of_its_own_and_held_against_pure_types(
    project: Project, tiny: list[str]
) -> None:
    made = project.path / "made"
    made.mkdir()
    for name in ("Q2_K", "q2_k+PURE", "Q2_K+pure+imatrix"):
        write_pure(made / f"tiny-{name}.gguf")
    project.write(
        "test_own.py",
        """
def test_own(ondevice_check):
    ondevice_check("file_type_matches", at_least=1)
    ondevice_check("nominal_bpw", at_least=2.625)
    ondevice_check("nominal_bpw", at_most=2.625)
    ondevice_check("effective_bpw", at_most=2.625)
    ondevice_check("planned_type_share", at_least=1)
    ondevice_check("planned_bpw", at_most=2.625)
""",
    )
    args = (tiny[0], "--ondevice-artifacts=made", "test_own.py", "--ondevice-report=r.json")
    project.run(*args)
    report = json.loads((project.path / "r.json").read_text())
    found = {cell["id"]: cell["measurements"] for cell in report["cells"]}
    assert [*found] == ["tiny-F16", "tiny-Q2_K", "tiny-Q2_K+pure", "tiny-Q2_K+pure+imatrix"]
    for name in ("tiny-Q2_K+pure", "tiny-Q2_K+pure+imatrix"):
        assert found[name]["file_type_matches"]["value"] == 1
        assert found[name]["nominal_bpw"]["value"] == 2.625
        assert found[name]["planned_type_share"]["value"] == 1
        assert found[name]["planned_bpw"]["value"] == 2.625
    # The same file under the name of the mix is not what that name says.
    assert found["tiny-Q2_K"]["planned_type_share"]["value"] == 0.8


def test_a_pattern_of_candidates_takes_a_pure_method(project: Project, tiny: list[str]) -> None:
    (project.path / "made").mkdir()
    write_pure(project.path / "made/own-Q2_K+pure-v1.gguf")
    pattern = "--ondevice-artifacts=made/own-{method}-v1.gguf"
    result = project.run(tiny[0], "--ondevice-methods=Q2_K+pure", pattern, "-k", "no_such_check")
    assert "files that match no cell" not in result.stdout.str()
    assert "left out" not in result.stdout.str()
    assert [cell.method for cell in cells(project.parse(tiny[0], pattern))] == ["F16", "Q2_K+pure"]


def test_each_way_of_making_weights_is_an_artifact_of_its_own(
    project: Project, tiny: list[str]
) -> None:
    settings = project.parse(tiny[0])
    provision = Provision(settings, Runtime(name="r", version="1", digest="d"))
    (model,) = models(settings)

    def key(method: str) -> str:
        return provision.recipe_key(Cell(model=model, method=method))

    ways = ("Q4_0", "Q4_0+pure", "Q4_0+imatrix", "Q4_0+pure+imatrix", "Q4_1", "Q4_1+pure")
    assert len({key(way) for way in ways}) == len(ways)
    for way in ways:
        assert key(f"{way}+kv-q8_0") == key(way)


def test_a_pure_file_is_priced_as_one(project: Project) -> None:
    (model,) = models(project.parse("--ondevice-models=llama-3.1-8b"))
    sizes = {way: price.planned_size(model, None, way) for way in ("Q2_K", "Q2_K+pure")}
    assert sizes["Q2_K+pure"] < 0.84 * sizes["Q2_K"]


# -- the group of all block types

LARGE = Dimensions(
    architecture="llama",
    layers=32,
    hidden=4096,
    heads=32,
    kv_heads=8,
    head_size=128,
    feed_forward=14336,
    vocabulary=128256,
    tied=False,
)
LEFT_OUT = {"F32", "F16", "BF16", "MXFP4_MOE", "NVFP4", "TQ1_0", "TQ2_0", "Q2_0"}


def named(project: Project, group: str) -> list[str]:
    chosen = cells(project.parse("--ondevice-models=smollm2-135m", f"--ondevice-methods={group}"))
    return [cell.method for cell in chosen][1:]


def test_all_block_has_every_block_type_of_two_bits_and_more(project: Project) -> None:
    def needs(file_type: str, *, pure: bool) -> str:
        refused = plan(file_type, dimensions=LARGE, n_ctx=512, pure=pure).refused
        assert not refused or "needs an importance matrix" in refused
        return "+imatrix" if refused else ""

    expected = []
    pure = set()
    for name, kind in FILE_TYPES.items():
        if name in LEFT_OUT or kind.nominal_bpw < 2:
            continue
        expected.append(name + needs(name, pure=False))
        if by_name(kind.base).block_size == 256 and kind.nominal_bpw < 5:
            pure.add(kind.base)
    found = named(project, "all-block")
    plain = [name for name in found if not method_of(name).pure]
    assert sorted(plain) == sorted(expected)
    ways = [method_of(name) for name in found if method_of(name).pure]
    assert sorted(FILE_TYPES[way.file_type].base for way in ways) == sorted(pure)
    for way in ways:
        assert way.imatrix == bool(needs(way.file_type, pure=True))


def test_all_block_goes_from_most_to_fewest_bits(project: Project) -> None:
    found = [
        plan(way.file_type, dimensions=LARGE, n_ctx=512, pure=way.pure, imatrix=way.imatrix)
        for way in map(method_of, named(project, "all-block"))
    ]
    bits = [one.effective_bpw for one in found]
    assert bits == sorted(bits, reverse=True)
    assert (round(bits[0], 2), round(bits[-1], 2)) == (8.5, 2.06)


def test_a_variant_of_all_block_is_of_each_member_once(project: Project) -> None:
    assert named(project, "ALL-BLOCK+kv-q8_0") == [
        f"{name}+kv-q8_0" for name in METHOD_GROUPS["all-block"]
    ]
    weighed = named(project, "all-block+imatrix")
    assert len(weighed) == len(METHOD_GROUPS["all-block"])
    assert all(method_of(name).imatrix for name in weighed)
    pure = named(project, "all-block+pure")
    assert all(method_of(name).pure for name in pure)
    # Q2_K and Q2_K+pure have become one.
    assert len(set(pure)) == len(pure) < len(METHOD_GROUPS["all-block"])
    assert named(project, "Q2_K,all-block")[:2] == ["Q2_K", "Q8_0"]


def test_all_block_is_as_much_as_the_installed_runtime_knows(
    project: Project, runtime: Path
) -> None:
    (runtime / "llama_cpp.py").write_text(
        "LLAMA_FTYPE_MOSTLY_F16 = 1\nLLAMA_FTYPE_MOSTLY_Q2_K = 10\nLLAMA_FTYPE_MOSTLY_NEW = 99\n"
    )
    assert named(project, "all-block") == ["Q2_K", "Q2_K+pure"]


def test_all_block_needs_no_importances_that_no_matrix_has_but_of_the_smallest(
    project: Project,
) -> None:
    needing = []
    for way in map(method_of, named(project, "all-block")):
        planned = mixes.choose(
            layout.tensors(LARGE),
            way.file_type,
            architecture="llama",
            heads=LARGE.heads,
            kv_heads=LARGE.kv_heads,
            layers=LARGE.layers,
            imatrix=way.imatrix,
            pure=way.pure,
        )
        if mixes.unweighed(planned):
            needing.append(str(way))
    assert needing == ["IQ2_XS+pure+imatrix", "IQ2_XXS+pure+imatrix"]
