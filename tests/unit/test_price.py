"""What a run takes, and what stands between that and the run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pytest_ondevice import toll
from pytest_ondevice.catalog import catalog
from pytest_ondevice.errors import StorageError
from pytest_ondevice.model.catalog import Cell, Model, ModelSource
from pytest_ondevice.price import (
    ASK_DISK,
    ASK_DOWNLOAD,
    ASK_SECONDS,
    Load,
    Price,
    guessed_size,
    planned_size,
    price,
)
from pytest_ondevice.storage.costs import Costs
from pytest_ondevice.tasks import sets_of

if TYPE_CHECKING:
    from pathlib import Path

MODEL = Model(name="m", sources=(ModelSource(repo="org/m"),))


def cell(method: str = "Q4_0", *, reference: bool = False) -> Cell:
    return Cell(model=MODEL, method=method, reference=reference)


def load(method: str = "Q4_0", *, weights: int = 10**9, size: int = 10**9, make: bool = True):
    return Load(cell(method, reference=method == "F16"), weights, size, make)


@pytest.fixture
def costs(tmp_path: Path) -> Costs:
    return Costs(tmp_path, "here")


def of(
    costs: Costs, *loads: Load, downloads: dict[str, int] | None = None, rounds: int = 3
) -> Price:
    return price(loads, downloads or {}, costs, windows=16, rounds=rounds, threads=2)


def test_sizes_add_up(costs: Costs) -> None:
    whole = of(costs, load("F16", size=4, make=False), load(size=3), load("Q8_0", size=2))
    assert whole.disk == 5
    assert whole.largest is not None
    assert whole.largest.cell.method == "F16"
    assert of(costs, downloads={"a": 1, "b": 2}).download == 3
    assert of(costs).largest is None


def test_time_rests_on_past_runs_of_this_place(tmp_path: Path, costs: Costs) -> None:
    guessed = of(costs, load())
    assert guessed.known == 0
    assert "a guess" in guessed.sentence()
    stages = ("quantize", "validate", "speed", "memory", "deployed", "fidelity", "decode")
    for stage in stages:
        # So many windows in one stage, and each round of speed a stage of its own.
        units = 10**9 * (16 if stage == "fidelity" else 1)
        for seconds in (9.0, 10.0, 500.0):  # one was disturbed
            costs.add(stage, "Q4_0", units, seconds)
        Costs(tmp_path, "elsewhere").add(stage, "Q4_0", units, 1.0)
    known = of(Costs(tmp_path, "here"), load())
    assert known.seconds == pytest.approx(90)
    assert known.known == 1
    assert "from past runs here" in known.sentence()
    # Twice the weights take twice the time, another method as long as what is known.
    assert of(Costs(tmp_path, "here"), load(weights=2 * 10**9)).seconds == pytest.approx(180)
    assert of(Costs(tmp_path, "here"), load("Q8_0")).seconds == pytest.approx(90)
    # What is there need not be made, and more rounds of speed take longer.
    assert of(Costs(tmp_path, "here"), load(make=False)).seconds == pytest.approx(80)
    assert of(Costs(tmp_path, "here"), load(), rounds=8).seconds == pytest.approx(140)


def test_what_is_not_known_yet_is_guessed_by_rounds_and_windows_too(costs: Costs) -> None:
    few, many = of(costs, load(), rounds=3), of(costs, load(), rounds=8)
    assert few.seconds < many.seconds < 8 / 3 * few.seconds
    longer = price([load()], {}, costs, windows=None, rounds=3, threads=2)
    shorter = price([load()], {}, costs, windows=8, rounds=3, threads=2)
    assert shorter.seconds < few.seconds < longer.seconds


def test_a_torn_line_costs_nothing(tmp_path: Path, costs: Costs) -> None:
    costs.add("speed", "Q4_0", 10, 5.0)
    with (tmp_path / "costs.jsonl").open("ab") as file:
        file.write(b'{"place": "here", "sta')
    Costs(tmp_path, "here").add("speed", "Q4_0", 10, 5.0)
    assert Costs(tmp_path, "here").rate("speed", "Q4_0") == 0.5
    assert Costs(tmp_path, "here").rate("memory", "Q4_0") is None


def test_a_cache_that_cannot_be_written_is_only_guessed_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    Costs(tmp_path / "file", "here").add("speed", "Q4_0", 10, 5.0)
    assert Costs(tmp_path / "file", "here").rate("speed", "Q4_0") is None


@pytest.mark.parametrize(
    ("download", "disk", "seconds"),
    [(ASK_DOWNLOAD, 0, 0), (0, ASK_DISK, 0), (0, 0, ASK_SECONDS)],
)
def test_much_is_asked_about(download: float, disk: float, seconds: float) -> None:
    at = Price({"x": int(download)}, int(disk), None, seconds, 1.0)
    more = Price({"x": int(download + 1)}, int(disk + 1), None, seconds + 1, 1.0)
    assert not at.asks
    assert more.asks


class Settings:
    """As much of the options as is looked at."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache


def test_memory_that_is_not_there_is_refused_with_the_figures(costs: Costs, tmp_path: Path) -> None:
    settings = Settings(tmp_path / "not" / "yet")
    whole = of(costs, load("F16", size=30 * 10**9, make=False), load(size=8 * 10**9, make=False))
    toll.require_room(whole, settings, free=33 * 10**9)
    toll.require_room(whole, settings, free=None)
    with pytest.raises(StorageError) as error:
        toll.require_room(whole, settings, free=24 * 10**9)
    assert str(error.value) == (
        "m-F16 needs about 33.0 GB of memory, this machine has 24.0 GB available; choose a smaller"
        " model"
    )
    small = of(costs, load(size=8 * 10**9, make=False))
    with pytest.raises(StorageError, match="a smaller model or a method of fewer bits"):
        toll.require_room(small, settings, free=10**9)


