"""What do many replicas carry within their objectives?  `capacity` for thousands of (speed, load) pairs at once.

The same bisection over the same formulas, elementwise over (pair, concurrency) entries, with the same results.  After
a few halvings, most concurrencies of a pair cannot be its best any more (what they may carry at most is less than what
another carries) and are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from berth_operator.api import HardwareClassSpec, Quantization
from berth_operator.planner.architectures import Architecture
from berth_operator.planner.capacity import (
    BISECTIONS,
    Load,
    Loads,
    Steps,
    TooSlow,
    holds,
    predicted,
    too_slow,
    uncached_tokens,
)
from berth_operator.planner.speed import Speed, roofline_speeds
from berth_operator.planner.types import ReplicaCapacity

_PRUNE_AT: Final = (4, 8, 14, 22)
_MOST_ENTRIES: Final = 60_000
"""Entries at once: bounds the memory that a batch takes."""

Ints = np.ndarray[tuple[Any, ...], np.dtype[np.int64]]
Judged = tuple[ReplicaCapacity | TooSlow, float]
"""What a replica carries, and its turn latency with nothing else to do, seconds."""


@dataclass(frozen=True, slots=True)
class _Entries:
    """(pair, concurrency) entries, those of a pair together and by rising concurrency, each first with 1."""

    pair: Ints
    steps: Steps
    loads: Loads


def roofline_capacities(
    spec: HardwareClassSpec, architecture: Architecture, quantization: Quantization, loads: Sequence[Load]
) -> list[Judged]:
    """`replica_capacity` and `unloaded_turn_seconds` of estimates of one class for many loads."""
    found: list[Judged] = []
    per_load = 48
    for start in range(0, len(loads), max(1, _MOST_ENTRIES // per_load)):
        part = loads[start : start + max(1, _MOST_ENTRIES // per_load)]
        speeds = roofline_speeds(spec, architecture, quantization, np.array([x.mean_context_tokens for x in part]))
        needed = np.array([x.context_tokens for x in part])
        fits = (speeds.concurrency[None, :] <= speeds.limit[:, None]) & (
            speeds.concurrency[None, :] * needed[:, None] <= speeds.kv_cache_tokens
        )
        pair, at = np.nonzero(fits)
        steps = Steps(
            speeds.concurrency[at],
            speeds.step[pair, at],
            speeds.gap_p99[pair, at],
            speeds.idle[pair, at],
            speeds.prefill_tokens_per_second[pair],
            np.full(len(pair), float(speeds.kv_cache_tokens)),
        )
        kv = [speeds.kv_cache_tokens] * len(part)
        found += _solve(_Entries(pair, steps, Loads.of(part, pair)), part, kv, [True] * len(part))
    return found


def profiled_capacities(pairs: Sequence[tuple[Speed, Load]]) -> list[Judged]:
    """The same of speeds from profiles."""
    if not pairs:
        return []
    parts = [Steps.of(speed, load) for speed, load in pairs]
    sizes = [len(p.concurrency) for p in parts]
    pair = np.repeat(np.arange(len(pairs)), sizes)
    steps = Steps(
        np.concatenate([p.concurrency for p in parts]),
        np.concatenate([p.step for p in parts]),
        np.concatenate([p.gap for p in parts]),
        np.concatenate([p.idle for p in parts]),
        np.concatenate([p.prefill_tokens_per_second for p in parts]),
        np.concatenate([p.kv_cache_tokens for p in parts]),
    )
    loads = [load for _, load in pairs]
    kv, estimated = [s.kv_cache_tokens for s, _ in pairs], [s.estimated for s, _ in pairs]
    return _solve(_Entries(pair, steps, Loads.of(loads, pair)), loads, kv, estimated)


def _solve(entries: _Entries, loads: Sequence[Load], kv: Sequence[int], estimated: Sequence[bool]) -> list[Judged]:
    pair, steps, load = entries.pair, entries.steps, entries.loads
    zero = np.zeros(len(pair))
    idle = predicted(steps, load, zero)
    first = np.searchsorted(pair, np.arange(len(loads)))
    uncached = uncached_tokens(steps, load, zero)
    possible = np.flatnonzero(holds(idle, load))
    best = _best(pair[possible], steps.at(possible), load.at(possible))
    found: list[Judged] = []
    for i, at in enumerate(first.tolist()):
        unloaded = float(idle.turn[at])
        if i in best:
            rate, concurrency, first_token, gap, turn = best[i]
            carried = ReplicaCapacity(rate, int(concurrency), first_token, gap, turn, kv[i], estimated[i])
            found.append((carried, unloaded))
        else:
            latencies = float(idle.gap[at]), float(idle.first_token[at]), unloaded
            speed = float(steps.prefill_tokens_per_second[at])
            found.append((too_slow(loads[i], *latencies, float(uncached[at]), speed), unloaded))
    return found


def _best(pair: Ints, steps: Steps, load: Loads) -> dict[int, tuple[float, float, float, float, float]]:
    """By pair: (turns/s, concurrency, first token, gap, turn) at its best concurrency, the least of equals."""
    if not len(pair):
        return {}
    low, high = np.zeros(len(pair)), steps.concurrency / (load.output_tokens * steps.step)
    for turn in range(BISECTIONS):
        middle = (low + high) / 2
        ok = holds(predicted(steps, load, middle), load)
        low, high = np.where(ok, middle, low), np.where(ok, high, middle)
        if turn in _PRUNE_AT:
            starts = np.flatnonzero(np.diff(pair, prepend=-1))
            most = np.repeat(np.maximum.reduceat(low, starts), np.diff(np.append(starts, len(pair))))
            kept = np.flatnonzero(high >= most)
            pair, low, high, steps, load = pair[kept], low[kept], high[kept], steps.at(kept), load.at(kept)
    order = np.lexsort((np.arange(len(pair)), -low, pair))
    winners = order[np.flatnonzero(np.diff(pair[order], prepend=-1))]
    at = predicted(steps.at(winners), load.at(winners), low[winners])
    columns = (pair[winners], low[winners], steps.concurrency[winners], at.first_token, at.gap, at.turn)
    return {p: (a, b, c, d, e) for p, a, b, c, d, e in zip(*(x.tolist() for x in columns), strict=True)}
