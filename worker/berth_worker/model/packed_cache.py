"""Must a model be quantized and packed at every start?  No: its packed form is kept on disk and read back.

One file a model: magic, header length and digest; a JSON header; the plan (int64); the weights (uint8) from a page
boundary on.  The header has a 64-bit sum of each piece of weights, so a file that was cut, overwritten or zeroed by a
crash is seen, at the speed of memory, while its pieces are read in parallel into huge pages.  Files are written under
another name, synced and renamed: a reader sees a whole file or none, and two workers that pack at once both win.

The cache never stops a start: what cannot be read is packed again, what cannot be written is left unwritten, with one
line in the log.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import mmap
import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from berth_worker.kernels.cpus import usable_cpus
from berth_worker.kernels.memory import huge_zeros
from berth_worker.model.weights import LlamaWeights

__all__ = ["PackedKey", "cache_directory", "packed"]

_log = logging.getLogger(__name__)
_MAGIC = b"BERTHPK1"
_HEAD = struct.Struct("<8sQ16s")  # magic, bytes of the header, its blake2b
_PAGE, _PIECE = 4096, 4 << 20
_LONGEST_HEADER = 64 << 20
_SUFFIX = ".packed"
_STALE_SECONDS, _UNUSED_SECONDS = 24 * 3600, 30 * 24 * 3600  # of a file half written, and of one that nobody reads
_QUIET_SECONDS = 60  # since a file half written, that nobody holds, has grown
SMALLEST = 16 << 20
"""Bytes of weights from which a file is worth its place: less is packed in a tenth of a second."""
DEFAULT_LIMIT = 256 << 30
"""Bytes of packed models kept in a directory; beyond it the least recently used go."""
DISK_RESERVE = 1 << 30
"""Bytes that writing leaves free on the disk."""


@dataclass(frozen=True, slots=True)
class PackedKey:
    """What a packed form depends on."""

    source: str
    """`LlamaWeights.identity()`"""
    recipe: str
    layout: int
    """Version of the plan and of the layout in memory."""
    code: str = ""
    """Digest of the code that quantizes and packs: whoever changes it gets a new file without counting versions."""

    @classmethod
    def of(cls, weights: LlamaWeights, recipe: str, layout: int, modules: Iterable[ModuleType] = ()) -> PackedKey:
        """The key of a checkpoint packed by the code in `modules`."""
        digest = hashlib.blake2b(digest_size=16)
        for module in modules:
            digest.update(Path(module.__file__ or "").read_bytes())
        return cls(weights.identity(), recipe, layout, digest.hexdigest())

    @property
    def file_name(self) -> str:
        text = json.dumps(asdict(self), sort_keys=True).encode()
        return hashlib.blake2b(text, digest_size=16).hexdigest() + _SUFFIX


def cache_directory(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where packed models are kept: BERTH_CACHE_DIR (empty: nowhere), $XDG_CACHE_HOME/berth or ~/.cache/berth."""
    if (stated := environment.get("BERTH_CACHE_DIR")) is not None:
        return Path(stated) if stated else None
    if cache := environment.get("XDG_CACHE_HOME"):
        return Path(cache) / "berth"
    home = environment.get("HOME")
    return Path(home) / ".cache" / "berth" if home else None


def packed(
    key: PackedKey,
    build: Callable[[], tuple[Tensor, Tensor]],
    directory: Path | None,
    *,
    mapped: bool = False,
    limit: int = DEFAULT_LIMIT,
    smallest: int = SMALLEST,
) -> tuple[Tensor, Tensor]:
    """Weights (uint8, page-aligned) and plan (int64): from `directory` if they are there, else built and kept there.

    `mapped` leaves the weights in the page cache, for machines with little memory: private pages of 4 KiB that the
    kernel may drop and read again; slower.  A directory of None keeps nothing; weights of less than `smallest` bytes
    are not kept either.
    """
    if directory is None:
        return build()
    path = directory / key.file_name
    if (found := _read(path, key, mapped=mapped)) is not None:
        return found
    weights, plan = build()
    if len(weights) < smallest:
        return weights, plan
    try:
        _write(path, key, weights, plan, limit)
    except OSError as error:
        _log.warning("packed weights are not kept in %s: %s; every start packs them again", directory, error)
    else:
        if mapped and (found := _read(path, key, mapped=True)) is not None:
            return found
    return weights, plan


