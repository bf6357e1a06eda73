"""Which hardware do tests place pools on?  Manifests of a class of c8g.4xlarge nodes, for the capacity it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Manifest = dict[str, Any]


def graviton4(
    name: str, *capacity: Mapping[str, Any], labels: Mapping[str, str] | None = None, **spec: Any
) -> Manifest:
    """A HardwareClass of Graviton4 nodes of 16 vCPUs; `capacity`: its entries; `spec`: fields of its own."""
    return {
        "apiVersion": "berth.dev/v1alpha1",
        "kind": "HardwareClass",
        "metadata": {"name": name} | ({"labels": dict(labels)} if labels else {}),
        "spec": {
            "vendor": "AWS",
            "chip": "Graviton4",
            "kind": "CPU",
            "architecture": "arm64",
            "cpus": 16,
            "memoryGiB": 32,
            "memoryBandwidthGBps": 228,
            "compute": {"int8Tops": 11, "bf16Tflops": 5},
            "runtime": {"name": "Berth"},
            "capacity": [dict(entry) for entry in capacity],
        }
        | spec,
    }


def on_demand(usd_per_hour: str, instance_type: str, **entry: Any) -> Manifest:
    """An entry of `spec.capacity`: nodes of an instance type on demand; `entry`: its other fields."""
    selector = {"node.kubernetes.io/instance-type": instance_type}
    return {"type": "OnDemand", "usdPerHour": usd_per_hour, "selector": selector} | entry
