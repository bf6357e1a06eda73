"""Does a pool, created through the real API server, become workers on the right nodes, and stay so?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Fleet, OperatorProcess

NO_HESITATION = {"disruption": {"minSavingsUsdPerHour": "0.00", "minSavingsPercent": 0, "cooldown": "0s"}}


@pytest.fixture(scope="module")
def beginning(fleet: Fleet) -> int:
    """Where in the audit log this module begins."""
    return fleet.cluster.audit_mark()


@pytest.fixture(autouse=True)
def usual_prices(fleet: Fleet, beginning: int) -> Iterator[None]:
    yield
    fleet.price()


@pytest.fixture
def settled(fleet: Fleet, operator: OperatorProcess, namespace: str) -> Callable[..., None]:
    """Wait until a pool of this test's namespace is Ready."""

    def wait(name: str = "agents", seconds: float = 30.0) -> None:
        operator.wait_for(f"pool {name} is Ready", lambda: fleet.ready(namespace, name), seconds)

    return wait


def _demand(requests_per_second: str) -> dict[str, Any]:
    return {"class": "Agentic", "demand": {"requestsPerSecond": requests_per_second}}


# --- From a pool to workers -----------------------------------------------------------------------------------------


def test_a_pool_becomes_ready_workers_on_the_cheapest_nodes_that_keep_its_promise(
    fleet: Fleet, settled: Callable[..., None], namespace: str
) -> None:
    fleet.pool(namespace, "agents")
    settled()
    assert fleet.nodes(namespace) == ["graviton"]
    header, row = fleet.cluster.kubectl("get", "bpool", f"--namespace={namespace}").splitlines()
    assert header.split() == ["NAME", "MODEL", "CLASS", "READY", "PLACEMENT", "USD/H", "SAVED", "STATUS", "AGE"]
    columns = row.split()
    assert columns[1:4] == ["smollm2-135m-instruct", "Agentic", "1/1"]
    assert columns[4:6] == ["1x", "graviton4/OnDemand"]
    assert columns[6:9] == ["0.638", "20%", "Ready"]  # L4, 0.805, is the cheapest GPU plan


def test_every_child_belongs_to_its_pool(fleet: Fleet, settled: Callable[..., None], namespace: str) -> None:
    fleet.pool(namespace, "agents")
    settled()
    uid = fleet.cluster.get("bpool", "agents", f"--namespace={namespace}")["metadata"]["uid"]
    children = fleet.children(namespace)
    assert sorted(kind for kind, _ in children) == ["Deployment", "PodDisruptionBudget", "Service", "Service"]
    for child in children.values():
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("InferencePool", uid, True)


def test_a_batch_pool_runs_on_tainted_spot_nodes(fleet: Fleet, settled: Callable[..., None], namespace: str) -> None:
    fleet.pool(namespace, "nightly", workload={"class": "Batch", "demand": {"requestsPerSecond": "1"}})
    settled("nightly")
    assert set(fleet.nodes(namespace)) == {"graviton-spot"}


def test_a_pool_that_allows_gpus_only_runs_on_gpus(fleet: Fleet, settled: Callable[..., None], namespace: str) -> None:
    fleet.pool(namespace, "agents", placement={"hardware": {"allow": {"names": ["l4"]}}})
    settled()
    assert set(fleet.nodes(namespace)) == {"l4"}
    (pod,) = fleet.cluster.get("pods", f"--namespace={namespace}")["items"]
    assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


# --- Staying so -----------------------------------------------------------------------------------------------------


def test_children_deleted_by_hand_come_back(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str
) -> None:
    fleet.pool(namespace, "agents")
    settled()
    before = {key: child["metadata"]["uid"] for key, child in fleet.children(namespace).items()}
    fleet.cluster.kubectl(
        "delete", "deployments,services,poddisruptionbudgets", "--all", f"--namespace={namespace}", "--wait=false"
    )

    def all_new() -> bool:
        now = {key: child["metadata"]["uid"] for key, child in fleet.children(namespace).items()}
        return now.keys() == before.keys() and not set(now.values()) & set(before.values())

    operator.wait_for("every child is there again, as a new object", all_new)
    settled()


