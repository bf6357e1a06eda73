"""Which Kubernetes resources do we speak to, and under which path does the API server keep each?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from berth_operator.api.names import GROUP, VERSION

Object = dict[str, Any]
"""A Kubernetes object as JSON data."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource of the Kubernetes API."""

    group: str
    """Empty for the core group."""
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """As objects carry it: `apps/v1`, `v1`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path of the collection or object; without a namespace, of the collection in all namespaces."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts += [self.plural, *([name] if name else []), *([subresource] if subresource else [])]
        return "/" + "/".join(quote(part, safe="") for part in parts)

    @property
    def group_kind(self) -> str:
        """Kind and group, as `berth_operator.api.names` has those of others: `HTTPRoute.gateway.networking.k8s.io`."""
        return f"{self.kind}.{self.group}" if self.group else self.kind

    def __str__(self) -> str:
        """As kubectl names it: `deployments.apps`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


POOLS: Final = Resource(GROUP, VERSION, "inferencepools", "InferencePool")
HARDWARE_CLASSES: Final = Resource(GROUP, VERSION, "hardwareclasses", "HardwareClass", namespaced=False)
SERVING_PROFILES: Final = Resource(GROUP, VERSION, "servingprofiles", "ServingProfile", namespaced=False)
DEPLOYMENTS: Final = Resource("apps", "v1", "deployments", "Deployment")
SERVICES: Final = Resource("", "v1", "services", "Service")
DISRUPTION_BUDGETS: Final = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
PODS: Final = Resource("", "v1", "pods", "Pod")
NAMESPACES: Final = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
NODES: Final = Resource("", "v1", "nodes", "Node", namespaced=False)
EVENTS: Final = Resource("", "v1", "events", "Event")
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases", "Lease")

AUTOSCALERS: Final = Resource("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler")

CHILDREN: Final = (DEPLOYMENTS, SERVICES, DISRUPTION_BUDGETS)
"""What every pool is rendered to."""
ENDPOINT_SLICES: Final = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
"""... and, while it has no worker, one that may sleep."""

LEADER_WORKER_SETS: Final = Resource("leaderworkerset.x-k8s.io", "v1", "leaderworkersets", "LeaderWorkerSet")
WORKLOADS: Final = (DEPLOYMENTS, LEADER_WORKER_SETS)
"""What runs the workers of a placement: one or the other."""
WORKLOAD_KINDS: Final = frozenset(resource.kind for resource in WORKLOADS)
TEMPLATE_FIELDS: Final = {DEPLOYMENTS.kind: "template", LEADER_WORKER_SETS.kind: "leaderWorkerTemplate"}
"""By kind, where a workload's spec has its pods' templates."""

_GATEWAY_API: Final = "gateway.networking.k8s.io"
OPTIONAL_CHILDREN: Final[Mapping[str, tuple[Resource, ...]]] = {
    "gateway-api": (
        Resource(_GATEWAY_API, "v1", "httproutes", "HTTPRoute"),
        Resource(_GATEWAY_API, "v1", "grpcroutes", "GRPCRoute"),
    ),
    "inference-extension": (
        Resource("inference.networking.k8s.io", "v1", "inferencepools", "InferencePool"),
        Resource("inference.networking.x-k8s.io", "v1alpha2", "inferenceobjectives", "InferenceObjective"),
    ),
    "pod-monitor": (Resource("monitoring.coreos.com", "v1", "podmonitors", "PodMonitor"),),
    "leader-worker-set": (LEADER_WORKER_SETS,),
    "keda": (Resource("keda.sh", "v1alpha1", "scaledobjects", "ScaledObject"),),
}
"""What a pool is rendered to besides, by the integration that allows it, where the API server serves it."""


def child_resource(manifest: Mapping[str, Any]) -> Resource:
    """The resource of a rendered child.  Raises KeyError for a kind that is no child of a pool."""
    known = [
        *CHILDREN,
        ENDPOINT_SLICES,
        *(resource for resources in OPTIONAL_CHILDREN.values() for resource in resources),
    ]
    for resource in known:
        if manifest["kind"] == resource.kind and manifest["apiVersion"] == resource.api_version:
            return resource
    kinds = ", ".join(resource.kind for resource in known)
    raise KeyError(f"{manifest['apiVersion']} {manifest['kind']} is no child of a pool: expected one of {kinds}")
