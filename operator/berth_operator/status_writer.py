"""How do statuses reach the API server?  Those that changed, several at once, each Event told before its status."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

from berth_operator.api import HardwareClass, HardwareClassStatus, InferencePool, InferencePoolStatus, format_time
from berth_operator.cluster.attempts import Attempts, Result
from berth_operator.cluster.cluster import Cluster
from berth_operator.cluster.events import Teller, Told
from berth_operator.cluster.observe import Invalid
from berth_operator.history import WARNINGS, news
from berth_operator.shortage import shortage_news
from berth_operator.status_pace import Pace

_CONCURRENCY: Final = 16


class StatusWriter:
    """Writes statuses; what fails is tried again with a growing delay."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._teller = Teller(cluster.kube)
        self._pools = Attempts()
        self._classes = Attempts()
        self._pace = Pace()

    def retry_in_s(self) -> list[float]:
        """Seconds until writes that failed, or can wait a moment, are due."""
        found = self._pools.retry_in_s(), self._classes.retry_in_s()
        return [*self._pace.in_s(), *(seconds for seconds in found if seconds is not None)]

    async def write_pools(
        self,
        statuses: Mapping[str, InferencePoolStatus],
        pools: Sequence[InferencePool],
        invalid: Sequence[Invalid],
        *,
        more: bool = False,
    ) -> Counter[Result]:
        """Statuses by pool (`namespace/name`); one that is the very object in force is not written.

        `more`: there are more than these, so nothing about others is forgotten.
        """
        known: dict[str, InferencePool | Invalid] = {pool.key: pool for pool in pools}
        known |= {item.key: item for item in invalid if item.kind == "InferencePool"}
        news = {key: status for key, status in statuses.items() if status is not known[key].status}
        if not more:
            self._pace.keep_only(statuses.keys(), news.keys())
        writes: dict[tuple[str, str], Callable[[], Any]] = {
            ("InferencePool", key): partial(self._write_pool, known[key], status)
            for key, status in news.items()
            if self._pace.due(key, known[key].status, status)
        }
        return await _write_all(self._pools, writes, more=more)

    async def write_classes(
        self, statuses: Mapping[str, HardwareClassStatus], classes: Sequence[HardwareClass], now: datetime
    ) -> Counter[Result]:
        """Statuses by name; one that is the very object in force is not written."""
        writes: dict[tuple[str, str], Callable[[], Any]] = {
            ("HardwareClass", item.metadata.name): partial(self._write_class, item, statuses[item.metadata.name], now)
            for item in classes
            if statuses[item.metadata.name] is not item.status
        }
        return await _write_all(self._classes, writes)

    async def _write_pool(self, pool: InferencePool | Invalid, status: InferencePoolStatus) -> bool:
        """Tell what is new, then write: told again after a crash in between, an Event is the same and not repeated."""
        where = pool if isinstance(pool, Invalid) else pool.metadata
        about = "InferencePool", where.namespace or "default", where.name, where.uid
        for decision, mark in news(pool.status.history or (), status.history or ()):
            warning = decision.reason in WARNINGS
            await self._teller.tell(Told(*about, decision.reason, decision.message, warning, decision.time, mark))
        await self._cluster.write_pool_status(where.namespace, where.name, where.resource_version, status.to_api())
        self._pace.wrote(f"{where.namespace or 'default'}/{where.name}")
        return True

    async def _write_class(self, hardware: HardwareClass, status: HardwareClassStatus, now: datetime) -> bool:
        metadata = hardware.metadata
        about = "HardwareClass", None, metadata.name, metadata.uid
        before = hardware.status
        told = [
            (entry, begun, "Constrained", f"cannot be had: {entry.message}", "has held since it could be had again")
            for entry, begun in shortage_news(before.constrained or (), status.constrained or ())
        ]
        told += [
            (entry, begun, entry.reason, f"is avoided: {entry.message}", "is avoided no more")
            for entry, begun in shortage_news(before.avoided or (), status.avoided or ())
        ]
        for entry, begun, begins, why, ended in told:
            reason, what = (begins, why) if begun else ("Available", ended)
            mark = f"{entry.type.value}-{entry.since}-{reason}".lower().replace(":", "")
            await self._teller.tell(Told(*about, reason, f"{entry.type.value} {what}", begun, format_time(now), mark))
        await self._cluster.write_hardware_class_status(metadata.name, metadata.resource_version, status.to_api())
        return True


async def _write_all(
    attempts: Attempts, writes: Mapping[tuple[str, str], Callable[[], Any]], *, more: bool = False
) -> Counter[Result]:
    slots = asyncio.Semaphore(_CONCURRENCY)

    async def attempt(key: tuple[str, str], write: Callable[[], Any]) -> Result:
        async with slots:
            return await attempts.attempt(key, f"status of {key[0]} {key[1]}", write)

    if not more:
        attempts.keep_only(writes.keys())
    return Counter(await asyncio.gather(*(attempt(key, write) for key, write in writes.items())))
