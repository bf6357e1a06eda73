"""Whose prompt is read next?

The one that would be read to its end first if all were read side by side, at equal shares. Prompts of one length go in
order of arrival; one of a few tokens does not wait behind a long one that came before it, nor does a stream of short
ones hold a long one up for longer than sharing would: none is read later than if all were read side by side, and none
side by side with another (the fair sojourn protocol; E. Friedman and S. Henderson, "Fairness and efficiency in web
server protocols", SIGMETRICS 2003). It needs to be known what there is to read, which for prompts it is.
"""

from __future__ import annotations

from heapq import heappop, heappush

__all__ = ["Turns"]

_ROUNDING = 1e-6
"""Tokens. Ends are sums of shares; without it a prompt read to its end could stay as one that is not."""


class Turns:
    """How far each prompt would be read by now if all were read side by side; in tokens, whatever they take."""

    def __init__(self) -> None:
        self._shared = 0.0
        """Tokens that a prompt which was always there would have been read."""
        self._ends: list[float] = []
        """Of prompts that would not be read to their ends yet: `_shared` at their ends; a heap."""

    def enter(self, tokens: int) -> float:
        """Take in a prompt with so many tokens to read: when its turn is, the earlier the lower."""
        end = self._shared + tokens
        heappush(self._ends, end)
        return end

    def read(self, tokens: int) -> None:
        """So many tokens of any prompts have been read, or need no reading any more."""
        left = float(tokens)
        while self._ends:
            until_first = (self._ends[0] - self._shared) * len(self._ends)
            if left < until_first - _ROUNDING:
                self._shared += left / len(self._ends)
                return
            left = max(left - until_first, 0.0)
            self._shared = heappop(self._ends)

    def rest(self) -> None:
        """No prompt is there that is not read: whoever enters now comes after all before."""
        if self._ends:
            self._shared = max(self._ends)
            self._ends.clear()
