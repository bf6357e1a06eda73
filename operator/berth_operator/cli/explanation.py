"""Why is a pool where it is, in words for someone who is new to it?  Pure: status and what-ifs in, a paragraph out."""

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal

from berth_operator.api import (
    CandidateStatus,
    Effective,
    HardwareClass,
    InferencePool,
    InferencePoolStatus,
    PlacementStatus,
    Quantization,
    format_digits,
    format_duration,
    resolve,
)
from berth_operator.api.inference_pool import WorkloadClass
from berth_operator.cli.load_explained import load_sentences
from berth_operator.cli.plan_view import capacity_words, money
from berth_operator.cli.what_if import WhatIf
from berth_operator.planner import PoolPlan, Verdict

_USERS = {
    WorkloadClass.AGENTIC: "an agent, which takes many short turns",
    WorkloadClass.INTERACTIVE: "people who read the answer as it comes",
    WorkloadClass.BATCH: "batch jobs, for which nobody waits",
}
_WEIGHTS = {
    Quantization.INT8: " with 8-bit weights",
    Quantization.INT4: " with 4-bit weights",
    Quantization.BF16: " with 16-bit weights",
    Quantization.ANY: "",
}
_OBJECTIVES = {
    "Power": "Its objective is Power: watts decide where it runs, and money only between equals.",
    "Latency": "Its objective is Latency: the hardware that answers fastest is taken, and money only decides between"
    " equals.",
}
_UNDONE = {"ObjectivesMet": "It does not keep its promises", "WithinBudget": "It is over its budget"}
Classes = Mapping[str, HardwareClass]


def paragraph(
    pool: InferencePool, status: InferencePoolStatus, classes: Classes, what_if: WhatIf, *, live: bool
) -> str:
    """What the pool serves, where, why there, what was next best, and what would change that.

    `live`: the status is a cluster's, so it also says what is ready and what is wrong.
    """
    effective = resolve(pool.spec)
    sentences = [_serves(pool, effective), *load_sentences(status), _promises(effective)]
    placements = status.placements or []
    kept = bool(placements) and effective.mode == "Apply" and _unplaced(status) is not None
    if kept:
        sentences += [_runs(placements, classes, effective), _stays(status)]
    elif placements:
        sentences += [_runs(placements, classes, effective), _costs(status), *_undone(status)]
        sentences += _why(status.candidates or [], effective)
    else:
        sentences.append(_nothing(status))
    sentences += _afresh(what_if, status)
    sentences += _next_best(what_if, status)
    sentences += [_at_demand(factor, other) for factor, other in what_if.at_demand]
    if live and placements and not kept:
        sentences += _not_ready(status)
    if any(c.estimated for c in status.candidates or [] if c.verdict == Verdict.CHOSEN):
        sentences.append(
            "The speeds behind this are estimates from data sheets; `berth bench` measures a worker and prints the"
            " ServingProfile that replaces them."
        )
    return " ".join(sentences)


def _serves(pool: InferencePool, effective: Effective) -> str:
    cached = effective.cached_prompt_percent
    kept = f", {cached}% of it cached from earlier turns," if cached else ""
    return (
        f"{pool.key} serves {effective.model}{_WEIGHTS[effective.quantization]} to {_USERS[effective.workload_class]}:"
        f" {_rate(effective.requests_per_second)}, each with {effective.prompt_tokens} tokens of prompt{kept}"
        f" and {effective.output_tokens} tokens of answer."
    )


def _rate(per_second: Decimal) -> str:
    for seconds, time in ((1, "second"), (60, "minute"), (3600, "hour")):
        if per_second * seconds >= 1:
            return _requests(per_second * seconds, time)
    return _requests(per_second * 86_400, "day")


def _requests(rate: Decimal, time: str) -> str:
    count = _plain(rate)
    return f"{count} request{'' if count == '1' else 's'} {'an' if time == 'hour' else 'a'} {time}"


