"""How large a fleet does one operator keep, and how quietly?  Against a real API server, scheduler and controllers.

1,000 pools on 5,000 nodes that KWOK simulates, beside 50,000 pods that are none of ours; prices jitter by 2 % in the
ConfigMap that the operator reads, node leases are renewed, pods and nodes are patched all the time.  Writes are counted
in the API server's audit log by the operator's ServiceAccount, Leases aside, Events included.  Everything shares this
machine's processors: the operator, the whole control plane and this program.

create_200_seconds           200 pools created at once: until each says that it is placed
writes_beyond_children       of those pools, the most writes that one took, less its children
steady_writes_per_minute     at rest, with everything else moving (`steady_passes` of the loop in that time)
change_p99_seconds           one pool's demand and annotations edited: until its children are applied and status says so
restart_seconds              killed and started anew: until the first pass that found everything as planned
restart_writes               in the half minute after that start
memory_mb                    the most that an operator process ever held (VmHWM)
"""

from __future__ import annotations

import asyncio
import random
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from _common import Report, options, p99, progress
from berth_operator.cluster.kube import ApiError, Kube
from berth_operator.cluster.resources import CHILDREN, PODS, POOLS
from chartgen import CHART
from devcluster import ControlPlane, ensure
from devcluster.components import free_ports
from devcluster.processes import Process, kill
from operator_fleet import OperatorFleet, foreign_pod, namespaces

SYSTEM = "berth-system"
USER = f"system:serviceaccount:{SYSTEM}:berth-operator"
AT_ONCE = 200
CONCURRENCY = 48
JITTER = 0.02
_POOL = re.compile(r"pool-\d{5}")
_PASSES = re.compile(r'^berth_plans_total\{result="(\w+)"\} (\S+)$', re.MULTILINE)


