"""Which fleets is the planner timed on?  Random but fixed: 20 classes on demand and spot, pools of every sort.

Limits on nodes grow with the pools, so that the same dozen rows bind at any size.  Half of the pools run already.
Prices: AWS us-east-1 on demand of 2026-07-20, spot at an assumed share of it; other vendors' prices are assumptions.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

from berth_operator.api import CapacityType, HardwareClass, InferencePool, ServingProfile
from berth_operator.planner import RunningPlacement, Snapshot

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)

# name, vendor, kind, vCPUs, GiB, GB/s, int8 TOPS (CPU) or bf16 TFLOPS, devices, USD/h, spot share of it,
# a 2.6th of the nodes on demand and spot for every 100 pools (0: no limit)
_CLASSES: list[tuple[str, str, str, int, int, int, float, int, float, float, int, int]] = [
    ("c7g-4xl", "AWS", "CPU", 16, 32, 153, 5, 1, 0.58, 0.40, 0, 16),
    ("c7g-8xl", "AWS", "CPU", 32, 64, 230, 10, 1, 1.16, 0.38, 0, 12),
    ("c8g-4xl", "AWS", "CPU", 16, 32, 228, 11, 1, 0.638, 0.45, 90, 20),
    ("c8g-8xl", "AWS", "CPU", 32, 64, 400, 22, 1, 1.276, 0.42, 40, 14),
    ("c8g-16xl", "AWS", "CPU", 64, 128, 538, 45, 1, 2.552, 0.40, 0, 8),
    ("c9g-4xl", "AWS", "CPU", 16, 32, 280, 14, 1, 0.696, 0.55, 30, 10),
    ("c9g-16xl", "AWS", "CPU", 64, 128, 845, 56, 1, 2.782, 0.50, 14, 6),
    ("g4dn-xl", "Nvidia", "GPU", 4, 16, 320, 65, 1, 0.526, 0.40, 60, 30),
    ("g5-xl", "Nvidia", "GPU", 4, 24, 600, 70, 1, 1.006, 0.45, 50, 24),
    ("g5-2xl", "Nvidia", "GPU", 8, 24, 600, 70, 1, 1.212, 0.40, 0, 12),
    ("g6-xl", "Nvidia", "GPU", 4, 24, 300, 121, 1, 0.805, 0.44, 60, 30),
    ("g6e-xl", "Nvidia", "GPU", 4, 48, 864, 362, 1, 1.861, 0.48, 26, 16),
    ("g6e-12xl", "Nvidia", "GPU", 48, 192, 3456, 1448, 4, 10.493, 0.40, 0, 4),
    ("p5-4xl", "Nvidia", "GPU", 16, 80, 3350, 989, 1, 6.88, 0.42, 6, 3),
    ("p5-48xl", "Nvidia", "GPU", 192, 640, 26800, 7912, 8, 55.04, 0.40, 0, 1),
    ("mi300x", "AMD", "GPU", 24, 192, 5300, 1307, 1, 3.99, 0.60, 10, 5),
    ("mi300x-8", "AMD", "GPU", 192, 1536, 42400, 10456, 8, 30.5, 0.55, 0, 2),
    ("gaudi3", "Intel", "Accelerator", 24, 128, 3700, 917, 1, 3.2, 0.60, 8, 4),
    ("inf2-xl", "AWS", "Accelerator", 4, 32, 820, 190, 1, 0.758, 0.40, 40, 20),
    ("tpu-v5p", "Google", "Accelerator", 52, 95, 2765, 459, 1, 4.2, 0.45, 8, 4),
]
_MODELS = [
    ("llama-3.2-1b-instruct", 0.25),
    ("llama-3.2-3b-instruct", 0.25),
    ("llama-3.1-8b-instruct", 0.4),
    ("llama-3.1-70b-instruct", 0.1),
]
_RESOURCES = {"Nvidia": "nvidia.com/gpu", "AMD": "amd.com/gpu", "Intel": "habana.ai/gaudi", "Google": "google.com/tpu"}


def fleet(pools: int, *, short: bool = False, seed: int = 1) -> Snapshot:
    """A fleet of `pools` pools; `short`: every class is limited, to less than the demand needs."""
    rng = random.Random(seed)  # noqa: S311 - fleets, not secrets
    classes = tuple(_hardware(row, pools, short) for row in _CLASSES)
    made = [_pool(rng, number) for number in range(pools)]
    running = tuple(one for number, pool in enumerate(made) if number % 2 for one in _running(rng, pool))
    return Snapshot(now=NOW, pools=tuple(made), hardware_classes=classes, serving_profiles=_profiles(), running=running)


def _hardware(
    row: tuple[str, str, str, int, int, int, float, int, float, float, int, int], pools: int, short: bool
) -> HardwareClass:
    name, vendor, kind, cpus, memory, bandwidth, peak, devices, price, spot, most, most_spot = row
    scale = 2.6 * pools / 100
    if short:
        most = min(most or 1_000, max(1, round(30 / price)))
        scale *= 0.45
    limits = {"OnDemand": most and max(1, round(most * scale)), "Spot": max(1, round(most_spot * scale))}
    prices = {"OnDemand": f"{price:.4f}", "Spot": f"{price * spot:.4f}"}
    capacity = [
        {"type": t, "usdPerHour": usd, **({"maxNodes": limits[t]} if limits[t] else {})} for t, usd in prices.items()
    ]
    spec: dict[str, Any] = {
        "vendor": vendor,
        "chip": name,
        "kind": kind,
        "architecture": "arm64" if kind == "CPU" else "amd64",
        "cpus": cpus,
        "memoryGiB": memory,
        "memoryBandwidthGBps": bandwidth,
        "powerWatts": 300 * devices,
        "compute": {"int8Tops": peak} if kind == "CPU" else {"bf16Tflops": peak},
        "capacity": capacity,
        "runtime": {"name": "Berth" if kind == "CPU" else "VLLM"},
    }
    if kind != "CPU":
        spec["accelerators"] = {"resource": _RESOURCES.get(vendor, "aws.amazon.com/neuroncore"), "count": devices}
    return HardwareClass.model_validate({"metadata": {"name": name}, "spec": spec})


def _profiles() -> tuple[ServingProfile, ...]:
    """The two smallest models share the large Arm nodes: several replicas a node, as a profile says."""
    made = []
    for name, per_node, speed in (("c8g-16xl", 4, 60.0), ("c9g-16xl", 4, 75.0), ("c8g-8xl", 2, 55.0)):
        for model, factor in (("llama-3.2-1b-instruct", 1.0), ("llama-3.2-3b-instruct", 0.4)):
            points = [
                {
                    "concurrency": b,
                    "contextTokens": 1500,
                    "decodeTokensPerSecond": f"{speed * factor * b**0.75:.2f}",
                    "interTokenLatencyP99": f"{1150 * b**0.25 / (speed * factor):.0f}ms",
                }
                for b in (1, 4, 16)
            ]
            spec = {
                "model": model,
                "quantization": "Int8",
                "hardwareClass": name,
                "runtime": "Berth",
                "replicasPerNode": per_node,
                "resources": {"cpu": "15", "memory": "28Gi"},
                "points": points,
                "prefillTokensPerSecond": f"{1600 * factor:.0f}",
                "kvCacheTokens": 200_000,
                "provenance": {"method": "Measured", "source": "benchmark fleet", "date": "2026-11-21"},
            }
            body = {"metadata": {"name": f"{model}-{name}"}, "spec": spec}
            made.append(ServingProfile.model_validate(body))
    return tuple(made)


def _pool(rng: random.Random, number: int) -> InferencePool:
    model = rng.choices([m for m, _ in _MODELS], [w for _, w in _MODELS])[0]
    kind = rng.choice(["Agentic", "Agentic", "Interactive", "Interactive", "Batch"])
    large = model == "llama-3.1-70b-instruct"
    shape = {
        "promptTokens": rng.randint(400, 4000),
        "outputTokens": rng.randint(60, 400),
        "cachedPromptPercent": rng.choice([0, 30, 60, 90]) if kind == "Agentic" else rng.choice([0, 30]),
    }
    if kind == "Batch":
        objectives = {"timeToFirstTokenP99": "60s", "interTokenLatencyP99": "1s"}
    else:
        objectives = {
            "timeToFirstTokenP99": f"{rng.randint(1000, 6000)}ms",
            "interTokenLatencyP99": f"{rng.randint(60, 200)}ms",
        }
    demand = rng.lognormvariate(3.0, 1.2) * (0.2 if large else 1.0)
    spec: dict[str, Any] = {
        "model": {
            "name": model,
            "source": "hf://org/name",
            "quantization": "Any" if rng.random() < 0.03 else "Int8",
        },
        "workload": {"class": kind, "shape": shape, "demand": {"requestsPerSecond": f"{demand:.3f}"}},
        "objectives": objectives,
        "placement": _placement(rng),
        "priority": rng.choice([0, 0, 0, 5, 10]),
    }
    if rng.random() < 0.3:
        spec["scaling"] = {"minReplicas": rng.randint(1, 4)}
        if rng.random() < 0.5:
            spec["scaling"]["maxReplicas"] = rng.randint(6, 40)
    if rng.random() < 0.1:
        spec["budget"] = {
            "maxUsdPerHour": f"{rng.uniform(20, 200):.2f}",
            "onExceeded": rng.choice(["Shed", "Overspend"]),
        }
    status = {"lastMoveTime": "2026-11-21T11:55:00Z"} if rng.random() < 0.1 else {}
    metadata = {"name": f"pool-{number:05d}", "namespace": f"team-{number % 17}"}
    return InferencePool.model_validate({"metadata": metadata, "spec": spec, "status": status})


def _placement(rng: random.Random) -> dict[str, Any]:
    placement: dict[str, Any] = {}
    if rng.random() < 0.6:
        placement["spot"] = {
            "maxTrafficPercent": rng.choice([0, 30, 50, 70, 100]),
            "minOnDemandReplicas": rng.choice([0, 1, 1, 2]),
            "surviveLossPercent": rng.choice([0, 40, 60, 70, 80]),
        }
    if rng.random() < 0.12:
        placement["diversity"] = {"maxTrafficPercentPerVendor": rng.choice([60, 70, 80])}
    if rng.random() < 0.1:
        denied = rng.sample([row[0] for row in _CLASSES], 4)
        placement["hardware"] = {"deny": {"names": denied}}
    if rng.random() < 0.02:
        placement["objective"] = "Power"
    placement["disruption"] = {"minSavingsPercent": rng.choice([5, 15, 25])}
    return placement


def _running(rng: random.Random, pool: InferencePool) -> list[RunningPlacement]:
    """One or two classes that somebody chose once; not always ones that still fit."""
    large = "70b" in pool.spec.model.name
    names = ["p5-48xl", "mi300x-8", "g6e-12xl"] if large else ["c7g-4xl", "c7g-8xl", "c8g-16xl", "g5-2xl", "g6e-12xl"]
    found = []
    for name in rng.sample(names, rng.choice([1, 1, 2])):
        replicas = rng.randint(1, 4)
        found.append(RunningPlacement(pool.key, name, CapacityType.ON_DEMAND, replicas, replicas))
    return found
