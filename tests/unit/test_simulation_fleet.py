"""Do replicas start, serve, cost and leave when they should?"""

import math

import pytest
from berth_operator.api import CapacityType
from berth_operator.simulate.fleet import Kind, PoolFleet
from hypothesis import given
from hypothesis import strategies as st

A, B = ("a", CapacityType.ON_DEMAND), ("b", CapacityType.SPOT)
SIX_MINUTES = 0.1


def kind(
    resource: tuple[str, CapacityType] = A, rate: float = 1.0, per_node: int = 1, start: float = SIX_MINUTES
) -> Kind:
    return Kind(resource, rate, per_node, start)


def everything(_: Kind, replicas: int) -> int:
    return replicas


def running(count: int, resource: tuple[str, CapacityType] = A) -> PoolFleet:
    """A pool that has long had so many replicas."""
    fleet = PoolFleet()
    fleet.steer({resource: (kind(resource, start=0.0), count)}, -1.0, everything)
    return fleet


def test_a_replica_costs_at_once_and_serves_when_it_has_started() -> None:
    fleet = PoolFleet()
    assert fleet.steer({A: (kind(), 1)}, 0.0, everything) == 1
    served = fleet.run(0.0, 0.25, demand=1.0)
    assert served.node_hours == {A: pytest.approx(0.25)}
    assert served.turns == pytest.approx(900)
    assert served.within == pytest.approx(900 * 0.6)


def test_what_is_replaced_serves_and_costs_until_its_replacement_does() -> None:
    fleet = running(1)
    fleet.steer({B: (kind(B), 1)}, 0.0, everything)
    served = fleet.run(0.0, 0.25, demand=1.0)
    assert served.within == pytest.approx(900), "no turn is lost to the move"
    assert served.node_hours == {A: pytest.approx(0.1), B: pytest.approx(0.25)}
    assert fleet.wanted() == {B: 1}


def test_nothing_is_given_up_for_what_cannot_be_had() -> None:
    fleet = running(2)
    assert fleet.steer({B: (kind(B), 2)}, 0.0, lambda *_: 0) == 0
    assert fleet.wanted() == {A: 2}


def test_a_smaller_target_lets_the_surplus_go_at_once() -> None:
    fleet = running(3)
    fleet.steer({A: (kind(), 1)}, 0.0, everything)
    assert fleet.run(0.0, 1.0, 1.0).node_hours == {A: pytest.approx(1.0)}


def test_what_was_about_to_leave_is_kept_when_it_is_wanted_again() -> None:
    fleet = running(2)
    fleet.steer({B: (kind(B), 1)}, 0.0, everything)
    assert fleet.steer({A: (kind(), 2)}, 0.05, everything) == 0, "both still run"
    assert fleet.wanted() == {A: 2}


def test_an_interruption_takes_whole_nodes_and_what_serves_on_them() -> None:
    fleet = PoolFleet()
    fleet.steer({B: (kind(B, per_node=4, start=0.0), 10)}, -1.0, everything)
    assert fleet.nodes(B, 0.0) == 3
    assert fleet.interrupt(B, 2, 0.0) == 2
    assert fleet.wanted() == {B: 2}
    assert fleet.run(0.0, 1.0, 10.0).within == pytest.approx(2 * 3600)


def test_replicas_that_share_a_node_are_paid_by_the_node() -> None:
    fleet = PoolFleet()
    fleet.steer({A: (kind(per_node=4), 5)}, 0.0, everything)
    assert fleet.run(0.0, 1.0, 0.0).node_hours == {A: pytest.approx(2.0)}


@given(
    targets=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12),
    start=st.floats(0.0, 0.6),
    demand=st.floats(0.0, 12.0),
)
def test_whatever_is_wanted_time_and_turns_add_up(targets: list[tuple[int, int]], start: float, demand: float) -> None:
    fleet, step = PoolFleet(), 0.25
    for index, (a, b) in enumerate(targets):
        now = index * step
        fleet.steer({A: (kind(start=start), a), B: (kind(B, start=start), b)}, now, everything)
        assert fleet.wanted() == {r: n for r, n in ((A, a), (B, b)) if n}
        served = fleet.run(now, now + step, demand)
        assert math.isclose(served.turns, demand * step * 3600, abs_tol=1e-6)
        assert -1e-6 <= served.within <= served.turns + 1e-6
        assert sum(served.node_hours.values()) >= (a + b) * step - 1e-9, "what is wanted is paid"
