"""From what workers say to what status says: is a drifted profile raised, offered corrected, and laid to rest?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
import yaml
from berth_operator.api import CapacityType, HardwareClass, InferencePool, Quantization, ServingProfile
from berth_operator.cli import explain
from berth_operator.cli.app import app
from berth_operator.cli.snapshots import Inputs
from berth_operator.cluster.observe import Worker
from berth_operator.load.drift import DriftPolicy
from berth_operator.load.facts import LoadFacts
from berth_operator.load.page import Page
from berth_operator.load.traffic import Traffic
from berth_operator.load.watch import Watch, WatchSettings
from berth_operator.planner import PoolPlan, Snapshot
from berth_operator.status import pool_status
from typer.testing import CliRunner

MakePool = Callable[..., InferencePool]
MakeClass = Callable[..., HardwareClass]
MakePlan = Callable[..., PoolPlan]
EVERY = 5.0


def profile(step_ms: int = 50) -> ServingProfile:
    """Steps of so many milliseconds, whatever the concurrency."""
    points = [
        {
            "concurrency": b,
            "contextTokens": 3000,
            "decodeTokensPerSecond": f"{1000 * b / step_ms:.3f}",
            "interTokenLatencyP99": f"{2 * step_ms}ms",
        }
        for b in (1, 8)
    ]
    spec = {
        "model": "smollm2-135m-instruct",
        "quantization": "Int8",
        "hardwareClass": "graviton4-4xl",
        "runtime": "Berth",
        "points": points,
        "prefillTokensPerSecond": "10000",
        "kvCacheTokens": 100_000,
        "provenance": {"method": "Published", "source": "a data sheet"},
    }
    return ServingProfile.model_validate({"metadata": {"name": "slow-truth"}, "spec": spec}, extra="forbid")


class Decoding:
    """A worker with four requests at once, each getting a token every `gap_s`."""

    def __init__(self, gap_s: float) -> None:
        self.gap_s = gap_s
        self.page = Page(4, 0)

    async def read(self, _: str) -> Page:
        self.page = Page(
            4,
            0,
            finished=self.page.finished + 1,
            generated_tokens=self.page.generated_tokens + 4 * EVERY / self.gap_s,
            gap_seconds=self.page.gap_seconds + 4 * EVERY,
            gaps=self.page.gaps + 4 * EVERY / self.gap_s,
        )
        return self.page


class Scene:
    """One pool with one worker, and its load as the loop sees it, by a clock of the test's own."""

    def __init__(self, pool: InferencePool, hardware: HardwareClass, reader: Any) -> None:
        self.now = 0.0
        self.pool, self.hardware, self.profile = pool, hardware, profile()
        self.worker = Worker(
            pool=pool.key,
            hardware_class=hardware.metadata.name,
            capacity_type=CapacityType.ON_DEMAND,
            node="node-0",
            ready=True,
            unschedulable=False,
            deleting=False,
            name="w0",
            address="192.0.2.9",
            quantization=Quantization.INT8,
        )
        settings = WatchSettings(every_s=EVERY, drift=DriftPolicy())
        self.watch = Watch(reader, lambda: [self.pool], lambda: [self.worker], settings, clock=lambda: self.now)
        self.traffic = Traffic(self.watch, None)

    async def minutes(self, count: float) -> LoadFacts:
        for _ in range(int(count * 60 / EVERY)):
            self.now += EVERY
            await asyncio.gather(*self.watch.begin_round())
        return self.facts()

    def facts(self) -> LoadFacts:
        return self.traffic.facts([self.pool], [self.worker], [self.hardware], [self.profile])[self.pool.key]

    def take(self, facts: LoadFacts, plan: PoolPlan, now: datetime) -> None:
        """The status is written."""
        self.pool = self.pool.model_copy(update={"status": pool_status(self.pool, plan, [], now, None, facts)})


