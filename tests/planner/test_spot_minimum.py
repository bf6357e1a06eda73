"""Are spot nodes that may carry no traffic ever rented to make up the number of replicas?"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from berth_operator.api import CapacityType
from berth_operator.planner import Snapshot, plan

Make = Callable[..., Any]


@pytest.mark.parametrize("spot", [{"maxTrafficPercent": 0}, {"maxTrafficPercent": 100, "surviveLossPercent": 100}])
def test_min_replicas_are_not_filled_with_spot_that_may_carry_nothing(
    pool: Make, hardware: Make, profile: Make, spot: dict[str, int]
) -> None:
    shape = {"promptTokens": 800, "outputTokens": 80, "cachedPromptPercent": 90}
    one = pool("agents", "2", model="tested-model", shape=shape, scaling={"minReplicas": 6}, placement={"spot": spot})
    arm = hardware("arm", prices={"OnDemand": "0.60", "Spot": "0.20"})
    made = plan(Snapshot(datetime(2026, 11, 21, 12, 0, tzinfo=UTC), (one,), (arm,), (profile("arm"),))).pools[one.key]
    assert [(p.capacity_type, p.replicas, p.traffic_percent) for p in made.placements] == [
        (CapacityType.ON_DEMAND, 6, 100)
    ]
