"""Does the dashboard show anything?  A real Prometheus scrapes a real operator and worker, and answers every query."""

import json
import math
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from berth_worker.proto.berth.v1 import generation_pb2 as pb
from berth_worker.proto.berth.v1 import generation_pb2_grpc as pb_grpc
from chartgen import CHART
from chartgen.queries import DashboardQuery, queries_of, substitute
from devcluster import ControlPlane, SimulatedNodePool, ensure, wait_for
from devcluster.components import free_ports
from devcluster.processes import Process, kill
from devcluster.prometheus import Prometheus, Series, Target

NAMESPACE, POOL = "default", "agents"
TIMES = {"__range": "10m", "__rate_interval": "10m"}  # longer than the test, however slow the machine
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))
QUERIES = [query for path in DASHBOARDS for query in queries_of(json.loads(path.read_text()))]

GRAVITON = SimulatedNodePool("graviton", 4, "c8g.4xlarge", "arm64", 16, "32Gi")
L4 = SimulatedNodePool("l4", 2, "g6.xlarge", "amd64", 4, "16Gi", gpus=1)

Manifest = dict[str, Any]


def _hardware(name: str, instance: str, usd_per_hour: str, **spec: Any) -> Manifest:
    capacity = {
        "type": "OnDemand",
        "usdPerHour": usd_per_hour,
        "selector": {"node.kubernetes.io/instance-type": instance},
    }
    return {
        "apiVersion": "berth.dev/v1alpha1",
        "kind": "HardwareClass",
        "metadata": {"name": name},
        "spec": {"capacity": [capacity], **spec},
    }


FLEET: list[Manifest] = [
    _hardware(
        "graviton4",
        "c8g.4xlarge",
        "0.638",
        vendor="AWS",
        chip="Graviton4",
        kind="CPU",
        architecture="arm64",
        cpus=16,
        memoryGiB=32,
        memoryBandwidthGBps=89,
        powerWatts=100,
        runtime={"name": "Berth"},
    ),
    _hardware(
        "l4",
        "g6.xlarge",
        "0.805",
        vendor="Nvidia",
        chip="L4",
        kind="GPU",
        architecture="amd64",
        cpus=4,
        memoryGiB=22,
        memoryBandwidthGBps=300,
        compute={"bf16Tflops": 121},
        powerWatts=150,
        accelerators={"resource": "nvidia.com/gpu", "count": 1},
        runtime={"name": "VLLM"},
    ),
    {
        "apiVersion": "berth.dev/v1alpha1",
        "kind": "InferencePool",
        "metadata": {"name": POOL, "namespace": NAMESPACE},
        "spec": {
            "model": {"name": "smollm2-135m-instruct"},
            "workload": {"class": "Agentic", "demand": {"requestsPerSecond": "2"}},
        },
    },
]


@pytest.fixture(scope="module")
def processes() -> Iterator[list[Process]]:
    """Whatever is in this list is ended after the tests."""
    started: list[Process] = []
    yield started
    kill(started)


@pytest.fixture(scope="module")
def loading_worker(processes: list[Process], tmp_path_factory: pytest.TempPathFactory) -> Process:
    """`berth-worker` with the embedded model, just started: it loads while the rest comes up."""
    command = [
        *(sys.executable, "-m", "berth_worker.server.main", "--host=127.0.0.1", "--grpc-port=0", "--http-port=0"),
        *("--max-concurrency=4", "--max-context-tokens=256"),
    ]
    process = Process("worker", command, tmp_path_factory.mktemp("worker") / "log", ENVIRONMENT)
    processes.append(process)
    return process


@pytest.fixture(scope="module")
def cluster(loading_worker: Process) -> Iterator[ControlPlane]:
    """A control plane with four Graviton4 and two L4 nodes and the chart; of its own, for the chart is cluster-wide."""
    with ControlPlane() as control_plane:
        control_plane.add_nodes(GRAVITON, L4)
        helm = Process(
            "helm",
            [ensure(["helm"])["helm"], "install", "berth", CHART, "--namespace=berth-system", "--create-namespace"],
            control_plane.logs_dir / "helm.log",
            ENVIRONMENT | {"KUBECONFIG": str(control_plane.kubeconfig)},
        )
        wait_for("helm has ended", lambda: not helm.running)
        assert "STATUS: deployed" in helm.log_tail(60)
        kinds = {manifest["kind"] for manifest in FLEET}
        control_plane.wait_for(
            "the CRDs are served",
            lambda: kinds <= set(control_plane.kubectl("api-resources", "--api-group=berth.dev").split()),
        )
        control_plane.apply(*FLEET)
        yield control_plane


