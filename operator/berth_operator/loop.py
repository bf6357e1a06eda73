"""When is a pass due?  Soon after something has changed, when a wait is over, and at least every half minute."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from berth_operator.cluster.attempts import Result
from berth_operator.cluster.cluster import Cluster
from berth_operator.cluster.kube import NotLeaderError
from berth_operator.executor import Executor, edits_of
from berth_operator.telemetry import Telemetry

log = logging.getLogger(__name__)

_STUCK_SECONDS: Final = 300.0
_RETRY_SECONDS: Final = (1.0, 30.0)
_QUIET_SECONDS: Final = 0.2
_ARRIVALS_SECONDS: Final = 5.0
"""For which a pass waits at most while ever more pools are made or edited: planned together, none is planned twice."""


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How eager the loop is."""

    debounce_s: float = 1.0
    """Wait at most so long after the first change for others to join it: until none has come for a moment.

    Not for what workers do, where somebody waits for a pool that was made or edited.
    """
    interval_s: float = 30.0
    """A pass at least this often, for what depends on time alone, such as a cooldown's end."""


class Loop:
    """The operator's loop.  `mark_dirty` wakes it; `await loop.run()` until cancelled."""

    def __init__(
        self,
        cluster: Cluster,
        executor: Executor,
        telemetry: Telemetry,
        settings: LoopSettings | None = None,
        *,
        leading: Callable[[], bool] = lambda: True,
        on_quiet: Callable[[], object] = lambda: None,
    ) -> None:
        """`on_quiet`: called after a pass when no other one is due already."""
        self._cluster = cluster
        self._executor = executor
        self._telemetry = telemetry
        self._settings = settings or LoopSettings()
        self._leading = leading
        self._on_quiet = on_quiet
        self._dirty = asyncio.Event()
        self._running_since: float | None = None
        self._errors = 0

    def mark_dirty(self) -> None:
        """Something that matters has changed: a pass is due.  Call on the event loop's thread."""
        self._dirty.set()

    @property
    def stuck(self) -> bool:
        """Whether a pass has been running for so long that only a restart helps."""
        return self._running_since is not None and time.monotonic() - self._running_since > _STUCK_SECONDS

    async def run(self) -> None:
        """Pass after pass until cancelled.  A pass that raises is logged and tried again with a growing delay."""
        await self._wait_synced()
        while True:
            if self._leading():
                await self._pass_guarded()
            else:
                self._executor.forget()
            if not self._dirty.is_set():
                self._on_quiet()
            await self._wait_due()

    async def _wait_synced(self) -> None:
        waiting = asyncio.create_task(self._cluster.wait_synced())
        try:
            if not (await asyncio.wait([waiting], timeout=10))[0]:
                log.info("waiting for the first list of %s", ", ".join(self._cluster.unsynced))
            await waiting
        finally:
            waiting.cancel()
        sizes = len(self._cluster.pools), len(self._cluster.hardware_classes)
        log.info("observed the cluster: %d pools, %d hardware classes", *sizes)

    async def _wait_due(self) -> None:
        waits = [self._settings.interval_s, *self._executor.due_in_s()]
        if self._errors:
            first, most = _RETRY_SECONDS
            waits.append(min(most, first * 2 ** (self._errors - 1)))
        try:
            async with asyncio.timeout(min(waits)):
                await self._dirty.wait()
        except TimeoutError:
            pass
        else:
            await self._wait_quiet()
        self._dirty.clear()

    async def _wait_quiet(self) -> None:
        """Return when nothing has changed for a moment, or no more pools are edited, or the debounce time is over."""
        await self._edits_ahead()
        now = began = time.monotonic()
        end, edits = now + self._settings.debounce_s, self._executor.edits
        last = began + max(self._settings.debounce_s, _ARRIVALS_SECONDS)
        while now < end:
            self._dirty.clear()
            await asyncio.sleep(min(end - now, _QUIET_SECONDS))
            await self._edits_ahead()
            before, edits = edits, edits_of(self._cluster.known_pools())
            if not self._dirty.is_set() or (edits == before != self._executor.edits):
                return
            now = time.monotonic()
            if len(edits - before) > 1:
                end = min(last, now + self._settings.debounce_s)

    async def _edits_ahead(self) -> None:
        try:
            await self._executor.carry_out_edits()
        except NotLeaderError:
            log.info("the Lease was lost: the new leader goes on")
        except Exception:
            log.exception("what was edited is left to the next pass")

    async def _pass_guarded(self) -> None:
        self._running_since = time.monotonic()
        try:
            passed = await self._executor.pass_once(lambda: not self._dirty.is_set())
        except NotLeaderError:
            log.info("the Lease was lost during a pass: the new leader goes on")
        except Exception:
            self._errors += 1
            log.exception("no plan could be made or carried out; what runs stays as it is")
            self._telemetry.passed("error", time.time())
        else:
            self._errors = 0
            whole = not passed.results[Result.FAILED] and not passed.results[Result.HELD]
            self._telemetry.passed("success" if whole else "partial", time.time())
        finally:
            self._running_since = None
