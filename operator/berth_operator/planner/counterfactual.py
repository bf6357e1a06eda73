"""What would the same demand cost on GPUs alone?  The same solver with GPU classes only, and never too much.

The figure is a lower bound on any GPU-only plan of the demand that our plan serves, so that savings are never
flattered: each pool has the GPUs to itself, without node limits (those of Reserved nodes stay: they are free only as
far as they exist), shortages, budget, maxReplicas, allow and deny lists or vendor shares; spot rules, objectives and
minReplicas hold as ever.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from decimal import ROUND_FLOOR, Decimal

from berth_operator.api import CapacityType, HardwareClass, HardwareClassStatus, HardwareKind
from berth_operator.planner.candidates import PoolContext, candidates_of
from berth_operator.planner.program import PoolProblem
from berth_operator.planner.solver import solve


def gpu_only_usd_per_hour(
    key: str, context: PoolContext, classes: Iterable[HardwareClass], served_share: float
) -> Decimal | None:
    """USD/h of the cheapest GPU-only plan for `served_share` of a pool's demand; None when no GPU class can."""
    if served_share <= 0:
        return None
    effective = replace(
        context.effective,
        requests_per_second=context.effective.requests_per_second * Decimal(repr(served_share)),
        objective="Cost",
        allow=None,
        deny=None,
        max_usd_per_hour=None,
        max_replicas=None,
        max_traffic_percent_per_vendor=100,
    )
    gpus = [c.model_copy(update={"status": HardwareClassStatus()}) for c in classes if c.spec.kind is HardwareKind.GPU]
    options = candidates_of(gpus, replace(context, effective=effective)).options
    if not options:
        return None
    limits = {
        (c.metadata.name, CapacityType.RESERVED): reserved.max_nodes
        for c in gpus
        if (reserved := c.capacity_of(CapacityType.RESERVED)) and reserved.max_nodes is not None
    }
    solution = solve([PoolProblem(key, effective, options)], limits)
    pool = solution.pools.get(key)
    if pool is None or pool.unserved > 0:
        return None
    exact = sum((a.nodes * a.option.node_usd_per_hour for a in pool.assignments), Decimal(0))
    slack = max(0.0, solution.cost - solution.bound)
    if slack <= 1e-9:
        return exact
    return max(Decimal(0), exact - Decimal(math.ceil(slack * 1e6)) / 1_000_000)


def savings_percent(usd_per_hour: Decimal, gpu_only: Decimal | None) -> int | None:
    """Whole percent saved against GPU-only, rounded down (a loss rounds away from zero): never more than is true.

    None without a GPU-only figure to compare with.
    """
    if gpu_only is None or gpu_only <= 0:
        return None
    return int(((gpu_only - usd_per_hour) * 100 / gpu_only).to_integral_value(rounding=ROUND_FLOOR))
