"""At which price of a node would an unused option enter its pool's plan, the other pools' placements as they are?

With V(j) the cheapest rest of the plan beside j nodes of it and C the plan's cost, it enters below

    max over j >= 1 of (C - V(j)) / j,

found by the program itself with one node of the option forced in: Newton's iteration on the price takes a few solves
(Dinkelbach 1967), since the least cost with the option is concave in its price, so that from the second step on the
price only rises, and stops where it is true.

A budget that sheds says nothing about that: what costs less than the plan is within it.  Where the pool goes short, a
plan that serves more may cost as much as the budget allows, so the same is asked with that for C.

Two bounds take no solve.  From below: the option alone, where the rules let it carry all.  From above: V(j) is at least
r (D - what j nodes carry), with r the least price that any other option has for a turn a second.  Where the two meet,
and for small pools they mostly do, they are the answer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from berth_operator.planner.candidates import Option, Resource
from berth_operator.planner.program import (
    Limits,
    PoolProblem,
    Program,
    add_pool,
    cost_terms,
    most_replicas,
    share_nodes,
)
from berth_operator.planner.solution import PoolSolution
from berth_operator.planner.solver import TOLERANCE, SolverError, minimise_roughly

_MOST_STEPS: Final = 12
_MORE: Final = 1e-5
"""Share of the demand that a plan has to serve more than another to be the better one."""
_MOST_NODES: Final = 5000
"""Of branch and bound: one pool never takes as many."""
NEAR: Final = 1e-6
"""USD/h; prices nearer than that are the same."""


@dataclass(frozen=True)
class Entry:
    """What the question takes."""

    problem: PoolProblem
    served: PoolSolution
    """No plan that serves less counts."""
    left: Limits
    """Nodes that other pools leave."""
    room: Mapping[Resource, int]
    """Replicas that stand on other pools' nodes for nothing."""
    cost: float
    """USD/h that a plan with the option must be below."""

    @cached_property
    def demand(self) -> float:
        """Turns a second that the plan serves."""
        return self.problem.demand * (1 - self.served.unserved)

    @cached_property
    def lets_one_carry_all(self) -> bool:
        """Whether one option that is not spot makes a plan by itself, if there are enough nodes of it."""
        return not self._short and self.problem.effective.max_traffic_percent_per_vendor == 100

    @cached_property
    def unbound(self) -> PoolProblem:
        """The pool without its budget."""
        effective = self.problem.effective
        if effective.max_usd_per_hour is None:
            return self.problem
        return replace(self.problem, effective=replace(effective, max_usd_per_hour=None))

    @cached_property
    def ways(self) -> list["Way"]:
        """What a plan with the option has to keep."""
        unserved, missing = self.served.unserved, self.served.missing_replicas
        found = [Way(unserved + TOLERANCE, missing + TOLERANCE, self.cost)]
        if self.may_serve_more:
            budget = float(self.problem.effective.max_usd_per_hour or 0)
            if unserved > TOLERANCE:
                found.append(Way(unserved - min(_MORE, unserved / 2), math.inf, budget))
            if missing > TOLERANCE:
                found.append(Way(unserved + TOLERANCE, missing - 1 + TOLERANCE, budget))
        return found

    @cached_property
    def may_serve_more(self) -> bool:
        """Whether the pool goes short and its budget may be why."""
        effective = self.problem.effective
        return self._short and effective.max_usd_per_hour is not None and effective.on_exceeded == "Shed"

    @property
    def _short(self) -> bool:
        return self.served.unserved > 0 or self.served.missing_replicas > TOLERANCE

    @cached_property
    def cheapest(self) -> list[tuple[float, Option]]:
        """The two options with the least USD/h for a turn a second."""
        return sorted(((self._usd_per_turn(o), o) for o in self.problem.options), key=lambda found: found[0])[:2]

    def _usd_per_turn(self, option: Option) -> float:
        """On full nodes; nothing where some replicas stand for nothing."""
        free = self.room.get(option.resource, 0) > 0
        return 0.0 if free else float(option.node_usd_per_hour) / _turns_per_node(option)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to be the better plan."""

    unserved: float
    """Share of the demand, at most."""
    missing: float
    """Replicas to the floor, at most."""
    cost: float
    """USD/h, below."""


def break_even(entry: Entry, option: Option) -> float | None:
    """USD/h of a node below which `option` would enter the pool's plan; None when no price lets it.

    Zero or less: not even free nodes of it would help.
    """
    if most_replicas(entry.unbound, option, entry.left) < 1:
        return None
    least, most = pays_below(entry, option), never_pays_above(entry, option)
    if least is not None and most <= least + NEAR:
        return least
    start = float(option.node_usd_per_hour) if math.isinf(most) else max(most, 0.0)
    return max((p for way in entry.ways if (p := _by_steps(entry, option, way, start)) is not None), default=None)


def _by_steps(entry: Entry, option: Option, way: Way, price: float) -> float | None:
    """Newton's iteration from a price on; None when no price lets it enter that way."""
    for step in range(_MOST_STEPS):
        forced = _cheapest_with(entry, option, price, way)
        if forced is None:
            return None
        rest, nodes = forced
        better = (way.cost - rest) / nodes
        if better <= price + NEAR and (step or price <= 0 or better >= price - NEAR):
            return min(price, better)
        price = max(better, 0.0)
    return price


