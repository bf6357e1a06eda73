"""What if only a few pools have changed since the last plan?  Then these alone are planned, with the nodes left.

The other pools keep their places, so that nothing else can move, and their plans stay the very objects that they were.
How far from the best that can be is known: with the last plan's duals, Lagrange's bound is a sum over pools, of which
only the changed ones' parts are priced anew (exactly, by the flat program).  A plan made so depends on the last one,
which is why it has functions of its own: `plan` never does.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from fractions import Fraction
from typing import Final

from berth_operator.api import ConstrainedCapacity, HardwareClass, InferencePool
from berth_operator.planner import fleet
from berth_operator.planner.candidates import Resource, api_time, in_force
from berth_operator.planner.explanation import Usage
from berth_operator.planner.judged import JudgedPool, decide_pools, judge_pools, limits_of, solver_of
from berth_operator.planner.keeping import decide_beside, firm_stays, settle_stays
from berth_operator.planner.planning import Planned, counterfactuals, planned, pool_plan, unaccepted
from berth_operator.planner.program import Program, add_pool, cost_terms
from berth_operator.planner.recharging import recharged, standing
from berth_operator.planner.sharing import groups_open_to, in_parts, less
from berth_operator.planner.solution import nodes_used
from berth_operator.planner.solver import SolverError, minimise_roughly
from berth_operator.planner.staying import beside, nodes_of, why_hold
from berth_operator.planner.types import Placement, Plan, PoolPlan, RunningPlacement, Snapshot

MOST_FORCED: Final = 50
"""Pools that `carried` plans at once because their hardware is gone: about half a second's work."""
MOST_CHANGED: Final = 0.02
"""Share of the pools that may have changed for `replanned`."""
WIDER: Final = 1e-3
"""By which the gap may grow for `replanned`."""
WORTH: Final = 0.02
"""Share of the fleet's dollars that a plan made afresh saves at least to replace one that has been amended."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What of a snapshot bears on the plan and differs from an earlier one."""

    changed: tuple[InferencePool, ...] = ()
    """Pools that are new or differ, in what is wanted or in what they run on."""
    gone: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.changed or self.gone)


def replanned(last: Planned, snapshot: Snapshot) -> Planned:
    """The plan of `snapshot`, from the last one where only a few pools differ and nothing is lost by it; else afresh.

    Afresh too where the gap grows or demand goes unserved that other pools could make room for.
    """
    difference = difference_of(last, snapshot)
    if difference is None or len(difference.changed) > max(1, int(MOST_CHANGED * len(last.plan.pools))):
        return planned(snapshot)
    after = amended(last, snapshot)
    if after is None:
        return planned(snapshot)
    wider = after.plan.gap > last.plan.gap + WIDER or math.isnan(after.plan.gap)
    changed = (after.plan.pools[p.key] for p in difference.changed)
    short = any(p.unserved_requests_per_second > 0 or p.shortfall for p in changed)
    return planned(snapshot) if after is not last and (wider or short) else after


def amended(last: Planned, snapshot: Snapshot) -> Planned | None:
    """The last plan with only those pools planned anew that differ: `last` itself where none does.

    None where everything has to be planned afresh: a small fleet in which anything differs (it is solved to its optimum
    at once), or another change than that of pools.
    """
    difference = difference_of(last, snapshot)
    if difference is None or (difference and not (last.large or _outgrown(last, difference))):
        return None
    return _of_changed(last, snapshot, difference) if difference else last


def carried(last: Planned, snapshot: Snapshot) -> Planned | None:
    """The plan of a large fleet under other classes or profiles, until all is planned afresh.

    Planned anew are the pools that differ, and those whose hardware is gone or lacks nodes for what they should run;
    all others keep their places, whatever these cost now, and no gap is known.  None where too much has gone.
    """
    forced = _forced(last.plan, snapshot) if last.large else set()
    if not last.large or len(forced) > MOST_FORCED:
        return None
    found = _pools_that_differ(last, snapshot)
    changed = {p.key for p in found.changed}
    more = (p for p in snapshot.pools if p.key in forced and p.key not in changed)
    unproven = replace(last, plan=replace(last.plan, gap=math.nan), bound=math.nan, pool_bounds={}, duals={})
    return _of_changed(unproven, snapshot, replace(found, changed=(*found.changed, *more)))


