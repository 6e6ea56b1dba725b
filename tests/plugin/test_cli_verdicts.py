"""Commands that compare, summarise, and make what verdicts rest on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from pytest_ondevice import calibration, catalog, cli, references
from pytest_ondevice.conclusion import Status
from pytest_ondevice.errors import OnDeviceError
from pytest_ondevice.gather import encode
from pytest_ondevice.measure import StageFailedError
from pytest_ondevice.model.catalog import Cell, Model, ModelSource
from pytest_ondevice.model.device import Device, Runtime
from pytest_ondevice.model.ending import Ending, Kind
from pytest_ondevice.model.law import LawPoint, LawReport
from pytest_ondevice.model.measurement import Measurement
from pytest_ondevice.model.quantity import Stage
from pytest_ondevice.model.report import SCHEMA_VERSION, CellReport, CheckResult, Report
from pytest_ondevice.model.verdict import Verdict
from pytest_ondevice.probe.protocol import Execution
from pytest_ondevice.probe.reference import Head, Writer, moving

if TYPE_CHECKING:
    from collections.abc import Callable

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
    """Run a command that is refused, leaving nothing behind; returns its one sentence."""

    def run(*args: str | Path) -> str:
        before = sorted(Path().rglob("*"))
        status, out, err = command(*args)
        assert (status, out) == (2, []), err
        assert err.startswith("ERROR: ")
        assert err.count("\n") == 1
        assert sorted(Path().rglob("*")) == before
        return err.removeprefix("ERROR: ").rstrip("\n")

    return run


def cell(size: float, name: str = "m-Q4_0") -> CellReport:
    measured = Measurement(quantity="file_size", value=size, unit="B")
    model, _, method = name.partition("-")
    return CellReport(
        id=name,
        model=model,
        method=method,
        reference=False,
        verdict=Verdict.PASS,
        artifact=None,
        measurements={"file_size": measured},
    )


def written(
    path: str,
    *cells: CellReport,
    checks: tuple[CheckResult, ...] = (),
    laws: tuple[LawReport, ...] = (),
) -> Path:
    made = Report(
        schema_version=SCHEMA_VERSION,
        generator="pytest-ondevice 0",
        created="2026-09-01T12:00:00+00:00",
        complete=True,
        device=Device(
            system="Linux", machine="x86_64", cpu="A|B", cores=2, memory=1, python="3", libc="g"
        ),
        tier="desk",
        board="one",
        runtime=Runtime(name="llama.cpp", version="1", digest="d"),
        settings={},
        cells=cells,
        checks=checks,
        laws=laws,
        protocols={},
        notes=(),
    )
    Path(path).write_bytes(encode(made))
    return Path(path)


# -- compare


MIB = 2**20


@pytest.mark.parametrize(
    ("after", "status"),
    [
        ([cell(9 * MIB), cell(9 * MIB, "m-Q8_0")], Status.PASSED),
        ([cell(9 * MIB), cell(8 * MIB, "m-Q8_0")], Status.PASSED),
        ([cell(9 * MIB), cell(10 * MIB, "m-Q8_0")], Status.REGRESSED),
        ([cell(9 * MIB)], Status.UNDECIDED),
        ([], Status.UNDECIDED),
    ],
)
def test_the_status_of_a_comparison(
    command: Callable[..., Said], after: list[CellReport], status: Status
) -> None:
    written("old.json", cell(9 * MIB), cell(9 * MIB, "m-Q8_0"))
    written("new.json", *after)
    for more in [], ["--markdown"], ["--json"]:
        found, out, err = command("compare", "old.json", "new.json", *more)
        assert (found, err) == (status.value, "")
        assert out


def test_three_ways_to_print_a_comparison(command: Callable[..., Said]) -> None:
    written("old.json", cell(9 * MIB))
    written("new.json", cell(10 * MIB))
    _, out, _ = command("compare", "old.json", "new.json")
    assert out[0].startswith("old  report old.json: ")
    assert ["cell", "finding", "what", "changed", "most", "verdict"] in map(str.split, out)
    (row,) = [line.split() for line in out if line.startswith("m-Q4_0  ")]
    assert row[1:5] == ["worse", "file_size", "9.00", "MiB"]
    assert out[-1] == "The only cell is worse"
    _, out, _ = command("compare", "old.json", "new.json", "--markdown")
    assert out[0] == "### The only cell is worse"
    assert out[-1].startswith("- **new**: ")
    _, out, _ = command("compare", "old.json", "new.json", "--json")
    assert out[1].startswith('  "schema_version"')
    read = json.loads("\n".join(out))
    assert (read["finding"], read["cells"][0]["decided_by"]) == ("worse", "file_size")


def test_some_cells_are_compared(command: Callable[..., Said], refused: Callable[..., str]) -> None:
    written("old.json", cell(9 * MIB), cell(9 * MIB, "m-Q8_0"))
    written("new.json", cell(9 * MIB), cell(10 * MIB, "m-Q8_0"))
    status, out, _ = command("compare", "old.json", "new.json", "--cells", "*-Q4_?")
    assert (status, out[-1]) == (0, "The only cell is identical")
    assert command("compare", "old.json", "new.json", "--cells=*")[0] == 1
    said = refused("compare", "old.json", "new.json", "--cells=m-Q4_1")
    assert said == "--cells m-Q4_1: no cell matches; did you mean 'm-Q4_0'?"
    assert "no cell matches" in refused("compare", "old.json", "new.json", "--cells=")


def test_what_cannot_be_compared_is_one_sentence(refused: Callable[..., str]) -> None:
    written("old.json", cell(9 * MIB))
    Path("new.json").write_text("{}")
    for more in [], ["--markdown"], ["--json"]:
        said = refused("compare", "old.json", "gone.json", *more)
        assert said == "gone.json: cannot read it: No such file or directory"
        said = refused("compare", "old.json", "new.json", *more)
        assert said == "new.json: it is neither a report nor a baseline: no schema_version @ $"
    assert "there is no baseline in this folder" in refused("compare", ".", "old.json")


# -- summary


FAILED = CheckResult(
    check="fidelity.kld", cell="m-Q4_0", verdict=Verdict.FAIL, outcome="failed", message="too much"
)


def test_a_summary_is_markdown_whatever_the_report_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = written("report.json", cell(9 * MIB), checks=(FAILED,))
    assert cli.main(["summary", str(path)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("### 1 cell: 1 pass\n\nMeasured on A&#124;B, ")
    assert "- `fidelity.kld` of `m-Q4_0`: fail: too much\n" in text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_no_report_has_no_summary(refused: Callable[..., str]) -> None:
    assert refused("summary", "gone.json").startswith("gone.json: cannot read it: ")
    Path("bad.json").write_text("[]")
    assert refused("summary", "bad.json").startswith("bad.json: it is no report: ")


# -- export and plot

LAW = LawReport(
    law="file_size",
    subject="m",
    verdict=Verdict.PASS,
    message="a line",
    x="weight_bytes",
    x_unit="B",
    y="file_size",
    y_unit="B",
    points=tuple(
        LawPoint(cell=f"m-{method}", x=float(x), y=x + 10.0, fitted=x + 10.0, residual=0.0)
        for method, x in (("Q4_0", 4 * MIB), ("Q8_0", 8 * MIB), ("F16", 16 * MIB))
    ),
    slope=1.0,
    intercept=10.0,
    r2=1.0,
)


def test_a_report_is_exported_as_a_table(command: Callable[..., Said]) -> None:
    path = written("report.json", cell(9 * MIB), cell(10 * MIB, "m-Q8_0"), laws=(LAW,))
    status, out, err = command("export", path)
    assert (status, err) == (0, "")
    assert out == [
        "cell,model,method,quantity,value,error,unit,n",
        f'"m-Q4_0","m","Q4_0","file_size",{9 * MIB}.0,,"B",1',
        f'"m-Q8_0","m","Q8_0","file_size",{10 * MIB}.0,,"B",1',
    ]
    status, out, _ = command("export", path, "--format=json")
    rows = json.loads("\n".join(out))
    assert status == 0
    assert [(row["cell"], row["value"]) for row in rows] == [
        ("m-Q4_0", 9 * MIB),
        ("m-Q8_0", 10 * MIB),
    ]
    status, out, _ = command("export", path, "--format=jsonl")
    assert [json.loads(line) for line in out] == rows


def test_speeds_are_exported_as_llama_bench_has_them(command: Callable[..., Said]) -> None:
    timed = Measurement(
        quantity="decode_speed", value=30.0, unit="tokens/s", n=2, samples=(29.0, 31.0)
    )
    speed = msgspec.structs.replace(cell(1), measurements={"decode_speed": timed})
    path = written("report.json", speed, cell(2, "m-Q8_0"))
    status, out, err = command("export", path, "--as=llama-bench", "--format=jsonl")
    assert (status, err) == (0, "")
    (row,) = map(json.loads, out)
    assert (row["avg_ts"], row["samples_ts"]) == (30.0, [29.0, 31.0])
    # Without a speed there is no row, and no failure.
    status, out, _ = command("export", written("none.json", cell(2)), "--as=llama-bench")
    assert (status, len(out)) == (0, 1)
    assert out[0].startswith("build_commit,")


@pytest.mark.parametrize("name", ["export", "plot"])
def test_what_is_no_report_is_neither_exported_nor_drawn(
    refused: Callable[..., str], name: str
) -> None:
    assert refused(name, "gone.json").startswith("gone.json: cannot read it: ")
    Path("bad.json").write_text("[]")
    assert refused(name, "bad.json").startswith("bad.json: it is no report: ")
    later = json.loads(written("later.json", cell(1)).read_bytes()) | {"schema_version": 99}
    Path("later.json").write_text(json.dumps(later))
    assert "its schema_version is 99" in refused(name, "later.json")


@pytest.mark.parametrize(
    "args", [["export", "--as=xls"], ["export", "--format=xml"], ["plot", "--format=gif"]]
)
def test_wrong_kinds_of_export(command: Callable[..., Said], args: list[str]) -> None:
    name, *more = args
    status, out, err = command(name, written("report.json", cell(1)), *more)
    assert (status, out) == (2, [])
    assert "invalid choice: " in err


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_report_is_drawn(command: Callable[..., Said], suffix: str) -> None:
    pytest.importorskip("matplotlib")
    path = written("report.json", cell(9 * MIB), laws=(LAW,))
    status, out, err = command("plot", path, "--output=deep/er", f"--format={suffix}")
    assert (status, err) == (0, "")
    # One law with points; no cell has loss or memory.
    assert out == [f"deep/er/file_size-m.{suffix}"]
    content = Path(out[0]).read_bytes()
    assert (b"<svg" if suffix == "svg" else b"\x89PNG") in content[:1000]
    before = content
    assert command("plot", path, "--output=deep/er", f"--format={suffix}")[0] == 0
    assert Path(out[0]).read_bytes() == before


def test_pictures_go_into_a_folder_of_their_own(command: Callable[..., Said]) -> None:
    pytest.importorskip("matplotlib")
    assert command("plot", written("report.json", laws=(LAW,)))[:2] == (
        *(0, ["plots/file_size-m.svg"]),
    )


@pytest.mark.parametrize(
    ("output", "said"),
    [("file", "it is no folder"), ("file/sub", ""), ("a" * 300, ""), ("", "")],
    ids=["file", "below a file", "too long", "empty"],
)
def test_pictures_do_not_go_where_they_cannot(
    refused: Callable[..., str], output: str, said: str
) -> None:
    Path("file").write_text("")
    found = refused("plot", written("report.json", laws=(LAW,)), f"--output={output}")
    assert found.startswith(f"--output={output}: {said}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_pictures_do_not_go_into_a_folder_that_is_not_ours(refused: Callable[..., str]) -> None:
    Path("locked").mkdir(mode=0o500)
    path = written("report.json", laws=(LAW,))
    assert refused("plot", path, "--output=locked").startswith("--output=locked: ")


def test_without_matplotlib_one_sentence_says_how_to_get_it(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = refused("plot", written("report.json", laws=(LAW,)))
    assert said == "pictures need matplotlib: pip install 'pytest-ondevice[plots]'"


def test_a_report_with_nothing_to_draw_says_so(refused: Callable[..., str]) -> None:
    pytest.importorskip("matplotlib")
    said = refused("plot", written("report.json", cell(1)))
    assert said == "report.json: it holds no figure that could be drawn"


# -- reference check


SCORED = 255
VOCAB = 40


def reference(path: str = "m.npz", windows: int = 3) -> Path:
    head = Head(
        model="m",
        source="5" * 64,
        tokenizer="t",
        text="x",
        n_vocab=VOCAB,
        n_ctx=512,
        top=8,
        tail=4,
        seed=1,
        execution=moving(Execution()),
        runtime="llama-cpp-python 0",
        runtime_digest="d",
        cpu="CPU",
        created="2026-09-01",
    )
    ids = [f"text:{number}" for number in range(windows)]
    writer = Writer(head, ids, ids, SCORED)
    for number in range(windows):
        logits = np.random.default_rng(number).standard_normal((SCORED, VOCAB))
        log_p = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)
        writer.keep(number, log_p, np.zeros(SCORED, np.int32))
    writer.save(Path(path))
    return Path(path)


def test_a_whole_reference_is_described(command: Callable[..., Said]) -> None:
    path = reference()
    status, out, err = command("reference", "check", path)
    assert (status, err) == (0, "")
    assert out[0] == "reference of m, source 555555555555, made 2026-09-01"
    assert out[1].startswith("3 windows of 512 tokens, 255 scored in each")
    assert out[:-1] == references.lines(path)
    assert out[-1] == "every window is whole"


def flipped(path: Path, windows: list[int]) -> None:
    """Flip a bit in the middle of some windows."""
    content = bytearray(path.read_bytes())
    for number in windows:
        start = _places(content)[number]
        content[start + 2000] ^= 4
    path.write_bytes(content)


def _places(content: bytearray) -> list[int]:
    """Where the windows' arrays begin: behind head and index, in order."""
    magic, found, at = b"\x93NUMPY", [], -1
    while (at := content.find(magic, at + 1)) >= 0:
        found.append(at)
    return found[2:]


