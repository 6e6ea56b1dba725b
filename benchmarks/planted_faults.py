"""Is every fault that matters caught, and is nothing else called one?

    python benchmarks/planted_faults.py --save FILE.json [--cache DIR] [--method Q4_K_M]
    python benchmarks/planted_faults.py --load FILE.json

Faults of graded size are planted in a copy of an artifact of SmolLM2-135M, and each is measured
over every window of the shipped text, so that its true loss is known; then the shipped checks judge
it as a run would, look by look, against the clean artifact's figures as a baseline holds them. The
null set is the clean artifact under other ways of executing it that are all right. Target: every
fault whose loss exceeds the tolerance by 3 errors fails, whatever moves a logit at all is told as
changed, a fault that moves none fails another check, and nothing of the null set fails.

Results are kept in FILE.json after each measurement, so that an interrupted run goes on where it
was; beside it lie the reference file, the copy and llama.cpp's log. Some 40 measurements of 35
windows: half an hour on one idle core.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import math
import os
import shutil
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_ondevice import facts, figures, shipped
from pytest_ondevice.checks import check_of
from pytest_ondevice.errors import OnDeviceError
from pytest_ondevice.formats.gguf import read_header
from pytest_ondevice.judgement import ALPHA, judge
from pytest_ondevice.matrix import REFERENCE
from pytest_ondevice.model.bound import Bound, Source
from pytest_ondevice.model.measurement import Measurement
from pytest_ondevice.model.quant_types import FILE_TYPES
from pytest_ondevice.model.quantity import QUANTITIES, Stage
from pytest_ondevice.model.verdict import Verdict
from pytest_ondevice.options import BUDGETS, defaults
from pytest_ondevice.probe import decode, fidelity
from pytest_ondevice.probe.protocol import DecodePlan, Execution, FidelityPlan
from pytest_ondevice.stats import looks, relative_change
from pytest_ondevice.storage.baselines import entry_of
from pytest_ondevice.storage.files import write_atomic
from pytest_ondevice.texts import texts
from pytest_ondevice.workbench import workbench

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))
import mutants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pytest_ondevice.provision import Artifact
    from pytest_ondevice.stats import Look

MODEL = "smollm2-135m"
LAYER = "blk.10"
NEXT = "blk.11"
CLEAN = "clean"
METHODS = ("Q4_0", "Q4_K_M", "Q5_0", "Q5_K_M", "Q6_K", "Q8_0")
"""Those of whose tensors `mutants` knows where the scales are."""
COLUMNS = fidelity.COLUMNS
KEPT = ("ids", "available", "scored", "nonfinite", "reference", "isa", "logits", *COLUMNS)
ELSEWHERE = {"pin_matches", "rederived_share", "changed_windows"}
"""Quantities of checks that any change of the file fails by its nature, and of identity."""
ERRORS = 3.0
"""A loss that exceeds the tolerance by so many errors has to fail."""


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement: a fault in the file or in the worker, or a harmless execution.

    Attributes:
        name: What it is called in the table.
        plant: Plants the fault in a copy of the artifact.
        spoil: Called after a token was fed alone, with the context and the token's position.
        execution: What is executed otherwise than by default.
    """

    name: str
    plant: Callable[[Path], object] | None = None
    spoil: Callable[[Any, int], object] | None = None
    execution: Mapping[str, object] = field(default_factory=dict)


def scaled(pattern: str, factor: float) -> Callable[[Path], None]:
    """Plant scales that are off in every tensor that the pattern matches."""

    def plant(path: Path) -> None:
        for tensor in mutants.tensors(path, pattern):
            mutants.scale(path, tensor, factor)

    return plant


def louder(ctx: Any, position: int) -> None:
    """Multiply the logits of a single token: a kernel with a wrong factor."""
    del position
    view = ctx.logits(1)
    view *= 1.1


