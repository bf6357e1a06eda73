"""Where do the CRDs of other projects come from?  From the Go modules that these projects publish, pinned by hash."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from devcluster.controlplane import ControlPlane
from devcluster.recipes import ToolError


@dataclass(frozen=True)
class Source:
    """CRD files of one module."""

    module: str
    """PATH@VERSION"""
    sum: str
    """Of the module, as go.sum would have it."""
    files: tuple[str, ...]


_STANDARD = "config/crd/standard/gateway.networking.k8s.io"
SOURCES: Mapping[str, Source] = {
    "gateway-api": Source(
        "sigs.k8s.io/gateway-api@v1.6.0",
        "h1:735YBRj5NXFrOGX0GoSjwzUIzbz8kiEOfADsqHFmHgE=",
        (f"{_STANDARD}_httproutes.yaml", f"{_STANDARD}_grpcroutes.yaml"),
    ),
    "inference-extension": Source(
        "sigs.k8s.io/gateway-api-inference-extension@v1.6.0",
        "h1:cjtwMJYcTnLXBYE5ffR1/hHhn7U1aIFfe2RITYmOXVA=",
        ("config/crd/bases/inference.networking.k8s.io_inferencepools.yaml",),
    ),
    "inference-objective": Source(  # later versions leave it out
        "sigs.k8s.io/gateway-api-inference-extension@v1.0.0",
        "h1:GsHvlu1Cn1t6+vrHoPdNNlpwKxf/y1HuQSlUjd58Ds8=",
        ("config/crd/bases/inference.networking.x-k8s.io_inferenceobjectives.yaml",),
    ),
    "karpenter": Source(
        "sigs.k8s.io/karpenter@v1.14.1",
        "h1:GjqvOHLjl2+OXM0ti5VEZSQuvcitB0pETd8zdChXEtI=",
        ("pkg/apis/crds/karpenter.sh_nodeclaims.yaml",),
    ),
    "leader-worker-set": Source(
        "sigs.k8s.io/lws@v0.9.0",
        "h1:DcJCgxjjoGOx//QHZkeKpyiblxYq70aCRZNYSfykWyI=",
        ("config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml",),
    ),
    "pod-monitor": Source(
        "github.com/prometheus-operator/prometheus-operator@v0.85.0",
        "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
        ("example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",),
    ),
    "keda": Source(
        "github.com/kedacore/keda/v2@v2.21.0",
        "h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps=",
        ("config/crd/bases/keda.sh_scaledobjects.yaml",),
    ),
}


@cache
def crd_files(name: str) -> tuple[Path, ...]:
    """The CRD files of one of `SOURCES`, downloaded where need be.  Raises ToolError."""
    source = SOURCES[name]
    command = ["go", "mod", "download", "-json", source.module]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    try:
        module = json.loads(done.stdout)
    except ValueError:
        module = {"Error": done.stderr}
    if "Error" in module:
        raise ToolError(f"{source.module} cannot be downloaded: {module['Error']}")
    if module["Sum"] != source.sum:
        raise ToolError(f"{source.module}: found {module['Sum']}, expected {source.sum}: not what was pinned")
    return tuple(Path(module["Dir"]) / file for file in source.files)


def install(cluster: ControlPlane, *names: str) -> None:
    """Install the CRDs of these sources, and wait until the API server serves them."""
    files = [f"--filename={path}" for name in names for path in crd_files(name)]
    cluster.kubectl("apply", "--server-side", "--force-conflicts", *files)
    cluster.wait_for(f"{', '.join(names)} is served", lambda: all(map(_established, _items(cluster.get(*files)))))


def _items(found: dict[str, Any]) -> list[dict[str, Any]]:
    return list(found.get("items", [found]))


def _established(crd: dict[str, Any]) -> bool:
    """`kubectl wait` fails on the null that some files have for conditions, until the API server has filled it in."""
    conditions = crd.get("status", {}).get("conditions") or ()
    return any((c["type"], c["status"]) == ("Established", "True") for c in conditions)
