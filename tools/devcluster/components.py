"""What is each process of the control plane told, and how does it say that it is ready?

Pure: a layout in, command lines out. Only ``write_files`` touches the disk.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from devcluster import access, audit, nodes
from devcluster.binaries import Paths

ETCD, API_SERVER, SCHEDULER = "etcd", "kube-apiserver", "kube-scheduler"
CONTROLLER_MANAGER, KWOK = "kube-controller-manager", "kwok"

ADMIN = "devcluster-admin"
_CLIENTS = {  # kubeconfig -> user and groups
    "admin": (ADMIN, "system:masters"),
    "scheduler": ("system:kube-scheduler",),
    "controller-manager": ("system:kube-controller-manager",),
    "kwok": ("kwok", "system:masters"),
}
_SERVICE_CIDR = "10.96.0.0/16"
_POD_CIDR = "10.244.0.0/16"


@dataclass(frozen=True)
class Component:
    """One process: its command line, and the URL that answers 200 once it serves."""

    name: str
    command: Sequence[str | Path]
    ready_url: str


@dataclass(frozen=True)
class Layout:
    """Where one control plane keeps its files, and on which ports of ``address`` it listens."""

    folder: Path
    ports: Sequence[int]  # etcd clients, etcd peers, API server, scheduler, controller manager, KWOK
    address: str = "127.0.0.1"
    lease_seconds: int = 40  # of a simulated node; KWOK renews it four times as often

    @property
    def server(self) -> str:
        return f"https://{self.address}:{self.ports[2]}"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def audit_log(self) -> Path:
        return self.logs / "audit.jsonl"

    def kubeconfig(self, client: str) -> Path:
        return self.folder / f"{client}.kubeconfig"

    def pki(self, name: str) -> Path:
        return self.folder / "pki" / name


def free_ports(count: int, address: str = "127.0.0.1") -> list[int]:
    """Ports that were free a moment ago; another process may take one first, so be ready to ask again."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((address, 0))
        return [each.getsockname()[1] for each in sockets]


def write_files(layout: Layout) -> access.CertificateAuthority:
    """Write certificates, kubeconfigs and the audit policy."""
    for folder in (layout.logs, layout.pki("ca").parent):
        folder.mkdir(parents=True, exist_ok=True)
    authority = access.CertificateAuthority("devcluster-ca")
    authority.credentials.write(layout.pki("ca"))
    service = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
    first_service_address = _SERVICE_CIDR.replace(".0/16", ".1")
    authority.server(layout.address, "localhost", first_service_address, *service).write(layout.pki("server"))
    access.signing_key_pair(layout.pki("service-accounts"))
    for client, (user, *groups) in _CLIENTS.items():
        text = access.kubeconfig(layout.server, authority.credentials.certificate, authority.client(user, *groups))
        path = layout.kubeconfig(client)
        path.touch(mode=0o600)
        path.write_text(text)
    (layout.folder / "audit-policy.yaml").write_text(audit.POLICY)
    return authority


def etcd(layout: Layout, paths: Paths) -> Component:
    clients, peers = (f"http://{layout.address}:{port}" for port in layout.ports[:2])
    command: list[str | Path] = [
        paths[ETCD],
        f"--data-dir={layout.folder / 'etcd'}",
        f"--listen-client-urls={clients}",
        f"--advertise-client-urls={clients}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=default={peers}",
        "--unsafe-no-fsync",  # nothing here outlives the process
        "--log-level=warn",
    ]
    return Component(ETCD, command, f"{clients}/health")


def api_server(layout: Layout, paths: Paths) -> Component:
    command: list[str | Path] = [
        paths[API_SERVER],
        f"--etcd-servers=http://{layout.address}:{layout.ports[0]}",
        f"--bind-address={layout.address}",
        f"--advertise-address={layout.address}",
        f"--secure-port={layout.ports[2]}",
        "--endpoint-reconciler-type=none",  # a loopback address cannot stand in the endpoints of Service kubernetes
        *_serving(layout),
        f"--client-ca-file={layout.pki('ca.crt')}",
        f"--requestheader-client-ca-file={layout.pki('ca.crt')}",  # scheduler and controller manager wait for it
        "--requestheader-allowed-names=front-proxy-client",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",  # as on OpenShift, beside the defaults
        "--allow-privileged",
        f"--service-cluster-ip-range={_SERVICE_CIDR}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={layout.pki('service-accounts.pub')}",
        f"--service-account-signing-key-file={layout.pki('service-accounts.key')}",
        f"--audit-policy-file={layout.folder / 'audit-policy.yaml'}",
        f"--audit-log-path={layout.audit_log}",
        "--audit-log-mode=blocking",  # an answer that a test has seen is in the log
        "--audit-log-maxsize=4096",  # MiB: never rotated
    ]
    return Component(API_SERVER, command, f"{layout.server}/readyz")


def scheduler(layout: Layout, paths: Paths) -> Component:
    port = layout.ports[3]
    command: list[str | Path] = [paths[SCHEDULER], *_controller(layout, "scheduler", port)]
    return Component(SCHEDULER, command, f"https://{layout.address}:{port}/healthz")


def controller_manager(layout: Layout, paths: Paths) -> Component:
    port = layout.ports[4]
    command: list[str | Path] = [
        paths[CONTROLLER_MANAGER],
        *_controller(layout, "controller-manager", port),
        "--use-service-account-credentials",
        f"--service-account-private-key-file={layout.pki('service-accounts.key')}",
        f"--root-ca-file={layout.pki('ca.crt')}",
        f"--cluster-signing-cert-file={layout.pki('ca.crt')}",
        f"--cluster-signing-key-file={layout.pki('ca.key')}",
        "--allocate-node-cidrs=false",
        "--horizontal-pod-autoscaler-sync-period=1s",  # the default of 15 s only makes tests wait
        f"--node-monitor-grace-period={layout.lease_seconds + 10}s",
    ]
    return Component(CONTROLLER_MANAGER, command, f"https://{layout.address}:{port}/healthz")


def kwok(layout: Layout, paths: Paths) -> Component:
    port = layout.ports[5]
    command: list[str | Path] = [
        paths[KWOK],
        f"--kubeconfig={layout.kubeconfig('kwok')}",
        f"--config={nodes.KWOK_CONFIGURATION}",
        f"--manage-nodes-with-annotation-selector={nodes.KWOK_SELECTOR}",
        f"--server-address={layout.address}:{port}",
        f"--cidr={_POD_CIDR}",
        f"--node-ip={layout.address}",
        f"--node-lease-duration-seconds={layout.lease_seconds}",
    ]
    return Component(KWOK, command, f"http://{layout.address}:{port}/healthz")


def _serving(layout: Layout) -> list[str]:
    return [f"--tls-cert-file={layout.pki('server.crt')}", f"--tls-private-key-file={layout.pki('server.key')}"]


def _controller(layout: Layout, client: str, port: int) -> list[str]:
    """What scheduler and controller manager have in common."""
    kubeconfig = layout.kubeconfig(client)
    return [
        *(f"--{use}kubeconfig={kubeconfig}" for use in ("", "authentication-", "authorization-")),
        f"--bind-address={layout.address}",
        f"--secure-port={port}",
        *_serving(layout),
        "--leader-elect=false",
        "--kube-api-qps=500",  # the default of 20 a second holds the start back by seconds
        "--kube-api-burst=1000",
    ]
