"""What is to become of workers whose nodes are going away?  Pure: from workers and their nodes' notices to writes.

Three answers.  A worker that is *released* gets no more traffic and is ended: it finishes what it has accepted, and its
Deployment makes another one at once.  One that is *held* goes on serving, and its Deployment makes one more (a surge)
to stand in for it; once that one is ready, the held one is released.  One whose node stays after all is *restored*.

Who is held?  Where somebody empties a node and can wait, every worker: made before broken.  Where the node will be
taken away in two minutes, as many as it takes to keep what the pool promises to keep when spot capacity is lost
(`spot.surviveLossPercent`), and one at the least; they are released in time to finish what they have accepted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from berth_operator.api import CapacityType, Effective, InferencePool, resolve
from berth_operator.api.names import PLACEMENT_LABEL, RENDER_HASH_ANNOTATION, SURGE_ANNOTATION
from berth_operator.cluster.nodes import Fate, Notice
from berth_operator.cluster.observe import Child, Worker
from berth_operator.cluster.resources import LEADER_WORKER_SETS, WORKLOAD_KINDS, WORKLOADS
from berth_operator.render import render_hash
from berth_operator.transition import Steps

Manifest = dict[str, Any]

SPOT_NOTICE: Final = timedelta(seconds=120)
"""AWS takes a spot instance back two minutes after its notice; others give less, and say so by ending the pods."""
PATIENCE: Final = timedelta(minutes=10)
"""How long somebody who empties a node is kept waiting for stand-ins, since no disruption budget lets them go on."""
_LAG: Final = timedelta(seconds=10)
"""For endpoints to catch up, and for us."""
_LONGEST_TURN: Final = timedelta(seconds=60)
_WHOLE: Final = 100.0
_LITTLE: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Evacuation:
    """What is to be done for the workers of one pool."""

    release: tuple[Worker, ...] = ()
    """To be taken from traffic and ended now."""
    hold: tuple[Worker, ...] = ()
    """To go on serving, or to be left alone, while another one is made to stand in."""
    restore: tuple[Worker, ...] = ()
    """Their nodes stay: to be given traffic again, and our note taken off."""
    next_s: float | None = None
    """Seconds until the next one must be released, whatever happens."""

    @property
    def surge(self) -> Mapping[str, int]:
        """Stand-ins by placement (the label's value)."""
        return Counter(worker.placement for worker in self.hold)

    def surge_meanwhile(self, children: Iterable[Child]) -> Mapping[str, int]:
        """`surge`, but as many as there are already for as long as the released have not been ended: a Deployment that
        shrinks earlier would end a stand-in that is still starting."""
        there = {child.placement: child.surge for child in children if child.surge}
        leaving = Counter(worker.placement for worker in (*self.hold, *self.release))
        return {
            placement: max(self.surge[placement], min(there.get(placement, 0), n)) for placement, n in leaving.items()
        }


def evacuate(pool: InferencePool, workers: Sequence[Worker], now: datetime) -> Evacuation:
    """What to do for a pool's workers, all of them.  `now` must be timezone-aware."""
    here = [worker for worker in workers if not worker.deleting]
    restore = tuple(w for w in here if not w.notice and (not w.traffic or w.noticed_at))
    effective = resolve(pool.spec)
    leaving = [_Leaving(w, w.notice, effective, now) for w in here if w.notice]
    if not leaving or effective.mode != "Apply" or effective.suspend:
        return Evacuation(restore=restore)
    weight = _weights(pool)
    stays = [worker for worker in here if not worker.notice and worker.ready]
    standing, serving = sum(map(weight, stays)), len(stays)
    release, hold, limits = [], [], []
    for one in sorted(leaving, key=lambda one: (one.limit, one.worker.name), reverse=True):
        if one.notice.fate is Fate.UNREACHABLE:
            hold.append(one.worker)  # ending it would end nothing, and it may come back
        elif one.can_wait and (serving == 0 or standing < one.floor - _LITTLE):
            hold.append(one.worker)
            limits.append(one.limit)
            standing, serving = standing + weight(one.worker), serving + 1
        else:
            release.append(one.worker)
    next_s = min(((limit - now).total_seconds() for limit in limits), default=None)
    return Evacuation(tuple(release), tuple(hold), restore, next_s)


@dataclass(frozen=True, slots=True)
class _Leaving:
    """A worker whose node is going away."""

    worker: Worker
    notice: Notice
    effective: Effective
    now: datetime

    @property
    def urgent(self) -> bool:
        """Whether the node is taken away soon, whatever runs on it."""
        fate, spot = self.notice.fate, self.worker.capacity_type == CapacityType.SPOT
        return fate is Fate.INTERRUPTED or (fate is Fate.DELETED and spot)

    @property
    def limit(self) -> datetime:
        """When it must be released at the latest, to finish what it has accepted."""
        since = min((at for at in (self.notice.since, self.worker.noticed_at) if at), default=self.now)
        if self.urgent or self.worker.capacity_type == CapacityType.SPOT:
            return since + SPOT_NOTICE - _LAG - min(self.effective.turn_latency_p99, _LONGEST_TURN)
        return since + PATIENCE

    @property
    def can_wait(self) -> bool:
        """Whether it serves, and may go on for a while."""
        return self.worker.ready and self.notice.fate is not Fate.GONE and self.now < self.limit

    @property
    def floor(self) -> float:
        """Percent of the pool's traffic for which workers must stand before this one may go."""
        return self.effective.survive_loss_percent if self.urgent else _WHOLE


def _weights(pool: InferencePool) -> Callable[[Worker], float]:
    """How much of the pool's traffic a worker carries, in percent, by the placements in force."""
    placements = [p for p in pool.status.placements or () if p.replicas > 0]
    each = {(p.hardware_class, p.capacity_type): p.traffic_percent / p.replicas for p in placements}
    replicas = sum(p.replicas for p in placements)
    other = _WHOLE / replicas if replicas else 0.0
    return lambda worker: each.get((worker.hardware_class, worker.capacity_type), other)


def evacuations(pools: Iterable[InferencePool], workers: Iterable[Worker], now: datetime) -> dict[str, Evacuation]:
    """By pool (`namespace/name`), for those that have something to do."""
    by_pool: dict[str, list[Worker]] = defaultdict(list)
    for worker in workers:
        by_pool[worker.pool].append(worker)
    touched = {key for key, own in by_pool.items() if any(w.notice or not w.traffic or w.noticed_at for w in own)}
    out = {pool.key: evacuate(pool, by_pool[pool.key], now) for pool in pools if pool.key in touched}
    return {key: found for key, found in out.items() if found.release or found.hold or found.restore}


# What the loop's steps make of it


def with_those_that_must_stay(
    surges: Mapping[str, Mapping[str, int]], children: Iterable[Child]
) -> Mapping[str, Mapping[str, int]]:
    """Stand-ins by pool and placement, with those that a LeaderWorkerSet keeps until every group is ready.

    It shrinks from its last group, which is the stand-in, and not the one that is being made anew.
    """
    out = dict(surges)
    for child in children:
        if child.resource == LEADER_WORKER_SETS and child.surge and child.ready_replicas < child.replicas:
            key = f"{child.namespace}/{child.pool}"
            own = out.get(key, {})
            out[key] = {**own, child.placement: max(child.surge, own.get(child.placement, 0))}
    return out


def without_stand_ins(children: Iterable[Child], workers: Iterable[Worker], wanted: Iterable[Manifest]) -> list[Child]:
    """Children as the plan counts them: no stand-ins, and of a wanted Deployment ready only what is on nodes that stay.

    So nothing else shrinks, and nothing old goes, while workers on leaving nodes are not replaced.
    """
    leaving = Counter((w.namespace, w.placement) for w in workers if w.notice and w.ready and not w.deleting)
    names = {_placement(manifest) for manifest in wanted if manifest["kind"] in WORKLOAD_KINDS}
    out = []
    for child in children:
        gone = leaving[child.namespace, child.placement] if child.placement in names else 0
        if child.resource in WORKLOADS and (gone or child.surge):
            ready = max(0, child.ready_replicas - gone)
            out.append(replace(child, replicas=child.replicas - child.surge, ready_replicas=ready, surge=0))
        else:
            out.append(child)
    return out


def with_stand_ins(steps: Steps, surge: Mapping[str, int]) -> Steps:
    """The same steps, with one more replica for each worker that is held."""
    if not any(surge.values()):
        return steps
    return replace(steps, apply=tuple(_surging(m, surge.get(_placement(m), 0)) for m in steps.apply))


def unequal(found: Mapping[str, Evacuation], children: Iterable[Child]) -> set[str]:
    """Pools (`namespace/name`) of which a Deployment has more or fewer stand-ins than it should."""
    surges = {(key, placement): more for key, one in found.items() for placement, more in one.surge.items()}
    there = {(f"{c.namespace}/{c.pool}", c.placement): c.surge for c in children if c.resource in WORKLOADS}
    return {key for key, placement in there if there[key, placement] != surges.get((key, placement), 0)} & found.keys()


def _surging(manifest: Manifest, more: int) -> Manifest:
    if not more or manifest["kind"] not in WORKLOAD_KINDS:
        return manifest
    out: Manifest = manifest | {"spec": manifest["spec"] | {"replicas": manifest["spec"]["replicas"] + more}}
    out["metadata"] = manifest["metadata"] | {
        "annotations": manifest["metadata"]["annotations"] | {SURGE_ANNOTATION: str(more)}
    }
    out["metadata"]["annotations"][RENDER_HASH_ANNOTATION] = render_hash(out)
    return out


def _placement(manifest: Manifest) -> str:
    return str(manifest["metadata"].get("labels", {}).get(PLACEMENT_LABEL, ""))
