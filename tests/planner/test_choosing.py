"""Do pools find what they could have together, where nobody knows a pattern for it yet?"""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
from berth_operator.api import CapacityType
from berth_operator.planner.candidates import Option
from berth_operator.planner.choosing import _Near
from berth_operator.planner.effort import Effort
from berth_operator.planner.fleet import penalties
from berth_operator.planner.lanes import Ints, lanes_of
from berth_operator.planner.master import Master
from berth_operator.planner.program import PoolProblem
from berth_operator.planner.stock import Stock
from plain_pool import BASE

SMALL, LARGE = 1, 10
"""Nodes that either pool needs."""


def _near(option: Callable[..., Option], scarce: int, patterns: list[tuple[int, list[int]]]) -> tuple[_Near, Ints]:
    """Two pools that want the class `x`, of which there are `scarce` nodes at $1: the small one could have `y` at $5,
    the large one `z` at $1.50.  Known are `patterns`: (pool, nodes of `x` and of the other); the first of each is
    chosen.  A node of `x` is thought to be worth $0.20, and the fleet nothing: every choice is far from it."""
    x, y, z = (
        option(name, CapacityType.ON_DEMAND, "v", 1, cents) for name, cents in (("x", 100), ("y", 500), ("z", 150))
    )
    problems = [
        PoolProblem("demo/a", replace(BASE, requests_per_second=Decimal(SMALL)), (x, y)),
        PoolProblem("demo/b", replace(BASE, requests_per_second=Decimal(LARGE)), (x, z)),
    ]
    lanes = lanes_of(problems, {x.resource: scarce})
    stock = Stock(lanes, 2, *penalties(lanes))
    stock.add(np.array([p for p, _ in patterns]), np.array([nodes for _, nodes in patterns]))
    master = Master(2, stock.caps, np.full(1, 1e3))
    master.begin(stock.columns.pool, stock.costs(), stock.use(), np.zeros(1))
    near = _Near(stock, master)
    near.duals, near.target = np.array([0.2]), 0.0
    first = [next(nodes for p, nodes in patterns if p == pool) for pool in (0, 1)]
    of = [(stock.columns.lane == p) & (stock.columns.nodes == nodes).all(1) for p, nodes in enumerate(first)]
    chosen = np.array([np.flatnonzero(known)[0] for known in of])
    return near, chosen


def _nodes(near: _Near, chosen: Ints) -> list[list[int]]:
    found: list[list[int]] = near.stock.columns.nodes[chosen].tolist()
    return found


def test_a_large_pool_is_priced_anew_to_make_room_for_a_small_one(option: Callable[..., Option]) -> None:
    near, chosen = _near(option, LARGE, [(0, [0, 1]), (0, [1, 0]), (1, [10, 0])])
    mended = near.mended(chosen, Effort.PROVE)
    assert _nodes(near, mended) == [[1, 0], [9, 1]]
    assert near.total(mended) == pytest.approx(1 + 9 + 1.5, abs=1e-3)


def test_nobody_makes_room_where_that_costs_more_than_it_saves(option: Callable[..., Option]) -> None:
    near, chosen = _near(option, LARGE, [(0, [1, 0]), (0, [0, 1]), (1, [9, 1]), (1, [10, 0])])
    assert near.mended(chosen, Effort.PROVE).tolist() == chosen.tolist()


def test_a_choice_that_takes_more_than_there_is_stays_what_it_is(option: Callable[..., Option]) -> None:
    near, chosen = _near(option, LARGE, [(0, [1, 0]), (0, [0, 1]), (1, [10, 0])])
    assert near.total(chosen) == np.inf
    assert near.mended(chosen, Effort.PROVE).tolist() == chosen.tolist()
