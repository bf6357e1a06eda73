"""Is what Karpenter says of nodes that it could not make heard, from its own kinds on a real API server?"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from berth_operator.api import CapacityType, HardwareClass
from berth_operator.autoscaler import NODE_CLAIMS, Karpenter
from berth_operator.shortage import Refusal
from devcluster.crds import install

if TYPE_CHECKING:
    from berth_operator.cluster.kube import Kube
    from conftest import Fleet


@pytest.fixture
def node_claims(fleet: Fleet) -> Iterator[None]:
    """Karpenter's own NodeClaim definition."""
    install(fleet.cluster, "karpenter")
    yield
    fleet.cluster.kubectl("delete", "crd", "nodeclaims.karpenter.sh")


def _claim(name: str, **requirements: list[str]) -> dict[str, Any]:
    asked = {"node.kubernetes.io/instance-type": ["c8g.4xlarge", "c8g.8xlarge"], "kubernetes.io/arch": ["arm64"]}
    asked |= {key.replace("_", "-").replace("karpenter-", "karpenter.sh/"): v for key, v in requirements.items()}
    spec = {
        "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default"},
        "requirements": [{"key": key, "operator": "In", "values": values} for key, values in asked.items()],
    }
    return {"apiVersion": NODE_CLAIMS.api_version, "kind": "NodeClaim", "metadata": {"name": name}, "spec": spec}


def _no_capacity(claim: str) -> dict[str, Any]:
    """As Karpenter's recorder writes it: what lies in no namespace has its Events in `default`."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{claim}.1", "namespace": "default"},
        "involvedObject": {"apiVersion": NODE_CLAIMS.api_version, "kind": "NodeClaim", "name": claim},
        "type": "Warning",
        "reason": "InsufficientCapacityError",
        "message": f"NodeClaim {claim} event: insufficient capacity",
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


async def _until(found: Callable[[], list[Refusal]]) -> list[Refusal]:
    async with asyncio.timeout(30):
        while not found():  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.05)
    return found()


async def test_what_karpenter_could_not_make_is_told_by_class_and_capacity_type(
    fleet: Fleet, kube: Kube, node_claims: None
) -> None:
    items = fleet.cluster.get("hardwareclasses")["items"]
    classes = [HardwareClass.model_validate(item) for item in items if item["metadata"]["name"] in ("graviton4", "l4")]
    karpenter = Karpenter(kube, lambda: None)
    task = asyncio.create_task(karpenter.run())
    try:
        await asyncio.to_thread(
            fleet.cluster.apply, _claim("spot-claim", karpenter_capacity_type=["spot", "on-demand"])
        )
        async with asyncio.timeout(30):
            while "spot-claim" not in karpenter.remembered:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert karpenter.refusals(classes) == []
        # Karpenter publishes the Event and deletes the claim at once.
        await asyncio.to_thread(fleet.cluster.kubectl, "delete", "nodeclaim", "spot-claim")
        await asyncio.to_thread(fleet.cluster.apply, _no_capacity("spot-claim"))
        (refusal,) = await _until(lambda: karpenter.refusals(classes))
        assert (refusal.hardware_class, refusal.capacity_type) == ("graviton4", CapacityType.SPOT)
        assert refusal.message == "Karpenter: NodeClaim spot-claim event: insufficient capacity"
        # Any other failure stands in the claim's condition.
        await asyncio.to_thread(fleet.cluster.apply, _claim("od-claim", karpenter_capacity_type=["on-demand"]))
        failed = {
            "type": "Launched",
            "status": "Unknown",
            "reason": "LaunchFailed",
            "message": "no subnets",
            "lastTransitionTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        patch = json.dumps({"status": {"conditions": [failed]}})
        args = ("patch", "nodeclaim", "od-claim", "--subresource=status", "--type=merge", "-p", patch)
        await asyncio.to_thread(fleet.cluster.kubectl, *args)
        found = await _until(lambda: [r for r in karpenter.refusals(classes) if r.capacity_type == "OnDemand"])
        assert [(r.hardware_class, r.message) for r in found] == [("graviton4", "Karpenter: LaunchFailed: no subnets")]
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(fleet.cluster.kubectl, "delete", "nodeclaims", "--all", "--wait=false")
        await asyncio.to_thread(fleet.cluster.kubectl, "delete", "event", "spot-claim.1")


async def test_without_its_kinds_karpenter_costs_one_question(
    fleet: Fleet, kube: Kube, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.cluster.kubectl("delete", "crd", "nodeclaims.karpenter.sh", "--ignore-not-found")
    caplog.set_level("INFO")
    karpenter = Karpenter(kube, lambda: None, every_s=0.05)
    mark = fleet.cluster.audit_mark()
    task = asyncio.create_task(karpenter.run())
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        while not caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert caplog.text.count("its CRDs are not installed") == 1
    assert not [e for e in fleet.cluster.audit_events(since=mark) if "nodeclaims" in e.resource]
