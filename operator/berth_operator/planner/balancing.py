"""At which prices of shared nodes do the known patterns just fill the rows?  The master's dual, smoothed, by Newton.

The linear master has a row a pool and a few shared ones.  Its dual is a concave function of the few prices p alone,

    sum over pools of min over patterns of (cost + use p)  -  p x caps,   0 <= p <= most

with kinks.  With the least of a pool's patterns taken softly, -T log sum exp(-(cost + use p) / T), it has a Hessian as
small as the rows are few: some ten of Newton's steps (Levenberg's damping, prices clipped to their bounds), each about
two products of a matrix with a vector, where the simplex takes a pivot or more for every pool whose pattern changes.
From the basis of each pool's cheapest pattern at these prices it needs few; it still has the last word.
"""

from typing import Final

import numpy as np

from berth_operator.planner.lanes import Flags, Floats, Ints
from berth_operator.planner.master import Master, paid
from berth_operator.planner.native import FLOATS, INTS, LENGTH, NUMBER, function

TEMPERATURES: Final = (0.05, 0.01)
"""T, of what each pool costs: first far apart patterns are weighed, then near ones."""
MOST_STEPS: Final = 40
NO_GAIN: Final = 2e-5
"""Of the cost of all, that a step has to gain."""
NEAR: Final = 0.01
"""Of the cost of all, that the dual's value at smooth prices may be below the greatest."""
LEAST: Final = 0.01
"""Of the usual pool's cost, that each counts as at least."""
_MOST_TRIES: Final = 8
_LONGEST: Final = (0.5, 0.05)
"""Of a price, and of the most it may be, that one step may change it by."""
_TORN: Final = 1e-6
"""Weight from which a pattern counts in the Hessian."""

_ENTRIES: Final = INTS, INTS, INTS, FLOATS
_soft_least: Final = function("berth_soft_least", *_ENTRIES, FLOATS, FLOATS, FLOATS, LENGTH, FLOATS, FLOATS)
_soft_derivatives: Final = function(
    "berth_soft_derivatives", *_ENTRIES, FLOATS, FLOATS, LENGTH, LENGTH, NUMBER, FLOATS, FLOATS
)


def solve(
    master: Master, pool: Ints, costs: Floats, use: Ints | Floats, near: Floats, served: Floats
) -> tuple[float, Floats, float]:
    """(objective, price of each shared row, nodes bought beyond the rows) of a master with these columns, which is
    solved from the basis that the prices say.  These are smooth: where the program has many duals, or soon others,
    they lie amid them, which suits pricing.  Where they are far from any, as may be in a shortage, whose price is a
    cliff, the prices are the master's own duals.

    `pool`, `costs` [column] shortage priced in, `use` [column, row]; `near` [row] likely prices; `served` [pool] USD/h
    that it costs about, infinite where that is not known.
    """
    usual = float(np.median(served[np.isfinite(served)])) if np.isfinite(served).any() else 1.0
    worth = np.maximum(np.where(np.isfinite(served), served, usual), LEAST * max(usual, 1.0))
    prices = balanced(pool, costs, use, master.caps, master.most, near, worth)
    master.start_at(pool, costs, use, prices)
    objective, duals, _, bought = master.solve()
    least = np.full(master.pools, np.inf)
    np.minimum.at(least, pool, costs + paid(use, prices))
    right = objective - float(least.sum() - prices @ master.caps) <= NEAR * float(worth.sum())
    return objective, prices if right else duals, bought


def balanced(
    pool: Ints, cost: Floats, use: Ints | Floats, caps: Floats, most: Floats, near: Floats, worth: Floats
) -> Floats:
    """[row] prices that are nearly the master's duals.

    `pool`, `cost` [column], `use` [column, row]; every pool has a column.  `caps`, `most`, `near` [row]; `worth`
    [pool] USD/h that it costs about.
    """
    order = np.argsort(pool, kind="stable")
    soft = _Soft(pool[order], cost[order], use[order], caps)
    prices = np.clip(near, 0.0, most)
    least = NO_GAIN * float(worth.sum())
    for part in TEMPERATURES:
        temperature, damping = part * worth, 1.0
        value, weight = soft.at(prices, temperature)
        for _ in range(MOST_STEPS):
            slope, bend = soft.derivatives(weight, temperature)
            free = ~((prices <= 0) & (slope <= 0)) & ~((prices >= most) & (slope >= 0))
            gain = 0.0
            for _ in range(_MOST_TRIES if free.any() else 0):
                tried = _stepped(prices, slope, bend, free, damping, most)
                better, weighed = soft.at(tried, temperature)
                if better > value:
                    gain, value, weight, prices = better - value, better, weighed, tried
                    damping = max(damping / 8, 1e-6)
                    break
                damping = max(damping * 8, 1e-3)
            if gain <= least:
                break
    return prices


def _stepped(prices: Floats, slope: Floats, bend: Floats, free: Flags, damping: float, most: Floats) -> Floats:
    """Prices after a damped step of Newton's, in those that are `free` [row]."""
    own = np.diag(bend)
    matrix = bend + np.diag(damping * np.maximum(own, 1e-9 * own.max() + 1e-9))
    step = np.zeros_like(prices)
    step[free] = np.linalg.solve(matrix[np.ix_(free, free)], slope[free])
    longest = np.maximum(_LONGEST[0] * prices, _LONGEST[1] * most)
    return np.clip(prices + np.clip(step, -longest, longest), 0.0, most)


class _Soft:
    """The smoothed dual; columns in order of their pools."""

    def __init__(self, pool: Ints, cost: Floats, use: Ints | Floats, caps: Floats) -> None:
        """`use` [column, row]; every pool has a column."""
        self.cost, self.caps, self.pools = np.ascontiguousarray(cost), caps, int(pool[-1]) + 1
        column, row = np.nonzero(use)
        self.row, self.units = np.ascontiguousarray(row), use[column, row].astype(np.float64)
        self.first = np.searchsorted(pool, np.arange(self.pools + 1))
        self.begin = np.searchsorted(column, np.arange(len(pool) + 1))
        """[pool] its first column, [column] its first entry of `row` and `units`; the end at last."""

    def at(self, prices: Floats, temperature: Floats) -> tuple[float, Floats]:
        """(value, [column] weight of a pattern in its pool); `prices` [row], `temperature` [pool]."""
        value, weight = np.zeros(1), np.zeros(len(self.cost))
        of = self.first, self.begin, self.row, self.units
        _soft_least(*of, self.cost, prices, temperature, self.pools, weight, value)
        return float(value[0] - prices @ self.caps), weight

    def derivatives(self, weight: Floats, temperature: Floats) -> tuple[Floats, Floats]:
        """([row] nodes wanted beyond the rows, [row, row] how fast these fall as prices rise)."""
        rows = len(self.caps)
        slope, bend = np.zeros(rows), np.zeros((rows, rows))
        of = self.first, self.begin, self.row, self.units
        _soft_derivatives(*of, weight, temperature, self.pools, rows, _TORN, slope, bend)
        return slope - self.caps, bend
