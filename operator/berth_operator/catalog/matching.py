"""Which hardware classes have no node, and none that could come?  A misspelt selector looks like that."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from berth_operator.api import Capacity, HardwareClass
from berth_operator.catalog.nodepools import CAPACITY_TYPE, NodePool, read_node_pool
from berth_operator.catalog.sanity import NO_NODE, Fault

FROM_ZERO_ANNOTATION: Final = "berth.dev/scales-from-zero"
"""`true` on a class whose nodes an autoscaler makes that we cannot see: no node need be there."""


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
        if hardware.metadata.annotations.get(FROM_ZERO_ANNOTATION) == "true" or not wanted:
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
    return key.startswith(("node.kubernetes.io/", "kubernetes.io/", "topology.kubernetes.io/", "karpenter.k8s.aws/"))


def _shown(capacity: Capacity) -> str:
    labels = ", ".join(f"{key}={value}" for key, value in sorted((capacity.selector or {}).items()))
    return f"{capacity.type.value} {labels or '(any node)'}"
