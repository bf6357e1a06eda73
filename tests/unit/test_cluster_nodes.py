"""Is word that a node goes away understood, whoever gives it, and is anything else on a node let pass?"""

from datetime import UTC, datetime
from typing import Any

import pytest
from berth_operator.cluster.nodes import Fate, decode_node

Manifest = dict[str, Any]

AT = "2026-11-21T12:00:00Z"


def _node(
    *taints: str, unschedulable: bool = False, labels: Manifest | None = None, ready: str = "True", **metadata: Any
) -> Manifest:
    conditions = [{"type": "Ready", "status": ready, "lastHeartbeatTime": AT}]
    spec: Manifest = {"taints": [{"key": key, "effect": "NoSchedule"} for key in taints]}
    if unschedulable:
        spec["unschedulable"] = True
    return {
        "metadata": {"name": "n", "labels": labels or {}} | metadata,
        "spec": spec,
        "status": {"conditions": conditions, "images": [{"names": ["much"]}]},
    }


@pytest.mark.parametrize(
    ("node", "fate"),
    [
        (_node("aws-node-termination-handler/spot-itn"), Fate.INTERRUPTED),
        (_node("aws-node-termination-handler/asg-lifecycle-termination"), Fate.INTERRUPTED),
        (_node("aws-node-termination-handler/rebalance-recommendation"), Fate.EMPTIED),
        (
            _node(unschedulable=True, labels={"aws-node-termination-handler/event-id": "spot-itn-5f3a"}),
            Fate.INTERRUPTED,
        ),
        (_node("karpenter.sh/disrupted"), Fate.EMPTIED),
        (_node("karpenter.sh/disrupted", deletionTimestamp=AT), Fate.DELETED),
        (_node("ToBeDeletedByClusterAutoscaler"), Fate.EMPTIED),
        (_node("cloud.google.com/impending-node-termination"), Fate.INTERRUPTED),
        (_node("remediator.kubernetes.azure.com/unschedulable"), Fate.INTERRUPTED),
        (_node("node.kubernetes.io/unschedulable", unschedulable=True), Fate.EMPTIED),
        (_node("node.kubernetes.io/unreachable", ready="Unknown"), Fate.UNREACHABLE),
        (_node("aws-node-termination-handler/spot-itn", unschedulable=True), Fate.INTERRUPTED),
    ],
)
def test_a_node_that_goes_away_has_the_most_urgent_of_its_notices(node: Manifest, fate: Fate) -> None:
    notice = decode_node(node)
    assert notice
    assert notice.fate is fate


@pytest.mark.parametrize(
    "node",
    [
        _node(),
        _node("nvidia.com/gpu", "berth.dev/spot", "DeletionCandidateOfClusterAutoscaler"),
        _node(ready="False"),  # a kubelet that restarts is not one that leaves
        _node(labels={"aws-node-termination-handler/event-id": "spot-itn-5f3a"}),
        {"metadata": {"name": "bare"}},
        {"metadata": {"name": "odd", "labels": None}, "spec": {"taints": None}, "status": {"conditions": None}},
    ],
)
def test_a_node_that_stays_has_none(node: Manifest) -> None:
    assert decode_node(node) is None


def test_a_kubelet_that_shuts_down_says_so_in_its_condition() -> None:
    node = _node(ready="False")
    node["status"]["conditions"][0] |= {"message": "node is shutting down", "lastTransitionTime": AT}
    notice = decode_node(node)
    assert notice
    assert (notice.fate, notice.since) == (Fate.INTERRUPTED, datetime(2026, 11, 21, 12, tzinfo=UTC))


def test_heartbeats_change_nothing_that_is_kept() -> None:
    first, second = _node("karpenter.sh/disrupted"), _node("karpenter.sh/disrupted")
    second["status"]["conditions"][0]["lastHeartbeatTime"] = "2026-11-21T12:05:00Z"
    second["status"]["images"] = []
    assert decode_node(first) == decode_node(second)


@pytest.mark.parametrize("since", ["yesterday", "2026-11-21T12:00:00", 7, None])
def test_a_time_that_is_none_is_let_pass(since: Any) -> None:
    node = _node("karpenter.sh/disrupted")
    node["spec"]["taints"][0]["timeAdded"] = since
    notice = decode_node(node)
    assert notice
    assert notice.since is None
