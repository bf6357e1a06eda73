"""When does the next pass begin?  Soon for whoever has edited a pool, and once for pools that arrive together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
from berth_operator.api import InferencePool
from berth_operator.cluster.cluster import Cluster
from berth_operator.executor import Executor
from berth_operator.loop import Loop, LoopSettings
from berth_operator.telemetry import Telemetry
from prometheus_client import CollectorRegistry

Make = Callable[..., InferencePool]
LONG = 60.0


class _Pools:
    """A cluster of which only the pools are looked at."""

    kube = None

    def __init__(self, *pools: InferencePool) -> None:
        self.pools = list(pools)

    def known_pools(self) -> list[InferencePool]:
        return self.pools


def _loop(cluster: _Pools, debounce_s: float) -> Loop:
    telemetry, there = Telemetry(CollectorRegistry()), cast("Cluster", cluster)
    return Loop(there, Executor(there, telemetry), telemetry, LoopSettings(debounce_s=debounce_s))


async def _seconds(loop: Loop, meanwhile: Callable[[int], Any] = lambda _: None) -> float:
    """How long the loop waits for quiet, with something happening every few milliseconds."""

    async def noise() -> None:
        for n in range(100_000):
            meanwhile(n)
            loop.mark_dirty()
            await asyncio.sleep(0.005)

    noisy = asyncio.create_task(noise())
    began = time.monotonic()
    try:
        await loop._wait_quiet()
    finally:
        noisy.cancel()
    return time.monotonic() - began


async def test_a_pool_that_was_edited_does_not_wait_until_workers_are_quiet(make_pool: Make) -> None:
    assert await _seconds(_loop(_Pools(make_pool()), LONG)) < LONG / 2


async def test_what_workers_do_is_waited_for() -> None:
    assert await _seconds(_loop(_Pools(), 1.0)) >= 0.9


async def test_pools_that_keep_arriving_are_waited_for_within_bounds(
    make_pool: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("berth_operator.loop._ARRIVALS_SECONDS", 3.0)
    cluster = _Pools()
    seconds = await _seconds(_loop(cluster, 0.5), lambda n: cluster.pools.append(make_pool(f"p{n}")))
    assert seconds >= 2.9
