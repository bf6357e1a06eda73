"""How is a set of pools solved: by the flat program, or decomposed?  Small ones flat, to proven optimality; others by
column generation, which keeps its columns and duals so that a second solve (a pool held to its hardware) starts warm.

Decomposed, the lexicographic order is one sum: a price for leaving a pool's demand unserved, far above what serving
costs and `LEVEL` times higher a priority, then one for a missing replica, then cost.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from berth_operator.planner.candidates import Option
from berth_operator.planner.decomposition import Decomposition, Effort
from berth_operator.planner.lanes import Floats, Ints, Lanes, lanes_of, most_replicas_on, unserved_by
from berth_operator.planner.pricing import LEAST
from berth_operator.planner.program import Limits, PoolProblem
from berth_operator.planner.solver import TOLERANCE, Assignment, PoolSolution, Solution, SolverError, solve

FLAT: Final = 700
"""Options of all pools up to which the flat program is solved."""
LEVEL: Final = 30.0
"""Times that unserved demand weighs more a priority higher."""
MOST_LEVELS: Final = 1e4
FAR_ABOVE: Final = 20.0
"""Times the dearest pool's cost that unserved demand costs."""
NODES_WORTH: Final = 4.0
"""Dearest nodes that the least unserved share costs at least."""


class FleetSolver:
    """Solves pools that share limits, again and again with some options taken away."""

    def __init__(self, problems: Sequence[PoolProblem], limits: Limits) -> None:
        self.problems = sorted(problems, key=lambda p: p.key)
        self.limits = limits
        self._first: Decomposition | None = None

    def solve(self, problems: Sequence[PoolProblem], effort: Effort = Effort.PROVE) -> Solution:
        """The plan of `problems`: those of the beginning, some of them with fewer options.

        `effort` is of a decomposition; small fleets are always solved to the end.
        """
        if not self.large:
            return solve(problems, self.limits)
        return self.decomposed(problems, effort)

    @property
    def large(self) -> bool:
        """Whether fleets of this size are decomposed."""
        return sum(len(p.options) for p in self.problems) > FLAT

    def decomposed(self, problems: Sequence[PoolProblem], effort: Effort = Effort.PROVE) -> Solution:
        """The same by column generation, whatever the size."""
        served = [p for p in self.problems if p.options]
        if not served:
            return solve(problems, self.limits)
        if self._first is None:
            lanes = lanes_of(served, self.limits)
            unserved, missing = penalties(lanes)
            self._first = Decomposition(lanes, len(served), unserved, missing)
        options = {p.key: p.options for p in problems}
        part = self._first.restricted(_allowed(self._first.lanes, options))
        try:
            outcome = part.run(effort)
        except SolverError as error:
            return Solution({}, 0.0, 0.0, {p.key: str(error) for p in problems})
        self._first.learn(part)
        pools = _read(part, outcome.chosen)
        for p in self.problems:
            if not p.options:
                pools[p.key] = PoolSolution((), 1.0, 0.0, float(p.effective.min_replicas))
        duals = {resource: float(value) for resource, value in zip(part.lanes.rows, outcome.duals, strict=True)}
        bounds = {p.key: float(b) for p, b in zip(part.lanes.problems, part.bounds, strict=True)}
        # The distance to the bound is told of dollars alone: beside the price of shortage it would look like nothing.
        cost = float(part.columns.cost[outcome.chosen].sum())
        return Solution(pools, cost, outcome.bound - (outcome.cost - cost), {}, duals, bounds)


def penalties(lanes: Lanes) -> tuple[Floats, float]:
    """([lane] USD/h for leaving a pool unserved, USD/h for a missing replica)."""
    usable = (lanes.most > 0) & (lanes.share > 0)
    dearest = np.where(usable, np.maximum(lanes.price / np.maximum(lanes.share, 1e-12), lanes.price), np.inf).min(1)
    node = float(np.where(usable, lanes.price, 0.0).max(initial=0.0))
    whole = float(np.where(np.isfinite(dearest), dearest, 0.0).max(initial=0.0))
    base = max(FAR_ABOVE * whole, NODES_WORTH * node / LEAST, 1.0)
    levels = np.array([lanes.problems[i].effective.priority for i in lanes.pool])
    ranks = np.searchsorted(np.unique(levels), levels)
    step = min(LEVEL, MOST_LEVELS ** (1 / max(int(ranks.max(initial=0)), 1)))
    each = np.where(usable, lanes.price / lanes.per_node, 0.0)  # the dearest: limits may leave only that
    missing = 3.0 * max(float(each.max(initial=0.0)), 1.0)
    return base * step**ranks, missing


def _allowed(lanes: Lanes, options: dict[str, tuple[Option, ...]]) -> Ints:
    """[lane, option] nodes that can be of use, none of options that a problem has lost."""
    most = lanes.most.copy()
    for lane, mine in enumerate(lanes.options):
        problem = lanes.problems[lanes.pool[lane]]
        left = options[problem.key]
        if left is problem.options:
            continue
        kept = {id(o) for o in left}
        for k, option in enumerate(mine):
            if id(option) not in kept:
                most[lane, k] = 0
    return most


def _read(part: Decomposition, chosen: Ints) -> dict[str, PoolSolution]:
    """Each pool's chosen pattern, with as few replicas on its nodes as serve as much."""
    lanes, columns = part.lanes, part.columns
    lane, nodes = columns.lane[chosen], columns.nodes[chosen].astype(np.int64)
    replicas, _ = most_replicas_on(lanes, lane, nodes)
    replicas = _fewest(lanes, lane, nodes, replicas, columns.unserved[chosen])
    pools = {}
    for row, column in enumerate(chosen.tolist()):
        problem = lanes.problems[lanes.pool[lane[row]]]
        options = lanes.options[lane[row]]
        assignments = tuple(
            Assignment(options[k], int(replicas[row, k]), int(nodes[row, k] * lanes.span[lane[row], k]))
            for k in np.flatnonzero(nodes[row])
        )
        unserved = float(columns.unserved[column])
        pools[problem.key] = PoolSolution(
            assignments,
            unserved if unserved > TOLERANCE else 0.0,
            float(columns.cost[column]),
            float(columns.missing[column]),
        )
    return pools


def _fewest(lanes: Lanes, lane: Ints, nodes: Ints, replicas: Ints, unserved: Floats) -> Ints:
    """Replicas less those that a node holds beyond need."""
    replicas = replicas.copy()
    open_ = np.flatnonzero(((replicas > nodes) & (lanes.per_node[lane] > 1)).any(1))
    for row in open_.tolist():
        one = lane[row : row + 1]
        for k in np.flatnonzero(replicas[row] > nodes[row]):
            floor = (nodes[row, k] - 1) * lanes.per_node[lane[row], k] + 1
            while replicas[row, k] > floor:
                fewer = replicas[row : row + 1].copy()
                fewer[0, k] -= 1
                enough = unserved_by(lanes, one, fewer)[0] <= unserved[row] + TOLERANCE / 2
                if not enough or fewer.sum() < min(lanes.least[lane[row]], replicas[row].sum()):
                    break
                replicas[row] = fewer[0]
    return replicas
