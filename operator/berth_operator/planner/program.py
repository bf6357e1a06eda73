"""What is the optimisation problem?  One mixed-integer program over pools x (class, capacity type, quantization).

For pool p and option k (demand D_p turns/s, one replica carries L_k):

    x_k  share of the pool's demand sent to k, 0..1      r_k  replicas (integer)
    n_k  nodes (integer; r_k itself where a replica takes a whole node; s_k r_k where it spans s_k)
    u    share of demand unserved                        v    replicas missing to minReplicas

Lexicographic: unserved demand, priority by priority; missing replicas; then cost.  Everything but the limits is soft
through u and v, so that a plan always exists.  Each rule below adds its own rows and can be read alone.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from berth_operator.api import CapacityType, Effective
from berth_operator.planner.candidates import Option, Resource
from berth_operator.planner.zones import steps

INFINITY: Final = math.inf
MOST_REPLICAS: Final = 100_000
"""Of one pool on one option: keeps coefficients within what double precision solves reliably."""
Terms = dict[int, float]
"""Column -> coefficient."""


@dataclass(slots=True)
class Program:
    """Columns with bounds, rows with bounds; the objective comes separately, stage by stage."""

    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    integer: list[bool] = field(default_factory=list)
    rows: list[tuple[float, float, Terms]] = field(default_factory=list)

    def column(self, upper: float = INFINITY, *, integer: bool = False) -> int:
        """A new column from 0 to `upper`; returns its index."""
        self.lower.append(0.0)
        self.upper.append(upper)
        self.integer.append(integer)
        return len(self.lower) - 1

    def row(self, terms: Terms, *, at_least: float = -INFINITY, at_most: float = INFINITY) -> None:
        """A new row over `terms`; one without terms says nothing and is left out."""
        if terms:
            self.rows.append((at_least, at_most, terms))


@dataclass(frozen=True)
class PoolProblem:
    """One pool's part: what it needs and what can serve it."""

    key: str
    effective: Effective
    options: tuple[Option, ...]
    runs: bool = False
    """Whether it runs anything: of plans that serve as much, one that takes that away is the worse."""

    @cached_property
    def demand(self) -> float:
        """Turns per second."""
        return float(self.effective.requests_per_second)


@dataclass(frozen=True, slots=True)
class PoolColumns:
    """Where a pool's variables are; lists by option."""

    traffic: list[int]
    replicas: list[int]
    nodes: list[int]
    unserved: int
    missing: int | None


Limits = Mapping[Resource, int]
"""Nodes that may be used of a class and capacity type, where there is a limit."""


# --- Rules of one pool ----------------------------------------------------------------------------------------------


def add_pool(
    program: Program, problem: PoolProblem, limits: Limits, room: Mapping[Resource, int] | None = None
) -> PoolColumns:
    """Add a pool's columns and all its rules.  `room`: replicas that fit on others' nodes, which then cost nothing."""
    beside = [(room or {}).get(k.resource, 0) if k.shareable else 0 for k in problem.options]
    columns = PoolColumns(
        traffic=[program.column(1.0) for _ in problem.options],
        replicas=[
            program.column(most_replicas(problem, k, limits, more), integer=True)
            for k, more in zip(problem.options, beside, strict=True)
        ],
        nodes=[],
        unserved=program.column(1.0),
        missing=program.column(problem.effective.min_replicas) if problem.effective.min_replicas else None,
    )
    serve_demand(program, columns)
    carry_traffic(program, problem, columns)
    fill_nodes(program, problem, columns, beside)
    keep_min_replicas(program, problem, columns)
    keep_max_replicas(program, problem, columns)
    limit_spot_share(program, problem, columns)
    keep_on_demand_beside_spot(program, problem, columns)
    survive_loss_of_a_spot_class(program, problem, columns)
    survive_loss_of_a_spot_zone(program, problem, columns)
    limit_vendor_share(program, problem, columns)
    keep_budget(program, problem, columns)
    serve_one_quantization(program, problem, columns)
    return columns


