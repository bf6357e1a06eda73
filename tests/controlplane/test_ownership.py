"""Is what belongs to users left to them, what is ours kept, and nothing lost or left behind when either goes away?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Fleet, OperatorProcess

SYSTEM, RELEASE = "berth-keeper", "keeper"
GARBAGE_SECONDS = 90.0
"""The garbage collector learns of a new CRD, and so of its objects' deletions, only every half minute."""
NO_HESITATION = {"disruption": {"minSavingsUsdPerHour": "0.00", "minSavingsPercent": 0, "cooldown": "0s"}}
ON_GPUS = NO_HESITATION | {"hardware": {"allow": {"names": ["l4"]}}}


@pytest.fixture(scope="module")
def operator(make_release: Callable[..., OperatorProcess]) -> OperatorProcess:
    process = make_release(RELEASE, SYSTEM, "--debounce=100ms", "--interval=500ms", "--node-check=500ms")
    process.start()
    return process


@pytest.fixture
def settled(fleet: Fleet, operator: OperatorProcess, namespace: str) -> Callable[..., None]:
    """Wait until a pool is Ready."""

    def wait(name: str = "agents", where: str = namespace) -> None:
        operator.wait_for(f"pool {name} is Ready", lambda: fleet.ready(where, name))

    return wait


def _pods(fleet: Fleet, namespace: str) -> set[str]:
    """UIDs of the pods in a namespace that are not on their way out."""
    items = fleet.cluster.get("pods", f"--namespace={namespace}")["items"]
    return {item["metadata"]["uid"] for item in items if "deletionTimestamp" not in item["metadata"]}


def _owners(fleet: Fleet, namespace: str) -> set[str]:
    """UIDs of the owners of all children; "" for one that has none."""
    metadata = [child["metadata"] for child in fleet.children(namespace).values()]
    return {owner["uid"] for m in metadata for owner in m.get("ownerReferences", [{"uid": ""}])}


def _uid(fleet: Fleet, namespace: str) -> str:
    return str(fleet.cluster.get("bpool", "agents", f"--namespace={namespace}")["metadata"]["uid"])


# --- Namespaces -----------------------------------------------------------------------------------------------------


def test_pools_are_served_under_restricted_pod_security(
    fleet: Fleet, settled: Callable[..., None], namespace: str
) -> None:
    fleet.cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    fleet.pool(namespace, "agents")
    fleet.pool(namespace, "on-gpus", placement=ON_GPUS)
    settled()
    settled("on-gpus")
    assert set(fleet.nodes(namespace)) == {"graviton", "l4"}


def test_pools_of_one_name_in_two_namespaces_know_nothing_of_each_other(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str
) -> None:
    other = f"{namespace}-other"
    fleet.cluster.kubectl("create", "namespace", other)
    try:
        fleet.pool(namespace, "agents")
        fleet.pool(other, "agents", placement=ON_GPUS)
        settled()
        settled(where=other)
        assert (set(fleet.nodes(namespace)), set(fleet.nodes(other))) == ({"graviton"}, {"l4"})
        before = _pods(fleet, other)
        fleet.cluster.kubectl("delete", "bpool", "agents", f"--namespace={namespace}")
        operator.wait_for("its children are gone", lambda: not fleet.children(namespace), GARBAGE_SECONDS)
        assert _pods(fleet, other) == before
        assert fleet.ready(other, "agents")
    finally:
        fleet.cluster.kubectl("delete", "namespace", other, "--wait=false")


# --- What is not ours -----------------------------------------------------------------------------------------------


