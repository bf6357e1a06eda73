"""Which workers stay though the plan has no place for them, and what do they cost?  Pure.

A pool for which not enough hardware can be had keeps what serves: serving elsewhere beats not serving.  So does a pool
whose spec is not accepted, of which nothing is changed.
"""

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from berth_operator.api import InferencePoolStatus, PlacementStatus, format_decimal
from berth_operator.planner import PoolPlan, RunningPlacement, Stay, why_hold

_WHOLE = 100


def kept_by(
    plan: PoolPlan,
    running: Sequence[RunningPlacement],
    before: InferencePoolStatus,
    stays: Sequence[Stay] = (),
    *,
    asleep: bool = False,
) -> tuple[PlacementStatus, ...]:
    """What a pool runs and keeps without a place in its plan, in order of class and capacity type.

    `running` and `stays` hold the pool's own.  `asleep`: nobody has suspended it, it only sleeps.
    """
    applied, refused = plan.effective.mode == "Apply", plan.not_accepted is not None
    stops = plan.effective.suspend and not (refused and asleep)
    if (applied and stops) or not (refused or (applied and why_hold(plan))):
        return ()
    goes = plan.yields | {(p.hardware_class, p.capacity_type) for p in plan.placements}
    there = [r for r in running if r.replicas and (r.hardware_class, r.capacity_type) not in goes]
    return kept_of(there, before, stays, carries=not plan.placements)


def kept_of(
    running: Sequence[RunningPlacement],
    before: InferencePoolStatus,
    stays: Sequence[Stay] = (),
    *,
    carries: bool = True,
) -> tuple[PlacementStatus, ...]:
    """What runs, as a status shows it.  `carries`: the pool has nothing else, so that it takes the traffic.

    Its class may be gone, and its price with it: it costs what it did when the status last told (`before`); where that
    is not known, what its nodes cost now (`stays`), and where its class is gone, too, it shows 0.
    """
    running = sorted((r for r in running if r.replicas), key=lambda r: (r.hardware_class, r.capacity_type.value))
    each = {one.resource: one.usd_per_hour / one.replicas for one in stays if one.usd_per_hour is not None}
    each |= {
        (p.hardware_class, p.capacity_type): _usd(p.usd_per_hour) / p.replicas
        for p in before.placements or ()
        if p.replicas
    }
    everything, done, out = sum(r.replicas for r in running), 0, []
    for r in running:
        share = _WHOLE * (done + r.replicas) // everything - _WHOLE * done // everything
        done += r.replicas
        usd = each.get((r.hardware_class, r.capacity_type), Decimal(0)) * r.replicas
        out.append(
            PlacementStatus(
                hardware_class=r.hardware_class,
                capacity_type=r.capacity_type,
                replicas=r.replicas,
                ready_replicas=min(r.replicas, r.ready_replicas),
                usd_per_hour=format_decimal(usd, 3),
                traffic_percent=share if carries else 0,
                nodes_per_replica=r.nodes_per_replica if r.nodes_per_replica > 1 else None,
            )
        )
    return tuple(out)


def cost_of(kept: Sequence[PlacementStatus]) -> Decimal:
    """USD per hour."""
    return sum((_usd(p.usd_per_hour) for p in kept), Decimal(0))


def _usd(text: str) -> Decimal:
    """A status is only text: what is no figure counts as not known."""
    try:
        found = Decimal(text)
    except InvalidOperation:
        return Decimal(0)
    return found if found.is_finite() else Decimal(0)
