"""How does what users asked for come to be?  Observe, plan, render, apply: the one place where they meet.

Level-triggered: whatever woke the loop, a pass looks at everything, and writes only what differs.  In steady state it
writes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from berth_operator.api import (
    CapacityType,
    HardwareClass,
    HardwareClassStatus,
    InferencePool,
    InferencePoolStatus,
    format_time,
)
from berth_operator.catalog.matching import NodesThere
from berth_operator.catalog.sanity import Fault, Sifted, sift
from berth_operator.cluster.attempts import Attempts, Result
from berth_operator.cluster.cluster import Cluster
from berth_operator.cluster.events import Teller, Told
from berth_operator.cluster.kube import NotLeaderError
from berth_operator.cluster.observe import Child, Invalid, Observation, Worker
from berth_operator.cluster.resources import DEPLOYMENTS
from berth_operator.evacuation import Evacuation, evacuations, unequal, with_stand_ins, without_stand_ins
from berth_operator.history import WARNINGS, news
from berth_operator.load.facts import NO_LOAD, LoadFacts
from berth_operator.load.traffic import Traffic
from berth_operator.memo import Kept, Memo
from berth_operator.moves import MOST_MOVES, in_turn
from berth_operator.planner import Plan, PoolPlan, RunningPlacement, Snapshot
from berth_operator.prices import Priced, PricePolicy, Quotes, own_prices, plan_priced, price
from berth_operator.render import LiveDeployment, RenderSettings, activation_slice, render
from berth_operator.replanner import Replanner
from berth_operator.shortage import Refusal, ShortagePolicy, Shortages, shortage_news, shortages
from berth_operator.status import Trouble, hardware_class_status, pool_status, rejected_status, settled
from berth_operator.surroundings import Facts, belonging, conditions, live_deployments
from berth_operator.telemetry import Telemetry, readings
from berth_operator.transition import Steps, next_steps
from berth_operator.troubles import QUEUED, troubles

log = logging.getLogger(__name__)

Manifest = dict[str, Any]

_STATUS_CONCURRENCY: Final = 16
_STUCK_SECONDS: Final = 300.0
_RETRY_SECONDS: Final = (1.0, 30.0)
_QUIET_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How eager the loop is, and what it renders with."""

    debounce_s: float = 1.0
    """Wait at most so long after the first change for others to join it: until none has come for a moment."""
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
        self._statuses = {"InferencePool": Attempts(), "HardwareClass": Attempts()}
        self._teller = Teller(cluster.kube)
        self._said: dict[str, str] = {}
        self._replanner = Replanner()
        self._refreshing: asyncio.Task[None] | None = None
        self._classes: Kept[str, HardwareClass] = Kept()
        self._running: Kept[str, tuple[RunningPlacement, ...]] = Kept()
        self._live: Kept[str, tuple[LiveDeployment, ...]] = Kept()
        self._also: Kept[str, dict[str, Facts]] = Kept()
        self._rendering: Kept[str, RenderSettings] = Kept()
        self._rendered: Memo[list[Manifest] | None] = Memo()
        self._settled: Memo[InferencePoolStatus] = Memo()
        self._last: tuple[Plan, Snapshot] | None = None
        self._troubles: Kept[str, Trouble] = Kept()
        self._failed: set[str] = set()
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
                self._replanner.forget()
                self._telemetry.clear()
            await self._wait_due()

    async def pass_once(self) -> Passed:
        """Look at everything and write what differs.  Raises NotLeaderError when writes may no longer be."""
        now = datetime.now(UTC)
        seen = self._cluster.observe()
        seen = replace(seen, children=belonging(seen.children, seen.pools))
        short = self._shortages(seen, now)
        sifted = sift(short.applied(seen.hardware_classes), seen.serving_profiles)
        priced = self._priced(sifted.hardware_classes, now)
        priced = replace(
            priced, classes=tuple(self._classes.same((c.metadata.name, c) for c in priced.classes).values())
        )
        snapshot = replace(
            snapshot_of(seen, now),
            pools=self._traffic.in_force(seen.pools, now) if self._traffic else seen.pools,
            hardware_classes=priced.classes,
            serving_profiles=sifted.serving_profiles,
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
            standing_in(planned, snapshot, rendered, seen.children, workers, surges),
            *(seen.children, self._failed, self._settings.max_moves),
        )
        found = dict.fromkeys(turns.waiting, QUEUED) | found
        steps = turns.steps
        self._tell(planned, steps, seen.invalid, sifted)
        # First, so that a crash hereafter forgets no shortage.
        results = await self._write_class_statuses(seen.hardware_classes, planned, priced, sifted, short, now)
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
        results += await self._write_statuses(planned, snapshot, seen.invalid, statuses)
        results[Result.FAILED] += sum(manifests is None for manifests in rendered.values())
        said = {key: status.conditions or () for key, status in statuses.items()}
        observed = self._traffic.observed(snapshot.pools) if self._traffic else {}
        self._telemetry.update(readings(snapshot, planned, seen.workers, said, priced.prices, observed))
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
        children = [child for reflector in self._cluster.children.values() for child in reflector.values()]
        keys = unequal(found, children)
        if self._last is None or not keys:
            return
        planned, snapshot = self._last
        planned = replace(planned, pools={key: pool for key, pool in planned.pools.items() if key in keys})
        snapshot = replace(snapshot, pools=tuple(pool for pool in snapshot.pools if pool.key in keys))
        rendered = await asyncio.to_thread(render_isolated, planned, snapshot, self._settings.render, {})
        surges = {key: one.surge for key, one in found.items()}
        steps = standing_in(planned, snapshot, rendered, children, self._cluster.observed_workers(), surges)
        steps = dict(in_turn(steps, children, self._failed, self._settings.max_moves).steps)
        manifests = [m for step in steps.values() for m in step.apply if m["kind"] == DEPLOYMENTS.kind]
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
        retries = [self._cluster.applier.attempts.retry_in_s()]
        retries += [attempts.retry_in_s() for attempts in self._statuses.values()]
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
        """Return when nothing has changed for a moment, or the debounce time is over."""
        end = time.monotonic() + self._settings.debounce_s
        while (left := end - time.monotonic()) > 0:
            self._dirty.clear()
            try:
                async with asyncio.timeout(min(left, _QUIET_SECONDS)):
                    await self._dirty.wait()
            except TimeoutError:
                return

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

    # Statuses

    async def _write_statuses(
        self,
        planned: Plan,
        snapshot: Snapshot,
        invalid: Sequence[Invalid],
        statuses: Mapping[str, InferencePoolStatus],
    ) -> Counter[Result]:
        writes: dict[tuple[str, str], Callable[[], Any]] = {}
        known: dict[str, InferencePool | Invalid] = {pool.key: pool for pool in snapshot.pools}
        known |= {item.key: item for item in invalid if item.kind == "InferencePool"}
        for key, status in statuses.items():
            if status is not (pool := known[key]).status:
                writes["InferencePool", key] = partial(self._write_pool_status, pool, status)
        return await self._write_all("InferencePool", writes)

    async def _write_class_statuses(
        self,
        classes: Sequence[HardwareClass],
        planned: Plan,
        priced: Priced,
        sifted: Sifted,
        short: Shortages,
        now: datetime,
    ) -> Counter[Result]:
        writes: dict[tuple[str, str], Callable[[], Any]] = {}
        unmatched = {fault.name: fault for fault in self._unmatched()}
        for hardware in classes:
            name = hardware.metadata.name
            faults = [*sifted.of(name), *([unmatched[name]] if name in unmatched else [])]
            constrained = short.constrained.get(name, ())
            known = [there for (at, _), there in self._nodes().present.items() if at == name]
            new = hardware_class_status(
                *(hardware, planned, now, priced, faults, self._settings.prices, constrained),
                matched=any(known) if known else None,
            )
            if new is not hardware.status:
                writes["HardwareClass", name] = partial(self._write_class_status, hardware, new, now)
        return await self._write_all("HardwareClass", writes)

    async def _write_all(self, kind: str, writes: Mapping[tuple[str, str], Callable[[], Any]]) -> Counter[Result]:
        """Write statuses of one kind, several at once."""
        slots = asyncio.Semaphore(_STATUS_CONCURRENCY)

        async def attempt(key: tuple[str, str], write: Callable[[], Any]) -> Result:
            async with slots:
                return await self._statuses[kind].attempt(key, f"status of {key[0]} {key[1]}", write)

        self._statuses[kind].keep_only(writes.keys())
        return Counter(await asyncio.gather(*(attempt(key, write) for key, write in writes.items())))

    async def _write_pool_status(self, pool: InferencePool | Invalid, status: InferencePoolStatus) -> bool:
        """Tell what is new, then write: told again after a crash in between, an Event is the same and not repeated."""
        where = pool if isinstance(pool, Invalid) else pool.metadata
        about = "InferencePool", where.namespace or "default", where.name, where.uid
        for decision, mark in news(pool.status.history or (), status.history or ()):
            warning = decision.reason in WARNINGS
            await self._teller.tell(Told(*about, decision.reason, decision.message, warning, decision.time, mark))
        await self._cluster.write_pool_status(where.namespace, where.name, where.resource_version, status.to_api())
        return True

    async def _write_class_status(self, hardware: HardwareClass, status: HardwareClassStatus, now: datetime) -> bool:
        metadata = hardware.metadata
        about = "HardwareClass", None, metadata.name, metadata.uid
        for entry, begun in shortage_news(hardware.status.constrained or (), status.constrained or ()):
            reason = "Constrained" if begun else "Available"
            what = f"cannot be had: {entry.message}" if begun else "has held since it could be had again"
            mark = f"{entry.type.value}-{entry.since}-{reason}".lower().replace(":", "")
            await self._teller.tell(Told(*about, reason, f"{entry.type.value} {what}", begun, format_time(now), mark))
        await self._cluster.write_hardware_class_status(metadata.name, metadata.resource_version, status.to_api())
        return True

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


