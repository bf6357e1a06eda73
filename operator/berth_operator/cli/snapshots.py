"""What is planned: the files, the cluster, or the cluster as it would be with the files applied?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from berth_operator.api import CapacityType, HardwareClass, InferencePool, PriceInForce, Quantization, ServingProfile
from berth_operator.api.meta import Resource
from berth_operator.api.names import LEADER_WORKER_SET
from berth_operator.catalog.matching import among, unmatched
from berth_operator.catalog.sanity import Fault, sift
from berth_operator.cli.cluster_objects import ClusterNodes, namespace_in_context, read_cluster
from berth_operator.cli.objects import Objects, read_objects
from berth_operator.cli.problems import InputProblem
from berth_operator.cluster.observe import Observation
from berth_operator.load.demand import in_force
from berth_operator.passes import snapshot_of, unreadable
from berth_operator.planner import AtFault, Plan, Snapshot, plan
from berth_operator.planner.speed import best_profile
from berth_operator.prices import Price, Priced, Quotes, age_text, plan_priced, price
from berth_operator.prices.quotes import Key

R = TypeVar("R", bound=Resource)


@dataclass(frozen=True, slots=True)
class Inputs:
    """A snapshot, and what was wrong or worth knowing about its sources."""

    snapshot: Snapshot
    problems: tuple[InputProblem, ...] = ()
    remarks: tuple[str, ...] = ()
    stale: Mapping[Key, Price] = field(default_factory=dict)
    """Prices in the snapshot that no placement may be moved for."""

    def plan(self) -> Plan:
        """The plan that the operator would make, and what more nodes would save."""
        return plan_priced(self.snapshot, self.stale, partial(plan, shadow_prices=True))


def gather(
    files: Sequence[str],
    *,
    from_cluster: bool,
    namespace: str | None = None,
    kubeconfig: Path | None = None,
    check_nodes: bool = False,
) -> Inputs:
    """A snapshot of files, of the cluster, or of both: then a file wins over the cluster's object of the same name.

    What cannot be true is a problem, and left out.  `check_nodes`: so are classes that no node of the cluster matches,
    but they stay.  Raises berth_operator.cluster.kube.ApiError when the cluster is asked for and cannot be read.
    """
    namespace = namespace or target_namespace(from_cluster=from_cluster, kubeconfig=kubeconfig)
    objects, problems = read_objects(files, namespace)
    seen, nodes = Observation(available=frozenset({LEADER_WORKER_SET})), ClusterNodes()
    if from_cluster:
        seen, nodes = read_cluster(kubeconfig, nodes=check_nodes)
    now = datetime.now(UTC)
    snapshot = overlay(objects, seen, now)
    remarks = [f"{item.kind} {item.key} in the cluster is left out: {item.message}" for item in seen.invalid]
    sifted = sift(snapshot.hardware_classes, snapshot.serving_profiles)
    remarks += [*objects.remarks, *_unused_profiles(objects, snapshot, sifted.serving_profiles), *nodes.remarks]
    remarks += _endless_reservations(sifted.hardware_classes)
    problems += map(_problem, sifted.faults)
    if nodes.read:
        problems += map(_problem, unmatched(sifted.hardware_classes, among(nodes.nodes), nodes.node_pools))
    priced = price(sifted.hardware_classes, Quotes(), now)
    snapshot = replace(
        snapshot,
        hardware_classes=priced.classes,
        serving_profiles=sifted.serving_profiles,
        at_fault=(*sifted.at_fault, *_unreadable(objects, seen, snapshot)),
    )
    return Inputs(snapshot, tuple(problems), (*remarks, *_live_prices(priced, now)), priced.stale)


def _unreadable(files: Objects, cluster: Observation, snapshot: Snapshot) -> Iterable[AtFault]:
    """Classes that do not even parse, of files and cluster; none of which the other has a sound one."""
    sound = {item.metadata.name for item in snapshot.hardware_classes}
    found = {one.name: one for one in (*unreadable(cluster.invalid), *files.unreadable)}
    return (one for name, one in found.items() if name not in sound)


def _problem(fault: Fault) -> InputProblem:
    return InputProblem("", f"{fault.kind} {fault.name}", fault.field, fault.message)


def _live_prices(priced: Priced, now: datetime) -> Iterable[str]:
    """What a feed said, and how long ago."""
    for (name, kind), found in sorted(priced.prices.items()):
        if found.live:
            moves = ": too old to move a placement for" if found.stale else ""
            usd = f"{found.usd_per_hour:f} USD/h"
            yield f"{name} {kind.value}: {usd} by {found.source}, {age_text(found, now)} old{moves}"


def target_namespace(*, from_cluster: bool, kubeconfig: Path | None) -> str:
    """The namespace meant where none is named."""
    return namespace_in_context(kubeconfig) if from_cluster else "default"


def overlay(files: Objects, cluster: Observation, now: datetime) -> Snapshot:
    """The cluster as it would be with the files applied.

    What only the cluster knows of an object (its status: shortages, prices, the last move) stays in force.
    """
    below = snapshot_of(cluster, now)
    pools = tuple(in_force(pool, pool.status.demand) for pool in _merge(files.pools, below.pools))
    labels = {pool.metadata.namespace or "default": dict[str, str]() for pool in pools}
    for known in (below.namespace_labels, files.namespace_labels):
        labels.update({name: dict(found) for name, found in known.items()})
    for name, found in labels.items():
        found.setdefault("kubernetes.io/metadata.name", name)  # as the API server labels every namespace
    return replace(
        below,
        pools=pools,
        hardware_classes=_merge(files.hardware_classes, below.hardware_classes),
        serving_profiles=_merge(files.serving_profiles, below.serving_profiles),
        namespace_labels=labels,
    )


def _merge(files: Iterable[R], cluster: Iterable[R]) -> tuple[R, ...]:
    merged = {_key(item): item for item in cluster}
    for item in files:
        old = merged.get(_key(item))
        merged[_key(item)] = item if old is None else _with_status_of(item, old)
    return tuple(merged[key] for key in sorted(merged))


def _key(item: Resource) -> tuple[str, str]:
    return item.metadata.namespace or "", item.metadata.name


def _with_status_of(item: R, old: R) -> R:
    labels = {**old.metadata.labels, **item.metadata.labels}
    update: dict[str, Any] = {"metadata": old.metadata.model_copy(update={"labels": labels})}
    if isinstance(old, InferencePool):
        update["status"] = old.status
    elif isinstance(old, HardwareClass) and isinstance(item, HardwareClass):
        update["status"] = old.status.model_copy(update={"prices": _prices_not_in_question(item, old)})
    return item.model_copy(update=update)


def _prices_not_in_question(item: HardwareClass, old: HardwareClass) -> list[PriceInForce]:
    """Prices in force, but for capacity that the file prices anew: then that is what is asked."""
    same = {
        c.type
        for c in item.spec.capacity
        if (before := old.capacity_of(c.type)) and before.usd_per_hour == c.usd_per_hour
    }
    return [entry for entry in old.status.prices or () if entry.type in same]


def _unused_profiles(files: Objects, snapshot: Snapshot, sound: Sequence[ServingProfile]) -> Iterable[str]:
    """Profiles that no plan can use; of files, which somebody asks about, those that this one does not use, too.

    `sound`: those that can be true; of others more has been said than this.
    """
    known = {item.metadata.name: item.spec.runtime.name for item in snapshot.hardware_classes}
    asked = {item.metadata.name for item in files.serving_profiles} if snapshot.pools else set[str]()
    served: dict[str, set[Quantization]] = {}
    for pool in snapshot.pools:
        served.setdefault(pool.spec.model.name, set()).add(pool.spec.model.quantization or Quantization.INT8)
    for profile in sound:
        name, spec = profile.metadata.name, profile.spec
        runtime, formats = known.get(spec.hardware_class), served.get(spec.model, set())
        if runtime is None:
            why = f"hardware class {spec.hardware_class}, which is not among the objects"
        elif spec.runtime != runtime:
            why = f"runtime {spec.runtime.value}, and hardware class {spec.hardware_class} has {runtime.value}"
        elif name not in asked:
            continue
        elif not formats:
            why = f"model {spec.model}, which no pool serves"
        elif not formats & {Quantization.ANY, Quantization(spec.quantization)}:
            has = ", ".join(sorted(q.value for q in formats))
            why = f"quantization {spec.quantization}, and pools of {spec.model} have {has}"
        else:
            pair = spec.model, Quantization(spec.quantization), spec.hardware_class, spec.runtime
            best = best_profile(sound, *pair)
            if best is None or best is profile:
                continue
            why = (
                f"the same model, quantization, class and runtime as {best.metadata.name}, which goes before it"
                " (Measured before Published before Estimated, then the newest date, then by name)"
            )
        yield f"ServingProfile {name} is of {why}: it is not used"


def _endless_reservations(classes: Iterable[HardwareClass]) -> Iterable[str]:
    """Nodes that are paid for already, and that a plan takes for as many as anybody asks for."""
    for hardware in classes:
        reserved = hardware.capacity_of(CapacityType.RESERVED)
        if reserved and reserved.max_nodes is None:
            yield (
                f"HardwareClass {hardware.metadata.name} has Reserved nodes without maxNodes: a plan takes as many as"
                " it likes, for nothing; set maxNodes to those that are paid for"
            )
