"""Is a model too large for a node served over several, where its class allows that, and is its arithmetic told?"""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from berth_operator.api import CapacityType, HardwareClass, InferencePool, Quantization, ServingProfile
from berth_operator.planner import Plan, PoolPlan, Snapshot, Verdict, plan
from berth_operator.planner.architectures import ARCHITECTURES
from berth_operator.planner.candidates import candidates_of
from berth_operator.planner.fleet import FleetSolver
from berth_operator.planner.judged import judge_pools
from berth_operator.planner.planning import pool_problems
from berth_operator.planner.spans import chosen
from berth_operator.planner.speed import roofline_kv_tokens, roofline_speed, usable_bytes
from berth_operator.planner.stages import HOP_SECONDS, stage_share
from berth_operator.planner.types import ReplicaCapacity

Make = Callable[..., Any]
MODEL = "llama-3.1-405b-instruct"
ARCHITECTURE = ARCHITECTURES[MODEL]
GIB = float(1 << 30)


@pytest.fixture
def p5(hardware: Make) -> Callable[..., HardwareClass]:
    """p5.48xlarge: eight H100 of 80 GiB."""

    def make(name: str = "p5", **changes: Any) -> HardwareClass:
        spec: dict[str, Any] = {
            "kind": "GPU",
            "vendor": "NVIDIA",
            "cpus": 192,
            "memoryGiB": 640,
            "memoryBandwidthGBps": 26_800,
            "compute": {"bf16Tflops": 7912},
            "accelerators": {"resource": "nvidia.com/gpu", "count": 8},
            "prices": {"OnDemand": "55.04"},
            "maxNodesPerReplica": 4,
            "interconnectGbps": 3200,
        }
        made: HardwareClass = hardware(name, **(spec | changes))
        return made

    return make


@pytest.fixture
def big(pool: Make) -> Callable[..., InferencePool]:
    """A pool of Llama 3.1 405B in bf16: 756 GiB of weights."""

    def make(rps: str = "1", name: str = "big", **changes: Any) -> InferencePool:
        objectives = {"interTokenLatencyP99": "200ms", "timeToFirstTokenP99": "5s", "turnLatencyP99": "60s"}
        made: InferencePool = pool(
            name, rps, model=MODEL, quantization="BF16", **({"objectives": objectives} | changes)
        )
        return made

    return make


def _only(found: PoolPlan, name: str = "p5") -> Any:
    (candidate,) = [c for c in found.candidates if c.hardware_class == name]
    return candidate


# --- What fits ------------------------------------------------------------------------------------------------------


def test_a_model_too_large_for_a_node_goes_over_two_with_the_arithmetic(plan_one: Make, big: Make, p5: Make) -> None:
    found = plan_one(big(), [p5()])
    (placement,) = found.placements
    assert (placement.replicas, placement.nodes, placement.nodes_per_replica) == (1, 2, 2)
    assert placement.usd_per_hour == Decimal("110.08"), "both nodes are paid"
    assert placement.capacity.estimated
    reason = _only(found).reason
    assert "a replica spans 2 nodes" in reason
    assert "weights 756.0 GiB" in reason
    assert "> 568.0 GiB" in reason
    assert "over 2, weights 378.0 GiB + KV 190.0 GiB each" in reason


def test_a_class_that_allows_one_node_a_replica_says_why_not(plan_one: Make, big: Make, p5: Make) -> None:
    found = plan_one(big(), [p5(maxNodesPerReplica=1)])
    assert not found.placements
    assert _only(found).verdict is Verdict.DOES_NOT_FIT
    assert "over" not in _only(found).reason


def test_too_few_nodes_a_replica_are_told_with_the_arithmetic_of_those(plan_one: Make, big: Make, p5: Make) -> None:
    found = plan_one(big(), [p5(memoryGiB=320, maxNodesPerReplica=2)])
    assert _only(found).verdict is Verdict.DOES_NOT_FIT
    assert "over 2 nodes weights 378.0 GiB + KV of one request" in _only(found).reason


