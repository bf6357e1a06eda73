"""Are workers replaced in time when their nodes go away, without fewer serving than was promised?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from devcluster.components import ADMIN

if TYPE_CHECKING:
    from conftest import Fleet, OperatorProcess

Manifest = dict[str, Any]

SPOT_NOTICE = "aws-node-termination-handler/spot-itn"
DISRUPTED = "karpenter.sh/disrupted"
HEARTBEAT = {"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-11-21T12:00:00Z"}


@pytest.fixture(autouse=True)
def nodes_as_before(fleet: Fleet) -> Iterator[None]:
    yield
    nodes = {node["metadata"]["name"]: node["spec"] for node in fleet.cluster.get("nodes")["items"]}
    if cordoned := [name for name, spec in nodes.items() if spec.get("unschedulable")]:
        fleet.cluster.kubectl("uncordon", *cordoned)
    for key in (SPOT_NOTICE, DISRUPTED):
        if tainted := [name for name, spec in nodes.items() if key in str(spec.get("taints"))]:
            fleet.cluster.kubectl("taint", "node", *tainted, f"{key}-")
    if len(nodes) < sum(pool.count for pool in fleet.simulated):
        fleet.cluster.add_nodes(*fleet.simulated)


@pytest.fixture
def settled(fleet: Fleet, operator: OperatorProcess, namespace: str) -> Callable[..., list[Manifest]]:
    """Wait until a pool is Ready with nothing left to move, and Services know its workers; those of the namespace."""

    def wait(name: str = "agents") -> list[Manifest]:
        operator.wait_for(f"pool {name} is Ready", lambda: fleet.ready(namespace, name))
        operator.wait_for("no stand-in is left", lambda: _surge(fleet, namespace) == 0)
        # pods are Ready before the endpoints' controller has written it
        operator.wait_for(
            "ready workers serve", lambda: _ready_nodes(fleet, namespace) <= {*_serving(fleet, namespace)}
        )
        return _workers(fleet, namespace)

    return wait


def _workers(fleet: Fleet, namespace: str) -> list[Manifest]:
    items = fleet.cluster.get("pods", f"--namespace={namespace}")["items"]
    return [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]


def _serving(fleet: Fleet, namespace: str) -> list[str]:
    """Nodes of the workers that Services send requests to, once each worker."""
    slices = fleet.cluster.get(
        "endpointslices", f"--namespace={namespace}", "--selector=!service.kubernetes.io/headless"
    )
    endpoints = [e for item in slices["items"] for e in item["endpoints"] or ()]
    return sorted(e["nodeName"] for e in endpoints if e["conditions"].get("ready"))


def _ready_nodes(fleet: Fleet, namespace: str) -> set[str]:
    """Nodes of workers that are ready for requests."""
    conditions = {_node(pod): pod.get("status", {}).get("conditions", ()) for pod in _workers(fleet, namespace)}
    return {node for node, of in conditions.items() if any(c["type"] == "Ready" and c["status"] == "True" for c in of)}


def _node(pod: Manifest) -> str:
    return str(pod["spec"].get("nodeName", ""))


def _surge(fleet: Fleet, namespace: str) -> int:
    deployments = fleet.deployments(namespace).values()
    return sum(int(d["metadata"]["annotations"].get("berth.dev/surge", 0)) for d in deployments)


def _seconds_until_replaced(fleet: Fleet, mark: int, namespace: str) -> list[float]:
    """From the first mark on a node to each worker that was made since, by the API server's clock."""
    events = fleet.cluster.audit_events(since=mark, writes=True)
    nodes = [e for e in events if e.resource == "nodes" and e.user == ADMIN]
    marked = min(event.time for event in nodes)
    pods = [e for e in events if (e.resource, e.verb, e.namespace) == ("pods", "create", namespace)]
    made = [event.time for event in pods if not event.subresource]
    return [(datetime.fromisoformat(t) - datetime.fromisoformat(marked)).total_seconds() for t in made]


def test_a_worker_on_an_interrupted_node_is_taken_from_traffic_drained_and_replaced_within_five_seconds(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., list[Manifest]], namespace: str
) -> None:
    fleet.pool(namespace, "agents", workload={"class": "Batch", "demand": {"requestsPerSecond": "20"}})
    before = settled()
    assert len(before) > 1
    doomed, mark = _node(before[0]), fleet.cluster.audit_mark()
    fleet.cluster.kubectl("taint", "node", doomed, f"{SPOT_NOTICE}=spot-itn-5f3a:NoSchedule")
    operator.wait_for("no request goes there", lambda: doomed not in _serving(fleet, namespace))
    operator.wait_for("another one serves", lambda: len(_serving(fleet, namespace)) == len(before))
    after = settled()
    assert doomed not in map(_node, after)
    assert {p["metadata"]["uid"] for p in before[1:]} < {p["metadata"]["uid"] for p in after}  # the others went on
    (seconds,) = _seconds_until_replaced(fleet, mark, namespace)
    assert seconds < 5
    (ended,) = [e for e in operator.writes(mark) if (e.verb, e.resource) == ("delete", "pods")]
    assert ended.name == before[0]["metadata"]["name"]
    # It had its grace period, in which it finishes what it has accepted, inside the notice.
    assert 60 <= before[0]["spec"]["terminationGracePeriodSeconds"] < 120
    operator.wait_for("its status says so no more", lambda: fleet.ready(namespace, "agents"))
    assert operator.denied(mark) == []


