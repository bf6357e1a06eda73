"""How does a gateway's traffic find a pool's workers?  A Service a placement, and routes that weigh them.

Gateway API v1: https://gateway-api.sigs.k8s.io/reference/spec/.  Its Inference Extension puts an endpoint picker in the
place of weights: https://gateway-api-inference-extension.sigs.k8s.io.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from berth_operator.api import EndpointPicker, HardwareClass, InferencePool, ParentRef, Routing, RuntimeName
from berth_operator.api.names import (
    GRPC_ROUTE,
    HTTP_ROUTE,
    INFERENCE_EXTENSION_POOL,
    INFERENCE_OBJECTIVE,
    PLACEMENT_LABEL,
    POOL_LABEL,
    TRAFFIC_LABEL,
)
from berth_operator.render.pod import GRPC_PORT, HTTP_PORT

Manifest = dict[str, Any]
Metadata = Callable[..., Manifest]
"""(pool, name, further labels) -> metadata of a child."""

MODEL_HEADER: Final = "X-Gateway-Model-Name"
"""Set from a request's body by body-based routing (Inference Extension): tells pools behind one host name apart."""
_SERVICE: Final = "berth.v1.Generation"
_PICKER_PORT: Final = 9002
"""What the endpoint picker of the Inference Extension's own chart listens on."""
_MOST_BACKENDS: Final = 16
"""Of one rule, by the CRD; the rest would get the least traffic."""


@dataclass(frozen=True, slots=True)
class LiveDeployment:
    """A Deployment of a pool as it runs now."""

    name: str
    placement: str
    """Value of the placement label that its pods carry."""
    hardware_class: str | None
    ready_replicas: int


@dataclass(frozen=True, slots=True)
class Backend:
    """One placement, planned or on its way out, as routes see it."""

    name: str
    """Of its Deployment and its Service."""
    placement: str
    grpc: bool
    """Whether its workers speak gRPC."""
    traffic_percent: int = 0
    """Planned; 0: on its way out."""
    replicas: int = 0
    """Planned."""
    ready_replicas: int = 0


def backends_of(
    planned: Sequence[Backend], live: Sequence[LiveDeployment], classes: Mapping[str, HardwareClass]
) -> list[Backend]:
    """Planned placements with their ready replicas, then those on their way out, in a fixed order."""
    ready = {deployment.name: deployment.ready_replicas for deployment in live}
    names = {backend.name for backend in planned}
    out = [
        Backend(b.name, b.placement, b.grpc, b.traffic_percent, b.replicas, ready.get(b.name, 0))
        for b in sorted(planned, key=lambda b: b.name)
    ]
    for deployment in sorted(live, key=lambda d: d.name):
        if deployment.name not in names:
            grpc = speaks_grpc(classes.get(deployment.hardware_class or ""))
            out.append(Backend(deployment.name, deployment.placement, grpc, 0, 0, deployment.ready_replicas))
    return out


def speaks_grpc(hardware: HardwareClass | None) -> bool:
    """Whether workers of a class serve berth.v1; those of a class that is no longer there might."""
    return hardware is None or hardware.spec.runtime.name == RuntimeName.BERTH


def weights(backends: Sequence[Backend]) -> dict[str, int]:
    """Weight of each backend, by name; those of weight 0 are left out.

    A placement gets the share of its planned traffic that its ready replicas were planned for.  What is missing goes to
    placements on their way out, by their ready replicas, so that a move takes traffic over as fast as it can carry it.
    With nothing ready, the plan's shares stand.
    """
    carried = {b.name: b.traffic_percent * min(1.0, b.ready_replicas / b.replicas) for b in backends if b.replicas > 0}
    out = {name: max(1, round(share)) if share else 0 for name, share in carried.items()}
    missing = sum(b.traffic_percent for b in backends) - sum(out.values())
    leaving = {b.name: b.ready_replicas for b in backends if b.replicas == 0 and b.ready_replicas > 0}
    if missing > 0:
        out |= {name: max(1, round(missing * ready / sum(leaving.values()))) for name, ready in leaving.items()}
    if not any(out.values()):
        out = {b.name: b.traffic_percent for b in backends}
    return {name: weight for name, weight in out.items() if weight > 0}


def routing_children(
    pool: InferencePool, backends: Sequence[Backend], available: Collection[str], metadata: Metadata
) -> list[Manifest]:
    """What `spec.routing` asks for, of the kinds that are `available` (`Kind.group`); Services of placements always."""
    routing = pool.spec.routing
    if routing is None:
        return []
    out: list[Manifest] = []
    picker = routing.endpoint_picker if INFERENCE_EXTENSION_POOL in available else None
    if picker:
        out.append(_inference_pool(pool, picker, metadata))
        if INFERENCE_OBJECTIVE in available:
            out.append(_inference_objective(pool, metadata))
    if not routing.parent_refs:
        return out
    out += [_placement_service(pool, backend, metadata) for backend in backends]
    if HTTP_ROUTE in available:
        backend_refs = (
            [{**_to_inference_pool(pool), "weight": 1}] if picker else _backend_refs(pool, backends, HTTP_PORT)
        )
        out.append(_http_route(pool, routing, backend_refs, metadata))
    if GRPC_ROUTE in available and routing.grpc_hostnames:
        backend_refs = _backend_refs(pool, [b for b in backends if b.grpc], GRPC_PORT)
        out.append(_grpc_route(pool, routing, backend_refs, metadata))
    return out


