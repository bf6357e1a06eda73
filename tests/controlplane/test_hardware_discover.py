"""Does `berth hardware discover` read a real API server's nodes and NodePools, and do its proposals apply?"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from devcluster import ControlPlane, SimulatedNodePool

KARPENTER = "sigs.k8s.io/karpenter@v1.14.1"
NODE_POOL = {
    "apiVersion": "karpenter.sh/v1",
    "kind": "NodePool",
    "metadata": {"name": "discovered"},
    "spec": {
        "template": {
            "spec": {
                "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default"},
                "requirements": [
                    {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["g6e.xlarge"]},
                    {"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["spot"]},
                ],
                "taints": [{"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}],
            }
        },
        "limits": {"nodes": "5"},
    },
}


def berth(cluster: ControlPlane, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).parent / "berth"), *arguments, f"--kubeconfig={cluster.kubeconfig}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def node_pools(control_plane: ControlPlane) -> Iterator[None]:
    """Karpenter's own NodePool definition, with one NodePool and one node that no NodePool made."""
    module = subprocess.run(
        ["go", "mod", "download", "-json", KARPENTER], capture_output=True, text=True, check=True
    ).stdout
    crd = Path(json.loads(module)["Dir"]) / "pkg/apis/crds/karpenter.sh_nodepools.yaml"
    control_plane.kubectl("apply", "--server-side", "-f", str(crd))
    control_plane.kubectl("wait", "--for=condition=Established", "crd/nodepools.karpenter.sh", "--timeout=20s")
    node = SimulatedNodePool("discover-c7g", 1, "c7g.8xlarge", "arm64", 32, "64Gi")
    control_plane.apply(NODE_POOL, *node.manifests())
    yield
    control_plane.kubectl("delete", "node", "discover-c7g-0")
    control_plane.kubectl("delete", "crd", "nodepools.karpenter.sh")


def test_classes_are_proposed_from_nodes_and_node_pools_and_can_be_applied(
    control_plane: ControlPlane, node_pools: None
) -> None:
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(Path(__file__).parents[2] / "crds"))
    done = berth(control_plane, "hardware", "discover")
    assert done.returncode == 0, done.stderr
    proposed: dict[str, Any] = {item["metadata"]["name"]: item for item in yaml.safe_load(done.stdout)["items"]}
    (spot,) = proposed["l40s"]["spec"]["capacity"]
    assert (spot["type"], spot["maxNodes"]) == ("Spot", 5)
    assert spot["selector"]["karpenter.sh/nodepool"] == "discovered"
    assert proposed["graviton3-c7g-8xl"]["spec"]["capacity"][0]["type"] == "OnDemand"
    control_plane.kubectl("apply", "--dry-run=server", "-f", "-", input=done.stdout)


def test_a_cluster_without_karpenter_is_read_all_the_same(control_plane: ControlPlane) -> None:
    done = berth(control_plane, "hardware", "discover", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "List"
