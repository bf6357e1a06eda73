"""Is a replica that spans nodes one group, of which the leader alone serves?"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from berth_operator.api import CapacityType, HardwareClass, InferencePool
from berth_operator.api.names import POOL_LABEL, TEMPLATE_HASH_ANNOTATION, TRAFFIC_LABEL
from berth_operator.planner import Placement, Plan, PoolPlan, Snapshot
from berth_operator.render import RenderSettings, placement_id, render

Manifest = dict[str, Any]
MODEL = {"name": "llama-3.1-405b-instruct", "source": "hf://meta-llama/Llama-3.1-405B-Instruct"}
GROUP_INDEX = "leaderworkerset.sigs.k8s.io/group-index"


@pytest.fixture
def p5(make_class: Callable[..., HardwareClass]) -> HardwareClass:
    return make_class(
        "p5",
        kind="GPU",
        architecture="amd64",
        cpus=192,
        memoryGiB=640,
        accelerators={"resource": "nvidia.com/gpu", "count": 8},
        runtime={"name": "VLLM", "args": ["--enforce-eager"]},
        maxNodesPerReplica=2,
    )


@pytest.fixture
def children(
    make_pool: Callable[..., InferencePool],
    make_plan: Callable[..., PoolPlan],
    make_placement: Callable[..., Placement],
    p5: HardwareClass,
    now: datetime,
) -> Callable[..., list[Manifest]]:
    def make(
        hardware: HardwareClass = p5,
        *,
        span: int = 2,
        capacity_type: CapacityType = CapacityType.ON_DEMAND,
        **spec: Any,
    ) -> list[Manifest]:
        pool = make_pool(**({"model": MODEL} | spec))
        where = {"hardware_class": "p5", "capacity_type": capacity_type}
        placement = make_placement(**where, replicas=3, nodes=3 * span, nodes_per_replica=span)
        plan = make_plan(pool, placements=(placement,))
        snapshot = Snapshot(now=now, pools=(pool,), hardware_classes=(hardware,))
        return render(Plan({pool.key: plan}, 0.0, "Optimal"), snapshot, RenderSettings())

    return make


def _only(objects: list[Manifest], kind: str) -> Manifest:
    (found,) = [o for o in objects if o["kind"] == kind]
    return found


def _templates(objects: list[Manifest]) -> tuple[Manifest, Manifest]:
    template = _only(objects, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    return template["leaderTemplate"], template["workerTemplate"]


def _container(template: Manifest) -> Manifest:
    (container,) = template["spec"]["containers"]
    return dict(container)


def test_a_placement_of_several_nodes_a_replica_is_a_leader_worker_set(children: Callable[..., Any]) -> None:
    objects = children()
    assert sorted(o["kind"] for o in objects) == ["LeaderWorkerSet", "PodDisruptionBudget", "Service", "Service"]
    found = _only(objects, "LeaderWorkerSet")
    assert found["apiVersion"] == "leaderworkerset.x-k8s.io/v1"
    assert found["metadata"]["ownerReferences"][0]["kind"] == "InferencePool"
    spec = found["spec"]
    assert (spec["replicas"], spec["leaderWorkerTemplate"]["size"]) == (3, 2)
    assert spec["leaderWorkerTemplate"]["restartPolicy"] == "RecreateGroupOnPodRestart"
    assert spec["rolloutStrategy"]["rollingUpdateConfiguration"] == {"partition": 0, "maxUnavailable": 0, "maxSurge": 1}
    # With one Service for all of its groups it would bear the name of the placement, which its own Service has.
    assert spec["networkConfig"] == {"subdomainPolicy": "UniquePerReplica"}


def test_services_select_leaders_alone(children: Callable[..., Any]) -> None:
    objects = children()
    leader, worker = _templates(objects)
    for service in (o for o in objects if o["kind"] == "Service"):
        selector = service["spec"]["selector"]
        assert selector.items() <= leader["metadata"]["labels"].items()
        assert not selector.items() <= worker["metadata"]["labels"].items()
    assert TRAFFIC_LABEL not in worker["metadata"]["labels"]


def test_a_budget_counts_every_pod_since_any_takes_its_replica_with_it(children: Callable[..., Any]) -> None:
    objects = children()
    chosen = _only(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
    assert chosen.keys() == {POOL_LABEL}
    assert all(chosen.items() <= template["metadata"]["labels"].items() for template in _templates(objects))


def test_vllm_is_parallel_over_the_devices_of_a_node_and_a_pipeline_over_nodes(children: Callable[..., Any]) -> None:
    leader, worker = map(_container, _templates(children()))
    parallel = [
        "--tensor-parallel-size=8",
        "--pipeline-parallel-size=2",
        "--nnodes=2",
        "--node-rank=$(LWS_WORKER_INDEX)",
        "--master-addr=$(LWS_LEADER_ADDRESS)",
    ]
    assert leader["command"] == worker["command"] == ["vllm", "serve"]
    assert leader["args"][0] == "meta-llama/Llama-3.1-405B-Instruct"
    assert [a for a in leader["args"] if a in parallel] == parallel
    assert leader["args"][-1] == "--enforce-eager"
    assert worker["args"] == [*leader["args"], "--headless"]
    address = {"name": "VLLM_HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    assert address in leader["env"]
    assert address in worker["env"]


def test_the_leader_alone_has_ports_and_is_asked_whether_it_is_ready(children: Callable[..., Any]) -> None:
    leader, worker = map(_container, _templates(children()))
    assert leader["readinessProbe"]["httpGet"]["path"] == "/health"
    assert leader["ports"]
    assert not {"ports", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle"} & worker.keys()


def test_every_pod_takes_a_whole_node_and_workers_go_to_their_leaders_zone(children: Callable[..., Any]) -> None:
    leader, worker = _templates(children())
    for template in (leader, worker):
        assert _container(template)["resources"]["limits"] == {"nvidia.com/gpu": "8"}
        (term,) = template["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert term["topologyKey"] == "kubernetes.io/hostname"
    (near,) = worker["spec"]["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert near["podAffinityTerm"]["topologyKey"] == "topology.kubernetes.io/zone"
    assert near["podAffinityTerm"]["matchLabelKeys"] == [GROUP_INDEX]
    leads = near["podAffinityTerm"]["labelSelector"]["matchLabels"]["leaderworkerset.sigs.k8s.io/worker-index"]
    assert leads == "0", "a pod that matched itself might go anywhere"
    assert "podAffinity" not in leader["spec"]["affinity"]
    assert "topologySpreadConstraints" not in worker["spec"], "they follow their leader"


def test_where_zones_may_be_lost_one_at_a_time_a_group_is_in_one(
    children: Callable[..., Any], p5: HardwareClass, make_placement: Callable[..., Placement]
) -> None:
    capacity = p5.spec.capacity[1].model_copy(update={"zones": ["a", "b"]})
    spot = p5.model_copy(update={"spec": p5.spec.model_copy(update={"capacity": [p5.spec.capacity[0], capacity]})})
    objects = children(spot, capacity_type=capacity.type, placement={"spot": {"surviveLossPercent": 50}})
    leader, worker = _templates(objects)
    (spread,) = leader["spec"]["topologySpreadConstraints"]
    assert (spread["whenUnsatisfiable"], spread["minDomains"]) == ("DoNotSchedule", 2)
    assert spread["labelSelector"]["matchLabels"]["leaderworkerset.sigs.k8s.io/worker-index"] == "0"
    assert worker["spec"]["affinity"]["podAffinity"].keys() == {"requiredDuringSchedulingIgnoredDuringExecution"}


def test_devices_of_a_replica_share_memory(children: Callable[..., Any]) -> None:
    for template in _templates(children()):
        (volume,) = [v for v in template["spec"]["volumes"] if v["name"] == "shm"]
        assert volume["emptyDir"]["medium"] == "Memory"
        assert {"name": "shm", "mountPath": "/dev/shm"} in _container(template)["volumeMounts"]  # noqa: S108


def test_an_image_of_ones_own_is_told_how_many_nodes_its_replica_spans(
    children: Callable[..., Any], p5: HardwareClass
) -> None:
    runtime = p5.spec.runtime.model_copy(update={"name": "Custom", "image": "mine:1", "args": ["serve"]})
    custom = p5.model_copy(update={"spec": p5.spec.model_copy(update={"runtime": runtime})})
    leader, worker = map(_container, _templates(children(custom)))
    assert leader["args"] == worker["args"] == ["serve"]
    assert {"name": "BERTH_NODES_PER_REPLICA", "value": "2"} in worker["env"]


def test_another_number_of_nodes_is_another_placement(children: Callable[..., Any]) -> None:
    two, four = children(), children(span=4)
    assert _only(two, "LeaderWorkerSet")["metadata"]["name"] != _only(four, "LeaderWorkerSet")["metadata"]["name"]
    assert placement_id("ns/p", "c", "Spot") == placement_id("ns/p", "c", "Spot", None, 1)  # type: ignore[arg-type]
    hashes = {_only(o, "LeaderWorkerSet")["metadata"]["annotations"][TEMPLATE_HASH_ANNOTATION] for o in (two, four)}
    assert len(hashes) == 2


def test_vllm_divides_a_model_over_the_devices_of_one_node_too(children: Callable[..., Any]) -> None:
    objects = children(span=1)
    container = _container(_only(objects, "Deployment")["spec"]["template"])
    assert "--tensor-parallel-size=8" in container["args"]
    assert not [a for a in container["args"] if a.startswith(("--nnodes", "--pipeline"))]
    assert container["args"][0] == "--model=meta-llama/Llama-3.1-405B-Instruct"
    assert "command" not in container
