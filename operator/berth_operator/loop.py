"""How does what users asked for come to be?  Observe, plan, render, apply: the one place where they meet.

Level-triggered: whatever woke the loop, a pass looks at everything, and writes only what differs.  In steady state it
writes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from berth_operator.api import HardwareClass, HardwareClassSpec, HardwareClassStatus, InferencePool, InferencePoolStatus
from berth_operator.api.meta import Facts
from berth_operator.catalog.matching import NodesThere
from berth_operator.catalog.sanity import Fault, Sifted, sift
from berth_operator.class_status import hardware_class_status, nodes_in_use
from berth_operator.cluster.attempts import Result
from berth_operator.cluster.cluster import Cluster
from berth_operator.cluster.kube import NotLeaderError
from berth_operator.cluster.observe import Invalid, Observation
from berth_operator.cluster.resources import WORKLOAD_KINDS
from berth_operator.evacuation import Evacuation, evacuations, unequal
from berth_operator.load.facts import LoadFacts
from berth_operator.load.traffic import Traffic
from berth_operator.memo import Kept, Memo
from berth_operator.moves import MOST_MOVES, in_turn
from berth_operator.passes import describe, pool_statuses, render_isolated, snapshot_of, standing_in, unreadable
from berth_operator.planner import Plan, RunningPlacement, Snapshot
from berth_operator.prices import Priced, PricePolicy, Quotes, own_prices, plan_priced, price
from berth_operator.render import LiveDeployment, RenderSettings, activation_slice
from berth_operator.replanner import Replanner
from berth_operator.shortage import Refusal, ShortagePolicy, Shortages, shortages
from berth_operator.status import Trouble
from berth_operator.status_writer import StatusWriter
from berth_operator.surroundings import belonging, conditions, live_deployments
from berth_operator.telemetry import Telemetry, readings
from berth_operator.transition import Steps
from berth_operator.troubles import QUEUED, troubles

log = logging.getLogger(__name__)

Manifest = dict[str, Any]

_STUCK_SECONDS: Final = 300.0
_RETRY_SECONDS: Final = (1.0, 30.0)
_QUIET_SECONDS: Final = 0.2
_ARRIVALS_SECONDS: Final = 5.0
"""For which a pass waits at most while ever more pools are made or edited: planned together, none is planned twice."""

_READINGS_SECONDS: Final = 5.0
"""For which metrics may be of an earlier pass while the next one is due already."""


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How eager the loop is, and what it renders with."""

    debounce_s: float = 1.0
    """Wait at most so long after the first change for others to join it: until none has come for a moment.

    Not for what workers do, where somebody waits for a pool that was made or edited.
    """
    interval_s: float = 30.0
    """A pass at least this often, for what depends on time alone, such as a cooldown's end."""
    render: RenderSettings = field(default_factory=RenderSettings)
    prices: PricePolicy = field(default_factory=PricePolicy)
    shortage: ShortagePolicy = field(default_factory=ShortagePolicy)
    max_moves: int = MOST_MOVES
    """Pools whose serving workers are replaced at once."""


@dataclass(frozen=True, slots=True)
class Passed:
    """What one pass came to."""

    plan: Plan
    results: Counter[Result]


