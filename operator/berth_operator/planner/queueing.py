"""How long do turns take on a replica at a given rate?  The queueing model, for many replicas and loads at once.

`station` says what n turns in a replica do to each other, and X(n), the turns that end in a second.  Here they come:

    P(n) ~ product of rate / X(i), i <= n          chance of n turns in the replica, which stands for the whole as a
                                                   station whose rate depends on n alone (Chandy, Herzog and Woo 1975);
                                                   sessions that think and come back do not change it (Baskett et al.
                                                   1975), nor does how much turns differ, while a slot is free

Where it is known of how many sessions N all turns are, no more can be inside: of a finite source (Engset 1918) an
arrival sees what N - 1 others do (Sevcik and Mitrani 1981; Lavenberg and Reiser 1980), who come at

    coming(i) = min(rate, (N - 1 - i) / A),  A = N / rate - T        with i inside and the others A away, on average

where T is the time promised for a turn, so that each comes N / rate after it came before, be it here or to another
replica.  A replica that would carry all N is judged with as many as it carries, each of which is away for as long as it
thinks.  rate stays what is planned for: that turns which end sooner come back sooner is left out.

With b slots, turns wait from n = b on: P(n) is geometric there, and the wait exponential, with less than the mean that
exponential service times give it if answers are about equally long.  An arrival sees P.

    first token   the step that runs, or what is left of the prompt that is read (the mean residual) and those that
                  wait before it, as many as there are among n turns; then T(n)
    noise         steps that take longer than they should, as the profile's p99 between tokens says, and stay so for a
                while (neighbours, caches): a share by which all of the above is stretched
  decoding      O - 1 steps, stretched by the prompts that come meanwhile (delay busy period: mean 1/u, variance
                  rate E[S^2]/u^3, u = 1 - rate S; Kleinrock 1975), at a concurrency that starts at d(n) and goes back
                  to its mean within about a turn, the slower the more concurrency slows tokens; turns that come
                  meanwhile do both, so that the one goes with the other

p99s do not add.  Means, variances and third cumulants do where parts are independent, so those are summed for each n;
a gamma distribution of these three (Pearson III, its tail after Wilson and Hilferty 1931) gives the chance to be late,
and the chances are weighed with P(n).  Checked against the engine's own scheduler in tests/planner/test_queueing.py
and against the real worker by benchmarks/capacity.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from berth_operator.planner.arrays import TINY, Array, Flags, Ints, accumulated, some
from berth_operator.planner.station import Loads, Replicas, Station, Work, added_seconds, kept_sessions, mixed

LATE: Final = 0.01
"""Share of turns, or tokens, that may take longer than an objective."""
_TOGETHER: Final = 0.61
"""Correlation of the turns that come within a turn's time and of how many there are meanwhile, sqrt(3/8) where turns
come at random and stay for as long."""
_PROMPTS_A_STEP: Final = 3
"""Prompts that are read in one step are counted up to here."""
_P99_DEVIATIONS: Final = 3.6
"""By how many standard deviations the p99 of an exponential distribution is above its mean: ln 100 - 1.  Steps of the
real worker on a shared machine: 3.0 to 4.7."""
_NOISIEST: Final = 1.0
"""Beyond twice the mean, a p99 between tokens says something else than how the machine varies."""
_NEVER: Final = 1e-200
"""What stands for 0 in logarithms."""
_BEYOND: Final = 1e300
"""Logarithm of how little chance there is of more turns than fit."""
_FULL: Final = 1e-9
"""Share of time that a replica has left from which on it keeps up."""
_NOISE_LASTS: Final = 0.1
"""Seconds.  Of the real worker on a shared machine the correlation of steps was 0.7 of neighbours, 0.4 after 8 and 0.2
after 20 steps of 10 ms."""


@dataclass(frozen=True, slots=True)
class Queue:
    """A replica at a rate: [pair, i] by the turns that an arrival finds, [pair, 1] by pair."""

    replicas: Replicas
    loads: Loads
    ahead: "Ahead"
    rate: Array
    coming: Array
    """Turns/s that others bring while so many are inside, [pair, i]."""
    chance: Array
    """P but for its scale."""
    below: tuple[Array, Array]
    """Factors of a column and of the next one in a sum over the whole numbers from the one to below the other."""
    stable: Flags
    waits: Array
    """Chance of all states from n on, if the replica has n slots and keeps up; likewise below."""
    whole: Array
    """Chance of all states."""
    weights: Array
    """Chance of what an arrival finds, with as many slots as memory has room for."""

    @staticmethod
    def of(replicas: Replicas, loads: Loads, rate: Array, ahead: "Ahead | None" = None) -> "Queue":
        """`rate`: turns/s, [pair, 1].  `ahead`: where no session is forgotten, the same for every rate."""
        if ahead is None:
            kept = kept_sessions(replicas, loads, rate) if loads.keeps.any() else None
            ahead = Ahead.of(replicas, loads, Station.of(replicas, loads, kept))
        took, fits = ahead.station.took, replicas.fits.astype(np.float64)
        width = np.diff(replicas.turns, axis=1)
        here, there = (width + 1) / 2, (width - 1) / 2
        coming, before = _coming(replicas, loads, rate)
        grown = np.log(np.maximum(before * took, _NEVER))
        grown[:, 1:] = accumulated(np.add, there * grown[:, :-1] + here * grown[:, 1:])
        grown[:, 0] = 0.0
        grown += (fits - 1) * _BEYOND
        chance = np.exp(grown - grown.max(axis=1, keepdims=True))
        busy = coming * took
        stable = replicas.fits & (busy < 1 - _FULL)
        waits = chance / np.maximum(1 - busy, _FULL)
        whole = _before(chance, (here, there)) + waits
        last = replicas.fits.sum(axis=1, keepdims=True) - 1
        weights = np.zeros_like(chance)
        weights[:, :-1] = chance[:, :-1] * here * fits[:, 1:]
        weights[:, 1:] += chance[:, 1:] * there
        beyond = np.where(np.take_along_axis(stable, last, 1), np.take_along_axis(waits, last, 1), 0.0)
        np.put_along_axis(weights, last, np.take_along_axis(weights, last, 1) + beyond, axis=1)
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), TINY)
        return Queue(replicas, loads, ahead, rate, coming, chance, (here, there), stable, waits, whole, weights)

    @property
    def station(self) -> Station:
        """What the turns inside do to each other."""
        return self.ahead.station

    def first_late(self) -> Array:
        """[pair, i] share of turns whose first token comes later than promised, if the replica has n slots."""
        return self.late(self.ahead.late, self.loads.first_token - self.ahead.usual)

    def late(self, by_state: Array, slack: Array) -> Array:
        """[pair, i] share of turns that are late if the replica has n slots, from the share of those that find i turns.

        `slack`: seconds that a turn may wait for a slot, if all else takes it as long as on average.  The wait over
        that with exponential service times, where all answers are equally long: 1/2 with one slot (Pollaczek and
        Khinchine); with 4 and 16 the engine's own scheduler showed 0.6 to 0.8, as steps and prompts still differ.
        """
        took = self.station.took
        spare = np.maximum(1 / took - self.coming, TINY)
        equal = 0.75 - 0.25 / np.sqrt(np.maximum(self.replicas.turns, 1.0))
        wait = (equal + (1 - equal) * np.minimum(self.loads.output_spread, 1.0)) / spare
        waiting = np.maximum(by_state, np.exp(-np.maximum(slack, 0.0) / wait))
        late = _before(self.chance * by_state, self.below) + self.waits * waiting
        return np.maximum(late / np.maximum(self.whole, TINY), ~self.stable)

    def mean(self, values: Array) -> Array:
        """[pair, 1] mean of [pair, i] values over what arrivals find, with as many slots as memory has room for."""
        found: Array = np.einsum("pi,pi->p", self.weights, values)[:, None]
        return found

    @property
    def met(self) -> Array:
        """[pair, 1] turns/s that others bring on average while a turn is inside."""
        return np.where(np.isfinite(self.loads.sessions), self.mean(self.coming), self.rate)


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
        deviation = np.sqrt(np.maximum(self.variance, TINY))
        half = np.clip(self.third / (2 * (deviation * deviation * deviation)), 5e-4, 2.0)
        base = np.maximum(1 + half * (limit - self.mean) / deviation, 0.0)
        z = 3 / half * (np.cbrt(base) - 1) + half / 3
        chance: Array = 1 / (1 + np.exp(np.clip(z * (1.5976 + 0.070565988 * z**2), -600.0, 600.0)))
        return np.where(base > 0, chance, 1.0)

    def beyond_even(self, limit: Array) -> Array:
        """The same of a uniform distribution with this mean and variance: a part of a step that runs."""
        half = np.sqrt(3 * self.variance)
        chance: Array = np.clip((self.mean + half - limit) / np.maximum(2 * half, TINY), 0.0, 1.0)
        return chance


@dataclass(frozen=True, slots=True)
class _Noise:
    """By what share a replica's steps vary, [pair, i]."""

    deviation: Array

    @staticmethod
    def of(replicas: Replicas) -> "_Noise":
        """What the p99 between tokens says of it, if the distribution is exponential."""
        beyond = np.clip(replicas.gap_p99 / replicas.step - 1, 0.0, _NOISIEST)
        return _Noise(beyond / _P99_DEVIATIONS)

    def added(self, seconds: Array) -> tuple[Array, Array]:
        """Variance and third cumulant of that many seconds of steps: of a mean over them, as noise comes and goes."""
        lasting = np.maximum(seconds / _NOISE_LASTS, 1e-3)
        left = 2 * (lasting + np.expm1(-lasting)) / lasting**2
        deviation = self.deviation * seconds
        variance = deviation**2 * left
        return variance, 2 * deviation * variance * left


