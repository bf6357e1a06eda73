"""Which options can be part of a cheap pattern at all?  Reduced costs in the linear relaxation say it.

Relaxed, a pool buys fractions of nodes: spot where it is dense in capacity for its price, up to its shares, and the
densest steady class for the rest.  j nodes of an option cannot be part of a pattern that costs less than a ceiling if
the relaxation with them costs more.
"""

from typing import Final

import numpy as np

from berth_operator.planner.lanes import LANES, Floats, Ints, Lanes, compiled
from berth_operator.planner.native import FLOATS, INTS, LENGTH, function

_useful_nodes: Final = function("berth_useful_nodes", LANES, INTS, LENGTH, FLOATS, FLOATS, FLOATS, INTS)


def useful_nodes(lanes: Lanes, lane: Ints, node_price: Floats, penalty: Floats, ceiling: Floats) -> Ints:
    """[lane, option] nodes up to which an option can be part of a pattern that costs `ceiling` or less.

    `node_price` [lane, option], `penalty` [lane] USD/h for leaving all unserved, `ceiling` [lane].
    """
    times = np.zeros(node_price.shape, dtype=np.int64)
    _useful_nodes(compiled(lanes, lane, node_price), lane, len(lane), node_price, penalty, ceiling, times)
    return times
