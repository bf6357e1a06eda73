"""Is a plan as cheap as Melange's, where the problem is no more than Melange's?

Griggs et al. 2024, "Melange: Cost Efficient Large Language Model Serving by Exploiting GPU Heterogeneity": one model,
no limits nor shares; the load is cut into slices, x_ij slices of load i go to GPU type j, B_j whole GPUs of a type:

    minimise sum_j c_j B_j    with    sum_j x_ij = slices,    sum_i x_ij / MaxTput_ij <= B_j

Here with one bucket of load, slices so fine that rounding them is nothing; solved by enumeration.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

import pytest
from berth_operator.api import CapacityType
from berth_operator.planner.candidates import Option
from berth_operator.planner.fleet import FleetSolver
from berth_operator.planner.program import PoolProblem
from berth_operator.planner.solver import solve
from plain_pool import BASE

Make = Callable[..., Option]
FLEETS = 200


def _instance(seed: int, option: Make) -> PoolProblem:
    rng = random.Random(seed)  # noqa: S311
    options = tuple(
        option(f"g{j}", CapacityType.ON_DEMAND, "v", rng.uniform(0.5, 8), rng.randint(30, 700))
        for j in range(rng.randint(2, 4))
    )
    demand = Decimal(f"{rng.uniform(1, 40):.2f}")
    return PoolProblem(f"demo/p{seed}", replace(BASE, requests_per_second=demand), options)


def _melange(problem: PoolProblem) -> Decimal:
    """The optimum of Melange's program, by depth-first enumeration of B with the linear relaxation as bound."""
    options = sorted(problem.options, key=lambda o: float(o.node_usd_per_hour) / o.capacity.turns_per_second)
    rates = [o.capacity.turns_per_second for o in options]
    prices = [float(o.node_usd_per_hour) for o in options]
    best = min(-(-problem.demand // r) * c for r, c in zip(rates, prices, strict=True)) + 1e-9

    def search(j: int, left: float, spent: float) -> None:
        nonlocal best
        if left <= 1e-9:
            best = min(best, spent)
            return
        if j == len(rates) or spent + left * prices[j] / rates[j] >= best - 1e-9:
            return
        for count in range(int(-(-left // rates[j])), -1, -1):
            search(j + 1, left - count * rates[j], spent + count * prices[j])

    search(0, problem.demand, 0.0)
    return Decimal(repr(round(best, 6)))


@pytest.mark.parametrize("block", range(4))
def test_flat_plans_cost_what_melange_costs(block: int, option: Make) -> None:
    for seed in range(block * FLEETS // 4, (block + 1) * FLEETS // 4):
        problem = _instance(seed, option)
        pool = solve([problem], {}).pools[problem.key]
        cost = sum(a.nodes * a.option.node_usd_per_hour for a in pool.assignments)
        assert pool.unserved == 0
        assert abs(cost - _melange(problem)) <= _melange(problem) / 1000, seed


@pytest.mark.parametrize("block", range(4))
def test_decomposed_plans_cost_what_melange_costs(block: int, option: Make) -> None:
    for seed in range(block * FLEETS // 4, (block + 1) * FLEETS // 4):
        problem = _instance(seed, option)
        pool = FleetSolver([problem], {}).decomposed([problem]).pools[problem.key]
        cost = sum(a.nodes * a.option.node_usd_per_hour for a in pool.assignments)
        assert pool.unserved == 0
        assert abs(cost - _melange(problem)) <= _melange(problem) / 1000, seed


def test_decomposed_plans_cost_what_melange_costs_all_together(option: Make) -> None:
    """A decomposition ends where all pools together are within 0.1 % of their bound: one alone may be further."""
    problems = [_instance(seed, option) for seed in range(FLEETS)]
    solution = FleetSolver(problems, {}).decomposed(problems)
    total, best = Decimal(0), Decimal(0)
    for problem in problems:
        pool = solution.pools[problem.key]
        cost = sum((a.nodes * a.option.node_usd_per_hour for a in pool.assignments), Decimal(0))
        assert pool.unserved == 0
        assert _melange(problem) <= cost + Decimal("0.00001")
        total, best = total + cost, best + _melange(problem)
    assert total <= best * Decimal("1.002")
    assert solution.bound <= float(best) + 0.01
