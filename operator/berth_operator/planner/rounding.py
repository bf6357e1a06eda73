"""How does a divided choice of patterns become a whole one?  Pools give way, make room for each other, and exchange.

Every pool takes the pattern that weighs most in the linear master.  Where all together take too much, those give way
that do so at the least cost (`relieved`).  Then, as long as it pays: a pool takes a cheaper pattern that does not fit,
and others move out of its way, perhaps into that of third ones, each time the move that betters most what lacks for
its dollars (an ejection chain, Glover 1996; `make_room`).  Last, exchanges of one pool's pattern, or of two pools' at
once, the best first, until there is none (`exchange`).
"""

import ctypes
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from berth_operator.planner.lanes import Floats, Ints
from berth_operator.planner.native import FLOATS, INTS, LENGTH, NUMBER, function

MOST_MOVES: Final = 8
"""Patterns that may make room for one."""
MOST_WISHES: Final = 60
"""Patterns that are tried in a pass."""
WISHES_EACH: Final = 5
"""Of them of one pool."""
MOST_PASSES: Final = 6
MOST_PATTERNS: Final = 600
"""Patterns that may be moved to, those of least reduced cost, beside each pool's best."""
MOST_EXCHANGES: Final = 30
EXCHANGED: Final = 150
"""Patterns that may be exchanged, likewise."""
_UNPRICED: Final = 0.05
"""Of the dearest node's worth, what a node of a row without a dual counts as."""


class _Arrays(ctypes.Structure):
    """`Patterns` of native/csrc/rounding.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("columns", "rows", "pools")),
        *((name, ctypes.c_void_p) for name in ("pool", "cost", "reduced", "use", "caps")),
    )


_PATTERNS: Final = ctypes.POINTER(_Arrays)
_relieve: Final = function("berth_relieve", _PATTERNS, FLOATS, LENGTH, INTS)
_make_room: Final = function("berth_make_room", _PATTERNS, FLOATS, LENGTH, LENGTH, LENGTH, LENGTH, LENGTH, INTS)
_exchange: Final = function("berth_exchange", _PATTERNS, LENGTH, LENGTH, NUMBER, INTS)


@dataclass(frozen=True)
class Patterns:
    """Known patterns, [column]; every pool's that serves nothing has to be among them."""

    pool: Ints
    cost: Floats
    reduced: Floats
    """Cost with shared nodes at their duals."""
    use: Ints | Floats
    """[column, row] nodes, and whatever else is limited."""
    caps: Floats
    """[row]"""

    @cached_property
    def arrays(self) -> _Arrays:
        """All of this for compiled loops.  Raises ValueError for shapes that do not fit."""
        columns, rows = self.use.shape
        kinds = (self.pool, np.int64), (self.cost, np.float64), (self.reduced, np.float64), (self.use, np.float64)
        if any(len(array) != columns for array, _ in kinds) or self.caps.shape != (rows,):
            raise ValueError("patterns are [column], their use is [column, row], and caps are [row]")
        pools = int(self.pool.max(initial=-1)) + 1
        found = _Arrays(columns=columns, rows=rows, pools=pools)
        found.kept = [np.ascontiguousarray(array, kind) for array, kind in (*kinds, (self.caps, np.float64))]
        found.pool, found.cost, found.reduced, found.use, found.caps = (array.ctypes.data for array in found.kept)
        return found

    def whole(self, chosen: Ints) -> Ints:
        """A copy of `chosen` [pool].  Raises ValueError where a pool's column is not its own."""
        if not np.array_equal(self.pool[chosen], np.arange(self.arrays.pools)):
            raise ValueError("every pool has one of its own columns")
        return np.array(chosen, dtype=np.int64)


def relieved(patterns: Patterns, heaviest: Ints, worth: Floats) -> Ints:
    """[pool] columns within all rows: every pool's heaviest, and where these take too much, whoever gives way cheapest.

    `worth` [row]: USD/h that a node of it is worth about.
    """
    chosen = patterns.whole(heaviest)
    _relieve(patterns.arrays, _weight(worth), MOST_PATTERNS, chosen)
    return chosen


def make_room(patterns: Patterns, chosen: Ints, worth: Floats) -> Ints:
    """[pool] columns no dearer than `chosen`, of which pools have made room for each other; `worth` as above."""
    chosen = patterns.whole(chosen)
    limits = MOST_PATTERNS, MOST_WISHES, WISHES_EACH, MOST_MOVES, MOST_PASSES
    _make_room(patterns.arrays, _weight(worth), *limits, chosen)
    return chosen


def exchange(patterns: Patterns, chosen: Ints, gain: float) -> Ints:
    """[pool] columns no worse than `chosen`; `gain`: USD/h that there can be to gain at most."""
    chosen = patterns.whole(chosen)
    _exchange(patterns.arrays, EXCHANGED, MOST_EXCHANGES, gain, chosen)
    return chosen


def _weight(worth: Floats) -> Floats:
    weight: Floats = worth + _UNPRICED * float(worth.max(initial=1.0))
    return weight
