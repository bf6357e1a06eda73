"""Does the operator follow a ConfigMap of prices, show whose price it is, and name classes and profiles at fault?"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from chartgen import CHART
from devcluster import ControlPlane, ensure, graviton4

if TYPE_CHECKING:
    from conftest import Fleet, OperatorProcess

NAMESPACE = "priced"
SYSTEM = "berth-system"
CLASS = graviton4("priced-class", {"type": "OnDemand", "usdPerHour": "0.638", "maxNodes": 1})
PROFILE = {
    "apiVersion": "berth.dev/v1alpha1",
    "kind": "ServingProfile",
    "metadata": {"name": "too-fast"},
    "spec": {
        "model": "llama-3.1-8b-instruct",
        "quantization": "Int8",
        "hardwareClass": "priced-class",
        "runtime": "Berth",
        "points": [
            {"concurrency": 1, "contextTokens": 100, "decodeTokensPerSecond": "9000", "interTokenLatencyP99": "1ms"}
        ],
        "prefillTokensPerSecond": "100",
        "kvCacheTokens": 1000,
        "provenance": {"method": "Published", "source": "a test"},
    },
}


@pytest.fixture(scope="module")
def operator(
    fleet: Fleet, make_operator: Callable[..., OperatorProcess], operator_kubeconfig: Path
) -> Iterator[OperatorProcess]:
    """An operator of a release that reads the ConfigMap `prices`, and may read no other."""
    fleet.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    command = [str(ensure(["helm"])["helm"]), "template", "berth", str(CHART), f"--namespace={SYSTEM}"]
    command += ["--set=replicas=0", "--set=crds.install=false", "--set=prices.configMap=prices"]
    chart = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    fleet.cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=chart)
    flags = (f"--watch-namespaces={NAMESPACE}", "--debounce=100ms", "--interval=1s", "--price-config-map=prices")
    flags += ("--node-check=1s", "--price-max-age=1h", "--price-interval=1s")
    process = make_operator(*flags)
    fleet.cluster.apply(CLASS, _prices("0.500", datetime.now(UTC)))
    process.start()
    yield process
    process.end()
    fleet.cluster.kubectl("delete", "bhw", "priced-class")
    fleet.cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def _prices(usd: str, as_of: datetime) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "prices", "namespace": SYSTEM},
        "data": {
            "asOf": as_of.isoformat(timespec="seconds"),
            "prices": f'- {{hardwareClass: priced-class, capacityType: OnDemand, usdPerHour: "{usd}"}}\n',
        },
    }


def _status(cluster: ControlPlane) -> dict[str, Any]:
    found: dict[str, Any] = cluster.get("bhw", "priced-class").get("status", {})
    return found


def _condition(cluster: ControlPlane, kind: str) -> dict[str, Any]:
    return next((c for c in _status(cluster).get("conditions", []) if c["type"] == kind), {})


def test_a_price_of_the_config_map_is_in_force_with_its_source_and_time(
    fleet: Fleet, operator: OperatorProcess
) -> None:
    operator.wait_for(
        "the ConfigMap's price is in status",
        lambda: any(p["usdPerHour"] == "0.500" for p in _status(fleet.cluster).get("prices", [])),
    )
    (shown,) = _status(fleet.cluster)["prices"]
    assert shown["source"] == f"ConfigMap {SYSTEM}/prices"
    assert datetime.now(UTC) - datetime.fromisoformat(shown["asOf"]) < timedelta(minutes=5)
    assert _condition(fleet.cluster, "PricesCurrent")["reason"] == "Live"
    where = {"hardware_class": "priced-class", "source": f"ConfigMap {SYSTEM}/prices"}
    operator.wait_for("metrics say so", lambda: operator.metric("berth_hardware_usd_per_hour", **where) == 0.5)


def test_with_the_same_prices_confirmed_nothing_is_written(fleet: Fleet, operator: OperatorProcess) -> None:
    operator.wait_for("the price is in force", lambda: _status(fleet.cluster).get("prices"))
    operator.wait_for("two passes", lambda start=operator.passes: operator.passes >= start + 2)
    mark, passes = fleet.cluster.audit_mark(), operator.passes
    operator.wait_for("three passes", lambda: operator.passes >= passes + 3)
    assert operator.writes(mark) == []
    assert operator.denied(mark) == []


def test_a_profile_above_the_roofline_is_named_on_its_class_until_it_is_mended(
    fleet: Fleet, operator: OperatorProcess
) -> None:
    fleet.cluster.apply(PROFILE)
    operator.wait_for("it is named", lambda: _condition(fleet.cluster, "ProfilesAccepted"))
    condition = _condition(fleet.cluster, "ProfilesAccepted")
    assert (condition["status"], condition["reason"]) == ("False", "AboveRoofline")
    assert "ServingProfile too-fast: spec.points[0].decodeTokensPerSecond: found 9000" in condition["message"]
    fleet.cluster.kubectl("delete", "servingprofile", "too-fast")
    operator.wait_for("it is forgotten", lambda: not _condition(fleet.cluster, "ProfilesAccepted"))


def test_a_class_at_fault_says_so_and_is_planned_with_again_once_mended(
    fleet: Fleet, operator: OperatorProcess
) -> None:
    free = {**CLASS["spec"], "capacity": [{"type": "OnDemand", "usdPerHour": "0"}]}  # type: ignore[dict-item]
    fleet.cluster.apply({**CLASS, "spec": free})
    operator.wait_for("it is refused", lambda: _condition(fleet.cluster, "Accepted").get("status") == "False")
    condition = _condition(fleet.cluster, "Accepted")
    assert condition["reason"] == "ZeroPrice"
    assert "spec.capacity[0].usdPerHour: found 0: OnDemand nodes cost something" in condition["message"]
    fleet.cluster.apply(CLASS)
    operator.wait_for("it is accepted", lambda: _condition(fleet.cluster, "Accepted").get("status") == "True")


def test_a_class_that_no_node_matches_says_so_until_one_does(fleet: Fleet, operator: OperatorProcess) -> None:
    misspelt = {"type": "OnDemand", "usdPerHour": "0.638", "maxNodes": 1, "selector": {"tests.berth.dev/pool": "lost"}}
    fleet.cluster.apply({**CLASS, "spec": {**CLASS["spec"], "capacity": [misspelt]}})  # type: ignore[dict-item]
    operator.wait_for("it is named", lambda: _condition(fleet.cluster, "NodesMatch").get("status") == "False")
    condition = _condition(fleet.cluster, "NodesMatch")
    assert condition["reason"] == "NoNodeMatches", "nodes that matched another selector are none that are gone"
    assert "OnDemand tests.berth.dev/pool=lost" in condition["message"]
    assert _condition(fleet.cluster, "Accepted")["status"] == "True", "its nodes may come yet"
    node = "graviton-0"
    fleet.cluster.kubectl("label", "node", node, "tests.berth.dev/pool=lost")
    operator.wait_for("it is found", lambda: _condition(fleet.cluster, "NodesMatch").get("status") == "True")
    fleet.cluster.kubectl("label", "node", node, "tests.berth.dev/pool-")
    fleet.cluster.apply(CLASS)


def test_a_price_beyond_the_stated_age_stands_and_says_so_dead_feed_or_not(
    fleet: Fleet, operator: OperatorProcess
) -> None:
    old = {**CLASS, "metadata": {"name": "priced-old"}}
    quotes = _prices("0.450", datetime.now(UTC) - timedelta(hours=2))
    quotes["data"]["prices"] = quotes["data"]["prices"].replace("priced-class", "priced-old")

    def status() -> dict[str, Any]:
        found: dict[str, Any] = fleet.cluster.get("bhw", "priced-old").get("status", {})
        return found

    def stale() -> str:
        said = [c for c in status().get("conditions", []) if c["type"] == "PricesCurrent" and c["reason"] == "Stale"]
        return str(said[0]["message"]) if said else ""

    fleet.cluster.apply(old, quotes)
    operator.wait_for("the old price is stale", stale, 60)
    (shown,) = status()["prices"]
    assert (shown["usdPerHour"], shown["source"]) == ("0.450", f"ConfigMap {SYSTEM}/prices")
    assert "older than 1h, so no placement moves for it: OnDemand 0.450 USD/h is as of" in stale()
    fleet.cluster.kubectl("delete", "configmap", "prices", f"--namespace={SYSTEM}")
    operator.wait_for("the dead feed is named", lambda: "prices does not exist" in stale(), 60)
    assert status()["prices"] == [shown]
    assert next(iter(_status(fleet.cluster)["prices"]))["usdPerHour"] == "0.500", "the other's last good price"
    fleet.cluster.kubectl("delete", "bhw", "priced-old")
