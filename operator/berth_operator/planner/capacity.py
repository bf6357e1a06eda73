"""What does one replica carry within the objectives?

The greatest rate at which, by `queueing`, at most one turn in a hundred has its first token or its end later than
promised.  Slots are bounded so that no step, with a chunk of a prompt in it or without, takes longer than the promise
between tokens; of the numbers of slots within that and within memory, the best one counts.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np

from berth_operator.api import Effective
from berth_operator.planner.queueing import LATE, Queue, gap_p99, times
from berth_operator.planner.speed import Speed
from berth_operator.planner.station import Array, Ints, Loads, Replicas, Station
from berth_operator.planner.types import ReplicaCapacity

_PER_OCTAVE: Final = 64
"""Rates are powers of 2^(1/64), a grid that all share: so that what is easier to serve is never found to carry less,
as it could be between the ends of two bisections."""
_OCTAVES: Final = 16
_FIRST_STRIDE: Final = 8
"""Steps of the grid: half of the replicas carry more than 2^(-1/4) of the turns/s that they can end at all."""
_MOST_ODDS: Final = 12.0
"""Logarithm of the odds of being late beyond which rates are alike in the search."""
_TRUNCATED: Final = 0.02
"""Of what is left of a search, how far from the interpolated rate towards the middle it looks."""
_EVERY: Final = 5
"""Concurrencies up to here are all considered."""

Judged = tuple["ReplicaCapacity | TooSlow", float]
"""What a replica carries, and its turn latency with nothing else to do, seconds."""


@dataclass(frozen=True, slots=True)
class Load:
    """One pool's requests and promises, seconds and tokens."""

    prompt_tokens: int
    output_tokens: int
    cached_share: float
    """0 to 1, of the prompt."""
    turns_per_session: int
    """Above 1, sessions come back for more turns, so their KV must stay."""
    think_seconds: float
    first_token: float
    gap: float
    turn: float
    prompt_spread: float = 0.0
    """Variance over squared mean of a turn's uncached tokens; likewise below."""
    output_spread: float = 0.0

    @staticmethod
    def of(effective: Effective) -> "Load":
        """The load that a resolved spec describes."""
        return Load(
            prompt_tokens=effective.prompt_tokens,
            output_tokens=effective.output_tokens,
            cached_share=effective.cached_prompt_percent / 100,
            turns_per_session=effective.turns_per_session,
            think_seconds=effective.think_time.total_seconds(),
            first_token=effective.time_to_first_token_p99.total_seconds(),
            gap=effective.inter_token_latency_p99.total_seconds(),
            turn=effective.turn_latency_p99.total_seconds(),
        )

    @property
    def context_tokens(self) -> int:
        """KV tokens of one request at its end."""
        return self.prompt_tokens + self.output_tokens

    @property
    def mean_context_tokens(self) -> float:
        """KV tokens of one request on average while it decodes."""
        return self.prompt_tokens + self.output_tokens / 2


@dataclass(frozen=True, slots=True)
class TooSlow:
    """An objective that does not hold even for one request on an idle replica."""

    field: str
    """In spec.objectives."""
    predicted: float
    """Seconds."""
    objective: float
    reason: str


@dataclass(frozen=True, slots=True)
class Latencies:
    """Predicted p99s, seconds."""

    first_token: float
    gap: float
    turn: float


@lru_cache(maxsize=16384)
def _judged(speed: Speed, load: Load) -> Judged:
    return solve(as_replicas([(speed, load)]), [load], [speed.estimated])[0]


def replica_capacity(speed: Speed, load: Load) -> ReplicaCapacity | TooSlow:
    """The greatest rate that one replica carries within the objectives, over all concurrencies its memory allows.

    Requires that the KV memory holds one request (`load.context_tokens <= speed.kv_cache_tokens`).
    """
    return _judged(speed, load)[0]


def unloaded_turn_seconds(speed: Speed, load: Load) -> float:
    """Turn latency of one request on an idle replica: what objective Latency compares."""
    return _judged(speed, load)[1]


