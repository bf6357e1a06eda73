"""Do releases of the operator that serve the same namespaces say so, and does one that is uninstalled leave nothing?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Fleet, OperatorProcess

FLAGS = ("--debounce=100ms", "--interval=500ms", "--presence-interval=300ms", "--lease-duration=3s")
SHARED, APART = "served-twice", "served-once"
RELEASES = {"one": SHARED, "two": f"{SHARED},berth-nowhere", "three": APART}
"""Release -> the namespaces that it watches."""
GARBAGE_SECONDS = 90.0


@pytest.fixture(scope="module")
def releases(fleet: Fleet, make_release: Callable[..., OperatorProcess]) -> Iterator[dict[str, OperatorProcess]]:
    """Not started."""
    for name in {SHARED, APART, "berth-nowhere"}:
        fleet.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    def made(name: str, watched: str) -> OperatorProcess:
        namespaces = ",".join(watched.split(","))
        return make_release(name, f"berth-{name}", *FLAGS, settings=[f"watchNamespaces={{{namespaces}}}"])

    yield {name: made(name, watched) for name, watched in RELEASES.items()}
    systems = (f"berth-{name}" for name in RELEASES)
    fleet.cluster.kubectl("delete", "namespace", SHARED, APART, "berth-nowhere", *systems, "--wait=false")


def _said(fleet: Fleet, namespace: str) -> dict[str, Any]:
    return fleet.condition(namespace, "agents", "ServedByOthers")


def _leases(fleet: Fleet, namespace: str) -> dict[str, dict[str, Any]]:
    items = fleet.cluster.get("leases", f"--namespace={namespace}")["items"]
    return {item["metadata"]["name"]: item for item in items}


def _pods(fleet: Fleet) -> set[str]:
    return {item["metadata"]["uid"] for item in fleet.cluster.get("pods", f"--namespace={SHARED}")["items"]}


def test_releases_that_serve_one_namespace_say_so_and_harm_nothing(
    fleet: Fleet, releases: dict[str, OperatorProcess]
) -> None:
    one, two, three = (releases[name] for name in RELEASES)
    for operator in (one, three):
        operator.start()
    for namespace in (SHARED, APART):
        fleet.pool(namespace, "agents")
        one.wait_for("the pool is Ready", lambda where=namespace: fleet.ready(where, "agents"))
    pods = _pods(fleet)
    assert not _said(fleet, SHARED)

    two.start()
    told = one.wait_for("the pool says it", lambda: _said(fleet, SHARED))
    assert (told["status"], told["reason"]) == ("True", "OtherRelease")
    assert "releases berth-one/one-operator and berth-two/two-operator serve this namespace" in told["message"]
    seen = "release berth-two/two-operator serves berth-nowhere, served-twice, and so do we"
    one.wait_for("one sees two", lambda: seen in one.log)
    two.wait_for("two sees one", lambda: "release berth-one/one-operator serves served-twice, and so do we" in two.log)
    one.wait_for("the pool says it", lambda: _said(fleet, SHARED))
    events = fleet.cluster.get("events", f"--namespace={SHARED}", "--field-selector=reason=ServedByOthers")["items"]
    assert [event["message"] for event in events] == [told["message"]]
    assert not _said(fleet, APART)
    assert "see ServedByOthers" not in three.log

    one.wait_for("the pool is Ready again", lambda: fleet.ready(SHARED, "agents"))
    assert _pods(fleet) == pods
    mark, passes = fleet.cluster.audit_mark(), (one.passes, two.passes)
    one.wait_for("both pass on", lambda: one.passes > passes[0] + 4 and two.passes > passes[1] + 4)
    assert [event for operator in (one, two) for event in operator.writes(mark) if event.namespace == SHARED] == []

    two.kill()
    one.wait_for("one that is silent does not count", lambda: not _said(fleet, SHARED))
    assert "berth-two.two-operator" in _leases(fleet, "default")
    two.start()
    one.wait_for("it is back", lambda: _said(fleet, SHARED))
    two.terminate()
    assert "berth-two.two-operator" not in _leases(fleet, "default")
    one.wait_for("it is gone", lambda: not _said(fleet, SHARED))


def test_the_lease_goes_with_the_operators_deployment(fleet: Fleet, releases: dict[str, OperatorProcess]) -> None:
    one, system = releases["one"], "berth-one"
    one.wait_for("it leads", lambda: "one-operator" in _leases(fleet, system))
    (owner,) = _leases(fleet, system)["one-operator"]["metadata"]["ownerReferences"]
    deployment = fleet.cluster.get("deployment", "one-operator", f"--namespace={system}")
    assert (owner["kind"], owner["uid"]) == ("Deployment", deployment["metadata"]["uid"])
    fleet.cluster.kubectl("delete", "deployment", "one-operator", f"--namespace={system}")
    one.kill()
    fleet.cluster.wait_for("the Lease is gone", lambda: not _leases(fleet, system), GARBAGE_SECONDS)
