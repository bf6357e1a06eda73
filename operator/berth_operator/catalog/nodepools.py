"""Which nodes may a Karpenter NodePool make?  Its requirements, limits and taints, as far as they tell kinds apart.

Karpenter: `spec.template.spec.requirements` are label requirements that all must hold; a label that is not mentioned
may have any value; `spec.limits` bound the sum over its nodes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from berth_operator.catalog.resource_quantity import bytes_of, cores_of

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
    cloud: str = ""
    """API group of its node class, such as `karpenter.k8s.aws`; empty where it does not say."""

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

    def most_nodes(self, takes: Mapping[str, float]) -> int | None:
        """Nodes within its limits, where each takes so much of each resource; None where nothing bounds them."""
        bounds = [_amount(self.limits[name]) / each for name, each in takes.items() if name in self.limits]
        return min((math.floor(bound) for bound in bounds if math.isfinite(bound)), default=None)


_TELLING: Final = frozenset(
    f"{group}/instance-gpu-{what}"
    for group in ("karpenter.k8s.aws", "eks.amazonaws.com")
    for what in ("name", "manufacturer", "count")
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
        cloud=(node.get("nodeClassRef") or {}).get("group") or "",
    )


def _amount(quantity: str) -> float:
    """A Kubernetes quantity of cores, nodes, devices or bytes.  One that cannot be read bounds nothing."""
    try:
        return cores_of(quantity) if quantity.endswith("m") else bytes_of(quantity)
    except ValueError:
        return math.inf