@dataclass(frozen=True, slots=True)
class FirstTokens:
    """When the first token comes, [pair, i] by the turns that an arrival finds, of each kind that the station tells
    apart."""

    station: Station
    spread: Array
    """Of prompts, as of Loads."""
    free: Sequence[Cumulants]
    """Where no prompt is ahead."""
    behind: Sequence[Cumulants]
    """Where one is."""

    def late(self, limit: Array) -> tuple[Array, Array]:
        """[pair, i] share of turns whose first token takes longer than `limit` [pair, 1] seconds, and its mean time,
        with a slot free."""
        reading, varied = self.station.reading, bool(self.spread.any())
        late, usual = np.zeros_like(reading), np.zeros_like(reading)
        for share, free, behind in zip(self.station.shares, self.free, self.behind, strict=True):
            unhindered = free.beyond_even(limit)
            if varied:
                unhindered = np.where(self.spread > 0, free.beyond(limit), unhindered)
            late += share * (unhindered + reading * (behind.beyond(limit) - unhindered))
            usual += share * (free.mean + reading * (behind.mean - free.mean))
        return late, usual


@dataclass(frozen=True, slots=True)
class Ahead:
    """What turns have ahead of them that find i others, [pair, i]: like the station the same at all rates, unless
    sessions are forgotten."""

    station: Station
    late: Array
    """Share of them whose first token comes later than promised; likewise with a slot free."""
    usual: Array
    """Seconds to it on average."""
    noise: Array
    """By what share steps vary."""
    before: tuple[Array, ...]
    """Seconds of a turn but for decoding, of each kind; its variance and third cumulant."""
    variance: tuple[Array, ...]
    third: tuple[Array, ...]

    @staticmethod
    def of(replicas: Replicas, loads: Loads, station: Station) -> "Ahead":
        """Of what a station is."""
        late, usual = first_tokens(replicas, loads, station).late(loads.first_token)
        step, wait = _step(replicas, station), _wait(replicas, station)
        residual, reading = step**2 / 12, station.reading
        # the wait of all arrivals, whether they find a prompt ahead or not
        queued = reading * wait.mean
        queued_second = reading * (wait.variance + wait.mean**2)
        queued_third = reading * (wait.third + 3 * wait.variance * wait.mean + wait.mean**3)
        queued_variance = queued_second - queued**2
        queued_skew = queued_third - 3 * queued * queued_second + 2 * queued**3
        kinds = list(zip(station.own, _varied(station), strict=True))
        return Ahead(
            station,
            late,
            usual,
            _Noise.of(replicas).deviation,
            tuple(own + queued + step / 2 for own, _ in kinds),
            tuple(varied + residual + queued_variance for _, (varied, _) in kinds),
            tuple(skewed + queued_skew for _, (_, skewed) in kinds),
        )

    def at(self, rows: Ints) -> "Ahead":
        """Some of the pairs."""
        kinds = (tuple(some(x, rows) for x in of) for of in (self.before, self.variance, self.third))
        late, usual, noise = (some(x, rows) for x in (self.late, self.usual, self.noise))
        return Ahead(self.station.at(rows), late, usual, noise, *kinds)


