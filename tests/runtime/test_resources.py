"""Memory, energy and the laws over them, on real weights: what is planted is found and named."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

METHODS = "Q4_0,Q8_0"
MODEL = "smollm2-135m"
CELLS = [f"{MODEL}-{method}" for method in ("F16", "Q4_0", "Q8_0")]


@pytest.fixture(scope="module")
def clean(seed):
    """The clean case of what is planted below, and the baselines to hold it against."""
    outcome = seed.run(
        "-q",
        "-k",
        "memory or kv_cache or file_size or energy or power or loss_envelope",
        "--ondevice-update=reserve,memory",
        methods=METHODS,
    )
    assert outcome.code == 0, outcome.out
    return outcome


@pytest.fixture
def held(warm, clean, seed):
    """A gate with the baselines of the clean case."""
    shutil.copytree(seed.folder / "baselines", warm.folder / "baselines")
    return warm


def test_what_is_clean_stays_green(clean):
    verdicts = clean.verdicts()
    for law in ("memory", "file_size", "kv_cache"):
        assert verdicts[f"laws.{law} {MODEL}"] == "pass", clean.out
    for cell in CELLS:
        assert verdicts[f"resources.deployed_memory {cell}"] == "pass"
        assert verdicts[f"resources.reserved_memory {cell}"] == "pass"


def test_the_memory_law_has_its_figures_in_the_report(clean):
    law = next(one for one in clean.report["laws"] if one["law"] == "memory")
    assert law["r2"] >= 0.999
    assert 0.98 <= law["slope"] <= 1.03
    assert max(abs(point["residual"]) for point in law["points"]) < 2**20
    assert {point["cell"] for point in law["points"]} == set(CELLS)


def test_what_is_counted_twice_as_shipped_is_explained(clean):
    """llama.cpp repacks Q4_0 on every CPU that it has kernels for; the mapped file stays."""
    figures = clean.cell(f"{MODEL}-Q4_0")["measurements"]
    copies = figures["repacked_bytes"]["value"]
    if not copies:
        pytest.skip("requires a CPU that llama.cpp repacks Q4_0 for")
    more = figures["deployed_memory"]["value"] - figures["peak_memory"]["value"]
    assert more == pytest.approx(copies, abs=6 * 2**20)
    assert "repacked copies: +" in figures["deployed_memory"]["detail"]
    assert "Q4_0 as shipped it takes" in clean.out


def test_a_quantized_source_makes_laws_of_loss_unsupported(clean):
    assert clean.verdicts()[f"laws.loss_envelope {MODEL}"] == "unsupported"
    assert "quantized already (Q4_1)" in clean.out


def test_without_a_meter_energy_is_skipped_with_the_rule_that_would_help(clean, gate, tmp_path):
    (tmp_path / "sys").mkdir()
    none = f"--ondevice-sysfs={tmp_path / 'sys'}"
    outcome = gate.run("-q", "-rs", "-k", "energy and Q4_0", none)
    assert outcome.verdicts() == {f"resources.energy {MODEL}-Q4_0": "unsupported"}
    assert 'SUBSYSTEM=="powercap"' in outcome.out
    required = gate.run("-q", "-k", "energy and Q4_0", none, "--ondevice-require-energy")
    assert required.code == 1
    assert required.report["checks"][0]["outcome"] == "failed"


def test_a_leaked_buffer_of_one_cell_is_named(warm, clean):
    between = sum(warm.artifact(method).stat().st_size for method in METHODS.split(",")) // 2
    warm.plant(
        f"""
        import pytest_ondevice.probe.memory as memory
        fill, kept = memory._fill, []
        def leak(ctx, model, execution, decode, tick):
            fill(ctx, model, execution, decode, tick)
            if model.tensor_bytes < {between}:  # Q4_0
                kept.append(b"x" * 6_000_000)
        memory._fill = leak
        """
    )
    outcome = warm.run("-q", "-k", "laws and test_memory", methods=METHODS)
    assert outcome.verdicts() == {f"laws.memory {MODEL}": "fail"}
    law = next(one for one in outcome.report["laws"] if one["law"] == "memory")
    assert law["anomalies"]
    assert all("Q4_0" in one and "Q8_0" not in one for one in law["anomalies"]), law["anomalies"]


def test_memory_that_only_the_deployment_takes_is_caught(held):
    held.plant(
        """
        import pytest_ondevice.probe.memory as memory
        fill, kept = memory._fill, []
        def leak(ctx, model, execution, decode, tick):
            fill(ctx, model, execution, decode, tick)
            if execution.mapped:
                kept.append(b"x" * 40_000_000)
        memory._fill = leak
        """
    )
    outcome = held.run("-q", "-k", "(deployed or peak) and Q4_0")
    assert outcome.verdicts() == {
        f"resources.deployed_memory {MODEL}-Q4_0": "fail",
        f"resources.peak_memory {MODEL}-Q4_0": "pass",
    }


@pytest.mark.parametrize(
    ("planted", "failed"),
    [
        # The least that llama.cpp tells apart, of one buffer.
        ('told | {"compute": told["compute"] + 0.01}', "resources.reserved_memory"),
        # The cache of 4096 tokens, of 3 KiB each, and no shorter one.
        ('told | {"kv": told["kv"] * (1.02 if told["kv"] > 11 else 1)}', "laws.kv_cache"),
    ],
    ids=["compute", "kv"],
)
def test_a_runtime_that_reserves_more_is_caught(held, planted, failed):
    # What the runtime told the clean case may not be reused.
    shutil.rmtree(held.cache / "journal")
    held.plant(
        f"""
        import pytest_ondevice.probe.engines.llama_cpp as engine
        original = engine.reserved
        def reserved(since):
            told = original(since)
            return {planted}
        engine.reserved = reserved
        """
    )
    outcome = held.run("-q", "-k", "(reserved and Q4_0) or kv_cache", methods=METHODS)
    red = {check.split()[0] for check, verdict in outcome.verdicts().items() if verdict == "fail"}
    assert red == {failed}, outcome.out


def test_a_file_that_holds_more_than_its_weights_is_named(warm, clean, seed, tmp_path):
    release = tmp_path / "release"
    release.mkdir()
    bloated = release / f"{MODEL}-Q8_0.gguf"
    shutil.copyfile(seed.artifact("Q8_0"), bloated)
    with bloated.open("ab") as file:
        file.write(bytes(400_000))
    outcome = warm.run(
        "-q",
        "-k",
        "laws and file_size",
        f"--ondevice-artifacts={release}",
        methods=f"{METHODS},Q5_0",
    )
    assert outcome.verdicts() == {f"laws.file_size {MODEL}": "fail"}
    law = next(one for one in outcome.report["laws"] if one["law"] == "file_size")
    assert [one for one in law["anomalies"] if "Q8_0" in one]
    assert not [one for one in law["anomalies"] if "Q5_0" in one]


def test_another_context_is_another_protocol(held):
    """Changed on purpose, it is compared with nothing, and said."""
    outcome = held.run("-q", "-rs", "-k", "peak_memory and Q4_0", "--ondevice-context=1024")
    assert outcome.verdicts() == {f"resources.peak_memory {MODEL}-Q4_0": "no baseline"}
    why = outcome.report["checks"][0]["message"]
    assert f"{MODEL}/Q4_0.json: n_ctx 512 there, 1024 here" in why


def test_another_cache_is_another_cell(held):
    outcome = held.run(
        "-q",
        "-k",
        "peak_memory or kld or kv_cache",
        "--ondevice-kv-types=f16,q8_0",
        methods="Q4_0",
    )
    assert outcome.code == 0, outcome.out
    plain, packed = (outcome.cell(f"{MODEL}-Q4_0{kind}") for kind in ("", "+kv-q8_0"))
    assert plain["artifact"]["sha256"] == packed["artifact"]["sha256"]
    kv = [cell["measurements"]["kv_reserve_4096"]["value"] for cell in (plain, packed)]
    assert kv[1] / kv[0] == pytest.approx(34 / 64, rel=0.005)
    losses = [cell["measurements"]["mean_kld"]["value"] for cell in (plain, packed)]
    assert losses[0] != losses[1]
    assert outcome.verdicts()[f"resources.peak_memory {MODEL}-Q4_0"] == "pass"
    assert outcome.verdicts()[f"resources.peak_memory {MODEL}-Q4_0+kv-q8_0"] == "no baseline"
    assert outcome.verdicts()[f"laws.kv_cache {MODEL}"] == "pass"


# -- energy, on a tree that stands for the kernel's

METER = """
import threading
import msgspec
import pytest_ondevice.probe.energy as energy
import pytest_ondevice.probe.engines.llama_cpp as engine
energy.disturbances = lambda *_: []  # who else is on this machine is not the question here
original = energy.measure
def measure(engine, path, plan, tick):
    brief = msgspec.structs.replace(plan, idle_seconds=0.5, seconds=0.5, prefill=64, decode=16)
    return original(engine, path, brief, tick)
