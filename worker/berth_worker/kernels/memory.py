"""Where do weights and KV blocks live?  In anonymous memory on huge pages, where the system has them.

Decoding reads all of it again and again; 2 MiB pages save most of the address translation (31 -> 43 GB/s measured).
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import weakref
from typing import Final, Protocol

import torch
from torch import Tensor

__all__ = ["fill_in", "huge_zeros"]

_HUGE_PAGE: Final = 1 << 21
_AT_ONCE: Final = 4 * _HUGE_PAGE
_POPULATE_WRITE: Final = 23
"""MADV_POPULATE_WRITE of Linux 5.14: as if each page were written, with what it holds."""


def huge_zeros(size: int) -> Tensor:
    """uint8 [size], zeros, aligned to a page; the system gives the memory when it is first written.

    Raises MemoryError if there is no room for it.
    """
    try:
        memory = mmap.mmap(-1, -(-size // _HUGE_PAGE) * _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, ValueError) as error:
        raise MemoryError(f"{size:,} bytes") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)[:size]


class _Holder(Protocol):
    data: Tensor


def fill_in(holder: _Holder) -> threading.Thread:
    """Have the system give the memory of `holder.data` now, in a thread of its own, which this returns.

    data: contiguous, of `huge_zeros`; what is written to it meanwhile stays.  The thread ends early once nobody else
    holds the holder, when the process ends, or where the system cannot do so: then memory is given when it is first
    written.
    """
    start, size, held = holder.data.data_ptr(), holder.data.nbytes, weakref.ref(holder)
    # No daemon: the process waits for it (one call).  It may be the last to hold the tensor, and to let go of that
    # while the interpreter is taken down ends in std::terminate.
    thread = threading.Thread(target=_fill_in, args=(held, start, size), name="berth-memory")
    thread.start()
    return thread


def _fill_in(held: weakref.ref[_Holder], start: int, size: int) -> None:
    madvise = getattr(ctypes.CDLL(None), "madvise", None)  # not mmap's: that one keeps Python's lock
    for at in range(start, start + size, _AT_ONCE):
        holder = held()  # for as long as the call takes
        if madvise is None or holder is None or not threading.main_thread().is_alive():
            return
        if madvise(ctypes.c_void_p(at), ctypes.c_size_t(min(_AT_ONCE, start + size - at)), _POPULATE_WRITE) != 0:
            return
        del holder
