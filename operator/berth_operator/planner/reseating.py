"""How do pools that compete for too few nodes come to a better plan?  Some are taken out and put back, again and again.

Ruin and recreate (Schrimpf et al. 2000).  A move takes out a pool, of four the one that is farthest from what it would
have at the duals, and one to four that use rows which it lacks, or, one move in sixteen, all who stand in its way.
They are put back one after the other, each with its cheapest pattern within the nodes that are left: of those known,
and in every second move of those that pricing finds (`pricing`).  All but the last pay for shared nodes, by the duals
times a factor drawn anew, so that they leave room for the next.

Plans are compared in the order that counts: unserved shares of each priority, the highest first, then missing replicas,
then dollars.  A plan is taken if it is no worse than the one before the move, or better than the one of a hundred moves
ago (late acceptance, Burke & Bykov 2017); the best of all is what comes out.  Pools that are settled keep what they
have.

Two searches make half of the moves each, side by side, and 32 times both go on from the plan of the better one.  Their
moves are drawn by generators of fixed seeds, and how threads run changes nothing.
"""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from berth_operator.planner.lanes import LANES, Floats, Ints, compiled
from berth_operator.planner.native import INTS, LENGTH, function
from berth_operator.planner.stock import Stock

MOVES: Final = 700
"""For each pool,"""
LAST_MOVES: Final = 250
"""the same where it is decided who goes short,"""
FEW_MOVES: Final = 150
"""where stages do not follow, or only the highest priorities are to be served,"""
TRIED_MOVES: Final = 50
"""and where a plan is tried that keeps to what pools run on,"""
MOST_MOVES: Final = 100_000
"""but no more for all of them."""
ABOVE: Final = 3.0
"""Times that the demand of more important pools weighs more than what weighs most in a stage, at least."""
LEAST: Final = 1e-3
"""Of what weighs most in a stage, that a replica missing to minReplicas weighs at least."""
_LENGTHS: Final = ("pools", "lanes", "rows", "ranks", "columns")
_ARRAYS: Final = (
    *("pool", "row", "weight", "price", "priced", "caps", "rank", "column_lane", "column_nodes", "start"),
    *("settled", "dual", "unserved"),
)


class _Seats(ctypes.Structure):
    """`Seats` of native/csrc/reseating.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _LENGTHS),
        ("of", LANES),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
        *((name, ctypes.c_double) for name in ("dollars", "missing")),
    )
    kept: tuple[Any, ...]
    """What it points into."""


_reseat: Final = function("berth_reseat", ctypes.POINTER(_Seats), LENGTH, LENGTH, INTS, INTS)


def reseated(stock: Stock, chosen: Ints, duals: Floats, moves: int = MOVES, enough: int = 0) -> Ints:
    """What comes of `reseating`."""
    return reseating(stock, chosen, duals, moves, enough)()


def reseating(stock: Stock, chosen: Ints, duals: Floats, moves: int = MOVES, enough: int = 0) -> Callable[[], Ints]:
    """Begin a search, which goes on beside whatever is done next; what is returned waits for its result:
    [pool] columns of a `stock`, no worse than `chosen`, a choice within all rows; new ones are added.

    `duals`: of the stage's rows.  `moves`: for each pool; fewer where the `enough` most important ranks, if any are
    asked for, are served in full.
    Raises ValueError for shapes that do not fit, and where a pool's column is not its own.
    """
    lanes, columns, stage = stock.lanes, stock.columns, stock.stage
    rank = stage.rank if len(stage.rank) else np.zeros(stock.pools, dtype=np.int64)
    settled = stage.settled if len(stage.settled) else np.zeros(stock.pools, dtype=np.bool_)
    shapes = rank.shape, settled.shape
    if not np.array_equal(columns.pool[chosen], np.arange(stock.pools)) or shapes != ((stock.pools,),) * 2:
        raise ValueError("every pool has a rank, is settled or not, and has one of its own columns")
    prices = stock.prices(duals)
    last = int(rank.max(initial=0))
    important = rank[lanes.pool] < min(len(stage.held), last)
    dearest = max(float(prices.unserved.max(initial=0.0)), 1.0)
    arrays: dict[str, tuple[npt.NDArray[Any], type[np.generic]]] = {
        "pool": (lanes.pool, np.int64),
        "row": (lanes.row, np.int64),
        "weight": (lanes.weight, np.int64),
        "price": (lanes.price, np.float64),
        "priced": (~lanes.odd, np.bool_),
        "caps": (lanes.caps, np.int64),
        "rank": (rank, np.int64),
        "column_lane": (columns.lane, np.int64),
        "column_nodes": (columns.nodes, np.int64),
        "start": (chosen, np.int64),
        "settled": (settled, np.bool_),
        "dual": (duals[: len(lanes.rows)], np.float64),
        "unserved": (np.where(important, np.maximum(prices.unserved, ABOVE * dearest), prices.unserved), np.float64),
    }
    kept: dict[str, npt.NDArray[Any]] = {
        name: np.ascontiguousarray(array, kind) for name, (array, kind) in arrays.items()
    }
    seats = _Seats(
        pools=stock.pools,
        lanes=lanes.count,
        rows=len(lanes.rows),
        ranks=last + 1,
        columns=columns.count,
        of=ctypes.pointer(compiled(lanes, columns.lane, columns.nodes)),
        dollars=stage.dollars,
        missing=max(prices.missing, LEAST * dearest),
        **{name: array.ctypes.data for name, array in kept.items()},
    )
    seats.kept = lanes, *kept.values()
    lane, nodes = np.zeros(stock.pools, dtype=np.int64), np.zeros((stock.pools, lanes.share.shape[1]), dtype=np.int64)
    most = min(moves * stock.pools, MOST_MOVES)
    beside = ThreadPoolExecutor(1)
    found = beside.submit(_reseat, seats, most, min(enough, last + 1), lane, nodes)
    beside.shutdown(wait=False)

    def waited() -> Ints:
        found.result()
        return stock.find(lane, nodes)

    return waited
