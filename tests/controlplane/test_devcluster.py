"""Does the control plane that every other test stands on behave as a real cluster does?"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from devcluster import ControlPlane, KubectlError, ProcessError, SimulatedNodePool, components, wait_for
from devcluster.nodes import POOL_LABEL

UP_WITHIN_S = 30.0  # about 3 s alone on 2 cores; other work may run beside
DOWN_WITHIN_S = 2.0

GRAVITON = SimulatedNodePool(
    "devcluster-graviton4",
    count=2,
    instance_type="r8g.4xlarge",
    architecture="arm64",
    cpu=16,
    memory="128Gi",
    zones=("eu-west-1a", "eu-west-1b"),
    taints=("devcluster/test=graviton:NoSchedule",),
)
L4 = SimulatedNodePool(
    "devcluster-l4",
    count=1,
    instance_type="g6.xlarge",
    architecture="amd64",
    capacity_type="spot",
    cpu=4,
    memory="16Gi",
    gpus=1,
    taints=("nvidia.com/gpu:NoSchedule",),
)


@pytest.fixture(scope="module")
def cluster(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    control_plane.add_nodes(GRAVITON, L4)
    yield control_plane
    names = [manifest["metadata"]["name"] for pool in (GRAVITON, L4) for manifest in pool.manifests()]
    control_plane.kubectl("delete", "node", *names)


def deployment(name: str, namespace: str, replicas: int, **pod: Any) -> dict[str, Any]:
    labels = {"app": name}
    container = {"name": "main", "image": "example.invalid/none", "resources": pod.pop("resources", {})}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container], **pod}}
    spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


def pods(cluster: ControlPlane, namespace: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cluster.get("pods", f"--namespace={namespace}")["items"]
    return found


def test_deployment_becomes_available_on_the_nodes_it_selects(cluster: ControlPlane, namespace: str) -> None:
    cluster.apply(
        deployment(
            "arm",
            namespace,
            replicas=3,
            nodeSelector={"kubernetes.io/arch": "arm64", "node.kubernetes.io/instance-type": "r8g.4xlarge"},
            tolerations=[{"key": "devcluster/test", "operator": "Equal", "value": "graviton", "effect": "NoSchedule"}],
        )
    )
    cluster.kubectl("rollout", "status", "deployment/arm", f"--namespace={namespace}", "--timeout=60s")
    placed = pods(cluster, namespace)
    assert len(placed) == 3
    for pod in placed:
        assert pod["spec"]["nodeName"].startswith("devcluster-graviton4-")
        conditions = {condition["type"]: condition["status"] for condition in pod["status"]["conditions"]}
        assert conditions["Ready"] == conditions["PodScheduled"] == "True"
        assert pod["status"]["podIP"]


def test_pod_without_toleration_stays_off_a_tainted_node(cluster: ControlPlane, namespace: str) -> None:
    selector = {POOL_LABEL: GRAVITON.name}  # other tests' nodes are arm64, too
    cluster.apply(deployment("stranger", namespace, replicas=1, nodeSelector=selector))
    cluster.wait_for("the scheduler refused the pod", lambda: unschedulable(pods(cluster, namespace)))


def test_second_pod_stays_pending_when_the_only_gpu_is_taken(cluster: ControlPlane, namespace: str) -> None:
    cluster.apply(
        deployment(
            "gpu",
            namespace,
            replicas=2,
            resources={"limits": {"nvidia.com/gpu": "1"}},
            tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}],
        )
    )
    cluster.wait_for(
        "one pod running and one unschedulable",
        lambda: (
            sorted(pod["status"]["phase"] for pod in pods(cluster, namespace)) == ["Pending", "Running"]
            and unschedulable(pods(cluster, namespace))
        ),
    )
    (message,) = unschedulable(pods(cluster, namespace))
    assert "Insufficient nvidia.com/gpu" in message


def unschedulable(found: list[dict[str, Any]]) -> list[str]:
    """What the scheduler says of the pods it has refused."""
    return [
        condition["message"]
        for pod in found
        for condition in pod["status"].get("conditions", [])
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable"
    ]


def test_nodes_carry_the_labels_and_capacity_of_their_pool(cluster: ControlPlane) -> None:
    first, second = (cluster.get("node", f"devcluster-graviton4-{index}") for index in range(2))
    gpu = cluster.get("node", "devcluster-l4-0")
    assert first["metadata"]["labels"]["topology.kubernetes.io/zone"] == "eu-west-1a"
    assert second["metadata"]["labels"]["topology.kubernetes.io/zone"] == "eu-west-1b"
    assert first["metadata"]["labels"]["topology.kubernetes.io/region"] == "eu-west-1"
    assert first["metadata"]["labels"]["karpenter.sh/capacity-type"] == "on-demand"
    assert gpu["metadata"]["labels"]["karpenter.sh/capacity-type"] == "spot"
    assert gpu["metadata"]["labels"]["berth.dev/simulated"] == "true"
    assert gpu["status"]["allocatable"]["nvidia.com/gpu"] == "1"
    assert first["status"]["allocatable"] | {"cpu": "16", "memory": "128Gi"} == first["status"]["allocatable"]


def test_nodes_renew_their_leases(cluster: ControlPlane) -> None:
    assert cluster.wait_for(
        "a lease of devcluster-l4-0",
        lambda: cluster.kubectl(
            "get", "lease", "devcluster-l4-0", "--namespace=kube-node-lease", "--ignore-not-found", "-o=name"
        ),
    )


def test_deleting_an_owner_collects_its_pods_and_a_namespace_can_be_deleted(cluster: ControlPlane) -> None:
    cluster.kubectl("create", "namespace", "devcluster-short-lived")
    toleration = {"key": "devcluster/test", "operator": "Exists"}
    cluster.apply(deployment("doomed", "devcluster-short-lived", replicas=2, tolerations=[toleration]))
    cluster.kubectl("rollout", "status", "deployment/doomed", "--namespace=devcluster-short-lived", "--timeout=60s")
    cluster.kubectl("delete", "deployment", "doomed", "--namespace=devcluster-short-lived")
    cluster.wait_for("the pods of Deployment doomed are gone", lambda: not pods(cluster, "devcluster-short-lived"))
    cluster.kubectl("delete", "namespace", "devcluster-short-lived", "--timeout=60s")


def test_a_bare_service_account_may_do_nothing(cluster: ControlPlane, namespace: str) -> None:
    cluster.kubectl("create", "serviceaccount", "bare", f"--namespace={namespace}")
    bare = cluster.kubeconfig_for_service_account(namespace, "bare")
    with pytest.raises(KubectlError, match=f"system:serviceaccount:{namespace}:bare.*cannot list resource"):
        cluster.kubectl("get", "deployments", kubeconfig=bare)


def test_audit_log_says_which_service_account_wrote_what(cluster: ControlPlane, namespace: str) -> None:
    cluster.kubectl("create", "serviceaccount", "writer", f"--namespace={namespace}")
    role = ["--verb=create,get", "--resource=configmaps", f"--namespace={namespace}"]
    cluster.kubectl("create", "role", "writer", *role)
    binding = ["--role=writer", f"--serviceaccount={namespace}:writer", f"--namespace={namespace}"]
    cluster.kubectl("create", "rolebinding", "writer", *binding)
    writer = cluster.kubeconfig_for_service_account(namespace, "writer")
    mark = cluster.audit_mark()
    cluster.kubectl("create", "configmap", "note", kubeconfig=writer)
    cluster.kubectl("get", "configmap", "note", kubeconfig=writer)

    user = f"system:serviceaccount:{namespace}:writer"
    writes = cluster.audit_events(since=mark, user=user, writes=True)
    assert [(event.verb, event.resource, event.namespace, event.name, event.code) for event in writes] == [
        ("create", "configmaps", namespace, "note", 201)
    ]
    assert cluster.audit_events(since=mark, user=user, verbs={"get"})
    assert cluster.audit_events(since=cluster.audit_mark(), user=user) == []


def test_a_taint_that_is_no_taint_is_refused_with_what_would_be_right() -> None:
    with pytest.raises(ValueError, match=r"SimulatedNodePool x: taint 'gpu', expected key=value:NoSchedule"):
        SimulatedNodePool("x", 1, "g6.xlarge", "amd64", cpu=4, memory="16Gi", taints=("gpu",))


def test_comes_up_quickly_and_leaves_nothing_behind() -> None:
    began = time.monotonic()
    with ControlPlane() as cluster:
        assert time.monotonic() - began < UP_WITHIN_S
        pids, folder = cluster.pids, cluster.folder
        assert set(pids) == {"etcd", "kube-apiserver", "kube-scheduler", "kube-controller-manager", "kwok"}
        ending = time.monotonic()
    assert time.monotonic() - ending < DOWN_WITHIN_S
    assert not [name for name, pid in pids.items() if alive(pid)]
    assert not folder.exists()


def test_a_port_that_another_process_takes_first_is_chosen_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = components.free_ports
    with socket.create_server(("127.0.0.1", 0)) as other:
        offers = [[*choose(2), other.getsockname()[1], *choose(3)], choose(6)]
        monkeypatch.setattr(components, "free_ports", lambda *_: offers.pop(0))
        with ControlPlane(simulate_nodes=False) as cluster:
            assert offers == []
            cluster.kubectl("get", "--raw", "/readyz")


def test_a_component_that_dies_is_named_with_the_end_of_its_log_and_can_be_started_again() -> None:
    with ControlPlane(simulate_nodes=False) as cluster:
        cluster.kubectl("create", "configmap", "before")
        os.kill(cluster.pids["kube-apiserver"], signal.SIGKILL)
        with pytest.raises(ProcessError, match=r"kube-apiserver .* was killed by SIGKILL; the end of its log:\n.*\w"):
            cluster.wait_for("something else", lambda: False)
        cluster.start("kube-apiserver")
        assert cluster.kubectl("get", "configmap", "before", "-o=name") == "configmap/before\n"


def test_nothing_survives_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = """
        import json, time
        from devcluster import ControlPlane
        with ControlPlane(simulate_nodes=False) as cluster:
            print(json.dumps([str(cluster.folder), *cluster.pids.values()]), flush=True)
            time.sleep(60)
    """
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        folder, *pids = json.loads(parent.stdout.readline())
        parent.kill()
    wait_for("every component ended with its parent", lambda: not any(alive(pid) for pid in pids), timeout_s=5)

    # The folder had nobody left to remove it: the next one to come up does.
    assert Path(folder).exists()
    sweeper = "from devcluster.scratch import ScratchFolder; ScratchFolder().remove()"
    subprocess.run([sys.executable, "-c", sweeper], check=True, env=environment)
    assert list(tmp_path.iterdir()) == []


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # a zombie has ended; it waits only for its parent to hear of it