def test_a_name_that_is_taken_is_told_in_a_condition_until_it_is_free(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str
) -> None:
    where = f"--namespace={namespace}"
    fleet.cluster.kubectl("create", "service", "clusterip", "agents-headless", "--tcp=1:1", where)
    fleet.pool(namespace, "agents")

    def said(kind: str) -> tuple[Any, Any]:
        found = fleet.condition(namespace, "agents", kind)
        return found.get("status"), found.get("reason")

    operator.wait_for("its workers serve", lambda: said("Available") == ("True", "Serving"))
    operator.wait_for("clients that miss a Service miss the pool", lambda: said("Ready") == ("False", "NameTaken"))
    applied = operator.wait_for("it is told", lambda: fleet.condition(namespace, "agents", "Applied"))
    assert (applied["status"], applied["reason"]) == ("False", "NameTaken")
    assert applied["message"].startswith("Service agents-headless: an object of this name exists, not made by Berth")
    fleet.cluster.kubectl("delete", "service", "agents-headless", where)
    operator.wait_for("it is over", lambda: not fleet.condition(namespace, "agents", "Applied"))
    assert ("Service", "agents-headless") in fleet.children(namespace)
    settled()


def test_workers_that_a_quota_forbids_are_not_said_to_start(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str
) -> None:
    fleet.cluster.kubectl("create", "quota", "none", "--hard=count/deployments.apps=0", f"--namespace={namespace}")
    fleet.pool(namespace, "agents")

    def refused() -> Any:
        return fleet.condition(namespace, "agents", "Ready").get("reason") == "Refused"

    operator.wait_for("Ready says what stands against it", refused)
    for kind in ("Ready", "Progressing"):
        condition = fleet.condition(namespace, "agents", kind)
        assert (condition["status"], condition["reason"]) == ("False", "Refused")
        assert "exceeded quota: none" in condition["message"]
    fleet.cluster.kubectl("delete", "quota", "none", f"--namespace={namespace}")
    settled()


def test_an_autoscaler_aimed_at_a_child_is_told_and_the_plan_stands(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str
) -> None:
    fleet.pool(namespace, "agents")
    settled()
    ((_, name),) = [key for key in fleet.children(namespace) if key[0] == "Deployment"]
    where = f"--namespace={namespace}"
    fleet.cluster.kubectl("autoscale", "deployment", name, "--name=theirs", "--min=3", "--max=5", where)
    told = operator.wait_for("it is told", lambda: fleet.condition(namespace, "agents", "ScaledByOthers"))
    assert told["message"].startswith(f"HorizontalPodAutoscaler theirs aims at Deployment {name}: ")
    fleet.cluster.kubectl("delete", "hpa", "theirs", where)
    operator.wait_for("it is over", lambda: not fleet.condition(namespace, "agents", "ScaledByOthers"))
    settled()
    assert len(fleet.nodes(namespace)) == 1


def test_an_object_made_by_hand_with_our_labels_is_neither_counted_nor_deleted(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str
) -> None:
    fleet.pool(namespace, "agents")
    settled()
    (ours,) = fleet.deployments(namespace).values()
    labels = ours["metadata"]["labels"] | {"berth.dev/placement": "byhand"}
    selector = {"berth.dev/pool": "agents", "berth.dev/placement": "byhand"}
    template = json.loads(json.dumps(ours["spec"]["template"]))
    template["metadata"]["labels"] |= selector
    metadata = {"name": "agents-byhand", "namespace": namespace, "labels": labels}
    spec = {"replicas": 0, "selector": {"matchLabels": selector}, "template": template}
    fleet.cluster.apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec})
    passes = operator.passes
    operator.wait_for("three passes", lambda: operator.passes >= passes + 3)
    theirs = fleet.children(namespace)["Deployment", "agents-byhand"]
    assert "ownerReferences" not in theirs["metadata"]


def test_a_child_stripped_of_owner_and_labels_by_hand_is_ours_again(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str
) -> None:
    fleet.pool(namespace, "agents")
    settled()
    before = _pods(fleet, namespace)
    stripped = json.dumps([{"op": "remove", "path": f"/metadata/{field}"} for field in ("ownerReferences", "labels")])
    where = f"--namespace={namespace}"
    for kind, name in fleet.children(namespace):
        fleet.cluster.kubectl("patch", kind, name, where, "--type=json", f"--patch={stripped}")
    owner = {_uid(fleet, namespace)}
    operator.wait_for(
        "all have owner and labels", lambda: len(fleet.children(namespace)) == 4 and _owners(fleet, namespace) == owner
    )
    assert _pods(fleet, namespace) == before


