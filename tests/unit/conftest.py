"""Small API objects that unit tests start from."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from berth_operator.api import CapacityType, HardwareClass, InferencePool, Quantization, resolve
from berth_operator.planner import Candidate, Placement, PoolPlan, ReplicaCapacity, Verdict

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture
def later() -> datetime:
    return NOW + timedelta(minutes=5)


@pytest.fixture
def make_pool() -> Callable[..., InferencePool]:
    def make(name: str = "agents", status: dict[str, Any] | None = None, **spec: Any) -> InferencePool:
        body = {
            "model": {"name": "smollm2-135m-instruct"},
            "workload": {"class": "Agentic", "demand": {"requestsPerSecond": "4"}},
        }
        return InferencePool.model_validate(
            {
                "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}", "generation": 3},
                "spec": body | spec,
                "status": status or {},
            },
            extra="forbid",
        )

    return make


@pytest.fixture
def make_class() -> Callable[..., HardwareClass]:
    def make(name: str = "graviton4-4xl", **spec: Any) -> HardwareClass:
        body = {
            "vendor": "AWS",
            "chip": "Graviton4",
            "kind": "CPU",
            "architecture": "arm64",
            "cpus": 16,
            "memoryGiB": 32,
            "memoryBandwidthGBps": 228,
            "capacity": [
                {"type": "OnDemand", "usdPerHour": "0.638", "selector": {"pool": "od"}},
                {
                    "type": "Spot",
                    "usdPerHour": "0.255",
                    "selector": {"pool": "spot"},
                    "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}],
                },
            ],
            "runtime": {"name": "Berth"},
        }
        return HardwareClass.model_validate(
            {"metadata": {"name": name, "generation": 1}, "spec": body | spec}, extra="forbid"
        )

    return make


@pytest.fixture
def make_placement() -> Callable[..., Placement]:
    def make(**changes: Any) -> Placement:
        fields: dict[str, Any] = {
            "pool": "default/agents",
            "hardware_class": "graviton4-4xl",
            "capacity_type": CapacityType.ON_DEMAND,
            "replicas": 2,
            "nodes": 2,
            "usd_per_hour": Decimal("1.276"),
            "watts": None,
            "traffic_percent": 100,
            "quantization": Quantization.INT8,
            "capacity": ReplicaCapacity(3.0, 12, 0.4, 0.05, 10.0, 100_000, estimated=True),
            "resources": None,
            "replicas_per_node": 1,
        }
        return Placement(**(fields | changes))

    return make


@pytest.fixture
def make_plan(make_placement: Callable[..., Placement]) -> Callable[..., PoolPlan]:
    def make(pool: InferencePool, **changes: Any) -> PoolPlan:
        fields: dict[str, Any] = {
            "pool": pool.key,
            "effective": resolve(pool.spec),
            "placements": (make_placement(),),
            "candidates": (
                Candidate(
                    "graviton4-4xl", CapacityType.ON_DEMAND, Verdict.CHOSEN, "cheapest", Decimal("0.50"), estimated=True
                ),
            ),
            "usd_per_hour": Decimal("1.276"),
            "usd_per_million_tokens": Decimal("0.51"),
            "gpu_only_usd_per_hour": Decimal("3.220"),
            "served_requests_per_second": 4.0,
        }
        return PoolPlan(**(fields | changes))

    return make