def _placement_service(pool: InferencePool, backend: Backend, metadata: Metadata) -> Manifest:
    ports = [{"name": "http", "port": HTTP_PORT, "targetPort": "http", "protocol": "TCP", "appProtocol": "http"}]
    if backend.grpc:
        h2c = "kubernetes.io/h2c"
        ports.append({"name": "grpc", "port": GRPC_PORT, "targetPort": "grpc", "protocol": "TCP", "appProtocol": h2c})
    identity = {POOL_LABEL: pool.metadata.name, PLACEMENT_LABEL: backend.placement}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(pool, backend.name, {PLACEMENT_LABEL: backend.placement}),
        "spec": {"type": "ClusterIP", "selector": {**identity, TRAFFIC_LABEL: "on"}, "ports": ports},
    }


def _http_route(pool: InferencePool, routing: Routing, backend_refs: list[Manifest], metadata: Metadata) -> Manifest:
    path = {"path": {"type": "PathPrefix", "value": "/v1"}}  # not /metrics and /readyz
    model = {"type": "Exact", "name": MODEL_HEADER, "value": pool.spec.model.name}
    spec: Manifest = {
        "parentRefs": [_parent(ref) for ref in routing.parent_refs or ()],
        "rules": [{"matches": [{**path, "headers": [model]}, path], "backendRefs": backend_refs}],
    }
    if routing.hostnames:
        spec["hostnames"] = list(routing.hostnames)
    return _of_kind(HTTP_ROUTE, "v1", metadata(pool, pool.metadata.name), spec)


def _grpc_route(pool: InferencePool, routing: Routing, backend_refs: list[Manifest], metadata: Metadata) -> Manifest:
    method = {"type": "Exact", "service": _SERVICE}
    spec = {
        "parentRefs": [_parent(ref) for ref in routing.parent_refs or ()],
        "hostnames": list(routing.grpc_hostnames or ()),
        "rules": [{"matches": [{"method": method}], "backendRefs": backend_refs}],
    }
    return _of_kind(GRPC_ROUTE, "v1", metadata(pool, pool.metadata.name), spec)


def _parent(ref: ParentRef) -> Manifest:
    return {"group": "gateway.networking.k8s.io", "kind": "Gateway", **ref.to_api()}


def _backend_refs(pool: InferencePool, backends: Sequence[Backend], port: int) -> list[Manifest]:
    """By weight; to the pool's own Service where no placement is, so that clients get 503 and not 500."""
    weighted = weights(backends) or {pool.metadata.name: 1}
    kept = sorted(weighted, key=lambda name: (-weighted[name], name))[:_MOST_BACKENDS]
    return [
        {"group": "", "kind": "Service", "name": name, "port": port, "weight": weighted[name]} for name in sorted(kept)
    ]


def _inference_pool(pool: InferencePool, picker: EndpointPicker, metadata: Metadata) -> Manifest:
    spec = {
        "selector": {"matchLabels": {POOL_LABEL: pool.metadata.name, TRAFFIC_LABEL: "on"}},
        "targetPorts": [{"number": HTTP_PORT}],
        "endpointPickerRef": {
            "group": "",
            "kind": "Service",
            "name": picker.name,
            "port": {"number": picker.port or _PICKER_PORT},
            "failureMode": "FailOpen",  # a picker that is down costs the choice of a worker, not the request
        },
    }
    return _of_kind(INFERENCE_EXTENSION_POOL, "v1", metadata(pool, pool.metadata.name), spec)


def _inference_objective(pool: InferencePool, metadata: Metadata) -> Manifest:
    spec = {"priority": pool.spec.priority or 0, "poolRef": _to_inference_pool(pool)}
    return _of_kind(INFERENCE_OBJECTIVE, "v1alpha2", metadata(pool, pool.metadata.name), spec)


def _to_inference_pool(pool: InferencePool) -> Manifest:
    kind, _, group = INFERENCE_EXTENSION_POOL.partition(".")
    return {"group": group, "kind": kind, "name": pool.metadata.name}


def _of_kind(kind: str, version: str, metadata: Manifest, spec: Manifest) -> Manifest:
    name, _, group = kind.partition(".")
    return {"apiVersion": f"{group}/{version}", "kind": name, "metadata": metadata, "spec": spec}
