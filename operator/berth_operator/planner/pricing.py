"""Which pattern of a pool is cheapest when the shared nodes have a price?  A dynamic program over quantised capacity.

The demand is cut into D units, D a hair above a whole number Q - 1.  With c_k the price of a node of option k (its own
and the shared rows' duals) and C_k(j) the units that j nodes of it carry, rounded *up*, spot at most a class's share
each:

    F(w) = least cost of steady nodes that carry w units,   G(t) = the same of spot nodes
    z    = min over t <= spot share of F(Q - t) + G(t)

What carries all of the demand carries Q whole units, since D units rounded up are Q; rounding up can only make covering
easier: z is a lower bound of the pool's true price (what makes the Lagrangian bound valid), and where the pattern
found serves all in exact arithmetic it is the price itself.  A pattern of one class is exact so, and m classes are
wrong by less than m - 1 units.  minReplicas and the floor beside spot are a second coordinate, replicas still wanted.
A vendor's share is a bound of its own: with A the options of one vendor and B the others, z >= min over y <= vendor
share of H_A(y) + H_B(Q - y), H = F and G together.

All lanes go through together, with the options that can matter (`useful`).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from berth_operator.planner.covering import LONG, Cover, Nodes
from berth_operator.planner.lanes import Flags, Floats, Ints, Lanes, served_by
from berth_operator.planner.native import FLOATS, LENGTH, function
from berth_operator.planner.useful import useful_nodes, uses_spot

CHUNK: Final = 20_000
"""Entries of the tables of lanes that go through at once: they stay in the processor's cache, and memory is bounded."""
LANES_AT_ONCE: Final = 2048
"""Lanes whose options are looked at together, for memory."""
LEAST: Final = 0.02
"""An unserved share, however small, weighs as much as this: no sliver is traded for a node's price."""
TOLERANCE: Final = 1e-6
"""Shares below this are nothing."""
_EDGE: Final = 5e-5
"""By which D is above a whole number, relative: far above `TOLERANCE`, far below a unit."""
_NOT_ALL: Final = 0.95
"""Spot shares up to which a rest is sure to be far above tolerances."""
_MOST_WANTED: Final = 4
"""Replicas that the second coordinate counts; of a greater floor the bound does not know the rest."""
_HUGE: Final = 1e30

_min_plus: Final = function("berth_min_plus", FLOATS, FLOATS, LENGTH, LENGTH, LENGTH, FLOATS)


@dataclass(frozen=True, slots=True)
class Priced:
    """The cheapest patterns found, by lane."""

    bound: Floats
    """[lane] no pattern costs less, unless it is dearer than the ceiling."""
    nodes: Ints
    """[lane, option] of the pattern that attains it in quantised arithmetic, where one is below the ceiling."""
    below: Flags
    """[lane] whether one is."""


