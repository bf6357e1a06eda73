"""Which hardware cannot be had, until when, and what else keeps pods from getting a node?  Pure.

A capacity type of a class is Constrained when pods have waited for its nodes beyond a grace period, or an autoscaler
says that it cannot make one, while replicas are missing.  It is then left alone for a back-off, tried again, and left
alone for twice as long if that fails; a pod that gets a node in the meantime ends it.  The back-off is forgotten once
the class has held for the longest one.  All of it stands in HardwareClass status, so that a restart changes nothing.

A capacity type whose nodes take no pod of ours, because its selector or tolerations are wrong, is avoided in the same
way, until it is mended: it is no shortage, and who has nothing else goes on waiting for it.

Not a shortage: surge pods of a rollout (no replica is missing), pods that wait for a terminating one's node, pods that
a quota keeps from being made (none waits), selectors that no node has, taints that nobody tolerates, volumes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, TypeVar

from berth_operator.api import (
    AvoidedCapacity,
    CapacityType,
    ConstrainedCapacity,
    HardwareClass,
    format_duration,
    format_time,
)
from berth_operator.api.quantities import parse_duration
from berth_operator.catalog.matching import NodesThere
from berth_operator.class_status import had_nodes
from berth_operator.cluster.observe import Child, Worker
from berth_operator.cluster.pod_troubles import Obstacle
from berth_operator.cluster.resources import WORKLOADS
from berth_operator.planner.candidates import api_time

Hardware = tuple[str, CapacityType]
E = TypeVar("E", bound=ConstrainedCapacity)

OBSTACLES: Final = {
    Obstacle.SELECTOR: (
        "NoMatchingNode",
        "no node has the labels of its capacity's selector, and none could come: correct the HardwareClass",
    ),
    Obstacle.TAINT: (
        "UntoleratedTaint",
        "its nodes have a taint that its capacity does not tolerate: add the toleration to the HardwareClass",
    ),
}
"""What is wrong with a class that no node takes pods of: reason and words, for conditions."""


@dataclass(frozen=True, slots=True)
class ShortagePolicy:
    """When hardware counts as not to be had, and for how long."""

    grace: timedelta = timedelta(minutes=3)
    """For which a pod may wait: what an autoscaler takes to bring a node."""
    back_off: timedelta = timedelta(minutes=5)
    most: timedelta = timedelta(hours=1)
    """Longest back-off; also for how long a class must hold until the last one is forgotten."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An autoscaler could not make a node."""

    hardware_class: str
    capacity_type: CapacityType
    at: datetime
    message: str


@dataclass(frozen=True, slots=True)
class Lack:
    """Replicas of one placement that have no node, and why."""

    pool: str
    """`namespace/name`"""
    hardware: Hardware
    missing: int
    """Replicas wanted beyond the pods that have a node; 0 where only surge pods wait."""
    waiting: int
    since: datetime
    """Since when the first of them has waited."""
    obstacle: Obstacle
    detail: str
    """In the scheduler's words."""


@dataclass(frozen=True, slots=True)
class Shortages:
    """What is short now."""

    constrained: Mapping[str, tuple[ConstrainedCapacity, ...]] = field(default_factory=dict)
    """By class: what its status is to say.  Entries past their `until` are being tried again."""
    avoided: Mapping[str, tuple[AvoidedCapacity, ...]] = field(default_factory=dict)
    """By class, in the same way: what is written so that no node takes its pods."""
    lacks: Mapping[str, tuple[Lack, ...]] = field(default_factory=dict)
    """By pool."""
    due: datetime | None = None
    """When something changes through time alone."""

    def applied(self, classes: Iterable[HardwareClass]) -> tuple[HardwareClass, ...]:
        """The classes as their status will say."""
        return tuple(self._applied(item) for item in classes)

    def _applied(self, item: HardwareClass) -> HardwareClass:
        name, status = item.metadata.name, item.status
        entries = list(self.constrained.get(name, ())), list(self.avoided.get(name, ()))
        if entries == (status.constrained or [], status.avoided or []):
            return item
        update = {"constrained": entries[0], "avoided": entries[1]}
        return item.model_copy(update={"status": status.model_copy(update=update)})


