"""Which whole patterns, one a pool, within all rows?  Where the linear master divides pools among several.

What a dive in the master comes to is mended (`rounding`).  Then the pools that are farthest from what they would have
at the duals answer the others: the best that each could do with what these leave becomes a pattern as well.
"""

from dataclasses import replace
from typing import Final

import numpy as np

from berth_operator.planner.effort import ANSWERS, Effort
from berth_operator.planner.lanes import Flags, Floats, Ints, Lanes
from berth_operator.planner.master import Master, divided, total_use, whole_choice
from berth_operator.planner.patterns import EXACT, cheapest
from berth_operator.planner.reseating import reseated
from berth_operator.planner.rounding import Patterns, exchange, make_room, relieved
from berth_operator.planner.stock import AROUND, UNITS, Stock

CLOSE: Final = 1.5e-3
"""Relative distance to the master at which a choice is good enough."""
STARTS: Final = (0.8, 1.0, 1.25)
"""Times the duals at which every pool's cheapest pattern is where a choice may start from."""
MOST_DIVES: Final = 12
"""Steps of a dive."""
AT_ONCE: Final = 4
"""One in so many divided pools is given its heaviest column in a step,"""
AGAIN: Final = (4, 8)
"""and in later dives, which price them as they go."""
WITHIN_ROWS: Final = 1e-7
"""By which a choice may take more of a row, of nodes or of shares."""
ANSWER_UNITS: Final = 120
ANSWERING: Final = 12
"""Undivided pools that answer, at least."""
WIDENED: Final = (0.5, 0.7, 0.85, 1.0, 1.2, 1.6, 2.2, 3.0, 6.0)
"""Times the duals at which pools that a repair may change are priced beforehand."""
FAR: Final = 0.03
"""Relative distance to the master from which choices are looked for by an integer program."""
WANTED: Final = {Effort.SEARCH: 0.02, Effort.PROVE: 0.006}
"""The same from which pools trade, and dive again."""
GAIN: Final = 1e-6
"""USD/h that a trade gains at least."""
TRADE_UNITS: Final = 480
"""Of demand in pricing of who makes room in a trade: the dearest pools, whose units are dollars."""
MOST_TRADES: Final = 3
"""Times that all wishes are tried."""
WISHES: Final = 4
"""Of a pool, that are tried."""
DEAREST: Final = 12
"""Pools that may make room."""
REPAIRED: Final = 100
"""Undivided pools that it may change, at least."""
NEAR: Final = 12
"""Columns of a pool that it may choose from."""


def whole(stock: Stock, master: Master, effort: Effort) -> Ints:
    """[pool] columns of `stock` within all rows, near what its `master` comes to; more are added to both."""
    if stock.stage.start is not None:
        return reseated(stock, stock.stage.start, master.solve()[1])
    near = _Near(stock, master)
    if not near.open.any():
        return near.heaviest
    if effort is Effort.PROVE:
        near.widen(near.farthest(near.heaviest, REPAIRED))
        stock.feed(master)
        near = _Near(stock, master)
    chosen = near.settled(near.dived(master))
    others = [] if effort is Effort.COMPARE else [near.cheapest(factor) for factor in STARTS]
    for other in [near.heaviest, *others]:
        if near.close(chosen):
            break
        chosen = min(chosen, near.settled(other), key=near.total)
    for turn in range(1 + ANSWERS[effort]):
        if near.close(chosen) or turn == ANSWERS[effort]:
            break
        if not near.answer(chosen, near.farthest(chosen)):
            break
        chosen = min(chosen, near.settled(chosen), key=near.total)
    return chosen if effort is Effort.COMPARE or near.short else near.mended(chosen, master, effort)