class Operator:
    """The operator's process, with the token of the chart's ServiceAccount."""

    def __init__(self, cluster: ControlPlane, kubeconfig: Path) -> None:
        self._cluster, self._kubeconfig = cluster, kubeconfig
        self.log = cluster.logs_dir / "operator.log"
        self.peak_mb = 0.0

    def start(self) -> None:
        metrics, health = free_ports(2)
        self.metrics = f"http://127.0.0.1:{metrics}/metrics"
        command = [
            *(sys.executable, "-m", "berth_operator", f"--kubeconfig={self._kubeconfig}", f"--namespace={SYSTEM}"),
            *(f"--metrics-address=127.0.0.1:{metrics}", f"--health-address=127.0.0.1:{health}"),
            *("--price-config-map=prices", "--price-interval=5s"),
        ]
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(self._cluster.folder), "PYTHONPATH": ":".join(sys.path)}
        self._process = Process("operator", command, self.log, environment)

    def kill(self) -> None:
        self.note_memory()
        kill([self._process])

    def note_memory(self) -> None:
        """Keep the most that this process has held so far."""
        self._process.check()
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"^VmHWM:\s+(\d+) kB$", text, re.MULTILINE)
        assert found
        self.peak_mb = max(self.peak_mb, int(found[1]) * 1024 / 1e6)

    def cpu_seconds(self) -> float:
        """Of its process so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def passes(self) -> Counter[str]:
        """By result; empty while nothing answers."""
        self._process.check()
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(self.metrics, timeout=30) as answer:
                text = str(answer.read().decode())
        except OSError:
            return Counter()
        return Counter({name: int(float(value)) for name, value in _PASSES.findall(text)})


class Bench:
    """One run: a cluster, a fleet, an operator."""

    def __init__(self, cluster: ControlPlane, kube: Kube, fleet: OperatorFleet, report: Report) -> None:
        self.cluster, self.kube, self.fleet, self.report = cluster, kube, fleet, report
        self.rng = random.Random(7)  # noqa: S311

    async def fill(self, foreign: int) -> Operator:
        """Chart, namespaces, nodes, foreign pods, classes; the operator is made but not started."""
        operator = Operator(self.cluster, _install(self.cluster))
        await self.create(("/api/v1/namespaces", m) for m in namespaces())
        nodes = self.fleet.node_manifests()
        began = time.monotonic()
        await self.create(("/api/v1/nodes", m) for m in nodes)
        self.report.note("nodes", f"{len(nodes)}, created in {time.monotonic() - began:.0f} s")
        began = time.monotonic()
        pods = (foreign_pod(n) for n in range(foreign))
        await self.create((f"/api/v1/namespaces/{m['metadata']['namespace']}/pods", m) for m in pods)
        self.report.note("foreign pods", f"{foreign}, created in {time.monotonic() - began:.0f} s")
        api = "/apis/berth.dev/v1alpha1"
        await self.create((f"{api}/{plural}", m) for plural, m in self.fleet.cluster_objects())
        await self.write_prices(0.0, create=True)
        await self.until("nodes are ready", self._nodes_ready, every=5, seconds=600)
        return operator

    async def create(self, objects: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """POST many objects, several at once."""
        source = iter(objects)

        async def work() -> None:
            for path, body in source:
                for attempt in range(20):  # a namespace's ServiceAccount comes a moment after it
                    try:
                        await self.kube.request("POST", path, body=body)
                    except ApiError as error:
                        if error.status == 409:
                            break
                        if attempt == 19:
                            raise
                        await asyncio.sleep(0.5)
                    else:
                        break

        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))

    async def create_pools(self, pools: list[dict[str, Any]], seconds: float) -> float:
        """Create pools at once; seconds until each says that it is placed."""
        began = time.monotonic()
        names = {m["metadata"]["name"] for m in pools}
        await self.create(
            (f"/apis/berth.dev/v1alpha1/namespaces/{m['metadata']['namespace']}/inferencepools", m) for m in pools
        )

        def placed() -> bool:
            rows = self._rows("bpool", "NAME:.metadata.name,PLACED:.status.conditions[?(@.type=='Placed')].status")
            return names <= {name for name, said in rows if said == "True"}

        await self.until(f"{len(pools)} pools are placed", placed, every=1, seconds=seconds)
        return time.monotonic() - began

    async def quiet(self, operator: Operator, for_s: float, seconds: float) -> None:
        """Return once the operator has written nothing for a while."""
        mark, since = self.cluster.audit_mark(), time.monotonic()

        def silent() -> bool:
            nonlocal mark, since
            now = self.cluster.audit_mark()
            if self.writes(mark):
                since = time.monotonic()
            mark = now
            operator.note_memory()
            return time.monotonic() - since >= for_s

        await self.until(f"no write for {for_s:g} s", silent, every=2, seconds=seconds)

    def writes(self, since: int) -> list[Any]:
        """What the operator tried to change after a mark, Leases aside."""
        found = self.cluster.audit_events(since=since, user=USER, writes=True)
        return [event for event in found if event.resource != "leases.coordination.k8s.io"]

    async def beyond_children(self, since: int, pools: list[dict[str, Any]]) -> None:
        """How many writes each of these pools took more than it has children."""
        children: Counter[str] = Counter()
        for resource in CHILDREN:
            for item in (await self.kube.list(resource, labels="berth.dev/pool")).items:
                children[item["metadata"]["labels"]["berth.dev/pool"]] += 1
        names = {m["metadata"]["name"] for m in pools}
        events = self.writes(since)
        taken = Counter(m[0] for event in events if (m := _POOL.search(event.name or _named(event))))
        beyond = {name: taken[name] - children[name] for name in names}
        worst = max(beyond, key=lambda name: beyond[name])
        self.report.figure("writes_beyond_children", beyond[worst])
        self.report.figure("writes_beyond_children_mean", statistics.mean(beyond.values()))
        self.report.figure("writes_of_classes", sum(event.resource.startswith("hardwareclasses") for event in events))
        shown = Counter(f"{e.verb} {e.resource}/{e.subresource}" for e in events if worst in (e.name or _named(e)))
        self.report.note("most writes", f"{worst}, {children[worst]} children: {dict(shown)}")

    async def change_one(self, pool: dict[str, Any]) -> float:
        """Edit one pool; seconds until its children are applied and its status is of the new spec."""
        path = POOLS.path(pool["metadata"]["namespace"], pool["metadata"]["name"])
        demand = pool["spec"]["workload"]["demand"]
        demand["requestsPerSecond"] = f"{Decimal(demand['requestsPerSecond']) * Decimal('1.3'):.3f}"
        spec = {"workload": {"demand": demand}, "worker": {"annotations": {"edited": datetime.now(UTC).isoformat()}}}
        began = time.monotonic()
        after = await self.kube.request(
            "PATCH", path, body={"spec": spec}, content_type="application/merge-patch+json", attempts=1
        )
        wanted = after["metadata"]["generation"]
        while time.monotonic() - began < 120:
            seen = await self.kube.request("GET", path)
            if seen.get("status", {}).get("observedGeneration") == wanted:
                return time.monotonic() - began
            await asyncio.sleep(0.02)
        raise TimeoutError(f"{path}: not applied after two minutes")

    async def unrest(self) -> None:
        """Until cancelled: prices jitter, pods and nodes are patched."""
        ours: list[str] = []
        for n in range(1_000_000):
            if n % 5 == 0:
                await self.write_prices(JITTER)
            if n % 60 == 0:
                found = await self.kube.list(PODS, labels="berth.dev/pool")
                ours = [PODS.path(i["metadata"]["namespace"], i["metadata"]["name"]) for i in found.items]
            beat = {"metadata": {"annotations": {"heartbeat": str(n)}}}
            nodes = [f"/api/v1/nodes/{m['metadata']['name']}" for m in self.rng.sample(self.fleet.node_manifests(), 5)]
            for path in [*nodes, *self.rng.sample(ours, min(5, len(ours)))]:
                try:
                    await self.kube.request("PATCH", path, body=beat, content_type="application/merge-patch+json")
                except ApiError as error:
                    if error.status != 404:  # a worker that has been replaced since
                        raise
            await asyncio.sleep(1)

    async def write_prices(self, jitter: float, *, create: bool = False) -> None:
        """What the price feed says: the classes' own prices, each off by up to `jitter` either way."""
        rows = [
            {
                "hardwareClass": name,
                "capacityType": kind,
                "usdPerHour": f"{float(usd) * (1 + self.rng.uniform(-jitter, jitter)):.6f}",
            }
            for (name, kind), usd in self.fleet.prices().items()
        ]
        data = {"asOf": datetime.now(UTC).isoformat(timespec="seconds"), "prices": yaml.safe_dump(rows)}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "prices"}, "data": data}
        path = f"/api/v1/namespaces/{SYSTEM}/configmaps"
        if create:
            await self.kube.request("POST", path, body=body)
        else:
            await self.kube.request("PUT", f"{path}/prices", body=body)

    async def until(self, what: str, condition: Callable[[], bool], *, every: float, seconds: float) -> None:
        """Await a condition that may take its time."""
        began = time.monotonic()
        while not await asyncio.to_thread(condition):
            self.cluster.check()
            progress(f"until {what}: {time.monotonic() - began:.0f} s")
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"{what}: not so after {seconds:g} s")
            await asyncio.sleep(every)
        progress("")

    def _nodes_ready(self) -> bool:
        rows = self._rows("nodes", "NAME:.metadata.name,TAINTS:.spec.taints[*].key", everywhere=False)
        return bool(rows) and not any("node.kubernetes.io/" in row[-1] for row in rows)

    def _rows(self, what: str, columns: str, *, everywhere: bool = True) -> list[list[str]]:
        where = ["--all-namespaces"] if everywhere else []
        text = self.cluster.kubectl("get", what, *where, "--no-headers", "-o", f"custom-columns={columns}")
        return [line.split() for line in text.splitlines()]


