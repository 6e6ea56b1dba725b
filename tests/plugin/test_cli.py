"""The command ``pytest-ondevice``: what it prints, and the exit statuses that scripts rely on."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from projects import sentence_or_all

from pytest_ondevice import catalog, cli
from pytest_ondevice.conclusion import Status
from pytest_ondevice.gather import encode
from pytest_ondevice.model.device import Device, Runtime
from pytest_ondevice.model.report import SCHEMA_VERSION, CheckResult, Report
from pytest_ondevice.model.verdict import Verdict
from pytest_ondevice.storage.artifacts import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from projects import Project

DAY = 86400
SCRIPT = Path(sys.executable).with_name("pytest-ondevice")

Said = tuple[int, list[str], str]


@pytest.fixture(autouse=True)
def away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Be in an empty folder, with a home of one's own and no setting from outside."""
    for name in list(os.environ):
        if name.startswith(("PYTEST_ONDEVICE_", "HF_", "HUGGINGFACE_")):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    (home / "here").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(home / "here")
    catalog.catalog.cache_clear()


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command here; returns exit status, lines of output, and errors."""

    def run(*args: str | Path) -> Said:
        capsys.readouterr()
        try:
            status = cli.main([str(one) for one in args])
        except SystemExit as end:  # argparse ends so
            status = int(end.code or 0)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return status, said.out.splitlines(), said.err

    return run


@pytest.fixture
def refused(command: Callable[..., Said]) -> Callable[..., str]:
    """Run a command that is refused; returns its one sentence."""

    def run(*args: str | Path) -> str:
        status, out, err = command(*args)
        assert (status, out) == (2, []), err
        assert err.startswith("ERROR: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        return err.removeprefix("ERROR: ").rstrip("\n")

    return run


def script(*args: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the console script as a shell does."""
    return subprocess.run(
        [SCRIPT, *map(str, args)],
        text=True,
        check=False,
        timeout=60,
        **{"capture_output": True, **options},
    )


# -- help


COMMANDS = [
    *([], ["models"], ["plan"], ["inspect"], ["check"], ["compare"], ["summary"], ["calibrate"]),
    *(["export"], ["plot"]),
    *(["reference"], ["reference", "make"], ["reference", "check"]),
    *(["cache"], ["cache", "list"], ["cache", "prune"]),
]


@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_help(command: Callable[..., Said], args: list[str]) -> None:
    status, out, err = command(*args, "--help")
    assert (status, err) == (0, "")
    assert out[0].startswith(f"usage: {' '.join(['pytest-ondevice', *args])} ")
    assert all(len(line) <= 100 for line in out)


def test_the_help_of_check_tells_every_status(command: Callable[..., Said]) -> None:
    text = " ".join(" ".join(command("check", "--help")[1]).split())
    for status in Status:
        assert f"{status.value} {status.meaning}" in text
    assert "2 it is no report, or the command is wrong" in text
    assert {status.value for status in Status} == {0, 1, 3, 4, 5}


def test_the_first_help_names_every_command(command: Callable[..., Said]) -> None:
    text = "\n".join(command("--help")[1])
    for name in {args[0] for args in COMMANDS if args}:
        assert f"\n    {name} " in text


