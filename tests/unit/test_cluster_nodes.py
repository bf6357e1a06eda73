"""Is word that a node goes away understood, whoever gives it, and is anything else on a node let pass?"""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from berth_operator.cluster.kube import ApiError, Listed
from berth_operator.cluster.node_watch import NodeWatch
from berth_operator.cluster.nodes import GONE, Fate, decode_node

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


class Nodes:
    """An API server that has some nodes, of which one is not told of yet."""

    def __init__(self, *names: str, untold: str = "") -> None:
        self.names, self.untold = names, untold
        self.events: asyncio.Queue[Manifest] = asyncio.Queue()
        self.asked: list[str] = []

    async def pages(self, *_: Any, **__: Any) -> AsyncIterator[Listed]:
        for name in self.names:
            yield Listed([_named(name, 1)] if name != self.untold else [], "10")

    async def watch(self, *_: Any, **__: Any) -> AsyncIterator[Manifest]:
        while True:
            yield await self.events.get()

    async def list(self, *_: Any, fields: str) -> Listed:
        self.asked.append(fields)
        if len(self.asked) == 1:
            raise ApiError(503, "busy")
        name = fields.removeprefix("metadata.name=")
        return Listed([_named(name, 1)] if name in self.names else [], "11")


def _named(name: str, version: int, *taints: str, heartbeat: str = AT) -> Manifest:
    node = _node(*taints, name=name, resourceVersion=str(version))
    node["status"]["conditions"][0]["lastHeartbeatTime"] = heartbeat
    return node


async def _until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - another task's doing
            await asyncio.sleep(0.01)


async def test_only_a_change_on_a_node_that_carries_a_worker_wakes_anybody() -> None:
    nodes, woken = Nodes("ours", "foreign"), []
    watch = NodeWatch(nodes, lambda: {"ours"}, lambda: woken.append(1))  # type: ignore[arg-type]
    task = asyncio.create_task(watch.run())
    await _until(lambda: woken)  # the first list
    for version in range(20, 40):
        nodes.events.put_nowait({"type": "MODIFIED", "object": _named("ours", version, heartbeat=f"{version}")})
    nodes.events.put_nowait({"type": "MODIFIED", "object": _named("foreign", 40, "karpenter.sh/disrupted")})
    nodes.events.put_nowait({"type": "ADDED", "object": _named("new", 41)})
    nodes.events.put_nowait({"type": "DELETED", "object": _named("new", 42)})
    await _until(nodes.events.empty)
    assert len(woken) == 1
    nodes.events.put_nowait({"type": "MODIFIED", "object": _named("ours", 43, "karpenter.sh/disrupted")})
    await _until(lambda: watch.notice("ours"))
    assert len(woken) == 2
    task.cancel()


async def test_a_node_is_gone_only_when_the_api_server_says_so() -> None:
    nodes = Nodes("ours", "untold", untold="untold")
    watch = NodeWatch(nodes, lambda: {"ours", "untold", "gone"}, lambda: None)  # type: ignore[arg-type]
    task = asyncio.create_task(watch.run())
    await _until(lambda: watch.notice("gone"))
    await _until(lambda: nodes.asked.count("metadata.name=untold") >= 2)
    assert watch.notice("gone") == GONE
    assert watch.notice("untold") is None  # bound to before the watch has told of it
    assert watch.notice("ours") is None
    assert watch.notice(None) is None
    assert "metadata.name=ours" not in nodes.asked
    task.cancel()
