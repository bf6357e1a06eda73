"""How is the program solved?  HiGHS, stage after stage, the same answer for the same input every time.

One thread, a fixed seed, columns in canonical order, limits in branch-and-bound nodes and never in seconds.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import highspy
import numpy as np

from berth_operator.planner.program import (
    Limits,
    PoolColumns,
    PoolProblem,
    Program,
    Terms,
    add_pool,
    components,
    cost_terms,
    share_nodes,
    shortage_stages,
)
from berth_operator.planner.sharing import (
    NOTHING,
    Group,
    Standing,
    consolidated,
    groups_of,
    join_nodes,
    less,
    nodes_beyond,
    paid_by,
    regrouped,
    taken,
)
from berth_operator.planner.solution import Assignment, PoolSolution, Solution

SMALL: Final = 400
"""Integer columns up to which a component is solved to proven optimality."""
LARGE_GAP: Final = 0.005
"""Relative gap at which a larger component is good enough; the plan reports it."""
SMALL_NODES: Final = 50_000
"""Branch-and-bound nodes a stage of a small component: a bound on time that does not depend on the machine."""
LARGE_WORK: Final = 160_000_000
"""Nodes x integer columns squared of a stage of a larger one: 300 nodes at 700 columns, 10 at 4,000."""
MOST_REPACKS: Final = 4
"""Solves of a component in which pools share nodes, until their packing keeps to the limits; then without sharing."""
TOLERANCE: Final = 1e-6
"""Shares below this are nothing: ten times HiGHS's feasibility tolerance for a row of unit coefficients."""

ROUGH_NODES: Final = 60
"""Of branch and bound of what is minimised roughly."""
ROUGH: Final[Mapping[str, bool | int | float]] = {
    "mip_rel_gap": 1e-3,
    "mip_heuristic_effort": 0.0,
    "mip_detect_symmetry": False,
    "mip_heuristic_run_rins": False,
    "mip_heuristic_run_rens": False,
    "mip_heuristic_run_root_reduced_cost": False,
    "mip_heuristic_run_zi_round": False,
    "mip_allow_restart": False,
}


class SolverError(Exception):
    """HiGHS gave no feasible point."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One solved stage."""

    values: list[float]
    objective: float
    bound: float


Search = Callable[[Program, Sequence[PoolProblem], Sequence[PoolColumns], Terms, Mapping[int, int]], Stage]
"""Of a component's program: (program, pools, their columns, cost, columns joined to those of shared nodes) -> point.
Raises SolverError."""


def lexicographic(
    program: Program,
    problems: Sequence[PoolProblem],
    columns: Sequence[PoolColumns],
    cost: Terms,
    _joined: Mapping[int, int],
) -> Stage:
    """The least shortage, and then the least cost."""
    return minimise(program, [*merged_shortage(problems, columns), cost])


def solve(
    problems: Sequence[PoolProblem], limits: Limits, standing: Standing = NOTHING, search: Search = lexicographic
) -> Solution:
    """The lexicographic optimum over all pools (or what another `search` looks for), component by component.

    `standing`: replicas of other pools, whose nodes `limits` count, too; the bound is on what all of these cost, less
    what the others pay in this plan.
    """
    pools: dict[str, PoolSolution] = {}
    failed: dict[str, str] = {}
    cost = bound = 0.0
    for group in components(problems, limits):
        try:
            solved, group_cost, group_bound = _solve_component(group, limits, standing, search)
        except SolverError as error:
            failed.update({p.key: str(error) for p in group})
            continue
        pools.update(solved)
        cost += group_cost
        bound += group_bound
    return Solution(pools, cost, bound, failed)


def _solve_component(
    problems: Sequence[PoolProblem], limits: Limits, standing: Standing, search: Search
) -> tuple[dict[str, PoolSolution], float, float]:
    """Pools, cost and bound.  Where packing takes more nodes than there are, solved again with as many fewer."""
    groups = groups_of(problems, standing)
    more = {g: taken(standing.get(g, ())) for g in groups}
    pools, cost, bound = _solve_joined(problems, limits, groups, more, standing, search)
    short, repacked = _unserved(pools), False
    for _ in range(MOST_REPACKS):
        over = nodes_beyond(problems, limits, pools, {g: standing[g] for g in groups if g in standing})
        if not over:
            break
        repacked = True
        more = {g: nodes + over.get((g[0], g[1]), 0) for g, nodes in more.items()}
        pools, cost, _ = _solve_joined(problems, limits, groups, more, standing, search)
    else:
        pools, cost, _ = _solve_joined(problems, less(limits, groups, standing), frozenset(), {}, NOTHING, search)
    proven = _unserved(pools) <= short + TOLERANCE and not (repacked and standing)
    return pools, cost, bound if proven else 0.0


