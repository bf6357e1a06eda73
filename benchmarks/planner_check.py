"""Is a plan feasible, and how far from the best can it be?  Asked of the plan alone, by other code than made it.

Feasible: what the rules say is counted from placements.  The gap: Lagrange's bound at the plan's shadow prices, with
each pool priced by HiGHS on the flat program of that pool (no dynamic program, no quantisation, no columns).
"""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction

from berth_operator.api import CapacityType, HardwareClass
from berth_operator.planner import Placement, Plan, PoolPlan, Snapshot
from berth_operator.planner.program import PoolProblem, Program, add_pool, cost_terms
from berth_operator.planner.sharing import in_parts
from berth_operator.planner.solver import minimise_roughly

Resource = tuple[str, CapacityType]


def violations(snapshot: Snapshot, plan: Plan) -> list[str]:
    """What a plan breaks, in words; nothing if it is feasible."""
    found = []
    used: dict[Resource, Fraction] = defaultdict(Fraction)
    vendors = {c.metadata.name: c.spec.vendor for c in snapshot.hardware_classes}
    zones = {c.metadata.name: zones_of(c) for c in snapshot.hardware_classes}
    for pool in plan.pools.values():
        found += [f"{pool.pool}: {what}" for what in _of_pool(pool, vendors, zones)]
        for p in pool.placements:
            used[p.hardware_class, p.capacity_type] += p.paid_nodes
    for resource, most in limits_of(snapshot).items():
        if used[resource] > most:
            found.append(f"{resource}: {used[resource]} nodes of {most}")
    found += [f"{resource}: {nodes} nodes are paid" for resource, nodes in used.items() if nodes.denominator > 1]
    return found + _overfull(plan)


def _overfull(plan: Plan) -> list[str]:
    """Classes of which less is paid than its replicas take."""
    taken: dict[Resource, Fraction] = defaultdict(Fraction)
    for pool in plan.pools.values():
        for p in pool.placements:
            taken[p.hardware_class, p.capacity_type] += p.paid_nodes - Fraction(p.replicas, p.replicas_per_node)
    return [
        f"{resource}: replicas take {-left} nodes more than are paid" for resource, left in taken.items() if left < 0
    ]


def limits_of(snapshot: Snapshot) -> dict[Resource, int]:
    """Nodes that there are, where there is a limit."""
    return {
        (c.metadata.name, capacity.type): capacity.max_nodes
        for c in snapshot.hardware_classes
        for capacity in c.spec.capacity
        if capacity.max_nodes is not None
    }


def zones_of(hardware: HardwareClass) -> int:
    """Zones that its spot nodes are known to lie in."""
    spot = hardware.capacity_of(CapacityType.SPOT)
    return max(1, len(spot.zones or ())) if spot else 1


def _loses_too_much(placement: Placement, zones: int, survive: int) -> bool:
    """Whether losing the fullest zone loses more of the traffic than may be, when each pod went where no zone was a
    node's replicas ahead of another; percents are whole, which one zone's limit is, too."""
    r, ahead = placement.replicas, placement.replicas_per_node
    fullest = max(f for f in range(1, r + 1) if f + (zones - 1) * max(0, f - ahead) <= r)
    rounded = 1 if zones > 1 else 0
    return (placement.traffic_percent - rounded) * fullest / r > 100 - survive + 1e-6


def tight_rows(snapshot: Snapshot, plan: Plan) -> int:
    """Limits that are worth something more of, or of which no node is left."""
    used: dict[Resource, Fraction] = defaultdict(Fraction)
    for pool in plan.pools.values():
        for p in pool.placements:
            used[p.hardware_class, p.capacity_type] += p.paid_nodes
    worth = {(p.hardware_class, p.capacity_type) for p in plan.shadow_prices}
    return sum(r in worth or used[r] >= most for r, most in limits_of(snapshot).items())


def _of_pool(pool: PoolPlan, vendors: dict[str, str], zones: dict[str, int]) -> list[str]:
    e, placements, found = pool.effective, pool.placements, []
    if not placements:
        return (
            [] if pool.unserved_requests_per_second > 0 or pool.not_accepted else ["nothing placed, nothing unserved"]
        )
    replicas = sum(p.replicas for p in placements)
    spot = [p for p in placements if p.capacity_type is CapacityType.SPOT]
    shares = defaultdict(int)
    for p in placements:
        shares[vendors[p.hardware_class]] += p.traffic_percent
        if p.nodes != -(-p.replicas // p.replicas_per_node) * p.nodes_per_replica:
            found.append(f"{p.replicas} replicas on {p.nodes} nodes")
        carried = p.replicas * p.capacity.turns_per_second
        if pool.served_requests_per_second * (p.traffic_percent - 1) / 100 > carried * (1 + 1e-6):
            found.append(f"{p.hardware_class} carries {p.traffic_percent} %, more than its {carried:.3f} turns/s")
    if sum(p.traffic_percent for p in spot) > e.spot_max_traffic_percent:
        found.append("spot share")
    if any(_loses_too_much(p, zones[p.hardware_class], e.survive_loss_percent) for p in spot):
        found.append("loss of a spot class in a zone")
    if any(p.traffic_percent for p in spot) and replicas - sum(p.replicas for p in spot) < e.min_on_demand_replicas:
        found.append("replicas beside spot")
    if max(shares.values()) > e.max_traffic_percent_per_vendor:
        found.append("vendor share")
    if e.max_replicas is not None and replicas > e.max_replicas:
        found.append("maxReplicas")
    if replicas < e.min_replicas and pool.shortfall is None:
        found.append("minReplicas missed in silence")
    if e.max_usd_per_hour is not None and e.on_exceeded == "Shed" and pool.usd_per_hour > e.max_usd_per_hour:
        found.append("budget")
    if sum(p.traffic_percent for p in placements) != (100 if pool.served_requests_per_second > 0 else 0):
        found.append("traffic does not add up")
    return found


def lagrange_bound(
    problems: list[PoolProblem], limits: dict[Resource, int], prices: dict[Resource, float], plan: Plan
) -> float:
    """USD/h that no plan within `limits` costs less than that serves each of `problems` as well as `plan` does, and
    gives it as many of its minReplicas; `prices` of nodes: any >= 0."""
    bound = -sum(prices[r] * limits[r] for r in prices)
    for problem in map(in_parts, problems):
        program = Program()
        columns = add_pool(program, problem, limits)
        made = plan.pools[problem.key]
        program.upper[columns.unserved] = _share_unserved(made)
        if columns.missing is not None:
            replicas = sum(p.replicas for p in made.placements)
            program.upper[columns.missing] = max(0, problem.effective.min_replicas - replicas)
        terms = cost_terms(problem, columns)
        for k, option in enumerate(problem.options):
            terms[columns.nodes[k]] += prices.get(option.resource, 0.0) / option.parts
        bound += minimise_roughly(program, terms).bound
    return bound


def _share_unserved(pool: PoolPlan) -> float:
    """Of its demand; what rounding leaves is nothing."""
    whole = pool.served_requests_per_second + pool.unserved_requests_per_second
    return pool.unserved_requests_per_second / whole + 1e-9 if pool.unserved_requests_per_second > 0 else 0.0
