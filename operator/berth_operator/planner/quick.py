"""Which patterns are likely good?  Guesses that cost little: they fill the master before anything is priced exactly.

Spot first: the densest (cheapest per share of demand) classes up to the spot share, none to five of them, each with as
many nodes as its loss share takes.  The rest on steady nodes: whole nodes of a dense class, and the cheapest single
class for the remainder.  Where vendors' shares are bounded, the two cheapest vendors split the demand instead.
"""

from typing import Final

import numpy as np

from berth_operator.planner.lanes import Floats, Ints, Lanes

DENSE: Final = 5
"""Steady options that may carry the bulk."""
SPOT_CLASSES: Final = 5
_HUGE: Final = 1e30


def guesses(lanes: Lanes, which: Ints, node_price: Floats) -> list[Ints]:
    """[guess][which, option] nodes."""
    share, spot = lanes.share[which], lanes.spot[which]
    usable = (lanes.most[which] > 0) & (share > 0)
    density = np.where(usable, node_price / np.maximum(share, 1e-12), _HUGE)
    room = np.maximum(lanes.most[which] * share, 0.0)
    one = np.ones(len(which))
    found = []
    spot_nodes, carried = np.zeros(share.shape, dtype=np.int64), np.zeros(len(which))
    order = np.argsort(np.where(spot, density, _HUGE), axis=1, kind="stable")
    rows, alone = np.arange(len(which)), lanes.most_lost(which)
    for step in range(min(SPOT_CLASSES, share.shape[1]) + 1):
        steady = _steady(np.where(spot, _HUGE, density), np.where(spot, _HUGE, node_price), share, room, one - carried)
        found.append(steady + spot_nodes)
        if step == share.shape[1]:
            break
        k = order[:, step]
        use = spot[rows, k] & usable[rows, k]
        most = np.minimum(alone[rows, k], lanes.spot_share[which] - carried)
        nodes = np.where(use, np.ceil(most / np.maximum(share[rows, k], 1e-12) - 1e-9), 0)
        nodes = np.clip(nodes, 0, lanes.most[which][rows, k]).astype(np.int64)
        if lanes.spread_out:
            most = np.minimum(most, lanes.loss_share[which] * lanes.spread_of(which, k, nodes))
        spot_nodes = spot_nodes.copy()
        spot_nodes[rows, k] += nodes
        carried = carried + np.minimum(nodes * share[rows, k], np.maximum(most, 0.0))
    if (lanes.vendor_share[which] < 1).any():
        found.append(_two_vendors(lanes, which, np.where(spot, _HUGE, density), node_price, share, room))
    return found


def _steady(density: Floats, node_price: Floats, share: Floats, room: Floats, rest: Floats) -> Ints:
    """[lane, option] whole nodes of one dense option, and the remainder of `rest` on the cheapest option for it."""
    rows = np.arange(len(rest))
    nodes = np.zeros(share.shape, dtype=np.int64)
    wide = np.maximum(share, 1e-12)
    best = np.full(len(rest), np.inf)
    bulk_of, bulk_nodes, last_of, last_nodes = (np.zeros(len(rest), dtype=np.int64) for _ in range(4))
    order = np.argsort(density, axis=1, kind="stable")
    usable = density < _HUGE
    for step in range(min(DENSE, share.shape[1])):
        k = order[:, step]
        whole = np.floor(np.minimum(rest, room[rows, k]) / wide[rows, k] + 1e-9)
        left = np.maximum(rest - whole * share[rows, k], 0.0)
        left = np.where(left < 1e-9, 0.0, left)
        count = np.ceil(left[:, None] / wide - 1e-9)
        fits = usable & (count * share <= room + share * 1e-9)
        finish = np.where(fits, count * np.where(usable, node_price, 0.0), np.where(left[:, None] > 0, _HUGE, 0.0))
        j = np.argmin(finish, 1)
        cost = whole * node_price[rows, k] + finish[rows, j]
        better = (cost < best) & usable[rows, k]
        best = np.where(better, cost, best)
        bulk_of, bulk_nodes = np.where(better, k, bulk_of), np.where(better, whole, bulk_nodes)
        last_of, last_nodes = (
            np.where(better, j, last_of),
            np.where(better, np.where(left > 0, count[rows, j], 0), last_nodes),
        )
    nodes[rows, bulk_of] += bulk_nodes.astype(np.int64)
    nodes[rows, last_of] += last_nodes.astype(np.int64)
    return nodes


def _two_vendors(lanes: Lanes, which: Ints, density: Floats, node_price: Floats, share: Floats, room: Floats) -> Ints:
    vendor, most = lanes.vendor[which], lanes.vendor_share[which]
    count = int(vendor.max(initial=0)) + 1
    best = np.stack([np.where(vendor == v, density, _HUGE).min(1) for v in range(count)], 1)
    order = np.argsort(best, axis=1, kind="stable")
    nodes = np.zeros(share.shape, dtype=np.int64)
    part = np.minimum(most, 1.0)
    for place, rest in ((0, part), (1, 1 - part)) if count > 1 else ((0, part),):
        mine = vendor == order[:, place][:, None]
        masked = np.where(mine, density, _HUGE)
        nodes += _steady(masked, np.where(masked < _HUGE, node_price, _HUGE), share, room, rest)
    return nodes
