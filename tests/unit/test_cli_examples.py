"""Do the examples say what a newcomer is told they say?  Read strictly, planned, each figure with its source."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from berth_operator.api import HardwareKind
from berth_operator.api.names import EMBEDDED_MODEL
from berth_operator.cli.objects import Objects, read_objects
from berth_operator.cli.snapshots import overlay
from berth_operator.cli.what_if import scaled
from berth_operator.cluster.observe import Observation
from berth_operator.planner import Plan, PoolPlan, plan

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def examples() -> Objects:
    objects, problems = read_objects([str(EXAMPLES)])
    assert not problems
    assert not objects.remarks
    return objects


@pytest.fixture(scope="module")
def planned(examples: Objects) -> Plan:
    return plan(overlay(examples, Observation(), datetime(2026, 11, 21, tzinfo=UTC)))


def on(pool: PoolPlan) -> dict[str, int]:
    return {f"{p.hardware_class}/{p.capacity_type.value}": p.replicas for p in pool.placements}


def test_all_demand_is_placed_on_the_hardware_that_the_demo_tells_of(planned: Plan) -> None:
    assert {key: on(pool) for key, pool in planned.pools.items()} == {
        "default/assistant": {"graviton4/OnDemand": 1},
        "default/chat": {"graviton4/OnDemand": 1},
        "default/digest": {"l4/Spot": 1},
    }
    assert all(p.unserved_requests_per_second == 0 and p.not_accepted is None for p in planned.pools.values())


def test_tenfold_demand_moves_chat_from_graviton4_to_an_l4(examples: Objects) -> None:
    pools = tuple(scaled(p, Decimal(10)) if p.metadata.name == "chat" else p for p in examples.pools)
    busy = plan(overlay(replace(examples, pools=pools), Observation(), datetime(2026, 11, 21, tzinfo=UTC)))
    assert on(busy.pools["default/chat"]) == {"l4/OnDemand": 1}


def test_the_agents_pool_is_of_the_embedded_model_so_that_a_worker_can_be_started_anywhere(examples: Objects) -> None:
    models = {pool.metadata.name: pool.spec.model for pool in examples.pools}
    assert models["assistant"].name == EMBEDDED_MODEL
    assert models["assistant"].source is None


def test_every_class_has_a_source_with_a_date_and_calls_its_spot_price_an_assumption(examples: Objects) -> None:
    assert {c.spec.kind for c in examples.hardware_classes} == {HardwareKind.CPU, HardwareKind.GPU}
    for hardware in examples.hardware_classes:
        source = hardware.spec.source or ""
        assert "AWS us-east-1, 2026-07-20" in source
        assert "Spot price: an assumption, 40 % of on demand" in source
        prices = {c.type.value: c.usd_per_hour for c in hardware.spec.capacity}
        assert float(prices["Spot"]) == pytest.approx(0.4 * float(prices["OnDemand"]), rel=0.002)


def test_every_example_opens_with_a_comment_for_newcomers() -> None:
    for file in EXAMPLES.glob("*.yaml"):
        assert file.read_text().startswith("# "), file.name