def test_without_leader_worker_sets_no_replica_spans_nodes(plan_one: Make, big: Make, p5: Make) -> None:
    found = plan_one(big(), [p5()], spanning=False)
    assert not found.placements
    assert _only(found).verdict is Verdict.DOES_NOT_FIT
    assert "2 nodes a replica would hold it, but LeaderWorkerSet is not installed" in _only(found).reason


def test_a_model_that_fits_a_node_never_spans_two(plan_one: Make, pool: Make, p5: Make) -> None:
    alone = plan_one(pool(model="llama-3.1-70b-instruct", rps="40"), [p5()])
    held = plan_one(pool(model="llama-3.1-70b-instruct", rps="40"), [p5(maxNodesPerReplica=1)])
    assert alone == held
    assert all(p.nodes_per_replica == 1 for p in alone.placements)


def test_limits_count_nodes_and_a_rest_too_small_for_a_replica_serves_nothing(
    plan_one: Make, big: Make, p5: Make
) -> None:
    found = plan_one(big("20"), [p5(max_nodes={"OnDemand": 5})])
    (placement,) = found.placements
    assert (placement.replicas, placement.nodes) == (2, 4)
    assert found.unserved_requests_per_second > 0
    assert found.shortfall is not None
    assert "no more than the 4 nodes in use can be had" in found.shortfall.message
    none = plan_one(big(), [p5(max_nodes={"OnDemand": 1})])
    assert _only(none).verdict is Verdict.NO_CAPACITY
    assert _only(none).reason == "maxNodes of OnDemand is 1: a replica spans 2"


def test_no_replica_spans_more_nodes_than_there_are(plan_one: Make, big: Make, p5: Make) -> None:
    tight = {"memoryGiB": 440, "memoryBandwidthGBps": 18_000}
    assert plan_one(big("60"), [p5(**tight)]).placements[0].nodes_per_replica > 2
    held = plan_one(big("60"), [p5(**tight, max_nodes={"OnDemand": 2})])
    assert [(p.replicas, p.nodes) for p in held.placements] == [(1, 2)]


def test_nodes_that_other_pools_leave_may_be_too_few_for_a_replica(plan_for: Make, big: Make, p5: Make) -> None:
    both = [big(name="first", priority=5), big(name="second")]
    found: Plan = plan_for(both, [p5(max_nodes={"OnDemand": 3})])
    assert found.pools["demo/first"].placements
    candidate = _only(found.pools["demo/second"])
    assert candidate.verdict is Verdict.NO_CAPACITY
    assert "1 of 3 nodes (maxNodes) are left by demo/first: a replica spans 2" in candidate.reason


def test_a_budget_counts_every_node_of_a_replica(plan_one: Make, big: Make, p5: Make) -> None:
    assert not plan_one(big(budget={"maxUsdPerHour": "110.00"}), [p5()]).placements
    assert plan_one(big(budget={"maxUsdPerHour": "110.08"}), [p5()]).placements


def test_larger_nodes_win_where_they_are_cheaper_and_break_even_is_of_one_node(
    plan_one: Make, big: Make, p5: Make
) -> None:
    large = p5("p5en", memoryGiB=1128, memoryBandwidthGBps=38_400, prices={"OnDemand": "75"}, maxNodesPerReplica=1)
    found = plan_one(big(), [p5(), large])
    assert [(p.hardware_class, p.nodes) for p in found.placements] == [("p5en", 1)]
    assert "would enter below $37.500/h" in _only(found).reason
    (entered,) = plan_one(big(), [p5(prices={"OnDemand": "37.49"}), large]).placements
    assert (entered.hardware_class, entered.nodes) == ("p5", 2)


def test_whole_replicas_carry_the_floors(plan_one: Make, big: Make, p5: Make) -> None:
    (placement,) = plan_one(big(scaling={"minReplicas": 3}), [p5()]).placements
    assert (placement.replicas, placement.nodes) == (3, 6)


# --- How many nodes -------------------------------------------------------------------------------------------------


def _carrying(rate: float) -> ReplicaCapacity:
    return ReplicaCapacity(rate, 1, 1.0, 1.0, 1.0, 1000, estimated=True)


