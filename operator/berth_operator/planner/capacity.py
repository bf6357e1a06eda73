"""What does one replica carry within the objectives?

A replica decodes up to `b` requests at once and prefills new prompts in chunks between decode steps.  At a rate of
L turns/s, with s = step(b), U uncached prompt tokens and O output tokens:

    S = U / prefill speed                    prefill of one turn, alone
    e = min(objective gap - gap p99(b), s)   time that a chunk of prefill may add to a step: it never more than doubles
                                             one and never breaks the objective (runtimes bound their chunks so)
    c = e + idle(b)                          prefill work in a chunk: e, and what rides along while memory is the limit
    T = S (s + e) / c                        prefill of one turn beside b - 1 others (b = 1: S)
    t = s / (1 - L S e / c)                  mean time a token, with what prefill steals
    D = T + O t                              time that a turn holds its slot
    first token = wait for one of b slots + wait for prefill + T + t
    turn        = first token + (O - 1) t

Waiting is M/M/b in Sakasegawa's approximation (1977): P(wait) = p^(sqrt(2(b+1)) - 1) with p = L D / b, and then
exponential with mean D / (b (1 - p)).  Adding the p99s of the two waits errs on the safe side; composing the
distributions is for later.  Of the prompt, `cachedPromptPercent` is a hit only as far as the KV memory that running
requests leave holds the sessions which think meanwhile (L x think time of them, by Little's law).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from berth_operator.api import Effective
from berth_operator.planner.speed import Speed
from berth_operator.planner.types import ReplicaCapacity

Array = npt.NDArray[np.float64]
BISECTIONS: Final = 40
_NEVER: Final = 1e12
"""Seconds; stands for infinity where infinity times nothing would be no number."""


@dataclass(frozen=True, slots=True)
class Load:
    """One pool's requests and promises, seconds and tokens."""

    prompt_tokens: int
    output_tokens: int
    cached_share: float
    """0 to 1, of the prompt."""
    sessions: bool
    """Sessions come back for more turns, so their KV must stay."""
    think_seconds: float
    first_token: float
    gap: float
    turn: float

    @staticmethod
    def of(effective: Effective) -> "Load":
        """The load that a resolved spec describes."""
        return Load(
            prompt_tokens=effective.prompt_tokens,
            output_tokens=effective.output_tokens,
            cached_share=effective.cached_prompt_percent / 100,
            sessions=effective.turns_per_session > 1,
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
class Loads:
    """A `Load` of each entry (a speed's concurrencies, or those of many pairs), as arrays."""

    prompt_tokens: Array
    output_tokens: Array
    context_tokens: Array
    cached_share: Array
    keeps: npt.NDArray[np.bool_]
    """Sessions come back and part of the prompt can be cached."""
    think_seconds: Array
    first_token: Array
    gap: Array
    turn: Array

    @staticmethod
    def of(loads: Sequence[Load], entry: npt.NDArray[np.int64]) -> "Loads":
        """The loads of entries, by index into `loads`."""

        def column(values: list[float]) -> Array:
            return np.array(values, dtype=np.float64)[entry]

        return Loads(
            column([x.prompt_tokens for x in loads]),
            column([x.output_tokens for x in loads]),
            column([x.context_tokens for x in loads]),
            column([x.cached_share for x in loads]),
            np.array([x.sessions and x.cached_share > 0 for x in loads], dtype=np.bool_)[entry],
            column([x.think_seconds for x in loads]),
            column([x.first_token for x in loads]),
            column([x.gap for x in loads]),
            column([x.turn for x in loads]),
        )

    def at(self, entries: npt.NDArray[np.int64]) -> "Loads":
        """Some of the entries."""
        return Loads(*(getattr(self, name)[entries] for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Steps:
    """A `Speed` as arrays by entry: the concurrencies whose KV fits."""

    concurrency: Array
    step: Array
    gap: Array
    idle: Array
    prefill_tokens_per_second: Array
    kv_cache_tokens: Array

    @staticmethod
    def of(speed: Speed, load: Load) -> "Steps":
        """The concurrencies at which a load's KV fits."""
        count = sum(b * load.context_tokens <= speed.kv_cache_tokens for b in speed.concurrency)
        return Steps(
            np.array(speed.concurrency[:count], dtype=np.float64),
            np.array(speed.step_seconds[:count]),
            np.array(speed.gap_p99_seconds[:count]),
            np.array(speed.idle_seconds[:count]),
            np.full(count, speed.prefill_tokens_per_second),
            np.full(count, float(speed.kv_cache_tokens)),
        )

    def at(self, entries: npt.NDArray[np.int64]) -> "Steps":
        """Some of the entries."""
        return Steps(*(getattr(self, name)[entries] for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Latencies:
    """Predicted p99s at each concurrency, seconds."""

    first_token: Array
    gap: Array
    turn: Array


def wait_p99(servers: Array, service: Array, rate: Array) -> Array:
    """p99 wait in an M/M/b queue (Sakasegawa): seconds, infinite where the queue grows without end.

    A wait that fewer than 1 % of the arrivals have is 0.
    """
    busy = rate * service / servers
    stable = busy < 1
    safe, held = np.where(stable, busy, 0.5), np.where(stable, service, 0.0)
    waits = safe ** (np.sqrt(2 * (servers + 1)) - 1)
    wait = np.log(np.maximum(100 * waits, 1.0)) * held / (servers * (1 - safe))
    return np.where(stable, wait, math.inf)


def uncached_tokens(steps: Steps, load: Loads, rate: Array) -> Array:
    """Prompt tokens to prefill a turn: what the KV memory can keep of `cached_share` is a hit."""
    room = np.maximum(steps.kv_cache_tokens - steps.concurrency * load.context_tokens, 0.0)
    thinking = rate * load.think_seconds * load.context_tokens
    kept = np.where(load.keeps, np.minimum(room / np.maximum(thinking, 1e-12), 1.0), 1.0)
    uncached: Array = np.maximum(load.prompt_tokens * (1 - load.cached_share * kept), 1.0)
    return uncached


def predicted(steps: Steps, load: Loads, rate: Array) -> Latencies:
    """p99s at a rate, turns/s, of each entry."""
    b, step, gap = steps.concurrency, steps.step, steps.gap
    alone = b == 1
    prefill = uncached_tokens(steps, load, rate) / steps.prefill_tokens_per_second
    added = np.where(alone, 0.0, np.minimum(np.maximum(load.gap - gap, 0.0), step))
    chunk = np.maximum(added + steps.idle, 1e-9)
    stretched = np.where(alone, prefill, prefill * np.maximum((step + added) / chunk, 1.0))
    left = 1 - rate * prefill * added / chunk
    token = np.where(left > 0, step / np.maximum(left, 1e-9), _NEVER)
    held = stretched + load.output_tokens * token
    wait = wait_p99(b, held, rate) + np.where(alone, 0.0, wait_p99(np.ones_like(b), stretched, rate))
    first = wait + stretched + token
    return Latencies(first_token=first, gap=gap + added, turn=first + (load.output_tokens - 1) * token)


def holds(latencies: Latencies, load: Loads) -> npt.NDArray[np.bool_]:
    """Whether all three promises hold, of each entry."""
    slack = 1 + 1e-9
    return (
        (latencies.first_token <= load.first_token * slack)
        & (latencies.gap <= load.gap * slack)
        & (latencies.turn <= load.turn * slack)
    )


@lru_cache(maxsize=16384)
def replica_capacity(speed: Speed, load: Load) -> ReplicaCapacity | TooSlow:
    """The greatest rate that one replica carries within the objectives, over all concurrencies its memory allows.

    Requires that the KV memory holds one request (`load.context_tokens <= speed.kv_cache_tokens`).
    """
    steps, loads = _of(speed, load)
    low = np.zeros_like(steps.concurrency)
    idle = predicted(steps, loads, low)
    possible = holds(idle, loads)
    if not possible.any():
        latencies = float(idle.gap[0]), float(idle.first_token[0]), float(idle.turn[0])
        uncached = float(uncached_tokens(steps, loads, low)[0])
        return too_slow(load, *latencies, uncached, speed.prefill_tokens_per_second)
    high = steps.concurrency / (load.output_tokens * steps.step)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        ok = holds(predicted(steps, loads, middle), loads)
        low, high = np.where(ok, middle, low), np.where(ok, high, middle)
    rate = np.where(possible, low, 0.0)
    best = int(np.argmax(rate))
    at = predicted(steps, loads, rate)
    return ReplicaCapacity(
        turns_per_second=float(rate[best]),
        concurrency=int(steps.concurrency[best]),
        time_to_first_token_p99=float(at.first_token[best]),
        inter_token_latency_p99=float(at.gap[best]),
        turn_latency_p99=float(at.turn[best]),
        kv_cache_tokens=speed.kv_cache_tokens,
        estimated=speed.estimated,
    )


@lru_cache(maxsize=16384)
def unloaded_turn_seconds(speed: Speed, load: Load) -> float:
    """Turn latency of one request on an idle replica: what objective Latency compares."""
    steps, loads = _of(speed, load)
    return float(predicted(steps, loads, np.zeros_like(steps.concurrency)).turn[0])


def _of(speed: Speed, load: Load) -> tuple[Steps, Loads]:
    steps = Steps.of(speed, load)
    return steps, Loads.of([load], np.zeros(len(steps.concurrency), dtype=np.int64))


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
