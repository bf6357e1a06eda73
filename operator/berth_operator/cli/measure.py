"""How fast is a worker, seen from outside?  Prefill alone, then decoding at each concurrency.

Every stream has a prompt of its own, random tokens that no cache has seen: the first, lone request of each prompt is
the measurement of prefill.  It also leaves the prompt in the worker's prefix cache, so that afterwards all streams of a
round start together, and decoding is measured only while every one of them decodes.

Prefill is what prompts take beyond what any step takes, whoever decodes in it as well: counted with every token, the
step would make a prompt of 68 tokens, on a core that takes 8 ms for a step, look a third slower than it is.  So a
prompt of one token is timed beside each long one.

Turns of a session bring few tokens behind many: with `new_tokens`, such turns are timed instead, by how much longer
they make the steps of a stream that decodes beside them.  That is what the planner counts with; and a prompt of one
token is no measure of so few: alone, after a pause, it took 2 ms longer than a stream's step, and 16 tokens took 3 ms
more than it where they lengthened a stream's step by 5.7.  Decoding is that of such turns, too: on some machines steps
take a tenth longer for a while after a prompt.

Rounds of the concurrencies take turns, so that a slow minute of the machine falls on all of them alike, and the median
round counts.  Answers are drawn at temperature 1: greedy ones repeat themselves, a worker that speculates guesses them,
and how fast it then looks is a property of the prompt.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from berth_operator.cli.generation import GenerationClient, GenerationError, Piece

_TOKENS = range(1000, 30000)
"""Ordinary tokens in every vocabulary of the Llama family (32,000 and up); special ones lie outside."""
_SHORTEST = 1
"""Tokens of a prompt that is a step and nothing else."""
_TURNS = 3
"""Of each prompt, each beside a stream, where turns are timed."""
_MOST_OF_A_PROMPT = 0.8
"""At most so much of a prompt's time is taken to be the step's: beyond it, the difference would be of noise."""
_BEFORE_A_TURN = 4
"""Tokens of a stream before a turn comes beside it; twice as many after it."""
_LEAST_CHUNK = 4
"""Tokens of a prompt that every step reads (the worker's `engine/scheduler.py`): so long the stream has to be."""
_SETTLED_SHARE = 0.25
"""A round counts when all streams decode together for at least this share of it."""
_FEWEST_ROUNDS = 3
"""Of each concurrency: fewer have no median that an outlier leaves alone."""
_REPEATS = 3
"""How often all is measured once more where the points contradict each other."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure."""

    model: str
    concurrency: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    requests: int
    """At least so many at each concurrency."""
    new_tokens: int = 0
    """That a turn brings: prefill is measured on so many behind a cached prompt; 0: on whole prompts, and where the
    worker runs one request at a time."""

    @property
    def context_tokens(self) -> int:
        """Mean context of a stream while it decodes."""
        return self.prompt_tokens + self.new_tokens + self.output_tokens // 2

    def rounds(self, concurrency: int) -> int:
        """How often that many streams are run together."""
        return max(math.ceil(self.requests / concurrency), _FEWEST_ROUNDS)

    @property
    def total_requests(self) -> int:
        """All requests, those of prefill included."""
        return (2 + 2 * _TURNS * bool(self.new_tokens)) * max(self.concurrency) + sum(
            c * self.rounds(c) for c in self.concurrency
        )


@dataclass(frozen=True, slots=True)
class DecodePoint:
    """Decoding at one concurrency."""

    concurrency: int
    context_tokens: int
    tokens_per_second: float
    """All streams together, in the median round."""
    gap_p50: float
    """Seconds between steps, each of which gives every stream its next tokens; likewise below."""
    gap_p99: float
    tokens: int
    """Tokens that the figures are from."""


@dataclass(frozen=True, slots=True)
class Measurements:
    """Everything one run found out."""

    first_token_p50: float
    """Seconds, one uncached prompt alone; likewise below."""
    first_token_p99: float
    prefill_tokens_per_second: float
    beside_a_stream: bool
    """Prefill was measured on turns, and not on whole prompts."""
    points: tuple[DecodePoint, ...]
    left_out: tuple[str, ...]
    """Concurrencies without a figure, and why."""


@dataclass(slots=True)
class _Trace:
    """One request as it went."""

    began: float
    prompt_tokens: int
    pieces: list[Piece] = field(default_factory=list)
    """Those that brought tokens."""
    cached_prompt_tokens: int = 0

    @property
    def first(self) -> float:
        return self.pieces[0].at

    @property
    def last(self) -> float:
        return self.pieces[-1].at


@dataclass(slots=True)
class _Prompts:
    """Lone prompts: until the first token, and how much of them was not cached."""

    seconds: list[float] = field(default_factory=list)
    read: list[int] = field(default_factory=list)

    def add(self, trace: _Trace) -> None:
        self.seconds.append(trace.first - trace.began)
        self.read.append(trace.prompt_tokens - trace.cached_prompt_tokens)

    def speed_beyond(self, step: _Prompts) -> float:
        """Tokens a second beyond those of prompts that are a step and nothing else; medians."""
        seconds, least = statistics.median(self.seconds), statistics.median(step.seconds)
        tokens, few = statistics.median(self.read), statistics.median(step.read)
        if tokens <= 2 * few:
            return tokens / seconds
        return (tokens - few) / max(seconds - least, (1 - _MOST_OF_A_PROMPT) * seconds)


@dataclass(slots=True)
class _Turns:
    """Turns, each beside a stream: by how much it lengthened the stream's steps, and how much of it was not cached."""

    together: list[float] = field(default_factory=list)
    """Seconds of all steps while it was there."""
    added: list[float] = field(default_factory=list)
    """Of them, beyond as many of the stream's other steps."""
    read: list[int] = field(default_factory=list)

    def add(self, turn: _Trace, stream: _Trace) -> None:
        """Counts unless the stream was over too early to say, as where the worker runs one request at a time."""
        inside: list[float] = []
        outside: list[float] = []
        for before, after in itertools.pairwise(stream.pieces):
            beside = after.at > turn.began and before.at < turn.first
            (inside if beside else outside).append(after.at - before.at)
        if turn.last < stream.last and len(outside) >= _BEFORE_A_TURN:
            self.together.append(sum(inside))
            self.added.append(sum(inside) - len(inside) * statistics.median(outside))
            self.read.append(turn.prompt_tokens - turn.cached_prompt_tokens)

    @property
    def speed(self) -> float | None:
        """Tokens a second; medians.  None: no turn counts."""
        if not self.read:
            return None
        least = (1 - _MOST_OF_A_PROMPT) * statistics.median(self.together)
        return statistics.median(self.read) / max(statistics.median(self.added), least)


@dataclass(slots=True)
class _Rounds:
    """All rounds of one concurrency."""

    speeds: list[float] = field(default_factory=list)
    """Tokens a second, of all streams together, in each round."""
    gaps: list[float] = field(default_factory=list)
    """Seconds between steps."""
    tokens: int = 0
    fault: str | None = None
    """Why there is no figure."""

    def point(self, concurrency: int, context_tokens: int) -> DecodePoint:
        return DecodePoint(
            concurrency=concurrency,
            context_tokens=context_tokens,
            tokens_per_second=statistics.median(self.speeds),
            gap_p50=statistics.median(self.gaps),
            gap_p99=percentile(self.gaps, 99),
            tokens=self.tokens,
        )


async def measure(
    client: GenerationClient,
    plan: Plan,
    tick: Callable[[str], None],
    contradicts: Callable[[Sequence[DecodePoint]], bool] = lambda _: False,
) -> Measurements:
    """Run every measurement of `plan`; `tick` is called after each request.

    `contradicts`: whether points cannot all be true; they are then measured on, a few times at most.  Raises
    GenerationError.
    """
    dice = random.Random()  # noqa: S311 - new prompts each time, so that no cache has seen them
    prompts = [dice.choices(_TOKENS, k=plan.prompt_tokens) for _ in range(max(plan.concurrency))]
    whole, step = _Prompts(), _Prompts()
    for prompt in prompts:
        step.add(await _run(client, plan.model, dice.choices(_TOKENS, k=_SHORTEST), 1, tick, "prefill"))
        whole.add(await _run(client, plan.model, prompt, 1, tick, "prefill"))
    turns = _Turns()
    if plan.new_tokens:
        for prompt, other in _TURNS * list(zip(prompts, prompts[1:] + prompts[:1], strict=True)):
            await _turn(client, plan, prompt + dice.choices(_TOKENS, k=plan.new_tokens), other, tick, turns)
    rounds = {concurrency: _Rounds() for concurrency in plan.concurrency}
    for _ in range(1 + _REPEATS):
        for number in range(max(map(plan.rounds, plan.concurrency))):
            for concurrency, of_one in rounds.items():
                if of_one.fault is None and number < plan.rounds(concurrency):
                    longer = [prompt + dice.choices(_TOKENS, k=plan.new_tokens) for prompt in prompts[:concurrency]]
                    await _decode(client, plan, longer, tick, of_one)
        points = [r.point(concurrency, plan.context_tokens) for concurrency, r in rounds.items() if r.fault is None]
        if not contradicts(points):
            break
    return Measurements(
        first_token_p50=statistics.median(whole.seconds),
        first_token_p99=percentile(whole.seconds, 99),
        prefill_tokens_per_second=turns.speed or whole.speed_beyond(step),
        beside_a_stream=turns.speed is not None,
        points=tuple(points),
        left_out=tuple(r.fault for r in rounds.values() if r.fault is not None),
    )


async def _turn(
    client: GenerationClient,
    plan: Plan,
    prompt: Sequence[int],
    other: Sequence[int],
    tick: Callable[[str], None],
    turns: _Turns,
) -> None:
    """One turn, of which a token comes, beside a stream that goes on from another prompt."""
    steps = 3 * _BEFORE_A_TURN + math.ceil(plan.new_tokens / _LEAST_CHUNK)
    runs = asyncio.Event()
    stream = asyncio.create_task(_run(client, plan.model, other, steps, tick, "turns", runs))
    stream.add_done_callback(lambda _: runs.set())  # one that fails says so below
    await runs.wait()
    turn = await _run(client, plan.model, prompt, 1, tick, "turns")
    turns.add(turn, await stream)


async def _decode(
    client: GenerationClient,
    plan: Plan,
    prompts: Sequence[Sequence[int]],
    tick: Callable[[str], None],
    rounds: _Rounds,
) -> None:
    """One round: a stream for each prompt, all together."""
    concurrency = len(prompts)
    name = f"decode x {concurrency}"
    runs = (_run(client, plan.model, prompt, plan.output_tokens, tick, name) for prompt in prompts)
    traces = await asyncio.gather(*runs)
    begin, end = max(t.first for t in traces), min(t.last for t in traces)
    whole = max(t.last for t in traces) - min(t.first for t in traces)
    inside = [[piece for piece in trace.pieces if begin <= piece.at <= end] for trace in traces]
    gaps = [after.at - before.at for pieces in inside for before, after in itertools.pairwise(pieces)]
    if end - begin < _SETTLED_SHARE * whole:
        rounds.fault = (
            f"concurrency {concurrency}: the {concurrency} streams hardly ever decoded together: the worker runs"
            " fewer at once (its --max-concurrency), or --output-tokens is too low"
        )
    elif not gaps:
        rounds.fault = f"concurrency {concurrency}: too few tokens to measure: raise --output-tokens"
    else:
        # each stream from one of its own tokens to another: the round begins and ends amid a step's tokens
        tokens = sum(piece.tokens for pieces in inside for piece in pieces[1:])
        rounds.speeds.append(concurrency * tokens / sum(gaps))
        steps = _steps(inside)
        rounds.gaps += [after - before for before, after in itertools.pairwise(steps)]
        rounds.tokens += tokens


def _steps(streams: Sequence[Sequence[Piece]]) -> list[float]:
    """When the first piece of each step came: a step ends for all streams at once, and gives each of them one piece.

    Pieces of a step come one after another, and not in the same order each time: how long one stream waited is also how
    long we were busy with the others.
    """
    starts: list[float] = []
    served: set[int] = set()
    for at, stream in sorted((piece.at, stream) for stream, pieces in enumerate(streams) for piece in pieces):
        if not starts or stream in served:
            starts.append(at)
            served.clear()
        served.add(stream)
    return starts


async def _run(
    client: GenerationClient,
    model: str,
    prompt: Sequence[int],
    output_tokens: int,
    tick: Callable[[str], None],
    name: str,
    runs: asyncio.Event | None = None,
) -> _Trace:
    """`runs`: set once `_BEFORE_A_TURN` pieces have come."""
    trace = _Trace(time.perf_counter(), len(prompt))
    async for piece in client.complete_tokens(prompt, model=model, output_tokens=output_tokens):
        trace.cached_prompt_tokens = piece.cached_prompt_tokens or 0
        if piece.tokens:
            trace.pieces.append(piece)
        if runs is not None and len(trace.pieces) >= _BEFORE_A_TURN:
            runs.set()
    if (found := sum(piece.tokens for piece in trace.pieces)) != output_tokens:
        raise GenerationError(f"asked for {output_tokens} tokens, got {found}: nothing can be measured with that")
    tick(name)
    return trace


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank: the least value that at least `percent` % of them do not exceed.  `values` must not be empty."""
    ranked = sorted(values)
    return ranked[max(math.ceil(len(ranked) * percent / 100) - 1, 0)]
