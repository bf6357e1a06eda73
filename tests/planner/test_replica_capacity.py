"""Does a replica's capacity keep its promises, and fall and rise as it must?"""

from dataclasses import replace

import pytest
from berth_operator.planner import ReplicaCapacity
from berth_operator.planner.capacity import Load, TooSlow, replica_capacity, seconds
from berth_operator.planner.speed import Speed
from hypothesis import given, settings
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
    prompt_tokens=st.integers(1, 1500),
    output_tokens=st.integers(1, 400),
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


@given(speeds, loads)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_looser_promises_faster_prefill_more_memory_and_more_cache_never_lower_the_capacity(
    speed: Speed, load: Load
) -> None:
    rate = _rate(speed, load)
    easier = [
        _rate(speed, replace(load, first_token=load.first_token * 1.5)),
        _rate(speed, replace(load, turn=load.turn * 1.5)),
        _rate(replace(speed, prefill_tokens_per_second=speed.prefill_tokens_per_second * 1.5), load),
        _rate(replace(speed, kv_cache_tokens=speed.kv_cache_tokens * 2), load),
    ]
    assert all(e >= rate * (1 - 1e-6) for e in easier), (rate, easier)
    # these move the columns that are considered, or how a session grows: a step or two of the grid of rates
    easier = [
        _rate(speed, replace(load, gap=load.gap * 1.5)),
        _rate(speed, replace(load, cached_share=(1 + load.cached_share) / 2)),
    ]
    assert all(e >= rate * 0.98 for e in easier), (rate, easier)


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


def test_durations_round_up_so_that_a_broken_promise_reads_as_one() -> None:
    assert seconds(0.0601) == "61 ms"
    assert seconds(0.060) == "60 ms"
    assert seconds(2.001) == "2.01 s"
