"""Who goes short when nodes are too few for a large fleet?  The least important, and as little as can be.

A weighted sum of shortage and dollars (`fleet.penalties`) is not lexicographic: enough pools of little importance
outweigh a share of an important one, and dollars some shortage.  So where a decomposed plan leaves demand unserved, it
is bettered stage by stage, over the same patterns and more of them:

    for each priority, the highest first:  least sum of unserved shares, those of the stages before being held
    then:                                  least cost (and missing replicas), all of them being held

What is held is a row of the master: sum of the shares that a stage's patterns leave unserved <= what it came to.  Its
dual is a price of unserved demand, so that pricing is what it always is.  Each stage has a bound of its own, by
Lagrange, and ends early where its plan is no worse.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from berth_operator.planner.decomposition import UNITS, Decomposition
from berth_operator.planner.exact import exact_pattern
from berth_operator.planner.lanes import Flags, Floats, Ints
from berth_operator.planner.master import Master, divided, whole_choice
from berth_operator.planner.patterns import Prices, cheapest
from berth_operator.planner.solver import TOLERANCE
from berth_operator.planner.types import Shortage

MOST_POOLS: Final = 150
"""Of a fleet whose shortage is bettered: it takes about twice as long again as the plan itself."""
ROUNDS: Final = 3
"""Pricings of a stage."""
ANSWERS: Final = 2
"""Times that pools answer what the others leave, and patterns are chosen again."""
ANSWER_UNITS: Final = 120
DOLLARS: Final = 1e-5
"""What all dollars of a plan weigh beside one pool's demand in the stages of shortage: the cheaper of equals."""
MISSING: Final = 3.0
"""Times the dearest node's price that a missing replica costs."""
WIDENED: Final = (0.0, 0.5, 3.0)
"""Times a row's dual at which patterns are looked for beside those at the duals."""
EXACT_LANES: Final = 8
"""Lanes that the flat program prices, each time."""
LOOSE: Final = 1e-5
"""Of the stage's objective, that a lane's gap is at least for it."""
MOST_ROWS: Final = 8
"""Rows of which that is done, those of the highest duals."""
MOST_COLUMNS: Final = 500
"""Of a whole choice."""
WORK: Final = 30_000
"""Branch-and-bound nodes x binaries of a whole choice."""
CLOSE: Final = 1e-3
"""Relative distance to its bound at which the stage of cost ends."""
_HELD: Final = TOLERANCE / 2
_FIRST_MOST: Final = 10.0


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


@dataclass(frozen=True, slots=True)
class _Aim:
    """What a stage makes least: dollars x (cost + missing replicas) + weight x unserved."""

    dollars: float
    weight: Floats
    """[pool]"""
    held: Floats
    """[stage before, pool] 1 where its unserved share counts."""
    most: Floats
    """[stage before]"""


def least_shortage(search: Decomposition, chosen: Ints) -> Shed:
    """Better [pool] `chosen` columns of `search`, stage by stage; more columns are added to it."""
    priorities = np.array([p.effective.priority for p in search.lanes.problems])
    held, most, bounds = np.zeros((0, search.pools)), np.zeros(0), []
    dollars = DOLLARS / max(float(search.columns.cost[chosen].sum()), 1.0)
    for priority in np.unique(priorities)[::-1]:
        mine = (priorities == priority).astype(np.float64)
        bound = 0.0
        if float(search.columns.unserved[chosen] @ mine) > TOLERANCE:
            stage = _Search(search, _Aim(dollars, mine, held, most), chosen)
            stage.run(TOLERANCE)
            chosen, bound = stage.chosen, stage.bound
        unserved = float(search.columns.unserved[chosen] @ mine)
        bounds.append(max(bound - DOLLARS, 0.0))
        held, most = np.vstack([held, mine]), np.append(most, unserved + _HELD)
    last = _Search(search, _Aim(1.0, np.zeros(search.pools), held, most), chosen)
    last.run(CLOSE * float(search.columns.cost[chosen].sum()))
    missing = float(search.columns.missing[last.chosen].sum()) * last.missing
    duals = last.duals[: len(search.lanes.rows)]
    left = held @ search.columns.unserved[last.chosen]
    shortages = tuple(
        Shortage(int(p), float(u), min(b, float(u)))
        for p, u, b in zip(np.unique(priorities)[::-1], left, bounds, strict=True)
    )
    return Shed(last.chosen, shortages, last.bound - missing, duals, last.pool_bounds)


