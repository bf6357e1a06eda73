"""How fast is one replica?  Step time by concurrency, from a serving profile or else from a roofline.

Both sources answer in the same form, `Speed`, so that nothing behind it knows which one spoke.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from berth_operator.api import (
    HardwareClassSpec,
    HardwareKind,
    ProvenanceMethod,
    Quantization,
    Runtime,
    RuntimeName,
    ServingPoint,
    ServingProfile,
    ServingProfileSpec,
)
from berth_operator.planner.architectures import ARCHITECTURES, Architecture
from berth_operator.planner.stages import hop_seconds, sent_seconds, slowest, stage_share

GIB: Final = float(1 << 30)


@dataclass(frozen=True, slots=True)
class Speed:
    """Speed of one replica at the context length of one workload."""

    concurrency: tuple[int, ...]
    """Requests decoding at once; ascending, the first is 1."""
    step_seconds: tuple[float, ...]
    """Mean time of a decode step at each concurrency: every request gains one token."""
    gap_p99_seconds: tuple[float, ...]
    """p99 between a request's tokens at each concurrency, no prefill beside it."""
    idle_seconds: tuple[float, ...]
    """Part of a step at each concurrency in which arithmetic waits for memory: prefill that rides along in it is free.
    0 where a profile speaks, which cannot tell."""
    prefill_tokens_per_second: float
    """Prompt tokens behind as many others as the workload's mean context, nothing else running."""
    kv_cache_tokens: int
    estimated: bool
    attention_seconds: float = 0.0
    """By which reading a token of a prompt takes longer for each token before it."""
    token_budgets: tuple[int, int] = (0, 0)
    """As `token_budgets` has them of its runtime."""
    pace_seconds: float = 0.0
    """p99 between tokens that it is told to keep, where it has no token budgets; 0: the promise, or less where that
    carries more."""


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Fractions of the data sheet's peaks that a runtime reaches.

    GPU: fitted to published decode speeds of Llama-3.1-8B bf16 in vLLM (A10G batch 1 29 tokens/s, L40S batch 1 44 and
    batch 32 1,124, H100 batch 1 93, batch 8 688, batch 32 2,462): 0.85 of the bandwidth, 5 ms a step for 32 layers and
    0.05 ms a request are within 15 % of each; 0.5 of dense FLOPs is the usual model FLOPs utilisation of prefill.
    Memory 0.9 is vLLM's default `gpu_memory_utilization`; 1 GiB a device goes to activations and graphs.
    CPU: 0.7 of the bandwidth is what llama.cpp reaches on c7g.16xlarge (45.5 tokens/s x 4.65 GB of 307 GB/s); 0.5 of
    the int8 peak and 0.15 of memory kept for the node and the worker's own are assumptions until profiles say more.
    """

    bandwidth: float
    compute: float
    layer_overhead_seconds: float
    """Launching and synchronising one layer of one step."""
    request_overhead_seconds: float
    """Scheduling and sampling one request in one step."""
    usable_memory: float
    reserve_gib_per_device: float
    gap_p99_over_mean: float
    """Assumed jitter of a step: CPUs share memory bandwidth with neighbours, so their tail is longer."""


GPU_EFFICIENCY: Final = Efficiency(0.85, 0.5, 0.005 / 32, 50e-6, 0.9, 1.0, 1.1)
CPU_EFFICIENCY: Final = Efficiency(0.7, 0.5, 15e-6, 50e-6, 0.85, 0.0, 1.15)
TENSOR_PARALLEL_EFFICIENCY: Final = 0.85
"""Share of the speed left after all-reduces, where a replica spans several devices of a node.  An assumption."""

INT8_TOPS_PER_CPU: Final = {"arm64": 0.32, "amd64": 0.07}
"""Peak int8 TOP/s of one vCPU where `spec.compute` is unset; both err on the low side.