async def run(bench: Bench, foreign: int, changes: int, window_s: float) -> None:
    """All phases, in order."""
    report, operator = bench.report, await bench.fill(foreign)
    pools = bench.fleet.pools()
    operator.start()
    await bench.until("the operator passes", lambda: operator.passes()["success"] > 0, every=1, seconds=60)

    mark = bench.cluster.audit_mark()
    report.figure("create_200_seconds", await bench.create_pools(pools[:AT_ONCE], 600))
    await bench.quiet(operator, 30, 900)
    await bench.beyond_children(mark, pools[:AT_ONCE])
    if pools[AT_ONCE:]:
        report.figure("create_rest_seconds", await bench.create_pools(pools[AT_ONCE:], 1200))
        await bench.quiet(operator, 30, 1800)
    operator.note_memory()
    report.figure("memory_placed_mb", operator.peak_mb)

    unrest = asyncio.create_task(bench.unrest())
    try:
        await asyncio.sleep(10)
        await bench.quiet(operator, 20, 600)
        mark, passes, cpu = bench.cluster.audit_mark(), operator.passes(), operator.cpu_seconds()
        await _with(unrest, asyncio.sleep(window_s))
        steady = bench.writes(mark)
        report.figure("steady_writes_per_minute", len(steady) / window_s * 60)
        report.figure("steady_passes", sum((operator.passes() - passes).values()))
        report.figure("steady_cpu_percent", (operator.cpu_seconds() - cpu) / window_s * 100)
        report.note("steady writes", str(dict(Counter(f"{e.verb} {e.resource}" for e in steady))))

        times = []
        for pool in bench.rng.choices(pools, k=changes):
            times.append(await bench.change_one(pool))
            await asyncio.sleep(bench.rng.uniform(0, 3))
        times.sort()
        report.figure("change_p50_seconds", statistics.median(times))
        report.figure("change_p99_seconds", p99(times))
        report.figure("change_most_seconds", times[-1])
        await bench.quiet(operator, 30, 900)

        operator.kill()
        mark, began = bench.cluster.audit_mark(), time.monotonic()
        operator.start()
        await bench.until("the new operator passes", lambda: operator.passes()["success"] > 0, every=1, seconds=600)
        report.figure("restart_seconds", time.monotonic() - began)
        await _with(unrest, asyncio.sleep(30))
        restart = bench.writes(mark)
        report.figure("restart_writes", len(restart))
        report.note("restart writes", str(dict(Counter(f"{e.verb} {e.resource}" for e in restart))))
        operator.note_memory()
        report.figure("memory_mb", operator.peak_mb)
    finally:
        unrest.cancel()
        operator.kill()


