"""How is a set of pools solved: by the flat program, or decomposed?  Small ones flat, to proven optimality; others by
column generation, which keeps its columns and duals so that a second solve (a pool held to its hardware) starts warm.

Decomposed, the lexicographic order is one sum: a price for leaving a pool's demand unserved, far above what serving
costs and `LEVEL` times higher a priority, then one for a missing replica, then cost.
"""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from fractions import Fraction
from typing import Final

import numpy as np

from berth_operator.planner.candidates import Option
from berth_operator.planner.decomposition import WANTED, Decomposition, Outcome
from berth_operator.planner.effort import Effort
from berth_operator.planner.lanes import Floats, Ints, Lanes, lanes_of, most_replicas_on, unserved_by
from berth_operator.planner.pricing import LEAST
from berth_operator.planner.program import Limits, PoolProblem, node_cost
from berth_operator.planner.reseating import LAST_MOVES
from berth_operator.planner.rounding import Patterns, relieved
from berth_operator.planner.sharing import (
    NOTHING,
    Group,
    Standing,
    as_whole,
    consolidated,
    group_of,
    groups_of,
    in_parts,
    less,
)
from berth_operator.planner.shedding import MOST_POOLS, Shed, least_shortage, less_shortage
from berth_operator.planner.solution import Assignment, PoolSolution, Solution, nodes_used
from berth_operator.planner.solver import TOLERANCE, SolverError, solve
from berth_operator.planner.types import Shortage

FLAT: Final = 700
"""Options of all pools up to which the flat program is solved."""
LEVEL: Final = 30.0
"""Times that unserved demand weighs more a priority higher."""
MOST_LEVELS: Final = 1e4
FAR_ABOVE: Final = 20.0
"""Times the dearest pool's cost that unserved demand costs."""
MOST_REPACKS: Final = 3
"""Solves until what pools share keeps to the limits."""
WASTE: Final = 0.005
"""Of the cost of all, that nodes shared in vain cost: then they are not counted in parts."""
MOST_TOGETHER: Final = 6
"""Options of a pool where pools are solved together after all, flat, since they share nodes in vain."""
NODES_WORTH: Final = 4.0
"""Dearest nodes that the least unserved share costs at least."""


