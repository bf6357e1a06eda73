"""Who takes workers off nodes that are going away, in time?  A task of its own, beside the loop.

A notice leaves two minutes, and a pass of the loop plans every pool first.  So what needs no plan is done here and at
once: the released are taken from traffic and ended, upon which their Deployments replace them.  Stand-ins for those
that are held are replicas of a Deployment, rendered by the loop from its last plan.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from berth_operator.api.names import DELETION_COST_ANNOTATION, NOTICED_ANNOTATION, TRAFFIC_LABEL
from berth_operator.cluster.attempts import Attempts
from berth_operator.cluster.cluster import Cluster
from berth_operator.cluster.kube import NotLeaderError
from berth_operator.cluster.nodes import Fate
from berth_operator.cluster.observe import Worker
from berth_operator.cluster.resources import PODS
from berth_operator.evacuation import Evacuation, evacuations

log = logging.getLogger(__name__)

_SETTLE_SECONDS: Final = 0.1  # so that the nodes of one reclaim are seen together
_LOOK_SECONDS: Final = 30.0
_CONCURRENCY: Final = 16
_FIRST_TO_GO: Final = {DELETION_COST_ANNOTATION: "-1000"}
"""Should its Deployment shrink before we have ended it, it is to end this one and no stand-in."""

Write = Callable[[], Any]


class Evacuator:
    """`mark_dirty` wakes it; `await evacuator.run()` until cancelled."""

    def __init__(
        self,
        cluster: Cluster,
        leading: Callable[[], bool],
        stand_in: Callable[[Mapping[str, Evacuation]], Awaitable[None]],
    ) -> None:
        """`stand_in`: gives Deployments the stand-ins that evacuations want."""
        self._cluster = cluster
        self._leading = leading
        self._stand_in = stand_in
        self._dirty = asyncio.Event()
        self._attempts = Attempts()
        self._ended: set[str] = set()
        """Uids of workers that we have ended, until they are gone."""

    def mark_dirty(self) -> None:
        """A worker or its node may have changed.  Call on the event loop's thread."""
        self._dirty.set()

    async def run(self) -> None:
        """Look after every change, and when a held worker must be released.  What fails is tried again."""
        await self._cluster.wait_synced()
        while True:
            next_s: float | None = None
            if self._leading():
                try:
                    next_s = await self.once()
                except NotLeaderError:
                    log.info("the Lease was lost during an evacuation: the new leader goes on")
                except Exception:
                    log.exception("workers on leaving nodes could not be looked after; trying again")
                    next_s = 1.0
            await self._wait(next_s)

    async def once(self) -> float | None:
        """Do what is due.  Returns the seconds until something else is, if that is known.  Raises NotLeaderError."""
        workers = self._cluster.observed_workers()
        self._ended &= {worker.uid for worker in workers}
        if not any(w.notice or not w.traffic or w.noticed_at for w in workers):
            self._attempts.keep_only(())
            return None
        seen = self._cluster.observe()
        found = evacuations(seen.pools, seen.workers, datetime.now(UTC))
        writes = dict(self._writes(found))
        self._attempts.keep_only(writes.keys())
        slots = asyncio.Semaphore(_CONCURRENCY)

        async def attempt(key: tuple[str, str], write: Write) -> None:
            async with slots:
                await self._attempts.attempt(key, f"worker {key[0]}/{key[1]}", write)

        await asyncio.gather(*(attempt(key, write) for key, write in writes.items()))
        # Ended first: a Deployment that shrinks chooses itself whom to end.
        await self._stand_in(found)
        due = [evacuation.next_s for evacuation in found.values()] + [self._attempts.retry_in_s()]
        return min((seconds for seconds in due if seconds is not None), default=None)

    def _writes(self, found: Mapping[str, Evacuation]) -> Iterator[tuple[tuple[str, str], Write]]:
        for evacuation in found.values():
            for worker in evacuation.release:
                if worker.uid not in self._ended:
                    yield (worker.namespace, worker.name), partial(self._release, worker)
            for worker in evacuation.hold:
                notice = worker.notice
                if (
                    notice
                    and notice.since is None
                    and worker.noticed_at is None
                    and notice.fate is not Fate.UNREACHABLE
                ):
                    yield (worker.namespace, worker.name), partial(self._note, worker)
            for worker in evacuation.restore:
                yield (worker.namespace, worker.name), partial(self._restore, worker)

    async def _release(self, worker: Worker) -> bool:
        if worker.traffic:
            await self._patch(worker, labels={TRAFFIC_LABEL: "off"}, annotations=_FIRST_TO_GO)
        await self._cluster.kube.delete(PODS, worker.namespace, worker.name, uid=worker.uid)
        self._ended.add(worker.uid)
        self._tell(worker, "taken from traffic and ended")
        return True

    async def _note(self, worker: Worker) -> bool:
        """When a notice was first seen must outlive us, where the node does not say it."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        await self._patch(worker, annotations={NOTICED_ANNOTATION: now} | _FIRST_TO_GO)
        self._tell(worker, "serves on until another one stands in")
        return True

    async def _restore(self, worker: Worker) -> bool:
        unmarked = dict.fromkeys((NOTICED_ANNOTATION, DELETION_COST_ANNOTATION))
        await self._patch(worker, labels={TRAFFIC_LABEL: "on"}, annotations=unmarked)
        self._tell(worker, "its node stays after all")
        return True

    async def _patch(self, worker: Worker, **metadata: Mapping[str, str | None]) -> None:
        body = {"metadata": {"uid": worker.uid, **metadata}}
        self._cluster.workers.note(await self._cluster.kube.patch(PODS, worker.namespace, worker.name, body))

    def _tell(self, worker: Worker, what: str) -> None:
        why = f"node {worker.node}: {worker.notice.mark}: " if worker.notice else ""
        log.info("%s: worker %s: %s%s", worker.pool, worker.name, why, what)

    async def _wait(self, seconds: float | None) -> None:
        try:
            async with asyncio.timeout(_LOOK_SECONDS if seconds is None else min(max(seconds, 0.0), _LOOK_SECONDS)):
                await self._dirty.wait()
        except TimeoutError:
            pass
        else:
            await asyncio.sleep(_SETTLE_SECONDS)
        self._dirty.clear()
