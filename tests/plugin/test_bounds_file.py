"""The file of the user's own bounds in a run: which items it makes, and what they come to.

What is limited here is read from headers, or measured by a worker that answers at once: no probe
is started.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from projects import CHECKS, sentence_or_all

from pytest_ondevice.probe import runner
from pytest_ondevice.probe.protocol import Event
from pytest_ondevice.probe.runner import Result

if TYPE_CHECKING:
    from collections.abc import Callable

    from projects import Project

    from pytest_ondevice.probe.protocol import MeasureJob

BOUNDS = "--ondevice-bounds=bounds.toml"
KEPT = """\
[[budget]]
quantity = "file_size"
at_most = "1 MiB"
reason = "the board's flash"
"""


@pytest.fixture
def run(project: Project, tiny: list[str]) -> Callable[..., dict[str, Any]]:
    """Run with a file of bounds; returns the report, with the outcomes and the output in it."""

    def run(bounds: str, *args: str) -> dict[str, Any]:
        project.write("bounds.toml", bounds)
        result = project.run(*tiny, BOUNDS, *args)
        assert result.ret in {0, 1}, sentence_or_all(result)
        report: dict[str, Any] = json.loads((project.path / "report.json").read_text())
        return report | {"outcomes": result.parseoutcomes(), "output": result.stdout.str()}

    return run


def checks_of(report: dict[str, Any], check: str = "budgets.kept") -> dict[str, dict[str, Any]]:
    return {one["quantity"]: one for one in report["checks"] if one["check"] == check}


# -- which items


def test_a_file_of_bounds_adds_an_item_for_each_limit_of_each_cell(
    project: Project, tiny: list[str]
) -> None:
    project.write(
        "bounds.toml",
        KEPT
        + """
[[budget]]
quantity = "peak_memory"
at_most = "1 GiB"
method = "Q4_0"

