"""What is the cheapest pattern of every pool at given prices, how much does it really cost, and how sure is that?

Quantised pricing may find a pattern that in exact arithmetic leaves a sliver unserved.  Such patterns are mended node
by node; where the mended one costs more than the bound, the lane is priced again on a finer grid.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from berth_operator.planner.lanes import LANES, Floats, Ints, Lanes, Served, compiled, served_by
from berth_operator.planner.native import FLOATS, INTS, LENGTH, NUMBER, function
from berth_operator.planner.pricing import LEAST, TOLERANCE, price

FINER: Final = 4
"""Times as many units for lanes whose answer was not exact."""
FINER_BY_VENDOR: Final = 2
"""The same where vendors' shares are bounded, which takes the square of it."""
EXACT: Final = 5e-4
"""Relative difference between patterns and bounds, of all lanes together, that is left alone."""
_MOST_TRIES: Final = 4
_MOST_MENDS: Final = 3
_MOST_EXCHANGES: Final = 8

_better: Final = function(
    "berth_better", LANES, FLOATS, FLOATS, NUMBER, NUMBER, INTS, LENGTH, LENGTH, LENGTH, INTS, FLOATS
)


@dataclass(frozen=True, slots=True)
class Prices:
    """What things cost at one point of the search."""

    node: Floats
    """[lane, option] USD/h of a node, shared rows' duals included."""
    unserved: Floats
    """[lane] USD/h for leaving all demand unserved."""
    missing: float
    """USD/h for a replica missing to minReplicas."""
    least: float = LEAST
    """What an unserved share, however small, weighs as much as."""

    def of(self, lane: Ints, nodes: Ints, served: Served) -> Floats:
        """USD/h of patterns [pattern, option] of lanes [pattern]; infinite for those that break a rule."""
        cost: Floats = (nodes * self.node[lane]).sum(1)
        cost = cost + counted(served.unserved, self.least) * self.unserved[lane] + served.missing * self.missing
        return np.where(served.allowed, cost, np.inf)


def counted(unserved: Floats, least: float = LEAST) -> Floats:
    """Unserved shares as they weigh: any at all counts as `least`, lest a sliver be traded for a node's price."""
    return np.where(unserved > TOLERANCE, np.maximum(unserved, least), 0.0)


@dataclass(frozen=True, slots=True)
class Found:
    """Cheapest patterns of some lanes."""

    lane: Ints
    nodes: Ints
    """[lane, option]"""
    cost: Floats
    """Of the patterns, exactly; infinite where one breaks budget or maxReplicas, or none is below the ceiling."""
    bound: Floats


def cheapest(
    lanes: Lanes,
    which: Ints,
    prices: Prices,
    ceiling: Floats,
    units: int,
    exact: float = EXACT,
    again: int = 1,
    worth: float | None = None,
) -> Found:
    """Bounds and patterns of the lanes `which`; up to `again` times, on a finer grid each, those of them that differ
    by more than `exact`, of `worth` USD/h if that is given, else of what the patterns of all come to.

    See `pricing.price`.
    """
    found = _once(lanes, which, prices, ceiling, units)
    _within_rules(lanes, prices, found, ceiling, units)
    _polish_loose(lanes, prices, found, ceiling, exact, worth)
    for turn in range(1, again + 1):
        known = np.minimum(found.cost, ceiling)
        loose = _loosest(known, found.bound, exact, worth)
        if not len(loose):
            break
        shared = lanes.vendor_share[which[loose]] < 1
        for part, finer in ((loose[~shared], FINER), (loose[shared], FINER_BY_VENDOR)):
            if len(part):
                better = _once(lanes, which[part], prices, known[part], units * finer**turn)
                _polish_loose(lanes, prices, better, known[part], 0.0)
                cheaper = better.cost < found.cost[part]
                found.nodes[part[cheaper]] = better.nodes[cheaper]
                found.cost[part] = np.minimum(found.cost[part], better.cost)
                found.bound[part] = np.maximum(found.bound[part], np.minimum(better.bound, known[part]))
    return found


def _polish_loose(
    lanes: Lanes, prices: Prices, found: Found, ceiling: Floats, exact: float, worth: float | None = None
) -> None:
    """Better the patterns that are not known to be the cheapest."""
    loose = _loosest(np.minimum(found.cost, ceiling), found.bound, exact, worth)
    loose = loose[np.isfinite(found.cost[loose])]
    if len(loose):
        bettered = polish(lanes, found.lane[loose], found.nodes[loose], found.cost[loose], prices)
        found.nodes[loose], found.cost[loose] = bettered


