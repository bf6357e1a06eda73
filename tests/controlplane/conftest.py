"""The operator as it runs in a cluster: a process of its own, with the chart's ServiceAccount and a real API server."""

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from berth_operator.cluster.kube import Kube
from chartgen import CHART
from devcluster import AuditEvent, ControlPlane, SimulatedNodePool, ensure, graviton4
from devcluster.components import free_ports
from devcluster.processes import die_with_parent

OPERATOR_NAMESPACE = "berth-system"

Manifest = dict[str, Any]
_BUILT = {"operator_kubeconfig": "helm", "groups": "lws"}
"""Fixture -> the tool that it runs."""
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Build what tests will ask for before the first of them, where no test's time limit counts it."""
    if not session.config.option.collectonly:
        asked = {name for item in session.items for name in getattr(item, "fixturenames", ())}
        ensure([tool for fixture, tool in _BUILT.items() if fixture in asked])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which rights are used is judged once every other module of this folder has told its stories."""
    judging = [item for item in items if item.path.name == "test_permissions.py"]
    others = [item for item in items if item.path.name != "test_permissions.py"]
    end = max((n for n, item in enumerate(others, 1) if item.path.parent == Path(__file__).parent), default=0)
    items[:] = [*others[:end], *judging, *others[end:]]


class OperatorProcess:
    """One replica, started as `berth-operator` would be, with the token of the ServiceAccount of a release."""

    def __init__(
        self, cluster: ControlPlane, kubeconfig: Path, log: Path, *flags: str, namespace: str, release: str = "berth"
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._account = f"{release}-operator"
        self.kubeconfig = kubeconfig
        self._log = log
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; its metrics answer afterwards."""
        metrics, health = free_ports(2)
        self.metrics_url, self.health_url = f"http://127.0.0.1:{metrics}/metrics", f"http://127.0.0.1:{health}/healthz"
        command = [
            *(sys.executable, "-m", "berth_operator"),
            f"--kubeconfig={self.kubeconfig}",
            f"--namespace={self._namespace}",
            f"--lease-name={self._account}",
            f"--metrics-address=127.0.0.1:{metrics}",
            f"--health-address=127.0.0.1:{health}",
            *self._flags,
        ]
        with self._log.open("ab") as sink:
            self._process = subprocess.Popen(
                command,
                env={"PATH": "/usr/bin:/bin", "HOME": str(self._log.parent), "PYTHONPATH": os.pathsep.join(sys.path)},
                stdout=sink,
                stderr=sink,
                start_new_session=True,
                preexec_fn=die_with_parent(),  # noqa: PLW1509 - safe: see there
            )
        self.wait_for("the operator serves its metrics", self.metrics)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def signal(self, number: int) -> None:
        """Send it a signal, such as SIGSTOP."""
        assert self._process
        self._process.send_signal(number)

    def terminate(self) -> int:
        """Ask it to end, and return its exit code."""
        assert self._process
        self._process.terminate()
        return self._process.wait(timeout=20)

    def end(self) -> None:
        """End it, if it still runs, so that it gives up its Lease."""
        if self._process is not None and self._process.poll() is None:
            self.terminate()

    @property
    def log(self) -> str:
        """Everything it has said, over restarts."""
        return self._log.read_text()

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """(name, labels) -> value; empty while nothing answers."""
        try:
            text = _get(self.metrics_url)
        except OSError:
            return {}
        samples = (_SAMPLE.match(line) for line in text.splitlines())
        return {(s[1], frozenset(_LABEL.findall(s[2] or ""))): float(s[3]) for s in samples if s}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the series of this name that carry these labels."""
        wanted = set(labels.items())
        return sum(value for (n, got), value in self.metrics().items() if n == name and wanted <= got)

    @property
    def passes(self) -> float:
        """Passes of its loop so far."""
        return self.metric("berth_plans_total")

    def health(self) -> str:
        """What the liveness endpoint answers; empty while nothing answers."""
        try:
            return _get(self.health_url)
        except OSError:
            return ""

    def wait_for(self, what: str, condition: Callable[[], Any], timeout_s: float = 90.0) -> Any:
        """Poll for something true; fail early, with the end of the log, when the operator or a component has died."""

        def checked() -> Any:
            assert self._process and self._process.poll() is None, f"the operator exited:\n{self.log[-4000:]}"
            return condition()

        try:
            return self._cluster.wait_for(what, checked, timeout_s)
        except Exception as error:
            error.add_note("operator log:\n" + "\n".join(self.log.splitlines()[-40:]))
            raise

    def writes(self, since: int) -> list[AuditEvent]:
        """What its ServiceAccount tried to change after a mark in the audit log, Leases aside."""
        writes = [event for event in self.requests(since) if event.is_write]
        return [event for event in writes if event.resource != "leases.coordination.k8s.io"]

    def requests(self, since: int) -> list[AuditEvent]:
        """What its ServiceAccount asked for after a mark in the audit log."""
        user = f"system:serviceaccount:{self._namespace}:{self._account}"
        return self._cluster.audit_events(since=since, user=user)

    def denied(self, since: int) -> list[AuditEvent]:
        """What RBAC denied it after a mark in the audit log."""
        decision = "authorization.k8s.io/decision"
        return [event for event in self.requests(since) if event.raw["annotations"][decision] != "allow"]


def _get(url: str) -> str:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as answer:
        return str(answer.read().decode())


def apply_chart(cluster: ControlPlane, release: str, namespace: str, *settings: str) -> Path:
    """Apply the chart (with no operator pods: the tests run the process); a kubeconfig of its ServiceAccount."""
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    command = [str(ensure(["helm"])["helm"]), "template", release, str(CHART), f"--namespace={namespace}"]
    command += [f"--set={setting}" for setting in ("replicas=0", *settings)]
    chart = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=chart)
    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=20s")
    return cluster.kubeconfig_for_service_account(namespace, f"{release}-operator")


def told_by_chart(cluster: ControlPlane, release: str, namespace: str) -> list[str]:
    """What the chart tells the operator in its environment, as flags, less addresses."""
    deployment = cluster.get("deployment", f"{release}-operator", f"--namespace={namespace}")
    variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    told = {v["name"].removeprefix("BERTH_").lower().replace("_", "-"): v.get("value") for v in variables}
    return [f"--{name}={value}" for name, value in told.items() if value and not name.endswith("-address")]


@pytest.fixture(scope="session")
def operator_kubeconfig(control_plane: ControlPlane) -> Path:
    """A token of the chart's ServiceAccount, which may serve all namespaces."""
    return apply_chart(control_plane, "berth", OPERATOR_NAMESPACE)