@pytest.fixture(scope="module")
def operator(cluster: ControlPlane, processes: list[Process], tmp_path_factory: pytest.TempPathFactory) -> Target:
    """`berth-operator` under the chart's ServiceAccount, once it has placed the pool and its workers are ready."""
    metrics, health = (f"127.0.0.1:{port}" for port in free_ports(2))
    command = [
        *(sys.executable, "-m", "berth_operator"),
        f"--kubeconfig={cluster.kubeconfig_for_service_account('berth-system', 'berth-operator')}",
        *("--namespace=berth-system", f"--metrics-address={metrics}", f"--health-address={health}"),
        *("--debounce=200ms", "--interval=2s"),
    ]
    process = Process("operator", command, tmp_path_factory.mktemp("operator") / "log", ENVIRONMENT)
    processes.append(process)

    def ready() -> bool:
        conditions = cluster.get("bpool", POOL, f"--namespace={NAMESPACE}").get("status", {}).get("conditions", [])
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    wait_for(f"pool {POOL} is ready", ready, watch=[process])
    return Target("berth-operator", metrics)


@dataclass(frozen=True)
class Worker:
    """A running worker: what Prometheus scrapes, and where to send requests."""

    target: Target
    address: str

    def generate(self, text: str) -> int:
        """Stream an answer; the number of pieces that it came in."""
        with grpc.insecure_channel(self.address) as channel:
            request = pb.GenerateRequest(text=text, sampling=pb.SamplingParams(max_tokens=12, ignore_eos=True))
            return len(list(pb_grpc.GenerationStub(channel).Generate(request, timeout=60, wait_for_ready=True)))


@pytest.fixture(scope="module")
def worker(loading_worker: Process) -> Worker:
    """The worker once it serves, under the labels that the chart's PodMonitor would give its series."""
    said = re.compile(r"ready grpc=(\S+) http=(\S+) ")
    found = wait_for("the worker is ready", lambda: said.search(loading_worker.log.read_text()), 60, [loading_worker])
    labels = {
        "pool_namespace": NAMESPACE,
        "pool": POOL,
        "hardware_class": "graviton4",
        "capacity_type": "OnDemand",
    }
    return Worker(Target("berth-workers", found[2], labels), found[1])


@pytest.fixture(scope="module")
def prometheus(operator: Target, worker: Worker) -> Iterator[Prometheus]:
    """Prometheus once it has scraped both, before and after the worker answered requests."""
    with Prometheus([operator, worker.target]) as server:
        wait_for("both are scraped", lambda: not server.unhealthy_targets())
        with ThreadPoolExecutor(4) as clients:
            prompts = [f"Count from {n} on: {n}, {n + 1}, {n + 2}," for n in range(4)]
            assert min(clients.map(worker.generate, prompts)) > 0
        grown = 'increase(vllm:generation_tokens_total{pool="agents"}[10m]) > 0'
        wait_for("the requests are seen", lambda: server.query(grown))
        yield server


@pytest.fixture(params=QUERIES, ids=lambda query: query.where)
def query(request: pytest.FixtureRequest) -> DashboardQuery:
    asked: DashboardQuery = request.param
    return asked


def test_every_query_of_the_dashboards_returns_data(prometheus: Prometheus, query: DashboardQuery) -> None:
    chosen = {"namespace": f"{NAMESPACE}|other", "pool": POOL}
    series = _ask(prometheus, substitute(query.expression, chosen | TIMES))
    named = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
    assert all(named <= each.labels.keys() for each in series), f"legend {query.legend!r} of {series}"


def _ask(prometheus: Prometheus, expression: str) -> list[Series]:
    """The answer, as soon as it is in numbers: a rate needs two scrapes, a quantile something in its buckets."""

    def finite() -> list[Series]:
        series = prometheus.query(expression)
        return series if all(math.isfinite(each.value) for each in series) else []

    return wait_for(f"data for {expression}", finite, 10)


def test_another_pools_panels_are_empty(prometheus: Prometheus) -> None:
    selective = [query for query in QUERIES if "$pool" in query.expression]
    assert len(selective) > 15
    for query in selective:
        assert prometheus.query(substitute(query.expression, {"namespace": NAMESPACE, "pool": "none"} | TIMES)) == []


def test_the_dashboard_and_kubectl_tell_the_same_story(prometheus: Prometheus, cluster: ControlPlane) -> None:
    def value(title: str) -> float:
        (expression,) = (query.expression for query in QUERIES if query.where == f"{title}/A")
        return _ask(prometheus, substitute(expression, {"namespace": NAMESPACE, "pool": POOL} | TIMES))[0].value

    cost = cluster.get("bpool", POOL, f"--namespace={NAMESPACE}")["status"]["cost"]
    assert value("Spend, USD per hour") == pytest.approx(float(cost["usdPerHour"]), abs=0.001)
    assert value("GPU-only, USD per hour") == pytest.approx(float(cost["gpuOnlyUsdPerHour"]), abs=0.001)
    assert round(100 * value("Saved against GPU-only")) == pytest.approx(cost["savingsPercent"], abs=1)
