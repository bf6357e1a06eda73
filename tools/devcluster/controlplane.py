"""How is a real Kubernetes control plane brought up on this machine, used, and taken down without a trace?

etcd, API server, scheduler and controller manager of one version, RBAC on, plus KWOK for simulated nodes; everything on
loopback, everything in one temporary folder.

A second size, a whole node with kubelet and containerd, belongs beside this class in ``devcluster/wholenode.py``: a
context manager that enters a ``ControlPlane(address=..., simulate_nodes=False)`` on an address that its node can reach,
and starts its own processes after it with the same ``Process``, certificate authority and binaries.
"""

from __future__ import annotations

import http
import json
import ssl
import subprocess
import urllib.request
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from devcluster import access, binaries, components
from devcluster.audit import AuditEvent, read_events
from devcluster.components import Component, Layout
from devcluster.nodes import Manifest, SimulatedNodePool
from devcluster.processes import Process, ProcessError, kill, own_environment, wait_for
from devcluster.scratch import ScratchFolder

T = TypeVar("T")

_READY_WITHIN_S = 60.0
_ATTEMPTS = 3  # another process can take a port between our choosing it and our listening on it
_PORT_TAKEN = "address already in use"
_NODES_READY_WITHIN_S = 60.0


class KubectlError(RuntimeError):
    """kubectl exited with an error; the message is what it printed."""


