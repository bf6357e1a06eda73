"""Which hardware classes have no node, and none that could come?  A misspelt selector looks like that."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from berth_operator.api import Capacity, CapacityType, HardwareClass
from berth_operator.api.meta import Toleration
from berth_operator.catalog.nodepools import CAPACITY_TYPE, NodePool, read_node_pool
from berth_operator.catalog.sanity import NO_NODE, Fault

_PASSING_TAINTS: Final = (
    "node.kubernetes.io/",
    "node.cloudprovider.kubernetes.io/",
    "karpenter.sh/",
    "aws-node-termination-handler/",
    "ToBeDeletedByClusterAutoscaler",
    "DeletionCandidateOfClusterAutoscaler",
    "cloud.google.com/impending-node-termination",
    "remediator.kubernetes.azure.com/",
)
"""Taints of nodes that come, go or are ill: such a node is one that cannot be had, not one that is forbidden."""
FROM_ZERO_ANNOTATION: Final = "berth.dev/scales-from-zero"
"""`true` on a class whose nodes an autoscaler makes that we cannot see: no node need be there."""

Taints = Sequence[Mapping[str, Any]]
"""Of one node, as its spec has them."""


@dataclass(frozen=True, slots=True)
class NodesThere:
    """What is known by class and capacity type; absent where it is not known."""

    present: Mapping[tuple[str, CapacityType], bool] = field(default_factory=dict)
    """It has a node."""
    possible: Mapping[tuple[str, CapacityType], bool] = field(default_factory=dict)
    """It has a node or could get one."""
    tolerated: Mapping[tuple[str, CapacityType], bool] = field(default_factory=dict)
    """A node of it has no taint but such as its capacity tolerates."""
    asking: bool = False
    """What is absent will be known soon."""

    def of(self, names: Container[str]) -> "NodesThere":
        """What is known of these classes."""

        def only(known: Mapping[tuple[str, CapacityType], bool]) -> dict[tuple[str, CapacityType], bool]:
            return {where: value for where, value in known.items() if where[0] in names}

        return NodesThere(only(self.present), only(self.possible), only(self.tolerated), self.asking)


def nodes_there(
    classes: Iterable[HardwareClass],
    taints_of: Callable[[Capacity], Sequence[Taints]],
    node_pools: Sequence[Mapping[str, Any]],
) -> NodesThere:
    """What is there and what could come, by capacity.  `taints_of`: of each node that has a capacity's labels."""
    pools = [read_node_pool(item) for item in node_pools]
    present, possible, tolerated = {}, {}, {}
    for hardware in classes:
        for capacity in hardware.spec.capacity:
            where, nodes = (hardware.metadata.name, capacity.type), taints_of(capacity)
            present[where] = bool(nodes)
            possible[where] = (
                bool(nodes) or _scales_from_zero(hardware) or any(_may_make(pool, capacity) for pool in pools)
            )
            if nodes:
                tolerated[where] = any(tolerates(capacity.tolerations or (), taints) for taints in nodes)
    return NodesThere(present, possible, tolerated, asking=True)


def tolerates(tolerations: Sequence[Toleration], taints: Taints) -> bool:
    """Whether all taints are tolerated that keep pods off a node for good."""
    return all(any(_matches(toleration, taint) for toleration in tolerations) for taint in filter(keeps_off, taints))


def keeps_off(taint: Mapping[str, Any]) -> bool:
    """Whether a taint keeps pods off a node for good."""
    return taint.get("effect") != "PreferNoSchedule" and not taint["key"].startswith(_PASSING_TAINTS)


def _matches(toleration: Toleration, taint: Mapping[str, Any]) -> bool:
    """As Kubernetes' `ToleratesTaint`: no key means every key, no effect every effect."""
    if toleration.effect and toleration.effect != taint.get("effect"):
        return False
    if toleration.key and toleration.key != taint["key"]:
        return False
    return toleration.operator == "Exists" or (toleration.value or "") == (taint.get("value") or "")


def _scales_from_zero(hardware: HardwareClass) -> bool:
    return hardware.metadata.annotations.get(FROM_ZERO_ANNOTATION) == "true"


def among(nodes: Iterable[Mapping[str, Any]]) -> Callable[[Capacity], bool]:
    """Whether one of these nodes has the labels that a capacity selects."""
    labels = [node["metadata"].get("labels") or {} for node in nodes]
    return lambda capacity: any((capacity.selector or {}).items() <= found.items() for found in labels)


def unmatched(
    classes: Iterable[HardwareClass], has_node: Callable[[Capacity], bool], node_pools: Sequence[Mapping[str, Any]]
) -> Iterator[Fault]:
    """Classes none of whose capacities has a node or could get one from a Karpenter NodePool."""
    pools = [read_node_pool(item) for item in node_pools]
    for hardware in classes:
        wanted = [c for c in hardware.spec.capacity if c.max_nodes != 0]
        if _scales_from_zero(hardware) or not wanted:
            continue
        if any(has_node(c) or any(_may_make(pool, c) for pool in pools) for c in wanted):
            continue
        asked = "; ".join(_shown(c) for c in wanted)
        yield Fault(
            "HardwareClass",
            hardware.metadata.name,
            hardware.metadata.name,
            NO_NODE,
            "spec.capacity",
            f"no node has these labels and no Karpenter NodePool may make one: {asked}. Correct the selector"
            f" (`berth hardware discover` proposes some), or annotate the class {FROM_ZERO_ANNOTATION}=true where"
            " another autoscaler makes its nodes",
        )


def _may_make(pool: NodePool, capacity: Capacity) -> bool:
    """Whether nothing that the NodePool says forbids a node with these labels."""
    for key, value in (capacity.selector or {}).items():
        if key == "karpenter.sh/nodepool":
            possible = value == pool.name
        elif key == CAPACITY_TYPE:
            possible = pool.allows_capacity_type(value)
        else:
            asked = [r for r in pool.requirements if r.key == key]
            possible = all(r.holds(value) for r in asked) if asked else key in pool.labels or _wellknown(key)
        if not possible:
            return False
    return True


def _wellknown(key: str) -> bool:
    """Labels that every node gets from its cloud: what a NodePool leaves open, it may make."""
    clouds = ("karpenter.k8s.aws/", "eks.amazonaws.com/instance-")
    return key.startswith(("node.kubernetes.io/", "kubernetes.io/", "topology.kubernetes.io/", *clouds))


def _shown(capacity: Capacity) -> str:
    labels = ", ".join(f"{key}={value}" for key, value in sorted((capacity.selector or {}).items()))
    return f"{capacity.type.value} {labels or '(any node)'}"
