"""Baselines on disk: what is written is read again, damage is a sentence, diffs are small."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import statistics
import sysconfig
from pathlib import Path

import msgspec
import pytest

from pytest_ondevice.errors import BadFileError, StorageError
from pytest_ondevice.model.measurement import Measurement
from pytest_ondevice.shipped import folder as shipped_folder
from pytest_ondevice.storage.baselines import (
    MOST_BYTES,
    TIER_KINDS,
    BaselineFile,
    Baselines,
    Entry,
    Section,
    differences,
    entry_of,
    pooled,
    writable,
)

TIER = "x86_64-a-cpu-2t-123456"


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
    return Baselines(tmp_path / "own", [tmp_path / "shipped"], TIER)


@pytest.fixture
def shipped(tmp_path):
    """Writes into the folder that is shipped, as a release does."""
    return Baselines(tmp_path / "shipped", [], TIER)


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Written and read


def test_what_is_recorded_is_found(own, tmp_path):
    path = own.record("m", "Q4_K_M", "fidelity", section())
    assert path == own.path("m", "Q4_K_M", "fidelity") == tmp_path / "own/portable/m/Q4_K_M.json"
    assert own.find("m", "Q4_K_M", "fidelity") == (section(), path)
    assert Baselines(tmp_path / "own", [], TIER).find("m", "Q4_K_M", "fidelity") == (
        section(),
        path,
    )


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
    written = json.loads(own.path("m", "Q8_0", "fidelity").read_bytes())
    assert list(written["sections"]) == ["fidelity"]


def test_the_users_folder_may_be_the_shipped_one(tmp_path):
    both = Baselines(tmp_path, [tmp_path], TIER)
    assert both.folders == (tmp_path,)
    path = both.record("m", "Q8_0", "fidelity", section())
    assert both.find("m", "Q8_0", "fidelity") == (section(), path)


# Damage

GOOD = msgspec.json.encode(
    BaselineFile(schema=1, model="m", method="Q8_0", sections={"fidelity": section()})
)

SECTION = r"\$\.sections\['fidelity'\]"
QUANTITY = rf"{SECTION}\.quantities\['mean_kld'\]"

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
        rf"not a baseline: Expected `float`, got `str` @ {QUANTITY}\.windows\['narrative:10'\]",
    ),
    "a field missing": (
        GOOD.replace(b'"cpu":"A CPU",', b""),
        rf"not a baseline: Object missing required field `cpu` @ {SECTION}",
    ),
    "no schema": (
        GOOD.replace(b'"schema":1,', b""),
        r"not a baseline: Object missing required field `schema` @ \$",
    ),
    "schema 2": (
        GOOD.replace(b'"schema":1', b'"schema":2'),
        r"baseline schema 2 @ \$\.schema; this version reads 1",
    ),
    "nested": (b'{"a":' * 10_000, r"not a baseline: it is nested too deeply @ \$"),
    "nested where nobody looks": (
        GOOD.replace(b'{"schema"', b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b',"schema"'),
        r"not a baseline: it is nested too deeply @ \$",
    ),
    "n negative": (
        GOOD.replace(b'"n":2', b'"n":-2'),
        rf"not a baseline: Expected `int` >= 1 @ {QUANTITY}\.n",
    ),
    "n zero": (
        GOOD.replace(b'"n":2', b'"n":0'),
        rf"not a baseline: Expected `int` >= 1 @ {QUANTITY}\.n",
    ),
    "n absurd": (
        GOOD.replace(b'"n":2', b'"n":' + b"9" * 40),
        rf"not a baseline: Expected `int` <= 1000000000 @ {QUANTITY}\.n",
    ),
    "n a fraction": (
        GOOD.replace(b'"n":2', b'"n":2.5'),
        rf"not a baseline: Expected `int`, got `float` @ {QUANTITY}\.n",
    ),
    "n not that of the windows": (
        GOOD.replace(b'"n":2', b'"n":3'),
        rf"not a baseline: n is 3, the number of windows is 2 @ {QUANTITY}",
    ),
    "a window lost": (
        GOOD.replace(b',"narrative:10":0.1', b""),
        rf"not a baseline: n is 2, the number of windows is 1 @ {QUANTITY}",
    ),
    "no windows": (
        re.sub(rb'"windows":\{[^}]*\}', b'"windows":{}', GOOD),
        rf"not a baseline: Expected `object` of length >= 1 @ {QUANTITY}\.windows",
    ),
    "a window absurd": (
        GOOD.replace(b'"narrative:10":0.1', b'"narrative:10":1e300'),
        rf"not a baseline: Expected `float` <= 1e\+18 @ {QUANTITY}\.windows\['narrative:10'\]",
    ),
    "a value absurd": (
        GOOD.replace(b'"value":0.05', b'"value":-1e300'),
        rf"not a baseline: Expected `float` >= -1e\+18 @ {QUANTITY}\.value",
    ),
    "an error negative": (
        GOOD.replace(b'"error":0.001', b'"error":-0.001'),
        rf"not a baseline: Expected `float` >= 0\.0 @ {QUANTITY}\.error",
    ),
    "a board without samples": (
        GOOD.replace(b'"windows"', b'"boards":{"a":[1.0],"b":[]},"windows"'),
        rf"not a baseline: Expected `array` of length >= 1 @ {QUANTITY}\.boards\['b'\]",
    ),
    "null among samples": (
        GOOD.replace(b'"windows"', b'"boards":{"a":[1.0],"b":[1.0,null]},"windows"'),
        rf"not a baseline: Expected `float`, got `null` @ {QUANTITY}\.boards\['b'\]\[1\]",
    ),
    "a digest that is none": (
        GOOD.replace(b'"quantities"', b'"digests":{"avx2, cpu":[1]},"quantities"'),
        rf"not a baseline: Expected `str`, got `int` @ {SECTION}\.digests\['avx2, cpu'\]\[0\]",
    ),
    "a name on two lines": (
        GOOD.replace(b'"narrative:10":0.1', b'"a\\nb":"0.1"'),
        rf"not a baseline: Expected `float`, got `str` @ {QUANTITY}\.windows\['a\\nb'\]",
    ),
    "a name without end": (
        GOOD.replace(b'"narrative:10":0.1', b'"' + b"x" * 10_000 + b'":"0.1"'),
        rf"not a baseline: Expected `float`, got `str` @ {QUANTITY}\.windows\['x{{60}}\.\.\.'\]",
    ),
    "of another model": (
        GOOD.replace(b'"model":"m"', b'"model":"n"'),
        r"the baseline of another cell: 'n' @ \$\.model, where its place says 'm'; .*",
    ),
    "of another method": (
        GOOD.replace(b'"method":"Q8_0"', b'"method":"Q4_0"'),
        r"the baseline of another cell: 'Q4_0' @ \$\.method, where its place says 'Q8_0'; .*",
    ),
    "of a model of two lines": (
        GOOD.replace(b'"model":"m"', b'"model":"' + b"\\n" * 99 + b'"'),
        r"the baseline of another cell: '(\\n){60}\.\.\.' @ \$\.model, where .*",
    ),
}


@pytest.mark.parametrize("where", ["own", "shipped"])
@pytest.mark.parametrize(("content", "problem"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_one_sentence_with_its_place(request, own, where, content, problem):
    path = request.getfixturevalue(where).path("m", "Q8_0", "fidelity")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert content != GOOD
    with pytest.raises(BadFileError, match=rf"^{re.escape(str(path))}: {problem}$") as caught:
        own.find("m", "Q8_0", "fidelity")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_the_good_file_is_good(own):
    path = own.path("m", "Q8_0", "fidelity")
    path.parent.mkdir(parents=True)
    path.write_bytes(GOOD)
    assert own.find("m", "Q8_0", "fidelity") == (section(), path)


@pytest.mark.parametrize(("content", "problem"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_never_overwritten(own, content, problem):
    path = own.path("m", "Q8_0", "fidelity")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(BadFileError, match=problem):
        own.record("m", "Q8_0", "fidelity", section())
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_damaged_file_of_another_cell_does_not_matter(own):
    bad = own.path("m", "Q8_0", "fidelity")
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"{")
    own.record("m", "Q4_0", "fidelity", section())
    assert own.find("m", "Q4_0", "fidelity") is not None


def test_a_folder_in_the_files_place_is_one_sentence(own):
    own.path("m", "Q8_0", "fidelity").mkdir(parents=True)
    with pytest.raises(BadFileError, match=r"Q8_0\.json: cannot read it: Is a directory$"):
        own.find("m", "Q8_0", "fidelity")


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "own").write_text("in the way")
    with pytest.raises(StorageError, match=r"m/Q8_0\.json: cannot write it: Not a directory$"):
        Baselines(tmp_path / "own", [], TIER).record("m", "Q8_0", "fidelity", section())


def put(path):
    path.parent.mkdir(parents=True)
    return path


@pytest.mark.parametrize("size", [MOST_BYTES + 1, 1 << 30])
def test_a_file_beyond_all_measure_is_not_read(own, size):
    path = put(own.path("m", "Q8_0", "fidelity"))
    with path.open("wb") as file:
        file.truncate(size)
    with pytest.raises(
        BadFileError, match=rf"not a baseline: {size} bytes, where {MOST_BYTES} are the most @ \$$"
    ):
        own.find("m", "Q8_0", "fidelity")
    with pytest.raises(BadFileError, match=f"{size} bytes"):
        own.record("m", "Q8_0", "fidelity", section())


def test_the_largest_file_is_read(own):
    path = put(own.path("m", "Q8_0", "fidelity"))
    path.write_bytes(GOOD.ljust(MOST_BYTES))
    assert own.find("m", "Q8_0", "fidelity") == (section(), path)


def test_a_loop_of_links_is_one_sentence(own):
    path = put(own.path("m", "Q8_0", "fidelity"))
    path.symlink_to(path.with_suffix(".a"))
    path.with_suffix(".a").symlink_to(path)
    with pytest.raises(
        BadFileError, match=r"Q8_0\.json: cannot read it: Too many levels of symbolic links$"
    ):
        own.find("m", "Q8_0", "fidelity")


def test_a_pipe_is_not_waited_for(own):
    path = put(own.path("m", "Q8_0", "fidelity"))
    os.mkfifo(path)
    with pytest.raises(BadFileError, match=r"Q8_0\.json: cannot read it: it is no regular file$"):
        own.find("m", "Q8_0", "fidelity")


@contextlib.contextmanager
def as_nobody():
    """Give up the rights of root, which no permission stops, for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_may_not_be_read_is_one_sentence(own):
    path = put(own.path("m", "Q8_0", "fidelity"))
    path.write_bytes(GOOD)
    path.chmod(0)
    with (
        as_nobody(),
        pytest.raises(BadFileError, match=r"Q8_0\.json: cannot read it: Permission denied$"),
    ):
        own.find("m", "Q8_0", "fidelity")


