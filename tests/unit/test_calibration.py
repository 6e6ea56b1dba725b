"""Calibration: what samples of known noise say, and the file that keeps it."""

from __future__ import annotations

import math
import os
import random
import statistics

import msgspec
import pytest

from pytest_ondevice import calibration
from pytest_ondevice.calibration import (
    CAMPAIGNS,
    CAUGHT,
    TIMED,
    TOLERANCE,
    Calibration,
    Samples,
    add,
    calibrated,
    least_caught,
    lines,
    noise,
    read,
    scatter,
    slower,
    strays,
    upper_ends,
    write,
)
from pytest_ondevice.errors import BadFileError
from pytest_ondevice.judgement import ALPHA, judge
from pytest_ondevice.model.bound import Bound, Source
from pytest_ondevice.model.measurement import Measurement
from pytest_ondevice.model.verdict import Verdict
from pytest_ondevice.stats import median_interval
from pytest_ondevice.tier import Tier

WHERE = Tier("desk", {"cpu": "A", "threads": 2}), "one"
MIB = 2**20


def payload(speed=1.0, disturbed=()):
    """What a process of the speed stage says, so many times as fast as another."""
    return {
        "load": [2.0 / speed, 3.0 / speed],
        "ttft": [0.5 / speed],
        "prefill": [90.0 * speed, 100.0 * speed],
        "decode": [50.0 * speed, 40.0 * speed],
        "disturbed": list(disturbed),
    }


def taken(sigma, rounds=160, seed=1, drift=lambda _: 0.0, disturbed=()):
    """Rounds of processes that each stray by ``sigma`` in the logarithm."""
    chance = random.Random(seed)
    found = Samples(memory=[100.0 * MIB, 100.5 * MIB, 99.5 * MIB])
    for number in range(1, rounds + 1):
        why = ("steal",) if number in disturbed else ()
        speeds = [math.exp(drift(number) + chance.gauss(0, sigma)) for _ in range(2)]
        add(found, number, payload(speeds[0]), payload(speeds[1], why))
    return found


def of(found, rounds=8):
    return calibrated(found, rounds, WHERE, "m", "Q4_0")


def numbered(values):
    return dict(enumerate(values, 1))


# -- samples


def test_a_round_is_kept_with_who_came_first():
    found = Samples()
    add(found, 1, payload(1.0), payload(0.5))
    add(found, 2, payload(1.0), payload(0.5, ["steal"]))
    # The best of a process stands for it. In the second round the second one is the new one.
    speeds = [one["decode_speed"] for one in found.rounds]
    assert speeds == [pytest.approx((50, 25)), pytest.approx((25, 50))]
    assert found.rounds[0]["prefill_speed"] == pytest.approx((100, 50))
    assert found.rounds[0]["load_time"] == pytest.approx((2, 4))
    assert found.rounds[0]["ttft"] == pytest.approx((0.5, 1))
    assert found.disturbed == {2: ("steal",)}


def test_being_first_is_no_advantage():
    """Where the second process is always slower by 8 %, the medians of campaigns lie between."""
    found = Samples()
    for number in range(1, 161):
        add(found, number, payload(1.0), payload(0.92))
    made = of(found)
    assert made.false_alarms["decode_speed"] < 0.1
    one_sided = Samples()
    for number in range(1, 161, 2):
        add(one_sided, number, payload(0.92), payload(1.0))
    assert of(one_sided).false_alarms["decode_speed"] == 1.0


# -- figures


@pytest.mark.parametrize("sigma", [0.002, 0.01, 0.03])
def test_known_noise_is_found(sigma):
    made = of(taken(sigma))
    # Of the median of 8 normal values, by simulation: 0.41 standard deviations of one.
    for name in TIMED:
        assert made.noise[name] == pytest.approx(0.41 * sigma, rel=0.35)
    for name in "decode_ratio", "prefill_ratio":
        assert made.noise[name] == pytest.approx(0.41 * sigma * math.sqrt(2), rel=0.35)
    assert set(made.noise) == {*TIMED, "decode_ratio", "prefill_ratio", "peak_memory"}
    assert made.noise["peak_memory"] == pytest.approx(0.741 * MIB, rel=1e-3)


