"""Is the GPU-only figure what GPUs would cost at the least, so that savings are never flattered?"""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from berth_operator.api import HardwareClass
from berth_operator.planner import savings_percent

Make = Callable[..., Any]


@pytest.mark.parametrize("rps", ["0.2", "3", "30"])
@pytest.mark.parametrize("workload_class", ["Interactive", "Batch"])
def test_gpu_only_is_never_above_a_real_plan_with_gpus_alone(
    plan_one: Make, chat_pool: Make, fleet: list[HardwareClass], rps: str, workload_class: str
) -> None:
    pool = chat_pool(rps, workload_class=workload_class)
    with_all = plan_one(pool, fleet)
    gpus_alone = plan_one(pool, [c for c in fleet if c.spec.kind.value == "GPU"])
    assert with_all.gpu_only_usd_per_hour == gpus_alone.usd_per_hour
    assert with_all.usd_per_hour <= with_all.gpu_only_usd_per_hour


def test_limits_budget_and_deny_lists_do_not_raise_the_gpu_figure(
    plan_one: Make, chat_pool: Make, hardware: Make, graviton4: HardwareClass, l4: HardwareClass
) -> None:
    free = plan_one(chat_pool("0.2"), [graviton4, l4]).gpu_only_usd_per_hour
    body = l4.to_api()
    body["spec"]["capacity"][0]["maxNodes"] = 1
    scarce = HardwareClass.model_validate(body)
    hindered = chat_pool(
        "0.2",
        budget={"maxUsdPerHour": "0.70"},
        scaling={"maxReplicas": 1},
        placement={"hardware": {"deny": {"names": ["l4"]}}},
    )
    planned = plan_one(hindered, [graviton4, scarce])
    assert planned.gpu_only_usd_per_hour == free == Decimal("0.805")


def test_a_pool_kept_to_cpus_is_still_compared_with_gpus(
    plan_one: Make, chat_pool: Make, graviton4: HardwareClass, l4: HardwareClass
) -> None:
    cpu_only = chat_pool("0.2", placement={"hardware": {"allow": {"names": ["graviton4"]}}})
    assert plan_one(cpu_only, [graviton4, l4]).gpu_only_usd_per_hour == Decimal("0.805")


def test_more_gpus_than_the_pool_may_have_replicas_are_still_a_fair_comparison(
    plan_one: Make, chat_pool: Make, hardware: Make, l4: HardwareClass
) -> None:
    large = hardware(
        "large", cpus=64, memoryGiB=128, memoryBandwidthGBps=538, compute={"int8Tops": 45}, prices={"OnDemand": "1.70"}
    )
    rules = {"scaling": {"maxReplicas": 1}, "placement": {"spot": {"maxTrafficPercent": 0}}}
    planned = plan_one(chat_pool("3.3", **rules), [large, l4])
    assert [p.hardware_class for p in planned.placements] == ["large"]
    assert planned.gpu_only_usd_per_hour == Decimal("1.610"), "two L4s; savings are then a loss of 6 %"
    assert savings_percent(planned.usd_per_hour, planned.gpu_only_usd_per_hour) == -6


def test_only_the_demand_that_is_served_is_compared(
    plan_one: Make, chat_pool: Make, graviton4: HardwareClass, l4: HardwareClass
) -> None:
    shed = plan_one(chat_pool("20", budget={"maxUsdPerHour": "0.90"}), [graviton4, l4])
    assert shed.unserved_requests_per_second > 0
    assert shed.gpu_only_usd_per_hour is not None
    assert shed.gpu_only_usd_per_hour <= Decimal("0.90")


def test_without_a_gpu_that_can_serve_there_is_no_figure(
    plan_one: Make, chat_pool: Make, hardware: Make, graviton4: HardwareClass
) -> None:
    small = hardware("small-gpu", kind="GPU", memoryGiB=4, compute={"bf16Tflops": 100})
    assert plan_one(chat_pool("0.2"), [graviton4]).gpu_only_usd_per_hour is None
    assert plan_one(chat_pool("0.2"), [graviton4, small]).gpu_only_usd_per_hour is None


def test_reserved_gpus_count_as_paid_only_as_far_as_they_exist(
    plan_one: Make, chat_pool: Make, hardware: Make, graviton4: HardwareClass
) -> None:
    def gpu(most: int) -> HardwareClass:
        made: HardwareClass = hardware(
            "gpu",
            kind="GPU",
            memoryGiB=24,
            memoryBandwidthGBps=300,
            compute={"bf16Tflops": 121},
            prices={"OnDemand": "0.805", "Reserved": "0.50"},
            max_nodes={"Reserved": most},
        )
        return made

    many, one = (plan_one(chat_pool("5"), [graviton4, gpu(n)]).gpu_only_usd_per_hour for n in (9, 1))
    assert many == 0
    assert one == Decimal("0.805"), "5 turns/s take two L4s, of which one is reserved"


@pytest.mark.parametrize(
    ("usd", "gpu_only", "percent"),
    [
        ("0.638", "0.805", 20),
        ("0.805", "0.805", 0),
        ("1", "0", None),
        ("1", None, None),
        ("1.01", "1", -1),
        ("2", "3", 33),
    ],
)
def test_savings_round_down_and_never_up(usd: str, gpu_only: str | None, percent: int | None) -> None:
    assert savings_percent(Decimal(usd), Decimal(gpu_only) if gpu_only else None) == percent
