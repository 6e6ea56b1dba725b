"""What runs: the shipped suites where they were asked for, the user's own tests everywhere else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from projects import CHECKS as N_CHECKS
from projects import NOTHING, sentence, sentence_or_all

from pytest_ondevice import shipped

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from projects import Project

MODEL = "--ondevice-models=smollm2-135m"
METHODS = "--ondevice-methods=Q4_0,Q8_0"
F16, Q4_0, Q8_0 = (f"smollm2-135m-{method}" for method in ("F16", "Q4_0", "Q8_0"))
MINE = "def test_mine():\n    assert False, 'this is mine'\n"

# Every check that ships, and the cells it is for; a law is for a model, or for a family.
CHECKS = {
    "artifact::test_quantized": (Q4_0, Q8_0),
    "artifact::test_file_type": (F16, Q4_0, Q8_0),
    "artifact::test_types": (F16, Q4_0, Q8_0),
    "artifact::test_planned_bpw": (F16, Q4_0, Q8_0),
    "artifact::test_quantization_version": (Q4_0, Q8_0),
    "artifact::test_tokenizer": (F16, Q4_0, Q8_0),
    "artifact::test_chat_template": (F16, Q4_0, Q8_0),
    "artifact::test_blocks": (F16, Q4_0, Q8_0),
    "artifact::test_pin": (F16, Q4_0, Q8_0),
    "artifact::test_rederived": (Q4_0, Q8_0),
    "artifact::test_loads": (F16, Q4_0, Q8_0),
    "artifact::test_accounting": (F16, Q4_0, Q8_0),
    "artifact::test_stray_bytes": (F16, Q4_0, Q8_0),
    "artifact::test_effective_bpw": (F16, Q4_0, Q8_0),
    "artifact::test_file_size": (F16, Q4_0, Q8_0),
    "capability::test_finite": (F16, Q4_0, Q8_0),
    "capability::test_choice": (F16, Q4_0, Q8_0),
    "capability::test_cloze": (F16, Q4_0, Q8_0),
    "capability::test_exact": (F16, Q4_0, Q8_0),
    "capability::test_flips": (Q4_0, Q8_0),
    "capability::test_reference": (F16,),
    "efficiency::test_quantize": (F16, Q4_0, Q8_0),
    "fidelity::test_finite": (F16, Q4_0, Q8_0),
    "fidelity::test_identity": (F16, Q4_0, Q8_0),
    "fidelity::test_kld": (Q4_0, Q8_0),
    "fidelity::test_ppl_ratio": (Q4_0, Q8_0),
    "fidelity::test_same_top": (Q4_0, Q8_0),
    "fidelity::test_rms_dp": (Q4_0, Q8_0),
    "fidelity::test_decode": (F16, Q4_0, Q8_0),
    "fidelity::test_reference": (F16,),
    **{
        f"laws::test_{law}": ("smollm2-135m",)
        for law in (
            "memory",
            "file_size",
            "decode_time",
            "kv_cache",
            "loss_envelope",
            "loss_monotone",
            "pareto",
            "marginal",
        )
    },
    "laws::test_threshold": ("smollm2",),
    "laws::test_power": ("smollm2-135m",),
    "resources::test_peak_memory": (F16, Q4_0, Q8_0),
    "resources::test_reserved_memory": (F16, Q4_0, Q8_0),
    "resources::test_deployed_memory": (F16, Q4_0, Q8_0),
    "resources::test_energy": (F16, Q4_0, Q8_0),
    "resources::test_speed": (F16, Q4_0, Q8_0),
    "resources::test_decode_speed": (Q4_0, Q8_0),
    "resources::test_prefill_speed": (Q4_0, Q8_0),
}


def ids(*suites: str) -> list[str]:
    """Every node id of the suites, all of them by default."""
    return [
        f"{check}[{cell}]"
        for check, cells in CHECKS.items()
        for cell in cells
        if check.partition("::")[0] in (suites or shipped.SUITES)
    ]


@pytest.fixture
def mine(project: Project, runtime: None) -> Project:
    """A project with one test, which fails."""
    project.write("test_mine.py", MINE)
    return project


# -- asked for on this command line


def test_typed_models_without_a_path_run_the_shipped_suites(mine: Project) -> None:
    assert mine.collect(MODEL, METHODS) == ids()
    assert mine.collect("--ondevice-models", "smollm2-135m", METHODS) == ids()


def test_every_suite_that_ships_is_one_that_can_be_chosen() -> None:
    folders = {
        path.name for path in shipped.folder("suites").iterdir() if (path / "__init__.py").exists()
    }
    assert folders == {*shipped.ALL}
    assert folders == {*shipped.SUITES, *shipped.ON_REQUEST, *shipped.WITHOUT_MODELS}
    assert set(shipped.SUITES) == {check.partition("::")[0] for check in CHECKS}


def test_testpaths_are_no_typed_path(mine: Project) -> None:
    mine.pytester.makeini("[pytest]\ntestpaths = .\n")
    assert mine.collect(MODEL, METHODS) == ids()


def test_every_model_is_gated(mine: Project) -> None:
    found = mine.collect("--ondevice-models=smollm2-135m,qwen2.5-0.5b", METHODS)
    others = [
        node.replace("smollm2-135m", "qwen2.5-0.5b").replace("[smollm2]", "[qwen2.5]")
        for node in ids()
    ]
    assert sorted(found) == sorted([*ids(), *others])


def test_k_selects_among_the_checks(mine: Project) -> None:
    assert mine.collect(MODEL, METHODS, "-k", "kld or reference") == [
        f"capability::test_reference[{F16}]",
        f"fidelity::test_kld[{Q4_0}]",
        f"fidelity::test_kld[{Q8_0}]",
        f"fidelity::test_reference[{F16}]",
    ]
    assert mine.collect(MODEL, METHODS, "-k", "Q8_0 and efficiency") == [
        f"efficiency::test_quantize[{Q8_0}]"
    ]


@pytest.mark.parametrize(
    "suites",
    ["artifact", "capability", "Fidelity,artifact", "resources,efficiency", "laws,fidelity"],
)
def test_suites_select(mine: Project, suites: str) -> None:
    chosen = suites.casefold().split(",")
    assert mine.collect(MODEL, METHODS, f"--ondevice-suites={suites}") == ids(*chosen)


def test_suites_on_request_run_where_an_option_asks_or_where_they_are_named(mine: Project) -> None:
    before = mine.collect(MODEL, METHODS, "--ondevice-against=old")
    asked = [node for node in before if node.startswith("against::")]
    assert asked[:3] == [f"against::test_size[{cell}]" for cell in (F16, Q4_0, Q8_0)]
    assert [node for node in before if node not in asked] == ids()
    assert mine.collect(MODEL, METHODS, "--ondevice-suites=against") == asked
    # Suites that are named are all that run, whatever the option asks for.
    named = ("--ondevice-suites=efficiency", "--ondevice-against=old")
    assert mine.collect(MODEL, METHODS, *named) == ids("efficiency")


def test_typed_suites_run_models_from_elsewhere(
    mine: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_ONDEVICE_MODELS", "smollm2-135m")
    assert mine.collect(METHODS, "--ondevice-suites=efficiency") == ids("efficiency")


def test_a_typed_path_is_what_runs(mine: Project) -> None:
    assert mine.collect(MODEL, METHODS, "test_mine.py") == ["test_mine.py::test_mine"]
    assert mine.collect(MODEL, METHODS, ".") == ["test_mine.py::test_mine"]
    assert mine.collect(MODEL, METHODS, "test_mine.py::test_mine") == ["test_mine.py::test_mine"]


def test_typed_suites_run_beside_a_typed_path(mine: Project) -> None:
    found = mine.collect(MODEL, METHODS, "test_mine.py", "--ondevice-suites=resources")
    assert found == ["test_mine.py::test_mine", *ids("resources")]


@pytest.mark.parametrize(
    "setting",
    [
        "python_files = check_*.py",
        "python_functions = check_*",
        "python_files = check_*.py\npython_functions = check_*\npython_classes = Check*",
    ],
)
def test_how_the_user_names_tests_does_not_hide_the_suites(mine: Project, setting: str) -> None:
    mine.pytester.makeini(f"[pytest]\n{setting}\n")
    assert mine.collect(MODEL, METHODS) == ids()


def test_how_the_user_names_tests_still_holds_for_the_users(mine: Project) -> None:
    mine.pytester.makeini("[pytest]\npython_files = check_*.py\npython_functions = check_*\n")
    mine.write("check_mine.py", "def check_mine(ondevice_cell): pass\ndef test_no(): pass\n")
    found = mine.collect(MODEL, "--ondevice-methods=F16", ".", "--ondevice-suites=efficiency")
    assert found == [f"check_mine.py::check_mine[{F16}]", f"efficiency::test_quantize[{F16}]"]


# -- laws, which are of many cells

LAWS = "--ondevice-suites=laws"


def test_a_law_is_held_once_for_a_model_and_that_of_families_once_for_a_family(
    mine: Project,
) -> None:
    found = mine.collect("--ondevice-models=smollm2-135m,qwen2.5-0.5b,smollm2-360m", METHODS, LAWS)
    memory = [node for node in found if "::test_memory[" in node]
    assert memory == [
        f"laws::test_memory[{name}]" for name in ("smollm2-135m", "qwen2.5-0.5b", "smollm2-360m")
    ]
    families = [node for node in found if "::test_threshold[" in node]
    assert families == ["laws::test_threshold[smollm2]", "laws::test_threshold[qwen2.5]"]


def test_cells_of_another_cache_are_held_apart_but_where_caches_are_compared(
    mine: Project,
) -> None:
    found = mine.collect(MODEL, METHODS, LAWS, "--ondevice-kv-types=f16,q8_0")
    assert [node for node in found if "::test_memory[" in node] == [
        "laws::test_memory[smollm2-135m]",
        "laws::test_memory[smollm2-135m+kv-q8_0]",
    ]
    assert [node for node in found if "::test_threshold[" in node] == [
        "laws::test_threshold[smollm2]",
        "laws::test_threshold[smollm2+kv-q8_0]",
    ]
    assert [node for node in found if "::test_kv_cache[" in node] == [
        "laws::test_kv_cache[smollm2-135m]"
    ]


def test_a_file_of_no_family_is_held_alone(project: Project, tiny: list[str]) -> None:
    found = project.collect(*tiny, LAWS)
    assert "laws::test_threshold[tiny]" in found
    assert "laws::test_memory[tiny]" in found


def test_a_users_own_test_may_hold_a_law(project: Project, tiny: list[str]) -> None:
    project.write(
        "test_own.py",
        """
