"""Which nodes may a Karpenter NodePool make?  Its requirements, limits and taints, as far as they tell kinds apart.

Karpenter: `spec.template.spec.requirements` are label requirements that all must hold; a label that is not mentioned
may have any value; `spec.limits` bound the sum over its nodes.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

CAPACITY_TYPE: Final = "karpenter.sh/capacity-type"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One label requirement; operators as in Kubernetes' node selectors."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def holds(self, value: str | None) -> bool:
        """Whether a node whose label has this value (None: has no such label) meets it.

        An operator that we do not know holds for nothing: proposing too little is mended more easily than too much.
        """
        match self.operator:
            case "In":
                return value in self.values
            case "NotIn":
                return value not in self.values
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None
            case "Gt" | "Lt" | "Gte" | "Lte":
                return value is not None and self._compares(value)
        return False

    def _compares(self, value: str) -> bool:
        try:
            mine, bound = float(value), float(self.values[0])
        except (ValueError, IndexError):
            return False
        return {"Gt": mine > bound, "Lt": mine < bound, "Gte": mine >= bound, "Lte": mine <= bound}[self.operator]


@dataclass(frozen=True, slots=True)
class NodePool:
    """What matters of a NodePool."""

    name: str
    requirements: tuple[Requirement, ...]
    limits: Mapping[str, str]
    taints: tuple[Mapping[str, Any], ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    """That it gives its nodes; each is a requirement, too."""

    def allows(self, labels: Mapping[str, str]) -> bool:
        """Whether it may make nodes with these labels; requirements on labels not among them are left to Karpenter."""
        return all(r.holds(labels.get(r.key)) for r in self.requirements if r.key in labels or r.key in _TELLING)

    def allows_capacity_type(self, word: str) -> bool:
        """Whether it may make `on-demand`, `spot` or `reserved` nodes; on demand alone where it does not say."""
        asked = [r for r in self.requirements if r.key == CAPACITY_TYPE]
        return all(r.holds(word) for r in asked) if asked else word == "on-demand"

    def values_of(self, key: str) -> tuple[str, ...]:
        """The values of a label that its nodes may have, where it lists them; nothing where it does not."""
        listed = [r.values for r in self.requirements if r.key == key and r.operator == "In"]
        allowed = [r for r in self.requirements if r.key == key]
        return tuple(v for v in listed[0] if all(r.holds(v) for r in allowed)) if listed else ()

    def most_nodes(self, cpus: int) -> int | None:
        """Nodes of so many vCPUs within its limits; None where nothing bounds them."""
        bounds = []
        if "cpu" in self.limits:
            bounds.append(math.floor(_cores(self.limits["cpu"]) / cpus))
        if "nodes" in self.limits:
            bounds.append(math.floor(_cores(self.limits["nodes"])))
        return min(bounds, default=None)


_TELLING: Final = frozenset(
    {
        "karpenter.k8s.aws/instance-gpu-name",
        "karpenter.k8s.aws/instance-gpu-manufacturer",
        "karpenter.k8s.aws/instance-gpu-count",
    }
)
"""Labels that a node without GPUs does not have at all."""


def read_node_pool(item: Mapping[str, Any]) -> NodePool:
    """A `karpenter.sh/v1` NodePool as the API server has it."""
    spec = item.get("spec") or {}
    template = spec.get("template") or {}
    node = template.get("spec") or {}
    own = (template.get("metadata") or {}).get("labels") or {}
    requirements = [
        Requirement(r["key"], r["operator"], tuple(map(str, r.get("values") or ())))
        for r in node.get("requirements") or ()
    ]
    requirements += [Requirement(key, "In", (value,)) for key, value in own.items()]
    return NodePool(
        name=item["metadata"]["name"],
        requirements=tuple(requirements),
        limits={key: str(value) for key, value in (spec.get("limits") or {}).items()},
        taints=tuple(node.get("taints") or ()),
        labels=own,
    )


def _cores(quantity: str) -> float:
    """A Kubernetes quantity of cores or of nodes.  One that cannot be read bounds nothing."""
    found = re.fullmatch(r"([0-9.]+)(m|k|M)?", quantity)
    if not found:
        return math.inf
    return float(found[1]) * {"m": 0.001, "k": 1000.0, "M": 1e6, None: 1.0}[found[2]]
