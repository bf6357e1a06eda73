"""What is built from Go modules, at which version, and with which flags?

Every folder beside this package that holds a ``go.mod`` is one family: binaries that can share one set of
dependencies. The version stands in that ``go.mod`` and nowhere else.
"""

from __future__ import annotations

import hashlib
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MODULES = Path(__file__).resolve().parent.parent


class ToolError(RuntimeError):
    """A tool cannot be had; the message says what to do about it."""


@dataclass(frozen=True)
class Family:
    """One Go module and the binaries built from it."""

    folder: str
    module: str  # the module whose version counts
    packages: Mapping[str, str]  # binary -> package
    stamps: Mapping[str, str] = field(default_factory=dict)  # linker variable -> value
    tags: str = ""

    @property
    def path(self) -> Path:
        return MODULES / self.folder

    @property
    def version(self) -> str:
        """The pinned version, such as ``1.36.3``."""
        go_mod = self.path / "go.mod"
        found = re.search(rf"^(?:require\s|\t){re.escape(self.module)} v(\S+)", _read(go_mod).decode(), re.MULTILINE)
        if found is None:
            raise ToolError(f"{go_mod} requires no version of {self.module}: add 'require {self.module} vX.Y.Z'")
        return found[1]

    def build_arguments(self, binary: str) -> list[str]:
        """Arguments of ``go build``, without the output path."""
        version = self.version
        major, minor, _ = version.split(".", 2)
        known = {"version": version, "major": major, "minor": minor}
        stamps = "".join(f" -X {name}={value.format_map(known)}" for name, value in self.stamps.items())
        flags = ["-mod=readonly", "-trimpath", "-buildvcs=false", f"-ldflags=-s -w{stamps}"]
        if self.tags:
            flags.append(f"-tags={self.tags}")
        return [*flags, self.packages[binary]]

    def key(self) -> str:
        """Names the cache folder: changes when what is built would change."""
        digest = hashlib.sha256()
        for name in ("go.mod", "go.sum"):
            digest.update(_read(self.path / name) + b"\0")
        flags = [self.build_arguments(binary) for binary in sorted(self.packages)]
        digest.update(repr([sys.platform, platform.machine(), flags]).encode())
        return f"{self.folder}-{digest.hexdigest()[:16]}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ToolError(
            f"{path} not found: devcluster builds the Go modules beside it, so install it editable from a checkout "
            "(pip install -e tools)"
        ) from None


_SERVER_VERSION = "k8s.io/component-base/version"

# In the order in which a test run needs them.
FAMILIES = (
    Family("etcd", "go.etcd.io/etcd/server/v3", {"etcd": "go.etcd.io/etcd/server/v3"}),
    Family(
        "kubernetes",
        "k8s.io/kubernetes",
        {
            name: f"k8s.io/kubernetes/cmd/{name}"
            for name in ("kube-apiserver", "kube-scheduler", "kube-controller-manager", "kubectl")
        },
        # Without these, clients fail to parse the server's version, and user agents in the audit log say v0.0.0.
        {
            f"{_SERVER_VERSION}.gitVersion": "v{version}",
            f"{_SERVER_VERSION}.gitMajor": "{major}",
            f"{_SERVER_VERSION}.gitMinor": "{minor}",
            f"{_SERVER_VERSION}.gitTreeState": "clean",
            "k8s.io/client-go/pkg/version.gitVersion": "v{version}",
            "k8s.io/client-go/pkg/version.gitCommit": "unknown",
        },
    ),
    Family(
        "kwok",
        "sigs.k8s.io/kwok",
        {"kwok": "sigs.k8s.io/kwok/cmd/kwok"},
        {"sigs.k8s.io/kwok/pkg/consts.Version": "v{version}"},
    ),
    Family("lws", "sigs.k8s.io/lws", {"lws": "sigs.k8s.io/lws/cmd"}),
    Family(
        "kubeconform",
        "github.com/yannh/kubeconform",
        {"kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform"},
        {"main.version": "v{version}"},
    ),
    Family(
        "helm",
        "helm.sh/helm/v4",
        {"helm": "helm.sh/helm/v4/cmd/helm"},
        {"helm.sh/helm/v4/internal/version.version": "v{version}"},
    ),
    # All but one of its service discoveries left out: the clouds' SDKs are most of the build.
    Family(
        "prometheus",
        "github.com/prometheus/prometheus",
        {name: f"github.com/prometheus/prometheus/cmd/{name}" for name in ("prometheus", "promtool")},
        {"github.com/prometheus/common/version.Version": "{version}"},
        tags="remove_all_sd,enable_kubernetes_sd",
    ),
)

BINARIES: Mapping[str, Family] = {binary: family for family in FAMILIES for binary in family.packages}
