"""Does the chart render what its values ask for, and do its objects fit one another?"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import chartgen
import pytest
import yaml
from berth_operator.api.names import CAPACITY_TYPE_LABEL, HARDWARE_CLASS_LABEL, POOL_LABEL
from berth_operator.load.settings import LoadSettings
from berth_operator.load.watch import WatchSettings
from berth_operator.render import RenderSettings
from berth_operator.settings import Settings, parse

Manifest = dict[str, Any]
Only = Callable[..., Manifest]
CRDS = Path(__file__).parents[2] / "crds"
POD_MONITOR_API = ("--api-versions", "monitoring.coreos.com/v1/PodMonitor")


def _crds(objects: list[Manifest]) -> list[Manifest]:
    return [manifest for manifest in objects if manifest["kind"] == "CustomResourceDefinition"]


def test_crds_are_those_of_the_repository_and_kept_by_default(helm: Any) -> None:
    rendered = _crds(helm.objects())
    for crd in rendered:
        assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert crd["metadata"].pop("labels")["app.kubernetes.io/part-of"] == "berth"
    committed = [yaml.safe_load(path.read_text()) for path in CRDS.glob("*.yaml")]
    assert len(committed) == 3
    assert sorted(map(json.dumps, rendered)) == sorted(map(json.dumps, map(_sorted_keys, committed)))


def _sorted_keys(manifest: Manifest) -> Manifest:
    sorted_keys: Manifest = json.loads(json.dumps(manifest, sort_keys=True))
    return sorted_keys


def test_crds_go_with_the_release_where_that_is_asked_for(helm: Any) -> None:
    crds = _crds(helm.objects(crds={"keep": False}))
    assert len(crds) == 3
    assert all("helm.sh/resource-policy" not in crd["metadata"].get("annotations", {}) for crd in crds)


def test_crds_can_be_left_to_somebody_else(helm: Any) -> None:
    assert _crds(helm.objects(crds={"install": False})) == []


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ({}, "berth-operator:0.1.0"),
        ({"registry": "registry.local/ai"}, "registry.local/ai/berth-operator:0.1.0"),
        ({"tag": "1.2"}, "berth-operator:1.2"),
        ({"tag": "1.2", "digest": "sha256:" + "a" * 64}, "berth-operator@sha256:" + "a" * 64),
    ],
)
def test_images_are_named_by_registry_repository_and_tag_or_digest(
    only: Only, image: dict[str, str], expected: str
) -> None:
    deployment = only("Deployment", image=image, worker={"image": {**image, "repository": "berth-worker"}})
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == expected
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert environment["BERTH_WORKER_IMAGE"] == expected.replace("operator", "worker")


def _settings(deployment: Manifest) -> Settings:
    """What the operator makes of the environment in the Deployment; in a pod, the downward API fills in some of it."""
    variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    from_fields = {
        "metadata.namespace": "berth-system",
        "metadata.name": "berth-operator-0",
        "status.podIP": "10.0.0.7",
    }
    return parse(
        [],
        {
            variable["name"]: variable.get("value") or from_fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
            for variable in variables
        },
    )


def test_every_value_reaches_the_operator_under_the_name_that_it_reads(only: Only) -> None:
    chosen = _settings(
        only(
            "Deployment",
            watchNamespaces=["team-a", "team-b"],
            planning={"interval": "2m", "debounce": "300ms"},
            log={"level": "debug", "format": "text"},
            metrics={"port": 9999},
            health={"port": 8888},
            worker={"image": {"tag": "w", "pullPolicy": "Always"}},
            vllm={"image": {"tag": "v"}},
            load={"interval": "3s", "stabilization": "9m"},
        )
    )
    assert chosen == Settings(
        watch_namespaces=("team-a", "team-b"),
        watch_nodes=False,  # it would need rights in the whole cluster
        namespace="berth-system",
        identity="berth-operator-0",
        leader_elect=True,
        kubeconfig=None,
        metrics_address=("0.0.0.0", 9999),  # noqa: S104 - in the pod
        health_address=("0.0.0.0", 8888),  # noqa: S104
        debounce_s=0.3,
        interval_s=120.0,
        log_format="text",
        log_level="debug",
        render=RenderSettings("berth-worker:w", "vllm/vllm-openai:v", "Always"),
        load=LoadSettings(WatchSettings(every_s=3.0, stabilisation_s=540.0), activator_address="10.0.0.7"),
    )


def test_without_the_activator_no_pool_sleeps_and_its_rights_are_not_given(only: Only, helm: Any) -> None:
    off = {"activator": {"enabled": False}}
    assert _settings(only("Deployment", **off)).load.activator_address == ""
    assert "endpointslices" in helm.render()
    assert "endpointslices" not in helm.render(**off)


def test_images_by_default_are_those_that_the_operator_would_choose(only: Only) -> None:
    assert _settings(only("Deployment")).render == RenderSettings()


def test_pod_monitor_of_workers_selects_the_pods_that_the_operator_renders(helm: Any) -> None:
    (monitor,) = (
        manifest["spec"]
        for manifest in helm.objects(*POD_MONITOR_API, metrics={"podMonitor": {"enabled": True}})
        if manifest["metadata"]["name"].endswith("-workers")
    )
    assert monitor["selector"]["matchExpressions"] == [{"key": POOL_LABEL, "operator": "Exists"}]
    discovered = {
        name.replace(".", "_").replace("/", "_").replace("-", "_"): name
        for name in (POOL_LABEL, HARDWARE_CLASS_LABEL, CAPACITY_TYPE_LABEL)
    }
    from_pod_labels = {
        relabeling["sourceLabels"][0].removeprefix("__meta_kubernetes_pod_label_")
        for relabeling in monitor["podMetricsEndpoints"][0]["relabelings"]
        if "_label_" in relabeling["sourceLabels"][0]
    }
    assert from_pod_labels == discovered.keys()


def test_a_budget_is_only_made_where_it_leaves_room_to_drain(helm: Any, only: Only) -> None:
    assert only("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert not [manifest for manifest in helm.objects(replicas=1) if manifest["kind"] == "PodDisruptionBudget"]


def test_service_budget_spread_and_pod_monitor_select_the_operators_pods(helm: Any, only: Only) -> None:
    template = only("Deployment")["spec"]["template"]
    labels = template["metadata"]["labels"].items()
    ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
    service, budget = only("Service")["spec"], only("PodDisruptionBudget")["spec"]
    monitor = next(
        manifest["spec"]
        for manifest in helm.objects(*POD_MONITOR_API, metrics={"podMonitor": {"enabled": True}})
        if manifest["kind"] == "PodMonitor" and not manifest["metadata"]["name"].endswith("workers")
    )
    selectors = [
        service["selector"],
        budget["selector"]["matchLabels"],
        monitor["selector"]["matchLabels"],
        only("Deployment")["spec"]["selector"]["matchLabels"],
        *(spread["labelSelector"]["matchLabels"] for spread in template["spec"]["topologySpreadConstraints"]),
    ]
    assert all(selector and selector.items() <= labels for selector in selectors)
    assert {service["ports"][0]["targetPort"], monitor["podMetricsEndpoints"][0]["port"]} <= ports


def test_pod_monitor_without_its_api_is_refused_with_the_way_out(helm: Any) -> None:
    with pytest.raises(RuntimeError, match=r"metrics\.podMonitor\.enabled is true, but .*install Prometheus Operator"):
        helm.render(metrics={"podMonitor": {"enabled": True}})


def test_dashboards_arrive_as_generated_with_the_labels_that_grafana_looks_for(only: Only) -> None:
    config_map = only("ConfigMap", dashboards={"labels": {"my_grafana": "yes"}, "namespace": "monitoring"})
    assert config_map["metadata"]["labels"]["my_grafana"] == "yes"
    assert config_map["metadata"]["namespace"] == "monitoring"
    generated = (chartgen.CHART / "dashboards" / "fleet-economics.json").read_text()
    assert config_map["data"] == {"berth-fleet-economics.json": generated}


def test_rights_over_namespaced_objects_shrink_to_the_watched_namespaces(helm: Any) -> None:
    objects = helm.objects(watchNamespaces=["team-a", "team-b"])
    roles = {m["metadata"]["namespace"]: m["rules"] for m in objects if m["kind"] == "Role"}
    (cluster_role,) = (m for m in objects if m["kind"] == "ClusterRole")
    cluster_wide = {resource for rule in cluster_role["rules"] for resource in rule["resources"]}
    assert cluster_wide == {"hardwareclasses", "servingprofiles", "hardwareclasses/status", "namespaces"}
    assert roles["team-a"] == roles["team-b"]
    bound = {m["metadata"]["namespace"] for m in objects if m["kind"] == "RoleBinding"}
    assert bound == {"team-a", "team-b", "berth-system", "default"}  # Events about hardware classes lie in default
    (everywhere,) = (m["rules"] for m in helm.objects() if m["kind"] == "ClusterRole")
    assert all(rule in everywhere for rule in roles["team-a"])


def test_common_labels_reach_every_object(helm: Any) -> None:
    objects = helm.objects(*POD_MONITOR_API, commonLabels={"team": "x"}, metrics={"podMonitor": {"enabled": True}})
    assert [m["kind"] for m in objects if m["metadata"].get("labels", {}).get("team") != "x"] == []


class _Strict(yaml.SafeLoader):
    """Refuses a mapping with a key twice, as kubectl and GitOps tools do."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key stands twice among {keys}"
        return super().construct_mapping(node, deep)


