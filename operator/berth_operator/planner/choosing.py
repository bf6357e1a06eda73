"""Which whole patterns, one a pool, within all rows?  Where the linear master divides pools among several.

What a dive in the master comes to is mended (`rounding`).  Then the pools that are farthest from what they would have
at the duals answer the others: the best that each could do with what these leave becomes a pattern as well.  What is
far from the master even so, and whatever goes short (a stage), is bettered by taking pools out and putting them back
(`reseating`).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from berth_operator.planner.effort import ANSWERS, Effort
from berth_operator.planner.lanes import Flags, Floats, Ints, Lanes
from berth_operator.planner.master import Master, divided, total_use
from berth_operator.planner.patterns import EXACT, cheapest
from berth_operator.planner.reseating import LAST_MOVES, MOVES, reseated, reseating
from berth_operator.planner.rounding import Patterns, exchange, make_room, relieved
from berth_operator.planner.stock import AROUND, UNITS, Stock

CLOSE: Final = 1.5e-3
"""Relative distance to the master at which a choice is good enough."""
STARTS: Final = (0.8, 1.0, 1.25)
"""Times the duals at which every pool's cheapest pattern is where a choice may start from."""
MOST_DIVES: Final = 12
"""Steps of a dive."""
AT_ONCE: Final = 4
"""One in so many divided pools is given its heaviest column in a step."""
WITHIN_ROWS: Final = 1e-7
"""By which a choice may take more of a row."""
ANSWER_UNITS: Final = 120
ANSWERING: Final = 12
"""Undivided pools that answer, at least."""
WIDENED: Final = (0.5, 0.7, 0.85, 1.0, 1.2, 1.6, 2.2, 3.0, 6.0)
"""Times the duals at which pools that may need other patterns are priced beforehand."""
PRICED: Final = 100
"""Undivided pools that are, at least."""
WANTED: Final = {Effort.SEARCH: 0.02, Effort.PROVE: 0.006}
"""The same from which pools are taken out and put back."""
MENDING: Final = 450
"""Of these, for each pool."""


def begun(stock: Stock, start: Ints, duals: Floats) -> Callable[[], Ints]:
    """[pool] columns of a stage within all rows, bettered from `start` beside whatever is done next."""
    return reseating(stock, start, duals, LAST_MOVES if stock.stage.dollars == 1.0 else MOVES)


def whole(stock: Stock, master: Master, effort: Effort) -> Ints:
    """[pool] columns of `stock` within all rows, near what its `master` comes to; more are added to both."""
    near = _Near(stock, master)
    if not near.open.any():
        return near.heaviest
    if effort is Effort.PROVE:
        near.widen(near.farthest(near.heaviest, PRICED))
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
    return chosen if effort is Effort.COMPARE or near.short else near.mended(chosen, effort)


class _Near:
    """Choices near one solution of the master of a whole solve, whose rows are nodes alone."""

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

    def dived(self, master: Master) -> Ints:
        """[pool] its heaviest column, after some of the divided pools have been given theirs, the dearest first,
        and the master was solved for the others, again and again."""
        stock, held = self.stock, np.zeros(0, dtype=np.int64)
        stock.feed(master)
        weight = master.solve()[2]
        for _ in range(MOST_DIVES):
            heaviest, open_ = divided(stock.columns.pool, weight, stock.pools)
            heaviest = heaviest[open_]
            if not len(heaviest):
                break
            order = np.argsort(-(weight * stock.costs())[heaviest], kind="stable")
            more = heaviest[order[: -(-len(heaviest) // AT_ONCE)]]
            master.hold(more)
            held = np.append(held, more)
            weight = master.solve()[2]
        if len(held):
            master.release(held)
        return divided(stock.columns.pool, weight, stock.pools)[0]

    def farthest(self, chosen: Ints, least: int = ANSWERING) -> Flags:
        """Pools that are divided, and at least `least` whose pattern is farthest from their best."""
        excess = self.stock.reduced(self.duals)[chosen] - self.stock.ceilings(self.duals)
        some = self.open.copy()
        some[np.argsort(-np.where(some, -np.inf, excess), kind="stable")[: max(least, int(some.sum()))]] = True
        return some

    def settled(self, chosen: Ints) -> Ints:
        """Whole columns within all rows: pools have given way, made room, and exchanged patterns by ones and twos."""
        stock, worth = self.stock, self.duals
        reduced = stock.reduced(worth)
        patterns = Patterns(stock.columns.pool, stock.costs(), reduced, stock.columns.use, stock.lanes.caps)
        chosen = make_room(patterns, relieved(patterns, chosen, worth), worth)
        gain = float(patterns.cost[chosen].sum()) - self.target
        return exchange(patterns, chosen, gain)

    def widen(self, open_: Flags) -> None:
        """Add what some pools would take were shared nodes cheaper or dearer: whole choices need such patterns."""
        stock, which = self.stock, self._plain(open_)
        for factor in WIDENED:
            at = factor * self.duals
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
            at = factor * self.duals
            ceiling = stock.reduced(at)[chosen][lanes.pool[which]]
            found = cheapest(within, which, stock.prices(at), ceiling, ANSWER_UNITS, 10 * EXACT)
            stock.add(found.lane, found.nodes)
        return columns.count > before

    def _limited(self, which: Ints, room: Floats) -> Lanes:
        """Lanes, of which those in `which` have no more of shared nodes than `room` [pool, row]."""
        lanes = self.stock.lanes
        rows = np.concatenate([room, np.zeros((len(room), 1))], 1)[lanes.pool[which]]
        limited = np.maximum(np.take_along_axis(rows, lanes.row[which], 1), 0.0) // lanes.weight[which]
        free = lanes.row[which] == len(lanes.rows)
        most = lanes.most.copy()
        most[which] = np.where(free, most[which], np.minimum(most[which], limited)).astype(np.int64)
        return replace(lanes, most=most)

    def mended(self, chosen: Ints, effort: Effort) -> Ints:
        """[pool] columns no dearer than `chosen`, where that is far from the master."""
        if self.target * (1 + WANTED[effort]) < self.total(chosen) < np.inf:
            chosen = reseated(self.stock, chosen, self.duals, MENDING)
        return chosen

    def _plain(self, open_: Flags) -> Ints:
        """Lanes of some pools that have a say and are priced by the dynamic program."""
        active, lanes = self.stock.active, self.stock.lanes
        found: Ints = active[(open_[lanes.pool] & ~lanes.odd)[active]]
        return found
