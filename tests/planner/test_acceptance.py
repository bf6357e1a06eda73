"""Is a spec that cannot work named with object, field, value and remedy, while the other pools are planned?"""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from berth_operator.api import HardwareClass, InferencePool, ServingProfile
from berth_operator.planner import AtFault, Plan, PoolPlan, Problem, Verdict

Make = Callable[..., Any]


@pytest.fixture
def refused(plan_for: Callable[..., Plan], fleet: list[HardwareClass], chat_pool: Make) -> Callable[..., Problem]:
    """Why a pool is refused, having seen that the good pool beside it is served."""

    def make(bad: InferencePool, classes: list[HardwareClass] | None = None, **rest: Any) -> Problem:
        plan = plan_for([bad, chat_pool("0.2")], fleet if classes is None else classes, **rest)
        assert plan.pools["demo/chat"].not_accepted is None
        assert plan.pools["demo/chat"].unserved_requests_per_second == 0
        problem = plan.pools[bad.key].not_accepted
        assert problem is not None
        assert plan.pools[bad.key].placements == ()
        return problem

    return make


def test_unknown_model_is_met_with_the_closest_names(refused: Callable[..., Problem], pool: Make) -> None:
    problem = refused(pool("bad", model="llama-3.1-8b-instuct"))
    assert problem.reason == "UnknownModel"
    assert 'spec.model.name: "llama-3.1-8b-instuct"' in problem.message
    assert "llama-3.1-8b-instruct" in problem.message
    assert "ServingProfile" in problem.message


def test_a_profile_makes_a_model_known(
    plan_one: Callable[..., PoolPlan], pool: Make, profile: Callable[..., ServingProfile], graviton4: HardwareClass
) -> None:
    planned = plan_one(pool(model="tested-model"), [graviton4], serving_profiles=(profile("graviton4"),))
    assert planned.not_accepted is None
    assert {p.capacity.estimated for p in planned.placements} == {False}


@pytest.mark.parametrize("field", ["allow", "deny"])
def test_unknown_hardware_is_named_with_the_classes_there_are(
    refused: Callable[..., Problem], pool: Make, field: str
) -> None:
    problem = refused(pool("bad", placement={"hardware": {field: {"names": ["l4", "l5"]}}}))
    assert problem.reason == "UnknownHardware"
    assert f'spec.placement.hardware.{field}.names: "l5"' in problem.message
    assert "graviton4, h100, l4" in problem.message


def test_a_class_at_fault_is_named_with_its_fault_and_not_called_unknown(
    refused: Callable[..., Problem],
    plan_for: Callable[..., Plan],
    pool: Make,
    l4: HardwareClass,
    fleet: list[HardwareClass],
) -> None:
    fault = AtFault("l4", "spec.capacity[0].usdPerHour: found 0: OnDemand nodes cost something", l4)
    sound = [c for c in fleet if c is not l4]
    only = pool("bad", placement={"hardware": {"allow": {"names": ["l4"]}}})
    problem = refused(only, sound, at_fault=(fault,))
    assert problem.reason == "HardwareAtFault"
    assert "l4: the HardwareClass is at fault: spec.capacity[0].usdPerHour: found 0" in problem.message
    unreadable = refused(only, sound, at_fault=(AtFault("l4", "spec.kind: found 3"),))
    assert (unreadable.reason, "l4: spec.kind: found 3" in unreadable.message) == ("HardwareAtFault", True)
    both = pool("both", placement={"hardware": {"allow": {"names": ["l4", "h100"]}}})
    planned = plan_for([both], sound, at_fault=(fault,)).pools[both.key]
    assert {p.hardware_class for p in planned.placements} == {"h100"}
    assert {c.verdict for c in planned.candidates if c.hardware_class == "l4"} == {Verdict.AT_FAULT}


