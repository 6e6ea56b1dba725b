"""Where weights come from: files, packages, the hub and folders of candidates, good and bad."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from typing import TYPE_CHECKING

import pytest

from pytest_ondevice.catalog import catalog
from pytest_ondevice.errors import BadFileError, MissingError, OnDeviceError
from pytest_ondevice.formats.gguf import read_model
from pytest_ondevice.layout import n_parameters
from pytest_ondevice.matrix import cells
from pytest_ondevice.model.catalog import Model, ModelSource
from pytest_ondevice.storage.candidates import Candidates
from pytest_ondevice.storage.sources import locate

if TYPE_CHECKING:
    from pathlib import Path

    from projects import Project

F16 = "--ondevice-methods=F16"
HOW = "--ondevice-artifacts=DIR, or a file with --ondevice-models=PATH.gguf"


# -- files


def cut(data: bytes, size: int) -> bytes:
    return data[:size]


def patch(data: bytes, place: int, value: bytes) -> bytes:
    return data[:place] + value + data[place + len(value) :]


def huge(count_at: int) -> object:
    return lambda data: patch(data, count_at, struct.pack("<Q", 2**60))


def twice(data: bytes) -> bytes:
    """Give the file a second key of the same name."""
    first = data.index(struct.pack("<Q", 20) + b"general.architecture")
    second = data.index(struct.pack("<Q", 17) + b"general.file_type")
    key = data[first:second]
    return patch(data[:second] + key + data[second:], 16, struct.pack("<Q", 3))


DAMAGED = {
    "empty": (lambda _: b"", "is empty"),
    "other": (lambda _: b"PK\3\4 is a zip file", "not a GGUF file"),
    "git-lfs": (
        lambda _: b"version https://git-lfs.github.com/spec/v1\noid x\n",
        "Git LFS pointer",
    ),
    "magic-only": (lambda data: cut(data, 4), "is truncated"),
    "cut-in-the-header": (lambda data: cut(data, 40), "is truncated"),
    "cut-in-the-weights": (lambda data: cut(data, len(data) - 1), "is truncated"),
    "version-99": (lambda data: patch(data, 4, b"\x63\0\0\0"), "GGUF version 99"),
    "big-endian": (lambda data: patch(data, 4, b"\0\0\0\3"), "big-endian"),
    "2**60-tensors": (huge(8), "tensors"),
    "2**60-keys": (huge(16), "metadata keys"),
    "2**60-long-key": (huge(24), "name of 1152921504606846976 bytes"),
    "key-twice": (twice, "key 'general.architecture' is there twice"),
    "removed-type": (
        lambda data: data.replace(struct.pack("<QQI", 32, 32, 1), struct.pack("<QQI", 32, 32, 4)),
        "which llama.cpp removed",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_told_before_anything_runs(
    project: Project, tiny: list[str], gguf_bytes: bytes, damage: str
) -> None:
    make, said = DAMAGED[damage]
    path = project.write("bad.gguf", make(gguf_bytes))
    assert path.read_bytes() != gguf_bytes
    found = project.refused(F16, "--ondevice-models=bad.gguf")
    assert found.startswith(f"{path}: ")
    assert said in found


def test_the_undamaged_file_is_taken(project: Project, tiny: list[str]) -> None:
    # So that the tests above fail for the damage.
    project.accepted(*tiny)


def split(folder: Path, count: int = 3, stem: str = "m") -> list[Path]:
    """Write a model of ``count`` tensors, split in as many files."""
    import gguf
    import numpy as np

    paths = []
    for number in range(count):
        path = folder / f"{stem}-{number + 1:05}-of-{count:05}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        if number == 0:
            writer.add_file_type(1)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", count)
        writer.add_tensor(f"blk.{number}.attn_q.weight", np.ones((32, 32), np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths


def test_a_split_model_is_one_model(project: Project, runtime: Path) -> None:
    paths = split(project.path)
    for path in paths:  # any part names it
        (cell,) = cells(project.parse(f"--ondevice-models={path.name}", F16))
        assert cell.id == "m-F16"
        assert locate(cell.model, offline=True).here() == tuple(paths)
        project.accepted(F16, f"--ondevice-models={path.name}")
    header = read_model(paths)
    assert [tensor.name for tensor in header.tensors] == [
        f"blk.{n}.attn_q.weight" for n in range(3)
    ]
    assert header.file_size == sum(path.stat().st_size for path in paths)


def second_of_another(paths: list[Path]) -> None:
    other = split(paths[0].parent, 2, "other")
    other[1].replace(paths[1])
    other[0].unlink()


def second_twice(paths: list[Path]) -> None:
    paths[2].write_bytes(paths[1].read_bytes())


def second_whole(paths: list[Path]) -> None:
    count = struct.pack("<QIH", 11, 2, 3)
    data = paths[1].read_bytes().replace(b"split.count" + count[8:], b"split.count\2\0\0\0\1\0")
    assert data != paths[1].read_bytes()
    paths[1].write_bytes(data)


SPLITS = {
    "second-missing": (
        lambda paths: paths[1].unlink(),
        "a part of a model split in 3, of which only",
    ),
    "first-missing": (lambda paths: paths[0].unlink(), "only 00002, 00003 are there"),
    "last-truncated": (
        lambda paths: paths[2].write_bytes(paths[2].read_bytes()[:-1]),
        "is truncated",
    ),
    "second-of-another": (second_of_another, "is a part of a model split in 2"),
    "second-twice": (second_twice, "says that it is part 2, its name says 3"),
    "second-whole": (second_whole, "named like a part of a split model and is a whole one"),
}


@pytest.mark.parametrize("damage", SPLITS)
def test_a_split_model_that_is_not_whole_is_one_sentence(
    project: Project, runtime: Path, damage: str
) -> None:
    paths = split(project.path)
    spoil, said = SPLITS[damage]
    spoil(paths)
    named = next(path for path in paths if path.exists())
    assert said in project.refused(F16, f"--ondevice-models={named.name}")


def test_a_folder_is_no_model(project: Project, runtime: Path) -> None:
    (project.path / "folder.gguf").mkdir()
    (project.path / "folder").mkdir()
    for name in "folder.gguf", "folder/":
        found = project.refused(F16, f"--ondevice-models={name}")
        assert found.endswith(f"'{name}' is a folder; give a GGUF file")


def test_a_pipe_is_no_model(project: Project, runtime: Path) -> None:
    # Opening it would wait for ever.
    os.mkfifo(project.path / "pipe.gguf")
    result = project.run(F16, "--ondevice-models=pipe.gguf")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "pipe.gguf: is not a regular file" in result.stderr.str()


# -- packages


@pytest.fixture
def package(project: Project, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a model in it, which must not be imported."""
    folder = project.path.parent / f"{project.path.name}-site"
    (folder / "shelf").mkdir(parents=True)
    (folder / "shelf" / "__init__.py").write_text("raise AssertionError('imported')\n")
    (folder / "shelf" / "sub").mkdir()
    (folder / "shelf" / "sub" / "m.gguf").write_bytes(b"GGUF")
    (folder / "shelf" / "m.gguf").write_bytes(b"GGUF")
    (folder / "outside.gguf").write_bytes(b"GGUF")
    (folder / "single.py").write_text("")
    monkeypatch.syspath_prepend(str(folder))
    return folder


