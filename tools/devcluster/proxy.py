"""What if the API server refuses, is slow, does not answer, or its watches misbehave?  A proxy that does it on purpose.

Between one client and a real API server.  Each request that the client makes is shown to a `Faults`, which says what
becomes of it; whatever it lets through is answered by the real thing.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Self

import aiohttp
import yaml
from aiohttp import web

from devcluster import access

_WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_SILENT = logging.getLogger("devcluster.proxy")  # a connection that we break is no error of ours
_SILENT.setLevel(logging.CRITICAL)
_HOP_BY_HOP = frozenset({"host", "connection", "content-length", "transfer-encoding", "accept-encoding"})


class Fault(Enum):
    """What becomes of one request."""

    NONE = "none"
    REFUSED = "refused"
    """500, and the API server never sees it."""
    CONFLICT = "conflict"
    """409, and the API server never sees it."""
    DELAYED = "delayed"
    """Reaches the API server only after a while."""
    HELD = "held"
    """Reaches the API server only once `Faults.let_go` is true, whatever has become of the client."""
    UNANSWERED = "unanswered"
    """Never reaches the API server, and no answer comes."""
    LOST = "lost"
    """The API server does it, and its answer is lost."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request, as `Faults` see it."""

    number: int
    """From 0, of this proxy."""
    method: str
    path: str
    watch: bool

    @property
    def is_write(self) -> bool:
        return self.method in _WRITES


Line = bytes
"""One event of a watch: a line of JSON, its end included."""


Lines = AsyncGenerator[Line, None]


@dataclass(slots=True)
class Faults:
    """What the proxy does; change it at any time."""

    of: Callable[[Call], Fault] = lambda _: Fault.NONE
    delay_s: float = 1.0
    let_go: bool = False
    watch: Callable[[Lines], Lines] = lambda lines: lines
    """Every watch's events pass through it; a watch ends where it does."""
    after: Callable[[Call], None] = lambda _: None
    """Called when the API server has answered, before the client hears of it."""
    cut: bool = False
    """Nothing passes, either way: new connections are closed; open ones stand still, and are closed afterwards."""
    selectors: dict[str, str] = field(default_factory=dict)
    """Plural -> label selector: what the client is shown of a resource."""


class FaultyProxy:
    """``async with FaultyProxy(kubeconfig, faults) as proxy: ... proxy.kubeconfig``"""

    def __init__(self, kubeconfig: Path, faults: Faults, written_to: Path) -> None:
        """`kubeconfig`: of the client that it stands for; the client is given `written_to`, which goes by the proxy."""
        found = yaml.safe_load(kubeconfig.read_text())
        self._server = str(found["clusters"][0]["cluster"]["server"])
        self._tls, self._token = access.client_tls(found)
        self.faults = faults
        self.kubeconfig = written_to
        self.calls: list[Call] = []
        self._watches: set[asyncio.Future[web.StreamResponse]] = set()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
        )
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, logger=_SILENT)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.kubeconfig.write_text(access.plain_kubeconfig(f"http://127.0.0.1:{port}"))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        for watch in self._watches:  # of clients that left: the server has forgotten them
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await self._session.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        faults = self.faults
        query = dict(request.query)
        plural = request.path.rstrip("/").rsplit("/", 1)[-1]
        if request.method == "GET" and plural in faults.selectors:
            query["labelSelector"] = faults.selectors[plural]
        call = Call(len(self.calls), request.method, request.path, query.get("watch") == "true")
        self.calls.append(call)
        match Fault.NONE if faults.cut else faults.of(call):
            case Fault.REFUSED:
                return _refusal(500, "InternalError")
            case Fault.CONFLICT:
                return _refusal(409, "Conflict")
            case Fault.DELAYED:
                await asyncio.sleep(faults.delay_s)
            case Fault.HELD:
                await request.read()
                while not faults.let_go:  # noqa: ASYNC110 - set from another thread
                    await asyncio.sleep(0.02)
            case Fault.UNANSWERED:
                await _hang_up_late(request)
            case Fault.LOST:
                await self._forwarded(request, query)
                _hang_up(request)
        if faults.cut:
            _hang_up(request)
        if not call.watch:
            return await self._answered(request, query, call)
        watch = asyncio.ensure_future(self._watched(request, query))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)
        return await watch

    async def _answered(self, request: web.Request, query: dict[str, str], call: Call) -> web.StreamResponse:
        status, headers, body = await self._forwarded(request, query)
        self.faults.after(call)
        if self.faults.cut:
            _hang_up(request)
        return web.Response(status=status, headers=headers, body=body)

    async def _forwarded(self, request: web.Request, query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        try:
            async with await self._send(request, query) as answer:
                return answer.status, _headers(answer), await answer.read()
        except aiohttp.ClientError:
            _hang_up(request)
            raise  # never: hanging up raises

    async def _watched(self, request: web.Request, query: dict[str, str]) -> web.StreamResponse:
        try:
            async with await self._send(request, query) as answer:
                if answer.status != 200:
                    return web.Response(status=answer.status, headers=_headers(answer), body=await answer.read())
                out = web.StreamResponse(headers={"Content-Type": "application/json"})
                await out.prepare(request)
                async with aclosing(_lines(answer)) as lines, aclosing(self.faults.watch(lines)) as changed:
                    async for line in changed:
                        if self.faults.cut:
                            await self._stand_still(request)
                        await out.write(line)
                return out
        except aiohttp.ClientError:
            _hang_up(request)
            raise  # never: hanging up raises

    async def _stand_still(self, request: web.Request) -> None:
        while self.faults.cut:  # noqa: ASYNC110 - set from outside, rarely
            await asyncio.sleep(0.05)
        _hang_up(request)

    async def _send(self, request: web.Request, query: dict[str, str]) -> aiohttp.ClientResponse:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        return await self._session.request(
            request.method,
            self._server + request.path,
            params=query,
            headers=headers,
            data=await request.read() or None,
            ssl=self._tls,
        )


def gone() -> Line:
    """The event that ends a watch whose resource version is too old."""
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired"}
    return json.dumps({"type": "ERROR", "object": status | {"message": "too old resource version"}}).encode() + b"\n"


async def _lines(answer: aiohttp.ClientResponse) -> Lines:
    async for line in answer.content:
        yield line


def _refusal(code: int, reason: str) -> web.Response:
    body: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason}
    return web.json_response(body | {"message": f"{reason}: by the faulty proxy"}, status=code)


def _headers(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return {k: v for k, v in answer.headers.items() if k.lower() in ("content-type", "content-encoding", "retry-after")}


def _hang_up(request: web.Request) -> None:
    """Close the connection without an answer, as a crash would."""
    if request.transport is not None:
        request.transport.abort()
    raise ConnectionResetError("hung up on purpose")


async def _hang_up_late(request: web.Request) -> None:
    """Say nothing until the client gives up, or for a minute."""
    for _ in range(1200):
        if request.transport is None or request.transport.is_closing():
            break
        await asyncio.sleep(0.05)
    _hang_up(request)


__all__ = ["Call", "Fault", "Faults", "FaultyProxy", "Line", "Lines", "gone"]
