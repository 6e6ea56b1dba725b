"""The report's JSON Schema that ships is the one that the types generate."""

from __future__ import annotations

import json
from importlib import resources

import msgspec

from pytest_ondevice.model.report import Report


def test_the_schema_that_ships_is_generated_from_the_types():
    shipped = resources.files("pytest_ondevice") / "data" / "report.schema.json"
    generated = msgspec.json.encode(msgspec.json.schema(Report))
    assert json.loads(shipped.read_text()) == json.loads(generated)