def test_the_noise_of_a_campaign_depends_on_its_rounds():
    found = taken(0.02)
    logs = numbered(math.log(one["decode_speed"][0]) for one in found.rounds)
    assert strays(logs, 3) > 1.3 * strays(logs, 12)
    assert strays(logs, 8) == of(found).noise["decode_speed"]


def test_what_changes_slowly_is_noise_of_a_figure_but_not_of_a_pair():
    """A clock that heat brings down by campaigns: rounds drawn at random would hide half of it."""
    made = of(taken(0.001, drift=lambda number: 0.05 * math.sin(number / 25)))
    assert made.noise["decode_speed"] > 0.03
    assert made.noise["decode_ratio"] < 0.001
    # Five real campaigns say something of their scatter, four do not.
    once = numbered(100.0 if number < 8 else 0.0 for number in range(40))
    assert strays(once, 8) == pytest.approx(statistics.stdev([100, 0, 0, 0, 0]))
    four = {number: value for number, value in once.items() if number <= 32}
    assert 0 < strays(four, 8) < 0.7 * statistics.stdev([100, 0, 0, 0])


def test_scatter_is_the_larger_of_two():
    assert scatter([1.0]) == 0
    assert scatter([1, 1, 1, 1, 1, 1, 9]) == pytest.approx(statistics.stdev([1] * 6 + [9]))
    clouds = [0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 2.0, 2.0, 2.0]
    assert scatter(clouds) == pytest.approx(1.4826)
    assert scatter(clouds) > statistics.stdev(clouds)


# -- the rule


def test_a_quiet_machine_raises_no_alarm():
    made = of(taken(0.01))
    assert max(made.false_alarms.values()) <= 0.002
    for name in TIMED:
        assert TOLERANCE < made.detectable[name] < 0.08


def test_a_noisy_machine_does():
    made = of(taken(0.15))
    for name in TIMED:
        assert 0.005 < made.false_alarms[name] < 0.1
        assert made.detectable[name] > 0.12


def test_no_slowdown_is_found_in_chaos_or_with_few_rounds():
    assert of(taken(1.0)).detectable["decode_speed"] is None
    few = of(taken(0.001, rounds=12), rounds=3)
    # With fewer than 5 rounds the rule never decides: it raises no alarm and finds nothing.
    assert set(few.false_alarms.values()) == {0.0}
    assert set(few.detectable.values()) == {None}


def test_the_rule_is_the_gates():
    """Every real campaign that the gate itself would fail is counted, and no other."""
    found = taken(0.1, rounds=80)
    for one in found.rounds:
        new, old = one["decode_speed"]
        one["decode_speed"] = 0.85 * new, old
    logs = numbered(math.log(new / old) for new, old in (o["decode_speed"] for o in found.rounds))
    failed = 0
    for start in range(0, 80, 8):
        pairs = [one["decode_speed"] for one in found.rounds[start : start + 8]]
        ids = tuple(f"round:{number}" for number in range(8))
        now = Measurement(
            quantity="decode_speed",
            value=1.0,
            unit="tokens/s",
            samples=tuple(new for new, _ in pairs),
            sample_ids=ids,
        )
        bound = Bound(
            source=Source.PREDECESSOR,
            detail="",
            center=1.0,
            absolute=TOLERANCE,
            higher_is_better=True,
            samples=tuple(old for _, old in pairs),
            sample_ids=ids,
        )
        failed += judge(now, bound).verdict is Verdict.FAIL
    real = [list(logs.values())[start : start + 8] for start in range(0, 80, 8)]
    ends = sorted(median_interval(one, ALPHA).upper for one in real)
    assert slower(ends) == failed
    assert 0 < failed < 10
    every = upper_ends(logs, 8)
    assert len(every) == CAMPAIGNS + 10
    assert set(ends) <= set(every)
    assert every == sorted(every)


