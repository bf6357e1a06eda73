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
from dataclasses import dataclass

import torch
from torch import Tensor

from berth_worker.model.config import LlamaConfig
from berth_worker.model.rotation import Rotation, hadamard, power_of_two_part
from berth_worker.model.weights import LlamaWeights

__all__ = ["Quantized", "Recipe", "quantize_rows", "rotated_embedding", "rotated_layer", "rotated_output"]

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
    padded = torch.nn.functional.pad(w, (0, -depth % group)).reshape(rows, -1, group)
    scales = (padded.abs().amax(-1) / 127).to(torch.bfloat16)
    steps = scales.float().clamp_min(torch.finfo(torch.float32).tiny)
    values = (padded / steps[..., None]).round_().clamp_(-127, 127).to(torch.int8)
    return Quantized(values.reshape(rows, -1)[:, :depth].contiguous(), scales)


def rotated_embedding(reader: LlamaWeights, rotation: Rotation) -> Tensor:
    """[vocab, hidden]"""
    return rotation(torch.from_numpy(reader.embedding()))


def rotated_output(reader: LlamaWeights, rotation: Rotation) -> Tensor:
    """[vocab, hidden], the last norm's gain folded in: for models whose output matrix is not the embedding."""
    return rotation(torch.from_numpy(reader.output() * reader.output_norm()))


def rotated_layer(reader: LlamaWeights, rotation: Rotation, index: int) -> dict[str, Tensor]:
    """A layer's matrices in the rotated basis, gains folded in, float32: qkv, o, gate, up, down."""
    config = reader.config
    block, ffn = Recipe.head_block(config), Recipe.ffn_block(config)
    w = {name: torch.from_numpy(values) for name, values in reader.layer(index).items()}
    qk = rotation(torch.cat([w["q"], w["k"]]) * w["attn_norm"])
    # V is turned within each head and O turned back: (x V^T H / sqrt n) (H / sqrt n) O^T
    v = _blocks(rotation(w["v"] * w["attn_norm"]).t(), block).t() / math.sqrt(block)
    return {
        "qkv": torch.cat([qk, v]),
        "o": _blocks(rotation(w["o"].t()).t(), block) / math.sqrt(block),
        "gate": rotation(w["gate"] * w["ffn_norm"]),
        "up": rotation(w["up"] * w["ffn_norm"]),
        # its input is multiplied by H, not normalized, at run time: H H = n
        "down": _blocks(rotation(w["down"].t()).t(), ffn) / ffn,
    }


def _blocks(w: Tensor, order: int) -> Tensor:
    """Each `order` consecutive columns of w times Hadamard's matrix."""
    return hadamard(w.reshape(w.shape[0], -1, order)).reshape(w.shape)
