"""Through two days of lost nodes, prices, shortages and edits: does a pool ever have less than it needs and could?

The operator's own loop, from what it observes to what it writes, on a pretended cluster with a clock of its own
(`devcluster.pretend`).  What a pool needs, what it has and what could be had is computed here, from pods and nodes, not
taken from what the operator says.  BERTH_SIMULATED_SEEDS=100 runs a hundred worlds instead of the usual ones.

At each step, whatever happened:
- no step of the operator takes away ready capacity that the pool needs (`_check_floor`);
- every child has a living owner, and each placement one Deployment;
- a pool's limits hold: replicas, hardware, spot's share of the traffic, in all and in any one zone of a class, budget;
- statuses are of the spec in force, and parse.
After each calm half hour: every pool is served as far as nodes can be had, and one more pass writes nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from berth_operator import executor as executor_module
from berth_operator.api import HardwareClassStatus, InferencePool, InferencePoolStatus, resolve
from berth_operator.cluster.cluster import Cluster
from berth_operator.cluster.resources import HARDWARE_CLASSES, NAMESPACES, POOLS
from berth_operator.executor import Executor
from berth_operator.planner import Snapshot, fleet
from berth_operator.planner.judged import judge_pools
from berth_operator.telemetry import Telemetry
from devcluster.pretend import Place, PretendCluster
from prometheus_client import CollectorRegistry

SEEDS = int(os.environ.get("BERTH_SIMULATED_SEEDS", "3"))
START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
HOURS = 48
EVERY = timedelta(minutes=60)
"""Between two events."""
CALM = [20, 40, 61, 61, 120, 240, 600]
"""Seconds from one look to the next after an event."""
EVENTS = ["price", "spot loss", "mass loss", "node loss", "edit", "edit", "edit", "shortage", "plenty"]
PLENTY = 40
"""Nodes of each place in good times: more than all pools need."""

Spec = dict[str, Any]
CLASSES: dict[str, Spec] = {
    "arm": {"kind": "CPU", "cpus": 16, "memoryGiB": 32, "memoryBandwidthGBps": 228, "compute": {"int8Tops": 11}},
    "arm-large": {"kind": "CPU", "cpus": 64, "memoryGiB": 128, "memoryBandwidthGBps": 538, "compute": {"int8Tops": 45}},
    "gpu": {"kind": "GPU", "cpus": 4, "memoryGiB": 24, "memoryBandwidthGBps": 300, "compute": {"bf16Tflops": 121}},
}
ZONES = {"arm": ["a", "b", "c"]}
"""That spot nodes of a class lie in, where it says so."""
PRICES: dict[Place, float] = {
    ("arm", "OnDemand"): 0.638,
    ("arm", "Spot"): 0.255,
    ("arm-large", "OnDemand"): 2.552,
    ("gpu", "OnDemand"): 0.805,
    ("gpu", "Spot"): 0.35,
}


class World:
    """A cluster, an operator on it, and what happens to them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)  # noqa: S311
        self.pretend = PretendCluster(START)
        kube: Any = self.pretend
        self.cluster = Cluster(kube, lambda: None)
        self.pretend.reflectors = list(self.cluster._reflectors)
        self.executor = Executor(self.cluster, Telemetry(CollectorRegistry()))
        self.executor._replanner.clock = self.clock
        self.carries: dict[str, dict[Place, float]] = {}
        self.told: list[str] = []
        self.prices = dict(PRICES)
        self.events = Counter[str]()
        self.short: set[Place] = set()
        """Places of which no more nodes can be had."""
        for place in PRICES:
            self.pretend.nodes[place] = {f"{place[0]}-{place[1].lower()}-{i}" for i in range(PLENTY)}
        self.pretend.put(NAMESPACES, {"metadata": {"name": "team"}})
        self.write_classes()
        for name in ("a", "b", "c"):
            self.put_pool(name, self.some_spec())

    def clock(self) -> float:
        """Seconds, for what is measured in seconds."""
        return self.pretend.now.timestamp()

    # What users do

    def write_classes(self) -> None:
        for name, facts in CLASSES.items():
            capacity = [
                {"type": kind, "usdPerHour": f"{usd:.3f}", "selector": {"place": f"{name}-{kind}".lower()}}
                | ({"zones": ZONES[name]} if kind == "Spot" and name in ZONES else {})
                for (of, kind), usd in self.prices.items()
                if of == name
            ]
            architecture = "arm64" if facts["kind"] == "CPU" else "amd64"
            devices = {} if facts["kind"] == "CPU" else {"accelerators": {"resource": "nvidia.com/gpu", "count": 1}}
            runtime = {"name": "Berth" if facts["kind"] == "CPU" else "VLLM"}
            spec = {"vendor": "X", "chip": name, "architecture": architecture, "capacity": capacity, "runtime": runtime}
            there = self.pretend.objects.get((HARDWARE_CLASSES.plural, "", name), {})
            body = {"metadata": {"name": name}, "spec": facts | spec | devices, "status": there.get("status", {})}
            self.pretend.put(HARDWARE_CLASSES, body)

    def some_spec(self) -> Spec:
        return {
            "model": {"name": "smollm2-135m-instruct"},
            "workload": {
                "class": self.rng.choice(["Agentic", "Interactive", "Batch"]),
                "demand": {"requestsPerSecond": f"{self.rng.uniform(1, 60):.2f}"},
            },
            "placement": {"disruption": {"cooldown": self.rng.choice(["0s", "10m", "1h"])}},
        }

    def put_pool(self, name: str, spec: Spec) -> None:
        there = self.pretend.objects.get((POOLS.plural, "team", name), {})
        metadata = {"name": name, "namespace": "team"}
        self.pretend.put(POOLS, {"metadata": metadata, "spec": spec, "status": there.get("status", {})})
        self.carries.pop(f"team/{name}", None)

    def edit(self) -> str:
        """Change something of a pool, or make or delete one."""
        pools = self.pretend.all(POOLS)
        body = self.rng.choice(pools)
        name, spec = body["metadata"]["name"], json.loads(json.dumps(body["spec"]))
        placement = spec["placement"]
        what = self.rng.choice(["demand", "demand", "suspend", "spot", "hardware", "replicas", "budget", "new", "gone"])
        match what:
            case "demand":
                spec["workload"]["demand"]["requestsPerSecond"] = f"{self.rng.uniform(1, 60):.2f}"
            case "suspend":
                spec["suspend"] = not spec.get("suspend", False)
            case "spot":
                placement["spot"] = {"maxTrafficPercent": self.rng.choice([0, 50, 100]), "minOnDemandReplicas": 0}
            case "hardware":
                denied = self.rng.choice([[], ["gpu"], ["arm"], ["arm", "arm-large"]])
                placement["hardware"] = {"deny": {"names": denied}}
            case "replicas":
                spec["scaling"] = {"minReplicas": self.rng.randint(1, 4)}
            case "budget":
                spec["budget"] = self.rng.choice([None, {"maxUsdPerHour": "1.50", "onExceeded": "Shed"}])
                spec = {k: v for k, v in spec.items() if v is not None}
            case "new":
                name, spec = self.rng.choice("abcdef"), self.some_spec()
            case "gone" if len(pools) > 1:
                self.pretend.remove(POOLS, "team", name)
                return "gone"
        self.put_pool(name, spec)
        return what

    # What happens

    def event(self) -> str:
        what = self.rng.choice(EVENTS)
        place = self.rng.choice(list(PRICES))
        match what:
            case "price":
                self.prices[place] = PRICES[place] * self.rng.choice([0.3, 0.7, 1.0, 1.0, 1.4, 3.0])
                self.write_classes()
            case "spot loss" | "mass loss":
                place = self.rng.choice([p for p in PRICES if p[1] == "Spot"])
                there = sorted(self.pretend.nodes[place])
                self.take(place, there if what == "mass loss" else there[: self.rng.randint(1, 10)])
            case "node loss":
                self.take(place, sorted(self.pretend.nodes[place])[:2])
            case "shortage":
                self.short.add(place)
                self.pretend.nodes[place] = self.in_use(place)
            case "plenty":
                for place in self.short:
                    self.grow(place, PLENTY)
                self.short.clear()
            case "edit":
                return f"edit {self.edit()}"
        return what

    def take(self, place: Place, names: list[str]) -> None:
        """Nodes go; as many others come at once, as an autoscaler would bring them, while there are any."""
        self.pretend.lose(place, names)
        if place not in self.short:
            self.grow(place, len(names))

    def grow(self, place: Place, count: int) -> None:
        self.events["new nodes"] += count
        fresh = {f"{place[0]}-{place[1].lower()}-new-{self.events['new nodes']}-{i}" for i in range(count)}
        self.pretend.nodes[place] |= fresh

    def in_use(self, place: Place) -> set[str]:
        taken = {pod["spec"].get("nodeName") for key in self.keys() for pod in self.pretend.pods(*key.split("/"))}
        return self.pretend.nodes[place] & taken

    async def look(self) -> None:
        """One pass of the operator, and what it may not have done."""
        before = {key: self.capacity(key) for key in self.keys()}
        await self.executor.carry_out_edits()
        result = await self.executor.pass_once()
        if self.executor._refreshing:
            await self.executor._refreshing
        assert not result.results.get("Failed"), result.results
        self.pretend.pass_time(timedelta(0))
        self.check_floor(before)
        self.check_objects()
        self.check_limits()

    async def live(self) -> None:
        """From one event to the next."""
        for seconds in CALM:
            for _ in range(6):
                written = len(self.pretend.writes)
                await self.look()
                if len(self.pretend.writes) == written:
                    break
            before = {key: self.capacity(key) for key in self.keys()}
            self.pretend.pass_time(timedelta(seconds=seconds))
            self.check_floor(before)
        back_offs = []
        for _ in range(8):
            back_offs.append(self.back_off())
            written = len(self.pretend.writes)
            await self.look()
            self.pretend.pass_time(timedelta(seconds=130))
        # What cannot be had is tried again when its back-off ends, and given up a little later if it still cannot.
        before = back_offs[-2]
        trying = self.back_off() != before or any(until <= self.pretend.now for until in before.values())
        assert trying or self.pretend.writes[written:] == [], f"not settled: {self.pretend.writes[written:]}"
        self.check_served()
        self.pretend.pass_time(EVERY - timedelta(seconds=sum(CALM) + 8 * 130))

    # What is so

    def back_off(self) -> dict[Place, datetime]:
        """Places that the operator takes to be short, and until when, as their classes' statuses say."""
        entries = {
            (body["metadata"]["name"], entry["type"]): entry["until"]
            for body in self.pretend.all(HARDWARE_CLASSES)
            for entry in body["status"].get("constrained") or ()
        }
        return {place: datetime.fromisoformat(until) for place, until in entries.items()}

    def keys(self) -> list[str]:
        return [f"team/{body['metadata']['name']}" for body in self.pretend.all(POOLS)]

    def body(self, key: str) -> Any:
        return self.pretend.objects[POOLS.plural, *key.split("/")]

    def carried(self, key: str) -> dict[Place, float]:
        """Turns per second that a replica of a pool carries on each place: a fact of the hardware."""
        if key not in self.carries:
            classes = [
                c.model_copy(update={"status": HardwareClassStatus()}) for c in self.cluster.observe().hardware_classes
            ]
            pool = InferencePool.model_validate(self.body(key))
            open_spec = pool.spec.model_copy(update={"placement": None, "budget": None, "scaling": None})
            pool = pool.model_copy(update={"spec": open_spec})
            (judged,) = judge_pools(Snapshot(START, (pool,), tuple(classes)))
            self.carries[key] = {
                (o.hardware_class, o.capacity_type.value): o.capacity.turns_per_second
                for o in judged.candidates.options
            }
        return self.carries[key]

    def capacity(self, key: str) -> float:
        """Turns per second that the ready workers of a pool carry."""
        total = 0.0
        for pod in self.pretend.pods(*key.split("/")):
            labels = pod["metadata"]["labels"]
            if any(c["type"] == "Ready" for c in pod["status"]["conditions"]):
                place = labels["berth.dev/hardware-class"], labels["berth.dev/capacity-type"]
                total += self.carried(key).get(place, 0.0)
        return total

    def need(self, key: str) -> float:
        """Turns per second that a pool has to carry; nothing where its owner has asked for less."""
        spec = self.body(key)["spec"]
        if spec.get("suspend") or spec.get("budget"):
            return 0.0
        return float(spec["workload"]["demand"]["requestsPerSecond"])

    def check_floor(self, before: dict[str, float]) -> None:
        for key in self.keys():
            floor = min(self.need(key), before.get(key, 0.0))
            assert self.capacity(key) >= floor - 1e-6, (
                f"{key}: {self.capacity(key):.2f} turns/s are ready, {before[key]:.2f} were, {floor:.2f} are needed"
            )

    def check_objects(self) -> None:
        uids = {body["metadata"]["uid"] for body in self.pretend.all(POOLS)}
        placements = Counter[tuple[str, str, str]]()
        for (plural, _, name), body in self.pretend.objects.items():
            owners = [o for o in body["metadata"].get("ownerReferences", ()) if o["kind"] == "InferencePool"]
            if plural in ("deployments", "services", "poddisruptionbudgets"):
                assert [o["uid"] in uids for o in owners] == [True], f"{plural} {name} has no living owner"
            if plural == "deployments":
                labels = body["metadata"]["labels"]
                placements[owners[0]["uid"], labels["berth.dev/hardware-class"], labels["berth.dev/capacity-type"]] += 1
        assert not [key for key, count in placements.items() if count > 1], "a placement has two Deployments"

    def check_limits(self) -> None:
        for key in self.keys():
            body = self.body(key)
            status = InferencePoolStatus.model_validate(body.get("status", {}))
            assert status.observed_generation == body["metadata"]["generation"], key
            pool = InferencePool.model_validate(body)
            spec, placed = body["spec"], status.placements or []
            placement = spec["placement"]
            denied = placement.get("hardware", {}).get("deny", {}).get("names", [])
            assert not [p for p in placed if p.hardware_class in denied], f"{key}: on denied hardware"
            spot = sum(p.traffic_percent for p in placed if p.capacity_type.value == "Spot")
            assert spot <= placement.get("spot", {}).get("maxTrafficPercent", 100), f"{key}: {spot} % on spot"
            survive = resolve(pool.spec).survive_loss_percent
            for p in placed:
                if p.capacity_type.value == "Spot":
                    zones = len(ZONES.get(p.hardware_class, "1"))
                    lost = p.traffic_percent * -(-p.replicas // zones) / p.replicas
                    assert lost <= 100 - survive + (zones > 1), f"{key}: one zone's loss leaves less than {survive} %"
            least = spec.get("scaling", {}).get("minReplicas", 0)
            if placed and not spec.get("budget"):
                assert sum(p.replicas for p in placed) >= least, f"{key}: fewer than {least} replicas"
            if spec.get("budget") and status.cost and status.cost.usd_per_hour:
                assert float(status.cost.usd_per_hour) <= 1.5 + 1e-6, f"{key}: over its budget"

    def check_served(self) -> None:
        """At the end of a calm all that is needed is there, where on-demand nodes that may be used are plenty."""
        for key in self.keys():
            denied = self.body(key)["spec"]["placement"].get("hardware", {}).get("deny", {}).get("names", [])
            steady = [place for place in self.carried(key) if place[1] == "OnDemand" and place[0] not in denied]
            if set(steady) - self.short:
                said = self.body(key)["status"]["conditions"]
                assert self.capacity(key) >= self.need(key) - 1e-6, f"{key}: {self.capacity(key):.2f} turns/s; {said}"


@pytest.mark.parametrize("seed", range(SEEDS))
def test_two_days_of_trouble_leave_no_pool_below_what_it_needs(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if seed % 2:
        monkeypatch.setattr(fleet, "FLAT", 0)  # what large fleets do: the plan in force is amended, and edits go ahead
    world = World(seed)
    monkeypatch.setattr(executor_module, "datetime", world.pretend.clock())

    async def run() -> None:
        end = START + timedelta(hours=HOURS)
        while world.pretend.now < end:
            what = world.event()
            world.told.append(f"{world.pretend.now - START}: {what}")
            await world.live()

    try:
        asyncio.run(run())
    except AssertionError as error:
        error.add_note("\n".join(["what had happened:", *world.told[-12:]]))
        raise
