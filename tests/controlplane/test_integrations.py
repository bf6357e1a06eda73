"""Do pools have what they ask for of other projects' kinds, once those are served, and not before?"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from berth_operator.api.names import POD_MONITOR
from berth_operator.cluster.discovery import Discovery
from berth_operator.cluster.kube import Kube
from berth_operator.cluster.observe import Child, child_decoder
from berth_operator.cluster.reflector import Reflector
from berth_operator.cluster.resources import Resource
from devcluster.crds import SOURCES, crd_files, install

if TYPE_CHECKING:
    from conftest import Fleet, OperatorProcess

NAMESPACE, SYSTEM = "routed", "berth-integrated"
ROUTING = {
    "parentRefs": [{"name": "gw", "namespace": "infra"}],
    "hostnames": ["llm.example.com"],
    "grpcHostnames": ["grpc.example.com"],
}
NO_HESITATION = {"disruption": {"minSavingsUsdPerHour": "0.00", "minSavingsPercent": 0, "cooldown": "0s"}}


@pytest.fixture(scope="module")
def operator(fleet: Fleet, make_release: Callable[..., OperatorProcess]) -> Iterator[OperatorProcess]:
    """An operator with every integration on, in a cluster that serves none of their kinds."""
    for name in SOURCES:
        crd_files(name)  # downloads take as long as they take
    fleet.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    flags = (f"--watch-namespaces={NAMESPACE}", "--debounce=100ms", "--interval=500ms", "--discover-interval=500ms")
    switches = [
        f"integrations.{name}.enabled=true" for name in ("gatewayAPI", "inferenceExtension", "podMonitor", "keda")
    ]
    process = make_release("integrated", SYSTEM, *flags, settings=switches)
    process.start()
    yield process
    fleet.price()
    fleet.cluster.kubectl("delete", "namespace", NAMESPACE, SYSTEM, "--wait=false")


def _routed(fleet: Fleet) -> dict[str, Any]:
    return fleet.condition(NAMESPACE, "agents", "Routed")


def _pool(fleet: Fleet, **changes: Any) -> None:
    fleet.pool(NAMESPACE, "agents", **({"routing": ROUTING, "placement": NO_HESITATION} | changes))


def _get(fleet: Fleet, plural: str) -> dict[str, Any]:
    """The object of the pool's name; empty while there is none."""
    text = fleet.cluster.kubectl(
        "get", plural, "agents", f"--namespace={NAMESPACE}", "--ignore-not-found", "-o", "json"
    )
    return dict(json.loads(text)) if text else {}


def _weights(route: dict[str, Any]) -> dict[str, int]:
    return {ref["name"]: ref["weight"] for ref in route["spec"]["rules"][0]["backendRefs"]} if route else {}


def _deployment(fleet: Fleet, placement: str) -> str:
    return str(fleet.deployments(NAMESPACE)[placement]["metadata"]["name"])


def test_kinds_that_are_not_served_cost_a_line_each_and_the_pool_says_what_it_misses(
    fleet: Fleet, operator: OperatorProcess
) -> None:
    mark = fleet.cluster.audit_mark()
    _pool(fleet)
    operator.wait_for("the pool is Ready", lambda: fleet.ready(NAMESPACE, "agents"))
    operator.wait_for("it says what is missing", lambda: _routed(fleet).get("reason") == "NotAvailable")
    assert "install the CRDs of gateway.networking.k8s.io" in _routed(fleet)["message"]
    passes = operator.passes
    operator.wait_for("three more passes", lambda: operator.passes >= passes + 3)
    assert operator.log.count("is not served") == 6
    paths = ("httproutes", "grpcroutes", "podmonitors", "inferenceobjectives", "inferencepools.inference")
    assert not [e for e in operator.requests(mark) if e.resource.startswith(paths)]


def test_once_a_crd_is_there_pools_have_their_objects(fleet: Fleet, operator: OperatorProcess) -> None:
    before = fleet.deployments(NAMESPACE)
    install(fleet.cluster, "gateway-api", "pod-monitor")
    operator.wait_for("the route is there", lambda: _get(fleet, "httproutes"))
    name = _deployment(fleet, "graviton4/OnDemand")
    operator.wait_for("gRPC has one too", lambda: _weights(_get(fleet, "grpcroutes")) == {name: 100})
    operator.wait_for("Prometheus finds it", lambda: _get(fleet, "podmonitors"))
    route = _get(fleet, "httproutes")
    assert _weights(route) == {name: 100}
    assert route["metadata"]["ownerReferences"][0]["kind"] == "InferencePool"
    assert ("Service", name) in fleet.children(NAMESPACE)
    operator.wait_for("no gateway answers", lambda: _routed(fleet).get("reason") == "Pending")
    after = fleet.deployments(NAMESPACE)
    assert {k: d["metadata"]["generation"] for k, d in after.items()} == {
        k: d["metadata"]["generation"] for k, d in before.items()
    }