# What travels and what does not


def speed(boards, value=20.0, unit="tokens/s", **fields):
    entries = {"decode_speed": Entry(value=value, unit=unit, n=3, boards=boards)}
    tier = {"cpu": "A CPU", "threads": 2}
    return section(**{"quantities": entries, "tier": tier, **fields})


def boards_of(baselines, quantity="decode_speed", kind="speed"):
    return baselines.find("m", "Q8_0", kind)[0].quantities[quantity].boards


@pytest.mark.parametrize("kind", sorted(TIER_KINDS))
def test_speed_is_kept_for_its_tier(own, tmp_path, kind):
    made = speed({"b1": (20.0, 21.0)})
    path = own.record("m", "Q8_0", kind, made)
    assert path == own.path("m", "Q8_0", kind) == tmp_path / "own" / TIER / "m/Q8_0.json"
    assert own.find("m", "Q8_0", kind) == (made, path)
    there = Baselines(tmp_path / "own", [], "another-tier")
    assert there.find("m", "Q8_0", kind) is None


@pytest.mark.parametrize("kind", ["fidelity", "size", "memory", "a kind of a later version"])
def test_the_rest_is_found_in_every_tier(own, tmp_path, kind):
    own.record("m", "Q8_0", kind, section())
    there = Baselines(tmp_path / "own", [], "another-tier")
    assert there.find("m", "Q8_0", kind) == own.find("m", "Q8_0", kind)
    assert there.path("m", "Q8_0", kind).parts[-3] == "portable"