def snapshot_of(seen: Observation, now: datetime) -> Snapshot:
    """What the planner plans from."""
    there = [w for w in seen.workers if w.node and not w.deleting]
    scheduled = Counter((w.pool, w.hardware_class, w.capacity_type) for w in there if not w.notice)
    leaving = Counter((w.pool, w.hardware_class, w.capacity_type) for w in there if w.notice)
    running: dict[tuple[str, str, CapacityType], RunningPlacement] = {}
    for child in seen.children:
        if child.resource == DEPLOYMENTS and child.hardware_class and child.capacity_type and not child.deleting:
            key = (f"{child.namespace}/{child.pool}", child.hardware_class, child.capacity_type)
            other = running.get(key)  # while replicas of another share of a node replace those of this one
            running[key] = RunningPlacement(
                *key,
                replicas=child.replicas - child.surge + (other.replicas if other else 0),
                ready_replicas=child.ready_replicas + (other.ready_replicas if other else 0),
                scheduled_replicas=scheduled[key],
                leaving_replicas=leaving[key],
                quantization=child.quantization,
            )
    return Snapshot(
        now=now,
        pools=seen.pools,
        hardware_classes=seen.hardware_classes,
        serving_profiles=seen.serving_profiles,
        running=tuple(running.values()),
        namespace_labels=seen.namespace_labels,
    )


