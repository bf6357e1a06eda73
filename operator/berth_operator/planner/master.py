"""Which patterns together?  The restricted master: one pattern a pool, shared nodes within their limits.

As a linear program its duals price the shared rows.  It divides few pools among patterns; a dive, in which these are
given their heaviest one by one, and the program is solved again for the others, is where whole choices start from.
HiGHS solves it, one thread, fixed seed.
"""

from collections.abc import Sequence
from typing import Any, Final

import highspy
import numpy as np
import numpy.typing as npt
from numpy.random import default_rng

from berth_operator.planner.lanes import Flags, Floats, Ints, Lanes
from berth_operator.planner.pricing import TOLERANCE
from berth_operator.planner.solver import SolverError

WHOLE: Final = 0.999
"""Weight of a pattern in the linear master from which the pool is not divided."""
_GROWTH: Final = 2
_ARRAYS: Final = ("_mark", "_lane", "_nodes", "_cost", "_unserved", "_missing", "_use")
"""Of columns; [column, ...]"""
_DUAL, _PRIMAL = 1, 4
"""Ways of the simplex: columns leave a point feasible, bounds leave it dual feasible."""


class Columns:
    """Patterns found so far; arrays that grow."""

    def __init__(self, lanes: Lanes) -> None:
        self.lanes, self.count = lanes, 0
        self._marks = _marks(lanes.share.shape[1] + 1)
        self._seen = np.zeros(0, dtype=np.uint64)
        """Of `_mark`, in order."""
        self._mark = np.zeros(64, dtype=np.uint64)
        self._lane = np.zeros(64, dtype=np.int64)
        self._nodes = np.zeros((64, lanes.share.shape[1]), dtype=np.int32)
        self._cost = np.zeros(64)
        self._unserved = np.zeros(64)
        self._missing = np.zeros(64)
        self._use = np.zeros((64, len(lanes.rows)), dtype=np.int32)

    lane = property(lambda self: self._lane[: self.count])
    nodes = property(lambda self: self._nodes[: self.count])
    cost = property(lambda self: self._cost[: self.count])
    """USD/h in the cost stage's objective, shortage left aside."""
    unserved = property(lambda self: self._unserved[: self.count])
    missing = property(lambda self: self._missing[: self.count])
    use = property(lambda self: self._use[: self.count])
    """[column, row] units of nodes."""

    @property
    def pool(self) -> Ints:
        """[column]"""
        pool: Ints = self.lanes.pool[self.lane]
        return pool

    def cheapest_serving(self, pools: int) -> Floats:
        """[pool] USD/h of the cheapest pattern that serves all; infinite where none is known."""
        best = np.full(pools, np.inf)
        served = self.unserved <= TOLERANCE
        np.minimum.at(best, self.pool[served], self.cost[served])
        return best

    def add(self, lane: Ints, nodes: Ints, cost: Floats, unserved: Floats, missing: Ints) -> Ints:
        """Add those that are new; returns which columns they became."""
        mark = self._marked(lane, nodes)
        rows = self._fresh(mark)
        nodes, lane = nodes[rows], lane[rows]
        pattern, option = np.nonzero(nodes)
        of = lane[pattern]
        use = np.zeros((len(rows), len(self.lanes.rows) + 1), dtype=np.int32)
        units = (nodes[pattern, option] * self.lanes.weight[of, option]).astype(np.int32)
        np.add.at(use, (pattern, self.lanes.row[of, option]), units)
        return self._append(mark[rows], lane, nodes, cost[rows], unserved[rows], missing[rows], use[:, :-1])

    def copy(self, other: "Columns", which: Ints) -> None:
        """Add some of another's, of the same lanes and rows."""
        which = which[self._fresh(other._mark[which])]
        self._append(*(getattr(other, name)[which] for name in _ARRAYS))

    def find(self, lane: Ints, nodes: Ints) -> Ints:
        """[pattern] which columns these are; KeyError for one that is not known."""
        mark = self._marked(lane, nodes)
        order = np.argsort(self._mark[: self.count], kind="stable")
        at = np.searchsorted(self._mark[: self.count], mark, sorter=order)
        found: Ints = order[np.minimum(at, self.count - 1)]
        if (self._mark[found] != mark).any():
            raise KeyError("a pattern that was never added")
        return found

    def _marked(self, lane: Ints, nodes: Ints) -> npt.NDArray[np.uint64]:
        """[pattern]"""
        nodes_, lane_ = nodes.astype(np.uint64), lane.astype(np.uint64)
        mark: npt.NDArray[np.uint64] = (nodes_ * self._marks[:-1]).sum(1) + lane_ * self._marks[-1]
        return mark

    def _fresh(self, mark: npt.NDArray[np.uint64]) -> Ints:
        """Of patterns with these marks, those that are not known, each once."""
        marks, first = np.unique(mark, return_index=True)
        at = np.searchsorted(self._seen, marks)
        known = np.append(self._seen, 0)[at] == marks
        known &= at < len(self._seen)
        self._seen = np.insert(self._seen, at[~known], marks[~known])
        fresh: Ints = np.sort(first[~known])
        return fresh

    def _append(self, *values: npt.NDArray[Any]) -> Ints:
        """Add patterns, each of whose `_ARRAYS` is given; returns which columns they became."""
        first, number = self.count, len(values[0])
        while first + number > len(self._lane):
            self._grow()
        for name, value in zip(_ARRAYS, values, strict=True):
            getattr(self, name)[first : first + number] = value
        self.count += number
        return np.arange(first, first + number)

    def _grow(self) -> None:
        for name in _ARRAYS:
            old = getattr(self, name)
            new = np.zeros((len(old) * _GROWTH, *old.shape[1:]), dtype=old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)


