"""Which hardware, how much of it, for every pool at once, and why?  Pure: Snapshot in, Plan out."""

from berth_operator.planner.architectures import ARCHITECTURES, Architecture
from berth_operator.planner.counterfactual import savings_percent
from berth_operator.planner.planning import Planned, plan, planned
from berth_operator.planner.replanning import amended, better, carried, replanned
from berth_operator.planner.restoring import restored
from berth_operator.planner.staying import why_hold
from berth_operator.planner.types import (
    AtFault,
    Candidate,
    Placement,
    Plan,
    PoolPlan,
    Problem,
    ReplicaCapacity,
    RunningPlacement,
    ShadowPrice,
    Shortage,
    Snapshot,
    Stay,
    Verdict,
)

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "AtFault",
    "Candidate",
    "Placement",
    "Plan",
    "Planned",
    "PoolPlan",
    "Problem",
    "ReplicaCapacity",
    "RunningPlacement",
    "ShadowPrice",
    "Shortage",
    "Snapshot",
    "Stay",
    "Verdict",
    "amended",
    "better",
    "carried",
    "plan",
    "planned",
    "replanned",
    "restored",
    "savings_percent",
    "why_hold",
]
