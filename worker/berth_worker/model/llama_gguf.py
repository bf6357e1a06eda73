"""Is this GGUF file a Llama we can run, and what are its weights?  Names and shapes are checked before one is read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from berth_worker.model.config import LlamaConfig
from berth_worker.model.gguf_file import GgufFile
from berth_worker.model.grid import FloatArray, Grid4, gguf_grid
from berth_worker.model.identity import Identity
from berth_worker.model.interface import ModelError

__all__ = ["LlamaReader", "read_config"]

_MATRICES = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_NORMS = {"attn_norm": "attn_norm", "ffn_norm": "ffn_norm"}


def read_config(file: GgufFile) -> LlamaConfig:
    """The configuration in the metadata of a Llama GGUF file.

    Raises ModelError naming the key for another architecture, a missing or absurd value, a mixture of experts, or a
    rotary scaling that is not implemented (implemented: none, linear, and Llama 3.1's through rope_freqs.weight).
    """
    architecture = file.metadata.get("general.architecture")
    if architecture != "llama":
        raise ModelError(f"{file.path}: general.architecture: found {architecture!r}; this worker runs 'llama'")
    layers = _integer(file, "llama.block_count", 1, 512)
    hidden = _integer(file, "llama.embedding_length", 1, 1 << 17)
    heads = _integer(file, "llama.attention.head_count", 1, 1 << 10)
    kv_heads = _integer(file, "llama.attention.head_count_kv", 1, 1 << 10, default=heads)
    if heads % kv_heads:
        raise ModelError(
            f"{file.path}: llama.attention.head_count_kv: found {kv_heads}; it must divide the {heads} heads"
        )
    if "llama.attention.key_length" not in file.metadata and hidden % heads:
        raise ModelError(
            f"{file.path}: llama.embedding_length: found {hidden}; it must be a multiple of the {heads} heads"
        )
    head_dim = _integer(file, "llama.attention.key_length", 1, 1 << 10, default=hidden // heads)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if (found := _integer(file, key, 1, 1 << 10, default=head_dim)) != head_dim:
            raise ModelError(f"{file.path}: {key}: found {found}; it must equal the head size, {head_dim}")
    if head_dim % 2:
        raise ModelError(f"{file.path}: llama.rope.dimension_count: found {head_dim}; it must be even")
    if experts := file.metadata.get("llama.expert_count", 0):
        raise ModelError(f"{file.path}: llama.expert_count: found {experts}; mixtures of experts are not supported")
    vocab = file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0
    stated = _integer(file, "llama.vocab_size", 1, 1 << 22, default=max(1, vocab))
    if vocab and vocab != stated:
        raise ModelError(f"{file.path}: tensor token_embd.weight: found {vocab} rows; llama.vocab_size says {stated}")
    return LlamaConfig(
        vocab_size=stated,
        hidden_size=hidden,
        intermediate_size=_integer(file, "llama.feed_forward_length", 1, 1 << 20),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=_number(file, "llama.attention.layer_norm_rms_epsilon", 0.0, 1.0),
        rope_theta=_number(file, "llama.rope.freq_base", 1.0, 1e12, default=10000.0),
        max_context=_integer(file, "llama.context_length", 1, 1 << 27),
        tie_embeddings="output.weight" not in file.tensors,
        rope_factors=_rope_factors(file, head_dim),
    )


class LlamaReader:
    """The weights of a Llama GGUF file in float32, one at a time, in the layout of transformers' LlamaForCausalLM.

    Raises ModelError, before reading a weight, if a tensor is missing, unknown or of the wrong shape.
    """

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.config = read_config(file)
        expected = dict(_expected_shapes(self.config))
        for name, shape in expected.items():
            if name not in file.tensors:
                raise ModelError(
                    f"{file.path}: tensor {name}: not in the file; a Llama of this shape needs it, {list(shape)}"
                )
            if file.tensors[name].shape != shape:
                raise ModelError(
                    f"{file.path}: tensor {name}: found shape {list(file.tensors[name].shape)}; "
                    f"the metadata asks for {list(shape)}"
                )
        if unknown := sorted(file.tensors.keys() - expected.keys() - {"rope_freqs.weight"}):
            raise ModelError(
                f"{file.path}: tensor {unknown[0]}: found, but a Llama has none of that name "
                "(attention biases and adapters are not supported)"
            )

    @property
    def path(self) -> Path:
        """For messages."""
        return self.file.path

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in _expected_shapes(self.config))

    def embedding(self) -> FloatArray:
        """[vocab, hidden]"""
        return self._read("token_embd.weight")

    def output(self) -> FloatArray:
        """[vocab, hidden]; the embedding itself where they are tied."""
        return self._read("token_embd.weight" if self.config.tie_embeddings else "output.weight")

    def output_norm(self) -> FloatArray:
        """[hidden]"""
        return self._read("output_norm.weight")

    def layer(self, index: int) -> dict[str, FloatArray]:
        """attn_norm, ffn_norm: [hidden]; q: [q_size, hidden]; k, v: [kv_size, hidden]; o: [hidden, q_size];
        gate, up: [intermediate, hidden]; down: [hidden, intermediate]."""
        return {name: self.matrix(index, name) for name in _MATRICES | _NORMS}

    def matrix(self, index: int, name: str) -> FloatArray:
        """One of those that layer() gives, as a fresh array."""
        values = self._read(f"blk.{index}.{(_MATRICES | _NORMS)[name]}.weight")
        order = self._row_order(name)
        return values if order is None else values[order]

    def grids(self, index: int) -> dict[str, Grid4 | None]:
        """The 4-bit grid of each matrix of a layer (q, k, v, o, gate, up, down), rows in the order of layer(); None for
        a matrix that the file stores otherwise.  Grid4.dequantize() is what layer() gives."""
        return {name: self.grid(index, name) for name in _MATRICES}

    def grid(self, index: int, name: str) -> Grid4 | None:
        """One of those that grids() gives."""
        return self._grid(name, f"blk.{index}.{_MATRICES[name]}.weight")

    def identity(self) -> str:
        """See `berth_worker.model.identity`."""
        identity = Identity()
        tensors = self.file.tensors.values()
        identity.add_file(self.path, self.file.header(), [(info.offset, info.nbytes) for info in tensors])
        return identity.digest()

    def _grid(self, key: str, name: str) -> Grid4 | None:
        info = self.file.tensors[name]
        grid = gguf_grid(self.file.raw(info), info.type_name, *info.shape)
        if grid is None:
            return None
        order = self._row_order(key)
        return (grid if order is None else grid.rows(order)).check(f"{self.path}: tensor {name}")

    def _row_order(self, key: str) -> npt.NDArray[np.intp] | None:
        """Which row of the file is row 0, 1, ... of matrix `key`, where they differ: GGUF's Llama has the rotary pairs
        (2i, 2i+1) of q and k side by side, LlamaForCausalLM has halves (i, i + head_dim/2)."""
        if key not in ("q", "k"):
            return None
        heads, size = (self.config.num_heads if key == "q" else self.config.num_kv_heads), self.config.head_dim
        return np.arange(heads * size).reshape(heads, size // 2, 2).swapaxes(1, 2).reshape(-1)

    def _read(self, name: str) -> FloatArray:
        return self.file.dequantize(self.file.tensors[name])


def _expected_shapes(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, intermediate = config.hidden_size, config.intermediate_size
    yield "token_embd.weight", (config.vocab_size, hidden)
    yield "output_norm.weight", (hidden,)
    if not config.tie_embeddings:
        yield "output.weight", (config.vocab_size, hidden)
    for layer in range(config.num_layers):
        prefix = f"blk.{layer}."
        yield prefix + "attn_norm.weight", (hidden,)
        yield prefix + "attn_q.weight", (config.q_size, hidden)
        yield prefix + "attn_k.weight", (config.kv_size, hidden)
        yield prefix + "attn_v.weight", (config.kv_size, hidden)
        yield prefix + "attn_output.weight", (hidden, config.q_size)
        yield prefix + "ffn_norm.weight", (hidden,)
        yield prefix + "ffn_gate.weight", (intermediate, hidden)
        yield prefix + "ffn_up.weight", (intermediate, hidden)
        yield prefix + "ffn_down.weight", (hidden, intermediate)


def _rope_factors(file: GgufFile, head_dim: int) -> tuple[float, ...] | None:
    kind = file.metadata.get("llama.rope.scaling.type", "none")
    factors = np.ones(head_dim // 2, dtype=np.float64)
    if kind == "linear":
        factors *= _number(file, "llama.rope.scaling.factor", 1e-3, 1e6)
    elif kind != "none":
        raise ModelError(f"{file.path}: llama.rope.scaling.type: found {kind!r}; supported: 'none', 'linear'")
    if "rope_freqs.weight" in file.tensors:
        info = file.tensors["rope_freqs.weight"]
        if info.shape != (head_dim // 2,):
            raise ModelError(
                f"{file.path}: tensor rope_freqs.weight: found shape {list(info.shape)}; right is [{head_dim // 2}]"
            )
        stored = file.dequantize(info)
        if (stored <= 0).any():
            raise ModelError(f"{file.path}: tensor rope_freqs.weight: found a factor that is not positive")
        factors *= stored
    return None if (factors == 1).all() else tuple(factors.tolist())


def _value(file: GgufFile, key: str, default: Any) -> Any:
    value = file.metadata.get(key, default)
    if value is None:
        raise ModelError(f"{file.path}: {key}: not in the metadata; a Llama needs it")
    return value


def _integer(file: GgufFile, key: str, low: int, high: int, default: int | None = None) -> int:
    value = _value(file, key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ModelError(f"{file.path}: {key}: found {value!r}; an integer from {low} to {high} is right")
    return value


def _number(file: GgufFile, key: str, low: float, high: float, default: float | None = None) -> float:
    value = _value(file, key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ModelError(f"{file.path}: {key}: found {value!r}; a number from {low:g} to {high:g} is right")
    return float(value)