def _forced(plan: Plan, snapshot: Snapshot) -> set[str]:
    """Pools that cannot stay where they are: it is gone, or short and without a node for some of their pods."""
    there = {(c.metadata.name, capacity.type) for c in snapshot.hardware_classes for capacity in c.spec.capacity}
    short = {
        (c.metadata.name, entry.type)
        for c in snapshot.hardware_classes
        for entry in in_force(_out_of_reach(c), snapshot.now)
    }
    placed: dict[tuple[str, Resource], int] = {}
    for one in snapshot.running:
        resource = one.hardware_class, one.capacity_type
        if resource in short:
            scheduled = one.ready_replicas if one.scheduled_replicas is None else one.scheduled_replicas
            placed[one.pool, resource] = placed.get((one.pool, resource), 0) + scheduled
    return {
        key
        for key, pool in plan.pools.items()
        for p in pool.placements
        for resource in [(p.hardware_class, p.capacity_type)]
        if resource not in there
        or (p.nodes_per_replica > 1 and not snapshot.spanning)
        or (resource in short and placed.get((key, resource), 0) < p.replicas)
    }


def _outgrown(last: Planned, difference: Difference) -> bool:
    """Whether a small fleet becomes a large one, as far as its pools tell how many options the new ones have."""
    pools = last.plan.pools.values()
    options = sum(c.usd_per_million_tokens is not None for p in pools for c in p.candidates)
    return bool(pools) and options * (1 + len(difference.changed) / len(pools)) > fleet.FLAT


def difference_of(last: Planned, snapshot: Snapshot) -> Difference | None:
    """What differs between the last plan's snapshot and this one; None where all pools have to be planned again."""
    before = last.snapshot
    same = (
        before.serving_profiles == snapshot.serving_profiles
        and before.at_fault == snapshot.at_fault
        and before.spanning == snapshot.spanning
        and _unreadable(before) == _unreadable(snapshot)
        and [_of_class(c) for c in before.hardware_classes] == [_of_class(c) for c in snapshot.hardware_classes]
        and not _constraint_ended(snapshot.hardware_classes, before.now, snapshot.now)
    )
    return _pools_that_differ(last, snapshot) if same else None


def _pools_that_differ(last: Planned, snapshot: Snapshot) -> Difference:
    before = last.snapshot
    short = {(c.metadata.name, x.type) for c in snapshot.hardware_classes for x in _out_of_reach(c)}
    ran, runs = _running(before.running, short), _running(snapshot.running, short)
    held, holds = _held(last.plan, before.running), _held(last.plan, snapshot.running)
    old = {p.key: p for p in before.pools}
    changed = [
        p
        for p in snapshot.pools
        if not _same_pool(old.get(p.key), p)
        or (ran.get(p.key) != runs.get(p.key) and not (last.large and _carried_out(last, p.key, runs, short)))
        or held.get(p.key) != holds.get(p.key)
        or before.namespace_labels.get(_namespace(p)) != snapshot.namespace_labels.get(_namespace(p))
        or _cooled_down(last.plan.pools.get(p.key), p, snapshot.now)
    ]
    return Difference(tuple(changed), frozenset(old.keys() - {p.key for p in snapshot.pools}))


def better(fresh: Plan, present: Plan) -> bool:
    """Whether a plan made afresh is worth replacing the present one of the same pools and prices.

    It is where it serves more (by priority), or saves `WORTH`: two plans that are near-optimal differ in many places
    for next to nothing, and each place is a move.
    """
    for mine, theirs in zip(_unserved(fresh), _unserved(present), strict=False):
        if mine[0] != theirs[0] or abs(mine[1] - theirs[1]) > 1e-6:
            return mine[1] < theirs[1]
    return _dollars(fresh) < (1 - WORTH) * _dollars(present)


def _unserved(plan: Plan) -> list[tuple[int, float]]:
    """(priority, requests per second without a place), most important first."""
    sums: dict[int, float] = {}
    for pool in plan.pools.values():
        priority = -pool.effective.priority
        lost = 0.0 if pool.not_accepted else pool.unserved_requests_per_second
        sums[priority] = sums.get(priority, 0.0) + lost
    return sorted(sums.items())


def _dollars(plan: Plan) -> float:
    return float(sum(p.usd_per_hour for p in plan.pools.values() if p.effective.mode == "Apply"))


def _of_class(hardware: HardwareClass) -> object:
    """What of a class bears on a plan: the rest of its status says what came of plans."""
    return hardware.metadata.name, hardware.spec, _out_of_reach(hardware)


def _out_of_reach(hardware: HardwareClass) -> list[ConstrainedCapacity]:
    """What cannot be had, or is to be avoided, for a while."""
    return [*(hardware.status.constrained or ()), *(hardware.status.avoided or ())]


