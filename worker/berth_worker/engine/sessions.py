"""Which blocks are kept for an agent that is away, calling a tool?

When a turn ends, the blocks of its prompt and output are pinned for its session: other traffic does not reuse them, and
the session's next turn finds its prefix. They are unpinned when the session's next turn ends (which pins its own), when
the session has not come back in time, or under memory pressure, whole sessions, because a prefix without its beginning
is worth nothing: the least recently used first, and of those whose next turn waits already the one that is furthest
from its turn. Unpinned blocks keep their content until they are taken like all others.

The last block, seldom full, is kept too: the next turn goes on in a copy of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from berth_worker.engine.blocks import BlockManager

__all__ = ["Sessions"]


class Sessions:
    """Sessions that are retained, over one BlockManager. Times are seconds on the caller's clock."""

    def __init__(self, blocks: BlockManager, seconds: float) -> None:
        """seconds: how long a session is kept after its last turn began or ended; 0 keeps none."""
        self._blocks = blocks
        self._seconds = seconds
        self._kept: OrderedDict[str, tuple[list[int], float]] = OrderedDict()
        """session to (blocks, last use), least recently used first."""

    def __len__(self) -> int:
        return len(self._kept)

    def retain(self, session_id: str, digests: Sequence[bytes], now: float) -> None:
        """Keep the published blocks of these digests for the session, in place of what was kept for it before.

        As many sessions as there are blocks are kept at most, because sessions can share all of theirs.
        """
        if not session_id or not digests or not self._seconds:
            return
        pinned = self._blocks.find_prefix(digests)
        self._blocks.pin(pinned)
        self._drop(session_id)
        self._kept[session_id] = (pinned, now)
        if len(self._kept) > self._blocks.num_blocks:
            self.reclaim()

    def touch(self, session_id: str, now: float) -> None:
        """The session's next turn has come or begun."""
        if session_id in self._kept:
            self._kept[session_id] = (self._kept[session_id][0], now)
            self._kept.move_to_end(session_id)

    def expire(self, now: float) -> None:
        """Let go of sessions that did not come back in time."""
        while self._kept and now - next(iter(self._kept.values()))[1] > self._seconds:
            self.reclaim()

    def reclaim(self, awaiting: Sequence[str] = ()) -> bool:
        """Let go of the session that is used last, as far as can be told; False if there is none.

        awaiting: sessions whose next turns are to run, in that order; all others are taken to come later.
        """
        if not self._kept:
            return False
        place = {session: index for index, session in reversed(list(enumerate(awaiting)))}
        away = next((session for session in self._kept if session not in place), None)
        self._drop(max(self._kept, key=place.__getitem__) if away is None else away)
        return True

    def _drop(self, session_id: str) -> None:
        if (kept := self._kept.pop(session_id, None)) is not None:
            self._blocks.unpin(kept[0])
