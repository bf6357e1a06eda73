"""How is a plan shown?  As data with the API's names, and as tables with the reason for every candidate."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from berth_operator.api import (
    CandidateStatus,
    CapacityType,
    HardwareClass,
    format_decimal,
    format_digits,
    format_duration,
    format_rate,
)
from berth_operator.cli.output import Fitting
from berth_operator.cli.plan_diff import Change, dollars, together
from berth_operator.planner import Candidate, Placement, Plan, PoolPlan, Snapshot, Verdict
from berth_operator.status import savings_percent

_WORDS = {CapacityType.ON_DEMAND: "on demand", CapacityType.SPOT: "spot", CapacityType.RESERVED: "reserved"}
_STYLES = {Verdict.CHOSEN.value: "bold green", Verdict.TOO_EXPENSIVE.value: "yellow"}


@dataclass(frozen=True, slots=True)
class Fleet:
    """Every pool together."""

    usd_per_hour: Decimal
    gpu_only_usd_per_hour: Decimal | None
    """Of all pools; None when one of them has no GPU-only plan to be compared with."""
    savings_percent: int | None

    @classmethod
    def of(cls, plan: Plan) -> "Fleet":
        """Add the pools up.  Savings are those of the pools that are served in full and have a counterfactual."""
        placed = [pool for pool in plan.pools.values() if pool.placements]
        comparable = [pool for pool in placed if savings_percent(pool) is not None]
        ours = sum((pool.usd_per_hour for pool in comparable), Decimal(0))
        others = sum((pool.gpu_only_usd_per_hour or Decimal(0) for pool in comparable), Decimal(0))
        return cls(
            usd_per_hour=sum((pool.usd_per_hour for pool in placed), Decimal(0)),
            gpu_only_usd_per_hour=others if comparable and len(comparable) == len(placed) else None,
            savings_percent=int((others - ours) / others * 100 // 1) if others > 0 else None,
        )


def money(value: Decimal | None) -> str:
    """US dollars to a tenth of a cent; a dash for none."""
    return "-" if value is None else format_decimal(value, 3)


def capacity_words(kind: CapacityType) -> str:
    """`on demand`, `spot` or `reserved`."""
    return _WORDS[kind]


# --- Data -----------------------------------------------------------------------------------------------------------


def plan_data(plan: Plan, against: Mapping[str, Change] | None = None) -> dict[str, Any]:
    """The plan as JSON data; with what it changes, where what runs is known."""
    fleet, against = Fleet.of(plan), against or {}
    data: dict[str, Any] = _without_none(
        {
            "pools": [pool_data(plan.pools[key]) | _change_data(against.get(key)) for key in sorted(plan.pools)],
            "fleet": {
                "usdPerHour": money(fleet.usd_per_hour),
                "gpuOnlyUsdPerHour": _optional_money(fleet.gpu_only_usd_per_hour),
                "savingsPercent": fleet.savings_percent,
                "moreUsdPerHour": _optional_dollars(together(against)) if against else None,
            },
            "shadowPrices": [
                {
                    "hardwareClass": price.hardware_class,
                    "capacityType": price.capacity_type.value,
                    "usdPerHour": money(price.usd_per_hour),
                    **({"atLeast": True} if price.at_least else {}),
                    **({"marginal": True} if price.marginal else {}),
                }
                for price in plan.shadow_prices
            ],
            "shortages": [
                {"priority": short.priority, "unserved": round(short.unserved, 6), "atLeast": round(short.bound, 6)}
                for short in plan.shortages
            ]
            or None,
            "staying": [
                {
                    "namespace": stay.pool.partition("/")[0],
                    "name": stay.pool.partition("/")[2],
                    "hardwareClass": stay.hardware_class,
                    "capacityType": stay.capacity_type.value,
                    "replicas": stay.replicas,
                    "nodes": stay.nodes,
                    "usdPerHour": _optional_money(stay.usd_per_hour),
                }
                for stay in plan.staying
            ]
            or None,
            "solver": {"status": plan.solver_status, "gapPercent": round(plan.gap * 100, 3)},
        }
    )
    return data


def pool_data(pool: PoolPlan) -> dict[str, Any]:
    """One pool's plan as JSON data, with the names that its status has."""
    data: dict[str, Any] = _without_none(_pool_data(pool))
    return data


