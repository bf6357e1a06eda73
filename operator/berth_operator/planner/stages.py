"""How is a model divided over the nodes of one replica, and what passes between them?

Pipeline parallel over the nodes, tensor parallel within each, as vLLM recommends for a model too large for a node
(https://docs.vllm.ai/en/latest/serving/parallelism_scaling/): a node is a stage that holds consecutive layers, and no
all-reduce leaves a node.  The requests that decode at once are divided into as many groups as there are stages; while
one group is in a stage, the others are in the other ones.  So each of n nodes reads its n-th part of the weights n
times for a token of every request, and a token's latency is the sum over all stages; what grows with n is memory, and
with it the requests that decode at once.
"""

import math
from typing import Final

from berth_operator.api import HardwareClassSpec
from berth_operator.planner.architectures import Architecture

DEFAULT_INTERCONNECT_GBPS: Final = 10
"""Where `spec.interconnectGbps` is unset: the least that EC2 promises, in bursts, for instances with a GPU."""
HOP_SECONDS: Final = 100e-6
"""From one stage to the next, beside the bytes: two kernels' networking stacks and a switch.  An assumption."""
_TENSORS: Final = 2
"""vLLM hands the hidden states and the residual to the next stage."""
_BYTES: Final = 2
"""Of an activation: bf16."""


def stage_share(layers: int, nodes: int) -> float:
    """Share of the layers that the fullest stage holds: layers are not divided."""
    return math.ceil(layers / nodes) / layers


def slowest(layers: int, nodes: int) -> float:
    """How much longer a round over all stages takes because the fullest one sets the pace: 1 where layers divide."""
    return nodes * stage_share(layers, nodes)


def sent_seconds(spec: HardwareClassSpec, architecture: Architecture, nodes: int) -> float:
    """Time that one token's activations take on the way through all stages."""
    bytes_per_second = (spec.interconnect_gbps or DEFAULT_INTERCONNECT_GBPS) * 1e9 / 8
    return (nodes - 1) * architecture.hidden * _TENSORS * _BYTES / bytes_per_second


def hop_seconds(nodes: int) -> float:
    """Messages of one step: from stage to stage, and the sampled tokens back to the first; none on one node."""
    return nodes * HOP_SECONDS if nodes > 1 else 0.0
