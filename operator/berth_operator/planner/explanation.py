"""Why was each candidate taken or not?  One sentence each, with the number that decides.

A price is explained by its break-even (`entry.py`): the price below which the candidate would enter the plan, the other
pools' placements being what they are.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_UP, Context, Decimal
from fractions import Fraction
from functools import cached_property
from typing import Final

from berth_operator.api import format_decimal, format_digits
from berth_operator.planner.candidates import Candidates, Option, Resource, Unfit
from berth_operator.planner.churn import Incumbent, required_saving
from berth_operator.planner.entry import NEAR, Entry, break_even, never_pays_above, pays_below
from berth_operator.planner.packing import Packing, Piece, pack
from berth_operator.planner.program import Limits, PoolProblem
from berth_operator.planner.sharing import Group
from berth_operator.planner.solution import Assignment, PoolSolution
from berth_operator.planner.types import Candidate, Problem, Verdict

_DIGITS: Final = Context(prec=60)
_HUNDREDTH_OF_A_CENT: Final = Decimal("0.0001")
_SAME: Final = 1e-9
"""Turn latencies nearer than that share of each other are the same."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Nodes that all pools pay."""

    total: Mapping[Resource, Fraction]
    pools: Mapping[Resource, Mapping[str, Fraction]]
    names: Mapping[Resource, Sequence[str]]
    """Of pools that take some, in order."""
    whole: Mapping[Resource, int]
    """All of `total` in whole nodes."""
    pieces: Mapping[Group, Sequence[Piece]] = field(default_factory=dict)
    """Replicas on nodes that may be shared."""

    @staticmethod
    def of(
        pools: Mapping[Resource, Mapping[str, Fraction]], pieces: Mapping[Group, Sequence[Piece]] | None = None
    ) -> "Usage":
        """Summed up once for all pools."""
        total = {r: sum(by_pool.values(), Fraction(0)) for r, by_pool in pools.items()}
        return Usage(
            total,
            pools,
            {r: sorted(key for key, n in by_pool.items() if n) for r, by_pool in pools.items()},
            {r: math.ceil(nodes) for r, nodes in total.items()},
            pieces or {},
        )

    def beside(self, pool: str, objective: str) -> dict[Resource, Packing]:
        """Nodes of other pools that one of this objective may share, packed without it."""
        return {
            (name, kind): pack(p for p in pieces if p.pool != pool)
            for (name, kind, shared_for), pieces in self.pieces.items()
            if shared_for == objective
        }

    def left(self, limits: Limits, pool: str) -> dict[Resource, int]:
        """Nodes that the other pools leave."""
        whole, pools = self.whole, self.pools
        return {
            r: max(0, most - (self.by_others(r, pool) if pool in pools.get(r, ()) else whole.get(r, 0)))
            for r, most in limits.items()
        }

    def by_others(self, resource: Resource, pool: str) -> int:
        """Nodes of a resource under other pools, as many as these pay."""
        own = self.pools.get(resource, {}).get(pool)
        return math.ceil(self.total[resource] - own) if own else self.whole.get(resource, 0)

    def others(self, resource: Resource, pool: str) -> str:
        """The other pools in words: the first three, and how many more."""
        names = self.names.get(resource, ())
        count = len(names) - (self.pools.get(resource, {}).get(pool, 0) > 0)
        first = [n for n in names[:4] if n != pool][:3]
        return ", ".join(first) + (f" and {count - 3} more" if count > 3 else "")


