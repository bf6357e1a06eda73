"""Which statuses can wait a moment?  Those of pools that are starting, in which only more workers have become ready.

A pool's workers become ready one after the other, and who waits for the pool waits for the last of them.  So while some
are missing, their number is told now and then; that all are ready, and everything else, is told at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Final

from berth_operator.api import InferencePoolStatus
from berth_operator.settling import settled

STARTING_SECONDS: Final = 30.0
"""Between two statuses that tell of nothing but workers that have become ready."""
_READINESS: Final = frozenset({"Ready", "Progressing", "Available"})


def can_wait(old: InferencePoolStatus, new: InferencePoolStatus) -> bool:
    """Whether `new` says nothing but how many of a starting pool's workers are ready."""
    if not (_starting(old) and _starting(new)):
        return False
    return settled(_without_readiness(old), _without_readiness(new))


def _starting(status: InferencePoolStatus) -> bool:
    return any(c.type == "Progressing" and c.reason == "Starting" for c in status.conditions or ())


def _without_readiness(status: InferencePoolStatus) -> dict[str, Any]:
    body = status.to_api() | {"ready": ""}
    body["placements"] = [placed | {"readyReplicas": 0} for placed in body.get("placements", ())]
    body["conditions"] = [c for c in body.get("conditions", ()) if c["type"] not in _READINESS]
    return body


@dataclass(slots=True)
class Pace:
    """When each pool's status was last written, in this process."""

    clock: Callable[[], float] = time.monotonic
    _written: dict[str, float] = field(default_factory=dict)
    _due: dict[str, float] = field(default_factory=dict)

    def due(self, pool: str, old: InferencePoolStatus, new: InferencePoolStatus) -> bool:
        """Whether to write now; else `in_s` tells when to look again."""
        at = self._written.get(pool, -math.inf) + STARTING_SECONDS
        if at > self.clock() and can_wait(old, new):
            self._due[pool] = at
            return False
        self._due.pop(pool, None)
        return True

    def wrote(self, pool: str) -> None:
        """A pool's status has been written."""
        self._written[pool] = self.clock()

    def keep_only(self, pools: Collection[str], unwritten: Collection[str]) -> None:
        """Forget the pools that are no more, and that those wait whose status says what is so."""
        for known, kept in ((self._written, pools), (self._due, unwritten)):
            for pool in known.keys() - set(kept):
                del known[pool]

    def in_s(self) -> list[float]:
        """Seconds until the first status that waits is due."""
        return [max(0.0, min(self._due.values()) - self.clock())] if self._due else []
