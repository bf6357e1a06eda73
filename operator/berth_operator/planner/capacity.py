"""What does one replica carry within the objectives?

The greatest rate at which, by `queueing`, at most one turn in a hundred has its first token or its end later than
promised.  Slots are bounded so that no step, with a chunk of a prompt in it or without, takes longer than the promise
between tokens; of the numbers of slots within that and within memory, the best one counts.  Berth's worker
cuts chunks to the pace that it is told, the promise or less; vLLM is told how many tokens a step may take.  Of either
the best of some numbers.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np

from berth_operator.api import Effective
from berth_operator.planner import queueing
from berth_operator.planner.queueing import LOAD, Array, Ints, Loads, Replicas
from berth_operator.planner.speed import Speed
from berth_operator.planner.types import ReplicaCapacity

_SELDOM: Final = 1e-9
"""Turns/s that never meet each other."""

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
    column = np.searchsorted(speed.concurrency, [slots], side="right")
    found = queueing.latencies(as_replicas([(speed, load)]), as_loads([load]), np.array([rate]), column)
    first_token, gap, turn = found[0].tolist()
    return None if math.isnan(gap) else Latencies(first_token, gap, turn)


_fields: Final = operator.attrgetter(*(LOAD.names or ()))


def as_loads(loads: Sequence[Load]) -> Loads:
    """The loads as an array."""
    found = np.array([_fields(load) for load in loads], dtype=LOAD)
    found["sessions"][np.isnan(found["sessions"])] = math.inf
    return found


def as_replicas(pairs: Sequence[tuple[Speed, Load]]) -> Replicas:
    """Speeds as rows, each as far as memory holds that many requests of its load."""
    longest = max(len(speed.concurrency) for speed, _ in pairs)

    def rows(values: Sequence[Sequence[float]]) -> Array:
        padded = [[v[0], *v, *[v[-1]] * (longest - len(v))] for v in values]
        return np.array(padded, dtype=np.float64)

    turns = rows([s.concurrency for s, _ in pairs])
    turns[:, 0] = 0
    counts = np.array([len(s.concurrency) for s, _ in pairs])
    needed = np.array([load.context_tokens for _, load in pairs])
    kv = np.array([float(s.kv_cache_tokens) for s, _ in pairs])
    return Replicas(
        turns=turns,
        step=rows([s.step_seconds for s, _ in pairs]),
        gap_p99=rows([s.gap_p99_seconds for s, _ in pairs]),
        idle=rows([s.idle_seconds for s, _ in pairs]),
        fits=np.minimum(1 + counts, (turns * needed[:, None] <= kv[:, None]).sum(axis=1)),
        prefill_tokens_per_second=np.array([s.prefill_tokens_per_second for s, _ in pairs]),
        attention_seconds=np.array([s.attention_seconds for s, _ in pairs]),
        kv_cache_tokens=kv,
        budgets=np.array([s.token_budgets for s, _ in pairs]),
        pace=np.array([s.pace_seconds for s, _ in pairs]),
    )


def solve(replicas: Replicas, of: Sequence[Load], estimated: Sequence[bool]) -> list[Judged]:
    """What each pair carries."""
    loads = as_loads(of)
    carried, alone = queueing.greatest_rates(replicas, loads), _alone(replicas, loads)
    slow = np.flatnonzero(carried[:, 0] == 0)
    told = replace(replicas, budgets=np.repeat(carried[:, 5:6].astype(np.int64), 2, axis=1))
    broken = dict(zip(slow.tolist(), _p99s_alone(told, loads, alone, slow).tolist(), strict=True))
    kv, unloaded = replicas.kv_cache_tokens.tolist(), alone[:, 2].tolist()
    found: list[Judged] = []
    for i, (rate, slots, first, gap, turn, budget, pace) in enumerate(carried.tolist()):
        if i in broken:
            found.append((too_slow(of[i], *broken[i]), unloaded[i]))
        else:
            room = int(kv[i]), estimated[i]
            capacity = ReplicaCapacity(rate, int(slots), first, gap, turn, *room, int(budget), pace)
            found.append((capacity, unloaded[i]))
    return found


def _p99s_alone(replicas: Replicas, loads: Loads, alone: Array, rows: Ints) -> Array:
    """`_alone` of some pairs; where no promise is broken by it, with p99s: prompts grow, and steps vary.

    Where those hold too, only just, the one that the rarest second turn would break is taken to be broken.
    """
    promised = np.stack([loads["gap"], loads["first_token"], loads["turn"]], axis=1)[rows]
    found = alone[rows]
    held = np.flatnonzero((found[:, :3] <= promised).all(axis=1))
    if not len(held):
        return found
    some, once = rows[held], np.full(len(held), 1)
    p99s = queueing.latencies(replicas.alone(some), loads[some], _SELDOM * once, once)[:, [0, 2]]
    used = p99s / promised[held, 1:]
    just = np.flatnonzero(used.max(axis=1) <= 1)
    nearest = just, used[just].argmax(axis=1)
    p99s[nearest] = np.nextafter(promised[held, 1:][nearest], math.inf)
    found[held, 1:3] = p99s
    return found


def _alone(replicas: Replicas, loads: Loads) -> Array:
    """[pair, 5] gap p99, first token, turn, uncached tokens and prefill tokens/s of one request on an idle replica."""
    speed, step = replicas.prefill_tokens_per_second, replicas.step[:, 1]
    uncached = np.maximum(loads["prompt_tokens"] * (1 - loads["cached_share"]), 1.0)
    first = uncached / speed + step
    turn = first + (loads["output_tokens"] - 1) * step
    chunk = np.maximum((replicas.budgets[:, 0] - 1) / speed - replicas.idle[:, 1], 0.0)  # the least beside its tokens
    gap = replicas.gap_p99[:, 1] * (1 + chunk / step)
    return np.stack([gap, first, turn, uncached, speed], axis=1)


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