def _plain(value: Decimal) -> str:
    """Up to two places, without trailing zeros."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return text or "0"


def _promises(effective: Effective) -> str:
    return (
        f"It promises 99 of 100 requests the first token within {format_duration(effective.time_to_first_token_p99)},"
        f" at most {format_duration(effective.inter_token_latency_p99)} between tokens, and the whole answer within"
        f" {format_duration(effective.turn_latency_p99)}."
    )


def _runs(placements: Sequence[PlacementStatus], classes: Classes, effective: Effective) -> str:
    where = " and ".join(_where(p, classes, alone=len(placements) == 1) for p in placements)
    return f"{'It would run' if effective.mode == 'Recommend' else 'It runs'} on {where}."


def _where(placement: PlacementStatus, classes: Classes, *, alone: bool) -> str:
    hardware = classes.get(placement.hardware_class)
    chip = f", {hardware.spec.vendor} {hardware.spec.chip}" if hardware else ""
    share = "" if alone else f" with {placement.traffic_percent}% of the traffic"
    replicas = "1 replica" if placement.replicas == 1 else f"{placement.replicas} replicas"
    return f"{placement.hardware_class} ({replicas} {capacity_words(placement.capacity_type)}{chip}){share}"


def _costs(status: InferencePoolStatus) -> str:
    cost = status.cost
    if cost is None:
        return "What it costs is not known."
    per_token = (
        f", {cost.usd_per_million_tokens} USD per million tokens at this load" if cost.usd_per_million_tokens else ""
    )
    text = f"That costs {cost.usd_per_hour} USD an hour{per_token}"
    if cost.gpu_only_usd_per_hour is None:
        return f"{text}; no GPU class could serve it."
    if cost.savings_percent is None:
        return f"{text}."
    if cost.savings_percent > 0:
        return (
            f"{text}; the cheapest fleet of GPUs alone would cost {cost.gpu_only_usd_per_hour}, so it saves"
            f" {cost.savings_percent}%."
        )
    if cost.savings_percent == 0:
        return f"{text}, just what the cheapest fleet of GPUs alone would cost."
    return (
        f"{text}; were money all that counts, and no node limited, a fleet of GPUs alone could cost as little as"
        f" {cost.gpu_only_usd_per_hour}."
    )


def _why(candidates: Sequence[CandidateStatus], effective: Effective) -> Iterator[str]:
    """The reasons of what was chosen, then of what comes nearest without being it."""
    if effective.objective in _OBJECTIVES:
        yield _OBJECTIVES[effective.objective]
    chosen = [c for c in candidates if c.verdict == Verdict.CHOSEN]
    if chosen:
        asked = format_digits(float(effective.requests_per_second))
        yield (
            "Why there: "
            + "; ".join(f"on {_named(c)}, {c.reason}" for c in chosen)
            + f" (a turn is one request with its answer; {asked} a second are asked for)."
        )
    taken = {c.hardware_class for c in chosen}
    slow = [c for c in candidates if c.verdict in (Verdict.TOO_SLOW, Verdict.DOES_NOT_FIT)]
    seen: set[str] = set()
    for c in slow:
        if c.hardware_class not in taken | seen:
            seen.add(c.hardware_class)
            slower = "is slower" if effective.objective == "Latency" else "is too slow"
            what = slower if c.verdict == Verdict.TOO_SLOW else "is too small"
            yield f"{c.hardware_class} {what}: {c.reason}."
    for c in candidates:
        if c.verdict in (Verdict.CONSTRAINED, Verdict.NO_CAPACITY, Verdict.AT_FAULT):
            yield f"{_named(c)} cannot be had: {c.reason}."


def _named(candidate: CandidateStatus) -> str:
    return f"{candidate.hardware_class} {capacity_words(candidate.capacity_type)}"


def _unplaced(status: InferencePoolStatus) -> str | None:
    """Why the plan has no place for it; None where it has one."""
    conditions = {c.type: c for c in status.conditions or []}
    found = (conditions.get(kind) for kind in ("Accepted", "Placed"))
    return next((c.message for c in found if c and c.status != "True"), None)


def _nothing(status: InferencePoolStatus) -> str:
    why = _unplaced(status)
    return f"It runs nowhere: {why}." if why else "It runs nowhere."


def _stays(status: InferencePoolStatus) -> str:
    costs = f"That costs {status.cost.usd_per_hour} USD an hour. " if status.cost else ""
    return f"{costs}The plan has no place for it, and what it runs stays as it is: {_unplaced(status)}."


def _afresh(what_if: WhatIf, status: InferencePoolStatus) -> Iterator[str]:
    """What holds a pool where it is, when a plan from scratch would put it elsewhere."""
    afresh, placements = what_if.afresh, status.placements or []
    if afresh is None or not placements or not afresh.placements:
        return
    here = {(p.hardware_class, p.capacity_type) for p in placements}
    if {(p.hardware_class, p.capacity_type) for p in afresh.placements} != here:
        yield (
            f"Placed afresh it would be on {_short(afresh)} for {money(afresh.usd_per_hour)} USD an hour; what runs is"
            " moved only when that saves enough, and not within the cooldown of the last move"
            " (spec.placement.disruption)."
        )


def _next_best(what_if: WhatIf, status: InferencePoolStatus) -> Iterator[str]:
    other = what_if.without
    if other is None:
        if status.placements and what_if.afresh is not None:
            yield "Nothing else could serve it."
        return
    short = ", and not serve all of the demand" if other.unserved_requests_per_second > 0 else ""
    price = money(other.usd_per_hour)
    yield f"Next best is {_short(other)}: it would cost {price} USD an hour{_more(status, other)}{short}."
    yield from _when(status.candidates or [], other)


def _when(candidates: Sequence[CandidateStatus], other: PoolPlan) -> Iterator[str]:
    """At which price of a node the next best would be best, where its reason says so."""
    reasons = {(c.hardware_class, c.capacity_type): c.reason for c in candidates if c.verdict == Verdict.TOO_EXPENSIVE}
    for p in other.placements if len(other.placements) == 1 else ():
        reason = reasons.get((p.hardware_class, p.capacity_type), "")
        if found := re.match(r"would enter below (\$[0-9.]+)/h", reason):
            yield f"It would be taken if a node of it cost less than {found[1]} an hour."


def _more(status: InferencePoolStatus, other: PoolPlan) -> str:
    now = Decimal(status.cost.usd_per_hour) if status.cost else Decimal(0)
    if now <= 0 or other.usd_per_hour <= now:
        return ""
    return f", {(other.usd_per_hour / now - 1) * 100:.0f}% more"


def _at_demand(factor: Decimal, other: PoolPlan) -> str:
    named = {Decimal(2): "twice", Decimal(10): "ten times", Decimal("0.5"): "half", Decimal("0.1"): "a tenth of"}
    times = named.get(factor, f"{factor} x")
    if not other.placements:
        return f"At {times} the demand nothing could serve it."
    short = ", and some demand would go unserved" if other.unserved_requests_per_second > 0 else ""
    return f"At {times} the demand it would be on {_short(other)} for {money(other.usd_per_hour)} USD an hour{short}."


def _short(pool_plan: PoolPlan) -> str:
    return " and ".join(
        f"{p.replicas} x {p.hardware_class} {capacity_words(p.capacity_type)}" for p in pool_plan.placements
    )


def _undone(status: InferencePoolStatus) -> Iterator[str]:
    """What the plan leaves undone, in the words of the conditions."""
    conditions = {c.type: c for c in status.conditions or []}
    for kind, words in _UNDONE.items():
        found = conditions.get(kind)
        if found and found.status == "False":
            yield f"{words}: {found.message}."


def _not_ready(status: InferencePoolStatus) -> Iterator[str]:
    """Why a placed pool does not serve, where that has not been said."""
    conditions = {c.type: c for c in status.conditions or []}
    ready, told = conditions.get("Ready"), {c.message for c in conditions.values() if c.type in _UNDONE}
    if ready and ready.status != "True" and ready.message not in told:
        yield f"Not ready yet: {ready.message}."
