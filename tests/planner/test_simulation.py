"""Does the simulation run the very planner, reproducibly, and count what it should?"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from berth_operator.api import CapacityType, HardwareClass, InferencePool, ServingProfile
from berth_operator.simulate.engine import Outcome, Simulation, node_watts, simulate
from berth_operator.simulate.load import ScenarioError, pools_of
from berth_operator.simulate.policies import Pool
from berth_operator.simulate.scenario import Scenario
from hypothesis import given, settings
from hypothesis import strategies as st

Make = Callable[..., Any]
ALL = ("berth", "berth-gpu-only", "gpu-autoscaled", "fixed-by-hand", "karpenter-like")


def scenario(**fields: Any) -> Scenario:
    quiet = {"noisePercent": 0, "bursts": {"perDay": "0"}, "weekendPercent": 100}
    body = {"days": 1, "step": "1h", "demand": quiet | fields.pop("demand", {}), "spot": {"interruptionsPerHour": "0"}}
    return Scenario.model_validate(body | fields, extra="forbid")


@pytest.fixture(scope="session")
def world(pool: Make, hardware: Make, profile: Make) -> Callable[..., tuple[list[Pool], list[HardwareClass]]]:
    """A pool of peak 20 turns/s; CPU `cpu` at 0.50 and GPU `gpu` at 1.00 USD/h, a replica the same on both."""

    def make(rps: str = "20", prices: Any = None, **spec: Any) -> tuple[list[Pool], list[HardwareClass]]:
        usd = {"cpu": {"OnDemand": "0.50"}, "gpu": {"OnDemand": "1.00"}} | (prices or {})
        classes: list[HardwareClass] = [
            hardware("cpu", prices=usd["cpu"], powerWatts=100),
            hardware("gpu", kind="GPU", prices=usd["gpu"], powerWatts=300, runtime={"name": "Custom", "image": "x"}),
        ]
        profiles: list[ServingProfile] = [profile("cpu"), profile("gpu", runtime="Custom")]
        shape = {"promptTokens": 900, "outputTokens": 100}
        one: InferencePool = pool(rps=rps, model="tested-model", shape=shape, **spec)
        return pools_of([one], classes, profiles, {}, scenario()), classes

    return make


def outcomes(found: Simulation) -> dict[str, Outcome]:
    return {outcome.name: outcome for outcome in found.outcomes}


def test_each_policy_is_run_and_the_cheap_class_is_found(world: Make) -> None:
    found = outcomes(simulate(scenario(), *world()))
    assert tuple(found) == ALL
    assert found["berth"].usd == pytest.approx(found["fixed-by-hand"].usd)
    assert found["gpu-autoscaled"].usd == pytest.approx(2 * found["berth"].usd)
    assert {name for name, _ in found["berth"].node_hours} == {"cpu"}


def test_the_same_seed_is_the_same_simulation(world: Make) -> None:
    noisy = scenario(
        demand={"noisePercent": 10, "bursts": {"perDay": "2"}}, spot={"interruptionsPerHour": "0.1", "percent": 40}
    )
    priced = {"cpu": {"OnDemand": "0.50", "Spot": "0.2"}}
    one, two = (simulate(noisy, *world(prices=priced)) for _ in range(2))
    for a, b in zip(one.outcomes, two.outcomes, strict=True):
        assert (a.usd, a.within, a.started, a.moves, a.interrupted) == (
            b.usd,
            b.within,
            b.started,
            b.moves,
            b.interrupted,
        )
        assert np.array_equal(a.usd_per_hour, b.usd_per_hour)


def test_cost_is_nodes_times_price_and_power_is_nodes_times_watts(world: Make) -> None:
    flat = scenario(demand={"troughPercent": 100})
    berth = outcomes(simulate(flat, *world()))["berth"]
    hours = berth.node_hours["cpu", next(iter(berth.node_hours))[1]]
    assert berth.usd == pytest.approx(0.5 * hours)
    assert berth.kilowatt_hours == pytest.approx(0.1 * hours)
    assert berth.share == 1.0
    assert (berth.started, berth.moves) == (0, 0), "nothing changes, nothing is touched"


def test_demand_that_grows_faster_than_replicas_start_is_outside_its_objectives(world: Make) -> None:
    sudden = scenario(step="30m", headroomPercent=0, demand={"troughPercent": 5}, starts={"CPU": "25m", "GPU": "25m"})
    berth = outcomes(simulate(sudden, *world("60")))["berth"]
    assert berth.started > 0
    assert 0.5 < berth.share < 1.0
    roomy = sudden.model_copy(update={"headroom_percent": 100})
    assert outcomes(simulate(roomy, *world("60")))["berth"].share > berth.share


def test_a_price_that_doubles_moves_ours_and_leaves_the_fixed_choice(world: Make) -> None:
    rise = [{"at": "12h", "hardwareClass": "cpu", "capacityType": "OnDemand", "times": "4"}]
    found = outcomes(simulate(scenario(priceMoves=rise), *world()))
    assert found["berth"].moves == 1
    assert {name for name, _ in found["berth"].node_hours} == {"cpu", "gpu"}
    assert {name for name, _ in found["fixed-by-hand"].node_hours} == {"cpu"}
    assert found["berth"].usd < found["fixed-by-hand"].usd


def test_in_a_stock_out_ours_falls_back_and_loses_less_than_the_fixed_choice(world: Make) -> None:
    out = [{"at": "5h", "lasts": "12h", "hardwareClass": "cpu"}]
    found = outcomes(simulate(scenario(stockOuts=out, demand={"peakHour": 12}), *world()))
    assert found["berth"].share > found["fixed-by-hand"].share + 0.05
    assert "gpu" in {name for name, _ in found["berth"].node_hours}


def test_what_is_out_of_stock_at_the_beginning_runs_already(world: Make) -> None:
    out = [{"at": "0s", "lasts": "24h", "hardwareClass": name} for name in ("cpu", "gpu")]
    found = outcomes(simulate(scenario(stockOuts=out, demand={"troughPercent": 100}), *world()))
    for name in ("berth", "berth-gpu-only", "gpu-autoscaled", "fixed-by-hand"):
        assert found[name].share == 1.0, name
    assert found["karpenter-like"].usd > 0


def test_interrupted_spot_is_replaced_and_counted(world: Make) -> None:
    taken = scenario(spot={"interruptionsPerHour": "0.3"}, demand={"troughPercent": 100})
    priced = {"cpu": {"OnDemand": "0.50", "Spot": "0.1"}}
    berth = outcomes(simulate(taken, *world(prices=priced)))["berth"]
    assert berth.interrupted > 0
    assert berth.started >= berth.interrupted
    assert berth.share > 0.99, "what is left survives the loss of spot nodes"


@pytest.mark.parametrize("zones", [0, 3])
def test_a_reclaim_of_a_class_takes_one_zone_of_it_and_leaves_what_is_promised(world: Make, zones: int) -> None:
    def run(**events: Any) -> Outcome:
        steady = scenario(demand={"troughPercent": 100}, headroomPercent=0, starts={"CPU": "1h"}, **events)
        spot = {"maxTrafficPercent": 90, "minOnDemandReplicas": 0, "surviveLossPercent": 70}
        pools, classes = world(rps="60", prices={"cpu": {"OnDemand": "0.50", "Spot": "0.1"}}, placement={"spot": spot})
        if zones:
            cpu = classes[0].model_dump(by_alias=True, exclude_none=True)
            cpu["spec"]["capacity"][1]["zones"] = [f"z{i}" for i in range(zones)]
            classes[0] = HardwareClass.model_validate(cpu)
        return outcomes(simulate(steady, pools, classes, only=["berth"]))["berth"]

    calm, taken = run(), run(spotReclaims=[{"at": "12h", "hardwareClass": "cpu"}])
    spot = round(calm.node_hours["cpu", CapacityType.SPOT] / 24)
    assert taken.interrupted == (-(-spot // zones) if zones else spot)
    assert taken.within_share[11] == 1
    assert 0.70 <= taken.within_share[12] < 1, "until another one serves"
    assert taken.within_share[13] == 1
    if zones:
        assert spot > 3, "what three zones may carry is more than one may lose"


def test_the_cheapest_node_is_taken_blindly_and_its_turns_do_not_count(
    pool: Make, hardware: Make, profile: Make
) -> None:
    slow = [{"concurrency": 1, "contextTokens": 1000, "decodeTokensPerSecond": "5", "interTokenLatencyP99": "300ms"}]
    classes = [hardware("slow", prices={"OnDemand": "0.10"}), hardware("good", prices={"OnDemand": "1.00"})]
    profiles = [profile("slow", points=slow), profile("good")]
    pools = pools_of(
        [pool(rps="2", model="tested-model", shape={"promptTokens": 900, "outputTokens": 100})],
        classes,
        profiles,
        {},
        scenario(),
    )
    found = outcomes(simulate(scenario(), pools, classes))
    assert {name for name, _ in found["karpenter-like"].node_hours} == {"slow"}
    assert found["karpenter-like"].within == 0.0
    assert found["berth"].share == 1.0


def test_no_policy_has_more_nodes_than_there_are(world: Make, hardware: Make) -> None:
    pools, (cpu, gpu) = world()
    cpu = hardware("cpu", prices={"OnDemand": "0.50"}, max_nodes={"OnDemand": 1}, powerWatts=100)
    found = outcomes(simulate(scenario(demand={"troughPercent": 100}), pools, [cpu, gpu]))
    for outcome in found.values():
        assert all(hours <= 24 + 1e-9 for (name, _), hours in outcome.node_hours.items() if name == "cpu")
    assert found["berth"].share == 1.0, "the rest goes to GPUs"
    assert found["fixed-by-hand"].node_hours.keys() == {("gpu", next(iter(found["berth"].node_hours))[1])}


def test_some_policies_alone_come_to_the_same(world: Make) -> None:
    both = outcomes(simulate(scenario(), *world()))
    alone = outcomes(simulate(scenario(), *world(), only=("berth",)))
    assert list(alone) == ["berth"]
    assert alone["berth"].usd == both["berth"].usd


def test_power_is_the_nodes_own_or_its_chips_or_an_assumption(hardware: Make) -> None:
    assert node_watts(hardware("a", powerWatts=90), scenario()) == 90
    assert node_watts(hardware("a", cpus=16), scenario()) == pytest.approx(16 * 2.34)
    assert node_watts(hardware("g", kind="GPU"), scenario()) is None


def test_without_pools_or_with_an_event_of_nothing_there_is_nothing_to_run(world: Make) -> None:
    pools, classes = world()
    with pytest.raises(ScenarioError, match="there is no InferencePool"):
        pools_of([], classes, [], {}, scenario())
    out = scenario(stockOuts=[{"at": "1h", "lasts": "1h", "hardwareClass": "l5"}])
    with pytest.raises(ScenarioError, match="classes that are not there: l5"):
        pools_of([object()], classes, [], {}, out)  # type: ignore[list-item]
    assert pools


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), noise=st.integers(0, 30), rps=st.integers(1, 60))
def test_whatever_the_luck_the_books_balance(world: Make, seed: int, noise: int, rps: int) -> None:
    rough = scenario(
        seed=seed, demand={"noisePercent": noise, "bursts": {"perDay": "2"}}, spot={"interruptionsPerHour": "0.2"}
    )
    priced = {"cpu": {"OnDemand": "0.50", "Spot": "0.2"}}
    found = simulate(rough, *world(str(rps), prices=priced))
    turns = sum(series.sum() * 3600 for series in found.demand.values())
    for outcome in found.outcomes:
        assert outcome.turns == pytest.approx(turns)
        assert 0 <= outcome.within <= outcome.turns * (1 + 1e-9)
        assert outcome.usd == pytest.approx(float(outcome.usd_per_hour.sum()))
        assert outcome.nodes.sum() == pytest.approx(sum(outcome.node_hours.values()))
        assert np.all((outcome.within_share >= 0) & (outcome.within_share <= 1 + 1e-9))
