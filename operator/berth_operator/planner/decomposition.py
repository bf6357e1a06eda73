"""How are thousands of pools planned together?  Dantzig-Wolfe: patterns of whole pools, priced by the rows they share.

Each round prices every pool at the duals (`patterns`), adds what is found to the master (`master`) and takes new duals,
smoothed towards those of the best bound (Wentges 1997).  The bound is Lagrange's:

    sum over pools of (least price of a pattern at duals p) - p x limits

which holds for any p >= 0 and for prices that are themselves lower bounds.  The master's own objective is no bound.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from berth_operator.planner.exact import exact_pattern
from berth_operator.planner.exchange import exchange
from berth_operator.planner.lanes import Flags, Floats, Ints, Lanes, served_by
from berth_operator.planner.master import Columns, Master, divided, total_use, whole_choice
from berth_operator.planner.patterns import EXACT, Found, Prices, cheapest, counted, mend
from berth_operator.planner.quick import guesses

UNITS: Final = 64
"""Of demand in pricing while columns are generated."""
FINE_UNITS: Final = 192
"""In the last pricings, which give the bound."""
FINE_ROUNDS: Final = 2
"""Of those."""
SMOOTHING: Final = 0.5
ROUNDS: Final = 3
CLOSE: Final = 1.5e-3
"""Relative distance of master and bound at which rounds end."""
FIRST_MOST: Final = 3.0
"""Times its price that a node's dual may be at first."""
GUESSES: Final = 7
"""Rounds of cheap guesses before the first pricing."""
WARM_GUESSES: Final = 2
"""Of them where columns and duals of an earlier solve are there; nothing is priced then but at the end."""
BOUGHT: Final = 1e-6
"""Nodes beyond the limits that a master may take and still be called within them."""
BEST_GUESSES: Final = 2
MORE: Final = 8.0
"""Factor by which duals may go further once they have to."""
WORTH: Final = 4e-4
"""Of the cost of all, that one lane's gap must be at least for it."""
LOST_LANES: Final = 4
"""Lanes a round that it prices because no good pattern of theirs is known."""
EXACT_LANES: Final = 8
"""Loosest lanes that the flat program prices in the last round."""
ANSWERS: Final = 2
ANSWER_UNITS: Final = 128
ROUGH: Final = 0.01
"""Relative difference of pattern and bound that is left alone before the last pricing."""
NEARLY: Final = 12
"""Undivided pools that a repair may change."""
MORE_NEARLY: Final = (45, 120)
"""The same of a second repair, where the first one comes out far from the master."""
FAR: Final = 6e-3
NEAR: Final = 5
"""Patterns of a pool that a repair may choose from."""


@dataclass(slots=True)
class Outcome:
    """What a decomposition came to."""

    chosen: Ints
    """[pool] column."""
    cost: float
    """Of the chosen columns, shortage priced in."""
    bound: float
    duals: Floats
    rounds: int