def test_what_a_gateway_says_of_a_route_stands_in_the_pools_condition(fleet: Fleet, operator: OperatorProcess) -> None:
    for kind in ("httproutes", "grpcroutes"):
        _answer(fleet, kind, "False", "NotAllowedByListeners")
    operator.wait_for("it is told", lambda: _routed(fleet).get("reason") == "Refused")
    assert "Gateway gw: NotAllowedByListeners" in _routed(fleet)["message"]
    for kind in ("httproutes", "grpcroutes"):
        _answer(fleet, kind, "True", "Accepted")
    operator.wait_for("it is accepted", lambda: _routed(fleet).get("status") == "True")


def _answer(fleet: Fleet, kind: str, status: str, reason: str) -> None:
    """As a gateway's controller would."""
    condition = {"type": "Accepted", "status": status, "reason": reason, "message": "says the gateway"}
    condition["lastTransitionTime"] = "2026-11-21T12:00:00Z"
    parent = {"parentRef": ROUTING["parentRefs"][0], "controllerName": "example.com/gw", "conditions": [condition]}
    patch = json.dumps({"status": {"parents": [parent]}})
    where = f"--namespace={NAMESPACE}"
    fleet.cluster.kubectl("patch", kind, "agents", where, "--subresource=status", "--type=merge", f"--patch={patch}")


def test_a_route_edited_by_hand_is_set_right_and_keeps_what_is_the_users(
    fleet: Fleet, operator: OperatorProcess
) -> None:
    theirs = {"metadata": {"labels": {"theirs": "yes"}}, "spec": {"hostnames": ["evil.example.com"]}}
    where = f"--namespace={NAMESPACE}"
    fleet.cluster.kubectl("patch", "httproute", "agents", where, "--type=merge", f"--patch={json.dumps(theirs)}")
    operator.wait_for("it is right", lambda: _get(fleet, "httproutes")["spec"]["hostnames"] == ["llm.example.com"])
    assert _get(fleet, "httproutes")["metadata"]["labels"]["theirs"] == "yes"


def test_during_a_move_traffic_stays_with_the_old_placement_until_the_new_one_is_ready(
    fleet: Fleet, operator: OperatorProcess
) -> None:
    old, gpus = _deployment(fleet, "graviton4/OnDemand"), [f"l4-{index}" for index in range(4)]
    fleet.cluster.kubectl("cordon", *gpus)
    try:
        fleet.price(graviton4="1.638", graviton4_spot="1.255")
        operator.wait_for("the new placement is asked for", lambda: "l4/OnDemand" in fleet.deployments(NAMESPACE))
        passes = operator.passes
        operator.wait_for("three more passes", lambda: operator.passes >= passes + 3)
        assert _weights(_get(fleet, "httproutes")) == {old: 100}
        assert ("Service", old) in fleet.children(NAMESPACE)
    finally:
        fleet.cluster.kubectl("uncordon", *gpus)
    operator.wait_for("the old placement is gone", lambda: set(fleet.deployments(NAMESPACE)) == {"l4/OnDemand"})
    new = _deployment(fleet, "l4/OnDemand")
    operator.wait_for("all goes to the new one", lambda: _weights(_get(fleet, "httproutes")) == {new: 100})
    operator.wait_for("the old Service is gone", lambda: ("Service", old) not in fleet.children(NAMESPACE))
    # vLLM has no gRPC face: clients of the GRPCRoute are told so by the pool's own Service, which has no such endpoint.
    assert _weights(_get(fleet, "grpcroutes")) == {"agents": 1}


def test_an_endpoint_picker_takes_over_from_weights_when_its_crds_come(fleet: Fleet, operator: OperatorProcess) -> None:
    _pool(fleet, routing=ROUTING | {"endpointPicker": {"name": "picker"}}, priority=3)
    operator.wait_for("it says what is missing", lambda: "endpointPicker" in _routed(fleet).get("message", ""))
    install(fleet.cluster, "inference-extension", "inference-objective")
    plural = "inferencepools.inference.networking.k8s.io"
    operator.wait_for("the picker has its pool", lambda: _get(fleet, plural))
    operator.wait_for("its priority is told", lambda: _get(fleet, "inferenceobjectives"))

    def backend() -> str:
        return str(_get(fleet, "httproutes")["spec"]["rules"][0]["backendRefs"][0]["kind"])

    operator.wait_for("the route leads to it", lambda: backend() == "InferencePool")
    assert _get(fleet, plural)["spec"]["endpointPickerRef"]["name"] == "picker"
    assert _get(fleet, "inferenceobjectives")["spec"]["priority"] == 3


