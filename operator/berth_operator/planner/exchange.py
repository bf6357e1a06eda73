"""Can a whole choice of patterns be bettered by exchanging one or two?  Local search over known patterns.

An exchange of one pool's pattern, or of two pools' at once, is taken when it costs less and keeps to all rows; the best
first, until there is none.  Patterns whose reduced cost alone exceeds what can still be gained are left out.
"""

from typing import Final

import numpy as np

from berth_operator.planner.lanes import Floats, Ints

MOST_EXCHANGES: Final = 30
MOST_PATTERNS: Final = 150
"""Patterns that are tried at most, those of least reduced cost."""
_GAIN: Final = 1e-6
_PAIRS: Final = 2048
_MOST_PAIRS: Final = 16_384


def exchange(chosen: Ints, pool: Ints, cost: Floats, reduced: Floats, use: Ints, caps: Floats, gain: float) -> Ints:
    """[pool] columns no worse than `chosen` [pool]; `gain`: USD/h that there can be to gain at most.

    `pool`, `cost`, `reduced` [column]; `use` [column, row] nodes.
    """
    pools = len(chosen)
    best = np.full(pools, np.inf)
    np.minimum.at(best, pool, reduced)
    excess = reduced - best[pool]
    order = np.argsort(excess, kind="stable")[: MOST_PATTERNS + pools]
    tried = np.sort(order[excess[order] <= gain + _GAIN])
    chosen = chosen.copy()
    for _ in range(MOST_EXCHANGES):
        left = caps - use[chosen].sum(0)
        delta = cost[tried] - cost[chosen[pool[tried]]]
        more = use[tried] - use[chosen[pool[tried]]]
        step = _best_exchange(pool[tried], delta, more, left)
        if step is None:
            break
        for i in step:
            chosen[pool[tried[i]]] = tried[i]
    return chosen


def _best_exchange(pool: Ints, delta: Floats, more: Ints, left: Floats) -> tuple[int, ...] | None:
    """The exchange of one or two patterns that gains most, as indices; None if there is none."""
    cheaper = np.flatnonzero(delta < -_GAIN)
    if not len(cheaper):
        return None
    fits = (more[cheaper] <= left + 1e-9).all(1)
    best, step = -_GAIN, None
    if fits.any():
        one = cheaper[fits][np.argmin(delta[cheaper[fits]])]
        best, step = float(delta[one]), (int(one),)
    cheaper = cheaper[~fits]
    others = np.flatnonzero((more < 0).any(1))
    if not len(cheaper) or not len(others):
        return step
    total = delta[cheaper][:, None] + delta[others][None, :]
    a, b = np.nonzero((total < best) & (pool[cheaper][:, None] != pool[others][None, :]))
    if not len(a):
        return step
    order = np.lexsort((b, a, total[a, b]))[:_MOST_PAIRS]
    for start in range(0, len(order), _PAIRS):
        at = order[start : start + _PAIRS]
        good = (more[cheaper[a[at]]] + more[others[b[at]]] <= left + 1e-9).all(1)
        if good.any():
            first = at[np.argmax(good)]
            return int(cheaper[a[first]]), int(others[b[first]])
    return step
