"""Are the predicted p99s those of the engine?  Its own scheduler, pacing and cache run here on a virtual clock.

The simulation knows what a step costs (about what a step of the 135M model costs on one core) and nothing of queueing;
sessions come at random, think, and come back with their history.
"""

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from berth_operator.planner import ReplicaCapacity
from berth_operator.planner.capacity import Latencies, Load, latencies, replica_capacity
from berth_operator.planner.speed import Speed
from berth_worker.engine.blocks import BlockManager
from berth_worker.engine.cost import Load as StepLoad
from berth_worker.engine.cost import StepCost
from berth_worker.engine.pacing import Gaps, next_work
from berth_worker.engine.request import Request, SamplingParams
from berth_worker.engine.scheduler import Scheduler
from berth_worker.engine.turns import Turns

SLOTS = 16
FIXED, ROW, OUTPUT, ATTENDED = 8e-3, 0.3e-3, 0.25e-3, 0.4e-6
"""Seconds of a step, of each of its rows, row of logits, and token attended to."""
JITTER = 0.03
KV_TOKENS = 400_000
OVERHEAD, MEMORY, ROW_ON_GPU, OUTPUT_ON_GPU = 2e-3, 10e-3, 50e-6, 50e-6
"""Seconds of a step on a GPU, of reading all weights or else of each row, and of each row of logits."""


@dataclass(frozen=True)
class Agents:
    """Tokens, and seconds between turns on average."""

    turns: int = 5
    system: int = 64
    new: int = 40
    output: int = 24
    think: float = 0.5

    @property
    def prompt(self) -> int:
        return round(self.system + self.new + (self.turns - 1) / 2 * (self.new + self.output))


@dataclass
class Seen:
    """What clients saw, seconds."""

    first_token: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)
    turn: list[float] = field(default_factory=list)


@dataclass
class _Session:
    name: str
    tokens: list[int]
    left: int


class InOrderOfArrival(Turns):
    """As vLLM reads prompts."""

    def enter(self, tokens: int) -> float:
        del tokens
        return 0.0


StepSeconds = Callable[[StepLoad], float]


def step_seconds(load: StepLoad) -> float:
    return FIXED + ROW * load.rows + OUTPUT * load.outputs + ATTENDED * load.attended


def roofline_seconds(load: StepLoad) -> float:
    """Of a GPU: rows ride along while all weights are read."""
    return OVERHEAD + OUTPUT_ON_GPU * load.outputs + max(MEMORY, ROW_ON_GPU * load.rows)