def test_own(ondevice_subject, ondevice_law):
    assert ondevice_subject.name == "tiny"
    assert [cell.id for cell in ondevice_subject.cells] == ["tiny-F16"]
    ondevice_law("file_size")

def test_unknown(ondevice_law):
    ondevice_law("file-size")
""",
    )
    assert project.collect(*tiny, "test_own.py") == [
        "test_own.py::test_own[tiny]",
        "test_own.py::test_unknown[tiny]",
    ]
    result = project.run(*tiny, "test_own.py", "-rs", "--ondevice-report=r.json")
    result.assert_outcomes(skipped=1, failed=1)
    # One file has no line through it: the law says what it would need.
    result.stdout.fnmatch_lines(["*requires 3 cells of different weight_bytes*"])
    result.stdout.fnmatch_lines(["*unknown law 'file-size'; did you mean 'file_size'?*"])
    report = json.loads((project.path / "r.json").read_text())
    (law,) = report["laws"]
    assert (law["law"], law["subject"], law["verdict"]) == ("file_size", "tiny", "unsupported")
    # What was measured for the law is there of the cell.
    (cell,) = report["cells"]
    assert cell["measurements"]["file_size"]["value"] == (project.path / "tiny.gguf").stat().st_size
    (check,) = (one for one in report["checks"] if one["verdict"] == "unsupported")
    assert (check["check"], check["cell"]) == ("test_own.py::test_own", "tiny")
    assert check["node"] == "test_own.py::test_own[tiny]"


def test_a_law_over_three_files_that_need_no_runtime(
    project: Project, tiny: list[str], write_gguf: Callable[[str, str], Path]
) -> None:
    # Candidates of one model; of each only the header is read.
    for method in ("F16", "Q8_0", "Q4_0"):
        write_gguf(f"made/tiny-{method}.gguf", method)
    args = (tiny[0], "--ondevice-methods=F16,Q8_0,Q4_0", "--ondevice-artifacts=made")
    own = "def test_own(ondevice_law):\n    print(ondevice_law('file_size').message)\n"
    project.write("test_own.py", own)
    result = project.run(*args, "test_own.py", "--ondevice-report=r.json")
    result.assert_outcomes(passed=1)
    (law,) = json.loads((project.path / "r.json").read_text())["laws"]
    assert (law["verdict"], len(law["points"])) == ("pass", 3)
    result.stdout.fnmatch_lines(["law * found", "file_size *tiny *pass *file size = weight bytes*"])
    # What one file has beside its weights is told of that file.
    bad = project.path / "made/tiny-Q8_0.gguf"
    bad.write_bytes(bad.read_bytes() + bytes(2**20))
    result = project.run(*args, "test_own.py", "--ondevice-report=r.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["test_own.py::test_own tiny: fail: *tiny-Q8_0*", "  law       A file is its weights *"]
    )


# -- given anywhere else


@pytest.fixture(params=["ini", "environment", "addopts", "PYTEST_ADDOPTS"])
def given_elsewhere(
    request: pytest.FixtureRequest, mine: Project, monkeypatch: pytest.MonkeyPatch
) -> Project:
    """The project with a model given, but not on the command line."""
    if request.param == "ini":
        mine.pytester.makeini(
            "[pytest]\nondevice_models = smollm2-135m\nondevice_methods = Q4_0\n"
            "ondevice_suites = artifact\n"
        )
    elif request.param == "addopts":
        mine.pytester.makeini(
            f"[pytest]\naddopts = {MODEL} --ondevice-methods=Q4_0 --ondevice-suites=artifact\n"
        )
    elif request.param == "PYTEST_ADDOPTS":
        monkeypatch.setenv("PYTEST_ADDOPTS", f"{MODEL} --ondevice-methods=Q4_0")
    else:
        monkeypatch.setenv("PYTEST_ONDEVICE_MODELS", "smollm2-135m")
        monkeypatch.setenv("PYTEST_ONDEVICE_METHODS", "Q4_0")
        monkeypatch.setenv("PYTEST_ONDEVICE_SUITES", "artifact")
    return mine


def test_models_given_elsewhere_do_not_change_what_runs(given_elsewhere: Project) -> None:
    assert given_elsewhere.collect() == ["test_mine.py::test_mine"]
    result = given_elsewhere.run()
    result.assert_outcomes(failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*this is mine*"])


def test_models_given_elsewhere_feed_fixtures(given_elsewhere: Project) -> None:
    given_elsewhere.write("test_cell.py", "def test_cell(ondevice_cell): pass\n")
    assert given_elsewhere.collect() == [
        f"test_cell.py::test_cell[{F16}]",
        f"test_cell.py::test_cell[{Q4_0}]",
        "test_mine.py::test_mine",
    ]


@pytest.mark.usefixtures("no_process")
def test_models_that_no_test_uses_cost_nothing(given_elsewhere: Project) -> None:
    given_elsewhere.write("test_mine.py", "def test_mine(): pass\n")
    before = given_elsewhere.files()
    result = given_elsewhere.run()
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    assert given_elsewhere.files() == before
    assert not given_elsewhere.cache.parent.exists()


@pytest.mark.usefixtures("no_process", "no_runtime")
def test_models_that_no_test_uses_need_no_runtime(given_elsewhere: Project) -> None:
    given_elsewhere.run().assert_outcomes(failed=1)


# -- a run that would gate nothing


def test_a_typed_run_that_gates_nothing_is_refused(project: Project, tiny: list[str]) -> None:
    project.write("test_mine.py", "def test_mine():\n    open('ran', 'w')\n")
    found = project.refused(*tiny, "test_mine.py")
    assert found.startswith("--ondevice-models=tiny.gguf (from the command line): ")
    assert NOTHING in found
    assert "--ondevice-suites" in found


def test_a_typed_run_whose_selection_is_empty_is_no_success(
    project: Project, tiny: list[str]
) -> None:
    assert len(CHECKS) == N_CHECKS
    project.accepted(*tiny)


def test_collecting_only_is_never_refused_for_gating_nothing(mine: Project) -> None:
    assert mine.collect(MODEL, "test_mine.py") == ["test_mine.py::test_mine"]


def test_distributed_a_typed_run_that_gates_nothing_is_refused(
    project: Project, tiny: list[str]
) -> None:
    pytest.importorskip("xdist")
    project.write("test_mine.py", "def test_mine(): pass\n")
    result = project.run(*tiny, "test_mine.py", "-n2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR, sentence_or_all(result)
    assert NOTHING in sentence(result)
    assert not (project.path / "report.json").exists()


def test_distributed_the_workers_run_the_suites_too(project: Project, tiny: list[str]) -> None:
    pytest.importorskip("xdist")
    # Skipped before any fixture is set up, so that nothing is measured.
    project.write(
        "conftest.py",
        "import pytest\n"
        "def pytest_collection_modifyitems(items):\n"
        "    for item in items:\n"
        "        item.add_marker(pytest.mark.skip(reason='not here'))\n",
    )
    project.write("test_mine.py", MINE)
    project.run(*tiny, "-n2").assert_outcomes(skipped=N_CHECKS)
    project.run(*tiny).assert_outcomes(skipped=N_CHECKS)


# -- the user's own tests


FIXTURES = (
    "ondevice_cell",
    "ondevice_measure",
    "ondevice_baseline",
    "ondevice_compare",
    "ondevice_identity",
    "ondevice_check",
    "ondevice_model",
    "ondevice_subject",
    "ondevice_law",
)


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize("fixture", FIXTURES)
@pytest.mark.parametrize("awake", [False, True])
def test_without_a_model_a_test_that_needs_one_is_skipped_with_the_way_to_get_one(
    project: Project, fixture: str, awake: bool
) -> None:
    project.write(
        "test_mine.py",
        f"""