def test_speed_that_ships_comes_after_the_users(own, shipped):
    theirs = shipped.record("m", "Q8_0", "speed", speed({"b1": (1.0,)}))
    assert own.find("m", "Q8_0", "speed") == (speed({"b1": (1.0,)}), theirs)
    ours = own.record("m", "Q8_0", "speed", speed({"b2": (2.0,)}))
    # Nothing of what ships is merged into the user's own.
    assert own.find("m", "Q8_0", "speed") == (speed({"b2": (2.0,)}), ours)


def test_a_tiers_file_of_another_cell_judges_nothing(own):
    path = own.record("m", "Q4_0", "speed", speed({"b1": (1.0,)}))
    path.rename(path.with_name("Q8_0.json"))
    with pytest.raises(BadFileError, match=r"'Q4_0' @ \$\.method, where its place says 'Q8_0'"):
        own.find("m", "Q8_0", "speed")
    with pytest.raises(BadFileError, match=r"put it back to its place, or delete it and record"):
        own.record("m", "Q8_0", "speed", speed({"b1": (1.0,)}))


# Boards


def test_a_board_replaces_its_own_samples_only(own):
    own.record("m", "Q8_0", "speed", speed({"b2": (20.0, 21.0)}))
    own.record("m", "Q8_0", "speed", speed({"b1": (30.0, 31.0)}))
    assert list(boards_of(own)) == ["b1", "b2"]
    own.record("m", "Q8_0", "speed", speed({"b2": (22.0,)}, value=22.0))
    boards = boards_of(own)
    assert boards == {"b1": (30.0, 31.0), "b2": (22.0,)}
    assert list(boards) == ["b1", "b2"]
    assert own.find("m", "Q8_0", "speed")[0].quantities["decode_speed"].value == 22.0


