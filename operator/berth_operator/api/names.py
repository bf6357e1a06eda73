"""What are our objects, labels and annotations called?  One place, because names are a contract."""

from typing import Final

GROUP: Final = "berth.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = "berth.dev/v1alpha1"

LABEL_SYNTAX: Final = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
"""Of a label's value that is not empty, and of keys of labels and annotations behind their prefix:
https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set"""

POOL_LABEL: Final = "berth.dev/pool"
"""Pool name, on every child.  With PLACEMENT_LABEL it is all that a Deployment selects."""
PLACEMENT_LABEL: Final = "berth.dev/placement"
"""Hash of pool, hardware class, capacity type and a replica's share of a node."""
TRAFFIC_LABEL: Final = "berth.dev/traffic"
"""`on` while a worker may be sent requests.  Only Services select it, so that traffic can be taken
from one worker without its Deployment losing sight of it."""
HARDWARE_CLASS_LABEL: Final = "berth.dev/hardware-class"
CAPACITY_TYPE_LABEL: Final = "berth.dev/capacity-type"
QUANTIZATION_LABEL: Final = "berth.dev/quantization"
"""What a placement serves (Int8, Int4 or BF16), so that a pool of quantization Any keeps it."""
MANAGED_BY_LABEL: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "berth"
RENDER_HASH_ANNOTATION: Final = "berth.dev/render-hash"
"""Hash of the whole rendered child: differs means apply."""
SURGE_ANNOTATION: Final = "berth.dev/surge"
"""On a Deployment: how many of its replicas stand in for workers whose nodes are going away."""
NOTICED_ANNOTATION: Final = "berth.dev/noticed-at"
"""On a worker that goes on serving although its node is going away: when that was first seen."""
TEMPLATE_HASH_ANNOTATION: Final = "berth.dev/template-hash"
"""Hash of a Deployment's pod template: differs means that applying replaces its workers."""
DELETION_COST_ANNOTATION: Final = "controller.kubernetes.io/pod-deletion-cost"
"""Kubernetes' own: of pods that are alike, a Deployment that shrinks ends the cheapest."""
FIELD_MANAGER: Final = "berth-operator"

ZONE_LABEL: Final = "topology.kubernetes.io/zone"
"""Kubernetes' own, on nodes."""

EMBEDDED_MODEL: Final = "smollm2-135m-instruct"
"""The model that the worker image carries (SmolLM2-135M-Instruct, Apache-2.0): needs no `spec.model.source`."""

# Kinds that others define, `Kind.group`, which we make where they are served and the chart allows it.
HTTP_ROUTE: Final = "HTTPRoute.gateway.networking.k8s.io"
GRPC_ROUTE: Final = "GRPCRoute.gateway.networking.k8s.io"
INFERENCE_EXTENSION_POOL: Final = "InferencePool.inference.networking.k8s.io"
INFERENCE_OBJECTIVE: Final = "InferenceObjective.inference.networking.x-k8s.io"
POD_MONITOR: Final = "PodMonitor.monitoring.coreos.com"
LEADER_WORKER_SET: Final = "LeaderWorkerSet.leaderworkerset.x-k8s.io"
SCALED_OBJECT: Final = "ScaledObject.keda.sh"