# --- Adoption -------------------------------------------------------------------------------------------------------


def _orphan(fleet: Fleet, operator: OperatorProcess, namespace: str) -> None:
    """Delete the pool alone, and see its children live on without an owner."""
    fleet.cluster.kubectl("delete", "bpool", "agents", f"--namespace={namespace}", "--cascade=orphan", "--timeout=90s")
    operator.wait_for("its children are orphans", lambda: _owners(fleet, namespace) == {""}, GARBAGE_SECONDS)


def test_a_pool_made_again_takes_its_orphans_back_and_restarts_nothing(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str
) -> None:
    fleet.pool(namespace, "agents")
    settled()
    before = _pods(fleet, namespace)
    _orphan(fleet, operator, namespace)
    passes = operator.passes
    operator.wait_for("two passes without a pool", lambda: operator.passes >= passes + 2)
    assert _pods(fleet, namespace) == before
    fleet.pool(namespace, "agents")
    owner = {_uid(fleet, namespace)}
    operator.wait_for("all are the new pool's", lambda: _owners(fleet, namespace) == owner)
    settled()
    assert _pods(fleet, namespace) == before


def test_orphans_that_a_pool_made_again_has_no_use_for_go_once_it_is_served(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str
) -> None:
    fleet.pool(namespace, "agents")
    settled()
    _orphan(fleet, operator, namespace)
    fleet.pool(namespace, "agents", placement=ON_GPUS)
    operator.wait_for("the orphan is gone", lambda: set(fleet.deployments(namespace)) == {"l4/OnDemand"})
    settled()


# --- Going away -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cascade", ["background", "foreground"])
def test_a_pool_can_be_deleted_while_the_operator_is_down(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str, cascade: str
) -> None:
    fleet.pool(namespace, "agents")
    settled()
    operator.terminate()
    try:
        where = f"--namespace={namespace}"
        fleet.cluster.kubectl("delete", "bpool", "agents", where, f"--cascade={cascade}", "--wait", "--timeout=90s")
        fleet.cluster.wait_for("its children are gone", lambda: not fleet.children(namespace), GARBAGE_SECONDS)
    finally:
        operator.start()


def test_a_class_deleted_while_in_use_leaves_its_workers_until_others_are_ready(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str
) -> None:
    doomed = fleet.cluster.get("hardwareclass", "graviton4")
    doomed["metadata"], doomed["status"] = {"name": "doomed"}, {}
    for capacity in doomed["spec"]["capacity"]:
        capacity["usdPerHour"] = "0.100"
    fleet.cluster.apply(doomed)
    fleet.pool(namespace, "agents", placement=NO_HESITATION | {"hardware": {"allow": {"names": ["doomed"]}}})
    fleet.pool(namespace, "movable", placement=NO_HESITATION)
    settled()
    settled("movable")
    before = fleet.deployments(namespace)
    assert {placement.partition("/")[0] for placement in before} == {"doomed"}
    pods = _pods(fleet, namespace)
    fleet.cluster.kubectl("delete", "hardwareclass", "doomed")
    told = operator.wait_for(
        "the pool that may use no other says so",
        lambda: (c := fleet.condition(namespace, "agents", "Accepted")).get("status") == "False" and c,
    )
    assert '"doomed" is not a HardwareClass' in told["message"]
    operator.wait_for("the other one has moved", lambda: "graviton4/OnDemand" in fleet.deployments(namespace))
    settled("movable")
    assert len(_pods(fleet, namespace) & pods) == 1  # the pool that has nowhere to go keeps its worker
    kept = _pods(fleet, namespace) & pods
    operator.wait_for("it shows what it keeps", lambda: fleet.status(namespace, "agents").get("ready") == "1/1")
    status = fleet.status(namespace, "agents")
    assert (status["placement"], status["cost"]["usdPerHour"]) == ("1x doomed/OnDemand (kept)", "0.100")
    where = {"pool_namespace": namespace, "pool": "agents", "hardware_class": "doomed"}
    operator.wait_for("metrics show it, too", lambda: operator.metric("berth_pool_usd_per_hour", **where) == 0.1)
    fleet.cluster.apply(doomed)
    settled()
    assert kept <= _pods(fleet, namespace)
    fleet.cluster.kubectl("delete", "bpool", "--all", f"--namespace={namespace}")
    fleet.cluster.kubectl("delete", "hardwareclass", "doomed")


