"""How much sooner choices are scored together than each option by itself.

    python benchmarks/choice_throughput.py MODEL.gguf [--items N] [--rounds N] [--threads N]

Makes items of four options from a fixed vocabulary, a prompt of about 48 tokens each and about 6
for an option. Scores them as the tasks stage does, and from scratch: each option in a context of
one sequence, the prompt evaluated again. Both by turns, several times; the model stays loaded. On a
machine that does other work as well, the ratio by processor time is the better one.
Target: at least twice the items per second on one thread.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

from pytest_ondevice.model.task import Form, Item, Option
from pytest_ondevice.probe import tasks
from pytest_ondevice.probe.engines import llama_cpp as engine
from pytest_ondevice.probe.protocol import Execution, TasksPlan

WORDS = (
    "the a of and to in house river stone light garden winter number paper engine window bread"
    " teacher morning water letter small green heavy quiet early walks holds keeps finds under"
    " over near with from after before"
)


def main() -> None:
    """Time both by turns, and print the ratio of each turn."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--items", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    items = made(chosen.items)
    plan = TasksPlan(items=items, execution=Execution(threads=chosen.threads))
    engine.start()
    ratios, by_cpu = [], []
    with engine.load(chosen.model, plan.execution) as model:
        scratch(model, plan)  # the first call pays for pages that nobody has touched yet
        for turn in range(chosen.rounds):
            begin, cpu = time.perf_counter(), time.process_time()
            payload = tasks.ask(engine, model, plan, lambda done, total: None)
            middle, cpu_middle = time.perf_counter(), time.process_time()
            alone = scratch(model, plan)
            end, cpu_end = time.perf_counter(), time.process_time()
            batched, single = len(items) / (middle - begin), len(items) / (end - middle)
            ratios.append(batched / single)
            by_cpu.append((cpu_end - cpu_middle) / (cpu_middle - cpu))
            print(
                f"{turn + 1}: together {batched:.2f} items/s, from scratch {single:.2f} items/s,"
                f" ratio {ratios[-1]:.2f} (by processor time {by_cpu[-1]:.2f});"
                f" {payload['evaluated']} tokens for {payload['scratch']}"
            )
        answers = payload["answers"]
    together = [tuple(answer["logliks"]) for answer in answers]
    far = [abs(a - b) for one, other in zip(together, alone, strict=True)
           for a, b in zip(one, other, strict=True)]  # fmt: skip
    agree = sum(best(one) == best(other) for one, other in zip(together, alone, strict=True))
    print(
        f"ratio: median {statistics.median(ratios):.2f}, by processor time"
        f" {statistics.median(by_cpu):.2f}"
    )
    print(
        f"log-likelihoods differ by {statistics.mean(far):.3f} nats in the mean, {max(far):.3f} at"
        f" most; {agree} of {len(items)} items have the same likeliest option"
    )


def made(count: int) -> tuple[Item, ...]:
    """Make items; the same count gives the same items."""
    rng = random.Random(count)
    known = WORDS.split()

    def words(number: int) -> str:
        return "".join(f" {rng.choice(known)}" for _ in range(number))

    return tuple(
        Item(
            id=str(i),
            form=Form.CHOICE,
            prompt=f"Question:{words(42)}?\nAnswer:",
            options=tuple(Option(words(6)) for _ in range(4)),
            right=(0,),
        )
        for i in range(count)
    )


def scratch(model: engine.Model, plan: TasksPlan) -> list[tuple[float, ...]]:
    """Score every option by itself."""
    found = []
    with engine.context(model, plan.execution) as ctx:
        for item in plan.items:
            own = []
            for path in tasks.encoded(model, item):
                ctx.clear()
                ctx.feed(path.tokens, 0, logits_from=path.first)
                rows = ctx.logits(len(path.targets))
                pairs = zip(rows, path.targets, strict=True)
                own.append(sum(tasks.log_p(row, [target])[0] for row, target in pairs))
            found.append(tuple(own))
    return found


def best(logliks: tuple[float, ...]) -> int:
    return max(range(len(logliks)), key=logliks.__getitem__)


if __name__ == "__main__":
    main()