[[budget]]
quantity = "decode_speed"
at_least = 1
model = "another"
""",
    )
    methods = "--ondevice-methods=F16,Q4_0"
    found = project.collect(tiny[0], methods, BOUNDS)
    assert [node for node in found if node.startswith("budgets")] == [
        "budgets::test_kept[tiny-F16-file_size]",
        "budgets::test_kept[tiny-Q4_0-file_size]",
        "budgets::test_kept[tiny-Q4_0-peak_memory]",
    ]
    # Beside the suites that gate, not instead of them.
    assert [node for node in found if not node.startswith("budgets")] == project.collect(
        tiny[0], methods
    )


def test_without_a_file_there_are_no_limits(project: Project, tiny: list[str]) -> None:
    assert not [node for node in project.collect(*tiny) if node.startswith("budgets")]
    assert len(project.collect(*tiny)) == CHECKS
    beside = ("--ondevice-suites=budgets,artifact", "-k", "kept or file_size", "-rs")
    result = project.run(*tiny, *beside)
    assert result.parseoutcomes()["skipped"] == 2
    said = "requires a budget: a [[budget]] in the file of --ondevice-bounds"
    assert [line for line in result.outlines if line.endswith(said)]


def test_the_suite_of_limits_runs_alone_where_it_is_named(
    project: Project, tiny: list[str]
) -> None:
    project.write("bounds.toml", KEPT)
    assert project.collect(*tiny, BOUNDS, "--ondevice-suites=budgets") == [
        "budgets::test_kept[tiny-F16-file_size]"
    ]


def test_a_limit_of_another_machine_is_none_here(project: Project, tiny: list[str]) -> None:
    project.write("bounds.toml", KEPT + 'device = "kitchen"\n')
    only = (*tiny, BOUNDS, "--ondevice-suites=budgets")
    here = project.collect(*only, "--ondevice-tier=kitchen")
    assert here == ["budgets::test_kept[tiny-F16-file_size]"]
    assert project.collect(*only) == ["budgets::test_kept[no-budget]"]


# -- what they come to

ONLY = "--ondevice-suites=budgets"


def test_a_limit_that_is_kept(run: Callable[..., dict[str, Any]]) -> None:
    report = run(KEPT, ONLY)
    assert report["outcomes"] == {"passed": 1}
    check = checks_of(report)["file_size"]
    assert (check["verdict"], check["cell"], check["unit"]) == ("pass", "tiny-F16", "B")
    assert check["bound"] == {
        "source": "budget",
        "detail": "bounds.toml $.budget[0], the board's flash",
        "upper": 2**20,
    }


def test_a_limit_that_is_not_kept_is_told_in_five_lines(
    project: Project, tiny: list[str], run: Callable[..., dict[str, Any]]
) -> None:
    report = run(KEPT.replace("1 MiB", "1 KiB"), ONLY)
    assert report["outcomes"] == {"failed": 1}
    size = (project.path / "tiny.gguf").stat().st_size
    assert checks_of(report)["file_size"]["value"] == size
    lines = report["output"].splitlines()
    start = lines.index(f"budgets.kept tiny-F16: fail: {size / 2**20:.2f} MiB is above the bound")
    assert lines[start + 1 : start + 5] == [
        f"  measured  file_size {size / 2**20:.2f} MiB",
        "  bound     <= 0.00 MiB; budget: bounds.toml $.budget[0], the board's flash",
        "  why       length of the artifact, what a user downloads",
        "  again     the same command with -k 'kept and tiny-F16'",
    ]
    assert not lines[start + 5].startswith("  ")
    # What it says to type collects the very item.
    again = project.collect(*tiny, BOUNDS, "-k", "kept and tiny-F16")
    assert again == ["budgets::test_kept[tiny-F16-file_size]"]


def test_of_several_limits_the_tightest_counts(run: Callable[..., dict[str, Any]]) -> None:
    looser = KEPT.replace("1 MiB", "2 MiB").replace("the board's flash", "the stick")
    report = run(looser + KEPT + '\n[[budget]]\nquantity="file_size"\nat_least="1 KiB"\n', ONLY)
    (check,) = checks_of(report).values()
    assert (check["bound"]["upper"], check["bound"]["lower"]) == (2**20, 2**10)
    assert check["bound"]["detail"] == (
        "bounds.toml $.budget[0], bounds.toml $.budget[1], bounds.toml $.budget[2],"
        " the stick; the board's flash"
    )


def test_a_waiver_covers_a_limit(project: Project, run: Callable[..., dict[str, Any]]) -> None:
    project.write(
        "waivers.toml",
        '[[waiver]]\ncell = "tiny-F16"\ncheck = "budgets.kept"\nreason = "known"\n'
        "expires = 2999-01-01\n",
    )
    report = run(KEPT.replace("1 MiB", "1 KiB"), ONLY, "--ondevice-waivers=waivers.toml")
    assert report["outcomes"] == {"xfailed": 1}


def test_distributed_limits_are_the_same(run: Callable[..., dict[str, Any]]) -> None:
    pytest.importorskip("xdist")
    both = KEPT + '\n[[budget]]\nquantity = "stray_bytes"\nat_most = "64 B"\n'
    apart = run(both, ONLY, "-n2")
    assert apart["outcomes"] == {"passed": 2}
    assert checks_of(apart).keys() == {"file_size", "stray_bytes"}


def test_a_row_that_matches_nothing_is_told(run: Callable[..., dict[str, Any]]) -> None:
    other = KEPT + '\n[[budget]]\nquantity = "file_size"\nat_most = "1 B"\nmethod = "Q9_Z"\n'
    report = run(other, ONLY)
    assert "bound matches nothing in this run: bounds.toml $.budget[1]" in report["notes"]
    assert not [note for note in run(KEPT, ONLY)["notes"] if "bound" in note]


# -- tolerances

TOLERANCE = """\
[[tolerance]]
check = "artifact.file_size"
relative = "7 %"
reason = "the header grows"
"""
SIZE = ("--ondevice-suites=artifact", "-k", "test_file_size")


@pytest.mark.parametrize(
    ("row", "relative", "absolute"),
    [('relative = "7 %"', 0.07, 0), ('absolute = "1 KiB"', 0, 1024)],
)
def test_a_tolerance_takes_the_place_of_the_checks_own(
    run: Callable[..., dict[str, Any]], row: str, relative: float, absolute: float
) -> None:
    run("", *SIZE, "--ondevice-update=size")
    own = checks_of(run("", *SIZE), "artifact.file_size")["file_size"]["bound"]
    rows = TOLERANCE.replace('relative = "7 %"', row)
    ours = checks_of(run(rows, *SIZE), "artifact.file_size")["file_size"]["bound"]
    # As a whole: nothing of the check's own is left.
    assert own["relative"] not in {0, relative}
    assert (ours.get("relative", 0), ours.get("absolute", 0)) == (relative, absolute)
    assert ours["detail"] == f"{own['detail']}; tolerance from bounds.toml $.tolerance[0]"


def test_a_tolerance_by_the_noise_of_a_machine_needs_a_calibration(
    run: Callable[..., dict[str, Any]],
) -> None:
    run("", *SIZE, "--ondevice-update=size")
    report = run(TOLERANCE.replace('relative = "7 %"', "noise = 2"), *SIZE, "-rs")
    assert report["outcomes"]["skipped"] == 1
    assert "requires a calibration of file_size, which bounds.toml $.tolerance[0]" in re.sub(
        r"\s+", " ", report["output"]
    )


# -- as far as the verdict needs


@dataclass
class Worker:
    """Answers every job at once.

    Attributes:
        nll: The loss of each window of the text.
        digests: The digests of the first windows' logits.
        speeds: Decode speed of each process, the last one from then on.
        windows: The stretches that were measured.
        timed: How many processes were timed.
    """

    nll: list[float | None] = field(default_factory=lambda: [3.0] * 40)
    digests: list[str] = field(default_factory=lambda: ["a", "b", "c", "d"])
    speeds: list[float] = field(default_factory=lambda: [10.0])
    windows: list[tuple[int, int | None]] = field(default_factory=list)
    timed: int = 0

    def run(self, job: MeasureJob, *, on_event: Callable[[Event], None], **_: object) -> Result:
        payloads: dict[str, dict[str, object]] = {}
        if job.validate:
            payloads["validate"] = {"valid": True, "tensor_bytes": 2048}
        if job.speed is not None:
            speed = self.speeds[min(self.timed, len(self.speeds) - 1)]
            self.timed += 1
            one = {"load": [1.0], "ttft": [1.0], "prefill": [speed], "decode": [speed]}
            payloads["speed"] = {**one, "disturbed": []}
        if job.fidelity is not None:
            payloads["fidelity"] = self.loss(job)
        for stage, payload in payloads.items():
            on_event(Event(event="start", stage=stage))
            on_event(Event(event="done", stage=stage, payload=payload))
        return Result(payloads=payloads, endings={})

    def loss(self, job: MeasureJob) -> dict[str, object]:
        plan = job.fidelity
        assert plan is not None
        self.windows.append((plan.first, plan.last))
        Path(plan.reference).parent.mkdir(parents=True, exist_ok=True)
        Path(plan.reference).touch()
        nll = self.nll[plan.first : plan.last]
        nothing = [0.0] * len(nll)
        names = ("kld", "ln_ratio", "same_top", "dp", "square_dp")
        return {
            "ids": [f"w:{plan.first + i}" for i in range(len(nll))],
            "available": len(self.nll),
            "nonfinite": nll.count(None),
            "reference": plan.write,
            "isa": "avx2",
            "logits": self.digests if plan.first == 0 else [],
            "nll": nll,
            **dict.fromkeys(names, nothing),
            **dict.fromkeys(("token_kld", "token_dp"), base64.b64encode(b"").decode()),
        }


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Worker:
    made = Worker()
    monkeypatch.setattr(runner, "run", made.run)
    monkeypatch.setenv("PYTEST_ONDEVICE_LOCK_DIR", str(tmp_path))
    return made


LOSS = '[[budget]]\nquantity = "ln_ppl"\nat_most = 3.1\n'
WOBBLE = [-0.2, 0.3, 0.1, -0.3, 0.2, -0.1, 0.3, -0.3]


def test_a_loss_that_is_certain_at_once_takes_one_look(
    run: Callable[..., dict[str, Any]], worker: Worker
) -> None:
    worker.nll[:] = [3.0 + wobble / 100 for wobble in WOBBLE * 5]
    report = run(LOSS, ONLY)
    assert report["outcomes"] == {"passed": 1}
    assert worker.windows == [(0, 8)]
    assert report["cells"][0]["measurements"]["ln_ppl"]["n"] == 8


def test_a_loss_that_is_not_is_looked_at_again(
    run: Callable[..., dict[str, Any]], worker: Worker
) -> None:
    worker.nll[:] = [*(3.0 + wobble for wobble in WOBBLE), *[2.6] * 32]
    report = run(LOSS, ONLY)
    assert report["outcomes"] == {"passed": 1}
    assert worker.windows == [(0, 8), (8, 16)]
    assert report["cells"][0]["measurements"]["ln_ppl"]["n"] == 16


@pytest.mark.parametrize(
    ("args", "outcome"),
    [([], "failed"), (["--ondevice-inconclusive=skip"], "skipped")],
    ids=["fail", "skip"],
)
def test_a_loss_that_stays_uncertain_takes_the_whole_budget(
    run: Callable[..., dict[str, Any]], worker: Worker, args: list[str], outcome: str
) -> None:
    worker.nll[:] = [3.1 + wobble for wobble in WOBBLE * 5]
    report = run(LOSS, ONLY, "--ondevice-budget=24", *args)
    assert report["outcomes"] == {outcome: 1}
    assert worker.windows == [(0, 8), (8, 16), (16, 24)]
    assert checks_of(report)["ln_ppl"]["verdict"] == "inconclusive"


def test_a_broken_window_fails_at_once(run: Callable[..., dict[str, Any]], worker: Worker) -> None:
    worker.nll[5] = None
    report = run(LOSS, ONLY)
    assert report["outcomes"] == {"failed": 1}
    assert checks_of(report)["ln_ppl"]["message"] == "it is not finite"
    assert worker.windows == [(0, 8)]


def test_a_test_of_ones_own_may_name_a_quantity(
    project: Project, tiny: list[str], worker: Worker
) -> None:
    project.write(
        "test_own.py",
        "def test_loss(ondevice_check):\n    ondevice_check('ln_ppl', at_most=3.5)\n"
        "def test_typo(ondevice_check):\n    ondevice_check('ln_pl', at_most=3.5)\n",
    )
    result = project.run(*tiny, "test_own.py")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*unknown quantity 'ln_pl'; did you mean 'ln_ppl'?*"])
    assert worker.windows == [(0, 8)]


def test_a_speed_is_timed_again_before_it_is_called_too_slow(
    run: Callable[..., dict[str, Any]], worker: Worker
) -> None:
    bounds = '[[budget]]\nquantity = "decode_speed"\nat_least = 9\n'
    few = run(bounds, ONLY)
    assert few["outcomes"] == {"passed": 1}
    assert worker.timed == 3 * 2  # the reference is timed first and last
    # In three rounds nothing is told: what is slow is only advisory.
    worker.speeds = [5.0]
    assert run(bounds, ONLY)["outcomes"] == {"skipped": 1}
    worker.timed = 0
    slow = run(bounds, ONLY, "--ondevice-budget=release")
    assert slow["outcomes"] == {"failed": 1}
    assert worker.timed == 16 * 2
    assert slow["cells"][0]["measurements"]["decode_speed"]["n"] == 16
    # Slow for eight rounds, and then not: the median of all says so.
    worker.timed, worker.speeds = 0, [*[8.9] * 8, 20.0]
    fast = run(bounds, ONLY, "--ondevice-budget=release")
    assert fast["outcomes"] == {"passed": 1}


# -- to the bit

IDENTITY = ("--ondevice-suites=fidelity", "-k", "identity or reference")


def identity_of(report: dict[str, Any]) -> tuple[str, str | None]:
    (one,) = (one for one in report["checks"] if one["check"] == "fidelity.identity")
    return one["verdict"], one.get("finding")


def test_logits_are_compared_with_those_on_record(
    run: Callable[..., dict[str, Any]], worker: Worker
) -> None:
    assert identity_of(run("", *IDENTITY)) == ("no baseline", None)
    recorded = run("", *IDENTITY, "--ondevice-update=fidelity")
    assert recorded["cells"][0]["logits"] == {"avx2": ["a", "b", "c", "d"]}
    # All windows of the budget are recorded, however certain.
    assert recorded["cells"][0]["measurements"]["ln_ppl"]["n"] == 16
    same = run("", *IDENTITY)
    assert identity_of(same) == ("pass", "identical")
    assert "logits identical to those on record: 1 of 1 cells" in same["output"]


@pytest.mark.parametrize(
    ("args", "verdict"), [([], "pass"), (["--ondevice-identical"], "fail")], ids=["told", "fails"]
)
def test_logits_that_changed_are_told_or_fail(
    project: Project,
    run: Callable[..., dict[str, Any]],
    worker: Worker,
    args: list[str],
    verdict: str,
) -> None:
    run("", *IDENTITY, "--ondevice-update=fidelity")
    # Another machine: what this one measured does not stand.
    for path in project.cache.glob("journal/*/*.jsonl"):
        path.unlink()
    worker.digests = ["a", "X", "c", "d"]
    report = run("", *IDENTITY, *args)
    assert identity_of(report) == (verdict, "changed")
    assert report["cells"][0]["measurements"]["changed_windows"]["value"] == 1
    assert "changed: tiny-F16 (no worse)" in report["output"]
    if args:
        assert "fidelity.identity tiny-F16: fail: changed: the logits of 1 of 4" in report["output"]
        # Accepting a new baseline is what one does about it.
        assert identity_of(run("", *IDENTITY, *args, "--ondevice-update=fidelity"))[0] == "pass"


# -- what cannot be

MISTAKES = [
    ("[[budgets]]\n", "unknown key 'budgets'; did you mean 'budget'? - at `$`"),
    (
        KEPT.replace("file_size", "file_siz"),
        "unknown quantity 'file_siz'; did you mean 'file_size'? - at `$.budget[0].quantity`",
    ),
    (KEPT.replace("1 MiB", "1 MiBi"), "wrong unit in '1 MiBi'; did you mean 'MiB'?"),
    (KEPT.replace("1 MiB", "-1 MiB"), "'-1 MiB' is negative - at `$.budget[0].at_most`"),
    (KEPT.replace('at_most = "1 MiB"', ""), "it has none of at_most, at_least - at `$.budget[0]`"),
    (TOLERANCE.replace('"7 %"', "7"), "7 is 700 %; write it as '700 %' if so"),
    (TOLERANCE.replace("reason", "raeson"), "unknown key 'raeson'; did you mean 'reason'?"),
    ("[[budget]\n", "it is no file of bounds"),
]


@pytest.mark.parametrize(("content", "said"), MISTAKES, ids=[row[1][:20] for row in MISTAKES])
def test_a_mistake_in_the_file_is_one_sentence(
    project: Project, tiny: list[str], content: str, said: str
) -> None:
    path = project.write("bounds.toml", content)
    found = project.refused(*tiny, BOUNDS)
    assert found.startswith(f"{BOUNDS} (from the command line): {path}: it is no file of bounds: ")
    assert said in found
    assert not project.cache.exists()


def test_a_file_that_is_no_text_is_one_sentence(project: Project, tiny: list[str]) -> None:
    project.write("bounds.toml", bytes(range(256)))
    found = project.refused(*tiny, BOUNDS)
    assert found.startswith(f"{BOUNDS} (from the command line): ")


def test_a_tolerance_in_a_unit_that_the_check_does_not_measure_in(
    project: Project, tiny: list[str]
) -> None:
    project.write("bounds.toml", TOLERANCE.replace('relative = "7 %"', 'absolute = "2 ms"'))
    result = project.run(*tiny, BOUNDS, *SIZE)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (said,) = [line for line in result.errlines if line.startswith("ERROR: ")]
    assert said.startswith(f"ERROR: {BOUNDS} (from the command line): ")
    assert said.endswith(
        "bounds.toml $.tolerance[0].absolute: the unit comes down to s, but artifact.file_size"
        " measures in B"
    )
