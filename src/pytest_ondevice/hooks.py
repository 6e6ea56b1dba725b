"""pytest's hooks while the plugin is in use: collect checks, send results, write the report."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from . import calibration, shipped
from .catalog import catalog, models
from .checks import check_of
from .devices import available_memory, build, device, is_environment, place, runtime
from .errors import BadFileError, OnDeviceError
from .gather import Gatherer
from .laws import LAWS
from .matrix import cells as make_cells
from .matrix import every_method, require_runtime, subjects
from .matrix import methods as chosen_methods
from .measure import Bench
from .model.measurement import digest_of
from .model.quantity import QUANTITIES
from .options import Settings, choose, parse
from .overlap import require_apart
from .price import price
from .probe import runner
from .probe.protocol import DescribeJob
from .progress import make_progress, tail_progress
from .provision import Provision
from .references import given
from .render import terminal
from .rules import Rules, tightest
from .state import (
    BUDGET,
    ITEM,
    PROPERTY,
    STATE,
    SUBJECT,
    ItemState,
    State,
    budget_of,
    cell_of,
    cells_of,
    declared,
    report_items,
    subject_of,
)
from .storage import pins
from .storage.baselines import Baselines
from .storage.cache import hold
from .storage.costs import Costs
from .storage.files import why_unwritable
from .storage.journal import Journal, Run
from .tasks import sets_of
from .texts import calibration_texts, texts
from .texts import check as check_text
from .tier import Tier, board, tier
from .toll import asked, confirm, quote, require_room
from .waivers import Waivers

if TYPE_CHECKING:
    from collections.abc import Generator

    from .devices import Build
    from .laws import Law
    from .model.catalog import Cell
    from .price import Price

WORKERINPUT = "pytest_ondevice"


def wake(config: pytest.Config) -> None:
    """Parse the options, make the matrix, and take part in the session.

    Raises:
        pytest.UsageError: An option cannot be what it means.
    """
    try:
        settings = parse(config)
        suites = _suites(settings)
        records_text = settings.runs_suites and "generations" in suites
        if records_text and not config.pluginmanager.hasplugin("syrupy"):
            raise settings.given["suites"].error(
                "the suite generations needs syrupy: pip install 'pytest-ondevice[generations]'"
            )
        _check_text(settings)
        if settings.given["sysfs"].text is not None and not settings.sysfs.is_dir():
            raise settings.given["sysfs"].error("there is no such folder")
        references = given(settings, models(settings)) if settings.models else {}
        matrix = make_cells(settings, references) if settings.models else ()
        if settings.methods and not settings.models:
            chosen_methods(settings)
        _check_calibration(settings, matrix)
        _check_tasks(settings, matrix)
        waivers = _waivers(settings)
        rules = _rules(settings)
        accepted = pins.read(settings.rootdir / pins.NAME) if settings.models else {}
        ours, name = _place(settings)
        baselines = Baselines(settings.baselines, [shipped.folder("baselines")], ours.name)
        noise = calibration.noise(settings.cache, ours.name) if settings.bounds else {}
        if (
            settings.runs_suites
            and not settings.models
            and set(suites) - set(shipped.WITHOUT_MODELS)
        ):
            raise settings.given["suites"].error(
                "no model to run them on; add --ondevice-models=NAME"
            )
        if settings.models and not _workerinput(config) and not config.option.collectonly:
            _check_run(config, settings)
    except OnDeviceError as error:
        raise pytest.UsageError(str(error)) from error
    told: dict[str, str] = _workerinput(config).get(WORKERINPUT, {})
    session = told.get("session") or uuid.uuid4().hex[:12]
    left_out = told.get("left_out", "").split(",")
    matrix = tuple(cell for cell in matrix if cell.id not in left_out)
    config.stash[STATE] = State(
        settings=settings,
        cells=matrix,
        session=session,
        baselines=baselines,
        waivers=waivers,
        pins=accepted,
        rules=rules,
        references=references,
        tier=ours,
        board=name,
        noise=noise,
    )
    plugin = OnDevicePlugin(config, suites, told.get("run"))
    if settings.runs_suites:
        _replace_args(config, settings)
    config.pluginmanager.register(plugin, "pytest_ondevice_session")
    if records_text:
        from .generations import Reminder  # noqa: PLC0415  (imports syrupy)

        config.pluginmanager.register(Reminder(), "pytest_ondevice_generations")
    if config.pluginmanager.hasplugin("xdist"):
        from .distribute import Distribution  # noqa: PLC0415

        config.pluginmanager.register(
            Distribution(config, plugin.worker_values), "pytest_ondevice_distribution"
        )


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Give a test its cells: those its check is for, or all. A law gets what it is held for."""
    state = metafunc.config.stash.get(STATE, None)
    check = check_of(metafunc.function)
    if SUBJECT in metafunc.fixturenames:
        _parametrize_subjects(metafunc, state, LAWS[check.law] if check and check.law else None)
        return
    cells: list[Any] = [
        cell
        for cell in (state.cells if state else ())
        if check is None or check.cells == "all" or (check.cells == "reference") == cell.reference
    ]
    if not cells:
        reason = "requires a model: pytest --ondevice-models=smollm2-135m"
        if state and state.cells:
            reason = "requires a method that quantizes: add one with --ondevice-methods"
        cells = [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="no-model")]
        metafunc.parametrize("ondevice_cell", cells, indirect=True)
        return
    if BUDGET in metafunc.fixturenames:
        _parametrize_budgets(metafunc, state, cells)
        return
    metafunc.parametrize("ondevice_cell", cells, ids=[cell.id for cell in cells], indirect=True)


