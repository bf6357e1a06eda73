"""Can a serving profile be true of its class?  Rooflines, memory, and how speed may change with load.

A decode step reads every weight once and each request's keys and values; a token takes two operations a weight
(Williams et al. 2009, "Roofline").  Peaks are the class's own figures, without any efficiency, so that only the
impossible is refused.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from berth_operator.api import HardwareClass, HardwareKind, Quantization, RuntimeName, ServingPoint
from berth_operator.api.serving_profile import ServingProfileSpec
from berth_operator.catalog.resource_quantity import bytes_of, cores_of
from berth_operator.planner.architectures import ARCHITECTURES, Architecture
from berth_operator.planner.speed import GIB, peak_flops

Found = tuple[str, str, str]
"""reason, field, message"""

_ROUNDING: Final = 1.25
"""Published figures are rounded, and a class's bandwidth may be a share of a chip that bursts."""
_SPECULATED_TOKENS: Final = 8
"""Tokens that one read of the weights may yield for a request where a runtime speculates."""
_STRANGE: Final = 1.25
"""Measurements scatter; beyond a quarter they contradict."""


def profile_faults(spec: ServingProfileSpec, hardware: HardwareClass) -> Iterator[Found]:
    """(reason, field, message) of everything in a profile that cannot be true on its class."""
    yield from _span_faults(spec, hardware)
    yield from _share_faults(spec, hardware)
    yield from _gap_faults(spec)
    yield from shape_faults(spec.points)
    architecture = ARCHITECTURES.get(spec.model)
    if architecture is not None:
        yield from _decode_faults(spec, hardware, architecture)
        yield from _prefill_faults(spec, hardware, architecture)
        yield from _memory_faults(spec, hardware, architecture)


def _nodes(spec: ServingProfileSpec) -> int:
    """Nodes whose bandwidth, compute and memory one replica has."""
    return spec.nodes_per_replica or 1


def _span_faults(spec: ServingProfileSpec, hardware: HardwareClass) -> Iterator[Found]:
    most = hardware.spec.max_nodes_per_replica or 1
    if _nodes(spec) > most:
        yield (
            "SpansTooManyNodes",
            "spec.nodesPerReplica",
            f"found {_nodes(spec)}: HardwareClass {hardware.metadata.name} allows maxNodesPerReplica {most}: raise"
            " that, or measure a replica on fewer nodes",
        )


def _decode_faults(spec: ServingProfileSpec, hardware: HardwareClass, architecture: Architecture) -> Iterator[Found]:
    quantization = Quantization(spec.quantization)
    weights = architecture.streamed_bytes(quantization, spec.runtime)
    kv = _least_kv_bytes(architecture)
    gbps = hardware.spec.memory_bandwidth_gbps * _nodes(spec)
    bandwidth = gbps * 1e9
    tokens_a_read = _SPECULATED_TOKENS if _speculates(spec, hardware) else 1
    flops = 2.0 * architecture.active_parameters
    peak = _peak(hardware, quantization, _nodes(spec))
    for index, point in enumerate(spec.points):
        field = f"spec.points[{index}].decodeTokensPerSecond"
        said, b = float(point.decode_tokens_per_second), point.concurrency
        read = weights + b * point.context_tokens * kv
        most = tokens_a_read * b * bandwidth / read
        if said > most * _ROUNDING:
            each = f" x {tokens_a_read} tokens speculated" if tokens_a_read > 1 else ""
            yield (
                "AboveRoofline",
                field,
                f"found {said:g}: {b} requests{each} a read of {read / 1e9:.3g} GB (weights {weights / 1e9:.3g} GB,"
                f" KV {(read - weights) / 1e9:.3g} GB) at {gbps} GB/s make at most"
                f" {most:.4g} tokens/s: correct it, or memoryBandwidthGBps of HardwareClass {hardware.metadata.name}",
            )
        elif peak is not None and said * flops > peak * _ROUNDING:
            yield (
                "AboveRoofline",
                field,
                f"found {said:g}: at {flops / 1e9:.3g} GFLOP a token that is {said * flops / 1e12:.3g} TFLOP/s, and"
                f" HardwareClass {hardware.metadata.name} has {peak / 1e12:.3g}: correct it, or spec.compute",
            )


