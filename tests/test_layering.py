"""The direction of imports, read from the source: each layer sees only those named beside it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from pytest_ondevice import shipped

PACKAGE = "pytest_ondevice"
SOURCE = Path(__file__).parents[1] / "src" / "pytest_ondevice"

# A layer is a module, or a folder with everything in it. Each may import itself and what stands
# beside it, and only rows above may stand there. Imports for type checkers only do not count;
# imports inside functions do.
LAYERS = """
errors
model
shipped
options       errors
bpw           model
active        model bpw
stats         model
laws          model stats
remarks
overlap       errors
proportions
scoring       model proportions
judgement     model stats proportions
formats       errors model
storage       errors model formats
tasks         errors model storage
capability    model proportions scoring tasks
render        errors model judgement
probe         model
layout
strategies    model
checkpoints   bpw
conversion    errors model formats layout
mixes         model layout
plan          model bpw layout mixes
waivers       errors storage
rules         errors model storage
tier          model
texts         errors probe
conclusion    errors model storage
comparison    errors model stats proportions judgement storage conclusion
devices       errors model options
catalog       errors model storage tasks texts
matrix        errors model options storage catalog
price         model storage plan matrix
provision     errors model bpw formats storage devices catalog matrix price texts
toll          errors formats storage matrix price tasks
planner       errors model options formats storage catalog matrix plan
inspection    errors model bpw checkpoints formats storage matrix plan
facts         model bpw active formats matrix plan inspection
figures       model stats remarks
measure       errors model options stats storage tasks capability probe devices matrix price
measure       plan texts facts figures
references    errors model storage probe devices matrix texts
checks        model laws
state         model checks
api           errors model bpw judgement measure state
law_fixture   errors model laws judgement provision api measure state
baselines     model judgement storage api state
gather        errors model options rules judgement storage devices state baselines
progress
distribute    state
generations   errors model storage api state
workbench     storage devices matrix provision measure
calibration   errors model stats judgement storage render probe devices tier figures
hooks         errors model shipped options waivers rules tier texts laws overlap storage render
hooks         tasks probe devices catalog matrix price toll provision references measure checks
hooks         state gather progress distribute generations calibration
fixtures      api law_fixture baselines
plugin        options hooks fixtures
cli           errors options storage render devices texts catalog matrix conclusion comparison
cli           planner conversion inspection measure references workbench calibration progress
"""

# Who may import what from elsewhere; every other module may not.
CONFINED = {
    "pytest": {"api", "distribute", "fixtures", "hooks", "plugin", "state"},
    "_pytest": set(),
    "xdist": {"distribute"},
    "llama_cpp": {"probe.engines"},
    "huggingface_hub": {"storage.hub", "toll"},
    "tqdm": {"storage.hub"},
    "numpy": {"api", "formats.blocks", "probe", "stats"},
    "subprocess": {"probe.runner"},
    "hypothesis": {"strategies"},
    "syrupy": {"generations"},
    "matplotlib": {"render.plots"},
}

# What is read at every start of pytest, also where the plugin is not used.
ALWAYS = {"plugin", "options", "fixtures", "errors"}


def table() -> dict[str, set[str]]:
    """Read the table: layer to what it may import."""
    rows: dict[str, set[str]] = {}
    for line in LAYERS.split("\n"):
        if line:
            layer, *may = line.split()
            rows.setdefault(layer, set()).update(may)
    return rows


@dataclass(frozen=True)
class Import:
    """One import: which module has it, of which, whether at the top of the module."""

    module: str
    target: str
    line: int
    top: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def is_for_types_only(node: ast.AST) -> bool:
    """Whether a statement is ``if TYPE_CHECKING:``."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in {
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    }


def imports_of(source: Path, package: str = PACKAGE) -> list[Import]:
    """Every import under a folder that runs, with full names; those of the package without it."""
    modules = {name_of(path, source): path for path in sorted(source.rglob("*.py"))}
    found: list[Import] = []

    def visit(node: ast.AST, module: str, top: bool) -> None:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = from_names(node, module)
        else:
            for child in ast.iter_child_nodes(node):
                if is_for_types_only(node) and child not in node.orelse:
                    continue
                inner = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                visit(child, module, top and not inner)
            return
        for name in names:
            short = name.removeprefix(package + ".") if name.startswith(package + ".") else name
            found.append(Import(module, short, node.lineno, top))

    def from_names(node: ast.ImportFrom, module: str) -> list[str]:
        base = node.module or ""
        if node.level:
            here = [package, *module.split(".")] if module else [package]
            parts = here if modules[module].name == "__init__.py" else here[:-1]
            parts = parts[: len(parts) - node.level + 1]
            base = ".".join([*parts, base] if base else parts)
        # ``from . import x`` and ``from package import x`` may name modules.
        whole = [f"{base}.{alias.name}" for alias in node.names]
        ours = [name for name in whole if name.removeprefix(package + ".") in modules]
        return ours if len(ours) == len(whole) else [base, *ours]

    for module, path in modules.items():
        visit(ast.parse(path.read_text("utf-8")), module, top=True)
    return found


def name_of(path: Path, source: Path) -> str:
    """Name a module without its package; the package itself is the empty name."""
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str:
    return module.partition(".")[0]


def within(module: str, places: set[str]) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places)


