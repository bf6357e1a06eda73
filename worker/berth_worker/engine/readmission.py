"""When should a client that finds the queue full ask again?  When it is its turn, as far as one can tell.

Each one that is refused is given the next place that comes free, so that those who were refused together do not come
back together.  Places come free as often as requests end: by Little's law, those that run divided by the seconds that
one of them runs.  Nobody is bound to come, or to stay away: a place is kept for none of them.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence

__all__ = ["LEAST_SECONDS", "MOST_SECONDS", "Readmission"]

LEAST_SECONDS = 0.5
"""What OpenAI's client waits at first where it is told nothing."""
MOST_SECONDS = 60.0
"""Clients that are told to wait longer come back earlier instead: OpenAI's up to 2.x, Anthropic's."""
MARGIN = 1.25
"""Fewer come back than places come free, or one in two would find that another was faster.  Those that wait in the
queue keep the model busy meanwhile."""
JITTER = 0.2
UNKNOWN_SECONDS = 1.0
"""A request is taken to run until one has ended; then on the average half of the time of those that run has passed."""
ENDED = 64
"""Requests that the estimate looks back on."""


class Readmission:
    """Of one engine; whoever calls holds its lock."""

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        """chance: 0 to 1, anew at each call."""
        self._chance = chance
        self._ran: deque[float] = deque(maxlen=ENDED)
        self._given = 0.0
        """When the last place comes free that somebody was told of."""

    def ended(self, seconds: float) -> None:
        """A request has left that had run for so long."""
        self._ran.append(seconds)

    def seconds(self, now: float, running: Sequence[float]) -> float:
        """How long one that is refused now should wait.  running: seconds for which each request runs that does."""
        age = sum(running) / len(running) if running else 0.0
        lasts = max(sum(self._ran) / len(self._ran), age) if self._ran else max(UNKNOWN_SECONDS, 2 * age)
        place = max(self._given, now) + MARGIN * lasts / max(1, len(running))
        self._given = min(place, now + MOST_SECONDS)
        if place > self._given:
            return MOST_SECONDS * (1 - self._chance() / 4)
        wait = (place - now) * (1 + JITTER * self._chance())
        return min(max(wait, LEAST_SECONDS * (1 + self._chance())), MOST_SECONDS)