energy.measure = measure
counter = {counter!r}
lock, total, stopped = threading.Lock(), [1_000_000], []
def add(microjoules):
    with lock:
        if not stopped:
            total[0] += round(microjoules)
        with open(counter + ".new", "w") as file:
            file.write(str(total[0]))
        os.replace(counter + ".new", counter)  # a reader never sees half of it
def idle():
    last = time.monotonic()
    while True:
        time.sleep(0.005)
        now = time.monotonic()
        add(1e6 * (now - last))  # 1 W
        last = now
threading.Thread(target=idle, daemon=True).start()
feed = engine.Context.feed
def fed(self, tokens, start, logits_from=None):
    feed(self, tokens, start, logits_from)
    {then}
engine.Context.feed = fed
"""


def powercap(folder: Path) -> Path:
    """Make a tree with one package; returns the file of its counter."""
    zone = folder / "class" / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text("262143328850\n")
    (zone / "energy_uj").write_text("1000000")
    return zone / "energy_uj"


@pytest.mark.parametrize(
    ("cost", "verdict"),
    [
        ("4_000_000 if len(tokens) > 1 else 20_000", "pass"),
        # Decoding draws more than prefilling: the clocks or the meter are not what they seem.
        ("200_000 if len(tokens) > 1 else 4_000_000", "fail"),
    ],
    ids=["clean", "planted"],
)
def test_the_law_of_power_on_a_meter(warm, tmp_path, cost, verdict):
    counter = powercap(tmp_path / "sys")
    warm.plant(METER.format(counter=str(counter), then=f"add({cost})"))
    outcome = warm.run(
        "-q", "-k", "power or (energy and Q4_0)", f"--ondevice-sysfs={tmp_path / 'sys'}"
    )
    verdicts = outcome.verdicts()
    assert verdicts[f"laws.power {MODEL}"] == verdict, outcome.out
    assert verdicts[f"resources.energy {MODEL}-Q4_0"] == "pass"
    figures = outcome.cell(f"{MODEL}-Q4_0")["measurements"]
    assert 0.5 < figures["idle_power"]["value"] < 1.5
    assert "package" in figures["decode_energy"]["detail"]


def test_a_meter_that_stops_is_no_figure(warm, tmp_path):
    counter = powercap(tmp_path / "sys")
    warm.plant(METER.format(counter=str(counter), then="stopped.append(True)"))
    outcome = warm.run("-q", "-k", "energy and Q4_0", f"--ondevice-sysfs={tmp_path / 'sys'}")
    assert outcome.verdicts() == {f"resources.energy {MODEL}-Q4_0": "fail"}
    assert "decode_energy" not in outcome.cell(f"{MODEL}-Q4_0")["measurements"]


def test_the_report_is_json_that_other_programs_read(clean):
    assert json.loads(json.dumps(clean.report))["laws"]
