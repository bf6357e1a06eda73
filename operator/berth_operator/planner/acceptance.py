"""Can a pool's spec work at all?  If not: object, field, what was found and what would be right."""

from collections.abc import Iterable, Sequence
from typing import Final

from berth_operator.api import (
    Effective,
    HardwareClass,
    ServingProfile,
    format_decimal,
    format_digits,
    spec_problems,
)
from berth_operator.planner.architectures import ARCHITECTURES, closest_names
from berth_operator.planner.candidates import NO_WATTS, Candidates, Option
from berth_operator.planner.capacity import seconds
from berth_operator.planner.program import MOST_REPLICAS
from berth_operator.planner.types import AtFault, Problem, Verdict

AT_FAULT: Final = "HardwareAtFault"
_MOST_NAMES = 12


def spec_problem(
    effective: Effective,
    classes: Iterable[HardwareClass],
    profiles: Iterable[ServingProfile],
    at_fault: Sequence[AtFault] = (),
) -> Problem | None:
    """What is wrong before any hardware is looked at; None when nothing is."""
    problems = spec_problems(effective)
    if problems:
        return Problem(problems[0].reason, "; ".join(p.message for p in problems))
    if effective.requests_per_second <= 0:
        return Problem("NoDemand", "spec.workload.demand comes to 0 requests/s: declare more than none")
    named = [*(c.metadata.name for c in classes), *(one.name for one in at_fault)]
    return (
        unknown_hardware(effective, named)
        or unreadable_hardware(effective, at_fault)
        or unknown_model(effective, profiles)
        or context_too_long(effective)
    )


def unknown_hardware(effective: Effective, classes: Iterable[str]) -> Problem | None:
    """A name in the allow or deny list that no HardwareClass has.  `classes`: names of all that there are."""
    known = sorted(classes)
    for field, match in (("allow", effective.allow), ("deny", effective.deny)):
        for name in (match.names if match else None) or []:
            if name not in known:
                return Problem(
                    "UnknownHardware",
                    f'spec.placement.hardware.{field}.names: "{name}" is not a HardwareClass; there are:'
                    f" {_listed(known) or 'none'}",
                )
    return None


def unreadable_hardware(effective: Effective, at_fault: Iterable[AtFault]) -> Problem | None:
    """An allow list of nothing but classes that do not even parse: no candidate can tell of them."""
    unreadable = {one.name: one.message for one in at_fault if one.hardware is None}
    names = (effective.allow.names if effective.allow else None) or []
    if not names or (effective.allow and effective.allow.selector) or any(name not in unreadable for name in names):
        return None
    said = [f"{name}: {unreadable[name]}" for name in names]
    return Problem(AT_FAULT, f"no hardware class that it may use can be read ({_listed(said, 4, '; ')}): correct it")


def unknown_model(effective: Effective, profiles: Iterable[ServingProfile]) -> Problem | None:
    """A model of which neither the catalogue nor a profile knows anything."""
    if effective.model in ARCHITECTURES or any(p.spec.model == effective.model for p in profiles):
        return None
    close = closest_names(effective.model) or sorted(ARCHITECTURES)
    return Problem(
        "UnknownModel",
        f'spec.model.name: "{effective.model}" is not in the model catalogue and no ServingProfile names it;'
        f" known names like it: {_listed(close)}. Write one of those, or supply a ServingProfile for it"
        " (`berth bench` prints one)",
    )


def context_too_long(effective: Effective) -> Problem | None:
    """A request longer than the model was made for."""
    architecture = ARCHITECTURES.get(effective.model)
    tokens = effective.prompt_tokens + effective.output_tokens
    if architecture is None or tokens <= architecture.max_context:
        return None
    return Problem(
        "ContextTooLong",
        f"spec.workload.shape: promptTokens {effective.prompt_tokens} + outputTokens {effective.output_tokens} ="
        f" {tokens} tokens, but {effective.model} takes {architecture.max_context}: lower them or take another model",
    )


def placement_problem(effective: Effective, candidates: Candidates) -> Problem | None:
    """What is wrong once the hardware has been judged; None when nothing is."""
    return (
        hardware_problem(effective, candidates)
        or demand_problem(effective, candidates.options)
        or budget_problem(effective, candidates.options)
    )


