"""Which Kubernetes objects does a plan stand for?  Pure: Plan and Snapshot in, plain objects out."""

from berth_operator.render.objects import activation_slice, placement_id, render, render_hash
from berth_operator.render.routing import LiveDeployment
from berth_operator.render.settings import RenderSettings

__all__ = ["LiveDeployment", "RenderSettings", "activation_slice", "placement_id", "render", "render_hash"]
