"""Where do weights and KV blocks live?  In anonymous memory on huge pages, where the system has them.

Decoding reads all of it again and again; 2 MiB pages save most of the address translation (31 -> 43 GB/s measured).
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Final, Protocol

import torch
from torch import Tensor

__all__ = ["fill_in", "huge_zeros"]

_HUGE_PAGE: Final = 1 << 21
_POPULATE_WRITE: Final = 23
"""MADV_POPULATE_WRITE of Linux 5.14: as if each page were written, with what it holds."""
_REST: Final = 9
"""Times what the last call took: a tenth of a processor is what steps give up meanwhile."""


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


def fill_in(holder: _Holder, parts: int = 1) -> threading.Thread:
    """Have the system give the memory of `holder.data` now, in a thread of its own, which this returns.

    data: contiguous, of `huge_zeros`; what is written to it meanwhile stays.  It consists of so many parts of the same
    size, whose beginnings are wanted first: all get their first page at once, then their second and so on, with rests,
    because steps share the processors.  (A low priority would not do: who waits for a processor in the middle of a call
    holds the process's memory map, for which page faults of all other threads then wait.)  The thread ends early once
    nobody else holds the holder, when the process ends, or where the system cannot do so: then memory is given when it
    is first written.
    """
    start, size, held = holder.data.data_ptr(), holder.data.nbytes, weakref.ref(holder)
    # No daemon: the process waits for it (one call).  It may be the last to hold the tensor, and to let go of that
    # while the interpreter is taken down ends in std::terminate.
    thread = threading.Thread(target=_fill_in, args=(held, start, size, parts), name="berth-memory")
    thread.start()
    return thread


def _fill_in(held: weakref.ref[_Holder], start: int, size: int, parts: int) -> None:
    madvise = getattr(ctypes.CDLL(None), "madvise", None)  # not mmap's: that one keeps Python's lock
    for place, page in _pages(start, size, parts):
        holder = held()  # for as long as the call takes
        if madvise is None or holder is None or not threading.main_thread().is_alive():
            return
        began = time.monotonic()
        if madvise(ctypes.c_void_p(page), ctypes.c_size_t(min(_HUGE_PAGE, start + size - page)), _POPULATE_WRITE) != 0:
            return
        del holder
        if place:
            time.sleep(_REST * (time.monotonic() - began))


def _pages(start: int, size: int, parts: int) -> Iterator[tuple[int, int]]:
    """Huge pages, counted from `start`, in which parts lie: the first of each, then the second, and so on.

    Each as its place in its part, from 0, and its address.  A page in which one part ends and the next one begins comes
    for the second one; every other comes once.
    """
    edges = [size * part // parts // _HUGE_PAGE for part in range(parts)] + [-(-size // _HUGE_PAGE)]
    spans = list(itertools.pairwise(edges))
    for place in range(max(last - first for first, last in spans)):
        for first, last in spans:
            if first + place < last:
                yield place, start + (first + place) * _HUGE_PAGE
