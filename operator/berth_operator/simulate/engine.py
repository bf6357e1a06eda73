"""What does each policy cost over a scenario, and what share of the turns keeps its promise?

The same demand, prices, shortages and luck for every policy; each with a fleet of its own.  Pure and reproducible.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from berth_operator.api import CapacityType, HardwareClass, HardwareKind
from berth_operator.catalog.entry import CHIP_WATTS_ANNOTATION
from berth_operator.simulate.demand import demand
from berth_operator.simulate.fleet import Kind, PoolFleet
from berth_operator.simulate.market import Market, Resource
from berth_operator.simulate.policies import Berth, Fixed, KarpenterLike, Policy, Pool, View
from berth_operator.simulate.scenario import Scenario

Array = npt.NDArray[np.float64]


@dataclass(slots=True)
class Outcome:
    """What one policy came to."""

    name: str
    usd: float = 0.0
    turns: float = 0.0
    within: float = 0.0
    """Turns within the objectives."""
    started: int = 0
    """Replicas started, the first ones aside."""
    moves: int = 0
    """Times that a pool's hardware was changed by decision."""
    interrupted: int = 0
    """Spot nodes taken away."""
    kilowatt_hours: float | None = 0.0
    """None where a class used states no power."""
    unserved: list[str] = field(default_factory=list)
    """Pools that it never gave anything."""
    usd_per_hour: Array = field(default_factory=lambda: np.zeros(0))
    """[step]"""
    within_share: Array = field(default_factory=lambda: np.zeros(0))
    nodes: Array = field(default_factory=lambda: np.zeros(0))
    node_hours: dict[Resource, float] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Of turns within their objectives."""
        return self.within / self.turns if self.turns else 1.0


@dataclass(frozen=True, slots=True)
class Simulation:
    """Demand and every policy's outcome."""

    scenario: Scenario
    hours: Array
    """Start of each step."""
    demand: Mapping[str, Array]
    """Turns/s by pool, [step]."""
    outcomes: tuple[Outcome, ...]


def policies(
    scenario: Scenario, pools: Sequence[Pool], classes: Sequence[HardwareClass], market: Market
) -> tuple[Policy, ...]:
    """Ours first, then what a user would run otherwise."""
    limits = {
        (item.metadata.name, capacity.type): limit
        for item in classes
        for capacity in item.spec.capacity
        if (limit := market.limit((item.metadata.name, capacity.type))) is not None
    }
    gpus = frozenset({HardwareKind.GPU})
    return (
        Berth("berth", scenario, pools, limits),
        Berth("berth-gpu-only", scenario, pools, limits, gpus),
        Fixed("gpu-autoscaled", scenario, pools, limits, gpus),
        Fixed("fixed-by-hand", scenario, pools, limits),
        KarpenterLike("karpenter-like", scenario, pools, limits),
    )


def simulate(
    scenario: Scenario,
    pools: Sequence[Pool],
    classes: Sequence[HardwareClass],
    *,
    only: Sequence[str] = (),
    on_step: Callable[[], None] = lambda: None,
) -> Simulation:
    """Run every policy (or those named) through the scenario; `on_step` is called after each step of each."""
    market = Market(scenario, classes)
    copies = {pool.key: pool.copy_of for pool in pools if pool.copy_of}
    series = demand(scenario, {pool.key: pool.peak for pool in pools}, copies)
    chosen = [p for p in policies(scenario, pools, classes, market) if not only or p.name in only]
    watts = {item.metadata.name: node_watts(item, scenario) for item in classes}
    outcomes = tuple(_run(policy, scenario, pools, market, series, watts, on_step) for policy in chosen)
    return Simulation(scenario, np.arange(scenario.steps, dtype=np.float64) * scenario.step_hours, series, outcomes)


def node_watts(item: HardwareClass, scenario: Scenario) -> float | None:
    """Power of a node: its own figure, else its chips', else for CPUs the scenario's figure a vCPU."""
    if item.spec.power_watts is not None:
        return float(item.spec.power_watts)
    if chips := item.metadata.annotations.get(CHIP_WATTS_ANNOTATION):
        return float(chips)
    if item.spec.kind is HardwareKind.CPU:
        return item.spec.cpus * float(scenario.watts_per_vcpu)
    return None


