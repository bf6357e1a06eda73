"""Does each candidate's reason name the number that decides, and is the break-even price the true one?"""

import re
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from berth_operator.api import HardwareClass
from berth_operator.planner import Candidate, PoolPlan, Snapshot, Verdict, plan

Make = Callable[..., Any]


def _candidate(planned: PoolPlan, hardware_class: str, capacity_type: str = "OnDemand") -> Candidate:
    return next(
        c for c in planned.candidates if (c.hardware_class, c.capacity_type.value) == (hardware_class, capacity_type)
    )


def _break_even(candidate: Candidate) -> float:
    found = re.search(r"would enter below \$([0-9.]+)/h", candidate.reason)
    assert found, candidate.reason
    return float(found.group(1))


def _repriced(classes: list[HardwareClass], name: str, capacity_type: str, price: float) -> list[HardwareClass]:
    changed = []
    for c in classes:
        body = c.to_api()
        for entry in body["spec"]["capacity"]:
            if (c.metadata.name, entry["type"]) == (name, capacity_type):
                entry["usdPerHour"] = f"{price:.6f}"
        changed.append(HardwareClass.model_validate(body))
    return changed


def test_every_class_and_capacity_type_has_one_verdict_with_a_number_in_its_reason(
    plan_one: Make, chat_pool: Make, fleet: list[HardwareClass]
) -> None:
    planned = plan_one(chat_pool("0.2"), fleet)
    assert [(c.hardware_class, c.capacity_type.value) for c in planned.candidates] == [
        (name, t) for name in ("graviton4", "h100", "l4") for t in ("OnDemand", "Spot")
    ]
    assert all(re.search(r"\d", c.reason) for c in planned.candidates)
    assert all(c.usd_per_million_tokens is not None and c.estimated for c in planned.candidates)


@pytest.mark.parametrize(
    ("rps", "name", "capacity_type"),
    [("0.2", "l4", "OnDemand"), ("2.5", "graviton4", "OnDemand"), ("20", "h100", "Spot"), ("40", "l4", "OnDemand")],
)
def test_one_percent_below_the_break_even_enters_and_one_percent_above_does_not(
    plan_one: Make, chat_pool: Make, fleet: list[HardwareClass], rps: str, name: str, capacity_type: str
) -> None:
    pool = chat_pool(rps)
    unused = _candidate(plan_one(pool, fleet), name, capacity_type)
    assert unused.verdict is Verdict.TOO_EXPENSIVE, unused.reason
    price = _break_even(unused)
    below = plan_one(pool, _repriced(fleet, name, capacity_type, price * 0.99))
    above = plan_one(pool, _repriced(fleet, name, capacity_type, price * 1.01))
    assert _candidate(below, name, capacity_type).verdict is Verdict.CHOSEN
    assert _candidate(above, name, capacity_type).verdict is not Verdict.CHOSEN


def test_break_even_for_a_running_pool_includes_what_a_move_must_save(
    plan_one: Make, chat_pool: Make, graviton4: HardwareClass, l4: HardwareClass, running: Make
) -> None:
    pool = chat_pool("0.2", placement={"disruption": {"minSavingsUsdPerHour": "0.20", "minSavingsPercent": 0}})
    runs = (running(pool.key, "graviton4"),)
    planned = plan_one(pool, [graviton4, l4], running=runs)
    assert _break_even(_candidate(planned, "l4")) == pytest.approx(0.638 - 0.20, abs=1e-3)
    cheap = _repriced([graviton4, l4], "l4", "OnDemand", 0.43)
    assert _candidate(plan_one(pool, cheap, running=runs), "l4").verdict is Verdict.CHOSEN


def test_cost_per_million_tokens_is_that_of_a_full_node(
    plan_one: Make, chat_pool: Make, graviton4: HardwareClass
) -> None:
    planned = plan_one(chat_pool("0.2"), [graviton4])
    tokens = planned.placements[0].capacity.turns_per_second * 250 * 3600
    expected = 0.638 * 1e6 / tokens
    assert float(_candidate(planned, "graviton4").usd_per_million_tokens or 0) == pytest.approx(expected, rel=1e-3)


def test_model_that_does_not_fit_comes_with_its_arithmetic(
    plan_one: Make, pool: Make, fleet: list[HardwareClass]
) -> None:
    planned = plan_one(pool("big", "0.1", model="llama-3.3-70b-instruct", workload_class="Batch"), fleet)
    l4 = _candidate(planned, "l4")
    assert l4.verdict is Verdict.DOES_NOT_FIT
    assert re.search(r"weights 6\d\.\d GiB \+ KV of one request 0\.7 GiB = 6\d\.\d GiB > 20\.6 GiB \(24 GiB", l4.reason)


