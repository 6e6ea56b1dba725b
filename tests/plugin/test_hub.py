"""Weights from a hub: what is chosen, what is asked and fetched, and what is told if it cannot be.

Every question is asked in a process of its own: the hub's address is read at import.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hub import Asked, File, Hub, Repo, commit, serving, sha256
from projects import NOTHING, sentence, sentence_or_all

from pytest_ondevice.price import ASK_DOWNLOAD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from projects import Project

REPO = "org/shelf"
MISSED = "model m: {}; or give ready-made files with --ondevice-artifacts=DIR, or a file with"
MISSED += " --ondevice-models=PATH.gguf"
WEIGHTS = bytes(range(256)) * 4096
"""A file of 1 MB, which comes in several pieces."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as here:
        yield here


# -- asking

ASK = """
import json, sys
import pytest_ondevice.storage.hub
from pytest_ondevice.errors import OnDeviceError
from pytest_ondevice.model.catalog import Model, ModelSource
from pytest_ondevice.storage.sources import locate
question = json.load(sys.stdin)
pytest_ondevice.storage.hub.PAUSE_SECONDS = 0.05
for sources in question["asked"]:
    ticks, answer = [], {}
    model = Model(name="m", sources=tuple(ModelSource(**source) for source in sources))
    try:
        weights = locate(model, offline=question["offline"])
        answer |= {"place": weights.place, "parts": weights.parts, "type": weights.file_type}
        answer |= {"missing": weights.missing}
        if question["fetch"]:
            answer["paths"] = [str(path) for path in weights.fetch(lambda *at: ticks.append(at))]
            answer |= {"ticks": ticks, "commit": weights.shelf.commit(weights.parts[0])}
            answer["digests"] = [weights.digest(part) for part in weights.parts]
            assert [str(path) for path in weights.here()] == answer["paths"]
    except OnDeviceError as error:
        answer["error"] = str(error)
    print(json.dumps(answer))
"""


@dataclass
class Answer:
    """What came of looking for a model, and of fetching it."""

    place: str = ""
    parts: list[str] = field(default_factory=list)
    type: str | None = None
    missing: int = -1
    paths: list[str] = field(default_factory=list)
    ticks: list[tuple[float, float]] = field(default_factory=list)
    commit: str = ""
    digests: list[str | None] = field(default_factory=list)
    error: str = ""