@pytest.mark.parametrize("speed", [True, False])
def test_the_smallest_slowdown_is_the_smallest_that_is_caught(speed):
    """Slow every round of the samples down by it, and by a bit less, and count anew."""
    chance = random.Random(3)
    logs = numbered(chance.gauss(0, 0.03) for _ in range(80))
    least = least_caught(upper_ends(logs, 8), speed=speed)

    def caught(share):
        lost = -math.log(1 - share) if speed else math.log(1 + share)
        ends = upper_ends({number: value - lost for number, value in logs.items()}, 8)
        return sum(end < -TOLERANCE for end in ends) / len(ends)

    assert caught(least) >= CAUGHT > caught(least - 0.0011)


def test_times_are_slower_where_they_are_longer():
    found = Samples()
    for number in range(1, 41):
        slow, fast = payload(0.9), payload(1.0)
        add(found, number, *((slow, fast) if number % 2 else (fast, slow)))
    assert set(of(found).false_alarms.values()) == {1.0}
    better = Samples()
    for number in range(1, 41):
        slow, fast = payload(0.9), payload(1.0)
        add(better, number, *((fast, slow) if number % 2 else (slow, fast)))
    assert set(of(better).false_alarms.values()) == {0.0}


def test_disturbed_rounds_do_not_count():
    found = taken(0.001, rounds=80)
    for number in range(5, 80, 8):
        found.rounds[number - 1] = dict.fromkeys(TIMED, (1.0, 9.0))
        found.disturbed[number] = ("steal",)
    made = of(found)
    assert made.disturbed == tuple(range(5, 80, 8))
    assert max(made.noise[name] for name in TIMED) < 0.001
    assert made.runs == 10
    assert len(made.samples["ttft"]) == 160
    assert "disturbed" not in " ".join(lines(made))


def test_where_most_is_disturbed_all_counts_and_it_is_said():
    every = range(1, 41)
    made = of(taken(0.01, rounds=80, disturbed=every))
    assert made.noise == of(taken(0.01, rounds=80)).noise
    (said,) = [line for line in lines(made) if "disturbed" in line]
    assert said.startswith("40 of 80 rounds were disturbed: ")


def test_the_same_samples_say_the_same():
    logs, others = (
        numbered(one["ttft"][0] for one in taken(0.02, seed=seed).rounds) for seed in (1, 2)
    )
    assert strays(logs, 8) == strays(logs, 8) != strays(others, 8)
    assert upper_ends(logs, 8) == upper_ends(logs, 8)


def test_a_single_peak_has_no_noise():
    found = taken(0.01, rounds=8)
    found.memory = [5.0]
    assert "peak_memory" not in of(found).noise
    assert lines(of(found))[7].split() == ["peak_memory", "0.0", "MiB", "-", "-", "-", "-"]


# -- how long it takes


@pytest.mark.parametrize(
    ("seconds", "processes", "said"),
    [
        (None, 10, "about 50 s (a guess, no past runs here)"),
        (2.0, 10, "about 30 s (from past runs here)"),
        (2.0, 325, "about 16 min (from past runs here)"),
    ],
)
def test_how_long_it_takes_is_said_beforehand(tmp_path, seconds, processes, said):
    from types import SimpleNamespace as Plain

    from pytest_ondevice.storage.costs import Costs

    costs = Costs(tmp_path, "here")
    if seconds is not None:
        costs.add("speed", "Q4_0", 10**8, seconds)
    costs.add("memory", "Q4_0", 10**8, 70.0)
    file = Plain(account=Plain(n_weights=10**8))
    bench = Plain(costs=costs, settings=Plain(threads=2), artifact=lambda _: Plain(file=file))
    assert calibration.estimate(bench, Plain(method="Q4_0"), processes) == said


# -- in words


