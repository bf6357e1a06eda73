"""What do agents see of a worker at a given rate?  Sessions come, think, and come back with more history: open loop."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import grpc.aio
from berth_worker.proto.berth.v1 import generation_pb2 as pb
from berth_worker.proto.berth.v1 import generation_pb2_grpc

__all__ = ["Agents", "Seen", "offer", "p99_interval"]

_TOKENS = range(1000, 30000)


@dataclass(frozen=True, slots=True)
class Agents:
    """Sessions that come at random, each of so many turns; tokens and seconds."""

    turns: int = 5
    system: int = 64
    """Of the prompt, the same for all."""
    new: int = 40
    """What a turn brings; nobody has it cached."""
    output: int = 20
    think: float = 0.5
    """Mean of an exponential distribution."""

    @property
    def uncached(self) -> float:
        """Tokens of a turn's prompt that are in no cache, on average: the last one that was answered, too, has not been
        through the model yet when the next turn comes."""
        return self.new + (self.turns - 1) / self.turns

    @property
    def prompt(self) -> int:
        """Mean of a session's prompts: each has all that was said before."""
        return round(self.system + self.new + (self.turns - 1) / 2 * (self.new + self.output))


@dataclass(slots=True)
class Seen:
    """Turns as their clients saw them; seconds."""

    rate: float
    """Turns/s that came."""
    began: float
    """On the monotonic clock: what came before does not count."""
    ended: float
    first_token: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)
    turn: list[float] = field(default_factory=list)
    cached: list[float] = field(default_factory=list)
    """Share of each prompt."""


async def offer(address: str, agents: Agents, rate: float, turns: int, seed: int) -> Seen:
    """About `turns` turns at `rate` a second, after sessions have been coming for a while."""
    dice = random.Random(seed)  # noqa: S311 - traffic, not secrets
    lead = 2 * agents.turns * (agents.think + 0.3)
    horizon = lead + turns / rate
    # given how many come, the times of a Poisson process are uniform: no run is heavier than another by chance
    starts = sorted(dice.uniform(0, horizon) for _ in range(round(horizon * rate / agents.turns)))
    system = dice.choices(_TOKENS, k=agents.system)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationStub(channel)  # type: ignore[no-untyped-call]
        began = time.monotonic()
        seen = Seen(0.0, began + lead, began + horizon)

        async def session(number: int, start: float) -> None:
            own = random.Random(f"{seed}/{number}")  # noqa: S311
            history = list(system)
            await asyncio.sleep(max(0.0, began + start - time.monotonic()))
            for turn in range(agents.turns):
                if turn:
                    await asyncio.sleep(own.expovariate(1 / agents.think))
                if time.monotonic() - began > horizon:
                    return
                history += own.choices(_TOKENS, k=agents.new)
                history += await _turn(stub, agents, history, f"{seed}/{number}", seen)

        await asyncio.gather(*itertools.starmap(session, enumerate(starts)))
    seen.rate = len(seen.turn) / (horizon - lead)
    return seen


async def _turn(
    stub: generation_pb2_grpc.GenerationStub, agents: Agents, prompt: Sequence[int], name: str, seen: Seen
) -> list[int]:
    sampling = pb.SamplingParams(max_tokens=agents.output, temperature=1.0, ignore_eos=True)
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt), sampling=sampling, session_id=name)
    tokens: list[int] = []
    times: list[float] = []
    cached = 0
    begin = time.monotonic()
    async for part in stub.Generate(request, timeout=600):
        if part.token_ids:
            times.append(time.monotonic())
            tokens += part.token_ids
        cached = part.usage.cached_prompt_tokens or cached
    if begin >= seen.began:
        seen.first_token.append(times[0] - begin)
        seen.turn.append(times[-1] - begin)
        seen.gap += [after - before for before, after in itertools.pairwise(times)]
        seen.cached.append(cached / len(prompt))
    return tokens


def p99_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % confidence by ranks (binomial); turns of one busy moment are alike, so that it is rather wider."""
    ranked, middle = sorted(values), len(values) * 0.99
    half = 1.96 * math.sqrt(len(values) * 0.99 * 0.01)
    low, high = math.floor(middle - half) - 1, math.ceil(middle + half) - 1
    return ranked[max(low, 0)], ranked[min(high, len(ranked) - 1)]
