"""What do the kernels read of a checkpoint?  Its weights, quantized and laid out, and the plan of what lies where."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
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
    rotated_matrix,
    rotated_output,
)
from berth_worker.model.room import check_room, packing_threads
from berth_worker.model.rotation import Rotation
from berth_worker.model.weights import LlamaWeights

__all__ = ["is_packed", "pack", "packed_weights"]

_PLAN_VERSION = 3
_ORDER = ("q", "k", "v", "o", "gate_up", "down")
"""The parts of a layer in the order in which a step reads them; the rows of gate and up are one matrix."""

Part = Quantized | Grid4 | Tensor


def packed_weights(weights: LlamaWeights, recipe: Recipe, threads: int) -> tuple[Tensor, Tensor]:
    """Weights (uint8) and plan (int64), from the cache on disk where it has them; see `packed_cache`."""

    def build() -> tuple[Tensor, Tensor]:
        check_room(weights, "Int8" if recipe.rotated else "Int4", threads=threads)  # what was kept may be damaged
        return pack(weights, recipe, threads)

    return packed(_key(weights, recipe), build, cache_directory())


def is_packed(weights: LlamaWeights, recipe: Recipe) -> bool:
    """Whether the cache on disk has a file for it, so that nothing will be packed unless that is damaged."""
    directory = cache_directory()
    return directory is not None and (directory / _key(weights, recipe).file_name).is_file()


def _key(weights: LlamaWeights, recipe: Recipe) -> PackedKey:
    code = (sys.modules[__name__], packing, quantization, rotations, grids)
    return PackedKey.of(weights, recipe.name, _PLAN_VERSION, code)


def pack(weights: LlamaWeights, recipe: Recipe, threads: int) -> tuple[Tensor, Tensor]:
    """Weights (uint8) and plan (int64), as Model in csrc/model.h reads them; see `room.packing_threads`."""
    config, group = weights.config, recipe.group
    rotation = Rotation(config.hidden_size)
    # int8, and 2 bytes of scale a group (4 bits with scale and minimum a group of 32 are less); padding, gains
    store = WeightStore(int(weights.parameters * (1 + 2 / group) * 1.01) + (1 << 22))
    _put_shape(store, weights, recipe, rotation)

    outer: list[Callable[[], Tensor]]
    if recipe.rotated:
        outer = [lambda: rotated_embedding(weights, rotation)]
        outer += [] if config.tie_embeddings else [lambda: rotated_output(weights, rotation)]
    else:
        outer = [lambda: torch.from_numpy(weights.embedding())]
        outer += [] if config.tie_embeddings else [lambda: torch.from_numpy(weights.output())]
    for read in outer:
        _put(store, quantize_rows(read(), group), group)

    def part(place: tuple[int, str]) -> Part:
        return _rotated(weights, rotation, *place, group) if recipe.rotated else _as_it_is(weights, *place, group)

    names = _ORDER if recipe.rotated else (*_ORDER, "attn_norm", "ffn_norm")
    places = [(index, name) for index in range(config.num_layers) for name in names]
    workers = packing_threads(threads)
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[Part]] = deque()  # a few matrices at a time: in float32 they are large
        for place in places:
            if len(ahead) == workers:
                _put(store, ahead.popleft().result(), group)
            ahead.append(pool.submit(part, place))
        while ahead:
            _put(store, ahead.popleft().result(), group)
    _give_back()
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
        centred = torch.equal(minima, -8 * scales)  # Q4_0 and its like: the minima need not be read
        store.integer(4, int(not centred), -(-min(part.group, part.q.shape[1]) // group) * group)
        store.tensor(pack_nibbles(torch.from_numpy(part.q)))
        store.tensor(pack_scales(scales) if centred else pack_grid_scales(scales, minima))
    else:
        store.integer(8, 0, group)
        store.tensor(pack_values(part.values))
        store.tensor(pack_scales(part.scales))


def _rotated(weights: LlamaWeights, rotation: Rotation, index: int, name: str, group: int) -> Part:
    if name != "gate_up":
        return quantize_rows(rotated_matrix(weights, rotation, index, name), group)
    gate, up = (quantize_rows(rotated_matrix(weights, rotation, index, name), group) for name in ("gate", "up"))
    return Quantized(interleave(gate.values, up.values), interleave(gate.scales, up.scales))


def _as_it_is(weights: LlamaWeights, index: int, name: str, group: int) -> Part:
    """Not rotated: a 4-bit matrix on its own grid, another in int8, or the gain of a norm."""
    if name.endswith("_norm"):
        return torch.from_numpy(weights.matrix(index, name))
    if name != "gate_up":
        grid = weights.grid(index, name)
        return grid if grid and _fits(grid, group) else _quantized(weights, index, name, group)
    grids = [weights.grid(index, half) for half in ("gate", "up")]
    gate, up = (grid if grid and _fits(grid, group) else None for grid in grids)
    if gate and up and gate.group == up.group:
        return _interleaved(gate, up)
    first, second = (_quantized(weights, index, half, group) for half in ("gate", "up"))
    return Quantized(interleave(first.values, second.values), interleave(first.scales, second.scales))


def _quantized(weights: LlamaWeights, index: int, name: str, group: int) -> Quantized:
    return quantize_rows(torch.from_numpy(weights.matrix(index, name)), group)


def _give_back() -> None:
    """Return what packing has freed to the system, which the C library keeps; the KV cache wants it."""
    with contextlib.suppress(OSError, AttributeError):  # not the GNU C library
        ctypes.CDLL(None).malloc_trim(0)


def _fits(grid: Grid4, group: int) -> bool:
    """Whether the kernels have this grid: whole units share a scale, and float16 holds it."""
    most = max(float(np.abs(grid.scale).max()), float(np.abs(grid.minimum).max()))
    return (grid.group % group == 0 or grid.group >= grid.q.shape[1]) and most < torch.finfo(torch.float16).max


def _interleaved(gate: Grid4, up: Grid4) -> Grid4:
    def both(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        return interleave(torch.from_numpy(a), torch.from_numpy(b)).numpy()

    return Grid4(both(gate.q, up.q), both(gate.scale, up.scale), both(gate.minimum, up.minimum), gate.group)
