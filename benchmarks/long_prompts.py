"""What do agents' turns wait when others send long prompts, and what do the long prompts pay for it?

Agents hold histories that are cached and bring a few new tokens each turn, then think; meanwhile prompts of 3,000 new
tokens come at random. The same traffic is served with prompts read by turns (`engine/turns.py`), as the worker does,
and in order of arrival, as vLLM does by default; rounds of both in turn, in one engine. Speculation is off.

    python benchmarks/long_prompts.py [--quick] [--json FILE] [--threads N]
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from dataclasses import dataclass, field

from _common import Report, options, p99, progress
from berth_worker.engine.engine import Engine
from berth_worker.engine.request import SamplingParams
from berth_worker.engine.turns import Turns
from ours import embedded_engine

AGENTS, HISTORY, NEW, ANSWER, THINK = 4, 2000, 60, 40, 1.0
LONG, LONG_ANSWER, LONG_EVERY = 3000, 16, 3.0
"""Tokens of a long prompt and of its answer; seconds between two on average."""
CONTEXT = 8192


class ByArrival(Turns):
    """The order of most servers."""

    def enter(self, tokens: int) -> float:
        del tokens
        return 0.0


@dataclass
class Waits:
    """Seconds from a request to its first token."""

    turns: list[float] = field(default_factory=list)
    long: list[float] = field(default_factory=list)


class Traffic:
    """What is sent, and when: the times of a round are the same for both orders, the tokens never."""

    def __init__(self, vocabulary: int, number: int) -> None:
        self._vocabulary = vocabulary
        self._number = number
        self._tokens = random.Random()  # noqa: S311 - traffic, not secrets

    def tokens(self, count: int) -> list[int]:
        """So many that nobody has sent before."""
        return [self._tokens.randrange(self._vocabulary) for _ in range(count)]

    def dice(self, whose: str) -> random.Random:
        """For somebody's times."""
        return random.Random(f"{self._number} {whose}")  # noqa: S311 - traffic, not secrets


async def ask(engine: Engine, prompt: list[int], answer: int, waits: list[float]) -> list[int]:
    """The answer's tokens; what the first one took is added to waits."""
    began = time.perf_counter()
    tokens: list[int] = []
    async for chunk in engine.submit(prompt, SamplingParams(max_tokens=answer, temperature=0.0, ignore_eos=True)):
        if chunk.token_ids and not tokens:
            waits.append(time.perf_counter() - began)
        tokens += chunk.token_ids
    return tokens


async def agent(
    engine: Engine, traffic: Traffic, history: list[int], number: int, until: float, waits: list[float]
) -> None:
    """Turns of one agent until it is time, each a while after the last was answered."""
    dice = traffic.dice(f"agent {number}")
    while time.perf_counter() < until:
        await asyncio.sleep(dice.expovariate(1 / THINK))
        history += traffic.tokens(NEW)
        history += await ask(engine, history, ANSWER, waits)


async def long_prompts(engine: Engine, traffic: Traffic, until: float, waits: list[float]) -> None:
    """Long prompts until it is time, whether or not those before are answered."""
    dice = traffic.dice("long prompts")
    async with asyncio.TaskGroup() as tasks:
        while time.perf_counter() < until:
            await asyncio.sleep(dice.expovariate(1 / LONG_EVERY))
            tasks.create_task(ask(engine, traffic.tokens(LONG), LONG_ANSWER, waits))


async def one_round(engine: Engine, traffic: Traffic, seconds: float) -> Waits:
    """All agents and long prompts, once the agents' histories have been read."""
    waits = Waits()
    histories = [traffic.tokens(HISTORY) for _ in range(AGENTS)]
    for history in histories:
        history.extend(await ask(engine, history, 1, []))
    until = time.perf_counter() + seconds
    async with asyncio.TaskGroup() as tasks:
        for number, history in enumerate(histories):
            tasks.create_task(agent(engine, traffic, history, number, until, waits.turns))
        tasks.create_task(long_prompts(engine, traffic, until, waits.long))
    return waits


def main() -> None:
    chosen = options(__doc__).parse_args()
    rounds, seconds = (1, 10.0) if chosen.quick else (5, 25.0)
    report = Report(chosen.threads)
    _, engine = embedded_engine(report, chosen.threads, CONTEXT)
    found: dict[str, list[Waits]] = {"by_turns": [], "by_arrival": []}
    orders = {"by_turns": Turns, "by_arrival": ByArrival}
    try:
        for number in range(rounds):
            for name, waits in found.items():
                progress(f"long prompts: round {number + 1}/{rounds}, {name}")
                engine._scheduler.turns = orders[name]()  # nobody else wants another order
                waits.append(asyncio.run(one_round(engine, Traffic(engine.vocab_size, number), seconds)))
    finally:
        engine.stop()
    progress("")
    for kind in ("turns", "long"):
        for name, all_waits in found.items():
            each = [getattr(waits, kind) for waits in all_waits]
            report.figure(f"{kind}_{name}", sum(map(len, each)))
            for figure, of in (("median", statistics.median), ("p99", p99)):
                report.figure(f"{kind}_{name}_first_token_{figure}_ms", 1000 * statistics.median(map(of, each)))
    report.write(chosen.json)


if __name__ == "__main__":
    main()
