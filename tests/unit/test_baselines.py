"""Baselines on disk: what is written is read again, damage is a sentence, diffs are small."""

from __future__ import annotations

import json
import math
import re

import msgspec
import pytest

from pytest_ondevice.errors import BadFileError, StorageError
from pytest_ondevice.model.measurement import Measurement
from pytest_ondevice.storage.baselines import (
    BaselineFile,
    Baselines,
    Entry,
    Section,
    differences,
    entry_of,
)


def section(value=0.05, **fields):
    made = {
        "recorded": "2026-09-01",
        "runtime": "llama-cpp-python 0.3.36",
        "runtime_digest": "0123456789abcdef",
        "cpu": "A CPU",
        "artifact": "a" * 64,
        "protocol": {"n_ctx": 512, "flash_attention": True, "lineage": "l", "share": 0.5},
        "quantities": {
            "mean_kld": Entry(
                value=value,
                unit="nats",
                n=2,
                error=0.001,
                windows={"narrative:0": value / 2, "narrative:10": value * 2},
            )
        },
    }
    return Section(**{**made, **fields})


@pytest.fixture
def own(tmp_path):
    return Baselines(tmp_path / "own", [tmp_path / "shipped"])


@pytest.fixture
def shipped(tmp_path):
    """Writes into the folder that is shipped, as a release does."""
    return Baselines(tmp_path / "shipped", [])


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Written and read


def test_what_is_recorded_is_found(own, tmp_path):
    path = own.record("m", "Q4_K_M", "fidelity", section())
    assert path == own.path("m", "Q4_K_M") == tmp_path / "own/portable/m/Q4_K_M.json"
    assert own.find("m", "Q4_K_M", "fidelity") == (section(), path)
    assert Baselines(tmp_path / "own", []).find("m", "Q4_K_M", "fidelity") == (section(), path)


def test_nothing_is_found_where_nothing_is(own, tmp_path):
    assert own.find("m", "Q4_K_M", "fidelity") is None
    own.record("m", "Q4_K_M", "fidelity", section())
    assert own.find("m", "Q4_K_M", "memory") is None
    assert own.find("m", "Q8_0", "fidelity") is None
    assert own.find("n", "Q4_K_M", "fidelity") is None
    (tmp_path / "own/portable/file").write_text("a file where a model's folder would be")
    assert own.find("file", "Q8_0", "fidelity") is None


def test_other_kinds_stay_as_they_are(own):
    own.record("m", "Q8_0", "memory", section(1.0))
    own.record("m", "Q8_0", "a kind of a later version", section(2.0))
    own.record("m", "Q8_0", "fidelity", section(3.0))
    own.record("m", "Q8_0", "memory", section(4.0))
    found = {
        kind: own.find("m", "Q8_0", kind)[0].quantities["mean_kld"].value
        for kind in ("memory", "a kind of a later version", "fidelity")
    }
    assert found == {"memory": 4.0, "a kind of a later version": 2.0, "fidelity": 3.0}


def test_other_cells_stay_as_they_are(own):
    path = own.record("m", "Q8_0", "fidelity", section(1.0))
    before = path.read_bytes()
    own.record("m", "Q4_0", "fidelity", section(2.0))
    own.record("n", "Q8_0", "fidelity", section(3.0))
    assert path.read_bytes() == before


# Two folders


def test_the_users_folder_comes_first(own, shipped):
    theirs = shipped.record("m", "Q8_0", "fidelity", section(1.0))
    shipped.record("m", "Q8_0", "memory", section(2.0))
    assert own.find("m", "Q8_0", "fidelity") == (section(1.0), theirs)
    ours = own.record("m", "Q8_0", "fidelity", section(3.0))
    assert own.find("m", "Q8_0", "fidelity") == (section(3.0), ours)
    # Kind by kind: what the user has not recorded still comes from the shipped file.
    assert own.find("m", "Q8_0", "memory") == (section(2.0), theirs)


def test_shipped_files_are_never_written(own, shipped, tmp_path):
    shipped.record("m", "Q8_0", "fidelity", section(1.0))
    before = tree(tmp_path / "shipped")
    own.record("m", "Q8_0", "fidelity", section(2.0))
    own.record("m", "Q4_0", "memory", section(2.0))
    assert tree(tmp_path / "shipped") == before
    # Nor is anything copied from them into the user's folder.
    written = json.loads(own.path("m", "Q8_0").read_bytes())
    assert list(written["sections"]) == ["fidelity"]


def test_the_users_folder_may_be_the_shipped_one(tmp_path):
    both = Baselines(tmp_path, [tmp_path])
    assert both.folders == (tmp_path,)
    path = both.record("m", "Q8_0", "fidelity", section())
    assert both.find("m", "Q8_0", "fidelity") == (section(), path)