async def _with(task: asyncio.Task[None], work: Coroutine[Any, Any, None] | Awaitable[None]) -> None:
    """Do `work` while a task goes on; what it raises is raised here."""
    await work
    if task.done():
        task.result()


def _install(cluster: ControlPlane) -> Path:
    """Apply the chart, with no operator pods; a kubeconfig of its ServiceAccount."""
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}})
    command = [str(ensure(["helm"])["helm"]), "template", "berth", str(CHART), f"--namespace={SYSTEM}"]
    command += ["--set=replicas=0", "--set=prices.configMap=prices"]
    chart = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=chart)
    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    return cluster.kubeconfig_for_service_account(SYSTEM, "berth-operator")


def _named(event: Any) -> str:
    """What a create that names no object in its path is about, as far as the audit log tells."""
    return str(event.raw.get("requestURI", ""))


async def _main(arguments: Any, report: Report) -> None:
    fleet = OperatorFleet(arguments.pools, arguments.nodes)
    with ControlPlane(node_lease_seconds=400) as cluster:
        async with await Kube.connect(str(cluster.kubeconfig)) as kube:
            bench = Bench(cluster, kube, fleet, report)
            try:
                await run(bench, arguments.foreign_pods, arguments.changes, arguments.window)
            finally:
                if arguments.keep_log:
                    log = cluster.logs_dir / "operator.log"
                    arguments.keep_log.write_text(log.read_text() if log.exists() else "")


def main() -> None:
    """Run all phases and write the figures."""
    parser = options(__doc__)
    parser.add_argument("--pools", type=int, help="default: 1000; quick: 200")
    parser.add_argument("--nodes", type=int, help="simulated ones (default: 5000; quick: 600)")
    parser.add_argument("--foreign-pods", type=int, help="default: 50000; quick: 1000")
    parser.add_argument("--changes", type=int, help="of one pool, one after another (default: 200; quick: 20)")
    parser.add_argument(
        "--window", type=float, help="seconds of steady state that are watched (default: 120; quick: 30)"
    )
    parser.add_argument("--keep-log", type=Path, metavar="FILE", help="what the operator has said")
    arguments = parser.parse_args()
    usual = {"pools": (1000, 200), "nodes": (5000, 600), "foreign_pods": (50_000, 1000), "changes": (200, 20)}
    for name, choices in {**usual, "window": (120.0, 30.0)}.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, choices[arguments.quick])
    report = Report(arguments.threads)
    report.note("fleet", f"{arguments.pools} pools, {arguments.nodes} nodes, {arguments.foreign_pods} foreign pods")
    asyncio.run(_main(arguments, report))
    report.write(arguments.json)


if __name__ == "__main__":
    main()