@pytest.mark.parametrize("windows", [[1], [0, 2]])
def test_every_damaged_window_is_named(command: Callable[..., Said], windows: list[int]) -> None:
    path = reference()
    flipped(path, windows)
    status, out, err = command("reference", "check", path)
    assert (status, err) == (1, "")
    assert out[:5] == references.lines(path)
    assert len(out) == 5 + len(windows)
    for number, line in zip(windows, out[5:], strict=True):
        assert line.startswith(f"{path}: ")
        assert f"text:{number}" in line


def test_what_is_no_reference_is_one_sentence(refused: Callable[..., str]) -> None:
    path = reference()
    whole = path.read_bytes()
    assert refused("reference", "check", "gone.npz").startswith("gone.npz: cannot read it: ")
    for name, content in {
        "empty": b"",
        "text": b"hello",
        "cut": whole[: len(whole) // 2],
        "longer": whole + b"x",
    }.items():
        Path(name).write_bytes(content)
        assert refused("reference", "check", name).startswith(f"{name}: ")
    assert refused("reference", "check", ".").startswith(".: ")


# -- reference make


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["m.npz"], "MODEL=nope (from the command line): unknown model 'nope'; "),
        (["gone/m.npz"], "gone/m.npz: there is no folder gone"),
        (["."], ". is there and is not a reference file; remove it or choose another name"),
        (["other.json"], "other.json is there and is not a reference file; remove it or "),
        (["cut.npz"], "cut.npz is there and is not a reference file; "),
        (["a" * 300], f"{'a' * 300}: cannot be written: File name too long"),
        (["m.npz", "--text=gone.txt"], "--text=gone.txt: cannot read it: No such file"),
        (["m.npz", "--text=other.bin"], "--text=other.bin: it is not UTF-8 text (byte 0)"),
        (["m.npz", "--cache="], "an empty path: a folder is expected"),
        (["m.npz", "--catalog=gone.toml"], "HERE/gone.toml: cannot read it: No such file"),
    ],
)
def test_a_reference_that_cannot_be_made_is_one_sentence(
    refused: Callable[..., str], runtime: Path, args: list[str], said: str
) -> None:
    Path("other.json").write_text("{}")
    Path("other.bin").write_bytes(b"\xff")
    Path("cut.npz").write_bytes(reference("whole.npz").read_bytes()[:-9])
    said = said.replace("HERE", str(Path.cwd()))
    assert refused("reference", "make", "nope", *args).startswith(said)


