"""Which nodes do workers hold that a plan has no place for?

Nothing is changed of a pool whose spec is not accepted, or cannot even be read, nor of one of mode Recommend; and a
pool for which not enough can be had keeps what serves.  Their nodes are nobody else's.  Only where the plan has given
them to others, because that serves more or what counts more, do such workers go.
"""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Final

from berth_operator.api import CapacityType, Effective, HardwareClass, ServingProfile
from berth_operator.planner.candidates import Resource
from berth_operator.planner.packing import Piece, charged, pack
from berth_operator.planner.program import Limits
from berth_operator.planner.sharing import Group, Standing
from berth_operator.planner.speed import best_profile
from berth_operator.planner.types import PoolPlan, Problem, RunningPlacement, Stay

NOT_HELD: Final = "Budget"
"""The one shortfall for which workers go: what they cost is what is short."""


def why_hold(plan: PoolPlan) -> str | None:
    """Why no serving worker of a pool may be taken away, whatever its plan wants; None where nothing stands against it.

    Only a budget is kept even so, and nodes go that the plan gives to others (`PoolPlan.yields`).
    """
    short = plan.shortfall
    if short is None or not holds(short, placed=bool(plan.placements), unserved=plan.unserved_requests_per_second):
        return None
    what = "not enough" if plan.placements else "nothing"
    return f"the plan has {what} to replace it: {short.reason}"


def holds(short: Problem, *, placed: bool, unserved: float) -> bool:
    """Whether a pool that lacks something keeps what serves."""
    return short.reason != NOT_HELD and (not placed or unserved > 0)


def stays_of(
    running: Iterable[RunningPlacement],
    classes: Mapping[str, HardwareClass],
    effective: Effective | None = None,
    profiles: Iterable[ServingProfile] = (),
) -> tuple[Stay, ...]:
    """What runs and has nodes.  `effective`, `profiles`: of its pool and model; None: its pool cannot be read."""
    profiles = tuple(profiles)
    there = (
        (r, r.replicas if r.scheduled_replicas is None else min(r.replicas, r.scheduled_replicas)) for r in running
    )
    return tuple(_stay(r, n, classes.get(r.hardware_class), effective, profiles) for r, n in there if n > 0)


def _stay(
    r: RunningPlacement,
    replicas: int,
    hardware: HardwareClass | None,
    effective: Effective | None,
    profiles: Sequence[ServingProfile],
) -> Stay:
    found = None
    if hardware and effective and r.nodes_per_replica == 1:
        runtime, quantization = hardware.spec.runtime.name, r.quantization or effective.quantization
        found = best_profile(profiles, effective.model, quantization, r.hardware_class, runtime)
    per_node = (found.spec.replicas_per_node if found else None) or 1
    capacity = hardware.capacity_of(r.capacity_type) if hardware else None
    zones = len((capacity.zones if capacity else None) or ()) if r.capacity_type is CapacityType.SPOT else 0
    shared = found is not None and found.spec.resources is not None and per_node > 1 and zones <= 1
    nodes = -(-replicas // per_node) * r.nodes_per_replica
    nodes = nodes if r.nodes is None else min(nodes, r.nodes)
    price = capacity.usd_per_hour if capacity else None
    if price is not None and r.capacity_type is CapacityType.RESERVED:
        price = Decimal(0)  # already paid
    return Stay(
        pool=r.pool,
        hardware_class=r.hardware_class,
        capacity_type=r.capacity_type,
        replicas=replicas,
        nodes=nodes,
        replicas_per_node=per_node,
        shared_for=effective.objective if shared and effective else None,
        usd_per_hour=None if price is None else nodes * price,
    )


def beside(
    limits: Limits, stays: Iterable[Stay], standing: Standing
) -> tuple[dict[Resource, int], dict[Group, list[Piece]]]:
    """(nodes that are left, replicas that stand on nodes which may be shared).

    `limits` count the nodes of `standing`, replicas of pools that are not planned now, and of what is returned with it.
    Where more stands than there may be, that much is left for it.
    """
    together = {group: list(pieces) for group, pieces in standing.items()}
    left = dict(limits)
    for stay in stays:
        if group := group_of(stay):
            together.setdefault(group, []).append(piece_of(stay))
        elif stay.resource in left:
            left[stay.resource] = max(0, left[stay.resource] - stay.nodes)
    least: dict[Resource, int] = {}
    for (name, kind, _), pieces in together.items():
        least[name, kind] = least.get((name, kind), 0) + pack(pieces).nodes
    return {r: max(most, least.get(r, 0)) for r, most in left.items()}, together


def group_of(stay: Stay) -> Group | None:
    """The group of pools that may share its nodes; None: it shares none."""
    return (stay.hardware_class, stay.capacity_type, stay.shared_for) if stay.shared_for else None


def piece_of(stay: Stay) -> Piece:
    return Piece(stay.pool, stay.replicas, stay.replicas_per_node)


def nodes_of(stays: Iterable[Stay], others: Standing) -> dict[Resource, dict[str, Fraction]]:
    """Nodes by pool of what stays; of those that are shared with `others`, planned replicas, a part."""
    out: dict[Resource, dict[str, Fraction]] = {}
    together: dict[Group, list[Piece]] = {}
    for stay in stays:
        if group := group_of(stay):
            together.setdefault(group, []).append(piece_of(stay))
        else:
            out.setdefault(stay.resource, {})[stay.pool] = Fraction(stay.nodes)
    for group, pieces in together.items():
        paid = charged([*pieces, *others.get(group, ())])
        for piece in pieces:
            out.setdefault((group[0], group[1]), {})[piece.pool] = paid[piece.pool]
    return out