def _pool_data(pool: PoolPlan) -> dict[str, Any]:
    namespace, _, name = pool.pool.partition("/")
    problems = {
        "notAccepted": pool.not_accepted,
        "shortfall": pool.shortfall,
        "overBudget": pool.over_budget,
        "kept": pool.kept,
    }
    return {
        "namespace": namespace,
        "name": name,
        "model": pool.effective.model,
        "effective": pool.effective.to_api(),
        "placements": [_placement_data(placement) for placement in pool.placements],
        "cost": {
            "usdPerHour": money(pool.usd_per_hour),
            "usdPerMillionTokens": _optional_money(pool.usd_per_million_tokens),
            "gpuOnlyUsdPerHour": _optional_money(pool.gpu_only_usd_per_hour),
            "savingsPercent": savings_percent(pool),
            "resumeUsdPerHour": _optional_money(pool.resume_usd_per_hour),
            "watts": pool.watts,
        },
        "servedRequestsPerSecond": _rate(pool.served_requests_per_second),
        "unservedRequestsPerSecond": _rate(pool.unserved_requests_per_second),
        **{name: {"reason": p.reason, "message": p.message} for name, p in problems.items() if p},
        "candidates": [
            {
                "hardwareClass": c.hardware_class,
                "capacityType": c.capacity_type.value,
                "verdict": c.verdict.value,
                "reason": c.reason,
                "usdPerMillionTokens": _optional_money(c.usd_per_million_tokens),
                "estimated": c.estimated,
            }
            for c in pool.candidates
        ],
    }


def _change_data(change: Change | None) -> dict[str, Any]:
    if change is None:
        return {}
    steps = [
        {"hardwareClass": s.hardware_class, "capacityType": s.capacity_type.value, "from": s.before, "to": s.after}
        for s in change.steps
    ]
    more = _optional_dollars(change.more_usd_per_hour)
    return {"changes": steps} | ({} if more is None else {"moreUsdPerHour": more})


def _optional_dollars(more: Decimal | None) -> str | None:
    return None if more is None else dollars(more).removeprefix("+")


def _placement_data(placement: Placement) -> dict[str, Any]:
    carried = placement.capacity
    return {
        "hardwareClass": placement.hardware_class,
        "capacityType": placement.capacity_type.value,
        "replicas": placement.replicas,
        "nodes": placement.nodes,
        **({"nodesPerReplica": placement.nodes_per_replica} if placement.nodes_per_replica > 1 else {}),
        "paidNodes": f"{float(placement.paid_nodes):.6g}" if placement.paid is not None else None,
        "sharedWithPools": placement.beside or None,
        "usdPerHour": money(placement.usd_per_hour),
        "watts": placement.watts,
        "trafficPercent": placement.traffic_percent,
        "quantization": placement.quantization.value,
        "replica": {
            "requestsPerSecond": _rate(carried.turns_per_second),
            "concurrency": carried.concurrency,
            "timeToFirstTokenP99": _seconds(carried.time_to_first_token_p99),
            "interTokenLatencyP99": _seconds(carried.inter_token_latency_p99),
            "turnLatencyP99": _seconds(carried.turn_latency_p99),
            "estimated": carried.estimated,
        },
    }


def _optional_money(value: Decimal | None) -> str | None:
    return None if value is None else money(value)


def _rate(value: float) -> str:
    return format_rate(Decimal(repr(value)))


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f}ms" if value < 10 else f"{value:.1f}s"


def _without_none(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_none(value) for key, value in data.items() if value is not None}
    return [_without_none(item) for item in data] if isinstance(data, list) else data


# --- Tables ---------------------------------------------------------------------------------------------------------


def print_plan(
    console: Console,
    plan: Plan,
    snapshot: Snapshot,
    *,
    summary: bool = False,
    against: Mapping[str, Change] | None = None,
) -> None:
    """Print the fleet on one table and then, unless `summary`, each pool with its candidates.

    `against`: what the plan changes, where what runs is known.
    """
    classes = {item.metadata.name: item for item in snapshot.hardware_classes}
    if not plan.pools:
        console.print("No InferencePool that can be planned: there is nothing to place.")
        return
    console.print(Fitting(_fleet_table(plan, against)))
    if not summary:
        for key in sorted(plan.pools):
            console.print(Group(*_pool_section(plan.pools[key], classes, (against or {}).get(key))))
    for line in _footnotes(plan):
        console.print(Text(line, style="dim"))


