"""What does the loop ask about load?  Pools as they are to be planned, doors for those asleep, and facts for status.

It decides nothing itself and keeps nothing that matters: decisions are `demand`'s and `drift`'s, and what must outlive
a restart is in pool status.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial

from berth_operator.api import HardwareClass, InferencePool, ServingProfile, resolve
from berth_operator.api.inference_pool import DemandStatus, ProfileDrift
from berth_operator.cluster.observe import Worker
from berth_operator.load.activator import Activator, Doors
from berth_operator.load.demand import Seen, decide, follows_demand, in_force
from berth_operator.load.facts import NO_LOAD, LoadFacts, load_facts
from berth_operator.load.watch import Watch
from berth_operator.memo import Kept, Memo
from berth_operator.planner.speed import best_profile

log = logging.getLogger(__name__)


class Traffic:
    """Load, as the loop knows it."""

    def __init__(self, watch: Watch, activator: Activator | None) -> None:
        """`activator`: None where nothing wakes a pool that has no worker, so that none may sleep."""
        self._watch = watch
        self._activator = activator
        self._demands: dict[str, DemandStatus | None] = {}
        self._planned: Memo[InferencePool] = Memo()
        self._facts: Kept[str, LoadFacts] = Kept()

    def in_force(self, pools: Sequence[InferencePool], now: datetime) -> tuple[InferencePool, ...]:
        """The pools as they are to be planned now; the very same objects while nothing changes."""
        out = []
        for pool in pools:
            demand, before = self._decide(pool, now), self._demands.get(pool.key)
            if demand and before and (demand.asleep_since is None) != (before.asleep_since is None):
                log.info("%s: %s", pool.key, "asleep: no request for long" if demand.asleep_since else "awake again")
            self._demands[pool.key] = demand
            out.append(self._planned.get(pool.key, (pool, demand), partial(in_force, pool, demand)))
        keys = {pool.key for pool in pools}
        self._planned.keep_only(keys)
        for key in self._demands.keys() - keys:
            del self._demands[key]
        return tuple(out)

    def matters(self, pool: InferencePool) -> bool:
        """Whether what is known now asks for another plan than the one in force."""
        return self._decide(pool, datetime.now(UTC)) != pool.status.demand

    def knock(self, pool: str) -> None:
        """A request waits for a pool (`namespace/name`) without workers."""
        self._watch.knock(pool)

    async def doors(self, pools: Iterable[InferencePool], workers: Iterable[Worker]) -> dict[str, Doors]:
        """Where clients of pools are taken in that may sleep and have no ready worker, by pool.

        `pools`: as they are planned, as `in_force` gives them.
        """
        if self._activator is None:
            return {}
        may_sleep = [p for p in pools if _may_sleep(p) and (self._asleep(p.key) or not p.spec.suspend)]
        ready = {worker.pool for worker in workers if worker.ready and not worker.deleting}
        self._activator.keep_only({pool.key for pool in may_sleep})
        out = {}
        for pool in may_sleep:
            if pool.key not in ready or self._asleep(pool.key):
                try:
                    out[pool.key] = await self._activator.open(pool.key)
                except OSError as error:
                    log.warning("%s: no door can be opened: %s", pool.key, error)
        return out

    def facts(
        self,
        pools: Sequence[InferencePool],
        workers: Iterable[Worker],
        classes: Iterable[HardwareClass],
        profiles: Collection[ServingProfile],
    ) -> dict[str, LoadFacts]:
        """What status says of each pool's load; the very same objects while nothing changes."""
        ready: dict[str, list[Worker]] = {}
        for worker in workers:
            if worker.ready and not worker.deleting:
                ready.setdefault(worker.pool, []).append(worker)
        hardware = {c.metadata.name: c for c in classes}

        def of(pool: InferencePool) -> LoadFacts:
            demand, drift = self._demands.get(pool.key), self._drift(pool, ready.get(pool.key, ()), hardware, profiles)
            if pool.spec.scaling is None and demand is None and not drift:
                return NO_LOAD  # most pools, each pass
            return load_facts(
                *(pool, demand, self._seen(pool), self._watch.troubles(pool.key), drift),
                any_ready=pool.key in ready,
                can_wake=self._activator is not None,
            )

        return self._facts.same((pool.key, of(pool)) for pool in pools)

    def observed(self, pools: Iterable[InferencePool]) -> dict[str, float]:
        """Requests per second estimated now, by pool, where that is known."""
        found = {pool.key: self._seen(pool).requests_per_second for pool in pools}
        return {key: rate for key, rate in found.items() if rate is not None}

    # Underneath

    def _seen(self, pool: InferencePool) -> Seen:
        knocking = self._activator is not None and self._activator.knocking(pool.key)
        return self._watch.seen(pool, knocking=knocking)

    def _asleep(self, key: str) -> bool:
        demand = self._demands.get(key)
        return demand is not None and demand.asleep_since is not None

    def _decide(self, pool: InferencePool, now: datetime) -> DemandStatus | None:
        if not follows_demand(pool):
            return None
        can_wake = self._activator is not None
        return decide(pool, resolve(pool.spec), self._seen(pool), now, can_wake=can_wake)

    def _drift(
        self,
        pool: InferencePool,
        workers: Sequence[Worker],
        classes: dict[str, HardwareClass],
        profiles: Collection[ServingProfile],
    ) -> list[ProfileDrift]:
        said = {drift.profile: drift for drift in pool.status.drift or ()}
        evidence = self._watch.evidence(pool.key)
        if not evidence and not said:
            return []
        effective = resolve(pool.spec)
        declared = effective.prompt_tokens + effective.output_tokens / 2
        found = {}
        for name, quantization in sorted({(w.hardware_class, w.quantization) for w in workers if w.quantization}):
            hardware = classes.get(name)
            runtime = hardware.spec.runtime.name if hardware else None
            profile = runtime and best_profile(profiles, effective.model, quantization, name, runtime)
            if not profile:
                continue
            before = said.get(profile.metadata.name)
            collected = evidence.get((name, quantization))
            verdict = collected.verdict(profile, declared, before) if collected else before
            if verdict:
                found[verdict.profile] = verdict
        return list(found.values())


def _may_sleep(pool: InferencePool) -> bool:
    return pool.spec.scaling is not None and pool.spec.scaling.scale_to_zero_after is not None
