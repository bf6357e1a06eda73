"""Is a better plan worth a move?  Not unless it serves more, or saves enough and not too soon after the last.

Three solves of the same program: all pools free; pools that run something held to the hardware they run on; and the
one that counts, where only those are free whose move is worth it.  Adding or removing replicas on the hardware that a
pool has already is no move.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from berth_operator.api import Effective, Quantization, format_duration
from berth_operator.planner.candidates import Resource
from berth_operator.planner.effort import Effort
from berth_operator.planner.fleet import FleetSolver
from berth_operator.planner.program import PoolProblem
from berth_operator.planner.solution import PoolSolution, Solution
from berth_operator.planner.solver import TOLERANCE
from berth_operator.planner.types import Problem, RunningPlacement


@dataclass(frozen=True, slots=True)
class Incumbent:
    """What a pool runs on now."""

    placements: tuple[RunningPlacement, ...]
    last_move: datetime | None

    @property
    def resources(self) -> set[Resource]:
        """Classes and capacity types with replicas."""
        return {(p.hardware_class, p.capacity_type) for p in self.placements if p.replicas > 0}

    @property
    def formats(self) -> set[Quantization]:
        """What they serve, where known: serving another format replaces every worker."""
        return {p.quantization for p in self.placements if p.quantization}


@dataclass(frozen=True, slots=True)
class Decision:
    """The plan that counts, and why some pools stay where they are."""

    solution: Solution
    kept: Mapping[str, Problem]
    free: Solution
    """The plan if moving were free."""
    problems: Sequence[PoolProblem]
    """Of the plan that counts: pools held to what they run on have no other options."""


def decide(
    problems: Sequence[PoolProblem], incumbents: Mapping[str, Incumbent], solver: FleetSolver, now: datetime
) -> Decision:
    """Solve for all pools, moving a pool off its hardware only where that serves more demand or is worth it.

    `solver`: of the same problems.

    What a move is worth shows in a plan whose gap nobody knows yet; the plan that is taken is proven.  Where nodes are
    too few, the free plan is proven first: others have to serve as much, which bounds may exclude, and which is tried
    before they are proven.
    """
    search = bool(incumbents) and solver.large
    free = solver.solve(problems, Effort.SEARCH) if search else solver.solve(problems, settled=incumbents.keys())
    scarce = free.scarce
    if search and scarce:
        search, free = False, free if free.shortages else solver.solve(problems)
    moves = _weighed(problems, incumbents, solver, free, now)
    if search and not moves.stays:
        search, free = False, solver.solve(problems, settled=incumbents.keys())
        moves = _weighed(problems, incumbents, solver, free, now)
    stays = dict(moves.stays)
    if not stays:
        return Decision(free, {}, free, problems)  # whoever stays in it does so of itself
    best = None
    while True:
        going = moves.wanted - stays.keys()
        held = [p if p.key in going else _hold(p, incumbents) for p in problems]
        if scarce and not solver.serves_as_much(held):
            return best or Decision(free, {}, free, problems)
        final = solver.solve(held, settled=going - moves.needed)  # whose moves have to save what they do
        if best and _shortage(problems, final) > _shortage(problems, best.solution):
            return best
        if _shortage(problems, final) > _shortage(problems, free):
            served = solver.solve(problems, settled=incumbents.keys()) if search else free
            return Decision(served, {}, free, problems)
        disappointed = {
            p.key: reason
            for p in problems
            if p.key in going - moves.needed and (reason := _worth(p, moves.held, final, incumbents[p.key], now))
        }
        best = Decision(final, dict(stays), free, held)
        if not disappointed:
            return best
        stays |= disappointed


def settled(decision: Decision, incumbents: Mapping[str, Incumbent]) -> list[PoolProblem]:
    """The pools of a plan, of which those that it leaves where they run have no other options."""
    wanted = {p.key for p in decision.problems if _would_move(p, decision.solution, incumbents)}
    return [p if p.key in wanted else _hold(p, incumbents) for p in decision.problems]


@dataclass(frozen=True, slots=True)
class _Moves:
    """Who would move in a free plan, and what speaks against it."""

    wanted: set[str]
    needed: set[str]
    """Of them, whose moves serve more demand."""
    stays: Mapping[str, Problem]
    held: Solution
    """The plan in which nobody moves; the free one where nobody wants to."""


def _weighed(
    problems: Sequence[PoolProblem],
    incumbents: Mapping[str, Incumbent],
    solver: FleetSolver,
    free: Solution,
    now: datetime,
) -> _Moves:
    wanted = {p.key for p in problems if _would_move(p, free, incumbents)}
    if not wanted:
        return _Moves(wanted, wanted, {}, free)
    held = solver.solve([_hold(p, incumbents) for p in problems], Effort.COMPARE)
    needed = _moves_for_service(problems, held, free) & wanted
    stays = {
        p.key: reason
        for p in problems
        if p.key in wanted - needed and (reason := _worth(p, held, free, incumbents[p.key], now))
    }
    return _Moves(wanted, needed, stays, held)


def _would_move(problem: PoolProblem, solution: Solution, incumbents: Mapping[str, Incumbent]) -> bool:
    if problem.key not in incumbents or problem.key not in solution.pools:
        return False
    incumbent, planned = incumbents[problem.key], solution.pools[problem.key].assignments
    if not incumbent.resources:
        return False
    reformatted = incumbent.formats and any(a.option.quantization not in incumbent.formats for a in planned)
    return bool(reformatted) or {a.option.resource for a in planned} != incumbent.resources


def _hold(problem: PoolProblem, incumbents: Mapping[str, Incumbent]) -> PoolProblem:
    """The pool with only the hardware (and format) it runs on; as it is where none of that can serve it any more."""
    incumbent = incumbents.get(problem.key)
    if incumbent is None:
        return problem
    own, formats = incumbent.resources, incumbent.formats or {o.quantization for o in problem.options}
    options = tuple(o for o in problem.options if o.resource in own and o.quantization in formats)
    return replace(problem, options=options) if options else problem


def _shortage(problems: Sequence[PoolProblem], solution: Solution) -> list[float]:
    """Unserved shares by falling priority, then replicas missing to minReplicas, for lexicographic comparison.

    Rounded, so that noise does not decide.
    """
    sums: dict[int, float] = {}
    missing = 0.0
    for problem in problems:
        pool = solution.pools.get(problem.key)
        unserved = pool.unserved if pool else 1.0
        sums[-problem.effective.priority] = sums.get(-problem.effective.priority, 0.0) + unserved
        missing += pool.missing_replicas if pool else problem.effective.min_replicas
    return [round(sums[priority], 5) for priority in sorted(sums)] + [round(missing, 3)]


def _moves_for_service(problems: Sequence[PoolProblem], held: Solution, free: Solution) -> set[str]:
    """Pools that are served better when free, where the fleet as a whole is."""
    if _shortage(problems, held) <= _shortage(problems, free):
        return set()
    return {
        key
        for key, pool in free.pools.items()
        if key not in held.pools
        or held.pools[key].unserved > pool.unserved + TOLERANCE
        or held.pools[key].missing_replicas > pool.missing_replicas + TOLERANCE
    }


def _places(pool: PoolSolution) -> set[tuple[Resource, Quantization]]:
    return {(a.option.resource, a.option.quantization) for a in pool.assignments}


def dollars(pool: PoolSolution) -> float:
    """USD/h of the nodes that it pays."""
    return float(sum(a.usd_per_hour for a in pool.assignments))


def required_saving(problem: PoolProblem, before: float) -> float:
    """USD/h that a move must save at least."""
    effective = problem.effective
    return max(float(effective.min_savings_usd_per_hour), before * effective.min_savings_percent / 100)


def _worth(
    problem: PoolProblem, held: Solution, moved: Solution, incumbent: Incumbent, now: datetime
) -> Problem | None:
    """Why a move is not worth it; None when it is."""
    effective = problem.effective
    before, after = held.pools.get(problem.key), moved.pools.get(problem.key)
    if before is None or after is None:
        return Problem("NotComparable", "the plan on the present hardware could not be solved")
    if _places(before) == _places(after):
        return None  # it leaves some of its hardware wherever it stays: no saving is wanted for that
    found = _saves_too_little(effective, before, after)
    if found is None and incumbent.last_move and abs(now - incumbent.last_move) < effective.cooldown:
        until = (incumbent.last_move + effective.cooldown).isoformat(timespec="seconds")
        return Problem("Cooldown", f"moved less than {format_duration(effective.cooldown)} ago: stays until {until}")
    return found


def _saves_too_little(effective: Effective, before: PoolSolution, after: PoolSolution) -> Problem | None:
    target = _described(after, with_format=effective.quantization is Quantization.ANY)
    if effective.objective != "Cost":
        gain = 1 - after.objective / before.objective if before.objective > 0 else 0.0
        if gain <= TOLERANCE or gain * 100 < effective.min_savings_percent:
            return Problem(
                "SavingsTooSmall",
                f"moving to {target} would better the objective {effective.objective} by {100 * gain:.1f} %,"
                f" less than minSavingsPercent {effective.min_savings_percent}",
            )
    else:
        saving = dollars(before) - dollars(after)
        share = 100 * saving / dollars(before) if dollars(before) > 0 else 0.0
        if saving <= TOLERANCE or saving < float(effective.min_savings_usd_per_hour) - TOLERANCE:
            return Problem(
                "SavingsTooSmall",
                f"moving to {target} would save ${saving:.2f}/h, less than"
                f" minSavingsUsdPerHour {effective.min_savings_usd_per_hour:f}",
            )
        if share < effective.min_savings_percent - TOLERANCE:
            return Problem(
                "SavingsTooSmall",
                f"moving to {target} would save ${saving:.2f}/h ({share:.1f} %), less than"
                f" minSavingsPercent {effective.min_savings_percent}",
            )
    return None


def _described(pool: PoolSolution, *, with_format: bool) -> str:
    """Hardware in words: "l4 OnDemand + l4 Spot", with the format where the plan chose it."""
    words = {
        f"{a.option.hardware_class} {a.option.capacity_type.value}"
        + (f" ({a.option.quantization.value})" if with_format else "")
        for a in pool.assignments
    }
    return " + ".join(sorted(words)) or "nothing"
