"""How are thousands of pools planned together?  Dantzig-Wolfe: patterns of whole pools, priced by the rows they share.

Each round prices every pool at the duals (`patterns`), adds what is found to the master (`master`) and takes new duals,
smoothed towards those of the best bound (Wentges 1997).  The bound is Lagrange's:

    sum over pools of (least price of a pattern at duals p) - p x limits

which holds for any p >= 0 and for prices that are themselves lower bounds.  The master's own objective is no bound.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from berth_operator.planner.balancing import solve
from berth_operator.planner.choosing import begun, whole
from berth_operator.planner.effort import CLOSELY, SMALL, WIDELY, Effort
from berth_operator.planner.exact import exact_pattern
from berth_operator.planner.lanes import Floats, Ints, Lanes
from berth_operator.planner.master import Master
from berth_operator.planner.patterns import EXACT, cheapest
from berth_operator.planner.solver import ROUGH_NODES
from berth_operator.planner.stock import AROUND, UNITS, WHOLE, Stage, Stock

GUESS_UNITS: Final = 60
"""The same of guesses."""
FINE_AGAIN: Final = 2
"""Times that loose lanes are priced again, ever finer, in the last pricings, which give the bound."""
TOWARDS: Final = 0.7
"""Weight of the best bound's duals in those of the next last pricing: those of the master alone swing."""
FINE_ROUNDS: Final = 4
"""Last pricings at most, of which the best bound counts."""
WANTED: Final = 7e-3
"""Relative distance of plan and bound from which there are some more of them,"""
RIGHT_AT_LAST: Final = 5e-4
"""until it is low by so much."""
RIGHT: Final = 3e-3
"""Of the cost of all, by which the bound may be low because duals are not right, without another of them."""
SMOOTHING: Final = 0.5
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
KEPT: Final = 6
"""Columns of a pool that a second solve begins with: more make its master slow."""
WITHIN: Final = 1e-5
"""Of the cost of all, by which the flat program may be wrong about one pool."""
FEW: Final = 0.1
"""Share of lanes that may have changed since a proof, for it to be amended."""
_THREADS: Final = 2
"""That solve flat programs at once."""


@dataclass(slots=True)
class Outcome:
    """What a decomposition came to."""

    chosen: Ints
    """[pool] column."""
    cost: float
    """Of the chosen columns, shortage priced in."""
    bound: float
    duals: Floats
    short: bool
    """Whether nodes are too few for the linear master, too: then this proves nothing, which is left to stages."""


@dataclass(frozen=True, slots=True)
class _Proof:
    """Least prices of patterns, at some duals."""

    duals: Floats
    lanes: Floats
    """[lane] no pattern costs less."""
    most: Ints
    """[lane, option] nodes that these might have."""