def latencies(speed: Speed, load: Load, rate: float, slots: int) -> Latencies | None:
    """p99s of a replica that runs at most `slots` turns at once, at `rate` turns/s; None: it cannot keep up."""
    replicas, loads = as_replicas([(speed, load)]), as_loads([load])
    queue = Queue.of(replicas, loads, np.array([[rate]]))
    column = np.searchsorted(replicas.turns[0], [[slots]], side="right") - 1
    if not queue.stable[0, column[0, 0]]:
        return None
    hour = np.full((1, 1), 3600.0)
    first, turn = _p99s(queue, column, hour, hour, octaves=30, per_octave=64)
    return Latencies(float(first[0, 0]), float(gap_p99(queue, column)[0, 0]), float(turn[0, 0]))


def as_loads(loads: Sequence[Load]) -> Loads:
    """The loads as columns."""

    def column(values: Sequence[float]) -> Array:
        return np.array(values, dtype=np.float64)[:, None]

    return Loads(
        prompt_tokens=column([x.prompt_tokens for x in loads]),
        output_tokens=column([x.output_tokens for x in loads]),
        context_tokens=column([x.context_tokens for x in loads]),
        cached_share=column([x.cached_share for x in loads]),
        turns_per_session=column([x.turns_per_session for x in loads]),
        think_seconds=column([x.think_seconds for x in loads]),
        prompt_spread=column([x.prompt_spread for x in loads]),
        output_spread=column([x.output_spread for x in loads]),
        first_token=column([x.first_token for x in loads]),
        gap=column([x.gap for x in loads]),
        turn=column([x.turn for x in loads]),
    )


def as_replicas(pairs: Sequence[tuple[Speed, Load]]) -> Replicas:
    """Speeds as rows, each as far as memory holds that many requests of its load."""
    longest = max(len(speed.concurrency) for speed, _ in pairs)

    def rows(values: Sequence[Sequence[float]]) -> Array:
        padded = [[v[0], *v, *[v[-1]] * (longest - len(v))] for v in values]
        return np.array(padded, dtype=np.float64)

    turns = rows([s.concurrency for s, _ in pairs])
    turns[:, 0] = 0
    counts = np.array([len(s.concurrency) for s, _ in pairs])[:, None]
    needed = np.array([load.context_tokens for _, load in pairs])[:, None]
    kv = np.array([float(s.kv_cache_tokens) for s, _ in pairs])[:, None]
    return Replicas(
        turns=turns,
        step=rows([s.step_seconds for s, _ in pairs]),
        gap_p99=rows([s.gap_p99_seconds for s, _ in pairs]),
        idle=rows([s.idle_seconds for s, _ in pairs]),
        fits=(np.arange(longest + 1) <= counts) & (turns * needed <= kv),
        prefill_tokens_per_second=np.array([s.prefill_tokens_per_second for s, _ in pairs])[:, None],
        attention_seconds=np.array([s.attention_seconds for s, _ in pairs])[:, None],
        kv_cache_tokens=kv,
    )


# --- The search -----------------------------------------------------------------------------------------------------


def solve(replicas: Replicas, of: Sequence[Load], estimated: Sequence[bool]) -> list[Judged]:
    """What each pair carries."""
    loads = as_loads(of)
    alone = _alone(replicas, loads)
    found: list[Judged | None] = [None] * len(of)
    kv = [int(x) for x in replicas.kv_cache_tokens[:, 0]]
    replicas, station = _useful(replicas, loads)
    possible = replicas.fits[:, 1]
    for forgets in (False, True):
        rows = np.flatnonzero(possible & (loads.keeps[:, 0] == forgets))
        if len(rows):
            for row, figures in _carried(replicas.at(rows), loads.at(rows), station.at(rows), forgets=forgets):
                i = int(rows[row])
                rate, slots, first, gap, turn = figures
                capacity = ReplicaCapacity(rate, int(slots), first, gap, turn, kv[i], estimated[i])
                found[i] = capacity, alone[i][2]
    return [one or (too_slow(of[i], *alone[i]), alone[i][2]) for i, one in enumerate(found)]


