"""How is a pool's traffic spread over what it is given, and which whole percents are its routing weights?"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, islice

from berth_operator.planner.program import PoolProblem, Program, add_pool
from berth_operator.planner.solution import Assignment
from berth_operator.planner.solver import minimise
from berth_operator.planner.zones import spread as spread_of

_MOST_ROUNDINGS = 5000


def spread(problem: PoolProblem, assignments: Sequence[Assignment]) -> list[float]:
    """Shares of demand by assignment that serve the most and then keep the busiest placement least busy.

    The program leaves open how equally priced replicas share traffic; even use of all is best for latency.
    """
    if not assignments:
        return []
    carried = [a.replicas * a.option.capacity.turns_per_second / problem.demand for a in assignments]
    unbound = problem.effective.max_traffic_percent_per_vendor == 100 and not any(a.option.spot for a in assignments)
    if unbound:
        total = sum(carried)
        return [c / max(total, 1.0) for c in carried]
    filled = _fill_evenly(problem, assignments, carried)
    if filled is not None:
        return _even_out(problem, assignments, carried, filled)
    program = Program()
    columns = add_pool(program, replace(problem, options=tuple(a.option for a in assignments)), {})
    busiest = program.column()
    for k, assignment in enumerate(assignments):
        program.lower[columns.replicas[k]] = program.upper[columns.replicas[k]] = assignment.replicas
        if columns.nodes[k] != columns.replicas[k]:
            program.upper[columns.nodes[k]] = assignment.nodes
        program.row({columns.traffic[k]: 1 / carried[k], busiest: -1.0}, at_most=0.0)
    point = minimise(program, [{columns.unserved: 1.0}, {busiest: 1.0}])
    return _even_out(problem, assignments, carried, [max(0.0, point.values[x]) for x in columns.traffic])


_EPSILON = 1e-9


def _fill_evenly(
    problem: PoolProblem, assignments: Sequence[Assignment], carried: Sequence[float]
) -> list[float] | None:
    """Raise all placements' use together, each until a rule holds it back, up to the most that can be served.

    That serves the most and keeps the busiest least busy unless the rules of vendors and of spot cross; None then.
    """
    rules = _Rules(problem, assignments, carried)
    served = rules.most()
    shares, level, open_ = [0.0] * len(carried), 0.0, set(range(len(carried)))
    open_ -= {k for k in open_ if rules.carried[k] <= 0}
    limits = [({k}, rules.carried[k]) for k in open_] + rules.limits(served)
    limits.append((set(range(len(carried))), served))
    while open_:
        steps = []
        for members, most in limits:
            growing = sum(rules.carried[k] for k in members & open_)
            if growing > 0:
                steps.append((most - sum(shares[k] for k in members)) / growing)
        rise = max(0.0, min(steps))
        level += rise
        for k in open_:
            shares[k] += rise * rules.carried[k]
        full = [m for m, most in limits if m & open_ and sum(shares[k] for k in m) >= most - _EPSILON]
        open_ -= set().union(*full)
    if sum(shares) < served - 10 * _EPSILON or rules.flow(level * (1 - 1e-6), served) >= served:
        return None
    return shares


class _Rules:
    """The share rules of `program` as bounds on groups of placements."""

    def __init__(self, problem: PoolProblem, assignments: Sequence[Assignment], carried: Sequence[float]) -> None:
        effective = problem.effective
        self.options = [a.option for a in assignments]
        self.spot_share = effective.spot_max_traffic_percent / 100
        self.loss_shares = [_lost_percent(problem, a) / 100 for a in assignments]
        self.vendor_share = effective.max_traffic_percent_per_vendor / 100
        steady = sum(a.replicas for a in assignments if not a.option.spot)
        idle = steady < effective.min_on_demand_replicas
        self.carried = [0.0 if idle and o.spot else c for o, c in zip(self.options, carried, strict=True)]
        self.vendors = sorted({o.vendor for o in self.options})

    def limits(self, served: float) -> list[tuple[set[int], float]]:
        """(placements, share of demand that they carry at most)."""
        spot = {k for k, o in enumerate(self.options) if o.spot}
        found = [(spot, self.spot_share * served)]
        found += [({k}, self.loss_shares[k] * served) for k in sorted(spot)]
        for vendor in self.vendors if self.vendor_share < 1 else ():
            mine = {k for k, o in enumerate(self.options) if o.vendor == vendor}
            found.append((mine, self.vendor_share * served))
        return found

    def flow(self, level: float, served: float) -> float:
        """The most that is carried with each placement used to `level` of its capacity, shares those of `served`."""
        steady, on_spot = 0.0, 0.0
        for vendor in self.vendors:
            room = self.vendor_share * served if self.vendor_share < 1 else math.inf
            own = [
                (o.spot, level * c, lost * served)
                for o, c, lost in zip(self.options, self.carried, self.loss_shares, strict=True)
                if o.vendor == vendor
            ]
            o = min(sum(c for spot, c, _ in own if not spot), room)
            on_spot += min(sum(min(c, most) for spot, c, most in own if spot), room - o)
            steady += o
        return steady + min(self.spot_share * served, on_spot)

    def most(self) -> float:
        """Greatest share of demand that can be served."""
        if self.flow(1.0, 1.0) >= 1 - _EPSILON:
            return 1.0
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if self.flow(1.0, middle) >= middle else (low, middle)
        return low


def _even_out(
    problem: PoolProblem, assignments: Sequence[Assignment], carried: Sequence[float], shares: Sequence[float]
) -> list[float]:
    """Share by capacity within each group that the rules treat as one: a vendor's spot, a vendor's other placements.

    The busiest placement being least busy says nothing about the others; within a group no rule tells them apart, save
    what one spot class may carry.
    """
    even = list(shares)
    alone = [sum(shares) * _lost_percent(problem, a) / 100 for a in assignments]
    groups: dict[tuple[str, bool], list[int]] = {}
    for k, assignment in enumerate(assignments):
        groups.setdefault((assignment.option.vendor, assignment.option.spot), []).append(k)
    for (_, spot), members in groups.items():
        rest, open_members = sum(shares[k] for k in members), list(members)
        while open_members:
            level = rest / sum(carried[k] for k in open_members)
            full = [k for k in open_members if spot and carried[k] * level > alone[k] + 1e-12]
            for k in full or open_members:
                even[k] = alone[k] if full else carried[k] * level
                rest -= even[k]
                open_members = [m for m in open_members if m != k]
    return even


def _lost_percent(problem: PoolProblem, assignment: Assignment) -> float:
    """Of the traffic, that a spot placement may carry so that losing its class, or its fullest zone, loses no more
    than may be lost."""
    option = assignment.option
    return (100 - problem.effective.survive_loss_percent) * spread_of(
        assignment.nodes // option.nodes_per_replica, option.zones, option.replicas_per_node
    )


def percents(problem: PoolProblem, assignments: Sequence[Assignment], shares: Sequence[float]) -> list[int]:
    """Whole percents of served traffic that add up to 100 and break no share limit by rounding.

    Every share is rounded down and the rest handed out one each, preferring the largest remainders; a hand-out that
    would break a limit on spot or a vendor is passed over (limits are whole percents, so one that keeps them exists).
    """
    served = sum(shares)
    if served <= 0:
        return [0] * len(shares)
    exact = [100 * s / served for s in shares]
    floors = [int(e + 1e-6) for e in exact]
    rest = 100 - sum(floors)
    groups = _share_limits(problem, assignments)
    order = sorted(range(len(exact)), key=lambda i: (floors[i] - exact[i], i))
    order = [i for i in order if exact[i] > 0]
    for lucky in islice(combinations(order, rest), _MOST_ROUNDINGS):
        rounded = [f + (i in lucky) for i, f in enumerate(floors)]
        if all(sum(rounded[i] for i in members) <= most for members, most in groups):
            return rounded
    return [f + (i in order[:rest]) for i, f in enumerate(floors)]


def _share_limits(problem: PoolProblem, assignments: Sequence[Assignment]) -> list[tuple[list[int], int]]:
    """(members, most percent) of each rule on shares; see the rules of the same names in `program`."""
    effective, options = problem.effective, [a.option for a in assignments]
    spot = [i for i, o in enumerate(options) if o.spot]
    groups = [(spot, effective.spot_max_traffic_percent)]
    groups += [([i], int(_lost_percent(problem, assignments[i]) + _EPSILON)) for i in spot]
    for vendor in sorted({o.vendor for o in options}):
        members = [i for i, o in enumerate(options) if o.vendor == vendor]
        groups.append((members, effective.max_traffic_percent_per_vendor))
    return groups
