"""What does a Llama compute?  Plain PyTorch in the order of the paper: the kernels' oracle, and the portable path.

Float32 or bfloat16, any torch device.  Layouts are those of transformers' LlamaForCausalLM (rotary halves).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (its name everywhere in the field)
from torch import Tensor

from berth_worker.engine.batch import BLOCK_TOKENS, Batch
from berth_worker.model.config import LlamaConfig
from berth_worker.model.interface import KVCache, Logits, ModelError
from berth_worker.model.weights import LlamaWeights

__all__ = ["Llama", "LlamaLayer", "PagedCache", "check_batch", "rotary_frequencies"]


@dataclass(frozen=True, slots=True)
class LlamaLayer:
    attn_norm: Tensor  # [hidden]
    qkv: Tensor  # [q_size + 2 * kv_size, hidden]
    o: Tensor  # [hidden, q_size]
    ffn_norm: Tensor  # [hidden]
    gate_up: Tensor  # [2 * intermediate, hidden]
    down: Tensor  # [hidden, intermediate]


class PagedCache:
    """K after rotation and V: [layers, 2, num_blocks, BLOCK_TOKENS, kv_heads, head_dim]."""

    def __init__(self, config: LlamaConfig, num_blocks: int, dtype: torch.dtype, device: torch.device) -> None:
        self.num_blocks = num_blocks
        shape = (config.num_layers, 2, num_blocks, BLOCK_TOKENS, config.num_kv_heads, config.head_dim)
        try:
            self.data = torch.zeros(shape, dtype=dtype, device=device)
        except (RuntimeError, MemoryError) as error:
            raise ModelError(f"KV cache: found no memory for {num_blocks} blocks; fewer blocks fit") from error

    def copy_block(self, source: int, target: int) -> None:
        self.data[:, :, target] = self.data[:, :, source]


def rotary_frequencies(config: LlamaConfig) -> Tensor:
    """[head_dim / 2] radians a position, float32: RoFormer (arXiv 2104.09864), eq. 15, over the model's factors."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    return frequencies if config.rope_factors is None else frequencies / torch.tensor(config.rope_factors)


