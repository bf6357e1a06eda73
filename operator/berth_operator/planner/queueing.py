"""How long do turns take on a replica at a given rate?  The queueing model.

What do n turns in a replica do to each other?  How many of them decode, and how many end in a second.

A turn brings S seconds of prefill (its uncached prompt) and O output tokens, the first of which comes with the last of
its prefill.  With d turns that decode, a step takes s(d) seconds and gives each of them a token.  Beside them the other
n - d, one after another, have their prompts read in chunks: a chunk lengthens its step by e(d) and does
c(d) = e(d) + idle(d) seconds of prefill, where idle is arithmetic that waits for memory anyway.  Runtimes bound e; here
as Berth's engine does (its `engine/pacing.py`): a step with a chunk takes at most twice a step without, or 20 ms, and
never more than its pace, the p99 between tokens that it is told to keep.  vLLM reads until a step has B tokens, its
token budget: c(d) is what B - d of them take, and e(d) = max(c - idle, 0).

    T(d) = S e/c + k s, k = S/c                     reading one prompt beside d others, in k steps, if the next one has
                                                    the rest of the last step; else, with all of idle in each,
           max((k - 1) e, S - k idle) + k s         k = max(1, S/c + 1/2)
    up(d) = 1 / T(d), d < n                         prompts read a second
    down(d) = d / ((O - 1) T/k), d < n              turns ended a second, in steps with a chunk
    down(n) = n / ((O - 1) s(n))                    and in those without

So d is a birth-death chain, whose chances w(d) ~ product of up(i - 1) / down(i) are the same for every n but for the
last two.  Their sums say, for each n, the chance that a prompt is being read, how many are there, and X(n), the turns
that end in a second: at most n in the time of O steps and n prompts, as prompts share steps.  (For rates that did not
depend on each other this is the closed network of Gordon and Newell 1967.)  Times of the chain are exponential.  Where
prompts vary more, because sessions are forgotten, (1 + C)/2 times as many are taken to wait for a squared coefficient
of variation C up to 3 (Pollaczek and Khinchine); where they vary less, no fewer: steps come in whole numbers, and turns
that end together come back together.  But how many they are then varies less, by half where one is always read: prompts
that are all alike leave a busy reader at even distances, and so do turns end (the engine's scheduler showed 0.3 to
0.7).

Turns of a session differ: each finds the history of all before it, so that prompts, and the time to read a token behind
so many others, grow from turn to turn in equal steps.

How many are there at a given rate, and how long do they take?

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
                  wait before it, as many as there are among n turns; then T(n), or where prompts are ahead T beside
                  those that decode by then; who has waited for a slot finds b - 1 others
    noise         steps that take longer than they should, as the profile's p99 between tokens says, and stay so for a
                while (neighbours, caches): a share by which all of the above is stretched
                where a step has room for several prompts (a token budget), all of them have it at its end, those that
                came meanwhile, too
  decoding      O - 1 steps, stretched by the prompts that come meanwhile (delay busy period: mean 1/u, variance
                  rate E[S^2]/u^3, u = 1 - rate S; Kleinrock 1975), at a concurrency that starts at d(n) and goes back
                  to its mean within about a turn, the slower the more concurrency slows tokens; turns that come
                  meanwhile do both, so that the one goes with the other

p99s do not add.  Means, variances and third cumulants do where parts are independent, so those are summed for each n;
a gamma distribution of these three (Pearson III, its tail after Wilson and Hilferty 1931) gives the chance to be late,
and the chances are weighed with P(n).  csrc/ works it out (`station`: the chain; `queueing`: the rest; `capacity`: the
greatest rate), a pair at a time, and says what each part is taken from.  Checked against the engine's own scheduler in
tests/planner/test_queueing.py and against the real worker by benchmarks/capacity.py.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from berth_operator.planner.native import FLOATS, INTS, LENGTH, function

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Loads = npt.NDArray[np.void]
"""[pair] of `LOAD`."""

LOAD: Final = np.dtype(
    [
        (name, np.float64)
        for name in (
            "prompt_tokens",
            "output_tokens",
            "context_tokens",
            "cached_share",
            "turns_per_session",
            "think_seconds",
            "prompt_spread",
            "output_spread",
            "first_token",
            "gap",
            "turn",
            "sessions",
        )
    ]
)
"""A workload and its promises, seconds and tokens, as capacity.Load says; sessions infinite where unknown."""


@dataclass(frozen=True, slots=True)
class Replicas:
    """Speeds, [pair, i] by turns in the replica: turns[:, 0] = 0, then ascending from 1, and 1 at least.

    Where other pairs have more columns, the last one is repeated.
    """

    turns: Array
    step: Array
    """Seconds of a decode step with so many streams; column 0 as column 1."""
    gap_p99: Array
    idle: Array
    """Seconds of arithmetic in a step that waits for memory."""
    fits: Ints
    """[pair] how many columns KV memory has room for."""
    prefill_tokens_per_second: Array
    """[pair] at the load's mean context."""
    attention_seconds: Array
    """[pair] that reading a token of a prompt takes longer for each token before it."""
    kv_cache_tokens: Array
    """[pair]"""
    budgets: Ints
    """[pair, 2] least and most tokens a step that its runtime can be told; 0: none, it keeps a pace."""
    pace: Array
    """[pair] p99 between tokens, seconds, that it is told to keep; 0: the promise, or less where that carries more."""

    def alone(self, rows: Ints) -> "Replicas":
        """Some of the pairs, with one turn at most."""
        turns, step, gap_p99, idle = (x[rows, :2] for x in (self.turns, self.step, self.gap_p99, self.idle))
        prefill, attention, kv = self.prefill_tokens_per_second, self.attention_seconds, self.kv_cache_tokens
        fits = np.minimum(self.fits[rows], 2)
        by_pair = prefill[rows], attention[rows], kv[rows], self.budgets[rows], self.pace[rows]
        return Replicas(turns, step, gap_p99, idle, fits, *by_pair)


