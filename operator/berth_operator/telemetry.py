"""What do operators of a fleet watch?  The `berth_*` metrics, set from each pass's snapshot and plan.

`readings` is pure: it says what each series is now.  `Telemetry` serves the latest readings as a whole, so a series
disappears with its pool, and integrates the spending rates over time.  Every label is bounded by the number of pools,
hardware classes and fixed words.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from berth_operator.api import CapacityType, InferencePoolStatus, PlacementStatus
from berth_operator.cluster.observe import Worker
from berth_operator.planner import Plan, PoolPlan, Snapshot
from berth_operator.planner.candidates import in_force
from berth_operator.prices import STATIC, Price

Labels = tuple[str, ...]

_POOL: Final = ("pool_namespace", "pool")
_PLACEMENT: Final = (*_POOL, "hardware_class", "capacity_type")
_HARDWARE: Final = ("hardware_class", "capacity_type")
STATES: Final = ("planned", "ready", "starting", "unschedulable", "terminating")

GAUGES: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "berth_pool_replicas": (
        "Replicas of a placement by state; planned: what the plan wants",
        (*_PLACEMENT, "state"),
    ),
    "berth_pool_usd_per_hour": (
        "Price of a placement's planned nodes, or of those that stay without a plan, USD per hour; Reserved is zero",
        _PLACEMENT,
    ),
    "berth_pool_gpu_only_usd_per_hour": (
        "Lower bound on what the cheapest GPU-only plan of the same demand would cost, USD per hour",
        _POOL,
    ),
    "berth_pool_demand_requests_per_second": (
        "Demand that is planned for, requests per second; none while asleep or not accepted",
        _POOL,
    ),
    "berth_pool_observed_requests_per_second": (
        "Demand estimated from what workers report now, where the pool's scaling follows it",
        _POOL,
    ),
    "berth_pool_watts": ("Power of the planned nodes at load, watts", _POOL),
    "berth_pool_condition": ("1 for the status a condition has now, else 0", (*_POOL, "type", "status")),
    "berth_hardware_usd_per_hour": ("Price of one node that plans use, USD per hour", (*_HARDWARE, "source")),
    "berth_hardware_price_timestamp_seconds": (
        "Unix time that a price from a feed is of; none for a class's own price",
        (*_HARDWARE, "source"),
    ),
    "berth_hardware_constrained": ("1 while a capacity type cannot be had, else 0", _HARDWARE),
}
COUNTERS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "berth_pool_spent_usd": (
        "USD spent on nodes with ready workers of the pool; a node that pools share is split evenly",
        _POOL,
    ),
    "berth_pool_gpu_only_usd": (
        "USD that the cheapest GPU-only plan would have spent on the demand actually covered by ready workers",
        _POOL,
    ),
}


@dataclass(frozen=True, slots=True)
class Readings:
    """Every series at one moment."""

    gauges: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)
    """By metric name, then by label values in the order of `GAUGES`."""
    usd_per_hour: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)
    """Rates, USD per hour, of the counters in `COUNTERS`, by name and (namespace, pool)."""


def readings(
    snapshot: Snapshot,
    plan: Plan,
    workers: Sequence[Worker],
    statuses: Mapping[str, InferencePoolStatus],
    prices: Mapping[tuple[str, CapacityType], Price] | None = None,
    observed: Mapping[str, float] | None = None,
) -> Readings:
    """What each series is now.  `statuses` are of every pool (`namespace/name`), rejected ones included.

    `prices`: those in force, where feeds are followed; the snapshot's classes carry the same figures.
    `observed`: requests per second that pools (`namespace/name`) are seen to get.
    """
    gauges: dict[str, dict[Labels, float]] = {name: {} for name in GAUGES}
    for key, pool_plan in plan.pools.items():
        pool = _pool(key)
        if pool_plan.effective.mode != "Apply":
            continue  # advice costs nothing, so it is compared with nothing, or savings would be flattered
        if not pool_plan.effective.suspend:
            for placement in pool_plan.placements:
                labels: Labels = (*pool, placement.hardware_class, placement.capacity_type.value)
                gauges["berth_pool_usd_per_hour"][labels] = float(placement.usd_per_hour)
        if pool_plan.gpu_only_usd_per_hour is not None:
            gauges["berth_pool_gpu_only_usd_per_hour"][pool] = float(pool_plan.gpu_only_usd_per_hour)
        if pool_plan.watts is not None:
            gauges["berth_pool_watts"][pool] = pool_plan.watts
    kept = _kept(plan, statuses)
    gauges["berth_pool_usd_per_hour"] |= _staying(plan, kept)
    gauges["berth_pool_replicas"] = _replicas(plan, workers)
    gauges["berth_pool_demand_requests_per_second"] = {
        _pool(key): p.served_requests_per_second + p.unserved_requests_per_second
        for key, p in plan.pools.items()
        if not p.effective.suspend and p.not_accepted is None
    }
    gauges["berth_pool_observed_requests_per_second"] = {_pool(k): v for k, v in (observed or {}).items()}
    for key, told in statuses.items():
        for condition in told.conditions or ():
            for value in ("True", "False", "Unknown"):
                labels = (*_pool(key), condition.type, value)
                gauges["berth_pool_condition"][labels] = float(condition.status == value)
    for hardware in snapshot.hardware_classes:
        short = {c.type for c in in_force(hardware.status.constrained, snapshot.now)}
        for capacity in hardware.spec.capacity:
            labels = (hardware.metadata.name, capacity.type.value)
            found = (prices or {}).get((hardware.metadata.name, capacity.type))
            source = found.source if found else STATIC
            gauges["berth_hardware_usd_per_hour"][(*labels, source)] = float(capacity.usd_per_hour)
            if found and found.as_of:
                gauges["berth_hardware_price_timestamp_seconds"][(*labels, source)] = found.as_of.timestamp()
            gauges["berth_hardware_constrained"][labels] = float(capacity.type in short)
    spent = _spending(snapshot, workers, kept)
    ready = Counter(worker.pool for worker in workers if worker.ready)
    return Readings(
        gauges=gauges,
        usd_per_hour={
            "berth_pool_spent_usd": {_pool(key): spent.get(key, 0.0) for key in plan.pools | spent.keys()},
            "berth_pool_gpu_only_usd": {_pool(k): _gpu_only(p, ready[k]) for k, p in plan.pools.items()},
        },
    )


def _pool(key: str) -> tuple[str, str]:
    namespace, _, name = key.partition("/")
    return namespace, name


def _kept(plan: Plan, statuses: Mapping[str, InferencePoolStatus]) -> dict[Labels, PlacementStatus]:
    """What statuses show that the plan has no place for, by the labels of a placement."""
    out: dict[Labels, PlacementStatus] = {}
    for key, status in statuses.items():
        pool_plan = plan.pools.get(key)
        planned = {(p.hardware_class, p.capacity_type) for p in (pool_plan.placements if pool_plan else ())}
        for p in status.placements or ():
            if (p.hardware_class, p.capacity_type) not in planned:
                out[*_pool(key), p.hardware_class, p.capacity_type.value] = p
    return out


def _staying(plan: Plan, kept: Mapping[Labels, PlacementStatus]) -> dict[Labels, float]:
    """USD per hour of what runs without a place in the plan: as statuses tell it (`kept`), else by its nodes, such as
    what a pool ran before it was only given advice."""
    out = {
        (*_pool(stay.pool), stay.hardware_class, stay.capacity_type.value): float(stay.usd_per_hour or 0)
        for stay in plan.staying
    }
    return out | {where: float(stays.usd_per_hour) for where, stays in kept.items()}


def _replicas(plan: Plan, workers: Sequence[Worker]) -> dict[Labels, float]:
    counts: dict[Labels, dict[str, float]] = defaultdict(lambda: dict.fromkeys(STATES, 0.0))
    for key, pool_plan in plan.pools.items():
        if pool_plan.effective.mode == "Apply" and not pool_plan.effective.suspend:
            for p in pool_plan.placements:
                counts[(*_pool(key), p.hardware_class, p.capacity_type.value)]["planned"] = p.replicas
    for worker in workers:
        where = (*_pool(worker.pool), worker.hardware_class, worker.capacity_type.value)
        counts[where][worker.state.lower()] += 1
    return {(*where, state): value for where, states in counts.items() for state, value in states.items()}


def _spending(
    snapshot: Snapshot, workers: Sequence[Worker], kept: Mapping[Labels, PlacementStatus]
) -> dict[str, float]:
    """USD per hour by pool: each node that has a ready worker, split evenly between the pools on it.

    Where a class is gone, the worker that is kept there (`kept`) costs what status says.
    """
    prices: dict[tuple[str, CapacityType], float] = {
        (hardware.metadata.name, capacity.type): float(capacity.usd_per_hour)
        for hardware in snapshot.hardware_classes
        for capacity in hardware.spec.capacity
        if capacity.type != CapacityType.RESERVED  # already paid
    }
    nodes: dict[str, dict[str, float]] = defaultdict(dict)
    out: dict[str, float] = defaultdict(float)
    for worker in workers:
        if not (worker.ready and worker.node):
            continue
        price = prices.get((worker.hardware_class, worker.capacity_type))
        stays = kept.get((*_pool(worker.pool), worker.hardware_class, worker.capacity_type.value))
        if price is None and stays:
            out[worker.pool] += float(stays.usd_per_hour) / stays.replicas
        for node in worker.hosts or (worker.node,):
            nodes[node][worker.pool] = price or 0.0
    for pools in nodes.values():
        for pool, price in pools.items():
            out[pool] += price / len(pools)
    return dict(out)


def _gpu_only(plan: PoolPlan, ready: int) -> float:
    """USD per hour of the counterfactual, for the part of the demand that is planned for and has ready workers.

    Savings are never flattered: a pool that is still starting, or serves only half, has saved nothing on the rest.
    """
    wanted = sum(p.replicas for p in plan.placements)
    demand = plan.served_requests_per_second + plan.unserved_requests_per_second
    if plan.gpu_only_usd_per_hour is None or not wanted or demand <= 0:
        return 0.0
    share = min(1.0, ready / wanted) * plan.served_requests_per_second / demand
    return float(plan.gpu_only_usd_per_hour) * share


class Telemetry(Collector):
    """Serves the metrics; safe to scrape from another thread."""

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._now = Readings()
        self._since = clock()
        self._totals: dict[str, dict[Labels, float]] = {name: {} for name in COUNTERS}
        self._duration = prometheus_client.Histogram(
            "berth_plan_duration_seconds",
            "Seconds that the solver took for one plan of all pools",
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, math.inf),
            registry=registry,
        )
        self._gap = prometheus_client.Gauge(
            "berth_plan_gap_ratio", "Relative gap between the plan's cost and the solver's bound", registry=registry
        )
        self._plans = prometheus_client.Counter(
            "berth_plans_total",
            "Passes of the loop: success, partial (a write failed) or error (no plan)",
            ["result"],
            registry=registry,
        )
        for result in ("success", "partial", "error"):
            self._plans.labels(result)
        self._success = prometheus_client.Gauge(
            "berth_last_success_timestamp_seconds",
            "Unix time of the last pass after which the cluster was as planned",
            registry=registry,
        )
        registry.register(self)

    def planned(self, seconds: float, gap: float) -> None:
        """A plan was made."""
        self._duration.observe(seconds)
        if math.isfinite(gap):
            self._gap.set(gap)

    def passed(self, result: str, now: float) -> None:
        """A pass ended at Unix time `now`: `success`, `partial` or `error`."""
        self._plans.labels(result).inc()
        if result == "success":
            self._success.set(now)

    def update(self, now: Readings) -> None:
        """Serve these readings from now on.  Pools that they no longer name lose their series, totals included."""
        with self._lock:
            totals = self._totals_now()
            self._since = self._clock()
            self._now = now
            self._totals = {
                name: {labels: totals[name].get(labels, 0.0) for labels in now.usd_per_hour.get(name, {})}
                for name in COUNTERS
            }

    def clear(self) -> None:
        """Serve no pool's series: another replica leads."""
        self.update(Readings())

    def collect(self) -> Iterator[Metric]:
        """Prometheus' reading of the latest state; totals are integrated up to now."""
        with self._lock:
            now, totals = self._now, self._totals_now()
        for name, (text, labels) in GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=labels)
            for values, value in now.gauges.get(name, {}).items():
                gauge.add_metric(values, value)
            yield gauge
        for name, (text, labels) in COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=labels)
            for values, value in totals[name].items():
                counter.add_metric(values, value)
            yield counter

    def _totals_now(self) -> dict[str, dict[Labels, float]]:
        hours = (self._clock() - self._since) / 3600
        return {
            name: {
                labels: self._totals[name].get(labels, 0.0) + rate * hours
                for labels, rate in self._now.usd_per_hour.get(name, {}).items()
            }
            for name in COUNTERS
        }