arm64: two SMMLA (32 multiply-adds each) a cycle at 2.5 GHz, half of what llvm-mca 19 gives neoverse-v1 and -v2 (four a
cycle, so 11 TOP/s for 16 cores at 2.8 GHz); vCPUs of Neoverse V1, V2 and V3 are whole cores with i8mm.
amd64: a vCPU is half a core; 71 GMAC/s a Zen 3 core were measured with AVX2; no VNNI is assumed."""

MAX_CONCURRENCY: Final = 512
"""Requests that one replica of an estimate decodes at once at most: beyond it no figure supports the estimate."""


def token_budgets(runtime: Runtime) -> tuple[int, int]:
    """Least and most tokens that a runtime can be told to take in a step, a stream's among them; to choose from are
    the most, its halves, and three quarters of those up to 1,024.  (0, 0): it is told none.

    vLLM reads prompts until a step has `--max-num-batched-tokens`, whatever was promised between tokens.  8,192 is the
    greatest that it takes by itself, on a large GPU; below 64 a step reads all weights for next to nothing.  What a
    class's own arguments say stands.
    """
    if runtime.name is not RuntimeName.VLLM:
        return 0, 0
    stated = re.search(r"--max[-_]num[-_]batched[-_]tokens[= ](\d+)(?: |$)", " ".join(runtime.args or ()))
    return (int(stated[1]), int(stated[1])) if stated else (64, 8192)


def concurrency_grid(limit: int) -> list[int]:
    """Concurrencies to consider up to `limit`: each up to 16, then in steps of an eighth.

    A grid of a lower limit is a part of every higher one, so that more memory never means less capacity.
    """
    grid = [1]
    while (following := grid[-1] + max(1, grid[-1] // 8)) <= limit:
        grid.append(following)
    return grid


# --- From a profile -------------------------------------------------------------------------------------------------

_METHOD_RANK = {ProvenanceMethod.MEASURED: 0, ProvenanceMethod.PUBLISHED: 1, ProvenanceMethod.ESTIMATED: 2}


def best_profile(
    profiles: Iterable[ServingProfile],
    model: str,
    quantization: Quantization,
    hardware_class: str,
    runtime: RuntimeName,
) -> ServingProfile | None:
    """The profile that counts for a pair: measured before published before estimated, then the newest, then by name."""
    matching = [
        p
        for p in profiles
        if (p.spec.model, p.spec.quantization, p.spec.hardware_class, p.spec.runtime)
        == (model, quantization.value, hardware_class, runtime)
    ]
    matching.sort(key=lambda p: p.metadata.name)
    matching.sort(key=lambda p: p.spec.provenance.date or "", reverse=True)
    matching.sort(key=lambda p: _METHOD_RANK[p.spec.provenance.method])
    return matching[0] if matching else None


def profile_speed(profile: ServingProfile, context_tokens: float, runtime: Runtime | None = None) -> Speed:
    """Interpolate a profile at a context length.  `runtime`: of its class, which says what it can be told.

    Step time (concurrency / tokens per second) and p99 gap are linear between measured contexts and between measured
    concurrencies.  Above the longest measured context the last slope goes on (one context alone: taken as it is),
    below the shortest it stays; above the greatest measured concurrency nothing is claimed, below the least its step
    time stays.
    """
    by_concurrency: dict[int, list[ServingPoint]] = {}
    for point in profile.spec.points:
        by_concurrency.setdefault(point.concurrency, []).append(point)
    measured = sorted(by_concurrency)
    step = [
        _at_context(
            [(p.context_tokens, p.concurrency / float(p.decode_tokens_per_second)) for p in by_concurrency[b]],
            context_tokens,
        )
        for b in measured
    ]
    gap = [
        _at_context(
            [(p.context_tokens, p.inter_token_latency_p99.total_seconds()) for p in by_concurrency[b]], context_tokens
        )
        for b in measured
    ]
    grid = sorted({*concurrency_grid(measured[-1]), *measured})
    at_step = np.interp(grid, measured, step)
    prefill, attention = _prefill_at_context(profile.spec, context_tokens)
    return Speed(
        concurrency=tuple(grid),
        step_seconds=tuple(at_step.tolist()),
        gap_p99_seconds=tuple(np.maximum(np.interp(grid, measured, gap), at_step).tolist()),
        idle_seconds=(0.0,) * len(grid),
        prefill_tokens_per_second=prefill,
        attention_seconds=attention,
        kv_cache_tokens=profile.spec.kv_cache_tokens,
        estimated=profile.spec.provenance.method is ProvenanceMethod.ESTIMATED,
        token_budgets=token_budgets(runtime) if runtime else (0, 0),
    )


def _prefill_at_context(spec: ServingProfileSpec, context: float) -> tuple[float, float]:
    """Tokens/s behind so many others, and by how much attention to each of these lengthens one.

    A profile measures a whole prompt, about as long as its shortest context, so behind half of that on average.  How
    much of it was attention is what it is of the FLOPs; of a model that is not in the catalogue nothing is known.
    """
    measured = float(spec.prefill_tokens_per_second)
    architecture = ARCHITECTURES.get(spec.model)
    if architecture is None:
        return measured, 0.0
    attention = architecture.attention_flops_per_token(1.0) / (2.0 * architecture.active_parameters)
    behind = min(point.context_tokens for point in spec.points) / 2
    base = 1 / (measured * (1 + attention * behind))
    return 1 / (base * (1 + attention * context)), base * attention


def _at_context(points: Sequence[tuple[int, float]], context: float) -> float:
    points = sorted(points)
    xs, ys = [float(x) for x, _ in points], [y for _, y in points]
    if context <= xs[-1] or len(points) == 1:
        return float(np.interp(context, xs, ys))
    slope = max((ys[-1] - ys[-2]) / (xs[-1] - xs[-2]), 0.0)
    return ys[-1] + slope * (context - xs[-1])


# --- From a roofline ------------------------------------------------------------------------------------------------


def estimable(spec: HardwareClassSpec) -> str | None:
    """Why a class cannot be estimated without a profile; None when it can."""
    runtime = spec.runtime.name
    if (spec.kind is HardwareKind.CPU) != (runtime is RuntimeName.BERTH) or runtime is RuntimeName.CUSTOM:
        return f"runtime {runtime.value} on {spec.kind.value} cannot be estimated"
    if spec.kind is not HardwareKind.CPU and (spec.compute is None or spec.compute.bf16_tflops is None):
        return "spec.compute.bf16Tflops is unset, so prefill cannot be estimated"
    return None


def devices(spec: HardwareClassSpec) -> int:
    """Devices that a replica spans: all of the node's; a CPU node is one."""
    return spec.accelerators.count if spec.accelerators else 1


