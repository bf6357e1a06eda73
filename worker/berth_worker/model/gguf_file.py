"""What is in this GGUF file?  A strict reader of its header: every length is checked against the file before use.

The `gguf` package knows the tensor types and dequantizes them; its own reader is not used, because it trusts lengths (a
damaged one makes it loop or allocate without end) and takes seconds for a vocabulary.  Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from berth_worker.model.interface import ModelError

__all__ = ["SUPPORTED_TYPES", "GgufFile", "TensorInfo"]

# ggml_type ids (ggml.h) of what we can dequantize: name, values in a block, bytes of a block
SUPPORTED_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
_CHUNK = 1 << 16  # weights that are dequantized at a time
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_KEYS, _MAX_TENSORS, _MAX_DIMENSION = 1 << 16, 1 << 16, 1 << 31


@dataclass(frozen=True, slots=True)
class TensorInfo:
    name: str
    shape: tuple[int, ...]
    """Outermost first, as torch writes it (GGUF stores it the other way round)."""
    type_id: int
    type_name: str
    offset: int
    """Bytes from the start of the file."""
    nbytes: int


class GgufFile:
    """The metadata and the tensors of one GGUF file (version 2 or 3, little endian), mapped, not read.

    Raises ModelError, with the path and what was found, if the file is not GGUF, is truncated or contradicts itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.size = file.seek(0, 2)
                if self.size < 24:
                    raise ModelError(f"{path}: found {self.size} bytes; not a GGUF file, which has at least 24")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
        self._position = 0
        self._context = "header"
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self._parse()

    def raw(self, info: TensorInfo) -> npt.NDArray[np.uint8]:
        """One tensor's bytes as they lie in the file, mapped, read-only: uint8 [info.nbytes]."""
        return np.frombuffer(self._map, dtype=np.uint8, count=info.nbytes, offset=info.offset)

    def dequantize(self, info: TensorInfo) -> npt.NDArray[np.float32]:
        """One tensor as a fresh float32 array of info.shape.  Raises ModelError if it holds infinities or NaN."""
        raw = self.raw(info)
        if info.type_name == "F32":
            values = raw.view(np.float32).copy()
        else:
            from gguf.constants import GGMLQuantizationType  # noqa: PLC0415  (takes 0.1 s: only when it is needed)
            from gguf.quants import dequantize  # noqa: PLC0415

            _, block, block_bytes = SUPPORTED_TYPES[info.type_id]
            values = np.empty(info.nbytes // block_bytes * block, dtype=np.float32)
            for start in range(0, len(values), _CHUNK):  # the library makes several copies of what it is given
                end = min(start + _CHUNK, len(values))
                part = raw[start // block * block_bytes : end // block * block_bytes]
                with np.errstate(all="ignore"):
                    values[start:end] = dequantize(part[None], GGMLQuantizationType(info.type_id))[0]
        if not np.isfinite(values).all():
            raise ModelError(
                f"{self.path}: tensor {info.name}: found infinite or NaN values; every weight must be finite"
            )
        return values.reshape(info.shape)

    def header(self) -> bytes:
        """Everything before the tensors' data: metadata, names, shapes and offsets."""
        return self._map[: self._position]

    # -- parsing -----------------------------------------------------------------------------------------------------

    def _take(self, size: int) -> int:
        """Step over `size` bytes; their offset."""
        start = self._position
        if size > self.size - start:
            raise ModelError(
                f"{self.path}: {self._context}: truncated: needs {size} bytes at offset {start}, "
                f"the file ends at {self.size}"
            )
        self._position = start + size
        return start

    def _scalar(self, code: str) -> Any:
        layout = "<" + code
        return struct.unpack_from(layout, self._map, self._take(struct.calcsize(layout)))[0]

    def _string(self) -> str:
        length = self._scalar("Q")
        start = self._take(length)
        try:
            return self._map[start : start + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelError(
                f"{self.path}: {self._context}: found a string that is not UTF-8 at offset {start}"
            ) from error

    def _array(self) -> Any:
        element, count = self._scalar("I"), self._scalar("Q")
        if element == _STRING:
            if count * 8 > self.size - self._position:
                raise ModelError(
                    f"{self.path}: {self._context}: found an array of {count} strings, more than the file can hold"
                )
            return self._strings(count)
        if element not in _SCALARS:
            raise ModelError(
                f"{self.path}: {self._context}: found an array of element type {element}; unknown or nested"
            )
        dtype = np.dtype("<" + _SCALARS[element])
        start = self._take(count * dtype.itemsize)
        return np.frombuffer(self._map, dtype=dtype, count=count, offset=start).copy()

    def _strings(self, count: int) -> list[str]:
        """_string() `count` times, without its calls: a vocabulary and its merges are hundreds of thousands."""
        content, position, end = self._map, self._position, self.size
        length_at = struct.Struct("<Q").unpack_from
        found = []
        for _ in range(count):
            start = position + 8
            if start > end or length_at(content, position)[0] > end - start:
                self._position = position
                found.append(self._string())  # raises: it is truncated
            position = start + length_at(content, position)[0]
            try:
                found.append(content[start:position].decode())
            except UnicodeDecodeError:
                self._position = start - 8
                found.append(self._string())  # raises
        self._position = position
        return found

    def _parse(self) -> None:
        magic = self._map[self._take(4) : 4]
        if magic != b"GGUF":
            raise ModelError(f"{self.path}: found {magic!r} in the first 4 bytes; a GGUF file starts with b'GGUF'")
        version = self._scalar("I")
        if version not in (2, 3):
            hint = " (big endian)" if version & 0xFFFF == 0 else ""
            raise ModelError(f"{self.path}: found GGUF version {version}{hint}; supported: 2 and 3, little endian")
        tensor_count, key_count = self._scalar("Q"), self._scalar("Q")
        if tensor_count > _MAX_TENSORS or key_count > _MAX_KEYS:
            raise ModelError(
                f"{self.path}: header: found {tensor_count} tensors and {key_count} keys; "
                f"at most {_MAX_TENSORS} and {_MAX_KEYS} are right"
            )
        for _ in range(key_count):
            self._context = "metadata"
            key = self._string()
            self._context = f"metadata {key}"
            kind = self._scalar("I")
            if kind == _STRING:
                self.metadata[key] = self._string()
            elif kind == _ARRAY:
                self.metadata[key] = self._array()
            elif kind in _SCALARS:
                self.metadata[key] = self._scalar(_SCALARS[kind])
            else:
                raise ModelError(f"{self.path}: {self._context}: found value type {kind}; GGUF has 0 to 12")
        self._parse_tensors(tensor_count)

    def _parse_tensors(self, tensor_count: int) -> None:
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 16:
            raise ModelError(
                f"{self.path}: general.alignment: found {alignment!r}; it is a small power of two, such as 32"
            )
        found: list[tuple[str, tuple[int, ...], int, int]] = []
        for _ in range(tensor_count):
            self._context = "tensor list"
            name = self._string()
            self._context = f"tensor {name}"
            dimensions = self._scalar("I")
            if not 1 <= dimensions <= 4:
                raise ModelError(f"{self.path}: tensor {name}: found {dimensions} dimensions; 1 to 4 are right")
            shape = tuple(self._scalar("Q") for _ in range(dimensions))[::-1]
            found.append((name, shape, self._scalar("I"), self._scalar("Q")))
        base = -(-self._position // alignment) * alignment
        for name, shape, type_id, offset in found:
            if name in self.tensors:
                raise ModelError(f"{self.path}: tensor {name}: found twice")
            if not all(0 < size < _MAX_DIMENSION for size in shape):
                raise ModelError(
                    f"{self.path}: tensor {name}: found shape {list(shape)}; each size is 1 to {_MAX_DIMENSION}"
                )
            if type_id not in SUPPORTED_TYPES:
                supported = ", ".join(name for name, _, _ in SUPPORTED_TYPES.values())
                raise ModelError(f"{self.path}: tensor {name}: found ggml type {type_id}; supported: {supported}")
            type_name, block, block_bytes = SUPPORTED_TYPES[type_id]
            if shape[-1] % block:
                raise ModelError(
                    f"{self.path}: tensor {name}: found rows of {shape[-1]}; "
                    f"{type_name} packs them in blocks of {block}"
                )
            nbytes = block_bytes
            for size in (*shape[:-1], shape[-1] // block):
                nbytes *= size
            if offset % alignment or base + offset + nbytes > self.size:
                raise ModelError(
                    f"{self.path}: tensor {name}: truncated: needs {nbytes} bytes at offset {base + offset}, "
                    f"the file ends at {self.size}"
                )
            self.tensors[name] = TensorInfo(name, shape, type_id, type_name, base + offset, nbytes)
