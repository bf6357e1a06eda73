"""Does a replica's predicted speed follow from the profile, or from physics?"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from berth_operator.api import HardwareClass, Quantization, Runtime, RuntimeName, ServingProfile
from berth_operator.planner import ARCHITECTURES
from berth_operator.planner.speed import (
    best_profile,
    concurrency_grid,
    estimable,
    profile_speed,
    roofline_kv_tokens,
    roofline_speed,
    token_budgets,
)

LLAMA = ARCHITECTURES["llama-3.1-8b-instruct"]

PUBLISHED_BF16 = [  # GPU, GB/s, TFLOP/s, batch, tokens/s of all requests together
    ("a10g", 24, 600, 70, 1, 29),
    ("l40s", 48, 864, 362, 1, 44),
    ("l40s", 48, 864, 362, 32, 1124),
    ("h100", 80, 3350, 989, 1, 93),
    ("h100", 80, 3350, 989, 8, 688),
    ("h100", 80, 3350, 989, 32, 2462),
]


@pytest.mark.parametrize(("name", "memory", "bandwidth", "tflops", "batch", "published"), PUBLISHED_BF16)
def test_roofline_is_within_15_percent_of_published_gpu_decode_speeds(
    hardware: Callable[..., HardwareClass],
    name: str,
    memory: int,
    bandwidth: int,
    tflops: int,
    batch: int,
    published: float,
) -> None:
    gpu = hardware(name, kind="GPU", memoryGiB=memory, memoryBandwidthGBps=bandwidth, compute={"bf16Tflops": tflops})
    speed = roofline_speed(gpu.spec, LLAMA, Quantization.BF16, 300)
    step = float(np.interp(batch, speed.concurrency, speed.step_seconds))
    assert batch / step == pytest.approx(published, rel=0.15)


def test_cpu_roofline_does_not_flatter_a_graviton(hardware: Callable[..., HardwareClass]) -> None:
    # Published: r8g.8xlarge (32 vCPUs, 256 GiB) decodes Llama-3.1-8B Q8_0 at 37 tokens/s at batch 1.
    node = hardware("r8g-8xl", cpus=32, memoryGiB=256, memoryBandwidthGBps=400)
    speed = roofline_speed(node.spec, LLAMA, Quantization.INT8, 300)
    assert 0.8 * 37 < 1 / speed.step_seconds[0] < 37


def test_more_requests_and_longer_context_slow_a_step_and_never_beyond_proportion(
    hardware: Callable[..., HardwareClass],
) -> None:
    node = hardware("node", memoryGiB=64)
    short, long = (roofline_speed(node.spec, LLAMA, Quantization.INT8, c) for c in (500, 4000))
    steps = short.step_seconds
    assert all(a <= b for a, b in pairwise(steps))
    a_request = [step / b for b, step in zip(short.concurrency, steps, strict=True)]
    assert all(a >= b for a, b in pairwise(a_request))
    assert all(b > a for a, b in zip(short.step_seconds, long.step_seconds, strict=False))


def test_kv_memory_is_what_weights_leave(hardware: Callable[..., HardwareClass]) -> None:
    node = hardware("node", memoryGiB=32)
    weights = LLAMA.resident_bytes(Quantization.INT8, RuntimeName.BERTH)
    expected = (32 * 0.85 * 2**30 - weights) / 65_536
    assert roofline_kv_tokens(node.spec, LLAMA, Quantization.INT8) == int(expected)
    assert roofline_kv_tokens(node.spec, ARCHITECTURES["llama-3.1-405b"], Quantization.INT8) < 0


def test_classes_that_physics_cannot_estimate_say_what_is_missing(hardware: Callable[..., HardwareClass]) -> None:
    assert estimable(hardware("cpu").spec) is None
    assert "bf16Tflops" in (estimable(hardware("gpu", kind="GPU").spec) or "")
    assert "Custom" in (estimable(hardware("own", runtime={"name": "Custom", "image": "x"}).spec) or "")
    assert "VLLM on CPU" in (estimable(hardware("vllm-cpu", runtime={"name": "VLLM"}).spec) or "")


def test_a_class_that_states_its_token_budget_is_held_to_it() -> None:
    def budgets(name: str, *args: str) -> tuple[int, int]:
        return token_budgets(Runtime(name=RuntimeName(name), args=list(args)))

    assert budgets("Berth", "--max-num-batched-tokens=1") == (0, 0)
    assert budgets("VLLM", "--enforce-eager", "--max-num-batched-tokens-x=7") == (64, 8192)
    assert budgets("VLLM", "--max-num-batched-tokens=5000", "--enforce-eager") == (5000, 5000)
    assert budgets("VLLM", "--max_num_batched_tokens", "1024") == (1024, 1024)
    assert budgets("VLLM", "--max-num-batched-tokens", "8k") == (64, 8192), "which is not read here"


def _points(*points: tuple[int, int, str, str]) -> list[dict[str, object]]:
    return [
        {"concurrency": b, "contextTokens": c, "decodeTokensPerSecond": tps, "interTokenLatencyP99": gap}
        for b, c, tps, gap in points
    ]


def test_profile_is_exact_at_measured_points_and_linear_between(profile: Callable[..., ServingProfile]) -> None:
    measured = profile("node", points=_points((1, 1000, "100", "12ms"), (5, 1000, "250", "24ms")))
    speed = profile_speed(measured, 1000)
    at = dict(zip(speed.concurrency, zip(speed.step_seconds, speed.gap_p99_seconds, strict=True), strict=True))
    assert at[1] == pytest.approx((0.010, 0.012))
    assert at[5] == pytest.approx((0.020, 0.024))
    assert at[3] == pytest.approx((0.015, 0.018))
    assert max(speed.concurrency) == 5, "nothing is claimed beyond the greatest measured concurrency"
    assert not speed.estimated


def test_profile_goes_on_along_its_slope_beyond_the_longest_measured_context(
    profile: Callable[..., ServingProfile],
) -> None:
    measured = profile("node", points=_points((1, 1000, "100", "12ms"), (1, 3000, "50", "24ms")))
    steps = {context: profile_speed(measured, context).step_seconds[0] for context in (500, 2000, 5000)}
    assert steps == pytest.approx({500: 0.010, 2000: 0.015, 5000: 0.030})


def test_measured_beats_published_beats_estimated_and_then_the_newest_wins(
    profile: Callable[..., ServingProfile],
) -> None:
    def made(name: str, method: str, date: str) -> ServingProfile:
        return profile("node", name=name, provenance={"method": method, "source": "test", "date": date})

    profiles = [
        made("estimated", "Estimated", "2026-11-20"),
        made("published", "Published", "2026-11-19"),
        made("measured-old", "Measured", "2026-01-01"),
        made("measured-new", "Measured", "2026-02-01"),
    ]
    order = []
    while profiles:
        best = best_profile(profiles, "tested-model", Quantization.INT8, "node", RuntimeName.BERTH)
        assert best is not None
        order.append(best.metadata.name)
        profiles.remove(best)
    assert order == ["measured-new", "measured-old", "published", "estimated"]


@pytest.mark.parametrize(
    ("model", "quantization", "hardware_class", "runtime"),
    [
        ("other-model", Quantization.INT8, "node", RuntimeName.BERTH),
        ("tested-model", Quantization.BF16, "node", RuntimeName.BERTH),
        ("tested-model", Quantization.INT8, "other", RuntimeName.BERTH),
        ("tested-model", Quantization.INT8, "node", RuntimeName.VLLM),
    ],
)
def test_a_profile_speaks_only_for_its_own_model_format_class_and_runtime(
    profile: Callable[..., ServingProfile],
    model: str,
    quantization: Quantization,
    hardware_class: str,
    runtime: RuntimeName,
) -> None:
    assert best_profile([profile("node")], model, quantization, hardware_class, runtime) is None


def test_a_lower_limit_of_concurrency_considers_a_part_of_what_a_higher_one_does() -> None:
    for limit in range(1, 200):
        assert set(concurrency_grid(limit)) <= set(concurrency_grid(limit + 1))
