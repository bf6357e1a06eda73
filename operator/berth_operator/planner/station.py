"""What do n turns in a replica do to each other?  How many of them decode, and how many end in a second.

A turn brings S seconds of prefill (its uncached prompt) and O output tokens, the first of which comes with the last of
its prefill.  With d turns that decode, a step takes s(d) seconds and gives each of them a token.  Beside them the other
n - d, one after another, have their prompts read in chunks: a chunk lengthens its step by e(d) and does
c(d) = e(d) + idle(d) seconds of prefill, where idle is arithmetic that waits for memory anyway.  Runtimes bound e; here
as Berth's engine does (its `engine/pacing.py`): a step with a chunk takes at most twice a step without, or 20 ms, and
never more than the objective.

    T(d) = S e/c + k s, k = S/c                     reading one prompt beside d others, in k steps, if the next one has
                                                    the rest of the last step; else, with all of idle in each,
           max((k - 1) e, S - k idle) + k s         k = max(1, S/c + 1/2)
    up(d) = 1 / T(d), d < n                         prompts read a second
    down(d) = d / ((O - 1) T/k), d < n              turns ended a second, in steps with a chunk
    down(n) = n / ((O - 1) s(n))                    and in those without

So d is a birth-death chain, whose chances w(d) ~ product of up(i - 1) / down(i) are the same for every n but for the
last two.  Their sums say, for each n, the chance that a prompt is being read, how many are there, and X(n), the turns
that end in a second.  (For rates that did not depend on each other this is the closed network of Gordon and Newell
1967.)  Times of the chain are exponential.  Where prompts vary more, because sessions are forgotten, (1 + C)/2 times as
many are taken to wait for a squared coefficient of variation C up to 3 (Pollaczek and Khinchine); where they vary less,
no fewer: steps come in whole numbers, and turns that end together come back together.

Turns of a session differ: each finds the history of all before it, so that prompts, and the time to read a token behind
so many others, grow from turn to turn in equal steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from berth_operator.planner.arrays import TINY, Array, Flags, Ints, some
from berth_operator.planner.chain import Chain, Rates

STEP_FACTOR: Final = 2.0
LEAST_PACE: Final = 0.02
"""Seconds; both as in the engine's pacing."""
_LATENESS: Final = (1.05, 1.25)
"""How far below the bound the engine aims, so that its jitter stays within (its `engine/cost.py`): for all but half a
percent of steps, which is 1.1 times as far as the p99 is, and its predictions are a few percent off themselves."""
_BEYOND_P99, _OFF = 1.1, 1.02
_LEAST_CHUNK: Final = 4
"""Tokens of a prompt that a step reads, however late it is (its `engine/scheduler.py`): a prompt always gets on."""
_POINTS: Final = np.array([-1.5, 0.0, 1.5])
"""Of the number of turns that decode, in standard deviations from where it mostly is."""
_BLOCK_TOKENS: Final = 16
"""KV memory is given out in blocks of so many, and a session's last one is half full."""


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
    """[pair, 1] at the load's mean context."""
    attention_seconds: Array
    """[pair, 1] that reading a token of a prompt takes longer for each token before it."""
    kv_cache_tokens: Array
    """[pair, 1]"""

    def at(self, rows: Ints) -> "Replicas":
        """Some of the pairs."""
        return Replicas(*(some(getattr(self, name), rows) for name in self.__slots__))

    def first(self, columns: int) -> "Replicas":
        """With no more turns than these columns say."""
        return Replicas(*(getattr(self, name)[:, :columns] for name in self.__slots__))

    def by_columns(self) -> "Replicas":
        """The same as arrays lie in memory here."""
        return Replicas(*(np.asfortranarray(getattr(self, name)) for name in self.__slots__))


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
    sessions: Array
    """That all turns are of, each with one at a time; infinite where unknown: turns come at random."""

    def at(self, rows: Ints) -> "Loads":
        """Some of the pairs."""
        return Loads(*(getattr(self, name)[rows] for name in self.__slots__))

    @property
    def keeps(self) -> Flags:
        """Sessions come back, so that their KV is worth keeping."""
        return self.turns_per_session > 1

    @property
    def new_tokens(self) -> Array:
        """Of a prompt, those that are not cached."""
        return np.maximum(self.prompt_tokens * (1 - self.cached_share), 1.0)

    @property
    def growth(self) -> Array:
        """Tokens by which a session's prompt is longer than the one before it: what is new and what was answered; where
        that is more than leaves room for all that is new in the first one, `_most_growth`, and part of what was there
        before is read again each time."""
        return np.where(self.keeps, np.minimum(self.new_tokens + self.output_tokens, self._most_growth), 0.0)

    @property
    def reread(self) -> Array:
        """Share of the growth that is not cached either: 0 where only what is new is read, 1 where everything is."""
        first = np.maximum(self._most_growth - self.output_tokens, 0.0)  # what is new where growth is greatest
        found = np.clip((self.new_tokens - first) / np.maximum(self.prompt_tokens - first, TINY), 0.0, 1.0)
        return np.where(self.keeps, found, 0.0)

    @property
    def _most_growth(self) -> Array:
        """With which the first prompt is just what is new in it, or nothing: no prompt is shorter."""
        turns = self.turns_per_session
        whole = 2 * (self.prompt_tokens + self.output_tokens) / (turns + 1)
        return np.minimum(whole, 2 * self.prompt_tokens / np.maximum(turns - 1, 1.0))