def _constraint_ended(classes: Iterable[HardwareClass], before: datetime, now: datetime) -> bool:
    ends = (api_time(c.until) for hardware in classes for c in _out_of_reach(hardware))
    return any(end is not None and before < end <= now for end in ends)


def _unreadable(snapshot: Snapshot) -> object:
    """Pools that do not parse, and what they hold."""
    return snapshot.unreadable, {r for r in snapshot.running if r.pool in snapshot.unreadable and r.replicas}


def _running(
    running: Sequence[RunningPlacement], short: set[Resource]
) -> dict[str, frozenset[tuple[Resource, str | None, int]]]:
    """What of the running placements bears on a plan: where they are; how many only where no more can be had."""
    out: dict[str, set[tuple[Resource, str | None, int]]] = {}
    for one in running:
        if one.replicas > 0:
            where = one.hardware_class, one.capacity_type
            placed = one.ready_replicas if one.scheduled_replicas is None else one.scheduled_replicas
            out.setdefault(one.pool, set()).add((where, one.quantization, placed if where in short else 0))
    return {key: frozenset(found) for key, found in out.items()}


def _held(plan: Plan, running: Iterable[RunningPlacement]) -> dict[str, set[tuple[Resource, int, int | None]]]:
    """By pool, what holds nodes without a place in the plan: where, how many replicas, and on how many nodes."""
    out: dict[str, set[tuple[Resource, int, int | None]]] = {}
    keeps = {
        key: set()
        if pool.effective.mode == "Recommend"
        else {(p.hardware_class, p.capacity_type) for p in pool.placements}
        for key, pool in plan.pools.items()
        if pool.not_accepted or pool.effective.mode == "Recommend" or why_hold(pool)
    }
    for one in running:
        where = one.hardware_class, one.capacity_type
        if one.pool in keeps and where not in keeps[one.pool]:
            there = one.replicas if one.scheduled_replicas is None else min(one.replicas, one.scheduled_replicas)
            out.setdefault(one.pool, set()).add((where, there, one.nodes))
    return out


def _carried_out(
    last: Planned,
    pool: str,
    runs: Mapping[str, frozenset[tuple[Resource, str | None, int]]],
    short: set[Resource],
) -> bool:
    """Whether what runs is what was planned: in a large fleet that is no reason to plan the pool again."""
    plan = last.plan.pools.get(pool)
    wanted = (((p.hardware_class, p.capacity_type), p) for p in (plan.placements if plan else ()))
    return runs.get(pool) == frozenset((at, p.quantization, p.replicas if at in short else 0) for at, p in wanted)


def _same_pool(old: InferencePool | None, new: InferencePool) -> bool:
    """Its status says what came of plans, but for the time of its last move."""
    return old is new or (
        old is not None
        and old.metadata.uid == new.metadata.uid
        and old.status.last_move_time == new.status.last_move_time
        and old.spec == new.spec
    )


def _namespace(pool: InferencePool) -> str:
    return pool.metadata.namespace or "default"


def _cooled_down(plan: PoolPlan | None, pool: InferencePool, now: datetime) -> bool:
    if plan is None or plan.kept is None or plan.kept.reason != "Cooldown":
        return False
    moved = api_time(pool.status.last_move_time)
    return moved is None or now >= moved + plan.effective.cooldown


