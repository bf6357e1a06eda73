"""Which basis do int8 weights and activations live in?  Rotations that spread outliers, exact in real arithmetic.

The residual stream is multiplied by an orthogonal R when the weights are loaded (QuaRot, arXiv 2404.00456; SpinQuant,
arXiv 2405.16406): every matrix that reads the stream becomes W R, every one that writes it R^T W.  No work is left for
run time, because RMSNorm (with its gain folded into the next matrix) commutes with R.  R = diag(signs) (Q (x) H): H is
Hadamard's matrix of the largest power of two that divides the size, Q the orthonormal cosine transform of what is left.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

__all__ = ["Rotation", "hadamard", "power_of_two_part"]

_DIRECT = 64  # orders up to this are one matrix product


def power_of_two_part(n: int) -> int:
    """The largest power of two that divides n."""
    return n & -n


def hadamard(x: Tensor) -> Tensor:
    """x H over the last dimension: Sylvester's Hadamard matrix of that order (a power of two), +-1, not normalized.

    H of order a * b is H_a (x) H_b, so two small matrix products do for orders to 4096.
    """
    n = x.shape[-1]
    if n != power_of_two_part(n):
        raise ValueError(f"hadamard: found {n} columns; a power of two is right")
    if n <= _DIRECT:
        return x @ _sylvester(n)
    halves = hadamard(x.unflatten(-1, (n // _DIRECT, _DIRECT)))
    return hadamard(halves.transpose(-1, -2)).transpose(-1, -2).flatten(-2)


@functools.cache
def _sylvester(n: int) -> Tensor:
    """[n, n]"""
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < n:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix


class Rotation:
    """The orthogonal matrix R of the residual stream of `size` values."""

    def __init__(self, size: int) -> None:
        self.power = power_of_two_part(size)
        self.odd = size // self.power
        steps = torch.arange(self.odd, dtype=torch.float64)
        cosines = torch.cos(math.pi * (steps + 0.5) * steps[:, None] / self.odd) * math.sqrt(2 / self.odd)
        cosines[0] /= math.sqrt(2)
        self.odd_matrix = cosines.float().contiguous()
        """[odd, odd] Q: orthonormal DCT-II, rows are frequencies."""
        generator = torch.Generator().manual_seed(0)
        self.signs = torch.randint(0, 2, (size,), generator=generator).float() * 2 - 1

    def __call__(self, w: Tensor) -> Tensor:
        """w R, for w [..., size]."""
        x = (w * self.signs).unflatten(-1, (self.odd, self.power))
        x = hadamard(x) / math.sqrt(self.power)
        return torch.einsum("ij,...ik->...jk", self.odd_matrix, x).flatten(-2)