def kept_sessions(replicas: Replicas, loads: Loads, rate: Array) -> Array:
    """Share of later turns, [pair, 1], that find their session in memory: least recently used goes first (Che et al.
    2002).

    A session stays for a time t after its last turn, by which all memory has been used anew; think times are taken as
    exponential with mean Z, and a session's last turn, one in N, leaves its memory, the longest that it had, until
    then.  With C tokens on average of those that come back, and D of those that do not:
    room = rate x (C Z (1 - 1/N) h + D t/N) with h = 1 - exp(-t/Z).  Room is what turns in service leave.
    """
    work = loads.output_tokens * replicas.step[:, 1:2]
    room = np.maximum(replicas.kv_cache_tokens - 1.5 * rate * work * loads.context_tokens, 0.0)
    think = np.maximum(loads.think_seconds, TINY)
    last = 1 / loads.turns_per_session
    kept = loads.context_tokens + _BLOCK_TOKENS / 2
    back, gone = kept - loads.growth / 2, kept + loads.growth * (loads.turns_per_session - 1) / 2
    back, gone = back * (1 - last), gone * last
    wanted = np.minimum(room / np.maximum(rate * think, TINY), 50.0 * (back + gone))
    time = wanted / (back + gone)  # t/Z; the equation is concave and rises: Newton from the left of it converges
    for _ in range(6):
        left = np.exp(-time)
        time = np.maximum(time - (back * (1 - left) + gone * time - wanted) / (back * left + gone), 0.0)
    return np.where(loads.keeps, -np.expm1(-time), 1.0)


