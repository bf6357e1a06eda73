"""From a snapshot to a plan: judge, accept, solve, explain.  The one place where the planner's parts meet."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from berth_operator.api import HardwareClass, format_decimal
from berth_operator.planner import fleet
from berth_operator.planner.candidates import Candidates, Resource
from berth_operator.planner.churn import Decision
from berth_operator.planner.counterfactual import Comparison, gpu_only_usd_per_hour
from berth_operator.planner.explanation import Outcome, Usage, per_million, verdicts
from berth_operator.planner.judged import JudgedPool, decide_pools, is_large, judge_pools, limits_of, solver_of
from berth_operator.planner.keeping import decide_beside, firm_stays, goes_short, settle_stays, used_by
from berth_operator.planner.marginal import Worth, worth_of_nodes
from berth_operator.planner.native import trim
from berth_operator.planner.program import PoolProblem
from berth_operator.planner.sharing import Group, groups_of, pieces_of
from berth_operator.planner.shortfall import shortfall
from berth_operator.planner.solution import Assignment, PoolSolution
from berth_operator.planner.staying import nodes_of
from berth_operator.planner.traffic import percents, spread
from berth_operator.planner.types import Placement, Plan, PoolPlan, Problem, ShadowPrice, Snapshot

PROVEN: Final = 1e-6
"""Relative gap up to which a plan is called optimal."""
EXACT_BREAK_EVENS: Final = fleet.FLAT
"""Options of all pools up to which break-even prices are found by the solver, where bounds do not meet."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan with what a later one may start from."""

    snapshot: Snapshot
    plan: Plan
    cost: float
    """Of the cost stage's objective; likewise `bound`."""
    bound: float
    duals: Mapping[Resource, float]
    pool_costs: Mapping[str, float]
    pool_bounds: Mapping[str, float]
    """At the duals; nothing where the plan was not made by decomposition, or not of all pools alike."""
    large: bool = False
    """Too large to be solved to its optimum at once: amending is worth more than planning afresh."""
    groups: frozenset[Group] = frozenset()
    """Of pools that may share nodes, which `pool_bounds` count in parts."""


def plan(snapshot: Snapshot, *, explain: bool = True, shadow_prices: bool = False) -> Plan:
    """Place every pool of a snapshot.  Pure and deterministic; never raises for what a user can write.

    Without `explain` what people read is left out: candidates and what GPUs alone would cost, except of pools that go
    short.  The placements are the same.  With `shadow_prices` a small fleet is solved once more for each limit, to say
    what one more node would save; large ones know it anyway.
    """
    return planned(snapshot, explain=explain, shadow_prices=shadow_prices).plan


def planned(snapshot: Snapshot, *, explain: bool = True, shadow_prices: bool = False) -> Planned:
    """The plan of a snapshot, with its proof.

    Pools that run are planned together; suspended pools and those of mode Recommend afterwards, together, with the
    nodes that are left, so that what will not run takes nothing from what does.
    """
    judged = judge_pools(snapshot)
    limits = limits_of(snapshot)
    accepted = [j for j in judged if j.problem is None]
    effective = {j.key: j.context.effective for j in accepted}
    live, firm = decide_beside([j for j in accepted if not j.shadow], limits, firm_stays(judged, snapshot), snapshot)
    pieces = pieces_of(effective, live.solution.pools)
    taken = used_by([live], nodes_of(firm, pieces))
    # What a pool of mode Recommend keeps is its own to be recommended.
    asked = {j.key for j in accepted if j.shadow}
    others = {r: {key: n for key, n in by_pool.items() if key not in asked} for r, by_pool in taken.items()}
    left = {r: max(0, most - math.ceil(sum(others.get(r, {}).values()))) for r, most in limits.items()}
    shadows = [j for j in accepted if j.shadow]
    shadow = decide_pools(shadows, solver_of(shadows, left), snapshot.now)
    large = is_large(accepted)
    if large:
        trim()
    usage = {
        False: Usage.of(taken, pieces),
        True: Usage.of(used_by([shadow], others), pieces_of(effective, shadow.solution.pools)),
    }
    exact = sum(len(j.candidates.options) for j in accepted) <= EXACT_BREAK_EVENS
    solved = {**live.solution.pools, **shadow.solution.pools}
    gpu_only = counterfactuals(accepted, solved, snapshot.hardware_classes) if explain else {}
    pools = {}
    for j in judged:
        decision = shadow if j.shadow else live
        if j.problem:
            pools[j.key] = unaccepted(j, limits)
        elif j.key in decision.solution.failed:
            pools[j.key] = _standing(j, decision.solution.failed[j.key])
        else:
            told = explain or goes_short(decision.solution.pools[j.key])
            pools[j.key] = pool_plan(j, decision, limits, usage[j.shadow], exact, gpu_only.get(j.key), explain=told)
    pools, staying = settle_stays(judged, pools, firm, usage[False], limits, snapshot, large=large)
    cost = live.solution.cost + shadow.solution.cost
    bound = live.solution.bound + shadow.solution.bound
    failed = {**live.solution.failed, **shadow.solution.failed}
    gap = max(0.0, (cost - bound) / cost) if cost > 1e-9 else 0.0
    made = Plan(
        pools=pools,
        gap=gap,
        solver_status="; ".join(sorted(set(failed.values()))) or ("Optimal" if gap <= PROVEN else "Feasible"),
        staying=staying,
        shadow_prices=_shadow_prices(live, limits, ask=shadow_prices),
        shortages=live.solution.shortages,
    )
    costs = {key: pool.objective for key, pool in live.solution.pools.items()}
    bounds = live.solution.pool_bounds if not failed and not shadow.solution.pools else {}
    groups = groups_of(j.program for j in accepted if not j.shadow)
    return Planned(snapshot, made, cost, bound, live.solution.duals, costs, bounds, large, groups)


