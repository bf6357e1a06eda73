"""Do `berth plan --from-cluster` and `berth explain` read a real cluster, with no more rights than a reader has?"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from devcluster import ControlPlane

ROOT = Path(__file__).parents[2]
HARDWARE = "cli-graviton4"  # hardware classes are of the whole cluster, which other tests use, too
Berth = Callable[..., "subprocess.CompletedProcess[str]"]


def _class() -> dict[str, Any]:
    first: dict[str, Any] = next(yaml.safe_load_all((ROOT / "examples" / "hardware.yaml").read_text()))
    return first | {"metadata": {"name": HARDWARE}}


def _pool(namespace: str, requests_per_second: str) -> dict[str, Any]:
    body: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "assistant.yaml").read_text())
    body["metadata"] = {"name": "assistant", "namespace": namespace}
    body["spec"]["workload"]["demand"] = {"requestsPerSecond": requests_per_second}
    body["spec"]["placement"] = {"hardware": {"allow": {"names": [HARDWARE]}}}
    return body


@pytest.fixture
def pool_namespace(control_plane: ControlPlane, namespace: str) -> Iterator[str]:
    """A namespace with the pool `assistant` in it, and its hardware class; no operator runs."""
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"))
    control_plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=20s")
    control_plane.apply(_class(), _pool(namespace, "2"))
    yield namespace
    control_plane.kubectl("delete", "bpool", "assistant", f"--namespace={namespace}")
    control_plane.kubectl("delete", "bhw", HARDWARE)


@pytest.fixture
def berth(control_plane: ControlPlane) -> Berth:
    def run(
        *arguments: str, kubeconfig: Path = control_plane.kubeconfig, text: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        command = [str(Path(sys.executable).parent / "berth"), *arguments, f"--kubeconfig={kubeconfig}"]
        return subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, timeout=60, env={"COLUMNS": "4000"}
        )

    return run


def replicas(done: "subprocess.CompletedProcess[str]", namespace: str) -> int:
    pools = {pool["namespace"]: pool for pool in json.loads(done.stdout)["pools"]}
    return sum(placement["replicas"] for placement in pools[namespace]["placements"])


def test_the_cluster_is_planned_and_a_file_wins_over_it(berth: Berth, pool_namespace: str) -> None:
    as_it_is = berth("plan", "--from-cluster", "-o", "json")
    assert replicas(as_it_is, pool_namespace) == 1, as_it_is.stderr
    (pool,) = (pool for pool in json.loads(as_it_is.stdout)["pools"] if pool["namespace"] == pool_namespace)
    assert [(step["from"], step["to"]) for step in pool["changes"]] == [(0, 1)], "no operator runs, so nothing does"
    busy = yaml.safe_dump(_pool(pool_namespace, "1000"))
    as_it_would_be = berth("plan", "--from-cluster", "-f", "-", "-o", "json", text=busy)
    assert replicas(as_it_would_be, pool_namespace) > 1, as_it_would_be.stderr
    assert replicas(berth("plan", "--from-cluster", "-o", "json"), pool_namespace) == 1  # nothing was changed


def test_a_pool_without_a_status_is_explained_by_a_plan_and_that_is_said(berth: Berth, pool_namespace: str) -> None:
    done = berth("explain", "assistant", "-n", pool_namespace)
    assert done.returncode == 0, done.stderr
    assert f"It runs on {HARDWARE}" in done.stdout
    assert "the operator has not yet said anything" in done.stderr


def test_the_decision_in_force_is_what_is_explained(
    berth: Berth, control_plane: ControlPlane, pool_namespace: str
) -> None:
    generation = control_plane.get("bpool", "assistant", f"--namespace={pool_namespace}")["metadata"]["generation"]
    status = {
        "observedGeneration": generation,
        "conditions": [
            {
                "type": "Ready",
                "status": "False",
                "reason": "Starting",
                "message": "0 of 3 replicas are ready",
                "lastTransitionTime": "2026-11-21T12:00:00Z",
            }
        ],
        "placements": [
            {
                "hardwareClass": HARDWARE,
                "capacityType": "Spot",
                "replicas": 3,
                "readyReplicas": 0,
                "usdPerHour": "0.765",
                "trafficPercent": 100,
            }
        ],
        "cost": {"usdPerHour": "0.765"},
    }
    where = ("assistant", f"--namespace={pool_namespace}", "--subresource=status", "--type=merge")
    control_plane.kubectl("patch", "bpool", *where, f"--patch={json.dumps({'status': status})}")
    done = berth("explain", f"{pool_namespace}/assistant")
    assert done.returncode == 0, done.stderr
    assert f"It runs on {HARDWARE} (3 replicas spot" in done.stdout
    assert "Not ready yet: 0 of 3 replicas are ready." in done.stdout
    assert f"Placed afresh it would be on 1 x {HARDWARE} on demand" in done.stdout


def test_without_the_right_to_read_it_fails_with_what_the_api_server_said(
    berth: Berth, control_plane: ControlPlane, pool_namespace: str
) -> None:
    nobody = control_plane.kubeconfig_for_service_account(pool_namespace, "default")
    done = berth("plan", "--from-cluster", kubeconfig=nobody)
    assert done.returncode == 1
    assert "the cluster cannot be read" in done.stderr
    assert "forbidden" in done.stderr