def first_tokens(replicas: Replicas, loads: Loads, station: Station) -> FirstTokens:
    """The distributions, as described above."""
    noise, step, wait = _Noise.of(replicas), _step(replicas, station), _wait(replicas, station)
    residual = step**2 / 12
    free, behind = [], []
    for own, (varied, skewed) in zip(station.own, _varied(station), strict=True):
        jitter, jitter_skew = noise.added(own + step / 2)
        free.append(Cumulants(own + step / 2, varied + residual + jitter, skewed + jitter_skew))
        jitter, jitter_skew = noise.added(own + wait.mean)
        behind.append(Cumulants(own + wait.mean, varied + wait.variance + jitter, skewed + wait.third + jitter_skew))
    return FirstTokens(station, loads.prompt_spread, free, behind)


def _step(replicas: Replicas, station: Station) -> Array:
    return np.where(replicas.turns > 0, station.step, 0.0)


def _varied(station: Station) -> list[tuple[Array, Array]]:
    """Variance and third cumulant of reading a prompt of each kind."""
    return [(work.variance * station.stretch**2, work.third * station.stretch**3) for work in station.works]


def _wait(replicas: Replicas, station: Station) -> Cumulants:
    """For the prompts ahead, where one is: what is left of it, and those that wait."""
    every = station.every
    size = np.maximum(every.mean, TINY)
    varies = every.variance / size**2
    left_mean = (1 + varies) / 2
    left_variance = np.maximum((every.third / size**3 + 3 * varies + 1) / 3 - left_mean**2, 0.0)
    others = station.there - 1
    step = _step(replicas, station)
    wait = station.read * (left_mean + others) + step / 4  # a prompt waits for a step before it is read
    variance = station.read**2 * (left_variance + station.there_variance + others * varies)
    return Cumulants(wait, variance, 2 * variance**2 / np.maximum(wait, TINY))  # a gamma distribution's