@dataclass(frozen=True)
class Outcome:
    """What explaining one pool takes."""

    problem: PoolProblem
    candidates: Candidates
    solution: PoolSolution
    limits: Limits
    """All nodes that there are."""
    usage: Usage
    left: Limits
    """Nodes that the other pools leave, of those with a limit."""
    incumbent: Incumbent | None
    kept: Problem | None
    free: PoolSolution | None
    """The pool's plan if moving were free."""
    exact: bool
    """Find break-even prices with the solver, some milliseconds each; else say between which prices they lie."""
    usd_per_hour: Decimal
    """Of the pool's plan."""
    beside: Mapping[Resource, Packing] = field(default_factory=dict)
    """Other pools' nodes that it may share."""

    def room(self, option: Option) -> int:
        """Replicas of an option that take no node more.  None under a budget, which counts whole nodes."""
        effective = self.problem.effective
        packing = self.beside.get(option.resource) if option.shareable else None
        if packing is None or (effective.max_usd_per_hour is not None and effective.on_exceeded == "Shed"):
            return 0
        return packing.room(option.replicas_per_node)

    @cached_property
    def served(self) -> float:
        """Turns a second."""
        return self.problem.demand * (1 - self.solution.unserved)

    @cached_property
    def costs(self) -> str:
        """What the whole plan costs, in words."""
        return f"${format_decimal(self.usd_per_hour)}/h"

    @cached_property
    def wanted(self) -> set[Resource]:
        """What it would run on if moving were free."""
        return {a.option.resource for a in self.free.assignments} if self.free else set()

    @cached_property
    def entry(self) -> Entry:
        """At which price would an option enter?  A pool held to its hardware is compared with that alone."""
        cost, problem = self.adds, self.problem
        if self.incumbent and self.incumbent.resources:
            cost -= required_saving(problem, cost)
        room = {o.resource: self.room(o) for o in problem.options} if self.beside else {}
        if self.kept:
            own = {a.option.resource for a in self.solution.assignments}
            problem = replace(problem, options=tuple(o for o in problem.options if o.resource in own))
        return Entry(problem, self.solution, self.left, room, cost)

    def entry_of(self, option: Option) -> Entry:
        """The same with `option` among the pool's, as the program needs it."""
        entry = self.entry
        if not self.kept:
            return entry
        mine = {id(o) for o in (*entry.problem.options, option)}
        options = tuple(o for o in self.problem.options if id(o) in mine)
        return replace(entry, problem=replace(self.problem, options=options))

    @property
    def adds(self) -> float:
        """USD/h that the fleet would save without the pool, the others' placements being what they are."""
        return float(
            sum(
                a.option.nodes_for(max(0, a.replicas - self.room(a.option))) * a.option.node_usd_per_hour
                for a in self.solution.assignments
            )
        )


def verdicts(outcome: Outcome) -> list[Candidate]:
    """A verdict for every class and capacity type that was considered, in canonical order."""
    found = [_of_unfit(u) for u in outcome.candidates.unfit]
    by_resource: dict[Resource, list[Option]] = {}
    for option in outcome.candidates.options:
        by_resource.setdefault(option.resource, []).append(option)
    chosen = {a.option.resource: a for a in outcome.solution.assignments}
    formats = {a.option.quantization for a in outcome.solution.assignments}
    for resource, options in by_resource.items():
        if resource in chosen:
            found.append(_of_chosen(outcome, chosen[resource]))
        elif len(options) == 1:
            found.append(_of_unused(outcome, options[0], options))
        else:
            pick = min(options, key=lambda o: (o.quantization not in formats, usd_per_million_tokens(outcome, o)))
            found.append(_of_unused(outcome, pick, options))
    return sorted(found, key=lambda c: (c.hardware_class, c.capacity_type))


def usd_per_million_tokens(outcome: Outcome, option: Option) -> Decimal:
    """Price of a million generated tokens on full nodes of an option, each replica at its capacity."""
    per_node = option.capacity.turns_per_second * option.replicas_per_node / option.nodes_per_replica
    return per_million(option.node_usd_per_hour, per_node * outcome.problem.effective.output_tokens)


def per_million(usd_per_hour: Decimal, tokens_per_second: float) -> Decimal:
    """USD per million tokens, to a hundredth of a cent."""
    tokens = Decimal(repr(tokens_per_second * 3600))
    return (usd_per_hour * 1_000_000 / tokens).quantize(_HUNDREDTH_OF_A_CENT, ROUND_HALF_UP, _DIGITS)


def _candidate(outcome: Outcome, option: Option, verdict: Verdict, reason: str) -> Candidate:
    return Candidate(
        hardware_class=option.hardware_class,
        capacity_type=option.capacity_type,
        verdict=verdict,
        reason=reason,
        usd_per_million_tokens=usd_per_million_tokens(outcome, option),
        estimated=option.capacity.estimated,
        limited_until=option.constrained_until,
    )


def _of_unfit(unfit: Unfit) -> Candidate:
    return Candidate(unfit.hardware_class, unfit.capacity_type, unfit.verdict, unfit.reason, None, unfit.estimated)


