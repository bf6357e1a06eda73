"""What may be done now?  From what the plan wants and what runs to the next safe steps: make before break.  Pure.

Old workers go, and placements shrink, only once every other placement that the pool wants has all its replicas ready,
or when they serve nothing anyway.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from berth_operator.api import CapacityType
from berth_operator.cluster.observe import Child
from berth_operator.cluster.resources import LEADER_WORKER_SETS, WORKLOAD_KINDS

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Steps:
    """What to write now for one pool, and what waits for what."""

    apply: tuple[Manifest, ...] = ()
    delete: tuple[Child, ...] = ()
    waiting: tuple[str, ...] = ()
    """One sentence for each step put off."""
    moving: bool = False
    """Whether what serves waits to go until something else is ready."""
    put_off: tuple[str, ...] = ()
    """Workloads that are wanted, but not changed now."""


def next_steps(
    desired: Sequence[Manifest],
    live: Sequence[Child],
    *,
    suspended: bool = False,
    hold: str | None = None,
    yields: Collection[tuple[str, CapacityType]] = (),
) -> Steps:
    """The steps for one pool.

    `desired`: all its rendered children.  `live`: the children that it owns now.  `suspended`: its workers go at once.
    `hold`: why no worker may be taken away, whatever the plan wants (None: nothing stands against it); where it wants
    none at all, those that wait for a node are kept, too, because it is for them that an autoscaler makes one.
    `yields`: hardware on which nothing is held, since others get its nodes.
    """
    there = {child.key: child for child in live}
    wanted = {_key(m): m for m in desired}
    unready = {key for key, m in wanted.items() if key[0] in WORKLOAD_KINDS and not _ready(m, there.get(key))}
    places = any(key[0] in WORKLOAD_KINDS for key in wanted)
    apply, delete, waiting, put_off = [], [], [], []
    moving = False
    for key, manifest in wanted.items():
        child = there.get(key)
        others = sorted(name for _, _, name in unready - {key})
        if child is not None and _loses_its_last(manifest, child):
            put_off.append(child.name)
            waiting.append(f"{child} shrinks once all its {child.replicas} groups are ready: the last ones go first")
        elif key[0] in WORKLOAD_KINDS and child is not None and _shrinks(manifest, child) and others:
            replicas = manifest["spec"]["replicas"]
            moving = True
            put_off.append(child.name)
            waiting.append(f"{child} shrinks from {child.replicas} to {replicas} once {', '.join(others)} is ready")
        else:
            apply.append(manifest)
    for key, child in there.items():
        if key in wanted or child.deleting:
            continue
        serves = key[0] in WORKLOAD_KINDS and child.ready_replicas > 0
        held = hold and (child.hardware_class, child.capacity_type) not in yields
        if key[0] in WORKLOAD_KINDS and not suspended and held and (serves or not places):
            waiting.append(f"{child} stays: {hold}")
        elif serves and not suspended and unready:
            names = ", ".join(sorted(name for _, _, name in unready))
            moving = True
            waiting.append(f"{child} goes once {names} is ready")
        else:
            delete.append(child)
    return Steps(tuple(apply), tuple(delete), tuple(waiting), moving, tuple(put_off))


def _key(manifest: Manifest) -> tuple[str, str, str]:
    return manifest["kind"], manifest["metadata"]["namespace"], manifest["metadata"]["name"]


def _ready(manifest: Manifest, child: Child | None) -> bool:
    """Whether every replica that the manifest wants is there, of the present template, and ready."""
    if child is None or child.deleting:
        return False
    replicas: int = manifest["spec"]["replicas"]
    return child.rolled_out and child.ready_replicas >= replicas


def _loses_its_last(manifest: Manifest, child: Child) -> bool:
    """Whether a LeaderWorkerSet would lose ready groups for others that are not: it always gives up the last ones."""
    if child.resource != LEADER_WORKER_SETS or child.deleting:
        return False
    shrinks = manifest["spec"]["replicas"] < child.replicas
    return bool(shrinks and 0 < child.ready_replicas < child.replicas)


def _shrinks(manifest: Manifest, child: Child) -> bool:
    """Whether applying would take away ready replicas."""
    return bool(manifest["spec"]["replicas"] < min(child.replicas, child.ready_replicas))