@dataclass(frozen=True, slots=True)
class Work:
    """Prefill that one kind of turn brings, seconds, [pair, 1]."""

    mean: Array
    variance: Array
    third: Array
    """Cumulant."""

    @staticmethod
    def of_turns(replicas: Replicas, loads: Loads) -> "Work":
        """Of any turn, where every session is still in memory."""
        return Work._read(replicas, loads, np.zeros_like(loads.growth), loads.turns_per_session)

    @staticmethod
    def first(replicas: Replicas, loads: Loads) -> "Work":
        """Of a session's first turn."""
        offset = -loads.growth * (loads.turns_per_session - 1) / 2
        return Work._read(replicas, loads, offset, np.ones_like(offset))

    @staticmethod
    def kept(replicas: Replicas, loads: Loads) -> "Work":
        """Of a later turn whose session is still in memory."""
        return Work._read(replicas, loads, loads.growth / 2, np.maximum(loads.turns_per_session - 1, 1.0))

    @staticmethod
    def _read(replicas: Replicas, loads: Loads, offset: Array, count: Array) -> "Work":
        """What is not cached of so many prompts, longer by `offset` than all on average, behind growing histories."""
        growth, again = loads.growth, loads.reread
        read = np.maximum(loads.new_tokens + again * offset, 1.0)
        token = _token_seconds(replicas, loads, loads.prompt_tokens + offset - read / 2)
        each = again * token + read * replicas.attention_seconds * (1 - again / 2)
        return Work._of(read * token, (growth * each) ** 2 * _uniform_variance(count), loads)

    @staticmethod
    def cold(replicas: Replicas, loads: Loads) -> "Work":
        """Of a later turn whose session was forgotten: the whole prompt."""
        later = np.maximum(loads.turns_per_session - 1, 1.0)
        prompt = loads.prompt_tokens + np.where(loads.keeps, loads.growth / 2, 0.0)
        variance = loads.growth**2 * _uniform_variance(later)
        g = replicas.attention_seconds
        at_middle = _token_seconds(replicas, loads, prompt / 2)
        mean = prompt * at_middle + g / 2 * variance
        return Work._of(mean, (at_middle + g * prompt / 2) ** 2 * variance, loads)

    @staticmethod
    def _of(mean: Array, grown: Array, loads: Loads) -> "Work":
        varied = loads.prompt_spread * mean**2
        return Work(mean, varied + grown, 2 * varied**2 / mean)

    @staticmethod
    def of_all(shares: "Sequence[Array]", works: "Sequence[Work]") -> "Work":
        """Of any turn: one of each kind in its share of cases."""
        if len(works) == 1:
            return works[0]
        mean = mixed(shares, [w.mean for w in works])
        second = mixed(shares, [w.variance + w.mean**2 for w in works])
        third = mixed(shares, [w.third + 3 * w.variance * w.mean + w.mean**3 for w in works])
        return Work(mean, np.maximum(second - mean**2, 0.0), third - 3 * second * mean + 2 * mean**3)

    def at(self, rows: Ints) -> "Work":
        """Some of the pairs."""
        return Work(self.mean[rows], self.variance[rows], self.third[rows])


def _token_seconds(replicas: Replicas, loads: Loads, position: Array) -> Array:
    """Reading one token of a prompt behind so many others."""
    context = loads.prompt_tokens + loads.output_tokens / 2
    base = 1 / replicas.prefill_tokens_per_second
    found: Array = np.maximum(base + replicas.attention_seconds * (position - context), 0.1 * base)
    return found


def _uniform_variance(count: Array) -> Array:
    return (count**2 - 1) / 12


