"""Over how many nodes does a replica go that does not fit one, and why not?"""

import math
from collections.abc import Mapping
from typing import Final

from berth_operator.api import HardwareClass, HardwareClassSpec
from berth_operator.planner.types import ReplicaCapacity

NOT_INSTALLED: Final = "LeaderWorkerSet is not installed, or the chart's integrations.leaderWorkerSet.enabled is false"


def most_nodes(spec: HardwareClassSpec) -> int:
    """Nodes that one replica may span on a class."""
    return spec.max_nodes_per_replica or 1


def objection(hardware: HardwareClass, nodes: int, *, spanning: bool) -> str | None:
    """Why a replica of `nodes` nodes cannot be had on a class; None where it can.

    `spanning`: LeaderWorkerSets can be made.
    """
    if nodes == 1:
        return None
    if nodes > (most := most_nodes(hardware.spec)):
        return f"a replica spans {nodes} nodes, and maxNodesPerReplica of {hardware.metadata.name} is {most}"
    return None if spanning else f"a replica spans {nodes} nodes: {NOT_INSTALLED}"


def chosen(widths: Mapping[int, ReplicaCapacity], demand: float, running: int | None, percent: int) -> int:
    """The number of nodes a replica, of those that keep the objectives, by which the demand takes the fewest nodes;
    of equals the lesser, which loses less with a node.

    `running`: what runs now stays unless another takes `percent` fewer nodes, so that demand that comes and goes does
    not replace every worker.
    """

    def nodes(width: int) -> int:
        return width * max(1, math.ceil(demand / widths[width].turns_per_second - 1e-9))

    best = min(widths, key=lambda width: (nodes(width), width))
    if running is not None and running in widths and nodes(best) * 100 > nodes(running) * (100 - percent):
        return running
    return best
