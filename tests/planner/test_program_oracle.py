"""Is the plan the best there is?  Against enumeration of every replica count, with traffic decided by exact cuts.

The oracle shares nothing with the program: for fixed replicas, the most traffic that shares allow is a maximum flow
(vendor -> option -> spot class -> spot) whose arc capacities grow with the traffic S served; by minimum cut, S is the
least b / (1 - a) over all cuts of capacity a S + b, in exact fractions.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from itertools import combinations, product

import pytest
from berth_operator.api import CapacityType, Effective
from berth_operator.planner.candidates import Option, Resource
from berth_operator.planner.churn import Decision
from berth_operator.planner.fleet import FleetSolver
from berth_operator.planner.marginal import Worth, worth_of_nodes
from berth_operator.planner.program import PoolProblem, components, most_replicas
from berth_operator.planner.solution import Solution, nodes_used
from berth_operator.planner.solver import solve
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_pool import BASE

Make = Callable[..., Option]
MOST_REPLICAS = 4
SIZES = ((1, 1), (1, 1), (2, 1), (1, 2), (1, 3))
"""(replicas of a node, nodes of a replica)"""


def _random_options(rng: random.Random, option: Make) -> tuple[Option, ...]:
    names = ["a", "b"]
    vendors = {name: rng.choice(["v", "w"]) for name in names}
    kinds = [(n, t) for n in names for t in (CapacityType.ON_DEMAND, CapacityType.SPOT)]
    chosen = sorted(rng.sample(kinds, rng.randint(1, 3)))
    return tuple(
        option(n, t, vendors[n], rng.randint(1, 6), rng.randint(10, 400), *rng.choice(SIZES)) for n, t in chosen
    )


def _random_effective(rng: random.Random, demand: int) -> Effective:
    return replace(
        BASE,
        requests_per_second=Decimal(demand),
        spot_max_traffic_percent=rng.choice([0, 50, 70, 100]),
        min_on_demand_replicas=rng.choice([0, 1, 2]),
        survive_loss_percent=rng.choice([0, 40, 70]),
        max_traffic_percent_per_vendor=rng.choice([100, 100, 60]),
        max_usd_per_hour=rng.choice([None, None, Decimal(rng.randint(50, 800)) / 100]),
        on_exceeded=rng.choice(["Shed", "Overspend"]),
        min_replicas=rng.choice([0, 1, 2]),
        max_replicas=rng.choice([MOST_REPLICAS, MOST_REPLICAS, 2]),
        priority=rng.choice([0, 0, 5]),
    )


def _random_instance(seed: int, option: Make) -> tuple[list[PoolProblem], dict[tuple[str, CapacityType], int]]:
    rng = random.Random(seed)  # noqa: S311 - instances, not secrets
    problems = []
    for i in range(rng.randint(1, 2)):
        options = _random_options(rng, option)
        demand = rng.randint(1, MOST_REPLICAS * min(int(o.capacity.turns_per_second) for o in options))
        problems.append(PoolProblem(f"demo/p{i}", _random_effective(rng, demand), options))
    resources = sorted({o.resource for p in problems for o in p.options})
    return problems, {r: rng.randint(0, 4) for r in resources if rng.random() < 0.5}


def _zoned_instance(seed: int, option: Make) -> tuple[list[PoolProblem], dict[tuple[str, CapacityType], int]]:
    """The same with spot classes in one to three zones, all of which have to survive the loss of one."""
    problems, limits = _random_instance(seed, option)
    rng = random.Random(-seed)  # noqa: S311 - instances, not secrets
    zones = {name: rng.choice([1, 2, 2, 3]) for name in ("a", "b")}
    found = []
    for problem in problems:
        effective = replace(
            problem.effective,
            spot_max_traffic_percent=rng.choice([70, 100]),
            survive_loss_percent=rng.choice([40, 60, 75]),
            max_replicas=MOST_REPLICAS,
        )
        options = tuple(replace(o, zones=zones[o.hardware_class]) if o.spot else o for o in problem.options)
        found.append(PoolProblem(problem.key, effective, options))
    return found, limits


# --- The oracle -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """Replica counts of one pool with what they serve and cost."""

    unserved: Fraction
    missing: int
    cost: Decimal
    nodes: dict[tuple[str, CapacityType], int]


def _subsets(items: Sequence[str]) -> Iterator[set[str]]:
    return (set(c) for n in range(len(items) + 1) for c in combinations(items, n))


def _spread(option: Option, replicas: int) -> Fraction:
    """Replicas for one in the fullest zone, of as many as need the same nodes: pods are placed one after another, each
    where no zone gets more than a node's replicas ahead of the emptiest."""
    per_node = option.replicas_per_node
    nodes, found = -(-replicas // per_node), [Fraction(1)]
    for r in range((nodes - 1) * per_node + 1, nodes * per_node + 1) if nodes else ():
        ways = [z for z in product(range(r + 1), repeat=option.zones) if sum(z) == r]
        fullest = max(max(z) for z in ways if max(z) - min(z) <= per_node)
        found.append(Fraction(r, fullest))
    return min(found[1:], default=Fraction(1))


def _most_served(problem: PoolProblem, replicas: Sequence[int]) -> Fraction:
    """Greatest share S of demand that fixed replicas can serve within all share rules."""
    e, options = problem.effective, problem.options
    steady = sum(r for r, o in zip(replicas, options, strict=True) if not o.spot)
    spot_allowed = steady >= e.min_on_demand_replicas
    carried = [
        Fraction(0)
        if o.spot and not spot_allowed
        else Fraction(r) * Fraction(o.capacity.turns_per_second) / Fraction(problem.demand)
        for r, o in zip(replicas, options, strict=True)
    ]
    spread = {o.hardware_class: _spread(o, r) for o, r in zip(options, replicas, strict=True) if o.spot}
    vendors, classes = sorted({o.vendor for o in options}), sorted({o.hardware_class for o in options if o.spot})
    best = Fraction(1)
    for inside_vendors, inside_classes, spot_inside in product(_subsets(vendors), _subsets(classes), (False, True)):
        grows = Fraction(e.max_traffic_percent_per_vendor * (len(vendors) - len(inside_vendors)), 100)
        fixed = Fraction(0)
        for k, o in enumerate(options):
            head_inside = o.spot and o.hardware_class in inside_classes
            if o.vendor in inside_vendors and not head_inside:
                fixed += carried[k]
        if spot_inside:
            grows += Fraction(e.spot_max_traffic_percent, 100)
        else:
            lost = Fraction(100 - e.survive_loss_percent, 100)
            grows += sum((lost * spread[name] for name in inside_classes), Fraction(0))
        if grows < 1:
            best = min(best, fixed / (1 - grows))
    return best


def _choices(problem: PoolProblem) -> list[Choice]:
    e, found = problem.effective, []
    for replicas in product(range(MOST_REPLICAS + 1), repeat=len(problem.options)):
        if e.max_replicas is not None and sum(replicas) > e.max_replicas:
            continue
        nodes = {
            o.resource: -(-r // o.replicas_per_node) * o.nodes_per_replica
            for r, o in zip(replicas, problem.options, strict=True)
        }
        cost = sum((nodes[o.resource] * o.node_usd_per_hour for o in problem.options), Decimal(0))
        if e.max_usd_per_hour is not None and e.on_exceeded == "Shed" and cost > e.max_usd_per_hour:
            continue
        unserved = 1 - _most_served(problem, replicas)
        found.append(Choice(unserved, max(0, e.min_replicas - sum(replicas)), cost, nodes))
    return found


def _rank(problems: Sequence[PoolProblem], choices: Sequence[Choice]) -> tuple[list[Fraction], int, Decimal]:
    by_priority: dict[int, Fraction] = {}
    for problem, choice in zip(problems, choices, strict=True):
        key = -problem.effective.priority
        by_priority[key] = by_priority.get(key, Fraction(0)) + choice.unserved
    shortage = [by_priority[k] for k in sorted(by_priority)]
    return shortage, sum(c.missing for c in choices), sum((c.cost for c in choices), Decimal(0))


def _brute_force(
    problems: Sequence[PoolProblem], limits: dict[tuple[str, CapacityType], int]
) -> tuple[list[Fraction], int, Decimal]:
    def fits(choices: Sequence[Choice]) -> bool:
        return all(sum(c.nodes.get(r, 0) for c in choices) <= most for r, most in limits.items())

    return min(_rank(problems, c) for c in product(*map(_choices, problems)) if fits(c))


# --- The comparison -------------------------------------------------------------------------------------------------


def _ranked(problems: Sequence[PoolProblem], solution: Solution) -> tuple[list[Fraction], int, Decimal]:
    got = [
        Choice(
            Fraction(solution.pools[p.key].unserved),
            round(solution.pools[p.key].missing_replicas),
            sum((a.nodes * a.option.node_usd_per_hour for a in solution.pools[p.key].assignments), Decimal(0)),
            {},
        )
        for p in problems
    ]
    return _rank(problems, got)


def _must_be_best(seed: int, problems: Sequence[PoolProblem], limits: dict[tuple[str, CapacityType], int]) -> None:
    shortage, missing, cost = _brute_force(problems, limits)
    solution = solve(problems, limits)
    assert not solution.failed, seed
    got_shortage, got_missing, got_cost = _ranked(problems, solution)
    assert [float(s) for s in got_shortage] == pytest.approx([float(s) for s in shortage], abs=2e-6), seed
    assert got_missing == missing, seed
    assert got_cost == cost, (seed, got_cost, cost)
    used = nodes_used(solution.pools)
    assert all(used.get(r, 0) <= most for r, most in limits.items()), seed


def _is_worse(seed: int, problems: Sequence[PoolProblem], limits: dict[tuple[str, CapacityType], int]) -> bool:
    """Whether a decomposed plan is not the best; its gap must say so then."""
    best = [float(x) for part in _brute_force(problems, limits) for x in (part if isinstance(part, list) else [part])]
    solution = FleetSolver(problems, limits).decomposed(problems)
    used = nodes_used(solution.pools)
    assert all(used.get(r, 0) <= most for r, most in limits.items()), seed
    shortage, missing, cost = _ranked(problems, solution)
    got = [*map(float, shortage), float(missing), float(cost)]
    if got == pytest.approx(best, abs=2e-6):
        return False
    assert got >= [x - 2e-6 for x in best], (seed, "better than the best: a rule is broken")
    assert solution.cost - solution.bound > 1e-3, (seed, got, best)
    return True


@pytest.mark.parametrize("block", range(10))
def test_plan_is_as_good_as_the_best_of_all_plans(block: int, option: Make) -> None:
    for seed in range(block * 50, block * 50 + 50):
        _must_be_best(seed, *_random_instance(seed, option))


@pytest.mark.parametrize("block", range(5))
def test_a_plan_over_several_zones_is_as_good_as_the_best_of_all_plans(block: int, option: Make) -> None:
    for seed in range(block * 50, block * 50 + 50):
        _must_be_best(seed, *_zoned_instance(seed, option))


@pytest.mark.parametrize("block", range(10))
def test_a_decomposed_plan_is_as_good_as_the_best_of_all_plans_or_says_that_it_may_not_be(
    block: int, option: Make
) -> None:
    worse = [s for s in range(block * 50, block * 50 + 50) if _is_worse(s, *_random_instance(s, option))]
    assert len(worse) <= 2, worse


@pytest.mark.parametrize("block", range(5))
def test_a_decomposed_plan_over_several_zones_is_the_best_or_says_that_it_may_not_be(block: int, option: Make) -> None:
    worse = [s for s in range(block * 50, block * 50 + 50) if _is_worse(s, *_zoned_instance(s, option))]
    assert len(worse) <= 2, worse


# --- One node more --------------------------------------------------------------------------------------------------


def _saved_by_one_more(
    problems: Sequence[PoolProblem], limits: dict[Resource, int], resource: Resource, now: Solution
) -> float:
    """Dollars of the plan less those of the cheapest with a node more in which no pool goes shorter."""
    more = {**limits, resource: limits[resource] + 1}
    mine = [
        [
            c
            for c in _choices(p)
            if c.unserved <= now.pools[p.key].unserved + 2e-6 and c.missing <= now.pools[p.key].missing_replicas + 1e-6
        ]
        for p in problems
    ]
    cheapest = min(
        sum((c.cost for c in choices), Decimal(0))
        for choices in product(*mine)
        if all(sum(c.nodes.get(r, 0) for c in choices) <= most for r, most in more.items())
    )
    spent = sum((a.nodes * a.option.node_usd_per_hour for p in now.pools.values() for a in p.assignments), Decimal(0))
    return float(spent - cheapest)


def _decision(problems: Sequence[PoolProblem], limits: dict[Resource, int]) -> Decision:
    solution = solve(problems, limits)
    return Decision(solution, {}, solution, problems)


@given(st.integers(0, 10**6))
@settings(max_examples=120, deadline=None)
def test_what_one_more_node_saves_is_the_difference_of_the_best_of_all_plans(option: Make, seed: int) -> None:
    problems, limits = _random_instance(seed, option)
    decision = _decision(problems, limits)
    found = worth_of_nodes(decision, limits)
    for resource in limits:
        worth = found.get(resource, Worth(0.0, exact=True))  # what nobody could have a use for is not asked
        assert worth.exact
        assert worth.usd_per_hour >= 0
        expected = _saved_by_one_more(problems, limits, resource, decision.solution)
        assert worth.usd_per_hour == pytest.approx(expected, abs=1e-3), (seed, resource)


def test_one_more_node_saves_what_the_dearer_nodes_cost_that_it_replaces(option: Make) -> None:
    """Two pools of 4 turns/s; a cheap node carries 2 for $0.50, a dear one 1 for $1.00, and there are three cheap ones.
    A fourth replaces the two dear nodes: 2 x 1.00 - 0.50."""
    cheap = option("cheap", CapacityType.ON_DEMAND, "v", 2, 50)
    dear = option("dear", CapacityType.ON_DEMAND, "v", 1, 100)
    effective = replace(BASE, requests_per_second=Decimal(4))
    problems = [PoolProblem(f"demo/p{i}", effective, (cheap, dear)) for i in range(2)]
    limits = {cheap.resource: 3, dear.resource: 10}
    found = worth_of_nodes(_decision(problems, limits), limits)
    assert found.keys() == {cheap.resource}, "nobody has a use for an eleventh dear one"
    assert found[cheap.resource].usd_per_hour == pytest.approx(1.5, abs=1e-3)
    assert found[cheap.resource].exact


def test_a_limit_that_is_not_in_full_use_may_still_be_worth_a_node(option: Make) -> None:
    """A model that spans two nodes leaves one of three unused; a fourth makes room for another replica."""
    pairs = option("pairs", CapacityType.ON_DEMAND, "v", 1, 50, 1, 2)
    dear = option("dear", CapacityType.ON_DEMAND, "v", 1, 300)
    problem = PoolProblem("demo/p", replace(BASE, requests_per_second=Decimal(2)), (dear, pairs))
    limits = {pairs.resource: 3}
    found = worth_of_nodes(_decision([problem], limits), limits)
    assert found[pairs.resource].usd_per_hour == pytest.approx(2.0, abs=1e-3)


def test_one_more_node_serves_nobody_less_and_what_it_could_serve_more_is_not_in_its_worth(option: Make) -> None:
    only = option("only", CapacityType.ON_DEMAND, "v", 1, 50)
    problem = PoolProblem("demo/p", replace(BASE, requests_per_second=Decimal(4)), (only,))
    limits = {only.resource: 2}
    found = worth_of_nodes(_decision([problem], limits), limits)
    assert found[only.resource].usd_per_hour == pytest.approx(0.0, abs=1e-3)


def test_pools_that_no_tight_limit_joins_are_solved_apart(option: Make) -> None:
    shared = option("a", CapacityType.ON_DEMAND, "v", 2, 100, 1)
    other = option("b", CapacityType.ON_DEMAND, "v", 2, 100, 1)

    def problem(name: str, *options: Option) -> PoolProblem:
        return PoolProblem(name, replace(BASE, requests_per_second=Decimal(4)), options)

    problems = [problem("p0", shared), problem("p1", shared, other), problem("p2", other), problem("p3", other)]

    def groups(limits: dict[tuple[str, CapacityType], int]) -> list[list[str]]:
        return [[p.key for p in g] for g in components(problems, limits)]

    assert groups({}) == [["p0"], ["p1"], ["p2"], ["p3"]]
    assert groups({shared.resource: 4}) == [["p0"], ["p1"], ["p2"], ["p3"]], "4 nodes are enough for both"
    assert groups({shared.resource: 3}) == [["p0", "p1"], ["p2"], ["p3"]]
    assert groups({shared.resource: 3, other.resource: 5}) == [["p0", "p1", "p2", "p3"]]


def test_no_option_is_given_more_replicas_than_could_be_of_use(option: Make) -> None:
    pair = option("a", CapacityType.ON_DEMAND, "v", 2, 100, 2)
    problem = PoolProblem("p", replace(BASE, requests_per_second=Decimal(5), min_replicas=0), (pair,))
    assert most_replicas(problem, pair, {}) == 3
    assert most_replicas(problem, pair, {pair.resource: 1}) == 2
    assert most_replicas(problem, replace(pair, own_replica_limit=1), {}) == 1
    wide = option("a", CapacityType.ON_DEMAND, "v", 2, 100, 1, 3)
    problem = PoolProblem("p", replace(BASE, requests_per_second=Decimal(5), min_replicas=0), (wide,))
    assert most_replicas(problem, wide, {}) == 3
    assert most_replicas(problem, wide, {wide.resource: 8}) == 2, "two nodes are left over"