# Damage

GOOD = msgspec.json.encode(
    BaselineFile(schema=1, model="m", method="Q8_0", sections={"fidelity": section()})
)

QUANTITY = r"\$\.sections\[\.\.\.\]\.quantities\[\.\.\.\]"

DAMAGE = {
    "empty": (b"", r"not a baseline: .* @ \$"),
    "cut": (GOOD[:100], r"not a baseline: .* @ \$"),
    "a list": (b"[]", r"not a baseline: Expected `object`, got `array` @ \$"),
    "zeros": (bytes(100), r"not a baseline: .* @ \$"),
    "not UTF-8": (GOOD.replace(b"A CPU", b"\xc4 CPU"), r"not a baseline: .*"),
    "a conflict": (b"<<<<<<< HEAD\n" + GOOD, r"not a baseline: .* @ \$"),
    "NaN": (GOOD.replace(b'"value":0.05', b'"value":NaN'), r"not a baseline: .* @ \$"),
    "infinity": (GOOD.replace(b'"value":0.05', b'"value":1e999'), r"not a baseline: .* @ \$.*"),
    "null": (
        GOOD.replace(b'"value":0.05', b'"value":null'),
        rf"not a baseline: Expected `float`, got `null` @ {QUANTITY}\.value",
    ),
    "a text deep inside": (
        GOOD.replace(b'"narrative:10":0.1', b'"narrative:10":"0.1"'),
        rf"not a baseline: Expected `float`, got `str` @ {QUANTITY}\.windows\[\.\.\.\]",
    ),
    "a field missing": (
        GOOD.replace(b'"cpu":"A CPU",', b""),
        r"not a baseline: Object missing required field `cpu` @ \$\.sections\[\.\.\.\]",
    ),
    "no schema": (
        GOOD.replace(b'"schema":1,', b""),
        r"not a baseline: Object missing required field `schema` @ \$",
    ),
    "schema 2": (
        GOOD.replace(b'"schema":1', b'"schema":2'),
        r"baseline schema 2 @ \$\.schema; this version reads 1",
    ),
}