def render_isolated(
    planned: Plan,
    snapshot: Snapshot,
    settings: RenderSettings,
    live: Mapping[str, Sequence[LiveDeployment]],
    memo: Memo[list[Manifest] | None] | None = None,
) -> dict[str, list[Manifest] | None]:
    """Children by pool (`namespace/name`); None for a pool that cannot be rendered, whose children stay as they are.

    `live`: the Deployments of pools with routes.  `memo`: of earlier passes; what comes from it must not be changed.
    """
    memo = memo or Memo()
    classes = {c.metadata.name: c for c in snapshot.hardware_classes}
    out: dict[str, list[Manifest] | None] = {}
    for pool in snapshot.pools:
        key = pool.key
        if key not in planned.pools:
            continue
        try:
            alone = replace(planned, pools={key: planned.pools[key]})
            used = [classes.get(p.hardware_class) for p in planned.pools[key].placements]
            only = replace(snapshot, pools=(pool,))
            inputs = (pool, planned.pools[key], settings, live.get(key), *used)
            out[key] = memo.get(key, inputs, partial(render, alone, only, settings, live))
        except Exception:
            log.exception("%s: cannot be rendered; what runs stays as it is", key)
            out[key] = None
    memo.keep_only(out.keys())
    return out


def steps_of(
    planned: Plan, snapshot: Snapshot, rendered: Mapping[str, list[Manifest] | None], children: Sequence[Child]
) -> dict[str, Steps]:
    """The next steps of every pool whose plan is to be applied."""
    owned: dict[str, list[Child]] = defaultdict(list)
    for child in children:
        if child.owner_uid is not None:
            owned[child.owner_uid].append(child)
    out = {}
    for pool in snapshot.pools:
        pool_plan, manifests = planned.pools.get(pool.key), rendered.get(pool.key)
        if pool_plan is None or pool_plan.not_accepted or pool_plan.effective.mode != "Apply" or manifests is None:
            continue
        out[pool.key] = next_steps(
            manifests,
            owned[pool.metadata.uid],
            suspended=pool_plan.effective.suspend,
            hold=_why_hold(pool_plan),
        )
    return out