@dataclass(frozen=True, slots=True)
class Turns:
    """How long turns take, of each kind that the station tells apart."""

    queue: Queue
    turn: Sequence[Cumulants]

    def late(self, limit: Array) -> Array:
        """[pair, i] share of turns that take longer than `limit` [pair, 1] seconds, if the replica has n slots."""
        shares = self.queue.station.shares
        late, usual = (
            mixed(shares, [turn.beyond(limit) for turn in self.turn]),
            mixed(shares, [x.mean for x in self.turn]),
        )
        return self.queue.late(late, limit - usual)


def turns(queue: Queue) -> Turns:
    """The distributions, as described above."""
    loads, ahead, station, rate = queue.loads, queue.ahead, queue.station, queue.met
    output = loads.output_spread
    # decoding: from the concurrency that is found back to the mean one
    work = Work.of_all(station.shares, station.works)
    mean, second = work.mean, work.variance + work.mean**2
    third = work.third + 3 * work.variance * mean + mean**3
    stolen = np.minimum(rate * mean * queue.mean(station.steals), 0.98)
    left = 1 - stolen
    inside, mean_inside = queue.replicas.turns, queue.mean(queue.replicas.turns)
    spread = queue.mean((inside - mean_inside) ** 2)
    decoding = queue.mean(station.decoding)
    slope = _slope(queue, mean_inside)
    steps = np.maximum(loads.output_tokens - 1, 0.0)
    relaxing = np.maximum(1 - rate * loads.output_tokens * slope / left, 0.02)
    kept = (1 - np.exp(-relaxing)) / relaxing
    wandering = np.maximum(2 * (relaxing - 1 + np.exp(-relaxing)) / relaxing**2 - kept**2, 0.0)
    usual = queue.mean(station.step) + slope * (1 + kept * (station.decoding - decoding))
    base = steps * np.maximum(usual, station.step[:, 1:2])
    decode = base / left
    prefilled = base * rate * second / left**3
    crowded = (steps * slope / left) ** 2 * spread * wandering
    decode_variance = prefilled + crowded + 2 * _TOGETHER * np.sqrt(prefilled * crowded) + output * decode**2
    decode_skew = base * (rate * third / left**4 + 3 * (rate * second) ** 2 / left**5) + 2 * output**2 * decode**3
    noise, whole = _Noise(ahead.noise), []
    for before, variance, skew in zip(ahead.before, ahead.variance, ahead.third, strict=True):
        # prompts that come while a turn waits are read while it decodes: what it waits more, it decodes longer
        taken = before + decode
        jitter, jitter_skew = noise.added(taken)
        whole.append(
            Cumulants(
                taken,
                variance * (1 + stolen) ** 2 + decode_variance + jitter,
                skew * (1 + stolen) ** 3 + decode_skew + jitter_skew,
            )
        )
    return Turns(queue, whole)


