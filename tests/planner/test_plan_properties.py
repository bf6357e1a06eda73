"""What is true of every plan, whatever the fleet?"""

import random
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from berth_operator.api import CapacityType, HardwareClass, InferencePool, ServingProfile
from berth_operator.planner import Plan, PoolPlan, RunningPlacement
from hypothesis import given, settings
from hypothesis import strategies as st

Make = Callable[..., Any]
seeds = st.integers(0, 10_000)
checked = settings(max_examples=15, deadline=None, derandomize=True)


@pytest.fixture(scope="session")
def scenario(hardware: Make, pool: Make, profile: Make, running: Make) -> Callable[[int], dict[str, Any]]:
    """A random fleet: classes, pools, profiles and (with `current`) what runs."""

    def make(seed: int, *, current: bool = False) -> dict[str, Any]:
        rng = random.Random(seed)  # noqa: S311
        names = [f"c{i}" for i in range(rng.randint(2, 4))]
        classes, profiles = [], []
        for name in names:
            price = rng.uniform(0.3, 4)
            prices = {"OnDemand": f"{price:.3f}"}
            if rng.random() < 0.7:
                prices["Spot"] = f"{price * rng.uniform(0.2, 0.8):.3f}"
            limits = {t: rng.randint(0, 6) for t in prices if rng.random() < 0.4}
            kind = rng.choice(["CPU", "GPU"])
            sizes: list[dict[str, Any]] = [{}, {"nodesPerReplica": 2 if kind == "GPU" else 1}]
            sizes += [{"replicasPerNode": n, "resources": {"cpu": str(14 // n), "memory": "6Gi"}} for n in (2, 4)]
            size = rng.choice(sizes)
            classes.append(
                hardware(
                    name,
                    kind=kind,
                    vendor=rng.choice(["A", "B"]),
                    prices=prices,
                    max_nodes=limits,
                    maxNodesPerReplica=2 if kind == "GPU" else 1,
                )
            )
            speed = rng.uniform(40, 300)
            points = [
                {
                    "concurrency": b,
                    "contextTokens": 1000,
                    "decodeTokensPerSecond": f"{speed * b**0.8:.2f}",
                    "interTokenLatencyP99": f"{int(1200 * b**0.2 / speed) + 1}ms",
                }
                for b in (1, 4, 16)
            ]
            profiles.append(
                profile(
                    name,
                    runtime="Berth" if kind == "CPU" else "VLLM",
                    points=points,
                    **size,
                )
            )
        pools = [_random_pool(rng, pool, f"p{i}") for i in range(rng.randint(1, 4))]
        runs = [running(p.key, rng.choice(names), replicas=rng.randint(1, 3)) for p in pools if rng.random() < 0.7]
        return {
            "pools": pools,
            "classes": classes,
            "serving_profiles": tuple(profiles),
            "running": tuple(runs) if current else (),
        }

    return make


def _random_pool(rng: random.Random, pool: Make, name: str) -> InferencePool:
    changes: dict[str, Any] = {
        "workload_class": rng.choice(["Agentic", "Interactive", "Batch"]),
        "shape": {"promptTokens": 800, "outputTokens": 80, "cachedPromptPercent": 90},
        "priority": rng.choice([0, 0, 3]),
    }
    placement: dict[str, Any] = {}
    if rng.random() < 0.5:
        placement["spot"] = {
            "maxTrafficPercent": rng.choice([0, 33, 70, 100]),
            "surviveLossPercent": rng.choice([0, 33, 70]),
        }
    if rng.random() < 0.3:
        placement["diversity"] = {"maxTrafficPercentPerVendor": rng.choice([50, 67, 80])}
    if placement:
        changes["placement"] = placement
    if rng.random() < 0.3:
        changes["budget"] = {
            "maxUsdPerHour": f"{rng.uniform(1, 12):.2f}",
            "onExceeded": rng.choice(["Shed", "Overspend"]),
        }
    if rng.random() < 0.3:
        changes["scaling"] = {"minReplicas": rng.randint(0, 3), "maxReplicas": rng.randint(3, 8)}
    made: InferencePool = pool(name, f"{rng.uniform(0.5, 25):.2f}", model="tested-model", **changes)
    return made


def _plan(plan_for: Make, scene: Mapping[str, Any]) -> Plan:
    rest = {k: v for k, v in scene.items() if k not in {"pools", "classes"}}
    planned: Plan = plan_for(scene["pools"], scene["classes"], **rest)
    return planned


@pytest.fixture(scope="session")
def planned(plan_for: Make, scenario: Make) -> Callable[..., tuple[dict[str, Any], Plan]]:
    def make(seed: int, **how: Any) -> tuple[dict[str, Any], Plan]:
        scene = scenario(seed, **how)
        return scene, _plan(plan_for, scene)

    return make


@given(seed=seeds, current=st.booleans())
@checked
def test_no_limit_share_budget_or_bound_is_broken(planned: Make, seed: int, current: bool) -> None:
    scene, plan = planned(seed, current=current)
    used: dict[tuple[str, CapacityType], Fraction] = {}
    for one in plan.pools.values():
        for p in one.placements:
            key = (p.hardware_class, p.capacity_type)
            used[key] = used.get(key, Fraction(0)) + p.paid_nodes
        _check_pool(scene, one)
    for c in scene["classes"]:
        for capacity in c.spec.capacity:
            if capacity.max_nodes is not None:
                assert used.get((c.metadata.name, capacity.type), 0) <= capacity.max_nodes
    assert all(nodes.denominator == 1 for nodes in used.values()), "somebody pays every node in full"


def _check_pool(scene: Mapping[str, Any], one: PoolPlan) -> None:
    e = one.effective
    vendors: Mapping[str, str] = {c.metadata.name: c.spec.vendor for c in scene["classes"]}
    if not one.placements:
        return
    served = one.served_requests_per_second
    assert sum(p.traffic_percent for p in one.placements) == (100 if served > 0 else 0)
    assert served + one.unserved_requests_per_second == pytest.approx(float(e.requests_per_second))
    assert one.usd_per_hour == sum(p.usd_per_hour for p in one.placements)
    spot = [p for p in one.placements if p.capacity_type is CapacityType.SPOT]
    assert sum(p.traffic_percent for p in spot) <= e.spot_max_traffic_percent
    assert all(p.traffic_percent <= 100 - e.survive_loss_percent for p in spot)
    if any(p.traffic_percent for p in spot):
        steady = sum(p.replicas for p in one.placements if p.capacity_type is not CapacityType.SPOT)
        assert steady >= e.min_on_demand_replicas
    for vendor in set(vendors.values()):
        share = sum(p.traffic_percent for p in one.placements if vendors[p.hardware_class] == vendor)
        assert share <= e.max_traffic_percent_per_vendor
    if e.max_usd_per_hour is not None and e.on_exceeded == "Shed":
        assert one.usd_per_hour <= e.max_usd_per_hour
    replicas = sum(p.replicas for p in one.placements)
    assert e.max_replicas is None or replicas <= e.max_replicas
    assert replicas >= e.min_replicas or one.shortfall is not None
    for p in one.placements:
        assert p.nodes == -(-p.replicas // p.replicas_per_node) * p.nodes_per_replica
        # A whole percent may round traffic up, by less than 1 % of what is served.
        carried = p.replicas * p.capacity.turns_per_second
        assert served * (p.traffic_percent - 1) / 100 <= carried * (1 + 1e-6)
    assert one.shortfall is not None or one.unserved_requests_per_second == 0


@given(seed=seeds, current=st.booleans(), shuffle=st.integers(0, 100))
@checked
def test_order_of_inputs_never_changes_the_plan(
    plan_for: Make, planned: Make, seed: int, current: bool, shuffle: int
) -> None:
    scene, plan = planned(seed, current=current)
    rng = random.Random(shuffle)  # noqa: S311
    shuffled = {k: rng.sample(list(v), len(v)) for k, v in scene.items()}
    shuffled["serving_profiles"], shuffled["running"] = (
        tuple(shuffled["serving_profiles"]),
        tuple(shuffled["running"]),
    )
    for c in shuffled["classes"]:
        rng.shuffle(c.spec.capacity)
    assert _plan(plan_for, shuffled) == plan


@given(seed=seeds)
@checked
def test_the_same_snapshot_gives_the_same_plan(plan_for: Make, planned: Make, seed: int) -> None:
    scene, plan = planned(seed)
    assert _plan(plan_for, scene) == plan


def _shortage(plan: Plan) -> list[float]:
    """Unserved shares by falling priority."""
    by_priority: dict[int, float] = {}
    for one in plan.pools.values():
        share = one.unserved_requests_per_second / float(one.effective.requests_per_second)
        by_priority[-one.effective.priority] = by_priority.get(-one.effective.priority, 0.0) + share
    return [round(by_priority[k], 5) for k in sorted(by_priority)]


def _worth(plan: Plan) -> tuple[list[float], Decimal]:
    return _shortage(plan), sum((one.usd_per_hour for one in plan.pools.values()), Decimal(0))


def _edited(c: HardwareClass, **edit: Any) -> HardwareClass:
    """Every price cut by a factor, or every limit raised."""
    body = c.to_api()
    for entry in body["spec"]["capacity"]:
        if factor := edit.get("price"):
            entry["usdPerHour"] = f"{float(entry['usdPerHour']) * factor:.6f}"
        if "maxNodes" in entry:
            entry["maxNodes"] += edit.get("nodes", 0)
    return HardwareClass.model_validate(body)


@given(seed=seeds, which=st.integers(0, 3), how=st.sampled_from([{"price": 0.7}, {"nodes": 2}]))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_lower_price_or_more_nodes_never_worsen_the_fleet(
    plan_for: Make, planned: Make, seed: int, which: int, how: dict[str, Any]
) -> None:
    scene, plan = planned(seed)
    _forget_missing_floors(scene)
    plan = _plan(plan_for, scene)
    easier = list(scene["classes"])
    which %= len(easier)
    easier[which] = _edited(easier[which], **how)
    assert _worth(_plan(plan_for, scene | {"classes": easier})) <= _worth(plan)


def _forget_missing_floors(scene: dict[str, Any]) -> None:
    """Floors of replicas rank between shortage and cost, and a budget makes them cost: leave them out of comparison."""
    scene["pools"] = [
        InferencePool.model_validate(
            {
                **p.to_api(),
                "spec": {k: v for k, v in p.to_api()["spec"].items() if k != "scaling"}
                | {"scaling": {"minReplicas": 0}},
            }
        )
        for p in scene["pools"]
    ]


@given(seed=seeds)
@checked
def test_a_looser_objective_never_worsens_the_fleet(plan_for: Make, planned: Make, seed: int) -> None:
    scene, _ = planned(seed)
    _forget_missing_floors(scene)

    def promise(gap: str, first: str) -> dict[str, Any]:
        body = {"interTokenLatencyP99": gap, "timeToFirstTokenP99": first, "turnLatencyP99": "60s"}
        return {"pools": [_with(p, objectives=body) for p in scene["pools"]]}

    tight, loose = (_plan(plan_for, scene | promise(*p)) for p in (("60ms", "800ms"), ("90ms", "1200ms")))
    refused = {k for k, one in tight.pools.items() if one.not_accepted}
    if refused:  # what the tighter promise leaves out costs nothing there: no comparison
        return
    assert _worth(loose) <= _worth(tight)


def _with(pool: InferencePool, **spec: Any) -> InferencePool:
    body = pool.to_api()
    body["spec"] |= spec
    return InferencePool.model_validate(body)


@given(seed=seeds)
@checked
def test_applying_a_plan_settles_it(plan_for: Make, planned: Make, seed: int) -> None:
    scene, first = planned(seed)
    runs = tuple(
        RunningPlacement(p.pool, p.hardware_class, p.capacity_type, p.replicas, p.replicas)
        for one in first.pools.values()
        for p in one.placements
    )
    again = _plan(plan_for, scene | {"running": runs})

    def placed(plan: Plan) -> dict[str, set[tuple[str, CapacityType]]]:
        return {k: {(p.hardware_class, p.capacity_type) for p in one.placements} for k, one in plan.pools.items()}

    assert placed(again) == placed(first)


def test_random_fleets_are_solved_to_proven_optimality(planned: Make) -> None:
    accepted = 0
    for seed in range(20_000, 20_025):
        _, plan = planned(seed, current=True)
        accepted += sum(one.not_accepted is None for one in plan.pools.values())
        assert plan.solver_status == "Optimal"
        assert plan.gap < 1e-6
    assert accepted > 15


def test_profiles_of_other_pools_do_not_matter(
    planned: Make, plan_for: Make, profile: Callable[..., ServingProfile]
) -> None:
    scene, plan = planned(7)
    more = (*scene["serving_profiles"], profile("c0", name="other", model="another-model"))
    assert _plan(plan_for, scene | {"serving_profiles": more}) == plan