def _parametrize_subjects(metafunc: pytest.Metafunc, state: State | None, law: Law | None) -> None:
    """Give a law each model, or each family, with the cells of it that are in the matrix."""
    found: list[Any] = list(
        subjects(
            state.cells if state else (),
            law.per if law is not None else "model",
            caches_apart=law is None or law.name != "kv_cache",
        )
    )
    ids = [one.name for one in found]
    if not found:
        reason = "requires a model: pytest --ondevice-models=smollm2-135m"
        found, ids = [pytest.param(None, marks=pytest.mark.skip(reason=reason))], ["no-model"]
    metafunc.parametrize(SUBJECT, found, ids=ids, indirect=True)


def _parametrize_budgets(metafunc: pytest.Metafunc, state: State | None, cells: list[Cell]) -> None:
    """Give a test each cell with each quantity that the user's file limits for it."""
    rows: list[Any] = [
        (cell, budget)
        for cell in cells
        for budget in (tightest(state.rules, cell, state.tier.name) if state else ())
    ]
    ids = [f"{cell.id}-{budget.quantity}" for cell, budget in rows]
    if not rows:
        reason = "requires a budget: a [[budget]] in the file of --ondevice-bounds"
        rows = [pytest.param(None, None, marks=pytest.mark.skip(reason=reason))]
        ids = ["no-budget"]
    metafunc.parametrize(("ondevice_cell", BUDGET), rows, ids=ids, indirect=True)


