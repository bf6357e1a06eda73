"""Does a gateway's traffic go where the plan wants it, as far as what is ready can carry it?"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from berth_operator.api import CapacityType, HardwareClass, InferencePool
from berth_operator.api.names import (
    GRPC_ROUTE,
    HTTP_ROUTE,
    INFERENCE_EXTENSION_POOL,
    INFERENCE_OBJECTIVE,
    POD_MONITOR,
    RENDER_HASH_ANNOTATION,
    SCALED_OBJECT,
)
from berth_operator.planner import Placement, Plan, PoolPlan, Snapshot
from berth_operator.render import LiveDeployment, RenderSettings, placement_id, render
from berth_operator.render.routing import Backend, weights
from hypothesis import given
from hypothesis import strategies as st

Manifest = dict[str, Any]
EVERYTHING = frozenset({HTTP_ROUTE, GRPC_ROUTE, INFERENCE_EXTENSION_POOL, INFERENCE_OBJECTIVE, POD_MONITOR})
ROUTED = {"parentRefs": [{"name": "gw", "namespace": "infra"}], "hostnames": ["llm.example.com"]}


def _planned(name: str, percent: int, replicas: int, ready: int) -> Backend:
    return Backend(name, name, grpc=True, traffic_percent=percent, replicas=replicas, ready_replicas=ready)


def _leaving(name: str, ready: int) -> Backend:
    return Backend(name, name, grpc=True, ready_replicas=ready)


# --- Weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backends", "expected"),
    [
        ([_planned("a", 70, 7, 7), _planned("b", 30, 3, 3)], {"a": 70, "b": 30}),
        ([_planned("new", 100, 2, 0), _leaving("old", 2)], {"old": 100}),
        ([_planned("new", 100, 2, 1), _leaving("old", 2)], {"new": 50, "old": 50}),
        ([_planned("new", 100, 2, 2), _leaving("old", 2)], {"new": 100}),
        ([_planned("a", 60, 3, 3), _planned("b", 40, 4, 1)], {"a": 60, "b": 10}),
        ([_planned("a", 60, 3, 0), _planned("b", 40, 4, 0)], {"a": 60, "b": 40}),
        ([_planned("new", 100, 4, 2), _leaving("x", 3), _leaving("y", 1)], {"new": 50, "x": 38, "y": 12}),
        ([_leaving("old", 1)], {}),
        ([], {}),
    ],
    ids=[
        "as planned", "nothing new is ready", "half of the new is ready", "the move is over", "scaling up",
        "nothing is ready", "two are leaving", "nothing is wanted", "nothing is there",
    ],
)  # fmt: skip
def test_traffic_goes_to_what_is_ready_in_the_plans_shares(backends: list[Backend], expected: dict[str, int]) -> None:
    assert weights(backends) == expected


@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(1, 50), st.integers(0, 60)), max_size=6),
    st.lists(st.integers(0, 20), max_size=4),
)
def test_no_weight_ever_goes_to_what_is_not_ready_while_anything_is(
    planned: list[tuple[int, int, int]], leaving: list[int]
) -> None:
    backends = [_planned(f"p{n}", *values) for n, values in enumerate(planned)]
    backends += [_leaving(f"l{n}", ready) for n, ready in enumerate(leaving)]
    found = weights(backends)
    total = sum(percent for percent, _, _ in planned)
    assert all(0 < weight <= total for weight in found.values())
    ready = {b.name for b in backends if b.ready_replicas}
    assert found.keys() <= ready or not found.keys() & ready
    if planned:
        assert found


# --- Objects --------------------------------------------------------------------------------------------------------


@pytest.fixture
def children(
    make_pool: Callable[..., InferencePool],
    make_class: Callable[..., HardwareClass],
    make_plan: Callable[..., PoolPlan],
    make_placement: Callable[..., Placement],
    now: datetime,
) -> Callable[..., dict[tuple[str, str], Manifest]]:
    """(kind, name) -> child of a pool on Graviton, 60 %, and on an L4 with vLLM, 40 %."""

    def make(
        routing: Manifest | None = None,
        available: frozenset[str] = EVERYTHING,
        live: tuple[LiveDeployment, ...] = (),
        plan: Manifest | None = None,
        **spec: Any,
    ) -> dict[tuple[str, str], Manifest]:
        pool = make_pool(**({"routing": routing} if routing else {}), **spec)
        gpu = make_class("l4", runtime={"name": "VLLM"})
        placements = (make_placement(traffic_percent=60), make_placement(hardware_class="l4", traffic_percent=40))
        pool_plan = make_plan(pool, **({"placements": placements} | (plan or {})))
        snapshot = Snapshot(now=now, pools=(pool,), hardware_classes=(make_class(), gpu))
        settings = RenderSettings(available=available, pod_monitor_labels={"release": "prometheus"})
        made = render(Plan({pool.key: pool_plan}, 0.0, "Optimal"), snapshot, settings, {pool.key: live})
        assert all(RENDER_HASH_ANNOTATION in manifest["metadata"]["annotations"] for manifest in made)
        return {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in made}

    return make


def _name(hardware_class: str) -> str:
    return f"agents-{placement_id('default/agents', hardware_class, CapacityType.ON_DEMAND)}"


CPU, GPU = _name("graviton4-4xl"), _name("l4")


def _weights(route: Manifest) -> dict[str, int]:
    (rule,) = route["spec"]["rules"]
    return {ref["name"]: ref["weight"] for ref in rule["backendRefs"]}


def test_a_pool_without_routing_has_none_of_it(children: Callable[..., Any]) -> None:
    kinds = {kind for kind, _ in children(available=EVERYTHING - {POD_MONITOR})}
    assert kinds == {"Deployment", "Service", "PodDisruptionBudget"}


def test_an_http_route_weighs_a_service_a_placement(children: Callable[..., Any]) -> None:
    made = children(ROUTED)
    route = made["HTTPRoute", "agents"]
    assert _weights(route) == {CPU: 60, GPU: 40}
    assert route["spec"]["hostnames"] == ["llm.example.com"]
    assert route["spec"]["parentRefs"] == [
        {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gw", "namespace": "infra"}
    ]
    for name in (CPU, GPU):
        selector = made["Service", name]["spec"]["selector"]
        pod_labels = made["Deployment", name]["spec"]["template"]["metadata"]["labels"]
        assert selector.items() <= pod_labels.items()
        assert selector["berth.dev/traffic"] == "on"


def test_clients_reach_the_model_and_neither_metrics_nor_probes(children: Callable[..., Any]) -> None:
    (rule,) = children(ROUTED)["HTTPRoute", "agents"]["spec"]["rules"]
    assert all(match["path"] == {"type": "PathPrefix", "value": "/v1"} for match in rule["matches"])
    assert rule["matches"][0]["headers"][0]["value"] == "smollm2-135m-instruct"


def test_a_placement_on_its_way_out_keeps_its_service_and_the_traffic_that_nothing_else_can_take(
    children: Callable[..., Any],
) -> None:
    old = LiveDeployment("agents-0ld0ld00", "0ld0ld00", "gone", 3)
    made = children(ROUTED, live=(LiveDeployment(CPU, "x", "graviton4-4xl", 1), old))
    assert _weights(made["HTTPRoute", "agents"]) == {CPU: 30, "agents-0ld0ld00": 70}
    assert made["Service", "agents-0ld0ld00"]["spec"]["selector"]["berth.dev/placement"] == "0ld0ld00"


def test_a_grpc_route_is_made_for_its_own_host_names_and_leads_to_workers_that_speak_it(
    children: Callable[..., Any],
) -> None:
    made = children(ROUTED | {"grpcHostnames": ["grpc.example.com"]})
    route = made["GRPCRoute", "agents"]
    assert route["spec"]["hostnames"] == ["grpc.example.com"]
    assert _weights(route) == {CPU: 60}
    assert [port["name"] for port in made["Service", CPU]["spec"]["ports"]] == ["http", "grpc"]
    assert [port["name"] for port in made["Service", GPU]["spec"]["ports"]] == ["http"]
    assert ("GRPCRoute", "agents") not in children(ROUTED)


def test_an_endpoint_picker_takes_the_place_of_weights(children: Callable[..., Any]) -> None:
    made = children(ROUTED | {"endpointPicker": {"name": "picker"}}, priority=7)
    (ref,) = made["HTTPRoute", "agents"]["spec"]["rules"][0]["backendRefs"]
    assert (ref["group"], ref["kind"], ref["name"]) == ("inference.networking.k8s.io", "InferencePool", "agents")
    pool = made["InferencePool", "agents"]
    assert pool["apiVersion"] == "inference.networking.k8s.io/v1"
    assert pool["spec"]["endpointPickerRef"]["name"] == "picker"
    assert pool["spec"]["selector"]["matchLabels"] == {"berth.dev/pool": "agents", "berth.dev/traffic": "on"}
    assert made["InferenceObjective", "agents"]["spec"]["priority"] == 7


def test_an_endpoint_picker_without_its_crds_leaves_the_weights(children: Callable[..., Any]) -> None:
    made = children(ROUTED | {"endpointPicker": {"name": "picker"}}, available=frozenset({HTTP_ROUTE}))
    assert _weights(made["HTTPRoute", "agents"]) == {CPU: 60, GPU: 40}


@pytest.mark.parametrize("spec", [{"suspend": True}, {"plan": {"placements": ()}}], ids=["suspended", "not placed"])
def test_without_workers_a_route_leads_to_the_pools_own_service(
    children: Callable[..., Any], spec: dict[str, Any]
) -> None:
    assert _weights(children(ROUTED, **spec)["HTTPRoute", "agents"]) == {"agents": 1}


def test_a_route_names_no_more_backends_than_it_may(
    children: Callable[..., Any], make_placement: Callable[..., Placement]
) -> None:
    live = tuple(LiveDeployment(f"agents-{n:08}", f"{n:08}", None, n + 1) for n in range(20))
    refs = _weights(children(ROUTED, live=live)["HTTPRoute", "agents"])
    assert len(refs) == 16
    assert "agents-00000019" in refs and "agents-00000000" not in refs


def test_a_pod_monitor_scrapes_the_pools_workers_with_the_labels_that_dashboards_ask_for(
    children: Callable[..., Any],
) -> None:
    monitor = children()["PodMonitor", "agents"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["selector"]["matchLabels"] == {"berth.dev/pool": "agents"}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    targets = {r["targetLabel"]: r["sourceLabels"][0] for r in endpoint["relabelings"]}
    assert targets["hardware_class"] == "__meta_kubernetes_pod_label_berth_dev_hardware_class"
    assert set(targets) == {"pool_namespace", "pool", "hardware_class", "capacity_type"}


def test_keda_counts_sessions_by_littles_law_and_sets_the_pools_own_demand(children: Callable[..., Any]) -> None:
    sessions = {"class": "Agentic", "demand": {"concurrentSessions": 40, "thinkTime": "1500ms"}}
    keda = {"keda": {"serverAddress": "http://prometheus:9090", "maxSessions": 400}}
    spec = {"workload": sessions, "scaling": keda, "available": frozenset({SCALED_OBJECT})}
    made = children(**spec)["ScaledObject", "agents"]["spec"]
    assert made["scaleTargetRef"] == {"apiVersion": "berth.dev/v1alpha1", "kind": "InferencePool", "name": "agents"}
    assert (made["minReplicaCount"], made["maxReplicaCount"]) == (1, 400)
    of = '{pool_namespace="default",pool="agents"}'
    assert made["triggers"][0]["metadata"]["query"] == (
        f"(1.5 * sum(rate(vllm:e2e_request_latency_seconds_count{of}[2m]))"
        f" + sum(vllm:num_requests_running{of}) + sum(vllm:num_requests_waiting{of})) or vector(0)"
    )
    keda["keda"]["query"] = "sessions()"
    assert children(**spec)["ScaledObject", "agents"]["spec"]["triggers"][0]["metadata"]["query"] == "sessions()"
    assert ("ScaledObject", "agents") not in children(**spec, suspend=True)
    assert ("ScaledObject", "agents") not in children(available=frozenset({SCALED_OBJECT}))