def test_boards_stay_where_the_runtime_or_the_tiers_fields_are_others(own):
    # The tier decides that, and a given name vouches for it.
    own.record("m", "Q8_0", "speed", speed({"b1": (30.0,)}))
    other = {"runtime_digest": "f" * 16, "recorded": "2026-10-01", "cpu": "B", "tier": {"cpu": "B"}}
    own.record("m", "Q8_0", "speed", speed({"b2": (20.0,)}, **other))
    assert boards_of(own) == {"b1": (30.0,), "b2": (20.0,)}
    assert own.find("m", "Q8_0", "speed")[0].tier == {"cpu": "B"}


@pytest.mark.parametrize(
    "other", [{"artifact": "b" * 64}, {"protocol": {"n_ctx": 1024}}, {"unit": "1"}]
)
def test_samples_of_something_else_do_not_stay(own, other):
    own.record("m", "Q8_0", "speed", speed({"b1": (30.0,)}))
    own.record("m", "Q8_0", "speed", speed({"b2": (20.0,)}, **other))
    assert boards_of(own) == {"b2": (20.0,)}


def test_a_quantity_that_only_another_board_has_stays_with_it(own):
    both = {
        name: Entry(value=1.0, unit="s", boards={"b1": (1.0,), "b2": (2.0,)})
        for name in ("ttft", "load_time")
    }
    mine = {"only_mine": Entry(value=1.0, unit="s", boards={"b2": (3.0,)})}
    plain = {"plain": Entry(value=1.0, unit="s")}
    own.record("m", "Q8_0", "speed", section(quantities={**both, **mine, **plain}))
    new = {"ttft": Entry(value=4.0, unit="s", boards={"b2": (4.0,)})}
    own.record("m", "Q8_0", "speed", section(quantities=new))
    found, _ = own.find("m", "Q8_0", "speed")
    assert {name: one.boards for name, one in found.quantities.items()} == {
        "load_time": {"b1": (1.0,)},
        "ttft": {"b1": (1.0,), "b2": (4.0,)},
    }


def test_what_travels_has_no_boards_to_merge(own):
    own.record("m", "Q8_0", "memory", speed({"b1": (30.0,)}))
    own.record("m", "Q8_0", "memory", speed({"b2": (20.0,)}))
    assert boards_of(own, kind="memory") == {"b2": (20.0,)}


