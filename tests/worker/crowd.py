"""What do agents wait for where more of them share a worker's cache than it has room for?

The worker's own scheduler, pacing and cache run on a virtual clock: a step takes what its load says, so every run of a
case is the same. Agents have histories of 2,000 to 4,000 tokens, of which each turn brings some more, think, and begin
anew, with another history, when theirs has grown too long.

    python tests/worker/crowd.py [--seconds N] [--seed N]

prints a table: for each case the worker as it is, without `engine/histories.py`, and with prompts read in order of
arrival.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from berth_worker.engine import scheduler as engine_scheduler
from berth_worker.engine.blocks import BlockManager, blocks_for
from berth_worker.engine.cost import Load, StepCost
from berth_worker.engine.histories import Histories
from berth_worker.engine.pacing import Gaps, next_work
from berth_worker.engine.request import Request, SamplingParams
from berth_worker.engine.scheduler import Scheduler
from berth_worker.engine.turns import Turns

NEW, ANSWER = 60, 80
"""Tokens that a turn brings and gets."""
SHORTEST, LONGEST = 2000, 4000
"""Tokens of a history when it begins, and when it is left."""
TURN = (SHORTEST + LONGEST) // 2 + NEW + ANSWER
"""Tokens that a turn takes of the cache on average: room for one agent."""
WARM_UP = 200.0
"""Seconds that are not counted."""


@dataclass(frozen=True)
class Machine:
    """Seconds of a step, of each of its rows, row of logits, and token attended to."""

    fixed: float
    row: float
    output: float
    attended: float
    free_rows: int = 0
    """So many rows ride along while the weights are read."""

    def seconds(self, load: Load) -> float:
        rows = self.row * max(load.rows - self.free_rows, 0)
        return self.fixed + rows + self.output * load.outputs + self.attended * load.attended


SMALL = Machine(8e-3, 0.3e-3, 0.25e-3, 0.4e-6)
"""About what a step of the 135M model costs on one core."""
LARGE = Machine(30e-3, 1e-3, 0.5e-3, 1e-6)
"""And one of about 1B."""
GPU = Machine(12e-3, 50e-6, 50e-6, 0.0, free_rows=200)


@dataclass(frozen=True)
class Case:
    agents: int
    room: int
    """How many of them the cache has room for."""
    think: float = 2.0
    """Seconds, mean of an exponential distribution."""
    named: bool = True
    """Whether turns say which session they belong to."""
    machine: Machine = SMALL
    seconds: float = 900.0
    seed: int = 1


@dataclass
class Seen:
    """What came out of a case; seconds, of turns that were answered while it was counted, as clients saw them."""

    first_token: list[float] = field(default_factory=list)
    turn: list[float] = field(default_factory=list)
    read: int = 0
    """Tokens of prompts that were computed."""

    @property
    def turns(self) -> int:
        return len(self.turn)


@contextmanager
def without_histories() -> Iterator[None]:
    """Turns that have lost their history are like all others."""
    kept = engine_scheduler.next_in
    engine_scheduler.next_in = lambda waiting, _: waiting[0] if waiting else None
    try:
        yield
    finally:
        engine_scheduler.next_in = kept


class InOrderOfArrival(Turns):
    def enter(self, tokens: int) -> float:
        del tokens
        return 0.0


class _Agent:
    def __init__(self, case: Case, number: int) -> None:
        self._case, self._name, self._session = case, str(number), 0
        self._dice = random.Random(f"{case.seed} {number}")  # noqa: S311 - traffic, not secrets
        self.history = self._tokens(self._dice.randrange(SHORTEST, LONGEST))

    def _tokens(self, count: int) -> list[int]:
        return [self._dice.randrange(50_000) for _ in range(count)]

    def pause(self) -> float:
        return self._dice.expovariate(1 / self._case.think)

    def ask(self, now: float) -> Request:
        if len(self.history) + NEW + ANSWER > LONGEST:
            self._session += 1
            self.history = self._tokens(SHORTEST)
        self.history = self.history + self._tokens(NEW)
        session = f"{self._name}/{self._session}" if self._case.named else ""
        return Request("r", list(self.history), SamplingParams(), ANSWER, 0, session, now)

    def next_token(self) -> int:
        return self._dice.randrange(50_000)


def simulate(case: Case, *, histories: bool = True, by_turns: bool = True) -> Seen:
    """The case from its start, with empty cache; turns that still wait at the end count as if they came then."""
    if not histories:
        with without_histories():
            return _simulate(case, Histories(0), Turns() if by_turns else InOrderOfArrival())
    return _simulate(case, None, Turns() if by_turns else InOrderOfArrival())


def _simulate(case: Case, histories: Histories | None, turns: Turns) -> Seen:
    blocks = BlockManager(blocks_for(case.room * TURN))
    scheduler = Scheduler(blocks, max_running=16, max_waiting=64, token_budget=256, session_seconds=300.0)
    scheduler.turns = turns
    scheduler.histories = histories or scheduler.histories
    cost = StepCost()
    for rows in (1, 16):  # as the engine warms up
        cost.observe(load := Load().plus(0, rows, 1), case.machine.seconds(load))
    agents = [_Agent(case, number) for number in range(case.agents)]
    coming = [(agent.pause(), number) for number, agent in enumerate(agents)]
    heapq.heapify(coming)
    inside: dict[Request, int] = {}
    seen, now, end = Seen(), 0.0, WARM_UP + case.seconds
    while now < end:
        if scheduler.idle:
            now = max(now, coming[0][0])
        while coming and coming[0][0] <= now:
            at, number = heapq.heappop(coming)
            scheduler.add(request := agents[number].ask(at))
            inside[request] = number
        scheduler.tick(now)
        work = next_work(scheduler, cost, Gaps(), lambda _: None)
        load = Load()
        for item in work:
            load.add(item.start, item.count, item.samples)
            seen.read += item.count if now > WARM_UP and item.request.generated == 0 else 0
        took = case.machine.seconds(load)
        now += took
        for item in work:
            if item.samples:
                item.request.tokens.append(agents[inside[item.request]].next_token())
                item.request.first_token = item.request.first_token or now
        scheduler.complete(work)
        cost.observe(load, took)
        for request in [item.request for item in work if item.request.generated == ANSWER]:
            scheduler.finish(request)
            agent = agents[number := inside.pop(request)]
            agent.history = request.tokens
            heapq.heappush(coming, (now + agent.pause(), number))
            if now > WARM_UP:
                assert request.first_token is not None
                seen.first_token.append(request.first_token - request.arrived)
                seen.turn.append(now - request.arrived)
    seen.first_token += [now - request.arrived for request in inside if request.first_token is None]
    return seen


def quantile(values: Sequence[float], share: float) -> float:
    """By nearest rank."""
    return sorted(values)[max(math.ceil(len(values) * share) - 1, 0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1350.0, help="on the virtual clock, of each case")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    print("| agents on room for, named, machine | order | turns | read a turn | first token p50, p99, max | turn |")
    print("| --- | --- | --- | --- | --- | --- |")
    machines = {"small": (SMALL, 2.0), "large": (LARGE, 5.0), "GPU": (GPU, 2.0)}
    crowds = [("small", *crowd) for crowd in ((10, 14), (10, 7), (10, 5), (16, 5), (20, 5))]
    orders = {"as it is": (True, True), "without": (False, True), "arrival": (False, False)}
    for name, agents, room in [*crowds, ("large", 10, 5), ("GPU", 20, 5)]:
        machine, think = machines[name]
        for named in (True, False):
            case = Case(agents, room, think, named, machine, chosen.seconds, chosen.seed)
            for order, (histories, by_turns) in orders.items():
                seen = simulate(case, histories=histories, by_turns=by_turns)
                who = f"{agents} on {room}, {'yes' if named else 'no'}, {name}"
                cells = [who, order, str(seen.turns), f"{seen.read / seen.turns:.0f}"]
                cells += [
                    ", ".join(f"{quantile(v, q):.1f}" for q in (0.5, 0.99, 1)) for v in (seen.first_token, seen.turn)
                ]
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
