"""Who comes in where more agents share the cache than it has room for?

A turn whose history has been pushed out of memory reads it again, and pushes out somebody else's: the more of them are
let in at once, the fewer turns find what they left, until all time goes into reading (thrashing; P. Denning, "The
working set model for program behavior", CACM 1968). So while such a turn waits, long prompts come in one at a time, in
order of arrival, each as soon as the one before is read and before anything else of its priority. Then

- reading takes no more memory from those who still have their histories than one prompt needs;
- who has lost his waits for no long prompt that came after his own (those in already are read to their ends), and once
  it is his turn for room only until those have ended that run by then: nobody else is let in before him.

Once in it is read by turns, like all others. Long is what one step cannot read. Such turns are told from new prompts
by where sequences ended that have run here, which is remembered for longer than their blocks. While none waits nothing
of this applies.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from berth_worker.engine.request import Request

__all__ = ["Histories", "next_in", "reads_long"]


class Histories:
    """The last full blocks of sequences that have ended here, known by their digests."""

    def __init__(self, most: int) -> None:
        """most: so many are remembered, the latest."""
        self._most = most
        self._ends: OrderedDict[bytes, None] = OrderedDict()

    def end(self, digests: Sequence[bytes]) -> None:
        """A sequence has ended; digests: of its full blocks."""
        if digests:
            self._ends[digests[-1]] = None
            self._ends.move_to_end(digests[-1])
            if len(self._ends) > self._most:
                self._ends.popitem(last=False)

    def lost(self, digests: Sequence[bytes], found: int) -> int:
        """Blocks of a prompt, beyond the first ones that were found, that were computed here and are gone."""
        for known in range(len(digests), found, -1):
            if digests[known - 1] in self._ends:
                return known - found
        return 0


def next_in(waiting: Sequence[Request], running: Sequence[Request]) -> Request | None:
    """Who of those that wait, sorted by place, comes in next, as soon as there is room; None: nobody yet."""
    if not any(r.lost for r in waiting):
        return waiting[0] if waiting else None
    if reads_long(running):
        return next((r for r in waiting if not r.long), None)
    long = min((r for r in waiting if r.long), key=lambda r: r.rank)
    return waiting[0] if waiting[0].priority > long.priority else long


def reads_long(running: Sequence[Request]) -> bool:
    """Whether a long prompt is in that is not read to its end."""
    return any(r.long and not r.decoding for r in running)
