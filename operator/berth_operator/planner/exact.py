"""What is the cheapest pattern of one pool, exactly?  The flat program of that pool alone, at the duals' prices.

For the rules that quantised pricing does not know, and for the few pools where it leaves a gap.
"""

from dataclasses import replace
from typing import Final

import numpy as np

from berth_operator.planner.lanes import Ints, Lanes
from berth_operator.planner.patterns import Prices
from berth_operator.planner.program import Program, add_pool, cost_terms
from berth_operator.planner.solver import ROUGH_NODES, SolverError, minimise_roughly
from berth_operator.planner.useful import useful_nodes

_MORE: Final = 1e-4
"""By which a pattern that is known may cost more in the flat program, relative and in USD/h, where a replica more costs
a little (`program.cost_terms`): far less than a replica does."""


def exact_pattern(
    lanes: Lanes,
    lane: int,
    prices: Prices,
    ceiling: float,
    within: float | None = None,
    most_nodes: int = ROUGH_NODES,
) -> tuple[Ints, float] | None:
    """([option] nodes, lower bound of the price) of a lane's cheapest pattern; None if HiGHS has none up to `ceiling`,
    what a pattern that is known costs.

    The bound is the lesser of that and what no pattern is below, less up to `within` USD/h (0.1 %), or more where
    `most_nodes` of branch and bound do not do.
    """
    one = np.array([lane])
    times = useful_nodes(lanes, one, prices.node[one], prices.unserved[one], np.array([ceiling]))[0]
    if lanes.odd[lane]:
        times = lanes.most[lane]
    kept = [k for k in range(len(lanes.options[lane])) if times[k] > 0]
    problem = replace(lanes.problems[lanes.pool[lane]], options=tuple(lanes.options[lane][k] for k in kept))
    program = Program()
    columns = add_pool(program, problem, lanes.limits)
    terms = cost_terms(problem, columns)
    for at, k in zip(columns.nodes, kept, strict=True):
        dearer = float(prices.node[lane, k] - lanes.price[lane, k]) / float(lanes.span[lane, k])
        terms[at] = terms.get(at, 0.0) + dearer
    terms[columns.unserved] = float(prices.unserved[lane])
    if columns.missing is not None:
        terms[columns.missing] = prices.missing
    try:
        point = minimise_roughly(program, terms, within, most_nodes, ceiling * (1 + _MORE) + _MORE)
    except SolverError:
        return None
    nodes = np.zeros(lanes.share.shape[1], dtype=np.int64)
    for at, k in zip(columns.replicas, kept, strict=True):
        nodes[k] = -(-round(point.values[at]) // lanes.per_node[lane, k])
    return nodes, min(ceiling, point.bound)
