"""What does a placement look like whose replicas span nodes?  A LeaderWorkerSet: groups of a leader and its workers.

https://lws.sigs.k8s.io: a group is one replica; its leader alone has ports and probes, so that it is ready once vLLM is
on all nodes, and Services select leaders alone.  A group that loses a pod or restarts a container is made anew as a
whole, because a pipeline without one of its stages serves nothing.
"""

from collections.abc import Mapping
from typing import Any, Final

from berth_operator.api import HardwareClass, RuntimeName
from berth_operator.api.names import LEADER_WORKER_SET, TRAFFIC_LABEL, ZONE_LABEL
from berth_operator.planner import Placement

Manifest = dict[str, Any]

_GROUP_INDEX: Final = "leaderworkerset.sigs.k8s.io/group-index"
_WORKER_INDEX: Final = "leaderworkerset.sigs.k8s.io/worker-index"

_OF_THE_LEADER: Final = ("ports", "lifecycle", "startupProbe", "readinessProbe", "livenessProbe")


def leader_worker_set(
    metadata: Manifest, placement: Placement, hardware: HardwareClass, template: Manifest, identity: Mapping[str, str]
) -> Manifest:
    """The object of a placement.

    `template`: the pod template of a leader.  `identity`: labels that only pods of the placement carry.
    """
    kind, _, group = LEADER_WORKER_SET.partition(".")
    return {
        "apiVersion": f"{group}/v1",
        "kind": kind,
        "metadata": metadata,
        "spec": {
            "replicas": placement.replicas,
            "startupPolicy": "LeaderCreated",
            "networkConfig": {"subdomainPolicy": "UniquePerReplica"},  # else its Service takes the placement's name
            "rolloutStrategy": {
                "type": "RollingUpdate",
                "rollingUpdateConfiguration": {"partition": 0, "maxUnavailable": 0, "maxSurge": 1},
            },
            "leaderWorkerTemplate": {
                "size": placement.nodes_per_replica,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": _leader(template, identity),
                "workerTemplate": _worker(template, hardware, identity),
            },
        },
    }


def _leader(template: Manifest, identity: Mapping[str, str]) -> Manifest:
    """Leaders are spread over zones; each draws its workers to its own."""
    spread = [
        constraint | {"labelSelector": {"matchLabels": {**identity, _WORKER_INDEX: "0"}}}
        for constraint in template["spec"]["topologySpreadConstraints"]
    ]
    out: Manifest = template | {"spec": template["spec"] | {"topologySpreadConstraints": spread}}
    return out


def _worker(template: Manifest, hardware: HardwareClass, identity: Mapping[str, str]) -> Manifest:
    """The other pods of a group: no traffic, no ports, no probes, in their leader's zone if they can be; without fail
    where the plan counts on losing one zone at a time."""
    metadata: Manifest = dict(template["metadata"])
    metadata["labels"] = {key: value for key, value in metadata["labels"].items() if key != TRAFFIC_LABEL}
    spec = {key: value for key, value in template["spec"].items() if key != "topologySpreadConstraints"}
    near = {
        "topologyKey": ZONE_LABEL,
        "labelSelector": {"matchLabels": {**identity, _WORKER_INDEX: "0"}},
        "matchLabelKeys": [_GROUP_INDEX],
    }
    if any(c["whenUnsatisfiable"] == "DoNotSchedule" for c in template["spec"]["topologySpreadConstraints"]):
        affinity: Manifest = {"requiredDuringSchedulingIgnoredDuringExecution": [near]}
    else:
        affinity = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": near}]}
    spec["affinity"] = spec["affinity"] | {"podAffinity": affinity}
    (container,) = spec["containers"]
    container = {key: value for key, value in container.items() if key not in _OF_THE_LEADER}
    if hardware.spec.runtime.name == RuntimeName.VLLM:
        container["args"] = [*container["args"], "--headless"]
    spec["containers"] = [container]
    return {"metadata": metadata, "spec": spec}


def parallel_args(placement: Placement, hardware: HardwareClass) -> list[str]:
    """How vLLM divides a model over a node's devices, and over the nodes of a replica: tensor parallel within each,
    pipeline parallel over all (https://docs.vllm.ai/en/latest/serving/parallelism_scaling/).

    Names of environment variables are LeaderWorkerSet's, put in by the kubelet.
    """
    nodes, resources = placement.nodes_per_replica, placement.resources
    there = hardware.spec.accelerators.count if hardware.spec.accelerators else 1
    devices = there if resources is None else resources.accelerators or 1
    args = [f"--tensor-parallel-size={devices}"] if devices > 1 else []
    if nodes > 1:
        args += [
            f"--pipeline-parallel-size={nodes}",
            f"--nnodes={nodes}",
            "--node-rank=$(LWS_WORKER_INDEX)",
            "--master-addr=$(LWS_LEADER_ADDRESS)",
        ]
    return args
