"""What is in this safetensors file?  A strict reader: every offset is checked against the file before use.

Ours rather than the `safetensors` package: the format is a length, a JSON header and the data; bytes stay mapped and
need no torch, BF16 is read without a numpy extension, and messages name file, tensor, found and right as everywhere
here.  The tests hold it against the package.  Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from berth_worker.model.grid import FloatArray
from berth_worker.model.interface import ModelError
from berth_worker.model.json_file import parse_object, shown

__all__ = ["SafetensorsFile", "StoredTensor", "is_safe_file_name"]

_LONGEST_HEADER = 32 << 20  # a 70B GPTQ checkpoint of one file needs 0.4 MB
_BITS = dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 8)
_BITS |= dict.fromkeys(("U16", "I16", "F16", "BF16"), 16)
_BITS |= dict.fromkeys(("U32", "I32", "F32"), 32)
_BITS |= dict.fromkeys(("U64", "I64", "F64"), 64)
_FLOATS = ("F32", "F16", "BF16")
_MAX_DIMENSION = 1 << 31


def is_safe_file_name(name: str) -> bool:
    """Whether a name that a checkpoint gives is a plain file beside it."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,200}", name) is not None


@dataclass(frozen=True, slots=True)
class StoredTensor:
    name: str
    dtype: str
    """As safetensors writes it: "F32", "BF16", "I32", ..."""
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the file."""
    nbytes: int


class SafetensorsFile:
    """The tensors of one safetensors file, mapped, not read.

    Raises ModelError, with the path and what was found, if the file is not safetensors or contradicts itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.size = file.seek(0, 2)
                if self.size < 10:
                    raise ModelError(f"{path}: found {self.size} bytes; not a safetensors file, which has at least 10")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
        (length,) = struct.unpack_from("<Q", self._map)
        if length > min(_LONGEST_HEADER, self.size - 8):
            raise ModelError(
                f"{path}: found a header of {length} bytes in a file of {self.size}; "
                "not a safetensors file, or truncated"
            )
        self.header = self._map[8 : 8 + length]
        self.tensors: dict[str, StoredTensor] = {}
        self._parse(parse_object(self.header, f"{path}: header"), 8 + length)

    def raw(self, tensor: StoredTensor) -> npt.NDArray[np.uint8]:
        """A tensor's bytes as they lie in the file, mapped, read-only: uint8 [nbytes]."""
        return np.frombuffer(self._map, dtype=np.uint8, count=tensor.nbytes, offset=tensor.offset)

    def floats(self, tensor: StoredTensor) -> FloatArray:
        """A tensor as a fresh float32 array of its shape.

        Raises ModelError if it is stored as anything but F32, F16 or BF16, or holds infinities or NaN.
        """
        if tensor.dtype not in _FLOATS:
            raise ModelError(
                f"{self.path}: tensor {tensor.name}: found {tensor.dtype}; supported: {', '.join(_FLOATS)}"
            )
        raw = self.raw(tensor)
        if tensor.dtype == "BF16":  # the upper half of a float32
            wide = raw.view("<u2").astype(np.uint32)
            wide <<= 16
            values = wide.view(np.float32)
        else:
            values = raw.view("<f4" if tensor.dtype == "F32" else "<f2").astype(np.float32)
        if not np.isfinite(values).all():
            raise ModelError(
                f"{self.path}: tensor {tensor.name}: found infinite or NaN values; every weight must be finite"
            )
        return values.reshape(tensor.shape)

    def integers(self, tensor: StoredTensor) -> npt.NDArray[np.int32]:
        """A tensor stored as I32, mapped, read-only.  Raises ModelError if it is stored otherwise."""
        if tensor.dtype != "I32":
            raise ModelError(f"{self.path}: tensor {tensor.name}: found {tensor.dtype}; right is I32")
        return self.raw(tensor).view("<i4").reshape(tensor.shape)

    def _parse(self, header: dict[str, Any], base: int) -> None:
        spans = []
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            tensor = self._tensor(name, entry, base)
            self.tensors[name] = tensor
            spans.append((tensor.offset, tensor.offset + tensor.nbytes, name))
        end = base
        for start, stop, name in sorted(spans):
            if start != end:
                raise ModelError(
                    f"{self.path}: tensor {name}: found at byte {start}; the tensor before it ends at {end}, "
                    "and nothing lies between tensors"
                )
            end = stop
        if end != self.size:
            raise ModelError(f"{self.path}: found {self.size} bytes; the header describes {end}")

    def _tensor(self, name: str, entry: Any, base: int) -> StoredTensor:
        where = f"{self.path}: tensor {name}"
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ModelError(f"{where}: found {shown(entry)}; right is an object of dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _BITS:
            raise ModelError(f"{where}: found dtype {shown(dtype)}; known: {', '.join(_BITS)}")
        if not _counts(shape) or len(shape) > 8 or not all(size < _MAX_DIMENSION for size in shape):
            raise ModelError(
                f"{where}: found shape {shown(shape)}; up to 8 sizes, each below {_MAX_DIMENSION}, are right"
            )
        if not _counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= self.size - base:
            raise ModelError(
                f"{where}: found data_offsets {shown(offsets)}; {self.size - base} bytes follow the header"
            )
        nbytes = math.prod(shape) * _BITS[dtype] // 8
        if offsets[1] - offsets[0] != nbytes:
            raise ModelError(f"{where}: found {offsets[1] - offsets[0]} bytes; {dtype} of shape {shape} takes {nbytes}")
        return StoredTensor(name, dtype, tuple(shape), base + offsets[0], nbytes)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