class Loop:
    """The operator's loop.  `mark_dirty` wakes it; `await loop.run()` until cancelled."""

    def __init__(
        self,
        cluster: Cluster,
        telemetry: Telemetry,
        settings: LoopSettings,
        *,
        leading: Callable[[], bool] = lambda: True,
        quotes: Callable[[], Quotes] | None = None,
        unmatched: Callable[[], Sequence[Fault]] = lambda: (),
        traffic: Traffic | None = None,
        nodes: Callable[[], NodesThere] = NodesThere,
        refusals: Callable[[Sequence[HardwareClass]], Sequence[Refusal]] = lambda _: (),
    ) -> None:
        """`quotes`: what price feeds say now; None where there is no feed, and classes' own prices count.

        `unmatched`: classes that no node matches; they are planned with all the same, as an autoscaler may make some.
        `traffic`: what is known of pools' load; None: the demand that specs declare counts.
        `nodes`: which capacities have nodes.  `refusals`: nodes that an autoscaler could not make.
        """
        self._cluster = cluster
        self._telemetry = telemetry
        self._settings = settings
        self._leading = leading
        self._quotes = quotes
        self._unmatched = unmatched
        self._traffic = traffic
        self._nodes = nodes
        self._refusals = refusals
        self._due: datetime | None = None
        self._dirty = asyncio.Event()
        self._statuses = StatusWriter(cluster)
        self._said: dict[str, str] = {}
        self._replanner = Replanner()
        self._refreshing: asyncio.Task[None] | None = None
        self._classes: Kept[str, HardwareClass] = Kept()
        self._specs: Kept[str, HardwareClassSpec] = Kept()
        self._edits: frozenset[tuple[str, int]] = frozenset()
        self._running: Kept[str, tuple[RunningPlacement, ...]] = Kept()
        self._live: Kept[str, tuple[LiveDeployment, ...]] = Kept()
        self._also: Kept[str, dict[str, Facts]] = Kept()
        self._rendering: Kept[str, RenderSettings] = Kept()
        self._rendered: Memo[list[Manifest] | None] = Memo()
        self._steps: Memo[Steps] = Memo()
        self._settled: Memo[InferencePoolStatus] = Memo()
        self._last: tuple[Plan, Snapshot] | None = None
        self._troubles: Kept[str, Trouble] = Kept()
        self._failed: set[str] = set()
        self._running_since: float | None = None
        self._read_at = -math.inf
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
                self._replanner.forget()
                self._telemetry.clear()
            await self._wait_due()

    async def pass_once(self) -> Passed:
        """Look at everything and write what differs.  Raises NotLeaderError when writes may no longer be."""
        now = datetime.now(UTC)
        seen = self._cluster.observe()
        self._edits = _edits(seen.pools)
        seen = replace(seen, children=belonging(seen.children, seen.pools))
        short = self._shortages(seen, now)
        sifted = sift(short.applied(seen.hardware_classes), seen.serving_profiles)
        priced = self._priced(sifted.hardware_classes, now)
        specs = self._specs.same(
            (c.metadata.name, c.spec) for c in priced.classes
        )  # rendered from, whatever status says
        classes = (c.model_copy(update={"spec": specs[c.metadata.name]}) for c in priced.classes)
        priced = replace(priced, classes=tuple(self._classes.same((c.metadata.name, c) for c in classes).values()))
        snapshot = replace(
            snapshot_of(seen, now),
            pools=self._traffic.in_force(seen.pools, now) if self._traffic else seen.pools,
            hardware_classes=priced.classes,
            serving_profiles=sifted.serving_profiles,
            at_fault=(*sifted.at_fault, *unreadable(seen.invalid)),
        )
        started = time.perf_counter()
        planned = await asyncio.to_thread(plan_priced, snapshot, priced.stale, self._replanner.solve)
        self._telemetry.planned(time.perf_counter() - started, planned.gap)
        rendered = await asyncio.to_thread(
            render_isolated,
            planned,
            snapshot,
            self._rendering.same([("", replace(self._settings.render, available=seen.available))])[""],
            self._live.same(live_deployments(seen.pools, seen.children).items()),
            self._rendered,
        )
        rendered |= await self._with_doors(snapshot, rendered, seen)
        self._last = planned, snapshot
        workers = self._cluster.observed_workers()  # planning took a while, and a notice leaves little time
        leaving = evacuations(seen.pools, workers, now)
        surges = {key: one.surge_meanwhile(seen.children) for key, one in leaving.items()}
        found = troubles(planned, seen.children, seen.workers, short, now)
        self._failed = {key for key, trouble in found.items() if trouble.stuck}
        turns = in_turn(
            standing_in(planned, snapshot, rendered, seen.children, workers, surges, self._steps),
            *(seen.children, self._failed, self._settings.max_moves),
        )
        found = dict.fromkeys(turns.waiting, QUEUED) | found
        steps = turns.steps
        self._tell(planned, steps, seen.invalid, sifted)
        # First, so that a crash hereafter forgets no shortage.
        of_classes = self._class_statuses(seen.hardware_classes, planned, priced, sifted, short, now)
        results = await self._statuses.write_classes(of_classes, seen.hardware_classes, now)
        results += await self._cluster.applier.write(
            [manifest for step in steps.values() for manifest in step.apply],
            [child for step in steps.values() for child in step.delete],
        )
        refused = self._cluster.applier.attempts.refused()
        also = conditions(seen.pools, rendered, seen.children, seen.autoscalers, seen.available, refused)
        statuses = await asyncio.to_thread(
            pool_statuses,
            planned,
            snapshot,
            seen.invalid,
            now,
            self._also.same(also.items()),
            (self._running, self._settled),
            self._load_facts(snapshot, seen),
            self._troubles.same(found.items()),
        )
        results += await self._statuses.write_pools(statuses, snapshot.pools, seen.invalid)
        results[Result.FAILED] += sum(manifests is None for manifests in rendered.values())
        said = {key: status.conditions or () for key, status in statuses.items()}
        if not self._dirty.is_set() or time.monotonic() - self._read_at >= _READINGS_SECONDS:
            observed = self._traffic.observed(snapshot.pools) if self._traffic else {}
            self._telemetry.update(readings(snapshot, planned, seen.workers, said, priced.prices, observed))
            self._read_at = time.monotonic()
        self._refresh_if_due()
        return Passed(planned, results)

    async def _with_doors(
        self, snapshot: Snapshot, rendered: Mapping[str, list[Manifest] | None], seen: Observation
    ) -> dict[str, list[Manifest] | None]:
        """The children of pools whose clients we take in ourselves, that way in included."""
        doors = await self._traffic.doors(snapshot.pools, seen.workers) if self._traffic else {}
        out: dict[str, list[Manifest] | None] = {}
        for pool in snapshot.pools:
            manifests, door = rendered.get(pool.key), doors.get(pool.key)
            if manifests and door:
                out[pool.key] = [*manifests, activation_slice(pool, door.address, door.ports)]
        return out

    def _load_facts(self, snapshot: Snapshot, seen: Observation) -> Mapping[str, LoadFacts]:
        if self._traffic is None:
            return {}
        return self._traffic.facts(seen.pools, seen.workers, snapshot.hardware_classes, snapshot.serving_profiles)

    def _refresh_if_due(self) -> None:
        """Plan all afresh beside the passes, now and then; see `replanner`."""
        if self._replanner.refresh_due and (self._refreshing is None or self._refreshing.done()):
            self._refreshing = asyncio.create_task(self._refresh(), name="plan afresh")

    async def _refresh(self) -> None:
        try:
            if await asyncio.to_thread(self._replanner.refresh):
                self.mark_dirty()
        except Exception:
            log.exception("planning afresh failed; the plan in force stands")

    async def stand_in(self, found: Mapping[str, Evacuation]) -> None:
        """Between passes: give Deployments the stand-ins that these evacuations want, as far as they are planned."""
        children, workers = self._cluster.observed_children_and_workers()
        keys = unequal(found, children)
        if self._last is None or not keys:
            return
        planned, snapshot = self._last
        planned = replace(planned, pools={key: pool for key, pool in planned.pools.items() if key in keys})
        snapshot = replace(snapshot, pools=tuple(pool for pool in snapshot.pools if pool.key in keys))
        rendered = await asyncio.to_thread(render_isolated, planned, snapshot, self._settings.render, {})
        surges = {key: one.surge for key, one in found.items()}
        steps = standing_in(planned, snapshot, rendered, children, workers, surges)
        steps = dict(in_turn(steps, children, self._failed, self._settings.max_moves).steps)
        manifests = [m for step in steps.values() for m in step.apply if m["kind"] in WORKLOAD_KINDS]
        await self._cluster.applier.write(manifests, [], more=True)

    def _shortages(self, seen: Observation, now: datetime) -> Shortages:
        classes = seen.hardware_classes
        refusals = self._refusals(classes)
        policy = self._settings.shortage
        short = shortages(classes, seen.children, seen.workers, refusals, self._nodes(), now, policy)
        self._due = short.due
        return short

    def _priced(self, classes: Sequence[HardwareClass], now: datetime) -> Priced:
        if self._quotes is None:
            return own_prices(classes)
        return price(classes, self._quotes(), now, self._settings.prices)

    def _class_statuses(
        self,
        classes: Sequence[HardwareClass],
        planned: Plan,
        priced: Priced,
        sifted: Sifted,
        short: Shortages,
        now: datetime,
    ) -> dict[str, HardwareClassStatus]:
        unmatched, there = {fault.name: fault for fault in self._unmatched()}, self._nodes().present
        in_use = nodes_in_use(planned)
        out = {}
        for hardware in classes:
            name = hardware.metadata.name
            faults = [*sifted.of(name), *([unmatched[name]] if name in unmatched else [])]
            known = [one for (at, _), one in there.items() if at == name]
            out[name] = hardware_class_status(
                *(hardware, in_use, now, priced, faults, self._settings.prices, short.constrained.get(name, ())),
                matched=any(known) if known else None,
                avoided=short.avoided.get(name, ()),
            )
        return out

    # When

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
        retries = [self._cluster.applier.attempts.retry_in_s(), *self._statuses.retry_in_s()]
        if self._errors:
            first, most = _RETRY_SECONDS
            retries.append(min(most, first * 2 ** (self._errors - 1)))
        if self._due:
            retries.append(max(0.0, (self._due - datetime.now(UTC)).total_seconds()))
        seconds = min([self._settings.interval_s, *(r for r in retries if r is not None)])
        try:
            async with asyncio.timeout(seconds):
                await self._dirty.wait()
        except TimeoutError:
            pass
        else:
            await self._wait_quiet()
        self._dirty.clear()

    async def _wait_quiet(self) -> None:
        """Return when nothing has changed for a moment, or no more pools are edited, or the debounce time is over."""
        now = began = time.monotonic()
        end, edits = now + self._settings.debounce_s, self._edits
        last = began + max(self._settings.debounce_s, _ARRIVALS_SECONDS)
        while now < end:
            self._dirty.clear()
            await asyncio.sleep(min(end - now, _QUIET_SECONDS))
            before, edits = edits, _edits(self._cluster.known_pools())
            if not self._dirty.is_set() or (edits == before != self._edits):
                return
            now = time.monotonic()
            if len(edits - before) > 1:
                end = min(last, now + self._settings.debounce_s)

    async def _pass_guarded(self) -> None:
        self._running_since = time.monotonic()
        try:
            passed = await self.pass_once()
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

    # One line for each decision, when it is new

    def _tell(self, planned: Plan, steps: Mapping[str, Steps], invalid: Sequence[Invalid], sifted: Sifted) -> None:
        lines = {key: describe(pool_plan, steps.get(key, Steps())) for key, pool_plan in planned.pools.items()}
        lines |= {f"{item.kind} {item.key}": f"not accepted: {item.message}" for item in invalid}
        for fault in sifted.faults:
            lines[f"{fault.kind} {fault.name}"] = f"not planned with: {fault.field}: {fault.message}"
        for key, line in lines.items():
            if self._said.get(key) != line:
                log.info("%s: %s", key, line)
        self._said = lines


def _edits(pools: Iterable[InferencePool]) -> frozenset[tuple[str, int]]:
    """Which pools there are, as they are written."""
    return frozenset((pool.metadata.uid, pool.metadata.generation) for pool in pools)