@dataclass
class Asker:
    """Looks for models in processes that know the hub and have a cache of its files."""

    hub: Hub
    home: Path

    @property
    def cache(self) -> Path:
        return self.home / "hub"

    def start(
        self, *asked: list[dict[str, str]], offline: bool = False, fetch: bool = True, **env: str
    ) -> subprocess.Popen[str]:
        self.hub.asked.clear()
        process = subprocess.Popen(
            [sys.executable, "-c", ASK],
            env=self.hub.environment(self.home) | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        process.stdin.write(json.dumps({"asked": asked, "offline": offline, "fetch": fetch}))
        process.stdin.close()
        process.stdin = None
        return process

    def each(self, *asked: list[dict[str, str]], **options: Any) -> list[Answer]:
        """Look for models that may be in several places."""
        with self.start(*asked, **options) as process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert not err, err
        return [Answer(**json.loads(line)) for line in out.splitlines()]

    def one(self, repo: str = REPO, *, offline: bool = False, **source: Any) -> Answer:
        """Look for a model in one repository, and fetch it."""
        env = {name: source.pop(name) for name in list(source) if name.isupper()}
        (answer,) = self.each([{"repo": repo, **source}], offline=offline, **env)
        return answer

    def found(self, repo: str = REPO, **options: Any) -> Answer:
        answer = self.one(repo, **options)
        assert not answer.error
        return answer

    def failed(self) -> str:
        """Return the sentence with which a model could not be fetched that the hub has."""
        answer = self.one()
        assert answer.parts
        assert answer.error
        assert "\n" not in answer.error
        return answer.error

    def kept(self) -> dict[str, bytes]:
        """Everything in the cache that has bytes of a model, whole or not, by name."""
        return {path.name: path.read_bytes() for path in self.cache.glob("models--*/blobs/*")}


def lost(error: str) -> str:
    """Return the sentence with which a model was not found, without what all of them have."""
    before, after = MISSED.split("{}")
    assert error.startswith(before), error
    assert error.endswith(after), error
    assert "\n" not in error
    return error[len(before) : -len(after)]


@pytest.fixture
def ask(hub: Hub, tmp_path: Path) -> Asker:
    return Asker(hub, tmp_path / "home")


# -- what is chosen

EVERY = ("F16", "BF16", "F32", "Q8_0", "Q6_K", "Q4_K_M", "Q4_K_S", "Q4_0")
SPLIT = [f"m-F16-{n:05}-of-00003.gguf" for n in (1, 2, 3)]

CHOICES: dict[str, tuple[list[str], list[str], str | None]] = {
    "every": ([f"m-{name}.gguf" for name in sorted(EVERY)], ["m-F16.gguf"], "F16"),
    "bf16": (["m-Q8_0.gguf", "m-F32.gguf", "m-bf16.gguf"], ["m-bf16.gguf"], "BF16"),
    "f32": (["m-Q8_0.gguf", "m-F32.gguf"], ["m-F32.gguf"], "F32"),
    "q8": (["m.Q4_K_M.gguf", "m.q8_0.gguf", "m.Q6_K.gguf"], ["m.q8_0.gguf"], "Q8_0"),
    "q4": (["m-Q4_K_S.gguf", "m-Q4_K_M.gguf", "m-Q2_K.gguf"], ["m-Q4_K_M.gguf"], "Q4_K_M"),
    "fp16": (["m-fp16.gguf", "m-q8_0.gguf"], ["m-fp16.gguf"], "F16"),
    "variants": (["m-it-F16.gguf", "m-F16.gguf"], ["m-F16.gguf"], "F16"),
    "split": (["m-Q8_0.gguf", *SPLIT[::-1]], SPLIT, "F16"),
    "folders": (
        ["Q8_0/m-Q8_0.gguf", *(f"F16/{name}" for name in SPLIT)],
        [f"F16/{name}" for name in SPLIT],
        "F16",
    ),
    "others": (
        [
            *("mmproj-m-F16.gguf", "x/mmproj-F16.gguf", "imatrix-F16.gguf", "m.imatrix.gguf"),
            *("m-F16.safetensors", "README.md", "m-F16", "m-Q8_0.gguf"),
        ],
        ["m-Q8_0.gguf"],
        "Q8_0",
    ),
}


def test_the_most_precise_file_is_chosen(hub: Hub, ask: Asker) -> None:
    for name, (files, _, _) in CHOICES.items():
        hub.add(f"org/{name}", *files)
    answers = ask.each(*([{"repo": f"org/{name}"}] for name in CHOICES), fetch=False)
    for (name, (_, parts, file_type)), answer in zip(CHOICES.items(), answers, strict=True):
        assert (answer.parts, answer.type) == (parts, file_type), (name, answer)
        assert answer.place == f"hf:org/{name}:{parts[0]}"
        assert answer.missing == sum(map(len, parts)), name
    # The listing is all that was asked for, and nothing was made.
    assert hub.asked == [Asked("GET", f"/api/models/org/{name}") for name in CHOICES]
    assert not ask.home.exists()


def test_a_pattern_names_the_files(hub: Hub, ask: Asker) -> None:
    hub.add(REPO, "m-F16.gguf", "f16/final.gguf", "m-final_F16-v2.gguf", "final-q8_0.gguf")
    hub.add(REPO, "v2-BF16-final.gguf", "v2-Q8_0-final.gguf")
    pattern = {"repo": REPO, "files": "v2-{method}-final.gguf"}
    other = {"repo": REPO, "files": "v3-{method}.gguf"}
    answer, missed = ask.each([pattern], [other], fetch=False)
    assert (answer.parts, answer.type) == (["v2-BF16-final.gguf"], "BF16")
    assert "org/shelf has GGUF files, but none whose name" in lost(missed.error)


def test_a_split_model_is_fetched_in_order(hub: Hub, ask: Asker) -> None:
    names = [f"F16/{name}" for name in SPLIT]
    hub.add(REPO, *names[::-1])
    answer = ask.found()
    assert answer.parts == names
    assert [Path(path).read_text() for path in answer.paths] == names
    assert answer.digests == [sha256(name.encode()) for name in names]
    # The parts lie beside each other under their names, where a runtime looks for them.
    assert [Path(path).name for path in answer.paths] == SPLIT
    assert len({Path(path).parent for path in answer.paths}) == 1
    assert [asked.path.rpartition("/")[2] for asked in hub.gets()] == SPLIT
    assert answer.ticks[-1] == [sum(map(len, names))] * 2

    # Any part names them, and with all of them in the cache the hub is not asked.
    assert ask.found(file=names[1]).paths == answer.paths
    assert not hub.asked


def test_a_split_model_in_part_in_the_cache_is_made_whole(hub: Hub, ask: Asker) -> None:
    # As after a run that was interrupted between two parts.
    hub.add(REPO, *SPLIT)
    paths = ask.found().paths
    Path(paths[1]).unlink()
    answer = ask.found()
    assert answer.paths == paths
    assert answer.parts == SPLIT
    assert len(hub.listings()) == 1
    assert not hub.gets(), "the bytes were still there"
    Path(paths[2]).unlink()
    assert ask.found(file=SPLIT[0]).paths == paths


# -- files and revisions


def test_a_file_is_fetched_once(hub: Hub, ask: Asker) -> None:
    files = hub.add(REPO, "m-Q8_0.gguf", "m-F16.gguf", "sub/m-Q4_0.gguf")
    answer = ask.found(file="sub/m-Q4_0.gguf")
    assert answer.place == "hf:org/shelf:sub/m-Q4_0.gguf"
    assert answer.type == "Q4_0"
    assert answer.digests == [sha256(b"sub/m-Q4_0.gguf")]
    assert answer.commit == commit(files)
    path = Path(answer.paths[0])
    assert path.read_bytes() == b"sub/m-Q4_0.gguf"
    assert path.is_relative_to(ask.cache)
    assert hub.listings() == ["/api/models/org/shelf"]
    assert [asked.path for asked in hub.gets()] == ["/org/shelf/resolve/main/sub/m-Q4_0.gguf"]

    for offline in (False, True):
        again = ask.found(file="sub/m-Q4_0.gguf", offline=offline)
        assert again.paths == answer.paths
        assert again.missing == 0
        assert again.digests == answer.digests
        assert not hub.asked


def test_a_revision_is_used(hub: Hub, ask: Asker) -> None:
    name = "m-F16.gguf"
    main = hub.add(REPO, name)
    old = hub.repos[REPO].revisions["v1"] = {name: File(b"the first")}
    answer = ask.found(revision="v1")
    assert answer.commit == commit(old)
    assert Path(answer.paths[0]).read_bytes() == b"the first"
    assert hub.listings() == ["/api/models/org/shelf/revision/v1"]
    assert {asked.path for asked in hub.asked if "/api/" not in asked.path} == {
        f"/org/shelf/resolve/v1/{name}"
    }
    assert ask.found(revision="v1", offline=True).paths == answer.paths

    # What one revision has in the cache is not another's.
    answer = ask.found(file=name)
    assert answer.commit == commit(main)
    assert Path(answer.paths[0]).read_text() == name
    pinned = commit(old)
    answer = ask.found(revision=pinned, file=name)
    assert answer.place == f"hf:org/shelf:{name}@{pinned}"
    assert Path(answer.paths[0]).read_bytes() == b"the first"
    assert not hub.asked


def test_a_file_that_the_hub_has_changed_is_fetched_again(hub: Hub, ask: Asker) -> None:
    name = "m-Q8_0.gguf"
    hub.add(REPO, name)
    first = ask.found(file=name)
    hub.add(REPO, **{name: b"the second"})
    # Named, it serves as it is. Where the hub was asked for more, what it states holds.
    assert ask.found(file=name).paths == first.paths
    second = ask.found()
    assert Path(second.paths[0]).read_bytes() == b"the second"
    assert second.digests == [sha256(b"the second")]


# -- what is not there

MISSING = {
    "gone": (
        {"repo": REPO, "file": "m-F61.gguf"},
        "the hub has no file m-F61.gguf in org/shelf; did you mean 'm-F16.gguf'?",
    ),
    "other": (
        {"repo": REPO, "file": "z"},
        "the hub has no file z in org/shelf; there are m-F16.gguf, other-Q8_0.gguf",
    ),
    "no gguf": ({"repo": "org/none"}, "org/none has no GGUF file that can be a source"),
    "no gguf, named": (
        {"repo": "org/none", "file": "m.gguf"},
        "the hub has no file m.gguf in org/none",
    ),
    "no file type": (
        {"repo": "org/unnamed"},
        (
            "org/unnamed has GGUF files, but none whose name ends in a file type from F16 to Q4_0;"
            " name one with hf:org/unnamed:FILE"
        ),
    ),
    "unknown": (
        {"repo": "org/nowhere"},
        "the hub has no repository org/nowhere, or none that you may see",
    ),
    "unknown, 404": (
        {"repo": "org/gone", "file": "m.gguf"},
        "the hub has no repository org/gone, or none that you may see",
    ),
    "revision": ({"repo": REPO, "revision": "v9"}, "the hub has no such revision of org/shelf"),
    "gated": (
        {"repo": "org/gated"},
        "org/gated is gated: accept its licence on its page, then `hf auth login`",
    ),
}


def test_what_the_hub_does_not_have_is_one_sentence(hub: Hub, ask: Asker) -> None:
    hub.add(REPO, "m-F16.gguf", "other-Q8_0.gguf")
    hub.add("org/none", "model.safetensors", "mmproj-F16.gguf")
    hub.add("org/unnamed", "model.gguf", "model-Q4_K.gguf")
    hub.repos["org/gated"] = Repo(error=(401, "GatedRepo"))
    hub.repos["org/gone"] = Repo(error=(404, "RepoNotFound"))
    answers = ask.each(*([source] for source, _ in MISSING.values()))
    for (case, (_, said)), answer in zip(MISSING.items(), answers, strict=True):
        assert lost(answer.error) == said, case
    assert not hub.gets()
    assert not ask.home.exists()


def test_a_gate_behind_the_listing_is_told(hub: Hub, ask: Asker) -> None:
    # As the hub's own: whoever looks sees the names, and only who accepted gets the files.
    hub.add(REPO, "m-F16.gguf")
    hub.repos[REPO].gate = 403, "GatedRepo"
    said = "org/shelf is gated: accept its licence on its page, then `hf auth login`"
    assert ask.failed() == said
    assert len(hub.gets()) == 1
    assert not ask.kept()


def test_a_hub_that_fails_is_told_with_its_answer(hub: Hub, ask: Asker) -> None:
    hub.repos[REPO] = Repo(error=(503, ""))
    said = lost(ask.one().error)
    assert said.startswith("org/shelf is not in the Hugging Face cache and could not be fetched: ")
    assert "503" in said


def test_a_hub_that_is_out_of_reach_is_told_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    asker = Asker(Hub(f"http://127.0.0.1:{port}"), tmp_path / "home")
    begun = time.monotonic()
    sources = [{"repo": REPO}], [{"repo": REPO, "file": "m-F16.gguf"}]
    for answer in asker.each(*sources):
        said = lost(answer.error)
        assert said.startswith(f"{REPO} is not in the Hugging Face cache and could not be fetched")
        assert "refused" in said
    # With the retries that the hub's library makes of itself it takes 23 seconds.
    assert time.monotonic() - begun < 20


# -- the cache, with and without a network


def test_full_precision_in_the_cache_serves_unasked(hub: Hub, ask: Asker) -> None:
    hub.add(REPO, "m-BF16.gguf", "m-Q8_0.gguf")
    answer = ask.found()
    assert answer.type == "BF16"
    hub.add(REPO, "m-F16.gguf")
    again = ask.found()
    assert again.paths == answer.paths
    assert again.missing == 0
    assert not hub.asked


def test_less_precision_in_the_cache_serves_where_the_hub_does_not(hub: Hub, ask: Asker) -> None:
    hub.add(REPO, "m-Q4_K_M.gguf", "m-F16.gguf")
    less = ask.found(file="m-Q4_K_M.gguf")
    for options in {"offline": True}, {"HF_HUB_OFFLINE": "1"}:
        answer = ask.found(**options)
        assert (answer.paths, answer.type) == (less.paths, "Q4_K_M")
        assert not hub.asked
    hub.repos[REPO].error = 503, ""
    assert ask.found().paths == less.paths
    assert hub.listings()

    hub.repos[REPO].error = None
    answer = ask.found()
    assert (answer.parts, answer.type) == (["m-F16.gguf"], "F16")
    assert Path(answer.paths[0]).read_text() == "m-F16.gguf"


def test_a_cache_that_hf_download_filled_serves(hub: Hub, ask: Asker) -> None:
    # It keeps the listing of the repository, of which not everything was asked for.
    hub.add(REPO, "m-F16.gguf", "m-Q8_0.gguf")
    code = "import huggingface_hub as h; h.snapshot_download('org/shelf', allow_patterns=['*F16*'])"
    environment = hub.environment(ask.home) | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    assert list(ask.cache.rglob("m-F16.gguf"))
    for offline in (True, False):
        assert ask.found(offline=offline).parts == ["m-F16.gguf"]
        assert not hub.asked


def test_offline_without_anything_says_three_ways(hub: Hub, ask: Asker) -> None:
    hub.add(REPO, "m-F16.gguf")
    file, repo, several = ask.each(
        [{"repo": REPO, "file": "m-F16.gguf"}],
        [{"repo": REPO}],
        [{"repo": REPO}, {"repo": "org/second"}],
        offline=True,
    )
    assert lost(file.error) == (
        "m-F16.gguf of org/shelf is not in the Hugging Face cache, and offline it cannot be fetched"
        " (`hf download org/shelf m-F16.gguf` where there is a network)"
    )
    assert lost(repo.error).startswith("a GGUF file of org/shelf is not in the Hugging Face cache")
    assert lost(several.error).startswith(
        "no GGUF file of org/shelf or org/second is in the Hugging Face cache, and offline none can"
        " be fetched (`hf download org/shelf --include "
    )
    assert not hub.asked
    assert not ask.home.exists()


def test_sources_are_tried_in_order(hub: Hub, ask: Asker) -> None:
    hub.add("org/second", "m-F16.gguf")
    (answer,) = ask.each([{"repo": REPO}, {"repo": "org/second"}])
    assert answer.place == "hf:org/second:m-F16.gguf"
    (answer,) = ask.each([{"repo": REPO}, {"repo": "org/third"}])
    assert lost(answer.error) == (
        "the hub has no repository org/shelf, or none that you may see; the hub has no repository"
        " org/third, or none that you may see"
    )


# -- downloads that go wrong


def fetched(answer: Answer, data: bytes = WEIGHTS) -> None:
    """Make sure that a file came whole, under its digest, and nothing beside it."""
    (path,) = map(Path, answer.paths)
    assert path.read_bytes() == data
    assert path.resolve().name == sha256(data)
    assert answer.digests == [sha256(data)]
    assert {blob.name for blob in path.resolve().parent.iterdir()} == {sha256(data)}


def test_progress_grows_to_the_total(hub: Hub, ask: Asker) -> None:
    hub.add(REPO, **{"m-F16.gguf": WEIGHTS})
    answer = ask.found()
    fetched(answer)
    done = [at for at, _ in answer.ticks]
    assert done == sorted(done)
    assert len(set(done)) > 2
    assert {total for _, total in answer.ticks} == {len(WEIGHTS)}
    assert done[-1] == len(WEIGHTS)


@pytest.mark.parametrize("reset", [False, True], ids=["ended", "reset"])
def test_a_download_that_breaks_is_taken_up_where_it_broke(
    hub: Hub, ask: Asker, reset: bool
) -> None:
    hub.add(REPO, **{"m-F16.gguf": File(WEIGHTS, drop=[300_000, 200_000], reset=reset)})
    answer = ask.found()
    fetched(answer)
    first, second, third = (asked.begin for asked in hub.gets())
    assert first is None
    # Of a connection that is reset, what was on its way may be lost.
    assert 0 < second <= 300_000
    assert second < third <= 500_000
    if not reset:
        assert (second, third) == (300_000, 500_000)
    assert [at for at, _ in answer.ticks] == sorted(at for at, _ in answer.ticks)


def test_a_hub_that_knows_no_ranges_is_heard_from_the_beginning(hub: Hub, ask: Asker) -> None:
    hub.add(REPO, **{"m-F16.gguf": File(WEIGHTS, drop=[300_000], whole=True)})
    fetched(ask.found())
    assert [asked.begin for asked in hub.gets()] == [None, 300_000]


def test_a_download_that_never_gets_on_is_told_and_kept(hub: Hub, ask: Asker) -> None:
    hub.add(REPO, **{"m-F16.gguf": File(WEIGHTS, drop=[300_000] + 9 * [0])})
    said = ask.failed()
    assert said.startswith("m-F16.gguf of org/shelf is not in the Hugging Face cache and could not")
    assert said.endswith(
        " (download it with `hf download org/shelf m-F16.gguf` where there is a network)"
    )
    assert ask.kept() == {f"{sha256(WEIGHTS)}.incomplete": WEIGHTS[:300_000]}
    hub.repos[REPO].files["m-F16.gguf"].drop.clear()
    answer = ask.found()
    fetched(answer)
    assert [asked.begin for asked in hub.gets()] == [300_000]
    assert answer.ticks[0][0] > 300_000


def test_a_download_whose_process_is_killed_goes_on_in_the_next(hub: Hub, ask: Asker) -> None:
    hub.add(REPO, **{"m-F16.gguf": File(WEIGHTS, stall=600_000)})
    process = ask.start([{"repo": REPO}])
    part = ask.cache / f"models--org--shelf/blobs/{sha256(WEIGHTS)}.incomplete"
    end = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size > 500_000):
        assert time.monotonic() < end, "nothing came"
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hub.go.set()
    kept = part.stat().st_size
    assert 500_000 < kept <= 600_000
    fetched(ask.found())
    assert [asked.begin for asked in hub.gets()] == [kept]


