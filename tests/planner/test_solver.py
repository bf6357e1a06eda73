"""Does the solver stand by what it has found?"""

from math import inf

import pytest
from berth_operator.planner import solver
from berth_operator.planner.program import Program

# Found by fuzzing: after the first stage HiGHS 1.15 calls this infeasible in presolve, though that stage's point fits.
ROWS = [
    (1.0, 1.0, {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0, 8: 1.0}),
    (0.0, inf, {4: 1.0, 0: -98.70344460302383}),
    (0.0, inf, {5: 1.0, 1: -109.46239005860355}),
    (0.0, inf, {6: 1.0, 2: -98.70344460302383}),
    (0.0, inf, {7: 1.0, 3: -109.46239005860355}),
    (1.0, inf, {4: 1.0, 5: 1.0, 6: 1.0, 7: 1.0, 9: 1.0}),
    (-inf, 0.0, {0: -0.7, 1: -0.7, 2: 0.30000000000000004, 3: 0.30000000000000004}),
    (-inf, 0.0, {2: 1.0, 10: -1.0}),
    (-inf, 0.0, {3: 1.0, 10: -1.0}),
    (0.0, inf, {4: 1.0, 5: 1.0, 10: -1.0}),
    (-inf, 0.0, {0: -0.30000000000000004, 1: -0.30000000000000004, 2: 0.7, 3: 0.7}),
    (-inf, 1.0, {6: 0.05504, 7: 0.05504}),
    (-inf, 1.0, {11: 1.0, 12: 1.0}),
    (-inf, 0.0, {0: 1.0, 12: -1.0}),
    (-inf, 0.0, {4: 1.0, 12: -3}),
    (-inf, 0.0, {1: 1.0, 11: -1.0}),
    (-inf, 0.0, {5: 1.0, 11: -3}),
    (-inf, 0.0, {2: 1.0, 12: -1.0}),
    (-inf, 0.0, {6: 1.0, 12: -18}),
    (-inf, 0.0, {3: 1.0, 11: -1.0}),
    (-inf, 0.0, {7: 1.0, 11: -18}),
    (-inf, 3.0, {4: 1.0, 5: 1.0}),
]


def _program() -> Program:
    upper = [1.0, 1.0, 1.0, 1.0, 3, 3, 18, 18, 1.0, 1, 1.0, 1.0, 1.0]
    integer = [j in {4, 5, 6, 7, 10, 11, 12} for j in range(13)]
    return Program([0.0] * 13, upper, integer, list(ROWS))


COST = {4: 1e-5, 0: 3.79, 5: 1e-5, 1: 3.795, 6: 0.005514, 2: 3.79, 7: 0.005514, 3: 3.795}


@pytest.mark.parametrize("slack", [1e-6, 2e-7])
def test_a_program_on_the_edge_of_a_kept_row_is_solved(monkeypatch: pytest.MonkeyPatch, slack: float) -> None:
    monkeypatch.setattr(solver, "TOLERANCE", slack)
    stage = solver.minimise(_program(), [{8: 1.0}, COST])
    assert stage.values[8] == pytest.approx(0.95658, abs=1e-5)
    assert stage.bound > 0.17, "solved, not merely left at the first stage's point"


def test_a_program_without_any_point_is_an_error_that_says_so() -> None:
    program = Program([0.0], [1.0], [True], [(2.0, inf, {0: 1.0})])
    with pytest.raises(solver.SolverError, match="no feasible plan: Infeasible"):
        solver.minimise(program, [{0: 1.0}])
