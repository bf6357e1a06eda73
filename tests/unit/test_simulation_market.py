"""Are demand, prices, shortages and luck reproducible, and as the scenario says?"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from berth_operator.api import CapacityType, HardwareClass
from berth_operator.simulate.demand import demand
from berth_operator.simulate.load import ScenarioError, Source, built_in, find, read_scenario
from berth_operator.simulate.market import Market
from berth_operator.simulate.scenario import Scenario
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Make = Callable[..., HardwareClass]
SPOT, ON_DEMAND = ("c", CapacityType.SPOT), ("c", CapacityType.ON_DEMAND)


def scenario(**fields: Any) -> Scenario:
    return Scenario.model_validate({"days": 7} | fields, extra="forbid")


def test_demand_has_a_day_a_weekend_and_bursts() -> None:
    quiet = scenario(demand={"noisePercent": 0, "bursts": {"perDay": "0"}, "troughPercent": 25, "weekendPercent": 40})
    series = demand(quiet, {"ns/a": 8.0})["ns/a"]
    assert len(series) == 7 * 96
    assert series[15 * 4] == pytest.approx(8.0), "the peak, at 15:00 of a working day"
    assert series[3 * 4] == pytest.approx(2.0), "the trough, twelve hours away"
    assert series[5 * 96 + 15 * 4] == pytest.approx(3.2)
    bursting = scenario(demand={"noisePercent": 0, "bursts": {"perDay": "3", "times": "2", "duration": "30m"}})
    ratio = (
        demand(bursting, {"ns/a": 8.0})["ns/a"]
        / demand(scenario(demand={"noisePercent": 0, "bursts": {"perDay": "0"}}), {"ns/a": 8.0})["ns/a"]
    )
    assert set(np.round(ratio, 6)) == {1.0, 2.0}


def test_a_pools_demand_is_its_own_and_the_same_again() -> None:
    both = demand(scenario(), {"ns/a": 1.0, "ns/b": 1.0})
    alone = demand(scenario(), {"ns/b": 1.0})
    assert np.array_equal(both["ns/b"], alone["ns/b"])
    assert not np.array_equal(both["ns/a"], both["ns/b"])
    assert not np.array_equal(demand(scenario(seed=2), {"ns/b": 1.0})["ns/b"], alone["ns/b"])


def test_a_pool_may_have_a_shape_of_its_own() -> None:
    own = scenario(
        demandOf={"a": {"troughPercent": 100, "noisePercent": 0, "weekendPercent": 100, "bursts": {"perDay": "0"}}}
    )
    assert demand(own, {"ns/a": 3.0})["ns/a"] == pytest.approx(np.full(7 * 96, 3.0))


def test_prices_move_when_the_scenario_says(make_class: Make) -> None:
    moves = [{"at": "24h", "hardwareClass": "c", "capacityType": "OnDemand", "times": "2"}]
    market = Market(scenario(priceMoves=moves), [make_class("c")])
    assert market.usd_per_hour(ON_DEMAND, 95) == pytest.approx(0.638)
    assert market.usd_per_hour(ON_DEMAND, 96) == pytest.approx(1.276)
    assert market.usd_per_hour(SPOT, 96) == pytest.approx(0.255)
    at = market.classes_at(96)[0].capacity_of(CapacityType.ON_DEMAND)
    assert at is not None and str(at.usd_per_hour) == "1.276"


def test_spot_wanders_between_a_floor_and_on_demand(make_class: Make) -> None:
    market = Market(scenario(days=60, spot={"percent": 40, "volatilityPercentPerDay": 90}), [make_class("c")])
    prices = np.array([market.usd_per_hour(SPOT, step) for step in range(60 * 96)])
    assert prices.min() >= 0.05 * 0.638 - 1e-9
    assert prices.max() <= 0.638 + 1e-9
    assert np.std(prices) > 0.02
    assert len(set(prices[:4])) == 1, "changes with the hour"


def test_a_stock_out_has_a_beginning_and_an_end(make_class: Make) -> None:
    out = [{"at": "1h", "lasts": "2h", "hardwareClass": "c", "capacityType": "Spot"}]
    market = Market(scenario(stockOuts=out), [make_class("c")])
    assert [market.in_stock(SPOT, step) for step in (3, 4, 11, 12)] == [True, False, False, True]
    assert market.in_stock(ON_DEMAND, 5)


def test_interruptions_come_at_their_rate_and_a_larger_fleet_never_loses_fewer(make_class: Make) -> None:
    market = Market(scenario(days=60, spot={"interruptionsPerHour": "0.1"}), [make_class("c")])
    lost = [market.interrupted("c", step, 100) for step in range(60 * 96)]
    expected = 100 * (1 - np.exp(-0.1 * 0.25))
    assert np.mean(lost) == pytest.approx(expected, rel=0.05)
    assert all(market.interrupted("c", s, 10) <= market.interrupted("c", s, 20) for s in range(500))
    assert market.interrupted("c", 0, 0) == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # a pure builder: nothing to reset
@given(nodes=st.integers(0, 500), step=st.integers(0, 600))
def test_no_more_nodes_are_lost_than_there_are(make_class: Make, nodes: int, step: int) -> None:
    market = Market(scenario(spot={"interruptionsPerHour": "3"}), [make_class("c")])
    assert 0 <= market.interrupted("c", step, nodes) <= nodes


@pytest.mark.parametrize("name", built_in())
def test_what_ships_can_be_read(name: str) -> None:
    assert read_scenario(find(name)).steps > 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("days: 0", "days: found 0: Input should be greater than or equal to 1"),
        ("dyas: 7", "dyas: unknown field: remove it"),
        ("step: 15", "'15m'"),
        ("catalog: [l5]", "there is no class l5: `berth hardware list` has them"),
        ("[", "is not valid YAML"),
        ("- 1", "write a mapping"),
        ("stockOuts: [{at: 1h}]", "stockOuts.0.lasts: Field required"),
    ],
)
def test_a_bad_scenario_is_refused_with_field_and_remedy(text: str, says: str) -> None:
    with pytest.raises(ScenarioError) as error:
        read_scenario(Source("s.yaml", text, Path()))
    assert "s.yaml" in str(error.value)
    assert says.replace("'15m'", "is not a duration") in str(error.value)


def test_an_unknown_scenario_names_those_that_ship() -> None:
    with pytest.raises(ScenarioError, match=r"none of the scenarios that ship: .*week"):
        find("fortnight")


def test_copies_have_the_form_of_demand_of_the_pool_they_are_copies_of() -> None:
    quiet = {"troughPercent": 100, "weekendPercent": 100, "noisePercent": 0, "bursts": {"perDay": "0"}}
    found = demand(scenario(demandOf={"a": quiet}), {"ns/a": 3.0, "ns/a-2": 3.0}, {"ns/a-2": "ns/a"})
    assert found["ns/a-2"] == pytest.approx(found["ns/a"])
