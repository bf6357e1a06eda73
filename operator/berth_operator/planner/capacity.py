"""What does one replica carry within the objectives?

The greatest rate at which, by `queueing`, at most one turn in a hundred has its first token or its end later than
promised.  Slots are bounded so that no step, with a chunk of a prompt in it or without, takes longer than the promise
between tokens; of the numbers of slots within that and within memory, the best one counts.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from berth_operator.api import Effective
from berth_operator.planner.arrays import Array, Ints, Table, accumulated
from berth_operator.planner.greatest_rate import DEEPEST, Search
from berth_operator.planner.queueing import LATE, Ahead, Queue, first_tokens, gap_p99, turns
from berth_operator.planner.speed import Speed
from berth_operator.planner.station import Loads, Replicas, Station, kept_sessions
from berth_operator.planner.types import ReplicaCapacity

_SELDOM: Final = 1e-9
"""Turns/s that never meet each other."""
_EVERY: Final = 5
"""Concurrencies up to here are all considered."""
_FORGOTTEN: Final = 1e-9
"""Share of sessions, so small that it is none."""

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
    sessions: int | None = None
    """That all of the pool's turns are of, where stated: each has one at a time, and thinks before the next."""

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
            sessions=effective.concurrent_sessions,
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


def replica_capacities(speed: Speed, loads: Sequence[Load]) -> list[ReplicaCapacity | TooSlow]:
    """The same for many loads of one context length."""
    found = solve(as_replicas([(speed, load) for load in loads]), loads, [speed.estimated] * len(loads))
    return [one for one, _ in found]


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
        sessions=column([x.sessions or math.inf for x in loads]),
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
    replicas, loads = replicas.by_columns(), as_loads(of)
    alone = _alone(replicas, loads)
    found: list[Judged | None] = [None] * len(of)
    kv = [int(x) for x in replicas.kv_cache_tokens[:, 0]]
    given = replicas
    replicas, station = _useful(replicas, loads)
    for rows, solved in _by_memory(replicas, loads, station):
        for row, figures in _carried(replicas.at(rows), loads.at(rows), solved):
            i = int(rows[row])
            rate, slots, first, gap, turn = figures
            capacity = ReplicaCapacity(rate, int(slots), first, gap, turn, kv[i], estimated[i])
            found[i] = capacity, alone[i][2]
    slow = [i for i, one in enumerate(found) if one is None]
    p99s = dict(zip(slow, _p99s_alone(given, loads, [alone[i] for i in slow], np.array(slow, np.int64)), strict=True))
    return [one or (too_slow(of[i], *p99s[i]), alone[i][2]) for i, one in enumerate(found)]


def _by_memory(replicas: Replicas, loads: Loads, station: Station) -> Iterator[tuple[Ints, Station | None]]:
    """Pairs that might carry something, with their station where it is the same at all rates: sessions are of one turn,
    or memory keeps all of them even at the greatest rate.  Elsewhere it has to be solved at each."""
    possible, keeps = replicas.fits[:, 1], loads.keeps[:, 0]
    most = 1 / np.where(replicas.fits, station.took, np.inf)[:, 1:].min(axis=1, keepdims=True)
    kept = kept_sessions(replicas, loads, most)[:, 0] > 1 - _FORGOTTEN
    if len(rows := np.flatnonzero(possible & ~keeps)):
        yield rows, station.at(rows).of_kinds(1)
    if len(rows := np.flatnonzero(possible & keeps & kept)):
        yield rows, station.at(rows)
    if len(rows := np.flatnonzero(possible & keeps & ~kept)):
        yield rows, None


def _useful(replicas: Replicas, loads: Loads) -> tuple[Replicas, Station]:
    """Numbers of slots at which the gap holds, up to the one with the most turns/s; of many, every third.

    The last is always among them.  The station is that of sessions that are never forgotten.
    """
    smooth = accumulated(np.logical_and, replicas.gap_p99 <= loads.gap * (1 + 1e-9)) & replicas.fits
    smooth[:, 0] = True
    station, given = Station.finer(replicas, loads, np.ones_like(loads.gap))
    took = station.took.T.take(given).T
    index = np.arange(smooth.shape[1])
    last = np.argmin(np.where(smooth & (index > 0), took, np.inf), axis=1)[:, None]
    last = np.where(smooth[:, 1:2], last, 0)
    kept = smooth & (index <= last) & ((index <= _EVERY) | (index % 3 == 0) | (index == last))
    count = kept.sum(axis=1, keepdims=True)
    column = np.arange(max(int(count.max()), 2))
    order = np.take_along_axis(np.argsort(~kept, axis=1, kind="stable"), np.minimum(column, count - 1), axis=1)

    def chosen(values: Table) -> Table:
        found: Table = np.take_along_axis(values.T, order.T, axis=0).T
        return found

    useful = Replicas(
        chosen(replicas.turns),
        chosen(replicas.step),
        chosen(replicas.gap_p99),
        chosen(replicas.idle),
        np.asfortranarray(column < count),
        replicas.prefill_tokens_per_second,
        replicas.attention_seconds,
        replicas.kv_cache_tokens,
    )
    place = np.take_along_axis(given, order.T, axis=0)
    return useful, station.of_columns(lambda values: values.T.take(place).T)