def _fleet_table(plan: Plan, against: Mapping[str, Change] | None) -> Table:
    fleet = Fleet.of(plan)
    table = Table(box=box.SIMPLE_HEAD, show_footer=len(plan.pools) > 1)
    table.add_column("POOL", footer="all pools", no_wrap=True)
    table.add_column("MODEL", overflow="fold")
    table.add_column("PLACEMENT", overflow="fold")
    if against is not None:
        more = together(against)
        table.add_column("AGAINST NOW", overflow="fold", footer="" if more is None else f"{dollars(more)} USD/h")
    table.add_column("USD/H", justify="right", no_wrap=True, footer=money(fleet.usd_per_hour))
    table.add_column("GPU ONLY", justify="right", no_wrap=True, footer=money(fleet.gpu_only_usd_per_hour))
    saved = fleet.savings_percent
    table.add_column("SAVED", justify="right", no_wrap=True, footer="-" if saved is None else f"{saved}%")
    table.add_column("STATUS", no_wrap=True)
    for key in sorted(plan.pools):
        pool = plan.pools[key]
        percent = savings_percent(pool)
        table.add_row(
            key,
            pool.effective.model,
            "\n".join(map(_short, pool.placements)) or "-",
            *([] if against is None else [_steps(against.get(key))]),
            money(pool.usd_per_hour) if pool.placements else "-",
            money(pool.gpu_only_usd_per_hour),
            "-" if percent is None else f"{percent}%",
            Text(*_state(pool)),
        )
    return table


def _steps(change: Change | None) -> str:
    if change is None:
        return "-"
    return "\n".join(map(str, change.steps)) or "as it is"


def _short(placement: Placement) -> str:
    return f"{placement.replicas}x {placement.hardware_class}/{placement.capacity_type.value}"


def _state(pool: PoolPlan) -> tuple[str, str]:
    """One word and its style."""
    if pool.not_accepted:
        return pool.not_accepted.reason, "red"
    if pool.effective.suspend:
        return "Suspended", "yellow"
    if not pool.placements or pool.unserved_requests_per_second > 0:
        nothing = "DemandUnserved" if pool.placements else "NoPlacement"
        return pool.shortfall.reason if pool.shortfall else nothing, "red"
    if pool.over_budget:
        return "OverBudget", "yellow"
    if pool.effective.mode == "Recommend":
        return "Recommended", "yellow"
    return ("Kept" if pool.kept else "Placed"), "green"


def _pool_section(
    pool: PoolPlan, classes: Mapping[str, HardwareClass], change: Change | None
) -> Iterator[RenderableType]:
    effective = pool.effective
    yield Text.assemble(
        (pool.pool, "bold"),
        f"  {effective.model}, {effective.workload_class.value}, "
        f"{format_digits(float(effective.requests_per_second))} requests/s; p99 promised: first token "
        f"{format_duration(effective.time_to_first_token_p99)}, between tokens "
        f"{format_duration(effective.inter_token_latency_p99)}, turn {format_duration(effective.turn_latency_p99)}",
    )
    lines = [
        *(_placement_line(placement, classes) for placement in pool.placements),
        *(
            f"{problem.reason}: {problem.message}"
            for problem in (pool.not_accepted, pool.shortfall, pool.over_budget, pool.kept)
            if problem
        ),
    ]
    if change:
        lines.append(str(change))
    if effective.suspend:
        cost = "nothing could serve it now" if pool.resume_usd_per_hour is None else money(pool.resume_usd_per_hour)
        lines.append(f"suspended; resuming would cost, in USD/h: {cost}")
    yield Padding(Group(*(Text(line) for line in lines)), (0, 0, 0, 2))
    if pool.candidates:
        yield Fitting(candidate_table(map(_as_in_status, pool.candidates)))