def _prefill_faults(spec: ServingProfileSpec, hardware: HardwareClass, architecture: Architecture) -> Iterator[Found]:
    peak = _peak(hardware, Quantization(spec.quantization), _nodes(spec))
    flops = 2.0 * architecture.layer_parameters  # logits are computed for the last position alone
    said = float(spec.prefill_tokens_per_second)
    if peak is not None and said * flops > peak * _ROUNDING:
        yield (
            "AboveRoofline",
            "spec.prefillTokensPerSecond",
            f"found {said:g}: at {flops / 1e9:.3g} GFLOP a token that is {said * flops / 1e12:.3g} TFLOP/s, and"
            f" HardwareClass {hardware.metadata.name} has {peak / 1e12:.3g}: correct it, or spec.compute",
        )


def _memory_faults(spec: ServingProfileSpec, hardware: HardwareClass, architecture: Architecture) -> Iterator[Found]:
    weights = architecture.resident_bytes(Quantization(spec.quantization), spec.runtime)
    kv = spec.kv_cache_tokens * _least_kv_bytes(architecture)
    replicas, gib = spec.replicas_per_node or 1, hardware.spec.memory_gib * _nodes(spec)
    if replicas * (weights + kv) > gib * GIB * _ROUNDING:
        yield (
            "KvTooLarge",
            "spec.kvCacheTokens",
            f"found {spec.kv_cache_tokens}: {replicas} replicas x (weights {weights / GIB:.1f} GiB + KV"
            f" {kv / GIB:.1f} GiB) = {replicas * (weights + kv) / GIB:.1f} GiB, and HardwareClass"
            f" {hardware.metadata.name} has {gib} GiB{_on(spec)}: correct it, or replicasPerNode",
        )


def _share_faults(spec: ServingProfileSpec, hardware: HardwareClass) -> Iterator[Found]:
    """Replicas that are said to share a node must fit it by what each requests."""
    resources, replicas = spec.resources, spec.replicas_per_node or 1
    if resources is None:
        return
    node = hardware.spec
    if resources.cpu is not None and replicas * cores_of(resources.cpu) > node.cpus:
        yield (
            "ReplicasDoNotFit",
            "spec.replicasPerNode",
            f"{replicas} x cpu {resources.cpu} > {node.cpus} vCPUs of HardwareClass {hardware.metadata.name}:"
            " lower the one or the other",
        )
    if resources.memory is not None:
        asked = bytes_of(resources.memory)
        if asked < 1 << 20:
            yield (
                "MissingUnit",
                "spec.resources.memory",
                f"found {resources.memory!r}, which is {asked:.0f} bytes: write a unit, such as {asked or 4:.0f}Gi",
            )
        elif node.kind is HardwareKind.CPU and replicas * asked > node.memory_gib * GIB:
            yield (
                "ReplicasDoNotFit",
                "spec.replicasPerNode",
                f"{replicas} x memory {resources.memory} > {node.memory_gib} GiB of HardwareClass"
                f" {hardware.metadata.name}: lower the one or the other",
            )
    if resources.accelerators and node.accelerators and replicas * resources.accelerators > node.accelerators.count:
        yield (
            "ReplicasDoNotFit",
            "spec.replicasPerNode",
            f"{replicas} x {resources.accelerators} accelerators > {node.accelerators.count} of HardwareClass"
            f" {hardware.metadata.name}: lower the one or the other",
        )


