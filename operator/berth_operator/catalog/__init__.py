"""Which kinds of node are there, and what is known of each?  Pure data, each figure with its source.

What is not published stays empty.  Chips that nobody can rent, or that no price is known for, are there for what-if
questions and marked so.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from berth_operator.catalog import arm, gpus
from berth_operator.catalog.entry import Entry, hardware_class, manifest

CATALOG: Final[Mapping[str, Entry]] = MappingProxyType({entry.name: entry for entry in (*arm.ENTRIES, *gpus.ENTRIES)})
"""Every entry by its name, CPUs first."""

__all__ = ["CATALOG", "Entry", "hardware_class", "manifest"]
