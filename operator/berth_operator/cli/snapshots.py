"""What is planned: the files, the cluster, or the cluster as it would be with the files applied?"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from berth_operator.api import HardwareClass, InferencePool
from berth_operator.api.meta import Resource
from berth_operator.cli.cluster_objects import namespace_in_context, read_cluster
from berth_operator.cli.objects import Objects, read_objects
from berth_operator.cli.problems import InputProblem
from berth_operator.cluster.observe import Observation
from berth_operator.loop import snapshot_of
from berth_operator.planner import Snapshot

R = TypeVar("R", bound=Resource)


@dataclass(frozen=True, slots=True)
class Inputs:
    """A snapshot, and what was wrong or worth knowing about its sources."""

    snapshot: Snapshot
    problems: tuple[InputProblem, ...] = ()
    remarks: tuple[str, ...] = ()


def gather(
    files: Sequence[str], *, from_cluster: bool, namespace: str | None = None, kubeconfig: Path | None = None
) -> Inputs:
    """A snapshot of files, of the cluster, or of both: then a file wins over the cluster's object of the same name.

    Raises berth_operator.cluster.kube.ApiError when the cluster is asked for and cannot be read.
    """
    namespace = namespace or target_namespace(from_cluster=from_cluster, kubeconfig=kubeconfig)
    objects, problems = read_objects(files, namespace)
    seen = read_cluster(kubeconfig) if from_cluster else Observation()
    snapshot = overlay(objects, seen, datetime.now(UTC))
    left_out = (f"{item.kind} {item.key} in the cluster is left out: {item.message}" for item in seen.invalid)
    return Inputs(snapshot, tuple(problems), (*left_out, *objects.remarks, *_unused_profiles(snapshot)))


def target_namespace(*, from_cluster: bool, kubeconfig: Path | None) -> str:
    """The namespace meant where none is named."""
    return namespace_in_context(kubeconfig) if from_cluster else "default"


def overlay(files: Objects, cluster: Observation, now: datetime) -> Snapshot:
    """The cluster as it would be with the files applied.

    What only the cluster knows of an object (its status: shortages, prices, the last move) stays in force.
    """
    below = snapshot_of(cluster, now)
    pools = _merge(files.pools, below.pools)
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
    if isinstance(old, InferencePool | HardwareClass):
        update["status"] = old.status
    return item.model_copy(update=update)


def _unused_profiles(snapshot: Snapshot) -> Iterable[str]:
    known = {item.metadata.name for item in snapshot.hardware_classes}
    for profile in snapshot.serving_profiles:
        if profile.spec.hardware_class not in known:
            yield (
                f"ServingProfile {profile.metadata.name} is of hardware class {profile.spec.hardware_class},"
                " which is not among the objects: it is not used"
            )
