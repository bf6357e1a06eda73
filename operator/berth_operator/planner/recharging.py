"""Who pays what of shared nodes, once some pools' plans are new and the others' are kept?"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

from berth_operator.api import CapacityType, HardwareClass
from berth_operator.planner.packing import Piece, charges, dollars, pack
from berth_operator.planner.sharing import Group
from berth_operator.planner.types import Placement, PoolPlan


def recharged(plans: Mapping[str, PoolPlan], classes: Iterable[HardwareClass]) -> dict[str, PoolPlan]:
    """The same placements with the nodes that all of these pools share packed again; a plan in which nothing changes
    stays the object that it is."""
    hardware = {c.metadata.name: c for c in classes}
    members = _members(plans)
    placements = {key: list(plan.placements) for key, plan in plans.items()}
    for (name, kind, _), of in members.items():
        old = [placements[key][i] for key, i in of]
        pieces = [_piece(p) for p in old]
        packing = pack(pieces)
        paid = charges(pieces, packing)
        usd = dollars(_price(hardware[name], kind), [paid[p.pool] for p in old])
        for (key, i), p, mine in zip(of, old, usd, strict=True):
            share = paid[key] if len(of) > 1 else None
            placements[key][i] = _paying(p, hardware[name], share, mine, packing.beside(key))
    return {key: _with(plan, tuple(placements[key])) for key, plan in plans.items()}


def standing(plans: Mapping[str, PoolPlan]) -> dict[Group, list[Piece]]:
    """What of these plans stands on nodes that may be shared."""
    return {g: [_piece(plans[key].placements[i]) for key, i in of] for g, of in _members(plans).items()}


def _piece(placement: Placement) -> Piece:
    return Piece(placement.pool, placement.replicas, placement.replicas_per_node)


def _members(plans: Mapping[str, PoolPlan]) -> dict[Group, list[tuple[str, int]]]:
    """Pools and their placements (by index) that may share nodes, by group."""
    members: dict[Group, list[tuple[str, int]]] = {}
    for key in sorted(plans):
        plan = plans[key]
        for i, p in enumerate(plan.placements):
            if plan.effective.mode == "Apply" and p.shareable:
                group = p.hardware_class, p.capacity_type, plan.effective.objective
                members.setdefault(group, []).append((key, i))
    return members


def _price(hardware: HardwareClass, kind: CapacityType) -> Decimal:
    capacity = hardware.capacity_of(kind)
    return capacity.usd_per_hour if capacity and kind is not CapacityType.RESERVED else Decimal(0)


def _paying(p: Placement, hardware: HardwareClass, paid: Fraction | None, usd: Decimal, beside: int) -> Placement:
    if (p.paid, p.usd_per_hour, p.beside) == (paid, usd, beside):
        return p
    watts = hardware.spec.power_watts
    drawn = None if watts is None else round((Fraction(p.nodes) if paid is None else paid) * watts)
    return replace(p, paid=paid, usd_per_hour=usd, beside=beside, watts=drawn)


def _with(plan: PoolPlan, placements: tuple[Placement, ...]) -> PoolPlan:
    if all(new is old for new, old in zip(placements, plan.placements, strict=True)):
        return plan
    usd = sum((p.usd_per_hour for p in placements), Decimal(0))
    watts = [p.watts for p in placements if p.watts is not None]
    tokens, before = plan.usd_per_million_tokens, plan.usd_per_hour
    most = plan.effective.max_usd_per_hour
    return replace(
        plan,
        placements=placements,
        usd_per_hour=usd,
        usd_per_million_tokens=tokens * usd / before if tokens is not None and before else tokens,
        watts=sum(watts) if plan.watts is not None else None,
        over_budget=plan.over_budget if most is not None and usd > most else None,
    )
