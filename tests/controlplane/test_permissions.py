"""Does the operator have every right that it needs, and none that it does not use?

A release with every optional part on runs through a story that makes its operator do all that it can; the API server's
audit log says what it asked for.  What other modules saw an operator use counts too, where they ran before this one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from chartgen import CHART
from devcluster import AuditEvent, ControlPlane, KubectlError
from devcluster.crds import SOURCES, install
from devcluster.grants import Grant, granted, used

if TYPE_CHECKING:
    from conftest import Fleet, OperatorProcess

SYSTEM, RELEASE, NAMESPACE = "berth-full", "full", "permitted"
_OPERATORS = re.compile(r"^system:serviceaccount:[^:]+:[^:]+-operator$")

ASKED_BY_ADMISSION = {
    Grant("poddisruptionbudgets.policy", "delete"): {"maxUnavailable": 1, "selector": {"matchLabels": {"a": "b"}}},
    Grant("podmonitors.monitoring.coreos.com", "delete"): {"selector": {}, "podMetricsEndpoints": [{"port": "http"}]},
}
"""Rights that no request of ours names: OwnerReferencesPermissionEnforcement asks whether we may delete an object whose
owner we set, as when an orphan goes back to its pool.  With the spec of an object to try it on."""


WIDE: dict[str, Any] = {
    "apiVersion": "berth.dev/v1alpha1",
    "kind": "HardwareClass",
    "metadata": {"name": "wide"},
    "spec": {
        "vendor": "NVIDIA",
        "chip": "H100",
        "kind": "GPU",
        "architecture": "amd64",
        "cpus": 192,
        "memoryGiB": 640,
        "memoryBandwidthGBps": 26_800,
        "compute": {"bf16Tflops": 7912},
        "accelerators": {"resource": "nvidia.com/gpu", "count": 8},
        "runtime": {"name": "VLLM"},
        "maxNodesPerReplica": 2,
        "capacity": [{"type": "OnDemand", "usdPerHour": "55.04", "selector": {"no-node": "has-this"}}],
    },
}


def _everything() -> list[str]:
    """Every switch that adds rights: all integrations that the chart has, and prices from a ConfigMap."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    return [
        "prices.configMap=prices",
        *(f"integrations.{name}.enabled=true" for name in values.get("integrations", {})),
    ]


@pytest.fixture(scope="module")
def operator(fleet: Fleet, make_release: Callable[..., OperatorProcess]) -> Iterator[OperatorProcess]:
    fleet.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    install(fleet.cluster, *SOURCES)
    flags = [f"--watch-namespaces={NAMESPACE}", "--debounce=100ms", "--interval=500ms", "--node-check=1s"]
    flags += ["--watch-nodes", "--activator-address=192.0.2.1", "--activator-listen=127.0.0.1"]
    process = make_release(RELEASE, SYSTEM, *flags, settings=_everything())
    price = {"hardwareClass": "l4", "capacityType": "OnDemand", "usdPerHour": "0.805"}
    data = {"asOf": datetime.now(UTC).isoformat(), "prices": yaml.safe_dump([price])}
    metadata = {"name": "prices", "namespace": SYSTEM}
    fleet.cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    process.start()
    yield process
    fleet.cluster.kubectl("delete", "namespace", NAMESPACE, SYSTEM, "--wait=false")


# The story: each step makes the operator use rights that no earlier one does.  A right that is new in the chart wants a
# step here, unless one of these uses it already.


def _a_pool_is_served(fleet: Fleet, operator: OperatorProcess) -> None:
    fleet.pool(NAMESPACE, "agents")
    operator.wait_for("the pool is Ready", lambda: fleet.ready(NAMESPACE, "agents"))


def _its_routes_are_made_and_taken_away(fleet: Fleet, operator: OperatorProcess) -> None:
    picker = {"name": "picker"}
    routing = {"parentRefs": [{"name": "gw"}], "hostnames": ["a.example.com"], "grpcHostnames": ["b.example.com"]}
    sessions = {"class": "Agentic", "demand": {"concurrentSessions": 20}}
    keda = {"keda": {"serverAddress": "http://prometheus:9090", "maxSessions": 400}}
    routing |= {"endpointPicker": picker}
    fleet.pool(NAMESPACE, "agents", routing=routing, workload=sessions, scaling=keda)
    kinds = "httproutes,grpcroutes,inferencepools.inference.networking.k8s.io,inferenceobjectives,scaledobjects"

    def made() -> int:
        return len(fleet.cluster.get(kinds, f"--namespace={NAMESPACE}")["items"])

    operator.wait_for("its routes are there", lambda: made() == 5)
    fleet.pool(NAMESPACE, "agents")
    operator.wait_for("its routes are gone", lambda: made() == 0)


