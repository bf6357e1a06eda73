"""Is a model too large for a node served by groups of nodes, made by LeaderWorkerSet's own controller?

The controller and its webhooks are real (`devcluster.groups`); the kubelets are simulated, so no vLLM runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from devcluster import SimulatedNodePool
from devcluster.groups import LeaderWorkerSets

if TYPE_CHECKING:
    from conftest import Fleet, OperatorProcess

NAMESPACE, SYSTEM = "large-models", "berth-multinode"
WHERE = f"--namespace={NAMESPACE}"
H100 = SimulatedNodePool(
    "h100",
    9,
    "p5.48xlarge",
    "amd64",
    192,
    "2048Gi",
    gpus=8,
    zones=("eu-west-1a", "eu-west-1b"),
    taints=("nvidia.com/gpu=present:NoSchedule",),
)
H200 = SimulatedNodePool(
    "h200", 2, "p5en.48xlarge", "amd64", 192, "2048Gi", gpus=8, taints=("nvidia.com/gpu=present:NoSchedule",)
)
NO_HESITATION = {"minSavingsUsdPerHour": "0.00", "minSavingsPercent": 0, "cooldown": "0s"}
POOL: dict[str, Any] = {
    "model": {
        "name": "llama-3.1-405b-instruct",
        "source": "hf://meta-llama/Llama-3.1-405B-Instruct",
        "quantization": "BF16",
    },
    "objectives": {"timeToFirstTokenP99": "5s", "interTokenLatencyP99": "200ms", "turnLatencyP99": "60s"},
    "placement": {"hardware": {"allow": {"names": ["h100", "h200"]}}, "disruption": NO_HESITATION},
}


def _class(
    name: str, memory_gib: int, bandwidth: int, usd: str, pool: SimulatedNodePool, **spec: Any
) -> dict[str, Any]:
    capacity = {
        "type": "OnDemand",
        "usdPerHour": usd,
        "maxNodes": pool.count,
        "selector": {"node.kubernetes.io/instance-type": pool.instance_type},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    }
    body = {
        "vendor": "NVIDIA",
        "chip": name.upper(),
        "kind": "GPU",
        "architecture": "amd64",
        "cpus": 192,
        "memoryGiB": memory_gib,
        "memoryBandwidthGBps": bandwidth,
        "compute": {"bf16Tflops": 7912},
        "accelerators": {"resource": "nvidia.com/gpu", "count": 8},
        "runtime": {"name": "VLLM"},
        "capacity": [capacity],
        **spec,
    }
    return {"apiVersion": "berth.dev/v1alpha1", "kind": "HardwareClass", "metadata": {"name": name}, "spec": body}


def _prices(fleet: Fleet, h200: str) -> None:
    """Of a node; h100 takes two of them for a replica."""
    spans = {"maxNodesPerReplica": 2, "interconnectGbps": 3200}
    fleet.cluster.apply(_class("h100", 640, 26_800, "55.040", H100, **spans), _class("h200", 1128, 38_400, h200, H200))


def _pool(fleet: Fleet, rps: str = "1", **changes: Any) -> None:
    workload = {"class": "Interactive", "demand": {"requestsPerSecond": rps}}
    fleet.pool(NAMESPACE, "large", workload=workload, **(POOL | changes))


@pytest.fixture(scope="module")
def operator(fleet: Fleet, make_release: Callable[..., OperatorProcess]) -> Iterator[OperatorProcess]:
    """An operator that may make LeaderWorkerSets, in a cluster that serves none yet."""
    fleet.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    fleet.cluster.add_nodes(H100, H200)
    _prices(fleet, "190.000")
    flags = [f"--watch-namespaces={NAMESPACE}", "--debounce=100ms", "--interval=500ms", "--discover-interval=500ms"]
    settings = ["integrations.leaderWorkerSet.enabled=true"]
    process = make_release("multinode", SYSTEM, *flags, "--watch-nodes", settings=settings)
    process.start()
    yield process
    process.end()
    fleet.cluster.kubectl("delete", "hardwareclass", "h100", "h200", "--ignore-not-found")
    fleet.cluster.kubectl("delete", "namespace", NAMESPACE, SYSTEM, "--wait=false")
    fleet.cluster.kubectl("delete", "node", *(f"{p.name}-{i}" for p in (H100, H200) for i in range(p.count)))


@pytest.fixture(scope="module")
def groups(fleet: Fleet, operator: OperatorProcess) -> Iterator[LeaderWorkerSets]:
    """LeaderWorkerSet, installed while the operator runs."""
    with LeaderWorkerSets(fleet.cluster) as installed:
        yield installed


def _sets(fleet: Fleet) -> list[dict[str, Any]]:
    return list(fleet.cluster.get("leaderworkersets", WHERE)["items"])


def _pods(fleet: Fleet) -> list[dict[str, Any]]:
    return list(fleet.cluster.get("pods", WHERE)["items"])


def _index(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["labels"]["leaderworkerset.sigs.k8s.io/worker-index"])


def _group(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["labels"]["leaderworkerset.sigs.k8s.io/group-index"])


def _is_ready(pod: dict[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))


def _served(fleet: Fleet) -> set[str]:
    """Addresses to which the pool's Service leads."""
    selector = "--selector=kubernetes.io/service-name=large"
    slices = fleet.cluster.get("endpointslices", WHERE, selector)["items"]
    return {a for s in slices for e in s["endpoints"] or () for a in e["addresses"] if e["conditions"].get("ready")}


