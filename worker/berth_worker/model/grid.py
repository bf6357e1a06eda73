"""Which 16 values may a weight take?  A 4-bit checkpoint's own grid, kept as it was trained or calibrated.

Rounding such a checkpoint to another grid loses more than the first rounding did; so a reader hands out its integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from berth_worker.model.interface import ModelError

__all__ = ["FloatArray", "Grid4", "gguf_grid"]

FloatArray = npt.NDArray[np.float32]
_CHUNK = 1 << 16  # weights whose scales are spread out at a time
GGUF_GROUP = 32  # weights that share a scale in Q4_0, Q4_1 and, as sub-blocks, Q4_K


@dataclass(frozen=True, slots=True)
class Grid4:
    """A matrix in 4 bits: weight[row, i] = scale[row, i // group] * q[row, i] + minimum[row, i // group]."""

    q: npt.NDArray[np.uint8]
    """[rows, depth], each 0 to 15."""
    scale: FloatArray
    """[rows, ceil(depth / group)], finite; may be negative."""
    minimum: FloatArray
    """[rows, ceil(depth / group)], finite: the weight that q = 0 stands for."""
    group: int
    """Weights along the depth that share a scale: 32, 64, 128, ..., or the whole depth."""

    def dequantize(self) -> FloatArray:
        """float32 [rows, depth], in one multiplication and one addition, each rounded."""
        rows, depth = self.q.shape
        values = np.empty((rows, depth), dtype=np.float32)
        step = max(1, _CHUNK // depth)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            np.multiply(self.q[part], np.repeat(self.scale[part], self.group, axis=1)[:, :depth], out=values[part])
            values[part] += np.repeat(self.minimum[part], self.group, axis=1)[:, :depth]
        return values

    def rows(self, order: npt.NDArray[np.intp]) -> Grid4:
        """The rows order[0], order[1], ... of this matrix."""
        return Grid4(self.q[order], self.scale[order], self.minimum[order], self.group)

    def check(self, what: str) -> Grid4:
        """Itself.  Raises ModelError, beginning with `what`, if a scale or minimum is infinite or NaN."""
        if not (np.isfinite(self.scale).all() and np.isfinite(self.minimum).all()):
            raise ModelError(f"{what}: found infinite or NaN scales; every weight must be finite")
        with np.errstate(over="ignore"):
            if not np.isfinite(np.abs(self.scale).max(initial=0) * 15 + np.abs(self.minimum).max(initial=0)):
                raise ModelError(f"{what}: found scales up to {np.abs(self.scale).max():g}: weights beyond float32")
        return self


def gguf_grid(raw: npt.NDArray[np.uint8], type_name: str, rows: int, depth: int) -> Grid4 | None:
    """The grid of a GGUF tensor [rows, depth] from its bytes, or None for a type that has no 4-bit grid.

    Block layouts: ggml-common.h of ggml (block_q4_0, block_q4_1, block_q4_K).
    """
    if type_name == "Q4_K":
        return _q4_k(raw, rows, depth)
    header = {"Q4_0": 2, "Q4_1": 4}.get(type_name)
    if header is None:
        return None
    blocks = raw.reshape(-1, header + GGUF_GROUP // 2)
    heads = np.ascontiguousarray(blocks[:, :header]).view("<f2").astype(np.float32)
    scale = heads[:, 0].reshape(rows, -1)
    minimum = -8 * scale if type_name == "Q4_0" else heads[:, 1].reshape(rows, -1).copy()
    # the low halves of 16 bytes are weights 0 to 15, the high halves 16 to 31
    return Grid4(_nibbles(blocks[:, header:]).reshape(rows, depth), scale.copy(), minimum, GGUF_GROUP)


def _q4_k(raw: npt.NDArray[np.uint8], rows: int, depth: int) -> Grid4:
    blocks = raw.reshape(-1, 144)
    heads = np.ascontiguousarray(blocks[:, :4]).view("<f2").astype(np.float32)  # d, dmin
    low, high, mixed = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    # 8 scales and 8 minimums of 6 bits: four whole in the low 6 bits, four split 4 + 2
    scales = np.concatenate([low & 63, (mixed & 15) | (low >> 2 & 48)], axis=1)
    minimums = np.concatenate([high & 63, (mixed >> 4) | (high >> 2 & 48)], axis=1)
    return Grid4(
        _nibbles(blocks[:, 16:].reshape(-1, GGUF_GROUP)).reshape(rows, depth),
        (heads[:, :1] * scales).reshape(rows, -1),
        -(heads[:, 1:] * minimums).reshape(rows, -1),
        GGUF_GROUP,
    )


def _nibbles(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """[n, bytes] -> [n, 2 * bytes]: all low halves of a row, then all high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)