async def test_a_lasting_contradiction_becomes_a_condition_and_a_corrected_profile_ends_it(
    make_pool: MakePool, make_class: MakeClass, make_plan: MakePlan, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(make_pool(), make_class(), Decoding(gap_s=0.1))
    assert (await scene.minutes(10)).drift == ()
    facts = await scene.minutes(15)
    assert [(d.profile, d.speed_percent, d.concurrency) for d in facts.drift] == [("slow-truth", 50, 4)]
    scene.take(facts, make_plan(scene.pool), now)
    (said,) = (c for c in scene.pool.status.conditions or () if c.type == "ProfileDrift")
    assert (said.status, said.reason) == ("True", "SlowerThanProfile")
    assert "decode at 50% of what ServingProfile slow-truth says" in said.message

    again = await scene.minutes(60)
    scene_status = scene.pool.status
    scene.take(again, make_plan(scene.pool), now)
    assert scene.pool.status is scene_status, "an hour of the same writes nothing"

    snapshot = Snapshot(now, (scene.pool,), (scene.hardware,), (scene.profile,))
    monkeypatch.setattr(explain, "gather", lambda *_, **__: Inputs(snapshot))
    told = CliRunner().invoke(app, ["explain", "default/agents"], catch_exceptions=False).stdout
    assert "decoded at 50% of what ServingProfile slow-truth says" in " ".join(told.split())
    offered = ServingProfile.model_validate(yaml.safe_load(told[told.index("apiVersion:") :]), extra="forbid")
    assert [str(point.decode_tokens_per_second) for point in offered.spec.points] == ["10.000", "80.000"]
    data = yaml.safe_load(CliRunner().invoke(app, ["explain", "default/agents", "-o", "yaml"]).stdout)
    assert ServingProfile.model_validate(data["correctedProfiles"][0]) == offered

    scene.profile = offered
    assert (await scene.minutes(3)).drift == ()
    scene.take(scene.facts(), make_plan(scene.pool), now)
    assert "ProfileDrift" not in {c.type for c in scene.pool.status.conditions or ()}


async def test_what_was_said_of_a_profile_outlives_a_restart(
    make_pool: MakePool, make_class: MakeClass, make_plan: MakePlan, now: datetime
) -> None:
    scene = Scene(make_pool(), make_class(), Decoding(gap_s=0.1))
    scene.take(await scene.minutes(25), make_plan(scene.pool), now)
    status = scene.pool.status
    restarted = Scene(scene.pool, scene.hardware, Decoding(gap_s=0.1))
    for facts in (restarted.facts(), await restarted.minutes(5), await restarted.minutes(30)):
        restarted.take(facts, make_plan(scene.pool), now)
        assert restarted.pool.status is status


async def test_a_pool_whose_class_has_no_profile_has_nothing_to_contradict(
    make_pool: MakePool, make_class: MakeClass
) -> None:
    scene = Scene(make_pool(), make_class("another"), Decoding(gap_s=0.1))
    assert (await scene.minutes(30)).drift == ()


async def test_an_operator_that_has_just_started_takes_back_nothing_that_was_said_of_load(
    make_pool: MakePool, make_class: MakeClass, make_plan: MakePlan, now: datetime
) -> None:
    scene = Scene(make_pool(scaling={"mode": "Observed"}), make_class(), Decoding(gap_s=0.05))
    scene.traffic.in_force([scene.pool], now)
    scene.take(await scene.minutes(1), make_plan(scene.pool), now)
    (said,) = (c for c in scene.pool.status.conditions or () if c.type == "LoadObserved")
    assert (said.status, said.reason) == ("True", "Observed")
    restarted = Scene(scene.pool, scene.hardware, Decoding(gap_s=0.05))
    restarted.traffic.in_force([restarted.pool], now)
    facts = restarted.facts()
    assert facts.conditions["LoadObserved"] == ("True", "Observed", said.message)
    restarted.take(facts, make_plan(scene.pool), now)
    assert restarted.pool.status is scene.pool.status


def test_the_very_pool_is_planned_while_nothing_changes(
    make_pool: MakePool, make_class: MakeClass, now: datetime
) -> None:
    scene = Scene(make_pool(scaling={"mode": "Observed"}), make_class(), Decoding(gap_s=0.05))
    (first,) = scene.traffic.in_force([scene.pool], now)
    demand = next(iter(scene.traffic._demands.values()))
    status = scene.pool.status.model_copy(update={"demand": demand})
    pool = scene.pool.model_copy(update={"status": status})
    planned = [scene.traffic.in_force([pool], now)[0] for _ in range(3)]
    assert planned[0] is planned[1] is planned[2]
    assert first.spec == planned[0].spec
    assert scene.traffic.in_force([make_pool("declared")], now)[0].spec.workload.demand.requests_per_second == 4