def most_replicas(problem: PoolProblem, option: Option, limits: Limits, room: int = 0) -> int:
    """The most replicas of an option that can be of use: all of the demand and every floor, within the limits.

    `room`: replicas that fit beside others' without a node more.
    """
    effective = problem.effective
    alone = max(1, math.ceil(min(problem.demand / option.capacity.turns_per_second, MOST_REPLICAS) - 1e-9))
    most = max(alone, effective.min_replicas, 0 if option.spot else effective.min_on_demand_replicas)
    if option.zones > 1:  # fewer in the fullest zone may take a whole round of them
        most = math.ceil(most / (option.zones * option.replicas_per_node)) * option.zones * option.replicas_per_node
    if effective.max_replicas is not None:
        most = min(most, effective.max_replicas)
    budget = effective.max_usd_per_hour
    if budget is not None and effective.on_exceeded == "Shed" and option.node_usd_per_hour > 0:
        most = min(most, option.replicas_on(int(budget // option.node_usd_per_hour)))
    if option.own_replica_limit is not None:
        most = min(most, option.own_replica_limit)
    limit = limits.get(option.resource)
    if limit is not None:
        most = min(most, option.replicas_on(limit) + room)
    return max(0, most)


def serve_demand(program: Program, columns: PoolColumns) -> None:
    """sum(x) + u = 1."""
    program.row(dict.fromkeys([*columns.traffic, columns.unserved], 1.0), at_least=1.0, at_most=1.0)


def carry_traffic(program: Program, problem: PoolProblem, columns: PoolColumns) -> None:
    """x_k D <= L_k r_k, tightened: x_k <= r_k where one replica could carry more than all."""
    for k, option in enumerate(problem.options):
        needed = max(problem.demand / option.capacity.turns_per_second, 1.0)
        program.row({columns.replicas[k]: 1.0, columns.traffic[k]: -needed}, at_least=0.0)


def fill_nodes(program: Program, problem: PoolProblem, columns: PoolColumns, room: Sequence[int]) -> None:
    """r_k <= m_k n_k + room_k: whole nodes are paid for.  n_k = s_k r_k: and all that a replica spans."""
    for k, option in enumerate(problem.options):
        if option.nodes_per_replica > 1:
            span = float(option.nodes_per_replica)
            node = program.column(span * program.upper[columns.replicas[k]])
            program.row({node: 1.0, columns.replicas[k]: -span}, at_least=0.0, at_most=0.0)
            columns.nodes.append(node)
            continue
        if option.replicas_per_node == 1:
            columns.nodes.append(columns.replicas[k])
            continue
        most = math.ceil(program.upper[columns.replicas[k]] / option.replicas_per_node)
        node = program.column(most, integer=True)
        program.row({node: float(option.replicas_per_node), columns.replicas[k]: -1.0}, at_least=-float(room[k]))
        columns.nodes.append(node)


def keep_min_replicas(program: Program, problem: PoolProblem, columns: PoolColumns) -> None:
    """sum(r) + v >= minReplicas."""
    if columns.missing is not None:
        floor = float(problem.effective.min_replicas)
        program.row(dict.fromkeys([*columns.replicas, columns.missing], 1.0), at_least=floor)


def keep_max_replicas(program: Program, problem: PoolProblem, columns: PoolColumns) -> None:
    """sum(r) <= maxReplicas."""
    if problem.effective.max_replicas is not None:
        program.row(dict.fromkeys(columns.replicas, 1.0), at_most=float(problem.effective.max_replicas))


def limit_spot_share(program: Program, problem: PoolProblem, columns: PoolColumns) -> None:
    """Spot carries at most maxTrafficPercent of the traffic that is served."""
    share = problem.effective.spot_max_traffic_percent / 100
    _limit_share(program, problem, columns, [k.spot for k in problem.options], share)


def keep_on_demand_beside_spot(program: Program, problem: PoolProblem, columns: PoolColumns) -> None:
    """Where spot carries traffic, at least minOnDemandReplicas run on nodes that are not spot.

    The floor backs spot up; a pool that uses none is not held to it.
    """
    floor = problem.effective.min_on_demand_replicas
    spot = [columns.traffic[k] for k, option in enumerate(problem.options) if option.spot]
    if not floor or not spot:
        return
    uses_spot = program.column(1.0, integer=True)
    for x in spot:
        program.row({x: 1.0, uses_spot: -1.0}, at_most=0.0)
    steady = {columns.replicas[k]: 1.0 for k, option in enumerate(problem.options) if not option.spot}
    program.row({**steady, uses_spot: -float(floor)}, at_least=0.0)


def survive_loss_of_a_spot_class(program: Program, problem: PoolProblem, columns: PoolColumns) -> None:
    """Losing any one spot class that is known to be in one zone alone, or of which no zones are known, leaves
    surviveLossPercent of the served traffic on placements that carry it within objectives."""
    share = 1 - problem.effective.survive_loss_percent / 100
    for name in sorted({k.hardware_class for k in problem.options if k.spot and k.zones == 1}):
        chosen = [k.spot and k.hardware_class == name for k in problem.options]
        _limit_share(program, problem, columns, chosen, share)


def survive_loss_of_a_spot_zone(program: Program, problem: PoolProblem, columns: PoolColumns) -> None:
    """Losing any one zone of a spot class that lies in several leaves surviveLossPercent of the served traffic.

    What a placement may carry steps with its nodes (`zones`): one y_i a step, sum(y) = 1, n within the step whose y
    is 1, and x <= a_i sum(x) there, a_i its share.  A replica that spans nodes has them in one zone, and counts as one.
    """
    alone, enough = 1 - problem.effective.survive_loss_percent / 100, problem.effective.spot_max_traffic_percent / 100
    for k, option in enumerate(problem.options):
        if option.zones == 1 or alone >= enough:
            continue
        node, x = columns.replicas[k] if option.nodes_per_replica > 1 else columns.nodes[k], columns.traffic[k]
        most = round(program.upper[node])
        found = steps(most, option.zones, option.replicas_per_node, alone, enough)
        largest = max(share for _, _, share in found)
        _limit_share(program, problem, columns, [o is option for o in problem.options], largest)
        if len(found) == 1:
            continue
        chosen = [program.column(1.0, integer=True) for _ in found]
        program.row(dict.fromkeys(chosen, 1.0), at_least=1.0, at_most=1.0)
        program.row({node: 1.0, **{y: -float(low) for y, (low, _, _) in zip(chosen, found, strict=True)}}, at_least=0.0)
        program.row({node: 1.0, **{y: -float(top) for y, (_, top, _) in zip(chosen, found, strict=True)}}, at_most=0.0)
        program.row({x: 1.0, **{y: -share for y, (_, _, share) in zip(chosen, found, strict=True)}}, at_most=0.0)
        if option.replicas_per_node > 1:  # no empty nodes for the sake of a wider spread
            per_node = option.replicas_per_node
            program.row({columns.replicas[k]: 1.0, node: -float(per_node)}, at_least=1.0 - per_node)
        for y, (_, _, share) in zip(chosen, found, strict=True):
            slack = largest - share
            if slack > 0:
                terms = {at: (1.0 if at == x else 0.0) - share for at in columns.traffic}
                program.row({**terms, y: slack}, at_most=slack)


def limit_vendor_share(program: Program, problem: PoolProblem, columns: PoolColumns) -> None:
    """One vendor's classes carry at most maxTrafficPercentPerVendor of the traffic that is served."""
    share = problem.effective.max_traffic_percent_per_vendor / 100
    for vendor in sorted({k.vendor for k in problem.options}):
        _limit_share(program, problem, columns, [k.vendor == vendor for k in problem.options], share)


def _limit_share(
    program: Program, problem: PoolProblem, columns: PoolColumns, chosen: Sequence[bool], share: float
) -> None:
    """sum(x of chosen) <= share x sum(x)."""
    if share < 1 and any(chosen):
        terms = {columns.traffic[k]: (1.0 if chosen[k] else 0.0) - share for k in range(len(problem.options))}
        program.row(terms, at_most=0.0)


def keep_budget(program: Program, problem: PoolProblem, columns: PoolColumns) -> None:
    """Shed: nodes cost at most maxUsdPerHour, written in shares of it; an option dearer than that has no replicas.

    Nodes count in full even where others share them: whoever leaves, the budget holds.  Overspend bounds nothing and is
    reported instead.
    """
    effective = problem.effective
    if effective.max_usd_per_hour is not None and effective.on_exceeded == "Shed":
        share = {k: float(o.node_usd_per_hour / effective.max_usd_per_hour) for k, o in enumerate(problem.options)}
        program.row(
            {columns.nodes[k]: s / problem.options[k].parts for k, s in share.items() if 0 < s <= 1}, at_most=1.0
        )


def serve_one_quantization(program: Program, problem: PoolProblem, columns: PoolColumns) -> None:
    """All replicas of a pool answer alike: r_k <= R_k q, one q a quantization, sum(q) <= 1."""
    formats = sorted({k.quantization for k in problem.options})
    if len(formats) < 2:
        return
    served = {name: program.column(1.0, integer=True) for name in formats}
    program.row(dict.fromkeys(served.values(), 1.0), at_most=1.0)
    for k, option in enumerate(problem.options):
        used = served[option.quantization]
        program.row({columns.traffic[k]: 1.0, used: -1.0}, at_most=0.0)
        program.row({columns.replicas[k]: 1.0, used: -program.upper[columns.replicas[k]]}, at_most=0.0)


# --- What pools share -----------------------------------------------------------------------------------------------


def share_nodes(
    program: Program,
    problems: Sequence[PoolProblem],
    columns: Sequence[PoolColumns],
    limits: Limits,
    joined: Mapping[int, int] | None = None,
) -> None:
    """All pools together stay within the nodes that there are.

    `joined`: columns of pools' own nodes -> those of nodes that they share.
    """
    used: dict[Resource, Terms] = {}
    for problem, at in zip(problems, columns, strict=True):
        for k, option in enumerate(problem.options):
            terms = used.setdefault(option.resource, {})
            terms[(joined or {}).get(at.nodes[k], at.nodes[k])] = 1.0
    for resource in sorted(used):
        if resource in limits:
            program.row(used[resource], at_most=float(limits[resource]))


def components(problems: Iterable[PoolProblem], limits: Limits) -> list[list[PoolProblem]]:
    """Pools that compete for a limited resource or may share nodes, directly or through others, belong together; the
    rest are apart.

    An exact decomposition: a limit that all pools together cannot reach couples nobody.
    """
    problems = sorted(problems, key=lambda p: p.key)
    wanted: dict[Resource, int] = {}
    for problem in problems:
        for option in problem.options:
            nodes = option.nodes_for(most_replicas(problem, option, limits))
            wanted[option.resource] = wanted.get(option.resource, 0) + nodes
    tight = {resource for resource, nodes in wanted.items() if resource in limits and nodes > limits[resource]}
    groups: list[tuple[list[PoolProblem], set[object]]] = []
    for problem in problems:
        shared: set[object] = {o.resource for o in problem.options if o.resource in tight}
        shared |= {(o.resource, problem.effective.objective) for o in problem.options if o.shareable}
        members = [problem]
        apart = []
        for group, resources in groups:
            if resources & shared:
                members, shared = [*group, *members], shared | resources
            else:
                apart.append((group, resources))
        groups = [*apart, (members, shared)]
    ordered = [sorted(group, key=lambda p: p.key) for group, _ in groups]
    return sorted(ordered, key=lambda group: group[0].key)


# --- Objective ------------------------------------------------------------------------------------------------------

USD_PER_WATT: Final = 0.001
"""Common unit of all objectives is USD/h: one watt counts as this much for pools of objective Power."""
USD_PER_SECOND: Final = 10.0
"""One second of unloaded turn latency of all of a pool's traffic, for pools of objective Latency."""
TIE_BREAK: Final = 1e-4
"""Weight of dollars for Power and Latency, and of the list price of Reserved nodes: cheaper of equals."""
NODE_TIE_BREAK: Final = 1e-5
"""USD/h a node: nothing free is used without need."""


def node_cost(option: Option, effective: Effective) -> float:
    """What a node of an option (or its part of one) adds to the objective of the cost stage, USD/h."""
    if effective.objective == "Cost":
        marginal = float(option.node_usd_per_hour)
    elif effective.objective == "Power":
        marginal = (option.node_watts or 0) * USD_PER_WATT + float(option.node_usd_per_hour) * TIE_BREAK
    else:
        marginal = float(option.node_usd_per_hour) * TIE_BREAK
    if option.capacity_type is CapacityType.RESERVED:
        marginal += float(option.list_usd_per_hour) * TIE_BREAK
    return (marginal + NODE_TIE_BREAK) / option.parts


def cost_terms(problem: PoolProblem, columns: PoolColumns) -> Terms:
    """The cost stage's objective for one pool."""
    terms: Terms = {}
    for k, option in enumerate(problem.options):
        terms[columns.nodes[k]] = node_cost(option, problem.effective)
        if option.replicas_per_node > 1:
            terms[columns.replicas[k]] = NODE_TIE_BREAK
        if problem.effective.objective == "Latency":
            terms[columns.traffic[k]] = option.unloaded_turn_seconds * USD_PER_SECOND
    return terms


def shortage_stages(problems: Sequence[PoolProblem], columns: Sequence[PoolColumns]) -> list[Terms]:
    """What to minimise before cost: unserved shares by falling priority, then replicas missing to their floors.

    Pools of one priority count alike, each by its share of demand unserved; who matters more says so by priority.  Of
    plans that leave as much unserved, the best leaves the least to those that run already.
    """
    pairs = list(zip(problems, columns, strict=True))
    stages: list[Terms] = []
    for priority in sorted({p.effective.priority for p in problems}, reverse=True):
        equals = [(p, at) for p, at in pairs if p.effective.priority == priority]
        running = [at for p, at in equals if p.runs]
        stages.append({at.unserved: 1.0 for _, at in equals})
        if 0 < len(running) < len(equals):
            stages.append({at.unserved: 1.0 for at in running})
    missing = {at.missing: 1.0 for at in columns if at.missing is not None}
    return [*stages, missing] if missing else stages
