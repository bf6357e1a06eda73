"""What do the chart's values, and the kinds that the API server serves, decide for every pool?"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RenderSettings:
    """Images of the runtimes that we render (a hardware class may name its own), and which optional kinds we may."""

    worker_image: str = "berth-worker:0.1.0"
    vllm_image: str = "vllm/vllm-openai:v0.12.0"
    image_pull_policy: str = "IfNotPresent"
    pod_monitor_labels: Mapping[str, str] = field(default_factory=dict)
    """By which a Prometheus selects PodMonitors."""
    pod_monitor_interval: str = "15s"
    available: frozenset[str] = frozenset()
    """Kinds of others (`Kind.group`) that the chart allows and the API server serves now."""
