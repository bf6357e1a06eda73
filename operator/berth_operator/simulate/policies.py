"""Who decides what runs?  Berth's own planner, and what a user would run otherwise.

Each sees the same: the demand of the last step, prices, what is in stock, and what it runs.  Each makes room for the
same headroom.  None sees the future.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, Protocol

from berth_operator.api import CapacityType, Effective, HardwareClass, HardwareKind, Quantization, ServingProfile
from berth_operator.economics.crossover import speed_of
from berth_operator.planner import RunningPlacement, Verdict
from berth_operator.planner.candidates import Candidates, Option, PoolContext, candidates_of
from berth_operator.planner.capacity import Load
from berth_operator.planner.churn import Incumbent, decide
from berth_operator.planner.fleet import FleetSolver
from berth_operator.planner.judging import judge_all
from berth_operator.planner.program import PoolProblem
from berth_operator.planner.speed import Speed
from berth_operator.simulate.fleet import Kind, PoolFleet
from berth_operator.simulate.market import Resource
from berth_operator.simulate.scenario import Scenario

START: Final = datetime(2026, 1, 5, tzinfo=UTC)
"""A Monday: step 0 of every scenario."""

Target = Mapping[Resource, tuple[Kind, int]]


@dataclass(frozen=True, slots=True)
class Pool:
    """One pool of the scenario, as planners see it."""

    key: str
    effective: Effective
    namespace: str
    namespace_labels: Mapping[str, str]
    profiles: tuple[ServingProfile, ...]
    copy_of: str | None = None
    """Key of the pool that it is a copy of."""

    @property
    def peak(self) -> float:
        """Declared turns per second."""
        return float(self.effective.requests_per_second)


@dataclass(frozen=True, slots=True)
class View:
    """What a policy sees at one step."""

    step: int
    now: float
    """Hours from the start."""
    seen: Mapping[str, float]
    """Turns/s by pool, of the last step, with headroom."""
    classes: Sequence[HardwareClass]
    """With the prices of this step."""
    in_stock: Callable[[Resource], bool]
    fleets: Mapping[str, PoolFleet]


class Policy(Protocol):
    """Decides what each pool runs."""

    name: str

    def decide(self, view: View) -> Mapping[str, Target]:
        """Replicas wanted, by pool; a pool that is left out keeps what it has."""
        ...


def start_hours(scenario: Scenario, kind: HardwareKind) -> float:
    """From asking for a node to a worker that serves."""
    starts = scenario.starts
    found = {HardwareKind.CPU: starts.cpu, HardwareKind.GPU: starts.gpu}.get(kind, starts.accelerator)
    return found / timedelta(hours=1)


@dataclass(slots=True)
class Judge:
    """Candidates of each pool: judged once, priced anew when prices change, and both once for all copies of a pool."""

    scenario: Scenario
    pools: Sequence[Pool]
    _judged: dict[int, Candidates] = field(default_factory=dict)
    _prices: Mapping[Resource, Decimal] | None = None
    _priced: dict[str, Candidates] = field(default_factory=dict)

    def candidates(self, classes: Sequence[HardwareClass]) -> Mapping[str, Candidates]:
        """By pool, at the classes' prices; the classes are the same ones every time."""
        prices = {(item.metadata.name, c.type): c.usd_per_hour for item in classes for c in item.spec.capacity}
        if not self._judged:
            contexts = {_alike(p): _context(p) for p in self.pools}
            known = judge_all(list(contexts.values()), classes)
            self._judged = {
                alike: candidates_of(classes, replace(context, judged=mine))
                for (alike, context), mine in zip(contexts.items(), known, strict=True)
            }
        if prices != self._prices:
            self._prices = prices
            priced = {alike: _priced(found, prices) for alike, found in self._judged.items()}
            self._priced = {p.key: priced[_alike(p)] for p in self.pools}
        return self._priced

    def kind(self, option: Option) -> Kind:
        """An option as replicas of a fleet."""
        return Kind(
            option.resource,
            option.capacity.turns_per_second,
            option.replicas_per_node,
            start_hours(self.scenario, option.kind),
            option.nodes_per_replica,
        )


def _alike(pool: Pool) -> int:
    """The same for copies of one pool, which differ in their names alone."""
    return id(pool.effective)


def _context(pool: Pool) -> PoolContext:
    return PoolContext(pool.effective, pool.namespace, pool.namespace_labels, pool.profiles, START)


