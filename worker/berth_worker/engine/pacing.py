"""How much does the next step take on, so that streams that run keep flowing while prompts are read?

A step of decodes alone is the shortest that there can be. Beside running streams a step may take twice as long, or
`gap_seconds` if that is more, but never longer than was promised between tokens; what this leaves goes to chunks of
prompts and to drafts. With no stream running there is nobody to wait, and prompts are read at full speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from berth_worker.engine.cost import Load, Pace, StepCost
from berth_worker.engine.request import Request
from berth_worker.engine.scheduler import Scheduled, Scheduler
from berth_worker.engine.speculation import Drafter, drafts

__all__ = ["Gaps", "next_work"]

GAP_FACTOR = 2.0
"""A step may take so many times what its decodes alone would."""
DRAFT_SHARE = 0.25
"""Of the time that a step has beyond its decodes, what drafts may take while prompts wait for it too."""
LONE_FACTOR = 2.0
"""A stream that runs alone keeps nobody waiting: its drafts may take so many times as long."""


@dataclass(frozen=True, slots=True)
class Gaps:
    """How long running streams may wait for their next token while other work is done, seconds."""

    idle: float = 0.02
    """At most so long, or twice as long as they would without it if that is more."""
    promised: float = math.inf
    """Never longer, as far as decodes alone take less."""

    def step(self, alone: float) -> float:
        """Seconds that a step may take whose decodes alone take so many."""
        return min(max(GAP_FACTOR * alone, self.idle), self.promised)


def next_work(
    scheduler: Scheduler, cost: StepCost, gaps: Gaps, drafter_of: Callable[[Request], Drafter | None]
) -> list[Scheduled]:
    """The next step's work; see Scheduler.schedule. drafter_of: who guesses for a request, None for nobody."""
    decoding = [request for request in scheduler.running if request.decoding]
    if not decoding:
        return scheduler.schedule()
    load = Load()
    drafters = []
    for request in decoding:
        load.add(request.computed, 1, 1)
        if (drafter := drafter_of(request)) is not None:
            drafter.look()
            if drafter.guess:
                drafters.append(drafter)
    alone = cost.predict(load)
    seconds = gaps.step(alone)
    guesses = {}
    if drafters:
        share = seconds
        if scheduler.waiting or len(scheduler.running) > len(decoding):
            share = alone + (seconds - alone) * DRAFT_SHARE
        elif len(decoding) == 1:
            share = min(seconds * LONE_FACTOR, gaps.promised)
        guesses = drafts(drafters, load, Pace(cost, share), scheduler.token_budget - len(decoding))
    return scheduler.schedule(guesses, Pace(cost, seconds))
