"""Does the operator plan for what workers report, put idle pools to sleep, and lose no client when it wakes them?

Nodes are simulated.  A worker here is a loopback server; its pod gets that address before it may be scheduled, on nodes
of this file's own, and the test says when it is ready, as a kubelet would.  What kube-proxy would do with an
EndpointSlice, the test does too: it connects a client to where the slice leads.
"""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from devcluster import SimulatedNodePool

if TYPE_CHECKING:
    from conftest import Fleet, OperatorProcess

ADVERTISED = "192.0.2.1"
"""A slice may not name loopback: this address stands for the operator's, and leads nowhere."""
DOORS = "127.0.0.1"
STAGED = SimulatedNodePool("staged", 8, "staged.4xlarge", "arm64", 16, "32Gi")
INSTANCE = "node.kubernetes.io/instance-type"


class _Server(ThreadingHTTPServer):
    """Connections of many clients come at once: at a backlog of 5 the kernel forgot one and reset it (SYN cookies)."""

    request_queue_size = 128
    daemon_threads = True


class FakeWorker:
    """Answers on the worker's port, on a loopback address of its own: any POST, and /metrics as a test wants it."""

    def __init__(self, number: int) -> None:
        self.address = f"127.{1 + os.getpid() % 200}.{1 + os.getpid() // 200 % 200}.{number}"
        self.rate = 0.0
        """Requests per second that it claims to end."""
        self.lie = ""
        self.served: list[bytes] = []
        self._count, self._since = 0.0, time.monotonic()
        self._lock = threading.Lock()
        worker = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(worker.page().encode())

            def do_POST(self) -> None:
                worker.served.append(self.rfile.read(int(self.headers["Content-Length"])))
                self._answer(b"answered: " + worker.served[-1])

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = _Server((self.address, 8000), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def page(self) -> str:
        with self._lock:
            now = time.monotonic()
            self._count += self.rate * (now - self._since)
            self._since = now
            running = self.lie or f"{self.rate:.0f}"
            return (
                f"vllm:num_requests_running {running}\nvllm:num_requests_waiting 0\n"
                f"vllm:request_success_total {self._count:.0f}\n"
            )

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def worker() -> Iterator[FakeWorker]:
    made = FakeWorker(1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def operator(make_operator: Callable[..., OperatorProcess]) -> OperatorProcess:
    process = make_operator(
        *("--debounce=100ms", "--interval=2s", "--load-interval=200ms", "--load-stabilization=2s"),
        *(f"--activator-address={ADVERTISED}", f"--activator-listen={DOORS}"),
    )
    process.start()
    return process


class Stage:
    """Nodes of this file's own, and pools on them whose pods become ready where the test wants them."""

    def __init__(self, fleet: Fleet, operator: OperatorProcess, namespace: str) -> None:
        self.fleet, self.operator, self.namespace = fleet, operator, namespace

    def pool(self, **scaling: Any) -> None:
        only = {"hardware": {"allow": {"names": ["staged"]}}}
        self.fleet.pool(self.namespace, "agents", scaling=scaling, placement=only)

    def hold(self) -> None:
        """No pod is scheduled from now on."""
        self.fleet.cluster.kubectl("cordon", f"--selector={INSTANCE}={STAGED.instance_type}")

    def release(self, worker: FakeWorker) -> str:
        """The pod that waits becomes ready, at the worker's address; its name."""
        name = str(self.operator.wait_for("a pod waits", self._waiting))
        at = {"podIP": worker.address, "podIPs": [{"ip": worker.address}]}  # KWOK leaves a pod with an address alone
        self._patch(name, at)
        self.fleet.cluster.kubectl("uncordon", f"--selector={INSTANCE}={STAGED.instance_type}")
        self.operator.wait_for("it is scheduled", lambda: self._waiting() is None)
        true = [
            {"type": kind, "status": "True"} for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
        ]
        self._patch(name, {"phase": "Running", "conditions": true})
        return name

    def _patch(self, pod: str, status: dict[str, Any]) -> None:
        where = (f"--namespace={self.namespace}", "--subresource=status", "--type=merge")
        self.fleet.cluster.kubectl("patch", "pod", pod, *where, f"--patch={json.dumps({'status': status})}")

    def _waiting(self) -> str | None:
        pods = self.fleet.cluster.get("pods", f"--namespace={self.namespace}")["items"]
        waiting = [p for p in pods if "deletionTimestamp" not in p["metadata"] and "nodeName" not in p["spec"]]
        return waiting[0]["metadata"]["name"] if waiting else None


@pytest.fixture(scope="module")
def nodes(fleet: Fleet) -> Iterator[None]:
    """Two nodes, and a class that is like Graviton4 but for its price."""
    fleet.cluster.add_nodes(STAGED)
    like = fleet.cluster.get("hardwareclass", "graviton4")["spec"]
    capacity = {"type": "OnDemand", "usdPerHour": "1.5", "maxNodes": 8, "selector": {INSTANCE: STAGED.instance_type}}
    metadata = {"name": "staged"}
    spec = like | {"capacity": [capacity]}
    fleet.cluster.apply(
        {"apiVersion": "berth.dev/v1alpha1", "kind": "HardwareClass", "metadata": metadata, "spec": spec}
    )
    yield
    fleet.cluster.kubectl("delete", "hardwareclass", "staged")


@pytest.fixture
def stage(fleet: Fleet, operator: OperatorProcess, namespace: str, nodes: None) -> Iterator[Stage]:
    made = Stage(fleet, operator, namespace)
    made.hold()
    yield made
    fleet.cluster.kubectl("delete", "bpool", "agents", f"--namespace={namespace}")


def slice_of(fleet: Fleet, namespace: str) -> dict[str, Any] | None:
    """The slice that leads to the operator."""
    where = (f"--namespace={namespace}", "--selector=endpointslice.kubernetes.io/managed-by=berth-operator")
    items = fleet.cluster.get("endpointslices", *where)["items"]
    return dict(items[0]) if items else None


def ask(port: int, body: bytes) -> str:
    """A client that waits for its answer."""
    request = urllib.request.Request(f"http://{DOORS}:{port}/v1/completions", data=body, method="POST")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as answer:
        return str(answer.read().decode())


def test_an_idle_pool_sleeps_and_its_first_clients_wake_it_and_are_all_answered(
    fleet: Fleet, operator: OperatorProcess, namespace: str, worker: FakeWorker, stage: Stage
) -> None:
    stage.pool(scaleToZeroAfter="3s")
    stage.release(worker)
    operator.wait_for(
        "no client comes to the operator", lambda: fleet.ready(namespace, "agents") and not slice_of(fleet, namespace)
    )
    operator.wait_for("it sleeps", lambda: fleet.condition(namespace, "agents", "Placed").get("reason") == "Asleep")
    operator.wait_for("no worker is left", lambda: not fleet.deployments(namespace))
    assert fleet.condition(namespace, "agents", "Ready")["status"] == "True"
    assert "awake it costs 1.500 USD/h" in fleet.condition(namespace, "agents", "Placed")["message"]
    found = operator.wait_for("clients come to the operator", lambda: slice_of(fleet, namespace))
    assert found["metadata"]["labels"]["kubernetes.io/service-name"] == "agents"
    assert found["endpoints"][0]["addresses"] == [ADVERTISED]
    passes = operator.passes
    operator.wait_for("the status of that pass is written, too", lambda: operator.passes >= passes + 1)
    mark, passes = fleet.cluster.audit_mark(), operator.passes
    operator.wait_for("it sleeps on", lambda: operator.passes >= passes + 2)
    assert operator.writes(mark) == []

    stage.hold()
    port = next(p["port"] for p in found["ports"] if p["name"] == "http")
    bodies = [f"request {i}".encode() for i in range(20)]
    with ThreadPoolExecutor(len(bodies)) as clients:
        asked = [clients.submit(ask, port, body) for body in bodies]
        stage.release(worker)
        assert [answer.result() for answer in asked] == [f"answered: {body.decode()}" for body in bodies]
    assert sorted(worker.served) == sorted(bodies)
    operator.wait_for("clients go to the worker", lambda: not slice_of(fleet, namespace))
    assert "asleepSince" not in fleet.status(namespace, "agents")["demand"]


def test_planned_demand_follows_what_workers_report_and_no_lie(
    fleet: Fleet, operator: OperatorProcess, namespace: str, worker: FakeWorker, stage: Stage
) -> None:
    stage.pool(mode="Observed", maxReplicas=8)
    worker.rate = 60.0
    name = stage.release(worker)
    operator.wait_for("it is Ready", lambda: fleet.ready(namespace, "agents"))
    demand = operator.wait_for("demand rises", lambda: demand_of(fleet, namespace, at_least=20), 60)
    assert demand["source"] == "Observed"
    operator.wait_for("it grows", lambda: fleet.replicas(namespace, "agents") > 1)

    worker.lie = "NaN"
    said = operator.wait_for("the lie is named", lambda: refused(fleet, namespace))
    assert f"worker {name}: vllm:num_requests_running is nan: a number from 0 to" in said
    operator.wait_for("nothing is left to do", lambda: fleet.ready(namespace, "agents"))
    mark, passes = fleet.cluster.audit_mark(), operator.passes
    operator.wait_for("two passes", lambda: operator.passes >= passes + 2)
    assert operator.writes(mark) == []
    assert 20 <= float(fleet.status(namespace, "agents")["demand"]["requestsPerSecond"]) <= 60 * 1.5


def demand_of(fleet: Fleet, namespace: str, at_least: float) -> dict[str, Any] | None:
    found = fleet.status(namespace, "agents").get("demand", {})
    return dict(found) if float(found.get("requestsPerSecond", 0)) >= at_least else None


def refused(fleet: Fleet, namespace: str) -> str | None:
    condition = fleet.condition(namespace, "agents", "LoadObserved")
    return str(condition["message"]) if condition.get("reason") == "MetricsRefused" else None