def test_in_words():
    made = of(taken(0.01))
    told = lines(made)
    assert told[:2] == [
        "m-Q4_0 against itself, 160 rounds, 20 campaigns of 8",
        "tier desk, board one",
    ]
    assert told[2].split() == [
        *("quantity", "typical", "noise", "paired", "false", "alarms", "caught", "from"),
    ]
    assert [line.split()[0] for line in told[3:8]] == [*TIMED, "peak_memory"]
    row = told[3].split()
    assert row[2] == "tokens/s"
    assert row[3:5] == [f"{made.noise['decode_speed'] * 100:.1f}", "%"]
    assert row[5:7] == [f"{made.noise['decode_ratio'] * 100:.1f}", "%"]
    assert row[7:9] == ["0.0", "%"]
    assert row[9:] == [f"{made.detectable['decode_speed'] * 100:.1f}", "%"]
    assert told[5].split()[5] == "-"
    assert told[7].split() == ["peak_memory", "100.0", "MiB", "0.74", "MiB", "-", "-", "-"]
    assert len({len(line) for line in told[2:8]}) == 1
    few = lines(of(taken(0.01, rounds=4), rounds=2))
    assert few[-1].startswith("4 rounds are too few to rely on")
    assert "over 50 %" in few[3]


# -- the file


@pytest.fixture(scope="module")
def made():
    return of(taken(0.01, rounds=16))


def test_a_calibration_is_read_as_it_was_written(made, tmp_path):
    file, copy = calibration.path(tmp_path, "desk"), tmp_path / "copy.json"
    assert file == tmp_path / "calibration" / "desk.json"
    assert read(file) is None
    assert noise(tmp_path, "desk") == {}
    write(made, file, copy)
    assert read(file) == made == read(copy)
    assert noise(tmp_path, "desk") == made.noise
    assert noise(tmp_path, "other") == {}
    assert [path.name for path in file.parent.iterdir()] == ["desk.json"]


def changed(made, **fields):
    content = msgspec.json.decode(msgspec.json.encode(made))
    for name, value in fields.items():
        if value is None:
            del content[name]
        else:
            content[name] = value
    return msgspec.json.encode(content)


BAD = {
    "empty": ({}, b"", "it is no calibration: Input data was truncated @ $"),
    "no JSON": ({}, b"{x", "it is no calibration: JSON is malformed"),
    "not UTF-8": ({}, b'{"schema": "\xff"}', "it is no calibration: "),
    "deep": ({}, b"[" * 100_000, "it is no calibration: "),
    "a list": ({}, b"[]", "it is no calibration: Expected `object`, got `array` @ $; remove"),
    "another's": ({}, b"{}", "it is no calibration: Object missing required field `schema` @ $;"),
    "later": (
        {"schema": 2, "noise": None},
        None,
        "calibration schema 2 @ $.schema; this version reads 1",
    ),
    "a part missing": ({"noise": None}, None, "Object missing required field `noise` @ $; remove"),
    "wrong type": (
        {"noise": {"ttft": "x"}},
        None,
        "Expected `float`, got `str` @ $.noise[...]; remove it",
    ),
    "negative": ({"noise": {"ttft": -1.0}}, None, "noise cannot be -1.0 @ $.noise.ttft; remove it"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_damaged_file_is_one_sentence(made, tmp_path, bad):
    fields, content, said = BAD[bad]
    file = calibration.path(tmp_path, "desk")
    file.parent.mkdir()
    file.write_bytes(changed(made, **fields) if content is None else content)
    for asked in (lambda: read(file), lambda: noise(tmp_path, "desk")):
        with pytest.raises(BadFileError) as caught:
            asked()
        assert str(caught.value).startswith(f"{file}: ")
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_folder_is_no_calibration(tmp_path):
    with pytest.raises(BadFileError, match="cannot read it: Is a directory"):
        read(tmp_path)


def test_every_field_is_documented():
    for name in msgspec.structs.fields(Calibration):
        assert f"        {name.name}: " in (Calibration.__doc__ or "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_what_cannot_be_written_is_one_sentence(made, tmp_path):
    from pytest_ondevice.errors import StorageError

    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="cannot write it"):
        write(made, calibration.path(tmp_path, "desk"))
