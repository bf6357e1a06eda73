"""What would change the decision?  The same planner, asked again with one thing different.

Every answer is a plan from scratch: what would be chosen if nothing ran yet, so that no cooldown hides it.  Only what
others keep without a place in any plan still holds its nodes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal

from berth_operator.api import InferencePool
from berth_operator.api.inference_pool import HardwareChoice, HardwareMatch, PlacementPolicy
from berth_operator.planner import PoolPlan, Snapshot, plan

_UP = (2, 10)
_DOWN = (Decimal("0.5"), Decimal("0.1"))
_MOST_POOLS = 200
"""Beyond that many, six more plans would take too long for someone who waits for an answer."""


@dataclass(frozen=True, slots=True)
class WhatIf:
    """Answers about one pool; None and empty where nothing would change or nothing was asked."""

    afresh: PoolPlan | None = None
    """Its plan if nothing ran yet."""
    without: PoolPlan | None = None
    """Its plan if the hardware classes that it has were denied."""
    at_demand: tuple[tuple[Decimal, PoolPlan], ...] = ()
    """Multiples of its demand at which it would be on other hardware, with that plan: the nearest up and down."""


def ask(snapshot: Snapshot, pool: InferencePool) -> WhatIf:
    """Plan again without the pool's hardware, and with more and less demand."""
    if len(snapshot.pools) > _MOST_POOLS:
        return WhatIf()
    if snapshot.running:
        stays = {(one.pool, one.resource) for one in plan(snapshot, explain=False).staying if one.pool != pool.key}
        running = (r for r in snapshot.running if (r.pool, (r.hardware_class, r.capacity_type)) in stays)
        snapshot = replace(snapshot, running=tuple(running))
    base = _plan(snapshot, pool)
    if not base.placements:
        return WhatIf(base)
    without = _plan(snapshot, _denied(pool, {p.hardware_class for p in base.placements}))
    return WhatIf(base, without if without.placements else None, tuple(_changes(snapshot, pool, base)))


def hardware(pool_plan: PoolPlan) -> set[str]:
    """The hardware classes that a plan uses."""
    return {p.hardware_class for p in pool_plan.placements}


def _changes(snapshot: Snapshot, pool: InferencePool, base: PoolPlan) -> Iterator[tuple[Decimal, PoolPlan]]:
    for direction in (_UP, _DOWN):
        for factor in map(Decimal, direction):
            other = _plan(snapshot, scaled(pool, factor))
            if hardware(other) != hardware(base):
                yield factor, other
                break


def _plan(snapshot: Snapshot, pool: InferencePool) -> PoolPlan:
    pools = tuple(pool if p.key == pool.key else p for p in snapshot.pools)
    return plan(replace(snapshot, pools=pools)).pools[pool.key]


def _denied(pool: InferencePool, names: set[str]) -> InferencePool:
    placement = pool.spec.placement or PlacementPolicy()
    choice = placement.hardware or HardwareChoice()
    deny = choice.deny or HardwareMatch()
    deny = deny.model_copy(update={"names": sorted(names | set(deny.names or []))})
    choice = choice.model_copy(update={"deny": deny})
    return _with_spec(pool, placement=placement.model_copy(update={"hardware": choice}))


def scaled(pool: InferencePool, factor: Decimal) -> InferencePool:
    """The pool with its demand multiplied."""
    demand = pool.spec.workload.demand
    if demand.requests_per_second is not None:
        update: dict[str, object] = {"requests_per_second": demand.requests_per_second * factor}
    else:
        update = {"concurrent_sessions": max(1, int((demand.concurrent_sessions or 1) * factor))}
    workload = pool.spec.workload.model_copy(update={"demand": demand.model_copy(update=update)})
    return _with_spec(pool, workload=workload)


def _with_spec(pool: InferencePool, **fields: object) -> InferencePool:
    return pool.model_copy(update={"spec": pool.spec.model_copy(update=fields)})
