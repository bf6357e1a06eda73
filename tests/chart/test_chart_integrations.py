"""Does each integration's switch, and nothing else, give the operator its name and its rights?"""

from typing import Any

import pytest
from berth_operator.cluster.resources import CHILDREN, OPTIONAL_CHILDREN
from berth_operator.settings import parse

SWITCHES = {
    "gatewayAPI": "gateway-api",
    "inferenceExtension": "inference-extension",
    "podMonitor": "pod-monitor",
    "keda": "keda",
    "leaderWorkerSet": "leader-worker-set",
}
POD_MONITOR_API = ("--api-versions", "monitoring.coreos.com/v1/PodMonitor")


def _rights(objects: list[dict[str, Any]]) -> dict[tuple[str, str], set[str]]:
    """(group, resource) -> verbs, of the operator's cluster-wide role."""
    (role,) = (m for m in objects if m["kind"] == "ClusterRole")
    return {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def _environment(objects: list[dict[str, Any]]) -> dict[str, str]:
    (deployment,) = (m for m in objects if m["kind"] == "Deployment")
    variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    return {variable["name"]: variable["value"] for variable in variables if "value" in variable}


def test_every_integration_of_the_operator_has_a_switch() -> None:
    assert set(SWITCHES.values()) == set(OPTIONAL_CHILDREN)


def test_none_is_on_by_default(helm: Any) -> None:
    objects = helm.objects()
    assert "BERTH_INTEGRATIONS" not in _environment(objects)
    ours = {(r.group, r.plural) for r in CHILDREN}
    assert (
        not {(r.group, r.plural) for resources in OPTIONAL_CHILDREN.values() for r in resources}
        & _rights(objects).keys()
    )
    assert ours <= _rights(objects).keys()


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_adds_the_rights_over_its_kinds_alone(helm: Any, switch: str) -> None:
    objects = helm.objects(integrations={switch: {"enabled": True}})
    settings = parse(["--namespace=n"], _environment(objects))
    assert settings.integrations == (SWITCHES[switch],)
    before, after = _rights(helm.objects()), _rights(objects)
    wanted = {(r.group, r.plural) for r in OPTIONAL_CHILDREN[SWITCHES[switch]]}
    assert after.keys() - before.keys() == wanted
    assert all(after[key] == {"get", "list", "watch", "create", "patch", "delete"} for key in wanted)


def test_pools_pod_monitors_take_the_place_of_the_charts_and_carry_its_labels(helm: Any) -> None:
    monitor = {"enabled": True, "labels": {"release": "prometheus", "team": "a"}, "interval": "5s"}
    objects = helm.objects(
        *POD_MONITOR_API, metrics={"podMonitor": monitor}, integrations={"podMonitor": {"enabled": True}}
    )
    assert [m["metadata"]["name"] for m in objects if m["kind"] == "PodMonitor"] == ["berth-operator"]
    render = parse(["--namespace=n"], _environment(objects)).render
    assert render.pod_monitor_labels == {"release": "prometheus", "team": "a"}
    assert render.pod_monitor_interval == "5s"
