"""What if only a few pools have changed since the last plan?  Then these alone are planned, with the nodes left.

The other pools keep their places, so that nothing else can move.  How far from the best that can be is known: with the
last plan's duals, Lagrange's bound is a sum over pools, of which only the changed ones' parts are priced anew (exactly,
by the flat program).  Where the gap grows, where demand would go unserved that others could make room for, or where
anything but pools has changed, everything is planned afresh.  A plan made so depends on the last one, which is why it
has a function of its own: `plan` never does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from berth_operator.api import InferencePool
from berth_operator.planner.candidates import Resource
from berth_operator.planner.explanation import Usage
from berth_operator.planner.planning import (
    JudgedPool,
    Planned,
    counterfactuals,
    decide_pools,
    judge_pools,
    limits_of,
    planned,
    pool_plan,
)
from berth_operator.planner.program import Program, add_pool, cost_terms
from berth_operator.planner.solver import minimise_roughly
from berth_operator.planner.types import Snapshot

MOST_CHANGED: Final = 0.02
"""Share of the pools that may have changed."""
WIDER: Final = 1e-3
"""By which the gap may grow."""


def replanned(last: Planned, snapshot: Snapshot) -> Planned:
    """The plan of `snapshot`, from the last one where only a few pools differ; else afresh."""
    changed = _changed(last, snapshot)
    if changed is None:
        return planned(snapshot)
    if not changed:
        return last
    return _of_changed(last, snapshot, changed) or planned(snapshot)


def _changed(last: Planned, snapshot: Snapshot) -> list[InferencePool] | None:
    """Pools that differ; None where more than a few pools do."""
    before = last.snapshot
    same = (
        before.hardware_classes == snapshot.hardware_classes
        and before.serving_profiles == snapshot.serving_profiles
        and before.running == snapshot.running
        and before.namespace_labels == snapshot.namespace_labels
    )
    old = {p.key: p for p in before.pools}
    if not same or not last.pool_bounds or old.keys() != {p.key for p in snapshot.pools}:
        return None
    if snapshot.now != before.now and any(
        p.kept is not None and p.kept.reason == "Cooldown" for p in last.plan.pools.values()
    ):
        return None
    if snapshot.now != before.now and any(c.status.constrained for c in snapshot.hardware_classes):
        return None
    changed = [p for p in snapshot.pools if p is not old[p.key] and p != old[p.key]]
    return changed if len(changed) <= max(1, int(MOST_CHANGED * len(old))) else None


def _of_changed(last: Planned, snapshot: Snapshot, changed: Sequence[InferencePool]) -> Planned | None:
    """Only the changed pools planned anew; None where that will not do."""
    keys = {p.key for p in changed}
    judged = judge_pools(replace(snapshot, pools=tuple(changed)))
    if any(j.problem or j.shadow or j.key not in last.pool_bounds for j in judged):
        return None
    limits = limits_of(snapshot)
    used: dict[Resource, dict[str, int]] = {}
    for key, pool in last.plan.pools.items():
        for p in pool.placements if key not in keys else ():
            used.setdefault((p.hardware_class, p.capacity_type), {})[key] = p.nodes
    left = {r: most - sum(used.get(r, {}).values()) for r, most in limits.items()}
    decision = decide_pools(judged, left, snapshot.now)
    solved = decision.solution.pools
    if decision.solution.failed or any(p.unserved > 0 or p.missing_replicas > 0 for p in solved.values()):
        return None
    cost = last.cost + sum(solved[k].objective - last.pool_costs[k] for k in keys)
    bounds = {j.key: _least(j, last.duals, limits, held=j.key in decision.kept) for j in judged}
    bound = last.bound + sum(bounds[k] - last.pool_bounds[k] for k in keys)
    gap = max(0.0, (cost - bound) / cost) if cost > 0 else 0.0
    if gap > last.plan.gap + WIDER:
        return None
    for key, one in solved.items():
        for a in one.assignments:
            used.setdefault(a.option.resource, {})[key] = a.nodes
    usage = Usage.of(used)
    gpu_only = counterfactuals(judged, solved, snapshot.hardware_classes)
    fresh = {j.key: pool_plan(j, decision, limits, usage, False, gpu_only.get(j.key)) for j in judged}
    pools = {key: fresh.get(key, pool) for key, pool in last.plan.pools.items()}
    return replace(
        last,
        snapshot=snapshot,
        plan=replace(last.plan, pools=pools, gap=gap),
        cost=cost,
        bound=bound,
        pool_costs={**last.pool_costs, **{k: solved[k].objective for k in keys}},
        pool_bounds={**last.pool_bounds, **bounds},
    )


def _least(judged: JudgedPool, duals: Mapping[Resource, float], limits: Mapping[Resource, int], *, held: bool) -> float:
    """What no plan of the pool that serves all costs less than, with nodes at their duals."""
    problem = judged.program
    if held and judged.incumbent:
        own = judged.incumbent.resources
        problem = replace(problem, options=tuple(o for o in problem.options if o.resource in own))
    program = Program()
    columns = add_pool(program, problem, limits)
    program.upper[columns.unserved] = 0.0
    terms = cost_terms(problem, columns)
    for k, option in enumerate(problem.options):
        terms[columns.nodes[k]] += duals.get(option.resource, 0.0)
    return minimise_roughly(program, terms).bound