def forgetful(ctx: Any, position: int) -> None:
    """Lose every eighth cell of the cache behind single tokens: an index that is off."""
    if position % 8 == 7:
        memory = ctx.engine.api.llama_get_memory(ctx.pointer)
        ctx.engine.api.llama_memory_seq_rm(memory, 0, position - 4, position - 3)


DOWN = rf"{LAYER}\.ffn_down\.weight"
MATRICES = rf"{LAYER}\.(attn|ffn)_(q|k|v|output|up|gate|down)\.weight"
NORMS = r"\.(attn|ffn)_norm\.weight"

FAULTS = (
    *(
        Case(f"scales {percent:+g} %, ffn_down of one layer", scaled(DOWN, 1 + percent / 100))
        for percent in (0.5, 1, 2, 5, 10, 20)
    ),
    *(
        Case(f"scales +10 %, {kind} of one layer", scaled(rf"{LAYER}\.{kind}\.weight", 1.1))
        for kind in ("attn_output", "attn_k", "ffn_up")
    ),
    Case("scales +10 %, all matrices of one layer", scaled(MATRICES, 1.1)),
    *(
        Case(f"scales {percent:+g} %, ffn_down of all layers",
             scaled(r"blk\.\d+\.ffn_down\.weight", 1 + percent / 100))
        for percent in (1, 5)
    ),
    *(
        Case(f"{share:.1%} of blocks lost, ffn_down of one layer",
             partial(mutants.lose, tensor=f"{LAYER}.ffn_down.weight", share=share))
        for share in (0.001, 0.01, 0.1)
    ),
    Case("swapped: gate and up of one layer",
         partial(mutants.swap, one=f"{LAYER}.ffn_gate.weight", other=f"{LAYER}.ffn_up.weight")),
    Case("swapped: attn_output of two layers",
         partial(mutants.swap, one=f"{LAYER}.attn_output.weight",
                 other=f"{NEXT}.attn_output.weight")),
    Case("norms +2 %, one layer", scaled(LAYER + NORMS, 1.02)),
    Case("norms +10 %, one layer", scaled(LAYER + NORMS, 1.1)),
    Case("norms +2 %, all layers", scaled(r"blk\.\d+" + NORMS, 1.02)),
    Case("rope base -1 %", partial(mutants.rotate, factor=0.99)),
    Case("rope base 1/10, llama.cpp's default", partial(mutants.rotate, factor=0.1)),
    Case("a NaN scale, attn_q of one layer",
         partial(mutants.poison, tensor=f"{LAYER}.attn_q.weight")),
    Case("an absurd scale, attn_q of one layer",
         partial(mutants.inflate, tensor=f"{LAYER}.attn_q.weight")),
    Case("wrong file type in the header",
         partial(mutants.declare, file_type=FILE_TYPES["Q2_K"].id)),
    Case("decode only: logits x 1.1", spoil=louder),
    Case("decode only: every 8th cell lost", spoil=forgetful),
)  # fmt: skip

HARMLESS = (
    Case("the same once more"),
    Case("flash attention off", execution={"flash_attention": False}),
    Case("repack off", execution={"repack": False}),
    Case("n_ubatch 32", execution={"n_ubatch": 32}),
    Case("n_ubatch 128", execution={"n_ubatch": 128}),
    Case("another number of threads", execution={"threads": 2}),
)


# -- measuring


class Spoiled:
    """The engine, with a fault in what is fed one token at a time."""

    def __init__(self, engine: Any, spoil: Callable[[Any, int], object]) -> None:
        self._engine = engine
        self._spoil = spoil

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    @contextmanager
    def context(self, model: Any, execution: Execution) -> Iterator[Any]:
        with self._engine.context(model, execution) as ctx:
            feed = ctx.feed

            def spoiled(tokens: Sequence[int], start: int, logits_from: int | None = None) -> None:
                feed(tokens, start, logits_from)
                if len(tokens) == 1:
                    self._spoil(ctx, start)

            ctx.feed, ctx.engine = spoiled, self._engine
            yield ctx


