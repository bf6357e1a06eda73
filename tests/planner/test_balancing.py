"""Are smooth prices near the duals of the linear program, and their compiled loops what numpy says?"""

import numpy as np
import pytest
from berth_operator.planner.balancing import TEMPERATURES, _Soft, balanced
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


@given(seed=seeds)
@checked
def test_value_weights_and_both_derivatives_are_those_of_the_formula(seed: int) -> None:
    pool, cost, use, caps = _patterns(seed)
    rng = np.random.default_rng(seed + 1)
    prices, temperature = rng.uniform(0, 2, ROWS), rng.uniform(0.3, 2.0, POOLS)
    soft = _Soft(pool, cost, use, caps)
    value, weight = soft.at(prices, temperature)
    least, expected = _softly(pool, cost + use @ prices, temperature)
    assert value == pytest.approx(least.sum() - prices @ caps, rel=1e-12)
    assert weight == pytest.approx(expected, rel=1e-12, abs=1e-18)
    slope, bend = soft.derivatives(weight, temperature)
    assert slope == pytest.approx(expected @ use - caps, rel=1e-11, abs=1e-9)
    falls = np.zeros((ROWS, ROWS))
    for i in range(POOLS):
        w, u = expected[pool == i], use[pool == i]
        falls += (np.einsum("c,cr,cs->rs", w, u, u) - np.outer(w @ u, w @ u)) / temperature[i]
    # Patterns of a weight near 0 or 1 are left out.
    assert bend == pytest.approx(falls, rel=1e-4, abs=1e-3)


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
    assert value >= best - 3 * TEMPERATURES[-1] * worth.sum()
