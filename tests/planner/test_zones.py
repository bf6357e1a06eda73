"""Does the loss of one zone of a spot class take what it is counted with, and never more?"""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from berth_operator.planner import Plan, Snapshot, plan
from berth_operator.planner.zones import ROUNDS, fullest, spread, spreads, steps
from hypothesis import given
from hypothesis import strategies as st

Make = Callable[..., Any]
zones_of = st.integers(2, 6)


@pytest.mark.parametrize("zones", [1, 2, 3])
@pytest.mark.parametrize("per_node", [1, 2, 4])
def test_the_fullest_zone_is_the_fullest_that_the_scheduler_may_make(zones: int, per_node: int) -> None:
    """Pods are placed where no zone gets more than `per_node` ahead of the emptiest (maxSkew)."""
    for replicas in range(1, 10):
        ways = (z for z in product(range(replicas + 1), repeat=zones) if sum(z) == replicas)
        worst = max(max(z) for z in ways if max(z) - min(z) <= per_node or zones == 1)
        assert fullest(replicas, zones, per_node) == worst


@given(nodes=st.integers(1, 400), zones=zones_of, per_node=st.integers(1, 4))
def test_a_spread_is_never_wider_than_the_truth(nodes: int, zones: int, per_node: int) -> None:
    counted = spread(nodes, zones, per_node)
    assert counted >= 1
    for replicas in range((nodes - 1) * per_node + 1, nodes * per_node + 1):
        assert replicas / fullest(replicas, zones, per_node) >= counted - 1e-12


@given(nodes=st.integers(1, 400), zones=zones_of)
def test_a_spread_is_the_truth_for_few_nodes_and_near_it_for_many(nodes: int, zones: int) -> None:
    true = nodes / fullest(nodes, zones)
    if nodes <= ROUNDS * zones:
        assert spread(nodes, zones) == true
    assert spread(nodes, zones) >= true * ROUNDS / (ROUNDS + 1)
    assert spread(nodes, zones + 1) >= spread(nodes, zones) * ROUNDS / (ROUNDS + 1)


@given(most=st.integers(0, 60), zones=zones_of, alone=st.floats(0.05, 0.9), enough=st.floats(0.1, 1.0))
def test_steps_cover_every_number_of_nodes_once(most: int, zones: int, alone: float, enough: float) -> None:
    found = steps(most, zones, 1, alone, enough)
    assert [n for low, top, _ in found for n in range(low, top + 1)] == list(range(most + 1))
    for low, top, share in found:
        for n in range(low, top + 1):
            assert share == min(alone * spreads(most, zones)[n], enough)


# --- Plans ----------------------------------------------------------------------------------------------------------

SPOT = {"maxTrafficPercent": 90, "minOnDemandReplicas": 0, "surviveLossPercent": 70}


@pytest.fixture
def planned(pool: Make, hardware: Make, profile: Make, now: Any) -> Callable[..., Plan]:
    def make(zones: int, spot: dict[str, int] | None = None, rps: str = "10") -> Plan:
        named = {"zones": {"Spot": [f"z{i}" for i in range(zones)]}} if zones else {}
        arm = hardware("arm", prices={"OnDemand": "1.00", "Spot": "0.20"}, **named)
        shape = {"promptTokens": 800, "outputTokens": 80, "cachedPromptPercent": 90}
        one = pool(rps=rps, model="tested-model", shape=shape, placement={"spot": spot or SPOT})
        return plan(Snapshot(now=now, pools=(one,), hardware_classes=(arm,), serving_profiles=(profile("arm"),)))

    return make


def _spot_percent(made: Plan) -> int:
    return sum(p.traffic_percent for p in made.pools["demo/chat"].placements if p.capacity_type.value == "Spot")


def test_each_zone_of_a_class_may_carry_what_may_be_lost(planned: Make) -> None:
    usd = [float(planned(zones, rps="40").pools["demo/chat"].usd_per_hour) for zones in (1, 2, 3)]
    assert _spot_percent(planned(0, rps="40")) == _spot_percent(planned(1, rps="40")) <= 30
    assert 30 < _spot_percent(planned(2, rps="40")) <= 60
    assert 60 < _spot_percent(planned(3, rps="40")) <= 90
    assert usd[0] > usd[1] > usd[2]


@pytest.mark.parametrize("zones", [0, 2, 3])
@pytest.mark.parametrize("survive", [40, 70, 90])
@pytest.mark.parametrize("rps", ["3", "10", "25"])
def test_losing_any_one_zone_leaves_the_promised_share(planned: Make, zones: int, survive: int, rps: str) -> None:
    made = planned(zones, SPOT | {"surviveLossPercent": survive}, rps).pools["demo/chat"]
    assert made.unserved_requests_per_second == 0
    for p in made.placements:
        if p.capacity_type.value == "Spot":
            lost = -(-p.replicas // max(zones, 1)) / p.replicas * p.traffic_percent
            assert lost <= 100 - survive + 1, "percents are whole"


def test_the_reason_names_what_all_zones_may_carry(planned: Make) -> None:
    made = planned(2, SPOT | {"maxTrafficPercent": 100, "surviveLossPercent": 99}, "1").pools["demo/chat"]
    (spot,) = (c for c in made.candidates if c.capacity_type.value == "Spot")
    assert "with at most 2 % of traffic it saves no node" in spot.reason
