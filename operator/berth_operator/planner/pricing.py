"""Which pattern of a pool is cheapest when the shared nodes have a price?  A dynamic program over quantised capacity.

The demand is cut into Q units.  With c_k the price of a node of option k (its own and the shared rows' duals) and
C_k(j) the units that j nodes of it carry, rounded *up*, spot at most a class's share each:

    F(w) = least cost of steady nodes that carry w units,   G(t) = the same of spot nodes
    z    = min over t <= spot share of F(Q - t) + G(t)

Rounding up can only make covering easier, so z is a lower bound of the pool's true price (what makes the Lagrangian
bound valid), and where the pattern found serves all in exact arithmetic it is the price itself.  minReplicas and the
floor beside spot are a second coordinate, replicas still wanted.  A vendor's share is a bound of its own: with A the
options of one vendor and B the others, z >= min over y <= vendor share of H_A(y) + H_B(Q - y), H = F and G together.

All lanes go through together.  Options are left out by their reduced cost in the linear relaxation: j nodes of k cannot
be part of a pattern that costs less than `ceiling` if the relaxation with them costs more.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from berth_operator.planner.lanes import Flags, Floats, Ints, Lanes, served_by

CHUNK: Final = 48_000
"""Entries of the tables of lanes that go through at once: they stay in the processor's cache, and memory is bounded."""
STRIDE: Final = 8
"""Options of more nodes than `_LONG` are counted in eights and ones."""
_LONG: Final = 14
_MOST_WANTED: Final = 4
"""Replicas that the second coordinate counts; of a greater floor the bound does not know the rest."""
_HUGE: Final = 1e30


@dataclass(frozen=True, slots=True)
class Priced:
    """The cheapest patterns found, by lane."""

    bound: Floats
    """[lane] no pattern costs less."""
    nodes: Ints
    """[lane, option] of the pattern that attains it in quantised arithmetic."""


@dataclass(frozen=True, slots=True)
class _Items:
    """Bundles of nodes for one kind of option, the useful ones first: at step i, bundle i of every lane."""

    option: Ints
    """[lane, i]"""
    unit: Ints
    """[lane, i] nodes of a bundle."""
    times: Ints
    """[lane, i] bundles at most; 0: no more."""

    def __len__(self) -> int:
        return int((self.times > 0).sum(1).max(initial=0))