GRAVITON = SimulatedNodePool("graviton", 12, "c8g.4xlarge", "arm64", 16, "32Gi", zones=("eu-west-1a", "eu-west-1b"))
GRAVITON_SPOT = SimulatedNodePool(
    "graviton-spot",
    12,
    "c8g.4xlarge",
    "arm64",
    16,
    "32Gi",
    capacity_type="spot",
    zones=("eu-west-1a", "eu-west-1b"),
    taints=("berth.dev/spot=true:NoSchedule",),
)
L4 = SimulatedNodePool("l4", 4, "g6.xlarge", "amd64", 4, "16Gi", gpus=1, taints=("nvidia.com/gpu=present:NoSchedule",))


def graviton4_class(on_demand: str = "0.638", spot: str = "0.255") -> Manifest:
    """c8g.4xlarge."""
    selector = {"node.kubernetes.io/instance-type": "c8g.4xlarge"}
    return graviton4(
        "graviton4",
        {
            "type": "OnDemand",
            "usdPerHour": on_demand,
            "maxNodes": GRAVITON.count,
            "selector": selector | {"karpenter.sh/capacity-type": "on-demand"},
        },
        {
            "type": "Spot",
            "usdPerHour": spot,
            "maxNodes": GRAVITON_SPOT.count,
            "interruptionsPerHour": "0.01",
            "selector": selector | {"karpenter.sh/capacity-type": "spot"},
            "tolerations": [{"key": "berth.dev/spot", "operator": "Exists", "effect": "NoSchedule"}],
        },
    )