def check_batch(batch: Batch, config: LlamaConfig, num_blocks: int) -> None:
    """Raises ValueError, naming the field, if the batch contradicts itself, the model or the cache."""
    total, starts = len(batch.tokens), batch.sequence_starts
    if len(starts) != len(batch.context_lengths) + 1 or len(batch.block_tables) != len(batch.context_lengths):
        raise ValueError("batch: sequence_starts, context_lengths and block_tables disagree on the number of sequences")
    if len(batch.positions) != total or starts[0] != 0 or starts[-1] != total:
        raise ValueError(f"batch: positions or sequence_starts do not cover the {total} tokens")
    if total and not 0 <= min(batch.tokens) <= max(batch.tokens) < config.vocab_size:
        raise ValueError(f"batch.tokens: found an id outside 0 to {config.vocab_size - 1}")
    if len(batch.output_rows) and not 0 <= min(batch.output_rows) <= max(batch.output_rows) < total:
        raise ValueError(f"batch.output_rows: found a row outside 0 to {total - 1}")
    used = array("i")
    for s, (context, table) in enumerate(zip(batch.context_lengths, batch.block_tables, strict=True)):
        start, end = starts[s], starts[s + 1]
        if end <= start or list(batch.positions[start:end]) != list(range(context - (end - start), context)):
            raise ValueError(f"batch: sequence {s}: positions are not the last of its {context} tokens of context")
        if context < end - start or len(table) * BLOCK_TOKENS < context:
            raise ValueError(f"batch.block_tables[{s}]: found {len(table)} blocks for {context} tokens of context")
        used.extend(table[: -(-context // BLOCK_TOKENS)])
    if used and np.frombuffer(used, np.uint32).max() >= num_blocks:  # one below 0 is large
        tables = (t[: -(-n // BLOCK_TOKENS)] for n, t in zip(batch.context_lengths, batch.block_tables, strict=True))
        s = next(s for s, table in enumerate(tables) if not 0 <= min(table) <= max(table) < num_blocks)
        raise ValueError(f"batch.block_tables[{s}]: found a block outside 0 to {num_blocks - 1}")
    for copy in batch.copies:
        if not 0 <= min(copy) <= max(copy) < num_blocks:
            raise ValueError(f"batch.copies: found {copy}; blocks are 0 to {num_blocks - 1}")


class Llama:
    """A Llama in plain PyTorch; see `berth_worker.model.interface.Model`."""

    def __init__(self, reader: LlamaWeights, dtype: torch.dtype, device: str | torch.device = "cpu") -> None:
        self.config = config = reader.config
        self.dtype, self.device = dtype, torch.device(device)
        self.kv_bytes_per_block = 2 * config.num_layers * BLOCK_TOKENS * config.kv_size * dtype.itemsize
        self.embedding = self._put(torch.from_numpy(reader.embedding()))
        self.output = self.embedding if config.tie_embeddings else self._put(torch.from_numpy(reader.output()))
        self.output_norm = self._put(torch.from_numpy(reader.output_norm()))
        self.layers = [self._layer(reader, index) for index in range(config.num_layers)]
        self.frequencies = rotary_frequencies(config).to(self.device)

    def _put(self, tensor: Tensor) -> Tensor:
        return tensor.to(device=self.device, dtype=self.dtype)

    def _layer(self, reader: LlamaWeights, index: int) -> LlamaLayer:
        w = {name: torch.from_numpy(values) for name, values in reader.layer(index).items()}
        return LlamaLayer(
            attn_norm=self._put(w["attn_norm"]),
            qkv=self._put(torch.cat([w["q"], w["k"], w["v"]])),
            o=self._put(w["o"]),
            ffn_norm=self._put(w["ffn_norm"]),
            gate_up=self._put(torch.cat([w["gate"], w["up"]])),
            down=self._put(w["down"]),
        )

    @property
    def resident_bytes(self) -> int:
        tensors = {self.embedding, self.output, self.output_norm}
        for layer in self.layers:
            tensors |= {layer.attn_norm, layer.qkv, layer.o, layer.ffn_norm, layer.gate_up, layer.down}
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def new_cache(self, num_blocks: int) -> PagedCache:
        return PagedCache(self.config, num_blocks, self.dtype, self.device)

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: KVCache) -> Logits:
        if not isinstance(cache, PagedCache):
            raise TypeError(f"cache: found {type(cache).__name__}; right is what this model's new_cache gave")
        check_batch(batch, self.config, cache.num_blocks)
        for source, target in batch.copies:
            cache.copy_block(source, target)
        positions = torch.tensor(batch.positions, device=self.device)
        cos, sin = self._rotation(positions)
        slots = self._slots(batch)
        x = self.embedding[torch.tensor(batch.tokens, device=self.device)]
        for index, layer in enumerate(self.layers):
            x = x + self._attention(layer, self._norm(x, layer.attn_norm), (cos, sin), slots, batch, cache.data[index])
            gate, up = F.linear(self._norm(x, layer.ffn_norm), layer.gate_up).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, layer.down)
        rows = x[torch.tensor(batch.output_rows, dtype=torch.int64, device=self.device)]
        return Logits.of(F.linear(self._norm(rows, self.output_norm), self.output).float())

    def _norm(self, x: Tensor, gain: Tensor) -> Tensor:
        """RMSNorm, computed in float32 whatever the dtype."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return (wide * scale).to(self.dtype) * gain

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin: [T, 1, head_dim]"""
        angles = (positions.float()[:, None] * self.frequencies)[:, None, :].repeat(1, 1, 2)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def _slots(self, batch: Batch) -> Tensor:
        """[T] place of each new token in the cache: block * BLOCK_TOKENS + offset."""
        slots = [
            table[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS
            for s, table in enumerate(batch.block_tables)
            for position in batch.positions[batch.sequence_starts[s] : batch.sequence_starts[s + 1]]
        ]
        return torch.tensor(slots, device=self.device)

    def _kept(self, x: Tensor) -> Tensor:
        """What the cache keeps of keys after rotation, or of values, [T, kv_heads, head_dim]: all of it here."""
        return x

    def _attention(
        self, layer: LlamaLayer, x: Tensor, rotation: tuple[Tensor, Tensor], slots: Tensor, batch: Batch, cache: Tensor
    ) -> Tensor:
        config = self.config
        q, k, v = torch.split(F.linear(x, layer.qkv), [config.q_size, config.kv_size, config.kv_size], dim=-1)
        q = _rotate(q.unflatten(-1, (config.num_heads, config.head_dim)), *rotation)
        keys, values = cache.flatten(1, 2)  # each [num_blocks * BLOCK_TOKENS, kv_heads, head_dim]
        keys[slots] = self._kept(_rotate(k.unflatten(-1, (config.num_kv_heads, config.head_dim)), *rotation))
        values[slots] = self._kept(v.unflatten(-1, (config.num_kv_heads, config.head_dim)))
        rows = torch.empty_like(q)
        for s, (context, table) in enumerate(zip(batch.context_lengths, batch.block_tables, strict=True)):
            start, end = batch.sequence_starts[s], batch.sequence_starts[s + 1]
            blocks = torch.tensor(table[: -(-context // BLOCK_TOKENS)], device=self.device)
            # [heads, tokens, head_dim]; each key/value head serves group_size query heads
            seen = cache[:, blocks].flatten(1, 2)[:, :context].transpose(1, 2)
            seen = seen.repeat_interleave(config.group_size, dim=1)
            ages = torch.arange(context, device=self.device)
            mask = ages <= torch.arange(context - (end - start), context, device=self.device)[:, None]
            out = F.scaled_dot_product_attention(q[start:end].transpose(0, 1), seen[0], seen[1], attn_mask=mask)
            rows[start:end] = out.transpose(0, 1)
        return F.linear(rows.flatten(1), layer.o)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding over halves: x [T, heads, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