def shortages(
    classes: Sequence[HardwareClass],
    children: Iterable[Child],
    workers: Sequence[Worker],
    refusals: Iterable[Refusal],
    nodes: NodesThere,
    now: datetime,
    policy: ShortagePolicy,
) -> Shortages:
    """Judge all classes.  `now` must be timezone-aware; `nodes` tells of capacities whether they have nodes."""
    lacks = _lacks(children, workers, nodes, {item.metadata.name for item in classes if had_nodes(item)})
    freed = Counter((w.hardware_class, w.capacity_type) for w in workers if w.deleting and w.node)
    missing = [lack for lack in lacks if lack.missing]
    short = _grouped(lack for lack in missing if lack.obstacle is Obstacle.FULL)
    short = {h: found for h, found in short.items() if sum(lack.missing for lack in found) > freed[h]}
    wrong = _grouped(lack for lack in missing if lack.obstacle in OBSTACLES)
    refused: dict[Hardware, Refusal] = {}
    for refusal in sorted(refusals, key=lambda r: r.at):
        refused[refusal.hardware_class, refusal.capacity_type] = refusal
    got: dict[Hardware, datetime] = {}
    for worker in workers:
        if worker.scheduled_at:
            where = (worker.hardware_class, worker.capacity_type)
            got[where] = max(got.get(where, worker.scheduled_at), worker.scheduled_at)

    def constrained_of(item: HardwareClass, kind: CapacityType) -> ConstrainedCapacity | None:
        where = (item.metadata.name, kind)
        before = next((c for c in item.status.constrained or () if c.type is kind), None)
        if before is not None:
            before = _ended_early(before, got.get(where), now, policy)
        return _entry(before, short.get(where, ()), refused.get(where), kind, now, policy)

    def avoided_of(item: HardwareClass, kind: CapacityType) -> AvoidedCapacity | None:
        return _avoided(_unmended(item, kind, nodes), wrong.get((item.metadata.name, kind), ()), kind, now, policy)

    constrained, avoided = _of_each(classes, constrained_of), _of_each(classes, avoided_of)
    ends = [api_time(entry.until) or now for found in (constrained, avoided) for e in found.values() for entry in e]
    moments = [moment for end in ends for moment in (end, end + policy.most)]
    moments += [lack.since + policy.grace for at in (short, wrong) for found in at.values() for lack in found]
    by_pool: dict[str, list[Lack]] = defaultdict(list)
    for lack in lacks:
        by_pool[lack.pool].append(lack)
    return Shortages(
        constrained,
        avoided,
        {pool: tuple(found) for pool, found in by_pool.items()},
        min((moment for moment in moments if moment > now), default=None),
    )


def _grouped(lacks: Iterable[Lack]) -> dict[Hardware, list[Lack]]:
    out: dict[Hardware, list[Lack]] = defaultdict(list)
    for lack in lacks:
        out[lack.hardware].append(lack)
    return out


def _of_each(
    classes: Iterable[HardwareClass], judge: Callable[[HardwareClass, CapacityType], E | None]
) -> dict[str, tuple[E, ...]]:
    """What is said of the capacity types of each class, where anything is."""
    found = {
        item.metadata.name: tuple(e for c in item.spec.capacity if (e := judge(item, c.type)) is not None)
        for item in classes
    }
    return {name: entries for name, entries in found.items() if entries}


def shortage_news(before: Iterable[E], after: Iterable[E]) -> list[tuple[E, bool]]:
    """Shortages that have begun (True), and such as are over and forgotten (False)."""
    old, new = {entry.type: entry for entry in before}, {entry.type: entry for entry in after}
    begun = [(entry, True) for kind, entry in new.items() if kind not in old]
    return begun + [(entry, False) for kind, entry in old.items() if kind not in new]


def _entry(
    before: ConstrainedCapacity | None,
    short: Sequence[Lack],
    refusal: Refusal | None,
    kind: CapacityType,
    now: datetime,
    policy: ShortagePolicy,
) -> ConstrainedCapacity | None:
    """What the class says of a capacity type from now on; the very entry in force where nothing changes."""
    until = api_time(before.until) if before else None
    if until and until > now:
        return before
    waited = any(lack.since + policy.grace <= now for lack in short)
    asked = min((lack.since for lack in short), default=None)
    told = refusal is not None and asked is not None and refusal.at >= max(asked, until or asked)
    if not waited and not told:
        if until and now < until + policy.most:
            return before
        return None
    back_off = policy.back_off
    if before is not None:
        back_off = max(policy.back_off, min(2 * _duration(before.back_off, policy), policy.most))
    return ConstrainedCapacity(
        type=kind,
        since=before.since if before else format_time(now),
        until=format_time(now + back_off),
        back_off=format_duration(back_off),
        message=refusal.message if told and refusal else _waited(short),
    )


