"""Which options can be part of a cheap pattern at all?  Reduced costs in the linear relaxation say it.

Relaxed, a pool buys fractions of nodes: spot where it is dense in capacity for its price, up to its shares, and the
densest steady class for the rest.  j nodes of an option cannot be part of a pattern that costs less than a ceiling if
the relaxation with them costs more.
"""

from typing import Final

import numpy as np

from berth_operator.planner.lanes import Flags, Floats, Ints, Lanes
from berth_operator.planner.zones import ROUNDS

_HUGE: Final = 1e30


def uses_spot(lanes: Lanes, which: Ints) -> Flags:
    """[which] whether a lane may put traffic on spot."""
    flags: Flags = (lanes.spot[which] & (lanes.most[which] > 0)).any(1) & (lanes.spot_share[which] > 0)
    return flags


def useful_nodes(lanes: Lanes, lane: Ints, node_price: Floats, penalty: Floats, ceiling: Floats) -> Ints:
    """[lane, option] nodes up to which an option can be part of a pattern that costs `ceiling` or less.

    `node_price` [lane, option], `penalty` [lane] USD/h for leaving all unserved, `ceiling` [lane].
    """
    spot, a, s = lanes.spot[lane], lanes.most_lost(lane), lanes.spot_share[lane]
    # Of a node that could carry more than it may, the rest is worth nothing.
    share = np.minimum(lanes.share[lane], np.where(spot, np.minimum(a, s[:, None]), 1.0))
    # Spot that may carry nothing still counts as a replica.
    idle = spot & ((lanes.spot_share[lane] <= 0) & (lanes.least[lane] <= 1))[:, None]
    available = np.where(idle, 0, lanes.most[lane])
    usable = (available > 0) & (lanes.share[lane] > 0)
    wide = np.maximum(share, 1e-12)
    density = np.where(usable, node_price / wide, _HUGE)
    steady = np.minimum(np.where(spot, _HUGE, density).min(1), penalty)  # value of a unit carried by steady nodes
    order = np.argsort(np.where(spot, density, _HUGE), axis=1)
    room = np.take_along_axis(np.where(spot & usable, np.minimum(a, available * share), 0.0), order, 1)
    sorted_density = np.take_along_axis(np.where(spot, density, _HUGE), order, 1)
    filled = np.cumsum(np.where(sorted_density < steady[:, None], room, 0.0), 1)
    at = np.argmax(filled >= s[:, None], 1)
    last = np.take_along_axis(sorted_density, at[:, None], 1)[:, 0]
    marginal = np.minimum(np.where(filled[:, -1] >= s, last, steady), steady)
    useful = np.ceil(np.where(spot, np.minimum(a, 1.0), 1.0) / wide - 1e-9)
    if lanes.spread_out:
        useful = np.where(lanes.spread[lane] > 0, _useful_rounds(lanes, lane, wide, available), useful)
    floor = np.maximum(lanes.least[lane], np.where(uses_spot(lanes, lane), lanes.floor[lane], 0))
    useful = np.maximum(useful, -(-floor[:, None] // lanes.per_node[lane]))
    most = np.minimum(useful, available)
    each = node_price - np.where(spot, marginal[:, None], steady[:, None]) * share
    whole = np.floor(np.where(spot, a, np.inf) / wide + 1e-9)
    # Spot below the marginal density pays until its share is full: the better of both roundings is allowed for.
    up = np.where(spot, np.minimum(whole + 1, available), 0.0)
    gain = np.minimum(
        0.0,
        np.minimum(
            np.minimum(whole, available) * each, up * node_price - marginal[:, None] * np.minimum(up * share, a)
        ),
    )
    gain = np.where(spot & usable, gain, 0.0)
    relaxed = steady - (steady - marginal) * s + gain.sum(1)
    slack = np.maximum(ceiling - relaxed, 0.0) * (1 + 1e-9) + 1e-9
    room_for = np.floor(np.minimum(slack[:, None] / np.maximum(each, 1e-15), 1e9))
    times = np.where(each > 0, np.minimum(most, room_for), most)
    return np.where(usable, times, 0).astype(np.int64)


def _useful_rounds(lanes: Lanes, lane: Ints, wide: Floats, available: Ints) -> Floats:
    """[lane, option] nodes from which more carry no more, where they lie in several zones.

    As many in each zone as may be lost of one; not known where several replicas share a node, nor beyond `ROUNDS`.
    """
    rounds = np.ceil(lanes.loss_share[lane][:, None] / wide - 1e-9)
    zones = lanes.zones[lane]
    known = (lanes.per_node[lane] == 1) & (rounds <= ROUNDS)
    return np.where(known, rounds * zones, available)
