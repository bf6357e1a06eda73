"""Where does each weight lie for the kernels?  In one block of memory, in the order in which a step reads it.

The layout is that of csrc/isa.h: panels of 16 channels, granules of 4 channels x 4 of depth.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from berth_worker.kernels.memory import huge_zeros

__all__ = ["PANEL", "WeightStore", "interleave", "pack_grid_scales", "pack_nibbles", "pack_scales", "pack_values"]

PANEL = 16
_ALIGNMENT = 64


def pack_values(values: Tensor) -> Tensor:
    """int8 [channels, depth] -> [ceil(channels / 16), ceil(depth / 4), 16, 4], padded with zeros."""
    channels, depth = values.shape
    padded = torch.nn.functional.pad(values, (0, -depth % 4, 0, -channels % PANEL))
    return padded.reshape(-1, PANEL, padded.shape[1] // 4, 4).transpose(1, 2).contiguous()


def pack_scales(scales: Tensor) -> Tensor:
    """bfloat16 or float16 [channels, groups] -> [ceil(channels / 16), groups, 16], padded with zeros."""
    channels, groups = scales.shape
    return (
        torch.nn.functional.pad(scales, (0, 0, 0, -channels % PANEL))
        .reshape(-1, PANEL, groups)
        .transpose(1, 2)
        .contiguous()
    )


def pack_nibbles(values: Tensor) -> Tensor:
    """uint8 [channels, depth], each 0 to 15 -> [ceil(channels / 16), ceil(depth / 8), 16, 4], padded with zeros.

    The low half of a byte is one of depths 8i ... 8i + 3, the high half the one 4 further.
    """
    channels, depth = values.shape
    padded = torch.nn.functional.pad(values, (0, -depth % 8, 0, -channels % PANEL))
    halves = padded.reshape(-1, PANEL, padded.shape[1] // 8, 2, 4).permute(0, 2, 3, 1, 4)
    return (halves[:, :, 0] | halves[:, :, 1] << 4).contiguous()


def pack_grid_scales(scales: Tensor, minima: Tensor) -> Tensor:
    """float16 [channels, groups] twice -> [ceil(channels / 16), groups, 2, 16], padded with zeros."""
    return torch.stack([pack_scales(scales), pack_scales(minima)], dim=2).contiguous()


def interleave(gate: Tensor, up: Tensor) -> Tensor:
    """Rows of gate and up, 16 by 16 in turn: the kernels find both halves of a SwiGLU side by side."""
    return torch.stack([gate.unflatten(0, (-1, PANEL)), up.unflatten(0, (-1, PANEL))], dim=1).flatten(0, 2)


class WeightStore:
    """Memory for `capacity` bytes of weights, filled in order, and the plan of what lies where."""

    def __init__(self, capacity: int) -> None:
        self._bytes = huge_zeros(capacity)
        self._used = 0
        self.plan: list[int] = []

    def integer(self, *values: int) -> None:
        self.plan.extend(values)

    def real(self, value: float) -> None:
        """Stored as the bits of a float32."""
        self.plan.append(struct.unpack("<i", struct.pack("<f", value))[0])

    def tensor(self, values: Tensor) -> None:
        """Copy in, aligned to a cache line; the plan gets the offset."""
        raw = values.contiguous().flatten().view(torch.uint8)
        end = self._used + raw.numel()
        if end > self._bytes.numel():
            raise ValueError(f"weight store: found {end} bytes to hold; it has {self._bytes.numel()}")
        self._bytes[self._used : end] = raw
        self.plan.append(self._used)
        self._used = -(-end // _ALIGNMENT) * _ALIGNMENT

    def finish(self) -> tuple[Tensor, Tensor]:
        """Weights (uint8) and plan (int64)."""
        return self._bytes[: self._used], torch.tensor(self.plan, dtype=torch.int64)