def test_what_an_earlier_process_left_is_checked_like_the_rest(hub: Hub, ask: Asker) -> None:
    part = ask.cache / f"models--org--shelf/blobs/{sha256(WEIGHTS)}.incomplete"
    part.parent.mkdir(parents=True)
    hub.add(REPO, **{"m-F16.gguf": WEIGHTS})
    part.write_bytes(b"x" * 1000)
    assert " came with digest " in ask.failed()
    assert [asked.begin for asked in hub.gets()] == [1000]
    assert not ask.kept()
    part.write_bytes(WEIGHTS)  # killed between the last byte and the file's name
    fetched(ask.found())
    assert not hub.gets()


def test_two_processes_download_a_file_once(hub: Hub, ask: Asker) -> None:
    hub.add(REPO, **{"m-F16.gguf": File(WEIGHTS, stall=600_000)})
    first = ask.start([{"repo": REPO}])
    second = ask.start([{"repo": REPO}])
    threading.Timer(1.5, hub.go.set).start()
    said = [process.communicate(timeout=60) for process in (first, second)]
    for out, err in said:
        assert not err
        fetched(Answer(**json.loads(out)))
    assert len(hub.gets()) == 1


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (
            File(WEIGHTS, sent=WEIGHTS[:-1] + b"x"),
            (
                f"digest {sha256(WEIGHTS[:-1] + b'x')[:12]}..., the hub states digest"
                f" {sha256(WEIGHTS)[:12]}..."
            ),
        ),
        (File(WEIGHTS, sent=WEIGHTS[:900_000]), "900000 bytes, the hub states 1048576"),
        (File(WEIGHTS, sent=WEIGHTS + b"x"), "more than 1048576 bytes, the hub states 1048576"),
    ],
    ids=["other", "shorter", "longer"],
)
def test_what_is_not_as_stated_is_refused_and_removed(
    hub: Hub, ask: Asker, file: File, said: str
) -> None:
    hub.add(REPO, **{"m-F16.gguf": file})
    assert ask.failed() == (
        f"m-F16.gguf of org/shelf came with {said}; it was removed, so the next run downloads it"
        " again"
    )
    assert not ask.kept()
    hub.add(REPO, **{"m-F16.gguf": WEIGHTS})
    fetched(ask.found())
    assert [asked.begin for asked in hub.gets()] == [None]