class Decomposition(Stock):
    """Column generation over some lanes; columns and duals are kept, so that a second solve starts warm."""

    def __init__(self, lanes: Lanes, pools: int, unserved: Floats, missing: float, stage: Stage = WHOLE) -> None:
        super().__init__(lanes, pools, unserved, missing, stage)
        self.depth = CLOSELY if pools <= SMALL else WIDELY
        self.duals = np.zeros(len(self.caps))
        self.warm = False
        self.scarce = False
        """Whether nodes are too few for the linear master: then pools that lack a good pattern are many."""
        self.bounds = np.zeros(pools)
        """[pool] of the last pricing."""
        self._least = np.full(lanes.count, -np.inf)
        """[lane] likewise."""
        self._proof: _Proof | None = None
        """Of the same pools with other `most`, whose bounds hold where `most` is the same."""

    def staged(self, unserved: Floats, missing: float, stage: Stage) -> "Decomposition":
        """The same pools and columns, with other prices of shortage."""
        part = Decomposition(self.lanes, self.pools, unserved, missing, stage)
        part.columns, part.warm = self.columns, True
        part._least[:] = 0.0
        return part

    def restricted(self, most: Ints, caps: Floats | None = None) -> "Decomposition":
        """The same pools with `most` [lane, option] nodes (and `caps` [row]), and each one's best columns that keep
        to it."""
        return self.within(replace(self.lanes, most=most, caps=self.lanes.caps if caps is None else caps))

    def within(self, lanes: Lanes) -> "Decomposition":
        """The same pools and rows with other limits, and each pool's best columns that keep to them."""
        part = Decomposition(lanes, self.pools, self.unserved, self.missing, self.stage)
        part.duals, part.warm, part.scarce, part._proof = self.duals, self.warm, self.scarce, self._proof
        within = np.flatnonzero((self.columns.nodes <= lanes.most[self.columns.lane]).all(1))
        pool = self.columns.pool[within]
        order = np.lexsort((self.reduced(self.duals)[within], pool))
        rank = np.arange(len(order)) - np.searchsorted(pool[order], pool[order])
        part.columns.copy(self.columns, within[np.sort(order[rank < KEPT])])
        return part

    def learn(self, part: "Decomposition") -> None:
        """Take over what a restricted solve has found."""
        self.columns.copy(part.columns, np.arange(part.columns.count))
        self.duals, self.warm, self.scarce, self._proof = part.duals, True, part.scarce, part._proof

    def price(self, duals: Floats, *, finally_: bool = False) -> float:
        """Price all pools, add what is found, return Lagrange's bound; `finally_`: as tightly as can be."""
        return self._price(duals, self.active, finally_=finally_)

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
            self.worth(),  # the price of a few pools' shortage outweighs a fleet, and would hide what it lacks
        )
        self.add(found.lane, found.nodes)
        self._least[which] = -np.inf
        self._least[found.lane] = found.bound
        odd = which[self.lanes.odd[which]]
        if self.stage.dollars < 1.0:
            self._least[odd] = 0.0  # the flat program knows whole dollars only
        if self.stage.dollars == 1.0:
            self._exactly(odd, duals)
        # What costs more than the best known pattern need not have been looked for.
        self._least[which] = np.minimum(self._least[which], ceiling[self.lanes.pool[which]])
        if self.stage is WHOLE:  # the others are tightened once, after their last pricing
            self._tighten(duals, even, last=finally_)
        return self._bound(duals)

    def _bound(self, duals: Floats) -> float:
        """Lagrange's, from the lanes' least prices at `duals`."""
        self.bounds = self.ceilings(duals)
        np.minimum.at(self.bounds, self.lanes.pool, self._least)
        return float(self.bounds.sum() - duals @ self.caps)

    def guess(self, duals: Floats) -> None:
        """Add patterns that are likely good at `duals`: pricing, roughly."""
        which = self.active[~self.lanes.odd[self.active]]
        ceiling = AROUND * self.ceilings(duals)[self.lanes.pool[which]]
        found = cheapest(self.lanes, which, self.prices(duals), ceiling, GUESS_UNITS, again=0)
        self.add(found.lane, found.nodes)

    def _tighten(self, duals: Floats, which: Ints, *, last: bool) -> None:
        """Price lanes by the flat program: a few whose pool could be served far better, at `last` the loosest, too."""
        most = max(EXACT_LANES[0], self.pools // EXACT_LANES[1]) if last else 0
        ceiling = self.ceilings(duals)[self.lanes.pool[which]]
        gap = ceiling - self._least[which]
        order = np.argsort(-gap, kind="stable")
        worth = min(WORTH[0], WORTH[1] / self.pools) * self.worth()
        lost = gap > 0.01 * np.where((self.unserved[which] > 0) & (not self.scarce), self.unserved[which], np.inf)
        first = order[: max(most, LOST_LANES)]
        self._exactly(which[first[((np.arange(len(first)) < most) & (gap[first] > worth)) | lost[first]]], duals)

    def _exactly(self, which: Ints, duals: Floats) -> None:
        """Price the lanes `which` by the flat program, two at a time: HiGHS does not hold Python's lock."""
        if not len(which):
            return
        prices, ceiling, within = self.prices(duals), self.ceilings(duals)[self.lanes.pool], WITHIN * self.worth()

        def priced(lane: int) -> tuple[Ints, float] | None:
            branching = ROUGH_NODES if self.lanes.odd[lane] else EXACT_NODES
            return exact_pattern(self.lanes, lane, prices, float(ceiling[lane]), within, branching)

        with ThreadPoolExecutor(min(len(which), _THREADS)) as threads:
            for lane, result in zip(which, threads.map(priced, which.tolist()), strict=True):
                if result is not None:
                    nodes, least = result
                    self.add(lane[None], nodes[None, :])
                    self._least[lane] = max(self._least[lane], least)

    def run(self, effort: Effort = Effort.PROVE, *, shed: bool = False) -> Outcome:
        """Generate columns, choose whole ones.  `shed`: stages follow a shortage, which need no proof of this."""
        master = Master(self.pools, self.caps, self._first_most())
        master.begin(self.columns.pool, self.costs(), self.use(), self.duals)
        best, short = 0.0, False
        choosing: Callable[[], Ints] | None = None
        if self.stage is not WHOLE:
            self.duals = self._solved(master, self.duals)[1]
        changed = self._changed() if effort is Effort.PROVE else None
        if changed is not None:
            at = self._price_rounds(master, self.duals, self.depth.amending)
            best = self._amended(changed)
            self.feed(master)
        else:
            at = self._guess_rounds(master, WARM_GUESSES if self.warm else self.depth.guesses)
        if effort is Effort.COMPARE:
            self.price(at)
            self.feed(master)
        elif changed is None:
            few = self.warm and not len(self.stage.most)  # what is held has prices that nothing known is near
            rounds = self.depth.warm_rounds if few else self.depth.rounds[effort]
            at = self._price_rounds(master, at, rounds, shed=shed)
            short = shed and self.short(master.solve()[2])
            if self.stage.start is not None:  # in a stage, pools are taken out and put back beside the proof
                choosing = begun(self, self.stage.start, master.solve()[1])
            if effort is Effort.PROVE and not short:
                best, at = self._proven(master, at)
        if self.stage is WHOLE:
            master.raise_most(1e6)
        if effort is Effort.SEARCH:
            at = self.duals = master.solve()[1]
        chosen = choosing() if choosing else whole(self, master, Effort.COMPARE if short else effort)
        far = self.stage is WHOLE and self.costs()[chosen].sum() > best * (1 + WANTED)  # in a stage it is the choice
        if effort is Effort.PROVE and best > 0.0 and far:
            _, duals, _ = self._solved(master, at)
            best, at = self._proven(master, TOWARDS * at + (1 - TOWARDS) * duals, best, RIGHT_AT_LAST)
        return Outcome(chosen, float(self.costs()[chosen].sum()), best, at, short)

    def _proven(self, master: Master, at: Floats, best: float = -np.inf, right: float = RIGHT) -> tuple[float, Floats]:
        """The best bound that some last pricings give, and its duals; `best`: the bound at those of now."""
        least = self._least.copy()
        for turn in range(FINE_ROUNDS):
            bound = self.price(at, finally_=True)
            unpriced = float((self.ceilings(at) - self.bounds).sum())
            if bound > best:
                best, self.duals, least = bound, at, self._least.copy()
            if self.stage is not WHOLE and turn == FINE_ROUNDS - 1:  # nobody asks this master again
                break
            self.feed(master)
            objective, at, _ = self._solved(master, at)
            at = TOWARDS * self.duals + (1 - TOWARDS) * at
            if objective - bound - unpriced <= right * self.worth():
                break
        self._least = least
        if self.stage is not WHOLE:
            self._tighten(self.duals, self.active[~self.lanes.odd[self.active]], last=True)
        self._proof = _Proof(self.duals, self._least, self.lanes.most)
        return self._bound(self.duals), self.duals

    def bound_with(self, most: Ints) -> float:
        """The bound of the same pools with other `most` [lane, option] nodes, at the duals of the last proof."""
        part = self.restricted(most)
        assert part._proof is not None  # noqa: S101 - for the type checker
        return part._amended(part.active[(most != part._proof.most).any(1)[part.active]])

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

    def _guess_rounds(self, master: Master, rounds: int) -> Floats:
        """Add likely patterns, at duals that follow the master's halfway; returns the last duals."""
        at = self.duals
        for _ in range(rounds):
            self.guess(at)
            new = self.feed(master)
            _, duals, bought = self._solved(master, at)
            if bought > BOUGHT:
                master.raise_most(2.0)
            if not new and np.allclose(at, duals):
                break
            at = (at + duals) / 2 if new else duals
        return at

    def _price_rounds(self, master: Master, at: Floats, rounds: int, *, shed: bool = False) -> Floats:
        """Price and add; returns the master's duals at the end.  `shed`: whether a shortage has stages to follow."""
        for _ in range(rounds):
            self.price(at)
            new = self.feed(master)
            _, duals, bought = self._solved(master, at)
            while bought > BOUGHT:
                master.raise_most(MORE)
                _, duals, bought = self._solved(master, duals)
            self.scarce = shed and self.short(master.solve()[2])
            if not new and np.allclose(at, duals):
                break
            at = SMOOTHING * at + (1 - SMOOTHING) * duals if new else duals
        master.raise_most(1e3)
        return self._solved(master, at)[1]

    def _first_most(self) -> Floats:
        """[row] what duals start below."""
        most = np.zeros(len(self.lanes.rows) + 1)
        np.maximum.at(most, self.lanes.row, self.lanes.price / self.lanes.weight)
        held = np.full(len(self.stage.most), max(float(self.unserved.max(initial=0.0)), self.worth()))
        return np.maximum(np.append(most[:-1], held) * FIRST_MOST, 1e-3)

    def _solved(self, master: Master, near: Floats) -> tuple[float, Floats, float]:
        """`balancing.solve` of a master with all columns."""
        if self.stage.worth is not None:
            worth = np.full(self.pools, self.stage.worth / self.pools)
        else:
            worth = self.columns.cheapest_serving(self.pools)
        return solve(master, self.columns.pool, self.costs(), self.use(), near, worth)
