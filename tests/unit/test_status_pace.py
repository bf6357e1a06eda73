"""Is a pool that starts written of in few words, and everything that somebody waits for at once?"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from berth_operator.api import CapacityType, HardwareClass, InferencePool, InferencePoolStatus
from berth_operator.planner import RunningPlacement, Snapshot, plan
from berth_operator.status import pool_status
from berth_operator.status_pace import STARTING_SECONDS, Pace, can_wait

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
Statuses = Callable[..., InferencePoolStatus]


@pytest.fixture
def status(make_pool: Callable[..., InferencePool], make_class: Callable[..., HardwareClass]) -> Statuses:
    """The status of one pool of several workers of which so many are ready."""

    def make(ready: int, **changes: Any) -> InferencePoolStatus:
        pool = make_pool(workload={"class": "Agentic", "demand": {"requestsPerSecond": "400"}}, **changes)
        hardware = make_class(capacity=[{"type": "OnDemand", "usdPerHour": "0.638"}])
        planned = plan(Snapshot(NOW, (pool,), (hardware,))).pools[pool.key]
        (placed,) = planned.placements
        assert placed.replicas >= 3
        found = ready if ready >= 0 else placed.replicas
        running = RunningPlacement(
            pool.key, hardware.metadata.name, CapacityType.ON_DEMAND, placed.replicas, found, quantization=None
        )
        return pool_status(pool, planned, [running], NOW)

    return make


def test_how_many_are_ready_can_wait_while_some_are_missing(status: Statuses) -> None:
    assert can_wait(status(0), status(1))
    assert can_wait(status(1), status(2))


def test_that_all_are_ready_and_all_else_cannot_wait(status: Statuses) -> None:
    assert not can_wait(status(1), status(-1))
    assert not can_wait(status(-1), status(1))
    assert not can_wait(InferencePoolStatus(), status(0))
    other = status(1, scaling={"minReplicas": 90})
    assert not can_wait(status(1), other)


def test_what_waits_is_due_in_time_and_forgotten_when_it_is_said(status: Statuses) -> None:
    clock = [100.0]
    pace, key = Pace(lambda: clock[0]), "default/agents"
    none, one = status(0), status(1)
    assert pace.due(key, none, one)  # by another process, who knows when
    pace.wrote(key)
    clock[0] += 1
    assert not pace.due(key, none, one)
    assert pace.in_s() == [STARTING_SECONDS - 1]
    assert pace.due(key, none, status(-1))
    assert pace.in_s() == []
    assert not pace.due(key, none, one)
    pace.keep_only([key], [])
    assert pace.in_s() == []
    assert not pace.due(key, none, one)
    clock[0] += STARTING_SECONDS
    assert pace.in_s() == [0.0]
    assert pace.due(key, none, one)
