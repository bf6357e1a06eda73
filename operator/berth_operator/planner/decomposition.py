"""How are thousands of pools planned together?  Dantzig-Wolfe: patterns of whole pools, priced by the rows they share.

Each round prices every pool at the duals (`patterns`), adds what is found to the master (`master`) and takes new duals,
smoothed towards those of the best bound (Wentges 1997).  The bound is Lagrange's:

    sum over pools of (least price of a pattern at duals p) - p x limits

which holds for any p >= 0 and for prices that are themselves lower bounds.  The master's own objective is no bound.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from berth_operator.planner.balancing import solve
from berth_operator.planner.effort import ANSWERS, CLOSELY, SMALL, WIDELY, Effort
from berth_operator.planner.exact import exact_pattern
from berth_operator.planner.lanes import Flags, Floats, Ints, Lanes, served_by
from berth_operator.planner.master import Columns, Master, divided, paid, total_use, whole_choice
from berth_operator.planner.patterns import EXACT, Prices, cheapest, counted
from berth_operator.planner.rounding import Patterns, exchange, make_room, relieved
from berth_operator.planner.solver import ROUGH_NODES

UNITS: Final = 120
"""Of demand in pricing, at first."""
GUESS_UNITS: Final = 60
"""The same of guesses."""
FINE_AGAIN: Final = 2
"""Times that loose lanes are priced again, ever finer, in the last pricings, which give the bound."""
TOWARDS: Final = 0.7
"""Weight of the best bound's duals in those of the next last pricing: those of the master alone swing."""
FINE_ROUNDS: Final = 4
"""Last pricings at most, of which the best bound counts."""
RIGHT: Final = 3e-3
"""Of the cost of all, by which the bound may be low because duals are not right, without another of them."""
SMOOTHING: Final = 0.5
CLOSE: Final = 1.5e-3
"""Relative distance of master and bound at which rounds end."""
FIRST_MOST: Final = 3.0
"""Times its price that a node's dual may be at first."""
WARM_GUESSES: Final = 2
"""Rounds of guesses where columns and duals of an earlier solve are there; pricing is then left to the end."""
BOUGHT: Final = 1e-6
"""Nodes beyond the limits that a master may take and still be called within them."""
MORE: Final = 8.0
"""Factor by which duals may go further once they have to."""
WORTH: Final = (4e-4, 0.4)
"""Of the cost of all, or of a usual pool's if that is less: what one lane's gap must be at least for it."""
LOST_LANES: Final = 4
"""Lanes a round that it prices because no good pattern of theirs is known."""
EXACT_LANES: Final = (2, 125)
"""Loosest lanes that the flat program prices in the last round: so many, or one of so many pools if that is more."""
EXACT_NODES: Final = 1_000
"""Of branch and bound, for one of them: a budget that keeps a pool short takes some hundred."""
ANSWER_UNITS: Final = 120
KEPT: Final = 6
"""Columns of a pool that a second solve begins with: more make its master slow."""
WITHIN: Final = 1e-5
"""Of the cost of all, by which the flat program may be wrong about one pool."""
FEW: Final = 0.1
"""Share of lanes that may have changed since a proof, for it to be amended."""
ANSWERING: Final = 12
"""Undivided pools whose patterns are looked for again when whole ones are chosen, at least."""
FAR: Final = 0.03
"""Relative distance to the master from which whole choices are looked for by an integer program."""
REPAIRED: Final = 100
"""Undivided pools that it may change, at least."""
NEAR: Final = 12
"""Columns of a pool that it may choose from."""
WIDENED: Final = (0.5, 0.7, 0.85, 1.0, 1.2, 1.6, 2.2, 3.0, 6.0)
"""Times the duals at which pools that a repair may change are priced beforehand."""
AROUND: Final = 1.1
"""Times the best known pattern that one of those may cost."""
STARTS: Final = (0.8, 1.0, 1.25)
"""Times the duals at which every pool's cheapest pattern is where a whole choice may start from."""


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


@dataclass(frozen=True, slots=True)
class _Proof:
    """Least prices of patterns, at some duals."""

    duals: Floats
    lanes: Floats
    """[lane] no pattern costs less."""
    most: Ints
    """[lane, option] nodes that these might have."""