def test_speed_and_energy_share_a_file_and_not_their_boards(own):
    own.record("m", "Q8_0", "speed", speed({"b1": (30.0,)}))
    own.record("m", "Q8_0", "energy", speed({"b2": (20.0,)}))
    assert own.path("m", "Q8_0", "speed") == own.path("m", "Q8_0", "energy")
    assert boards_of(own) == {"b1": (30.0,)}
    assert boards_of(own, kind="energy") == {"b2": (20.0,)}


def test_boards_are_pooled_as_one_sample_each():
    entry = Entry(
        value=9.0,
        unit="1",
        boards={"a": (1.0, 1.0, 7.0), "b": (2.0,), "c": (5.0, 7.0, 6.0, 100.0)},
    )
    center, spread, n = pooled(entry)
    assert (center, n) == (2.0, 3)
    assert spread == pytest.approx(statistics.stdev([1.0, 2.0, 6.5]))


def test_one_board_has_no_spread_between_boards():
    assert pooled(Entry(value=9.0, unit="1", boards={"a": (1.0, 3.0)})) == (2.0, 0.0, 1)


def test_without_boards_there_is_the_value():
    assert pooled(Entry(value=9.0, unit="1")) == (9.0, 0.0, 0)


@pytest.mark.parametrize("odd", [math.nan, math.inf, 1e300])
def test_what_could_not_be_read_again_is_not_written(own, odd):
    path = own.record("m", "Q8_0", "speed", speed({"b1": (30.0,)}))
    before = path.read_bytes()
    with pytest.raises(BadFileError, match=r"decode_speed'\]\.boards\['b2'\]\[1\]$"):
        own.record("m", "Q8_0", "speed", speed({"b2": (20.0, odd)}))
    assert path.read_bytes() == before


# Digests of logits


def test_digests_of_other_isa_classes_stay(own):
    own.record("m", "Q8_0", "fidelity", section(digests={"b": ("1", "2"), "c": ("3",)}))
    own.record("m", "Q8_0", "fidelity", section(0.06, digests={"c": ("4",), "a": ("5",)}))
    found, _ = own.find("m", "Q8_0", "fidelity")
    assert found.digests == {"a": ("5",), "b": ("1", "2"), "c": ("4",)}
    assert list(found.digests) == ["a", "b", "c"]
    assert found.quantities["mean_kld"].value == 0.06


@pytest.mark.parametrize(
    "other",
    [
        {"artifact": "b" * 64},
        {"protocol": {**section().protocol, "lineage": "of another source"}},
        {"protocol": {**section().protocol, "n_ctx": 1024}},
    ],
    ids=["artifact", "source", "protocol"],
)
def test_digests_of_something_else_do_not_stay(own, other):
    own.record("m", "Q8_0", "fidelity", section(digests={"b": ("1",)}))
    own.record("m", "Q8_0", "fidelity", section(digests={"a": ("2",)}, **other))
    assert own.find("m", "Q8_0", "fidelity")[0].digests == {"a": ("2",)}


# Why there is none


def test_other_tiers_are_named_and_judge_nothing(own, shipped, tmp_path):
    def at(folder, tier, cpu):
        made = speed({"b": (1.0,)}, tier={"cpu": cpu})
        return made, Baselines(tmp_path / folder, [], tier).record("m", "Q8_0", "speed", made)

    b = at("own", "tier-b", "B")
    a = at("own", "tier-a", "A")
    c = at("shipped", "tier-c", "C")
    at("own", TIER, "ours")
    own.record("m", "Q8_0", "fidelity", section())
    assert own.foreign("m", "Q8_0", "speed") == (a, b, c)
    assert own.foreign("m", "Q4_0", "speed") == ()
    assert own.foreign("m", "Q8_0", "energy") == ()
    assert own.foreign("m", "Q8_0", "fidelity") == ()
    assert differences(a[0].tier, {"cpu": "B"}) == ["cpu A there, B here"]
    a[1].write_bytes(b"{")
    assert own.foreign("m", "Q8_0", "speed") == (b, c)


def test_what_travels_and_lies_in_a_tier_is_not_foreign(own, tmp_path):
    misplaced = own.record("m", "Q8_0", "fidelity", section())
    misplaced.parents[1].rename(tmp_path / "own" / "tier-a")
    assert own.foreign("m", "Q8_0", "fidelity") == ()