def test_a_pool_that_is_refused_can_be_suspended(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str
) -> None:
    fleet.pool(namespace, "agents")
    settled()
    unknown = {"hardware": {"allow": {"names": ["no-such-class"]}}}
    fleet.pool(namespace, "agents", placement=unknown)
    operator.wait_for("it is refused", lambda: fleet.status(namespace, "agents")["placement"].endswith("(kept)"))
    fleet.pool(namespace, "agents", placement=unknown, suspend=True)
    operator.wait_for("its worker is gone", lambda: not fleet.deployments(namespace))
    operator.wait_for("nothing is paid", lambda: fleet.status(namespace, "agents")["cost"]["usdPerHour"] == "0.000")
    assert ("Service", "agents") in fleet.children(namespace)


@pytest.fixture
def single(fleet: Fleet) -> Iterator[dict[str, Any]]:
    """The placement of pools that may use one class alone, of which there is one node."""
    found = fleet.cluster.get("hardwareclass", "graviton4")
    found["metadata"], found["status"] = {"name": "single"}, {}
    found["spec"]["capacity"] = found["spec"]["capacity"][:1]
    found["spec"]["capacity"][0] |= {"maxNodes": 1, "usdPerHour": "0.100"}
    fleet.cluster.apply(found)
    yield NO_HESITATION | {"hardware": {"allow": {"names": ["single"]}}}
    fleet.cluster.kubectl("delete", "hardwareclass", "single")


def test_nobody_is_placed_on_the_node_of_a_pool_that_is_refused(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str, single: dict[str, Any]
) -> None:
    fleet.pool(namespace, "agents", placement=single)
    settled()
    pods = _pods(fleet, namespace)
    fleet.pool(namespace, "agents", placement={"hardware": {"allow": {"names": ["no-such-class"]}}})
    operator.wait_for("it is refused", lambda: fleet.status(namespace, "agents")["placement"].endswith("(kept)"))
    fleet.pool(namespace, "other", placement=single)
    told = operator.wait_for(
        "the other one has no place",
        lambda: (c := fleet.condition(namespace, "other", "Placed")).get("reason") == "NoCapacity" and c,
    )
    assert f"the one node (maxNodes) is taken by {namespace}/agents" in told["message"]
    assert _pods(fleet, namespace) == pods
    status = fleet.cluster.get("hardwareclass", "single")["status"]
    available = next(c for c in status["conditions"] if c["type"] == "Available")
    assert (status["nodesInUse"], available["reason"]) == (1, "AllInUse")

    def demanded() -> set[str]:
        name = "berth_pool_demand_requests_per_second"
        labels = [dict(labels) for (metric, labels) in operator.metrics() if metric == name]
        return {one["pool"] for one in labels if one["pool_namespace"] == namespace}

    operator.wait_for("what is planned for is told, and no more", lambda: demanded() == {"other"})
    fleet.cluster.kubectl("delete", "bpool", "agents", f"--namespace={namespace}")
    settled("other")


