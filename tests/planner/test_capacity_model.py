"""Are the capacity model's sums those of its formulas?  Beside them: the same on all numbers of turns, one by one."""

import math
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
from berth_operator.planner import ReplicaCapacity
from berth_operator.planner.capacity import Load, as_loads, as_replicas, latencies, replica_capacity, solve
from berth_operator.planner.native import FLOATS, LENGTH, function
from berth_operator.planner.queueing import Array, states
from berth_operator.planner.speed import Speed, concurrency_grid
from hypothesis import given, settings
from hypothesis import strategies as st

speeds = st.builds(
    lambda most, base, slope, jitter, idle, prefill, budget: Speed(
        tuple(range(1, most + 1)),
        tuple(base + slope * b for b in range(1, most + 1)),
        tuple(jitter * (base + slope * b) for b in range(1, most + 1)),
        (idle,) * most,
        prefill,
        10**7,
        estimated=False,
        token_budgets=(budget, budget),
    ),
    st.integers(2, 24),
    st.floats(0.002, 0.08),
    st.floats(0.0, 0.01),
    st.floats(1.0, 1.5),
    st.sampled_from([0.0, 0.003]),
    st.floats(100, 50_000),
    st.sampled_from([0, 64, 2048]),
)
loads = st.builds(
    Load,
    prompt_tokens=st.integers(1, 2000),
    output_tokens=st.integers(2, 400),
    cached_share=st.floats(0, 1),
    turns_per_session=st.just(1),
    think_seconds=st.just(1.0),
    first_token=st.floats(0.05, 60),
    gap=st.floats(0.02, 1),
    turn=st.floats(1, 500),
    sessions=st.none() | st.integers(1, 40),
)


@given(speeds, loads, st.floats(0.01, 0.99))
@settings(max_examples=200, deadline=None)
def test_sums_are_those_over_all_numbers_of_turns(speed: Speed, load: Load, share: float) -> None:
    took, reading, own, added = _chain(speed, load)
    rate = share / min(took)
    chance = _found(took, rate, load)
    found = states(as_replicas([(speed, load)]), as_loads([load]), np.array([rate]))
    # of chances that hardly differ from column to column the model takes a slope of a millionth
    assert found.added[0, 1:] == pytest.approx(added, rel=1e-9)
    assert found.own[0, 1:] == pytest.approx(own, rel=1e-9)
    assert found.took[0, 1:] == pytest.approx(took, rel=1e-6)
    assert found.reading[0, 1:] == pytest.approx(reading, rel=1e-6, abs=1e-12)
    assert found.chance[0] == pytest.approx(chance, rel=1e-4, abs=1e-12)


def _chain(speed: Speed, load: Load) -> tuple[list[float], list[float], list[float], list[float]]:
    """By number of turns from 1: 1/X, the chance that a prompt is read, T, and e."""
    work = max(load.prompt_tokens * (1 - load.cached_share), 1.0) / speed.prefill_tokens_per_second
    answer = load.output_tokens - 1
    step = [speed.step_seconds[0], *speed.step_seconds]
    idle = [speed.idle_seconds[0], *speed.idle_seconds]
    gaps = [speed.gap_p99_seconds[0], *speed.gap_p99_seconds]
    # T and k, while other prompts wait and while none does; beside none in one step, unless that has a budget
    rest, last, added = [], [], []
    for d, (s, free, gap) in enumerate(zip(step, idle, gaps, strict=True)):
        e, chunk, varies = _chunk(speed, load, d, s, free, gap)
        added.append(e)
        if d == 0 and not speed.token_budgets[1]:
            rest.append((work + s, 1.0))
            last.append((work + s, 1.0))
            continue
        chunks = work / chunk
        steps = (_area((1 + varies) * chunks) - _area((1 - varies) * chunks)) / (2 * varies * chunks)
        rest.append((chunks * e + chunks * s, chunks))
        last.append((max((steps - 1) * e, work - steps * free) + steps * s, steps))
    took, reading = [], []
    for n in range(1, len(step)):
        read = [(last if d == n - 1 else rest)[d] for d in range(n)]
        down = [0.0, *(d / (answer * read[d][0] / read[d][1]) for d in range(1, n)), n / (answer * step[n])]
        logs = [0.0, *accumulate(-math.log(read[d][0]) - math.log(down[d + 1]) for d in range(n))]
        weights = [math.exp(x - max(logs)) for x in logs]
        ended = sum(w / t for w, (t, _) in zip(weights[:-1], read, strict=True))
        together = load.output_tokens * step[1] + max(n * work - load.output_tokens * idle[1], 0.0)
        took.append(max(sum(weights) / ended, together / n))
        reading.append(sum(weights[:-1]) / sum(weights))
    return took, reading, [t for t, _ in last[1:]], added[1:]