def _a_model_too_large_for_a_node_has_its_groups(fleet: Fleet, operator: OperatorProcess) -> None:
    """Of nodes that are not there; its controller is not there either (that is for `test_operator_multinode.py`)."""
    fleet.cluster.apply(WIDE)
    model = {"name": "llama-3.1-405b-instruct", "source": "hf://org/name", "quantization": "BF16"}
    large: dict[str, Any] = {"model": model, "placement": {"hardware": {"allow": {"names": ["wide"]}}}}
    large["objectives"] = {"timeToFirstTokenP99": "5s", "interTokenLatencyP99": "200ms", "turnLatencyP99": "60s"}
    where = f"--namespace={NAMESPACE}"

    def made() -> list[dict[str, Any]]:
        return list(fleet.cluster.get("leaderworkersets", where)["items"])

    def labelled() -> bool:
        (found,) = made()
        return "team" in found["spec"]["leaderWorkerTemplate"]["workerTemplate"]["metadata"]["labels"]

    fleet.pool(NAMESPACE, "large", **large)
    operator.wait_for("its groups are asked for", made)
    fleet.pool(NAMESPACE, "large", **large, worker={"labels": {"team": "a"}})
    operator.wait_for("they are changed", labelled)
    fleet.pool(NAMESPACE, "large", **large, suspend=True)
    operator.wait_for("they are gone", lambda: not made())
    fleet.cluster.kubectl("delete", "bpool", "large", where)
    fleet.cluster.kubectl("delete", "hardwareclass", "wide")


def _its_node_is_cordoned(fleet: Fleet, operator: OperatorProcess) -> None:
    (node,) = {pod["spec"]["nodeName"] for pod in fleet.cluster.get("pods", f"--namespace={NAMESPACE}")["items"]}
    fleet.cluster.kubectl("cordon", node)
    operator.wait_for("its worker is replaced", lambda: "taken from traffic and ended" in operator.log)
    fleet.cluster.kubectl("uncordon", node)


def _a_pool_that_may_sleep_has_its_first_worker(fleet: Fleet, operator: OperatorProcess) -> None:
    fleet.pool(NAMESPACE, "sleepy", scaling={"scaleToZeroAfter": "1h"})
    operator.wait_for("the pool is Ready", lambda: fleet.ready(NAMESPACE, "sleepy"))
    ours = "--selector=endpointslice.kubernetes.io/managed-by=berth-operator"
    slices = ("endpointslices", f"--namespace={NAMESPACE}", ours)
    operator.wait_for("its clients need us no more", lambda: not fleet.cluster.get(*slices)["items"])


def _a_pool_is_suspended(fleet: Fleet, operator: OperatorProcess) -> None:
    fleet.pool(NAMESPACE, "agents", suspend=True)
    fleet.cluster.kubectl("delete", "bpool", "sleepy", f"--namespace={NAMESPACE}")
    operator.wait_for("no worker is left", lambda: not fleet.deployments(NAMESPACE))


def _karpenter_is_followed(_: Fleet, operator: OperatorProcess) -> None:
    wanted = {Grant("nodeclaims.karpenter.sh", "watch"), Grant("events", "watch")}
    operator.wait_for("it follows NodeClaims", lambda: wanted <= used(operator.requests(0)))


def _it_ends_and_begins_again(_: Fleet, operator: OperatorProcess) -> None:
    operator.terminate()
    operator.start()
    operator.wait_for("it leads again", lambda: operator.passes > 0)


STORY = (
    _a_pool_is_served,
    _its_routes_are_made_and_taken_away,
    _a_model_too_large_for_a_node_has_its_groups,
    _its_node_is_cordoned,
    _a_pool_that_may_sleep_has_its_first_worker,
    _a_pool_is_suspended,
    _karpenter_is_followed,
    _it_ends_and_begins_again,
)


@pytest.fixture(scope="module")
def requests(fleet: Fleet, operator: OperatorProcess) -> list[AuditEvent]:
    """What operators have asked the API server for: in the story, and in whatever ran before it."""
    for step in STORY:
        step(fleet, operator)
    return [event for event in fleet.cluster.audit_events() if _OPERATORS.match(event.user)]


# --- Enough and no more ---------------------------------------------------------------------------------------------


def test_every_right_that_the_chart_gives_is_used(fleet: Fleet, requests: list[AuditEvent]) -> None:
    given = granted(fleet.cluster, SYSTEM, f"{RELEASE}-operator")
    unused = {grant: roles for grant, roles in given.items() if grant not in used(requests) | ASKED_BY_ADMISSION.keys()}
    told = "\n".join(f"  {grant} (by {', '.join(roles)})" for grant, roles in sorted(unused.items()))
    assert not unused, (
        f"the chart gives the operator rights that nothing was seen to use:\n{told}\n"
        "Take them out of charts/berth/templates/_helpers.tpl, or add a step to STORY in this file that makes the"
        " operator use them (run alone, this file counts its own story only)."
    )


