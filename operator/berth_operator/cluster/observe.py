"""What do we read from each object in the cluster?  Decoders from raw JSON to the few facts that decisions need.

One bad object is isolated here: a custom resource that does not parse becomes an `Invalid` that names field, value and
remedy, and all others are planned without it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from berth_operator.api import (
    CapacityType,
    HardwareClass,
    InferencePool,
    InferencePoolStatus,
    Quantization,
    ServingProfile,
)
from berth_operator.api.meta import Resource as ApiResource
from berth_operator.api.names import (
    CAPACITY_TYPE_LABEL,
    FIELD_MANAGER,
    HARDWARE_CLASS_LABEL,
    NOTICED_ANNOTATION,
    PLACEMENT_LABEL,
    POOL_LABEL,
    QUANTIZATION_LABEL,
    RENDER_HASH_ANNOTATION,
    SURGE_ANNOTATION,
    TEMPLATE_HASH_ANNOTATION,
    TRAFFIC_LABEL,
)
from berth_operator.cluster.neighbours import Autoscaler, Parents, parents_of
from berth_operator.cluster.nodes import Notice, parse_time
from berth_operator.cluster.pod_troubles import Blocked, Failing, blocked, create_error, failing, scheduled_at
from berth_operator.cluster.resources import LEADER_WORKER_SETS, Object, Resource

K = TypeVar("K", bound=ApiResource)

_PROBLEMS_SHOWN: Final = 3
_LWS: Final = "leaderworkerset.sigs.k8s.io"


@dataclass(frozen=True, slots=True)
class Invalid:
    """A custom resource that does not parse."""

    kind: str
    namespace: str
    name: str
    uid: str
    resource_version: str
    generation: int
    message: str
    """Field, value and remedy of each problem, for people."""
    status: InferencePoolStatus
    """What its status says now (pools only; empty for other kinds)."""

    @property
    def key(self) -> str:
        """`namespace/name`, or the name alone."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True, slots=True)
class Child:
    """What we know of a live child of a pool."""

    resource: Resource
    namespace: str
    name: str
    uid: str
    pool: str
    """Name of the pool by label; it lies in the same namespace."""
    owner_uid: str | None
    """Of the controlling owner."""
    render_hash: str
    managed_fields: str = field(repr=False)
    """JSON of metadata.managedFields' fieldsV1 that server-side apply holds for us; empty when it holds none."""
    deleting: bool = False
    hardware_class: str | None = None
    capacity_type: CapacityType | None = None
    quantization: Quantization | None = None
    replicas: int = 0
    """Deployments: wanted, as spec says now."""
    ready_replicas: int = 0
    rolled_out: bool = True
    """Deployments: its controller has seen the present spec and every replica is of the present template."""
    parents: Parents = field(default_factory=Parents)
    """Routes: what gateways say of it."""
    placement: str = ""
    """Deployments: the placement label's value."""
    surge: int = 0
    """Deployments: how many of `replicas` stand in for workers whose nodes are going away."""
    resource_version: str = field(default="", compare=False, repr=False)
    template_hash: str = ""
    """Deployments: of the pod template that we rendered last; empty when unknown."""
    old_replicas: int = 0
    """Deployments: pods of templates before the present one; also while its controller has not seen the present."""
    create_error: str | None = None
    """Deployments: why the API server refuses their pods, such as a quota."""
    deadline_exceeded: bool = False
    """Deployments: its pods have not become ready within progressDeadlineSeconds."""
    nodes_per_replica: int = 1
    """LeaderWorkerSets: pods of a group, each on a node of its own."""

    @property
    def key(self) -> tuple[str, str, str]:
        """(kind, namespace, name)"""
        return self.resource.kind, self.namespace, self.name

    def __str__(self) -> str:
        return f"{self.resource.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Member:
    """What a pod is in a group of a LeaderWorkerSet."""

    group: str
    """Name of the set, and the group's number in it."""
    index: int
    """0: the leader."""
    size: int
    """Pods of a group."""


