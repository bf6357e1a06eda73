"""Why is demand unserved, or a floor of replicas missed?  An ordered chain of bounds; the first that binds answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from berth_operator.api import format_decimal
from berth_operator.planner.candidates import Candidates
from berth_operator.planner.program import PoolProblem
from berth_operator.planner.solver import PoolSolution
from berth_operator.planner.types import Candidate, Problem, Verdict


@dataclass(frozen=True, slots=True)
class _Short:
    problem: PoolProblem
    candidates: Candidates
    solution: PoolSolution
    explained: Sequence[Candidate]


def shortfall(
    problem: PoolProblem, candidates: Candidates, solution: PoolSolution, explained: Sequence[Candidate]
) -> Problem | None:
    """The reason with its number; None when all demand is served and minReplicas run."""
    short = _Short(problem, candidates, solution, explained)
    if solution.unserved <= 0:
        return _missing_replicas(short)
    what = f"{problem.demand * solution.unserved:.3g} of {problem.demand:.3g} requests/s are unserved: "
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
    reasons = _out_of_reach(short)
    why = f": {'; '.join(reasons)}" if reasons else ""
    return Problem(
        "MinReplicas", f"all demand is served, but {missing} of scaling.minReplicas {floor} are missing{why}"
    )


def _no_hardware(short: _Short) -> Problem | None:
    if short.candidates.options or short.candidates.unfit:
        return None
    return Problem("NoHardware", "there is no HardwareClass; create one")


def _max_replicas(short: _Short) -> Problem | None:
    most = short.problem.effective.max_replicas
    if most is None or sum(a.replicas for a in short.solution.assignments) < most:
        return None
    return Problem("MaxReplicas", f"scaling.maxReplicas {most} is reached")


def _budget(short: _Short) -> Problem | None:
    effective = short.problem.effective
    if effective.max_usd_per_hour is None or effective.on_exceeded != "Shed" or not short.candidates.options:
        return None
    spent = sum((a.nodes * a.option.node_usd_per_hour for a in short.solution.assignments), Decimal(0))
    cheapest = min(o.node_usd_per_hour for o in short.candidates.options)
    if spent + cheapest <= effective.max_usd_per_hour:
        return None
    return Problem(
        "Budget",
        f"${format_decimal(spent)}/h of budget.maxUsdPerHour {format_decimal(effective.max_usd_per_hour)} is spent"
        f" and no node costs less than ${format_decimal(cheapest)}/h",
    )


def _capacity(short: _Short) -> Problem | None:
    reasons = _out_of_reach(short)
    return Problem("NoCapacity", "; ".join(reasons)) if reasons else None


def _vendors(short: _Short) -> Problem | None:
    most = short.problem.effective.max_traffic_percent_per_vendor
    vendors = sorted({o.vendor for o in short.candidates.options})
    if most * len(vendors) >= 100:
        return None
    return Problem(
        "Policy", f"diversity.maxTrafficPercentPerVendor {most} needs more vendors than {', '.join(vendors)}"
    )


_RULES: tuple[Callable[[_Short], Problem | None], ...] = (_no_hardware, _vendors, _max_replicas, _budget, _capacity)


def _out_of_reach(short: _Short) -> list[str]:
    """Candidates that would serve but cannot be had."""
    verdicts = {Verdict.NO_CAPACITY, Verdict.CONSTRAINED}
    return [
        f"{c.hardware_class} {c.capacity_type.value}: {c.reason}" for c in short.explained if c.verdict in verdicts
    ][:4]
