"""Which nodes does the demo's cluster pretend to have?  The instance types that `examples/hardware.yaml` selects."""

from devcluster import SimulatedNodePool

_ZONES = ("us-east-1a", "us-east-1b")
_GPU_TAINT = ("nvidia.com/gpu=present:NoSchedule",)


def _graviton4(count: int, capacity_type: str) -> SimulatedNodePool:
    spot = capacity_type == "spot"
    return SimulatedNodePool(
        name="graviton4-spot" if spot else "graviton4",
        count=count,
        instance_type="c8g.4xlarge",
        architecture="arm64",
        cpu=16,
        memory="32Gi",
        capacity_type="spot" if spot else "on-demand",
        zones=_ZONES,
    )


def _gpu(name: str, count: int, instance_type: str, cpu: int, memory: str, capacity_type: str) -> SimulatedNodePool:
    spot = capacity_type == "spot"
    return SimulatedNodePool(
        name=f"{name}-spot" if spot else name,
        count=count,
        instance_type=instance_type,
        architecture="amd64",
        cpu=cpu,
        memory=memory,
        capacity_type="spot" if spot else "on-demand",
        zones=_ZONES,
        gpus=1,
        taints=_GPU_TAINT,
    )


NODES = (
    SimulatedNodePool("system", 1, "m7g.large", "arm64", 2, "8Gi", zones=_ZONES),  # where the operator's pods fit
    _graviton4(3, "on-demand"),
    _graviton4(2, "spot"),
    _gpu("l4", 2, "g6.xlarge", 4, "16Gi", "on-demand"),
    _gpu("l4", 2, "g6.xlarge", 4, "16Gi", "spot"),
    _gpu("h100", 1, "p5.4xlarge", 16, "256Gi", "on-demand"),
    _gpu("h100", 1, "p5.4xlarge", 16, "256Gi", "spot"),
)
