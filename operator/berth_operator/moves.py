"""Who may move now?  A pool's placements one at a time, and only so many pools of the fleet at once.  Pure.

A move replaces workers that serve: a rollout of a new pod template, or other hardware for savings.  What brings service
(a first placement, a fallback from hardware that loses workers, more replicas) is no move and never waits; neither does
a move under way that gets another target, so that a rollout that failed can be put right or taken back.

A rollout that has failed keeps its turn, so that a bad image stops after a few pools; but failures together never keep
the last turn, so that pools which their owners have broken do not stop everybody else's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from berth_operator.api.names import RENDER_HASH_ANNOTATION, TEMPLATE_HASH_ANNOTATION
from berth_operator.cluster.observe import Child
from berth_operator.cluster.resources import TEMPLATE_FIELDS, WORKLOAD_KINDS, WORKLOADS
from berth_operator.render import render_hash
from berth_operator.transition import Steps

Manifest = dict[str, Any]

MOST_MOVES: Final = 10


@dataclass(frozen=True, slots=True)
class Turns:
    """What may be done now."""

    steps: Mapping[str, Steps]
    waiting: Collection[str] = ()
    """Pools (`namespace/name`) that wait for others' moves to end."""


@dataclass(frozen=True, slots=True)
class _Pool:
    """A pool's steps beside its Deployments as they are."""

    steps: Steps
    live: Mapping[str, Child]
    """Deployments by name."""

    @property
    def under_way(self) -> bool:
        """Workers of an old template are left, or old hardware waits for new that has been made."""
        rolling = any(child.old_replicas for child in self.live.values() if child.ready_replicas)
        return rolling or (self.steps.moving and not self.arrivals)

    @property
    def rollouts(self) -> list[str]:
        """Deployments whose workers, which serve, the steps would begin to replace."""
        return sorted(m["metadata"]["name"] for m in self._deployments if self._begins(m))

    @property
    def arrivals(self) -> set[str]:
        """New Deployments that are to replace others that serve in full: a move that can wait."""
        wanted = {m["metadata"]["name"] for m in self._deployments}
        staying = wanted.union(self.steps.put_off)
        leaving = [child for name, child in self.live.items() if name not in staying and child.ready_replicas]
        if not leaving or any(child.ready_replicas < child.replicas for child in leaving):
            return set()
        return wanted - self.live.keys()

    @property
    def _deployments(self) -> list[Manifest]:
        return [m for m in self.steps.apply if m["kind"] in WORKLOAD_KINDS]

    def _begins(self, manifest: Manifest) -> bool:
        child = self.live.get(manifest["metadata"]["name"])
        if child is None or not child.ready_replicas or child.old_replicas:
            return False
        return bool(child.template_hash != manifest["metadata"]["annotations"].get(TEMPLATE_HASH_ANNOTATION))


def in_turn(
    steps: Mapping[str, Steps], children: Iterable[Child], failed: Collection[str], most: int = MOST_MOVES
) -> Turns:
    """The steps without moves that have to wait.

    `children`: of all pools.  `failed`: pools that come no further by themselves.  `most`: pools that move at once.
    """
    live: dict[str, dict[str, Child]] = defaultdict(dict)
    for child in children:
        if child.resource in WORKLOADS and not child.deleting:
            live[f"{child.namespace}/{child.pool}"][child.name] = child
    pools = {key: _Pool(own, live.get(key, {})) for key, own in steps.items()}
    under_way = {key for key, pool in pools.items() if pool.under_way}
    stuck = under_way & set(failed)
    free = most - len(under_way - stuck) - min(len(stuck), max(0, most - 1))
    out, waiting = dict(steps), set()
    for key in sorted(pools):
        pool = pools[key]
        rollouts, arrivals = pool.rollouts, pool.arrivals
        if not rollouts and not (arrivals and key not in under_way):
            continue
        if key in under_way:
            arrivals = set()
        elif free > 0:
            free -= 1
            rollouts, arrivals = (rollouts, set()) if arrivals else (rollouts[1:], set())
        else:
            waiting.add(key)
        out[key] = _without(pool, set(rollouts), arrivals)
    return Turns(out, waiting)


def _without(pool: _Pool, rollouts: Collection[str], arrivals: Collection[str]) -> Steps:
    apply, told = [], []
    for manifest in pool.steps.apply:
        name = manifest["metadata"]["name"]
        if manifest["kind"] not in WORKLOAD_KINDS or name not in {*rollouts, *arrivals}:
            apply.append(manifest)
        elif name in rollouts:
            apply.append(_as_it_is(manifest, pool.live[name]))
            told.append(f"{pool.live[name]} keeps its pod template until it is its turn")
        else:
            told.append(f"{manifest['kind']} {name} is made when it is its turn")
    return replace(pool.steps, apply=tuple(apply), waiting=(*pool.steps.waiting, *told))


def _as_it_is(manifest: Manifest, child: Child) -> Manifest:
    """The same workload without a pod template: it keeps the one that it has."""
    spec = {key: value for key, value in manifest["spec"].items() if key != TEMPLATE_FIELDS[manifest["kind"]]}
    annotations = manifest["metadata"]["annotations"] | {TEMPLATE_HASH_ANNOTATION: child.template_hash}
    out: Manifest = manifest | {"metadata": manifest["metadata"] | {"annotations": annotations}, "spec": spec}
    annotations[RENDER_HASH_ANNOTATION] = render_hash(out)
    return out
