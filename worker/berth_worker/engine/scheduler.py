"""Which tokens run in the next step?

Continuous batching with chunked prefill: every request that decodes gets its row, then prefills share what is left
of the step's token budget, then waiting requests are let in while there is a slot and room for their whole prompt.
When a decoding request finds no block, the request that goes last gives all of its own up and is recomputed later.
Pure and single-threaded: the engine's lock is the only guard.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

from berth_worker.engine.batch import BLOCK_TOKENS
from berth_worker.engine.blocks import BlockManager, blocks_for, extend_digests
from berth_worker.engine.request import Request, State

__all__ = ["QueueFullError", "Scheduled", "Scheduler"]


class QueueFullError(RuntimeError):
    """As many requests run and wait as are allowed to."""


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Tokens start ... start + count - 1 of a request run in this step."""

    request: Request
    start: int
    count: int

    @property
    def samples(self) -> bool:
        """Whether the step computes the request's last token, so that the next one can be sampled."""
        return self.start + self.count == len(self.request.tokens)


class Scheduler:
    """Requests that wait and run, over one BlockManager."""

    def __init__(self, blocks: BlockManager, *, max_running: int, max_waiting: int, token_budget: int) -> None:
        """max_running: requests in one step; max_waiting: beyond them; token_budget: rows of one step."""
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
        self.waiting: list[Request] = []
        """Sorted by rank."""
        self.running: list[Request] = []
        """Sorted by rank."""
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
        insort(self.waiting, request, key=lambda r: r.rank)

    def schedule(self) -> list[Scheduled]:
        """The next step's work, blocks included; empty only when idle. After the step, call `complete`."""
        before = self.preemptions
        work = self._decodes()
        budget = self.token_budget - len(work)
        for request in self.running:
            if budget > 0 and not request.decoding:
                self._catch_up(request)
                budget -= self._prefill(request, budget, work)
        if self.preemptions == before:
            while budget > 0 and (admitted := self._admit()):
                budget -= self._prefill(admitted, budget, work)
        return work

    def complete(self, work: Sequence[Scheduled]) -> None:
        """The step ran: its tokens' KV is in the blocks, and full blocks can be shared."""
        for item in work:
            request = item.request
            before = request.computed // BLOCK_TOKENS
            request.computed = item.start + item.count
            full = request.computed // BLOCK_TOKENS
            extend_digests(request.digests, request.tokens, full)
            for index in range(before, full):
                self.blocks.publish(request.blocks[index], request.digests[index])

    def finish(self, request: Request) -> None:
        """Let go of a request, wherever it stands; a second call does nothing. Never between schedule and complete."""
        if request.state is State.RUNNING:
            self.running.remove(request)
            self._release(request)
        elif request.state is State.WAITING and request in self.waiting:
            self.waiting.remove(request)
        request.state = State.FINISHED

    def _decodes(self) -> list[Scheduled]:
        """A row for each request that decodes, first in rank first; those last in rank make room."""
        work: list[Scheduled] = []
        for request in list(self.running):
            if not request.decoding:
                continue
            while request.state is State.RUNNING and len(request.blocks) < blocks_for(len(request.tokens)):
                if self.blocks.free:
                    request.blocks.append(self.blocks.take())
                else:
                    self._preempt(self.running[-1])  # never one that has its row already: they come in order of rank
            if request.state is State.RUNNING:
                work.append(Scheduled(request, request.computed, 1))
        return work

    def _prefill(self, request: Request, budget: int, work: list[Scheduled]) -> int:
        """Schedule a chunk of at most budget tokens, and return its size.

        A chunk that does not reach the end stops at the end of a block, where another request's copy can take over.
        """
        count = min(request.missing, budget)
        if count < request.missing:
            past_block = (request.computed + count) % BLOCK_TOKENS
            count -= past_block if past_block < count else 0
        work.append(Scheduled(request, request.computed, count))
        return count

    def _admit(self) -> Request | None:
        """Let the first waiting request in, with blocks for all of its tokens, or None."""
        if not self.waiting or len(self.running) >= self.max_running:
            return None
        request = self.waiting[0]
        # The last token always runs, because its logits are wanted: the block that holds it is never taken from cache.
        extend_digests(request.digests, request.tokens, (len(request.tokens) - 1) // BLOCK_TOKENS)
        shared = self.blocks.find_prefix(request.digests[: (len(request.tokens) - 1) // BLOCK_TOKENS])
        own = blocks_for(len(request.tokens)) - len(shared)
        reserve = len(self.running)  # a block for each to grow into, so that letting one in does not push one out
        if own + self.blocks.free_among(shared) + reserve > self.blocks.free:
            return None
        del self.waiting[0]
        for block in shared:
            self.blocks.share(block)
        request.blocks = shared + [self.blocks.take() for _ in range(own)]
        request.computed = len(shared) * BLOCK_TOKENS
        request.state = State.RUNNING
        if request.preemptions == 0:
            request.cached_tokens = request.computed
            self.prefix_queried += len(request.tokens)
            self.prefix_hits += request.computed
        insort(self.running, request, key=lambda r: r.rank)
        return request

    def _catch_up(self, request: Request) -> None:
        """Swap blocks still to be computed for those that another request has published meanwhile.

        Sessions that start together with one system prompt compute it once and not once each.
        """
        last = (len(request.tokens) - 1) // BLOCK_TOKENS
        while request.computed % BLOCK_TOKENS == 0 and (index := request.computed // BLOCK_TOKENS) < last:
            found = self.blocks.find(request.digests[index])
            if found is None:
                return
            self.blocks.share(found)
            self.blocks.release([request.blocks[index]])
            request.blocks[index] = found
            request.computed += BLOCK_TOKENS
            if request.preemptions == 0:
                request.cached_tokens += BLOCK_TOKENS
                self.prefix_hits += BLOCK_TOKENS

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._release(request)
        request.computed = 0
        request.state = State.WAITING
        request.preemptions += 1
        self.preemptions += 1
        insort(self.waiting, request, key=lambda r: r.rank)

    def _release(self, request: Request) -> None:
        self.blocks.release(request.blocks)
        request.blocks = []
