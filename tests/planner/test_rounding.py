"""Do whole choices of patterns keep to what there is, and does nothing simple better them?  Against enumeration."""

import itertools

import numpy as np
import pytest
from berth_operator.planner.lanes import Ints
from berth_operator.planner.rounding import Patterns, exchange, make_room, relieved
from hypothesis import given, settings
from hypothesis import strategies as st

POOLS, EACH, ROWS = 5, 5, 3
seeds = st.integers(0, 100_000)
checked = settings(max_examples=100, deadline=None, derandomize=True)


def _patterns(seed: int) -> tuple[Patterns, Ints]:
    """Five pools' patterns, of which each one's first takes nothing and is dear, and what each would like best."""
    rng = np.random.default_rng(seed)
    pool = np.repeat(np.arange(POOLS), EACH)
    use = rng.integers(0, 4, (len(pool), ROWS)) * (rng.random((len(pool), ROWS)) < 0.7)
    use[::EACH] = 0
    cost = rng.uniform(1, 10, len(pool))
    cost[::EACH] = 30
    worth = rng.uniform(0, 2, ROWS)
    reduced = cost + use @ worth
    patterns = Patterns(pool, cost, reduced, use, rng.integers(1, 12, ROWS).astype(np.float64))
    best = np.array([at + np.argmin(cost[at : at + EACH]) for at in range(0, len(pool), EACH)])
    return patterns, best


def _fits(patterns: Patterns, chosen: Ints) -> bool:
    return bool((patterns.use[chosen].sum(0) <= patterns.caps).all())


@given(seed=seeds)
@checked
def test_a_choice_becomes_one_that_fits_and_every_step_makes_it_cheaper(seed: int) -> None:
    patterns, best = _patterns(seed)
    worth = np.ones(ROWS)
    first = relieved(patterns, best, worth)
    second = make_room(patterns, first, worth)
    third = exchange(patterns, second, np.inf)
    for chosen in (first, second, third):
        assert _fits(patterns, chosen)
        assert (patterns.pool[chosen] == np.arange(POOLS)).all()
    cost = [float(patterns.cost[chosen].sum()) for chosen in (first, second, third)]
    assert cost == sorted(cost, reverse=True)
    if _fits(patterns, best):
        assert (first == best).all()


@given(seed=seeds)
@checked
def test_no_cheaper_pattern_fits_once_room_has_been_made(seed: int) -> None:
    patterns, best = _patterns(seed)
    chosen = make_room(patterns, relieved(patterns, best, np.ones(ROWS)), np.ones(ROWS))
    for column, pool in enumerate(patterns.pool.tolist()):
        other = chosen.copy()
        other[pool] = column
        assert patterns.cost[column] > patterns.cost[chosen[pool]] - 2e-6 or not _fits(patterns, other)


@given(seed=seeds)
@checked
def test_no_exchange_of_one_pattern_or_two_is_left(seed: int) -> None:
    patterns, best = _patterns(seed)
    chosen = exchange(patterns, relieved(patterns, best, np.ones(ROWS)), np.inf)
    now = float(patterns.cost[chosen].sum())
    for pair in itertools.combinations(range(len(patterns.pool)), 2):
        other = chosen.copy()
        other[patterns.pool[list(pair)]] = pair
        assert float(patterns.cost[other].sum()) > now - 2e-6 or not _fits(patterns, other)


def test_two_pools_make_room_for_a_third_and_one_of_them_for_itself() -> None:
    """One row of four nodes: the first pool saves 9 with three of them, the others lose 2 and 3 with one fewer each."""
    pool = np.array([0, 0, 1, 1, 2, 2])
    cost = np.array([10.0, 1.0, 2.0, 4.0, 2.0, 5.0])
    use = np.array([[0], [3], [2], [1], [2], [0]])
    patterns = Patterns(pool, cost, cost.copy(), use, np.array([4.0]))
    assert make_room(patterns, np.array([0, 2, 4]), np.ones(1)).tolist() == [1, 3, 5]


def test_a_choice_of_other_pools_columns_and_patterns_of_other_shapes_are_refused() -> None:
    patterns, best = _patterns(1)
    with pytest.raises(ValueError, match="one of its own columns"):
        exchange(patterns, best[::-1], 1.0)
    with pytest.raises(ValueError, match="caps are"):
        exchange(Patterns(patterns.pool, patterns.cost, patterns.reduced, patterns.use, np.ones(2)), best, 1.0)
