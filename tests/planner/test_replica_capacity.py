"""Does a replica's capacity keep its promises, and fall and rise as it must?"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from berth_operator.planner import ReplicaCapacity
from berth_operator.planner.capacity import Load, TooSlow, as_loads, as_replicas, replica_capacity, seconds, solve
from berth_operator.planner.queueing import States, states
from berth_operator.planner.speed import Speed, concurrency_grid
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

LOAD = Load(
    prompt_tokens=1000,
    output_tokens=200,
    cached_share=0.8,
    turns_per_session=12,
    think_seconds=2.0,
    first_token=1.0,
    gap=0.1,
    turn=21.0,
)


def _speed(
    base: float = 0.02, slope: float = 0.001, prefill: float = 4000.0, kv: int = 60_000, most: int = 32
) -> Speed:
    grid = tuple(range(1, most + 1))
    steps = tuple(base + slope * b for b in grid)
    return Speed(grid, steps, tuple(1.1 * s for s in steps), (0.0,) * most, prefill, kv, estimated=False)


def _rate(speed: Speed, load: Load) -> float:
    capacity = replica_capacity(speed, load)
    return capacity.turns_per_second if isinstance(capacity, ReplicaCapacity) else 0.0


speeds = st.builds(
    _speed,
    base=st.floats(0.002, 0.08),
    slope=st.floats(0.0, 0.01),
    prefill=st.floats(100, 50_000),
    kv=st.integers(2_000, 500_000),
    most=st.integers(1, 64),
)
loads = st.builds(
    Load,
    prompt_tokens=st.integers(1, 8000),
    output_tokens=st.integers(1, 1000),
    cached_share=st.floats(0, 1),
    turns_per_session=st.sampled_from([1, 4, 12]),
    think_seconds=st.floats(0, 60),
    first_token=st.floats(0.05, 60),
    gap=st.floats(0.01, 1),
    turn=st.floats(1, 500),
)


@given(speeds, loads)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_every_promise_holds_at_the_capacity_and_memory_is_not_exceeded(speed: Speed, load: Load) -> None:
    assume(load.context_tokens <= speed.kv_cache_tokens)
    capacity = replica_capacity(speed, load)
    if isinstance(capacity, TooSlow):
        assert capacity.predicted > capacity.objective
        return
    assert capacity.time_to_first_token_p99 <= load.first_token * 1.0001
    assert capacity.inter_token_latency_p99 <= load.gap * 1.0001
    assert capacity.turn_latency_p99 <= load.turn * 1.0001
    assert capacity.concurrency * load.context_tokens <= speed.kv_cache_tokens
    step = speed.step_seconds[speed.concurrency.index(capacity.concurrency)]
    prefill = load.prompt_tokens * (1 - load.cached_share) / speed.prefill_tokens_per_second
    decode = (load.output_tokens - 1) * step / capacity.concurrency  # the first token comes with the prefill
    busy = capacity.turns_per_second * (prefill + decode)
    assert busy <= 1, "a second of the replica is spent once: on prefill or on decoding"


def _rates(pairs: Sequence[tuple[Speed, Load]]) -> list[float]:
    """Of many at once, which takes hardly longer than of one; 0 where nothing is carried."""
    solved = solve(as_replicas(pairs), [load for _, load in pairs], [False] * len(pairs))
    return [one.turns_per_second if isinstance(one, ReplicaCapacity) else 0.0 for one, _ in solved]


def _states(speed: Speed, load: Load) -> States:
    """Where turns hardly ever come."""
    return states(as_replicas([(speed, load)]), as_loads([load]), np.array([1e-9]))


def _faster(speed: Speed, factor: float) -> Speed:
    """The same machine, only faster."""
    return replace(
        speed,
        step_seconds=tuple(x / factor for x in speed.step_seconds),
        gap_p99_seconds=tuple(x / factor for x in speed.gap_p99_seconds),
        prefill_tokens_per_second=speed.prefill_tokens_per_second * factor,
    )


@given(speeds, loads, st.floats(1.01, 4), st.floats(0, 1))
@settings(max_examples=120, deadline=None, derandomize=True)
def test_what_is_easier_never_lowers_the_capacity(speed: Speed, load: Load, factor: float, of_rest: float) -> None:
    assume(load.context_tokens <= speed.kv_cache_tokens)
    cached = load.cached_share + of_rest * (1 - load.cached_share)
    easier = {
        "first token": (speed, replace(load, first_token=load.first_token * factor)),
        "gap": (speed, replace(load, gap=load.gap * factor)),
        "turn": (speed, replace(load, turn=load.turn * factor)),
        "prefill": (replace(speed, prefill_tokens_per_second=speed.prefill_tokens_per_second * factor), load),
        "all faster": (_faster(speed, factor), load),
        "memory": (replace(speed, kv_cache_tokens=int(speed.kv_cache_tokens * factor)), load),
        "cached": (speed, replace(load, cached_share=cached)),
    }
    rate, *rates = _rates([(speed, load), *easier.values()])
    worse = {name: easy for name, easy in zip(easier, rates, strict=True) if easy < rate * (1 - 1e-6)}
    assert not worse, rate


@given(speeds, loads, st.integers(1, 1000), st.floats(1.01, 4))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_what_is_easier_for_stated_sessions_never_takes_more_replicas(
    speed: Speed, load: Load, sessions: int, factor: float
) -> None:
    """In replicas, because sessions that are promised less are also taken to come back later."""
    assume(load.context_tokens <= speed.kv_cache_tokens)
    stated = replace(load, sessions=sessions)
    easier = {
        "first token": (speed, replace(stated, first_token=load.first_token * factor)),
        "turn": (speed, replace(stated, turn=load.turn * factor)),
        "fewer": (speed, replace(stated, sessions=max(1, int(sessions / factor)))),
        "all faster": (_faster(speed, factor), stated),
    }
    pairs = [(speed, stated), *easier.values()]
    share, *shares = [
        rate * (of.think_seconds + of.turn) / (of.sessions or 1)
        for rate, (_, of) in zip(_rates(pairs), pairs, strict=True)
    ]
    worse = {name: easy for name, easy in zip(easier, shares, strict=True) if easy < share * (1 - 1e-6)}
    assert not worse, share


@given(speeds, loads, st.integers(1, 1000))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_stated_sessions_are_no_harder_to_serve_than_turns_at_random(speed: Speed, load: Load, sessions: int) -> None:
    assume(load.context_tokens <= speed.kv_cache_tokens)
    random, stated, many = _rates([(speed, replace(load, sessions=n)) for n in (None, sessions, 10**9)])
    step = 2 ** (1 / 64)
    assert stated >= random / step * (1 - 1e-6), "but for the grid of rates"
    assert random / step * (1 - 1e-6) <= many <= random * step * (1 + 1e-6), "of very many, each is met at random"


def test_one_session_never_waits_for_itself() -> None:
    """One slot, kept busy for a fifth of the time: at random a fifth of the turns would wait, and break the promise."""
    speed = _speed(base=0.05, slope=0.02, prefill=400.0, most=8)
    load = replace(LOAD, gap=0.08, first_token=1.5, turn=21.0, think_seconds=60.0)
    at_random, one, two = _rates([(speed, replace(load, sessions=n)) for n in (None, 1, 2)])
    assert one * (load.think_seconds + load.turn) >= 1 - 1e-9
    assert at_random < 0.1 * one
    assert two < 0.2 * one, "turns of two may meet on any replica"


def test_a_looser_gap_leaves_the_choice_of_fewer_slots() -> None:
    """With 43 slots turns would wait less and take longer than with the 14 that a tight gap allows."""
    grid = tuple(range(1, 52))
    steps = tuple(0.0115 + 0.002387 * (b - 1) for b in grid)
    speed = Speed(grid, steps, tuple(1.175 * s for s in steps), (0.0,) * 51, 17_700.0, 282_000, False, 8.6e-8)
    load = Load(380, 243, 0.7486, 4, 8.0, first_token=0.159, gap=0.0502, turn=11.08)
    tight, *loose = _rates([(speed, replace(load, gap=gap)) for gap in (0.0502, 0.06, 0.08, 0.134, 0.2)])
    assert tight > 0
    assert min(loose) >= tight * (1 - 1e-6)


def _on_grid(base: float, slope: float, jitter: float, prefill: float, kv: int, most: int) -> Speed:
    """A profile on the planner's own grid of concurrencies."""
    grid = concurrency_grid(most)
    steps = tuple(base + slope * b for b in grid)
    gaps = tuple(jitter * s for s in steps)
    return Speed(tuple(grid), steps, gaps, (0.0,) * len(grid), prefill, kv, estimated=False)


