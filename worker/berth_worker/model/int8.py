"""How does a Llama run in int8 kernels?  Quantized and packed once, kept on disk; then one call a step."""

from __future__ import annotations

import sys
from array import array
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from berth_worker import kernels
from berth_worker.engine.batch import BLOCK_TOKENS, Batch
from berth_worker.kernels import packing
from berth_worker.kernels.memory import huge_zeros
from berth_worker.kernels.packing import (
    PANEL,
    WeightStore,
    interleave,
    pack_grid_scales,
    pack_nibbles,
    pack_scales,
    pack_values,
)
from berth_worker.model import grid, quantization
from berth_worker.model import rotation as rotations
from berth_worker.model.config import LlamaConfig
from berth_worker.model.grid import Grid4
from berth_worker.model.interface import KVCache, ModelError
from berth_worker.model.llama import check_batch, rotary_frequencies
from berth_worker.model.packed_cache import PackedKey, cache_directory, packed
from berth_worker.model.quantization import (
    Quantized,
    Recipe,
    quantize_rows,
    rotated_embedding,
    rotated_layer,
    rotated_output,
)
from berth_worker.model.rotation import Rotation
from berth_worker.model.weights import LlamaWeights

__all__ = ["Int8Cache", "Int8Llama", "unsupported_shape"]

_PLAN_VERSION = 2


def unsupported_shape(config: LlamaConfig) -> str | None:
    """Why the kernels cannot run a Llama of this shape, or None if they can."""
    for field in ("hidden_size", "intermediate_size", "head_dim"):
        if (found := getattr(config, field)) % PANEL:
            return f"{field} is {found}, not a multiple of {PANEL}"
    return f"{config.group_size} query heads share a key head, more than 32" if config.group_size > 32 else None


class Int8Cache:
    """int8 [layers, num_blocks, bytes of a block in one layer]; the layout is in csrc/isa.h."""

    def __init__(self, config: LlamaConfig, num_blocks: int, block_bytes: int) -> None:
        self.num_blocks = num_blocks
        try:
            memory = huge_zeros(config.num_layers * num_blocks * block_bytes)
        except MemoryError as error:
            raise ModelError(f"KV cache: found no memory for {num_blocks} blocks; fewer blocks fit") from error
        self.data = memory.view(torch.int8).view(config.num_layers, num_blocks, block_bytes)


