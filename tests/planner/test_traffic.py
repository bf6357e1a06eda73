"""Are routing weights whole percents that add up and break no share limit?"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from berth_operator.api import CapacityType, InferencePool, resolve
from berth_operator.planner.candidates import Option
from berth_operator.planner.program import PoolProblem
from berth_operator.planner.solution import Assignment
from berth_operator.planner.traffic import percents, spread
from hypothesis import given, settings
from hypothesis import strategies as st

MakeProblem = Callable[..., tuple[PoolProblem, list[Assignment]]]


@pytest.fixture(scope="session")
def problem(pool: Callable[..., InferencePool], option: Callable[..., Option]) -> MakeProblem:
    """A pool with given replicas, spot ones first, each on its own class and carrying 1 turn/s."""

    def make(spot: int, steady: int, demand: float = 4.0, **rules: Any) -> tuple[PoolProblem, list[Assignment]]:
        options = [option(f"s{i}", CapacityType.SPOT, "v", 1.0, 10) for i in range(spot)]
        options += [option(f"t{i}", CapacityType.ON_DEMAND, "w", 1.0, 20) for i in range(steady)]
        base = resolve(pool(rps=str(demand), workload_class="Batch").spec)
        effective = replace(base, **rules)
        return PoolProblem("demo/p", effective, tuple(options)), [Assignment(o, 1, 1) for o in options]

    return make


def test_rounding_never_lifts_spot_above_its_share(problem: MakeProblem) -> None:
    at, assignments = problem(spot=3, steady=2, spot_max_traffic_percent=70)
    # By largest remainders alone spot would get 24 + 24 + 23 = 71.
    assert sum(percents(at, assignments, [0.237, 0.237, 0.226, 0.155, 0.145])[:3]) == 70


@given(shares=st.lists(st.integers(1, 1000), min_size=2, max_size=6), spot=st.integers(0, 6), shed=st.floats(0.1, 1))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_percents_add_up_stay_within_one_of_the_share_and_keep_the_limits(
    problem: MakeProblem, shares: list[int], spot: int, shed: float
) -> None:
    spot = min(spot, len(shares))
    exact = [100 * s / sum(shares) for s in shares]
    cap = -int(-sum(exact[:spot]) // 1)
    at, assignments = problem(spot, len(shares) - spot, spot_max_traffic_percent=min(100, cap))
    rounded = percents(at, assignments, [shed * e / 100 for e in exact])
    assert sum(rounded) == 100
    assert all(abs(r - e) < 1 + 1e-6 for r, e in zip(rounded, exact, strict=True))
    assert sum(rounded[:spot]) <= cap


def test_traffic_spreads_by_capacity_where_no_share_binds(problem: MakeProblem) -> None:
    at, assignments = problem(spot=0, steady=3, demand=2.0)
    doubled = [replace(assignments[0], replicas=2, nodes=2), *assignments[1:]]
    assert spread(at, doubled) == pytest.approx([0.5, 0.25, 0.25])


def test_traffic_leans_on_the_rest_where_a_share_binds_and_keeps_the_busiest_least_busy(problem: MakeProblem) -> None:
    at, assignments = problem(spot=2, steady=2, demand=2.0, spot_max_traffic_percent=40)
    assert spread(at, assignments) == pytest.approx([0.2, 0.2, 0.3, 0.3], abs=1e-6)


def test_what_cannot_be_carried_is_not_spread(problem: MakeProblem) -> None:
    at, assignments = problem(spot=0, steady=2, demand=4.0)
    assert spread(at, assignments) == pytest.approx([0.25, 0.25])
    assert percents(at, assignments, [0.25, 0.25]) == [50, 50]
    assert percents(at, assignments, [0.0, 0.0]) == [0, 0]
