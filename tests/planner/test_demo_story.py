"""Does the story that the demo tells follow from the model?  Estimates alone, prices as of 2026-07-20."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from berth_operator.api import HardwareClass
from berth_operator.planner import PoolPlan, Verdict, savings_percent

Make = Callable[..., Any]


def _on(planned: PoolPlan) -> dict[str, int]:
    return {p.hardware_class: p.replicas for p in planned.placements}


def test_a_quiet_chat_pool_lands_on_one_graviton_and_tenfold_demand_moves_it_to_an_l4(
    plan_one: Make, chat_pool: Make, fleet: list[HardwareClass], running: Make
) -> None:
    quiet = plan_one(chat_pool("0.25"), fleet)
    assert _on(quiet) == {"graviton4": 1}
    assert quiet.usd_per_hour == Decimal("0.638")
    assert quiet.gpu_only_usd_per_hour == Decimal("0.805")
    assert savings_percent(quiet.usd_per_hour, quiet.gpu_only_usd_per_hour) == 20
    busy = plan_one(chat_pool("2.5"), fleet, running=(running("demo/chat", "graviton4"),))
    assert _on(busy) == {"l4": 1}
    assert busy.kept is None
    graviton = next(c for c in busy.candidates if c.hardware_class == "graviton4")
    assert graviton.verdict is Verdict.TOO_EXPENSIVE
    assert "would enter below $" in graviton.reason


def test_at_a_hundredfold_one_h100_is_cheaper_than_many_l4s(
    plan_one: Make, chat_pool: Make, fleet: list[HardwareClass]
) -> None:
    crowd = plan_one(chat_pool("25", placement={"spot": {"maxTrafficPercent": 0}}), fleet)
    assert _on(crowd) == {"h100": 1}
    assert crowd.unserved_requests_per_second == 0


def test_eight_billion_parameters_are_too_slow_for_an_agent_on_a_small_graviton(
    plan_one: Make, pool: Make, fleet: list[HardwareClass]
) -> None:
    planned = plan_one(pool("agent", "0.5", workload_class="Agentic"), fleet)
    graviton = next(c for c in planned.candidates if c.hardware_class == "graviton4")
    assert graviton.verdict is Verdict.TOO_SLOW
    assert "300 uncached prompt tokens at" in graviton.reason


def test_a_batched_gpu_is_many_times_cheaper_per_token_than_a_graviton_with_few_requests(
    plan_one: Make, chat_pool: Make, fleet: list[HardwareClass]
) -> None:
    price = {
        c.hardware_class: float(c.usd_per_million_tokens or 0)
        for c in plan_one(chat_pool("0.25"), fleet).candidates
        if c.capacity_type.value == "OnDemand"
    }
    assert price["graviton4"] / price["l4"] > 3
    assert price["graviton4"] / price["h100"] > 3