def _useful(replicas: Replicas, loads: Loads) -> tuple[Replicas, Station]:
    """Numbers of slots at which the gap holds, up to the one with the most turns/s; of many, every third.

    The last is always among them.  The station is that of sessions that are never forgotten.
    """
    smooth = np.logical_and.accumulate(replicas.gap_p99 <= loads.gap * (1 + 1e-9), axis=1) & replicas.fits
    smooth[:, 0] = True
    station = Station.of(replicas, loads)
    index = np.arange(smooth.shape[1])
    last = np.argmin(np.where(smooth & (index > 0), station.took, np.inf), axis=1)[:, None]
    last = np.where(smooth[:, 1:2], last, 0)
    kept = smooth & (index <= last) & ((index <= _EVERY) | (index % 3 == 0) | (index == last))
    count = int(kept.sum(axis=1).max())
    order = np.argsort(~kept, axis=1, kind="stable")[:, : max(count, 2)]

    def chosen(values: Array) -> Array:
        return np.take_along_axis(values, order, axis=1)

    useful = Replicas(
        chosen(replicas.turns),
        chosen(replicas.step),
        chosen(replicas.gap_p99),
        chosen(replicas.idle),
        np.take_along_axis(kept, order, axis=1),
        replicas.prefill_tokens_per_second,
        replicas.attention_seconds,
        replicas.kv_cache_tokens,
    )
    return useful, station.of_columns(chosen)


def _carried(
    replicas: Replicas, loads: Loads, station: Station, *, forgets: bool
) -> Iterator[tuple[int, tuple[float, ...]]]:
    """(pair, (turns/s, slots, p99s)) of those that carry anything.

    What a replica carries with b slots does not depend on how many it could have, and the best b counts: whoever may
    have more, because memory is larger or the promise between tokens is looser, carries no less.
    """
    last = replicas.fits.sum(axis=1) - 1
    search = _Search(replicas, loads, None if forgets else station, last)
    exponent = search.greatest(search.top())
    rows, columns = _worth_a_try(search, exponent)
    fewer = _Search(replicas.at(rows), loads.at(rows), None if forgets else station.at(rows), columns)
    found = fewer.more(exponent[rows])
    column = last.copy()
    for row, at, carried in zip(rows.tolist(), columns.tolist(), found.tolist(), strict=True):
        if carried > exponent[row]:
            exponent[row], column[row] = carried, at
    able = np.flatnonzero(exponent > search.floor)
    if not len(able):
        return
    best = _Search(replicas.at(able), loads.at(able), None if forgets else station.at(able), column[able])
    queue = best.queue(np.arange(len(able)), exponent[able])
    at, loads = column[able][:, None], queue.loads
    slots = np.take_along_axis(queue.replicas.turns, at, axis=1)
    first, turn = _p99s(queue, at, loads.first_token, loads.turn, octaves=4, per_octave=1)
    gap = np.minimum(gap_p99(queue, at), loads.gap)
    table = np.concatenate([queue.rate, slots, first, gap, turn], axis=1)
    yield from zip(able.tolist(), map(tuple, table.tolist()), strict=True)


def _worth_a_try(search: "_Search", exponent: Ints) -> tuple[Ints, Ints]:
    """(pair, column) with fewer slots that might carry more: whose first tokens, which do not depend on how many slots
    there are beyond those, would be in time."""
    queue = search.queue(np.arange(len(exponent)), np.minimum(exponent + 1, search.top()))
    first, _ = times(queue).late(queue.loads.first_token, queue.loads.turn)
    index = np.arange(first.shape[1])
    tried = (first <= LATE) & queue.stable & (index > 0) & (index < search.column[:, None])
    tried &= (exponent < search.top())[:, None]
    rows, columns = np.nonzero(tried)
    return rows, columns


@dataclass(frozen=True, slots=True)
class _Search:
    """For the greatest rate that holds; rates as exponents on the common grid."""

    replicas: Replicas
    loads: Loads
    station: Station | None
    column: Ints
    """[pair] where the number of slots stands; no more turns than that fit."""

    def top(self) -> Ints:
        """[pair] the greatest rate that any number of slots up to that can end at all."""
        took = self.station.took if self.station else Station.of(self.replicas, self.loads).took
        within = np.arange(took.shape[1]) <= self.column[:, None]
        least = np.where(self.replicas.fits & within, took, np.inf).min(axis=1)
        found: Ints = np.floor(np.log2(1 / least) * _PER_OCTAVE).astype(np.int64)
        return found

    @property
    def floor(self) -> Ints:
        """[pair] what is given where no rate above it holds."""
        return self.top() - _OCTAVES * _PER_OCTAVE

    def queue(self, rows: Ints, exponent: Ints) -> Queue:
        """Some of the pairs at rates."""
        station = self.station.at(rows) if self.station else None
        rate = np.exp2(exponent / _PER_OCTAVE)[:, None]
        replicas = self.replicas.at(rows)
        within = np.arange(replicas.turns.shape[1]) <= self.column[rows, None]
        return Queue.of(replace(replicas, fits=replicas.fits & within), self.loads.at(rows), rate, station)

    def excess(self, rows: Ints, exponent: Ints) -> Array:
        """[row] by how much too many turns are late, in log odds: where it is 0 or less, the rate holds."""
        queue = self.queue(rows, exponent)
        late = np.maximum(*times(queue).late(queue.loads.first_token, queue.loads.turn))
        found: Array = _log_odds(np.take_along_axis(late, self.column[rows, None], axis=1)[:, 0]) - _log_odds(LATE)
        return found

    def greatest(self, top: Ints) -> Ints:
        """[pair] down from the top in ever longer strides; then to where the last one crosses what may be late."""
        low, high, floor = top + 1, top + 1, top - _OCTAVES * _PER_OCTAVE
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


