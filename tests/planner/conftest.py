"""Builders of what the planner reads, and the hardware of the demo."""

import random
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from berth_operator.api import (
    CapacityType,
    HardwareClass,
    HardwareKind,
    InferencePool,
    Quantization,
    ReplicaResources,
    ServingProfile,
)
from berth_operator.planner import Plan, PoolPlan, ReplicaCapacity, RunningPlacement, Snapshot, plan
from berth_operator.planner.candidates import Option

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)

MakeHardware = Callable[..., HardwareClass]
MakePool = Callable[..., InferencePool]


def _hardware(name: str, **changes: Any) -> HardwareClass:
    """A class; `prices`, `max_nodes` and `zones` are by capacity type, the rest goes into spec."""
    prices = changes.pop("prices", {"OnDemand": "1"})
    limits, zones = changes.pop("max_nodes", {}), changes.pop("zones", {})
    labels = changes.pop("labels", {})
    status = changes.pop("status", {})
    kind = changes.get("kind", "CPU")
    capacity = [
        {"type": t, "usdPerHour": p}
        | ({"maxNodes": limits[t]} if t in limits else {})
        | ({"zones": zones[t]} if t in zones else {})
        for t, p in prices.items()
    ]
    spec = {
        "vendor": "AWS",
        "chip": name,
        "kind": kind,
        "architecture": "arm64" if kind == "CPU" else "amd64",
        "cpus": 16,
        "memoryGiB": 32,
        "memoryBandwidthGBps": 228,
        "capacity": capacity,
        "runtime": {"name": "Berth" if kind == "CPU" else "VLLM"},
    }
    if kind != "CPU":
        spec["accelerators"] = {"resource": "nvidia.com/gpu", "count": 1}
    return HardwareClass.model_validate(
        {"metadata": {"name": name, "labels": labels}, "spec": spec | changes, "status": status}, extra="forbid"
    )


def _pool(name: str = "chat", rps: str = "1", **changes: Any) -> InferencePool:
    """A pool in namespace demo; `shape`, `workload_class`, `model`, `quantization`, `status` go where they belong."""
    model: dict[str, Any] = {"name": changes.pop("model", "llama-3.1-8b-instruct"), "source": "hf://org/name"}
    if quantization := changes.pop("quantization", None):
        model["quantization"] = quantization
    workload: dict[str, Any] = {
        "class": changes.pop("workload_class", "Interactive"),
        "demand": changes.pop("demand", {"requestsPerSecond": rps}),
    }
    if shape := changes.pop("shape", None):
        workload["shape"] = shape
    status = changes.pop("status", {})
    return InferencePool.model_validate(
        {
            "metadata": {"name": name, "namespace": changes.pop("namespace", "demo")},
            "spec": {"model": model, "workload": workload} | changes,
            "status": status,
        },
        extra="forbid",
    )


def _profile(hardware_class: str, **changes: Any) -> ServingProfile:
    """A measured profile of model `tested-model` in Int8 on Berth: one request at a time, 10 ms a token."""
    name = changes.pop("name", f"profile-{hardware_class}")
    spec = {
        "model": "tested-model",
        "quantization": "Int8",
        "hardwareClass": hardware_class,
        "runtime": "Berth",
        "points": [
            {
                "concurrency": b,
                "contextTokens": 1000,
                "decodeTokensPerSecond": str(100 * b),
                "interTokenLatencyP99": "11ms",
            }
            for b in (1, 8)
        ],
        "prefillTokensPerSecond": "10000",
        "kvCacheTokens": 100_000,
        "provenance": {"method": "Measured", "source": "a test", "date": "2026-11-21"},
    }
    return ServingProfile.model_validate({"metadata": {"name": name}, "spec": spec | changes}, extra="forbid")


def _option(
    hardware_class: str,
    capacity_type: CapacityType,
    vendor: str,
    rate: float,
    cents: int,
    per_node: int = 1,
    span: int = 1,
    *,
    shared: bool = False,
) -> Option:
    """An option of the program: a replica carries `rate` turns/s and spans `span` nodes, each of `cents` an hour.

    `shared`: other pools' replicas may stand beside its own.
    """
    reserved = capacity_type is CapacityType.RESERVED
    return Option(
        hardware_class=hardware_class,
        capacity_type=capacity_type,
        quantization=Quantization.INT8,
        vendor=vendor,
        kind=HardwareKind.CPU,
        capacity=ReplicaCapacity(rate, 1, 1.0, 1.0, 1.0, 1000, estimated=True),
        replicas_per_node=per_node,
        resources=ReplicaResources(cpu="1") if shared else None,
        node_usd_per_hour=Decimal(0) if reserved else Decimal(cents) / 100,
        list_usd_per_hour=Decimal(cents) / 100,
        node_watts=None,
        unloaded_turn_seconds=1.0,
        nodes_per_replica=span,
    )