@pytest.mark.usefixtures("no_runtime")
def test_without_a_runtime_nothing_is_measured(refused: Callable[..., str]) -> None:
    for args in ["reference", "make", "smollm2-135m", "m.npz"], ["calibrate"]:
        assert refused(*args).startswith("llama-cpp-python is not installed; ")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--windows=0", "'0' is no number from 1 to 32768, nor smoke or release"),
        ("--windows=all", "'all' is no number from 1 to 32768, nor smoke or release"),
        ("--threads=0", "'0' is no number from 1 to 512"),
        ("--threads=0000000000002", "'0000000000002' is no number from 1 to 512"),
        ("--gpu-layers=-1", "'-1' is no number from 0 to 9999, nor all"),
    ],
)
def test_wrong_numbers(command: Callable[..., Said], option: str, said: str) -> None:
    status, out, err = command("reference", "make", "m", "m.npz", option)
    assert (status, out) == (2, [])
    assert err.splitlines()[-1].endswith(f"argument {option.partition('=')[0]}: {said}")


class Making:
    """Stands for the machine: no model is at hand here, and none is loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings: object = None
        self.ends: BaseException | None = None
        self.content = reference("source.npz").read_bytes()
        Path("source.npz").unlink()
        Path("tiny.gguf").write_bytes(b"")
        monkeypatch.setattr(cli, "_measuring", self._measuring)
        monkeypatch.setattr(references, "make", self._make)

    def _measuring(self, settings: object) -> object:
        import contextlib

        self.settings = settings
        return contextlib.nullcontext((None, cli._Progress()))

    def _make(self, _: object, model: Model, target: Path, tick: Callable[..., None]) -> None:
        # What a killed worker leaves: a part beside the file, named after it.
        Path(f"{target}.17.part").write_bytes(b"half")
        tick("start", 0, 0)
        tick("fidelity", 1, 2)
        target.write_bytes(self.content)
        if self.ends is not None:
            raise self.ends


@pytest.fixture
def making(monkeypatch: pytest.MonkeyPatch, runtime: Path) -> Making:
    return Making(monkeypatch)


def test_a_reference_is_made_whole(command: Callable[..., Said], making: Making) -> None:
    status, out, err = command("reference", "make", "tiny.gguf", "m.npz", "--windows=smoke")
    assert (status, out) == (0, references.lines(Path("m.npz")))
    assert err == "tiny: fidelity 50%\n"
    assert sorted(path.name for path in Path().iterdir()) == ["m.npz", "tiny.gguf"]
    assert making.settings.windows == 16
    assert making.settings.methods == ("F16",)
    # Over a reference it may be made again.
    making.content = reference("other.npz", windows=2).read_bytes()
    more = ["--threads=3", "--gpu-layers=ALL", "--offline", "--cache=c"]
    assert command("reference", "make", "tiny.gguf", "m.npz", *more)[0] == 0
    assert Path("m.npz").read_bytes() == making.content
    settings = making.settings
    assert (settings.windows, settings.threads, settings.gpu_layers) == (None, 3, 9999)
    # A worker is in a folder of its own: what it is told of has to be absolute.
    assert (settings.offline, settings.cache) == (True, Path("c").absolute())
    Path("own.txt").write_text("text")
    Path("own.toml").write_text("schema = 1\n[models]\n")
    own = ["--text=own.txt", "--catalog=own.toml"]
    command("reference", "make", "tiny.gguf", "m.npz", "--windows=2", *own)
    settings = making.settings
    assert settings.windows == 2
    assert settings.text == Path("own.txt").absolute()
    assert settings.catalog == Path("own.toml").absolute()


@pytest.mark.parametrize(
    ("ends", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OnDeviceError("m-F16: crash: it died"), 2, "ERROR: m-F16: crash: it died"),
    ],
)
def test_what_was_there_stays_until_the_new_one_is_whole(
    command: Callable[..., Said], making: Making, ends: BaseException, status: int, said: str
) -> None:
    making.ends = ends
    before = reference("m.npz", windows=2).read_bytes()
    found, out, err = command("reference", "make", "tiny.gguf", "m.npz")
    assert (found, out, err.splitlines()[-1]) == (status, [], said)
    assert Path("m.npz").read_bytes() == before
    assert command("reference", "make", "tiny.gguf", "new.npz")[0] == status
    assert sorted(path.name for path in Path().iterdir()) == ["m.npz", "tiny.gguf"]


def test_a_stage_that_dies_is_one_sentence(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, runtime: Path
) -> None:
    from pytest_ondevice import workbench

    model = Model(name="m", sources=(ModelSource(path="m.gguf"),))
    ending = Ending(kind=Kind.CRASH, stage="quantize", message="it crashed")

    def died(*_: object) -> None:
        raise StageFailedError(Cell(model=model, method="Q4_0"), Stage.QUANTIZE, ending)

    monkeypatch.setattr(workbench, "workbench", died)
    assert refused("calibrate") == "quantize of m-Q4_0: it crashed"


# -- calibrate


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nope"], "MODEL=nope (from the command line): unknown model 'nope'; "),
        (["--method=study"], "--method=study (from the command line): a group of file types; "),
        (["--method=Q4_9"], "--method=Q4_9 (from the command line): unknown method 'Q4_9'"),
        (["--tier=.x"], "--tier=.x: a tier's name does not start with '.'"),
        (["--output=gone/x.json"], "gone/x.json: there is no folder gone"),
        (["--output=."], ". is there and is not a calibration; remove it or choose another"),
        (["--output=other.json"], "other.json is there and is not a calibration; remove it or "),
        (["--cache=other.json"], "HERE/other.json/calibration: HERE/other.json is not a folder"),
    ],
)
def test_a_calibration_that_cannot_be_made_is_one_sentence(
    refused: Callable[..., str], runtime: Path, args: list[str], said: str
) -> None:
    Path("other.json").write_text("{}")
    assert refused("calibrate", *args).startswith(said.replace("HERE", str(Path.cwd())))


@pytest.mark.parametrize("option", ["--runs=0", "--rounds=1", "--runs=x", "--rounds=101"])
def test_wrong_counts(command: Callable[..., Said], option: str) -> None:
    status, out, err = command("calibrate", option)
    assert (status, out) == (2, [])
    assert f"argument {option.partition('=')[0]}: '" in err


def sampled(rounds: int, *, interrupted: bool = False) -> calibration.Samples:
    found = calibration.Samples(memory=[5.0, 6.0], interrupted=interrupted)
    for number in range(1, rounds + 1):
        one, other = (
            {
                "load": [1.0],
                "ttft": [1.0],
                "prefill": [100.0],
                "decode": [50.0 + number * place / 100],
                "disturbed": [],
            }
            for place in (0, 1)
        )
        calibration.add(found, number, one, other)
    return found


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, runtime: Path) -> Callable[[object], list[object]]:
    """Let measuring yield what is given; the machine itself is not asked."""
    import contextlib
    import types

    cell = Cell(model=Model(name="m", sources=(ModelSource(path="m.gguf"),)), method="Q4_0")
    other = Cell(model=cell.model, method="F16", reference=True)
    bench = types.SimpleNamespace(cells=(other, cell))

    def given(found: object) -> list[object]:
        asked: list[object] = []

        def sample(_: object, cell: Cell, runs: int, __: object) -> object:
            asked.extend([cell.id, runs])
            return found

        monkeypatch.setattr(calibration, "sample", sample)
        monkeypatch.setattr(
            cli, "_measuring", lambda _: contextlib.nullcontext((bench, cli._Progress()))
        )
        return asked

    return given


def test_a_calibration_is_printed_and_kept(
    command: Callable[..., Said], measured: Callable[[object], list[object]]
) -> None:
    asked = measured(sampled(16))
    args = ("calibrate", "--runs=2", "--tier=desk", "--cache=c")
    status, out, err = command(*args)
    assert (status, err, asked) == (0, "", ["m-Q4_0", 2])
    kept = Path("c/calibration/desk.json").absolute()
    found = calibration.read(kept)
    assert found is not None
    assert (found.tier, found.model, found.method, found.rounds, found.runs) == (
        *("desk", "m", "Q4_0"),
        *(8, 2),
    )
    assert out == [*calibration.lines(found), f"kept in {kept}"]
    # Over a calibration another may be written, here and elsewhere.
    for _ in range(2):
        status, out, _ = command(*args, "--json", "--output=mine.json", "--rounds=4")
        assert status == 0
        assert json.loads("\n".join(out)) == json.loads(kept.read_text())
        assert Path("mine.json").read_bytes() == kept.read_bytes()
    assert calibration.read(kept).rounds == 4


def test_without_a_name_the_tier_is_the_machines(
    command: Callable[..., Said], measured: Callable[[object], list[object]]
) -> None:
    from pytest_ondevice.devices import device
    from pytest_ondevice.devices import runtime as installed
    from pytest_ondevice.tier import tier

    measured(sampled(8))
    assert command("calibrate", "--cache=c", "--threads=3")[0] == 0
    ours = tier(device(), installed(), 3, 0, None)
    assert [path.stem for path in Path("c/calibration").iterdir()] == [ours.name]
    assert calibration.noise(Path("c"), ours.name)["peak_memory"] > 0


@pytest.mark.parametrize(("rounds", "kept"), [(0, False), (7, False), (8, True)])
def test_an_interrupted_calibration_keeps_eight_rounds(
    command: Callable[..., Said],
    measured: Callable[[object], list[object]],
    rounds: int,
    kept: bool,
) -> None:
    measured(sampled(rounds, interrupted=True))
    status, out, err = command("calibrate", "--tier=desk", "--cache=c")
    assert status == 130
    assert Path("c/calibration/desk.json").exists() == kept
    assert bool(out) == kept
    fate = "which are kept" if kept else "fewer than 8 are not kept"
    assert err.startswith(f"interrupted after {rounds} whole rounds")
    assert fate in err


# -- progress


class Screen:
    """A terminal that keeps what is written."""

    def __init__(self, *, tty: bool) -> None:
        self.text = ""
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        if self.text.endswith("full\n"):
            raise BrokenPipeError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(cli.time, "monotonic", lambda: now[0])
    return now


def test_progress_on_a_terminal_is_one_line(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    screen = Screen(tty=True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "30")
    shown = cli._Progress()
    shown.update("m-Q4_0", "calibrating", 0, 10)
    shown.update("m-Q4_0", "calibrating", 1, 10)  # too soon to be drawn
    clock[0] += 10
    shown.update("m-Q4_0", "calibrating", 2, 10)
    first, second = "m-Q4_0: calibrating", "m-Q4_0: calibrating 20%, 40 s"
    assert screen.text == f"\r\x1b[K{first}\r\x1b[K{second[:29]}"
    assert "\n" not in screen.text
    shown.tell("done")
    shown.finish()
    assert screen.text.endswith("\r\x1b[Kdone\n")


def test_progress_elsewhere_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    screen = Screen(tty=False)
    monkeypatch.setattr(sys, "stderr", screen)
    shown = cli._Progress()
    for second in range(50):
        shown.update("m", "calibrating", second, 50)
        clock[0] += 1
    shown.update("m", "memory", 0, 0)
    shown.finish()
    lines = ["m: calibrating", "m: calibrating 40%, 30 s left", "m: calibrating 80%, 10 s left"]
    assert screen.text.splitlines() == [*lines, "m: memory"]
    shown.tell("full")  # nobody reads it any more


# -- a reader that has gone


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (["compare", "old.json", "new.json"], 1),
        (["compare", "old.json", "new.json", "--markdown"], 1),
        (["compare", "old.json", "new.json", "--json"], 1),
        (["summary", "old.json"], 0),
        (["export", "old.json"], 0),
        (["reference", "check", "m.npz"], 1),
        (["calibrate", "--help"], 0),
    ],
)
def test_a_reader_that_has_gone_does_not_change_the_status(args: list[str], status: int) -> None:
    written("old.json", cell(9 * MIB))
    written("new.json", cell(10 * MIB))
    flipped(reference(), [1])
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [SCRIPT, *args], stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=60
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (status, "")
