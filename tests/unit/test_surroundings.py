"""Is every child counted for the pool that it belongs to, and is a user told what others do to it?"""

from collections.abc import Callable
from typing import Any

import pytest
from berth_operator.api import InferencePool
from berth_operator.api.names import HTTP_ROUTE, INFERENCE_EXTENSION_POOL, SCALED_OBJECT
from berth_operator.cluster.neighbours import Autoscaler, decode_autoscaler, parents_of
from berth_operator.cluster.observe import Child
from berth_operator.cluster.resources import DEPLOYMENTS, OPTIONAL_CHILDREN, SERVICES, Resource
from berth_operator.surroundings import belonging, conditions

HTTP_ROUTES = OPTIONAL_CHILDREN["gateway-api"][0]
ROUTING = {"parentRefs": [{"name": "gw"}]}


def _child(name: str = "agents-1", owner: str | None = "uid-agents", **changes: Any) -> Child:
    fields: dict[str, Any] = {
        "resource": DEPLOYMENTS,
        "namespace": "default",
        "name": name,
        "uid": f"u-{name}",
        "pool": "agents",
        "owner_uid": owner,
        "render_hash": "h",
        "managed_fields": "{}",
    }
    return Child(**(fields | changes))


# --- Whose child it is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("child", "owner"),
    [
        (_child(), "uid-agents"),
        (_child(owner=None), "uid-agents"),
        (_child(owner=None, managed_fields=""), None),
        (_child(owner="uid-of-the-pool-deleted-a-moment-ago"), None),
        (_child(owner="uid-chat", pool="chat"), "uid-chat"),
        (_child(owner="uid-agents-elsewhere", namespace="elsewhere"), "uid-agents-elsewhere"),
    ],
    ids=["its own", "orphan", "made by hand", "of a deleted pool", "pool not seen", "same name in another namespace"],
)
def test_a_pool_has_its_own_children_and_its_orphans(
    make_pool: Callable[..., InferencePool], child: Child, owner: str | None
) -> None:
    found = belonging([child], [make_pool()])
    assert [c.owner_uid for c in found] == ([owner] if owner else [])


# --- What is said of it ---------------------------------------------------------------------------------------------


@pytest.fixture
def said(make_pool: Callable[..., InferencePool]) -> Callable[..., dict[str, Any]]:
    def say(
        children: tuple[Child, ...] = (),
        autoscalers: tuple[Autoscaler, ...] = (),
        available: tuple[str, ...] = (),
        refused: dict[Any, tuple[str, str]] | None = None,
        **spec: Any,
    ) -> dict[str, Any]:
        pool = make_pool(**spec)
        rendered = {pool.key: [{"kind": "Service", "metadata": {"name": "agents", "namespace": "default"}}]}
        found = conditions([pool], rendered, children, autoscalers, available, refused or {})
        return dict(found.get(pool.key, {}))

    return say


def test_a_pool_that_nobody_disturbs_has_no_further_condition(said: Callable[..., Any]) -> None:
    assert said((_child(),), (Autoscaler("default", "hpa", "Deployment", "another"),)) == {}


def test_an_autoscaler_aimed_at_a_child_is_named_with_what_to_do(said: Callable[..., Any]) -> None:
    autoscalers = (
        Autoscaler("default", "theirs", "Deployment", "agents-1"),
        Autoscaler("elsewhere", "other", "Deployment", "agents-1"),
    )
    status, reason, message = said((_child(),), autoscalers)["ScaledByOthers"]
    assert (status, reason) == ("True", "HorizontalPodAutoscaler")
    assert message.startswith("HorizontalPodAutoscaler theirs aims at Deployment agents-1: ")
    assert "let it scale InferencePool agents" in message


def test_a_child_that_cannot_be_written_is_named(said: Callable[..., Any]) -> None:
    refused = {("Service", "default", "agents"): ("NameTaken", "an object of this name exists, not made by Berth")}
    other = {("Service", "elsewhere", "agents"): ("NameTaken", "not ours")}
    assert said(refused=refused | other) == {
        "Applied": ("False", "NameTaken", "Service agents: an object of this name exists, not made by Berth")
    }
    assert said(refused=other) == {}


