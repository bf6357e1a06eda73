"""How large is a model?  The Llama-family architectures that we know by name, and the bytes that follow from them.

Figures are those of each model's published `config.json` (Hugging Face repositories `HuggingFaceTB/SmolLM2-*`,
`TinyLlama/TinyLlama-1.1B-Chat-v1.0`, `meta-llama/Llama-2-*`, `meta-llama/Meta-Llama-3-*`, `meta-llama/Llama-3.1-*`,
`meta-llama/Llama-3.2-*`, `meta-llama/Llama-3.3-70B-Instruct`): num_hidden_layers, hidden_size, intermediate_size,
num_attention_heads, num_key_value_heads, vocab_size, max_position_embeddings, tie_word_embeddings.  Parameters are not
copied but derived; the tests compare them with the published counts.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from berth_operator.api import Quantization, RuntimeName


@dataclass(frozen=True, slots=True)
class Architecture:
    """A Llama decoder: RMSNorm, grouped-query attention with RoPE, SwiGLU."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_context: int
    """Tokens."""
    tied: bool
    """The output projection is the embedding table."""

    @property
    def layer_parameters(self) -> int:
        """Matrix parameters of all layers: q, o (hidden x heads*head_dim), k, v, and gate, up, down."""
        attention = 2 * self.hidden * self.heads * self.head_dim + 2 * self.hidden * self.kv_heads * self.head_dim
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def embedding_parameters(self) -> int:
        """One vocab x hidden table."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All of them: layers, one or two vocabulary tables, two norms a layer and the last one."""
        tables = 1 if self.tied else 2
        return self.layer_parameters + tables * self.embedding_parameters + (2 * self.layers + 1) * self.hidden

    @property
    def active_parameters(self) -> int:
        """Parameters multiplied for each token: the layers and the output projection (an embedding is a look-up)."""
        return self.layer_parameters + self.embedding_parameters

    def resident_bytes(self, quantization: Quantization, runtime: RuntimeName) -> float:
        """Bytes that the weights take in memory."""
        matrix, table = _bytes_per_parameter(quantization, runtime)
        return self.layer_parameters * matrix + (1 if self.tied else 2) * self.embedding_parameters * table

    def stage_bytes(self, quantization: Quantization, runtime: RuntimeName, share: float) -> float:
        """Bytes of weights on a node that holds a share of the layers: beside them a vocabulary table, as at both ends
        of a pipeline."""
        matrix, table = _bytes_per_parameter(quantization, runtime)
        return self.layer_parameters * matrix * share + self.embedding_parameters * table

    def streamed_bytes(self, quantization: Quantization, runtime: RuntimeName) -> float:
        """Weight bytes that one decode step reads: the layers and the output projection, once for the whole batch."""
        matrix, table = _bytes_per_parameter(quantization, runtime)
        return self.layer_parameters * matrix + self.embedding_parameters * table

    def kv_bytes_per_token(self, runtime: RuntimeName) -> int:
        """Bytes of keys and values of one token: int8 in a Berth worker, bf16 in vLLM (its `kv_cache_dtype=auto`)."""
        width = 1 if runtime is RuntimeName.BERTH else 2
        return 2 * self.layers * self.kv_heads * self.head_dim * width

    def attention_flops_per_token(self, context: float) -> float:
        """FLOPs of q.K and p.V for one new token over `context` earlier ones: 2 x 2 x heads x head_dim a layer."""
        return 4.0 * self.layers * self.heads * self.head_dim * context


def _bytes_per_parameter(quantization: Quantization, runtime: RuntimeName) -> tuple[float, float]:
    """Bytes per parameter of (matrices, vocabulary tables), scales included.

    Berth packs int8 with a 2-byte scale per 32 weights (34/32, as GGUF Q8_0) and int4 likewise (18/32, Q4_0) with
    int8 tables.  vLLM keeps embeddings and output projection in bf16; its int8 (W8A8, one scale a channel) is one
    byte, its int4 (GPTQ, AWQ: groups of 128 with a bf16 scale and a zero point) 4.25 bits.
    """
    if quantization is Quantization.BF16:
        return 2.0, 2.0
    if runtime is RuntimeName.BERTH:
        return (34 / 32 if quantization is Quantization.INT8 else 18 / 32), 34 / 32
    return (1.0 if quantization is Quantization.INT8 else 4.25 / 8), 2.0


def _llama(
    layers: int,
    hidden: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    vocab: int,
    max_context: int,
    *,
    tied: bool = False,
) -> Architecture:
    return Architecture(layers, hidden, intermediate, heads, kv_heads, hidden // heads, vocab, max_context, tied)


_BASE = {
    "smollm2-135m": _llama(30, 576, 1536, 9, 3, 49152, 8192, tied=True),
    "smollm2-360m": _llama(32, 960, 2560, 15, 5, 49152, 8192, tied=True),
    "smollm2-1.7b": _llama(24, 2048, 8192, 32, 32, 49152, 8192, tied=True),
    "tinyllama-1.1b": _llama(22, 2048, 5632, 32, 4, 32000, 2048),
    "llama-2-7b": _llama(32, 4096, 11008, 32, 32, 32000, 4096),
    "llama-2-13b": _llama(40, 5120, 13824, 40, 40, 32000, 4096),
    "llama-2-70b": _llama(80, 8192, 28672, 64, 8, 32000, 4096),
    "llama-3-8b": _llama(32, 4096, 14336, 32, 8, 128256, 8192),
    "llama-3-70b": _llama(80, 8192, 28672, 64, 8, 128256, 8192),
    "llama-3.1-8b": _llama(32, 4096, 14336, 32, 8, 128256, 131072),
    "llama-3.1-70b": _llama(80, 8192, 28672, 64, 8, 128256, 131072),
    "llama-3.1-405b": _llama(126, 16384, 53248, 128, 8, 128256, 131072),
    "llama-3.2-1b": _llama(16, 2048, 8192, 32, 8, 128256, 131072, tied=True),
    "llama-3.2-3b": _llama(28, 3072, 8192, 24, 8, 128256, 131072, tied=True),
    "llama-3.3-70b": _llama(80, 8192, 28672, 64, 8, 128256, 131072),
}
_TUNED_SUFFIXES = {
    "smollm2": ("", "-instruct"),
    "tinyllama": ("-chat",),
    "llama-2": ("", "-chat"),
    "llama-3": ("", "-instruct"),
    "llama-3.3": ("-instruct",),
}


def _suffixes(name: str) -> tuple[str, ...]:
    family = max((f for f in _TUNED_SUFFIXES if name.startswith(f)), key=len)
    return _TUNED_SUFFIXES[family]


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {name + suffix: architecture for name, architecture in _BASE.items() for suffix in _suffixes(name)}
)
"""By the name that clients send: fine-tuning for chat changes no figure here."""


def closest_names(name: str, count: int = 3) -> list[str]:
    """Known model names most like `name`, for error messages."""
    return difflib.get_close_matches(name.lower(), ARCHITECTURES, n=count, cutoff=0.4)
