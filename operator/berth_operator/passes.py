"""What follows from what one pass has seen?  The snapshot to plan, then children, next steps and statuses.  Pure."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from berth_operator.api import CapacityType, InferencePool, InferencePoolStatus
from berth_operator.api.meta import Facts
from berth_operator.api.names import LEADER_WORKER_SET
from berth_operator.cluster.observe import Child, Invalid, Observation, Worker
from berth_operator.cluster.resources import WORKLOADS
from berth_operator.evacuation import with_stand_ins, with_those_that_must_stay, without_stand_ins
from berth_operator.load.demand import follows_demand
from berth_operator.load.facts import NO_LOAD, LoadFacts
from berth_operator.memo import Kept, Memo
from berth_operator.planner import AtFault, Plan, PoolPlan, RunningPlacement, Snapshot, Stay, why_hold
from berth_operator.render import LiveDeployment, RenderSettings, render
from berth_operator.settling import settled
from berth_operator.status import Trouble, pool_status, rejected_status
from berth_operator.transition import Steps, next_steps

log = logging.getLogger(__name__)

Manifest = dict[str, Any]
Holdings = tuple[tuple[RunningPlacement, ...], tuple[Stay, ...]]
"""What a pool runs, and what of it stays beside its plan."""


def snapshot_of(seen: Observation, now: datetime) -> Snapshot:
    """What the planner plans from."""
    there = [w for w in seen.workers if w.node and not w.deleting]
    scheduled = Counter((w.pool, w.hardware_class, w.capacity_type) for w in there if not w.notice)
    leaving = Counter((w.pool, w.hardware_class, w.capacity_type) for w in there if w.notice)
    nodes: dict[tuple[str, str, CapacityType], set[str]] = defaultdict(set)
    for worker in there:
        if worker.node and not worker.notice:
            nodes[worker.pool, worker.hardware_class, worker.capacity_type] |= {worker.node, *worker.hosts}
    running: dict[tuple[str, str, CapacityType], RunningPlacement] = {}
    for child in seen.children:
        if child.resource in WORKLOADS and child.hardware_class and child.capacity_type and not child.deleting:
            key = (f"{child.namespace}/{child.pool}", child.hardware_class, child.capacity_type)
            other = running.get(key)  # while replicas of another share of a node replace those of this one
            running[key] = RunningPlacement(
                *key,
                replicas=child.replicas - child.surge + (other.replicas if other else 0),
                ready_replicas=child.ready_replicas + (other.ready_replicas if other else 0),
                scheduled_replicas=scheduled[key] if seen.workers_read else None,
                leaving_replicas=leaving[key],
                quantization=child.quantization,
                nodes_per_replica=child.nodes_per_replica,
                nodes=len(nodes[key]) if seen.workers_read else None,
            )
    return Snapshot(
        now=now,
        pools=seen.pools,
        hardware_classes=seen.hardware_classes,
        serving_profiles=seen.serving_profiles,
        running=tuple(running.values()),
        namespace_labels=seen.namespace_labels,
        unreadable=frozenset(item.key for item in seen.invalid if item.kind == "InferencePool"),
        spanning=LEADER_WORKER_SET in seen.available,
    )


def edited(
    before: Snapshot, pools: Iterable[InferencePool], left: Collection[tuple[str, int]]
) -> tuple[InferencePool, ...]:
    """The pools of an earlier snapshot that say something else now, less those whose own traffic decides about them.

    `left`: edits (uid, generation) that do not count.
    """
    known = {pool.metadata.uid: pool.metadata.generation for pool in before.pools}
    return tuple(
        pool
        for pool in pools
        if known.get(pool.metadata.uid, pool.metadata.generation) != pool.metadata.generation
        and not follows_demand(pool)
        and (pool.metadata.uid, pool.metadata.generation) not in left
    )


def of_pools(
    keys: Collection[str], children: Iterable[Child], workers: Iterable[Worker]
) -> tuple[tuple[Child, ...], tuple[Worker, ...]]:
    """The children and workers of these pools (`namespace/name`)."""
    own = tuple(child for child in children if f"{child.namespace}/{child.pool}" in keys)
    return own, tuple(worker for worker in workers if worker.pool in keys)


def with_edits(
    before: Snapshot,
    pools: Sequence[InferencePool],
    children: Sequence[Child],
    workers: Sequence[Worker],
    now: datetime,
) -> Snapshot:
    """An earlier snapshot, with these pools and what they run as they are now."""
    fresh = {pool.key: pool for pool in pools}
    running = snapshot_of(Observation(children=tuple(children), workers=tuple(workers)), now).running
    return replace(
        before,
        now=now,
        pools=tuple(fresh.get(pool.key, pool) for pool in before.pools),
        running=(*(one for one in before.running if one.pool not in fresh), *running),
    )


def unreadable(invalid: Iterable[Invalid]) -> Iterator[AtFault]:
    """Classes that do not even parse, as a plan knows them."""
    return (AtFault(item.name, item.message) for item in invalid if item.kind == "HardwareClass")


def render_isolated(
    planned: Plan,
    snapshot: Snapshot,
    settings: RenderSettings,
    live: Mapping[str, Sequence[LiveDeployment]],
    memo: Memo[list[Manifest] | None] | None = None,
) -> dict[str, list[Manifest] | None]:
    """Children by pool (`namespace/name`); None for a pool that cannot be rendered, whose children stay as they are.

    `live`: the Deployments of pools with routes.  `memo`: of earlier passes; what comes from it must not be changed.
    """
    memo = memo or Memo()
    classes = {c.metadata.name: c for c in snapshot.hardware_classes}
    out: dict[str, list[Manifest] | None] = {}
    for pool in snapshot.pools:
        key = pool.key
        if key not in planned.pools:
            continue
        try:
            alone = replace(planned, pools={key: planned.pools[key]})
            used = [
                classes[p.hardware_class].spec for p in planned.pools[key].placements if p.hardware_class in classes
            ]
            only = replace(snapshot, pools=(pool,))
            inputs = (pool, planned.pools[key], settings, live.get(key), *used)
            out[key] = memo.get(key, inputs, partial(render, alone, only, settings, live))
        except Exception:
            log.exception("%s: cannot be rendered; what runs stays as it is", key)
            out[key] = None
    memo.keep_only(out.keys())
    return out


def steps_of(
    planned: Plan,
    snapshot: Snapshot,
    rendered: Mapping[str, list[Manifest] | None],
    children: Sequence[Child],
    memo: Memo[Steps] | None = None,
) -> dict[str, Steps]:
    """The next steps of every pool whose plan is to be applied.  `memo`: of earlier passes."""
    memo = memo or Memo()
    owned: dict[str, list[Child]] = defaultdict(list)
    for child in children:
        if child.owner_uid is not None:
            owned[child.owner_uid].append(child)
    out = {}
    for pool in snapshot.pools:
        pool_plan, manifests = planned.pools.get(pool.key), rendered.get(pool.key)
        if pool_plan is None or pool_plan.not_accepted or pool_plan.effective.mode != "Apply" or manifests is None:
            continue
        own = owned[pool.metadata.uid]
        suspended, hold = pool_plan.effective.suspend, why_hold(pool_plan)
        made = partial(next_steps, manifests, own, suspended=suspended, hold=hold, yields=pool_plan.yields)
        out[pool.key] = memo.get(pool.key, (pool_plan, manifests, *own), made)
    memo.keep_only(out.keys())
    return out


def stops_of(planned: Plan, pools: Iterable[InferencePool], children: Sequence[Child]) -> dict[str, Steps]:
    """The steps of pools that are suspended, though nothing else of their spec is accepted: their workers go.

    `pools`: as in the API, where one that only sleeps is not suspended: it could not be woken.
    """
    refused = {
        pool.metadata.uid: pool.key
        for pool in pools
        if pool.spec.suspend
        and (plan := planned.pools.get(pool.key))
        and plan.not_accepted
        and plan.effective.mode == "Apply"
    }
    workloads: dict[str, list[Child]] = defaultdict(list)
    for child in children if refused else ():
        if child.owner_uid in refused and child.resource in WORKLOADS:
            workloads[refused[child.owner_uid]].append(child)
    return {key: next_steps((), own, suspended=True) for key, own in workloads.items()}


def standing_in(
    planned: Plan,
    snapshot: Snapshot,
    rendered: Mapping[str, list[Manifest] | None],
    children: Sequence[Child],
    workers: Sequence[Worker],
    surges: Mapping[str, Mapping[str, int]],
    memo: Memo[Steps] | None = None,
) -> dict[str, Steps]:
    """`steps_of` while workers leave: those are counted as gone.  `surges`: stand-ins by pool and placement."""
    wanted = [manifest for manifests in rendered.values() for manifest in manifests or ()]
    surges = with_those_that_must_stay(surges, children)
    steps = steps_of(planned, snapshot, rendered, without_stand_ins(children, workers, wanted), memo)
    return steps | {key: with_stand_ins(steps[key], surge) for key, surge in surges.items() if key in steps}


def pool_statuses(
    planned: Plan,
    snapshot: Snapshot,
    invalid: Sequence[Invalid],
    now: datetime,
    also: Mapping[str, Mapping[str, Facts]] | None = None,
    memos: tuple[Kept[str, Holdings], Memo[InferencePoolStatus]] | None = None,
    load: Mapping[str, LoadFacts] | None = None,
    found: Mapping[str, Trouble] | None = None,
) -> dict[str, InferencePoolStatus]:
    """The status of every pool; the very object in force where nothing that a reader cares about has changed.

    `also`: further conditions, by pool.  `memos`: what ran, and which statuses were settled, in earlier passes.
    `load`, and `found`, what keeps a pool from becoming what the plan wants: by pool, where there is any.
    """
    kept, settled_before = memos or (Kept(), Memo())
    running: dict[str, list[RunningPlacement]] = defaultdict(list)
    for placement in snapshot.running:
        running[placement.pool].append(placement)
    stays: dict[str, list[Stay]] = defaultdict(list)
    for stay in planned.staying:
        stays[stay.pool].append(stay)
    known = kept.same((pool.key, (tuple(running[pool.key]), tuple(stays[pool.key]))) for pool in snapshot.pools)
    out = {}
    for pool in snapshot.pools:
        key, pool_plan = pool.key, planned.pools.get(pool.key)
        if pool_plan is None:
            continue
        more, facts, trouble = (also or {}).get(key), (load or {}).get(key, NO_LOAD), (found or {}).get(key)
        make = partial(pool_status, pool, pool_plan, known[key][0], now, more, facts, trouble, known[key][1])
        out[key] = settled_before.get(key, (pool, pool_plan, known[key], more, facts, trouble), make)
        if out[key] is not pool.status:
            settled_before.forget(key)  # to be written: then the pool is another object
    settled_before.keep_only(out.keys())
    for item in invalid:
        if item.kind == "InferencePool":
            new = rejected_status(item.status, item.generation, item.message, now, running[item.key], stays[item.key])
            same = settled(item.status.to_api(), new)
            out[item.key] = item.status if same else InferencePoolStatus.model_validate(new)
    return out


def describe(pool_plan: PoolPlan, steps: Steps) -> str:
    """A pool's plan in one line, without figures that jitter."""
    if pool_plan.not_accepted:
        return f"not accepted: {pool_plan.not_accepted.message}"
    parts = [f"{p.replicas}x {p.hardware_class}/{p.capacity_type.value}" for p in pool_plan.placements]
    line = ", ".join(parts) or "nothing to place"
    if pool_plan.effective.suspend:
        line = "no workers wanted"
    elif pool_plan.effective.mode == "Recommend":
        line = f"recommended only: {line}"
    if pool_plan.shortfall:
        line += f"; short: {pool_plan.shortfall.reason}"
    return "; ".join([line, *steps.waiting])
