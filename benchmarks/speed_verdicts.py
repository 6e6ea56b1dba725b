"""How often does the gate call a model slower than itself, and how often does it see a slowdown?

Usage: python benchmarks/speed_verdicts.py ARTIFACT [--campaigns 20] [--slower 0.1] [--threads 1]
       [--short] [--save FILE]

Each campaign is a real one: rounds of fresh processes, in every round the artifact three times, in
reversed order every second round. One of the three is the predecessor; one is the same artifact
once more, so that anything that is found of it is a false alarm; of the third every decoded token
takes the given share longer, by the hook of the probe that exists for this. The verdict is the
gate's own, with its second look where the first does not pass. ``--short`` leaves out what the
decode speed does not depend on. Interrupt it at will: what was measured is printed, and with
--save a later call goes on where this one stopped.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pytest_ondevice.api import rounds_to_take
from pytest_ondevice.figures import of_speed
from pytest_ondevice.judgement import succeed
from pytest_ondevice.measure import BINDING_ROUNDS
from pytest_ondevice.model.bound import Bound, Source
from pytest_ondevice.model.change import Finding
from pytest_ondevice.probe import runner
from pytest_ondevice.probe.protocol import Execution, MeasureJob, SpeedPlan
from pytest_ondevice.probe.speed import SLOWER

WHO = ("before", "same", "slowed")
TOLERANCE = 0.05
if TYPE_CHECKING:
    from pytest_ondevice.model.measurement import Measurement

Rounds = dict[str, dict[str, object]]


def time_once(artifact: Path, plan: SpeedPlan, slower: float) -> dict[str, object]:
    """Time one fresh process, slowed down or not; once more where it was disturbed."""
    os.environ[SLOWER] = f"{slower}@{artifact}" if slower else ""
    payload: dict[str, object] = {}
    for _ in range(2):
        result = runner.run(MeasureJob(artifact=str(artifact), speed=plan), timeout=300)
        payload = result.payloads["speed"]
        if not payload["disturbed"]:
            break
    return payload


def figure(rounds: Rounds, last: int) -> Measurement:
    """The decode speed of the first so many rounds, as the gate makes it."""
    taken = dict(list(rounds.items())[:last])
    return of_speed("decode_speed", taken, {}, binding=BINDING_ROUNDS)


def verdict(now: Rounds, then: Rounds, last: int, alpha: float) -> tuple[Finding, str]:
    """What the gate says of the first so many rounds."""
    ours, theirs = figure(now, last), figure(then, last)
    if ours.disturbed or theirs.disturbed:
        return Finding.UNDECIDED, f"invalid: {(ours.disturbed or theirs.disturbed)[0]}"
    bound = Bound(
        source=Source.PREDECESSOR,
        center=theirs.value,
        absolute=TOLERANCE,
        higher_is_better=True,
        samples=theirs.samples,
        sample_ids=theirs.sample_ids,
    )
    change = succeed(ours, theirs, bound, alpha)
    return change.finding, change.evidence


def campaign(artifact: Path, plan: SpeedPlan, slower: float) -> dict[str, object]:
    """One campaign of both pairs, to the gate's last look where one of them needs it."""
    rounds: dict[str, Rounds] = {who: {} for who in WHO}
    said: dict[str, tuple[Finding, str, int]] = {}
    for last, alpha in rounds_to_take(BINDING_ROUNDS):
        open_ones = [who for who in WHO[1:] if who not in said]
        if not open_ones:
            break
        for place in range(len(rounds["before"]), last):
            order = [who for who in WHO if who == "before" or who in open_ones]
            for who in reversed(order) if place % 2 else order:
                share = slower if who == "slowed" else 0.0
                rounds[who][f"round:{place + 1}"] = time_once(artifact, plan, share)
        for who in open_ones:
            finding, evidence = verdict(rounds[who], rounds["before"], last, alpha)
            final = last == 2 * BINDING_ROUNDS
            if final or finding not in {Finding.WORSE, Finding.UNDECIDED}:
                said[who] = (finding, evidence, last)
    clean = sum(not one["disturbed"] for of in rounds.values() for one in of.values())
    return {
        "said": {who: [str(one[0]), one[1], one[2]] for who, one in said.items()},
        "clean": clean,
        "processes": sum(len(of) for of in rounds.values()),
    }


def main() -> None:
    """Run campaigns and print what the gate said of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--campaigns", type=int, default=20)
    parser.add_argument("--slower", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--save", type=Path)
    given = parser.parse_args()
    plan = SpeedPlan(execution=Execution(n_ctx=1024, threads=given.threads))
    if given.short:
        plan = msgspec.structs.replace(
            plan, prefill=16, prefill_long=16, most_warm_ups=1, cold=False
        )
    found: list[dict[str, object]] = []
    if given.save and given.save.exists():
        found = json.loads(given.save.read_text("utf-8"))
    try:
        while len(found) < given.campaigns:
            found.append(campaign(given.artifact, plan, given.slower))
            print(len(found), json.dumps(found[-1]), flush=True)
            if given.save:
                given.save.write_text(json.dumps(found), "utf-8")
    except KeyboardInterrupt:
        print("interrupted")
    for who in WHO[1:]:
        said = [one["said"][who] for one in found]  # type: ignore[index]
        counted = {
            kind: sum(one[0] == kind for one in said) for kind in sorted({s[0] for s in said})
        }
        print(f"{who}: {len(said)} campaigns: {counted}")


if __name__ == "__main__":
    main()