def violations(imports: list[Import], source: Path) -> list[str]:
    """Say every import that the tables forbid."""
    may = table()
    ours = {name_of(path, source) for path in source.rglob("*.py")}
    wrong: list[str] = []
    for one in imports:
        root = one.target.partition(".")[0]
        if one.target in ours:
            layer, target = layer_of(one.module), layer_of(one.target)
            if target != layer and target not in may.get(layer, set()):
                wrong.append(f"{one}: {layer} may not import {target}")
            if one.target.startswith("probe.engines") and not within(
                one.module, {"probe.worker", "probe.engines"}
            ):
                wrong.append(f"{one}: only the worker may")
        elif root in CONFINED and not within(one.module, CONFINED[root]):
            wrong.append(f"{one}: only {', '.join(sorted(CONFINED[root])) or 'nobody'} may")
    return wrong


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return imports_of(SOURCE)


def test_the_table_leads_one_way() -> None:
    rows = [line.split() for line in LAYERS.strip().split("\n")]
    above: set[str] = set()
    for layer, *may in rows:
        assert set(may) <= above - {layer}, f"{layer}: {set(may) - above} stand below it"
        above.add(layer)


def test_every_module_has_a_layer(imports: list[Import]) -> None:
    layers = {layer_of(name_of(path, SOURCE)) for path in SOURCE.rglob("*.py")} - {"", "data"}
    assert layers == set(table())


def test_no_import_goes_against_the_direction(imports: list[Import]) -> None:
    assert not violations(imports, SOURCE)


def test_no_row_allows_what_nobody_needs(imports: list[Import]) -> None:
    used: dict[str, set[str]] = {layer: set() for layer in table()}
    for one in imports:
        if layer_of(one.target) in used and layer_of(one.module) in used:
            used[layer_of(one.module)].add(layer_of(one.target))
    for layer, may in table().items():
        assert may <= used[layer], f"take {may - used[layer]} off the row of {layer}"
    for name, places in CONFINED.items():
        users = {one.module for one in imports if one.target.partition(".")[0] == name}
        for place in places:
            assert any(within(user, {place}) for user in users), f"{place} does without {name}"


def test_no_module_imports_itself_in_a_circle(imports: list[Import]) -> None:
    graph: dict[str, set[str]] = {}
    ours = {name_of(path, SOURCE) for path in SOURCE.rglob("*.py")}
    for one in imports:
        if one.target in ours and one.target:
            graph.setdefault(one.module, set()).add(one.target)
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_what_pytest_always_loads_imports_next_to_nothing(imports: list[Import]) -> None:
    import sys

    wrong = [
        str(one)
        for one in imports
        if one.module in ALWAYS and one.top and one.target not in {*ALWAYS, "", "pytest", PACKAGE}
        if one.target.partition(".")[0] not in sys.stdlib_module_names
    ]
    assert not wrong


def test_what_the_worker_loads_knows_nothing_of_pytest(imports: list[Import]) -> None:
    reached, todo = set(), {"probe.worker", "probe.runner"}
    while todo:
        module = todo.pop()
        reached.add(module)
        todo |= {one.target for one in imports if one.module == module and one.target} - reached
    assert "probe.engines.llama_cpp" in reached
    assert not reached & {"pytest", "_pytest", "pluggy", "xdist", *ALWAYS, "hooks", "api", "state"}


def test_the_suites_use_what_they_may() -> None:
    package = f"{PACKAGE}.suites"
    allowed = {f"{PACKAGE}.checks", f"{PACKAGE}.model.bound", "pytest", "__future__", "typing"}
    # The accounting suite gates no model: it asks a function about drawn ones.
    drawn = {f"{PACKAGE}.strategies", f"{PACKAGE}.model.quant_types", "hypothesis", "fractions"}
    # The generations suite needs an extra, and what keeps its texts.
    apart = {"accounting": drawn, "generations": {f"{PACKAGE}.generations", f"{PACKAGE}.state"}}
    found = imports_of(shipped.folder("suites"), package)
    assert found
    for one in found:
        more = apart.get(one.module.partition(".")[0], set())
        assert one.target in allowed | more, one


# -- the test of the tests

PLANTED = {
    "import pytest": ("probe/memory.py", "probe.memory:1 imports pytest"),
    "from pytest_ondevice import hooks": ("model/bound.py", "model may not import hooks"),
    "from ..options import parse": ("model/bound.py", "model may not import options"),
    "from .. import api": ("storage/files.py", "storage may not import api"),
    "def f():\n    from .gather import Gatherer": ("measure.py", "measure may not import gather"),
    "try:\n    import llama_cpp\nexcept ImportError: pass": ("matrix.py", "only probe.engines may"),
    "import llama_cpp.llama_cpp as api": ("probe/worker.py", "only probe.engines may"),
    "from .engines import llama_cpp": ("probe/runner.py", "only the worker may"),
    "import pytest_ondevice.plugin": ("devices.py", "devices may not import plugin"),
    "if not TYPE_CHECKING:\n    import xdist": ("state.py", "only distribute may"),
    "if TYPE_CHECKING:\n    import xdist\nelse:\n    import _pytest": (
        "hooks.py",
        "only nobody may",
    ),
}


@pytest.mark.parametrize("code", PLANTED)
def test_a_planted_violation_is_seen(tmp_path: Path, code: str) -> None:
    name, said = PLANTED[code]
    for path in SOURCE.rglob("*.py"):
        copy = tmp_path / path.relative_to(SOURCE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(code if path == SOURCE / name else "")
    assert (tmp_path / name).read_text() == code
    wrong = violations(imports_of(tmp_path), tmp_path)
    assert len(wrong) == 1, wrong
    assert said in wrong[0]


def test_what_only_a_type_checker_reads_is_exempt(tmp_path: Path) -> None:
    (tmp_path / "errors.py").write_text(
        "if TYPE_CHECKING:\n    import pytest\n    from . import api"
    )
    (tmp_path / "api.py").write_text("from typing import TYPE_CHECKING")
    assert [one.target for one in imports_of(tmp_path)] == ["typing"]