def _marks(count: int) -> npt.NDArray[np.uint64]:
    """Factors of a sum that tells patterns apart: of a hundred thousand two get the same once in 10^9 runs, and then
    one of them is missed."""
    return default_rng(1).integers(0, 2**63, count, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


class Master:
    """The linear master over growing columns."""

    def __init__(self, pools: int, caps: Floats, most: Floats) -> None:
        """`most` [row]: USD/h at which more of a row could be had, which keeps early duals from running away."""
        self.pools, self.caps, self.most, self.columns = pools, caps, most, 0
        self.highs: Any = _highs()
        self.highs.setOptionValue("simplex_strategy", _PRIMAL)
        self.highs.setOptionValue("simplex_scale_strategy", 0)  # entries are small whole numbers
        rows = len(caps) + pools
        lower = np.concatenate([np.full(len(caps), -highspy.kHighsInf), np.ones(pools)])
        upper = np.concatenate([caps, np.ones(pools)])
        starts, index, value = np.zeros(rows, dtype=np.int32), np.zeros(0, dtype=np.int32), np.zeros(0)
        self.highs.addRows(rows, lower, upper, 0, starts, index, value)
        at = np.arange(len(caps), dtype=np.int32)
        none, unbounded = np.zeros(len(caps)), np.full(len(caps), highspy.kHighsInf)
        self.highs.addCols(len(caps), most, none, unbounded, len(caps), at, at, np.full(len(caps), -1.0))

    def add(self, pool: Ints, cost: Floats, use: Ints | Floats) -> None:
        """New columns."""
        _add_columns(self.highs, pool, cost, use, len(self.caps))
        self.columns += len(pool)

    def begin(self, pool: Ints, cost: Floats, use: Ints | Floats, duals: Floats) -> None:
        """First columns, at least one of every pool, and a basis."""
        self.add(pool, cost, use)
        self.start_at(pool, cost, use, duals)

    def start_at(self, pool: Ints, cost: Floats, use: Ints | Floats, duals: Floats) -> None:
        """A basis: each pool's cheapest of all columns at `duals`, and what these together take beyond the rows bought.
        It is feasible, and near where the duals are right: a pivot for each pool is spared."""
        order = np.lexsort((cost + paid(use, duals), pool))
        cheapest = order[np.searchsorted(pool[order], np.arange(self.pools))]
        over = use[cheapest].sum(0) > self.caps
        state = highspy.HighsBasisStatus
        kinds = np.array([state.kLower, state.kUpper, state.kBasic], dtype=object)
        columns = np.zeros(len(self.caps) + len(pool), dtype=np.int64)
        columns[: len(self.caps)][over] = 2
        columns[len(self.caps) + cheapest] = 2
        rows = np.concatenate([np.where(over, 1, 2), np.zeros(self.pools, dtype=np.int64)])
        basis = highspy.HighsBasis()
        basis.col_status, basis.row_status, basis.valid = kinds[columns].tolist(), kinds[rows].tolist(), True
        self.highs.setBasis(basis)

    def raise_most(self, factor: float) -> None:
        """Let duals go further."""
        self.most = self.most * factor
        at = np.arange(len(self.caps), dtype=np.int32)
        self.highs.changeColsCost(len(self.caps), at, self.most)

    def hold(self, columns: Ints) -> None:
        """Give pools these columns and no others, until they are released."""
        self.highs.setOptionValue("simplex_strategy", _DUAL)
        self._at_least(columns, 1.0)

    def release(self, columns: Ints) -> None:
        """Let pools choose again."""
        self.highs.setOptionValue("simplex_strategy", _PRIMAL)
        self._at_least(columns, 0.0)

    def _at_least(self, columns: Ints, least: float) -> None:
        at = np.sort(columns + len(self.caps)).astype(np.int32)
        self.highs.changeColsBounds(len(at), at, np.full(len(at), least), np.full(len(at), highspy.kHighsInf))

    def solve(self) -> tuple[float, Floats, Floats, float]:
        """(objective, price of each shared row, weight of each column, nodes bought beyond the rows)."""
        self.highs.run()
        if self.highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            self.highs.clearSolver()  # from no basis: at the prices of a shortage the last may be nearly singular
            self.highs.run()
        if self.highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            raise SolverError(f"HiGHS: {self.highs.modelStatusToString(self.highs.getModelStatus())} in the master")
        solution = self.highs.getSolution()
        dual = -np.array(solution.row_dual[: len(self.caps)])
        value, more = np.array(solution.col_value), len(self.caps)
        objective = float(self.highs.getInfo().objective_function_value)
        return objective, np.maximum(dual, 0.0), value[more:], float(value[:more].sum())


def divided(pool: Ints, weight: Floats, pools: int) -> tuple[Ints, Flags]:
    """([pool] its heaviest column, [pool] whether that is not all of it)."""
    order = np.lexsort((-weight, pool))
    first = np.searchsorted(pool[order], np.arange(pools))
    heaviest = order[first]
    return heaviest, weight[heaviest] < WHOLE


def _highs() -> Any:
    highs: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    for name, value in {"output_flag": False, "threads": 1, "parallel": "off", "random_seed": 1}.items():
        highs.setOptionValue(name, value)
    return highs


def _add_columns(
    highs: Any, pool: Ints, cost: Floats, use: Ints | Floats, rows: int, upper: float = highspy.kHighsInf
) -> None:
    count = len(pool)
    column, row = np.nonzero(use)
    entries = np.concatenate([column, np.arange(count)])
    index = np.concatenate([row, rows + pool])
    value = np.concatenate([use[column, row].astype(np.float64), np.ones(count)])
    order = np.argsort(entries, kind="stable")
    starts = np.searchsorted(entries[order], np.arange(count)).astype(np.int32)
    highs.addCols(
        count,
        cost,
        np.zeros(count),
        np.full(count, highspy.kHighsInf),
        len(value),
        starts,
        index[order].astype(np.int32),
        value[order],
    )


def paid(use: Ints | Floats, duals: Floats) -> Floats:
    """[column] what its nodes of the shared rows cost at `duals`.

    By `einsum`, whose sums do not depend on how many threads a linear algebra library takes, nor wake any.
    """
    found: Floats = np.einsum("cr,r->c", use, duals)
    return found


def total_use(use: Ints | Floats, chosen: Sequence[int] | Ints) -> Floats:
    """Nodes of each row under the chosen columns."""
    return np.asarray(use[np.asarray(chosen)].sum(0), dtype=np.float64)