def test_nothing_is_foreign_where_there_is_nothing(own):
    assert own.foreign("m", "Q8_0", "speed") == ()


def test_a_renamed_cell_is_known_by_its_artifact(own, shipped):
    own.record("m", "Q4_0", "fidelity", section())
    path = own.record("m", "Q8_0", "fidelity", section(artifact="b" * 64))
    quick = own.record("m", "Q8_0", "speed", speed({"b": (1.0,)}, artifact="b" * 64))
    theirs = shipped.record("n", "Q8_0", "memory", section(artifact="b" * 64))
    assert own.twin("b" * 64, "fidelity") == path
    assert own.twin("b" * 64, "speed") == quick
    assert own.twin("b" * 64, "memory") == theirs
    assert own.twin("b" * 64, "size") is None
    assert own.twin("c" * 64, "fidelity") is None
    # A folder of baselines renamed by hand is still told by what is in it.
    path.parent.rename(path.parents[1] / "renamed")
    assert own.twin("b" * 64, "fidelity") == path.parents[1] / "renamed" / "Q8_0.json"


def test_a_twin_is_of_the_artifact_and_not_of_its_mention(own):
    own.record("m", "Q8_0", "fidelity", section(runtime="b" * 64))
    assert own.twin("b" * 64, "fidelity") is None


def test_damage_elsewhere_hides_no_twin(own):
    own.record("a", "Q8_0", "fidelity", section()).write_bytes(b'{"' + b"a" * 64)
    path = own.record("m", "Q8_0", "fidelity", section())
    assert own.twin("a" * 64, "fidelity") == path


# Strays

MODELS = {"m": ("F16", "Q4_K_M", "Q8_0"), "other-1b": ("Q8_0",)}


def test_baselines_in_their_places_are_no_strays(own, tmp_path):
    own.record("m", "Q8_0", "fidelity", section())
    own.record("m", "Q8_0", "speed", speed({"b": (1.0,)}))
    Baselines(tmp_path / "own", [], "tier-a").record("m", "F16", "speed", speed({"b": (1.0,)}))
    (tmp_path / "own/README.md").write_text("ours")
    (tmp_path / "own/portable/m/generations.ambr").write_text("somebody else's")
    (tmp_path / "own/portable/m/.Q8_0.json").write_text("{")
    (tmp_path / "own/.git/m").mkdir(parents=True)
    (tmp_path / "own/.git/m/Q1.json").write_text("{")
    (tmp_path / "own/portable/notes").mkdir()
    assert own.strays(MODELS) == ()


def test_where_there_is_no_folder_there_are_no_strays(own):
    assert own.strays(MODELS) == ()


def test_strays_that_ship_are_not_the_users(own, shipped):
    shipped.record("nobody", "Q8_0", "fidelity", section())
    assert own.strays(MODELS) == ()


@pytest.mark.parametrize("kind", ["fidelity", "speed"])
def test_a_folder_of_no_model_is_said_once(own, kind):
    own.record("other-1", "Q8_0", kind, section())
    path = own.record("other-1", "F16", kind, section())
    (said,) = own.strays(MODELS)
    assert said == (
        f"{path.parent}: it judges nothing, since no model is named 'other-1';"
        " did you mean 'other-1b'?"
    )


def test_a_folder_too_deep_is_seen(own, tmp_path):
    own.record("m", "Q8_0", "fidelity", section()).parent.rename(tmp_path / "m")
    (tmp_path / "own/portable/owner").mkdir()
    (tmp_path / "m").rename(tmp_path / "own/portable/owner/m")
    (said,) = own.strays(MODELS)
    assert "own/portable/owner: it judges nothing, since no model is named 'owner'" in said


def test_a_file_too_high_is_seen(own):
    path = own.record("m", "Q8_0", "fidelity", section())
    moved = path.rename(path.parents[1] / path.name)
    assert own.strays(MODELS) == (
        f"{moved}: it judges nothing, since baselines are kept in a folder for each model",
    )


def test_a_misnamed_file_is_told_its_name(own):
    path = own.record("m", "Q4_K_M", "fidelity", section())
    misnamed = path.rename(path.with_name("q4_k_m.json"))
    before = tree(own.own)
    assert own.strays(MODELS) == (
        f"{misnamed}: it judges nothing, since no method is named 'q4_k_m'; did you mean 'Q4_K_M'?",
    )
    assert tree(own.own) == before