def _chunk(
    speed: Speed, load: Load, streams: int, step: float, idle: float, gap_p99: float
) -> tuple[float, float, float]:
    """Beside so many streams: e, c, and by what share chunks differ."""
    prefill = speed.prefill_tokens_per_second
    if budget := speed.token_budgets[1]:
        chunk = max(budget - streams, 4) / prefill
        return max(chunk - idle, 0.0), chunk, 0.1
    late = min(max(1.02 * (gap_p99 / step) ** 1.1, 1.05), 1.22)
    added = max(min(max(2 * step, 0.02), load.gap) / late - step, 4 / prefill)
    return added, added + idle, min(0.4 * (late - 1) * (added + step) / added, 0.9)


def _area(x: float) -> float:
    """Of whole steps that up to x chunks take."""
    return sum(range(1, math.floor(x) + 1)) + (math.floor(x) + 1) * (x - math.floor(x))


def _found(took: list[float], rate: float, load: Load) -> list[float]:
    """By number of turns from 0: the chance that an arrival finds so many; at the last one, or more that wait."""
    sessions = max(load.sessions, rate * (load.think_seconds + load.turn)) if load.sessions else math.inf
    away = sessions / rate - load.turn

    def coming(inside: int) -> float:
        return rate if math.isinf(sessions) else min(rate, max(sessions - 1 - inside, 0.0) / away)

    steps = [math.log(max(coming(i) * seconds, 1e-200)) for i, seconds in enumerate(took)]
    logs = [0.0, *accumulate(steps)]
    weights = [math.exp(x - max(logs)) for x in logs]
    busy = coming(len(took)) * took[-1]
    weights[-1] = weights[-1] / (1 - busy) if busy < 1 - 1e-9 else 0.0
    return [w / sum(weights) for w in weights]


@given(speeds, st.lists(loads, min_size=2, max_size=6))
@settings(max_examples=30, deadline=None)
def test_what_one_pair_carries_does_not_depend_on_the_others(speed: Speed, of: list[Load]) -> None:
    at_once = solve(as_replicas([(speed, load) for load in of]), of, [False] * len(of))
    assert [capacity for capacity, _ in at_once] == [replica_capacity(speed, load) for load in of]


@given(speeds, loads)
@settings(max_examples=60, deadline=None)
def test_of_token_budgets_the_one_that_carries_most_is_told(speed: Speed, load: Load) -> None:
    every = sorted([64 << k for k in range(8)] + [96 << k for k in range(4)])
    found = replica_capacity(replace(speed, token_budgets=(every[0], every[-1])), load)
    alone = [replica_capacity(replace(speed, token_budgets=(budget, budget)), load) for budget in every]
    carrying = {b: one for b, one in zip(every, alone, strict=True) if isinstance(one, ReplicaCapacity)}
    if not isinstance(found, ReplicaCapacity):
        assert not carrying
        return
    assert found == carrying[found.token_budget]
    assert found.turns_per_second == max(one.turns_per_second for one in carrying.values())
    slots = found.concurrency - 1
    chunk = max((found.token_budget - found.concurrency) / speed.prefill_tokens_per_second, 0.0)
    longest = 1 + max(chunk - speed.idle_seconds[slots], 0.0) / speed.step_seconds[slots]
    assert speed.gap_p99_seconds[slots] * longest <= load.gap * (1 + 1e-6), "with a whole chunk no step is too late"


PACES = [digits / decade for decade in (1, 10, 100, 1000) for digits in (7, 5, 3, 2, 1.5, 1)]


@given(speeds, loads)
@settings(max_examples=60, deadline=None)
def test_of_the_promise_and_paces_below_it_the_one_that_carries_most_is_told(speed: Speed, load: Load) -> None:
    speed = replace(speed, token_budgets=(0, 0))
    found = replica_capacity(speed, load)
    paces = [load.gap, *(pace for pace in PACES if pace < load.gap)]
    alone = {pace: replica_capacity(replace(speed, pace_seconds=pace), load) for pace in paces}
    carrying = {pace: one for pace, one in alone.items() if isinstance(one, ReplicaCapacity)}
    if not isinstance(found, ReplicaCapacity):
        assert not carrying
        return
    assert found == carrying[found.pace_seconds]
    assert found.turns_per_second == max(one.turns_per_second for one in carrying.values())