def test_keda_drives_the_demand_of_a_pool_that_asks_for_it(fleet: Fleet, operator: OperatorProcess) -> None:
    install(fleet.cluster, "keda")
    demand = {"class": "Agentic", "demand": {"concurrentSessions": 20}}
    keda = {"serverAddress": "http://prometheus.monitoring:9090", "maxSessions": 400}
    fleet.pool(NAMESPACE, "driven", workload=demand, scaling={"keda": keda})
    where = ("driven", f"--namespace={NAMESPACE}")
    operator.wait_for(
        "its ScaledObject is there",
        lambda: fleet.cluster.kubectl("get", "scaledobjects", *where, "--ignore-not-found"),
    )
    target = fleet.cluster.get("scaledobjects", *where)["spec"]["scaleTargetRef"]
    # What KEDA's HPA does with it: the target it names takes another number of sessions.
    scale = f"--replicas=30 --current-replicas=20 inferencepools.berth.dev/{target['name']}".split()
    fleet.cluster.kubectl("scale", where[1], *scale)
    spec = fleet.cluster.get("bpool", *where)["spec"]
    assert spec["workload"]["demand"]["concurrentSessions"] == 30
    operator.wait_for("the demand is planned", lambda: fleet.ready(NAMESPACE, "driven"))
    fleet.cluster.kubectl("delete", "bpool", *where)


def test_a_pool_at_rest_writes_nothing_and_one_that_asks_for_nothing_has_nothing(
    fleet: Fleet, operator: OperatorProcess
) -> None:
    operator.wait_for("the pool is Ready", lambda: fleet.ready(NAMESPACE, "agents"))
    passes = operator.passes
    operator.wait_for("two passes", lambda: operator.passes >= passes + 2)
    mark, passes = fleet.cluster.audit_mark(), operator.passes
    operator.wait_for("three more passes", lambda: operator.passes >= passes + 3)
    assert operator.writes(mark) == []
    _pool(fleet, routing=None)
    kinds = ("httproutes", "grpcroutes", "inferencepools.inference.networking.k8s.io", "inferenceobjectives")
    operator.wait_for("all of it is gone", lambda: not any(_get(fleet, kind) for kind in kinds))
    operator.wait_for("so is the condition", lambda: not _routed(fleet))


async def test_a_kind_that_is_served_and_not_granted_is_told_once_and_had_once_it_is(
    fleet: Fleet, operator: OperatorProcess, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    where, account = f"--namespace={namespace}", f"{namespace}:default"
    live: dict[Resource, Reflector[Child]] = {}
    kubeconfig = fleet.cluster.kubeconfig_for_service_account(namespace, "default")
    async with await Kube.connect(str(kubeconfig)) as kube:

        def follow(resource: Resource) -> Reflector[Child]:
            decode = child_decoder(resource)
            return Reflector(kube, resource, decode, namespaces=[namespace], backoff_s=(0.1, 0.2))

        discovery = Discovery(kube, ["pod-monitor"], follow, live, lambda: None, every_s=0.1, first_list_s=0.5)
        task = asyncio.create_task(discovery.run())
        try:
            await asyncio.wait_for(discovery.wait_asked(), 60)
            assert discovery.available == frozenset()
            verbs = ("--verb=list,watch", "--resource=podmonitors.monitoring.coreos.com")
            await asyncio.to_thread(fleet.cluster.kubectl, "create", "role", "reader", *verbs, where)
            bind = ("rolebinding", "reader", "--role=reader", f"--serviceaccount={account}")
            await asyncio.to_thread(fleet.cluster.kubectl, "create", *bind, where)
            async with asyncio.timeout(60):
                while discovery.available != {POD_MONITOR}:  # noqa: ASYNC110 - another process's doing
                    await asyncio.sleep(0.05)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    warned = [r for r in caplog.records if "RBAC does not let us" in r.message and r.levelno >= logging.WARNING]
    assert len(warned) == 1


def test_a_crd_that_goes_away_stops_nothing(fleet: Fleet, operator: OperatorProcess) -> None:
    fleet.cluster.kubectl("delete", *[f"--filename={path}" for path in crd_files("gateway-api")])
    _pool(fleet)
    operator.wait_for("it says so", lambda: _routed(fleet).get("reason") == "NotAvailable")
    operator.wait_for("the pool is Ready", lambda: fleet.ready(NAMESPACE, "agents"))
    assert operator.metric("berth_plans_total", result="error") == 0
