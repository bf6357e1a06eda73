"""How are thousands of pools planned together?  Dantzig-Wolfe: patterns of whole pools, priced by the rows they share.

Each round prices every pool at the duals (`patterns`), adds what is found to the master (`master`) and takes new duals,
smoothed towards those of the best bound (Wentges 1997).  The bound is Lagrange's:

    sum over pools of (least price of a pattern at duals p) - p x limits

which holds for any p >= 0 and for prices that are themselves lower bounds.  The master's own objective is no bound.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from berth_operator.planner.balancing import solve
from berth_operator.planner.effort import ANSWERS, CLOSELY, SMALL, WIDELY, Effort
from berth_operator.planner.exact import exact_pattern
from berth_operator.planner.lanes import Flags, Floats, Ints, Lanes, served_by
from berth_operator.planner.master import BRANCHING, ROOT, Columns, Master, divided, paid, total_use, whole_choice
from berth_operator.planner.patterns import EXACT, Prices, cheapest, counted
from berth_operator.planner.pricing import LEAST
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
STAGE_CLOSE: Final = 2e-4
"""The same of whole choices in a stage."""
FIRST_MOST: Final = 3.0
"""Times its price that a node's dual may be at first."""
WARM_GUESSES: Final = 2
"""Rounds of guesses where columns and duals of an earlier solve are there; pricing is then left to the end."""
BOUGHT: Final = 1e-6
"""Nodes beyond the limits that a master may take and still be called within them."""
HEAVY: Final = 100.0
"""Times what a stage weighs that what it holds weighs while whole choices are mended."""
SHORT: Final = 1e-5
"""Shares of demand that count as a shortage."""
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
FEWER: Final = 4
"""The same in a stage."""
REPAIRS: Final = (0, 4)
"""Answers of pools after which a stage looks for whole choices so, however far it is."""
WIDENED: Final = (0.5, 0.7, 0.85, 1.0, 1.2, 1.6, 2.2, 3.0, 6.0)
"""Times the duals at which pools that a repair may change are priced beforehand."""
AROUND: Final = 1.1
"""Times the best known pattern that one of those may cost."""
WITHIN_ROWS: Final = 1e-7
"""By which a whole choice may take more of a row, of nodes or of shares."""
STARTS: Final = (0.8, 1.0, 1.25)
"""Times the duals at which every pool's cheapest pattern is where a whole choice may start from."""


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


