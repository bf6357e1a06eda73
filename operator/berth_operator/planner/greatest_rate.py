"""What is the greatest rate at which at most one turn in a hundred is late?  For thousands of replicas at once."""

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from berth_operator.planner.arrays import Array, Ints
from berth_operator.planner.queueing import LATE, Ahead, Queue, turns
from berth_operator.planner.station import Loads, Replicas, Station

_PER_OCTAVE: Final = 64
"""Rates are powers of 2^(1/64), a grid that all share: so that what is easier to serve is never found to carry less,
as it could be between the ends of two bisections."""
DEEPEST: Final = 16 * _PER_OCTAVE
"""Steps of the grid below the most turns/s at which a replica counts as carrying nothing."""
_FIRST_STRIDE: Final = 8
"""Steps of the grid: half of the replicas carry more than 2^(-1/4) of the turns/s that they can end at all."""
_LONG_STRIDE: Final = 32
"""When strides are as long, many of those that are left carry nothing."""
_MOST_ODDS: Final = 12.0
"""Logarithm of the odds of being late beyond which rates are alike in the search."""
_TRUNCATED: Final = 0.02
"""Of what is left of a search, how far from the interpolated rate towards the middle it looks."""


@dataclass(frozen=True, slots=True)
class Search:
    """For the greatest rate that holds; rates as exponents on the common grid."""

    replicas: Replicas
    loads: Loads
    ahead: Ahead | None
    """Where it is the same at all rates."""
    column: Ints
    """[pair] where the number of slots stands; no more turns than that fit."""

    def top(self) -> Ints:
        """[pair] the greatest rate that any number of slots up to that can end at all."""
        took = self.ahead.station.took if self.ahead else Station.of(self.replicas, self.loads).took
        within = np.arange(took.shape[1]) <= self.column[:, None]
        least = np.where(self.replicas.fits & within, took, np.inf).min(axis=1)
        found: Ints = np.floor(np.log2(1 / (least * self.unit[:, 0])) * _PER_OCTAVE).astype(np.int64)
        return found

    @property
    def unit(self) -> Array:
        """[pair, 1] turns/s at exponent 0: where sessions are stated those of one, so that rates count sessions."""
        loads = self.loads
        return np.where(np.isfinite(loads.sessions), 1 / (loads.think_seconds + loads.turn), 1.0)

    def queue(self, rows: Ints, exponent: Ints) -> Queue:
        """Some of the pairs at rates."""
        ahead = self.ahead.at(rows) if self.ahead else None
        rate = self.unit[rows] * np.exp2(exponent / _PER_OCTAVE)[:, None]
        replicas = self.replicas.at(rows)
        within = np.arange(replicas.turns.shape[1])[:, None] <= self.column[rows]
        return Queue.of(replace(replicas, fits=replicas.fits & within.T), self.loads.at(rows), rate, ahead)

    def excess(self, rows: Ints, exponent: Ints) -> Array:
        """[row] by how much too many turns are late, in log odds: where it is 0 or less, the rate holds."""
        queue = self.queue(rows, exponent)
        late = np.maximum(queue.first_late(), turns(queue).late(queue.loads.turn))
        found: Array = _log_odds(np.take_along_axis(late, self.column[rows, None], axis=1)[:, 0]) - _log_odds(LATE)
        return found

    def greatest(self, top: Ints) -> Ints:
        """[pair] down from the top in ever longer strides; then to where the last one crosses what may be late.

        `DEEPEST` below the top where no rate above that holds: after a few strides it is asked whether that one does.
        """
        low, high, floor = top + 1, top + 1, top - DEEPEST
        under, over = np.full(len(low), -_MOST_ODDS), np.full(len(low), _MOST_ODDS)
        rows, stride = np.arange(len(low)), _FIRST_STRIDE
        while len(rows):
            high[rows] = low[rows]
            low[rows] = np.maximum(low[rows] - stride, floor[rows])
            rows = rows[low[rows] > floor[rows]]
            excess = self.excess(rows, low[rows])
            holds = excess <= 0
            under[rows[holds]] = excess[holds]
            rows, excess = rows[~holds], excess[~holds]
            over[rows] = excess
            stride *= 2
            if stride == _LONG_STRIDE:
                hopeless = rows[self.excess(rows, floor[rows]) > 0]
                low[hopeless], high[hopeless] = floor[hopeless], floor[hopeless] + 1
                rows = rows[low[rows] > floor[rows]]
        return self._between(low, high, under, over)

    def more(self, base: Ints) -> Ints:
        """[pair] up from a rate in ever longer strides, as far as it holds."""
        low, high = base.copy(), base + 1
        under, over = np.full(len(low), -_MOST_ODDS), np.full(len(low), _MOST_ODDS)
        rows, stride = np.arange(len(low)), 1
        while len(rows):
            high[rows] = low[rows] + stride
            excess = self.excess(rows, high[rows])
            holds = excess <= 0
            under[rows[holds]], over[rows[~holds]] = excess[holds], excess[~holds]
            rows = rows[holds]
            low[rows] = high[rows]
            stride *= 2
        return self._between(low, high, under, over)

    def _between(self, low: Ints, high: Ints, under: Array, over: Array) -> Ints:
        """[pair] where the excess crosses 0, found by interpolation, truncated and projected so that no pair takes more
        than one evaluation more than bisection (ITP; Oliveira and Takahashi 2020)."""
        widest = np.exp2(np.ceil(np.log2(np.maximum(high - low, 1))))
        while len(rows := np.flatnonzero(high - low > 1)):
            at = _between(low[rows], high[rows], under[rows], over[rows], widest[rows])
            excess = self.excess(rows, at)
            holds = excess <= 0
            low[rows], high[rows] = np.where(holds, at, low[rows]), np.where(holds, high[rows], at)
            under[rows], over[rows] = np.where(holds, excess, under[rows]), np.where(holds, over[rows], excess)
            widest[rows] /= 2
        return low


def _log_odds(share: Array | float) -> Array:
    """Of a chance: nearly a straight line in the logarithm of the rate, where the chance itself is a steep curve."""
    inside = np.clip(share, 1 / (1 + math.exp(_MOST_ODDS)), 1 / (1 + math.exp(-_MOST_ODDS)))
    return np.asarray(np.log(inside / (1 - inside)))


def _between(low: Ints, high: Ints, under: Array, over: Array, widest: Array) -> Ints:
    """[row] where to look next: where the line through both ends is 0, a little towards the middle, so that the other
    end comes near, too, and near enough to it that what is left is at most `widest` wide."""
    width, middle = high - low, (low + high) / 2
    crossing = low + width * np.clip(-under / (over - under), 0.0, 1.0)
    towards = np.sign(middle - crossing)
    at = crossing + towards * np.minimum(_TRUNCATED * width + 0.5, np.abs(middle - crossing))
    room = np.maximum(widest - width / 2, 0.0)
    at = np.clip(at, middle - room, middle + room)
    found: Ints = np.clip(np.rint(at), low + 1, high - 1).astype(np.int64)
    return found
