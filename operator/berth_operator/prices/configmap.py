"""Which prices does a ConfigMap hold?  A list in YAML, and the time that all of them are of.

    data:
      asOf: "2026-11-21T12:00:00Z"
      prices: |
        - {hardwareClass: l4, capacityType: Spot, usdPerHour: "0.31"}

Pure.  A line that cannot be read is named and the others are used.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import yaml

from berth_operator.api import CapacityType, parse_decimal
from berth_operator.prices.quotes import Key, Quote

BAD_YAML: Final = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError)
"""What PyYAML raises; all but the first where a value is no value of its type, such as 2026-02-30 or `!!int many`."""
_FIELDS: Final = ("hardwareClass", "capacityType", "usdPerHour")


def read_prices(name: str, data: Mapping[str, str]) -> tuple[dict[Key, Quote], list[str]]:
    """Quotes in the ConfigMap `name` (`namespace/name`), and what is wrong with it."""
    source = f"ConfigMap {name}"
    try:
        as_of = datetime.fromisoformat(data.get("asOf", ""))
    except ValueError:
        return {}, [f'{source}: data.asOf: found {data.get("asOf")!r}: write a time such as "2026-11-21T12:00:00Z"']
    if as_of.tzinfo is None:
        return {}, [f"{source}: data.asOf: found {data['asOf']!r}: it needs a time zone, such as Z at its end"]
    try:
        rows = yaml.safe_load(data.get("prices", ""))
    except BAD_YAML as error:
        return {}, [f"{source}: data.prices: is not valid YAML: {str(error).splitlines()[0]}"]
    if not isinstance(rows, list):
        return {}, [f"{source}: data.prices: write a list of {{{', '.join(_FIELDS)}}}"]
    quotes: dict[Key, Quote] = {}
    problems: list[str] = []
    for number, row in enumerate(rows, start=1):
        try:
            key, usd = _row(row)
        except ValueError as error:
            problems.append(f"{source}: data.prices: entry {number}: {error}")
            continue
        if key in quotes:
            problems.append(f"{source}: data.prices: entry {number}: {key[0]} {key[1].value} is there twice: keep one")
            continue
        quotes[key] = Quote(usd, source, as_of)
    return quotes, problems


def _row(row: Any) -> tuple[Key, Any]:
    if not isinstance(row, dict) or set(row) != set(_FIELDS):
        raise ValueError(f"found {row!r}: write {{{', '.join(_FIELDS)}}}")
    try:
        kind = CapacityType(row["capacityType"])
    except ValueError:
        raise ValueError(f"capacityType: found {row['capacityType']!r}: write OnDemand or Spot") from None
    if kind is CapacityType.RESERVED:
        raise ValueError("capacityType: Reserved nodes are already paid: leave them out")
    return (str(row["hardwareClass"]), kind), parse_decimal(row["usdPerHour"])
