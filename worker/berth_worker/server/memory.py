"""How many tokens of KV cache fit beside the model?  A share of what `berth_worker.model.room` finds free."""

from __future__ import annotations

__all__ = ["GPU_KV_SHARE", "KV_SHARE", "kv_cache_tokens"]

KV_SHARE = 0.5
"""Of the memory that is free once the model is loaded; the rest is for activations, other processes and page cache."""
GPU_KV_SHARE = 0.95
"""Of the GPU memory that is left beside the weights and a step's own: nobody else is expected there."""


def kv_cache_tokens(bytes_per_token: float, wanted: int, available: int, share: float = KV_SHARE) -> int:
    """Tokens of KV cache to allocate by default: what is wanted, or what that share of the available bytes holds."""
    return min(wanted, int(available * share / bytes_per_token))
