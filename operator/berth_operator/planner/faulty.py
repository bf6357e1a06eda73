"""What of classes that are written wrongly?  A pool that may use one is told so, and is served by others.

Two faults differ in what still can be done.  A class whose figures cannot be true is in no plan.  One whose nodes take
no pod, because its selector or tolerations are wrong, costs and carries what it says, so that a pool with nothing else
waits for it; a pool that can be served elsewhere keeps only what it has there already, as where nodes cannot be had.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime

from berth_operator.api import AvoidedCapacity, HardwareClass
from berth_operator.planner.candidates import (
    Candidates,
    Option,
    PoolContext,
    Resource,
    Unfit,
    in_force,
    matches,
    not_allowed,
)
from berth_operator.planner.types import AtFault, Verdict


def with_faulty(candidates: Candidates, at_fault: Iterable[AtFault], context: PoolContext) -> Candidates:
    """The candidates, and what the pool asks for by name or label and no plan may use, with its fault's own words.

    Where that leaves nothing to consider, the classes at fault are kept, for they are why.
    """
    at_fault = tuple(at_fault)
    found = tuple(unfit for one in at_fault for unfit in _unfit(one, context))
    if found:
        return replace(candidates, unfit=(*candidates.unfit, *found))
    nothing = not candidates.options and not candidates.unfit
    return replace(candidates, none_but=at_fault) if nothing and at_fault else candidates


def _unfit(one: AtFault, context: PoolContext) -> Iterator[Unfit]:
    allow = context.effective.allow
    if one.hardware is None or allow is None or not matches(allow, one.hardware):
        return
    objection = not_allowed(one.hardware, context)
    for capacity in sorted(one.hardware.spec.capacity, key=lambda c: c.type.value):
        if objection:
            yield Unfit(one.name, capacity.type, Verdict.NOT_ALLOWED, objection)
        else:
            yield Unfit(one.name, capacity.type, Verdict.AT_FAULT, f"the HardwareClass is at fault: {one.message}")


def avoiding(
    candidates: Candidates,
    avoided: Mapping[Resource, AvoidedCapacity],
    context: PoolContext,
    serves_alone: Callable[[Option], bool],
) -> Candidates:
    """The candidates, with no more of what is to be avoided than runs of it; all, where nothing else serves."""
    own = {o.resource for o in candidates.options} & avoided.keys()
    if not own or not any(serves_alone(o) for o in candidates.options if o.resource not in own):
        return candidates
    options, unfit = [], dict[Resource, Unfit]()
    for option in candidates.options:
        resource = option.resource
        kept = context.scheduled.get(resource, 0)
        if resource not in own:
            options.append(option)
        elif kept:
            options.append(replace(option, own_replica_limit=min(kept, option.own_replica_limit or kept)))
        else:
            entry = avoided[resource]
            reason = f"{entry.message or entry.reason}; tried again after {entry.until}"
            unfit[resource] = Unfit(*resource, Verdict.AT_FAULT, reason, option.capacity.estimated)
    return Candidates(tuple(options), (*candidates.unfit, *unfit.values()))


def avoided_of(classes: Iterable[HardwareClass], now: datetime) -> dict[Resource, AvoidedCapacity]:
    """What is to be avoided now; what is tried again is not."""
    return {
        (hardware.metadata.name, entry.type): entry
        for hardware in classes
        for entry in in_force(hardware.status.avoided, now)
    }
