"""Are the children what a Kubernetes user expects, and the same for the same plan?"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from berth_operator.api import CapacityType, HardwareClass, InferencePool, ReplicaResources
from berth_operator.api.names import POOL_LABEL, RENDER_HASH_ANNOTATION, TRAFFIC_LABEL
from berth_operator.planner import Placement, Plan, PoolPlan, Problem, Snapshot
from berth_operator.render import RenderSettings, placement_id, render, render_hash

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]


@pytest.fixture
def children(
    make_pool: Callable[..., InferencePool],
    make_class: Callable[..., HardwareClass],
    make_plan: Callable[..., PoolPlan],
    make_placement: Callable[..., Placement],
    now: datetime,
) -> Render:
    def make(
        *placements: Placement, classes: tuple[HardwareClass, ...] = (), plan: dict[str, Any] | None = None, **spec: Any
    ) -> list[Manifest]:
        pool = make_pool(**spec)
        pool_plan = make_plan(pool, placements=placements or (make_placement(),), **(plan or {}))
        snapshot = Snapshot(now=now, pools=(pool,), hardware_classes=classes or (make_class(),))
        return render(Plan({pool.key: pool_plan}, 0.0, "Optimal"), snapshot, RenderSettings(worker_image="w:1"))

    return make


def _only(objects: list[Manifest], kind: str) -> Manifest:
    (found,) = [o for o in objects if o["kind"] == kind]
    return found


def _worker(objects: list[Manifest]) -> Manifest:
    return _only(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]


def test_a_pool_has_a_deployment_two_services_and_a_budget(children: Render) -> None:
    assert sorted(o["kind"] for o in children()) == ["Deployment", "PodDisruptionBudget", "Service", "Service"]


def test_a_deployment_selects_by_pool_and_placement_only_and_services_by_traffic(children: Render) -> None:
    objects = children()
    deployment = _only(objects, "Deployment")
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert set(selector) == {"berth.dev/pool", "berth.dev/placement"}
    pod_labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert selector.items() <= pod_labels.items()
    services = [o for o in objects if o["kind"] == "Service"]
    assert all(s["spec"]["selector"] == {"berth.dev/pool": "agents", TRAFFIC_LABEL: "on"} for s in services)
    assert [s["spec"].get("clusterIP") for s in services] == [None, "None"]


def test_spot_goes_where_spot_nodes_are_and_drains_within_their_notice(
    children: Render, make_placement: Callable[..., Placement]
) -> None:
    pod = _only(children(make_placement(capacity_type=CapacityType.SPOT)), "Deployment")["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"kubernetes.io/arch": "arm64", "pool": "spot"}
    assert pod["tolerations"] == [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["terminationGracePeriodSeconds"] < 120


def _in_zones(make_class: Callable[..., HardwareClass], **spec: Any) -> HardwareClass:
    own = make_class(**spec)
    capacity = [c.model_copy(update={"zones": ["b", "a", "c"]}) for c in own.spec.capacity]
    return own.model_copy(update={"spec": own.spec.model_copy(update={"capacity": capacity})})


def _pod(objects: list[Manifest]) -> Manifest:
    pod: Manifest = _only(objects, "Deployment")["spec"]["template"]["spec"]
    return pod


def test_spot_workers_are_held_apart_over_the_zones_whose_loss_they_must_survive(
    children: Render, make_class: Callable[..., HardwareClass], make_placement: Callable[..., Placement]
) -> None:
    spot = make_placement(capacity_type=CapacityType.SPOT, replicas_per_node=2, resources=ReplicaResources(cpu="2"))
    pod = _pod(children(spot, classes=(_in_zones(make_class),)))
    (spread,) = pod["topologySpreadConstraints"]
    assert (spread["maxSkew"], spread["whenUnsatisfiable"], spread["minDomains"]) == (2, "DoNotSchedule", 3)
    required = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (expression,) = required["nodeSelectorTerms"][0]["matchExpressions"]
    assert expression == {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["a", "b", "c"]}
    assert "podAffinity" in pod["affinity"], "and still packed onto nodes"


@pytest.mark.parametrize("what", ["no zones", "on demand", "nothing to survive"])
def test_workers_wait_for_no_zone_that_nothing_depends_on(
    what: str, children: Render, make_class: Callable[..., HardwareClass], make_placement: Callable[..., Placement]
) -> None:
    hardware = make_class() if what == "no zones" else _in_zones(make_class)
    kind = CapacityType.ON_DEMAND if what == "on demand" else CapacityType.SPOT
    survive = 0 if what == "nothing to survive" else 70
    placement = {"spot": {"surviveLossPercent": survive}}
    pod = _pod(children(make_placement(capacity_type=kind), classes=(hardware,), placement=placement))
    (spread,) = pod["topologySpreadConstraints"]
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    assert "minDomains" not in spread


def test_a_whole_node_replica_shares_its_node_with_no_other_worker(children: Render) -> None:
    pod = _only(children(), "Deployment")["spec"]["template"]["spec"]
    (term,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["namespaceSelector"] == {}
    assert _worker(children())["resources"]["requests"] == {"cpu": "14", "memory": "27852Mi"}


def test_a_profiled_replica_gets_exactly_its_resources(
    children: Render, make_placement: Callable[..., Placement]
) -> None:
    objects = children(
        make_placement(resources=ReplicaResources(cpu="2", memory="1Gi"), replicas_per_node=7, shareable=True)
    )
    amounts = {"cpu": "2", "memory": "1Gi"}
    assert _worker(objects)["resources"] == {"requests": amounts, "limits": amounts}
    affinity = _only(objects, "Deployment")["spec"]["template"]["spec"]["affinity"]
    assert set(affinity) == {"podAffinity"}  # packed onto the nodes that the plan pays for
    own, others = affinity["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert own["weight"] > others["weight"]
    assert others["podAffinityTerm"]["namespaceSelector"] == {}  # other pools', wherever they are
    assert POOL_LABEL not in others["podAffinityTerm"]["labelSelector"]["matchLabels"]


def test_a_replica_that_was_measured_alone_on_a_node_shares_it_with_nobody(
    children: Render, make_placement: Callable[..., Placement]
) -> None:
    objects = children(make_placement(resources=ReplicaResources(cpu="2"), replicas_per_node=1))
    assert set(_only(objects, "Deployment")["spec"]["template"]["spec"]["affinity"]) == {"podAntiAffinity"}


def test_a_gpu_class_runs_vllm_and_asks_for_its_devices(
    children: Render, make_class: Callable[..., HardwareClass], make_placement: Callable[..., Placement]
) -> None:
    gpu = make_class(
        "l4",
        kind="GPU",
        architecture="amd64",
        accelerators={"resource": "nvidia.com/gpu", "count": 1},
        cpus=4,
        runtime={"name": "VLLM", "args": ["--enforce-eager"]},
    )
    objects = children(
        make_placement(hardware_class="l4"),
        classes=(gpu,),
        model={"name": "llama-3.1-8b-instruct", "source": "hf://meta-llama/Llama-3.1-8B-Instruct"},
    )
    worker = _worker(objects)
    assert worker["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert "--model=meta-llama/Llama-3.1-8B-Instruct" in worker["args"]
    assert worker["args"][-1] == "--enforce-eager"
    assert worker["lifecycle"] == {"preStop": {"sleep": {"seconds": 5}}}  # it refuses as soon as it is told to end
    assert "lifecycle" not in _worker(children())  # ours goes on admitting for as long itself


def test_vllm_is_told_how_many_tokens_a_step_may_take(
    children: Render, make_class: Callable[..., HardwareClass], make_placement: Callable[..., Placement]
) -> None:
    devices = {"resource": "nvidia.com/gpu", "count": 1}
    gpu = make_class("l4", kind="GPU", architecture="amd64", accelerators=devices, runtime={"name": "VLLM"})
    placement = make_placement(hardware_class="l4")
    placement = replace(placement, capacity=replace(placement.capacity, token_budget=512))
    assert "--max-num-batched-tokens=512" in _worker(children(placement, classes=(gpu,)))["args"]
    assert not any("batched" in a for a in _worker(children())["args"]), "ours keeps the promise itself"


def test_our_worker_knows_what_was_promised_between_tokens(
    children: Render, make_placement: Callable[..., Placement]
) -> None:
    def promised(placement: Placement | None = None, **spec: Any) -> str:
        rendered = children(placement, **spec) if placement else children(**spec)
        env = {e["name"]: e["value"] for e in _worker(rendered)["env"]}
        return str(env["BERTH_WORKER_INTER_TOKEN_LATENCY_P99_SECONDS"])

    assert promised(objectives={"interTokenLatencyP99": "45ms"}) == "0.045"
    assert promised(objectives=None) == "0.06", "the class's default"
    placement = make_placement()
    slower = replace(placement, capacity=replace(placement.capacity, pace_seconds=0.05))
    assert promised(slower) == "0.05", "what the plan counts on"


def test_workers_pass_the_restricted_pod_security_standard(children: Render) -> None:
    pod = _only(children(), "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert _worker(children())["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def test_a_claim_is_mounted_where_the_worker_looks_for_it(children: Render) -> None:
    objects = children(model={"name": "llama-3.2-1b-instruct", "source": "pvc://weights/llama.gguf"})
    pod = _only(objects, "Deployment")["spec"]["template"]["spec"]
    assert {"name": "model", "persistentVolumeClaim": {"claimName": "weights", "readOnly": True}} in pod["volumes"]
    assert "/models/weights" in [m["mountPath"] for m in _worker(objects)["volumeMounts"]]


def test_users_labels_reach_the_pods_but_never_take_ours(children: Render) -> None:
    objects = children(worker={"labels": {"team": "x", "berth.dev/pool": "stolen"}})
    labels = _only(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert (labels["team"], labels["berth.dev/pool"]) == ("x", "agents")


def test_a_suspended_pool_keeps_its_services_and_has_no_workers(children: Render) -> None:
    assert "Deployment" not in [o["kind"] for o in children(suspend=True)]
    assert "Service" in [o["kind"] for o in children(suspend=True)]


def test_a_recommendation_and_a_refused_pool_render_nothing(children: Render) -> None:
    assert children(placement={"mode": "Recommend"}) == []
    assert children(plan={"not_accepted": Problem("UnknownModel", "no")}) == []


def test_names_tell_placements_apart_and_stay() -> None:
    ids = {placement_id(pool, cls, kind) for pool in ("a/b", "a/c") for cls in ("x", "y") for kind in CapacityType}
    assert len(ids) == 2 * 2 * 3
    # a changed hash would rename, and so restart, every worker of every user
    assert placement_id("default/agents", "graviton4-4xl", CapacityType.SPOT) == "1c02ebc6"


def test_replicas_of_another_share_of_a_node_are_another_deployment() -> None:
    where = ("default/agents", "graviton4-4xl", CapacityType.ON_DEMAND)
    shares = [None, ReplicaResources(cpu="2"), ReplicaResources(cpu="4"), ReplicaResources(cpu="2", memory="1Gi")]
    assert len({placement_id(*where, share) for share in shares}) == len(shares)


def test_the_hash_follows_what_we_render_and_nothing_else(
    children: Render, make_placement: Callable[..., Placement]
) -> None:
    one, again = children(), children()
    assert one == again
    assert all(o["metadata"]["annotations"][RENDER_HASH_ANNOTATION] == render_hash(o) for o in one)
    cheaper = children(make_placement(usd_per_hour=Decimal("1.0"), traffic_percent=90))
    assert cheaper == one  # money is not part of a worker
    scaled = _only(children(make_placement(replicas=3)), "Deployment")
    assert render_hash(scaled) != render_hash(_only(one, "Deployment"))
