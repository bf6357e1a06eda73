"""Which patterns of whole pools are known, and what do they cost at which prices of shared nodes?

The prices of shortage, and what is held, are those of the stage that is being solved (`shedding`).
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from berth_operator.planner.lanes import Flags, Floats, Ints, Lanes, served_by
from berth_operator.planner.master import Columns, Master, paid
from berth_operator.planner.patterns import Prices, counted
from berth_operator.planner.pricing import LEAST

UNITS: Final = 120
"""Of demand in pricing, at first."""
AROUND: Final = 1.1
"""Times the best known pattern that a likely one may cost."""
SHORT: Final = 1e-5
"""Shares of demand that count as a shortage."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One of several solves of the same pools, of which each keeps what those before it came to (`shedding`)."""

    dollars: float = 1.0
    """What a USD/h of nodes counts."""
    least: float = LEAST
    """What an unserved share, however small, weighs as much as."""
    held: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    """[row, pool] 1 where its unserved share counts in a row of its own."""
    most: Floats = field(default_factory=lambda: np.zeros(0))
    """[row], and if there is one more, of all missing replicas."""
    worth: float | None = None
    """Of all, that tolerances are parts of; None: the dollars of all."""
    start: Ints | None = None
    """[pool] columns of a choice within all rows."""
    rank: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """[pool] 0 for those whose shortage counts first."""
    settled: Flags = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    """[pool] who keeps its column of `start`; none of them: nobody."""


WHOLE: Final = Stage()
"""The only one."""


class Stock:
    """Patterns of some lanes, and what they cost and take in one stage."""

    def __init__(self, lanes: Lanes, pools: int, unserved: Floats, missing: float, stage: Stage = WHOLE) -> None:
        self.lanes, self.pools, self.stage = lanes, pools, stage
        self.unserved, self.missing = unserved, missing
        """[lane] USD/h for leaving all unserved; USD/h for a replica missing."""
        self.caps = np.append(lanes.caps, stage.most)
        """[row], then what is held."""
        weighed = unserved + (stage.held.sum(0)[lanes.pool] if len(stage.held) else 0.0)
        self.active = np.flatnonzero((weighed > 0) | (stage.dollars == 1.0))
        """Lanes that have a say: the others are best given nothing."""
        self.columns = Columns(lanes)
        self._add_nothing()
        self._add_floors()

    def _add_nothing(self) -> None:
        """The pattern that serves nothing, which always fits."""
        _, first = np.unique(self.lanes.pool, return_index=True)
        nodes = np.zeros((len(first), self.lanes.share.shape[1]), dtype=np.int64)
        self.add(first, nodes)

    def _add_floors(self) -> None:
        """The cheapest patterns of minReplicas, for pools that nothing can serve."""
        lanes = self.lanes
        nodes = -(-lanes.least[:, None] // lanes.per_node)
        cost = np.where((nodes > 0) & (nodes <= lanes.most), nodes * lanes.price, np.inf)
        best = np.argmin(cost, 1)
        lane = np.flatnonzero(np.isfinite(cost.min(1)))
        pattern = np.zeros((len(lane), lanes.share.shape[1]), dtype=np.int64)
        pattern[np.arange(len(lane)), best[lane]] = nodes[lane, best[lane]]
        self.add(lane, pattern)

    def add(self, lane: Ints, nodes: Ints) -> Ints:
        """Add patterns, those that keep their pool's own bounds."""
        within = (nodes <= self.lanes.most[lane]).all(1)
        lane, nodes = lane[within], nodes[within]
        served = served_by(self.lanes, lane, nodes)
        ok = served.allowed
        cost = (nodes * self.lanes.price[lane]).sum(1)
        return self.columns.add(lane[ok], nodes[ok], cost[ok], served.unserved[ok], served.missing[ok])

    def find(self, lane: Ints, nodes: Ints) -> Ints:
        """[pattern] the columns that these are, added where they are new; all of them keep their pool's rules."""
        self.add(lane, nodes)
        return self.columns.find(lane, nodes)

    def feed(self, master: Master) -> bool:
        """Give the master what is new; whether anything is."""
        new = slice(master.columns, self.columns.count)
        if self.columns.count == master.columns:
            return False
        master.add(self.columns.pool[new], self.costs()[new], self.use()[new])
        return True

    def costs(self) -> Floats:
        """[column] shortage priced in."""
        c = self.columns
        short = counted(c.unserved, self.stage.least) * self.unserved[c.lane] + c.missing * self.missing
        return np.asarray(self.stage.dollars * c.cost + short)

    def use(self) -> Ints | Floats:
        """[column, row] units of nodes, then what it takes of what is held."""
        c, stage = self.columns, self.stage
        if not len(stage.most):
            return np.asarray(c.use)
        held = np.vstack([stage.held[:, c.pool] * c.unserved, c.missing])[: len(stage.most)]
        return np.hstack([c.use, held.T])

    def reduced(self, duals: Floats) -> Floats:
        """[column] costs with what it uses at `duals`."""
        return self.costs() + paid(self.use(), duals)

    def ceilings(self, duals: Floats) -> Floats:
        """[pool] the cheapest known pattern at `duals`."""
        best = np.full(self.pools, np.inf)
        np.minimum.at(best, self.columns.pool, self.reduced(duals))
        return best

    def prices(self, duals: Floats) -> Prices:
        """Node prices with the duals of the rows they take."""
        rows, stage = len(self.lanes.rows), self.stage
        shared = np.append(duals[:rows], 0.0)[self.lanes.row] * self.lanes.weight
        held, missing = np.split(duals[rows:], [len(stage.held)])
        unserved = self.unserved + (held @ stage.held)[self.lanes.pool] if len(held) else self.unserved
        node = stage.dollars * self.lanes.price + shared
        return Prices(node, unserved, self.missing + float(missing.sum()), stage.least)

    def short(self, weight: Floats) -> bool:
        """Whether nodes are too few: columns of this weight in the master serve less than pools could by themselves."""
        least = np.full(self.pools, np.inf)
        np.minimum.at(least, self.columns.pool, self.columns.unserved)
        return float(weight @ self.columns.unserved - least.sum()) > SHORT

    def worth(self) -> float:
        """What tolerances are parts of: USD/h of the pools that can be served in full, roughly, without shortage and
        duals."""
        if self.stage.worth is not None:
            return self.stage.worth
        best = self.columns.cheapest_serving(self.pools)
        return float(best[np.isfinite(best)].sum())
