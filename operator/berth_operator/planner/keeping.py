"""Plans beside workers that stay: who is kept off their nodes, and what of them goes in the end?"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from types import MappingProxyType
from typing import Final

from berth_operator.api import HardwareClass
from berth_operator.planner.candidates import Resource
from berth_operator.planner.churn import Decision, settled
from berth_operator.planner.explanation import Usage
from berth_operator.planner.judged import JudgedPool, decide_pools, solver_of
from berth_operator.planner.sharing import NOTHING, Standing
from berth_operator.planner.shortfall import shortfall
from berth_operator.planner.solution import PoolSolution, nodes_used
from berth_operator.planner.staying import beside, holds, stays_of, why_hold
from berth_operator.planner.types import PoolPlan, Snapshot, Stay

Used = Mapping[Resource, Mapping[str, Fraction]]
"""Nodes by pool."""
NO_NODES: Final[Used] = MappingProxyType({})


def firm_stays(judged: Iterable[JudgedPool], snapshot: Snapshot) -> tuple[Stay, ...]:
    """What stays whatever is planned: of pools that are refused, cannot be read, or are only given advice."""
    classes = _known_classes(snapshot)
    out = list(stays_of((r for r in snapshot.running if r.pool in snapshot.unreadable), classes))
    for j in judged:
        if j.incumbent and (j.problem or j.context.effective.mode == "Recommend"):
            out += stays_of(j.incumbent.placements, classes, j.context.effective, j.context.profiles)
    return tuple(out)


def decide_beside(
    pools: Sequence[JudgedPool],
    limits: Mapping[Resource, int],
    stays: Sequence[Stay],
    snapshot: Snapshot,
    standing: Standing = NOTHING,
) -> tuple[Decision, tuple[Stay, ...]]:
    """Solve for pools beside what stays, and beside what this makes stay: (plan, all that stays).

    A pool that goes short keeps what it has on hardware that it may no longer be placed on.  Where that does not fit
    beside the plan, it is amended without those nodes, so that nobody moves who would not have with them, or else made
    again; a pool has them once, so this ends.
    `standing`: as of `judged.solver_of`.
    """
    stays, incumbents = tuple(stays), {j.key: j.incumbent for j in pools if j.incumbent}
    left, together = beside(limits, stays, standing)
    solver = solver_of(pools, left, together)
    decision = decide_pools(pools, solver, snapshot.now)
    while True:
        more = _held(pools, decision, limits, stays, snapshot)
        taken = nodes_used(decision.solution.pools)
        for one in more:
            taken[one.resource] = taken.get(one.resource, 0) + one.nodes
        stays = (*stays, *more)
        if not any(taken.get(one.resource, 0) > left.get(one.resource, math.inf) for one in more):
            return decision, stays
        left, together = beside(limits, stays, standing)
        amended = solver.amended(settled(decision, incumbents), decision.solution, left, together)
        if amended:
            decision = replace(decision, solution=amended)
        else:
            decision = decide_pools(pools, solver_of(pools, left, together), snapshot.now)


def _held(
    pools: Sequence[JudgedPool],
    decision: Decision,
    limits: Mapping[Resource, int],
    stays: Sequence[Stay],
    snapshot: Snapshot,
) -> list[Stay]:
    """What goes short keeps on hardware that is none of its options, and has not been said to stay before."""
    known, classes = {(one.pool, one.resource) for one in stays}, _known_classes(snapshot)
    usage: Usage | None = None
    out: list[Stay] = []
    for j in pools:
        solution = decision.solution.pools.get(j.key)
        if j.incumbent is None or solution is None or not goes_short(solution):
            continue
        options = {o.resource for o in j.program.options}
        there = [
            r
            for r in j.incumbent.placements
            if (at := (r.hardware_class, r.capacity_type)) not in options and (j.key, at) not in known
        ]
        if not any(r.replicas for r in there):
            continue
        usage = usage or Usage.of(used_by([decision]))
        short = shortfall(j.program, j.candidates, solution, (), usage.left(limits, j.key))
        if short and holds(short, placed=bool(solution.assignments), unserved=solution.unserved):
            out += stays_of(there, classes, j.context.effective, j.context.profiles)
    return out


def settle_stays(
    judged: Sequence[JudgedPool],
    plans: Mapping[str, PoolPlan],
    firm: Sequence[Stay],
    usage: Usage,
    limits: Mapping[Resource, int],
    snapshot: Snapshot,
    *,
    large: bool,
) -> tuple[dict[str, PoolPlan], tuple[Stay, ...]]:
    """Plans that say what of the pools' own goes to others, and all that stays beside the plans.

    `firm`: what others are kept off; what turns out not to be kept in the end is left out.  `large`: the fleet is; its
    plans do not tell those that run already from others that want as much, so that nothing of them goes.
    """
    classes = _known_classes(snapshot)
    out, staying = dict(plans), [one for one in firm if one.pool in snapshot.unreadable]
    for j in judged:
        plan = plans[j.key]
        if j.problem or plan.effective.mode == "Recommend":
            staying += [one for one in firm if one.pool == j.key]
        elif j.incumbent and not plan.effective.suspend and why_hold(plan):
            placed = {(p.hardware_class, p.capacity_type) for p in plan.placements}
            there = [r for r in j.incumbent.placements if (r.hardware_class, r.capacity_type) not in placed]
            stays = {s.resource: s for s in stays_of(there, classes, j.context.effective, j.context.profiles)}
            left, options = usage.left(limits, j.key), {o.resource for o in j.program.options}
            least = {at: stays[at].nodes if at in stays else 1 for at in j.incumbent.resources - placed}
            mine = set() if large else options & least.keys()
            gone = frozenset(
                at
                for at in mine
                if least[at] > left.get(at, math.inf) and _more_wanted(at, j.key, judged, usage, classes)
            )
            out[j.key] = replace(plan, yields=gone) if gone else plan
            staying += [s for at, s in stays.items() if at not in gone]
    return out, tuple(staying)


def _more_wanted(
    resource: Resource, key: str, judged: Iterable[JudgedPool], usage: Usage, classes: Mapping[str, HardwareClass]
) -> bool:
    """Whether the others are given more nodes than they run on: else nobody gains by those of this pool, though there
    may be fewer now than there were."""
    running = (
        stay.nodes
        for j in judged
        if j.key != key and j.incumbent
        for stay in stays_of(j.incumbent.placements, classes, j.context.effective, j.context.profiles)
        if stay.resource == resource
    )
    return usage.by_others(resource, key) > sum(running)


def _known_classes(snapshot: Snapshot) -> dict[str, HardwareClass]:
    at_fault = {one.name: one.hardware for one in snapshot.at_fault if one.hardware}
    return at_fault | {c.metadata.name: c for c in snapshot.hardware_classes}


def used_by(decisions: Sequence[Decision], others: Used = NO_NODES) -> dict[Resource, dict[str, Fraction]]:
    """Nodes that pools pay, by pool, with those of `others`."""
    used = {resource: dict(by_pool) for resource, by_pool in others.items()}
    for decision in decisions:
        for key, pool in decision.solution.pools.items():
            for assignment in pool.assignments:
                used.setdefault(assignment.option.resource, {})[key] = assignment.paid_nodes
    return used


def goes_short(solution: PoolSolution) -> bool:
    """Whether a plan owes a reason for what a pool lacks."""
    return solution.unserved > 0 or solution.missing_replicas > 0