def l4_class(on_demand: str = "0.805") -> Manifest:
    """g6.xlarge."""
    return _hardware_class(
        "l4",
        vendor="NVIDIA",
        chip="L4",
        kind="GPU",
        architecture="amd64",
        cpus=4,
        memoryGiB=24,
        memoryBandwidthGBps=300,
        compute={"bf16Tflops": 121, "int8Tops": 242},
        accelerators={"resource": "nvidia.com/gpu", "count": 1},
        runtime={"name": "VLLM"},
        capacity=[
            {
                "type": "OnDemand",
                "usdPerHour": on_demand,
                "maxNodes": L4.count,
                "selector": {"node.kubernetes.io/instance-type": "g6.xlarge"},
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            }
        ],
    )


def _hardware_class(name: str, **spec: Any) -> Manifest:
    return {"apiVersion": "berth.dev/v1alpha1", "kind": "HardwareClass", "metadata": {"name": name}, "spec": spec}


@dataclass(frozen=True)
class Fleet:
    """A cluster with nodes and hardware classes: Graviton4 on demand and spot, and L4."""

    cluster: ControlPlane
    simulated: tuple[SimulatedNodePool, ...] = (GRAVITON, GRAVITON_SPOT, L4)

    def price(self, *, graviton4: str = "0.638", graviton4_spot: str = "0.255", l4: str = "0.805") -> None:
        """Set the price of a node of each class, USD per hour."""
        self.cluster.apply(graviton4_class(graviton4, graviton4_spot), l4_class(l4))

    def pool(self, namespace: str, name: str, **spec: Any) -> None:
        """Apply a small agentic pool of the embedded model; `spec` replaces top-level fields."""
        base: Manifest = {
            "model": {"name": "smollm2-135m-instruct"},
            "workload": {"class": "Agentic", "demand": {"requestsPerSecond": "2"}},
        }
        self.cluster.apply(
            {
                "apiVersion": "berth.dev/v1alpha1",
                "kind": "InferencePool",
                "metadata": {"name": name, "namespace": namespace},
                "spec": base | spec,
            }
        )

    def status(self, namespace: str, name: str) -> Manifest:
        """A pool's status; empty before the first one."""
        found: Manifest = self.cluster.get("bpool", name, f"--namespace={namespace}")
        return dict(found.get("status", {}))

    def condition(self, namespace: str, name: str, kind: str) -> Manifest:
        """A condition of a pool; empty while there is none of this type."""
        conditions = self.status(namespace, name).get("conditions", [])
        return next((c for c in conditions if c["type"] == kind), {})

    def replicas(self, namespace: str, name: str) -> int:
        """How many replicas a pool's status wants."""
        return sum(p["replicas"] for p in self.status(namespace, name).get("placements", []))

    def ready(self, namespace: str, name: str) -> bool:
        """Whether a pool says that it is Ready, with nothing left to move."""
        return self.condition(namespace, name, "Ready").get("reason") == "Ready"

    def children(self, namespace: str) -> dict[tuple[str, str], Manifest]:
        """(kind, name) -> child, of all pools in a namespace."""
        kinds = "deployments,services,poddisruptionbudgets"
        selector = "--selector=app.kubernetes.io/managed-by=berth"
        items = self.cluster.get(kinds, selector, f"--namespace={namespace}")["items"]
        return {(item["kind"], item["metadata"]["name"]): item for item in items}

    def deployments(self, namespace: str) -> dict[str, Manifest]:
        """Hardware class/capacity type -> Deployment."""
        found = (child for (kind, _), child in self.children(namespace).items() if kind == "Deployment")
        return {_placement(child): child for child in found}

    def nodes(self, namespace: str, *, ready: bool = True) -> list[str]:
        """The simulated node pools that workers in a namespace run on, one entry a worker."""
        pods = self.cluster.get("pods", f"--namespace={namespace}")["items"]
        placed = [p["spec"]["nodeName"] for p in pods if _ready(p) or not ready]
        return sorted(name.rsplit("-", 1)[0] for name in placed)


def _placement(child: Manifest) -> str:
    labels = child["metadata"]["labels"]
    return f"{labels['berth.dev/hardware-class']}/{labels['berth.dev/capacity-type']}"


def _ready(pod: Manifest) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))


@pytest.fixture(scope="session")
def fleet(control_plane: ControlPlane, operator_kubeconfig: Path) -> Fleet:
    """Twelve Graviton4 nodes on demand, twelve on spot, four L4 nodes, and their classes."""
    fleet = Fleet(control_plane)
    control_plane.add_nodes(*fleet.simulated)
    fleet.price()
    return fleet


@pytest.fixture
async def kube(control_plane: ControlPlane) -> AsyncIterator[Kube]:
    """The operator's own edge to the API server, as administrator."""
    async with await Kube.connect(str(control_plane.kubeconfig)) as kube:
        yield kube


@pytest.fixture(scope="module")
def make_operator(
    fleet: Fleet, operator_kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., OperatorProcess]]:
    """Make an operator process, not yet started; it is ended with the module."""
    made: list[OperatorProcess] = []

    def make(*flags: str) -> OperatorProcess:
        log = tmp_path_factory.mktemp("operator") / "operator.log"
        made.append(OperatorProcess(fleet.cluster, operator_kubeconfig, log, *flags, namespace=OPERATOR_NAMESPACE))
        return made[-1]

    yield make
    for operator in made:
        operator.end()


@pytest.fixture(scope="module")
def make_release(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., OperatorProcess]]:
    """Apply the chart as a release of its own; its operator, told what the chart tells it, not yet started."""
    made: list[OperatorProcess] = []

    def make(release: str, namespace: str, *flags: str, settings: Sequence[str] = ()) -> OperatorProcess:
        kubeconfig = apply_chart(fleet.cluster, release, namespace, "crds.install=false", *settings)
        log = tmp_path_factory.mktemp(release) / "operator.log"
        flags = (*told_by_chart(fleet.cluster, release, namespace), *flags)
        made.append(OperatorProcess(fleet.cluster, kubeconfig, log, *flags, namespace=namespace, release=release))
        return made[-1]

    yield make
    for operator in made:
        operator.end()


@pytest.fixture(scope="module")
def operator(make_operator: Callable[..., OperatorProcess]) -> OperatorProcess:
    """The operator that most tests share."""
    process = make_operator("--debounce=200ms", "--interval=2s")
    process.start()
    return process


@pytest.fixture(scope="module")
def namespaced_operator(
    fleet: Fleet, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[OperatorProcess, str, str]]:
    """An operator of a release that watches one namespace, that namespace, and another one that it must leave alone."""
    watched, other, system = "watched", "unwatched", "berth-namespaced"
    for name in (watched, other):
        fleet.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    settings = (f"watchNamespaces={{{watched}}}", "crds.install=false", "fullnameOverride=narrow-operator")
    kubeconfig = apply_chart(fleet.cluster, "narrow", system, *settings)
    log = tmp_path_factory.mktemp("operator") / "operator.log"
    flags = (f"--watch-namespaces={watched}", "--debounce=200ms", "--interval=2s")
    process = OperatorProcess(fleet.cluster, kubeconfig, log, *flags, namespace=system, release="narrow")
    process.start()
    yield process, watched, other
    process.end()
    fleet.cluster.kubectl("delete", "namespace", watched, other, system, "--wait=false")
