"""Which hardware, how much of it, for every pool at once, and why?  Pure: Snapshot in, Plan out."""

from berth_operator.planner.types import (
    Candidate,
    Placement,
    Plan,
    PoolPlan,
    Problem,
    ReplicaCapacity,
    RunningPlacement,
    ShadowPrice,
    Snapshot,
    Verdict,
)

__all__ = [
    "Candidate",
    "Placement",
    "Plan",
    "PoolPlan",
    "Problem",
    "ReplicaCapacity",
    "RunningPlacement",
    "ShadowPrice",
    "Snapshot",
    "Verdict",
]