def simulate(
    agents: Agents,
    slots: int,
    rate: float,
    turns: int,
    *,
    gap: float = math.inf,
    kv_tokens: int = KV_TOKENS,
    sessions: int | None = None,
    seed: int = 7,
    token_budget: int | None = None,
    step_seconds: StepSeconds = step_seconds,
) -> Seen:
    """About `turns` turns at `rate` a second, after a while without counting; `gap`: promised between tokens.

    With a `token_budget` prompts are read until a step has so many tokens, in order of arrival, as vLLM does, whatever
    was promised.
    Of so many `sessions`, each followed by another when it ends; else sessions come at random.
    """
    dice = random.Random(seed)  # noqa: S311 - traffic, not secrets
    scheduler = Scheduler(
        BlockManager(kv_tokens // 16),
        max_running=slots,
        max_waiting=10**6,
        token_budget=token_budget or 256,
        session_seconds=300,
    )
    if token_budget:
        scheduler.turns = InOrderOfArrival()
    cost = StepCost()
    for rows in (1, 16):
        cost.observe(StepLoad().plus(0, rows, 1), step_seconds(StepLoad().plus(0, rows, 1)))
    lead = 2 * agents.turns * (agents.think + 1)
    horizon = lead + turns / rate
    count = itertools.count()
    common = [dice.randrange(1000, 30000) for _ in range(agents.system)]

    def begun(at: float) -> tuple[float, int, _Session]:
        i = next(count)
        return at, i, _Session(f"s{i}", list(common), agents.turns)

    if sessions:
        coming = [begun(dice.expovariate(1 / agents.think)) for _ in range(sessions)]
    else:
        coming = [begun(dice.uniform(0, horizon)) for _ in range(round(horizon * rate / agents.turns))]
    heapq.heapify(coming)
    inside: dict[Request, _Session] = {}
    seen, now = Seen(), 0.0
    while now < horizon and (coming or inside):
        if not inside:
            now = max(now, coming[0][0])
        while coming and coming[0][0] <= now:
            at, _, session = heapq.heappop(coming)
            session.tokens += [dice.randrange(1000, 30000) for _ in range(agents.new)]
            request = Request("", list(session.tokens), SamplingParams(), agents.output, 0, session.name, at)
            inside[request] = session
            scheduler.add(request)
        scheduler.tick(now)
        told = Gaps(promised=gap)
        work = scheduler.schedule() if token_budget else next_work(scheduler, cost, told, lambda _: None)
        load = StepLoad()
        for item in work:
            load.add(item.start, item.rows, 1 if item.samples else 0)
        seconds = step_seconds(load) * dice.lognormvariate(0, JITTER)
        now += seconds
        ended = [item.request for item in work if item.samples and _advance(item.request, now, lead, seen, dice)]
        scheduler.complete(work)
        cost.observe(load, seconds)
        for request in ended:
            scheduler.finish(request)
            session = inside.pop(request)
            session.tokens, session.left = list(request.tokens), session.left - 1
            if session.left or sessions:
                again = now + dice.expovariate(1 / agents.think)
                heapq.heappush(coming, (again, next(count), session) if session.left else begun(again))
    return seen


def _advance(request: Request, now: float, since: float, seen: Seen, dice: random.Random) -> bool:
    """The next token has come; whether it was the last."""
    counts = request.arrived >= since
    if request.last_token is None and counts:
        seen.first_token.append(now - request.arrived)
    elif request.last_token is not None and counts:
        seen.gap.append(now - request.last_token)
    request.tokens.append(dice.randrange(1000, 30000))
    request.last_token = now
    last = request.generated >= request.max_tokens
    if last and counts:
        seen.turn.append(now - request.arrived)
    return last


def p99(values: list[float]) -> float:
    return sorted(values)[math.ceil(len(values) * 0.99) - 1]


def speed_of(agents: Agents, slots: int, kv_tokens: int = KV_TOKENS) -> Speed:
    """What a profile at the agents' mean context would say."""
    grid = tuple(range(1, slots + 1))
    context = agents.prompt + agents.output / 2
    steps = tuple(FIXED + b * (ROW + OUTPUT + ATTENDED * context) for b in grid)
    prefill = 1 / (ROW + ATTENDED * context)
    gaps = tuple(1.07 * s for s in steps)
    return Speed(grid, steps, gaps, (0.0,) * slots, prefill, kv_tokens, estimated=False, attention_seconds=ATTENDED)


def load_of(agents: Agents, **promises: float) -> Load:
    promised = {"first_token": 60.0, "gap": 10.0, "turn": 60.0} | promises
    cached = 1 - agents.new / agents.prompt
    return Load(agents.prompt, agents.output, cached, agents.turns, agents.think, **promised)


AGENTS = Agents()
FEW_SLOTS = 4
CASES = {
    "first token": (AGENTS, SLOTS, {"first_token": 0.3}),
    "turn": (AGENTS, SLOTS, {"turn": 0.6}),
    "long answers": (Agents(new=20, output=80), SLOTS, {"turn": 2.0}),
    "few slots": (AGENTS, FEW_SLOTS, {"first_token": 0.5}),
    "between tokens": (AGENTS, SLOTS, {"gap": 0.024, "first_token": 1.0}),
    "long prompts": (Agents(new=300), SLOTS, {"first_token": 1.0}),
    "equal prompts": (Agents(turns=1, system=0, new=200, output=60), SLOTS, {"first_token": 1.0}),
}
BREAKS = {"long prompts": 1.3}
"""Of the capacity; else 15 % above it.  There the normal distribution's tail stands for turns of five lengths."""
TURNS = 1500
SEEDS = {"between tokens": range(8)}
"""Runs that are pooled; else one.  There few turns wait for a slot, but the p99 is theirs: from 160 to 310 ms in single
runs at 75 %."""
WITHIN = {0.5: 0.25, 0.75: 0.25}
"""Of the capacity, and how far a predicted p99 may be from the one seen there."""


@pytest.mark.parametrize("case", CASES)
def test_p99s_and_capacity_are_those_of_the_engine(case: str) -> None:
    agents, most_slots, promises = CASES[case]
    load, speed = load_of(agents, **promises), speed_of(agents, most_slots)
    capacity = replica_capacity(speed, load)
    assert isinstance(capacity, ReplicaCapacity)
    slots, carried = capacity.concurrency, capacity.turns_per_second

    def seen_at(share: float) -> Seen:
        found = Seen()
        for seed in SEEDS.get(case, (7,)):
            one = simulate(agents, slots, share * carried, TURNS, gap=load.gap, seed=seed)
            found.first_token += one.first_token
            found.gap += one.gap
            found.turn += one.turn
        return found

    hold(load, seen_at, lambda share: latencies(speed, load, share * carried, slots), BREAKS.get(case, 1.15))


def hold(
    load: Load,
    seen_at: Callable[[float], Seen],
    predicted_at: Callable[[float], Latencies | None],
    breaks: float,
    first_token_within: float = 0.0,
) -> None:
    """Predictions against what was seen at shares of the capacity, `breaks` of which breaks a promise.

    `first_token_within`: how far its p99 may be from the one seen, where that is more than the others may.
    """
    for share, within in WITHIN.items():
        seen, predicted = seen_at(share), predicted_at(share)
        assert predicted is not None
        first_token = max(within, first_token_within)
        assert predicted.first_token == pytest.approx(p99(seen.first_token), rel=first_token), share
        assert predicted.gap == pytest.approx(p99(seen.gap), rel=within), share
        assert predicted.turn == pytest.approx(p99(seen.turn), rel=within), share
    below, above = seen_at(1 / 1.15), seen_at(breaks)
    assert worst(below, load) < 1, "15 % below it, every promise holds"
    assert worst(above, load) > 1, "so far above it, one does not"


BUDGETED = {
    "first token": (Agents(new=300), {"first_token": 0.08}),
    "turn": (Agents(new=300), {"turn": 0.5}),
    "between tokens": (Agents(new=300), {"gap": 0.0172, "first_token": 0.25}),
    "long prompts": (Agents(turns=3, new=1200), {"gap": 0.03, "first_token": 0.5}),
    "long answers": (Agents(new=100, output=80), {"turn": 1.3}),
}
STREAMS = 64
BUDGETED_BREAKS = {"turn": 1.25, "between tokens": 1.25}
"""Of the capacity; else 15 % above it.  A prompt there is a step and a quarter, and waits less than the model says."""
FIRST_TOKEN_WITHIN = {"between tokens": 0.4}


@pytest.mark.parametrize("case", BUDGETED)
def test_p99s_and_capacity_are_those_of_a_scheduler_with_a_token_budget(case: str) -> None:
    agents, promises = BUDGETED[case]
    grid = tuple(range(1, STREAMS + 1))
    steps = tuple(OVERHEAD + OUTPUT_ON_GPU * b + MEMORY for b in grid)
    gaps, idle = tuple(1.07 * s for s in steps), tuple(MEMORY - ROW_ON_GPU * b for b in grid)
    speed = Speed(grid, steps, gaps, idle, 1 / ROW_ON_GPU, KV_TOKENS, estimated=True, token_budgets=(64, 8192))
    load = load_of(agents, **promises)
    capacity = replica_capacity(speed, load)
    assert isinstance(capacity, ReplicaCapacity)
    slots, carried, budget = capacity.concurrency, capacity.turns_per_second, capacity.token_budget

    def seen_at(share: float) -> Seen:
        rate = share * carried
        return simulate(agents, slots, rate, TURNS, token_budget=budget, step_seconds=roofline_seconds)

    told = replace(speed, token_budgets=(budget, budget))
    first_token_within = FIRST_TOKEN_WITHIN.get(case, 0.0)
    breaks = BUDGETED_BREAKS.get(case, 1.15)
    hold(load, seen_at, lambda share: latencies(told, load, share * carried, slots), breaks, first_token_within)


def test_sessions_that_memory_cannot_keep_pay_for_their_prompts_again() -> None:
    agents, kv_tokens, rate = Agents(system=16, think=10.0), 5000, 3.0
    speed, load = speed_of(agents, SLOTS, kv_tokens), load_of(agents)
    predicted = latencies(speed, load, rate, SLOTS)
    assert predicted is not None
    seen = simulate(agents, SLOTS, rate, TURNS, kv_tokens=kv_tokens)
    assert predicted.first_token == pytest.approx(p99(seen.first_token), rel=0.25)
    kept = latencies(speed_of(agents, SLOTS), load, rate, SLOTS)
    assert kept is not None
    assert predicted.first_token > 1.5 * kept.first_token


@pytest.mark.parametrize(("slots", "turn"), [(1, 0.45), (2, 0.5), (SLOTS, 0.6)])
def test_sessions_meet_each_other_as_in_the_engine_and_never_themselves(slots: int, turn: float) -> None:
    agents = Agents(think=2.0)
    load, speed = load_of(agents, turn=turn), speed_of(agents, slots)
    capacity = replica_capacity(speed, replace(load, sessions=1))
    assert isinstance(capacity, ReplicaCapacity)
    cycle = agents.think + turn
    carried = round(capacity.turns_per_second * cycle)
    for sessions in (1, carried):
        rate = sessions / cycle
        predicted = latencies(speed, replace(load, sessions=sessions), rate, slots)
        assert predicted is not None
        seen = simulate(agents, slots, rate, TURNS, sessions=sessions)
        assert predicted.first_token == pytest.approx(p99(seen.first_token), rel=0.3), sessions
        assert predicted.turn == pytest.approx(p99(seen.turn), rel=0.25), sessions
        assert worst(seen, load) < 1.1, "a tenth above the promise at most, where it is just kept"
    many = simulate(agents, slots, 2 * (carried + 1) / cycle, TURNS, sessions=2 * (carried + 1))
    assert worst(many, load) > 1, "twice as many, and the promise breaks"


def worst(seen: Seen, load: Load) -> float:
    """How far the worst p99 is above its promise; 1: just kept."""
    return max(p99(getattr(seen, name)) / getattr(load, name) for name in ("first_token", "gap", "turn"))
