"""How long do turns take on a replica at a given rate?  The queueing model, for many replicas and loads at once.

A turn brings S seconds of prefill (its uncached prompt at the measured speed) and O output tokens.  With n turns in the
replica, d of which decode, a step takes s(d) seconds and gives each of the d a token.  Beside them prompts are read in
chunks: a chunk lengthens its step by e(d) and does c(d) = e(d) + idle(d) seconds of prefill, where idle is arithmetic
that waits for memory anyway.  Runtimes bound e; here as Berth's engine does (its `engine/pacing.py`): a step with a
chunk takes at most twice a step without, or 20 ms, and never more than the objective.

    T(n) = S e/c + k s,  k = S/c + 1/2 <= O        prefill beside n others: with more steps none of them were left
    X(n) = 1 / (S e/c + O s/d)                     turns/s of a replica that always holds n: a second of the processor
                                                   is spent once, on prefill or on decoding
    P(n) ~ product of rate / X(i), i <= n          chance of n turns in the replica, which stands for the whole as a
                                                   station whose rate depends on n alone (Chandy, Herzog and Woo 1975);
                                                   sessions that think and come back do not change it (Baskett et al.
                                                   1975), nor does how much turns differ, while a slot is free

With b slots, turns wait from n = b on: P(n) is geometric there, and the wait exponential, with (1 + output spread)/2
of the mean that exponential service times give it (Lee and Longton 1959).  An arrival sees P.

    first token   the step that runs + wait for the prompts ahead (M/G/1: Takacs' moments) + T(n)
    decoding      O - 1 steps, stretched by the prompts that come meanwhile (delay busy period: mean 1/u, variance
                  rate E[S^2]/u^3, u = 1 - rate S; Kleinrock 1975), at a concurrency that starts at d(n) and goes back
                  to its mean within about a turn, the slower the more concurrency slows tokens

p99s do not add.  Means, variances and third cumulants do where parts are independent, so those are summed for each n;
a gamma distribution of these three (Pearson III, its tail after Wilson and Hilferty 1931) gives the chance to be late,
and the chances are weighed with P(n).  Checked against the engine's own scheduler in tests/planner/test_queueing.py
and against the real worker by benchmarks/capacity.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

Array = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]
Flags = np.ndarray[tuple[Any, ...], np.dtype[np.bool_]]
Ints = np.ndarray[tuple[Any, ...], np.dtype[np.int64]]

LATE: Final = 0.01
"""Share of turns, or tokens, that may take longer than an objective."""
STEP_FACTOR: Final = 2.0
LEAST_PACE: Final = 0.02
"""Seconds; both as in the engine's pacing."""
_LATENESS: Final = (1.05, 1.25)
"""How far below the bound the engine aims, so that its jitter stays within (its `engine/cost.py`)."""
_TINY: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Replicas:
    """Speeds, [pair, i] by turns in the replica: turns[:, 0] = 0, then ascending from 1."""

    turns: Array
    step: Array
    """Seconds of a decode step with so many streams; column 0 as column 1."""
    gap_p99: Array
    idle: Array
    fits: Flags
    """Whether KV memory holds so many; True up to a column, then False."""
    prefill_tokens_per_second: Array
    """[pair, 1]"""
    kv_cache_tokens: Array
    """[pair, 1]"""

    def at(self, rows: Ints) -> "Replicas":
        """Some of the pairs."""
        return Replicas(*(getattr(self, name)[rows] for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Loads:
    """Workloads and their promises, [pair, 1]; seconds and tokens."""

    prompt_tokens: Array
    output_tokens: Array
    context_tokens: Array
    cached_share: Array
    turns_per_session: Array
    think_seconds: Array
    prompt_spread: Array
    """Variance over squared mean of a turn's uncached prompt."""
    output_spread: Array
    first_token: Array
    gap: Array
    turn: Array

    def at(self, rows: Ints) -> "Loads":
        """Some of the pairs."""
        return Loads(*(getattr(self, name)[rows] for name in self.__slots__))

    @property
    def keeps(self) -> Flags:
        """Sessions come back and part of their prompt can be cached."""
        return (self.turns_per_session > 1) & (self.cached_share > 0)


def hit_share(replicas: Replicas, loads: Loads, rate: Array) -> Array:
    """Share of turns whose session is still in memory: least recently used goes first (Che et al. 2002).

    A session stays for a time t after its last turn, by which all memory has been used anew; think times are taken as
    exponential with mean Z, and a session's last turn, one in N, leaves its memory until then:
    room = rate x context x (Z (1 - 1/N) h + t/N) with h = 1 - exp(-t/Z).  Room is what turns in service leave.
    """
    if not loads.keeps.any():
        return np.ones_like(rate)
    work = loads.output_tokens * replicas.step[:, 1:2]
    inside = np.minimum(rate * work * 1.5, replicas.turns.max(axis=1, keepdims=True))
    room = np.maximum(replicas.kv_cache_tokens - inside * loads.context_tokens, 0.0)
    think = np.maximum(loads.think_seconds, _TINY)
    wanted = np.minimum(room / np.maximum(rate * loads.context_tokens * think, _TINY), 50.0)
    last = 1 / loads.turns_per_session
    time = wanted  # t/Z; the equation is concave and rises from 0, so that Newton from the right of it converges
    for _ in range(5):
        left = np.exp(-time)
        time = np.maximum(time - ((1 - last) * (1 - left) + last * time - wanted) / ((1 - last) * left + last), 0.0)
    return np.where(loads.keeps, 1 - np.exp(-time), 1.0)


@dataclass(frozen=True, slots=True)
class Station:
    """What n turns do to each other, [pair, i]; but for forgotten sessions, no matter how many come."""

    hits: Array
    """[pair, 1] share of turns whose prompt is cached as stated; the others' sessions were forgotten."""
    work: tuple[Array, Array]
    """[pair, 1] S of the one and the other."""
    mean_work: Array
    own: tuple[Array, Array]
    """T likewise, [pair, i]."""
    mean_own: Array
    decoding: Array
    """d."""
    step: Array
    steals: Array
    """Share of prefill that lengthens steps: e/c."""
    took: Array
    """1/X."""

    @staticmethod
    def of(replicas: Replicas, loads: Loads, hits: Array) -> "Station":
        """Turns that decode are those in the replica less those that read their prompt, which is bounded as T is."""
        turns, output, speed = replicas.turns, loads.output_tokens, replicas.prefill_tokens_per_second
        cached = np.maximum(loads.prompt_tokens * (1 - loads.cached_share), 1.0) / speed
        cold = loads.prompt_tokens / speed
        work = _mixed(hits, cached, cold)
        chunk = np.maximum(_added(replicas, loads, replicas.step) + replicas.idle, _TINY)
        chunks = np.minimum(work / chunk + 0.5, output * turns / (turns + 1))
        seconds = output * replicas.step
        share = seconds / (seconds + work + replicas.step * chunks)
        decoding = np.maximum(np.minimum(turns * share, 1 + output * chunk / work), np.minimum(turns, 1.0))
        chord = (replicas.step - replicas.step[:, 1:2]) / np.maximum(turns - 1, 1.0)
        step = replicas.step[:, 1:2] + chord * np.maximum(decoding - 1, 0.0)
        added = _added(replicas, loads, step)
        chunk = np.maximum(added + replicas.idle, _TINY)
        steals = np.where(added > 0, added / chunk, 1.0)
        drained = output * np.minimum(decoding, 1.0)

        def own(work: Array) -> Array:
            """Alone a prompt is read at full speed, in a step of its own."""
            steps = np.maximum(np.minimum(work / chunk + 0.5, drained), 1.0)
            seconds: Array = np.where(turns > 0, work * steals + steps * step, work + step)
            return seconds

        found = own(cached)
        forgets = bool((hits < 1).any())
        owns = found, own(cold) if forgets else found
        took = steals * work + output * step / np.maximum(decoding, _TINY)
        took[:, 0] = took[:, 1]  # nobody leaves an empty replica
        mean_own = _mixed(hits, *owns) if forgets else found
        return Station(hits, (cached, cold), work, owns, mean_own, decoding, step, steals, took)

    def at(self, rows: Ints) -> "Station":
        """Some of the pairs."""
        one, two = self.work, self.own
        same = two[0] is two[1]
        first = two[0][rows]
        return Station(
            self.hits[rows],
            (one[0][rows], one[1][rows]),
            self.mean_work[rows],
            (first, first if same else two[1][rows]),
            first if same else self.mean_own[rows],
            self.decoding[rows],
            self.step[rows],
            self.steals[rows],
            self.took[rows],
        )


@dataclass(frozen=True, slots=True)
class Queue:
    """A replica at a rate: [pair, i] by the turns that an arrival finds, [pair, 1] by pair."""

    replicas: Replicas
    loads: Loads
    station: Station
    rate: Array
    chance: Array
    """P but for its scale."""
    below: tuple[Array, Array]
    """Factors of a column and of the next one in a sum over the whole numbers from the one to below the other."""
    stable: Flags
    waits: Array
    """Chance of all states from n on, if the replica has n slots."""
    whole: Array
    """Chance of all states, if the replica has n slots."""
    weights: Array
    """Chance of what an arrival finds, with as many slots as memory has room for."""

    @staticmethod
    def of(replicas: Replicas, loads: Loads, rate: Array, station: Station | None = None) -> "Queue":
        """`rate`: turns/s, [pair, 1].  `station`: where no session is forgotten, the same for every rate."""
        if station is None:
            station = Station.of(replicas, loads, hit_share(replicas, loads, rate))
        took = station.took
        width = np.diff(replicas.turns, axis=1)
        here, there = (width + 1) / 2, (width - 1) / 2
        grown = np.log(rate * took)
        grown[:, 1:] = np.cumsum(there * grown[:, :-1] + here * grown[:, 1:], axis=1)
        grown[:, 0] = 0.0
        grown[~replicas.fits] = -np.inf
        chance = np.exp(grown - grown.max(axis=1, keepdims=True))
        busy = rate * took
        stable = replicas.fits & (busy < 1 - 1e-9)
        waits = np.where(stable, chance / np.where(stable, 1 - busy, 1.0), 0.0)
        whole = _before(chance, (here, there)) + waits
        last = replicas.fits.sum(axis=1, keepdims=True) - 1
        weights = np.zeros_like(chance)
        weights[:, :-1] = np.where(replicas.fits[:, 1:], chance[:, :-1] * here, 0.0)
        weights[:, 1:] += np.where(replicas.fits[:, 1:], chance[:, 1:] * there, 0.0)
        np.put_along_axis(
            weights, last, np.take_along_axis(weights, last, 1) + np.take_along_axis(waits, last, 1), axis=1
        )
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), _TINY)
        return Queue(replicas, loads, station, rate, chance, (here, there), stable, waits, whole, weights)

    def late(self, by_state: Array, slack: Array) -> Array:
        """[pair, i] share of turns that are late if the replica has n slots, from the share of those that find i turns.

        `slack`: seconds that a turn may wait for a slot, if all else takes it as long as on average.
        """
        took = self.station.took
        spare = np.where(self.stable, 1 / took - self.rate, 1.0)
        wait = (1 + np.minimum(self.loads.output_spread, 1.0)) / (2 * spare)
        waiting = np.maximum(by_state, np.exp(-np.maximum(slack, 0.0) / wait))
        late = _before(self.chance * by_state, self.below) + self.waits * waiting
        return np.where(self.stable, late / np.maximum(self.whole, _TINY), 1.0)

    def mean(self, values: Array) -> Array:
        """[pair, 1] mean of [pair, i] values over what arrivals find, with as many slots as memory has room for."""
        found: Array = np.einsum("pi,pi->p", self.weights, values)[:, None]
        return found