@dataclass
class Laboratory:
    """Measures cases on one working copy of the artifact, and keeps what it yields."""

    save: Path
    threads: int
    windows: int | None
    artifact: Artifact
    reference: Path
    kept: dict[str, Any]

    def run(self, cases: Sequence[Case]) -> None:
        """Measure the cases that are not kept yet: the reference's own pass comes first."""
        from pytest_ondevice.probe.engines import llama_cpp as engine  # noqa: PLC0415  (native)

        engine.start()
        held, copy = self.save.with_suffix(".npz"), self.save.with_suffix(".gguf")
        plan = FidelityPlan(
            texts=texts(None)[0],
            reference=str(held),
            last=self.windows,
            execution=Execution(threads=self.threads),
        )
        if not (held.is_file() and self.kept.get("reference")):
            begin = time.perf_counter()
            found = fidelity.measure(
                engine, str(self.reference), msgspec.structs.replace(plan, write=True), quiet
            )
            self.kept["reference"] = {name: found[name] for name in KEPT}
            self._keep("reference", begin)
        clean = self.artifact.file.path
        if not copy.is_file() or copy.stat().st_size != clean.stat().st_size:
            shutil.copyfile(clean, copy)
        for case in cases:
            if case.name in self.kept["cases"]:
                continue
            begin = time.perf_counter()
            mutants.restore(copy, clean)
            if case.plant is not None:
                case.plant(copy)
            with_fault = Spoiled(engine, case.spoil) if case.spoil is not None else engine
            self.kept["cases"][case.name] = self._measure(with_fault, copy, case, plan)
            self._keep(case.name, begin)
        copy.unlink()

    def _measure(self, engine: Any, copy: Path, case: Case, plan: FidelityPlan) -> dict[str, Any]:
        changed = dict(case.execution)
        if changed.get("threads") == self.threads:
            changed["threads"] = 1
        execution = msgspec.structs.replace(plan.execution, **changed)
        found = fidelity.measure(
            engine, str(copy), msgspec.structs.replace(plan, execution=execution), quiet
        )
        decoded = decode.measure(
            engine, str(copy), DecodePlan(texts=plan.texts, execution=execution), quiet
        )
        return {
            "fidelity": {name: found[name] for name in KEPT},
            "decode": decoded,
            "file": self._file(engine, copy),
        }

    def _file(self, engine: Any, copy: Path) -> dict[str, float]:
        """Return the figures of the file that the suite's checks ask for."""
        header = read_header(copy)
        file = replace(self.artifact.file, parts=(copy,), sha256="", header=header)
        artifact = replace(self.artifact, file=file)
        try:
            with engine.load(str(copy), Execution(), check=True) as model:
                valid, counted = 1.0, float(model.tensor_bytes)
        except engine.EngineError:
            valid, counted = 0.0, 0.0
        made = {"tensors_valid": valid, "runtime_tensor_bytes": counted}
        for function in checks("artifact").values():
            declared = check_of(function)
            for name in declared.measures if declared is not None else ():
                if name not in made:
                    made[name] = facts.of_header(name, artifact, {}).value
        return made

    def _keep(self, name: str, begin: float) -> None:
        write_atomic(self.save, json.dumps(self.kept).encode())
        print(f"{name}: {time.perf_counter() - begin:.0f} s", flush=True)


def quiet(done: float, total: float) -> None:
    """Hear how far a stage is."""


# -- judging