def test_objective_that_no_hardware_meets_names_the_best_class_and_its_number(
    refused: Callable[..., Problem], pool: Make
) -> None:
    problem = refused(pool("bad", objectives={"interTokenLatencyP99": "2ms"}))
    assert problem.reason == "ObjectiveUnreachable"
    assert "spec.objectives.interTokenLatencyP99: 2 ms" in problem.message
    assert "the best is h100: inter-token p99" in problem.message
    assert "Raise it to at least" in problem.message


def test_objectives_that_contradict_each_other_are_refused(refused: Callable[..., Problem], pool: Make) -> None:
    problem = refused(pool("bad", objectives={"turnLatencyP99": "1s"}))
    assert problem.reason == "ObjectivesContradict"
    assert "turnLatencyP99" in problem.message


def test_model_too_large_for_every_class_comes_with_the_arithmetic(refused: Callable[..., Problem], pool: Make) -> None:
    problem = refused(pool("bad", model="llama-3.1-405b-instruct"))
    assert problem.reason == "ModelTooLarge"
    assert "weights" in problem.message
    assert "GiB > 71.0 GiB (80 GiB less 10 % and 1 GiB kept for the runtime)" in problem.message


def test_context_beyond_the_model_is_refused(refused: Callable[..., Problem], pool: Make) -> None:
    problem = refused(pool("bad", model="tinyllama-1.1b-chat", shape={"promptTokens": 3000, "outputTokens": 100}))
    assert problem.reason == "ContextTooLong"
    assert "3000 + outputTokens 100 = 3100 tokens, but tinyllama-1.1b-chat takes 2048" in problem.message


def test_budget_below_one_node_names_the_cheapest_plan(refused: Callable[..., Problem], pool: Make) -> None:
    cheap = pool(
        "bad",
        budget={"maxUsdPerHour": "0.10"},
        shape={"cachedPromptPercent": 90},
        objectives={"timeToFirstTokenP99": "2s", "interTokenLatencyP99": "100ms"},
    )
    problem = refused(cheap)
    assert problem.reason == "BudgetTooLow"
    assert "spec.budget.maxUsdPerHour: 0.10" in problem.message
    assert "one OnDemand node of graviton4 at 0.638" in problem.message, "spot may not carry an interactive pool alone"


def test_a_batch_pool_may_live_on_spot_alone_so_its_cheapest_plan_is_a_spot_node(
    refused: Callable[..., Problem], pool: Make
) -> None:
    problem = refused(pool("bad", "0.01", workload_class="Batch", budget={"maxUsdPerHour": "0.10"}))
    assert "one Spot node of graviton4 at 0.25" in problem.message


def test_a_budget_below_all_nodes_that_a_replica_spans_comes_with_the_product(
    refused: Callable[..., Problem], plan_one: Callable[..., PoolPlan], pool: Make, h100: HardwareClass, chat_pool: Make
) -> None:
    wide = h100.model_copy(update={"spec": h100.spec.model_copy(update={"max_nodes_per_replica": 4})})
    large = {"model": "llama-3.1-70b-instruct", "quantization": "BF16", "objectives": {"interTokenLatencyP99": "900ms"}}
    placed = plan_one(pool("large", "0.01", **large), [wide])
    (placement,) = placed.placements
    nodes, price = placement.nodes_per_replica, h100.spec.capacity[0].usd_per_hour
    assert nodes > 1 and placed.usd_per_hour == nodes * price
    problem = refused(pool("large", "0.01", **large, budget={"maxUsdPerHour": f"{price + 1}"}), [wide])
    assert problem.reason == "BudgetTooLow"
    assert f"{nodes} OnDemand nodes of h100 at {nodes} x {price} = {nodes * price}" in problem.message