def test_spot_that_policy_forbids_says_which_field_does(
    plan_one: Make, chat_pool: Make, fleet: list[HardwareClass]
) -> None:
    planned = plan_one(chat_pool("0.2", placement={"spot": {"maxTrafficPercent": 0}}), fleet)
    spot = _candidate(planned, "l4", "Spot")
    assert spot.verdict is Verdict.LIMITED_BY_POLICY
    assert spot.reason == "spec.placement.spot.maxTrafficPercent is 0"


def test_large_fleets_get_break_evens_without_a_solve_or_the_prices_between_which_they_lie(
    plan_for: Make, plan_one: Make, chat_pool: Make, pool: Make, fleet: Any
) -> None:
    """Nothing joins the pools, so that the exact figure is that of the pool alone."""
    rest = {
        "shape": {"cachedPromptPercent": 90},
        "objectives": {"timeToFirstTokenP99": "2s", "interTokenLatencyP99": "100ms"},
    }
    plan = plan_for([*(pool(f"p{i:03}", "0.2", **rest) for i in range(130)), chat_pool("40")], fleet)
    planned = plan.pools["demo/p000"]
    assert planned.usd_per_hour == Decimal("0.638")
    l4 = _candidate(planned, "l4")
    assert l4.reason == "would enter below $0.638/h; costs $0.805/h"
    graviton = _candidate(plan.pools["demo/chat"], "graviton4")
    between = re.search(r"it would pay below \$([0-9.]+)/h, and not above \$([0-9.]+)/h", graviton.reason)
    assert between, graviton.reason
    exact = _break_even(_candidate(plan_one(chat_pool("40"), fleet), "graviton4"))
    assert 0.999 * float(between[1]) <= exact <= 1.001 * float(between[2])


def test_a_plan_without_reasons_places_the_same_and_still_says_why_a_pool_goes_short(
    pool: Make, hardware: Make, now: datetime
) -> None:
    lenient = {"timeToFirstTokenP99": "20s", "interTokenLatencyP99": "500ms"}
    pools = (pool("fed", "0.2", priority=5, objectives=lenient), pool("short", "500", objectives=lenient))
    few = hardware("graviton", compute={"int8Tops": 11}, max_nodes={"OnDemand": 3})
    snapshot = Snapshot(now, pools, (few,))
    told, bare = plan(snapshot).pools, plan(snapshot, explain=False).pools
    assert {key: p.placements for key, p in bare.items()} == {key: p.placements for key, p in told.items()}
    assert told["demo/fed"].candidates
    assert not bare["demo/fed"].candidates
    assert told["demo/short"].shortfall is not None
    assert bare["demo/short"].shortfall == told["demo/short"].shortfall


def test_a_class_whose_speed_was_not_looked_at_is_neither_estimated_nor_profiled(
    plan_one: Make, chat_pool: Make, fleet: list[HardwareClass]
) -> None:
    denied = {"hardware": {"deny": {"names": ["l4"]}}}
    planned = plan_one(chat_pool("0.2", placement=denied), fleet)
    assert _candidate(planned, "l4").estimated is None
    assert _candidate(planned, "h100").estimated is True


def test_spot_that_saves_no_node_names_the_field_that_keeps_it_small(
    plan_one: Make, chat_pool: Make, fleet: list[HardwareClass]
) -> None:
    for spot, says in (
        ({"maxTrafficPercent": 70, "surviveLossPercent": 80}, "at most 20 % of traffic it saves no node"),
        ({"maxTrafficPercent": 10, "surviveLossPercent": 80}, "at most 10 % of traffic it saves no node"),
    ):
        reason = _candidate(plan_one(chat_pool("0.2", placement={"spot": spot}), fleet), "l4", "Spot").reason
        assert says in reason
        field = "spot.surviveLossPercent 80" if spot["maxTrafficPercent"] == 70 else "spot.maxTrafficPercent 10"
        assert f"({field})" in reason


def test_spot_as_fast_as_the_plan_is_not_called_too_slow(
    plan_one: Make, chat_pool: Make, fleet: list[HardwareClass]
) -> None:
    planned = plan_one(chat_pool("0.2", placement={"objective": "Latency"}), fleet)
    assert [(p.hardware_class, p.capacity_type.value) for p in planned.placements] == [("h100", "OnDemand")]
    spot = _candidate(planned, "h100", "Spot")
    assert spot.verdict is Verdict.LIMITED_BY_POLICY
    assert "at most 30 % of traffic (spot.surviveLossPercent 70)" in spot.reason
    assert _candidate(planned, "l4").verdict is Verdict.TOO_SLOW


def test_replicas_missing_for_money_name_the_budget(plan_one: Make, chat_pool: Make, graviton4: HardwareClass) -> None:
    wanted = {"scaling": {"minReplicas": 9}, "budget": {"maxUsdPerHour": "2"}}
    planned = plan_one(chat_pool("0.2", **wanted), [graviton4])
    assert planned.unserved_requests_per_second == 0
    assert planned.shortfall is not None
    assert planned.shortfall.reason == "MinReplicas"
    assert "of budget.maxUsdPerHour 2 is spent" in planned.shortfall.message