class Decomposition:
    """Column generation over some lanes; columns and duals are kept, so that a second solve starts warm."""

    def __init__(self, lanes: Lanes, pools: int, unserved: Floats, missing: float) -> None:
        self.lanes, self.pools = lanes, pools
        self.unserved, self.missing = unserved, missing
        """[lane] USD/h for leaving all unserved; USD/h for a replica missing."""
        self.columns = Columns(lanes)
        self.depth = CLOSELY if pools <= SMALL else WIDELY
        self.duals = np.zeros(len(lanes.rows))
        self.warm = False
        self.bounds = np.zeros(pools)
        """[pool] of the last pricing."""
        self._least = np.full(lanes.count, -np.inf)
        """[lane] likewise."""
        self._proof: _Proof | None = None
        """Of the same pools with other `most`, whose bounds hold where `most` is the same."""
        self._add_nothing()
        self._add_floors()

    def restricted(self, most: Ints, caps: Floats | None = None) -> "Decomposition":
        """The same pools with `most` [lane, option] nodes (and `caps` [row]), and each one's best columns that keep
        to it."""
        lanes = replace(self.lanes, most=most, caps=self.lanes.caps if caps is None else caps)
        part = Decomposition(lanes, self.pools, self.unserved, self.missing)
        part.duals, part.warm, part._proof = self.duals, self.warm, self._proof
        within = np.flatnonzero((self.columns.nodes <= most[self.columns.lane]).all(1))
        pool = self.columns.pool[within]
        order = np.lexsort(((self.costs() + paid(self.columns.use, self.duals))[within], pool))
        rank = np.arange(len(order)) - np.searchsorted(pool[order], pool[order])
        part.columns.copy(self.columns, within[np.sort(order[rank < KEPT])])
        return part

    def learn(self, part: "Decomposition") -> None:
        """Take over what a restricted solve has found."""
        self.columns.copy(part.columns, np.arange(part.columns.count))
        self.duals, self.warm, self._proof = part.duals, True, part._proof

    # --- Columns ----------------------------------------------------------------------------------------------------

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

    def costs(self) -> Floats:
        """[column] shortage priced in."""
        c = self.columns
        return np.asarray(c.cost + counted(c.unserved) * self.unserved[c.lane] + c.missing * self.missing)

    def ceilings(self, duals: Floats) -> Floats:
        """[pool] the cheapest known pattern at `duals`."""
        best = np.full(self.pools, np.inf)
        np.minimum.at(best, self.columns.pool, self.costs() + paid(self.columns.use, duals))
        return best

    # --- Search -----------------------------------------------------------------------------------------------------

    def prices(self, duals: Floats) -> Prices:
        """Node prices with the duals of the rows they take."""
        shared = np.append(duals, 0.0)[self.lanes.row] * self.lanes.weight
        return Prices(self.lanes.price + shared, self.unserved, self.missing)

    def price(self, duals: Floats, *, finally_: bool = False) -> float:
        """Price all pools, add what is found, return Lagrange's bound; `finally_`: as tightly as can be."""
        return self._price(duals, np.arange(self.lanes.count), finally_=finally_)

    def _price(self, duals: Floats, which: Ints, *, finally_: bool) -> float:
        """The same of the lanes `which`; the bounds of the others stand."""
        ceiling = self.ceilings(duals)
        even = which[~self.lanes.odd[which]]
        found = cheapest(
            self.lanes,
            even,
            self.prices(duals),
            ceiling[self.lanes.pool[even]],
            UNITS,
            EXACT if finally_ else self.depth.rough,
            FINE_AGAIN if finally_ else self.depth.again,
            self._dollars(),  # the price of a few pools' shortage outweighs a fleet, and would hide what it lacks
        )
        self.add(found.lane, found.nodes)
        self._least[which] = -np.inf
        self._least[found.lane] = found.bound
        for lane in which[self.lanes.odd[which]].tolist():
            self._exactly(lane, duals, float(ceiling[self.lanes.pool[lane]]))
        # What costs more than the best known pattern need not have been looked for.
        self._least[which] = np.minimum(self._least[which], ceiling[self.lanes.pool[which]])
        self._tighten(duals, even, max(EXACT_LANES[0], self.pools // EXACT_LANES[1]) if finally_ else 0)
        return self._bound(duals)

    def _bound(self, duals: Floats) -> float:
        """Lagrange's, from the lanes' least prices at `duals`."""
        self.bounds = self.ceilings(duals)
        np.minimum.at(self.bounds, self.lanes.pool, self._least)
        return float(self.bounds.sum() - duals @ self.lanes.caps)

    def guess(self, duals: Floats) -> None:
        """Add patterns that are likely good at `duals`: pricing, roughly."""
        which = np.flatnonzero(~self.lanes.odd)
        ceiling = AROUND * self.ceilings(duals)[self.lanes.pool[which]]
        found = cheapest(self.lanes, which, self.prices(duals), ceiling, GUESS_UNITS, again=0)
        self.add(found.lane, found.nodes)

    def _tighten(self, duals: Floats, which: Ints, most: int) -> None:
        """Price the `most` loosest of lanes by the flat program, and a few whose pool could be served far better."""
        ceiling = self.ceilings(duals)[self.lanes.pool[which]]
        gap = ceiling - self._least[which]
        order = np.argsort(-gap, kind="stable")
        worth = min(WORTH[0], WORTH[1] / self.pools) * self._dollars()
        lost = gap > 0.01 * self.unserved[which]
        for place, i in enumerate(order[: max(most, LOST_LANES)]):
            if (place < most and gap[i] > worth) or lost[i]:
                lane = int(which[i])
                self._exactly(lane, duals, float(self.ceilings(duals)[self.lanes.pool[lane]]))

    def _exactly(self, lane: int, duals: Floats, ceiling: float) -> None:
        branching = ROUGH_NODES if self.lanes.odd[lane] else EXACT_NODES
        result = exact_pattern(self.lanes, lane, self.prices(duals), ceiling, WITHIN * self._dollars(), branching)
        if result is not None:
            nodes, least = result
            self.add(np.array([lane]), nodes[None, :])
            self._least[lane] = max(self._least[lane], least)

    def _dollars(self) -> float:
        """USD/h of the pools that can be served in full, roughly, shortage and duals left aside."""
        best = self.columns.cheapest_serving(self.pools)
        return float(best[np.isfinite(best)].sum())

    def run(self, effort: Effort = Effort.PROVE) -> Outcome:
        """Generate columns, choose whole ones."""
        master = Master(self.pools, self.lanes.caps, self._first_most())
        known = self.columns.count
        master.begin(self.columns.pool, self.costs(), self.columns.use, self.duals)
        rounds, best, changed = 0, 0.0, self._changed() if effort is Effort.PROVE else None
        if changed is not None:
            at = self._price_rounds(master, self.duals, self.depth.amending)
            best = self._amended(changed)
            self._feed(master, master.columns)
        else:
            at = self._guess_rounds(master, known, WARM_GUESSES if self.warm else self.depth.guesses)
        if effort is Effort.COMPARE:
            self.price(at)
            self._feed(master, master.columns)
        elif changed is None:
            rounds = self.depth.warm_rounds if self.warm else self.depth.rounds[effort]
            at = self._price_rounds(master, at, rounds)
            if effort is Effort.PROVE:
                best, at = self._proven(master, at)
        master.raise_most(1e6)
        if effort is Effort.SEARCH:
            at = self.duals = master.solve()[1]
        chosen = self._whole(master, effort)
        return Outcome(chosen, float(self.costs()[chosen].sum()), best, at, rounds)

    def _proven(self, master: Master, at: Floats) -> tuple[float, Floats]:
        """The best bound that some last pricings give, and its duals."""
        best, least = -np.inf, self._least
        for _ in range(FINE_ROUNDS):
            bound = self.price(at, finally_=True)
            self._feed(master, master.columns)
            unpriced = float((self.ceilings(at) - self.bounds).sum())
            if bound > best:
                best, self.duals, least = bound, at, self._least.copy()
            objective, at, _ = solve(master, self.columns, self.costs(), at)
            at = TOWARDS * self.duals + (1 - TOWARDS) * at
            if objective - bound - unpriced <= RIGHT * self._dollars():
                break
        self._least = least
        self._proof = _Proof(self.duals, self._least, self.lanes.most)
        return self._bound(self.duals), self.duals

    def _changed(self) -> Ints | None:
        """Lanes of pools that have been given other options since a proof, where these are few; else None."""
        if self._proof is None or (self.duals != self._proof.duals).any():
            return None
        other = np.zeros(self.pools, dtype=np.bool_)
        other[self.lanes.pool[(self.lanes.most != self._proof.most).any(1)]] = True
        changed = np.flatnonzero(other[self.lanes.pool])
        return changed if len(changed) <= FEW * self.lanes.count else None

    def _amended(self, changed: Ints) -> float:
        """The bound at the proof's duals, at which the other lanes' least prices are known."""
        assert self._proof is not None  # noqa: S101 - for the type checker
        self._least = self._proof.lanes.copy()
        if len(changed):
            self._price(self.duals, changed, finally_=True)
        self._proof = _Proof(self.duals, self._least, self.lanes.most)
        return self._bound(self.duals)

    def _guess_rounds(self, master: Master, known: int, rounds: int) -> Floats:
        """Add likely patterns, at duals that follow the master's halfway; returns the last duals."""
        at = self.duals
        for _ in range(rounds):
            self.guess(at)
            before, known = known, self._feed(master, known)
            _, duals, bought = solve(master, self.columns, self.costs(), at)
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
            self.price(at)
            before, known = known, self._feed(master, known)
            _, duals, bought = solve(master, self.columns, self.costs(), at)
            while bought > BOUGHT:
                master.raise_most(MORE)
                _, duals, bought = solve(master, self.columns, self.costs(), duals)
            if known == before and np.allclose(at, duals):
                break
            at = duals if known == before else SMOOTHING * at + (1 - SMOOTHING) * duals
        master.raise_most(1e3)
        return solve(master, self.columns, self.costs(), at)[1]

    def _feed(self, master: Master, known: int) -> int:
        new = slice(known, self.columns.count)
        if self.columns.count > known:
            master.add(self.columns.pool[new], self.costs()[new], self.columns.use[new])
        return self.columns.count

    def _first_most(self) -> Floats:
        """[row] what duals start below."""
        most = np.zeros(len(self.lanes.rows) + 1)
        np.maximum.at(most, self.lanes.row, self.lanes.price / self.lanes.weight)
        return np.maximum(most[:-1] * FIRST_MOST, 1e-3)

    def _whole(self, master: Master, effort: Effort) -> Ints:
        """One column a pool, within all rows.

        What a dive in the master comes to is mended (`rounding`).  Then the pools that are farthest from what they
        would have at the duals answer the others: the best that each could do with what these leave becomes a column
        as well.
        """
        target, duals, weight, _ = master.solve()
        heaviest, open_ = divided(self.columns.pool, weight, self.pools)
        if not open_.any():
            return heaviest
        if effort is Effort.PROVE:
            self._widen(self._farthest(heaviest, open_, duals, REPAIRED), duals)
            self._feed(master, master.columns)
            target, duals, weight, _ = master.solve()
            heaviest, open_ = divided(self.columns.pool, weight, self.pools)
        dived, _ = divided(self.columns.pool, master.dive(self.columns.pool, weight, self.columns.cost), self.pools)
        chosen = self._settled(dived, duals, target)
        others = [] if effort is Effort.COMPARE else [self._cheapest(factor * duals) for factor in STARTS]
        for start in [heaviest, *others]:
            if self._close(chosen, target):
                break
            chosen = min(chosen, self._settled(start, duals, target), key=lambda one: float(self.costs()[one].sum()))
        for _ in range(ANSWERS[effort]):
            if self._close(chosen, target):
                break
            if not self._answer(chosen, self._farthest(chosen, open_, duals), duals):
                break
            chosen = self._settled(chosen, duals, target)
        if effort is not Effort.COMPARE and float(self.costs()[chosen].sum()) > target * (1 + FAR):
            chosen = self._repaired(chosen, self._farthest(chosen, open_, duals, REPAIRED), duals)
        return chosen

    def _repaired(self, chosen: Ints, open_: Flags, duals: Floats) -> Ints:
        """The best that some pools could choose together of their best columns: a small integer program."""
        patterns = self._patterns(duals)
        order = np.lexsort((patterns.reduced, patterns.pool))
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order)) - np.searchsorted(patterns.pool[order], patterns.pool[order])
        wanted = rank < NEAR
        wanted[chosen] = True
        columns = np.flatnonzero(open_[patterns.pool] & wanted)
        left = patterns.caps - patterns.use[chosen[~open_]].sum(0)
        start = np.flatnonzero(np.isin(columns, chosen))
        picked = whole_choice(patterns.pool[columns], patterns.cost[columns], patterns.use[columns], left, start)
        chosen = chosen.copy()
        if picked is not None:
            chosen[patterns.pool[columns[picked]]] = columns[picked]
        return chosen

    def _close(self, chosen: Ints, target: float) -> bool:
        return float(self.costs()[chosen].sum()) <= target * (1 + CLOSE)

    def _settled(self, chosen: Ints, duals: Floats, target: float) -> Ints:
        """Whole columns within all rows: pools have given way, made room, and exchanged patterns by ones and twos."""
        patterns = self._patterns(duals)
        chosen = make_room(patterns, relieved(patterns, chosen, duals), duals)
        gain = float(patterns.cost[chosen].sum()) - target
        return exchange(patterns, chosen, gain)

    def _cheapest(self, duals: Floats) -> Ints:
        """[pool] the column that is cheapest at `duals`."""
        order = np.lexsort((self.costs() + paid(self.columns.use, duals), self.columns.pool))
        found: Ints = order[np.searchsorted(self.columns.pool[order], np.arange(self.pools))]
        return found

    def _patterns(self, duals: Floats) -> Patterns:
        costs, c = self.costs(), self.columns
        return Patterns(c.pool, costs, costs + paid(c.use, duals), c.use, self.lanes.caps)

    def _farthest(self, chosen: Ints, open_: Flags, duals: Floats, least: int = ANSWERING) -> Flags:
        """Pools that are divided, and at least `least` whose pattern is farthest from their best."""
        excess = (self.costs() + paid(self.columns.use, duals))[chosen] - self.ceilings(duals)
        some = open_.copy()
        some[np.argsort(-np.where(open_, -np.inf, excess), kind="stable")[: max(least, int(open_.sum()))]] = True
        return some

    def _widen(self, open_: Flags, duals: Floats) -> None:
        """Add what some pools would take were shared nodes cheaper or dearer: whole choices need such patterns."""
        which = np.flatnonzero(open_[self.lanes.pool] & ~self.lanes.odd)
        for factor in WIDENED:
            ceiling = AROUND * self.ceilings(factor * duals)[self.lanes.pool[which]]
            found = cheapest(self.lanes, which, self.prices(factor * duals), ceiling, UNITS, again=0)
            self.add(found.lane, found.nodes)

    def _answer(self, chosen: Ints, open_: Flags, duals: Floats) -> bool:
        """Add each open pool's best patterns within the nodes that the others leave; whether any is new."""
        before, columns = self.columns.count, self.columns
        left = np.append(self.lanes.caps - total_use(columns.use, chosen), 0.0)
        which = np.flatnonzero(open_[self.lanes.pool] & ~self.lanes.odd)
        own = np.zeros((self.pools, len(left)))
        own[:, :-1] = columns.use[chosen]
        room = (left[None, :] + own)[self.lanes.pool[which]]
        limited = np.take_along_axis(room, self.lanes.row[which], 1) // self.lanes.weight[which]
        most = self.lanes.most.copy()
        free = self.lanes.row[which] == len(self.lanes.rows)
        most[which] = np.where(free, most[which], np.minimum(most[which], limited)).astype(np.int64)
        within = replace(self.lanes, most=most)
        for part in (0.0, 0.5):
            prices = self.prices(part * duals)
            ceiling = self.costs()[chosen] + paid(columns.use[chosen], part * duals)
            found = cheapest(within, which, prices, ceiling[self.lanes.pool[which]], ANSWER_UNITS, 10 * EXACT)
            self.add(found.lane, found.nodes)
        return self.columns.count > before
