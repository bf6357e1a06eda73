"""By what name do client, proxies and this worker's log know one HTTP request?  `x-request-id`, on every answer."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["RequestIds", "request_id"]

HEADER = "x-request-id"
_SANE = re.compile(r"[!-~]{1,256}")
"""Visible ASCII: an id is one word of a line of the log, and a header again."""


class RequestIds:
    """An application whose answers carry the id that the client or a proxy gave the request, or one made here."""

    def __init__(self, inner: ASGIApp) -> None:
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        name = given if _SANE.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = name

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (HEADER.encode(), name.encode())]
            await send(message)

        await self._inner(scope, receive, named)


def request_id(request: Request) -> str:
    """The id of a request that came through RequestIds."""
    return str(request.state.request_id)
