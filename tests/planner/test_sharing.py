"""Do pools share nodes where they fit, is the plan the best one then, and who pays what of a node?"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from itertools import product
from typing import Any

import pytest
from berth_operator.api import CapacityType, Effective, InferencePool
from berth_operator.planner import Plan, RunningPlacement, Snapshot, amended, fleet, planned
from berth_operator.planner.candidates import Option, Resource
from berth_operator.planner.fleet import FleetSolver
from berth_operator.planner.packing import Piece, charges, dollars, pack
from berth_operator.planner.program import PoolProblem
from berth_operator.planner.solution import PoolSolution, Solution, nodes_used
from berth_operator.planner.solver import solve
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_pool import BASE

Make = Callable[..., Any]
ON_DEMAND = CapacityType.ON_DEMAND
NO_SPOT = replace(BASE, spot_max_traffic_percent=0)
pieces = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), min_size=1, max_size=9).map(
    lambda found: [Piece(f"p{i}", replicas, per_node) for i, (replicas, per_node) in enumerate(found)]
)


# --- Packing --------------------------------------------------------------------------------------------------------


@given(of=pieces)
@settings(max_examples=200, deadline=None)
def test_every_replica_has_a_place_and_no_node_holds_more_than_it_can(of: list[Piece]) -> None:
    packing = pack(of)
    per_node = {p.pool: p.per_node for p in of}
    for node in packing.mixed:
        assert sum(Fraction(n, per_node[pool]) for pool, n in node.items()) <= 1
    for p in of:
        assert sum(node.get(p.pool, 0) for node in packing.mixed) + p.whole * p.per_node == p.replicas
    parts = sum(Fraction(p.replicas, p.per_node) for p in of)
    assert math.ceil(parts) <= packing.nodes <= sum(math.ceil(Fraction(p.replicas, p.per_node)) for p in of)


@given(of=pieces, chain=st.sampled_from([(1, 2, 4, 8), (1, 3, 6, 12), (5, 5, 5, 5)]))
@settings(max_examples=200, deadline=None)
def test_parts_of_which_each_divides_the_next_leave_less_than_a_node(of: list[Piece], chain: Sequence[int]) -> None:
    fitting = [replace(p, per_node=chain[p.per_node % 4]) for p in of]
    assert pack(fitting).nodes == math.ceil(sum(Fraction(p.replicas, p.per_node) for p in fitting))


@given(of=pieces, shuffle=st.randoms())
@settings(max_examples=100, deadline=None)
def test_all_nodes_are_paid_by_nobody_more_than_alone_or_less_than_its_part(of: list[Piece], shuffle: Any) -> None:
    packing = pack(of)
    paid = charges(of, packing)
    assert sum(paid.values()) == packing.nodes
    for p in of:
        assert Fraction(p.replicas, p.per_node) <= paid[p.pool] <= math.ceil(Fraction(p.replicas, p.per_node))
    price = Decimal("0.638")
    assert sum(dollars(price, [paid[p.pool] for p in of])) == price * packing.nodes
    shuffled = list(of)
    shuffle.shuffle(shuffled)
    assert pack(shuffled) == packing
    assert charges(shuffled, packing) == paid


def test_room_beside_others_is_of_whole_replicas() -> None:
    packing = pack([Piece("a", 1, 2), Piece("b", 1, 4)])
    assert packing.nodes == 1
    assert (packing.room(4), packing.room(3), packing.room(1)) == (1, 0, 0)
    assert (packing.beside("a"), packing.beside("c")) == (1, 0)


# --- Against enumeration --------------------------------------------------------------------------------------------

MOST_REPLICAS = 3


def _problem(key: str, demand: int, options: Sequence[Option], **rules: Any) -> PoolProblem:
    effective: Effective = replace(NO_SPOT, requests_per_second=Decimal(demand), min_replicas=0, **rules)
    return PoolProblem(key, effective, tuple(options))


def _instance(seed: int, option: Make) -> tuple[list[PoolProblem], dict[Resource, int]]:
    rng = random.Random(seed)  # noqa: S311
    cents = {name: rng.randint(40, 300) for name in "ab"}
    problems = []
    for i in range(rng.randint(2, 4)):
        options = []
        for name in "ab":
            per_node = rng.choice([1, 2, 2, 3, 4])
            options.append(option(name, ON_DEMAND, "v", rng.randint(1, 5), cents[name], per_node, shared=True))
        demand = rng.randint(1, MOST_REPLICAS * min(int(o.capacity.turns_per_second) for o in options))
        budget = {"max_usd_per_hour": Decimal(rng.randint(40, 500)) / 100, "on_exceeded": "Shed"}
        rules = {"priority": rng.choice([0, 5]), **(budget if rng.random() < 0.2 else {})}
        problems.append(_problem(f"demo/p{i}", demand, options, **rules))
    return problems, {(name, ON_DEMAND): rng.randint(0, 3) for name in "ab" if rng.random() < 0.5}


def _fewest(sizes: tuple[Fraction, ...], free: tuple[Fraction, ...] = ()) -> int:
    """Nodes for replicas of these parts of one: every way to place them."""
    if not sizes:
        return len(free)
    best = _fewest(sizes[1:], (*free, 1 - sizes[0]))
    for at in {f: i for i, f in enumerate(free) if f >= sizes[0]}.values():
        best = min(best, _fewest(sizes[1:], (*free[:at], free[at] - sizes[0], *free[at + 1 :])))
        if best == math.ceil(len(free) + sum(sizes) - sum(free)):
            break
    return best


def _nodes(problems: Sequence[PoolProblem], replicas: Sequence[Sequence[int]], known: dict[Any, int]) -> dict[str, int]:
    out = {}
    for k, name in enumerate("ab"):
        sizes = []
        for problem, mine in zip(problems, replicas, strict=True):
            sizes += [Fraction(1, problem.options[k].replicas_per_node)] * mine[k]
        key = tuple(sorted(sizes, reverse=True))
        if key not in known:
            known[key] = _fewest(key)
        out[name] = known[key]
    return out


def _choices(problem: PoolProblem) -> list[tuple[int, int]]:
    e, found = problem.effective, []
    for mine in product(range(MOST_REPLICAS + 1), repeat=2):
        nodes = [-(-r // o.replicas_per_node) for r, o in zip(mine, problem.options, strict=True)]
        alone = sum(n * o.node_usd_per_hour for n, o in zip(nodes, problem.options, strict=True))
        if e.max_usd_per_hour is None or alone <= e.max_usd_per_hour:
            found.append(mine)
    carried = [o.capacity.turns_per_second for o in problem.options]
    useful = []
    for mine in found:  # a replica that nothing needs is never of use
        rate = sum(r * c for r, c in zip(mine, carried, strict=True))
        if not any(r and rate - c >= problem.demand for r, c in zip(mine, carried, strict=True)):
            useful.append(mine)
    return useful


def _rank(problems: Sequence[PoolProblem], unserved: Sequence[float], cost: Decimal) -> list[float]:
    levels = sorted({p.effective.priority for p in problems}, reverse=True)
    shortage = [
        sum(u for p, u in zip(problems, unserved, strict=True) if p.effective.priority == level) for level in levels
    ]
    return [*(round(s, 5) for s in shortage), float(cost)]


def _best(problems: Sequence[PoolProblem], limits: Mapping[Resource, int]) -> list[float]:
    price = {o.hardware_class: o.node_usd_per_hour for o in problems[0].options}
    known: dict[Any, int] = {}
    best = [math.inf]
    for replicas in product(*map(_choices, problems)):
        unserved = [
            max(0.0, 1 - sum(r * o.capacity.turns_per_second for r, o in zip(mine, p.options, strict=True)) / p.demand)
            for p, mine in zip(problems, replicas, strict=True)
        ]
        rank = _rank(problems, unserved, Decimal(0))
        if len(best) > 1 and rank[:-1] > best[:-1]:
            continue
        nodes = _nodes(problems, replicas, known)
        if all(nodes[name] <= most for (name, _), most in limits.items()):
            cost = sum((price[name] * n for name, n in nodes.items()), Decimal(0))
            best = min(best, _rank(problems, unserved, cost))
    return best


def _ranked(problems: Sequence[PoolProblem], solution: Solution) -> list[float]:
    pools = [solution.pools[p.key] for p in problems]
    cost = sum((a.usd_per_hour for pool in pools for a in pool.assignments), Decimal(0))
    return _rank(problems, [pool.unserved for pool in pools], cost)


@pytest.mark.parametrize("block", range(4))
def test_a_plan_with_shared_nodes_is_as_good_as_the_best_of_all(block: int, option: Make) -> None:
    for seed in range(block * 25, block * 25 + 25):
        problems, limits = _instance(seed, option)
        solution = solve(problems, limits)
        assert not solution.failed
        best, got = _best(problems, limits), _ranked(problems, solution)
        assert got >= [b - 1e-5 for b in best], (seed, "better than the best: a rule is broken")
        proven = solution.cost - solution.bound <= 1e-4
        assert got == pytest.approx(best, abs=1e-4) or not proven, (seed, got, best)
        assert solution.bound <= best[-1] + 1e-3 or got[:-1] != pytest.approx(best[:-1], abs=1e-4), seed
        _check(solution.pools, limits)


@pytest.mark.parametrize("block", range(2))
def test_a_decomposed_plan_with_shared_nodes_keeps_its_bound_and_every_limit(block: int, option: Make) -> None:
    for seed in range(block * 25, block * 25 + 25):
        problems, limits = _instance(seed, option)
        solution = FleetSolver(problems, limits).decomposed(problems)
        best, got = _best(problems, limits), _ranked(problems, solution)
        assert got >= [b - 1e-5 for b in best], (seed, "better than the best: a rule is broken")
        if got[:-1] == pytest.approx(best[:-1], abs=1e-4):
            assert solution.bound <= best[-1] + 1e-3, (seed, solution.bound, best)
        _check(solution.pools, limits)


def _check(pools: Mapping[str, PoolSolution], limits: Mapping[Resource, int]) -> None:
    paid: dict[Resource, Fraction] = {}
    for pool in pools.values():
        for a in pool.assignments:
            paid[a.option.resource] = paid.get(a.option.resource, Fraction(0)) + a.paid_nodes
            assert a.usd_per_hour <= a.nodes * a.option.node_usd_per_hour
    assert all(nodes.denominator == 1 for nodes in paid.values())
    assert all(paid.get(r, 0) <= most for r, most in limits.items())
    assert nodes_used(pools) == paid


# --- Plans ----------------------------------------------------------------------------------------------------------

SHAPE = {"promptTokens": 800, "outputTokens": 80, "cachedPromptPercent": 90}


@pytest.fixture
def small(pool: Make) -> Callable[..., InferencePool]:
    """A pool that one small replica serves."""

    def make(name: str, rps: str = "0.2", **changes: Any) -> InferencePool:
        made: InferencePool = pool(name, rps, model="tested-model", shape=SHAPE, **changes)
        return made

    return make


@pytest.fixture
def quarters(plan_for: Make, hardware: Make, profile: Make) -> Callable[..., Plan]:
    """Plan pools on nodes of class `a`, of which a replica takes a quarter."""

    def make(pools: Sequence[InferencePool], *, max_nodes: int | None = None, **rest: Any) -> Plan:
        limits = {} if max_nodes is None else {"OnDemand": max_nodes}
        shared = profile("a", replicasPerNode=4, resources={"cpu": "3", "memory": "6Gi"})
        classes = [hardware("a", prices={"OnDemand": "0.6"}, max_nodes=limits), *rest.pop("classes", ())]
        profiles = (shared, *rest.pop("profiles", ()))
        made: Plan = plan_for(list(pools), classes, serving_profiles=profiles, **rest)
        return made

    return make


def _where(plan: Plan) -> dict[str, list[tuple[str, int]]]:
    return {key: [(p.hardware_class, p.replicas) for p in one.placements] for key, one in plan.pools.items()}


def _running(plan: Plan) -> tuple[RunningPlacement, ...]:
    return tuple(
        RunningPlacement(p.pool, p.hardware_class, p.capacity_type, p.replicas, p.replicas)
        for one in plan.pools.values()
        for p in one.placements
    )


def test_pools_that_fit_one_node_pay_for_one_node(quarters: Make, small: Make) -> None:
    plan = quarters([small(f"p{i}") for i in range(3)], max_nodes=1)
    assert sum(one.usd_per_hour for one in plan.pools.values()) == Decimal("0.6")
    for one in plan.pools.values():
        (placement,) = one.placements
        assert placement.usd_per_hour == Decimal("0.2")
        assert placement.paid_nodes == Fraction(1, 3)
        assert placement.shared_with == "shares a node with 2 other pools"
    assert plan.gap == pytest.approx(0, abs=1e-6)


def test_a_pool_alone_pays_its_whole_node(quarters: Make, small: Make) -> None:
    (one,) = quarters([small("p")]).pools.values()
    (placement,) = one.placements
    assert (placement.usd_per_hour, placement.shared_with) == (Decimal("0.6"), "")


def test_replicas_of_whole_nodes_share_nothing(plan_for: Make, hardware: Make, profile: Make, small: Make) -> None:
    unsized = profile("a", resources={"cpu": "3"})
    plan = plan_for([small("p"), small("q")], [hardware("a")], serving_profiles=(unsized,))
    assert sum(one.usd_per_hour for one in plan.pools.values()) == 2


def test_pools_of_other_objectives_and_such_as_run_nothing_share_no_node(quarters: Make, small: Make) -> None:
    latency = small("p", placement={"objective": "Latency"})
    advised = small("q", placement={"mode": "Recommend"})
    plan = quarters([latency, advised, small("r")])
    assert [one.usd_per_hour for one in plan.pools.values()] == [Decimal("0.6")] * 3


def test_a_pool_goes_where_a_node_has_room_for_it(quarters: Make, small: Make, hardware: Make, profile: Make) -> None:
    cheap = {"classes": [hardware("b", prices={"OnDemand": "0.4"})], "profiles": [profile("b")]}
    assert _where(quarters([small("p")], **cheap)) == {"demo/p": [("b", 1)]}
    together = quarters([small("p"), small("q")], **cheap)
    assert _where(together) == {"demo/p": [("a", 1)], "demo/q": [("a", 1)]}
    reason = next(c.reason for c in together.pools["demo/p"].candidates if c.hardware_class == "b")
    assert reason.startswith("would not enter at any price: it saves no node"), reason


def test_no_budget_depends_on_others_staying(quarters: Make, small: Make) -> None:
    poor = small("p", budget={"maxUsdPerHour": "0.5", "onExceeded": "Shed"})
    plan = quarters([poor, small("q"), small("r")])
    refused = plan.pools["demo/p"]
    assert refused.placements == ()
    assert refused.not_accepted is not None, "its part of a node would fit the budget, the node does not"


def test_a_pool_that_leaves_moves_nobody_and_the_others_pay_the_node(
    quarters: Make, small: Make, hardware: Make, profile: Make
) -> None:
    other = {"classes": [hardware("b", prices={"OnDemand": "0.55"})], "profiles": [profile("b")]}
    pools = [small(name) for name in ("p", "q", "r")]
    before = quarters(pools, **other)
    assert _where(before) == {f"demo/{name}": [("a", 1)] for name in ("p", "q", "r")}
    after = quarters(pools[:1], running=_running(before), **other)
    assert _where(after) == {"demo/p": [("a", 1)]}, "0.05 USD/h are less than minSavingsUsdPerHour"
    assert after.pools["demo/p"].usd_per_hour == Decimal("0.6")


def test_the_gpu_only_figure_shares_nodes_as_well(plan_for: Make, small: Make, hardware: Make, profile: Make) -> None:
    gpu = hardware("g", kind="GPU", prices={"OnDemand": "2"}, accelerators={"resource": "nvidia.com/gpu", "count": 4})
    shared = profile("g", runtime="VLLM", replicasPerNode=4, resources={"cpu": "3", "accelerators": 1})
    alone = plan_for([small("p")], [gpu], serving_profiles=(shared,)).pools["demo/p"]
    assert alone.gpu_only_usd_per_hour == 2
    pools = [small(f"p{i}") for i in range(4)]
    plan = plan_for(pools, [gpu], serving_profiles=(shared,))
    assert [one.usd_per_hour for one in plan.pools.values()] == [Decimal("0.5")] * 4
    assert [one.gpu_only_usd_per_hour for one in plan.pools.values()] == [Decimal("0.5")] * 4


@pytest.mark.parametrize(("price", "hardware_class"), [("0.594", "b"), ("0.606", "a")])
def test_a_break_even_is_of_what_the_fleet_saves(
    quarters: Make, small: Make, hardware: Make, profile: Make, price: str, hardware_class: str
) -> None:
    """Five quarters take two nodes of 0.6: the pool that may leave them saves a whole one, though it pays less."""

    def plan(usd: str) -> Plan:
        kept = [small(f"q{i}", placement={"hardware": {"allow": {"names": ["a"]}}}) for i in range(4)]
        other = {"classes": [hardware("b", prices={"OnDemand": usd})], "profiles": [profile("b")]}
        made: Plan = quarters([small("p"), *kept], **other)
        return made

    assert _where(plan(price))["demo/p"] == [(hardware_class, 1)]
    dear = plan("5").pools["demo/p"]
    assert dear.usd_per_hour < Decimal("0.6")
    reason = next(c.reason for c in dear.candidates if c.hardware_class == "b")
    assert reason.startswith("would enter below $0.600/h"), reason


# --- Plans amended --------------------------------------------------------------------------------------------------


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even small fleets are decomposed, and amended."""
    monkeypatch.setattr(fleet, "FLAT", 0)