def checks(suite: str) -> dict[str, Any]:
    """Load the check functions of a suite that ships, those of quantized cells, by id."""
    path = shipped.folder("suites") / suite / f"test_{suite}.py"
    spec = importlib.util.spec_from_file_location(f"planted_faults_{suite}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {
        declared.id: function
        for function in vars(module).values()
        if (declared := check_of(function)) is not None
        and declared.cells != "reference"
        and not ELSEWHERE.intersection(declared.measures)
    }


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a check says of a case, and how many windows it took."""

    verdict: Verdict
    windows: int
    bound: Bound


class Stand:
    """Stands in for the fixtures of a check: the figures are at hand, the baseline is the clean's.

    Args:
        now: What the case yielded.
        clean: What the clean artifact yielded.
        plan: The looks.
        method: The artifact's method.
    """

    def __init__(
        self, now: dict[str, Any], clean: dict[str, Any], plan: tuple[Look, ...], method: str
    ) -> None:
        self._now, self._clean, self._plan = now, clean, plan
        self.cell = type("Cell", (), {"method": method})
        self.found: Ruling | None = None

    def ask(self, function: Any) -> Ruling:
        """Run a check."""
        hands = {
            "ondevice_cell": self.cell,
            "ondevice_measure": lambda name: figure(self._now, name, None),
            "ondevice_baseline": self._baseline,
            "ondevice_check": self._check,
        }
        function(**{name: hands[name] for name in inspect.signature(function).parameters})
        assert self.found is not None
        return self.found

    def _baseline(self, name: str, **tolerance: Any) -> Bound:
        entry = entry_of(figure(self._clean, name, None))
        return Bound(
            source=Source.BASELINE,
            center=entry.value,
            sample_ids=tuple(entry.windows),
            samples=tuple(entry.windows.values()),
            **tolerance,
        )

    def _check(
        self, measured: Measurement | str, bound: Bound, *, also: Sequence[str] = ()
    ) -> None:
        del also
        if isinstance(measured, Measurement):
            self.found = Ruling(judge(measured, bound).verdict, measured.n, bound)
            return
        for look in self._plan:
            made = figure(self._now, measured, look.windows)
            self.found = Ruling(judge(made, bound, look.alpha).verdict, made.n, bound)
            if self.found.verdict is not Verdict.INCONCLUSIVE:
                return


def figure(of: dict[str, Any], name: str, windows: int | None) -> Measurement:
    """Return a quantity of a case, over the first so many windows."""
    stage = QUANTITIES[name].stage
    if stage is Stage.FIDELITY:
        payload = dict(of["fidelity"])
        for column in ("ids", *COLUMNS):
            payload[column] = payload[column][:windows]
        values = payload["kld"]
        # Counted over all windows; a window whose mean is absent is one that has some of them.
        payload["nonfinite"] = payload["nonfinite"] if None in values else 0
        return figures.of_fidelity(name, [payload])
    if stage is Stage.DECODE:
        return figures.of_decoding(name, of["decode"])
    return Measurement(quantity=name, value=of["file"][name], unit=QUANTITIES[name].unit)


@dataclass(frozen=True, slots=True)
class Row:
    """A case, judged.

    Attributes:
        name: The case.
        shift: Change of mean KLD over all windows, as a share; NaN where a logit is not finite.
        error: Its paired error, windows as clusters.
        smoke: What the checks say within the smoke budget, by check.
        release: What they say with all windows.
        changed: Windows whose logits differ, of those with digests.
        digests: So many windows have digests.
        decode: Mean KLD of the decode path; NaN where a logit is not finite.
    """

    name: str
    shift: float
    error: float
    smoke: Mapping[str, Ruling]
    release: Mapping[str, Ruling]
    changed: int
    digests: int
    decode: float

    def red(self, *, smoke: bool = False) -> list[str]:
        rulings = self.smoke if smoke else self.release
        return [name for name, ruling in rulings.items() if ruling.verdict is Verdict.FAIL]


def rows(kept: dict[str, Any], cases: Sequence[Case]) -> list[Row]:
    """Judge the cases that were measured."""
    measured, method = kept["cases"], kept["about"]["method"]
    clean = measured[CLEAN]
    held = len(clean["fidelity"]["ids"])
    plans = [looks(budget, ALPHA, held) for budget in (BUDGETS["smoke"], None)]
    functions = checks("fidelity") | checks("artifact")
    made = []
    for case in cases:
        if case.name not in measured:
            continue
        now = measured[case.name]
        smoke, release = (
            {
                name: Stand(now, clean, plan, method).ask(function)
                for name, function in functions.items()
            }
            for plan in plans
        )
        shift = error = math.nan
        if None not in now["fidelity"]["kld"]:
            moved = relative_change(now["fidelity"]["kld"], clean["fidelity"]["kld"])
            shift, error = moved.value, moved.error
        ours, theirs = now["fidelity"]["logits"], clean["fidelity"]["logits"]
        decoded = figure(now, "decode_kld", None).value
        made.append(
            Row(
                name=case.name,
                shift=shift,
                error=error,
                smoke=smoke,
                release=release,
                changed=sum(one != other for one, other in zip(ours, theirs, strict=True)),
                digests=len(ours),
                decode=math.nan if decoded is None else decoded,
            )
        )
    return made


def show(title: str, found: Sequence[Row]) -> None:
    """Print a table."""
    print(
        f"{title:<43} {'KLD shift':>9} {'error':>7} {'beyond':>7}  {'smoke':<18} {'release':<18}"
        f" {'logits':<9} {'decode':>7}  red"
    )
    for row in found:
        tolerance = row.release["fidelity.kld"].bound.relative
        if math.isnan(row.shift):
            moved = f"{'not finite':>17} {'':>7}"
        else:
            beyond = (row.shift - tolerance) / row.error if row.error else -math.inf
            moved = f"{row.shift:>+9.2%} {row.error:>7.2%} {beyond:>+7.1f}"
        told = [
            f"{ruling.verdict} at {ruling.windows}"
            for ruling in (row.smoke["fidelity.kld"], row.release["fidelity.kld"])
        ]
        logits = "changed" if row.changed else "identical"
        first = row.red(smoke=True)
        red = [name if name in first else f"({name})" for name in row.red()]
        red += [f"[{name}]" for name in first if name not in row.red()]
        print(
            f"{row.name:<43} {moved}  {told[0]:<18} {told[1]:<18} {logits:<9} {row.decode:>7.4f}"
            f"  {', '.join(red) or '-'}"
        )
    print()


def accept(faults: Sequence[Row], harmless: Sequence[Row]) -> None:
    """Print the acceptance lines."""

    def far(row: Row) -> bool:
        tolerance = row.release["fidelity.kld"].bound.relative
        return math.isnan(row.shift) or row.shift - tolerance > ERRORS * row.error

    def within(row: Row) -> bool:
        tolerance = row.release["fidelity.kld"].bound.relative
        return not math.isnan(row.shift) and tolerance - row.shift > ERRORS * row.error

    def line(text: str, of: Sequence[Row], bad: Sequence[Row]) -> None:
        which = f"; not: {'; '.join(row.name for row in bad)}" if bad else ""
        answer = ("no" if bad else "yes") if of else "none was measured"
        print(f"{text}: {answer}, {len(of) - len(bad)} of {len(of)}{which}")

    beyond = [row for row in faults if far(row)]
    for name in ("smoke", "release"):
        missed = [
            row for row in beyond if getattr(row, name)["fidelity.kld"].verdict is not Verdict.FAIL
        ]
        line(f"beyond the tolerance by {ERRORS:g} errors, and fail ({name})", beyond, missed)
    small = [row for row in faults if row not in beyond and row.shift != 0]
    line("smaller real ones, and changed", small, [row for row in small if not row.changed])
    still = [row for row in faults if not row.changed]
    line("logits untouched, and another check red", still, [row for row in still if not row.red()])
    inside = [row for row in faults if within(row)]
    cried = [row for row in inside if row.release["fidelity.kld"].verdict is Verdict.FAIL]
    line(f"within the tolerance by {ERRORS:g} errors, and no fail", inside, cried)
    unseen = [row for row in faults if not row.red() and not row.changed]
    line("any fault is red, or at least changed", faults, unseen)
    alarms = {
        name: sum(bool(row.red(smoke=name == "smoke")) for row in harmless)
        for name in ("smoke", "release")
    }
    print(
        f"null set: {alarms['smoke']} of {len(harmless)} fail any check (smoke),"
        f" {alarms['release']} (release)"
    )


def report(kept: dict[str, Any]) -> None:
    """Print both tables and the acceptance lines, of what is measured so far."""
    if CLEAN not in kept["cases"]:
        print("the clean artifact is not measured yet")
        return
    clean = kept["cases"][CLEAN]
    held = clean["fidelity"]["ids"]
    faults, harmless = rows(kept, FAULTS), rows(kept, HARMLESS)
    tolerance = rows(kept, [Case(CLEAN)])[0].release["fidelity.kld"].bound.relative
    spelled = [
        ", ".join(f"{look.windows or len(held)} ({look.alpha:.3g})" for look in plan)
        for plan in (looks(budget, ALPHA, len(held)) for budget in (BUDGETS["smoke"], None))
    ]
    print(f"{MODEL} {kept['about']['method']} against {REFERENCE}, {len(held)} windows of the text")
    print(
        f"clean: mean KLD {math.fsum(clean['fidelity']['kld']) / len(held):.5f} nats,"
        f" decode {figure(clean, 'decode_kld', None).value:.4f}"
    )
    print(f"tolerance {tolerance:.0%}; looks (alpha): smoke {spelled[0]}; release {spelled[1]}")
    print(
        f"{len(faults)} of {len(FAULTS)} faults and {len(harmless)} of {len(HARMLESS)} of the null"
        " set are measured"
    )
    print(
        "beyond: errors beyond the tolerance; smoke, release: verdict of fidelity.kld and the"
        " windows it took; decode: KLD of the decode path; red: checks that fail, (only release),"
        " [only smoke]\n"
    )
    show("fault", faults)
    show("null set", harmless)
    accept(faults, harmless)


def main() -> None:
    """Measure what is not kept yet, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--save", metavar="FILE", type=Path, help="measure, and keep results here")
    where.add_argument("--load", metavar="FILE", type=Path, help="print what is kept, no more")
    parser.add_argument("--cache", type=Path, help="of artifacts; the plugin's without")
    parser.add_argument("--method", default="Q4_K_M", choices=METHODS)
    parser.add_argument("--windows", type=int, metavar="N", help="the first N, 8 or more")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.load:
        report(json.loads(given.load.read_text("utf-8")))
        return
    if given.windows is not None and given.windows < 8:
        parser.error("--windows: 8 at least")
    cache = {"cache": given.cache} if given.cache else {}
    settings = defaults(
        Path.cwd(), models=(MODEL,), methods=(given.method,), threads=given.threads, **cache
    )
    try:
        with workbench(settings, Quiet(), print) as bench:
            reference, artifact = (bench.artifact(cell) for cell in bench.cells)
            about = {
                "method": given.method,
                "artifact": artifact.file.sha256,
                "reference": reference.file.sha256,
                "runtime": bench.provision.runtime.digest,
                "text": texts(None)[1],
                "windows": given.windows,
            }
            kept: dict[str, Any] = {"about": about, "cases": {}}
            if given.save.is_file():
                kept = json.loads(given.save.read_text("utf-8"))
                other = [name for name, value in about.items() if kept["about"][name] != value]
                if other:
                    parser.error(f"{given.save}: is of another {', '.join(other)}; save elsewhere")
            hush(given.save.with_suffix(".log"))
            Laboratory(
                save=given.save,
                threads=given.threads,
                windows=given.windows,
                artifact=artifact,
                reference=reference.file.path,
                kept=kept,
            ).run([Case(CLEAN), *FAULTS, *HARMLESS])
    except OnDeviceError as error:
        parser.error(str(error))
    report(kept)


class Quiet:
    """Shows no progress."""

    def update(self, cell: str, stage: str, done: float, total: float) -> None:
        """Show nothing."""

    def finish(self) -> None:
        """Take nothing away."""


def hush(log: Path) -> None:
    """Send what llama.cpp says to a file; Python's errors go where they went."""
    sys.stderr = os.fdopen(os.dup(2), "w")
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 2)


if __name__ == "__main__":
    main()
