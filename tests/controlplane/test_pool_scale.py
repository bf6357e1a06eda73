"""Can kubectl, an HPA or KEDA drive a pool's demand through the scale subresource, whatever form its demand has?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from devcluster.controlplane import KubectlError

if TYPE_CHECKING:
    from conftest import Fleet, OperatorProcess

RATE = {"class": "Agentic", "demand": {"requestsPerSecond": "2"}}
SESSIONS = {"class": "Agentic", "demand": {"concurrentSessions": 20, "thinkTime": "2s"}}


def scale(fleet: Fleet, namespace: str, name: str) -> dict[str, Any]:
    path = f"/apis/berth.dev/v1alpha1/namespaces/{namespace}/inferencepools/{name}/scale"
    return dict(json.loads(fleet.cluster.kubectl("get", "--raw", path)))


@pytest.fixture(scope="module")
def pools(fleet: Fleet, operator: OperatorProcess) -> Iterator[str]:
    """The namespace of a pool of each form of demand, both Ready."""
    namespace = "scaled"
    fleet.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    fleet.pool(namespace, "rate", workload=RATE)
    fleet.pool(namespace, "sessions", workload=SESSIONS)
    for name in ("rate", "sessions"):
        operator.wait_for(f"{name} is Ready", lambda name=name: fleet.ready(namespace, name))
    yield namespace
    fleet.cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def test_every_pool_answers_and_only_sessions_scale(fleet: Fleet, operator: OperatorProcess, pools: str) -> None:
    by_sessions, by_rate = scale(fleet, pools, "sessions"), scale(fleet, pools, "rate")
    selector = "app.kubernetes.io/managed-by=berth,berth.dev/pool="
    assert by_sessions["spec"] == {"replicas": 20}
    assert by_sessions["status"] == {"replicas": 20, "selector": f"{selector}sessions"}
    # Zero replicas is how Kubernetes says that an HPA has nothing to do here.
    assert by_rate["spec"] == {}
    assert by_rate["status"] == {"replicas": 0, "selector": f"{selector}rate"}
    selected = fleet.cluster.get("pods", f"--namespace={pools}", f"--selector={selector}sessions")["items"]
    assert len(selected) == fleet.replicas(pools, "sessions")

    fleet.cluster.kubectl("scale", "bpool", "sessions", "--replicas=4000", f"--namespace={pools}")
    operator.wait_for("it is planned for", lambda: scale(fleet, pools, "sessions")["status"]["replicas"] == 4000)
    assert fleet.replicas(pools, "sessions") > len(selected)
    for name, sessions in (("rate", 5), ("sessions", 0)):
        with pytest.raises(KubectlError, match="exactly one of requestsPerSecond and concurrentSessions"):
            fleet.cluster.kubectl("scale", "bpool", name, f"--replicas={sessions}", f"--namespace={pools}")


def test_a_horizontal_pod_autoscaler_drives_sessions_and_leaves_a_rate_alone(
    fleet: Fleet, operator: OperatorProcess, pools: str
) -> None:
    """Without a metrics server the autoscaler knows its bounds alone."""
    for name in ("sessions", "rate"):
        fleet.cluster.apply(_autoscaler(pools, name, most=50))
    operator.wait_for("sessions fell", lambda: scale(fleet, pools, "sessions")["status"]["replicas"] == 50, 60)
    disabled = operator.wait_for("the other is disabled", lambda: _scaling_active(fleet, pools, "rate"), 60)
    assert (disabled["status"], disabled["reason"]) == ("False", "ScalingDisabled")


def _autoscaler(namespace: str, name: str, most: int) -> dict[str, Any]:
    metric = {"metric": {"name": "sessions"}, "target": {"type": "AverageValue", "averageValue": "1"}}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "scaleTargetRef": {"apiVersion": "berth.dev/v1alpha1", "kind": "InferencePool", "name": name},
            "minReplicas": 1,
            "maxReplicas": most,
            "metrics": [{"type": "External", "external": metric}],
        },
    }


def _scaling_active(fleet: Fleet, namespace: str, name: str) -> dict[str, Any] | None:
    conditions = fleet.cluster.get("hpa", name, f"--namespace={namespace}").get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == "ScalingActive"), None)