def test_version(command: Callable[..., Said]) -> None:
    from importlib.metadata import version

    assert command("--version") == (0, [f"pytest-ondevice {version('pytest-ondevice')}"], "")


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["cache"],
        ["check"],
        ["nothing"],
        ["models", "more"],
        ["cache", "list", "--max-size=1G"],
        ["cache", "list", "--all"],
        ["check", "a.json", "b.json"],
        ["compare"],
        ["compare", "a.json"],
        ["compare", "a.json", "b.json", "--json", "--markdown"],
        ["summary"],
        ["export"],
        ["export", "a.json", "b.json"],
        ["plot"],
        ["reference"],
        ["reference", "make", "m"],
        ["reference", "check"],
        ["calibrate", "m", "more"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_is_misuse(command: Callable[..., Said], args: list[str]) -> None:
    status, out, err = command(*args)
    assert (status, out) == (2, [])
    assert ": error: " in err.splitlines()[-1]


# -- models


OWN = """
schema = 1
[models.my-model]
parameters = 1_500_000_000
license = "Mine"
gated = true
[[models.my-model.sources]]
path = "my.gguf"
[models.other]
[[models.other.sources]]
repo = "me/other"
file = "other-f16.gguf"
revision = "v1"
"""


def test_models_are_a_table(command: Callable[..., Said]) -> None:
    status, out, err = command("models")
    assert (status, err) == (0, "")
    assert out[0].split() == ["name", "weights", "licence", "here", "source"]
    known = catalog.catalog()
    assert [line.split()[0] for line in out[1:-1]] == list(known)
    assert out[-1] == "also: PATH.gguf, hf:OWNER/REPO[:FILE][@REVISION], pkg:MODULE/FILE"
    (row,) = [line for line in out if line.startswith("smollm2-360m ")]
    assert row.split()[1:4] == ["0.36", "B", "Apache-2.0"]
    assert {line.rpartition("  ")[0].split()[-1] for line in out[1:-1]} <= {"yes", "no"}
    # Columns are columns.
    assert len({line.index(str(known[line.split()[0]].sources[0])) for line in out[1:-1]}) == 1


def test_models_of_ones_own_are_beside_the_others(command: Callable[..., Said]) -> None:
    Path("own").mkdir()
    Path("own/catalog.toml").write_text(OWN)
    _, before, _ = command("models", "--catalog", "own/catalog.toml")
    Path("own/my.gguf").write_bytes(b"")
    status, out, _ = command("models", "--catalog=own/catalog.toml")
    assert status == 0
    assert any(line.startswith("smollm2-135m ") for line in out)
    mine = [line.split() for line in (*before, *out) if line.startswith("my-model ")]
    assert mine == [
        ["my-model", "1.50", "B", "Mine", "(gated)", here, "my.gguf"] for here in ("no", "yes")
    ]
    (other,) = [line.split() for line in out if line.startswith("other ")]
    assert other == ["other", "-", "-", "no", "hf:me/other:other-f16.gguf@v1"]


def test_models_as_json(command: Callable[..., Said]) -> None:
    Path("catalog.toml").write_text(OWN)
    status, out, err = command("models", "--json", "--catalog=catalog.toml")
    assert (status, err) == (0, "")
    read = json.loads("\n".join(out))
    assert list(read) == list(catalog.catalog(Path("catalog.toml")))
    assert read["my-model"]["parameters"] == 1_500_000_000
    assert read["smollm2-135m"]["dimensions"]["layers"] == 30


SOURCE = '[[models.m.sources]]\npath = "m.gguf"\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read it: No such file or directory"),
        (b"\xff", "it is not UTF-8 (byte 0)"),
        (b"[models", "it is no catalog: Expected ']' at the end of a table declaration"),
        (b"", "it is no catalog: Object missing required field `schema`"),
        (b"schema = 2\n[models]\n", "its schema is 2, this version reads 1 - `$.schema`"),
        (b"schema = 1\n[models.m]\n", "the model has no source - `$.models['m'].sources`"),
        (
            f"schema = 1\n[models.m]\nparameters = 'x'\n{SOURCE}".encode(),
            "it is no catalog: Expected `int | null`, got `str` - at `$.models[...].parameters`",
        ),
        (
            b"schema = 1\n[[models.m.sources]]\nrepo = 'x'\n",
            "it is no catalog: 'x' is not of the form owner/name - at `$.models[...].sources[0]`",
        ),
    ],
)
def test_a_bad_catalog_is_one_sentence(
    refused: Callable[..., str], content: bytes | None, said: str
) -> None:
    if content is not None:
        Path("bad.toml").write_bytes(content)
    for more in [], ["--json"]:
        assert refused("models", "--catalog=bad.toml", *more).startswith(f"bad.toml: {said}")


# -- check


def check(
    verdict: Verdict, outcome: str = "passed", name: str = "size.bpw", **more: object
) -> CheckResult:
    return CheckResult(check=name, cell="m-Q4_0", verdict=verdict, outcome=outcome, **more)