@dataclass(frozen=True, slots=True)
class Cumulants:
    """Mean, variance and third cumulant of a time, seconds, [pair, i] by the turns that an arrival finds."""

    mean: Array
    variance: Array
    third: Array

    def beyond(self, limit: Array) -> Array:
        """Chance of more than `limit`, [pair, 1], of the gamma distribution with these cumulants.

        The logistic form of the normal distribution function is Page's (1977), within 0.0002.
        """
        deviation = np.sqrt(np.maximum(self.variance, _TINY))
        half = np.clip(self.third / (2 * deviation**3), 5e-4, 2.0)
        base = np.maximum(1 + half * (limit - self.mean) / deviation, 0.0)
        z = 3 / half * (np.cbrt(base) - 1) + half / 3
        chance: Array = 1 / (1 + np.exp(np.clip(z * (1.5976 + 0.070565988 * z**2), -600.0, 600.0)))
        return np.where(base > 0, chance, 1.0)

    def beyond_even(self, limit: Array) -> Array:
        """The same of a uniform distribution with this mean and variance: a part of a step that runs."""
        half = np.sqrt(3 * self.variance)
        chance: Array = np.clip((self.mean + half - limit) / np.maximum(2 * half, _TINY), 0.0, 1.0)
        return chance


@dataclass(frozen=True, slots=True)
class Times:
    """How long turns take, for those whose prompt is cached as stated, and those whose session was forgotten."""

    queue: Queue
    finds: Array
    """Chance that a prompt is ahead, [pair, i]."""
    free: Sequence[Cumulants]
    """First token where none is."""
    behind: Sequence[Cumulants]
    """First token where one is."""
    turn: Sequence[Cumulants]

    def late(self, first_token: Array, turn: Array) -> tuple[Array, Array]:
        """[pair, i] shares of turns whose first token, and that as a whole, take longer, if the replica has n slots.

        `first_token`, `turn`: seconds, [pair, 1].
        """
        hits, finds = self.queue.station.hits, self.finds
        kinds = zip((hits, 1 - hits), self.free, self.behind, self.turn, strict=False)
        first, whole, usual_first, usual_whole = (np.zeros_like(finds) for _ in range(4))
        varied = bool(self.queue.loads.prompt_spread.any())
        for share, free, behind, turns in kinds:
            unhindered = free.beyond(first_token) if varied else free.beyond_even(first_token)
            first += share * (unhindered + finds * (behind.beyond(first_token) - unhindered))
            whole += share * turns.beyond(turn)
            usual_first += share * (free.mean + finds * (behind.mean - free.mean))
            usual_whole += share * turns.mean
        return self.queue.late(first, first_token - usual_first), self.queue.late(whole, turn - usual_whole)


