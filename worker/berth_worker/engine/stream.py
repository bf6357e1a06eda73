"""How does what the engine generates reach whoever asked, in an event loop or in a thread?"""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass

from berth_worker.engine.request import FinishReason
from berth_worker.engine.sampling import TokenLogprobs

__all__ = ["AsyncStream", "Chunk", "Completion", "Finish", "SyncStream", "merge"]


@dataclass(frozen=True, slots=True)
class Finish:
    """How a request ended, and what it took."""

    reason: FinishReason
    prompt_tokens: int
    cached_prompt_tokens: int
    """Of the prompt tokens, those found in the prefix cache."""
    completion_tokens: int
    queue_seconds: float
    """Arrival to the first step."""
    prefill_seconds: float
    """First step to first token; 0 if none came."""
    decode_seconds: float
    """First token to last token; 0 if at most one came."""
    error: str = ""
    """What failed, if reason is ERROR or ABORT by the worker."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of output. Text can lag behind token_ids: a character or a stop string may still be forming."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each of token_ids, if the request asks for them."""
    finish: Finish | None = None
    """Set on the last chunk alone."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole output."""

    text: str
    token_ids: tuple[int, ...]
    finish: Finish
    logprobs: tuple[TokenLogprobs, ...] = ()


def merge(chunks: Iterable[Chunk]) -> Chunk:
    """One chunk that says what these say, for a reader slower than the engine."""
    text: list[str] = []
    tokens: list[int] = []
    logprobs: list[TokenLogprobs] = []
    finish: Finish | None = None
    for chunk in chunks:
        text.append(chunk.text)
        tokens += chunk.token_ids
        logprobs += chunk.logprobs
        finish = chunk.finish
    return Chunk("".join(text), tuple(tokens), tuple(logprobs), finish)


class AsyncStream:
    """Chunks of one request in an event loop. Iterate once; `cancel` when no longer interested."""

    def __init__(self, request_id: str, cancel: Callable[[], None]) -> None:
        """Call in the event loop that will read."""
        self.request_id = request_id
        self.loop = asyncio.get_running_loop()
        self._cancel = cancel
        self._pending: deque[Chunk] = deque()
        self._arrived = asyncio.Event()

    def put(self, chunk: Chunk) -> None:
        """Call in the stream's own loop."""
        self._pending.append(chunk)
        self._arrived.set()

    def cancel(self) -> None:
        """Free what the request holds, at the end of the step that runs; does nothing once it has finished."""
        self._cancel()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            chunk = merge(self._pending)
            self._pending.clear()
            yield chunk
            if chunk.finish is not None:
                return


class SyncStream:
    """Chunks of one request for a thread that blocks."""

    def __init__(self) -> None:
        self._pending: queue.SimpleQueue[Chunk] = queue.SimpleQueue()

    def put(self, chunk: Chunk) -> None:
        """Call in any thread."""
        self._pending.put(chunk)

    def __iter__(self) -> Iterator[Chunk]:
        while True:
            chunk = self._pending.get()
            yield chunk
            if chunk.finish is not None:
                return
