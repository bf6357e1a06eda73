"""What are quantized weights, exactly?  The recipe: rotations, groups, and the integers and scales that come out.

Recipe "w8g{G}-a8-rotated-kv8": weights in int8 with one bfloat16 scale for each group of G values along the depth;
activations in int8 with one float32 scale a token; the residual stream, the values (per head) and the input of `down`
(in blocks) rotated; queries and keys multiplied by a Hadamard matrix after the rotary embedding; keys, values and
queries in int8 with one scale a head and token; attention weights in 7 bits with one scale for 16 tokens.  Rotation is
what lets a whole token share a scale: without it that costs 4 % of perplexity.  Its quality, measured, stands in
tests/worker/model/test_quality.py.

Recipe "w4-grid-a8g32-kv8": a 4-bit checkpoint's matrices on their own grid (`Grid4`; scales and minima in float16),
its other matrices in int8 in groups of 32, nothing rotated, activations in int8 with one scale for each 32; keys and
values as above, turned at run time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from berth_worker.model.config import LlamaConfig
from berth_worker.model.rotation import Rotation, hadamard, power_of_two_part
from berth_worker.model.weights import LlamaWeights

__all__ = ["CHUNK", "Quantized", "Recipe", "quantize_rows", "rotated_embedding", "rotated_matrix", "rotated_output"]

CHUNK = 1 << 16
"""Weights that are worked on at a time: each step of that makes a copy."""
_MOST_FFN_BLOCK = 256


@dataclass(frozen=True, slots=True)
class Recipe:
    group: int = 256
    """Weights along the depth that share a scale: a multiple of 8, at most 256; at most 64 where nothing is rotated."""
    rotated: bool = True
    """Or not: then 4-bit matrices stay on their grid, and activations have one scale for each `group`."""

    @classmethod
    def own_grid(cls) -> Recipe:
        return cls(group=32, rotated=False)

    @property
    def name(self) -> str:
        return f"w8g{self.group}-a8-rotated-kv8" if self.rotated else f"w4-grid-a8g{self.group}-kv8"

    @staticmethod
    def head_block(config: LlamaConfig) -> int:
        """Order of the Hadamard matrix over queries, keys and values of a head."""
        return power_of_two_part(config.head_dim)

    @staticmethod
    def ffn_block(config: LlamaConfig) -> int:
        """Order of the Hadamard matrix over the input of `down`."""
        return min(_MOST_FFN_BLOCK, power_of_two_part(config.intermediate_size))


@dataclass(frozen=True, slots=True)
class Quantized:
    values: Tensor  # [rows, depth] int8 in [-127, 127]
    scales: Tensor  # [rows, ceil(depth / group)] bfloat16

    def dequantize(self, group: int) -> Tensor:
        wide = self.scales.float().repeat_interleave(group, dim=1)[:, : self.values.shape[1]]
        return self.values.float() * wide


def quantize_rows(w: Tensor, group: int) -> Quantized:
    """Round each group of a row to the nearest of 255 steps of its largest magnitude / 127."""
    rows, depth = w.shape
    values = torch.empty(rows, depth, dtype=torch.int8)
    scales = torch.empty(rows, -(-depth // group), dtype=torch.bfloat16)
    for part in _parts(w):
        padded = torch.nn.functional.pad(w[part], (0, -depth % group)).unflatten(1, (-1, group))
        scales[part] = padded.abs().amax(-1) / 127
        steps = scales[part].float().clamp_min(torch.finfo(torch.float32).tiny)
        values[part] = (padded / steps[..., None]).round_().clamp_(-127, 127).flatten(1)[:, :depth]
    return Quantized(values, scales)


def rotated_embedding(reader: LlamaWeights, rotation: Rotation) -> Tensor:
    """[vocab, hidden]"""
    return _changed(torch.from_numpy(reader.embedding()), rotation)


def rotated_output(reader: LlamaWeights, rotation: Rotation) -> Tensor:
    """[vocab, hidden], the last norm's gain folded in: for models whose output matrix is not the embedding."""
    gain = torch.from_numpy(reader.output_norm())
    return _changed(torch.from_numpy(reader.output()), lambda rows: rotation(rows * gain))


def rotated_matrix(reader: LlamaWeights, rotation: Rotation, index: int, name: str) -> Tensor:
    """q, k, v, o, gate, up or down of a layer in the rotated basis, the gain before it folded in, float32."""
    config = reader.config
    block, ffn = Recipe.head_block(config), Recipe.ffn_block(config)
    w = torch.from_numpy(reader.matrix(index, name))
    if name not in ("o", "down"):
        gain = torch.from_numpy(reader.matrix(index, "ffn_norm" if name in ("gate", "up") else "attn_norm"))
        _changed(w, lambda rows: rotation(rows * gain))
    else:
        _changed(w.t(), rotation)
    # V is turned within each head and O turned back: (x V^T H / sqrt n) (H / sqrt n) O^T
    if name == "v":
        _changed(w.t(), lambda rows: _blocks(rows, block) / math.sqrt(block))
    elif name == "o":
        _changed(w, lambda rows: _blocks(rows, block) / math.sqrt(block))
    elif name == "down":  # its input is multiplied by H, not normalized, at run time: H H = n
        _changed(w, lambda rows: _blocks(rows, ffn) / ffn)
    return w


def _changed(w: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """w with its rows changed, in its place."""
    for part in _parts(w):
        w[part] = change(w[part])
    return w


def _parts(w: Tensor) -> Iterator[slice]:
    """Rows of about CHUNK weights."""
    rows, depth = w.shape
    step = max(1, CHUNK // depth)
    return (slice(start, start + step) for start in range(0, rows, step))


def _blocks(w: Tensor, order: int) -> Tensor:
    """Each `order` consecutive columns of w times Hadamard's matrix."""
    return hadamard(w.reshape(w.shape[0], -1, order)).reshape(w.shape)