# -- reading ---------------------------------------------------------------------------------------------------------


class _DamagedError(Exception):
    """The file is not what its header or its key says."""


def _read(path: Path, key: PackedKey, *, mapped: bool) -> tuple[Tensor, Tensor] | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        _log.warning("%s: cannot be read: %s; packing again", path, error)
        return None
    try:
        header, plan_at, weights_at = _read_header(file, key)
        plan = torch.empty(header["plan"], dtype=torch.int64)
        _fill(file, plan.numpy().data.cast("B"), plan_at)
        if _sum(plan.numpy().view(np.uint64)) != header["plan_sum"]:
            raise _DamagedError("its plan is damaged")
        weights = _map(file, header, weights_at) if mapped else _read_weights(file, header, weights_at)
        with contextlib.suppress(OSError):
            os.utime(file)  # used now: the last to be evicted; a read-only directory need not know
        return weights, plan
    except (_DamagedError, OSError, MemoryError, ValueError) as error:
        _log.warning("%s: not used: %s; packing again", path, error)
        return None
    finally:
        os.close(file)


def _read_header(file: int, key: PackedKey) -> tuple[dict[str, Any], int, int]:
    """The header, and where plan and weights begin.  Raises _DamagedError unless the file is ours, of `key`, whole."""
    status = os.fstat(file)
    if status.st_uid not in (os.geteuid(), 0):  # the kernels trust the plan
        raise _DamagedError(f"it belongs to user {status.st_uid}")
    head = os.pread(file, _HEAD.size, 0)
    magic, length, digest = _HEAD.unpack(head) if len(head) == _HEAD.size else (b"", 0, b"")
    if magic != _MAGIC or length > min(_LONGEST_HEADER, status.st_size):
        raise _DamagedError("it is not a packed model")
    raw = os.pread(file, length, _HEAD.size)
    if hashlib.blake2b(raw, digest_size=16).digest() != digest:
        raise _DamagedError("its header is damaged")
    header: dict[str, Any] = json.loads(raw)
    if header["key"] != asdict(key):
        raise _DamagedError("it is of another model")
    plan_at = _HEAD.size + length
    weights_at = _page_after(plan_at + 8 * header["plan"])
    if status.st_size != weights_at + header["weights"]:
        raise _DamagedError(f"it has {status.st_size} bytes; {weights_at + header['weights']} are right")
    return header, plan_at, weights_at


def _read_weights(file: int, header: dict[str, Any], start: int) -> Tensor:
    size: int = header["weights"]
    weights = huge_zeros(size)
    values = weights.numpy()

    def piece(index: int) -> None:
        begin, end = index * _PIECE, min(size, (index + 1) * _PIECE)
        _fill(file, values.data[begin:end], start + begin)
        if _sum_bytes(values[begin:end]) != header["sums"][index]:
            raise _DamagedError(f"its weights are damaged near byte {start + begin}")

    with ThreadPoolExecutor(min(8, usable_cpus())) as pool:
        list(pool.map(piece, range(len(header["sums"]))))
    return weights


def _map(file: int, header: dict[str, Any], start: int) -> Tensor:
    memory = mmap.mmap(file, start + header["weights"], access=mmap.ACCESS_COPY)  # torch wants it writable
    return torch.frombuffer(memory, dtype=torch.uint8)[start:]


def _fill(file: int, target: memoryview, offset: int) -> None:
    done = 0
    while done < len(target):
        count = os.preadv(file, [target[done:]], offset + done)
        if count == 0:
            raise _DamagedError("it ends too early")
        done += count


