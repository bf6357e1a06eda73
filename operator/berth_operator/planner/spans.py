"""Does a replica fit a node, and if not, over how many does it go, and why not?"""

import math
from collections.abc import Mapping
from typing import Final

from berth_operator.api import HardwareClass, HardwareClassSpec, Quantization, RuntimeName
from berth_operator.planner.architectures import Architecture
from berth_operator.planner.speed import GIB, devices, efficiency_of, roofline_kv_tokens, usable_bytes
from berth_operator.planner.stages import stage_share
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


def too_large(
    spec: HardwareClassSpec, architecture: Architecture, quantization: Quantization, context_tokens: int, nodes: int = 1
) -> str | None:
    """The arithmetic when weights and the KV of one request exceed a node's memory; None when they fit.

    Of several nodes a replica, that of the fullest.
    """
    runtime: RuntimeName = spec.runtime.name
    if roofline_kv_tokens(spec, architecture, quantization, nodes) >= context_tokens:
        return None
    share = stage_share(architecture.layers, nodes)
    weights = architecture.resident_bytes(quantization, runtime) / GIB
    if nodes > 1:
        weights = architecture.stage_bytes(quantization, runtime, share) / GIB
    kv = architecture.kv_bytes_per_token(runtime) * share * context_tokens / GIB
    kept = efficiency_of(spec)
    overhead = f"{1 - kept.usable_memory:.0%}".replace("%", " %")
    if kept.reserve_gib_per_device:
        overhead += f" and {devices(spec) * kept.reserve_gib_per_device:g} GiB"
    return (
        f"weights {weights:.1f} GiB + KV of one request {kv:.1f} GiB = {weights + kv:.1f} GiB"
        f" > {usable_bytes(spec) / GIB:.1f} GiB ({spec.memory_gib} GiB less {overhead} kept for the runtime)"
    )


def widths(
    spec: HardwareClassSpec, architecture: Architecture, quantization: Quantization, context_tokens: int
) -> list[int]:
    """Numbers of nodes, above 1, over which a replica fits and may go, by every capacity that holds one at all."""
    most = min(most_nodes(spec), architecture.layers)
    fit = [n for n in range(2, most + 1) if roofline_kv_tokens(spec, architecture, quantization, n) >= context_tokens]
    there = [c.max_nodes for c in spec.capacity if c.max_nodes is not None and fit and c.max_nodes >= fit[0]]
    return [n for n in fit if n <= min(there, default=n)]


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