@dataclass(frozen=True, slots=True)
class Worker:
    """What we know of a worker's pod."""

    pool: str
    """`namespace/name`"""
    hardware_class: str
    capacity_type: CapacityType
    node: str | None
    ready: bool
    unschedulable: bool
    deleting: bool
    name: str = ""
    uid: str = ""
    placement: str = ""
    """The placement label's value."""
    traffic: bool = True
    """Whether Services send it requests."""
    noticed_at: datetime | None = None
    """When we first saw that its node is going away, as far as we had to note it."""
    notice: Notice | None = None
    """Word that its node is going away."""
    address: str | None = None
    """IP address of the pod."""
    ports: Mapping[str, int] = field(default_factory=dict)
    """By name: `http`, `grpc`."""
    quantization: Quantization | None = None
    blocked: Blocked | None = None
    """Why it has no node."""
    failing: Failing | None = None
    """Why it does not come up on its node."""
    scheduled_at: datetime | None = None
    """When it got its node."""
    member: Member | None = None
    """In a replica that spans nodes; None: it is a replica by itself."""
    hosts: tuple[str, ...] = ()
    """Nodes of all its pods, where it stands for a replica that spans nodes."""

    @property
    def namespace(self) -> str:
        """Where it and its pool are."""
        return self.pool.partition("/")[0]

    @property
    def state(self) -> str:
        """One of Ready, Starting, Unschedulable, Terminating."""
        if self.deleting:
            return "Terminating"
        if self.ready:
            return "Ready"
        return "Unschedulable" if self.unschedulable else "Starting"


@dataclass(frozen=True, slots=True)
class Namespace:
    """What we know of a namespace."""

    labels: Mapping[str, str]
    terminating: bool
    """Nothing new can be made in it."""


@dataclass(frozen=True, slots=True)
class Observation:
    """The cluster at one moment, decoded."""

    pools: tuple[InferencePool, ...] = ()
    hardware_classes: tuple[HardwareClass, ...] = ()
    serving_profiles: tuple[ServingProfile, ...] = ()
    invalid: tuple[Invalid, ...] = ()
    children: tuple[Child, ...] = ()
    workers: tuple[Worker, ...] = ()
    workers_read: bool = True
    """False: nobody has looked for workers."""
    namespace_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    available: frozenset[str] = frozenset()
    """Kinds of other projects (`Kind.group`) that may be rendered."""
    autoscalers: tuple[Autoscaler, ...] = ()


def decode_pool(item: Object) -> InferencePool | Invalid:
    """A pool; a status that does not parse (of another version of us) counts as none."""
    parsed = _decode(InferencePool, item)
    if isinstance(parsed, Invalid):
        without = _decode(InferencePool, {k: v for k, v in item.items() if k != "status"})
        return parsed if isinstance(without, Invalid) else without
    return parsed


def decode_hardware_class(item: Object) -> HardwareClass | Invalid:
    """A hardware class; a status that does not parse counts as none."""
    parsed = _decode(HardwareClass, item)
    if isinstance(parsed, Invalid):
        without = _decode(HardwareClass, {k: v for k, v in item.items() if k != "status"})
        return parsed if isinstance(without, Invalid) else without
    return parsed


def decode_serving_profile(item: Object) -> ServingProfile | Invalid:
    """A serving profile."""
    return _decode(ServingProfile, item)


def child_decoder(resource: Resource) -> Callable[[Object], Child]:
    """A decoder for one kind of child."""

    def decode(item: Object) -> Child:
        metadata = item["metadata"]
        labels = metadata.get("labels", {})
        owner = next((o for o in metadata.get("ownerReferences", ()) if o.get("controller")), None)
        spec, status = item.get("spec", {}), item.get("status", {})
        replicas = spec.get("replicas", 0)
        observed = status.get("observedGeneration", 0) >= metadata.get("generation", 0)
        conditions = status.get("conditions", ())
        return Child(
            resource=resource,
            namespace=metadata["namespace"],
            name=metadata["name"],
            uid=metadata["uid"],
            pool=labels.get(POOL_LABEL, ""),
            owner_uid=owner["uid"] if owner else None,
            render_hash=metadata.get("annotations", {}).get(RENDER_HASH_ANNOTATION, ""),
            managed_fields=_our_fields(metadata),
            deleting="deletionTimestamp" in metadata,
            hardware_class=labels.get(HARDWARE_CLASS_LABEL),
            capacity_type=_capacity_type(labels),
            quantization=_quantization(labels),
            replicas=replicas,
            ready_replicas=status.get("readyReplicas", 0),
            rolled_out=observed and status.get("updatedReplicas", 0) >= replicas,
            template_hash=metadata.get("annotations", {}).get(TEMPLATE_HASH_ANNOTATION, ""),
            old_replicas=status.get("replicas", 0) - (status.get("updatedReplicas", 0) if observed else 0),
            create_error=create_error(status),
            deadline_exceeded=any(c.get("reason") == "ProgressDeadlineExceeded" for c in conditions),
            parents=parents_of(status),
            placement=labels.get(PLACEMENT_LABEL, ""),
            surge=_count(metadata.get("annotations", {}).get(SURGE_ANNOTATION)),
            resource_version=metadata.get("resourceVersion", ""),
            nodes_per_replica=spec["leaderWorkerTemplate"].get("size", 1) if resource == LEADER_WORKER_SETS else 1,
        )

    return decode