def price(
    lanes: Lanes,
    which: Ints,
    node_price: Floats,
    penalty: Floats,
    missing_price: float,
    ceiling: Floats,
    units: int,
    lacking: float = LEAST,
) -> Priced:
    """Price the lanes `which` at `node_price` [which, option] and `penalty` [which] USD/h for leaving all unserved.

    `ceiling` [which]: a pattern that costs more than this (infinite: unknown) need not be found.  `units`: Q - 1.
    `lacking`: what any unserved share weighs as much as.
    """
    bound, nodes = np.zeros(len(which)), np.zeros(node_price.shape, dtype=np.int64)
    below = np.zeros(len(which), dtype=np.bool_)
    times = np.zeros(node_price.shape, dtype=np.int64)
    for start in range(0, len(which), LANES_AT_ONCE):
        some = slice(start, start + LANES_AT_ONCE)
        times[some] = useful_nodes(lanes, which[some], node_price[some], penalty[some], ceiling[some])
    wanted = _wanted(lanes, which, times)
    for least, most in ((0, 0), (1, 2), (3, _MOST_WANTED)):
        group = np.flatnonzero((wanted >= least) & (wanted <= most))
        size = max(8, CHUNK // (units * (int(wanted[group].max(initial=0)) + 1)))
        for start in range(0, len(group), size):
            at = group[start : start + size]
            level = int(wanted[at].max())
            tables = _Tables(
                lanes, which[at], node_price[at], penalty[at], missing_price, times[at], units, level, lacking
            )
            bound[at], nodes[at], below[at] = tables.solve(ceiling[at])
            shared = np.flatnonzero(below[at] & (lanes.vendor_share[which[at]] < 1))
            if len(shared):
                _with_vendors(tables, shared, at, bound, nodes)
                below[at] = _below(bound[at], ceiling[at])
    return Priced(bound, nodes, below)


def _wanted(lanes: Lanes, which: Ints, times: Ints) -> Ints:
    """[which] replicas that the second coordinate counts: none where what carries the demand is as many anyway."""
    replica = np.where(times > 0, np.minimum(lanes.share[which], 1.0) / lanes.per_node[which], 0.0)
    steady = np.where(lanes.spot[which], 0.0, replica).max(1)
    floor = np.where(uses_spot(lanes, which), lanes.floor[which], 0)
    floor = np.where((floor - 1) * steady < 1 - lanes.spot_share[which] - 1e-9, 0, floor)
    least = np.where((lanes.least[which] - 1) * replica.max(1) < 1 - 1e-9, 0, lanes.least[which])
    return np.minimum(np.maximum(least, floor), _MOST_WANTED)


def _with_vendors(tables: "_Tables", shared: Ints, at: Ints, bound: Floats, nodes: Ints) -> None:
    """Where a vendor carries more than its share, the bound and pattern that know of vendors' shares."""
    lane = tables.lane[shared]
    over = shared[served_by(tables.lanes, lane, nodes[at[shared]]).unserved > TOLERANCE]
    if len(over):
        better, found = tables.subset(over).solve_by_vendor()
        bound[at[over]] = np.maximum(bound[at[over]], better)
        nodes[at[over]] = found


class _Tables:
    """F and G of a chunk of lanes."""

    def __init__(
        self,
        lanes: Lanes,
        lane: Ints,
        node_price: Floats,
        penalty: Floats,
        missing_price: float,
        times: Ints,
        units: int,
        wanted: int,
        lacking: float,
    ) -> None:
        self.lanes, self.lane, self.node_price, self.penalty = lanes, lane, node_price, penalty
        self.missing_price, self.times, self.units, self.wanted = missing_price, times, units, wanted
        self.lacking = lacking
        self.need = units + 1
        self.exactly = units * (1 + _EDGE)
        """D: Q is `need`."""
        self.spot = lanes.spot[lane]
        cap = np.where(self.spot, self._units_of_a_spot_class(lanes.most_lost(lane)), np.inf)
        by_count = self._units_by_count(cap) if lanes.spread_out else None
        self.nodes = Nodes(lanes.share[lane] * self.exactly, cap, node_price, lanes.per_node[lane], times, by_count)

    def _units_by_count(self, cap: Floats) -> Floats:
        """[lane, option, nodes] units that so many nodes may carry at the most: `cap` where there may be more of them
        than one bundle counts, or where they lie in one zone."""
        lanes, lane = self.lanes, self.lane
        kind, nodes = lanes.spread[lane], np.minimum(np.arange(LONG + 1), lanes.spreads.shape[1] - 1)
        by_count = np.repeat(cap[:, :, None], LONG + 1, 2)
        at, option = np.nonzero((kind > 0) & (self.times <= LONG) & (self.times > 0))
        alone = lanes.loss_share[lane[at]][:, None] * lanes.spreads[kind[at, option]][:, nodes]
        by_count[at, option] = self._units_of_a_spot_class(alone, at)
        return by_count

    def _units_of_a_spot_class(self, alone: Floats, rows: Ints | None = None) -> Floats:
        """Units of shares `alone` [lane, any] of the traffic, of the chunk's lanes or of `rows` of them.

        Shares a of which D is a hair above a whole number of units are that number: n classes full to their share lose
        n a of the hair between D and Q - 1, and what carries the rest makes a unit of what is left of it, as long as
        there is a rest.
        """
        spot_share = self.lanes.spot_share[self.lane if rows is None else self.lane[rows]][:, None]
        share = np.minimum(alone, spot_share)
        whole = np.rint(share * self.units)
        even = (np.abs(share * self.units - whole) < 1e-9) & (spot_share <= _NOT_ALL)
        return np.where(even, whole, share * self.exactly)

    def subset(self, rows: Ints) -> "_Tables":
        """The same of some of the lanes, without replicas wanted."""
        mine = self.lane[rows], self.node_price[rows], self.penalty[rows], self.missing_price, self.times[rows]
        return _Tables(self.lanes, *mine, self.units, 0, self.lacking)

    def _unserved(self) -> Floats:
        """[lane, unit] price of units that nothing carries.

        Of v units missing, all but a hair of one may be rounding, and yet something is missing.
        """
        short = np.maximum(np.arange(self.need + 1) - 1, 0) / self.exactly
        short = np.maximum(short, self.lacking)
        short[0] = 0.0
        return self.penalty[:, None] * short[None, :]

    def _steady_start(self) -> Floats:
        levels = np.arange(self.wanted + 1) * self.missing_price
        return self._unserved()[:, None, :] + levels[None, :, None]

    def _spot_start(self, width: int) -> Floats:
        start = np.full((len(self.lane), self.wanted + 1, width), _HUGE)
        start[:, 0, 0] = 0.0
        return start

    def _spot_units(self) -> Ints:
        """[lane] units that spot may carry; the rest, rounded up, is for steady nodes."""
        share = self.lanes.spot_share[self.lane]
        most = np.minimum(np.ceil(share * self.exactly - 1e-7), self.need)
        rest = np.ceil((1 - share - 2 * TOLERANCE) * self.exactly - 1e-7)
        spot: Ints = np.minimum(most, self.need - np.maximum(rest, 0)).astype(np.int64)
        return spot

    def solve(self, ceiling: Floats) -> tuple[Floats, Ints, Flags]:
        """Bound and pattern of each lane, vendor shares left aside, and whether it is below the ceiling."""
        q, count = self.need, len(self.lane)
        steady, spot = Cover(self._steady_start(), self.nodes, ~self.spot), None
        rows = np.arange(count)
        least = np.minimum(self.lanes.least[self.lane], self.wanted)
        floor = np.minimum(self.lanes.floor[self.lane], self.wanted)
        f = steady.costs
        best = f[rows, least, q]
        t, c = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        if (self.times[self.spot] > 0).any():
            spot_units = self._spot_units()
            widest = int(spot_units.max(initial=0))
            allowed = np.arange(widest + 1)[None, :] <= spot_units[:, None]
            spot = Cover(self._spot_start(widest + 1), self.nodes, self.spot)
            for level in range(self.wanted + 1):
                g = spot.costs[:, level, :]
                value = f[rows, np.maximum(floor, least - level)][:, q - widest :][:, ::-1] + g
                value = np.where(allowed, value, _HUGE)
                value[:, 0] = f[rows, np.maximum(least - level, 0), q] + g[:, 0]
                at = np.argmin(value, 1)
                better = value[rows, at] < best
                best = np.where(better, value[rows, at], best)
                t, c = np.where(better, at, t), np.where(better, level, c)
        below = _below(best, ceiling)
        nodes = np.zeros(self.times.shape, dtype=np.int64)
        want = np.maximum(np.where(t > 0, floor, 0), least - c)
        # What is rounded up to Q units lacks a hair of one: it is left to the steady nodes.
        for cover, chosen, counted, unit, exactly in (
            (steady, below, want, q - t, q - t - 1),
            (spot, below & ((t > 0) | (c > 0)), c, t, t),
        ):
            traced = np.flatnonzero(chosen)
            if cover is not None and len(traced):
                part = np.zeros_like(nodes[traced])
                cover.trace(traced, counted[traced], unit[traced], part, exactly[traced].astype(np.float64))
                nodes[traced] += part
        return best, nodes, below

    def solve_by_vendor(self) -> tuple[Floats, Ints]:
        """Bound and pattern of each lane with every vendor within its share.

        Vendor by vendor, E_v(y) = min over x <= vendor share of E_(v-1)(y - x) + H_v(x).  The spot share holds within
        each vendor only, and replicas wanted are left aside: `solve` knows of those.
        """
        q, count = self.need, len(self.lane)
        vendor = self.lanes.vendor[self.lane]
        most = np.minimum(np.ceil(self.lanes.vendor_share[self.lane] * self.exactly - 1e-7), q).astype(np.int64)
        spot_units = self._spot_units()
        width = int(most.max(initial=0))
        widest = min(int(spot_units.max(initial=0)), width)
        vendors = np.unique(vendor[self.times > 0])
        if not len(vendors):
            return self._unserved()[:, q], np.zeros(self.times.shape, dtype=np.int64)
        # Every vendor of every lane is a lane of its own, one vendor after the other.
        of = np.tile(np.arange(count), len(vendors))
        mine = vendor[of] == np.repeat(vendors, count)[:, None]
        nodes = self.nodes.at(of, np.where(mine, self.times[of], 0))
        nothing = np.full((len(of), 1, width + 1), _HUGE)
        nothing[:, 0, 0] = 0.0
        on_steady = Cover(nothing, nodes, mine & ~self.spot[of])
        on_spot = Cover(nothing[:, :, : widest + 1], nodes, mine & self.spot[of])
        steady = on_steady.costs[:, 0]
        spot = np.where(np.arange(widest + 1)[None, :] <= spot_units[of, None], on_spot.costs[:, 0], _HUGE)
        h = _together(steady, spot) if on_spot else steady.copy()
        h[np.arange(width + 1)[None, :] > most[of, None]] = _HUGE
        reached = [self._unserved()]
        for v in range(len(vendors)):
            reached.append(_together(reached[-1], h[v * count : (v + 1) * count]))
        taken, y = np.zeros(len(of), dtype=np.int64), np.full(count, q, dtype=np.int64)
        for v in reversed(range(len(vendors))):
            part = slice(v * count, (v + 1) * count)
            taken[part] = _split(reached[v], h[part], y)
            y = y - taken[part]
        apart = _split(steady, spot, taken)
        found = np.zeros(nodes.times.shape, dtype=np.int64)
        rows, zero = np.arange(len(of)), np.zeros(len(of), dtype=np.int64)
        on_steady.trace(rows, zero, taken - apart, found, (taken - apart).astype(np.float64))
        on_spot.trace(rows, zero, apart, found, apart.astype(np.float64))
        return reached[-1][:, q], found.reshape(len(vendors), *self.times.shape).sum(0)


def _together(left: Floats, right: Floats) -> Floats:
    """[lane, y] least left(y - x) + right(x) over x."""
    found = np.empty_like(left, order="C")
    left, right = np.ascontiguousarray(left), np.ascontiguousarray(right)
    _min_plus(left, right, len(left), left.shape[1], right.shape[1], found)
    return found


def _below(cost: Floats, ceiling: Floats) -> Flags:
    """Whether by more than the order of a sum can do."""
    flags: Flags = cost < ceiling * (1 - 1e-9)
    return flags


def _split(left: Floats, right: Floats, total: Ints) -> Ints:
    """[lane] x that attains the least left(total - x) + right(x)."""
    x = np.arange(right.shape[1])[None, :]
    rest = total[:, None] - x
    value = np.take_along_axis(left, np.clip(rest, 0, left.shape[1] - 1), 1) + right
    found: Ints = np.argmin(np.where((rest >= 0) & (rest < left.shape[1]), value, 4 * _HUGE), 1)
    return found
