"""How does what users asked for come to be?  Observe, plan, render, apply: the one place where they meet.

Level-triggered: whatever was the cause, a pass looks at everything, and writes only what differs.  In steady state it
writes nothing.  Between passes there are only shortcuts, which do at once what somebody waits for, as the next pass
would: stand-ins for workers that leave, and edits of pools that the last plan knows.
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

from berth_operator.api import (
    HardwareClass,
    HardwareClassSpec,
    HardwareClassStatus,
    InferencePool,
    InferencePoolStatus,
)
from berth_operator.api.meta import Facts
from berth_operator.catalog.matching import NodesThere
from berth_operator.catalog.sanity import Fault, Sifted, sift
from berth_operator.class_status import hardware_class_status, nodes_in_use
from berth_operator.cluster.attempts import Result
from berth_operator.cluster.cluster import Cluster
from berth_operator.cluster.neighbours import Autoscaler
from berth_operator.cluster.observe import Invalid, Observation
from berth_operator.cluster.resources import WORKLOAD_KINDS
from berth_operator.evacuation import Evacuation, evacuations, unequal
from berth_operator.load.facts import LoadFacts
from berth_operator.load.traffic import Traffic
from berth_operator.memo import Kept, Memo
from berth_operator.moves import MOST_MOVES, in_turn
from berth_operator.passes import (
    Holdings,
    describe,
    edited,
    of_pools,
    pool_statuses,
    render_isolated,
    snapshot_of,
    standing_in,
    stops_of,
    unreadable,
    with_edits,
)
from berth_operator.planner import Plan, Snapshot
from berth_operator.prices import Price, Priced, PricePolicy, Quotes, own_prices, plan_priced, price
from berth_operator.prices.quotes import Key
from berth_operator.render import LiveDeployment, RenderSettings, activation_slice
from berth_operator.replanner import NotAmendableError, Replanner
from berth_operator.shortage import Refusal, ShortagePolicy, Shortages, shortages
from berth_operator.status import Trouble
from berth_operator.status_writer import StatusWriter
from berth_operator.surroundings import belonging, conditions, live_deployments
from berth_operator.telemetry import Telemetry, readings
from berth_operator.transition import Steps
from berth_operator.troubles import QUEUED, troubles, unwritten

log = logging.getLogger(__name__)

Manifest = dict[str, Any]

MOST_AHEAD: Final = 10
"""Edited pools that are carried out before the pass which is due: more arrive together, and are planned together."""
_READINGS_SECONDS: Final = 5.0
"""For which metrics may be of an earlier pass while the next one is due already."""


@dataclass(frozen=True, slots=True)
class ExecutorSettings:
    """What passes decide and render with."""

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


@dataclass(frozen=True, slots=True)
class _Last:
    """What the last pass found and decided, for the shortcuts between it and the next."""

    planned: Plan
    snapshot: Snapshot
    stale: Mapping[Key, Price]
    short: Shortages
    available: frozenset[str]
    autoscalers: tuple[Autoscaler, ...]
    failed: frozenset[str]
    """Pools that come no further by themselves."""
    standing: Mapping[str, Steps]
    """By pool, before it was asked whose turn it is."""
    load: Mapping[str, LoadFacts]


class Executor:
    """Passes over the whole fleet, and shortcuts between them."""

    def __init__(
        self,
        cluster: Cluster,
        telemetry: Telemetry,
        settings: ExecutorSettings | None = None,
        *,
        on_refreshed: Callable[[], None] = lambda: None,
        quotes: Callable[[], Quotes] | None = None,
        unmatched: Callable[[], Sequence[Fault]] = lambda: (),
        traffic: Traffic | None = None,
        nodes: Callable[[], NodesThere] = NodesThere,
        refusals: Callable[[Sequence[HardwareClass]], Sequence[Refusal]] = lambda _: (),
        beside: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        """`on_refreshed`: another plan, made beside the passes, is in force: a pass is due.

        `quotes`: what price feeds say now; None where there is no feed, and classes' own prices count.
        `unmatched`: classes that no node matches; they are planned with all the same, as an autoscaler may make some.
        `traffic`: what is known of pools' load; None: the demand that specs declare counts.
        `nodes`: which capacities have nodes.  `refusals`: nodes that an autoscaler could not make.
        `beside`: in words, which other releases serve a namespace; None: no other.
        """
        self._cluster = cluster
        self._telemetry = telemetry
        self._settings = settings or ExecutorSettings()
        self._on_refreshed = on_refreshed
        self._quotes = quotes
        self._unmatched = unmatched
        self._traffic = traffic
        self._nodes = nodes
        self._refusals = refusals
        self._beside = beside
        self._due: datetime | None = None
        self._statuses = StatusWriter(cluster)
        self._said: dict[str, str] = {}
        self._replanner = Replanner()
        self._refreshing: asyncio.Task[None] | None = None
        self._classes: Kept[str, HardwareClass] = Kept()
        self._specs: Kept[str, HardwareClassSpec] = Kept()
        self._running: Kept[str, Holdings] = Kept()
        self._live: Kept[str, tuple[LiveDeployment, ...]] = Kept()
        self._also: Kept[str, dict[str, Facts]] = Kept()
        self._rendering: Kept[str, RenderSettings] = Kept()
        self._rendered: Memo[list[Manifest] | None] = Memo()
        self._steps: Memo[Steps] = Memo()
        self._settled: Memo[InferencePoolStatus] = Memo()
        self._troubles: Kept[str, Trouble] = Kept()
        self._last: _Last | None = None
        self._left: set[tuple[str, int]] = set()
        """Edits that no shortcut can carry out."""
        self._read_at = -math.inf
        self.edits: frozenset[tuple[str, int]] = frozenset()
        """Pools (uid, generation) as they were when they were last planned."""

    def forget(self) -> None:
        """Another replica leads: what we knew is not the plan in force any more."""
        self._replanner.forget()
        self._telemetry.clear()
        self._last = None

    def due_in_s(self) -> list[float]:
        """Seconds until a pass is due by time alone: writes to be tried again, and shortages to be looked at."""
        retries = [self._cluster.applier.attempts.retry_in_s(), *self._statuses.retry_in_s()]
        if self._due:
            retries.append(max(0.0, (self._due - datetime.now(UTC)).total_seconds()))
        return [seconds for seconds in retries if seconds is not None]

    async def pass_once(self, quiet: Callable[[], bool] = lambda: True) -> Passed:
        """Look at everything and write what differs.  Raises NotLeaderError when writes may no longer be.

        `quiet`: whether no other pass is due already.
        """
        now = datetime.now(UTC)
        seen = self._cluster.observe()
        self.edits = edits_of(seen.pools)
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
        workers = self._cluster.observed_workers()  # planning took a while, and a notice leaves little time
        leaving = evacuations(seen.pools, workers, now)
        surges = {key: one.surge_meanwhile(seen.children) for key, one in leaving.items()}
        found = troubles(planned, seen.children, seen.workers, short, now)
        failed = frozenset(key for key, trouble in found.items() if trouble.stuck)
        standing = standing_in(planned, snapshot, rendered, seen.children, workers, surges, self._steps)
        standing |= stops_of(planned, seen.pools, seen.children)
        turns = in_turn(standing, seen.children, failed, self._settings.max_moves)
        load = self._load_facts(snapshot, seen)
        about = seen.available, seen.autoscalers
        self._last, self._left = _Last(planned, snapshot, priced.stale, short, *about, failed, standing, load), set()
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
        found |= unwritten(rendered, seen.children, refused)
        neighbours = seen.autoscalers, seen.available
        also = conditions(seen.pools, rendered, seen.children, *neighbours, refused, self._beside)
        statuses = await asyncio.to_thread(
            pool_statuses,
            planned,
            snapshot,
            seen.invalid,
            now,
            self._also.same(also.items()),
            (self._running, self._settled),
            load,
            self._troubles.same(found.items()),
        )
        results += await self._statuses.write_pools(statuses, snapshot.pools, seen.invalid)
        results[Result.FAILED] += sum(manifests is None for manifests in rendered.values())
        if quiet() or time.monotonic() - self._read_at >= _READINGS_SECONDS:
            observed = self._traffic.observed(snapshot.pools) if self._traffic else {}
            self._telemetry.update(readings(snapshot, planned, seen.workers, statuses, priced.prices, observed))
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
                self._on_refreshed()
        except Exception:
            log.exception("planning afresh failed; the plan in force stands")

    # Shortcuts between passes

    async def carry_out_edits(self) -> None:
        """Carry out what has been edited of a few pools, while the rest of the fleet stays as the last pass left it.

        Only where the plan in force can be amended: a small fleet is planned whole.  Whatever goes wrong, and pools
        whose own traffic decides how much they get, are left to the next pass.  Raises NotLeaderError.
        """
        last, now = self._last, datetime.now(UTC)
        fresh = edited(last.snapshot, self._cluster.known_pools(), self._left) if last else ()
        if last is None or not 0 < len(fresh) <= MOST_AHEAD:
            return
        self._left |= edits_of(fresh)
        keys = {pool.key for pool in fresh}
        children, workers = of_pools(keys, *self._cluster.observed_children_and_workers())
        children = belonging(children, fresh)
        snapshot = with_edits(last.snapshot, fresh, children, workers, now)
        try:
            whole = await asyncio.to_thread(plan_priced, snapshot, last.stale, self._replanner.amend)
        except NotAmendableError:
            return
        planned = replace(whole, pools={key: whole.pools[key] for key in keys})
        part = replace(snapshot, pools=fresh)
        settings, live = replace(self._settings.render, available=last.available), live_deployments(fresh, children)
        rendered = await asyncio.to_thread(render_isolated, planned, part, settings, live)
        leaving = evacuations(fresh, workers, now)
        surges = {key: one.surge_meanwhile(children) for key, one in leaving.items()}
        found = troubles(planned, children, workers, last.short, now)
        standing = {**last.standing, **standing_in(planned, part, rendered, children, workers, surges)}
        standing |= stops_of(planned, fresh, children)
        everything, _ = self._cluster.observed_children_and_workers()
        turns = in_turn(standing, everything, last.failed, self._settings.max_moves)
        found = dict.fromkeys(keys.intersection(turns.waiting), QUEUED) | found
        steps = [turns.steps[key] for key in keys if key in turns.steps]
        self._last = replace(last, planned=whole, snapshot=snapshot, standing=standing)
        self.edits = edits_of(snapshot.pools)
        await self._cluster.applier.write(
            [manifest for step in steps for manifest in step.apply],
            [child for step in steps for child in step.delete],
            more=True,
        )
        refused = self._cluster.applier.attempts.refused()
        found |= unwritten(rendered, children, refused)
        also = conditions(fresh, rendered, children, last.autoscalers, last.available, refused, self._beside)
        statuses = pool_statuses(planned, part, (), now, also, None, last.load, found)
        await self._statuses.write_pools(statuses, fresh, (), more=True)

    async def stand_in(self, found: Mapping[str, Evacuation]) -> None:
        """Give Deployments the stand-ins that these evacuations want, as far as they are planned."""
        children, workers = self._cluster.observed_children_and_workers()
        keys, last = unequal(found, children), self._last
        if last is None or not keys:
            return
        planned = replace(last.planned, pools={key: pool for key, pool in last.planned.pools.items() if key in keys})
        snapshot = replace(last.snapshot, pools=tuple(pool for pool in last.snapshot.pools if pool.key in keys))
        rendered = await asyncio.to_thread(render_isolated, planned, snapshot, self._settings.render, {})
        surges = {key: one.surge for key, one in found.items()}
        steps = standing_in(planned, snapshot, rendered, children, workers, surges)
        steps = dict(in_turn(steps, children, last.failed, self._settings.max_moves).steps)
        manifests = [m for step in steps.values() for m in step.apply if m["kind"] in WORKLOAD_KINDS]
        await self._cluster.applier.write(manifests, [], more=True)

    # What a pass looks at

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


def edits_of(pools: Iterable[InferencePool]) -> frozenset[tuple[str, int]]:
    """Which pools there are, as they are written."""
    return frozenset((pool.metadata.uid, pool.metadata.generation) for pool in pools)