@pytest.mark.parametrize("where", ["own", "shipped"])
@pytest.mark.parametrize(("content", "problem"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_one_sentence_with_its_place(request, own, where, content, problem):
    path = request.getfixturevalue(where).path("m", "Q8_0")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert content != GOOD
    with pytest.raises(BadFileError, match=rf"^{re.escape(str(path))}: {problem}$") as caught:
        own.find("m", "Q8_0", "fidelity")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_the_good_file_is_good(own):
    path = own.path("m", "Q8_0")
    path.parent.mkdir(parents=True)
    path.write_bytes(GOOD)
    assert own.find("m", "Q8_0", "fidelity") == (section(), path)


@pytest.mark.parametrize(("content", "problem"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_never_overwritten(own, content, problem):
    path = own.path("m", "Q8_0")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(BadFileError, match=problem):
        own.record("m", "Q8_0", "fidelity", section())
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_damaged_file_of_another_cell_does_not_matter(own):
    bad = own.path("m", "Q8_0")
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"{")
    own.record("m", "Q4_0", "fidelity", section())
    assert own.find("m", "Q4_0", "fidelity") is not None


def test_a_folder_in_the_files_place_is_one_sentence(own):
    own.path("m", "Q8_0").mkdir(parents=True)
    with pytest.raises(BadFileError, match=r"Q8_0\.json: cannot read it: Is a directory$"):
        own.find("m", "Q8_0", "fidelity")


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "own").write_text("in the way")
    with pytest.raises(StorageError, match=r"m/Q8_0\.json: cannot write it: Not a directory$"):
        Baselines(tmp_path / "own", []).record("m", "Q8_0", "fidelity", section())


# Made to be read in a diff


WRITTEN = """\
{
  "schema": 1,
  "model": "m",
  "method": "Q8_0",
  "sections": {
    "fidelity": {
      "recorded": "2026-09-01",
      "runtime": "llama-cpp-python 0.3.36",
      "runtime_digest": "0123456789abcdef",
      "cpu": "A CPU",
      "artifact": "ARTIFACT",
      "protocol": {
        "n_ctx": 512,
        "flash_attention": true,
        "lineage": "l",
        "share": 0.5
      },
      "quantities": {
        "mean_kld": {
          "value": 0.05,
          "unit": "nats",
          "n": 2,
          "error": 0.001,
          "windows": {
            "narrative:0": 0.025,
            "narrative:10": 0.1
          }
        }
      }
    }
  }
}
"""


def test_the_file_is_written_for_people(own):
    path = own.record("m", "Q8_0", "fidelity", section())
    assert path.read_text("ascii") == WRITTEN.replace("ARTIFACT", "a" * 64)


def test_a_changed_window_is_a_changed_line(own):
    path = own.record("m", "Q8_0", "fidelity", section())
    before = path.read_text("ascii").splitlines()
    windows = {"narrative:0": 0.025, "narrative:10": 0.08}
    entry = msgspec.structs.replace(section().quantities["mean_kld"], windows=windows)
    own.record("m", "Q8_0", "fidelity", section(quantities={"mean_kld": entry}))
    after = path.read_text("ascii").splitlines()
    changed = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert [tuple(map(str.strip, pair)) for pair in changed] == [
        ('"narrative:10": 0.1', '"narrative:10": 0.08')
    ]


def test_the_order_of_recording_does_not_show(tmp_path):
    texts = []
    for kinds in (("size", "fidelity", "memory"), ("memory", "size", "fidelity", "size")):
        baselines = Baselines(tmp_path / "-".join(kinds), [])
        for kind in kinds:
            path = baselines.record("m", "Q8_0", kind, section())
        texts.append(path.read_bytes())
    assert texts[0] == texts[1]


# What is kept of a measurement


def measured(value=0.123456789012, **fields):
    made = {"quantity": "mean_kld", "unit": "nats", "n": 3, "error": 0.00123456}
    return Measurement(value=value, **{**made, **fields})


def test_figures_are_kept_to_eight_digits_and_errors_to_three():
    entry = entry_of(
        measured(samples=(1 / 3, 2e-12 / 3, 98765432198.0), sample_ids=("b:1", "a:2", "b:0"), n=3)
    )
    assert entry == Entry(
        value=0.12345679,
        unit="nats",
        n=3,
        error=0.00123,
        windows={"a:2": 6.6666667e-13, "b:0": 98765432000.0, "b:1": 0.33333333},
    )
    assert list(entry.windows) == ["a:2", "b:0", "b:1"]


def test_rounding_is_stable():
    once = entry_of(measured(samples=(1 / 3,), sample_ids=("a:0",)))
    again = measured(
        value=once.value, error=once.error, samples=(once.windows["a:0"],), sample_ids=("a:0",)
    )
    assert entry_of(again) == once


def test_bytes_are_kept_exactly():
    assert entry_of(measured(value=float(2**26 + 1), error=None, n=1)).value == 2**26 + 1


def test_samples_without_identity_are_not_kept():
    entry = entry_of(measured(samples=(1.0, 2.0, 3.0)))
    assert entry.windows == {}


def test_what_a_section_keeps_is_what_is_read(own):
    kept = section(quantities={"mean_kld": entry_of(measured(error=None, n=1))})
    own.record("m", "Q8_0", "fidelity", kept)
    found, path = own.find("m", "Q8_0", "fidelity")
    assert found == kept
    assert b"error" not in path.read_bytes()


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_recorded(value):
    with pytest.raises(ValueError, match=r"^mean_kld is not finite$"):
        entry_of(measured(value=value))


@pytest.mark.parametrize("odd", [math.nan, math.inf])
@pytest.mark.parametrize("field", ["error", "samples"])
def test_nothing_of_what_is_kept_may_be_not_finite(field, odd):
    # A file with it could be written, but not read.
    fields = {"error": odd} if field == "error" else {"samples": (1.0, odd), "sample_ids": "ab"}
    with pytest.raises(ValueError, match=r"^mean_kld is not finite$"):
        entry_of(measured(**fields))


# Comparable or not


def test_equal_protocols_do_not_differ():
    ours = {"n_ctx": 512, "flash_attention": True, "cpu": "x", "share": 0.1}
    assert differences(dict(reversed(ours.items())), ours) == []


def test_a_protocol_that_went_through_a_file_does_not_differ(own):
    protocol = section().protocol
    own.record("m", "Q8_0", "fidelity", section())
    found, _ = own.find("m", "Q8_0", "fidelity")
    assert differences(found.protocol, protocol) == []


def test_differences_are_named_field_by_field():
    there = {"n_ctx": 512, "threads": 2, "text": "t", "old": 1}
    here = {"n_ctx": 1024, "threads": 2, "text": "u", "new": "x"}
    assert differences(there, here) == [
        "n_ctx 512 there, 1024 here",
        "new absent there, x here",
        "old 1 there, absent here",
        "text t there, u here",
    ]


def test_a_field_that_is_null_on_one_side_and_absent_on_the_other_differs():
    assert differences({"windows": None}, {}) == ["windows None there, absent here"]
