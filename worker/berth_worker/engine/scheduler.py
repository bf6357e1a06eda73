"""Which tokens run in the next step?

Continuous batching with chunked prefill: every request that decodes gets its row and those of its draft, then prompts
are read, by turns, with what is left of the step's token budget and, beside running streams, of the time that these may
be kept waiting; one whose turn it is gets in when there is a slot and room for its whole prompt, and long ones one at a
time where agents' histories do not all fit (`histories.py`).
When a decoding request finds no block, the request that goes last gives all of its own up and is recomputed later.
Pure and single-threaded: the engine's lock is the only guard.
"""

from __future__ import annotations

from array import array
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from berth_worker.engine.batch import BLOCK_TOKENS
from berth_worker.engine.blocks import BlockManager, blocks_for, extend_digests, tail_digest
from berth_worker.engine.cost import Load, Pace
from berth_worker.engine.histories import Histories, next_in, reads_long
from berth_worker.engine.request import Request, State
from berth_worker.engine.sessions import Sessions
from berth_worker.engine.turns import Turns

__all__ = ["QueueFullError", "Scheduled", "Scheduler"]

LEAST_CHUNK = 4
"""Rows of a prompt that a step runs at least, whatever the pace: a prompt always gets on."""


class QueueFullError(RuntimeError):
    """As many requests run and wait as are allowed to."""

    retry_seconds: float = 1.0
    """When it is worth to ask again, in seconds from now."""


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Tokens start ... start + count - 1 of a request run in this step, and after them a draft of what comes next."""

    request: Request
    start: int
    count: int
    draft: Sequence[int] = ()

    @property
    def rows(self) -> int:
        """Rows of the step, those of the draft included."""
        return self.count + len(self.draft)

    @property
    def samples(self) -> bool:
        """Whether the step computes the request's last token, so that the next one can be sampled."""
        return self.start + self.count == len(self.request.tokens)