@given(speeds, loads, st.floats(1.01, 4))
@settings(max_examples=100, deadline=None)
def test_with_token_budgets_a_looser_promise_between_tokens_carries_no_less(
    speed: Speed, load: Load, factor: float
) -> None:
    vllm = replace(speed, token_budgets=(64, 8192))
    tight, loose = (replica_capacity(vllm, x) for x in (load, replace(load, gap=load.gap * factor)))
    if isinstance(tight, ReplicaCapacity):
        assert isinstance(loose, ReplicaCapacity)
        assert loose.turns_per_second >= tight.turns_per_second * (1 - 1e-9)


RECORDED: dict[str, tuple[int, dict[str, float], tuple[float, ...]]] = {
    "kept sessions": (500_000, {}, (2.5936791093, 64, 0.3702945665, 0.061539458578, 8.0836508019)),
    "forgotten sessions": (
        60_000,
        {"think_seconds": 20.0},
        (1.5931421513, 46, 0.31871987674, 0.050088183569, 6.4971261518),
    ),
    "single turns": (60_000, {"turns_per_session": 1}, (2.43049472, 46, 0.27450992997, 0.059304487233, 7.7431066503)),
    "varied": (
        500_000,
        {"turns_per_session": 1, "prompt_spread": 1.0, "output_spread": 0.5, "first_token": 4.0},
        (1.3396675241, 14, 0.52719931105, 0.047872895131, 16.81152504),
    ),
    "stated sessions": (500_000, {"sessions": 6}, (2.6646352159, 64, 0.37310625388, 0.06212964481, 8.2145001581)),
    "bound by the turn": (500_000, {"turn": 8.0}, (1.2690509572, 64, 0.29530616639, 0.047130761007, 6.0525193986)),
    "bound by the gap": (500_000, {"gap": 0.045}, (1.2690509572, 20, 0.33791023092, 0.040628186688, 6.0911410566)),
}
"""KV tokens, how the load differs, and what was found when the model was last held against the engine: turns/s, slots,
and p99s of first token, gap and turn at half that rate.  To be recorded anew when the model changes, and only then."""


@pytest.mark.parametrize("case", RECORDED)
def test_judgements_are_the_same_on_every_machine(case: str) -> None:
    kv_tokens, change, recorded = RECORDED[case]
    grid = concurrency_grid(64)
    steps = tuple(0.02 + 0.001 * b for b in grid)
    gaps, idle = tuple(1.1 * s for s in steps), (0.002,) * len(grid)
    speed = Speed(tuple(grid), steps, gaps, idle, 4000.0, kv_tokens, estimated=False, attention_seconds=1e-8)
    load = replace(Load(1000, 200, 0.8, 12, 2.0, first_token=1.0, gap=0.1, turn=21.0), **change)
    capacity = replica_capacity(speed, load)
    assert isinstance(capacity, ReplicaCapacity)
    rate, slots = capacity.turns_per_second, capacity.concurrency
    half = latencies(speed, load, rate / 2, slots)
    assert half is not None
    assert (rate, slots, half.first_token, half.gap, half.turn) == pytest.approx(recorded, rel=1e-9)


def test_exponentials_and_logarithms_are_those_of_libm() -> None:
    call = function("berth_arithmetic", FLOATS, LENGTH, FLOATS)

    def found(x: Array) -> list[list[float]]:
        out = np.empty((5, len(x)))
        call(x, len(x), out)
        listed: list[list[float]] = out.tolist()
        return listed

    dice = np.random.default_rng(1)
    x = np.concatenate([dice.uniform(-700, 700, 5000), dice.normal(0, 1, 5000), dice.normal(0, 1e-6, 5000)])
    exp, expm1, exp2, *_ = found(x)
    assert exp == pytest.approx([math.exp(v) for v in x], rel=5e-16, abs=0)
    assert expm1 == pytest.approx([math.expm1(v) for v in x], rel=5e-16, abs=0)
    assert exp2 == pytest.approx([2.0**v for v in x], rel=5e-16, abs=0)
    x = np.exp(x)
    *_, log, log2 = found(x)
    assert log == pytest.approx([math.log(v) for v in x], rel=5e-16, abs=1e-300)
    assert log2 == pytest.approx([math.log2(v) for v in x], rel=5e-16, abs=1e-300)
    exact = found(np.array([float(v) for v in range(-700, 701)]))[2]
    assert exact == [2.0**v for v in range(-700, 701)]
    assert found(np.array([-1e300, -math.inf, -709.0]))[0] == [0.0, 0.0, 0.0]