def gap_p99(queue: Queue, column: Ints) -> Array:
    """[pair, 1] p99 between a stream's tokens, seconds, with turns[column] slots: of steps with a chunk and without."""
    station, replicas, loads = queue.station, queue.replicas, queue.loads
    reading = station.reading
    works = mixed(station.shares, [work.mean for work in station.works])
    most = added_seconds(replicas, loads, station.step)
    jitter = replicas.gap_p99 / replicas.step
    slots = replicas.turns[np.arange(len(column)), column[:, 0]][:, None]
    width = np.diff(replicas.turns, axis=1, append=replicas.turns[:, -1:] + 1)
    tokens = station.decoding * np.where(replicas.turns < slots, queue.chance * width, 0.0)
    tokens += station.decoding * np.where(replicas.turns == slots, queue.waits, 0.0)
    kinds = [(tokens, station.step * jitter)]
    for prompts in range(1, _PROMPTS_A_STEP + 1):  # as many as wait are read together, as far as the chunk goes
        added = np.where(replicas.turns > 1, np.minimum(most, prompts * works), 0.0)
        long = (station.step + added) * np.sqrt(jitter)  # many: not all need be in time
        with_chunk = reading / long / ((1 - reading) / station.step + reading / long)
        kinds.append((tokens * with_chunk * (1 - 1 / station.there) ** (prompts - 1), long))
    found = replicas.gap_p99[:, 1:2]
    for part, seconds in kinds:
        beyond = part.sum(axis=1, keepdims=True) - np.cumsum(part, axis=1) + part
        many = beyond > LATE * tokens.sum(axis=1, keepdims=True)
        found = np.maximum(found, np.where(many, seconds, 0.0).max(axis=1, keepdims=True))
    return found


def _coming(replicas: Replicas, loads: Loads, rate: Array) -> tuple[Array, Array]:
    """[pair, i] turns/s of others while i turns are inside, and while one less is; see above."""
    turns = replicas.turns
    if not np.isfinite(loads.sessions).any():
        everywhere = np.broadcast_to(rate, turns.shape)
        return everywhere, everywhere
    known = np.isfinite(loads.sessions)
    carried = rate * (loads.think_seconds + loads.turn)
    sessions = np.where(known, np.maximum(loads.sessions, carried), carried)
    away = np.maximum(sessions / rate - loads.turn, _NEVER)
    free = np.maximum(sessions - 1 - turns, 0.0), np.maximum(sessions - turns, 0.0)
    coming, before = (np.where(known, np.minimum(rate, others / away), rate) for others in free)
    return coming, before


def _slope(queue: Queue, mean_turns: Array) -> Array:
    """Seconds by which one more stream lengthens a step: of the line through the states, weighed by their chance."""
    step = queue.station.step
    offset = queue.replicas.turns - mean_turns
    variance = queue.mean(offset * queue.station.decoding)
    slope = queue.mean(offset * step) / np.maximum(variance, TINY)
    return np.maximum(np.where(variance > 1e-6, slope, 0.0), 0.0)


def _before(values: Array, below: tuple[Array, Array]) -> Array:
    """[pair, i] sum over all whole numbers below turns[i] of values that are linear between columns."""
    here, there = below
    found = np.zeros_like(values)
    found[:, 1:] = accumulated(np.add, here * values[:, :-1] + there * values[:, 1:])
    return found
