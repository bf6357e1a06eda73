"""Which pods are one worker?  Those of a LeaderWorkerSet's group, which is one replica over several nodes.

Decisions are about replicas, so a group is one worker: its leader, which alone serves, with what happens to any of its
pods.  It has a node once all of them have one, is ready once all of them are, as its set counts it, and its node goes
away as soon as one of theirs does.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from berth_operator.cluster.observe import Child, Worker
from berth_operator.cluster.resources import LEADER_WORKER_SETS

LEADER: Final = 0


def replicas_of(pods: Iterable[Worker]) -> tuple[Worker, ...]:
    """One worker for each pod that is a replica, and for each group with a leader."""
    out: list[Worker] = []
    groups: dict[tuple[str, str], list[Worker]] = defaultdict(list)
    for pod in pods:
        if pod.member is None:
            out.append(pod)
        else:
            groups[pod.namespace, pod.member.group].append(pod)
    for members in groups.values():
        leader = next((pod for pod in members if pod.member and pod.member.index == LEADER), None)
        if leader is not None:
            out.append(_as_one(leader, members))
    return tuple(out)


def as_seen(children: Sequence[Child], workers: Sequence[Worker]) -> tuple[Child, ...]:
    """The children, a LeaderWorkerSet with no more ready replicas than are seen to be ready, to serve and to stay.

    Its status lags behind the end of a group; whoever believes it lets the set shrink while that group comes again, and
    the set gives up its last group, which serves.
    """
    if not any(child.resource == LEADER_WORKER_SETS for child in children):
        return tuple(children)
    serving = Counter(
        (worker.pool, worker.placement) for worker in workers if worker.ready and worker.traffic and not worker.deleting
    )

    def seen(child: Child) -> Child:
        if child.resource != LEADER_WORKER_SETS:
            return child
        ready = serving[f"{child.namespace}/{child.pool}", child.placement]
        return replace(child, ready_replicas=min(child.ready_replicas, ready))

    return tuple(seen(child) for child in children)


def _as_one(leader: Worker, members: Sequence[Worker]) -> Worker:
    size = leader.member.size if leader.member else 1
    hosts = tuple(sorted({pod.node for pod in members if pod.node and not pod.deleting}))
    placed = len([pod for pod in members if pod.node and not pod.deleting]) >= size
    blocked = sorted((pod.blocked for pod in members if pod.blocked), key=lambda b: (b.since, b.detail))
    notices = [pod.notice for pod in members if pod.notice]
    times = [pod.scheduled_at for pod in members if pod.scheduled_at]
    return replace(
        leader,
        node=leader.node if placed else None,
        hosts=hosts,
        ready=leader.ready and sum(pod.ready for pod in members) >= size,
        unschedulable=any(pod.unschedulable for pod in members),
        deleting=any(pod.deleting for pod in members),  # the others follow
        blocked=blocked[0] if blocked else None,
        failing=leader.failing or next((pod.failing for pod in members if pod.failing), None),
        notice=leader.notice or (notices[0] if notices else None),
        scheduled_at=max(times) if placed and times else None,
    )