def test_a_method_of_another_model_is_a_stray(own):
    own.record("other-1b", "F16", "fidelity", section())
    (said,) = own.strays(MODELS)
    assert "no method is named 'F16'" in said


def test_a_file_renamed_to_another_cell_is_told_whose_it_is(own):
    path = own.record("m", "Q4_K_M", "fidelity", section())
    path.rename(path.with_name("Q8_0.json"))
    (said,) = own.strays(MODELS)
    assert "Q8_0.json: the baseline of another cell: 'Q4_K_M' @ $.method" in said
    path.parent.rename(path.parents[1] / "other-1b")
    (said,) = own.strays(MODELS)
    assert "other-1b/Q8_0.json: the baseline of another cell: 'm' @ $.model" in said


def test_damage_is_said_with_its_place(own):
    own.record("m", "Q8_0", "fidelity", section()).write_bytes(b"[]")
    (said,) = own.strays(MODELS)
    assert said.endswith("m/Q8_0.json: not a baseline: Expected `object`, got `array` @ $")


def test_a_kind_in_the_wrong_folder_is_told_its_place(own):
    path = own.record("m", "Q8_0", "speed", speed({"b": (1.0,)}))
    own.record("m", "F16", "fidelity", section())
    portable = own.path("m", "F16", "fidelity").parent
    path.rename(portable / "Q8_0.json")
    (portable / "F16.json").rename(path.parent / "F16.json")
    assert own.strays(MODELS) == (
        (
            f"{portable}/Q8_0.json: its speed judges nothing, since that is kept in the folder of a"
            " tier"
        ),
        f"{path.parent}/F16.json: its fidelity judges nothing, since that is kept in portable/",
    )


def test_odd_things_in_the_folder_are_survived(own, tmp_path):
    portable = put(tmp_path / "own" / "portable" / "x").parent
    (portable / "loop").symlink_to(portable / "loop")
    (portable / "m").symlink_to(portable)
    (portable / "Q8_0.json").mkdir()
    assert own.strays(MODELS) == ()
    assert own.twin("a" * 64, "fidelity") is None


# Where nothing is written


@pytest.mark.parametrize("name", ["site-packages", "dist-packages"])
def test_nothing_is_written_among_installed_packages(tmp_path, name):
    place = tmp_path / "lib" / name / "pytest_ondevice" / "baselines"
    with pytest.raises(
        StorageError,
        match=rf"^{re.escape(str(place))}: no baselines are written among installed packages,"
        r" .* choose another folder with --ondevice-baselines=DIR$",
    ):
        Baselines(place, [], TIER).record("m", "Q8_0", "fidelity", section())
    assert list(tmp_path.iterdir()) == []


def test_a_link_into_installed_packages_is_seen(tmp_path):
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "own").symlink_to(tmp_path / "site-packages")
    with pytest.raises(StorageError, match="among installed packages"):
        writable(tmp_path / "own")


@pytest.mark.parametrize("name", ["purelib", "platlib"])
def test_the_interpreters_own_folders_are_known_by_any_name(monkeypatch, tmp_path, name):
    (tmp_path / "vendored").mkdir()
    there = sysconfig.get_path
    monkeypatch.setattr(
        sysconfig,
        "get_path",
        lambda asked: str(tmp_path / "vendored") if asked == name else there(asked),
    )
    for folder in ("vendored", "vendored/a/b", "a/../vendored"):
        with pytest.raises(StorageError, match="among installed packages"):
            writable(tmp_path / folder)
    writable(tmp_path / "vendored2")
    writable(tmp_path)


def test_this_interpreters_packages_are_refused():
    with pytest.raises(StorageError):
        writable(Path(sysconfig.get_path("purelib"), "baselines"))


def test_a_folder_of_the_users_is_written(tmp_path):
    writable(tmp_path)
    writable(tmp_path / "site-packages-of-mine" / "baselines")


# What ships