def hardware_problem(effective: Effective, candidates: Candidates) -> Problem | None:
    """No class can serve the spec for reasons that neither prices nor capacity could change; None when one can."""
    if candidates.options or not candidates.unfit:
        return None
    if any(u.verdict in {Verdict.NO_CAPACITY, Verdict.CONSTRAINED} for u in candidates.unfit):
        return None
    slow = [u for u in candidates.unfit if u.too_slow]
    if slow:
        best = min(slow, key=lambda u: u.too_slow.predicted / u.too_slow.objective if u.too_slow else 0.0)
        assert best.too_slow is not None  # noqa: S101 - for the type checker: `slow` holds only these
        return Problem(
            "ObjectiveUnreachable",
            f"spec.objectives.{best.too_slow.field}: {seconds(best.too_slow.objective)} is met by no hardware class;"
            f" the best is {best.hardware_class}: {best.reason}. Raise it to at least"
            f" {seconds(best.too_slow.predicted)} or allow faster hardware",
        )
    unstated = [u.hardware_class for u in candidates.unfit if u.reason == NO_WATTS]
    by_reason = [
        (Verdict.AT_FAULT, AT_FAULT, "no hardware class that is sound can serve it", "correct the class"),
        (Verdict.DOES_NOT_FIT, "ModelTooLarge", "spec.model: fits no hardware class", "add a class with more memory"),
        (Verdict.NOT_COMPARABLE, "NoServingProfile", "no hardware class can be judged", "supply a ServingProfile"),
        (Verdict.NOT_ALLOWED, "NoHardwareAllowed", "policy allows no hardware class", "allow one"),
    ]
    for verdict, reason, claim, remedy in by_reason:
        found = [u for u in candidates.unfit if u.verdict is verdict]
        if found and verdict is Verdict.NOT_COMPARABLE and len(found) == len(unstated):
            return Problem(
                "NoPowerFigure",
                "spec.placement.objective: Power needs spec.powerWatts of a hardware class that may serve the pool, and"
                f" none states it ({_listed(list(dict.fromkeys(unstated)))}): state it, or take another objective",
            )
        if found:
            seen = dict.fromkeys(f"{u.hardware_class}: {u.reason}" for u in found)
            return Problem(reason, f"{claim} ({_listed(list(seen), 4, '; ')}): {remedy}")
    return None


def demand_problem(effective: Effective, options: Sequence[Option]) -> Problem | None:
    """Demand beyond any fleet: almost certainly a typing error, and beyond exact arithmetic."""
    if not options:
        return None
    best = max(options, key=lambda o: o.capacity.turns_per_second)
    replicas = float(effective.requests_per_second) / best.capacity.turns_per_second
    if replicas <= MOST_REPLICAS:
        return None
    return Problem(
        "DemandTooLarge",
        f"spec.workload.demand: {effective.requests_per_second:f} requests/s would take {replicas:.0f} replicas even on"
        f" {best.hardware_class} ({format_digits(best.capacity.turns_per_second)} turns/s each), more than"
        f" {MOST_REPLICAS}:"
        " lower it or split the pool",
    )


def budget_problem(effective: Effective, options: Sequence[Option]) -> Problem | None:
    """A budget to shed by that does not pay for the nodes of one replica of anything that may carry traffic alone."""
    if effective.max_usd_per_hour is None or effective.on_exceeded != "Shed":
        return None
    usable = [o for o in options if may_carry_alone(effective, o)] or list(options)
    if not usable:
        return None
    cheapest = min(usable, key=lambda o: (o.replica_usd_per_hour, o.hardware_class, o.capacity_type.value))
    if cheapest.replica_usd_per_hour <= effective.max_usd_per_hour:
        return None
    nodes, usd = cheapest.nodes_per_replica, format_decimal(cheapest.replica_usd_per_hour)
    price = usd if nodes == 1 else f"{nodes} x {format_decimal(cheapest.node_usd_per_hour)} = {usd}"
    return Problem(
        "BudgetTooLow",
        f"spec.budget.maxUsdPerHour: {format_decimal(effective.max_usd_per_hour)} is below the cheapest plan,"
        f" {'one' if nodes == 1 else nodes} {cheapest.capacity_type.value} node{'' if nodes == 1 else 's'} of"
        f" {cheapest.hardware_class} at {price}: raise it to at least that",
    )


def may_carry_alone(effective: Effective, option: Option) -> bool:
    """Whether the pool's rules let an option serve without any other."""
    if not option.spot:
        return True
    alone = effective.spot_max_traffic_percent == 100 and effective.survive_loss_percent == 0
    return alone and effective.min_on_demand_replicas == 0


def _listed(names: Sequence[str], most: int = _MOST_NAMES, separator: str = ", ") -> str:
    rest = len(names) - most
    return separator.join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
