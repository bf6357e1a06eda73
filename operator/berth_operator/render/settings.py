"""What do the chart's values decide for every worker?"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RenderSettings:
    """Images of the runtimes that we render; a hardware class may name its own."""

    worker_image: str = "berth-worker:0.1.0"
    vllm_image: str = "vllm/vllm-openai:v0.11.0"
    image_pull_policy: str = "IfNotPresent"