GOOD = check(Verdict.PASS)
FAILED = check(Verdict.FAIL, "failed", "fidelity.kld", message="too much\n  measured 5")
WAIVED = check(Verdict.FAIL, "xfailed", "fidelity.kld", waived="known (waived until 2026-12-31)")
UNSURE = check(Verdict.INCONCLUSIVE, "failed", "fidelity.kld", message="too uncertain")
DISTURBED = check(Verdict.INVALID, "failed", "memory.peak", message="60 major page faults")
ADVISED = check(Verdict.INVALID, "skipped", "speed.decode", advisory=True)
ADVICE = check(Verdict.PASS, "passed", "speed.decode", advisory=True)
BLOCKED = check(Verdict.BLOCKED, "skipped", "memory.peak", message="blocked by memory.load")
UNSUPPORTED = check(Verdict.UNSUPPORTED, "skipped", "memory.peak")
NONE = check(Verdict.NO_BASELINE, "skipped", "size.regression")
REQUIRED = check(Verdict.NO_BASELINE, "failed", "size.regression", message="none recorded")


def report(*checks: CheckResult, complete: bool = True) -> Report:
    return Report(
        schema_version=SCHEMA_VERSION,
        generator="pytest-ondevice 0.1.0",
        created="2026-09-01T12:00:00+00:00",
        complete=complete,
        device=Device(
            system="Linux",
            machine="x86_64",
            cpu="CPU",
            cores=2,
            memory=2**33,
            python="3.11",
            libc="glibc",
        ),
        tier="desk",
        board="one",
        runtime=Runtime(name="llama.cpp", version="1", digest="d", system_info=""),
        settings={},
        cells=(),
        checks=checks,
        protocols={},
        notes=(),
    )


def written(made: Report | bytes) -> Path:
    path = Path("report.json")
    path.write_bytes(made if isinstance(made, bytes) else encode(made))
    return path


@pytest.mark.parametrize(
    ("checks", "complete", "status"),
    [
        ([GOOD], True, 0),
        ([GOOD, WAIVED], True, 0),
        ([WAIVED], True, 0),
        ([GOOD, UNSUPPORTED, NONE, ADVISED], True, 0),
        ([FAILED], True, 1),
        ([GOOD, FAILED, UNSURE, BLOCKED], True, 1),
        ([FAILED, GOOD], False, 1),
        ([GOOD, UNSURE], True, 3),
        ([GOOD, DISTURBED], True, 3),
        ([GOOD, BLOCKED], True, 3),
        ([WAIVED, BLOCKED], True, 3),
        ([GOOD, REQUIRED], True, 3),
        ([GOOD], False, 4),
        ([], False, 4),
        ([GOOD, UNSURE, BLOCKED], False, 4),
        ([], True, 5),
        ([UNSUPPORTED, NONE], True, 5),
        ([ADVISED], True, 5),
        # What is advisory decides nothing.
        ([ADVICE, UNSUPPORTED], True, 5),
    ],
)
def test_the_status_of_a_report(
    command: Callable[..., Said], checks: list[CheckResult], complete: bool, status: int
) -> None:
    path = written(report(*checks, complete=complete))
    ended, out, err = command("check", path)
    assert (ended, err) == (status, "")
    name = Status(status).name.lower()
    assert out[0].startswith(f"{name}: ")
    assert out[0].count(f"{name}: ") == 1
    assert out[-1].startswith(f"{len(checks)} verdicts: ")
    assert command("check", "--quiet", path) == (status, [], "")


def test_what_led_to_it_is_said(command: Callable[..., Said]) -> None:
    path = written(report(GOOD, FAILED, WAIVED, UNSURE))
    assert command("check", path)[1] == [
        "regressed: a check failed that is not waived",
        "  fail  fidelity.kld  m-Q4_0: too much",
        "  waived  fidelity.kld  m-Q4_0: known (waived until 2026-12-31)",
        "4 verdicts: 1 pass, 2 fail, 1 inconclusive",
    ]
    path = written(report(UNSURE, BLOCKED))
    assert command("check", path)[1][1:] == [
        "  inconclusive  fidelity.kld  m-Q4_0: too uncertain",
        "  blocked  memory.peak  m-Q4_0: blocked by memory.load",
        "2 verdicts: 1 inconclusive, 1 blocked",
    ]
    assert command("check", written(report()))[1] == [
        "nothing: nothing was decided: no check has a verdict of its own",
        "0 verdicts: none",
    ]