def test_a_disk_that_is_too_small_is_refused_with_the_figures(
    costs: Costs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    settings = Settings(tmp_path / "cache")
    toll.require_room(of(costs, load(size=1000)), settings, free=None)
    with pytest.raises(
        StorageError, match=r"the run needs .* of disk, .* free: quantizing"
    ) as error:
        toll.require_room(of(costs, load(size=2 * free)), settings, free=None)
    assert "--ondevice-cache=DIR" in str(error.value)
    # On one disk both count: neither alone is too much.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    half = int(free * 0.7)
    toll.require_room(of(costs, load(size=half)), settings, free=None)
    with pytest.raises(StorageError, match=r"quantizing .*, downloading .* HF_HUB_CACHE"):
        toll.require_room(of(costs, load(size=half), downloads={"x": half}), settings, free=None)


def test_a_guess_is_from_above() -> None:
    for name in ("smollm2-135m", "qwen2.5-7b", "llama-3.1-8b"):
        model = catalog()[name]
        for method in ("F16", "Q2_K", "Q4_0", "Q4_K_M", "Q8_0"):
            planned = planned_size(model, None, method)
            assert planned is not None
            assert guessed_size(model.parameters or 0, method) > 0.98 * planned, (name, method)


def test_a_file_with_an_importance_matrix_is_planned_as_one() -> None:
    model = catalog()["llama-3.1-8b"]
    assert planned_size(model, None, "IQ2_XXS") is None
    assert planned_size(model, None, "IQ2_XXS+imatrix") is not None
    assert planned_size(model, None, "Q4_0+imatrix") != planned_size(model, None, "Q4_0")
    # How it is run is no matter of the file.
    assert planned_size(model, None, "Q4_0+kv-q8_0") == planned_size(model, None, "Q4_0")


class Options(Settings):
    """What a run is quoted by."""

    artifacts = None
    windows = 16
    rounds = 3
    threads = 2
    tasks = ()
    items = None


class Few(Options):
    """A run that asks few questions."""

    items = 10


def quoted(costs: Costs, cache: Path, *methods: str) -> Price:
    """Quote a model that is not on this machine."""
    model = catalog()["qwen2.5-14b"]
    cells = [Cell(model=model, method=name, reference=name == "F16") for name in methods]
    whole = toll.quote(Options(cache), cells, costs)
    assert whole is not None
    return whole


def test_weights_that_are_run_in_several_ways_are_made_and_kept_once(
    costs: Costs, tmp_path: Path
) -> None:
    plain = quoted(costs, tmp_path, "F16", "Q4_0")
    both = quoted(costs, tmp_path, "F16", "Q4_0", "Q4_0+kv-q8_0", "Q4_0+kv-q4_0")
    assert both.disk == plain.disk
    # Measuring takes its time for each, quantizing for one.
    alone = quoted(costs, tmp_path, "F16", "Q4_0", "Q4_0+kv-q8_0")
    assert both.seconds - alone.seconds == pytest.approx(alone.seconds - plain.seconds)
    made = quoted(costs, tmp_path, "F16", "Q4_0", "Q8_0").seconds - plain.seconds
    assert alone.seconds - plain.seconds < made
    # Other weights are another file.
    assert quoted(costs, tmp_path, "F16", "Q4_0", "Q4_0+imatrix").disk > 1.9 * plain.disk


def test_questions_take_their_time(costs: Costs, tmp_path: Path) -> None:
    cells = [Cell(model=catalog()["qwen2.5-14b"], method="Q4_0")]
    whole, few = (toll.quote(kind(tmp_path), cells, costs) for kind in (Options, Few))
    assert whole is not None
    assert few is not None
    (asked,) = sets_of(cells[0].model, Options(tmp_path))
    # Each takes about as long as 40 tokens do: two operations per weight and token.
    each = (whole.seconds - few.seconds) / (len(asked.items) - 10)
    assert each == pytest.approx(14.77e9 * 2 * 40 / (25e9 * 2), rel=0.01)


def test_the_source_with_another_cache_is_not_made(costs: Costs, tmp_path: Path) -> None:
    plain = quoted(costs, tmp_path, "F16", "Q4_0")
    other = quoted(costs, tmp_path, "F16", "F16+kv-q8_0", "Q4_0")
    assert (other.disk, other.download) == (plain.disk, plain.download)


def test_the_study_on_14b_is_priced_from_the_catalog_alone(costs: Costs, tmp_path: Path) -> None:
    model = catalog()["qwen2.5-14b"]
    methods = ("F16", "Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_0", "Q5_K_M", "Q8_0")
    cells = [Cell(model=model, method=name, reference=name == "F16") for name in methods]
    whole = toll.quote(Options(tmp_path), cells, costs)
    assert whole is not None
    assert whole.download == pytest.approx(29.5e9, rel=0.01)
    assert whole.disk == pytest.approx(67e9, rel=0.01)
    assert whole.memory == pytest.approx(32.5e9, rel=0.01)
    unknown = Cell(model=MODEL, method="Q4_0")
    assert toll.quote(Options(tmp_path), [unknown], costs) is None
