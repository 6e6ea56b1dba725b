"""Questions with known answers: log-likelihoods of options, and what greedy decoding says.

Options are cut into tokens as lm-evaluation-harness does it, so that figures can be compared. What
options, and items, have in common at their beginning is evaluated once. What is evaluated together
is settled beforehand and depends on the items and the plan only: a logit's last digits depend on
what else is in the cache, and would otherwise differ between two runs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from ..model.task import Answer, Form
from .reference import TextError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from ..model.task import Item
    from .protocol import TasksPlan

    Row = NDArray[np.float32]

CELLS = 8192
"""Answers are generated together as long as their tokens fit here; a longer item goes alone."""

TOGETHER = 16
"""Answers that are generated together, at most: more gain little, and all wait for the longest."""

_TRUNK = 0
"""The sequence that keeps what the next round begins with."""

_CELL_STEP = 256
"""llama.cpp makes its cache in such steps; asked for as it is made."""


@dataclass(frozen=True, slots=True)
class Path:
    """Tokens to feed from position 0 on, and those expected after the last of them.

    Attributes:
        tokens: What is fed.
        targets: What is scored: the last of them after the last token, each before it one position
            earlier. None for a prompt: its answer begins after its last token.
    """

    tokens: tuple[int, ...]
    targets: tuple[int, ...] = ()

    @property
    def first(self) -> int:
        """The first position whose logits are wanted; they are from there to the end."""
        return len(self.tokens) - max(len(self.targets), 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Paths that are evaluated together: their tokens, each once where paths share it.

    Attributes:
        kept: Tokens it begins with, already evaluated: the first of the last round's last sequence.
        trunk: The tokens of its own last sequence.
        tokens: The tokens to feed, those of a path in order.
        positions: The position of each.
        owners: The sequences of each, from 1 on.
        wanted: By token whose logits are wanted: for which path, and for which of its targets.
        starts: By sequence, from 1 on: how many of the kept tokens it begins with.
        cells: Tokens that are in the cache in the end.
        paths: The paths, by number.
        sequences: By path, the sequence that ends with it, if there is one.
    """

    kept: int
    trunk: tuple[int, ...]
    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    owners: tuple[tuple[int, ...], ...]
    wanted: dict[int, tuple[tuple[int, int], ...]]
    starts: tuple[int, ...]
    cells: int
    paths: tuple[int, ...]
    sequences: dict[int, int]


class _Tree:
    """A round in the making: paths as branches that grow out of a trunk."""

    def __init__(self, trunk: tuple[int, ...] = ()) -> None:
        self._trunk = trunk
        self._tokens: list[int] = []
        self._positions: list[int] = []
        # Of a token, or of -1 - n for the place after n tokens of the trunk.
        self._children: dict[tuple[int, int], int] = {}
        self._inner: set[int] = set()
        self._paths: dict[int, Path] = {}
        self._ways: dict[int, tuple[int, list[int]]] = {}
        self.more = 0

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def fresh(self) -> int:
        """Tokens to be evaluated."""
        return len(self._tokens)

    @property
    def leaves(self) -> int:
        """Sequences that are needed."""
        return len(self._tokens) - len(self._inner)

    @property
    def kept(self) -> int:
        """Tokens of the trunk that are needed."""
        return max((start for start, _ in self._ways.values()), default=0)

    def _walk(self, path: Path) -> tuple[int, list[int]]:
        """Find what is there of a path: tokens of the trunk, and tokens of other paths."""
        # What logits are wanted of has to be fed, even if it is in the cache.
        start = min(_common(self._trunk, path.tokens), path.first)
        parent, way = -1 - start, []
        for token in path.tokens[start:]:
            child = self._children.get((parent, token))
            if child is None:
                break
            way.append(child)
            parent = child
        return start, way

    def growth(self, path: Path) -> tuple[int, int, int]:
        """Say what a path would add: tokens to evaluate, sequences, tokens of the trunk."""
        start, way = self._walk(path)
        fresh = len(path.tokens) - start - len(way)
        branches = fresh > 0 and (not way or way[-1] in self._inner)
        return fresh, int(branches), max(0, start - self.kept)

    def add(self, number: int, path: Path, more: int = 0) -> None:
        """Add a path; ``more`` tokens will follow it later."""
        start, way = self._walk(path)
        for position in range(start + len(way), len(path.tokens)):
            parent = way[-1] if way else -1 - start
            if way:
                self._inner.add(parent)
            self._children[parent, path.tokens[position]] = len(self._tokens)
            way.append(len(self._tokens))
            self._tokens.append(path.tokens[position])
            self._positions.append(position)
        self._paths[number] = path
        self._ways[number] = start, way
        self.more += more

    def close(self) -> Round:
        """Give sequences their numbers. A path that will be continued has one of its own."""
        owners: list[list[int]] = [[] for _ in self._tokens]
        wanted: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        starts: list[int] = []
        sequences: dict[int, int] = {}
        trunk: tuple[int, ...] = ()
        for number, (start, way) in self._ways.items():
            path = self._paths[number]
            count = max(len(path.targets), 1)
            for place, node in enumerate(way[-count:]):
                wanted[node].append((number, place))
            if not path.targets or (way[-1] not in self._inner and not owners[way[-1]]):
                starts.append(start)
                sequences[number] = len(starts)
                trunk = path.tokens
                for node in way:
                    owners[node].append(len(starts))
        return Round(
            kept=self.kept,
            trunk=trunk,
            tokens=tuple(self._tokens),
            positions=tuple(self._positions),
            owners=tuple(map(tuple, owners)),
            wanted={node: tuple(wanted[node]) for node in sorted(wanted)},
            starts=tuple(starts),
            cells=self.kept + self.fresh + self.more,
            paths=tuple(self._ways),
            sequences=sequences,
        )


