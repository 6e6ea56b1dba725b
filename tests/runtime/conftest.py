"""The gate as a user runs it: pytest in a process of its own, on real weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import short

TEXT = Path(__file__).parents[2] / "src" / "pytest_ondevice" / "data" / "text" / "v1"


@dataclass
class Outcome:
    """How a run ended, and what it wrote."""

    code: int
    out: str
    report: dict | None

    def verdicts(self, cell: str | None = None) -> dict[str, str]:
        """Map checks (or check and cell) to verdicts."""
        return {
            check["check"] if cell else f"{check['check']} {check['cell']}": check["verdict"]
            for check in self.report["checks"]
            if cell is None or check["cell"] == cell
        }

    def cell(self, name: str) -> dict:
        return next(cell for cell in self.report["cells"] if cell["id"] == name)


@dataclass
class Gate:
    """A folder to run in, a cache, and what is planted in the worker.

    Attributes:
        folder: The project's folder.
        cache: The cache.
        text: The evaluation text.
        catalog: Where smollm2-135m is a short model; without it, it is the whole one.
        path: Folders whose modules every process imports first.
    """

    folder: Path
    cache: Path
    text: Path
    catalog: Path | None
    path: list[str] = field(default_factory=list)

    def command(self, *args: str, models: str = "smollm2-135m", methods: str = "Q4_0") -> list[str]:
        common = [f"--ondevice-cache={self.cache}", f"--ondevice-text={self.text}"]
        # It takes half of a short run to import, and no suite that runs here needs it.
        common += ["-p", "no:hypothesispytest", "--ondevice-items=20"]
        chosen = [f"--ondevice-models={models}", f"--ondevice-methods={methods}"]
        if self.catalog is not None:
            common.append(f"--ondevice-catalog={self.catalog}")
        return [sys.executable, "-m", "pytest", *chosen, *common, *args]

    def environment(self) -> dict[str, str]:
        # These tests may be distributed themselves; the runs that they start are not.
        env = {
            key: value
            for key, value in os.environ.items()
            if "ONDEVICE" not in key and not key.startswith("PYTEST_XDIST")
        }
        env.pop("PYTEST_ADDOPTS", None)
        return env | {"PYTHONPATH": os.pathsep.join(self.path), "COLUMNS": "100"}

    def start(self, *args: str, **chosen: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*args, **chosen),
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A shell lets what it starts in the background ignore Ctrl-C, and all below it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )

    def finish(self, process: subprocess.Popen[str], timeout: float = 400) -> Outcome:
        out, _ = process.communicate(timeout=timeout)
        report = self.folder / "report.json"
        read = json.loads(report.read_text()) if report.exists() else None
        return Outcome(process.returncode, out, read)

    def run(self, *args: str, **chosen: str) -> Outcome:
        return self.finish(self.start(*args, **chosen))

    def artifact(self, method: str, model: str = "smollm2-135m") -> Path:
        """Find a well-made artifact in the store."""
        for path in (self.cache / "recipes").glob("*.json"):
            recipe = json.loads(path.read_text())
            if (recipe["model"], recipe["method"]) == (model, method):
                return self.cache / "objects" / recipe["sha256"][:2] / f"{recipe['sha256']}.gguf"
        raise LookupError(method)

    def plant(self, code: str) -> None:
        """Run ``code`` at the start of every worker process; it may replace what measures.

        ``journal(text)`` in it appends a line to ``planted()``; ``small(path)`` tells quantized
        artifacts from the reference. ``timed(measure)`` has speeds told by ``measure(path)`` in
        processes that load no runtime: a campaign has many, and starting it takes most of each.
        """
        folder = self.folder / "planted"
        folder.mkdir(exist_ok=True)
        lead = f"""
        import sys
        if "pytest_ondevice.probe.worker" in sys.orig_argv:
            import os, signal, time
            def journal(text):
                with open({str(folder / "lines.txt")!r}, "a") as file:
                    file.write(text + "\\n")
            def timed(measure):
                import io
                import msgspec
                import pytest_ondevice.probe.worker as worker
                data = sys.stdin.buffer.read()
                request = msgspec.json.decode(data, type=worker.Request)
                if getattr(request.job, "speed", None) is None:
                    sys.stdin = io.TextIOWrapper(io.BytesIO(data))
                    del sys.modules[worker.__name__]  # it is about to run as __main__
                    return
                worker._settle(request.parent)
                events = worker.Events(request.events)
                events.run("start", dict)
                events.run("speed", lambda: measure(request.job.artifact))
                events.write(worker.Event(event="end"))
                os._exit(0)
            def small(path):
                return os.path.getsize(path) < {0.9 * self.artifact("F16").stat().st_size}
        """
        body = textwrap.indent(textwrap.dedent(code), "    ")
        (folder / "sitecustomize.py").write_text(textwrap.dedent(lead) + body)
        self.path = [str(folder)]

    def planted(self) -> list[str]:
        lines = self.folder / "planted" / "lines.txt"
        return lines.read_text().splitlines() if lines.exists() else []

    def clean(self) -> None:
        self.path = []


@pytest.fixture(scope="session")
def shortened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The short model."""
    folder = tmp_path_factory.mktemp("short")
    return short.shorten(short.weights(), folder / "short-Q4_1.gguf")


