"""The planner's inner loops, compiled (csrc/): plain C functions over numpy's arrays, called by way of ctypes.

Each module that uses one declares it (`function`) beside the Python function that says what it does.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

__all__ = ["FLAGS", "FLOATS", "INTS", "LENGTH", "NUMBER", "function", "trim"]

FLOATS: Final = np.ctypeslib.ndpointer(np.float64, flags="C_CONTIGUOUS")
INTS: Final = np.ctypeslib.ndpointer(np.int64, flags="C_CONTIGUOUS")
FLAGS: Final = np.ctypeslib.ndpointer(np.bool_, flags="C_CONTIGUOUS")
LENGTH: Final = ctypes.c_int64
NUMBER: Final = ctypes.c_double


def function(name: str, *arguments: Any) -> Callable[..., None]:
    """The compiled function `name`, which takes `arguments` (of the kinds above) and returns nothing.

    Arrays of another type or order raise ctypes.ArgumentError; ImportError where nothing was compiled.
    """
    found = _library()[name]
    found.argtypes, found.restype = arguments, None
    call: Callable[..., None] = found
    return call


def trim() -> None:
    """Give freed memory back to the system where the C library can (glibc's does so by itself at the end of its heap
    only): arrays of a whole fleet leave holes, which what is made next may not fit."""
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def _library() -> ctypes.CDLL:
    """Beside this file in a wheel; in an editable install, where the build backend's path entries say."""
    for folder in __path__:
        library = Path(folder) / "_native.so"
        if library.is_file():
            return ctypes.CDLL(str(library))
    raise ImportError("the planner's compiled loops are missing: pip install --no-build-isolation -e operator")
