"""How does a stream of server-sent events outlive the proxies on its way?  In silence it says that it goes on."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Message, Send

__all__ = ["EventStream", "sent_event"]

BEAT_SECONDS = 15.0
"""Proxies and load balancers end a stream in which nothing came for 60 s, as is usual, or for 30."""
_BEAT: Message = {"type": "http.response.body", "body": b": waiting\n\n", "more_body": True}
"""A comment, which clients skip (HTML Living Standard, 9.2.6)."""


def sent_event(value: dict[str, Any], name: str | None = None) -> bytes:
    """One event, with JSON in `data`; name: its type, for clients that tell types apart by it."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


class EventStream(StreamingResponse):
    """Events, and comments while none come: a prompt may wait in the queue, or take long to read."""

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        """events: whole ones, of one or more at a time."""
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._sending = asyncio.Lock()
        self._sent = 0.0

    async def stream_response(self, send: Send) -> None:
        """Starlette's: all of the answer."""

        async def in_turn(message: Message) -> None:
            async with self._sending:
                await send(message)
                self._sent = time.monotonic()

        self._sent = time.monotonic()
        beating = asyncio.create_task(self._beat(send))
        try:
            await super().stream_response(in_turn)
        finally:
            beating.cancel()

    async def _beat(self, send: Send) -> None:
        while True:
            await asyncio.sleep(self._sent + BEAT_SECONDS - time.monotonic())
            async with self._sending:
                if time.monotonic() - self._sent >= BEAT_SECONDS:
                    await send(_BEAT)
                    self._sent = time.monotonic()