class FleetSolver:
    """Solves pools that share limits, again and again with some options taken away."""

    def __init__(
        self,
        problems: Sequence[PoolProblem],
        limits: Limits,
        shared: frozenset[Group] | None = None,
        standing: Standing = NOTHING,
    ) -> None:
        """`shared`: groups whose nodes a decomposition counts in parts; None: all that there are.

        `standing`: replicas of other pools, whose nodes `limits` count, too; small fleets may use the room beside them.
        """
        self.problems = sorted(problems, key=lambda p: p.key)
        open_ = groups_of(self.problems, standing) if not self.large else frozenset()
        self.standing = {group: of for group, of in standing.items() if group in open_}
        self.limits = less(limits, standing.keys() - self.standing.keys(), standing)
        self._shared = groups_of(self.problems) if shared is None else shared
        self._first: Decomposition | None = None
        self._least: Shed | None = None
        """Of the last plan that was bettered stage by stage."""
        self._staged: list[tuple[Solution, Shed]] = []
        """All that were, and those that came of them."""

    def solve(
        self, problems: Sequence[PoolProblem], effort: Effort = Effort.PROVE, *, settled: Set[str] | None = None
    ) -> Solution:
        """The plan of `problems`: those of the beginning, some of them with fewer options.

        `effort` is of a decomposition; small fleets are always solved to the end.  `settled`: pools that keep what they
        have while its shortage is bettered; None: it is only where stages do that.
        """
        if not self.large:
            return solve(problems, self.limits, self.standing)
        return self.decomposed(problems, effort, settled=settled)

    def serves_as_much(self, problems: Sequence[PoolProblem]) -> bool:
        """Whether `problems`, which have lost options, seem to have a plan that leaves no more unserved than the last
        one that was bettered stage by stage; True where none was."""
        if self._first is None or self._least is None:
            return True
        return self._least.kept_with(_allowed(self._first.lanes, {p.key: p.options for p in problems}))

    @property
    def large(self) -> bool:
        """Whether fleets of this size are decomposed."""
        return sum(len(p.options) for p in self.problems) > FLAT

    def decomposed(
        self, problems: Sequence[PoolProblem], effort: Effort = Effort.PROVE, *, settled: Set[str] | None = None
    ) -> Solution:
        """The same by column generation, whatever the size."""
        if not any(p.options for p in self.problems):
            return solve(problems, self.limits)
        try:
            pools, short, part, outcome, least = self._search(problems, effort, settled=settled, staged=True)
        except SolverError as error:
            return Solution({}, 0.0, 0.0, {p.key: str(error) for p in problems})
        if least:
            return self._of_stages(pools, part, outcome, least)
        duals = {r: float(v * u) for r, v, u in zip(part.lanes.rows, outcome.duals, part.lanes.unit, strict=True)}
        bounds = {p.key: float(b) for p, b in zip(part.lanes.problems, part.bounds, strict=True)}
        pools = self._with_nothing(pools)
        scarce = part.pools <= MOST_POOLS and _scarce(part, outcome)
        # The distance to the bound is told of dollars alone: beside the price of shortage it would look like nothing.
        return Solution(pools, sum(_costs(pools)), outcome.bound - short, {}, duals, bounds, (), scarce)

    def _with_nothing(self, pools: Mapping[str, PoolSolution]) -> dict[str, PoolSolution]:
        """Beside those that were solved, those without options."""
        nothing = {p.key: PoolSolution((), 1.0, 0.0, float(p.effective.min_replicas)) for p in self.problems}
        return {**pools, **{p.key: nothing[p.key] for p in self.problems if not p.options}}

    def _of_stages(
        self, pools: Mapping[str, PoolSolution], part: Decomposition, outcome: Outcome, least: Shed
    ) -> Solution:
        """A plan that was bettered stage by stage, or that came of one, whose bounds hold for it."""
        shortages = _shortages(pools, part, least)
        more = [mine.unserved - its.unserved for mine, its in zip(shortages, least.shortages, strict=True)]
        missing = sum(pools[p.key].missing_replicas for p in part.lanes.problems)
        bound = least.bound_of(np.array(more), missing - float(least.search.columns.missing[least.chosen].sum()))
        duals = {r: float(v * u) for r, v, u in zip(part.lanes.rows, least.duals, part.lanes.unit, strict=True)}
        bounds = {p.key: float(b) for p, b in zip(part.lanes.problems, least.pool_bounds, strict=True)}
        pools = self._with_nothing(pools)
        found = Solution(pools, sum(_costs(pools)), bound, {}, duals, bounds, shortages, _scarce(part, outcome))
        self._staged.append((found, least))
        return found

    def amended(
        self, problems: Sequence[PoolProblem], solution: Solution, limits: Limits, standing: Standing = NOTHING
    ) -> Solution | None:
        """`solution`, which this has made, beside fewer nodes: pools give way, and those that compete for what is left
        are taken out and put back.

        `problems`: as of `solve`, with what each pool may have now.  Its bounds are those of `solution`, which fewer
        nodes cannot better.  None where it was not bettered stage by stage, or where not the least important pools
        alone would serve less.
        """
        least = next((shed for made, shed in self._staged if made is solution), None)
        if least is None:
            return None
        fewer = FleetSolver(self.problems, limits, self._shared, standing)
        known = least.search
        lanes = lanes_of(known.lanes.problems, fewer.limits)
        if lanes.rows != known.lanes.rows:
            return None
        allowed = _allowed(lanes, {p.key: p.options for p in problems})
        part = known.within(replace(lanes, most=np.minimum(allowed, known.lanes.most)))
        outcome = _beside(part, _columns_of(part, solution.pools), least.duals)
        found = fewer._packed(part, outcome, frozenset())
        if found is None:
            return None
        amended = self._of_stages(found[0], part, outcome, least)
        *before, _ = [round(s.unserved, 5) for s in solution.shortages]
        *after, _ = [round(s.unserved, 5) for s in amended.shortages]
        return amended if after <= before else None

    def _search(
        self, problems: Sequence[PoolProblem], effort: Effort, *, settled: Set[str] | None = None, staged: bool = False
    ) -> tuple[dict[str, PoolSolution], float, Decomposition, Outcome, Shed | None]:
        """Pools, the price of what they are short of, and where the bounds come from.  Raises SolverError.

        Where parts of nodes do not pack into the nodes there are, or leave much of them to nobody, other plans are
        looked for, with fewer nodes in parts; the bound stays that of parts, which is below them all.
        """
        if self._first is None:
            served = [in_parts(p, self._shared) for p in self.problems if p.options]
            lanes = lanes_of(served, self.limits)
            self._first = Decomposition(lanes, len(served), *penalties(lanes))
        options = {p.key: p.options for p in problems}
        part = self._first.restricted(_allowed(self._first.lanes, options))
        staged, least = staged and effort is not Effort.COMPARE and part.pools <= MOST_POOLS, None
        outcome = part.run(effort, shed=staged)
        staged = staged and (outcome.short or effort is Effort.PROVE)
        settled = frozenset() if staged else settled
        if staged and (_scarce(part, outcome) or _unproven(part, outcome)):
            outcome = _shortened(part, outcome, settled, upper=True)  # spares a stage of who need not go short at all
            least = self._least = least_shortage(part, outcome.chosen)
            outcome = _chosen(part, outcome, least.chosen)
        else:
            outcome = _shortened(part, outcome, settled)
        self._first.learn(part)
        found = self._packed(part, outcome, settled)
        less = Effort.SEARCH if effort is Effort.PROVE else effort
        pools, short = found or FleetSolver(self.problems, self.limits, frozenset())._search(problems, less)[:2]
        weighed = effort is not Effort.COMPARE and least is None  # who goes short is not a matter of weights
        wasted = _wasted(problems, pools, self._shared) if weighed else frozenset()
        if wasted:
            others = FleetSolver(self.problems, self.limits, self._shared - wasted)._search(problems, less)
            if sum(_costs(others[0])) + others[1] < sum(_costs(pools)) + short:
                pools, short = others[:2]
            pools = self._together(problems, pools)
        return pools, short, part, outcome, least

    def _together(self, problems: Sequence[PoolProblem], pools: dict[str, PoolSolution]) -> dict[str, PoolSolution]:
        """Pools solved together by the flat program, each with what it has and the few options that would cost least,
        where they are few enough and nobody is short: there, who shares with whom is decided at once."""
        open_ = [p for p in problems if p.options]
        each = min(MOST_TOGETHER, FLAT // max(len(open_), 1))
        if each < 2 or any(pools[p.key].unserved or pools[p.key].missing_replicas for p in open_):
            return pools
        few = [replace(p, options=_likely(p, pools[p.key], each)) for p in open_]
        found = solve(few, self.limits)
        short = any(pool.unserved or pool.missing_replicas for pool in found.pools.values())
        if found.failed or short or found.cost >= sum(_costs(pools)):
            return pools
        return dict(found.pools)

    def _packed(
        self, part: Decomposition, outcome: Outcome, settled: Set[str] | None
    ) -> tuple[dict[str, PoolSolution], float] | None:
        """Pools, and the price of what they are short of; solved again with as many nodes fewer as packing takes too
        many, and its shortage bettered as `solve` says.  None where it still does."""
        for _ in range(MOST_REPACKS):
            pools = consolidated(self.problems, _read(part, outcome.chosen))
            used = nodes_used(pools)
            over = np.array([max(0, used.get(r, 0) - self.limits[r]) for r in part.lanes.rows]) * part.lanes.unit
            if not over.any():
                return pools, outcome.cost - float(part.columns.cost[outcome.chosen].sum())
            part = part.restricted(part.lanes.most, np.maximum(part.lanes.caps - over, 0.0))
            outcome = _shortened(part, part.run(Effort.SEARCH), settled)
        return None


def _scarce(part: Decomposition, outcome: Outcome) -> bool:
    """Whether pools go short of nodes that others have, and not of their own budgets alone."""
    return part.short(np.bincount(outcome.chosen, minlength=part.columns.count).astype(np.float64))


def _unproven(part: Decomposition, outcome: Outcome) -> bool:
    """Whether what is unserved leaves more between the plan's dollars and their bound than is wanted: the price of
    shortage is in the bound, too, and weighs more than dollars there."""
    short = float(part.columns.unserved[outcome.chosen].sum()) > TOLERANCE
    dollars = float(part.columns.cost[outcome.chosen].sum())
    return short and outcome.cost - outcome.bound > WANTED * dollars


def _columns_of(part: Decomposition, pools: Mapping[str, PoolSolution]) -> tuple[Ints, Ints]:
    """[pool] the lanes and nodes that a plan gives, none where they are more than a pool may have now."""
    lanes = part.lanes
    places = [{(o.resource, o.quantization): k for k, o in enumerate(options)} for options in lanes.options]
    lane: Ints = np.searchsorted(lanes.pool, np.arange(part.pools))  # its first one
    nodes = np.zeros((part.pools, lanes.share.shape[1]), dtype=np.int64)
    for row, problem in enumerate(lanes.problems):
        for a in pools[problem.key].assignments:
            while (a.option.resource, a.option.quantization) not in places[lane[row]]:
                lane[row] += 1
            at = places[lane[row]][a.option.resource, a.option.quantization]
            nodes[row, at] = -(-a.replicas // lanes.per_node[lane[row], at])
    nodes[(nodes > lanes.most[lane]).any(1)] = 0
    return lane, nodes


def _beside(part: Decomposition, start: tuple[Ints, Ints], duals: Floats) -> Outcome:
    """A choice within all rows that begins with [pool] lanes and nodes, bettered."""
    chosen = part.find(*start)
    patterns = Patterns(part.columns.pool, part.costs(), part.reduced(duals), part.columns.use, part.lanes.caps)
    chosen = relieved(patterns, chosen, duals)
    chosen = less_shortage(part, chosen, duals, np.zeros(part.pools, dtype=np.bool_), moves=LAST_MOVES)
    return Outcome(chosen, float(part.costs()[chosen].sum()), 0.0, duals, short=True)


def _chosen(part: Decomposition, outcome: Outcome, chosen: Ints) -> Outcome:
    return replace(outcome, chosen=chosen, cost=float(part.costs()[chosen].sum()))


def _shortened(part: Decomposition, outcome: Outcome, settled: Set[str] | None, *, upper: bool = False) -> Outcome:
    """With a choice that leaves less unserved, if there is anything, in which `settled` pools keep what they have.
    `upper`: as of `less_shortage`."""
    if settled is None or not _scarce(part, outcome):
        return outcome
    kept = np.array([p.key in settled for p in part.lanes.problems])
    return _chosen(part, outcome, less_shortage(part, outcome.chosen, outcome.duals, kept, upper=upper))


def _likely(problem: PoolProblem, solution: PoolSolution, most: int) -> tuple[Option, ...]:
    """What a pool has, and `most` options in all, those that serve its demand at least cost in parts of nodes."""
    taken = {(a.option.resource, a.option.quantization) for a in solution.assignments}

    def cost(option: Option) -> tuple[bool, float]:
        replicas = max(1, math.ceil(problem.demand / option.capacity.turns_per_second - 1e-9))
        parts = replicas / option.replicas_per_node if option.shareable else option.nodes_for(replicas)
        kept = (option.resource, option.quantization) in taken
        return not kept, parts * node_cost(option, problem.effective)

    ordered = sorted(problem.options, key=cost)[: max(most, len(taken))]
    return tuple(o for o in problem.options if any(o is one for one in ordered))


def _costs(pools: Mapping[str, PoolSolution]) -> list[float]:
    return [pool.objective for pool in pools.values()]


def _shortages(pools: Mapping[str, PoolSolution], part: Decomposition, shed: Shed) -> tuple[Shortage, ...]:
    """What pools of each priority go without, beside what they must."""
    unserved: dict[int, float] = {}
    for p in part.lanes.problems:
        unserved[p.effective.priority] = unserved.get(p.effective.priority, 0.0) + pools[p.key].unserved
    return tuple(replace(s, unserved=unserved[s.priority]) for s in shed.shortages)


def _wasted(
    problems: Sequence[PoolProblem], pools: Mapping[str, PoolSolution], shared: frozenset[Group]
) -> frozenset[Group]:
    """Groups whose whole nodes cost much more than the parts that are taken of them."""
    least = WASTE * sum(_costs(pools))
    effective = {p.key: p.effective for p in problems}
    lost: dict[Group, float] = {}
    for key, pool in pools.items():
        for a in pool.assignments:
            group = group_of(a.option, effective[key])
            part = a.paid_nodes - Fraction(a.replicas, a.option.replicas_per_node)
            lost[group] = lost.get(group, 0.0) + float(part) * node_cost(a.option, effective[key])
    return frozenset(g for g in shared if lost.get(g, 0.0) > least)


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
    each = np.where(usable, lanes.price / lanes.per_node, np.inf).min(1)
    missing = 4.0 * max(float(np.where(np.isfinite(each), each, 0.0).max(initial=0.0)), 1.0)
    return base * step**ranks, missing


def _allowed(lanes: Lanes, options: dict[str, tuple[Option, ...]]) -> Ints:
    """[lane, option] nodes that can be of use, none of options that a problem has lost."""
    most = lanes.most.copy()
    for lane, mine in enumerate(lanes.options):
        problem = lanes.problems[lanes.pool[lane]]
        left = options[problem.key]
        if len(left) == len(problem.options):
            continue
        kept = {(o.resource, o.quantization) for o in left}
        for k, option in enumerate(mine):
            if (option.resource, option.quantization) not in kept:
                most[lane, k] = 0
    return most


def _read(part: Decomposition, chosen: Ints) -> dict[str, PoolSolution]:
    """Each pool's chosen pattern, with as few replicas on its nodes as serve as much, and nodes shared with nobody."""
    lanes, columns = part.lanes, part.columns
    lane, nodes = columns.lane[chosen], columns.nodes[chosen].astype(np.int64)
    replicas = most_replicas_on(lanes, lane, nodes)
    replicas = _fewest(lanes, lane, nodes, replicas, columns.unserved[chosen])
    pools = {}
    for row, column in enumerate(chosen.tolist()):
        problem = lanes.problems[lanes.pool[lane[row]]]
        options = lanes.options[lane[row]]
        taken = np.flatnonzero(nodes[row]).tolist()
        assignments = tuple(_assigned(options[k], int(replicas[row, k])) for k in taken)
        parts = sum(
            (a.nodes - nodes[row, k] * a.option.nodes_per_replica / options[k].parts)
            * node_cost(a.option, problem.effective)
            for k, a in zip(taken, assignments, strict=True)
        )
        unserved = float(columns.unserved[column])
        pools[problem.key] = PoolSolution(
            assignments,
            unserved if unserved > TOLERANCE else 0.0,
            float(columns.cost[column]) + float(parts),
            float(columns.missing[column]),
        )
    return pools


def _assigned(option: Option, replicas: int) -> Assignment:
    whole = as_whole(option)
    return Assignment(whole, replicas, whole.nodes_for(replicas))


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
