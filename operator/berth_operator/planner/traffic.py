"""How is a pool's traffic spread over what it is given, and which whole percents are its routing weights?"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, islice

from berth_operator.planner.program import PoolProblem, Program, add_pool
from berth_operator.planner.solver import Assignment, minimise

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


def _even_out(
    problem: PoolProblem, assignments: Sequence[Assignment], carried: Sequence[float], shares: Sequence[float]
) -> list[float]:
    """Share by capacity within each group that the rules treat as one: a vendor's spot, a vendor's other placements.

    The busiest placement being least busy says nothing about the others; within a group no rule tells them apart, save
    what one spot class may carry.
    """
    even = list(shares)
    alone = sum(shares) * (100 - problem.effective.survive_loss_percent) / 100
    groups: dict[tuple[str, bool], list[int]] = {}
    for k, assignment in enumerate(assignments):
        groups.setdefault((assignment.option.vendor, assignment.option.spot), []).append(k)
    for (_, spot), members in groups.items():
        rest, open_members = sum(shares[k] for k in members), list(members)
        while open_members:
            level = rest / sum(carried[k] for k in open_members)
            full = [k for k in open_members if spot and carried[k] * level > alone + 1e-12]
            for k in full or open_members:
                even[k] = alone if full else carried[k] * level
                rest -= even[k]
                open_members = [m for m in open_members if m != k]
    return even


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
    groups += [([i], 100 - effective.survive_loss_percent) for i in spot]
    for vendor in sorted({o.vendor for o in options}):
        members = [i for i, o in enumerate(options) if o.vendor == vendor]
        groups.append((members, effective.max_traffic_percent_per_vendor))
    return groups
