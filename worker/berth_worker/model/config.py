"""Which Llama is it?  The shape of the network and its rotary embedding, and nothing about where it came from."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LlamaConfig", "RopeScaling"]


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3.1's scaling of rotary frequencies for long contexts ("llama3" in transformers)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_context: int
    """Tokens of context that the model was trained for."""
    tie_embeddings: bool
    """The output matrix is the embedding matrix."""
    rope_factors: tuple[float, ...] | None = None
    """[head_dim / 2] divisors of the rotary frequencies, or None: how GGUF stores Llama 3.1's scaling."""

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def group_size(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads
