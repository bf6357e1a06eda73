"""A real API server to install the chart into, Helm to do it with, and kubeconform with that server's own schemas."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from chartgen import CHART
from devcluster import ControlPlane, ensure
from devcluster.crds import install

NAMESPACE = "berth-system"
RELEASE = "berth"

Manifest = dict[str, Any]


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Build Helm, kubeconform and promtool before the first test, where no test's time limit counts it."""
    if not session.config.option.collectonly:
        ensure(["helm", "kubeconform", "promtool"])


class HelmError(RuntimeError):
    """Helm exited with an error; the message is what it printed."""


@dataclass(frozen=True)
class Helm:
    """The chart, rendered or installed."""

    binary: Path
    kubeconfig: Path | None = None
    namespace: str = NAMESPACE
    release: str = RELEASE

    def run(self, *args: str, values: Mapping[str, Any] | None = None) -> str:
        """Run Helm with these values; its standard output.  Raises HelmError."""
        env = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
        if self.kubeconfig:
            env["KUBECONFIG"] = str(self.kubeconfig)
        command = [str(self.binary), *args]
        if values is not None:
            command += ["--values", "-"]
        done = subprocess.run(
            command, env=env, input=yaml.safe_dump(values or {}), capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise HelmError(done.stderr or done.stdout)
        return done.stdout

    def render(self, *args: str, **values: Any) -> str:
        """The chart's objects as YAML, with no cluster asked."""
        target = [self.release, str(CHART), "--namespace", self.namespace]
        return self.run("template", *target, "--kube-version", "1.36.3", *args, values=values)

    def objects(self, *args: str, **values: Any) -> list[Manifest]:
        """The chart's objects."""
        return [manifest for manifest in yaml.safe_load_all(self.render(*args, **values)) if manifest]


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Helm without a cluster."""
    return Helm(ensure(["helm"])["helm"])


@pytest.fixture
def only(helm: Helm) -> Callable[..., Manifest]:
    """The one object of a kind that the chart makes, such as `only("Deployment", replicas=1)`."""

    def find(kind: str, *args: str, **values: Any) -> Manifest:
        found = [manifest for manifest in helm.objects(*args, **values) if manifest["kind"] == kind]
        assert len(found) == 1, f"{len(found)} objects of kind {kind}"
        return found[0]

    return find


@pytest.fixture(scope="session")
def cluster() -> Iterator[ControlPlane]:
    """A control plane of our own: the chart's cluster-wide objects would clash with those of other tests."""
    with ControlPlane(simulate_nodes=False) as control_plane:
        yield control_plane


@pytest.fixture(scope="session")
def prometheus_operator(cluster: ControlPlane) -> None:
    """Prometheus Operator's PodMonitor, from the Go module that it is published in."""
    install(cluster, "pod-monitor")
    _wait_until_served(cluster, "podmonitors.monitoring.coreos.com")


@pytest.fixture(scope="session")
def installed(cluster: ControlPlane, prometheus_operator: None) -> Helm:
    """Helm for the cluster that the chart is installed in, with everything optional turned on."""
    cluster.kubectl("create", "namespace", NAMESPACE)
    cluster.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    helm = Helm(ensure(["helm"])["helm"], cluster.kubeconfig)
    helm.run("install", RELEASE, str(CHART), f"--namespace={NAMESPACE}", values=EVERYTHING)
    _wait_until_served(cluster, "inferencepools.berth.dev")
    return helm


EVERYTHING: Mapping[str, Any] = {"metrics": {"podMonitor": {"enabled": True}}, "commonLabels": {"team": "platform"}}


@pytest.fixture(scope="session")
def kubeconform(
    cluster: ControlPlane, installed: Helm, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], list[Manifest]]:
    """Validate YAML strictly; the resources as kubeconform reports them."""
    folder = tmp_path_factory.mktemp("schemas")
    _write_schemas(cluster, folder)
    binary = ensure(["kubeconform"])["kubeconform"]
    location = f"{folder}/{{{{ .Group }}}}/{{{{ .ResourceAPIVersion }}}}/{{{{ .ResourceKind }}}}.json"

    def validate(text: str) -> list[Manifest]:
        command = [str(binary), "-strict", "-verbose", "-output=json", f"-schema-location={location}", "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        assert done.stdout, done.stderr
        resources: list[Manifest] = json.loads(done.stdout)["resources"]
        return resources

    return validate


def _wait_until_served(cluster: ControlPlane, plural: str) -> None:
    cluster.wait_for(f"{plural} is served", lambda: plural in cluster.kubectl("api-resources", "-o", "name").split())


def _write_schemas(cluster: ControlPlane, folder: Path) -> None:
    """The API server's OpenAPI, CRDs included, as one JSON Schema a kind that knows no further fields."""
    index = json.loads(cluster.kubectl("get", "--raw", "/openapi/v3"))
    for path in index["paths"]:
        if not path.startswith(("api/", "apis/")) or path.count("/") > 2:
            continue
        document = json.loads(cluster.kubectl("get", "--raw", f"/openapi/v3/{path}"))
        definitions = json.loads(
            json.dumps(document.get("components", {}).get("schemas", {})).replace(
                "#/components/schemas/", "#/definitions/"
            )
        )
        for definition in definitions.values():
            _close(definition)
        for name, definition in definitions.items():
            for kind in definition.get("x-kubernetes-group-version-kind", []):
                target = folder / (kind["group"] or kind["version"]) / kind["version"] / f"{kind['kind'].lower()}.json"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(json.dumps({"$ref": f"#/definitions/{name}", "definitions": definitions}))


def _close(schema: Any) -> None:
    """Say of every object with named properties that it has no others, unless it says otherwise itself."""
    if isinstance(schema, list):
        for item in schema:
            _close(item)
    elif isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        for value in schema.values():
            _close(value)
