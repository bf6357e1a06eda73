"""What do nodes cost that carry so many units?  Tables of a covering knapsack, for many lanes at once.

Bundle by bundle, with c the cost of a bundle and g(j) the units that j of them carry, rounded up:

    after(w) = min over j <= most of before(w - g(j)) + j c

Options whose nodes carry less than a unit would each be rounded up by most of one.  They are one fluid together: y
units of it cost what the densest of them cost at the least, in fractions of nodes.  A second coordinate counts replicas
still wanted.  Each lane's tables are preceded by a pad of what nothing more to
cover costs, so that a shift by g(j) is one contiguous read: rows of a sliding window.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from berth_operator.planner.lanes import Flags, Floats, Ints

STRIDE: Final = 8
"""Options of more nodes than `LONG` are counted in eights and ones."""
LONG: Final = 14
"""Nodes of one option up to which they are counted one by one."""
AT_ONCE: Final = 32_768
"""Entries up to which all numbers of an option's bundles are tried in one step: calls of numpy cost more then."""
_SEVERAL: Final = 2
"""Small options from which they are a fluid."""
_HAIR: Final = 5e-5
"""Of what the fluid fills up, poured on top: units are a hair less than whole shares of the demand."""
_ROUNDING: Final = 1e-7
"""Units by which a bundle may be above a whole number."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """What can be bought, by lane and option."""

    carried: Floats
    """[lane, option] units that a node carries."""
    cap: Floats
    """[lane, option] units that all nodes of it may carry, infinite for no such bound."""
    cost: Floats
    """[lane, option] USD/h."""
    replicas: Ints
    """[lane, option] of a node."""
    times: Ints
    """[lane, option] nodes at most."""
    by_count: Floats | None = None
    """[lane, option, nodes up to LONG] a `cap` for each number of them; None: it is the same for all."""

    def at(self, rows: Ints, times: Ints) -> "Nodes":
        """Of some of the lanes, so many."""
        by_count = None if self.by_count is None else self.by_count[rows]
        return Nodes(self.carried[rows], self.cap[rows], self.cost[rows], self.replicas[rows], times, by_count)


@dataclass(frozen=True, slots=True)
class _Fluid:
    """Small options of lanes that have several, the densest first, and the tables before them."""

    lanes: Ints
    order: Ints
    """[n, place] option."""
    most: Ints
    """[n, place] nodes; 0: no more options."""
    cost: Floats
    """[n, y - 1] USD/h of y units, infinite where there are not so many."""
    before: Floats


@dataclass(frozen=True, slots=True)
class _Step:
    """One bundle of every lane that has so many: what it can do, and the tables before it."""

    lanes: Ints
    option: Ints
    unit: Ints
    """[n] nodes of a bundle."""
    times: Ints
    """[n] bundles at most."""
    gain: Ints
    """[n, j - 1] units that j bundles carry."""
    cost: Floats
    replicas: Ints
    before: Floats
    """[n, wanted, unit]"""


class Cover:
    """Least costs [lane, wanted, unit] of covering, and what they are made of."""

    def __init__(self, first: Floats, nodes: Nodes, chosen: Flags) -> None:
        """`first` [lane, wanted, unit]: costs without any node; `chosen` [lane, option]: what may be bought."""
        count, self._wanted, self._width = first.shape
        self._nodes, self._steps = nodes, list[_Step]()
        self._pad = self._width - 1
        self._table = np.empty((count, self._wanted, self._pad + self._width))
        self._table[:, :, self._pad :] = first
        self._table[:, :, : self._pad] = first[:, :, :1]
        self._windows = sliding_window_view(self._table.reshape(-1), self._width)
        """[start] so many entries from there on: always what the tables are now."""
        self._chosen = chosen
        small = chosen & (nodes.times > 0) & (nodes.carried <= 1) if self._wanted == 1 else np.zeros_like(chosen)
        small &= (small.sum(1) >= _SEVERAL)[:, None]
        self._fluid = self._add_fluid(small) if small.any() else None
        self._option, self._unit, self._times = _bundles(np.where(chosen & ~small, nodes.times, 0))
        for i in range(self._option.shape[1]):
            self._add(i)

    @property
    def costs(self) -> Floats:
        """[lane, wanted, unit]"""
        return self._table[:, :, self._pad :]

    def __bool__(self) -> bool:
        """Whether anything may be bought."""
        return bool(self._steps) or self._fluid is not None

    def _add_fluid(self, small: Flags) -> _Fluid:
        lanes, nodes = np.flatnonzero(small.any(1)), self._nodes
        small, cost = small[lanes], nodes.cost[lanes]
        density = np.where(small, cost / np.maximum(nodes.carried[lanes], 1e-12), np.inf)
        order = np.argsort(density, axis=1, kind="stable")[:, : int(small.sum(1).max())]
        density = np.take_along_axis(density, order, 1)
        most = np.take_along_axis(np.where(small, nodes.times[lanes], 0), order, 1)
        room = np.minimum(most * np.take_along_axis(nodes.carried[lanes], order, 1), nodes.cap[lanes[:, None], order])
        filled = np.cumsum(room, 1)
        units = np.arange(1, min(self._width - 1, int(np.ceil(filled[:, -1].max()))) + 1)
        # More than y - 1 units are carried where y are counted, and by one node at the least.
        total = np.zeros((len(lanes), len(units)))
        for place in range(order.shape[1]):
            taken = np.clip(
                (units - 1)[None, :] - (filled[:, place] - room[:, place])[:, None], 0, room[:, place, None]
            )
            total += taken * np.where(most[:, place] > 0, density[:, place], 0.0)[:, None]
        total = np.maximum(total, np.where(small, cost, np.inf).min(1)[:, None])
        total[units[None, :] - 1 >= filled[:, -1:]] = np.inf
        table, pad = self._table, self._pad
        before = table[lanes, :, pad:]
        best = before.copy()
        origin = lanes * (pad + self._width) + pad
        for y in units.tolist():
            found = self._windows[(origin - y)[:, None]]
            found += total[:, y - 1, None, None]
            np.minimum(best, found, out=best)
        table[lanes, :, pad:] = best
        return _Fluid(lanes, order, most, total, before)

    def _add(self, i: int) -> None:
        all_times = self._times[:, i]
        lanes = np.flatnonzero(all_times > 0)
        lanes = lanes[np.argsort(-all_times[lanes], kind="stable")]
        times, option, unit, nodes = all_times[lanes], self._option[lanes, i], self._unit[lanes, i], self._nodes
        counts = np.arange(1, int(times[0]) + 1)
        carried = (nodes.carried[lanes, option] * unit)[:, None] * counts[None, :]
        if nodes.by_count is None:
            carried = np.minimum(carried, nodes.cap[lanes, option][:, None])
        else:
            bundles = np.minimum(counts, LONG)[None, :]
            carried = np.minimum(carried, nodes.by_count[lanes[:, None], option[:, None], bundles])
        gain = np.minimum(np.ceil(carried - _ROUNDING), self._width - 1).astype(np.int64)
        cost, replicas = nodes.cost[lanes, option] * unit, nodes.replicas[lanes, option] * unit
        table, pad, wanted = self._table, self._pad, self._wanted
        before = table[lanes, :, pad:]
        best = before.copy()
        stride = pad + self._width
        origin = lanes * wanted * stride + pad
        levels = np.arange(wanted)[None, :]
        if len(lanes) * len(counts) * wanted * self._width <= AT_ONCE:
            start = origin[:, None, None] - gain[:, :, None]
            if wanted > 1:
                start = start + np.maximum(levels[None] - (counts * replicas[:, None])[:, :, None], 0) * stride
            found = self._windows[start]
            spent = np.where(counts <= times[:, None], counts * cost[:, None], np.inf)
            found += spent[:, :, None, None]
            np.minimum(best, found.min(1), out=best)
        else:
            more = np.searchsorted(-times, -counts, side="right")
            for j, n in enumerate(more.tolist()):
                start = (origin[:n] - gain[:n, j])[:, None]
                if wanted > 1:
                    start = start + np.maximum(levels - (j + 1) * replicas[:n, None], 0) * stride
                found = self._windows[start]
                found += ((j + 1) * cost[:n])[:, None, None]
                np.minimum(best[:n], found, out=best[:n])
        table[lanes, :, pad:] = best
        if wanted > 1:
            table[lanes, :, :pad] = best[:, :, :1]
        self._steps.append(_Step(lanes, option, unit, times, gain, cost, replicas, before))

    def trace(self, lanes: Ints, wanted: Ints, unit: Ints, into: Ints, exactly: Floats) -> None:
        """Add to `into` [i, option] what the costs at (wanted[i], unit[i]) of lane `lanes[i]` are made of.

        `exactly` [i]: units that there must be without rounding; of the fluid so many nodes are taken.
        """
        wanted, unit = wanted.copy(), unit.copy()
        value = self.costs[lanes, wanted, unit]
        place = np.full(len(self._table), -1)
        for step in reversed(self._steps):
            here, at = _improved(place, step.lanes, step.before, lanes, value, wanted, unit)
            if not len(here):
                continue
            counts = np.arange(1, int(step.times[at].max()) + 1)[None, :]
            rest_unit = np.maximum(unit[here][:, None] - step.gain[at][:, : counts.shape[1]], 0)
            rest_wanted = np.maximum(wanted[here][:, None] - counts * step.replicas[at][:, None], 0)
            rest = step.before[at[:, None], rest_wanted, rest_unit]
            total = np.where(counts <= step.times[at][:, None], rest + counts * step.cost[at][:, None], np.inf)
            best, rows = np.argmin(total, 1), np.arange(len(here))
            value[here], unit[here], wanted[here] = rest[rows, best], rest_unit[rows, best], rest_wanted[rows, best]
            into[here, step.option[at]] += (best + 1) * step.unit[at]
        if self._fluid is not None:
            here, at = _improved(place, self._fluid.lanes, self._fluid.before, lanes, value, wanted, unit)
            self._pour(lanes[here], here, at, into, exactly[here])

    def _pour(self, lanes: Ints, here: Ints, at: Ints, into: Ints, exactly: Floats) -> None:
        """Small nodes, the densest first, for what the others lack."""
        nodes, fluid = self._nodes, self._fluid
        assert fluid is not None  # noqa: S101 - for the type checker
        carried = np.where(self._chosen[lanes], np.minimum(into[here] * nodes.carried[lanes], nodes.cap[lanes]), 0.0)
        lacking = exactly * (1 + _HAIR) - carried.sum(1)
        order, most = fluid.order[at], fluid.most[at]
        each, cap = nodes.carried[lanes[:, None], order], nodes.cap[lanes[:, None], order]
        room = np.minimum(most * each, cap)
        left = lacking[:, None] - (np.cumsum(room, 1) - room)
        count = np.clip(np.ceil(np.minimum(left, cap) / np.maximum(each, 1e-12) - _ROUNDING), 0, most)
        into[here[:, None], order] += count.astype(np.int64)


def _improved(
    place: Ints, owners: Ints, before: Floats, lanes: Ints, value: Floats, wanted: Ints, unit: Ints
) -> tuple[Ints, Ints]:
    """(which of `lanes` a step has bettered at (wanted, unit), where they are in it); `place`: of no value after."""
    place[owners] = np.arange(len(owners))
    at = place[lanes]
    place[owners] = -1
    here = np.flatnonzero(at >= 0)
    here = here[value[here] < before[at[here], wanted[here], unit[here]]]
    return here, at[here]


def _bundles(times: Ints) -> tuple[Ints, Ints, Ints]:
    """([lane, i] option, nodes of a bundle, bundles at most): bundle i of every lane, 0 of them: no more."""
    long = times > LONG
    ones, eights = np.where(long, STRIDE - 1, times), np.where(long, times // STRIDE, 0)
    both = np.concatenate([ones, eights], 1)
    order = np.argsort(both == 0, axis=1, kind="stable")
    order = order[:, : int((both > 0).sum(1).max(initial=0))]
    count = times.shape[1]
    return order % count, np.where(order >= count, STRIDE, 1), np.take_along_axis(both, order, 1)