def test_what_we_render_is_restored_and_what_users_add_survives(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str
) -> None:
    fleet.pool(namespace, "agents")
    settled()
    ((_, name),) = [key for key in fleet.children(namespace) if key[0] == "Deployment"]
    rendered = fleet.deployments(namespace)["graviton4/OnDemand"]
    where = f"--namespace={namespace}"
    edit = fleet.cluster.kubectl
    patch = {
        "metadata": {"labels": {"theirs": "yes", "berth.dev/pool": "agents"}, "annotations": {"note": "theirs"}},
        "spec": {
            "minReadySeconds": 1,
            "template": {"spec": {"containers": [{"name": "worker", "image": "evil:1", "tty": True}]}},
        },
    }
    edit("patch", "deployment", name, where, "--type=strategic", "-p", json.dumps(patch))
    edit("scale", "deployment", name, where, "--replicas=3")
    edit("label", "service", "agents", where, "app.kubernetes.io/managed-by-")
    edit("patch", "service", "agents", where, "--type=json", "-p", '[{"op": "remove", "path": "/spec/ports/0"}]')
    edit("patch", "pdb", "agents", where, "--type=merge", "-p", '{"spec": {"maxUnavailable": 9}}')

    def restored() -> bool:
        children = fleet.children(namespace)
        deployment, service = children["Deployment", name], children.get(("Service", "agents"))
        return (
            deployment["spec"]["replicas"] == 1
            and deployment["spec"]["template"]["spec"]["containers"][0]["image"]
            == rendered["spec"]["template"]["spec"]["containers"][0]["image"]
            and service is not None
            and [port["name"] for port in service["spec"]["ports"]] == ["http", "grpc"]
            and children["PodDisruptionBudget", "agents"]["spec"]["maxUnavailable"] == 1
        )

    operator.wait_for("what we render is as rendered", restored)
    deployment = fleet.children(namespace)["Deployment", name]
    assert deployment["metadata"]["labels"]["theirs"] == "yes"
    assert deployment["metadata"]["annotations"]["note"] == "theirs"
    assert deployment["spec"]["minReadySeconds"] == 1
    assert deployment["spec"]["template"]["spec"]["containers"][0]["tty"] is True
    assert f"applied Deployment {namespace}/{name}: somebody changed spec." in operator.log


def test_a_service_of_somebody_else_is_left_alone_and_the_rest_goes_on(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str
) -> None:
    fleet.cluster.kubectl("create", "service", "clusterip", "agents", "--tcp=1:1", f"--namespace={namespace}")
    fleet.pool(namespace, "agents")
    operator.wait_for(
        "no client reaches it", lambda: fleet.condition(namespace, "agents", "Ready").get("reason") == "NameTaken"
    )
    operator.wait_for(
        "its worker is up", lambda: fleet.condition(namespace, "agents", "Available").get("status") == "True"
    )
    assert fleet.condition(namespace, "agents", "Ready")["status"] == "False"
    assert ("Service", "agents") not in fleet.children(namespace)
    assert f"Service {namespace}/agents: an object of this name exists, not made by Berth" in operator.log
    fleet.cluster.kubectl("delete", "service", "agents", f"--namespace={namespace}")
    operator.wait_for("the Service is ours", lambda: ("Service", "agents") in fleet.children(namespace))
    settled()


# --- One bad pool ---------------------------------------------------------------------------------------------------


def test_a_pool_that_does_not_parse_is_refused_by_name_and_stops_nobody(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str
) -> None:
    # The CRD lets this pass: its pattern cannot count.
    fleet.pool(namespace, "bad", placement={"disruption": {"cooldown": "99999999999h"}})
    fleet.pool(namespace, "good")
    settled("good")
    accepted = operator.wait_for("it is refused", lambda: fleet.condition(namespace, "bad", "Accepted"))
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidSpec")
    assert accepted["message"] == (
        "spec.placement.disruption.cooldown: '99999999999h' is longer than 30 years: write a shorter duration"
    )
    refused = {"pool": "bad", "type": "Accepted", "status": "False"}
    operator.wait_for("metrics say so", lambda: operator.metric("berth_pool_condition", **refused) == 1)
    fleet.pool(namespace, "bad", placement={"disruption": {"cooldown": "10m"}})
    settled("bad")


