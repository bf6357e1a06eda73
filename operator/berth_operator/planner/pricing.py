"""Which pattern of a pool is cheapest when the shared nodes have a price?  A dynamic program over quantised capacity.

The demand is cut into D units, D a hair above a whole number Q - 1.  With c_k the price of a node of option k (its own
and the shared rows' duals) and C_k(j) the units that j nodes of it carry, rounded *up*, spot at most a class's share
each:

    F(w) = least cost of steady nodes that carry w units,   G(t) = the same of spot nodes
    z    = min over t <= spot share of F(Q - t) + G(t)

What carries all of the demand carries Q whole units, since D units rounded up are Q; rounding up can only make covering
easier: z is a lower bound of the pool's true price (what makes the Lagrangian bound valid), and where the pattern
found serves all in exact arithmetic it is the price itself.  A pattern of one class is exact so, and m classes are
wrong by less than m - 1 units.  minReplicas and the floor beside spot are a second coordinate, replicas still wanted.
A vendor's share is a bound of its own: with A the options of one vendor and B the others, z >= min over y <= vendor
share of H_A(y) + H_B(Q - y), H = F and G together, units on spot at the price that keeps all vendors' to their share.

Each lane goes through by itself in compiled code (native/csrc/pricing.cpp, cover.cpp), with the options that can matter
(`useful`).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from berth_operator.planner.lanes import LANES, Flags, Floats, Ints, Lanes, compiled
from berth_operator.planner.native import FLAGS, FLOATS, INTS, LENGTH, NUMBER, function

LEAST: Final = 0.02
"""An unserved share, however small, weighs as much as this: no sliver is traded for a node's price."""
TOLERANCE: Final = 1e-6
"""Shares below this are nothing."""

_price: Final = function(
    "berth_price",
    *(LANES, INTS, LENGTH, FLOATS, FLOATS, NUMBER, FLOATS, LENGTH, NUMBER),
    *(FLOATS, INTS, FLAGS),
)


@dataclass(frozen=True, slots=True)
class Priced:
    """The cheapest patterns found, by lane."""

    bound: Floats
    """[lane] no pattern costs less, unless it is dearer than the ceiling."""
    nodes: Ints
    """[lane, option] of the pattern that attains it in quantised arithmetic, where one is below the ceiling."""
    below: Flags
    """[lane] whether one is."""


def price(
    lanes: Lanes,
    which: Ints,
    node_price: Floats,
    penalty: Floats,
    missing_price: float,
    ceiling: Floats,
    units: int,
    lacking: float = LEAST,
) -> Priced:
    """Price the lanes `which` at `node_price` [which, option] and `penalty` [which] USD/h for leaving all unserved.

    `ceiling` [which]: a pattern that costs more than this (infinite: unknown) need not be found.  `units`: Q - 1.
    `lacking`: what any unserved share weighs as much as.
    """
    count = len(which)
    bound, nodes, below = np.zeros(count), np.zeros(node_price.shape, dtype=np.int64), np.zeros(count, dtype=np.bool_)
    arrays = compiled(lanes, which, node_price)
    _price(arrays, which, count, node_price, penalty, missing_price, ceiling, units, lacking, bound, nodes, below)
    return Priced(bound, nodes, below)
