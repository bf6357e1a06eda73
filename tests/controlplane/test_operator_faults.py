"""Does a fault in one pass, or in one pool, stop anything else?  The loop runs in this process, to put faults in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import pytest
from berth_operator import executor as executor_module
from berth_operator import passes
from berth_operator.cluster.cluster import Cluster
from berth_operator.cluster.kube import Kube
from berth_operator.executor import Executor
from berth_operator.loop import Loop, LoopSettings
from berth_operator.telemetry import Telemetry
from prometheus_client import CollectorRegistry

if TYPE_CHECKING:
    from conftest import Fleet


class Running:
    """A loop at work on one namespace, with the administrator's rights."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.registry = CollectorRegistry()
        self.kube = kube
        self.turns = 0
        self.cluster = Cluster(kube, self._wake, [namespace])
        settings = LoopSettings(debounce_s=0.05, interval_s=0.5)
        telemetry = Telemetry(self.registry)
        executor = Executor(self.cluster, telemetry)
        self.loop = Loop(self.cluster, executor, telemetry, settings, leading=self._leading)

    def _wake(self) -> None:
        self.loop.mark_dirty()

    def _leading(self) -> bool:
        self.turns += 1  # the loop asks once a turn
        return self.kube.may_write()

    def passes(self, result: str) -> float:
        """How many passes came to this result."""
        return self.registry.get_sample_value("berth_plans_total", {"result": result}) or 0.0

    async def until(self, what: str, condition: Callable[[], Any], seconds: float = 20.0) -> None:
        """Await a condition that may ask the API server through kubectl."""
        try:
            async with asyncio.timeout(seconds):
                while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - another process's doing
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pytest.fail(f"{what}: not so after {seconds} s")


@pytest.fixture
async def running(fleet: Fleet, namespace: str) -> AsyncIterator[Running]:
    async with await Kube.connect(str(fleet.cluster.kubeconfig)) as kube:
        running = Running(kube, namespace)
        tasks = [asyncio.create_task(running.cluster.run()), asyncio.create_task(running.loop.run())]
        yield running
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_plan_that_fails_changes_nothing_and_is_made_again(
    fleet: Fleet, running: Running, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_snapshot: object, _stale: object) -> None:
        raise ArithmeticError("the solver broke")

    with monkeypatch.context() as fault:
        fault.setattr(executor_module, "plan_priced", fail)
        fleet.pool(namespace, "agents")
        await running.until("two plans have failed", lambda: running.passes("error") >= 2)
        assert fleet.children(namespace) == {}
    await running.until("the pool is served", lambda: fleet.ready(namespace, "agents"))


async def test_a_pool_that_cannot_be_rendered_stops_no_other(
    fleet: Fleet, running: Running, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = passes.render

    def render(planned: Any, *rest: Any) -> Any:
        if any(key.endswith("/cursed") for key in planned.pools):
            raise KeyError("no such thing")
        return real(planned, *rest)

    with monkeypatch.context() as fault:
        fault.setattr(passes, "render", render)
        fleet.pool(namespace, "cursed")
        fleet.pool(namespace, "agents")
        await running.until("the other pool is served", lambda: fleet.ready(namespace, "agents"))
        assert not [name for _, name in fleet.children(namespace) if name.startswith("cursed")]
        assert running.passes("partial") > 0
    await running.until("it is served once it can be rendered", lambda: fleet.ready(namespace, "cursed"))


async def test_a_replica_that_loses_the_lease_stops_writing_and_goes_on_when_it_has_it_again(
    fleet: Fleet, running: Running, namespace: str
) -> None:
    await running.until("it passes", lambda: running.passes("success") > 0)
    running.kube.may_write = lambda: False
    asked = running.turns
    await running.until("a pass that had begun is over", lambda: running.turns > asked)
    fleet.pool(namespace, "agents")
    await running.until("it has seen the pool", lambda: (namespace, "agents") in running.cluster.pools)
    before, turns = running.passes("success"), running.turns
    await running.until("three more turns of the loop", lambda: running.turns >= turns + 3)
    assert fleet.children(namespace) == {}
    assert running.passes("success") == before
    running.kube.may_write = lambda: True
    await running.until("the pool is served", lambda: fleet.ready(namespace, "agents"))


async def test_pools_of_other_namespaces_are_left_alone(fleet: Fleet, running: Running, namespace: str) -> None:
    fleet.pool("default", "elsewhere")
    fleet.pool(namespace, "here")
    try:
        await running.until("the pool of its namespace is served", lambda: fleet.ready(namespace, "here"))
        assert ("default", "elsewhere") not in running.cluster.pools
        assert fleet.status("default", "elsewhere") == {}
    finally:
        fleet.cluster.kubectl("delete", "bpool", "elsewhere", "--namespace=default")