def times(queue: Queue) -> Times:
    """The distributions, as described above."""
    loads, station, rate = queue.loads, queue.station, queue.rate
    someone = queue.replicas.turns > 0
    prompt, output = loads.prompt_spread, loads.output_spread
    hits, works, kinds = station.hits, station.work, station.own[: 1 if station.own[0] is station.own[1] else 2]
    # the prompts ahead: an M/G/1 queue, its wait given that there is one
    ahead = queue.mean(station.mean_own)
    busy = np.minimum(rate * ahead, 0.999)
    means = [queue.mean(own) for own in station.own]
    second = _mixed(hits, means[0] ** 2, means[1] ** 2) * (1 + prompt)
    third = _mixed(hits, means[0] ** 3, means[1] ** 3) * (1 + 3 * prompt + 2 * prompt**2)
    wait = second / (2 * ahead * (1 - busy))
    wait_variance = 2 * wait**2 * busy + third / (3 * ahead * (1 - busy)) - wait**2
    wait_skew = 2 * wait_variance**2 / wait  # a gamma distribution's
    alone = queue.weights[:, :1]
    finds = np.where(someone, np.minimum(busy / np.maximum(1 - alone, _TINY), 1.0), 0.0)
    step = np.where(someone, station.step, 0.0)
    residual = step**2 / 12
    # decoding: from the concurrency that is found back to the mean one
    stolen = np.minimum(rate * station.mean_work * queue.mean(station.steals), 0.98)
    left = 1 - stolen
    turns, mean_turns = queue.replicas.turns, queue.mean(queue.replicas.turns)
    spread = queue.mean((turns - mean_turns) ** 2)
    decoding = queue.mean(station.decoding)
    slope = _slope(queue, mean_turns)
    steps = np.maximum(loads.output_tokens - 1, 0.0)
    relaxing = np.maximum(1 - rate * loads.output_tokens * slope / left, 0.02)
    kept = (1 - np.exp(-relaxing)) / relaxing
    wandering = np.maximum(2 * (relaxing - 1 + np.exp(-relaxing)) / relaxing**2 - kept**2, 0.0)
    usual = queue.mean(station.step) + slope * (1 + kept * (station.decoding - decoding))
    base = steps * np.maximum(usual, station.step[:, 1:2])
    work_second = _mixed(hits, works[0] ** 2, works[1] ** 2) * (1 + prompt) * rate
    work_third = _mixed(hits, works[0] ** 3, works[1] ** 3) * (1 + 3 * prompt + 2 * prompt**2) * rate
    decode = base / left
    decode_variance = base * work_second / left**3 + (steps * slope / left) ** 2 * spread * wandering
    decode_variance += output * decode**2
    decode_skew = base * (work_third / left**4 + 3 * work_second**2 / left**5) + 2 * output**2 * decode**3
    # the wait of all arrivals, whether they find a prompt ahead or not
    queued = finds * wait
    queued_second = finds * (wait_variance + wait**2)
    queued_third = finds * (wait_skew + 3 * wait_variance * wait + wait**3)
    queued_variance = queued_second - queued**2
    queued_skew = queued_third - 3 * queued * queued_second + 2 * queued**3
    free, behind, whole = [], [], []
    for own in kinds:
        varies = prompt * own**2
        skewed = 2 * prompt * varies * own
        free.append(Cumulants(own + step / 2, varies + residual, skewed))
        behind.append(Cumulants(own + wait, varies + wait_variance, skewed + wait_skew))
        # prompts that come while a turn waits are read while it decodes: what it waits more, it decodes longer
        whole.append(
            Cumulants(
                own + queued + step / 2 + decode,
                (varies + residual + queued_variance) * (1 + stolen) ** 2 + decode_variance,
                (skewed + queued_skew) * (1 + stolen) ** 3 + decode_skew,
            )
        )
    return Times(queue, finds, free, behind, whole)