@dataclass(frozen=True, slots=True)
class States:
    """What turns find at a rate, [pair, i] by the turns in the replica; 0 where memory has no room."""

    chance: Array
    """That an arrival finds about so many."""
    took: Array
    """1/X."""
    reading: Array
    """Chance that a prompt is being read."""
    own: Array
    """T of a session's first turn, beside n others; beside none a prompt has a step of its own."""
    added: Array
    """e"""


_PAIRS: Final = (*[FLOATS] * 4, INTS, *[FLOATS] * 4, INTS, np.ctypeslib.ndpointer(LOAD, flags="C_CONTIGUOUS"))
_greatest_rates: Final = function("berth_greatest_rates", LENGTH, LENGTH, *_PAIRS, FLOATS)
_latencies: Final = function("berth_latencies", LENGTH, LENGTH, *_PAIRS, FLOATS, INTS, FLOATS)
_states: Final = function("berth_states", LENGTH, LENGTH, *_PAIRS, FLOATS, FLOATS)


def greatest_rates(replicas: Replicas, loads: Loads) -> Array:
    """[pair, 7] the most turns/s within the promises, slots, p99s of first token, gap and turn, seconds, the token
    budget, 0 where there is none, and else the pace, seconds.  0 turns/s: nothing; then all are 0 but the budget, the
    greatest with which a turn alone keeps the promise between tokens, else the least.

    At that rate at most one turn in a hundred has its first token or its end later than promised.  Of the numbers of
    slots at which the p99 between tokens is within the promise, in steps without a chunk, or where there is a budget
    in those that use it up, the best one counts; and of the budgets: the most, its halves, and three quarters of those
    up to 1,024.  Of paces the promise, and where arithmetic waits for memory, so that small chunks ride along for free,
    those below it of 1, 1.5, 2, 3, 5 and 7 in each decade.
    """
    found = np.empty((len(loads), 7))
    _greatest_rates(*_arguments(replicas, loads), found)
    return found


def latencies(replicas: Replicas, loads: Loads, rates: Array, slots: Ints) -> Array:
    """[pair, 3] p99s of first token, gap and turn, seconds, up to an hour, at `rates` turns/s; nan: it cannot keep up.

    `slots`: as many as are in that column, for which memory has room.  Of budgets, the most is told, and where no
    pace is given what is promised.
    """
    if (slots < 1).any() or (slots >= replicas.fits).any():
        raise ValueError("no room for as many slots")
    found = np.empty((len(loads), 3))
    arguments = np.ascontiguousarray(rates, np.float64), np.ascontiguousarray(slots, np.int64)
    _latencies(*_arguments(replicas, loads), *arguments, found)
    return found


def states(replicas: Replicas, loads: Loads, rates: Array) -> States:
    """At `rates` turns/s, with as many slots as memory has room for, and told as in `latencies`."""
    found = np.empty((5, *replicas.turns.shape))
    _states(*_arguments(replicas, loads), np.ascontiguousarray(rates, np.float64), found)
    return States(*found)


def _arguments(replicas: Replicas, loads: Loads) -> list[Any]:
    pairs, columns = replicas.turns.shape
    by_column = replicas.turns, replicas.step, replicas.gap_p99, replicas.idle
    by_pair = replicas.prefill_tokens_per_second, replicas.attention_seconds, replicas.kv_cache_tokens, replicas.pace
    if columns < 2 or any(x.shape != (pairs, columns) for x in by_column):
        raise ValueError("speeds are [pair, column], of 0 turns, 1, and more")
    if any(x.shape != (pairs,) for x in (replicas.fits, *by_pair, loads)):
        raise ValueError("memory, prefill, pace and load are [pair]")
    if (replicas.fits < 1).any() or (replicas.fits > columns).any():
        raise ValueError("memory has room for 0 turns, and for no more than there are columns for")
    if replicas.budgets.shape != (pairs, 2) or (replicas.budgets[:, 0] > replicas.budgets[:, 1]).any():
        raise ValueError("budgets are [pair, 2], the least and the most")
    speeds, others = ([np.ascontiguousarray(x, np.float64) for x in of] for of in (by_column, by_pair))
    fits, budgets = (np.ascontiguousarray(x, np.int64) for x in (replicas.fits, replicas.budgets))
    return [pairs, columns, *speeds, fits, *others, budgets, np.ascontiguousarray(loads)]
