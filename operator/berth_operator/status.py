"""What do we tell the user?  Conditions and status from the plan and from what runs.

Pure.  A status that differs from the one in force only by jitter (prices and predictions within 2 %) is not written.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from berth_operator import planner
from berth_operator.api import (
    CandidateStatus,
    CapacityType,
    Condition,
    InferencePool,
    InferencePoolStatus,
    PlacementStatus,
    PoolCost,
    format_decimal,
    format_duration,
    format_time,
)
from berth_operator.api.meta import Facts
from berth_operator.api.names import MANAGED_BY, MANAGED_BY_LABEL, POOL_LABEL
from berth_operator.history import SERVED_BY_OTHERS, Situation, recorded
from berth_operator.keeping import cost_of, kept_by, kept_of
from berth_operator.load.facts import NO_LOAD, LoadFacts
from berth_operator.planner import Placement, PoolPlan, Problem, RunningPlacement, Stay, Verdict
from berth_operator.settling import condition, same_words, settled

_OUT_OF_REACH = {Verdict.CONSTRAINED, Verdict.AT_FAULT}

_AWAITS_REQUESTS: Facts = ("True", "Asleep", "no worker runs; the first request wakes the pool")


@dataclass(frozen=True, slots=True)
class Trouble:
    """What keeps a pool from becoming what its plan wants: reason and message of its Progressing condition."""

    reason: str
    message: str
    stuck: bool
    """Nothing will come of waiting: somebody has to change something."""
    unreachable: bool = False
    """Clients cannot reach the pool, whatever of it is ready."""


def pool_status(
    pool: InferencePool,
    plan: PoolPlan,
    running: Sequence[RunningPlacement],
    now: datetime,
    also: Mapping[str, Facts] | None = None,
    load: LoadFacts = NO_LOAD,
    trouble: Trouble | None = None,
    stays: Sequence[Stay] = (),
) -> InferencePoolStatus:
    """The status of one pool; the one in force itself when nothing that a reader cares about has changed.

    `running` and `stays` hold the pool's own.  `now` must be timezone-aware.  `also`: further conditions, those
    that are there only while there is something to say.  `trouble`: what keeps the pool from becoming what the plan
    wants, if anything does.
    """
    ready = _ready_by_placement(plan, running)
    kept = kept_by(plan, running, pool.status, stays, asleep=load.asleep)
    placements = [*(_placement_status(p, ready) for p in plan.placements), *kept]
    before = {(p.hardware_class, p.capacity_type) for p in pool.status.placements or ()}
    after = {(p.hardware_class, p.capacity_type) for p in placements}
    moved = bool(before) and bool(after) and before != after
    status = InferencePoolStatus(
        observed_generation=pool.metadata.generation,
        conditions=_conditions(
            pool, plan, ready, running, kept, now, {**(also or {}), **load.conditions}, trouble, asleep=load.asleep
        ),
        ready=f"{sum(p.ready_replicas for p in placements)}/{sum(p.replicas for p in placements)}",
        placement=_line(plan.placements, kept),
        saved=None if (percent := savings_percent(plan)) is None else f"{percent}%",
        effective=plan.effective.to_api(),
        placements=placements,
        cost=PoolCost(
            usd_per_hour=_money(plan.usd_per_hour + cost_of(kept)),
            usd_per_million_tokens=_optional(plan.usd_per_million_tokens, _money),
            gpu_only_usd_per_hour=_optional(plan.gpu_only_usd_per_hour, _money),
            savings_percent=savings_percent(plan),
            watts=plan.watts,
        ),
        candidates=[
            CandidateStatus(
                hardware_class=c.hardware_class,
                capacity_type=c.capacity_type,
                verdict=c.verdict.value,
                estimated=c.estimated,
                reason=c.reason,
                usd_per_million_tokens=_optional(c.usd_per_million_tokens, _money),
            )
            for c in plan.candidates
        ],
        demand=load.demand,
        drift=list(load.drift) or None,
        selector=f"{MANAGED_BY_LABEL}={MANAGED_BY},{POOL_LABEL}={pool.metadata.name}",
        concurrent_sessions=plan.effective.concurrent_sessions,
        last_move_time=format_time(now) if moved else pool.status.last_move_time,
        history=recorded(
            pool.status.history or (),
            now,
            replace(
                _situation(pool, plan, ready, running, trouble, asleep=load.asleep),
                contested=_contested(pool.status, also or {}),
            ),
        )
        or None,
    )
    return pool.status if settled(pool.status.to_api(), status.to_api()) else status


def _contested(before: InferencePoolStatus, also: Mapping[str, Facts]) -> str | None:
    """Who serves the pool beside us, where that is new: releases that both do write the same status."""
    facts = also.get(SERVED_BY_OTHERS)
    known = any(c.type == SERVED_BY_OTHERS for c in before.conditions or ())
    return facts[2] if facts and not known else None


def _situation(
    pool: InferencePool,
    plan: PoolPlan,
    ready: Mapping[tuple[str, CapacityType], int],
    running: Sequence[RunningPlacement],
    trouble: Trouble | None,
    *,
    asleep: bool,
) -> Situation:
    """What of all this may be a decision worth telling."""
    if plan.not_accepted:
        return Situation(refused=plan.not_accepted.message)
    if plan.effective.mode != "Apply" or plan.effective.suspend or asleep:
        return Situation()
    old = next((c for c in pool.status.conditions or () if c.type == "Progressing"), None)
    failed = trouble if trouble and trouble.stuck and not trouble.unreachable else None
    leaving = any(r.replicas for r in running if (r.hardware_class, r.capacity_type) not in ready)
    short = [c for c in plan.candidates if c.verdict in _OUT_OF_REACH or c.limited_until]
    return Situation(
        hardware=[f"{name}/{kind.value}" for name, kind in ready],
        placement=", ".join(_short(p) for p in plan.placements) + f" for {_money(plan.usd_per_hour)} USD/h",
        settled=not leaving and sum(ready.values()) >= sum(p.replicas for p in plan.placements),
        constrained=[f"{c.hardware_class}/{c.capacity_type.value}" for c in short],
        unplaced=None if plan.placements else _placed(plan)[2],
        failed=failed.message if failed and (old is None or old.reason != failed.reason) else None,
    )


def rejected_status(
    pool_status_now: InferencePoolStatus,
    generation: int,
    message: str,
    now: datetime,
    running: Sequence[RunningPlacement] = (),
    stays: Sequence[Stay] = (),
) -> dict[str, Any]:
    """The status (API form) of a pool whose object does not even parse: Accepted=False and Ready=False.

    What it runs (`running`) stays as it is, and so does what its status alone remembers: demand and the last move.
    """
    problem: Facts = ("False", "InvalidSpec", message)
    old = {c.type: c for c in pool_status_now.conditions or ()}
    conditions = [condition(kind, problem, old, generation, now) for kind in ("Ready", "Accepted")]
    history = recorded(pool_status_now.history or (), now, Situation(refused=message))
    kept = kept_of(running, pool_status_now, stays)
    return InferencePoolStatus(
        observed_generation=generation,
        conditions=conditions,
        ready=f"{sum(p.ready_replicas for p in kept)}/{sum(p.replicas for p in kept)}" if kept else None,
        placement=_line((), kept),
        placements=list(kept) or None,
        cost=PoolCost(usd_per_hour=_money(cost_of(kept))) if kept else None,
        demand=pool_status_now.demand,
        last_move_time=pool_status_now.last_move_time,
        history=history,
    ).to_api()


def savings_percent(plan: PoolPlan) -> int | None:
    """Savings against GPU-only in whole percent, rounded down; None without a counterfactual or unserved demand."""
    if not plan.placements or plan.unserved_requests_per_second > 0:
        return None
    return planner.savings_percent(plan.usd_per_hour, plan.gpu_only_usd_per_hour)


def _placement_status(placement: Placement, ready: Mapping[tuple[str, CapacityType], int]) -> PlacementStatus:
    return PlacementStatus(
        hardware_class=placement.hardware_class,
        capacity_type=placement.capacity_type,
        replicas=placement.replicas,
        ready_replicas=ready[placement.hardware_class, placement.capacity_type],
        usd_per_hour=_money(placement.usd_per_hour),
        traffic_percent=placement.traffic_percent,
        nodes_per_replica=placement.nodes_per_replica if placement.nodes_per_replica > 1 else None,
    )


def _ready_by_placement(plan: PoolPlan, running: Sequence[RunningPlacement]) -> dict[tuple[str, CapacityType], int]:
    seen = {(r.hardware_class, r.capacity_type): r.ready_replicas for r in running}
    return {
        (p.hardware_class, p.capacity_type): min(p.replicas, seen.get((p.hardware_class, p.capacity_type), 0))
        for p in plan.placements
    }


def _conditions(
    pool: InferencePool,
    plan: PoolPlan,
    ready: Mapping[tuple[str, CapacityType], int],
    running: Sequence[RunningPlacement],
    kept: Sequence[PlacementStatus],
    now: datetime,
    also: Mapping[str, Facts],
    trouble: Trouble | None,
    *,
    asleep: bool,
) -> list[Condition]:
    old = {c.type: c for c in pool.status.conditions or ()}
    wanted, up = sum(p.replicas for p in plan.placements), sum(ready.values())
    leaving = sum(r.replicas for r in running if (r.hardware_class, r.capacity_type) not in ready)
    facts: dict[str, Facts] = {
        "Accepted": _accepted(plan),
        "Placed": _asleep(plan) if asleep and plan.not_accepted is None else _placed(plan, kept),
        "Progressing": same_words(
            _progressing(plan, wanted, up, leaving, sum(r.leaving_replicas for r in running), trouble, kept),
            old.get("Progressing"),
        ),
        "Available": _available(plan, sum(r.ready_replicas for r in running), asleep=asleep),
        "WithinBudget": _within_budget(plan, kept),
        "ObjectivesMet": _objectives_met(plan),
        "CapacityConstrained": _capacity_constrained(plan),
    }
    awaits = asleep and plan.not_accepted is None
    ready_now = _awaiting(trouble) if awaits else _ready(plan, facts, wanted, up, trouble)
    facts = {"Ready": ready_now, **facts, **also}
    return [condition(kind, fact, old, pool.metadata.generation, now) for kind, fact in facts.items()]


def _said(status: Literal["True", "False", "Unknown"], problem: Problem) -> Facts:
    return (status, problem.reason, problem.message)


def _accepted(plan: PoolPlan) -> Facts:
    return _said("False", plan.not_accepted) if plan.not_accepted else ("True", "Accepted", "the spec can be planned")


def _asleep(plan: PoolPlan) -> Facts:
    resume = plan.resume_usd_per_hour
    price = "no hardware can be had for it now" if resume is None else f"awake it costs {_money(resume)} USD/h"
    return ("False", "Asleep", f"no request for spec.scaling.scaleToZeroAfter, the next one wakes it: {price}")


def _placed(plan: PoolPlan, kept: Sequence[PlacementStatus] = ()) -> Facts:
    if plan.not_accepted:
        stays = f", and {', '.join(map(_short, kept))} stays as it is" if kept else ""
        return ("False", "NotAccepted", f"nothing is placed{stays}: see Accepted")
    if plan.effective.suspend:
        resume = plan.resume_usd_per_hour
        price = "no hardware can be had for it now" if resume is None else f"resuming costs {_money(resume)} USD/h"
        return ("False", "Suspended", f"spec.suspend is true: {price}")
    if not plan.placements:
        return _said("False", plan.shortfall or Problem("NoPlacement", "no placement was found"))
    text = "; ".join(_taking(p) for p in plan.placements)
    if plan.effective.mode == "Recommend":
        return ("False", "Recommended", f"placement.mode is Recommend, nothing is applied; it would be: {text}")
    return ("True", "Placed", text + (f". {plan.kept.message}" if plan.kept else ""))


def _progressing(
    plan: PoolPlan,
    wanted: int,
    up: int,
    leaving: int,
    interrupted: int,
    trouble: Trouble | None,
    kept: Sequence[PlacementStatus],
) -> Facts:
    if plan.effective.mode == "Recommend" or plan.not_accepted:
        return ("False", "NotApplied", "nothing is being changed")
    if trouble:
        return ("False" if trouble.stuck else "True", trouble.reason, trouble.message)
    if interrupted:
        return ("True", "Replacing", f"{interrupted} replicas are on nodes that are going away, and are being replaced")
    if up < wanted:
        return ("True", "Starting", f"{up} of {wanted} replicas are ready")
    if leaving:
        return _leaving(plan, leaving, kept)
    return ("False", "Complete", "what runs is what the plan wants")


def _leaving(plan: PoolPlan, leaving: int, kept: Sequence[PlacementStatus]) -> Facts:
    """Of workers on hardware that the plan does not use.  Where it has not enough to replace them, they stay."""
    if kept:
        what = "not enough" if plan.placements else "nothing"
        return ("False", "Kept", f"{leaving} replicas stay where they are: the plan has {what} to replace them")
    return ("True", "Moving", f"{leaving} replicas are leaving hardware that the plan no longer uses")


def _available(plan: PoolPlan, up: int, *, asleep: bool) -> Facts:
    if up:
        return ("True", "Serving", f"{up} replicas are ready to serve")
    if plan.placements:
        return ("False", "NoReadyReplica", "no replica is ready")
    rests = asleep or plan.effective.suspend
    return ("False", "NoReadyReplica", "no replica is wanted" if rests else "no replica is placed: see Placed")


def _within_budget(plan: PoolPlan, kept: Sequence[PlacementStatus]) -> Facts:
    if plan.over_budget:
        return _said("False", plan.over_budget)
    limit, usd = plan.effective.max_usd_per_hour, plan.usd_per_hour + cost_of(kept)
    if limit is None:
        return ("True", "NoBudget", "spec.budget is unset: costs are not limited")
    if kept and usd > limit:
        stays = ", ".join(map(_short, kept))
        return ("False", "Kept", f"{_money(usd)} of at most {_money(limit)} USD/h, with {stays}, which stays as it is")
    return ("True", "WithinBudget", f"{_money(usd)} of at most {_money(limit)} USD/h")


def _objectives_met(plan: PoolPlan) -> Facts:
    if not plan.placements:
        return ("Unknown", "NotPlaced", "nothing is placed")
    if plan.shortfall and plan.unserved_requests_per_second > 0:
        return _said("False", plan.shortfall)
    effective, worst = plan.effective, max(plan.placements, key=lambda p: p.capacity.turn_latency_p99)
    how = "estimated by roofline" if worst.capacity.estimated else "from serving profiles"
    return (
        "True",
        "Predicted",
        f"p99 at the planned load, {how}: first token"
        f" {_milliseconds(max(p.capacity.time_to_first_token_p99 for p in plan.placements))} of"
        f" {format_duration(effective.time_to_first_token_p99)}, between tokens"
        f" {_milliseconds(max(p.capacity.inter_token_latency_p99 for p in plan.placements))} of"
        f" {format_duration(effective.inter_token_latency_p99)}, turn"
        f" {_milliseconds(worst.capacity.turn_latency_p99)} of {format_duration(effective.turn_latency_p99)}",
    )


def _capacity_constrained(plan: PoolPlan) -> Facts:
    held = [c for c in plan.candidates if c.verdict == Verdict.CONSTRAINED]
    clipped = [c for c in plan.candidates if c.limited_until]
    if held or clipped:
        texts = [f"{c.hardware_class} {c.capacity_type.value}: {c.reason}" for c in held]
        texts += [
            f"{c.hardware_class} {c.capacity_type.value}: no more than what runs until {c.limited_until}"
            for c in clipped
        ]
        return ("True", "Constrained", "; ".join(texts))
    return ("False", "Unconstrained", "no shortage is known")


def _awaiting(trouble: Trouble | None) -> Facts:
    """Of a pool that sleeps: no request can wake it where none can reach it."""
    if trouble and trouble.unreachable:
        return ("False", trouble.reason, trouble.message)
    return _AWAITS_REQUESTS


def _ready(plan: PoolPlan, facts: Mapping[str, Facts], wanted: int, up: int, trouble: Trouble | None) -> Facts:
    for kind, bad in (("Accepted", "False"), ("Placed", "False")):
        if facts[kind][0] == bad:
            reason = facts[kind][1] if kind == "Placed" else "NotAccepted"
            return ("False", reason, facts[kind][2])
    if trouble and trouble.unreachable:
        return ("False", trouble.reason, trouble.message)
    if up < wanted:
        why = f": {facts['Progressing'][2]}" if trouble else ""
        reason = trouble.reason if trouble and trouble.stuck else "Starting"
        return ("False", reason if up == 0 else "Degraded", f"{up} of {wanted} replicas are ready{why}")
    if facts["ObjectivesMet"][0] == "False":
        return ("False", "DemandUnserved", facts["ObjectivesMet"][2])
    return _serving(facts, wanted, up, trouble)


def _serving(facts: Mapping[str, Facts], wanted: int, up: int, trouble: Trouble | None) -> Facts:
    """Of a pool that serves all that it should."""
    if facts["WithinBudget"][0] == "False":
        return ("True", "OverBudget", facts["WithinBudget"][2])
    if trouble or facts["Progressing"][0] == "True":
        return ("True", trouble.reason if trouble else "Moving", facts["Progressing"][2])
    return ("True", "Ready", f"{up} of {wanted} replicas are ready")


def _short(placement: Placement | PlacementStatus) -> str:
    return f"{placement.replicas}x {placement.hardware_class}/{placement.capacity_type.value}"


def _line(placements: Sequence[Placement], kept: Sequence[PlacementStatus]) -> str | None:
    return ", ".join([*map(_short, placements), *(f"{_short(p)} (kept)" for p in kept)]) or None


def _taking(placement: Placement) -> str:
    shared = f", which {placement.shared_with}," if placement.beside else ""
    return f"{_short(placement)}{shared} takes {placement.traffic_percent}% of traffic"


def _money(value: Decimal) -> str:
    return format_decimal(value, 3)


def _optional(value: Decimal | None, form: Callable[[Decimal], str]) -> str | None:
    return None if value is None else form(value)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f}ms" if seconds < 10 else f"{seconds:.1f}s"
