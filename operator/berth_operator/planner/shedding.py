"""Who goes short when nodes are too few for a large fleet?  The least important, and as little as can be.

A weighted sum of shortage and dollars (`fleet.penalties`) is not lexicographic: enough pools of little importance
outweigh a share of an important one, and dollars some shortage.  So where a decomposed plan leaves demand unserved, it
is bettered stage by stage, over the same patterns and more of them:

    for each priority, the highest first:  least sum of unserved shares, those of the stages before being held
                                           (of equals, fewer missing replicas, then the cheaper)
    then:                                  least cost, all of them and the missing replicas being held

A stage is a decomposition like any other, with prices of its own.  What is held is a row of its master: sum of the
shares that a stage's patterns leave unserved <= what it came to.  Its dual is a price of unserved demand, so that
pricing is what it always is.  Each stage has a bound of its own, by Lagrange.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from berth_operator.planner.decomposition import Decomposition
from berth_operator.planner.effort import Effort
from berth_operator.planner.lanes import Flags, Floats, Ints, Lanes
from berth_operator.planner.reseating import FEW_MOVES, TRIED_MOVES, reseated
from berth_operator.planner.solver import TOLERANCE
from berth_operator.planner.stock import Stage
from berth_operator.planner.types import Shortage

MOST_POOLS: Final = 300
"""Of a fleet whose shortage is bettered: it takes about as long again as the plan itself."""
SHARE: Final = 1e4
"""What one pool's demand counts in the stages of shortage."""
DOLLARS: Final = 1e-5
"""What all dollars of a plan weigh beside it: the cheaper of equals."""
MISSING: Final = 1e-3
"""What all pools' minReplicas weigh, likewise."""
FEW: Final = 3.0
"""Pools' demands unserved of which tolerances are parts, where there are more."""
_HELD: Final = TOLERANCE / 2
_DIGITS: Final = 5


@dataclass(frozen=True, slots=True)
class Shed:
    """A plan with the least shortage, at the least cost for that."""

    chosen: Ints
    """[pool] column."""
    shortages: tuple[Shortage, ...]
    bound: float
    """USD/h that no plan with no more shortage costs less than, at `duals`."""
    duals: Floats
    """[row] USD/h that a node saves where no more and no less is served."""
    pool_bounds: Floats
    """[pool] its part of the bound."""
    prices: Floats
    """[priority, the highest first] USD/h that a pool's demand saves where it is unserved; then a missing replica."""
    search: Decomposition
    """Where the columns are."""
    stages: tuple[tuple[int, Decomposition], ...]
    """Of priorities with a shortage: which of `shortages` it is of, and what has proven it."""

    def bound_of(self, unserved: Floats, missing: float) -> float:
        """USD/h that no plan costs less than that leaves so much more [priority] unserved, and replicas missing."""
        return self.bound - float(self.prices @ np.maximum(np.append(unserved, missing), 0.0))

    def kept_with(self, most: Ints) -> bool:
        """Whether a plan with `most` [lane, option] nodes, fewer than this one had, is found that serves as much.

        Bounds may exclude it; else it is searched for from here.
        """
        for i, stage in self.stages:
            if _unserved(stage.bound_with(most)) > self.shortages[i].unserved + TOLERANCE:
                return False
        columns, part = self.search.columns, self.search.restricted(most)
        lane, nodes = columns.lane[self.chosen], columns.nodes[self.chosen].astype(np.int64)
        start = part.find(lane, np.where((nodes <= most[lane]).all(1)[:, None], nodes, 0))
        nobody = np.zeros(part.pools, dtype=np.bool_)
        found = less_shortage(part, start, self.search.duals, nobody, moves=TRIED_MOVES)
        return _lacking(part, found) <= _lacking(self.search, self.chosen)


def _unserved(bound: float) -> float:
    """What demands at least are unserved, by a stage's bound."""
    return max(bound / SHARE - DOLLARS - MISSING, 0.0)


def _lacking(search: Decomposition, chosen: Ints) -> list[float]:
    """Unserved shares of each priority, the highest first, then missing replicas; rounded, so that noise decides
    nothing."""
    rank, columns = _ranks(search.lanes)[2], search.columns
    unserved = np.bincount(rank, columns.unserved[chosen]).round(_DIGITS)
    return [*unserved.tolist(), round(float(columns.missing[chosen].sum()), _DIGITS)]


def least_shortage(search: Decomposition, chosen: Ints) -> Shed:
    """Better [pool] `chosen` columns of `search`, stage by stage; more columns are added to it."""
    lanes, columns = search.lanes, search.columns
    priorities, order, rank = _ranks(lanes)
    held, most = np.zeros((0, search.pools)), np.zeros(0)
    bounds: list[float] = []
    stages: list[tuple[int, Decomposition]] = []
    dollars = SHARE * DOLLARS / max(float(columns.cost[chosen].sum()), 1.0)
    floors = max(sum(p.effective.min_replicas for p in lanes.problems), 1)
    for priority in order:
        mine = (priorities == priority).astype(np.float64)
        short, bound = float(columns.unserved[chosen] @ mine), 0.0
        if short > TOLERANCE:
            stage = Stage(dollars, 0.0, held, most, SHARE * min(short, FEW), chosen, rank)
            part = search.staged(SHARE * mine[lanes.pool], SHARE * MISSING / floors, stage)
            found = part.run(Effort.PROVE)
            chosen, bound = found.chosen, found.bound
            stages.append((len(bounds), part))
        bounds.append(_unserved(bound))
        held, most = np.vstack([held, mine]), np.append(most, float(columns.unserved[chosen] @ mine) + _HELD)
    nothing = np.zeros(lanes.count)
    missing = float(columns.missing[chosen].sum())
    stage = Stage(1.0, 0.0, held, np.append(most, missing + _HELD), None, chosen, rank)
    last = search.staged(nothing, 0.0, stage)
    found = last.run(Effort.PROVE)
    chosen = found.chosen
    left = held @ columns.unserved[chosen]
    shortages = tuple(Shortage(int(p), float(u), min(b, float(u))) for p, u, b in zip(order, left, bounds, strict=True))
    duals, prices = np.split(found.duals, [len(lanes.rows)])
    return Shed(chosen, shortages, found.bound, duals, last.bounds, prices, search, tuple(stages))


def less_shortage(
    search: Decomposition, chosen: Ints, duals: Floats, settled: Flags, *, upper: bool = False, moves: int = FEW_MOVES
) -> Ints:
    """[pool] columns of `search` that leave no more unserved than `chosen`, at its `duals`; without stages.

    `settled` [pool]: those that keep what is chosen for them.  `upper`: only until none goes short but of the lowest
    priority.  `moves`: for each pool.
    """
    rank = _ranks(search.lanes)[2]
    enough = int(rank.max()) if upper else 0
    if upper and not enough:
        return chosen
    stage = Stage(least=0.0, start=chosen, rank=rank, settled=settled)
    part = search.staged(search.unserved, search.missing, stage)
    return reseated(part, chosen, duals, moves, enough)


def _ranks(lanes: Lanes) -> tuple[Ints, Ints, Ints]:
    """([pool] priority, all priorities from the highest, [pool] which of these)."""
    priorities = np.array([p.effective.priority for p in lanes.problems])
    order = np.unique(priorities)[::-1]
    return priorities, order, np.searchsorted(-order, -priorities)
