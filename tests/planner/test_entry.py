"""Do the bounds on break-even prices hold, and is the price the true one whatever rules a pool has?"""

import random
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from berth_operator.api import CapacityType, Effective
from berth_operator.planner.candidates import Option
from berth_operator.planner.entry import Entry, break_even, never_pays_above, pays_below
from berth_operator.planner.program import Limits, PoolProblem
from berth_operator.planner.solver import solve
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_pool import BASE

Make = Callable[..., Any]


def _effective(rng: random.Random, demand: float) -> Effective:
    return replace(
        BASE,
        requests_per_second=Decimal(f"{demand:.3f}"),
        spot_max_traffic_percent=rng.choice([0, 50, 70, 100]),
        min_on_demand_replicas=rng.choice([0, 1, 2]),
        survive_loss_percent=rng.choice([0, 40, 70]),
        max_traffic_percent_per_vendor=rng.choice([100, 100, 60]),
        max_usd_per_hour=rng.choice([None, None, Decimal(rng.randint(200, 2000)) / 100]),
        min_replicas=rng.choice([0, 1, 3]),
        max_replicas=rng.choice([None, None, 4]),
    )


def _pool(seed: int, option: Make) -> tuple[PoolProblem, Limits]:
    rng = random.Random(seed)  # noqa: S311 - instances, not secrets
    kinds = [(n, t) for n in "abcd" for t in (CapacityType.ON_DEMAND, CapacityType.SPOT)]
    options = tuple(
        option(n, t, rng.choice("vw"), rng.uniform(0.5, 6), rng.randint(10, 400), *rng.choice([(1, 1), (2, 1), (1, 2)]))
        for n, t in sorted(rng.sample(kinds, rng.randint(2, 6)))
    )
    limits = {o.resource: rng.randint(1, 4) for o in options if rng.random() < 0.3}
    return PoolProblem("demo/p", _effective(rng, rng.uniform(0.2, 15)), options), limits


def _asked(problem: PoolProblem, limits: Limits) -> tuple[Entry, list[Option]]:
    served = solve([problem], limits).pools[problem.key]
    used = {a.option.resource for a in served.assignments}
    cost = float(sum(a.usd_per_hour for a in served.assignments))
    return Entry(problem, served, limits, {}, cost), [o for o in problem.options if o.resource not in used]


def _enters(problem: PoolProblem, limits: Limits, option: Option, price: float) -> bool:
    """Whether a plan at that price has nodes of it."""
    at = Decimal(f"{price:.9f}")
    cheaper = replace(option, node_usd_per_hour=at, list_usd_per_hour=at)
    changed = replace(problem, options=tuple(cheaper if o is option else o for o in problem.options))
    found = solve([changed], limits).pools[problem.key]
    return any(a.option.resource == option.resource for a in found.assignments)


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_a_percent_below_the_break_even_enters_and_a_percent_above_does_not(option: Make, seed: int) -> None:
    problem, limits = _pool(seed, option)
    entry, unused = _asked(problem, limits)
    for one in unused:
        price = break_even(entry, one)
        if price is not None and price > 0.01:  # what costs next to nothing is decided by ties
            assert _enters(problem, limits, one, price * 0.99), (seed, one.resource)
            assert not _enters(problem, limits, one, price * 1.01), (seed, one.resource)
        elif price is None or price <= 0:
            assert not _enters(problem, limits, one, 0.001), (seed, one.resource)


@given(st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_a_break_even_lies_between_its_bounds(option: Make, seed: int) -> None:
    entry, unused = _asked(*_pool(seed, option))
    for one in unused:
        price = break_even(entry, one)
        if price is not None and price > 0:
            assert price <= never_pays_above(entry, one) * (1 + 1e-5) + 1e-5, (seed, one.resource)
            least = pays_below(entry, one)
            assert least is None or price >= least * (1 - 1e-5), (seed, one.resource)
        elif price is None:
            assert pays_below(entry, one) is None, (seed, one.resource)


def test_bounds_of_a_pool_that_one_node_carries_meet(option: Make) -> None:
    """One cheap node at $0.40 serves all; so would one of the other: it enters below $0.40, and no solve says so."""
    cheap = option("cheap", CapacityType.ON_DEMAND, "v", 3, 40)
    other = option("other", CapacityType.ON_DEMAND, "v", 5, 90)
    problem = PoolProblem("demo/p", replace(BASE, requests_per_second=Decimal(2)), (cheap, other))
    entry, unused = _asked(problem, {})
    assert unused == [other]
    assert pays_below(entry, other) == never_pays_above(entry, other) == pytest.approx(0.40)


def test_bounds_of_a_large_pool_are_those_of_one_node_and_of_all_nodes(option: Make) -> None:
    """20 turns/s on 7 nodes of 3 for $0.40 each, $2.80 in all.  Four nodes of 5 could do it alone: below $0.70.  One of
    them leaves 15 turns/s, which take at least 5 nodes: above $0.80 it never pays; and at $0.80 it does."""
    cheap = option("cheap", CapacityType.ON_DEMAND, "v", 3, 40)
    other = option("other", CapacityType.ON_DEMAND, "v", 5, 90)
    problem = PoolProblem("demo/p", replace(BASE, requests_per_second=Decimal(20)), (cheap, other))
    entry, _ = _asked(problem, {})
    assert pays_below(entry, other) == pytest.approx(0.70)
    assert never_pays_above(entry, other) == pytest.approx(0.80)
    assert break_even(entry, other) == pytest.approx(0.80)


def test_a_node_dearer_than_the_budget_has_a_break_even_price(option: Make) -> None:
    """One cheap node at $0.40 serves all within $0.50; the other, at $0.90, would have to cost less than that node."""
    cheap = option("cheap", CapacityType.ON_DEMAND, "v", 3, 40)
    other = option("other", CapacityType.ON_DEMAND, "v", 5, 90)
    effective = replace(BASE, requests_per_second=Decimal(2), max_usd_per_hour=Decimal("0.5"))
    entry, _ = _asked(PoolProblem("demo/p", effective, (cheap, other)), {})
    assert break_even(entry, other) == pytest.approx(0.40)


def test_where_the_budget_leaves_demand_unserved_the_price_that_it_can_pay_is_the_break_even(option: Make) -> None:
    """$1.00 pays for two cheap nodes of 3 turns/s at $0.40; one of the other beside them would serve two more at $0.20,
    and alone it would serve 7 of the 8 at all of $1.00."""
    cheap = option("cheap", CapacityType.ON_DEMAND, "v", 3, 40)
    other = option("other", CapacityType.ON_DEMAND, "v", 7, 120)
    effective = replace(BASE, requests_per_second=Decimal(8), max_usd_per_hour=Decimal(1))
    problem = PoolProblem("demo/p", effective, (cheap, other))
    entry, _ = _asked(problem, {})
    assert entry.served.unserved == pytest.approx(0.25, abs=1e-6)
    assert break_even(entry, other) == pytest.approx(1.0)
    assert _enters(problem, {}, other, 0.99)
    assert not _enters(problem, {}, other, 1.01)