def _reason(fleet: Fleet, name: str) -> str:
    candidates = fleet.status(NAMESPACE, "large").get("candidates", [])
    return next((str(c["reason"]) for c in candidates if c["hardwareClass"] == name), "")


def _ready(fleet: Fleet) -> bool:
    return fleet.ready(NAMESPACE, "large")


@pytest.fixture(autouse=True)
def _its_controller_lives(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "groups" in request.fixturenames:
        request.getfixturevalue("groups").check()


def test_without_the_kind_the_model_is_not_placed_and_says_why_once(fleet: Fleet, operator: OperatorProcess) -> None:
    _pool(fleet, placement=POOL["placement"] | {"hardware": {"allow": {"names": ["h100"]}}})
    operator.wait_for("the reason is told", lambda: "LeaderWorkerSet is not installed" in _reason(fleet, "h100"))
    assert "weights 756.0 GiB" in _reason(fleet, "h100")
    passes = operator.passes
    operator.wait_for("three more passes", lambda: operator.passes >= passes + 3)
    assert operator.log.count("leaderworkerset.x-k8s.io is not served") == 1
    assert not fleet.deployments(NAMESPACE)


def test_once_it_is_installed_a_replica_spans_two_nodes(
    fleet: Fleet, operator: OperatorProcess, groups: LeaderWorkerSets
) -> None:
    _pool(fleet)
    operator.wait_for("the pool is Ready", lambda: _ready(fleet))
    (found,) = _sets(fleet)
    assert found["spec"]["leaderWorkerTemplate"]["size"] == 2
    assert found["metadata"]["ownerReferences"][0]["kind"] == "InferencePool"
    pods = _pods(fleet)
    assert sorted(_index(pod) for pod in pods) == ["0", "1"]
    assert len({pod["spec"]["nodeName"] for pod in pods}) == 2, "a node each"
    labels = {node["metadata"]["name"]: node["metadata"]["labels"] for node in fleet.cluster.get("nodes")["items"]}
    zones = {labels[pod["spec"]["nodeName"]]["topology.kubernetes.io/zone"] for pod in pods}
    assert len(zones) == 1, "in one zone"
    leader = next(pod for pod in pods if _index(pod) == "0")
    operator.wait_for("it alone is served", lambda: _served(fleet) == {leader["status"]["podIP"]})
    environment = {e["name"] for pod in pods for e in pod["spec"]["containers"][0]["env"]}
    assert {"LWS_LEADER_ADDRESS", "LWS_WORKER_INDEX"} <= environment, "what the command line names"
    (placement,) = fleet.status(NAMESPACE, "large")["placements"]
    assert (placement["replicas"], placement["readyReplicas"], placement["nodesPerReplica"]) == (1, 1, 2)
    assert placement["usdPerHour"] == "110.080"
    assert "a replica spans 2 nodes" in _reason(fleet, "h100")


def test_at_rest_nothing_is_written(fleet: Fleet, operator: OperatorProcess, groups: LeaderWorkerSets) -> None:
    operator.wait_for("the pool is Ready", lambda: _ready(fleet))
    passes = operator.passes
    operator.wait_for("two passes", lambda: operator.passes >= passes + 2)
    mark, passes = fleet.cluster.audit_mark(), operator.passes
    operator.wait_for("three more passes", lambda: operator.passes >= passes + 3)
    assert operator.writes(mark) == []


def test_what_somebody_changes_in_it_is_set_right(
    fleet: Fleet, operator: OperatorProcess, groups: LeaderWorkerSets
) -> None:
    (found,) = _sets(fleet)
    theirs = json.dumps({"metadata": {"labels": {"theirs": "yes"}}, "spec": {"replicas": 2}})
    name = found["metadata"]["name"]
    fleet.cluster.kubectl("patch", "leaderworkerset", name, WHERE, "--type=merge", f"--patch={theirs}")
    operator.wait_for("it is one again", lambda: _sets(fleet)[0]["spec"]["replicas"] == 1)
    assert _sets(fleet)[0]["metadata"]["labels"]["theirs"] == "yes"
    operator.wait_for("so are its pods", lambda: len(_pods(fleet)) == 2)


def test_more_demand_takes_nodes_two_at_a_time(
    fleet: Fleet, operator: OperatorProcess, groups: LeaderWorkerSets
) -> None:
    _pool(fleet, "5")
    operator.wait_for("two groups are ready", lambda: _sets(fleet)[0]["status"].get("readyReplicas") == 2)
    operator.wait_for("the pool is Ready", lambda: _ready(fleet))
    pods = _pods(fleet)
    assert len({pod["spec"]["nodeName"] for pod in pods}) == 4
    leaders = {pod["status"]["podIP"] for pod in pods if _index(pod) == "0"}
    operator.wait_for("both leaders are served", lambda: _served(fleet) == leaders)


def test_a_group_is_replaced_before_one_of_its_nodes_is_emptied(
    fleet: Fleet, operator: OperatorProcess, groups: LeaderWorkerSets
) -> None:
    operator.wait_for("the pool is Ready", lambda: _ready(fleet))
    worker = next(pod for pod in _pods(fleet) if (_group(pod), _index(pod)) == ("0", "1"))
    uid, node = worker["metadata"]["uid"], worker["spec"]["nodeName"]
    fewest = [2]

    def moved() -> bool:
        pods = _pods(fleet)
        whole = [g for g in {_group(p) for p in pods} if sum(_is_ready(p) for p in pods if _group(p) == g) == 2]
        fewest.append(len(whole))
        gone = uid not in {pod["metadata"]["uid"] for pod in pods}
        away = gone and node not in {pod["spec"].get("nodeName") for pod in pods}
        (found,) = _sets(fleet)  # its status counts the stand-in for a while after that has gone
        two = found["spec"]["replicas"] == found["status"].get("readyReplicas") == 2
        return away and two and len(pods) == 4 and sorted(whole) == ["0", "1"]

    fleet.cluster.kubectl("cordon", node)
    try:
        operator.wait_for("the group is on other nodes, and its stand-in gone", moved)
    finally:
        fleet.cluster.kubectl("uncordon", node)
    assert min(fewest) == 2, "never fewer groups than the plan wants"
    operator.wait_for("the pool is Ready", lambda: _ready(fleet))


def test_a_move_to_nodes_that_hold_the_model_alone_makes_before_it_breaks(
    fleet: Fleet, operator: OperatorProcess, groups: LeaderWorkerSets
) -> None:
    names = [f"h200-{i}" for i in range(H200.count)]
    fleet.cluster.kubectl("cordon", *names)
    try:
        _prices(fleet, "60.000")
        operator.wait_for("the new placement is asked for", lambda: "h200/OnDemand" in fleet.deployments(NAMESPACE))
        passes = operator.passes
        operator.wait_for("three more passes", lambda: operator.passes >= passes + 3)
        assert _sets(fleet)[0]["status"]["readyReplicas"] == 2, "what serves goes on"
    finally:
        fleet.cluster.kubectl("uncordon", *names)
    operator.wait_for("the groups are gone", lambda: not _sets(fleet))
    operator.wait_for("with their pods", lambda: len(_pods(fleet)) == 2)
    operator.wait_for("the pool is Ready", lambda: _ready(fleet))


def test_a_pool_that_is_deleted_takes_its_groups_with_it(
    fleet: Fleet, operator: OperatorProcess, groups: LeaderWorkerSets
) -> None:
    _prices(fleet, "190.000")
    operator.wait_for("groups serve again", lambda: _sets(fleet) and not fleet.deployments(NAMESPACE))
    operator.wait_for("the pool is Ready", lambda: _ready(fleet))
    fleet.cluster.kubectl("delete", "bpool", "large", WHERE)
    operator.wait_for("nothing is left", lambda: not _sets(fleet) and not _pods(fleet))
    assert operator.metric("berth_plans_total", result="error") == 0
