"""Why is demand unserved, or a floor of replicas missed?  An ordered chain of bounds; the first that binds answers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from berth_operator.api import format_decimal, format_digits
from berth_operator.planner.candidates import Candidates
from berth_operator.planner.program import Limits, PoolProblem
from berth_operator.planner.solution import Assignment, PoolSolution
from berth_operator.planner.types import Candidate, Problem, Verdict

_MOST_NAMED: Final = 4


@dataclass(frozen=True, slots=True)
class _Short:
    problem: PoolProblem
    candidates: Candidates
    solution: PoolSolution
    explained: Sequence[Candidate]
    left: Limits


def shortfall(
    problem: PoolProblem,
    candidates: Candidates,
    solution: PoolSolution,
    explained: Sequence[Candidate],
    left: Limits,
) -> Problem | None:
    """The reason with its number; None when all demand is served and minReplicas run.

    `left`: nodes that the other pools leave.
    """
    short = _Short(problem, candidates, solution, explained, left)
    if solution.unserved <= 0:
        return _missing_replicas(short)
    unserved = format_digits(problem.demand * solution.unserved)
    what = f"{unserved} of {format_digits(problem.demand)} requests/s are unserved: "
    for rule in _RULES:
        found = rule(short)
        if found:
            return Problem(found.reason, what + found.message)
    return Problem("Policy", what + "node limits, spot and vendor shares leave no more")


def _missing_replicas(short: _Short) -> Problem | None:
    missing = round(short.solution.missing_replicas)
    if not missing:
        return None
    floor = short.problem.effective.min_replicas
    bound = _budget(short)
    reasons = [bound.message] if bound else _out_of_reach(short)
    why = f": {'; '.join(reasons)}" if reasons else ""
    return Problem(
        "MinReplicas", f"all demand is served, but {missing} of scaling.minReplicas {floor} are missing{why}"
    )


def _no_hardware(short: _Short) -> Problem | None:
    if short.candidates.options or short.candidates.unfit:
        return None
    faults = [f"{one.name}: {one.message}" for one in short.candidates.none_but]
    if faults:
        rest = f"; and {len(faults) - _MOST_NAMED} more" if len(faults) > _MOST_NAMED else ""
        said = "; ".join(faults[:_MOST_NAMED])
        return Problem("NoHardware", f"every HardwareClass is at fault: correct one ({said}{rest})")
    return Problem(
        "NoHardware", "there is no HardwareClass; create one (`berth hardware list -o yaml` prints the catalog)"
    )


def _max_replicas(short: _Short) -> Problem | None:
    most = short.problem.effective.max_replicas
    if most is None or sum(a.replicas for a in short.solution.assignments) < most:
        return None
    return Problem("MaxReplicas", f"scaling.maxReplicas {most} is reached")


def _budget(short: _Short) -> Problem | None:
    effective = short.problem.effective
    used = {a.option.resource: a.nodes for a in short.solution.assignments}
    there = [
        (o.replica_usd_per_hour, o.nodes_per_replica)
        for o in short.candidates.options
        if used.get(o.resource, 0) + o.nodes_per_replica <= short.left.get(o.resource, math.inf)
    ]
    if effective.max_usd_per_hour is None or effective.on_exceeded != "Shed" or not there:
        return None
    spent = sum((a.nodes * a.option.node_usd_per_hour for a in short.solution.assignments), Decimal(0))
    cheapest, nodes = min(there)
    if spent + cheapest <= effective.max_usd_per_hour:
        return None
    return Problem(
        "Budget",
        f"${format_decimal(spent)}/h of budget.maxUsdPerHour {format_decimal(effective.max_usd_per_hour)} is spent"
        f" and no {'node' if nodes == 1 else f'replica, of {nodes} nodes,'} that can be had costs less than"
        f" ${format_decimal(cheapest)}/h",
    )


def _capacity(short: _Short) -> Problem | None:
    """Nodes are short; where spot nodes are not, policy keeps them from carrying the rest."""
    reasons = _out_of_reach(short)
    if not reasons:
        return None
    return Problem("NoCapacity", "; ".join([*reasons, *_spot_policy(short)]))


def _spot_rules(short: _Short) -> Problem | None:
    reasons = _spot_policy(short)
    return Problem("Policy", reasons[0]) if reasons else None


def _spot_policy(short: _Short) -> list[str]:
    """What spot rules leave out, where spot could serve more."""
    effective = short.problem.effective
    used = {a.option.resource: a.nodes for a in short.solution.assignments}
    spot = [o for o in short.candidates.options if o.spot]
    if all(o.resource in short.left and used.get(o.resource, 0) >= short.left[o.resource] for o in spot):
        return []
    alone = not any(not o.spot for o in short.candidates.options)
    return [
        f"spot may carry at most {effective.spot_max_traffic_percent} % of traffic, one"
        f" {'zone of a class' if any(o.zones > 1 for o in spot) else 'class of it'} at most"
        f" {100 - effective.survive_loss_percent} %, beside {effective.min_on_demand_replicas} replicas on demand"
        + (", and no class that can serve it has on-demand or reserved nodes" if alone else "")
    ]


def _vendors(short: _Short) -> Problem | None:
    most = short.problem.effective.max_traffic_percent_per_vendor
    vendors = sorted({o.vendor for o in short.candidates.options})
    if not vendors or most * len(vendors) >= 100:
        return None
    return Problem(
        "Policy", f"diversity.maxTrafficPercentPerVendor {most} needs more vendors than {', '.join(vendors)}"
    )


_RULES: tuple[Callable[[_Short], Problem | None], ...] = (
    _no_hardware,
    _vendors,
    _max_replicas,
    _budget,
    _capacity,
    _spot_rules,
)


def _full(assignment: Assignment, most: float) -> bool:
    """Whether `most` nodes hold no replica more."""
    return assignment.nodes + assignment.option.nodes_per_replica > most


def _out_of_reach(short: _Short) -> list[str]:
    """Candidates that would serve, or serve more, but cannot be had."""
    used = {(a.option.hardware_class, a.option.capacity_type): a for a in short.solution.assignments}
    reasons = []
    for candidate in short.explained:
        resource = candidate.hardware_class, candidate.capacity_type
        name = f"{candidate.hardware_class} {candidate.capacity_type.value}"
        if candidate.verdict in {Verdict.NO_CAPACITY, Verdict.CONSTRAINED, Verdict.AT_FAULT}:
            reasons.append(f"{name}: {candidate.reason}")
        elif resource in used and _full(used[resource], short.left.get(resource, math.inf)):
            reasons.append(f"{name}: no more than the {used[resource].nodes} nodes in use can be had (maxNodes)")
        elif resource in used and used[resource].replicas >= (used[resource].option.own_replica_limit or math.inf):
            reasons.append(f"{name}: constrained to the {used[resource].replicas} replicas that run")
    return reasons[:_MOST_NAMED]