def _gap_faults(spec: ServingProfileSpec) -> Iterator[Found]:
    """The p99 between tokens cannot lie far below the mean; where it does, one of the two is in another unit."""
    for index, point in enumerate(spec.points):
        mean = point.concurrency / float(point.decode_tokens_per_second)
        p99 = point.inter_token_latency_p99.total_seconds()
        if p99 * 2 < mean and not _speculative_runtime(spec):
            yield (
                "ContradictingPoint",
                f"spec.points[{index}].interTokenLatencyP99",
                f"found {p99 * 1000:g} ms, but {point.concurrency} requests at {point.decode_tokens_per_second:f}"
                f" tokens/s together wait {mean * 1000:.3g} ms a token on average: decodeTokensPerSecond is of all"
                " requests together, interTokenLatencyP99 of one",
            )


def shape_faults(points: Sequence[ServingPoint]) -> Iterator[Found]:
    """(reason, field, message) of points that contradict each other.

    More requests at once never make all of them together much slower, nor each of them faster.
    """
    ordered = sorted(enumerate(points), key=lambda item: (item[1].context_tokens, item[1].concurrency))
    for (_, before), (index, point) in pairwise(ordered):
        field = f"spec.points[{index}].decodeTokensPerSecond"
        if before.context_tokens == point.context_tokens:
            yield from _by_concurrency(field, before, point)
    by_context = sorted(enumerate(points), key=lambda item: (item[1].concurrency, item[1].context_tokens))
    for (_, before), (index, point) in pairwise(by_context):
        if before.concurrency == point.concurrency and _rate(point) > _rate(before) * _STRANGE:
            yield (
                "StrangeProfile",
                f"spec.points[{index}].decodeTokensPerSecond",
                f"found {_rate(point):g} at context {point.context_tokens}, faster than {_rate(before):g} at context"
                f" {before.context_tokens} and the same concurrency {point.concurrency}: measure both again",
            )


def _by_concurrency(field: str, before: ServingPoint, point: ServingPoint) -> Iterator[Found]:
    if _rate(point) * _STRANGE < _rate(before):
        yield (
            "StrangeProfile",
            field,
            f"found {_rate(point):g} at concurrency {point.concurrency}, below {_rate(before):g} at"
            f" {before.concurrency}: leave out points beyond the best, or measure again",
        )
    each, earlier = _rate(point) / point.concurrency, _rate(before) / before.concurrency
    if each > earlier * _STRANGE:
        yield (
            "StrangeProfile",
            field,
            f"found {_rate(point):g} at concurrency {point.concurrency}, {each:.3g} for each request, more than"
            f" {earlier:.3g} at concurrency {before.concurrency}: measure both again",
        )


def _rate(point: ServingPoint) -> float:
    return float(point.decode_tokens_per_second)


def _least_kv_bytes(architecture: Architecture) -> float:
    """KV of a token at one byte a value, the smallest that a runtime keeps."""
    return float(architecture.kv_bytes_per_token(RuntimeName.BERTH))


def _on(spec: ServingProfileSpec) -> str:
    return f" on {_nodes(spec)} nodes" if _nodes(spec) > 1 else ""


def _peak(hardware: HardwareClass, quantization: Quantization, nodes: int) -> float | None:
    """FLOP/s of so many nodes by the class's own figures; None where it states none: defaults err on the low side."""
    compute = hardware.spec.compute
    if compute is None:
        return None
    stated = [figure for figure in (compute.bf16_tflops, compute.int8_tops) if figure is not None]
    if not stated:
        return None
    return max(peak_flops(hardware.spec, quantization), max(stated) * 1e12) * nodes


def _speculates(spec: ServingProfileSpec, hardware: HardwareClass) -> bool:
    return _speculative_runtime(spec) or any("speculative" in a for a in hardware.spec.runtime.args or ())


def _speculative_runtime(spec: ServingProfileSpec) -> bool:
    """Berth's worker guesses ahead by prompt look-up."""
    return spec.runtime is RuntimeName.BERTH