@dataclass(frozen=True, slots=True)
class Station:
    """n turns in a replica, [pair, i]; but for forgotten sessions, no matter how many come."""

    shares: tuple[Array, ...]
    """[pair, 1] of turns: all, or first ones, later ones whose session is in memory, and those whose is not."""
    works: tuple[Work, ...]
    """Of each of these kinds."""
    own: tuple[Array, ...]
    """T likewise, beside n others; beside none a prompt has a step of its own."""
    every: Work
    """T of all, [pair, i]."""
    stretch: Array
    """Seconds by which T grows with a second of S."""
    steals: Array
    """Share of prefill that lengthens steps: e/c."""
    took: Array
    """1/X."""
    reading: Array
    """Chance that a prompt is being read."""
    read: Array
    """T on average while one is; likewise below."""
    there: Array
    """Prompts that are read or wait for it."""
    there_variance: Array
    decoding: Array
    """Mean of d."""
    step: Array
    """s at that."""

    @staticmethod
    def of(replicas: Replicas, loads: Loads, kept: Array | None = None) -> "Station":
        """Solve the chain for every n.  `kept`: share of sessions in memory, [pair, 1]; unset: all."""
        station, given = Station.finer(replicas, loads, kept)
        return station.of_columns(lambda values: values.T.take(given).T)

    @staticmethod
    def finer(replicas: Replicas, loads: Loads, kept: Array | None = None) -> tuple["Station", Ints]:
        """The same for more n; and the places of the given ones, [i, pair], in an array by column."""
        shares: tuple[Array, ...] = (np.ones_like(loads.gap),)
        works: tuple[Work, ...] = (Work.of_turns(replicas, loads),)
        if kept is not None:
            first = 1 / loads.turns_per_session
            shares = first, (1 - first) * kept, (1 - first) * (1 - kept)
            works = Work.first(replicas, loads), Work.kept(replicas, loads), Work.cold(replicas, loads)
            if (kept == 1).all():
                shares, works = shares[:2], works[:2]
        work = Work.of_all(shares, works)
        replicas, given = _finer(replicas, loads, work.mean)
        turns, step = replicas.turns, replicas.step
        added = added_seconds(replicas, loads, step)
        chunk = np.maximum(added + replicas.idle, TINY)
        alone = turns == 0
        free = np.where(alone, 0.0, replicas.idle)
        steals = np.where(alone | (added <= 0), 1.0, added / chunk)
        stretch = np.where(alone, 1.0, steals + step / chunk)

        def own(work: Array) -> tuple[Array, Array]:
            """T and k of the last prompt."""
            steps = np.where(alone, 1.0, _whole(work / chunk))
            return np.maximum((steps - 1) * added, work - steps * free) + steps * step, steps

        last, steps = own(work.mean)
        rest = Rates(np.where(alone, last, work.mean * stretch), np.where(alone, last, steals * chunk + step))
        chain = Chain.of(turns, step, rest, Rates(last, last / steps), loads.output_tokens)
        owns = tuple(own(work.mean)[0] for work in works)
        varied = [
            Work(mean, w.variance * stretch**2, w.third * stretch**3) for mean, w in zip(owns, works, strict=True)
        ]
        every = Work.of_all(shares, varied)
        part = (1 + np.clip(every.variance / every.mean**2, 1.0, 3.0)) / 2
        there = np.minimum(1 + part * (chain.there - 1), np.maximum(turns, 1.0))
        decoding = np.maximum(turns - chain.reading * there, 0.0)
        chord = (step - step[:, 1:2]) / np.maximum(turns - 1, 1.0)
        station = Station(
            shares,
            works,
            owns,
            every,
            stretch,
            steals,
            chain.took,
            chain.reading,
            chain.read,
            there,
            part**2 * chain.there_variance,
            decoding,
            step[:, 1:2] + chord * np.maximum(decoding - 1, 0.0),
        )
        return station, given

    def at(self, rows: Ints) -> "Station":
        """Some of the pairs."""
        works = tuple(work.at(rows) for work in self.works)
        every = Work(*(some(x, rows) for x in (self.every.mean, self.every.variance, self.every.third)))
        return replace(
            self.of_columns(lambda values: some(values, rows)),
            shares=tuple(share[rows] for share in self.shares),
            works=works,
            every=every,
        )

    def of_kinds(self, count: int) -> "Station":
        """Where there are only so many kinds of turns."""
        return replace(self, shares=self.shares[:count], works=self.works[:count], own=self.own[:count])

    def of_columns(self, chosen: Callable[[Array], Array]) -> "Station":
        """Some of the concurrencies."""
        return Station(
            self.shares,
            self.works,
            tuple(chosen(own) for own in self.own),
            Work(chosen(self.every.mean), chosen(self.every.variance), chosen(self.every.third)),
            *(chosen(getattr(self, name)) for name in self.__slots__[4:]),
        )


