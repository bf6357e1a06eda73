"""Which children does a pool have?  A Deployment a placement (a LeaderWorkerSet where replicas span nodes), two
Services and a disruption budget a pool, and what of other projects' kinds it asks for."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from berth_operator.api import CapacityType, HardwareClass, InferencePool, ReplicaResources
from berth_operator.api.names import (
    API_VERSION,
    CAPACITY_TYPE_LABEL,
    FIELD_MANAGER,
    HARDWARE_CLASS_LABEL,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    PLACEMENT_LABEL,
    POD_MONITOR,
    POOL_LABEL,
    QUANTIZATION_LABEL,
    RENDER_HASH_ANNOTATION,
    SCALED_OBJECT,
    TEMPLATE_HASH_ANNOTATION,
    TRAFFIC_LABEL,
)
from berth_operator.planner import Placement, Plan, PoolPlan, Snapshot
from berth_operator.render.keda import scaled_object
from berth_operator.render.monitor import pod_monitor
from berth_operator.render.multinode import leader_worker_set
from berth_operator.render.pod import GRPC_PORT, HTTP_PORT, pod_spec
from berth_operator.render.routing import Backend, LiveDeployment, backends_of, routing_children, speaks_grpc
from berth_operator.render.settings import RenderSettings

Manifest = dict[str, Any]


def placement_id(
    pool: str,
    hardware_class: str,
    capacity_type: CapacityType,
    resources: ReplicaResources | None = None,
    nodes_per_replica: int = 1,
) -> str:
    """Hash of pool (`namespace/name`), hardware class, capacity type and a replica's share of a node, or the nodes that
    it spans: 8 hex digits, valid as a label value.

    The share belongs to it because replicas of another share are another Deployment: rolled within one, a Deployment
    that also grows would first grow in its old shape, and take whole nodes for it that nobody planned.
    """
    share = "" if resources is None else f"|{resources.model_dump_json(exclude_none=True)}"
    share += "" if nodes_per_replica == 1 else f"|{nodes_per_replica} nodes"
    return hashlib.sha256(f"{pool}|{hardware_class}|{capacity_type}{share}".encode()).hexdigest()[:8]


def render_hash(manifest: Mapping[str, Any]) -> str:
    """Hash of everything we render into an object (its own hash annotation aside): 16 hex digits."""
    body = json.loads(json.dumps(manifest))
    annotations = body["metadata"].pop("annotations", {})
    body["metadata"]["annotations"] = {k: v for k, v in annotations.items() if k != RENDER_HASH_ANNOTATION}
    return _hash(body)


def _hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def render(
    plan: Plan,
    snapshot: Snapshot,
    settings: RenderSettings,
    live: Mapping[str, Sequence[LiveDeployment]] | None = None,
) -> list[Manifest]:
    """The children of every pool that is to be applied, in a fixed order.

    `live`: the Deployments that run now, by pool (`namespace/name`): routes weigh placements by what is ready.
    A pool in mode Recommend or not accepted has none of its own here: the loop leaves what runs alone.
    A suspended pool keeps its Services and budget and has no Deployments.
    """
    pools = {pool.key: pool for pool in snapshot.pools}
    classes = {cls.metadata.name: cls for cls in snapshot.hardware_classes}
    out = []
    for key in sorted(plan.pools):
        pool, pool_plan = pools[key], plan.pools[key]
        if pool_plan.not_accepted is None and pool_plan.effective.mode == "Apply":
            out += render_pool(pool, pool_plan, classes, settings, (live or {}).get(key, ()))
    return out


def render_pool(
    pool: InferencePool,
    plan: PoolPlan,
    classes: Mapping[str, HardwareClass],
    settings: RenderSettings,
    live: Sequence[LiveDeployment] = (),
) -> list[Manifest]:
    """The children of one pool."""
    children = [_service(pool), _headless_service(pool), _disruption_budget(pool)]
    placements = [] if plan.effective.suspend else [p for p in plan.placements if p.replicas > 0]
    children += [_workload(pool, p, classes[p.hardware_class], settings) for p in placements]
    backends = backends_of([_backend(pool, p, classes[p.hardware_class]) for p in placements], live, classes)
    children += routing_children(pool, backends, settings.available, _metadata)
    if POD_MONITOR in settings.available:
        children.append(pod_monitor(pool, settings, _metadata))
    keda = pool.spec.scaling.keda if pool.spec.scaling else None
    if keda and SCALED_OBJECT in settings.available and not plan.effective.suspend:
        children.append(scaled_object(pool, keda, plan.effective.think_time, _metadata))
    for child in children:
        annotations = child["metadata"].setdefault("annotations", {})
        annotations[RENDER_HASH_ANNOTATION] = render_hash(child)
    return children


def _metadata(pool: InferencePool, name: str, labels: Mapping[str, str] | None = None) -> Manifest:
    return {
        "name": name,
        "namespace": pool.metadata.namespace or "default",
        "labels": {MANAGED_BY_LABEL: MANAGED_BY, POOL_LABEL: pool.metadata.name, **(labels or {})},
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": "InferencePool",
                "name": pool.metadata.name,
                "uid": pool.metadata.uid,
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ],
    }


def _placement_id(pool: InferencePool, placement: Placement) -> str:
    where = placement.hardware_class, placement.capacity_type
    return placement_id(pool.key, *where, placement.resources, placement.nodes_per_replica)


def _backend(pool: InferencePool, placement: Placement, hardware: HardwareClass) -> Backend:
    label = _placement_id(pool, placement)
    name = f"{pool.metadata.name}-{label}"
    return Backend(name, label, speaks_grpc(hardware), placement.traffic_percent, placement.replicas)


def _workload(pool: InferencePool, placement: Placement, hardware: HardwareClass, settings: RenderSettings) -> Manifest:
    identity = {
        POOL_LABEL: pool.metadata.name,
        PLACEMENT_LABEL: _placement_id(pool, placement),
    }
    where = {
        HARDWARE_CLASS_LABEL: placement.hardware_class,
        CAPACITY_TYPE_LABEL: placement.capacity_type.value,
        QUANTIZATION_LABEL: placement.quantization.value,
    }
    given = pool.spec.worker
    user_labels = (given.labels if given else None) or {}
    user_annotations = (given.annotations if given else None) or {}
    pod_metadata: Manifest = {
        "labels": {**user_labels, MANAGED_BY_LABEL: MANAGED_BY, **identity, **where, TRAFFIC_LABEL: "on"}
    }
    if user_annotations:
        pod_metadata["annotations"] = dict(user_annotations)
    template = {"metadata": pod_metadata, "spec": pod_spec(pool, placement, hardware, settings, identity)}
    metadata = _metadata(pool, f"{pool.metadata.name}-{identity[PLACEMENT_LABEL]}", {**identity, **where})
    if placement.nodes_per_replica > 1:
        out = leader_worker_set(metadata, placement, hardware, template, identity)
        template = out["spec"]["leaderWorkerTemplate"]
    else:
        out = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata}
        out["spec"] = {
            "replicas": placement.replicas,
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": 1800,  # a large model may load for a quarter of an hour
            "selector": {"matchLabels": identity},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": template,
        }
    metadata["annotations"] = {TEMPLATE_HASH_ANNOTATION: _hash(template)}
    return out


def _ports(*, headless: bool) -> list[Manifest]:
    grpc = {
        "name": "grpc",
        "port": GRPC_PORT,
        "targetPort": "grpc",
        "protocol": "TCP",
        "appProtocol": "kubernetes.io/h2c",
    }
    http = {"name": "http", "port": HTTP_PORT, "targetPort": "http", "protocol": "TCP", "appProtocol": "http"}
    return [grpc] if headless else [http, grpc]


def _traffic_selector(pool: InferencePool) -> dict[str, str]:
    return {POOL_LABEL: pool.metadata.name, TRAFFIC_LABEL: "on"}


def _service(pool: InferencePool) -> Manifest:
    """For HTTP clients."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(pool, pool.metadata.name),
        "spec": {"type": "ClusterIP", "selector": _traffic_selector(pool), "ports": _ports(headless=False)},
    }


