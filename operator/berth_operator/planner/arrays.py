"""Arrays [pair, i] of the capacity model: pairs of hardware and load by turns in a replica.

They lie in memory column by column: a thousand pairs in a row, where there are few columns.
"""

from typing import Any, Final, TypeVar

import numpy as np

Array = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]
Flags = np.ndarray[tuple[Any, ...], np.dtype[np.bool_]]
Ints = np.ndarray[tuple[Any, ...], np.dtype[np.int64]]
Table = TypeVar("Table", Array, Flags)

TINY: Final = 1e-12


def some(values: Table, rows: Ints) -> Table:
    """Some of the pairs."""
    found: Table = np.take(values.T, rows, axis=1).T
    return found


def accumulated(operation: np.ufunc, values: Table) -> Table:
    """[pair, i] of the columns up to i."""
    found = values.copy(order="K")
    for column in range(1, values.shape[1]):
        operation(found[:, column - 1], found[:, column], out=found[:, column])
    return found