@pytest.fixture(scope="session")
def option() -> Callable[..., Option]:
    return _option


@pytest.fixture(scope="session")
def hardware() -> MakeHardware:
    return _hardware


@pytest.fixture(scope="session")
def pool() -> MakePool:
    return _pool


@pytest.fixture(scope="session")
def profile() -> Callable[..., ServingProfile]:
    return _profile


@pytest.fixture(scope="session")
def now() -> datetime:
    return NOW


@pytest.fixture(scope="session")
def running() -> Callable[..., RunningPlacement]:
    def make(
        key: str, hardware_class: str, capacity_type: str = "OnDemand", replicas: int = 1, **rest: Any
    ) -> RunningPlacement:
        ready = rest.pop("ready", replicas)
        return RunningPlacement(key, hardware_class, CapacityType(capacity_type), replicas, ready, **rest)

    return make


@pytest.fixture(scope="session")
def plan_for() -> Callable[..., Plan]:
    """Plan pools on classes; profiles, running placements and namespace labels as in Snapshot."""

    def make(pools: list[InferencePool], classes: list[HardwareClass], **rest: Any) -> Plan:
        return plan(Snapshot(now=NOW, pools=tuple(pools), hardware_classes=tuple(classes), **rest))

    return make


@pytest.fixture(scope="session")
def plan_one(plan_for: Callable[..., Plan]) -> Callable[..., PoolPlan]:
    """The plan of a single pool."""

    def make(one: InferencePool, classes: list[HardwareClass], **rest: Any) -> PoolPlan:
        return plan_for([one], classes, **rest).pools[one.key]

    return make


@pytest.fixture(scope="session")
def graviton4() -> HardwareClass:
    """c8g.4xlarge.  Bandwidth is what r8g.4xlarge was seen to draw; spot price is an assumption."""
    return _hardware(
        "graviton4", compute={"int8Tops": 11}, prices={"OnDemand": "0.638", "Spot": "0.25"}, labels={"arch": "arm64"}
    )


@pytest.fixture(scope="session")
def l4() -> HardwareClass:
    """g6.xlarge."""
    return _hardware(
        "l4",
        kind="GPU",
        vendor="Nvidia",
        cpus=4,
        memoryGiB=24,
        memoryBandwidthGBps=300,
        compute={"bf16Tflops": 121},
        powerWatts=72,
        prices={"OnDemand": "0.805", "Spot": "0.35"},
        labels={"arch": "amd64"},
    )


@pytest.fixture(scope="session")
def h100() -> HardwareClass:
    """p5.4xlarge."""
    return _hardware(
        "h100",
        kind="GPU",
        vendor="Nvidia",
        memoryGiB=80,
        memoryBandwidthGBps=3350,
        compute={"bf16Tflops": 989},
        powerWatts=700,
        prices={"OnDemand": "6.88", "Spot": "2.80"},
        labels={"arch": "amd64"},
    )


@pytest.fixture(scope="session")
def fleet(graviton4: HardwareClass, l4: HardwareClass, h100: HardwareClass) -> list[HardwareClass]:
    return [graviton4, l4, h100]


@pytest.fixture(scope="session")
def chat_pool() -> MakePool:
    """The demo's interactive pool: 90 % of the prompt cached, 2 s to the first token, 100 ms a token."""

    def make(rps: str, **changes: Any) -> InferencePool:
        defaults: dict[str, Any] = {
            "shape": {"cachedPromptPercent": 90},
            "objectives": {"timeToFirstTokenP99": "2s", "interTokenLatencyP99": "100ms"},
        }
        return _pool("chat", rps, **(defaults | changes))

    return make


@pytest.fixture
def snapshot(
    pool: Callable[..., Any], hardware: Callable[..., Any], profile: Callable[..., Any], now: datetime
) -> Snapshot:
    """Twelve pools that compete for the cheaper two of four classes."""
    rng = random.Random(5)  # noqa: S311
    shape = {"promptTokens": 800, "outputTokens": 80, "cachedPromptPercent": 90}
    classes = tuple(
        hardware(name, prices={"OnDemand": price, "Spot": spot}, max_nodes=most)
        for name, price, spot, most in [
            ("a", "0.50", "0.20", {"OnDemand": 9, "Spot": 4}),
            ("b", "0.70", "0.25", {"OnDemand": 9, "Spot": 5}),
            ("c", "1.10", "0.60", {}),
            ("d", "1.60", "0.80", {}),
        ]
    )
    pools = tuple(pool(f"p{i:02d}", f"{rng.uniform(2, 25):.2f}", model="tested-model", shape=shape) for i in range(12))
    profiles = tuple(profile(c.metadata.name) for c in classes)
    return Snapshot(now=now, pools=pools, hardware_classes=classes, serving_profiles=profiles)
