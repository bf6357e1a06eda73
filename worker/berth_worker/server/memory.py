"""How many tokens of KV cache fit beside the model?  Reads what the machine and the container's limits leave."""

from __future__ import annotations

from pathlib import Path

__all__ = ["GPU_KV_SHARE", "KV_SHARE", "available_bytes", "kv_cache_tokens"]

KV_SHARE = 0.5
"""Of the memory that is free once the model is loaded; the rest is for activations, other processes and page cache."""
GPU_KV_SHARE = 0.95
"""Of the GPU memory that is left beside the weights and a step's own: nobody else is expected there."""


def available_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can still be allocated without swapping or being killed: the machine's, or the container's if less."""
    fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text(encoding="ascii").splitlines())
    machine = int(fields["MemAvailable"].split()[0]) * 1024
    # cgroup v2 as a container sees it, then v1
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            allowed = int((cgroup / limit).read_text(encoding="ascii"))
            used = int((cgroup / usage).read_text(encoding="ascii"))
        except (OSError, ValueError):  # no such file, or "max"
            continue
        return max(0, min(machine, allowed - used))
    return machine


def kv_cache_tokens(bytes_per_token: float, wanted: int, available: int, share: float = KV_SHARE) -> int:
    """Tokens of KV cache to allocate by default: what is wanted, or what that share of the available bytes holds."""
    return min(wanted, int(available * share / bytes_per_token))
