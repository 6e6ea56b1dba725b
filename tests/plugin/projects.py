"""A user's project to run pytest in, and what such a run says."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from pytest_ondevice.options import Settings, parse

if TYPE_CHECKING:
    from pathlib import Path

NOTHING = "no collected test uses a model"
"""What a run is told that was asked to gate and has nothing to gate."""

CHECKS = 47
"""Number of checks of one cell, the reference, in a run that asks for nothing more; laws too."""

MORE = 25
"""So many more where there is a second cell, one that quantizes."""


@dataclass
class Project:
    """A user's project: a folder with files, and pytest in it."""

    pytester: pytest.Pytester
    cache: Path

    @property
    def path(self) -> Path:
        return self.pytester.path

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def arguments(self, *args: str | Path) -> list[str]:
        # Hypothesis would make a folder of its own in the project.
        plain = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
        return [*plain, *map(str, args)]

    def run(self, *args: str | Path) -> pytest.RunResult:
        return self.pytester.runpytest_inprocess(*self.arguments(*args))

    def run_apart(self, *args: str | Path) -> pytest.RunResult:
        """Run in a process of its own; pytester's would leave files in the project."""
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *self.arguments(*args)],
            cwd=self.path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        out, err = done.stdout.splitlines(), done.stderr.splitlines()
        return pytest.RunResult(done.returncode, out, err, 0.0)

    def collect(self, *args: str | Path) -> list[str]:
        """Collect only; return the node ids, those of shipped suites as ``suite::test[cell]``."""
        result = self.run("--collect-only", "-q", *args)
        assert result.ret == 0, sentence_or_all(result)
        return [
            re.sub(r"^\S*?(\w+)/test_\1\.py", r"\1", line)
            for line in result.outlines
            if "::" in line
        ]

    def files(self) -> dict[str, bytes | None]:
        """Everything in the folder, with contents."""
        return {
            str(path.relative_to(self.path)): path.read_bytes() if path.is_file() else None
            for path in sorted(self.path.rglob("*"))
        }

    def refused(self, *args: str | Path, apart: bool = False) -> str:
        """Run; return the one sentence with which it was refused, leaving nothing behind."""
        before = self.files()
        result = (self.run_apart if apart else self.run)(*args)
        said = sentence(result)
        assert result.ret == pytest.ExitCode.USAGE_ERROR, sentence_or_all(result)
        assert self.files() == before, "a refused run wrote into the project"
        return said

    def accepted(self, *args: str | Path, checks: int = CHECKS) -> None:
        """Run with no check chosen: everything is looked at that is looked at before measuring."""
        before = self.files()
        result = self.run(*args, "-k", "no_such_check")
        said = sentence_or_all(result)
        if result.ret == pytest.ExitCode.USAGE_ERROR:
            assert NOTHING in sentence(result), said
        else:
            assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED, said
        result.assert_outcomes(deselected=checks)
        assert self.files() == before, "a run of no check wrote into the project"

    def parse(self, *args: str | Path) -> Settings:
        """Parse the options only."""
        return parse(self.pytester.parseconfig(*self.arguments(*args)))


def sentence(result: pytest.RunResult) -> str:
    """Return the only ERROR of a run; a traceback instead of it is a failure."""
    text = f"{result.stdout.str()}\n{result.stderr.str()}"
    assert "Traceback" not in text, text
    assert "INTERNALERROR" not in text, text
    lines = text.splitlines()
    found = [index for index, line in enumerate(lines) if line.startswith("ERROR:")]
    assert len(found) == 1, text
    after = "".join(lines[found[0] + 1 : found[0] + 2])
    assert not after or after.startswith("==="), f"more than one line: {text}"
    return lines[found[0]].removeprefix("ERROR: ")


def sentence_or_all(result: pytest.RunResult) -> str:
    return f"exit {result.ret}\n{result.stdout.str()}\n{result.stderr.str()}"
