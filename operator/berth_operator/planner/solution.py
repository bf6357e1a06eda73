"""What does solving come to?  Replicas and nodes of each option of each pool, and how good that is."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction

from berth_operator.planner.candidates import Option, Resource
from berth_operator.planner.types import Shortage


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one option of a pool is given."""

    option: Option
    replicas: int
    nodes: int
    """That they take without others."""
    paid: Fraction | None = None
    """Nodes that are paid, where some are shared with other pools; None: all of them."""
    usd: Decimal | None = None
    """USD/h of those, likewise."""
    beside: int = 0
    """Other pools on the nodes that they stand on."""

    @property
    def paid_nodes(self) -> Fraction:
        """Nodes that the pool pays; those of all pools of a class and capacity type add up to whole ones."""
        return Fraction(self.nodes) if self.paid is None else self.paid

    @property
    def usd_per_hour(self) -> Decimal:
        """Of the nodes that the pool pays."""
        return self.nodes * self.option.node_usd_per_hour if self.usd is None else self.usd


@dataclass(frozen=True, slots=True)
class PoolSolution:
    """One pool's part of a solution."""

    assignments: tuple[Assignment, ...]
    """Only those with replicas."""
    unserved: float
    """Share of demand, 0 to 1."""
    objective: float
    """Its part of the cost stage, USD/h."""
    missing_replicas: float = 0.0


@dataclass(frozen=True, slots=True)
class Solution:
    """A plan of several pools, or of those whose component could be solved."""

    pools: Mapping[str, PoolSolution]
    cost: float
    bound: float
    """Lower bound on `cost` given the stages before it."""
    failed: Mapping[str, str]
    """Pools whose component had no solution, with the solver's words."""
    duals: Mapping[Resource, float] = field(default_factory=dict)
    """USD/h that one more node of a limit would save, where the solver knows."""
    pool_bounds: Mapping[str, float] = field(default_factory=dict)
    """By pool, what its part costs at the least with nodes at their duals, where the solver knows."""
    shortages: tuple[Shortage, ...] = ()
    """By falling priority, where a decomposed plan leaves demand unserved."""
    scarce: bool = False
    """Whether pools of a decomposed plan go short of nodes that others have."""


def nodes_used(solution: Mapping[str, PoolSolution]) -> dict[Resource, int]:
    """Nodes of each class and capacity type under all pools."""
    used: dict[Resource, Fraction | int] = {}
    for pool in solution.values():
        for a in pool.assignments:
            resource = a.option.resource
            used[resource] = used.get(resource, 0) + (a.nodes if a.paid is None else a.paid)
    return {resource: math.ceil(nodes) for resource, nodes in used.items()}
