"""How does a divided choice of patterns become a whole one?  Pools give way, and make room for each other.

Every pool takes the pattern that weighs most in the linear master.  Where all together take too much, those give way
that do so at the least cost.  Then, as long as it pays: a pool takes a cheaper pattern that does not fit, and others
move out of its way, perhaps into that of third ones, each time the move that betters most what lacks for its dollars
(an ejection chain, Glover 1996).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from berth_operator.planner.lanes import Floats, Ints

MOST_MOVES: Final = 8
"""Patterns that may make room for one."""
MOST_WISHES: Final = 60
"""Patterns that are tried in a pass."""
WISHES_EACH: Final = 5
"""Of them of one pool."""
MOST_PASSES: Final = 6
MOST_PATTERNS: Final = 600
"""Patterns that may be moved to, those of least reduced cost."""
_GAIN: Final = 1e-6
_FITS: Final = 1e-9
_UNPRICED: Final = 0.05
"""Of the dearest node's worth, what a node of a row without a dual counts as."""


@dataclass(frozen=True, slots=True)
class Patterns:
    """Known patterns, [column]."""

    pool: Ints
    cost: Floats
    reduced: Floats
    """Cost with shared nodes at their duals."""
    use: Ints
    """[column, row] nodes."""
    caps: Floats
    """[row]"""

    def left(self, chosen: Ints) -> Floats:
        """[row] nodes that `chosen` [pool] leave."""
        left: Floats = self.caps - self.use[chosen].sum(0)
        return left


def relieved(patterns: Patterns, heaviest: Ints, worth: Floats) -> Ints:
    """[pool] columns within all rows: every pool's heaviest, and where these take too much, whoever gives way cheapest.

    `worth` [row]: USD/h that a node of it is worth about.  Every pool's pattern that serves nothing has to be known.
    """
    chosen, left = heaviest.copy(), patterns.left(heaviest)
    near, weight = _movable(patterns), _weight(worth)
    everything = np.arange(len(patterns.pool))
    while (lacking := float(np.maximum(-left, 0.0) @ weight)) > _FITS:
        for movable in (near, everything):
            now = chosen[patterns.pool[movable]]
            freed = patterns.use[now] - patterns.use[movable]
            helps = lacking - np.maximum(-left - freed, 0.0) @ weight
            dearer = np.maximum(patterns.reduced[movable] - patterns.reduced[now], 0.0) + _GAIN
            rate = np.where(helps > _FITS, dearer / np.maximum(helps, _FITS), np.inf)
            best = int(np.argmin(rate))
            if np.isfinite(rate[best]):
                chosen[patterns.pool[movable[best]]] = movable[best]
                left = left + freed[best]
                break
    return chosen


def make_room(patterns: Patterns, chosen: Ints, worth: Floats) -> Ints:
    """[pool] columns no dearer than `chosen`, of which pools have made room for each other; `worth` as above."""
    chosen = chosen.copy()
    movable, weight = _movable(patterns), _weight(worth)
    order = np.lexsort((patterns.reduced, patterns.pool))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.searchsorted(patterns.pool[order], patterns.pool[order])
    for _ in range(MOST_PASSES):
        gain = patterns.cost[chosen][patterns.pool] - patterns.cost
        hope = patterns.reduced[chosen][patterns.pool] - patterns.reduced
        wishes = np.flatnonzero((gain > _GAIN) & (hope > _GAIN) & (rank < WISHES_EACH))
        wishes = wishes[np.argsort(-hope[wishes], kind="stable")[:MOST_WISHES]]
        granted = [
            chain
            for wish in wishes.tolist()
            if (chain := _chain(patterns, chosen, wish, movable, weight)) and _take(patterns, chosen, chain)
        ]
        if not granted:
            break
    _take_what_fits(patterns, chosen)
    return chosen


def _movable(patterns: Patterns) -> Ints:
    best = np.full(int(patterns.pool.max(initial=-1)) + 1, np.inf)
    np.minimum.at(best, patterns.pool, patterns.reduced)
    excess = patterns.reduced - best[patterns.pool]
    return np.sort(np.argsort(excess, kind="stable")[: MOST_PATTERNS + len(best)])


def _weight(worth: Floats) -> Floats:
    weight: Floats = worth + _UNPRICED * float(worth.max(initial=1.0))
    return weight


def _take_what_fits(patterns: Patterns, chosen: Ints) -> None:
    """Cheaper patterns that nobody has to make room for, those that save most first."""
    cheaper = np.flatnonzero(patterns.cost < patterns.cost[chosen][patterns.pool] - _GAIN)
    saved = patterns.cost[chosen][patterns.pool[cheaper]] - patterns.cost[cheaper]
    left = patterns.left(chosen)
    for column in cheaper[np.argsort(-saved, kind="stable")].tolist():
        pool = patterns.pool[column]
        more = patterns.use[column] - patterns.use[chosen[pool]]
        if patterns.cost[column] < patterns.cost[chosen[pool]] - _GAIN and (more <= left + _FITS).all():
            chosen[pool] = column
            left = left - more


def _take(patterns: Patterns, chosen: Ints, columns: list[int]) -> bool:
    chosen[patterns.pool[columns]] = columns
    return True


def _chain(patterns: Patterns, chosen: Ints, wish: int, movable: Ints, weight: Floats) -> list[int]:
    """`wish` and the patterns that make room for it, if all together are cheaper than what they replace;
    else nothing."""
    pool, cost, use = patterns.pool, patterns.cost, patterns.use
    gain = float(cost[chosen[pool[wish]]] - cost[wish])
    if gain <= _GAIN:
        return []
    left = patterns.left(chosen) + use[chosen[pool[wish]]] - use[wish]
    moves, touched = [wish], np.zeros(len(chosen), dtype=np.bool_)
    touched[pool[wish]] = True
    for _ in range(MOST_MOVES):
        lacking = float(np.maximum(-left, 0.0) @ weight)
        if lacking <= _FITS:
            return moves
        others = movable[~touched[pool[movable]]]
        freed = use[chosen[pool[others]]] - use[others]
        dearer = cost[others] - cost[chosen[pool[others]]]
        helps = lacking - np.maximum(-left - freed, 0.0) @ weight
        able = np.flatnonzero((helps > _FITS) & (dearer < gain - _GAIN))
        if not len(able):
            return []
        rate = np.where(dearer[able] > 0, dearer[able] / helps[able], dearer[able])
        best = int(others[able[np.argmin(rate)]])
        gain -= float(cost[best] - cost[chosen[pool[best]]])
        left = left + use[chosen[pool[best]]] - use[best]
        touched[pool[best]] = True
        moves.append(best)
    return moves if (left >= -_FITS).all() else []