def _headless_service(pool: InferencePool) -> Manifest:
    """For gRPC clients, which balance over the workers' addresses themselves."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(pool, f"{pool.metadata.name}-headless"),
        "spec": {"clusterIP": "None", "selector": _traffic_selector(pool), "ports": _ports(headless=True)},
    }


def activation_slice(pool: InferencePool, address: str, ports: Mapping[str, int]) -> Manifest:
    """Our own endpoint of the pool's Service: `address` takes its clients in while no worker does.

    `ports`: by name of the Service's port.  Kubernetes' own controller leaves slices of other managers alone.
    """
    manifest: Manifest = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": _metadata(
            pool,
            f"{pool.metadata.name}-activator",
            {"kubernetes.io/service-name": pool.metadata.name, "endpointslice.kubernetes.io/managed-by": FIELD_MANAGER},
        ),
        "addressType": "IPv6" if ":" in address else "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        "ports": [
            {"name": port["name"], "port": ports[port["name"]], "protocol": "TCP", "appProtocol": port["appProtocol"]}
            for port in _ports(headless=False)
        ],
    }
    manifest["metadata"]["annotations"] = {RENDER_HASH_ANNOTATION: render_hash(manifest)}
    return manifest


def _disruption_budget(pool: InferencePool) -> Manifest:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(pool, pool.metadata.name),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": {POOL_LABEL: pool.metadata.name}},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