def test_a_pool_that_cannot_work_is_refused_with_a_remedy_and_keeps_no_other_from_serving(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str
) -> None:
    fleet.pool(namespace, "bad", placement={"hardware": {"allow": {"names": ["gravitron"]}}})
    fleet.pool(namespace, "good")
    settled("good")
    accepted = operator.wait_for("it is refused", lambda: fleet.condition(namespace, "bad", "Accepted"))
    assert (accepted["status"], accepted["reason"]) == ("False", "UnknownHardware")
    assert '"gravitron" is not a HardwareClass; there are: ' in accepted["message"]
    assert not [child for child in fleet.children(namespace) if child[1].startswith("bad")]


# --- Moving ---------------------------------------------------------------------------------------------------------


def test_a_pool_moves_to_cheaper_hardware_without_a_moment_unserved(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str
) -> None:
    fleet.pool(namespace, "agents", placement=NO_HESITATION)
    settled()
    assert set(fleet.nodes(namespace)) == {"graviton"}
    gpu_nodes = [f"l4-{index}" for index in range(4)]
    fleet.cluster.kubectl("cordon", *gpu_nodes)
    try:
        fleet.price(graviton4="1.638", graviton4_spot="1.255")
        operator.wait_for("the new placement is asked for", lambda: "l4/OnDemand" in fleet.deployments(namespace))
        passes = operator.passes
        operator.wait_for("five more passes", lambda: operator.passes >= passes + 5)
        assert fleet.nodes(namespace) == ["graviton"]  # the new worker has no node yet: the old one serves
        assert fleet.deployments(namespace)["graviton4/OnDemand"]["spec"]["replicas"] == 1
    finally:
        fleet.cluster.kubectl("uncordon", *gpu_nodes)
    operator.wait_for("the old placement is gone", lambda: set(fleet.deployments(namespace)) == {"l4/OnDemand"})
    settled()
    assert set(fleet.nodes(namespace)) == {"l4"}
    assert fleet.status(namespace, "agents")["lastMoveTime"]


def test_more_demand_brings_more_workers_and_less_takes_them_away(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str
) -> None:
    only_graviton = NO_HESITATION | {
        "hardware": {"allow": {"names": ["graviton4"]}},
        "spot": {"maxTrafficPercent": 0},
    }
    fleet.pool(namespace, "agents", placement=only_graviton, workload=_demand("2"))
    settled()
    assert len(fleet.nodes(namespace)) == 1
    fleet.pool(namespace, "agents", placement=only_graviton, workload=_demand("60"))
    operator.wait_for("more workers are ready", lambda: len(fleet.nodes(namespace)) >= 3)
    settled()
    fleet.pool(namespace, "agents", placement=only_graviton, workload=_demand("2"))
    operator.wait_for("one worker is left", lambda: len(fleet.nodes(namespace, ready=False)) == 1)
    settled()


def test_replicas_that_come_to_share_nodes_replace_the_whole_node_one(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str
) -> None:
    on_graviton = NO_HESITATION | {
        "hardware": {"allow": {"names": ["graviton4"]}},
        "spot": {"maxTrafficPercent": 0},
    }
    model = {"name": "smollm2-360m-instruct", "source": "hf://HuggingFaceTB/SmolLM2-360M-Instruct"}
    fleet.pool(namespace, "agents", model=model, placement=on_graviton)
    settled()
    (whole_node,) = fleet.deployments(namespace).values()
    fleet.cluster.apply(_slow_small_replicas(model["name"]))
    try:
        operator.wait_for("small replicas are wanted", lambda: fleet.replicas(namespace, "agents") >= 3)
        operator.wait_for(
            "the whole-node replica is gone",
            lambda: whole_node["metadata"]["name"] not in [name for _, name in fleet.children(namespace)],
        )
        settled()
        pods = fleet.cluster.get("pods", f"--namespace={namespace}")["items"]
        assert len({pod["spec"]["nodeName"] for pod in pods}) == 1  # packed, as the plan pays for one node
        assert fleet.status(namespace, "agents")["cost"]["usdPerHour"] == "0.638"
    finally:
        fleet.cluster.kubectl("delete", "servingprofile", "slow-small-replicas")