class _Near:
    """Choices near one solution of the master."""

    def __init__(self, stock: Stock, master: Master) -> None:
        self.stock = stock
        self.target, self.duals, weight, _ = master.solve()
        self.heaviest, self.open = divided(stock.columns.pool, weight, stock.pools)
        """[pool] its heaviest column, and whether that is not all of it."""
        self.short = stock.short(weight)

    def total(self, chosen: Ints) -> float:
        """Of a choice; infinite where it takes too much."""
        fits = (total_use(self.stock.use(), chosen) <= self.stock.caps + WITHIN_ROWS).all()
        return float(self.stock.costs()[chosen].sum()) if fits else np.inf

    def close(self, chosen: Ints) -> bool:
        """Whether a choice is good enough."""
        return self.total(chosen) <= self.target * (1 + CLOSE)

    def cheapest(self, factor: float) -> Ints:
        """[pool] the column that is cheapest at `factor` times the duals."""
        stock = self.stock
        order = np.lexsort((stock.reduced(factor * self.duals), stock.columns.pool))
        found: Ints = order[np.searchsorted(stock.columns.pool[order], np.arange(stock.pools))]
        return found

    def dived(self, master: Master, part: int = AT_ONCE, *, pricing: bool = False) -> Ints:
        """[pool] its heaviest column, after one in `part` divided pools has been given theirs, the dearest first, and
        the master was solved for the others, again and again; with `pricing` these are priced anew each time, within
        what is left to them."""
        stock, held = self.stock, np.zeros(0, dtype=np.int64)
        stock.feed(master)
        weight = master.solve()[2]
        for _ in range(MOST_DIVES):
            heaviest, open_ = divided(stock.columns.pool, weight, stock.pools)
            heaviest = heaviest[open_]
            if not len(heaviest):
                break
            order = np.argsort(-(weight * stock.costs())[heaviest], kind="stable")
            more = heaviest[order[: -(-len(heaviest) // part)]]
            master.hold(more)
            held = np.append(held, more)
            _, duals, weight, _ = master.solve()
            if pricing:
                self._price_beside(held, duals)
                stock.feed(master)
                weight = master.solve()[2]
        if len(held):
            master.release(held)
        return divided(stock.columns.pool, weight, stock.pools)[0]

    def _price_beside(self, held: Ints, duals: Floats) -> None:
        """Price pools that have none of the columns `held`, within what these leave."""
        stock, lanes = self.stock, self.stock.lanes
        open_ = np.ones(stock.pools, dtype=np.bool_)
        open_[stock.columns.pool[held]] = False
        which = self._plain(open_)
        left = lanes.caps - total_use(stock.columns.use, held)
        within = self._limited(which, np.broadcast_to(left, (stock.pools, len(left))))
        ceiling = AROUND * stock.ceilings(duals)[lanes.pool[which]]
        found = cheapest(within, which, stock.prices(duals), ceiling, UNITS, again=0)
        stock.add(found.lane, found.nodes)

    def _limited(self, which: Ints, room: Floats) -> Lanes:
        """Lanes, of which those in `which` have no more of shared nodes than `room` [pool, row]."""
        lanes = self.stock.lanes
        rows = np.concatenate([room, np.zeros((len(room), 1))], 1)[lanes.pool[which]]
        limited = np.maximum(np.take_along_axis(rows, lanes.row[which], 1), 0.0) // lanes.weight[which]
        free = lanes.row[which] == len(lanes.rows)
        most = lanes.most.copy()
        most[which] = np.where(free, most[which], np.minimum(most[which], limited)).astype(np.int64)
        return replace(lanes, most=most)

    def farthest(self, chosen: Ints, least: int = ANSWERING) -> Flags:
        """Pools that are divided, and at least `least` whose pattern is farthest from their best."""
        excess = self.stock.reduced(self.duals)[chosen] - self.stock.ceilings(self.duals)
        some = self.open.copy()
        some[np.argsort(-np.where(some, -np.inf, excess), kind="stable")[: max(least, int(some.sum()))]] = True
        return some

    def settled(self, chosen: Ints) -> Ints:
        """Whole columns within all rows: pools have given way, made room, and exchanged patterns by ones and twos."""
        patterns, worth = self._patterns(), self.duals[: len(self.stock.lanes.rows)]
        chosen = make_room(patterns, relieved(patterns, chosen, worth), worth)
        gain = float(patterns.cost[chosen].sum()) - self.target
        return exchange(patterns, chosen, gain)

    def _patterns(self) -> Patterns:
        stock = self.stock
        reduced = stock.reduced(self.duals)
        return Patterns(stock.columns.pool, stock.costs(), reduced, stock.columns.use, stock.lanes.caps)

    def repaired(self, chosen: Ints, most: int) -> Ints:
        """The best that some pools could choose together of their `most` best columns: a small integer program."""
        stock, open_ = self.stock, self.farthest(chosen, REPAIRED)
        reduced, use, pool = stock.reduced(self.duals), stock.use(), stock.columns.pool
        wanted = _ranks(reduced, pool) < most
        wanted[chosen] = True
        columns = np.flatnonzero(open_[pool] & wanted)
        left = stock.caps - use[chosen[~open_]].sum(0)
        start = np.flatnonzero(np.isin(columns, chosen))
        picked = whole_choice(pool[columns], stock.costs()[columns], use[columns], left, start)
        other = chosen.copy()
        if picked is not None:
            other[pool[columns[picked]]] = columns[picked]
        return min(chosen, other, key=self.total)

    def widen(self, open_: Flags) -> None:
        """Add what some pools would take were shared nodes cheaper or dearer: whole choices need such patterns."""
        stock, which = self.stock, self._plain(open_)
        for factor in WIDENED:
            at = self._times(factor)
            ceiling = AROUND * stock.ceilings(at)[stock.lanes.pool[which]]
            found = cheapest(stock.lanes, which, stock.prices(at), ceiling, UNITS, again=0)
            stock.add(found.lane, found.nodes)

    def answer(self, chosen: Ints, open_: Flags) -> bool:
        """Add each open pool's best patterns within the nodes that the others leave; whether any is new."""
        stock, columns = self.stock, self.stock.columns
        before, lanes, which = columns.count, stock.lanes, self._plain(open_)
        room = columns.use[chosen] + (lanes.caps - total_use(columns.use, chosen))
        within = self._limited(which, room)
        for factor in (0.0, 0.5):
            at = self._times(factor)
            ceiling = stock.reduced(at)[chosen][lanes.pool[which]]
            found = cheapest(within, which, stock.prices(at), ceiling, ANSWER_UNITS, 10 * EXACT)
            stock.add(found.lane, found.nodes)
        return columns.count > before

    def mended(self, chosen: Ints, master: Master, effort: Effort) -> Ints:
        """[pool] columns no dearer than `chosen`, where that is far from the `master`."""
        if self._beyond(chosen, WANTED[effort]):
            chosen = self.traded(chosen)
            for part in AGAIN:
                if self._beyond(chosen, WANTED[effort]):
                    other = self.settled(self.dived(master, part, pricing=True))
                    chosen = min(chosen, self.traded(other), key=self.total)
        return self.repaired(chosen, NEAR) if self._beyond(chosen, FAR) else chosen

    def _beyond(self, chosen: Ints, distance: float) -> bool:
        return self.total(chosen) > self.target * (1 + distance)

    def traded(self, chosen: Ints) -> Ints:
        """[pool] columns no dearer than `chosen`: a pool takes what it would rather have at the duals, and one of the
        dearest, priced within what that leaves it, makes room or takes what comes free."""
        if self.total(chosen) == np.inf:
            return chosen
        chosen = chosen.copy()
        for _ in range(MOST_TRADES):
            granted = [self._trade(chosen, wish) for wish in self._wishes(chosen)]
            if not any(granted):
                break
        return chosen

    def _wishes(self, chosen: Ints) -> list[int]:
        """Columns that pools would rather have at the duals, those that gain most first."""
        reduced, pool = self.stock.reduced(self.duals), self.stock.columns.pool
        hope = reduced[chosen][pool] - reduced
        wishes = np.flatnonzero((hope > GAIN) & (_ranks(reduced, pool) < WISHES))
        found: list[int] = wishes[np.argsort(-hope[wishes], kind="stable")].tolist()
        return found

    def _trade(self, chosen: Ints, wish: int) -> bool:
        """Change `chosen` so that `wish` is in it, and one of the dearest pools' best beside it, where that is cheaper;
        whether it is."""
        stock, lanes, columns = self.stock, self.stock.lanes, self.stock.columns
        costs, own, pool = stock.costs(), columns.use[chosen], int(columns.pool[wish])
        cost = costs[chosen]
        saved = float(cost[pool] - costs[wish])
        left = lanes.caps - own.sum(0) + own[pool] - columns.use[wish]
        others = np.zeros(stock.pools, dtype=np.bool_)
        others[np.argsort(-cost, kind="stable")[:DEAREST]] = True
        others[pool] = False
        which = self._plain(others & (own + left >= 0).all(1))
        if not len(which):
            return False
        owner = lanes.pool[which]
        within, prices = self._limited(which, own + left), stock.prices(self._times(0.0))
        found = cheapest(within, which, prices, cost[owner] + saved, TRADE_UNITS, again=0)
        gain = saved + cost[owner] - found.cost
        best = int(np.argmax(gain))
        if gain[best] <= GAIN:
            return False
        stock.add(which[best : best + 1], found.nodes[best : best + 1])
        same = (columns.lane == which[best]) & (columns.nodes == found.nodes[best]).all(1)
        chosen[pool], chosen[owner[best]] = wish, np.argmax(same)
        return True

    def _plain(self, open_: Flags) -> Ints:
        """Lanes of some pools that have a say and are priced by the dynamic program."""
        active, lanes = self.stock.active, self.stock.lanes
        found: Ints = active[(open_[lanes.pool] & ~lanes.odd)[active]]
        return found

    def _times(self, factor: float) -> Floats:
        """Duals with those of nodes multiplied."""
        rows = len(self.stock.lanes.rows)
        return np.append(factor * self.duals[:rows], self.duals[rows:])


def _ranks(reduced: Floats, pool: Ints) -> Ints:
    """[column] how many of its pool come before it in order of `reduced`."""
    order = np.lexsort((reduced, pool))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.searchsorted(pool[order], pool[order])
    return rank