def peak_flops(spec: HardwareClassSpec, quantization: Quantization) -> float:
    """Dense peak FLOP/s (or int8 OP/s) of the whole node for this weight format.

    Berth computes int8 and int4 weights in int8; bf16 at half that (BFMMLA against SMMLA).  vLLM computes int8 weights
    in int8 where the class names `int8Tops`, and everything else in bf16.
    """
    compute = spec.compute
    int8 = compute.int8_tops if compute else None
    bf16 = compute.bf16_tflops if compute else None
    if spec.kind is HardwareKind.CPU:
        tops = float(int8) if int8 is not None else spec.cpus * INT8_TOPS_PER_CPU[spec.architecture]
        if quantization is Quantization.BF16:
            tops = float(bf16) if bf16 is not None else tops / 2
        return tops * 1e12
    if quantization is Quantization.INT8 and int8 is not None:
        return int8 * 1e12
    return float(bf16 or 0) * 1e12


def efficiency_of(spec: HardwareClassSpec) -> Efficiency:
    """The factors for a class."""
    return CPU_EFFICIENCY if spec.kind is HardwareKind.CPU else GPU_EFFICIENCY


def usable_bytes(spec: HardwareClassSpec) -> float:
    """Bytes of the node's memory that weights and KV may fill."""
    efficiency = efficiency_of(spec)
    return (spec.memory_gib * efficiency.usable_memory - devices(spec) * efficiency.reserve_gib_per_device) * GIB