@pytest.mark.parametrize(
    ("available", "routing", "expected"),
    [
        ((), ROUTING, ("False", "NotAvailable", "spec.routing.parentRefs: no HTTPRoute is made: install the CRDs")),
        (
            (HTTP_ROUTE,),
            ROUTING | {"endpointPicker": {"name": "p"}},
            ("False", "NotAvailable", "spec.routing.endpointPicker: no InferencePool is made: install the CRDs"),
        ),
        ((HTTP_ROUTE,), ROUTING, ("Unknown", "Pending", "no gateway has accepted the routes yet")),
    ],
)
def test_routing_that_cannot_be_had_is_named_with_the_way_out(
    said: Callable[..., Any], available: tuple[str, ...], routing: dict[str, Any], expected: tuple[str, str, str]
) -> None:
    status, reason, message = said(available=available, routing=routing)["Routed"]
    assert (status, reason) == expected[:2]
    assert message.startswith(expected[2])


def _parent(**conditions: str) -> dict[str, Any]:
    said = [{"type": k, "status": v, "reason": "Because", "message": "of this"} for k, v in conditions.items()]
    return {"parentRef": {"kind": "Gateway", "name": "gw"}, "conditions": said}


@pytest.mark.parametrize(
    ("parents", "expected"),
    [
        ([], ("Unknown", "Pending", "no gateway has accepted HTTPRoute agents yet")),
        (
            [_parent(Accepted="True", ResolvedRefs="True")],
            ("True", "Accepted", "gateways have accepted HTTPRoute agents"),
        ),
        (
            [_parent(Accepted="True", ResolvedRefs="False")],
            ("False", "Refused", "HTTPRoute agents: Gateway gw: Because: of this"),
        ),
        ([_parent(Accepted="Unknown")], ("Unknown", "Pending", "no gateway has accepted HTTPRoute agents yet")),
    ],
)
def test_what_gateways_say_of_a_route_is_passed_on(
    said: Callable[..., Any], parents: list[dict[str, Any]], expected: tuple[str, str, str]
) -> None:
    route = _child("agents", resource=HTTP_ROUTES, parents=parents_of({"parents": parents}))
    assert said((route,), available=(HTTP_ROUTE,), routing=ROUTING)["Routed"] == expected


def test_keda_that_cannot_be_had_is_named_with_the_way_out(said: Callable[..., Any]) -> None:
    spec = {
        "workload": {"class": "Agentic", "demand": {"concurrentSessions": 9}},
        "scaling": {"keda": {"serverAddress": "http://p", "maxSessions": 9}},
    }
    status, reason, message = said(**spec)["DemandScaled"]
    assert (status, reason) == ("False", "NotAvailable")
    assert message.startswith("spec.scaling.keda: no ScaledObject is made: install the CRDs of keda.sh")
    assert said(**spec, available=(SCALED_OBJECT,)) == {}


def test_only_autoscalers_of_what_runs_workers_are_kept() -> None:
    def item(**target: str) -> dict[str, Any]:
        return {"metadata": {"name": "h", "namespace": "n"}, "spec": {"scaleTargetRef": target}}

    assert decode_autoscaler(item(kind="Deployment", name="d")) == Autoscaler("n", "h", "Deployment", "d")
    assert decode_autoscaler(item(kind="InferencePool", name="d")) is None
    assert decode_autoscaler({"metadata": {"name": "h", "namespace": "n"}}) is None


def test_every_optional_kind_has_the_name_that_rendering_asks_for() -> None:
    def kinds(resources: tuple[Resource, ...]) -> list[str]:
        return [resource.group_kind for resource in resources]

    assert HTTP_ROUTE in kinds(OPTIONAL_CHILDREN["gateway-api"])
    assert INFERENCE_EXTENSION_POOL in kinds(OPTIONAL_CHILDREN["inference-extension"])
    assert SERVICES.group_kind == "Service"
