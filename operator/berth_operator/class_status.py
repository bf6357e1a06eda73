"""What does a hardware class say in its status?  Prices in force, shortages, faults, nodes the plan uses.  Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from fractions import Fraction

from berth_operator.api import (
    AvoidedCapacity,
    CapacityType,
    ConstrainedCapacity,
    HardwareClass,
    HardwareClassStatus,
)
from berth_operator.api.meta import Facts
from berth_operator.catalog.sanity import NO_NODE, Fault
from berth_operator.planner import Plan
from berth_operator.planner.candidates import in_force
from berth_operator.planner.recharging import standing
from berth_operator.planner.staying import nodes_of
from berth_operator.prices import Priced, PricePolicy, complaint, in_status, own_prices, settled_prices
from berth_operator.settling import condition, settled

_NODES_GONE = "NodesGone"


def nodes_in_use(plan: Plan) -> dict[tuple[str, CapacityType], Fraction]:
    """Nodes by class and capacity type: those that an applied plan pays for, and those of workers that stay beside it.

    A share of a node counts as that.
    """
    used: dict[tuple[str, CapacityType], Fraction] = {}
    applied = {key: pool for key, pool in plan.pools.items() if pool.effective.mode == "Apply"}
    for pool in applied.values():
        for placed in pool.placements:
            where = placed.hardware_class, placed.capacity_type
            used[where] = used.get(where, Fraction()) + placed.paid_nodes
    for where, nodes in nodes_of(plan.staying, standing(applied) if plan.staying else {}).items():
        used[where] = used.get(where, Fraction()) + sum(nodes.values())
    return used


def hardware_class_status(
    hardware: HardwareClass,
    in_use: Mapping[tuple[str, CapacityType], Fraction],
    now: datetime,
    priced: Priced | None = None,
    faults: Sequence[Fault] = (),
    policy: PricePolicy | None = None,
    constrained: Sequence[ConstrainedCapacity] = (),
    matched: bool | None = None,
    avoided: Sequence[AvoidedCapacity] = (),
) -> HardwareClassStatus:
    """The status of a hardware class: prices in force with source and age, faults, and nodes that the plan uses.

    `in_use`: nodes of every class, as `nodes_in_use` counts them; `priced` is of all classes (None: each has its own
    price); `faults` are of this class and its profiles; `constrained` is what cannot be had, or could not a while ago;
    `matched`: whether any node has the labels of any of its capacities (None: not known); `avoided`: as `constrained`,
    for what takes no pod because of how it is written.
    """
    used = {kind: math.ceil(in_use.get((hardware.metadata.name, kind), 0)) for kind in CapacityType}
    short, shunned = in_force(constrained, now), in_force(avoided, now)
    limited = [c for c in hardware.spec.capacity if c.max_nodes is not None and used[c.type] >= c.max_nodes]
    match, wrong = _nodes_match(hardware, faults, matched), _own(faults)
    facts: Facts
    if wrong:
        facts = ("False", wrong[0].reason, "no plan uses it: see Accepted")
    elif short:
        facts = ("False", "Constrained", "no more nodes for now: " + "; ".join(map(_shortage, short)))
    elif shunned:
        facts = ("False", shunned[0].reason, "new placements keep off it: " + "; ".join(map(_shortage, shunned)))
    elif len(limited) == len(hardware.spec.capacity):
        limits = ", ".join(f"{c.type.value} {used[c.type]} of {c.max_nodes}" for c in limited)
        facts = ("True", "AllInUse", f"every node that capacity.maxNodes allows is in use: {limits}")
    elif constrained:
        since = ", ".join(f"{c.type.value} since {c.until}" for c in constrained)
        facts = ("True", "Recovering", f"tried again after a shortage: {since}")
    elif match and match[0] == "False":
        facts = ("Unknown", match[1], "there is no such node now: see NodesMatch")
    else:
        facts = ("True", "Available", "nodes can be had")
    name = hardware.metadata.name
    found = (priced or own_prices([hardware])).of(name) or own_prices([hardware]).of(name)
    said = {
        "Accepted": _class_accepted(wrong),
        "Available": facts,
        "PricesCurrent": _prices_current(priced, name, policy),
        "ProfilesAccepted": _profiles_accepted(faults),
        "NodesMatch": match,
    }
    old = {c.type: c for c in hardware.status.conditions or ()}
    status = HardwareClassStatus(
        observed_generation=hardware.metadata.generation,
        conditions=[
            condition(kind, fact, old, hardware.metadata.generation, now) for kind, fact in said.items() if fact
        ],
        constrained=list(constrained) or None,
        avoided=list(avoided) or None,
        prices=settled_prices(hardware.status.prices or (), in_status(found), policy),
        nodes_in_use=sum(used.values()),
    )
    return hardware.status if settled(hardware.status.to_api(), status.to_api()) else status


def _shortage(entry: ConstrainedCapacity) -> str:
    why = f" ({entry.message})" if entry.message else ""
    return f"{entry.type.value} since {entry.since}, tried again at {entry.until}{why}"


def _own(faults: Sequence[Fault]) -> list[Fault]:
    """What keeps plans off the class itself."""
    return [fault for fault in faults if fault.kind == "HardwareClass" and fault.reason != NO_NODE]


def _class_accepted(own: Sequence[Fault]) -> Facts:
    if own:
        return ("False", own[0].reason, "no plan uses it: " + "; ".join(f"{f.field}: {f.message}" for f in own))
    return ("True", "Accepted", "its figures can be true")


def _profiles_accepted(faults: Sequence[Fault]) -> Facts | None:
    """Only there while a profile is at fault."""
    profiles = [fault for fault in faults if fault.kind == "ServingProfile"]
    if not profiles:
        return None
    return ("False", profiles[0].reason, "not planned with: " + "; ".join(map(str, profiles)))


def had_nodes(hardware: HardwareClass) -> bool:
    """Whether nodes have matched the class as it is now written: what is missing then is capacity, not a label."""
    old = next((c for c in hardware.status.conditions or () if c.type == "NodesMatch"), None)
    if old is None or old.observed_generation != hardware.metadata.generation:
        return False
    return old.status == "True" or old.reason == _NODES_GONE


def _nodes_match(hardware: HardwareClass, faults: Sequence[Fault], matched: bool | None) -> Facts | None:
    """Absent until it is known; once nodes have matched, that is remembered."""
    found = next((fault for fault in faults if fault.reason == NO_NODE), None)
    if found and had_nodes(hardware):
        return ("False", _NODES_GONE, "no node has the labels of its capacity any more")
    if found:
        return ("False", NO_NODE, found.message)
    if matched:
        return ("True", "Matched", "nodes have the labels of its capacity")
    old = next((c for c in hardware.status.conditions or () if c.type == "NodesMatch"), None)
    return (old.status, old.reason, old.message) if old and had_nodes(hardware) else None


def _prices_current(priced: Priced | None, name: str, policy: PricePolicy | None) -> Facts:
    wrong = complaint(priced, name, policy) if priced else None
    if wrong:
        return ("False", *wrong)
    if priced and any(found.live for found in priced.of(name).values()):
        return ("True", "Live", "prices are as their feeds say")
    return ("True", "Static", "prices are the class's own")
