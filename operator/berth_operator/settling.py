"""What of a status is news?  What only wavers, and what only a clock or a count has changed, is not written.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from berth_operator.api import Condition, format_time
from berth_operator.api.meta import Facts

_DEAD_BAND: Final = 0.02
_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT[\d:]+")


def settled(old: object, new: object, path: str = "") -> bool:
    """Whether `new` says the same as `old`: equal, but for numbers of prices and predictions within 2 %.

    The dead band holds only where a figure is an estimate or a price; counts, specs and verdicts must be equal.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return old.keys() == new.keys() and all(settled(old[k], new[k], f"{path}.{k}") for k in new)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(settled(a, b, f"{path}[]") for a, b in zip(old, new, strict=True))
    if old == new:
        return True
    return _jitters(path) and _near(str(old), str(new))


def _jitters(path: str) -> bool:
    return path.startswith((".cost.", ".prices[]", ".saved")) or path in {
        ".conditions[].message",
        ".candidates[].reason",
        ".candidates[].usdPerMillionTokens",
        ".placements[].usdPerHour",
        ".placements[].trafficPercent",
        ".effective.requestsPerSecond",
    }


def _near(old: str, new: str) -> bool:
    if _NUMBER.split(old) != _NUMBER.split(new) or _TIME.findall(old) != _TIME.findall(new):
        return False
    pairs = zip(_NUMBER.findall(old), _NUMBER.findall(new), strict=True)
    return all(a == b or abs(float(a) - float(b)) <= _DEAD_BAND * max(float(a), float(b)) for a, b in pairs)


def condition(kind: str, facts: Facts, old: Mapping[str, Condition], generation: int, now: datetime) -> Condition:
    """A condition that says these facts; its time is the old one's where its status is."""
    status, reason, message = facts
    previous = old.get(kind)
    since = previous.last_transition_time if previous and previous.status == status else format_time(now)
    return Condition(
        type=kind,
        status=status,
        reason=reason,
        message=message,
        observed_generation=generation,
        last_transition_time=since,
    )


def same_words(facts: Facts, old: Condition | None) -> Facts:
    """Facts in the words in force, where only numbers in them differ: a worker's last line may begin with the time."""
    if old and (old.status, old.reason) == facts[:2] and _NUMBER.split(old.message) == _NUMBER.split(facts[2]):
        return (facts[0], facts[1], old.message)
    return facts