def test_no_request_was_ever_denied(requests: list[AuditEvent]) -> None:
    assert used(requests)
    # A server that has just started denies what it grants until it has read its roles; a missing right is never had.
    had = {_asked(e) for e in requests if _allowed(e)}
    denied = {_asked(e)[:3] for e in requests if not _allowed(e) and _asked(e) not in had}
    told = "\n".join(f"  {verb} {resource}{'/' * bool(below)}{below}" for verb, resource, below in sorted(denied))
    assert not denied, (
        f"the operator asked for what its chart does not grant:\n{told}\n"
        "Add it to berth.namespacedRules (or, where the resource is cluster-scoped, berth.clusterRules) in"
        " charts/berth/templates/_helpers.tpl."
    )


def _asked(event: AuditEvent) -> tuple[str, str, str, str]:
    return event.verb, event.resource, event.subresource, event.namespace


def _allowed(event: AuditEvent) -> bool:
    return bool(event.raw["annotations"]["authorization.k8s.io/decision"] == "allow")


def test_nothing_is_granted_cluster_wide_that_could_be_namespaced(
    fleet: Fleet, make_release: Callable[..., OperatorProcess]
) -> None:
    narrow = "berth-narrower"
    settings = [*_everything(), "watchNamespaces={default}", "fullnameOverride=narrower-operator"]
    make_release("narrower", narrow, settings=settings)
    given = granted(fleet.cluster, narrow, "narrower-operator")
    everywhere = {g.resource.partition("/")[0] for g, roles in given.items() if any("/" not in role for role in roles)}
    namespaced = set(fleet.cluster.kubectl("api-resources", "--namespaced=true", "-o", "name").split())
    assert everywhere & namespaced == set()
    assert "inferencepools.berth.dev" in {grant.resource for grant in given}
    wide, alike = granted(fleet.cluster, SYSTEM, f"{RELEASE}-operator"), ("nodes", "nodepools.karpenter.sh")
    assert {g for g in wide if g.resource not in alike} == {g for g in given if g.resource not in alike}
    fleet.cluster.kubectl("delete", "namespace", narrow, "--wait=false")


def test_no_right_lets_the_operator_read_secrets_or_raise_its_own_rights(fleet: Fleet, operator: object) -> None:
    given = granted(fleet.cluster, SYSTEM, f"{RELEASE}-operator")
    assert not {g.resource for g in given} & {"secrets", "serviceaccounts", "serviceaccounts/token", "pods/exec"}
    assert not [g for g in given if g.resource.endswith("rbac.authorization.k8s.io")]
    assert not {g.verb for g in given} & {"escalate", "bind", "impersonate", "deletecollection"}


# --- OwnerReferencesPermissionEnforcement ---------------------------------------------------------------------------


@pytest.mark.parametrize("grant", sorted(ASKED_BY_ADMISSION), ids=str)
def test_the_rights_that_admission_asks_for_are_needed(
    control_plane: ControlPlane, namespace: str, grant: Grant
) -> None:
    """Without each of them, an orphan cannot be given an owner; with it, it can."""
    plural, _, group = grant.resource.partition(".")
    where, user = f"--namespace={namespace}", f"adopter-of-{namespace}"
    kind = {"podmonitors": "PodMonitor", "poddisruptionbudgets": "PodDisruptionBudget"}[plural]
    metadata, spec = {"name": "orphan", "namespace": namespace}, ASKED_BY_ADMISSION[grant]
    control_plane.apply({"apiVersion": f"{group}/v1", "kind": kind, "metadata": metadata, "spec": spec})
    control_plane.kubectl("create", "role", "adopter", "--verb=get,patch", f"--resource={grant.resource}", where)
    control_plane.kubectl("create", "rolebinding", "adopter", "--role=adopter", f"--user={user}", where)
    owner = {"apiVersion": "v1", "kind": "Namespace", "name": namespace, "uid": "u", "blockOwnerDeletion": False}
    patch = f"--patch={json.dumps({'metadata': {'ownerReferences': [owner]}})}"
    adopt = ("patch", plural, "orphan", where, "--type=merge", "--dry-run=server", f"--as={user}", patch)
    with pytest.raises(KubectlError, match="cannot set an ownerRef on a resource you can't delete"):
        control_plane.kubectl(*adopt)
    rule: dict[str, Any] = {"apiGroups": [group], "resources": [plural], "verbs": [grant.verb]}
    add = json.dumps([{"op": "add", "path": "/rules/-", "value": rule}])
    control_plane.kubectl("patch", "role", "adopter", where, "--type=json", f"--patch={add}")
    control_plane.wait_for("the right is in force", lambda: _succeeds(control_plane, *adopt))


def _succeeds(cluster: ControlPlane, *args: str) -> bool:
    try:
        cluster.kubectl(*args)
    except KubectlError:
        return False
    return True