def _run(
    policy: Policy,
    scenario: Scenario,
    pools: Sequence[Pool],
    market: Market,
    series: Mapping[str, Array],
    watts: Mapping[str, float | None],
    on_step: Callable[[], None],
) -> Outcome:
    fleets = {pool.key: PoolFleet() for pool in pools}
    out = Outcome(policy.name)
    out.usd_per_hour, out.within_share, out.nodes = (np.zeros(scenario.steps) for _ in range(3))
    for step in range(scenario.steps):
        now, end = step * scenario.step_hours, (step + 1) * scenario.step_hours
        out.interrupted += _interrupt(fleets, market, step, now)
        room = 1 + scenario.headroom_percent / 100
        seen = {key: float(values[max(0, step - 1)]) * room for key, values in series.items()}
        view = View(step, now, seen, market.classes_at(step), partial(_to_be_had, market, step), fleets)
        targets = policy.decide(view)
        _steer(fleets, targets, market, step, now, out)
        _account(out, fleets, series, market, watts, step, now, end)
        on_step()
    out.unserved = sorted(key for key, fleet in fleets.items() if not fleet.wanted())
    return out


def _to_be_had(market: Market, step: int, resource: Resource) -> bool:
    """Whether nodes can be asked for; the fleet of the first step was there before, whatever is out of stock then."""
    return step == 0 or market.in_stock(resource, step)


def _interrupt(fleets: Mapping[str, PoolFleet], market: Market, step: int, now: float) -> int:
    """Take spot nodes away, from pools in proportion to what they have; returns how many."""
    resources = sorted({r for fleet in fleets.values() for r in fleet.resources(now) if r[1] is CapacityType.SPOT})
    total, keys = 0, sorted(fleets)
    for resource in resources:
        if market.reclaims(resource[0], step):
            for key in keys:
                if lost := market.reclaimed(resource[0], fleets[key].nodes(resource, now)):
                    total += fleets[key].interrupt(resource, lost, now)
        counts = [fleets[key].nodes(resource, now) for key in keys]
        lost = market.interrupted(resource[0], step, sum(counts))
        if lost:
            share = np.random.default_rng([step, zlib.crc32(resource[0].encode())])
            for key, nodes in zip(keys, share.multivariate_hypergeometric(counts, lost), strict=True):
                if nodes:
                    total += fleets[key].interrupt(resource, int(nodes), now)
    return total


def _steer(
    fleets: Mapping[str, PoolFleet],
    targets: Mapping[str, Mapping[Resource, tuple[Kind, int]]],
    market: Market,
    step: int,
    now: float,
    out: Outcome,
) -> None:
    used: dict[Resource, int] = {}
    for fleet in fleets.values():
        for resource in fleet.resources(now):
            used[resource] = used.get(resource, 0) + fleet.nodes(resource, now)

    def grant(kind: Kind, replicas: int) -> int:
        limit = market.limit(kind.resource)
        if not _to_be_had(market, step, kind.resource):
            return 0
        room = math.inf
        if limit is not None:
            left = max(0, limit - used.get(kind.resource, 0))
            room = left // kind.nodes_per_replica * kind.replicas_per_node
        granted = int(min(replicas, room))
        nodes = kind.nodes(granted)
        used[kind.resource] = used.get(kind.resource, 0) + nodes
        return granted

    for key in sorted(targets):
        fleet, target = fleets[key], targets[key]
        before = fleet.wanted().keys()
        if step == 0:  # the fleet was there before the first step: nothing has to start
            target = {r: (replace(kind, start_hours=0.0), count) for r, (kind, count) in target.items()}
        started = fleet.steer(target, now, grant)
        if step:
            out.started += started
            out.moves += bool(before) and bool(target) and before != target.keys()


def _account(
    out: Outcome,
    fleets: Mapping[str, PoolFleet],
    series: Mapping[str, Array],
    market: Market,
    watts: Mapping[str, float | None],
    step: int,
    now: float,
    end: float,
) -> None:
    turns = within = usd = nodes = 0.0
    for key, fleet in fleets.items():
        served = fleet.run(now, end, float(series[key][step]))
        turns += served.turns
        within += served.within
        for resource, hours in served.node_hours.items():
            usd += hours * market.usd_per_hour(resource, step)
            nodes += hours
            out.node_hours[resource] = out.node_hours.get(resource, 0.0) + hours
            power = watts[resource[0]]
            if power is None:
                out.kilowatt_hours = None
            elif out.kilowatt_hours is not None:
                out.kilowatt_hours += hours * power / 1000
    out.turns += turns
    out.within += within
    out.usd += usd
    out.usd_per_hour[step] = usd / (end - now)
    out.within_share[step] = within / turns if turns else 1.0
    out.nodes[step] = nodes / (end - now)
