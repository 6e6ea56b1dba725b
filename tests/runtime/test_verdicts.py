"""Verdicts against what came before: baselines of one's own, a predecessor, limits of a user."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import msgspec
import mutants
import pytest
import typing_extensions

CELL = "smollm2-135m-Q4_0"

# What each process says of its speed: the same but for a little noise, and slower where it is told.
SPEEDS = """
import random
def measure(path):
    best = 100.0 * ({slow} if {which} else 1.0) * (1 + random.gauss(0, 0.004))
    return {{"load": [0.1], "ttft": [0.2], "prefill": [4 * best], "decode": [best],
            "decode_mean": [best], "warm_ups": 2, "disturbed": []}}
timed(measure)
"""


def plant_speeds(gate, which: str = "False", slow: float = 1.0) -> None:
    gate.plant(SPEEDS.format(which=which, slow=slow))


def candidate(gate, folder: Path, method: str, *, named: str | None = None) -> Path:
    """Copy a well-made artifact into a release."""
    folder.mkdir(exist_ok=True)
    to = folder / f"smollm2-135m-{named or method}.gguf"
    shutil.copyfile(gate.artifact(method), to)
    return to


# -- identity and the decode path


@pytest.fixture
def recorded(warm):
    """A gate with baselines of its own, recorded from the clean artifact."""
    outcome = warm.run("-q", "-k", "fidelity and Q4_0", "--ondevice-update=fidelity")
    assert outcome.code == 0, outcome.out
    return warm


def test_other_logits_are_changed_and_fail_where_that_is_asked_for(recorded, tmp_path):
    chosen = ("-q", "-k", "identity and Q4_0")
    same = recorded.run(*chosen, "--ondevice-identical")
    assert same.verdicts() == {f"fidelity.identity {CELL}": "pass"}
    assert same.report["checks"][0]["finding"] == "identical"
    mutants.scale(candidate(recorded, tmp_path / "new", "Q4_0"), "blk.2.attn_q.weight", 1.01)
    new = f"--ondevice-artifacts={tmp_path / 'new'}"
    changed = recorded.run(*chosen, new)
    assert changed.verdicts() == {f"fidelity.identity {CELL}": "pass"}
    assert changed.report["checks"][0]["finding"] == "changed"
    assert f"changed: {CELL}" in changed.out
    strict = recorded.run(*chosen, new, "--ondevice-identical")
    assert strict.verdicts() == {f"fidelity.identity {CELL}": "fail"}


def test_digests_of_another_isa_class_say_nothing(recorded):
    path = recorded.folder / "baselines" / "portable" / "smollm2-135m" / "Q4_0.json"
    file = json.loads(path.read_text())
    digests = file["sections"]["fidelity"]["digests"]
    file["sections"]["fidelity"]["digests"] = {"ALTIVEC": next(iter(digests.values()))}
    path.write_text(json.dumps(file))
    outcome = recorded.run("-q", "-k", "fidelity and Q4_0", "--ondevice-identical")
    verdicts = outcome.verdicts(CELL)
    assert verdicts["fidelity.identity"] == "no baseline"
    assert verdicts["fidelity.kld"] == "pass"
    assert "ISA class" in next(
        one["message"]
        for one in outcome.report["checks"]
        if one["check"] == "fidelity.identity" and one["cell"] == CELL
    )


def test_a_fault_of_decoding_alone_is_caught(warm):
    chosen = ("-q", "-k", "Q4_0 and (decode or finite) and not speed and not capability")
    clean = warm.run(*chosen)
    assert clean.verdicts() == {
        f"fidelity.finite {CELL}": "pass",
        f"fidelity.decode {CELL}": "pass",
    }
    shutil.rmtree(warm.cache / "journal")
    warm.plant(
        """
        import pytest_ondevice.probe.engines.llama_cpp as engine
        original = engine.Context.logits
        engine.Context.logits = lambda self, rows: original(self, rows) * (1.5 if rows == 1 else 1)
        """
    )
    broken = warm.run(*chosen)
    assert broken.verdicts() == {
        f"fidelity.finite {CELL}": "pass",
        f"fidelity.decode {CELL}": "fail",
    }


# -- a release against the one before


@pytest.fixture(scope="module")
def succession(seed, tmp_path_factory):
    """One cell that is worse, one better, one the same, one without a predecessor, one gone."""
    folder = tmp_path_factory.mktemp("succession")
    old, new = folder / "old", folder / "new"
    made = seed.run("-q", "-k", "loads", methods="Q4_0,Q5_0,Q8_0")
    assert made.code == 0, made.out
    for release in (old, new):
        candidate(seed, release, "Q4_0")
    mutants.scale(candidate(seed, new, "Q5_0"), "token_embd.weight", 1.3)
    candidate(seed, old, "Q5_0")
    mutants.scale(candidate(seed, old, "Q8_0"), "token_embd.weight", 1.3)
    candidate(seed, new, "Q8_0")
    # Eight bits under the name of four: larger in the file and in memory.
    candidate(seed, new, "Q8_0", named="Q4_K_M")
    candidate(seed, old, "Q4_0", named="Q4_K_M")
    candidate(seed, new, "Q4_0", named="Q3_K_M")
    candidate(seed, old, "Q4_0", named="Q2_K")
    command = seed.command(
        "-q",
        f"--ondevice-artifacts={new}",
        f"--ondevice-against={old}",
        "-k",
        "test_against and not speed and not accuracy",  # of so few questions none is decided
        "--ondevice-identical",
    )
    chosen = [part for part in command if not part.startswith("--ondevice-methods")]
    seed.command = lambda *_, **__: chosen
    try:
        return seed.run()
    finally:
        del seed.command


@pytest.mark.parametrize("slow", [1.0, 0.85])
def test_an_artifact_that_is_slower_than_its_predecessor(gate, tmp_path, slow):
    candidate(gate, tmp_path / "old", "Q4_0")
    candidate(gate, tmp_path / "new", "Q4_0")
    plant_speeds(gate, which="'/new/' in path", slow=slow)
    outcome = gate.run(
        "-q",
        f"--ondevice-artifacts={tmp_path / 'new'}",
        f"--ondevice-against={tmp_path / 'old'}",
        "-k",
        "test_against and speed and Q4_0",
        "--ondevice-budget=release",
    )
    expected = "pass" if slow == 1.0 else "fail"
    assert outcome.verdicts(CELL) == {
        "against.decode_speed": expected,
        "against.prefill_speed": expected,
    }, outcome.out


def test_each_cell_is_held_against_its_predecessor(succession):
    findings = {
        cell["id"].removeprefix("smollm2-135m-"): cell.get("finding")
        for cell in succession.report["cells"]
    }
    assert findings["Q4_0"] == "no worse", succession.out  # of memory and speed nobody knows more
    assert findings["Q8_0"] == "better"
    assert findings["Q5_0"] == "worse"
    assert findings["Q4_K_M"] == "worse"
    assert findings["Q3_K_M"] is None
    assert "not in this run: smollm2-135m-Q2_K.gguf" in succession.out


@pytest.mark.parametrize(
    ("method", "check"),
    [
        ("Q5_0", "against.identity"),
        ("Q5_0", "against.kld"),
        ("Q5_0", "against.ppl"),
        ("Q4_K_M", "against.size"),
        ("Q4_K_M", "against.memory"),
    ],
)
def test_what_is_worse_fails_its_check(succession, method, check):
    assert succession.verdicts(f"smollm2-135m-{method}")[check] == "fail", succession.out
    assert succession.verdicts("smollm2-135m-Q4_0")[check] == "pass"


def test_a_release_of_nothing_known_is_refused(warm, tmp_path):
    candidate(warm, tmp_path / "old", "Q4_0", named="IQ4_NL")
    outcome = warm.run("-q", f"--ondevice-against={tmp_path / 'old'}")
    assert outcome.code == 4
    assert "nothing there is a predecessor" in outcome.out


# -- speed on record


TIMED = ("-q", "-k", "resources and speed and Q4_0", "--ondevice-budget=release")


@pytest.fixture(scope="module")
def on_record(seed):
    """A folder of baselines with speeds of this tier."""
    plant_speeds(seed)
    first = seed.run(*TIMED, "--ondevice-update=speed")
    seed.clean()
    assert first.code == 0, first.out
    return seed.folder / "baselines"


@pytest.mark.parametrize("slow", [1.0, 0.85])
def test_speed_on_record_of_this_tier(gate, on_record, slow):
    plant_speeds(gate, which="small(path)", slow=slow)
    verdicts = gate.run(*TIMED, f"--ondevice-baselines={on_record}").verdicts(CELL)
    expected = "pass" if slow == 1.0 else "fail"
    assert verdicts["resources.decode_speed"] == expected
    assert verdicts["resources.prefill_speed"] == expected


def test_speed_of_another_machine_is_not_comparable(warm):
    chosen = ("-q", "-k", "(resources or fidelity) and (speed or memory or kld) and Q4_0")
    plant_speeds(warm)
    assert warm.run(*chosen, "--ondevice-update").code == 0
    (tier,) = [path for path in (warm.folder / "baselines").iterdir() if path.name != "portable"]
    elsewhere = tier.with_name("aarch64-another-machine")
    tier.rename(elsewhere)
    path = elsewhere / "smollm2-135m" / "Q4_0.json"
    file = json.loads(path.read_text())
    file["sections"]["speed"]["tier"]["cpu"] = "Another CPU"
    path.write_text(json.dumps(file))
    portable = warm.folder / "baselines" / "portable" / "smollm2-135m" / "Q4_0.json"
    recorded = json.loads(portable.read_text())
    for section in recorded["sections"].values():
        section["cpu"] = "Another CPU"
    portable.write_text(json.dumps(recorded))
    outcome = warm.run(*chosen)
    assert outcome.code == 0, outcome.out
    verdicts = outcome.verdicts(CELL)
    assert verdicts["resources.decode_speed"] == "no baseline"
    assert verdicts["fidelity.kld"] == verdicts["resources.peak_memory"] == "pass"
    message = next(
        one["message"]
        for one in outcome.report["checks"]
        if one["check"] == "resources.decode_speed" and one["cell"] == CELL
    )
    assert "not comparable" in message
    assert "cpu Another CPU there" in message


# -- limits, tolerances, references


def test_limits_of_a_users_own(warm):
    size = warm.artifact("Q4_0").stat().st_size
    bounds = warm.folder / "bounds.toml"
    bounds.write_text(
        f"""
        [[budget]]
        quantity = "file_size"
        at_most = "{size // 2**20} MiB"
        method = "Q4_0"
        reason = "the slot of the board"

        [[budget]]
        quantity = "mean_kld"
        at_most = 2.0
        method = "Q4_0"
        """
    )
    outcome = warm.run("-q", "-k", "budgets", f"--ondevice-bounds={bounds}")
    verdicts = {one["quantity"]: one["verdict"] for one in outcome.report["checks"]}
    assert verdicts == {"file_size": "fail", "mean_kld": "pass"}, outcome.out
    assert "the slot of the board" in outcome.out


def test_a_tolerance_of_a_users_own(recorded, tmp_path):
    mutants.scale(candidate(recorded, tmp_path / "new", "Q4_0"), "token_embd.weight", 3.0)
    chosen = ("-q", "-k", "kld and Q4_0", f"--ondevice-artifacts={tmp_path / 'new'}")
    assert recorded.run(*chosen).verdicts() == {f"fidelity.kld {CELL}": "fail"}
    bounds = recorded.folder / "bounds.toml"
    bounds.write_text(
        '[[tolerance]]\ncheck = "fidelity.kld"\nabsolute = 50\nreason = "an experiment"\n'
    )
    outcome = recorded.run(*chosen, f"--ondevice-bounds={bounds}")
    assert outcome.verdicts() == {f"fidelity.kld {CELL}": "pass"}, outcome.out


def test_beside_its_reference_an_artifact_loses_what_the_file_says(warm):
    chosen = ("-q", "-k", "kld and Q4_0", "--ondevice-update=fidelity")

    def kld(outcome) -> float:
        assert outcome.code == 0, outcome.out
        return outcome.cell(CELL)["measurements"]["mean_kld"]["value"]

    by_file = kld(warm.run(*chosen))
    beside = kld(warm.run(*chosen, "--ondevice-reference=beside"))
    assert beside == pytest.approx(by_file, rel=3e-3)
    assert beside != by_file


def test_an_inconclusive_measurement_can_be_a_skip(recorded, tmp_path):
    # Worse on average, and so differently in each of three windows that chance explains it.
    mutants.scale(candidate(recorded, tmp_path / "new", "Q4_0"), "output_norm.weight", 1.0001)
    recorded.plant(
        """
        import pytest_ondevice.probe.fidelity as fidelity
        original = fidelity.measure
        def measure(engine, path, plan, tick):
            made = original(engine, path, plan, tick)
            worse = (1.0, 1.05, 1.5)
            return made | {"kld": [one * by for one, by in zip(made["kld"], worse, strict=True)]}
        fidelity.measure = measure
        """
    )
    chosen = ("-q", "-k", "kld and Q4_0", f"--ondevice-artifacts={tmp_path / 'new'}")
    red = recorded.run(*chosen)
    verdict = red.verdicts()[f"fidelity.kld {CELL}"]
    assert verdict == "inconclusive", red.out
    assert red.code == 1
    skipped = recorded.run(*chosen, "--ondevice-inconclusive=skip")
    assert skipped.verdicts() == red.verdicts()
    assert skipped.code == 0, skipped.out


def environment(folder: Path, *, python: Path) -> Path:
    """Make a Python environment with the runtime of this one, but for a library more."""
    packages = (
        folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    )
    (folder / "bin").mkdir(parents=True)
    packages.mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(python)
    (folder / "pyvenv.cfg").write_text(f"home = {python.parent}\n")
    for name in ("msgspec", "numpy", "numpy.libs", "diskcache", "jinja2", "markupsafe"):
        found = Path(msgspec.__file__).parents[1] / name
        if found.exists():
            (packages / name).symlink_to(found)
    shutil.copyfile(typing_extensions.__file__, packages / "typing_extensions.py")
    runtime = Path(importlib.util.find_spec("llama_cpp").submodule_search_locations[0])
    shutil.copytree(runtime, packages / "llama_cpp")
    (packages / "llama_cpp" / "lib" / "libextra.so").write_bytes(b"another build")
    mark = f"open({str(folder / 'started')!r}, 'a').write('a worker\\n')\n"
    (packages / "sitecustomize.py").write_text(mark)
    return folder


def test_the_same_artifact_on_another_build(warm, tmp_path):
    other = environment(tmp_path / "other", python=Path(sys._base_executable))
    chosen = ("-q", "-k", "against and Q4_0 and not (speed or accuracy)")
    chosen += (f"--ondevice-against={other}",)
    outcome = warm.run(*chosen, "--ondevice-identical")
    assert outcome.code == 0, outcome.out
    assert set(outcome.verdicts(CELL).values()) == {"pass"}
    changes = {one["check"]: one for one in outcome.report["checks"]}
    # The predecessor's workers ran there: to validate it, for its logits, for its memory.
    assert (other / "started").read_text().splitlines() == 3 * ["a worker"]
    assert changes["against.identity"]["finding"] == "identical"
    assert changes["against.kld"]["change"]["finding"] == "identical"
    cell = outcome.cell(CELL)
    assert cell["finding"] in {"identical", "no worse"}
    assert cell["predecessor"]["sha256"] == cell["artifact"]["sha256"]
