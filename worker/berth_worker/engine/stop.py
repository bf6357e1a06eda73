"""Where does a request's text end?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from berth_worker.model.interface import TokenStream

__all__ = ["StopText"]


class StopText:
    """A request's text as it comes, cut at the first stop string.

    Text that may be the beginning of a stop string is held back until it is known not to be.
    """

    def __init__(self, stream: TokenStream, stop: Sequence[str]) -> None:
        self._stream = stream
        self._stop = stop
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Text that is certain once this token is in; sets `stopped` when a stop string is complete."""
        return self._release(self._stream.push(token))

    def flush(self) -> str:
        """What is left when generation ended for another reason than a stop string."""
        if self.stopped:
            return ""
        text = self._release(self._stream.flush())
        if not self.stopped:
            text += self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        if not self._stop:
            return text
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of text that are the beginning of stop."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