def pool_problems(snapshot: Snapshot) -> dict[str, PoolProblem]:
    """What is solved, by pool: those that are accepted and would run.  For checks of a plan by other means."""
    return {j.key: j.program for j in judge_pools(snapshot) if j.problem is None and not j.shadow}


def _shadow_prices(live: Decision, limits: Mapping[Resource, int], *, ask: bool) -> tuple[ShadowPrice, ...]:
    """What one more node of each limit would save, the most first; what is less than a tenth of a cent is nothing."""
    duals = {resource: Worth(value, exact=True) for resource, value in live.solution.duals.items()}
    worth = duals or (worth_of_nodes(live, limits) if ask else {})
    rounded = {r: Decimal(repr(w.usd_per_hour)).quantize(Decimal("0.001")) for r, w in worth.items()}
    ordered = sorted(rounded, key=lambda r: (-rounded[r], r))
    return tuple(
        ShadowPrice(*r, rounded[r], at_least=not worth[r].exact, marginal=r in duals) for r in ordered if rounded[r] > 0
    )


def counterfactuals(
    accepted: Sequence[JudgedPool], solved: Mapping[str, PoolSolution], classes: Sequence[HardwareClass]
) -> dict[str, Decimal | None]:
    """By pool, what GPUs alone would cost for what its plan serves; nothing for suspended pools."""
    wanted = [
        Comparison(j.key, j.context, j.candidates.options, 1 - solved[j.key].unserved)
        for j in accepted
        if j.key in solved and not j.context.effective.suspend
    ]
    return gpu_only_usd_per_hour(wanted, classes)


# --- After solving --------------------------------------------------------------------------------------------------


def unaccepted(judged: JudgedPool, limits: Mapping[Resource, int]) -> PoolPlan:
    """The plan of a pool whose spec cannot work: nothing placed, and why nothing else would serve it."""
    candidates = tuple(verdicts(_unplaced(judged, limits)))
    return PoolPlan(judged.key, judged.context.effective, not_accepted=judged.problem, candidates=candidates)


def _unplaced(judged: JudgedPool, limits: Mapping[Resource, int]) -> Outcome:
    """A pool that is not accepted: only what cannot serve it is explained."""
    nothing = PoolSolution((), 1.0, 0.0)
    unfit = Candidates((), judged.candidates.unfit)
    return Outcome(judged.program, unfit, nothing, limits, Usage.of({}), limits, None, None, None, False, Decimal(0))


