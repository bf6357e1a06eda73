"""How much does the next step take on, so that streams that run keep flowing while prompts are read?

A step of decodes alone is the shortest that there can be. Beside running streams a step may take twice as long, or
`gap_seconds` if that is more, and what this leaves goes to chunks of prompts and to drafts. With no stream running
there is nobody to wait, and prompts are read at full speed.
"""

from __future__ import annotations

from collections.abc import Callable

from berth_worker.engine.cost import Load, Pace, StepCost
from berth_worker.engine.request import Request
from berth_worker.engine.scheduler import Scheduled, Scheduler
from berth_worker.engine.speculation import Drafter, drafts

__all__ = ["next_work"]

GAP_FACTOR = 2.0
"""A step may take so many times what its decodes alone would."""
DRAFT_SHARE = 0.25
"""Of the time that a step has beyond its decodes, what drafts may take while prompts wait for it too."""
LONE_FACTOR = 2.0
"""A stream that runs alone keeps nobody waiting: its drafts may take so many times as long."""


def next_work(
    scheduler: Scheduler, cost: StepCost, gap_seconds: float, drafter_of: Callable[[Request], Drafter | None]
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
    seconds = max(GAP_FACTOR * alone, gap_seconds)
    guesses = {}
    if drafters:
        share = seconds
        if scheduler.waiting or len(scheduler.running) > len(decoding):
            share = alone + (seconds - alone) * DRAFT_SHARE
        elif len(decoding) == 1:
            share = seconds * LONE_FACTOR
        guesses = drafts(drafters, load, Pace(cost, share), scheduler.token_budget - len(decoding))
    return scheduler.schedule(guesses, Pace(cost, seconds))