import pytest

@pytest.fixture
def own():
    raise AssertionError("set up for nothing")

def test_mine(own, {fixture}):
    assert False
""",
    )
    result = project.run("-rs", *["--ondevice-threads=2"] * awake)
    assert result.ret == 0
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*requires a model: pytest --ondevice-models=smollm2-135m"])
    assert not project.cache.exists()


def test_ids_of_the_users_tests(mine: Project) -> None:
    mine.write(
        "test_own.py",
        """
import pytest

def test_plain(): pass

def test_cell(ondevice_cell): pass

@pytest.mark.parametrize("prompt", ["a", "b"])
def test_prompt(ondevice_model, prompt): pass

class TestGroup:
    def test_measure(self, tmp_path, ondevice_measure): pass

@pytest.fixture
def through(ondevice_check): pass

def test_through(through): pass
""",
    )
    assert mine.collect(MODEL, "--ondevice-methods=Q4_0", "test_own.py") == [
        "test_own.py::test_plain",
        f"test_own.py::test_cell[{F16}]",
        f"test_own.py::test_cell[{Q4_0}]",
        f"test_own.py::test_prompt[{F16}-a]",
        f"test_own.py::test_prompt[{F16}-b]",
        f"test_own.py::test_prompt[{Q4_0}-a]",
        f"test_own.py::test_prompt[{Q4_0}-b]",
        f"test_own.py::TestGroup::test_measure[{F16}]",
        f"test_own.py::TestGroup::test_measure[{Q4_0}]",
        f"test_own.py::test_through[{F16}]",
        f"test_own.py::test_through[{Q4_0}]",
    ]


def test_the_name_of_a_file_is_made_fit_for_ids(project: Project, tiny: list[str]) -> None:
    project.write("My Model[1] (v2).gguf", (project.path / "tiny.gguf").read_bytes())
    project.write("test_own.py", "def test_cell(ondevice_cell): pass\n")
    model = "--ondevice-models=My Model[1] (v2).gguf"
    assert project.collect(model, "--ondevice-methods=F16", "test_own.py") == [
        "test_own.py::test_cell[my-model-1-v2-F16]"
    ]


def test_a_test_sees_its_cell(project: Project, tiny: list[str]) -> None:
    project.write(
        "test_own.py",
        """
def test_cell(ondevice_cell, ondevice_check):
    assert ondevice_cell.id == "tiny-F16"
    assert ondevice_cell.model.name == "tiny"
    assert ondevice_cell.method == "F16"
    assert ondevice_cell.reference
    ondevice_check(1.0, at_most=2.0, name="answer")
""",
    )
    result = project.run(*tiny, "test_own.py")
    result.assert_outcomes(passed=1)
    assert result.ret == 0