class Scheduler:
    """Requests that wait and run, over one BlockManager."""

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_running: int,
        max_waiting: int,
        token_budget: int,
        session_seconds: float = 0.0,
    ) -> None:
        """max_running: requests in one step; max_waiting: beyond them; token_budget: rows of one step;
        session_seconds: how long a session's blocks are kept for its next turn."""
        if max_running < 1:
            raise ValueError(f"max_running: {max_running}; at least 1")
        if max_waiting < 0:
            raise ValueError(f"max_waiting: {max_waiting}; 0 or more")
        if token_budget < max_running:
            raise ValueError(f"token_budget: {token_budget}; at least max_running ({max_running}): one row a request")
        self.blocks = blocks
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.token_budget = token_budget
        self.sessions = Sessions(blocks, session_seconds)
        self.now = 0.0
        self.waiting: list[Request] = []
        """Sorted by place."""
        self.running: list[Request] = []
        """Sorted by rank."""
        self.turns = Turns()
        self.histories = Histories(blocks.num_blocks)
        self.copies: list[tuple[int, int]] = []
        """Blocks to copy, (from, to), before the scheduled step writes anything; `complete` forgets them."""
        self.preemptions = 0
        self.prefix_queried = 0
        """Tokens looked up in the prefix cache since the start."""
        self.prefix_hits = 0
        """Of those, tokens found."""

    @property
    def idle(self) -> bool:
        """Nothing runs or waits."""
        return not self.waiting and not self.running

    def add(self, request: Request) -> None:
        """Queue a request. Raises QueueFullError when max_running + max_waiting are in already."""
        inside = len(self.waiting) + len(self.running)
        if inside >= self.max_running + self.max_waiting:
            raise QueueFullError(
                f"{len(self.running)} requests run and {len(self.waiting)} wait; "
                f"at most {self.max_running} run and {self.max_waiting} wait"
            )
        most = len(request.tokens) + request.max_tokens
        if blocks_for(most) > self.blocks.num_blocks:
            raise ValueError(f"{most} tokens never fit in {self.blocks.num_blocks} blocks of {BLOCK_TOKENS}")
        self.sessions.touch(request.session_id, max(self.now, request.arrived))
        if not self.waiting and all(r.decoding for r in self.running):
            self.turns.rest()
        self._queue(request)

    def tick(self, now: float) -> None:
        """Seconds on a clock that never goes back: sessions that stayed away too long are let go of."""
        self.now = now
        self.sessions.expire(now)

    def schedule(
        self, drafts: Mapping[Request, Sequence[int]] | None = None, pace: Pace | None = None
    ) -> list[Scheduled]:
        """The next step's work, blocks included; empty only when idle. After the step, call `complete`.

        drafts: tokens to try after those of requests that decode; left out where rows or free blocks are short.
        pace: how long the step may keep streams waiting; without one, prompts take all that the token budget leaves.
        """
        before = self.preemptions
        work = self._decodes()
        budget = self.token_budget - len(work)
        if drafts:
            for index, item in enumerate(work):
                work[index] = self._with_draft(item, drafts.get(item.request, ()), budget)
                budget -= len(work[index].draft)
        chunks = _Chunks(work, budget, pace if work else None)
        reading = sorted((r for r in self.running if not r.decoding), key=lambda r: r.place, reverse=True)
        may_admit = self.preemptions == before
        while chunks.room > 0:
            first = next_in(self.waiting, self.running)
            ahead = first is not None and (not reading or first.place < reading[-1].place)
            if first and ahead and may_admit and self._admit(first):
                self._read(first, chunks.add(first))
            elif reading:
                may_admit = may_admit and not ahead
                self._catch_up(reading[-1])
                self._read(reading[-1], chunks.add(reading.pop()))
            else:
                break
        return work

    def complete(self, work: Sequence[Scheduled]) -> None:
        """The step ran, copies first, and what was sampled is in `tokens`: KV that stands for these is in the blocks.

        Full blocks can be shared from now on. The KV of draft tokens that did not come is forgotten: it stands beyond
        `computed`, where the next step writes before it reads, and blocks that hold nothing else are given back.
        """
        self.copies.clear()
        for item in work:
            request = item.request
            before = request.computed // BLOCK_TOKENS
            request.computed = min(item.start + item.rows, len(request.tokens) - 1)
            full = request.computed // BLOCK_TOKENS
            if full > before:
                extend_digests(request.digests, request.tokens, full)
                for index in range(before, full):
                    self.blocks.publish(request.blocks[index], request.digests[index])
            needed = blocks_for(len(request.tokens))
            if len(request.blocks) > needed:
                self.blocks.release(request.blocks[needed:])
                del request.blocks[needed:]

    def finish(self, request: Request) -> None:
        """Let go of a request, wherever it stands, and keep its blocks for its session.

        A second call does nothing. Never between schedule and complete.
        """
        if request.state is State.RUNNING:
            self.running.remove(request)
            self.sessions.retain(request.session_id, self._publish(request), self.now)
            self.histories.end(request.digests[: request.computed // BLOCK_TOKENS])
            self._release(request)
        elif request.state is State.WAITING and request in self.waiting:
            self.waiting.remove(request)
            self.sessions.admit(request.arrival)
        request.state = State.FINISHED
        self._read(request, request.unread)

    def _decodes(self) -> list[Scheduled]:
        """A row for each request that decodes, first in rank first; those last in rank make room."""
        work: list[Scheduled] = []
        for request in list(self.running):
            if not request.decoding:
                continue
            while request.state is State.RUNNING and len(request.blocks) < blocks_for(len(request.tokens)):
                if self._make_free(1):
                    request.blocks.append(self.blocks.take())
                else:
                    self._preempt(self.running[-1])  # never one that has its row already: they come in order of rank
            if request.state is State.RUNNING:
                work.append(Scheduled(request, request.computed, 1))
        return work

    def _with_draft(self, item: Scheduled, draft: Sequence[int], budget: int) -> Scheduled:
        """The item and as much of the draft as rows and free blocks allow: a draft pushes nobody out."""
        request = item.request
        known = len(request.tokens)
        length = min(len(draft), budget, (len(request.blocks) + self.blocks.free) * BLOCK_TOKENS - known)
        if length < 1:
            return item
        while len(request.blocks) < blocks_for(known + length):
            request.blocks.append(self.blocks.take())
        return Scheduled(request, item.start, item.count, draft[:length])

    def _admit(self, request: Request) -> bool:
        """Let a waiting request in, with blocks for all of its tokens, if there is room."""
        if len(self.running) >= self.max_running:
            return False
        shared = self._find_prefix(request)
        own = blocks_for(len(request.tokens)) - len(shared)
        missing = len(request.tokens) - BLOCK_TOKENS * len(shared)
        if missing > self.token_budget and not request.long and request.generated == 0:
            request.long = request.lost = True  # what was kept for it had to make room
            if reads_long(self.running):
                return False
        reserve = len(self.running)  # a block for each to grow into, so that letting one in does not push one out
        if own + self.blocks.idle_among(shared) + reserve > self.blocks.free + self.blocks.retained:
            return False
        self.waiting.remove(request)
        self.sessions.touch(request.session_id, self.now)
        for block in shared:
            self.blocks.share(block)
        self.sessions.admit(request.arrival)
        tail = self._find_tail(request, len(shared))
        self._make_free(own + reserve)
        request.blocks = array("i", shared + [self.blocks.take() for _ in range(own)])
        request.computed = len(shared) * BLOCK_TOKENS
        if tail is not None:
            block, request.computed = tail
            self.copies.append((block, request.blocks[len(shared)]))
        request.state = State.RUNNING
        self._read(request, request.unread - request.missing)
        if request.preemptions == 0:
            request.cached_tokens = request.computed
            self.prefix_queried += len(request.tokens)
            self.prefix_hits += request.computed
        insort(self.running, request, key=lambda r: r.rank)
        return True

    def _find_prefix(self, request: Request) -> list[int]:
        """Cached blocks that its tokens begin with.

        The last token always runs, because its logits are wanted: the block that holds it is never taken from cache.
        """
        full = (len(request.tokens) - 1) // BLOCK_TOKENS
        extend_digests(request.digests, request.tokens, full)
        return self.blocks.find_prefix(request.digests[:full])

    def _find_tail(self, request: Request, full: int) -> tuple[int, int] | None:
        """A block that begins as the request goes on after its full blocks, and up to where it spares computing.

        It is to be copied: the request writes behind what it takes over. The copy comes before all writes of the step,
        so it does not matter if the block itself is taken for something else in the same step.
        """
        tokens = request.tokens
        for end in range(min(len(tokens), (full + 1) * BLOCK_TOKENS), full * BLOCK_TOKENS, -1):
            found = self.blocks.find(tail_digest(request.digests[:full], tokens, end))
            if found is not None:
                computed = min(end, len(tokens) - 1)
                return (found, computed) if computed > full * BLOCK_TOKENS else None
        return None

    def _catch_up(self, request: Request) -> None:
        """Swap blocks still to be computed for those that another request has published meanwhile.

        Sessions that start together with one system prompt compute it once and not once each.
        """
        last = (len(request.tokens) - 1) // BLOCK_TOKENS
        while (index := request.computed // BLOCK_TOKENS) < last:
            found = self.blocks.find(request.digests[index])
            if found is None:
                return
            self.blocks.share(found)
            self.blocks.release([request.blocks[index]])
            request.blocks[index] = found
            spared = (index + 1) * BLOCK_TOKENS - request.computed
            request.computed += spared
            self._read(request, spared)
            if request.preemptions == 0:
                request.cached_tokens += spared
                self.prefix_hits += spared

    def _make_free(self, count: int) -> bool:
        """Let go of sessions until so many blocks are free; False if even without them fewer are."""
        if self.blocks.free < count:
            awaiting = [keeper for request in self.waiting for keeper in (request.session_id, request.arrival)]
            while self.blocks.free < count and self.sessions.reclaim(awaiting):
                pass
        return self.blocks.free >= count

    def _publish(self, request: Request) -> list[bytes]:
        """Let others find all that is computed of a request that writes no more; the digests of its blocks."""
        full, rest = divmod(request.computed, BLOCK_TOKENS)
        digests = request.digests[:full]
        if rest:
            digests.append(tail_digest(digests, request.tokens, request.computed))
        for block, digest in zip(request.blocks, digests, strict=False):
            self.blocks.publish(block, digest)  # full ones too: another of this content may have been reused since
        return digests

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._publish(request)
        self._release(request)
        request.computed = 0
        request.state = State.WAITING
        request.preemptions += 1
        self.preemptions += 1
        self._queue(request)

    def _queue(self, request: Request) -> None:
        """Let it wait, and keep for it what it would find now, unless much of its history is gone: its turn is late."""
        found = self._find_prefix(request)
        missing = len(request.tokens) - BLOCK_TOKENS * len(found)
        gone = BLOCK_TOKENS * self.histories.lost(request.digests, len(found))
        request.long = request.generated == 0 and missing > self.token_budget
        request.lost = request.long and (request.preemptions > 0 or gone > self.token_budget)
        if not request.lost:
            self.sessions.await_turn(request.arrival, found, max(self.now, request.arrived))
        if request.preemptions == 0:
            request.unread = missing
            request.turn = self.turns.enter(missing)
        insort(self.waiting, request, key=lambda r: r.place)

    def _read(self, request: Request, tokens: int) -> None:
        """So many more tokens of the prompt are computed, or need no computing: others' turns come nearer."""
        counted = min(tokens, request.unread)
        if counted > 0:
            request.unread -= counted
            self.turns.read(counted)

    def _release(self, request: Request) -> None:
        self.blocks.release(request.blocks)
        request.blocks = array("i")


class _Chunks:
    """Cuts prompts into what one step has room for."""

    def __init__(self, work: list[Scheduled], room: int, pace: Pace | None) -> None:
        """work: what the step runs already, added to by `add`; room: rows that are left."""
        self.room = room
        self._work = work
        self._pace = pace
        self._least = LEAST_CHUNK
        self._load = Load()
        if pace is not None:
            for item in work:
                self._load.add(item.start, item.rows, item.rows)

    def add(self, request: Request) -> int:
        """Schedule as much of the request's missing tokens as there is room for; how many that is.

        A chunk that does not reach the end stops at the end of a block, unless a pace sets its size: a chunk is then
        about as small as a block, and cut to whole ones it would waste much of the time that there is.
        """
        start, count = request.computed, min(request.missing, self.room)
        if self._pace is not None:
            fits = max(self._pace.room(self._load, start, count), min(self._least, count))
            if fits < count:
                count = self.room = fits
            self._least = 0
            if count == 0:
                return 0
            self._load.add(start, count, 1)
        elif count < request.missing:
            past_block = (start + count) % BLOCK_TOKENS
            count -= past_block if past_block < count else 0
        self._work.append(Scheduled(request, start, count))
        self.room -= count
        return count