def _carried(replicas: Replicas, loads: Loads, station: Station | None) -> Iterator[tuple[int, tuple[float, ...]]]:
    """(pair, (turns/s, slots, p99s)) of those that carry anything.  `station`: where it is the same at all rates.

    What a replica carries with b slots does not depend on how many it could have, and the best b counts: whoever may
    have more, because memory is larger or the promise between tokens is looser, carries no less.
    """
    last = replicas.fits.sum(axis=1) - 1
    ahead = Ahead.of(replicas, loads, station) if station else None
    search = Search(replicas, loads, ahead, last)
    top = search.top()
    exponent = search.greatest(top)
    rows, columns = _worth_a_try(search, exponent, top)
    fewer = Search(replicas.at(rows), loads.at(rows), ahead and ahead.at(rows), columns)
    found = fewer.more(exponent[rows])
    column = last.copy()
    for row, at, carried in zip(rows.tolist(), columns.tolist(), found.tolist(), strict=True):
        if carried > exponent[row]:
            exponent[row], column[row] = carried, at
    able = np.flatnonzero(exponent > top - DEEPEST)
    if not len(able):
        return
    best = Search(replicas.at(able), loads.at(able), ahead and ahead.at(able), column[able])
    queue = best.queue(np.arange(len(able)), exponent[able])
    at, loads = column[able][:, None], queue.loads
    slots = np.take_along_axis(queue.replicas.turns, at, axis=1)
    first, turn = _p99s(queue, at, loads.first_token, loads.turn, octaves=4, per_octave=1)
    gap = np.minimum(gap_p99(queue, at), loads.gap)
    table = np.concatenate([queue.rate, slots, first, gap, turn], axis=1)
    yield from zip(able.tolist(), map(tuple, table.tolist()), strict=True)


def _worth_a_try(search: Search, exponent: Ints, top: Ints) -> tuple[Ints, Ints]:
    """(pair, column) with fewer slots that might carry more: whose first tokens, which do not depend on how many slots
    there are beyond those, would be in time."""
    queue = search.queue(np.arange(len(exponent)), np.minimum(exponent + 1, top))
    first = queue.first_late()
    index = np.arange(first.shape[1])
    tried = (first <= LATE) & queue.stable & (index > 0) & (index < search.column[:, None])
    tried &= (exponent < top)[:, None]
    rows, columns = np.nonzero(tried)
    return rows, columns


def _p99s(
    queue: Queue, column: Ints, first: Array, turn: Array, *, octaves: int, per_octave: int
) -> tuple[Array, Array]:
    """[pair, 1] p99 of first token and turn, at most `first` and `turn`; between steps of the grid by interpolation."""
    first_token, whole = first_tokens(queue.replicas, queue.loads, queue.station), turns(queue)
    most, size = (first, turn), queue.rate.shape
    low, high = ([np.full(size, at) for _ in most] for at in (-octaves * per_octave, 0))
    under, over = ([np.full(size, at) for _ in most] for at in (1.0, LATE))
    while (high[0] - low[0] > 1).any():
        middle = [(a + b) // 2 for a, b in zip(low, high, strict=True)]
        limits = [m * np.exp2(x / per_octave) for m, x in zip(most, middle, strict=True)]
        by_state, usual = first_token.late(limits[0])
        late = queue.late(by_state, limits[0] - usual), whole.late(limits[1])
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


_Alone = tuple[float, float, float, float, float]


def _p99s_alone(replicas: Replicas, loads: Loads, means: Sequence[_Alone], rows: Ints) -> list[_Alone]:
    """`_alone` of some pairs; where no promise is broken by it, with p99s: prompts grow, and steps vary.

    Where those hold too, only just, the one that the rarest second turn would break is taken to be broken.
    """
    limits = np.concatenate([loads.gap, loads.first_token, loads.turn], axis=1)[rows]
    open_ = np.flatnonzero((np.array([m[:3] for m in means]).reshape(-1, 3) <= limits).all(axis=1))
    found = list(means)
    if len(open_):
        one = replicas.first(2).at(rows[open_])
        queue = Queue.of(one, loads.at(rows[open_]), np.full((len(open_), 1), _SELDOM))
        hour = np.full((len(open_), 1), 3600.0)
        first, turn = _p99s(queue, np.ones((len(open_), 1), np.int64), hour, hour, octaves=30, per_octave=64)
        for i, *p99s in zip(open_.tolist(), first[:, 0].tolist(), turn[:, 0].tolist(), strict=True):
            most = limits[i, 1:].tolist()
            used = [p99 / limit for p99, limit in zip(p99s, most, strict=True)]
            if max(used) <= 1:
                kind = used.index(max(used))
                p99s[kind] = math.nextafter(most[kind], math.inf)
            found[i] = means[i][0], p99s[0], p99s[1], *means[i][3:]
    return found


def _alone(replicas: Replicas, loads: Loads) -> list[_Alone]:
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