# -- writing ---------------------------------------------------------------------------------------------------------


def _write(path: Path, key: PackedKey, weights: Tensor, plan: Tensor, limit: int) -> None:
    """Raises OSError if there is no room or no right to write."""
    values = weights.numpy()
    pieces = [values[begin : begin + _PIECE] for begin in range(0, len(values), _PIECE)]
    header = json.dumps(
        {
            "key": asdict(key),
            "plan": plan.numel(),
            "plan_sum": _sum(plan.numpy().view(np.uint64)),
            "weights": len(values),
            "sums": [_sum_bytes(piece) for piece in pieces],
        }
    ).encode()
    head = _HEAD.pack(_MAGIC, len(header), hashlib.blake2b(header, digest_size=16).digest()) + header
    weights_at = _page_after(len(head) + 8 * plan.numel())
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _make_room(path, weights_at + len(values), limit)
    file, temporary = tempfile.mkstemp(prefix=".packing-", dir=path.parent)
    with contextlib.suppress(OSError):  # some file systems have no locks: then its age alone tells
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        with os.fdopen(file, "wb", buffering=0) as out:
            front = head + plan.numpy().tobytes()
            for view in (memoryview(front.ljust(weights_at, b"\0")), *(piece.data for piece in pieces)):
                while view:
                    view = view[out.write(view) :]  # noqa: PLW2901 - a write may take a part
            os.fsync(out.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # some file systems cannot sync a directory
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _make_room(path: Path, size: int, limit: int) -> None:
    """Remove what nobody used for 30 days, then the least recently used until `size` more bytes fit limit and disk.

    Raises OSError if they cannot.
    """
    if size > limit:
        raise OSError(f"{size:,} bytes are more than the limit of {limit:,}")
    entries = []
    for entry in path.parent.iterdir():
        with contextlib.suppress(FileNotFoundError):
            status = entry.stat()
            age = time.time() - status.st_mtime
            if entry.name.startswith(".packing-") and (age > _STALE_SECONDS or _abandoned(entry, age)):
                _log.info("%s: removed, %s bytes of a worker that ended while it wrote", entry, f"{status.st_size:,}")
                entry.unlink()
            elif entry.suffix == _SUFFIX and age > _UNUSED_SECONDS:
                entry.unlink()  # of a model that is gone, or packed by code that is
            elif entry.suffix == _SUFFIX:
                entries.append((status.st_mtime_ns, status.st_size, entry))
    entries.sort()
    total = sum(held for _, held, _ in entries)
    disk = os.statvfs(path.parent)
    free = disk.f_bavail * disk.f_frsize
    if free + total < size + DISK_RESERVE:
        raise OSError(f"{size:,} bytes do not fit: {free:,} are free, of which {DISK_RESERVE:,} stay free")
    for _, held, entry in entries:
        if total + size <= limit and free >= size + DISK_RESERVE:
            break
        _log.info("%s: removed, the least recently used, to make room", entry)
        entry.unlink(missing_ok=True)
        total, free = total - held, free + held


def _abandoned(entry: Path, age: float) -> bool:
    """Whether nobody writes a file any more: its writer's lock ends with the process, however that ends.

    `age`: seconds since it grew; not too few, for a lock may be unknown on another machine that shares the folder.
    """
    if age < _QUIET_SECONDS:
        return False
    try:
        file = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(file)


def _page_after(position: int) -> int:
    return -(-position // _PAGE) * _PAGE


def _sum(words: np.ndarray[Any, np.dtype[np.uint64]]) -> int:
    """Sum modulo 2^64."""
    return int(np.add.reduce(words, dtype=np.uint64)) if len(words) else 0


def _sum_bytes(values: np.ndarray[Any, np.dtype[np.uint8]]) -> int:
    whole = len(values) // 8 * 8
    return (_sum(values[:whole].view(np.uint64)) + int.from_bytes(values[whole:].tobytes(), "little")) % (1 << 64)