# -- whole runs


@dataclass
class Run:
    """Runs of pytest with a user's catalog, whose model ``mine`` is on the hub."""

    project: Project
    ask: Asker

    @property
    def hub(self) -> Hub:
        return self.ask.hub

    def arguments(self, *args: str) -> list[str]:
        return [
            "--ondevice-catalog=models.toml",
            "--ondevice-models=mine",
            "--ondevice-methods=F16",
            *args,
            "-k",
            "no_such_check",
        ]

    def accepted(self, *args: str) -> pytest.RunResult:
        """Run with no check chosen, which gets as far as measuring."""
        self.hub.asked.clear()
        result = self.project.run_apart(*self.arguments(*args))
        if result.ret == pytest.ExitCode.USAGE_ERROR:
            assert NOTHING in sentence(result), sentence_or_all(result)
        else:
            assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED, sentence_or_all(result)
        assert result.parseoutcomes().keys() == {"deselected"}, sentence_or_all(result)
        return result

    def refused(self, *args: str) -> str:
        self.hub.asked.clear()
        return self.project.refused(*self.arguments(*args), apart=True)


@pytest.fixture
def run(
    project: Project, runtime: Path, hub: Hub, gguf_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> Run:
    home = project.path.parent / f"{project.path.name}-hub"
    asker = Asker(hub, home)
    for name, value in hub.environment(home).items():
        if name.startswith("HF_"):
            monkeypatch.setenv(name, value)
    hub.add(REPO, **{"mine-F16.gguf": gguf_bytes, "mine-Q8_0.gguf": b"not asked for"})
    source(project)
    return Run(project, asker)


def source(project: Project, *lines: str) -> None:
    """Write the catalog."""
    entry = ["schema = 1", "[models.mine]", "[[models.mine.sources]]", f'repo = "{REPO}"', *lines]
    project.write("models.toml", "\n".join(entry))


def test_a_run_says_the_price_before_it_downloads(run: Run, gguf_bytes: bytes) -> None:
    result = run.accepted()
    lines = result.outlines
    price = next(n for n, line in enumerate(lines) if line.startswith("ondevice: price: "))
    assert lines[price].startswith(
        "ondevice: price: 0 MB of download (hf:org/shelf:mine-F16.gguf), "
    )
    download = next(n for n, line in enumerate(lines) if "mine: download" in line)
    header = next(n for n, line in enumerate(lines) if line.startswith("ondevice: mine x F16"))
    assert price < download < header, lines
    assert run.ask.kept() == {sha256(gguf_bytes): gguf_bytes}
    assert [asked.path for asked in run.hub.gets()] == ["/org/shelf/resolve/main/mine-F16.gguf"]

    again = run.accepted()
    assert "no download" in again.stdout.str()
    assert "mine: download" not in again.stdout.str()
    assert not run.hub.asked


def test_a_costly_download_is_asked_for_first(run: Run) -> None:
    run.hub.repos[REPO].files["mine-F16.gguf"].size = int(ASK_DOWNLOAD) + 100_000_000
    said = run.refused()
    assert said.startswith(
        "this run takes 2.1 GB of download (hf:org/shelf:mine-F16.gguf), 0 MB more on disk, "
    )
    assert said.endswith("; add --ondevice-yes if that is meant")
    assert [asked.path for asked in run.hub.asked] == ["/api/models/org/shelf"]
    assert not run.ask.home.exists()

    # With a yes it is begun. That less comes than was stated is fine where the digest is right.
    run.accepted("--ondevice-yes")
    assert len(run.hub.gets()) == 1


def test_a_download_that_no_disk_holds_is_refused(run: Run) -> None:
    run.hub.repos[REPO].files["mine-F16.gguf"].size = 10**15
    said = run.refused("--ondevice-yes")
    assert said.startswith("the run needs 1000000.0 GB of disk, ")
    assert "downloading 1000000.0 GB (elsewhere with HF_HUB_CACHE)" in said
    assert not run.hub.gets()
    assert not run.ask.home.exists()


def test_a_file_that_was_changed_in_the_cache_is_told(run: Run, gguf_bytes: bytes) -> None:
    (path,) = map(Path, run.ask.found().paths)
    other = gguf_bytes[:-1] + bytes([gguf_bytes[-1] ^ 1])
    path.resolve().write_bytes(other)
    said = run.refused()
    assert said.startswith(
        f"{path}: its SHA-256 is {sha256(other)[:12]}..., it should be {sha256(gguf_bytes)[:12]}..."
    )
    assert not run.hub.asked


def test_a_digest_in_the_catalog_is_the_one_that_counts(run: Run) -> None:
    # The hub's own, which the file has, does not stand in for it.
    source(run.project, f'sha256 = "{"0" * 64}"')
    assert f"it should be {'0' * 12}..." in run.refused()


def test_offline_without_the_model_says_how_to_get_it(run: Run) -> None:
    said = run.refused("--ondevice-offline")
    assert said.startswith("model mine: a GGUF file of org/shelf is not in the Hugging Face cache")
    assert "`hf download org/shelf --include" in said
    assert said.endswith(
        "; or give ready-made files with --ondevice-artifacts=DIR, or a file with"
        " --ondevice-models=PATH.gguf"
    )
    assert not run.hub.asked
    assert not run.ask.home.exists()
    # The own cache is held while a run looks around, and has nothing else in it.
    made = {path.name for path in run.project.cache.rglob("*") if path.is_file()}
    assert made <= {"in-use.lock"}


def test_candidates_of_a_repository_are_known_by_their_method(run: Run, gguf_bytes: bytes) -> None:
    run.hub.repos["org/made"] = Repo()
    names = ["Other-Name-Q8_0.gguf", "Other-Name-f16.gguf", "IQ4/x.Q4_K_M.gguf", "y-Q2_K.gguf"]
    run.hub.add("org/made", **dict.fromkeys(names, gguf_bytes))
    made = "--ondevice-artifacts=hf:org/made"
    result = run.accepted(made, "--ondevice-methods=F16,Q8_0,Q4_K_M")
    # All have the same content, which comes once; each has its name in the snapshot.
    snapshot = ask_snapshot(run, "org/made")
    assert {str(path.relative_to(snapshot)) for path in snapshot.rglob("*.gguf")} == set(names[:3])
    result.stdout.fnmatch_lines(["*files that match no cell: y-Q2_K.gguf"])
    assert all("made" in asked.path for asked in run.hub.gets())

    run.accepted(made, "--ondevice-methods=F16,Q8_0", "--ondevice-offline")
    assert not run.hub.asked


def test_candidates_that_need_no_source_fetch_none(run: Run, gguf_bytes: bytes) -> None:
    """Nobody was told a price of it: what a candidate descends from is looked for only here."""
    folder = run.project.path / "made"
    folder.mkdir()
    for method in ("F16", "Q8_0"):
        (folder / f"mine-{method}.gguf").write_bytes(gguf_bytes)
    run.hub.asked.clear()
    result = run.project.run_apart(
        *run.arguments("--ondevice-artifacts=made", "--ondevice-methods=F16,Q8_0"),
        *("-k", "test_tokenizer"),
    )
    assert result.ret == 0, sentence_or_all(result)
    result.assert_outcomes(passed=2, deselected=result.parseoutcomes()["deselected"])
    assert not run.hub.asked


def ask_snapshot(run: Run, repo: str) -> Path:
    (folder,) = (run.ask.cache / f"models--{repo.replace('/', '--')}" / "snapshots").iterdir()
    return folder


def test_a_repository_of_candidates_that_is_none_stops_the_run(run: Run) -> None:
    said = run.refused("--ondevice-artifacts=hf:org/nowhere")
    assert said == (
        "--ondevice-artifacts=hf:org/nowhere (from the command line): the hub has no repository"
        " org/nowhere, or none that you may see"
    )
    assert not run.ask.home.exists()
