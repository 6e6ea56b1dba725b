"""Every check that ships has a planted fault that turns it red, and a clean case that stays green.

The faults are planted in candidates of the model whose baselines ship; the text, the windows and
the bounds are those that every user has.
"""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import mutants
import pytest

SUITES = Path(__file__).parents[2] / "suites"
FILE_TYPES = {"Q5_0": 8, "Q5_K_M": 17}

# Cell's method -> the checks that its planted fault must fail; an empty set is the clean case.
CANDIDATES: dict[str, set[str]] = {
    "Q4_K_M": {"fidelity.kld"},
    "Q5_0": {"artifact.quantized", "artifact.types", "artifact.planned_bpw"},
    "Q4_1": {"artifact.file_type", "artifact.types", "artifact.planned_bpw"},
    "Q4_0": {"artifact.loads", "artifact.blocks"},
    "Q5_K_M": {"artifact.effective_bpw", "artifact.file_size", "resources.peak_memory"},
    "Q8_0": {"fidelity.ppl_ratio", "fidelity.same_top", "fidelity.kld", "fidelity.rms_dp"},
    "Q6_K": {"fidelity.finite"},
    "Q2_K": set(),
}
REFERENCE = {"fidelity.reference"}

# Caught by other tests of this folder, which kill or change what the check depends on.
ELSEWHERE = {
    "resources.speed": "test_endings.py::test_a_stage_dies[segv]",
    "efficiency.quantize": "test_mutants.py::test_quantizing_that_takes_too_much_memory",
    "artifact.accounting": "test_mutants.py::test_a_runtime_that_counts_otherwise",
    "artifact.pin": "test_artifact_mutants.py::test_a_pinned_artifact_that_changed_is_caught",
    "artifact.rederived": "test_artifact_mutants.py::test_a_pinned_artifact_that_changed_is_caught",
    "fidelity.identity": (
        "test_verdicts.py::test_other_logits_are_changed_and_fail_where_that_is_asked_for"
    ),
    "fidelity.decode": "test_verdicts.py::test_a_fault_of_decoding_alone_is_caught",
    "resources.decode_speed": "test_verdicts.py::test_speed_on_record_of_this_tier",
    "resources.prefill_speed": "test_verdicts.py::test_speed_on_record_of_this_tier",
    "resources.reserved_memory": "test_resources.py::test_a_runtime_that_reserves_more_is_caught",
    "resources.deployed_memory": (
        "test_resources.py::test_memory_that_only_the_deployment_takes_is_caught"
    ),
    "resources.energy": "test_resources.py::test_a_meter_that_stops_is_no_figure",
    "laws.memory": "test_resources.py::test_a_leaked_buffer_of_one_cell_is_named",
    "laws.file_size": "test_resources.py::test_a_file_that_holds_more_than_its_weights_is_named",
    "laws.kv_cache": "test_resources.py::test_a_runtime_that_reserves_more_is_caught",
    "laws.power": "test_resources.py::test_the_law_of_power_on_a_meter",
    "laws.decode_time": "test_broken_laws.py::test_decoding_that_gets_faster_with_more_bytes",
    **dict.fromkeys(
        (
            "laws.loss_envelope",
            "laws.loss_monotone",
            "laws.marginal",
            "laws.threshold",
            "laws.pareto",
        ),
        "test_broken_laws.py::test_a_method_that_loses_more_than_its_bits_allow",
    ),
    **dict.fromkeys(
        ("capability.choice", "capability.cloze", "capability.exact", "capability.flips"),
        "test_asked.py::test_a_lost_layer_is_seen_in_every_form",
    ),
    "capability.reference": "test_asked.py::test_a_reference_that_guesses",
    "capability.finite": "test_asked.py::test_answers_that_are_no_numbers",
    "against.accuracy": "test_asked.py::test_worse_than_the_release_before",
    "budgets.kept": "test_verdicts.py::test_limits_of_a_users_own",
    "generations.greedy": "test_continuations.py::test_damaged_scales_change_the_text",
    **dict.fromkeys(
        (
            "against.size",
            "against.identity",
            "against.kld",
            "against.ppl",
            "against.memory",
        ),
        "test_verdicts.py::test_what_is_worse_fails_its_check",
    ),
    **dict.fromkeys(
        ("against.decode_speed", "against.prefill_speed"),
        "test_verdicts.py::test_an_artifact_that_is_slower_than_its_predecessor",
    ),
    **dict.fromkeys(
        (
            "artifact.quantization_version",
            "artifact.tokenizer",
            "artifact.chat_template",
            "artifact.stray_bytes",
        ),
        "test_artifact_mutants.py::test_a_fault_of_the_file_is_caught",
    ),
}


def make(gate, method: str, to: Path) -> Path:
    """Copy a well-made artifact out of the store."""
    shutil.copyfile(gate.artifact(method), to)
    return to