def roofline_kv_tokens(
    spec: HardwareClassSpec, architecture: Architecture, quantization: Quantization, nodes: int = 1
) -> int:
    """Tokens of KV that fit beside the weights; negative when the weights alone are too large.

    Of a replica of several nodes, those of the node with the most layers.
    """
    runtime, share = spec.runtime.name, stage_share(architecture.layers, nodes)
    weights = architecture.resident_bytes(quantization, runtime)
    if nodes > 1:
        weights = architecture.stage_bytes(quantization, runtime, share)
    return int((usable_bytes(spec) - weights) // (architecture.kv_bytes_per_token(runtime) * share))


@dataclass(frozen=True, slots=True)
class Speeds:
    """Estimates of one class at several context lengths."""

    concurrency: npt.NDArray[np.float64]
    """[i] ascending, the first is 1."""
    limit: npt.NDArray[np.int64]
    """[context] greatest concurrency whose KV fits."""
    step: npt.NDArray[np.float64]
    """[context, i] seconds; likewise below."""
    gap_p99: npt.NDArray[np.float64]
    idle: npt.NDArray[np.float64]
    prefill_tokens_per_second: npt.NDArray[np.float64]
    """[context]"""
    attention_seconds: float
    kv_cache_tokens: int


def roofline_speeds(
    spec: HardwareClassSpec,
    architecture: Architecture,
    quantization: Quantization,
    context_tokens: npt.NDArray[np.float64],
    nodes: int = 1,
) -> Speeds:
    """Estimate one replica on a whole node, or several (Williams et al. 2009, "Roofline"):

        step(b) = max((weights + b x context x KV) / bandwidth, b x FLOPs a token / peak)
                  + layers x layer overhead + b x request overhead
        idle(b) = max(0, (weights + b x context x KV) / bandwidth - b x FLOPs a token / peak)
        prefill = peak / FLOPs a token

    with 2 FLOPs per active parameter and token plus attention.  A row of a prefill chunk is a row like one more
    request's, so chunks ride in `idle` (Agrawal et al. 2024, "Sarathi-Serve").  Requires `estimable(spec) is None`
    and room for one request.

    Over n nodes (`stages`), with b/n requests in a stage at once and all of it at the pace of the fullest stage, a
    step is that of b/n requests on one node that held the whole model, and the way between stages on top.  A chunk of
    a prompt passes all stages before the next one: that chunks of several prompts could follow each other is not
    counted, and a measured profile may say better.
    """
    runtime, efficiency = spec.runtime.name, efficiency_of(spec)
    parallel = TENSOR_PARALLEL_EFFICIENCY if devices(spec) > 1 else 1.0
    bandwidth = spec.memory_bandwidth_gbps * 1e9 * efficiency.bandwidth * parallel
    peak = peak_flops(spec, quantization) * efficiency.compute * parallel
    context = context_tokens[:, None]
    flops = 2.0 * architecture.active_parameters + architecture.attention_flops_per_token(1.0) * context
    kv_tokens = roofline_kv_tokens(spec, architecture, quantization, nodes)
    limit = np.minimum(MAX_CONCURRENCY, kv_tokens // context_tokens).astype(np.int64)
    grid = np.array(concurrency_grid(int(limit.max(initial=1))), dtype=np.float64)
    kv = architecture.kv_bytes_per_token(runtime)
    pace, sent = slowest(architecture.layers, nodes), sent_seconds(spec, architecture, nodes)
    in_stage = np.maximum(grid / nodes, 1.0)
    read = architecture.streamed_bytes(quantization, runtime) + in_stage * context * kv
    arithmetic = in_stage * flops / peak * pace
    busy = np.maximum(read / bandwidth * pace, arithmetic)
    step = busy + architecture.layers * efficiency.layer_overhead_seconds * pace
    step += grid * efficiency.request_overhead_seconds + hop_seconds(nodes) + in_stage * sent
    return Speeds(
        concurrency=grid,
        limit=limit,
        step=step,
        gap_p99=step * efficiency.gap_p99_over_mean,
        idle=busy - arithmetic,
        prefill_tokens_per_second=(peak / (flops * pace + sent * peak))[:, 0],
        attention_seconds=architecture.attention_flops_per_token(1.0) * pace / peak,
        kv_cache_tokens=kv_tokens,
    )


def roofline_speed(
    spec: HardwareClassSpec,
    architecture: Architecture,
    quantization: Quantization,
    context_tokens: float,
    nodes: int = 1,
) -> Speed:
    """`roofline_speeds` at one context length."""
    found = roofline_speeds(spec, architecture, quantization, np.array([context_tokens], dtype=np.float64), nodes)
    count = int((found.concurrency <= found.limit[0]).sum())
    return Speed(
        concurrency=tuple(int(b) for b in found.concurrency[:count]),
        step_seconds=tuple(found.step[0, :count].tolist()),
        gap_p99_seconds=tuple(found.gap_p99[0, :count].tolist()),
        idle_seconds=tuple(found.idle[0, :count].tolist()),
        prefill_tokens_per_second=float(found.prefill_tokens_per_second[0]),
        attention_seconds=found.attention_seconds,
        kv_cache_tokens=found.kv_cache_tokens,
        estimated=True,
        token_budgets=token_budgets(spec.runtime),
    )
