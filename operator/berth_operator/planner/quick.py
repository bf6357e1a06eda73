"""Which patterns are likely good?  Guesses that cost little: they fill the master before anything is priced exactly.

Spot first: the densest (cheapest per share of demand) classes up to the spot share, none to five of them, each with as
many nodes as its loss share takes.  The rest on steady nodes: whole nodes of a dense class, and the cheapest single
class for the remainder.  Where vendors' shares are bounded, the two cheapest vendors split the demand instead.
"""

from typing import Final

import numpy as np

from berth_operator.planner.lanes import LANES, Floats, Ints, Lanes, compiled
from berth_operator.planner.native import FLOATS, INTS, LENGTH, function

DENSE: Final = 5
"""Steady options that may carry the bulk."""
SPOT_CLASSES: Final = 5

_guesses: Final = function("berth_guesses", LANES, FLOATS, INTS, LENGTH, LENGTH, LENGTH, LENGTH, INTS)


def guesses(lanes: Lanes, which: Ints, node_price: Floats) -> Ints:
    """[guess, which, option] nodes, with them at `node_price` [which, option]."""
    options = lanes.share.shape[1]
    by_vendor = bool((lanes.vendor_share[which] < 1).any())
    found = np.zeros((min(SPOT_CLASSES, options) + 1 + by_vendor, len(which), options), dtype=np.int64)
    of = compiled(lanes, which, node_price)
    _guesses(of, np.ascontiguousarray(node_price), which, len(which), DENSE, SPOT_CLASSES, by_vendor, found)
    return found
