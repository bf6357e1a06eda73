"""What is shown, in which order, and what must be true for it to count?"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Final

from berth_operator.cli.generation import GenerationClient, Piece, discover
from devcluster.components import free_ports

from demo import leftovers
from demo.kubelet import container_of
from demo.nodes import NODES
from demo.programs import answers, free_loopback_address, peak_memory_gib, this_machine, usable_cpus
from demo.stage import Manifest, Stage

STEPS: Final = 12
SYSTEM: Final = "berth-system"
OPERATOR: Final = "berth-operator"
_GRPC, _HTTP = 9000, 8000
_KV_CACHE_TOKENS = 65536
_NODE_CPUS, _NODE_GIB = 15, 27  # of a c8g.4xlarge, less what the node keeps for itself
_PROMPT = "Why is the sky blue? Answer in two sentences."


class Demo(Stage):
    """One run: `run` goes through every step, and `close` ends whatever is still there."""

    def run(self) -> None:
        """Every step.  Raises DemoError or what the parts raise; then nothing is torn down yet."""
        self._control_plane()
        self._nodes()
        self._install()
        self._operator()
        self._apply()
        self._placements()
        self._worker()
        self._tokens()
        profile = self._bench()
        self._profile(profile)
        self._tenfold()
        self._teardown()
        self._tell.end()

    # The cluster

    def _control_plane(self) -> None:
        words = (
            "etcd, kube-apiserver, kube-scheduler and kube-controller-manager: the real ones, on loopback, RBAC on.",
            "KWOK plays the kubelets: nodes and pods are simulated, everything that decides about them is not.",
        )
        with self._tell.step("A Kubernetes control plane", *words):
            self._bring_up()
            self._tell.check("the API server answers", "Server Version: v1." in self._kubectl("version"))

    def _nodes(self) -> None:
        words = ("What a cluster on AWS might have: Graviton4, L4 and H100 nodes, each on demand and spot.",)
        with self._tell.step("Simulated nodes", *words):
            self._cluster.add_nodes(*NODES)
            self._kubectl(
                "get", "nodes", "-L", "node.kubernetes.io/instance-type,karpenter.sh/capacity-type", "--no-headers"
            )
            nodes = self._cluster.get("nodes")["items"]
            kinds = {
                (labels["node.kubernetes.io/instance-type"], labels["karpenter.sh/capacity-type"])
                for labels in (node["metadata"]["labels"] for node in nodes)
            }
            wanted = {(pool.instance_type, pool.capacity_type) for pool in NODES}
            self._tell.check(f"{len(nodes)} nodes are ready, of {len(kinds)} kinds", kinds == wanted, kinds)

    # The operator

    def _install(self) -> None:
        with self._tell.step(
            "Install Berth with Helm", "CRDs, a ServiceAccount with the rights it needs, the operator."
        ):
            self._run(
                *("helm", "install", "berth", "charts/berth", f"--namespace={SYSTEM}", "--create-namespace"),
                *("--wait", "--timeout=60s"),
            )
            self._kubectl("get", "pods", f"--namespace={SYSTEM}", "-o", "wide", "--no-headers")
            pods = self._cluster.get("pods", f"--namespace={SYSTEM}")["items"]
            self._tell.check(
                f"{len(pods)} operator pods are scheduled and ready", pods and all(map(_ready, pods)), len(pods)
            )

    def _operator(self) -> None:
        words = (
            "Those pods run on simulated nodes, so nothing runs in them. The operator itself is started here: the same"
            " command and environment, with the token of the chart's ServiceAccount and no more rights than that.",
        )
        with self._tell.step("The operator, under its own ServiceAccount", *words):
            kubeconfig = self._cluster.kubeconfig_for_service_account(SYSTEM, OPERATOR)
            deployment = self._cluster.get("deployment", OPERATOR, f"--namespace={SYSTEM}")
            container = container_of(deployment, pod="operator-of-the-demo", entry_point=[OPERATOR])
            metrics, health = free_ports(2)
            here = {
                "BERTH_METRICS_ADDRESS": f"127.0.0.1:{metrics}",
                "BERTH_ACTIVATOR_LISTEN": "127.0.0.1",
                "BERTH_HEALTH_ADDRESS": f"127.0.0.1:{health}",
                "BERTH_LOG_FORMAT": "text",
            }
            self._tell.show(container.lines())
            self._tell.say("changed for this machine: " + ", ".join(f"{k}={v}" for k, v in here.items()))
            environment = self._environment(kubeconfig) | dict(container.environment) | here
            operator = self._start("operator", container.local_command(), environment)
            self._tell.say(f"its log: {operator.log}")
            self._await("the operator is healthy", lambda: answers(f"http://127.0.0.1:{health}/healthz"))
            self._await("the operator holds its Lease", lambda: self._lease_holder() == "operator-of-the-demo")
            self._tell.check("it is healthy and holds its Lease", holds=True)
            account = f"system:serviceaccount:{SYSTEM}:{OPERATOR}"
            may = self._kubectl("auth", "can-i", "get", "secrets", f"--as={account}", fails=True)
            self._tell.check("it may not even read a Secret", may.strip() == "no", may)

    def _lease_holder(self) -> str:
        found = self._cluster.get("leases", f"--namespace={SYSTEM}")["items"]
        return next((item["spec"].get("holderIdentity") or "" for item in found), "")

    # The plan

    def _apply(self) -> None:
        words = (
            "Three kinds of hardware with their prices, and three pools: what to serve, how fast, how much of it.",
        )
        with self._tell.step("Say what there is and what to serve", *words):
            self._kubectl("apply", "-f", "examples/")
            self._kubectl("wait", "--for=condition=Ready", "bpool", "--all", "--timeout=60s")
            pools = self._cluster.get("bpool")["items"]
            self._tell.check(f"{len(pools)} pools are ready", len(pools) == 3 and all(map(_ready, pools)))

    def _placements(self) -> None:
        words = ("SAVED is against the cheapest GPU-only fleet for the same demand, by the same solver.",)
        with self._tell.step("Where everything runs, and what it costs", *words):
            self._kubectl("get", "bpool")
            pools = {pool["metadata"]["name"]: pool["status"] for pool in self._cluster.get("bpool")["items"]}
            for name, status in pools.items():
                complete = status["placements"] and status["cost"].get("usdPerHour") and status.get("saved")
                self._tell.check(f"{name}: {status['placement']}, {_costs(status)}", complete, status)
            self._kubectl("get", "pods", "-o", _POD_COLUMNS)
            for name, status in pools.items():
                self._check_pods(name, status)

    def _check_pods(self, pool: str, status: Manifest) -> None:
        """The pods of a pool are ready, on nodes of the class and capacity type that its status names."""
        wanted = sorted(
            f"{p['hardwareClass']}{'-spot' if p['capacityType'] == 'Spot' else ''}"
            for p in status["placements"]
            for _ in range(p["replicas"])
        )
        pods = self._pods(pool)
        found = sorted(pod["spec"].get("nodeName", "?").rsplit("-", 1)[0] for pod in pods if _ready(pod))
        self._tell.check(f"{pool}: its pods run on the nodes that its status names", found == wanted, found)

    def _pods(self, pool: str) -> list[Manifest]:
        found: list[Manifest] = self._cluster.get("pods", f"--selector=berth.dev/pool={pool}")["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    # The worker

    def _worker(self) -> None:
        words = (
            "No container runs on a simulated node, so this machine takes the place of one: it runs the very command,"
            " arguments and environment that the operator wrote into the Deployment.",
        )
        with self._tell.step("One real worker", *words):
            listing = self._kubectl(
                *("get", "deployments", "--selector=berth.dev/pool=assistant", "-o", "json"), quiet=True
            )
            self._tell.say("its container:")
            container = container_of(json.loads(listing)["items"][0], pod="worker-of-the-demo")
            self._tell.show(container.lines())
            self._address = free_loopback_address(_GRPC, _HTTP)
            here = {
                "BERTH_WORKER_HOST": self._address,
                "BERTH_WORKER_KV_CACHE_TOKENS": str(_KV_CACHE_TOKENS),
            }
            self._tell.say(
                "added: " + ", ".join(f"{k}={v}" for k, v in here.items()) + " (to listen on loopback only, and not to"
                " take half of this machine's memory for its cache)"
            )
            environment = self._environment(None) | dict(container.environment) | here
            self._worker_program = self._start("worker", container.local_command(), environment)
            self._await("the worker is ready", lambda: answers(f"http://{self._address}:{_HTTP}/readyz"), 60)
            self._tell.check(
                f"it has loaded SmolLM2-135M-Instruct and serves gRPC at {self._address}:{_GRPC}", holds=True
            )

    def _tokens(self) -> None:
        words = ("Over gRPC, berth.v1.Generation/Generate, by the messages that the worker's reflection describes.",)
        with self._tell.step("A prompt, and tokens as they come", *words):
            self._tell.say(f"> {_PROMPT}")
            pieces, began = asyncio.run(self._stream())
            tokens = sum(piece.tokens for piece in pieces)
            first, last = pieces[0].at - began, pieces[-1].at - began
            self._tell.check(
                f"{tokens} tokens in {len(pieces)} messages: the first after {first * 1000:.0f} ms, the last after"
                f" {last:.2f} s",
                tokens > 5 and len(pieces) > 5 and first < last / 2,
                [piece.text for piece in pieces],
            )

    async def _stream(self) -> tuple[list[Piece], float]:
        target = f"{self._address}:{_GRPC}"
        call = await asyncio.to_thread(discover, target)
        out, pieces = self._tell.console.file, []
        out.write("    ")
        async with GenerationClient(target, call) as client:
            began = time.perf_counter()
            async for piece in client.chat(_PROMPT, max_tokens=80):
                pieces.append(piece)
                out.write(piece.text.replace("\n", "\n    "))
                out.flush()
        out.write("\n")
        return pieces, began

    def _bench(self) -> Path:
        cpus, memory = usable_cpus(), peak_memory_gib(self._worker_program.pid)
        replicas = max(1, min(_NODE_CPUS // cpus, _NODE_GIB // memory))
        words = (
            f"This machine stands in for a Graviton4 node: {this_machine()}. So the figures are this machine's, and the"
            " profile says so; a real fleet measures on the real node.",
            f"The worker used {cpus} CPUs and {memory} GiB; that {replicas} such replicas fit on a c8g.4xlarge without"
            " slowing each other down is an assumption.",
        )
        with self._tell.step("Measure the worker", *words):
            profile = self._logs / "assistant-profile.yaml"
            command = [
                *("berth", "bench", f"{self._address}:{_GRPC}", "--model=smollm2-135m-instruct"),
                *("--hardware-class=graviton4", "--prompt-tokens=400", "--output-tokens=60"),
                *(f"--cpu={cpus}", f"--memory={memory}Gi", f"--replicas-per-node={replicas}"),
                f"--machine=in place of a c8g.4xlarge: {this_machine()}",
            ]
            if self._address != "127.0.0.1":
                command.append(f"--http-address={self._address}:{_HTTP}")
            text = self._run(*command, live=True, redirected_to=str(profile))
            profile.write_text(text)
            self._tell.show(text)
            checked = self._run("kubectl", "apply", "--dry-run=server", "-f", str(profile))
            self._tell.check(
                "the API server would take it as it stands", "created (server dry run)" in checked, checked
            )
            return profile

    def _profile(self, profile: Path) -> None:
        words = ("Until now the planner estimated this pair from data sheets. A measured profile always wins.",)
        with self._tell.step("Plan with what was measured", *words):
            before = self._candidate("assistant", "graviton4")
            self._tell.say(f"estimated: {before['verdict']}: {before['reason']}")
            self._kubectl("apply", "-f", str(profile))
            self._await(
                "the plan of assistant uses the profile",
                lambda: self._candidate("assistant", "graviton4").get("estimated") is False,
            )
            after = self._candidate("assistant", "graviton4")
            self._tell.say(f"measured:  {after['verdict']}: {after['reason']}")
            self._await_settled("assistant")
            self._kubectl("get", "bpool", "assistant")
            changed = before["estimated"] and not after["estimated"]
            self._tell.check("graviton4 counts for assistant as measured, no longer as estimated", changed, after)

    def _candidate(self, pool: str, hardware_class: str) -> Manifest:
        status = self._cluster.get("bpool", pool)["status"]
        found = (c for c in status["candidates"] if c["hardwareClass"] == hardware_class)
        return next((c for c in found if c["capacityType"] == "OnDemand"), {})

    # The change

    def _tenfold(self) -> None:
        words = ("Nobody says where it should run: only the demand changes, from 12 messages a minute to 120.",)
        with self._tell.step("Ten times the demand", *words):
            before = self._classes("chat")
            now = self._cluster.get("bpool", "chat")["spec"]["workload"]["demand"]["requestsPerSecond"]
            tenfold = f"{float(now) * 10:g}"
            patch = json.dumps(
                {"spec": {"workload": {"demand": {"requestsPerSecond": tenfold}}}}, separators=(",", ":")
            )
            self._kubectl("patch", "bpool", "chat", "--type=merge", "-p", patch)
            self._await("chat is placed on other hardware", lambda: not before & self._classes("chat"))
            self._await_settled("chat")
            self._kubectl("get", "bpool", "chat")
            after = self._classes("chat")
            self._tell.check(
                f"it moved from {', '.join(before)} to {', '.join(after)}", after and not before & after, after
            )
            self._check_pods("chat", self._cluster.get("bpool", "chat")["status"])
            text = self._run("berth", "explain", "chat")
            mentioned = all(name in text for name in before | after)
            self._tell.check("`berth explain` says why, and what it would take to go back", mentioned)

    def _classes(self, pool: str) -> set[str]:
        """The hardware classes that a pool's status places it on."""
        status = self._cluster.get("bpool", pool).get("status", {})
        return {placement["hardwareClass"] for placement in status.get("placements", [])}

    def _await_settled(self, pool: str) -> None:
        """Wait until a pool's status is about its present spec, everything wanted runs, and nothing else does."""

        def settled() -> bool:
            item = self._cluster.get("bpool", pool)
            status = item["status"]
            current = status.get("observedGeneration") == item["metadata"]["generation"]
            ready: Manifest = next((c for c in status["conditions"] if c["type"] == "Ready"), {})
            wanted = sum(p["replicas"] for p in status["placements"])
            return bool(current and ready.get("reason") == "Ready" and len(self._pods(pool)) == wanted)

        self._await(f"{pool} has settled", settled, 60)

    # The end

    def _teardown(self) -> None:
        words = ("The worker first stops taking requests for five seconds, as it must behind a load balancer.",)
        with self._tell.step("Take everything down", *words):
            everything = leftovers.children()
            for program in self._programs:
                program.ask_to_leave()
            for program in self._programs:
                code = program.terminate(timeout_s=30)
                self._tell.check(f"the {program.name} left in good order (exit code {code})", code == 0)
            self._programs = []
            folder = self._cluster.folder
            self._stack.close()
            left = leftovers.living([*everything, *self._pids])
            self._tell.check(f"none of {len(everything)} processes is left", everything and not left, left)
            self._tell.check("no file of the cluster is left", not folder.exists(), folder)


_POD_COLUMNS = "custom-columns=POD:.metadata.name,NODE:.spec.nodeName,PHASE:.status.phase"


def _ready(item: Manifest) -> bool:
    conditions = item.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _costs(status: Manifest) -> str:
    cost = status["cost"]
    alone = cost.get("gpuOnlyUsdPerHour", "?")
    return f"{cost['usdPerHour']} USD/h, on GPUs alone {alone} ({status['saved']} saved)"