def price(
    lanes: Lanes, which: Ints, node_price: Floats, penalty: Floats, missing_price: float, ceiling: Floats, units: int
) -> Priced:
    """Price the lanes `which` at `node_price` [which, option] and `penalty` [which] USD/h for leaving all unserved.

    `ceiling` [which]: a pattern that costs more than this (infinite: unknown) need not be found.
    """
    bound, nodes = np.zeros(len(which)), np.zeros((len(which), lanes.share.shape[1]), dtype=np.int64)
    times = useful_nodes(lanes, which, node_price, penalty, ceiling)
    wanted = _wanted(lanes, which, times)
    for least, most in ((0, 0), (1, 2), (3, _MOST_WANTED)):
        group = np.flatnonzero((wanted >= least) & (wanted <= most))
        size = max(8, CHUNK // (units * (int(wanted[group].max(initial=0)) + 1)))
        for start in range(0, len(group), size):
            at = group[start : start + size]
            level = int(wanted[at].max())
            tables = _Tables(lanes, which[at], node_price[at], penalty[at], missing_price, ceiling[at], units, level)
            bound[at], nodes[at] = tables.solve()
            shared = np.flatnonzero(lanes.vendor_share[which[at]] < 1)
            if len(shared):
                _with_vendors(tables.subset(shared), at[shared], bound, nodes)
    return Priced(bound, nodes)


def _wanted(lanes: Lanes, which: Ints, times: Ints) -> Ints:
    """[which] replicas that the second coordinate counts: none where what carries the demand is as many anyway."""
    replica = np.where(times > 0, np.minimum(lanes.share[which], 1.0) / lanes.per_node[which], 0.0)
    steady = np.where(lanes.spot[which], 0.0, replica).max(1)
    floor = np.where(_uses_spot(lanes, which), lanes.floor[which], 0)
    floor = np.where((floor - 1) * steady < 1 - lanes.spot_share[which] - 1e-9, 0, floor)
    least = np.where((lanes.least[which] - 1) * replica.max(1) < 1 - 1e-9, 0, lanes.least[which])
    return np.minimum(np.maximum(least, floor), _MOST_WANTED)


def useful_nodes(lanes: Lanes, which: Ints, node_price: Floats, penalty: Floats, ceiling: Floats) -> Ints:
    """[which, option] nodes up to which an option can be part of a pattern that costs `ceiling` or less."""
    return _Tables(lanes, which, node_price, penalty, 0.0, ceiling, 1, 0).times


def _uses_spot(lanes: Lanes, which: Ints) -> Flags:
    flags: Flags = (lanes.spot[which] & (lanes.most[which] > 0)).any(1) & (lanes.spot_share[which] > 0)
    return flags


def _with_vendors(tables: "_Tables", at: Ints, bound: Floats, nodes: Ints) -> None:
    """Where a vendor carries more than its share, the bound and pattern that know of vendors' shares."""
    lanes, lane = tables.lanes, tables.lane
    over = np.flatnonzero(served_by(lanes, lane, nodes[at]).unserved > 2 / tables.units)
    if len(over):
        better, found = tables.subset(over).solve_by_vendor()
        bound[at[over]] = np.maximum(bound[at[over]], better)
        nodes[at[over]] = found


class _Bundle:
    """What bundles of nodes of one option a lane carry and cost."""

    def __init__(self, tables: "_Tables", rows: Ints, option: Ints, unit: Ints, most: int) -> None:
        lanes, lane = tables.lanes, tables.lane[rows]
        self.most = most
        self.carried = tables.share[rows, option] * unit * tables.units
        self.cost = tables.node_price[rows, option] * unit
        self.replicas = lanes.per_node[lane, option] * unit
        self.cap = np.where(tables.spot[rows, option], lanes.loss_share[lane] * tables.units, np.inf)

    def gain(self, j: int, n: int | None = None) -> Ints:
        """Units that j bundles carry, rounded up; of the first n."""
        carried = np.minimum(j * self.carried[:n], self.cap[:n])
        return np.minimum(np.ceil(carried - 1e-7), self.most).astype(np.int64)


class _Tables:
    """F and G of a chunk of lanes."""

    def __init__(
        self,
        lanes: Lanes,
        lane: Ints,
        node_price: Floats,
        penalty: Floats,
        missing_price: float,
        ceiling: Floats,
        units: int,
        wanted: int,
    ) -> None:
        self.lanes, self.lane, self.node_price, self.penalty = lanes, lane, node_price, penalty
        self.missing_price, self.ceiling, self.units, self.wanted = missing_price, ceiling, units, wanted
        self.share, self.spot = lanes.share[lane], lanes.spot[lane]
        # Spot that may carry nothing still counts as a replica.
        idle = self.spot & ((lanes.spot_share[lane] <= 0) & (lanes.least[lane] <= 1))[:, None]
        self.most = np.where(idle, 0, lanes.most[lane])
        self.times = self._times()

    def subset(self, rows: Ints) -> "_Tables":
        """The same of some of the lanes."""
        return _Tables(
            self.lanes,
            self.lane[rows],
            self.node_price[rows],
            self.penalty[rows],
            self.missing_price,
            self.ceiling[rows],
            self.units,
            0,
        )

    # --- Which options can matter -----------------------------------------------------------------------------------

    def _times(self) -> Ints:
        """[lane, option] nodes up to which an option can be part of a pattern below the ceiling."""
        lanes, lane, share, spot = self.lanes, self.lane, self.share, self.spot
        usable = (self.most > 0) & (share > 0)
        density = np.where(usable, self.node_price / np.maximum(share, 1e-12), _HUGE)
        steady = np.minimum(
            np.where(spot, _HUGE, density).min(1), self.penalty
        )  # value of a unit carried by steady nodes
        a, s = lanes.loss_share[lane], lanes.spot_share[lane]
        order = np.argsort(np.where(spot, density, _HUGE), axis=1)
        room = np.take_along_axis(np.where(spot & usable, np.minimum(a[:, None], self.most * share), 0.0), order, 1)
        sorted_density = np.take_along_axis(np.where(spot, density, _HUGE), order, 1)
        cheaper = sorted_density < steady[:, None]
        filled = np.cumsum(np.where(cheaper, room, 0.0), 1)
        at = np.argmax(filled >= s[:, None], 1)
        full = filled[:, -1] >= s
        marginal = np.where(full, np.take_along_axis(sorted_density, at[:, None], 1)[:, 0], steady)
        marginal = np.minimum(marginal, steady)
        useful = np.where(
            spot,
            np.ceil(np.minimum(a[:, None], 1.0) / np.maximum(share, 1e-12) - 1e-9),
            np.ceil(1 / np.maximum(share, 1e-12) - 1e-9),
        )
        floor = np.maximum(lanes.least[lane], np.where(_uses_spot(lanes, lane), lanes.floor[lane], 0))
        useful = np.maximum(useful, -(-floor[:, None] // lanes.per_node[lane]))
        most = np.minimum(useful, self.most)
        each = self.node_price - np.where(spot, marginal[:, None], steady[:, None]) * share
        whole = np.floor(np.where(spot, a[:, None], np.inf) / np.maximum(share, 1e-12) + 1e-9)
        # Spot below the marginal density pays until its share is full: the better of both roundings is allowed for.
        up = np.where(spot, np.minimum(whole + 1, self.most), 0.0)
        gain = np.minimum(
            0.0,
            np.minimum(
                np.minimum(whole, self.most) * each,
                up * self.node_price - marginal[:, None] * np.minimum(up * share, a[:, None]),
            ),
        )
        gain = np.where(spot & usable, gain, 0.0)
        relaxed = steady - (steady - marginal) * s + gain.sum(1)
        slack = np.maximum(self.ceiling - relaxed, 0.0) * (1 + 1e-9) + 1e-9
        room_for = np.floor(np.minimum(slack[:, None] / np.maximum(each, 1e-15), 1e9))
        times = np.where(each > 0, np.minimum(most, room_for), most)
        return np.where(usable, times, 0).astype(np.int64)

    def _items(self, chosen: Flags) -> _Items:
        times = np.where(chosen, self.times, 0)
        long = times > _LONG
        ones, eights = np.where(long, STRIDE - 1, times), np.where(long, times // STRIDE, 0)
        both = np.concatenate([ones, eights], 1)
        order = np.argsort(both == 0, axis=1, kind="stable")
        width = int((both > 0).sum(1).max(initial=0))
        order = order[:, :width]
        k = times.shape[1]
        return _Items(order % k, np.where(order >= k, STRIDE, 1), np.take_along_axis(both, order, 1))

    # --- Tables -----------------------------------------------------------------------------------------------------

    def _fill(self, first: Floats, items: _Items) -> list[Floats]:
        """[step] tables [lane, wanted, unit]; each with one more bundle than the one before."""
        tables = [first]
        _, wanted, width = first.shape
        units = np.arange(width)
        for i in range(len(items)):
            rows = np.flatnonzero(items.times[:, i] > 0)
            rows = rows[np.argsort(-items.times[rows, i], kind="stable")]
            before, times = tables[-1], items.times[rows, i]
            table, best = before.copy(), before[rows]
            bundle = _Bundle(self, rows, items.option[rows, i], items.unit[rows, i], width - 1)
            flat = before.ravel()
            for j in range(1, int(times[0]) + 1):
                n = int(np.searchsorted(-times, -j, side="right"))
                gain = bundle.gain(j, n)
                at = np.maximum(units[None, :] - gain[:, None], 0)
                if wanted == 1:
                    at += (rows[:n] * width)[:, None]
                    found = flat[at][:, None, :]
                else:
                    level = np.maximum(np.arange(wanted)[None, :] - j * bundle.replicas[:n, None], 0)
                    found = flat[((rows[:n, None] * wanted + level) * width)[:, :, None] + at[:, None, :]]
                found += (j * bundle.cost[:n])[:, None, None]
                np.minimum(best[:n], found, out=best[:n])
            table[rows] = best
            tables.append(table)
        return tables

    def _trace(self, tables: list[Floats], items: _Items, rows: Ints, wanted: Ints, unit: Ints, nodes: Ints) -> None:
        """Add to `nodes` [row, option] what the tables' values at (wanted, unit) of lanes `rows` were made of."""
        wanted, unit = wanted.copy(), unit.copy()
        width = tables[0].shape[2]
        for i in reversed(range(len(items))):
            before, after = tables[i], tables[i + 1]
            here = np.flatnonzero(after[rows, wanted, unit] < before[rows, wanted, unit])
            if not len(here):
                continue
            lane, w, u = rows[here], wanted[here], unit[here]
            times = items.times[lane, i]
            bundle = _Bundle(self, lane, items.option[lane, i], items.unit[lane, i], width - 1)
            best, taken = np.full(len(here), np.inf), np.zeros(len(here), dtype=np.int64)
            next_w, next_u = w.copy(), u.copy()
            for j in range(1, int(times.max()) + 1):
                rest_w, rest_u = np.maximum(w - j * bundle.replicas, 0), np.maximum(u - bundle.gain(j), 0)
                value = before[lane, rest_w, rest_u] + j * bundle.cost
                better = (value < best) & (j <= times)
                best, taken = np.where(better, value, best), np.where(better, j, taken)
                next_w, next_u = np.where(better, rest_w, next_w), np.where(better, rest_u, next_u)
            wanted[here], unit[here] = next_w, next_u
            nodes[here, items.option[lane, i]] += taken * items.unit[lane, i]

    def _steady_start(self) -> Floats:
        units = np.arange(self.units + 1) / self.units
        levels = np.arange(self.wanted + 1) * self.missing_price
        return self.penalty[:, None, None] * units[None, None, :] + levels[None, :, None]

    def _spot_start(self, width: int) -> Floats:
        start = np.full((len(self.lane), self.wanted + 1, width), _HUGE)
        start[:, 0, 0] = 0.0
        return start

    def _spot_units(self) -> Ints:
        return np.minimum(np.ceil(self.lanes.spot_share[self.lane] * self.units - 1e-7), self.units).astype(np.int64)

    # --- Both together ----------------------------------------------------------------------------------------------

    def solve(self) -> tuple[Floats, Ints]:
        """Bound and pattern of each lane, vendor shares left aside."""
        q, count = self.units, len(self.lane)
        steady_items = self._items(~self.spot)
        spot_items = self._items(self.spot)
        f = self._fill(self._steady_start(), steady_items)
        rows = np.arange(count)
        least = np.minimum(self.lanes.least[self.lane], self.wanted)
        floor = np.minimum(self.lanes.floor[self.lane], self.wanted)
        best = f[-1][rows, least, q]
        t, c = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        spot_units = self._spot_units()
        widest = int(spot_units.max(initial=0))
        g: list[Floats] = []
        if len(spot_items):
            g = self._fill(self._spot_start(widest + 1), spot_items)
            allowed = np.arange(widest + 1)[None, :] <= spot_units[:, None]
            for level in range(self.wanted + 1):
                want = np.maximum(floor, least - level)
                value = f[-1][rows, want][:, q - widest :][:, ::-1] + g[-1][:, level, :]
                value = np.where(allowed, value, _HUGE)
                value[:, 0] = f[-1][rows, np.maximum(least - level, 0), q] + g[-1][:, level, 0]
                at = np.argmin(value, 1)
                better = value[rows, at] < best
                best = np.where(better, value[rows, at], best)
                t, c = np.where(better, at, t), np.where(better, level, c)
        nodes = np.zeros(self.share.shape, dtype=np.int64)
        want = np.maximum(np.where(t > 0, floor, 0), least - c)
        self._trace(f, steady_items, rows, want, q - t, nodes)
        with_spot = np.flatnonzero((t > 0) | (c > 0))
        if len(with_spot):
            part = np.zeros_like(nodes[with_spot])
            self._trace(g, spot_items, with_spot, c[with_spot], t[with_spot], part)
            nodes[with_spot] += part
        return best, nodes

    def solve_by_vendor(self) -> tuple[Floats, Ints]:
        """Bound and pattern of each lane with every vendor within its share.

        Vendor by vendor, E_v(y) = min over x <= vendor share of E_(v-1)(y - x) + H_v(x).  The spot share holds within
        each vendor only, and replicas wanted are left aside: `solve` knows of those.
        """
        q, count = self.units, len(self.lane)
        rows, zero = np.arange(count), np.zeros(count, dtype=np.int64)
        vendor = self.lanes.vendor[self.lane]
        most = np.minimum(np.ceil(self.lanes.vendor_share[self.lane] * q - 1e-7), q).astype(np.int64)
        spot_units = self._spot_units()
        widest, width = int(spot_units.max(initial=0)), int(most.max(initial=0))
        nothing = np.full((count, 1, width + 1), _HUGE)
        nothing[:, 0, 0] = 0.0
        reached = [self.penalty[:, None] * (np.arange(q + 1) / q)[None, :]]
        parts = []
        for v in np.unique(vendor[self.times > 0]):
            mine = vendor == v
            steady_items, spot_items = self._items(mine & ~self.spot), self._items(mine & self.spot)
            f, g = self._fill(nothing, steady_items), self._fill(self._spot_start(widest + 1), spot_items)
            steady = f[-1][:, 0]
            spot = np.where(np.arange(widest + 1)[None, :] <= spot_units[:, None], g[-1][:, 0], _HUGE)
            h = steady.copy()
            for t in range(1, min(widest, width) + 1) if len(spot_items) else ():
                np.minimum(h[:, t:], steady[:, : width + 1 - t] + spot[:, t : t + 1], out=h[:, t:])
            h[np.arange(width + 1)[None, :] > most[:, None]] = _HUGE
            before = reached[-1]
            after = before.copy()
            for x in range(1, width + 1):
                np.minimum(after[:, x:], before[:, : q + 1 - x] + h[:, x : x + 1], out=after[:, x:])
            reached.append(after)
            parts.append((f, g, steady_items, spot_items, steady, spot, h))
        nodes = np.zeros(self.share.shape, dtype=np.int64)
        y: Ints = np.full(count, q)
        for before, (f, g, steady_items, spot_items, steady, spot, h) in zip(
            reversed(reached[:-1]), reversed(parts), strict=True
        ):
            taken = _split(before, h, y)
            y = y - taken
            on_spot = _split(steady, spot, taken)
            self._trace(f, steady_items, rows, zero, taken - on_spot, nodes)
            self._trace(g, spot_items, rows, zero, on_spot, nodes)
        return reached[-1][:, q], nodes


def _split(left: Floats, right: Floats, total: Ints) -> Ints:
    """[lane] x that attains the least left(total - x) + right(x)."""
    x = np.arange(right.shape[1])[None, :]
    rest = total[:, None] - x
    value = np.take_along_axis(left, np.clip(rest, 0, left.shape[1] - 1), 1) + right
    found: Ints = np.argmin(np.where((rest >= 0) & (rest < left.shape[1]), value, 4 * _HUGE), 1)
    return found
