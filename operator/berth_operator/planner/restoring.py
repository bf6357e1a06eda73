"""Which plan was in force before a restart?  It is in the API: each pool's status says what was decided, and why.

Of a large fleet no two searches find the same plan: both are near the best, and differ in many places for next to
nothing.  So a new leader goes on from the plan in force, as the old one would have, and moves nothing for having begun.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from berth_operator.api import InferencePool, InferencePoolStatus
from berth_operator.planner.candidates import Option
from berth_operator.planner.counterfactual import savings_percent
from berth_operator.planner.explanation import per_million
from berth_operator.planner.judged import JudgedPool, is_large, judge_pools, limits_of
from berth_operator.planner.planning import Planned, over_budget_of, placements_of, watts_of
from berth_operator.planner.recharging import recharged
from berth_operator.planner.solution import Assignment
from berth_operator.planner.types import Candidate, Plan, PoolPlan, Problem, Snapshot, Verdict

_SAME = 0.02
"""Share by which a pool's dollars may differ from what its status says: that is the dead band of status."""


_ROUNDED = Decimal("0.0005")


def restored(snapshot: Snapshot) -> Planned | None:
    """The plan in force of those pools whose status still holds, for `amended` to complete.

    None for a small fleet, which is best planned afresh, where no status holds, or where they do not fit together.
    A status holds where it is of the present spec, all demand was served, and its placements still can be had, carry
    the demand and cost what they did.
    """
    judged = judge_pools(snapshot)
    accepted = [j for j in judged if j.problem is None]
    if not is_large(accepted):
        return None
    by_key = {p.key: p for p in snapshot.pools}
    found = {j.key: plan for j in accepted if (plan := _restored(by_key[j.key], j)) is not None}
    found = recharged(found, snapshot.hardware_classes)
    if not found or _too_many_nodes(found.values(), snapshot):
        return None
    costs = {key: float(plan.usd_per_hour) for key, plan in found.items()}
    return Planned(
        snapshot=replace(snapshot, pools=tuple(p for p in snapshot.pools if p.key in found)),
        plan=Plan(found, gap=math.nan, solver_status="Feasible"),
        cost=sum(costs.values()),
        bound=math.nan,
        duals={},
        pool_costs=costs,
        pool_bounds={},
        large=True,
    )


def _restored(pool: InferencePool, judged: JudgedPool) -> PoolPlan | None:
    status, problem = pool.status, judged.program
    assignments = _assignments(status, judged)
    if judged.shadow or not assignments or not _holds(pool):
        return None
    carried = sum(a.replicas * a.option.capacity.turns_per_second for a in assignments)
    placements = placements_of(problem, assignments, [p.traffic_percent for p in status.placements or ()])
    usd = sum((p.usd_per_hour for p in placements), Decimal(0))
    before = _decimal(status.cost.usd_per_hour) if status.cost else None
    least = sum((_least(a) for a in assignments), Decimal(0))  # where others share its nodes
    same = 1 - Decimal(repr(_SAME))
    if before is None or carried < problem.demand or before < least * same or usd < before * same:
        return None
    return PoolPlan(
        pool=pool.key,
        effective=judged.context.effective,
        placements=placements,
        candidates=_candidates(status),
        usd_per_hour=usd,
        usd_per_million_tokens=per_million(usd, problem.demand * judged.context.effective.output_tokens),
        gpu_only_usd_per_hour=_gpu_only(status, usd),
        watts=watts_of(placements),
        served_requests_per_second=problem.demand,
        over_budget=over_budget_of(judged, usd),
        kept=_kept(status),
    )


def _least(assignment: Assignment) -> Decimal:
    """USD/h that it may pay at the least."""
    if not assignment.option.shareable:
        return assignment.usd_per_hour
    return assignment.replicas * assignment.option.node_usd_per_hour / assignment.option.replicas_per_node


def _holds(pool: InferencePool) -> bool:
    """Whether the status is of this spec, and of a pool that was placed and served in full."""
    said = {c.type: c for c in pool.status.conditions or ()}
    placed, met = said.get("Placed"), said.get("ObjectivesMet")
    current = pool.status.observed_generation == pool.metadata.generation
    return current and placed is not None and placed.status == "True" and met is not None and met.status == "True"


def _assignments(status: InferencePoolStatus, judged: JudgedPool) -> Sequence[Assignment]:
    """What status says was placed; nothing where one of it cannot be had any more."""
    formats = judged.incumbent.formats if judged.incumbent else set()
    options: dict[tuple[str, str], Option] = {}
    for option in judged.candidates.options:
        key = option.hardware_class, option.capacity_type.value
        if key not in options or option.quantization in formats:
            options[key] = option
    out = []
    for placed in status.placements or ():
        found = options.get((placed.hardware_class, placed.capacity_type.value))
        spans = placed.nodes_per_replica or 1
        if found is None or found.own_replica_limit is not None or found.nodes_per_replica != spans:
            return ()
        out.append(Assignment(found, placed.replicas, found.nodes_for(placed.replicas)))
    return out


def _gpu_only(status: InferencePoolStatus, usd: Decimal) -> Decimal | None:
    """The counterfactual, which status rounds to a tenth of a cent, such that it saves the percent that status says."""
    said = _decimal(status.cost.gpu_only_usd_per_hour) if status.cost else None
    if said is None or status.cost is None:
        return None
    near = (said, said + _ROUNDED, said - _ROUNDED)
    return next((v for v in near if savings_percent(usd, v) == status.cost.savings_percent), said)


def _candidates(status: InferencePoolStatus) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(
            hardware_class=c.hardware_class,
            capacity_type=c.capacity_type,
            verdict=Verdict(c.verdict),
            reason=c.reason,
            usd_per_million_tokens=_decimal(c.usd_per_million_tokens),
            estimated=c.estimated,
        )
        for c in status.candidates or ()
    )


def _kept(status: InferencePoolStatus) -> Problem | None:
    """Why the pool was not moved: what follows the placements in condition Placed."""
    placed = next((c.message for c in status.conditions or () if c.type == "Placed"), "")
    _, _, kept = placed.partition("% of traffic. ")
    if not kept:
        return None
    return Problem("Cooldown" if kept.startswith("moved less than") else "SavingsTooSmall", kept)


def _too_many_nodes(plans: Iterable[PoolPlan], snapshot: Snapshot) -> bool:
    left = {resource: Fraction(most) for resource, most in limits_of(snapshot).items()}
    for plan in plans:
        for p in plan.placements:
            resource = p.hardware_class, p.capacity_type
            if resource in left:
                left[resource] -= p.paid_nodes
    return any(n < 0 for n in left.values())


def _decimal(text: str | None) -> Decimal | None:
    try:
        found = Decimal(text) if text else None
    except InvalidOperation:
        return None
    return found if found is not None and found.is_finite() else None
