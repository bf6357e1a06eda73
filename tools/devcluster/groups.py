"""Who makes the pods of LeaderWorkerSets?  That project's own controller, beside a control plane, with its webhooks."""

from __future__ import annotations

import base64
import socket
import urllib.error
import urllib.request
from types import TracebackType
from typing import Any, Final, Self

import yaml

from devcluster.access import CertificateAuthority
from devcluster.binaries import ensure
from devcluster.components import free_ports
from devcluster.controlplane import ControlPlane
from devcluster.crds import crd_files, install
from devcluster.processes import Process, kill, own_environment, wait_for
from devcluster.scratch import ScratchFolder

SOURCE: Final = "leader-worker-set"
_GROUP: Final = "leaderworkerset.x-k8s.io"
_READY_WITHIN_S: Final = 60.0

Manifest = dict[str, Any]


class LeaderWorkerSets:
    """``with LeaderWorkerSets(cluster):`` the kind is served and carried out; afterwards it is gone, with all of it.

    Enter it on the main thread.
    """

    def __init__(self, cluster: ControlPlane, *, address: str = "127.0.0.1") -> None:
        self._cluster, self._address = cluster, address

    def __enter__(self) -> Self:
        binary = ensure(["lws"])["lws"]
        self._scratch = ScratchFolder()
        folder = self._scratch.path
        webhook, health = free_ports(2, self._address)
        authority = CertificateAuthority("leader-worker-set")
        authority.server(self._address, "localhost").write(folder / "tls")
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(self._config(webhook, health, str(folder))))
        install(self._cluster, SOURCE)
        (crd,) = crd_files(SOURCE)  # it will not start without its other kind
        self._others = crd.with_name("disaggregatedset.x-k8s.io_disaggregatedsets.yaml")
        self._cluster.kubectl("apply", "--server-side", f"--filename={self._others}")
        environment = own_environment() | {"KUBECONFIG": str(self._cluster.kubeconfig)}
        self._process = Process("lws", [binary, f"--config={config}"], folder / "lws.log", environment)
        self._hooks = self._webhooks(webhook, authority.credentials.certificate)
        try:
            url = f"http://{self._address}:{health}/readyz"
            wait_for("its controller is ready", lambda: _answers(url), _READY_WITHIN_S, [self._process])
            wait_for("its webhooks listen", lambda: self._listens(webhook), _READY_WITHIN_S, [self._process])
            self._cluster.apply(*self._hooks)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take its webhooks and kinds away, and end it."""
        named = [f"{hook['kind'].lower()}/{hook['metadata']['name']}" for hook in self._hooks]
        self._cluster.kubectl("delete", "--ignore-not-found", *named)
        files = [f"--filename={path}" for path in (*crd_files(SOURCE), self._others)]
        self._cluster.kubectl("delete", "--ignore-not-found", *files)
        kill([self._process])
        self._scratch.remove()

    def check(self) -> None:
        """Raise, with the end of its log, if it has died."""
        self._process.check()

    def log_tail(self, lines: int = 40) -> str:
        """What it said last."""
        return self._process.log_tail(lines)

    def _config(self, webhook: int, health: int, certificates: str) -> Manifest:
        return {
            "apiVersion": "config.lws.x-k8s.io/v1alpha1",
            "kind": "Configuration",
            "leaderElection": {"leaderElect": False},
            "internalCertManagement": {"enable": False},
            "webhook": {"host": self._address, "port": webhook, "certDir": certificates},
            "health": {"healthProbeBindAddress": f"{self._address}:{health}"},
            "metrics": {"bindAddress": "0"},
        }

    def _listens(self, port: int) -> bool:
        try:
            with socket.create_connection((self._address, port), timeout=1):
                return True
        except OSError:
            return False

    def _webhooks(self, port: int, authority: bytes) -> list[Manifest]:
        """As its own manifests have them, at an address of this machine, and of pods only those of its sets."""

        def hook(name: str, path: str, group: str, resource: str, *operations: str, **more: Any) -> Manifest:
            return {
                "name": name,
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Fail",
                "clientConfig": {
                    "url": f"https://{self._address}:{port}{path}",
                    "caBundle": base64.b64encode(authority).decode(),
                },
                "rules": [
                    {
                        "apiGroups": [group],
                        "apiVersions": ["v1"],
                        "operations": list(operations),
                        "resources": [resource],
                    }
                ],
                **more,
            }

        path = f"{_GROUP.replace('.', '-')}-v1-leaderworkerset"
        of_sets = {"matchExpressions": [{"key": "leaderworkerset.sigs.k8s.io/name", "operator": "Exists"}]}
        mutating = [
            hook("mleaderworkerset.kb.io", f"/mutate-{path}", _GROUP, "leaderworkersets", "CREATE", "UPDATE"),
            hook("mpod.kb.io", "/mutate--v1-pod", "", "pods", "CREATE", objectSelector=of_sets),
        ]
        validating = [
            hook("vleaderworkerset.kb.io", f"/validate-{path}", _GROUP, "leaderworkersets", "CREATE", "UPDATE")
        ]
        return [
            {
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": kind,
                "metadata": {"name": "lws"},
                "webhooks": hooks,
            }
            for kind, hooks in (
                ("MutatingWebhookConfiguration", mutating),
                ("ValidatingWebhookConfiguration", validating),
            )
        ]


def _answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False
