"""Does a real API server take the chart, and does the release keep what users would be sorry to lose?"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from chartgen import CHART
from devcluster import ControlPlane, KubectlError

NAMESPACE = "berth-system"
OPERATOR = f"system:serviceaccount:{NAMESPACE}:berth-operator"
POOL = {
    "apiVersion": "berth.dev/v1alpha1",
    "kind": "InferencePool",
    "metadata": {"name": "agents", "namespace": "default"},
    "spec": {
        "model": {"name": "smollm2-135m-instruct"},
        "workload": {"class": "Agentic", "demand": {"requestsPerSecond": "4"}},
    },
}


def _may(cluster: ControlPlane, verb: str, resource: str, namespace: str) -> bool:
    """Whether the operator's ServiceAccount may; `resource` is PLURAL.GROUP, PLURAL.GROUP/SUBRESOURCE or .../=NAME."""
    plural, _, below = resource.partition("/")
    plural, _, group = plural.partition(".")
    attributes = {"verb": verb, "group": group, "resource": plural, "namespace": namespace}
    attributes |= {"name": below.removeprefix("=")} if below.startswith("=") else {"subresource": below}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": OPERATOR, "resourceAttributes": attributes},
    }
    answer = json.loads(cluster.kubectl("create", "-f", "-", "-o", "json", input=json.dumps(review)))
    return bool(answer["status"]["allowed"])


def test_the_release_tells_the_next_command(installed: Any) -> None:
    notes = installed.run("get", "notes", "berth", f"--namespace={NAMESPACE}")
    assert "kubectl apply -f examples/" in notes
    assert "kubectl get bpool --all-namespaces" in notes


@pytest.mark.parametrize(
    ("verb", "resource", "namespace"),
    [
        ("list", "inferencepools.berth.dev", "default"),
        ("patch", "inferencepools.berth.dev/status", "default"),
        ("watch", "hardwareclasses.berth.dev", "default"),
        ("create", "deployments.apps", "default"),
        ("delete", "poddisruptionbudgets.policy", "default"),
        ("watch", "pods", "default"),
        ("delete", "pods", "default"),
        ("create", "leases.coordination.k8s.io", NAMESPACE),
        ("update", "leases.coordination.k8s.io/=berth-operator", NAMESPACE),
        ("get", "deployments.apps/=berth-operator", NAMESPACE),
        ("create", "leases.coordination.k8s.io", "default"),
        ("update", f"leases.coordination.k8s.io/={NAMESPACE}.berth-operator", "default"),
    ],
)
def test_the_operator_may_do_its_work(
    cluster: ControlPlane, installed: Any, verb: str, resource: str, namespace: str
) -> None:
    assert _may(cluster, verb, resource, namespace)


@pytest.mark.parametrize(
    ("verb", "resource", "namespace"),
    [
        ("get", "secrets", "default"),
        ("list", "secrets", NAMESPACE),
        ("create", "pods", "default"),
        ("deletecollection", "pods", "default"),
        ("create", "pods/exec", "default"),
        ("patch", "inferencepools.berth.dev", "default"),
        ("delete", "inferencepools.berth.dev", "default"),
        ("patch", "hardwareclasses.berth.dev", "default"),
        ("create", "leases.coordination.k8s.io", "kube-system"),
        ("list", "leases.coordination.k8s.io", "kube-system"),
        ("update", "leases.coordination.k8s.io/=berth-system.another-operator", "default"),
        ("delete", "leases.coordination.k8s.io/=another", "default"),
        ("update", "leases.coordination.k8s.io/=another", NAMESPACE),
        ("create", "clusterroles.rbac.authorization.k8s.io", "default"),
        ("patch", "nodes", "default"),
        ("create", "serviceaccounts/token", NAMESPACE),
    ],
)
def test_the_operator_may_do_no_more(
    cluster: ControlPlane, installed: Any, verb: str, resource: str, namespace: str
) -> None:
    assert not _may(cluster, verb, resource, namespace)


def test_operators_pods_are_admitted_under_restricted_pod_security(cluster: ControlPlane, installed: Any) -> None:
    template = cluster.get("deployment", "berth-operator", f"--namespace={NAMESPACE}")["spec"]["template"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "as-deployed", "namespace": NAMESPACE},
        "spec": template["spec"],
    }
    cluster.kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(pod))
    pod["spec"]["containers"][0]["securityContext"]["capabilities"] = {}
    with pytest.raises(KubectlError, match="violates PodSecurity"):
        cluster.kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(pod))