def pool_plan(
    judged: JudgedPool,
    decision: Decision,
    limits: Mapping[Resource, int],
    usage: Usage,
    exact: bool,
    gpu_only: Decimal | None,
    *,
    explain: bool = True,
) -> PoolPlan:
    """A solved pool in full: traffic, cost, reasons (without `explain` none)."""
    key, effective, problem = judged.key, judged.context.effective, judged.program
    solution = decision.solution.pools[key]
    kept = decision.kept.get(key)
    free = decision.free.pools.get(key)
    left = usage.left(limits, key)
    shares = spread(problem, solution.assignments)
    served = 1 - solution.unserved
    placements = placements_of(problem, solution.assignments, percents(problem, solution.assignments, shares))
    usd = sum((p.usd_per_hour for p in placements), Decimal(0))
    outcome = Outcome(
        *(problem, judged.candidates, solution, limits, usage, left, judged.incumbent, kept, free, exact, usd),
        beside=usage.beside(key, effective.objective) if exact else {},
    )
    candidates = tuple(verdicts(outcome)) if explain else ()
    if effective.suspend:
        resume = usd if placements else None
        return PoolPlan(key, effective, candidates=candidates, resume_usd_per_hour=resume)
    return PoolPlan(
        pool=key,
        effective=effective,
        placements=placements,
        candidates=candidates,
        usd_per_hour=usd,
        usd_per_million_tokens=per_million(usd, problem.demand * served * effective.output_tokens)
        if served > 0
        else None,
        gpu_only_usd_per_hour=gpu_only,
        watts=watts_of(placements),
        served_requests_per_second=problem.demand * served,
        unserved_requests_per_second=problem.demand * (1 - served),
        shortfall=shortfall(problem, judged.candidates, solution, candidates, left),
        over_budget=over_budget_of(judged, usd),
        kept=kept,
    )


def placements_of(
    problem: PoolProblem, assignments: Sequence[Assignment], traffic: Sequence[int]
) -> tuple[Placement, ...]:
    return tuple(
        Placement(
            pool=problem.key,
            hardware_class=a.option.hardware_class,
            capacity_type=a.option.capacity_type,
            replicas=a.replicas,
            nodes=a.nodes,
            usd_per_hour=a.usd_per_hour,
            watts=None if a.option.node_watts is None else round(a.paid_nodes * a.option.node_watts),
            traffic_percent=percent,
            quantization=a.option.quantization,
            capacity=a.option.capacity,
            resources=a.option.resources,
            replicas_per_node=a.option.replicas_per_node,
            nodes_per_replica=a.option.nodes_per_replica,
            shareable=a.option.shareable,
            paid=a.paid,
            beside=a.beside,
        )
        for a, percent in zip(assignments, traffic, strict=True)
    )


def watts_of(placements: Sequence[Placement]) -> int | None:
    """Of all nodes; None where one class does not say."""
    watts = [p.watts for p in placements]
    known = [w for w in watts if w is not None]
    return sum(known) if watts and len(known) == len(watts) else None


def over_budget_of(judged: JudgedPool, usd: Decimal) -> Problem | None:
    effective = judged.context.effective
    if effective.max_usd_per_hour is None or usd <= effective.max_usd_per_hour:
        return None
    return Problem(
        "Overspend",
        f"${format_decimal(usd)}/h is above spec.budget.maxUsdPerHour {format_decimal(effective.max_usd_per_hour)};"
        " budget.onExceeded Overspend keeps serving",
    )


def _standing(judged: JudgedPool, failure: str) -> PoolPlan:
    """The solver failed: what runs stays, as far as its class can still serve the pool."""
    by_resource = {o.resource: o for o in reversed(judged.candidates.options)}
    assignments = []
    for running in judged.incumbent.placements if judged.incumbent else ():
        option = by_resource.get((running.hardware_class, running.capacity_type))
        if option and running.replicas:
            assignments.append(Assignment(option, running.replicas, option.nodes_for(running.replicas)))
    carried = [a.replicas * a.option.capacity.turns_per_second / judged.program.demand for a in assignments]
    total = sum(carried)
    shares = [c / max(total, 1.0) for c in carried]
    placements = placements_of(judged.program, assignments, percents(judged.program, assignments, shares))
    served = min(1.0, total)
    return PoolPlan(
        pool=judged.key,
        effective=judged.context.effective,
        placements=placements,
        usd_per_hour=sum((p.usd_per_hour for p in placements), Decimal(0)),
        watts=watts_of(placements),
        served_requests_per_second=judged.program.demand * served,
        unserved_requests_per_second=judged.program.demand * (1 - served),
        shortfall=Problem("SolverFailed", f"{failure}; what runs stands"),
    )
