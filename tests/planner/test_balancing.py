"""Are smooth prices near the duals of the linear program, and the compiled steps to them what numpy says?"""

import numpy as np
import pytest
from berth_operator.planner.balancing import balanced
from berth_operator.planner.lanes import Floats, Ints
from berth_operator.planner.master import Master
from hypothesis import given, settings
from hypothesis import strategies as st

POOLS, EACH, ROWS = 12, 6, 4
seeds = st.integers(0, 100_000)
checked = settings(max_examples=50, deadline=None, derandomize=True)


def _patterns(seed: int) -> tuple[Ints, Floats, Ints, Floats]:
    """([column] pool, cost, [column, row] use, [row] caps): patterns that take more are cheaper."""
    rng = np.random.default_rng(seed)
    pool = np.repeat(np.arange(POOLS), EACH)
    use = rng.integers(0, 5, (len(pool), ROWS)) * (rng.random((len(pool), ROWS)) < 0.4)
    use[::EACH] = 0
    cost = np.maximum(12.0 - use @ rng.uniform(0.2, 2.0, ROWS) + rng.uniform(0, 2, len(pool)), 1.0)
    return pool, cost, use.astype(np.int32), use.sum(0) * rng.uniform(0.05, 0.4, ROWS)


def _softly(pool: Ints, total: Floats, temperature: Floats) -> tuple[Floats, Floats]:
    """([pool] soft least, [column] weight)."""
    raised = np.exp((total.reshape(POOLS, EACH).min(1)[pool] - total) / temperature[pool])
    every = raised.reshape(POOLS, EACH).sum(1)
    return total.reshape(POOLS, EACH).min(1) - temperature * np.log(every), raised / every[pool]


def _plainly(pool: Ints, cost: Floats, use: Ints, caps: Floats, most: Floats, near: Floats, worth: Floats) -> Floats:
    """What `balanced` does, by numpy and the formulas alone."""
    prices = np.clip(near, 0.0, most)

    def at(prices: Floats, temperature: Floats) -> tuple[float, Floats]:
        least, weight = _softly(pool, cost + use @ prices, temperature)
        return float(least.sum() - prices @ caps), weight

    for part in (0.05, 0.01):
        temperature, damping = part * worth, 1.0
        value, weight = at(prices, temperature)
        for _ in range(40):
            slope = weight @ use - caps
            bend = np.zeros((ROWS, ROWS))
            for i in range(POOLS):
                torn = (pool == i) & (weight > 1e-6) & (weight < 1 - 1e-6)
                w, u = weight[torn], use[torn]
                bend += (np.einsum("c,cr,cs->rs", w, u, u) - np.outer(w @ u, w @ u)) / temperature[i]
            free = ~((prices <= 0) & (slope <= 0)) & ~((prices >= most) & (slope >= 0))
            gain = 0.0
            for _ in range(8 if free.any() else 0):
                own = np.diag(bend)
                matrix = bend + np.diag(damping * np.maximum(own, 1e-9 * own.max() + 1e-9))
                step = np.zeros(ROWS)
                step[free] = np.linalg.solve(matrix[np.ix_(free, free)], slope[free])
                longest = np.maximum(0.5 * prices, 0.05 * most)
                tried = np.clip(prices + np.clip(step, -longest, longest), 0.0, most)
                better, weighed = at(tried, temperature)
                if better > value:
                    gain, value, weight, prices = better - value, better, weighed, tried
                    damping = max(damping / 8, 1e-6)
                    break
                damping = max(damping * 8, 1e-3)
            if gain <= 2e-5 * worth.sum():
                break
    return prices


@given(seed=seeds)
@checked
def test_prices_are_those_of_the_formulas(seed: int) -> None:
    pool, cost, use, caps = _patterns(seed)
    rng = np.random.default_rng(seed + 1)
    most, near, worth = rng.uniform(1, 50, ROWS), rng.uniform(0, 2, ROWS), rng.uniform(3, 12, POOLS)
    order = rng.permutation(len(pool))
    found = balanced(pool[order], cost[order], use[order], caps, most, near, worth)
    assert found == pytest.approx(_plainly(pool, cost, use, caps, most, near, worth), rel=1e-7, abs=1e-9)


@given(seed=seeds)
@checked
def test_smooth_prices_leave_little_of_the_linear_program_s_value(seed: int) -> None:
    pool, cost, use, caps = _patterns(seed)
    most = np.full(ROWS, 50.0)
    worth = np.full(POOLS, float(np.median(cost)))
    prices = balanced(pool, cost, use, caps, most, np.zeros(ROWS), worth)
    total = cost + use @ prices
    value = total.reshape(POOLS, EACH).min(1).sum() - prices @ caps
    master = Master(POOLS, caps, most)
    master.begin(pool, cost, use, np.zeros(ROWS))
    best = master.solve()[0]
    assert value <= best + 1e-9
    assert value >= best - 0.03 * worth.sum()