def test_a_pool_yields_its_node_to_one_that_matters_more_and_to_no_other(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str, single: dict[str, Any]
) -> None:
    fleet.pool(namespace, "serves", placement=single)
    settled("serves")
    for name in ("equal", "yet-another"):
        fleet.pool(namespace, name, placement=single)
        operator.wait_for(
            "an equal has no place",
            lambda n=name: fleet.condition(namespace, n, "Placed").get("reason") == "NoCapacity",
        )
    assert fleet.ready(namespace, "serves")
    fleet.pool(namespace, "matters", placement=single, priority=5)
    settled("matters")
    assert fleet.condition(namespace, "serves", "Placed")["reason"] == "NoCapacity"
    assert len(fleet.nodes(namespace)) == 1


# --- Absurd labels --------------------------------------------------------------------------------------------------


@pytest.fixture
def absurd_nodes(fleet: Fleet) -> Iterator[list[str]]:
    """Nodes of which nothing can be believed."""
    labels: dict[str, Any] = {
        "topology.kubernetes.io/zone": "",
        "node.kubernetes.io/instance-type": "x" * 63,
        "kubernetes.io/arch": "sparc",
        "nvidia.com/gpu.memory": "a-lot",
        "karpenter.k8s.aws/instance-cpu": "minus-one",
        "karpenter.sh/capacity-type": "free",
        "berth.dev/pool": "agents",
    } | {f"example.com/{n}": "y" * 63 for n in range(200)}
    names = ["absurd-0", "absurd-1"]
    for name in names:
        fleet.cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
    yield names
    fleet.cluster.kubectl("delete", "node", *names)


def test_a_class_that_selects_by_what_is_no_label_is_named_and_disturbs_nobody(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str
) -> None:
    absurd = fleet.cluster.get("hardwareclass", "graviton4")
    absurd["metadata"], absurd["status"] = {"name": "absurd"}, {}
    absurd["spec"]["capacity"] = [{"type": "OnDemand", "usdPerHour": "0.010", "selector": {"not a label!": "x"}}]
    fleet.cluster.apply(absurd)
    try:
        fleet.pool(namespace, "agents")
        settled()
        assert set(fleet.nodes(namespace)) == {"graviton"}

        def accepted() -> Any:
            conditions = fleet.cluster.get("hardwareclass", "absurd").get("status", {}).get("conditions", [])
            return next((c for c in conditions if c["type"] == "Accepted"), None)

        told = operator.wait_for("the class says why no plan uses it", accepted)
        assert (told["status"], told["reason"]) == ("False", "BadSelector")
        assert "cannot be checked" not in operator.log
    finally:
        fleet.cluster.kubectl("delete", "hardwareclass", "absurd")


def test_nodes_with_absurd_labels_keep_nobody_from_being_served(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str, absurd_nodes: list[str]
) -> None:
    fleet.pool(namespace, "agents")
    settled()
    assert set(fleet.nodes(namespace)) == {"graviton"}
    assert "cannot be checked" not in operator.log
    assert operator.metric("berth_plans_total", result="error") == 0


# --- The operator goes ----------------------------------------------------------------------------------------------


def test_workers_outlive_the_operator_and_all_that_its_chart_made(
    fleet: Fleet, operator: OperatorProcess, settled: Callable[..., None], namespace: str
) -> None:
    """The last test here: it takes the release away."""
    fleet.pool(namespace, "agents")
    settled()
    before = _pods(fleet, namespace)
    operator.terminate()
    selector = f"--selector=app.kubernetes.io/instance={RELEASE}"
    fleet.cluster.kubectl("delete", "clusterroles,clusterrolebindings", selector)
    fleet.cluster.kubectl("delete", "namespace", SYSTEM, "--timeout=60s")
    assert _pods(fleet, namespace) == before
    where = f"--namespace={namespace}"
    fleet.cluster.kubectl("delete", "pods", "--all", where, "--wait=false")
    fleet.cluster.wait_for(
        "Kubernetes alone replaces a worker",
        lambda: fleet.nodes(namespace) == ["graviton"] and not _pods(fleet, namespace) & before,
    )
    fleet.cluster.kubectl("delete", "bpool", "agents", where, "--timeout=90s")
