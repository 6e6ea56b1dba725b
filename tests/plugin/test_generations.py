"""Greedy continuations as snapshots: where they are kept, what is compared, what stays untouched.

No model runs here: the tests of the project say what it would have written.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from projects import sentence, sentence_or_all

from pytest_ondevice import shipped
from pytest_ondevice.generations import Continuation, parse, render

if TYPE_CHECKING:
    from pathlib import Path

    from projects import Project

SUITE = "--ondevice-suites=generations"
UPDATE = "--snapshot-update"
CELLS = ("tiny-F16", "tiny-Q4_0")
CHECK = "test_own.py::test_own"
DISTRIBUTED = pytest.mark.parametrize("n", [[], ["-n2"]], ids=["alone", "distributed"])

# What the model of a cell says to a prompt; a planted fault replaces it.
OWN = """
import json, os, pathlib, signal
import pytest
from pytest_ondevice.api import Generation
from pytest_ondevice.generations import Continuations

HERE = pathlib.Path(__file__).parent

@pytest.fixture
def continuations(request, ondevice_cell):
    return Continuations(request, ondevice_cell)

def test_own(continuations, ondevice_cell):
    says = json.loads((HERE / "says.json").read_text())
    prompts = says["prompts"]
    def generate(prompt, *, max_tokens):
        with (HERE / "asked.txt").open("a") as asked:
            asked.write(f"{ondevice_cell.id} {prompt} {max_tokens}\\n")
        if says.get("dies") == ondevice_cell.id:
            raise {"interrupt": KeyboardInterrupt, "error": OSError}[says["how"]]
        if says.get("killed") == ondevice_cell.id:
            os.kill(os.getpid(), signal.SIGKILL)
        text, tokens = says.get(f"{ondevice_cell.id} {prompt}") or says[prompt]
        return Generation(text, tuple(tokens))
    continuations(prompts, generate, max_tokens=8)
"""

SAYS = {
    "prompts": {"story": "Once", "code": "def f():\n"},
    "Once": [" upon a time\nthere was ", [5, 6, 7, 8]],
    "def f():\n": ["    return 1", [9, 10]],
}

RECORDED = """\
Greedy continuations of tiny-F16

# story, at most 8 tokens
prompt
  "Once"
continuation
  " upon a time\\n"
  "there was "
tokens
  5 6 7 8

# code, at most 8 tokens
prompt
  "def f():\\n"
continuation
  "    return 1"
tokens
  9 10