@pytest.fixture(scope="module")
def release(full_seed, tmp_path_factory) -> Path:
    """A folder of candidates: seven damaged in one way each, one as it should be."""
    methods = "Q2_K,Q4_0,Q4_K_M,Q6_K,Q8_0"
    outcome = full_seed.run("-q", "-k", "planned", methods=methods)
    assert outcome.code == 0, outcome.out
    folder = tmp_path_factory.mktemp("release")
    made = {
        name: make(full_seed, origin, folder / f"smollm2-135m-{name}.gguf")
        for name, origin in {
            "Q4_K_M": "Q4_K_M",
            "Q5_0": "F16",
            "Q4_1": "Q4_0",
            "Q4_0": "Q4_0",
            "Q5_K_M": "Q8_0",
            "Q8_0": "Q8_0",
            "Q6_K": "Q6_K",
            "Q2_K": "Q2_K",
        }.items()
    }
    mutants.scale(made["Q4_K_M"], "blk.10.ffn_down.weight", 1.1)
    mutants.declare(made["Q5_0"], FILE_TYPES["Q5_0"])
    mutants.poison(made["Q4_0"], "blk.3.attn_q.weight")
    mutants.declare(made["Q5_K_M"], FILE_TYPES["Q5_K_M"])
    for layer in range(4, 12):
        mutants.scale(made["Q8_0"], f"blk.{layer}.ffn_down.weight", 1.25)
    # Finite in the file, infinite in the arithmetic.
    mutants.scale(made["Q6_K"], "blk.5.attn_norm.weight", 1e37)
    return folder


@pytest.fixture(scope="module")
def judged(full_seed, release):
    command = full_seed.command(
        "-q",
        "-k",
        # Of faults that a file's header or its memory shows, no logits are computed; and but for
        # the clean case no memory where logits show them.
        "not speed and not laws and not capability"
        " and not (fidelity and (Q4_0 or Q4_1 or Q5_0 or Q5_K_M))"
        " and not ((memory or decode) and not (Q2_K or Q5_K_M))",
        "--ondevice-budget=8",
        f"--ondevice-artifacts={release}",
        methods=",".join(CANDIDATES),
    )
    shipped = [part for part in command if not part.startswith("--ondevice-text")]
    full_seed.command = lambda *_, **__: shipped
    try:
        return full_seed.run()
    finally:
        del full_seed.command


@pytest.mark.parametrize("method", CANDIDATES)
def test_a_planted_fault_is_caught(judged, method):
    verdicts = judged.verdicts(f"smollm2-135m-{method}")
    failed = {name for name, verdict in verdicts.items() if verdict == "fail"}
    assert CANDIDATES[method] <= failed, judged.out
    if not CANDIDATES[method]:
        assert failed == set()
        assert "pass" in {verdicts["fidelity.kld"], verdicts["artifact.loads"]}


def test_the_reference_is_checked_too(full_gate, tmp_path):
    folder = tmp_path / "release"
    folder.mkdir()
    path = make(full_gate, "F16", folder / "smollm2-135m-F16.gguf")
    mutants.scale(path, "token_embd.weight", 1.2)
    command = full_gate.command(
        *("-q", "-k", "fidelity and test_reference and F16", "--ondevice-budget=8"),
        f"--ondevice-artifacts={folder}",
    )
    shipped = [part for part in command if not part.startswith("--ondevice-text")]
    full_gate.command = lambda *_, **__: shipped
    outcome = full_gate.run()
    assert outcome.verdicts() == {"fidelity.reference smollm2-135m-F16": "fail"}


def test_a_runtime_that_counts_otherwise(warm):
    warm.plant(
        """
        import llama_cpp.llama_cpp as api
        api.llama_model_size = lambda model: 85_000_000
        """
    )
    outcome = warm.run("-q", "-k", "accounting and Q4_0")
    assert outcome.verdicts() == {"artifact.accounting smollm2-135m-Q4_0": "pass"}  # reused
    other = warm.cache / "journal"
    shutil.rmtree(other)
    outcome = warm.run("-q", "-k", "accounting and Q4_0")
    assert outcome.verdicts() == {"artifact.accounting smollm2-135m-Q4_0": "fail"}
    assert "85000000" in outcome.out or "81.06" in outcome.out, outcome.out


def test_quantizing_that_takes_too_much_memory(gate):
    gate.plant(
        """
        import pytest_ondevice.probe.engines.llama_cpp as engine
        original = engine.quantize
        def quantize(*args, **more):
            ballast = b"x" * 900_000_000
            original(*args, **more)
            del ballast
        engine.quantize = quantize
        """
    )
    outcome = gate.run("-q", "-k", "efficiency and Q5_1", methods="Q5_1")
    assert outcome.verdicts() == {"efficiency.quantize smollm2-135m-Q5_1": "fail"}
    assert "quantize_peak_memory" in outcome.out


def test_a_failure_names_bound_source_and_update(judged):
    assert "; of its weights" in judged.out
    assert "fidelity.kld smollm2-135m-Q4_K_M: fail: +" in judged.out
    assert "; baseline: shipped:portable/smollm2-135m/Q4_K_M.json, recorded" in judged.out
    assert "update    the same command with --ondevice-update=fidelity accepts it" in judged.out


def test_every_check_has_a_mutant():
    checks = {
        decorator.args[0].value
        for path in SUITES.glob("*/test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call) and decorator.func.id == "check"
    }
    caught = REFERENCE.union(ELSEWHERE, *CANDIDATES.values())
    assert checks == caught
    for place in ELSEWHERE.values():
        file, _, test = place.partition("::")
        source = (Path(__file__).parent / file).read_text()
        assert f"def {test.partition('[')[0]}(" in source, place