def _estimate(memory: float, each: float, jitter: float, prefill: float, kv: int, most: int) -> Speed:
    """A step reads memory while it computes a row a stream; what that leaves of arithmetic is free."""
    grid = concurrency_grid(most)
    read = [memory + each * b for b in grid]
    compute = [b / prefill for b in grid]
    steps = tuple(max(r, c) + 0.001 + 50e-6 * b for r, c, b in zip(read, compute, grid, strict=True))
    idle = tuple(max(r - c, 0.0) for r, c in zip(read, compute, strict=True))
    return Speed(tuple(grid), steps, tuple(jitter * s for s in steps), idle, prefill, kv, estimated=True)


VANISHING = _on_grid(0.0539, 0.00428, 1.203, 10_350, 238_000, 229)
SHORT = Load(2, 2, 0.5, 4, 51.8, first_token=24.8, gap=0.7336, turn=77.2)
"""Chunks of VANISHING vanish between 114 and 128 turns."""


@pytest.mark.parametrize(
    ("speed", "load", "easier"),
    [
        (VANISHING, SHORT, {"gap": 2.831}),
        (
            _estimate(0.079, 0.00017, 1.417, 175, 91_800, 325),
            Load(10, 68, 0.303, 1, 3.1, first_token=0.1926, gap=0.1249, turn=291.5),
            {"gap": 0.333},
        ),
        (
            _estimate(0.0094, 4.6e-6, 1.037, 7542, 50_700, 365),
            Load(43, 86, 0.08, 4, 18.4, first_token=21.4, gap=0.0223, turn=344.6),
            {"gap": 0.068},
        ),
    ],
)
def test_a_looser_promise_carries_no_less_where_chunks_vanish_or_ride_along(
    speed: Speed, load: Load, easier: dict[str, float]
) -> None:
    tight, loose = _rates([(speed, load), (speed, replace(load, **easier))])
    assert 0 < tight <= loose * (1 + 1e-6)