def _unserved(pools: Mapping[str, PoolSolution]) -> float:
    return sum(pool.unserved + pool.missing_replicas for pool in pools.values())


def _solve_joined(
    problems: Sequence[PoolProblem],
    limits: Limits,
    groups: frozenset[Group],
    more: Mapping[Group, Fraction],
    standing: Standing,
    search: Search,
) -> tuple[dict[str, PoolSolution], float, float]:
    program = Program()
    columns = [add_pool(program, problem, limits) for problem in problems]
    joined = join_nodes(program, problems, columns, groups, more)
    share_nodes(program, problems, columns, limits, joined)
    cost: Terms = {}
    for problem, at in zip(problems, columns, strict=True):
        cost.update(regrouped(cost_terms(problem, at), joined))
    last = search(program, problems, columns, cost, joined)
    pools = {p.key: read_pool(p, at, last.values) for p, at in zip(problems, columns, strict=True)}
    if not joined:
        return pools, last.objective, last.bound
    pools = consolidated(problems, pools, standing)
    others = paid_by(standing, problems, pools)
    return pools, sum(pool.objective for pool in pools.values()), last.bound - others


def merged_shortage(problems: Sequence[PoolProblem], columns: Sequence[PoolColumns]) -> list[Terms]:
    """The stages before cost, the first of them all shortage in one: when that is nothing, the others are too."""
    stages = shortage_stages(problems, columns)
    if len(stages) == 1:
        return stages
    everything: Terms = {}
    for stage in stages:
        everything.update(stage)
    return [everything, *stages]


def minimise(program: Program, stages: Sequence[Terms]) -> Stage:
    """Minimise each of `stages` in turn, keeping the earlier ones at their optimum.

    The first stage is a probe: if it comes out as nothing, the stages up to the last hold already and are passed
    over; if not, it is dropped and they are solved one by one (a single shortage stage is its own probe).
    Raises SolverError.
    """
    highs = _load(program)
    *shortage, last = stages
    point: Stage | None = None
    if shortage:
        point = _run(highs, program, shortage[0])
        if point.objective <= TOLERANCE:
            _keep(highs, shortage[0], 0.0)
        else:
            for terms in shortage[1:] or shortage:
                point = _run_after(highs, program, terms, point)
                _keep(highs, terms, max(point.objective, 0.0))
    return _run(highs, program, last) if point is None else _run_after(highs, program, last, point)


def minimise_roughly(
    program: Program,
    terms: Terms,
    within: float | None = None,
    most_nodes: int = ROUGH_NODES,
    cutoff: float = math.inf,
) -> Stage:
    """Minimise `terms` to a gap of 0.1 %, or of `within`, in few nodes, with little of what HiGHS does but branch.

    Branches above `cutoff` are not looked at.  Raises SolverError, also where no point is below that.
    """
    highs = _load(program)
    for name, value in ROUGH.items():
        highs.setOptionValue(name, value)
    highs.setOptionValue("mip_max_nodes", most_nodes)
    if within is not None:
        highs.setOptionValue("mip_rel_gap", 0.0)
        highs.setOptionValue("mip_abs_gap", within)
    highs.setOptionValue("objective_bound", cutoff)  # where its branch and bound starts from, as if a point were known
    return _run(highs, program, terms)


def _run_after(highs: Any, program: Program, terms: Terms, earlier: Stage) -> Stage:
    """A stage after another, whose point is feasible for it.

    HiGHS's presolve now and then calls a program infeasible whose only point lies on a kept row's very edge: then once
    more without presolve, and if that fails too, the earlier point stands, with no bound on what is better.
    """
    for presolve in ("choose", "off"):
        highs.setOptionValue("presolve", presolve)
        try:
            return _run(highs, program, terms)
        except SolverError:
            continue
        finally:
            highs.setOptionValue("presolve", "choose")
    return Stage(earlier.values, sum(c * earlier.values[column] for column, c in terms.items()), 0.0)