def test_the_only_worker_serves_on_a_cordoned_node_until_another_one_stands_in(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., list[Manifest]], namespace: str
) -> None:
    fleet.pool(namespace, "agents")
    (worker,) = settled()
    before: list[int] = []
    mark = fleet.cluster.audit_mark()
    fleet.cluster.kubectl("cordon", _node(worker))

    def replaced() -> bool:
        serving = _serving(fleet, namespace)
        before.append(len(serving))
        return bool(serving) and _node(worker) not in serving

    operator.wait_for("another worker serves", replaced)
    assert min(before) >= 1  # there was never none
    assert _seconds_until_replaced(fleet, mark, namespace)[0] < 5
    (after,) = settled()
    assert after["metadata"]["uid"] != worker["metadata"]["uid"]
    (deployment,) = fleet.deployments(namespace).values()
    assert deployment["spec"]["replicas"] == 1


def test_a_node_that_is_cordoned_and_uncordoned_keeps_its_worker(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., list[Manifest]], namespace: str
) -> None:
    """Nothing can stand in, because every other node is cordoned too."""
    fleet.pool(namespace, "agents")
    (worker,) = settled()
    nodes = [n["metadata"]["name"] for n in fleet.cluster.get("nodes", "--selector=kubernetes.io/arch=arm64")["items"]]
    others = [name for name in nodes if name != _node(worker)]
    fleet.cluster.kubectl("cordon", *others, _node(worker))  # in this order
    operator.wait_for("a stand-in is wanted", lambda: len(_workers(fleet, namespace)) == 2)
    operator.wait_for(
        "the pool says so", lambda: fleet.condition(namespace, "agents", "Progressing").get("reason") == "Replacing"
    )
    fleet.cluster.kubectl("uncordon", _node(worker))  # where nothing else fits
    (after,) = settled()
    assert after["metadata"]["uid"] == worker["metadata"]["uid"]
    operator.wait_for("no note is left on it", lambda: _unmarked(_workers(fleet, namespace)[0]))


def _unmarked(pod: Manifest) -> bool:
    metadata = pod["metadata"]
    noted = "berth.dev/noticed-at" in metadata.get("annotations", {})
    return not noted and metadata["labels"]["berth.dev/traffic"] == "on"


def test_the_loss_of_a_whole_spot_class_leaves_what_each_pool_has_promised_to_keep(
    fleet: Fleet, operator: OperatorProcess, namespace: str, settled: Callable[..., list[Manifest]]
) -> None:
    spot_rules = {"maxTrafficPercent": 70, "surviveLossPercent": 40, "minOnDemandReplicas": 1}
    placement = {"spot": spot_rules, "hardware": {"allow": {"names": ["graviton4"]}}}
    for name, demand in (("agents", "30"), ("chat", "20")):
        workload = {"class": "Agentic", "demand": {"requestsPerSecond": demand}}
        fleet.pool(namespace, name, workload=workload, placement=placement)
    for name in ("agents", "chat"):
        settled(name)
    on_spot = [n for n in _serving(fleet, namespace) if n.startswith("graviton-spot")]
    keeps = [n for n in _serving(fleet, namespace) if not n.startswith("graviton-spot")]
    assert on_spot
    assert keeps
    spot = _names(fleet, "graviton-spot")
    mark = fleet.cluster.audit_mark()
    fleet.cluster.kubectl("taint", "node", *spot, f"{SPOT_NOTICE}=spot-itn-5f3a:NoSchedule")

    def none_is_served_there() -> bool:
        serving = _serving(fleet, namespace)
        assert set(keeps) <= set(serving)  # what survives serves on
        return not set(serving) & set(spot)

    operator.wait_for("no request goes to the class", none_is_served_there)
    assert max(_seconds_until_replaced(fleet, mark, namespace)[: len(on_spot)]) < 5
    fleet.cluster.kubectl("taint", "node", *spot, f"{SPOT_NOTICE}-")
    for name in ("agents", "chat"):
        settled(name)


def test_the_worker_of_a_node_that_is_deleted_is_replaced_at_once(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., list[Manifest]], namespace: str
) -> None:
    fleet.pool(namespace, "agents")
    (worker,) = settled()
    mark = fleet.cluster.audit_mark()
    fleet.cluster.kubectl("delete", "node", _node(worker))
    operator.wait_for("another worker serves", lambda: _serving(fleet, namespace) not in ([], [_node(worker)]))
    (seconds,) = _seconds_until_replaced(fleet, mark, namespace)
    assert seconds < 5
    name = worker["metadata"]["name"]
    fleet.cluster.kubectl("delete", "pod", name, f"--namespace={namespace}", "--force", "--ignore-not-found")


def test_nodes_that_carry_no_worker_wake_nobody_and_are_not_written_about(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., list[Manifest]], namespace: str
) -> None:
    fleet.pool(namespace, "agents")
    (worker,) = settled()
    free = next(n for n in _names(fleet, "graviton") if n != _node(worker))
    mark, passes = fleet.cluster.audit_mark(), operator.passes
    fleet.cluster.kubectl("taint", "node", free, f"{DISRUPTED}:NoSchedule")
    heartbeat = {"status": {"conditions": [HEARTBEAT]}}
    fleet.cluster.kubectl("patch", "node", _node(worker), "--subresource=status", "-p", json.dumps(heartbeat))
    operator.wait_for("two more passes", lambda: operator.passes >= passes + 2)
    assert [event for event in operator.writes(mark) if event.namespace == namespace] == []


def _names(fleet: Fleet, pool: str) -> list[str]:
    nodes = fleet.cluster.get("nodes", f"--selector=berth.dev/simulated-pool={pool}")["items"]
    return [node["metadata"]["name"] for node in nodes]