WHOLE: Final = Stage()
"""The only one."""


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
        self.depth = CLOSELY if pools <= SMALL else WIDELY
        self.duals = np.zeros(len(self.caps))
        self.warm = False
        self.bounds = np.zeros(pools)
        """[pool] of the last pricing."""
        self._least = np.full(lanes.count, -np.inf)
        """[lane] likewise."""
        self._proof: _Proof | None = None
        """Of the same pools with other `most`, whose bounds hold where `most` is the same."""
        self._add_nothing()
        self._add_floors()

    def staged(self, unserved: Floats, missing: float, stage: Stage) -> "Decomposition":
        """The same pools and columns, with other prices of shortage."""
        part = Decomposition(self.lanes, self.pools, unserved, missing, stage)
        part.columns, part.warm = self.columns, True
        part._least[:] = 0.0
        return part

    def restricted(self, most: Ints, caps: Floats | None = None) -> "Decomposition":
        """The same pools with `most` [lane, option] nodes (and `caps` [row]), and each one's best columns that keep
        to it."""
        lanes = replace(self.lanes, most=most, caps=self.lanes.caps if caps is None else caps)
        part = Decomposition(lanes, self.pools, self.unserved, self.missing)
        part.duals, part.warm, part._proof = self.duals, self.warm, self._proof
        within = np.flatnonzero((self.columns.nodes <= most[self.columns.lane]).all(1))
        pool = self.columns.pool[within]
        order = np.lexsort((self.reduced(self.duals)[within], pool))
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

    # --- Search -----------------------------------------------------------------------------------------------------

    def prices(self, duals: Floats) -> Prices:
        """Node prices with the duals of the rows they take."""
        rows, stage = len(self.lanes.rows), self.stage
        shared = np.append(duals[:rows], 0.0)[self.lanes.row] * self.lanes.weight
        held, missing = np.split(duals[rows:], [len(stage.held)])
        unserved = self.unserved + (held @ stage.held)[self.lanes.pool] if len(held) else self.unserved
        node = stage.dollars * self.lanes.price + shared
        return Prices(node, unserved, self.missing + float(missing.sum()), stage.least)

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
            self._worth(),  # the price of a few pools' shortage outweighs a fleet, and would hide what it lacks
        )
        self.add(found.lane, found.nodes)
        self._least[which] = -np.inf
        self._least[found.lane] = found.bound
        odd = which[self.lanes.odd[which]]
        if self.stage.dollars < 1.0:
            self._least[odd] = 0.0  # the flat program knows whole dollars only
        for lane in odd.tolist() if self.stage.dollars == 1.0 else []:
            self._exactly(lane, duals, float(ceiling[self.lanes.pool[lane]]))
        # What costs more than the best known pattern need not have been looked for.
        self._least[which] = np.minimum(self._least[which], ceiling[self.lanes.pool[which]])
        self._tighten(duals, even, max(EXACT_LANES[0], self.pools // EXACT_LANES[1]) if finally_ else 0)
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

    def _tighten(self, duals: Floats, which: Ints, most: int) -> None:
        """Price the `most` loosest of lanes by the flat program, and a few whose pool could be served far better."""
        ceiling = self.ceilings(duals)[self.lanes.pool[which]]
        gap = ceiling - self._least[which]
        order = np.argsort(-gap, kind="stable")
        worth = min(WORTH[0], WORTH[1] / self.pools) * self._worth()
        lost = gap > 0.01 * np.where(self.unserved[which] > 0, self.unserved[which], np.inf)
        for place, i in enumerate(order[: max(most, LOST_LANES)]):
            if (place < most and gap[i] > worth) or lost[i]:
                lane = int(which[i])
                self._exactly(lane, duals, float(self.ceilings(duals)[self.lanes.pool[lane]]))

    def _exactly(self, lane: int, duals: Floats, ceiling: float) -> None:
        branching = ROUGH_NODES if self.lanes.odd[lane] else EXACT_NODES
        result = exact_pattern(self.lanes, lane, self.prices(duals), ceiling, WITHIN * self._worth(), branching)
        if result is not None:
            nodes, least = result
            self.add(np.array([lane]), nodes[None, :])
            self._least[lane] = max(self._least[lane], least)

    def _worth(self) -> float:
        """What tolerances are parts of: USD/h of the pools that can be served in full, roughly, without shortage and
        duals."""
        if self.stage.worth is not None:
            return self.stage.worth
        best = self.columns.cheapest_serving(self.pools)
        return float(best[np.isfinite(best)].sum())

    def run(self, effort: Effort = Effort.PROVE, *, shed: bool = False) -> Outcome:
        """Generate columns, choose whole ones.  `shed`: stages follow a shortage, which need no proof of this."""
        master = Master(self.pools, self.caps, self._first_most())
        known = self.columns.count
        master.begin(self.columns.pool, self.costs(), self.use(), self.duals)
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
            if effort is Effort.PROVE and not (shed and self._short(master.solve()[2])):
                best, at = self._proven(master, at)
        if self.stage is WHOLE:
            master.raise_most(1e6)
        if effort is Effort.SEARCH:
            at = self.duals = master.solve()[1]
        chosen = self._whole(master, effort)
        return Outcome(chosen, float(self.costs()[chosen].sum()), best, at, rounds)

    def _short(self, weight: Floats) -> bool:
        """Whether nodes are too few: columns of this weight in the master serve less than pools could by themselves."""
        least = np.full(self.pools, np.inf)
        np.minimum.at(least, self.columns.pool, self.columns.unserved)
        return float(weight @ self.columns.unserved - least.sum()) > SHORT

    def _proven(self, master: Master, at: Floats) -> tuple[float, Floats]:
        """The best bound that some last pricings give, and its duals."""
        best, least = -np.inf, self._least
        for _ in range(FINE_ROUNDS):
            bound = self.price(at, finally_=True)
            self._feed(master, master.columns)
            unpriced = float((self.ceilings(at) - self.bounds).sum())
            if bound > best:
                best, self.duals, least = bound, at, self._least.copy()
            objective, at, _ = self._solved(master, at)
            at = TOWARDS * self.duals + (1 - TOWARDS) * at
            if objective - bound - unpriced <= RIGHT * self._worth():
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
            _, duals, bought = self._solved(master, at)
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
            _, duals, bought = self._solved(master, at)
            while bought > BOUGHT:
                master.raise_most(MORE)
                _, duals, bought = self._solved(master, duals)
            if known == before and np.allclose(at, duals):
                break
            at = duals if known == before else SMOOTHING * at + (1 - SMOOTHING) * duals
        master.raise_most(1e3)
        return self._solved(master, at)[1]

    def _feed(self, master: Master, known: int) -> int:
        new = slice(known, self.columns.count)
        if self.columns.count > known:
            master.add(self.columns.pool[new], self.costs()[new], self.use()[new])
        return self.columns.count

    def _first_most(self) -> Floats:
        """[row] what duals start below."""
        most = np.zeros(len(self.lanes.rows) + 1)
        np.maximum.at(most, self.lanes.row, self.lanes.price / self.lanes.weight)
        held = np.full(len(self.stage.most), max(float(self.unserved.max(initial=0.0)), self._worth()))
        return np.maximum(np.append(most[:-1], held) * FIRST_MOST, 1e-3)

    def _solved(self, master: Master, near: Floats) -> tuple[float, Floats, float]:
        """`balancing.solve` of a master with all columns."""
        if self.stage.worth is not None:
            worth = np.full(self.pools, self.stage.worth / self.pools)
        else:
            worth = self.columns.cheapest_serving(self.pools)
        return solve(master, self.columns.pool, self.costs(), self.use(), near, worth)

    def _whole(self, master: Master, effort: Effort) -> Ints:
        """One column a pool, within all rows.

        What a dive in the master comes to is mended (`rounding`).  Then the pools that are farthest from what they
        would have at the duals answer the others: the best that each could do with what these leave becomes a column
        as well.
        """
        target, duals, weight, _ = master.solve()
        heaviest, open_ = divided(self.columns.pool, weight, self.pools)
        start = self.stage.start
        if not open_.any():
            return heaviest if start is None else min(start, heaviest, key=self._total)
        if effort is Effort.PROVE:
            self._widen(self._farthest(heaviest, open_, duals, REPAIRED), duals)
            self._feed(master, master.columns)
            target, duals, weight, _ = master.solve()
            heaviest, open_ = divided(self.columns.pool, weight, self.pools)
        short = self._short(weight)
        dived, _ = divided(self.columns.pool, master.dive(self.columns.pool, weight, self.costs()), self.pools)
        chosen = self._settled(dived, duals, target)
        others = [] if effort is Effort.COMPARE else [self._cheapest(factor * duals) for factor in STARTS]
        if start is not None:
            chosen = min(start, chosen, key=self._total)
            others.append(start)
        for other in [heaviest, *others]:
            if self._close(chosen, target):
                break
            chosen = min(chosen, self._settled(other, duals, target), key=self._total)
        for turn in range(1 + ANSWERS[effort]):
            if self.stage is not WHOLE and turn in REPAIRS and not self._close(chosen, target):
                chosen = self._repaired(chosen, self._farthest(chosen, open_, duals, REPAIRED), duals, FEWER, ROOT)
            if self._close(chosen, target) or turn == ANSWERS[effort]:
                break
            if not self._answer(chosen, self._farthest(chosen, open_, duals), duals):
                break
            chosen = min(chosen, self._settled(chosen, duals, target), key=self._total)
        if effort is not Effort.COMPARE and not short and self._total(chosen) > target * (1 + FAR):
            chosen = self._repaired(chosen, self._farthest(chosen, open_, duals, REPAIRED), duals, NEAR)
        return chosen

    def _total(self, chosen: Ints) -> float:
        """Of a choice; infinite where it takes too much."""
        fits = (total_use(self.use(), chosen) <= self.caps + WITHIN_ROWS).all()
        return float(self.costs()[chosen].sum()) if fits else np.inf

    def _repaired(
        self, chosen: Ints, open_: Flags, duals: Floats, most: int, how: Mapping[str, Any] = BRANCHING
    ) -> Ints:
        """The best that some pools could choose together of their `most` best columns: a small integer program."""
        reduced, use, pool = self.reduced(duals), self.use(), self.columns.pool
        order = np.lexsort((reduced, pool))
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order)) - np.searchsorted(pool[order], pool[order])
        wanted = rank < most
        wanted[chosen] = True
        columns = np.flatnonzero(open_[pool] & wanted)
        left = self.caps - use[chosen[~open_]].sum(0)
        start = np.flatnonzero(np.isin(columns, chosen))
        picked = whole_choice(pool[columns], self.costs()[columns], use[columns], left, start, how)
        other = chosen.copy()
        if picked is not None:
            other[pool[columns[picked]]] = columns[picked]
        return min(chosen, other, key=self._total)

    def _close(self, chosen: Ints, target: float) -> bool:
        close = CLOSE if self.stage is WHOLE else STAGE_CLOSE
        return self._total(chosen) <= target * (1 + close)

    def _settled(self, chosen: Ints, duals: Floats, target: float) -> Ints:
        """Whole columns within all rows: pools have given way, made room, and exchanged patterns by ones and twos."""
        patterns, worth = self._patterns(duals), duals[: len(self.lanes.rows)]
        chosen = make_room(patterns, relieved(patterns, chosen, worth), worth)
        gain = float(patterns.cost[chosen].sum()) - target
        return exchange(patterns, chosen, gain)

    def _cheapest(self, duals: Floats) -> Ints:
        """[pool] the column that is cheapest at `duals`."""
        order = np.lexsort((self.reduced(duals), self.columns.pool))
        found: Ints = order[np.searchsorted(self.columns.pool[order], np.arange(self.pools))]
        return found

    def _patterns(self, duals: Floats) -> Patterns:
        """Of nodes alone: what is held has a price, as pools that have to make room may go short of it on the way."""
        cost = self.costs()
        if len(self.stage.most):
            dear = HEAVY * max(float(self.unserved.max(initial=0.0)), self._worth())
            cost = cost + dear * self.use()[:, len(self.lanes.rows) :].sum(1)
        return Patterns(self.columns.pool, cost, self.reduced(duals), self.columns.use, self.lanes.caps)

    def _farthest(self, chosen: Ints, open_: Flags, duals: Floats, least: int = ANSWERING) -> Flags:
        """Pools that are divided, and at least `least` whose pattern is farthest from their best."""
        excess = self.reduced(duals)[chosen] - self.ceilings(duals)
        some = open_.copy()
        some[np.argsort(-np.where(open_, -np.inf, excess), kind="stable")[: max(least, int(open_.sum()))]] = True
        return some

    def _widen(self, open_: Flags, duals: Floats) -> None:
        """Add what some pools would take were shared nodes cheaper or dearer: whole choices need such patterns."""
        which = self._plain(open_)
        for factor in WIDENED:
            at = self._times(factor, duals)
            ceiling = AROUND * self.ceilings(at)[self.lanes.pool[which]]
            found = cheapest(self.lanes, which, self.prices(at), ceiling, UNITS, again=0)
            self.add(found.lane, found.nodes)

    def _plain(self, open_: Flags) -> Ints:
        """Lanes of some pools that have a say and are priced by the dynamic program."""
        found: Ints = self.active[(open_[self.lanes.pool] & ~self.lanes.odd)[self.active]]
        return found

    def _times(self, factor: float, duals: Floats) -> Floats:
        """Duals with those of nodes multiplied."""
        return np.append(factor * duals[: len(self.lanes.rows)], duals[len(self.lanes.rows) :])

    def _answer(self, chosen: Ints, open_: Flags, duals: Floats) -> bool:
        """Add each open pool's best patterns within the nodes that the others leave; whether any is new."""
        before, columns = self.columns.count, self.columns
        left = np.append(self.lanes.caps - total_use(columns.use, chosen), 0.0)
        which = self._plain(open_)
        own = np.zeros((self.pools, len(left)))
        own[:, :-1] = columns.use[chosen]
        room = (left[None, :] + own)[self.lanes.pool[which]]
        limited = np.take_along_axis(room, self.lanes.row[which], 1) // self.lanes.weight[which]
        most = self.lanes.most.copy()
        free = self.lanes.row[which] == len(self.lanes.rows)
        most[which] = np.where(free, most[which], np.minimum(most[which], limited)).astype(np.int64)
        within = replace(self.lanes, most=most)
        for part in (0.0, 0.5):
            at = self._times(part, duals)
            ceiling = self.reduced(at)[chosen][self.lanes.pool[which]]
            found = cheapest(within, which, self.prices(at), ceiling, ANSWER_UNITS, 10 * EXACT)
            self.add(found.lane, found.nodes)
        return self.columns.count > before
