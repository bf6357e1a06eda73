"""Does a scheduler keep its promises, step by step?  It runs an exact and tiny model, which shows every lost block.

The model's KV cache stores tokens, and the next token is a digest of the context as read through the block table. A
wrong block, a block overwritten while shared or a token left out changes the output.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from berth_worker.engine.blocks import BlockManager, blocks_for
from berth_worker.engine.cost import Pace
from berth_worker.engine.request import Request, SamplingParams, State
from berth_worker.engine.scheduler import Scheduled, Scheduler

BLOCK = 16
TTL = 100.0
"""Seconds on a clock that tests set."""
COMMON = [zlib.crc32(bytes([i, 7])) % 97 for i in range(256)]


def next_token(context: Sequence[int]) -> int:
    return zlib.crc32(bytes(context)) % 97


def expected(prompt: Sequence[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


def request(prompt: Sequence[int], max_tokens: int = 4, priority: int = 0, session: str = "") -> Request:
    params = SamplingParams(max_tokens=max_tokens)
    return Request("r", list(prompt), params, max_tokens, priority, session)


def draft(r: Request, right: int, wrong: int) -> list[int]:
    room = r.max_tokens - r.generated - 1
    coming = expected(r.tokens, right + wrong)
    return [*coming[:right], *((token + 1) % 97 for token in coming[right:])][:room]


class Harness:
    """A scheduler joined to the exact model; checks each step's promises as it goes."""

    def __init__(self, num_blocks: int, max_running: int, max_waiting: int, token_budget: int) -> None:
        self.blocks = BlockManager(num_blocks)
        self.scheduler = Scheduler(
            self.blocks,
            max_running=max_running,
            max_waiting=max_waiting,
            token_budget=token_budget,
            session_seconds=TTL,
        )
        self.cells: list[list[int | None]] = [[None] * BLOCK for _ in range(num_blocks)]
        self.done: list[Request] = []

    def step(self, right: int = 0, wrong: int = 0, pace: Pace | None = None) -> list[Scheduled]:
        """One step; requests that decode get a draft of so many tokens that will come and so many that will not."""
        scheduler = self.scheduler
        before = [r for r in scheduler.running if r.decoding]
        drafts = {r: draft(r, right, wrong) for r in before}
        work = scheduler.schedule(drafts, pace)
        assert bool(work) != scheduler.idle, "a step runs something unless nothing is there"
        assert sum(item.rows for item in work) <= scheduler.token_budget
        assert all(list(item.draft) == drafts.get(item.request, [])[: len(item.draft)] for item in work)
        assert len(scheduler.running) <= scheduler.max_running
        assert len({id(item.request) for item in work}) == len(work)
        scheduled = {id(item.request) for item in work}
        for r in before:
            assert id(r) in scheduled or r.state is State.WAITING, "a decoding request gets its row or is preempted"
        for source, target in scheduler.copies:
            assert (self.blocks.references(target), self.blocks.published(target)) == (1, False)
            self.cells[target] = list(self.cells[source])
        for item in work:
            self._write(item)
        for item in work:
            self._sample(item)
        scheduler.complete(work)
        for r in [item.request for item in work]:
            if r.generated == r.max_tokens:
                scheduler.finish(r)
                self.done.append(r)
        return work

    def _write(self, item: Scheduled) -> None:
        assert item.count > 0
        tokens = [*item.request.tokens[: item.start + item.count], *item.draft]
        for position in range(item.start, item.start + item.rows):
            block = item.request.blocks[position // BLOCK]
            assert self.blocks.references(block) == 1, "nobody writes into a block that others hold"
            assert not self.blocks.published(block), "nobody writes into a block that others can find"
            self.cells[block][position % BLOCK] = tokens[position]

    def _sample(self, item: Scheduled) -> None:
        """As the engine does: row by row, for as long as the draft is what comes."""
        if not item.samples:
            return
        r = item.request
        for drafted in (*item.draft, None):
            context = [self.cells[r.blocks[p // BLOCK]][p % BLOCK] for p in range(len(r.tokens))]
            assert context == r.tokens, "the blocks hold exactly the request's own tokens"
            r.tokens.append(next_token(r.tokens))
            if r.tokens[-1] != drafted:
                break

    def check(self) -> None:
        held = [0] * self.blocks.num_blocks
        for r in self.scheduler.running:
            for block in r.blocks:
                held[block] += 1
        assert [self.blocks.references(b) for b in range(self.blocks.num_blocks)] == held
        kept = {block for blocks, _ in self.scheduler.sessions._kept.values() for block in blocks}
        assert self.blocks.retained == sum(not held[block] for block in kept)
        assert self.blocks.free == sum(count == 0 for count in held) - self.blocks.retained
        assert self.blocks.held == sum(count > 0 for count in held)
        assert all(self.blocks.published(block) for block in kept), "what is kept can be found"
        assert not any(r.blocks or r.computed for r in self.scheduler.waiting)
        for r in self.scheduler.running:
            assert r.computed < len(r.tokens), "the last token is always computed for its logits"
            assert len(r.blocks) <= blocks_for(len(r.tokens)), "a rejected draft leaves no block behind"

    def drain(self, right: int = 0, wrong: int = 0) -> None:
        steps = 0
        while not self.scheduler.idle:
            self.step(right, wrong)
            self.check()
            steps += 1
            assert steps < 20_000, "requests make progress"
        assert self.blocks.free + self.blocks.retained == self.blocks.num_blocks, "no block is leaked"


def run_all(harness: Harness, requests: Sequence[Request]) -> list[list[int]]:
    for r in requests:
        harness.scheduler.add(r)
    harness.drain()
    return [list(r.output_tokens) for r in requests]
