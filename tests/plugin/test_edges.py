"""Edges that once were bugs: odd values, odd folders, odd runs."""

import importlib.machinery
import importlib.util
import json

import pytest
from projects import NOTHING, sentence, sentence_or_all

from pytest_ondevice.errors import MissingError
from pytest_ondevice.matrix import require_runtime, runtime_methods

MODEL = "--ondevice-models=smollm2-135m"
OWN = "def test_own(ondevice_check):\n    ondevice_check(1, at_most=2)\n"


@pytest.mark.parametrize("text", ["²", "9" * 5000])
def test_budget(project, runtime, text):
    assert "not a budget" in project.refused("--collect-only", MODEL, f"--ondevice-budget={text}")


@pytest.mark.parametrize("text", ["~no-such-user/m.gguf", "a" * 5000 + ".gguf"])
def test_model_path(project, runtime, text):
    assert "there is no file" in project.refused("--collect-only", f"--ondevice-models={text}")


@pytest.mark.parametrize("name", ["artifacts", "text", "report", "baselines", "cache"])
@pytest.mark.parametrize("text", ["", " ", "~no-such-user/x"])
def test_paths(project, runtime, name, text):
    said = project.refused("--collect-only", MODEL, f"--ondevice-{name}={text}")
    assert said.startswith(
        f"--ondevice-{name}={text} (from the command line): ".replace("=  (", "= (")
    )


@pytest.mark.parametrize("name", ["text", "report", "baselines", "cache"])
def test_long_paths(project, tiny, name):
    said = project.refused(*tiny, "--ondevice-update=all", f"--ondevice-{name}={'a' * 5000}/x")
    assert f"--ondevice-{name}=" in said


def test_lines_with_commas(project, runtime):
    project.pytester.makeini("[pytest]\nondevice_methods =\n    Q4_0,\n    Q8_0\n")
    assert project.parse().methods == ("Q4_0", "Q8_0")


def test_one_line(project, runtime):
    project.pytester.makeini("[pytest]\nondevice_methods =\n    Q4_0\n    zzz\n")
    assert "unknown method 'zzz'" in project.refused("--collect-only")


def test_override_is_named(project, runtime):
    project.pytester.makeini("[pytest]\nondevice_threads = 2\n")
    said = project.refused("-o", "ondevice_threads=0")
    assert said.startswith("ondevice_threads=0 (from the command line's -o): ")


def test_norecursedirs(project, runtime):
    project.pytester.makeini(
        "[pytest]\nnorecursedirs = suites artifact capability efficiency fidelity laws resources\n"
    )
    assert len(project.collect(MODEL, "--ondevice-methods=Q4_0")) == 72


def test_a_namespace_is_no_runtime(monkeypatch, tmp_path):
    spec = importlib.machinery.ModuleSpec("llama_cpp", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    runtime_methods.cache_clear()
    try:
        assert "Q4_K_M" in runtime_methods()
        with pytest.raises(MissingError, match="llama-cpp-python is not installed"):
            require_runtime()
    finally:
        runtime_methods.cache_clear()


def test_a_parent_package_is_not_imported(project, runtime, monkeypatch):
    folder = project.path.parent / "site-evil"
    (folder / "evil" / "sub").mkdir(parents=True)
    (folder / "evil" / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "evil" / "sub" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(folder))
    assert "has no file m.gguf" in project.refused("--ondevice-models=pkg:evil.sub/m.gguf")
    assert "not installed" in project.refused("--ondevice-models=pkg:evil.gone/m.gguf")


def test_pattern_without_method(project, tiny, gguf_bytes):
    project.write("made/tiny.gguf", gguf_bytes)
    said = project.refused(tiny[0], "--ondevice-artifacts=made/{model}.gguf")
    assert "{method}" in said


def test_pattern_without_model(project, tiny, gguf_bytes):
    project.write("made/m-F16.gguf", gguf_bytes)
    project.write("other.gguf", gguf_bytes)
    said = project.refused(
        "--ondevice-models=tiny.gguf,other.gguf",
        "--ondevice-methods=F16",
        "--ondevice-artifacts=made/m-{method}.gguf",
    )
    assert "{model}" in said


@pytest.mark.parametrize(
    "body", ["assert ondevice_cell.method == 'F16'", "import pytest; pytest.skip('x')"]
)
@pytest.mark.parametrize("n", [[], ["-n2"]])
def test_a_test_that_uses_a_model_without_a_check_is_a_use(project, tiny, body, n):
    project.write("test_own.py", f"def test_own(ondevice_cell):\n    {body}\n")
    result = project.run(*tiny, "test_own.py", *n)
    assert result.ret == 0, sentence_or_all(result)


@pytest.mark.parametrize("body", ["assert False", "pass"])
def test_distributed(project, tiny, body):
    project.write("test_own.py", f"def test_own():\n    {body}\n")
    result = project.run(*tiny, "test_own.py", "-n2")
    assert result.ret == 4
    assert NOTHING in result.stdout.str()


def test_k_nothing(project, tiny):
    for n in [], ["-n2"]:
        result = project.run(*tiny, "-k", "none", *n)
        assert result.ret == 4
        assert NOTHING in sentence(result)


@pytest.mark.parametrize(
    "args",
    [
        ["--ondevice-report=."],
        ["--ondevice-text=gone"],
        ["--ondevice-report=foreign.json"],
        ["--ondevice-update=all", "--ondevice-baselines=foreign.json"],
    ],
)
def test_own_runs_are_checked_before_too(project, tiny, monkeypatch, args):
    project.write("test_own.py", OWN)
    project.write("foreign.json", "[]")
    monkeypatch.setenv("PYTEST_ONDEVICE_MODELS", "tiny.gguf")
    project.refused("--ondevice-methods=F16", "test_own.py", *args)


def test_a_report_that_cannot_be_written_after_all_fails_the_run(project, tiny):
    project.write(
        "test_own.py",
        f"import pathlib\n{OWN}    pathlib.Path('report.json').mkdir()\n",
    )
    result = project.run(*tiny, "test_own.py")
    assert result.ret != 0
    assert "report.json" in sentence(result)


def test_a_run_cut_short_is_not_complete(project, tiny):
    project.write("test_own.py", OWN.replace("1,", "3,") + OWN.replace("test_own", "test_two"))
    for args, complete in ([], True), (["-x"], False), (["--maxfail=1"], False):
        project.run(*tiny, "test_own.py", *args)
        assert json.loads((project.path / "report.json").read_text())["complete"] is complete


@pytest.mark.parametrize("name", ["file", "file/sub"])
def test_cache_names_its_source(project, tiny, name):
    project.write("file", "x")
    assert project.refused(*tiny, f"--ondevice-cache={name}").startswith(
        f"--ondevice-cache={name} (from the command line): "
    )


def test_ini_and_xdist_leave_the_disk_alone(project, tiny, monkeypatch):
    monkeypatch.setenv("PYTEST_ONDEVICE_MODELS", "tiny.gguf")
    project.write("test_own.py", "def test_own(): pass\n")
    project.run("-n2").assert_outcomes(passed=1)
    assert not project.cache.exists()


def test_a_check_for_quantized_cells_says_so(project, tiny):
    result = project.run(*tiny, "--ondevice-suites=artifact", "-k", "test_quantized", "-rs")
    assert "requires a model" not in result.stdout.str()