def _avoided(
    before: AvoidedCapacity | None, wrong: Sequence[Lack], kind: CapacityType, now: datetime, policy: ShortagePolicy
) -> AvoidedCapacity | None:
    """As `_entry`, of a capacity type whose selector or tolerations are wrong."""
    entry = _entry(before, wrong, None, kind, now, policy)
    if entry is None or entry is before:
        return before if entry else None
    reason, words = OBSTACLES[min(wrong, key=lambda lack: (lack.since, lack.pool)).obstacle]
    return AvoidedCapacity(**(entry.model_dump() | {"reason": reason, "message": words}))


def _unmended(item: HardwareClass, kind: CapacityType, nodes: NodesThere) -> AvoidedCapacity | None:
    """What status says is to be avoided, unless the class has been edited since, or a node takes its pods now."""
    entry = next((e for e in item.status.avoided or () if e.type is kind), None)
    if entry is None or item.status.observed_generation != item.metadata.generation:
        return None
    where = item.metadata.name, kind
    known = nodes.possible if entry.reason == OBSTACLES[Obstacle.SELECTOR][0] else nodes.tolerated
    return None if known.get(where) else entry


def _ended_early(
    entry: ConstrainedCapacity, got: datetime | None, now: datetime, policy: ShortagePolicy
) -> ConstrainedCapacity:
    """The entry with its back-off at an end where a pod has got a node since it began."""
    until = api_time(entry.until)
    if until is None or got is None or until <= now or got <= until - _duration(entry.back_off, policy):
        return entry
    return entry.model_copy(update={"until": format_time(now)})


def _waited(short: Sequence[Lack]) -> str:
    first = min(short, key=lambda lack: (lack.since, lack.pool))
    return f"pods of {first.pool} got no node: {first.detail}"


def _duration(text: str, policy: ShortagePolicy) -> timedelta:
    try:
        return parse_duration(text)
    except ValueError:  # somebody's hand
        return policy.back_off


def _lacks(
    children: Iterable[Child], workers: Sequence[Worker], nodes: NodesThere, proven: Collection[str]
) -> list[Lack]:
    waiting: dict[tuple[str, Hardware], list[Worker]] = defaultdict(list)
    for worker in workers:
        if worker.blocked and not worker.deleting:
            waiting[worker.pool, (worker.hardware_class, worker.capacity_type)].append(worker)
    if not waiting:
        return []
    wanted: Counter[tuple[str, Hardware]] = Counter()
    for child in children:
        if child.resource in WORKLOADS and child.hardware_class and child.capacity_type and not child.deleting:
            wanted[f"{child.namespace}/{child.pool}", (child.hardware_class, child.capacity_type)] += child.replicas
    placed = Counter((w.pool, (w.hardware_class, w.capacity_type)) for w in workers if w.node and not w.deleting)
    out = []
    for key, pods in sorted(waiting.items()):
        first = min((w.blocked for w in pods if w.blocked), key=lambda b: (b.since, b.detail))
        missing = max(0, wanted[key] - placed[key])
        obstacle = _true_obstacle(first.obstacle, key[1], nodes, proven)
        if obstacle is None:
            continue
        out.append(Lack(*key, missing, len(pods), first.since, obstacle, first.detail))
    return out


def _true_obstacle(said: Obstacle, hardware: Hardware, nodes: NodesThere, proven: Collection[str]) -> Obstacle | None:
    """The scheduler cannot tell a misspelt selector from nodes that an autoscaler has yet to make; we may.

    Nor does it say whose nodes are cordoned or tainted: it asks for that before it looks at labels.  `proven`: classes
    whose selectors have matched nodes, so that none now means that none can be had.  None: it is still being asked.
    """
    if said in (Obstacle.VOLUME, Obstacle.FULL):
        return said
    if nodes.asking and hardware not in nodes.possible:
        return None
    if nodes.possible.get(hardware) is False:
        return Obstacle.FULL if hardware[0] in proven else Obstacle.SELECTOR
    forbidden = said is Obstacle.TAINT and nodes.tolerated.get(hardware) is False
    return Obstacle.TAINT if forbidden else Obstacle.FULL