def _p99s(
    queue: Queue, column: Ints, first: Array, turn: Array, *, octaves: int, per_octave: int
) -> tuple[Array, Array]:
    """[pair, 1] p99 of first token and turn, at most `first` and `turn`; between steps of the grid by interpolation."""
    spread = times(queue)
    most, size = (first, turn), queue.rate.shape
    low, high = ([np.full(size, at) for _ in most] for at in (-octaves * per_octave, 0))
    under, over = ([np.full(size, at) for _ in most] for at in (1.0, LATE))
    while (high[0] - low[0] > 1).any():
        middle = [(a + b) // 2 for a, b in zip(low, high, strict=True)]
        late = spread.late(*(m * np.exp2(x / per_octave) for m, x in zip(most, middle, strict=True)))
        for kind, shares in enumerate(late):
            share = np.take_along_axis(shares, column, axis=1)
            ok = share <= LATE
            high[kind], over[kind] = np.where(ok, middle[kind], high[kind]), np.where(ok, share, over[kind])
            low[kind], under[kind] = np.where(ok, low[kind], middle[kind]), np.where(ok, under[kind], share)
    found = []
    for kind, limit in enumerate(most):
        above, below = np.log(np.maximum(under[kind], 1e-9)), np.log(np.maximum(over[kind], 1e-9))
        part = np.where(above > below, (above - math.log(LATE)) / np.maximum(above - below, 1e-9), 1.0)
        found.append(limit * np.exp2((low[kind] + np.clip(part, 0.0, 1.0)) / per_octave))
    return found[0], found[1]


def _alone(replicas: Replicas, loads: Loads) -> list[tuple[float, float, float, float, float]]:
    """(gap p99, first token, turn, uncached tokens, prefill tokens/s) of one request on an idle replica, by pair."""
    speed, step = replicas.prefill_tokens_per_second, replicas.step[:, 1:2]
    uncached = np.maximum(loads.prompt_tokens * (1 - loads.cached_share), 1.0)
    first = uncached / speed + step
    turn = first + (loads.output_tokens - 1) * step
    table = np.concatenate([replicas.gap_p99[:, 1:2], first, turn, uncached, speed], axis=1)
    return [(a, b, c, d, e) for a, b, c, d, e in table.tolist()]


def too_slow(
    load: Load, gap: float, first: float, turn: float, uncached: float, prefill_tokens_per_second: float
) -> TooSlow:
    """Which promise one request on an idle replica breaks, with the number; latencies are the predicted ones."""
    if gap > load.gap:
        reason = f"inter-token p99 {seconds(gap)} at 1 request > {seconds(load.gap)}"
        return TooSlow("interTokenLatencyP99", gap, load.gap, reason)
    if first > load.first_token:
        reason = (
            f"first token p99 {seconds(first)} at 1 request ({uncached:.0f} uncached prompt tokens at"
            f" {prefill_tokens_per_second:.0f} tokens/s) > {seconds(load.first_token)}"
        )
        return TooSlow("timeToFirstTokenP99", first, load.first_token, reason)
    reason = f"turn p99 {seconds(turn)} at 1 request > {seconds(load.turn)}"
    return TooSlow("turnLatencyP99", turn, load.turn, reason)


def seconds(value: float) -> str:
    """A duration for people: milliseconds below two seconds, rounded up so that `predicted > objective` reads true."""
    if value < 2:
        return f"{math.ceil(value * 1000 - 1e-6)} ms"
    return f"{math.ceil(value * 100 - 1e-6) / 100:g} s"