class ControlPlane:
    """``with ControlPlane() as cluster: cluster.kubectl("get", "namespaces")``. Enter it on the main thread."""

    def __init__(
        self, *, address: str = "127.0.0.1", simulate_nodes: bool = True, node_lease_seconds: int = 40
    ) -> None:
        """``node_lease_seconds``: longer for thousands of simulated nodes, whose heartbeats would fill the machine."""
        self._address = address
        self._node_lease_seconds = node_lease_seconds
        self._simulate_nodes = simulate_nodes
        self._processes: dict[str, Process] = {}
        self._components: dict[str, Component] = {}

    # Coming up and going down

    def __enter__(self) -> Self:
        wanted = [name for name in binaries.CONTROL_PLANE if name != components.KWOK or self._simulate_nodes]
        self._paths = binaries.ensure(wanted)
        for attempt in range(1, _ATTEMPTS + 1):
            self._scratch = ScratchFolder()
            try:
                self._up()
            except BaseException as error:
                self.close()
                if attempt < _ATTEMPTS and isinstance(error, ProcessError) and _PORT_TAKEN in str(error):
                    continue
                raise
            break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process and remove every file. Done twice, it does nothing."""
        kill(self._processes.values())
        self._processes.clear()
        self._scratch.remove()

    def _up(self) -> None:
        layout = Layout(
            self._scratch.path, components.free_ports(6, self._address), self._address, self._node_lease_seconds
        )
        self._layout = layout
        self._authority = components.write_files(layout)
        self._opener = self._open()
        makers = [components.etcd, components.api_server, components.scheduler, components.controller_manager]
        if self._simulate_nodes:
            makers.append(components.kwok)
        self._components = {made.name: made for made in (maker(layout, self._paths) for maker in makers)}
        first, second, *rest = self._components
        self.start(first)
        self.start(second)
        self.start(*rest)
        # The controller manager's first sign of work, and what the first pod will need.
        account = f"{layout.server}/api/v1/namespaces/default/serviceaccounts/default"
        self._await("ServiceAccount default/default exists", [account])

    # Its processes

    def start(self, *names: str) -> None:
        """Start these components together, such as ``kube-apiserver``, and wait until all are ready."""
        for name in names:
            command = self._component(name).command
            self._processes[name] = Process(name, command, self.logs_dir / f"{name}.log", self._environment())
        self._await(f"{', '.join(names)} ready", [self._component(name).ready_url for name in names])

    def stop(self, name: str) -> None:
        """Kill one component, as a crash would; ``start`` brings it back on the same port with the same data.

        The API server goes once no namespace is being deleted: the namespace controller would find no custom resources
        in the first moments of the new one, and leave the objects of a namespace that is gone.
        """
        self._component(name)
        if (
            name == components.API_SERVER
            and name in self._processes
            and components.CONTROLLER_MANAGER in self._processes
        ):
            self.wait_for("no namespace is being deleted", lambda: "Terminating" not in self._namespaces(), 90)
        process = self._processes.pop(name, None)
        if process is not None:
            kill([process])

    def forget_history(self) -> None:
        """Compact etcd and restart the API server: watches from any older resource version are answered 410 Gone."""
        etcd = f"http://{self._layout.address}:{self._layout.ports[0]}/v3/kv"
        here = json.loads(self._post(f"{etcd}/range", {"key": "AA=="}))["header"]["revision"]
        self._post(f"{etcd}/compaction", {"revision": here, "physical": True})
        self.stop(components.API_SERVER)
        self.start(components.API_SERVER)

    def _post(self, url: str, body: Mapping[str, Any]) -> bytes:
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return bytes(answer.read())

    def check(self) -> None:
        """Raise, with the end of its log, if a component has died."""
        for process in self._processes.values():
            process.check()

    @property
    def pids(self) -> dict[str, int]:
        """Component -> process id."""
        return {name: process.pid for name, process in self._processes.items()}

    def _component(self, name: str) -> Component:
        try:
            return self._components[name]
        except KeyError:
            raise ValueError(f"unknown component {name!r}: expected one of {', '.join(self._components)}") from None

    # Talking to it

    @property
    def server(self) -> str:
        """URL of the API server."""
        return self._layout.server

    @property
    def kubeconfig(self) -> Path:
        """The administrator's, with a client certificate."""
        return self._layout.kubeconfig("admin")

    @property
    def folder(self) -> Path:
        """Holds every file of this control plane; gone after the end."""
        return self._layout.folder

    @property
    def logs_dir(self) -> Path:
        """One ``NAME.log`` a component, and ``audit.jsonl``."""
        return self._layout.logs

    @property
    def kubectl_path(self) -> Path:
        return self._paths["kubectl"]

    def kubectl(self, *args: str, input: str | None = None, kubeconfig: Path | None = None) -> str:  # noqa: A002
        """Run kubectl, as the administrator unless told otherwise, and return what it printed."""
        finished = subprocess.run(
            [str(self.kubectl_path), f"--kubeconfig={kubeconfig or self.kubeconfig}", *args],
            input=input,
            capture_output=True,
            text=True,
            check=False,
            env=self._environment(),
        )
        if finished.returncode != 0:
            self.check()  # a dead component is the better explanation
            raise KubectlError(f"kubectl {' '.join(args)} exited {finished.returncode}: {finished.stderr.strip()}")
        return finished.stdout

    def get(self, *args: str) -> Any:
        """``kubectl get ... -o json``, parsed."""
        return json.loads(self.kubectl("get", *args, "-o", "json"))

    def apply(self, *manifests: Manifest) -> None:
        """``kubectl apply`` of objects."""
        documents = "\n".join(json.dumps(manifest) for manifest in manifests)  # in YAML a name like 12e3 is a number
        self.kubectl("apply", "-f", "-", input=documents)

    def kubeconfig_for_service_account(self, namespace: str, name: str, *, duration: str = "24h") -> Path:
        """A kubeconfig with a real token of this ServiceAccount: it may do what RBAC grants it, and no more."""
        token = self.kubectl("create", "token", name, f"--namespace={namespace}", f"--duration={duration}").strip()
        authority = self._authority.credentials.certificate
        path = self._layout.kubeconfig(f"serviceaccount-{namespace}-{name}")
        path.touch(mode=0o600)
        path.write_text(access.kubeconfig(self.server, authority, token, namespace))
        return path

    # What happened in it

    def audit_mark(self) -> int:
        """Now, as a place in the audit log: give it to ``audit_events`` to see only what came after."""
        log = self._layout.audit_log
        return log.stat().st_size if log.exists() else 0

    def audit_events(
        self, *, since: int = 0, user: str | None = None, verbs: Collection[str] | None = None, writes: bool = False
    ) -> list[AuditEvent]:
        """Requests that the API server answered, oldest first: of one user, of some verbs, or writes only."""
        return [
            event
            for event in read_events(self._layout.audit_log, since)
            if (user is None or event.user == user)
            and (verbs is None or event.verb in verbs)
            and (not writes or event.is_write)
        ]

    # Its nodes

    def add_nodes(self, *pools: SimulatedNodePool) -> None:
        """Create simulated nodes, and wait until the scheduler may use them. Existing ones stay as they are."""
        manifests = [manifest for pool in pools for manifest in pool.manifests()]
        if not manifests:
            return
        if components.KWOK not in self._components:
            raise ValueError("add_nodes needs KWOK: make the ControlPlane with simulate_nodes=True")
        self.apply(*manifests)
        names = {manifest["metadata"]["name"] for manifest in manifests}
        self.wait_for(
            f"nodes {', '.join(sorted(names))} ready", lambda: names <= self._usable_nodes(), _NODES_READY_WITHIN_S
        )

    def _usable_nodes(self) -> set[str]:
        return {node["metadata"]["name"] for node in self.get("nodes")["items"] if _usable(node)}

    # Waiting

    def wait_for(self, what: str, condition: Callable[[], T], timeout_s: float = 30.0) -> T:
        """Poll until ``condition`` returns something true, and return that; raise early if a component dies."""
        return wait_for(what, condition, timeout_s, self._processes.values())

    def _namespaces(self) -> str:
        return self.kubectl("get", "namespaces", "--output=jsonpath={.items[*].status.phase}")

    def _await(self, what: str, urls: Collection[str]) -> None:
        self.wait_for(what, lambda: all(self._answers(url) for url in urls), _READY_WITHIN_S)

    def _answers(self, url: str) -> bool:
        try:
            with self._opener.open(url, timeout=2) as answer:
                return bool(answer.status == http.HTTPStatus.OK)
        except OSError:  # refused, timed out, or an HTTP error: not yet
            return False

    def _open(self) -> urllib.request.OpenerDirector:
        """An HTTP client that is the administrator, and heeds no proxy."""
        tls = ssl.create_default_context(cafile=str(self._layout.pki("ca.crt")))
        certificate, key = self._authority.client(components.ADMIN, "system:masters").write(self._layout.pki("admin"))
        tls.load_cert_chain(certificate, key)
        return urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls))

    def _environment(self) -> dict[str, str]:
        """Of our processes: no proxy between them, no file outside our folder."""
        kept = {name: value for name, value in own_environment().items() if name != "KUBECONFIG"}
        return kept | {"HOME": str(self.folder), "KUBECACHEDIR": str(self.folder / "kubectl-cache")}


def _usable(node: Manifest) -> bool:
    """Ready, and rid of the taints that the node lifecycle controller keeps on a node until it is."""
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", []))
    held = any(taint["key"].startswith("node.kubernetes.io/") for taint in node["spec"].get("taints", []))
    return ready and not held
