"""Which blocks are kept for an agent that is away, calling a tool, or for a request that waits?

When a turn ends, the blocks of its prompt and output are pinned for its session: other traffic does not reuse them, and
the session's next turn finds its prefix. They are unpinned when the session's next turn ends (which pins its own), when
the session has not come back in time, or under memory pressure, whole sessions, because a prefix without its beginning
is worth nothing: the least recently used first, and of those whose next turn waits already the one that is furthest
from its turn. Unpinned blocks keep their content until they are taken like all others.

The last block, seldom full, is kept too: the next turn goes on in a copy of it.

A request that waits has what it would find pinned for itself, too, until it gets in: most clients name no session. One
that has lost most of its history waits long (`histories.py`), and has nothing pinned: others use that memory sooner.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from berth_worker.engine.blocks import BlockManager

__all__ = ["Sessions"]

Keeper = str | int
"""A session's name, or the arrival of a request that waits."""


class Sessions:
    """Sessions that are retained, over one BlockManager. Times are seconds on the caller's clock."""

    def __init__(self, blocks: BlockManager, seconds: float) -> None:
        """seconds: how long a session is kept after its last turn began or ended; 0 keeps none."""
        self._blocks = blocks
        self._seconds = seconds
        self._kept: OrderedDict[Keeper, tuple[Sequence[int], float]] = OrderedDict()
        """For whom, to (blocks, last use), least recently used first."""

    def __len__(self) -> int:
        """Sessions; requests that wait are not counted."""
        return sum(isinstance(keeper, str) for keeper in self._kept)

    def retain(self, session_id: str, digests: Sequence[bytes], now: float) -> None:
        """Keep the published blocks of these digests for the session, in place of what was kept for it before.

        As many sessions as there are blocks are kept at most, because sessions can share all of theirs.
        """
        if not session_id or not digests or not self._seconds:
            return
        self._keep(session_id, self._blocks.find_prefix(digests), now)
        if len(self._kept) > self._blocks.num_blocks:
            self.reclaim()

    def await_turn(self, arrival: int, found: Sequence[int], now: float) -> None:
        """Keep these published blocks for the request of that arrival, until `admit` or as sessions are kept."""
        if found and self._seconds:
            self._keep(arrival, found, now)

    def admit(self, arrival: int) -> None:
        """The request waits no more."""
        self._drop(arrival)

    def touch(self, session_id: str, now: float) -> None:
        """The session's next turn has come or begun."""
        if session_id in self._kept:
            self._kept[session_id] = (self._kept[session_id][0], now)
            self._kept.move_to_end(session_id)

    def expire(self, now: float) -> None:
        """Let go of sessions that did not come back in time."""
        while self._kept and now - next(iter(self._kept.values()))[1] > self._seconds:
            self.reclaim()

    def reclaim(self, awaiting: Sequence[Keeper] = ()) -> bool:
        """Let go of what is used last, as far as can be told; False if there is nothing.

        awaiting: requests that wait and their sessions, in the order in which they are to run; all others are taken to
        come later.
        """
        if not self._kept:
            return False
        place = {keeper: index for index, keeper in reversed(list(enumerate(awaiting)))}
        away = next((keeper for keeper in self._kept if keeper not in place), None)
        self._drop(max(self._kept, key=place.__getitem__) if away is None else away)
        return True

    def _keep(self, keeper: Keeper, blocks: Sequence[int], now: float) -> None:
        self._blocks.pin(blocks)
        self._drop(keeper)
        self._kept[keeper] = (blocks, now)

    def _drop(self, keeper: Keeper) -> None:
        if (kept := self._kept.pop(keeper, None)) is not None:
            self._blocks.unpin(kept[0])
