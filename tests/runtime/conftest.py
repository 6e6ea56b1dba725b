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
    """A folder to run in, a cache, and what is planted in the worker."""

    folder: Path
    cache: Path
    text: Path
    path: list[str] = field(default_factory=list)

    def command(self, *args: str, models: str = "smollm2-135m", methods: str = "Q4_0") -> list[str]:
        common = [f"--ondevice-cache={self.cache}", f"--ondevice-text={self.text}"]
        chosen = [f"--ondevice-models={models}", f"--ondevice-methods={methods}"]
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

    def artifact(self, method: str) -> Path:
        """Find a well-made artifact in the store."""
        for path in (self.cache / "recipes").glob("*.json"):
            recipe = json.loads(path.read_text())
            if recipe["method"] == method:
                return self.cache / "objects" / recipe["sha256"][:2] / f"{recipe['sha256']}.gguf"
        raise LookupError(method)

    def plant(self, code: str) -> None:
        """Run ``code`` at the start of every worker process; it may replace what measures.

        ``journal(text)`` in it appends a line to ``planted()``.
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
def seed(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    """A run with nothing planted: makes the artifacts that the others start from."""
    folder = tmp_path_factory.mktemp("seed")
    text = folder / "text.txt"
    # Three windows are enough to see whether a stage was run.
    text.write_text((TEXT / "narrative.txt").read_text()[:7500])
    gate = Gate(folder, folder / "cache", text)
    outcome = gate.run("-q", "-k", "not speed")
    assert outcome.code == 0, outcome.out
    return gate


@pytest.fixture
def gate(seed: Gate, tmp_path: Path) -> Gate:
    """A gate of its own: the seed's artifacts, nothing measured yet."""
    cache = tmp_path / "cache"
    for part in ("objects", "recipes"):
        shutil.copytree(seed.cache / part, cache / part, copy_function=os.link)
    folder = tmp_path / "project"
    folder.mkdir()
    return Gate(folder, cache, seed.text)


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
