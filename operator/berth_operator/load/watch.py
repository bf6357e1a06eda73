"""What do the workers of every pool say, again and again?  Reads their metrics and keeps what decisions need.

Each pool is read by a task of its own, through slots of its own: workers that hang, dribble or lie cost their own pool
a late or missing answer, and nobody else anything.  A worker that fails is asked less and less often.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from berth_operator.api import InferencePool, Quantization, resolve
from berth_operator.cluster.observe import Worker
from berth_operator.load.demand import History, Sample, Seen, follows_demand
from berth_operator.load.drift import DriftPolicy, Evidence
from berth_operator.load.facts import Troubles
from berth_operator.load.page import LieError, Page, growth
from berth_operator.load.scrape import UnreadableError

log = logging.getLogger(__name__)

EvidenceKey = tuple[str, Quantization]
"""(hardware class, quantization)"""

_SLOTS_A_POOL: Final = 16
_SLOTS: Final = (192, 64)
"""Workers read at once of all pools whose demand is followed, and of all others, which must not delay those."""
_STALE_SECONDS: Final = 30.0
"""A worker's last page counts for so long: one late answer is no gap in what is known."""
_FAILURES: Final = 3
"""In a row, before a worker is complained of."""
_SLOWEST_SECONDS: Final = 60.0
_RESTARTS: Final = 3
_RESTART_WINDOW_SECONDS: Final = 600.0
_DRIFT_ROUNDS: Final = 3
"""Pools whose demand is declared are read for drift alone: every third round."""
_SHOWN: Final = 3
_DEFAULT_PORT: Final = 8000


class Reader(Protocol):
    """Reads one page."""

    async def read(self, address: str) -> Page:
        """Raises UnreadableError or LieError."""
        ...


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """How often workers are read, and how slowly demand falls."""

    every_s: float = 5.0
    stabilisation_s: float = 300.0
    drift: DriftPolicy = field(default_factory=DriftPolicy)


@dataclass(slots=True)
class _Known:
    """What we know of one worker."""

    first_seen: float
    page: Page | None = None
    read_at: float = float("-inf")
    failures: int = 0
    due: float = float("-inf")
    trouble: str = ""
    lied: bool = False
    restarts: deque[float] = field(default_factory=deque)


