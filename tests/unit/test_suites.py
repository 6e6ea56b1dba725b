"""What every check that ships says of itself."""

from __future__ import annotations

import ast
import re

import pytest

from pytest_ondevice import shipped
from pytest_ondevice.checks import check, check_of
from pytest_ondevice.comparison import TOLERANCES
from pytest_ondevice.laws import LAWS
from pytest_ondevice.model.bound import Source
from pytest_ondevice.model.quantity import QUANTITIES, Stage

SUITES = shipped.folder("suites")

CHECKS = {
    node.decorator_list[0].args[0].value: ast.get_docstring(node)
    for path in sorted(SUITES.glob("*/test_*.py"))
    for node in ast.walk(ast.parse(path.read_text("utf-8")))
    if isinstance(node, ast.FunctionDef)
    and node.decorator_list
    and isinstance(node.decorator_list[0], ast.Call)
    and ast.unparse(node.decorator_list[0].func) == "check"
}


def lacking(text: str | None) -> list[str]:
    """Say what a check's docstring does not state."""
    requirement, _, rest = (text or "").partition("\n\n")
    said = re.search(r"Quantity:.+?Bound:.+?Source:\s+(?:the\s+)?(\w+)", rest, re.DOTALL)
    wrong = [] if requirement.strip().endswith(".") else ["a requirement"]
    if said is None:
        return [*wrong, "quantity, bound and source"]
    return wrong if said[1] in set(Source) else [*wrong, f"a source, but '{said[1]}'"]


def test_there_are_checks_of_every_suite():
    suites = {name.partition(".")[0] for name in CHECKS}
    assert suites == {*shipped.SUITES, *shipped.ON_REQUEST}


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_states_requirement_quantity_bound_and_source(check):
    assert lacking(CHECKS[check]) == []


@pytest.mark.parametrize("text", [None, "It is good.", "Q\n\nQuantity: x. Bound: y. Source: me."])
def test_a_check_that_does_not_is_seen(text):
    assert lacking(text)


def laws():
    """Every check of a law: its id, the law that it declares, and the one that it asks for."""
    for node in ast.walk(ast.parse((SUITES / "laws" / "test_laws.py").read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef):
            (decorator,) = node.decorator_list
            (declared,) = [word.value.value for word in decorator.keywords if word.arg == "law"]
            asked = [
                one.args[0].value
                for one in ast.walk(node)
                if isinstance(one, ast.Call)
                and isinstance(one.func, ast.Name)
                and one.func.id == "ondevice_law"
            ]
            yield decorator.args[0].value, declared, asked


def test_every_law_has_a_check_that_asks_for_what_it_declares():
    # What it declares is what is measured for it.
    assert [(check, asked) for check, _, asked in laws()] == [
        (f"laws.{declared}", [declared]) for _, declared, _ in laws()
    ]
    assert sorted(declared for _, declared, _ in laws()) == sorted(LAWS)


def test_a_check_of_a_law_measures_what_the_law_needs():
    @check("laws.threshold", law="threshold")
    def held():
        """Hold it."""

    found = check_of(held)
    law = LAWS["threshold"]
    # Of figures that only other programs make none is measured here.
    ours = [one for one in (*law.measures, *law.optional) if one in QUANTITIES]
    assert list(found.measures) == ours
    assert "accuracy" in found.measures
    assert {Stage.HEADER, Stage.MEMORY, Stage.FIDELITY, Stage.TASKS} <= found.stages
    with pytest.raises(ValueError, match="check x: unknown law thresh"):
        check("x", law="thresh")


def tolerances():
    """Every tolerance that a check allows over a baseline or a predecessor, with its quantity."""
    for path in sorted(SUITES.glob("*/test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            asks = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if asks and node.func.id in {"ondevice_baseline", "ondevice_compare"}:
                given = {word.arg: eval(ast.unparse(word.value)) for word in node.keywords}
                yield path.parent.name, node.args[0].value, given


@pytest.mark.parametrize(("suite", "quantity", "given"), list(tolerances()))
def test_what_a_check_allows_is_what_a_comparison_of_reports_allows(suite, quantity, given):
    known = TOLERANCES.get(quantity)
    if quantity.endswith(("_ratio", "_speed")) and quantity != "ln_ppl_ratio":
        # Speed is compared within one run only: here all that is asked is one tolerance for all.
        assert given == {"absolute": 0.05, "higher_is_better": True}
        return
    assert (known.relative, known.absolute, known.higher_is_better) == (
        given.get("relative", 0.0),
        given.get("absolute", 0.0),
        given.get("higher_is_better", False),
    )