def begin(folder: Path, model: Path | None) -> Gate:
    """Make a gate with a text of its own: three windows are enough to see if a stage was run."""
    text = folder / "text.txt"
    text.write_text((TEXT / "narrative.txt").read_text()[:7500])
    if model is None:
        return Gate(folder, folder / "cache", text, None)
    catalog = folder / "catalog.toml"
    catalog.write_text(
        'schema = 1\n[models.smollm2-135m]\nfamily = "smollm2"\n'
        f'aliases = ["smollm2-135m-instruct"]\nsources = [{{ path = "{model}" }}]\n'
    )
    return Gate(folder, folder / "cache", text, catalog)


def follow(seed: Gate, tmp_path: Path) -> Gate:
    """Make a gate with the artifacts of another."""
    cache = tmp_path / "cache"
    for part in ("objects", "recipes"):
        shutil.copytree(seed.cache / part, cache / part, copy_function=os.link)
    folder = tmp_path / "project"
    folder.mkdir()
    return Gate(folder, cache, seed.text, seed.catalog)


@pytest.fixture(scope="session")
def seed(tmp_path_factory: pytest.TempPathFactory, shortened: Path) -> Gate:
    """A run with nothing planted: makes the artifacts that the others start from."""
    gate = begin(tmp_path_factory.mktemp("seed"), shortened)
    # What is not reused is not worth measuring here.
    outcome = gate.run("-q", "-k", "artifact or efficiency or fidelity or reserved")
    assert outcome.code == 0, outcome.out
    return gate


@pytest.fixture(scope="session")
def full_seed(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    """The same with the whole model, whose baselines ship; only its artifacts are made."""
    gate = begin(tmp_path_factory.mktemp("full"), None)
    outcome = gate.run("-q", "-k", "planned")
    assert outcome.code == 0, outcome.out
    return gate


@pytest.fixture
def gate(seed: Gate, tmp_path: Path) -> Gate:
    """A gate of its own: the seed's artifacts, nothing measured yet."""
    return follow(seed, tmp_path)


@pytest.fixture
def full_gate(full_seed: Gate, tmp_path: Path) -> Gate:
    """The same with the whole model."""
    return follow(full_seed, tmp_path)


@pytest.fixture
def warm(gate: Gate, seed: Gate) -> Gate:
    """The same with the seed's deterministic measurements, which may be reused."""
    for part in ("journal", "references"):
        shutil.copytree(seed.cache / part, gate.cache / part)
    return gate


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs the runtime and real weights."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.runtime)
