"""Is this the checkpoint that we packed last time?  A digest of what is cheap to read and differs when weights differ.

Reading 70 GB to be sure would take as long as packing.  Instead: the size and time of change of each file, its whole
header (names, shapes, offsets), and a page from the middle of every tensor.  Another fine-tune of the same shape
changes at least one tensor, and changes a tensor nearly everywhere, so its pages differ even where a copy kept the
time.  The path is left out: the same file under another name is the same model.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from pathlib import Path

from berth_worker.model.interface import ModelError

__all__ = ["Identity"]

_PAGE = 4096


class Identity:
    """Digests what it is given, in order."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, content: bytes) -> None:
        self._hash.update(struct.pack("<Q", len(content)))
        self._hash.update(content)

    def add_file(self, path: Path, header: bytes, tensors: Iterable[tuple[int, int]]) -> None:
        """A file's size, time of change and header, and a page of each tensor, given as (offset, bytes)."""
        self.add(header)
        try:
            with path.open("rb", buffering=0) as file:
                status = path.stat()
                self.add(struct.pack("<QQ", status.st_size, status.st_mtime_ns))
                for offset, nbytes in tensors:
                    size = min(_PAGE, nbytes)
                    file.seek(offset + (nbytes - size) // 2)
                    self.add(file.read(size))
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error

    def digest(self) -> str:
        return self._hash.hexdigest()
