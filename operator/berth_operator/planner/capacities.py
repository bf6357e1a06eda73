"""What do many replicas carry within their objectives?  `capacity` for thousands of (speed, load) pairs at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from berth_operator.api import HardwareClassSpec, Quantization
from berth_operator.planner.architectures import Architecture
from berth_operator.planner.capacity import Judged, Load, as_replicas, solve
from berth_operator.planner.queueing import Array, Replicas
from berth_operator.planner.speed import Speed, roofline_speeds, token_budgets

AT_ONCE: Final = 1024
"""Pairs that are judged at once at most: many, as that costs some 100 calls of numpy; but not all, for memory."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """(speed, load) pairs to judge."""

    replicas: Replicas
    loads: Sequence[Load]
    estimated: Sequence[bool]

    def judged(self) -> list[Judged]:
        """`replica_capacity` and `unloaded_turn_seconds` of each."""
        return solve(self.replicas, self.loads, self.estimated)


def roofline_pairs(
    spec: HardwareClassSpec,
    architecture: Architecture,
    quantization: Quantization,
    loads: Sequence[Load],
    nodes: int = 1,
) -> Pairs:
    """Estimates of one class for many loads, each replica on `nodes` nodes."""
    speeds = roofline_speeds(spec, architecture, quantization, np.array([x.mean_context_tokens for x in loads]), nodes)
    turns = np.tile(np.concatenate([[0.0], speeds.concurrency]), (len(loads), 1))
    needed = np.array([[x.context_tokens] for x in loads])
    replicas = Replicas(
        turns=turns,
        step=_from_none(speeds.step),
        gap_p99=_from_none(speeds.gap_p99),
        idle=_from_none(speeds.idle),
        fits=((turns <= speeds.limit[:, None]) & (turns * needed <= speeds.kv_cache_tokens)).sum(axis=1),
        prefill_tokens_per_second=speeds.prefill_tokens_per_second,
        attention_seconds=np.full(len(loads), speeds.attention_seconds),
        kv_cache_tokens=np.full(len(loads), float(speeds.kv_cache_tokens)),
        budgets=np.tile(token_budgets(spec.runtime), (len(loads), 1)),
        pace=np.zeros(len(loads)),
    )
    return Pairs(replicas, loads, [True] * len(loads))


def profiled_pairs(pairs: Sequence[tuple[Speed, Load]]) -> Pairs:
    """Speeds from profiles, each with its load."""
    return Pairs(as_replicas(pairs), [load for _, load in pairs], [speed.estimated for speed, _ in pairs])


def _from_none(values: Array) -> Array:
    """A column for nobody, with the figures of one."""
    return np.concatenate([values[:, :1], values], axis=1)