def _of_changed(last: Planned, snapshot: Snapshot, difference: Difference) -> Planned | None:
    """Only the changed pools planned anew; None where they cannot be solved."""
    changed = {p.key for p in difference.changed}
    judged = judge_pools(replace(snapshot, pools=difference.changed))
    accepted = [j for j in judged if j.problem is None]
    limits = limits_of(snapshot)
    kept = {k: p for k, p in last.plan.pools.items() if k not in changed and k not in difference.gone}
    used: dict[Resource, dict[str, Fraction]] = {}
    for key, pool in kept.items():
        for p in pool.placements if pool.effective.mode == "Apply" else ():
            used.setdefault((p.hardware_class, p.capacity_type), {})[key] = p.paid_nodes
    alone = _nodes(p for plan in kept.values() if plan.effective.mode == "Apply" for p in plan.placements)
    left = {r: max(0, most - alone.get(r, 0)) for r, most in limits.items()}
    stay = (*(s for s in last.plan.staying if s.pool in kept), *firm_stays(judged, snapshot))
    others = standing(kept)
    live, stay = decide_beside([j for j in accepted if not j.shadow], left, stay, snapshot, others)
    asked = {j.key for j in accepted if j.shadow}
    left, together = beside(left, (s for s in stay if s.pool not in asked), others)
    taken = nodes_used(live.solution.pools)
    left = {r: max(0, most - taken.get(r, 0)) for r, most in less(left, together, together).items()}
    shadows = [j for j in accepted if j.shadow]
    shadow = decide_pools(shadows, solver_of(shadows, left), snapshot.now)
    if live.solution.failed or shadow.solution.failed:
        return None
    solved = {**live.solution.pools, **shadow.solution.pools}
    for key, one in live.solution.pools.items():
        for a in one.assignments:
            used.setdefault(a.option.resource, {})[key] = a.paid_nodes
    for resource, by_pool in nodes_of(stay, others).items():
        used.setdefault(resource, {}).update(by_pool)
    usage = Usage.of(used)
    gpu_only = counterfactuals(accepted, solved, snapshot.hardware_classes)
    fresh = {}
    for j in judged:
        if j.problem:
            fresh[j.key] = unaccepted(j, limits)
        else:
            fresh[j.key] = pool_plan(j, shadow if j.shadow else live, limits, usage, False, gpu_only.get(j.key))
    fresh, staying = settle_stays(judged, fresh, stay, usage, limits, snapshot, large=True)
    staying = (*(s for s in last.plan.staying if s.pool in kept), *staying)
    unpacked = {p.key: fresh[p.key] if p.key in fresh else kept[p.key] for p in snapshot.pools}
    pools = recharged(unpacked, snapshot.hardware_classes)
    costs = {k: v for k, v in last.pool_costs.items() if k in kept} | {
        k: one.objective for k, one in live.solution.pools.items()
    }
    cost = last.cost + sum(costs[k] for k in live.solution.pools)
    cost -= sum(v for k, v in last.pool_costs.items() if k not in kept)
    for key in costs:
        saved = float(unpacked[key].usd_per_hour - pools[key].usd_per_hour)
        if saved and pools[key].effective.objective == "Cost":
            costs[key] -= saved
            cost -= saved
    bound, bounds = _bounded(last, [j for j in accepted if not j.shadow], kept, limits, live.kept)
    proven = cost > 0 and not math.isnan(bound)
    gap = max(0.0, (cost - bound) / cost) if proven else math.nan if math.isnan(bound) else 0.0
    return replace(
        last,
        snapshot=snapshot,
        plan=replace(last.plan, pools=pools, gap=gap, staying=staying, shortages=()),
        cost=cost,
        bound=bound,
        pool_costs=costs,
        pool_bounds=bounds,
        large=True,
    )


def _nodes(placements: Iterable[Placement]) -> dict[Resource, int]:
    """Nodes of placements that share none."""
    out: dict[Resource, int] = {}
    for p in placements:
        if not p.shareable:
            out[p.hardware_class, p.capacity_type] = out.get((p.hardware_class, p.capacity_type), 0) + p.nodes
    return out


def _bounded(
    last: Planned,
    judged: Sequence[JudgedPool],
    kept: Mapping[str, PoolPlan],
    limits: Mapping[Resource, int],
    held: Mapping[str, object],
) -> tuple[float, dict[str, float]]:
    """The bound with the changed pools' parts priced anew, and those parts; not a number where the last had none."""
    unforeseen = any(groups_open_to(j.program) - last.groups for j in judged)
    if not last.pool_bounds or math.isnan(last.bound) or unforeseen:
        return math.nan, {}
    fresh = {j.key: _least(j, last.duals, limits, held=j.key in held) for j in judged}
    if any(map(math.isnan, fresh.values())):
        return math.nan, {}
    gone = sum(v for k, v in last.pool_bounds.items() if k not in kept)
    bounds = {k: v for k, v in last.pool_bounds.items() if k in kept} | fresh
    return last.bound - gone + sum(fresh.values()), bounds


def _least(judged: JudgedPool, duals: Mapping[Resource, float], limits: Mapping[Resource, int], *, held: bool) -> float:
    """What no plan of the pool that serves all costs less than, with nodes at their duals; not a number without any."""
    problem = in_parts(judged.program)
    if held and judged.incumbent:
        own = judged.incumbent.resources
        problem = replace(problem, options=tuple(o for o in problem.options if o.resource in own))
    program = Program()
    columns = add_pool(program, problem, limits)
    program.upper[columns.unserved] = 0.0
    terms = cost_terms(problem, columns)
    for k, option in enumerate(problem.options):
        terms[columns.nodes[k]] += duals.get(option.resource, 0.0) / option.parts
    try:
        return minimise_roughly(program, terms).bound
    except SolverError:
        return math.nan