def _loosest(known: Floats, bound: Floats, exact: float, worth: float | None) -> Ints:
    """The fewest lanes without which bounds and patterns differ by `exact` of all together, or of `worth` USD/h."""
    gap = np.where(np.isfinite(known), np.maximum(known - bound, 0.0), 0.0)
    order = np.argsort(gap, kind="stable")
    allowed = exact * (float(known[np.isfinite(known)].sum()) if worth is None else worth)
    return np.sort(order[np.cumsum(gap[order]) > allowed])


def _within_rules(lanes: Lanes, prices: Prices, found: Found, ceiling: Floats, units: int) -> None:
    """Price lanes whose pattern breaks budget or maxReplicas again with that rule in the price (Lagrange), so that
    nodes that use much of it get dearer: the bound stays one, and patterns come within."""
    broken = np.flatnonzero(~served_by(lanes, found.lane, found.nodes).allowed)
    if not len(broken):
        return
    lane = found.lane[broken]
    spent = (-(-found.nodes[broken] // lanes.parts[lane]) * lanes.usd[lane]).sum(1) > lanes.budget[lane]
    # A node need not be full: of its replicas only one is certain.
    weight = np.where(spent[:, None], lanes.usd[lane] / lanes.parts[lane], 1.0)
    most = np.where(spent, lanes.budget[lane], lanes.most_replicas[lane])
    scale = np.maximum(found.bound[broken], 1e-3) / np.maximum(most, 1e-6)
    low, high = np.zeros(len(lane)), np.full(len(lane), np.inf)
    factor = np.full(len(lane), 0.5)
    for _ in range(_MOST_TRIES):
        value = factor * scale
        node = prices.node.copy()
        node[lane] = prices.node[lane] + value[:, None] * weight
        dearer = replace(prices, node=node)
        priced = price(
            lanes,
            lane,
            node[lane],
            prices.unserved[lane],
            prices.missing,
            ceiling[broken] + value * most,
            units,
            prices.least,
        )
        nodes, _ = mend(lanes, lane, priced.nodes, dearer)
        served = served_by(lanes, lane, nodes)
        cost = prices.of(lane, nodes, served)
        better = cost < found.cost[broken]
        found.nodes[broken[better]], found.cost[broken[better]] = nodes[better], cost[better]
        found.bound[broken] = np.maximum(found.bound[broken], priced.bound - value * most)
        low, high = np.where(served.allowed, low, factor), np.where(served.allowed, factor, high)
        factor = np.where(np.isfinite(high), (low + np.minimum(high, 1e6)) / 2, 4 * factor)


def _once(lanes: Lanes, which: Ints, prices: Prices, ceiling: Floats, units: int) -> Found:
    node, unserved = prices.node[which], prices.unserved[which]
    priced = price(lanes, which, node, unserved, prices.missing, ceiling, units, prices.least)
    nodes, cost = priced.nodes, np.full(len(which), np.inf)
    below = np.flatnonzero(priced.below)
    nodes[below], cost[below] = mend(lanes, which[below], nodes[below], prices)
    return Found(which, nodes, cost, priced.bound)


def mend(lanes: Lanes, lane: Ints, nodes: Ints, prices: Prices) -> tuple[Ints, Floats]:
    """Patterns with a node more here and there, where that is cheaper than what they leave unserved; and their cost."""
    cost = prices.of(lane, nodes, served_by(lanes, lane, nodes))
    return _bettered(lanes, lane, nodes, cost, prices, _MOST_MENDS, exchange=False)


def polish(lanes: Lanes, lane: Ints, nodes: Ints, cost: Floats, prices: Prices) -> tuple[Ints, Floats]:
    """Patterns of known cost, with nodes added, taken away or exchanged one for one while that makes them cheaper."""
    return _bettered(lanes, lane, nodes, cost, prices, _MOST_EXCHANGES, exchange=True)


def _bettered(
    lanes: Lanes, lane: Ints, nodes: Ints, cost: Floats, prices: Prices, most: int, *, exchange: bool
) -> tuple[Ints, Floats]:
    nodes, cost = nodes.copy(), cost.copy()
    of = compiled(lanes, lane, nodes)
    node, unserved = prices.node[lane], prices.unserved[lane]
    _better(of, node, unserved, prices.missing, prices.least, lane, len(lane), most, exchange, nodes, cost)
    return nodes, cost