def test_the_width_is_the_one_by_which_the_demand_takes_the_fewest_nodes() -> None:
    widths = {2: _carrying(1.0), 3: _carrying(3.0)}
    assert chosen(widths, 0.5, None, 15) == 2
    assert chosen(widths, 6.0, None, 15) == 3
    assert chosen({2: _carrying(2.0), 4: _carrying(4.0)}, 8.0, None, 15) == 2, "of equals the lesser"


def test_what_runs_keeps_its_width_unless_another_saves_enough() -> None:
    widths = {2: _carrying(1.0), 3: _carrying(1.6)}
    assert chosen(widths, 8.0, None, 15) == 3  # 15 nodes against 16
    assert chosen(widths, 8.0, 2, 15) == 2
    assert chosen(widths, 8.0, 2, 5) == 3
    assert chosen(widths, 8.0, 7, 15) == 3, "what no longer fits is no reason"


def test_a_pool_of_much_demand_may_take_more_nodes_a_replica_than_it_needs(
    plan_one: Make, big: Make, p5: Make, running: Make
) -> None:
    tight = p5(memoryGiB=440, memoryBandwidthGBps=18_000)  # two nodes leave room for few requests at once
    few = plan_one(big("0.1"), [tight]).placements[0]
    many = plan_one(big("60"), [tight]).placements[0]
    assert few.nodes_per_replica == 2
    assert many.nodes_per_replica > 2
    key = "demo/big"
    held = plan_one(big("60"), [tight], running=(running(key, "p5", replicas=4, nodes_per_replica=3),))
    assert held.placements[0].nodes_per_replica in {3, many.nodes_per_replica}


def test_pools_judged_together_find_what_each_finds_alone(big: Make, p5: Make, now: Any) -> None:
    pools = tuple(big(rps, name=f"p{i}") for i, rps in enumerate(("0.5", "7", "90")))
    classes = (p5(), p5("tight", memoryGiB=440), p5("small", memoryGiB=192, maxNodesPerReplica=8))
    together = judge_pools(Snapshot(now=now, pools=pools, hardware_classes=classes))
    for one in together:
        (alone,) = judge_pools(
            Snapshot(now=now, pools=tuple(p for p in pools if p.key == one.key), hardware_classes=classes)
        )
        assert alone.candidates == one.candidates
        by_itself = candidates_of(classes, replace(one.context, judged={}))
        for found, expected in zip(by_itself.options, one.candidates.options, strict=True):
            assert (found.resource, found.nodes_per_replica) == (expected.resource, expected.nodes_per_replica)
            assert found.capacity.turns_per_second == pytest.approx(expected.capacity.turns_per_second)


# --- Profiles -------------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(profile: Make) -> Callable[..., ServingProfile]:
    def make(**changes: Any) -> ServingProfile:
        spec: dict[str, Any] = {"runtime": "VLLM", "nodesPerReplica": 3, "name": "measured"}
        made: ServingProfile = profile("p5", **(spec | changes))
        return made

    return make


def test_a_measured_profile_says_how_many_nodes_a_replica_spans(
    plan_one: Make, pool: Make, p5: Make, measured: Make
) -> None:
    found = plan_one(pool(model="tested-model"), [p5()], serving_profiles=(measured(),))
    (placement,) = found.placements
    assert (placement.nodes_per_replica, placement.nodes) == (3, 3 * placement.replicas)
    assert not placement.capacity.estimated
    assert "a replica spans 3 nodes (by ServingProfile measured)" in _only(found).reason


def test_a_profile_beyond_what_its_class_allows_is_not_used(
    plan_one: Make, pool: Make, p5: Make, measured: Make
) -> None:
    found = plan_one(pool(model="tested-model"), [p5(maxNodesPerReplica=2)], serving_profiles=(measured(),))
    assert _only(found).reason == (
        "by ServingProfile measured a replica spans 3 nodes, and maxNodesPerReplica of p5 is 2"
    )
    absent = plan_one(pool(model="tested-model"), [p5()], serving_profiles=(measured(),), spanning=False)
    assert "LeaderWorkerSet is not installed" in _only(absent).reason