class Int8Llama:
    """A Llama in int8 kernels; see `berth_worker.model.interface.Model`.

    `isa` names an instruction set; "" takes the best one, or what BERTH_ISA names.  Raises ModelError if that cannot
    run here, and KernelsUnavailableError if the kernels are not built.
    """

    def __init__(self, reader: LlamaWeights, threads: int, recipe: Recipe | None = None, isa: str = "") -> None:
        kernels.load_kernels()
        self.config, self.threads, self.recipe = reader.config, threads, recipe or Recipe()
        if reason := unsupported_shape(self.config):
            raise ModelError(f"{reader.path}: the int8 kernels cannot run it: {reason}; choose BF16 or FP32")
        try:
            self.isa = isa or kernels.selected_isa()
        except RuntimeError as error:
            raise ModelError(str(error).splitlines()[0]) from error
        config = self.config
        # keys and values of 16 tokens in int8, and a float32 scale for each token's key and value
        self._block_bytes = config.num_kv_heads * 2 * BLOCK_TOKENS * (config.head_dim + 4)
        self.kv_bytes_per_block = config.num_layers * self._block_bytes
        self._padded_vocab = -(-config.vocab_size // PANEL) * PANEL
        modules = (sys.modules[__name__], packing, quantization, rotations, grid)
        key = PackedKey.of(reader, self.recipe.name, _PLAN_VERSION, modules)
        self._weights, self._plan = packed(key, lambda: _pack(reader, self.recipe, threads), cache_directory())

    @property
    def resident_bytes(self) -> int:
        return self._weights.numel() + 8 * self._plan.numel()

    def new_cache(self, num_blocks: int) -> Int8Cache:
        return Int8Cache(self.config, num_blocks, self._block_bytes)

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        if not isinstance(cache, Int8Cache):
            raise TypeError(f"cache: found {type(cache).__name__}; right is what this model's new_cache gave")
        check_batch(batch, self.config, cache.num_blocks)
        logits = torch.empty(len(batch.output_rows), self._padded_vocab, dtype=torch.float32)
        if batch.tokens:
            kernels.step(self._weights, self._plan, cache.data, _flatten(batch), logits, self.threads, self.isa)
        return logits[:, : self.config.vocab_size]


def _flatten(batch: Batch) -> Tensor:
    """The batch as the kernels read it: BatchView in csrc/model.h."""
    width = max(len(table) for table in batch.block_tables)
    sequences = len(batch.context_lengths)
    flat = array("i", (sequences, len(batch.tokens), len(batch.output_rows), width))
    for part in (batch.tokens, batch.sequence_starts, batch.context_lengths, batch.output_rows):
        flat.extend(part)
    for table in batch.block_tables:
        flat.extend(table)
        flat.extend([0] * (width - len(table)))
    return torch.frombuffer(flat, dtype=torch.int32)


def _pack(reader: LlamaWeights, recipe: Recipe, threads: int) -> tuple[Tensor, Tensor]:
    """Weights and plan, as Model in csrc/model.h reads them."""
    config, group = reader.config, recipe.group
    rotation = Rotation(config.hidden_size)
    # int8, and 2 bytes of scale a group; 4 bits with scale and minimum a group of 32 are less; padding of the
    # vocabulary and of cache lines, gains
    store = WeightStore(int(reader.parameters * (1 + 2 / group) * 1.01) + (1 << 22))
    store.integer(_PLAN_VERSION, config.vocab_size, config.hidden_size, config.intermediate_size, config.num_layers)
    store.integer(config.num_heads, config.num_kv_heads, config.head_dim, recipe.head_block(config))
    if recipe.rotated:
        store.integer(1, recipe.ffn_block(config))
    else:  # values are turned at run time, the input of `down` is not
        store.integer(recipe.head_block(config), 1)
    store.integer(rotation.odd, int(recipe.rotated), int(config.tie_embeddings))
    store.real(config.rms_norm_eps)
    store.integer(group)
    store.tensor(rotary_frequencies(config))
    if not recipe.rotated:
        store.tensor(torch.from_numpy(reader.output_norm()))
    elif config.tie_embeddings:
        store.tensor(torch.from_numpy(reader.output_norm()) / rotation.power)
        store.tensor(rotation.odd_matrix)

    def put(matrix: Quantized | Grid4) -> None:
        if isinstance(matrix, Grid4):
            scales, minima = (torch.from_numpy(part).to(torch.float16) for part in (matrix.scale, matrix.minimum))
            store.integer(4, -(-min(matrix.group, matrix.q.shape[1]) // group) * group)
            store.tensor(pack_nibbles(torch.from_numpy(matrix.q)))
            store.tensor(pack_grid_scales(scales, minima))
        else:
            store.integer(8, group)
            store.tensor(pack_values(matrix.values))
            store.tensor(pack_scales(matrix.scales))

    def rotated(index: int) -> list[Quantized | Grid4 | Tensor]:
        w = rotated_layer(reader, rotation, index)
        q, k, v = w["qkv"].split([config.q_size, config.kv_size, config.kv_size])
        matrices = (q, k, v, w["o"], interleave(w["gate"], w["up"]), w["down"])
        return [quantize_rows(matrix, group) for matrix in matrices]

    def plain(index: int) -> list[Quantized | Grid4 | Tensor]:
        grids = {name: grid if grid and fits(grid) else None for name, grid in reader.grids(index).items()}
        w = {name: torch.from_numpy(values) for name, values in reader.layer(index).items()}
        found: list[Quantized | Grid4 | Tensor] = [
            grids[name] or quantize_rows(w[name], group) for name in ("q", "k", "v", "o")
        ]
        gate, up = grids["gate"], grids["up"]
        if gate and up and gate.group == up.group:
            found.append(_interleaved(gate, up))
        else:
            found.append(quantize_rows(interleave(w["gate"], w["up"]), group))
        return [*found, grids["down"] or quantize_rows(w["down"], group), w["attn_norm"], w["ffn_norm"]]

    def fits(grid: Grid4) -> bool:
        """Whether the kernels have this grid: whole units share a scale, and float16 holds it."""
        most = max(float(np.abs(grid.scale).max()), float(np.abs(grid.minimum).max()))
        return (grid.group % group == 0 or grid.group >= grid.q.shape[1]) and most < torch.finfo(torch.float16).max

    if recipe.rotated:
        put(quantize_rows(rotated_embedding(reader, rotation), group))
        if not config.tie_embeddings:
            put(quantize_rows(rotated_output(reader, rotation), group))
    else:
        put(quantize_rows(torch.from_numpy(reader.embedding()), group))
        if not config.tie_embeddings:
            put(quantize_rows(torch.from_numpy(reader.output()), group))
    with ThreadPoolExecutor(threads) as pool:  # a few layers at a time: their float32 copies are large
        for start in range(0, config.num_layers, threads):
            layers = range(start, min(start + threads, config.num_layers))
            for parts in pool.map(rotated if recipe.rotated else plain, layers):
                for part in parts:
                    store.tensor(part) if isinstance(part, Tensor) else put(part)
    return store.finish()


def _interleaved(gate: Grid4, up: Grid4) -> Grid4:
    def both(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        return interleave(torch.from_numpy(a), torch.from_numpy(b)).numpy()

    return Grid4(both(gate.q, up.q), both(gate.scale, up.scale), both(gate.minimum, up.minimum), gate.group)
