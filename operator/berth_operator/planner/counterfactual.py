"""What would the same demand cost on GPUs alone?  The same solver with GPU classes only, and never too much.

The figure is a lower bound on any GPU-only plan of the demand that our plan serves, so that savings are never
flattered: each pool has the GPUs to itself, without node limits (those of Reserved nodes stay: they are free only as
far as they exist), shortages, budget, maxReplicas, allow and deny lists or vendor shares; spot rules, objectives and
minReplicas hold as ever.  Where pools could share a node, each pays the part that it takes, as if others took the rest.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_FLOOR, Decimal
from typing import Final

import numpy as np

from berth_operator.api import CapacityType, Effective, HardwareClass, HardwareClassStatus, HardwareKind
from berth_operator.planner.candidates import Option, PoolContext, candidates_of
from berth_operator.planner.lanes import lanes_of
from berth_operator.planner.patterns import Prices, cheapest
from berth_operator.planner.program import Limits, PoolProblem
from berth_operator.planner.sharing import groups_of, in_parts
from berth_operator.planner.solver import solve

EXACT: Final = 400
"""GPU options of all pools up to which each pool is solved exactly; above, quantised pricing bounds them together."""
_UNITS: Final = 60
_MICRO: Final = Decimal("0.000001")
_UNSERVED, _MISSING = 1e8, 1e6


@dataclass(frozen=True, slots=True)
class Comparison:
    """A pool to be compared with GPUs alone."""

    key: str
    context: PoolContext
    options: tuple[Option, ...]
    """Of its plan."""
    served: float
    """Share of its demand."""


def gpu_only_usd_per_hour(wanted: Sequence[Comparison], classes: Iterable[HardwareClass]) -> dict[str, Decimal | None]:
    """By pool, USD/h of the cheapest GPU-only plan of what is served; None when no GPU class can."""
    own = [c for c in classes if c.spec.kind is HardwareKind.GPU]
    gpus = [c.model_copy(update={"status": HardwareClassStatus()}) for c in own]
    limits = {
        (c.metadata.name, CapacityType.RESERVED): reserved.max_nodes
        for c in gpus
        if (reserved := c.capacity_of(CapacityType.RESERVED)) and reserved.max_nodes is not None
    }
    found: dict[str, Decimal | None] = {w.key: None for w in wanted}
    problems = [p for w in wanted if w.served > 0 and (p := _problem(w, own, gpus)).options]
    groups = groups_of(problems)
    problems = [in_parts(p, groups) for p in problems]
    if sum(len(p.options) for p in problems) > EXACT:
        bounds = _bounds(problems, limits)
        found.update(bounds)
        problems = [p for p in problems if p.key not in bounds]
    found.update({p.key: _exactly(p, limits) for p in problems})
    return found


def judges_again(effective: Effective, classes: Iterable[HardwareClass]) -> bool:
    """Whether a pool could have other GPUs than its plan may choose from."""
    unbound = effective.allow is None and effective.deny is None and effective.objective == "Cost"
    return not unbound or any(c.status.constrained for c in classes if c.spec.kind is HardwareKind.GPU)


def _problem(wanted: Comparison, own: Sequence[HardwareClass], gpus: Sequence[HardwareClass]) -> PoolProblem:
    """`own`: the GPU classes as they are; `gpus`: as they would be."""
    context = wanted.context
    effective = replace(
        context.effective,
        requests_per_second=context.effective.requests_per_second * Decimal(repr(wanted.served)),
        objective="Cost",
        allow=None,
        deny=None,
        max_usd_per_hour=None,
        max_replicas=None,
        max_traffic_percent_per_vendor=100,
    )
    if not judges_again(context.effective, own):
        return PoolProblem(wanted.key, effective, tuple(o for o in wanted.options if o.kind is HardwareKind.GPU))
    return PoolProblem(wanted.key, effective, candidates_of(gpus, replace(context, effective=effective)).options)


def _exactly(problem: PoolProblem, limits: Limits) -> Decimal | None:
    solution = solve([problem], limits)
    pool = solution.pools.get(problem.key)
    if pool is None or pool.unserved > 0:
        return None
    exact = Decimal(0)
    for a in pool.assignments:
        part = a.replicas * a.option.node_usd_per_hour / a.option.parts
        exact += a.usd_per_hour if a.option.parts == 1 else part.quantize(_MICRO, ROUND_FLOOR)
    slack = max(0.0, solution.cost - solution.bound)
    if slack <= 1e-9:
        return exact
    return max(Decimal(0), exact - Decimal(math.ceil(slack * 1e6)) / 1_000_000)


def _bounds(problems: Sequence[PoolProblem], limits: Limits) -> dict[str, Decimal]:
    """Lower bounds, to a millionth of a dollar; none for pools that could not be served in full."""
    lanes = lanes_of(problems, limits)
    lanes = replace(lanes, price=lanes.usd / lanes.parts)
    which = np.arange(lanes.count)
    prices = Prices(lanes.price, np.full(lanes.count, _UNSERVED), _MISSING)
    found = cheapest(lanes, which, prices, np.full(lanes.count, np.inf), _UNITS, 5e-3)
    bound = np.full(len(problems), np.inf)
    np.minimum.at(bound, lanes.pool, found.bound)
    return {
        p.key: Decimal(math.floor((b + 1e-9) * 1e6)) / 1_000_000
        for p, b in zip(problems, bound.tolist(), strict=True)
        if b < _MISSING
    }


def savings_percent(usd_per_hour: Decimal, gpu_only: Decimal | None) -> int | None:
    """Whole percent saved against GPU-only, rounded down (a loss rounds away from zero): never more than is true.

    None without a GPU-only figure to compare with.
    """
    if gpu_only is None or gpu_only <= 0:
        return None
    return int(((gpu_only - usd_per_hour) * 100 / gpu_only).to_integral_value(rounding=ROUND_FLOOR))