class Watch:
    """Reads the workers of all pools.  `await watch.run()` until cancelled; `reset()` forgets everything."""

    def __init__(
        self,
        reader: Reader,
        pools: Callable[[], Iterable[InferencePool]],
        workers: Callable[[], Iterable[Worker]],
        settings: WatchSettings,
        *,
        on_sample: Callable[[InferencePool], None] = lambda _: None,
        active: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_sample` hears of a pool whenever more is known of it.  `active`: whether to read at all (leaders do)."""
        self._reader = reader
        self._pools = pools
        self._workers = workers
        self._settings = settings
        self._on_sample = on_sample
        self._active = active
        self._clock = clock
        self._rounds = 0
        self._known: dict[str, dict[str, _Known]] = {}
        self._histories: dict[str, History] = {}
        self._generations: dict[str, int] = {}
        """Of the spec that a history's long windows are of."""
        self._sampled: dict[str, float] = {}
        self._evidence: dict[str, dict[EvidenceKey, Evidence]] = {}
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._followed, self._others = (asyncio.Semaphore(slots) for slots in _SLOTS)

    async def run(self) -> None:
        """Round after round until cancelled."""
        try:
            while True:
                if self._active():
                    self.begin_round()
                else:
                    self.reset()
                await asyncio.sleep(self._settings.every_s)
        finally:
            for task in self._reading.values():
                task.cancel()
            await asyncio.gather(*self._reading.values(), return_exceptions=True)

    def begin_round(self) -> list[asyncio.Task[None]]:
        """Start to read every pool that is due and not still being read; the tasks of this round."""
        pools = {pool.key: pool for pool in self._pools()}
        by_pool: dict[str, list[Worker]] = {}
        for worker in self._workers():
            if worker.pool in pools and worker.address and (worker.ready or worker.deleting):
                by_pool.setdefault(worker.pool, []).append(worker)
        self._keep_only(by_pool)
        started = []
        for key, workers in by_pool.items():
            due = follows_demand(pools[key]) or self._rounds % _DRIFT_ROUNDS == 0
            if due and key not in self._reading and any(w.ready for w in workers):
                task = asyncio.create_task(self._read_pool(pools[key], workers), name=f"read workers of {key}")
                self._reading[key] = task
                task.add_done_callback(lambda done, key=key: self._done(key, done))  # type: ignore[misc]
                started.append(task)
        self._rounds += 1
        return started

    def reset(self) -> None:
        """Forget everything: another replica leads."""
        self._known.clear()
        self._histories.clear()
        self._sampled.clear()
        self._evidence.clear()

    def knock(self, pool: str) -> None:
        """A request came for a pool (`namespace/name`) that has no worker."""
        if pool in self._histories:
            self._histories[pool].knock(self._clock())

    def seen(self, pool: InferencePool, *, knocking: bool = False) -> Seen:
        """What is known of a pool's traffic now.  For a spec that has just changed, long windows begin anew."""
        history = self._histories.get(pool.key)
        if history is None:
            return Seen(knocking=knocking)
        seen = history.seen(self._clock(), knocking=knocking)
        if self._generations.get(pool.key) != pool.metadata.generation:
            return replace(seen, peak_requests_per_second=None, quiet_seconds=None)
        return seen

    def evidence(self, pool: str) -> Mapping[EvidenceKey, Evidence]:
        """How fast a pool's workers decode, by hardware class and quantization."""
        return self._evidence.get(pool, {})

    def troubles(self, pool: str) -> Troubles:
        """What is wrong with the metrics of a pool's workers, the first few by name, liars before the others."""
        bad = {name: k for name, k in self._known.get(pool, {}).items() if k.failures >= _FAILURES}
        shown = sorted(bad, key=lambda name: (not bad[name].lied, name))[:_SHOWN]
        more = (f"and {len(bad) - _SHOWN} more workers",) if len(bad) > _SHOWN else ()
        texts = tuple(f"worker {name}: {bad[name].trouble}" for name in shown)
        return Troubles(texts + more, any(k.lied for k in bad.values()))

    # One pool

    async def _read_pool(self, pool: InferencePool, workers: Sequence[Worker]) -> None:
        known = self._known.setdefault(pool.key, {})
        began = self._clock()
        for name in known.keys() - {w.name for w in workers}:
            del known[name]
        own, shared = asyncio.Semaphore(_SLOTS_A_POOL), self._followed if follows_demand(pool) else self._others

        async def read(worker: Worker) -> tuple[Page, float] | None:
            state = known.setdefault(worker.name, _Known(began))
            if state.due > began:
                return None
            async with own, shared:
                return await self._read_worker(pool.key, worker, state)

        grown = [found for found in await asyncio.gather(*map(read, workers)) if found]
        now = self._clock()
        fresh = {n: k for n, k in known.items() if k.page and now - k.read_at <= _STALE_SECONDS}
        sample = Sample(
            at=now,
            seconds=max(1e-3, now - self._sampled.get(pool.key, began - self._settings.every_s)),
            arrivals=sum(max(0.0, page.finished + risen) for page, risen in grown),
            in_flight=sum(k.page.in_flight for k in fresh.values() if k.page),
            whole=all(w.name in fresh for w in workers if w.ready),
            refused=sum(page.refused for page, _ in grown),
        )
        self._sampled[pool.key] = now
        if follows_demand(pool):
            history = self._histories.setdefault(pool.key, History(self._settings.stabilisation_s))
            if self._generations.get(pool.key) != pool.metadata.generation:
                self._generations[pool.key] = pool.metadata.generation
                history.unsettle()
            effective = resolve(pool.spec)
            history.add(sample, effective.think_time.total_seconds(), effective.turn_latency_p99.total_seconds())
        self._on_sample(pool)

    async def _read_worker(self, pool: str, worker: Worker, state: _Known) -> tuple[Page, float] | None:
        """What was added since the page before, and by how much more is in flight; None where that is not known."""
        try:
            page = await self._reader.read(_address(worker))
            now, before = self._clock(), state.page
            added = growth(before, page, now - state.read_at) if before else None
            self._count_restart(state, now, fell=before is not None and added is None)
        except (UnreadableError, LieError) as error:
            self._failed(worker, state, error)
            return None
        if state.failures >= _FAILURES:
            log.info("%s: the metrics of worker %s can be read again", pool, worker.name)
        elapsed = now - state.read_at
        state.page, state.read_at = page, now
        state.failures, state.trouble, state.lied, state.due = 0, "", False, float("-inf")
        if added is None or before is None:
            return None
        if worker.quantization is not None:
            of_pool = self._evidence.setdefault(pool, {})
            key = (worker.hardware_class, worker.quantization)
            of_pool.setdefault(key, Evidence(self._settings.drift)).add(now, elapsed, added)
        return added, page.in_flight - before.in_flight

    def _count_restart(self, state: _Known, now: float, *, fell: bool) -> None:
        """Counts fall when a worker starts again, which is rare.  Raises LieError for one that does it all the time."""
        if fell:
            state.restarts.append(now)
        while state.restarts and state.restarts[0] < now - _RESTART_WINDOW_SECONDS:
            state.restarts.popleft()
        if len(state.restarts) > _RESTARTS:
            raise LieError("counters fall again and again: they only grow in a worker that lives")

    def _failed(self, worker: Worker, state: _Known, error: Exception) -> None:
        state.failures += 1
        delay = min(_SLOWEST_SECONDS, self._settings.every_s * 2 ** (min(state.failures, 10) - 1))
        state.due = self._clock() + delay * 0.9
        if not state.trouble or (isinstance(error, LieError) and not state.lied):
            state.trouble, state.lied = str(error), isinstance(error, LieError)
            level = logging.WARNING if state.lied else logging.DEBUG
            log.log(level, "%s: worker %s: %s", worker.pool, worker.name, error)

    # Keeping

    def _done(self, key: str, task: asyncio.Task[None]) -> None:
        if self._reading.get(key) is task:
            del self._reading[key]
        if not task.cancelled() and task.exception():
            log.error("%s: reading its workers failed", key, exc_info=task.exception())

    def _keep_only(self, by_pool: dict[str, list[Worker]]) -> None:
        """Forget pools that have no worker to read: what they said is old."""
        alive = {key for key, workers in by_pool.items() if any(w.ready for w in workers)}
        for known in (self._known, self._histories, self._generations, self._sampled, self._evidence):
            for key in known.keys() - alive:
                del known[key]


def _address(worker: Worker) -> str:
    host = f"[{worker.address}]" if ":" in (worker.address or "") else worker.address
    return f"{host}:{worker.ports.get('http', _DEFAULT_PORT)}"