def _priced(found: Candidates, prices: Mapping[Resource, Decimal]) -> Candidates:
    options = tuple(
        replace(
            option,
            list_usd_per_hour=prices[option.resource],
            node_usd_per_hour=Decimal(0) if option.capacity_type is CapacityType.RESERVED else prices[option.resource],
        )
        for option in found.options
    )
    return Candidates(options, found.unfit)


# --- Ours -----------------------------------------------------------------------------------------------------------


class Berth:
    """The planner of the operator, over all classes or some kinds of them: one decision a step, with all its rules."""

    def __init__(
        self,
        name: str,
        scenario: Scenario,
        pools: Sequence[Pool],
        limits: Mapping[Resource, int],
        kinds: frozenset[HardwareKind] = frozenset(HardwareKind),
    ) -> None:
        self.name = name
        self._pools = pools
        self._judge = Judge(scenario, pools)
        self._limits = limits
        self._kinds = kinds
        self._moved: dict[str, datetime] = {}

    def decide(self, view: View) -> Mapping[str, Target]:
        now = START + timedelta(hours=view.now)
        candidates = self._judge.candidates([c for c in view.classes if c.spec.kind in self._kinds])
        resources = {(item.metadata.name, c.type) for item in view.classes for c in item.spec.capacity}
        out = {resource for resource in resources if not view.in_stock(resource)}
        problems, incumbents = [], {}
        for pool in self._pools:
            fleet = view.fleets[pool.key]
            wanted = fleet.wanted()
            demand = Decimal(f"{view.seen[pool.key]:.6f}")
            options = _available(candidates[pool.key].options, wanted, out)
            problems.append(PoolProblem(pool.key, replace(pool.effective, requests_per_second=demand), options))
            if wanted:
                ready = fleet.ready(view.now)
                running = tuple(
                    RunningPlacement(pool.key, name, kind, count, ready.get((name, kind), 0), count)
                    for (name, kind), count in sorted(wanted.items())
                )
                incumbents[pool.key] = Incumbent(running, self._moved.get(pool.key))
        solution = decide(problems, incumbents, FleetSolver(problems, self._limits), now).solution
        targets = {}
        for pool in self._pools:
            if pool.key not in solution.pools:
                continue
            target = {
                a.option.resource: (self._judge.kind(a.option), a.replicas)
                for a in solution.pools[pool.key].assignments
                if a.replicas
            }
            before = view.fleets[pool.key].wanted().keys()
            if before and target and before != target.keys():
                self._moved[pool.key] = now
            targets[pool.key] = target
        return targets


def _available(
    options: tuple[Option, ...], wanted: Mapping[Resource, int], out_of_stock: set[Resource]
) -> tuple[Option, ...]:
    """Options with what is out of stock clipped to what runs, as the operator does with a constrained class."""
    if not out_of_stock:
        return options
    return tuple(
        replace(o, own_replica_limit=wanted[o.resource], constrained_until="later") if o.resource in out_of_stock else o
        for o in options
        if o.resource not in out_of_stock or wanted.get(o.resource)
    )


# --- What a user would run otherwise --------------------------------------------------------------------------------


class Fixed:
    """One class on demand for each pool, chosen at the start for the least dollars at its peak; replicas autoscaled.

    With GPUs alone this is "GPU-only with autoscaling"; with all kinds, "cheapest class fixed by hand".  The replicas
    follow demand with the planner's own figure of what one carries: a user who measured as well as we do.
    """

    def __init__(
        self,
        name: str,
        scenario: Scenario,
        pools: Sequence[Pool],
        limits: Mapping[Resource, int],
        kinds: frozenset[HardwareKind] = frozenset(HardwareKind),
    ) -> None:
        self.name = name
        self._pools = pools
        self._judge = Judge(scenario, pools)
        self._limits = limits
        self._kinds = kinds
        self._chosen: dict[str, Option] | None = None

    def decide(self, view: View) -> Mapping[str, Target]:
        if self._chosen is None:
            self._chosen = self._choose(view)
        targets = {}
        for pool in self._pools:
            option = self._chosen.get(pool.key)
            if option is not None:
                carried = option.capacity.turns_per_second
                replicas = max(pool.effective.min_replicas, math.ceil(view.seen[pool.key] / carried - 1e-9), 1)
                targets[pool.key] = {option.resource: (self._judge.kind(option), replicas)}
        return targets

    def _choose(self, view: View) -> dict[str, Option]:
        candidates = self._judge.candidates(view.classes)
        chosen = {}
        for pool in self._pools:
            options = [
                o
                for o in candidates[pool.key].options
                if o.kind in self._kinds
                and o.capacity_type is CapacityType.ON_DEMAND
                and _nodes(o, pool.peak) <= self._limits.get(o.resource, math.inf)
            ]
            if options:
                chosen[pool.key] = min(options, key=lambda o: (_nodes(o, pool.peak) * o.node_usd_per_hour, o.resource))
        return chosen