def _slow_small_replicas(model: str) -> dict[str, Any]:
    """A profile by which an agentic demand of 2/s takes several replicas of two CPUs."""
    return {
        "apiVersion": "berth.dev/v1alpha1",
        "kind": "ServingProfile",
        "metadata": {"name": "slow-small-replicas"},
        "spec": {
            "model": model,
            "quantization": "Int8",
            "hardwareClass": "graviton4",
            "runtime": "Berth",
            "resources": {"cpu": "2", "memory": "2Gi"},
            "replicasPerNode": 7,
            "points": [
                {"concurrency": n, "contextTokens": 3000, "decodeTokensPerSecond": speed, "interTokenLatencyP99": gap}
                for n, speed, gap in ((1, "100", "10ms"), (4, "200", "20ms"), (8, "240", "40ms"))
            ],
            "prefillTokensPerSecond": "3000",
            "kvCacheTokens": 65536,
            "provenance": {"method": "Estimated", "source": "made up for a test"},
        },
    }


# --- Not running ----------------------------------------------------------------------------------------------------


def test_a_suspended_pool_has_no_workers_and_keeps_its_addresses(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str
) -> None:
    fleet.pool(namespace, "agents")
    settled()
    address = fleet.children(namespace)["Service", "agents"]["spec"]["clusterIP"]
    fleet.pool(namespace, "agents", suspend=True)
    operator.wait_for("no worker is left", lambda: not fleet.nodes(namespace, ready=False))
    assert sorted(kind for kind, _ in fleet.children(namespace)) == ["PodDisruptionBudget", "Service", "Service"]
    operator.wait_for("it says so", lambda: fleet.condition(namespace, "agents", "Ready").get("reason") == "Suspended")
    fleet.pool(namespace, "agents", suspend=False)
    settled()
    assert fleet.children(namespace)["Service", "agents"]["spec"]["clusterIP"] == address


def test_a_recommendation_is_shown_and_nothing_is_made(fleet: Fleet, operator: OperatorProcess, namespace: str) -> None:
    fleet.pool(namespace, "agents", placement={"mode": "Recommend"})
    operator.wait_for("it has a placement", lambda: fleet.status(namespace, "agents").get("placement"))
    assert fleet.status(namespace, "agents")["placement"] == "1x graviton4/OnDemand"
    assert fleet.condition(namespace, "agents", "Placed")["reason"] == "Recommended"
    assert fleet.children(namespace) == {}


def test_a_deleted_pool_takes_its_children_and_its_metrics_with_it(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str
) -> None:
    fleet.pool(namespace, "agents")
    settled()
    operator.wait_for("dollars are counted", lambda: operator.metric("berth_pool_spent_usd_total", pool="agents") > 0)
    fleet.cluster.kubectl("delete", "bpool", "agents", f"--namespace={namespace}")
    operator.wait_for("the garbage collector has removed its children", lambda: not fleet.children(namespace))
    operator.wait_for(
        "its series are gone",
        lambda: not [key for key in operator.metrics() if ("pool_namespace", namespace) in key[1]],
    )


def test_nothing_was_ever_denied_to_the_charts_service_account(operator: OperatorProcess, beginning: int) -> None:
    """After every other test here."""
    assert len(operator.requests(beginning)) > 100
    assert operator.denied(beginning) == []
    assert operator.metric("berth_plans_total", result="error") == 0
