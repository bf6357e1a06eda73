"""Is everything that the chart renders valid, as Helm, kubeconform and a real API server see it?"""

import json
from collections.abc import Callable
from typing import Any

import chartgen
import pytest
import yaml

Manifest = dict[str, Any]


def test_generated_files_of_the_chart_are_up_to_date() -> None:
    assert chartgen.drift() == [], "run: make generate"


def test_helm_lint_finds_nothing(helm: Any) -> None:
    assert "0 chart(s) failed" in helm.run("lint", "--strict", str(chartgen.CHART))


VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "one namespace": {"watchNamespaces": ["team-a"], "replicas": 1},
    "several namespaces": {"watchNamespaces": ["team-a", "team-b"], "crds": {"keep": False}},
    "every option": {
        "commonLabels": {"team": "platform"},
        "image": {"registry": "registry.local", "digest": "sha256:" + "0" * 64},
        "imagePullSecrets": [{"name": "pull"}],
        "extraEnv": [{"name": "BERTH_INTERVAL", "value": "1m"}],
        "podLabels": {"a": "b"},
        "podAnnotations": {"c": "d"},
        "serviceAccount": {"annotations": {"e": "f"}},
        "tolerations": [{"key": "infra", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
        ],
        "priorityClassName": "system-cluster-critical",
        "metrics": {"service": {"annotations": {"g": "h"}}, "podMonitor": {"enabled": True, "labels": {"i": "j"}}},
        "dashboards": {"namespace": "monitoring"},
    },
    "bare": {
        "crds": {"install": False},
        "serviceAccount": {"create": False, "name": "mine"},
        "rbac": {"create": False},
        "dashboards": {"enabled": False},
        "metrics": {"service": {"enabled": False}},
        "podDisruptionBudget": {"enabled": False},
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_kubeconform_accepts_every_object(
    helm: Any, kubeconform: Callable[[str], list[Manifest]], variant: str
) -> None:
    text = helm.render("--api-versions", "monitoring.coreos.com/v1/PodMonitor", **VARIANTS[variant])
    results = kubeconform(text)
    assert len(results) == len([document for document in yaml.safe_load_all(text) if document])
    assert [result for result in results if result["status"] != "statusValid"] == []


def test_kubeconform_refuses_a_field_that_does_not_exist(
    helm: Any, kubeconform: Callable[[str], list[Manifest]]
) -> None:
    text = helm.render().replace("matchLabelKeys:", "matchLabelsKey:")
    refused = [result for result in kubeconform(text) if result["status"] == "statusInvalid"]
    assert [result["kind"] for result in refused] == ["Deployment"]
    assert "matchLabelsKey" in json.dumps(refused)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"replica": 3}, "replica"),
        ({"replicas": "three"}, "replicas"),
        ({"watchNamespaces": "team-a"}, "watchNamespaces"),
        ({"log": {"level": "loud"}}, "level"),
        ({"image": {"digest": "0123"}}, "digest"),
        ({"metrics": {"port": 80}}, "port"),
        ({"dashboards": {"labels": {}}, "metrics": {"podMonitor": {"interval": "often"}}}, "interval"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(helm: Any, values: dict[str, Any], said: str) -> None:
    with pytest.raises(RuntimeError, match=said):
        helm.render(**values)
