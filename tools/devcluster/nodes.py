"""What does a simulated node look like to Kubernetes?

A pool here is a number of equal nodes, labelled as a cloud and its autoscaler would label them; KWOK plays their
kubelet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

SIMULATED_LABEL = "berth.dev/simulated"
POOL_LABEL = "berth.dev/simulated-pool"
KWOK_SELECTOR = "kwok.x-k8s.io/node=fake"
KWOK_CONFIGURATION = Path(__file__).with_name("kwok.yaml")

Manifest = dict[str, Any]

_TAINT = re.compile(r"[^=:]+(=[^=:]*)?:(NoSchedule|PreferNoSchedule|NoExecute)")


@dataclass(frozen=True)
class SimulatedNodePool:
    """``count`` equal nodes, spread over ``zones`` in turn. Capacity is allocatable in full: no system reserve."""

    name: str
    count: int
    instance_type: str
    architecture: Literal["amd64", "arm64"]
    cpu: int | str
    memory: str
    capacity_type: Literal["on-demand", "spot", "reserved"] = "on-demand"
    zones: Sequence[str] = ("eu-west-1a",)
    gpus: int = 0
    gpu_resource: str = "nvidia.com/gpu"
    taints: Sequence[str] = ()  # as kubectl writes them: key=value:Effect
    labels: Mapping[str, str] = field(default_factory=dict)
    pods: int = 110

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"SimulatedNodePool {self.name}: count is {self.count}, expected 0 or more")
        if isinstance(self.zones, str) or not self.zones:
            raise ValueError(f"SimulatedNodePool {self.name}: zones is {self.zones!r}, expected a list of zone names")
        for taint in self.taints:
            if not _TAINT.fullmatch(taint):
                raise ValueError(
                    f"SimulatedNodePool {self.name}: taint {taint!r}, expected key=value:NoSchedule, "
                    "key=value:PreferNoSchedule or key=value:NoExecute"
                )

    def manifests(self) -> list[Manifest]:
        """The Node objects."""
        return [self._manifest(index) for index in range(self.count)]

    def _manifest(self, index: int) -> Manifest:
        name = f"{self.name}-{index}"
        zone = self.zones[index % len(self.zones)]
        capacity = {"cpu": str(self.cpu), "memory": self.memory, "ephemeral-storage": "200Gi", "pods": str(self.pods)}
        if self.gpus:
            capacity[self.gpu_resource] = str(self.gpus)
        key, _, value = KWOK_SELECTOR.partition("=")
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": name,
                "annotations": {key: value},
                "labels": {
                    "kubernetes.io/arch": self.architecture,
                    "kubernetes.io/os": "linux",
                    "kubernetes.io/hostname": name,
                    "node.kubernetes.io/instance-type": self.instance_type,
                    "topology.kubernetes.io/region": re.sub(r"(?<=\d)[a-z]$", "", zone),
                    "topology.kubernetes.io/zone": zone,
                    "karpenter.sh/capacity-type": self.capacity_type,
                    SIMULATED_LABEL: "true",
                    POOL_LABEL: self.name,
                    **self.labels,
                },
            },
            "spec": {"taints": [_taint(text) for text in self.taints]},
            "status": {
                "capacity": capacity,
                "allocatable": capacity,
                "nodeInfo": {"architecture": self.architecture, "operatingSystem": "linux"},
            },
        }


def _taint(text: str) -> dict[str, str]:
    rest, _, effect = text.rpartition(":")
    key, _, value = rest.partition("=")
    return {"key": key, "value": value, "effect": effect} if value else {"key": key, "effect": effect}