def _nodes(option: Option, rate: float) -> int:
    return option.nodes_for(math.ceil(rate / option.capacity.turns_per_second - 1e-9))


class KarpenterLike:
    """Pods go to the cheapest node, spot included, that the model fits on; replicas follow load, not latency.

    It knows the memory that a pod asks for and the price of nodes.  It does not know how fast the model is on a class
    nor what was promised: replicas are added when they are full, and nodes that can never keep the promise are taken
    as gladly as others.  When less is wanted the dearest go first.
    """

    def __init__(self, name: str, scenario: Scenario, pools: Sequence[Pool], limits: Mapping[Resource, int]) -> None:
        self.name = name
        self._pools = pools
        self._judge = Judge(scenario, pools)
        self._scenario = scenario
        self._limits = limits
        self._full: dict[tuple[str, str], float | None] = {}

    def decide(self, view: View) -> Mapping[str, Target]:
        judged = self._judge.candidates(view.classes)
        by_name = {item.metadata.name: item for item in view.classes}
        return {pool.key: self._target(pool, judged[pool.key], by_name, view) for pool in self._pools}

    def _target(self, pool: Pool, judged: Candidates, classes: Mapping[str, HardwareClass], view: View) -> Target:
        keeps = {o.resource: o.capacity.turns_per_second for o in judged.options}
        refused = {
            (u.hardware_class, u.capacity_type)
            for u in judged.unfit
            if u.verdict in {Verdict.NOT_ALLOWED, Verdict.NO_CAPACITY}
        }
        ways = sorted(
            (float(c.usd_per_hour), (name, c.type))
            for name, item in classes.items()
            for c in item.spec.capacity
            if (name, c.type) not in refused and self._fills(pool, item) is not None
        )
        wanted = dict(view.fleets[pool.key].wanted())
        prices = {resource: usd for usd, resource in ways}
        have = sum(count * (self._fills(pool, classes[r[0]]) or 0.0) for r, count in wanted.items())
        need = view.seen[pool.key]
        for resource in sorted(wanted, key=lambda r: -prices.get(r, math.inf)):
            each = self._fills(pool, classes[resource[0]]) or 0.0
            spare = math.floor((have - need) / each + 1e-9) if each else wanted[resource]
            drop = min(wanted[resource], max(0, spare))
            wanted[resource] -= drop
            have -= drop * each
        if have < need or sum(wanted.values()) < max(1, pool.effective.min_replicas):
            for _, resource in ways:
                if view.in_stock(resource):
                    each = self._fills(pool, classes[resource[0]]) or math.inf
                    more = max(math.ceil((need - have) / each - 1e-9), 0)
                    least = max(1, pool.effective.min_replicas) - sum(wanted.values())
                    wanted[resource] = wanted.get(resource, 0) + max(more, least)
                    break
        return {
            resource: (self._kind(resource, keeps.get(resource, 0.0), classes), count)
            for resource, count in wanted.items()
            if count
        }

    def _kind(self, resource: Resource, keeps: float, classes: Mapping[str, HardwareClass]) -> Kind:
        return Kind(resource, keeps, 1, start_hours(self._scenario, classes[resource[0]].spec.kind))

    def _fills(self, pool: Pool, item: HardwareClass) -> float | None:
        """Turns/s at which one replica is full, latency aside; None where the model does not fit."""
        key = (pool.key, item.metadata.name)
        if key not in self._full:
            self._full[key] = self._full_rate(pool, item)
        return self._full[key]

    def _full_rate(self, pool: Pool, item: HardwareClass) -> float | None:
        load = Load.of(pool.effective)
        wanted = pool.effective.quantization
        quantization = Quantization.INT8 if wanted is Quantization.ANY else wanted
        served = speed_of(item, pool.effective.model, quantization, pool.profiles, load)
        return None if isinstance(served, str) or served.nodes_per_replica > 1 else _full(served.speed, load)


def _full(speed: Speed, load: Load) -> float:
    prefill = max(1.0, load.prompt_tokens * (1 - load.cached_share)) / speed.prefill_tokens_per_second
    rates = [
        b / (load.output_tokens * step + max(0.0, b * prefill - load.output_tokens * idle))
        for b, step, idle in zip(speed.concurrency, speed.step_seconds, speed.idle_seconds, strict=True)
        if b * load.context_tokens <= speed.kv_cache_tokens
    ]
    return max(rates)
