"""What does the loss of one zone take of a spot placement whose class lies in several?

The pods of a spot placement are held apart when they are scheduled (`render.pod`: `maxSkew` of one node's replicas,
`DoNotSchedule`, as many domains as zones), which bounds the fullest zone. With r replicas, m a node, Z zones:

    F(r) = min(r, floor((r + (Z - 1) m) / Z))        which is ceil(r / Z) for m = 1

A placement's traffic is even over its replicas. The loss of its fullest zone takes F(r) / r of it, where a class in one
zone would lose all: what one zone may lose, it may lose r / F(r) times over. That factor is the spread of its nodes. It
does not grow with every node: in three zones four nodes (2 + 1 + 1) spread by 2, three by 3.

Beyond `ROUNDS` nodes a zone the spread is counted as that of the first of as many nodes, twice, four times as many and
so on, which is the least among them: a rule of few steps at any size, never looser than the truth.
"""

from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

ROUNDS: Final = 4
"""Nodes a zone up to which every number of nodes has a spread of its own."""


def fullest(replicas: int, zones: int, per_node: int = 1) -> int:
    """Replicas in the fullest of `zones` at the most."""
    return min(replicas, (replicas + (zones - 1) * per_node) // zones)


@cache
def spread(nodes: int, zones: int, per_node: int = 1) -> float:
    """Times that one zone's share of traffic fits into a placement of `nodes`: 1 where all could be lost at once."""
    if zones <= 1 or nodes <= 1:
        return 1.0
    first, block = nodes, ROUNDS * zones
    if nodes > block:
        while nodes > 2 * block:
            block *= 2
        first = block + 1
    return min(r / fullest(r, zones, per_node) for r in range((first - 1) * per_node + 1, first * per_node + 1))


def spreads(most: int, zones: int, per_node: int = 1) -> npt.NDArray[np.float64]:
    """[nodes] the spread of 0 to `most` nodes."""
    return np.array([spread(n, zones, per_node) for n in range(most + 1)])


def steps(most: int, zones: int, per_node: int, alone: float, enough: float) -> list[tuple[int, int, float]]:
    """(nodes from, nodes to, share of traffic) of a placement, 0 to `most` nodes, in as few steps as tell it apart.

    `alone`: share that one zone may lose. Shares of `enough` or more are as good as `enough`.
    """
    found: list[tuple[int, int, float]] = []
    for n in range(most + 1):
        share = min(alone * spread(n, zones, per_node), enough)
        if found and found[-1][2] == share:
            found[-1] = (found[-1][0], n, share)
        else:
            found.append((n, n, share))
    return found
