"""A real Kubernetes control plane with simulated nodes, without containers, for tests and demo."""

from devcluster.audit import AuditEvent
from devcluster.binaries import ensure
from devcluster.controlplane import ControlPlane, KubectlError
from devcluster.hardware import graviton4, on_demand
from devcluster.nodes import SimulatedNodePool
from devcluster.processes import ProcessError, wait_for
from devcluster.recipes import ToolError

__all__ = [
    "AuditEvent",
    "ControlPlane",
    "KubectlError",
    "ProcessError",
    "SimulatedNodePool",
    "ToolError",
    "ensure",
    "graviton4",
    "on_demand",
    "wait_for",
]