class _Search:
    """One stage: patterns are priced and chosen, from a choice that is known."""

    def __init__(self, search: Decomposition, aim: _Aim, chosen: Ints) -> None:
        self.search, self.aim, self.chosen = search, aim, chosen
        self.lanes, self.columns = search.lanes, search.columns
        self.rows = len(self.lanes.rows)
        self.caps = np.concatenate([self.lanes.caps, aim.most])
        dearest = float(np.where(self.lanes.most > 0, self.lanes.price, 0.0).max(initial=0.0))
        self.missing = max(search.missing, MISSING * dearest)
        """USD/h of a replica that is missing to minReplicas: no node is too dear for one."""
        self.bound, self.duals = -np.inf, np.zeros(len(self.caps))
        self.pool_bounds, self.open = np.zeros(search.pools), np.zeros(search.pools, dtype=np.bool_)

    def costs(self) -> Floats:
        """[column] the stage's objective."""
        c, aim = self.columns, self.aim
        dollars = aim.dollars * (c.cost + c.missing * self.missing)
        return np.asarray(dollars + aim.weight[c.pool] * c.unserved)

    def use(self) -> Floats:
        """[column, row] nodes, then the unserved shares that are held."""
        c = self.columns
        return np.hstack([c.use, (self.aim.held[:, c.pool] * c.unserved).T])

    def cost(self) -> float:
        """Of the present choice."""
        return float(self.costs()[self.chosen].sum())

    def run(self, close: float) -> None:
        """Better the choice and its bound, until they are within `close`."""
        self._generate(close)
        if self.cost() > self.bound + close:
            self._widen()
        for turn in range(ANSWERS + 1):
            self._choose()
            if self.cost() <= self.bound + close or turn == ANSWERS or not self._answer():
                break

    def _generate(self, close: float) -> None:
        """Price and add patterns."""
        first = np.concatenate([np.full(self.rows, _FIRST_MOST), np.full(len(self.aim.most), _FIRST_MOST)])
        scale = max(float(self.costs()[self.chosen].max(initial=0.0)), 1e-3)
        master, known = Master(self.search.pools, self.caps, first * scale), 0
        for _ in range(ROUNDS):
            new = slice(known, self.columns.count)
            master.add(self.columns.pool[new], self.costs()[new], self.use()[new])
            known = self.columns.count
            objective, duals, weight, bought = master.solve()
            while bought > TOLERANCE and master.most.max() < 1e9 * scale:
                master.raise_most(10.0)
                objective, duals, weight, bought = master.solve()
            self.open = divided(self.columns.pool, weight, self.search.pools)[1]
            self._price(duals)
            if self.columns.count == known or self.bound >= min(objective, self.cost()) - close:
                break

    def _widen(self) -> None:
        """Add what pools that are short, or that the master divides, would take were one row's nodes free, or far
        dearer: whole choices need such patterns."""
        which = self._torn(self._active())
        rows = np.argsort(-self.duals[: self.rows], kind="stable")[:MOST_ROWS]
        for row in rows[self.duals[rows] > 0]:
            for factor in WIDENED:
                at = self.duals.copy()
                at[row] *= factor
                ceiling = np.full(self.search.pools, np.inf)
                np.minimum.at(ceiling, self.columns.pool, self.costs() + self.use() @ at)
                found = cheapest(self.lanes, which, self._prices(at), ceiling[self.lanes.pool[which]], UNITS, 1e-3, 1)
                self.search.add(found.lane, found.nodes)

    def _torn(self, which: Ints) -> Ints:
        """Of lanes, those of pools that are short or that the master divides."""
        short = self.columns.unserved[self.chosen] > TOLERANCE
        torn: Ints = which[~self.lanes.odd[which] & (short | self.open)[self.lanes.pool[which]]]
        return torn

    def _active(self) -> Ints:
        """Lanes whose patterns the stage weighs: the others are best given nothing."""
        if self.aim.dollars == 1.0:
            return np.arange(self.lanes.count)
        matters: Flags = (self.aim.weight > 0) | (self.aim.held > 0).any(0)
        return np.flatnonzero(matters[self.lanes.pool])

    def _prices(self, duals: Floats) -> Prices:
        nodes = np.append(duals[: self.rows], 0.0)[self.lanes.row] * self.lanes.weight
        unserved = self.aim.weight + duals[self.rows :] @ self.aim.held
        missing = self.aim.dollars * self.missing
        return Prices(self.aim.dollars * self.lanes.price + nodes, unserved[self.lanes.pool], missing, least=0.0)

    def _price(self, duals: Floats) -> None:
        """Add the cheapest patterns at `duals`, and take Lagrange's bound where it is better."""
        ceiling = np.full(self.search.pools, np.inf)
        np.minimum.at(ceiling, self.columns.pool, self.costs() + self.use() @ duals)
        which = self._active()
        odd = self.lanes.odd[which]
        plain, least = which[~odd], ceiling.copy()
        found = cheapest(self.lanes, plain, self._prices(duals), ceiling[self.lanes.pool[plain]], UNITS, 1e-4, 2)
        self.search.add(found.lane, found.nodes)
        lane_bound = np.full(self.lanes.count, np.inf)
        lane_bound[found.lane] = found.bound
        self._tighten(duals, ceiling, lane_bound)
        np.minimum.at(least, self.lanes.pool[plain], lane_bound[plain])
        least[self.lanes.pool[which[odd]]] = 0.0  # their traffic has a cost that this does not know
        least[np.setdiff1d(np.arange(self.search.pools), self.lanes.pool[which])] = 0.0
        bound = float(least.sum() - duals @ self.caps)
        if bound > self.bound:
            self.bound, self.duals, self.pool_bounds = bound, duals, least

    def _tighten(self, duals: Floats, ceiling: Floats, bound: Floats) -> None:
        """Price the loosest lanes by the flat program of their pool: quantised pricing knows shares of all the demand,
        and a pool that is short may have its shares of less."""
        gap = np.where(np.isfinite(bound), ceiling[self.lanes.pool] - bound, 0.0)
        prices = self._prices(duals)
        for lane in np.argsort(-gap, kind="stable")[:EXACT_LANES].tolist():
            if gap[lane] > LOOSE * max(1.0, float(ceiling.sum())) and (
                priced := exact_pattern(self.lanes, lane, prices, float(ceiling[self.lanes.pool[lane]]))
            ):
                self.search.add(np.array([lane]), priced[0][None, :])
                bound[lane] = max(bound[lane], priced[1])

    def _choose(self) -> None:
        """One pattern a pool: of those that can be part of a better choice by their reduced costs."""
        costs, use, pool = self.costs(), self.use(), self.columns.pool
        reduced = costs + use @ self.duals
        best = np.full(self.search.pools, np.inf)
        np.minimum.at(best, pool, reduced)
        excess = reduced - best[pool]
        wanted = excess <= self.cost() - self.bound + 1e-9
        order = np.argsort(np.where(wanted, excess, np.inf), kind="stable")
        wanted[order[MOST_COLUMNS:]] = False
        wanted[self.chosen] = True
        candidates = np.flatnonzero(wanted)
        several = np.bincount(pool[candidates], minlength=self.search.pools) > 1
        open_ = candidates[several[pool[candidates]]]
        if not len(open_):
            return
        start = np.searchsorted(open_, self.chosen[several])
        left = self.caps - use[self.chosen[~several]].sum(0)
        picked = whole_choice(pool[open_], costs[open_], use[open_], left, start, 1e-6, WORK)
        if picked is None:
            return
        other = self.chosen.copy()
        other[pool[open_[picked]]] = open_[picked]
        fits = (use[other].sum(0) <= self.caps + TOLERANCE / 10).all()
        if fits and costs[other].sum() < self.cost() - 1e-12:
            self.chosen = other

    def _answer(self) -> bool:
        """Add each pool's best patterns within the nodes that the others leave; whether any is new."""
        before, lanes = self.columns.count, self.lanes
        which = self._active()
        use = np.asarray(self.columns.use[self.chosen], dtype=np.float64)
        use[np.setdiff1d(np.arange(self.search.pools), lanes.pool[which])] = 0.0  # the less important give way
        left = np.append(lanes.caps - use.sum(0), 0.0)
        which = self._torn(which)
        room = (left[None, :] + np.hstack([use, np.zeros((len(use), 1))]))[lanes.pool[which]]
        limited = np.take_along_axis(room, lanes.row[which], 1) // lanes.weight[which]
        most = lanes.most.copy()
        free = lanes.row[which] == len(lanes.rows)
        most[which] = np.where(free, most[which], np.minimum(most[which], limited)).astype(np.int64)
        within = replace(lanes, most=most)
        for part in (0.0, 0.5):
            at = np.concatenate([part * self.duals[: self.rows], self.duals[self.rows :]])
            prices = self._prices(at)
            paid = (self.costs() + self.use() @ at)[self.chosen]
            found = cheapest(within, which, prices, paid[lanes.pool[which]], ANSWER_UNITS, 1e-4, 1)
            self.search.add(found.lane, found.nodes)
            short = self.columns.unserved[self.chosen][lanes.pool[which]] * prices.unserved[which]
            for i in np.argsort(-short, kind="stable")[:EXACT_LANES].tolist():
                lane = int(which[i])
                if short[i] > TOLERANCE:
                    limits = {r: int(n // u) for r, n, u in zip(lanes.rows, room[i], lanes.unit, strict=False)}
                    own = replace(lanes, limits={**lanes.limits, **limits})
                    if priced := exact_pattern(own, lane, prices, float(paid[lanes.pool[lane]])):
                        self.search.add(np.array([lane]), priced[0][None, :])
        return self.columns.count > before