def test_pools_outlive_an_uninstall_and_are_found_again_by_the_next_install(
    cluster: ControlPlane, installed: Any
) -> None:
    target = ["berth", str(CHART), f"--namespace={NAMESPACE}"]
    cluster.apply(POOL)
    made = cluster.get("bpool", "agents")["metadata"]["uid"]
    installed.run("uninstall", "berth", f"--namespace={NAMESPACE}")
    assert not cluster.get("deployments", f"--namespace={NAMESPACE}")["items"]
    assert cluster.get("bpool", "agents")["metadata"]["uid"] == made
    installed.run("install", *target, values={"replicas": 1})
    installed.run("upgrade", *target, values={"replicas": 3})
    assert cluster.get("deployment", "berth-operator", f"--namespace={NAMESPACE}")["spec"]["replicas"] == 3
    assert cluster.get("bpool", "agents")["metadata"]["uid"] == made


def test_values_of_an_older_release_without_ours_are_refused_by_name(
    cluster: ControlPlane, installed: Any, tmp_path: Path
) -> None:
    """What `--reuse-values` takes: all values of the release before, and none of this chart's defaults."""
    older = tmp_path / "berth"
    shutil.copytree(CHART, older)
    values = yaml.safe_load((older / "values.yaml").read_text())
    del values["activator"], values["planning"]["maxMoves"]
    (older / "values.yaml").write_text(yaml.safe_dump(values))
    for path in (
        older / "values.schema.json",
        older / "templates" / "deployment.yaml",
        older / "templates" / "rbac.yaml",
    ):
        path.unlink()
    target = ["berth", str(CHART), f"--namespace={NAMESPACE}"]
    installed.run("upgrade", "berth", str(older), f"--namespace={NAMESPACE}", values={"log": {"level": "debug"}})
    with pytest.raises(
        RuntimeError, match=r"(?s)missing property 'activator'.*'/planning': missing property 'maxMoves'"
    ):
        installed.run("upgrade", *target, "--reuse-values")
    installed.run("upgrade", *target, "--reset-then-reuse-values")
    template = cluster.get("deployment", "berth-operator", f"--namespace={NAMESPACE}")["spec"]["template"]
    told = {variable["name"]: variable.get("value") for variable in template["spec"]["containers"][0]["env"]}
    assert (told["BERTH_MAX_MOVES"], told["BERTH_LOG_LEVEL"]) == ("10", "debug")


def test_a_release_of_another_name_takes_over_the_crds_that_one_before_has_kept(
    cluster: ControlPlane, installed: Any
) -> None:
    cluster.apply(POOL)
    made = cluster.get("bpool", "agents")["metadata"]["uid"]
    installed.run("uninstall", "berth", f"--namespace={NAMESPACE}")
    target = ["other", str(CHART), f"--namespace={NAMESPACE}", "--set=replicas=0"]
    with pytest.raises(RuntimeError, match="cannot be imported into the current release"):
        installed.run("install", *target)
    installed.run("install", *target, "--take-ownership")
    assert cluster.get("bpool", "agents")["metadata"]["uid"] == made
    installed.run("uninstall", "other", f"--namespace={NAMESPACE}")
    installed.run("install", "berth", str(CHART), f"--namespace={NAMESPACE}", "--set=replicas=0", "--take-ownership")


def test_an_upgrade_upgrades_the_crds(cluster: ControlPlane, installed: Any) -> None:
    columns = ["crd", "inferencepools.berth.dev", "-o", "jsonpath={.spec.versions[0].additionalPrinterColumns[*].name}"]
    before = cluster.kubectl("get", *columns)
    assert before
    removed = '[{"op": "remove", "path": "/spec/versions/0/additionalPrinterColumns"}]'
    cluster.kubectl("patch", "crd", "inferencepools.berth.dev", "--type=json", f"--patch={removed}")
    assert cluster.kubectl("get", *columns) == ""
    installed.run("upgrade", "--install", "berth", str(CHART), f"--namespace={NAMESPACE}", "--force-conflicts")
    assert cluster.kubectl("get", *columns) == before