@pytest.fixture
def crowd(small: Make, hardware: Make, profile: Make, now: Any) -> Snapshot:
    """Nine pools of one or two quarters on five nodes."""
    pools = tuple(small(f"p{i}", "0.2" if i % 2 else "9") for i in range(9))
    shared = profile("a", replicasPerNode=4, resources={"cpu": "3", "memory": "6Gi"})
    classes = (hardware("a", prices={"OnDemand": "0.6"}, max_nodes={"OnDemand": 5}),)
    return Snapshot(now=now, pools=pools, hardware_classes=classes, serving_profiles=(shared,))


def _paid(plan: Plan) -> Fraction:
    return sum((p.paid_nodes for one in plan.pools.values() for p in one.placements), Fraction(0))


@pytest.mark.usefixtures("decomposed")
def test_a_decomposed_fleet_is_packed_to_the_last_part(crowd: Snapshot) -> None:
    made = planned(crowd)
    replicas = sum(p.replicas for one in made.plan.pools.values() for p in one.placements)
    assert _paid(made.plan) == math.ceil(Fraction(replicas, 4))
    assert made.bound <= made.cost
    assert made.cost == pytest.approx(0.6 * float(_paid(made.plan)), abs=1e-2)


@pytest.mark.usefixtures("decomposed")
def test_one_changed_pool_finds_room_beside_the_others_and_all_pay_what_they_use(crowd: Snapshot) -> None:
    last = planned(crowd)
    gone = replace(crowd, pools=crowd.pools[1:])
    fewer = amended(last, gone)
    assert fewer is not None
    assert _paid(fewer.plan).denominator == 1
    assert {k: v for k, v in _where(last.plan).items() if k != crowd.pools[0].key} == _where(fewer.plan)
    back = amended(fewer, crowd)
    assert back is not None
    assert _where(back.plan) == _where(last.plan)
    assert _paid(back.plan) == _paid(last.plan)
    assert sum(one.usd_per_hour for one in back.plan.pools.values()) == Decimal("0.6") * int(_paid(last.plan))
    assert back.bound <= back.cost or math.isnan(back.bound)