def test_labels_of_users_stand_beside_the_charts_and_never_twice(helm: Any) -> None:
    text = helm.render(
        commonLabels={"team": "a", "app.kubernetes.io/name": "theirs"},
        podLabels={"team": "b", "app.kubernetes.io/instance": "theirs"},
        podAnnotations={"kubectl.kubernetes.io/default-container": "sidecar"},
        dashboards={"labels": {"team": "c"}},
    )
    objects = [manifest for manifest in yaml.load_all(text, _Strict) if manifest]
    (deployment,) = (m for m in objects if m["kind"] == "Deployment")
    template = deployment["spec"]["template"]["metadata"]
    assert deployment["metadata"]["labels"]["team"] == "a"
    assert template["labels"]["team"] == "b"
    assert template["annotations"] == {"kubectl.kubernetes.io/default-container": "sidecar"}
    assert deployment["spec"]["selector"]["matchLabels"].items() <= template["labels"].items()
    (dashboards,) = (m for m in objects if m["kind"] == "ConfigMap")
    assert dashboards["metadata"]["labels"]["team"] == "c"


def test_names_made_of_digits_stay_texts(helm: Any) -> None:
    for manifest in replace(helm, release="12345", namespace="678").objects(nameOverride="90"):
        metadata = manifest["metadata"]
        assert [value for value in metadata.get("labels", {}).values() if not isinstance(value, str)] == []
        assert isinstance(metadata.get("namespace", ""), str)