def measure(
    engine: Any, path: str, plan: TasksPlan, tick: Callable[[float, float], None]
) -> dict[str, object]:
    """Ask one artifact every question.

    Returns:
        ``ids`` of the items, ``answers`` (``model.task.Answer``, as builtins), ``nonfinite``
        (logits that are not, where one was wanted), ``evaluated`` (tokens), and ``scratch``
        (tokens that would have been evaluated, had every option been evaluated by itself).

    Raises:
        TextError: An item is too long for the model, or there is nothing in it to score.
    """
    total = len(plan.items)
    with engine.load(path, plan.execution, alive=lambda _: tick(0, total)) as model:
        return ask(engine, model, plan, tick)


def ask(
    engine: Any, model: Any, plan: TasksPlan, tick: Callable[[float, float], None]
) -> dict[str, object]:
    """Ask a model that is loaded; as ``measure``."""
    paths: list[Path] = []
    places: list[range] = []
    for item in plan.items:
        own = encoded(model, item)
        places.append(range(len(paths), len(paths) + len(own)))
        paths += own
    asked = _Asking(model, plan, paths, places, tick)
    scored, prompts = asked.rounds()
    cells = max((one.cells for one in (*scored, *prompts)), default=1)
    execution = msgspec.structs.replace(
        plan.execution, n_ctx=-(-cells // _CELL_STEP) * _CELL_STEP, n_ubatch=plan.batch
    )
    with engine.context(model, execution, sequences=1 + asked.sequences) as ctx:
        asked.score(ctx, scored)
        asked.generate(ctx, prompts)
    return {
        "ids": [item.id for item in plan.items],
        "answers": [msgspec.to_builtins(answer) for answer in asked.answers()],
        "nonfinite": asked.nonfinite,
        "evaluated": asked.evaluated,
        "scratch": sum(len(path.tokens) for path in paths) + asked.continued,
    }


def encoded(model: Any, item: Item) -> list[Path]:
    """Cut an item into tokens: a path for each option, or one for the prompt of ``exact``.

    As lm-evaluation-harness does it: blanks at the end of what is given belong to what is scored;
    the tokens of both together, less as many as those of what is given, are scored. Where nothing
    is given, BOS is; where the model has none, the first token is not scored.

    Raises:
        TextError: It is too long for the model, or there is nothing to score.
    """
    if item.form is Form.EXACT:
        prompt = _begin(model, item.prompt) + model.tokenize(item.prompt, special=False)
        if not prompt:
            raise TextError(
                f"item {item.id!r}: its prompt is empty, and the model has no BOS token"
            )
        _fits(model, item, "its prompt and its answer", len(prompt) + item.most)
        return [Path(tuple(prompt))]
    given: dict[str, list[int]] = {}
    paths = []
    for place, option in enumerate(item.options):
        context = item.prompt + option.lead
        if option.lead not in given:
            given[option.lead] = model.tokenize(context.rstrip(), special=False)
        before = given[option.lead]
        scored = model.tokenize(context + option.text, special=False)[len(before) :]
        whole = _begin(model, context.rstrip()) + before + scored
        if len(whole) == len(scored):
            scored = scored[1:]
        if not scored:
            raise TextError(
                f"item {item.id!r}: $.options[{place}] has no token after those of the prompt;"
                " there is nothing of it to score"
            )
        _fits(model, item, f"its prompt and $.options[{place}]", len(whole) - 1)
        paths.append(Path(tuple(whole[:-1]), tuple(scored)))
    return paths


def _begin(model: Any, given: str) -> list[int]:
    """Return BOS, where the model wants it or nothing else is given."""
    return [model.bos] if model.adds_bos or (not given and model.bos >= 0) else []


def _fits(model: Any, item: Item, what: str, tokens: int) -> None:
    if tokens > model.n_ctx_train:
        raise TextError(
            f"item {item.id!r}: {what} are {tokens} tokens; the model takes {model.n_ctx_train}"
            " at most"
        )


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the tokens at the beginning that two runs of tokens have in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def log_p(row: Row, targets: Sequence[int]) -> list[float]:
    """Return the log-probabilities (nats) of some tokens, from logits in float32."""
    most = row.max()
    total = float(most) + math.log(float(np.exp(row - most).sum(dtype=np.float64)))
    return [float(row[target]) - total for target in targets]


@dataclass(slots=True)
class _Score:
    """What is known of a path so far."""

    loglik: float = 0.0
    finite: bool = True
    greedy: bool = True


@dataclass(slots=True)
class _Generation:
    """An answer in the making."""

    item: Item
    position: int
    made: list[int] = field(default_factory=list)
    text: str = ""
    ended: bool = False
    finite: bool = True


class _Asking:
    """All items on their way through one context."""

    def __init__(
        self,
        model: Any,
        plan: TasksPlan,
        paths: Sequence[Path],
        places: Sequence[range],
        tick: Callable[[float, float], None],
    ) -> None:
        self._model = model
        self._plan = plan
        self._paths = paths
        self._places = places
        self._tick = tick
        self._item_of = [number for number, own in enumerate(places) for _ in own]
        self._left = [len(own) for own in places]
        self._scores = [_Score() for _ in paths]
        self._generated: dict[int, _Generation] = {}
        self._before: Round | None = None
        self.sequences = max(1, plan.sequences) if model.forks else 1
        self.nonfinite = 0
        self.evaluated = 0
        self.continued = 0

    def rounds(self) -> tuple[list[Round], list[Round]]:
        """Settle what is evaluated together: options, and prompts of answers to generate."""
        exact = [self._plan.items[number].form is Form.EXACT for number in self._item_of]
        scored = self._packed([i for i, it in enumerate(exact) if not it], self._has_room, ())
        last = scored[-1].trunk if scored else ()
        return scored, self._packed([i for i, it in enumerate(exact) if it], self._may_join, last)

    def _packed(
        self,
        numbers: Sequence[int],
        fits: Callable[[_Tree, int], bool],
        trunk: tuple[int, ...],
    ) -> list[Round]:
        forks = self._model.forks
        made: list[Round] = []
        tree = _Tree(trunk if forks else ())
        for number in numbers:
            if len(tree) and not (forks and fits(tree, number)):
                made.append(tree.close())
                tree = _Tree(made[-1].trunk if forks else ())
            tree.add(number, self._paths[number], self._most(number))
        return [*made, tree.close()] if len(tree) else made

    def _most(self, number: int) -> int:
        """Tokens that may follow a path; 0 where nothing is generated."""
        return self._plan.items[self._item_of[number]].most if self._is_prompt(number) else 0

    def _is_prompt(self, number: int) -> bool:
        return not self._paths[number].targets

    def _has_room(self, tree: _Tree, number: int) -> bool:
        """Whether an option can join: no further decode, and sequences enough."""
        fresh, branches, _ = tree.growth(self._paths[number])
        batch = self._plan.batch
        return (
            -(-(tree.fresh + fresh) // batch) <= -(-tree.fresh // batch)
            and tree.leaves + branches <= self.sequences
        )

    def _may_join(self, tree: _Tree, number: int) -> bool:
        """Whether an answer can be generated together with others."""
        fresh, _, trunk = tree.growth(self._paths[number])
        cells = tree.kept + trunk + tree.fresh + fresh + tree.more + self._most(number)
        together = min(TOGETHER, self.sequences, self._plan.batch)
        return len(tree) < together and cells <= min(CELLS, self._model.n_ctx_train)

    def score(self, ctx: Any, rounds: Sequence[Round]) -> None:
        """Score the options."""
        for one in rounds:
            for node, row in self._fed(ctx, one):
                wanted = one.wanted[node]
                targets = [self._paths[number].targets[place] for number, place in wanted]
                finite = self._finite(row)
                best = int(row.argmax())
                found = log_p(row, targets) if finite else [math.nan] * len(targets)
                for (number, _), target, value in zip(wanted, targets, found, strict=True):
                    score = self._scores[number]
                    score.loglik += value
                    score.finite &= finite
                    score.greedy &= finite and best == target
            for number in one.paths:
                self._left[self._item_of[number]] -= 1
            self._alive()

    def generate(self, ctx: Any, rounds: Sequence[Round]) -> None:
        """Generate the answers, greedily."""
        for one in rounds:
            live: dict[int, _Generation] = {}
            for number, sequence in one.sequences.items():
                item = self._plan.items[self._item_of[number]]
                live[sequence] = _Generation(item, len(self._paths[number].tokens))
            answers = dict(live)
            for node, row in self._fed(ctx, one):
                best = int(row.argmax()) if self._finite(row) else None
                for number, _ in one.wanted[node]:
                    self._take(answers[one.sequences[number]], best)
            while live := {number: each for number, each in live.items() if not each.ended}:
                rows = ctx.feed_many(
                    [each.made[-1] for each in live.values()],
                    [each.position + len(each.made) - 1 for each in live.values()],
                    [(sequence,) for sequence in live],
                    [True] * len(live),
                )
                self.evaluated += len(live)
                self.continued += len(live)
                for each, row in zip(live.values(), rows, strict=True):
                    self._take(each, int(row.argmax()) if self._finite(row) else None)
                self._alive()
            for number, sequence in one.sequences.items():
                self._generated[self._item_of[number]] = answers[sequence]
                self._left[self._item_of[number]] -= 1
            self._alive()

    def _take(self, answer: _Generation, token: int | None) -> None:
        """Let an answer go on with a token, or end: None where the model told none."""
        item = answer.item
        answer.finite &= token is not None
        if token is None or len(answer.made) >= item.most or self._model.ends(token):
            answer.ended = True
            return
        answer.made.append(token)
        answer.text = self._model.text(answer.made)
        found = [place for stop in item.stop if (place := answer.text.find(stop)) >= 0]
        if found:
            answer.text = answer.text[: min(found)]
        answer.ended = bool(found) or len(answer.made) == item.most

    def _fed(self, ctx: Any, one: Round) -> Iterator[tuple[int, Row]]:
        """Evaluate a round; yields tokens, by their place in it, and the logits after them."""
        self._settle(ctx, one)
        for begin in range(0, len(one.tokens), self._plan.batch):
            end = min(begin + self._plan.batch, len(one.tokens))
            wants = [node in one.wanted for node in range(begin, end)]
            part = slice(begin, end)
            rows = ctx.feed_many(one.tokens[part], one.positions[part], one.owners[part], wants)
            self.evaluated += end - begin
            nodes = [begin + i for i, wanted in enumerate(wants) if wanted]
            yield from zip(nodes, rows, strict=True)
            self._alive()

    def _settle(self, ctx: Any, one: Round) -> None:
        """Leave in the cache what a round begins with, and nothing else."""
        before, self._before = self._before, one
        if not one.kept or before is None:
            ctx.clear()
            return
        ctx.forget(_TRUNK)
        ctx.copy(len(before.starts), _TRUNK, one.kept)
        for sequence in range(1, len(before.starts) + 1):
            ctx.forget(sequence)
        for sequence, start in enumerate(one.starts, start=1):
            if start:
                ctx.copy(_TRUNK, sequence, start)

    def _finite(self, row: Row) -> bool:
        if np.isfinite(row.sum()):
            return True
        self.nonfinite += int((~np.isfinite(row)).sum())
        return False

    def _alive(self) -> None:
        self._tick(sum(left <= 0 for left in self._left), len(self._left))

    def answers(self) -> Iterator[Answer]:
        """Return the answers, in the order of the items."""
        for number, (item, own) in enumerate(zip(self._plan.items, self._places, strict=True)):
            if item.form is Form.EXACT:
                made = self._generated[number]
                yield Answer(text=made.text, finite=made.finite)
                continue
            scores = [self._scores[path] for path in own]
            yield Answer(
                logliks=tuple(score.loglik if score.finite else None for score in scores),
                tokens=tuple(len(self._paths[path].targets) for path in own),
                greedy=item.form is Form.CLOZE and all(score.greedy for score in scores),
            )
