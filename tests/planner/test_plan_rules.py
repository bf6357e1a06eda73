"""Does each rule of a pool and of the fleet hold in the plan?  A replica of `tested-model` carries about 6 turns/s."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from berth_operator.api import HardwareClass, InferencePool, Quantization, ServingProfile
from berth_operator.planner import Plan, PoolPlan, RunningPlacement, Verdict, solver

Make = Callable[..., Any]


@pytest.fixture
def tested(pool: Make) -> Callable[..., InferencePool]:
    """A pool of the profiled model without rules of its class."""

    def make(name: str = "tested", rps: str = "20", **changes: Any) -> InferencePool:
        placement = {"spot": {"maxTrafficPercent": 100, "minOnDemandReplicas": 0, "surviveLossPercent": 0}}
        placement |= changes.pop("placement", {})
        shape = {"promptTokens": 800, "outputTokens": 80, "cachedPromptPercent": 90}
        made: InferencePool = pool(name, rps, model="tested-model", shape=shape, placement=placement, **changes)
        return made

    return make


@pytest.fixture
def profiles(profile: Make) -> tuple[ServingProfile, ...]:
    return tuple(profile(name) for name in ("cheap", "dear", "third"))


@pytest.fixture
def planned(plan_for: Callable[..., Plan], profiles: tuple[ServingProfile, ...]) -> Callable[..., Plan]:
    def make(pools: list[InferencePool], classes: list[HardwareClass], **rest: Any) -> Plan:
        return plan_for(pools, classes, serving_profiles=profiles, **rest)

    return make


def _replicas(pool_plan: PoolPlan) -> Mapping[tuple[str, str], int]:
    return {(p.hardware_class, p.capacity_type.value): p.replicas for p in pool_plan.placements}


def _verdicts(pool_plan: PoolPlan) -> Mapping[tuple[str, str], Verdict]:
    return {(c.hardware_class, c.capacity_type.value): c.verdict for c in pool_plan.candidates}


def test_the_cheapest_class_is_taken_with_as_many_nodes_as_the_demand_needs(
    planned: Make, tested: Make, hardware: Make
) -> None:
    classes = [hardware("cheap", prices={"OnDemand": "1"}), hardware("dear", prices={"OnDemand": "2"})]
    one = planned([tested()], classes).pools["demo/tested"]
    each = one.placements[0].capacity.turns_per_second
    assert _replicas(one) == {("cheap", "OnDemand"): -(-20 // each)}
    assert one.usd_per_hour == one.placements[0].replicas
    assert one.placements[0].traffic_percent == 100
    assert one.unserved_requests_per_second == 0


def test_node_limits_hold_across_pools_and_the_higher_priority_is_served_first(
    planned: Make, tested: Make, hardware: Make
) -> None:
    classes = [hardware("cheap", max_nodes={"OnDemand": 3})]
    plan = planned([tested("low"), tested("high", priority=10)], classes)
    assert _replicas(plan.pools["demo/high"]) == {("cheap", "OnDemand"): 3}
    low = plan.pools["demo/low"]
    assert low.unserved_requests_per_second == 20
    assert low.shortfall is not None
    assert low.shortfall.reason == "NoCapacity"
    assert "all 3 nodes (maxNodes) are taken by demo/high" in low.shortfall.message


def test_nodes_that_are_all_in_use_by_the_pool_itself_are_named(planned: Make, tested: Make, hardware: Make) -> None:
    one = planned([tested()], [hardware("cheap", max_nodes={"OnDemand": 2})]).pools["demo/tested"]
    assert one.shortfall is not None
    assert one.shortfall.reason == "NoCapacity"
    assert "cheap OnDemand: no more than the 2 nodes in use can be had (maxNodes)" in one.shortfall.message


def test_spot_that_policy_keeps_from_serving_the_rest_is_named_with_the_rules(
    planned: Make, tested: Make, hardware: Make
) -> None:
    spot = {"maxTrafficPercent": 50, "minOnDemandReplicas": 1, "surviveLossPercent": 0}
    one = planned([tested(placement={"spot": spot})], [hardware("cheap", prices={"Spot": "0.3"})]).pools["demo/tested"]
    assert one.unserved_requests_per_second == 20
    assert one.shortfall is not None
    assert one.shortfall.reason == "Policy"
    assert "spot may carry at most 50 % of traffic" in one.shortfall.message


@pytest.mark.parametrize("rps", ["0.000000001", "0.001"])
def test_demand_however_small_is_served(planned: Make, tested: Make, hardware: Make, rps: str) -> None:
    one = planned([tested(rps=rps, scaling={"minReplicas": 0})], [hardware("cheap")]).pools["demo/tested"]
    assert _replicas(one) == {("cheap", "OnDemand"): 1}
    assert one.unserved_requests_per_second == 0


def test_class_without_nodes_is_no_capacity(planned: Make, tested: Make, hardware: Make) -> None:
    classes = [hardware("cheap", max_nodes={"OnDemand": 0}), hardware("dear", prices={"OnDemand": "2"})]
    one = planned([tested()], classes).pools["demo/tested"]
    assert _verdicts(one) == {("cheap", "OnDemand"): Verdict.NO_CAPACITY, ("dear", "OnDemand"): Verdict.CHOSEN}


def test_replicas_share_nodes_where_the_profile_says_so(
    plan_for: Make, tested: Make, hardware: Make, profile: Make
) -> None:
    packed = profile("cheap", replicasPerNode=2, resources={"cpu": "8", "memory": "14Gi"})
    one = plan_for([tested()], [hardware("cheap")], serving_profiles=(packed,)).pools["demo/tested"]
    placement = one.placements[0]
    assert (placement.replicas, placement.nodes, placement.replicas_per_node) == (3, 2, 2)
    assert placement.usd_per_hour == 2
    assert placement.resources is not None
    assert placement.resources.cpu == "8"


def test_spot_carries_at_most_its_share_and_on_demand_stands_beside_it(
    planned: Make, tested: Make, hardware: Make
) -> None:
    classes = [hardware("cheap", prices={"OnDemand": "1", "Spot": "0.2"})]
    spot = {"maxTrafficPercent": 60, "minOnDemandReplicas": 3, "surviveLossPercent": 0}
    one = planned([tested(rps="40", placement={"spot": spot})], classes).pools["demo/tested"]
    shares = {p.capacity_type.value: p.traffic_percent for p in one.placements}
    assert 0 < shares["Spot"] <= 60
    assert _replicas(one)[("cheap", "OnDemand")] >= 3
    assert sum(shares.values()) == 100


def test_the_on_demand_floor_binds_only_pools_that_use_spot(planned: Make, tested: Make, hardware: Make) -> None:
    spot = {"maxTrafficPercent": 60, "minOnDemandReplicas": 3, "surviveLossPercent": 0}
    one = planned([tested(rps="1", placement={"spot": spot})], [hardware("cheap")]).pools["demo/tested"]
    assert _replicas(one) == {("cheap", "OnDemand"): 1}


def test_losing_a_spot_class_leaves_the_promised_share_so_two_classes_carry_what_one_may_not(
    planned: Make, tested: Make, hardware: Make
) -> None:
    classes = [hardware(n, prices={"Spot": "0.2", "OnDemand": "5"}) for n in ("cheap", "dear", "third")]
    spot = {"maxTrafficPercent": 100, "minOnDemandReplicas": 0, "surviveLossPercent": 60}
    one = planned([tested(rps="40", placement={"spot": spot})], classes).pools["demo/tested"]
    assert {p.capacity_type.value for p in one.placements} == {"Spot"}
    assert all(p.traffic_percent <= 40 for p in one.placements)
    assert len(one.placements) == 3


def test_no_vendor_carries_more_than_its_share(planned: Make, tested: Make, hardware: Make) -> None:
    classes = [hardware("cheap", vendor="A"), hardware("dear", vendor="B", prices={"OnDemand": "3"})]
    one = planned([tested(rps="40", placement={"diversity": {"maxTrafficPercentPerVendor": 70}})], classes).pools[
        "demo/tested"
    ]
    shares = {p.hardware_class: p.traffic_percent for p in one.placements}
    assert shares["cheap"] <= 70
    assert shares["cheap"] + shares["dear"] == 100
    assert one.unserved_requests_per_second == 0


def test_one_vendor_alone_cannot_keep_a_vendor_limit_and_the_shortfall_says_so(
    planned: Make, tested: Make, hardware: Make
) -> None:
    one = planned(
        [tested(placement={"diversity": {"maxTrafficPercentPerVendor": 70}})], [hardware("cheap", vendor="A")]
    ).pools["demo/tested"]
    assert one.unserved_requests_per_second == 20
    assert one.shortfall is not None
    assert one.shortfall.reason == "Policy"
    assert "maxTrafficPercentPerVendor 70 needs more vendors than A" in one.shortfall.message


def test_shed_stays_within_the_budget_and_reports_what_is_unserved(planned: Make, tested: Make, hardware: Make) -> None:
    one = planned([tested(rps="40", budget={"maxUsdPerHour": "2.50"})], [hardware("cheap")]).pools["demo/tested"]
    assert _replicas(one) == {("cheap", "OnDemand"): 2}
    assert one.unserved_requests_per_second == pytest.approx(
        40 - 2 * one.placements[0].capacity.turns_per_second, rel=1e-6
    )
    assert one.shortfall is not None
    assert one.shortfall.reason == "Budget"
    assert "$2/h of budget.maxUsdPerHour 2.50 is spent" in one.shortfall.message
    assert one.placements[0].traffic_percent == 100


def test_overspend_serves_all_and_says_so(planned: Make, tested: Make, hardware: Make) -> None:
    budget = {"maxUsdPerHour": "2.50", "onExceeded": "Overspend"}
    one = planned([tested(rps="40", budget=budget)], [hardware("cheap")]).pools["demo/tested"]
    assert one.unserved_requests_per_second == 0
    assert one.over_budget is not None


def test_replica_bounds_hold_and_the_upper_one_is_named_when_it_sheds(
    planned: Make, tested: Make, hardware: Make
) -> None:
    plan = planned(
        [tested("least", "1", scaling={"minReplicas": 4}), tested("most", "40", scaling={"maxReplicas": 2})],
        [hardware("cheap")],
    )
    assert _replicas(plan.pools["demo/least"]) == {("cheap", "OnDemand"): 4}
    most = plan.pools["demo/most"]
    assert _replicas(most) == {("cheap", "OnDemand"): 2}
    assert most.shortfall is not None
    assert most.shortfall.reason == "MaxReplicas"


def test_a_floor_of_replicas_that_nodes_do_not_allow_is_reported_with_demand_served(
    planned: Make, tested: Make, hardware: Make
) -> None:
    one = planned([tested(rps="1", scaling={"minReplicas": 4})], [hardware("cheap", max_nodes={"OnDemand": 2})]).pools[
        "demo/tested"
    ]
    assert _replicas(one) == {("cheap", "OnDemand"): 2}
    assert one.unserved_requests_per_second == 0
    assert one.shortfall is not None
    assert "2 of scaling.minReplicas 4 are missing" in one.shortfall.message


def test_allow_and_deny_work_by_name_and_by_label(planned: Make, tested: Make, hardware: Make) -> None:
    classes = [
        hardware("cheap", labels={"tier": "low"}),
        hardware("dear", prices={"OnDemand": "2"}, labels={"tier": "high"}),
    ]
    plan = planned(
        [
            tested("by-name", placement={"hardware": {"deny": {"names": ["cheap"]}}}),
            tested("by-label", placement={"hardware": {"allow": {"selector": {"tier": "high"}}}}),
            tested("empty", placement={"hardware": {"allow": {}, "deny": {}}}),
        ],
        classes,
    )
    taken = {key: [p.hardware_class for p in one.placements] for key, one in plan.pools.items()}
    assert taken == {"demo/by-name": ["dear"], "demo/by-label": ["dear"], "demo/empty": ["cheap"]}
    assert _verdicts(plan.pools["demo/by-name"])[("cheap", "OnDemand")] is Verdict.NOT_ALLOWED


def test_a_class_may_be_kept_for_namespaces_with_a_label(planned: Make, tested: Make, hardware: Make) -> None:
    classes = [
        hardware("cheap", namespaceSelector={"matchLabels": {"team": "search"}}),
        hardware("dear", prices={"OnDemand": "2"}),
    ]
    outside = planned([tested()], classes).pools["demo/tested"]
    inside = planned([tested()], classes, namespace_labels={"demo": {"team": "search"}}).pools["demo/tested"]
    assert [p.hardware_class for p in outside.placements] == ["dear"]
    assert [p.hardware_class for p in inside.placements] == ["cheap"]
    refused = next(c for c in outside.candidates if c.hardware_class == "cheap")
    assert "namespace demo to be labelled team=search" in refused.reason


def test_reserved_nodes_are_used_first_and_cost_nothing_more(planned: Make, tested: Make, hardware: Make) -> None:
    classes = [hardware("cheap", prices={"OnDemand": "1", "Reserved": "0.60"}, max_nodes={"Reserved": 2})]
    one = planned([tested(rps="25")], classes).pools["demo/tested"]
    replicas = _replicas(one)
    assert replicas[("cheap", "Reserved")] == 2
    assert one.usd_per_hour == replicas[("cheap", "OnDemand")]


def test_a_constrained_class_keeps_what_runs_and_the_rest_goes_elsewhere(
    planned: Make, tested: Make, hardware: Make, running: Callable[..., RunningPlacement], now: Any
) -> None:
    def constrained(until: Any) -> dict[str, Any]:
        entry = {"type": "OnDemand", "since": now.isoformat(), "until": until.isoformat(), "backOff": "10m"}
        return {"constrained": [entry]}

    def classes(until: Any) -> list[HardwareClass]:
        return [hardware("cheap", status=constrained(until)), hardware("dear", prices={"OnDemand": "2"})]

    runs = (running("demo/tested", "cheap", replicas=1),)
    soon = now + timedelta(minutes=10)
    clipped = planned([tested()], classes(soon), running=runs).pools["demo/tested"]
    assert _replicas(clipped)[("cheap", "OnDemand")] == 1
    assert _replicas(clipped)[("dear", "OnDemand")] >= 1
    assert clipped.unserved_requests_per_second == 0
    fresh = planned([tested()], classes(soon)).pools["demo/tested"]
    assert _verdicts(fresh)[("cheap", "OnDemand")] is Verdict.CONSTRAINED
    over = planned([tested()], classes(now - timedelta(seconds=1)), running=runs).pools["demo/tested"]
    assert {p.hardware_class for p in over.placements} == {"cheap"}


def test_a_class_that_no_node_takes_pods_of_is_avoided_by_who_can_be_served_elsewhere(
    planned: Make, tested: Make, hardware: Make, running: Callable[..., RunningPlacement], now: Any
) -> None:
    until = (now + timedelta(minutes=10)).isoformat()
    entry = {"type": "OnDemand", "since": now.isoformat(), "until": until, "backOff": "10m"}
    entry |= {"reason": "NoMatchingNode", "message": "no node has its labels"}
    cheap, dear = hardware("cheap", status={"avoided": [entry]}), hardware("dear", prices={"OnDemand": "2"})
    fresh = planned([tested()], [cheap, dear]).pools["demo/tested"]
    assert {p.hardware_class for p in fresh.placements} == {"dear"}
    said = next(c for c in fresh.candidates if c.hardware_class == "cheap" and c.capacity_type == "OnDemand")
    assert (said.verdict, said.reason) == (Verdict.AT_FAULT, f"no node has its labels; tried again after {until}")
    runs = (running("demo/tested", "cheap", replicas=1),)
    kept = planned([tested()], [cheap, dear], running=runs).pools["demo/tested"]
    assert _replicas(kept)[("cheap", "OnDemand")] == 1
    assert kept.unserved_requests_per_second == 0
    only = planned([tested()], [cheap]).pools["demo/tested"]
    assert {p.hardware_class for p in only.placements} == {"cheap"}  # nothing else: it waits, and says why
    mended = hardware("cheap", status={"avoided": [entry | {"until": now.isoformat()}]})
    again = planned([tested()], [mended, dear]).pools["demo/tested"]
    assert {p.hardware_class for p in again.placements} == {"cheap"}


def test_power_takes_the_frugal_class_and_needs_its_watts(planned: Make, tested: Make, hardware: Make) -> None:
    classes = [
        hardware("cheap", powerWatts=300),
        hardware("dear", prices={"OnDemand": "2"}, powerWatts=100),
        hardware("third", prices={"OnDemand": "0.5"}),
    ]
    one = planned([tested(placement={"objective": "Power"})], classes).pools["demo/tested"]
    assert {p.hardware_class for p in one.placements} == {"dear"}
    assert one.watts == 100 * one.placements[0].nodes
    verdicts = _verdicts(one)
    assert verdicts[("third", "OnDemand")] is Verdict.NOT_COMPARABLE
    assert verdicts[("cheap", "OnDemand")] is Verdict.TOO_EXPENSIVE


def test_latency_takes_the_fastest_class_whatever_it_costs(
    plan_for: Make, tested: Make, hardware: Make, profile: Make
) -> None:
    fast_points = [
        {"concurrency": 1, "contextTokens": 1000, "decodeTokensPerSecond": "300", "interTokenLatencyP99": "4ms"}
    ]
    one = plan_for(
        [tested(rps="1", placement={"objective": "Latency"})],
        [hardware("cheap"), hardware("dear", prices={"OnDemand": "9"})],
        serving_profiles=(profile("cheap"), profile("dear", points=fast_points)),
    ).pools["demo/tested"]
    assert {p.hardware_class for p in one.placements} == {"dear"}
    assert _verdicts(one)[("cheap", "OnDemand")] is Verdict.TOO_SLOW


def test_any_quantization_is_resolved_to_one_for_the_whole_pool(
    plan_for: Make, pool: Make, fleet: list[HardwareClass]
) -> None:
    one = plan_for([pool("any", "30", quantization="Any")], fleet).pools["demo/any"]
    assert len({p.quantization for p in one.placements}) == 1
    assert one.placements[0].quantization is not Quantization.ANY
    fixed = min(
        plan_for([pool("any", "30", quantization=q)], fleet).pools["demo/any"].usd_per_hour for q in ("Int8", "BF16")
    )
    assert one.usd_per_hour == fixed


def test_suspended_and_recommended_pools_take_no_nodes_from_running_ones(
    planned: Make, tested: Make, hardware: Make
) -> None:
    classes = [hardware("cheap", max_nodes={"OnDemand": 3}), hardware("dear", prices={"OnDemand": "2"})]
    plan = planned(
        [
            tested("live"),
            tested("paused", suspend=True, priority=99),
            tested("advice", placement={"mode": "Recommend"}, priority=99),
        ],
        classes,
    )
    assert _replicas(plan.pools["demo/live"]) == {("cheap", "OnDemand"): 3}
    paused, advice = plan.pools["demo/paused"], plan.pools["demo/advice"]
    assert (paused.placements, paused.usd_per_hour) == ((), 0)
    assert paused.resume_usd_per_hour == 6
    assert Verdict.CHOSEN in _verdicts(paused).values()
    assert _replicas(advice) == {("dear", "OnDemand"): 3}


def test_what_a_suspended_pool_would_take_is_not_missing_to_others(planned: Make, tested: Make, hardware: Make) -> None:
    classes = [hardware("cheap"), hardware("dear", prices={"OnDemand": "2"}, max_nodes={"OnDemand": 1})]
    paused = tested("paused", rps="1", suspend=True, placement={"hardware": {"allow": {"names": ["dear"]}}})
    plan = planned([tested("live"), paused], classes)
    assert _verdicts(plan.pools["demo/paused"])[("dear", "OnDemand")] is Verdict.CHOSEN
    assert _verdicts(plan.pools["demo/live"])[("dear", "OnDemand")] is Verdict.TOO_EXPENSIVE


def test_when_the_solver_fails_what_runs_stands_and_other_pools_are_planned(
    planned: Make, tested: Make, hardware: Make, running: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = solver.minimise

    def failing(program: Any, stages: Any) -> Any:
        if any(high == 7 for _, high, _ in program.rows):  # maxReplicas of the pool to fail
            raise solver.SolverError("HiGHS found no feasible plan: Unknown")
        return real(program, stages)

    monkeypatch.setattr(solver, "minimise", failing)
    doomed = tested("doomed", rps="5", scaling={"maxReplicas": 7})
    classes = [hardware("cheap", prices={"OnDemand": "0.1"})]
    plan = planned([doomed, tested("fine")], classes, running=(running("demo/doomed", "cheap", replicas=2),))
    assert _replicas(plan.pools["demo/doomed"]) == {("cheap", "OnDemand"): 2}
    assert plan.pools["demo/doomed"].shortfall is not None
    assert plan.pools["demo/doomed"].shortfall.reason == "SolverFailed"
    assert plan.pools["demo/fine"].unserved_requests_per_second == 0
    assert "HiGHS found no feasible plan" in plan.solver_status


def test_a_pool_whose_only_class_is_constrained_says_so(planned: Make, tested: Make, hardware: Make, now: Any) -> None:
    until = (now + timedelta(minutes=1)).isoformat()
    entry = {"type": "OnDemand", "since": "s", "until": until, "backOff": "5m"}
    only = planned([tested()], [hardware("cheap", status={"constrained": [entry]})]).pools["demo/tested"]
    assert only.shortfall
    assert only.shortfall.reason == "NoCapacity"
    assert "cheap OnDemand: OnDemand nodes could not be had" in only.shortfall.message


def test_a_constrained_class_keeps_pods_that_have_a_node_though_they_are_not_ready_yet(
    planned: Make, tested: Make, hardware: Make, running: Make, now: Any
) -> None:
    until = (now + timedelta(minutes=5)).isoformat()
    entry = {"type": "OnDemand", "since": now.isoformat(), "until": until, "backOff": "5m"}
    classes = [hardware("cheap", status={"constrained": [entry]}), hardware("dear", prices={"OnDemand": "2"})]
    runs = (running("demo/tested", "cheap", replicas=3, ready=1, scheduled_replicas=2),)
    one = planned([tested()], classes, running=runs).pools["demo/tested"]
    assert _replicas(one) == {("cheap", "OnDemand"): 2, ("dear", "OnDemand"): 1}


def test_money_adds_up_exactly(planned: Make, tested: Make, hardware: Make) -> None:
    one = planned([tested(rps="60")], [hardware("cheap", prices={"OnDemand": "0.1"})]).pools["demo/tested"]
    assert one.usd_per_hour == Decimal("0.1") * one.placements[0].nodes
    tokens = Decimal(60 * 80 * 3600)
    assert one.usd_per_million_tokens == (one.usd_per_hour * 1_000_000 / tokens).quantize(Decimal("0.0001"))


def test_measured_profile_wins_over_the_estimate(
    plan_one: Callable[..., PoolPlan], chat_pool: Make, graviton4: HardwareClass, profile: Make
) -> None:
    estimated = plan_one(chat_pool("0.2"), [graviton4])
    slow = [{"concurrency": 1, "contextTokens": 1000, "decodeTokensPerSecond": "5", "interTokenLatencyP99": "300ms"}]
    measured = profile("graviton4", model="llama-3.1-8b-instruct", points=slow)
    profiled = plan_one(chat_pool("0.2"), [graviton4], serving_profiles=(measured,))
    assert estimated.placements[0].capacity.estimated
    assert profiled.not_accepted is not None
    assert "inter-token p99 300 ms at 1 request > 100 ms" in profiled.not_accepted.message


def test_more_demand_never_costs_less(planned: Make, tested: Make, hardware: Make) -> None:
    classes = [hardware("cheap"), hardware("dear", prices={"OnDemand": "1.5"})]
    costs = [planned([tested(rps=str(r))], classes).pools["demo/tested"].usd_per_hour for r in range(1, 60, 7)]
    assert all(a <= b for a, b in pairwise(costs))