def _load(program: Program) -> Any:
    highs: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    integers = sum(program.integer)
    options: dict[str, bool | int | float | str] = {
        "output_flag": False,
        "threads": 1,
        "parallel": "off",
        "random_seed": 1,
        "mip_heuristic_run_feasibility_jump": False,  # more than half the time of a small program, for nothing
        "mip_abs_gap": 0.0,
        "mip_rel_gap": 0.0 if integers <= SMALL else LARGE_GAP,
        "mip_max_nodes": SMALL_NODES if integers <= SMALL else max(1, LARGE_WORK // integers**2),
        "mip_feasibility_tolerance": 1e-7,
        "primal_feasibility_tolerance": 1e-8,
    }
    for name, value in options.items():
        highs.setOptionValue(name, value)
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(program.lower), len(program.rows)
    lp.col_cost_ = np.zeros(len(program.lower))
    lp.col_lower_ = np.array(program.lower)
    lp.col_upper_ = np.array(program.upper)
    lp.row_lower_ = np.array([low for low, _, _ in program.rows])
    lp.row_upper_ = np.array([high for _, high, _ in program.rows])
    kinds = {True: highspy.HighsVarType.kInteger, False: highspy.HighsVarType.kContinuous}
    lp.integrality_ = [kinds[i] for i in program.integer]
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = np.cumsum([0, *(len(terms) for _, _, terms in program.rows)])
    lp.a_matrix_.index_ = np.array([j for _, _, terms in program.rows for j in terms], dtype=np.int32)
    lp.a_matrix_.value_ = np.array([v for _, _, terms in program.rows for v in terms.values()])
    highs.passModel(lp)
    return highs


def _run(highs: Any, program: Program, terms: Terms) -> Stage:
    """Minimise `terms`, from the last stage's point if there is one."""
    costs = np.zeros(len(program.lower))
    for column, coefficient in terms.items():
        costs[column] = coefficient
    earlier = highs.getSolution()
    start = list(earlier.col_value) if earlier.value_valid else None
    highs.changeColsCost(len(costs), np.arange(len(costs), dtype=np.int32), costs)
    if start is not None:
        point = highspy.HighsSolution()
        point.col_value = start
        highs.setSolution(point)
    highs.run()
    info, solution = highs.getInfo(), highs.getSolution()
    status = highs.getModelStatus()
    if info.primal_solution_status != 2 or status == highspy.HighsModelStatus.kInfeasible:  # 2: a feasible point
        raise SolverError(f"HiGHS found no feasible plan: {highs.modelStatusToString(status)}")
    objective = float(info.objective_function_value)
    optimal = status == highspy.HighsModelStatus.kOptimal and not any(program.integer)
    return Stage(list(solution.col_value), objective, objective if optimal else float(info.mip_dual_bound))


def _keep(highs: Any, terms: Terms, value: float) -> None:
    """Later stages may not worsen this one."""
    index = np.array(list(terms), dtype=np.int32)
    highs.addRow(-highspy.kHighsInf, value + TOLERANCE / 2, len(index), index, np.array(list(terms.values())))


def read_pool(problem: PoolProblem, columns: PoolColumns, values: Sequence[float]) -> PoolSolution:
    """A pool's part of a point, with whole replicas, and nodes that it shares with nobody."""
    assignments = []
    nodes: dict[int, int] = {}
    for k, option in enumerate(problem.options):
        replicas = round(values[columns.replicas[k]])
        if option.shareable:
            nodes[columns.nodes[k]] = option.nodes_for(replicas)
        if replicas:
            assignments.append(Assignment(option, replicas, option.nodes_for(replicas)))
    unserved = values[columns.unserved]
    cost = sum(c * nodes.get(column, values[column]) for column, c in cost_terms(problem, columns).items())
    missing = values[columns.missing] if columns.missing is not None else 0.0
    return PoolSolution(tuple(assignments), unserved if unserved > TOLERANCE else 0.0, cost, missing)
