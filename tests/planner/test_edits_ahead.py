"""Between passes, is an edited pool carried out as the next pass would have it, and nothing else touched?"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from berth_operator import executor as executor_module
from berth_operator.cluster.cluster import Cluster
from berth_operator.cluster.resources import DEPLOYMENTS, HARDWARE_CLASSES, NAMESPACES, POOLS
from berth_operator.executor import MOST_AHEAD, Executor
from berth_operator.planner import fleet
from berth_operator.telemetry import Telemetry
from devcluster.hardware import graviton4, on_demand
from devcluster.pretend import PretendCluster
from prometheus_client import CollectorRegistry

Spec = dict[str, Any]
POOLS_THERE = 12


class World:
    """A fleet that counts as a large one, at rest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, large: bool = True) -> None:
        if large:
            monkeypatch.setattr(fleet, "FLAT", 0)
        self.pretend = pretend = PretendCluster(datetime(2026, 11, 2, tzinfo=UTC), loading=timedelta(seconds=30))
        monkeypatch.setattr(executor_module, "datetime", pretend.clock())
        api: Any = pretend
        self.cluster = Cluster(api, lambda: None)
        pretend.reflectors = list(self.cluster._reflectors)
        self.executor = Executor(self.cluster, Telemetry(CollectorRegistry()))
        pretend.put(NAMESPACES, {"metadata": {"name": "team"}})
        for name, usd in (("arm", "0.638"), ("arm-large", "2.552")):
            size = {"cpus": 64, "memoryGiB": 128} if name == "arm-large" else {}
            pretend.put(HARDWARE_CLASSES, graviton4(name, on_demand(usd, name), **size))
            pretend.nodes[name, "OnDemand"] = {f"{name}-{n}" for n in range(400)}
        for n in range(POOLS_THERE):
            self.put(f"p{n}", 2.0 + n)

    def put(self, name: str, rate: float, **spec: Any) -> None:
        """Make or edit a pool."""
        there = self.pretend.objects.get((POOLS.plural, "team", name), {})
        body = {
            "model": {"name": "smollm2-135m-instruct"},
            "workload": {"class": "Interactive", "demand": {"requestsPerSecond": f"{rate:.2f}"}},
        }
        metadata = {"name": name, "namespace": "team"}
        self.pretend.put(POOLS, {"metadata": metadata, "spec": body | spec, "status": there.get("status", {})})

    async def settle(self) -> None:
        """Until three passes, and the time between them, bring nothing more."""
        quiet = 0
        for _ in range(60):
            written = len(self.pretend.writes)
            assert not (await self.executor.pass_once()).results.get("Failed")
            self.pretend.pass_time(timedelta(seconds=40))
            quiet = quiet + 1 if len(self.pretend.writes) == written else 0
            if quiet == 3:
                return
        raise AssertionError(self.pretend.writes[-8:])

    async def ahead(self) -> list[str]:
        """The shortcut; what it wrote."""
        written = len(self.pretend.writes)
        await self.executor.carry_out_edits()
        return self.pretend.writes[written:]

    def shape(self) -> dict[str, Any]:
        """What runs, and what statuses say, without times and counters."""
        replicas = {d["metadata"]["name"]: d["spec"]["replicas"] for d in self.pretend.all(DEPLOYMENTS)}
        pools = {p["metadata"]["name"]: p["status"] for p in self.pretend.all(POOLS)}
        return {"replicas": replicas} | {
            name: (said["placements"], said["effective"], said["observedGeneration"]) for name, said in pools.items()
        }


async def test_an_edit_is_carried_out_whole_and_the_pass_after_it_has_nothing_to_add(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    await world.settle()
    world.put("p3", 90.0)
    writes = await world.ahead()
    assert any("PATCH deployments team/p3" in one for one in writes)
    assert "PATCH inferencepools/status team/p3" in writes
    assert all("team/p3" in one or "/events" in one for one in writes), writes
    status = world.pretend.objects[POOLS.plural, "team", "p3"]["status"]
    assert status["observedGeneration"] == world.pretend.objects[POOLS.plural, "team", "p3"]["metadata"]["generation"]
    assert await world.ahead() == []
    written = len(world.pretend.writes)
    await world.executor.pass_once()
    assert {one.split()[1] for one in world.pretend.writes[written:]} <= {"hardwareclasses/status"}


@pytest.mark.parametrize("seed", range(6))
async def test_shortcuts_end_where_passes_alone_would(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)  # noqa: S311
    short, whole = World(monkeypatch), World(monkeypatch)  # both by the clock of the second
    for _ in range(4):
        await short.settle()
        await whole.settle()
        for name in rng.sample([f"p{n}" for n in range(POOLS_THERE)], rng.randint(1, 3)):
            rate, suspended = rng.uniform(1, 60), rng.random() < 0.2
            for world in (short, whole):
                world.put(name, rate, suspend=suspended)
            if rng.random() < 0.7:
                assert await short.ahead()
    await short.settle()
    await whole.settle()
    assert short.shape() == whole.shape()


async def test_what_a_shortcut_cannot_do_is_left_to_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    assert await world.ahead() == [], "nothing has been planned yet"
    await world.settle()
    world.put("new", 3.0)
    assert await world.ahead() == [], "a pool that is new"
    await world.settle()
    for n in range(MOST_AHEAD + 1):
        world.put(f"p{n}", 33.0 + n)
    assert await world.ahead() == [], "many at once are planned together"
    await world.settle()
    world.put("p1", 3.0, scaling={"mode": "Observed"})
    assert await world.ahead() == [], "its own traffic decides"


async def test_a_small_fleet_is_planned_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, large=False)
    await world.settle()
    world.put("p3", 90.0)
    assert await world.ahead() == []
    await world.settle()
    assert world.pretend.objects[POOLS.plural, "team", "p3"]["status"]["observedGeneration"] == 2


async def test_a_rollout_waits_for_its_turn_in_a_shortcut_too(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.executor._settings = executor_module.ExecutorSettings(max_moves=1)
    await world.settle()
    for name in ("p1", "p2"):
        world.put(name, 3.0, worker={"annotations": {"edited": "yes"}})
    await world.ahead()
    queued = [
        name
        for name in ("p1", "p2")
        for c in world.pretend.objects[POOLS.plural, "team", name]["status"]["conditions"]
        if c["type"] == "Progressing" and c["reason"] == "Queued"
    ]
    assert len(queued) == 1
    await world.settle()
    assert all(
        d["spec"]["template"]["metadata"]["annotations"].get("edited") == "yes"
        for d in world.pretend.all(DEPLOYMENTS)
        if d["metadata"]["name"].startswith(("p1-", "p2-"))
    )


async def test_an_edit_that_cannot_be_written_is_tried_once_and_left_to_the_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    await world.settle()
    world.put("p3", 90.0)

    def fail(*_: object) -> None:
        raise ArithmeticError("the solver broke")

    with monkeypatch.context() as fault:
        fault.setattr(executor_module, "plan_priced", fail)
        with pytest.raises(ArithmeticError):
            await world.ahead()
        assert await world.ahead() == []
    await world.settle()
    assert world.pretend.objects[POOLS.plural, "team", "p3"]["status"]["observedGeneration"] == 2