"""


class Gate:
    """A project with a model that says what it is told to."""

    def __init__(self, project: Project) -> None:
        self.project = project
        project.write("test_own.py", OWN)
        project.write("pytest.ini", "[pytest]\nfilterwarnings = error\n")
        self.say()

    def say(self, **changed: object) -> None:
        self.project.write("says.json", json.dumps(SAYS | changed))

    def run(self, *args: str, methods: str = "F16") -> pytest.RunResult:
        chosen = ["--ondevice-models=tiny.gguf", f"--ondevice-methods={methods}"]
        result = self.project.run_apart(
            *chosen, "test_own.py", "--ondevice-report=gate.json", "-rs", *args
        )
        text = sentence_or_all(result)
        assert "INTERNALERROR" not in text, text
        return result

    def verdicts(self) -> dict[str, tuple[str, str]]:
        report = json.loads((self.project.path / "gate.json").read_text())
        assert {one["check"] for one in report["checks"]} == {CHECK}
        return {one["cell"]: (one["verdict"], one["message"]) for one in report["checks"]}

    def asked(self) -> list[str]:
        path = self.project.path / "asked.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line for line in lines if line.startswith("tiny")]

    def kept(self) -> dict[str, bytes]:
        """Everything below the folder of the baselines, and nothing like it elsewhere."""
        root = self.project.path
        assert not list(root.rglob("__snapshots__"))
        folder = root / "baselines"
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }

    def path(self, method: str = "F16") -> Path:
        [path] = self.project.path.glob(f"baselines/*/generations/tiny/{method}.txt")
        return path


@pytest.fixture
def gate(project: Project, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> Gate:
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)  # syrupy would take a run for a worker of ours
    return Gate(project)


@pytest.fixture
def recorded(gate: Gate) -> Gate:
    result = gate.run(UPDATE)
    assert result.ret == 0, sentence_or_all(result)
    gate.asked()
    return gate


# -- recording and comparing


def test_a_missing_snapshot_is_no_failure_and_nothing_is_generated(gate: Gate) -> None:
    result = gate.run()
    assert result.ret == 0, sentence_or_all(result)
    result.assert_outcomes(skipped=1)
    verdict, message = gate.verdicts()["tiny-F16"]
    assert verdict == "no baseline"
    assert message.startswith("no snapshot baselines/")
    assert message.endswith("F16.txt; record one with the same command and --snapshot-update")
    assert message in result.stdout.str()
    assert gate.kept() == {}
    assert gate.asked() == []
    assert "snapshot failed" not in result.stdout.str()


@DISTRIBUTED
def test_what_is_recorded_is_read_by_people_and_passes(gate: Gate, n: list[str]) -> None:
    result = gate.run(UPDATE, *n)
    assert result.ret == 0, sentence_or_all(result)
    result.assert_outcomes(passed=1)
    assert "1 snapshot generated." in result.stdout.str()
    verdict, message = gate.verdicts()["tiny-F16"]
    assert verdict == "pass"
    assert message.startswith("recorded in baselines/")
    assert gate.path().read_text() == RECORDED
    assert [path.split("/")[1:] for path in gate.kept()] == [["generations", "tiny", "F16.txt"]]
    before, stamp = gate.kept(), gate.path().stat().st_mtime_ns
    for again in ([], [UPDATE]):
        result = gate.run(*again)
        assert result.ret == 0, sentence_or_all(result)
        assert gate.verdicts()["tiny-F16"] == (
            "pass",
            f"the text of baselines/{next(iter(before))}",
        )
        assert (gate.kept(), gate.path().stat().st_mtime_ns) == (before, stamp)
    assert gate.asked()[-2:] == ["tiny-F16 Once 8", "tiny-F16 def f():"]


@pytest.mark.parametrize(
    ("n", "said", "reason", "diff"),
    [
        (
            ["-n2"],
            [" upon a hill\nthere was ", [5, 6, 4, 8]],
            "1 of 2 continuations differ: story from token 3 on",
            ['-  " upon a time\\n"', '+  " upon a hill\\n"', "-  5 6 7 8", "+  5 6 4 8"],
        ),
        (
            [],
            [" upon a time\nthere was", [5, 6, 7, 8]],
            "1 of 2 continuations differ: story in its text alone",
            ['-  "there was "', '+  "there was"'],
        ),
        (
            [],
            [" upon a time\nthere was ", [5, 6, 7]],
            "1 of 2 continuations differ: story from token 4 on",
            ["-  5 6 7 8", "+  5 6 7"],
        ),
        ([], ["", []], "1 of 2 continuations differ: story from token 1 on", ['+  ""']),
    ],
)
def test_another_text_fails_with_a_diff(
    recorded: Gate, n: list[str], said: list[object], reason: str, diff: list[str]
) -> None:
    before = recorded.kept()
    recorded.say(Once=said)
    result = recorded.run(*n)
    assert result.ret == 1, sentence_or_all(result)
    result.assert_outcomes(failed=1)
    assert recorded.verdicts() == {"tiny-F16": ("fail", reason)}
    lines = [line.rstrip("\n") for line in result.outlines]
    assert f"{CHECK} tiny-F16: fail: {reason}" in lines
    assert f"  source    snapshot: baselines/{next(iter(before))}" in lines
    assert [line for line in lines if UPDATE in line]
    assert {f"  {line}" for line in diff} <= set(lines)
    assert "Traceback" not in result.stdout.str()
    assert "generations.py" not in result.stdout.str()
    assert "1 snapshot failed." in result.stdout.str()
    assert recorded.kept() == before


def test_an_update_accepts_the_new_text(recorded: Gate) -> None:
    recorded.say(Once=[" upon a hill", [5, 6, 4]])
    result = recorded.run(UPDATE)
    assert result.ret == 0, sentence_or_all(result)
    verdict, message = recorded.verdicts()["tiny-F16"]
    assert verdict == "pass"
    assert message.endswith("1 of 2 continuations differ: story from token 3 on")
    assert "1 snapshot updated." in result.stdout.str()
    assert '  " upon a hill"\ntokens\n  5 6 4\n' in recorded.path().read_text()
    assert recorded.run().ret == 0


def test_only_what_is_new_is_recorded_where_that_is_asked(recorded: Gate) -> None:
    before = recorded.kept()
    recorded.say(Once=[" upon a hill", [5, 6, 4]])
    result = recorded.run("--snapshot-update-new-only", methods="F16,Q4_0")
    assert result.ret == 1, sentence_or_all(result)
    assert [verdict for verdict, _ in recorded.verdicts().values()] == ["fail", "pass"]
    after = recorded.kept()
    assert before.items() < after.items()
    assert len(after) == 2


def test_another_prompt_is_another_question(recorded: Gate) -> None:
    before = recorded.kept()
    for prompts in ({"story": "Once"}, {"tale": "Once", "code": "def f():\n"}, {"story": "Twice"}):
        recorded.say(prompts=prompts, Twice=["", []])
        result = recorded.run()
        assert result.ret == 0, sentence_or_all(result)
        verdict, message = recorded.verdicts()["tiny-F16"]
        assert verdict == "no baseline"
        assert message.startswith("not comparable with baselines/")
        assert message.endswith("record one with the same command and --snapshot-update")
    assert recorded.asked() == []
    assert recorded.kept() == before
    assert recorded.run(UPDATE).ret == 0
    assert '  "Twice"\n' in recorded.path().read_text()


def test_a_checkout_with_other_line_ends_holds_the_same_text(recorded: Gate) -> None:
    path = recorded.path()
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert recorded.run().ret == 0


# -- what is not this run's


@pytest.mark.parametrize("args", [[], [UPDATE], [UPDATE, "-n2"]], ids=" ".join)
def test_what_belongs_to_others_is_left_alone(recorded: Gate, args: list[str]) -> None:
    mine = recorded.path()
    others = [
        mine.with_name("Q8_0.txt"),
        mine.with_name("F16.json"),
        mine.parents[1] / "giant" / "F16.txt",
        mine.parents[1] / "notes.txt",
        mine.parents[3] / "another-tier" / "generations" / "tiny" / "F16.txt",
        mine.parents[3] / "portable" / "tiny" / "F16.json",
    ]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("somebody else's\n")
    before = recorded.kept()
    result = recorded.run(*args)
    assert result.ret == 0, sentence_or_all(result)
    assert "unused" not in result.stdout.str()
    assert recorded.kept() == before


def test_a_cell_that_fails_before_the_comparison_keeps_its_text(recorded: Gate) -> None:
    before = recorded.kept()
    recorded.say(dies="tiny-F16", how="error")
    result = recorded.run(UPDATE)
    assert result.ret == 1, sentence_or_all(result)
    assert recorded.kept() == before


@DISTRIBUTED
def test_the_users_own_snapshots_are_still_syrupys(recorded: Gate, n: list[str]) -> None:
    project = recorded.project
    project.write("mine/test_mine.py", "def test_mine(snapshot):\n    assert snapshot == 'mine'\n")
    result = recorded.run("mine", UPDATE, *n)
    assert result.ret == 0, sentence_or_all(result)
    amber = project.path / "mine" / "__snapshots__" / "test_mine.ambr"
    assert "'mine'" in amber.read_text()
    mine = recorded.path()
    stray = mine.with_name("Q8_0.txt")
    stray.write_text("somebody else's\n")
    amber.write_text(amber.read_text() + "# name: test_gone\n  'gone'\n# ---\n")
    result = recorded.run("mine")
    assert result.ret == 1, sentence_or_all(result)
    assert "1 snapshot unused." in result.stdout.str()
    result = recorded.run("mine", UPDATE, *n)
    assert result.ret == 0, sentence_or_all(result)
    assert "gone" not in amber.read_text()
    assert mine.read_text() == RECORDED
    assert stray.exists()


# -- several cells, and the end of a run before its end


@DISTRIBUTED
def test_each_cell_has_its_own_file(gate: Gate, n: list[str]) -> None:
    gate.say(**{"tiny-Q4_0 Once": [" upun", [5, 66]]})
    result = gate.run(UPDATE, *n, methods="F16,Q4_0")
    assert result.ret == 0, sentence_or_all(result)
    assert "2 snapshots generated." in result.stdout.str()
    assert gate.path().read_text() == RECORDED
    assert "5 66" in gate.path("Q4_0").read_text()
    gate.say(**{"tiny-Q4_0 Once": [" upon", [5, 67]]})
    result = gate.run(methods="F16,Q4_0")
    assert result.ret == 1, sentence_or_all(result)
    assert [gate.verdicts()[cell][0] for cell in CELLS] == ["pass", "fail"]


@pytest.mark.parametrize("fault", ["interrupt", "kill"])
@DISTRIBUTED
def test_an_interruption_costs_no_cell_that_is_done(gate: Gate, fault: str, n: list[str]) -> None:
    """Under ``-n 2`` the worker dies, and the run goes on without it."""
    dies = {"dies": "tiny-Q4_0", "how": "interrupt"} if fault == "interrupt" else {}
    gate.say(**(dies or {"killed": "tiny-Q4_0"}))
    result = gate.run(UPDATE, *n, methods="F16,Q4_0")
    assert result.ret != 0
    assert "tiny-Q4_0 Once 8" in gate.asked()
    assert gate.path().read_text() == RECORDED
    assert len(gate.kept()) == 1, "a part of a file was left"
    gate.say()
    assert gate.run(methods="F16,Q4_0").ret == 0
    assert [gate.verdicts()[cell][0] for cell in CELLS] == ["pass", "no baseline"]


# -- mistakes


BROKEN = {
    "conflict": ("  5 6 7 8\n", "<<<<<<< HEAD\n  5 6 7 8\n=======\n", "line 10 is not as it was"),
    "no-text": ('  " upon a time\\n"\n', "  upon a time\n", "line 7 is not as it was recorded"),
    "no-token": ("  5 6 7 8\n", "  5 6 seven 8\n", "line 10 is not as it was recorded"),
    "endless-token": ("  9 10\n", f"  9 1{'0' * 5000}\n", "line 18 is not as it was recorded"),
    "other-cell": ("of tiny-F16", "of tiny-F32", "line 1 is not as it was recorded for tiny-F16"),
    "emptied": (RECORDED, "", "line 1 is not as it was recorded for tiny-F16"),
    "cut-off": ("  9 10\n", "  9 10", "line 18 is not"),
    "nested": ('  "Once"', "  " + "[" * 100_000, "line 5 is not as it was recorded"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_file_that_is_something_else_is_told_and_left_alone(recorded: Gate, fault: str) -> None:
    old, new, said = BROKEN[fault]
    recorded.path().write_text(RECORDED.replace(old, new, 1))
    before = recorded.kept()
    for update in ([], [UPDATE]):
        result = recorded.run(*update)
        assert result.ret == 1, sentence_or_all(result)
        verdict, message = recorded.verdicts()["tiny-F16"]
        assert verdict == "fail"
        assert said in message
        assert message.endswith("restore it, or remove it and record again with --snapshot-update")
        assert "Traceback" not in result.stdout.str()
        assert recorded.kept() == before
    assert recorded.asked() == []


def test_a_file_that_is_no_text_is_told(recorded: Gate) -> None:
    path = recorded.path()
    path.write_bytes(b"\xff" + path.read_bytes())
    assert recorded.run().ret == 1
    assert "F16.txt: it is not UTF-8 (byte 0); restore it" in recorded.verdicts()["tiny-F16"][1]
    path.unlink()
    path.mkdir()
    assert recorded.run().ret == 1
    assert "F16.txt: cannot read it: Is a directory" in recorded.verdicts()["tiny-F16"][1]


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_generated(gate: Gate) -> None:
    gate.project.write("taken", "a file")
    result = gate.run(UPDATE, "--ondevice-baselines=taken/baselines")
    assert result.ret == 1, sentence_or_all(result)
    verdict, message = gate.verdicts()["tiny-F16"]
    assert verdict == "fail"
    assert "taken is not a folder; choose another folder with --ondevice-baselines=DIR" in message
    assert gate.asked() == []


def test_the_files_are_where_the_user_says(gate: Gate) -> None:
    assert gate.run(UPDATE, "--ondevice-baselines=mine").ret == 0
    [path] = gate.project.path.glob("mine/*/generations/tiny/F16.txt")
    assert path.read_text() == RECORDED
    assert gate.kept() == {}


def test_another_plugins_snapshot_is_told(gate: Gate) -> None:
    gate.project.write(
        "conftest.py", "import pytest\n@pytest.fixture\ndef snapshot():\n    return None\n"
    )
    result = gate.run()
    assert result.ret == 1, sentence_or_all(result)
    assert "the fixture 'snapshot' is not syrupy's" in gate.verdicts()["tiny-F16"][1]


def test_a_name_that_would_not_be_read_again_is_refused(gate: Gate) -> None:
    gate.say(prompts={"a story\n": "Once"})
    result = gate.run(UPDATE)
    assert result.ret == 1, sentence_or_all(result)
    assert "cannot name a prompt; use letters, digits, _ and -" in result.stdout.str()
    assert gate.kept() == {}


# -- the shipped suite


def test_the_suite_needs_syrupy_and_says_so(project: Project, tiny: list[str]) -> None:
    folder = shipped.folder("suites") / "generations"
    result = project.run_apart(*tiny, folder, "-p", "no:syrupy", "-rs")
    assert result.ret == 0, sentence_or_all(result)
    result.assert_outcomes(skipped=1)
    assert "requires syrupy: pip install 'pytest-ondevice[generations]'" in result.stdout.str()


def test_without_syrupy_nobody_asks_for_the_suite(project: Project, tiny: list[str]) -> None:
    said = project.refused(*tiny, SUITE, "-p", "no:syrupy", apart=True)
    assert said.startswith("--ondevice-suites=generations (from the command line): ")
    assert "pip install 'pytest-ondevice[generations]'" in said


def test_the_suite_runs_only_where_it_is_named(project: Project, runtime: None) -> None:
    models = ["--ondevice-models=smollm2-135m", "--ondevice-methods=Q4_0"]
    assert not [node for node in project.collect(*models) if "generations" in node]
    assert project.collect(*models, SUITE) == [
        f"generations::test_greedy[smollm2-135m-{method}]" for method in ("F16", "Q4_0")
    ]
    # What is shipped for all suites alike does not need the extra.
    assert project.collect(*models, "-p", "no:syrupy")


def test_the_suite_records_nothing_beside_itself(project: Project, tiny: list[str]) -> None:
    folder = shipped.folder("suites")
    before = {path for path in folder.rglob("*") if "__pycache__" not in path.parts}
    result = project.run_apart(*tiny, SUITE, "-rs")
    assert result.ret == 0, sentence_or_all(result)
    result.assert_outcomes(skipped=1)
    assert "record one with the same command and --snapshot-update" in result.stdout.str()
    assert {path for path in folder.rglob("*") if "__pycache__" not in path.parts} == before
    assert not list(project.path.rglob("*.txt"))


@DISTRIBUTED
def test_an_update_names_the_other_command(gate: Gate, n: list[str]) -> None:
    other = "measured baselines are recorded with --ondevice-update"
    result = gate.run(UPDATE, SUITE, "-k", "test_own", *n)
    assert result.ret == 0, sentence_or_all(result)
    assert other in result.stdout.str()
    result = gate.run(SUITE, "-k", "test_own", *n)
    assert other not in result.stdout.str()


def test_a_suite_without_a_model_is_refused(project: Project) -> None:
    result = project.run_apart(SUITE)
    assert "no model to run them on" in sentence(result)


# -- the text of a file

NAMES = st.from_regex(r"\A[a-zA-Z0-9_-]+\Z")
CONTINUATIONS = st.builds(
    Continuation,
    name=NAMES,
    prompt=st.text(),
    max_tokens=st.integers(1, 99_999),
    text=st.text(st.sampled_from('a \\"#\n\r\t\v\f\x00\x1c\x7f\x85\xa0\u2028\ufeffäß🙂'))
    | st.text(),
    tokens=st.lists(st.integers(0, 300_000), max_size=40).map(tuple),
)


@given(st.lists(CONTINUATIONS, max_size=4))
def test_what_is_written_is_read(continuations: list[Continuation]) -> None:
    text = render("m-Q4_0", continuations)
    assert list(parse(text, "m-Q4_0")) == continuations
    assert len(text.splitlines()) == text.count("\n"), "a line end that only some tools see"
    assert not [line for line in text.split("\n") if line != line.rstrip()]


@given(st.lists(CONTINUATIONS, min_size=1, max_size=2), st.data())
def test_a_line_that_is_lost_or_doubled_is_noticed(
    continuations: list[Continuation], data: st.DataObject
) -> None:
    lines = render("m-Q4_0", continuations).split("\n")
    at = data.draw(st.integers(0, len(lines) - 1))
    times = data.draw(st.sampled_from([0, 2]))
    changed = "\n".join([*lines[:at], *(lines[at : at + 1] * times), *lines[at + 1 :]])
    try:
        assert list(parse(changed, "m-Q4_0")) != continuations
    except ValueError as error:
        assert "is not as it was recorded" in str(error)  # noqa: PT017