def gap_p99(queue: Queue, column: Ints) -> Array:
    """[pair, 1] p99 between a stream's tokens, seconds, with turns[column] slots: of steps with a chunk and without."""
    station, replicas, loads = queue.station, queue.replicas, queue.loads
    ahead, alone = queue.mean(station.mean_own), queue.weights[:, :1]
    reading = np.minimum(queue.rate * ahead / np.maximum(1 - alone, _TINY), 1.0)
    added = np.minimum(_added(replicas, loads, station.step), station.mean_work)
    long = station.step + np.where(replicas.turns > 1, added, 0.0)
    with_chunk = reading / long / ((1 - reading) / station.step + reading / long)
    slots = replicas.turns[np.arange(len(column)), column[:, 0]][:, None]
    width = np.diff(replicas.turns, axis=1, append=replicas.turns[:, -1:] + 1)
    tokens = station.decoding * np.where(replicas.turns < slots, queue.chance * width, 0.0)
    tokens += station.decoding * np.where(replicas.turns == slots, queue.waits, 0.0)
    jitter = replicas.gap_p99 / replicas.step
    found = np.zeros_like(queue.rate)
    for part, seconds in ((tokens * with_chunk, long), (tokens, station.step * jitter)):
        beyond = part.sum(axis=1, keepdims=True) - np.cumsum(part, axis=1) + part
        many = beyond > LATE * tokens.sum(axis=1, keepdims=True)
        found = np.maximum(found, np.where(many, seconds, 0.0).max(axis=1, keepdims=True))
    return found