def decode_worker(item: Object) -> Worker | None:
    """A worker's pod; None for one that has ended or carries none of our placement labels."""
    metadata, status = item["metadata"], item.get("status", {})
    labels = metadata.get("labels", {})
    kind, pool = _capacity_type(labels), labels.get(POOL_LABEL)
    if kind is None or not pool or status.get("phase") in ("Succeeded", "Failed"):
        return None
    conditions = {c["type"]: c for c in status.get("conditions", ())}
    return Worker(
        pool=f"{metadata['namespace']}/{pool}",
        hardware_class=labels.get(HARDWARE_CLASS_LABEL, ""),
        capacity_type=kind,
        node=item.get("spec", {}).get("nodeName"),
        ready=conditions.get("Ready", {}).get("status") == "True",
        unschedulable=conditions.get("PodScheduled", {}).get("reason") == "Unschedulable",
        deleting="deletionTimestamp" in metadata,
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        placement=labels.get(PLACEMENT_LABEL, ""),
        traffic=labels.get(TRAFFIC_LABEL) == "on",
        noticed_at=parse_time(metadata.get("annotations", {}).get(NOTICED_ANNOTATION)),
        address=status.get("podIP"),
        ports={port["name"]: port["containerPort"] for port in _ports(item) if "name" in port},
        quantization=_quantization(labels),
        blocked=blocked(item),
        failing=failing(item),
        scheduled_at=scheduled_at(item),
        member=_member(metadata),
    )


def _member(metadata: Mapping[str, Any]) -> Member | None:
    labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
    name, group, index = (labels.get(f"{_LWS}/{key}") for key in ("name", "group-index", "worker-index"))
    if name is None or group is None or index is None:
        return None
    return Member(f"{name}-{group}", _count(index), _count(annotations.get(f"{_LWS}/size")))


def _ports(pod: Object) -> list[Object]:
    return [port for one in pod.get("spec", {}).get("containers", ()) for port in one.get("ports", ())]


def decode_namespace(item: Object) -> Namespace:
    """A namespace's labels, and whether it is on its way out."""
    metadata = item["metadata"]
    return Namespace(labels=dict(metadata.get("labels", {})), terminating="deletionTimestamp" in metadata)


def explain(error: ValidationError) -> str:
    """A validation error as a person would say it: field, what was found, what would be right; worst first."""
    shown = [_problem(dict(problem)) for problem in error.errors()[:_PROBLEMS_SHOWN]]
    rest = error.error_count() - len(shown)
    return "; ".join(shown) + (f"; and {rest} more" if rest else "")


def _problem(problem: Mapping[str, Any]) -> str:
    where = ""
    for part in problem["loc"]:
        where += f"[{part}]" if isinstance(part, int) else f".{part}"
    text = str(problem["msg"]).removeprefix("Value error, ")
    found = problem["input"]
    if problem["type"] == "missing":
        return f"{where.lstrip('.')}: is required: set it"
    if isinstance(found, dict | list) or str(found) in text:
        return f"{where.lstrip('.')}: {text}"
    return f"{where.lstrip('.')}: found {json.dumps(found, default=str)[:80]}: {text[:1].lower()}{text[1:]}"


def _decode(model: type[K], item: Object) -> K | Invalid:
    try:
        return model.model_validate(item)
    except ValidationError as error:
        metadata = item["metadata"]
        return Invalid(
            kind=item["kind"],
            namespace=metadata.get("namespace", ""),
            name=metadata["name"],
            uid=metadata["uid"],
            resource_version=metadata.get("resourceVersion", ""),
            generation=metadata.get("generation", 0),
            message=explain(error),
            status=_pool_status(item),
        )


def _pool_status(item: Object) -> InferencePoolStatus:
    try:
        return InferencePoolStatus.model_validate(item.get("status", {}))
    except ValidationError:
        return InferencePoolStatus()


def _count(text: Any) -> int:
    return int(text) if isinstance(text, str) and text.isdecimal() else 0


def _capacity_type(labels: Mapping[str, str]) -> CapacityType | None:
    try:
        return CapacityType(labels.get(CAPACITY_TYPE_LABEL, ""))
    except ValueError:
        return None


def _quantization(labels: Mapping[str, str]) -> Quantization | None:
    try:
        return Quantization(labels.get(QUANTIZATION_LABEL, ""))
    except ValueError:
        return None


def _our_fields(metadata: Mapping[str, Any]) -> str:
    for entry in metadata.get("managedFields", ()):
        ours = entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply"
        if ours and not entry.get("subresource"):
            return json.dumps(entry.get("fieldsV1", {}), separators=(",", ":"))
    return ""