class Decomposition:
    """Column generation over some lanes; columns and duals are kept, so that a second solve starts warm."""

    def __init__(self, lanes: Lanes, pools: int, unserved: Floats, missing: float) -> None:
        self.lanes, self.pools = lanes, pools
        self.unserved, self.missing = unserved, missing
        """[lane] USD/h for leaving all unserved; USD/h for a replica missing."""
        self.columns = Columns(lanes)
        self.duals = np.zeros(len(lanes.rows))
        self.warm = False
        self.bounds = np.zeros(pools)
        """[pool] of the last pricing."""
        self._add_nothing()

    def restricted(self, most: Ints) -> "Decomposition":
        """The same pools with `most` [lane, option] nodes, and the columns that keep to it."""
        part = Decomposition(replace(self.lanes, most=most), self.pools, self.unserved, self.missing)
        part.duals, part.warm = self.duals, self.warm
        kept = (self.columns.nodes <= most[self.columns.lane]).all(1)
        part.columns.copy(self.columns, np.flatnonzero(kept))
        return part

    def learn(self, part: "Decomposition") -> None:
        """Take over what a restricted solve has found."""
        self.columns.copy(part.columns, np.arange(part.columns.count))
        self.duals, self.warm = part.duals, True

    # --- Columns ----------------------------------------------------------------------------------------------------

    def _add_nothing(self) -> None:
        """The pattern that serves nothing, which always fits."""
        _, first = np.unique(self.lanes.pool, return_index=True)
        nodes = np.zeros((len(first), self.lanes.share.shape[1]), dtype=np.int64)
        self.add(first, nodes)

    def add(self, lane: Ints, nodes: Ints) -> Ints:
        """Add patterns, those that keep their pool's own bounds."""
        within = (nodes <= self.lanes.most[lane]).all(1)
        lane, nodes = lane[within], nodes[within]
        served = served_by(self.lanes, lane, nodes)
        ok = served.allowed
        cost = (nodes * self.lanes.price[lane]).sum(1)
        return self.columns.add(lane[ok], nodes[ok], cost[ok], served.unserved[ok], served.missing[ok])

    def costs(self) -> Floats:
        """[column] shortage priced in."""
        c = self.columns
        return np.asarray(c.cost + counted(c.unserved) * self.unserved[c.lane] + c.missing * self.missing)

    def ceilings(self, duals: Floats) -> Floats:
        """[pool] the cheapest known pattern at `duals`."""
        best = np.full(self.pools, np.inf)
        np.minimum.at(best, self.columns.pool, self.costs() + self.columns.use @ duals)
        return best

    # --- Search -----------------------------------------------------------------------------------------------------

    def prices(self, duals: Floats) -> Prices:
        """Node prices with the duals of the rows they take."""
        return Prices(self.lanes.price + np.append(duals, 0.0)[self.lanes.row], self.unserved, self.missing)

    def price(self, duals: Floats, units: int, *, exact: int = 0) -> float:
        """Price all pools, add what is found, return Lagrange's bound; `exact`: the loosest pools that the flat program
        prices as well."""
        ceiling = self.ceilings(duals)
        which = np.flatnonzero(~self.lanes.odd)
        found = cheapest(
            self.lanes,
            which,
            self.prices(duals),
            ceiling[self.lanes.pool[which]],
            units,
            EXACT if units >= FINE_UNITS else ROUGH,
        )
        self.add(found.lane, found.nodes)
        bound = np.full(self.lanes.count, -np.inf)
        bound[found.lane] = found.bound
        self._price_odd(duals, ceiling, bound)
        self._tighten(duals, found, bound, exact)
        best = ceiling.copy()
        np.minimum.at(best, self.lanes.pool, bound)
        self.bounds = best
        return float(best.sum() - duals @ self.lanes.caps)

    def guess(self, duals: Floats) -> None:
        """Add patterns that are likely good at `duals`."""
        which, prices = np.flatnonzero(~self.lanes.odd), self.prices(duals)
        found = np.stack(guesses(self.lanes, which, prices.node[which]))
        cost = (found * prices.node[which]).sum(2)
        for place in np.argsort(cost, axis=0, kind="stable")[:BEST_GUESSES]:
            nodes, _ = mend(self.lanes, which, found[place, np.arange(len(which))], prices)
            self.add(which, nodes)

    def _price_odd(self, duals: Floats, ceiling: Floats, bound: Floats) -> None:
        for lane in np.flatnonzero(self.lanes.odd):
            self._exactly(int(lane), duals, float(ceiling[self.lanes.pool[lane]]), bound)

    def _tighten(self, duals: Floats, found: Found, bound: Floats, most: int) -> None:
        """Price the `most` loosest lanes by the flat program, and a few whose pool could be served far better."""
        ceiling = self.ceilings(duals)[self.lanes.pool[found.lane]]
        gap = ceiling - bound[found.lane]
        order = np.argsort(-gap, kind="stable")
        total = float(ceiling.sum())
        lost = gap > 0.01 * self.unserved[found.lane]
        for place, i in enumerate(order[: max(most, LOST_LANES)]):
            if (place < most and gap[i] > WORTH * total) or lost[i]:
                lane = int(found.lane[i])
                self._exactly(lane, duals, float(self.ceilings(duals)[self.lanes.pool[lane]]), bound)

    def _exactly(self, lane: int, duals: Floats, ceiling: float, bound: Floats) -> None:
        result = exact_pattern(self.lanes, lane, self.prices(duals), ceiling)
        if result is not None:
            nodes, least = result
            self.add(np.array([lane]), nodes[None, :])
            bound[lane] = max(bound[lane], least)

    def run(self, *, roughly: bool = False) -> Outcome:
        """Generate columns, choose whole ones; `roughly`: of likely patterns alone, and without a bound."""
        master = Master(self.pools, self.lanes.caps, self._first_most())
        known = self._feed(master, 0)
        at = self._guess_rounds(master, known, WARM_GUESSES if self.warm else GUESSES)
        rounds = 0 if self.warm else ROUNDS
        if roughly:
            self.price(at, UNITS)
            self._feed(master, master.columns)
            best = 0.0
        else:
            at = self._price_rounds(master, at, rounds)
            best, bounds = -np.inf, self.bounds
            for _ in range(FINE_ROUNDS):
                bound = self.price(at, FINE_UNITS, exact=EXACT_LANES)
                self._feed(master, master.columns)
                if bound > best:
                    best, self.duals, bounds = bound, at, self.bounds
                at = master.solve()[1]
            at, self.bounds = self.duals, bounds
        master.raise_most(1e6)
        objective, duals, weight, _ = master.solve()
        chosen = self._whole(weight, duals, objective, 0 if roughly else ANSWERS)
        return Outcome(chosen, float(self.costs()[chosen].sum()), best, at, rounds)

    def _guess_rounds(self, master: Master, known: int, rounds: int) -> Floats:
        """Add likely patterns, at duals that follow the master's halfway; returns the last duals."""
        at = self.duals
        for _ in range(rounds):
            self.guess(at)
            before, known = known, self._feed(master, known)
            _, duals, _, bought = master.solve()
            if bought > BOUGHT:
                master.raise_most(2.0)
            if known == before and np.allclose(at, duals):
                break
            at = duals if known == before else (at + duals) / 2
        return at

    def _price_rounds(self, master: Master, at: Floats, rounds: int) -> Floats:
        """Price and add; returns the master's duals at the end."""
        known = master.columns
        for _ in range(rounds):
            self.price(at, UNITS)
            before, known = known, self._feed(master, known)
            _, duals, _, bought = master.solve()
            while bought > BOUGHT:
                master.raise_most(MORE)
                _, duals, _, bought = master.solve()
            if known == before and np.allclose(at, duals):
                break
            at = duals if known == before else SMOOTHING * at + (1 - SMOOTHING) * duals
        master.raise_most(1e3)
        return master.solve()[1]

    def _feed(self, master: Master, known: int) -> int:
        new = slice(known, self.columns.count)
        if self.columns.count > known:
            master.add(self.columns.pool[new], self.costs()[new], self.columns.use[new])
        return self.columns.count

    def _first_most(self) -> Floats:
        """[row] what duals start below."""
        most = np.zeros(len(self.lanes.rows) + 1)
        np.maximum.at(most, self.lanes.row, self.lanes.price)
        return np.maximum(most[:-1] * FIRST_MOST, 1e-3)

    def _whole(self, weight: Floats, duals: Floats, target: float, answers: int) -> Ints:
        """One column a pool: the undivided as they are, the others by a small integer program.

        Then patterns are exchanged by ones and twos, and every pool of that program answers the others: the best that
        it could do with what they leave becomes a column as well.
        """
        chosen, open_ = divided(self.columns.pool, weight, self.pools)
        if not open_.any():
            return chosen
        reduced = self.costs() + self.columns.use @ duals
        certain = chosen
        tight = open_ | self._nearly_divided(self.columns.pool, reduced, chosen, open_, NEARLY)
        chosen = self._better(self._repair(chosen, tight, weight > 1e-6, duals), tight, duals, target, answers)
        for most in MORE_NEARLY if answers else ():
            if float(self.costs()[chosen].sum()) <= target * (1 + FAR):
                break
            in_use = np.append(weight > 1e-6, np.ones(self.columns.count - len(weight), dtype=np.bool_))
            wide = open_ | self._nearly_divided(self.columns.pool, reduced, certain, open_, most)
            again = self._better(self._repair(certain, wide, in_use, duals), wide, duals, target, 1)
            costs = self.costs()
            chosen = again if costs[again].sum() < costs[chosen].sum() else chosen
        return chosen

    def _better(self, chosen: Ints, open_: Flags, duals: Floats, target: float, answers: int) -> Ints:
        """Exchanges and answers, in turn."""
        for turn in range(answers + 1):
            costs = self.costs()
            reduced = costs + self.columns.use @ duals
            gain = float(costs[chosen].sum()) - target
            if gain <= CLOSE * target or not answers:
                break
            caps = self.lanes.caps
            chosen = exchange(chosen, self.columns.pool, costs, reduced, self.columns.use, caps, gain)
            if turn == answers or not self._answer(chosen, open_, duals):
                break
        return chosen

    def _repair(self, chosen: Ints, open_: Flags, in_use: Flags, duals: Floats) -> Ints:
        columns, costs = self.columns, self.costs()
        pool, count = columns.pool, columns.count
        reduced = costs + columns.use @ duals
        order = np.lexsort((reduced, pool))
        rank = np.empty(count, dtype=np.int64)
        first = np.searchsorted(pool[order], np.arange(self.pools))
        rank[order] = np.arange(count) - first[pool[order]]
        wanted = rank < NEAR
        wanted[: self.pools] = True  # nothing served
        wanted |= in_use
        candidates = np.flatnonzero(open_[pool] & wanted)
        left = self.lanes.caps - total_use(columns.use, chosen[~open_])
        picked = whole_choice(pool[candidates], costs[candidates], columns.use[candidates], left)
        if picked is None:
            raise AssertionError("the patterns that serve nothing always fit")  # pragma: no cover
        chosen = chosen.copy()
        chosen[pool[candidates[picked]]] = candidates[picked]
        return chosen

    def _answer(self, chosen: Ints, open_: Flags, duals: Floats) -> bool:
        """Add each open pool's best patterns within the nodes that the others leave; whether any is new."""
        before, columns = self.columns.count, self.columns
        left = np.append(self.lanes.caps - total_use(columns.use, chosen), 0.0)
        which = np.flatnonzero(open_[self.lanes.pool] & ~self.lanes.odd)
        own = np.zeros((self.pools, len(left)))
        own[:, :-1] = columns.use[chosen]
        room = (left[None, :] + own)[self.lanes.pool[which]]
        limited = np.take_along_axis(room, self.lanes.row[which], 1)
        most = self.lanes.most.copy()
        free = self.lanes.row[which] == len(self.lanes.rows)
        most[which] = np.where(free, most[which], np.minimum(most[which], limited)).astype(np.int64)
        within = replace(self.lanes, most=most)
        for part in (0.0, 0.5):
            prices = self.prices(part * duals)
            paid = self.costs()[chosen] + columns.use[chosen] @ (part * duals)
            found = cheapest(within, which, prices, paid[self.lanes.pool[which]], ANSWER_UNITS, 10 * EXACT)
            self.add(found.lane, found.nodes)
        return self.columns.count > before

    def _nearly_divided(self, pool: Ints, reduced: Floats, chosen: Ints, open_: Flags, most: int) -> Flags:
        """Undivided pools whose second pattern costs least more: they give the repair room."""
        second = np.full(self.pools, np.inf)
        pool = pool[: len(reduced)]
        others = np.ones(len(pool), dtype=np.bool_)
        others[chosen] = False
        np.minimum.at(second, pool[others], reduced[others])
        spread = np.where(open_, np.inf, second - reduced[chosen])
        extra = np.zeros(self.pools, dtype=np.bool_)
        extra[np.argsort(spread, kind="stable")[: max(most, int(open_.sum()))]] = True
        return extra & ~open_ & np.isfinite(spread)