def _of_chosen(outcome: Outcome, assignment: Assignment) -> Candidate:
    option = assignment.option
    carries = option.capacity.turns_per_second * assignment.replicas
    reason = (
        f"{_count(assignment.replicas, 'replica')} on {_count(assignment.nodes, 'node')} at"
        f" ${format_decimal(option.node_usd_per_hour)}/h can carry {format_digits(carries)} turns/s within objectives"
    )
    if option.nodes_per_replica > 1:
        reason += f"; a replica spans {option.nodes_per_replica} nodes ({option.spans_because})"
    if option.constrained_until:
        reason += f"; no more of it can be had until {option.constrained_until}"
    return _candidate(outcome, option, Verdict.CHOSEN, reason)


def _of_unused(outcome: Outcome, option: Option, options: Sequence[Option]) -> Candidate:
    for rule in (_no_nodes_left, _ruled_out_by_spot_policy, _kept_off, _other_objective, _priced_out):
        found = rule(outcome, option, options)
        if found:
            return _candidate(outcome, option, *found)
    raise AssertionError(f"no rule explains {option.hardware_class}")  # pragma: no cover - _priced_out always answers


Finding = tuple[Verdict, str] | None


def _no_nodes_left(outcome: Outcome, option: Option, _: Sequence[Option]) -> Finding:
    resource = option.resource
    most = outcome.limits.get(resource)
    if most is None or (left := outcome.left[resource]) >= option.nodes_per_replica or outcome.room(option) > 0:
        return None
    names = outcome.usage.others(resource, outcome.problem.key)
    if left:
        spans = f"a replica spans {option.nodes_per_replica}"
        return Verdict.NO_CAPACITY, f"{left} of {_count(most, 'node')} (maxNodes) are left by {names}: {spans}"
    all_of_them = "the one node (maxNodes) is" if most == 1 else f"all {_count(most, 'node')} (maxNodes) are"
    return Verdict.NO_CAPACITY, sys.intern(f"{all_of_them} taken by {names}")  # the same for most pools


def _ruled_out_by_spot_policy(outcome: Outcome, option: Option, _: Sequence[Option]) -> Finding:
    effective = outcome.problem.effective
    if not option.spot:
        return None
    if effective.spot_max_traffic_percent == 0:
        return Verdict.LIMITED_BY_POLICY, "spec.placement.spot.maxTrafficPercent is 0"
    if effective.survive_loss_percent == 100:
        return Verdict.LIMITED_BY_POLICY, "spec.placement.spot.surviveLossPercent 100 leaves spot no traffic"
    return None


def _kept_off(outcome: Outcome, option: Option, _: Sequence[Option]) -> Finding:
    if outcome.kept and option.resource in outcome.wanted:
        return Verdict.LIMITED_BY_POLICY, outcome.kept.message
    return None


def _other_objective(outcome: Outcome, option: Option, _: Sequence[Option]) -> Finding:
    effective = outcome.problem.effective
    if effective.objective == "Power":
        watts = round(sum(a.paid_nodes * (a.option.node_watts or 0) for a in outcome.solution.assignments))
        alone = _nodes_alone(outcome, option) * (option.node_watts or 0)
        capped = f"; it may carry at most {cap}" if (cap := _spot_cap(outcome, option)) else ""
        return Verdict.TOO_EXPENSIVE, f"alone it would draw {alone} W against {watts} W of the plan{capped}"
    if effective.objective == "Latency":
        mine = option.unloaded_turn_seconds
        best = min((a.option.unloaded_turn_seconds for a in outcome.solution.assignments), default=mine)
        if mine > best * (1 + _SAME):
            return Verdict.TOO_SLOW, f"an unloaded turn takes {mine:.2f} s against {best:.2f} s of the plan's fastest"
        than = "as the plan's fastest" if mine >= best * (1 - _SAME) else f"against {best:.2f} s of the plan's fastest"
        limits = f"it may carry at most {cap}" if (cap := _spot_cap(outcome, option)) else _bounds(outcome)
        return (
            Verdict.LIMITED_BY_POLICY,
            f"an unloaded turn takes {mine:.2f} s {than}, but no plan with it is better ({limits})",
        )
    return None


