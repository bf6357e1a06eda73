"""What would one more node of a limited class save?  The flat program once more, with that node.

The linear dual of an integer program is what a sliver of a node would save, and nobody can have that: this is what a
whole one does, no pool going shorter than it goes.  A larger fleet, which is decomposed, has its master's duals.

Only a plan that takes all nodes of the class can save anything, since any other was there before, and only one that
costs less is looked for: with both as rows most questions are answered by the linear relaxation, which has no point.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from berth_operator.planner.candidates import Resource
from berth_operator.planner.churn import Decision
from berth_operator.planner.program import (
    Limits,
    PoolColumns,
    PoolProblem,
    Program,
    Terms,
    components,
    most_replicas,
)
from berth_operator.planner.sharing import groups_of
from berth_operator.planner.solution import PoolSolution, nodes_used
from berth_operator.planner.solver import TOLERANCE, Search, Stage, minimise_roughly, solve

MOST_OPTIONS: Final = 200
"""Of all pools, up to which it is asked."""
MOST_QUESTIONS: Final = 12
"""Limits that are asked about: those with the fewest nodes left."""
MOST_WORK: Final = 10_000_000
"""Nodes of branch and bound x options squared of a question: 1,000 nodes at 100 options."""
LEAST: Final = 5e-4
"""USD/h; what saves less saves nothing."""


@dataclass(frozen=True, slots=True)
class Worth:
    """What one more node saves."""

    usd_per_hour: float
    """In the objectives' common unit; never below zero."""
    exact: bool
    """False: at least so much.  There is a plan that saves it, and the search for a better one was not finished, or
    pools share nodes."""


def worth_of_nodes(decision: Decision, limits: Limits) -> dict[Resource, Worth]:
    """By limit; nothing for large fleets.  Moves that a saving takes are free, but for pools that the plan holds where
    they run."""
    now = decision.solution.pools
    problems = [p for p in decision.problems if p.key in now]
    if sum(len(p.options) for p in problems) > MOST_OPTIONS:
        return {}
    used = nodes_used(now)
    open_ = (r for r, most in limits.items() if _most(problems, {**limits, r: most + 1}, r) > most)
    ordered = sorted(open_, key=lambda r: (limits[r] - used.get(r, 0), r))
    return {resource: _worth(problems, now, limits, resource) for resource in ordered[:MOST_QUESTIONS]}


def _worth(
    problems: Sequence[PoolProblem], now: Mapping[str, PoolSolution], limits: Limits, resource: Resource
) -> Worth:
    more = {**limits, resource: limits[resource] + 1}
    wanted = _most(problems, more, resource)
    saved, exact = 0.0, True
    for group in components(problems, more):
        if any(o.resource == resource for p in group for o in p.options):
            before = math.fsum(now[p.key].objective for p in group)
            nodes = more[resource] - (wanted - _most(group, more, resource))  # others can take no more of them
            found = solve(group, more, search=_cheaper(now, before, resource, nodes))
            if not found.failed:
                saved += max(0.0, before - found.cost)
                exact &= found.cost <= found.bound + LEAST and not groups_of(group)
    return Worth(saved, exact)


def _most(problems: Sequence[PoolProblem], limits: Limits, resource: Resource) -> int:
    """Nodes of a resource that pools could have a use for, however few there are of others."""
    return sum(
        option.nodes_for(most_replicas(problem, option, limits))
        for problem in problems
        for option in problem.options
        if option.resource == resource
    )


def _cheaper(now: Mapping[str, PoolSolution], before: float, resource: Resource, nodes: int) -> Search:
    """For plans that cost less than `before`, take so many nodes and leave no pool shorter."""

    def search(
        program: Program,
        problems: Sequence[PoolProblem],
        columns: Sequence[PoolColumns],
        cost: Terms,
        joined: Mapping[int, int],
    ) -> Stage:
        taken: Terms = {}
        for problem, at in zip(problems, columns, strict=True):
            program.upper[at.unserved] = now[problem.key].unserved + TOLERANCE / 2
            if at.missing is not None:
                program.upper[at.missing] = now[problem.key].missing_replicas + TOLERANCE / 2
            taken |= {at.nodes[k]: 1.0 for k, option in enumerate(problem.options) if option.resource == resource}
        program.row(cost, at_most=before - LEAST)
        if not joined:  # where pools share nodes, packing may have kept some from them before
            program.row(taken, at_least=float(nodes))
        size = sum(len(p.options) for p in problems)
        return minimise_roughly(program, cost, 0.0, max(1, MOST_WORK // size**2))

    return search
