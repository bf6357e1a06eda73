"""Which cluster is the operator timed on?  Pools, hardware classes, simulated nodes and pods that are none of ours.

The pools and classes are those of the planner's benchmark (`planner_fleet`) at a tenth of their demand, so that a
thousand pools take some two thousand workers.  There are as many nodes of each class as a plan without limits takes and
half as many again, spread to the number wanted; each class is limited to its nodes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from decimal import Decimal
from typing import Any

from berth_operator.api import HardwareClass, InferencePool, ServingProfile
from berth_operator.planner import plan
from devcluster import SimulatedNodePool
from planner_fleet import fleet

Manifest = dict[str, Any]
DEMAND = Decimal("0.1")
NAMESPACES = 17
FOREIGN_NAMESPACES = 50
_TYPES = {"OnDemand": "on-demand", "Spot": "spot"}


class OperatorFleet:
    """Manifests of a fleet of `pools` pools on `nodes` nodes."""

    def __init__(self, pools: int, nodes: int) -> None:
        snapshot = fleet(pools)
        small = tuple(_with_demand(p, DEMAND) for p in snapshot.pools)
        free = tuple(_with_limits(c, None) for c in snapshot.hardware_classes)
        made = plan(replace(snapshot, pools=small, hardware_classes=free, running=()))
        used = Counter(
            {
                key: sum(p.nodes for one in made.pools.values() for p in one.placements if _key(p) == key)
                for key in {_key(p) for one in made.pools.values() for p in one.placements}
            }
        )
        wanted = {
            (c.metadata.name, x.type.value): used[c.metadata.name, x.type.value] * 1.5 + 2
            for c in free
            for x in c.spec.capacity
        }
        scale = max(1.0, nodes / sum(wanted.values()))
        self.nodes = {key: int(count * scale) for key, count in wanted.items()}
        self.classes = [_with_limits(c, self.nodes) for c in snapshot.hardware_classes]
        self.profiles: tuple[ServingProfile, ...] = snapshot.serving_profiles
        self._pools = small

    def pools(self) -> list[Manifest]:
        """As a user would write them."""
        return [_manifest("InferencePool", p) for p in self._pools]

    def cluster_objects(self) -> list[tuple[str, Manifest]]:
        """(plural, object) of classes and profiles."""
        found = [("hardwareclasses", _manifest("HardwareClass", c)) for c in self.classes]
        return found + [("servingprofiles", _manifest("ServingProfile", p)) for p in self.profiles]

    def node_manifests(self) -> list[Manifest]:
        """One object a simulated node."""
        out = []
        for hardware in self.classes:
            spec = hardware.spec
            for kind in ("OnDemand", "Spot"):
                pool = SimulatedNodePool(
                    f"{hardware.metadata.name}-{kind.lower()}",
                    self.nodes[hardware.metadata.name, kind],
                    hardware.metadata.name,
                    "arm64" if spec.architecture == "arm64" else "amd64",
                    spec.cpus,
                    f"{max(int(spec.memory_gib), 64)}Gi",
                    capacity_type="spot" if kind == "Spot" else "on-demand",
                    zones=("eu-west-1a", "eu-west-1b"),
                    gpus=spec.accelerators.count if spec.accelerators else 0,
                    gpu_resource=spec.accelerators.resource if spec.accelerators else "nvidia.com/gpu",
                )
                out += pool.manifests()
        return out

    def prices(self) -> dict[tuple[str, str], Decimal]:
        """USD/h of each class and capacity type, as the class has it."""
        return {(c.metadata.name, x.type.value): x.usd_per_hour for c in self.classes for x in c.spec.capacity}


def foreign_pod(number: int) -> Manifest:
    """A pod that is none of ours, as an API server sees it: no scheduler takes it, and no kubelet."""
    container = {
        "name": "main",
        "image": "registry.example/some/service:1.2.3",
        "resources": {"requests": {"cpu": "1"}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"other-{number:05d}",
            "namespace": f"others-{number % FOREIGN_NAMESPACES}",
            "labels": {"app.kubernetes.io/name": "other", "app.kubernetes.io/managed-by": "helm"},
        },
        "spec": {"schedulerName": "nobody", "containers": [container]},
    }


def namespaces() -> list[Manifest]:
    """Of the pools and of the foreign pods."""
    names = [f"team-{n}" for n in range(NAMESPACES)] + [f"others-{n}" for n in range(FOREIGN_NAMESPACES)]
    return [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in names]


def _key(placement: Any) -> tuple[str, str]:
    return placement.hardware_class, placement.capacity_type.value


def _with_demand(pool: InferencePool, times: Decimal) -> InferencePool:
    body = pool.to_api()
    demand = body["spec"]["workload"]["demand"]
    demand["requestsPerSecond"] = f"{Decimal(demand['requestsPerSecond']) * times:.3f}"
    body.pop("status", None)
    return InferencePool.model_validate(body)


def _with_limits(hardware: HardwareClass, limits: dict[tuple[str, str], int] | None) -> HardwareClass:
    body = hardware.to_api()
    name = hardware.metadata.name
    for capacity in body["spec"]["capacity"]:
        capacity.pop("maxNodes", None)
        kind = capacity["type"]
        capacity["selector"] = {
            "node.kubernetes.io/instance-type": name,
            "karpenter.sh/capacity-type": _TYPES[kind],
        }
        if limits is not None:
            capacity["maxNodes"] = limits[name, kind]
    return HardwareClass.model_validate(body)


def _manifest(kind: str, item: Any) -> Manifest:
    body = item.to_api()
    metadata = {k: v for k, v in body["metadata"].items() if k in ("name", "namespace")}
    return {"apiVersion": "berth.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": body["spec"]}