def _finer(replicas: Replicas, loads: Loads, work: Array) -> tuple[Replicas, Ints]:
    """With more columns where the chain is most of the time; and the places of the given ones, [i, pair], by column.

    While a step reads more prompts, c/S, than it ends turns, d/(O - 1), more and more turns decode: most of the time d
    is about where these are as many.  Near the promise between tokens chunks vanish within a few d, so that this may be
    anywhere between two columns.  About there w(d) is as a normal distribution, of which some points are added.
    """
    turns, (columns, pairs) = replicas.turns.T, replicas.turns.T.shape
    row, count = np.arange(pairs), len(_POINTS)
    steps = np.maximum(loads.output_tokens - 1, 0.05) / work
    bounds = [
        (steps * (chunk + replicas.idle) - replicas.turns - 1).T for chunk in _bounds(replicas, loads, replicas.step)
    ]
    grows = np.maximum(np.minimum(bounds[0], bounds[1]), bounds[2]) >= 0
    grows[0] = True
    left = columns - 1 - np.argmax(grows[::-1], axis=0)
    right = np.minimum(left + 1, columns - 1) * pairs + row
    left = left * pairs + row
    start = turns.take(left)
    width = turns.take(right) - start
    crossings, slopes = [], []
    for values in bounds:
        here, there = values.take(left), values.take(right)
        crossings.append(np.where(there < 0, np.maximum(here, 0.0) / np.maximum(here - there, TINY), 1.0))
        slopes.append((here - there) / np.maximum(width, 1.0))
    middle = start + width * np.minimum(np.maximum(np.minimum(*crossings[:2]), crossings[2]), 1.0)
    slope = np.where(crossings[0] < crossings[1], slopes[0], slopes[1])
    deviation = np.sqrt((middle + 1) / np.maximum(slope, 0.25))
    points = np.rint(np.clip(middle + deviation * _POINTS[:, None], turns[1], turns[-1]))
    order = np.argsort(np.concatenate([turns, points]), axis=0, kind="stable")
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.arange(columns + count)[:, None], axis=0)
    before = np.minimum(place[columns:] - np.arange(count)[:, None] - 1, columns - 2) * pairs + row
    begins = turns.take(before)
    part = (points - begins) / np.maximum(turns.take(before + pairs) - begins, 1.0)
    order = order * pairs + row

    def merged(values: Array) -> Array:
        flat = values.T
        low = flat.take(before)
        found: Array = np.concatenate([flat, low + part * (flat.take(before + pairs) - low)]).take(order).T
        return found

    finer = replace(
        replicas,
        turns=merged(replicas.turns),
        step=merged(replicas.step),
        gap_p99=merged(replicas.gap_p99),
        idle=merged(replicas.idle),
    )
    return finer, place[:columns] * pairs + row


def _whole(chunks: Array) -> Array:
    """Steps that so many chunks of a prompt take: the next whole number, smoothed as chunks differ by a tenth."""
    low, high = 0.9 * chunks, 1.1 * chunks
    area = [(floor := np.floor(x)) * (floor + 1) / 2 + (floor + 1) * (x - floor) for x in (low, high)]
    found: Array = np.where(chunks < 1e9, (area[1] - area[0]) / np.maximum(high - low, TINY), chunks)
    return found


def added_seconds(replicas: Replicas, loads: Loads, step: Array) -> Array:
    """e: seconds by which a chunk lengthens a step."""
    usual, promised, least = _bounds(replicas, loads, step)
    return np.maximum(np.minimum(usual, promised), least)


def _bounds(replicas: Replicas, loads: Loads, step: Array) -> tuple[Array, Array, Array]:
    """Of e: what the runtime takes by itself, what the promise leaves, and what it takes all the same."""
    lateness = np.clip(_OFF * (replicas.gap_p99 / replicas.step) ** _BEYOND_P99, *_LATENESS)
    usual = np.maximum(STEP_FACTOR * step, LEAST_PACE) / lateness - step
    least = np.broadcast_to(_LEAST_CHUNK / replicas.prefill_tokens_per_second, step.shape)
    return usual, loads.gap / lateness - step, least


def mixed(shares: Sequence[Array], values: Sequence[Array]) -> Array:
    """Mean over kinds of turns."""
    found: Array = sum((share * value for share, value in zip(shares, values, strict=True)), np.zeros(()))
    return found