def changed(**fields: object) -> bytes:
    return json.dumps(json.loads(encode(report(GOOD))) | fields).encode()


BAD = {
    "empty": (b"", "it is no report: Input data was truncated"),
    "truncated": (encode(report(GOOD, FAILED))[:-40], "it is no report: Input data was truncated"),
    "not JSON": (b"<html>", "it is no report: JSON is malformed"),
    "not UTF-8": (b'{"schema_version":1,"generator":"\xff"}', "it is no report: it is not UTF-8"),
    "a list": (b"[]", "it is no report: Expected `object`, got `array`"),
    "another's": (b"{}", "it is no report: Object missing required field `schema_version`"),
    "deep": (
        b'{"schema_version":1,"generator":"x","more":' + b"[" * 100_000,
        "it is no report: it is nested too deeply",
    ),
    "other version": (
        changed(schema_version=2, generator="pytest-ondevice 9.0", checks="anything"),
        "its schema_version is 2 (written by pytest-ondevice 9.0), this version reads 1",
    ),
    "wrong type": (
        changed(complete="yes"),
        "it is no report: Expected `bool`, got `str` - at `$.complete`",
    ),
    "unknown verdict": (
        changed(checks=[{"check": "c", "cell": "m", "verdict": "maybe"}]),
        "it is no report: Invalid enum value 'maybe' - at `$.checks[0].verdict`",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_report_is_one_sentence(refused: Callable[..., str], bad: str) -> None:
    content, said = BAD[bad]
    path = written(content)
    assert refused("check", path).startswith(f"report.json: {said}")
    assert refused("check", "--quiet", path).startswith(f"report.json: {said}")


def test_a_report_that_cannot_be_read_is_one_sentence(refused: Callable[..., str]) -> None:
    assert refused("check", "gone.json") == "gone.json: cannot read it: No such file or directory"
    assert refused("check", ".") == ".: cannot read it: Is a directory"
    assert refused("check", "a" * 300).endswith(": cannot read it: File name too long")


# -- the cache


RECIPE = Recipe(
    sha256="",
    size=0,
    source_sha256="5" * 64,
    source_type="F16",
    method="",
    runtime="r",
    runtime_digest="d",
    wall_time=0.0,
    cpu_time=0.0,
    peak_memory=0,
)


def put(cache: Path, name: str, content: int | bytes, days: float) -> Path:
    path = cache / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else bytes(content))
    os.utime(path, (time.time() - days * DAY,) * 2)
    return path


def artifact(cache: Path, digit: str, model: str, method: str, size: int, days: float) -> Path:
    recipe = msgspec.structs.replace(
        RECIPE, sha256=digit * 64, size=size, model=model, method=method
    )
    put(cache, f"recipes/{digit}.json", msgspec.json.encode(recipe), days)
    return put(cache, f"objects/{digit * 2}/{digit * 64}.gguf", size, days)


MB = 1_000_000


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with one of everything."""
    folder = tmp_path / "cache"
    artifact(folder, "a", "alpha", "Q4_0", 4 * MB, 40)
    artifact(folder, "b", "beta", "Q8_0", 8 * MB, 3)
    put(folder, "references/alpha-0123.npz", 2 * MB, 20)
    put(folder, f"objects/cc/{'c' * 64}.gguf", 1 * MB, 10)
    put(folder, "tmp/0.gguf", 3 * MB, 5)
    put(folder, "journal/ab/ab.jsonl", 5 * MB, 100)
    return folder


ROWS = [
    "artifact   alpha  Q4_0    4 MB   6 w ago",
    "reference  alpha  F16     2 MB   3 w ago",
    "unused     -      -       1 MB  10 d ago",
    "unfinished -      -       3 MB   5 d ago",
    "artifact   beta   Q8_0    8 MB   3 d ago",
]


def kept(cache: Path) -> str:
    """What is there, by the first letter of everything that can go."""
    names = [
        *(path.name[0] for path in sorted(cache.glob("objects/*/*"))),
        *("r" for _ in cache.glob("references/*")),
        *("t" for _ in cache.glob("tmp/*")),
    ]
    return "".join(names)


def plain(lines: list[str]) -> list[list[str]]:
    return [line.split() for line in lines]


def test_the_cache_is_listed_the_newest_last(command: Callable[..., Said], cache: Path) -> None:
    status, out, err = command("cache", "list", "--cache", cache)
    assert (status, err) == (0, "")
    assert out[0].split() == ["kind", "model", "method", "size", "last", "used"]
    assert plain(out[1:-1]) == plain(ROWS)
    assert len({len(line) for line in out[:-1]}) == 1
    assert out[-1] == f"{cache}: 5 entries, 18 MB; measurements and locks 5 MB"
    assert kept(cache) == "abcrt"


@pytest.mark.parametrize(
    ("filters", "rows"),
    [
        (["--model=alpha"], [0, 1]),
        (["--model=ALPHA", "--older-than=30d"], [0]),
        (["--older-than=8d"], [0, 1, 2]),
        (["--older-than", "2w"], [0, 1]),
        (["--older-than=100H"], [0, 1, 2, 3]),
        (["--older-than=1m"], [0, 1, 2, 3, 4]),
        (["--model=nobody"], []),
    ],
)
def test_part_of_the_cache_is_listed(
    command: Callable[..., Said], cache: Path, filters: list[str], rows: list[int]
) -> None:
    _, out, _ = command("cache", "list", "--cache", cache, *filters)
    assert plain(out[1:-1]) == plain([ROWS[index] for index in rows])
    assert f": {len(rows)} entries, " in out[-1]


def test_the_cache_as_json(command: Callable[..., Said], cache: Path) -> None:
    status, out, _ = command("cache", "list", "--json", "--cache", cache, "--model=beta")
    assert status == 0
    (read,) = json.loads("\n".join(out))
    assert abs(time.time() - 3 * DAY - read.pop("used")) < 60
    assert read == {
        "kind": "artifact",
        "model": "beta",
        "method": "Q8_0",
        "size": 8 * MB,
        "files": [
            str(cache / "recipes" / "b.json"),
            str(cache / "objects" / "bb" / f"{'b' * 64}.gguf"),
        ],
    }


def test_the_cache_is_where_runs_have_it(
    command: Callable[..., Said], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path(os.environ["HOME"])
    default = home / "cache" / "pytest-ondevice"
    # Nothing was ever run.
    status, out, _ = command("cache", "list")
    assert status == 0
    assert out[-1] == f"{default}: 0 entries, 0 MB; measurements and locks 0 MB"
    assert not default.exists()
    cache.rename(home / "moved")
    (home / "cache").mkdir(exist_ok=True)
    default.symlink_to(home / "moved")
    assert ": 5 entries, " in command("cache", "list")[1][-1]
    monkeypatch.setenv("PYTEST_ONDEVICE_CACHE", "~/moved")
    assert command("cache", "list")[1][-1].startswith(f"{home / 'moved'}: 5 entries, ")
    monkeypatch.setenv("PYTEST_ONDEVICE_CACHE", "/nowhere")
    assert command("cache", "list", "--cache=~/moved")[1][-1].startswith(f"{home / 'moved'}: 5 ")
    assert command("cache", "list")[1][-1].startswith("/nowhere: 0 entries")


PRUNINGS = [
    (["--all"], "", "5 of 5 entries, 18 MB"),
    (["--model=alpha"], "bct", "2 of 5 entries, 6 MB"),
    (["--older-than=30d"], "bcrt", "1 of 5 entries, 4 MB"),
    (["--older-than=15d", "--model=alpha"], "bct", "2 of 5 entries, 6 MB"),
    (["--model=beta", "--older-than=30d"], "abcrt", "0 of 5 entries, 0 MB"),
    # What is left over goes first, then what was used longest ago.
    (["--max-size=17M"], "abrt", "1 of 5 entries, 1 MB"),
    (["--max-size=14MB"], "abr", "2 of 5 entries, 4 MB"),
    (["--max-size=0.01g"], "br", "3 of 5 entries, 8 MB"),
    (["--max-size=9000k"], "b", "4 of 5 entries, 10 MB"),
    (["--max-size=0"], "", "5 of 5 entries, 18 MB"),
    (["--max-size=10G"], "abcrt", "0 of 5 entries, 0 MB"),
    ([f"--max-size={'9' * 400}"], "abcrt", "0 of 5 entries, 0 MB"),
    ([f"--older-than={'9' * 400}w"], "abcrt", "0 of 5 entries, 0 MB"),
    (["--max-size=16M", "--model=beta"], "acrt", "1 of 5 entries, 8 MB"),
]


@pytest.mark.parametrize(("filters", "left", "said"), PRUNINGS)
def test_pruning(
    command: Callable[..., Said], cache: Path, filters: list[str], left: str, said: str
) -> None:
    before = sorted(cache.rglob("*"))
    status, tried, err = command("cache", "prune", "--dry-run", "--cache", cache, *filters)
    assert (status, err) == (0, "")
    assert tried[-1] == f"{said} would be freed"
    assert sorted(cache.rglob("*")) == before
    status, out, err = command("cache", "prune", "--cache", cache, *filters)
    assert (status, err) == (0, "")
    assert out[-1] == f"{said} freed"
    assert out[:-1] == tried[:-1]
    assert kept(cache) == left
    assert (cache / "journal" / "ab" / "ab.jsonl").exists()
    assert sorted(path.stem for path in (cache / "recipes").iterdir()) == [
        one for one in "ab" if one in left
    ]


@pytest.mark.parametrize(
    "args", [[], ["--dry-run"], ["--all", "--model=alpha"], ["--all", "--max-size=1G"]]
)
def test_what_to_prune_has_to_be_said(
    refused: Callable[..., str], cache: Path, args: list[str]
) -> None:
    assert refused("cache", "prune", "--cache", cache, *args) == (
        "give --model, --older-than or --max-size, or --all alone"
    )
    assert kept(cache) == "abcrt"


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("--older-than=30", "argument --older-than: '30' is no age; give 90m, 12h, 30d or 8w"),
        ("--older-than=-1d", "argument --older-than: '-1d' is no age; "),
        ("--older-than=", "argument --older-than: '' is no age; "),
        ("--older-than=1y", "argument --older-than: '1y' is no age; "),
        ("--max-size=much", "argument --max-size: 'much' is no size; give 500M or 10G"),
        ("--max-size=-1G", "argument --max-size: '-1G' is no size; "),
        ("--max-size=1e9", "argument --max-size: '1e9' is no size; "),
        ("--max-size=", "argument --max-size: '' is no size; "),
    ],
)
def test_wrong_ages_and_sizes(
    command: Callable[..., Said], cache: Path, option: str, problem: str
) -> None:
    status, out, err = command("cache", "prune", "--cache", cache, option)
    assert (status, out) == (2, [])
    assert f": error: {problem}" in err.splitlines()[-1]
    assert kept(cache) == "abcrt"


@pytest.mark.parametrize("action", [["list"], ["prune", "--all"], ["prune", "--all", "--dry-run"]])
def test_wrong_folders(refused: Callable[..., str], action: list[str]) -> None:
    Path("file").write_text("x")
    for name in "gone", "file", "file/sub":
        assert refused("cache", *action, f"--cache={name}") == f"{name}: there is no cache there"
    for name in "", " ":
        assert "there is no cache there" in refused("cache", *action, f"--cache={name}")
    assert refused("cache", *action, "--cache=~no-such-user/x").startswith(
        "~no-such-user/x: not a path: "
    )
    assert refused("cache", *action, f"--cache={'a' * 5000}").endswith(
        "a: not a path: File name too long"
    )
    assert sorted(path.name for path in Path().iterdir()) == ["file"]


def test_a_cache_in_use_is_not_pruned(refused: Callable[..., str], cache: Path) -> None:
    lock = cache / "locks" / "in-use.lock"
    lock.parent.mkdir()
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert refused("cache", "prune", "--all", "--cache", cache) == (
            f"{cache}: a run is using it; prune when that has ended"
        )
    assert kept(cache) == "abcrt"


def test_a_run_holds_its_cache(project: Project, tiny: list[str], cache: Path) -> None:
    project.write(
        "test_own.py",
        "from pytest_ondevice import cli\n"
        "def test_own(ondevice_check, capsys):\n"
        f"    assert cli.main(['cache', 'prune', '--all', '--cache={cache}']) == 2\n"
        "    assert 'a run is using it' in capsys.readouterr().err\n"
        f"    assert cli.main(['cache', 'list', '--cache={cache}']) == 0\n"
        f"    assert cli.main(['cache', 'prune', '--all', '--dry-run', '--cache={cache}']) == 0\n"
        "    ondevice_check(1, at_most=2)\n",
    )
    for n in [], ["-n2"]:
        result = project.run(*tiny, "test_own.py", f"--ondevice-cache={cache}", *n)
        assert result.ret == 0, sentence_or_all(result)
    assert kept(cache) == "abcrt"
    assert cli.main(["cache", "prune", "--all", f"--cache={cache}"]) == 0
    assert kept(cache) == ""


# -- the console script


def test_the_script_ends_with_the_status() -> None:
    path = written(report(GOOD, FAILED))
    done = script("check", path)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("regressed: ")
    done = script("check", "gone.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ERROR: gone.json: cannot read it: No such file or directory\n"


def test_the_report_of_a_real_run_is_checked(project: Project, tiny: list[str]) -> None:
    own = "def test_own(ondevice_check):\n    ondevice_check({}, at_most=2)\n"
    for value, status in (1, 0), (3, 1):
        project.write("test_own.py", own.format(value))
        project.run(*tiny, "test_own.py", "--ondevice-report=gate.json")
        done = script("check", project.path / "gate.json")
        assert (done.returncode, done.stderr) == (status, "")
    assert "fail  test_own.py::test_own  tiny-F16: 3 is above the bound" in done.stdout


def closed() -> int:
    """The end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize("many", [1, 5000])
@pytest.mark.parametrize(
    ("checks", "status"), [((GOOD,), 0), ((FAILED,), 1), ((UNSURE,), 3), ((UNSUPPORTED,), 5)]
)
def test_a_reader_that_has_gone_does_not_change_the_status(
    many: int, checks: tuple[CheckResult, ...], status: int
) -> None:
    path = written(report(*checks * many))
    writing = closed()
    done = script("check", path, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (status, "")


def test_a_reader_that_has_gone_keeps_nothing_from_being_pruned(cache: Path) -> None:
    for number in range(300):
        put(cache, f"references/{'long-name-' * 9}{number}.npz", 1, 50)
    writing = closed()
    options = {"capture_output": False, "stdout": writing, "stderr": subprocess.PIPE}
    done = script("cache", "prune", "--all", f"--cache={cache}", **options)
    assert (done.returncode, done.stderr) == (0, "")
    assert kept(cache) == ""
    for args in ["--help"], ["models"], ["models", "--json"], ["check", "--help"]:
        done = script(*args, **options)
        assert (done.returncode, done.stderr) == (0, ""), args
    os.close(writing)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_behind_the_output_is_one_sentence() -> None:
    path = written(report(GOOD))
    with Path("/dev/full").open("w") as full:
        done = script("check", path, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (2, "ERROR: cannot print: No space left on device\n")


def test_what_a_terminal_cannot_show_is_escaped() -> None:
    message = "+14.0 % ± 0.5 % 家"
    path = written(report(check(Verdict.FAIL, "failed", message=message)))
    done = script("check", path, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (1, "")
    assert r"+14.0 % \xb1 0.5 % \u5bb6" in done.stdout
    done = script("check", path, env=os.environ | {"PYTHONIOENCODING": "utf-8"}, encoding="utf-8")
    assert message in done.stdout