def standing_in(
    planned: Plan,
    snapshot: Snapshot,
    rendered: Mapping[str, list[Manifest] | None],
    children: Sequence[Child],
    workers: Sequence[Worker],
    surges: Mapping[str, Mapping[str, int]],
) -> dict[str, Steps]:
    """`steps_of` while workers leave: those are counted as gone.  `surges`: stand-ins by pool and placement."""
    wanted = [manifest for manifests in rendered.values() for manifest in manifests or ()]
    steps = steps_of(planned, snapshot, rendered, without_stand_ins(children, workers, wanted))
    return steps | {key: with_stand_ins(steps[key], surge) for key, surge in surges.items() if key in steps}


def _why_hold(pool_plan: PoolPlan) -> str | None:
    """A pool for which no hardware is to be had keeps what it still has: serving slowly beats not serving."""
    if pool_plan.placements or pool_plan.shortfall is None or pool_plan.shortfall.reason == "Budget":
        return None
    return f"the plan has nothing to replace it: {pool_plan.shortfall.reason}"


def pool_statuses(
    planned: Plan,
    snapshot: Snapshot,
    invalid: Sequence[Invalid],
    now: datetime,
    also: Mapping[str, Mapping[str, Facts]] | None = None,
    memos: tuple[Kept[str, tuple[RunningPlacement, ...]], Memo[InferencePoolStatus]] | None = None,
    load: Mapping[str, LoadFacts] | None = None,
    found: Mapping[str, Trouble] | None = None,
) -> dict[str, InferencePoolStatus]:
    """The status of every pool; the very object in force where nothing that a reader cares about has changed.

    `also`: further conditions, by pool.  `memos`: what ran, and which statuses were settled, in earlier passes.
    `load`, and `found`, what keeps a pool from becoming what the plan wants: by pool, where there is any.
    """
    kept, settled_before = memos or (Kept(), Memo())
    running: dict[str, list[RunningPlacement]] = defaultdict(list)
    for placement in snapshot.running:
        running[placement.pool].append(placement)
    known = kept.same((pool.key, tuple(running[pool.key])) for pool in snapshot.pools)
    out = {}
    for pool in snapshot.pools:
        key, pool_plan = pool.key, planned.pools.get(pool.key)
        if pool_plan is None:
            continue
        more, facts, trouble = (also or {}).get(key), (load or {}).get(key, NO_LOAD), (found or {}).get(key)
        make = partial(pool_status, pool, pool_plan, known[key], now, more, facts, trouble)
        out[key] = settled_before.get(key, (pool, pool_plan, known[key], more, facts, trouble), make)
        if out[key] is not pool.status:
            settled_before.forget(key)  # to be written: then the pool is another object
    settled_before.keep_only(out.keys())
    for item in invalid:
        if item.kind == "InferencePool":
            new = rejected_status(item.status, item.generation, item.message, now)
            same = settled(item.status.to_api(), new)
            out[item.key] = item.status if same else InferencePoolStatus.model_validate(new)
    return out


def describe(pool_plan: PoolPlan, steps: Steps) -> str:
    """A pool's plan in one line, without figures that jitter."""
    if pool_plan.not_accepted:
        return f"not accepted: {pool_plan.not_accepted.message}"
    parts = [f"{p.replicas}x {p.hardware_class}/{p.capacity_type.value}" for p in pool_plan.placements]
    line = ", ".join(parts) or "nothing to place"
    if pool_plan.effective.suspend:
        line = "no workers wanted"
    elif pool_plan.effective.mode == "Recommend":
        line = f"recommended only: {line}"
    if pool_plan.shortfall:
        line += f"; short: {pool_plan.shortfall.reason}"
    return "; ".join([line, *steps.waiting])
