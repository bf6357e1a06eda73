"""Do workers of two pools really come to stand on the one node that the plan pays for, and does each pay its part?"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from devcluster import SimulatedNodePool

if TYPE_CHECKING:
    from conftest import Fleet, OperatorProcess

NODES = SimulatedNodePool("roomy", 2, "c7g.4xlarge", "arm64", 16, "32Gi", zones=("eu-west-1a", "eu-west-1b"))
NAMESPACES = ("neighbours-a", "neighbours-b")
HERE = {"hardware": {"allow": {"names": ["roomy"]}}, "spot": {"maxTrafficPercent": 0}}


@pytest.fixture(scope="module")
def roomy(fleet: Fleet) -> Iterator[None]:
    """A class of which one node may be had, though two are there; two replicas of the embedded model fit one."""
    for name in NAMESPACES:
        labels = {"berth-test": "neighbours"}
        fleet.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    fleet.cluster.add_nodes(NODES)
    fleet.cluster.apply(_class(fleet), _profile())
    yield
    fleet.cluster.kubectl("delete", "namespace", *NAMESPACES, "--wait=false")
    fleet.cluster.kubectl("delete", "servingprofile/roomy", "hardwareclass/roomy")
    fleet.cluster.kubectl("delete", "nodes", f"--selector=node.kubernetes.io/instance-type={NODES.instance_type}")


def _class(fleet: Fleet) -> dict[str, Any]:
    spec = fleet.cluster.get("hardwareclass", "graviton4")["spec"]
    spec["namespaceSelector"] = {"matchLabels": {"berth-test": "neighbours"}}
    selector = {"node.kubernetes.io/instance-type": NODES.instance_type}
    spec["capacity"] = [{"type": "OnDemand", "usdPerHour": "0.60", "maxNodes": 1, "selector": selector}]
    return {"apiVersion": "berth.dev/v1alpha1", "kind": "HardwareClass", "metadata": {"name": "roomy"}, "spec": spec}


def _profile() -> dict[str, Any]:
    points = [
        {"concurrency": n, "contextTokens": 3000, "decodeTokensPerSecond": speed, "interTokenLatencyP99": gap}
        for n, speed, gap in ((1, "100", "10ms"), (4, "200", "20ms"), (8, "240", "40ms"))
    ]
    spec = {
        "model": "smollm2-135m-instruct",
        "quantization": "Int8",
        "hardwareClass": "roomy",
        "runtime": "Berth",
        "resources": {"cpu": "7", "memory": "8Gi"},
        "replicasPerNode": 2,
        "points": points,
        "prefillTokensPerSecond": "3000",
        "kvCacheTokens": 65536,
        "provenance": {"method": "Estimated", "source": "made up for a test"},
    }
    return {"apiVersion": "berth.dev/v1alpha1", "kind": "ServingProfile", "metadata": {"name": "roomy"}, "spec": spec}


def _pods(fleet: Fleet, namespace: str) -> dict[str, str]:
    """Name -> node of the workers that are not on their way out."""
    items = fleet.cluster.get("pods", f"--namespace={namespace}")["items"]
    there = [item for item in items if "deletionTimestamp" not in item["metadata"]]
    return {item["metadata"]["name"]: item["spec"].get("nodeName", "") for item in there}


def _usd(fleet: Fleet, namespace: str) -> Decimal:
    return Decimal(fleet.status(namespace, "agents").get("cost", {}).get("usdPerHour", "0"))


def test_two_pools_share_the_only_node_and_its_price_until_one_of_them_leaves(
    fleet: Fleet, operator: OperatorProcess, roomy: None
) -> None:
    for namespace in NAMESPACES:
        workload = {"class": "Agentic", "demand": {"requestsPerSecond": "0.1"}}
        fleet.pool(namespace, "agents", placement=HERE, workload=workload)
    for namespace in NAMESPACES:
        operator.wait_for(f"{namespace} is Ready", lambda where=namespace: fleet.ready(where, "agents"))
    workers = {namespace: _pods(fleet, namespace) for namespace in NAMESPACES}
    assert [len(found) for found in workers.values()] == [1, 1]
    assert len({node for found in workers.values() for node in found.values()}) == 1
    for namespace in NAMESPACES:
        operator.wait_for("each pays half", lambda where=namespace: _usd(fleet, where) == Decimal("0.3"))
        placed = fleet.condition(namespace, "agents", "Placed")["message"]
        assert "shares a node with 1 other pool" in placed
    operator.wait_for(
        "one node is in use",
        lambda: fleet.cluster.get("hardwareclass", "roomy").get("status", {}).get("nodesInUse") == 1,
    )
    gone, stays = NAMESPACES
    fleet.cluster.kubectl("delete", "bpool", "agents", f"--namespace={gone}")
    operator.wait_for("the other pays all of it", lambda: _usd(fleet, stays) == Decimal("0.6"))
    operator.wait_for("it is settled", lambda: fleet.ready(stays, "agents"))
    assert _pods(fleet, stays) == workers[stays], "nothing moves because a neighbour has left"
