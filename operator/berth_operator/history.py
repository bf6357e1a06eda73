"""Which decisions about a pool would a person want to know?  Told from what its status said before; each once.  Pure.

The record stands in the pool's status, so that a restart repeats nothing, and it is bounded.  A placement, a fallback
and a refusal are told when they are decided; a move and a return when they are done, because a trial that fails
(hardware that is tried again after a shortage) has changed nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Final

from berth_operator.api import Decision, format_time

MOST_DECISIONS: Final = 16
SERVED_BY_OTHERS: Final = "ServedByOthers"
_PLACING: Final = frozenset({"Placed", "Moved", "FellBack", "Returned", "NotPlaced"})
WARNINGS: Final = frozenset({"FellBack", "NotPlaced", "Refused", "RolloutFailed", SERVED_BY_OTHERS})


@dataclass(frozen=True, slots=True)
class Situation:
    """What is so now."""

    hardware: Collection[str] = ()
    """`CLASS/TYPE` of each placement of the plan, where it is applied."""
    placement: str = ""
    """Placements in words, with their price."""
    settled: bool = False
    """Whether all of it is ready and nothing else is left."""
    constrained: Collection[str] = ()
    """`CLASS/TYPE` that cannot be had, or no more of it."""
    refused: str | None = None
    """Why the spec is not accepted."""
    unplaced: str | None = None
    """Why an accepted pool that should run is placed nowhere."""
    failed: str | None = None
    """What has just come to stop a rollout."""
    contested: str | None = None
    """Which releases have just come to serve it, where that is more than one."""


def recorded(before: Sequence[Decision], now: datetime, seen: Situation) -> list[Decision]:
    """The record with what is new, oldest first."""
    out = list(before)
    for found in (_refusal(before, seen), _placing(before, seen), _failure(before, seen), _contest(before, seen)):
        if found is not None:
            reason, message, hardware = found
            out.append(
                Decision(
                    time=format_time(now), reason=reason, message=message[:1024], hardware=sorted(hardware) or None
                )
            )
    return out[-MOST_DECISIONS:]


def news(before: Sequence[Decision], after: Sequence[Decision]) -> list[tuple[Decision, str]]:
    """Decisions that are new, each with a name that it will have again should it have to be told again."""
    known = {decision.model_dump_json() for decision in before}
    last = before[-1].model_dump_json() if before else ""
    return [
        (decision, hashlib.sha256(f"{last}|{decision.reason}|{decision.message}".encode()).hexdigest()[:16])
        for decision in after
        if decision.model_dump_json() not in known
    ]


_Found = tuple[str, str, Collection[str]] | None


def _refusal(before: Sequence[Decision], seen: Situation) -> _Found:
    last = next((d for d in reversed(before) if d.reason in _PLACING | {"Refused"}), None)
    if seen.refused is None or (last and (last.reason, last.message) == ("Refused", seen.refused[:1024])):
        return None
    return "Refused", seen.refused, ()


def _placing(before: Sequence[Decision], seen: Situation) -> _Found:
    placings = [d for d in before if d.reason in _PLACING]
    last = placings[-1] if placings else None
    was, now = set(last.hardware or () if last else ()), set(seen.hardware)
    found: _Found = None
    lost = sorted(was & set(seen.constrained))
    if not now:
        if seen.unplaced is not None and not (last and last.reason == "NotPlaced"):
            found = "NotPlaced", seen.unplaced, ()
    elif not was:
        found = "Placed", f"placed on {seen.placement}", now
    elif lost and now - was:
        found = "FellBack", f"{', '.join(lost)} cannot be had for now: fell back to {seen.placement}", now
    elif was != now and seen.settled and not lost:
        returned = _fled_from(placings) & now
        how = "returned" if returned else f"moved from {', '.join(sorted(was))}"
        found = "Returned" if returned else "Moved", f"{how} to {seen.placement}", now
    return None if seen.refused is not None else found


def _fled_from(placings: Sequence[Decision]) -> set[str]:
    """Hardware that the pool was on before it fell back, unless it has returned or moved since."""
    found: set[str] = set()
    for before, after in pairwise(placings):
        if after.reason == "FellBack":
            found |= set(before.hardware or ())
        elif after.reason in ("Returned", "Moved"):
            found = set()
    return found


def _contest(before: Sequence[Decision], seen: Situation) -> _Found:
    """Once, though the release that has not seen the other one yet takes the condition away again."""
    last = before[-1] if before else None
    if seen.contested is None or (last and (last.reason, last.message) == (SERVED_BY_OTHERS, seen.contested[:1024])):
        return None
    return SERVED_BY_OTHERS, seen.contested, ()


def _failure(before: Sequence[Decision], seen: Situation) -> _Found:
    last = before[-1] if before else None
    if seen.failed is None or (last and (last.reason, last.message) == ("RolloutFailed", seen.failed[:1024])):
        return None
    return "RolloutFailed", seen.failed, ()
