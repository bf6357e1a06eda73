"""From a snapshot to a plan: judge, accept, solve, explain.  The one place where the planner's parts meet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Final

from berth_operator.api import HardwareClass, InferencePool, ServingProfile, format_decimal, resolve
from berth_operator.planner import fleet
from berth_operator.planner.acceptance import may_carry_alone, placement_problem, spec_problem
from berth_operator.planner.candidates import Candidates, PoolContext, Resource, api_time, candidates_of
from berth_operator.planner.churn import Decision, Incumbent, decide
from berth_operator.planner.counterfactual import Comparison, gpu_only_usd_per_hour, judges_again
from berth_operator.planner.explanation import Outcome, Usage, per_million, verdicts
from berth_operator.planner.faulty import avoided_of, avoiding, with_faulty
from berth_operator.planner.judging import judge_all
from berth_operator.planner.marginal import Worth, worth_of_nodes
from berth_operator.planner.native import trim
from berth_operator.planner.program import PoolProblem
from berth_operator.planner.sharing import NOTHING, Group, Standing, groups_of, pieces_of
from berth_operator.planner.shortfall import shortfall
from berth_operator.planner.solution import Assignment, PoolSolution, nodes_used
from berth_operator.planner.traffic import percents, spread
from berth_operator.planner.types import Placement, Plan, PoolPlan, Problem, RunningPlacement, ShadowPrice, Snapshot

PROVEN: Final = 1e-6
"""Relative gap up to which a plan is called optimal."""
EXACT_BREAK_EVENS: Final = fleet.FLAT
"""Options of all pools up to which break-even prices are found by the solver, where bounds do not meet."""


@dataclass(frozen=True, slots=True)
class JudgedPool:
    """A pool with everything that can be said before solving."""

    key: str
    context: PoolContext
    candidates: Candidates
    problem: Problem | None
    incumbent: Incumbent | None

    @property
    def shadow(self) -> bool:
        """Planned with what is left, because nothing of it will run: suspended or only a recommendation."""
        return self.context.effective.suspend or self.context.effective.mode == "Recommend"

    @property
    def program(self) -> PoolProblem:
        """What is solved: only options that may carry traffic, or idle spot nodes would count as minReplicas."""
        effective = self.context.effective
        idle = effective.spot_max_traffic_percent == 0 or effective.survive_loss_percent == 100
        options = self.candidates.options
        return PoolProblem(self.key, effective, tuple(o for o in options if not o.spot) if idle else options)


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
    live = decide_pools([j for j in accepted if not j.shadow], limits, snapshot.now)
    used = nodes_used(live.solution.pools)
    left = {resource: max(0, most - used.get(resource, 0)) for resource, most in limits.items()}
    shadow = decide_pools([j for j in accepted if j.shadow], left, snapshot.now)
    if is_large(accepted):
        trim()
    effective = {j.key: j.context.effective for j in accepted}
    usage = {
        False: Usage.of(_used_by([live]), pieces_of(effective, live.solution.pools)),
        True: Usage.of(_used_by([live, shadow]), pieces_of(effective, shadow.solution.pools)),
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
    cost = live.solution.cost + shadow.solution.cost
    bound = live.solution.bound + shadow.solution.bound
    failed = {**live.solution.failed, **shadow.solution.failed}
    gap = max(0.0, (cost - bound) / cost) if cost > 1e-9 else 0.0
    made = Plan(
        pools=pools,
        gap=gap,
        solver_status="; ".join(sorted(set(failed.values()))) or ("Optimal" if gap <= PROVEN else "Feasible"),
        shadow_prices=_shadow_prices(live, limits, ask=shadow_prices),
        shortages=live.solution.shortages,
    )
    costs = {key: pool.objective for key, pool in live.solution.pools.items()}
    bounds = live.solution.pool_bounds if not failed and not shadow.solution.pools else {}
    groups = groups_of(j.program for j in accepted if not j.shadow)
    return Planned(snapshot, made, cost, bound, live.solution.duals, costs, bounds, is_large(accepted), groups)


def is_large(accepted: Sequence[JudgedPool]) -> bool:
    """Whether pools that would run are too many for the flat program."""
    return sum(len(j.candidates.options) for j in accepted if not j.shadow) > fleet.FLAT


def limits_of(snapshot: Snapshot) -> dict[Resource, int]:
    """Nodes that there are, where there is a limit."""
    return {
        (c.metadata.name, capacity.type): capacity.max_nodes
        for c in snapshot.hardware_classes
        for capacity in c.spec.capacity
        if capacity.max_nodes is not None
    }


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


# --- Before solving -------------------------------------------------------------------------------------------------


def judge_pools(snapshot: Snapshot) -> list[JudgedPool]:
    """Every pool with its candidates, in canonical order."""
    pools = sorted(snapshot.pools, key=lambda p: p.key)
    profiles: dict[str, list[ServingProfile]] = {}
    for profile in snapshot.serving_profiles:
        profiles.setdefault(profile.spec.model, []).append(profile)
    running: dict[str, list[RunningPlacement]] = {}
    for one in snapshot.running:
        running.setdefault(one.pool, []).append(one)
    for placements in running.values():
        placements.sort(key=lambda r: (r.hardware_class, r.capacity_type.value))
    contexts = [_context(p, snapshot, profiles, running.get(p.key, ())) for p in pools]
    classes, at_fault = sorted(snapshot.hardware_classes, key=lambda c: c.metadata.name), snapshot.at_fault
    problems = [spec_problem(c.effective, classes, c.profiles, at_fault) for c in contexts]
    sound = [i for i, problem in enumerate(problems) if problem is None]
    known = dict(zip(sound, judge_all([contexts[i] for i in sound], snapshot.hardware_classes), strict=True))
    judged, avoided = [], avoided_of(classes, snapshot.now)
    for i, (pool, context, problem) in enumerate(zip(pools, contexts, problems, strict=True)):
        with_known = replace(context, judged=known.pop(i, {}))
        candidates = Candidates()
        if problem is None:
            alone = partial(may_carry_alone, context.effective)
            candidates = avoiding(candidates_of(classes, with_known), avoided, context, alone)
            candidates = with_faulty(candidates, at_fault, context)
        found = problem or placement_problem(context.effective, candidates)
        own = tuple(running.get(pool.key, ()))
        incumbent = Incumbent(own, api_time(pool.status.last_move_time)) if own else None
        kept = with_known if judges_again(context.effective, classes) else context
        judged.append(JudgedPool(pool.key, kept, candidates, found, incumbent))
    return judged


def _context(
    pool: InferencePool,
    snapshot: Snapshot,
    profiles: Mapping[str, Sequence[ServingProfile]],
    running: Sequence[RunningPlacement],
) -> PoolContext:
    effective, namespace = resolve(pool.spec), pool.metadata.namespace or "default"
    return PoolContext(
        effective=effective,
        namespace=namespace,
        namespace_labels=snapshot.namespace_labels.get(namespace, {}),
        profiles=tuple(profiles.get(effective.model, ())),
        now=snapshot.now,
        scheduled={
            (r.hardware_class, r.capacity_type): r.ready_replicas
            if r.scheduled_replicas is None
            else r.scheduled_replicas
            for r in running
        },
        spanning=snapshot.spanning,
        running_nodes={r.hardware_class: r.nodes_per_replica for r in running},
    )


def decide_pools(
    pools: Sequence[JudgedPool], limits: Mapping[Resource, int], now: datetime, standing: Standing = NOTHING
) -> Decision:
    """Solve for pools and weigh their moves.  `standing`: as of `churn.decide`."""
    incumbents = {j.key: j.incumbent for j in pools if j.incumbent}
    return decide([j.program for j in pools], incumbents, limits, now, standing)


# --- After solving --------------------------------------------------------------------------------------------------


def _used_by(decisions: Sequence[Decision]) -> dict[Resource, dict[str, Fraction]]:
    used: dict[Resource, dict[str, Fraction]] = {}
    for decision in decisions:
        for key, pool in decision.solution.pools.items():
            for assignment in pool.assignments:
                used.setdefault(assignment.option.resource, {})[key] = assignment.paid_nodes
    return used


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


def goes_short(solution: PoolSolution) -> bool:
    """Whether a plan owes a reason for what a pool lacks."""
    return solution.unserved > 0 or solution.missing_replicas > 0


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
