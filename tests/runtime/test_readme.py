"""The README's example of a user's own tests."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_the_example_runs_once_per_cell(full_gate):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(example.strip().splitlines()) <= 10
    (full_gate.folder / "test_example.py").write_text(example)
    (full_gate.folder / "pytest.ini").write_text(
        f"[pytest]\nondevice_models = smollm2-135m\nondevice_methods = Q4_0\n"
        f"ondevice_cache = {full_gate.cache}\n"
    )
    command = full_gate.command("-v")
    full_gate.command = lambda *_, **__: [*command[:3], "-v"]
    outcome = full_gate.run()
    assert outcome.code == 0, outcome.out
    assert "test_answers[smollm2-135m-Q4_0] PASSED" in outcome.out
    assert "test_fits_the_board[smollm2-135m-F16] PASSED" in outcome.out
    assert "on-device gate" in outcome.out