@given(
    base=st.floats(0.002, 0.08),
    slope=st.floats(0.0, 0.01),
    prefill=st.floats(100, 50_000),
    most=st.integers(17, 512),
    load=st.builds(replace, st.just(SHORT), gap=st.floats(0.05, 1), prompt_tokens=st.integers(1, 8000)),
    output_tokens=st.integers(1, 1000),
)
@example(base=0.0539, slope=0.00428, prefill=10_350.0, most=229, load=SHORT, output_tokens=2)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_chain_on_the_grid_ends_as_many_turns_as_on_all_numbers(
    base: float, slope: float, prefill: float, most: int, load: Load, output_tokens: int
) -> None:
    """Also where chunks vanish between two of its columns: there it once ended 3.5 times as many."""
    load = replace(load, output_tokens=output_tokens)
    on_grid = _on_grid(base, slope, 1.203, prefill, 10**9, most)
    numbers = tuple(range(1, on_grid.concurrency[-1] + 1))
    steps = tuple(base + slope * b for b in numbers)
    gaps, idle = tuple(1.203 * s for s in steps), (0.0,) * len(numbers)
    every = replace(on_grid, concurrency=numbers, step_seconds=steps, gap_p99_seconds=gaps, idle_seconds=idle)
    found, exact = (_states(speed, load).took[0, 1:] for speed in (on_grid, every))
    assert found == pytest.approx(exact[[b - 1 for b in on_grid.concurrency]], rel=0.05)


def test_a_prompt_that_fits_idle_arithmetic_lengthens_no_step() -> None:
    """However much longer than that a chunk might be."""
    speed = replace(_speed(), idle_seconds=(0.015,) * 32)
    load = replace(LOAD, prompt_tokens=250, turns_per_session=1)  # 12.5 ms
    own = _states(speed, load).own[0, 1:]
    assert own == pytest.approx(speed.step_seconds)


def test_prefill_steals_from_decode() -> None:
    all_cached = _rate(_speed(), replace(LOAD, cached_share=1.0))
    half_cached = _rate(_speed(), replace(LOAD, cached_share=0.5))
    assert half_cached < 0.8 * all_cached


def test_kv_memory_bounds_concurrency() -> None:
    capacity = replica_capacity(_speed(kv=5 * LOAD.context_tokens + 10), replace(LOAD, turns_per_session=1))
    assert isinstance(capacity, ReplicaCapacity)
    assert capacity.concurrency <= 5


def test_sessions_that_think_longer_than_memory_keeps_them_lose_their_cache() -> None:
    speed = _speed(kv=40_000)
    assert _rate(speed, replace(LOAD, think_seconds=60)) < 0.9 * _rate(speed, replace(LOAD, think_seconds=0))


def test_prefill_that_rides_in_idle_arithmetic_is_free() -> None:
    speed = _speed()
    assert _rate(replace(speed, idle_seconds=(0.015,) * 32), LOAD) > _rate(speed, LOAD)


@pytest.mark.parametrize(
    ("speed", "load", "field", "words"),
    [
        (_speed(base=0.1), LOAD, "interTokenLatencyP99", "inter-token p99 112 ms at 1 request > 100 ms"),
        (_speed(prefill=100), LOAD, "timeToFirstTokenP99", "200 uncached prompt tokens at 100 tokens/s) > 1000 ms"),
        (_speed(base=0.08), replace(LOAD, turn=10.0), "turnLatencyP99", "turn p99 16.25 s at 1 request > 10 s"),
    ],
)
def test_a_promise_that_one_request_breaks_is_named_with_its_number(
    speed: Speed, load: Load, field: str, words: str
) -> None:
    slow = replica_capacity(speed, load)
    assert isinstance(slow, TooSlow)
    assert slow.field == field
    assert words in slow.reason


@given(speeds, loads, st.floats(0.9, 1.3))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_the_promise_that_is_said_to_be_broken_is(speed: Speed, load: Load, room: float) -> None:
    """Also where one request keeps it on average, and breaks it in the last turns of a session or in slow moments."""
    assume(load.context_tokens <= speed.kv_cache_tokens)
    uncached = max(1.0, load.prompt_tokens * (1 - load.cached_share))
    alone = uncached / speed.prefill_tokens_per_second + speed.step_seconds[0]
    slow = replica_capacity(speed, replace(load, first_token=alone * room))
    assert isinstance(slow, ReplicaCapacity) or slow.predicted > slow.objective


def test_durations_round_up_so_that_a_broken_promise_reads_as_one() -> None:
    assert seconds(0.0601) == "61 ms"
    assert seconds(0.060) == "60 ms"
    assert seconds(2.001) == "2.01 s"
