"""Do pools that are taken out and put back come to the best plan there is?  They are held against all plans."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import product

import numpy as np
import pytest
from berth_operator.api import CapacityType
from berth_operator.planner.candidates import Option
from berth_operator.planner.lanes import Floats, Ints, Lanes, lanes_of, served_by
from berth_operator.planner.program import PoolProblem
from berth_operator.planner.reseating import reseated
from berth_operator.planner.stock import Stage, Stock
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_pool import BASE

Make = Callable[..., Option]
POOLS, CLASSES, NODES = 4, 3, 2
PRIORITIES = (7, 0)


@dataclass(frozen=True)
class _Fleet:
    stock: Stock
    nothing: Ints
    duals: Floats


def _fleet(seed: int, option: Make) -> _Fleet:
    """Four pools of two priorities, and one or two nodes of each of three classes that they want; nothing is known but
    what serves nobody, and nodes have any prices."""
    rng = random.Random(seed)  # noqa: S311 - instances, not secrets
    problems = []
    for i in range(POOLS):
        rules = replace(
            BASE,
            requests_per_second=Decimal(rng.randint(2, 12)),
            priority=rng.choice(PRIORITIES),
            min_replicas=rng.choice([0, 0, 1, 2]),
            max_replicas=rng.choice([None, None, 2]),
            spot_max_traffic_percent=rng.choice([50, 100]),
        )
        options = (
            option(
                f"c{k}",
                rng.choice([CapacityType.ON_DEMAND, CapacityType.SPOT]),
                "v",
                rng.uniform(1, 6),
                rng.randint(20, 300),
            )
            for k in range(CLASSES)
        )
        problems.append(PoolProblem(f"demo/p{i}", rules, tuple(options)))
    resources = sorted({o.resource for p in problems for o in p.options})
    lanes = lanes_of(problems, {r: rng.randint(1, NODES) for r in resources})
    important = np.array([p.effective.priority == PRIORITIES[0] for p in problems])
    rank = np.where(important, 0, 1) if important.any() else np.zeros(POOLS, dtype=np.int64)
    nothing = np.zeros(POOLS, dtype=np.int64)
    stage = Stage(1e-2, 0.0, important[None, :].astype(np.float64), np.array([1.0]), 1e3, nothing, rank)
    stock = Stock(lanes, POOLS, np.where(important, 0.0, 1e3)[lanes.pool], 1e-3, stage)
    nothing = np.array(
        [int(np.flatnonzero((stock.columns.pool == i) & (stock.columns.nodes == 0).all(1))[0]) for i in range(POOLS)]
    )
    return _Fleet(stock, nothing, np.array([rng.uniform(0, 300) for _ in stock.caps]))


def _worth(lanes: Lanes, rank: Ints, lane: Ints, nodes: Ints) -> tuple[float, ...]:
    """Unserved by rank, replicas missing, dollars."""
    served = served_by(lanes, lane, nodes)
    assert served.allowed.all()
    short = [float(served.unserved[rank == r].sum()) for r in range(2)]
    return (*short, float(served.missing.sum()), float((nodes * lanes.price[lane]).sum()))


def _best(lanes: Lanes, rank: Ints) -> tuple[float, ...]:
    """Of all plans."""
    patterns = []
    for lane in range(lanes.count):
        nodes = np.array(list(product(*(range(int(m) + 1) for m in lanes.most[lane]))), dtype=np.int64)
        served = served_by(lanes, np.full(len(nodes), lane), nodes)
        use = np.zeros((len(nodes), len(lanes.rows) + 1))
        for k in range(nodes.shape[1]):
            use[:, lanes.row[lane, k]] += nodes[:, k] * lanes.weight[lane, k]
        short = np.zeros((len(nodes), 2))
        short[:, rank[lanes.pool[lane]]] = served.unserved
        worth = np.column_stack([short, served.missing, nodes @ lanes.price[lane]])
        patterns.append((use[served.allowed, :-1], worth[served.allowed]))
    use, worth = patterns[0]
    for more, added in patterns[1:]:
        use, worth = (use[:, None] + more).reshape(-1, len(lanes.rows)), (worth[:, None] + added).reshape(-1, 4)
        fits = (use <= lanes.caps).all(1)
        use, worth = use[fits], worth[fits]
    order = np.lexsort(worth.round(6).T[::-1])
    return tuple(worth[order[0]].tolist())


def _differ(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """By how much the first figure that differs is greater in `one`."""
    return next((a - b for a, b in zip(one, other, strict=True) if abs(a - b) > 1e-5), 0.0)


def test_few_pools_come_to_the_best_of_all_plans(option: Make) -> None:
    for seed in range(40):
        fleet = _fleet(seed, option)
        stock, rank = fleet.stock, fleet.stock.stage.rank
        found = reseated(stock, fleet.nothing, fleet.duals)
        mine = _worth(stock.lanes, rank, stock.columns.lane[found], stock.columns.nodes[found].astype(np.int64))
        best = _best(stock.lanes, rank)
        assert mine == pytest.approx(best, abs=1e-5), seed


@given(seed=st.integers(0, 10_000), moves=st.integers(0, 40), kept=st.lists(st.booleans(), min_size=4, max_size=4))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_what_comes_out_fits_and_is_no_worse_than_what_went_in(
    option: Make, seed: int, moves: int, kept: list[bool]
) -> None:
    """Whoever is settled, the second time, keeps what it had."""
    fleet = _fleet(seed, option)
    stock, rank = fleet.stock, fleet.stock.stage.rank
    before = fleet.nothing
    for settled in (np.zeros(POOLS, dtype=np.bool_), np.array(kept)):
        stock.stage = replace(stock.stage, settled=settled)
        after = reseated(stock, before, fleet.duals, moves)
        assert (after[settled] == before[settled]).all()
        assert (stock.columns.use[after].sum(0) <= stock.lanes.caps).all()
        assert (stock.columns.pool[after] == np.arange(POOLS)).all()
        worths = [
            _worth(stock.lanes, rank, stock.columns.lane[c], stock.columns.nodes[c].astype(np.int64))
            for c in (after, before)
        ]
        assert _differ(*worths) <= 0
        before = after


def test_a_pool_has_one_of_its_own_columns(option: Make) -> None:
    fleet = _fleet(0, option)
    with pytest.raises(ValueError, match="one of its own columns"):
        reseated(fleet.stock, fleet.nothing[::-1].copy(), fleet.duals)