def _placement_line(placement: Placement, classes: Mapping[str, HardwareClass]) -> str:
    carried, nodes = placement.capacity, "node" if placement.nodes == 1 else "nodes"
    chip = classes[placement.hardware_class].spec.chip if placement.hardware_class in classes else ""
    how = "estimated" if carried.estimated else "profiled"
    each = f", {placement.nodes_per_replica} a replica" if placement.nodes_per_replica > 1 else ""
    each_carries = format_digits(carried.turns_per_second)
    shared = f" ({placement.shared_with}, pays {float(placement.paid_nodes):.3g})" if placement.beside else ""
    return (
        f"{_short(placement)} ({chip}): {placement.nodes} {nodes}{each}{shared}, {money(placement.usd_per_hour)} USD/h,"
        f" {placement.traffic_percent}% of traffic; one replica carries {each_carries} requests/s with"
        f" first token {_seconds(carried.time_to_first_token_p99)}, between tokens"
        f" {_seconds(carried.inter_token_latency_p99)}, turn {_seconds(carried.turn_latency_p99)} ({how})"
    )


def _as_in_status(c: Candidate) -> CandidateStatus:
    return CandidateStatus(
        hardware_class=c.hardware_class,
        capacity_type=c.capacity_type,
        verdict=c.verdict.value,
        reason=c.reason,
        usd_per_million_tokens=_optional_money(c.usd_per_million_tokens),
        estimated=c.estimated,
    )


def candidate_table(candidates: Iterable[CandidateStatus]) -> Table:
    """What was considered, the chosen first, then by price."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("HARDWARE", no_wrap=True)
    table.add_column("CAPACITY", no_wrap=True)
    table.add_column("VERDICT", no_wrap=True)
    table.add_column("USD/M TOKENS", justify="right", no_wrap=True)
    table.add_column("SPEED", no_wrap=True)
    table.add_column("REASON", overflow="fold")
    for c in sorted(candidates, key=_rank):
        table.add_row(
            c.hardware_class,
            c.capacity_type.value,
            Text(c.verdict, style=_STYLES.get(c.verdict, "dim")),
            c.usd_per_million_tokens or "-",
            "-" if c.estimated is None else "estimated" if c.estimated else "profiled",
            c.reason,
        )
    return table


def _rank(c: CandidateStatus) -> tuple[bool, float, str, str]:
    price = float(c.usd_per_million_tokens) if c.usd_per_million_tokens else math.inf
    return c.verdict != Verdict.CHOSEN, price, c.hardware_class, c.capacity_type.value


def _footnotes(plan: Plan) -> Iterator[str]:
    for stay in plan.staying:
        nodes = "its node is" if stay.nodes == 1 else f"its {stay.nodes} nodes are"
        costs = "" if stay.usd_per_hour is None else f", for {money(stay.usd_per_hour)} USD/h"
        yield (
            f"{stay.pool} keeps {stay.replicas}x {stay.hardware_class}/{stay.capacity_type.value}, for which the plan"
            f" has no place: {nodes} in use{costs}."
        )
    for price in plan.shadow_prices:
        how = " at least" if price.at_least else " about" if price.marginal else ""
        yield (
            f"One more node of {price.hardware_class} ({capacity_words(price.capacity_type)}) would save{how}"
            f" {money(price.usd_per_hour)} USD/h."
        )
    for short in plan.shortages:
        if short.unserved > 0:
            yield (
                f"Priority {short.priority}: unserved shares of pools' demands add up to {short.unserved:.2f}; no plan"
                f" that serves more important pools as well leaves less than {short.bound:.2f}."
            )
    advised = [pool for pool in plan.pools.values() if pool.placements and pool.effective.mode == "Recommend"]
    if advised:
        usd = money(sum((pool.usd_per_hour for pool in advised), Decimal(0)))
        yield f"Recommended: nothing of it is applied; all pools' USD/H has {usd} of that, metrics have none."
    if plan.gap > 1e-9:
        yield f"This plan is within {plan.gap:.2%} of the cheapest there can be."
    if any(p.capacity.estimated for pool in plan.pools.values() for p in pool.placements):
        yield "estimated: by roofline, until a ServingProfile says what was measured (`berth bench` prints one)."
    if any(pool.gpu_only_usd_per_hour is not None for pool in plan.pools.values()):
        yield "GPU ONLY: a lower bound on the cheapest GPU-only plan of the same demand, same freedoms, same solver."
        if any((savings_percent(pool) or 0) < 0 for pool in plan.pools.values()):
            yield (
                "SAVED below zero: the plan keeps maxNodes, budget, maxReplicas, hardware lists, vendor shares and the"
                " objectives Power and Latency; GPU ONLY is what GPUs would cost without."
            )
