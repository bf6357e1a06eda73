"""Do status, metrics, `berth plan --from-cluster` and `berth explain` tell the same figures of a running fleet?"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Fleet, OperatorProcess

SYSTEM, RELEASE, NAMESPACE = "berth-figures", "figures", "figures"
SETTLED = {"disruption": {"minSavingsUsdPerHour": "0.00", "minSavingsPercent": 0, "cooldown": "0s"}}
SHARED = {"hardware": {"allow": {"names": ["figures-shared"]}}}


@pytest.fixture(scope="module")
def operator(fleet: Fleet, make_release: Callable[..., OperatorProcess]) -> Iterator[OperatorProcess]:
    fleet.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    flags = (f"--watch-namespaces={NAMESPACE}", "--debounce=100ms", "--interval=500ms")
    process = make_release(RELEASE, SYSTEM, *flags)
    process.start()
    yield process
    fleet.cluster.kubectl("delete", "namespace", NAMESPACE, SYSTEM, "--wait=false")
    fleet.cluster.kubectl("delete", "hardwareclass", "figures-shared", "figures-few")
    fleet.cluster.kubectl("delete", "servingprofile", "figures-shared")


def _class(fleet: Fleet, name: str, most: int) -> dict[str, Any]:
    found: dict[str, Any] = fleet.cluster.get("hardwareclass", "graviton4")
    found["metadata"], found["status"] = {"name": name}, {}
    found["spec"]["capacity"] = found["spec"]["capacity"][:1]
    found["spec"]["capacity"][0]["maxNodes"] = most
    return found


PROFILE: dict[str, Any] = {
    "apiVersion": "berth.dev/v1alpha1",
    "kind": "ServingProfile",
    "metadata": {"name": "figures-shared"},
    "spec": {
        "model": "smollm2-135m-instruct",
        "quantization": "Int8",
        "hardwareClass": "figures-shared",
        "runtime": "Berth",
        "resources": {"cpu": "3", "memory": "6Gi"},
        "replicasPerNode": 4,
        "points": [
            {
                "concurrency": b,
                "contextTokens": 1000,
                "decodeTokensPerSecond": str(150 * b),
                "interTokenLatencyP99": "8ms",
            }
            for b in (1, 8)
        ],
        "prefillTokensPerSecond": "10000",
        "kvCacheTokens": 100_000,
        "provenance": {"method": "Measured", "source": "a test", "date": "2026-11-21"},
    },
}


@pytest.fixture(scope="module")
def pools(fleet: Fleet, operator: OperatorProcess) -> dict[str, dict[str, Any]]:
    """Pools in every state that has figures, settled; name -> status."""
    fleet.cluster.apply(_class(fleet, "figures-shared", 3), _class(fleet, "figures-few", 2), PROFILE)
    few = {"hardware": {"allow": {"names": ["figures-few"]}}}
    busy = {"class": "Agentic", "demand": {"requestsPerSecond": "4000"}}
    fleet.pool(NAMESPACE, "refused", placement=few)
    fleet.pool(NAMESPACE, "advised", placement=few)
    for name in ("refused", "advised"):
        operator.wait_for(f"{name} is Ready", lambda n=name: fleet.ready(NAMESPACE, n), 120)
    fleet.pool(NAMESPACE, "refused", placement={"hardware": {"allow": {"names": ["no-such-class"]}}})
    fleet.pool(NAMESPACE, "advised", placement=few | {"mode": "Recommend"})
    fleet.pool(NAMESPACE, "unplaced", placement=few)
    fleet.pool(NAMESPACE, "plain", placement=SETTLED)
    fleet.pool(NAMESPACE, "left", placement=SHARED)
    fleet.pool(NAMESPACE, "right", placement=SHARED)
    fleet.pool(NAMESPACE, "asleep", suspend=True)
    fleet.pool(NAMESPACE, "short", placement=SHARED, workload=busy)
    fleet.pool(NAMESPACE, "dear", budget={"maxUsdPerHour": "0.10", "onExceeded": "Overspend"})
    reasons = {
        **dict.fromkeys(("plain", "left", "right"), "Ready"),
        "dear": "OverBudget",
        "refused": "NotAccepted",
        "advised": "Recommended",
        "unplaced": "NoCapacity",
        "asleep": "Suspended",
        "short": "DemandUnserved",
    }

    def told() -> bool:
        return all(fleet.condition(NAMESPACE, n, "Ready").get("reason") == r for n, r in reasons.items())

    operator.wait_for("all have settled", told, 120)
    passes = operator.passes
    operator.wait_for("and stay so", lambda: operator.passes > passes + 3 and told())
    return {name: fleet.status(NAMESPACE, name) for name in reasons}


@pytest.fixture(scope="module")
def planned(fleet: Fleet, pools: dict[str, Any]) -> dict[str, Any]:
    """What `berth plan --from-cluster` says."""
    done = _berth(fleet, "plan", "--from-cluster", "-o", "json")
    assert done.returncode == 2, done.stderr  # one is refused
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _berth(fleet: Fleet, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "berth"), *arguments, f"--kubeconfig={fleet.cluster.kubeconfig}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env={"COLUMNS": "4000"})


def _of(planned: dict[str, Any], name: str) -> dict[str, Any]:
    return next(p for p in planned["pools"] if (p["namespace"], p["name"]) == (NAMESPACE, name))


def _kept(planned: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [s for s in planned.get("staying", ()) if (s["namespace"], s["name"]) == (NAMESPACE, name)]


NAMES = ("plain", "left", "right", "dear", "refused", "advised", "unplaced", "asleep", "short")


@pytest.mark.parametrize("name", NAMES)
def test_status_and_a_plan_of_the_cluster_agree(
    pools: dict[str, dict[str, Any]], planned: dict[str, Any], name: str
) -> None:
    status, pool = pools[name], _of(planned, name)
    placed = {(p["hardwareClass"], p["capacityType"]): p["replicas"] for p in pool["placements"]}
    stays = {(s["hardwareClass"], s["capacityType"]): s["replicas"] for s in _kept(planned, name)}
    told = {(p["hardwareClass"], p["capacityType"]): p["replicas"] for p in status.get("placements", ())}
    assert told == (placed if name == "advised" else placed | stays)  # of the advised one, the advice
    mine, theirs = pool["cost"], status["cost"]
    assert Decimal(theirs["usdPerHour"]) - Decimal(mine["usdPerHour"]) == (Decimal("0.638") if name == "refused" else 0)
    for figure in ("gpuOnlyUsdPerHour", "savingsPercent", "usdPerMillionTokens"):
        assert theirs.get(figure) == mine.get(figure), figure
    assert [c["verdict"] for c in status["candidates"]] == [c["verdict"] for c in pool["candidates"]]
    assert pool.get("changes", []) == []  # it runs as planned


@pytest.mark.parametrize("name", NAMES)
def test_metrics_and_status_agree(
    operator: OperatorProcess, pools: dict[str, dict[str, Any]], planned: dict[str, Any], name: str
) -> None:
    status, pool, where = pools[name], _of(planned, name), {"pool_namespace": NAMESPACE, "pool": name}
    series = {metric for metric, labels in operator.metrics() if where.items() <= dict(labels).items()}
    applied = name != "advised"
    usd = operator.metric("berth_pool_usd_per_hour", **where)
    assert usd == pytest.approx(float(status["cost"]["usdPerHour"]) if applied else 0.638, abs=0.001)
    planned_replicas = operator.metric("berth_pool_replicas", state="planned", **where)
    assert planned_replicas == (sum(p["replicas"] for p in pool["placements"]) if applied else 0)
    ready = operator.metric("berth_pool_replicas", state="ready", **where)
    ready_told = sum(p["readyReplicas"] for p in status.get("placements", ()))
    assert ready == ready_told
    demand = float(pool["servedRequestsPerSecond"]) + float(pool["unservedRequestsPerSecond"])
    assert ("berth_pool_demand_requests_per_second" in series) == (name not in ("refused", "asleep"))
    assert operator.metric("berth_pool_demand_requests_per_second", **where) == pytest.approx(demand)
    gpu_only = operator.metric("berth_pool_gpu_only_usd_per_hour", **where)
    assert gpu_only == pytest.approx(float(status["cost"].get("gpuOnlyUsdPerHour", 0)) if applied else 0.0, abs=0.001)
    assert ("berth_pool_watts" in series) == ("watts" in status["cost"] and applied)
    ready_now = operator.metric("berth_pool_condition", type="Ready", status="True", **where)
    assert ready_now == float(name in ("plain", "left", "right", "dear"))


def test_nodes_in_use_are_those_of_the_plan_and_of_what_stays(
    fleet: Fleet, operator: OperatorProcess, pools: dict[str, Any], planned: dict[str, Any]
) -> None:
    for hardware in ("figures-few", "figures-shared"):
        mine = [p for name in NAMES if name != "advised" for p in _of(planned, name)["placements"]]
        paid = sum(float(p.get("paidNodes", p["nodes"])) for p in mine if p["hardwareClass"] == hardware)
        stays = sum(s["nodes"] for s in planned["staying"] if s["hardwareClass"] == hardware)
        status = fleet.cluster.get("hardwareclass", hardware)["status"]
        assert status["nodesInUse"] == pytest.approx(paid + stays), hardware
    pods = fleet.cluster.get("pods", f"--namespace={NAMESPACE}")["items"]
    of = {p["spec"]["nodeName"]: p["metadata"]["labels"]["berth.dev/hardware-class"] for p in pods}
    assert sum(hardware == "figures-few" for hardware in of.values()) == 2


@pytest.mark.parametrize("name", NAMES)
def test_an_explanation_has_the_figures_of_the_status(
    fleet: Fleet, pools: dict[str, dict[str, Any]], planned: dict[str, Any], name: str
) -> None:
    done = _berth(fleet, "explain", f"{NAMESPACE}/{name}")
    assert done.returncode == 0, done.stderr
    cost = pools[name]["cost"]
    if pools[name].get("placements"):
        assert f"{cost['usdPerHour']} USD an hour" in done.stdout
    if (percent := cost.get("savingsPercent")) is not None:
        assert f"{abs(percent)} %" in done.stdout or f"{abs(percent)}%" in done.stdout


def test_what_runs_on_hardware_that_cannot_be_had_is_no_move_in_a_plan_of_the_cluster(
    fleet: Fleet, operator: OperatorProcess, pools: dict[str, Any]
) -> None:
    """The last of this module: hardware is short from here on."""
    entry = {"type": "OnDemand", "since": "2026-11-23T00:00:00Z", "until": "2199-01-01T00:00:00Z", "backOff": "1h"}
    patch = json.dumps({"status": {"constrained": [entry]}})
    where = ("figures-shared", "--subresource=status", "--type=merge", f"--patch={patch}")
    fleet.cluster.kubectl("patch", "hardwareclass", *where)

    def short() -> bool:
        return fleet.condition(NAMESPACE, "left", "CapacityConstrained").get("status") == "True"

    operator.wait_for("the shortage is believed", short)
    done = _berth(fleet, "plan", "--from-cluster", "-o", "json")
    left = _of(json.loads(done.stdout), "left")
    assert [p["hardwareClass"] for p in left["placements"]] == ["figures-shared"]
    assert left["changes"] == []
