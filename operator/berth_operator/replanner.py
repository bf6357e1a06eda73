"""Which plan counts now?  One made afresh; or, in a large fleet, the plan in force with what has changed planned anew.

A small fleet is solved to its optimum whenever anything that bears on the plan differs: its plan is a function of the
Snapshot alone.  A large one takes seconds, and near-optimal plans differ in many places for next to nothing.  So there
the plan in force counts as well, which is no state of ours: pools' statuses hold it, and a new leader restores it from
them.  How far it may fall behind is bounded: every few minutes, if anything has changed, all is planned afresh beside
the passes, and that plan is taken where it serves more or saves a stated share.  Where classes, prices or profiles have
changed, that is done at once, and the plan is taken: until then all but the pools that cannot stay go on as they were.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from berth_operator.planner import Plan, Planned, Snapshot, amended, better, carried, planned, restored

log = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 300.0
"""Between plans made afresh, while there are changes."""
SHORT_REFRESH_SECONDS: Final = 30.0
"""The same when demand has come to be unserved that others might make room for."""


class NotAmendableError(Exception):
    """The plan in force does not tell what these pools should get: all has to be planned."""


@dataclass(slots=True)
class Replanner:
    """The plan in force, in one process.  `solve` and `refresh` may run in two threads at once, each in one."""

    clock: Callable[[], float] = time.monotonic
    _last: Planned | None = None
    _amended: bool = False
    _behind: bool = False
    """Whether the plan in force is of other classes, prices or profiles than there are now."""
    _unserved: float = 0.0
    """Requests per second, in the last plan made afresh."""
    _fresh_at: float = field(default=-math.inf)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def solve(self, snapshot: Snapshot) -> Plan:
        """The plan of a snapshot."""
        last = self._last or restored(snapshot)
        found = amended(last, snapshot) if last else None
        behind = carried(last, snapshot) if last and found is None else None
        with self._lock:
            if behind is not None:
                found, self._amended, self._behind = behind, True, True
            elif found is None:
                found = planned(snapshot)
                self._amended = self._behind = False
                self._unserved, self._fresh_at = _unserved(found.plan), self.clock()
            elif found is not self._last:
                self._amended = True
            self._last = found
        return found.plan

    def amend(self, snapshot: Snapshot) -> Plan:
        """The plan in force with only those pools planned anew that differ.  Raises NotAmendableError."""
        last = self._last
        found = amended(last, snapshot) if last else None
        if found is None:
            raise NotAmendableError
        with self._lock:
            self._amended = self._amended or found is not last
            self._last = found
        return found.plan

    def forget(self) -> None:
        """Another replica leads: what we knew is not the plan in force any more."""
        with self._lock:
            self._last = None

    @property
    def refresh_due(self) -> bool:
        """Whether it is time to plan afresh beside the passes."""
        if not self._amended or self._last is None:
            return False
        if self._behind:
            return True
        shorter = _unserved(self._last.plan) > self._unserved + 1e-6
        return self.clock() - self._fresh_at >= (SHORT_REFRESH_SECONDS if shorter else REFRESH_SECONDS)

    def refresh(self) -> bool:
        """Plan afresh; return whether that plan is taken, so that a pass is due.  Takes seconds."""
        present = self._last
        if present is None:
            return False
        behind = self._behind
        fresh = planned(present.snapshot)
        taken = behind or better(fresh.plan, present.plan)
        with self._lock:
            self._fresh_at, self._unserved = self.clock(), _unserved((fresh if taken else present).plan)
            if taken:
                why = "classes, prices or profiles have changed" if behind else "serves more, or saves enough"
                log.info("planned afresh: %s", why)
                self._amended, self._behind = self._last is not present, False
                self._last = fresh
            elif self._last is present:
                self._amended = False
                self._last = _proven(present, fresh)
        return taken


def _proven(present: Planned, fresh: Planned) -> Planned:
    """The plan in force with the bound that planning afresh has found."""
    if not fresh.pool_bounds or present.cost <= 0:
        return present
    gap = max(0.0, (present.cost - fresh.bound) / present.cost)
    return replace(
        present,
        plan=replace(present.plan, gap=gap),
        bound=fresh.bound,
        duals=fresh.duals,
        pool_bounds=fresh.pool_bounds,
    )


def _unserved(plan: Plan) -> float:
    return sum(p.unserved_requests_per_second for p in plan.pools.values())
