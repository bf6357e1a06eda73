"""Does the model fit in memory?  Asked before anything is allocated; answered with the numbers.

What counts is the least of the machine's available memory and what each cgroup above this process leaves: a pod that
goes beyond its limit is killed without a word.  Page cache does not count as used: the kernel drops it first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from berth_worker.model.config import LlamaConfig
from berth_worker.model.interface import BLOCK_TOKENS, ModelError, Quantization
from berth_worker.model.quantization import CHUNK
from berth_worker.model.weights import LlamaWeights

__all__ = ["Room", "check_room", "packing_bytes", "room", "weight_bytes"]

_BYTES_PER_WEIGHT: dict[Quantization, float] = {
    "Int8": 1 + 2 / 64,  # a bfloat16 scale for 64
    "Int4": 1 + 2 / 32,  # at most: matrices that have no 4-bit grid are held in int8, a scale for 32
    "BF16": 2,
    "FP32": 4,
}
_TEMPORARIES = 6
"""Float32 copies of a chunk that is turned and rounded."""
_MOST_PACKED_AT_ONCE = 8
_UNLIMITED = 1 << 60  # what cgroup v1 writes for no limit is near 2^63


@dataclass(frozen=True, slots=True)
class Room:
    """Memory in bytes."""

    free: int
    """What can still be taken without the kernel killing someone."""
    limit: int
    """What there is in all: the machine's memory, or the limit of a cgroup if that is less."""
    owner: str
    """Whose limit leaves the least: "this machine" or "the container"."""


def room(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Room:
    """Of this process: /proc/meminfo, and memory limits of cgroup v1 or v2, its own and those above it."""
    found = []
    try:
        fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines() if ":" in line)
        total, available = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
        found.append(Room(available, total, "this machine"))
    except (OSError, ValueError, KeyError, IndexError):
        found.append(Room(_UNLIMITED, _UNLIMITED, "this machine"))
    for folder in _folders(proc, cgroup):
        for limit_name, usage_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, usage = _number(folder / limit_name), _number(folder / usage_name)
            if limit is not None and usage is not None and limit < _UNLIMITED:
                found.append(Room(max(0, limit - max(0, usage - _page_cache(folder))), limit, "the container"))
    return min(found, key=lambda item: item.free)


def weight_bytes(weights: LlamaWeights, quantization: Quantization) -> int:
    """Bytes that the weights take once loaded."""
    return int(weights.parameters * _BYTES_PER_WEIGHT[quantization])


def packing_threads(threads: int) -> int:
    """How many matrices are packed at a time: reading and memory bound it, not arithmetic."""
    return min(threads, _MOST_PACKED_AT_ONCE)


def packing_bytes(config: LlamaConfig, threads: int) -> int:
    """Bytes that packing takes beside the weights, at its peak (measured in tests/worker/model/test_model_room.py).

    Each thread has a matrix in float32, its rounding, and what it worked out before; another is being laid out. The
    embedding comes first, when the layers' own place is still empty.
    """
    embedding = config.vocab_size * config.hidden_size
    matrix = max(config.q_size, config.intermediate_size) * config.hidden_size
    workers = packing_threads(threads)
    layers = 4 * (2 * workers + 1.5) * matrix + workers * _TEMPORARIES * 4 * min(matrix, CHUNK)
    empty = config.num_layers * _layer_weights(config)
    return int(max(layers, 4 * 1.5 * embedding - empty))


def _layer_weights(config: LlamaConfig) -> int:
    return (2 * config.q_size + 2 * config.kv_size + 3 * config.intermediate_size) * config.hidden_size


def kv_bytes(config: LlamaConfig, tokens: int, quantization: Quantization) -> int:
    """Bytes of a KV cache of `tokens` tokens: int8 with two float32 scales a head, or two or four bytes a value."""
    blocks = -(-tokens // BLOCK_TOKENS)
    value = {
        "Int8": config.head_dim + 4,
        "Int4": config.head_dim + 4,
        "BF16": 2 * config.head_dim,
        "FP32": 4 * config.head_dim,
    }[quantization]
    return blocks * BLOCK_TOKENS * config.num_layers * config.num_kv_heads * 2 * value


def _loading_bytes(config: LlamaConfig, quantization: Quantization, threads: int) -> int:
    """Bytes that reading takes beside the weights; in floats a matrix as it was read, or what is joined of a layer."""
    if quantization in ("Int8", "Int4"):
        return packing_bytes(config, threads)
    return 4 * max(config.vocab_size * config.hidden_size, _layer_weights(config))


def check_room(
    weights: LlamaWeights,
    quantization: Quantization,
    *,
    threads: int = 1,
    kv_tokens: int = BLOCK_TOKENS,
    packed: bool = False,
    available: Room | None = None,
) -> None:
    """Raises ModelError with the numbers if weights, KV cache and packing's own copies do not fit into memory.

    `kv_tokens` is the KV cache that was asked for; `packed` says that the weights come from the cache on disk, so that
    nothing is packed.
    """
    found = available or room()
    size = weight_bytes(weights, quantization)
    cache = kv_bytes(weights.config, kv_tokens, quantization)
    work = 0 if packed else _loading_bytes(weights.config, quantization, threads)
    # the copies are gone before the KV cache comes
    needed = size + max(cache, work)
    if needed <= found.free:
        return
    parts = f"{_shown(size)} as {quantization}"
    parts += (
        f", {_shown(work)} while they are {'packed' if quantization in ('Int8', 'Int4') else 'read'}"
        if work > cache
        else f", {_shown(cache)} for {kv_tokens:,} tokens of KV"
    )
    raise ModelError(
        f"{weights.path}: {weights.parameters:,} weights need {_shown(needed)} of memory ({parts}); "
        f"{found.owner} has {_shown(found.limit)}, of which {_shown(found.free)} are free"
    )


def _shown(size: int) -> str:
    if size < 2**30:
        return f"{size / 2**20:.2f} MiB"
    return f"{size / 2**30:.2f} GiB" if size < 10 * 2**30 else f"{size / 2**30:.1f} GiB"


def _folders(proc: Path, cgroup: Path) -> Iterator[Path]:
    """The memory cgroup of this process and those above it, as far as they can be seen."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    seen = set()
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            roots = [cgroup, cgroup / "unified"]
        elif "memory" in controllers.split(","):
            roots = [cgroup / controllers, cgroup / "memory"]
        else:
            continue
        for root in roots:
            folder = root / path.lstrip("/")
            for level in (folder, *folder.parents):
                if level not in seen:
                    seen.add(level)
                    yield level
                if level == root:
                    break


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # ValueError: "max"
        return None


def _page_cache(folder: Path) -> int:
    """Bytes of files that the kernel would drop before it kills (memory.stat; in v1 with what is below: total_)."""
    try:
        fields = dict(line.split(" ", 1) for line in (folder / "memory.stat").read_text().splitlines() if " " in line)
        prefix = "total_" if "total_inactive_file" in fields else ""
        return sum(int(fields.get(f"{prefix}{name}_file", 0)) for name in ("active", "inactive"))
    except (OSError, ValueError):
        return 0
