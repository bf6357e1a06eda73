"""What keeps a pool from becoming what its plan wants, in words for its conditions?  The worst trouble counts.  Pure.

The rules are an ordered chain; the first that finds something answers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from berth_operator.api import format_time
from berth_operator.cluster.observe import Child, Worker
from berth_operator.cluster.pod_troubles import Fault, Obstacle
from berth_operator.cluster.resources import SERVICES, WORKLOAD_KINDS
from berth_operator.planner import Plan
from berth_operator.shortage import OBSTACLES, Hardware, Lack, Shortages
from berth_operator.status import Trouble

_NOTICE: Final = timedelta(seconds=20)
"""What passes sooner is not worth a write: a node that is just being freed, an image that a second attempt brings."""

_OBSTACLES: Final = OBSTACLES | {
    Obstacle.VOLUME: ("VolumeUnbound", "a volume is missing, not bound, or cannot be mounted there"),
}


QUEUED: Final = Trouble("Queued", "a move waits until others in the fleet have ended (planning.maxMoves)", stuck=False)


@dataclass(frozen=True, slots=True)
class _Seen:
    """One pool's own, on the hardware that its plan wants."""

    placements: Mapping[Hardware, Child]
    workers: Sequence[Worker]
    lacks: Sequence[Lack]
    now: datetime


def troubles(
    plan: Plan, children: Iterable[Child], workers: Iterable[Worker], short: Shortages, now: datetime
) -> dict[str, Trouble]:
    """The worst trouble of each pool that has one, by `namespace/name`."""
    owned, failing = defaultdict(list), defaultdict(list)
    for child in children:
        owned[f"{child.namespace}/{child.pool}"].append(child)
    for worker in workers:
        if worker.failing:
            failing[worker.pool].append(worker)
    out = {}
    for key, pool_plan in plan.pools.items():
        wanted = {(p.hardware_class, p.capacity_type) for p in pool_plan.placements}
        trouble = trouble_of(wanted, owned[key], failing[key], short.lacks.get(key, ()), now)
        if trouble:
            out[key] = trouble
    return out


def unwritten(
    rendered: Mapping[str, Sequence[Mapping[str, Any]] | None],
    children: Iterable[Child],
    refused: Mapping[Hashable, tuple[str, str]],
) -> dict[str, Trouble]:
    """Pools (`namespace/name`) whose workers cannot be written as their plan wants, or that no client can reach because
    a Service cannot be made: nothing comes of waiting.

    `rendered`: what each pool is to have.  `children`: what there is of it.  `refused`: reason and message of writes
    that somebody has to mend, by (kind, namespace, name).
    """
    out: dict[str, Trouble] = {}
    there = {child.key for child in children} if refused else set()
    for key, manifests in rendered.items() if refused else ():
        for manifest in sorted(manifests or (), key=lambda manifest: manifest["kind"] not in WORKLOAD_KINDS):
            kind, metadata = manifest["kind"], manifest["metadata"]
            one = (kind, metadata["namespace"], metadata["name"])
            missing = kind == SERVICES.kind and one not in there
            if one in refused and (kind in WORKLOAD_KINDS or missing):
                reason, message = refused[one]
                text = f"{kind} {metadata['name']}: {message}"
                out.setdefault(key, Trouble(reason, text, stuck=True, unreachable=missing))
    return out


def trouble_of(
    wanted: Collection[Hardware],
    children: Iterable[Child],
    workers: Iterable[Worker],
    lacks: Iterable[Lack],
    now: datetime,
) -> Trouble | None:
    """The worst trouble on the hardware that a pool's plan wants; None where all goes well.

    `children`, `workers` and `lacks` are the pool's own.
    """
    placements: dict[Hardware, Child] = {}
    for child in sorted(children, key=lambda child: child.name):
        if child.hardware_class and child.capacity_type and not child.deleting:
            key = (child.hardware_class, child.capacity_type)
            if key in wanted:
                placements.setdefault(key, child)
    seen = _Seen(
        placements,
        [w for w in workers if (w.hardware_class, w.capacity_type) in placements],
        [lack for lack in lacks if lack.hardware in placements and now - lack.since >= _NOTICE],
        now,
    )
    return next((found for rule in _RULES if (found := rule(seen))), None)


def _refused(seen: _Seen) -> Trouble | None:
    """Pods that the API server does not let its controllers make."""
    for key, child in seen.placements.items():
        if child.create_error is not None:
            if "exceeded quota" in child.create_error:
                reason, why = "QuotaExceeded", "a ResourceQuota of the namespace allows no more pods"
            else:
                reason, why = "PodsRefused", "the API server refuses its pods"
            return Trouble(reason, f"{_named(key)}: {why}: {child.create_error}", stuck=True)
    return None


def _failing(seen: _Seen) -> Trouble | None:
    """Workers that have a node and do not come up on it."""
    found = [
        (worker.failing.fault, worker.failing.message, (worker.hardware_class, worker.capacity_type))
        for worker in seen.workers
        if worker.failing and (worker.failing.fault is not Fault.IMAGE or seen.now - worker.failing.since >= _NOTICE)
    ]
    if not found:
        return None
    fault, message, key = min(found)
    child = seen.placements[key]
    serving = "; the workers of before go on serving" if child.old_replicas and child.ready_replicas else ""
    return Trouble(fault.value, f"{_named(key)}: {message}{serving}", stuck=True)


def _misconfigured(seen: _Seen) -> Trouble | None:
    for lack in seen.lacks:
        if lack.obstacle in _OBSTACLES:
            reason, why = _OBSTACLES[lack.obstacle]
            return Trouble(reason, f"{_named(lack.hardware)}: {why} ({lack.detail})", stuck=True)
    return None


def _waiting(seen: _Seen) -> Trouble | None:
    """Pods for which nodes may yet come; surge pods last, since no replica is missing for them."""
    for lack in sorted(seen.lacks, key=lambda lack: lack.missing == 0):
        since = f"since {format_time(lack.since)} ({lack.detail})"
        if lack.missing:
            return Trouble("WaitingForNode", f"{_named(lack.hardware)}: pods wait for a node {since}", stuck=False)
        text = f"{_named(lack.hardware)}: the rollout waits for room for one more worker {since}"
        return Trouble("SurgePending", text, stuck=False)
    return None


def _too_late(seen: _Seen) -> Trouble | None:
    for key, child in seen.placements.items():
        if child.deadline_exceeded:
            text = f"{_named(key)}: {child.name} has not become ready within its progress deadline"
            return Trouble("DeadlineExceeded", text, stuck=True)
    return None


_RULES: Final[tuple[Callable[[_Seen], Trouble | None], ...]] = (
    _refused,
    _failing,
    _misconfigured,
    _waiting,
    _too_late,
)


def _named(key: Hardware) -> str:
    return f"{key[0]} {key[1].value}"
