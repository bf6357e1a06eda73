"""What do the kernels read of a checkpoint?  Its weights, quantized and laid out, and the plan of what lies where."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from berth_worker.kernels import packing
from berth_worker.kernels.packing import (
    WeightStore,
    interleave,
    pack_grid_scales,
    pack_nibbles,
    pack_scales,
    pack_values,
)
from berth_worker.model import grid as grids
from berth_worker.model import quantization
from berth_worker.model import rotation as rotations
from berth_worker.model.grid import Grid4
from berth_worker.model.llama import rotary_frequencies
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

__all__ = ["pack", "packed_weights"]

_PLAN_VERSION = 2

Part = Quantized | Grid4 | Tensor


def packed_weights(weights: LlamaWeights, recipe: Recipe, threads: int) -> tuple[Tensor, Tensor]:
    """Weights (uint8) and plan (int64), from the cache on disk where it has them; see `packed_cache`."""
    code = (sys.modules[__name__], packing, quantization, rotations, grids)
    key = PackedKey.of(weights, recipe.name, _PLAN_VERSION, code)
    return packed(key, lambda: pack(weights, recipe, threads), cache_directory())


def pack(weights: LlamaWeights, recipe: Recipe, threads: int) -> tuple[Tensor, Tensor]:
    """Weights (uint8) and plan (int64), as Model in csrc/model.h reads them; `threads` layers are packed at a time."""
    config, group = weights.config, recipe.group
    rotation = Rotation(config.hidden_size)
    # int8, and 2 bytes of scale a group (4 bits with scale and minimum a group of 32 are less); padding, gains
    store = WeightStore(int(weights.parameters * (1 + 2 / group) * 1.01) + (1 << 22))
    _put_shape(store, weights, recipe, rotation)

    def rotated(index: int) -> list[Part]:
        w = rotated_layer(weights, rotation, index)
        q, k, v = w["qkv"].split([config.q_size, config.kv_size, config.kv_size])
        return [quantize_rows(m, group) for m in (q, k, v, w["o"], interleave(w["gate"], w["up"]), w["down"])]

    if recipe.rotated:
        outer = [rotated_embedding(weights, rotation)]
        outer += [] if config.tie_embeddings else [rotated_output(weights, rotation)]
    else:
        outer = [torch.from_numpy(weights.embedding())]
        outer += [] if config.tie_embeddings else [torch.from_numpy(weights.output())]
    while outer:
        _put(store, quantize_rows(outer.pop(0), group), group)
    with ThreadPoolExecutor(threads) as pool:  # a few layers at a time: their float32 copies are large
        for start in range(0, config.num_layers, threads):
            layers = range(start, min(start + threads, config.num_layers))
            for parts in pool.map(rotated if recipe.rotated else lambda i: _on_own_grid(weights, i, group), layers):
                for part in parts:
                    _put(store, part, group)
    return store.finish()


def _put_shape(store: WeightStore, weights: LlamaWeights, recipe: Recipe, rotation: Rotation) -> None:
    config = weights.config
    store.integer(_PLAN_VERSION, config.vocab_size, config.hidden_size, config.intermediate_size, config.num_layers)
    store.integer(config.num_heads, config.num_kv_heads, config.head_dim, recipe.head_block(config))
    if recipe.rotated:
        store.integer(1, recipe.ffn_block(config))
    else:  # values are turned at run time, the input of `down` is not
        store.integer(recipe.head_block(config), 1)
    store.integer(rotation.odd, int(recipe.rotated), int(config.tie_embeddings))
    store.real(config.rms_norm_eps)
    store.integer(recipe.group)
    store.tensor(rotary_frequencies(config))
    if not recipe.rotated:
        store.tensor(torch.from_numpy(weights.output_norm()))
    elif config.tie_embeddings:
        store.tensor(torch.from_numpy(weights.output_norm()) / rotation.power)
        store.tensor(rotation.odd_matrix)


def _put(store: WeightStore, part: Part, group: int) -> None:
    if isinstance(part, Tensor):
        store.tensor(part)
    elif isinstance(part, Grid4):
        scales, minima = (torch.from_numpy(values).to(torch.float16) for values in (part.scale, part.minimum))
        store.integer(4, -(-min(part.group, part.q.shape[1]) // group) * group)
        store.tensor(pack_nibbles(torch.from_numpy(part.q)))
        store.tensor(pack_grid_scales(scales, minima))
    else:
        store.integer(8, group)
        store.tensor(pack_values(part.values))
        store.tensor(pack_scales(part.scales))


def _on_own_grid(weights: LlamaWeights, index: int, group: int) -> list[Part]:
    """A layer, not rotated: 4-bit matrices as they are, others in int8, and the gains of its norms."""
    kept = {name: grid if grid and _fits(grid, group) else None for name, grid in weights.grids(index).items()}
    w = {name: torch.from_numpy(values) for name, values in weights.layer(index).items()}
    found: list[Part] = [kept[name] or quantize_rows(w[name], group) for name in ("q", "k", "v", "o")]
    gate, up = kept["gate"], kept["up"]
    if gate and up and gate.group == up.group:
        found.append(_interleaved(gate, up))
    else:
        found.append(quantize_rows(interleave(w["gate"], w["up"]), group))
    return [*found, kept["down"] or quantize_rows(w["down"], group), w["attn_norm"], w["ffn_norm"]]


def _fits(grid: Grid4, group: int) -> bool:
    """Whether the kernels have this grid: whole units share a scale, and float16 holds it."""
    most = max(float(np.abs(grid.scale).max()), float(np.abs(grid.minimum).max()))
    return (grid.group % group == 0 or grid.group >= grid.q.shape[1]) and most < torch.finfo(torch.float16).max


def _interleaved(gate: Grid4, up: Grid4) -> Grid4:
    def both(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        return interleave(torch.from_numpy(a), torch.from_numpy(b)).numpy()

    return Grid4(both(gate.q, up.q), both(gate.scale, up.scale), both(gate.minimum, up.minimum), gate.group)
