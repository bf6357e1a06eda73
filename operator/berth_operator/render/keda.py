"""How does KEDA drive a pool's demand?  A ScaledObject that sets the sessions of the pool's scale subresource.

https://keda.sh/docs/latest/reference/scaledobject-spec/
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from berth_operator.api import InferencePool, KedaScaling
from berth_operator.api.names import API_VERSION, SCALED_OBJECT

Manifest = dict[str, Any]


def scaled_object(
    pool: InferencePool, keda: KedaScaling, think_time: timedelta, metadata: Callable[..., Manifest]
) -> Manifest:
    """One session more for each that the query counts beyond those declared, and likewise less, within bounds."""
    kind, _, group = SCALED_OBJECT.partition(".")
    trigger = {"serverAddress": keda.server_address, "query": keda.query or sessions_query(pool, think_time)}
    return {
        "apiVersion": f"{group}/v1alpha1",
        "kind": kind,
        "metadata": metadata(pool, pool.metadata.name),
        "spec": {
            "scaleTargetRef": {"apiVersion": API_VERSION, "kind": "InferencePool", "name": pool.metadata.name},
            "pollingInterval": 15,  # seconds
            "minReplicaCount": keda.min_sessions or 1,
            "maxReplicaCount": keda.max_sessions,
            "triggers": [
                {"type": "prometheus", "metricType": "AverageValue", "metadata": {**trigger, "threshold": "1"}}
            ],
        },
    }


def sessions_query(pool: InferencePool, think_time: timedelta) -> str:
    """PromQL: sessions = turns a second x think time + turns under way.

    The interactive response time law N = X (Z + R), where by Little's law X R is what runs and waits (Lazowska et al.,
    Quantitative System Performance, 1984, ch. 3).  Labels as the PodMonitors of chart and pool give them.
    """
    of = f'{{pool_namespace="{pool.metadata.namespace or "default"}",pool="{pool.metadata.name}"}}'
    rate = f"sum(rate(vllm:e2e_request_latency_seconds_count{of}[2m]))"
    under_way = f"sum(vllm:num_requests_running{of}) + sum(vllm:num_requests_waiting{of})"
    return f"({think_time.total_seconds():g} * {rate} + {under_way}) or vector(0)"