# --- The estimate ---------------------------------------------------------------------------------------------------


def test_memory_of_the_fullest_node_holds_its_layers_and_their_keys_and_values(p5: Make) -> None:
    spec = p5().spec
    for nodes in (2, 3, 4):
        tokens = roofline_kv_tokens(spec, ARCHITECTURE, Quantization.BF16, nodes)
        share = stage_share(ARCHITECTURE.layers, nodes)
        weights = ARCHITECTURE.stage_bytes(Quantization.BF16, spec.runtime.name, share)
        kv = tokens * ARCHITECTURE.kv_bytes_per_token(spec.runtime.name) * share
        assert weights + kv <= usable_bytes(spec)
        assert weights + kv > usable_bytes(spec) - 1e6
    assert stage_share(126, 4) == 32 / 126, "layers are not divided"


def test_a_token_passes_every_stage_and_requests_fill_them(p5: Make) -> None:
    """Twice as many requests over two nodes take a step of once as many on one node that held it all, and the way."""
    held = p5(memoryGiB=2000, interconnectGbps=100_000).spec
    one = roofline_speed(held, ARCHITECTURE, Quantization.BF16, 2000.0)
    two = roofline_speed(held, ARCHITECTURE, Quantization.BF16, 2000.0, 2)

    def step(speed: Any, requests: int) -> float:
        return float(np.interp(requests, speed.concurrency, speed.step_seconds))

    each = 50e-6  # scheduling and sampling of each request is not divided
    for b in (1, 4, 8, 16):
        way = step(two, 2 * b) - step(one, b) - b * each
        assert 2 * HOP_SECONDS * 0.99 <= way <= 2 * HOP_SECONDS + b * 1e-4
    assert two.step_seconds[0] >= one.step_seconds[0], "alone nothing is gained"
    assert two.prefill_tokens_per_second <= one.prefill_tokens_per_second


def test_a_slow_interconnect_makes_prompts_slower(p5: Make) -> None:
    fast, slow = (
        roofline_speed(p5(interconnectGbps=gbps).spec, ARCHITECTURE, Quantization.BF16, 2000.0, 2)
        for gbps in (3200, 10)
    )
    assert slow.prefill_tokens_per_second < fast.prefill_tokens_per_second * 0.95
    assert slow.step_seconds[0] < fast.step_seconds[0] * 1.01, "a token's own activations are small"


# --- Large fleets ---------------------------------------------------------------------------------------------------


def test_decomposed_and_flat_agree_on_a_fleet_of_large_models(big: Make, p5: Make, now: Any) -> None:
    classes = (
        p5(prices={"OnDemand": "55.04", "Spot": "21"}, max_nodes={"OnDemand": 15, "Spot": 7}),
        p5("p5e", memoryGiB=1128, memoryBandwidthGBps=38_400, prices={"OnDemand": "75"}, max_nodes={"OnDemand": 3}),
    )
    pools = tuple(big(rps, name=f"p{i}") for i, rps in enumerate(("1", "3", "5", "7")))
    snapshot = Snapshot(now=now, pools=pools, hardware_classes=classes)
    problems = list(pool_problems(snapshot).values())
    limits = {
        ("p5", CapacityType.ON_DEMAND): 15,
        ("p5", CapacityType.SPOT): 7,
        ("p5e", CapacityType.ON_DEMAND): 3,
    }
    fleet = FleetSolver(problems, limits)
    flat, ours = fleet.solve(problems), fleet.decomposed(problems)
    assert ours.bound <= flat.cost + 1e-3
    assert ours.cost <= flat.cost * 1.05 + 1e-3
    for solution in (flat, ours):
        used: dict[Any, int] = {}
        for one in solution.pools.values():
            for a in one.assignments:
                assert a.nodes == a.replicas * a.option.nodes_per_replica
                used[a.option.resource] = used.get(a.option.resource, 0) + a.nodes
        assert all(n <= limits[r] for r, n in used.items())
    assert plan(snapshot).gap == 0
