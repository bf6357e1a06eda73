"""How do GPTQ and AWQ pack 4-bit weights into int32?  Unpacked here into the grid that they were calibrated on.

Both keep weights as [depth, rows], eight to an int32, with float scales and packed zero points for each group of the
depth: weight = scale * (q - zero).  GPTQ packs eight of a column (AutoGPTQ, qlinear_cuda_old.py, pack), AWQ eight of a
row in the order 0 2 4 6 1 3 5 7 (AutoAWQ, packing_utils.py and gemm.py).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from berth_worker.model.grid import FloatArray, Grid4

__all__ = ["awq_grid", "gptq_grid", "gptq_reordered"]

Int32Array = npt.NDArray[np.int32]
_NIBBLES = np.arange(8, dtype=np.uint32) * 4
_AWQ_NIBBLES = np.array([0, 4, 1, 5, 2, 6, 3, 7], dtype=np.uint32) * 4  # where weight 0, 1, ... of the eight lies


def gptq_grid(qweight: Int32Array, qzeros: Int32Array, scales: FloatArray, group: int, zero_offset: int) -> Grid4:
    """qweight [depth / 8, rows], qzeros [groups, rows / 8], scales [groups, rows]; the groups in order.

    A zero point is what is stored + zero_offset, in 4 bits: 15 + 1 is 0, as in AutoGPTQ.
    """
    return _grid(_gptq_integers(qweight), _gptq_zeros(qzeros, zero_offset), scales, group)


def gptq_reordered(
    qweight: Int32Array, qzeros: Int32Array, scales: FloatArray, groups: Int32Array, zero_offset: int
) -> FloatArray:
    """float32 [rows, depth] where groups[i] is the group of column i (GPTQ's act-order): no grid with groups of
    neighbours describes it.  Each of `groups` must be a group; scales near float32's end may give infinities."""
    zeros = _gptq_zeros(qzeros, zero_offset).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(((_gptq_integers(qweight) - zeros[groups]) * scales[groups]).T)


def awq_grid(qweight: Int32Array, qzeros: Int32Array, scales: FloatArray, group: int) -> Grid4:
    """qweight [depth, rows / 8], qzeros [groups, rows / 8], scales [groups, rows]."""
    return _grid(_unpacked_rows(qweight, _AWQ_NIBBLES), _unpacked_rows(qzeros, _AWQ_NIBBLES), scales, group)


def _grid(q: npt.NDArray[np.uint8], zeros: npt.NDArray[np.uint8], scales: FloatArray, group: int) -> Grid4:
    """From arrays that run [depth or groups, rows]."""
    with np.errstate(over="ignore", invalid="ignore"):  # Grid4.check refuses what comes of it
        minimums = -zeros.astype(np.float32) * scales
    integers, scale, minimum = (np.ascontiguousarray(part.T) for part in (q, scales, minimums))
    return Grid4(integers.astype(np.uint8, copy=False), scale, minimum, group)


def _gptq_integers(qweight: Int32Array) -> npt.NDArray[np.uint8]:
    """[depth / 8, rows] -> [depth, rows]"""
    words = qweight.view(np.uint32)
    return ((words[:, None, :] >> _NIBBLES[:, None]) & 15).astype(np.uint8).reshape(-1, words.shape[1])


def _gptq_zeros(qzeros: Int32Array, zero_offset: int) -> npt.NDArray[np.uint8]:
    return (_unpacked_rows(qzeros, _NIBBLES) + np.uint8(zero_offset)) & np.uint8(15)


def _unpacked_rows(packed: Int32Array, shifts: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """[n, rows / 8] -> [n, rows]"""
    words = packed.view(np.uint32)
    return ((words[:, :, None] >> shifts) & 15).astype(np.uint8).reshape(len(words), -1)