def test_overspend_accepts_any_budget_and_says_by_how_much_it_is_passed(
    plan_one: Callable[..., PoolPlan], chat_pool: Make, fleet: list[HardwareClass]
) -> None:
    planned = plan_one(chat_pool("0.2", budget={"maxUsdPerHour": "0.10", "onExceeded": "Overspend"}), fleet)
    assert planned.not_accepted is None
    assert planned.usd_per_hour == Decimal("0.638")
    assert planned.over_budget is not None
    assert "$0.638/h is above spec.budget.maxUsdPerHour 0.10" in planned.over_budget.message


def test_policy_that_allows_nothing_is_named(refused: Callable[..., Problem], pool: Make) -> None:
    problem = refused(pool("bad", placement={"hardware": {"allow": {"selector": {"arch": "riscv"}}}}))
    assert problem.reason == "NoHardwareAllowed"
    assert "spec.placement.hardware.allow does not match graviton4" in problem.message


def test_class_that_cannot_be_estimated_asks_for_a_profile(
    refused: Callable[..., Problem], pool: Make, hardware: Make, graviton4: HardwareClass
) -> None:
    custom = hardware("own", runtime={"name": "Custom", "image": "registry.example/own:1"}, labels={"own": "yes"})
    problem = refused(pool("bad", placement={"hardware": {"allow": {"names": ["own"]}}}), [custom, graviton4])
    assert problem.reason == "NoServingProfile"
    assert "supply a ServingProfile for model llama-3.1-8b-instruct" in problem.message


def test_demand_beyond_any_fleet_is_refused_with_the_arithmetic(refused: Callable[..., Problem], pool: Make) -> None:
    problem = refused(pool("bad", "999999999999"))
    assert problem.reason == "DemandTooLarge"
    assert "h100" in problem.message


def test_without_any_class_the_pool_is_accepted_and_waits(plan_one: Callable[..., PoolPlan], pool: Make) -> None:
    planned = plan_one(pool(), [])
    assert planned.not_accepted is None
    assert planned.shortfall is not None
    assert planned.shortfall.reason == "NoHardware"


def test_a_refused_pool_still_shows_what_is_wrong_with_each_class(
    plan_one: Callable[..., PoolPlan], pool: Make, fleet: list[HardwareClass]
) -> None:
    planned = plan_one(pool(objectives={"interTokenLatencyP99": "2ms"}), fleet)
    assert {c.verdict for c in planned.candidates} == {Verdict.TOO_SLOW}
    assert len(planned.candidates) == 6
    assert all("> 2 ms" in c.reason for c in planned.candidates)


def test_power_without_a_figure_of_watts_asks_for_one_and_not_for_a_profile(
    refused: Callable[..., Problem], plan_for: Callable[..., Plan], pool: Make, hardware: Make, chat_pool: Make
) -> None:
    classes = [hardware("graviton4", compute={"int8Tops": 11}, runtime={"name": "Berth"})]
    problem = refused(pool("bad", placement={"objective": "Power"}), classes)
    assert problem.reason == "NoPowerFigure"
    assert "spec.powerWatts" in problem.message and "(graviton4)" in problem.message
    (candidate,) = plan_for([pool("bad", placement={"objective": "Power"})], classes).pools["demo/bad"].candidates
    assert candidate.estimated is None, "no speed was looked at"


def test_where_every_class_is_at_fault_the_pool_waits_and_says_so(
    plan_one: Callable[..., PoolPlan], pool: Make, l4: HardwareClass
) -> None:
    fault = AtFault("l4", "spec.capacity[0].usdPerHour: found 0: OnDemand nodes cost something", l4)
    planned = plan_one(pool(), [], at_fault=(fault, AtFault("odd", "spec.kind: found 3")))
    assert planned.not_accepted is None
    assert planned.shortfall is not None
    assert planned.shortfall.reason == "NoHardware"
    assert "every HardwareClass is at fault" in planned.shortfall.message
    assert "l4: spec.capacity[0].usdPerHour: found 0" in planned.shortfall.message
    assert "odd: spec.kind: found 3" in planned.shortfall.message