def _priced_out(outcome: Outcome, option: Option, options: Sequence[Option]) -> Finding:
    price = f"${format_decimal(option.node_usd_per_hour)}/h"
    if not outcome.exact:
        return Verdict.TOO_EXPENSIVE, _between(outcome, option, price)
    enters = max((e for o in options if (e := break_even(outcome.entry_of(o), o)) is not None), default=None)
    if enters is None:
        return (
            Verdict.LIMITED_BY_POLICY,
            f"no plan within the pool's limits that serves as much can use it ({_bounds(outcome, money=False)})",
        )
    if enters <= 0:
        share = _most_spot_percent(outcome, option) if option.spot else 100
        least = f": with at most {share} % of traffic it saves no node" if share < 100 else ": it saves no node"
        rule = f" ({_spot_rule(outcome, option)})" if share < 100 else ""
        return Verdict.TOO_EXPENSIVE, f"would not enter at any price{least} of the plan{rule}; costs {price}"
    shown = _price(enters)
    if enters >= float(option.node_usd_per_hour) - 1e-4:
        return Verdict.TOO_EXPENSIVE, f"no better than the plan at {price}: it would enter below ${shown}/h"
    condition = " (moving must save enough)" if outcome.incumbent and outcome.incumbent.resources else ""
    return Verdict.TOO_EXPENSIVE, f"would enter below ${shown}/h{condition}; costs {price}"


def _between(outcome: Outcome, option: Option, price: str) -> str:
    """Without a solve: the candidate carrying all that policy lets it carry, against the plan, and between which prices
    it would begin to pay."""
    entry = outcome.entry
    least, most = pays_below(entry, option), never_pays_above(entry, option)
    if least is not None and most <= least + NEAR:
        return f"would enter below ${_price(least)}/h; costs {price}"
    compared = _compared_alone(outcome, option, price)
    if least is not None:
        return f"{compared}: it would pay below ${_price(least)}/h, and not above ${_price(most)}/h"
    if 0 < most < float(option.node_usd_per_hour):
        return f"{compared}: it would not pay above ${_price(most)}/h"
    return compared


def _compared_alone(outcome: Outcome, option: Option, price: str) -> str:
    """The candidate carrying all that policy lets it carry, against the plan: cheap, and true, but no break-even."""
    share = _most_spot_percent(outcome, option) / 100 if option.spot else 1.0
    nodes = _nodes_alone(outcome, option, share)
    whole = "alone" if share == 1 else f"for its at most {share:.0%} of traffic".replace("%", " %")
    return (
        f"{whole} it takes {_count(nodes, 'node')} at {price} ="
        f" ${format_decimal(nodes * option.node_usd_per_hour)}/h"
        f" against {outcome.costs} of the whole plan"
    )


def _most_spot_percent(outcome: Outcome, option: Option) -> int:
    """Of traffic on one spot class, over all of its zones."""
    effective = outcome.problem.effective
    return min(effective.spot_max_traffic_percent, (100 - effective.survive_loss_percent) * option.zones)


def _spot_rule(outcome: Outcome, option: Option) -> str:
    """Which field of the pool keeps traffic on one spot class to that share."""
    effective = outcome.problem.effective
    if effective.spot_max_traffic_percent <= (100 - effective.survive_loss_percent) * option.zones:
        return f"spot.maxTrafficPercent {effective.spot_max_traffic_percent}"
    zones = f", {option.zones} zones" if option.zones > 1 else ""
    return f"spot.surviveLossPercent {effective.survive_loss_percent}{zones}"


def _spot_cap(outcome: Outcome, option: Option) -> str:
    """The share of traffic that it may carry, and by which field; empty where it may carry all."""
    share = _most_spot_percent(outcome, option) if option.spot else 100
    return f"{share} % of traffic ({_spot_rule(outcome, option)})" if share < 100 else ""


def _price(value: float) -> str:
    """At least three digits that say something."""
    places = 3 if value >= 0.1 else 2 - math.floor(math.log10(value))
    return f"{value:.{places}f}"


def _bounds(outcome: Outcome, *, money: bool = True) -> str:
    effective = outcome.problem.effective
    bounds = []
    if money and effective.max_usd_per_hour is not None and effective.on_exceeded == "Shed":
        bounds.append(f"budget ${format_decimal(effective.max_usd_per_hour)}/h")
    if effective.max_replicas is not None:
        bounds.append(f"maxReplicas {effective.max_replicas}")
    bounds.append(f"spot at most {effective.spot_max_traffic_percent} % of traffic")
    bounds.append(f"a vendor at most {effective.max_traffic_percent_per_vendor} %")
    return ", ".join(bounds)


def _nodes_alone(outcome: Outcome, option: Option, share: float = 1.0) -> int:
    """Whole nodes that carry a share of what the plan serves."""
    served = outcome.served * share
    replicas = max(
        1, math.ceil(served / option.capacity.turns_per_second - 1e-9), outcome.problem.effective.min_replicas
    )
    return option.nodes_for(replicas)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