def test_what_ships_is_read_and_would_be_written_as_it_is():
    folder = shipped_folder("baselines")
    paths = sorted(folder.glob("portable/*/*.json"))
    assert paths
    for path in paths:
        model, method = path.parent.name, path.stem
        kinds = json.loads(path.read_bytes())["sections"]
        for kind in kinds:
            found, where = Baselines(folder, [], TIER).find(model, method, kind)
            assert where == path
            assert found.quantities


def test_what_ships_is_written_again_byte_by_byte(tmp_path):
    folder = shipped_folder("baselines")
    copy = Baselines(tmp_path, [], TIER)
    for path in sorted(folder.glob("portable/*/*.json")):
        model, method = path.parent.name, path.stem
        for kind in json.loads(path.read_bytes())["sections"]:
            found, _ = Baselines(folder, [], TIER).find(model, method, kind)
            written = copy.record(model, method, kind, found)
        assert written.read_bytes() == path.read_bytes()


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


TIER_WRITTEN = """\
      "quantities": {
        "decode_speed": {
          "value": 20.0,
          "unit": "tokens/s",
          "n": 3,
          "boards": {
            "b1": [20.5, 21.0],
            "b2": [0.000125]
          }
        }
      },
      "tier": {
        "cpu": "A CPU",
        "threads": 2
      },
      "digests": {
        "avx2": ["0123", "4567"]
      }
    }
"""


def test_a_board_is_a_line(own):
    made = speed({"b1": (20.5, 21.0), "b2": (1.25e-4,)}, digests={"avx2": ("0123", "4567")})
    text = own.record("m", "Q8_0", "speed", made).read_text("ascii")
    assert TIER_WRITTEN in text
    assert own.find("m", "Q8_0", "speed")[0] == made


def test_any_name_is_written_so_that_it_is_read(own):
    odd = 'a "b"\n[1, 2]{}:\\ ü'
    made = speed({odd: (1.0,)}, cpu=odd, tier={odd: odd, "none": None}, digests={odd: ()})
    own.record("m", "Q8_0", "speed", made)
    assert own.find("m", "Q8_0", "speed")[0] == made


def test_the_order_of_recording_does_not_show(tmp_path):
    texts = []
    for kinds in (("size", "fidelity", "memory"), ("memory", "size", "fidelity", "size")):
        baselines = Baselines(tmp_path / "-".join(kinds), [], TIER)
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
        measured(samples=(1 / 3, 2e-12 / 3, 98765432198.5), sample_ids=("b:1", "a:2", "b:0"), n=3)
    )
    assert entry == Entry(
        value=0.12345679,
        unit="nats",
        n=3,
        error=0.00123,
        windows={"a:2": 6.6666667e-13, "b:0": 98765432000.0, "b:1": 0.33333333},
    )
    assert list(entry.windows) == ["a:2", "b:0", "b:1"]


def test_a_count_of_bytes_is_kept_to_the_last_one():
    # The reserve is held to its baseline without a tolerance: a byte that rounding takes is red.
    reserve = Measurement(quantity="reserved_memory", value=98765432199.0, unit="B")
    assert entry_of(reserve).value == 98765432199.0
    samples = measured(samples=(98765432199.0,), sample_ids=("a:0",), n=1)
    assert entry_of(samples).windows == {"a:0": 98765432199.0}


def test_rounding_is_stable():
    once = entry_of(measured(samples=(1 / 3,), sample_ids=("a:0",)))
    again = measured(
        value=once.value, error=once.error, samples=(once.windows["a:0"],), sample_ids=("a:0",)
    )
    assert entry_of(again) == once


def test_a_boards_samples_are_kept_under_its_name():
    one = measured(samples=(1 / 3, 2.0, 3.0))
    assert entry_of(one, board="b1").boards == {"b1": (0.33333333, 2.0, 3.0)}
    assert entry_of(one).boards == {}
    assert entry_of(measured(), board="b1").boards == {}


def test_n_is_that_of_the_windows():
    assert entry_of(measured(samples=(1.0, 2.0), sample_ids=("a:0", "a:1"), n=7)).n == 2
    assert entry_of(measured(samples=(1.0, 2.0), n=7)).n == 7
    with pytest.raises(ValueError, match=r"^n is 7, the number of windows is 1$"):
        Entry(value=1.0, unit="1", n=7, windows={"a:0": 1.0})


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
