"""How does Prometheus Operator find a pool's workers?  A PodMonitor a pool, in the pool's own namespace."""

from collections.abc import Callable
from typing import Any

from berth_operator.api import InferencePool
from berth_operator.api.names import CAPACITY_TYPE_LABEL, HARDWARE_CLASS_LABEL, POD_MONITOR, POOL_LABEL
from berth_operator.render.settings import RenderSettings

Manifest = dict[str, Any]


def pod_monitor(pool: InferencePool, settings: RenderSettings, metadata: Callable[..., Manifest]) -> Manifest:
    """Scrapes each worker of a pool, and says which pool and hardware it is of, as the chart's own PodMonitor does."""
    group = POD_MONITOR.partition(".")[2]
    name = pool.metadata.name
    labels = (
        ("__meta_kubernetes_namespace", "pool_namespace"),
        *(
            (f"__meta_kubernetes_pod_label_{_discovered(label)}", label.rpartition("/")[2].replace("-", "_"))
            for label in (POOL_LABEL, HARDWARE_CLASS_LABEL, CAPACITY_TYPE_LABEL)
        ),
    )
    return {
        "apiVersion": f"{group}/v1",
        "kind": "PodMonitor",
        "metadata": metadata(pool, name, dict(settings.pod_monitor_labels)),
        "spec": {
            "selector": {"matchLabels": {POOL_LABEL: name}},
            "podMetricsEndpoints": [
                {
                    "port": "http",
                    "interval": settings.pod_monitor_interval,
                    "relabelings": [{"sourceLabels": [source], "targetLabel": target} for source, target in labels],
                }
            ],
        },
    }


def _discovered(label: str) -> str:
    """A label's name as Prometheus's discovery writes it."""
    return "".join(c if c.isalnum() else "_" for c in label)