def test_extra_environment_goes_before_the_charts_own(only: Only) -> None:
    deployment = only("Deployment", extraEnv=[{"name": "BERTH_INTERVAL", "value": "7s"}, {"name": "A", "value": "b"}])
    names = [v["name"] for v in deployment["spec"]["template"]["spec"]["containers"][0]["env"]]
    assert len(names) == len(set(names))  # the API server refuses a name that stands twice
    assert _settings(deployment).interval_s == 7.0


def test_releases_of_one_namespace_elect_leaders_of_their_own(helm: Any) -> None:
    leases = set()
    for release in ("team-a", "team-b"):
        objects = replace(helm, release=release).objects()
        (deployment,) = (m for m in objects if m["kind"] == "Deployment")
        (rules,) = (m["rules"] for m in objects if m["kind"] == "Role" and m["metadata"]["name"].endswith("-lease"))
        name = _settings(deployment).lease_name
        named = {tuple(rule["resources"]): rule["resourceNames"] for rule in rules if "resourceNames" in rule}
        assert named == {("leases",): [name], ("deployments",): [name]}
        assert deployment["metadata"]["name"] == name  # its owner
        leases.add(name)
    assert len(leases) == 2


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"metrics": {"port": 8080}}, r"metrics\.port and health\.port are both 8080: choose two ports"),
        ({"fullnameOverride": "Berth_Op"}, "fullnameOverride"),
        ({"watchNamespaces": ["team_a"]}, "watchNamespaces/0"),
        ({"image": {"registry": "registry.local/"}}, "image/registry"),
        ({"dashboards": {"namespace": "Monitoring"}}, "dashboards/namespace"),
    ],
)
def test_values_that_no_cluster_takes_are_refused_by_name(helm: Any, values: Manifest, says: str) -> None:
    with pytest.raises(RuntimeError, match=says):
        helm.render(**values)
