"""At which prices of shared nodes do the known patterns just fill the rows?  The master's dual, smoothed, by Newton.

The linear master has a row a pool and a few shared ones.  Its dual is a concave function of the few prices p alone,

    sum over pools of min over patterns of (cost + use p)  -  p x caps,   0 <= p <= most

with kinks.  With the least of a pool's patterns taken softly, -T log sum exp(-(cost + use p) / T), it has a Hessian as
small as the rows are few: some ten of Newton's steps (Levenberg's damping, prices clipped to their bounds), each about
two products of a matrix with a vector, where the simplex takes a pivot or more for every pool whose pattern changes.
From the basis of each pool's cheapest pattern at these prices it needs few; it still has the last word.
"""

import ctypes
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from berth_operator.planner.lanes import Floats, Ints
from berth_operator.planner.master import Master, paid
from berth_operator.planner.native import FLOATS, function

NEAR: Final = 0.01
"""Of the cost of all, that the dual's value at smooth prices may be below the greatest."""
LEAST: Final = 0.01
"""Of the usual pool's cost, that each counts as at least."""


class _Balance(ctypes.Structure):
    """`Balance` of native/csrc/balancing.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("pools", "rows", "patterns")),
        *((name, ctypes.c_void_p) for name in ("first", "begin", "row", "units", "cost", "caps", "most", "worth")),
    )


_balance: Final = function("berth_balance", ctypes.POINTER(_Balance), FLOATS)


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
    [pool] USD/h that it costs about.  Raises ValueError for shapes that do not fit.
    """
    if len(cost) != len(pool) or use.shape != (len(pool), len(caps)) or not len(caps) == len(most) == len(near):
        raise ValueError("patterns are [column], their use is [column, row], and caps, most and near are [row]")
    order = np.argsort(pool, kind="stable")
    pool, use = pool[order], use[order]
    column, row = np.nonzero(use)
    arrays: dict[str, tuple[npt.NDArray[Any], type[np.generic]]] = {
        "first": (np.searchsorted(pool, np.arange(len(worth) + 1)), np.int64),
        "begin": (np.searchsorted(column, np.arange(len(pool) + 1)), np.int64),
        "row": (row, np.int64),
        "units": (use[column, row], np.float64),
        "cost": (cost[order], np.float64),
        "caps": (caps, np.float64),
        "most": (most, np.float64),
        "worth": (worth, np.float64),
    }
    kept = {name: np.ascontiguousarray(array, kind) for name, (array, kind) in arrays.items()}
    pointers = {name: array.ctypes.data for name, array in kept.items()}
    prices: Floats = np.clip(near, 0.0, most)
    _balance(_Balance(pools=len(worth), rows=len(caps), patterns=len(pool), **pointers), prices)
    return prices