class OnDevicePlugin:
    """The hooks of one session, registered only where an option was given."""

    def __init__(self, config: pytest.Config, suites: tuple[str, ...], run: str | None) -> None:
        self.config = config
        self.suites = suites
        self.state = config.stash[STATE]
        self.worker = bool(_workerinput(config))
        self.run: Run | None = None
        self.run_id = run
        self.provision: Provision | None = None
        self.gatherer = Gatherer(self.state, config)
        self.counted = 0
        self.notes: list[str] = []
        self.price: Price | None = None
        self.left_out: set[str] = set()
        self.stop_tail: Any = None
        self.cache_use: int | None = None
        self.costs = Costs(
            self.state.settings.cache,
            place(self.state.settings.threads, self.state.settings.gpu_layers),
        )

    # -- start

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Find every artifact before anything is measured; what is missing is told at once."""
        settings = self.state.settings
        if self.worker or not settings.models:
            return
        if session.config.option.collectonly:
            self._quote()
        elif settings.runs_suites:
            self._resolve()
            self._open_run()
            if session.config.getoption("numprocesses", None):
                self.stop_tail = tail_progress(self.config, self._progress_file())

    def pytest_report_header(self) -> list[str]:
        """Say what is going to be gated."""
        settings = self.state.settings
        if not settings.models:
            return []
        methods = dict.fromkeys(cell.method for cell in self.state.cells)
        models = dict.fromkeys(cell.model.name for cell in self.state.cells)
        lines = [
            f"ondevice: {', '.join(models)} x {', '.join(methods)}",
            f"ondevice: {runtime().version}; {device().cpu}, {settings.threads} threads",
        ]
        if self.run is not None and self.run.resumed:
            lines.append("ondevice: resuming the interrupted run; what it measured stands")
        if self.price is not None:
            lines.append(f"ondevice: price: {self.price.sentence()}")
        lines.extend(f"ondevice: {note}" for note in self.notes)
        return lines

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        """Leave out the shipped suites that were not asked for."""
        folder = shipped.folder("suites")
        if collection_path.parent == folder and collection_path.name in shipped.ALL:
            # Not None: the user's norecursedirs must not hide those that were asked for.
            return collection_path.name not in self.suites
        return None

    def pytest_collect_file(
        self, file_path: Path, parent: pytest.Collector
    ) -> pytest.Collector | None:
        """Collect a shipped suite's file where the user's ``python_files`` would not."""
        if not file_path.is_relative_to(shipped.folder("suites")):
            return None
        patterns = self.config.getini("python_files")
        hidden = not any(fnmatch.fnmatch(file_path.name, pattern) for pattern in patterns)
        if hidden and fnmatch.fnmatch(file_path.name, "test_*.py"):
            return pytest.Module.from_parent(parent, path=file_path)
        return None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Prepare the bench for what was collected; nothing was measured before this.

        Raises:
            pytest.UsageError: Nothing was collected though a run was asked for, or an artifact
                cannot be had.
        """
        ours = [item for item in session.items if cells_of(item)]
        self.counted = len(ours)
        if session.config.option.collectonly:
            return
        settings = self.state.settings
        if not ours:
            if settings.runs_suites and settings.models and not self.worker and session.items:
                raise pytest.UsageError(_nothing_collected(settings))
            return
        if self.provision is None and not self.worker:
            self._resolve()
        try:
            self._make_bench(ours, foreign=len(session.items) - len(ours))
        except OnDeviceError as error:
            raise pytest.UsageError(str(error)) from error

    def _resolve(self) -> None:
        """Make sure that every cell has or can be given an artifact; drop those that cannot.

        Raises:
            pytest.UsageError: Something is missing or broken.
        """
        state = self.state
        try:
            require_runtime()
            self._use_cache()
            _require_gpu(state.settings)
            self.provision = Provision(state.settings, runtime())
            explicit = state.settings.given["methods"].text is not None
            needed = {cell.method for cell in state.cells} if explicit else set()
            able = self.provision.find(state.cells, sorted(needed))
            _other_build(state.settings)
            before = self.provision.predecessors(able)
            self._require_predecessors(before)
            self._pay(self.provision, (*able, *before))
        except OnDeviceError as error:
            raise pytest.UsageError(str(error)) from error
        self.left_out = {cell.id for cell in state.cells} - {cell.id for cell in able}
        if self.left_out:
            names = ", ".join(cell.id for cell in state.cells if cell.id in self.left_out)
            self.notes.append(f"left out, neither file nor source: {names}")
            state.cells = able
        if unmatched := self.provision.unmatched():
            self.notes.append(f"files that match no cell: {', '.join(unmatched)}")
        methods = every_method()
        known = dict.fromkeys(catalog(state.settings.catalog), methods)
        known |= {cell.model.name: methods for cell in state.cells}
        self.notes.extend(state.baselines.strays(known))
        if dropped := self.provision.dropped():
            self.notes.append(f"in the release before, and not in this run: {', '.join(dropped)}")

    def _require_predecessors(self, before: tuple[Cell, ...]) -> None:
        """Refuse a release before of which nothing is used: the run would compare nothing."""
        settings = self.state.settings
        if settings.against is not None and not before:
            raise settings.given["against"].error(
                "nothing there is a predecessor of a cell of this run; its files are named"
                " MODEL...METHOD.gguf, or it is a Python environment with another llama.cpp"
            )

    def _use_cache(self) -> None:
        """Keep the cache from being pruned until the session ends."""
        if self.cache_use is None:
            self.cache_use = hold(self.state.settings.cache)

    def _pay(self, provision: Provision, cells: tuple[Cell, ...]) -> None:
        """Say what the run takes, ask where that is much, and download what is absent.

        Raises:
            OnDeviceError: Disk or memory cannot hold it, nobody said yes, a download failed.
        """
        settings = self.state.settings
        loads = provision.loads(cells)
        absent = provision.absent(cells)
        whole = price(
            loads,
            {weights.place: weights.missing for weights in absent.values()},
            self.costs,
            windows=settings.windows,
            rounds=settings.rounds,
            threads=settings.threads,
            items=asked(settings, cells),
        )
        self.price = whole
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if absent and reporter is not None:
            # A download comes before the header, and what it takes comes before the download.
            reporter.write_line(f"ondevice: price: {whole.sentence()}")
        chosen = bool(self.config.option.keyword or self.config.option.markexpr)
        # Of a part of the matrix nobody knows yet what it takes; a probe asks again.
        require_room(whole, settings, free=None if chosen else available_memory())
        if whole.asks and not settings.yes:
            confirm(self.config, whole)
        if absent:
            progress = make_progress(self.config, None)
            try:
                provision.fetch(
                    cells, lambda name, done, total: progress.update(name, "download", done, total)
                )
            finally:
                progress.finish()

    def _quote(self) -> None:
        """Say the price of a run that is only collected, from what is known without a network."""
        settings = self.state.settings
        if not settings.runs_suites:
            return
        with contextlib.suppress(OnDeviceError):  # a run will say what is wrong
            self.price = quote(settings, self.state.cells, self.costs)

    def _make_bench(self, ours: list[pytest.Item], foreign: int) -> None:
        state = self.state
        run = self._open_run()
        self._use_cache()
        resolved = self.worker and state.settings.runs_suites
        provision = self.provision or Provision(state.settings, runtime(), resolved=resolved)
        references = {cell.model.name: cell for cell in state.cells if cell.reference}
        state.bench = Bench(
            settings=state.settings,
            provision=provision,
            journal=Journal(state.settings.cache / "journal", run, state.session),
            references=references,
            progress=make_progress(self.config, self._progress_file() if self.worker else None),
            busy=self.worker and foreign > 0,
            costs=self.costs,
            pins=state.pins,
            cells=state.cells,
            compares_before=state.settings.against is not None,
            given=state.references,
            build=_other_build(state.settings),
        )
        for item in ours:
            if self.config.pluginmanager.hasplugin("timeout"):
                # Each stage has its own timeout; one probe may serve the items of a whole cell.
                item.add_marker(pytest.mark.timeout(0))
            check = declared(item)
            if check is None:
                continue
            if (subject := subject_of(item)) is not None:
                for one in subject.cells:
                    state.bench.declared.setdefault(one.id, set()).update(check.stages)
            cell = cell_of(item)
            if cell is None:
                continue
            stages = state.bench.declared.setdefault(cell.id, set())
            stages |= check.stages
            units = {QUANTITIES[name].unit for name in check.measures}
            try:
                state.rules.require_units(check.id, units)
            except OnDeviceError as error:
                raise state.settings.given["bounds"].error(str(error)) from error
            if (budget := budget_of(item)) is not None:
                stages.add(QUANTITIES[budget.quantity].stage)
            state.owners.update({(stage, cell.id): check.id for stage in check.owns})

    def _open_run(self) -> str:
        """Start or resume the run; test workers take the controller's."""
        if self.run_id is None:
            settings = self.state.settings
            signature = digest_of(
                {
                    "cells": [cell.id for cell in self.state.cells],
                    "sources": [
                        msgspec.to_builtins(cell.model.sources) for cell in self.state.cells
                    ],
                    "artifacts": str(settings.artifacts),
                    "against": str(settings.against),
                    "reference": str(settings.reference),
                    "rounds": settings.rounds,
                    "text": str(settings.text),
                    "windows": settings.windows,
                    "tasks": list(settings.tasks),
                    "items": settings.items,
                    "context": settings.context,
                    "calibration": str(settings.calibration),
                    "threads": settings.threads,
                    "rootdir": str(settings.rootdir),
                    "runtime": runtime().digest,
                }
            )
            self.run = Run(settings.cache / "runs", signature)
            self.run_id = self.run.id
        return self.run_id

    def _progress_file(self) -> Path:
        return self.state.settings.cache / "progress" / f"{self.state.session}.jsonl"

    def worker_values(self) -> dict[str, str]:
        """What a test worker has to know of this session."""
        left_out = ",".join(sorted(self.left_out))
        if not self.state.settings.runs_suites:
            # Nobody knows yet whether anything will be measured: leave no trace of a run.
            self.run_id = self.run_id or uuid.uuid4().hex[:12]
        return {"session": self.state.session, "run": self._open_run(), "left_out": left_out}

    # -- items

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Start an item with a clean slate, and let our own timeouts rule where we measure."""
        if not cells_of(item):
            return
        item.stash[ITEM] = ItemState()
        cell = cell_of(item)
        if cell is not None and cell.id in self.left_out:
            pytest.skip(f"requires an artifact of {cell.id}: neither file nor source is at hand")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Send what the item found with its report, the one way that also works distributed."""
        if cells_of(item) and (call.when == "call" or call.excinfo is not None):
            failed = call.excinfo is not None and not call.excinfo.errisinstance(
                (pytest.skip.Exception, pytest.xfail.Exception)
            )
            why = call.excinfo.exconly(tryshort=True) if failed and call.excinfo else None
            kept = [pair for pair in item.user_properties if pair[0] != PROPERTY]
            sent = report_items(item, self.state, why)
            item.user_properties[:] = [
                *kept,
                *((PROPERTY, msgspec.json.encode(one).decode()) for one in sent),
            ]
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Gather what items sent, before JUnit XML is made of it."""
        if not self.worker:
            self.gatherer.take(report)

    # -- end

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the report and the baselines, and say whether the run may be resumed."""
        if self.stop_tail is not None:
            self.stop_tail()
        ended = int(exitstatus) in {0, 1, 5}
        complete = ended and not (session.shouldfail or session.shouldstop)
        settings = self.state.settings
        if not self.worker and self.gatherer.any():
            report = self.gatherer.report(complete=complete, notes=self.notes)
            self.gatherer.finish(report, self._tell)
            if self.gatherer.problems and int(exitstatus) == 0:
                session.exitstatus = pytest.ExitCode.USAGE_ERROR
        elif self._should_have_gated(session, int(exitstatus)):
            # Distributed runs collect on their workers; here is where nothing at all is seen.
            self.gatherer.problems.append(_nothing_collected(settings))
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
        if self.run is not None:
            self.run.close(finished=ended)
        if self.cache_use is not None:
            os.close(self.cache_use)
            self.cache_use = None

    def _tell(self, line: str) -> None:
        """Write a line to the terminal at once."""
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(line)

    def _should_have_gated(self, session: pytest.Session, exitstatus: int) -> bool:
        settings = self.state.settings
        gates = settings.runs_suites and bool(settings.models)
        asked = gates and not session.config.option.collectonly
        return asked and not self.worker and not self.gatherer.seen and exitstatus in {0, 1, 5}

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show one row per cell, and what was written."""
        if self.gatherer.final is not None:
            terminal.summarise(terminalreporter, self.gatherer.final, self.gatherer.lines)
        for problem in self.gatherer.problems:
            terminalreporter.write_line(f"ERROR: {problem}", red=True)


def _suites(settings: Settings) -> tuple[str, ...]:
    """Return the suites to run: those named, else all that gate and what options ask for."""
    if settings.suites is None:
        asked = {"against": settings.against, "budgets": settings.bounds}
        return (*shipped.SUITES, *(name for name, given in asked.items() if given is not None))
    value = settings.given["suites"]
    return tuple(choose(value, "suite", name, shipped.ALL) for name in settings.suites)


def _waivers(settings: Settings) -> Waivers:
    if settings.waivers is None:
        return Waivers()
    try:
        return Waivers.read(settings.waivers)
    except OnDeviceError as error:
        raise settings.given["waivers"].error(str(error)) from error


def _check_text(settings: Settings) -> None:
    try:
        check_text(settings.text)
    except OnDeviceError as error:
        raise settings.given["text"].error(str(error)) from error


def _check_calibration(settings: Settings, matrix: tuple[Cell, ...]) -> None:
    """Refuse to judge importance matrices by the very text that they were made from."""
    weighed = [cell for cell in matrix if cell.way.imatrix]
    if settings.calibration is None and not weighed:
        return
    try:
        check_text(settings.calibration)
        for name in dict.fromkeys(cell.model.text for cell in weighed or matrix):
            require_apart(
                [text.path for text in calibration_texts(settings.calibration, name)[0]],
                [text.path for text in texts(settings.text, name)[0]],
            )
    except OnDeviceError as error:
        if settings.calibration is None:
            raise
        raise settings.given["calibration"].error(str(error)) from error


def _check_tasks(settings: Settings, matrix: tuple[Cell, ...]) -> None:
    """Read the questions that the user named before anything is measured."""
    if not settings.tasks or not matrix:
        return
    try:
        sets_of(matrix[0].model, settings)
    except BadFileError as error:
        raise settings.given["tasks"].error(str(error)) from error


def _other_build(settings: Settings) -> Build | None:
    """Find the build of the runtime that is compared with, where one is named."""
    against = settings.against
    if not isinstance(against, Path) or not is_environment(against):
        return None
    try:
        return build(against)
    except OnDeviceError as error:
        raise settings.given["against"].error(str(error)) from error


def _rules(settings: Settings) -> Rules:
    if settings.bounds is None:
        return Rules()
    try:
        return Rules.read(settings.bounds)
    except OnDeviceError as error:
        raise settings.given["bounds"].error(str(error)) from error


def _place(settings: Settings) -> tuple[Tier, str]:
    """Find the tier of this machine, and its name in it."""
    try:
        ours = tier(device(), runtime(), settings.threads, settings.gpu_layers, settings.tier)
    except ValueError as error:
        raise settings.given["tier"].error(str(error)) from error
    try:
        return ours, board(settings.board)
    except ValueError as error:
        raise settings.given["board"].error(str(error)) from error


def _require_gpu(settings: Settings) -> None:
    """Ask the runtime whether it can offload anything; a slow pass on the CPU would be a lie.

    Raises:
        OnDeviceError: It cannot.
    """
    if not settings.gpu_layers:
        return
    result = runner.run(DescribeJob(), timeout=settings.timeout)
    if result.payloads.get("start", {}).get("gpu_offload"):
        return
    ending = next(iter(result.endings.values()), None)
    raise settings.given["gpu-layers"].error(
        f"the runtime cannot be asked: {ending.message}"
        if ending is not None
        else f"{runtime().version} was built without GPU support, or sees no GPU; build it with one"
        " (CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-cache-dir"
        " llama-cpp-python), or leave the option away"
    )


def _check_run(config: pytest.Config, settings: Settings) -> None:
    """Find out now what would otherwise be found out after measuring.

    Raises:
        OnDeviceError: No model, no runtime, an unreadable text, an unwritable report.
    """
    if settings.runs_suites:
        require_runtime()
    Gatherer.check_target(settings, config.invocation_params.dir)
    wanted = settings.runs_suites or settings.given["cache"].text is not None
    if wanted and (problem := why_unwritable(settings.cache)):
        if settings.given["cache"].text is not None:
            raise settings.given["cache"].error(problem)
        raise OnDeviceError(
            f"{settings.cache}: the cache folder cannot be used: {problem}; choose another with"
            " --ondevice-cache=DIR"
        )


def _replace_args(config: pytest.Config, settings: Settings) -> None:
    """Let the shipped suites stand for the paths that nobody typed, or stand beside them.

    Test workers read the same command line, so they come to the same result by themselves.
    """
    folder = str(shipped.folder("suites"))
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = [folder]
        config.args_source = pytest.Config.ArgsSource.ARGS
    elif settings.suites is not None:
        config.args = [*config.args, folder]


def _nothing_collected(settings: Settings) -> str:
    value = settings.given["models"]
    return str(
        value.error(
            "no collected test uses a model, so nothing would be gated; leave the paths away to run"
            " the shipped suites, or add --ondevice-suites"
        )
    )


def _workerinput(config: pytest.Config) -> dict[str, Any]:
    told: dict[str, Any] = getattr(config, "workerinput", {})
    return told