def found(project: Project, name: str) -> Path:
    (cell,) = cells(project.parse(f"--ondevice-models={name}", F16))
    weights = locate(cell.model, offline=False)
    assert weights.place == name
    (path,) = weights.here()
    return path


def test_a_package_has_a_model(project: Project, package: Path) -> None:
    assert found(project, "pkg:shelf/m.gguf") == package / "shelf" / "m.gguf"
    assert found(project, "pkg:shelf/sub/m.gguf") == package / "shelf" / "sub" / "m.gguf"


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pkg:no_such_package/m.gguf", "package no_such_package is not installed (`pip install"),
        ("pkg:single/m.gguf", "package single is not installed"),
        ("pkg:.shelf/m.gguf", "package .shelf is not installed"),
        ("pkg:shelf/gone.gguf", "package shelf has no file gone.gguf"),
        ("pkg:shelf/sub", "package shelf has no file sub"),
        ("pkg:shelf/../outside.gguf", "package shelf has no file ../outside.gguf"),
        ("pkg:shelf/sub/../../outside.gguf", "has no file sub/../../outside.gguf"),
        ("pkg:shelf/link.gguf", "package shelf has no file link.gguf"),
    ],
)
def test_a_package_without_the_file_is_one_sentence(
    project: Project, package: Path, name: str, said: str
) -> None:
    (package / "shelf" / "link.gguf").symlink_to(package / "outside.gguf")
    refusal = project.refused(F16, f"--ondevice-models={name}")
    assert said in refusal
    assert refusal.endswith(HOW)


def test_a_package_gives_no_file_outside_by_an_absolute_name(
    project: Project, package: Path
) -> None:
    with pytest.raises(MissingError, match="package shelf has no file"):
        found(project, f"pkg:shelf/{package / 'outside.gguf'}")


def test_the_sources_of_a_model_are_tried_in_order(tmp_path: Path, package: Path) -> None:
    gone = ModelSource(package="no_such_package", file="m.gguf", install="pip install the-other")
    here = ModelSource(package="shelf", file="m.gguf")
    assert locate(Model(name="m", sources=(gone, here)), offline=True).place == str(here)
    with pytest.raises(MissingError, match="`pip install the-other`") as error:
        locate(Model(name="m", sources=(gone, gone)), offline=True)
    assert str(error.value).startswith("model m: ")


def test_every_model_of_the_catalog_is_described() -> None:
    for name, model in catalog().items():
        assert model.name == name
        assert model.license
        assert model.family
        assert n_parameters(model.dimensions) == model.parameters
        for source in model.sources:
            # A path only of what a checkout has beside the package, and the package that has it.
            assert source.path is None or model.sources[0].package is not None
            if source.repo is not None:
                assert source.install is None
            # What is in this package needs no other.
            of_another = source.package not in {None, "pytest_ondevice"}
            assert (source.install is not None) == of_another


# -- candidates

QWEN = Model(name="qwen2.5-0.5b", aliases=("qwen2.5-0.5b-instruct",))


def candidates(folder: Path, *names: str, pattern: str = "") -> Candidates:
    for name in names:
        (folder / name).write_bytes(b"GGUF")
    return Candidates.in_folder(folder / pattern if pattern else folder)


def found_in(here: Candidates, model: Model, method: str) -> Path | None:
    weights = here.find(model, method)
    return weights.here()[0] if weights else None


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("qwen2.5-0.5b-Q4_K_M.gguf", "Q4_K_M"),
        ("Qwen2.5-0.5B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-0.5b-instruct.q4_k_m.gguf", "Q4_K_M"),
        ("qwen2.5-0.5b_q8_0.gguf", "Q8_0"),
        ("qwen2.5-0.5b-instruct-fp16.gguf", "F16"),
        ("qwen2.5-0.5b-instruct-f16.gguf", "F16"),
        ("qwen2.5-0.5b-bf16.gguf", "BF16"),
    ],
)
def test_a_candidate_is_known_by_its_name(tmp_path: Path, name: str, method: str) -> None:
    here = candidates(tmp_path, name)
    for other in ("F16", "BF16", "Q8_0", "Q4_K_M", "Q4_K_S", "Q4_0"):
        expected = tmp_path / name if other == method else None
        assert found_in(here, QWEN, other) == expected, other
    known = ("F16", "BF16", "Q4_0", "Q8_0", "Q4_K_M", "Q4_K_S")
    assert here.methods([QWEN], known) == (method,)
    assert here.methods([Model(name="other")], known) == ()


@pytest.mark.parametrize(
    "name",
    [
        "qwen2.5-0.5b.gguf",
        "qwen2.5-0.5b-q4_k_m.bin",
        "qwen2.5-0.5bq4_k_m.gguf",
        "qwen2.5-0.5b2-q4_k_m.gguf",
        "qwen2.5-1.5b-q4_k_m.gguf",
        "my-qwen2.5-0.5b-q4_k_m.gguf",
        "qwen2.5-0.5b-iq4_k_m.gguf",
        "qwen2.5-0.5b-q4_k_m-v2.gguf",
    ],
)
def test_a_candidate_of_another_name_is_left(tmp_path: Path, name: str) -> None:
    here = candidates(tmp_path, name)
    assert here.find(QWEN, "Q4_K_M") is None
    assert here.unmatched() == ((name,) if name.endswith(".gguf") else ())


def test_a_candidate_may_begin_with_an_alias(tmp_path: Path) -> None:
    here = candidates(tmp_path, "Other-Name-q8_0.gguf")
    assert here.find(Model(name="m", aliases=("other-name",)), "Q8_0")
    assert not here.find(Model(name="m"), "Q8_0")


def test_candidates_that_no_cell_took_are_told(tmp_path: Path) -> None:
    here = candidates(tmp_path, "qwen2.5-0.5b-q4_0.gguf", "qwen2.5-0.5b-q8_0.gguf", "other.gguf")
    assert here.find(QWEN, "Q4_0")
    assert here.unmatched() == ("other.gguf", "qwen2.5-0.5b-q8_0.gguf")


def test_two_candidates_for_one_cell_are_refused(tmp_path: Path) -> None:
    names = ("qwen2.5-0.5b-instruct-f16.gguf", "qwen2.5-0.5b-instruct-fp16.gguf")
    here = candidates(tmp_path, *names)
    with pytest.raises(OnDeviceError, match=r"both claim to be qwen2\.5-0\.5b F16") as error:
        here.find(QWEN, "F16")
    assert all(name in str(error.value) for name in names)
    assert "{method}" in str(error.value)


def test_a_pattern_names_candidates(tmp_path: Path) -> None:
    names = ("qwen2.5-0.5b-Q4_0.gguf", "final-Q4_0.gguf", "FINAL-q8_0.gguf", "final-F16-v2.gguf")
    here = candidates(tmp_path, *names, pattern="final-{method}.gguf")
    assert found_in(here, QWEN, "Q4_0") == tmp_path / "final-Q4_0.gguf"
    assert found_in(here, QWEN, "Q8_0") == tmp_path / "FINAL-q8_0.gguf"
    assert here.find(QWEN, "F16") is None
    assert here.methods([QWEN], ("F16", "Q4_0", "Q8_0")) == ("Q4_0", "Q8_0")
    here = Candidates.in_folder(tmp_path / "{model}-{method}.gguf")
    assert found_in(here, QWEN, "Q4_0") == tmp_path / "qwen2.5-0.5b-Q4_0.gguf"
    assert found_in(here, Model(name="final"), "Q4_0") == tmp_path / "final-Q4_0.gguf"


def test_a_folder_of_candidates_has_to_be_there(tmp_path: Path) -> None:
    for name in "gone", "gone/{method}.gguf":
        with pytest.raises(BadFileError, match="gone: there is no such folder"):
            Candidates.in_folder(tmp_path / name)


def test_a_missing_folder_of_candidates_stops_the_run(project: Project, tiny: list[str]) -> None:
    project.write("file.gguf", b"")
    for name in "gone", "file.gguf":
        refusal = project.refused(*tiny, f"--ondevice-artifacts={name}")
        assert refusal.startswith(f"--ondevice-artifacts={name} (from the command line): ")
        assert refusal.endswith("there is no such folder")


def test_two_candidates_for_one_cell_stop_the_run(
    project: Project, tiny: list[str], gguf_bytes: bytes
) -> None:
    for name in "tiny-f16.gguf", "tiny.fp16.gguf":
        project.write(f"made/{name}", gguf_bytes)
    refusal = project.refused(*tiny, "--ondevice-artifacts=made")
    assert "tiny-f16.gguf and tiny.fp16.gguf both claim to be tiny F16" in refusal


def test_a_damaged_candidate_stops_the_run(project: Project, tiny: list[str]) -> None:
    path = project.write("made/tiny-f16.gguf", b"GGUF")
    assert project.refused(*tiny, "--ondevice-artifacts=made").startswith(f"{path}: is truncated")


def test_candidates_stand_in_for_a_source_that_is_missing(
    project: Project, runtime: Path, gguf_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("made/m-f16.gguf", gguf_bytes)
    project.write("made/other-q4_0.gguf", gguf_bytes)
    project.write(
        "test_own.py", "def test_own(ondevice_check):\n    ondevice_check(1, at_most=2)\n"
    )
    models = "pkg:no_such_package/m.gguf"
    made = "--ondevice-artifacts=made"
    # The methods are those of the model's files in the folder, not those of another's.
    result = project.run(f"--ondevice-models={models}", made, "test_own.py")
    result.assert_outcomes(passed=1)
    assert "left out" not in result.stdout.str()
    # Of the methods of another model, those that nobody made of this one are left out.
    both = f"{models},other.gguf"
    project.write("other.gguf", gguf_bytes)
    result = project.run(f"--ondevice-models={both}", made, "test_own.py")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*left out, neither file nor source: m-Q4_0"])
    result = project.run(f"--ondevice-models={models}", made, "test_own.py")
    result.stdout.fnmatch_lines(["*files that match no cell: other-q4_0.gguf"])
    report = json.loads((project.path / "report.json").read_text())
    assert "files that match no cell: other-q4_0.gguf" in report["notes"]
    refusal = project.refused(f"--ondevice-models={models}", made, "--ondevice-methods=Q4_0")
    assert "package no_such_package is not installed" in refusal
    # Where the tests are collected before anybody looks, they are skipped.
    monkeypatch.setenv("PYTEST_ONDEVICE_MODELS", both)
    result = project.run(made, "test_own.py", "-rs")
    result.assert_outcomes(passed=3, skipped=1)
    result.stdout.fnmatch_lines(["*requires an artifact of m-Q4_0: neither file nor source*"])


def test_a_folder_of_which_nothing_is_used_stops_the_run(
    project: Project, tiny: list[str], gguf_bytes: bytes
) -> None:
    # Quantizing here instead would gate something else than what was given.
    project.write("made/teny-f16.gguf", gguf_bytes)
    refusal = project.refused(*tiny, "--ondevice-artifacts=made")
    assert "nothing there is for a cell of this run; it has teny-f16.gguf" in refusal
    (project.path / "empty").mkdir()
    assert "it has no GGUF file" in project.refused(*tiny, "--ondevice-artifacts=empty")


def test_a_split_candidate_is_one_candidate(project: Project, tiny: list[str]) -> None:
    (project.path / "made").mkdir()
    paths = split(project.path / "made", stem="tiny-f16")
    here = Candidates.in_folder(project.path / "made")
    assert here.find(Model(name="tiny"), "F16").here() == tuple(paths)
    assert here.unmatched() == ()
    project.accepted(*tiny, "--ondevice-artifacts=made")
    paths[1].unlink()
    assert "only 00001, 00003 are there" in project.refused(*tiny, "--ondevice-artifacts=made")


def manifest(folder: Path, *lines: str) -> None:
    (folder / "SHA256SUMS").write_text("".join(f"{line}\n" for line in lines))


def test_a_manifest_pins_the_candidates(
    project: Project, tiny: list[str], gguf_bytes: bytes
) -> None:
    path = project.write("made/tiny-f16.gguf", gguf_bytes)
    made = "--ondevice-artifacts=made"
    digest = hashlib.sha256(gguf_bytes).hexdigest()
    manifest(path.parent, f"{digest}  tiny-f16.gguf", "", f"{'0' * 64} *readme.txt")
    project.accepted(*tiny, made)
    manifest(path.parent, f"{'0' * 64}  ./tiny-f16.gguf")
    said = project.refused(*tiny, made)
    assert said == (
        f"{path}: its SHA-256 is {digest[:12]}..., it should be {'0' * 12}...; replace it, or"
        " correct what states the digest"
    )


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("nonsense",), "SHA256SUMS: line 1 is not of the form DIGEST  NAME"),
        ((f"{'0' * 64}  gone.gguf",), "SHA256SUMS: gone.gguf is listed, and there is no such file"),
        ((f"{'0' * 64}  a.txt", f"{'1' * 64}  a.txt"), "line 2 states another digest of a.txt"),
        ((f"{'0' * 64}  a.txt",), "SHA256SUMS: tiny-f16.gguf is not in it"),
    ],
)
def test_a_bad_manifest_is_one_sentence(
    project: Project, tiny: list[str], gguf_bytes: bytes, lines: tuple[str, ...], said: str
) -> None:
    path = project.write("made/tiny-f16.gguf", gguf_bytes)
    manifest(path.parent, *lines)
    assert said in project.refused(*tiny, "--ondevice-artifacts=made")