def pays_below(entry: Entry, option: Option) -> float | None:
    """A price below which it enters for sure, since it could carry all alone; None where rules may not let it."""
    problem = entry.problem
    if option.spot or not entry.lets_one_carry_all or entry.room.get(option.resource, 0) > 0:
        return None
    alone = max(1, math.ceil(problem.demand / option.capacity.turns_per_second - 1e-9), problem.effective.min_replicas)
    if alone > most_replicas(entry.unbound, option, entry.left):
        return None
    return entry.cost / option.nodes_for(alone)


def never_pays_above(entry: Entry, option: Option) -> float:
    """A price above which no plan with it is cheaper, whatever the rules are.  Infinite where nodes beside others'
    replicas are free, and where it may serve more."""
    if entry.room.get(option.resource, 0) or entry.may_serve_more:
        return math.inf
    demand, span = entry.demand, option.nodes_per_replica
    each, carried = _turns_per_node(option) * span, demand
    if option.spot:
        carried = min(1.0, entry.problem.effective.spot_max_traffic_percent / 100) * demand
    kink = carried / each
    counts = {1, max(1, math.floor(kink)), max(1, math.ceil(kink - 1e-9))}
    rest = next((usd for usd, other in entry.cheapest if other is not option), None)
    if rest is None:  # with nobody else, it carries all or there is no plan
        return entry.cost / (max(counts) * span)
    return max([(entry.cost - rest * (demand - min(n * each, carried))) / (n * span) for n in counts])


def _turns_per_node(option: Option) -> float:
    return option.capacity.turns_per_second * option.replicas_per_node / option.nodes_per_replica


def _cheapest_with(entry: Entry, option: Option, price: float, way: Way) -> tuple[float, int] | None:
    """(USD/h of the other nodes, nodes of `option`) in the cheapest plan that uses it at `price` and keeps `way`."""
    program, problem = Program(), entry.unbound
    columns = add_pool(program, problem, entry.left, entry.room)
    share_nodes(program, [problem], [columns], entry.left)
    k = problem.options.index(option)
    program.lower[columns.nodes[k]] = 1.0
    program.upper[columns.unserved] = way.unserved
    if columns.missing is not None:
        program.upper[columns.missing] = min(program.upper[columns.missing], way.missing)
    terms = cost_terms(problem, columns)
    terms[columns.nodes[k]] += price - float(option.node_usd_per_hour)
    try:
        point = minimise_roughly(program, terms, 0.0, _MOST_NODES)
    except SolverError:
        return None
    nodes = round(point.values[columns.nodes[k]])
    others = [(round(point.values[columns.nodes[j]]), o) for j, o in enumerate(problem.options) if j != k]
    return float(sum(n * o.node_usd_per_hour for n, o in others)), nodes