def _added(replicas: Replicas, loads: Loads, step: Array) -> Array:
    """e: seconds by which a chunk lengthens a step."""
    jitter = np.maximum(replicas.gap_p99 / replicas.step, _LATENESS[0])
    pace = np.maximum(STEP_FACTOR * step, LEAST_PACE) / np.minimum(jitter, _LATENESS[1])
    return np.maximum(np.minimum(pace, loads.gap / jitter) - step, 0.0)


def _slope(queue: Queue, mean_turns: Array) -> Array:
    """Seconds by which one more stream lengthens a step: of the line through the states, weighed by their chance."""
    step = queue.station.step
    offset = queue.replicas.turns - mean_turns
    variance = queue.mean(offset * queue.station.decoding)
    slope = queue.mean(offset * step) / np.maximum(variance, _TINY)
    first = step[:, 2:3] - step[:, 1:2] if step.shape[1] > 2 else np.zeros_like(slope)
    return np.maximum(np.where(variance > 1e-6, slope, first), 0.0)


def _mixed(hits: Array, cached: Array, cold: Array) -> Array:
    return hits * cached + (1 - hits) * cold


def _before(values: Array, below: tuple[Array, Array]) -> Array:
    """[pair, i] sum over all whole numbers below turns[i] of values that are linear between columns."""
    here, there = below
    found = np.zeros_like(values)
    np.cumsum(here * values[:, :-1] + there * values[:, 1:], axis=1, out=found[:, 1:])
    return found
